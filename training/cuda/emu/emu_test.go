package emu_test

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
	"github.com/blockzero-net/bzd/training/exact"
)

// bench is an emulator with the test kernels.
type bench struct {
	*emu.Emulator
	t testing.TB
}

func start(t testing.TB, c emu.Config) bench {
	c.Extra = []string{"testdata/emulator.cu"}
	return bench{emu.Test(t, c), t}
}

func (b bench) alloc(bytes int) cuda.Ptr {
	b.t.Helper()
	p, err := b.Alloc(int64(bytes))
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// put uploads values of a fixed size.
func (b bench) put(values any) cuda.Ptr {
	b.t.Helper()
	raw, err := binary.Append(nil, binary.LittleEndian, values)
	if err != nil {
		b.t.Fatal(err)
	}
	p := b.alloc(len(raw))
	if err := b.ToDevice(p, raw, 0); err != nil {
		b.t.Fatal(err)
	}
	return p
}

// get downloads n values.
func get[T any](b bench, p cuda.Ptr, n int) []T {
	b.t.Helper()
	values := make([]T, n)
	raw := make([]byte, binary.Size(values))
	if err := b.ToHost(raw, p, 0); err != nil {
		b.t.Fatal(err)
	}
	if _, err := binary.Decode(raw, binary.LittleEndian, values); err != nil {
		b.t.Fatal(err)
	}
	return values
}

// try launches and waits.
func (b bench) try(name string, grid, block, shared int, args ...any) error {
	b.t.Helper()
	f, err := b.Load(nil, []string{name})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.Launch(f[name], [3]int{grid, 1, 1}, [3]int{block, 1, 1}, shared, 0, args...); err != nil {
		return err
	}
	return b.Sync(0)
}

func (b bench) run(name string, grid, block, shared int, args ...any) {
	b.t.Helper()
	if err := b.try(name, grid, block, shared, args...); err != nil {
		b.t.Fatal(err)
	}
}

func floats(n int, r *rand.Rand) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// orders runs f with both orders of threads.
func orders(t *testing.T, f func(t *testing.T, b bench)) {
	t.Run("ascending", func(t *testing.T) { f(t, start(t, emu.Config{})) })
	t.Run("descending", func(t *testing.T) { f(t, start(t, emu.Config{Reverse: true})) })
}

func TestPlain(t *testing.T) {
	orders(t, func(t *testing.T, b bench) {
		r := newRand(1)
		x, y := floats(1000, r), floats(1000, r)
		px, py := b.put(x), b.put(y)
		b.run("test_saxpy", 8, 128, 0, py, px, float32(1.5), int32(1000))
		for i, got := range get[float32](b, py, 1000) {
			if want := float32(math.FMA(1.5, float64(x[i]), float64(y[i]))); got != want {
				t.Fatalf("value %d is %v, want %v", i, got, want)
			}
		}

		out := b.alloc(4 * 5)
		b.run("test_arguments", 1, 7, 0, out, int32(-3), uint32(1<<31), float32(0.25), int64(-1<<40), uint64(1<<63))
		if got := get[float32](b, out, 5); !slices.Equal(got, []float32{-3, 1 << 31, 0.25, -1 << 40, 1 << 63}) {
			t.Errorf("arguments arrive as %v", got)
		}

		f, err := b.Load(nil, []string{"test_indices"})
		if err != nil {
			t.Fatal(err)
		}
		const blocks, threads = 3 * 2 * 4, 5 * 3 * 2
		all := b.alloc(4 * blocks * threads)
		if err := b.Launch(f["test_indices"], [3]int{3, 2, 4}, [3]int{5, 3, 2}, 0, 0, all); err != nil {
			t.Fatal(err)
		}
		for i, got := range get[uint32](b, all, blocks*threads) {
			if want := uint32(i/threads<<16 | i%threads); got != want {
				t.Fatalf("index %d is %x, want %x", i, got, want)
			}
		}
	})
}

func TestBarriersAndCollectives(t *testing.T) {
	orders(t, func(t *testing.T, b bench) {
		x := floats(1024, newRand(2))
		p := b.put(x)
		b.run("test_reverse", 4, 256, 0, p, int32(5))
		got := get[float32](b, p, 1024)
		for i := range x {
			if want := x[i&^255+255-i&255]; got[i] != want {
				t.Fatalf("value %d is %v, want %v", i, got[i], want)
			}
		}

		ints := make([]float32, 512)
		for i := range ints {
			ints[i] = float32(i)
		}
		out := b.alloc(8)
		b.run("test_sum", 2, 256, 0, out, b.put(ints))
		if got := get[float32](b, out, 2); got[0] != 255*128 || got[1] != 255*128+65536 {
			t.Errorf("sums are %v", got)
		}

		shuffled := b.alloc(10 * 32 * 4)
		b.run("test_shuffles", 1, 32, 0, shuffled)
		want := []func(l int) int{
			func(l int) int { return 5 },
			func(l int) int { return l&^7 | (l+3)&7 },
			func(l int) int { return l - 3*b2i(l >= 3) },
			func(l int) int { return l - 3*b2i(l&15 >= 3) },
			func(l int) int { return l + 2*b2i(l < 30) },
			func(l int) int { return l + 2*b2i(l&3 < 2) },
			func(l int) int { return l ^ 9 },
			func(l int) int { return 0x49249249 },
			func(l int) int {
				if l < 8 {
					return l ^ 7
				}
				return int(int32(-1431655936)) // 0xaaaaaa00
			},
			func(l int) int { return 11 },
		}
		for i, got := range get[int32](b, shuffled, 320) {
			if w := want[i/32](i % 32); got != int32(w) {
				t.Errorf("collective %d, lane %d: %d, want %d", i/32, i%32, got, w)
			}
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestAsyncCopies(t *testing.T) {
	orders(t, func(t *testing.T, b bench) {
		const n = 5
		x := floats(n*256, newRand(3))
		out := b.alloc((n + 1) * 256 * 4)
		b.run("test_async", 1, 64, 2*64*16, out, b.put(x), int32(n))
		got := get[float32](b, out, n*256+64)
		if !slices.Equal(got[:n*256], x) || slices.ContainsFunc(got[n*256:], func(v float32) bool { return v != 0 }) {
			t.Error("the copy differs")
		}
	})
}

func TestMatrixProduct(t *testing.T) {
	b := start(t, emu.Config{})
	r := newRand(4)
	const k = 48
	half := func(n int) ([]uint16, []float64) {
		bits, values := make([]uint16, n), make([]float64, n)
		for i := range bits {
			bits[i] = uint16(math.Float32bits(float32(r.NormFloat64())) >> 16)
			values[i] = float64(math.Float32frombits(uint32(bits[i]) << 16))
		}
		return bits, values
	}
	abits, a := half(16 * k)
	bbits, bv := half(8 * k)
	for trans := range 2 {
		c := b.alloc(16 * 8 * 4)
		b.run("test_mma", 1, 32, 0, c, b.put(abits), b.put(bbits), int32(k), int32(trans))
		for i, got := range get[float32](b, c, 128) {
			want, size := 0.0, 0.0
			for x := range k {
				v := bv[i%8*k+x]
				if trans == 1 {
					v = bv[x*8+i%8]
				}
				want += a[i/8*k+x] * v
				size += math.Abs(a[i/8*k+x] * v)
			}
			if math.Abs(float64(got)-want) > 1e-6*size {
				t.Errorf("trans %d: element %d is %v, want %v", trans, i, got, want)
			}
		}
	}
}

// TestExactFunctions compares common.cuh with the definition.
func TestExactFunctions(t *testing.T) {
	b := start(t, emu.Config{})
	special := []float32{0, float32(math.Copysign(0, -1)), 1, -1, 88.72, 88.73, 1000, -87.5, -100, -103.9, -104, -1e30,
		float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), 1e-45, 26.688921}
	r := newRand(5)
	x := append(special, floats(2000, r)...)
	for i := len(special); i < len(x); i++ {
		x[i] *= 30
	}
	y := b.alloc(4 * len(x))
	b.run("test_exp", len(x)/256+1, 256, 0, y, b.put(x), int32(len(x)))
	for i, got := range get[float32](b, y, len(x)) {
		if want := scalarExp(x[i]); got != want {
			t.Errorf("exp(%v) = %v, want %v", x[i], got, want)
		}
		if w := math.Exp(float64(x[i])); x[i] > -80 && x[i] < 88 && math.Abs(float64(got)-w) > 1.2e-7*w {
			t.Errorf("exp(%v) = %v, far from %v", x[i], got, w)
		}
	}

	doubles := []float64{0, math.Inf(1), math.NaN(), -1, 1, 2, 0.5, math.Sqrt2 / 2, 5e-324, 1e-310, math.MaxFloat64}
	for range 2000 {
		doubles = append(doubles, math.Exp(20*r.NormFloat64()))
	}
	z := b.alloc(8 * len(doubles))
	b.run("test_log", len(doubles)/256+1, 256, 0, z, b.put(doubles), int32(len(doubles)))
	for i, got := range get[float64](b, z, len(doubles)) {
		if want := exact.Log(doubles[i]); got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Errorf("log(%v) = %v, want %v", doubles[i], got, want)
		}
	}

	g, u, dy := floats(300, r), floats(300, r), floats(300, r)
	dg, du := b.alloc(1200), b.alloc(1200)
	b.run("test_silu", 2, 256, 0, dg, du, b.put(g), b.put(u), b.put(dy), int32(300))
	gotG, gotU := get[float32](b, dg, 300), get[float32](b, du, 300)
	for i := range g {
		s := 1 / (1 + scalarExp(-g[i]))
		z := g[i] * s
		one := 1 - s
		wantG := float32(dy[i]*u[i]) * scalarFMA(z, one, s)
		if wantU := dy[i] * z; gotG[i] != wantG || gotU[i] != wantU {
			t.Fatalf("gradient %d of silumul is %v, %v, want %v, %v", i, gotG[i], gotU[i], wantG, wantU)
		}
	}
}

// scalarFMA rounds twice only where the product's sum has more than 53 bits in just the wrong way: for these tests, never.
func scalarFMA(a, b, c float32) float32 { return float32(math.FMA(float64(a), float64(b), float64(c))) }

func scalarExp(x float32) float32 {
	if !(x > -104) {
		x = -104
	}
	if !(x < 88.72) {
		x = 88.72
	}
	const magic = 1.5 * (1 << 23)
	t := scalarFMA(x, math.Float32frombits(0x3fb8aa3b), magic)
	n := t - magic
	r := scalarFMA(-n, math.Float32frombits(0x3f317200), x)
	r = scalarFMA(-n, math.Float32frombits(0x35bfbe8e), r)
	c := []uint32{0x3f800000, 0x3f800000, 0x3f000000, 0x3e2aaaab, 0x3d2aaaab, 0x3c088889, 0x3ab60b61, 0x39500d01}
	p := math.Float32frombits(c[7])
	for i := 6; i >= 0; i-- {
		p = scalarFMA(p, r, math.Float32frombits(c[i]))
	}
	k := int32(math.Float32bits(t)) - int32(math.Float32bits(magic))
	h := k >> 1
	return float32(p*float32(math.Ldexp(1, int(h)))) * float32(math.Ldexp(1, int(k-h)))
}

func TestFolds(t *testing.T) {
	orders(t, func(t *testing.T, b bench) {
		const n = 64 * 8
		x := floats(n, newRand(6))
		nan := float32(math.NaN())
		x[3], x[16], x[47], x[64+9], x[64+1] = nan, nan, nan, float32(math.Inf(-1)), float32(math.Inf(1))
		for i := 128; i < 160; i++ {
			x[i] = float32(math.Copysign(0, float64(i%3)-1.5)) // zeros of both signs
		}
		out := b.alloc(n / 16 * 4 * 4)
		b.run("test_folds", n/64, 64, 0, out, b.put(x))
		got := get[uint32](b, out, n/16*4)
		for i := range n / 16 {
			var sum, most [16]float32
			copy(sum[:], x[i*16:])
			copy(most[:], x[i*16:])
			for w := 8; w > 0; w /= 2 {
				for l := range w {
					sum[l] += sum[l+w]
					if !(most[l] > most[l+w]) {
						most[l] = most[l+w]
					}
				}
			}
			for j, want := range []float32{sum[0], most[0], sum[0], most[0]} {
				bits := got[4*i+j]
				if bits != math.Float32bits(want) && !(want != want && bits&0x7fffffff > 0x7f800000) {
					t.Errorf("fold %d of row %d: %08x, want %08x", j, i, bits, math.Float32bits(want))
				}
			}
		}
	})
}

func TestHalfPrecision(t *testing.T) {
	b := start(t, emu.Config{})
	r := newRand(7)
	x := []float32{0, float32(math.Inf(1)), float32(math.Inf(-1)), math.MaxFloat32, math.Float32frombits(0x3f808000),
		math.Float32frombits(0x3f818000), math.Float32frombits(0x3f808001), math.Float32frombits(0x7f800001), math.Float32frombits(0xffffffff)}
	for range 1000 {
		x = append(x, math.Float32frombits(r.Uint32()))
	}
	y := b.alloc(2 * len(x))
	b.run("test_bf16", len(x)/256+1, 256, 0, y, b.put(x), int32(len(x)))
	for i, got := range get[uint16](b, y, len(x)) {
		back := math.Float32frombits(uint32(got) << 16)
		if x[i] != x[i] {
			if back == back {
				t.Errorf("NaN %08x becomes %04x", math.Float32bits(x[i]), got)
			}
			continue
		}
		bits := math.Float32bits(x[i])
		want := bits >> 16
		if rest := bits & 0xffff; rest > 0x8000 || rest == 0x8000 && want&1 == 1 {
			want++
		}
		if uint32(got) != want {
			t.Errorf("%08x becomes %04x, want %04x", bits, got, want)
		}
	}

	v := make([]float32, 16)
	for i := range v {
		v[i] = float32(i) - 7.5
	}
	f, h := b.alloc(64), b.alloc(32)
	b.run("test_vectors", 1, 1, 0, f, h, b.put(v))
	if got := get[float32](b, f, 16); !slices.Equal(got, v) {
		t.Errorf("vectors arrive as %v", got)
	}
}

// TestFaults launches kernels that are wrong, and wants the error to say how.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		want []string // parts of the error
		run  func(b bench) error
	}{
		{"deadlock", []string{"test_deadlock", "block (0,0,0)", "deadlock; 40 of 64 threads wait at __syncthreads", "24 of 64 threads have returned"},
			func(b bench) error { return b.try("test_deadlock", 2, 64, 0, int32(40)) }},
		{"barriers", []string{"divergent barriers"}, func(b bench) error { return b.try("test_divergent_barrier", 1, 64, 0) }},
		{"shuffles", []string{"divergent collectives", "a shuffle"}, func(b bench) error { return b.try("test_divergent_shuffle", 1, 32, 0, b.alloc(128)) }},
		{"early return", []string{"deadlock", "1 of 32 threads have returned", "lanes 7fffffff of warp 0 wait at a shuffle", "for lanes 80000000"},
			func(b bench) error { return b.try("test_early_return", 1, 32, 0, b.alloc(128)) }},
		{"dead lane", []string{"lane 0 reads lane 20, which is not in the mask 0000ffff"},
			func(b bench) error { return b.try("test_dead_lane", 1, 32, 0, b.alloc(128)) }},
		{"read behind", []string{"test_read", "byte 4096 of the nearest allocation, 4096 bytes"}, func(b bench) error {
			x := b.alloc(4096)
			return b.try("test_read", 1, 1, 0, b.alloc(4), x, int32(1024))
		}},
		{"read before", []string{"byte -8 of the nearest allocation"}, func(b bench) error { return b.try("test_read", 1, 1, 0, b.alloc(4), b.alloc(4096), int32(-2)) }},
		{"write before", []string{"wrote before the 256 bytes"}, func(b bench) error { return b.try("test_write", 1, 1, 0, b.alloc(256), int32(-1)) }},
		{"write behind", []string{"wrote at byte 20 of the 20 allocated"}, func(b bench) error { return b.try("test_write", 1, 1, 0, b.alloc(20), int32(5)) }},
		{"null", []string{"address 0"}, func(b bench) error { return b.try("test_write", 1, 1, 0, cuda.Ptr(0), int32(0)) }},
		{"static shared", []string{"emulator.cu", "index 8 is out of the array's bounds"},
			func(b bench) error { return b.try("test_shared_bounds", 1, 1, 0, b.alloc(4), int32(8)) }},
		{"dynamic shared", []string{"dynamic shared memory: byte 1024 of 1024"},
			func(b bench) error { return b.try("test_dynamic_bounds", 1, 1, 1024, b.alloc(4), int32(256)) }},
		{"misaligned vector", []string{"not aligned to 16 bytes"}, func(b bench) error { return b.try("test_misaligned", 1, 1, 0, b.alloc(64), int32(1)) }},
		{"misaligned cp.async target", []string{"cp.async", "not aligned"}, func(b bench) error { return b.try("test_misaligned_async", 1, 1, 0, b.alloc(64), int32(2), int32(4)) }},
		{"misaligned cp.async source", []string{"cp.async", "not aligned"}, func(b bench) error { return b.try("test_misaligned_async", 1, 1, 0, b.alloc(64), int32(4), int32(2)) }},
		{"misaligned ldmatrix", []string{"ldmatrix", "not aligned"}, func(b bench) error { return b.try("test_misaligned_matrix", 1, 32, 0, int32(1)) }},
		{"ldmatrix beyond", []string{"ldmatrix", "not in shared memory"}, func(b bench) error { return b.try("test_misaligned_matrix", 1, 32, 0, int32(1<<20)) }},
		{"division", []string{"division by zero"}, func(b bench) error { return b.try("test_divide", 1, 1, 0, b.alloc(4), int32(0)) }},
		{"endless", []string{"runs and runs"}, func(b bench) error { return b.try("test_forever", 1, 1, 0, b.put([]int32{0})) }},
		{"stack", []string{"out of stack"}, func(b bench) error { return b.try("test_stack", 1, 1, 0, b.alloc(4), int32(1000)) }},
		{"too few arguments", []string{"1 arguments for 2 parameters"}, func(b bench) error { return b.try("test_stack", 1, 1, 0, b.alloc(4)) }},
		{"wrong argument", []string{"argument 1 is uint32"}, func(b bench) error { return b.try("test_stack", 1, 1, 0, b.alloc(4), uint32(1)) }},
		{"wild pointer", []string{"points to no allocated memory"}, func(b bench) error { return b.try("test_write", 1, 1, 0, b.alloc(64)+65, int32(1)) }},
		{"freed pointer", []string{"points to no allocated memory"}, func(b bench) error {
			p := b.alloc(64)
			return errors.Join(b.Free(p), b.try("test_write", 1, 1, 0, p, int32(1)))
		}},
		{"threads", []string{"a block of 65 threads; its bounds allow 64"}, func(b bench) error { return b.try("test_deadlock", 1, 65, 0, int32(64)) }},
		{"grid", []string{"grid [0 1 1]"}, func(b bench) error { return b.try("test_deadlock", 0, 64, 0, int32(64)) }},
		{"shared", []string{"dynamic shared memory"}, func(b bench) error { return b.try("test_deadlock", 1, 64, 164<<10, int32(64)) }},
		{"double free", []string{"free already"}, func(b bench) error {
			p := b.alloc(64)
			return errors.Join(b.Free(p), b.Free(p))
		}},
		{"long copy", []string{"outside of any allocation"}, func(b bench) error { return b.ToDevice(b.alloc(64), make([]byte, 65), 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, emu.Config{Seconds: 1})
			err := c.run(b)
			if !errors.Is(err, cuda.ErrLaunch) {
				t.Fatalf("got %v, want a launch failure", err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error %q lacks %q", err, part)
				}
			}
			if _, err := b.Alloc(1); !errors.Is(err, cuda.ErrLaunch) {
				t.Errorf("after it, Alloc gives %v", err)
			}
		})
	}
}

// TestUndefined: what nobody wrote is a NaN, and a race shows in one of the orders.
func TestUndefined(t *testing.T) {
	b := start(t, emu.Config{})
	nan := func(values []float32) bool {
		return !slices.ContainsFunc(values, func(v float32) bool { return v == v })
	}
	out := b.alloc(256)
	if !nan(get[float32](b, out, 64)) {
		t.Error("fresh memory is not NaN")
	}
	for range 2 {
		b.run("test_uninitialised", 3, 32, 128, out)
		if !nan(get[float32](b, out, 64)) {
			t.Error("fresh shared memory is not NaN")
		}
	}
	b.run("test_no_wait", 1, 32, 0, out, b.put(make([]float32, 128)))
	if !nan(get[float32](b, out, 32)) {
		t.Error("cp.async shows before anybody waits")
	}
	r := start(t, emu.Config{Reverse: true})
	ascending, descending := b.alloc(256), r.alloc(256)
	b.run("test_no_barrier", 1, 64, 0, ascending)
	r.run("test_no_barrier", 1, 64, 0, descending)
	if x, y := get[uint32](b, ascending, 64), get[uint32](r, descending, 64); slices.Equal(x, y) {
		t.Error("a missing barrier does not show")
	}
}

func BenchmarkSwitch(b *testing.B) {
	e := start(b, emu.Config{})
	out := e.alloc(256 * 4)
	e.run("test_spin", 1, 256, 0, out, int32(b.N))
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/switch")
}

func BenchmarkLaunch(b *testing.B) {
	e := start(b, emu.Config{})
	x := e.put(make([]float32, 128))
	for b.Loop() {
		e.run("test_saxpy", 1, 128, 0, x, x, float32(1), int32(128))
	}
}

func BenchmarkBlocks(b *testing.B) {
	e := start(b, emu.Config{})
	x := e.put(make([]float32, 256*1000))
	for b.Loop() {
		e.run("test_reverse", 1000, 256, 0, x, int32(1))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/block")
}
