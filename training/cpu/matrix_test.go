package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// specProduct is a matrix product by the words of docs/spec/exact.md: C[i,j] from A(i,k) and B(k,j).
func specProduct(c []float32, ldc, m, n, k int, a, b func(i, k int) float32, add bool) {
	for i := range m {
		for j := range n {
			for k0 := 0; k0 == 0 || k0 < k; k0 += 256 {
				var s float32
				for x := k0; x < min(k0+256, k); x++ {
					s = fma(a(i, x), b(x, j), s)
				}
				if k0 > 0 || add {
					s = c[i*ldc+j] + s
				}
				c[i*ldc+j] = s
			}
		}
	}
}

func at(v []float32, row, col int) func(i, k int) float32 {
	return func(i, k int) float32 { return v[i*row+k*col] }
}

func fill(n int, value func() float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = value()
	}
	return v
}

func backends(t testing.TB, threads ...int) []*Backend {
	var all []*Backend
	for _, isa := range Available() {
		for _, n := range threads {
			b, err := New(Options{ISA: isa, Threads: n})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b)
		}
	}
	return all
}

func compare(t *testing.T, name string, got, want []float32) {
	t.Helper()
	for i := range want {
		if !same(got[i], want[i]) {
			t.Fatalf("%s: value %d is %v, the definition gives %v", name, i, got[i], want[i])
		}
	}
}

// TestProduct compares the three products with the definition, for every instruction set and several thread counts.
func TestProduct(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	type shape struct{ m, n, k int }
	shapes := []shape{{1, 1, 1}, {14, 32, 256}, {15, 33, 257}, {29, 31, 513}, {100, 40, 20}, {13, 16, 768}}
	count := 15
	if testing.Short() {
		count = 5
	}
	for range count {
		shapes = append(shapes, shape{1 + r.IntN(70), 1 + r.IntN(70), 1 + r.IntN(600)})
	}
	shapes = append(shapes, shape{30, 540, 20}, shape{20, 24, 530}, shape{60, 530, 260})
	all := backends(t, 1, 2, 3)
	for i, s := range shapes {
		value := func() float32 { return float32(r.NormFloat64()) }
		switch i % 5 {
		case 3:
			value = func() float32 { return draws["mixed"](r) }
		case 4:
			value = func() float32 { return float32(r.NormFloat64()) * 0x1p-72 }
		}
		a, b, before := fill(s.m*s.k, value), fill(s.n*s.k, value), fill(s.m*s.n, value)
		want := func(x, y func(i, k int) float32, add bool) []float32 {
			c := append([]float32(nil), before...)
			specProduct(c, s.n, s.m, s.n, s.k, x, y, add)
			return c
		}
		nt := want(at(a, s.k, 1), at(b, 1, s.k), false)                                                  // a [m, k], b [n, k]
		nn, nnAdd := want(at(a, s.k, 1), at(b, s.n, 1), false), want(at(a, s.k, 1), at(b, s.n, 1), true) // b [k, n]
		tn := want(at(a, 1, s.m), at(b, s.n, 1), true)                                                   // a [k, m], b [k, n]
		half := make([]float32, len(b))
		for i, v := range b {
			half[i] = math.Float32frombits(math.Float32bits(v) &^ 0xffff)
		}
		ntHalf, nnHalf := want(at(a, s.k, 1), at(half, 1, s.k), false), want(at(a, s.k, 1), at(half, s.n, 1), false)
		for _, k := range all {
			name := fmt.Sprintf("%s %+v ", k.Name(), s)
			c := make(floats, s.m*s.n)
			k.Linear(c, floats(a), k.Prepare(floats(b), s.n, s.k))
			compare(t, name+"NT", c, nt)
			w := k.Prepare(floats(b), s.k, s.n)
			k.LinearGradInput(c, floats(a), w, false)
			compare(t, name+"NN", c, nn)
			copy(c, before)
			k.LinearGradInput(c, floats(a), w, true)
			compare(t, name+"NN added", c, nnAdd)
			for _, f := range []struct {
				name   string
				values []float32
				nt, nn []float32
			}{{"frozen ", b, nt, nn}, {"frozen bfloat16 ", half, ntHalf, nnHalf}} {
				k.Linear(c, floats(a), k.Freeze(f.values, s.n, s.k, false))
				compare(t, name+f.name+"NT", c, f.nt)
				k.LinearGradInput(c, floats(a), k.Freeze(f.values, s.k, s.n, false), false)
				compare(t, name+f.name+"NN", c, f.nn)
			}
			copy(c, before)
			k.LinearGradWeight(c, floats(a), floats(b), s.k)
			compare(t, name+"TN added", c, tn)
		}
	}
}

// TestTiles runs every tile of every instruction set within guards.
func TestTiles(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	value := func() float32 { return float32(r.NormFloat64()) }
	for _, isa := range Available() {
		kern, err := kernelsFor(isa)
		if err != nil {
			t.Fatal(err)
		}
		for m := 1; m <= kern.rows; m++ {
			for v := 1; v <= kern.vectors; v++ {
				for _, k := range []int{0, 1, 2, 37} {
					for _, add := range []int{0, 1} {
						lda, ldc, panel := k+3, 16*v+5, 16*(k+2)
						a, b, c := fill(m*lda+1, value), fill(v*panel+16, value), fill(m*ldc+2, value)
						want := append([]float32(nil), c...)
						specProduct(want[1:], ldc, m, 16*v, k, at(a, lda, 1), func(x, j int) float32 { return b[j/16*panel+x*16+j%16] }, add == 1)
						e := &tile{a: &a[0], aRow: 4 * lda, aCol: 4, b: &b[0], bPanel: 4 * panel, k: k, c: &c[1], cRow: 4 * ldc}
						if add == 1 {
							e.base = e.c
						}
						kern.gemm(m, v, e)
						compare(t, fmt.Sprintf("%s tile %d×%d, k %d, add %d", isa, m, 16*v, k, add), c, want)
					}
				}
			}
		}
	}
}

// TestStrips runs strips of every height within guards: whole tiles, and last ones that are cut.
func TestStrips(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	value := func() float32 { return float32(r.NormFloat64()) }
	for _, isa := range Available() {
		kern, err := kernelsFor(isa)
		if err != nil {
			t.Fatal(err)
		}
		for m := 1; m <= kern.rows; m++ {
			for n := 1; n <= 67; n += 1 + n/20 {
				k, add := []int{0, 1, 3, 4, 5, 8, 18}[r.IntN(7)], n%3
				lda, ldc, panel := m+3, n+5, 16*(k+2) // a by columns, as its copies lie
				a, b, c := fill(k*lda+m, value), fill((n+15)/16*panel+16, value), fill(m*ldc+2, value)
				want, base := append([]float32(nil), c...), fill(m*ldc+2, value)
				e := &tile{a: &a[0], aRow: 4, aCol: 4 * lda, b: &b[0], bPanel: 4 * panel, k: k, c: &c[1], cRow: 4 * ldc, n: n, ahead: uintptr(unsafe.Pointer(&b[0]))}
				switch add {
				case 1:
					e.base = e.c
				case 2:
					e.base = &base[1]
					for i := range m {
						copy(want[1+i*ldc:][:n], base[1+i*ldc:])
					}
				}
				specProduct(want[1:], ldc, m, n, k, at(a, 1, lda), func(x, j int) float32 { return b[j/16*panel+x*16+j%16] }, add > 0)
				kern.strip(m, e)
				compare(t, fmt.Sprintf("%s strip %d×%d, k %d, add %d", isa, m, n, k, add), c, want)
			}
		}
	}
}

// TestLinearOnto compares with the product and the sum, with one k-block and with several.
func TestLinearOnto(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	value := func() float32 { return float32(r.NormFloat64()) }
	for _, b := range backends(t, 1, 3) {
		for _, in := range []int{40, 256, 300, 520} {
			const rows, out = 150, 37
			x, base, w := floats(fill(rows*in, value)), floats(fill(rows*out, value)), b.Prepare(floats(fill(out*in, value)), out, in)
			want, got := make(floats, rows*out), make(floats, rows*out)
			b.Linear(want, x, w)
			b.Add(want, base)
			b.LinearOnto(got, base, x, w)
			compare(t, fmt.Sprintf("%s, k %d", b.Name(), in), got, want)
		}
	}
}

// TestFreeze says which values are kept in two bytes.
func TestFreeze(t *testing.T) {
	b := backends(t, 1)[0]
	for _, c := range []struct {
		values []float32
		half   bool
	}{
		{[]float32{1, -0.5, 0, float32(math.Copysign(0, -1)), 0x1.fep127, 0x1p-133}, true},
		{[]float32{1, 1.0009765625, 0, 0, 0, 0}, false},
		{[]float32{1, 0x1p-149, 0, 0, 0, 0}, false},
	} {
		w := b.Freeze(c.values, 2, 3, false).(*weight)
		if (w.half != nil) != c.half || (w.data == nil) != c.half {
			t.Errorf("%v: kept as bfloat16: %v, want %v", c.values, w.half != nil, c.half)
		}
		c.values[0]++ // the caller's memory is its own
		y := make(floats, 3)
		b.Embed(y, w, []int32{0})
		compare(t, "row", y, append([]float32{c.values[0] - 1}, c.values[1:3]...))
	}
}

// BenchmarkMatrix multiplies [m, k] by a weight [n, k] with one thread: a cube, and an expert's matrices at the sizes of
// the demo model and of a larger one.
func BenchmarkMatrix(b *testing.B) {
	for _, k := range backends(b, 1) {
		for _, s := range []struct {
			name    string
			m, n, k int
		}{{"cube512", 512, 512, 512}, {"gate128x192x96", 128, 192, 96}, {"down128x96x192", 128, 96, 192}, {"gate64x1024x512", 64, 1024, 512}, {"down64x512x1024", 64, 512, 1024}} {
			r := rand.New(rand.NewPCG(1, 1))
			value := func() float32 { return float32(r.NormFloat64()) }
			x, dy, y := floats(fill(s.m*s.k, value)), floats(fill(s.m*s.n, value)), make(floats, s.m*s.n)
			w, dw := k.Prepare(floats(fill(s.n*s.k, value)), s.n, s.k), make(floats, s.n*s.k)
			dx := make(floats, s.m*s.k)
			for _, op := range []struct {
				name string
				run  func()
			}{
				{"y", func() { k.Linear(y, x, w) }},
				{"dx", func() { k.LinearGradInput(dx, dy, w, false) }},
				{"dw", func() { k.LinearGradWeight(dw, dy, x, s.m) }},
			} {
				b.Run(fmt.Sprintf("%s/%s/%s", k.isa, s.name, op.name), func(b *testing.B) {
					op.run() // packs the weight
					for b.Loop() {
						op.run()
					}
					b.ReportMetric(2*float64(s.m*s.n*s.k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
				})
			}
		}
	}
}
