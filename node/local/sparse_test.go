package local_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/delta"
)

// sparse is a world whose deltas send k of 4096 values.
func sparse(t testing.TB, w *world, k uint32) *world {
	t.Helper()
	g := w.n.Genesis
	g.Params.TopK = k
	n, err := local.NewNetwork(g, w.sets)
	if err != nil {
		t.Fatal(err)
	}
	other := *w
	other.n = n
	return &other
}

func sparseTrain(t testing.TB, w *world, p *local.Phi, o local.TrainOptions) (*delta.Delta, local.Memory) {
	t.Helper()
	d, memory, err := local.Train(t.Context(), w.n, p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d, memory
}

// TestTrainSparse: a delta sends as many values as the genesis says and no more, and what it could not say is kept: sent and
// kept sum to what a dense delta says.
func TestTrainSparse(t *testing.T) {
	w := sparse(t, tinyWorld(t), 410)
	o := brief(ledger, "x")
	whole := tinyWorld(t).train(t, o)
	d, memory := sparseTrain(t, w, w.p, o)
	f := memory.Feedback
	if h := d.Header(); h.Codec != delta.CodecTopK || f == nil || f.Base != w.p.Link || f.Group != ledger || memory.Moments == nil {
		t.Fatalf("delta of codec %s, feedback %+v", h.Codec, f)
	}
	for i, e := range d.Header().Tensors {
		n, _ := e.Elements()
		if sent := len(f.Sent[i].At); sent != delta.TopKCount(int(n), 410) {
			t.Errorf("%s: %d of %d values are sent", e.Name, sent, n)
		}
		want, got := whole.Units(i), d.Units(i)
		for j := range want {
			target := delta.Value(got[j]) + float64(f.Rest[i][j])
			if diff := abs(target - delta.Value(want[j])); diff > 1e-6+abs(target)/256 { // bfloat16 has 8 bits
				t.Fatalf("%s, value %d: %v sent, %v kept; without a codec %v", e.Name, j, delta.Value(got[j]), f.Rest[i][j], delta.Value(want[j]))
			}
		}
	}
}

func abs(v float64) float64 { return max(v, -v) }

// TestTrainFeedback: what was kept changes the next delta if the checkpoint follows, and nothing otherwise.
func TestTrainFeedback(t *testing.T) {
	w := sparse(t, tinyWorld(t), 410)
	d, memory := sparseTrain(t, w, w.p, brief(ledger, "x"))
	next, err := w.n.Advance(w.p, []local.Accepted{accepted(1, d, 1)}, protocol.Rational{Num: 1, Den: 2}, filepath.Join(t.TempDir(), "next"), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	o := brief(ledger, "x")
	o.Cycle = 1
	o.Memory.Moments = memory.Moments
	afresh, _ := sparseTrain(t, w, next, o)
	o.Memory = memory
	with, _ := sparseTrain(t, w, next, o)
	if sameDelta(t, afresh, with) {
		t.Error("what earlier deltas could not say is lost")
	}
	o.Lead = 0
	if behind, _ := sparseTrain(t, w, next, o); sameDelta(t, behind, with) {
		t.Error("it makes no difference where training starts")
	}
	// From a file, as after a restart.
	o = brief(ledger, "x")
	o.Cycle, o.Memory = 1, memory
	path := filepath.Join(t.TempDir(), "feedback")
	if err := memory.Feedback.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	want, err := w.n.Expect(next, ledger)
	if err != nil {
		t.Fatal(err)
	}
	if o.Memory.Feedback, err = delta.ReadFeedback(path, want.Group, want.Tensors); err != nil {
		t.Fatal(err)
	}
	if again, _ := sparseTrain(t, w, next, o); !sameDelta(t, again, with) {
		t.Error("a restart changes the delta")
	}
	// A miner that missed a cycle, or served another group.
	stranger := *next
	other := protocol.LinkTo(protocol.DagPB, []byte("other"))
	stranger.State.Previous = &other
	if late, _ := sparseTrain(t, w, &stranger, o); !slices.Equal(late.Payload(), afresh.Payload()) {
		t.Error("feedback of an earlier checkpoint is used")
	}
	o.Group, o.Memory.Moments = maths, nil
	withOther, _ := sparseTrain(t, w, next, o)
	o.Memory = local.Memory{}
	if without, _ := sparseTrain(t, w, next, o); !sameDelta(t, withOther, without) {
		t.Error("feedback of another group is used")
	}
}

// TestTrainSparseResumes: interrupted, it goes on and gives the same delta and memory; what is remembered is part of what the
// run is.
func TestTrainSparseResumes(t *testing.T) {
	w := sparse(t, tinyWorld(t), 410)
	o := brief(maths, "x")
	_, o.Memory = sparseTrain(t, w, w.p, o)
	want, wantMemory := sparseTrain(t, w, w.p, o)
	o.StatePath = filepath.Join(t.TempDir(), "state")
	interrupt(t, w, o, 7)
	other := o
	other.Memory = local.Memory{Moments: o.Memory.Moments}
	if _, _, err := local.Train(t.Context(), w.n, w.p, other, nil); !errors.Is(err, training.ErrState) {
		t.Errorf("a run with other feedback goes on: %v", err)
	}
	if got, memory := sparseTrain(t, w, w.p, o); !sameDelta(t, got, want) || !reflect.DeepEqual(memory, wantMemory) {
		t.Error("an interrupted run gives another delta or another memory")
	}
}

// TestRehearseSparse: cycles with the default codec learn, with small deltas, and one seed gives the same checkpoints with any
// number of workers.
func TestRehearseSparse(t *testing.T) {
	w := sparse(t, shared(t), protocol.DefaultTopK)
	o := local.RehearseOptions{Cycles: 2, Miners: 1, Seed: "1", Dir: t.TempDir(), Workers: 2, Tokens: 8 * 2 * 48}
	first, _ := rehearse(t, w, o)
	for i, r := range first {
		for _, s := range r.Submissions {
			if s.Bytes == 0 || s.Bytes > 886272/140 { // of dense-bf16; small tensors cost a little more
				t.Errorf("cycle %d: a delta of %d bytes", i, s.Bytes)
			}
		}
	}
	if g := first[1].Groups; g[0].After >= first[0].Groups[0].Before || g[1].After >= first[0].Groups[1].Before {
		t.Errorf("the losses went from %+v to %+v", first[0].Groups, g)
	}
	o.Workers, o.Dir = 1, t.TempDir()
	if again, _ := rehearse(t, w, o); !reflect.DeepEqual(first, again) {
		t.Error("the second time gives other checkpoints")
	}
}

// goldenSparse is a promise as those of golden_test.go: what two cycles of the default codec send and keep.
const goldenSparse = `delta 311 1998ee0fe26e709260aaba6b7ccccb832148420ff2db77a4e251980c8511203e
rest 040ef76ed2bbb17f5fe78bf85dec702280eaf919c0bb7620633c133296050576
delta 312 257fc9dea52f131173e9c1aff6e1e9433ac61cc3a5c0f378630e5d8acc8ca586
rest cc79b38927dfd96e45f175d6f62895487eb8ec8e4bc2873aa6c1b6394526b94b
`

// TestGoldenSparse: choice, second pass, codes and residuals have the same bits on every instruction set.
func TestGoldenSparse(t *testing.T) {
	w := sparse(t, tinyWorld(t), 410)
	variants(t, cpu.Available(), func(t *testing.T, b *cpu.Backend, _ []*data.Dataset, _ int) {
		p, err := local.LoadPhi(b, w.dir)
		if err != nil {
			t.Fatal(err)
		}
		var s strings.Builder
		dir, memory := t.TempDir(), local.Memory{}
		for cycle := range uint64(2) {
			o := brief(ledger, "one")
			o.Cycle, o.Memory, o.Lead = cycle, memory, 0.5
			var d *delta.Delta
			d, memory = sparseTrain(t, w, p, o)
			h := sha256.New()
			for _, rest := range memory.Feedback.Rest {
				if err := binary.Write(h, binary.LittleEndian, rest); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Fprintf(&s, "delta %d %x\nrest %x\n", len(payload(t, d)), sha256.Sum256(payload(t, d)), h.Sum(nil))
			if p, err = w.n.Advance(p, []local.Accepted{accepted(1, d, 1)}, protocol.Rational{Num: 1, Den: 2}, filepath.Join(dir, fmt.Sprint(cycle)), "", nil); err != nil {
				t.Fatal(err)
			}
		}
		same(t, s.String(), goldenSparse)
	})
}
