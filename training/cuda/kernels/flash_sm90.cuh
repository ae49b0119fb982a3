// What the attention kernels of sm_90a are made of: products of a warpgroup's 64 rows, the tiles they read, the rings that the
// copy engine fills, and the queue that hands out work.
//
// A tile of R rows of D values lies in shared memory as D/64 columns of boxes, R·128 bytes each: box (row/64, column/64) is at
// column/64·R·128 + row/64·8192, swizzled as sm90.cuh says.
#pragma once

#include "fast.cuh"
#include "sm90.cuh"

// ---- products. product starts d = a·b (+ d) over 16 values of k, a along k; the columns are 2·(length of d). Operand a is in
// shared memory, or in registers: pairs of rows lane/4 and 8 below, columns 2(lane mod 4), +1, then columns 8 further, which is
// how wgmma leaves two neighbouring groups of 8 columns of a result.

#define WGMMA_32(d)                                                                                                   \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                   \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),             \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),           \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

#define WGMMA_D32                                                             \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define WGMMA_D64                                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "         \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

template <int TRANS_B> DEVICE void product(float (&d)[32], u64 a, u64 b, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WGMMA_D32
                 "%32, %33, p, 1, 1, 0, %35;\n}\n"
                 : WGMMA_32(d)
                 : "l"(a), "l"(b), "r"((int)add), "n"(TRANS_B));
}
template <int TRANS_B> DEVICE void product(float (&d)[64], u64 a, u64 b, bool add) { wgmma<0, TRANS_B>(d, a, b, add); }

template <int TRANS_B> DEVICE void product(float (&d)[32], const u32 (&a)[4], u64 b, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WGMMA_D32
                 "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
                 : WGMMA_32(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"(TRANS_B));
}
template <int TRANS_B> DEVICE void product(float (&d)[64], const u32 (&a)[4], u64 b, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WGMMA_D64
                 "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
                 : WGMMA_64(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"(TRANS_B));
}

// settle keeps the compiler from moving uses of a result above the wait for it.
template <int N> DEVICE void settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

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

// bulk_load copies bytes, a multiple of 16, and adds them at bar.
DEVICE void bulk_load(void *smem, const void *gmem, int bytes, u64 *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                     shared_address(smem)),
                 "l"(gmem), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}
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
DEVICE void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }

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
