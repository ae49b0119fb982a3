// The top-k code of a delta's chunks: docs/spec/topk.md. Integer sums make the result independent of any order.
//
//   topk_code(u16 *indices, u8 *codes, u16 *scales, int *flags, float *x, long long n, int k)
//
// codes x [n], chunk by chunk of 4096 values, and leaves the residual in x, which may lie anywhere. Chunk b writes indices
// [b·k …], codes [b·⌈k/4⌉ …] and scales [b]; a last chunk that is shorter sends fewer values and fills its places with 0. k is 1
// to 4096. A chunk with a value that is not finite sets bit 0 of flags[0], one with a magnitude above 2 bit 1; such a chunk
// stays as it was and its code is zeros.
//
// Block [256,1,1], grid [⌈n/4096⌉,1,1], shared memory static.
#include "common.cuh"

#define CHUNK 4096
#define THREADS 256
#define WARPS (THREADS / 32)
#define ROUNDS (CHUNK / THREADS / 4) // a thread holds 4 consecutive values in each round
#define BINS 2048
#define LARGEST_SCALE 0x3955u

// block_sum adds over the block; all threads get the result. scratch has WARPS places and is free again after a barrier.
DEVICE u64 block_sum(u64 v, u64 *scratch) {
    for (int w = 16; w > 0; w >>= 1) v += __shfl_xor_sync(FULL_WARP, v, w);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    u64 sum = 0;
    for (int i = 0; i < WARPS; i++) sum += scratch[i];
    return sum;
}

// block_before is the sum over the threads before this one; *total gets that over all.
DEVICE u64 block_before(u64 v, u64 *scratch, u64 *total) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 sum = v;
    for (int w = 1; w < 32; w <<= 1) {
        u64 other = __shfl_up_sync(FULL_WARP, sum, w);
        if (lane >= w) sum += other;
    }
    __syncthreads();
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    u64 before = 0, all = 0;
    for (int i = 0; i < WARPS; i++) {
        if (i < warp) before += scratch[i];
        all += scratch[i];
    }
    *total = all;
    return before + sum - v;
}

// places turns, for the values that a thread marks (bit 4·round + i), their number before the thread's first in each round,
// in the order of the chunk: rounds first, then threads.
DEVICE void places(int before[ROUNDS], u32 marks, u64 *scratch) {
    u64 counts = 0, total; // 16 bits a round: at most 1024 each
    for (int j = 0; j < ROUNDS; j++) counts |= (u64)__popc(marks >> 4 * j & 15) << 16 * j;
    u64 earlier = block_before(counts, scratch, &total);
    int base = 0;
    for (int j = 0; j < ROUNDS; j++) {
        before[j] = base + (int)(earlier >> 16 * j & 0xffff);
        base += (int)(total >> 16 * j & 0xffff);
    }
}

// choose_bin finds, in counts from the highest bin down, the bin in which the wanted-th value lies, and how many values of
// that bin are wanted. bins is a multiple of THREADS.
DEVICE void choose_bin(const int *histogram, int bins, int wanted, u64 *scratch, int *chosen) {
    int each = bins / THREADS, first = bins - 1 - (int)threadIdx.x * each;
    u64 own = 0, total;
    for (int i = 0; i < each; i++) own += (u64)histogram[first - i];
    int above = (int)block_before(own, scratch, &total);
    for (int i = 0; i < each; i++) {
        int count = histogram[first - i];
        if (above < wanted && wanted <= above + count) {
            chosen[0] = first - i;
            chosen[1] = wanted - above;
        }
        above += count;
    }
    __syncthreads();
}

// scale_of is the fraction ((2·sum + high) / ((4·count + 5·highs)·256)) as a binary16, ties to even, at most LARGEST_SCALE.
DEVICE u32 scale_of(u64 sum, u64 high, int count, int highs) {
    u64 numerator = 2 * sum + high, divisor = (u64)(4 * count + 5 * highs) << 8;
    int shift = max(0, 64 - __clzll((i64)(numerator / divisor)) - 11);
    divisor <<= shift;
    u64 r = numerator / divisor, rest = numerator % divisor;
    if (2 * rest > divisor || (2 * rest == divisor && (r & 1))) r++;
    return r < 1024 ? (u32)r : min(LARGEST_SCALE, ((u32)shift << 10) + (u32)r);
}

extern "C" __global__ void KERNEL_BOUNDS(THREADS, 4)
    topk_code(u16 *indices, u8 *codes, u16 *scales, int *flags, float *x, long long n, int k) {
    __shared__ int histogram[BINS];
    __shared__ u64 scratch[WARPS];
    __shared__ u32 packed[CHUNK / 16];
    __shared__ int chosen[2];
    __shared__ u32 scale_bits;

    int t = threadIdx.x;
    i64 start = (i64)blockIdx.x * CHUNK;
    int length = (int)min((i64)CHUNK, n - start);
    int send = (length * k + CHUNK - 1) / CHUNK;
    int stride = (k + 3) / 4;
    x += start;
    indices += (i64)blockIdx.x * k;
    codes += (i64)blockIdx.x * stride;

    float v[4 * ROUNDS];
    u32 exists = 0; // bit 4·round + i, as all marks
    bool vectors = aligned16(x);
#pragma unroll
    for (int j = 0; j < ROUNDS; j++) {
        int at = (j * THREADS + t) * 4;
        if (vectors && at + 4 <= length) {
            load4(v + 4 * j, x + at);
            exists |= 15u << 4 * j;
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v[4 * j + i] = at + i < length ? x[at + i] : 0;
                exists |= (at + i < length ? 1u : 0u) << (4 * j + i);
            }
        }
    }
    int wrong = 0;
#pragma unroll
    for (int i = 0; i < 4 * ROUNDS; i++) {
        u32 m = __float_as_uint(v[i]) & 0x7fffffffu;
        wrong |= m >= 0x7f800000u ? 1 : m > 0x40000000u ? 2 : 0;
    }
    u64 all_wrong = block_sum((u64)(wrong & 1) | (u64)(wrong >> 1) << 32, scratch);
    if (all_wrong != 0) { // the same for all threads
        if (t == 0) {
            atomicOr(flags, ((u32)all_wrong ? 1 : 0) | (all_wrong >> 32 ? 2 : 0));
            scales[blockIdx.x] = 0;
        }
        for (int i = t; i < k; i += THREADS) indices[i] = 0;
        for (int i = t; i < stride; i += THREADS) codes[i] = 0;
        return;
    }

    // The send-th largest magnitude, 11, 10 and 10 bits at a time, the highest first.
    u32 prefix = 0;
    int wanted = send;
#pragma unroll
    for (int pass = 0; pass < 3; pass++) {
        int low = pass == 0 ? 20 : pass == 1 ? 10 : 0, bins = pass == 0 ? 2048 : 1024;
        __syncthreads();
        for (int i = t; i < bins; i += THREADS) histogram[i] = 0;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4 * ROUNDS; i++) {
            u32 m = __float_as_uint(v[i]) & 0x7fffffffu;
            bool same = pass == 0 || m >> (low + 10) == prefix;
            if ((exists >> i & 1) && same) atomicAdd(&histogram[m >> low & (u32)(bins - 1)], 1);
        }
        __syncthreads();
        choose_bin(histogram, bins, wanted, scratch, chosen);
        prefix = pass == 0 ? (u32)chosen[0] : prefix << 10 | (u32)chosen[0];
        wanted = chosen[1];
    }

    // All above the threshold, and of those equal to it the first ones.
    u32 marks = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < 4 * ROUNDS; i++) {
        u32 m = __float_as_uint(v[i]) & 0x7fffffffu;
        marks |= (m > prefix ? 1u : 0u) << i;
        equal |= (m == prefix ? 1u : 0u) << i;
    }
    marks &= exists;
    equal &= exists;
    int before[ROUNDS];
    places(before, equal, scratch);
#pragma unroll
    for (int i = 0; i < 4 * ROUNDS; i++)
        if ((equal >> i & 1) && before[i / 4]++ < wanted) marks |= 1u << i;
    places(before, marks, scratch);

    u64 own = 0;
#pragma unroll
    for (int i = 0; i < 4 * ROUNDS; i++)
        if (marks >> i & 1) own += (u64)(fabsf(v[i]) * 4294967296.0f); // exact but for the truncation
    u64 sum = block_sum(own, scratch);
    u64 high = 0;
    int highs = 0;
#pragma unroll
    for (int i = 0; i < 4 * ROUNDS; i++) {
        u64 q = (u64)(fabsf(v[i]) * 4294967296.0f);
        if ((marks >> i & 1) && q * (u64)send > sum) {
            high += q;
            highs++;
        }
    }
    // A sum of q is below 2^46, the count fits above it.
    u64 both = block_sum(high | (u64)highs << 48, scratch);
    for (int i = t; i < CHUNK / 16; i += THREADS) packed[i] = 0;
    if (t == 0) scale_bits = scale_of(sum, both & 0xffffffffffffull, send, (int)(both >> 48));
    __syncthreads();
    u32 scale = scale_bits;

    if (scale == 0) { // nothing is sent
        for (int i = t; i < send; i += THREADS) indices[i] = (u16)i;
    } else {
        u64 unit = scale < 1024 ? scale : (u64)(1024 + (scale & 1023)) << ((scale >> 10) - 1);
#pragma unroll
        for (int i = 0; i < 4 * ROUNDS; i++) {
            if (!(marks >> i & 1)) continue;
            u64 q = (u64)(fabsf(v[i]) * 4294967296.0f);
            u32 code = 2 * q > 5 * (unit << 8) ? 1 : 0;
            float value = (float)((2 + code) * unit) * 5.9604644775390625e-8f; // 2^-24: exact
            if (__float_as_uint(v[i]) >> 31) {
                value = -value;
                code |= 2;
            }
            int place = before[i / 4]++, at = (i / 4 * THREADS + t) * 4 + i % 4;
            atomicAdd(&packed[place / 16], code << place % 16 * 2);
            indices[place] = (u16)at;
            x[at] = v[i] - value;
        }
    }
    __syncthreads();
    for (int i = t; i < stride; i += THREADS) codes[i] = (u8)(packed[i / 4] >> i % 4 * 8);
    for (int i = send + t; i < k; i += THREADS) indices[i] = 0;
    if (t == 0) scales[blockIdx.x] = (u16)scale;
}
