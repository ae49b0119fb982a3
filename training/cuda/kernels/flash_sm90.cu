// Causal attention of the fast mode on sm_90a: wgmma fed by the copy engine. What is computed, and seq, heads, kvheads, scale,
// stats and the leading dimensions, is as in flash.cu, whose flash_stats comes before the gradients; heads are of 64 or 128
// values exactly. Same results from run to run.
//
// Tensor maps are of the matrices of rows batch·seq: q and dout [rows, heads·hd], k and v [rows, kvheads·hd], boxes of 64 rows
// by 64 columns, 128-byte swizzle, zeros out of bounds. out, dq, dk, dv are aligned to 16 bytes, ld a multiple of 8.
//
//   flash_fwd_sm90_d{64,128}(TensorMap q, TensorMap k, TensorMap v, bf16 *out, float *lse, int *turns, int batch, int seq,
//       int heads, int kvheads, int ldo, float scale, int group)
//     total = batch·heads·ceil(seq/BM)
//   flash_dkdv_sm90_d{64,128}(TensorMap q, TensorMap k, TensorMap v, TensorMap dout, bf16 *dk, bf16 *dv, const float *stats,
//       int *turns, int batch, int seq, int heads, int kvheads, int ldk, int ldv, float scale, int group)
//     total = batch·kvheads·ceil(seq/BN)
//   flash_dq_sm90_d{64,128}(TensorMap q, TensorMap k, TensorMap v, TensorMap dout, bf16 *dq, const float *stats, int *turns,
//       int batch, int seq, int heads, int kvheads, int ldq, float scale, int group)
//     total = batch·heads·ceil(seq/BM)
//
// Grid [min(SMs, total)]; the shared memory lets one block run per SM. turns: two counters, 0 before the first launch and again
// after every launch, shared by all launches of a stream; or null, for a fixed share of the work for each block. group ≥ 1 as in
// flash.cu: pairs (sequence, head) worked on at a time, query heads in fwd and dq, key-value heads in dkdv.
//
// Tiles:                     D  BM  BN THREADS shared
//   flash_fwd_sm90_d64      64 192 128     512 115712
//   flash_fwd_sm90_d128    128 128 128     384 197632
//   flash_dkdv_sm90_d64     64  64 128     384 117760
//   flash_dkdv_sm90_d128   128  64 128     384 232448
//   flash_dq_sm90_d64       64 128 128     384 115712
//   flash_dq_sm90_d128     128 128  64     384 230400
// A block has a warpgroup that loads and GROUPS that compute, 64 rows each. shared, with tiles at 2 bytes a value: fwd takes
// 2·BM·D·2 + 2·STAGES·BN·D·2 + 1024, dq one BM·D·2 more, dkdv 3·BN·D·2 + STAGES·(2·BM·D·2 + 8·BM) + 1024.
#include "flash_sm90.cuh"

// What is worth varying, in this order: warpgroups that compute; keys (fwd, dq) or queries (dkdv) of a step; steps loaded ahead;
// and
//   fwd   turns, in which the warpgroups start their products, so that one's softmax falls into the other's products; and how
//         many powers of 2 a maximum may grow before earlier sums are scaled anew
//   dkdv  overlap: products that go on while the next step's scores are computed; and whether the gradients of scores come from
//         rounded probabilities, which takes fewer registers
//   dq    overlap; and whether q and dout stay in registers
#ifndef FWD_128
#define FWD_128 2, 128, 2, 1, 8
#endif
#ifndef FWD_64
#define FWD_64 3, 128, 2, 1, 8
#endif
#ifndef KEYS_128
#define KEYS_128 2, 64, 4, 1, 1
#endif
#ifndef KEYS_64
#define KEYS_64 2, 64, 4, 1, 0
#endif
#ifndef QUERIES_128
#define QUERIES_128 2, 64, 4, 1, 0
#endif
#ifndef QUERIES_64
#define QUERIES_64 2, 128, 2, 1, 0
#endif
#ifndef LOADER_REGISTERS
#define LOADER_REGISTERS 24
#endif

// Registers of a thread: what three or four warpgroups share. 24 are few for who loads, but the others need theirs.
template <int GROUPS> DEVICE void registers_of_loader() {
    if (GROUPS == 2) registers_less<LOADER_REGISTERS>();
    if (GROUPS == 3) registers_less<32>();
}
template <int GROUPS> DEVICE void registers_of_others() {
    if (GROUPS == 2) registers_more<(504 - LOADER_REGISTERS) / 2>();
    if (GROUPS == 3) registers_more<160>();
}

// Place is where a thread's part of results lies: rows row and row + 8 of the tile, columns 8j + column, +1.
struct Place {
    int group, row, column;
    DEVICE Place() {
        group = __shfl_sync(FULL_WARP, (int)(threadIdx.x >> 7), 0);
        int lane = threadIdx.x & 31;
        row = (threadIdx.x >> 5) * 16 + (lane >> 2);
        column = (lane & 3) * 2;
    }
};

// hide sets to v the columns beyond last in the thread's upper row, last + 8 in its lower one.
template <int N> DEVICE void hide(float (&s)[N], int last, float v) {
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (j * 8 + (i & 1) > last + (i >> 1) * 8) s[j * 4 + i] = v;
}
// hide_before sets to 0 the columns before first in the upper row, first + 8 in the lower one.
template <int N> DEVICE void hide_before(float (&s)[N], int first) {
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (j * 8 + (i & 1) < first + (i >> 1) * 8) s[j * 4 + i] = 0.0f;
}

// softmax turns scores into probabilities times a factor of the row, 2^(best·scale2), and adds them to sum. keep is what earlier
// ones are worth now; it returns whether that is other than 1 for any row of the warp.
template <bool FIRST, int LAZY, int N>
DEVICE bool softmax(float (&s)[N], float (&best)[2], float (&sum)[2], float (&keep)[2], float scale2) {
    bool grown = false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float a = s[h * 2], b = s[h * 2 + 1];
#pragma unroll
        for (int j = 1; j < N / 4; j++) a = fmaxf(a, s[j * 4 + h * 2]), b = fmaxf(b, s[j * 4 + h * 2 + 1]);
        a = fmaxf(a, b);
        a = fmaxf(a, __shfl_xor_sync(FULL_WARP, a, 1));
        a = fmaxf(a, __shfl_xor_sync(FULL_WARP, a, 2));
        if (FIRST) {
            best[h] = a;
        } else {
            float rise = (a - best[h]) * scale2;
            bool grows = rise > (float)LAZY;
            keep[h] = grows ? fast_exp2(-rise) : 1.0f;
            best[h] = grows ? a : best[h];
            grown = grown || grows;
        }
        float shift = -(best[h] * scale2), x = 0.0f, y = 0.0f;
#pragma unroll
        for (int j = 0; j < N / 4; j++) {
            s[j * 4 + h * 2] = fast_exp2(fmaf(s[j * 4 + h * 2], scale2, shift));
            s[j * 4 + h * 2 + 1] = fast_exp2(fmaf(s[j * 4 + h * 2 + 1], scale2, shift));
            x += s[j * 4 + h * 2], y += s[j * 4 + h * 2 + 1];
        }
        sum[h] = FIRST ? x + y : fmaf(sum[h], keep[h], x + y);
    }
    return __ballot_sync(FULL_WARP, grown) != 0;
}

template <int D, int GROUPS, int BN, int STAGES, int, int> struct ForwardSize {
    static constexpr int BM = 64 * GROUPS, Q = BM * D * 2, KV = BN * D * 2;
    static constexpr int SHARED = 2 * Q + 2 * STAGES * KV + 1024, THREADS = (GROUPS + 1) * 128;
    static_assert(SHARED <= 232448 && 8 * (2 + 4 * STAGES + Queue::BARRIERS) <= 1024, "shared memory of a block");
    static_assert(64 % BN == 0 || BN % 64 == 0, "a warpgroup's last block of keys has one for every row");
};

template <int D, int GROUPS, int BN, int STAGES, int TURNS, int LAZY>
DEVICE void forward(const TensorMap *q, const TensorMap *k, const TensorMap *v, bf16 *out, float *lse, int *turns, int batch,
                    int seq, int heads, int kvheads, int ldo, float scale, int group) {
    typedef ForwardSize<D, GROUPS, BN, STAGES, TURNS, LAZY> S;
    constexpr int BM = S::BM, TILE = S::KV;
    DYNAMIC_SHARED(smem);
    unsigned char *qs = smem, *ks = qs + S::Q, *vs = ks + STAGES * TILE, *boxes = vs + STAGES * TILE;
    u64 *bars = (u64 *)(boxes + S::Q);
    u64 *q_full = bars, *q_empty = bars + 1, *k_full = bars + 2, *k_empty = k_full + STAGES, *v_full = k_empty + STAGES,
        *v_empty = v_full + STAGES;
    int tiles = ceil_div(seq, BM), pairs = batch * heads;
    Queue queue(v_empty + STAGES, turns, pairs * tiles);
    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
        barrier_init(q_empty, GROUPS * 4);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(k_full + i, 1);
            barrier_init(v_full + i, 1);
            barrier_init(k_empty + i, GROUPS * 4);
            barrier_init(v_empty + i, GROUPS * 4);
        }
        queue.init(GROUPS * 4);
        barrier_init_fence();
    }
    __syncthreads();

    Place at;
    if (at.group == GROUPS) {
        registers_of_loader<GROUPS>();
        if (threadIdx.x != GROUPS * 128) return;
        Ring<STAGES> ring;
#pragma unroll 1
        for (int n = 0;; n++) {
            int id = queue.take(n);
            if (id >= queue.total) break;
            Work w = work(id, pairs, tiles, group);
            int b = w.pair / heads, head = w.pair % heads, col = head / (heads / kvheads) * D, q0 = (tiles - 1 - w.tile) * BM;
            barrier_wait(q_empty, (n & 1) ^ 1);
            barrier_expect(q_full, S::Q);
            load_tile<BM, D>(qs, q, b * seq + q0, head * D, q_full);
#pragma unroll 1
            for (int block = ceil_div(min(q0 + BM, seq), BN) - 1; block >= 0; block--, ring.advance()) {
                int row = b * seq + block * BN;
                barrier_wait(k_empty + ring.stage, ring.parity ^ 1);
                barrier_expect(k_full + ring.stage, TILE);
                load_tile<BN, D>(ks + ring.stage * TILE, k, row, col, k_full + ring.stage);
                barrier_wait(v_empty + ring.stage, ring.parity ^ 1);
                barrier_expect(v_full + ring.stage, TILE);
                load_tile<BN, D>(vs + ring.stage * TILE, v, row, col, v_full + ring.stage);
            }
        }
    } else {
        registers_of_others<GROUPS>();
        int next = at.group + 1 == GROUPS ? 0 : at.group + 1;
        constexpr bool turn = TURNS && GROUPS > 1;
        if (turn && at.group == GROUPS - 1) named_arrive(1, 256);
        u32 qd = along(qs + at.group * BOX_BYTES), kd = along(ks), vd = across<BN>(vs);
        float scale2 = scale * LOG2E;
        Ring<STAGES> rk, rv;
        float o[D / 2], s[BN / 2], best[2], sum[2], keep[2];
        u32 p[BN / 16][4];
        zero(s);
        for (int n = 0;; n++) {
            int id = queue.receive(n);
            if (id >= queue.total) break;
            Work w = work(id, pairs, tiles, group);
            int b = w.pair / heads, head = w.pair % heads, q0 = (tiles - 1 - w.tile) * BM;
            int top = q0 + at.group * 64; // the warpgroup's first row
            int block = ceil_div(min(q0 + BM, seq), BN) - 1;
            for (; block * BN > top + 63; block--) { // all keys are later than all queries
                barrier_wait(k_full + rk.stage, rk.parity);
                if (turn) named_barrier(1 + at.group, 256);
                if (turn) named_arrive(1 + next, 256);
                release(k_empty + rk.stage);
                rk.advance();
                barrier_wait(v_full + rv.stage, rv.parity);
                release(v_empty + rv.stage);
                rv.advance();
            }
            zero(o);
            barrier_wait(q_full, n & 1);
            barrier_wait(k_full + rk.stage, rk.parity);
            if (turn) named_barrier(1 + at.group, 256);
            wgmma_fence();
            multiply_along<D, BM, BN>(s, qd, kd + (rk.stage * TILE >> 4));
            wgmma_commit();
            if (turn) named_arrive(1 + next, 256);
            wgmma_wait<0>();
            settle(s);
            release(k_empty + rk.stage);
            rk.advance();
            if (block * BN + BN - 1 > top) hide(s, q0 + at.row - block * BN - at.column, NEGATIVE_INFINITY);
            softmax<true, LAZY>(s, best, sum, keep, scale2);
            pack(p, s);
            for (block--; block >= 0; block--) {
                barrier_wait(k_full + rk.stage, rk.parity);
                if (turn) named_barrier(1 + at.group, 256);
                wgmma_fence();
                multiply_along<D, BM, BN>(s, qd, kd + (rk.stage * TILE >> 4));
                wgmma_commit();
                barrier_wait(v_full + rv.stage, rv.parity);
                wgmma_fence();
                multiply_across(o, p, vd + (rv.stage * TILE >> 4));
                wgmma_commit();
                if (turn) named_arrive(1 + next, 256);
                wgmma_wait<1>();
                settle(s);
                release(k_empty + rk.stage);
                rk.advance();
                if (BN < 64 && block * BN + BN - 1 > top) hide(s, q0 + at.row - block * BN - at.column, NEGATIVE_INFINITY);
                bool grown = softmax<false, LAZY>(s, best, sum, keep, scale2);
                wgmma_wait<0>();
                settle(o);
                settle(s);
                release(v_empty + rv.stage);
                rv.advance();
                if (grown || !LAZY) {
#pragma unroll
                    for (int i = 0; i < D / 2; i++) o[i] *= keep[i >> 1 & 1];
                }
                pack(p, s);
            }
            release(q_empty);
            barrier_wait(v_full + rv.stage, rv.parity);
            wgmma_fence();
            multiply_across(o, p, vd + (rv.stage * TILE >> 4));
            wgmma_commit();
            float factor[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float l = sum[h];
                l += __shfl_xor_sync(FULL_WARP, l, 1);
                l += __shfl_xor_sync(FULL_WARP, l, 2);
                factor[h] = 1.0f / l;
                int row = q0 + at.row + h * 8;
                if (at.column == 0 && row < seq) lse[((i64)b * seq + row) * heads + head] = fmaf(best[h], scale, logf(l));
            }
            wgmma_wait<0>();
            settle(o);
            release(v_empty + rv.stage);
            rv.advance();
            int first = top + (threadIdx.x >> 5 & 3) * 16;
            put_rows<D>(out + ((i64)b * seq + first) * ldo + head * D, ldo, seq - first, boxes + at.group * (64 * D * 2), o, factor[0],
                        factor[1]);
        }
    }
}

template <int D, int GROUPS, int BM, int STAGES, int, int> struct KeysSize {
    static constexpr int BN = 64 * GROUPS, KV = BN * D * 2, Q = BM * D * 2, STAGE = 2 * Q;
    static constexpr int SHARED = 3 * KV + STAGES * (STAGE + BM * 8) + 1024, THREADS = (GROUPS + 1) * 128;
    static_assert(SHARED <= 232448 && 8 * (2 + 2 * STAGES + Queue::BARRIERS) <= 1024, "shared memory of a block");
};

// key_gradient computes dk and dv of 64·GROUPS keys. Scores are computed transposed, [key, query], so that probabilities and
// their gradients are operands as they come.
template <int D, int GROUPS, int BM, int STAGES, int OVERLAP, int ROUNDED>
DEVICE void key_gradient(const TensorMap *q, const TensorMap *k, const TensorMap *v, const TensorMap *dout, bf16 *dk, bf16 *dv,
                         const float *stats, int *turns, int batch, int seq, int heads, int kvheads, int ldk, int ldv, float scale,
                         int group) {
    typedef KeysSize<D, GROUPS, BM, STAGES, OVERLAP, ROUNDED> S;
    constexpr int BN = S::BN, TILE = S::Q;
    DYNAMIC_SHARED(smem);
    unsigned char *ks = smem, *vs = ks + S::KV, *qs = vs + S::KV, *os = qs + STAGES * TILE, *boxes = os + STAGES * TILE,
                  *ss = boxes + S::KV;
    u64 *bars = (u64 *)(ss + STAGES * BM * 8);
    u64 *kv_full = bars, *kv_empty = bars + 1, *full = bars + 2, *empty = full + STAGES;
    int tiles = ceil_div(seq, BN), pairs = batch * kvheads, share = heads / kvheads, rows = ceil_div(seq, BM), padded = round_up(seq, 128);
    Queue queue(empty + STAGES, turns, pairs * tiles);
    if (threadIdx.x == 0) {
        barrier_init(kv_full, 1);
        barrier_init(kv_empty, GROUPS * 4);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, GROUPS * 4);
        }
        queue.init(GROUPS * 4);
        barrier_init_fence();
    }
    __syncthreads();

    Place at;
    Ring<STAGES> ring;
    if (at.group == GROUPS) {
        registers_of_loader<GROUPS>();
        if (threadIdx.x != GROUPS * 128) return;
#pragma unroll 1
        for (int n = 0;; n++) {
            int id = queue.take(n);
            if (id >= queue.total) break;
            Work w = work(id, pairs, tiles, group);
            int b = w.pair / kvheads, kv = w.pair % kvheads, k0 = w.tile * BN;
            barrier_wait(kv_empty, (n & 1) ^ 1);
            barrier_expect(kv_full, 2 * S::KV);
            load_tile<BN, D>(ks, k, b * seq + k0, kv * D, kv_full);
            load_tile<BN, D>(vs, v, b * seq + k0, kv * D, kv_full);
#pragma unroll 1
            for (int head = kv * share; head < (kv + 1) * share; head++)
#pragma unroll 1
                for (int tile = k0 / BM; tile < rows; tile++, ring.advance()) {
                    u64 *bar = full + ring.stage;
                    int row = b * seq + tile * BM;
                    barrier_wait(empty + ring.stage, ring.parity ^ 1);
                    barrier_expect(bar, S::STAGE + BM * 8);
                    load_tile<BM, D>(qs + ring.stage * TILE, q, row, head * D, bar);
                    bulk_load(ss + ring.stage * (BM * 8), stats + (((i64)b * heads + head) * padded + tile * BM) * 2, BM * 8, bar);
                    load_tile<BM, D>(os + ring.stage * TILE, dout, row, head * D, bar);
                }
        }
    } else {
        registers_of_others<GROUPS>();
        u32 kd = along(ks + at.group * BOX_BYTES), vd = along(vs + at.group * BOX_BYTES);
        u32 qd = along(qs), od = along(os);
        u32 qa = across<BM>(qs), oa = across<BM>(os);
        float scale2 = scale * LOG2E;
        float gk[D / 2], gv[D / 2], s[BM / 2], g[BM / 2];
        u32 p[BM / 16][4], r[BM / 16][4];
        zero(s);
        zero(g);
        for (int n = 0;; n++) {
            int id = queue.receive(n);
            if (id >= queue.total) break;
            Work w = work(id, pairs, tiles, group);
            int b = w.pair / kvheads, kv = w.pair % kvheads, k0 = w.tile * BN;
            int top = k0 + at.group * 64, begin = k0 / BM, steps = (rows - begin) * share, tile = begin;
            int last = -1; // the stage whose products may be under way
            bool held = true;
            zero(gk);
            zero(gv);
            barrier_wait(kv_full, n & 1);
            for (int step = 0; step < steps; step++, ring.advance()) {
                int q0 = tile * BM, stage = ring.stage;
                if (++tile == rows) tile = begin;
                barrier_wait(full + stage, ring.parity);
                if (top > q0 + BM - 1) { // all queries are earlier than all keys
                    release(empty + stage);
                    continue;
                }
                u32 at_stage = stage * TILE >> 4;
                wgmma_fence();
                multiply_along<D, BN, BM>(s, kd, qd + at_stage);
                wgmma_commit();
                multiply_along<D, BN, BM>(g, vd, od + at_stage);
                wgmma_commit();
                wgmma_wait<1>();
                settle(s);
                if (OVERLAP && last >= 0) release(empty + last);
                const float *row = (const float *)(ss + stage * (BM * 8)) + at.column * 2;
#pragma unroll
                for (int j = 0; j < BM / 8; j++) {
                    float4 x = load_float4(row + j * 16);
#pragma unroll
                    for (int i = 0; i < 4; i++) s[j * 4 + i] = fast_exp2(fmaf(s[j * 4 + i], scale2, -(i & 1 ? x.z : x.x)));
                }
                if (top + 63 > q0) hide_before(s, k0 + at.row - q0 - at.column);
                pack(p, s);
                wgmma_fence();
                multiply_across(gv, p, oa + at_stage);
                wgmma_commit();
                wgmma_wait<1>();
                settle(g);
                if (step == steps - 1) {
                    release(kv_empty);
                    held = false;
                }
#pragma unroll
                for (int j = 0; j < BM / 8; j++) {
                    float4 x = load_float4(row + j * 16);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        u32 pair = p[j / 2][j % 2 * 2 + i / 2];
                        float probability = ROUNDED ? (i & 1 ? high_bf16(pair) : low_bf16(pair)) : s[j * 4 + i];
                        g[j * 4 + i] = probability * (g[j * 4 + i] - (i & 1 ? x.w : x.y));
                    }
                }
                pack(r, g);
                wgmma_fence();
                multiply_across(gk, r, qa + at_stage);
                wgmma_commit();
                if (OVERLAP == 0) {
                    wgmma_wait<0>();
                    release(empty + stage);
                } else {
                    if (OVERLAP == 1) wgmma_wait<1>();
                    last = stage;
                }
            }
            wgmma_wait<0>();
            settle(gk);
            settle(gv);
            if (OVERLAP && last >= 0) release(empty + last);
            if (held) release(kv_empty);
            int first = top + (threadIdx.x >> 5 & 3) * 16;
            unsigned char *own = boxes + at.group * (64 * D * 2);
            put_rows<D>(dv + ((i64)b * seq + first) * ldv + kv * D, ldv, seq - first, own, gv, 1.0f, 1.0f);
            put_rows<D>(dk + ((i64)b * seq + first) * ldk + kv * D, ldk, seq - first, own, gk, scale, scale);
        }
    }
}

template <int D, int GROUPS, int BN, int STAGES, int, int> struct QueriesSize {
    static constexpr int BM = 64 * GROUPS, Q = BM * D * 2, KV = BN * D * 2;
    static constexpr int SHARED = 3 * Q + 2 * STAGES * KV + 1024, THREADS = (GROUPS + 1) * 128;
    static_assert(SHARED <= 232448 && 8 * (2 + 4 * STAGES + Queue::BARRIERS) <= 1024, "shared memory of a block");
};

// query_gradient computes dq of 64·GROUPS queries.
template <int D, int GROUPS, int BN, int STAGES, int OVERLAP, int KEPT>
DEVICE void query_gradient(const TensorMap *q, const TensorMap *k, const TensorMap *v, const TensorMap *dout, bf16 *dq,
                           const float *stats, int *turns, int batch, int seq, int heads, int kvheads, int ldq, float scale,
                           int group) {
    typedef QueriesSize<D, GROUPS, BN, STAGES, OVERLAP, KEPT> S;
    constexpr int BM = S::BM, TILE = S::KV;
    DYNAMIC_SHARED(smem);
    unsigned char *qs = smem, *os = qs + S::Q, *ks = os + S::Q, *vs = ks + STAGES * TILE, *boxes = vs + STAGES * TILE;
    u64 *bars = (u64 *)(boxes + S::Q);
    u64 *q_full = bars, *q_empty = bars + 1, *k_full = bars + 2, *k_empty = k_full + STAGES, *v_full = k_empty + STAGES,
        *v_empty = v_full + STAGES;
    int tiles = ceil_div(seq, BM), pairs = batch * heads, padded = round_up(seq, 128);
    Queue queue(v_empty + STAGES, turns, pairs * tiles);
    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
        barrier_init(q_empty, GROUPS * 4);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(k_full + i, 1);
            barrier_init(v_full + i, 1);
            barrier_init(k_empty + i, GROUPS * 4);
            barrier_init(v_empty + i, GROUPS * 4);
        }
        queue.init(GROUPS * 4);
        barrier_init_fence();
    }
    __syncthreads();

    Place at;
    Ring<STAGES> ring;
    if (at.group == GROUPS) {
        registers_of_loader<GROUPS>();
        if (threadIdx.x != GROUPS * 128) return;
#pragma unroll 1
        for (int n = 0;; n++) {
            int id = queue.take(n);
            if (id >= queue.total) break;
            Work w = work(id, pairs, tiles, group);
            int b = w.pair / heads, head = w.pair % heads, col = head / (heads / kvheads) * D, q0 = (tiles - 1 - w.tile) * BM;
            barrier_wait(q_empty, (n & 1) ^ 1);
            barrier_expect(q_full, 2 * S::Q);
            load_tile<BM, D>(qs, q, b * seq + q0, head * D, q_full);
            load_tile<BM, D>(os, dout, b * seq + q0, head * D, q_full);
#pragma unroll 1
            for (int block = ceil_div(min(q0 + BM, seq), BN) - 1; block >= 0; block--, ring.advance()) {
                int row = b * seq + block * BN;
                barrier_wait(k_empty + ring.stage, ring.parity ^ 1);
                barrier_expect(k_full + ring.stage, TILE);
                load_tile<BN, D>(ks + ring.stage * TILE, k, row, col, k_full + ring.stage);
                barrier_wait(v_empty + ring.stage, ring.parity ^ 1);
                barrier_expect(v_full + ring.stage, TILE);
                load_tile<BN, D>(vs + ring.stage * TILE, v, row, col, v_full + ring.stage);
            }
        }
    } else {
        registers_of_others<GROUPS>();
        u32 qd = along(qs + at.group * BOX_BYTES), od = along(os + at.group * BOX_BYTES);
        u32 kd = along(ks), vd = along(vs), ka = across<BN>(ks);
        float scale2 = scale * LOG2E;
        float a[D / 2], s[BN / 2], g[BN / 2];
        u32 p[BN / 16][4];
        zero(s);
        zero(g);
        for (int n = 0;; n++) {
            int id = queue.receive(n);
            if (id >= queue.total) break;
            Work w = work(id, pairs, tiles, group);
            int b = w.pair / heads, head = w.pair % heads, q0 = (tiles - 1 - w.tile) * BM;
            int top = q0 + at.group * 64;
            float2 row[2]; // the rows' statistics
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int i = q0 + at.row + h * 8;
                row[h] = i < seq ? load_float2(stats + (((i64)b * heads + head) * padded + i) * 2) : make_float2(-NEGATIVE_INFINITY, 0.0f);
            }
            int last = -1; // the stage of keys whose product may be under way
            zero(a);
            barrier_wait(q_full, n & 1);
            u32 keptq[D / 16][4], kepto[D / 16][4];
            if (KEPT) {
                keep_rows<D, BM>(keptq, qs + at.group * BOX_BYTES);
                keep_rows<D, BM>(kepto, os + at.group * BOX_BYTES);
                release(q_empty);
            }
            for (int block = ceil_div(min(q0 + BM, seq), BN) - 1; block >= 0; block--, ring.advance()) {
                int stage = ring.stage, k0 = block * BN;
                u32 at_stage = stage * TILE >> 4;
                barrier_wait(k_full + stage, ring.parity);
                if (k0 > top + 63) { // all keys are later than all queries
                    barrier_wait(v_full + stage, ring.parity);
                    release(k_empty + stage);
                    release(v_empty + stage);
                    continue;
                }
                wgmma_fence();
                if (KEPT)
                    multiply_along<D, BN>(s, keptq, kd + at_stage);
                else
                    multiply_along<D, BM, BN>(s, qd, kd + at_stage);
                wgmma_commit();
                barrier_wait(v_full + stage, ring.parity);
                wgmma_fence();
                if (KEPT)
                    multiply_along<D, BN>(g, kepto, vd + at_stage);
                else
                    multiply_along<D, BM, BN>(g, od, vd + at_stage);
                wgmma_commit();
                wgmma_wait<1>();
                settle(s);
                if (OVERLAP && last >= 0) release(k_empty + last);
#pragma unroll
                for (int i = 0; i < BN / 2; i++) s[i] = fast_exp2(fmaf(s[i], scale2, -row[i >> 1 & 1].x));
                if (k0 + BN - 1 > top) hide(s, q0 + at.row - k0 - at.column, 0.0f);
                wgmma_wait<0>();
                settle(g);
                settle(s);
                release(v_empty + stage);
                if (!KEPT && block == 0) release(q_empty);
#pragma unroll
                for (int i = 0; i < BN / 2; i++) s[i] *= g[i] - row[i >> 1 & 1].y;
                pack(p, s);
                wgmma_fence();
                multiply_across(a, p, ka + at_stage);
                wgmma_commit();
                if (OVERLAP == 0) {
                    wgmma_wait<0>();
                    release(k_empty + stage);
                } else {
                    last = stage;
                }
            }
            wgmma_wait<0>();
            settle(a);
            if (OVERLAP) release(k_empty + last);
            int first = top + (threadIdx.x >> 5 & 3) * 16;
            put_rows<D>(dq + ((i64)b * seq + first) * ldq + head * D, ldq, seq - first, boxes + at.group * (64 * D * 2), a, scale, scale);
        }
    }
}

#define MAP const __grid_constant__ TensorMap
#define FORWARD(D, ...)                                                                                                         \
    extern "C" __global__ void KERNEL_BOUNDS((ForwardSize<D, __VA_ARGS__>::THREADS), 1)                                         \
        flash_fwd_sm90_d##D(MAP q, MAP k, MAP v, bf16 *out, float *lse, int *turns, int batch, int seq, int heads, int kvheads, \
                            int ldo, float scale, int group) {                                                                  \
        forward<D, __VA_ARGS__>(&q, &k, &v, out, lse, turns, batch, seq, heads, kvheads, ldo, scale, group);                    \
    }
#define KEYS(D, ...)                                                                                                            \
    extern "C" __global__ void KERNEL_BOUNDS((KeysSize<D, __VA_ARGS__>::THREADS), 1)                                            \
        flash_dkdv_sm90_d##D(MAP q, MAP k, MAP v, MAP dout, bf16 *dk, bf16 *dv, const float *stats, int *turns, int batch,      \
                             int seq, int heads, int kvheads, int ldk, int ldv, float scale, int group) {                       \
        key_gradient<D, __VA_ARGS__>(&q, &k, &v, &dout, dk, dv, stats, turns, batch, seq, heads, kvheads, ldk, ldv, scale,      \
                                     group);                                                                                    \
    }
#define QUERIES(D, ...)                                                                                                         \
    extern "C" __global__ void KERNEL_BOUNDS((QueriesSize<D, __VA_ARGS__>::THREADS), 1)                                         \
        flash_dq_sm90_d##D(MAP q, MAP k, MAP v, MAP dout, bf16 *dq, const float *stats, int *turns, int batch, int seq,         \
                           int heads, int kvheads, int ldq, float scale, int group) {                                           \
        query_gradient<D, __VA_ARGS__>(&q, &k, &v, &dout, dq, stats, turns, batch, seq, heads, kvheads, ldq, scale, group);     \
    }

FORWARD(128, FWD_128)
FORWARD(64, FWD_64)
KEYS(128, KEYS_128)
KEYS(64, KEYS_64)
QUERIES(128, QUERIES_128)
QUERIES(64, QUERIES_64)
