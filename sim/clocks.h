/*
 * Clocks under a power limit. The limiter of a GPU looks at a mean of its power over some ten
 * milliseconds: a pass that follows a rest begins at full clocks and slows down, and how much the
 * rest of the step idles matters less than what happened just before. The mean is exponential,
 *     u'(t) = (h(t) - u(t)) / window,
 * with h the heat of what runs (td_heat), and products and attention take
 * td_cost_clock_factor(u) times as long.
 */
#ifndef TANDEM_SIM_CLOCKS_H
#define TANDEM_SIM_CLOCKS_H

#include "sim/costs.h"
#include "sim/timeline.h"

/* The mean heat of a GPU at some time. */
typedef struct {
    double at_s, mean;
} td_warmth;

/* The GPU rests until then; earlier times change nothing. */
void td_warmth_rest(td_warmth *w, const td_profile *p, double until_s);

/*
 * The GPU works with this heat until then. Returns the factor on products that are spread evenly
 * over the work: the harmonic mean of the factors on the way, since it is the work done that adds
 * up.
 */
double td_warmth_work(td_warmth *w, const td_profile *p, double until_s, double heat);

/* What a step's own heat does to one class of ranks, in the steady state: steps follow one another.
 */
typedef struct {
    const double *clock; /* [n_ops] factor on products and attention within a compute op; else 1 */
    const double *stretch; /* [n_ops] on the whole compute op; else 1 */
    double heat;           /* mean over the step */
    double factor;         /* mean of `clock`, weighed by what it stretches */
} td_clocks;

/* What a clock factor within each compute op of a rank does to the whole of them, at these prices:
 * [n_ops], 1 for other ops. Fails with TD_NOMEM only. */
td_status td_clocks_stretch(td_arena *a, const td_costs *costs, const td_stream *s, int32_t rank,
                            const double *clock, const double **out, td_err *err);

/* Fails with TD_NOMEM only. */
td_status td_clocks_of(td_arena *a, const td_timeline *t, const td_costs *costs, int32_t class,
                       td_clocks *out, td_err *err);

#endif
