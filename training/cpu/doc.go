// Package cpu computes the model on the processor, exactly: the bits of every result are fixed by docs/spec/exact.md and
// are the same for AVX-512, AVX2, NEON and plain Go, for any number of threads and any composition of a batch.
//
// [New] returns a backend.Backend. A product runs in generated assembly (internal/asmgen), strip by strip of the left-hand
// matrix, over a block of the right-hand one that was packed into the cache in panels of 16 columns. Weights lie as in a
// checkpoint, in two bytes a value if they are frozen and bfloat16; nothing is kept packed. Element-wise operations and
// reductions run over vectors of 16 lanes. The plain Go code in scalar.go is the reference of that arithmetic: slow, and
// equal to the bit.
//
// Files: kernels.go chooses an instruction set; matrix.go multiplies; weight.go keeps weights; the rest is one file per
// interface of package backend. The package imports training/backend only.
package cpu
