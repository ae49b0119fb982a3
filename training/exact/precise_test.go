package exact_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/blockzero-net/bzd/training/exact"
)

// The true values, in 400 bits.

func precise(x float64) *big.Float { return new(big.Float).SetPrec(400).SetFloat64(x) }

func zero() *big.Float { return new(big.Float).SetPrec(400) }

// series sums the terms x^i/i! with the given signs, for |x| < 2⁻²⁰.
func series(x *big.Float, sign func(i int) int64) *big.Float {
	sum, term := zero(), precise(1)
	for i := range 24 {
		sum.Add(sum, zero().Mul(term, precise(float64(sign(i)))))
		term.Quo(term.Mul(term, x), precise(float64(i+1)))
	}
	return sum
}

const halvings = 44

func preciseExp(x *big.Float) *big.Float {
	small := zero().SetMantExp(x, -halvings)
	y := series(small, func(int) int64 { return 1 })
	for range halvings {
		y.Mul(y, y)
	}
	return y
}

func preciseLog(x float64) *big.Float {
	y := precise(math.Log(x))
	for range 9 { // Newton: y + x/e^y − 1 doubles the digits; math.Log is far off for denormal x on some machines
		y.Add(y, zero().Quo(precise(x), preciseExp(y)))
		y.Sub(y, precise(1))
	}
	return y
}

func preciseSinCos(x float64) (sin, cos *big.Float) {
	small := zero().SetMantExp(precise(x), -halvings)
	sin = series(small, func(i int) int64 { return [4]int64{0, 1, 0, -1}[i%4] })
	cos = series(small, func(i int) int64 { return [4]int64{1, 0, -1, 0}[i%4] })
	for range halvings {
		s := zero().Mul(sin, cos)
		sin, cos = s.Add(s, s), zero().Sub(zero().Mul(cos, cos), zero().Mul(sin, sin))
	}
	return sin, cos
}

// off is the distance of got from want in units of the last place of want.
func off(got float64, want *big.Float) float64 {
	w, _ := want.Float64()
	_, e := math.Frexp(w)
	return distance(got, want) / math.Ldexp(1, max(e-53, -1074))
}

func distance(got float64, want *big.Float) float64 {
	d, _ := zero().Sub(precise(got), want).Float64()
	return math.Abs(d)
}

// TestPrecision bounds the errors that docs/spec/exact.md states.
func TestPrecision(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var exp, log, trig float64
	for i := range 1500 {
		x := (r.Float64()*2 - 1) * []float64{1, 30, 690}[i%3]
		exp = math.Max(exp, off(exact.Exp(x), preciseExp(precise(x))))
		x = math.Ldexp(1+r.Float64(), []int{-1, 0, r.IntN(200) - 100, r.IntN(2000) - 1030}[i%4])
		log = math.Max(log, off(exact.Log(x), preciseLog(x)))
		x = (r.Float64()*2 - 1) * []float64{1, 4096, 1 << 20}[i%3]
		if i%5 == 0 {
			x = float64(r.IntN(1<<18)) * math.Pi / 2 // as near to a zero as a float64 comes
		}
		sin, cos := preciseSinCos(x)
		trig = math.Max(trig, math.Max(distance(exact.Sin(x), sin), distance(exact.Cos(x), cos))/0x1p-53)
	}
	t.Logf("largest errors: exp %.3f and log %.3f units in the last place, sin and cos %.3f·2⁻⁵³", exp, log, trig)
	for _, c := range []struct {
		name        string
		worst, most float64
	}{{"Exp", exp, 1}, {"Log", log, 1}, {"Sin and Cos (in 2⁻⁵³)", trig, 1.5}} {
		if !(c.worst <= c.most) {
			t.Errorf("%s is off by %.3f, docs/spec/exact.md says at most %v", c.name, c.worst, c.most)
		}
	}
}

func TestSpecial(t *testing.T) {
	inf := math.Inf(1)
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"Log(1)", exact.Log(1), 0}, {"Log(0)", exact.Log(0), -inf}, {"Log(−0)", exact.Log(math.Copysign(0, -1)), -inf},
		{"Log(+Inf)", exact.Log(inf), inf}, {"Log(−1)", exact.Log(-1), math.NaN()}, {"Log(−Inf)", exact.Log(-inf), math.NaN()}, {"Log(NaN)", exact.Log(math.NaN()), math.NaN()},
		{"Exp(0)", exact.Exp(0), 1}, {"Exp(NaN)", exact.Exp(math.NaN()), math.NaN()},
		{"Sin(0)", exact.Sin(0), 0}, {"Cos(0)", exact.Cos(0), 1},
	} {
		if math.Float64bits(c.got) != math.Float64bits(c.want) && !(math.IsNaN(c.got) && math.IsNaN(c.want)) {
			t.Errorf("%s is %v, want %v", c.name, c.got, c.want)
		}
	}
}
