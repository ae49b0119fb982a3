package backendtest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

// digests are the first 16 bytes of the SHA-256 of every result of an operation in the battery: float32, and losses as
// float64, little-endian, in the order computed. Changing one breaks every receipt and every certificate made before;
// docs/spec/exact.md lists the same.
var digests = map[string]string{
	"AdamW":            "ec1cd5c7ca8190a72afffeac599d260c",
	"Add":              "9a98cd9efe306f9549b58e8b34c3b80d",
	"AddBias":          "b14e50582ed34358d57b9009aeacb162",
	"AddGated":         "fd9657a7ce887db08b9f6c376675f7fc",
	"AddGatedGrad":     "514ef74fe0b370ac1078457a744b2d54",
	"Attention":        "a11a3544f85d16bce09c66c3a8a77a03",
	"AttentionGrad":    "7eb0c044373d435cc726f9b11457160b",
	"CrossEntropy":     "f65d8d4291e342d9048e8b9e04fdda4a",
	"EmbedGrad":        "14d99e44af265f40ec5387e807c15eba",
	"HeadNormRope":     "52de26bfe5ecc5ff5698025e61852bec",
	"HeadNormRopeGrad": "887ab319d21499c3f4cc5c6003e1b31d",
	"Linear":           "099894a876424187b7e58b84c0247f96",
	"LinearGradInput":  "4038046fa405f2b03d31c7c935187e23",
	"LinearGradWeight": "f7b14e3c3b9c59e8f510edc3d1f4115d",
	"Mixture":          "4e5cd3bd559729a35388fcfeb49019ef",
	"MixtureGrad":      "308c657df76f8cc7235900b889baf7de",
	"RMSNorm":          "619d8b5b94f38481508553089cb4a8ef",
	"RMSNormGrad":      "5d3ab2a53c6c65213441a4f8093b7f15",
	"Rotate":           "101663015512c42899a423787b065c86",
	"SumSquares":       "2cf837ac81568f7c7cde9fb09731f8b1",
	"SwiGLU":           "8bbacb1f1029f5ef23eb56711393a0cf",
	"SwiGLUGrad":       "356ce5d489c165816f414102116bba4e",
}

func testDigests(l *lab) {
	if !l.opts.Exact {
		l.Skip("the backend does not claim exact arithmetic")
	}
	l.digests(battery)
}

// digests runs a battery and compares with what is recorded.
func (l *lab) digests(battery []operation) {
	for _, e := range battery {
		h := sha256.New()
		l.rand = newSource(e.seed)
		e.run(l, digester{l, h})
		if got := hex.EncodeToString(h.Sum(nil)[:16]); got != digests[e.name] {
			l.Errorf("digest of %s is %s, docs/spec/exact.md says %s", e.name, got, digests[e.name])
		}
	}
}

// digester adds results to a digest.
type digester struct {
	l *lab
	h hash.Hash
}

func (d digester) buffers(all ...backend.Buffer) {
	for _, b := range all {
		d.values(d.l.read(b))
	}
}

func (d digester) values(v []float32) {
	raw := make([]byte, 0, 4*len(v))
	for _, x := range v {
		if x != x {
			d.l.Error("a result of the battery is NaN")
		}
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	d.h.Write(raw)
}

func (d digester) doubles(v []float64) {
	var raw []byte
	for _, x := range v {
		raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(x))
	}
	d.h.Write(raw)
}

// rough returns values of magnitudes from 2⁻³⁰ to 4, signs mixed, one in eight a zero of either sign.
func (s *source) rough(n int) []float32 {
	v := s.values(n, 1)
	for i := range v {
		e := s.intn(33)
		if s.intn(8) == 0 {
			v[i] = float32(math.Copysign(0, float64(v[i])))
		}
		v[i] *= float32(math.Ldexp(4, -e))
	}
	return v
}

// operation is an entry of a battery.
type operation struct {
	name string
	seed uint64
	run  func(l *lab, d digester)
}

// battery has an entry for every operation that computes. Each draws from its own source, so one can be added without
// moving the others. Small factors make results denormal: a device that flushes them fails.
var battery = []operation{
	{"Add", 101, func(l *lab, d digester) {
		x := l.inout(l.rand.rough(1000))
		l.b.Add(x, l.in(l.rand.rough(1000)))
		d.buffers(x)
	}},
	{"Linear", 102, func(l *lab, d digester) {
		for _, s := range linearBattery {
			y := l.out(s.rows * s.out)
			l.b.Linear(y, l.in(l.rand.values(s.rows*s.in, s.size)), l.weight(l.rand.values(s.out*s.in, s.size), s.out, s.in))
			d.buffers(y)
		}
	}},
	{"LinearGradInput", 103, func(l *lab, d digester) {
		for _, s := range linearBattery {
			dy, w := l.in(l.rand.values(s.rows*s.out, s.size)), l.weight(l.rand.values(s.out*s.in, s.size), s.out, s.in)
			set, added := l.out(s.rows*s.in), l.inout(l.rand.values(s.rows*s.in, 8*s.size*s.size))
			l.b.LinearGradInput(set, dy, w, false)
			l.b.LinearGradInput(added, dy, w, true)
			d.buffers(set, added)
		}
	}},
	{"LinearGradWeight", 104, func(l *lab, d digester) {
		for _, s := range linearBattery {
			dw := l.inout(l.rand.values(s.out*s.in, 8*s.size*s.size))
			l.b.LinearGradWeight(dw, l.in(l.rand.values(s.rows*s.out, s.size)), l.in(l.rand.values(s.rows*s.in, s.size)), s.rows)
			d.buffers(dw)
		}
	}},
	{"RMSNorm", 105, func(l *lab, d digester) {
		for _, s := range normBattery {
			y, inv := l.out(s.rows*s.d), l.out(s.rows)
			l.b.RMSNorm(y, inv, l.in(l.rand.rough(s.rows*s.d)), l.in(l.rand.values(s.d, 1)), 1e-6)
			d.buffers(y, inv)
		}
	}},
	{"RMSNormGrad", 106, func(l *lab, d digester) {
		for _, s := range normBattery {
			dx, dw := l.inout(l.rand.rough(s.rows*s.d)), l.inout(l.rand.rough(s.d))
			l.b.RMSNormGrad(dx, dw, l.in(l.rand.rough(s.rows*s.d)), l.in(l.rand.values(s.rows, 2)), l.in(l.rand.rough(s.rows*s.d)), l.in(l.rand.values(s.d, 1)))
			d.buffers(dx, dw)
		}
	}},
	{"HeadNormRope", 107, func(l *lab, d digester) {
		for _, s := range headBattery {
			n := s.rows * s.heads * s.d
			y, inv := l.out(n), l.out(n/s.d)
			r, _, _ := l.rope(s.seq, s.d)
			l.b.HeadNormRope(y, inv, l.in(l.rand.rough(n)), l.in(l.rand.values(s.d, 1)), r, s.heads, s.seq, 1e-6)
			d.buffers(y, inv)
		}
	}},
	{"HeadNormRopeGrad", 108, func(l *lab, d digester) {
		for _, s := range headBattery {
			n := s.rows * s.heads * s.d
			dx, dw := l.out(n), l.inout(l.rand.rough(s.d))
			r, _, _ := l.rope(s.seq, s.d)
			l.b.HeadNormRopeGrad(dx, dw, l.inout(l.rand.rough(n)), l.in(l.rand.values(n/s.d, 2)), l.in(l.rand.rough(n)), l.in(l.rand.values(s.d, 1)), r, s.heads, s.seq)
			d.buffers(dx, dw)
		}
	}},
	{"Attention", 109, attentionBattery(false)},
	{"AttentionGrad", 110, attentionBattery(true)},
	{"Mixture", 111, mixtureBattery(false)},
	{"MixtureGrad", 112, mixtureBattery(true)},
	{"EmbedGrad", 113, func(l *lab, d digester) {
		g := l.inout(l.rand.rough(7 * 50))
		l.b.EmbedGrad(g, l.in(l.rand.rough(60*50)), l.rand.ids(60, 7))
		d.buffers(g)
	}},
	{"CrossEntropy", 114, func(l *lab, d digester) {
		for _, s := range []struct {
			rows, vocab int
			size        float32
		}{{1, 1, 1}, {9, 7, 2}, {70, 33, 8}, {5, 1000, 16}, {20, 64, 128}} {
			logits, losses := l.inout(l.rand.values(s.rows*s.vocab, s.size)), make([]float64, s.rows)
			l.b.CrossEntropy(losses, logits, l.rand.ids(s.rows, s.vocab), 0x1p-7)
			l.sync()
			d.doubles(losses)
			d.buffers(logits)
		}
	}},
	{"AdamW", 115, func(l *lab, d digester) {
		h := backend.AdamW{Clip: 0.7, Beta1: 0.9, One1: 0.1, Beta2: 0.95, One2: 0.05, Step: 0.01, Root: 1.5, Eps: 1e-8, Decay: 0.02}
		for _, size := range []float32{1, 0x1p-66} {
			p, m, v := l.inout(l.rand.rough(1003)), l.inout(l.rand.values(1003, size)), l.inout(make([]float32, 1003))
			for range 3 {
				l.b.AdamW(p, m, v, l.in(l.rand.values(1003, size)), h)
				d.buffers(p, m, v)
			}
		}
	}},
	{"SumSquares", 116, func(l *lab, d digester) {
		for _, n := range []int{1, 16, 31, 1000, 70000} {
			d.values(l.b.SumSquares([]backend.Buffer{l.in(l.rand.rough(n))}))
		}
		d.values(l.b.SumSquares([]backend.Buffer{l.in(l.rand.values(100, 0x1p-68))}))
	}},
}

var linearBattery = []struct {
	rows, in, out int
	size          float32
}{{1, 1, 1, 1}, {3, 7, 5, 1}, {17, 33, 31, 2}, {30, 256, 32, 1}, {15, 257, 33, 1}, {300, 600, 20, 1}, {520, 16, 48, 1}, {20, 40, 24, 0x1p-70}}

var normBattery = []struct{ rows, d int }{{1, 1}, {3, 7}, {70, 33}, {130, 64}, {3, 1030}}

var headBattery = []struct{ rows, seq, heads, d int }{{1, 1, 1, 2}, {10, 5, 3, 6}, {40, 20, 2, 32}, {300, 300, 2, 10}}

func attentionBattery(grad bool) func(l *lab, d digester) {
	return func(l *lab, d digester) {
		for _, s := range []struct {
			sequences int
			size      float32
			backend.AttentionShape
		}{
			{1, 1, backend.AttentionShape{Seq: 1, Heads: 1, KVHeads: 1, HeadDim: 2}},
			{3, 4, backend.AttentionShape{Seq: 17, Heads: 4, KVHeads: 2, HeadDim: 6}},
			{1, 2, backend.AttentionShape{Seq: 64, Heads: 2, KVHeads: 2, HeadDim: 32}},
			{2, 16, backend.AttentionShape{Seq: 40, Heads: 3, KVHeads: 1, HeadDim: 8}},
			{1, 2, backend.AttentionShape{Seq: 530, Heads: 2, KVHeads: 1, HeadDim: 10}},
		} {
			rows := s.sequences * s.Seq
			nq, nk := rows*s.Heads*s.HeadDim, rows*s.KVHeads*s.HeadDim
			q, k, v := l.in(l.rand.values(nq, s.size)), l.in(l.rand.values(nk, s.size)), l.in(l.rand.values(nk, 1))
			out, state := l.out(nq), l.b.NewAttn(s.AttentionShape, rows, grad)
			l.b.Attention(out, q, k, v, state)
			if !grad {
				d.buffers(out)
				continue
			}
			dq, dk, dv := l.out(nq), l.out(nk), l.out(nk)
			l.b.AttentionGrad(dq, dk, dv, l.in(l.rand.values(nq, 1)), out, q, k, v, state)
			d.buffers(dq, dk, dv)
		}
	}
}

func mixtureBattery(grad bool) func(l *lab, d digester) {
	return func(l *lab, d digester) {
		for _, c := range []struct {
			tokens int
			size   float32 // of the logits: 64 lets probabilities underflow
			backend.MixtureShape
		}{
			{1, 1, backend.MixtureShape{Experts: 1, TopK: 1, Model: 4, Width: 3}},
			{40, 4, backend.MixtureShape{Experts: 8, TopK: 2, Model: 17, Width: 33, Normalize: true}},
			{33, 2, backend.MixtureShape{Experts: 20, TopK: 3, Model: 32, Width: 16}},
			{600, 1, backend.MixtureShape{Experts: 3, TopK: 2, Model: 20, Width: 12, Normalize: true}},
			{20, 64, backend.MixtureShape{Experts: 4, TopK: 4, Model: 16, Width: 16, Normalize: true}},
		} {
			n := c.tokens * c.Model
			set := l.experts(c.MixtureShape)
			x, logits := l.in(l.rand.values(n, 1)), l.in(l.rand.values(c.tokens*c.Experts, c.size))
			y, m := l.out(n), l.b.NewMix(c.MixtureShape, c.tokens, true)
			l.b.Mixture(y, x, logits, set.experts, m)
			if !grad {
				d.buffers(y)
				continue
			}
			for _, balance := range []float32{0, 0.01} {
				l.b.Mixture(y, x, logits, set.experts, m)
				dx, dl := l.inout(l.rand.values(n, 1)), l.out(c.tokens*c.Experts)
				l.b.MixtureGrad(dx, dl, l.in(l.rand.values(n, 1)), x, set.experts, set.grads, m, balance)
				d.buffers(dx, dl)
			}
			for _, g := range set.grads {
				d.buffers(g.Gate, g.Up, g.Down)
			}
		}
	}
}
