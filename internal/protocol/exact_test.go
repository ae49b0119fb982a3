package protocol

import (
	"cmp"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

func bigs(values ...uint64) []*big.Int {
	var out []*big.Int
	for _, v := range values {
		out = append(out, new(big.Int).SetUint64(v))
	}
	return out
}

func byIndex(i, j int) bool { return i < j }

func TestApportion(t *testing.T) {
	for _, c := range []struct {
		total       uint64
		parts, want []uint64
	}{
		{10, []uint64{1, 1, 1}, []uint64{4, 3, 3}}, // a tie of remainders goes to the first
		{10, []uint64{5, 3, 2}, []uint64{5, 3, 2}},
		{7, []uint64{1, 2, 4}, []uint64{1, 2, 4}},
		{100, []uint64{2, 3, 2}, []uint64{29, 43, 28}}, // 28.57 42.86 28.57: two units left, largest remainders
		{10, []uint64{0, 1, 0}, []uint64{0, 10, 0}},
		{10, []uint64{0, 0}, []uint64{0, 0}},
		{0, []uint64{1, 2}, []uint64{0, 0}},
		{10, nil, []uint64{}},
		{math.MaxUint64, []uint64{math.MaxUint64, math.MaxUint64}, []uint64{1 << 63, 1<<63 - 1}},
	} {
		if got := Apportion(c.total, bigs(c.parts...), byIndex); !slices.Equal(got, c.want) {
			t.Errorf("%d over %d: %d, want %d", c.total, c.parts, got, c.want)
		}
	}
}

func TestApportionProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		values := make([]uint64, 1+rng.IntN(20))
		for i := range values {
			values[i] = rng.Uint64() >> rng.IntN(64)
		}
		values[rng.IntN(len(values))]++ // at least one positive, save after a wrap
		total := rng.Uint64() >> rng.IntN(64)
		parts := bigs(values...)
		got := Apportion(total, parts, byIndex)
		var sum uint64
		whole := new(big.Int)
		for _, p := range parts {
			whole.Add(whole, p)
		}
		if whole.Sign() == 0 {
			continue
		}
		for i, share := range got {
			sum += share
			floor := new(big.Int).Mul(new(big.Int).SetUint64(total), parts[i])
			if low := floor.Div(floor, whole).Uint64(); share != low && share != low+1 {
				t.Fatalf("share %d of quota %d", share, low)
			}
			if values[i] == 0 && share != 0 {
				t.Fatal("a zero part got a share")
			}
		}
		if sum != total {
			t.Fatalf("shares sum to %d, want %d", sum, total)
		}
	}
}

func TestLowerMedian(t *testing.T) {
	type wv struct {
		w uint64
		v int
	}
	for _, c := range []struct {
		values []wv
		want   int
		ok     bool
	}{
		{[]wv{{1, 3}, {1, 1}, {1, 2}}, 2, true},
		{[]wv{{1, 1}, {1, 2}}, 1, true}, // lower of the two
		{[]wv{{1, 1}, {2, 2}}, 2, true},
		{[]wv{{5, 9}, {0, -100}, {4, 1}}, 9, true},
		{[]wv{{0, 1}}, 0, false},
		{nil, 0, false},
		{[]wv{{math.MaxUint64, 1}, {math.MaxUint64, 2}, {math.MaxUint64, 3}}, 2, true},
	} {
		got, ok := LowerMedian(c.values, func(x wv) uint64 { return x.w }, func(a, b wv) int { return cmp.Compare(a.v, b.v) })
		if ok != c.ok || ok && got.v != c.want {
			t.Errorf("%v: %v %v, want %d %v", c.values, got, ok, c.want, c.ok)
		}
	}
}

func TestAboveZero(t *testing.T) {
	for _, c := range []struct {
		mean int64
		err  uint64
		z    uint32
		want bool
	}{
		{0, 0, 2330, false},
		{1, 0, 2330, true},
		{-1, 0, 2330, false},
		{233, 100, 2330, false}, // exactly on the bound
		{234, 100, 2330, true},
		{math.MaxInt64, math.MaxUint64, 1000, false},
		{math.MaxInt64, math.MaxInt64 - 1, 1000, true},
		{math.MinInt64, math.MaxUint64, math.MaxUint32, false},
	} {
		if got := AboveZero(c.mean, c.err, c.z); got != c.want {
			t.Errorf("%d ± %d at z %d: %v", c.mean, c.err, c.z, got)
		}
	}
}

func TestCeilSqrt(t *testing.T) {
	for x, want := range map[int64]int64{0: 0, 1: 1, 2: 2, 4: 2, 5: 3, 1 << 62: 1 << 31, 1<<62 + 1: 1<<31 + 1} {
		if got := CeilSqrt(big.NewInt(x)).Int64(); got != want {
			t.Errorf("%d: %d, want %d", x, got, want)
		}
	}
}
