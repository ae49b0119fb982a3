package local

import (
	"errors"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/model"
)

// TestFits: a model larger than memory is refused, with what it needs, what there is and what to do.
func TestFits(t *testing.T) {
	c := model.Config{Family: model.OLMoE, Vocab: 50304, Dim: 2048, Layers: 16, Heads: 16, KVHeads: 16, HeadDim: 128, Experts: 64, TopK: 8,
		Width: 1024, Positions: 4096, RopeTheta: 1e4, NormEps: 1e-5}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fits(c, 64<<30), fits(c, 0)); err != nil {
		t.Error(err)
	}
	err := fits(c, 16<<30)
	if !errors.Is(err, ErrMemory) {
		t.Fatalf("a model of seven billion weights in 16 GiB: %v", err)
	}
	for _, want := range []string{"6919 million weights", "25.8 GiB", "16.0 GiB here", "genesis import with --groups"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
	if got := meminfo("MemFree: 1 kB\nMemTotal:       24684096 kB\n"); got != 24684096<<10 {
		t.Errorf("meminfo gives %d", got)
	}
	for _, bad := range []string{"", "MemTotal: x kB", "MemTotal: 5 MB", "MemTotal:"} {
		if got := meminfo(bad); got != 0 {
			t.Errorf("meminfo of %q gives %d", bad, got)
		}
	}
}
