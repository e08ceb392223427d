/*
 * First values of parameters: the numbers of exec/numbers.h, one Philox block a thread and round,
 * so that the four numbers of a block and the two of a Box-Muller pair are drawn once.
 */
extern "C" {
#include "exec/cuda_kernels.h"
}

#include "exec/kernels_block.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stddef.h>

enum { THREADS = 256, BLOCKS = 8 /* on a multiprocessor */ };

/* Philox4x32-10 of counter (block low, block high, 0, 0). */
static __device__ void words_of(uint2 key, uint64_t block, uint32_t words[4])
{
    uint32_t k0 = key.x, k1 = key.y;
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = UINT64_C(0xD2511F53) * c0, p1 = UINT64_C(0xCD9E8D57) * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

static __device__ double uniform(uint32_t word)
{
    return (word + 0.5) * 0x1p-32;
}

/* Box-Muller, in the order of operations of td_numbers_fill_normal(). */
static __device__ void normals_of(uint2 key, uint64_t block, double sigma, float z[4])
{
    const double two_pi = 6.283185307179586476925286766559;
    uint32_t words[4];
    words_of(key, block, words);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const double radius = sqrt(-2.0 * log(uniform(words[i])));
        double sine, cosine;
        sincos(two_pi * uniform(words[i + 1]), &sine, &cosine);
        z[i] = (float)(radius * cosine * sigma);
        z[i + 1] = (float)(radius * sine * sigma);
    }
}

/*
 * Row r of the slice is elements i0 .. i0 + cols - 1 of the tensor, i0 = first + r * in; they lie
 * in at most `blocks` blocks of four from i0 / 4 on, the first and the last perhaps in part.
 */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    normals(uint2 key, double sigma, int64_t rows, int64_t cols, int64_t first, int64_t in,
            int64_t blocks, T *__restrict__ out)
{
    const int64_t n_threads = (int64_t)gridDim.x * THREADS;
    for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < rows * blocks;
         at += n_threads) {
        const int64_t row = at / blocks;
        const int64_t i0 = first + row * in, block = i0 / 4 + at % blocks;
        float z[4];
        normals_of(key, (uint64_t)block, sigma, z);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t col = 4 * block + j - i0;
            if (col >= 0 && col < cols)
                put(out + row * cols + col, z[j]);
        }
    }
}

template <typename T>
static __global__ void __launch_bounds__(THREADS) constants(float value, int64_t n, T *p)
{
    const int64_t n_threads = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += n_threads)
        put(p + i, value);
}

/* Blocks of threads for n > 0 items. */
static unsigned blocks_of(const td_cuda_queue *q, int64_t n)
{
    const int64_t needed = (n + THREADS - 1) / THREADS, most = (int64_t)q->n_sm * BLOCKS;
    return (unsigned)(needed < most ? needed : most);
}

extern "C" void td_cuda_fill_normal(void *dev, const uint32_t key[2], double sigma, int64_t rows,
                                    int64_t cols, int64_t row0, int64_t col0, int64_t in,
                                    bool to_float, void *out)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    const cudaStream_t stream = (cudaStream_t)q->stream;
    const uint2 k = make_uint2(key[0], key[1]);
    const bool whole_rows = cols == in; /* then they are one run of elements */
    const int64_t n_rows = whole_rows ? 1 : rows, n_cols = whole_rows ? rows * cols : cols;
    const int64_t first = row0 * in + col0;
    const int64_t blocks = n_cols / 4 + 2; /* up to 3 elements of a block before, and after */
    if (rows <= 0 || cols <= 0)
        return;
    const unsigned grid = blocks_of(q, n_rows * blocks);
    if (to_float || !q->bf16)
        normals<<<grid, THREADS, 0, stream>>>(k, sigma, n_rows, n_cols, first, in, blocks,
                                              (float *)out);
    else
        normals<<<grid, THREADS, 0, stream>>>(k, sigma, n_rows, n_cols, first, in, blocks,
                                              (__nv_bfloat16 *)out);
}

extern "C" void td_cuda_fill(void *dev, float value, int64_t n, bool to_float, void *p)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    const cudaStream_t stream = (cudaStream_t)q->stream;
    if (n > 0 && (to_float || !q->bf16))
        constants<<<blocks_of(q, n), THREADS, 0, stream>>>(value, n, (float *)p);
    else if (n > 0)
        constants<<<blocks_of(q, n), THREADS, 0, stream>>>(value, n, (__nv_bfloat16 *)p);
}
