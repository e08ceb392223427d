/* Writes plans as text, so that tests go the way that users' plans go. */
#include "tests/model/plans.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CLUSTER                                                                                    \
    "cluster: {groups: [{count: 16384, node: {gpus: 8, gpu: {name: G, memory_gib: 80}, "           \
    "nvlink_gb_s: 400, nvlink_latency_us: 1, nics: 8, nic_gb_s: 50, nic_latency_us: 2}}], "        \
    "fabric: {kind: rail, latency_us: 1}}\n"

const plan_shape plan_shapes[] = {
    {.name = "language alone"},
    {.name = "language alone, pp 4", .language = {.pp = 4}},
    {.name = "language alone, tp 4 dp 2", .language = {.tp = 4, .dp = 2}},
    {.name = "one encoder", .n_encoders = 1},
    {.name = "one encoder, language pp 3",
     .n_encoders = 1,
     .language = {.pp = 3, .stage_layers = "[2, 1, 1]"}},
    {.name = "tp 2 into tp 2 pp 2",
     .n_encoders = 1,
     .encoder = {{.tp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 1}},
    {.name = "tp 2 pp 2 into tp 2 pp 2",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 2, .dp = 1}},
     .language = {.tp = 2, .pp = 2, .dp = 1}},
    {.name = "tp 1 into tp 4", .n_encoders = 1, .language = {.tp = 4}},
    {.name = "tp 4 into tp 1", .n_encoders = 1, .encoder = {{.tp = 4}}},
    {.name = "fan-in 4 to 1",
     .n_encoders = 1,
     .encoder = {{.dp = 4}},
     .language = {.tp = 2, .pp = 2, .dp = 1}},
    {.name = "fan-in 4 to 2",
     .n_encoders = 1,
     .encoder = {{.dp = 4}},
     .language = {.tp = 2, .pp = 1, .dp = 2}},
    {.name = "fan-out 1 to 4",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 2, .dp = 1}},
     .language = {.dp = 4}},
    {.name = "fan-out 2 to 4, tp and pp on both sides",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 2, .dp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 4}},
    {.name = "dp 2 on both sides, pp before dp",
     .n_encoders = 1,
     .encoder = {{.tp = 1, .pp = 2, .dp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 2},
     .pp_before_dp = true},
    {.name = "fan-in with pp before dp",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 2, .dp = 4}},
     .language = {.tp = 2, .pp = 3, .dp = 2, .stage_layers = "[1, 2, 1]"},
     .pp_before_dp = true},
    {.name = "two encoders of equal depth",
     .n_encoders = 2,
     .encoder = {{.tp = 2, .pp = 2, .dp = 1}, {.tp = 1, .pp = 2, .dp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 1}},
    {.name = "two encoders of unequal depth",
     .n_encoders = 2,
     .encoder = {{.pp = 2}, {.pp = 1}},
     .language = {.pp = 2},
     .microbatches = 7},
    {.name = "three encoders, fan-in, fan-out and equal",
     .n_encoders = 3,
     .encoder = {{.dp = 4}, {.dp = 1}, {.tp = 2, .dp = 2}},
     .language = {.tp = 2, .dp = 2}},
    {.name = "four encoders of depths 1 to 4",
     .n_encoders = 4,
     .encoder = {{.pp = 1}, {.pp = 2}, {.pp = 4}, {.pp = 3, .layers = 3}},
     .language = {.pp = 2}},
    {.name = "uneven stages",
     .n_encoders = 1,
     .encoder = {{.pp = 2, .stage_layers = "[3, 1]"}},
     .language = {.pp = 2, .stage_layers = "[1, 3]"}},
    {.name = "a stage for each of 9 layers",
     .n_encoders = 1,
     .language = {.pp = 9, .layers = 9},
     .microbatches = 3},
    {.name = "frozen encoder",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 2, .dp = 1, .frozen = "true"}}},
    {.name = "frozen backbone",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 2, .dp = 2, .frozen = "backbone"}},
     .language = {.tp = 1, .pp = 2, .dp = 2}},
    {.name = "frozen language",
     .n_encoders = 1,
     .encoder = {{.tp = 1, .pp = 2, .dp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 2, .frozen = "true"}},
    {.name = "one frozen encoder of two",
     .n_encoders = 2,
     .encoder = {{.tp = 1, .pp = 2, .dp = 1, .frozen = "true"}, {.tp = 1, .pp = 2, .dp = 1}},
     .language = {.tp = 2, .pp = 2, .dp = 1}},
    {.name = "backbone beside frozen, frozen language",
     .n_encoders = 2,
     .encoder = {{.tp = 1, .pp = 2, .dp = 1, .frozen = "true"},
                 {.tp = 1, .pp = 2, .dp = 1, .frozen = "backbone"}},
     .language = {.tp = 2, .pp = 2, .dp = 1, .frozen = "true"}},
    {.name = "both encoders frozen",
     .n_encoders = 2,
     .encoder = {{.tp = 1, .pp = 2, .dp = 1, .frozen = "true"},
                 {.tp = 1, .pp = 1, .dp = 2, .frozen = "true"}},
     .language = {.tp = 2, .pp = 2, .dp = 1}},
    {.name = "idle leading ranks", .n_encoders = 1, .encoder = {{.tp = 2}}, .idle = 3},
    {.name = "language on the first ranks",
     .n_encoders = 1,
     .encoder = {{.tp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 1},
     .language_first = true},
    {.name = "one microbatch",
     .n_encoders = 1,
     .language = {.pp = 3, .layers = 3},
     .microbatches = 1},
    {.name = "fewer microbatches than stages",
     .n_encoders = 1,
     .encoder = {{.pp = 2}},
     .language = {.tp = 2, .pp = 4, .dp = 1},
     .microbatches = 3},
    {.name = "without shape messages",
     .n_encoders = 2,
     .encoder = {{.tp = 2, .pp = 2, .dp = 2}, {.tp = 1, .pp = 2, .dp = 1}},
     .language = {.tp = 2, .pp = 2, .dp = 1},
     .step = "shape_exchange: false"},
    {.name = "without overlap of gradients",
     .n_encoders = 1,
     .encoder = {{.tp = 1, .pp = 2, .dp = 2}},
     .language = {.tp = 1, .pp = 2, .dp = 2},
     .step = "grad_overlap: false"},
    {.name = "buckets as the reference has them",
     .n_encoders = 1,
     .encoder = {{.tp = 1, .pp = 2, .dp = 2}},
     .language = {.tp = 1, .pp = 2, .dp = 2},
     .scale = 16,
     .step = "bucket_policy: reference, bucket_elements: 1"},
    {.name = "many buckets",
     .n_encoders = 1,
     .encoder = {{.tp = 1, .pp = 2, .dp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 2},
     .scale = 16,
     .step = "bucket_elements: 1"},
    {.name = "whole optimizer state on every rank",
     .n_encoders = 1,
     .encoder = {{.tp = 1, .pp = 1, .dp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 2},
     .optimizer = "sharded: false"},
    {.name = "sequence parallel",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 2, .dp = 2}},
     .language = {.tp = 4, .pp = 2, .dp = 2},
     .step = "sequence_parallel: true"},
    {.name = "selective recomputation",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 1, .dp = 1}},
     .language = {.tp = 2, .pp = 2, .dp = 1},
     .step = "recompute: selective"},
    {.name = "full recomputation",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 1, .dp = 1}},
     .language = {.tp = 2, .pp = 2, .dp = 1},
     .step = "recompute: full, sequence_parallel: true"},
    {.name = "one kv head over tp 8",
     .n_encoders = 1,
     .encoder = {{.tp = 4}},
     .language = {.tp = 8, .dp = 2},
     .kv_heads = 1},
    {.name = "two kv heads over tp 4, sequence parallel",
     .language = {.tp = 4, .pp = 2},
     .kv_heads = 2,
     .step = "sequence_parallel: true"},
    {.name = "fp32",
     .n_encoders = 1,
     .encoder = {{.tp = 2, .pp = 1, .dp = 2}},
     .language = {.tp = 2, .pp = 2, .dp = 1},
     .fp32 = true},
    {.name = NULL},
};

typedef struct {
    char text[8192];
    size_t n;
} page;

static void write(page *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void write(page *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    p->n += (size_t)vsnprintf(p->text + p->n, sizeof p->text - p->n, format, args);
    va_end(args);
    cr_assert_lt(p->n, sizeof p->text);
}

const td_plan *plan_parse(td_arena *a, const char *text)
{
    const td_plan *plan = NULL;
    td_diags diags = {.arena = a};
    td_err err = {TD_OK, ""};
    const char *whole = td_arena_printf(a, CLUSTER "%s", text);
    cr_assert_eq(td_plan_parse(a, "test.yaml", whole, strlen(whole), &diags, &plan, &err), TD_OK,
                 "%s\n%s", err.text, text);
    cr_assert_eq(diags.n_errors, 0, "%s\n%s",
                 diags.head == NULL ? "" : td_diag_text(&diags, diags.head), text);
    return plan;
}

static int32_t given(int32_t value, int32_t otherwise)
{
    return value > 0 ? value : otherwise;
}

static void write_module(page *p, const char *name, const plan_shape *s, const plan_where *w,
                         int32_t *offset)
{
    const bool language = strcmp(name, "language") == 0;
    const int32_t scale = given(s->scale, 1);
    write(p, "  %s:\n    type: %s\n    layers: %d\n    frozen: %s\n", name,
          language                      ? "language"
          : strcmp(name, "images") == 0 ? "vision"
                                        : "audio",
          given(w->layers, 4), w->frozen != NULL ? w->frozen : "false");
    if (language)
        write(p,
              "    hidden: %d\n    heads: 8\n    kv_heads: %d\n    ffn: %d\n    vocab: %d\n    "
              "seq: 64\n",
              64 * scale, given(s->kv_heads, 8), 96 * scale, 128 * scale);
    else
        write(p, "    hidden: %d\n    heads: 4\n    ffn: %d\n    seq: %d\n    input_dim: 12\n",
              32 * scale, 64 * scale, strcmp(name, "images") == 0 ? 8 : 16);
    write(p, "    parallel: {tp: %d, pp: %d, dp: %d, offset: %d", given(w->tp, 1), given(w->pp, 1),
          given(w->dp, 1), *offset);
    write(p, w->stage_layers != NULL ? ", stage_layers: %s}\n" : "}\n", w->stage_layers);
    *offset += given(w->tp, 1) * given(w->pp, 1) * given(w->dp, 1);
}

const td_plan *plan_of(td_arena *a, const plan_shape *s)
{
    static const char *const names[PLAN_ENCODERS] = {"images", "audio", "video", "radar"};
    page p = {.n = 0};
    int32_t offset = s->idle;
    write(&p, "name: test\nrank_order: %s\nmodules:\n",
          s->pp_before_dp ? "[tp, cp, pp, dp]" : "[tp, cp, dp, pp]");
    if (s->language_first)
        write_module(&p, "language", s, &s->language, &offset);
    for (int32_t i = 0; i < s->n_encoders; i++)
        write_module(&p, names[i], s, &s->encoder[i], &offset);
    if (!s->language_first)
        write_module(&p, "language", s, &s->language, &offset);
    write(&p, "step: {microbatches: %d, micro_batch: %d%s%s}\n", given(s->microbatches, 4),
          given(s->micro_batch, 4), s->step != NULL ? ", " : "", s->step != NULL ? s->step : "");
    write(&p, "optimizer: {%s}\nprecision: %s\n", s->optimizer != NULL ? s->optimizer : "",
          s->fp32 ? "fp32" : "bf16");
    return plan_parse(a, p.text);
}

td_pipeline plan_pipeline(td_arena *a, const td_plan *plan)
{
    td_pipeline p;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_pipeline_of_plan(a, plan, &p, &err), TD_OK, "%s", err.text);
    return p;
}

int32_t plan_dice(uint32_t *state, int32_t n)
{
    *state = *state * 1664525u + 1013904223u;
    return (int32_t)((*state >> 8) % (uint32_t)n);
}

plan_shape plan_random(uint32_t *state)
{
    static const char *const frozen[] = {NULL, NULL, NULL, "true", "backbone"};
    plan_shape s = {.name = "random", .n_encoders = 1 + plan_dice(state, 3)};
    for (int32_t i = 0; i < s.n_encoders; i++)
        s.encoder[i] = (plan_where){.tp = 1 << plan_dice(state, 3),
                                    .pp = 1 + plan_dice(state, 3),
                                    .dp = 1 << plan_dice(state, 3),
                                    .frozen = frozen[plan_dice(state, 5)],
                                    .layers = 6};
    s.language = (plan_where){.tp = 1 << plan_dice(state, 3),
                              .pp = 1 + plan_dice(state, 3),
                              .dp = 1 << plan_dice(state, 3),
                              .layers = 6};
    s.pp_before_dp = plan_dice(state, 2) == 1;
    s.microbatches = 1 + plan_dice(state, 12);
    s.step = plan_dice(state, 3) == 0 ? "shape_exchange: false" : NULL;
    return s;
}
