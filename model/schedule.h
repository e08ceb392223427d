/*
 * A schedule is the order in which one rank computes and communicates during a step: a list of
 * calls that says nothing of peers. Who is at the other end of a call is the pipeline's business
 * (model/pipeline.h).
 */
#ifndef TANDEM_MODEL_SCHEDULE_H
#define TANDEM_MODEL_SCHEDULE_H

#include "model/arena.h"
#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

/* The transfer calls; recv_forward takes activations from the stage before, send_backward gives it
 * gradients. */
#define TD_CALL_MAP(X)                                                                             \
    X(RECV_FORWARD, "recv_forward")                                                                \
    X(SEND_FORWARD, "send_forward")                                                                \
    X(SEND_FORWARD_RECV_BACKWARD, "send_forward_recv_backward")                                    \
    X(SEND_BACKWARD_RECV_FORWARD, "send_backward_recv_forward")                                    \
    X(RECV_BACKWARD, "recv_backward")                                                              \
    X(SEND_BACKWARD, "send_backward")

typedef enum {
#define X(call, name) TD_CALL_##call,
    TD_CALL_MAP(X)
#undef X
        TD_N_CALLS
} td_call;
extern const char *const td_call_names[TD_N_CALLS];

#define TD_STEP_MAP(X)                                                                             \
    X(FORWARD, "forward")                                                                          \
    X(BACKWARD, "backward")                                                                        \
    X(COMM, "comm")                                                                                \
    X(GRAD_SYNC_OFF, "grad_sync_off")                                                              \
    X(GRAD_SYNC_ON, "grad_sync_on")                                                                \
    X(GRAD_SYNC_LAUNCH, "grad_sync_launch")                                                        \
    X(FINALIZE_GRADS, "finalize_grads")

typedef enum {
#define X(kind, name) TD_STEP_##kind,
    TD_STEP_MAP(X)
#undef X
        TD_N_STEPS
} td_step_kind;
extern const char *const td_step_names[TD_N_STEPS];

typedef struct {
    uint8_t kind, call; /* td_step_kind, td_call (COMM only) */
    bool recompute;     /* FORWARD inside a recompute window: done without keeping activations */
    int32_t mb;         /* FORWARD and BACKWARD, else -1 */
    int32_t send_mb, recv_mb; /* COMM: microbatch in that direction, -1 for none */
} td_step_item;

typedef struct {
    int32_t stage, n_stages, n_micro;
    int32_t recompute_window; /* microbatches in flight that skip recomputation; < 0: no window */
    bool explicit_grad_sync;  /* a callback launches gradient reduction after the pipeline ... */
    bool first_stages_only;   /* ... except on ranks that are the first stage of every module they
                                 hold: this is one */
} td_schedule_input;

typedef struct {
    td_step_item *items; /* in the arena */
    int32_t n;
} td_step_list;

typedef struct {
    const char *name, *summary;
    /* Forward microbatches before the first backward. */
    int32_t (*warmup)(const td_schedule_input *in);
    /* The whole step of one rank, in order. TD_NOMEM. */
    td_status (*emit)(td_arena *a, const td_schedule_input *in, td_step_list *out, td_err *err);
} td_schedule;

extern const td_schedule td_schedule_1f1b;
extern const td_schedule *const td_schedules[]; /* ends with NULL */

/* NULL if there is none of that name. */
const td_schedule *td_schedule_find(const char *name);

#endif
