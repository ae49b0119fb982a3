package local

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cpu"
)

// TestEmbeddedBaseDigest: weights that are not the recipe's are refused, and the message says what to do.
func TestEmbeddedBaseDigest(t *testing.T) {
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	embedded := baseWeights
	defer func() { baseWeights = embedded }()
	baseWeights = append([]byte(nil), embedded...)
	baseWeights[len(baseWeights)/2] ^= 1
	if _, err := EmbeddedBase(b); err == nil || !strings.Contains(err.Error(), "make genesis") {
		t.Errorf("error %v", err)
	}
}

// TestSolve puts the solution back into the equations.
func TestSolve(t *testing.T) {
	g := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 7, 40} {
		// a = m·mᵀ + 1 is positive definite.
		m, a, lower := make([][]float64, n), make([][]float64, n), make([][]float64, n)
		b := make([]float64, n)
		for i := range n {
			for range n {
				m[i] = append(m[i], g.NormFloat64())
			}
			b[i] = g.NormFloat64()
		}
		for i := range n {
			a[i], lower[i] = make([]float64, n), make([]float64, n)
			for j := range n {
				for k := range n {
					a[i][j] += m[i][k] * m[j][k]
				}
				if i == j {
					a[i][j]++
				}
				lower[i][j] = a[i][j]
				if j > i {
					lower[i][j] = math.NaN() // must not be read
				}
			}
		}
		x := append([]float64(nil), b...)
		if err := solve(lower, x); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			sum := 0.0
			for j := range n {
				sum += a[i][j] * x[j]
			}
			if !(math.Abs(sum-b[i]) < 1e-9) {
				t.Errorf("equation %d of %d: %v, want %v", i, n, sum, b[i])
			}
		}
	}
	if err := solve([][]float64{{1, 0}, {1, 1}}, []float64{1, 1}); err == nil {
		t.Error("a singular matrix was solved")
	}
}
