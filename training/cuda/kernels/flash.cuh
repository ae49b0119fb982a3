// Tiles of attention: how rows of heads lie in shared memory and how a warp multiplies them. A tile has rows of D values, D a
// multiple of 32, each row's 16-byte chunks permuted so that any 8 rows read at one chunk touch every bank once.
#pragma once

#include "fast.cuh"

// swizzle is what the chunk number is xored with.
template <int D> DEVICE int swizzle(int row) { return D % 64 == 0 ? row & 7 : (row >> 1) & 3; }

// Lane is where a lane points ldmatrix_x4 in a tile of rows of D values: a 16×16 block at row 0. Its block of columns c (16
// values each) is at byte row + (c·32 ^ chunk), 16 rows further down is 16·D·2 bytes on.
template <int D> struct Lane {
    int row, chunk;

    // along: the four 8×8 matrices in the order (0,0), (8,0), (0,8), (8,8) of (row, column): operand A of a row-major tile,
    // and with _trans two operands B of a tile [k][n].
    DEVICE static Lane along() {
        int lane = threadIdx.x & 31, r = lane & 15, c = lane >> 4;
        return Lane{r * D * 2, (c ^ swizzle<D>(r)) << 4};
    }

    // across: in the order (0,0), (0,8), (8,0), (8,8): two operands B of a tile [n][k], and with _trans operand A of a tile
    // [k][m].
    DEVICE static Lane across() {
        int lane = threadIdx.x & 31, r = (lane & 7) + ((lane >> 4) << 3), c = (lane >> 3) & 1;
        return Lane{r * D * 2, (c ^ swizzle<D>(r)) << 4};
    }

    DEVICE int at(int rows16, int cols16) const { return row + rows16 * (16 * D * 2) + ((cols16 * 32) ^ chunk); }
};

// Loader is a thread's part in copying tiles: in rows row, row+STEP, … the chunks column, column+LANES, …. It is set up once:
// addresses in the loops are sums.
template <int D, int THREADS> struct Loader {
    static constexpr int CHUNKS = D / 8, LANES = CHUNKS % 16 == 0 ? 16 : CHUNKS % 8 == 0 ? 8 : 4, STEP = THREADS / LANES;
    static_assert(STEP % 8 == 0, "rows of one thread are permuted alike");
    int row, column, place;

    DEVICE static Loader make() {
        int row = threadIdx.x / LANES, column = threadIdx.x % LANES;
        return Loader{row, column * 8, row * (D * 2) + ((column ^ swizzle<D>(row)) << 4)};
    }

    // from is the thread's first value of a matrix whose rows are ld apart.
    DEVICE const bf16 *from(const bf16 *g, int ld) const { return g + (i64)row * ld + column; }

    // load starts copying ROWS rows of hd ≤ D values to a tile, p being from() of the first; what lies beyond live rows or hd
    // becomes 0.
    template <int ROWS> DEVICE void load(unsigned char *tile, const bf16 *p, int ld, int live, int hd) const {
        tile += place;
        i64 step = (i64)STEP * ld;
#pragma unroll
        for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++, p += step)
#pragma unroll
            for (int c = 0; c < CHUNKS / LANES; c++)
                if (ROWS % STEP == 0 || row + i * STEP < ROWS)
                    cp_async16(tile + i * (STEP * D * 2) + c * (LANES * 16), p + c * (LANES * 8),
                               row + i * STEP < live && column + c * (LANES * 8) < hd);
    }
};

// multiply_nt adds A·Bᵀ over D: A the warp's M·16 rows of tile a, B the first N·8 rows of tile b, c[m][n] the accumulators.
template <int D, int M, int N>
DEVICE void multiply_nt(float (*c)[N][4], const unsigned char *a, Lane<D> along, const unsigned char *b, Lane<D> across) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4(left[m], a + along.at(m, k));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 right[4];
            ldmatrix_x4(right, b + across.at(n / 2, k));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(c[m][n], left[m], right);
                mma_m16n8k16_bf16(c[m][n + 1], left[m], right + 2);
            }
        }
    }
}

// multiply_nn adds A·B over K·16 rows of tile b: A comes from registers, pairs of accumulators p[m][K·2][2] of a product
// before; c[m] covers D columns.
template <int D, int M, int K>
DEVICE void multiply_nn(float (*c)[D / 8][4], const u32 (*p)[K * 2][2], const unsigned char *b, Lane<D> along) {
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 right[4];
            ldmatrix_x4_trans(right, b + along.at(k, n / 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                const u32 left[4] = {p[m][2 * k][0], p[m][2 * k][1], p[m][2 * k + 1][0], p[m][2 * k + 1][1]};
                mma_m16n8k16_bf16(c[m][n], left, right);
                mma_m16n8k16_bf16(c[m][n + 1], left, right + 2);
            }
        }
    }
}

template <int M, int N> DEVICE void clear(float (*c)[N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0.0f;
}

// store_rows writes the warp's M·16 rows of accumulators, each times its factor, to g through the warp's own rows of a tile:
// whole 16-byte chunks reach memory. live counts the rows that exist, from the warp's first.
template <int D, int M>
DEVICE void store_rows(bf16 *g, int ld, int live, int hd, unsigned char *tile, float (*c)[D / 8][4], const float (*factor)[2]) {
    int lane = threadIdx.x & 31;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = m * 16 + half * 8 + (lane >> 2);
                unsigned char *p = tile + r * (D * 2) + ((n ^ swizzle<D>(r)) << 4) + (lane & 3) * 4;
                *(u32 *)p = pack_rn(c[m][n][2 * half] * factor[m][half], c[m][n][2 * half + 1] * factor[m][half]);
            }
    __syncwarp();
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = 0; i < M * 16 * CHUNKS / 32; i++) {
        int n = lane + i * 32, r = n / CHUNKS, chunk = n % CHUNKS;
        if (r < live && chunk * 8 < hd)
            store_uint4(g + (i64)r * ld + chunk * 8, load_uint4(tile + r * (D * 2) + ((chunk ^ swizzle<D>(r)) << 4)));
    }
}
