/* A plan says what it means or is refused with the place, whatever the bytes. */
#include "model/module.h"
#include "model/plan.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTER                                                                                    \
    "{groups: [{count: 1, node: {gpus: 32, gpu: {name: G, memory_gib: 80}, nvlink_gb_s: 400, "     \
    "nvlink_latency_us: 1}}]}"

static const char full[] =
    "name: full\n"
    "cluster: " CLUSTER "\n"
    "rank_order: [tp, cp, dp, pp]\n"
    "modules:\n"
    "  images:\n"
    "    type: vision\n"
    "    layers: 24\n"
    "    hidden: 1024\n"
    "    heads: 16\n"
    "    ffn: 4096\n"
    "    seq: 576\n"
    "    input_dim: 588\n"
    "    frozen: false\n"
    "    parallel: {tp: 2, pp: 2, dp: 1, offset: 0}\n"
    "  sound:\n"
    "    type: audio\n"
    "    layers: 6\n"
    "    hidden: 512\n"
    "    heads: 8\n"
    "    ffn: 2048\n"
    "    seq: 100\n"
    "    input_dim: 80\n"
    "    parallel: {tp: 1, dp: 2, offset: 4}\n"
    "  language:\n"
    "    type: language\n"
    "    layers: 24\n"
    "    hidden: 4096\n"
    "    heads: 32\n"
    "    kv_heads: 8\n"
    "    head_dim: 128\n"
    "    ffn: 11008\n"
    "    mlp: swiglu\n"
    "    vocab: 32000\n"
    "    seq: 2048\n"
    "    parallel: {tp: 2, pp: 2, dp: 2, offset: 6, stage_layers: [13, 11]}\n"
    "edges: [[sound, language], [images, language]]\n"
    "step:\n"
    "  schedule: 1f1b\n"
    "  microbatches: 8\n"
    "  micro_batch: 3\n"
    "  shape_exchange: false\n"
    "  grad_overlap: false\n"
    "  sequence_parallel: true\n"
    "  recompute: selective\n"
    "  bucket_elements: 1000\n"
    "  bucket_policy: reference\n"
    "optimizer: {type: adamw, lr: 1.0e-3, beta1: 0.8, beta2: 0.9, eps: 1.0e-6, weight_decay: 0, "
    "clip_grad: 2, sharded: false, nonfinite: propagate}\n"
    "precision: fp32\n"
    "seed: 4294967295\n"
    "data: {tokens: text.u16, images: /abs/patches.f32}\n";

static const char least[] =
    "{\"cluster\": {\"groups\": [{\"count\": 1, \"node\": {\"gpus\": 1, \"gpu\": {\"name\": \"G\", "
    "\"memory_gib\": 80}}}]},\n"
    "\t\"modules\": {\"language\": {\"type\": \"language\", \"layers\": 2, \"hidden\": 64, "
    "\"heads\": 4, "
    "\"ffn\": 128, \"vocab\": 100, \"seq\": 32, \"parallel\": {\"dp\": 1}}}}";

typedef struct {
    td_arena *arena;
    td_diags diags;
    td_err err;
    td_status status;
    const td_plan *plan;
} reading;

static reading read_bytes(const char *text, size_t size)
{
    reading r = {.arena = td_arena_new()};
    r.diags.arena = r.arena;
    r.status = td_plan_parse(r.arena, "folder/p.yaml", text, size, &r.diags, &r.plan, &r.err);
    return r;
}

static reading read_text(const char *text)
{
    return read_bytes(text, strlen(text));
}

/* `full` with the first `from` after `after` replaced. */
static reading read_edited(const char *after, const char *from, const char *to)
{
    static char text[2 * sizeof full];
    const char *start = strstr(full, after);
    cr_assert_not_null(start, "%s", after);
    const char *at = strstr(start, from);
    cr_assert_not_null(at, "%s", from);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - full), full, to, at + strlen(from));
    return read_text(text);
}

static void assert_clean(const reading *r)
{
    cr_assert_eq(r->status, TD_OK, "%s", r->err.text);
    cr_assert_eq(r->diags.n_errors, 0, "%s", td_diag_text(&r->diags, r->diags.head));
}

Test(plan, that_says_everything_is_read_as_written)
{
    reading r = read_text(full);
    assert_clean(&r);
    const td_plan *p = r.plan;
    cr_assert_str_eq(p->name, "full");
    cr_assert_eq(p->n_modules, 3);
    cr_assert_eq(p->language, 2);
    cr_assert_eq(p->world_size, 14);
    const td_module *l = &p->modules[2];
    cr_assert_str_eq(l->name, "language");
    cr_assert_eq(l->type, &td_module_language);
    cr_assert_eq(l->kv_heads, 8);
    cr_assert_eq(l->offset, 6);
    cr_assert_eq(l->stage_layers[0], 13);
    cr_assert_eq(l->stage_layers[1], 11);
    cr_assert_eq(p->modules[0].stage_layers[1], 12);
    cr_assert_eq(p->modules[1].mlp, TD_MLP_GELU);
    cr_assert_eq(td_grid_extent(&l->expert, TD_AXIS_EXPT_TP), 2);
    cr_assert_eq(td_grid_extent(&l->expert, TD_AXIS_EXPT_DP), 2);
    cr_assert_eq(p->step.micro_batch, 3);
    cr_assert(!p->step.shape_exchange && !p->step.grad_overlap && p->step.sequence_parallel);
    cr_assert_eq(p->step.recompute, TD_RECOMPUTE_SELECTIVE);
    cr_assert_eq(p->step.bucket_elements, 1000);
    cr_assert_eq(p->step.bucket_policy, TD_BUCKETS_REFERENCE);
    cr_assert_eq(p->optimizer.lr, 1e-3);
    cr_assert_eq(p->optimizer.clip_grad, 2.0);
    cr_assert_eq(p->optimizer.nonfinite, TD_NONFINITE_PROPAGATE);
    cr_assert(!p->optimizer.sharded);
    cr_assert_eq(p->precision, TD_FP32);
    cr_assert_eq(p->seed, 4294967295U);
    cr_assert_eq(p->n_data, 2);
    cr_assert_str_eq(p->data[0].file, "folder/text.u16");
    cr_assert_str_eq(p->data[1].name, "images");
    cr_assert_str_eq(p->data[1].file, "/abs/patches.f32");
    cr_assert_eq(td_plan_lane_samples(p, 0), 6);
    cr_assert_eq(td_plan_lane_samples(p, 1), 3);
    td_arena_free(r.arena);
}

Test(plan, that_says_the_least_gets_the_defaults)
{
    reading r = read_text(least);
    assert_clean(&r);
    const td_plan *p = r.plan;
    const td_module *l = &p->modules[0];
    cr_assert_str_eq(p->name, "p");
    cr_assert_eq(l->kv_heads, 4);
    cr_assert_eq(l->head_dim, 16);
    cr_assert_eq(l->mlp, TD_MLP_SWIGLU);
    cr_assert_eq(l->frozen, TD_FROZEN_FALSE);
    cr_assert(l->tp == 1 && l->cp == 1 && l->pp == 1 && l->ep == 1 && l->etp == 1 &&
              l->offset == 0);
    cr_assert_eq(p->n_edges, 0);
    cr_assert_str_eq(p->step.schedule, "1f1b");
    cr_assert(p->step.microbatches == 16 && p->step.micro_batch == 1);
    cr_assert(p->step.shape_exchange && p->step.grad_overlap && !p->step.sequence_parallel);
    cr_assert_eq(p->step.recompute, TD_RECOMPUTE_NONE);
    cr_assert_eq(p->step.bucket_elements, 40000000);
    cr_assert_eq(p->step.bucket_policy, TD_BUCKETS_ALL_STAGES);
    cr_assert(p->optimizer.lr == 1e-4 && p->optimizer.beta1 == 0.9 && p->optimizer.beta2 == 0.95);
    cr_assert(p->optimizer.eps == 1e-8 && p->optimizer.weight_decay == 0.01);
    cr_assert(p->optimizer.clip_grad == 1.0 && p->optimizer.sharded);
    cr_assert_eq(p->optimizer.nonfinite, TD_NONFINITE_SKIP);
    cr_assert_eq(p->precision, TD_BF16);
    cr_assert_eq(p->seed, 1234U);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(p->rank_order[i],
                     ((td_axis[]){TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_DP, TD_AXIS_PP})[i]);
    td_arena_free(r.arena);
}

Test(plan, edges_are_in_module_order_whatever_their_order_in_the_file)
{
    reading written = read_text(full);
    reading usual = read_edited("name", "edges: [[sound, language], [images, language]]", "");
    assert_clean(&written);
    assert_clean(&usual);
    cr_assert_eq(written.plan->n_edges, 2);
    cr_assert_eq(usual.plan->n_edges, 2);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(written.plan->edges[i].src, i);
        cr_assert_eq(written.plan->edges[i].dst, 2);
        cr_assert_eq(usual.plan->edges[i].src, i);
        cr_assert_eq(usual.plan->edges[i].dst, 2);
    }
    td_arena_free(written.arena);
    td_arena_free(usual.arena);
}

Test(plan, rank_order_orders_both_grids)
{
    reading r = read_edited("name", "[tp, cp, dp, pp]", "[tp, cp, pp, dp]");
    assert_clean(&r);
    const td_module *l = &r.plan->modules[2];
    cr_assert_eq(l->grid.axis[2], TD_AXIS_PP);
    cr_assert_eq(l->grid.axis[3], TD_AXIS_DP);
    cr_assert_eq(l->expert.axis[0], TD_AXIS_EXPT_TP);
    cr_assert_eq(l->expert.axis[2], TD_AXIS_PP);
    cr_assert_eq(l->expert.axis[3], TD_AXIS_EXPT_DP);
    td_arena_free(r.arena);
}

Test(plan, idle_leading_ranks_are_a_warning)
{
    reading r = read_text(full);
    assert_clean(&r);
    cr_assert_eq(r.diags.n_warnings, 0);
    td_arena_free(r.arena);
    r = read_text("{modules: {language: {type: language, layers: 2, hidden: 64, heads: 4, ffn: "
                  "128, vocab: 100, "
                  "seq: 32, parallel: {dp: 1, offset: 3}}}, cluster: " CLUSTER "}");
    assert_clean(&r);
    cr_assert_eq(r.diags.n_warnings, 1);
    cr_assert_str_eq(r.diags.head->rule, "leading_idle_ranks");
    cr_assert_eq(r.plan->world_size, 4);
    td_arena_free(r.arena);
}

/* One mistake each: what is edited, then the rule, the path and a piece of the message of the only
 * error. */
struct mistake {
    char after[24], from[160], to[160], rule[40], path[48], says[48];
};

ParameterizedTestParameters(plan, one_mistake_is_told_once_with_its_place)
{
    static struct mistake table[] = {
        {"name", "name: full", "nam: full", "unknown_key", "nam", "did you mean `name`"},
        {"name", "name: full", "xyzzy: 1", "unknown_key", "xyzzy", "expected one of name, cluster"},
        {"name", "name: full", "name: 5", "wrong_type", "name", "is 5"},
        {"name", "name: full", "name: ''", "wrong_type", "name", "expected a name"},
        {"name", "name: full", "name: full\nname: again", "duplicate_key", "name",
         "twice, first on line 1"},
        {"cluster", "cluster: " CLUSTER, "", "missing_key", "cluster", "is missing"},
        {"cluster", CLUSTER, "nowhere/c.yaml", "unreadable", "cluster",
         "folder/nowhere/c.yaml: cannot open"},
        {"cluster", CLUSTER, "[]", "wrong_type", "cluster", "is a list"},
        {"cluster", "gpus: 32", "gpus: 13", "world_exceeds_cluster", "cluster",
         "has 13 GPUs, but the plan has 14"},
        {"rank_order", "dp, pp", "dp, dp", "unknown_value", "rank_order", "each once"},
        {"rank_order", "dp, pp", "dp, pp, ep", "unknown_value", "rank_order", "each once"},
        {"images", "type: vision", "type: visoin", "unknown_value", "modules.images.type",
         "did you mean `vision`"},
        {"images", "type: vision", "", "missing_key", "modules.images.type", "is missing"},
        {"images", "layers: 24", "layer: 24\n    layers: 24", "unknown_key", "modules.images.layer",
         "did you mean `layers`"},
        {"images", "layers: 24", "layers: 25", "layers_not_divisible_by_stages",
         "modules.images.layers", "multiple of pp, which is 2"},
        {"images", "layers: 24", "layers: 1000000000000", "out_of_range", "modules.images.layers",
         "from 1 to 65536"},
        {"images", "layers: 24", "layers: 65537", "out_of_range", "modules.images.layers",
         "from 1 to 65536"},
        {"images", "layers: 24", "layers: 0", "out_of_range", "modules.images.layers",
         "from 1 to 65536"},
        {"images", "layers: 24", "layers: 99999999999999999999999999", "out_of_range",
         "modules.images.layers", "from 1 to 65536"},
        {"images", "layers: 24", "layers: -24", "out_of_range", "modules.images.layers", "is -24"},
        {"images", "layers: 24", "layers: 24.0", "wrong_type", "modules.images.layers",
         "is 24.0; expected a whole number"},
        {"images", "layers: 24", "layers: \"24\"", "wrong_type", "modules.images.layers",
         "is the text \"24\""},
        {"images", "layers: 24", "layers:", "wrong_type", "modules.images.layers", "is empty"},
        {"images", "layers: 24", "layers: [24]", "wrong_type", "modules.images.layers",
         "is a list"},
        {"images", "layers: 24", "layers: true", "wrong_type", "modules.images.layers", "is true"},
        {"images", "heads: 16", "heads: 6", "hidden_not_divisible_by_heads", "modules.images.heads",
         "hidden 1024"},
        {"language", "heads: 32", "heads: 33", "heads_not_divisible_by_tp",
         "modules.language.heads", "multiple of tp"},
        {"language", "kv_heads: 8", "kv_heads: 3", "kv_heads_not_divisible_by_tp",
         "modules.language.kv_heads", "is 3"},
        {"language", "kv_heads: 8", "kv_heads: 64", "more_kv_heads_than_heads",
         "modules.language.kv_heads", "at most heads"},
        {"language", "head_dim: 128", "head_dim: 127", "odd_head_dim", "modules.language.head_dim",
         "even number"},
        {"language", "ffn: 11008", "ffn: 11007", "ffn_not_divisible_by_tp", "modules.language.ffn",
         "is 11007"},
        {"language", "mlp: swiglu", "mlp: swigul", "unknown_value", "modules.language.mlp",
         "did you mean `swiglu`"},
        {"language", "vocab: 32000", "vocab: 32001", "vocab_not_divisible_by_tp",
         "modules.language.vocab", "is 32001"},
        {"language", "vocab: 32000", "", "missing_key", "modules.language.vocab",
         "for a language module"},
        {"language", "vocab: 32000", "vocab: 32000\n    input_dim: 4", "unknown_key",
         "modules.language.input_dim", "an encoder only"},
        {"images", "input_dim: 588", "", "missing_key", "modules.images.input_dim",
         "for an encoder"},
        {"language", "seq: 2048", "seq: 676", "sequence_too_short", "modules.language.seq",
         "at least 678"},
        {"language", "seq: 2048", "seq: 2047", "seq_not_divisible_by_tp", "modules.language.seq",
         "cp * tp, which is 2"},
        {"language", "vocab: 32000", "vocab: 32000\n    frozen: backbone", "backbone_of_language",
         "modules.language.frozen", "true or false"},
        {"images", "frozen: false", "frozen: \"true\"", "wrong_type", "modules.images.frozen",
         "is the text \"true\""},
        {"images", "frozen: false", "frozen: backbon", "unknown_value", "modules.images.frozen",
         "did you mean `backbone`"},
        {"images", "dp: 1, ", "", "missing_key", "modules.images.parallel.dp", "from 1 to 1048576"},
        {"images", "offset: 0", "offset: -1", "out_of_range", "modules.images.parallel.offset",
         "from 0"},
        {"images", "offset: 0", "ofset: 0", "unknown_key", "modules.images.parallel.ofset",
         "did you mean `offset`"},
        {"language", "offset: 6", "offset: 5", "rank_ranges_overlap",
         "modules.language.parallel.offset", "sound has ranks 4 to 5"},
        {"language", "offset: 6", "offset: 7", "gap_between_modules",
         "modules.language.parallel.offset", "end with 5; expected 6"},
        {"language", "dp: 2, offset: 6", "dp: 3, offset: 6", "dp_not_pairwise_divisible",
         "modules.language.parallel.dp", "sound has 2"},
        {"sound", "tp: 1, dp: 2", "tp: 1, ep: 3, dp: 2", "expert_span_not_divisible",
         "modules.sound.parallel.ep", "etp * ep 3"},
        {"language", "dp: 2, offset: 6", "cp: 3, dp: 2, offset: 6", "seq_not_divisible_by_cp",
         "modules.language.seq", "cp, which is 3"},
        {"language", "[13, 11]", "[13, 12]", "stage_layers_sum",
         "modules.language.parallel.stage_layers", "25 layers in all; expected 24"},
        {"language", "[13, 11]", "[8, 8, 8]", "stage_layers_length",
         "modules.language.parallel.stage_layers", "3 stages"},
        {"language", "[13, 11]", "[24, 0]", "out_of_range",
         "modules.language.parallel.stage_layers[1]", "is 0"},
        {"edges", "[sound, language]", "[sound, langage]", "unknown_value", "edges[0][1]",
         "did you mean `language`"},
        {"edges", "[sound, language]", "[sound]", "wrong_type", "edges[0]", "expected a pair"},
        {"edges", "[sound, language]", "[images, language]", "duplicate_edge", "edges[1]",
         "first on line"},
        {"edges", "[sound, language]", "[sound, sound]", "cycle", "edges", "sound -> sound"},
        {"edges", "[images, language]", "[images, sound], [sound, images]", "cycle", "edges",
         "images -> sound -> images"},
        {"edges", "[sound, language], ", "", "module_does_not_reach_language", "edges",
         "from sound to language"},
        {"step", "1f1b", "1f1", "unknown_value", "step.schedule", "did you mean `1f1b`"},
        {"step", "microbatches: 8", "microbatches: 1048577", "out_of_range", "step.microbatches",
         "from 1 to 1048576"},
        {"step", "micro_batch: 3", "micro_batch: 2147483647", "out_of_range", "step.micro_batch",
         "at most 2147483647"},
        {"step", "grad_overlap: false", "grad_overlap: no", "wrong_type", "step.grad_overlap",
         "true or false"},
        {"step", "grad_overlap: false", "grad_overlap: True", "wrong_type", "step.grad_overlap",
         "true or false"},
        {"step", "selective", "some", "unknown_value", "step.recompute", "none, selective, full"},
        {"optimizer", "type: adamw", "type: sgd", "unknown_value", "optimizer.type", "adamw"},
        {"optimizer", "lr: 1.0e-3", "lr: .nan", "out_of_range", "optimizer.lr", "is .nan"},
        {"optimizer", "lr: 1.0e-3", "lr: -1", "out_of_range", "optimizer.lr", "is -1"},
        {"optimizer", "lr: 1.0e-3", "lr: 1e400", "out_of_range", "optimizer.lr", "is 1e400"},
        {"optimizer", "lr: 1.0e-3", "lr: fast", "wrong_type", "optimizer.lr", "is the text"},
        {"optimizer", "beta1: 0.8", "beta1: 1", "out_of_range", "optimizer.beta1", "below 1"},
        {"precision", "fp32", "fp16", "unknown_value", "precision", "bf16, fp32"},
        {"seed", "4294967295", "4294967296", "out_of_range", "seed", "from 0 to 4294967295"},
        {"data", "images:", "imagse:", "unknown_key", "data.imagse", "did you mean `images`"},
        {"data", "images:", "language:", "unknown_key", "data.language", "tokens, images, sound"},
        {"data", "text.u16", "[]", "wrong_type", "data.tokens", "the path of a file"}};
    return cr_make_param_array(struct mistake, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct mistake *m, plan, one_mistake_is_told_once_with_its_place)
{
    reading r = read_edited(m->after, m->from, m->to);
    cr_assert_eq(r.status, TD_OK, "%s", r.err.text);
    cr_assert_not_null(r.diags.head, "`%s` was accepted", m->to);
    const td_diag *one = r.diags.head;
    const char *text = td_diag_text(&r.diags, one);
    cr_assert_str_eq(one->rule, m->rule, "%s", text);
    cr_assert_str_eq(one->path, m->path, "%s", text);
    cr_assert_not_null(strstr(one->message, m->says), "%s", text);
    cr_assert(one->at.line > 0 && one->at.column > 0, "%s", text);
    cr_assert_eq(r.diags.n_errors, 1, "%s, then %s", text,
                 one->next == NULL ? "" : td_diag_text(&r.diags, one->next));
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_diag_status(&r.diags, &err), TD_PLAN);
    cr_assert_str_eq(err.text, text);
    td_arena_free(r.arena);
}

/* What is allowed although it looks odd: the edit leaves a valid plan. */
struct allowance {
    char after[24], from[48], to[160];
};

ParameterizedTestParameters(plan, odd_but_right_is_accepted)
{
    static struct allowance table[] = {{"images", "layers: 24", "layers: 65536"},
                                       {"images", "layers: 24", "layers: 0x18"},
                                       {"images", "layers: 24", "layers: 0o30"},
                                       {"images", "layers: 24", "layers: +24"},
                                       {"images", "layers: 24", "? layers\n    : 24"},
                                       {"images", "frozen: false", "frozen: backbone"},
                                       {"images", "frozen: false", "frozen: true"},
                                       {"images", "tp: 2, pp: 2, dp: 1, offset: 0",
                                        "offset: 0, pp: 2, stage_layers: [23, 1], tp: 2, dp: 1"},
                                       {"language", "kv_heads: 8", "kv_heads: 1"},
                                       {"language", "heads: 32", "heads: 24"},
                                       {"language", "seq: 2048", "seq: 678"},
                                       {"step", "microbatches: 8", "microbatches: 1048576"},
                                       {"edges", "[sound, language]", "[sound, images]"},
                                       {"optimizer", "lr: 1.0e-3", "lr: 1"},
                                       {"optimizer", "lr: 1.0e-3", "lr: .5"},
                                       {"precision", "fp32", "\"fp32\""},
                                       {"name", "name", "%YAML 1.2\n---\nname"},
                                       {"name", "full", "\"\\u00e9\\ud83d\\ude00\""},
                                       {"data", "data:", "# nothing more\ndata:"}};
    return cr_make_param_array(struct allowance, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct allowance *e, plan, odd_but_right_is_accepted)
{
    reading r = read_edited(e->after, e->from, e->to);
    assert_clean(&r);
    td_arena_free(r.arena);
}

/* Escapes stand for bytes that a C string cannot hold: `size` counts. */
struct wreck {
    char bytes[64], says[64];
    int size; /* 0: strlen */
    int line, column;
};

ParameterizedTestParameters(plan, what_is_no_plan_is_a_bad_file_with_its_place)
{
    static struct wreck table[] = {{"# only this\n", "nothing in the file", 0, 0, 0},
                                   {"a\0b", "NUL byte", 3, 1, 2},
                                   {"[1, 2]", "is a list", 0, 1, 1},
                                   {"hello", "is the text \"hello\"", 0, 1, 1},
                                   {"a: [1, 2\n", "not YAML", 0, 2, 1},
                                   {"a: 1\n---\nb: 2\n", "second document", 0, 2, 1},
                                   {"a: *b\n", "alias `*b` has no anchor", 0, 1, 4},
                                   {"a: &a [*a]\n", "never ends", 0, 1, 8},
                                   {"a: !x 1\n", "a tag", 0, 1, 7},
                                   {"a: \"\\0\"\n", "NUL character", 0, 1, 4},
                                   {"a: \"\xff\xfe\"\n", "not UTF-8", 0, 1, 5},
                                   {"a: \"\xc3\xa9\xc0\x80\"\n", "not UTF-8", 0, 1, 6},
                                   {"a: \xed\xa0\x80\n", "not UTF-8", 0, 1, 4},
                                   {"a: \xc3", "not UTF-8", 0, 1, 4},
                                   {"a: \x1b[1m\n", "control character", 0, 1, 4},
                                   {"%TAG !a! b\n---\na: 1\n", "a directive", 0, 1, 1},
                                   {"%YAML 1.2\n%YAML 1.2\n---\na: 1\n", "a directive", 0, 2, 1},
                                   {"a: 1\n\tb: 2\n", "not YAML", 0, 1, 4},
                                   {"\xff\xfe\x61\x00", "not UTF-8", 4, 1, 1}};
    return cr_make_param_array(struct wreck, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct wreck *w, plan, what_is_no_plan_is_a_bad_file_with_its_place)
{
    reading r = read_bytes(w->bytes, w->size > 0 ? (size_t)w->size : strlen(w->bytes));
    char place[48] = "folder/p.yaml: ";
    if (w->line > 0)
        snprintf(place, sizeof place, "folder/p.yaml:%d:%d: ", w->line, w->column);
    cr_assert_eq(r.status, TD_FILE);
    cr_assert_not_null(strstr(r.err.text, w->says), "%s", r.err.text);
    cr_assert_eq(strncmp(r.err.text, place, strlen(place)), 0, "%s instead of %s", r.err.text,
                 place);
    cr_assert_null(r.plan);
    td_arena_free(r.arena);
}

Test(plan, every_truncation_of_a_json_plan_is_a_bad_file)
{
    for (size_t n = 0; n < strlen(least); n++) {
        reading r = read_bytes(least, n);
        cr_assert_eq(r.status, TD_FILE, "%zu bytes", n);
        td_arena_free(r.arena);
    }
}

Test(plan, no_truncation_of_a_yaml_plan_passes_for_the_whole)
{
    const size_t essential = (size_t)(strstr(full, "edges:") - full) - 1; /* defaults follow */
    for (size_t n = 0; n < essential; n++) {
        const bool cut_in_a_number = n > 0 && full[n - 1] >= '0' && full[n - 1] <= '9';
        reading r = read_bytes(full, n);
        cr_assert(r.status == TD_FILE || r.diags.n_errors > 0 || cut_in_a_number, "%zu bytes", n);
        td_arena_free(r.arena);
    }
}

/* A repeated piece that stands for far more than it is, or would take a stack or a quadratic time.
 */
struct hostility {
    char head[16], piece[40], tail[16], says[48];
    int times;
};

ParameterizedTestParameters(plan, hostile_files_end_soon_and_small)
{
    static struct hostility table[] = {{"a: ", "[", "", "that is no plan", 16 << 20},
                                       {"a: ", "[", "", "nested more than 32 deep", 100000},
                                       {"", "- ", "", "nested more than 32 deep", 100000},
                                       {"", "{a: ", "", "nested more than 32 deep", 30000},
                                       {"", "? ", "", "nested more than 32 deep", 100000},
                                       {"[", "1,", "1]", "that is no plan", 8 << 20},
                                       {"", "-\n", "", "131072 nodes", 200000},
                                       {"", "- &a 1\n", "", "256 anchors", 257},
                                       {"a: !<", "x", "> 1", "256 characters", 100000},
                                       {"a: |\n", "   x\n", "", "65536 bytes", 100000},
                                       {"a: \"", "\\n ", "\"", "65536 bytes", 5 << 20},
                                       {"", "a", "", "16 MiB", (16 << 20) + 1}};
    return cr_make_param_array(struct hostility, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct hostility *h, plan, hostile_files_end_soon_and_small, .timeout = 20)
{
    const size_t head = strlen(h->head), piece = strlen(h->piece), tail = strlen(h->tail);
    const size_t size = head + piece * (size_t)h->times + tail;
    char *text = malloc(size + 1);
    cr_assert_not_null(text);
    strcpy(text, h->head);
    for (int i = 0; i < h->times; i++)
        memcpy(text + head + piece * (size_t)i, h->piece, piece);
    strcpy(text + size - tail, h->tail);
    reading r = read_bytes(text, size);
    cr_assert_eq(r.status, TD_FILE);
    cr_assert_not_null(strstr(r.err.text, h->says), "%s", r.err.text);
    cr_assert_lt(td_arena_used(r.arena), (size_t)(32 << 20));
    td_arena_free(r.arena);
    free(text);
}

Test(plan, an_alias_bomb_is_refused_before_it_goes_off, .timeout = 5)
{
    char text[4096];
    int n = snprintf(text, sizeof text, "a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for (int i = 1; i < 30; i++)
        n += snprintf(text + n, sizeof text - (size_t)n,
                      "a%d: &a%d [*a%d,*a%d,*a%d,*a%d,*a%d,*a%d]\n", i, i, i - 1, i - 1, i - 1,
                      i - 1, i - 1, i - 1);
    reading r = read_text(text);
    cr_assert_eq(r.status, TD_FILE);
    cr_assert_not_null(strstr(r.err.text, "when written out"), "%s", r.err.text);
    cr_assert_lt(td_arena_used(r.arena), (size_t)(1 << 20));
    td_arena_free(r.arena);
}

Test(plan, aliases_and_merges_mean_what_they_stand_for)
{
    reading r = read_text(
        "cluster: " CLUSTER "\n"
        "modules:\n"
        "  a: &a {type: vision, layers: 2, hidden: 16, heads: 4, ffn: 16, seq: 4, input_dim: 4, "
        "parallel: &p {tp: 2, dp: 2}}\n"
        "  b: {<<: *a, type: audio, parallel: {<<: *p, offset: 4}}\n"
        "  language: {type: language, layers: 2, hidden: 16, heads: 4, ffn: 16, vocab: 16, seq: "
        "64, "
        "parallel: {<<: [{offset: 8}, {offset: 9, cp: 1}, *p]}}\n");
    assert_clean(&r);
    cr_assert_eq(r.plan->modules[1].type, &td_module_audio);
    cr_assert_eq(r.plan->modules[1].input_dim, 4);
    cr_assert_eq(r.plan->modules[1].tp, 2);
    cr_assert_eq(r.plan->modules[1].offset, 4);
    cr_assert_eq(r.plan->modules[2].offset, 8);
    cr_assert_eq(r.plan->modules[2].raw.cp, 1);
    td_arena_free(r.arena);
}

Test(plan, raw_sizes_survive_whatever_else_is_wrong)
{
    reading r = read_text(
        "modules:\n"
        "  images: {layers: x, parallel: {tp: 3, pp: -2, dp: 10000000000, ep: 1.5, offset: 0}}\n"
        "  language: {}\n");
    cr_assert_eq(r.status, TD_OK);
    cr_assert_gt(r.diags.n_errors, 5);
    const td_parallel_raw *raw = &r.plan->modules[0].raw;
    cr_assert(raw->present && raw->has_offset);
    cr_assert(raw->tp == 3 && raw->cp == 0 && raw->pp == -2 && raw->dp == INT64_C(10000000000));
    cr_assert(raw->ep == 0 && raw->etp == 0 && raw->offset == 0);
    cr_assert_not(r.plan->modules[1].raw.present);
    cr_assert_not_null(r.plan->modules[1].stage_layers);
    td_arena_free(r.arena);
}

Test(plan, language_is_one_module_of_that_name_and_type)
{
    static const struct {
        const char *text, *rule, *path;
    } rows[] = {{"{cluster: " CLUSTER ", modules: {}}", "language_module_missing", "modules"},
                {"{cluster: " CLUSTER
                 ", modules: {text: {type: language, layers: 2, hidden: 64, heads: 4, ffn: 128, "
                 "vocab: 100, seq: 32, parallel: {dp: 1}}}}",
                 "language_module_missing", "modules"},
                {"{cluster: " CLUSTER
                 ", modules: {language: {type: audio, layers: 2, hidden: 64, heads: 4, ffn: 128, "
                 "input_dim: 8, seq: 32, parallel: {dp: 1}}}}",
                 "language_module_missing", "modules.language.type"},
                {"{cluster: " CLUSTER
                 ", modules: {text: &l {type: language, layers: 2, hidden: 64, heads: 4, ffn: 128, "
                 "vocab: 100, seq: 32, parallel: {dp: 1, offset: 0}}, language: {<<: *l, seq: 64, "
                 "parallel: {dp: 1, "
                 "offset: 1}}}}",
                 "second_language_module", "modules.text.type"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        reading r = read_text(rows[i].text);
        bool told = false;
        for (const td_diag *one = r.diags.head; one != NULL; one = one->next)
            told = told ||
                   (strcmp(one->rule, rows[i].rule) == 0 && strcmp(one->path, rows[i].path) == 0);
        cr_assert(told, "row %zu", i);
        td_arena_free(r.arena);
    }
}

Test(plan, more_modules_than_a_plan_may_have_are_one_error_that_hides_no_language)
{
    char text[20000];
    size_t n = (size_t)snprintf(text, sizeof text, "{cluster: " CLUSTER ", modules: {");
    for (int i = 0; i < TD_MAX_MODULES; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "e%d: {type: vision, layers: 2, hidden: 64, heads: 4, ffn: 128, "
                              "seq: 4, input_dim: 12, parallel: {dp: 1, offset: %d}}, ",
                              i, i);
    snprintf(text + n, sizeof text - n,
             "language: {type: language, layers: 2, hidden: 64, heads: 4, ffn: 128, vocab: 100, "
             "seq: 512, parallel: {dp: 1, offset: 64}}}, edges: [[e0, language]]}");
    reading r = read_text(text);
    int told = 0;
    for (const td_diag *one = r.diags.head; one != NULL; one = one->next) {
        told += strstr(one->message, "there are 65 modules; expected at most 64") != NULL;
        cr_expect_str_neq(one->rule, "language_module_missing");
        cr_expect_null(strstr(one->path, "edges"), "%s", one->message);
    }
    cr_expect_eq(told, 1);
    td_arena_free(r.arena);
}

Test(plan, what_cannot_be_executed_yet_is_valid_but_named)
{
    static const struct {
        const char *add, *says;
    } rows[] = {{"cp: 2, offset: 6", "modules.language.parallel: cp is 2"},
                {"ep: 2, offset: 6", "modules.language.parallel: ep is 2"},
                {"etp: 1, offset: 6", "modules.language.parallel: etp is 1"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        td_err err = {TD_OK, ""};
        reading r = read_edited("language:", "offset: 6", rows[i].add);
        assert_clean(&r);
        cr_assert_eq(td_plan_executable(r.plan, &err), TD_PLAN);
        cr_assert_not_null(strstr(err.text, rows[i].says), "%s", err.text);
        td_arena_free(r.arena);
    }
    reading r = read_text(full);
    cr_assert_eq(td_plan_executable(r.plan, NULL), TD_OK);
    td_arena_free(r.arena);
}

Test(plan, files_that_cannot_be_read_are_bad_files)
{
    static const char *const paths[] = {"/nonexistent/plan.yaml", "/", "/dev/null", "/dev/zero"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        td_arena *a = td_arena_new();
        td_diags diags = {.arena = a};
        const td_plan *plan = NULL;
        td_err err = {TD_OK, ""};
        cr_assert_eq(td_plan_load(a, paths[i], &diags, &plan, &err), TD_FILE);
        cr_assert_eq(strncmp(err.text, paths[i], strlen(paths[i])), 0, "%s", err.text);
        cr_assert_null(plan);
        td_arena_free(a);
    }
}

Test(diags, are_bounded_but_counted_and_keep_the_first_error)
{
    td_arena *a = td_arena_new();
    td_diags d = {.arena = a};
    for (int i = 0; i < 2 * TD_DIAG_LIMIT; i++)
        td_diag_warn(&d, (td_pos){0}, "", "w", "warning %d", i);
    td_diag_error(&d, (td_pos){"f", 3, 4}, "a.b", "e", "is %d", 5);
    td_diag_error(&d, (td_pos){"f", 3, 5}, "a.c", "e", "is %d", 6);
    cr_assert_eq(d.n_warnings, 2 * TD_DIAG_LIMIT);
    cr_assert_eq(d.n_errors, 2);
    int kept = 0;
    for (const td_diag *one = d.head; one != NULL; one = one->next)
        kept++;
    cr_assert_eq(kept, TD_DIAG_LIMIT + 1);
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_diag_status(&d, &err), TD_PLAN);
    cr_assert_str_eq(err.text, "f:3:4: a.b: is 5");
    td_arena_free(a);
}
