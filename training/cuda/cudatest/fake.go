package cudatest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"github.com/blockzero-net/bzd/training/cuda"
)

// Call is a call of the driver.
type Call struct {
	Method string
	Stream cuda.Stream
	Kernel string // of Launch
	Args   []any  // of Launch, or of the method in the order of its parameters; host memory as its length
}

func (c Call) String() string {
	if c.Kernel != "" {
		return fmt.Sprintf("%s %s%v stream %d", c.Method, c.Kernel, c.Args, c.Stream)
	}
	return fmt.Sprintf("%s%v stream %d", c.Method, c.Args, c.Stream)
}

// Options of a fake device. Zero values mean the default.
type Options struct {
	Info cuda.Info // default: capability 8.0, 1 GiB
	// Fail is asked before every call but Info and Close; an error that it returns is the call's. n counts those calls. After
	// ErrDeviceLost and ErrLaunch all calls fail.
	Fail func(n int, method string) error
	// OnLaunch stands in for the kernel; memory gives the bytes from an address to the end of its allocation.
	OnLaunch func(kernel string, args []any, memory func(cuda.Ptr) []byte)
}

// ErrMisuse: the host did what no host may do.
var ErrMisuse = errors.New("misuse of the CUDA driver")

// Fake is a [cuda.Driver] without a device. Its methods may be called concurrently.
type Fake struct {
	options Options

	mu         sync.Mutex
	calls      []Call
	asked      int
	failed     error
	closed     bool
	violations []error

	next    cuda.Ptr
	used    int64
	memory  map[cuda.Ptr]*allocation
	freed   map[cuda.Ptr]bool
	hosts   map[*byte][]byte
	gone    map[*byte][]byte // freed host memory, kept so that its addresses are not used again
	names   []string         // of functions
	streams []clock
	events  []*clock // nil: not recorded
	host    clock
}

// clock counts the work of each stream that has happened before.
type clock []int

func (c clock) at(s int) int {
	if s < len(c) {
		return c[s]
	}
	return 0
}

func (c *clock) merge(o clock) {
	for len(*c) < len(o) {
		*c = append(*c, 0)
	}
	for i, n := range o {
		(*c)[i] = max((*c)[i], n)
	}
}

// stamp is a piece of work on a stream.
type stamp struct {
	stream, tick int
	what         string
}

type allocation struct {
	bytes   []byte
	written stamp         // the last copy or fill into it
	used    map[int]stamp // the last use by each stream
}

var _ cuda.Driver = (*Fake)(nil)

// New returns a device.
func New(o Options) *Fake {
	if o.Info == (cuda.Info{}) {
		o.Info = cuda.Info{Name: "fake", Major: 8, SMs: 4, SharedPerSM: 164 << 10, SharedPerCTA: 163 << 10, Memory: 1 << 30, DriverVersion: 12080}
	}
	return &Fake{options: o, next: 1 << 32, memory: map[cuda.Ptr]*allocation{}, freed: map[cuda.Ptr]bool{},
		hosts: map[*byte][]byte{}, gone: map[*byte][]byte{}, streams: make([]clock, 1)}
}

// Calls returns what was called so far.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Live returns the number of allocations on the device and of host memory.
func (f *Fake) Live() (device, host int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.memory), len(f.hosts)
}

// Violations returns what the host did wrong so far.
func (f *Fake) Violations() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.violations...)
}

// wrong notes a violation.
func (f *Fake) wrong(format string, a ...any) error {
	err := fmt.Errorf("%w: call %d: "+format, append([]any{ErrMisuse, len(f.calls) - 1}, a...)...)
	f.violations = append(f.violations, err)
	return fmt.Errorf("%w: %w", cuda.ErrLaunch, err)
}

// enter records a call and says whether it fails. The lock is held.
func (f *Fake) enter(c Call) error {
	f.calls = append(f.calls, c)
	if f.closed {
		return f.wrong("%s after Close", c.Method)
	}
	if f.failed != nil {
		return f.failed
	}
	n := f.asked
	f.asked++
	if f.options.Fail != nil {
		if err := f.options.Fail(n, c.Method); err != nil {
			if errors.Is(err, cuda.ErrDeviceLost) || errors.Is(err, cuda.ErrLaunch) {
				f.failed = err
			}
			return err
		}
	}
	if int(c.Stream) >= len(f.streams) {
		return f.wrong("%s on stream %d, which was never made", c.Method, c.Stream)
	}
	return nil
}

// work adds a piece of work to a stream: after what the stream has waited for and what the host has.
func (f *Fake) work(s cuda.Stream, what string) stamp {
	c := &f.streams[s]
	c.merge(f.host)
	for len(*c) <= int(s) {
		*c = append(*c, 0)
	}
	(*c)[s]++
	return stamp{int(s), (*c)[s], what}
}

// touch checks that earlier work on an allocation, of other streams, happened before.
func (f *Fake) touch(a *allocation, w stamp, writes bool) error {
	after := func(earlier stamp) bool {
		return earlier.tick == 0 || earlier.stream == w.stream || f.streams[w.stream].at(earlier.stream) >= earlier.tick
	}
	if !after(a.written) {
		return f.wrong("%s on stream %d does not wait for %s on stream %d", w.what, w.stream, a.written.what, a.written.stream)
	}
	if writes {
		for _, earlier := range a.used {
			if !after(earlier) {
				return f.wrong("%s on stream %d does not wait for %s on stream %d", w.what, w.stream, earlier.what, earlier.stream)
			}
		}
		a.written = w
	}
	a.used[w.stream] = w
	return nil
}

// find returns the allocation of an address and the offset in it.
func (f *Fake) find(p cuda.Ptr, n int64) (*allocation, int64, error) {
	for base, a := range f.memory {
		if p >= base && uint64(p-base)+uint64(n) <= uint64(len(a.bytes)) {
			return a, int64(p - base), nil
		}
	}
	if f.freed[p] {
		return nil, 0, f.wrong("use of %#x after Free", uint64(p))
	}
	return nil, 0, f.wrong("%d bytes at %#x lie in no allocation", n, uint64(p))
}

// Info returns that of the options.
func (f *Fake) Info() cuda.Info { return f.options.Info }

// MemInfo counts bytes as asked for.
func (f *Fake) MemInfo() (free, total int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "MemInfo"}); err != nil {
		return 0, 0, err
	}
	return f.options.Info.Memory - f.used, f.options.Info.Memory, nil
}

// Alloc returns memory full of bytes 0xc1.
func (f *Fake) Alloc(n int64) (cuda.Ptr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "Alloc", Args: []any{n}}); err != nil {
		return 0, err
	}
	if n <= 0 {
		return 0, f.wrong("Alloc of %d bytes", n)
	}
	if f.used+n > f.options.Info.Memory {
		return 0, fmt.Errorf("%w: %d bytes wanted, %d free", cuda.ErrOutOfMemory, n, f.options.Info.Memory-f.used)
	}
	f.used += n
	p := f.next
	f.next += cuda.Ptr(n+255)&^255 + 4096 // never used again
	f.memory[p] = &allocation{bytes: spoilt(n), used: map[int]stamp{}}
	return p, nil
}

func spoilt(n int64) []byte {
	return bytes.Repeat([]byte{0xc1}, int(n))
}

// Free waits for all work.
func (f *Fake) Free(p cuda.Ptr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "Free", Args: []any{p}}); err != nil {
		return err
	}
	a, ok := f.memory[p]
	switch {
	case !ok && f.freed[p]:
		return f.wrong("a second Free of %#x", uint64(p))
	case !ok:
		return f.wrong("Free of %#x, which is no allocation", uint64(p))
	}
	f.waitAll()
	delete(f.memory, p)
	f.freed[p] = true
	f.used -= int64(len(a.bytes))
	return nil
}

func (f *Fake) waitAll() {
	for _, s := range f.streams {
		f.host.merge(s)
	}
}

// AllocHost returns memory full of bytes 0xc1.
func (f *Fake) AllocHost(n int64) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "AllocHost", Args: []any{n}}); err != nil {
		return nil, err
	}
	if n <= 0 {
		return nil, f.wrong("AllocHost of %d bytes", n)
	}
	b := spoilt(n)
	f.hosts[&b[0]] = b
	return b, nil
}

// FreeHost waits for all work.
func (f *Fake) FreeHost(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "FreeHost", Args: []any{len(b)}}); err != nil {
		return err
	}
	at := unsafe.SliceData(b)
	whole, ok := f.hosts[at]
	if !ok {
		return f.wrong("FreeHost of memory that AllocHost did not return, or a second time")
	}
	f.waitAll()
	delete(f.hosts, at)
	f.gone[at] = whole
	return nil
}

// usedAfterFree says whether b lies in freed host memory.
func (f *Fake) usedAfterFree(b []byte) bool {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for start, whole := range f.gone {
		if from := uintptr(unsafe.Pointer(start)); at >= from && at < from+uintptr(len(whole)) {
			return true
		}
	}
	return false
}

// transfer is what ToDevice and ToHost have in common.
func (f *Fake) transfer(method string, p cuda.Ptr, host []byte, s cuda.Stream, writes bool) ([]byte, error) {
	if err := f.enter(Call{Method: method, Stream: s, Args: []any{p, len(host)}}); err != nil {
		return nil, err
	}
	if f.usedAfterFree(host) {
		return nil, f.wrong("%s with host memory after FreeHost", method)
	}
	a, at, err := f.find(p, int64(len(host)))
	if err != nil {
		return nil, err
	}
	if err := f.touch(a, f.work(s, method), writes); err != nil {
		return nil, err
	}
	pinned := false
	for start, whole := range f.hosts {
		from, b := uintptr(unsafe.Pointer(start)), uintptr(unsafe.Pointer(unsafe.SliceData(host)))
		pinned = pinned || b >= from && b < from+uintptr(len(whole))
	}
	if !pinned {
		f.host.merge(f.streams[s]) // it returns when the copy is done
	}
	return a.bytes[at : at+int64(len(host))], nil
}

// ToDevice copies at once.
func (f *Fake) ToDevice(dst cuda.Ptr, src []byte, s cuda.Stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.transfer("ToDevice", dst, src, s, true)
	copy(b, src)
	return err
}

// ToHost copies at once.
func (f *Fake) ToHost(dst []byte, src cuda.Ptr, s cuda.Stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.transfer("ToHost", src, dst, s, false)
	copy(dst, b)
	return err
}

// CopyDevice copies at once.
func (f *Fake) CopyDevice(dst, src cuda.Ptr, n int64, s cuda.Stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "CopyDevice", Stream: s, Args: []any{dst, src, n}}); err != nil {
		return err
	}
	to, i, err := f.find(dst, n)
	if err != nil {
		return err
	}
	from, j, err := f.find(src, n)
	if err != nil {
		return err
	}
	w := f.work(s, "CopyDevice")
	if err := errors.Join(f.touch(from, w, false), f.touch(to, w, true)); err != nil {
		return err
	}
	copy(to.bytes[i:i+n], from.bytes[j:j+n])
	return nil
}

// Fill sets words at once.
func (f *Fake) Fill(dst cuda.Ptr, v uint32, words int64, s cuda.Stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "Fill", Stream: s, Args: []any{dst, v, words}}); err != nil {
		return err
	}
	a, at, err := f.find(dst, 4*words)
	if err != nil {
		return err
	}
	if dst&3 != 0 {
		return f.wrong("Fill of %#x, which is not aligned to 4 bytes", uint64(dst))
	}
	if err := f.touch(a, f.work(s, "Fill"), true); err != nil {
		return err
	}
	copy(a.bytes[at:], bytes.Repeat(binary.LittleEndian.AppendUint32(nil, v), int(words)))
	return nil
}

// Load accepts all names that the PTX defines.
func (f *Fake) Load(ptx []byte, names []string) (map[string]cuda.Function, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "Load", Args: []any{len(ptx), slices.Clone(names)}}); err != nil {
		return nil, err
	}
	found := make(map[string]cuda.Function)
	for _, name := range names {
		if !bytes.Contains(ptx, []byte(".entry "+name+"(")) && !bytes.Contains(ptx, []byte(".entry "+name+"\n")) {
			return nil, f.wrong("the PTX has no kernel %s", name)
		}
		f.names = append(f.names, name)
		found[name] = cuda.Function(len(f.names))
	}
	return found, nil
}

// Launch checks the arguments' types and that pointers point to memory.
func (f *Fake) Launch(fn cuda.Function, grid, block [3]int, shared int, s cuda.Stream, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	call := Call{Method: "Launch", Stream: s, Args: slices.Clone(args)}
	if fn > 0 && int(fn) <= len(f.names) {
		call.Kernel = f.names[fn-1]
	}
	if err := f.enter(call); err != nil {
		return err
	}
	if call.Kernel == "" {
		return f.wrong("Launch of function %d, which was never loaded", fn)
	}
	threads := block[0] * block[1] * block[2]
	if grid[0] < 1 || grid[1] < 1 || grid[2] < 1 || grid[1] > 65535 || grid[2] > 65535 || block[0] < 1 || block[1] < 1 || block[2] < 1 ||
		threads > 1024 || shared < 0 || shared > f.options.Info.SharedPerCTA {
		return f.wrong("kernel %s: grid %v, block %v, %d bytes of shared memory", call.Kernel, grid, block, shared)
	}
	w := f.work(s, "kernel "+call.Kernel)
	for i, arg := range args {
		switch v := arg.(type) {
		case cuda.Ptr:
			if v == 0 {
				continue
			}
			a, _, err := f.find(v, 0)
			if err != nil {
				return err
			}
			if err := f.touch(a, w, false); err != nil {
				return err
			}
		case int32, uint32, float32, int64, uint64, cuda.TensorMap:
		default:
			return f.wrong("kernel %s: argument %d is %T", call.Kernel, i, arg)
		}
	}
	if f.options.OnLaunch != nil {
		f.options.OnLaunch(call.Kernel, args, func(p cuda.Ptr) []byte {
			a, at, err := f.find(p, 0)
			if err != nil {
				return nil
			}
			return a.bytes[at:]
		})
	}
	return nil
}

// TensorMap gives a map that holds its base address; below sm_90 it fails.
func (f *Fake) TensorMap(t cuda.TensorSpec) (cuda.TensorMap, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var m cuda.TensorMap
	if err := f.enter(Call{Method: "TensorMap", Args: []any{t}}); err != nil {
		return m, err
	}
	if f.options.Info.Major < 9 {
		return m, f.wrong("TensorMap on capability %d.%d", f.options.Info.Major, f.options.Info.Minor)
	}
	if _, _, err := f.find(t.Base, 0); err != nil {
		return m, err
	}
	binary.LittleEndian.PutUint64(m[:], uint64(t.Base))
	return m, nil
}

// NewStream returns a stream that is independent of all others.
func (f *Fake) NewStream() (cuda.Stream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "NewStream"}); err != nil {
		return 0, err
	}
	f.streams = append(f.streams, nil)
	return cuda.Stream(len(f.streams) - 1), nil
}

// NewEvent returns an event that has not been recorded.
func (f *Fake) NewEvent() (cuda.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "NewEvent"}); err != nil {
		return 0, err
	}
	f.events = append(f.events, nil)
	return cuda.Event(len(f.events)), nil
}

// Record marks what the stream has to do.
func (f *Fake) Record(e cuda.Event, s cuda.Stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "Record", Stream: s, Args: []any{e}}); err != nil {
		return err
	}
	if e == 0 || int(e) > len(f.events) {
		return f.wrong("Record of event %d, which was never made", e)
	}
	f.work(s, "Record")
	c := slices.Clone(f.streams[s])
	f.events[e-1] = &c
	return nil
}

func (f *Fake) recorded(e cuda.Event, method string) (clock, error) {
	if e == 0 || int(e) > len(f.events) {
		return nil, f.wrong("%s of event %d, which was never made", method, e)
	}
	if f.events[e-1] == nil {
		return nil, f.wrong("%s of event %d, which was not recorded", method, e)
	}
	return *f.events[e-1], nil
}

// WaitEvent orders the stream's next work after the event.
func (f *Fake) WaitEvent(s cuda.Stream, e cuda.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "WaitEvent", Stream: s, Args: []any{e}}); err != nil {
		return err
	}
	c, err := f.recorded(e, "WaitEvent")
	if err != nil {
		return err
	}
	f.streams[s].merge(c)
	return nil
}

// Elapsed is always 1 ms.
func (f *Fake) Elapsed(from, to cuda.Event) (float64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "Elapsed", Args: []any{from, to}}); err != nil {
		return 0, err
	}
	for _, e := range []cuda.Event{from, to} {
		c, err := f.recorded(e, "Elapsed")
		if err != nil {
			return 0, err
		}
		f.host.merge(c)
	}
	return 1, nil
}

// Sync waits for the stream.
func (f *Fake) Sync(s cuda.Stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter(Call{Method: "Sync", Stream: s}); err != nil {
		return err
	}
	f.host.merge(f.streams[s])
	return nil
}

// Close returns all violations; memory that is left is one, unless the device failed before.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, Call{Method: "Close"})
	if f.closed {
		return f.wrong("a second Close")
	}
	f.closed = true
	if f.failed == nil {
		if len(f.memory) > 0 {
			f.wrong("%d allocations of %d bytes are left", len(f.memory), f.used)
		}
		if len(f.hosts) > 0 {
			f.wrong("%d pieces of host memory are left", len(f.hosts))
		}
	}
	return errors.Join(f.violations...)
}
