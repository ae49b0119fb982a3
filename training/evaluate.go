package training

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"

	"github.com/blockzero-net/bzd/training/model"
)

// ErrNotFinite is returned when a sequence has no finite loss.
var ErrNotFinite = errors.New("loss is not finite")

// evalBatch is how many sequences one forward pass takes. It changes no bit of any loss.
const evalBatch = 8

// Evaluator measures losses of sequences of one length.
type Evaluator struct {
	Seq     int    // tokens per sequence, without the last target
	Workers int    // forward passes at a time
	Spare   *Spare // keeps the memory of passes between calls; nil keeps none
	Below   *Below // shares between models what they compute alike; nil shares nothing
}

// Below keeps what a base model computes up to the mixture of one layer, for every batch that an Evaluator measures, so
// that overlays of the base which change nothing below are measured from there on. It changes no bit of any loss.
type Below struct {
	base  *model.Model
	layer int
	left  int64 // values that may still be kept

	mu   sync.Mutex
	kept map[string]model.Prefix // by the batch's tokens
}

// NewBelow keeps at most limit bytes of what base computes up to the mixture of that layer.
func NewBelow(base *model.Model, layer int, limit int64) *Below {
	return &Below{base: base, layer: layer, left: limit / 4, kept: map[string]model.Prefix{}}
}

// of returns what is kept of a batch, or what there is room to keep; both are nil if m computes otherwise.
func (b *Below) of(m *model.Model, tokens []int32) (from, to *model.Prefix, key string) {
	if b == nil || m.SharedWith(b.base) <= b.layer {
		return nil, nil, ""
	}
	raw := make([]byte, 0, 4*len(tokens))
	for _, t := range tokens {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(t))
	}
	key = string(raw)
	values := len(tokens) * m.Dim
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.kept[key]; ok {
		return &p, nil, key
	}
	if b.left < int64(values) {
		return nil, nil, ""
	}
	b.left -= int64(values)
	return nil, &model.Prefix{Layer: b.layer, Stream: m.Backend().Alloc(values)}, key
}

func (b *Below) keep(key string, p model.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept[key] = p
}

// Spare is the memory of passes that nobody uses. It may be shared by evaluators and goroutines.
type Spare struct {
	mu     sync.Mutex
	passes []*model.Pass
}

// take returns a pass for batches of evalBatch sequences of seq tokens.
func (s *Spare) take(m *model.Model, seq int) *model.Pass {
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, p := range s.passes {
			if m.Adopt(p, evalBatch, seq) {
				s.passes = append(s.passes[:i], s.passes[i+1:]...)
				return p
			}
		}
	}
	return m.NewPass(evalBatch, seq, nil)
}

// give keeps a pass, but not more than a machine has use for.
func (s *Spare) give(p *model.Pass) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.passes) < runtime.GOMAXPROCS(0) {
		p.Release()
		s.passes = append(s.passes, p)
	}
}

// Losses returns the mean loss of every sequence in nano-nats per token, rounded half to even. A sequence is at most Seq+1
// tokens, all but the first of them predicted; one that does not fit the model is an error, and one with nothing to predict
// has loss 0. A sequence without a finite loss makes the whole call fail with ErrNotFinite.
func (e Evaluator) Losses(ctx context.Context, m *model.Model, sequences [][]int32) ([]int64, error) {
	if e.Seq < 1 || e.Seq > m.Positions {
		return nil, fmt.Errorf("sequences of %d tokens, the model has %d positions", e.Seq, m.Positions)
	}
	for _, s := range sequences {
		if len(s) > e.Seq+1 {
			return nil, fmt.Errorf("sequence of %d tokens, want at most %d", len(s), e.Seq+1)
		}
		for _, id := range s {
			if id < 0 || int(id) >= m.Vocab {
				return nil, fmt.Errorf("token %d in a sequence, the vocabulary has %d", id, m.Vocab)
			}
		}
	}
	out := make([]int64, len(sequences))
	batches := (len(sequences) + evalBatch - 1) / evalBatch
	workers := max(1, min(e.Workers, batches))
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		next  = make(chan int, batches)
	)
	for b := range batches {
		next <- b
	}
	close(next)
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	for range workers {
		wg.Go(func() {
			p := e.Spare.take(m, e.Seq)
			defer e.Spare.give(p)
			for b := range next {
				if err := ctx.Err(); err != nil {
					fail(err)
					return
				}
				lo, hi := b*evalBatch, min((b+1)*evalBatch, len(sequences))
				if err := e.batch(m, p, sequences[lo:hi], out[lo:hi]); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if first != nil {
		return nil, first
	}
	return out, nil
}

func (e Evaluator) batch(m *model.Model, p *model.Pass, sequences [][]int32, out []int64) error {
	n := len(sequences) * e.Seq
	tokens, targets, losses := make([]int32, 0, n), make([]int32, 0, n), make([]float64, n)
	for _, s := range sequences {
		s = s[:len(s):len(s)]
		for len(s) <= e.Seq { // what is behind a sequence changes nothing before it
			s = append(s, 0)
		}
		tokens, targets = append(tokens, s[:e.Seq]...), append(targets, s[1:]...)
	}
	from, to, key := e.Below.of(m, tokens)
	p.LossBetween(losses, tokens, targets, from, to)
	if err := m.Backend().Sync(); err != nil {
		return err
	}
	if to != nil {
		e.Below.keep(key, *to)
	}
	for i, s := range sequences {
		sum := 0.0
		n := max(0, len(s)-1)
		for _, l := range losses[i*e.Seq:][:n] {
			sum += l
		}
		v := math.RoundToEven(float64(sum/float64(max(1, n))) * 1e9)
		if !(math.Abs(v) < 1<<62) {
			return ErrNotFinite
		}
		out[i] = int64(v)
	}
	return nil
}
