package model_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

// golden is a file written by testdata/make_vectors.py.
type golden struct {
	Config          json.RawMessage
	Seq             int
	Tokens, Targets []int32
	Logits          []float32
	Losses          []float64
	Weights, Grads  map[string][]float32
}

func loadGolden(t *testing.T, name string) golden {
	t.Helper()
	f, err := os.Open("testdata/golden_" + name + ".json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.NewDecoder(z).Decode(&g); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g golden) model(t *testing.T, o cpu.Options) *model.Model {
	t.Helper()
	c, err := model.ParseConfig(g.Config)
	if err != nil {
		t.Fatal(err)
	}
	b, err := cpu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(b, c, func(s model.Spec, dst []float32) error {
		v, ok := g.Weights[s.Name]
		if !ok || len(v) != len(dst) {
			return fmt.Errorf("%d values of %v, vector file has %d", len(dst), s.Shape, len(v))
		}
		copy(dst, v)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// relative returns the largest difference relative to the largest magnitude of want.
func relative(got, want []float32) float64 {
	var diff, size float64
	for i := range want {
		diff = math.Max(diff, math.Abs(float64(got[i])-float64(want[i])))
		size = math.Max(size, math.Abs(float64(want[i])))
	}
	if size == 0 {
		return diff
	}
	return diff / size
}

// TestGolden compares logits, losses and the gradient of every tensor with transformers.
func TestGolden(t *testing.T) {
	const tolerance = 1e-5
	for _, name := range []string{"even", "odd"} {
		for _, isa := range cpu.Available() {
			t.Run(name+"/"+string(isa), func(t *testing.T) {
				g := loadGolden(t, name)
				m := g.model(t, cpu.Options{ISA: isa, Threads: 2})
				all := m.TrainAll()
				p := m.NewPass(len(g.Tokens)/g.Seq, g.Seq, all)
				if d := relative(p.Logits(g.Tokens), g.Logits); d > tolerance {
					t.Errorf("logits differ by %g", d)
				}
				losses := make([]float64, len(g.Targets))
				p.Step(losses, g.Tokens, g.Targets, 1/float32(len(g.Targets)), 0)
				for i, l := range losses {
					if math.Abs(l-g.Losses[i]) > tolerance*math.Max(1, g.Losses[i]) {
						t.Fatalf("loss %d is %v, transformers says %v", i, l, g.Losses[i])
					}
				}
				for _, q := range all.Params() {
					v := make([]float32, q.Grad.Len())
					m.Backend().Read(v, q.Grad)
					if d := relative(v, g.Grads[q.Name]); d > tolerance {
						t.Errorf("gradient of %s differs by %g", q.Name, d)
					}
				}
			})
		}
	}
}
