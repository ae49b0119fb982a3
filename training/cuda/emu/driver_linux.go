package emu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/blockzero-net/bzd/training/cuda"
)

// Emulator is a [cuda.Driver] over a process that runs the kernels. Its methods may be called concurrently.
type Emulator struct {
	config Config

	mu     sync.Mutex
	failed error // the first ErrLaunch or ErrDeviceLost: what every later call says
	closed bool

	process *exec.Cmd
	in      *bufio.Writer
	inPipe  io.Closer
	out     *bufio.Reader
	stderr  *tail

	memory  memory
	streams []*stream
	events  []*event
	hosts   [][]byte
	kernels []kernel
	named   map[string]cuda.Function // 1 + index of kernels
}

type kernel struct {
	name, parameters string
	threads          int
}

// Start builds the kernels, if they changed since they were last built, and starts a device. An error that wraps
// [ErrUnavailable] means that the machine lacks what is needed; any other that the kernels do not compile. ctx ends the
// building, not the device.
func Start(ctx context.Context, c Config) (*Emulator, error) {
	c = c.withDefaults()
	program, err := build(ctx, c)
	if err != nil {
		return nil, err
	}
	e := &Emulator{config: c, stderr: &tail{}, streams: []*stream{{}}, named: make(map[string]cuda.Function)}
	file, err := e.memory.open(c.Memory)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	e.process = exec.Command(program)
	e.process.ExtraFiles = []*os.File{file} // descriptor 3
	e.process.Stderr = e.stderr
	in, err := e.process.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := e.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e.in, e.inPipe, e.out = bufio.NewWriter(in), in, bufio.NewReader(out)
	if err := e.process.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := e.greet(); err != nil {
		e.lost(err)
		err = e.failed
		e.Close()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return e, nil
}

// greet tells the process how much memory there is and reads what it has.
func (e *Emulator) greet() error {
	if err := binary.Write(e.in, binary.LittleEndian, uint64(len(e.memory.bytes))); err != nil {
		return err
	}
	if err := e.in.Flush(); err != nil {
		return err
	}
	if err := binary.Read(e.out, binary.LittleEndian, &e.memory.base); err != nil {
		return err
	}
	var count uint32
	if err := binary.Read(e.out, binary.LittleEndian, &count); err != nil {
		return err
	}
	for range count {
		name, err := e.readText()
		if err != nil {
			return err
		}
		parameters, err := e.readText()
		if err != nil {
			return err
		}
		var threads uint32
		if err := binary.Read(e.out, binary.LittleEndian, &threads); err != nil {
			return err
		}
		e.kernels = append(e.kernels, kernel{name, parameters, int(threads)})
		e.named[name] = cuda.Function(len(e.kernels))
	}
	return nil
}

func (e *Emulator) readText() (string, error) {
	var n uint32
	if err := binary.Read(e.out, binary.LittleEndian, &n); err != nil {
		return "", err
	}
	b := make([]byte, n)
	_, err := io.ReadFull(e.out, b)
	return string(b), err
}

// tail keeps the last of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-4096):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// fault makes an error of ours stick.
func (e *Emulator) fault(format string, a ...any) error {
	if e.failed == nil {
		e.failed = fmt.Errorf("%w: "+format, append([]any{cuda.ErrLaunch}, a...)...)
	}
	return e.failed
}

// lost notes that the process has ended.
func (e *Emulator) lost(cause error) error {
	if e.failed == nil {
		e.process.Process.Kill()
		state := e.process.Wait() // after it, stderr is complete
		e.failed = fmt.Errorf("%w: the emulator ended (%w, %v): %s", cuda.ErrDeviceLost, cause, state, e.stderr)
	}
	return e.failed
}

var errClosed = errors.New("the emulator is closed")

// usable is called first by every method, with the lock held.
func (e *Emulator) usable() error {
	if e.closed {
		return fmt.Errorf("%w: %w", cuda.ErrDeviceLost, errClosed)
	}
	return e.failed
}

// Kill ends the process, as if the device fell off the bus.
func (e *Emulator) Kill() { e.process.Process.Kill() }

// Close ends the process. Memory that was not freed is no error; see [Emulator.Live].
func (e *Emulator) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	e.inPipe.Close()
	if !errors.Is(e.failed, cuda.ErrDeviceLost) {
		e.process.Wait()
	}
	return e.memory.close()
}

// Info describes the device.
func (e *Emulator) Info() cuda.Info {
	i := cuda.Info{Name: "emulator", Major: e.config.Major, Minor: e.config.Minor, SMs: e.config.SMs, SharedPerSM: 164 << 10,
		SharedPerCTA: 163 << 10, Memory: e.config.Memory, DriverVersion: 12080}
	if e.config.hopper() {
		i.SharedPerSM, i.SharedPerCTA = 228<<10, 227<<10
	}
	return i
}

// Kernels returns the names of all kernels, sorted.
func (e *Emulator) Kernels() []string {
	var names []string
	for _, k := range e.kernels {
		names = append(names, k.name)
	}
	slices.Sort(names)
	return names
}

// Load finds kernels by name; the PTX is not looked at.
func (e *Emulator) Load(ptx []byte, names []string) (map[string]cuda.Function, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return nil, err
	}
	found := make(map[string]cuda.Function, len(names))
	for _, name := range names {
		f, ok := e.named[name]
		if !ok {
			return nil, fmt.Errorf("%w: no kernel %s in any .cu file", cuda.ErrLaunch, name)
		}
		found[name] = f
	}
	return found, nil
}

// mapMark begins a tensor map: runner/sm90.h looks for it.
const mapMark = 0x70616d726f736e74

// TensorMap writes the spec down, after the checks that a driver makes; what it maps must lie in one allocation. Below 9.0 it
// fails.
func (e *Emulator) TensorMap(s cuda.TensorSpec) (m cuda.TensorMap, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return m, err
	}
	if !e.config.hopper() {
		return m, fmt.Errorf("%w: tensor maps need compute capability 9.0", cuda.ErrLaunch)
	}
	bytes := 2
	if s.Wide {
		bytes = 4
	}
	switch {
	case s.Base%16 != 0 || s.Stride*bytes%16 != 0:
		return m, e.fault("tensor map of %+v: rows do not start at multiples of 16 bytes", s)
	case s.Rows < 1 || s.Cols < 1 || s.Cols > s.Stride || s.Rows > math.MaxUint32:
		return m, e.fault("tensor map of %+v: the shape", s)
	case s.BoxCols*bytes != 128 || s.BoxRows < 1 || s.BoxRows > 256:
		return m, e.fault("tensor map of %+v: rows of a box are 128 bytes, at most 256 of them", s)
	}
	if _, err := e.memory.slice(s.Base, int64((s.Rows-1)*s.Stride+s.Cols)*int64(bytes)); err != nil {
		return m, e.fault("tensor map of %+v: %w", s, err)
	}
	for i, v := range []uint64{mapMark, uint64(s.Base), uint64(bytes), uint64(s.Rows), uint64(s.Cols), uint64(s.Stride), uint64(s.BoxRows), uint64(s.BoxCols)} {
		binary.LittleEndian.PutUint64(m[8*i:], v)
	}
	return m, nil
}

// Launch checks the arguments against the kernel's parameters and its shape against the limits, and queues it.
func (e *Emulator) Launch(f cuda.Function, grid, block [3]int, shared int, s cuda.Stream, args ...any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	if f == 0 || int(f) > len(e.kernels) {
		return e.fault("function %d was never loaded", f)
	}
	k := e.kernels[f-1]
	if err := checkShape(k, grid, block, shared, e.Info()); err != nil {
		return e.fault("kernel %s: %w", k.name, err)
	}
	slots, touched, err := e.arguments(k, args)
	if err != nil {
		return e.fault("kernel %s: %w", k.name, err)
	}
	header := []uint32{uint32(f - 1), uint32(grid[0]), uint32(grid[1]), uint32(grid[2]), uint32(block[0]), uint32(block[1]), uint32(block[2]),
		uint32(shared), flag(e.config.Reverse), uint32(len(slots)), uint32(e.config.Seconds), flag(e.config.Prompt)}
	command := []byte{'l'}
	for _, h := range header {
		command = binary.LittleEndian.AppendUint32(command, h)
	}
	for _, s := range slots {
		command = binary.LittleEndian.AppendUint64(command, s)
	}
	return e.enqueue(s, func() error {
		fault, err := e.exchange(command)
		if err != nil {
			return e.lost(err)
		}
		if fault != "" {
			return e.fault("%s", e.memory.explain(fault))
		}
		for _, p := range touched {
			if err := e.memory.checkPadding(p); err != nil {
				return e.fault("kernel %s: %w", k.name, err)
			}
		}
		return nil
	})
}

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// exchange sends a command and reads the text that answers it.
func (e *Emulator) exchange(command []byte) (string, error) {
	if _, err := e.in.Write(command); err != nil {
		return "", err
	}
	if err := e.in.Flush(); err != nil {
		return "", err
	}
	return e.readText()
}

func checkShape(k kernel, grid, block [3]int, shared int, info cuda.Info) error {
	threads := 1
	for i, most := range [3]int{1024, 1024, 64} {
		if block[i] < 1 || block[i] > most {
			return fmt.Errorf("block %v", block)
		}
		threads *= block[i]
	}
	for i, most := range [3]int{math.MaxInt32, 65535, 65535} {
		if grid[i] < 1 || grid[i] > most {
			return fmt.Errorf("grid %v", grid)
		}
	}
	if threads > k.threads {
		return fmt.Errorf("a block of %d threads; its bounds allow %d", threads, k.threads)
	}
	if shared < 0 || shared > info.SharedPerCTA {
		return fmt.Errorf("%d bytes of dynamic shared memory; a block may have %d", shared, info.SharedPerCTA)
	}
	return nil
}

// letter is the name of an argument's type in a kernel's list of parameters.
func letter(arg any) (byte, uint64) {
	switch v := arg.(type) {
	case cuda.Ptr:
		return 'p', uint64(v)
	case int32:
		return 'i', uint64(uint32(v))
	case uint32:
		return 'u', uint64(v)
	case float32:
		return 'f', uint64(math.Float32bits(v))
	case int64:
		return 'l', uint64(v)
	case uint64:
		return 'L', v
	case cuda.TensorMap:
		return 'T', 0
	}
	return '?', 0
}

// arguments returns the kernel's slots and the allocations that it was given. A tensor map lies behind the slots of all
// arguments; its own says where.
func (e *Emulator) arguments(k kernel, args []any) ([]uint64, []cuda.Ptr, error) {
	if len(args) != len(k.parameters) {
		return nil, nil, fmt.Errorf("%d arguments for %d parameters", len(args), len(k.parameters))
	}
	var touched []cuda.Ptr
	slots := make([]uint64, len(args))
	for i, a := range args {
		l, bits := letter(a)
		if l == '?' || l != k.parameters[i] {
			return nil, nil, fmt.Errorf("argument %d is %T; the parameters are %q", i, a, k.parameters)
		}
		slots[i] = bits
		if m, ok := a.(cuda.TensorMap); ok {
			slots[i] = uint64(len(slots))
			for at := 0; at < len(m); at += 8 {
				slots = append(slots, binary.LittleEndian.Uint64(m[at:]))
			}
			bits = binary.LittleEndian.Uint64(m[8:])
		}
		if (l == 'p' || l == 'T') && bits != 0 {
			r, ok := e.memory.find(cuda.Ptr(bits))
			if !ok {
				return nil, nil, fmt.Errorf("argument %d, %#x, points to no allocated memory", i, bits)
			}
			touched = append(touched, r.ptr)
		}
	}
	return slots, touched, nil
}

// AllocHost returns memory whose copies are deferred until somebody waits.
func (e *Emulator) AllocHost(n int64) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return nil, err
	}
	if n <= 0 {
		return nil, e.fault("%d bytes of host memory", n)
	}
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("%w: %d bytes of host memory: %w", cuda.ErrOutOfMemory, n, err)
	}
	poison(b)
	e.hosts = append(e.hosts, b)
	return b, nil
}

// FreeHost waits for all work and unmaps the memory: a later access ends the program.
func (e *Emulator) FreeHost(b []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return e.usable()
	}
	i := slices.IndexFunc(e.hosts, func(h []byte) bool { return len(b) > 0 && &h[0] == &b[0] })
	if i < 0 {
		return e.fault("FreeHost of memory that AllocHost did not return, or a second time")
	}
	failed := e.drainAll()
	h := e.hosts[i]
	e.hosts = slices.Delete(e.hosts, i, i+1)
	return errors.Join(failed, unix.Munmap(h))
}

// pinned says whether b lies in memory of AllocHost.
func (e *Emulator) pinned(b []byte) bool {
	at := addressOf(b)
	return slices.ContainsFunc(e.hosts, func(h []byte) bool { return at >= addressOf(h) && at < addressOf(h)+uint64(len(h)) })
}

// poison is the pattern of what nobody has written: a NaN in binary32 and bfloat16, and far out of range as an integer.
var poisonWord = []byte{0xc1, 0x7f, 0xc1, 0x7f}

func poison(b []byte) { fill(b, poisonWord) }

// fill repeats a pattern.
func fill(b, pattern []byte) {
	for n := copy(b, pattern); n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

func poisoned(b []byte) bool {
	var pattern [pageSize]byte
	poison(pattern[:])
	for len(b) > 0 {
		n := min(len(b), pageSize)
		if !bytes.Equal(b[:n], pattern[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
