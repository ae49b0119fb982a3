// Matrix products in bfloat16 with binary32 sums on sm_90a: wgmma fed by the copy engine. What is computed, and the meaning of
// nt, nn, tn, m, n, k and grouped, is as in gemm_bf16.cu; so is the answer wherever a tensor map cannot be had.
//
// A block is one warpgroup that loads and two that multiply, each 64·(TILE_M/128) rows by TILE_N columns of a tile. Blocks
// are persistent: they take tiles blockIdx.x, + gridDim.x, …. The result leaves through shared memory by the copy engine,
// while the next tile is multiplied.
//
// Tensor maps: bf16 matrices in boxes of 64 rows by 64 columns, binary32 results in boxes of 64 by 32, 128-byte swizzle, zeros
// out of bounds, so one map serves a matrix in every role. Extents are those of the matrix in memory. This needs addresses
// aligned to 16 bytes and rows of a multiple of 16 bytes; where a matrix has neither, use gemm_bf16.cu.
//
// All kernels: block [384,1,1], shared memory SHARED = STAGES·(TILE_M+TILE_N)·128 + STAGING·16384 + 1024 bytes (230400 with the
// defaults). Grid [min(SMs, tiles), 1, 1], for dense kernels rounded up to a multiple of CLUSTER; tiles is the number of tiles or
// an upper bound, more blocks than tiles are harmless. flags: 1 adds to y. T is bf16 or float (suffix f32).
//
//   gemm_{nt,nn,tn}_{bf16,f32}_sm90(TensorMap a, TensorMap b, TensorMap y, int m, int n, int k, int flags)
//   gemm_{nt,nn}_grouped_{bf16,f32}_sm90(TensorMap a, const TensorMap *b, TensorMap y, T *values, const int *offsets, int experts,
//       int n, int k, int ldy, int flags)
//       b: maps of the experts' matrices, in global memory, aligned to 64. values: the matrix that y maps, ldy between rows;
//       n a multiple of 8.
//   gemm_tn_grouped_{bf16,f32}_sm90(TensorMap a, TensorMap b, const TensorMap *y, const int *offsets, const int *list, int count,
//       int m, int n, int flags)
//       y: maps of the count results, in global memory. a and b must be zero or finite in rows of any expert.

#include "sm90.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 256
#define STAGES 4
#define STAGING 2
#define CLUSTER 1
#define L2_UNITS 8
#endif

enum Layout { NT, NN, TN };
enum Mode { DENSE, ROWS, REDUCE };
enum { ADD = 1 };

constexpr int TILE_K = BOX, THREADS = 384, CONSUMERS = 256;
constexpr int BOXES_M = TILE_M / BOX, BOXES_N = TILE_N / BOX, OWN = BOXES_M / 2;
constexpr int A_BYTES = BOXES_M * BOX_BYTES, STAGE_BYTES = A_BYTES + BOXES_N * BOX_BYTES;
static_assert(TILE_M % 128 == 0 && (TILE_N == 128 || TILE_N == 256) && OWN * TILE_N <= 256, "accumulators fit in registers");

// Work is one tile.
struct Work {
    int row, col; // of its first value; row counts from the start of the whole matrix y
    int live;     // rows of the matrix, or of the expert, from there on
    int matrix;   // which map of an array
    int from, k;  // where the reduction starts and how long it is
};

// Blocks walk the tiles of a problem in the same order, each taking those whose number is its own modulo their count.
template <Mode M, int CL> struct Walk {
    int tile, step, m, n, k, count;
    const int *offsets, *list;
    int group, before; // ROWS: the expert reached and the number of tiles before it

    DEVICE Walk(int m, int n, int k, const int *offsets, const int *list, int count)
        : tile(blockIdx.x / CL), step(gridDim.x / CL), m(m), n(n), k(k), count(count), offsets(offsets), list(list), group(0),
          before(0) {}

    DEVICE bool next(Work &w) {
        int columns = ceil_div(n, TILE_N);
        if (M == DENSE) {
            // Bands of L2_UNITS units (the tiles of a cluster), column by column, keep both operands of concurrent tiles in L2.
            int units = ceil_div(m, TILE_M * CL);
            if (tile >= units * columns) return false;
            int band = tile / (L2_UNITS * columns), in = tile % (L2_UNITS * columns);
            int rows = min(L2_UNITS, units - band * L2_UNITS);
            int unit = band * L2_UNITS + in % rows;
            w.row = (unit * CL + (CL > 1 ? cluster_rank() : 0)) * TILE_M;
            w.col = in / rows * TILE_N;
            w.live = m - w.row;
            w.matrix = 0, w.from = 0, w.k = k;
        } else if (M == ROWS) {
            for (;; group++) {
                if (group >= count) return false;
                int start = offsets[group], rows = offsets[group + 1] - start;
                int tall = ceil_div(rows, TILE_M), in = tile - before;
                if (in < tall * columns) {
                    w.row = start + in % tall * TILE_M;
                    w.col = in / tall * TILE_N;
                    w.live = rows - in % tall * TILE_M;
                    w.matrix = group, w.from = 0, w.k = k;
                    break;
                }
                before += tall * columns;
            }
        } else {
            int tall = ceil_div(m, TILE_M), each = tall * columns;
            if (tile >= count * each) return false;
            w.matrix = tile / each;
            int e = list[w.matrix], in = tile % each;
            w.from = offsets[e], w.k = offsets[e + 1] - w.from;
            w.row = in % tall * TILE_M, w.col = in / tall * TILE_N;
            w.live = m - w.row;
        }
        tile += step;
        return true;
    }
};

// Ring is the position in the ring of loaded stages, the same sequence on both sides.
struct Ring {
    int stage = 0, parity = 0;
    DEVICE void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

struct Shared {
    unsigned char *stages, *staging;
    u64 *full, *empty;
    DEVICE Shared(unsigned char *base)
        : stages(base), staging(base + STAGES * STAGE_BYTES), full((u64 *)(staging + 2 * STAGING * BOX_BYTES)),
          empty(full + STAGES) {}
};

// length is the number of steps of the reduction. An empty one still takes a step, in which all is zeroed.
template <Mode M> DEVICE int length(const Work &w) { return M == REDUCE ? max(1, ceil_div(w.k, TILE_K)) : ceil_div(w.k, TILE_K); }

template <Mode M> DEVICE bool skip(const Work &w, int flags) { return M == REDUCE && w.k == 0 && (flags & ADD); }

// produce is run by one thread.
template <Layout L, Mode M, int CL>
DEVICE void produce(Shared s, Walk<M, CL> walk, const TensorMap *a, const TensorMap *b, int flags) {
    Ring ring;
    Work w;
    int known = -1;
    while (walk.next(w)) {
        if (skip<M>(w, flags)) continue;
        const TensorMap *mb = M == ROWS ? b + w.matrix : b;
        if (M == ROWS && known != w.matrix) {
            tma_acquire_map(mb);
            known = w.matrix;
        }
        for (int t = 0, tiles = length<M>(w); t < tiles; t++, ring.advance()) {
            u64 *full = s.full + ring.stage;
            if (CL > 1)
                barrier_wait_cluster(s.empty + ring.stage, ring.parity ^ 1);
            else
                barrier_wait(s.empty + ring.stage, ring.parity ^ 1);
            barrier_expect(full, STAGE_BYTES);
            unsigned char *sa = s.stages + ring.stage * STAGE_BYTES, *sb = sa + A_BYTES;
            int k = w.from + t * TILE_K;
#pragma unroll
            for (int i = 0; i < BOXES_M; i++) {
                if (L == TN)
                    tma_load(sa + i * BOX_BYTES, a, k, w.row + i * BOX, full);
                else
                    tma_load(sa + i * BOX_BYTES, a, w.row + i * BOX, k, full);
            }
            // The blocks of a cluster share the columns: each loads a part of b for all.
            int first = CL > 1 ? cluster_rank() * (BOXES_N / CL) : 0;
#pragma unroll
            for (int j = 0; j < BOXES_N / CL; j++) {
                int i = first + j;
                int row = L == NT ? w.col + i * BOX : k, col = L == NT ? k : w.col + i * BOX;
                if (CL > 1)
                    tma_load_multicast(sb + i * BOX_BYTES, mb, row, col, full, (1 << CL) - 1);
                else
                    tma_load(sb + i * BOX_BYTES, mb, row, col, full);
            }
        }
    }
}

// clear_tail zeroes the rows of a stage from live on: they belong to the next expert. A row of every box is one value of k. Both
// warpgroups must call it, and it returns when both are done.
DEVICE void clear_tail(unsigned char *stage, int live) {
    int id = threadIdx.x & (CONSUMERS - 1);
    int chunks = (BOX - live) * 8;
    for (int i = id; i < chunks * (BOXES_M + BOXES_N); i += CONSUMERS)
        store_uint4(stage + i / chunks * BOX_BYTES + live * 128 + i % chunks * 16, make_uint4(0, 0, 0, 0));
    async_fence();
    named_barrier(3, CONSUMERS);
}

// step starts the products of one stage; first forgets what acc held.
template <Layout L> DEVICE void step(float (&acc)[OWN][TILE_N / 2], unsigned char *stage, int group, bool first) {
    unsigned char *sa = stage + group * OWN * BOX_BYTES, *sb = stage + A_BYTES;
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < TILE_K / 16; kk++) {
        u64 b = L == NT ? operand_along_k(sb + kk * 32) : operand_across_k(sb + kk * 2048);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            unsigned char *p = sa + i * BOX_BYTES;
            u64 a = L == TN ? operand_across_k(p + kk * 2048) : operand_along_k(p + kk * 32);
            wgmma<L == TN, L != NT>(acc[i], a, b, !first || kk > 0);
        }
    }
    wgmma_commit();
}

// multiply computes 64·OWN rows of a tile.
template <Layout L, Mode M, int CL>
DEVICE void multiply(float (&acc)[OWN][TILE_N / 2], Shared s, const Work &w, Ring &ring, int group) {
    int lane = threadIdx.x & 31, tiles = length<M>(w);
    auto ready = [&](int t) {
        barrier_wait(s.full + ring.stage, ring.parity);
        unsigned char *stage = s.stages + ring.stage * STAGE_BYTES;
        if (M == REDUCE && w.k - t * TILE_K < TILE_K) clear_tail(stage, w.k - t * TILE_K);
        return stage;
    };
    auto release = [&](int stage) {
        if (CL > 1 && lane < CL) barrier_arrive_at(s.empty + stage, lane);
        if (CL == 1 && lane == 0) barrier_arrive(s.empty + stage);
    };
    // The first step stands apart because the compiler serialises products whose accumulators enter a loop undefined.
    step<L>(acc, ready(0), group, true);
    int last = ring.stage;
    ring.advance();
    for (int t = 1; t < tiles; t++) {
        step<L>(acc, ready(t), group, false);
        // The stage before this one has been read when its products are done; these go on meanwhile.
        wgmma_wait<1>();
        release(last);
        last = ring.stage;
        ring.advance();
    }
    wgmma_wait<0>();
    release(last);
}

// stage_box writes 64 rows of a box of the result, 64 columns of bf16 or 32 of binary32, in the swizzle of the maps.
DEVICE void stage_box(bf16 *, unsigned char *box, const float *acc) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    int row = warp * 16 + (lane & 15);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float *v = acc + j * 8;
        stmatrix_x4(box + row * 128 + ((j * 2 + (lane >> 4)) ^ (row & 7)) * 16, convert_pair(v[0], v[1]), convert_pair(v[2], v[3]),
                    convert_pair(v[4], v[5]), convert_pair(v[6], v[7]));
    }
}
DEVICE void stage_box(float *, unsigned char *box, const float *acc) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, q = lane & 3;
    int row = warp * 16 + lane / 4;
    unsigned char *p = box + row * 128 + (q & 1) * 8;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int at = ((j * 2 + q / 2) ^ (row & 7)) * 16;
        store_float2((float *)(p + at), make_float2(acc[j * 4], acc[j * 4 + 1]));
        store_float2((float *)(p + 8 * 128 + at), make_float2(acc[j * 4 + 2], acc[j * 4 + 3]));
    }
}

// store_rows stores the live first rows of a staged box, without touching those of the next expert.
template <class T> DEVICE void store_rows(T *y, int ldy, int live, int columns, const unsigned char *box, bool add) {
    constexpr int EACH = 16 / sizeof(T);
    for (int i = threadIdx.x & 127; i < live * 8; i += 128) {
        int r = i / 8, c = i % 8;
        if (c * EACH >= columns) continue;
        const T *in = (const T *)(box + r * 128 + (c ^ (r & 7)) * 16);
        T *out = y + (i64)r * ldy + c * EACH;
        if (add) {
#pragma unroll
            for (int x = 0; x < EACH; x++) store(out + x, load(out + x) + load(in + x));
        } else {
            store_uint4(out, load_uint4(in));
        }
    }
}

// finish sends a tile's result off. The box that comes next in the ring of STAGING is free when all but the last STAGING − 1
// stores have been read.
template <class T, Mode M>
DEVICE void finish(float (&acc)[OWN][TILE_N / 2], Shared s, const Work &w, const TensorMap *y, T *values, int n, int ldy, int flags,
                   int group) {
    constexpr int WIDTH = 128 / sizeof(T), PARTS = TILE_N / WIDTH;
    static_assert(PARTS % STAGING == 0, "a tile is a whole number of rounds of the staging boxes");
    bool leader = (threadIdx.x & 127) == 0;
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            unsigned char *box = s.staging + (group * STAGING + p % STAGING) * BOX_BYTES;
            int above = (group * OWN + i) * BOX, col = w.col + p * WIDTH;
            if (leader) bulk_wait_read<STAGING - 1>();
            named_barrier(1 + group, 128);
            stage_box((T *)0, box, acc[i] + p * WIDTH / 2);
            async_fence();
            named_barrier(1 + group, 128);
            if (M == ROWS && w.live - above < BOX) {
                if (col < n)
                    store_rows(values + (i64)(w.row + above) * ldy + col, ldy, w.live - above, n - col, box, flags & ADD);
            } else if (leader && col < n) {
                if (flags & ADD)
                    tma_add(y, w.row + above, col, box);
                else
                    tma_store(y, w.row + above, col, box);
            }
            if (leader) bulk_commit();
        }
}

template <class T, Layout L, Mode M, int CL>
DEVICE void gemm(unsigned char *memory, const TensorMap *a, const TensorMap *b, const TensorMap *y, T *values, const int *offsets,
                 const int *list, int count, int m, int n, int k, int ldy, int flags) {
    Shared s(memory);
    int group = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(s.full + i, 1);
            barrier_init(s.empty + i, CONSUMERS / 32 * CL);
        }
        barrier_init_fence();
    }
    if (CL > 1)
        cluster_sync();
    else
        __syncthreads();

    Walk<M, CL> walk(m, n, k, offsets, list, count);
    if (group == 2) {
        registers_less<40>();
        if (threadIdx.x == 256) produce<L, M, CL>(s, walk, a, b, flags);
    } else {
        registers_more<232>();
        float acc[OWN][TILE_N / 2];
        Ring ring;
        Work w;
        int known = -1;
        while (walk.next(w)) {
            if (skip<M>(w, flags)) continue;
            const TensorMap *my = M == REDUCE ? y + w.matrix : y;
            if (M == REDUCE && known != w.matrix) {
                tma_acquire_map(my);
                known = w.matrix;
            }
            multiply<L, M, CL>(acc, s, w, ring, group);
            finish<T, M>(acc, s, w, my, values, n, ldy, flags, group);
        }
        bulk_wait_read<0>();
    }
    // A block must not end while another of its cluster may still write to its shared memory.
    if (CL > 1) {
        __syncwarp();
        cluster_sync();
    }
}

#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif

#define GEMM(name, L, T)                                                                                                       \
    extern "C" __global__ void CLUSTERED KERNEL_BOUNDS(THREADS, 1)                                                             \
        gemm_##name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,                                  \
                    const __grid_constant__ TensorMap y, int m, int n, int k, int flags) {                                     \
        DYNAMIC_SHARED(shared);                                                                                                \
        gemm<T, L, DENSE, CLUSTER>(shared, &a, &b, &y, 0, 0, 0, 0, m, n, k, 0, flags);                                         \
    }

#define GROUPED(name, L, T)                                                                                                    \
    extern "C" __global__ void KERNEL_BOUNDS(THREADS, 1)                                                                       \
        gemm_##name(const __grid_constant__ TensorMap a, const TensorMap *b, const __grid_constant__ TensorMap y, T *values,   \
                    const int *offsets, int experts, int n, int k, int ldy, int flags) {                                       \
        DYNAMIC_SHARED(shared);                                                                                                \
        gemm<T, L, ROWS, 1>(shared, &a, b, &y, values, offsets, 0, experts, 0, n, k, ldy, flags);                              \
    }

#define GROUPED_TN(name, T)                                                                                                    \
    extern "C" __global__ void KERNEL_BOUNDS(THREADS, 1)                                                                       \
        gemm_##name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const TensorMap *y,              \
                    const int *offsets, const int *list, int count, int m, int n, int flags) {                                 \
        DYNAMIC_SHARED(shared);                                                                                                \
        gemm<T, TN, REDUCE, 1>(shared, &a, &b, y, 0, offsets, list, count, m, n, 0, 0, flags);                                 \
    }

GEMM(nt_bf16_sm90, NT, bf16)
GEMM(nt_f32_sm90, NT, float)
GEMM(nn_bf16_sm90, NN, bf16)
GEMM(nn_f32_sm90, NN, float)
GEMM(tn_bf16_sm90, TN, bf16)
GEMM(tn_f32_sm90, TN, float)
GROUPED(nt_grouped_bf16_sm90, NT, bf16)
GROUPED(nt_grouped_f32_sm90, NT, float)
GROUPED(nn_grouped_bf16_sm90, NN, bf16)
GROUPED(nn_grouped_f32_sm90, NN, float)
GROUPED_TN(tn_grouped_bf16_sm90, bf16)
GROUPED_TN(tn_grouped_f32_sm90, float)
