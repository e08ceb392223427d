/* Predictions of real plans on a measured GPU: what must hold whatever the numbers are. */
#include "sim/predict.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Files of examples/plans, one node each but the last, and layouts that none of them has. */
static const char *const examples[] = {
    "baseline_2gpu",         "lm_pp3_4gpu-7b",
    "full_pp_8gpu-7b",       "fan_in_dp4_8gpu-7b",
    "fan_out_dp4_8gpu-7b",   "llava-av-8gpu",
    "llava-frozen-backbone", "encoder_tp2_llm_tp2_pp3_8gpu-7b",
    "llava-mixed-16gpu",
};

#define CLUSTER                                                                                    \
    "cluster: {groups: [{count: 1, node: {gpus: 8, gpu: {name: NVIDIA H200, profile: "             \
    "h200-tables, "                                                                                \
    "memory_gib: 140.4}, nvlink_gb_s: 450, nvlink_latency_us: 2}}]}\n"
#define IMAGES                                                                                     \
    "  images: {type: vision, layers: 4, hidden: 1024, heads: 16, ffn: 4096, seq: 576, "           \
    "input_dim: 588, "
#define LANGUAGE                                                                                   \
    "  language: {type: language, layers: 4, hidden: 2048, heads: 16, kv_heads: 2, ffn: 4096, "    \
    "vocab: 32000, seq: 2048, "

static const char *const texts[] = {
    CLUSTER "modules:\n" LANGUAGE "parallel: {dp: 1}}\nstep: {microbatches: 1}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {tp: 4, dp: 2}}\n"
            "step: {microbatches: 3, sequence_parallel: true, recompute: full}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {pp: 2, dp: 4}}\n"
            "step: {microbatches: 5, bucket_elements: 1, recompute: selective}\n",
    CLUSTER "modules:\n" LANGUAGE "parallel: {pp: 2, dp: 4}}\n"
            "step: {grad_overlap: false, shape_exchange: false}\noptimizer: {sharded: false}\n",
    CLUSTER "modules:\n" IMAGES "parallel: {pp: 2, dp: 1, offset: 1}}\n" LANGUAGE
            "parallel: {pp: 4, dp: 1, offset: 3}}\nstep: {microbatches: 2}\n", /* an idle rank */
    CLUSTER "modules:\n" IMAGES "frozen: true, parallel: {tp: 2, pp: 2, dp: 1}}\n" LANGUAGE
            "parallel: {tp: 4, dp: 1, offset: 4}}\nprecision: fp32\nstep: {microbatches: 4}\n",
    CLUSTER "rank_order: [tp, cp, pp, dp]\nmodules:\n" LANGUAGE
            "frozen: true, parallel: {pp: 2, dp: 2}}\n" IMAGES
            "parallel: {pp: 2, dp: 2, offset: 4}}\nstep: {microbatches: 4, micro_batch: 2}\n",
};

enum {
    N_EXAMPLES = sizeof examples / sizeof *examples,
    N_TEXTS = sizeof texts / sizeof *texts,
    N_CASES = N_EXAMPLES + N_TEXTS
};

static const td_program *program_of(td_arena *a, int32_t i)
{
    const td_plan *plan = NULL;
    const td_program *program = NULL;
    td_diags diags = {.arena = a};
    td_err err = {TD_OK, ""};
    if (i < N_EXAMPLES)
        td_plan_load(a, td_arena_printf(a, "%s/examples/plans/%s.yaml", TD_SOURCE_DIR, examples[i]),
                     &diags, &plan, &err);
    else
        td_plan_parse(a, "text.yaml", texts[i - N_EXAMPLES], strlen(texts[i - N_EXAMPLES]), &diags,
                      &plan, &err);
    cr_assert(err.status == TD_OK && diags.n_errors == 0, "case %d: %s%s", (int)i, err.text,
              diags.head == NULL ? "" : td_diag_text(&diags, diags.head));
    cr_assert_eq(td_lower(a, plan, &program, &err), TD_OK, "case %d: %s", (int)i, err.text);
    return program;
}

static td_prediction predicted(td_arena *a, const td_program *p, td_predict_options o)
{
    td_prediction out;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_predict(a, p, &o, &out, &err), TD_OK, "%s", err.text);
    return out;
}

/* States a law over the prediction of every case, on links of infinite capacity. */
static void for_all(void (*law)(td_arena *a, const td_prediction *p, int32_t i))
{
    for (int32_t i = 0; i < N_CASES; i++) {
        td_arena *a = td_arena_new();
        const td_prediction p =
            predicted(a, program_of(a, i), (td_predict_options){.flows = TD_FLOWS_IDEAL});
        law(a, &p, i);
        td_arena_free(a);
    }
}

/* ---- sums ---- */

static void check_shares(td_arena *a, const td_prediction *p, int32_t i)
{
    double bubble = 0;
    (void)a;
    for (int32_t c = 0; c < p->timeline->n_classes; c++) {
        const td_rank_time *t = &p->class_time[c];
        cr_assert(t->busy_s >= 0 && t->collective_s >= 0 && t->transfer_s >= 0 && t->bubble_s >= 0,
                  "case %d", (int)i);
        cr_assert_float_eq(t->busy_s + t->collective_s + t->transfer_s + t->bubble_s, p->step_s,
                           1e-9 * p->step_s, "case %d, class %d", (int)i, (int)c);
    }
    for (int32_t r = 0; r < p->program->world_size; r++)
        bubble += p->class_time[p->timeline->class_of[r]].bubble_s;
    cr_assert_float_eq(p->bubble_fraction, bubble / (p->step_s * p->program->world_size), 1e-12);
    cr_assert(p->bubble_fraction >= 0 && p->bubble_fraction < 1);
}

Test(predict, divides_the_step_of_every_rank_into_four_shares)
{
    for_all(check_shares);
}

static void check_path(td_arena *a, const td_prediction *p, int32_t i)
{
    const td_critical_path *c = &p->path;
    double items = 0, before = INFINITY;
    (void)a;
    cr_assert(c->compute_s > 0 && c->transfer_s >= 0 && c->collective_s >= 0 &&
                  c->wait_s >= -1e-12 * p->step_s,
              "case %d", (int)i);
    cr_assert_float_eq(c->compute_s + c->transfer_s + c->collective_s + c->wait_s, p->step_s,
                       1e-9 * p->step_s, "case %d: %.12g + %.12g + %.12g + %.12g is not %.12g",
                       (int)i, c->compute_s, c->transfer_s, c->collective_s, c->wait_s, p->step_s);
    for (const td_path_item *item = c->items; item != NULL; item = item->next) {
        cr_assert(item->seconds > 0 && item->seconds <= before && item->what[0] != '\0', "case %d",
                  (int)i);
        before = item->seconds;
        items += item->seconds;
    }
    cr_assert_float_eq(items, c->compute_s + c->transfer_s + c->collective_s, 1e-9 * p->step_s,
                       "case %d", (int)i);
    cr_assert(c->n_ops > 0 && c->n_ops <= p->program->n_ops);
}

Test(predict, has_a_critical_path_as_long_as_the_step)
{
    for_all(check_path);
}

/* A path through one rank that does nothing but compute is that rank's compute. */
Test(predict, has_the_whole_of_one_rank_on_its_critical_path)
{
    td_arena *a = td_arena_new();
    const td_program *program = program_of(a, N_EXAMPLES);
    cr_assert_eq(program->world_size, 1);
    const td_prediction p = predicted(a, program, (td_predict_options){.flows = TD_FLOWS_IDEAL});
    cr_assert_float_eq(p.path.compute_s, p.class_time[0].busy_s, 1e-9 * p.step_s);
    cr_assert_float_eq(p.path.compute_s, p.step_s, 1e-9 * p.step_s);
    td_arena_free(a);
}

static void check_numbers(td_arena *a, const td_prediction *p, int32_t i)
{
    const td_plan *plan = p->program->plan;
    const td_module *m = &plan->modules[plan->language];
    const double tokens = (double)plan->step.microbatches * plan->step.micro_batch * m->dp * m->seq;
    double peak = 0;
    (void)a;
    for (int32_t r = 0; r < p->program->world_size; r++) {
        const td_profile *gpu = td_costs_profile(p->costs, r);
        peak += plan->precision == TD_BF16 ? gpu->bf16_flops_per_s : gpu->fp32_flops_per_s;
    }
    cr_assert_float_eq(p->tokens_per_s * p->step_s, tokens, 1e-9 * tokens, "case %d", (int)i);
    cr_assert_float_eq(p->mfu * p->step_s * peak, p->flops_per_step, 1e-9 * p->flops_per_step,
                       "case %d", (int)i);
    cr_assert(p->mfu > 0 && p->mfu < 1, "case %d: mfu %g", (int)i, p->mfu);
    for (int32_t k = 0; k < plan->n_modules; k++)
        for (int32_t s = 0; s < plan->modules[k].pp; s++)
            cr_assert_gt(p->memory[k][s].total, 0);
}

Test(predict, gives_tokens_and_mfu_of_its_own_step)
{
    for_all(check_numbers);
}

/* ---- physics and order ---- */

static void check_bound(td_arena *a, const td_prediction *p, int32_t i)
{
    (void)a;
    for (int32_t r = 0; r < p->program->world_size; r++) {
        const td_stream *s = td_program_stream(p->program, r);
        const td_profile *gpu = td_costs_profile(p->costs, r);
        const double peak =
            p->program->plan->precision == TD_BF16 ? gpu->bf16_flops_per_s : gpu->fp32_flops_per_s;
        double flops = 0;
        for (int32_t k = 0; k < s->n_ops; k++)
            flops += s->ops[k].work >= 0 ? p->program->works[s->ops[k].work].flops : 0;
        cr_assert_geq(p->step_s, flops / peak, "case %d, rank %d", (int)i, (int)r);
        cr_assert_geq(p->class_time[p->timeline->class_of[r]].busy_s, flops / peak,
                      "case %d, rank %d", (int)i, (int)r);
    }
}

Test(predict, is_no_faster_than_the_peak_of_any_gpu)
{
    for_all(check_bound);
}

static void check_order(td_arena *a, const td_prediction *p, int32_t i)
{
    (void)a;
    for (int32_t c = 0; c < p->timeline->n_classes; c++) {
        const int32_t rank = p->timeline->rep[c];
        const td_stream *s = td_program_stream(p->program, rank);
        const double *start = p->timeline->start[c], *end = p->timeline->end[c];
        double lane_end[TD_N_LANES] = {0}, last = 0;
        for (int32_t k = 0; k < s->n_ops; k++) {
            const td_op *op = &s->ops[k];
            cr_assert(start[k] >= 0 && end[k] >= start[k] && end[k] <= p->step_s,
                      "case %d: rank %d, op %d", (int)i, (int)rank, (int)k);
            cr_assert_geq(start[k], lane_end[op->lane],
                          "case %d: rank %d, op %d overtakes its lane", (int)i, (int)rank, (int)k);
            lane_end[op->lane] = end[k];
            last = end[k];
            for (uint32_t d = op->dep_first; d < op->dep_first + op->n_deps; d++) {
                const td_dep *dep = &s->deps[d];
                cr_assert_geq(start[k], dep->after_part < 0 ? end[dep->op] : start[dep->op],
                              "case %d: rank %d, op %d does not wait", (int)i, (int)rank, (int)k);
            }
        }
        cr_assert_eq(last, p->step_s, "case %d: rank %d ends elsewhere", (int)i, (int)rank);
    }
}

Test(predict, keeps_the_order_that_the_program_demands)
{
    for_all(check_order);
}

Test(predict, takes_longer_for_more_microbatches_and_wastes_less)
{
    double step = 0, bubble = 1;
    for (int32_t m = 2; m <= 32; m *= 2) {
        td_arena *a = td_arena_new();
        const td_plan *plan = NULL;
        const td_program *program = NULL;
        td_diags diags = {.arena = a};
        const char *text = td_arena_printf(
            a,
            CLUSTER "modules:\n" LANGUAGE "parallel: {pp: 4, dp: 1}}\nstep: {microbatches: %d}\n",
            (int)m);
        cr_assert_eq(td_plan_parse(a, "text.yaml", text, strlen(text), &diags, &plan, NULL), TD_OK);
        cr_assert_eq(td_lower(a, plan, &program, NULL), TD_OK);
        const td_prediction p =
            predicted(a, program, (td_predict_options){.flows = TD_FLOWS_IDEAL});
        cr_assert_gt(p.step_s, step);
        cr_assert_lt(p.bubble_fraction, bubble, "%d microbatches", (int)m);
        step = p.step_s;
        bubble = p.bubble_fraction;
        td_arena_free(a);
    }
}

/* ---- clocks ---- */

static void check_clocks(td_arena *a, const td_prediction *p, int32_t i)
{
    (void)a;
    cr_assert(p->settled && p->n_rounds >= 1, "case %d: %d rounds", (int)i, (int)p->n_rounds);
    for (int32_t c = 0; c < p->timeline->n_classes; c++) {
        const td_profile *gpu = td_costs_profile(p->costs, p->timeline->rep[c]);
        const td_clocks *k = &p->class_clocks[c];
        const td_stream *s = td_program_stream(p->program, p->timeline->rep[c]);
        cr_assert(k->heat >= 0 && k->heat <= 1 + 1e-12, "case %d: heat %g", (int)i, k->heat);
        cr_assert(k->factor >= 1 && k->factor <= td_cost_clock_factor(gpu, 1));
        for (int32_t op = 0; op < s->n_ops; op++) {
            cr_assert(k->clock[op] >= 1 && k->clock[op] <= td_cost_clock_factor(gpu, 1));
            cr_assert(k->stretch[op] >= 1 && k->stretch[op] <= k->clock[op]);
        }
    }
}

Test(predict, settles_on_the_clocks_that_its_own_heat_causes)
{
    for_all(check_clocks);
}

/* ---- the same, and the same again ---- */

static bool same_bits(double x, double y)
{
    return memcmp(&x, &y, sizeof x) == 0;
}

static void check_same(const td_prediction *p, const td_prediction *q, int32_t i)
{
    cr_assert(same_bits(p->step_s, q->step_s), "case %d: %.17g, %.17g", (int)i, p->step_s,
              q->step_s);
    for (int32_t r = 0; r < p->program->world_size; r++)
        for (int32_t k = 0; k < td_program_stream(p->program, r)->n_ops; k++)
            cr_assert(same_bits(td_timeline_start(p->timeline, r, k),
                                td_timeline_start(q->timeline, r, k)) &&
                          same_bits(td_timeline_end(p->timeline, r, k),
                                    td_timeline_end(q->timeline, r, k)),
                      "case %d: rank %d, op %d", (int)i, (int)r, (int)k);
}

static void check_again(td_arena *a, const td_prediction *p, int32_t i)
{
    td_arena *b = td_arena_new();
    (void)a;
    const td_prediction again =
        predicted(b, program_of(b, i), (td_predict_options){.flows = TD_FLOWS_IDEAL});
    check_same(p, &again, i);
    cr_assert(same_bits(p->path.wait_s, again.path.wait_s) && same_bits(p->mfu, again.mfu));
    td_arena_free(b);
}

Test(predict, says_the_same_to_the_bit_when_asked_again)
{
    for_all(check_again);
}

static void check_unfolded(td_arena *a, const td_prediction *p, int32_t i)
{
    const td_prediction q =
        predicted(a, p->program, (td_predict_options){.flows = TD_FLOWS_IDEAL, .no_fold = true});
    cr_assert_eq(q.timeline->n_classes, p->program->world_size);
    check_same(p, &q, i);
    cr_assert_float_eq(p->bubble_fraction, q.bubble_fraction, 1e-12);
    cr_assert_float_eq(p->path.compute_s, q.path.compute_s, 1e-9 * p->step_s, "case %d", (int)i);
}

Test(predict, says_the_same_to_the_bit_when_every_rank_is_simulated_by_itself)
{
    for_all(check_unfolded);
}

/* Where no link is shared, shared links change nothing and no back-end is asked. */
Test(predict, says_the_same_on_shared_links_that_nobody_shares)
{
    int32_t n = 0;
    for (int32_t i = 0; i < N_CASES; i++) {
        td_arena *a = td_arena_new();
        const td_program *program = program_of(a, i);
        const td_predict_options shared = {.flows = TD_FLOWS_SHARED};
        td_prediction q;
        td_err err = {TD_OK, ""};
        const td_status st = td_predict(a, program, &shared, &q, &err);
        cr_assert(st == TD_OK || st == TD_ABSENT, "case %d: %s", (int)i, err.text);
        if (st == TD_OK) {
            const td_prediction p =
                predicted(a, program, (td_predict_options){.flows = TD_FLOWS_IDEAL});
            cr_assert_eq(q.timeline->n_promoted, 0);
            check_same(&p, &q, i);
            n++;
        }
        td_arena_free(a);
    }
    cr_assert_geq(n, N_TEXTS, "only %d cases share no link", (int)n);
}
