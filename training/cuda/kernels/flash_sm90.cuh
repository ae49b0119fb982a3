// What the attention kernels of sm_90a are made of: products of a warpgroup's 64 rows, the tiles they read, the rings that the
// copy engine fills, and the queue that hands out work.
//
// A tile of R rows of D values lies in shared memory as D/64 columns of boxes, R·128 bytes each: box (row/64, column/64) is at
// column/64·R·128 + row/64·8192, swizzled as sm90.cuh says.
#pragma once

#include "fast.cuh"
#include "sm90.cuh"

// ---- products

// Descriptors of a tile of R rows as an operand along and across k: the low words, to which 16-byte steps are added. The high
// words are all the same.
DEVICE u32 along(const void *tile) { return (u32)operand_along_k(tile); }
template <int R> DEVICE u32 across(const void *tile) { return (shared_address(tile) & 0x3ffff) >> 4 | R * 128 >> 4 << 16; }
DEVICE u64 described(u32 low) { return (u64)(1 << 30 | 1024 >> 4) << 32 | low; }

// multiply_along starts d = A·Bᵀ over the D columns of both: A 64 rows of a tile of RA rows, B the tile of RB rows.
template <int D, int RA, int RB, int N> DEVICE void multiply_along(float (&d)[N], u32 a, u32 b) {
    static_assert(N * 2 == RB, "one column per row of b");
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        product<0>(d, described(a + ((k / 4 * RA * 128 + k % 4 * 32) >> 4)), described(b + ((k / 4 * RB * 128 + k % 4 * 32) >> 4)), k > 0);
}
template <int D, int RB, int N> DEVICE void multiply_along(float (&d)[N], const u32 (&a)[D / 16][4], u32 b) {
    static_assert(N * 2 == RB, "one column per row of b");
#pragma unroll
    for (int k = 0; k < D / 16; k++) product<0>(d, a[k], described(b + ((k / 4 * RB * 128 + k % 4 * 32) >> 4)), k > 0);
}
// multiply_across starts d += A·B over the K·16 rows of tile b.
template <int K, int N> DEVICE void multiply_across(float (&d)[N], const u32 (&a)[K][4], u32 b) {
#pragma unroll
    for (int k = 0; k < K; k++) product<1>(d, a[k], described(b + (k * 2048 >> 4)), true);
}

template <int N> DEVICE void zero(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) d[i] = 0.0f;
}
// pack makes an operand of a result.
template <int K, int N> DEVICE void pack(u32 (&p)[K][4], const float (&s)[N]) {
    static_assert(K * 8 == N, "16 columns each");
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) p[k][i] = convert_pair(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
}

// keep_rows loads the warpgroup's 64 rows of a tile of R rows as operand a in registers.
template <int D, int R> DEVICE void keep_rows(u32 (&a)[D / 16][4], const unsigned char *rows) {
    int lane = threadIdx.x & 31, row = (threadIdx.x >> 5 & 3) * 16 + (lane & 15);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        ldmatrix_x4(a[k], rows + k / 4 * (R * 128) + row * 128 + ((k % 4 * 2 + (lane >> 4)) ^ (row & 7)) * 16);
}

// put_rows writes the warp's 16 rows of a warpgroup's result, times a factor each, to g by way of boxes of the warpgroup's own:
// whole 16-byte chunks reach memory. live counts the rows that exist, from the warp's first.
template <int D> DEVICE void put_rows(bf16 *g, int ld, int live, unsigned char *boxes, const float (&acc)[D / 2], float above, float below) {
    int lane = threadIdx.x & 31, first = (threadIdx.x >> 5 & 3) * 16;
    int row = first + (lane & 15);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        const float *v = acc + j * 8;
        stmatrix_x4(boxes + j / 4 * BOX_BYTES + row * 128 + ((j % 4 * 2 + (lane >> 4)) ^ (row & 7)) * 16,
                    convert_pair(v[0] * above, v[1] * above), convert_pair(v[2] * below, v[3] * below),
                    convert_pair(v[4] * above, v[5] * above), convert_pair(v[6] * below, v[7] * below));
    }
    __syncwarp();
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = 0; i < 16 * CHUNKS / 32; i++) {
        int r = (lane + i * 32) / CHUNKS, c = (lane + i * 32) % CHUNKS, at = first + r;
        if (r < live)
            store_uint4(g + (i64)r * ld + c * 8, load_uint4(boxes + c / 8 * BOX_BYTES + at * 128 + ((c % 8) ^ (at & 7)) * 16));
    }
}

// ---- loading

// load_tile copies R rows of the D columns from col. A loop, and loops around it, because who loads has few registers.
template <int R, int D> DEVICE void load_tile(unsigned char *tile, const TensorMap *map, int row, int col, u64 *bar) {
#pragma unroll 1
    for (int i = 0; i < R / BOX * (D / BOX); i++)
        tma_load(tile + i * BOX_BYTES, map, row + i % (R / BOX) * BOX, col + i / (R / BOX) * BOX, bar);
}

// Ring is the position in a ring of N buffers, the same sequence on both sides.
template <int N> struct Ring {
    int stage = 0, parity = 0;
    DEVICE void advance() {
        if (++stage == N) stage = 0, parity ^= 1;
    }
};

// release says that the warp has read what a barrier guards.
DEVICE void release(u64 *bar) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(bar);
}

// ---- work

// Work is a block's share: tile of a pair (sequence, head). Blocks that work at the same time are on few pairs, width at most.
struct Work {
    int pair, tile;
};
DEVICE Work work(int id, int pairs, int tiles, int width) {
    // Without this the compiler prepares the divisions before the loops, in registers that a loader does not have.
    asm volatile("" : "+r"(pairs), "+r"(tiles), "+r"(width));
    int first = id / (width * tiles) * width, rest = id - first * tiles;
    width = min(width, pairs - first);
    return Work{first + rest % width, rest / width};
}

// Queue hands out the numbers 0 … total − 1. One thread takes them, all others receive them. With turns, two counters that
// are 0 before and after, blocks take what comes next; without, each has its share.
struct Queue {
    static constexpr int BARRIERS = 5; // words of 8 bytes
    u64 *full, *empty;
    volatile int *slots;
    int *turns, total;

    DEVICE Queue(u64 *words, int *turns, int total)
        : full(words), empty(words + 2), slots((volatile int *)(words + 4)), turns(turns), total(total) {}
    DEVICE void init(int warps) {
        for (int i = 0; i < 2; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, warps);
        }
    }
    // take is the n-th number of this block, total or more at the end.
    DEVICE int take(int n) {
        int id = n * gridDim.x + (n & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        if (turns && n > 0) id = gridDim.x + atomicAdd(turns, 1);
        if (turns && id >= total && atomicAdd(turns + 1, 1) == (int)gridDim.x - 1) {
            __threadfence();
            *(volatile int *)turns = 0;
            *(volatile int *)(turns + 1) = 0;
        }
        barrier_wait(empty + (n & 1), (n >> 1 & 1) ^ 1);
        slots[n & 1] = id;
        barrier_arrive(full + (n & 1));
        return id;
    }
    DEVICE int receive(int n) {
        barrier_wait(full + (n & 1), n >> 1 & 1);
        int id = slots[n & 1];
        release(empty + (n & 1));
        return id;
    }
};
