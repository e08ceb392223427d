/* Faults on purpose, for tests and studies: a slow rank, a gradient that is no number, a rank that
 * dies. */
#ifndef TANDEM_EXEC_INJECT_H
#define TANDEM_EXEC_INJECT_H

#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

/* `slow:RANK:FACTOR`, `nan:RANK:STEP`, `kill:RANK:STEP[:OP]`; several are joined by commas. Steps
 * count from 0, warm-up included. */
typedef struct {
    double slow;       /* compute ops take this many times as long; 1: as they are */
    int64_t nan_step;  /* a gradient of this rank is NaN in that step; -1: never */
    int64_t kill_step; /* the rank kills itself in that step; -1: never */
    int32_t kill_op;   /* as it begins this op; -1: the one in the middle of its program */
} td_inject;

/*
 * What `text` (NULL: nothing) does to `rank`. TD_USAGE, with the forms listed, if it is none of
 * them, names a rank outside [0, world) or a step outside [0, n_steps): a fault that could not
 * happen is a mistake.
 */
td_status td_inject_read(const char *text, int64_t world, int64_t n_steps, int32_t rank,
                         td_inject *out, td_err *err);

#endif
