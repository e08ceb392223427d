/*
 * GPU memory of one pipeline stage: the sum of its pieces (model/pieces.h), which is what an
 * executor's arena holds, to the byte; what the CUDA context and NCCL take beside it is theirs to
 * say.
 */
#ifndef TANDEM_MODEL_MEMORY_H
#define TANDEM_MODEL_MEMORY_H

#include "model/pipeline.h"
#include "model/program.h"

typedef struct {
    uint64_t weights;     /* parameters in the training precision, frozen ones too */
    uint64_t gradients;   /* fp32, trainable parameters, padded as the buckets are */
    uint64_t optimizer;   /* this rank's share of fp32 moments, and of master weights in bf16 */
    uint64_t activations; /* kept from forward to backward, of all microbatches in flight */
    uint64_t buffers; /* transfer buffers, this rank's share of summed gradients, scratch, tables */
    uint64_t total;   /* the sum of the above */
    uint64_t
        capacity; /* of the smallest GPU that a rank of the stage sits on; 0 without a cluster */
    int32_t in_flight; /* microbatches whose activations are kept at once; 0 without a backward */
} td_memory;

/* Stage `pp_rank` of module `m`. `p` is the plan's pipeline. TD_NOMEM. */
td_status td_memory_of_stage(td_arena *a, const td_plan *plan, const td_pipeline *p, int32_t m,
                             int32_t pp_rank, td_memory *out, td_err *err);

/* Of the stage that a rank has; zeros for an idle one. TD_NOMEM. */
td_status td_memory_of_rank(td_arena *a, const td_program *p, int32_t rank, td_memory *out,
                            td_err *err);

/* The sum in words: what it is made of. In the arena; NULL without memory. */
const char *td_memory_text(td_arena *a, const td_memory *m);

#endif
