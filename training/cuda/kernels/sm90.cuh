// Instructions of sm_90a: the copy engine (TMA), its barriers, clusters, and matrix products of warpgroups.
//
// Only files named *_sm90.cu include it. Under BZD_EMULATE emu/sm90.h implements the same functions.
#pragma once

#include "ptx.cuh"

// TensorMap is a CUtensorMap: as a kernel argument `const __grid_constant__ TensorMap`, or in global memory. All maps here
// have boxes of 64 rows of 64 bf16 (128 bytes), 128-byte swizzle and zeros out of bounds: in shared memory, aligned to 1024
// bytes, chunk c (16 bytes) of row r lies at r·128 + (c ^ r mod 8)·16.
#ifndef BZD_EMULATE
struct alignas(64) TensorMap {
    u64 opaque[16];
};
#endif

constexpr int BOX = 64, BOX_BYTES = BOX * 128;

// Descriptors of operands in shared memory with 128-byte swizzle. Fields (PTX ISA, matrix descriptor, all but the last two
// divided by 16): address 0–13, leading dimension offset 16–29, stride offset 32–45, base offset 49–51 (0: patterns begin at
// multiples of 1024), swizzle 62–63 (1: 128 bytes).
//
// Along k (not transposed): rows of 64 values of k; the stride is that of 8 rows, 1024 bytes, and the leading offset is not
// used. The next 16 of k are 32 bytes on.
DEVICE u64 operand_along_k(const void *smem) {
    return (u64)((shared_address(smem) & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
// Across k (transposed): rows of 64 values of m or n, one row per value of k; the stride is that of 8 rows, and the leading
// offset leads to the box with the next 64 of m or n. The next 16 of k are 16 rows, 2048 bytes, on.
DEVICE u64 operand_across_k(const void *smem) {
    return (u64)((shared_address(smem) & 0x3ffff) >> 4) | (u64)(BOX_BYTES >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#ifdef BZD_EMULATE
DEVICE u32 convert_pair(float lo, float hi) { return pack_bf16(lo, hi); }
#else

// ---- barriers in shared memory

DEVICE void barrier_init(u64 *bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}
// barrier_init_fence makes initialised barriers visible to the cluster and to the copy engine; a barrier of the threads must
// follow.
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

// barrier_expect arrives and announces bytes that the copy engine will add.
DEVICE void barrier_expect(u64 *bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}
DEVICE void barrier_arrive(u64 *bar) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(bar)) : "memory");
}
// barrier_arrive_at arrives at the same barrier of the block with this rank in the cluster.
DEVICE void barrier_arrive_at(u64 *bar, int rank) {
    asm volatile("{\n.reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}\n" ::"r"(shared_address(bar)),
                 "r"(rank)
                 : "memory");
}
// barrier_wait waits for the end of the phase with this parity. The phase before the first counts as one of parity 1.
DEVICE void barrier_wait(u64 *bar, int parity) {
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n}\n" ::"r"(shared_address(bar)),
                 "r"(parity)
                 : "memory");
}
// barrier_wait_cluster is barrier_wait where other blocks of the cluster arrive too.
DEVICE void barrier_wait_cluster(u64 *bar, int parity) {
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n}\n" ::"r"(shared_address(bar)),
                 "r"(parity)
                 : "memory");
}

// named_barrier is __syncthreads for the threads that name it; id 0 is __syncthreads itself.
DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }
// named_arrive arrives at it without waiting.
DEVICE void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }

// ---- the copy engine

DEVICE void tma_prefetch_map(const TensorMap *map) { asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory"); }

// tma_acquire_map must precede the use of a map that lies in global memory and may have been written since its last use.
DEVICE void tma_acquire_map(const TensorMap *map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;\n" ::"l"(map) : "memory");
}

// tma_load copies the box whose first value is (row, col) to shared memory and adds its bytes at bar.
DEVICE void tma_load(void *smem, const TensorMap *map, int row, int col, u64 *bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(
                     shared_address(smem)),
                 "l"(map), "r"(col), "r"(row), "r"(shared_address(bar))
                 : "memory");
}
// tma_load_multicast does it in every block of the cluster whose bit is in mask, at the same addresses of each.
DEVICE void tma_load_multicast(void *smem, const TensorMap *map, int row, int col, u64 *bar, u16 mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%2, %3}], [%4], %5;\n" ::"r"(shared_address(smem)),
                 "l"(map), "r"(col), "r"(row), "r"(shared_address(bar)), "h"(mask)
                 : "memory");
}
// bulk_load copies bytes, a multiple of 16, and adds them at bar.
DEVICE void bulk_load(void *smem, const void *gmem, int bytes, u64 *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                     shared_address(smem)),
                 "l"(gmem), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}
// tma_store copies a box out of shared memory, less what lies out of bounds. Stores form groups as cp.async does.
DEVICE void tma_store(const TensorMap *map, int row, int col, const void *smem) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];\n" ::"l"(map), "r"(col),
                 "r"(row), "r"(shared_address(smem))
                 : "memory");
}
// tma_add adds a box to what is there in global memory, in the type of the map.
DEVICE void tma_add(const TensorMap *map, int row, int col, const void *smem) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];\n" ::"l"(map),
                 "r"(col), "r"(row), "r"(shared_address(smem))
                 : "memory");
}
DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"); }
// bulk_wait_read waits until at most N of this thread's groups still read shared memory.
template <int N> DEVICE void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(N) : "memory"); }
// async_fence orders this thread's ordinary accesses of shared memory before the copy engine's and the tensor cores'.
DEVICE void async_fence() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// stmatrix_x4 is the inverse of ldmatrix_x4.
DEVICE void stmatrix_x4(void *row, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(row)), "r"(r0),
                 "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}

// convert_pair is pack_bf16 in one instruction.
DEVICE u32 convert_pair(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

// ---- clusters

DEVICE int cluster_rank() {
    u32 r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(r));
    return (int)r;
}
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

// ---- matrix products of warpgroups

// registers_less and registers_more change the registers of each thread of a warpgroup; N is a multiple of 8.
template <int N> DEVICE void registers_less() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N)); }
template <int N> DEVICE void registers_more() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N)); }

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory"); }

// wgmma starts d = a·b (+ d) of 64 rows, 2·(length of d) columns and 16 values of k; TRANS says which operands lie across k. With w
// the warp in its group, d[4j], d[4j+1] are columns 8j + 2(lane mod 4), +1 of row 16w + lane/4, d[4j+2], d[4j+3] of the row
// 8 below. d may be touched only after wgmma_wait.

#define WGMMA_64(d)                                                                                                   \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                   \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),             \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),           \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),           \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),           \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),           \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),           \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

template <int TRANS_A, int TRANS_B> DEVICE void wgmma(float (&d)[64], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, %67, %68;\n}\n"
        : WGMMA_64(d)
        : "l"(a), "l"(b), "r"((int)add), "n"(TRANS_A), "n"(TRANS_B));
}

#define WGMMA_128(d)                                                                                                  \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                   \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),             \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),           \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),           \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),           \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),           \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),           \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),           \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),           \
    "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),           \
    "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),           \
    "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),           \
    "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),       \
    "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),   \
    "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),   \
    "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

template <int TRANS_A, int TRANS_B> DEVICE void wgmma(float (&d)[128], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, p, 1, 1, %131, %132;\n}\n"
        : WGMMA_128(d)
        : "l"(a), "l"(b), "r"((int)add), "n"(TRANS_A), "n"(TRANS_B));
}

// product is wgmma with a along k, in shared memory or in registers: pairs of rows lane/4 and 8 below, columns 2(lane mod 4), +1,
// then columns 8 further, which is how wgmma leaves two neighbouring groups of 8 columns of a result.

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
#endif
