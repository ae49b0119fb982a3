package validation_test

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/validation"
)

// samples makes n samples, two of a document, numbered from first.
func samples(first, n int) []validation.Sample {
	var list []validation.Sample
	for i := range n {
		list = append(list, validation.Sample{ID: sampleID(first + i), Document: doc((first + i) / 2), Tokens: []int32{int32(first + i)}})
	}
	return list
}

// plus is a model whose loss is that of the token plus something.
func plus(f func(i int64) int64) validation.Losses {
	return func(_ context.Context, list []validation.Sample) ([]int64, error) {
		var out []int64
		for _, s := range list {
			i := int64(s.Tokens[0])
			out = append(out, 2e9+1000*i+f(i))
		}
		return out, nil
	}
}

var unchanged = plus(func(int64) int64 { return 0 })

var errNotFinite = errors.New("loss is not finite")

func notFinite(context.Context, []validation.Sample) ([]int64, error) { return nil, errNotFinite }

var miner = protocol.ID{1, 2, 3}

// baselines are those of a domain (8 samples) and of the canary (4).
func baselines(t *testing.T) []validation.Baseline {
	t.Helper()
	var list []validation.Baseline
	for _, s := range [][]validation.Sample{samples(0, 8), samples(100, 4)} {
		b, err := validation.NewBaseline(t.Context(), unchanged, s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, b)
	}
	return list
}

func TestMeasure(t *testing.T) {
	canary := func(i int64) bool { return i >= 100 }
	for name, c := range map[string]struct {
		updated validation.Losses
		want    protocol.Row
	}{
		"identical": {unchanged, protocol.Row{N: 12, Status: protocol.StatusOK}},
		"better everywhere": {plus(func(int64) int64 { return -500 }),
			protocol.Row{Gain: 500, N: 12, Status: protocol.StatusOK}},
		"worse everywhere": {plus(func(int64) int64 { return 500 }),
			protocol.Row{Gain: -500, N: 12, Status: protocol.StatusOK}},
		// (8·600 − 4·900) / 12: what was forgotten costs.
		"forgets": {plus(func(i int64) int64 {
			if canary(i) {
				return 900
			}
			return -600
		}), protocol.Row{Gain: 100, N: 12, Status: protocol.StatusOK}},
		// Documents differ by ±100 in the domain: 4/3·4·200² / 144 = 1481.5.
		"uneven": {plus(func(i int64) int64 {
			if canary(i) {
				return 0
			}
			return -300 + 200*(i/2%2)
		}), protocol.Row{Gain: 133, StdErr: 39, N: 12, Status: protocol.StatusOK}},
		"not finite": {notFinite, protocol.Row{Status: protocol.StatusInvalid}},
		"not finite on the canary": {func(ctx context.Context, s []validation.Sample) ([]int64, error) {
			if canary(int64(s[0].Tokens[0])) {
				return notFinite(ctx, s)
			}
			return unchanged(ctx, s)
		}, protocol.Row{Status: protocol.StatusInvalid}},
	} {
		c.want.Miner = miner
		got, err := validation.Measure(t.Context(), miner, c.updated, baselines(t)...)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMeasureTooFew: what says nothing about the miner is not held against it.
func TestMeasureTooFew(t *testing.T) {
	one, err := validation.NewBaseline(t.Context(), unchanged, samples(0, 2)) // of one document
	if err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]validation.Baseline{"nothing": nil, "one document": {one}, "one of the canary": append(baselines(t), one)} {
		got, err := validation.Measure(t.Context(), miner, plus(func(int64) int64 { return -5 }), list...)
		if want := (protocol.Row{Miner: miner, Status: protocol.StatusNotScored}); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMeasureCancelled: a cancelled measurement is an error whatever the model says, so that a validator that stops never
// calls a miner's work invalid.
func TestMeasureCancelled(t *testing.T) {
	for name, last := range map[string]validation.Losses{
		"finite": unchanged, "not finite": notFinite,
		"says so": func(ctx context.Context, _ []validation.Sample) ([]int64, error) { return nil, ctx.Err() },
	} {
		for stopAt := 1; stopAt <= 2; stopAt++ { // in the domain, in the canary
			ctx, cancel := context.WithCancel(t.Context())
			calls := 0
			got, err := validation.Measure(ctx, miner, func(ctx context.Context, s []validation.Sample) ([]int64, error) {
				if calls++; calls < stopAt {
					return unchanged(ctx, s)
				}
				cancel()
				return last(ctx, s)
			}, baselines(t)...)
			if !errors.Is(err, context.Canceled) || got != (protocol.Row{}) {
				t.Errorf("%s, stopped in call %d: %+v, %v", name, stopAt, got, err)
			}
			if calls != stopAt {
				t.Errorf("%s, stopped in call %d: %d calls", name, stopAt, calls)
			}
		}
	}
}

func TestBaselineFails(t *testing.T) {
	if _, err := validation.NewBaseline(t.Context(), notFinite, samples(0, 4)); !errors.Is(err, errNotFinite) {
		t.Error(err)
	}
}

// TestMeasureStep: a merge row is a change, so its sign is the other way round: negative is better.
func TestMeasureStep(t *testing.T) {
	b := baselines(t)[0]
	for _, d := range []int64{-700, 0, 700} {
		got, err := validation.MeasureStep(t.Context(), 3, "go", plus(func(int64) int64 { return d }), b)
		if want := (protocol.MergeRow{Alpha: 3, Domain: "go", Change: d, N: 8}); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		if err := got.Validate(); err != nil {
			t.Error(err)
		}
	}
	uneven, err := validation.MeasureStep(t.Context(), 1, "go", plus(func(i int64) int64 { return 101 - 200*(i/2%2) + i%2 }), b)
	if err != nil || uneven.Change != 2 || uneven.StdErr != 58 { // mean 1.5; √(4/3·4·200²/64) = 57.7
		t.Errorf("%+v, %v", uneven, err)
	}
	if _, err := validation.MeasureStep(t.Context(), 1, "go", notFinite, b); !errors.Is(err, errNotFinite) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := validation.MeasureStep(ctx, 1, "go", func(ctx context.Context, _ []validation.Sample) ([]int64, error) { return nil, ctx.Err() }, b); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	one := validation.Baseline{Samples: b.Samples[:2], Losses: b.Losses[:2]}
	if _, err := validation.MeasureStep(t.Context(), 1, "go", unchanged, one); !errors.Is(err, validation.ErrTooFew) {
		t.Error(err)
	}
}

// TestMeasureStepOfDisaster: the worst loss there is must not come out as the best by an overflow of its sign.
func TestMeasureStepOfDisaster(t *testing.T) {
	b := validation.Baseline{Samples: samples(0, 4), Losses: []int64{-1, -1, -1, -1}}
	row, err := validation.MeasureStep(t.Context(), 1, "go", func(_ context.Context, s []validation.Sample) ([]int64, error) {
		return []int64{math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64}, nil
	}, b)
	if err == nil {
		t.Errorf("a change of 2⁶³ became %+v", row)
	}
}
