/* Draws prices as far off as the profile says they may be, and looks what the step makes of them.
 */
#include "sim/uncertainty.h"
#include "sim/cost_law.h"
#include "sim/intern.h"

#include <gsl/gsl_errno.h>
#include <gsl/gsl_fit.h>
#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics_double.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RESIMULATED_SAMPLES = 32, LINEARISED_SAMPLES = 4096, MAX_PROFILES = 64, N_KEY = 12 };
enum { SEED = 20070611 }; /* any: the same every time */

/* For all draws. Simulating an op, or looking at a rank, takes about 0.1 us: 50 ms. */
static const int64_t cheap_ops = 500000;

static const double level = 0.9;
static const double common_variance = 0.5; /* see the header */

/*
 * Standard deviation of the logarithm where a profile has no residuals. Leaving single measurements
 * out of the shipped H200 tables gave errors of 2.1 % in the median and 14 % at the 90th percentile
 * (a normal distribution with those: 3.1 % and 8.5 %, geometric mean 5 %). Numbers from a
 * datasheet, and shapes outside of what was measured, are no better than the worst of these.
 */
static const double assumed[TD_N_TRUSTS] = {
    [TD_TRUST_DATASHEET] = 0.15, [TD_TRUST_PROVISIONAL] = 0.05, [TD_TRUST_CALIBRATED] = 0.05};
static const double assumed_outside = 0.15;

const char *const td_uncertainty_names[TD_N_UNCERTAINTIES] = {
#define X(method, name) [TD_UNCERTAINTY_##method] = name,
    TD_UNCERTAINTY_MAP(X)
#undef X
};

/* ---- classes ---- */

/* Classes of residuals: parts, then collectives. */
enum { N_CLASSES = TD_N_PARTS + TD_N_COLLS };

/* What sensitivities are told apart by: the passes of a product, the other classes, two more. */
enum { GAP = TD_PASS_WGRAD + 1 + N_CLASSES, OVERLAP, N_WHATS };

static int32_t class_of(const td_priced *w)
{
    return w->query != NULL ? TD_N_PARTS + (int32_t)w->query->coll : w->part->class;
}

static int32_t what_of(const td_priced *w)
{
    const int32_t class = class_of(w);
    return class == TD_PART_GEMM ? w->part->pass : TD_PASS_WGRAD + 1 + class;
}

static const char *class_name(int32_t class)
{
    return class < TD_N_PARTS ? td_part_table[class].name
                              : td_collectives[class - TD_N_PARTS]->name;
}

static const char *what_name(td_arena *a, int32_t what)
{
    if (what == GAP)
        return "kernel gap";
    if (what == OVERLAP)
        return "overlap";
    if (what > TD_PASS_WGRAD)
        return class_name(what - TD_PASS_WGRAD - 1);
    return td_arena_printf(a, "%s %s", td_part_table[TD_PART_GEMM].name, td_pass_names[what]);
}

/* ---- shapes ---- */

/* One distinct shape: what all draws multiply alike. */
typedef struct {
    int32_t profile, class;
    const td_residuals *residuals; /* NULL: `sigma` */
    double sigma;
    bool outside;  /* of what was measured */
    double least;  /* factor that takes the price to its physical bound */
    double path_s; /* seconds of the critical path */
} item;

typedef struct {
    td_arena *tmp;
    const td_prediction *p;
    td_intern keys;
    item *items;
    int32_t cap_items;
    int32_t n_profiles;
    const td_profile *profiles[MAX_PROFILES];
    int32_t *order; /* item of every price, as td_costs_rescaled() asks for them */
    int32_t n_order, cap_order, next;
    double what_s[N_WHATS]; /* of the critical path */
    /* Of the op that is being visited: */
    double clock;    /* factor on its products */
    double lone_s;   /* all of it alone */
    double portion;  /* of it that the path goes through */
    double stretch;  /* how many times longer than alone it takes */
    double *factors; /* of the draw, by item */
    double *common;  /* by profile and class */
    gsl_rng *rng;
    bool nomem;
} sampler;

static int32_t profile_index(sampler *s, const td_profile *profile)
{
    int32_t i = 0;
    while (i < s->n_profiles && s->profiles[i] != profile)
        i++;
    if (i == s->n_profiles)
        s->profiles[s->n_profiles++] = profile; /* a price list has no more than MAX_PROFILES */
    return i;
}

/* Is the price measured, or carried over from other shapes? */
static bool is_outside(sampler *s, const td_priced *w)
{
    td_cost_notes notes = {.arena = s->tmp};
    td_comm_cost cost;
    const td_cost_model *model = td_cost_model_for(w->profile);
    if (w->query != NULL)
        model->comm(w->profile, w->query, &cost, &notes);
    else
        model->part(w->profile, w->part, &notes);
    return notes.n_extrapolated > 0;
}

static double bound_s(const td_priced *w)
{
    return w->query != NULL ? td_law_bound_comm(w->query, 0, 0).total_s
                            : td_law_bound_part(w->profile, w->part, 0);
}

static const td_residuals *residuals_of(const td_profile *profile, int32_t class)
{
    return class < TD_N_PARTS ? &profile->part_residuals[class]
                              : &profile->coll_residuals[class - TD_N_PARTS];
}

static item new_item(sampler *s, const td_priced *w, int32_t profile)
{
    const int32_t class = class_of(w);
    item i = {.profile = profile, .class = class, .outside = is_outside(s, w)};
    const td_residuals *r = residuals_of(w->profile, class);
    i.sigma = i.outside ? assumed_outside : assumed[w->profile->trust];
    if (r->n > 0 && !i.outside)
        i.residuals = r;
    if (w->seconds > 0)
        i.least = fmin(1, bound_s(w) / w->seconds);
    return i;
}

/* The item of a price, made if it is new; -1 without memory. */
static int32_t item_of(sampler *s, const td_priced *w)
{
    const td_part *p = w->part;
    const td_comm_query *q = w->query;
    const int32_t profile = profile_index(s, w->profile), n = s->keys.n;
    int64_t key[N_KEY] = {profile, class_of(w)};
    int32_t tuple[2 * N_KEY];
    if (q != NULL) {
        const int64_t of[] = {q->ranks, q->one_node, (int64_t)q->bytes,
                              (int64_t)q->edge_bytes_per_s, (int64_t)(1e9 * q->edge_latency_s)};
        memcpy(key + 2, of, sizeof of);
    } else {
        const int64_t of[] = {
            p->pass,     p->causal * 2 + p->fp32, p->m, p->n, p->k, p->batch, p->seq, p->heads,
            p->head_dim, (int64_t)p->bytes};
        memcpy(key + 2, of, sizeof of);
    }
    memcpy(tuple, key, sizeof key);
    const int32_t i = td_intern_get(&s->keys, tuple, 2 * N_KEY);
    if (i >= s->cap_items) {
        const int32_t cap = s->cap_items == 0 ? 64 : 2 * s->cap_items;
        item *items = realloc(s->items, (size_t)cap * sizeof *items);
        if (items == NULL)
            return -1;
        s->items = items;
        s->cap_items = cap;
    }
    if (i == n)
        s->items[i] = new_item(s, w, profile);
    return i;
}

/* ---- what there is ---- */

/* For td_costs_rescaled(): remembers the items in the order in which prices are asked for. */
static double remember(void *self, const td_priced *w)
{
    sampler *s = self;
    const int32_t i = item_of(s, w);
    if (s->n_order == s->cap_order) {
        const int32_t cap = s->cap_order == 0 ? 256 : 2 * s->cap_order;
        int32_t *order = realloc(s->order, (size_t)cap * sizeof *order);
        s->nomem |= order == NULL;
        s->order = order != NULL ? order : s->order;
        s->cap_order = order != NULL ? cap : s->cap_order;
    }
    s->nomem |= i < 0;
    if (!s->nomem)
        s->order[s->n_order++] = i;
    return 1;
}

static double clock_of(const sampler *s, const td_priced *w)
{
    const bool stretched =
        w->query == NULL && (w->part->class == TD_PART_GEMM || w->part->class == TD_PART_ATTENTION);
    return stretched ? s->clock : 1;
}

static void add_lone(void *self, const td_priced *w, double times)
{
    sampler *s = self;
    s->lone_s += w->seconds * times * clock_of(s, w);
}

/* What is longer than alone counts as overlap, the start of every kernel as its gap. */
static void add_path(void *self, const td_priced *w, double times)
{
    sampler *s = self;
    const int32_t i = item_of(s, w);
    const double seconds = w->seconds * times * clock_of(s, w) * s->portion;
    const double alone = seconds * fmin(1, s->stretch);
    double gap = 0;
    s->nomem |= i < 0;
    if (i < 0 || w->seconds <= 0)
        return;
    if (w->query == NULL)
        gap = fmin(1, w->profile->kernel_gap_s / w->seconds);
    s->items[i].path_s += seconds * s->stretch;
    s->what_s[what_of(w)] += alone * (1 - gap);
    s->what_s[GAP] += alone * gap;
    s->what_s[OVERLAP] += seconds * s->stretch - alone;
}

static void add_op(sampler *s, const td_path_op *at)
{
    const td_timeline *t = s->p->timeline;
    const td_op *op = &td_program_stream(s->p->program, at->rank)->ops[at->op];
    const double whole =
        td_timeline_end(t, at->rank, at->op) - td_timeline_start(t, at->rank, at->op);
    s->clock = s->p->class_clocks[t->class_of[at->rank]].clock[at->op];
    s->lone_s = 0;
    td_costs_visit(s->p->costs, at->rank, op, s, add_lone);
    if (s->lone_s <= 0 || whole <= 0)
        return;
    s->portion = at->seconds / whole;
    s->stretch = whole / s->lone_s;
    td_costs_visit(s->p->costs, at->rank, op, s, add_path);
}

/* All shapes of the program, and what the critical path has of each. */
static td_status gather(sampler *s, td_err *err)
{
    td_status st = TD_OK;
    const td_costs *same;
    TD_TRY(st, td_costs_rescaled(s->tmp, s->p->costs, s, remember, &same, err));
    for (const td_path_op *op = s->p->path.ops; op != NULL; op = op->next)
        add_op(s, op);
    s->factors = TD_NEW(s->tmp, double, s->keys.n);
    s->common = TD_NEW(s->tmp, double, s->n_profiles *N_CLASSES);
    s->rng = gsl_rng_alloc(gsl_rng_mt19937);
    if (s->nomem || s->factors == NULL || s->common == NULL || s->rng == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the uncertainty of a step"));
done:
    return st;
}

/* ---- draws ---- */

double td_residual_at(const td_residuals *r, double z)
{
    static const double score[TD_N_QUANTILES] = {-1.6448536269514722, -0.6744897501960817, 0,
                                                 0.6744897501960817, 1.6448536269514722};
    const double at = fmax(-3, fmin(3, z));
    int32_t i = 0;
    while (i < TD_N_QUANTILES - 2 && at > score[i + 1])
        i++;
    return r->q[i] + (r->q[i + 1] - r->q[i]) * ((at - score[i]) / (score[i + 1] - score[i]));
}

static void draw(sampler *s)
{
    const double own = sqrt(1 - common_variance), all = sqrt(common_variance);
    for (int32_t i = 0; i < s->n_profiles * N_CLASSES; i++)
        s->common[i] = gsl_ran_gaussian_ziggurat(s->rng, 1);
    for (int32_t i = 0; i < s->keys.n; i++) {
        const item *one = &s->items[i];
        const double z = own * gsl_ran_gaussian_ziggurat(s->rng, 1) +
                         all * s->common[one->profile * N_CLASSES + one->class];
        const double x =
            one->residuals != NULL ? td_residual_at(one->residuals, z) : one->sigma * z;
        s->factors[i] = fmax(exp(x), one->least);
    }
}

static double drawn_factor(void *self, const td_priced *w)
{
    sampler *s = self;
    (void)w;
    return s->factors[s->order[s->next++]];
}

/* At the clocks of the prediction: other prices move the step, not the power. */
static td_status play(td_arena *a, const td_prediction *p, const td_costs *costs, double *step_s,
                      td_err *err)
{
    td_status st = TD_OK;
    const td_timeline *now = p->timeline, *t = NULL;
    const td_prices prices = td_prices_of(costs);
    const double **class = TD_NEW(a, const double *, now->n_classes),
                 **stretch = TD_NEW(a, const double *, p->program->world_size);
    if (class == NULL || stretch == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate a step again"));
    for (int32_t c = 0; c < now->n_classes; c++)
        TD_TRY(st, td_clocks_stretch(a, costs, td_program_stream(p->program, now->rep[c]),
                                     now->rep[c], p->class_clocks[c].clock, &class[c], err));
    for (int32_t r = 0; r < p->program->world_size; r++)
        stretch[r] = class[now->class_of[r]];
    const td_engine_options e = {.flows = TD_FLOWS_IDEAL,
                                 .buffered_sends = now->buffered_sends,
                                 .stretch = stretch,
                                 .cores = p->cores};
    TD_TRY(st, td_engine_run(a, p->program, NULL, &prices, &e, &t, err));
    *step_s = t->step_s;
done:
    return st;
}

static td_status resimulate(sampler *s, int32_t n, double *step_s, td_err *err)
{
    td_status st = TD_OK;
    const td_prediction *p = s->p;
    td_arena *one = td_arena_new();
    double base = 0;
    if (one == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate a step again"));
    TD_TRY(st, play(one, p, p->costs, &base, err));
    gsl_rng_set(s->rng, SEED);
    for (int32_t i = 0; i < n; i++) {
        const td_costs *costs;
        double drawn = 0;
        td_arena_free(one);
        one = td_arena_new();
        if (one == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate a step again"));
        draw(s);
        s->next = 0;
        TD_TRY(st, td_costs_rescaled(one, p->costs, s, drawn_factor, &costs, err));
        TD_TRY(st, play(one, p, costs, &drawn, err));
        step_s[i] = base > 0 ? p->step_s * (drawn / base) : 0;
    }
done:
    td_arena_free(one);
    return st;
}

/* What the draw does to the critical path. */
static double linear(const sampler *s)
{
    double more = 0;
    for (int32_t i = 0; i < s->keys.n; i++)
        more += s->items[i].path_s * (s->factors[i] - 1);
    return s->p->step_s + more;
}

static void linearise(sampler *s, int32_t n, double *step_s)
{
    gsl_rng_set(s->rng, SEED);
    for (int32_t i = 0; i < n; i++) {
        draw(s);
        step_s[i] = linear(s);
    }
}

/*
 * The quantiles of 32 draws are off by a third of a standard deviation, and simulating is what
 * takes time. So the simulated draws serve to learn how the step follows its linearisation, a
 * regression with what it leaves over, and the many linearised draws, of which they are the first,
 * say how that is distributed: as good as thousands of simulated ones (tests/sim/test_uncertainty.c
 * compares).
 */
static void regress(double *simulated_s, int32_t n, double *step_s, int32_t n_linear)
{
    double a, b, caa, cab, cbb, squares;
    if (!(gsl_stats_variance(step_s, 1, (size_t)n) > 0))
        return; /* nothing is drawn: the step in either way */
    gsl_fit_linear(step_s, 1, simulated_s, 1, (size_t)n, &a, &b, &caa, &cab, &cbb, &squares);
    for (int32_t i = 0; i < n; i++)
        simulated_s[i] -= a + b * step_s[i]; /* what is left */
    for (int32_t i = 0; i < n_linear; i++)
        step_s[i] = a + b * step_s[i] + simulated_s[i % n];
}

/* ---- answers ---- */

/* The list with one more in it; NULL without memory. */
static const char *append(td_arena *a, const char *list, const char *separator, const char *more)
{
    if (list == NULL || more == NULL)
        return NULL;
    return list[0] == '\0' ? more : td_arena_printf(a, "%s%s%s", list, separator, more);
}

/* `measured residuals of gemm, attention; 5 % assumed (provisional) for norm; 15 % assumed for 7
 * extrapolated shapes`. */
static const char *basis_of_profile(td_arena *a, const sampler *s, int32_t p)
{
    const td_profile *profile = s->profiles[p];
    const char *known = "", *unknown = "", *text = "";
    int32_t outside = 0;
    bool inside[N_CLASSES] = {false};
    for (int32_t i = 0; i < s->keys.n; i++)
        if (s->items[i].profile == p) {
            inside[s->items[i].class] |= !s->items[i].outside;
            outside += s->items[i].outside;
        }
    for (int32_t c = 0; c < N_CLASSES; c++) {
        const char **list = residuals_of(profile, c)->n > 0 ? &known : &unknown;
        if (inside[c])
            *list = append(a, *list, ", ", class_name(c));
    }
    if (known == NULL || unknown == NULL)
        return NULL;
    if (known[0] != '\0')
        text = append(a, text, "; ", td_arena_printf(a, "measured residuals of %s", known));
    if (unknown[0] != '\0')
        text = append(a, text, "; ",
                      td_arena_printf(a, "%g %% assumed (%s) for %s", 100 * assumed[profile->trust],
                                      td_trust_names[profile->trust],
                                      known[0] == '\0' ? "every class" : unknown));
    if (outside > 0)
        text =
            append(a, text, "; ",
                   td_arena_printf(a, "%g %% assumed for %d extrapolated shape%s",
                                   100 * assumed_outside, (int)outside, outside == 1 ? "" : "s"));
    return text;
}

static const char *basis_of(td_arena *a, const sampler *s)
{
    const char *all = "";
    if (s->n_profiles == 1)
        return basis_of_profile(a, s, 0);
    for (int32_t p = 0; p < s->n_profiles; p++) {
        const char *one = basis_of_profile(a, s, p);
        all = append(a, all, "; ",
                     one == NULL ? NULL : td_arena_printf(a, "%s (%s)", s->profiles[p]->name, one));
    }
    return all;
}

static int by_share(const void *x, const void *y)
{
    const td_sensitivity *a = x, *b = y;
    return a->share != b->share ? (a->share < b->share ? 1 : -1) : strcmp(a->what, b->what);
}

static td_status sensitivities_of(td_arena *a, const sampler *s, td_uncertainty *out, td_err *err)
{
    td_sensitivity *all = TD_NEW(a, td_sensitivity, N_WHATS);
    int32_t n = 0;
    for (int32_t i = 0; all != NULL && i < N_WHATS; i++)
        if (s->what_s[i] > 0) {
            all[n] =
                (td_sensitivity){.what = what_name(a, i), .share = s->what_s[i] / s->p->step_s};
            if (all[n++].what == NULL)
                all = NULL;
        }
    if (all == NULL)
        return td_fail(err, TD_NOMEM, "no memory for sensitivities");
    qsort(all, (size_t)n, sizeof *all, by_share);
    out->sensitivities = all;
    out->n_sensitivities = n;
    return TD_OK;
}

static td_status interval_of(sampler *s, td_uncertainty *out, td_err *err)
{
    td_status st = TD_OK;
    const bool simulated = out->method == TD_UNCERTAINTY_RESIMULATED;
    const int32_t n =
        simulated && out->samples < LINEARISED_SAMPLES ? LINEARISED_SAMPLES : out->samples;
    double *step_s = TD_NEW(s->tmp, double, n), *again_s = TD_NEW(s->tmp, double, out->samples);
    if (step_s == NULL || again_s == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d samples", (int)n));
    linearise(s, n, step_s);
    if (simulated) {
        TD_TRY(st, resimulate(s, out->samples, again_s, err));
        regress(again_s, out->samples, step_s, n);
    }
    gsl_sort(step_s, 1, (size_t)n);
    out->level = level;
    out->low_s = gsl_stats_quantile_from_sorted_data(step_s, 1, (size_t)n, (1 - level) / 2);
    out->high_s = gsl_stats_quantile_from_sorted_data(step_s, 1, (size_t)n, (1 + level) / 2);
    out->low_s = fmin(out->low_s, s->p->step_s);
    out->high_s = fmax(out->high_s, s->p->step_s);
done:
    return st;
}

static td_uncertainty_method method_of(const td_prediction *p, td_uncertainty_method asked)
{
    const int64_t ops = p->timeline->n_simulated + p->program->world_size;
    if (asked != TD_UNCERTAINTY_AUTO)
        return asked;
    return ops <= cheap_ops / RESIMULATED_SAMPLES ? TD_UNCERTAINTY_RESIMULATED
                                                  : TD_UNCERTAINTY_LINEARISED;
}

td_status td_uncertainty_of(td_arena *a, const td_prediction *p, const td_uncertainty_options *o,
                            td_uncertainty *out, td_err *err)
{
    td_status st = TD_OK;
    sampler s = {.tmp = td_arena_new(), .p = p};
    const bool automatic = o->samples == 0;
    *out = (td_uncertainty){.method = method_of(p, o->method)};
    out->samples = out->method == TD_UNCERTAINTY_NONE          ? 0
                   : !automatic                                ? o->samples
                   : out->method == TD_UNCERTAINTY_RESIMULATED ? RESIMULATED_SAMPLES
                                                               : LINEARISED_SAMPLES;
    gsl_error_handler_t *const before = gsl_set_error_handler_off();
    if (s.tmp == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the uncertainty of a step"));
    TD_TRY(st, gather(&s, err));
    TD_TRY(st, sensitivities_of(a, &s, out, err));
    out->basis = basis_of(a, &s);
    if (out->basis == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the uncertainty of a step"));
    if (out->method != TD_UNCERTAINTY_NONE)
        TD_TRY(st, interval_of(&s, out, err));
done:
    gsl_set_error_handler(before);
    gsl_rng_free(s.rng);
    td_intern_free(&s.keys);
    free(s.items);
    free(s.order);
    td_arena_free(s.tmp);
    return st;
}
