/*
 * Flash attention in plain float arithmetic, for what the tensor-core kernels cannot do: fp32 plans
 * (whose products must not be rounded to TF32) and head sizes that are no multiple of 8 or larger
 * than 128. Same two backward passes as exec/kernels_attention.cu, so nothing is summed across
 * blocks here either.
 */
extern "C" {
#include "exec/kernels_attention.h"
}

#include <assert.h>
#include <cuda_bf16.h>
#include <math.h>

namespace
{

typedef __nv_bfloat16 bf16;

/*
 * A block owns 64 rows (queries, or keys where dK and dV are computed) and walks over tiles of 32
 * others, the columns. Its threads form a square: thread (x, y) has rows 4 y .. 4 y + 3, and
 * columns x and x + 16 of the scores; of the head it has columns 4 x .. 4 x + 3 of every 64. A
 * row's threads are half a warp.
 */
enum { ROWS = 64, COLUMNS = 32, SIDE = 16, THREADS = SIDE * SIDE, PER_ROW = 4, PER_COLUMN = 2 };

/* Rows in shared memory are 4 floats longer than they need be, so that 16-byte reads down a column
 * fall into different banks. */
enum { SCORE_PITCH = COLUMNS + 4 };

template <int D> struct tile {
    static constexpr int PITCH = D + 4;
    static constexpr int PER_THREAD = D / SIDE; /* columns of the head */
};

/* Shared memory: tiles of rows, two of columns, and the scores. */
constexpr size_t bytes_of(int d, int n_row_tiles)
{
    return ((n_row_tiles * ROWS + 2 * COLUMNS) * (d + 4) + ROWS * SCORE_PITCH) * sizeof(float);
}

__device__ inline float to_float(float x)
{
    return x;
}

__device__ inline float to_float(bf16 x)
{
    return __bfloat162float(x);
}

template <int D, int N, typename T>
__device__ inline void fetch_as(float *to, const T *from, int64_t pitch, int32_t n_rows,
                                int32_t head_dim)
{
    constexpr int STEP = THREADS / D, LOADS = N / STEP, BATCH = LOADS < 16 ? LOADS : 16;
    const int column = threadIdx.x % D, first = threadIdx.x / D;
    const bool column_there = column < head_dim;
    from += column_there ? column : 0;
    to += first * tile<D>::PITCH + column;
#pragma unroll 1
    for (int i = 0; i < LOADS; i += BATCH) {
        float x[BATCH]; /* so that many loads are on their way at once */
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            const int row = first + (i + n) * STEP;
            const float read = to_float(from[min(row, n_rows - 1) * pitch]); /* without a branch */
            x[n] = row < n_rows && column_there ? read : 0;
        }
#pragma unroll
        for (int n = 0; n < BATCH; n++)
            to[(i + n) * STEP * tile<D>::PITCH] = x[n];
    }
}

/* Copies n_rows rows of activations from element `from` on; the rest of the N rows and what is
 * beyond head_dim become zeros. */
template <int D, int N>
__device__ inline void fetch(float *to, const td_attention_job &j, const act *p, int64_t from,
                             int64_t pitch, int32_t n_rows)
{
    if (j.bf16)
        fetch_as<D, N>(to, (const bf16 *)p + from, pitch, n_rows, j.head_dim);
    else
        fetch_as<D, N>(to, (const float *)p + from, pitch, n_rows, j.head_dim);
}

/* s = a * b^T, a [ROWS, D], b [COLUMNS, D] */
template <int D>
__device__ inline void scores(float (&s)[PER_ROW][PER_COLUMN], const float *a, const float *b)
{
    constexpr int PITCH = tile<D>::PITCH;
    const float *row = a + threadIdx.x / SIDE * PER_ROW * PITCH,
                *column = b + threadIdx.x % SIDE * PITCH;
#pragma unroll
    for (int i = 0; i < PER_ROW; i++)
#pragma unroll
        for (int n = 0; n < PER_COLUMN; n++)
            s[i][n] = 0;
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
        float4 x[PER_ROW], y[PER_COLUMN];
#pragma unroll
        for (int i = 0; i < PER_ROW; i++)
            x[i] = *(const float4 *)(row + i * PITCH + d);
#pragma unroll
        for (int n = 0; n < PER_COLUMN; n++)
            y[n] = *(const float4 *)(column + n * SIDE * PITCH + d);
#pragma unroll
        for (int i = 0; i < PER_ROW; i++)
#pragma unroll
            for (int n = 0; n < PER_COLUMN; n++) {
                s[i][n] = fmaf(x[i].x, y[n].x, s[i][n]);
                s[i][n] = fmaf(x[i].y, y[n].y, s[i][n]);
                s[i][n] = fmaf(x[i].z, y[n].z, s[i][n]);
                s[i][n] = fmaf(x[i].w, y[n].w, s[i][n]);
            }
    }
}

/* c += p * b, b [COLUMNS, D]; p passes through shared memory within each row's half warp. */
template <int D>
__device__ inline void accumulate(float (&c)[PER_ROW][tile<D>::PER_THREAD], float *shared,
                                  const float (&p)[PER_ROW][PER_COLUMN], const float *b)
{
    constexpr int PITCH = tile<D>::PITCH;
    const int x = threadIdx.x % SIDE;
    float *rows = shared + threadIdx.x / SIDE * PER_ROW * SCORE_PITCH;
    __syncwarp(); /* the scores before these have been read */
#pragma unroll
    for (int i = 0; i < PER_ROW; i++)
#pragma unroll
        for (int n = 0; n < PER_COLUMN; n++)
            rows[i * SCORE_PITCH + n * SIDE + x] = p[i][n];
    __syncwarp();
#pragma unroll 2
    for (int k = 0; k < COLUMNS; k += 4) {
        float4 w[PER_ROW];
#pragma unroll
        for (int i = 0; i < PER_ROW; i++)
            w[i] = *(const float4 *)(rows + i * SCORE_PITCH + k);
#pragma unroll
        for (int kk = 0; kk < 4; kk++)
#pragma unroll
            for (int n = 0; n < D / 64; n++) {
                const float4 y = *(const float4 *)(b + (k + kk) * PITCH + n * 64 + x * 4);
#pragma unroll
                for (int i = 0; i < PER_ROW; i++) {
                    const float f = kk == 0 ? w[i].x : kk == 1 ? w[i].y : kk == 2 ? w[i].z : w[i].w;
                    c[i][n * 4] = fmaf(f, y.x, c[i][n * 4]);
                    c[i][n * 4 + 1] = fmaf(f, y.y, c[i][n * 4 + 1]);
                    c[i][n * 4 + 2] = fmaf(f, y.z, c[i][n * 4 + 2]);
                    c[i][n * 4 + 3] = fmaf(f, y.w, c[i][n * 4 + 3]);
                }
            }
    }
}

/* Writes factor * c, the first n_rows rows of it, from element `to` on. */
template <int D>
__device__ inline void store(const td_attention_job &j, act *p, int64_t to, int64_t pitch,
                             int32_t n_rows, const float (&c)[PER_ROW][tile<D>::PER_THREAD],
                             const float (&factor)[PER_ROW])
{
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < PER_ROW; i++)
#pragma unroll
        for (int n = 0; n < tile<D>::PER_THREAD; n++) {
            const int row = y * PER_ROW + i, column = n / 4 * 64 + x * 4 + n % 4;
            const int64_t at = to + row * pitch + column;
            const float value = c[i][n] * factor[i];
            if (row < n_rows && column < j.head_dim) {
                if (j.bf16)
                    ((bf16 *)p)[at] = __float2bfloat16_rn(value);
                else
                    ((float *)p)[at] = value;
            }
        }
}

/* Does query row see key row? Both count from the start of the sample; keys may be past its end. */
__device__ inline bool sees(const td_attention_job &j, int32_t query, int32_t key)
{
    return key < j.seq && (!j.causal || key <= query);
}

/* First elements of a sample's rows: q of a head, k and v of a kv head, out of a head. */
__device__ inline int64_t q_at(const td_attention_job &j, int32_t sample, int32_t head)
{
    return (int64_t)sample * j.seq * j.width + (int64_t)head * j.head_dim;
}

__device__ inline int64_t k_at(const td_attention_job &j, int32_t sample, int32_t kv)
{
    return q_at(j, sample, j.heads + kv);
}

__device__ inline int64_t v_at(const td_attention_job &j, int32_t sample, int32_t kv)
{
    return q_at(j, sample, j.heads + j.kv_heads + kv);
}

__device__ inline int64_t out_at(const td_attention_job &j, int32_t sample, int32_t head)
{
    return (int64_t)sample * j.seq * j.out_width + (int64_t)head * j.head_dim;
}

__device__ inline int32_t kv_of(const td_attention_job &j, int32_t head)
{
    return (int32_t)((int64_t)head * j.kv_heads / j.heads);
}

/* ---- forward ---- */

template <int D>
__global__ void __launch_bounds__(THREADS, D <= 128 ? 2 : 1) forward(const td_attention_job j)
{
    constexpr int PITCH = tile<D>::PITCH, PER_THREAD = tile<D>::PER_THREAD;
    extern __shared__ __align__(16) float shared_floats[];
    float *q = shared_floats, *k = q + ROWS * PITCH, *v = k + COLUMNS * PITCH,
          *p = v + COLUMNS * PITCH;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int32_t head = blockIdx.x % j.heads, sample = blockIdx.x / j.heads, kv = kv_of(j, head);
    const int32_t q0 = (gridDim.y - 1 - blockIdx.y) * ROWS; /* causal: most keys first */
    const int32_t end = j.causal ? min(j.seq, q0 + ROWS) : j.seq;
    float o[PER_ROW][PER_THREAD] = {}, max[PER_ROW], sum[PER_ROW] = {};
#pragma unroll
    for (int i = 0; i < PER_ROW; i++)
        max[i] = -INFINITY;
    fetch<D, ROWS>(q, j, j.qkv, q_at(j, sample, head) + q0 * j.width, j.width, j.seq - q0);
    for (int32_t k0 = 0; k0 < end; k0 += COLUMNS) {
        float s[PER_ROW][PER_COLUMN];
        __syncthreads(); /* no one still reads the tile before */
        fetch<D, COLUMNS>(k, j, j.qkv, k_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0);
        fetch<D, COLUMNS>(v, j, j.qkv, v_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0);
        __syncthreads();
        scores<D>(s, q, k);
        /* The first tile shows every row a key, so that the maximum is a number from there on. */
#pragma unroll
        for (int i = 0; i < PER_ROW; i++) {
            const int32_t row = q0 + y * PER_ROW + i;
            float new_max = max[i], row_sum = 0;
#pragma unroll
            for (int n = 0; n < PER_COLUMN; n++) {
                s[i][n] = sees(j, row, k0 + n * SIDE + x) ? s[i][n] * j.scale : -INFINITY;
                new_max = fmaxf(new_max, s[i][n]);
            }
#pragma unroll
            for (int step = SIDE / 2; step > 0; step /= 2)
                new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, step));
            const float shrink = expf(max[i] - new_max);
#pragma unroll
            for (int n = 0; n < PER_COLUMN; n++) {
                s[i][n] = expf(s[i][n] - new_max);
                row_sum += s[i][n];
            }
#pragma unroll
            for (int n = 0; n < PER_THREAD; n++)
                o[i][n] *= shrink;
            sum[i] = sum[i] * shrink + row_sum; /* of this thread's columns */
            max[i] = new_max;
        }
        accumulate<D>(o, p, s, v);
    }
    float inverse[PER_ROW];
#pragma unroll
    for (int i = 0; i < PER_ROW; i++) {
        const int32_t row = q0 + y * PER_ROW + i;
#pragma unroll
        for (int step = SIDE / 2; step > 0; step /= 2)
            sum[i] += __shfl_xor_sync(~0u, sum[i], step);
        inverse[i] = 1 / sum[i];
        if (x == 0 && row < j.seq)
            j.lse[td_attention_stat(j, sample, head) + row] = max[i] + logf(sum[i]);
    }
    store<D>(j, j.out, out_at(j, sample, head) + q0 * j.out_width, j.out_width, j.seq - q0, o,
             inverse);
}

/* ---- backward ---- */

/* A warp to each row of a head. */
__global__ void __launch_bounds__(THREADS) row_dots(const td_attention_job j)
{
    const int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32, row = at / j.heads;
    const int32_t head = (int32_t)(at % j.heads), lane = threadIdx.x % 32;
    float dot = 0;
    if (row < j.rows)
        for (int32_t column = lane; column < j.head_dim; column += 32) {
            const int64_t i = row * j.out_width + (int64_t)head * j.head_dim + column;
            if (j.bf16)
                dot = fmaf(__bfloat162float(((const bf16 *)j.dout)[i]),
                           __bfloat162float(((const bf16 *)j.out)[i]), dot);
            else
                dot = fmaf(((const float *)j.dout)[i], ((const float *)j.out)[i], dot);
        }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        dot += __shfl_xor_sync(~0u, dot, step);
    if (row < j.rows && lane == 0)
        j.row_dot[td_attention_stat(j, (int32_t)(row / j.seq), head) + row % j.seq] = dot;
}

/* dK and dV of 64 keys over the queries of every head that uses them; the columns are queries. */
template <int D>
__global__ void __launch_bounds__(THREADS, 1) backward_keys(const td_attention_job j)
{
    constexpr int PITCH = tile<D>::PITCH, PER_THREAD = tile<D>::PER_THREAD;
    extern __shared__ __align__(16) float shared_floats[];
    float *k = shared_floats, *v = k + ROWS * PITCH, *q = v + ROWS * PITCH,
          *dout = q + COLUMNS * PITCH, *p_tile = dout + COLUMNS * PITCH;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int32_t kv = blockIdx.x % j.kv_heads, sample = blockIdx.x / j.kv_heads;
    const int32_t first_head = (int32_t)(((int64_t)kv * j.heads + j.kv_heads - 1) / j.kv_heads),
                  end_head = (int32_t)(((kv + 1ll) * j.heads + j.kv_heads - 1) / j.kv_heads);
    const int32_t k0 = blockIdx.y * ROWS; /* causal: most queries first */
    float dk[PER_ROW][PER_THREAD] = {}, dv[PER_ROW][PER_THREAD] = {};
    fetch<D, ROWS>(k, j, j.qkv, k_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0);
    fetch<D, ROWS>(v, j, j.qkv, v_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0);
    for (int32_t head = first_head; head < end_head; head++)
        for (int32_t q0 = j.causal ? k0 : 0; q0 < j.seq; q0 += COLUMNS) {
            float p[PER_ROW][PER_COLUMN], dp[PER_ROW][PER_COLUMN];
            __syncthreads(); /* no one still reads the tile before */
            fetch<D, COLUMNS>(q, j, j.qkv, q_at(j, sample, head) + q0 * j.width, j.width,
                              j.seq - q0);
            fetch<D, COLUMNS>(dout, j, j.dout, out_at(j, sample, head) + q0 * j.out_width,
                              j.out_width, j.seq - q0);
            __syncthreads();
            scores<D>(p, k, q);
            scores<D>(dp, v, dout);
#pragma unroll
            for (int n = 0; n < PER_COLUMN; n++) {
                const int32_t row = q0 + n * SIDE + x;
                const int64_t at = td_attention_stat(j, sample, head) + row;
                const float lse = row < j.seq ? j.lse[at] : 0,
                            dot = row < j.seq ? j.row_dot[at] : 0;
#pragma unroll
                for (int i = 0; i < PER_ROW; i++) {
                    const bool seen = row < j.seq && sees(j, row, k0 + y * PER_ROW + i);
                    p[i][n] = seen ? expf(p[i][n] * j.scale - lse) : 0;
                    dp[i][n] = p[i][n] * (dp[i][n] - dot);
                }
            }
            accumulate<D>(dv, p_tile, p, dout);
            accumulate<D>(dk, p_tile, dp, q);
        }
    const float k_factor[PER_ROW] = {j.scale, j.scale, j.scale, j.scale},
                v_factor[PER_ROW] = {1, 1, 1, 1};
    store<D>(j, j.dqkv, k_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0, dk, k_factor);
    store<D>(j, j.dqkv, v_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0, dv, v_factor);
}

/* dQ of 64 queries; the columns are keys. */
template <int D>
__global__ void __launch_bounds__(THREADS, D <= 128 ? 2 : 1)
    backward_queries(const td_attention_job j)
{
    constexpr int PITCH = tile<D>::PITCH, PER_THREAD = tile<D>::PER_THREAD;
    extern __shared__ __align__(16) float shared_floats[];
    float *q = shared_floats, *dout = q + ROWS * PITCH, *k = dout + ROWS * PITCH,
          *v = k + COLUMNS * PITCH, *p_tile = v + COLUMNS * PITCH;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int32_t head = blockIdx.x % j.heads, sample = blockIdx.x / j.heads, kv = kv_of(j, head);
    const int32_t q0 = (gridDim.y - 1 - blockIdx.y) * ROWS; /* causal: most keys first */
    const int32_t end = j.causal ? min(j.seq, q0 + ROWS) : j.seq;
    float dq[PER_ROW][PER_THREAD] = {}, lse[PER_ROW], dot[PER_ROW], factor[PER_ROW];
#pragma unroll
    for (int i = 0; i < PER_ROW; i++) {
        const int32_t row = q0 + y * PER_ROW + i;
        const int64_t at = td_attention_stat(j, sample, head) + row;
        lse[i] = row < j.seq ? j.lse[at] : 0;
        dot[i] = row < j.seq ? j.row_dot[at] : 0;
        factor[i] = j.scale;
    }
    fetch<D, ROWS>(q, j, j.qkv, q_at(j, sample, head) + q0 * j.width, j.width, j.seq - q0);
    fetch<D, ROWS>(dout, j, j.dout, out_at(j, sample, head) + q0 * j.out_width, j.out_width,
                   j.seq - q0);
    for (int32_t k0 = 0; k0 < end; k0 += COLUMNS) {
        float p[PER_ROW][PER_COLUMN], dp[PER_ROW][PER_COLUMN];
        __syncthreads(); /* no one still reads the tile before */
        fetch<D, COLUMNS>(k, j, j.qkv, k_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0);
        fetch<D, COLUMNS>(v, j, j.qkv, v_at(j, sample, kv) + k0 * j.width, j.width, j.seq - k0);
        __syncthreads();
        scores<D>(p, q, k);
        scores<D>(dp, dout, v);
#pragma unroll
        for (int i = 0; i < PER_ROW; i++)
#pragma unroll
            for (int n = 0; n < PER_COLUMN; n++) {
                const bool seen = sees(j, q0 + y * PER_ROW + i, k0 + n * SIDE + x);
                p[i][n] = seen ? expf(p[i][n] * j.scale - lse[i]) : 0;
                dp[i][n] = p[i][n] * (dp[i][n] - dot[i]);
            }
        accumulate<D>(dq, p_tile, dp, k);
    }
    store<D>(j, j.dqkv, q_at(j, sample, head) + q0 * j.width, j.width, j.seq - q0, dq, factor);
}

/* ---- launchers ---- */

typedef void kernel(const td_attention_job j);

/* Kernels for heads of up to `head_dim`. */
typedef struct {
    int32_t head_dim;
    kernel *forward, *backward_keys, *backward_queries;
} variant;

#define VARIANT(D)                                                                                 \
    {                                                                                              \
        D, forward<D>, backward_keys<D>, backward_queries<D>                                       \
    }
const variant variants[] = {VARIANT(64), VARIANT(128), VARIANT(TD_ATTENTION_ANY_HEAD)};

const variant *variant_for(const td_attention_job *j)
{
    const variant *v = variants;
    assert(j->head_dim <= TD_ATTENTION_ANY_HEAD);
    while (j->head_dim > v->head_dim)
        v++;
    return v;
}

/* One block for each (sample, head) and for each ROWS rows of the sequence. */
void launch(const td_cuda_queue *q, kernel *f, const td_attention_job *j, int32_t heads,
            size_t bytes)
{
    const dim3 grid((uint32_t)(j->samples * heads), (uint32_t)((j->seq - 1) / ROWS + 1));
    cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    f<<<grid, THREADS, bytes, (cudaStream_t)q->stream>>>(*j);
}

} // namespace

void td_cuda_attention_any(const td_cuda_queue *q, const td_attention_job *j)
{
    const variant *v = variant_for(j);
    launch(q, v->forward, j, j->heads, bytes_of(v->head_dim, 1));
}

void td_cuda_attention_any_backward(const td_cuda_queue *q, const td_attention_job *j)
{
    const variant *v = variant_for(j);
    const int64_t lanes = j->rows * j->heads * 32;
    const uint32_t blocks = (uint32_t)((lanes - 1) / THREADS + 1);
    row_dots<<<blocks, THREADS, 0, (cudaStream_t)q->stream>>>(*j);
    launch(q, v->backward_keys, j, j->kv_heads, bytes_of(v->head_dim, 2));
    launch(q, v->backward_queries, j, j->heads, bytes_of(v->head_dim, 2));
}
