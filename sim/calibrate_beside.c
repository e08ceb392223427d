/* What a time owes to its surroundings: to transfers and kernels beside it, to a busy GPU. */
#include "sim/calibrate_samples.h"
#include "sim/cost_law.h"

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

/* ---- clocks ---- */

enum { N_BINS = 50, LEAST_SHAPES = 3, ROUNDS = 2000 };

/* ln s = shape + rank + bin of duty: each effect in turn the mean of what the others leave, where
 * nothing counts as further off than 2.5 standard deviations (Huber's estimator by backfitting). */
typedef struct {
    int32_t shape, rank, bin, observation;
    double ln_s;
} entry;

typedef struct {
    td_samples *s;
    entry *e;
    int32_t n;
    double *shape, *rank, bin[N_BINS];
    double *x;      /* [n] */
    double *sum;    /* [shapes + ranks + bins] */
    int32_t *count; /* likewise */
    double most;    /* what is left of an entry counts up to this */
} polish;

static double effect(const polish *p, const entry *e)
{
    return p->shape[e->shape] + p->rank[e->rank] + p->bin[e->bin];
}

static double left(const polish *p, int32_t i)
{
    return p->e[i].ln_s - effect(p, &p->e[i]);
}

/* The means of what is left go into `effects`; `key` tells which an entry has. */
static void polish_one(polish *p, int32_t n, int32_t (*key)(const entry *), double *sum,
                       int32_t *count, double *effects)
{
    for (int32_t k = 0; k < n; k++) {
        sum[k] = 0;
        count[k] = 0;
    }
    for (int32_t i = 0; i < p->n; i++) {
        sum[key(&p->e[i])] += fmax(-p->most, fmin(p->most, left(p, i)));
        count[key(&p->e[i])]++;
    }
    for (int32_t k = 0; k < n; k++)
        effects[k] += count[k] > 0 ? sum[k] / count[k] : 0;
}

static int32_t shape_of(const entry *e)
{
    return e->shape;
}
static int32_t rank_of(const entry *e)
{
    return e->rank;
}
static int32_t bin_of(const entry *e)
{
    return e->bin;
}

static void polish_all(polish *p, bool with_duty)
{
    for (int32_t i = 0; i < p->n; i++)
        p->x[i] = fabs(left(p, i));
    if (p->n > 0)
        p->most = 2.5 * 1.4826 * td_fit_quantile(p->x, p->n, 0.5) + 0.01; /* room to move */
    polish_one(p, p->s->n_shapes, shape_of, p->sum, p->count, p->shape);
    if (with_duty)
        polish_one(p, N_BINS, bin_of, p->sum, p->count, p->bin);
    polish_one(p, p->s->n_ranks, rank_of, p->sum, p->count, p->rank);
}

/* Different values of rank or bin among the observations of a shape. */
static bool varies(const polish *p, int32_t shape, bool bins)
{
    int32_t first = -1;
    bool varied = false;
    for (int32_t i = 0; i < p->n; i++)
        if (p->e[i].shape == shape) {
            const int32_t value = bins ? p->e[i].bin : p->e[i].rank;
            varied = varied || (first >= 0 && value != first);
            first = value;
        }
    return varied;
}

/*
 * Bins can be compared where shapes were seen in both; `group` [N_BINS] gets equal numbers for
 * those. Returns the group that holds the most observations of shapes seen in several bins.
 */
static int32_t groups_of(const polish *p, int32_t group[N_BINS])
{
    int32_t n[N_BINS] = {0}, best = 0;
    for (int32_t b = 0; b < N_BINS; b++)
        group[b] = b;
    for (int32_t i = 1; i < p->n; i++) { /* observations stand by shape */
        const int32_t to = group[p->e[i - 1].bin], from = group[p->e[i].bin];
        for (int32_t b = 0; p->e[i].shape == p->e[i - 1].shape && b < N_BINS; b++)
            group[b] = group[b] == from ? to : group[b];
    }
    for (int32_t i = 0; i < p->n; i++)
        if (varies(p, p->e[i].shape, true))
            n[group[p->e[i].bin]]++;
    for (int32_t b = 0; b < N_BINS; b++)
        best = n[b] > n[best] ? b : best;
    return best;
}

/* Shapes that tell about a bin: seen in it and in another. */
static int32_t tell_of_bin(const polish *p, int32_t bin)
{
    int32_t n = 0, before = -1;
    for (int32_t i = 0; i < p->n; i++)
        if (p->e[i].bin == bin && p->e[i].shape != before && varies(p, p->e[i].shape, true)) {
            before = p->e[i].shape;
            n++;
        }
    return n;
}

static bool tells_of_rank(const polish *p, int32_t rank)
{
    bool any = false;
    for (int32_t i = 0; i < p->n && !any; i++)
        any = p->e[i].rank == rank && varies(p, p->e[i].shape, false);
    return any;
}

/* The curve through the bins that are told of enough, 1 at the lowest; none if it is flat. What
 * falls with the share is made monotone where the profile is read. */
static td_status curve_of(td_arena *a, const polish *p, td_curve *out, td_err *err)
{
    double *x = TD_NEW(a, double, N_BINS), *y = TD_NEW(a, double, N_BINS), lowest = 0;
    int32_t group[N_BINS], n = 0;
    const int32_t best = groups_of(p, group);
    if (x == NULL || y == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a curve of clocks");
    for (int32_t b = 0; b < N_BINS; b++) {
        double sum = 0;
        int32_t count = 0;
        for (int32_t i = 0; i < p->n; i++)
            if (p->e[i].bin == b) {
                sum += p->s->observations[p->e[i].observation].duty;
                count++;
            }
        if (count == 0 || group[b] != best || tell_of_bin(p, b) < LEAST_SHAPES)
            continue;
        lowest = n == 0 ? p->bin[b] : lowest;
        x[n] = fmin(1, sum / count);
        y[n] = fmax(1, exp(p->bin[b] - lowest));
        n++;
    }
    if (n > 1 && y[n - 1] > 1.005)
        *out = (td_curve){.n = n, .x = x, .y = y};
    return TD_OK;
}

static td_status gather(td_arena *a, td_samples *s, polish *p, td_err *err)
{
    const int32_t most = s->n_shapes + s->n_ranks + N_BINS;
    *p = (polish){.s = s,
                  .sum = TD_NEW(a, double, most),
                  .count = TD_NEW(a, int32_t, most),
                  .e = TD_NEW(a, entry, s->n_observations),
                  .shape = TD_NEW(a, double, s->n_shapes),
                  .rank = TD_NEW(a, double, s->n_ranks),
                  .x = TD_NEW(a, double, s->n_observations)};
    if (p->e == NULL || p->shape == NULL || p->rank == NULL || p->x == NULL || p->sum == NULL ||
        p->count == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %d observations", (int)s->n_observations);
    for (int32_t i = 0; i < s->n_observations; i++) {
        const td_observation *o = &s->observations[i];
        const uint8_t class = s->shapes[o->shape].part.class;
        if ((class == TD_PART_GEMM || class == TD_PART_ATTENTION) && o->beside == TD_BESIDE_NOTHING)
            p->e[p->n++] = (entry){.shape = o->shape,
                                   .rank = o->rank,
                                   .bin = (int32_t)fmin(N_BINS - 1, fmax(0, o->duty * N_BINS)),
                                   .observation = i,
                                   .ln_s = log(o->s)};
    }
    return TD_OK;
}

/* Without the curve in them, as at the lowest share. */
static void take_out(td_samples *s, const td_curve *duty)
{
    for (int32_t i = 0; i < s->n_observations; i++) {
        td_observation *o = &s->observations[i];
        const uint8_t class = s->shapes[o->shape].part.class;
        if (class == TD_PART_GEMM || class == TD_PART_ATTENTION)
            o->s /= td_law_curve(duty, o->duty);
    }
    for (int32_t i = 0; i < s->n_shapes; i++)
        if (s->shapes[i].n_alone > 0)
            td_samples_settle(s, &s->shapes[i]);
}

td_status td_calibrate_clocks(td_arena *a, td_samples *s, bool with_duty, td_curve *duty,
                              const double **gpu_time, td_err *err)
{
    td_status st = TD_OK;
    polish p;
    double *time = TD_NEW(a, double, s->n_ranks), *known = TD_NEW(a, double, s->n_ranks);
    int32_t n_known = 0;
    if (time == NULL || known == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d clocks", (int)s->n_ranks));
    TD_TRY(st, gather(a, s, &p, err));
    for (int32_t round = 0; round < ROUNDS; round++)
        polish_all(&p, with_duty);
    for (int32_t r = 0; r < s->n_ranks; r++)
        if (tells_of_rank(&p, r))
            known[n_known++] = p.rank[r];
    const double middle = n_known > 0 ? td_fit_quantile(known, n_known, 0.5) : 0;
    for (int32_t r = 0; r < s->n_ranks; r++)
        time[r] = tells_of_rank(&p, r) ? exp(p.rank[r] - middle) : 0;
    *gpu_time = time;
    if (with_duty)
        TD_TRY(st, curve_of(a, &p, duty, err));
    if (duty->n > 0)
        take_out(s, duty);
done:
    return st;
}
