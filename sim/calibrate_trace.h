/* The inside of sim/calibrate*.c: the times of one trace, by op and part of its program. */
#ifndef TANDEM_SIM_CALIBRATE_TRACE_H
#define TANDEM_SIM_CALIBRATE_TRACE_H

#include "sim/calibrate.h"

typedef struct {
    int64_t start_ns, end_ns; /* end before start: not told */
} td_time;

typedef struct {
    const td_program *program;
    const char *backend; /* that ran or predicted it */
    bool predicted;
    int32_t n_steps;
    int64_t n_ops, n_parts; /* of all ranks; n_parts 0: the trace is not a fine one */
    int64_t *first_op;      /* [world_size] */
    int64_t *first_part;    /* [n_ops] */
    td_time *ops, *parts;   /* [n_steps][n_ops], [n_steps][n_parts] */
} td_times;

/*
 * Reads a trace of `source->program`. What it tells of machine and libraries goes into
 * `environment`. Fails with TD_FILE: not a trace, of another program, an op missing.
 */
td_status td_times_read(td_arena *a, const td_calibrate_source *source, td_times *out,
                        td_environment *environment, td_err *err);

static inline const td_time *td_times_op(const td_times *t, int32_t step, int32_t rank, int32_t op)
{
    return &t->ops[step * t->n_ops + t->first_op[rank] + op];
}

static inline const td_time *td_times_part(const td_times *t, int32_t step, int32_t rank,
                                           int32_t op, int64_t part)
{
    return &t->parts[step * t->n_parts + t->first_part[t->first_op[rank] + op] + part];
}

/* What looking at a part adds to it: from passes without collectives, the fine run's median over
 * the steps against the other's, by part. 0 if there are none or it is below. */
double td_times_overhead(const td_times *fine, const td_times *coarse);

#endif
