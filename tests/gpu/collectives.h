/*
 * Collectives over peers' memory, on real GPUs: what the program and its two files share. One
 * process a GPU, as many as mpirun starts.
 */
#ifndef TANDEM_TESTS_GPU_COLLECTIVES_H
#define TANDEM_TESTS_GPU_COLLECTIVES_H

#include "exec/cuda_group.h"
#include "model/program.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>

/* Where operands stand in the arena; one of 1 GiB has the place of both. */
enum { TD_AT_IN = 1 << 20, TD_AT_OUT = (1 << 20) + (128 << 20), TD_ARENA = (1 << 30) + (4 << 20) };

typedef struct {
    int32_t n, me;
    td_comm comm;
    char *arena;
    td_cuda_group group;
    ncclComm_t nccl;
    cudaStream_t stream;
    int32_t n_failed; /* of this rank */
} td_gang;

/* Elements of the whole, bytes of an element; in and out as NCCL and td_collective_call have them.
 */
typedef struct {
    td_coll coll;
    td_reduction reduction;
    bool bf16;
    int64_t count;
    bool in_place;
    int32_t shift; /* elements that operands stand off the alignment of allocations */
} td_gang_call;

/* The call on operands at TD_AT_IN and TD_AT_OUT. */
td_collective_call td_gang_call_of(const td_gang *g, const td_gang_call *c);

/* A failure of CUDA or NCCL or of the group ends the process: others end with it. */
void td_gang_must(bool fine, const char *what, const char *why);
void td_gang_cuda(cudaError_t error, const char *what);
void td_gang_run(td_gang *g, const td_collective_call *call, bool bf16, cudaStream_t stream);

/* A line of rank 0. */
void td_gang_say(const td_gang *g, const char *format, ...);

/* Times of ours and NCCL's, in a table and as numbers into `csv` (NULL: not); `sweep`: with several
 * numbers of blocks. */
void td_gang_times(td_gang *g, bool sweep, FILE *csv);

#endif
