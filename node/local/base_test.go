package local_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

func TestEmbeddedRecipe(t *testing.T) {
	r, err := local.EmbeddedRecipe()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("base/base.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	if r.Digest != hex.EncodeToString(sum[:]) {
		t.Errorf("the recipe is of weights %s, these are %x", r.Digest, sum)
	}
	if c, err := cid.Decode(r.Dataset); err != nil || c.Prefix().Codec != cid.DagCBOR {
		t.Errorf("dataset %q: %v", r.Dataset, err)
	}
	if !strings.HasPrefix(r.Go, "go1.") || !strings.HasPrefix(r.Command, "bzd genesis train") {
		t.Errorf("made by %q with %q", r.Command, r.Go)
	}
	// It was made with the defaults: what a person who runs the command gets.
	d := local.DefaultRecipe()
	want, err := model.ParseConfig(d.Config)
	if err != nil {
		t.Fatal(err)
	}
	got, err := model.ParseConfig(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	d.Command, d.Go, d.Dataset, d.Digest, d.Config = r.Command, r.Go, r.Dataset, r.Digest, r.Config
	x, _ := json.Marshal(d)
	y, _ := json.Marshal(r)
	if !bytes.Equal(x, y) || got != want {
		t.Errorf("recipe %s of %+v, the defaults are %s of %+v", y, got, x, want)
	}
	if tokens := r.Steps * r.Batch * r.Seq; tokens < 1_900_000 || tokens > 2_100_000 {
		t.Errorf("%d tokens, not about two million", tokens)
	}
	f, err := safetensors.New("base", bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range f.Tensors() {
		if x.DType != safetensors.BF16 {
			t.Errorf("%s is %v", x.Name, x.DType)
		}
	}
	if n := len(f.Tensors()); n != len(got.Specs()) {
		t.Errorf("%d tensors, the configuration has %d", n, len(got.Specs()))
	}
}

func TestSameBase(t *testing.T) {
	raw, err := os.ReadFile("base/base.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	if same, err := local.SameBase(raw); !same || err != nil {
		t.Errorf("the embedded weights are not themselves: %v", err)
	}
	raw[len(raw)-1] ^= 1
	for _, other := range [][]byte{raw, raw[:len(raw)-1], nil} {
		if same, err := local.SameBase(other); same || err != nil {
			t.Errorf("%d other bytes: %v, %v", len(other), same, err)
		}
	}
}

// TestTrainBaseResumes: interrupted and continued, a base is the same, and its state is that of one recipe on one text.
func TestTrainBaseResumes(t *testing.T) {
	b, canary := newBackend(t, cpu.Options{Threads: 1}), text(t, prose, 60, sentence)
	_, want := tiny(t, b, canary)
	state := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := local.TrainBase(ctx, b, tinyRecipe(), canary, state, func(p training.Progress) {
		if p.Step == 7 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for name, change := range map[string]func(r *local.Recipe){
		"steps": func(r *local.Recipe) { r.Steps++ },
		"seed":  func(r *local.Recipe) { r.Seed = "another" },
		"rate":  func(r *local.Recipe) { r.LearningRate *= 2 },
	} {
		r := tinyRecipe()
		change(&r)
		if _, err := local.TrainBase(t.Context(), b, r, canary, state, nil); !errors.Is(err, training.ErrState) {
			t.Errorf("another %s: error %v", name, err)
		}
	}
	if _, err := local.TrainBase(t.Context(), b, tinyRecipe(), text(t, prose, 61, sentence), state, nil); !errors.Is(err, training.ErrState) {
		t.Errorf("another text: error %v", err)
	}
	r := tinyRecipe()
	r.Command, r.Go, r.Digest = "by hand", "go9", "unknown" // say nothing about the run
	got, err := local.TrainBase(t.Context(), b, r, canary, state, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("an interrupted run gives another base")
	}
}

func TestTrainBaseLearns(t *testing.T) {
	b := newBackend(t, cpu.Options{Threads: 1})
	var first, last float64
	r := tinyRecipe()
	if _, err := local.TrainBase(t.Context(), b, r, text(t, prose, 60, sentence), "", func(p training.Progress) {
		if p.Step == 1 {
			first = p.Loss
		}
		last = p.Loss
	}); err != nil {
		t.Fatal(err)
	}
	if first < 5.4 || first > 5.8 { // ln 256 = 5.55: a new model knows nothing
		t.Errorf("the first loss is %v", first)
	}
	if last > 4 {
		t.Errorf("the last loss is %v", last)
	}
}

// TestWriteBase: what is written is what an embedded base is read from.
func TestWriteBase(t *testing.T) {
	canary := text(t, prose, 60, sentence)
	var weights, recipe bytes.Buffer
	if err := local.WriteBase(&weights, &recipe, tinyRecipe(), canary, "go1.99", []byte("the weights")); err != nil {
		t.Fatal(err)
	}
	var r local.Recipe
	if err := json.Unmarshal(recipe.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("the weights"))
	if weights.String() != "the weights" || r.Digest != hex.EncodeToString(sum[:]) || r.Dataset != canary.CID().String() || r.Go != "go1.99" || r.Steps != 16 {
		t.Errorf("weights %q, recipe %+v", weights.String(), r)
	}
	if _, err := model.ParseConfig(r.Config); err != nil {
		t.Error(err)
	}
}
