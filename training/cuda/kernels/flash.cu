// Causal attention of the fast mode: softmax(scale · q·kᵀ)·v without the probabilities in memory, and its gradient. Values
// are bfloat16, scores and sums binary32. Query head h belongs to key-value head h / (heads/kvheads). The results are the
// same from run to run.
//
// Common arguments. rows = batch·seq; q, out, dout, dq are [rows, heads·hd], k, v, dk, dv are [rows, kvheads·hd], their rows
// ldq, ldo, ldk, ldv values apart (dq like q, dk like k, dv like v, dout like out). hd ≤ D of the kernel, a multiple of 8;
// all matrices aligned to 16 bytes, ld a multiple of 8. seq ≥ 1 is any. lse [rows, heads] is the logarithm of the softmax's
// denominator. group ≥ 1: blocks work on so many pairs (sequence, head) at a time, of query heads in fwd and dq, of key-value
// heads in dkdv. It changes speed alone: k and v of a group, 4·seq·hd bytes of each key-value head, should stay in half of the
// L2, and all groups should be about as large, for the blocks that run last are long ones too. Shared memory is dynamic, in
// bytes.
//
//   flash_fwd_d{32,64,96,128}(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, int batch, int seq,
//       int heads, int kvheads, int hd, int ldo, int ldq, int ldk, int ldv, float scale, int group)
//     grid [batch·heads·ceil(seq/BM)], block [THREADS], shared: FORWARD in the table below
//
//   flash_stats(float *stats, const bf16 *dout, const bf16 *out, const float *lse, int batch, int seq, int heads, int hd, int ldo)
//     stats [batch·heads, seq rounded up to 128, 2]: lse·log2(e) and Σ dout·out, for the two kernels below.
//     grid [ceil(batch·padded·heads·L/256)], block [256], no shared memory; L = 16 if hd > 64, 8 if hd > 32, else 4
//
//   flash_dkdv_d…(bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const float *stats,
//       int batch, int seq, int heads, int kvheads, int hd, int ldo, int ldq, int ldk, int ldv, float scale, int group)
//     grid [batch·kvheads·ceil(seq/BN)], block [THREADS], shared: DKDV
//
//   flash_dq_d…(bf16 *dq, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const float *stats, …as dkdv)
//     grid [batch·heads·ceil(seq/BM)], block [THREADS], shared: DQ
//
// The two compute the probabilities twice, 7 products where one kernel for all would need 5. But that one has to pass sums of
// dq from block to block in a fixed order, and was slower.
//
// Tiles:                      D  BM  BN THREADS shared
//   FORWARD flash_fwd_d32    32 128  64     128  16384
//           flash_fwd_d64    64 128  64     128  32768
//           flash_fwd_d96    96 128  64     128  49152
//           flash_fwd_d128  128 128  64     128  65536
//   DKDV    flash_dkdv_d32   32  64 128     256  33792
//           flash_dkdv_d64   64  64 128     256  66560
//           flash_dkdv_d96   96  64  64     128  49664
//           flash_dkdv_d128 128  64  64     128  66048
//   DQ      flash_dq_d32     32  64  64     128  16384
//           flash_dq_d64     64  64  64     128  32768
//           flash_dq_d96     96  64  64     128  49152
//           flash_dq_d128   128  64  64     128  65536
// In general FORWARD and DQ take (BM + 2·STAGES·BN)·D·2 bytes, DQ with 2·BM; DKDV (BN + STAGES·BM)·D·4 + STAGES·BM·8. Cards
// with the least give a block 99 KiB.
#include "flash.cuh"

// Work is a block's share: tile of a pair (sequence, head). Blocks that start together work on group pairs, tile by tile.
struct Work {
    int pair, tile;
};
DEVICE Work work(int id, int pairs, int tiles, int group) {
    int first = id / (group * tiles) * group, rest = id - first * tiles, width = min(group, pairs - first);
    return Work{first + rest % width, rest / width};
}

template <int D, int BM, int BN, int WARPS, int STAGES>
DEVICE void forward(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, int batch, int seq, int heads,
                    int kvheads, int hd, int ldo, int ldq, int ldk, int ldv, float scale, int group) {
    constexpr int M = BM / 16 / WARPS, N = BN / 8, THREADS = WARPS * 32, TILE = BN * D * 2;
    DYNAMIC_SHARED(smem);
    int tiles = ceil_div(seq, BM);
    Work w = work(blockIdx.x, batch * heads, tiles, group);
    int b = w.pair / heads, head = w.pair % heads, kv = head / (heads / kvheads);
    int q0 = (tiles - 1 - w.tile) * BM; // the longest rows first
    i64 first = (i64)b * seq;
    q += (first + q0) * ldq + head * hd;
    unsigned char *qs = smem, *ks = qs + BM * D * 2, *vs = ks + STAGES * TILE;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int top = q0 + warp * (M * 16); // the warp's first row
    qs += warp * (M * 16) * D * 2;
    Lane<D> along = Lane<D>::along(), across = Lane<D>::across();
    float scale2 = scale * LOG2E;

    int block = ceil_div(min(q0 + BM, seq), BN) - 1, stage = 0;
    auto loader = Loader<D, THREADS>::make();
    k = loader.from(k + (first + block * BN) * ldk + kv * hd, ldk);
    v = loader.from(v + (first + block * BN) * ldv + kv * hd, ldv);
    i64 backk = (i64)BN * ldk, backv = (i64)BN * ldv;
    int live = seq - block * BN; // keys of the block
    loader.template load<BM>(smem, loader.from(q, ldq), ldq, seq - q0, hd);
    loader.template load<BN>(ks, k, ldk, live, hd);
    if (STAGES == 2) loader.template load<BN>(vs, v, ldv, live, hd);
    cp_async_commit();

    float o[M][D / 8][4], best[M][2], sum[M][2];
    clear<M, D / 8>(o);
#pragma unroll
    for (int m = 0; m < M; m++) best[m][0] = best[m][1] = NEGATIVE_INFINITY, sum[m][0] = sum[m][1] = 0.0f;

    for (; block >= 0; block--) {
        bool active = block * BN < top + M * 16;
        u32 p[M][N][2];
        cp_async_wait<0>();
        __syncthreads();
        if (STAGES == 2) {
            if (block > 0) {
                k -= backk;
                v -= backv;
                loader.template load<BN>(ks + (stage ^ 1) * TILE, k, ldk, BN, hd);
                loader.template load<BN>(vs + (stage ^ 1) * TILE, v, ldv, BN, hd);
            }
        } else {
            loader.template load<BN>(vs, v, ldv, live, hd);
            v -= backv;
            live = BN;
        }
        cp_async_commit();
        if (active) {
            float s[M][N][4];
            clear<M, N>(s);
            multiply_nt<D, M, N>(s, qs, along, ks + stage * TILE, across);
            if (block * BN + BN - 1 > top) {
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int last = top + m * 16 + half * 8 + (lane >> 2) - block * BN - (lane & 3) * 2;
#pragma unroll
                        for (int n = 0; n < N; n++)
#pragma unroll
                            for (int j = 0; j < 2; j++)
                                if (n * 8 + j > last) s[m][n][half * 2 + j] = NEGATIVE_INFINITY;
                    }
            }
            float keep[M][2];
            bool changed = false;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float top0 = best[m][half];
#pragma unroll
                    for (int n = 0; n < N; n++) top0 = fmaxf(top0, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
                    top0 = fmaxf(top0, __shfl_xor_sync(FULL_WARP, top0, 1));
                    top0 = fmaxf(top0, __shfl_xor_sync(FULL_WARP, top0, 2));
                    // A row that has seen no key yet keeps 0 as its shift: -inf - (-inf) has no value.
                    float shift = top0 == NEGATIVE_INFINITY ? 0.0f : top0 * scale2;
                    keep[m][half] = fast_exp2(fmaf(best[m][half], scale2, -shift));
                    changed = changed || top0 != best[m][half];
                    best[m][half] = top0;
                    float add = 0.0f;
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        float x = fast_exp2(fmaf(s[m][n][half * 2], scale2, -shift));
                        float y = fast_exp2(fmaf(s[m][n][half * 2 + 1], scale2, -shift));
                        add += x + y;
                        p[m][n][half] = pack_rn(x, y);
                    }
                    sum[m][half] = fmaf(sum[m][half], keep[m][half], add);
                }
            if (__ballot_sync(FULL_WARP, changed)) {
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < D / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) o[m][n][i] *= keep[m][i >> 1];
            }
        }
        if (STAGES == 1) {
            cp_async_wait<0>();
            __syncthreads();
            k -= backk;
            if (block > 0) loader.template load<BN>(ks, k, ldk, BN, hd);
            cp_async_commit();
        }
        if (active) multiply_nn<D, M, BN / 16>(o, p, vs + stage * TILE, along);
        if (STAGES == 2) stage ^= 1;
    }

    float factor[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float l = sum[m][half];
            l += __shfl_xor_sync(FULL_WARP, l, 1);
            l += __shfl_xor_sync(FULL_WARP, l, 2);
            factor[m][half] = 1.0f / l;
            int row = top + m * 16 + half * 8 + (lane >> 2);
            if ((lane & 3) == 0 && row < seq) lse[(first + row) * heads + head] = fmaf(best[m][half], scale, logf(l));
        }
    store_rows<D, M>(out + (first + top) * ldo + head * hd, ldo, seq - top, hd, qs, o, factor);
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1)
    flash_stats(float *stats, const bf16 *dout, const bf16 *out, const float *lse, int batch, int seq, int heads, int hd, int ldo) {
    int lanes = hd > 64 ? 16 : hd > 32 ? 8 : 4, padded = round_up(seq, 128);
    i64 thread = (i64)blockIdx.x * 256 + threadIdx.x;
    i64 item = thread / lanes, row = item / heads;
    int at = (int)(thread % lanes) * 8, head = (int)(item % heads), b = (int)(row / padded), i = (int)(row % padded);
    bool live = b < batch && i < seq;
    float d = 0.0f;
    if (live && at < hd) {
        i64 from = ((i64)b * seq + i) * ldo + head * hd + at;
        float x[8], y[8];
        load8(x, dout + from);
        load8(y, out + from);
#pragma unroll
        for (int j = 0; j < 8; j++) d = fmaf(x[j], y[j], d);
    }
    d = group_sum(d, lanes);
    // A row that does not exist has probability 2^-inf.
    if (at == 0 && b < batch)
        store_float2(stats + (((i64)b * heads + head) * padded + i) * 2,
                     make_float2(live ? lse[((i64)b * seq + i) * heads + head] * LOG2E : -NEGATIVE_INFINITY, d));
}

// key_gradient computes dk and dv of a block of BN keys. Scores are computed transposed, [key, query]: so the probabilities
// and their gradients in registers are at once the left operands of dv and dk.
template <int D, int BM, int BN, int WARPS, int STAGES>
DEVICE void key_gradient(bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const float *stats, int batch,
                         int seq, int heads, int kvheads, int hd, int ldo, int ldq, int ldk, int ldv, float scale, int group) {
    constexpr int THREADS = WARPS * 32, N = BM / 8, TILE = BM * D * 2, KEYS = BN * D * 2;
    static_assert(BN == WARPS * 16, "a warp has 16 keys");
    DYNAMIC_SHARED(smem);
    unsigned char *ks = smem, *vs = ks + KEYS, *qs = vs + KEYS, *os = qs + STAGES * TILE, *ss = os + STAGES * TILE;
    int blocks = ceil_div(seq, BN), tiles = ceil_div(seq, BM), padded = round_up(seq, 128), share = heads / kvheads;
    Work w = work(blockIdx.x, batch * kvheads, blocks, group); // the keys that most queries see first
    int b = w.pair / kvheads, kv = w.pair % kvheads;
    i64 first = (i64)b * seq;
    int k0 = w.tile * BN;
    q += first * ldq + kv * share * hd;
    dout += first * ldo + kv * share * hd;
    stats += ((i64)b * heads + kv * share) * padded * 2;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int key = k0 + warp * 16; // the warp's first
    unsigned char *kw = ks + warp * 16 * D * 2, *vw = vs + warp * 16 * D * 2;
    Lane<D> along = Lane<D>::along(), across = Lane<D>::across();
    float scale2 = scale * LOG2E;

    int begin = k0 / BM, count = tiles - begin, steps = count * share;
    int ahead_head = 0, ahead_tile = begin, ahead_stage = 0;
    auto loader = Loader<D, THREADS>::make();
    q = loader.from(q, ldq);
    dout = loader.from(dout, ldo);
    auto fetch = [&]() {
        int from = ahead_tile * BM;
        loader.template load<BM>(qs + ahead_stage * TILE, q + (i64)from * ldq + ahead_head * hd, ldq, seq - from, hd);
        loader.template load<BM>(os + ahead_stage * TILE, dout + (i64)from * ldo + ahead_head * hd, ldo, seq - from, hd);
        if (threadIdx.x < BM / 2)
            cp_async16(ss + ahead_stage * (BM * 8) + threadIdx.x * 16,
                       stats + ((i64)ahead_head * padded + from) * 2 + threadIdx.x * 4, true);
        if (++ahead_tile == tiles) ahead_tile = begin, ahead_head++;
        if (STAGES == 2) ahead_stage ^= 1;
    };
    loader.template load<BN>(ks, loader.from(k + (first + k0) * ldk + kv * hd, ldk), ldk, seq - k0, hd);
    loader.template load<BN>(vs, loader.from(v + (first + k0) * ldv + kv * hd, ldv), ldv, seq - k0, hd);
    fetch();
    cp_async_commit();

    float gk[1][D / 8][4], gv[1][D / 8][4];
    clear<1, D / 8>(gk);
    clear<1, D / 8>(gv);
    int tile = begin, stage = 0;

    for (int step = 0; step < steps; step++) {
        int q0 = tile * BM;
        cp_async_wait<0>();
        __syncthreads();
        if (STAGES == 2) {
            if (step + 1 < steps) fetch();
            cp_async_commit();
        }
        const unsigned char *qt = qs + stage * TILE, *ot = os + stage * TILE;
        if (key < q0 + BM) {
            float s[1][N][4], g[1][N][4];
            u32 p[1][N][2];
            clear<1, N>(s);
            multiply_nt<D, 1, N>(s, kw, along, qt, across);
            const float *row = (const float *)(ss + stage * (BM * 8)) + (lane & 3) * 4;
#pragma unroll
            for (int n = 0; n < N; n++) {
                float4 x = load_float4(row + n * 16);
#pragma unroll
                for (int i = 0; i < 4; i++) s[0][n][i] = fast_exp2(fmaf(s[0][n][i], scale2, -(i & 1 ? x.z : x.x)));
            }
            if (key + 15 > q0) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int earliest = key + half * 8 + (lane >> 2) - q0 - (lane & 3) * 2;
#pragma unroll
                    for (int n = 0; n < N; n++)
#pragma unroll
                        for (int j = 0; j < 2; j++)
                            if (n * 8 + j < earliest) s[0][n][half * 2 + j] = 0.0f;
                }
            }
#pragma unroll
            for (int n = 0; n < N; n++) p[0][n][0] = pack_rn(s[0][n][0], s[0][n][1]), p[0][n][1] = pack_rn(s[0][n][2], s[0][n][3]);
            multiply_nn<D, 1, BM / 16>(gv, p, ot, along);
            clear<1, N>(g);
            multiply_nt<D, 1, N>(g, vw, along, ot, across);
#pragma unroll
            for (int n = 0; n < N; n++) {
                float4 x = load_float4(row + n * 16);
#pragma unroll
                for (int half = 0; half < 2; half++)
                    p[0][n][half] = pack_rn(s[0][n][half * 2] * (g[0][n][half * 2] - x.y),
                                            s[0][n][half * 2 + 1] * (g[0][n][half * 2 + 1] - x.w));
            }
            multiply_nn<D, 1, BM / 16>(gk, p, qt, along);
        }
        if (STAGES == 1) {
            __syncthreads();
            if (step + 1 < steps) fetch();
            cp_async_commit();
        } else {
            stage ^= 1;
        }
        if (++tile == tiles) tile = begin;
    }
    const float once[1][2] = {{1.0f, 1.0f}}, scaled[1][2] = {{scale, scale}};
    store_rows<D, 1>(dv + (first + key) * ldv + kv * hd, ldv, seq - key, hd, vw, gv, once);
    store_rows<D, 1>(dk + (first + key) * ldk + kv * hd, ldk, seq - key, hd, kw, gk, scaled);
}

// query_gradient computes dq of a block of BM queries.
template <int D, int BM, int BN, int WARPS, int STAGES>
DEVICE void query_gradient(bf16 *dq, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const float *stats, int batch,
                           int seq, int heads, int kvheads, int hd, int ldo, int ldq, int ldk, int ldv, float scale, int group) {
    constexpr int M = BM / 16 / WARPS, N = BN / 8, THREADS = WARPS * 32, TILE = BN * D * 2;
    DYNAMIC_SHARED(smem);
    int tiles = ceil_div(seq, BM), padded = round_up(seq, 128);
    Work w = work(blockIdx.x, batch * heads, tiles, group);
    int b = w.pair / heads, head = w.pair % heads, kv = head / (heads / kvheads);
    int q0 = (tiles - 1 - w.tile) * BM;
    i64 first = (i64)b * seq;
    auto loader = Loader<D, THREADS>::make();
    k = loader.from(k + first * ldk + kv * hd, ldk);
    v = loader.from(v + first * ldv + kv * hd, ldv);
    unsigned char *qs = smem, *os = qs + BM * D * 2, *ks = os + BM * D * 2, *vs = ks + STAGES * TILE;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int top = q0 + warp * (M * 16);
    Lane<D> along = Lane<D>::along(), across = Lane<D>::across();
    float scale2 = scale * LOG2E;
    loader.template load<BM>(qs, loader.from(q + (first + q0) * ldq + head * hd, ldq), ldq, seq - q0, hd);
    loader.template load<BM>(os, loader.from(dout + (first + q0) * ldo + head * hd, ldo), ldo, seq - q0, hd);
    loader.template load<BN>(ks, k, ldk, seq, hd);
    loader.template load<BN>(vs, v, ldv, seq, hd);
    cp_async_commit();
    qs += warp * (M * 16) * D * 2;
    os += warp * (M * 16) * D * 2;
    float2 row[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            row[m][half] = load_float2(stats + (((i64)b * heads + head) * padded + top + m * 16 + half * 8 + (lane >> 2)) * 2);

    float a[M][D / 8][4];
    clear<M, D / 8>(a);
    int blocks = ceil_div(min(q0 + BM, seq), BN), stage = 0;
    for (int block = 0; block < blocks; block++) {
        int k0 = block * BN, next = k0 + BN;
        cp_async_wait<0>();
        __syncthreads();
        if (STAGES == 2) {
            if (block + 1 < blocks) {
                loader.template load<BN>(ks + (stage ^ 1) * TILE, k + (i64)next * ldk, ldk, seq - next, hd);
                loader.template load<BN>(vs + (stage ^ 1) * TILE, v + (i64)next * ldv, ldv, seq - next, hd);
            }
            cp_async_commit();
        }
        if (k0 < top + M * 16) {
            float s[M][N][4], g[M][N][4];
            u32 p[M][N][2];
            clear<M, N>(s);
            multiply_nt<D, M, N>(s, qs, along, ks + stage * TILE, across);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) s[m][n][i] = fast_exp2(fmaf(s[m][n][i], scale2, -row[m][i >> 1].x));
            if (k0 + BN - 1 > top) {
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int last = top + m * 16 + half * 8 + (lane >> 2) - k0 - (lane & 3) * 2;
#pragma unroll
                        for (int n = 0; n < N; n++)
#pragma unroll
                            for (int j = 0; j < 2; j++)
                                if (n * 8 + j > last) s[m][n][half * 2 + j] = 0.0f;
                    }
            }
            clear<M, N>(g);
            multiply_nt<D, M, N>(g, os, along, vs + stage * TILE, across);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        p[m][n][half] = pack_rn(s[m][n][half * 2] * (g[m][n][half * 2] - row[m][half].y),
                                                s[m][n][half * 2 + 1] * (g[m][n][half * 2 + 1] - row[m][half].y));
            multiply_nn<D, M, BN / 16>(a, p, ks + stage * TILE, along);
        }
        if (STAGES == 2) {
            stage ^= 1;
        } else {
            __syncthreads();
            if (block + 1 < blocks) {
                loader.template load<BN>(ks, k + (i64)next * ldk, ldk, seq - next, hd);
                loader.template load<BN>(vs, v + (i64)next * ldv, ldv, seq - next, hd);
            }
            cp_async_commit();
        }
    }
    float factor[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) factor[m][0] = factor[m][1] = scale;
    store_rows<D, M>(dq + (first + top) * ldq + head * hd, ldq, seq - top, hd, qs, a, factor);
}

#define SHAPE int batch, int seq, int heads, int kvheads, int hd, int ldo, int ldq, int ldk, int ldv, float scale, int group
#define SHAPED batch, seq, heads, kvheads, hd, ldo, ldq, ldk, ldv, scale, group

#define FORWARD(name, D, BM, BN, WARPS, STAGES, BLOCKS)                                                                 \
    extern "C" __global__ void KERNEL_BOUNDS(WARPS * 32, BLOCKS)                                                        \
        name(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, SHAPE) {                               \
        forward<D, BM, BN, WARPS, STAGES>(out, lse, q, k, v, SHAPED);                                                   \
    }
#define DKDV(name, D, BM, BN, WARPS, STAGES, BLOCKS)                                                                    \
    extern "C" __global__ void KERNEL_BOUNDS(WARPS * 32, BLOCKS)                                                        \
        name(bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const float *stats,     \
             SHAPE) {                                                                                                   \
        key_gradient<D, BM, BN, WARPS, STAGES>(dk, dv, dout, q, k, v, stats, SHAPED);                                   \
    }
#define QUERY(name, D, BM, BN, WARPS, STAGES, BLOCKS)                                                                   \
    extern "C" __global__ void KERNEL_BOUNDS(WARPS * 32, BLOCKS)                                                        \
        name(bf16 *dq, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const float *stats, SHAPE) {      \
        query_gradient<D, BM, BN, WARPS, STAGES>(dq, dout, q, k, v, stats, SHAPED);                                     \
    }

#ifndef FLASH_SWEEP
FORWARD(flash_fwd_d32, 32, 128, 64, 4, 1, 2)
FORWARD(flash_fwd_d64, 64, 128, 64, 4, 1, 2)
FORWARD(flash_fwd_d96, 96, 128, 64, 4, 1, 2)
FORWARD(flash_fwd_d128, 128, 128, 64, 4, 1, 2)
DKDV(flash_dkdv_d32, 32, 64, 128, 8, 2, 1)
DKDV(flash_dkdv_d64, 64, 64, 128, 8, 2, 1)
DKDV(flash_dkdv_d96, 96, 64, 64, 4, 1, 2)
DKDV(flash_dkdv_d128, 128, 64, 64, 4, 1, 2)
QUERY(flash_dq_d32, 32, 64, 64, 4, 1, 3)
QUERY(flash_dq_d64, 64, 64, 64, 4, 1, 3)
QUERY(flash_dq_d96, 96, 64, 64, 4, 1, 2)
QUERY(flash_dq_d128, 128, 64, 64, 4, 1, 2)
#endif
