/* Follows the heat of a GPU through its ops. */
#include "sim/clocks.h"

#include <math.h>

/* A piece of work is looked at in pieces of an eighth of the window, at most so many. */
enum { PIECES = 8, MOST_PIECES = 32 };

static void decay(td_warmth *w, double to, double windows, double until_s)
{
    w->mean = to + (w->mean - to) * exp(-windows);
    w->at_s = until_s;
}

void td_warmth_rest(td_warmth *w, const td_profile *p, double until_s)
{
    if (until_s > w->at_s)
        decay(w, 0, (until_s - w->at_s) / p->heat.window_s, until_s);
}

double td_warmth_work(td_warmth *w, const td_profile *p, double until_s, double heat)
{
    const double windows = (until_s - w->at_s) / p->heat.window_s;
    if (!(windows > 0))
        return td_cost_clock_factor(p, w->mean);
    const double n = fmin(MOST_PIECES, ceil(windows * PIECES));
    const double half = exp(-windows / n / 2);
    double done = 0, above = w->mean - heat;
    for (double i = 0; i < n; i++) {
        done += 1 / td_cost_clock_factor(p, heat + above * half);
        above *= half * half;
    }
    decay(w, heat, windows, until_s);
    return n / done;
}

static bool computes(const td_stream *s, int32_t i)
{
    return s->ops[i].lane == TD_LANE_COMPUTE && s->ops[i].work >= 0;
}

/* Goes once through the step; returns the mean heat. With `clock`, keeps every op's factor. */
static double follow(const td_timeline *t, const td_costs *costs, int32_t class, td_warmth *w,
                     double *clock)
{
    const int32_t rank = t->rep[class];
    const td_stream *s = td_program_stream(t->program, rank);
    const td_profile *p = td_costs_profile(costs, rank);
    double heat_s = 0;
    for (int32_t i = 0; i < s->n_ops; i++) {
        if (!computes(s, i))
            continue;
        const double heat = td_costs_work(costs, rank, s->ops[i].work)->heat;
        const double start = t->start[class][i], end = t->end[class][i];
        td_warmth_rest(w, p, start);
        const double factor = td_warmth_work(w, p, end, heat);
        heat_s += (end - start) * heat;
        if (clock != NULL)
            clock[i] = factor;
    }
    td_warmth_rest(w, p, t->step_s);
    return t->step_s > 0 ? heat_s / t->step_s : 0;
}

td_status td_clocks_stretch(td_arena *a, const td_costs *costs, const td_stream *s, int32_t rank,
                            const double *clock, const double **out, td_err *err)
{
    double *stretch = TD_NEW(a, double, s->n_ops);
    if (stretch == NULL)
        return td_fail(err, TD_NOMEM, "no memory for the clocks of %d ops", (int)s->n_ops);
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_work_cost *c = computes(s, i) ? td_costs_work(costs, rank, s->ops[i].work) : NULL;
        stretch[i] = c != NULL && c->total_s > 0 ? 1 + c->gemm_s * (clock[i] - 1) / c->total_s : 1;
    }
    *out = stretch;
    return TD_OK;
}

td_status td_clocks_of(td_arena *a, const td_timeline *t, const td_costs *costs, int32_t class,
                       td_clocks *out, td_err *err)
{
    const int32_t rank = t->rep[class];
    const td_stream *s = td_program_stream(t->program, rank);
    const td_profile *p = td_costs_profile(costs, rank);
    td_status st = TD_OK;
    double *clock = TD_NEW(a, double, s->n_ops);
    const double *stretch;
    double products_s = 0, stretched_s = 0;
    td_warmth w = {0};
    if (clock == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the clocks of %d ops", (int)s->n_ops));
    const double heat = follow(t, costs, class, &w, NULL);
    /* The mean at a step's end depends linearly on that at its begin: they are equal here. */
    const double kept = exp(-t->step_s / p->heat.window_s);
    w = (td_warmth){.mean = kept < 1 ? w.mean / (1 - kept) : heat};
    for (int32_t i = 0; i < s->n_ops; i++)
        clock[i] = 1;
    follow(t, costs, class, &w, clock);
    for (int32_t i = 0; i < s->n_ops; i++) {
        if (!computes(s, i))
            continue;
        const td_work_cost *c = td_costs_work(costs, rank, s->ops[i].work);
        products_s += c->gemm_s;
        stretched_s += c->gemm_s * clock[i];
    }
    TD_TRY(st, td_clocks_stretch(a, costs, s, rank, clock, &stretch, err));
    *out = (td_clocks){.clock = clock,
                       .stretch = stretch,
                       .heat = heat,
                       .factor = products_s > 0 ? stretched_s / products_s
                                                : td_cost_clock_factor(p, heat)};
done:
    return st;
}
