package cuda_test

import (
	"context"
	"errors"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/cudatest"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

var hostModel = model.Config{Vocab: 50, Dim: 16, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 8, Experts: 3, TopK: 2, Width: 8, Positions: 8,
	RopeTheta: 10000, NormEps: 1e-5}

// trainOn trains a step with all frozen experts in host memory, and evaluates. It keeps nothing of what it made.
func trainOn(b *cuda.Backend, c model.Config) error {
	refs := []model.ExpertRef{{Layer: 0, Index: 1}, {Layer: 1, Index: 2}}
	m, err := model.NewFrozen(b, c, constant, refs)
	if err != nil {
		return err
	}
	g, err := m.TrainGroup(refs)
	if err != nil {
		return err
	}
	o, err := optim.New(b, optim.Defaults(), g.Params())
	if err != nil {
		return err
	}
	p := training.Plan{Steps: 1, Batch: 2, Seq: 8, Schedule: optim.Schedule{Peak: 1e-3}}
	j, err := training.NewJob(m, g, o, p, zeros(p.Seq), nil)
	if err != nil {
		return err
	}
	if err := j.Run(context.Background(), nil); err != nil {
		return err
	}
	_, err = training.Evaluator{Seq: 8, Workers: 2}.Losses(context.Background(), m, [][]int32{make([]int32, 9), make([]int32, 9)})
	return err
}

var hostInfo = cuda.Info{Name: "fake", Major: 8, SMs: 4, SharedPerSM: 164 << 10, SharedPerCTA: 163 << 10, Memory: 1 << 30, DriverVersion: 12080}

// TestFailures fails every call to the driver in turn, in every way it can fail. What comes back says which it was; nothing
// panics or is used after it was freed; a lack of memory leaves a backend that works.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		what    error
		methods []string
	}{
		{cuda.ErrOutOfMemory, []string{"Alloc", "AllocHost"}},
		{cuda.ErrLaunch, []string{"Launch", "Load"}},
		{cuda.ErrDeviceLost, []string{"ToDevice", "ToHost", "Sync", "NewStream", "NewEvent", "Record", "WaitEvent"}},
	} {
		for _, mode := range []cuda.Mode{cuda.Exact, cuda.Fast} {
			t.Run(c.what.Error()+" "+mode.String(), func(t *testing.T) {
				n := cudatest.Sweep(t, c.what, c.methods, func(t *testing.T, o cudatest.Options) {
					o.Info, o.OnLaunch = hostInfo, finite
					d := cudatest.New(o)
					b, err := cuda.New(d, cuda.Options{Mode: mode, Resident: 1})
					if err != nil {
						t.Fatal(err)
					}
					err = trainOn(b, hostModel)
					if err != nil && !errors.Is(err, c.what) {
						t.Errorf("the error is %v", err)
					}
					switch {
					case errors.Is(c.what, cuda.ErrOutOfMemory):
						if again := trainOn(b, hostModel); again != nil && (err != nil || !errors.Is(again, c.what)) {
							t.Errorf("after a lack of memory: %v", again)
						}
					case err != nil:
						if again := b.Sync(); !errors.Is(again, c.what) {
							t.Errorf("the failure was %v, and then %v", err, again)
						}
					}
					if err := b.Close(); err != nil && !errors.Is(err, c.what) {
						t.Error(err)
					}
					if !errors.Is(c.what, cuda.ErrOutOfMemory) && err != nil {
						return // a device that failed takes nothing back
					}
					if err := d.Close(); err != nil {
						t.Error(err)
					}
				})
				if n < 5 {
					t.Errorf("only %d calls to fail", n)
				}
			})
		}
	}
}

// TestSmallerBatches: a batch that does not fit goes through the model in parts.
func TestSmallerBatches(t *testing.T) {
	p := training.Plan{Steps: 2, Batch: 8, Seq: 256, Schedule: optim.Schedule{Peak: 1e-3}}
	refs := group(planned, 1)
	all, micro := use(t, cuda.Options{Mode: cuda.Fast}, planned, refs, p, true)
	if micro != p.Batch {
		t.Fatalf("micro-batches of %d with all memory there is", micro)
	}
	for _, share := range []int64{80, 60, 40} {
		limit := all * share / 100
		used, micro := use(t, cuda.Options{Mode: cuda.Fast, Memory: limit}, planned, refs, p, true)
		if micro >= p.Batch || used > limit {
			t.Errorf("in %d KiB: micro-batches of %d, %d KiB used", limit>>10, micro, used>>10)
		}
	}
}
