/*
 * What kernels of several files need: a sum over a block of threads, where an array can be read 16
 * bytes at a time, several reads at once, and what is written.
 */
#ifndef TANDEM_EXEC_KERNELS_BLOCK_CUH
#define TANDEM_EXEC_KERNELS_BLOCK_CUH

#include <cuda_bf16.h>
#include <stdint.h>
#include <string.h>

/* Sum of `value` over a block of THREADS, for thread 0; the others get 0. All threads call it. The
 * order of the additions depends on THREADS alone. */
template <int THREADS> static __device__ double block_sum(double value)
{
    __shared__ double warps[THREADS / 32];
    for (int step = 16; step > 0; step /= 2)
        value += __shfl_down_sync(0xFFFFFFFFu, value, step);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < THREADS / 32; i++)
            sum += warps[i];
    __syncthreads(); /* `warps` may be written again */
    return sum;
}

/* An array of n elements: `head` elements, then vectors of 16 bytes on their borders, then less
 * than a vector. */
typedef struct {
    int n, head, n_vectors;
} cut;

template <typename T> static __device__ cut cut_of(const T *x, int n)
{
    const int width = 16 / (int)sizeof(T);
    const int to_border = (int)((16 - (uintptr_t)x % 16) % 16 / sizeof(T));
    const int head = min(n, to_border);
    return cut{n, head, (n - head) / width};
}

/* The element outside the vectors that is this thread's, or -1. Less than two vectors of elements
 * are outside, so a block has a thread for each. */
template <typename T> static __device__ int edge_of(cut c)
{
    const int thread = (int)threadIdx.x;
    const int i = thread < c.head ? thread : thread + c.n_vectors * (16 / (int)sizeof(T));
    return i < c.n ? i : -1;
}

/* x[first], x[first + THREADS], ... as far as there are any: all are under way before the first is
 * needed. */
template <int THREADS, int BATCH, typename T>
static __device__ void load(const T *x, int first, int n, T (&batch)[BATCH])
{
#pragma unroll
    for (int k = 0; k < BATCH; k++)
        if (first + k * THREADS < n)
            batch[k] = x[first + k * THREADS];
}

/* Rounds to nearest even, like every conversion here. */
static __device__ inline void put(__nv_bfloat16 *p, float x)
{
    *p = __float2bfloat16_rn(x);
}

static __device__ inline void put(float *p, float x)
{
    *p = x;
}

/* Two elements of bf16 as they lie in memory. */
static __device__ inline uint32_t pair_of(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

#endif
