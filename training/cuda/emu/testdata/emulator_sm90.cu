// A small product by the copy engine and a warpgroup, with all that can be forgotten: the emulator must notice.
#include "sm90.cuh"

enum Fault {
    NONE,
    NO_FULL_WAIT,
    EARLY_RELEASE,
    NO_PRODUCT_WAIT,
    NO_PRODUCT_FENCE,
    NO_ASYNC_FENCE,
    NO_NAMED_BARRIER,
    NO_READ_WAIT,
    NO_LAST_WAIT,
    NO_COMMIT,
    NO_ACQUIRE,
    FEW_BYTES,
    MANY_BYTES,
    MANY_ARRIVALS,
    LOST_ARRIVAL,
    WRONG_LEADING,
    WRONG_STRIDE,
    WRONG_SWIZZLE,
    WRONG_BARRIER,
    UNALIGNED_BOX,
    ONE_WARP_LESS,
    REGISTERS,
    TOUCHED_RESULT,
    TOUCHED_BOX,
    BARRIER_OVERWRITTEN,
    WRONG_FULL_PHASE,
    WRONG_EMPTY_PHASE,
    OPERAND_OUTSIDE,
};

// test_product sets y = a·b for a [64, 64·steps], b [64·steps, 128] and y [128, 128] in bfloat16, in both halves of the rows
// of y: with a ring of two stages and one staging box. b is in global memory. block [384]: a warpgroup that multiplies, a
// thread that loads.
extern "C" __global__ void KERNEL_BOUNDS(384, 1)
    test_product(const __grid_constant__ TensorMap a, const TensorMap *b, const __grid_constant__ TensorMap y, int steps, int fault) {
    DYNAMIC_SHARED(shared);
    constexpr int STAGE = 3 * BOX_BYTES;
    unsigned char *box = shared + 2 * STAGE;
    u64 *full = (u64 *)(box + BOX_BYTES), *empty = full + 2;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, 4);
        }
        barrier_init_fence();
    }
    __syncthreads();
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (warp >= 4) {
        if (fault == REGISTERS)
            registers_more<232>();
        else
            registers_less<40>();
        if (threadIdx.x != 128) return;
        if (fault != NO_ACQUIRE) tma_acquire_map(b);
        for (int t = 0; t < steps; t++) {
            u64 *bar = full + t % 2;
            unsigned char *stage = shared + t % 2 * STAGE;
            barrier_wait(empty + t % 2, t / 2 % 2 ^ (fault != WRONG_EMPTY_PHASE));
            barrier_expect(bar, fault == FEW_BYTES ? STAGE - BOX_BYTES : fault == MANY_BYTES ? STAGE + 16 : STAGE);
            tma_load(stage + (fault == UNALIGNED_BOX ? 512 : 0), &a, 0, t * 64, bar);
            if (fault == TOUCHED_BOX && t == 1) store_uint4(stage + 64, make_uint4(1, 2, 3, 4));
            tma_load(stage + BOX_BYTES, b, t * 64, 0, bar);
            tma_load(stage + 2 * BOX_BYTES, b, t * 64, 64, bar);
        }
        return;
    }
    registers_more<232>();
    if (fault == BARRIER_OVERWRITTEN && threadIdx.x == 0) full[1] = 0;
    float d[64];
    for (int t = 0; t < steps; t++) {
        unsigned char *stage = shared + t % 2 * STAGE;
        if (fault != NO_FULL_WAIT || t != steps - 1) barrier_wait(full + t % 2, t / 2 % 2 ^ (fault == WRONG_FULL_PHASE));
        if (fault != NO_PRODUCT_FENCE) wgmma_fence();
        for (int k = 0; k < 4; k++) {
            u64 across = operand_across_k(stage + BOX_BYTES + k * 2048);
            if (fault == WRONG_LEADING) across ^= (u64)1 << 20;
            if (fault == WRONG_STRIDE) across ^= (u64)3 << 38;
            if (fault == OPERAND_OUTSIDE) across += 8 * BOX_BYTES >> 4;
            if (fault == WRONG_SWIZZLE) across ^= (u64)3 << 62;
            if (fault != ONE_WARP_LESS || warp != 2 || t) wgmma<0, 1>(d, operand_along_k(stage + k * 32), across, t > 0 || k > 0);
        }
        wgmma_commit();
        if (fault == TOUCHED_RESULT) d[3] = 1.0f;
        if (fault == EARLY_RELEASE && lane == 0) barrier_arrive(empty + t % 2);
        if (fault != NO_PRODUCT_WAIT || t != steps - 1) wgmma_wait<0>();
        if (fault != EARLY_RELEASE && lane == 0 && (fault != LOST_ARRIVAL || warp != 3)) barrier_arrive(empty + t % 2);
        if (fault == MANY_ARRIVALS && lane == 0) barrier_arrive(empty + t % 2);
    }
    int row = warp * 16 + (lane & 15);
    for (int i = 0; i < 4; i++) {
        if (threadIdx.x == 0 && fault != NO_READ_WAIT) bulk_wait_read<0>();
        named_barrier(fault == WRONG_BARRIER && warp == 1 ? 2 : 1, 128);
        for (int j = 0; j < 4; j++) {
            const float *v = d + i % 2 * 32 + j * 8;
            stmatrix_x4(box + row * 128 + ((j * 2 + (lane >> 4)) ^ (row & 7)) * 16, convert_pair(v[0], v[1]), convert_pair(v[2], v[3]),
                        convert_pair(v[4], v[5]), convert_pair(v[6], v[7]));
        }
        if (fault != NO_ASYNC_FENCE) async_fence();
        if (fault != NO_NAMED_BARRIER) named_barrier(1, 128);
        if (threadIdx.x == 0) {
            tma_store(&y, i / 2 * 64, i % 2 * 64, box);
            if (fault != NO_COMMIT) bulk_commit();
        }
    }
    if (threadIdx.x == 0 && fault != NO_LAST_WAIT) bulk_wait_read<0>();
    if (fault == NO_PRODUCT_WAIT) wgmma_wait<0>();
}
