/* Kernels that tell the time: one that the host lets go, by which an event behind it is timed, and
 * stamps. */
#include "exec/cuda_clock_kernel.h"

#include <cuda_runtime.h>

/* About a second of the fastest clocks: a host that died must not hang the GPU. */
static constexpr long long patience_cycles = 2000000000LL;

/* The timer of the whole GPU. PTX promises no resolution; it is measured (tick_of_timer). */
static __device__ uint64_t timer_ns()
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns) : : "memory");
    return ns;
}

static __global__ void wait_for_host(volatile td_clock_flags *flags, uint32_t round, uint64_t *ns)
{
    const long long begin = clock64();
    flags->waiting = round;
    __threadfence_system();
    while (flags->asked != round)
        if (clock64() - begin > patience_cycles) {
            flags->gave_up = round;
            __threadfence_system();
            return;
        }
    if (ns != NULL)
        *ns = timer_ns();
}

static __global__ void write_time(uint64_t *at, const uint64_t *first)
{
    const uint64_t now = timer_ns();
    at[first != NULL ? *first : 0] = now;
}

static __global__ void begin_at(uint64_t *first, uint64_t value)
{
    *first = value;
}

static __global__ void tick_of_timer(uint64_t *ns)
{
    const long long begin = clock64();
    uint64_t least = UINT64_MAX, last = timer_ns();
    for (int moves = 0; moves < 16 && clock64() - begin < patience_cycles;) {
        const uint64_t now = timer_ns();
        if (now == last)
            continue;
        least = now - last < least ? now - last : least;
        last = now;
        moves++;
    }
    *ns = least;
}

extern "C" int td_cuda_clock_wait(void *stream, td_clock_flags *flags, uint32_t round, uint64_t *ns)
{
    wait_for_host<<<1, 1, 0, (cudaStream_t)stream>>>(flags, round, ns);
    return (int)cudaGetLastError();
}

extern "C" int td_cuda_clock_write(void *stream, uint64_t *at, const uint64_t *first)
{
    write_time<<<1, 1, 0, (cudaStream_t)stream>>>(at, first);
    return (int)cudaGetLastError();
}

extern "C" int td_cuda_clock_begin(void *stream, uint64_t *first, uint64_t value)
{
    begin_at<<<1, 1, 0, (cudaStream_t)stream>>>(first, value);
    return (int)cudaGetLastError();
}

extern "C" int td_cuda_clock_tick(void *stream, uint64_t *ns)
{
    tick_of_timer<<<1, 1, 0, (cudaStream_t)stream>>>(ns);
    return (int)cudaGetLastError();
}
