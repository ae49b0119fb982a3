// Command asmgen writes the assembly of package cpu, for AMD64 and for ARM64.
//
// Every vector kernel of AMD64 is described once, in terms of logical vectors of 16 float32, and emitted twice: for
// AVX-512 a logical vector is one ZMM register, for AVX2 it is a pair of YMM registers. The operations, and so the bits,
// are the same; see docs/spec/exact.md. The matrix kernels share one description parameterised by rows and columns.
// neon.go does the same for ARM64, where a logical vector is four registers.
//
// Run it through `go generate ./training/cpu`; a test here refuses a checked-in file that differs from what this program
// writes.
package main
