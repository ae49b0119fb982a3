// Package emu runs the CUDA kernels without a GPU: it compiles the sources in training/cuda/kernels as plain C++ with g++
// and implements [cuda.Driver] over the process that results. It is for tests; nothing that ships imports it.
//
// [Test] starts an [Emulator] for a test, which is skipped where there is no g++, unless the environment has CI set. A
// kernel needs no registration: every `extern "C" __global__` function of kernels/*.cu is found, those of *_sm90.cu only with
// compute capability 9.0. Names must be unique among all files.
//
// A block's threads are fibers that switch at barriers and warp collectives, so a block behaves as on a GPU where
// its result does not depend on the order of threads; [Config.Reverse] runs them, and the blocks, in the opposite order, and
// a kernel that lacks a barrier then usually gives another result. What is not defined is made visible: fresh device
// memory, a block's shared memory, the target of a cp.async that has not been waited for and host memory that a copy has
// not reached are filled with NaNs. Streams are as lazy as they may be: nothing runs before somebody waits for it. So are the
// copy engine and the products of warpgroups of 9.0, unless [Config.Prompt] says that they do all at once; what threads write
// reaches them with async_fence alone.
//
// An error [cuda.ErrLaunch] reports: accesses outside of device memory, to freed memory, beyond the dynamic shared memory or
// the bounds of an array; writes into the padding around an allocation; misaligned vectors; divergent barriers and collectives, deadlocks;
// shuffles from lanes that do not take part; arguments that do not fit the kernel's parameters; endless loops; of 9.0, barriers
// that get too many arrivals or were overwritten, operands outside of shared memory or not in the swizzle of the maps, results
// and targets touched while they are under way, products without a fence, tensor maps not acquired, what is under way at the
// end, and more registers than there are. If the process dies, that is [cuda.ErrDeviceLost].
//
// Limits: one block runs at a time; reads within an allocation's padding (up to 255 bytes behind it) are not noticed but give
// NaNs; races that both orders hide stay hidden; mma sums in another order than the tensor cores; ex2.approx is a correct
// exp2f; of 9.0 there is what kernels/sm90.cuh has, in boxes of 128-byte rows and in bfloat16, without clusters: a block is one
// of its own; async_fence publishes what all threads of the block have written. Linux on amd64 and arm64.
package emu
