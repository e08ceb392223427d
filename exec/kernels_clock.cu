/* A kernel that the host lets go: what an event behind it is timed by. */
#include "exec/cuda_clock_kernel.h"

#include <cuda_runtime.h>

/* About a second of the fastest clocks: a host that died must not hang the GPU. */
static constexpr long long patience_cycles = 2000000000LL;

static __global__ void wait_for_host(volatile td_clock_flags *flags, uint32_t round)
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
}

extern "C" int td_cuda_clock_wait(void *stream, td_clock_flags *flags, uint32_t round)
{
    wait_for_host<<<1, 1, 0, (cudaStream_t)stream>>>(flags, round);
    return (int)cudaGetLastError();
}
