#ifndef BZD_LIBCUDA_H
#define BZD_LIBCUDA_H

// Opens the driver and initialises it, once for the process. Returns a CUresult: CUDA_ERROR_STUB_LIBRARY if there is no
// driver on this machine, with the loader's words in why, which is never NULL.
int bzd_cuda_init(const char **why);

#endif
