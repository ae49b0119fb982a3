package model_test

import (
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

// packed is float32 in base64.
type packed []float32

func (p *packed) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return err
	}
	*p = make(packed, len(raw)/4)
	_, err = binary.Decode(raw, binary.LittleEndian, *p)
	return err
}

// familyVector is a file written by testdata/make_families.py.
type familyVector struct {
	Config          json.RawMessage
	Seq             int
	Tokens, Targets []int32
	Logits          packed
	Losses          []float64
	Grads           map[string]packed
}

// madeUp fills a tensor from its name, as make_families.py does.
func madeUp(s model.Spec, dst []float32) error {
	state := uint64(0xcbf29ce484222325)
	for _, c := range []byte(s.Name) {
		state = (state ^ uint64(c)) * 0x100000001b3
	}
	for i := range dst {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		dst[i] = float32(int32((z^z>>31)>>40)-1<<23) / (1 << 23)
		switch {
		case strings.HasSuffix(s.Name, "norm.weight"):
			dst[i] = 1 + dst[i]/8
		case len(s.Shape) > 1 && !strings.Contains(s.Name, "embed"):
			dst[i] /= 2
		}
	}
	return nil
}

// TestFamilies compares logits, losses and the gradient of every tensor of every family with transformers, and the
// gradients of a group alone with those of everything.
func TestFamilies(t *testing.T) {
	const tolerance = 1e-5
	for _, name := range []string{"olmoe", "mixtral", "qwen2_moe", "qwen3_moe"} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Open("testdata/family_" + name + ".json.gz")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			z, err := gzip.NewReader(f)
			if err != nil {
				t.Fatal(err)
			}
			var g familyVector
			if err := json.NewDecoder(z).Decode(&g); err != nil {
				t.Fatal(err)
			}
			c, err := model.ParseConfig(g.Config)
			if err != nil {
				t.Fatal(err)
			}
			if c.Family.String() != name {
				t.Errorf("family %s", c.Family)
			}
			b, err := cpu.New(cpu.Options{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			m, err := model.New(b, c, madeUp)
			if err != nil {
				t.Fatal(err)
			}
			all := m.TrainAll()
			if len(all.Params()) != len(g.Grads) {
				t.Errorf("%d tensors, transformers has %d", len(all.Params()), len(g.Grads))
			}
			p := m.NewPass(len(g.Tokens)/g.Seq, g.Seq, all)
			if d := relative(p.Logits(g.Tokens), g.Logits); !(d <= tolerance) {
				t.Errorf("logits differ by %g", d)
			}
			losses := make([]float64, len(g.Targets))
			p.Step(losses, g.Tokens, g.Targets, 1/float32(len(g.Targets)), 0)
			for i, l := range losses {
				if !(math.Abs(l-g.Losses[i]) <= tolerance*math.Max(1, g.Losses[i])) {
					t.Fatalf("loss %d is %v, transformers says %v", i, l, g.Losses[i])
				}
			}
			grads := map[string][]float32{}
			for _, q := range all.Params() {
				v := make([]float32, q.Grad.Len())
				b.Read(v, q.Grad)
				grads[q.Name] = v
				if d := relative(v, g.Grads[q.Name]); !(d <= 2*tolerance) {
					t.Errorf("gradient of %s differs by %g", q.Name, d)
				}
			}

			// The hub frozen: the same bits for what is trained, recomputed or not.
			frozen, err := model.NewFrozen(b, c, madeUp, []model.ExpertRef{{Layer: 0, Index: 1}, {Layer: 1, Index: 0}})
			if err != nil {
				t.Fatal(err)
			}
			for _, recompute := range []bool{false, true} {
				part := mustGroup(t, frozen, []model.ExpertRef{{Layer: 0, Index: 1}, {Layer: 1, Index: 0}})
				p := frozen.NewPassOf(model.Layout{Sequences: len(g.Tokens) / g.Seq, Seq: g.Seq, Recompute: recompute}, part)
				p.Step(losses, g.Tokens, g.Targets, 1/float32(len(g.Targets)), 0)
				for _, q := range part.Params() {
					v := make([]float32, q.Grad.Len())
					b.Read(v, q.Grad)
					tensor, row, isRow := strings.Cut(q.Name, "#")
					want := grads[tensor]
					if isRow {
						at := int(row[0]-'0') * c.Dim
						want = want[at : at+c.Dim]
					}
					if i := differ(v, want); i >= 0 {
						t.Errorf("gradient of %s alone differs at %d", q.Name, i)
					}
				}
			}
		})
	}
}
