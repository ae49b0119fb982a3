package merge

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// codes is a delta of one tensor, all elements given.
type codes []int32

func (c codes) Codes(int) iter.Seq2[int, int32] { return slices.All(c) }

// pairs yields what a hostile implementation would.
type pairs [][2]int

func (p pairs) Codes(int) iter.Seq2[int, int32] {
	return func(yield func(int, int32) bool) {
		for _, x := range p {
			if !yield(x[0], int32(x[1])) {
				return
			}
		}
	}
}

func id(n int) protocol.ID { return protocol.ID{byte(n >> 8), byte(n)} }

func TestVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		var err error
		switch kind, _, _ := strings.Cut(line, " "); kind {
		case "weights":
			err = checkWeights(line)
		case "step":
			err = checkStep(line)
		default:
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
		checked++
	}
	if checked < 30 {
		t.Errorf("%d vectors found", checked)
	}
}

func checkWeights(line string) error {
	var num, den uint32
	head, tail, _ := strings.Cut(line, ":")
	if _, err := fmt.Sscanf(head, "weights %d/%d", &num, &den); err != nil {
		return err
	}
	points, want, _ := strings.Cut(tail, " = ")
	var scores []Score
	for i, field := range strings.Fields(points) {
		s := Score{Miner: id(i)}
		if _, err := fmt.Sscan(field, &s.Points); err != nil {
			return err
		}
		scores = append(scores, s)
	}
	got, err := Weights(scores, num, den)
	if err != nil {
		return err
	}
	if text := strings.Trim(fmt.Sprint(got), "[]"); text != want {
		return fmt.Errorf("got %s", text)
	}
	return nil
}

func checkStep(line string) error {
	var alpha protocol.Rational
	var bits, result uint32
	var sum int64
	head, tail, _ := strings.Cut(line, " : ")
	if _, err := fmt.Sscanf(head, "step %d/%d %x", &alpha.Num, &alpha.Den, &bits); err != nil {
		return err
	}
	terms, want, _ := strings.Cut(tail, " = ")
	var deltas []Codes
	var weights []uint32
	for _, term := range strings.Fields(terms) {
		var w uint32
		var unit int32
		if _, err := fmt.Sscanf(term, "%d*%d", &w, &unit); err != nil {
			return err
		}
		deltas, weights = append(deltas, codes{unit}), append(weights, w)
	}
	if _, err := fmt.Sscanf(want, "%d %x", &sum, &result); err != nil {
		return err
	}
	var whole int64
	for i, w := range weights {
		whole += int64(w) * int64(deltas[i].(codes)[0])
	}
	if s := halfEven(int64(alpha.Num)*whole, int64(alpha.Den)*Mass); s != sum {
		return fmt.Errorf("s = %d", s)
	}
	base := []float32{math.Float32frombits(bits)}
	if err := Step(base, base, 0, deltas, weights, alpha); err != nil {
		return err
	}
	if got := math.Float32bits(base[0]); got != result {
		return fmt.Errorf("got %08x", got)
	}
	return nil
}

func TestWeightsProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		scores := make([]Score, 1+rng.IntN(40))
		positive := 0
		for i := range scores {
			scores[i] = Score{id(i), rng.Uint64() >> rng.IntN(64)}
			if rng.IntN(5) == 0 {
				scores[i].Points = 0
			}
			if scores[i].Points > 0 {
				positive++
			}
		}
		weights, err := Weights(scores, 2, 1)
		if err != nil {
			t.Fatal(err)
		}
		var sum uint32
		for i, w := range weights {
			sum += w
			if uint64(w)*uint64(positive) > 2*Mass {
				t.Fatalf("weight %d of %d deltas is above 2/G", w, positive)
			}
			if scores[i].Points == 0 && w != 0 {
				t.Fatal("weight without points")
			}
			for j, v := range weights {
				if scores[i].Points > scores[j].Points && w < v {
					t.Fatalf("more points, less weight: %v %v", scores, weights)
				}
			}
		}
		if positive > 0 && sum != Mass {
			t.Fatalf("weights sum to %d", sum)
		}
		// Another order of the same deltas.
		perm := rng.Perm(len(scores))
		shuffled := make([]Score, len(scores))
		for i, p := range perm {
			shuffled[p] = scores[i]
		}
		again, err := Weights(shuffled, 2, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range perm {
			if again[p] != weights[i] {
				t.Fatal("weights depend on the order")
			}
		}
	}
}

func TestWeightsRefuses(t *testing.T) {
	for name, f := range map[string]func() error{
		"cap below one": func() error { _, err := Weights([]Score{{id(1), 1}}, 1, 2); return err },
		"cap over zero": func() error { _, err := Weights([]Score{{id(1), 1}}, 1, 0); return err },
		"same miner":    func() error { _, err := Weights([]Score{{id(1), 1}, {id(2), 3}, {id(1), 2}}, 2, 1); return err },
		"too many": func() error {
			scores := make([]Score, Mass+1)
			for i := range scores {
				scores[i] = Score{protocol.ID{byte(i >> 16), byte(i >> 8), byte(i)}, 1}
			}
			_, err := Weights(scores, 2, 1)
			return err
		},
	} {
		if err := f(); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStepAgainstRationals compares with exact fractions, and shuffles the deltas.
func TestStepAgainstRationals(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	grid := append(protocol.ProductionParams().AlphaGrid, protocol.Rational{Num: 2, Den: 3}, protocol.Rational{Num: 65535, Den: 65534})
	for range 500 {
		const elements = 16
		base := make([]float32, elements)
		for i := range base {
			base[i] = float32(rng.NormFloat64() * math.Ldexp(1, -rng.IntN(30)))
		}
		var deltas []Codes
		var scores []Score
		for i := range 1 + rng.IntN(8) {
			c := make(codes, elements)
			for j := range c {
				c[j] = (rng.Int32N(2*MaxUnit+1) - MaxUnit) >> rng.IntN(26)
			}
			deltas, scores = append(deltas, c), append(scores, Score{id(i), 1 + rng.Uint64N(100)})
		}
		weights, err := Weights(scores, 2, 1)
		if err != nil {
			t.Fatal(err)
		}
		alpha := grid[rng.IntN(len(grid))]
		got := make([]float32, elements)
		if err := Step(got, base, 0, deltas, weights, alpha); err != nil {
			t.Fatal(err)
		}
		for i := range base {
			sum := new(big.Int)
			for k, d := range deltas {
				sum.Add(sum, big.NewInt(int64(weights[k])*int64(d.(codes)[i])))
			}
			s := roundHalfEven(new(big.Rat).SetFrac(sum.Mul(sum, big.NewInt(int64(alpha.Num))), big.NewInt(int64(alpha.Den)*Mass)))
			want := float32(float64(base[i]) + float64(s)/(1<<24))
			if got[i] != want {
				t.Fatalf("element %d: %v, want %v (s = %d)", i, got[i], want, s)
			}
		}
		rng.Shuffle(len(deltas), func(i, j int) {
			deltas[i], deltas[j] = deltas[j], deltas[i]
			weights[i], weights[j] = weights[j], weights[i]
		})
		if err := Step(base, base, 0, deltas, weights, alpha); err != nil { // in place
			t.Fatal(err)
		}
		if !slices.Equal(base, got) {
			t.Fatal("the step depends on the order of deltas")
		}
	}
}

func roundHalfEven(r *big.Rat) int64 {
	twice := new(big.Rat).Mul(r, big.NewRat(2, 1))
	floor := func(x *big.Rat) int64 {
		return new(big.Int).Div(x.Num(), x.Denom()).Int64() // Euclidean, and the denominator is positive
	}
	low := floor(r)
	switch twice.Cmp(big.NewRat(2*low+1, 1)) {
	case -1:
		return low
	case 1:
		return low + 1
	}
	return low + low&1
}

func TestStepRefuses(t *testing.T) {
	one := protocol.Rational{Num: 1, Den: 1}
	zero := []float32{0, 0}
	good := []Codes{codes{1, 2}}
	full := []uint32{Mass}
	for name, err := range map[string]error{
		"short result":      Step(zero[:1], zero, 0, good, full, one),
		"weight missing":    Step(zero, zero, 0, good, nil, one),
		"half the mass":     Step(zero, zero, 0, good, []uint32{Mass / 2}, one),
		"mass wraps":        Step(zero, zero, 0, []Codes{codes{1, 2}, codes{1, 2}}, []uint32{math.MaxUint32, Mass + 1}, one),
		"no deltas":         Step(zero, zero, 0, nil, nil, one),
		"no scale":          Step(zero, zero, 0, good, full, protocol.Rational{}),
		"scale too fine":    Step(zero, zero, 0, good, full, protocol.Rational{Num: 1, Den: 1 << 16}),
		"NaN base":          Step(make([]float32, 2), []float32{0, float32(math.NaN())}, 0, good, full, one),
		"infinite base":     Step(make([]float32, 2), []float32{0, float32(math.Inf(-1))}, 0, good, full, one),
		"code above 2":      Step(zero, zero, 0, []Codes{codes{0, MaxUnit + 1}}, full, one),
		"code below -2":     Step(zero, zero, 0, []Codes{codes{math.MinInt32, 0}}, full, one),
		"tensor too long":   Step(zero, zero, 0, []Codes{codes{1, 2, 3}}, full, one),
		"element twice":     Step(zero, zero, 0, []Codes{pairs{{1, 1}, {1, 1}}}, full, one),
		"element descends":  Step(zero, zero, 0, []Codes{pairs{{1, 1}, {0, 1}}}, full, one),
		"element below 0":   Step(zero, zero, 0, []Codes{pairs{{-1, 1}}}, full, one),
		"element past last": Step(zero, zero, 0, []Codes{pairs{{2, 1}}}, full, one),
	} {
		if !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if zero[0] != 0 || zero[1] != 0 {
		t.Errorf("a refused step wrote %v", zero)
	}
}

func BenchmarkStep(b *testing.B) {
	const elements = 1 << 16
	rng := rand.New(rand.NewPCG(9, 9))
	base := make([]float32, elements)
	var deltas []Codes
	var weights []uint32
	for range 16 {
		c := make(codes, elements)
		for i := range c {
			c[i] = rng.Int32N(1 << 10)
		}
		deltas, weights = append(deltas, c), append(weights, Mass/16)
	}
	b.SetBytes(16 * elements * 4)
	for b.Loop() {
		if err := Step(base, base, 0, deltas, weights, protocol.Rational{Num: 1, Den: 1}); err != nil {
			b.Fatal(err)
		}
	}
}
