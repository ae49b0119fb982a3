// The instructions of kernels/sm90.cuh as plain C++; runner/sm90.h has the rest. Included by emu.h alone.
//
// What the copy engine and the tensor cores do happens as late as it may: when every thread of the block waits for something, and
// only as far as somebody waits for it. Products come first then, those of one warp at a time, then stores, then loads, the
// oldest one first; with Config.Reverse all of it the other way around. Until then the registers of a result and the target of a
// load hold NaNs, and operands and what is stored are read only then. With Config.Prompt all of it happens where it is asked for.
#pragma once

namespace emu {
u32 shared_address(const void *p);

void init_bar(int line, const char *text, u64 *bar, int arrivals);
void expect_bar(int line, const char *text, u64 *bar, int bytes);
void arrive_bar(int line, const char *text, u64 *bar);
void wait_bar(int line, const char *text, u64 *bar, int parity);
void named_bar(int line, bool wait, int id, int threads);

void acquire_map(const TensorMap *map);
void load_box(int line, void *shared, const TensorMap *map, int row, int col, u64 *bar);
void load_bulk(int line, void *shared, const void *global, int bytes, u64 *bar);
void store_box(int line, bool add, const TensorMap *map, int row, int col, const void *shared);
void store_commit();
void store_wait(int pending);
void publish();

void store_matrices(int line, void *row, u32 r0, u32 r1, u32 r2, u32 r3);
void set_registers(int line, int n, bool more);

// Factors are what a thread gives to a product of a warpgroup: d holds length values; a comes from registers if fragment is not
// null.
struct Factors {
    float *d;
    int length, trans_a, trans_b;
    bool add;
    const u32 *fragment;
    u64 a, b;
};
void product(int line, const Factors &f);
void product_fence(int line);
void product_commit(int line);
void product_wait(int line, int pending);
} // namespace emu

inline emu::u32 shared_address(const void *p) { return emu::shared_address(p); }

// The text names the barrier in reports.
#define barrier_init(...) emu::init_bar(__LINE__, #__VA_ARGS__, __VA_ARGS__)
#define barrier_init_fence() ((void)0)
#define barrier_expect(...) emu::expect_bar(__LINE__, #__VA_ARGS__, __VA_ARGS__)
#define barrier_arrive(...) emu::arrive_bar(__LINE__, #__VA_ARGS__, __VA_ARGS__)
#define barrier_wait(...) emu::wait_bar(__LINE__, #__VA_ARGS__, __VA_ARGS__)
#define named_barrier(...) emu::named_bar(__LINE__, true, __VA_ARGS__)
#define named_arrive(...) emu::named_bar(__LINE__, false, __VA_ARGS__)

#define tma_acquire_map(map) emu::acquire_map(map)
#define tma_load(...) emu::load_box(__LINE__, __VA_ARGS__)
#define bulk_load(...) emu::load_bulk(__LINE__, __VA_ARGS__)
#define tma_store(...) emu::store_box(__LINE__, false, __VA_ARGS__)
#define tma_add(...) emu::store_box(__LINE__, true, __VA_ARGS__)
#define bulk_commit() emu::store_commit()
template <int N> inline void bulk_wait_read() { emu::store_wait(N); }
#define async_fence() emu::publish()
#define stmatrix_x4(...) emu::store_matrices(__LINE__, __VA_ARGS__)

template <int N> inline void registers_less(int line = __builtin_LINE()) {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "registers of a thread");
    emu::set_registers(line, N, false);
}
template <int N> inline void registers_more(int line = __builtin_LINE()) {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "registers of a thread");
    emu::set_registers(line, N, true);
}
#define wgmma_fence() emu::product_fence(__LINE__)
#define wgmma_commit() emu::product_commit(__LINE__)
template <int N> inline void wgmma_wait(int line = __builtin_LINE()) { emu::product_wait(line, N); }

template <int TRANS_A, int TRANS_B, int N>
inline void wgmma(float (&d)[N], emu::u64 a, emu::u64 b, bool add, int line = __builtin_LINE()) {
    emu::product(line, {d, N, TRANS_A, TRANS_B, add, nullptr, a, b});
}
template <int TRANS_B, int N> inline void product(float (&d)[N], emu::u64 a, emu::u64 b, bool add, int line = __builtin_LINE()) {
    emu::product(line, {d, N, 0, TRANS_B, add, nullptr, a, b});
}
template <int TRANS_B, int N>
inline void product(float (&d)[N], const emu::u32 (&a)[4], emu::u64 b, bool add, int line = __builtin_LINE()) {
    emu::product(line, {d, N, 0, TRANS_B, add, a, 0, b});
}
template <int N> inline void settle(float (&)[N]) {}

// Clusters are not emulated: a block is a cluster of its own.
inline int cluster_rank() { return 0; }
inline void cluster_sync() { emu::fail("clusters are not emulated"); }
inline void barrier_arrive_at(emu::u64 *, int) { emu::fail("clusters are not emulated"); }
inline void barrier_wait_cluster(emu::u64 *, int) { emu::fail("clusters are not emulated"); }
inline void tma_prefetch_map(const TensorMap *) {}
inline void tma_load_multicast(void *, const TensorMap *, int, int, emu::u64 *, unsigned short) { emu::fail("clusters are not emulated"); }
