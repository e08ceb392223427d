/* Pieces of lowering that stand in files of their own: gradient buckets, and the ops of one role.
 */
#ifndef TANDEM_MODEL_LOWER_H
#define TANDEM_MODEL_LOWER_H

#include "model/module.h"
#include "model/pipeline.h"
#include "model/program.h"

/*
 * Gradients are reduced in buckets, filled from the last parameter to the first as the backward
 * produces them, each at least max(bucket_elements, 1e6 * dp) elements long (Megatron-core's rule).
 * With a sharded optimizer a bucket is padded to a multiple of 128 and of dp.
 */
typedef struct {
    int64_t elements;   /* padded, on one rank */
    int64_t after_part; /* ready when this many flattened parts of the backward are done */
} td_bucket;

typedef struct {
    int32_t n;
    const td_bucket *buckets; /* in the order they become ready */
    int64_t elements; /* sum over the buckets: what gradients and optimizer state are sized by */
    int64_t weights;  /* all parameters of the stage on one rank, frozen ones too */
    /*
     * Gradient elements that the tensor ranks have to add up after the backward: of kv heads that
     * ranks share, each having its own query heads, all of them; and with sequence parallelism of
     * whatever every rank holds whole, each having its own part of the sequence.
     */
    int64_t shared;
} td_buckets;

/* A parameter's part of td_buckets.shared: elements of its gradient that tensor ranks add up; 0 for
 * most. */
int64_t td_param_shared(const td_stage *s, const td_param *p);

td_status td_buckets_of_stage(td_arena *a, const td_stage *s, td_buckets *out, td_err *err);

/* Works of one stage, as indices into td_program.works. */
typedef struct td_stage_works {
    bool built;
    int32_t forward, backward, zero, stats, adam, cast;
    td_buckets buckets;
} td_stage_works;

/* One call of each direction and side: what they move on a rank, in this order, numbers its pair
 * channels. */
extern const td_step_item td_peer_calls[4];

/*
 * Fills ops and deps of the stream whose first rank is `rank`. out->n_chans, module and pp_rank
 * stand already; channels are numbered: sends forward, sends backward, receives forward, receives
 * backward, tp, dp, module, world. `works` is NULL for an idle rank.
 */
td_status td_lower_stream(td_arena *a, const td_plan *plan, const td_pipeline *pipe, int32_t rank,
                          const td_stage_works *works, td_stream *out, td_err *err);

#endif
