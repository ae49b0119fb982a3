package training_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
)

// olmoe is OLMoE-1B-7B with fewer layers.
func olmoe(layers, trained int) (model.Config, []model.ExpertRef) {
	c := model.Config{Vocab: 50304, Dim: 2048, Layers: layers, Heads: 16, KVHeads: 16, HeadDim: 128, Experts: 64, TopK: 8, Width: 1024,
		Positions: 4096, RopeTheta: 10000, NormEps: 1e-5}
	var group []model.ExpertRef
	for l := range layers {
		for e := range trained {
			group = append(group, model.ExpertRef{Layer: l, Index: e})
		}
	}
	return c, group
}

// The less memory there is, the more is given up, in the order that costs least; every plan fits what it was given.
func TestFitGivesUpInOrder(t *testing.T) {
	c, group := olmoe(4, 8)
	const batch = 4
	type way struct {
		micro             int
		recompute, stream bool
	}
	var ways []way
	for limit := int64(16 << 30); ; limit -= 128 << 20 {
		f, err := training.Fit(c, group, batch, 2048, training.FastKinds(), limit)
		if err != nil {
			if !errors.Is(err, backend.ErrOutOfMemory) {
				t.Fatal(err)
			}
			break
		}
		if total := f.Memory.Total(); total > limit {
			t.Fatalf("%d bytes planned of %d", total, limit)
		}
		if w := (way{f.Micro, f.Recompute, f.Memory.Host > 0}); len(ways) == 0 || ways[len(ways)-1] != w {
			ways = append(ways, w)
		}
		all := training.Estimate(c, group, model.Layout{Sequences: f.Micro, Seq: 2048}, training.FastKinds()).Experts
		if f.Resident != f.Memory.Experts || f.Memory.Host > 0 && (f.Resident+f.Memory.Host != all || f.Memory.Stream == 0) {
			t.Fatalf("%d of %d bytes of experts stay: %+v", f.Resident, all, f.Memory)
		}
	}
	want := []way{{4, false, false}, {2, false, false}, {1, false, false}, {1, true, false}}
	if len(ways) < 5 {
		t.Fatalf("ways %v", ways)
	}
	for i, w := range want {
		if ways[i] != w {
			t.Errorf("way %d is %v, want %v: %v", i, ways[i], w, ways)
		}
	}
	for _, w := range ways[4:] {
		if !w.stream {
			t.Errorf("%v after experts were streamed: %v", w, ways)
		}
	}
}

// Exact training keeps the batch in one piece as long as it can.
func TestFitKeepsExactBits(t *testing.T) {
	c, group := olmoe(4, 8)
	split := false
	for limit := int64(30 << 30); ; limit -= 256 << 20 {
		f, err := training.Fit(c, group, 4, 2048, training.ExactKinds(), limit)
		if err != nil {
			break
		}
		if f.Micro == 4 && split {
			t.Fatalf("the batch is whole with %d MiB, and was not with more", limit>>20)
		}
		m := training.Estimate(c, group, model.Layout{Sequences: 4, Seq: 2048, Recompute: true}, training.ExactKinds())
		least := m.Total() - m.Experts/2 // two of four layers have room
		if split = f.Micro < 4; split && least+least/32 <= limit {
			t.Fatalf("the batch was split with %d MiB, where it fits in %d with recomputation and streaming", limit>>20, least>>20)
		}
	}
	if !split {
		t.Error("the batch was never split")
	}
}

// What is said to fit fits.
func TestFitSaysWhatWould(t *testing.T) {
	c, group := olmoe(16, 8)
	_, err := training.Fit(c, group, 4, 4096, training.FastKinds(), 12<<30)
	if !errors.Is(err, backend.ErrOutOfMemory) {
		t.Fatal(err)
	}
	_, ways, _ := strings.Cut(err.Error(), "what would fit: ")
	var tokens, experts int
	for _, w := range strings.Split(ways, ", or ") {
		_, _ = fmt.Sscanf(w, "sequences of %d tokens", &tokens)
		_, _ = fmt.Sscanf(w, "a group of %d experts", &experts)
	}
	if experts == 0 || !strings.Contains(ways, "a card with more memory") {
		t.Fatalf("%q names no group that would fit", err)
	}
	if _, err := training.Fit(c, group[:experts], 4, 4096, training.FastKinds(), 12<<30); err != nil {
		t.Error(err)
	}
	if tokens != 0 {
		if _, err := training.Fit(c, group, 4, tokens, training.FastKinds(), 12<<30); err != nil {
			t.Error(err)
		}
	}
	// The least that it names is enough, and less is not.
	var least int64
	if _, err := fmt.Sscanf(err.Error()[strings.Index(err.Error(), "at least"):], "at least %d MiB", &least); err != nil {
		t.Fatal(err)
	}
	if _, err := training.Fit(c, group, 4, 4096, training.FastKinds(), least<<20); err != nil {
		t.Error(err)
	}
	if _, err := training.Fit(c, group, 4, 4096, training.FastKinds(), (least-1)<<20); err == nil {
		t.Errorf("trains in less than the %d MiB it asks for", least)
	}
}
