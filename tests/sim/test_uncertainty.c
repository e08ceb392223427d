/* Laws of the interval around a prediction, and of what it is sensitive to. */
#include "sim/intern.h"
#include "sim/uncertainty.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <math.h>
#include <string.h>

#define CLUSTER                                                                                    \
    "cluster: {groups: [{count: 1, node: {gpus: 8, gpu: {name: NVIDIA H200, profile: "             \
    "h200-tables, "                                                                                \
    "memory_gib: 140.4}, nvlink_gb_s: 450, nvlink_latency_us: 2}}]}\n"
#define IMAGES                                                                                     \
    "  images: {type: vision, layers: 4, hidden: 1024, heads: 16, ffn: 4096, seq: 576, "           \
    "input_dim: 588, "
#define LANGUAGE                                                                                   \
    "  language: {type: language, layers: 4, hidden: 4096, heads: 32, ffn: 11008, vocab: 32000, "  \
    "seq: 2048, "

/* One rank; tensor ranks; a pipeline with data lanes; two modules. */
static const char *const texts[] = {
    CLUSTER "modules:\n" LANGUAGE "parallel: {dp: 1}}\nstep: {microbatches: 1}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {tp: 2, dp: 4}}\nstep: {microbatches: 3}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {pp: 4, dp: 2}}\nstep: {microbatches: 8}\n",
    CLUSTER "modules:\n" IMAGES "parallel: {tp: 2, pp: 2, dp: 1}}\n" LANGUAGE
            "parallel: {tp: 2, pp: 2, dp: 1, offset: 4}}\nstep: {microbatches: 6}\n",
};
enum { N_TEXTS = sizeof texts / sizeof *texts, ONE_RANK = 0, PIPELINE = 2, MODULES = 3 };

/* A path through the program other than the critical one is never longer, if nothing slows another
 * down. */
static const td_predict_options plain = {.flows = TD_FLOWS_IDEAL, .costs = {.no_overlap = true}};

static td_prediction predicted(td_arena *a, int32_t i, td_predict_options o)
{
    const td_plan *plan = NULL;
    const td_program *program = NULL;
    td_diags diags = {.arena = a};
    td_prediction out;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_plan_parse(a, "text.yaml", texts[i], strlen(texts[i]), &diags, &plan, &err),
                 TD_OK, "case %d: %s", (int)i, err.text);
    cr_assert_eq(td_lower(a, plan, &program, &err), TD_OK, "case %d: %s", (int)i, err.text);
    cr_assert_eq(td_predict(a, program, &o, &out, &err), TD_OK, "case %d: %s", (int)i, err.text);
    return out;
}

static td_uncertainty uncertain(td_arena *a, const td_prediction *p, td_uncertainty_method method,
                                int32_t samples)
{
    const td_uncertainty_options o = {.method = method, .samples = samples};
    td_uncertainty out;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_uncertainty_of(a, p, &o, &out, &err), TD_OK, "%s", err.text);
    return out;
}

/* Residuals as a function of the normal score. */
typedef double distribution(double z, double scale);

static double normal(double z, double scale)
{
    return scale * z;
}

static double skewed(double z, double scale)
{
    return scale * (exp(0.6 * z) - 1);
}

static double heavy_tailed(double z, double scale)
{
    return scale * sinh(z);
}

static td_residuals residuals_of(distribution *x, double scale)
{
    static const double score[TD_N_QUANTILES] = {-1.6448536269514722, -0.6744897501960817, 0,
                                                 0.6744897501960817, 1.6448536269514722};
    td_residuals r = {.n = 100};
    for (int32_t i = 0; i < TD_N_QUANTILES; i++)
        r.q[i] = x(score[i], scale);
    return r;
}

/* Profiles live in the test's own arena: theirs are replaced in place. */
static void give_residuals(const td_prediction *p, td_residuals r)
{
    for (int32_t rank = 0; rank < p->program->world_size; rank++) {
        td_profile *profile = (td_profile *)td_costs_profile(p->costs, rank);
        for (int32_t i = 0; i < TD_N_PARTS; i++)
            profile->part_residuals[i] = r;
        for (int32_t i = 0; i < TD_N_COLLS; i++)
            profile->coll_residuals[i] = r;
    }
}

static td_prediction with_normal(td_arena *a, int32_t i, double sigma)
{
    const td_prediction p = predicted(a, i, plain);
    give_residuals(&p, residuals_of(normal, sigma));
    return p;
}

/* ---- residuals ---- */

Test(uncertainty, residuals_are_exact_at_their_quantiles_monotone_and_bounded)
{
    const td_residuals r = {.n = 9, .q = {-0.2, -0.01, 0.0, 0.02, 0.5}};
    cr_assert_float_eq(td_residual_at(&r, -1.6448536269514722), -0.2, 1e-12);
    cr_assert_float_eq(td_residual_at(&r, -0.6744897501960817), -0.01, 1e-12);
    cr_assert_float_eq(td_residual_at(&r, 0), 0, 1e-12);
    cr_assert_float_eq(td_residual_at(&r, 0.6744897501960817), 0.02, 1e-12);
    cr_assert_float_eq(td_residual_at(&r, 1.6448536269514722), 0.5, 1e-12);
    for (double z = -5, before = -INFINITY; z < 5; z += 0.125) {
        cr_assert_geq(td_residual_at(&r, z), before);
        before = td_residual_at(&r, z);
    }
    cr_assert_eq(td_residual_at(&r, 1e9), td_residual_at(&r, 3));
    cr_assert_eq(td_residual_at(&r, -1e9), td_residual_at(&r, -3));
}

Test(uncertainty, residuals_of_a_normal_distribution_are_one)
{
    const td_residuals r = residuals_of(normal, 0.07);
    for (double z = -3; z <= 3; z += 0.125)
        cr_assert_float_eq(td_residual_at(&r, z), 0.07 * z, 1e-12);
}

/* ---- the interval ---- */

TheoryDataPoints(uncertainty, no_residuals_leave_no_width) = {
    DataPoints(int, TD_UNCERTAINTY_RESIMULATED, TD_UNCERTAINTY_LINEARISED),
    DataPoints(int, 0, 1, 2, 3)};
Theory((int method, int i), uncertainty, no_residuals_leave_no_width)
{
    td_arena *a = td_arena_new();
    const td_prediction p = with_normal(a, i, 0);
    const td_uncertainty u = uncertain(a, &p, (td_uncertainty_method)method, 16);
    cr_assert_eq(p.notes.n, 0, "case %d is extrapolated", i);
    cr_assert(u.low_s == p.step_s && u.high_s == p.step_s, "case %d: %.17g to %.17g of %.17g", i,
              u.low_s, u.high_s, p.step_s);
    td_arena_free(a);
}

TheoryDataPoints(uncertainty, wider_residuals_make_a_wider_interval_around_the_prediction) = {
    DataPoints(int, TD_UNCERTAINTY_RESIMULATED, TD_UNCERTAINTY_LINEARISED),
    DataPoints(int, 0, 1, 2, 3)};
Theory((int method, int i), uncertainty,
       wider_residuals_make_a_wider_interval_around_the_prediction)
{
    double width = 0;
    for (double sigma = 0.01; sigma < 0.1; sigma *= 2) {
        td_arena *a = td_arena_new();
        const td_prediction p = with_normal(a, i, sigma);
        const td_uncertainty u = uncertain(a, &p, (td_uncertainty_method)method, 0);
        cr_assert(0 < u.low_s && u.low_s < p.step_s && p.step_s < u.high_s);
        cr_assert_gt(u.high_s - u.low_s, 1.5 * width, "case %d, sigma %g", i, sigma);
        width = u.high_s - u.low_s;
        td_arena_free(a);
    }
}

Test(uncertainty, contains_the_prediction_though_every_fit_errs_to_one_side)
{
    td_arena *a = td_arena_new();
    const td_prediction p = predicted(a, MODULES, plain);
    give_residuals(&p, (td_residuals){.n = 5, .q = {0.1, 0.1, 0.1, 0.1, 0.1}});
    const td_uncertainty u = uncertain(a, &p, TD_UNCERTAINTY_AUTO, 0);
    cr_assert_eq(u.low_s, p.step_s);
    cr_assert_gt(u.high_s, 1.05 * p.step_s);
    td_arena_free(a);
}

Test(uncertainty, says_the_same_to_the_bit_when_asked_again_or_unfolded)
{
    for (int32_t i = 0; i < N_TEXTS; i++) {
        td_arena *a = td_arena_new();
        td_predict_options unfolded = plain;
        unfolded.no_fold = true;
        const td_prediction p = predicted(a, i, plain), q = predicted(a, i, unfolded);
        const td_uncertainty u = uncertain(a, &p, TD_UNCERTAINTY_RESIMULATED, 32),
                             v = uncertain(a, &p, TD_UNCERTAINTY_RESIMULATED, 32),
                             w = uncertain(a, &q, TD_UNCERTAINTY_RESIMULATED, 32);
        cr_assert(u.low_s == v.low_s && u.high_s == v.high_s, "case %d", (int)i);
        cr_assert(u.low_s == w.low_s && u.high_s == w.high_s, "case %d", (int)i);
        cr_assert_str_eq(u.basis, v.basis);
        td_arena_free(a);
    }
}

/* Exactly where there is one path; elsewhere a little less, as the longest path of each draw is not
 * shorter than the critical one. */
Test(uncertainty, linearised_is_close_to_simulated_again)
{
    for (int32_t i = 0; i < N_TEXTS; i++) {
        td_arena *a = td_arena_new();
        const td_prediction p = with_normal(a, i, 0.05);
        const td_uncertainty line = uncertain(a, &p, TD_UNCERTAINTY_LINEARISED, 0),
                             sim = uncertain(a, &p, TD_UNCERTAINTY_RESIMULATED, 0);
        const double tolerance = i == ONE_RANK ? 1e-4 : 1e-2; /* clocks settle to 1e-4 */
        cr_expect_float_eq(line.low_s / sim.low_s, 1, tolerance, "case %d: %.9g, %.9g", (int)i,
                           line.low_s, sim.low_s);
        cr_expect_float_eq(line.high_s / sim.high_s, 1, tolerance, "case %d: %.9g, %.9g", (int)i,
                           line.high_s, sim.high_s);
        td_arena_free(a);
    }
}

/* The regression against plain quantiles of many simulated steps. */
Test(uncertainty, few_simulated_steps_say_what_many_do)
{
    for (int32_t i = 0; i < N_TEXTS; i++) {
        td_arena *a = td_arena_new();
        const td_prediction p = with_normal(a, i, 0.05);
        const td_uncertainty few = uncertain(a, &p, TD_UNCERTAINTY_RESIMULATED, 64),
                             many = uncertain(a, &p, TD_UNCERTAINTY_RESIMULATED, 4096);
        const double width = many.high_s - many.low_s;
        cr_expect_float_eq(few.low_s, many.low_s, 0.05 * width, "case %d", (int)i);
        cr_expect_float_eq(few.high_s, many.high_s, 0.05 * width, "case %d", (int)i);
        td_arena_free(a);
    }
}

Test(uncertainty, says_what_was_measured_and_what_assumed)
{
    td_arena *a = td_arena_new();
    const td_prediction p = predicted(a, MODULES, plain);
    td_profile *profile = (td_profile *)td_costs_profile(p.costs, 0);
    give_residuals(&p, (td_residuals){0});
    const td_uncertainty none = uncertain(a, &p, TD_UNCERTAINTY_AUTO, 0);
    cr_assert(strstr(none.basis, "assumed") != NULL && strstr(none.basis, "every class") != NULL,
              "%s", none.basis);
    profile->part_residuals[TD_PART_GEMM] = residuals_of(normal, 0.02);
    const td_uncertainty some = uncertain(a, &p, TD_UNCERTAINTY_AUTO, 0);
    cr_assert(strstr(some.basis, "measured residuals of gemm;") != NULL, "%s", some.basis);
    cr_assert(strstr(some.basis, "attention") > strstr(some.basis, "assumed"), "%s", some.basis);
    cr_assert_lt(some.high_s - some.low_s, none.high_s - none.low_s);
    profile->trust = TD_TRUST_DATASHEET;
    const td_uncertainty worse = uncertain(a, &p, TD_UNCERTAINTY_AUTO, 0);
    cr_assert_gt(worse.high_s - worse.low_s, some.high_s - some.low_s);
    td_arena_free(a);
}

/* ---- sensitivities ---- */

Test(uncertainty, sensitivities_and_waiting_add_up_to_one)
{
    for (int32_t i = 0; i < N_TEXTS; i++)
        for (int overlap = 0; overlap < 2; overlap++) {
            td_arena *a = td_arena_new();
            td_predict_options o = plain;
            o.costs.no_overlap = overlap == 0;
            const td_prediction p = predicted(a, i, o);
            const td_uncertainty u = uncertain(a, &p, TD_UNCERTAINTY_NONE, 0);
            double sum = p.path.wait_s / p.step_s, before = 1;
            cr_assert(u.n_sensitivities > 3 && u.samples == 0);
            for (int32_t k = 0; k < u.n_sensitivities; k++) {
                const td_sensitivity *s = &u.sensitivities[k];
                cr_assert(s->share > 0 && s->share <= before, "case %d: %s", (int)i, s->what);
                cr_assert(overlap || strcmp(s->what, "overlap") != 0 || s->share < 1e-4,
                          "case %d: overlap %g", (int)i, s->share);
                before = s->share;
                sum += s->share;
            }
            cr_assert_float_eq(sum, 1, 1e-6, "case %d: %.9g", (int)i, sum);
            td_arena_free(a);
        }
}

/* A world: factors on the prices of a list. */
typedef struct {
    const char *slower; /* what is named so is `more` slower */
    double more;
    distribution *residual; /* or, for NULL above: residuals of this distribution, */
    double scale, common;   /* `common` of whose variance is common to a class */
    gsl_rng *rng;
    td_intern shapes;
    double class_score[TD_N_PARTS + TD_N_COLLS], own_score[1024];
} world;

static int32_t class_of(const td_priced *w)
{
    return w->query != NULL ? TD_N_PARTS + (int32_t)w->query->coll : w->part->class;
}

static double slower_factor(void *self, const td_priced *w)
{
    const world *of = self;
    const int32_t class = class_of(w);
    char name[64];
    const double gap =
        w->query != NULL || w->seconds <= 0 ? 0 : fmin(1, w->profile->kernel_gap_s / w->seconds);
    if (strcmp(of->slower, "kernel gap") == 0)
        return 1 + of->more * gap;
    snprintf(name, sizeof name, "%s%s%s",
             class < TD_N_PARTS ? td_part_table[class].name
                                : td_collectives[class - TD_N_PARTS]->name,
             class == TD_PART_GEMM ? " " : "",
             class == TD_PART_GEMM ? td_pass_names[w->part->pass] : "");
    return strcmp(of->slower, name) == 0 ? 1 + of->more * (1 - gap) : 1;
}

/* Shapes are told apart by their prices: other shapes, other seconds. */
static double true_factor(void *self, const td_priced *w)
{
    world *of = self;
    const int32_t class = class_of(w);
    int32_t key[4] = {class, w->query != NULL ? 0 : w->part->pass};
    memcpy(key + 2, &w->seconds, sizeof w->seconds);
    const int32_t n = of->shapes.n, i = td_intern_get(&of->shapes, key, 4);
    cr_assert(i >= 0 && i < 1024);
    if (i == n)
        of->own_score[i] = gsl_ran_gaussian(of->rng, 1);
    return exp(of->residual(sqrt(of->common) * of->class_score[class] +
                                sqrt(1 - of->common) * of->own_score[i],
                            of->scale));
}

/* The step in a world, at the clocks of the prediction. */
static double step_in(const td_prediction *p, world *w)
{
    td_arena *a = td_arena_new();
    const td_costs *costs;
    const td_timeline *t;
    cr_assert_eq(td_costs_rescaled(a, p->costs, w, w->slower != NULL ? slower_factor : true_factor,
                                   &costs, NULL),
                 TD_OK);
    const td_prices prices = td_prices_of(costs);
    const double **stretch = TD_NEW(a, const double *, p->program->world_size);
    for (int32_t r = 0; r < p->program->world_size; r++)
        cr_assert_eq(td_clocks_stretch(a, costs, td_program_stream(p->program, r), r,
                                       p->class_clocks[p->timeline->class_of[r]].clock, &stretch[r],
                                       NULL),
                     TD_OK);
    const td_engine_options e = {.flows = TD_FLOWS_IDEAL, .no_fold = true, .stretch = stretch};
    cr_assert_eq(td_engine_run(a, p->program, NULL, &prices, &e, &t, NULL), TD_OK);
    const double step_s = t->step_s;
    td_arena_free(a);
    return step_s;
}

/* Half a per mille up and down: where two paths are equally long, the path stands between. */
Test(uncertainty, sensitivities_are_what_a_slower_class_does_to_the_step)
{
    for (int32_t i = 0; i < N_TEXTS; i++) {
        td_arena *a = td_arena_new();
        const td_prediction p = predicted(a, i, plain);
        const td_uncertainty u = uncertain(a, &p, TD_UNCERTAINTY_NONE, 0);
        for (int32_t k = 0; k < u.n_sensitivities; k++) {
            const td_sensitivity *s = &u.sensitivities[k];
            world up = {.slower = s->what, .more = 5e-4}, down = {.slower = s->what, .more = -5e-4};
            const double moved = (step_in(&p, &up) - step_in(&p, &down)) / (1e-3 * p.step_s);
            if (strcmp(s->what, "overlap") != 0)
                cr_assert_float_eq(s->share, moved, 0.01,
                                   "case %d: %s %g, but the step moves by %g", (int)i, s->what,
                                   s->share, moved);
        }
        td_arena_free(a);
    }
}

/* ---- coverage ---- */

enum { NORMAL, SKEWED, HEAVY_TAILED };
static distribution *const distributions[] = {normal, skewed, heavy_tailed};

struct truth {
    int32_t text, method, residual;
    double common;
    double least, most; /* share of worlds in the interval */
};

ParameterizedTestParameters(uncertainty, covers_nine_worlds_in_ten)
{
    static struct truth table[] = {
        {MODULES, TD_UNCERTAINTY_RESIMULATED, NORMAL, 0.5, 0.85, 0.95},
        {MODULES, TD_UNCERTAINTY_RESIMULATED, SKEWED, 0.5, 0.85, 0.95},
        {MODULES, TD_UNCERTAINTY_RESIMULATED, HEAVY_TAILED, 0.5, 0.85, 0.95},
        {PIPELINE, TD_UNCERTAINTY_RESIMULATED, NORMAL, 0.5, 0.85, 0.95},
        {PIPELINE, TD_UNCERTAINTY_LINEARISED, NORMAL, 0.5, 0.80, 0.95}, /* blind to other paths */
        {ONE_RANK, TD_UNCERTAINTY_LINEARISED, SKEWED, 0.5, 0.85, 0.95},
        {MODULES, TD_UNCERTAINTY_RESIMULATED, NORMAL, 0, 0.95, 1},    /* shapes err by themselves */
        {MODULES, TD_UNCERTAINTY_RESIMULATED, NORMAL, 1, 0.70, 0.90}, /* whole classes do */
    };
    return cr_make_param_array(struct truth, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct truth *t, uncertainty, covers_nine_worlds_in_ten)
{
    enum { WORLDS = 1000 };
    const double scale = 0.05;
    td_arena *a = td_arena_new();
    const td_prediction p = predicted(a, t->text, plain);
    world w = {.residual = distributions[t->residual],
               .scale = scale,
               .common = t->common,
               .rng = gsl_rng_alloc(gsl_rng_taus2)};
    world same = {.residual = distributions[t->residual]};
    int32_t n = 0;
    give_residuals(&p, residuals_of(distributions[t->residual], scale));
    same.rng = w.rng;
    const td_uncertainty u = uncertain(a, &p, (td_uncertainty_method)t->method, 0);
    const double base = step_in(&p, &same);
    gsl_rng_set(w.rng, 99);
    for (int32_t i = 0; i < WORLDS; i++) {
        td_intern_clear(&w.shapes);
        for (int32_t c = 0; c < TD_N_PARTS + TD_N_COLLS; c++)
            w.class_score[c] = gsl_ran_gaussian(w.rng, 1);
        const double step_s = p.step_s * (step_in(&p, &w) / base);
        n += u.low_s <= step_s && step_s <= u.high_s;
    }
    const double share = (double)n / WORLDS;
    cr_expect(t->least <= share && share <= t->most, "%.3f of the worlds, expected %g to %g", share,
              t->least, t->most);
    gsl_rng_free(w.rng);
    td_intern_free(&w.shapes);
    td_intern_free(&same.shapes);
    td_arena_free(a);
}
