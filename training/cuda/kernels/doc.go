// Package kernels embeds the CUDA kernels as PTX, the text that the driver compiles for the card at hand. [Modules] lists
// it, [Find] gives the module with a kernel.
//
// The sources are the *.cu files here, CUDA C++ with no headers but *.cuh. `make ptx` compiles them to directory ptx, which
// is checked in: *_sm90.cu for compute capability 9.0 alone, the others for 8.0 and everything newer. A test fails if the
// sources have changed since. `make ptxas` assembles the PTX for the cards people have.
//
// The package imports nothing of bzd.
package kernels
