// Routing of the fast mode: which slots go to which expert, and the movement of rows there and back. What is computed with
// binary32 inputs and outputs is exactly docs/spec/exact.md, section 7.
//
// Slot s of token t is number t·top + s. Slots are sorted by expert, and by number within an expert: slot i is row place[i] of
// the sorted arrays, row r belongs to slot source[r], and expert e has the rows offsets[e] to offsets[e+1]. slots =
// tokens·top. experts ≤ 256, top ≤ 16, top ≤ experts, but for gather without wanted, combine and scatter, which take any and
// serve the exact mode too. The letters after a name are the types of T0, T1: f float, b bfloat16.
// Rows of a multiple of 8 values at addresses of a multiple of 16 are fast, others right. No dynamic shared memory.
//
//   moe_route(float *probs, int *expert, float *weight, const float *logits, int tokens, int experts, int top, int normalize)
//     probs [tokens, experts]; expert, weight [slots]. grid [ceil(tokens/16)], block [256]
//   moe_count(int *counts, const int *expert, int slots, int experts)
//     counts [ceil(slots/1024), experts]. grid [ceil(slots/1024)], block [256]
//   moe_offsets(int *offsets, int *first, const int *counts, int runs, int experts)
//     runs = ceil(slots/1024); offsets [experts+1]; first, like counts, gets each run's first row of each expert. grid [1],
//     block [256]
//   moe_place(int *place, int *source, const int *first, const int *expert, int slots, int experts)
//     grid [ceil(slots/1024)], block [256]
//   moe_gather_{ff,fb,bb}(T1 *y, const T0 *x, const int *place, const int *expert, const int *wanted, int tokens, int top, int d)
//     y[place[i]] = x[i/top]; with wanted, only of slots with wanted[expert[i]] not 0. grid [tokens], block [BLOCK]
//   moe_combine_{ff,bf,bb}(T1 *y, const T1 *base, const T0 *o, const int *place, const float *weight, int tokens, int top, int d)
//     y[t] = Σ_s weight·o[place], plus base[t] unless base is 0; base may be y. grid [tokens], block [BLOCK]
//   moe_scatter_{ff,bf,bb}(T1 *dx, const T1 *base, const T0 *dxs, const int *place, int tokens, int top, int d)
//     dx[t] = base[t] (or 0) + Σ_s dxs[place]; base may be dx. grid [tokens], block [BLOCK]
//     BLOCK = ceil(d/8) rounded up to 32, at most 256
//   moe_route_grad(float *dlogits, const float *probs, const int *expert, const float *weight, const float *dweight, const int
//     *offsets, int tokens, int experts, int top, int normalize, float balance)   grid [ceil(tokens/16)], block [256]
#include "fast.cuh"

constexpr int RUN = 1024; // slots that a block counts and places
#define LANE16 ((int)threadIdx.x & 15)

// route: 16 threads have a token, thread l the experts l, l+16, …, N of them.
template <int N>
DEVICE void route(float *probs, int *expert, float *weight, const float *logits, int tokens, int experts, int top, int normalize) {
    i64 token = (i64)blockIdx.x * 16 + (threadIdx.x >> 4);
    bool live = token < tokens;
    float p[N], best = NEGATIVE_INFINITY, sum = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) {
        int e = k * 16 + LANE16;
        p[k] = live && e < experts ? logits[token * experts + e] : NEGATIVE_INFINITY;
        if (k * 16 < experts) best = exact_max(best, p[k]);
    }
    best = fold16_max(best);
#pragma unroll
    for (int k = 0; k < N; k++)
        if (k * 16 < experts) {
            p[k] = exact_exp(fmaf(p[k], 1.0f, -best));
            sum = sum + p[k];
        }
    sum = 1.0f / fold16_sum(sum);
    u32 open = 0; // bit k: expert k·16 + lane is there and not chosen
#pragma unroll
    for (int k = 0; k < N; k++) {
        int e = k * 16 + LANE16;
        p[k] = p[k] * sum;
        if (live && e < experts) {
            probs[token * experts + e] = p[k];
            open |= 1u << k;
        }
    }
    float total = 0.0f, own = 0.0f;
    for (int s = 0; s < top; s++) {
        float value = 0.0f;
        int chosen = 0x7fffffff;
#pragma unroll
        for (int k = 0; k < N; k++)
            if (open >> k & 1 && (chosen == 0x7fffffff || p[k] > value)) value = p[k], chosen = k * 16 + LANE16;
        for (int w = 8; w > 0; w >>= 1) {
            float other = __shfl_xor_sync(FULL_WARP, value, w);
            int index = __shfl_xor_sync(FULL_WARP, chosen, w);
            // Of two that do not differ (NaN with NaN too) the lower index is chosen.
            bool swap = index != 0x7fffffff && (chosen == 0x7fffffff || other > value || (!(value > other) && index < chosen));
            if (swap) value = other, chosen = index;
        }
        if (live && (chosen & 15) == LANE16) open &= ~(1u << (chosen >> 4));
        total = total + value;
        if (s == LANE16) {
            own = value;
            if (live) expert[token * top + s] = chosen;
        }
    }
    if (live && LANE16 < top) weight[token * top + LANE16] = normalize ? own / total : own;
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1)
    moe_route(float *probs, int *expert, float *weight, const float *logits, int tokens, int experts, int top, int normalize) {
    if (experts <= 64)
        route<4>(probs, expert, weight, logits, tokens, experts, top, normalize);
    else
        route<16>(probs, expert, weight, logits, tokens, experts, top, normalize);
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1) moe_count(int *counts, const int *expert, int slots, int experts) {
    __shared__ int count[256];
    count[threadIdx.x] = 0;
    __syncthreads();
    int first = blockIdx.x * RUN, end = min(first + RUN, slots);
    for (int i = first + threadIdx.x; i < end; i += 256) atomicAdd(&count[expert[i]], 1);
    __syncthreads();
    if (threadIdx.x < experts) counts[blockIdx.x * experts + threadIdx.x] = count[threadIdx.x];
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1) moe_offsets(int *offsets, int *first, const int *counts, int runs, int experts) {
    __shared__ int sums[8];
    int e = threadIdx.x, lane = e & 31, total = 0;
    if (e < experts)
#pragma unroll 8
        for (int r = 0; r < runs; r++) total += counts[r * experts + e];
    int scan = total;
    for (int w = 1; w < 32; w <<= 1) {
        int other = __shfl_up_sync(FULL_WARP, scan, w);
        if (lane >= w) scan += other;
    }
    if (lane == 31) sums[e >> 5] = scan;
    __syncthreads();
    for (int w = 0; w < e >> 5; w++) scan += sums[w];
    if (e < experts) {
        int next = scan - total;
        offsets[e] = next;
        if (e == experts - 1) offsets[experts] = scan;
        for (int from = 0; from < runs; from += 8) {
            int count[8];
#pragma unroll
            for (int k = 0; k < 8; k++) count[k] = from + k < runs ? counts[(from + k) * experts + e] : 0;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                if (from + k < runs) first[(from + k) * experts + e] = next;
                next += count[k];
            }
        }
    }
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1)
    moe_place(int *place, int *source, const int *first, const int *expert, int slots, int experts) {
    __shared__ int next[8][256]; // of each warp: its count, then the next row, of every expert
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int w = 0; w < 8; w++) next[w][threadIdx.x] = 0;
    __syncthreads();
    int begin = blockIdx.x * RUN + warp * (RUN / 8), end = begin + RUN / 8;
    for (int i = begin + lane; i < end; i += 32)
        if (i < slots) atomicAdd(&next[warp][expert[i]], 1);
    __syncthreads();
    if (threadIdx.x < experts) {
        int row = first[blockIdx.x * experts + threadIdx.x];
        for (int w = 0; w < 8; w++) {
            int count = next[w][threadIdx.x];
            next[w][threadIdx.x] = row;
            row += count;
        }
    }
    __syncthreads();
    for (int i = begin + lane; i < end; i += 32) {
        int e = i < slots ? expert[i] : 256;
        u32 same = FULL_WARP; // lanes with this expert
        for (int bit = 0; bit < 9; bit++) {
            u32 set = __ballot_sync(FULL_WARP, e >> bit & 1);
            same &= e >> bit & 1 ? set : ~set;
        }
        int before = __popc(same & ((1u << lane) - 1));
        int row = i < slots ? next[warp][e] + before : 0;
        __syncwarp();
        if (i < slots) {
            place[i] = row;
            source[row] = i;
            if (before == 0) next[warp][e] = row + __popc(same);
        }
        __syncwarp();
    }
}

template <class X, class Y>
DEVICE void gather(Y *y, const X *x, const int *place, const int *expert, const int *wanted, int top, int d) {
    i64 token = blockIdx.x;
    bool wide = d % 8 == 0 && aligned16(x) && aligned16(y);
    place += token * top;
    u32 open = ~0u; // bit s: slot s is wanted
    if (wanted) {
        int s = threadIdx.x & 31;
        open = __ballot_sync(FULL_WARP, s < top && wanted[expert[token * top + s]]);
        if (!open) return;
    }
    for (int i = threadIdx.x * 8; i < d; i += blockDim.x * 8) {
        float v[8];
        part(v, x + token * d, i, d, wide);
        if (wide) {
#pragma unroll 4
            for (int s = 0; s < top; s++) // __ldg: the stores do not hold it up
                if (!wanted || open >> s & 1) put_wide(y + (i64)__ldg(place + s) * d + i, v);
        } else {
            for (int s = 0; s < top; s++)
                if (!wanted || open >> s & 1) put_part(y + (i64)place[s] * d, i, d, v, false);
        }
    }
}

// combine adds the rows of a token's slots: with weights the sum first and base last, without them onto base.
template <bool WEIGHTED, bool WIDE, class X, class Y>
DEVICE void combine_row(Y *y, const Y *base, const X *x, const int *place, const float *weight, int top, int d) {
    constexpr int N = WIDE ? 16 / sizeof(X) : 1; // rows read before the first is added
    for (int i = threadIdx.x * 8; i < d; i += blockDim.x * 8) {
        float sum[8], add[8];
#pragma unroll
        for (int j = 0; j < 8; j++) add[j] = 0.0f;
        if (base) part(add, base, i, d, WIDE);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] = WEIGHTED ? 0.0f : add[j];
        for (int from = 0; from < top; from += N) {
            Raw<X> v[N];
            float w[N];
#pragma unroll
            for (int k = 0; k < N; k++)
                if (from + k < top) {
                    v[k].read(x + (i64)place[from + k] * d, i, d, WIDE);
                    w[k] = WEIGHTED ? weight[from + k] : 0.0f;
                }
#pragma unroll
            for (int k = 0; k < N; k++)
                if (from + k < top) {
                    float e[8];
                    v[k].get(e);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        sum[j] = !WEIGHTED ? sum[j] + e[j] : from + k == 0 ? e[j] * w[k] : fmaf(w[k], e[j], sum[j]);
                }
        }
        if (WEIGHTED && base) {
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] = add[j] + sum[j];
        }
        put_part(y, i, d, sum, WIDE);
    }
}

template <bool WEIGHTED, class X, class Y>
DEVICE void combine(Y *y, const Y *base, const X *x, const int *place, const float *weight, int top, int d) {
    i64 token = blockIdx.x;
    place += token * top;
    if (WEIGHTED) weight += token * top;
    y += token * d;
    if (base) base += token * d;
    if (d % 8 == 0 && aligned16(x) && aligned16(y) && aligned16(base))
        combine_row<WEIGHTED, true>(y, base, x, place, weight, top, d);
    else
        combine_row<WEIGHTED, false>(y, base, x, place, weight, top, d);
}

template <int N>
DEVICE void route_grad(float *dlogits, const float *probs, const int *expert, const float *weight, const float *dweight,
                       const int *offsets, int tokens, int experts, int top, int normalize, float balance) {
    i64 token = (i64)blockIdx.x * 16 + (threadIdx.x >> 4);
    bool live = token < tokens;
    float p[N], dp[N], count = (float)tokens;
#pragma unroll
    for (int k = 0; k < N; k++) {
        int e = k * 16 + LANE16;
        bool there = live && e < experts;
        p[k] = there ? probs[token * experts + e] : 0.0f;
        dp[k] = there && balance != 0.0f
                    ? ((balance * (float)experts) * ((float)(offsets[e + 1] - offsets[e]) / count)) / count
                    : 0.0f;
    }
    float total = 0.0f, mean = 0.0f;
    int slots = live ? top : 0;
    if (normalize)
        for (int s = 0; s < slots; s++) {
            i64 i = token * top + s;
            total = total + probs[token * experts + expert[i]];
            mean = fmaf(dweight[i], weight[i], mean);
        }
    for (int s = 0; s < slots; s++) {
        i64 i = token * top + s;
        int e = expert[i];
        float add = normalize ? (dweight[i] - mean) / total : dweight[i];
#pragma unroll
        for (int k = 0; k < N; k++)
            if (e == k * 16 + LANE16) dp[k] = dp[k] + add;
    }
    float m = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++)
        for (int l = 0; l < 16 && k * 16 + l < experts; l++)
            m = fmaf(__shfl_sync(FULL_WARP, p[k], l, 16), __shfl_sync(FULL_WARP, dp[k], l, 16), m);
#pragma unroll
    for (int k = 0; k < N; k++) {
        int e = k * 16 + LANE16;
        if (live && e < experts) dlogits[token * experts + e] = p[k] * (dp[k] - m);
    }
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1)
    moe_route_grad(float *dlogits, const float *probs, const int *expert, const float *weight, const float *dweight, const int *offsets,
                   int tokens, int experts, int top, int normalize, float balance) {
    if (experts <= 64)
        route_grad<4>(dlogits, probs, expert, weight, dweight, offsets, tokens, experts, top, normalize, balance);
    else
        route_grad<16>(dlogits, probs, expert, weight, dweight, offsets, tokens, experts, top, normalize, balance);
}

#define GATHER(n, X, Y)                                                                                                         \
    extern "C" __global__ void KERNEL_BOUNDS(256, 1)                                                                            \
        moe_gather_##n(Y *y, const X *x, const int *place, const int *expert, const int *wanted, int tokens, int top, int d) {  \
        gather(y, x, place, expert, wanted, top, d);                                                                            \
    }
GATHER(ff, float, float)
GATHER(fb, float, bf16)
GATHER(bb, bf16, bf16)

#define COMBINE(n, X, Y)                                                                                                        \
    extern "C" __global__ void KERNEL_BOUNDS(256, 3) moe_combine_##n(Y *y, const Y *base, const X *o, const int *place,         \
                                                                     const float *weight, int tokens, int top, int d) {         \
        combine<true>(y, base, o, place, weight, top, d);                                                                       \
    }                                                                                                                           \
    extern "C" __global__ void KERNEL_BOUNDS(256, 3)                                                                            \
        moe_scatter_##n(Y *dx, const Y *base, const X *dxs, const int *place, int tokens, int top, int d) {                     \
        combine<false>(dx, base, dxs, place, (const float *)0, top, d);                                                         \
    }
COMBINE(ff, float, float)
COMBINE(bf, bf16, float)
COMBINE(bb, bf16, bf16)
