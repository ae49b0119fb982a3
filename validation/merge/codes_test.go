package merge_test

import (
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/validation/merge"
)

// TestDeltaIsCodes merges decoded deltas: the two packages meet only here and in the composition roots.
func TestDeltaIsCodes(t *testing.T) {
	if merge.MaxUnit != delta.MaxUnit {
		t.Fatalf("a delta holds up to %d units, the merge takes %d", delta.MaxUnit, merge.MaxUnit)
	}
	want := delta.Expect{
		Base:    protocol.LinkTo(protocol.DagPB, []byte("checkpoint")),
		Group:   "go",
		Tensors: []delta.Tensor{{Name: "a", Shape: []uint64{1}}, {Name: "b", Shape: []uint64{2, 2}}},
	}
	decoded := func(values ...float32) merge.Codes {
		units := [][]int32{{0}, make([]int32, 4)}
		if err := delta.Quantize(units[1], values); err != nil {
			t.Fatal(err)
		}
		d, err := delta.New(want, units)
		if err != nil {
			t.Fatal(err)
		}
		b, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if d, err = delta.Decode(b, want); err != nil {
			t.Fatal(err)
		}
		return d
	}
	deltas := []merge.Codes{decoded(1, 0, -0.5, 2), decoded(0, 0, 0.5, -2)}
	got := make([]float32, 4)
	err := merge.Step(got, []float32{10, 20, 30, 40}, 1, deltas, []uint32{merge.Mass / 4 * 3, merge.Mass / 4}, protocol.Rational{Num: 1, Den: 2})
	if err != nil {
		t.Fatal(err)
	}
	if want := []float32{10.375, 20, 29.875, 40.5}; !slices.Equal(got, want) {
		t.Errorf("merged %v, want %v", got, want)
	}
}
