package delta

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

func half(bits uint16) float64 {
	if e := int(bits >> 10); e > 0 {
		return math.Ldexp(float64(1024+int(bits&0x3ff)), e-25)
	}
	return math.Ldexp(float64(bits), -24)
}

func chunks() map[string][]float32 {
	r := rand.New(rand.NewPCG(1, 2))
	make4096 := func(f func(i int) float64) []float32 {
		x := make([]float32, TopKChunk)
		for i := range x {
			x[i] = float32(f(i))
		}
		return x
	}
	all := map[string][]float32{
		"gauss":     make4096(func(int) float64 { return r.NormFloat64() * 1e-4 }),
		"wide":      make4096(func(int) float64 { return math.Ldexp(r.Float64()*2-1, -r.IntN(40)) }),
		"tied":      make4096(func(i int) float64 { return float64(r.IntN(3)-1) * 0.01 }),
		"constant":  make4096(func(int) float64 { return -0.125 }),
		"largest":   make4096(func(int) float64 { return 2 }),
		"denormal":  make4096(func(int) float64 { return math.Ldexp(r.Float64()-0.5, -127) }),
		"tiny":      make4096(func(int) float64 { return r.NormFloat64() * 1e-8 }),
		"zero":      make4096(func(int) float64 { return 0 }),
		"one value": make4096(func(i int) float64 { return float64(b2i(i == 4095)) * 1.5 }),
		"zeros":     make4096(func(i int) float64 { return math.Copysign(0, float64(i%2)-0.5) }),
	}
	all["ragged"] = all["gauss"][:777]
	all["single"] = []float32{-0.3}
	return all
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestTopK(t *testing.T) {
	for name, x := range chunks() {
		for _, k := range []int{1, 41, 64, 4095, 4096} {
			rest := slices.Clone(x)
			code, err := TopK(rest, k)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			units := make([]int32, len(x))
			if err := code.Units(units, k); err != nil {
				t.Fatalf("%s, top %d: %v", name, k, err)
			}
			var before, after float64
			smallest, left := math.Inf(1), 0.0
			for i := range x {
				if got := rest[i]; got != x[i]-float32(Value(units[i])) {
					t.Fatalf("%s, top %d: residual %d is %v; %v less %v units", name, k, i, got, x[i], units[i])
				}
				if units[i] < -MaxUnit || units[i] > MaxUnit {
					t.Fatalf("%s, top %d: %d units", name, k, units[i])
				}
				before += float64(x[i]) * float64(x[i])
				after += float64(rest[i]) * float64(rest[i])
				if v := math.Abs(float64(x[i])); units[i] != 0 {
					smallest = min(smallest, v)
				} else {
					left = max(left, v)
				}
			}
			if code.Scale != 0 && left > smallest {
				t.Errorf("%s, top %d: sent %v, kept %v", name, k, smallest, left)
			}
			if after > before*(1+1e-6)+1e-20 {
				t.Errorf("%s, top %d: the residual grew from %v to %v", name, k, before, after)
			}
			if name == "gauss" && k == 41 && after > before*0.935 {
				t.Errorf("1%% of Gaussian values leave %.3f of the squares", after/before)
			}
		}
	}
}

func TestTopKTies(t *testing.T) {
	x := []float32{0.5, -1, 1, 0.5, -0.5, 1}
	code, err := TopK(slices.Clone(x), 2731) // ⌈6·2731/4096⌉ = 5
	if err != nil || !slices.Equal(code.Indices, []uint16{0, 1, 2, 3, 5}) {
		t.Fatalf("chose %v, %v", code.Indices, err)
	}
	// S = 4, above the mean 0.8: three of 1, so s = (2·4 + 3)/(4·5 + 5·3) = 11/35; 0.5 and 1 both are nearest to a level.
	if want := math.Round(11.0/35*4096) / 4096; math.Abs(half(code.Scale)-want) > 1.0/4096 {
		t.Errorf("scale %v, want about %v", half(code.Scale), want)
	}
	if !slices.Equal(code.Codes, []byte{0<<0 | 3<<2 | 1<<4 | 0<<6, 1}) {
		t.Errorf("codes %08b", code.Codes)
	}
}

// TestScaleRounding compares with exact rationals.
func TestScaleRounding(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		fixed := make([]uint64, 1+r.IntN(5))
		for i := range fixed {
			fixed[i] = r.Uint64N(1<<33+1) >> r.IntN(34)
		}
		sum, high, count := new(big.Int), new(big.Int), int64(0)
		for _, q := range fixed {
			sum.Add(sum, new(big.Int).SetUint64(q))
		}
		for _, q := range fixed {
			if v := new(big.Int).SetUint64(q); new(big.Int).Mul(v, big.NewInt(int64(len(fixed)))).Cmp(sum) > 0 {
				high.Add(high, v)
				count++
			}
		}
		num := new(big.Int).Add(new(big.Int).Lsh(sum, 1), high)
		exact := new(big.Rat).SetFrac(num, big.NewInt((4*int64(len(fixed))+5*count)<<32)) // as a number
		got := scaleOf(fixed)
		if got > maxScale {
			t.Fatalf("scale %#x of %v", got, fixed)
		}
		distance := func(bits uint16) *big.Rat {
			d := new(big.Rat).SetFloat64(half(bits))
			return d.Sub(d, exact).Abs(d)
		}
		for _, other := range []int{int(got) - 1, int(got) + 1} {
			if other < 0 || other > maxScale {
				continue
			}
			if c := distance(uint16(other)).Cmp(distance(got)); c < 0 || c == 0 && got&1 == 1 {
				t.Fatalf("scale %#x of %v, but %#x is nearer or even", got, fixed, other)
			}
		}
	}
}

func TestTopKRefusals(t *testing.T) {
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(-1)), 2.0000002} {
		x := []float32{1, bad, 0.5}
		if _, err := TopK(x, 1); !errors.Is(err, ErrRange) || x[0] != 1 {
			t.Errorf("%v: got %v, x %v", bad, err, x)
		}
	}
	for _, c := range []struct{ n, k int }{{0, 1}, {4097, 1}, {1, 0}, {1, 4097}} {
		if _, err := TopK(make([]float32, c.n), c.k); err == nil {
			t.Errorf("top %d of %d is accepted", c.k, c.n)
		}
	}
	good := func() TopKCode { return TopKCode{Indices: []uint16{3, 9}, Codes: []byte{0x0d}, Scale: 0x3955} }
	units := make([]int32, 10)
	const k = 600 // ⌈10·600/4096⌉ = 2
	if err := good().Units(units, k); err != nil || units[3] != 3*11182080 || units[9] != -3*11182080 {
		t.Fatalf("got %v, %v", units, err)
	}
	for name, spoil := range map[string]func(c *TopKCode){
		"index beyond":       func(c *TopKCode) { c.Indices[1] = 10 },
		"equal indices":      func(c *TopKCode) { c.Indices[1] = 3 },
		"descending indices": func(c *TopKCode) { c.Indices[0], c.Indices[1] = 9, 3 },
		"too few indices":    func(c *TopKCode) { c.Indices = c.Indices[:1] },
		"too many codes":     func(c *TopKCode) { c.Codes = append(c.Codes, 0) },
		"no codes":           func(c *TopKCode) { c.Codes = nil },
		"unused bits":        func(c *TopKCode) { c.Codes[0] |= 0x10 },
		"scale too large":    func(c *TopKCode) { c.Scale++ },
		"infinite scale":     func(c *TopKCode) { c.Scale = 0x7c00 },
		"negative zero":      func(c *TopKCode) { c.Scale = 0x8000 },
		"zero with codes":    func(c *TopKCode) { c.Scale = 0; c.Indices = []uint16{0, 1} },
		"zero with indices":  func(c *TopKCode) { c.Scale = 0; c.Codes[0] = 0 },
	} {
		c := good()
		spoil(&c)
		if err := c.Units(units, k); !errors.Is(err, ErrTopK) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	zero := TopKCode{Indices: []uint16{0, 1}, Codes: []byte{0}}
	if err := zero.Units(units, k); err != nil || slices.Max(units) != 0 {
		t.Errorf("the empty code gives %v, %v", units, err)
	}
}

// vectorCases are short chunks of all kinds.
func vectorCases() (cases [][]float32, ks []int) {
	r := rand.New(rand.NewPCG(5, 6))
	add := func(n, k int, f func(i int) float64) {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(f(i))
		}
		cases, ks = append(cases, x), append(ks, k)
	}
	add(1, 41, func(int) float64 { return -0.3 })
	add(5, 4096, func(i int) float64 { return float64(i) - 2 })
	add(48, 600, func(int) float64 { return r.NormFloat64() * 1e-4 })
	add(48, 600, func(int) float64 { return math.Ldexp(r.NormFloat64(), -4-r.IntN(30)) })
	add(48, 600, func(int) float64 { return float64(r.IntN(3)-1) * 0.01 })
	add(16, 2048, func(int) float64 { return 2 })
	add(16, 2048, func(int) float64 { return math.Ldexp(r.Float64(), -128) })
	add(16, 2048, func(int) float64 { return math.Ldexp(float64(r.IntN(9)-4), -25) })
	add(16, 2048, func(i int) float64 { return math.Copysign(0, float64(i%2)-0.5) })
	return cases, ks
}

// TestTopKVectors: testdata/topk.txt has, in hexadecimal, k and the bits of x, and indices, codes, scale and the bits of the
// residual that came of them.
func TestTopKVectors(t *testing.T) {
	var b strings.Builder
	cases, ks := vectorCases()
	for i, x := range cases {
		k := ks[i]
		words := func(name string) {
			fmt.Fprint(&b, name)
			for _, v := range x {
				fmt.Fprintf(&b, " %08x", math.Float32bits(v))
			}
			fmt.Fprintln(&b)
		}
		fmt.Fprintf(&b, "k %x\n", k)
		words("x")
		code, err := TopK(x, k)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "indices %s\ncodes %x\nscale %04x\n", strings.Trim(fmt.Sprintf("%x", code.Indices), "[]"), code.Codes, code.Scale)
		words("residual")
	}
	want, err := os.ReadFile("testdata/topk.txt")
	if err != nil || string(want) != b.String() {
		t.Errorf("the code has changed (%v); it would now be\n%s", err, b.String())
	}
}
