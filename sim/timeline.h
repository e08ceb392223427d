/*
 * When every op of one predicted step starts and ends. Ranks that provably behave alike form a
 * class and share one list of times; without folding each rank is a class of its own.
 */
#ifndef TANDEM_SIM_TIMELINE_H
#define TANDEM_SIM_TIMELINE_H

#include "model/program.h"

typedef struct {
    const td_program *program;
    int32_t n_classes;
    const int32_t *class_of; /* [world_size] */
    const int32_t *rep;      /* [n_classes] lowest rank of the class */
    double *const
        *start; /* [n_classes][n_ops of the class's stream], seconds from the step's begin */
    double *const *
        end; /* a SEND's or RECV's start is when both sides had issued it, not when it was posted */
    double step_s; /* end of the last op; the step's last op is a world collective, so this is the
                      period */
    int64_t n_simulated;         /* ops that went through the event loop */
    int64_t n_flows, n_promoted; /* transfers with a payload; those handed to SimGrid because a link
                                    was shared */
    bool folded, buffered_sends;
    double max_link_load; /* highest sum of lone rates over capacity seen on any link; > 1 means
                             contention */
} td_timeline;

static inline double td_timeline_start(const td_timeline *t, int32_t rank, int32_t op)
{
    return t->start[t->class_of[rank]][op];
}
static inline double td_timeline_end(const td_timeline *t, int32_t rank, int32_t op)
{
    return t->end[t->class_of[rank]][op];
}

#endif
