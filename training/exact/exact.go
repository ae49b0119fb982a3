package exact

import "math"

// horner evaluates c[0] + x·(c[1] + x·(…)), every operation rounded.
func horner(x float64, c ...float64) float64 {
	s := c[len(c)-1]
	for i := len(c) - 2; i >= 0; i-- {
		s = float64(s*x) + c[i]
	}
	return s
}

const (
	ln2Hi = 6.93147180369123816490e-01 // 0x3fe62e42fee00000
	ln2Lo = 1.90821492927058770002e-10 // 0x3dea39ef35793c76
)

// Log returns the natural logarithm of a positive, finite x within one unit in the last place (the algorithm of FreeBSD's
// e_log.c). Zero gives −Inf, a negative number NaN, NaN and +Inf themselves.
func Log(x float64) float64 {
	switch {
	case math.IsNaN(x) || math.IsInf(x, 1):
		return x
	case x < 0:
		return math.NaN()
	case x == 0:
		return math.Inf(-1)
	}
	f1, ki := math.Frexp(x)
	if f1 < math.Sqrt2/2 {
		f1 *= 2
		ki--
	}
	f := f1 - 1
	k := float64(ki)
	s := f / (2 + f)
	s2 := float64(s * s)
	s4 := float64(s2 * s2)
	t1 := float64(s2 * horner(s4, 6.666666666666735130e-01, 2.857142874366239149e-01, 1.818357216161805012e-01, 1.479819860511658591e-01))
	t2 := float64(s4 * horner(s4, 3.999999999940941908e-01, 2.222219843214978396e-01, 1.531383769920937332e-01))
	r := t1 + t2
	h := float64(0.5*f) * f
	h = float64(h)
	return float64(k*ln2Hi) - ((h - (float64(s*(h+r)) + float64(k*ln2Lo))) - f)
}

// Exp returns e to the x for |x| < 700 within one unit in the last place or two.
func Exp(x float64) float64 {
	if math.IsNaN(x) {
		return x
	}
	k := math.RoundToEven(float64(x * (1 / math.Ln2)))
	r := (x - float64(k*ln2Hi)) - float64(k*ln2Lo)
	// Taylor to degree 13: the remainder on |r| ≤ ln2/2 is below 1e-17.
	c := [14]float64{1, 1}
	for i := 2; i < len(c); i++ {
		c[i] = c[i-1] / float64(i)
	}
	return math.Ldexp(horner(r, c[:]...), int(k))
}

// pi/2 in three parts of 33 bits or fewer and a tail: the products with a small integer are exact.
const (
	pio2A = 1.57079632673412561417e+00 // 0x3ff921fb54400000
	pio2B = 6.07710050630396597660e-11 // 0x3dd0b4611a600000
	pio2C = 2.02226624879595063154e-21 // 0x3ba3198a2e037073
)

// reduce returns r in [−π/4, π/4] and the quadrant of x, for |x| ≤ 2²⁰.
func reduce(x float64) (r float64, quadrant int) {
	k := math.RoundToEven(float64(x * (2 / math.Pi)))
	r = ((x - float64(k*pio2A)) - float64(k*pio2B)) - float64(k*pio2C)
	return r, int(k) & 3
}

func kernelSin(r float64) float64 {
	z := float64(r * r)
	p := horner(z, -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
		2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10)
	return r + float64(float64(r*z)*p)
}

func kernelCos(r float64) float64 {
	z := float64(r * r)
	p := horner(z, 4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
		-2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11)
	return (1 - float64(0.5*z)) + float64(float64(z*z)*p)
}

// Sin returns the sine of x for |x| ≤ 2²⁰.
func Sin(x float64) float64 {
	r, q := reduce(x)
	switch q {
	case 0:
		return kernelSin(r)
	case 1:
		return kernelCos(r)
	case 2:
		return -kernelSin(r)
	}
	return -kernelCos(r)
}

// Cos returns the cosine of x for |x| ≤ 2²⁰.
func Cos(x float64) float64 {
	r, q := reduce(x)
	switch q {
	case 0:
		return kernelCos(r)
	case 1:
		return -kernelSin(r)
	case 2:
		return -kernelCos(r)
	}
	return kernelSin(r)
}
