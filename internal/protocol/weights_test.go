package protocol

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestScaleU16(t *testing.T) {
	weights := func(values ...uint64) (list []MinerWeight) {
		for i, v := range values {
			list = append(list, MinerWeight{Miner: ID{byte(i)}, Group: "go", Status: StatusOK, Weight: v})
		}
		return list
	}
	for _, c := range []struct {
		in   []uint64
		want []uint16 // 0: left out
	}{
		{nil, nil},
		{[]uint64{0, 0}, []uint16{0, 0}},
		{[]uint64{1}, []uint16{65535}},
		{[]uint64{WeightTotal}, []uint16{65535}},
		{[]uint64{WeightTotal / 2, WeightTotal / 2}, []uint16{65535, 65535}},
		{[]uint64{1, 2}, []uint16{32768, 65535}},           // 32767.5 rounds up
		{[]uint64{WeightTotal - 1, 1}, []uint16{65535, 0}}, // 0.00002
		{[]uint64{131070, 1, 2}, []uint16{65535, 1, 1}},    // 0.5 and 1
		{[]uint64{131071, 1, 3}, []uint16{65535, 0, 1}},    // just below 0.5
		{[]uint64{3, 1, 2}, []uint16{65535, 21845, 43690}}, // exact thirds
		{[]uint64{math.MaxUint64, 1}, []uint16{65535, 0}},  // past what is valid, still exact
		{[]uint64{math.MaxUint64 - 1, 1 << 63}, []uint16{65535, 32768}},
	} {
		in := weights(c.in...)
		var want []MinerWeight16
		for i, w := range c.want {
			if w > 0 {
				want = append(want, MinerWeight16{ID{byte(i)}, w})
			}
		}
		for range 4 {
			if got := ScaleU16(in); !slices.Equal(got, want) {
				t.Errorf("%d: %v, want %v", c.in, got, want)
			}
			slices.Reverse(in)
		}
	}
	// A miner listed twice has one weight.
	twice := append(weights(1, 4), MinerWeight{Miner: ID{0}, Group: "asm", Weight: 1})
	if got := ScaleU16(twice); !slices.Equal(got, []MinerWeight16{{ID{0}, 32768}, {ID{1}, 65535}}) {
		t.Errorf("listed twice: %v", got)
	}

	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var values []uint64
		for range 1 + rng.IntN(20) {
			values = append(values, rng.Uint64N(1<<(1+rng.UintN(33))))
		}
		largest := slices.Max(values)
		got := make(map[ID]uint16)
		for _, w := range ScaleU16(weights(values...)) {
			got[w.Miner] = w.Weight
		}
		for i, v := range values {
			if largest == 0 {
				break
			}
			// ⌊(2·65535·v + largest) / (2·largest)⌋
			exact := new(big.Int).SetUint64(v)
			exact.Mul(exact, big.NewInt(2*65535)).Add(exact, new(big.Int).SetUint64(largest))
			exact.Div(exact, new(big.Int).SetUint64(2*largest))
			if uint64(got[ID{byte(i)}]) != exact.Uint64() {
				t.Fatalf("%d of %d: %d, want %d", v, largest, got[ID{byte(i)}], exact)
			}
		}
	}
}
