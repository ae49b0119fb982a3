package cpu

import "github.com/blockzero-net/bzd/training/backend"

// attendRows is the height of a block of rows that share their causal horizon; part of docs/spec/exact.md.
const attendRows = 16

// attn keeps the probabilities, [rows/Seq, Heads, Seq, Seq rounded up to 16], or nothing.
type attn struct {
	backend.AttentionShape
	probs []float32
}

func (a *attn) Shape() backend.AttentionShape { return a.AttentionShape }

// NewAttn allocates for rows rows.
func (b *Backend) NewAttn(s backend.AttentionShape, rows int, keep bool) backend.Attn {
	a := &attn{AttentionShape: s}
	if keep {
		a.probs = make([]float32, rows/s.Seq*s.Heads*s.Seq*s.Padded())
	}
	return a
}

// Attention runs over pairs of a sequence and a key-value head.
func (b *Backend) Attention(out, q, k, v backend.Buffer, a backend.Attn) {
	O, P, Q, K, V, s := host(out), a.(*attn).probs, host(q), host(k), host(v), a.Shape()
	t, hd, pad := s.Seq, s.HeadDim, s.Padded()
	qw, kw, group := s.Heads*hd, s.KVHeads*hd, s.Heads/s.KVHeads
	scale := attentionScale(hd)
	b.par(len(Q)/qw/t*s.KVHeads, func(w *work, item int) {
		seq, kv := item/s.KVHeads, item%s.KVHeads
		np, nv := panels(hd, t), panels(t, hd)
		buf := w.scratch(np + nv + attendRows*pad)
		kp := b.packed(w, buf, right{f: K[seq*t*kw+kv*hd:], row: kw, turned: true}, hd, t)
		vp := b.packed(w, buf[np:], right{f: V[seq*t*kw+kv*hd:], row: kw}, t, hd)
		for h := kv * group; h < (kv+1)*group; h++ {
			out := O[seq*t*qw+h*hd:]
			for lo := 0; lo < t; lo += attendRows {
				hi := min(lo+attendRows, t)
				p := buf[np+nv:]
				if P != nil {
					p = P[((seq*s.Heads+h)*t+lo)*pad:]
				}
				b.product(w, p, pad, view{Q[(seq*t+lo)*qw+h*hd:], qw, 1}, kp, hd, 0, hi-lo, 0, hi, false)
				b.softmax(p, hi-lo, pad, lo+attendRows, 1, 1, scale)
				b.product(w, out[lo*qw:], qw, view{p, pad, 1}, vp, hi, 0, hi-lo, 0, hd, false)
			}
		}
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
	b.par(len(Q)/qw/t*s.KVHeads, func(w *work, item int) {
		seq, kv := item/s.KVHeads, item%s.KVHeads
		n := panels(t, hd)
		buf := w.scratch(3*n + panels(hd, t) + t*pad)
		kp := b.packed(w, buf, right{f: K[seq*t*kw+kv*hd:], row: kw}, t, hd)
		vp := b.packed(w, buf[3*n:], right{f: V[seq*t*kw+kv*hd:], row: kw, turned: true}, hd, t)
		ds := buf[3*n+panels(hd, t):]
		for h := kv * group; h < (kv+1)*group; h++ {
			qoff := seq*t*qw + h*hd
			op := b.packed(w, buf[n:], right{f: DO[qoff:], row: qw}, t, hd)
			qp := b.packed(w, buf[2*n:], right{f: Q[qoff:], row: qw}, t, hd)
			p := P[(seq*s.Heads+h)*t*pad:][:t*pad]
			for lo := 0; lo < t; lo += attendRows {
				hi := min(lo+attendRows, t)
				b.product(w, ds, pad, view{DO[qoff:], qw, 1}, vp, hd, lo, hi, 0, hi, false)
				for i := lo; i < hi && hi < lo+attendRows; i++ {
					clear(ds[i*pad+hi:][:lo+attendRows-hi])
				}
				b.softmaxGrads(ds[lo*pad:], p[lo*pad:], hi-lo, pad, lo+attendRows, scale)
				b.product(w, DQ[qoff:], qw, view{ds, pad, 1}, kp, hi, lo, hi, 0, hd, false)
			}
			first := h == kv*group
			kvoff := seq*t*kw + kv*hd
			for lo := 0; lo < t; lo += attendRows { // columns of p and ds: rows i ≥ lo reach them
				hi := min(lo+attendRows, t)
				b.product(w, DV[kvoff+lo*kw:], kw, view{p[lo*pad+lo:], 1, pad}, op.from(lo), t-lo, 0, hi-lo, 0, hd, !first)
				b.product(w, DK[kvoff+lo*kw:], kw, view{ds[lo*pad+lo:], 1, pad}, qp.from(lo), t-lo, 0, hi-lo, 0, hd, !first)
			}
		}
	})
}
