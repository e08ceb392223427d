/* What a time owes to its surroundings: to transfers and kernels beside it. */
#include "sim/calibrate_samples.h"

#include <math.h>
#include <stdlib.h>

/* ---- transfers and kernels ---- */

static bool is_exchange(const td_shape *s)
{
    return s->part.class == TD_PART_COLLECTIVE;
}

/* Latency of a communicator: its smallest message's time; 0 if only one size was seen. */
static double latency(const td_samples *s, const td_shape *of)
{
    double least = INFINITY;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_shapes; i++) {
        const td_shape *t = &s->shapes[i];
        if (is_exchange(t) && t->n_alone > 0 && t->part.collective == of->part.collective &&
            t->part.ranks == of->part.ranks) {
            least = fmin(least, t->alone_s);
            n++;
        }
    }
    return n > 1 ? least : 0;
}

/* together - alone = wait + (factor - 1) * (alone - latency) */
static td_status transfers(td_samples *s, td_coll coll, double *x, double *y, double *scale,
                           td_overlap *out, td_err *err)
{
    td_status st = TD_OK;
    td_fit fit;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_shapes; i++) {
        const td_shape *t = &s->shapes[i];
        if (!is_exchange(t) || t->part.collective != coll || t->n_alone == 0)
            continue;
        const double together = td_samples_median(s, t, TD_BESIDE_KERNELS, -1);
        const double flow = t->alone_s - latency(s, t);
        if (together > 0 && flow > 0.1 * t->alone_s) {
            x[n] = flow;
            y[n] = together - t->alone_s;
            scale[n++] = t->alone_s;
        }
    }
    if (n == 0)
        return TD_OK;
    TD_TRY(st, td_fit_line(n, x, y, scale, 0, &fit, err));
    out->wait_s = fit.constant;
    out->transfer = 1 + fit.slope;
done:
    return st;
}

static void kernels(td_samples *s, td_coll coll, double *ratio, td_overlap *out)
{
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_shapes; i++) {
        const td_shape *t = &s->shapes[i];
        const double together =
            is_exchange(t) || t->n_alone == 0 ? -1 : td_samples_median(s, t, (int32_t)coll, -1);
        if (together > 0)
            ratio[n++] = together / t->alone_s;
    }
    if (n > 0)
        out->compute = fmax(1, td_fit_quantile(ratio, n, 0.5));
}

/* What a shape that was never seen alone takes alone. */
static void alone(const td_samples *s, td_shape *t, const td_profile *p)
{
    if (t->n_alone > 0 || t->n == 0)
        return;
    const int32_t beside = s->observations[t->first].beside;
    if (is_exchange(t) && beside == TD_BESIDE_KERNELS) {
        const td_overlap *o = &p->overlap[t->part.collective];
        const double least = latency(s, t), flow = t->alone_s - o->wait_s - least;
        if (flow > 0)
            t->alone_s = least + flow / o->transfer;
    } else if (!is_exchange(t) && beside < TD_N_COLLS) {
        t->alone_s /= p->overlap[beside].compute;
    }
}

td_status td_calibrate_overlap(td_arena *a, td_samples *s, td_profile *p, td_err *err)
{
    td_status st = TD_OK;
    double *x = TD_NEW(a, double, s->n_shapes), *y = TD_NEW(a, double, s->n_shapes),
           *scale = TD_NEW(a, double, s->n_shapes);
    if (x == NULL || y == NULL || scale == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d shapes", (int)s->n_shapes));
    for (int32_t c = 0; c < TD_N_COLLS; c++) {
        TD_TRY(st, transfers(s, (td_coll)c, x, y, scale, &p->overlap[c], err));
        kernels(s, (td_coll)c, x, &p->overlap[c]);
    }
    for (int32_t i = 0; i < s->n_shapes; i++)
        alone(s, &s->shapes[i], p);
done:
    return st;
}
