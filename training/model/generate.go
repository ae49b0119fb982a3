package model

import (
	"context"
	"math/rand/v2"

	"github.com/blockzero-net/bzd/training/exact"
)

// Generate continues prompt by n tokens and hands each to emit. Temperature 0 takes the most probable token, the lower
// id on a tie; otherwise tokens are drawn from softmax(logits/temperature) by a generator seeded with seed. Context
// before the last Positions tokens is forgotten. It stops with the error of ctx or emit.
func (m *Model) Generate(ctx context.Context, prompt []int32, n int, temperature float64, seed uint64, emit func(id int32) error) error {
	random := rand.New(rand.NewPCG(seed, 0))
	tokens := append([]int32(nil), prompt...)
	for range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(tokens) > m.Positions {
			tokens = tokens[len(tokens)-m.Positions:]
		}
		logits := m.NewPass(1, len(tokens), nil).Logits(tokens)
		id := choose(logits[len(logits)-m.Vocab:], temperature, random)
		if err := emit(id); err != nil {
			return err
		}
		tokens = append(tokens, id)
	}
	return nil
}

// choose picks a token by its logits.
func choose(logits []float32, temperature float64, random *rand.Rand) int32 {
	best := 0
	for i, x := range logits {
		if x > logits[best] {
			best = i
		}
	}
	if temperature == 0 {
		return int32(best)
	}
	weights, total := make([]float64, len(logits)), 0.0
	for i, x := range logits {
		weights[i] = exact.Exp(max(-600, (float64(x)-float64(logits[best]))/temperature))
		total += weights[i]
	}
	at := random.Float64() * total
	for i, w := range weights {
		if at -= w; at < 0 {
			return int32(i)
		}
	}
	return int32(best)
}
