/*
 * Passes in which an element depends on few others: sums, the rotary embedding and activations. All
 * are bound by memory, so each tensor is read once, 16 bytes at a time where borders allow it, with
 * several loads of a thread under way. Arithmetic is float; bf16 is rounded where it is stored.
 */
#include "exec/kernels_lanes.cuh"

enum {
    ROWS = 4,          /* of a tile */
    BACKWARD_ROWS = 2, /* of one that reads three vectors for each row */
    ADD_THREADS = 256,
    ADD_VECTORS = 4,
    POSITIONS = 4, /* of a block that rotates */
    PAIRS = 64,    /* of each head */
    ROTARY_THREADS = 256,
    ROTARY_BATCH = 2 /* pairs of vectors that a thread has under way */
};

/* ---- sums of elements and rows ---- */

template <typename T, int N>
static __global__ void __launch_bounds__(ADD_THREADS)
    add_vectors(const T *a, const T *b, T *y, int64_t n)
{
    const int64_t first = (int64_t)blockIdx.x * ADD_THREADS * ADD_VECTORS + threadIdx.x;
    lanes<T, N> x[ADD_VECTORS], z[ADD_VECTORS];
#pragma unroll
    for (int k = 0; k < ADD_VECTORS; k++) {
        const int64_t i = (first + k * ADD_THREADS) * N;
        if (i < n) {
            x[k] = load<T, N>(a + i);
            z[k] = load<T, N>(b + i);
        }
    }
#pragma unroll
    for (int k = 0; k < ADD_VECTORS; k++) {
        const int64_t i = (first + k * ADD_THREADS) * N;
        if (i < n)
            store(y + i, sum_of(x[k], z[k]));
    }
}

/* Elements begin .. end - 1; as many as N divides. */
template <typename T, int N>
static void launch_add(const td_cuda_queue *q, const act *a, const act *b, act *y, int64_t begin,
                       int64_t end)
{
    if (begin < end)
        add_vectors<T, N><<<count_of(ceil_div(end - begin, N * ADD_THREADS * ADD_VECTORS)),
                            ADD_THREADS, 0, stream_of(q)>>>(
            (const T *)a + begin, (const T *)b + begin, (T *)y + begin, end - begin);
}

extern "C" void td_cuda_add(void *dev, const act *a, const act *b, act *y, int64_t n)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const act *, const act *, act *,
                                      int64_t, int64_t) = TD_BY_TYPE(launch_add);
    const td_cuda_queue *q = queue_of(dev);
    const bool wide = is_wide(q, 0, address(a) | address(b) | address(y));
    const int64_t vectors_end = wide ? n - n % (q->bf16 ? 8 : 4) : 0;
    launch[q->bf16][1](q, a, b, y, 0, vectors_end);
    launch[q->bf16][0](q, a, b, y, vectors_end, n);
}

typedef struct {
    int64_t rows, seq, h, first_row;
} rows_call;

template <typename T, int N>
static __global__ void add_table(rows_call c, T *y, const T *table, unsigned chunks)
{
    const int64_t row = tile_row(chunks, ROWS), i = tile_vector(chunks) * N;
    int64_t entry = (c.first_row + row) % c.seq;
    lanes<T, N> x[ROWS], t[ROWS];
    if (i >= c.h)
        return;
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        if (row + k < c.rows) {
            x[k] = load<T, N>(y + (row + k) * c.h + i);
            t[k] = load<T, N>(table + entry * c.h + i);
        }
        entry = entry + 1 < c.seq ? entry + 1 : 0;
    }
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (row + k < c.rows)
            store(y + (row + k) * c.h + i, sum_of(x[k], t[k]));
}

template <typename T, int N>
static void launch_add_rows(const td_cuda_queue *q, const rows_call *c, act *y, const act *table)
{
    const tiling t = tiling_of(c->rows, ROWS, c->h / N);
    add_table<T, N>
        <<<t.blocks, t.threads, 0, stream_of(q)>>>(*c, (T *)y, (const T *)table, t.chunks);
}

extern "C" void td_cuda_add_rows(void *dev, act *y, const act *table, int64_t rows, int64_t seq,
                                 int64_t h, int64_t first_row)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const rows_call *, act *,
                                      const act *) = TD_BY_TYPE(launch_add_rows);
    const td_cuda_queue *q = queue_of(dev);
    const rows_call c = {rows, seq, h, first_row};
    if (rows > 0 && h > 0)
        launch[q->bf16][is_wide(q, h, address(y) | address(table))](q, &c, y, table);
}

/* A bias is a table of one row. */
extern "C" void td_cuda_add_bias(void *dev, act *y, const act *bias, int64_t rows, int64_t n)
{
    td_cuda_add_rows(dev, y, bias, rows, 1, n, 0);
}

/* A thread has a vector of one row of the table, and adds its rows of all samples in their order.
 */
template <typename T, int N>
static __global__ void table_gradient(rows_call c, const T *dy, float *dtable, unsigned chunks)
{
    const int64_t first = tile_row(chunks, 1), i = tile_vector(chunks) * N;
    if (i >= c.h)
        return;
    float *to = dtable + (c.first_row + first) % c.seq * c.h + i;
    float sum[N];
    load_floats<N>(to, sum);
#pragma unroll 4
    for (int64_t row = first; row < c.rows; row += c.seq) {
        float v[N];
        unpack(load<T, N>(dy + row * c.h + i), v);
        for (int e = 0; e < N; e++)
            sum[e] += v[e];
    }
    store_floats<N>(to, sum);
}

template <typename T, int N>
static void launch_table_gradient(const td_cuda_queue *q, const rows_call *c, const act *dy,
                                  float *dtable)
{
    const tiling t = tiling_of(smaller(c->rows, c->seq), 1, c->h / N);
    table_gradient<T, N>
        <<<t.blocks, t.threads, 0, stream_of(q)>>>(*c, (const T *)dy, dtable, t.chunks);
}

extern "C" void td_cuda_add_rows_backward(void *dev, const act *dy, float *dtable, int64_t rows,
                                          int64_t seq, int64_t h, int64_t first_row)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const rows_call *, const act *,
                                      float *) = TD_BY_TYPE(launch_table_gradient);
    const td_cuda_queue *q = queue_of(dev);
    const rows_call c = {rows, seq, h, first_row};
    if (rows > 0 && h > 0)
        launch[q->bf16][is_wide(q, h, address(dy) | address(dtable))](q, &c, dy, dtable);
}

/* ---- rotary embedding ---- */

/* A block has POSITIONS positions and PAIRS pairs of every head. Angles, 10000^(-2 pair / head_dim)
 * for each position, are computed once for all heads and for the block's samples; in double, for
 * positions are large. */
template <typename T, int N>
static __global__ void __launch_bounds__(ROTARY_THREADS)
    rotate_rows(T *qkv, td_attention_shape s, bool back)
{
    __shared__ double turns[PAIRS]; /* halves of a turn for each position */
    __shared__ alignas(16) float cosine[POSITIONS * PAIRS], sine[POSITIONS * PAIRS];
    const int n_all = s.head_dim / 2, turned = s.heads + s.kv_heads;
    const int64_t width = (int64_t)(turned + s.kv_heads) * s.head_dim;
    const int position0 = (int)blockIdx.x * POSITIONS, pair0 = (int)blockIdx.y * PAIRS;
    const int n_pairs = min(PAIRS, n_all - pair0), n_positions = min(POSITIONS, s.seq - position0);
    const int threads = (int)(blockDim.x * blockDim.y);
    const int thread = (int)(threadIdx.y * blockDim.x + threadIdx.x);
    const int pair = (int)threadIdx.x * N;
    for (int a = thread; a < n_pairs; a += threads)
        turns[a] = exp10(-8.0 * (pair0 + a) / s.head_dim) * 0.31830988618379067154;
    __syncthreads();
    for (int a = thread; a < POSITIONS * PAIRS; a += threads)
        if (a % PAIRS < n_pairs) {
            double sn, cs;
            sincospi((position0 + a / PAIRS) * turns[a % PAIRS], &sn, &cs);
            cosine[a] = (float)cs;
            sine[a] = (float)(back ? -sn : sn);
        }
    __syncthreads();
    const int n_items = pair < n_pairs ? n_positions * turned : 0, step = (int)blockDim.y;
    for (int64_t sample = blockIdx.z; sample < s.samples; sample += gridDim.z) {
        T *sample_rows = qkv + (sample * s.seq + position0) * width + pair0 + pair;
        for (int item0 = (int)threadIdx.y; item0 < n_items; item0 += step * ROTARY_BATCH) {
            lanes<T, N> left[ROTARY_BATCH], right[ROTARY_BATCH];
#pragma unroll
            for (int k = 0; k < ROTARY_BATCH; k++) {
                const int item = item0 + k * step;
                const T *x = sample_rows + item / turned * width + item % turned * s.head_dim;
                if (item < n_items) {
                    left[k] = load<T, N>(x);
                    right[k] = load<T, N>(x + n_all);
                }
            }
#pragma unroll
            for (int k = 0; k < ROTARY_BATCH; k++) {
                const int item = item0 + k * step, angles = item / turned * PAIRS + pair;
                T *x = sample_rows + item / turned * width + item % turned * s.head_dim;
                float a[N], b[N], cs[N], sn[N];
                if (item >= n_items)
                    continue;
                unpack(left[k], a);
                unpack(right[k], b);
                load_floats<N>(cosine + angles, cs);
                load_floats<N>(sine + angles, sn);
                for (int e = 0; e < N; e++) {
                    const float x0 = a[e], x1 = b[e];
                    a[e] = x0 * cs[e] - x1 * sn[e];
                    b[e] = x1 * cs[e] + x0 * sn[e];
                }
                store(x, packed<T, N>(a));
                store(x + n_all, packed<T, N>(b));
            }
        }
    }
}

template <typename T, int N>
static void launch_rotary(const td_cuda_queue *q, act *qkv, const td_attention_shape *s, bool back)
{
    const int64_t n_all = s->head_dim / 2, threads = ceil_div(smaller(n_all, PAIRS), N);
    const int64_t columns = ceil_div(s->seq, POSITIONS), chunks = ceil_div(n_all, PAIRS);
    /* Samples share angles as long as there are blocks for all multiprocessors. */
    const int64_t for_all = ceil_div((int64_t)q->n_sm * 8, columns * chunks);
    const dim3 blocks(count_of(columns), count_of(chunks), count_of(smaller(s->samples, for_all)));
    rotate_rows<T, N>
        <<<blocks, dim3(count_of(threads), count_of(ROTARY_THREADS / threads)), 0, stream_of(q)>>>(
            (T *)qkv, *s, back);
}

extern "C" void td_cuda_rotary(void *dev, act *qkv, const td_attention_shape *s, bool back)
{
    static void (*const launch[2][2])(const td_cuda_queue *, act *, const td_attention_shape *,
                                      bool) = TD_BY_TYPE(launch_rotary);
    const td_cuda_queue *q = queue_of(dev);
    if (s->samples > 0 && s->seq > 0 && s->head_dim > 1)
        launch[q->bf16][s->head_dim % 2 == 0 && is_wide(q, s->head_dim / 2, address(qkv))](q, qkv,
                                                                                           s, back);
}

/* ---- activations ---- */

/* What the type's rounding lets pass: float in full accuracy; bf16 (2^-9) with the approximations
 * of the device, whose relative errors stay below 2e-5. */
template <typename T> static __device__ float sigmoid(float x);

template <> __device__ float sigmoid<float>(float x)
{
    return 1 / (1 + expf(-x));
}

template <> __device__ float sigmoid<__nv_bfloat16>(float x)
{
    return __fdividef(1, 1 + __expf(-x));
}

/* The standard normal distribution. */
typedef struct {
    float below, density; /* chance of less than x, density at x */
} normal;

template <typename T> static __device__ normal normal_at(float x);

/* erfc keeps small values exact where 1 + erf would cancel. */
template <> __device__ normal normal_at<float>(float x)
{
    return {0.5F * erfcf(x * -0.70710678118654752F), 0.39894228040143268F * expf(-0.5F * x * x)};
}

/*
 * With z = |x| / sqrt(2): erfc(z) = exp(-z^2) * P(t), t = 1 / (1 + 0.45 z), a form of Abramowitz
 * and Stegun, 7.1.26. The coefficients are fitted to the least relative error over 0 <= z <= 14,
 * 1e-5, for a tail must be as exact as a middle; they are those of P / 2.
 */
template <> __device__ normal normal_at<__nv_bfloat16>(float x)
{
    const float bell = __expf(-0.5F * x * x);
    const float t = __fdividef(1, 1 + 0.31819805F * fabsf(x));
    float p = -0.06793043F;
    p = p * t + 0.14612421F;
    p = p * t + 0.04472610F;
    p = p * t + 0.12424056F;
    p = p * t + 0.12585068F;
    p = p * t + 0.12698412F;
    const float tail = bell * t * p;
    return {x < 0 ? tail : 1 - tail, 0.39894228F * bell};
}

typedef struct {
    const act *dy, *x;
    act *y; /* or dx */
    int64_t rows, f;
    bool gated;
} activation_call;

/* y = silu(gate) * up, both of a row of x. */
template <typename T, int N> static __global__ void gated_rows(activation_call c, unsigned chunks)
{
    const int64_t row = tile_row(chunks, ROWS), i = tile_vector(chunks) * N;
    lanes<T, N> gate[ROWS], up[ROWS];
    if (i >= c.f)
        return;
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (row + k < c.rows) {
            const T *x = (const T *)c.x + 2 * (row + k) * c.f + i;
            gate[k] = load<T, N>(x);
            up[k] = load<T, N>(x + c.f);
        }
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        float g[N], u[N];
        if (row + k >= c.rows)
            break;
        unpack(gate[k], g);
        unpack(up[k], u);
        for (int e = 0; e < N; e++)
            u[e] *= g[e] * sigmoid<T>(g[e]);
        store((T *)c.y + (row + k) * c.f + i, packed<T, N>(u));
    }
}

template <typename T, int N>
static __global__ void gated_rows_backward(activation_call c, unsigned chunks)
{
    const int64_t row = tile_row(chunks, BACKWARD_ROWS), i = tile_vector(chunks) * N;
    lanes<T, N> dy[BACKWARD_ROWS], gate[BACKWARD_ROWS], up[BACKWARD_ROWS];
    if (i >= c.f)
        return;
#pragma unroll
    for (int k = 0; k < BACKWARD_ROWS; k++)
        if (row + k < c.rows) {
            const T *x = (const T *)c.x + 2 * (row + k) * c.f + i;
            dy[k] = load<T, N>((const T *)c.dy + (row + k) * c.f + i);
            gate[k] = load<T, N>(x);
            up[k] = load<T, N>(x + c.f);
        }
#pragma unroll
    for (int k = 0; k < BACKWARD_ROWS; k++) {
        float d[N], g[N], u[N];
        T *dx = (T *)c.y + 2 * (row + k) * c.f + i;
        if (row + k >= c.rows)
            break;
        unpack(dy[k], d);
        unpack(gate[k], g);
        unpack(up[k], u);
        for (int e = 0; e < N; e++) {
            const float s = sigmoid<T>(g[e]), value = u[e];
            u[e] = d[e] * g[e] * s;
            g[e] = d[e] * value * s * (1 + g[e] * (1 - s));
        }
        store(dx, packed<T, N>(g));
        store(dx + c.f, packed<T, N>(u));
    }
}

template <typename T, int N> static __global__ void gelu_rows(activation_call c, unsigned chunks)
{
    const int64_t row = tile_row(chunks, ROWS), i = tile_vector(chunks) * N;
    lanes<T, N> x[ROWS];
    if (i >= c.f)
        return;
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (row + k < c.rows)
            x[k] = load<T, N>((const T *)c.x + (row + k) * c.f + i);
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        float v[N];
        if (row + k >= c.rows)
            break;
        unpack(x[k], v);
        for (int e = 0; e < N; e++)
            v[e] *= normal_at<T>(v[e]).below;
        store((T *)c.y + (row + k) * c.f + i, packed<T, N>(v));
    }
}

template <typename T, int N>
static __global__ void gelu_rows_backward(activation_call c, unsigned chunks)
{
    const int64_t row = tile_row(chunks, BACKWARD_ROWS), i = tile_vector(chunks) * N;
    lanes<T, N> dy[BACKWARD_ROWS], x[BACKWARD_ROWS];
    if (i >= c.f)
        return;
#pragma unroll
    for (int k = 0; k < BACKWARD_ROWS; k++)
        if (row + k < c.rows) {
            dy[k] = load<T, N>((const T *)c.dy + (row + k) * c.f + i);
            x[k] = load<T, N>((const T *)c.x + (row + k) * c.f + i);
        }
#pragma unroll
    for (int k = 0; k < BACKWARD_ROWS; k++) {
        float d[N], v[N];
        if (row + k >= c.rows)
            break;
        unpack(dy[k], d);
        unpack(x[k], v);
        for (int e = 0; e < N; e++) {
            const normal n = normal_at<T>(v[e]);
            d[e] *= n.below + v[e] * n.density;
        }
        store((T *)c.y + (row + k) * c.f + i, packed<T, N>(d));
    }
}

template <typename T, int N>
static void launch_activation(const td_cuda_queue *q, const activation_call *c)
{
    const tiling t = tiling_of(c->rows, ROWS, c->f / N);
    if (c->gated)
        gated_rows<T, N><<<t.blocks, t.threads, 0, stream_of(q)>>>(*c, t.chunks);
    else
        gelu_rows<T, N><<<t.blocks, t.threads, 0, stream_of(q)>>>(*c, t.chunks);
}

template <typename T, int N>
static void launch_activation_backward(const td_cuda_queue *q, const activation_call *c)
{
    const tiling t = tiling_of(c->rows, BACKWARD_ROWS, c->f / N);
    if (c->gated)
        gated_rows_backward<T, N><<<t.blocks, t.threads, 0, stream_of(q)>>>(*c, t.chunks);
    else
        gelu_rows_backward<T, N><<<t.blocks, t.threads, 0, stream_of(q)>>>(*c, t.chunks);
}

extern "C" void td_cuda_activation(void *dev, const act *x, act *y, int64_t rows, int64_t f,
                                   bool gated)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const activation_call *) =
        TD_BY_TYPE(launch_activation);
    const td_cuda_queue *q = queue_of(dev);
    const activation_call c = {NULL, x, y, rows, f, gated};
    if (rows > 0 && f > 0)
        launch[q->bf16][is_wide(q, f, address(x) | address(y))](q, &c);
}

extern "C" void td_cuda_activation_backward(void *dev, const act *dy, const act *x, act *dx,
                                            int64_t rows, int64_t f, bool gated)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const activation_call *) =
        TD_BY_TYPE(launch_activation_backward);
    const td_cuda_queue *q = queue_of(dev);
    const activation_call c = {dy, x, dx, rows, f, gated};
    if (rows > 0 && f > 0)
        launch[q->bf16][is_wide(q, f, address(dy) | address(x) | address(dx))](q, &c);
}
