/*
 * The measured trace: what every rank stamped, put in the order of the lanes and written by rank 0
 * in the form of a predicted trace.
 */
#ifndef TANDEM_EXEC_HOST_TRACE_H
#define TANDEM_EXEC_HOST_TRACE_H

#include "exec/driver.h"

typedef struct {
    const td_program *program;
    const char *backend;
    int32_t rank, n_steps;
    int64_t n_ops, n_parts; /* of this rank; n_parts 0 without `fine` */
    td_op_time *times;      /* [n_steps][n_ops] */
    td_op_time *parts;      /* [n_steps][n_parts] */
} td_host_trace;

/* Room for `n_steps` steps. Rank 0 proves that `path` can be written. TD_NOMEM, TD_FILE. */
td_status td_host_trace_open(td_arena *a, const td_program *p, int32_t rank, const char *backend,
                             int32_t n_steps, bool fine, const char *path, td_host_trace *out,
                             td_err *err);

/* Where td_driver_step() writes step `step`; parts are NULL without `fine`. */
td_op_time *td_host_trace_times(const td_host_trace *t, int32_t step);
td_op_time *td_host_trace_parts(const td_host_trace *t, int32_t step);

/*
 * To be called after each step. An op of communication ends when it was seen to have ended. A lane
 * is a queue, but here the library underneath may end a later op first: then the earlier one has
 * ended too as far as the lane is concerned, and no op begins before the one in front of it has
 * ended. Starts only become later and ends only earlier, so that nothing comes before what it
 * depends on.
 */
void td_host_trace_order(td_host_trace *t, int32_t step);

/*
 * Collective: rank 0 writes, one rank after the other. `clock_error`: seconds by which the clocks
 * of two ranks may differ; `extra`: n_extra pairs of texts for the metadata, of rank 0.
 */
td_status td_host_trace_write(const td_host_trace *t, double clock_error, int32_t n_extra,
                              const char *const *extra, const char *path, td_err *err);

#endif
