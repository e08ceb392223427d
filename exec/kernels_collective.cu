/*
 * Collectives over peers' mapped memory.
 *
 * Why what is read is current (PTX ISA, "Memory Consistency Model"): what ran before on a member's
 * stream happens before its kernel, whose st.release.sys each other member's block has seen with
 * ld.acquire.sys before it reads. The same at the end: the barrier of the block orders all its
 * reads and writes before the release of one of its threads, which the others acquire before they
 * end; whatever follows on their streams comes after that. Where memory is at home, its L2 is what
 * everybody reads and writes, and the loads here bypass the L1, which keeps nothing coherent.
 *
 * Only the member that has a share reads or writes it, anywhere, and there only the thread that has
 * the element: results may overwrite operands.
 */
#include "exec/cuda_collective_kernel.h"
#include "exec/kernels_lanes.cuh"

static_assert(sizeof(td_collective_line) == 128, "a line of the cache");

/* ---- meeting ---- */

static __device__ inline void tell(uint32_t *count, uint32_t value)
{
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(count), "r"(value) : "memory");
}

static __device__ inline uint32_t heard(const uint32_t *count)
{
    uint32_t value;
    asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(count) : "memory");
    return value;
}

/* The word is in host memory, a microsecond or two away: it is looked at once in a while. */
static __device__ inline bool comes(const uint32_t *count, uint32_t value,
                                    const volatile uint32_t *abandoned)
{
    for (uint32_t looks = 1; (int32_t)(heard(count) - value) < 0; looks++)
        if (looks % 1024 == 0 && *abandoned != 0)
            return false;
    return true;
}

/* The blocks of this number have all come to `count`; false if somebody will never come. */
static __device__ inline bool meet(const td_collective_job &job, uint32_t count)
{
    const unsigned other = threadIdx.x;
    bool all = true;
    __syncthreads();
    if (other < (unsigned)job.n) {
        tell(&job.lines[other][blockIdx.x].from[job.me], count);
        all = comes(&job.lines[job.me][blockIdx.x].from[other], count, job.abandoned);
    }
    return __syncthreads_and(all) != 0;
}

/* ---- combining ---- */

struct sum_bf16 {
    typedef __nv_bfloat16 type;
    static __device__ inline float join(float a, float b)
    {
        return a + b;
    }
};

struct sum_f32 {
    typedef float type;
    static __device__ inline float join(float a, float b)
    {
        return a + b;
    }
};

struct max_f32 {
    typedef float type;
    static __device__ inline float join(float a, float b)
    {
        return fmaxf(a, b);
    }
};

template <typename T, int N> static __device__ inline lanes<T, N> fetch(const lanes<T, N> *p)
{
    lanes<T, N> x;
    x.bits = __ldcg(&p->bits);
    return x;
}

/* Of up to MOST places (a power of two, and more than half of them are there), is this one? */
template <int MOST> static __device__ inline bool is_place(int m, int n)
{
    return m <= MOST / 2 || m < n;
}

template <typename How, int MOST, int N>
static __device__ inline lanes<typename How::type, N>
combined(const lanes<typename How::type, N> (&x)[MOST], int n)
{
    float all[N], next[N];
    if (MOST == 1)
        return x[0];
    unpack(x[0], all);
    for (int m = 1; m < MOST; m++)
        if (is_place<MOST>(m, n)) {
            unpack(x[m], next);
            for (int e = 0; e < N; e++)
                all[e] = How::join(all[e], next[e]);
        }
    return packed<typename How::type, N>(all);
}

/* Vectors first, first + stride, ... below n, several at once: each waits for another GPU. */
template <typename How, int MOST, int N>
static __device__ inline void sweep(const td_collective_job &job, int64_t first, int64_t stride,
                                    int64_t n)
{
    typedef lanes<typename How::type, N> vector;
    constexpr int AT_ONCE = MOST == 1 ? 4 : 8 / MOST;
    for (int64_t i = first; i < n; i += AT_ONCE * stride) {
        vector x[AT_ONCE][MOST];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++)
#pragma unroll
            for (int m = 0; m < MOST; m++)
                if (i + u * stride < n && is_place<MOST>(m, job.n_from))
                    x[u][m] = fetch((const vector *)job.from[m] + i + u * stride);
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++)
            if (i + u * stride < n) {
                const vector y = combined<How, MOST, N>(x[u], job.n_from);
                for (int m = 0; m < job.n_to; m++)
                    store((typename How::type *)job.to[m] + (i + u * stride) * N, y);
            }
    }
}

/* Whole vectors by all blocks; the elements behind the last one by the first block. */
template <typename How, int MOST, int N>
static __global__ void __launch_bounds__(TD_COLLECTIVE_THREADS)
    collective(const __grid_constant__ td_collective_job job)
{
    td_collective_line *mine = &job.lines[job.me][blockIdx.x];
    const uint32_t begun = mine->ended + 1;
    const int64_t vectors = job.elements / N;
    if (!meet(job, begun))
        return;
    sweep<How, MOST, N>(job, (int64_t)blockIdx.x * blockDim.x + threadIdx.x,
                        (int64_t)gridDim.x * blockDim.x, vectors);
    if (N > 1 && blockIdx.x == 0)
        sweep<How, MOST, 1>(job, vectors * N + threadIdx.x, blockDim.x, job.elements);
    if (meet(job, begun + 1) && threadIdx.x == 0)
        mine->ended = begun + 1;
}

/* ---- launching ---- */

/* By the places that are read: [1, 2, up to 4, up to 8][16 bytes at once] */
#define BY_PLACES(how, n)                                                                          \
    {                                                                                              \
        {(const void *)collective<how, 1, 1>, (const void *)collective<how, 1, n>},                \
            {(const void *)collective<how, 2, 1>, (const void *)collective<how, 2, n>},            \
            {(const void *)collective<how, 4, 1>, (const void *)collective<how, 4, n>},            \
        {                                                                                          \
            (const void *)collective<how, 8, 1>, (const void *)collective<how, 8, n>               \
        }                                                                                          \
    }

extern "C" int td_cuda_collective_run(void *stream, const td_collective_job *job,
                                      td_combine combine, bool wide, int32_t blocks)
{
    static const void *const kernels[TD_N_COMBINES][4][2] = {
        BY_PLACES(sum_bf16, 8), BY_PLACES(sum_f32, 4), BY_PLACES(max_f32, 4)};
    void *arguments[] = {(void *)job};
    int places = 0;
    while (1 << places < job->n_from)
        places++;
    return (int)cudaLaunchKernel(kernels[combine][places][wide], dim3(count_of(blocks)),
                                 dim3(TD_COLLECTIVE_THREADS), arguments, 0, (cudaStream_t)stream);
}
