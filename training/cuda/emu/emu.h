// CUDA C++ as plain C++17: what a kernel may use, declared so that g++ compiles the kernels unchanged. runner/runner.cpp has the
// rest. Included by kernels/common.cuh under BZD_EMULATE and by nothing else; it includes no header of others, so that a
// kernel cannot use by accident what NVRTC lacks.
//
// A block's threads are fibers of one operating-system thread. A fiber runs until it reaches a barrier or a collective.
// Shared arrays are static variables: the .bss of a file's object is its shared memory, poisoned before every block. So a
// kernel file must not hold other variables.
#pragma once

#ifdef BZD_SCAN // the pass that finds the kernels of a file
#define __global__ __bzd_kernel__
#define KERNEL_BOUNDS(threads, blocks) __bzd_bounds__(threads, blocks)
#else
#define __global__
#define KERNEL_BOUNDS(threads, blocks)
#endif
#define __device__
#define __host__
#define __shared__ static
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
#define DYNAMIC_SHARED(name) unsigned char *const name = emu::dynamic_shared

typedef __SIZE_TYPE__ size_t;

// ---- vectors

struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct int3 { int x, y, z; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// TensorMap stands in for a CUtensorMap.
struct alignas(64) TensorMap {
    unsigned long long opaque[16];
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
#define warpSize 32

// ---- the runner

namespace emu {
typedef unsigned u32;
typedef unsigned long long u64;

extern unsigned char *dynamic_shared;
extern int lane; // of the running thread in its warp

// fail ends the launch with an error.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void sync_threads(int line);
int sync_count(int line, int predicate); // number of threads of the block with a true predicate

// A collective waits for all threads of mask. exchange gives each thread the bits of thread source; ballot those lanes whose
// bits are not 0.
u64 exchange(int line, u32 mask, u64 bits, int source);
u32 ballot(int line, u32 mask, int predicate);
void sync_warp(int line, u32 mask);

void copy_async(void *shared, const void *global, bool pred);
void copy_commit();
void copy_wait(int pending);
void load_matrices(int line, u32 *r, const void *row, int matrices, bool trans);
template <int matrices, bool trans> inline void load_matrix(int line, u32 *r, const void *row) {
    load_matrices(line, r, row, matrices, trans);
}
void multiply(int line, float *c, const u32 *a, const u32 *b);

template <class T> inline u64 bits_of(T v) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    u64 b = 0;
    __builtin_memcpy(&b, &v, sizeof v);
    return b;
}
template <class T> inline T value_of(u64 b) {
    T v;
    __builtin_memcpy(&v, &b, sizeof v);
    return v;
}
template <class T> inline T shfl(int line, u32 mask, T v, int source, int width = 32) {
    return value_of<T>(exchange(line, mask, bits_of(v), (lane & ~(width - 1)) | (source & (width - 1))));
}
template <class T> inline T shfl_up(int line, u32 mask, T v, unsigned delta, int width = 32) {
    int source = lane - (int)delta;
    return value_of<T>(exchange(line, mask, bits_of(v), source < (lane & ~(width - 1)) ? lane : source));
}
template <class T> inline T shfl_down(int line, u32 mask, T v, unsigned delta, int width = 32) {
    int source = lane + (int)delta;
    return value_of<T>(exchange(line, mask, bits_of(v), source >= (lane & ~(width - 1)) + width ? lane : source));
}
template <class T> inline T shfl_xor(int line, u32 mask, T v, int with, int width = 32) {
    int source = lane ^ with;
    return value_of<T>(exchange(line, mask, bits_of(v), source >= (lane & ~(width - 1)) + width ? lane : source));
}

// ---- the registry: kernels by name, their parameters as letters (p pointer, i u int, f float, l L long long, T TensorMap, ?
// other)

typedef void (*Call)(const u64 *slots);
struct Registered {
    const char *name;
    Call call;
    const char *parameters;
    unsigned threads; // most threads of a block
};
struct Module {
    const Registered *kernels;
    int count;
};

template <class T> struct Letter { static constexpr char value = '?'; };
template <class T> struct Letter<T *> { static constexpr char value = 'p'; };
template <> struct Letter<int> { static constexpr char value = 'i'; };
template <> struct Letter<unsigned> { static constexpr char value = 'u'; };
template <> struct Letter<float> { static constexpr char value = 'f'; };
template <> struct Letter<long long> { static constexpr char value = 'l'; };
template <> struct Letter<unsigned long long> { static constexpr char value = 'L'; };
template <> struct Letter<TensorMap> { static constexpr char value = 'T'; };

// Argument finds a kernel's argument: its slot has the value, or the number of the slot where a longer one starts.
template <class T> struct Argument {
    static T get(const u64 *slots, unsigned i) { return value_of<T>(slots[i]); }
};
template <> struct Argument<TensorMap> {
    static TensorMap get(const u64 *slots, unsigned i) {
        TensorMap t;
        __builtin_memcpy(&t, slots + slots[i], sizeof t);
        return t;
    }
};

template <unsigned... I> struct Indices {};
template <unsigned N, unsigned... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <unsigned... I> struct MakeIndices<0, I...> { typedef Indices<I...> type; };

template <class F, F *f> struct Entry;
template <class... A, void (*f)(A...)> struct Entry<void(A...), f> {
    static constexpr char parameters[] = {Letter<A>::value..., 0};
    template <unsigned... I> static void unpack(const u64 *slots, Indices<I...>) { f(Argument<A>::get(slots, I)...); }
    static void call(const u64 *slots) { unpack(slots, typename MakeIndices<sizeof...(A)>::type()); }
};
#define BZD_ENTRY(name, threads) {#name, emu::Entry<decltype(name), &name>::call, emu::Entry<decltype(name), &name>::parameters, (unsigned)(threads)}
} // namespace emu

// ---- barriers and collectives; the line tells two of them apart

#define __syncthreads() emu::sync_threads(__LINE__)
#define __syncthreads_count(p) emu::sync_count(__LINE__, p)
#define __syncthreads_or(p) (emu::sync_count(__LINE__, p) != 0)
#define __syncwarp(...) emu::sync_warp(__LINE__, emu::mask_or_full(__VA_ARGS__))
#define __shfl_sync(...) emu::shfl(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emu::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emu::shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emu::shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, p) emu::ballot(__LINE__, mask, p)
#define __any_sync(mask, p) (emu::ballot(__LINE__, mask, p) != 0)
#define __all_sync(mask, p) (emu::ballot(__LINE__, mask, !(p)) == 0)
namespace emu {
inline u32 mask_or_full(u32 mask = 0xffffffffu) { return mask; }
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- ptx.cuh

#define cp_async16(...) emu::copy_async(__VA_ARGS__)
#define cp_async_commit() emu::copy_commit()
template <int N> inline void cp_async_wait() { emu::copy_wait(N); }
#define ldmatrix_x4(...) emu::load_matrix<4, false>(__LINE__, __VA_ARGS__)
#define ldmatrix_x4_trans(...) emu::load_matrix<4, true>(__LINE__, __VA_ARGS__)
#define ldmatrix_x2(...) emu::load_matrix<2, false>(__LINE__, __VA_ARGS__)
#define ldmatrix_x2_trans(...) emu::load_matrix<2, true>(__LINE__, __VA_ARGS__)
#define mma_m16n8k16_bf16(...) emu::multiply(__LINE__, __VA_ARGS__)

// ---- arithmetic

extern "C" {
float fmaf(float, float, float) noexcept;
double fma(double, double, double) noexcept;
float sqrtf(float) noexcept;
double sqrt(double) noexcept;
float fabsf(float) noexcept;
double fabs(double) noexcept;
float floorf(float) noexcept;
float ceilf(float) noexcept;
float rintf(float) noexcept;
float truncf(float) noexcept;
float fmaxf(float, float) noexcept;
float fminf(float, float) noexcept;
float expf(float) noexcept;
float exp2f(float) noexcept;
float logf(float) noexcept;
float log2f(float) noexcept;
float tanhf(float) noexcept;
float copysignf(float, float) noexcept;
}
inline float fast_exp2(float x) { return exp2f(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return fabsf(x) == __builtin_inff(); }

inline int __float_as_int(float x) { return emu::value_of<int>(emu::bits_of(x)); }
inline unsigned __float_as_uint(float x) { return emu::value_of<unsigned>(emu::bits_of(x)); }
inline float __int_as_float(int x) { return emu::value_of<float>(emu::bits_of(x)); }
inline float __uint_as_float(unsigned x) { return emu::value_of<float>(emu::bits_of(x)); }
inline long long __double_as_longlong(double x) { return emu::value_of<long long>(emu::bits_of(x)); }
inline double __longlong_as_double(long long x) { return emu::value_of<double>(emu::bits_of(x)); }

// Conversions to integers saturate and take NaN to 0, as the GPU does; the plain cast of C++ leaves them undefined.
inline int __float2int_rn(float x) {
    x = rintf(x);
    return x != x ? 0 : x >= 2147483648.0f ? 0x7fffffff : x <= -2147483648.0f ? -0x7fffffff - 1 : (int)x;
}
inline int __float2int_rz(float x) { return __float2int_rn(truncf(x)); }

#define BZD_MIN_MAX(T)                                  \
    inline T min(T a, T b) { return b < a ? b : a; }     \
    inline T max(T a, T b) { return a < b ? b : a; }
BZD_MIN_MAX(int)
BZD_MIN_MAX(unsigned)
BZD_MIN_MAX(long long)
BZD_MIN_MAX(unsigned long long)
#undef BZD_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline int abs(int x) { return x < 0 ? -x : x; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r = r << 1 | (x >> i & 1);
    return r;
}
inline int __mul24(int a, int b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) << (n & 31) >> 32);
}

template <class T> inline T __ldg(const T *p) { return *p; }

// One thread runs at a time, so atomics are plain.
#define BZD_ATOMIC(name, expression)                                            \
    template <class T, class U> inline T name(T *p, U v) {                      \
        static_assert((T)0.5 == (T)0, "integers only: the order of adding floats is not fixed"); \
        T old = *p, value = (T)v;                                               \
        *p = expression;                                                        \
        return old;                                                             \
    }
BZD_ATOMIC(atomicAdd, old + value)
BZD_ATOMIC(atomicSub, old - value)
BZD_ATOMIC(atomicMax, old > value ? old : value)
BZD_ATOMIC(atomicMin, old < value ? old : value)
BZD_ATOMIC(atomicOr, old | value)
BZD_ATOMIC(atomicAnd, old & value)
BZD_ATOMIC(atomicXor, old ^ value)
BZD_ATOMIC(atomicExch, value)
#undef BZD_ATOMIC
template <class T> inline T atomicCAS(T *p, T compare, T v) {
    T old = *p;
    if (old == compare) *p = v;
    return old;
}

#include "sm90.h"
