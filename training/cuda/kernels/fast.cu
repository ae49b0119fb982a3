// Kernels of the fast mode that move memory: SwiGLU, sums, loss, embedding; those of norms are in norm.cu.
// Arithmetic is binary32 whatever the element types; results are the same from run to run, for one launch shape.
//
// The letters after a name are the types of the arguments marked T0, T1, … in turn: f float, b bfloat16. Any alignment and size
// is right; 16-byte aligned pointers and rows of a multiple of 8 values are fast. n and rows may be 0 only where the grid would
// be: launch nothing then. No dynamic shared memory.
//
// FLAT(n): block [256], grid [ceil(n/2048)].
//
//   swiglu_{ff,fb,bb}(T1 *a, const T0 *g, const T0 *u, int rows, int width, int ldg, int lda)   a = silu(g)·u; rows of g and u
//     are ldg apart, of a lda. block [256], grid [ceil(rows·ceil(width/8)/256)]
//   swiglu_grad_{f,b}(T0 *dg, T0 *du, T0 *wa, float *dw, const T0 *da, const T0 *g, const T0 *u, const float *weight,
//     const int *source, const int *expert, const int *wanted, int rows, int width, int ldg, int lda)
//     With s = source[r] (0: s = r) and ω = weight[s] (0: ω = 1): dg, du are the gradients for ω·da; dw[s] = Σ da·a; wa = ω·a;
//     a = silu(g)·u. dw and wa may be 0. With wanted, wa of a row is undefined if wanted[expert[s]] is 0. dg, du like g; wa
//     like da. Each output may be one of the inputs. width ≤ 512: block [32, 8], grid [ceil(rows/8)]; width ≤ 1024: block
//     [128], grid [rows]; else block [256], grid [rows]
//   sum_{fff,ffb,fbb,bbb}(T0 *y, const T1 *a, const T2 *b, long long n)   y = a + b; y may be a or b                FLAT(n)
//   cross_entropy_{f,b}(double *losses, T0 *logits, const int *targets, int rows, int vocab, float scale)   losses may be 0;
//     logits become scale·gradient unless scale is 0. A negative target is none: loss and gradient 0. grid [rows],
//     block [512] for b, [1024] for f; any multiple of 32 is right
//   embed_{ff,fb,bb}(T1 *y, const T0 *table, const int *ids, int rows, int d)   block [256], grid [rows]
//   embed_grad_{f,b}(float *dtable, const T0 *dy, const int *ids, const int *first, const int *order, int d)
//     Adds to row ids[i] of dtable the rows order[first[i]] … order[first[i+1]-1] of dy, in this order: tokens in theirs make it
//     exactly docs/spec/exact.md. The ids differ. block [64], grid [number of ids, ceil(d/512)]
#include "fast.cuh"

template <class T, class A> DEVICE void swiglu(A *a, const T *g, const T *u, int rows, int width, int ldg, int lda) {
    bool wide = width % 8 == 0 && ldg % 8 == 0 && lda % 8 == 0 && aligned16(a) && aligned16(g) && aligned16(u);
    int parts = (width + 7) / 8;
    i64 n = (i64)blockIdx.x * 256 + threadIdx.x, row = n / parts;
    int i = (int)(n % parts) * 8;
    if (row >= rows) return;
    float e[8], f[8];
    part(e, g + row * ldg, i, width, wide);
    part(f, u + row * ldg, i, width, wide);
#pragma unroll
    for (int j = 0; j < 8; j++) e[j] *= fast_sigmoid(e[j]) * f[j];
    put_part(a + row * lda, i, width, e, wide);
}

template <class T>
DEVICE void swiglu_grad(T *dg, T *du, T *wa, float *dw, const T *da, const T *g, const T *u, const float *weight, const int *source,
                        const int *expert, const int *wanted, int rows, int width, int ldg, int lda) {
    i64 row = own_row();
    if (row >= rows) return;
    bool wide = width % 8 == 0 && ldg % 8 == 0 && lda % 8 == 0 && aligned16(dg) && aligned16(du) && aligned16(wa) && aligned16(da) &&
                aligned16(g) && aligned16(u);
    i64 slot = source ? source[row] : row;
    if (wanted && !wanted[expert[slot]]) wa = 0;
    float omega = weight ? weight[slot] : 1.0f, dot = 0.0f;
    i64 at = row * ldg, place = row * lda;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        float x[8], y[8], z[8];
        part(x, da + place, i, width, wide);
        part(y, g + at, i, width, wide);
        part(z, u + at, i, width, wide);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float s = fast_sigmoid(y[j]), silu = y[j] * s, a = silu * z[j], grad = x[j] * omega;
            dot = fmaf(x[j], a, dot);
            x[j] = a * omega;
            y[j] = grad * z[j] * fmaf(silu, 1.0f - s, s);
            z[j] = grad * silu;
        }
        put_part(dg + at, i, width, y, wide);
        put_part(du + at, i, width, z, wide);
        if (wa) put_part(wa + place, i, width, x, wide);
    }
    if (!dw) return;
    dot = row_sum(dot);
    if (threadIdx.x == 0) dw[slot] = dot;
}

template <class Y, class A, class B> DEVICE void sum(Y *y, const A *a, const B *b, i64 n) {
    i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (i >= n) return;
    int left = n - i < 8 ? (int)(n - i) : 8;
    bool wide = left == 8 && aligned16(y) && aligned16(a) && aligned16(b);
    float e[8], f[8];
    part(e, a + i, 0, left, wide);
    part(f, b + i, 0, left, wide);
#pragma unroll
    for (int j = 0; j < 8; j++) e[j] += f[j];
    put_part(y + i, 0, left, e, wide);
}

// Online is a maximum and the sum of exponentials (powers of two of x·log2e) below it.
struct Online {
    float best, sum;

    DEVICE void add(float best2, float sum2) {
        float top = fmaxf(best, best2);
        if (top == NEGATIVE_INFINITY) return;
        sum = fmaf(sum, fast_exp2((best - top) * LOG2E), sum2 * fast_exp2((best2 - top) * LOG2E));
        best = top;
    }
};

// cross_entropy keeps what it can of the row in registers: what is read again comes at best from the second-level cache.
template <class T> DEVICE void cross_entropy(double *losses, T *logits, const int *targets, int vocab, float scale) {
    constexpr int N = 16 / sizeof(T), FEW = 4 / sizeof(T);
    __shared__ float bests[32], sums[32];
    i64 row = blockIdx.x;
    logits += row * vocab;
    int target = targets[row], width = blockDim.x;
    // Rows of an odd length begin anywhere: the values up to the first aligned one, and those after the last vector, go singly.
    int head = (int)((16 - ((u64)logits & 15)) & 15) / (int)sizeof(T);
    head = min(head, vocab);
    int vectors = (vocab - head) / 8, tail = head + vectors * 8, single = threadIdx.x < head ? threadIdx.x : tail + threadIdx.x - head;
    T *body = logits + head;
    Raw<T> v[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        int i = threadIdx.x + k * width;
        if (i < vectors) v[k].read(body, i * 8, 0, true);
    }
    float own = target >= 0 ? load(logits + target) : 0.0f;
    Online all{NEGATIVE_INFINITY, 0.0f};
    // absorb adds the vectors of r that begin at first, first+width, …
    auto absorb = [&](const Raw<T> *r, int n, int first) {
        float top = all.best;
#pragma unroll
        for (int k = 0; k < n; k++)
            if (first + k * width < vectors) {
                float e[8];
                r[k].get(e);
                top = fmaxf(top, fmaxf(fmaxf(fmaxf(e[0], e[1]), fmaxf(e[2], e[3])), fmaxf(fmaxf(e[4], e[5]), fmaxf(e[6], e[7]))));
            }
        if (top > all.best) {
            all.sum *= fast_exp2((all.best - top) * LOG2E);
            all.best = top;
        }
        float shift = all.best == NEGATIVE_INFINITY ? 0.0f : all.best * LOG2E;
#pragma unroll
        for (int k = 0; k < n; k++)
            if (first + k * width < vectors) {
                float e[8];
                r[k].get(e);
#pragma unroll
                for (int j = 0; j < 8; j++) all.sum += fast_exp2(fmaf(e[j], LOG2E, -shift));
            }
    };
    absorb(v, N, threadIdx.x);
    for (int i = threadIdx.x + N * width; i < vectors; i += FEW * width) {
        Raw<T> few[FEW];
#pragma unroll
        for (int k = 0; k < FEW; k++)
            if (i + k * width < vectors) few[k].read(body, (i + k * width) * 8, 0, true);
        absorb(few, FEW, i);
    }
    if (single < vocab) all.add(load(logits + single), 1.0f);
    for (int w = 16; w > 0; w >>= 1)
        all.add(__shfl_xor_sync(FULL_WARP, all.best, w), __shfl_xor_sync(FULL_WARP, all.sum, w));
    int lane = threadIdx.x & 31, warps = width >> 5;
    if (lane == 0) bests[threadIdx.x >> 5] = all.best, sums[threadIdx.x >> 5] = all.sum;
    __syncthreads(); // own has been read by all before it is overwritten, too
    all = Online{lane < warps ? bests[lane] : NEGATIVE_INFINITY, lane < warps ? sums[lane] : 0.0f};
    for (int w = 16; w > 0; w >>= 1)
        all.add(__shfl_xor_sync(FULL_WARP, all.best, w), __shfl_xor_sync(FULL_WARP, all.sum, w));
    if (threadIdx.x == 0 && losses)
        losses[row] = target >= 0 ? (double)logf(all.sum) + ((double)all.best - (double)own) : 0.0;
    if (scale == 0.0f) return;
    float factor = target >= 0 ? scale / all.sum : 0.0f, shift = all.best * LOG2E, hit = target >= 0 ? scale : 0.0f;
    auto grade = [&](const Raw<T> &from, int i) {
        float e[8];
        from.get(e);
        int at = target - head - i * 8;
#pragma unroll
        for (int j = 0; j < 8; j++) e[j] = fmaf(fast_exp2(fmaf(e[j], LOG2E, -shift)), factor, at == j ? -hit : 0.0f);
        put_wide(body + i * 8, e);
    };
#pragma unroll
    for (int k = 0; k < N; k++)
        if ((int)threadIdx.x + k * width < vectors) grade(v[k], threadIdx.x + k * width);
    for (int i = threadIdx.x + N * width; i < vectors; i += FEW * width) {
        Raw<T> few[FEW];
#pragma unroll
        for (int k = 0; k < FEW; k++)
            if (i + k * width < vectors) few[k].read(body, (i + k * width) * 8, 0, true);
#pragma unroll
        for (int k = 0; k < FEW; k++)
            if (i + k * width < vectors) grade(few[k], i + k * width);
    }
    if (single < vocab)
        store(logits + single, fast_exp2(fmaf(load(logits + single), LOG2E, -shift)) * factor - (single == target ? hit : 0.0f));
}

template <class T, class Y> DEVICE void embed(Y *y, const T *table, const int *ids, int d) {
    bool wide = d % 8 == 0 && aligned16(y) && aligned16(table);
    const T *from = table + (i64)ids[blockIdx.x] * d;
    y += (i64)blockIdx.x * d;
    for (int i = threadIdx.x * 8; i < d; i += 2048) {
        float v[8];
        part(v, from, i, d, wide);
        put_part(y, i, d, v, wide);
    }
}

// embed_grad: a block adds for one id. A word that comes often is a long chain of sums, so many rows are read ahead.
template <class T>
DEVICE void embed_grad(float *dtable, const T *dy, const int *ids, const int *first, const int *order, int d) {
    constexpr int N = 32 / sizeof(T);
    int i = (blockIdx.y * 64 + threadIdx.x) * 8, from = first[blockIdx.x], end = first[blockIdx.x + 1];
    if (i >= d) return;
    bool wide = d % 8 == 0 && aligned16(dtable) && aligned16(dy);
    dtable += (i64)ids[blockIdx.x] * d;
    float sum[8];
    part(sum, dtable, i, d, wide);
    for (; wide && from < end; from += N) {
        Raw<T> v[N];
#pragma unroll
        for (int k = 0; k < N; k++)
            if (from + k < end) v[k].read(dy + (i64)order[from + k] * d, i, d, true);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (from + k < end) {
                float e[8];
                v[k].get(e);
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] = sum[j] + e[j];
            }
    }
    for (; from < end; from++) {
        float e[8];
        part(e, dy + (i64)order[from] * d, i, d, false);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] = sum[j] + e[j];
    }
    put_part(dtable, i, d, sum, wide);
}

#define KERNEL(threads) extern "C" __global__ void KERNEL_BOUNDS(threads, 1)

#define SWIGLU(n, T, A)                                                                                       \
    KERNEL(256) swiglu_##n(A *a, const T *g, const T *u, int rows, int width, int ldg, int lda) {              \
        swiglu<T, A>(a, g, u, rows, width, ldg, lda);                                                         \
    }
SWIGLU(ff, float, float)
SWIGLU(fb, float, bf16)
SWIGLU(bb, bf16, bf16)

#define SWIGLU_GRAD(n, T)                                                                                                  \
    KERNEL(256) swiglu_grad_##n(T *dg, T *du, T *wa, float *dw, const T *da, const T *g, const T *u, const float *weight,   \
                                const int *source, const int *expert, const int *wanted, int rows, int width, int ldg,     \
                                int lda) {                                                                                 \
        swiglu_grad<T>(dg, du, wa, dw, da, g, u, weight, source, expert, wanted, rows, width, ldg, lda);                   \
    }
SWIGLU_GRAD(f, float)
SWIGLU_GRAD(b, bf16)

#define SUM(n, Y, A, B) \
    KERNEL(256) sum_##n(Y *y, const A *a, const B *b, long long count) { sum<Y, A, B>(y, a, b, count); }
SUM(fff, float, float, float)
SUM(ffb, float, float, bf16)
SUM(fbb, float, bf16, bf16)
SUM(bbb, bf16, bf16, bf16)

KERNEL(1024) cross_entropy_f(double *losses, float *logits, const int *targets, int rows, int vocab, float scale) {
    cross_entropy<float>(losses, logits, targets, vocab, scale);
}
KERNEL(1024) cross_entropy_b(double *losses, bf16 *logits, const int *targets, int rows, int vocab, float scale) {
    cross_entropy<bf16>(losses, logits, targets, vocab, scale);
}

KERNEL(256) embed_ff(float *y, const float *table, const int *ids, int rows, int d) { embed(y, table, ids, d); }
KERNEL(256) embed_fb(bf16 *y, const float *table, const int *ids, int rows, int d) { embed(y, table, ids, d); }
KERNEL(256) embed_bb(bf16 *y, const bf16 *table, const int *ids, int rows, int d) { embed(y, table, ids, d); }
KERNEL(64) embed_grad_f(float *dtable, const float *dy, const int *ids, const int *first, const int *order, int d) {
    embed_grad(dtable, dy, ids, first, order, d);
}
KERNEL(64) embed_grad_b(float *dtable, const bf16 *dy, const int *ids, const int *first, const int *order, int d) {
    embed_grad(dtable, dy, ids, first, order, d);
}
