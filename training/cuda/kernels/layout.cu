// Movement of values that no other kernel does on its way.
//
//   widen_rows_{ff,fb,bf,bb}(T1 *y, const T0 *x, long long rows, int from, int to)
//     y[r, j] = x[r, j] for j < from, else 0: rows of from values become rows of to values, longer or shorter. f is float, b
//     bf16. grid [ceil(rows·to/256)], block [256]
//   zero_bf16(bf16 *y, long long n)   for addresses that are no multiple of 4. grid [ceil(n/256)], block [256]
#include "common.cuh"

template <class X, class Y> DEVICE void widen_rows(Y *y, const X *x, i64 rows, int from, int to) {
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= rows * to) return;
    i64 r = i / to;
    int j = (int)(i - r * to);
    store(y + i, j < from ? load(x + r * from + j) : 0.0f);
}

#define WIDEN_ROWS(name, X, Y)                                                                                             \
    extern "C" __global__ void KERNEL_BOUNDS(256, 1) name(Y *y, const X *x, i64 rows, int from, int to) {                  \
        widen_rows(y, x, rows, from, to);                                                                                  \
    }
WIDEN_ROWS(widen_rows_ff, float, float)
WIDEN_ROWS(widen_rows_fb, float, bf16)
WIDEN_ROWS(widen_rows_bf, bf16, float)
WIDEN_ROWS(widen_rows_bb, bf16, bf16)

extern "C" __global__ void KERNEL_BOUNDS(256, 1) zero_bf16(bf16 *y, i64 n) {
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i].bits = 0;
}
