/*
 * Vocabulary-parallel cross-entropy. A row of logits has a block of threads. Each pass is bound by
 * memory, so rows travel in vectors of 16 bytes, several at once, and an exponential may not take
 * longer than its bytes.
 */
extern "C" {
#include "exec/cuda_kernels.h"
}

#include "exec/kernels_block.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stddef.h>

enum {
    THREADS = 512, /* of a row */
    BLOCKS = 3,    /* at least, on a multiprocessor: leaves a thread 40 registers */
    BATCH = 4,     /* vectors that a thread has under way */
    VALUE_THREADS = 1024
};

/* ---- elements ---- */

static __device__ float float_of(float x)
{
    return x;
}

static __device__ float float_of(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

/* A vector's elements as floats. */
template <typename T> struct wide {
    enum { WIDTH = 16 / sizeof(T) };
    float v[WIDTH];
};

static __device__ void unpack(uint4 in, wide<float> *out)
{
    const uint32_t words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        out->v[i] = __uint_as_float(words[i]);
}

/* A bf16 is the upper half of a float. */
static __device__ void unpack(uint4 in, wide<__nv_bfloat16> *out)
{
    const uint32_t words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out->v[2 * i] = __uint_as_float(words[i] << 16);
        out->v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
}

static __device__ uint4 pack(const wide<float> *x)
{
    return make_uint4(__float_as_uint(x->v[0]), __float_as_uint(x->v[1]), __float_as_uint(x->v[2]),
                      __float_as_uint(x->v[3]));
}

static __device__ uint4 pack(const wide<__nv_bfloat16> *x)
{
    return make_uint4(pair_of(x->v[0], x->v[1]), pair_of(x->v[2], x->v[3]),
                      pair_of(x->v[4], x->v[5]), pair_of(x->v[6], x->v[7]));
}

/* exp(x), x <= 0. Logits of float deserve all of expf; those of bf16 are known to 2^-9, and two
 * instructions have 2^-22 or, where x is -20, 2^-19. */
template <typename T> static __device__ float exponential(float x);

template <> __device__ float exponential<float>(float x)
{
    return expf(x);
}

template <> __device__ float exponential<__nv_bfloat16>(float x)
{
    const float log2_e = 1.44269504088896341F;
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * log2_e));
    return y;
}

/* ---- passes over a row ---- */

/* fmaxf() takes the other number for a nan, as the comparison on the host does. */
static __device__ float block_max(float value)
{
    __shared__ float warps[THREADS / 32];
    for (int step = 16; step > 0; step /= 2)
        value = fmaxf(value, __shfl_down_sync(0xFFFFFFFFu, value, step));
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = value;
    __syncthreads();
    for (int i = 0; threadIdx.x == 0 && i < THREADS / 32; i++)
        value = fmaxf(value, warps[i]);
    return value; /* of thread 0 */
}

template <typename T>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    max_of_row(const T *__restrict__ logits, float *__restrict__ stats, int n)
{
    const int64_t row = blockIdx.x;
    const T *x = logits + row * n;
    const cut c = cut_of(x, n);
    const uint4 *vectors = (const uint4 *)(x + c.head);
    const int edge = edge_of<T>(c);
    float max = -INFINITY;
    for (int first = (int)threadIdx.x; first < c.n_vectors; first += BATCH * THREADS) {
        uint4 batch[BATCH];
        load<THREADS>(vectors, first, c.n_vectors, batch);
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (first + k * THREADS < c.n_vectors) {
                wide<T> w;
                unpack(batch[k], &w);
#pragma unroll
                for (int i = 0; i < wide<T>::WIDTH; i++)
                    max = fmaxf(max, w.v[i]);
            }
    }
    if (edge >= 0)
        max = fmaxf(max, float_of(x[edge]));
    max = block_max(max);
    if (threadIdx.x == 0)
        stats[row] = max;
}

/* A thread's sum is float, in as many chains as a vector has elements (256k columns: 64 or 128
 * additions each), that of the block double. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    sum_of_row(const T *__restrict__ logits, const int32_t *__restrict__ target,
               const float *__restrict__ stats, float *__restrict__ sums, int n,
               int64_t first_column)
{
    const int64_t row = blockIdx.x;
    const int column = (int)(target[row] - first_column);
    const bool counted = target[row] >= 0;
    const float max = stats[row];
    const T *x = logits + row * n;
    const cut c = cut_of(x, counted ? n : 0); /* nobody asks for the sum of any other row */
    const uint4 *vectors = (const uint4 *)(x + c.head);
    const int edge = edge_of<T>(c);
    wide<T> chains = {};
    for (int first = (int)threadIdx.x; first < c.n_vectors; first += BATCH * THREADS) {
        uint4 batch[BATCH];
        load<THREADS>(vectors, first, c.n_vectors, batch);
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (first + k * THREADS < c.n_vectors) {
                wide<T> w;
                unpack(batch[k], &w);
#pragma unroll
                for (int i = 0; i < wide<T>::WIDTH; i++)
                    chains.v[i] += exponential<T>(w.v[i] - max);
            }
    }
    double sum = edge >= 0 ? (double)exponential<T>(float_of(x[edge]) - max) : 0;
#pragma unroll
    for (int i = 0; i < wide<T>::WIDTH; i++)
        sum += (double)chains.v[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) {
        sums[2 * row] = (float)sum;
        sums[2 * row + 1] = counted && column >= 0 && column < n ? float_of(x[column]) - max : 0.0F;
    }
}

/* softmax - target of the element in column `i` */
template <typename T>
static __device__ float slope(float logit, float max, float inverse, int i, int column)
{
    const float p = exponential<T>(logit - max) * inverse;
    return i == column ? p - 1 : p;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    gradient_of_row(T *logits, const int32_t *__restrict__ target, const float *__restrict__ stats,
                    const float *__restrict__ sums, int n, int64_t first_column)
{
    const int64_t row = blockIdx.x;
    const int column = (int)(target[row] - first_column);
    const bool counted = target[row] >= 0;
    const float max = stats[row], inverse = 1 / sums[2 * row];
    T *x = logits + row * n;
    const cut c = cut_of(x, n);
    uint4 *vectors = (uint4 *)(x + c.head);
    const int edge = edge_of<T>(c);
    for (int first = (int)threadIdx.x; first < c.n_vectors; first += BATCH * THREADS) {
        uint4 batch[BATCH];
        if (counted)
            load<THREADS>(vectors, first, c.n_vectors, batch);
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (first + k * THREADS < c.n_vectors) {
                const int at = c.head + (first + k * THREADS) * wide<T>::WIDTH;
                wide<T> w = {};
                if (counted) {
                    unpack(batch[k], &w);
#pragma unroll
                    for (int i = 0; i < wide<T>::WIDTH; i++)
                        w.v[i] = slope<T>(w.v[i], max, inverse, at + i, column);
                }
                vectors[first + k * THREADS] = pack(&w);
            }
    }
    if (edge >= 0)
        put(x + edge, counted ? slope<T>(float_of(x[edge]), max, inverse, edge, column) : 0.0F);
}

static __global__ void __launch_bounds__(VALUE_THREADS)
    value_of_rows(const int32_t *__restrict__ target, const float *__restrict__ sums, double *loss,
                  int64_t rows)
{
    double sum = 0, count = 0;
    for (int64_t row = threadIdx.x; row < rows; row += VALUE_THREADS)
        if (target[row] >= 0) {
            sum += log((double)sums[2 * row]) - (double)sums[2 * row + 1];
            count += 1;
        }
    sum = block_sum<VALUE_THREADS>(sum);
    count = block_sum<VALUE_THREADS>(count);
    if (threadIdx.x == 0) {
        loss[0] += sum;
        loss[1] += count;
    }
}

/* ---- launchers ---- */

extern "C" void td_cuda_loss_max(void *dev, const act *logits, float *stats, int64_t rows,
                                 int64_t n)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    const cudaStream_t stream = (cudaStream_t)q->stream;
    const unsigned blocks = (unsigned)rows;
    if (rows > 0 && q->bf16)
        max_of_row<<<blocks, THREADS, 0, stream>>>((const __nv_bfloat16 *)logits, stats, (int)n);
    else if (rows > 0)
        max_of_row<<<blocks, THREADS, 0, stream>>>((const float *)logits, stats, (int)n);
}

extern "C" void td_cuda_loss_sum(void *dev, const act *logits, const int32_t *target,
                                 const float *stats, float *sums, int64_t rows, int64_t n,
                                 int64_t first)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    const cudaStream_t stream = (cudaStream_t)q->stream;
    const unsigned blocks = (unsigned)rows;
    if (rows > 0 && q->bf16)
        sum_of_row<<<blocks, THREADS, 0, stream>>>((const __nv_bfloat16 *)logits, target, stats,
                                                   sums, (int)n, first);
    else if (rows > 0)
        sum_of_row<<<blocks, THREADS, 0, stream>>>((const float *)logits, target, stats, sums,
                                                   (int)n, first);
}

extern "C" void td_cuda_loss_value(void *dev, const int32_t *target, const float *sums,
                                   double *loss, int64_t rows)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    value_of_rows<<<1, VALUE_THREADS, 0, (cudaStream_t)q->stream>>>(target, sums, loss, rows);
}

extern "C" void td_cuda_loss_backward(void *dev, act *logits, const int32_t *target,
                                      const float *stats, const float *sums, int64_t rows,
                                      int64_t n, int64_t first)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    const cudaStream_t stream = (cudaStream_t)q->stream;
    const unsigned blocks = (unsigned)rows;
    if (rows > 0 && q->bf16)
        gradient_of_row<<<blocks, THREADS, 0, stream>>>((__nv_bfloat16 *)logits, target, stats,
                                                        sums, (int)n, first);
    else if (rows > 0)
        gradient_of_row<<<blocks, THREADS, 0, stream>>>((float *)logits, target, stats, sums,
                                                        (int)n, first);
}
