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
}

// Backend implements backend.Backend. Its operations return when they are done, so Sync has nothing to wait for.
type Backend struct {
	kernels
	isa     ISA
	threads int

	mu   sync.Mutex
	free [][]float32 // scratch that nobody holds; the first large enough is reused
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
	return &Backend{kernels: k, isa: o.ISA, threads: o.Threads}, nil
}

// Name says what computes.
func (b *Backend) Name() string { return fmt.Sprintf("cpu %s ×%d", b.isa, b.threads) }

// Sync returns nil.
func (b *Backend) Sync() error { return nil }

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
func (b *Backend) Zero(x backend.Buffer) { clear(host(x)) }

// Add sets dst = dst + x.
func (b *Backend) Add(dst, x backend.Buffer) {
	d, s := host(dst), host(x)
	b.rowsOf(len(d), 4096, func(lo, hi int) { b.add(d[lo:hi], s[lo:hi]) })
}

// Sum sets dst = x + y.
func (b *Backend) Sum(dst, x, y backend.Buffer) {
	b.Copy(dst, x)
	b.Add(dst, y)
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

// par runs f(0) … f(n−1) on up to threads goroutines. Which goroutine runs which item never shows in a result.
func (b *Backend) par(n int, f func(i int)) {
	t := min(n, b.threads)
	if t <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	for range t - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// rowsOf cuts n items into runs of about grain (a multiple of 16 when grain is) and runs them in parallel.
func (b *Backend) rowsOf(n, grain int, f func(lo, hi int)) {
	if b.threads == 1 || n <= grain {
		if n > 0 {
			f(0, n)
		}
		return
	}
	b.par((n+grain-1)/grain, func(i int) { f(i*grain, min((i+1)*grain, n)) })
}

// scratch returns n values of any content; give it back with release.
func (b *Backend) scratch(n int) []float32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, s := range b.free {
		if cap(s) >= n {
			last := len(b.free) - 1
			b.free[i] = b.free[last]
			b.free = b.free[:last]
			return s[:n]
		}
	}
	return make([]float32, n)
}

func (b *Backend) release(s []float32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) < 64 {
		b.free = append(b.free, s)
	}
}
