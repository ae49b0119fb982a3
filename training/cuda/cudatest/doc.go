// Package cudatest has a [Fake] of the CUDA driver in plain Go, for tests of the host's logic. It computes nothing, but
// keeps bytes, so that what was copied to the device can be read back, and it watches: every call is recorded; use of what
// was never made, was freed, or is still being written by another stream, and memory that is left at Close, are violations
// that [Fake.Close] returns. [Sweep] makes call 0, 1, 2, … fail.
//
// Kernels themselves run in package emu.
package cudatest
