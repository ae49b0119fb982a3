// Calls of the driver API that gorgonia.org/cu lacks, or that must be one call from Go: each makes the context current on
// the thread first, so that nothing depends on the thread a goroutine runs on.
#include <cuda.h>
#include <string.h>
#include "../libcuda/libcuda.h"

#define BZD_CURRENT(ctx)                        \
	do {                                        \
		CUresult current = cuCtxSetCurrent(ctx); \
		if (current != CUDA_SUCCESS)            \
			return current;                     \
	} while (0)

enum { bzd_max_args = 64, bzd_max_bytes = 4096 };

// The shape and the arguments of a launch. No pointers, so that it may lie in Go memory.
typedef struct {
	unsigned grid[3], block[3], shared, count, used;
	unsigned short at[bzd_max_args];
	unsigned char values[bzd_max_bytes];
} bzd_launch_t;

static inline CUresult bzd_launch(CUcontext ctx, CUfunction f, CUstream s, const bzd_launch_t *l) {
	_Alignas(64) unsigned char values[bzd_max_bytes]; // a tensor map needs its alignment
	void *args[bzd_max_args];
	memcpy(values, l->values, l->used);
	for (unsigned i = 0; i < l->count; i++)
		args[i] = values + l->at[i];
	BZD_CURRENT(ctx);
	return cuLaunchKernel(f, l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1], l->block[2], l->shared, s, args, NULL);
}

static inline CUresult bzd_to_device(CUcontext ctx, CUdeviceptr dst, const void *src, size_t n, CUstream s, int wait) {
	BZD_CURRENT(ctx);
	CUresult r = cuMemcpyHtoDAsync(dst, src, n, s);
	return r != CUDA_SUCCESS || !wait ? r : cuStreamSynchronize(s);
}

static inline CUresult bzd_to_host(CUcontext ctx, void *dst, CUdeviceptr src, size_t n, CUstream s, int wait) {
	BZD_CURRENT(ctx);
	CUresult r = cuMemcpyDtoHAsync(dst, src, n, s);
	return r != CUDA_SUCCESS || !wait ? r : cuStreamSynchronize(s);
}

static inline CUresult bzd_copy_device(CUcontext ctx, CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) {
	BZD_CURRENT(ctx);
	return cuMemcpyDtoDAsync(dst, src, n, s);
}

static inline CUresult bzd_fill(CUcontext ctx, CUdeviceptr dst, unsigned v, size_t words, CUstream s) {
	BZD_CURRENT(ctx);
	return cuMemsetD32Async(dst, v, words, s);
}

static inline CUresult bzd_alloc_host(CUcontext ctx, void **p, size_t n) {
	BZD_CURRENT(ctx);
	return cuMemHostAlloc(p, n, CU_MEMHOSTALLOC_PORTABLE);
}

static inline CUresult bzd_sync(CUcontext ctx, CUstream s) {
	BZD_CURRENT(ctx);
	return cuStreamSynchronize(s);
}

// Compiles PTX, which ends with a zero byte. What the compiler says of its errors goes to log.
static inline CUresult bzd_load(CUcontext ctx, CUmodule *m, const void *ptx, char *log, size_t size) {
	CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
	void *values[] = {log, (void *)size};
	BZD_CURRENT(ctx);
	return cuModuleLoadDataEx(m, ptx, 2, options, values);
}

// Looks a kernel up and lets it have all the shared memory of a block that its static variables leave, of limit bytes.
static inline CUresult bzd_function(CUcontext ctx, CUfunction *f, CUmodule m, const char *name, int limit) {
	int used = 0;
	BZD_CURRENT(ctx);
	CUresult r = cuModuleGetFunction(f, m, name);
	if (r == CUDA_SUCCESS)
		r = cuFuncGetAttribute(&used, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, *f);
	if (r == CUDA_SUCCESS)
		r = cuFuncSetAttribute(*f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit - used);
	return r;
}

// A map of a row-major bfloat16 matrix in tiles whose rows are 128 bytes, swizzled; outside it reads as 0.
static inline CUresult bzd_tensor_map(CUcontext ctx, void *map, CUdeviceptr base, int wide, cuuint64_t rows, cuuint64_t cols, cuuint64_t stride, unsigned box_rows, unsigned box_cols) {
	CUtensorMap m; // carries its alignment
	cuuint64_t size[] = {cols, rows}, strides[] = {(wide ? 4 : 2) * stride};
	cuuint32_t box[] = {box_cols, box_rows}, every[] = {1, 1};
	BZD_CURRENT(ctx);
	CUresult r = cuTensorMapEncodeTiled(&m, wide ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)base, size, strides, box, every,
		CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
	if (r == CUDA_SUCCESS)
		memcpy(map, &m, sizeof m);
	return r;
}
