/*
 * Norms and sums of columns. All are bound by memory, so each tensor is read once, 16 bytes at a
 * time where borders allow it. Arithmetic is float; bf16 is rounded where it is stored. Sums never
 * use atomics: their order depends on shapes and the device alone.
 */
#include "exec/kernels_lanes.cuh"

#include <cuda_pipeline_primitives.h>

static const float norm_epsilon = 1e-5F;

enum {
    ANY_THREADS = 256,  /* of a row of any width */
    NORM_VECTORS = 4,   /* of a row that a thread of the norm keeps at most */
    NORM_THREADS = 128, /* of its block, unless a row needs more */
    BACKWARD_ROWS = 15, /* that a block of the norm's backward has at once: a barrier for each */
    SUM_WARPS = 8,      /* that share the rows of a block's part of column sums */
    SUM_BATCH = 4,      /* rows that each has under way */
    SUM_BLOCKS = 4      /* of a multiprocessor: all run at once */
};

/* Waits for the threads of this row alone: barrier 0 is that of the whole block. */
static __device__ void row_barrier()
{
    asm volatile("bar.sync %0, %1;" : : "r"(1 + threadIdx.y), "r"(blockDim.x) : "memory");
}

/* Sums over the threads of this row, the same for all of them; a block is (threads of a row, rows)
 * wide. `turn`, 0 or 1, must change from call to call: one barrier then serves a call. APART: the
 * block's rows do not wait for one another. */
template <int K, bool APART = false> static __device__ void row_sums(float (&sum)[K], int turn)
{
    __shared__ float warps[2][K][32];
    const int warp = (int)((threadIdx.y * blockDim.x + threadIdx.x) / 32);
    const int lane = (int)(threadIdx.x % 32), of_row = (int)(blockDim.x / 32);
    for (int k = 0; k < K; k++)
        for (int step = 16; step > 0; step /= 2)
            sum[k] += __shfl_xor_sync(0xFFFFFFFFu, sum[k], step);
    if (of_row == 1)
        return;
    for (int k = 0; lane == 0 && k < K; k++)
        warps[turn][k][warp] = sum[k];
    if (APART)
        row_barrier();
    else
        __syncthreads();
    for (int k = 0; k < K; k++) {
        sum[k] = lane < of_row ? warps[turn][k][threadIdx.y * of_row + lane] : 0;
        for (int step = 16; step > 0; step /= 2)
            sum[k] += __shfl_xor_sync(0xFFFFFFFFu, sum[k], step);
    }
}

/* ---- norm ---- */

typedef struct {
    const act *x, *delta;
    act *sum;
    const act *w, *b;
    act *y;
    float *stats;
    int64_t rows, h;
} norm_call;

/* What a row is normed with: xhat = (x - mean) * r; mean 0 for RMSNorm. */
typedef struct {
    float mean, r;
} row_stats;

static __device__ float inverse_root(float mean_square)
{
    return 1 / sqrtf(mean_square + norm_epsilon);
}

static __device__ void keep_stats(norm_call c, int64_t row, row_stats s)
{
    if (threadIdx.x > 0)
        return;
    if (c.b == NULL) {
        c.stats[row] = s.r;
    } else {
        c.stats[2 * row] = s.mean;
        c.stats[2 * row + 1] = s.r;
    }
}

/* A row stays in the registers of its threads from the one reading to the one writing. */
template <typename T, int N> static __global__ void __launch_bounds__(1024) norm_rows(norm_call c)
{
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const bool inside = row < c.rows;
    const int n_vectors = (int)(c.h / N), threads = (int)blockDim.x, first = (int)threadIdx.x;
    const T *w = (const T *)c.w, *b = (const T *)c.b;
    lanes<T, N> x[NORM_VECTORS], weight[NORM_VECTORS], bias[NORM_VECTORS];
#pragma unroll
    for (int k = 0; k < NORM_VECTORS; k++) {
        const int i = first + k * threads;
        x[k] = {};
        if (inside && i < n_vectors)
            x[k] = load<T, N>((const T *)c.x + row * c.h + i * N);
    }
    if (c.delta != NULL) {
        lanes<T, N> delta[NORM_VECTORS];
#pragma unroll
        for (int k = 0; k < NORM_VECTORS; k++) {
            const int i = first + k * threads;
            if (inside && i < n_vectors)
                delta[k] = load<T, N>((const T *)c.delta + row * c.h + i * N);
        }
#pragma unroll
        for (int k = 0; k < NORM_VECTORS; k++) {
            const int i = first + k * threads;
            if (inside && i < n_vectors) {
                x[k] = sum_of(x[k], delta[k]);
                store((T *)c.sum + row * c.h + i * N, x[k]);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < NORM_VECTORS; k++)
        if (first + k * threads < n_vectors)
            weight[k] = load<T, N>(w + (first + k * threads) * N);
    row_stats s = {0, 0};
    if (b != NULL) {
        float sum[1] = {0};
#pragma unroll
        for (int k = 0; k < NORM_VECTORS; k++) {
            float v[N];
            unpack(x[k], v);
            for (int e = 0; e < N; e++)
                sum[0] += v[e];
        }
        row_sums<1>(sum, 0);
        s.mean = sum[0] / (float)c.h;
    }
    float square[1] = {0};
#pragma unroll
    for (int k = 0; k < NORM_VECTORS; k++) {
        float v[N];
        unpack(x[k], v);
        for (int e = 0; e < N && first + k * threads < n_vectors; e++)
            square[0] += (v[e] - s.mean) * (v[e] - s.mean);
    }
    row_sums<1>(square, 1);
    s.r = inverse_root(square[0] / (float)c.h);
    if (!inside)
        return;
    keep_stats(c, row, s);
#pragma unroll
    for (int k = 0; k < NORM_VECTORS; k++) {
        bias[k] = {};
        if (b != NULL && first + k * threads < n_vectors)
            bias[k] = load<T, N>(b + (first + k * threads) * N);
    }
#pragma unroll
    for (int k = 0; k < NORM_VECTORS; k++) {
        const int i = first + k * threads;
        float v[N], f[N], shift[N];
        if (i >= n_vectors)
            break;
        unpack(x[k], v);
        unpack(weight[k], f);
        unpack(bias[k], shift);
        for (int e = 0; e < N; e++)
            v[e] = (v[e] - s.mean) * s.r * f[e] + shift[e];
        store((T *)c.y + row * c.h + i * N, packed<T, N>(v));
    }
}

/* A block's row of any width and on any border, read again for each sum. */
template <typename T> static __global__ void __launch_bounds__(ANY_THREADS) norm_any(norm_call c)
{
    const int64_t row = blockIdx.x;
    const T *x = (const T *)c.x + row * c.h, *w = (const T *)c.w, *b = (const T *)c.b;
    const T *delta = (const T *)c.delta;
    row_stats s = {0, 0};
    float sum[1] = {0}, square[1] = {0};
    if (delta != NULL) {
        T *total = (T *)c.sum + row * c.h;
        for (int64_t i = threadIdx.x; i < c.h; i += ANY_THREADS)
            total[i] = (T)((float)x[i] + (float)delta[row * c.h + i]);
        x = total; /* a thread reads again what it has written itself */
    }
    if (b != NULL) {
        for (int64_t i = threadIdx.x; i < c.h; i += ANY_THREADS)
            sum[0] += (float)x[i];
        row_sums<1>(sum, 0);
        s.mean = sum[0] / (float)c.h;
    }
    for (int64_t i = threadIdx.x; i < c.h; i += ANY_THREADS)
        square[0] += ((float)x[i] - s.mean) * ((float)x[i] - s.mean);
    row_sums<1>(square, 1);
    s.r = inverse_root(square[0] / (float)c.h);
    keep_stats(c, row, s);
    for (int64_t i = threadIdx.x; i < c.h; i += ANY_THREADS) {
        const float v = ((float)x[i] - s.mean) * s.r * (float)w[i];
        ((T *)c.y)[row * c.h + i] = (T)(b != NULL ? v + (float)b[i] : v);
    }
}

template <typename T> static void launch_norm_any(const td_cuda_queue *q, const norm_call *c)
{
    norm_any<T><<<count_of(c->rows), ANY_THREADS, 0, stream_of(q)>>>(*c);
}

/* Threads of a row that has `n_vectors`, of which each thread keeps at most `each`. */
static unsigned threads_of_row(int64_t n_vectors, int64_t each)
{
    return count_of(ceil_div(n_vectors, 32 * each) * 32);
}

template <typename T, int N>
static void launch_norm_rows(const td_cuda_queue *q, const norm_call *c)
{
    const unsigned threads = threads_of_row(c->h / N, NORM_VECTORS);
    const unsigned rows = threads < NORM_THREADS ? NORM_THREADS / threads : 1;
    norm_rows<T, N>
        <<<count_of(ceil_div(c->rows, rows)), dim3(threads, rows), 0, stream_of(q)>>>(*c);
}

extern "C" void td_cuda_norm(void *dev, const act *x, const act *delta, act *sum, const act *w,
                             const act *b, act *y, float *stats, int64_t rows, int64_t h)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const norm_call *) = {
        {launch_norm_any<float>, launch_norm_rows<float, 4>},
        {launch_norm_any<__nv_bfloat16>, launch_norm_rows<__nv_bfloat16, 8>}};
    const td_cuda_queue *q = queue_of(dev);
    const norm_call c = {x, delta, sum, w, b, y, stats, rows, h};
    const uintptr_t borders = address(x) | address(delta) | address(delta != NULL ? sum : NULL) |
                              address(w) | address(b) | address(y);
    const bool fits = h <= 1024 * NORM_VECTORS * (q->bf16 ? 8 : 4);
    if (rows > 0 && h > 0)
        launch[q->bf16][fits && is_wide(q, h, borders)](q, &c);
}

/* ---- sums of columns ---- */

static __device__ row_stats stats_of(const float *stats, int64_t row, bool rms)
{
    return rms ? row_stats{0, stats[row]} : row_stats{stats[2 * row], stats[2 * row + 1]};
}

/* What to sum: dy, or with x dy * xhat, the gradient of a norm's weight. */
typedef struct {
    const act *dy, *x;
    const float *stats;
    bool rms;
    int64_t rows, n;
} columns_call;

/* partial[y][n] = sums of the y-th `rows_per_block` rows; a block has 32 vectors of columns. */
template <typename T, int N, bool WEIGHED>
static __global__ void __launch_bounds__(32 * SUM_WARPS, SUM_BLOCKS)
    column_sums(columns_call c, int64_t rows_per_block, float *partial)
{
    __shared__ float of_warp[SUM_WARPS][N * 32];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y;
    const int64_t i = ((int64_t)blockIdx.x * 32 + lane) * N;
    const int64_t begin = blockIdx.y * rows_per_block;
    const int64_t end = min(c.rows, begin + rows_per_block);
    float sum[N] = {0};
    cudaTriggerProgrammaticLaunchCompletion();
    for (int64_t row = begin + warp; i < c.n && row < end; row += SUM_WARPS * SUM_BATCH) {
        lanes<T, N> dy[SUM_BATCH];
#pragma unroll
        for (int k = 0; k < SUM_BATCH; k++) {
            dy[k] = {};
            if (row + k * SUM_WARPS < end)
                dy[k] = load<T, N>((const T *)c.dy + (row + k * SUM_WARPS) * c.n + i);
        }
#pragma unroll
        for (int k = 0; k < SUM_BATCH; k++) {
            const int64_t at = row + k * SUM_WARPS;
            float v[N], x[N];
            unpack(dy[k], v);
            if (WEIGHED && at < end) {
                const row_stats s = stats_of(c.stats, at, c.rms);
                unpack(load<T, N>((const T *)c.x + at * c.n + i), x);
                for (int e = 0; e < N; e++)
                    v[e] *= (x[e] - s.mean) * s.r;
            }
            for (int e = 0; e < N; e++)
                sum[e] += v[e];
        }
    }
    for (int e = 0; e < N; e++)
        of_warp[warp][e * 32 + lane] = sum[e];
    __syncthreads();
    const int thread = warp * 32 + lane;
    const int64_t column = ((int64_t)blockIdx.x * 32 + lane) * N + warp; /* element e = warp */
    if (warp >= N || column >= c.n)
        return;
    float total = 0;
    for (int w = 0; w < SUM_WARPS; w++)
        total += of_warp[w][thread];
    partial[blockIdx.y * c.n + column] = total;
}

/* y-th of (first, second)[n] += sums of partial[y][n_partials][n]; NULL: not wanted. Its blocks
 * come while the kernel that writes `partial` still runs, and wait here until that has ended. */
static __global__ void __launch_bounds__(1024)
    add_partials(const float *partial, int n_partials, int64_t n, float *first, float *second)
{
    __shared__ float of_warp[32][32];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y;
    const int64_t column = (int64_t)blockIdx.x * 32 + lane;
    float *out = blockIdx.y == 0 ? first : second;
    float sum = 0, before = 0;
    if (out == NULL)
        return;
    if (warp == 0 && column < n)
        before = out[column]; /* of kernels that ended before the other one began */
    cudaGridDependencySynchronize();
    if (column < n)
#pragma unroll 8
        for (int p = warp; p < n_partials; p += 32)
            sum += partial[((int64_t)blockIdx.y * n_partials + p) * n + column];
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= n)
        return;
    for (int w = 1; w < 32; w++)
        sum += of_warp[w][lane];
    out[column] = before + sum;
}

static void launch_add_partials(const td_cuda_queue *q, int64_t n_partials, int64_t n, float *first,
                                float *second)
{
    cudaLaunchAttribute early = {};
    cudaLaunchConfig_t launch = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    launch.gridDim = dim3(count_of(ceil_div(n, 32)), second != NULL ? 2 : 1);
    launch.blockDim = dim3(32, 32);
    launch.stream = stream_of(q);
    launch.attrs = &early;
    launch.numAttrs = 1;
    (void)cudaLaunchKernelEx(&launch, add_partials, (const float *)q->workspace, (int)n_partials, n,
                             first, second);
}

/* How many partial sums of n columns the workspace holds, at most `wanted`. */
static int64_t partials_that_fit(const td_cuda_queue *q, int64_t n, int64_t wanted)
{
    const int64_t fit = (int64_t)(q->workspace_bytes / sizeof(float)) / n;
    assert(fit > 0);
    return smaller(fit, wanted);
}

template <typename T, int N>
static void launch_column_sums(const td_cuda_queue *q, const columns_call *c, float *out)
{
    const int64_t tiles = ceil_div(c->n, 32 * N), blocks = (int64_t)q->n_sm * SUM_BLOCKS;
    const int64_t parts = partials_that_fit(q, c->n, blocks > tiles ? blocks / tiles : 1);
    const int64_t rows_per_block = ceil_div(ceil_div(c->rows, parts), SUM_WARPS) * SUM_WARPS;
    const int64_t n_partials = ceil_div(c->rows, rows_per_block);
    const dim3 grid(count_of(tiles), count_of(n_partials)), block(32, SUM_WARPS);
    float *partial = (float *)q->workspace;
    if (c->x != NULL)
        column_sums<T, N, true><<<grid, block, 0, stream_of(q)>>>(*c, rows_per_block, partial);
    else
        column_sums<T, N, false><<<grid, block, 0, stream_of(q)>>>(*c, rows_per_block, partial);
    launch_add_partials(q, n_partials, c->n, out, NULL);
}

static void sum_columns(const td_cuda_queue *q, const columns_call *c, float *out)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const columns_call *, float *) =
        TD_BY_TYPE(launch_column_sums);
    if (c->rows > 0 && c->n > 0 && out != NULL)
        launch[q->bf16][is_wide(q, c->n, address(c->dy) | address(c->x))](q, c, out);
}

extern "C" void td_cuda_bias_gradient(void *dev, const act *dy, float *db, int64_t rows, int64_t n)
{
    const columns_call c = {dy, NULL, NULL, false, rows, n};
    sum_columns(queue_of(dev), &c, db);
}

/* ---- norm backward ---- */

typedef struct {
    const act *dy, *x, *w;
    const float *stats;
    const act *residual;
    act *dx;
    float *dw, *db;
    int64_t rows, h;
    bool rms;
} norm_backward_call;

/*
 * Rows under way: each thread copies its vectors of dy, x and the residual to places in shared
 * memory that no other thread reads, so that they need no barrier, and no registers while they
 * travel. A stage is ring[tensor][vector of a thread][thread of the block].
 */
template <int V> struct ring {
    static const int stages = V == 1 ? 4 : 2; /* of which one is being worked on */
};

enum { OF_DY, OF_X, OF_RESIDUAL };

template <typename T, int N, int V>
static __device__ void fetch(norm_backward_call c, int64_t row, uint4 *stage)
{
    const void *const from[] = {c.dy, c.x, c.residual};
    const int block = (int)(blockDim.x * blockDim.y);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int64_t i = (int64_t)(threadIdx.x + k * blockDim.x) * N;
#pragma unroll
        for (int t = OF_DY; t <= OF_RESIDUAL; t++)
            if (row < c.rows && i < c.h && from[t] != NULL)
                __pipeline_memcpy_async(stage + (t * V + k) * block,
                                        (const T *)from[t] + row * c.h + i, sizeof *stage);
    }
    __pipeline_commit();
}

/* Sums of this block's columns to to[h]. `shared` has N * V floats for each thread. */
template <int N, int V>
static __device__ void put_columns(const float (&sum)[V * N], int64_t h, float *shared, float *to)
{
    const int threads = (int)blockDim.x, rows = (int)blockDim.y, width = threads * N * V;
    const int first = (int)threadIdx.x, row = (int)threadIdx.y;
    __syncthreads(); /* `shared` is no longer read */
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int i = (first + k * threads) * N;
        if (rows == 1 && i < h)
            store_floats<N>(to + i, sum + k * N);
        for (int e = k * N; rows > 1 && e < (k + 1) * N; e += 4)
            *(float4 *)(shared + row * width + i + e - k * N) =
                make_float4(sum[e], sum[e + 1], sum[e + 2], sum[e + 3]);
    }
    if (rows == 1)
        return;
    __syncthreads();
    for (int64_t i = (row * threads + first) * 4; i < h; i += rows * threads * 4) {
        float total[4] = {0};
        for (int r = 0; r < rows; r++) {
            float v[4];
            load_floats<4>(shared + r * width + i, v);
            for (int e = 0; e < 4; e++)
                total[e] += v[e];
        }
        store_floats<4>(to + i, total);
    }
}

/*
 * With g = dy * w: dx = r * (g - mean(g) - xhat * mean(g * xhat)) + residual, RMSNorm without
 * mean(g). Rows go round the rows of threads, so that each thread sums the columns of dw and db
 * that it sees in registers: partial[0][block][h] and partial[1][block][h].
 */
template <typename T, int N, int V, bool BIAS>
static __global__ void __launch_bounds__(1024, 1)
    norm_backward_rows(norm_backward_call c, float *partial)
{
    extern __shared__ uint4 shared[];
    const int stages = ring<V>::stages, block = (int)(blockDim.x * blockDim.y);
    const int stage = (c.residual != NULL ? 3 : 2) * V * block;
    const int64_t stride = (int64_t)gridDim.x * blockDim.y;
    const int64_t row0 = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const float per_h = 1 / (float)c.h;
    uint4 *own = shared + threadIdx.y * blockDim.x + threadIdx.x;
    float of_w[V * N] = {0}, of_b[V * N] = {0}; /* of_b: only with BIAS */
    lanes<T, N> weight[V];
    row_stats next = {0, 0};
    int turn = 0, slot = 0;
    cudaTriggerProgrammaticLaunchCompletion();
    for (int k = 0; k < stages - 1; k++)
        fetch<T, N, V>(c, row0 + k * stride, own + k * stage);
    if (row0 < c.rows)
        next = stats_of(c.stats, row0, c.rms);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int i = (int)(threadIdx.x + k * blockDim.x) * N;
        weight[k] = {};
        if (i < c.h)
            weight[k] = load<T, N>((const T *)c.w + i);
    }
    /* All rows of a block go round equally often, the last time perhaps for nothing: racecheck
     * counts the barriers that a thread has passed, also those of its row alone. */
    for (int64_t row = row0; row - threadIdx.y < c.rows; row += stride) {
        const int before = (slot > 0 ? slot : stages) - 1; /* worked on in the last round */
        const uint4 *at = own + slot * stage;
        const row_stats s = next;
        float mean[2] = {0, 0}; /* of g, of g * xhat */
        fetch<T, N, V>(c, row + (stages - 1) * stride, own + before * stage);
        if (row + stride < c.rows)
            next = stats_of(c.stats, row + stride, c.rms);
        __pipeline_wait_prior(stages - 1);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const int i = (int)(threadIdx.x + k * blockDim.x) * N;
            float dy[N], x[N], w[N];
            if (i >= c.h || row >= c.rows)
                continue;
            unpack(lanes<T, N>{at[(OF_DY * V + k) * block]}, dy);
            unpack(lanes<T, N>{at[(OF_X * V + k) * block]}, x);
            unpack(weight[k], w);
            for (int e = 0; e < N; e++) {
                const float xhat = (x[e] - s.mean) * s.r, g = dy[e] * w[e];
                of_w[k * N + e] += dy[e] * xhat;
                if (BIAS)
                    of_b[k * N + e] += dy[e];
                mean[0] += g;
                mean[1] += g * xhat;
            }
        }
        row_sums<2, true>(mean, turn);
        mean[0] = c.rms ? 0 : mean[0] * per_h;
        mean[1] *= per_h;
#pragma unroll
        for (int k = 0; k < V; k++) {
            const int i = (int)(threadIdx.x + k * blockDim.x) * N;
            lanes<T, N> residual = {};
            float dy[N], x[N], w[N], dx[N];
            if (i >= c.h || row >= c.rows)
                continue;
            if (c.residual != NULL)
                residual.bits = at[(OF_RESIDUAL * V + k) * block];
            unpack(lanes<T, N>{at[(OF_DY * V + k) * block]}, dy); /* registers are short */
            unpack(lanes<T, N>{at[(OF_X * V + k) * block]}, x);
            unpack(weight[k], w);
            unpack(residual, dx);
            for (int e = 0; e < N; e++) {
                const float xhat = (x[e] - s.mean) * s.r;
                dx[e] += s.r * (dy[e] * w[e] - mean[0] - xhat * mean[1]);
            }
            store((T *)c.dx + row * c.h + i, packed<T, N>(dx));
        }
        slot = slot + 1 < stages ? slot + 1 : 0;
        turn ^= 1;
    }
    if (c.dw != NULL)
        put_columns<N, V>(of_w, c.h, (float *)shared, partial + blockIdx.x * c.h);
    if (BIAS)
        put_columns<N, V>(of_b, c.h, (float *)shared, partial + (gridDim.x + blockIdx.x) * c.h);
}

/* A block's row of any width and on any border. */
template <typename T>
static __global__ void __launch_bounds__(ANY_THREADS) norm_backward_any(norm_backward_call c)
{
    const int64_t row = blockIdx.x, at = row * c.h;
    const T *dy = (const T *)c.dy + at, *x = (const T *)c.x + at, *w = (const T *)c.w;
    const row_stats s = stats_of(c.stats, row, c.rms);
    float mean[2] = {0, 0};
    for (int64_t i = threadIdx.x; i < c.h; i += ANY_THREADS) {
        const float g = (float)dy[i] * (float)w[i];
        mean[0] += g;
        mean[1] += g * (((float)x[i] - s.mean) * s.r);
    }
    row_sums<2>(mean, 0);
    mean[0] = c.rms ? 0 : mean[0] / (float)c.h;
    mean[1] /= (float)c.h;
    for (int64_t i = threadIdx.x; i < c.h; i += ANY_THREADS) {
        const float xhat = ((float)x[i] - s.mean) * s.r;
        const float d = s.r * ((float)dy[i] * (float)w[i] - mean[0] - xhat * mean[1]);
        const float through = c.residual != NULL ? (float)((const T *)c.residual)[at + i] : 0;
        ((T *)c.dx)[at + i] = (T)(d + through);
    }
}

/* Sums of columns go first: dx may stand where dy did. */
template <typename T>
static void launch_norm_backward_any(const td_cuda_queue *q, const norm_backward_call *c)
{
    const columns_call of_w = {c->dy, c->x, c->stats, c->rms, c->rows, c->h};
    const columns_call of_b = {c->dy, NULL, NULL, c->rms, c->rows, c->h};
    sum_columns(q, &of_w, c->dw);
    sum_columns(q, &of_b, c->db);
    norm_backward_any<T><<<count_of(c->rows), ANY_THREADS, 0, stream_of(q)>>>(*c);
}

/*
 * A block has a multiprocessor to itself, and few blocks make few partial sums: as few as go
 * through the rows in as many rounds as all multiprocessors would need. A block without that place
 * would begin when the others are done, so what remains free is left to communication.
 */
template <typename T, int N, int V, bool BIAS>
static void launch_norm_backward_rows(const td_cuda_queue *q, const norm_backward_call *c)
{
    const unsigned threads = threads_of_row(c->h / N, V);
    const int64_t room = partials_that_fit(q, 2 * c->h, q->n_sm);
    const int64_t at_once =
        smaller(smaller(1024 / threads, BACKWARD_ROWS), ceil_div(c->rows, room));
    const int64_t rounds = ceil_div(c->rows, room * at_once);
    const int64_t n_blocks = ceil_div(c->rows, rounds * at_once);
    const int n_tensors = c->residual != NULL ? 3 : 2;
    const int ring_bytes =
        ring<V>::stages * n_tensors * V * (int)(threads * at_once * sizeof(uint4));
    cudaFuncSetAttribute(norm_backward_rows<T, N, V, BIAS>,
                         cudaFuncAttributeMaxDynamicSharedMemorySize, ring_bytes);
    norm_backward_rows<T, N, V, BIAS>
        <<<count_of(n_blocks), dim3(threads, count_of(at_once)), ring_bytes, stream_of(q)>>>(
            *c, (float *)q->workspace);
    if (c->dw != NULL || c->db != NULL)
        launch_add_partials(q, n_blocks, c->h, c->dw, c->db);
}

/* Registers for the sums of two vectors of bf16 with a bias are missing, but no norm with a bias is
 * so wide. */
extern "C" void td_cuda_norm_backward(void *dev, const act *dy, const act *sum, const act *w,
                                      const float *stats, const act *residual, act *dx, float *dw,
                                      float *db, int64_t rows, int64_t h, bool rms)
{
    /* [bf16][db wanted][vectors of a thread; 0: any] */
    static void (*const launch[2][2][3])(const td_cuda_queue *, const norm_backward_call *) = {
        {{launch_norm_backward_any<float>, launch_norm_backward_rows<float, 4, 1, false>,
          launch_norm_backward_rows<float, 4, 2, false>},
         {launch_norm_backward_any<float>, launch_norm_backward_rows<float, 4, 1, true>,
          launch_norm_backward_rows<float, 4, 2, true>}},
        {{launch_norm_backward_any<__nv_bfloat16>,
          launch_norm_backward_rows<__nv_bfloat16, 8, 1, false>,
          launch_norm_backward_rows<__nv_bfloat16, 8, 2, false>},
         {launch_norm_backward_any<__nv_bfloat16>,
          launch_norm_backward_rows<__nv_bfloat16, 8, 1, true>,
          launch_norm_backward_any<__nv_bfloat16>}}};
    const td_cuda_queue *q = queue_of(dev);
    const norm_backward_call c = {dy, sum, w, stats, residual, dx, dw, db, rows, h, rms};
    const uintptr_t borders =
        address(dy) | address(sum) | address(w) | address(residual) | address(dx);
    const int64_t each = ceil_div(h, 1024 * (q->bf16 ? 8 : 4));
    if (rows > 0 && h > 0)
        launch[q->bf16][db != NULL][is_wide(q, h, borders) && each <= 2 ? each : 0](q, &c);
}
