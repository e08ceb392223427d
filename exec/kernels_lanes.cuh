/*
 * Activations as a thread of a memory-bound kernel sees them: N neighbours of type T, 16 bytes at
 * once or a single element, computed in float; and how the two types and two widths are launched.
 */
#ifndef TANDEM_EXEC_KERNELS_LANES_CUH
#define TANDEM_EXEC_KERNELS_LANES_CUH

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "exec/cuda_kernels.h"
}

#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* ---- elements ---- */

template <typename T, int N> struct lanes;
template <> struct lanes<float, 4> {
    uint4 bits;
};
template <> struct lanes<float, 1> {
    float bits;
};
template <> struct lanes<__nv_bfloat16, 8> {
    uint4 bits;
};
template <> struct lanes<__nv_bfloat16, 1> {
    uint16_t bits;
};

template <typename T, int N> static __device__ inline lanes<T, N> load(const T *p)
{
    return *(const lanes<T, N> *)p;
}

/* One store for one vector: assignments of structures are sometimes taken apart. */
static __device__ inline void store_bits(void *p, uint4 bits)
{
    __stwb((uint4 *)p, bits);
}

static __device__ inline void store_bits(void *p, float bits)
{
    *(float *)p = bits;
}

static __device__ inline void store_bits(void *p, uint16_t bits)
{
    *(uint16_t *)p = bits;
}

template <typename T, int N> static __device__ inline void store(T *p, lanes<T, N> x)
{
    store_bits(p, x.bits);
}

/* A bf16 is the upper half of its float; of a word, the lower half comes first. */
static __device__ inline void unpack_word(uint32_t word, float *out)
{
    out[0] = __uint_as_float(word << 16);
    out[1] = __uint_as_float(word & 0xFFFF0000u);
}

static __device__ inline uint32_t pack_word(const float *in)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(in[0], in[1]);
    return (uint32_t)__bfloat16_as_ushort(pair.x) | (uint32_t)__bfloat16_as_ushort(pair.y) << 16;
}

static __device__ inline void unpack(lanes<float, 1> x, float *out)
{
    out[0] = x.bits;
}

static __device__ inline void unpack(lanes<float, 4> x, float *out)
{
    out[0] = __uint_as_float(x.bits.x);
    out[1] = __uint_as_float(x.bits.y);
    out[2] = __uint_as_float(x.bits.z);
    out[3] = __uint_as_float(x.bits.w);
}

static __device__ inline void unpack(lanes<__nv_bfloat16, 1> x, float *out)
{
    out[0] = __uint_as_float((uint32_t)x.bits << 16);
}

static __device__ inline void unpack(lanes<__nv_bfloat16, 8> x, float *out)
{
    unpack_word(x.bits.x, out);
    unpack_word(x.bits.y, out + 2);
    unpack_word(x.bits.z, out + 4);
    unpack_word(x.bits.w, out + 6);
}

static __device__ inline void pack(const float *in, lanes<float, 1> *x)
{
    x->bits = in[0];
}

static __device__ inline void pack(const float *in, lanes<float, 4> *x)
{
    x->bits = make_uint4(__float_as_uint(in[0]), __float_as_uint(in[1]), __float_as_uint(in[2]),
                         __float_as_uint(in[3]));
}

static __device__ inline void pack(const float *in, lanes<__nv_bfloat16, 1> *x)
{
    x->bits = __bfloat16_as_ushort(__float2bfloat16_rn(in[0]));
}

static __device__ inline void pack(const float *in, lanes<__nv_bfloat16, 8> *x)
{
    x->bits = make_uint4(pack_word(in), pack_word(in + 2), pack_word(in + 4), pack_word(in + 6));
}

template <typename T, int N> static __device__ inline lanes<T, N> packed(const float (&in)[N])
{
    lanes<T, N> x;
    pack(in, &x);
    return x;
}

template <typename T, int N>
static __device__ inline lanes<T, N> sum_of(lanes<T, N> a, lanes<T, N> b)
{
    float x[N], y[N];
    unpack(a, x);
    unpack(b, y);
    for (int e = 0; e < N; e++)
        x[e] += y[e];
    return packed<T, N>(x);
}

/* N floats; N > 1: on a 16-byte border. */
template <int N> static __device__ inline void load_floats(const float *p, float *out)
{
    for (int e = 0; N > 1 && e < N; e += 4)
        unpack(load<float, 4>(p + e), out + e);
    if (N == 1)
        out[0] = p[0];
}

template <int N> static __device__ inline void store_floats(float *p, const float *in)
{
    lanes<float, 4> x;
    for (int e = 0; N > 1 && e < N; e += 4) {
        pack(in + e, &x);
        store(p + e, x);
    }
    if (N == 1)
        p[0] = in[0];
}

/* ---- launches ---- */

/* `f` for [bf16][16 bytes at once] */
#define TD_BY_TYPE(f)                                                                              \
    {                                                                                              \
        {f<float, 1>, f<float, 4>},                                                                \
        {                                                                                          \
            f<__nv_bfloat16, 1>, f<__nv_bfloat16, 8>                                               \
        }                                                                                          \
    }

static inline const td_cuda_queue *queue_of(void *dev)
{
    return (const td_cuda_queue *)dev;
}

static inline cudaStream_t stream_of(const td_cuda_queue *q)
{
    return (cudaStream_t)q->stream;
}

static inline uintptr_t address(const void *p)
{
    return (uintptr_t)p;
}

/* May rows of `width` elements be read 16 bytes at a time? `addresses`: all bases, or-ed. */
static inline bool is_wide(const td_cuda_queue *q, int64_t width, uintptr_t addresses)
{
    return addresses % 16 == 0 && width % (q->bf16 ? 8 : 4) == 0;
}

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline unsigned count_of(int64_t n)
{
    assert(n > 0 && n <= INT32_MAX);
    return (unsigned)n;
}

/* A pass over rows without sums: a block has ROWS rows, a thread one vector of each of them. */
typedef struct {
    unsigned blocks, threads;
    unsigned chunks; /* blocks side by side */
} tiling;

static inline tiling tiling_of(int64_t rows, int64_t rows_per_block, int64_t n_vectors)
{
    const int64_t chunks = ceil_div(n_vectors, 256);
    tiling t;
    t.blocks = count_of(ceil_div(rows, rows_per_block) * chunks);
    t.threads = count_of(ceil_div(ceil_div(n_vectors, chunks), 32) * 32);
    t.chunks = count_of(chunks);
    return t;
}

/* First row of the block, and the vector of the thread. */
static __device__ inline int64_t tile_row(unsigned chunks, int rows_per_block)
{
    return (int64_t)(blockIdx.x / chunks) * rows_per_block;
}

static __device__ inline int64_t tile_vector(unsigned chunks)
{
    return (int64_t)(blockIdx.x % chunks) * blockDim.x + threadIdx.x;
}

#endif
