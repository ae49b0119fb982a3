// Package merge turns accepted deltas into the next model, in integers.
//
// It answers four questions of a cycle, each a pure function of certified inputs:
//
//   - how much each delta of a group counts: [Weights], in proportion to score, nobody above a capped part of the mass;
//   - what the merged tensor is: [Step], exact sums and one final rounding, so that every validator gets the same bits;
//   - how far to go: [Rules.Best] reads one validator's line search and [Median] certifies one scale for all;
//   - whom to leave out when no scale helps: [WorstGroup].
//
// docs/spec/merge.md gives the formulas and their vectors.
//
// The package imports the standard library and internal/protocol; it declares the iterator over integer codes
// ([Codes]) that a decoded delta satisfies. No clock, disk, goroutine or randomness, and no floating point but the one
// rounding at the end of [Step].
package merge
