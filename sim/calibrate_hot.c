/*
 * What a GPU that is busy almost always does: parts cannot be looked at without leaving gaps, in
 * which the GPU rests, so the end of the curve of clocks comes from passes as a whole.
 */
#include "sim/calibrate_samples.h"
#include "sim/calibrate_trace.h"

#include <math.h>
#include <stdlib.h>

enum { MOST_POINTS = 64 };

typedef struct {
    double duty, factor;
} point;

/* Seconds of a work as the profile has it at rest: of products and attention, and of all else. */
static void at_rest(const td_profile *p, const td_work *w, double *heavy, double *light)
{
    const td_cost_model *model = td_cost_model_for(p);
    *heavy = *light = 0;
    for (int32_t r = 0; r < w->n_runs; r++)
        for (int32_t i = w->runs[r].first; i < w->runs[r].first + w->runs[r].n; i++) {
            const td_part *part = &w->parts[i];
            const bool slows = part->class == TD_PART_GEMM || part->class == TD_PART_ATTENTION;
            *(slows ? heavy : light) += model->part(p, part, NULL) * w->runs[r].repeat;
        }
}

/* Is every kernel in the works of a stream one that has a price by itself? */
static bool computes_only(const td_program *p, const td_stream *s)
{
    bool only = true;
    for (int32_t i = 0; i < s->n_ops; i++)
        for (int32_t k = 0; s->ops[i].work >= 0 && k < p->works[s->ops[i].work].n_parts; k++)
            only = only && p->works[s->ops[i].work].parts[k].class != TD_PART_COLLECTIVE;
    return only;
}

/* The median pass of a rank over what it takes at rest, and the rank's share of time busy. False
 * if the trace does not tell. `x` has room for all passes. */
static bool look_at(const td_times *t, int32_t rank, const td_profile *profile, double *x,
                    point *out)
{
    const td_program *p = t->program;
    const td_stream *s = td_program_stream(p, rank);
    int64_t busy = 0, first = INT64_MAX, last = INT64_MIN;
    int32_t n = 0;
    for (int32_t step = 0; step < t->n_steps; step++)
        for (int32_t i = 0; i < s->n_ops; i++) {
            const td_time *at = td_times_op(t, step, rank, i);
            const td_op *op = &s->ops[i];
            double heavy, light;
            first = at->start_ns < first ? at->start_ns : first;
            last = at->end_ns > last ? at->end_ns : last;
            busy += op->work >= 0 ? at->end_ns - at->start_ns : 0;
            if (op->kind != TD_OP_FORWARD && op->kind != TD_OP_BACKWARD)
                continue;
            at_rest(profile, &p->works[op->work], &heavy, &light);
            if (heavy > light)
                x[n++] = ((double)(at->end_ns - at->start_ns) * 1e-9 - light) / heavy;
        }
    if (n == 0 || !computes_only(p, s))
        return false;
    *out = (point){(double)busy / (double)(last - first), td_fit_quantile(x, n, 0.5)};
    return true;
}

static td_status look_at_all(const td_times *t, const td_profile *profile, point *points,
                             int32_t *n_points, td_err *err)
{
    const int32_t world = t->program->world_size;
    double *x = calloc((size_t)(t->n_steps * t->n_ops) + 1, sizeof *x),
           *factors = calloc((size_t)world + 1, sizeof *factors), duty = 0;
    int32_t n = 0;
    for (int32_t r = 0; x != NULL && factors != NULL && r < world; r++) {
        point at;
        if (!look_at(t, r, profile, x, &at))
            continue;
        duty += at.duty;
        factors[n++] = at.factor;
    }
    if (n > 0 && *n_points < MOST_POINTS) /* the median GPU, as everywhere in a profile */
        points[(*n_points)++] = (point){duty / n, td_fit_quantile(factors, n, 0.5)};
    const bool whole = x != NULL && factors != NULL;
    free(factors);
    free(x);
    return whole ? TD_OK : td_fail(err, TD_NOMEM, "no memory for the passes of a trace");
}

static int by_duty(const void *left, const void *right)
{
    const point *a = left, *b = right;
    return (a->duty > b->duty) - (a->duty < b->duty);
}

td_status td_calibrate_hot(td_arena *a, int32_t n_sources, const td_calibrate_source *sources,
                           td_profile *p, td_err *err)
{
    td_status st = TD_OK;
    point points[MOST_POINTS];
    int32_t n_points = 0, n = p->duty.n;
    double *x, *y;
    for (int32_t i = 0; i < n_sources; i++) {
        td_times t;
        td_environment unused = {"", "", "", "", "", ""};
        td_arena *tmp = td_arena_new();
        if (tmp == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a trace"));
        st = td_times_read(tmp, &sources[i], &t, &unused, err);
        if (st == TD_OK && t.n_parts == 0)
            st = look_at_all(&t, p, points, &n_points, err);
        td_arena_free(tmp);
        TD_TRY(st, st);
    }
    qsort(points, (size_t)n_points, sizeof *points, by_duty);
    x = TD_NEW(a, double, n + n_points + 1);
    y = TD_NEW(a, double, n + n_points + 1);
    if (x == NULL || y == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a curve of clocks"));
    for (int32_t i = 0; i < n; i++) {
        x[i] = p->duty.x[i];
        y[i] = p->duty.y[i];
    }
    if (n == 0 && n_points > 0) { /* off the power limit below half, as every GPU measured was */
        x[n] = 0.5;
        y[n++] = 1;
    }
    for (int32_t i = 0; i < n_points; i++) /* busier than any trace of parts */
        if (points[i].duty > x[n - 1] && points[i].factor >= y[n - 1]) {
            x[n] = fmin(1, points[i].duty);
            y[n++] = points[i].factor;
        }
    if (n > 1)
        p->duty = (td_curve){.n = n, .x = x, .y = y};
done:
    return st;
}
