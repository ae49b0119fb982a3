package cpu

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/blockzero-net/bzd/training/backend"
)

// ErrMapped is wrapped by what Sync returns when a mapped matrix could not be read: its file was cut short, or the disk
// failed. What was computed since is void, and the matrix is of no more use.
var ErrMapped = errors.New("a file with weights can no longer be read")

var _ backend.Mapper = (*Backend)(nil)

// mappings are the matrices of a backend that lie in files.
type mappings struct {
	any   atomic.Bool
	limit int64 // bytes that may stay in memory, 0 for as many as the system likes

	mu    sync.Mutex
	used  []*weight // those with pages in memory, in the order in which they came
	bytes int64     // of them
	fault error
}

// mapped is what a weight knows of where it lies.
type mapped struct {
	raw []byte
	in  atomic.Bool // it is one of mappings.used
	all *mappings
}

// Map multiplies by values where they lie. Pages come when they are used and, if that was asked for, go when there are too
// many of them; their content stays in the system's cache as long as there is room.
func (b *Backend) Map(raw []byte, half bool, out, in int) (backend.Weight, error) {
	size := 4
	if half {
		size = 2
	}
	if len(raw) != size*out*in || len(raw) == 0 {
		panic(fmt.Sprintf("cpu: %d bytes are not a matrix [%d, %d]", len(raw), out, in))
	}
	if !littleEndian || uintptr(unsafe.Pointer(&raw[0]))%uintptr(size) != 0 {
		return nil, nil
	}
	w := &weight{frozen: true, out: out, in: in, mapped: &mapped{raw: raw, all: &b.maps}}
	if half {
		w.half = unsafe.Slice((*uint16)(unsafe.Pointer(&raw[0])), out*in)
	} else {
		w.data = unsafe.Slice((*float32)(unsafe.Pointer(&raw[0])), out*in)
	}
	b.maps.any.Store(true)
	at, value := -1, float32(0)
	func() {
		defer b.guard()()
		for i, x := range w.half {
			if x&0x7f80 == 0x7f80 {
				at, value = i, widened(x)
				return
			}
		}
		for i, x := range w.data {
			if math.Float32bits(x)&0x7f800000 == 0x7f800000 {
				at, value = i, x
				return
			}
		}
	}()
	drop(raw)
	if at >= 0 {
		return nil, fmt.Errorf("value %d is %v", at, value)
	}
	return w, b.Sync()
}

// Values reads a weight.
func (b *Backend) Values(dst []float32, m backend.Weight) {
	w := m.(*weight)
	defer b.guard()()
	if w.mapped != nil && b.maps.limit > 0 {
		defer drop(w.mapped.raw) // nobody said that it will be used
	}
	if w.half != nil {
		copyHalf(dst, w.half)
	} else {
		copy(dst, w.data)
	}
}

// littleEndian says whether this machine's values are those of the files.
var littleEndian = *(*uint16)(unsafe.Pointer(&[2]byte{1, 0})) == 1

// touch says that the weight is about to be used.
func (w *weight) touch() {
	if w.mapped == nil || w.mapped.all.limit == 0 || w.mapped.in.Load() {
		return
	}
	a := w.mapped.all
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.mapped.in.Swap(true) {
		return
	}
	a.used, a.bytes = append(a.used, w), a.bytes+int64(len(w.mapped.raw))
	for a.bytes > a.limit && len(a.used) > 1 {
		old := a.used[0]
		a.used, a.bytes = a.used[1:], a.bytes-int64(len(old.mapped.raw))
		old.mapped.in.Store(false)
		drop(old.mapped.raw) // who still reads it gets its pages again
	}
}

// guard turns a page that cannot be read, which would end the process, into a failure that Sync reports. What it returns is
// to be deferred by the goroutine that reads.
func (b *Backend) guard() func() {
	if !b.maps.any.Load() {
		return func() {}
	}
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		r := recover()
		if r == nil {
			return
		}
		e, fault := r.(interface {
			error
			Addr() uintptr
		})
		if !fault {
			panic(r)
		}
		b.maps.mu.Lock()
		defer b.maps.mu.Unlock()
		if b.maps.fault == nil {
			b.maps.fault = fmt.Errorf("%w: %w", ErrMapped, e)
		}
	}
}

func (a *mappings) failure() error {
	if !a.any.Load() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fault
}
