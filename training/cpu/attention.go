package cpu

import (
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

// attendRows is the height of a block of rows that share their causal horizon; part of docs/spec/exact.md.
const attendRows = 16

// attn keeps the probabilities, [rows/Seq, Heads, Seq, Seq rounded up to 16].
type attn struct {
	backend.AttentionShape
	probs []float32
}

func (a *attn) Shape() backend.AttentionShape { return a.AttentionShape }

// NewAttn allocates for rows rows.
func (b *Backend) NewAttn(s backend.AttentionShape, rows int, _ bool) backend.Attn {
	return &attn{s, make([]float32, rows/s.Seq*s.Heads*s.Seq*s.Padded())}
}

// Attention runs over pairs of a sequence and a key-value head.
func (b *Backend) Attention(out, q, k, v backend.Buffer, a backend.Attn) {
	O, P, Q, K, V, s := host(out), a.(*attn).probs, host(q), host(k), host(v), a.Shape()
	t, hd, pad := s.Seq, s.HeadDim, s.Padded()
	qw, kw, group := s.Heads*hd, s.KVHeads*hd, s.Heads/s.KVHeads
	scale := attentionScale(hd)
	b.par(len(Q)/qw/t*s.KVHeads, func(item int) {
		seq, kv := item/s.KVHeads, item%s.KVHeads
		kbuf, vbuf := b.scratch(panelLen(hd, t)), b.scratch(panelLen(t, hd))
		kp := packNT(kbuf, K[seq*t*kw+kv*hd:], hd, t, kw)
		vp := packNN(vbuf, V[seq*t*kw+kv*hd:], t, hd, kw)
		for h := kv * group; h < (kv+1)*group; h++ {
			qv := view{Q[seq*t*qw+h*hd:], qw, 1}
			p := P[(seq*s.Heads+h)*t*pad:][:t*pad]
			for lo := 0; lo < t; lo += attendRows {
				hi := min(lo+attendRows, t)
				b.product(p, pad, qv, kp.sub(0, hd, hi), lo, hi, false)
				for i := lo; i < hi; i++ {
					row := p[i*pad:][:lo+attendRows]
					for j := i + 1; j < len(row); j++ {
						row[j] = float32(math.Inf(-1))
					}
					sum := b.expSum(row, row, scale, b.maximum(row)*scale)
					b.kernels.scale(row, row, 1/sum)
				}
				b.product(O[seq*t*qw+h*hd:], qw, view{p, pad, 1}, vp.sub(0, hi, hd), lo, hi, false)
			}
		}
		b.release(kbuf)
		b.release(vbuf)
	})
}

// attentionScale is 1/√headDim in float32.
func attentionScale(headDim int) float32 { return 1 / sqrt(float32(headDim)) }

// AttentionGrad runs over the same pairs; the heads of a group add to dk and dv in their order.
func (b *Backend) AttentionGrad(dq, dk, dv, dout, _, q, k, v backend.Buffer, a backend.Attn) {
	DQ, DK, DV, DO, P, s := host(dq), host(dk), host(dv), host(dout), a.(*attn).probs, a.Shape()
	Q, K, V := host(q), host(k), host(v)
	t, hd, pad := s.Seq, s.HeadDim, s.Padded()
	qw, kw, group := s.Heads*hd, s.KVHeads*hd, s.Heads/s.KVHeads
	scale := attentionScale(hd)
	b.par(len(Q)/qw/t*s.KVHeads, func(item int) {
		seq, kv := item/s.KVHeads, item%s.KVHeads
		n := panelLen(t, hd)
		buf := b.scratch(3*n + panelLen(hd, t) + t*pad)
		kp := packNN(buf, K[seq*t*kw+kv*hd:], t, hd, kw)
		vp := packNT(buf[3*n:], V[seq*t*kw+kv*hd:], hd, t, kw)
		ds := buf[3*n+panelLen(hd, t):]
		for h := kv * group; h < (kv+1)*group; h++ {
			qoff := seq*t*qw + h*hd
			op := packNN(buf[n:], DO[qoff:], t, hd, qw)
			qp := packNN(buf[2*n:], Q[qoff:], t, hd, qw)
			p := P[(seq*s.Heads+h)*t*pad:][:t*pad]
			for lo := 0; lo < t; lo += attendRows {
				hi := min(lo+attendRows, t)
				b.product(ds, pad, view{DO[qoff:], qw, 1}, vp.sub(0, hd, hi), lo, hi, false)
				for i := lo; i < hi; i++ {
					row, pr := ds[i*pad:][:lo+attendRows], p[i*pad:][:lo+attendRows]
					clear(row[hi:])
					b.softmaxGrad(row, pr, row, b.dot(pr, row), scale)
				}
				b.product(DQ[qoff:], qw, view{ds, pad, 1}, kp.sub(0, hi, hd), lo, hi, false)
			}
			first := h == kv*group
			kvoff := seq*t*kw + kv*hd
			for lo := 0; lo < t; lo += attendRows { // columns of p and ds: rows i ≥ lo reach them
				hi := min(lo+attendRows, t)
				b.product(DV[kvoff+lo*kw:], kw, view{p[lo*pad+lo:], 1, pad}, op.sub(lo, t-lo, hd), 0, hi-lo, !first)
				b.product(DK[kvoff+lo*kw:], kw, view{ds[lo*pad+lo:], 1, pad}, qp.sub(lo, t-lo, hd), 0, hi-lo, !first)
			}
		}
		b.release(buf)
	})
}
