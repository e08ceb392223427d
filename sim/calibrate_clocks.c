/*
 * How a GPU slows down when it is warm: the curve of clocks, the window and the weights of td_heat,
 * fitted together with the times at full clocks, since no trace shows either alone. Parameters are
 * searched by Levenberg and Marquardt (GSL), the time of every shape at full clocks follows from
 * them as the mean of ln(time / clock factor).
 */
#include "sim/calibrate_samples.h"
#include "sim/clocks.h"

#include <gsl/gsl_multifit_nlinear.h>
#include <math.h>
#include <stdlib.h>

/* The curve is fitted at these heats and is 1 at the first of them. */
static const double knots[] = {0.4, 0.55, 0.7, 0.85, 1};
enum { N_KNOTS = sizeof knots / sizeof *knots };
/* Parameters: ln window, ln weights of td_heat, ln rises from knot to knot. */
enum { WINDOW, WEIGHTS, RISES = WEIGHTS + 3, N_PARAMETERS = RISES + N_KNOTS - 1 };

static const double least_rise = 1e-4, least_weight = 0.05;
/* What is left of a time counts fully up to this, beyond it by its root (soft L1): GPUs differ. */
static const double robust = 0.03;
/* Parameters that the traces do not tell stay: a change by a factor of e counts as this error. */
static const double prior = 0.02;

typedef struct {
    td_samples *s;
    td_profile p; /* at the parameters being tried */
    double y[N_KNOTS];
    double likely[N_PARAMETERS];
    double *clock;   /* [n_spells of all tracks] */
    double *ln_full; /* [n_shapes] ln of the seconds at full clocks */
    int64_t *count;  /* [n_shapes] samples that tell it */
    double *fixed_s; /* [n_shapes] seconds of what clocks do not change; < 0: not known */
    size_t n_spells, n_residuals;
    bool nomem;
} fit;

static bool slows(const td_shape *s)
{
    return s->part.class == TD_PART_GEMM || s->part.class == TD_PART_ATTENTION;
}

static bool tells(const fit *f, const td_sample *x)
{
    return slows(&f->s->shapes[x->shape]) && x->beside == TD_BESIDE_NOTHING;
}

/* ---- parameters ---- */

static void put(fit *f, const double *x)
{
    td_heat *h = &f->p.heat;
    double *weights[] = {&h->attention, &h->memory, &h->collective};
    h->window_s = exp(x[WINDOW]);
    for (int i = 0; i < 3; i++)
        *weights[i] = fmin(1, fmax(least_weight, exp(x[WEIGHTS + i])));
    f->y[0] = 1;
    for (int i = 1; i < N_KNOTS; i++)
        f->y[i] = f->y[i - 1] + exp(x[RISES + i - 1]);
    f->p.duty = (td_curve){.n = N_KNOTS, .x = knots, .y = f->y};
}

static void get(const td_profile *p, double *x)
{
    const td_heat *h = &p->heat;
    const double weights[] = {h->attention, h->memory, h->collective};
    x[WINDOW] = log(h->window_s);
    for (int i = 0; i < 3; i++)
        x[WEIGHTS + i] = log(weights[i]);
    for (int i = 1; i < N_KNOTS; i++)
        x[RISES + i - 1] = log(fmax(least_rise, td_cost_clock_factor(p, knots[i]) -
                                                    td_cost_clock_factor(p, knots[i - 1])));
}

/* ---- at given parameters ---- */

static double shape_s(const fit *f, int32_t shape)
{
    return slows(&f->s->shapes[shape]) ? (f->count[shape] > 0 ? exp(f->ln_full[shape]) : -1)
                                       : f->fixed_s[shape];
}

/* A compute op at full clocks; all_s < 0: not known. */
typedef struct {
    double all_s, slow_s; /* of that: products and attention */
    double heat;
} pass;

static pass pass_of(const fit *f, const td_track *t, const td_spell *s)
{
    const td_recipe *of = &f->s->recipes[t->source][s->work];
    pass p = {.all_s = 0};
    for (int32_t i = 0; i < of->n; i++) {
        const td_shape *shape = &f->s->shapes[of->shape[i]];
        const double one = shape_s(f, of->shape[i]), seconds = one * of->times[i];
        if (one < 0)
            return (pass){.all_s = -1, .heat = f->p.heat.memory};
        p.all_s += seconds;
        p.slow_s += slows(shape) ? seconds : 0;
        p.heat += seconds * td_cost_heat(&f->p, shape->part.class);
    }
    p.heat = p.all_s > 0 ? p.heat / p.all_s : f->p.heat.memory;
    return p;
}

static double heat_of(const fit *f, const td_track *t, const td_spell *s)
{
    return s->work >= 0 ? pass_of(f, t, s).heat : td_cost_heat(&f->p, s->class);
}

/* Every spell's clock; with `keep`, every sample's heat. Steps follow one another, so the first
 * finds the GPU as warm as the track leaves it; that depends linearly on how warm it begins. */
static void follow(fit *f, bool keep)
{
    size_t at = 0;
    for (int32_t i = 0; i < f->s->n_tracks; i++) {
        const td_track *t = &f->s->tracks[i];
        td_warmth w = {0};
        for (int again = 0; again < 2 && t->n > 0; again++) {
            w.at_s = t->begin_s;
            w.mean /= -expm1((t->begin_s - t->end_s) / f->p.heat.window_s); /* 0 at first */
            for (int64_t k = 0; k < t->n; k++) {
                const td_spell *s = &t->spells[k];
                td_warmth_rest(&w, &f->p, s->start_s);
                const double before = w.mean;
                f->clock[at + (size_t)k] = td_warmth_work(&w, &f->p, s->end_s, heat_of(f, t, s));
                for (int64_t x = s->first; keep && x < s->first + s->n; x++)
                    f->s->samples[x].heat = (before + w.mean) / 2;
            }
            td_warmth_rest(&w, &f->p, t->end_s);
        }
        at += (size_t)t->n;
    }
}

static void full_clocks(fit *f)
{
    size_t at = 0;
    for (int32_t i = 0; i < f->s->n_shapes; i++) {
        f->ln_full[i] = 0;
        f->count[i] = 0;
    }
    for (int32_t i = 0; i < f->s->n_tracks; i++)
        for (int64_t k = 0; k < f->s->tracks[i].n; k++, at++) {
            const td_spell *s = &f->s->tracks[i].spells[k];
            for (int64_t x = s->first; x < s->first + s->n; x++)
                if (tells(f, &f->s->samples[x])) {
                    const td_sample *one = &f->s->samples[x];
                    f->ln_full[one->shape] += log(one->s / f->clock[at]);
                    f->count[one->shape]++;
                }
        }
    for (int32_t i = 0; i < f->s->n_shapes; i++)
        f->ln_full[i] /= f->count[i] > 0 ? (double)f->count[i] : 1;
}

static double softly(double x)
{
    const double z = x / robust;
    return copysign(robust * sqrt(2 * (sqrt(1 + z * z) - 1)), x);
}

/* What is left of a spell: of its samples' mean, or of the pass. False if it tells nothing. */
static bool left_of(const fit *f, const td_track *t, const td_spell *s, double clock, double *out)
{
    double sum = 0;
    int64_t n = 0;
    if (s->n == 0 && s->work >= 0) {
        const pass p = pass_of(f, t, s);
        *out = log((s->end_s - s->start_s) / (p.all_s + p.slow_s * (clock - 1)));
        return p.all_s > 0 && s->alone && p.slow_s > p.all_s / 2;
    }
    for (int64_t x = s->first; x < s->first + s->n; x++)
        if (tells(f, &f->s->samples[x])) {
            sum += log(f->s->samples[x].s / clock) - f->ln_full[f->s->samples[x].shape];
            n++;
        }
    *out = n > 0 ? sum / (double)n : 0;
    return n > 0;
}

/* All traces count alike: parts are many, passes few. */
static size_t weigh(const fit *f, const td_track *t, size_t at)
{
    double unused;
    size_t n = 0;
    for (int64_t k = 0; k < t->n; k++)
        n += left_of(f, t, &t->spells[k], f->clock[at + (size_t)k], &unused);
    return n;
}

static int residuals(const gsl_vector *x, void *self, gsl_vector *out)
{
    enum { EQUATIONS = 50 }; /* that a track counts as */
    fit *f = self;
    size_t at = 0, n = 0;
    put(f, x->data);
    follow(f, false);
    full_clocks(f);
    for (int32_t i = 0; i < f->s->n_tracks; i++) {
        const td_track *t = &f->s->tracks[i];
        const double weight = sqrt((double)EQUATIONS / (double)(weigh(f, t, at) + 1));
        for (int64_t k = 0; k < t->n; k++, at++) {
            double left;
            const bool any = left_of(f, t, &t->spells[k], f->clock[at], &left);
            gsl_vector_set(out, n++, any ? weight * softly(left) : 0);
        }
    }
    for (int i = 0; i < N_PARAMETERS; i++)
        gsl_vector_set(out, n++, prior * sqrt(EQUATIONS) * (x->data[i] - f->likely[i]));
    return GSL_SUCCESS;
}

/* ---- the fit ---- */

/* Of everything but products and attention. */
static void fix_others(fit *f, const td_samples *s)
{
    double *x = calloc((size_t)s->n_samples + 1, sizeof *x);
    f->nomem = f->nomem || x == NULL;
    for (int32_t i = 0; x != NULL && i < s->n_shapes; i++) {
        int32_t n = 0;
        f->fixed_s[i] = -1;
        for (int64_t k = 0; !slows(&s->shapes[i]) && k < s->n_samples; k++)
            if (s->samples[k].shape == i && s->samples[k].beside == TD_BESIDE_NOTHING)
                x[n++] = s->samples[k].s;
        if (n > 0)
            f->fixed_s[i] = td_fit_quantile(x, n, 0.5);
    }
    free(x);
}

static td_status search(fit *f, td_fit_errors *errors, td_err *err)
{
    enum { MOST_ITERATIONS = 40 };
    td_status st = TD_OK;
    double x[N_PARAMETERS];
    int info;
    gsl_multifit_nlinear_parameters how = gsl_multifit_nlinear_default_parameters();
    gsl_multifit_nlinear_fdf of = {
        .f = residuals, .n = f->n_spells + N_PARAMETERS, .p = N_PARAMETERS, .params = f};
    how.h_df = 1e-3;
    gsl_multifit_nlinear_workspace *w =
        gsl_multifit_nlinear_alloc(gsl_multifit_nlinear_trust, &how, of.n, of.p);
    gsl_matrix *covariance = gsl_matrix_alloc(N_PARAMETERS, N_PARAMETERS);
    if (w == NULL || covariance == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a fit of %zu times", of.n));
    for (int i = 0; i < N_PARAMETERS; i++)
        x[i] = f->likely[i];
    const gsl_vector_view begin = gsl_vector_view_array(x, N_PARAMETERS);
    gsl_multifit_nlinear_init(&begin.vector, &of, w);
    gsl_multifit_nlinear_driver(MOST_ITERATIONS, 1e-4, 1e-6, 1e-6, NULL, NULL, &info, w);
    put(f, gsl_multifit_nlinear_position(w)->data);
    gsl_multifit_nlinear_covar(gsl_multifit_nlinear_jac(w), 0, covariance);
    const gsl_vector *left = gsl_multifit_nlinear_residual(w);
    double squares = 0;
    for (size_t i = 0; i < left->size; i++)
        squares += left->data[i] * left->data[i];
    double *to[] = {&errors->heat.window_s, &errors->heat.attention, &errors->heat.memory,
                    &errors->heat.collective};
    const double value[] = {f->p.heat.window_s, f->p.heat.attention, f->p.heat.memory,
                            f->p.heat.collective};
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) /* of a logarithm: relative */
        *to[i] = value[i] * sqrt(gsl_matrix_get(covariance, i, i) * squares / (double)of.n);
done:
    gsl_matrix_free(covariance);
    gsl_multifit_nlinear_free(w);
    return st;
}

/* ---- what follows ---- */

/* A rank's products against the same shapes elsewhere. */
static td_status gpu_times(td_arena *a, const fit *f, const double **out, td_err *err)
{
    td_status st = TD_OK;
    const td_samples *s = f->s;
    double *time = TD_NEW(a, double, s->n_ranks), *known = TD_NEW(a, double, s->n_ranks);
    double *x = calloc((size_t)s->n_samples + 1, sizeof *x);
    int32_t *seen = TD_NEW(a, int32_t, s->n_shapes), n_known = 0;
    if (time == NULL || known == NULL || x == NULL || seen == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d GPUs", (int)s->n_ranks));
    for (int32_t i = 0; i < s->n_shapes; i++)
        seen[i] = -1; /* the rank; -2: several */
    for (int64_t k = 0; k < s->n_samples; k++) {
        int32_t *rank = &seen[s->samples[k].shape];
        *rank = *rank == -1 || *rank == s->samples[k].rank ? s->samples[k].rank : -2;
    }
    for (int32_t r = 0; r < s->n_ranks; r++) {
        int32_t n = 0;
        for (int64_t k = 0; k < s->n_samples; k++)
            if (s->samples[k].rank == r && tells(f, &s->samples[k]) &&
                seen[s->samples[k].shape] == -2)
                x[n++] = log(s->samples[k].s) - f->ln_full[s->samples[k].shape];
        time[r] = n > 0 ? td_fit_quantile(x, n, 0.5) : NAN;
        if (n > 0)
            known[n_known++] = time[r];
    }
    const double middle = n_known > 0 ? td_fit_quantile(known, n_known, 0.5) : 0;
    for (int32_t r = 0; r < s->n_ranks; r++)
        time[r] = isnan(time[r]) ? 0 : exp(time[r] - middle);
    *out = time;
done:
    free(x);
    return st;
}

/* Times of products and attention as they would be at full clocks. */
static void take_out(fit *f)
{
    size_t at = 0;
    for (int32_t i = 0; i < f->s->n_tracks; i++)
        for (int64_t k = 0; k < f->s->tracks[i].n; k++, at++) {
            const td_spell *s = &f->s->tracks[i].spells[k];
            for (int64_t x = s->first; x < s->first + s->n; x++)
                if (slows(&f->s->shapes[f->s->samples[x].shape]))
                    f->s->samples[x].s /= f->clock[at];
        }
}

static td_status keep_curve(td_arena *a, const fit *f, td_profile *p, td_err *err)
{
    double *x = TD_NEW(a, double, N_KNOTS), *y = TD_NEW(a, double, N_KNOTS);
    if (x == NULL || y == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a curve of clocks");
    for (int i = 0; i < N_KNOTS; i++) {
        x[i] = knots[i];
        y[i] = f->y[i];
    }
    p->heat = f->p.heat;
    p->duty = (td_curve){.n = N_KNOTS, .x = x, .y = y};
    return TD_OK;
}

td_status td_calibrate_clocks(td_arena *a, td_samples *s, td_profile *p, const double **gpu_time,
                              td_err *err)
{
    td_status st = TD_OK;
    fit f = {.s = s, .p = *p};
    for (int32_t i = 0; i < s->n_tracks; i++)
        f.n_spells += (size_t)s->tracks[i].n;
    f.clock = TD_NEW(a, double, f.n_spells + 1);
    f.ln_full = TD_NEW(a, double, s->n_shapes);
    f.fixed_s = TD_NEW(a, double, s->n_shapes);
    f.count = TD_NEW(a, int64_t, s->n_shapes);
    if (f.clock == NULL || f.ln_full == NULL || f.fixed_s == NULL || f.count == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the clocks of %zu times", f.n_spells));
    fix_others(&f, s);
    if (f.nomem)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the clocks of %zu times", f.n_spells));
    if (p->duty.n > 0 && f.n_spells > 0) {
        get(p, f.likely);
        TD_TRY(st, search(&f, &p->errors, err));
        TD_TRY(st, keep_curve(a, &f, p, err));
    }
    follow(&f, true);
    full_clocks(&f);
    take_out(&f);
    TD_TRY(st, gpu_times(a, &f, gpu_time, err));
done:
    return st;
}
