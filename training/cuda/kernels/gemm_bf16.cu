// Matrix products in bfloat16 with binary32 sums, for mma.sync: every card from sm_80 on. Order of summation is not promised.
//
// Matrices are row-major. In this file m and n are the extents of the result and k that of the reduction:
//   nt   y[m,n] = a[m,k] · b[n,k]ᵀ    Linear           (a = x, b = w [out,in])
//   nn   y[m,n] = a[m,k] · b[k,n]     LinearGradInput  (a = dy, b = w [out,in], k = out, n = in)
//   tn   y[m,n] = a[k,m]ᵀ · b[k,n]    LinearGradWeight (a = dy, b = x, k = rows, m = out, n = in)
// lda, ldb, ldy are values between rows. flags: 1 adds to y instead of setting it; 2 (VECTOR) promises that a and b are
// aligned to 16 bytes and that lda, ldb and both operands' extents along memory (nt: k and k, nn: k and n, tn: m and n) are
// multiples of 8. Without it operands are loaded value by value, for anything. y may be any; aligned y is faster.
//
// All matrix kernels: block [THREADS,1,1], shared memory SHARED bytes (dynamic). With the defaults below THREADS is 128 and
// SHARED 65536: (WARPS_M·WARPS_N)·32 and STAGES·(TILE_M + TILE_N)·TILE_K·2.
//
//   gemm_{nt,nn,tn}_{bf16,f32}(T *y, const bf16 *a, const bf16 *b, int m, int n, int k, int lda, int ldb, int ldy, int flags)
//       grid [ceil(m/TILE_M)·ceil(n/TILE_N), 1, 1]
//   gemm_{nt,nn}_grouped_{bf16,f32}(T *y, const bf16 *a, const bf16 *const *b, const int *offsets, int experts, int n, int k,
//       int lda, int ldb, int ldy, int flags)
//       Rows offsets[e] … offsets[e+1] of a and y belong to expert e, whose matrix is b[e]. offsets ascends.
//       grid [ceil(n/TILE_N) · (ceil(rows/TILE_M) + experts), 1, 1], rows an upper bound of offsets[experts].
//   gemm_tn_grouped_{bf16,f32}(T *const *y, const bf16 *a, const bf16 *b, const int *offsets, const int *list, int count, int m,
//       int n, int lda, int ldb, int ldy, int flags)
//       For i < count: y[i] from rows offsets[e] … offsets[e+1] of a and b, e = list[i]. Alignment (VECTOR) is that of a and b.
//       grid [ceil(m/TILE_M)·ceil(n/TILE_N)·count, 1, 1]
//   gemm_sum_parts_{bf16,f32}(T *y, const float *x, int parts, long long stride, long long n, int flags)
//       y (+)= x + (x + stride) + … over parts, in order; n values each. As cast below, n/1024 for the grid.
//   cast_f32_bf16(bf16 *y, const float *x, long long n), cast_bf16_f32(float *y, const bf16 *x, long long n)
//       block [256,1,1], grid [ceil(n/2048), 1, 1], no shared memory. Any alignment; both aligned to 16 bytes is faster.

#include "ptx.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define TILE_K 32
#define WARPS_M 2
#define WARPS_N 2
#define STAGES 4
#define BLOCKS 2
#endif

#define THREADS (WARPS_M * WARPS_N * 32)

enum Layout { NT, NN, TN };
enum { ADD = 1, VECTOR = 2 };

// L2_ROWS tiles one above the other are computed before the next column of them, so that blocks at work at the same time
// share operands in L2.
constexpr int L2_ROWS = 8;

// place gives where 16-byte chunk c of row r of a tile with COLS columns lies, in values. The exclusive or spreads a column
// of eight rows over all banks, which is what ldmatrix and cp.async access at a time.
template <int COLS> DEVICE int place(int r, int c) {
    static_assert(COLS >= 32, "a row of a tile must fill half the banks");
    return r * COLS + (COLS >= 64 ? c ^ (r & 7) : c ^ ((r >> 1) & 3)) * 8;
}

// load_tile copies ROWS×COLS values from g to shared memory; what lies beyond rows and cols becomes 0.
template <int ROWS, int COLS> DEVICE void load_tile(bf16 *tile, const bf16 *g, int ld, int rows, int cols, bool vector) {
    constexpr int CHUNKS = COLS / 8, STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && ROWS % STEP == 0, "a tile is loaded by all threads evenly");
    int c = threadIdx.x % CHUNKS, r = threadIdx.x / CHUNKS;
    int live = cols - c * 8;
    const bf16 *p = g + (i64)r * ld + c * 8;
    if (vector) {
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++)
            cp_async16(tile + place<COLS>(r + i * STEP, c), p + (i64)i * STEP * ld, r + i * STEP < rows && live > 0);
        return;
    }
#pragma unroll 1
    for (; r < ROWS; r += STEP, p += (i64)STEP * ld) {
        u32 v[8];
#pragma unroll
        for (int x = 0; x < 8; x++) v[x] = r < rows && x < live ? p[x].bits : 0;
        store_uint4(tile + place<COLS>(r, c), make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16));
    }
}

DEVICE void load_vector(float v[4], const float *p) { load4(v, p); }
DEVICE void load_vector(float v[8], const bf16 *p) { load8(v, p); }
DEVICE void store_vector(float *p, const float v[4]) { store4(p, v); }
DEVICE void store_vector(bf16 *p, const float v[8]) { store8(p, v); }

// Tile is the part of the result of one block.
template <Layout L> struct Tile {
    static constexpr int WM = TILE_M / WARPS_M, WN = TILE_N / WARPS_N, MI = WM / 16, NI = WN / 8;
    static constexpr int A_VALUES = TILE_M * TILE_K, B_VALUES = TILE_N * TILE_K;
    static_assert(WM % 16 == 0 && WN % 16 == 0 && TILE_K % 32 == 0, "whole fragments");

    float acc[MI][NI][4];

    // fragments reads the operands of one step of 16 along the reduction.
    DEVICE void fragments(u32 fa[MI][4], u32 fb[NI][2], const bf16 *sa, const bf16 *sb, int kk) {
        int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        int wm = warp / WARPS_N * WM, wn = warp % WARPS_N * WN;
        int in = lane & 7, low = (lane >> 3) & 1, high = lane >> 4;
#pragma unroll
        for (int i = 0; i < MI; i++) {
            if (L == TN)
                ldmatrix_x4_trans(fa[i], sa + place<TILE_M>(kk * 16 + in + high * 8, (wm + i * 16) / 8 + low));
            else
                ldmatrix_x4(fa[i], sa + place<TILE_K>(wm + i * 16 + in + low * 8, kk * 2 + high));
        }
#pragma unroll
        for (int j = 0; j < NI; j += 2) {
            u32 r[4];
            if (L == NT)
                ldmatrix_x4(r, sb + place<TILE_K>(wn + j * 8 + in + high * 8, kk * 2 + low));
            else
                ldmatrix_x4_trans(r, sb + place<TILE_N>(kk * 16 + in + low * 8, (wn + j * 8) / 8 + high));
            fb[j][0] = r[0], fb[j][1] = r[1];
            fb[j + 1][0] = r[2], fb[j + 1][1] = r[3];
        }
    }

    DEVICE void load(bf16 *shared, const bf16 *a, const bf16 *b, int m, int n, int k, int lda, int ldb, int m0, int n0, int t,
                     bool vector) {
        bf16 *sa = shared + t % STAGES * (A_VALUES + B_VALUES), *sb = sa + A_VALUES;
        int k0 = t * TILE_K;
        if (L == TN)
            load_tile<TILE_K, TILE_M>(sa, a + (i64)k0 * lda + m0, lda, k - k0, m - m0, vector);
        else
            load_tile<TILE_M, TILE_K>(sa, a + (i64)m0 * lda + k0, lda, m - m0, k - k0, vector);
        if (L == NT)
            load_tile<TILE_N, TILE_K>(sb, b + (i64)n0 * ldb + k0, ldb, n - n0, k - k0, vector);
        else
            load_tile<TILE_K, TILE_N>(sb, b + (i64)k0 * ldb + n0, ldb, k - k0, n - n0, vector);
    }

    // multiply fills acc. Tiles of the operands are loaded STAGES−1 ahead; fragments one step ahead.
    DEVICE void multiply(bf16 *shared, const bf16 *a, const bf16 *b, int m, int n, int k, int lda, int ldb, int m0, int n0,
                         bool vector) {
        constexpr int STEPS = TILE_K / 16;
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NI; j++)
#pragma unroll
                for (int x = 0; x < 4; x++) acc[i][j][x] = 0.0f;

        int tiles = ceil_div(k, TILE_K);
#pragma unroll 1
        for (int t = 0; t < STAGES - 1; t++) {
            if (t < tiles) load(shared, a, b, m, n, k, lda, ldb, m0, n0, t, vector);
            cp_async_commit();
        }
        for (int t = 0; t < tiles; t++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            if (t + STAGES - 1 < tiles) load(shared, a, b, m, n, k, lda, ldb, m0, n0, t + STAGES - 1, vector);
            cp_async_commit();

            const bf16 *sa = shared + t % STAGES * (A_VALUES + B_VALUES), *sb = sa + A_VALUES;
            u32 fa[2][MI][4], fb[2][NI][2];
            fragments(fa[0], fb[0], sa, sb, 0);
#pragma unroll
            for (int kk = 0; kk < STEPS; kk++) {
                if (kk + 1 < STEPS) fragments(fa[(kk + 1) & 1], fb[(kk + 1) & 1], sa, sb, kk + 1);
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int j = 0; j < NI; j++) mma_m16n8k16_bf16(acc[i][j], fa[kk & 1][i], fb[kk & 1][j]);
            }
        }
        cp_async_wait<0>();
    }

    // finish stores acc through shared memory, 16 rows of every warp at a time, so that rows are written 16 bytes a thread.
    template <class T> DEVICE void finish(float *shared, T *y, int m, int n, int ldy, int m0, int n0, bool add) {
        constexpr int PITCH = TILE_N + 8, EACH = 16 / sizeof(T), CHUNKS = TILE_N / EACH;
        static_assert(WARPS_M * 16 * PITCH * 2 <= STAGES * (A_VALUES + B_VALUES), "the rows fit where the operands were");
        int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        float *to = shared + (warp / WARPS_N * 16 + lane / 4) * PITCH + warp % WARPS_N * WN + lane % 4 * 2;
        bool vector = aligned16(y) && ldy % EACH == 0;
#pragma unroll
        for (int i = 0; i < MI; i++) {
            __syncthreads();
#pragma unroll
            for (int j = 0; j < NI; j++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    store_float2(to + h * 8 * PITCH + j * 8, make_float2(acc[i][j][h * 2], acc[i][j][h * 2 + 1]));
            __syncthreads();
#pragma unroll 1
            for (int c = threadIdx.x; c < WARPS_M * 16 * CHUNKS; c += THREADS) {
                int r = c / CHUNKS, col = c % CHUNKS * EACH, row = m0 + r / 16 * WM + i * 16 + r % 16;
                int live = row < m ? n - n0 - col : 0;
                const float *in = shared + r * PITCH + col;
                T *out = y + (i64)row * ldy + n0 + col;
                if (vector && live >= EACH) {
                    float v[EACH];
#pragma unroll
                    for (int x = 0; x < EACH; x += 4) load4(v + x, in + x);
                    if (add) {
                        float old[EACH];
                        load_vector(old, out);
#pragma unroll
                        for (int x = 0; x < EACH; x++) v[x] += old[x];
                    }
                    store_vector(out, v);
                } else {
                    for (int x = 0; x < EACH && x < live; x++) store(out + x, add ? ::load(out + x) + in[x] : in[x]);
                }
            }
        }
    }
};

template <Layout L, class T>
DEVICE void gemm(unsigned char *shared, T *y, const bf16 *a, const bf16 *b, int m, int n, int k, int lda, int ldb, int ldy,
                 int flags, int m0, int n0) {
    Tile<L> tile;
    tile.multiply((bf16 *)shared, a, b, m, n, k, lda, ldb, m0, n0, flags & VECTOR);
    tile.finish((float *)shared, y, m, n, ldy, m0, n0, flags & ADD);
}

// origin gives the tile of a block: columns of at most L2_ROWS tiles, then the next column.
DEVICE void origin(int block, int m, int n, int *m0, int *n0) {
    int tm = ceil_div(m, TILE_M), tn = ceil_div(n, TILE_N);
    int band = block / (L2_ROWS * tn), in = block % (L2_ROWS * tn);
    int rows = min(L2_ROWS, tm - band * L2_ROWS);
    *m0 = (band * L2_ROWS + in % rows) * TILE_M;
    *n0 = in / rows * TILE_N;
}

// find_expert finds whose tile of rows number tile is, the experts' tiles being counted in turn. It returns −1 if there are
// fewer; *first becomes the number within the expert. All threads of a warp must call it.
DEVICE int find_expert(const int *offsets, int experts, int tile, int *first) {
    int lane = threadIdx.x & 31, before = 0;
    for (int base = 0; base < experts; base += 32) {
        int e = base + lane;
        int tiles = e < experts ? ceil_div(offsets[e + 1] - offsets[e], TILE_M) : 0;
        int sum = tiles;
#pragma unroll
        for (int w = 1; w < 32; w <<= 1) {
            int other = __shfl_up_sync(FULL_WARP, sum, w);
            if (lane >= w) sum += other;
        }
        u32 past = __ballot_sync(FULL_WARP, before + sum > tile);
        int at = past ? __ffs((int)past) - 1 : 31;
        int until = before + __shfl_sync(FULL_WARP, sum, at), own = __shfl_sync(FULL_WARP, tiles, at);
        if (past) {
            *first = tile - (until - own);
            return base + at;
        }
        before = until;
    }
    return -1;
}

template <Layout L, class T>
DEVICE void gemm_grouped(unsigned char *shared, T *y, const bf16 *a, const bf16 *const *b, const int *offsets, int experts, int n,
                         int k, int lda, int ldb, int ldy, int flags) {
    int tn = ceil_div(n, TILE_N), first;
    int e = find_expert(offsets, experts, blockIdx.x / tn, &first);
    if (e < 0) return;
    i64 start = offsets[e];
    gemm<L>(shared, y + start * ldy, a + start * lda, b[e], offsets[e + 1] - (int)start, n, k, lda, ldb, ldy, flags,
            first * TILE_M, blockIdx.x % tn * TILE_N);
}

#define GEMM(name, L, T)                                                                                                       \
    extern "C" __global__ void KERNEL_BOUNDS(THREADS, BLOCKS) gemm_##name(T *y, const bf16 *a, const bf16 *b, int m, int n,     \
                                                                         int k, int lda, int ldb, int ldy, int flags) {        \
        DYNAMIC_SHARED(shared);                                                                                                \
        int m0, n0;                                                                                                            \
        origin(blockIdx.x, m, n, &m0, &n0);                                                                                    \
        gemm<L>(shared, y, a, b, m, n, k, lda, ldb, ldy, flags, m0, n0);                                                       \
    }

#define GROUPED(name, L, T)                                                                                                    \
    extern "C" __global__ void KERNEL_BOUNDS(THREADS, BLOCKS)                                                                  \
        gemm_##name(T *y, const bf16 *a, const bf16 *const *b, const int *offsets, int experts, int n, int k, int lda, int ldb, \
                    int ldy, int flags) {                                                                                      \
        DYNAMIC_SHARED(shared);                                                                                                \
        gemm_grouped<L>(shared, y, a, b, offsets, experts, n, k, lda, ldb, ldy, flags);                                        \
    }

#define GROUPED_TN(name, T)                                                                                                    \
    extern "C" __global__ void KERNEL_BOUNDS(THREADS, BLOCKS)                                                                  \
        gemm_##name(T *const *y, const bf16 *a, const bf16 *b, const int *offsets, const int *list, int count, int m, int n,   \
                    int lda, int ldb, int ldy, int flags) {                                                                    \
        DYNAMIC_SHARED(shared);                                                                                                \
        int tiles = ceil_div(m, TILE_M) * ceil_div(n, TILE_N), i = blockIdx.x / tiles, e = list[i], m0, n0;                    \
        i64 start = offsets[e];                                                                                                \
        int k = offsets[e + 1] - (int)start;                                                                                   \
        if (k == 0 && (flags & ADD)) return;                                                                                   \
        origin(blockIdx.x % tiles, m, n, &m0, &n0);                                                                            \
        gemm<TN>(shared, y[i], a + start * lda, b + start * ldb, m, n, k, lda, ldb, ldy, flags, m0, n0);                       \
    }

GEMM(nt_bf16, NT, bf16)
GEMM(nt_f32, NT, float)
GEMM(nn_bf16, NN, bf16)
GEMM(nn_f32, NN, float)
GEMM(tn_bf16, TN, bf16)
GEMM(tn_f32, TN, float)
GROUPED(nt_grouped_bf16, NT, bf16)
GROUPED(nt_grouped_f32, NT, float)
GROUPED(nn_grouped_bf16, NN, bf16)
GROUPED(nn_grouped_f32, NN, float)
GROUPED_TN(tn_grouped_bf16, bf16)
GROUPED_TN(tn_grouped_f32, float)

// cast converts eight neighbours per thread.
template <class Y, class X> DEVICE void cast(Y *y, const X *x, i64 n) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i + 8 <= n && aligned16(x) && aligned16(y)) {
        float v[8];
        load8(v, x + i);
        store8(y + i, v);
        return;
    }
    for (int j = 0; j < 8 && i + j < n; j++) store(y + i + j, load(x + i + j));
}

extern "C" __global__ void KERNEL_BOUNDS(256, 4) cast_f32_bf16(bf16 *y, const float *x, long long n) { cast(y, x, n); }
extern "C" __global__ void KERNEL_BOUNDS(256, 4) cast_bf16_f32(float *y, const bf16 *x, long long n) { cast(y, x, n); }

// sum_parts adds four neighbours per thread.
template <class Y> DEVICE void sum_parts(Y *y, const float *x, int parts, i64 stride, i64 n, bool add) {
    i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 4;
    float total[4] = {};
    if (i + 4 <= n && aligned16(x) && aligned16(y) && stride % 4 == 0) {
        if (add) load4(total, y + i);
#pragma unroll 8
        for (int p = 0; p < parts; p++) {
            float v[4];
            load4(v, x + p * stride + i);
#pragma unroll
            for (int j = 0; j < 4; j++) total[j] += v[j];
        }
        store4(y + i, total);
        return;
    }
    for (int j = 0; j < 4 && i + j < n; j++) {
        float sum = add ? load(y + i + j) : 0.0f;
        for (int p = 0; p < parts; p++) sum += x[p * stride + i + j];
        store(y + i + j, sum);
    }
}

extern "C" __global__ void KERNEL_BOUNDS(256, 4)
    gemm_sum_parts_f32(float *y, const float *x, int parts, long long stride, long long n, int flags) {
    sum_parts(y, x, parts, stride, n, flags & ADD);
}
extern "C" __global__ void KERNEL_BOUNDS(256, 4)
    gemm_sum_parts_bf16(bf16 *y, const float *x, int parts, long long stride, long long n, int flags) {
    sum_parts(y, x, parts, stride, n, flags & ADD);
}
