package exact_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/blockzero-net/bzd/training/exact"
)

// TestAccuracy compares with the standard library, which is within one unit in the last place of the truth.
func TestAccuracy(t *testing.T) {
	cases := []struct {
		name     string
		got, std func(float64) float64
		lo, hi   float64
	}{
		{"log", exact.Log, math.Log, 1e-30, 1e6},
		{"exp", exact.Exp, math.Exp, -30, 30},
		{"sin", exact.Sin, math.Sin, -1e5, 1e5},
		{"cos", exact.Cos, math.Cos, -1e5, 1e5},
	}
	for _, c := range cases {
		worst := 0.0
		for i := range 20000 {
			x := c.lo + (c.hi-c.lo)*float64(i)/19999
			if c.name == "log" && i%2 == 0 {
				x = math.Ldexp(x, -i%100)
			}
			want := c.std(x)
			if d := math.Abs(c.got(x) - want); d > worst*math.Max(1, math.Abs(want)) {
				worst = d / math.Max(1, math.Abs(want))
			}
		}
		if worst > 4e-16 {
			t.Errorf("%s: off by %g, more than two units in the last place", c.name, worst)
		}
	}
}

// TestBits pins the bits: a digest of results over fixed arguments, equal on every machine.
func TestBits(t *testing.T) {
	h := sha256.New()
	for i := range 4096 {
		x := float64(i)*0.37 + 0.01
		for _, y := range []float64{exact.Log(x), exact.Exp(x / 16), exact.Sin(x), exact.Cos(x)} {
			binary.Write(h, binary.LittleEndian, y)
		}
	}
	const want = "087844ffcc62be2a"
	if got := fmt.Sprintf("%x", h.Sum(nil)[:8]); got != want {
		t.Errorf("digest of results is %s, docs/spec/exact.md says %s", got, want)
	}
}

func TestSpecialLogs(t *testing.T) {
	if !math.IsInf(exact.Log(0), -1) || !math.IsNaN(exact.Log(-1)) || !math.IsNaN(exact.Log(math.NaN())) || !math.IsInf(exact.Log(math.Inf(1)), 1) {
		t.Error("special values of Log are wrong")
	}
}
