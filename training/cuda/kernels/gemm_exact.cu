// Matrix products of the exact mode: docs/spec/exact.md, section 2.
//
// All kernels take
//
//   float *c, const float *a, const void *b, const u64 *pointers, const int *offsets, const int *list, int experts,
//   int m, int n, int k, int lda, int ldb, int ldc, int add
//
// and set C [m, n] = A·B, or add to it. Row strides lda, ldb, ldc are in values.
//
//   name                          A[i,x] at         B[x,j] at         tile      block
//   gemm_exact_nt_{f32,bf16}      a[i·lda + x]      b[j·ldb + x]      64×64     64 threads      Linear
//   gemm_exact_nn_{f32,bf16}      a[i·lda + x]      b[x·ldb + j]      64×64     64              LinearGradInput
//   gemm_exact_tn_f32             a[x·lda + i]      b[x·ldb + j]      64×64     64              LinearGradWeight
//   gemm_exact_any                by form           by form           64×64     128
//
// gemm_exact_any has two more arguments: int form (0 nt, 1 nn, 2 tn) and int half (1: B is bf16; not with tn).
//
// Grid: (⌈n / tile⌉, ⌈m / tile⌉, 1). Shared memory: static. All but gemm_exact_any take vectors: a and b aligned to 16
// bytes, and along memory strides and lengths multiples of 4 values (8 of bf16), that is k and lda for an A of nt and nn, m
// and lda of tn; k and ldb for a B of nt, n and ldb of nn and tn; likewise c, n and ldc.
//
// With offsets [experts+1] a product is one per expert:
//
//   nt, nn   Rows offsets[e] to offsets[e+1] of A and C belong to expert e, its B is pointers[e]; b and m are not used. An
//            expert whose pointer is 0 is left out: it has weights of the other type, and another launch. Grid y: at least
//            ⌊rows / tile⌋ + experts.
//   tn       For z from 0: C at pointers[z] takes the product over the rows offsets[e] to offsets[e+1] of A and B, e =
//            list[z]; c and k are not used. Nothing happens if there are none. Grid z: length of the list.
#include "exact_product.cuh"

#define PRODUCT_ARGUMENTS                                                                                                           \
    float *c, const float *a, const void *b, const u64 *pointers, const int *offsets, const int *list, int experts, int m, int n, int k, \
        int lda, int ldb, int ldc, int add

// Place is what a block has to compute.
struct Place {
    int x, y;    // tile
    bool nothing;
};

// place numbers tiles so that blocks that run together share rows and columns: eight rows of tiles, column by column.
DEVICE Place place() {
    const int band = 8;
    int linear = blockIdx.x + gridDim.x * blockIdx.y, per = band * gridDim.x;
    int top = linear / per * band, height = min((int)gridDim.y - top, band);
    Place p;
    p.y = top + linear % per % height;
    p.x = linear % per / height;
    p.nothing = false;
    return p;
}

// expert_rows finds whose tile of rows p.y is, and makes everything relative to that expert.
template <int TILE>
DEVICE void expert_rows(Place &p, float *&c, const float *&a, const void *&b, const u64 *pointers, const int *offsets, int experts, int &m, int lda, int ldc) {
    int from = offsets[0];
    for (int e = 0; e < experts; e++) {
        int to = offsets[e + 1], tiles = ceil_div(to - from, TILE);
        if (p.y < tiles) {
            c += (i64)from * ldc, a += (i64)from * lda, b = at_address(b, pointers[e]), m = to - from;
            p.nothing = pointers[e] == 0;
            return;
        }
        p.y -= tiles;
        from = to;
    }
    p.nothing = true;
}

DEVICE void expert_sum(Place &p, float *&c, const float *&a, const void *&b, const u64 *pointers, const int *offsets, const int *list, int &k, int lda, int ldb) {
    int e = list[blockIdx.z], from = offsets[e];
    k = offsets[e + 1] - from;
    c = at_address(c, pointers[blockIdx.z]);
    a += (i64)from * lda, b = (const float *)b + (i64)from * ldb;
    p.nothing = k == 0;
}

#define ROWS_KERNEL(name, WM, WN, type, alongK)                                                                                 \
    extern "C" __global__ void KERNEL_BOUNDS(32 * WM * WN, 1) name(PRODUCT_ARGUMENTS) {                                         \
        typedef Tile<WM, WN> T;                                                                                                 \
        Place p = place();                                                                                                      \
        if (offsets) expert_rows<T::M>(p, c, a, b, pointers, offsets, experts, m, lda, ldc);                                    \
        if (p.nothing) return;                                                                                                  \
        product<WM, WN, type, true, alongK>(c, ldc, a, lda, (const type *)b, ldb, m, n, k, p.y * T::M, p.x * T::N, add != 0);   \
    }

#define SUM_KERNEL(name, WM, WN)                                                                                                \
    extern "C" __global__ void KERNEL_BOUNDS(32 * WM * WN, 1) name(PRODUCT_ARGUMENTS) {                                         \
        typedef Tile<WM, WN> T;                                                                                                 \
        Place p = place();                                                                                                      \
        if (offsets) expert_sum(p, c, a, b, pointers, offsets, list, k, lda, ldb);                                              \
        if (p.nothing) return;                                                                                                  \
        product<WM, WN, float, false, false>(c, ldc, a, lda, (const float *)b, ldb, m, n, k, p.y * T::M, p.x * T::N, add != 0); \
    }

ROWS_KERNEL(gemm_exact_nt_f32, 1, 2, float, true)
ROWS_KERNEL(gemm_exact_nt_bf16, 1, 2, bf16, true)
ROWS_KERNEL(gemm_exact_nn_f32, 1, 2, float, false)
ROWS_KERNEL(gemm_exact_nn_bf16, 1, 2, bf16, false)
SUM_KERNEL(gemm_exact_tn_f32, 1, 2)

// The strides of A and B for the loads one by one come from the form of the product at run time: one kernel is all.
extern "C" __global__ void KERNEL_BOUNDS(128, 3) gemm_exact_any(PRODUCT_ARGUMENTS, int form, int half) {
    const int tile = 64;
    Place p = place();
    bool tn = form == 2;
    if (offsets && tn) expert_sum(p, c, a, b, pointers, offsets, list, k, lda, ldb);
    else if (offsets) expert_rows<tile>(p, c, a, b, pointers, offsets, experts, m, lda, ldc);
    if (p.nothing) return;
    View va = view(a, tn ? 1 : lda, tn ? lda : 1, false);
    View vb = view(b, form == 0 ? 1 : ldb, form == 0 ? ldb : 1, half != 0);
    strided_product(c, ldc, va, vb, m, n, k, p.y * tile, p.x * tile, WHOLE, add != 0);
}
