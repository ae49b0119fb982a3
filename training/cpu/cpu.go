package cpu

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/blockzero-net/bzd/training/backend"
)

type adamw = backend.AdamW

// Options choose how the backend computes; no choice changes a bit of any result.
type Options struct {
	// Threads is how many goroutines one operation may use; 0 means all processors.
	Threads int
	// ISA is the instruction set; empty means the fastest there is.
	ISA ISA
	// Mapped is how many bytes of matrices that lie in files may stay in memory; 0 means as many as the system likes.
	Mapped int64
}

// Backend implements backend.Backend. Its operations return when they are done, so Sync has nothing to wait for.
type Backend struct {
	kernels
	isa     ISA
	threads int

	mu   sync.Mutex
	free []*work   // that nobody holds
	room []float32 // that nobody has borrowed
	maps mappings
}

var _ backend.Backend = (*Backend)(nil)

// New returns a backend, or ErrISA.
func New(o Options) (*Backend, error) {
	if o.ISA == "" {
		o.ISA = Available()[0]
	}
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	k, err := kernelsFor(o.ISA)
	if err != nil {
		return nil, err
	}
	return &Backend{kernels: k, isa: o.ISA, threads: o.Threads, maps: mappings{limit: o.Mapped}}, nil
}

// Name says what computes.
func (b *Backend) Name() string { return fmt.Sprintf("cpu %s ×%d", b.isa, b.threads) }

// Sync returns nil, or ErrMapped.
func (b *Backend) Sync() error { return b.maps.failure() }

// floats is the Buffer of this backend.
type floats []float32

func (f floats) Len() int                        { return len(f) }
func (f floats) Slice(off, n int) backend.Buffer { return f[off : off+n : off+n] }

// host returns the values of a buffer of this backend; nil stays nil.
func host(b backend.Buffer) []float32 {
	if b == nil {
		return nil
	}
	return b.(floats)
}

// Alloc returns n zeros.
func (b *Backend) Alloc(n int) backend.Buffer { return make(floats, n) }

// AllocActivation returns n zeros.
func (b *Backend) AllocActivation(n int) backend.Buffer { return b.Alloc(n) }

// Write copies src to dst.
func (b *Backend) Write(dst backend.Buffer, src []float32) { mustCopy(host(dst), src) }

// Read copies src to dst.
func (b *Backend) Read(dst []float32, src backend.Buffer) { mustCopy(dst, host(src)) }

func mustCopy(dst, src []float32) {
	if len(dst) != len(src) {
		panic(fmt.Sprintf("cpu: copy of %d values to %d", len(src), len(dst)))
	}
	copy(dst, src)
}

// Copy sets dst = x.
func (b *Backend) Copy(dst, x backend.Buffer) { mustCopy(host(dst), host(x)) }

// Zero clears a buffer.
func (b *Backend) Zero(x backend.Buffer) {
	d := host(x)
	b.rowsOf(len(d), 1<<18, func(lo, hi int) { clear(d[lo:hi]) })
}

// Add sets dst = dst + x.
func (b *Backend) Add(dst, x backend.Buffer) {
	d, s := host(dst), host(x)
	b.rowsOf(len(d), 4096, func(lo, hi int) { b.add(d[lo:hi], s[lo:hi]) })
}

// Sum sets dst = x + y.
func (b *Backend) Sum(dst, x, y backend.Buffer) {
	d, s, t := host(dst), host(x), host(y)
	b.rowsOf(len(d), 4096, func(lo, hi int) { b.sum(d[lo:hi], s[lo:hi], t[lo:hi]) })
}

// Columns gathers columns.
func (b *Backend) Columns(dst, x backend.Buffer, cols []int) {
	d, s := host(dst), host(x)
	rows := len(d) / len(cols)
	width := len(s) / rows
	for r := range rows {
		for i, c := range cols {
			d[r*len(cols)+i] = s[r*width+c]
		}
	}
}

// work is what one goroutine needs to multiply.
type work struct {
	block [blockK * blockN]float32 // of the right-hand matrix
	left  [stripLen]float32        // of the left-hand one
	few   [8 * blockK]float32
	tile  tile
	spare []float32
	then  uintptr // where the operand of the next product lies, or 0
}

// scratch returns n values of any content, until the next call.
func (w *work) scratch(n int) []float32 {
	if cap(w.spare) < n {
		w.spare = make([]float32, n)
	}
	return w.spare[:n]
}

func (b *Backend) take() *work {
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := len(b.free) - 1; last >= 0 {
		w := b.free[last]
		b.free = b.free[:last]
		return w
	}
	return new(work)
}

func (b *Backend) give(w *work) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w.tile = tile{}
	b.free = append(b.free, w)
}

// borrow returns n values of any content.
func (b *Backend) borrow(n int) []float32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.room
	b.room = nil
	if cap(v) < n {
		v = make([]float32, n)
	}
	return v[:n]
}

func (b *Backend) giveBack(v []float32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cap(v) > cap(b.room) {
		b.room = v
	}
}

// par runs f(0) … f(n−1) on up to threads goroutines. Which goroutine runs which item never shows in a result.
func (b *Backend) par(n int, f func(w *work, i int)) {
	var next atomic.Int64
	run := func() {
		w := b.take()
		defer b.give(w)
		defer b.guard()()
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(w, i)
		}
	}
	var wg sync.WaitGroup
	for range min(n, b.threads) - 1 {
		wg.Go(run)
	}
	run()
	wg.Wait()
}

// rowsOf cuts n items into runs of about grain (a multiple of 16 when grain is) and runs them in parallel.
func (b *Backend) rowsOf(n, grain int, f func(lo, hi int)) {
	if b.threads == 1 || n <= grain {
		for lo := 0; lo < n; lo += grain { // a run stays in the cache
			f(lo, min(lo+grain, n))
		}
		return
	}
	b.par((n+grain-1)/grain, func(_ *work, i int) { f(i*grain, min((i+1)*grain, n)) })
}
