// What the kernels of the fast mode share: rounding of pairs by the hardware, loads and stores of 8 values of a row, and
// sums over groups of threads. Results are deterministic, but the order of summation is nobody's promise.
#pragma once

#include "ptx.cuh"

#define LOG2E 1.44269504088896340736f
#define LN2 0.69314718055994530942f

// put_wide stores 8 values at an address aligned to 16 bytes.
DEVICE void put_wide(float *p, const float v[8]) { store8(p, v); }
DEVICE void put_wide(bf16 *p, const float v[8]) {
    store_uint4(p, make_uint4(pack_rn(v[0], v[1]), pack_rn(v[2], v[3]), pack_rn(v[4], v[5]), pack_rn(v[6], v[7])));
}

// part loads 8 values of a row at i, 0 beyond its d values.
template <class T> DEVICE void part(float v[8], const T *row, int i, int d, bool wide) {
    if (wide) {
        load8(v, row + i);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = i + j < d ? load(row + i + j) : 0.0f;
    }
}
template <class T> DEVICE void put_part(T *row, int i, int d, const float v[8], bool wide) {
    if (wide) {
        put_wide(row + i, v);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (i + j < d) store(row + i + j, v[j]);
    }
}

// fixed is part for what nobody writes while the kernel runs, such as norm weights: stores do not hold it up.
DEVICE void fixed(float v[8], const float *row, int i, int d, bool wide) {
    if (wide) {
        float4 x = __ldg((const float4 *)(row + i)), y = __ldg((const float4 *)(row + i) + 1);
        v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w, v[4] = y.x, v[5] = y.y, v[6] = y.z, v[7] = y.w;
    } else {
        part(v, row, i, d, false);
    }
}

// Raw is 8 values of a row as they are in memory: several are read before the first is looked at, and wait in half the
// registers if they are bf16.
template <class T> struct Raw;
template <> struct Raw<float> {
    float v[8];
    DEVICE void read(const float *row, int i, int d, bool wide) { part(v, row, i, d, wide); }
    DEVICE void get(float e[8]) const {
#pragma unroll
        for (int j = 0; j < 8; j++) e[j] = v[j];
    }
};
template <> struct Raw<bf16> {
    uint4 v;
    DEVICE void read(const bf16 *row, int i, int d, bool wide) {
        if (wide) {
            v = load_uint4(row + i);
        } else {
            u32 pairs[4];
#pragma unroll
            for (int j = 0; j < 8; j += 2)
                pairs[j / 2] = (i + j < d ? row[i + j].bits : 0u) | (i + j + 1 < d ? (u32)row[i + j + 1].bits << 16 : 0u);
            v = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
    DEVICE void get(float e[8]) const {
        e[0] = low_bf16(v.x), e[1] = high_bf16(v.x), e[2] = low_bf16(v.y), e[3] = high_bf16(v.y);
        e[4] = low_bf16(v.z), e[5] = high_bf16(v.z), e[6] = low_bf16(v.w), e[7] = high_bf16(v.w);
    }
};

// group_sum adds over the aligned groups of width lanes (a power of 2); all lanes of the warp take part.
DEVICE float group_sum(float v, int width) {
    for (int w = width >> 1; w > 0; w >>= 1) v += __shfl_xor_sync(FULL_WARP, v, w);
    return v;
}

// block_sum adds over a block of up to 1024 threads, a multiple of 32; scratch holds 32 values and may be used again after
// the next barrier. Every thread gets the sum.
DEVICE float block_sum(float v, float *scratch) {
    int warps = blockDim.x >> 5, lane = threadIdx.x & 31;
    v = warp_sum(v);
    if (lane == 0) scratch[threadIdx.x >> 5] = v;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

// row_sum adds over the threads of a row: a warp in blocks of [32, n], else the block.
DEVICE float row_sum(float v) {
    __shared__ float scratch[32];
    if (blockDim.x == 32) return warp_sum(v);
    return block_sum(v, scratch);
}
DEVICE i64 own_row() { return (i64)blockIdx.x * blockDim.y + threadIdx.y; }

// fast_sigmoid is 1/(1+e^-x) by the approximate power of two and division.
DEVICE float fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + fast_exp2(-LOG2E * x)); }
