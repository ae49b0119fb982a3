// Package validation turns claims into rows: it draws held-out samples, compares losses before and after an update on
// the same samples, and reports the gain with its standard error in integers.
//
// [Draw] picks a cycle's samples from public randomness, leaving out those of recent cycles. [Measure] is Proof-of-Loss:
// the paired gain of one update, or its failure as a typed status. [Gain] is the arithmetic below both, exact and
// order-free, so two validators that see the same losses report the same row.
//
// What a row is worth decides validation/reward; what is merged, validation/merge; both pure. The package imports
// internal/protocol only. Models and pools are behind [Losses] and [Pool], which the composition root supplies.
package validation
