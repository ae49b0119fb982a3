package cuda

import (
	"fmt"
	"math"
	"sync"

	"github.com/blockzero-net/bzd/training/backend"
)

// Mode is how a Backend computes.
type Mode int

const (
	// Exact computes in float32, to the bit what docs/spec/exact.md says.
	Exact Mode = iota
	// Fast multiplies in bfloat16 and keeps activations so; sums are float32.
	Fast
)

func (m Mode) String() string {
	if m == Fast {
		return "fast"
	}
	return "exact"
}

// Options choose how a backend computes.
type Options struct {
	Mode Mode
	// Memory is the most bytes of device memory that may be used; 0 means what is free, less a sixteenth.
	Memory int64
	// Untried uses kernels for compute capability 9.0 that the emulator has passed and no card has run yet: attention by
	// wgmma, products of experts fused with what follows them, reductions shared by several blocks.
	Untried bool
	// Resident is how many bytes of frozen weights that may leave the device stay on it; the others wait in page-locked
	// host memory and are copied when they are needed. 0 means all stay.
	Resident int64
}

// Backend implements backend.Backend. Operations are queued; Sync waits for them. Operations of several goroutines run
// one after another.
type Backend struct {
	*device
	mode     Mode
	untried  bool
	resident int64 // bytes of frozen weights that may still stay on the device

	op      sync.Mutex // held while an operation is queued
	pending []pending
	turns   *buffer // see counters
	spill   *spill
	squares *squares
}

// pending are losses on the device that a Sync will fetch.
type pending struct {
	dst []float64
	src *buffer
}

var _ backend.Backend = (*Backend)(nil)

// New makes a backend of a device, which it does not close.
func New(d Driver, o Options) (*Backend, error) {
	dev, err := newDevice(d, o.Memory)
	if err != nil {
		return nil, err
	}
	b := &Backend{device: dev, mode: o.Mode, untried: o.Untried, resident: o.Resident}
	if b.resident <= 0 {
		b.resident = math.MaxInt64
	}
	b.spill = newSpill(dev)
	return b, nil
}

// Name says what computes.
func (b *Backend) Name() string { return fmt.Sprintf("cuda %s, %s", b.info.Name, b.mode) }

// Used is how many bytes of device memory are allocated.
func (b *Backend) Used() int64 {
	b.op.Lock()
	defer b.op.Unlock()
	return b.used
}

// Sync waits and returns the first failure. Losses asked for are there if it returns nil.
func (b *Backend) Sync() error {
	b.op.Lock()
	defer b.op.Unlock()
	for _, p := range b.pending {
		b.read(bytesOf(p.dst), p.src)
	}
	b.pending = nil
	return b.sync()
}

// Close waits, and gives the device's memory back except that of buffers that are still referred to. The backend must not
// be used afterwards.
func (b *Backend) Close() error {
	b.op.Lock()
	defer b.op.Unlock()
	b.pending = nil
	b.spill, b.squares = newSpill(b.device), nil
	return b.close()
}

// Alloc returns n zeros in float32.
func (b *Backend) Alloc(n int) backend.Buffer { return b.zeros(f32, n) }

// AllocActivation returns n zeros, in fast mode in bfloat16.
func (b *Backend) AllocActivation(n int) backend.Buffer {
	if b.mode == Fast {
		return b.zeros(bf16, n)
	}
	return b.zeros(f32, n)
}

func (b *Backend) zeros(k kind, n int) *buffer {
	b.op.Lock()
	defer b.op.Unlock()
	z := b.alloc(k, n)
	b.clear(z)
	return z
}

// Write copies src to dst, rounding if dst is shorter.
func (b *Backend) Write(dst backend.Buffer, src []float32) {
	b.op.Lock()
	defer b.op.Unlock()
	d := on(dst)
	mustMatch("copy", d.n, len(src))
	if d.kind == bf16 {
		b.write(d, bytesOf(shorten(src)))
		return
	}
	b.write(d, bytesOf(src))
}

// Read copies src to dst. After a failure dst is what it was.
func (b *Backend) Read(dst []float32, src backend.Buffer) {
	b.op.Lock()
	defer b.op.Unlock()
	s := on(src)
	mustMatch("copy", len(dst), s.n)
	if s.kind == bf16 {
		short := make([]uint16, s.n)
		b.read(bytesOf(short), s)
		for i, x := range short {
			dst[i] = math.Float32frombits(uint32(x) << 16)
		}
		return
	}
	b.read(bytesOf(dst), s)
}

// shorten rounds to bfloat16, half to even; a NaN stays one.
func shorten(v []float32) []uint16 {
	s := make([]uint16, len(v))
	for i, x := range v {
		u := math.Float32bits(x)
		if x != x {
			s[i] = uint16(u>>16) | 0x40
			continue
		}
		s[i] = uint16((u + 0x7fff + u>>16&1) >> 16)
	}
	return s
}

// short says whether every value is a bfloat16 one.
func short(v []float32) bool {
	for _, x := range v {
		if math.Float32bits(x)&0xffff != 0 {
			return false
		}
	}
	return true
}

// Copy sets dst = x.
func (b *Backend) Copy(dst, x backend.Buffer) {
	b.op.Lock()
	defer b.op.Unlock()
	d, s := on(dst), on(x)
	mustMatch("copy", d.n, s.n)
	b.copy(d, s)
}

func (b *Backend) copy(d, s *buffer) {
	if d.kind != s.kind {
		b.cast(d, s)
		return
	}
	if b.err != nil || d.n == 0 {
		return
	}
	if d.ptr == 0 || s.ptr == 0 {
		b.fail(fmt.Errorf("%w: a copy of a buffer there was no memory for", ErrOutOfMemory))
		return
	}
	d.touched()
	if err := b.drv.CopyDevice(d.ptr, s.ptr, d.kind.bytes(d.n), 0); err != nil {
		b.fail(err)
	}
}

// Zero clears a buffer.
func (b *Backend) Zero(x backend.Buffer) {
	b.op.Lock()
	defer b.op.Unlock()
	b.clear(on(x))
}
