// The optimiser: AdamW for both modes, and sums of squares of many tensors at once. Any alignment and size is right; 16-byte
// aligned pointers are fast. No dynamic shared memory.
//
//   square_sums(double *partial, const float *const *x, const long long *n)
//     partial [gridDim.y, gridDim.x]: row i gets shares of the sum of the squares of the n[i] values of x[i].
//     block [256], grid [shares, tensors]
//   adamw(float *p, float *m, float *v, const float *g, long long n, float clip, float beta1, float one1, float beta2, float one2,
//     float step, float root, float eps, float decay)   exactly docs/spec/exact.md. block [256], grid [ceil(n/2048)]
//   adamw_copy(float *p, float *m, float *v, const float *g, bf16 *copy, long long n, …)   the same, and copy = p rounded
#include "fast.cuh"

extern "C" __global__ void KERNEL_BOUNDS(256, 4) square_sums(double *partial, const float *const *tensors, const long long *lengths) {
    __shared__ double sums[8];
    const float *x = tensors[blockIdx.y];
    i64 n = lengths[blockIdx.y], stride = (i64)gridDim.x * 2048;
    bool aligned = aligned16(x);
    float total[2] = {};
#pragma unroll 4
    for (i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 8; i < n; i += stride) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        float v[8];
        part(v, x + i, 0, left, aligned && left == 8);
#pragma unroll
        for (int j = 0; j < 8; j++) total[j & 1] = fmaf(v[j], v[j], total[j & 1]);
    }
    double sum = (double)total[0] + (double)total[1];
    for (int w = 16; w > 0; w >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, w);
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 8; i++) sum += sums[i];
        partial[(i64)blockIdx.y * gridDim.x + blockIdx.x] = sum;
    }
}

template <bool COPY>
DEVICE void adamw_step(float *p, float *m, float *v, const float *g, bf16 *copy, i64 n, float clip, float beta1, float one1, float beta2,
                       float one2, float step, float root, float eps, float decay) {
    i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (i >= n) return;
    int left = n - i < 8 ? (int)(n - i) : 8;
    bool wide = left == 8 && aligned16(p) && aligned16(m) && aligned16(v) && aligned16(g) && (!COPY || aligned16(copy));
    float a[8], b[8], c[8], x[8];
    part(x, g + i, 0, left, wide);
    part(a, p + i, 0, left, wide);
    part(b, m + i, 0, left, wide);
    part(c, v + i, 0, left, wide);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float y = x[j] * clip;
        b[j] = fmaf(beta1, b[j], one1 * y);
        c[j] = fmaf(beta2, c[j], (one2 * y) * y);
        a[j] = fmaf(-decay, a[j], a[j]) - (b[j] * step) / fmaf(sqrtf(c[j]), root, eps);
    }
    put_part(p + i, 0, left, a, wide);
    put_part(m + i, 0, left, b, wide);
    put_part(v + i, 0, left, c, wide);
    if (COPY) put_part(copy + i, 0, left, a, wide);
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1) adamw(float *p, float *m, float *v, const float *g, long long n, float clip, float beta1,
                                                       float one1, float beta2, float one2, float step, float root, float eps, float decay) {
    adamw_step<false>(p, m, v, g, 0, n, clip, beta1, one1, beta2, one2, step, root, eps, decay);
}
extern "C" __global__ void KERNEL_BOUNDS(256, 1)
    adamw_copy(float *p, float *m, float *v, const float *g, bf16 *copy, long long n, float clip, float beta1, float one1, float beta2,
               float one2, float step, float root, float eps, float decay) {
    adamw_step<true>(p, m, v, g, copy, n, clip, beta1, one1, beta2, one2, step, root, eps, decay);
}
