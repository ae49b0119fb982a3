// Package delta is the form in which a miner's work travels: the update of one expert group relative to a checkpoint,
// as integers.
//
// Every value is an int32 count of units of 2⁻²⁴, whatever the codec, so that norms, inner products and the merge are
// integer arithmetic and come out the same on every machine. [Delta] holds them per tensor, [Delta.Encode] and [Decode] are
// exact inverses on canonical bytes, and [Layout] says which tensors a group has and in which order. docs/spec/delta.md and
// docs/spec/codec.md give the bytes.
//
// The codec topk-2bit sends few values: [Choose] says which, [Send] turns them into units and leaves the rest, and a
// [Feedback] keeps that rest, with what was sent, until the next checkpoint shows what became of it. dense-bf16 sends all:
// [Quantize] turns a trained float32 difference into units.
//
// Decode trusts nothing: it is given what the receiver expects ([Expect]) and refuses any difference with an error that
// names the tensor and the element. Sizes are compared before anything is allocated.
//
// The package imports internal/protocol only. It does not read checkpoints: the caller supplies shapes, and applies
// the merged step.
package delta
