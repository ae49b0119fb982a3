// Package backendtest is the conformance suite of package backend: every implementation calls [RunAll] from its tests.
//
// reference.go computes every forward operation in float64, the naive way. Results are compared with it, and gradients
// with its central differences. [Options] say how far a result may be off, and whether the backend claims the exact
// arithmetic of docs/spec/exact.md: then the bits of a fixed battery of operations must give the digests recorded in
// digests.go, which are the compatibility promise, and the bits of a row must not depend on the rows beside it.
//
// Every buffer the suite hands out is a slice at an odd offset with guards around it, so a backend that reads or writes
// past an argument, or changes an input, fails. Only the interface is used; the package imports nothing of bzd but
// package backend, and it is linked into tests alone.
package backendtest
