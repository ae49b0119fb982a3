package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/delta"
)

// deltaReport is what bench delta measured. Rates are megabytes of float32 values per second of one core.
type deltaReport struct {
	Values   uint64  `json:"values"`
	TopK     int     `json:"topk"`
	Bytes    uint64  `json:"bytes"`
	Dense    uint64  `json:"dense_bf16_bytes"`
	Ratio    float64 `json:"ratio"`
	BitsEach float64 `json:"bits_per_value_sent"`

	Encode      float64 `json:"encode_mb_per_second"` // choice, coding and bytes
	Decode      float64 `json:"decode_mb_per_second"`
	DenseEncode float64 `json:"dense_bf16_encode_mb_per_second"`
	DenseDecode float64 `json:"dense_bf16_decode_mb_per_second"`
	Rounds      int     `json:"rounds"`
}

// expertWidth is the inner width of the experts that bench delta makes a group of, as OLMoE's.
const expertWidth = 1024

func benchDelta(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "bench delta", `Usage: bzd bench delta [flags]

Makes a delta of a group of OLMoE's experts from seeded values, codes it and decodes it, on one core: how small it is
against dense bfloat16, and how many megabytes of float32 values per second go each way. Values have the tails of a
trained update; where they lie is random, which is the worst case for their places. Rates are the best of some rounds, in
turn with those of dense-bf16.`)
	experts := c.set.Int("experts", 2, "experts of 6.3 million values")
	k := c.set.Int("topk", protocol.DefaultTopK, "values sent of 4096")
	rounds := c.set.Int("rounds", 5, "rounds")
	asJSON := c.set.Bool("json", false, "print one JSON object")
	if err := c.parse(args, false); err != nil {
		return err
	}
	switch {
	case *experts < 1 || *experts > 64:
		return usageError("--experts %d: 1 to 64", *experts)
	case *k < 1 || *k > delta.TopKChunk:
		return usageError("--topk %d: 1 to %d", *k, delta.TopKChunk)
	case *rounds < 1:
		return usageError("--rounds %d: at least one", *rounds)
	}
	b := newDeltaBench(*experts, *k)
	r := deltaReport{Values: b.values, TopK: *k, Dense: 2 * b.values, Rounds: *rounds}
	for range *rounds {
		for _, m := range []struct {
			rate *float64
			do   func() error
		}{{&r.Encode, b.encode}, {&r.Decode, b.decode}, {&r.DenseEncode, b.denseEncode}, {&r.DenseDecode, b.denseDecode}} {
			if err := ctx.Err(); err != nil {
				return err
			}
			start := env.now()
			if err := m.do(); err != nil {
				return err
			}
			*m.rate = max(*m.rate, float64(4*b.values)/1e6/max(env.now().Sub(start), time.Microsecond).Seconds())
		}
	}
	r.Bytes = b.header.Size
	r.Ratio = float64(r.Dense) / float64(r.Bytes)
	r.BitsEach = float64(8*r.Bytes) / float64(b.sent)
	if *asJSON {
		e := json.NewEncoder(env.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	w := table(env.out)
	fmt.Fprintf(w, "%d values, %d of 4096 sent\t%d bytes\t%.1f times smaller than dense-bf16\t%.2f bits per value sent\t\n", r.Values, r.TopK, r.Bytes, r.Ratio, r.BitsEach)
	fmt.Fprintf(w, "topk-2bit\tencode %.0f MB/s\tdecode %.0f MB/s\t\t\n", r.Encode, r.Decode)
	fmt.Fprintf(w, "dense-bf16\tencode %.0f MB/s\tdecode %.0f MB/s\t\t\n", r.DenseEncode, r.DenseDecode)
	return w.Flush()
}

// deltaBench is a trained update with the second moments of its gradients, and its two encodings.
type deltaBench struct {
	want, wantDense delta.Expect
	x, v, rest      [][]float32
	units           [][]int32
	values, sent    uint64

	header, denseHeader   protocol.DeltaHeader
	payload, densePayload []byte
}

func newDeltaBench(experts, k int) *deltaBench {
	g := protocol.Group{Name: "bench"}
	for i := range experts {
		g.Experts = append(g.Experts, protocol.ExpertRef{Index: uint32(i)})
	}
	b := &deltaBench{want: delta.Expect{Base: protocol.LinkTo(protocol.DagPB, nil), Group: g.Name, Tensors: delta.Layout(g, 2*expertWidth, expertWidth), TopK: k}}
	b.wantDense = b.want
	b.wantDense.TopK = 0
	r := rand.New(rand.NewPCG(1, 2))
	for _, t := range b.want.Tensors {
		n, _ := protocol.Elements(t.Shape)
		x, v := make([]float32, n), make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64() * r.ExpFloat64() * 1e-4)
			v[i] = float32(math.Exp(2*r.NormFloat64()) * 1e-9)
		}
		b.x, b.v, b.rest = append(b.x, x), append(b.v, v), append(b.rest, make([]float32, n))
		b.units = append(b.units, make([]int32, n))
		b.values += n
	}
	return b
}

func (b *deltaBench) encode() error {
	for i := range b.x {
		at, err := delta.Choose(b.x[i], b.v[i], b.want.TopK)
		if err != nil {
			return err
		}
		copy(b.rest[i], b.x[i])
		if err := delta.Send(b.units[i], b.rest[i], at, b.want.TopK); err != nil {
			return err
		}
	}
	d, err := delta.New(b.want, b.units)
	if err != nil {
		return err
	}
	b.header, b.payload = d.Header(), d.Payload()
	return nil
}

func (b *deltaBench) decode() error {
	d, err := delta.DecodePayload(b.header, b.payload, b.want)
	if err != nil {
		return err
	}
	b.sent = 0
	for i := range b.x {
		for range d.Codes(i) {
			b.sent++
		}
		d.Units(i) // every value, as the dense codec gives them
	}
	return nil
}

func (b *deltaBench) denseEncode() error {
	units := make([][]int32, len(b.x))
	for i := range b.x {
		units[i] = make([]int32, len(b.x[i]))
		if err := delta.Quantize(units[i], b.x[i]); err != nil {
			return err
		}
	}
	d, err := delta.New(b.wantDense, units)
	if err != nil {
		return err
	}
	b.denseHeader, b.densePayload = d.Header(), d.Payload()
	return nil
}

func (b *deltaBench) denseDecode() error {
	_, err := delta.DecodePayload(b.denseHeader, b.densePayload, b.wantDense)
	return err
}
