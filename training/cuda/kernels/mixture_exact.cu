// The mixture of experts of the exact mode, but for its products and the movement of rows, which moe.cu has: docs/spec/exact.md,
// section 7.
//
// Slot s of token t is number t·top + s. Slots are gathered by expert and by token within an expert: slot i has row place[i],
// row r the slot source[r], expert e the rows offsets[e] to offsets[e+1]. slots = tokens·top. Shared memory: static.
//
//   mixture_exact_route(float *probs, int *chosen, float *weights, const float *logits, int tokens, int experts, int top,
//                       int normalize)
//       grid (⌈tokens/8⌉), block 128
//   mixture_exact_count(int *counts, const int *chosen, int slots, int experts)
//       counts [⌈slots/256⌉, experts]: slots of each 256 per expert; grid (⌈slots/256⌉), block 256
//   mixture_exact_offsets(int *offsets, int *counts, int runs, int experts)
//       offsets, and counts become those of the runs before; grid (1), block 256
//   mixture_exact_place(int *place, int *source, const int *chosen, const int *counts, const int *offsets, int slots,
//                       int experts)
//       grid (⌈slots/256⌉), block 256
//   mixture_exact_silumul(float *a, const float *g, const float *u, long long n)
//       a may be g
//   mixture_exact_silumul_grad(float *dg, float *du, const float *da, const float *g, const float *u, long long n)
//       dg may be da; grid (⌈n/1024⌉), block 256
//   mixture_exact_slot_grad(float *dweights, float *dout, const float *dy, const float *o, const int *place,
//                           const float *weights, int slots, int top, int d)
//       of a slot's weight, and of its expert's output, gathered; grid (⌈slots/8⌉), block 128
//   mixture_exact_route_grad(float *dlogits, const float *probs, const int *chosen, const float *weights,
//                            const float *dweights, const int *offsets, int tokens, int experts, int top, int normalize,
//                            float balance)
//       grid (⌈tokens/64⌉), block 64
#include "common.cuh"

#define LANE ((int)threadIdx.x & 15)

// Candidate is an expert and its probability.
struct Candidate {
    float p;
    int expert; // negative: none
};

// better says whether a is chosen before b. Probabilities are NaN for all experts of a token or for none; then the lower
// index decides, as it does in a scan that only moves on for a larger value.
DEVICE bool better(Candidate a, Candidate b) {
    if (a.expert < 0 || b.expert < 0) return b.expert < 0;
    return a.p > b.p || (!(b.p > a.p) && a.expert < b.expert);
}

extern "C" __global__ void KERNEL_BOUNDS(128, 4)
    mixture_exact_route(float *probs, int *chosen, float *weights, const float *logits, int tokens, int experts, int top, int normalize) {
    int token = blockIdx.x * 8 + (threadIdx.x >> 4);
    bool valid = token < tokens;
    int width = valid ? round_up(experts, 16) : 0;
    const float *l = logits + (i64)token * experts;
    float *p = probs + (i64)token * experts;
    float m = NEGATIVE_INFINITY;
    for (int j = LANE; j < width; j += 16) m = exact_max(m, j < experts ? l[j] : NEGATIVE_INFINITY);
    m = fold16_max(m);
    float sum = 0.0f;
    for (int j = LANE; j < width; j += 16) {
        float e = exact_exp(fmaf(j < experts ? l[j] : NEGATIVE_INFINITY, 1.0f, -m));
        if (j < experts) p[j] = e;
        sum = sum + e;
    }
    float inverse = 1.0f / fold16_sum(sum);
    for (int j = LANE; j < width; j += 16)
        if (j < experts) p[j] = p[j] * inverse;
    // What a thread reads of p below it wrote itself.
    Candidate last;
    last.p = 0.0f, last.expert = -1;
    float total = 0.0f;
    for (int s = 0; s < top; s++) {
        Candidate best;
        best.p = 0.0f, best.expert = -1;
        for (int j = LANE; j < width; j += 16) {
            if (j >= experts) continue;
            Candidate c;
            c.p = p[j], c.expert = j;
            // Every choice comes after the one before, so what comes after the last is what is left.
            if ((s == 0 || better(last, c)) && (s == 0 || c.expert != last.expert) && better(c, best)) best = c;
        }
        for (int w = 8; w > 0; w >>= 1) {
            Candidate other;
            other.p = __shfl_xor_sync(FULL_WARP, best.p, w);
            other.expert = __shfl_xor_sync(FULL_WARP, best.expert, w);
            if (better(other, best)) best = other;
        }
        last = best;
        total = total + best.p;
        if (valid && LANE == 0) {
            chosen[(i64)token * top + s] = best.expert;
            weights[(i64)token * top + s] = best.p;
        }
    }
    if (normalize && valid && LANE == 0)
        for (int s = 0; s < top; s++) weights[(i64)token * top + s] = weights[(i64)token * top + s] / total;
}

// A run is 256 slots.

extern "C" __global__ void KERNEL_BOUNDS(256, 1) mixture_exact_count(int *counts, const int *chosen, int slots, int experts) {
    __shared__ int of[256];
    int slot = blockIdx.x * 256 + threadIdx.x;
    of[threadIdx.x] = slot < slots ? chosen[slot] : -1;
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += 256) {
        int n = 0;
        for (int i = 0; i < 256; i++) n += of[i] == e;
        counts[(i64)blockIdx.x * experts + e] = n;
    }
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1) mixture_exact_offsets(int *offsets, int *counts, int runs, int experts) {
    __shared__ int scan[256];
    int base = 0;
    if (threadIdx.x == 0) offsets[0] = 0;
    for (int e0 = 0; e0 < experts; e0 += 256) {
        int e = e0 + threadIdx.x, n = 0;
        if (e < experts)
            for (int r = 0; r < runs; r++) {
                int c = counts[(i64)r * experts + e];
                counts[(i64)r * experts + e] = n;
                n += c;
            }
        scan[threadIdx.x] = n;
        __syncthreads();
        for (int w = 1; w < 256; w *= 2) {
            int left = (int)threadIdx.x >= w ? scan[threadIdx.x - w] : 0;
            __syncthreads();
            scan[threadIdx.x] += left;
            __syncthreads();
        }
        if (e < experts) offsets[e + 1] = base + scan[threadIdx.x];
        base += scan[255];
        __syncthreads();
    }
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1)
    mixture_exact_place(int *place, int *source, const int *chosen, const int *counts, const int *offsets, int slots, int experts) {
    __shared__ int of[256];
    int slot = blockIdx.x * 256 + threadIdx.x;
    int e = slot < slots ? chosen[slot] : -1;
    of[threadIdx.x] = e;
    __syncthreads();
    if (slot >= slots) return;
    int row = offsets[e] + counts[(i64)blockIdx.x * experts + e];
    for (int i = 0; i < (int)threadIdx.x; i++) row += of[i] == e;
    place[slot] = row;
    source[row] = slot;
}

// Elements: a thread takes four, 256 apart, and reads all before it writes, for results may replace operands.
#define FOUR(j) _Pragma("unroll") for (int j = 0; j < 4; j++)

extern "C" __global__ void KERNEL_BOUNDS(256, 4) mixture_exact_silumul(float *a, const float *g, const float *u, i64 n) {
    i64 first = (i64)blockIdx.x * 1024 + threadIdx.x;
    float x[4], y[4];
    FOUR(j) if (first + 256 * j < n) x[j] = g[first + 256 * j], y[j] = u[first + 256 * j];
    FOUR(j) if (first + 256 * j < n) a[first + 256 * j] = exact_silumul(x[j], y[j]);
}

extern "C" __global__ void KERNEL_BOUNDS(256, 4) mixture_exact_silumul_grad(float *dg, float *du, const float *da, const float *g, const float *u, i64 n) {
    i64 first = (i64)blockIdx.x * 1024 + threadIdx.x;
    float x[4], y[4], d[4];
    FOUR(j) if (first + 256 * j < n) x[j] = g[first + 256 * j], y[j] = u[first + 256 * j], d[j] = da[first + 256 * j];
    FOUR(j) if (first + 256 * j < n) {
        float a, b;
        exact_silumul_grad(x[j], y[j], d[j], &a, &b);
        dg[first + 256 * j] = a;
        du[first + 256 * j] = b;
    }
}

extern "C" __global__ void KERNEL_BOUNDS(128, 4)
    mixture_exact_slot_grad(float *dweights, float *__restrict__ dout, const float *__restrict__ dy, const float *__restrict__ o, const int *place,
                            const float *weights, int slots, int top, int d) {
    int slot = blockIdx.x * 8 + (threadIdx.x >> 4), n = slot < slots ? d : 0;
    int row = n ? place[slot] : 0;
    float w = n ? weights[slot] : 0.0f;
    dy += (i64)(n ? slot / top : 0) * d, o += (i64)row * d, dout += (i64)row * d;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = LANE; i < n; i += 16) {
        float g = dy[i];
        sum = fmaf(g, o[i], sum);
        dout[i] = g * w;
    }
    sum = fold16_sum(sum);
    if (n && LANE == 0) dweights[slot] = sum;
}

extern "C" __global__ void KERNEL_BOUNDS(64, 1)
    mixture_exact_route_grad(float *dlogits, const float *probs, const int *chosen, const float *weights, const float *dweights, const int *offsets,
                             int tokens, int experts, int top, int normalize, float balance) {
    int token = blockIdx.x * 64 + threadIdx.x;
    if (token >= tokens) return;
    const float *p = probs + (i64)token * experts;
    float *dp = dlogits + (i64)token * experts, n = (float)tokens;
    chosen += (i64)token * top, weights += (i64)token * top, dweights += (i64)token * top;
    for (int e = 0; e < experts; e++)
        dp[e] = balance != 0 ? ((balance * (float)experts) * ((float)(offsets[e + 1] - offsets[e]) / n)) / n : 0.0f;
    if (normalize) {
        float total = 0.0f, mean = 0.0f;
        for (int s = 0; s < top; s++) {
            total = total + p[chosen[s]];
            mean = fmaf(dweights[s], weights[s], mean);
        }
        for (int s = 0; s < top; s++) dp[chosen[s]] = dp[chosen[s]] + (dweights[s] - mean) / total;
    } else {
        for (int s = 0; s < top; s++) dp[chosen[s]] = dp[chosen[s]] + dweights[s];
    }
    float mean = 0.0f;
    for (int e = 0; e < experts; e++) mean = fmaf(p[e], dp[e], mean);
    for (int e = 0; e < experts; e++) dp[e] = p[e] * (dp[e] - mean);
}
