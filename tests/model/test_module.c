/* What modules are made of, against closed forms written down here, and the same under any layout.
 */
#include "tests/model/plans.h"

#include "model/flops.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- parameters ---- */

/* LLaMA (Touvron et al., 2023): q, o of heads * head_dim, k, v of kv_heads * head_dim, a gated MLP,
 * two norms a layer; embedding, final norm and an untied head; no bias anywhere. */
static double language_params(const td_module *m)
{
    const double h = m->hidden, q = (double)m->heads * m->head_dim,
                 kv = (double)m->kv_heads * m->head_dim;
    return m->layers * (2 * h * q + 2 * h * kv + 3 * h * m->ffn + 2 * h) + 2.0 * m->vocab * h + h;
}

/* ViT (Dosovitskiy et al., 2021): linear patches and positions, biases everywhere, and LLaVA's
 * two-layer projector (Liu et al., 2024). */
static double encoder_params(const td_module *m, double out)
{
    const double h = m->hidden, f = m->ffn;
    const double layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h;
    const double projector = h * out + out + out * out + out;
    return m->layers * layer + (m->input_dim + 1) * h + (double)m->seq * h + 2 * h + projector;
}

typedef struct {
    const td_stage *s;
    double whole,
        trainable; /* this rank's share of tensors that it holds with `copies - 1` others */
    int64_t local, n;
} tally;

static void count(void *self, const td_param *p)
{
    tally *t = self;
    cr_assert(p->local > 0 && p->copies >= 1 && p->out > 0 && p->in > 0, "%s", p->name);
    cr_assert_eq(p->local * (t->s->module->tp / p->copies), p->out * p->in, "%s", p->name);
    cr_assert_eq(p->decay, p->in > 1, "%s: weight decay is for matrices", p->name);
    t->whole += (double)p->local / p->copies;
    t->trainable += p->trainable ? (double)p->local / p->copies : 0;
    t->local += p->local;
    t->n++;
}

/* Parameters of a module, summed over the tensor ranks and stages of one data lane. */
static tally counted(const td_plan *plan, int32_t m)
{
    tally sum = {.s = NULL};
    for (int32_t p = 0; p < plan->modules[m].pp; p++) {
        const td_stage s = td_stage_of(plan, m, p);
        tally t = {.s = &s};
        td_stage_params(&s, count, &t);
        sum.whole += t.whole * plan->modules[m].tp;
        sum.trainable += t.trainable * plan->modules[m].tp;
        sum.n += t.n;
    }
    return sum;
}

Test(module, has_the_parameters_of_its_closed_form_in_every_layout)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        for (int32_t m = 0; m < plan->n_modules; m++) {
            const td_module *module = &plan->modules[m];
            const double out = plan->modules[plan->language].hidden;
            const double projector = module->hidden * out + out + out * out + out;
            const tally t = counted(plan, m);
            const double all =
                m == plan->language ? language_params(module) : encoder_params(module, out);
            cr_assert_float_eq(t.whole, all, 0.5, "%s: %s has %.0f, not %.0f", s->name,
                               module->name, t.whole, all);
            cr_assert_float_eq(t.trainable,
                               module->frozen == TD_FROZEN_FALSE  ? all
                               : module->frozen == TD_FROZEN_TRUE ? 0
                                                                  : projector,
                               0.5, "%s: %s trains %.0f", s->name, module->name, t.trainable);
        }
        td_arena_free(a);
    }
}

/* Vicuna-7B has 6.74e9 parameters; with its vocabulary padded to 32256, 2 * 256 * 4096 more. CLIP
 * ViT-L/14-336 up to its penultimate layer has 292e6. */
Test(module, of_published_models_has_their_published_size)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_parse(
        a, "modules:\n"
           "  images: {type: vision, layers: 23, hidden: 1024, heads: 16, ffn: 4096, seq: 576, "
           "input_dim: 588, parallel: {tp: 4, dp: 1}}\n"
           "  language: {type: language, layers: 32, hidden: 4096, heads: 32, ffn: 11008, vocab: "
           "32256, seq: 4096, parallel: {tp: 4, pp: 2, dp: 2, offset: 4}}\n"
           "step: {micro_batch: 1, microbatches: 2}\n");
    const double vicuna = 6738415616.0 + 2.0 * 256 * 4096;
    cr_assert_float_eq(counted(plan, 1).whole, vicuna, 0.5);
    const double projector = 1024.0 * 4096 + 4096 + 4096.0 * 4096 + 4096;
    cr_assert_float_eq(counted(plan, 0).whole - projector, 290.5e6, 0.5e6);
    td_arena_free(a);
}

TheoryDataPoints(module, has_as_many_parameters_under_any_tp_pp_and_kv_heads) = {
    DataPoints(int, 1, 2, 4, 8), DataPoints(int, 1, 2, 4), DataPoints(int, 1, 2, 4, 8)};
Theory((int tp, int pp, int kv_heads), module, has_as_many_parameters_under_any_tp_pp_and_kv_heads)
{
    td_arena *a = td_arena_new();
    const plan_shape s = {.language = {.tp = tp, .pp = pp}, .kv_heads = kv_heads};
    const td_plan *plan = plan_of(a, &s);
    cr_assert_float_eq(counted(plan, 0).whole, language_params(&plan->modules[0]), 0.5);
    td_arena_free(a);
}

static void check_kv(void *self, const td_param *p)
{
    const td_module *m = self;
    if (strcmp(p->name, "k.weight") == 0 || strcmp(p->name, "v.weight") == 0) {
        cr_assert_eq(p->copies, m->kv_heads < m->tp ? m->tp / m->kv_heads : 1);
        cr_assert_eq(p->local % (m->head_dim * m->hidden), 0, "a kv head is never cut");
    }
}

TheoryDataPoints(module, repeats_kv_heads_rather_than_cut_them) = {DataPoints(int, 1, 2, 4, 8),
                                                                   DataPoints(int, 1, 2, 4, 8)};
Theory((int tp, int kv_heads), module, repeats_kv_heads_rather_than_cut_them)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.language = {.tp = tp}, .kv_heads = kv_heads});
    const td_stage s = td_stage_of(plan, 0, 0);
    td_stage_params(&s, check_kv, (void *)(uintptr_t)s.module);
    td_arena_free(a);
}

typedef struct {
    char seen[512][48];
    int32_t n;
} names;

static void note(void *self, const td_param *p)
{
    names *l = self;
    char name[48];
    snprintf(name, sizeof name, "%d.%s", (int)p->layer, p->name);
    for (int32_t i = 0; i < l->n; i++)
        cr_assert_str_neq(l->seen[i], name);
    cr_assert_lt(l->n, 512);
    snprintf(l->seen[l->n++], sizeof name, "%s", name);
}

Test(module, names_each_tensor_once_over_all_stages)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        for (int32_t m = 0; m < plan->n_modules; m++) {
            const int32_t layers = plan->modules[m].layers;
            static names l;
            l.n = 0;
            for (int32_t p = 0; p < plan->modules[m].pp; p++) {
                const td_stage stage = td_stage_of(plan, m, p);
                td_stage_params(&stage, note, &l);
            }
            cr_assert_eq(l.n, m == plan->language ? 9 * layers + 3 : 16 * layers + 9, "%s",
                         s->name);
        }
        td_arena_free(a);
    }
}

/* ---- stages ---- */

Test(module, falls_into_stages_that_hold_each_layer_once)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        for (int32_t m = 0; m < plan->n_modules; m++) {
            int32_t next = 0;
            for (int32_t p = 0; p < plan->modules[m].pp; p++) {
                const td_stage stage = td_stage_of(plan, m, p);
                cr_assert_eq(stage.first_layer, next);
                cr_assert(stage.first == (p == 0) && stage.last == (p == plan->modules[m].pp - 1));
                next += stage.n_layers;
            }
            cr_assert_eq(next, plan->modules[m].layers, "%s", s->name);
        }
        td_arena_free(a);
    }
}

/* A gradient arrives at a stage's input exactly if the stage below has a backward to use it in. */
Test(module, asks_for_gradients_exactly_where_the_stage_below_uses_them)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        for (int32_t m = 0; m < plan->n_modules; m++)
            for (int32_t p = 0; p < plan->modules[m].pp; p++) {
                const td_stage stage = td_stage_of(plan, m, p);
                bool below = false;
                if (p > 0)
                    below = td_stage_of(plan, m, p - 1).backward;
                for (int32_t e = 0; e < plan->n_edges && p == 0; e++)
                    if (plan->edges[e].dst == m)
                        below = below || td_module_has_backward(plan, plan->edges[e].src);
                cr_assert_eq(stage.input_grad, below, "%s: module %d, stage %d", s->name, (int)m,
                             (int)p);
                cr_assert(stage.backward || !stage.input_grad);
                td_work w;
                cr_assert_eq(td_stage_backward(a, &stage, &w, NULL), TD_OK);
                cr_assert_eq(w.n_flat > 0, stage.backward, "%s: module %d, stage %d", s->name,
                             (int)m, (int)p);
            }
        td_arena_free(a);
    }
}

/* ---- work ---- */

typedef struct {
    double flops;
    int64_t n_flat;
} flat;

static flat flattened(const td_work *w)
{
    flat f = {0, 0};
    int32_t next = 0;
    for (int32_t r = 0; r < w->n_runs; r++) {
        const td_part_run *run = &w->runs[r];
        cr_assert(run->first == next && run->n > 0 && run->repeat > 0);
        next += run->n;
        f.n_flat += (int64_t)run->n * run->repeat;
        for (int32_t i = 0; i < run->n; i++)
            f.flops += w->parts[run->first + i].flops * run->repeat;
    }
    cr_assert_eq(next, w->n_parts);
    return f;
}

Test(module, lists_its_work_in_runs_that_cover_all_parts)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        for (int32_t m = 0; m < plan->n_modules; m++)
            for (int32_t p = 0; p < plan->modules[m].pp; p++)
                for (int backward = 0; backward < 2; backward++) {
                    const td_stage stage = td_stage_of(plan, m, p);
                    td_work w;
                    cr_assert_eq(
                        (backward ? td_stage_backward : td_stage_forward)(a, &stage, &w, NULL),
                        TD_OK);
                    const flat f = flattened(&w);
                    cr_assert_eq(f.n_flat, w.n_flat);
                    cr_assert_float_eq(f.flops, w.flops, 1e-9 * f.flops, "%s", s->name);
                    for (int32_t i = 0; i < w.n_parts; i++) {
                        const td_part *part = &w.parts[i];
                        const bool comm = td_part_table[part->class].key == TD_KEY_COMM;
                        cr_assert(!comm || (part->ranks == stage.module->tp && part->ranks > 1));
                        cr_assert(td_part_table[part->class].key == TD_KEY_SHAPE || part->bytes > 0,
                                  "%s: %s", s->name, part->name);
                        cr_assert(part->class != TD_PART_GEMM ||
                                  (part->m > 0 && part->n > 0 && part->k > 0));
                        cr_assert(!part->recompute || (backward && part->flops <= 0));
                    }
                }
        td_arena_free(a);
    }
}

/* ---- FLOPs ---- */

/* Multiply-adds of one sample's forward, twice: products of every token, and attention. */
static double products(const td_plan *plan, int32_t m, double *ends)
{
    const td_module *x = &plan->modules[m];
    const double h = x->hidden, q = (double)x->heads * x->head_dim,
                 kv = (double)x->kv_heads * x->head_dim;
    const double out = plan->modules[plan->language].hidden, t = x->seq;
    const bool gated = x->mlp == TD_MLP_SWIGLU;
    *ends = m == plan->language ? 2 * t * h * x->vocab : 2 * t * (h * out + out * out);
    return x->layers * 2 * t * (h * q + 2 * h * kv + q * h + (gated ? 3 : 2) * h * x->ffn);
}

static double attention(const td_plan *plan, int32_t m)
{
    const td_module *x = &plan->modules[m];
    const double t = x->seq;
    return x->layers * 4 * t * t * x->heads * x->head_dim * (m == plan->language ? 0.5 : 1);
}

static double closed_form(const td_plan *plan)
{
    const td_module *language = &plan->modules[plan->language];
    const double samples = (double)plan->step.microbatches * plan->step.micro_batch * language->dp;
    double sum = 0;
    for (int32_t m = 0; m < plan->n_modules; m++) {
        const td_module *x = &plan->modules[m];
        const double h = x->hidden, out = language->hidden, t = x->seq;
        double ends;
        const double layers = products(plan, m, &ends), core = attention(plan, m);
        const double embed = m == plan->language ? 0 : 2 * t * h * x->input_dim;
        sum += layers + core + ends + embed;
        if (m == plan->language) /* always data gradients: something trains at or below the head */
            sum += layers + 2 * core + ends + (x->frozen == TD_FROZEN_FALSE ? layers + ends : 0);
        else if (x->frozen ==
                 TD_FROZEN_FALSE) /* the input is data: embed has a weight gradient only */
            sum += 2 * layers + 2 * core + 2 * ends + embed;
        else if (x->frozen == TD_FROZEN_BACKBONE) /* nothing below fc1 needs its data gradient */
            sum += 2 * ends - 2 * t * h * out;
    }
    return sum * samples;
}

static double flops_of(const td_plan *plan)
{
    td_arena *a = td_arena_new();
    double flops = 0;
    cr_assert_eq(td_plan_flops(a, plan, &flops, NULL), TD_OK);
    td_arena_free(a);
    return flops;
}

Test(flops, are_those_of_the_closed_form_in_every_layout)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        const double expected = closed_form(plan), got = flops_of(plan);
        cr_assert_float_eq(got, expected, 1e-12 * expected, "%s: %.0f, not %.0f", s->name, got,
                           expected);
        td_arena_free(a);
    }
}

/* 6 * parameters * tokens and a little: Kaplan et al., 2020. */
Test(flops, of_a_wide_language_model_are_six_times_parameters_times_tokens)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.scale = 64, .language = {.layers = 32}});
    const td_module *m = &plan->modules[0];
    const double tokens = 16.0 * m->seq, params = language_params(m) - (double)m->vocab * m->hidden;
    cr_assert_float_eq(flops_of(plan) / (6 * params * tokens), 1, 0.01);
    td_arena_free(a);
}

Test(flops, do_not_depend_on_how_the_step_is_done)
{
    static const char *const steps[] = {"sequence_parallel: true", "recompute: selective",
                                        "recompute: full", "shape_exchange: false"};
    plan_shape s = {.n_encoders = 2, .kv_heads = 2, .micro_batch = 8};
    td_arena *a = td_arena_new();
    const double one = flops_of(plan_of(a, &s));
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        s.step = steps[i];
        s.language = (plan_where){.tp = 4, .pp = 2, .dp = 1};
        s.encoder[0] = (plan_where){.tp = 2, .pp = 4, .dp = 2};
        s.encoder[1] = (plan_where){.tp = 1, .pp = 2, .dp = 8};
        cr_assert_float_eq(flops_of(plan_of(a, &s)), one, 1e-12 * one, "%s", steps[i]);
    }
    s.language.dp = 2; /* twice the samples */
    cr_assert_float_eq(flops_of(plan_of(a, &s)), 2 * one, 1e-12 * one);
    td_arena_free(a);
}

/* What all tensor ranks do together: the model's FLOPs where nothing is done twice. */
TheoryDataPoints(flops, of_all_tensor_ranks_are_those_of_the_plan) = {
    DataPoints(int, 1, 2, 4, 8), DataPoints(int, 1, 2, 4), DataPoints(bool, false, true)};
Theory((int tp, int pp, bool sequence_parallel), flops, of_all_tensor_ranks_are_those_of_the_plan)
{
    td_arena *a = td_arena_new();
    const plan_shape shape = {.language = {.tp = tp, .pp = pp},
                              .step = sequence_parallel ? "sequence_parallel: true" : NULL};
    const td_plan *plan = plan_of(a, &shape);
    double sum = 0;
    for (int32_t p = 0; p < pp; p++) {
        const td_stage s = td_stage_of(plan, 0, p);
        td_work forward, backward;
        cr_assert_eq(td_stage_forward(a, &s, &forward, NULL), TD_OK);
        cr_assert_eq(td_stage_backward(a, &s, &backward, NULL), TD_OK);
        sum += (forward.flops + backward.flops) * tp * plan->step.microbatches;
    }
    cr_assert_float_eq(sum, flops_of(plan), 1e-12 * sum);
    td_arena_free(a);
}

Test(flops, of_a_frozen_module_have_no_weight_gradients)
{
    td_arena *a = td_arena_new();
    plan_shape s = {.n_encoders = 1};
    const double trained = flops_of(plan_of(a, &s));
    s.language.frozen = "true";
    const td_plan *plan = plan_of(a, &s);
    double ends;
    const double layers = products(plan, plan->language, &ends);
    const double samples = (double)plan->step.microbatches * plan->step.micro_batch;
    cr_assert_float_eq(trained - flops_of(plan), (layers + ends) * samples, 1e-9 * trained);
    td_arena_free(a);
}
