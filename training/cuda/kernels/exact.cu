// Row-wise operations of the exact mode: docs/spec/exact.md, sections 3 to 5 and 8 to 9. Those of the mixture are in
// mixture_exact.cu; sums, the embedding's gradient and AdamW serve both modes: see fast.cu and
// optimizer.cu.
//
// A sum over a row has 16 accumulators, and 16 threads, one each; so a block of 128 threads takes 8 rows, and a warp reads
// whole segments of 64 bytes. Buffers may lie at any 4 bytes. rows counts rows of d values unless said otherwise.
//
//   ROWS: grid (⌈rows/8⌉), block 128.    ELEMENTS: grid (⌈n/1024⌉), block 256.    Shared memory: static.
//
//   exact_rms_norm(float *y, float *inv, const float *x, const float *w, int rows, int d, float eps)            ROWS
//   exact_rms_norm_grad(float *dx, const float *dy, const float *inv, const float *x, const float *w, int rows, int d)
//       adds to dx                                                                                              ROWS
//   exact_norm_weight_grad(float *dw, const float *dy, const float *inv, const float *x, int rows, int d)
//       adds to dw; grid (⌈d/32⌉), block 256
//   exact_head_norm_rope(float *y, float *inv, const float *x, const float *w, const float *cos, const float *sin,
//                        int rows, int d, int heads, int seq, float eps)
//       rows counts heads of all rows                                                                           ROWS
//   exact_head_norm_rope_grad(float *dx, float *dy, const float *inv, const float *x, const float *w, const float *cos,
//                             const float *negSin, int rows, int d, int heads, int seq)
//       sets dx and turns dy back, as exact_norm_weight_grad needs it                                           ROWS
//   exact_columns(float *dst, const float *x, const int *cols, int rows, int width, int count)
//       dst [rows, count] takes the columns cols of x [rows, width]; n = rows·count                             ELEMENTS
//   exact_embed_f32, exact_embed_bf16(float *y, const T *table, const int *ids, int rows, int d)
//       grid (rows, ⌈d/512⌉), block 128
//   exact_cross_entropy(double *losses, float *logits, const int *targets, int rows, int vocab, float scale)
//       with scale ≠ 0 logits become their gradient                                                             ROWS
//   exact_sum_squares(float *sums, const u64 *buffers, const u64 *lengths)
//       grid (number of buffers), block 128
#include "ptx.cuh"

#define ROW (blockIdx.x * 8 + (threadIdx.x >> 4))
#define LANE ((int)threadIdx.x & 15)

// row_dot is dot(x, y) over n values; n is 0 for a half-warp without a row.
DEVICE float row_dot(const float *__restrict__ x, const float *__restrict__ y, int n) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = LANE; i < n; i += 16) sum = fmaf(x[i], y[i], sum);
    return fold16_sum(sum);
}

DEVICE float row_dot3(const float *__restrict__ x, const float *__restrict__ y, const float *__restrict__ z, int n) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = LANE; i < n; i += 16) sum = fmaf(x[i] * y[i], z[i], sum);
    return fold16_sum(sum);
}

DEVICE float inverse_rms(float sumOfSquares, int d, float eps) { return 1.0f / sqrtf(sumOfSquares / (float)d + eps); }

extern "C" __global__ void KERNEL_BOUNDS(128, 4)
    exact_rms_norm(float *__restrict__ y, float *inv, const float *__restrict__ x, const float *__restrict__ w, int rows, int d, float eps) {
    int row = ROW, n = row < rows ? d : 0;
    x += (i64)row * d, y += (i64)row * d;
    float r = inverse_rms(row_dot(x, x, n), d, eps);
    if (row < rows && LANE == 0) inv[row] = r;
#pragma unroll 8
    for (int i = LANE; i < n; i += 16) y[i] = (x[i] * r) * w[i];
}

// norm_grad_factor is b of section 5.
DEVICE float norm_grad_factor(float c, float inv, int d) { return -((((c * inv) * inv) * inv) / (float)d); }

extern "C" __global__ void KERNEL_BOUNDS(128, 4)
    exact_rms_norm_grad(float *__restrict__ dx, const float *__restrict__ dy, const float *inv, const float *__restrict__ x,
                        const float *__restrict__ w, int rows, int d) {
    int row = ROW, n = row < rows ? d : 0;
    x += (i64)row * d, dx += (i64)row * d, dy += (i64)row * d;
    float c = row_dot3(dy, w, x, n);
    float r = row < rows ? inv[row] : 0.0f;
    float b = norm_grad_factor(c, r, d);
#pragma unroll 4
    for (int i = LANE; i < n; i += 16) dx[i] = dx[i] + fmaf(b, x[i], (dy[i] * w[i]) * r);
}

// A column's sum runs over the rows in order. One warp adds while all eight fetch what comes next.
extern "C" __global__ void KERNEL_BOUNDS(256, 4)
    exact_norm_weight_grad(float *dw, const float *__restrict__ dy, const float *__restrict__ inv, const float *__restrict__ x, int rows, int d) {
    const int rowsAtOnce = 64, each = rowsAtOnce / 8;
    __shared__ float sy[2][rowsAtOnce][32], sx[2][rowsAtOnce][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, col = blockIdx.x * 32 + lane;
    bool inside = col < d;
    float sum = inside ? dw[col] : 0.0f;
    float ry[each], rx[each];
    for (int r0 = 0, turn = 0; r0 < rows + rowsAtOnce; r0 += rowsAtOnce, turn ^= 1) {
#pragma unroll
        for (int i = 0; i < each; i++) {
            int r = r0 + warp * each + i;
            bool have = inside && r < rows;
            ry[i] = have ? dy[(i64)r * d + col] : 0.0f;
            rx[i] = have ? x[(i64)r * d + col] * inv[r] : 0.0f;
        }
        if (warp == 0) {
            int count = r0 == 0 ? 0 : min(rowsAtOnce, rows - r0 + rowsAtOnce);
#pragma unroll 8
            for (int r = 0; r < count; r++) sum = fmaf(sy[turn ^ 1][r][lane], sx[turn ^ 1][r][lane], sum);
        }
#pragma unroll
        for (int i = 0; i < each; i++) sy[turn][warp * each + i][lane] = ry[i], sx[turn][warp * each + i][lane] = rx[i];
        __syncthreads();
    }
    if (warp == 0 && inside) dw[col] = sum;
}

extern "C" __global__ void KERNEL_BOUNDS(128, 4)
    exact_head_norm_rope(float *__restrict__ y, float *inv, const float *__restrict__ x, const float *__restrict__ w,
                         const float *__restrict__ cos, const float *__restrict__ sin, int rows, int d, int heads, int seq, float eps) {
    int row = ROW, half = d / 2, n = row < rows ? d : 0;
    int position = row < rows ? row / heads % seq : 0;
    x += (i64)row * d, y += (i64)row * d;
    cos += (i64)position * half, sin += (i64)position * half;
    float r = inverse_rms(row_dot(x, x, n), d, eps);
    if (row < rows && LANE == 0) inv[row] = r;
#pragma unroll 4
    for (int j = LANE; j < n / 2; j += 16) {
        float a = (x[j] * r) * w[j], b = (x[half + j] * r) * w[half + j];
        y[j] = fmaf(a, cos[j], -(b * sin[j]));
        y[half + j] = fmaf(b, cos[j], a * sin[j]);
    }
}

extern "C" __global__ void KERNEL_BOUNDS(128, 4)
    exact_head_norm_rope_grad(float *__restrict__ dx, float *dy, const float *inv, const float *__restrict__ x, const float *__restrict__ w,
                              const float *__restrict__ cos, const float *__restrict__ negSin, int rows, int d, int heads, int seq) {
    int row = ROW, half = d / 2, n = row < rows ? d : 0;
    int position = row < rows ? row / heads % seq : 0;
    x += (i64)row * d, dx += (i64)row * d, dy += (i64)row * d;
    cos += (i64)position * half, negSin += (i64)position * half;
    for (int j = LANE; j < n / 2; j += 16) {
        float a = dy[j], b = dy[half + j];
        dy[j] = fmaf(a, cos[j], -(b * negSin[j]));
        dy[half + j] = fmaf(b, cos[j], a * negSin[j]);
    }
    __syncwarp(); // dy[half + j] may be another lane's below
    float c = row_dot3(dy, w, x, n);
    float r = row < rows ? inv[row] : 0.0f;
    float b = norm_grad_factor(c, r, d);
#pragma unroll 4
    for (int i = LANE; i < n; i += 16) dx[i] = 0.0f + fmaf(b, x[i], (dy[i] * w[i]) * r);
}

// Elements: a thread takes four, 256 apart.
#define EACH_ELEMENT(i, n) \
    _Pragma("unroll") for (i64 i = (i64)blockIdx.x * 1024 + threadIdx.x, last_ = i + 1024; i < last_; i += 256) if (i < (n))

extern "C" __global__ void KERNEL_BOUNDS(256, 4) exact_columns(float *dst, const float *x, const int *cols, int rows, int width, int count) {
    EACH_ELEMENT(i, (i64)rows * count) dst[i] = x[i / count * width + cols[i % count]];
}

template <typename T> DEVICE void embed(float *y, const T *table, const int *ids, int d) {
    y += (i64)blockIdx.x * d, table += (i64)ids[blockIdx.x] * d;
    int i = blockIdx.y * 512 + threadIdx.x;
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (i + 128 * j < d) v[j] = load(table + i + 128 * j);
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (i + 128 * j < d) y[i + 128 * j] = v[j];
}
extern "C" __global__ void KERNEL_BOUNDS(128, 4) exact_embed_f32(float *y, const float *table, const int *ids, int rows, int d) {
    embed(y, table, ids, d);
}
extern "C" __global__ void KERNEL_BOUNDS(128, 4) exact_embed_bf16(float *y, const bf16 *table, const int *ids, int rows, int d) {
    embed(y, table, ids, d);
}

extern "C" __global__ void KERNEL_BOUNDS(128, 4)
    exact_cross_entropy(double *losses, float *logits, const int *targets, int rows, int vocab, float scale) {
    const int ahead = 16; // loads in flight per thread
    int row = ROW, n = row < rows ? vocab : 0, target = row < rows ? targets[row] : 0;
    float *x = logits + (i64)row * vocab;
    float m = NEGATIVE_INFINITY;
#pragma unroll 16
    for (int i = LANE; i < n; i += 16) m = exact_max(m, x[i]);
    m = fold16_max(m);
    float at = n ? x[target] : 0.0f;
    __syncwarp(); // the target's value is read before it is overwritten
    float sum = 0.0f;
    int i = LANE;
    for (; i + 16 * (ahead - 1) < n; i += 16 * ahead) {
        float e[ahead];
#pragma unroll
        for (int j = 0; j < ahead; j++) e[j] = x[i + 16 * j];
#pragma unroll
        for (int j = 0; j < ahead; j++) {
            e[j] = exact_exp(fmaf(e[j], 1.0f, -m));
            if (scale != 0) x[i + 16 * j] = e[j];
            sum = sum + e[j];
        }
    }
    for (; i < n; i += 16) {
        float e = exact_exp(fmaf(x[i], 1.0f, -m));
        if (scale != 0) x[i] = e;
        sum = sum + e;
    }
    sum = fold16_sum(sum);
    if (row < rows && LANE == 0) losses[row] = __dadd_rn(exact_log((double)sum), __dadd_rn((double)m, -(double)at));
    if (scale == 0) return;
    float factor = scale / sum;
    for (i = LANE; i + 16 * (ahead - 1) < n; i += 16 * ahead) {
        float e[ahead];
#pragma unroll
        for (int j = 0; j < ahead; j++) e[j] = x[i + 16 * j];
#pragma unroll
        for (int j = 0; j < ahead; j++) {
            float g = e[j] * factor;
            x[i + 16 * j] = i + 16 * j == target ? g - scale : g;
        }
    }
    for (; i < n; i += 16) {
        float g = x[i] * factor;
        x[i] = i == target ? g - scale : g;
    }
}

// The accumulators take turns over the whole buffer: 16 chains of fma, nothing shortens them. So the chains must never wait
// for memory: the block copies pieces ahead into shared memory, and its first half-warp computes.
extern "C" __global__ void KERNEL_BOUNDS(128, 4) exact_sum_squares(float *sums, const u64 *buffers, const u64 *lengths) {
    const int piece = 2048, stages = 4, vectors = piece / 4 / 128;
    __shared__ __align__(16) float s[stages][piece];
    const float *x = (const float *)buffers[blockIdx.x];
    i64 n = (i64)lengths[blockIdx.x], pieces = (n + piece - 1) / piece;
    bool whole = aligned16(x);
    float sum = 0.0f;
    for (i64 t = 1 - stages; t < pieces; t++) {
        i64 next = t + stages - 1;
        float *to = s[next % stages];
        if (next < pieces) {
            i64 left = n - next * piece;
            const float *from = x + next * piece;
            if (whole && left >= piece) {
#pragma unroll
                for (int i = 0; i < vectors; i++) cp_async16(to + (threadIdx.x + 128 * i) * 4, from + (threadIdx.x + 128 * i) * 4, true);
            } else {
#pragma unroll 8
                for (int i = threadIdx.x; i < piece; i += 128)
                    if (i < left) to[i] = from[i];
            }
        }
        cp_async_commit();
        if (t < 0) continue;
        cp_async_wait<stages - 1>();
        __syncthreads();
        if (threadIdx.x < 16) {
            const float *from = s[t % stages];
            int count = (int)min((i64)piece, n - t * piece);
            if (count == piece) {
#pragma unroll 16
                for (int i = 0; i < piece / 16; i++) {
                    float v = from[i * 16 + threadIdx.x];
                    sum = fmaf(v, v, sum);
                }
            } else {
                for (int i = threadIdx.x; i < count; i += 16) sum = fmaf(from[i], from[i], sum);
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        sum = fold16_sum(sum);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    }
}
