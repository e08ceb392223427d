/*
 * A stream made ready for the event loop: who waits for whom, which exchange an op is on its
 * channel, and which ops have the same price. Built once per stream, whatever the number of ranks
 * that play it.
 */
#ifndef TANDEM_SIM_SCRIPT_H
#define TANDEM_SIM_SCRIPT_H

#include "model/program.h"

typedef struct {
    uint8_t role, lane; /* td_op_role, td_lane */
    int32_t chan;
    int32_t ordinal; /* it is the ordinal-th op of its channel */
    int32_t slot;    /* ops of one slot cost the same on one rank */
    int32_t next,
        point; /* first of its successors and points; they end where those of the next op begin */
} td_script_op;

/* Work done up to `after_part` of a compute op lets go of op `next`. */
typedef struct {
    int32_t after_part, next;
} td_script_point;

typedef struct {
    const td_stream *stream;
    int32_t n_ops, n_slots, n_points;
    const td_script_op *ops; /* [n_ops + 1] */
    const int32_t
        *nexts; /* ops that wait for the end of an op; the next on its lane is one of them */
    const td_script_point *points; /* [n_points], ascending for each op */
    const uint16_t *n_waits;       /* [n_ops] ends and points that an op waits for */
    const int32_t *slot_op;        /* [n_slots] an op of each slot */
} td_script;

/* [p->n_streams] scripts; with `buffered` every SEND plays the role of an EAGER_SEND. Fails with
 * TD_PLAN (a dependency that cannot be met in stream order), TD_NOMEM. */
td_status td_scripts_build(td_arena *a, const td_program *p, bool buffered, const td_script **out,
                           td_err *err);

#endif
