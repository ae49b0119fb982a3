package validation

import (
	"context"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Losses returns the mean loss of every sample in nano-nats per token under one fixed model. An error that is not of the
// context means that the model has no finite loss. It may be called from several goroutines.
type Losses func(ctx context.Context, samples []Sample) ([]int64, error)

// Baseline is the losses of the unchanged model on a cycle's samples, shared by all updates scored on them.
type Baseline struct {
	Samples []Sample
	Losses  []int64
}

// NewBaseline measures the samples once.
func NewBaseline(ctx context.Context, base Losses, samples []Sample) (Baseline, error) {
	l, err := base(ctx, samples)
	return Baseline{samples, l}, err
}

// stratum pairs the baseline with an update.
func (b Baseline) stratum(ctx context.Context, updated Losses) (Stratum, error) {
	after, err := updated(ctx, b.Samples)
	if err != nil {
		return Stratum{}, err
	}
	docs := make([][32]byte, len(b.Samples))
	for i, s := range b.Samples {
		docs[i] = s.Document
	}
	return Stratum{Before: b.Losses, After: after, Documents: docs}, nil
}

// Measure is Proof-of-Loss: the gain of updated over the baselines of the group's domain and of the canary, so that
// forgetting costs pay. A model without finite losses is the miner's fault and gives an invalid row; only a cancelled
// context is an error.
func Measure(ctx context.Context, miner protocol.ID, updated Losses, baselines ...Baseline) (protocol.Row, error) {
	row := protocol.Row{Miner: miner, Status: protocol.StatusInvalid}
	var strata []Stratum
	for _, b := range baselines {
		s, err := b.stratum(ctx, updated)
		if ctx.Err() != nil {
			return protocol.Row{}, ctx.Err()
		}
		if err != nil {
			return row, nil
		}
		strata = append(strata, s)
	}
	gain, stderr, n, err := Gain(strata...)
	if err != nil {
		return protocol.Row{Miner: miner, Status: protocol.StatusNotScored}, nil
	}
	row.Gain, row.StdErr, row.N, row.Status = gain, stderr, uint32(n), protocol.StatusOK
	return row, nil
}

// MeasureStep is the effect of a joint step on one domain: the row of the merge's line search for grid index alpha.
func MeasureStep(ctx context.Context, alpha int, domain string, stepped Losses, b Baseline) (protocol.MergeRow, error) {
	s, err := b.stratum(ctx, stepped)
	if err != nil {
		return protocol.MergeRow{}, err
	}
	s.Before, s.After = s.After, s.Before // a change is a gain the other way round; −gain could overflow
	change, stderr, n, err := Gain(s)
	if err != nil {
		return protocol.MergeRow{}, err
	}
	return protocol.MergeRow{Alpha: uint32(alpha), Domain: domain, Change: change, StdErr: stderr, N: uint32(n)}, nil
}
