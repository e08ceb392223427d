/*
 * Does a step come to its end when every call blocks until its messages are through? The answer
 * depends on when a send counts as done, so there are three completion rules. The reference
 * deadlocks under the strictest one when encoders of different pipeline depth feed one module; NCCL
 * behaves like one of the milder ones, depending on message size.
 */
#ifndef TANDEM_MODEL_PROGRESS_H
#define TANDEM_MODEL_PROGRESS_H

#include "model/pipeline.h"

#define TD_COMPLETION_MAP(X)                                                                       \
    X(SYNCHRONOUS_SENDS, "synchronous_sends")             /* every send waits for its receive */   \
    X(BUFFERED_SHAPE_MESSAGES, "buffered_shape_messages") /* only sends with a payload wait */     \
    X(BUFFERED_SENDS, "buffered_sends")                   /* no send waits */

typedef enum {
#define X(rule, name) TD_COMPLETION_##rule,
    TD_COMPLETION_MAP(X)
#undef X
        TD_N_COMPLETIONS
} td_completion;
extern const char *const td_completion_names[TD_N_COMPLETIONS];

/* A rank of the cycle: it is in `call` for microbatch `mb` and waits for the next rank of the
 * cycle. */
typedef struct {
    int32_t rank;
    td_call call;
    int32_t mb;
    td_move_kind move; /* what does not complete: a send to, a receive from, or a broadcast with the
                          next rank */
    bool shape;        /* it is the shape message */
} td_waiter;

typedef struct {
    bool completes;
    int32_t n_cycle; /* smallest cycle of waiting ranks; 0 if none (a rank waits for one that has
                        finished) */
    const td_waiter *cycle;
} td_progress;

/*
 * Runs the transfer calls of every rank of the pipeline under one rule. Time and memory grow with
 * ranks * microbatches: judge large plans through td_pipeline_shrink(). TD_NOMEM, and TD_PLAN where
 * the schedule cannot be emitted.
 */
td_status td_progress_judge(td_arena *a, const td_pipeline *p, const td_schedule *schedule,
                            int32_t n_micro, bool shape_exchange, td_completion rule,
                            td_progress *out, td_err *err);

/*
 * A pipeline that makes progress exactly when `p` does, with at most two tensor ranks and a lane or
 * two for each lane of the module with the next fewer: lanes and tensor peers do not wait for one
 * another but in broadcasts and at the ends of bridges, which two show. `p` is a valid plan's: its
 * lane counts are multiples of one another. `origin` gets for each of its ranks a rank of `p` that
 * stands at the same place. `n_micro` is cut to what reaches the steady state and leaves it: later
 * microbatches repeat the same calls.
 */
td_status td_pipeline_shrink(td_arena *a, const td_pipeline *p, int32_t *n_micro, td_pipeline *out,
                             const int32_t **origin, td_err *err);

/* `rank 3 sends the gradient shape of microbatch 0 to rank 2, which ...`: one line in the arena;
 * NULL without memory. */
const char *td_progress_text(td_arena *a, const td_progress *p);

#endif
