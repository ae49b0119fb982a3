// Attention of the exact mode: docs/spec/exact.md, section 6.
//
// Scores, probabilities and their gradients lie in matrices [seq, padded], padded = seq rounded up to 16, one per pair of a
// sequence and a head. A launch takes for every sequence the heads member, member + stride, …: count of them, block x of the
// grid being pair (x / count, x mod count). The key-value head is head / group, group = heads / kvHeads. The matrices of a
// whole state are numbered sequence · heads + head; compact ones, scratch of a launch, by pair.
//
//   attention_exact_scores(float *s, const float *q, const float *k, AXES, int compact)
//       s = q·kᵀ wherever a later kernel reads it; also the gradient of the probabilities, of dout and v
//       grid (pairs, ⌈seq/64⌉, ⌈seq/64⌉), block 128
//   attention_exact_values(float *out, const float *p, const float *v, AXES, int compact)
//       out = p·v up to each row's horizon; also dq, of the scores' gradient and k
//       grid (pairs, ⌈seq/64⌉, ⌈headDim/64⌉), block 128
//   attention_exact_columns(float *dv, const float *p, const float *dout, AXES, int compact, int add)
//       dv = pᵀ·dout from each row's own block on, set or added; also dk, of the scores' gradient and q. No two heads of a
//       launch may share a key-value head
//       grid (pairs, ⌈seq/64⌉, ⌈headDim/64⌉), block 128
//   attention_exact_softmax(float *p, int rows, int seq, int padded, float scale)
//       probabilities of scores in place, over every row's width; rows = matrices · seq
//       grid (⌈rows/8⌉), block 128
//   attention_exact_softmax_grad(float *ds, const float *p, AXES, float scale)
//       in place: the gradient of scores from that of probabilities; ds is compact, p is not
//       grid (⌈pairs·seq/8⌉), block 128
//
// AXES is int pairs, int seq, int padded, int headDim, int heads, int kvHeads, int count, int stride, int member. q, out and
// dout are [sequences·seq, heads·headDim], k, v, dk and dv [sequences·seq, kvHeads·headDim]. Any alignment. Shared memory:
// static.
#include "exact_product.cuh"

#define AXES int pairs, int seq, int padded, int headDim, int heads, int kvHeads, int count, int stride, int member

// Pair is where the operands of a pair of sequence and head begin, in values.
struct Pair {
    i64 query, key, state, scratch;
};

DEVICE Pair pair_at(int x, AXES) {
    int sequence = x / count, head = x % count * stride + member;
    Pair p;
    p.query = (i64)sequence * seq * heads * headDim + (i64)head * headDim;
    p.key = (i64)sequence * seq * kvHeads * headDim + (i64)(head / (heads / kvHeads)) * headDim;
    p.state = ((i64)sequence * heads + head) * seq * padded;
    p.scratch = (i64)x * seq * padded;
    return p;
}

#define PAIR_AT(x) pair_at(x, pairs, seq, padded, headDim, heads, kvHeads, count, stride, member)

extern "C" __global__ void KERNEL_BOUNDS(128, 3) attention_exact_scores(float *s, const float *q, const float *k, AXES, int compact) {
    int row0 = blockIdx.y * 64, col0 = blockIdx.z * 64;
    if (col0 >= row0 + 64) return; // beyond the horizon of all rows
    Pair at = PAIR_AT(blockIdx.x);
    int queryRow = heads * headDim, keyRow = kvHeads * headDim;
    strided_product(s + (compact ? at.scratch : at.state), padded, view(q + at.query, queryRow, 1, false), view(k + at.key, 1, keyRow, false), seq, seq,
                    headDim, row0, col0, WHOLE, false);
}

extern "C" __global__ void KERNEL_BOUNDS(128, 3) attention_exact_values(float *out, const float *p, const float *v, AXES, int compact) {
    int row0 = (gridDim.y - 1 - blockIdx.y) * 64; // the longest rows first
    Pair at = PAIR_AT(blockIdx.x);
    int queryRow = heads * headDim, keyRow = kvHeads * headDim;
    strided_product(out + at.query, queryRow, view(p + (compact ? at.scratch : at.state), padded, 1, false), view(v + at.key, keyRow, 1, false), seq, headDim,
                    seq, row0, blockIdx.z * 64, HORIZON, false);
}

extern "C" __global__ void KERNEL_BOUNDS(128, 3)
    attention_exact_columns(float *dv, const float *p, const float *dout, AXES, int compact, int add) {
    Pair at = PAIR_AT(blockIdx.x);
    int queryRow = heads * headDim, keyRow = kvHeads * headDim;
    strided_product(dv + at.key, keyRow, view(p + (compact ? at.scratch : at.state), 1, padded, false), view(dout + at.query, queryRow, 1, false), seq,
                    headDim, seq, blockIdx.y * 64, blockIdx.z * 64, BEHIND, add != 0);
}

// Rows of the two kernels below have 16 threads each, one per accumulator.

extern "C" __global__ void KERNEL_BOUNDS(128, 4) attention_exact_softmax(float *p, int rows, int seq, int padded, float scale) {
    int row = blockIdx.x * 8 + (threadIdx.x >> 4), lane = threadIdx.x & 15;
    int i = row < rows ? row % seq : 0, width = row < rows ? i / 16 * 16 + 16 : 0;
    float *x = p + (i64)row * padded;
    float m = NEGATIVE_INFINITY;
#pragma unroll 4
    for (int j = lane; j < width; j += 16) m = exact_max(m, j <= i ? x[j] : NEGATIVE_INFINITY);
    m = fold16_max(m);
    float shift = m * scale, sum = 0.0f;
#pragma unroll 4
    for (int j = lane; j < width; j += 16) {
        float e = exact_exp(fmaf(j <= i ? x[j] : NEGATIVE_INFINITY, scale, -shift));
        x[j] = e;
        sum = sum + e;
    }
    float inverse = 1.0f / fold16_sum(sum);
#pragma unroll 4
    for (int j = lane; j < width; j += 16) x[j] = x[j] * inverse;
}

extern "C" __global__ void KERNEL_BOUNDS(128, 4) attention_exact_softmax_grad(float *ds, const float *p, AXES, float scale) {
    int row = blockIdx.x * 8 + (threadIdx.x >> 4), lane = threadIdx.x & 15;
    bool valid = row < pairs * seq;
    int pair = valid ? row / seq : 0, i = valid ? row % seq : 0;
    int width = valid ? i / 16 * 16 + 16 : 0, horizon = min(width, seq);
    Pair at = PAIR_AT(pair);
    const float *x = p + at.state + (i64)i * padded;
    float *y = ds + at.scratch + (i64)i * padded;
    float sum = 0.0f;
#pragma unroll 4
    for (int j = lane; j < width; j += 16) sum = fmaf(x[j], j < horizon ? y[j] : 0.0f, sum);
    float d = fold16_sum(sum);
#pragma unroll 4
    for (int j = lane; j < width; j += 16) y[j] = (x[j] * ((j < horizon ? y[j] : 0.0f) - d)) * scale;
}
