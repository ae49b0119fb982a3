// Kernels that exercise the emulator: what it must compute, and what it must refuse.
#include "ptx.cuh"

// ---- what works

extern "C" __global__ void KERNEL_BOUNDS(128, 1) test_saxpy(float *y, const float *x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = fmaf(a, x[i], y[i]);
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_indices(u32 *out) {
    u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    u32 thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block << 16 | thread;
}

extern "C" __global__ void test_arguments(float *out, int i, u32 u, float f, long long l, u64 big) {
    if (threadIdx.x == 0) {
        out[0] = (float)i, out[1] = (float)u, out[2] = f, out[3] = (float)l, out[4] = (float)big;
    }
}

// test_reverse turns 256 values around through shared memory, barriers between: rounds times.
extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_reverse(float *x, int rounds) {
    __shared__ float s[256];
    int t = threadIdx.x;
    float v = x[blockIdx.x * 256 + t];
    for (int i = 0; i < rounds; i++) {
        s[t] = v;
        __syncthreads();
        v = s[255 - t];
        __syncthreads();
    }
    x[blockIdx.x * 256 + t] = v;
}

// test_sum adds all values of a block, with shuffles and then shared memory.
template <int WARPS> DEVICE float block_sum(float v) {
    __shared__ float part[WARPS];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < WARPS; i++) sum += part[i];
    return sum;
}
extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_sum(float *out, const float *x) {
    float sum = block_sum<8>(x[blockIdx.x * 256 + threadIdx.x]);
    if (threadIdx.x == 255) out[blockIdx.x] = sum;
}

extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_shuffles(int *out) {
    int t = threadIdx.x, n = 0;
    out[n++ * 32 + t] = __shfl_sync(FULL_WARP, t, 5);
    out[n++ * 32 + t] = __shfl_sync(FULL_WARP, t, t + 3, 8);
    out[n++ * 32 + t] = __shfl_up_sync(FULL_WARP, t, 3);
    out[n++ * 32 + t] = __shfl_up_sync(FULL_WARP, t, 3, 16);
    out[n++ * 32 + t] = __shfl_down_sync(FULL_WARP, t, 2);
    out[n++ * 32 + t] = __shfl_down_sync(FULL_WARP, t, 2, 4);
    out[n++ * 32 + t] = __shfl_xor_sync(FULL_WARP, t, 9);
    out[n++ * 32 + t] = (int)__ballot_sync(FULL_WARP, t % 3 == 0);
    if (t < 8) // two sets of lanes at once
        out[n * 32 + t] = __shfl_xor_sync(0xffu, t, 7);
    else
        out[n * 32 + t] = (int)__ballot_sync(0xffffff00u, t & 1);
    __syncwarp();
    n++;
    out[n++ * 32 + t] = __syncthreads_count(t < 11);
}

// test_async copies n vectors of 16 bytes a thread through a double buffer.
extern "C" __global__ void KERNEL_BOUNDS(64, 1) test_async(float *out, const float *x, int n) {
    DYNAMIC_SHARED(raw);
    float(*s)[64 * 4] = (float(*)[64 * 4])raw;
    int t = threadIdx.x;
    cp_async16(&s[0][t * 4], x + t * 4, true);
    cp_async_commit();
    for (int i = 0; i < n; i++) {
        bool more = i + 1 < n;
        cp_async16(&s[(i + 1) % 2][t * 4], x + ((i + 1) * 64 + t) * 4, more);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        int other = 63 - t;
        store_float4(out + (i * 64 + other) * 4, load_float4(&s[i % 2][other * 4]));
        __syncthreads();
    }
    cp_async_wait<0>();
    __syncthreads();
    out[n * 256 + t] = s[n % 2][t]; // the copies that were not wanted are zeros
}

// test_mma multiplies a [16, k] by b, to c [16, 8]. b is [8, k], or [k, 8] with trans.
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_mma(float *c, const bf16 *a, const bf16 *b, int k, int trans) {
    __shared__ __align__(16) bf16 sa[16][24], sb[16][24];
    int t = threadIdx.x;
    float sum[4] = {};
    for (int x = 0; x < k; x += 16) {
        for (int i = t; i < 256; i += 32) sa[i / 16][i % 16] = a[i / 16 * k + x + i % 16];
        for (int i = t; i < 128; i += 32)
            if (trans)
                sb[i / 8][i % 8] = b[(x + i / 8) * 8 + i % 8];
            else
                sb[i / 16][i % 16] = b[i / 16 * k + x + i % 16];
        __syncwarp();
        u32 fa[4], fb[2];
        ldmatrix_x4(fa, &sa[t % 16][t / 16 * 8]);
        if (trans)
            ldmatrix_x2_trans(fb, &sb[t % 16][0]);
        else
            ldmatrix_x2(fb, &sb[t % 8][t / 8 % 2 * 8]);
        mma_m16n8k16_bf16(sum, fa, fb);
        __syncwarp();
    }
    int g = t / 4, p = t % 4 * 2;
    c[g * 8 + p] = sum[0], c[g * 8 + p + 1] = sum[1];
    c[(g + 8) * 8 + p] = sum[2], c[(g + 8) * 8 + p + 1] = sum[3];
}

// ---- common.cuh

extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_exp(float *y, const float *x, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = exact_exp(x[i]);
}
extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_silu(float *dg, float *du, const float *g, const float *u, const float *dy, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) exact_silumul_grad(g[i], u[i], dy[i], &dg[i], &du[i]);
}
extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_log(double *y, const double *x, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = exact_log(x[i]);
}
// test_folds: each half-warp folds 16 values, into their sum and maximum; out has 4 values for 16.
extern "C" __global__ void KERNEL_BOUNDS(64, 1) test_folds(float *out, const float *x) {
    int t = threadIdx.x, half = blockIdx.x * 4 + t / 16;
    float v = x[blockIdx.x * 64 + t];
    float sum = fold16_sum(v), most = fold16_max(v);
    if (t % 16 == 7) {
        float l[16], m[16];
        for (int i = 0; i < 16; i++) l[i] = m[i] = x[half * 16 + i];
        out[half * 4] = sum, out[half * 4 + 1] = most;
        out[half * 4 + 2] = fold_sum(l), out[half * 4 + 3] = fold_max(m);
    }
}
extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_bf16(u16 *y, const float *x, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = to_bf16(x[i]).bits;
}
// test_vectors copies 16 values in every width, from and to both types.
extern "C" __global__ void KERNEL_BOUNDS(1, 1) test_vectors(float *f, bf16 *h, const float *x) {
    float v[8], w[8];
    load8(v, x);
    store8(h, v);
    load8(w, h);
    store8(f, w);
    load4(v, x + 8);
    store4(h + 8, v);
    load4(w, h + 8);
    store4(f + 8, w);
    for (int i = 12; i < 16; i++) {
        store(h + i, load(x + i));
        store(f + i, load(h + i));
    }
}

// ---- what must be refused, or be seen

extern "C" __global__ void KERNEL_BOUNDS(64, 1) test_deadlock(int n) {
    if ((int)threadIdx.x < n) __syncthreads();
}
extern "C" __global__ void KERNEL_BOUNDS(64, 1) test_divergent_barrier() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_divergent_shuffle(int *out) {
    int v = 0;
    if (threadIdx.x < 16)
        v = __shfl_sync(FULL_WARP, v, 0);
    else
        v = __shfl_xor_sync(FULL_WARP, v, 1);
    out[threadIdx.x] = v;
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_early_return(int *out) {
    if (threadIdx.x == 31) return;
    out[threadIdx.x] = __shfl_sync(FULL_WARP, 1, 0);
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_dead_lane(int *out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_read(float *out, const float *x, int i) { out[0] = x[i]; }
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_write(float *x, int i) { x[i] = 1; }
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_shared_bounds(float *out, int i) {
    __shared__ float s[8];
    s[i] = 1;
    out[0] = s[i];
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_dynamic_bounds(float *out, int i) {
    DYNAMIC_SHARED(raw);
    float *s = (float *)raw;
    s[i] = 1;
    out[0] = s[i];
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_uninitialised(float *out) {
    __shared__ float s[32];
    DYNAMIC_SHARED(raw);
    int t = threadIdx.x;
    out[2 * t] = s[t], out[2 * t + 1] = ((float *)raw)[t];
    s[t] = ((float *)raw)[t] = 3;
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_misaligned(float *out, int i) { store_float4(out, load_float4(out + i)); }
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_misaligned_async(const float *x, int to, int from) {
    __shared__ __align__(16) float s[64];
    cp_async16(s + to, x + from, true);
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_misaligned_matrix(int i) {
    __shared__ __align__(16) float s[256];
    u32 r[4];
    ldmatrix_x4(r, s + threadIdx.x * 4 + i);
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_no_wait(float *out, const float *x) {
    __shared__ __align__(16) float s[128];
    cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4, true);
    cp_async_commit();
    out[threadIdx.x] = s[threadIdx.x * 4];
}
// test_no_barrier lacks one between the writes and the reads.
extern "C" __global__ void KERNEL_BOUNDS(64, 1) test_no_barrier(float *out) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_divide(int *out, int by) { out[0] = 7 / by; }
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_forever(volatile int *out) {
    while (out[0] == 0) {
    }
}
__device__ __noinline__ int recurse(int depth) {
    volatile int big[4096];
    big[depth % 4096] = depth;
    return depth == 0 ? 0 : recurse(depth - 1) + big[depth % 4096];
}
extern "C" __global__ void KERNEL_BOUNDS(32, 1) test_stack(int *out, int depth) { out[0] = recurse(depth); }
// test_spin switches often: threads · rounds collectives.
extern "C" __global__ void KERNEL_BOUNDS(256, 1) test_spin(int *out, int rounds) {
    int v = threadIdx.x;
    for (int i = 0; i < rounds; i++) v += __shfl_xor_sync(FULL_WARP, v, 1);
    out[blockIdx.x * blockDim.x + threadIdx.x] = v;
}
