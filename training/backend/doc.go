// Package backend declares what the model needs from the machine that computes it: memory, and some twenty operations
// of a mixture-of-experts transformer with hand-written gradients.
//
// [Backend] is the seam. Package cpu implements it with the exact arithmetic of docs/spec/exact.md, which every backend
// in exact mode must reproduce bit for bit: the same result for any SIMD width, thread count and batch composition.
// Package backendtest holds the conformance suite, RunAll, that every implementation passes.
//
// All matrices are float32, row-major and dense. A weight is stored [out, in] as in Hugging Face checkpoints and applied
// as y = x·Wᵀ. Shapes follow from buffer lengths; a wrong length is a bug of the caller and panics. A tensor that is not
// trained gets no gradient buffer: gradient arguments may be nil.
//
// The package imports nothing of bzd.
package backend
