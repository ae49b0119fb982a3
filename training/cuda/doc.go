// Package cuda computes the model on an NVIDIA GPU through the driver alone.
//
// [Backend] implements training/backend in two modes. Exact reproduces docs/spec/exact.md to the bit, so that scores and
// receipts made on a GPU equal those of package cpu. Fast multiplies in bfloat16 on tensor cores, keeps activations in
// bfloat16 and is for training.
//
// The package is plain Go over the small interface [Driver]. The real driver is bound with the build tag cuda (package
// driver); without it there is no cgo and no CUDA in the binary. The kernels, in directory kernels, are CUDA C++ compiled to PTX that is checked in and
// embedded; the driver compiles it for the card at hand. For tests the same sources are built as plain C++ and run by
// package emu, so every kernel is compared with package cpu on machines without a GPU.
//
// The package imports training/backend and training/exact, nothing else of bzd.
package cuda
