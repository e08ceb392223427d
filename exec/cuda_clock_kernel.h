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
 * Each queues on `stream` (cudaStream_t) a kernel of one thread, and returns a cudaError_t.
 * Pointers are the GPU's. Times are of the GPU's own timer, nanoseconds since whenever.
 */

/* Says it is waiting and ends when the host has asked, or after about a second. `ns` gets the time
 * of that; NULL: nothing does. */
int td_cuda_clock_wait(void *stream, td_clock_flags *flags, uint32_t round, uint64_t *ns);

/* *at, or where `first` is not NULL at[*first], gets the time. */
int td_cuda_clock_write(void *stream, uint64_t *at, const uint64_t *first);
/* *first = value */
int td_cuda_clock_begin(void *stream, uint64_t *first, uint64_t value);
/* *ns gets the smallest step in which the timer is seen to move, UINT64_MAX if it stands still. */
int td_cuda_clock_tick(void *stream, uint64_t *ns);

#ifdef __cplusplus
}
#endif

#endif
