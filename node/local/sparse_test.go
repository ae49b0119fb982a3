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

// TestTrainSparse: a delta sends as many values as the genesis says and no more, and what it could not say is kept: with the
// second pass or without, sent and kept sum to where the first pass led.
func TestTrainSparse(t *testing.T) {
	w := sparse(t, tinyWorld(t), 410)
	dense := tinyWorld(t)
	o := brief(ledger, "x")
	whole := dense.train(t, o)
	for _, refine := range []float64{0, 2} {
		o.Refine = refine
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
				// bfloat16 has 8 bits.
				if diff := target - delta.Value(want[j]); diff > 1e-6+abs(target)/256 || -diff > 1e-6+abs(target)/256 {
					t.Fatalf("refine %v: %s, value %d: %v sent, %v kept; without a codec %v", refine, e.Name, j,
						delta.Value(got[j]), f.Rest[i][j], delta.Value(want[j]))
				}
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

// TestTrainSparseResumes: interrupted in either pass, it goes on there and gives the same delta and memory.
func TestTrainSparseResumes(t *testing.T) {
	w := sparse(t, tinyWorld(t), 410)
	_, o := sparseTrain(t, w, w.p, brief(maths, "x"))
	options := brief(maths, "x")
	options.Memory = o
	want, wantMemory := sparseTrain(t, w, w.p, options)
	options.StatePath = filepath.Join(t.TempDir(), "state")
	for _, step := range []int{7, briefSteps, briefSteps + 3, 2*briefSteps - 1} {
		interrupt(t, w, options, step)
	}
	var steps []int
	got, memory, err := local.Train(t.Context(), w.n, w.p, options, func(p training.Progress) {
		steps = append(steps, p.Step)
		if p.Steps != 2*briefSteps || p.Tokens != int64(p.Step)*int64(options.Batch)*48 {
			t.Errorf("step %d of %d after %d tokens", p.Step, p.Steps, p.Tokens)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(steps, []int{2 * briefSteps}) || !sameDelta(t, got, want) || !reflect.DeepEqual(memory, wantMemory) {
		t.Errorf("the last run made steps %v; same delta: %v", steps, sameDelta(t, got, want))
	}
	if err := local.RemoveState(options.StatePath); err != nil {
		t.Fatal(err)
	}
	if left := names(t, filepath.Dir(options.StatePath)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	// The memory is part of what the run is.
	interrupt(t, w, options, 3)
	options.Memory = local.Memory{Moments: options.Memory.Moments}
	if _, _, err := local.Train(t.Context(), w.n, w.p, options, nil); !errors.Is(err, training.ErrState) {
		t.Errorf("a run with other feedback goes on: %v", err)
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
const goldenSparse = `delta 311 727241b4b619cdd67058215e838d7c6613b5b589ad5e0826537e766d3b8ec20c
rest 2dbd49d6772cfe9eb28887ca1efe5e9aa5f7ffbc24c3ecdace66d3cd78159f7d
delta 310 1512169282ab5ac26d8f7ddd08651e7ff776631f32aa3c70fb65a7d9bd0b7388
rest 3340ee5addaed372b1674e83b5c05a5a861fce40dcff03f996a2c4e8af2c27be
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
			o.Cycle, o.Memory, o.Lead, o.Refine = cycle, memory, 0.5, 2
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
