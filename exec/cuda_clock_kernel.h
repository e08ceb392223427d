/* The GPU's side of tying clocks together (exec/kernels_clock.cu). */
#ifndef TANDEM_EXEC_CUDA_CLOCK_KERNEL_H
#define TANDEM_EXEC_CUDA_CLOCK_KERNEL_H

#include <stdint.h>

/* In host memory that the GPU has mapped; a cache line for each writer. Rounds count from 1. */
typedef struct {
    uint32_t asked; /* by the host: the kernel of this round may end */
    uint32_t unused0[31];
    uint32_t waiting,
        gave_up; /* by the kernel: its round, from when it runs; if it was not asked */
    uint32_t unused1[30];
    uint32_t answered; /* by the stream: the event of this round has been recorded */
    uint32_t unused2[31];
} td_clock_flags;

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Queues on `stream` (cudaStream_t) a kernel of one thread that says it is waiting and ends when
 * the host has asked, or after about a second. `flags` is the GPU's address. Returns a cudaError_t.
 */
int td_cuda_clock_wait(void *stream, td_clock_flags *flags, uint32_t round);

#ifdef __cplusplus
}
#endif

#endif
