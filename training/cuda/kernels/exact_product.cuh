// Products of the exact arithmetic (docs/spec/exact.md, section 2): every C[i,j] is a chain of fmaf over ascending k inside
// blocks of 256, and block sums are added in order. No thread ever shares a C[i,j], so tiles do not show in the result.
//
// A thread holds 8×8 sums of the current block and the 8×8 totals of the blocks before. Where k ends inside a tile the
// padding is A = −0, B = +0: fma(−0, +0, s) is s for every s, while +0·+0 would turn a sum of −0 into +0.
#pragma once

#include "common.cuh"

#define TILE_K 16
#define BLOCK_TILES 16 // tiles of a block of 256

// Warps of a block are WM by WN, each with 64×32 values of C: thread (y, x) of 8×4 has the rows 4y…4y+3 and 32+4y…, the
// columns 4x…4x+3 and 16+4x…. This numbering of the threads lets vector loads from shared memory run without conflicts.
template <int WM, int WN> struct Tile {
    static const int M = 64 * WM, N = 32 * WN, THREADS = 32 * WM * WN;
    static const int SA = M + 4, SB = N + 4; // values from one k to the next: the 4 spread transposing stores over banks
};

// thread_row and thread_col are a thread's first row and column in the tile.
template <int WN> DEVICE int thread_row() {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    return warp / WN * 64 + ((lane >> 1) & 7) * 4;
}
template <int WN, int WIDTH> DEVICE int thread_col() {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    return warp % WN * WIDTH + ((lane >> 4) << 1 | (lane & 1)) * 4;
}

// Operand moves tiles of 16 by ROWS values of one matrix from global memory through registers to shared memory, where they
// lie [k][row]. With ALONG_K memory runs along k (value (row, k) at p[row·ld + k]), else along rows (p[k·ld + row]). Every
// 16-byte vector is aligned and entirely inside the matrix or outside.
template <typename T, bool ALONG_K, int ROWS, int STRIDE, int THREADS, u32 FILL> struct Operand {
    static const int W = 16 / sizeof(T), VECTORS = ROWS * TILE_K / W / THREADS;
    const T *p; // of this thread's first vector
    int ld, row, q;
    u32 valid; // bit i: vector i is inside the rows
    uint4 r[VECTORS];

    // Which vector of the tile i is. Along k neighbours take 32 bytes of a row, so that stores spread over banks.
    DEVICE int vector_row(int i) const { return ALONG_K ? (int)((threadIdx.x + i * THREADS) >> 1) % ROWS : row; }
    DEVICE int vector_k(int i) const {
        int v = threadIdx.x + i * THREADS;
        return ALONG_K ? ((v & 1) + v / (2 * ROWS) * 2) * W : v / (ROWS / W);
    }

    DEVICE void init(const T *matrix, int stride, int row0, int rows) {
        ld = stride;
        row = ALONG_K ? (int)(threadIdx.x >> 1) % ROWS : (int)threadIdx.x % (ROWS / W) * W;
        q = vector_k(0);
        valid = 0;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) valid |= (row0 + vector_row(i) < rows ? 1u : 0u) << i;
        p = ALONG_K ? matrix + (i64)(row0 + row) * ld + q : matrix + (i64)q * ld + row0 + row;
    }

    // load fetches the tile at p, of which left values of k remain, and moves on.
    DEVICE void load(int left) {
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            int dk = vector_k(i) - q;
            i64 at = ALONG_K ? (i64)(vector_row(i) - row) * ld + dk : (i64)dk * ld;
            r[i] = make_uint4(FILL, FILL, FILL, FILL);
            if ((valid >> i & 1) && q + dk < left) r[i] = load_uint4(p + at);
        }
        p += ALONG_K ? (i64)TILE_K : (i64)TILE_K * ld;
    }

    DEVICE void store(float *s) const {
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            float *d = s + vector_k(i) * STRIDE + vector_row(i);
            if (sizeof(T) == 4) {
                if (ALONG_K) {
                    d[0] = __uint_as_float(r[i].x), d[STRIDE] = __uint_as_float(r[i].y);
                    d[2 * STRIDE] = __uint_as_float(r[i].z), d[3 * STRIDE] = __uint_as_float(r[i].w);
                } else {
                    store_uint4(d, r[i]);
                }
            } else if (ALONG_K) {
                // Neighbours, 8 values of k apart, would meet in a bank: one of them begins with its upper half.
                bool odd = threadIdx.x & 1;
                u32 x = odd ? r[i].z : r[i].x, y = odd ? r[i].w : r[i].y, z = odd ? r[i].x : r[i].z, w = odd ? r[i].y : r[i].w;
                float *a = d + (odd ? 4 * STRIDE : 0), *b = d + (odd ? 0 : 4 * STRIDE);
                a[0] = low_bf16(x), a[STRIDE] = high_bf16(x), a[2 * STRIDE] = low_bf16(y), a[3 * STRIDE] = high_bf16(y);
                b[0] = low_bf16(z), b[STRIDE] = high_bf16(z), b[2 * STRIDE] = low_bf16(w), b[3 * STRIDE] = high_bf16(w);
            } else {
                store_float4(d, make_float4(low_bf16(r[i].x), high_bf16(r[i].x), low_bf16(r[i].y), high_bf16(r[i].y)));
                store_float4(d + 4, make_float4(low_bf16(r[i].z), high_bf16(r[i].z), low_bf16(r[i].w), high_bf16(r[i].w)));
            }
        }
    }
};

// fragment loads a thread's 8 values of one k; GAP is the distance of the two quads.
template <int GAP> DEVICE void fragment(float f[8], const float *s) {
    load4(f, s);
    load4(f + 4, s + GAP);
}

// multiply adds a tile to the sums, loading one k ahead.
template <int SA, int SB> DEVICE void multiply(float (&sum)[8][8], const float *a, const float *b) {
    float fa[2][8], fb[2][8];
    fragment<32>(fa[0], a);
    fragment<16>(fb[0], b);
#pragma unroll
    for (int k = 0; k < TILE_K; k++) {
        if (k + 1 < TILE_K) {
            fragment<32>(fa[(k + 1) & 1], a + (k + 1) * SA);
            fragment<16>(fb[(k + 1) & 1], b + (k + 1) * SB);
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i][j] = fmaf(fa[k & 1][i], fb[k & 1][j], sum[i][j]);
    }
}

// flush ends a block for the rows of quad h: the totals take the sums.
template <int COLS> DEVICE void flush(float (&total)[8][COLS], float (&sum)[8][COLS], int h, bool first) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) {
            float s = sum[4 * h + i][j];
            total[4 * h + i][j] = first ? s : total[4 * h + i][j] + s;
            sum[4 * h + i][j] = 0.0f;
        }
}

// transfer moves a thread's values between registers and C [m, n], of which it has the rows from row and the columns from
// col. VECTORS: C is aligned to 16 bytes, n and ldc are multiples of 4.
template <bool STORE, bool VECTORS, int COLS>
DEVICE void transfer(float (&v)[8][COLS], float *c, int ldc, int m, int n, int row, int col) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int r = row + (i & 3) + (i >> 2) * 32;
        if (r >= m) continue;
        float *p = c + (i64)r * ldc + col;
#pragma unroll
        for (int j = 0; j < COLS; j += VECTORS ? 4 : 1) {
            int x = (j & 3) + (j >> 2) * 16;
            if (col + x >= n) continue;
            if (VECTORS && STORE) store4(p + x, &v[i][j]);
            else if (VECTORS) load4(&v[i][j], p + x);
            else if (STORE) p[x] = v[i][j];
            else v[i][j] = p[x];
        }
    }
}

template <int COLS> DEVICE void clear(float (&v)[8][COLS]) {
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) v[i][j] = 0.0f;
}

// product computes the tile of C at (row0, col0). A is [m, k], B [k, n]; A_ALONG_K and B_ALONG_K say how they lie (Operand). C
// allows vectors (transfer).
template <int WM, int WN, typename TB, bool A_ALONG_K, bool B_ALONG_K>
DEVICE void product(float *c, int ldc, const float *a, int lda, const TB *b, int ldb, int m, int n, int k, int row0, int col0, bool add) {
    typedef Tile<WM, WN> T;
    __shared__ __align__(16) float sa[2][TILE_K * T::SA];
    __shared__ __align__(16) float sb[2][TILE_K * T::SB];
    Operand<float, A_ALONG_K, T::M, T::SA, T::THREADS, 0x80000000u> oa;
    Operand<TB, B_ALONG_K, T::N, T::SB, T::THREADS, 0u> ob;
    oa.init(a, lda, row0, m);
    ob.init(b, ldb, col0, n);
    int row = thread_row<WN>(), col = thread_col<WN, 32>();
    bool first = !add;
    float sum[8][8], total[8][8];
    clear(total);
    if (add) transfer<false, true>(total, c, ldc, m, n, row0 + row, col0 + col);

    oa.load(k);
    ob.load(k);
    oa.store(sa[0]);
    ob.store(sb[0]);
    __syncthreads();
    const int tiles = ceil_div(k, TILE_K);
    for (int t = 0; t < tiles;) {
        const int end = min(t + BLOCK_TILES, tiles);
        clear(sum);
#pragma unroll 1
        for (; t < end; t++) {
            bool more = t + 1 < tiles;
            if (more) {
                oa.load(k - (t + 1) * TILE_K);
                ob.load(k - (t + 1) * TILE_K);
            }
            multiply<T::SA, T::SB>(sum, sa[t & 1] + row, sb[t & 1] + col);
            if (more) {
                oa.store(sa[(t + 1) & 1]);
                ob.store(sb[(t + 1) & 1]);
            }
            __syncthreads();
        }
        flush(total, sum, 0, first);
        flush(total, sum, 1, first);
        first = false;
    }
    transfer<true, true>(total, c, ldc, m, n, row0 + row, col0 + col);
}

// View is a matrix at any strides, in values: (i, j) at p[i·row + j·col]. half says that it is bf16.
struct View {
    const void *p;
    i64 row, col;
    bool half;
};

DEVICE View view(const void *p, i64 row, i64 col, bool half) {
    View v;
    v.p = p, v.row = row, v.col = col, v.half = half;
    return v;
}


// at_address is p moved to an address in global memory. Arithmetic on a parameter, unlike a cast of the address, lets the
// compiler see that it is global.
template <typename T> DEVICE T *at_address(T *p, u64 address) { return (T *)((const char *)p + (i64)(address - (u64)p)); }

// Range says which k a row of C takes. Rows come in blocks of 16; the k-blocks of 256 count from the range's beginning.
enum Range {
    WHOLE,   // 0 to k
    HORIZON, // 0 to the end of the row's block of 16, at most k
    BEHIND,  // from the beginning of the row's block of 16 to k
};

DEVICE float element(const View &v, i64 at) { return v.half ? from_bf16(((const bf16 *)v.p)[at]) : ((const float *)v.p)[at]; }

// StridedTile fetches tiles of 16 by 64 values for 128 threads, value by value. Neighbours go along k if memory does.
struct StridedTile {
    View v;
    i64 at, step;
    bool along;
    int row, k;
    u32 valid; // bit i: value i is inside the rows
    float r[8];

    // matrix.row is the stride of rows, matrix.col that of k.
    DEVICE void init(const View &matrix, int row0, int rows, int k0) {
        v = matrix;
        along = v.col == 1;
        row = along ? (int)threadIdx.x >> 4 : (int)threadIdx.x & 63;
        k = along ? (int)threadIdx.x & 15 : (int)threadIdx.x >> 6;
        at = (i64)(row0 + row) * v.row + (i64)(k0 + k) * v.col;
        step = along ? 8 * v.row : 2 * v.col;
        valid = 0;
        for (int i = 0; i < 8; i++) valid |= (row0 + row + (along ? 8 * i : 0) < rows ? 1u : 0u) << i;
    }
    DEVICE void load(int left, float fill) {
        i64 x = at;
#pragma unroll
        for (int i = 0; i < 8; i++, x += step) {
            r[i] = fill;
            if ((valid >> i & 1) && k + (along ? 0 : 2 * i) < left) r[i] = element(v, x);
        }
        at += TILE_K * v.col;
    }
    DEVICE void store(float *s, int stride) const {
        float *d = s + k * stride + row;
        int next = along ? 8 : 2 * stride;
#pragma unroll
        for (int i = 0; i < 8; i++) d[i * next] = r[i];
    }
};

// strided_product is product for 64×64 tiles, 128 threads of 8×4, any strides and alignment, and any Range.
DEVICE void strided_product(float *c, int ldc, const View &a, const View &b, int m, int n, int k, int row0, int col0, Range range, bool add) {
    const int tile = 64, stride = tile + 4;
    __shared__ __align__(16) float sa[2][TILE_K * stride];
    __shared__ __align__(16) float sb[2][TILE_K * stride];
    int row = thread_row<4>(), col = thread_col<4, 16>();
    int from = range == BEHIND ? row0 : 0, to = range == HORIZON ? min(row0 + tile, k) : k;
    StridedTile oa, ob;
    oa.init(a, row0, m, from);
    ob.init(view(b.p, b.col, b.row, b.half), col0, n, from); // rows of the tile are columns of B
    float sum[8][4], total[8][4];
    clear(sum);
    clear(total);
    if (add) transfer<false, false>(total, c, ldc, m, n, row0 + row, col0 + col);

    int begin[2], end[2];
    bool first[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int block = (row0 + row + 32 * h) / 16 * 16;
        begin[h] = range == BEHIND ? block : 0;
        end[h] = range == HORIZON ? min(block + 16, k) : k;
        first[h] = !add;
    }
    const float minus_zero = __uint_as_float(0x80000000u);
    oa.load(to - from, minus_zero);
    ob.load(to - from, 0.0f);
    oa.store(sa[0], stride);
    ob.store(sb[0], stride);
    __syncthreads();
    for (int t = 0, k0 = from; k0 < to; t++, k0 += TILE_K) {
        bool more = k0 + TILE_K < to;
        if (more) {
            oa.load(to - k0 - TILE_K, minus_zero);
            ob.load(to - k0 - TILE_K, 0.0f);
        }
        bool on[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            on[h] = k0 >= begin[h] && k0 < end[h];
            if (on[h] && k0 > begin[h] && (k0 - begin[h]) % (BLOCK_TILES * TILE_K) == 0) {
                flush(total, sum, h, first[h]);
                first[h] = false;
            }
        }
        const float *pa = sa[t & 1] + row, *pb = sb[t & 1] + col;
#pragma unroll 4
        for (int x = 0; x < TILE_K; x++) {
            float fa[8], fb[4];
            fragment<32>(fa, pa + x * stride);
            load4(fb, pb + x * stride);
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (on[h])
#pragma unroll
                    for (int i = 4 * h; i < 4 * h + 4; i++)
#pragma unroll
                        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(fa[i], fb[j], sum[i][j]);
        }
        if (more) {
            oa.store(sa[(t + 1) & 1], stride);
            ob.store(sb[(t + 1) & 1], stride);
        }
        __syncthreads();
    }
    flush(total, sum, 0, first[0]);
    flush(total, sum, 1, first[1]);
    transfer<true, false>(total, c, ldc, m, n, row0 + row, col0 + col);
}
