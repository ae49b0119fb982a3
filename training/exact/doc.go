// Package exact holds the float64 functions whose bits the protocol depends on: [Log], [Exp], [Sin] and [Cos].
//
// The standard library's versions are assembly on some machines and may be fused on others, so their last bit varies.
// These are polynomials over single rounded operations, written so that no compiler may fuse them; see
// docs/spec/exact.md. They serve losses (log) and rotary tables (exp, sin, cos), not hot loops.
//
// The package imports the standard library only.
package exact
