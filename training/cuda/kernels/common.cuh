// What every kernel needs: types, aligned accesses, and the exact arithmetic of docs/spec/exact.md.
//
// The file is compiled by NVRTC without any other header, and as plain C++ with BZD_EMULATE set, where emu.h supplies what
// CUDA has built in. NVRTC runs with --fmad=false and without flushing or fast division: a·b + c is two roundings,
// 1/x and sqrtf are correctly rounded, and only fmaf fuses. What is written here relies on it.
#pragma once

#ifdef BZD_EMULATE
#include "../emu/emu.h"
#else
#define KERNEL_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

#define DEVICE __device__ __forceinline__

#define FULL_WARP 0xffffffffu

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// ---- bfloat16

struct bf16 {
    unsigned short bits;
};

// to_bf16 rounds to nearest, ties to even; a NaN stays one, infinities too.
DEVICE bf16 to_bf16(float x) {
    u32 b = __float_as_uint(x);
    u32 rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    u32 quiet = (b >> 16) | 0x40u;
    bf16 r;
    r.bits = (u16)((b & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    return r;
}

DEVICE float from_bf16(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// pack_bf16 puts lo in the low half: the order of memory.
DEVICE u32 pack_bf16(float lo, float hi) { return (u32)to_bf16(lo).bits | (u32)to_bf16(hi).bits << 16; }

DEVICE float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// ---- access of one value: the same name for both element types, so that kernels are templates over them

DEVICE float load(const float *p) { return *p; }
DEVICE float load(const bf16 *p) { return from_bf16(*p); }
DEVICE void store(float *p, float x) { *p = x; }
DEVICE void store(bf16 *p, float x) { *p = to_bf16(x); }

// ---- access of vectors; p must be aligned to the whole vector

DEVICE bool aligned16(const void *p) { return ((u64)p & 15) == 0; }
DEVICE bool aligned8(const void *p) { return ((u64)p & 7) == 0; }

DEVICE float4 load_float4(const float *p) { return *(const float4 *)p; }
DEVICE void store_float4(float *p, float4 v) { *(float4 *)p = v; }
DEVICE float2 load_float2(const float *p) { return *(const float2 *)p; }
DEVICE void store_float2(float *p, float2 v) { *(float2 *)p = v; }
DEVICE uint4 load_uint4(const void *p) { return *(const uint4 *)p; }
DEVICE void store_uint4(void *p, uint4 v) { *(uint4 *)p = v; }
DEVICE uint2 load_uint2(const void *p) { return *(const uint2 *)p; }
DEVICE void store_uint2(void *p, uint2 v) { *(uint2 *)p = v; }
DEVICE int2 load_int2(const int *p) { return *(const int2 *)p; }
DEVICE void store_int2(int *p, int2 v) { *(int2 *)p = v; }

// load4 and store4: 4 values, p aligned to 16 bytes (float) or 8 (bf16). load8 and store8: p aligned to 16 bytes.
DEVICE void load4(float v[4], const float *p) {
    float4 x = load_float4(p);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
}
DEVICE void load4(float v[4], const bf16 *p) {
    uint2 x = load_uint2(p);
    v[0] = low_bf16(x.x), v[1] = high_bf16(x.x), v[2] = low_bf16(x.y), v[3] = high_bf16(x.y);
}
DEVICE void store4(float *p, const float v[4]) { store_float4(p, make_float4(v[0], v[1], v[2], v[3])); }
DEVICE void store4(bf16 *p, const float v[4]) {
    store_uint2(p, make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])));
}
DEVICE void load8(float v[8], const float *p) {
    load4(v, p);
    load4(v + 4, p + 4);
}
DEVICE void load8(float v[8], const bf16 *p) {
    uint4 x = load_uint4(p);
    v[0] = low_bf16(x.x), v[1] = high_bf16(x.x), v[2] = low_bf16(x.y), v[3] = high_bf16(x.y);
    v[4] = low_bf16(x.z), v[5] = high_bf16(x.z), v[6] = low_bf16(x.w), v[7] = high_bf16(x.w);
}
DEVICE void store8(float *p, const float v[8]) {
    store4(p, v);
    store4(p + 4, v + 4);
}
DEVICE void store8(bf16 *p, const float v[8]) {
    store_uint4(p, make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])));
}

// ---- integers

DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEVICE int round_up(int a, int b) { return (a + b - 1) / b * b; }

// ---- sums and maxima of a warp for kernels without a promised order; every lane gets the result

DEVICE float warp_sum(float v) {
    for (int w = 16; w > 0; w >>= 1) v += __shfl_xor_sync(FULL_WARP, v, w);
    return v;
}
DEVICE float warp_max(float v) {
    for (int w = 16; w > 0; w >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, w));
    return v;
}

// ---- exact: reductions (section 3)

#define NEGATIVE_INFINITY __uint_as_float(0xff800000u)

// exact_max is the literal choice: a NaN on either side gives b, and so do equal values.
DEVICE float exact_max(float a, float b) { return a > b ? a : b; }

// fold16_sum and fold16_max fold the accumulators that the 16 threads of each half-warp hold, thread l of the half lane l. All
// 32 threads of the warp must take part; every thread gets its half's result. A sum has the same bits whichever operand is
// left (but for the payload of a NaN), so all lanes add; a maximum has not, and orders its operands.
DEVICE float fold16_sum(float v) {
    for (int w = 8; w > 0; w >>= 1) v = v + __shfl_xor_sync(FULL_WARP, v, w);
    return v;
}
DEVICE float fold16_max(float v) {
    int lane = threadIdx.x & 15;
    for (int w = 8; w > 0; w >>= 1) {
        float other = __shfl_xor_sync(FULL_WARP, v, w);
        v = lane & w ? exact_max(other, v) : exact_max(v, other);
    }
    return v;
}

// fold_sum and fold_max: the same, one thread holding all 16 lanes. They spoil l.
DEVICE float fold_sum(float l[16]) {
#pragma unroll
    for (int w = 8; w > 0; w >>= 1)
#pragma unroll
        for (int i = 0; i < w; i++) l[i] = l[i] + l[i + w];
    return l[0];
}
DEVICE float fold_max(float l[16]) {
#pragma unroll
    for (int w = 8; w > 0; w >>= 1)
#pragma unroll
        for (int i = 0; i < w; i++) l[i] = exact_max(l[i], l[i + w]);
    return l[0];
}

// ---- exact: exp, sigmoid, SiLU (section 4)

DEVICE float exact_exp(float x) {
    const float lo = -104.0f, hi = 88.72f, magic = 12582912.0f;
    x = x > lo ? x : lo;
    x = x < hi ? x : hi;
    float t = fmaf(x, __uint_as_float(0x3fb8aa3bu), magic);
    float n = t - magic;
    float r = fmaf(-n, __uint_as_float(0x3f317200u), x);
    r = fmaf(-n, __uint_as_float(0x35bfbe8eu), r);
    float p = __uint_as_float(0x39500d01u);
    p = fmaf(p, r, __uint_as_float(0x3ab60b61u));
    p = fmaf(p, r, __uint_as_float(0x3c088889u));
    p = fmaf(p, r, __uint_as_float(0x3d2aaaabu));
    p = fmaf(p, r, __uint_as_float(0x3e2aaaabu));
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    int k = (int)(__float_as_uint(t) - __float_as_uint(magic));
    int h = k >> 1;
    return (p * __uint_as_float((u32)(h + 127) << 23)) * __uint_as_float((u32)(k - h + 127) << 23);
}

DEVICE float exact_sigmoid(float x) { return 1.0f / (1.0f + exact_exp(-x)); }

DEVICE float exact_silumul(float g, float u) { return (g * exact_sigmoid(g)) * u; }

// exact_silumul_grad gives the gradients of silumul(g, u) for dy.
DEVICE void exact_silumul_grad(float g, float u, float dy, float *dg, float *du) {
    float s = exact_sigmoid(g);
    float z = g * s;
    *du = dy * z;
    *dg = (dy * u) * fmaf(z, 1.0f - s, s);
}

// ---- exact: the double logarithm (section 10). The intrinsics round once and are never fused, whatever the flags.

DEVICE double exact_log(double x) {
    const double nan = __longlong_as_double(0x7ff8000000000000ll), inf = __longlong_as_double(0x7ff0000000000000ll);
    if (x != x || x == inf) return x;
    if (x < 0) return nan;
    if (x == 0) return -inf;
    int k = 0;
    if (x < __longlong_as_double(0x0010000000000000ll)) { // a denormal
        x = __dmul_rn(x, 18014398509481984.0);
        k = -54;
    }
    i64 bits = __double_as_longlong(x);
    k += (int)(bits >> 52) - 1022;
    double m = __longlong_as_double((bits & 0x000fffffffffffffll) | 0x3fe0000000000000ll);
    if (m < __longlong_as_double(0x3fe6a09e667f3bcdll)) {
        m = __dmul_rn(m, 2.0);
        k--;
    }
    double f = __dadd_rn(m, -1.0);
    double s = __ddiv_rn(f, __dadd_rn(2.0, f));
    double q = __dmul_rn(s, s);
    double w = __dmul_rn(q, q);
    double t1 = __longlong_as_double(0x3fc2f112df3e5244ll);
    t1 = __dadd_rn(__dmul_rn(t1, w), __longlong_as_double(0x3fc7466496cb03dell));
    t1 = __dadd_rn(__dmul_rn(t1, w), __longlong_as_double(0x3fd2492494229359ll));
    t1 = __dadd_rn(__dmul_rn(t1, w), __longlong_as_double(0x3fe5555555555593ll));
    t1 = __dmul_rn(q, t1);
    double t2 = __longlong_as_double(0x3fc39a09d078c69fll);
    t2 = __dadd_rn(__dmul_rn(t2, w), __longlong_as_double(0x3fcc71c51d8e78afll));
    t2 = __dadd_rn(__dmul_rn(t2, w), __longlong_as_double(0x3fd999999997fa04ll));
    t2 = __dmul_rn(w, t2);
    double t = __dadd_rn(t1, t2);
    double h = __dmul_rn(__dmul_rn(0.5, f), f);
    double kd = (double)k;
    double small = __dadd_rn(__dmul_rn(s, __dadd_rn(h, t)), __dmul_rn(kd, __longlong_as_double(0x3dea39ef35793c76ll)));
    double rest = __dadd_rn(__dadd_rn(h, -small), -f);
    return __dadd_rn(__dmul_rn(kd, __longlong_as_double(0x3fe62e42fee00000ll)), -rest);
}
