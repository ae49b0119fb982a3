// Matrix products of gemm_bf16_sm90.cu with more in one launch: reductions in parts, and experts' products with what comes
// before or after them. The meaning of nt, nn, tn, m, n, k, grouped, offsets and maps is as there. Same results from run to run.
//
// A block is one warpgroup that loads and two that multiply, each 64 rows by 256 columns of a tile. Blocks are persistent: they
// take tiles blockIdx.x, + gridDim.x, …. The result leaves through shared memory by the copy engine, while the next tile is
// multiplied.
//
// Tensor maps: bf16 matrices in boxes of 64 rows by 64 columns, binary32 results in boxes of 64 by 32, 128-byte swizzle, zeros
// out of bounds, so one map serves a matrix in every role. Extents are those of the matrix in memory. This needs addresses
// aligned to 16 bytes and rows of a multiple of 16 bytes; where a matrix has neither, use gemm_bf16.cu.
//
// All matrix kernels: block [384,1,1], shared memory SHARED bytes. Grid [min(SMs, tiles), 1, 1]; tiles of 128 rows by 256
// columns, or an upper bound of their number: more blocks than tiles are harmless. SHARED is 230400.
//
//   gemm_{nt,nn,tn}_parts_sm90(TensorMap a, TensorMap b, TensorMap y, int m, int n, int k, int parts)
//       The reduction in parts, each of ceil(ceil(k/64)/parts)·64 values of k: y is a binary32 matrix of parts·round_up(m, 64)
//       rows of n values, part i from row i·round_up(m, 64). tiles counts those of all parts. gemm_sum_parts adds them up.
//
// The experts' products with what comes before or after them, grouped as above; all matrices bf16:
//   gemm_nn_grouped_sum_sm90(TensorMap a, const TensorMap *b, TensorMap a2, const TensorMap *b2, TensorMap y, bf16 *values, const
//       int *offsets, int experts, int n, int k, int ldy)
//       y = a·b + a2·b2
//   gemm_nt_grouped_swiglu_sm90(TensorMap x, const TensorMap *gate, const TensorMap *up, TensorMap g, TensorMap u, TensorMap a,
//       bf16 *gs, bf16 *us, bf16 *as, const int *offsets, int experts, int n, int k, int ld, int keep)
//       g = x·gateᵀ, u = x·upᵀ, a = silu(g)·u; gs, us and as are what the maps map. Unless keep, g and u are not stored. Tiles
//       have 128 columns.
//   gemm_nn_grouped_swiglu_grad_sm90(TensorMap dy, const TensorMap *down, TensorMap g, TensorMap u, TensorMap wa, bf16 *gs, bf16
//       *us, bf16 *was, float *dots, const float *weight, const int *source, const int *wanted, const int *offsets, int experts,
//       int n, int k, int ld)
//       With da = dy·down, ω = weight[source[row]] and a = silu(g)·u: g and u become the gradients for ω·da, and wa = ω·a in the
//       rows of the experts for which wanted is not 0 (all if wanted is 0; none if was is, and then the map does not matter).
//       dots [rows, ceil(n/256)] gets Σ da·a of each tile's columns.
//   gemm_row_dots(float *dw, const float *dots, const int *source, int rows, int parts)
//       dw[source[row]] = the sum of a row of dots. block [256], grid [ceil(rows/256)], no shared memory

#include "fast.cuh"
#include "sm90.cuh"

enum Layout { NT, NN, TN };
enum Mode { DENSE, PARTS, ROWS, REDUCE };
// Two pairs of operands can be multiplied in one go: their products side by side, or added.
enum Pairs { ONE, BESIDE, SUM };
enum { ADD = 1 };

constexpr int TILE_M = 128, TILE_N = 256, TILE_K = BOX, THREADS = 384, CONSUMERS = 256;
constexpr int BOXES_M = TILE_M / BOX, BOXES_N = TILE_N / BOX;
constexpr int A_BYTES = BOXES_M * BOX_BYTES, STAGE_BYTES = A_BYTES + BOXES_N * BOX_BYTES;
// Bands of so many tiles, column by column, keep both operands of concurrent tiles in L2.
constexpr int L2_ROWS = 8;

// Work is one tile.
struct Work {
    int row, col; // of its first value; row counts from the start of the whole matrix y
    int above;    // row of a that row is computed from, where a is not transposed; else column
    int live;     // rows of the matrix, or of the expert, from there on
    int matrix;   // which map of an array
    int from, k;  // where the reduction starts and how long it is
};

// Walk goes through the tiles of a problem, the same way in every block; each block takes those whose number is its own modulo
// the number of blocks. WIDTH is the columns of a tile.
template <Mode M, int WIDTH> struct Walk {
    int tile, m, n, k, count;
    const int *offsets, *list;
    int group, before; // ROWS: the expert reached and the number of tiles before it

    DEVICE Walk(int m, int n, int k, const int *offsets, const int *list, int count)
        : tile(blockIdx.x), m(m), n(n), k(k), count(count), offsets(offsets), list(list), group(0), before(0) {}

    DEVICE bool next(Work &w) {
        int columns = ceil_div(n, WIDTH), tall = ceil_div(m, TILE_M), each = tall * columns, in;
        if (M == ROWS) {
            for (;; group++) {
                if (group >= count) return false;
                int start = offsets[group], rows = offsets[group + 1] - start;
                tall = ceil_div(rows, TILE_M), in = tile - before;
                if (in < tall * columns) {
                    w.row = start + in % tall * TILE_M;
                    w.col = in / tall * WIDTH;
                    w.live = rows - in % tall * TILE_M;
                    w.above = w.row, w.matrix = group, w.from = 0, w.k = k;
                    break;
                }
                before += tall * columns;
            }
        } else {
            if (tile >= (M == DENSE ? each : count * each)) return false;
            w.matrix = M == DENSE ? 0 : tile / each, in = tile - w.matrix * each;
            int band = in / (L2_ROWS * columns), rows = min(L2_ROWS, tall - band * L2_ROWS);
            in -= band * L2_ROWS * columns;
            w.above = w.row = (band * L2_ROWS + in % rows) * TILE_M;
            w.col = in / rows * WIDTH;
            w.live = m - w.row;
            w.from = 0, w.k = k;
            if (M == PARTS) {
                int length = ceil_div(ceil_div(k, TILE_K), count) * TILE_K;
                w.from = w.matrix * length, w.k = min(length, k - w.from);
                w.row += w.matrix * round_up(m, BOX);
            }
            if (M == REDUCE) {
                int e = list[w.matrix];
                w.from = offsets[e], w.k = offsets[e + 1] - w.from;
            }
        }
        tile += gridDim.x;
        return true;
    }
};

// Shared is what the blocks' shared memory holds: a ring of STAGES loaded stages, STAGING boxes for each warpgroup that
// multiplies, barriers.
template <int STAGES, int STAGING> struct Shared {
    static constexpr int BARRIERS = 2 * STAGES + 4;
    static constexpr int BYTES = STAGES * STAGE_BYTES + 2 * STAGING * BOX_BYTES + 1024;
    static_assert(BYTES <= 232448 && BARRIERS * 8 <= 1024, "a block's shared memory");
    unsigned char *stages, *boxes; // boxes: of the own warpgroup
    u64 *full, *empty, *inputs;    // inputs: two, of the own warpgroup

    DEVICE Shared(unsigned char *base, int group) {
        stages = base;
        boxes = base + STAGES * STAGE_BYTES + (group & 1) * STAGING * BOX_BYTES;
        full = (u64 *)(base + STAGES * STAGE_BYTES + 2 * STAGING * BOX_BYTES);
        empty = full + STAGES;
        inputs = empty + STAGES + (group & 1) * 2;
    }
    // init is for one thread of group 0.
    DEVICE void init() {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, CONSUMERS / 32);
        }
        for (int i = 0; i < 4; i++) barrier_init(inputs + i, 1);
        barrier_init_fence();
    }
};

// Ring is the position in the ring of stages, the same sequence on both sides.
template <int STAGES> struct Ring {
    int stage = 0, parity = 0;
    DEVICE void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// Operands are the maps of what is multiplied; b and b2 are arrays in mode ROWS.
struct Operands {
    const TensorMap *a, *b, *a2, *b2;
};

// steps is the length of one reduction. An empty one still takes a step, in which all is zeroed.
template <Mode M> DEVICE int steps(const Work &w) {
    int n = ceil_div(w.k, TILE_K);
    return M == REDUCE || M == PARTS ? max(1, n) : n;
}

template <Mode M> DEVICE bool skip(const Work &w, int flags) { return M == REDUCE && w.k == 0 && (flags & ADD); }

// produce is run by one thread.
template <Layout L, Mode M, Pairs P, int WIDTH, int STAGES, int STAGING>
DEVICE void produce(Shared<STAGES, STAGING> s, Walk<M, WIDTH> walk, Operands o, int flags) {
    Ring<STAGES> ring;
    Work w;
    int known = -1;
    while (walk.next(w)) {
        if (skip<M>(w, flags)) continue;
        const TensorMap *b = o.b, *b2 = o.b2;
        if (M == ROWS) {
            b += w.matrix, b2 += w.matrix;
            if (known != w.matrix) {
                tma_acquire_map(b);
                if (P != ONE) tma_acquire_map(b2);
                known = w.matrix;
            }
        }
#pragma unroll 1
        for (int turn = 0; turn < (P == SUM ? 2 : 1); turn++) {
            const TensorMap *ma = turn ? o.a2 : o.a, *mb = turn ? b2 : b;
            for (int t = 0, tiles = steps<M>(w); t < tiles; t++, ring.advance()) {
                u64 *full = s.full + ring.stage;
                barrier_wait(s.empty + ring.stage, ring.parity ^ 1);
                barrier_expect(full, STAGE_BYTES);
                unsigned char *sa = s.stages + ring.stage * STAGE_BYTES, *sb = sa + A_BYTES;
                int k = w.from + t * TILE_K;
#pragma unroll
                for (int i = 0; i < BOXES_M; i++) {
                    int at = w.above + i * BOX;
                    tma_load(sa + i * BOX_BYTES, ma, L == TN ? k : at, L == TN ? at : k, full);
                }
#pragma unroll
                for (int i = 0; i < BOXES_N; i++) {
                    bool second = P == BESIDE && i >= BOXES_N / 2;
                    int at = w.col + (second ? i - BOXES_N / 2 : i) * BOX;
                    tma_load(sb + i * BOX_BYTES, second ? b2 : mb, L == NT ? at : k, L == NT ? k : at, full);
                }
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
template <Layout L> DEVICE void step(float (&acc)[TILE_N / 2], unsigned char *stage, int group, bool first) {
    unsigned char *sa = stage + group * BOX_BYTES, *sb = stage + A_BYTES;
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < TILE_K / 16; kk++) {
        u64 a = L == TN ? operand_across_k(sa + kk * 2048) : operand_along_k(sa + kk * 32);
        u64 b = L == NT ? operand_along_k(sb + kk * 32) : operand_across_k(sb + kk * 2048);
        wgmma<L == TN, L != NT>(acc, a, b, !first || kk > 0);
    }
    wgmma_commit();
}

// multiply computes 64 rows of a tile. It calls early once the first products have been started.
template <Layout L, Mode M, Pairs P, int STAGES, int STAGING, class Early>
DEVICE void multiply(float (&acc)[TILE_N / 2], Shared<STAGES, STAGING> s, const Work &w, Ring<STAGES> &ring, int group, Early early) {
    int lane = threadIdx.x & 31, tiles = steps<M>(w) * (P == SUM ? 2 : 1);
    auto ready = [&](int t) {
        barrier_wait(s.full + ring.stage, ring.parity);
        unsigned char *stage = s.stages + ring.stage * STAGE_BYTES;
        if (M == REDUCE && w.k - t * TILE_K < TILE_K) clear_tail(stage, w.k - t * TILE_K);
        return stage;
    };
    auto release = [&](int stage) {
        if (lane == 0) barrier_arrive(s.empty + stage);
    };
    // The first step stands apart because the compiler serialises products whose accumulators enter a loop undefined.
    step<L>(acc, ready(0), group, true);
    early();
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

// box_chunk is where the thread's row of 16 columns of a box starts, for stmatrix and ldmatrix.
DEVICE unsigned char *box_chunk(unsigned char *box, int j) {
    int lane = threadIdx.x & 31, row = (threadIdx.x >> 5 & 3) * 16 + (lane & 15);
    return box + row * 128 + ((j * 2 + (lane >> 4)) ^ (row & 7)) * 16;
}

// stage_box writes 64 rows of a box of the result, 64 columns of bf16 or 32 of binary32, in the swizzle of the maps.
DEVICE void stage_box(bf16 *, unsigned char *box, const float *acc) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float *v = acc + j * 8;
        stmatrix_x4(box_chunk(box, j), convert_pair(v[0], v[1]), convert_pair(v[2], v[3]), convert_pair(v[4], v[5]), convert_pair(v[6], v[7]));
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

DEVICE bool leads() { return (threadIdx.x & 127) == 0; }
DEVICE void group_barrier(int group) { named_barrier(1 + group, 128); }

// Target is a matrix of results: its map and, for the rows of an expert, the values that it maps.
template <class T> struct Target {
    const TensorMap *map;
    T *values;
    int n, ld;

    // send stores a box that the warpgroup has written and fenced: rows from row on, of which live exist, columns from col on.
    // The leader commits it.
    template <Mode M> DEVICE void send(int row, int live, int col, const unsigned char *box, int flags) const {
        if (col >= n) return;
        if (M == ROWS && live < BOX) {
            store_rows(values + (i64)row * ld + col, ld, live, n - col, box, flags & ADD);
        } else if (leads() && live > 0) {
            if (flags & ADD)
                tma_add(map, row, col, box);
            else
                tma_store(map, row, col, box);
        }
    }
};

// put stages a box and sends it off, by turns through the two boxes: the one that comes next is free when all stores but the last
// have been read.
template <Mode M, class T>
DEVICE void put(const float *acc, unsigned char *boxes, int turn, const Target<T> &y, const Work &w, int col, int flags, int group) {
    unsigned char *box = boxes + (turn & 1) * BOX_BYTES;
    if (leads()) bulk_wait_read<1>();
    group_barrier(group);
    stage_box((T *)0, box, acc);
    async_fence();
    group_barrier(group);
    y.template send<M>(w.row + group * BOX, w.live - group * BOX, col, box, flags);
    if (leads()) bulk_commit();
}

template <class T, Layout L, Mode M, Pairs P>
DEVICE void gemm(unsigned char *memory, Operands o, Target<T> y, const int *offsets, const int *list, int count, int m, int n, int k,
                 int flags) {
    constexpr int STAGES = 4, WIDTH = 128 / sizeof(T);
    int group = threadIdx.x / 128;
    Shared<STAGES, 2> s(memory, group);
    if (threadIdx.x == 0) s.init();
    __syncthreads();
    Walk<M, TILE_N> walk(m, n, k, offsets, list, count);
    if (group == 2) {
        registers_less<40>();
        if (threadIdx.x == 256) produce<L, M, P>(s, walk, o, flags);
    } else {
        registers_more<232>();
        float acc[TILE_N / 2];
        Ring<STAGES> ring;
        Work w;
        const TensorMap *maps = y.map;
        int known = -1;
        while (walk.next(w)) {
            if (skip<M>(w, flags)) continue;
            if (M == REDUCE && known != w.matrix) {
                y.map = maps + w.matrix;
                tma_acquire_map(y.map);
                known = w.matrix;
            }
            multiply<L, M, P>(acc, s, w, ring, group, [] {});
#pragma unroll
            for (int p = 0; p < TILE_N / WIDTH; p++) put<M>(acc + p * WIDTH / 2, s.boxes, p, y, w, w.col + p * WIDTH, flags, group);
        }
        bulk_wait_read<0>();
    }
}

#define MAP const __grid_constant__ TensorMap
#define KERNEL(name) extern "C" __global__ void KERNEL_BOUNDS(THREADS, 1) gemm_##name

#define GEMM_PARTS(name, L)                                                                         \
    KERNEL(name)(MAP a, MAP b, MAP y, int m, int n, int k, int parts) {                             \
        DYNAMIC_SHARED(shared);                                                                     \
        gemm<float, L, PARTS, ONE>(shared, {&a, &b, &a, &b}, {&y, 0, n, 0}, 0, 0, parts, m, n, k, 0); \
    }

GEMM_PARTS(nt_parts_sm90, NT)
GEMM_PARTS(nn_parts_sm90, NN)
GEMM_PARTS(tn_parts_sm90, TN)

KERNEL(nn_grouped_sum_sm90)
(MAP a, const TensorMap *b, MAP a2, const TensorMap *b2, MAP y, bf16 *values, const int *offsets, int experts, int n, int k, int ldy) {
    DYNAMIC_SHARED(shared);
    gemm<bf16, NN, ROWS, SUM>(shared, {&a, b, &a2, b2}, {&y, values, n, ldy}, offsets, 0, experts, 0, n, k, 0);
}

// ---- the gate and the way up at once: the left half of a tile is g, the right half u of the same columns.

KERNEL(nt_grouped_swiglu_sm90)
(MAP x, const TensorMap *gate, const TensorMap *up, MAP g, MAP u, MAP a, bf16 *gs, bf16 *us, bf16 *as, const int *offsets, int experts,
 int n, int k, int ld, int keep) {
    DYNAMIC_SHARED(shared);
    constexpr int STAGES = 4, HALF = TILE_N / 2;
    int group = threadIdx.x / 128;
    Shared<STAGES, 2> s(shared, group);
    if (threadIdx.x == 0) s.init();
    __syncthreads();
    Walk<ROWS, HALF> walk(0, n, k, offsets, 0, experts);
    if (group == 2) {
        registers_less<40>();
        if (threadIdx.x == 256) produce<NT, ROWS, BESIDE>(s, walk, Operands{&x, gate, &x, up}, 0);
    } else {
        registers_more<232>();
        float acc[TILE_N / 2];
        Target<bf16> yg{&g, gs, n, ld}, yu{&u, us, n, ld}, ya{&a, as, n, ld};
        Ring<STAGES> ring;
        Work w;
        while (walk.next(w)) {
            multiply<NT, ROWS, BESIDE>(acc, s, w, ring, group, [] {});
#pragma unroll
            for (int p = 0; p < HALF / BOX; p++) {
                float *vg = acc + p * BOX / 2, *vu = vg + HALF / 2;
                int col = w.col + p * BOX;
                if (keep) {
                    put<ROWS>(vg, s.boxes, p * 3, yg, w, col, 0, group);
                    put<ROWS>(vu, s.boxes, p * 3 + 1, yu, w, col, 0, group);
                }
#pragma unroll
                for (int i = 0; i < BOX / 2; i++) vu[i] *= vg[i] * fast_sigmoid(vg[i]);
                put<ROWS>(vu, s.boxes, keep ? p * 3 + 2 : p, ya, w, col, 0, group);
            }
        }
        bulk_wait_read<0>();
    }
}

// ---- the gradient of what came down, turned into those of g and u where these lie. Of its five boxes a warpgroup has two pairs
// for g and u, loaded ahead and stored when they have become gradients, and one for wa.

extern "C" __global__ void KERNEL_BOUNDS(THREADS, 1)
    gemm_nn_grouped_swiglu_grad_sm90(MAP dy, const TensorMap *down, MAP g, MAP u, MAP wa, bf16 *gs, bf16 *us, bf16 *was, float *dots,
                                     const float *weight, const int *source, const int *wanted, const int *offsets, int experts, int n,
                                     int k, int ld) {
    DYNAMIC_SHARED(shared);
    constexpr int STAGES = 3, PARTS_N = TILE_N / BOX;
    int group = threadIdx.x / 128;
    Shared<STAGES, 5> s(shared, group);
    if (threadIdx.x == 0) s.init();
    __syncthreads();
    Walk<ROWS, TILE_N> walk(0, n, k, offsets, 0, experts);
    if (group == 2) {
        registers_less<40>();
        if (threadIdx.x == 256) produce<NN, ROWS, ONE>(s, walk, Operands{&dy, down, &dy, down}, 0);
    } else {
        registers_more<232>();
        float acc[TILE_N / 2];
        Target<bf16> yg{&g, gs, n, ld}, yu{&u, us, n, ld}, ya{&wa, was, n, ld};
        Ring<STAGES> ring;
        Work w;
        int own = (threadIdx.x >> 5 & 3) * 16 + (threadIdx.x & 31) / 4; // the upper of the thread's rows
        while (walk.next(w)) {
            int first = w.row + group * BOX, live = w.live - group * BOX;
            bool wants = was && (!wanted || wanted[w.matrix]);
            float omega[2], dot[2] = {};
#pragma unroll
            for (int h = 0; h < 2; h++) omega[h] = own + h * 8 < live ? weight[source[first + own + h * 8]] : 0.0f;
            auto fetch = [&](int p) {
                unsigned char *pair = s.boxes + (p & 1) * 2 * BOX_BYTES;
                u64 *bar = s.inputs + (p & 1);
                barrier_expect(bar, 2 * BOX_BYTES);
                tma_load(pair, &g, first, w.col + p * BOX, bar);
                tma_load(pair + BOX_BYTES, &u, first, w.col + p * BOX, bar);
            };
            multiply<NN, ROWS, ONE>(acc, s, w, ring, group, [&] {
                group_barrier(group); // nobody reads boxes of the tile before
                if (leads()) {
                    bulk_wait_read<0>();
                    fetch(0);
                    fetch(1);
                }
                __syncwarp();
            });
#pragma unroll
            for (int p = 0; p < PARTS_N; p++) {
                unsigned char *bg = s.boxes + (p & 1) * 2 * BOX_BYTES, *bu = bg + BOX_BYTES, *ba = s.boxes + 4 * BOX_BYTES;
                if (p > 0) {
                    group_barrier(group);
                    if (leads()) {
                        bulk_wait_read<0>();
                        if (p + 1 < PARTS_N) fetch(p + 1);
                    }
                    __syncwarp();
                }
                barrier_wait(s.inputs + (p & 1), p >> 1);
                u32 kept[4][4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    u32 rg[4], ru[4];
                    ldmatrix_x4(rg, box_chunk(bg, j));
                    ldmatrix_x4(ru, box_chunk(bu, j));
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float x[2], y[2] = {low_bf16(rg[i]), high_bf16(rg[i])}, z[2] = {low_bf16(ru[i]), high_bf16(ru[i])};
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            float da = acc[p * BOX / 2 + j * 8 + i * 2 + h];
                            float sig = fast_sigmoid(y[h]), silu = y[h] * sig, a = silu * z[h], grad = da * omega[i & 1];
                            dot[i & 1] = fmaf(da, a, dot[i & 1]);
                            x[h] = a * omega[i & 1];
                            y[h] = grad * z[h] * fmaf(silu, 1.0f - sig, sig);
                            z[h] = grad * silu;
                        }
                        kept[j][i] = convert_pair(x[0], x[1]);
                        rg[i] = convert_pair(y[0], y[1]);
                        ru[i] = convert_pair(z[0], z[1]);
                    }
                    stmatrix_x4(box_chunk(bg, j), rg[0], rg[1], rg[2], rg[3]);
                    stmatrix_x4(box_chunk(bu, j), ru[0], ru[1], ru[2], ru[3]);
                }
                if (wants) {
                    group_barrier(group); // the leader has seen that the box is free
#pragma unroll
                    for (int j = 0; j < 4; j++) stmatrix_x4(box_chunk(ba, j), kept[j][0], kept[j][1], kept[j][2], kept[j][3]);
                }
                async_fence();
                group_barrier(group);
                int col = w.col + p * BOX;
                yg.send<ROWS>(first, live, col, bg, 0);
                yu.send<ROWS>(first, live, col, bu, 0);
                if (wants) ya.send<ROWS>(first, live, col, ba, 0);
                if (leads()) bulk_commit();
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                dot[h] += __shfl_xor_sync(FULL_WARP, dot[h], 1);
                dot[h] += __shfl_xor_sync(FULL_WARP, dot[h], 2);
                if ((threadIdx.x & 3) == 0 && own + h * 8 < live)
                    dots[(i64)(first + own + h * 8) * ceil_div(n, TILE_N) + w.col / TILE_N] = dot[h];
            }
        }
        bulk_wait_read<0>();
    }
}

extern "C" __global__ void KERNEL_BOUNDS(256, 4) gemm_row_dots(float *dw, const float *dots, const int *source, int rows, int parts) {
    int row = blockIdx.x * 256 + threadIdx.x;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int i = 0; i < parts; i++) sum += dots[(i64)row * parts + i];
    dw[source[row]] = sum;
}
