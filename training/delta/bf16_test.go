package delta

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// TestCodesBijective walks all 65536 bfloat16 values: those accepted are exactly the finite multiples of 2⁻²⁴ up to 2
// without negative zero, and each encodes back to itself.
func TestCodesBijective(t *testing.T) {
	accepted := 0
	for code := range 1 << 16 {
		b := uint16(code)
		value := float64(math.Float32frombits(uint32(b) << 16))
		scaled := value * (1 << 24)
		want := !math.IsNaN(value) && math.Abs(value) <= 2 && scaled == math.Trunc(scaled) && b != 0x8000
		u, err := unitsOfBF16(b)
		if (err == nil) != want {
			t.Fatalf("0x%04x = %v: %v", b, value, err)
		}
		if err != nil {
			continue
		}
		accepted++
		if float64(u) != scaled || Value(u) != value {
			t.Fatalf("0x%04x = %v decodes to %d units", b, value, u)
		}
		if back, ok := bf16OfUnits(u); !ok || back != b {
			t.Fatalf("0x%04x comes back as 0x%04x", b, back)
		}
	}
	if accepted != 2*(256+17*128+1)-1 { // magnitudes: 0 to 255, 128 in each octave from 2⁸ to 2²⁵, and 2²⁵
		t.Errorf("%d codes accepted", accepted)
	}
	for _, u := range []int32{257, 513, 1<<25 + 1, MaxUnit + 1<<18, math.MaxInt32, math.MinInt32} {
		if _, ok := bf16OfUnits(u); ok {
			t.Errorf("%d units have a bfloat16", u)
		}
	}
}

func TestQuantize(t *testing.T) {
	const unit = 1.0 / (1 << 24)
	for _, c := range []struct {
		v    float32
		want int32
	}{
		{0, 0},
		{float32(math.Copysign(0, -1)), 0},
		{math.SmallestNonzeroFloat32, 0},
		{unit / 2, 0}, // half to even
		{1.5 * unit, 2},
		{2.5 * unit, 2},
		{-2.5 * unit, -2},
		{255 * unit, 255},
		{257 * unit, 256}, // 9 bits: half to even
		{259 * unit, 260},
		{-259 * unit, -260},
		{511 * unit, 512}, // rounds into the next octave
		{2, MaxUnit},
		{-2, -MaxUnit},
		{1.9999999, MaxUnit},
		{256.5 * unit, 256}, // first to 256, even; one rounding to 8 bits gives the same
		{257.5 * unit, 258}, // first to 258, which has 8 bits
	} {
		dst := []int32{-1}
		if err := Quantize(dst, []float32{c.v}); err != nil || dst[0] != c.want {
			t.Errorf("%v: %d units (%v), want %d", c.v, dst[0], err, c.want)
		}
	}
	for _, v := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 2.0000002, -2.0078125, math.MaxFloat32} {
		err := Quantize(make([]int32, 2), []float32{0, v})
		if !errors.Is(err, ErrRange) || err.Error()[:9] != "element 1" {
			t.Errorf("%v: %v", v, err)
		}
	}
	if Quantize(make([]int32, 1), make([]float32, 2)) == nil {
		t.Error("lengths differ")
	}
}

// TestQuantizeNearest: no value that the codec can carry is nearer to the once-rounded value than the chosen one.
func TestQuantizeNearest(t *testing.T) {
	var all []int32
	for code := range 1 << 15 {
		if u, err := unitsOfBF16(uint16(code)); err == nil {
			all = append(all, u) // ascending
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		v := float32(math.Ldexp(rng.Float64(), -rng.IntN(24)))
		dst := make([]int32, 2)
		if err := Quantize(dst, []float32{v, -v}); err != nil {
			t.Fatal(err)
		}
		if dst[0] != -dst[1] {
			t.Fatalf("%v: %d and %d", v, dst[0], dst[1])
		}
		units := math.RoundToEven(float64(v) * (1 << 24))
		lo, hi := 0, len(all)-1
		for lo < hi {
			if mid := (lo + hi) / 2; float64(all[mid]) < units {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		best := math.Abs(float64(all[lo]) - units)
		if lo > 0 {
			best = min(best, math.Abs(float64(all[lo-1])-units))
		}
		if got := math.Abs(float64(dst[0]) - units); got != best {
			t.Fatalf("%v = %v units became %d, off by %v; the nearest is off by %v", v, units, dst[0], got, best)
		}
	}
}
