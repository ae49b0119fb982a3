//go:build cuda

package cuda_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/backend/backendtest"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/driver"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// onDevice makes a backend of the first card. Without one the test is skipped, unless BZD_NEEDS_GPU is set.
func onDevice(t *testing.T, o cuda.Options) *cuda.Backend {
	t.Helper()
	d, err := driver.Open(0)
	if err != nil {
		if os.Getenv("BZD_NEEDS_GPU") == "" && (errors.Is(err, cuda.ErrNoDriver) || errors.Is(err, cuda.ErrNoDevice)) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := cuda.New(d, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(b.Name())
	return b
}

func TestDeviceFast(t *testing.T) {
	backendtest.RunAll(t, onDevice(t, cuda.Options{Mode: cuda.Fast}), backendtest.Options{Tolerance: bfloat16})
}

// TestDeviceUntried is what a card has to say before the kernels that Options.Untried names are used without it.
func TestDeviceUntried(t *testing.T) {
	o := cuda.Options{Mode: cuda.Fast, Untried: true}
	backendtest.RunAll(t, onDevice(t, o), backendtest.Options{Tolerance: bfloat16})
	for i := range shapes {
		t.Run(fmt.Sprint("model ", i), func(t *testing.T) { trains(t, o, i) })
	}
}

func TestDeviceExact(t *testing.T) {
	backendtest.RunAll(t, onDevice(t, cuda.Options{Mode: cuda.Exact}), backendtest.Options{Exact: true})
}

// shapes are models whose sizes reach every kind of kernel: tiny and odd, and large and even enough for the copy engine.
var shapes = []struct {
	model.Config
	sequences, seq int
}{
	{model.Config{Vocab: 41, Dim: 24, Layers: 3, Heads: 2, KVHeads: 1, HeadDim: 10, Experts: 5, TopK: 2, Width: 19, Positions: 16,
		Normalize: true, RopeTheta: 10000, NormEps: 1e-6}, 3, 16},
	{model.Config{Vocab: 4096, Dim: 256, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 64, Experts: 8, TopK: 2, Width: 256, Positions: 512,
		RopeTheta: 10000, NormEps: 1e-5}, 4, 300},
	{model.Config{Vocab: 1000, Dim: 128, Layers: 2, Heads: 2, KVHeads: 2, HeadDim: 128, Experts: 16, TopK: 4, Width: 192, Positions: 256,
		Normalize: true, Tied: true, RopeTheta: 10000, NormEps: 1e-5}, 5, 256},
}

// TestDeviceTrains trains a group for some steps on the card and on the processor: in exact mode with the same bits. In
// fast mode tokens near a tie go to another expert, so only means and directions are compared.
func TestDeviceTrains(t *testing.T) {
	for _, mode := range []cuda.Mode{cuda.Exact, cuda.Fast} {
		for i := range shapes {
			t.Run(fmt.Sprintf("%v %d", mode, i), func(t *testing.T) { trains(t, cuda.Options{Mode: mode}, i) })
		}
	}
}

func trains(t *testing.T, o cuda.Options, shape int) {
	s := shapes[shape]
	host, err := cpu.New(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := trained(t, host, s.Config, s.sequences, s.seq)
	got := trained(t, onDevice(t, o), s.Config, s.sequences, s.seq)
	if o.Mode == cuda.Exact {
		same(t, "loss", got.losses, want.losses)
		same(t, "gradient", wide(got.gradient), wide(want.gradient))
		same(t, "value", wide(got.values), wide(want.values))
		return
	}
	g, w := mean(got.losses), mean(want.losses)
	away := distance(got.gradient, want.gradient)
	t.Logf("mean loss %.5f, on the processor %.5f; the gradient is %.3g of its length away", g, w, away)
	if !(math.Abs(g-w) < 0.005*w) || !(away < 0.1) {
		t.Error("too far from the processor")
	}
}

func same(t *testing.T, what string, got, want []float64) {
	t.Helper()
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%s %d is %v, on the processor %v", what, i, got[i], want[i])
		}
	}
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// distance is |got − want| / |want|.
func distance(got, want []float32) float64 {
	var d, w float64
	for i := range want {
		e := float64(got[i]) - float64(want[i])
		d, w = d+e*e, w+float64(want[i])*float64(want[i])
	}
	return math.Sqrt(d / w)
}

func wide(v []float32) []float64 {
	w := make([]float64, len(v))
	for i, x := range v {
		w[i] = float64(x)
	}
	return w
}

// outcome is what a few steps gave.
type outcome struct {
	losses           []float64 // of all steps
	gradient, values []float32 // of the first step; after the last
}

func trained(t *testing.T, b backend.Backend, c model.Config, sequences, seq int) (r outcome) {
	t.Helper()
	read := func(pick func(optim.Param) backend.Buffer, params []optim.Param) (all []float32) {
		for _, q := range params {
			v := make([]float32, pick(q).Len())
			b.Read(v, pick(q))
			all = append(all, v...)
		}
		return all
	}
	state := uint64(1)
	random := func() float32 {
		state = state*6364136223846793005 + 1442695040888963407
		return float32(int32(state>>32)) / (1 << 31)
	}
	source := func(s model.Spec, dst []float32) error {
		scale, base := float32(0.08), float32(0)
		if len(s.Shape) == 1 {
			scale, base = 0.1, 1
		}
		for i := range dst {
			dst[i] = math.Float32frombits(math.Float32bits(base+scale*random()) &^ 0xffff)
		}
		return nil
	}
	group := []model.ExpertRef{{Layer: 0, Index: 1}, {Layer: c.Layers - 1, Index: 0}, {Layer: c.Layers - 1, Index: 3}}
	m, err := model.NewFrozen(b, c, source, group)
	if err != nil {
		t.Fatal(err)
	}
	g, err := m.TrainGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	o, err := optim.New(b, optim.Defaults(), g.Params())
	if err != nil {
		t.Fatal(err)
	}
	n := sequences * seq
	tokens, targets := make([]int32, n), make([]int32, n)
	for i := range tokens {
		tokens[i], targets[i] = int32(uint32(math.Float32bits(random()))%uint32(c.Vocab)), int32(uint32(math.Float32bits(random()))%uint32(c.Vocab))
	}
	p := m.NewPassOf(model.Layout{Sequences: sequences, Seq: seq, HeadRows: 256}, g)
	for range 4 {
		step := make([]float64, n)
		g.Zero()
		p.Step(step, tokens, targets, 1/float32(n), 0.01)
		if r.gradient == nil {
			r.gradient = read(func(q optim.Param) backend.Buffer { return q.Grad }, g.Params())
		}
		o.Step(1e-3)
		g.Refresh()
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
		r.losses = append(r.losses, step...)
	}
	r.values = read(func(q optim.Param) backend.Buffer { return q.Value }, g.Params())
	return r
}
