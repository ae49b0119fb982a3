package cuda

import (
	"fmt"
	"runtime"
	"slices"
	"weak"

	"github.com/blockzero-net/bzd/training/backend"
)

// weight is a matrix [out, in] on the device, or waiting in host memory.
type weight struct {
	b       *Backend
	out, in int
	data    *buffer // what it was prepared from, nil if frozen
	value   *buffer // what is multiplied by; nil while it is on the host
	stale   bool    // value is a bfloat16 copy of data, and older
	mirror  bool    // value is a bfloat16 copy of data as it is now; nothing but the optimiser has written to data since
	host    []byte  // page-locked, instead of value
	kind    kind    // of value and host
	layer   *layer  // see there
	tables  []*table
}

// Prepare wraps w. In fast mode a bfloat16 copy is made when it is first needed after a change.
func (b *Backend) Prepare(w backend.Buffer, out, in int) backend.Weight {
	d := on(w)
	if d.n != out*in || d.kind != f32 {
		panic(fmt.Sprintf("cuda: weight of %d values is not [%d, %d] in float32", d.n, out, in))
	}
	p := &weight{b: b, out: out, in: in, data: d, value: d}
	if b.mode == Fast {
		b.op.Lock()
		defer b.op.Unlock()
		p.value, p.kind, p.stale = b.alloc(bf16, d.n), bf16, true
		gone := func(w weak.Pointer[weight]) bool { return w.Value() == nil }
		d.mem.weights = append(slices.DeleteFunc(d.mem.weights, gone), weak.Make(p))
	}
	return p
}

// Freeze keeps values in bfloat16 if that is exact or the mode is fast, else in float32.
func (b *Backend) Freeze(values []float32, out, in int, spill bool) backend.Weight {
	if len(values) != out*in {
		panic(fmt.Sprintf("cuda: weight of %d values is not [%d, %d]", len(values), out, in))
	}
	w := &weight{b: b, out: out, in: in}
	raw := bytesOf(values)
	if b.mode == Fast || short(values) {
		w.kind, raw = bf16, bytesOf(shorten(values))
	}
	b.op.Lock()
	defer b.op.Unlock()
	if spill && int64(len(raw)) > b.resident {
		b.keep(w, raw)
		return w
	}
	if spill {
		b.resident -= int64(len(raw))
	}
	w.value = b.alloc(w.kind, out*in)
	b.write(w.value, raw)
	return w
}

// keep puts a frozen weight into host memory.
func (b *Backend) keep(w *weight, raw []byte) {
	if b.err != nil {
		return
	}
	host, err := b.drv.AllocHost(int64(len(raw)))
	if err != nil {
		b.fail(err)
		return
	}
	copy(host, raw)
	w.host = host
	drv := b.drv
	runtime.AddCleanup(w, func(h []byte) { _ = drv.FreeHost(h) }, host)
}

func (w *weight) Data() backend.Buffer {
	if w.data == nil {
		return nil
	}
	return w.data
}

func (w *weight) Shape() (out, in int) { return w.out, w.in }

// Refresh makes the next use take the values anew, unless they were copied as they changed.
func (w *weight) Refresh() { w.stale = w.data != nil && w.kind == bf16 && !w.mirror }

// operand is the matrix [out, in] to multiply by, of a weight that is on the device.
func (b *Backend) operand(w *weight) *buffer {
	if w.stale {
		b.cast(w.value, w.data)
		if b.err == nil {
			w.stale, w.mirror = false, true
		}
	}
	return w.value
}

// mirrorOf is the copy of p's values that a weight multiplies by and that is up to date, if there is one.
func (b *Backend) mirrorOf(p *buffer) (*weight, *buffer) {
	for _, each := range p.mem.weights {
		w := each.Value()
		if w == nil || !w.mirror || p.ptr < w.data.ptr {
			continue
		}
		if off := int(p.ptr-w.data.ptr) / 4; off+p.n <= w.data.n {
			return w, w.value.slice(off, p.n)
		}
	}
	return nil, nil
}
