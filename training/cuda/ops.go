package cuda

import (
	"fmt"

	"github.com/blockzero-net/bzd/training/backend"
)

// The exported operations lock, check what a caller may get wrong, and leave the rest to the mode: exact*.go and fast*.go.

func (b *Backend) fast() bool { return b.mode == Fast }

// weightOf panics unless w has in columns that divide n values.
func weightOf(op string, w backend.Weight, n int, transposed bool) *weight {
	p := w.(*weight)
	width := p.in
	if transposed {
		width = p.out
	}
	if n%width != 0 {
		panic(fmt.Sprintf("cuda: %s of %d values with a weight [%d, %d]", op, n, p.out, p.in))
	}
	return p
}

func mustF32(op string, all ...*buffer) {
	for _, x := range all {
		if x != nil && x.kind != f32 {
			panic("cuda: " + op + " takes float32")
		}
	}
}

// Add sets dst = dst + x.
func (b *Backend) Add(dst, x backend.Buffer) { b.Sum(dst, dst, x) }

// Sum sets dst = x + y.
func (b *Backend) Sum(dst, x, y backend.Buffer) {
	b.op.Lock()
	defer b.op.Unlock()
	d, p, q := on(dst), on(x), on(y)
	mustMatch("sum", d.n, p.n)
	mustMatch("sum", d.n, q.n)
	if b.fast() {
		b.fastSum(d, p, q)
		return
	}
	b.exactSum(d, p, q)
}

// Columns gathers columns of float32.
func (b *Backend) Columns(dst, x backend.Buffer, cols []int) {
	b.op.Lock()
	defer b.op.Unlock()
	d, s := on(dst), on(x)
	mustF32("Columns", d, s)
	b.exactColumns(d, s, cols)
}

// Linear sets y = x·Wᵀ.
func (b *Backend) Linear(y, x backend.Buffer, w backend.Weight) {
	b.op.Lock()
	defer b.op.Unlock()
	Y, X := on(y), on(x)
	p := weightOf("Linear", w, X.n, false)
	mustMatch("Linear", Y.n, X.n/p.in*p.out)
	if b.fast() {
		b.fastLinear(Y, X, p)
		return
	}
	b.exactLinear(Y, X, p)
}

// LinearGradInput sets dx = dy·W or adds it.
func (b *Backend) LinearGradInput(dx, dy backend.Buffer, w backend.Weight, add bool) {
	b.op.Lock()
	defer b.op.Unlock()
	DX, DY := on(dx), on(dy)
	p := weightOf("LinearGradInput", w, DY.n, true)
	mustMatch("LinearGradInput", DX.n, DY.n/p.out*p.in)
	if b.fast() {
		b.fastLinearGradInput(DX, DY, p, add)
		return
	}
	b.exactLinearGradInput(DX, DY, p, add)
}

// LinearGradWeight adds dyᵀ·x to dw.
func (b *Backend) LinearGradWeight(dw, dy, x backend.Buffer, rows int) {
	if rows == 0 {
		return
	}
	b.op.Lock()
	defer b.op.Unlock()
	DW, DY, X := on(dw), on(dy), on(x)
	mustF32("LinearGradWeight", DW)
	mustMatch("LinearGradWeight", DW.n, DY.n/rows*(X.n/rows))
	if b.fast() {
		b.fastLinearGradWeight(DW, DY, X, rows)
		return
	}
	b.exactLinearGradWeight(DW, DY, X, rows)
}

// RMSNorm normalises rows of len(w).
func (b *Backend) RMSNorm(y, inv, x, w backend.Buffer, eps float32) {
	b.op.Lock()
	defer b.op.Unlock()
	Y, I, X, W := on(y), on(inv), on(x), on(w)
	mustF32("RMSNorm", I, W)
	mustMatch("RMSNorm", Y.n, X.n)
	mustMatch("RMSNorm", I.n*W.n, X.n)
	if b.fast() {
		b.fastRMSNorm(Y, I, X, W, eps)
		return
	}
	b.exactRMSNorm(Y, I, X, W, eps)
}

// RMSNormGrad adds to dx and dw.
func (b *Backend) RMSNormGrad(dx, dw, dy, inv, x, w backend.Buffer) {
	b.op.Lock()
	defer b.op.Unlock()
	DX, DW, DY, I, X, W := on(dx), on(dw), on(dy), on(inv), on(x), on(w)
	mustF32("RMSNormGrad", DW, I, W)
	mustMatch("RMSNormGrad", DX.n, DY.n)
	if b.fast() {
		b.fastRMSNormGrad(DX, DW, DY, I, X, W)
		return
	}
	b.exactRMSNormGrad(DX, DW, DY, I, X, W)
}

// HeadNormRope normalises and rotates heads.
func (b *Backend) HeadNormRope(y, inv, x, w backend.Buffer, r backend.Rope, heads, seq int, eps float32) {
	b.op.Lock()
	defer b.op.Unlock()
	Y, I, X, W := on(y), on(inv), on(x), on(w)
	mustF32("HeadNormRope", I, W)
	mustMatch("HeadNormRope", Y.n, X.n)
	mustMatch("HeadNormRope", I.n*W.n, X.n)
	if b.fast() {
		b.fastHeadNormRope(Y, I, X, W, r, heads, seq, eps)
		return
	}
	b.exactHeadNormRope(Y, I, X, W, r, heads, seq, eps)
}

// HeadNormRopeGrad sets dx and adds to dw; dy is used up.
func (b *Backend) HeadNormRopeGrad(dx, dw, dy, inv, x, w backend.Buffer, r backend.Rope, heads, seq int) {
	b.op.Lock()
	defer b.op.Unlock()
	DX, DW, DY, I, X, W := on(dx), on(dw), on(dy), on(inv), on(x), on(w)
	mustF32("HeadNormRopeGrad", DW, I, W)
	mustMatch("HeadNormRopeGrad", DX.n, DY.n)
	if b.fast() {
		b.fastHeadNormRopeGrad(DX, DW, DY, I, X, W, r, heads, seq)
		return
	}
	b.exactHeadNormRopeGrad(DX, DW, DY, I, X, W, r, heads, seq)
}

// attn is what attention keeps: the probabilities in exact mode, the logarithm of the row sums in fast mode.
type attn struct {
	backend.AttentionShape
	kept *buffer
}

func (a *attn) Shape() backend.AttentionShape { return a.AttentionShape }

// NewAttn allocates for rows rows.
func (b *Backend) NewAttn(s backend.AttentionShape, rows int, _ bool) backend.Attn {
	b.op.Lock()
	defer b.op.Unlock()
	n := rows * s.Heads
	if !b.fast() {
		n *= s.Padded()
	}
	return &attn{s, b.alloc(f32, n)}
}

// Attention sets out.
func (b *Backend) Attention(out, q, k, v backend.Buffer, a backend.Attn) {
	b.op.Lock()
	defer b.op.Unlock()
	O, Q, K, V := on(out), on(q), on(k), on(v)
	mustMatch("Attention", O.n, Q.n)
	mustMatch("Attention", K.n, V.n)
	if b.fast() {
		b.fastAttention(O, Q, K, V, a.(*attn))
		return
	}
	b.exactAttention(O, Q, K, V, a.(*attn))
}

// AttentionGrad sets dq, dk and dv.
func (b *Backend) AttentionGrad(dq, dk, dv, dout, out, q, k, v backend.Buffer, a backend.Attn) {
	b.op.Lock()
	defer b.op.Unlock()
	DQ, DK, DV, DO, O, Q, K, V := on(dq), on(dk), on(dv), on(dout), on(out), on(q), on(k), on(v)
	mustMatch("AttentionGrad", DQ.n, DO.n)
	mustMatch("AttentionGrad", DK.n, DV.n)
	if b.fast() {
		b.fastAttentionGrad(DQ, DK, DV, DO, O, Q, K, V, a.(*attn))
		return
	}
	b.exactAttentionGrad(DQ, DK, DV, DO, Q, K, V, a.(*attn))
}

// NewMix allocates for rows rows.
func (b *Backend) NewMix(s backend.MixtureShape, rows int, keep bool) backend.Mix {
	b.op.Lock()
	defer b.op.Unlock()
	if b.fast() {
		return b.newFastMix(s, rows, keep)
	}
	return b.newExactMix(s, rows, keep)
}

// Mixture routes and runs the experts.
func (b *Backend) Mixture(y, x, logits backend.Buffer, experts []backend.Expert, m backend.Mix) {
	b.op.Lock()
	defer b.op.Unlock()
	Y, X, L := on(y), on(x), on(logits)
	mustF32("Mixture", L)
	mustMatch("Mixture", Y.n, X.n)
	done := b.spill.bring(experts)
	defer done()
	if b.fast() {
		b.fastMixture(Y, X, L, experts, m.(*fastMix))
		return
	}
	b.exactMixture(Y, X, L, experts, m.(*exactMix))
}

// MixtureGrad is the gradient of Mixture.
func (b *Backend) MixtureGrad(dx, dlogits, dy, x backend.Buffer, experts []backend.Expert, grads []backend.ExpertGrad, m backend.Mix, balance float32) {
	b.op.Lock()
	defer b.op.Unlock()
	DX, DL, DY, X := on(dx), on(dlogits), on(dy), on(x)
	mustF32("MixtureGrad", DL)
	done := b.spill.bring(experts)
	defer done()
	if b.fast() {
		b.fastMixtureGrad(DX, DL, DY, X, experts, grads, m.(*fastMix), balance)
		return
	}
	b.exactMixtureGrad(DX, DL, DY, X, experts, grads, m.(*exactMix), balance)
}

// Embed gathers rows of table.
func (b *Backend) Embed(y backend.Buffer, table backend.Weight, ids []int32) {
	b.op.Lock()
	defer b.op.Unlock()
	Y, w := on(y), table.(*weight)
	mustMatch("Embed", Y.n, len(ids)*w.in)
	mustBelow("token", ids, w.out)
	if b.fast() {
		b.fastEmbed(Y, w, ids)
		return
	}
	b.exactEmbed(Y, w, ids)
}

// EmbedGrad adds rows of dy.
func (b *Backend) EmbedGrad(dtable, dy backend.Buffer, ids []int32) {
	b.op.Lock()
	defer b.op.Unlock()
	T, DY := on(dtable), on(dy)
	mustF32("EmbedGrad", T)
	mustBelow("token", ids, T.n/(DY.n/len(ids)))
	b.embedGrad(T, DY, ids)
}

// CrossEntropy fills losses at the next Sync.
func (b *Backend) CrossEntropy(losses []float64, logits backend.Buffer, targets []int32, scale float32) {
	b.op.Lock()
	defer b.op.Unlock()
	L := on(logits)
	mustMatch("CrossEntropy", len(losses), len(targets))
	mustBelow("target", targets, L.n/len(targets))
	out := b.alloc(f32, 2*len(losses))
	if b.fast() {
		b.fastCrossEntropy(out, L, upload(b.device, targets), len(targets), scale)
	} else {
		b.exactCrossEntropy(out, L, upload(b.device, targets), len(targets), scale)
	}
	b.pending = append(b.pending, pending{losses, out})
}

// mustBelow keeps an index from reaching memory it should not.
func mustBelow(what string, ids []int32, n int) {
	for _, id := range ids {
		if id < 0 || int(id) >= n {
			panic(fmt.Sprintf("cuda: %s %d of %d", what, id, n))
		}
	}
}

// AdamW updates p, m and v.
func (b *Backend) AdamW(p, m, v, g backend.Buffer, h backend.AdamW) {
	b.op.Lock()
	defer b.op.Unlock()
	P, M, V, G := on(p), on(m), on(v), on(g)
	mustF32("AdamW", P, M, V, G)
	mustMatch("AdamW", P.n, G.n)
	mustMatch("AdamW", M.n, G.n)
	mustMatch("AdamW", V.n, G.n)
	if b.fast() {
		b.fastAdamW(P, M, V, G, h)
		return
	}
	b.adamW(P, M, V, G, h)
}

// SumSquares waits for the sums.
func (b *Backend) SumSquares(x []backend.Buffer) []float32 {
	b.op.Lock()
	defer b.op.Unlock()
	all := make([]*buffer, len(x))
	for i := range x {
		all[i] = on(x[i])
		mustF32("SumSquares", all[i])
	}
	if len(x) == 0 {
		return nil
	}
	if b.fast() {
		return b.fastSumSquares(all)
	}
	sums, out := make([]float32, len(x)), b.scratch(f32, len(x))
	b.exactSumSquares(out, all)
	b.read(bytesOf(sums), out)
	b.release(out)
	return sums
}
