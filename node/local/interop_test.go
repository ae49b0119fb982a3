package local_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
)

// TestInterop compares models with what transformers says of them, in the files that bench/families.py wrote to the
// directory BZD_INTEROP: token ids of a text and logits. It is part of make interop.
func TestInterop(t *testing.T) {
	dir := os.Getenv("BZD_INTEROP")
	if dir == "" {
		t.Skip("BZD_INTEROP names no directory; make interop does")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("nothing in %s: %v", dir, err)
	}
	b := newBackend(t, cpu.Options{})
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				Model  string // its directory
				Text   string
				IDs    []int32
				Tokens []int32
				Logits []float64 // of every token
			}
			if err := json.Unmarshal(raw, &want); err != nil {
				t.Fatal(err)
			}
			p, err := local.OpenModel(b, want.Model)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Tokens.Encode([]byte(want.Text)); !slices.Equal(got, want.IDs) {
				t.Errorf("%q is %v, transformers says %v", want.Text, got, want.IDs)
			}
			got := p.Model.NewPass(1, len(want.Tokens), nil).Logits(want.Tokens)
			if err := b.Sync(); err != nil {
				t.Fatal(err)
			}
			worst, size := 0.0, 0.0
			for i, w := range want.Logits {
				worst, size = math.Max(worst, math.Abs(float64(got[i])-w)), math.Max(size, math.Abs(w))
			}
			if len(got) != len(want.Logits) || !(worst <= 1e-5*size) {
				t.Errorf("%d logits, transformers has %d; they differ by %g of the largest", len(got), len(want.Logits), worst/size)
			}
			t.Logf("%s, %d logits: they differ by %.2g of the largest", p.Model.Family, len(got), worst/size)
		})
	}
}
