package training

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/blockzero-net/bzd/training/model"
)

// Measured are the losses of one model, as Evaluator.Losses gives them, or ErrNotFinite.
type Measured struct {
	Losses []int64
	Err    error
}

// Each is Losses of many models in one pass over the sequences: what they compute alike, as overlays of one base do up to
// the first layer that any of them changes, is computed once for a batch, and nothing is kept of it afterwards. Models must
// be of one configuration and backend; base may be one of them. A model without a finite loss fails alone.
func (e Evaluator) Each(ctx context.Context, base *model.Model, models []*model.Model, sequences [][]int32) ([]Measured, error) {
	if err := e.check(base, sequences); err != nil {
		return nil, err
	}
	out := make([]Measured, len(models))
	layer := base.Layers - 1
	for i, m := range models {
		if m.Config != base.Config || m.Backend() != base.Backend() {
			return nil, fmt.Errorf("model %d of %d is of another configuration or on another backend than their base", i, len(models))
		}
		out[i].Losses = make([]int64, len(sequences))
		if shared := m.SharedWith(base); shared > 0 {
			layer = min(layer, shared-1)
		}
	}
	failed := make([]atomic.Bool, len(models))
	err := e.batches(ctx, base, len(sequences), func(p *model.Pass, lo, hi int) error {
		tokens, targets, losses := e.gather(sequences[lo:hi])
		prefix := model.Prefix{Layer: layer, Stream: base.Backend().Alloc(len(tokens) * base.Dim)}
		filled := false
		for i, m := range models {
			if failed[i].Load() {
				continue
			}
			m.Adopt(p, evalBatch, e.Seq) // it was made for their configuration
			var from, to *model.Prefix
			switch shares := m.SharedWith(base) > layer; {
			case shares && filled:
				from = &prefix
			case shares:
				to, filled = &prefix, true
			}
			p.LossBetween(losses, tokens, targets, from, to)
			if err := m.Backend().Sync(); err != nil {
				return err
			}
			if err := e.means(out[i].Losses[lo:hi], losses, sequences[lo:hi]); errors.Is(err, ErrNotFinite) {
				failed[i].Store(true)
			} else if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		if failed[i].Load() {
			out[i] = Measured{Err: ErrNotFinite}
		}
	}
	return out, nil
}
