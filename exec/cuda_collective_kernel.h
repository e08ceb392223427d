/*
 * The GPU's side of collectives over peers' memory (exec/kernels_collective.cu): one kernel a
 * member, which reads and writes the memory of all. Who has which share is decided by the caller
 * (exec/cuda_group.h); for the kernel it is elements that are read from some places, combined and
 * written to some places.
 *
 * Block b of a member's kernel meets block b of the others' twice: before anything is read, so that
 * what was queued before on every member is complete, and after everything is written, so that the
 * kernel's end means that all is there and that nobody reads here any more. Blocks of different
 * numbers do not wait for each other.
 */
#ifndef TANDEM_EXEC_CUDA_COLLECTIVE_KERNEL_H
#define TANDEM_EXEC_CUDA_COLLECTIVE_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

enum {
    TD_COLLECTIVE_RANKS = 8,
    TD_COLLECTIVE_BLOCKS = 128, /* at most: of 132 multiprocessors */
    TD_COLLECTIVE_THREADS = 512
};

/*
 * What a member's block knows of the blocks of its number: 128 bytes, so that no two blocks share a
 * line of the cache. Counts go up by two a kernel and are compared in a circle of 2^32; they stay
 * between kernels, because a kernel in a graph is launched again and again with the same arguments.
 */
typedef struct {
    uint32_t from[TD_COLLECTIVE_RANKS]; /* written by each member: how far its block has come */
    uint32_t ended;                     /* how far this one had come when its last kernel ended */
    uint32_t unused[23];
} td_collective_line;

typedef struct {
    int32_t n, me;
    int32_t n_from, n_to;                           /* 1 or n each */
    int64_t elements;                               /* of this member's share */
    const void *from[TD_COLLECTIVE_RANKS];          /* its first element where it is read, */
    void *to[TD_COLLECTIVE_RANKS];                  /* in the order of addition, and written */
    td_collective_line *lines[TD_COLLECTIVE_RANKS]; /* [blocks] of each member, zero at first */
    const uint32_t *abandoned; /* host memory; not 0: members may be gone, wait for nobody */
} td_collective_job;

/* How elements are combined: in float, rounded once. What is read from one place is only moved. */
typedef enum {
    TD_COMBINE_SUM_BF16,
    TD_COMBINE_SUM_F32,
    TD_COMBINE_MAX_F32,
    TD_N_COMBINES
} td_combine;

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Queues a member's kernel on `stream` (cudaStream_t); can be captured. `blocks` is the same on all
 * members, and kernels of a group follow each other in the same order on all. `wide`: all addresses
 * are multiples of 16. Returns a cudaError_t.
 */
int td_cuda_collective_run(void *stream, const td_collective_job *job, td_combine combine,
                           bool wide, int32_t blocks);

#ifdef __cplusplus
}
#endif

#endif
