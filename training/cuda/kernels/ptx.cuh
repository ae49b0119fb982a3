// Instructions that CUDA C++ has no name for. Under BZD_EMULATE emu.h implements the same functions.
#pragma once

#include "common.cuh"

#ifndef BZD_EMULATE

DEVICE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// cp_async16 copies 16 bytes from global to shared memory, both aligned to 16, without waiting; if !pred it writes zeros and
// does not read gmem.
DEVICE void cp_async16(void *smem, const void *gmem, bool pred) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(smem)), "l"(gmem), "r"(pred ? 16 : 0)
                 : "memory");
}

// cp_async_commit closes a group of copies; cp_async_wait<N> waits until at most N of this thread's groups are pending. Other
// threads' copies need a barrier after it.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }

// ldmatrix loads 8×8 matrices of 16-bit values: lane i of the warp gives the address of row i mod 8 of matrix i/8 (of lanes
// 0–15 for x2), 16 bytes aligned to 16. Lane l gets the values 2(l mod 4), 2(l mod 4)+1 of row l/4; with _trans of column l/4.
DEVICE void ldmatrix_x4(u32 r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(u32 r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix_x2(u32 r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix_x2_trans(u32 r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// mma_m16n8k16_bf16 adds the product of a 16×16 matrix A (row-major) and a 16×8 matrix B (column-major) to C, summed in
// binary32 in no promised order. With g = lane/4 and t = lane mod 4, pairs in memory order:
//   a[0] = A[g][2t..]  a[1] = A[g+8][2t..]  a[2] = A[g][2t+8..]  a[3] = A[g+8][2t+8..]
//   b[0] = B[2t..][g]  b[1] = B[2t+8..][g]
//   c[0], c[1] = C[g][2t, 2t+1]   c[2], c[3] = C[g+8][2t, 2t+1]
DEVICE void mma_m16n8k16_bf16(float c[4], const u32 a[4], const u32 b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// fast_exp2 is 2^x within 2 units in the last place; denormal results are flushed to 0. For fast kernels only.
DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// pack_rn rounds two values to the nearest bfloat16, lo in the low half: one instruction where pack_bf16 takes a dozen. Only
// the payload of a NaN differs.
DEVICE u32 pack_rn(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

#else
DEVICE u32 pack_rn(float lo, float hi) { return pack_bf16(lo, hi); }
#endif
