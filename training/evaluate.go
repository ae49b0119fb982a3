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
	values := len(tokens) * (m.Dim + 1) // the tokens are kept too
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.kept[key]; ok {
		return &p, nil, key
	}
	if b.left < int64(values) {
		return nil, nil, ""
	}
	b.left -= int64(values)
	return nil, &model.Prefix{Layer: b.layer, Stream: m.Backend().Alloc(len(tokens) * m.Dim)}, key
}

// keep keeps p if it is good, and otherwise gives its room back. Two that computed the same batch keep one.
func (b *Below) keep(key string, p model.Prefix, good bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, there := b.kept[key]; !good || there {
		b.left += int64(p.Stream.Len()) + int64(len(key)/4)
		return
	}
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
	if err := e.check(m, sequences); err != nil {
		return nil, err
	}
	out := make([]int64, len(sequences))
	err := e.batches(ctx, m, len(sequences), func(p *model.Pass, lo, hi int) error {
		return e.batch(m, p, sequences[lo:hi], out[lo:hi])
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// check refuses sequences that do not fit.
func (e Evaluator) check(m *model.Model, sequences [][]int32) error {
	if e.Seq < 1 || e.Seq > m.Positions {
		return fmt.Errorf("sequences of %d tokens, the model has %d positions", e.Seq, m.Positions)
	}
	for _, s := range sequences {
		if len(s) > e.Seq+1 {
			return fmt.Errorf("sequence of %d tokens, want at most %d", len(s), e.Seq+1)
		}
		for _, id := range s {
			if id < 0 || int(id) >= m.Vocab {
				return fmt.Errorf("token %d in a sequence, the vocabulary has %d", id, m.Vocab)
			}
		}
	}
	return nil
}

// batches visits batches of n sequences, several at a time, each with a pass for m. The first error ends it.
func (e Evaluator) batches(ctx context.Context, m *model.Model, n int, visit func(p *model.Pass, lo, hi int) error) error {
	batches := (n + evalBatch - 1) / evalBatch
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
				err := ctx.Err()
				if err == nil {
					err = visit(p, b*evalBatch, min((b+1)*evalBatch, n))
				}
				if err != nil {
					fail(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

func (e Evaluator) batch(m *model.Model, p *model.Pass, sequences [][]int32, out []int64) error {
	tokens, targets, losses := e.gather(sequences)
	from, to, key := e.Below.of(m, tokens)
	p.LossBetween(losses, tokens, targets, from, to)
	err := m.Backend().Sync()
	if to != nil {
		e.Below.keep(key, *to, err == nil)
	}
	if err != nil {
		return err
	}
	return e.means(out, losses, sequences)
}

// gather puts sequences one after another, with room for their losses.
func (e Evaluator) gather(sequences [][]int32) (tokens, targets []int32, losses []float64) {
	n := len(sequences) * e.Seq
	tokens, targets, losses = make([]int32, 0, n), make([]int32, 0, n), make([]float64, n)
	for _, s := range sequences {
		s = s[:len(s):len(s)]
		for len(s) <= e.Seq { // what is behind a sequence changes nothing before it
			s = append(s, 0)
		}
		tokens, targets = append(tokens, s[:e.Seq]...), append(targets, s[1:]...)
	}
	return tokens, targets, losses
}

// means sets out to the mean losses of sequences in nano-nats.
func (e Evaluator) means(out []int64, losses []float64, sequences [][]int32) error {
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
