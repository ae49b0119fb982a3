package kernels_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
)

// device is an emulated card on which a test calls kernels of the fast mode directly, with inputs that no backend would give.
type device struct {
	*emu.Emulator
	t testing.TB
	r *rand.Rand
}

// devices runs f with both orders of threads: what lacks a barrier differs.
func devices(t *testing.T, f func(d *device)) {
	for name, reverse := range map[string]bool{"ascending": false, "descending": true} {
		t.Run(name, func(t *testing.T) {
			f(&device{emu.Test(t, emu.Config{Reverse: reverse}), t, rand.New(rand.NewPCG(7, 11))})
		})
	}
}

func (d *device) alloc(bytes int) cuda.Ptr {
	d.t.Helper()
	p, err := d.Alloc(int64(max(bytes, 4)))
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// put copies a slice of numbers to the device, offset bytes into an allocation.
func put[T any](d *device, values []T, offset int) cuda.Ptr {
	d.t.Helper()
	raw, err := binary.Append(nil, binary.LittleEndian, values)
	if err != nil {
		d.t.Fatal(err)
	}
	p := d.alloc(len(raw)+offset) + cuda.Ptr(offset)
	if err := d.ToDevice(p, raw, 0); err != nil {
		d.t.Fatal(err)
	}
	return p
}

// get copies n numbers back.
func get[T any](d *device, p cuda.Ptr, n int) []T {
	d.t.Helper()
	values := make([]T, n)
	raw := make([]byte, binary.Size(values))
	if err := d.ToHost(raw, p, 0); err != nil {
		d.t.Fatal(err)
	}
	if _, err := binary.Decode(raw, binary.LittleEndian, values); err != nil {
		d.t.Fatal(err)
	}
	return values
}

// launch runs a kernel to its end. An int among the arguments is an int32.
func (d *device) launch(name string, grid, block [3]int, shared int, args ...any) {
	d.t.Helper()
	f, err := d.Load(nil, []string{name})
	if err != nil {
		d.t.Fatal(err)
	}
	for i, a := range args {
		if n, ok := a.(int); ok {
			args[i] = int32(n)
		}
	}
	if err := d.Launch(f[name], grid, block, shared, 0, args...); err != nil {
		d.t.Fatal(err)
	}
	if err := d.Sync(0); err != nil {
		d.t.Fatal(err)
	}
}

// array is a run of values on the device in one of the element types, f or b, and what the device holds of them.
type array struct {
	d      *device
	p      cuda.Ptr
	letter byte
	v      []float64
}

// random makes n normal values, rounded to the type, at an address off its alignment by offset bytes.
func (d *device) random(letter byte, n, offset int) array {
	v := make([]float64, n)
	for i := range v {
		v[i] = d.r.NormFloat64()
	}
	return d.array(letter, v, offset)
}

func (d *device) array(letter byte, v []float64, offset int) array {
	d.t.Helper()
	if letter == 'b' {
		bits, exact := make([]uint16, len(v)), make([]float64, len(v))
		for i, x := range v {
			bits[i] = bf16(float32(x))
			exact[i] = float64(math.Float32frombits(uint32(bits[i]) << 16))
		}
		return array{d, put(d, bits, offset), letter, exact}
	}
	single, exact := make([]float32, len(v)), make([]float64, len(v))
	for i, x := range v {
		single[i] = float32(x)
		exact[i] = float64(single[i])
	}
	return array{d, put(d, single, offset), letter, exact}
}

// blank makes room for n values.
func (d *device) blank(letter byte, n, offset int) array {
	return array{d, d.alloc(n*4+offset) + cuda.Ptr(offset), letter, make([]float64, n)}
}

// values reads what the device holds now.
func (a array) values() []float64 {
	a.d.t.Helper()
	v := make([]float64, len(a.v))
	if a.letter == 'b' {
		for i, b := range get[uint16](a.d, a.p, len(v)) {
			v[i] = float64(math.Float32frombits(uint32(b) << 16))
		}
		return v
	}
	for i, x := range get[float32](a.d, a.p, len(v)) {
		v[i] = float64(x)
	}
	return v
}

// is checks every value against want: within the type's rounding of the largest.
func (a array) is(what string, want []float64) {
	a.d.t.Helper()
	tolerance := 2e-6
	if a.letter == 'b' {
		tolerance = 4.5e-3
	}
	a.within(what, want, tolerance)
}

// within checks every value: the difference may be tolerance times the value and an eighth of that times the largest.
func (a array) within(what string, want []float64, tolerance float64) {
	a.d.t.Helper()
	got, most := a.values(), 0.0
	for _, w := range want {
		most = max(most, math.Abs(w))
	}
	for i, w := range want {
		if !(math.Abs(got[i]-w) <= tolerance*(math.Abs(w)+most/8)) {
			a.d.t.Fatalf("%s: value %d of %d is %v, want %v", what, i, len(want), got[i], w)
		}
	}
}

// bf16 rounds to the nearest, ties to even.
func bf16(x float32) uint16 {
	b := math.Float32bits(x)
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

func ceil(a, b int) int { return (a + b - 1) / b }
