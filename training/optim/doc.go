// Package optim moves parameters: AdamW with decoupled weight decay, clipping by the global norm, and the learning
// rate schedules that bzd uses.
//
// [AdamW] owns the moments of a list of parameters; its state can be read out and put back, so a stopped run continues
// with the same bits. Scalars are computed in float64 from operations that docs/spec/exact.md defines, so they too are the
// same everywhere.
//
// The package imports training/backend and training/exact.
package optim
