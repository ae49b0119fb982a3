package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/blockzero-net/bzd/training/cuda/kernels"
)

// device is a Driver with what the operations need around it: kernels by name, memory that the collector gives back, and
// the first failure. All of it except the pool's returns runs under the lock of the Backend.
type device struct {
	drv       Driver
	info      Info
	functions map[string]Function
	limit     int64 // bytes that may be allocated
	used      int64 // bytes allocated, the pool's included
	err       error
	stage     []byte // page-locked, through which small writes go so that nobody waits for them
	staged    int    // bytes of it in use

	mu    sync.Mutex
	dead  []*block // given back by the collector
	pool  map[int64][]Ptr
	fresh int64 // bytes allocated since the collector last ran for us
}

// block is an allocation without its users.
type block struct {
	ptr   Ptr
	bytes int64
}

func newDevice(d Driver, limit int64) (*device, error) {
	free, _, err := d.MemInfo()
	if err != nil {
		return nil, err
	}
	// What other programs take while we run must not fail us at once.
	if most := free - free/16; limit <= 0 || limit > most {
		limit = most
	}
	return &device{drv: d, info: d.Info(), functions: map[string]Function{}, limit: limit, pool: map[int64][]Ptr{}}, nil
}

// fail keeps the first failure.
func (d *device) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// sync waits and returns the first failure. A lack of memory is forgotten then, other failures last.
func (d *device) sync() error {
	if err := d.drv.Sync(0); err != nil {
		d.fail(err)
	}
	err := d.err
	if errors.Is(err, ErrOutOfMemory) {
		d.err = nil
	}
	return err
}

// rounded is the size a block is allocated with: few different ones, so that the pool is of use.
func rounded(bytes int64) int64 {
	step := int64(512)
	for step*64 < bytes {
		step *= 2
	}
	return (bytes + step - 1) / step * step
}

// alloc returns memory of any content; without an address, and with a failure noted, if there is none.
func (d *device) alloc(k kind, n int) *buffer {
	bytes := rounded(max(k.bytes(n), 1))
	b := &buffer{n: n, kind: k, mem: &memory{bytes: bytes}}
	ptr, err := d.take(bytes)
	if err != nil {
		d.short(bytes, err)
		return b
	}
	b.mem.ptr, b.ptr = ptr, ptr
	runtime.AddCleanup(b.mem, d.returned, &block{ptr, bytes})
	return b
}

// scratch is memory that an operation gives back with release when its kernels have been queued: the pool gives it out
// again at once, to work that the stream puts behind.
func (d *device) scratch(k kind, n int) *buffer {
	bytes := rounded(max(k.bytes(n), 1))
	b := &buffer{n: n, kind: k, mem: &memory{bytes: bytes}}
	ptr, err := d.take(bytes)
	if err != nil {
		d.short(bytes, err)
		return b
	}
	b.mem.ptr, b.ptr = ptr, ptr
	return b
}

func (d *device) release(all ...*buffer) {
	for _, b := range all {
		if b.ptr != 0 {
			d.pool[b.mem.bytes] = append(d.pool[b.mem.bytes], b.mem.ptr)
			b.ptr = 0
		}
	}
}

// short notes a lack of memory.
func (d *device) short(bytes int64, err error) {
	d.fail(fmt.Errorf("%d MiB asked for, %d of %d MiB in use: %w", bytes>>20, d.used>>20, d.limit>>20, err))
}

// returned hears from the collector.
func (d *device) returned(b *block) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = append(d.dead, b)
}

// take returns a block from the pool or the driver. Work on it is ordered by the stream, so a block that is given back
// while a kernel still uses it can be given out again at once.
func (d *device) take(bytes int64) (Ptr, error) {
	if d.fresh > d.limit/8 {
		d.collect() // the collector sees only Go's memory, and would not run for ours
	}
	d.reclaim()
	if p := d.pool[bytes]; len(p) > 0 {
		d.pool[bytes] = p[:len(p)-1]
		return p[len(p)-1], nil
	}
	ptr, err := d.grow(bytes)
	if !errors.Is(err, ErrOutOfMemory) {
		return ptr, err
	}
	d.collect()
	d.reclaim()
	if p := d.pool[bytes]; len(p) > 0 {
		d.pool[bytes] = p[:len(p)-1]
		return p[len(p)-1], nil
	}
	if err := d.trim(); err != nil {
		return 0, err
	}
	return d.grow(bytes)
}

func (d *device) grow(bytes int64) (Ptr, error) {
	if d.used+bytes > d.limit {
		return 0, ErrOutOfMemory
	}
	ptr, err := d.drv.Alloc(bytes)
	if err == nil {
		d.used += bytes
		d.fresh += bytes
	}
	return ptr, err
}

// collect runs the collector until what it found has been given back. Cleanups run in their own goroutine after it.
func (d *device) collect() {
	d.fresh = 0
	for range 2 {
		done := make(chan struct{})
		func() { runtime.AddCleanup(new([16]byte), func(c chan struct{}) { close(c) }, done) }()
		runtime.GC()
		<-done
	}
}

// reclaim moves what the collector gave back to the pool.
func (d *device) reclaim() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.dead {
		d.pool[b.bytes] = append(d.pool[b.bytes], b.ptr)
	}
	d.dead = nil
}

// trim gives the pool back to the driver.
func (d *device) trim() error {
	for bytes, list := range d.pool {
		for _, p := range list {
			if err := d.drv.Free(p); err != nil {
				return err
			}
			d.used -= bytes
		}
		delete(d.pool, bytes)
	}
	return nil
}

// function returns a kernel by name, loading its module on first use: the driver compiles PTX then, once per machine.
func (d *device) function(name string) (Function, error) {
	if f, ok := d.functions[name]; ok {
		return f, nil
	}
	m, ok := kernels.Find(name, d.info.Major, d.info.Minor)
	if !ok {
		return 0, fmt.Errorf("%w: no kernel %s for compute capability %d.%d", ErrLaunch, name, d.info.Major, d.info.Minor)
	}
	all, err := d.drv.Load(m.PTX, m.Kernels)
	if err != nil {
		return 0, fmt.Errorf("load kernels %s: %w", m.Name, err)
	}
	for n, f := range all {
		d.functions[n] = f
	}
	return d.functions[name], nil
}

// dims is a grid or a block.
type dims = [3]int

// launch starts a kernel on the main stream, unless something has failed. A *buffer stands for its address, nil for 0.
func (d *device) launch(name string, grid, block dims, shared int, args ...any) {
	if d.err != nil || grid[0] == 0 || grid[1] == 0 || grid[2] == 0 {
		return
	}
	f, err := d.function(name)
	if err != nil {
		d.fail(err)
		return
	}
	for i, a := range args {
		switch a := a.(type) {
		case *buffer:
			switch {
			case a == nil:
				args[i] = Ptr(0)
			case a.ptr == 0:
				d.fail(fmt.Errorf("%w: an operation on a buffer there was no memory for", ErrOutOfMemory))
				return
			default:
				a.touched()
				args[i] = a.ptr
			}
		case int:
			args[i] = int32(a)
		}
	}
	if err := d.drv.Launch(f, grid, block, shared, 0, args...); err != nil {
		d.fail(fmt.Errorf("%s: %w", name, err))
	}
	runtime.KeepAlive(args)
}

// upload copies values to a fresh buffer. Integers are kept in one of 32-bit values.
func upload[T int32 | uint32 | float32 | uint64](d *device, v []T) *buffer {
	raw := bytesOf(v)
	b := d.alloc(f32, len(raw)/4)
	d.write(b, raw)
	return b
}

func (d *device) write(dst *buffer, raw []byte) {
	if d.err != nil || dst.ptr == 0 || len(raw) == 0 {
		return
	}
	dst.touched()
	if from, err := d.via(raw); err != nil {
		d.fail(err)
	} else if err := d.drv.ToDevice(dst.ptr, from, 0); err != nil {
		d.fail(err)
	}
}

const (
	stageBytes = 2 << 20
	smallWrite = 256 << 10
)

// via copies a small write to the stage, whose copies are over once its end was reached and all were waited for.
func (d *device) via(raw []byte) ([]byte, error) {
	if len(raw) > smallWrite {
		return raw, nil
	}
	if d.stage == nil {
		stage, err := d.drv.AllocHost(stageBytes)
		if err != nil {
			return nil, err
		}
		d.stage = stage
	}
	if d.staged+len(raw) > len(d.stage) {
		if err := d.drv.Sync(0); err != nil {
			return nil, err
		}
		d.staged = 0
	}
	from := d.stage[d.staged:][:len(raw):len(raw)]
	d.staged += (len(raw) + 63) &^ 63
	copy(from, raw)
	return from, nil
}

// close gives everything back that nobody uses.
func (d *device) close() error {
	err := d.sync()
	d.collect()
	d.reclaim()
	if e := d.trim(); err == nil {
		err = e
	}
	if d.stage != nil {
		if e := d.drv.FreeHost(d.stage); err == nil {
			err = e
		}
		d.stage = nil
	}
	return err
}

func (d *device) read(raw []byte, src *buffer) {
	if d.err != nil || src.ptr == 0 || len(raw) == 0 {
		return
	}
	if err := d.drv.ToHost(raw, src.ptr, 0); err != nil {
		d.fail(err)
	}
}

// clear sets a buffer to zeros. Its length in bytes may be no multiple of a word.
func (d *device) clear(b *buffer) {
	if d.err != nil || b.ptr == 0 || b.n == 0 {
		return
	}
	if b.kind == bf16 && (b.ptr%4 != 0 || b.n%2 != 0) {
		d.launch("zero_bf16", dims{(b.n + 255) / 256, 1, 1}, dims{256, 1, 1}, 0, b, int64(b.n))
		return
	}
	b.touched()
	if err := d.drv.Fill(b.ptr, 0, b.kind.bytes(b.n)/4, 0); err != nil {
		d.fail(err)
	}
}

func bytesOf[T any](v []T) []byte {
	if len(v) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&v[0])), len(v)*int(unsafe.Sizeof(v[0])))
}

// ceil is n/m rounded up.
func ceil(n, m int) int { return (n + m - 1) / m }
