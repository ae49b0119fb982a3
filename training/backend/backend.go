package backend

import "errors"

// ErrOutOfMemory is wrapped by what Sync returns when the device has too little memory. Smaller batches help.
var ErrOutOfMemory = errors.New("out of device memory")

// ErrUnsupported is wrapped by what Sync returns after an operation that the backend does not compute. It does not go away.
var ErrUnsupported = errors.New("operation not computed by this backend")

// Buffer is a run of float32 in the backend's memory. Buffers of one backend are not understood by another.
type Buffer interface {
	// Len is the number of values.
	Len() int
	// Slice is the view of n values from off. It shares memory.
	Slice(off, n int) Buffer
}

// Weight is a matrix [out, in] in the form in which the backend multiplies by it fastest.
type Weight interface {
	// Data is the row-major buffer the weight was prepared from, nil for a frozen one.
	Data() Buffer
	// Shape is [out, in].
	Shape() (out, in int)
	// Refresh must be called after Data has changed and before the next use. It must not run beside a use. A frozen weight
	// has nothing to refresh.
	Refresh()
}

// Backend is the whole set of operations. Operations on one backend may be called from several goroutines as long as
// no two write the same buffer. Operations do not fail one by one: a device reports its first failure from Sync.
type Backend interface {
	// Name says what computes, e.g. "cpu avx512 ×2".
	Name() string
	Memory
	Linear
	Norm
	Attention
	Mixture
	Block
	Loss
	Optimizer
}

// Memory moves values between Go slices and buffers.
type Memory interface {
	// Alloc returns n zeros.
	Alloc(n int) Buffer
	// AllocActivation returns n zeros in the type in which the backend keeps activations: float32 if it is exact, possibly a
	// shorter one if not. Every operation takes such buffers where its comment does not say float32.
	AllocActivation(n int) Buffer
	// Write copies src to dst; Read copies src to dst. Lengths must be equal.
	Write(dst Buffer, src []float32)
	Read(dst []float32, src Buffer)
	// Copy sets dst = x.
	Copy(dst, x Buffer)
	// Zero clears a buffer.
	Zero(b Buffer)
	// Add sets dst = dst + x; Sum sets dst = x + y.
	Add(dst, x Buffer)
	Sum(dst, x, y Buffer)
	// Columns gathers columns of x [rows, width] into dst [rows, len(cols)].
	Columns(dst, x Buffer, cols []int)
	// Sync waits for everything asked before and returns the first failure of the device, if any. After a lack of memory
	// the buffers that were to be allocated are unusable, and everything computed since is void; the rest is intact.
	Sync() error
}

// Linear is multiplication by weights. The number of rows follows from x.
type Linear interface {
	// Prepare wraps w [out, in], which is float32.
	Prepare(w Buffer, out, in int) Weight
	// Freeze makes a weight [out, in] that never changes, of values that are not kept. spill says that it may live outside
	// the device's own memory if that is scarce.
	Freeze(values []float32, out, in int, spill bool) Weight
	// Linear sets y = x·Wᵀ.
	Linear(y, x Buffer, w Weight)
	// LinearGradInput sets dx = dy·W, or adds it to dx.
	LinearGradInput(dx, dy Buffer, w Weight, add bool)
	// LinearGradWeight adds dyᵀ·x to dw [out, in], float32, for dy [rows, out] and x [rows, in].
	LinearGradWeight(dw, dy, x Buffer, rows int)
}

// Rope holds, in float32, cos and sin of the rotary embedding, [positions, headDim/2] each.
type Rope struct{ Cos, Sin, NegSin Buffer }

// Norm is root-mean-square normalisation, over whole rows and over the heads of a row with rotary embedding after. w, dw
// and inv are float32.
type Norm interface {
	// RMSNorm sets y = x/rms(x)·w per row of len(w) and keeps inv = 1/rms, one per row.
	RMSNorm(y, inv, x, w Buffer, eps float32)
	// RMSNormGrad adds the input gradient to dx and, unless dw is nil, the weight gradient to dw.
	RMSNormGrad(dx, dw, dy, inv, x, w Buffer)
	// HeadNormRope normalises each of the heads of a row (len(w) values each) and rotates it by the row's position in its
	// sequence of seq rows.
	HeadNormRope(y, inv, x, w Buffer, r Rope, heads, seq int, eps float32)
	// HeadNormRopeGrad sets dx and, unless dw is nil, adds to dw. It overwrites dy.
	HeadNormRopeGrad(dx, dw, dy, inv, x, w Buffer, r Rope, heads, seq int)
}

// AttentionShape describes causal grouped-query attention over sequences of Seq rows.
type AttentionShape struct{ Seq, Heads, KVHeads, HeadDim int }

// Padded is Seq rounded up to a multiple of 16.
func (s AttentionShape) Padded() int { return (s.Seq + 15) &^ 15 }

// Attn holds what one layer's attention keeps between its forward and backward pass.
type Attn interface {
	Shape() AttentionShape
}

// Attention is softmax(q·kᵀ/√HeadDim)·v under the causal mask. q is [rows, Heads·HeadDim], k and v
// [rows, KVHeads·HeadDim].
type Attention interface {
	// NewAttn allocates for up to rows rows. For a forward pass only, keep may be false.
	NewAttn(s AttentionShape, rows int, keep bool) Attn
	// Attention sets out.
	Attention(out, q, k, v Buffer, a Attn)
	// AttentionGrad sets dq, dk and dv. out, q, k and v are those of the forward pass that a was last used for.
	AttentionGrad(dq, dk, dv, dout, out, q, k, v Buffer, a Attn)
}

// MixtureShape describes the experts of one layer.
type MixtureShape struct {
	Experts, TopK, Model, Width int
	// Normalize divides the chosen probabilities by their sum (norm_topk_prob).
	Normalize bool
}

// Mix holds what one layer's mixture keeps between its forward and backward pass.
type Mix interface {
	// Load returns how many (token, slot) pairs went to each expert in the last forward pass.
	Load() []int
}

// Expert is one SwiGLU expert: down(silu(gate(x))·up(x)); Gate and Up are [Width, Model], Down is [Model, Width].
type Expert struct{ Gate, Up, Down Weight }

// ExpertGrad holds an expert's gradient buffers, float32, all nil when it is frozen.
type ExpertGrad struct{ Gate, Up, Down Buffer }

// Mixture is the routed experts. Selection is by probability, ties by lower index; a token's outputs are combined in
// the order of its slots, most probable first.
type Mixture interface {
	// NewMix allocates for up to rows rows. For a forward pass only, keep may be false.
	NewMix(s MixtureShape, rows int, keep bool) Mix
	// Mixture routes x by logits [rows, Experts], float32, and sets y to the weighted sum of its experts' outputs.
	Mixture(y, x, logits Buffer, experts []Expert, m Mix)
	// MixtureGrad sets dlogits, float32, adds the input gradient to dx unless dx is nil, and adds the weight gradients of
	// the experts that have buffers. x is that of the forward pass; it may be nil if no expert has buffers. balance is the coefficient of the load-balance loss Experts·Σ_e load_e·mean prob_e, where
	// load_e is the slots of e per token, taken as constant. It uses up what m kept: one backward pass per forward pass.
	MixtureGrad(dx, dlogits, dy, x Buffer, experts []Expert, grads []ExpertGrad, m Mix, balance float32)
}

// Block is what layers hold besides in some families of models: biases, rotary embedding without a norm per head, and an
// expert that every token goes through. Weights and biases are float32, and so are gates.
type Block interface {
	// AddBias adds bias to every row of x.
	AddBias(x, bias Buffer)
	// Rotate sets y to x with each of the heads of a row, dim values each, rotated by the row's position in its sequence of
	// seq rows, or with back by that angle the other way, which is the gradient. y may be x.
	Rotate(y, x Buffer, r Rope, dim, heads, seq int, back bool)
	// SwiGLU sets y = silu(gate)·up.
	SwiGLU(y, gate, up Buffer)
	// SwiGLUGrad sets dgate and dup.
	SwiGLUGrad(dgate, dup, dy, gate, up Buffer)
	// AddGated adds sigmoid(gate)·x to y, for one gate per row.
	AddGated(y, x, gate Buffer)
	// AddGatedGrad sets dx, and dgate, one per row.
	AddGatedGrad(dx, dgate, dy, x, gate Buffer)
}

// Loss covers both ends of the model: embedding lookup and cross-entropy.
type Loss interface {
	// Embed gathers rows of table [vocab, dim]; EmbedGrad adds dy to the rows of dtable, float32.
	Embed(y Buffer, table Weight, ids []int32)
	EmbedGrad(dtable, dy Buffer, ids []int32)
	// CrossEntropy sets losses to the negative log-likelihoods in nats of targets under logits [rows, vocab]; they are there
	// after the next Sync, and neither slice may be touched before. With scale not zero logits become scale times their
	// gradient, otherwise their content is undefined.
	CrossEntropy(losses []float64, logits Buffer, targets []int32, scale float32)
}

// AdamW are the scalars of one step, already combined: see docs/spec/exact.md.
type AdamW struct {
	Clip        float32 // factor on the gradient
	Beta1, One1 float32 // β₁, 1−β₁
	Beta2, One2 float32 // β₂, 1−β₂
	Step        float32 // lr/(1−β₁ᵗ)
	Root        float32 // 1/√(1−β₂ᵗ)
	Eps         float32
	Decay       float32 // lr·weight decay
}

// Optimizer updates parameters, all of them float32.
type Optimizer interface {
	// AdamW updates p and its moments m and v by the gradient g.
	AdamW(p, m, v, g Buffer, h AdamW)
	// SumSquares returns Σ x² of every buffer.
	SumSquares(x []Buffer) []float32
}

// Onto is implemented by backends that add to the residual stream what they compute, as they compute it. The bits are those
// of the operation followed by Sum. y is neither of its operands.
type Onto interface {
	// LinearOnto sets y = base + x·Wᵀ.
	LinearOnto(y, base, x Buffer, w Weight)
	// MixtureOnto sets y = base + what Mixture sets.
	MixtureOnto(y, base, x, logits Buffer, experts []Expert, m Mix)
}

// HalfMoments is implemented by backends that can keep an optimizer's moments in bfloat16, in the host's memory.
type HalfMoments interface {
	// AdamWHalf is AdamW for moments that are rounded to bfloat16 when p has been moved: docs/spec/exact.md.
	AdamWHalf(p Buffer, m, v []uint16, g Buffer, h AdamW)
}

// Mapper is implemented by backends that can multiply by matrices where they lie in a file, so that a model may be larger
// than memory.
type Mapper interface {
	// Map makes a frozen weight [out, in] of the little-endian values at raw, bfloat16 ones if half, otherwise float32. They
	// are not copied, and must stay there as long as the weight is used; what cannot be read any more is reported by Sync.
	// It fails if a value is not finite. The weight is nil if the values cannot be used where they lie.
	Map(raw []byte, half bool, out, in int) (Weight, error)
	// Values copies the values of a weight, a mapped one too.
	Values(dst []float32, w Weight)
}
