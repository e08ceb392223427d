/* Calibration is the inverse of prediction: the costs that went into a trace come out of it. */
#include "sim/calibrate.h"
#include "sim/calibrate_samples.h"
#include "sim/predict.h"
#include "sim/trace_out.h"
#include "traces/trace.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLUSTER                                                                                    \
    "cluster: {groups: [{count: 1, node: {gpus: 8, gpu: {name: NVIDIA H200, profile: "             \
    "h200-tables, "                                                                                \
    "memory_gib: 140.4}, nvlink_gb_s: 450, nvlink_latency_us: 1}}]}\n"
#define IMAGES                                                                                     \
    "  images: {type: vision, layers: 4, hidden: 1024, heads: 16, ffn: 4096, seq: 576, "           \
    "input_dim: 640, "
#define LANGUAGE                                                                                   \
    "  language: {type: language, layers: 4, hidden: 2048, heads: 16, ffn: 5632, vocab: 32000, "   \
    "seq: 2048, "

/* Between them every class of parts and most collectives, with 2 to 8 ranks; the last two are the
 * first ones again, busier, which tells the curve of clocks from what one GPU is slower. */
static const char *const plans[] = {
    CLUSTER "modules:\n" IMAGES "parallel: {pp: 2, dp: 1}}\n" LANGUAGE
            "parallel: {pp: 2, dp: 1, offset: 2}}\nstep: {microbatches: 4}\n",
    CLUSTER "modules:\n" IMAGES "parallel: {dp: 2}}\n" LANGUAGE
            "parallel: {tp: 2, dp: 2, offset: 2}}\nstep: {microbatches: 3, micro_batch: 2}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {tp: 4, dp: 2}}\n"
            "step: {microbatches: 2, sequence_parallel: true}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {tp: 8, dp: 1}}\nstep: {microbatches: 1}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {dp: 4}}\nstep: {microbatches: 2, micro_batch: 4}\n",
    CLUSTER "modules:\n" IMAGES "parallel: {pp: 2, dp: 1}}\n" LANGUAGE
            "parallel: {pp: 2, dp: 1, offset: 2}}\nstep: {microbatches: 24}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {dp: 4}}\nstep: {microbatches: 24, micro_batch: 4}\n",
};
enum { N_PLANS = sizeof plans / sizeof *plans };

/* Costs that nobody measured, without tables. */
static td_profile invented(void)
{
    td_profile p = {.name = "invented",
                    .gpu = "X1",
                    .source = "a \"test\"",
                    .trust = TD_TRUST_DATASHEET,
                    .bf16_flops_per_s = 800e12,
                    .fp32_flops_per_s = 60e12,
                    .memory_bytes_per_s = 3000e9,
                    .memory_bytes = 141e9,
                    .link_bytes_per_s = 450e9,
                    .kernel_gap_s = 1.5e-6,
                    .memory_efficiency = 0.83,
                    .efficiency = {.gemm = {0.71, 0.64, 0.58}, .attention = {0.41, 0.33}},
                    .latency_s = {.gemm = {3e-6, 4e-6, 5e-6}, .attention = {8e-6, 15e-6}},
                    .environment = {"", "", "", "", "", ""}};
    for (int32_t c = 0; c < TD_N_COLLS; c++) {
        p.efficiency.collective[c] = 0.5 + 0.05 * c;
        p.latency_s.collective[c] = (6 + c) * 1e-6;
        p.overlap[c] = (td_overlap){.transfer = 1, .compute = 1};
    }
    return p;
}

typedef struct {
    td_arena *a;
    char folder[32];
    const char *profile;
    const td_program *program[N_PLANS];
    td_calibrate_source source[N_PLANS];
    double step_s[N_PLANS];
} world;

static td_prediction predict(td_arena *a, const td_program *p, const char *profile, bool no_overlap)
{
    td_err err = {TD_OK, ""};
    td_prediction out;
    const td_predict_options o = {.flows = TD_FLOWS_IDEAL,
                                  .costs = {.profile = profile, .no_overlap = no_overlap}};
    cr_assert_eq(td_predict(a, p, &o, &out, &err), TD_OK, "%s", err.text);
    return out;
}

static world make(const char *profile, bool no_overlap)
{
    world w = {.a = td_arena_new(), .folder = "/tmp/calibrate-XXXXXX", .profile = profile};
    cr_assert_not_null(mkdtemp(w.folder));
    for (int32_t i = 0; i < N_PLANS; i++) {
        td_err err = {TD_OK, ""};
        td_diags diags = {.arena = w.a};
        const td_plan *plan = NULL;
        td_plan_parse(w.a, "text.yaml", plans[i], strlen(plans[i]), &diags, &plan, &err);
        cr_assert_eq(diags.n_errors, 0, "plan %d: %s", (int)i,
                     diags.head == NULL ? "" : td_diag_text(&diags, diags.head));
        cr_assert_eq(td_lower(w.a, plan, &w.program[i], &err), TD_OK, "%s", err.text);
        const td_prediction p = predict(w.a, w.program[i], profile, no_overlap);
        const char *trace = td_arena_printf(w.a, "%s/%d.json", w.folder, (int)i);
        cr_assert_eq(td_prediction_write(w.a, &p, trace, "ideal", true, &err), TD_OK, "%s",
                     err.text);
        w.source[i] = (td_calibrate_source){trace, w.program[i]};
        w.step_s[i] = p.step_s;
    }
    return w;
}

static void clear(world *w)
{
    for (int32_t i = 0; i < N_PLANS; i++)
        unlink(w->source[i].trace);
    unlink(td_arena_printf(w->a, "%s/known.json", w->folder));
    unlink(td_arena_printf(w->a, "%s/found.json", w->folder));
    cr_expect_eq(rmdir(w->folder), 0, "%s is not empty", w->folder);
    td_arena_free(w->a);
}

/* A profile in a file of its own, for as long as the process lives. */
static const char *in_file(const td_profile *p, char path[40])
{
    td_err err = {TD_OK, ""};
    strcpy(path, "/tmp/calibrate-profile-XXXXXX");
    const int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
    cr_assert_eq(td_profile_write(p, path, &err), TD_OK, "%s", err.text);
    return path;
}

static td_calibration calibrate(world *w, const td_profile *base)
{
    td_err err = {TD_OK, ""};
    td_calibration c;
    const td_calibrate_options o = {
        .base = base, .name = "found", .gpu = "X1", .source = "traces of a test"};
    cr_assert_eq(td_calibrate(w->a, N_PLANS, w->source, &o, &c, &err), TD_OK, "%s", err.text);
    return c;
}

static void within(const char *what, double found, double known, double error, double least)
{
    cr_expect_leq(fabs(found - known), 4 * error + least * known,
                  "%s: %g +- %g, but it is %g (off by %.3g %%)", what, found, error, known,
                  100 * (found / known - 1));
}

/* Every parameter of the roofline within four standard errors and `least` of what it is. */
static void same_rooflines(const td_calibration *c, const td_profile *known, double least)
{
    const td_profile *p = &c->profile;
    static const char *const passes[] = {"fwd", "dgrad", "wgrad"};
    within("memory efficiency", p->memory_efficiency, known->memory_efficiency,
           p->errors.memory_efficiency, least);
    within("kernel gap", p->kernel_gap_s, known->kernel_gap_s, p->errors.kernel_gap_s, 10 * least);
    for (int i = 0; i < 3; i++) {
        within(passes[i], p->efficiency.gemm[i], known->efficiency.gemm[i],
               p->errors.efficiency.gemm[i], least);
        within(passes[i], p->latency_s.gemm[i], known->latency_s.gemm[i],
               p->errors.latency_s.gemm[i], 10 * least);
    }
    for (int i = 0; i < 2; i++) {
        within("attention", p->efficiency.attention[i], known->efficiency.attention[i],
               p->errors.efficiency.attention[i], least);
        within("attention", p->latency_s.attention[i], known->latency_s.attention[i],
               p->errors.latency_s.attention[i], 10 * least);
    }
    for (int i = 0; i < TD_N_COLLS; i++) {
        if (p->errors.latency_s.collective[i] == 0)
            continue; /* seen with one size only */
        within(td_collectives[i]->name, p->efficiency.collective[i],
               known->efficiency.collective[i], p->errors.efficiency.collective[i], least);
        within(td_collectives[i]->name, p->latency_s.collective[i], known->latency_s.collective[i],
               p->errors.latency_s.collective[i], 10 * least);
    }
}

Test(calibrate, recovers_the_rooflines_that_a_trace_was_predicted_with)
{
    const td_profile known = invented();
    td_profile base = known;
    char path[40];
    world w = make(in_file(&known, path), true);
    for (int i = 0; i < 3; i++) /* nothing but the peaks may come from the base */
        base.efficiency.gemm[i] = 1, base.latency_s.gemm[i] = 0;
    for (int i = 0; i < 2; i++)
        base.efficiency.attention[i] = 1, base.latency_s.attention[i] = 0;
    for (int i = 0; i < TD_N_COLLS; i++)
        base.efficiency.collective[i] = 1, base.latency_s.collective[i] = 0;
    base.memory_efficiency = 1;
    base.kernel_gap_s = 0;
    const td_calibration c = calibrate(&w, &base);
    same_rooflines(&c, &known, 1e-3);
    for (int32_t i = 0; i < TD_N_PARTS; i++)
        if (c.profile.part_residuals[i].n > 0)
            cr_expect_leq(fabs(c.profile.part_residuals[i].q[2]), 0.02, "%s",
                          td_part_table[i].name);
    cr_expect_gt(c.profile.coll_residuals[TD_COLL_ALL_REDUCE].n, 10);
    cr_expect_eq(c.profile.coll_residuals[TD_COLL_ALL_TO_ALL].n, 0, "nobody asked for one");
    unlink(path);
    clear(&w);
}

/* The steps predicted with what was found are the steps that the traces show. */
static void same_steps(world *w, const td_calibration *c, bool no_overlap, double tolerance)
{
    char path[40];
    in_file(&c->profile, path);
    for (int32_t i = 0; i < N_PLANS; i++) {
        const td_prediction p = predict(w->a, w->program[i], path, no_overlap);
        cr_expect_leq(fabs(p.step_s / w->step_s[i] - 1), tolerance, "plan %d: %g s, but it is %g",
                      (int)i, p.step_s, w->step_s[i]);
    }
    unlink(path);
}

Test(calibrate, what_it_finds_predicts_the_traces_it_was_found_in)
{
    td_err err = {TD_OK, ""};
    const td_profile *h200;
    world w = make("h200-tables", true);
    cr_assert_eq(td_profile_find(w.a, "h200-tables", NULL, NULL, &h200, &err), TD_OK, "%s",
                 err.text);
    td_calibration c = calibrate(&w, h200);
    same_steps(&w, &c, true, 0.01);
    const td_curve *duty = &c.profile.duty;
    cr_assert_gt(duty->n, 2, "the busy plans tell a curve of clocks");
    for (int32_t i = 0; i < duty->n; i++)
        cr_expect_float_eq(duty->y[i],
                           td_cost_clock_factor(h200, duty->x[i]) /
                               td_cost_clock_factor(h200, duty->x[0]),
                           0.01, "%g at %g", duty->y[i], duty->x[i]);
    td_drift drift[TD_N_PARTS + TD_N_COLLS];
    cr_assert_eq(td_calibration_drift(w.a, &c, &c.profile, drift, &err), TD_OK);
    for (int32_t i = 0; i < c.n_classes; i++)
        if (drift[i].n > 0)
            cr_expect_leq(fabs(drift[i].q[2]), 0.01, "%s drifts from itself by %g", drift[i].name,
                          drift[i].q[2]);
    clear(&w);
}

Test(calibrate, what_transfers_and_kernels_do_to_each_other_is_found)
{
    td_profile known = invented();
    char path[40];
    for (int i = 0; i < TD_N_COLLS; i++)
        known.overlap[i] = (td_overlap){.wait_s = 5e-6, .transfer = 1.6, .compute = 1.12};
    world w = make(in_file(&known, path), false);
    const td_calibration c = calibrate(&w, &known);
    const td_overlap *o = &c.profile.overlap[TD_COLL_SENDRECV];
    cr_expect_float_eq(o->transfer, 1.6, 0.1, "%g", o->transfer);
    same_steps(&w, &c, false, 0.03);
    unlink(path);
    clear(&w);
}

/* Times of a trace, each multiplied by a number around 1: exp of a normal one. */
typedef struct {
    td_trace_writer *out;
    double sigma;
    uint64_t state;
} shaker;

static double uniform(shaker *s)
{
    s->state = s->state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
    return ((double)(s->state >> 11) + 0.5) * 0x1p-53;
}

static td_status shake(void *self, const td_event *e, td_err *err)
{
    shaker *s = self;
    td_event moved = *e;
    const double z = sqrt(-2 * log(uniform(s))) * cos(2 * 3.14159265358979 * uniform(s));
    if (e->part >= 0)
        moved.duration_ns = llround((double)e->duration_ns * exp(s->sigma * z));
    return td_trace_event(s->out, &moved, err);
}

Test(calibrate, noise_stays_within_the_stated_error)
{
    const td_profile known = invented();
    char path[40];
    world w = make(in_file(&known, path), true);
    td_err err = {TD_OK, ""};
    shaker s = {.sigma = 0.04, .state = 42};
    for (int32_t i = 0; i < N_PLANS; i++) {
        td_trace_meta meta;
        const td_trace *trace;
        cr_assert_eq(td_trace_load(w.a, w.source[i].trace, &trace, &err), TD_OK, "%s", err.text);
        meta = trace->meta;
        cr_assert_eq(td_trace_create(w.source[i].trace, &meta, &s.out, &err), TD_OK);
        for (int32_t r = 0; r < meta.world_size; r++)
            cr_assert_eq(td_trace_rank(s.out, r, "rank", &err), TD_OK);
        for (int64_t e = 0; e < trace->n_events; e++)
            cr_assert_eq(shake(&s, &trace->events[e], &err), TD_OK, "%s", err.text);
        cr_assert_eq(td_trace_close(s.out, &err), TD_OK, "%s", err.text);
    }
    const td_calibration c = calibrate(&w, &known);
    same_rooflines(&c, &known, 2e-3);
    const td_residuals *r = &c.profile.part_residuals[TD_PART_GEMM];
    cr_expect_gt(r->n, 50);
    cr_expect_leq(r->q[4], 1.645 * 0.04 * 1.3, "%g", r->q[4]);
    cr_expect_gt(r->q[4], 0.005, "%g", r->q[4]);
    cr_expect(r->q[0] <= r->q[1] && r->q[1] <= r->q[2] && r->q[2] <= r->q[3] && r->q[3] <= r->q[4]);
    unlink(path);
    clear(&w);
}

/* The same step as a fast executor would trace it and as one that takes `delay` to look at every
 * part. */
static td_status slow_twin(world *w, const char *fine, const char *coarse, int64_t delay,
                           td_err *err)
{
    td_status st = TD_OK;
    const td_trace *trace;
    td_trace_writer *out[2] = {NULL, NULL};
    TD_TRY(st, td_trace_load(w->a, w->source[0].trace, &trace, err));
    td_trace_meta meta = trace->meta;
    meta.trust = "measured";
    TD_TRY(st, td_trace_create(fine, &meta, &out[0], err));
    TD_TRY(st, td_trace_create(coarse, &meta, &out[1], err));
    for (int k = 0; k < 2; k++)
        for (int32_t r = 0; r < meta.world_size; r++)
            TD_TRY(st, td_trace_rank(out[k], r, "rank", err));
    for (int64_t i = 0; i < trace->n_events; i++) {
        td_event e = trace->events[i];
        const int32_t work = td_program_stream(w->program[0], e.rank)->ops[e.op].work;
        if (e.part < 0)
            TD_TRY(st, td_trace_event(out[1], &e, err));
        if (e.part >= 0)
            e.duration_ns += delay;
        else if (work >= 0)
            e.duration_ns += delay * w->program[0]->works[work].n_flat;
        TD_TRY(st, td_trace_event(out[0], &e, err));
    }
    TD_TRY(st, td_trace_close(out[0], err));
    TD_TRY(st, td_trace_close(out[1], err));
done:
    return st;
}

Test(calibrate, what_looking_at_parts_costs_is_taken_off)
{
    const td_profile known = invented();
    char path[40];
    world w = make(in_file(&known, path), true);
    td_err err = {TD_OK, ""};
    td_calibration c;
    const td_calibrate_options o = {.base = &known, .name = "x", .gpu = "X1", .source = "x"};
    const char *fine = td_arena_printf(w.a, "%s/found.json", w.folder),
               *coarse = td_arena_printf(w.a, "%s/known.json", w.folder);
    cr_assert_eq(slow_twin(&w, fine, coarse, 3000, &err), TD_OK, "%s", err.text);
    const td_calibrate_source twins[] = {{fine, w.program[0]}, {coarse, w.program[0]}};
    cr_assert_eq(td_calibrate(w.a, 2, twins, &o, &c, &err), TD_OK, "%s", err.text);
    cr_expect_float_eq(c.part_overhead_s, 3e-6, 1e-8, "%g", c.part_overhead_s);
    for (int32_t i = 0; i < c.samples->n_shapes; i++) {
        const td_shape *s = &c.samples->shapes[i];
        if (s->part.class == TD_PART_GEMM)
            cr_expect_float_eq(s->alone_s, td_cost_roofline.part(&known, &s->part, NULL), 2e-8);
    }
    unlink(path);
    clear(&w);
}

Test(calibrate, a_profile_that_was_written_reads_the_same)
{
    td_arena *a = td_arena_new();
    td_err err = {TD_OK, ""};
    const td_profile *h200, *again;
    char path[40], twice[40], text[2][65536];
    cr_assert_eq(td_profile_find(a, "h200-tables", NULL, NULL, &h200, &err), TD_OK, "%s", err.text);
    td_profile p = *h200;
    p.part_residuals[TD_PART_GEMM] = (td_residuals){.n = 7, .q = {-0.5, -0.25, 0, 0.25, 1}};
    p.errors.efficiency.attention[1] = 0.01;
    p.errors.kernel_gap_s = 1e-7;
    p.heat = (td_heat){.window_s = 0.05, .attention = 0.9, .memory = 0.7, .collective = 0.3};
    p.errors.heat = (td_heat){.window_s = 0.01, .attention = 0.1, .memory = 0.2, .collective = 0.3};
    p.in_pass[TD_COLL_ALL_GATHER] = p.collectives[TD_COLL_ALL_REDUCE];
    p.n_in_pass[TD_COLL_ALL_GATHER] = p.n_collectives[TD_COLL_ALL_REDUCE];
    p.trust = TD_TRUST_CALIBRATED;
    p.environment = (td_environment){"580", "13.0", "2.28", "9.14", "2026-11-21", "1965 \"MHz\""};
    in_file(&p, path);
    cr_assert_eq(td_profile_load(a, path, &again, &err), TD_OK, "%s", err.text);
    in_file(again, twice);
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(i == 0 ? path : twice, "r");
        text[i][fread(text[i], 1, sizeof text[i] - 1, f)] = '\0';
        fclose(f);
        unlink(i == 0 ? path : twice);
    }
    cr_expect_str_eq(text[0], text[1]);
    cr_expect_eq(again->n_gemms, h200->n_gemms);
    cr_expect_float_eq(again->heat.collective, 0.3, 1e-9);
    cr_expect_float_eq(again->errors.heat.window_s, 0.01, 1e-9);
    cr_expect_eq(again->n_in_pass[TD_COLL_ALL_GATHER], h200->n_collectives[TD_COLL_ALL_REDUCE]);
    cr_expect_eq(again->part_residuals[TD_PART_GEMM].n, 7);
    cr_expect_eq(again->part_residuals[TD_PART_GEMM].q[4], 1);
    cr_expect_eq(again->coll_residuals[TD_COLL_ALL_REDUCE].n, 0);
    cr_expect_float_eq(again->errors.efficiency.attention[1], 0.01, 1e-12);
    cr_expect_str_eq(again->environment.clocks, "1965 \"MHz\"");
    td_arena_free(a);
}

Test(calibrate, a_trace_of_another_program_is_refused)
{
    const td_profile known = invented();
    char path[40];
    world w = make(in_file(&known, path), true);
    td_err err = {TD_OK, ""};
    td_calibration c;
    const td_calibrate_options o = {.base = &known, .name = "x", .gpu = "X1", .source = "x"};
    const td_calibrate_source crossed = {w.source[0].trace, w.program[1]};
    cr_expect_eq(td_calibrate(w.a, 1, &crossed, &o, &c, &err), TD_FILE);
    cr_expect_not_null(strstr(err.text, "another program"), "%s", err.text);
    unlink(path);
    clear(&w);
}

Test(calibrate, without_a_base_nothing_is_faster_than_it_was_measured)
{
    const td_profile known = invented();
    char path[40];
    world w = make(in_file(&known, path), true);
    const td_calibration c = calibrate(&w, NULL);
    cr_expect_leq(c.profile.bf16_flops_per_s, known.bf16_flops_per_s);
    for (int32_t i = 0; i < c.samples->n_shapes; i++) {
        const td_shape *s = &c.samples->shapes[i];
        if (s->part.class != TD_PART_COLLECTIVE)
            cr_expect_leq(td_cost_table.part(&c.profile, &s->part, NULL), s->alone_s * (1 + 1e-9));
    }
    unlink(path);
    clear(&w);
}

Test(calibrate, the_line_is_found_among_wild_points)
{
    enum { N = 40 };
    double x[N], y[N];
    td_fit fit;
    for (int i = 0; i < N; i++) {
        x[i] = 1 + i * i;
        y[i] = (3 + 0.5 * x[i]) * (1 + 0.01 * ((i * 7) % 5 - 2)) * (i % 9 == 0 ? 4 : 1);
    }
    cr_assert_eq(td_fit_line(N, x, y, y, 0, &fit, NULL), TD_OK);
    cr_expect_float_eq(fit.slope, 0.5, 0.01, "%g", fit.slope);
    cr_expect_float_eq(fit.constant, 3, 3 * fit.constant_error, "%g", fit.constant);
    cr_expect(fit.constant_error < 0.3, "%g", fit.constant_error);
    cr_expect(fit.slope_error > 0 && fit.slope_error < 0.02, "%g", fit.slope_error);
}
