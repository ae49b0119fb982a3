package cuda

import (
	"fmt"
	"weak"

	"github.com/blockzero-net/bzd/training/backend"
)

// kind is the type of a buffer's values.
type kind uint8

const (
	f32  kind = iota // binary32
	bf16             // the upper half of a binary32
)

// bytes is the size of n values.
func (k kind) bytes(n int) int64 {
	if k == bf16 {
		return 2 * int64(n)
	}
	return 4 * int64(n)
}

// String is the suffix of kernels' names.
func (k kind) String() string {
	if k == bf16 {
		return "bf16"
	}
	return "f32"
}

// memory is one allocation. When nothing refers to it any more the collector gives it back to the device's pool.
type memory struct {
	ptr     Ptr
	bytes   int64
	weights []weak.Pointer[weight] // prepared from it, with copies of their own: they hear of writes
}

// written tells weights that their data may have changed.
func (m *memory) written() {
	for _, p := range m.weights {
		if w := p.Value(); w != nil {
			w.mirror = false
		}
	}
}

// buffer is a run of values in an allocation; in one without an address when there was no memory for it.
type buffer struct {
	mem *memory
	ptr Ptr
	n   int
	kind
}

func (b *buffer) Len() int { return b.n }

func (b *buffer) Slice(off, n int) backend.Buffer {
	if off < 0 || n < 0 || off+n > b.n {
		panic(fmt.Sprintf("cuda: slice of %d values from %d of a buffer of %d", n, off, b.n))
	}
	return b.slice(off, n)
}

func (b *buffer) slice(off, n int) *buffer {
	c := &buffer{mem: b.mem, ptr: b.ptr, n: n, kind: b.kind}
	if c.ptr != 0 {
		c.ptr += Ptr(b.kind.bytes(off))
	}
	return c
}

// aligned says whether the address is a multiple of 16, as vector loads and copies need.
func (b *buffer) aligned() bool { return b.ptr%16 == 0 }

// on returns a buffer of this backend; nil stays nil.
func on(b backend.Buffer) *buffer {
	if b == nil {
		return nil
	}
	return b.(*buffer)
}

func mustMatch(op string, a, b int) {
	if a != b {
		panic(fmt.Sprintf("cuda: %s of %d values and %d", op, a, b))
	}
}

// touched must precede what may write to the buffer.
func (b *buffer) touched() {
	if b.mem != nil && b.mem.weights != nil {
		b.mem.written()
	}
}
