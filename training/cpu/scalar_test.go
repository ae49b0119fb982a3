package cpu

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// bigFMA is a·b + c rounded once, for finite arguments.
func bigFMA(a, b, c float32) float32 {
	exact := func(x float32) *big.Float { return new(big.Float).SetPrec(2000).SetFloat64(float64(x)) }
	s := exact(a)
	s.Mul(s, exact(b)).Add(s, exact(c))
	if s.Sign() == 0 { // math/big does not keep the sign of an exact zero as IEEE does
		return float32(float64(a)*float64(b) + float64(c))
	}
	r, _ := s.Float32()
	return r
}

// hardFMA draws arguments whose float64 sum lands on, or one bit beside, the middle between two float32: rounding twice
// errs there.
func hardFMA(r *rand.Rand) (a, b, c float32) {
	power := func(e int) float32 { return float32(math.Ldexp(1, e)) }
	sign := func(x float32) float32 {
		if r.IntN(2) == 0 {
			return -x
		}
		return x
	}
	small := float32(r.IntN(64)+1) * 0x1p-23
	switch r.IntN(4) {
	case 0: // c plus half its last place, times 1 − small²
		e := r.IntN(120) - 60
		c = power(e) * (1 + float32(r.IntN(1<<23))*0x1p-23)
		return sign(power(e-24) * (1 + small)), sign(1 - small), c
	case 1: // a product whose low half is a half, plus next to nothing
		a, b = 1+float32(r.IntN(1<<12)*2+1)*0x1p-12, 1+float32(r.IntN(1<<11)*2+1)*0x1p-12
		return a, sign(b), sign(power(-r.IntN(110) - 30))
	case 2: // the same among denormal results
		e := -126 - r.IntN(23)
		c = sign(float32(r.IntN(1<<20)) * 0x1p-149)
		return power(e+75) * (1 + small), sign(power(-75) * (1 - small)), c
	}
	// massive cancellation
	a, b = 1+float32(r.IntN(1<<23))*0x1p-23, 1+float32(r.IntN(1<<23))*0x1p-23
	return a, b, -float32(float64(a)*float64(b)) + sign(power(-r.IntN(149)))
}

func TestFMA(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	twice := 0
	check := func(a, b, c float32) {
		t.Helper()
		got, want := fma(a, b, c), bigFMA(a, b, c)
		if math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("fma(%x, %x, %x) is %x, want %x", a, b, c, got, want)
		}
		if float32(float64(float64(a)*float64(b))+float64(c)) != want {
			twice++
		}
	}
	n := 60000
	if testing.Short() {
		n = 10000
	}
	for range n {
		check(hardFMA(r))
		check(finite(r), finite(r), finite(r))
	}
	if twice < n/20 {
		t.Errorf("rounding twice errs on %d of the cases only: they are not hard", twice)
	}
	for _, a := range specials {
		for _, b := range specials {
			for _, c := range specials {
				got, want := fma(a, b, c), float32(float64(a)*float64(b)+float64(c))
				if !same(got, want) {
					t.Errorf("fma(%v, %v, %v) is %v, want %v", a, b, c, got, want)
				}
			}
		}
	}
}

// FuzzFMA looks for arguments on which the emulation errs.
func FuzzFMA(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 40 {
		a, b, c := hardFMA(r)
		f.Add(math.Float32bits(a), math.Float32bits(b), math.Float32bits(c))
	}
	f.Fuzz(func(t *testing.T, x, y, z uint32) {
		a, b, c := math.Float32frombits(x), math.Float32frombits(y), math.Float32frombits(z)
		if a-a != 0 || b-b != 0 || c-c != 0 {
			return
		}
		if got, want := fma(a, b, c), bigFMA(a, b, c); math.Float32bits(got) != math.Float32bits(want) {
			t.Errorf("fma(%x, %x, %x) is %x, want %x", a, b, c, got, want)
		}
	})
}

// finite draws any finite float32, every exponent as likely as the other.
func finite(r *rand.Rand) float32 {
	for {
		x := math.Float32frombits(r.Uint32())
		if x-x == 0 {
			return x
		}
	}
}

var inf, nan = float32(math.Inf(1)), float32(math.NaN())

// specials are values on which implementations like to differ. Products of two, plus a third, are exact in float64.
var specials = []float32{0, float32(math.Copysign(0, -1)), 1, -1, 0x1p-149, -0x1p-149, 0x1p-126, -0x1.fffffcp-127, 0x1.fffffep127, -0x1.fffffep127, inf, -inf, nan}

// same compares bits; NaNs are equal whatever their payload.
func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// expError is the bound that docs/spec/exact.md states, in units of the last place of the float32 result.
const expError = 0.94

func TestExpAccuracy(t *testing.T) {
	stride := uint32(257)
	if testing.Short() {
		stride = 2503
	}
	worst, at := 0.0, float32(0)
	for _, sign := range []uint32{0, 1 << 31} {
		for bits := math.Float32bits(0x1p-30); bits < math.Float32bits(104); bits += stride {
			x := math.Float32frombits(bits | sign)
			if x > expMax {
				break
			}
			want := math.Exp(float64(x))
			_, e := math.Frexp(want)
			if d := math.Abs(float64(exp(x))-want) / math.Ldexp(1, max(e-24, -149)); d > worst {
				worst, at = d, x
			}
		}
	}
	// The worst of all 2³² arguments, found once by trying them.
	if d := math.Abs(float64(exp(26.688921))-math.Exp(float64(float32(26.688921)))) / 0x1p15; d < 0.93 || d < worst {
		t.Errorf("exp(26.688921) is off by %.4f units in the last place, which was 0.9387 and the worst there is", d)
	}
	t.Logf("largest error %.4f units in the last place, at %v", worst, at)
	if worst > expError {
		t.Errorf("exp(%v) is off by %.4f units in the last place, docs/spec/exact.md says at most %v", at, worst, expError)
	}
}

// TestExpSpecial runs the vector kernels too: clamps and comparisons are where instruction sets differ.
func TestExpSpecial(t *testing.T) {
	top := exp(expMax)
	if top-top != 0 {
		t.Fatalf("exp(%v) is not finite", expMax)
	}
	for _, c := range []struct{ x, want float32 }{
		{0, 1}, {float32(math.Copysign(0, -1)), 1}, {0x1p-149, 1}, {-0x1p-149, 1},
		{-104, 0}, {-200, 0}, {-inf, 0}, {nan, 0}, {-0x1.fffffep127, 0},
		{88.73, top}, {200, top}, {inf, top}, {0x1.fffffep127, top},
		{-103.9, 0x1p-149}, {-87.4, exp(-87.4)},
	} {
		if got := exp(c.x); !same(got, c.want) {
			t.Errorf("exp(%v) is %v, want %v", c.x, got, c.want)
		}
		for _, isa := range Available() {
			k, _ := kernelsFor(isa)
			x, y := make([]float32, 16), make([]float32, 16)
			for i := range x {
				x[i] = c.x
			}
			k.expSum(y, x, 1, 0)
			for _, got := range y {
				if !same(got, c.want) {
					t.Errorf("%s: exp(%v) is %v, want %v", isa, c.x, got, c.want)
					break
				}
			}
		}
	}
	if s := sigmoid(nan); s != 1 {
		t.Errorf("sigmoid(NaN) is %v, docs/spec/exact.md says 1", s)
	}
}

// TestConstants compares the constants of the assembly with those of the plain Go code.
func TestConstants(t *testing.T) {
	asm, err := os.ReadFile("zz_kernels_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]uint32{}
	for _, m := range regexp.MustCompile(`DATA ·(\w+)<>\+\d+\(SB\)/4, \$0x([0-9a-f]{8})\n`).FindAllStringSubmatch(string(asm), -1) {
		v, err := strconv.ParseUint(m[2], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		found[m[1]] = append(found[m[1]], uint32(v))
	}
	want := map[string]uint32{"bias": 127, "signBit": 1 << 31, "upper": 0xffff0000}
	delete(found, "lanes") // the table of masks
	for name, v := range map[string]float32{"expMin": expMin, "expMax": expMax, "log2e": log2e, "magic": magic, "ln2Hi": ln2Hi, "ln2Lo": ln2Lo, "one": 1, "negInf": -inf} {
		want[name] = math.Float32bits(v)
	}
	for i, v := range expC {
		want[fmt.Sprint("exp", i)] = math.Float32bits(v)
	}
	if len(found) != len(want) {
		t.Errorf("the assembly has %d constants, want %d", len(found), len(want))
	}
	for name, v := range want {
		if len(found[name]) != 16 {
			t.Errorf("%s is there %d times, want 16", name, len(found[name]))
		}
		for _, got := range found[name] {
			if got != v {
				t.Errorf("%s is %#08x in the assembly, %#08x in Go", name, got, v)
				break
			}
		}
	}
}
