/*
 * What the two files of the driver share: exec/driver.c walks the ops of a step, exec/driver_ops.c
 * knows what each kind of op does. Nobody else includes this.
 */
#ifndef TANDEM_EXEC_DRIVER_OPS_H
#define TANDEM_EXEC_DRIVER_OPS_H

#include "exec/driver.h"
#include "exec/state.h"

/* Where the payload of a transfer stands: known once the program is. */
typedef struct {
    int32_t edge;  /* bridge, or -1 inside a module */
    int64_t shift; /* bytes from the begin of the boundary buffer */
    bool gradient;
} td_payload;

struct td_driver {
    td_arena *a;
    const td_program *p;
    const td_stream *stream;
    const td_device *dev;
    int32_t rank;
    td_pipeline pipe;
    bool idle;
    td_stage_run stage;
    td_state state;
    td_payload *payloads; /* [n_ops] */
    int64_t (*shapes)[3]; /* [n_ops] */
    bool *issued;         /* [n_ops] in this step */
    bool *plays;          /* [n_ops] a pass that was recorded */
    int64_t *first_stamp; /* [n_ops] */
    int64_t n_stamps;
    bool stamped;      /* passes were recorded with their stamps */
    int32_t *sends[2]; /* payload sends forward and backward, in order */
    int32_t n_sends[2], waited[2];
    td_mimo_config config;
    td_mimo_state *numbers; /* on the device */
    bool updates;           /* has an ADAM op: there it is decided what the step does */
    int32_t period;         /* microbatches after which all buffers are the same again */
    /* the step that runs */
    bool fine;
    int64_t step;
    int32_t running; /* op whose parts are under way */
    td_watch_slot *watch;
    td_inject inject;
    int64_t n_begun; /* steps of this run */
    double last_end;
    td_err *err;
};

/* Finds where the payload of transfer or broadcast `i` stands, once; then its buffer. */
void td_driver_find_payload(td_driver *d, int32_t i);
void *td_driver_buffer(const td_driver *d, int32_t i);

/* Number under which the pass of an op is recorded. */
int32_t td_driver_key(const td_driver *d, const td_op *op);

/* By kind of op: issues what op `i` does on the device. */
extern td_status (*const td_driver_run[TD_N_OPS])(td_driver *d, int32_t i);

/* Issues op `i` with all that surrounds it; an op may issue others that wait for a part of it. */
td_status td_driver_issue(td_driver *d, int32_t i);

#endif
