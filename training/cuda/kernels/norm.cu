// Norms of the fast mode: over rows, and over the heads of a row with rotary embedding. Arithmetic is binary32 whatever the
// element types; results are the same from run to run, for one launch shape.
//
// The letters after a name are the types of the arguments marked T0, T1, … in turn: f float, b bfloat16. Weights w, cos, sin
// and inv are float. Any alignment and size is right; 16-byte aligned pointers and rows of a multiple of 8 values are fast.
// rows may be 0 only where the grid would be: launch nothing then. No dynamic shared memory.
//
// ROWS: d ≤ 1024: a warp per row, block [32, 8], grid [ceil(rows/8)]; else a block per row, of 64 threads for d ≤ 2048, 128 for
// d ≤ 4096, else 256.
//
//   rmsnorm_{ff,fb,bb}(T1 *y, float *inv, const T0 *x, const float *w, int rows, int d, float eps)                     ROWS
//   rmsnorm_grad_{fff,fbf,bbf,bbb}(T2 *dx, const T2 *base, const T1 *dy, const float *inv, const T0 *x, const float *w, int rows,
//     int d)   dx = gradient + base; base may be dx, or 0 for none                                                     ROWS
//   rmsnorm_wgrad_{ff,fb,bb}(float *partial, const T1 *dy, const float *inv, const T0 *x, int rows, int d)
//     partial [parts, d] gets the gradient of w in parts shares: block [256], grid [ceil(d/256), parts]; then
//   reduce_rows(float *y, const float *partial, int parts, int n, int add)   y (+)= the sum of rows; grid [ceil(n/32)],
//     block [256]
//   headnorm_rope_{ff,fb,bb}(T1 *y, float *inv, const T0 *x, const float *w, const float *cos, const float *sin, int rows,
//     int heads, int seq, int hd, int ldx, int ldy, float eps)   rows of x are ldx apart, of y ldy; inv [rows, heads]
//     a warp per row: block [256], grid [ceil(rows/8)]; hd even, ≤ 512
//   headnorm_rope_grad_{fff,bff,bbb}(T2 *dx, float *partial, const T1 *dy, const float *inv, const T0 *x, const float *w,
//     const float *cos, const float *sin, int rows, int heads, int seq, int hd, int ldx, int ldy)   rows of dx are ldx
//     apart, of dy ldy. As above, but any smaller grid will do too; partial [gridDim, hd], for reduce_rows, or 0. dx may be dy.
#include "fast.cuh"

// each_part goes through the thread's vectors of a row: held(k, i) for the k-th of those that registers keep, rest(i) for
// what is beyond them.
template <int HELD, class Held, class Rest> DEVICE void each_part(int d, Held held, Rest rest) {
    int width = blockDim.x * 8, i = threadIdx.x * 8;
#pragma unroll
    for (int k = 0; k < HELD; k++)
        if (i + k * width < d) held(k, i + k * width);
    for (i += HELD * width; i < d; i += width) rest(i);
}

// held is how many vectors of a row a thread keeps between two passes: enough to have many loads under way. Rows that must
// be read value by value are not worth the code.
template <bool WIDE> constexpr int held = WIDE ? 4 : 1;

template <bool WIDE, class X, class Y>
DEVICE void rmsnorm_row(Y *y, float *inv, const X *x, const float *w, int d, float eps) {
    constexpr int N = held<WIDE>;
    Raw<X> v[N];
    float total = 0.0f;
    auto square = [&](const Raw<X> &from) {
        float e[8];
        from.get(e);
#pragma unroll
        for (int j = 0; j < 8; j++) total = fmaf(e[j], e[j], total);
    };
    each_part<N>(d, [&](int k, int i) { v[k].read(x, i, d, WIDE); }, [](int) {});
    each_part<N>(
        d, [&](int k, int) { square(v[k]); },
        [&](int i) {
            Raw<X> e;
            e.read(x, i, d, WIDE);
            square(e);
        });
    float r = 1.0f / sqrtf(row_sum(total) / (float)d + eps);
    if (threadIdx.x == 0) *inv = r;
    auto write = [&](const Raw<X> &from, int i) {
        float e[8], f[8];
        from.get(e);
        fixed(f, w, i, d, WIDE);
#pragma unroll
        for (int j = 0; j < 8; j++) f[j] *= e[j] * r;
        put_part(y, i, d, f, WIDE);
    };
    each_part<N>(
        d, [&](int k, int i) { write(v[k], i); },
        [&](int i) {
            Raw<X> e;
            e.read(x, i, d, WIDE);
            write(e, i);
        });
}

template <class X, class Y> DEVICE void rmsnorm(Y *y, float *inv, const X *x, const float *w, int rows, int d, float eps) {
    i64 row = own_row();
    if (row >= rows) return;
    bool wide = d % 8 == 0 && aligned16(y) && aligned16(x) && aligned16(w);
    if (wide)
        rmsnorm_row<true>(y + row * d, inv + row, x + row * d, w, d, eps);
    else
        rmsnorm_row<false>(y + row * d, inv + row, x + row * d, w, d, eps);
}

template <bool WIDE, class X, class G, class D>
DEVICE void rmsnorm_grad_row(D *dx, const D *base, const G *dy, float r, const X *x, const float *w, int d) {
    constexpr int N = held<WIDE>;
    Raw<X> v[N];
    Raw<G> g[N];
    Raw<D> h[N];
    float c = 0.0f, b;
    auto dot = [&](const Raw<X> &from, const Raw<G> &grad, int i) {
        float e[8], f[8], k[8];
        from.get(e);
        grad.get(f);
        fixed(k, w, i, d, WIDE);
#pragma unroll
        for (int j = 0; j < 8; j++) c = fmaf(f[j] * k[j], e[j], c);
    };
    each_part<N>(
        d,
        [&](int k, int i) {
            v[k].read(x, i, d, WIDE);
            g[k].read(dy, i, d, WIDE);
        },
        [](int) {});
    each_part<N>(
        d, [&](int k, int i) { dot(v[k], g[k], i); },
        [&](int i) {
            Raw<X> e;
            Raw<G> f;
            e.read(x, i, d, WIDE);
            f.read(dy, i, d, WIDE);
            dot(e, f, i);
        });
    if (base) each_part<N>(d, [&](int k, int i) { h[k].read(base, i, d, WIDE); }, [](int) {});
    b = -(row_sum(c) * r * r * r / (float)d);
    auto write = [&](const Raw<X> &from, const Raw<G> &grad, const Raw<D> &onto, int i) {
        float e[8], f[8], k[8], sum[8];
        from.get(e);
        grad.get(f);
        fixed(k, w, i, d, WIDE);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] = 0.0f;
        if (base) onto.get(sum);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += fmaf(b, e[j], f[j] * k[j] * r);
        put_part(dx, i, d, sum, WIDE);
    };
    each_part<N>(
        d, [&](int k, int i) { write(v[k], g[k], h[k], i); },
        [&](int i) {
            Raw<X> e;
            Raw<G> f;
            Raw<D> onto;
            e.read(x, i, d, WIDE);
            f.read(dy, i, d, WIDE);
            if (base) onto.read(base, i, d, WIDE);
            write(e, f, onto, i);
        });
}

template <class X, class G, class D>
DEVICE void rmsnorm_grad(D *dx, const D *base, const G *dy, const float *inv, const X *x, const float *w, int rows, int d) {
    i64 row = own_row();
    if (row >= rows) return;
    bool wide = d % 8 == 0 && aligned16(dx) && aligned16(base) && aligned16(dy) && aligned16(x) && aligned16(w);
    if (base) base += row * d;
    if (wide)
        rmsnorm_grad_row<true>(dx + row * d, base, dy + row * d, inv[row], x + row * d, w, d);
    else
        rmsnorm_grad_row<false>(dx + row * d, base, dy + row * d, inv[row], x + row * d, w, d);
}

// column_sum adds the 8 values of the threads with the same threadIdx.x mod 32 of a block of 256; thread t < 256 of the
// block then has the sum of column t.
DEVICE float column_sum(const float v[8]) {
    __shared__ float sums[8][257];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int j = 0; j < 8; j++) sums[warp][lane * 8 + j] = v[j];
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) total += sums[i][threadIdx.x];
    return total;
}

template <class X, class G>
DEVICE void rmsnorm_wgrad(float *partial, const G *dy, const float *inv, const X *x, int rows, int d) {
    int i = blockIdx.x * 256 + (threadIdx.x & 31) * 8, parts = gridDim.y;
    bool wide = d % 8 == 0 && aligned16(dy) && aligned16(x);
    int from = (int)((i64)rows * blockIdx.y / parts), to = (int)((i64)rows * (blockIdx.y + 1) / parts);
    float total[8] = {};
    if (i < d) {
#pragma unroll 4
        for (int r = from + (threadIdx.x >> 5); r < to; r += 8) {
            float e[8], f[8], scale = inv[r];
            part(e, x + (i64)r * d, i, d, wide);
            part(f, dy + (i64)r * d, i, d, wide);
#pragma unroll
            for (int j = 0; j < 8; j++) total[j] = fmaf(f[j], e[j] * scale, total[j]);
        }
    }
    float sum = column_sum(total);
    i = blockIdx.x * 256 + threadIdx.x;
    if (i < d) partial[(i64)blockIdx.y * d + i] = sum;
}

extern "C" __global__ void KERNEL_BOUNDS(256, 1) reduce_rows(float *y, const float *partial, int parts, int n, int add) {
    __shared__ float sums[8][33];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, i = blockIdx.x * 32 + lane;
    float total = 0.0f;
    if (i < n)
#pragma unroll 4
        for (int p = warp; p < parts; p += 8) total += partial[(i64)p * n + i];
    sums[warp][lane] = total;
    __syncthreads();
    if (warp == 0 && i < n) {
        for (int k = 1; k < 8; k++) total += sums[k][lane];
        y[i] = add ? y[i] + total : total;
    }
}

// Heads: a warp has a row, groups of its lanes the heads of it in turn. A thread has the same 8 values, and 8 half a head
// further, of every head that its group has, so that it reads the weights and the row's angles once.
struct Heads {
    int lanes, groups, group, at, half;
    bool inside; // some lanes have nothing if hd is no power of 2

    DEVICE static Heads make(int hd) {
        int lanes = 1, lane = threadIdx.x & 31;
        while (lanes * 16 < hd) lanes *= 2;
        int at = lane % lanes * 8;
        return Heads{lanes, 32 / lanes, lane / lanes, at, hd / 2, at < hd / 2};
    }
};

// heads_at_once is how many heads a thread reads before it works on the first, if it needs two halves of so many bytes a value.
template <bool WIDE, int BYTES> constexpr int heads_at_once = !WIDE || BYTES > 8 ? 1 : BYTES > 4 ? 2 : 4;

template <bool WIDE, class X, class Y>
DEVICE void headnorm_rope_row(Y *y, float *inv, const X *x, const float *w, const float *cos, const float *sin, int heads, int hd, float eps) {
    constexpr int N = heads_at_once<WIDE, sizeof(X) * 2>;
    Heads h = Heads::make(hd);
    float c[8], s[8], wa[8], wb[8];
    for (int from = h.group; from - h.group < heads; from += N * h.groups) {
        Raw<X> va[N], vb[N];
        float r[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            int head = from + k * h.groups;
            if (h.inside && head < heads) {
                va[k].read(x + head * hd, h.at, h.half, WIDE);
                vb[k].read(x + head * hd + h.half, h.at, h.half, WIDE);
            }
        }
        if (h.inside && from == h.group) {
            fixed(wa, w, h.at, h.half, WIDE);
            fixed(wb, w + h.half, h.at, h.half, WIDE);
            fixed(c, cos, h.at, h.half, WIDE);
            fixed(s, sin, h.at, h.half, WIDE);
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            float a[8], b[8], total = 0.0f;
            if (h.inside && from + k * h.groups < heads) {
                va[k].get(a);
                vb[k].get(b);
#pragma unroll
                for (int j = 0; j < 8; j++) total = fmaf(b[j], b[j], fmaf(a[j], a[j], total));
            }
            r[k] = 1.0f / sqrtf(group_sum(total, h.lanes) / (float)hd + eps);
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            int head = from + k * h.groups;
            if (!h.inside || head >= heads) continue;
            if (h.at == 0) inv[head] = r[k];
            float a[8], b[8];
            va[k].get(a);
            vb[k].get(b);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float e = a[j] * r[k] * wa[j], f = b[j] * r[k] * wb[j];
                a[j] = fmaf(e, c[j], -(f * s[j]));
                b[j] = fmaf(f, c[j], e * s[j]);
            }
            put_part(y + head * hd, h.at, h.half, a, WIDE);
            put_part(y + head * hd + h.half, h.at, h.half, b, WIDE);
        }
    }
}

template <class X, class Y>
DEVICE void headnorm_rope(Y *y, float *inv, const X *x, const float *w, const float *cos, const float *sin, int rows, int heads,
                          int seq, int hd, int ldx, int ldy, float eps) {
    int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), place = row % seq * (hd / 2);
    if (row >= rows) return;
    bool wide = hd % 16 == 0 && ldx % 8 == 0 && ldy % 8 == 0 && aligned16(y) && aligned16(x) && aligned16(w) && aligned16(cos) && aligned16(sin);
    x += (i64)row * ldx, y += (i64)row * ldy, inv += (i64)row * heads, cos += place, sin += place;
    if (wide)
        headnorm_rope_row<true>(y, inv, x, w, cos, sin, heads, hd, eps);
    else
        headnorm_rope_row<false>(y, inv, x, w, cos, sin, heads, hd, eps);
}

template <bool WIDE, class X, class G, class D>
DEVICE void headnorm_rope_grad_rows(float ga[8], float gb[8], D *dx, bool weights, const G *dy, const float *inv, const X *x, const float *w,
                                    const float *cos, const float *sin, int rows, int heads, int seq, int hd, int ldx, int ldy) {
    constexpr int N = heads_at_once<WIDE, 2 * (sizeof(X) + sizeof(G))>;
    Heads h = Heads::make(hd);
    float wa[8], wb[8], c[8], s[8];
    if (h.inside) {
        fixed(wa, w, h.at, h.half, WIDE);
        fixed(wb, w + h.half, h.at, h.half, WIDE);
    }
    int warps = blockDim.x >> 5;
    for (i64 row = blockIdx.x * warps + (threadIdx.x >> 5); row < rows; row += (i64)gridDim.x * warps) {
        int place = (int)row % seq * h.half;
        for (int from = h.group; from - h.group < heads; from += N * h.groups) {
            Raw<X> va[N], vb[N];
            Raw<G> vg[N], vh[N];
            float r[N];
#pragma unroll
            for (int k = 0; k < N; k++) {
                int head = from + k * h.groups;
                r[k] = 0.0f;
                if (h.inside && head < heads) {
                    vg[k].read(dy + row * ldy + head * hd, h.at, h.half, WIDE);
                    vh[k].read(dy + row * ldy + head * hd + h.half, h.at, h.half, WIDE);
                    va[k].read(x + row * ldx + head * hd, h.at, h.half, WIDE);
                    vb[k].read(x + row * ldx + head * hd + h.half, h.at, h.half, WIDE);
                    r[k] = inv[row * heads + head];
                }
            }
            if (h.inside && from == h.group) {
                fixed(c, cos + place, h.at, h.half, WIDE);
                fixed(s, sin + place, h.at, h.half, WIDE);
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                int head = from + k * h.groups;
                bool live = h.inside && head < heads;
                float a[8], b[8], e[8], f[8], total = 0.0f;
                if (live) {
                    vg[k].get(e);
                    vh[k].get(f);
                    va[k].get(a);
                    vb[k].get(b);
#pragma unroll
                    for (int j = 0; j < 8; j++) {
                        float g = fmaf(e[j], c[j], f[j] * s[j]);
                        f[j] = fmaf(f[j], c[j], -(e[j] * s[j]));
                        if (weights) {
                            ga[j] = fmaf(g, a[j] * r[k], ga[j]);
                            gb[j] = fmaf(f[j], b[j] * r[k], gb[j]);
                        }
                        e[j] = g * wa[j];
                        f[j] = f[j] * wb[j];
                        total = fmaf(f[j], b[j], fmaf(e[j], a[j], total));
                    }
                }
                float t = -(group_sum(total, h.lanes) * r[k] * r[k] * r[k] / (float)hd);
                if (live) {
                    va[k].get(a); // again: it saves registers
                    vb[k].get(b);
#pragma unroll
                    for (int j = 0; j < 8; j++) e[j] = fmaf(t, a[j], e[j] * r[k]), f[j] = fmaf(t, b[j], f[j] * r[k]);
                    put_part(dx + row * ldx + head * hd, h.at, h.half, e, WIDE);
                    put_part(dx + row * ldx + head * hd + h.half, h.at, h.half, f, WIDE);
                }
            }
        }
    }
}

template <class X, class G, class D>
DEVICE void headnorm_rope_grad(D *dx, float *partial, const G *dy, const float *inv, const X *x, const float *w, const float *cos,
                               const float *sin, int rows, int heads, int seq, int hd, int ldx, int ldy) {
    __shared__ float sums[256 * 17];
    bool wide = hd % 16 == 0 && ldx % 8 == 0 && ldy % 8 == 0 && aligned16(dx) && aligned16(dy) && aligned16(x) && aligned16(w) &&
                aligned16(cos) && aligned16(sin);
    float ga[8] = {}, gb[8] = {};
    if (wide)
        headnorm_rope_grad_rows<true>(ga, gb, dx, partial != 0, dy, inv, x, w, cos, sin, rows, heads, seq, hd, ldx, ldy);
    else
        headnorm_rope_grad_rows<false>(ga, gb, dx, partial != 0, dy, inv, x, w, cos, sin, rows, heads, seq, hd, ldx, ldy);
    if (!partial) return;
#pragma unroll
    for (int j = 0; j < 8; j++) sums[threadIdx.x * 17 + j] = ga[j], sums[threadIdx.x * 17 + 8 + j] = gb[j];
    __syncthreads();
    int lanes = Heads::make(hd).lanes, half = hd / 2;
    for (int i = threadIdx.x; i < hd; i += blockDim.x) {
        int j = i < half ? i : i - half, slot = j % 8 + (i < half ? 0 : 8);
        float total = 0.0f;
        for (int t = j / 8; t < blockDim.x; t += lanes) total += sums[t * 17 + slot];
        partial[(i64)blockIdx.x * hd + i] = total;
    }
}

#define KERNEL(threads) extern "C" __global__ void KERNEL_BOUNDS(threads, 1)

#define RMSNORM(n, X, Y)                                                                                       \
    KERNEL(256) rmsnorm_##n(Y *y, float *inv, const X *x, const float *w, int rows, int d, float eps) {         \
        rmsnorm(y, inv, x, w, rows, d, eps);                                                                   \
    }
RMSNORM(ff, float, float)
RMSNORM(fb, float, bf16)
RMSNORM(bb, bf16, bf16)

#define RMSNORM_GRAD(n, X, G, D)                                                                                              \
    KERNEL(256) rmsnorm_grad_##n(D *dx, const D *base, const G *dy, const float *inv, const X *x, const float *w, int rows, int d) { \
        rmsnorm_grad<X, G, D>(dx, base, dy, inv, x, w, rows, d);                                                              \
    }
RMSNORM_GRAD(fff, float, float, float)
RMSNORM_GRAD(fbf, float, bf16, float)
RMSNORM_GRAD(bbf, bf16, bf16, float)
RMSNORM_GRAD(bbb, bf16, bf16, bf16)

#define RMSNORM_WGRAD(n, X, G)                                                                                   \
    KERNEL(256) rmsnorm_wgrad_##n(float *partial, const G *dy, const float *inv, const X *x, int rows, int d) {   \
        rmsnorm_wgrad<X, G>(partial, dy, inv, x, rows, d);                                                       \
    }
RMSNORM_WGRAD(ff, float, float)
RMSNORM_WGRAD(fb, float, bf16)
RMSNORM_WGRAD(bb, bf16, bf16)

#define HEADNORM_ROPE(n, X, Y)                                                                                               \
    KERNEL(256) headnorm_rope_##n(Y *y, float *inv, const X *x, const float *w, const float *cos, const float *sin, int rows,\
                                  int heads, int seq, int hd, int ldx, int ldy, float eps) {                                 \
        headnorm_rope<X, Y>(y, inv, x, w, cos, sin, rows, heads, seq, hd, ldx, ldy, eps);                                    \
    }
HEADNORM_ROPE(ff, float, float)
HEADNORM_ROPE(fb, float, bf16)
HEADNORM_ROPE(bb, bf16, bf16)

#define HEADNORM_ROPE_GRAD(n, X, G, D)                                                                                          \
    extern "C" __global__ void KERNEL_BOUNDS(256, 2) headnorm_rope_grad_##n(D *dx, float *partial, const G *dy, const float *inv, const X *x, const float *w,         \
                                       const float *cos, const float *sin, int rows, int heads, int seq, int hd, int ldx, int ldy) { \
        headnorm_rope_grad<X, G, D>(dx, partial, dy, inv, x, w, cos, sin, rows, heads, seq, hd, ldx, ldy);                      \
    }
HEADNORM_ROPE_GRAD(fff, float, float, float)
HEADNORM_ROPE_GRAD(bff, bf16, float, float)
HEADNORM_ROPE_GRAD(bbb, bf16, bf16, bf16)
