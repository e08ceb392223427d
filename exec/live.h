/* What a run says of each step while it goes on: one line that renews itself on a terminal, a line
 * a step elsewhere. */
#ifndef TANDEM_EXEC_LIVE_H
#define TANDEM_EXEC_LIVE_H

#include "exec/driver.h"

typedef struct {
    bool terminal;
    int64_t first_step;        /* 0, or where the loaded run stopped */
    int32_t n_warmup, n_steps; /* steps count from there, warm-up included; n_warmup -1: nobody
                                  knows yet, all are */
    double tokens;             /* language positions of a step */
} td_live;

/* On stderr, after step first_step + i. */
void td_live_step(const td_live *l, int32_t i, const td_step_result *r);

#endif
