/*
 * Collectives of a group of GPUs in one machine, by kernels of ours that read and write the other
 * members' arenas over NVLink (CUDA IPC; exec/cuda_collective_kernel.h is the kernel). An operand
 * of another member stands where this one's does, only in another arena: members of a group cut
 * theirs alike, which opening checks.
 *
 * Why not NCCL's: two H200 take 77 us for an all-reduce of 16.8 MB with it, 90 to 120 us within a
 * pass, which goes on behind it. The link needs 42 us: half of the bytes are read from the other
 * one, half written to it, at about 400 GB/s each way.
 *
 * An all-reduce gives every member a share: it reads the share from all, adds in the order of the
 * ranks, in float, rounds once and writes the result to all. So all members hold the same bits, the
 * same every time.
 */
#ifndef TANDEM_EXEC_CUDA_GROUP_H
#define TANDEM_EXEC_CUDA_GROUP_H

#include "exec/cuda_collective_kernel.h"
#include "exec/device.h"

#include <stddef.h>

/* What a member brings. */
typedef struct {
    char *arena; /* NULL: none; else a cudaMalloc() that shares its pages with nothing */
    size_t bytes;
    const char *layout;  /* at most 64 letters; equal where the arenas are cut alike */
    const char *refusal; /* NULL, or why this member wants no such group */
} td_cuda_group_side;

typedef struct {
    bool open;
    int32_t n, me;
    int32_t most_blocks;               /* of a kernel; 0: as many as were measured to be best */
    size_t bytes;                      /* of each arena */
    size_t own_bytes;                  /* of GPU memory beside it */
    char *arenas[TD_COLLECTIVE_RANKS]; /* where this rank addresses them */
    td_collective_line *lines[TD_COLLECTIVE_RANKS];
    uint32_t *abandoned;           /* host memory */
    const uint32_t *abandoned_gpu; /* the same for the GPU */
    char why[192];                 /* not open: the reason */
} td_cuda_group;

/*
 * Collective over the ranks of `c`, all on this machine, in the order of the communicators'
 * numbers. All find the same: open, or not open, which is no failure. `here` is read during the
 * call; its arena lives until td_cuda_group_close().
 */
td_status td_cuda_group_open(const td_comm *c, int32_t me, const td_cuda_group_side *here,
                             td_cuda_group *out, td_err *err);
/* Collective like opening; streams are idle. On return no member has this one's arena mapped. */
void td_cuda_group_close(const td_comm *c, td_cuda_group *g);
/* Lets every kernel of this member pass, now and later, whatever it has computed: others are gone.
 */
void td_cuda_group_abandon(td_cuda_group *g);

/* Has the group such a collective, of buffers in the arena? All members find the same. `act_bf16`:
 * what TD_TYPE_ACT is. */
bool td_cuda_group_has(const td_cuda_group *g, const td_collective_call *call, bool act_bf16);
/*
 * Queues what td_cuda_group_has(). Members queue the same calls in the same order, each on one
 * stream only. Can be captured.
 */
td_status td_cuda_group_run(const td_cuda_group *g, const td_collective_call *call, bool act_bf16,
                            void *stream, td_err *err);

#endif
