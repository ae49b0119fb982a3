// A driver API for tests, whose card is this machine's memory. It insists on a current context, and fails on request.
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

static int retained, sticky, live;
static _Thread_local CUcontext current;

#define CONTEXT ((CUcontext)0x1000)
#define CHECK do { if (sticky) return sticky; if (current != CONTEXT || !retained) return CUDA_ERROR_INVALID_CONTEXT; } while (0)

CUresult cuInit(unsigned f) { const char *e = getenv("FAKE_INIT"); return e ? atoi(e) : f; }
CUresult cuDriverGetVersion(int *v) { const char *e = getenv("FAKE_VERSION"); *v = e ? atoi(e) : 12080; return 0; }
CUresult cuDeviceGetCount(int *n) { *n = 1; return 0; }
CUresult cuDeviceGetName(char *b, int n, CUdevice d) { strncpy(b, "Fake 1", n); return d; }
CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice d) { *n = 1 << 30; return d; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
	const char *mode = getenv("FAKE_MODE");
	switch (a) {
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *v = 9; break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *v = 0; break;
	case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *v = 3; break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *v = 228 << 10; break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *v = 227 << 10; break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE: *v = mode ? atoi(mode) : 0; break;
	default: return CUDA_ERROR_INVALID_VALUE;
	}
	return d;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
	if (getenv("FAKE_RETAIN")) return atoi(getenv("FAKE_RETAIN"));
	retained++; *c = CONTEXT; return d;
}
// Gives the card back; anything still there is a leak.
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) { retained--; return live ? CUDA_ERROR_ILLEGAL_STATE : d; }
CUresult cuCtxSetCurrent(CUcontext c) { current = c; return 0; }
CUresult cuCtxSynchronize(void) { CHECK; return 0; }

static CUresult made(void **p) { *p = malloc(1); live++; return 0; }
static CUresult freed(void *p) { CHECK; free(p); live--; return 0; }
CUresult cuStreamCreate(CUstream *s, unsigned f) { CHECK; return f == CU_STREAM_NON_BLOCKING ? made((void **)s) : 1; }
CUresult cuStreamDestroy_v2(CUstream s) { return freed(s); }
CUresult cuStreamSynchronize(CUstream s) { CHECK; return s ? 0 : 400; }
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned f) { CHECK; return s && e ? f : 400; }
CUresult cuEventCreate(CUevent *e, unsigned f) { CHECK; return f ? f : made((void **)e); }
CUresult cuEventDestroy_v2(CUevent e) { return freed(e); }
CUresult cuEventRecord(CUevent e, CUstream s) { CHECK; return s && e ? 0 : 400; }
CUresult cuEventSynchronize(CUevent e) { CHECK; return e ? 0 : 400; }
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) { CHECK; *ms = 0.25f; return a && b ? 0 : 400; }

CUresult cuMemGetInfo_v2(size_t *f, size_t *t) { CHECK; *f = 1 << 28; *t = 1 << 30; return 0; }
CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
	CHECK;
	if (n > 1 << 28) return CUDA_ERROR_OUT_OF_MEMORY;
	*p = (CUdeviceptr)aligned_alloc(256, (n + 255) & ~(size_t)255); live++; return 0;
}
CUresult cuMemFree_v2(CUdeviceptr p) { return freed((void *)p); }
CUresult cuMemHostAlloc(void **p, size_t n, unsigned f) {
	CHECK;
	if (n > 1 << 28) return CUDA_ERROR_OUT_OF_MEMORY;
	*p = malloc(n); live++; return f == CU_MEMHOSTALLOC_PORTABLE ? 0 : 1;
}
CUresult cuMemFreeHost(void *p) { return freed(p); }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *s, size_t n, CUstream q) { CHECK; memcpy((void *)d, s, n); return q ? 0 : 400; }
CUresult cuMemcpyDtoHAsync_v2(void *d, CUdeviceptr s, size_t n, CUstream q) { CHECK; memcpy(d, (void *)s, n); return q ? 0 : 400; }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream q) { CHECK; memmove((void *)d, (void *)s, n); return q ? 0 : 400; }
CUresult cuMemsetD32Async(CUdeviceptr d, unsigned v, size_t n, CUstream q) {
	CHECK;
	for (size_t i = 0; i < n; i++) ((unsigned *)d)[i] = v;
	return q ? 0 : 400;
}

CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned n, CUjit_option *o, void **v) {
	CHECK;
	if (n == 2 && o[0] == CU_JIT_ERROR_LOG_BUFFER && strncmp(image, ".version 9.9", 12) == 0) {
		strncpy(v[0], "ptxas fatal : Unsupported .version 9.9", (size_t)v[1]);
		return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
	}
	return made((void **)m);
}
CUresult cuModuleUnload(CUmodule m) { return freed(m); }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
	CHECK;
	static const char *const names[] = {"cast_f32_bf16", "echo", "crash"};
	for (int i = 0; i < 3; i++)
		if (m && strcmp(name, names[i]) == 0) { *f = (CUfunction)names[i]; return 0; }
	return CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) { CHECK; *v = 1024; return a == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES && f ? 0 : 1; }
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) { CHECK; return f && a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && v == (226 << 10) ? 0 : 1; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s, void **a, void **extra) {
	CHECK;
	if (!s || extra) return 400;
	if (strcmp((char *)f, "crash") == 0)
		return sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
	if (strcmp((char *)f, "echo") == 0) { // (Ptr out, i32, f32, u32, i64, TensorMap, u64): what came, and the shape
		unsigned char *out = *(unsigned char **)a[0];
		unsigned shape[] = {gx, gy, gz, bx, by, bz, shared};
		memcpy(out, a[1], 4); memcpy(out + 4, a[2], 4); memcpy(out + 8, a[3], 4); memcpy(out + 12, a[4], 8);
		memcpy(out + 20, a[5], 128); memcpy(out + 148, a[6], 8); memcpy(out + 156, shape, 28);
		out[184] = (size_t)a[5] % 64; // the map must be aligned
		return 0;
	}
	unsigned short *y = *(unsigned short **)a[0];
	const unsigned *x = *(const unsigned **)a[1];
	for (long long i = 0; i < *(long long *)a[2]; i++)
		y[i] = (x[i] + 0x7fff + (x[i] >> 16 & 1)) >> 16;
	return 0;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap *m, CUtensorMapDataType t, cuuint32_t rank, void *base, const cuuint64_t *size, const cuuint64_t *strides,
	const cuuint32_t *box, const cuuint32_t *every, CUtensorMapInterleave i, CUtensorMapSwizzle w, CUtensorMapL2promotion l, CUtensorMapFloatOOBfill o) {
	CHECK;
	if (t != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || rank != 2 || every[0] != 1 || every[1] != 1 || i || w != CU_TENSOR_MAP_SWIZZLE_128B || o || !l || (size_t)m % 64)
		return 1;
	cuuint64_t all[] = {(cuuint64_t)base, size[0], size[1], strides[0], box[0], box[1]};
	memset(m, 0, sizeof *m);
	memcpy(m, all, sizeof all);
	return 0;
}
