/*
 * What makes a plan valid. Every check looks only at what was readable, so that one mistake is told
 * once; sizes that were not readable are 0 and layouts that were not are skipped.
 */
#include "model/plan_read.h"

#include "model/module.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* One sentence about a key of module `i`, at the key's place. */
static void wrong(td_plan_draft *d, int32_t i, const char *key, const char *rule,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));

static void wrong(td_plan_draft *d, int32_t i, const char *key, const char *rule,
                  const char *format, ...)
{
    td_reader *r = d->reader;
    const td_map *map = &d->sources[i].map;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (strncmp(key, "parallel.", 9) == 0) {
        map = &d->sources[i].parallel;
        key += 9;
    }
    td_diag_error(r->diags, td_map_at(map, key), td_path_key(r, map->path, key), rule, "%s", text);
}

static bool written(const td_plan_draft *d, int32_t i, const char *key)
{
    return td_map_get(&d->sources[i].map, key) != NULL;
}

static bool is_language(const td_module *m)
{
    return m->type != NULL && m->type->language;
}

/* ---- one module ---- */

/* Keys that only one kind of module has: `vocab` and `input_dim`. */
static void check_own_key(td_plan_draft *d, int32_t i, const char *key, bool has, const char *whose)
{
    const bool is = written(d, i, key);
    if (has && !is)
        wrong(d, i, key, "missing_key", "is missing; expected it for %s", whose);
    if (!has && is)
        wrong(d, i, key, "unknown_key", "belongs to %s only; expected none here", whose);
}

static void check_kind(td_plan_draft *d, int32_t i)
{
    const td_module *m = &d->modules[i];
    const bool named = i == d->plan.language;
    if (m->type == NULL)
        return;
    if (named && !is_language(m))
        wrong(d, i, "type", "language_module_missing",
              "is %s, but the name `language` is reserved; expected type language", m->type->name);
    if (!named && is_language(m))
        wrong(d, i, "type", "second_language_module",
              "is language; expected that of the module named `language` only");
    check_own_key(d, i, "vocab", is_language(m), "a language module");
    check_own_key(d, i, "input_dim", !is_language(m), "an encoder");
    if (m->frozen == TD_FROZEN_BACKBONE && is_language(m))
        wrong(d, i, "frozen", "backbone_of_language",
              "is backbone, which leaves an encoder's projector to train; expected true or false");
}

static void check_heads(td_plan_draft *d, int32_t i)
{
    const td_module *m = &d->modules[i];
    if (m->heads == 0)
        return;
    if (m->hidden > 0 && !written(d, i, "head_dim") && m->hidden % m->heads != 0)
        wrong(d, i, "heads", "hidden_not_divisible_by_heads",
              "is %d, which does not divide hidden %d; expected a divisor, or `head_dim`", m->heads,
              m->hidden);
    if (m->kv_heads > m->heads)
        wrong(d, i, "kv_heads", "more_kv_heads_than_heads", "is %d; expected at most heads, %d",
              m->kv_heads, m->heads);
    if ((int64_t)m->heads * m->head_dim > INT32_MAX)
        wrong(d, i, "head_dim", "out_of_range",
              "makes heads * head_dim %lld; expected at most 2147483647",
              (long long)m->heads * m->head_dim);
    if (m->type != NULL && m->type->rotary && m->head_dim % 2 != 0)
        wrong(d, i, "head_dim", "odd_head_dim",
              "is %d; expected an even number, because rotary positions turn pairs", m->head_dim);
}

static void check_divides(td_plan_draft *d, int32_t i, const char *key, int32_t value,
                          const char *by_key, int32_t by, const char *rule)
{
    if (value > 0 && value % by != 0)
        wrong(d, i, key, rule, "is %d; expected a multiple of %s, which is %d", value, by_key, by);
}

static void check_shards(td_plan_draft *d, int32_t i)
{
    const td_module *m = &d->modules[i];
    check_divides(d, i, "heads", m->heads, "tp", m->tp, "heads_not_divisible_by_tp");
    check_divides(d, i, "ffn", m->ffn, "tp", m->tp, "ffn_not_divisible_by_tp");
    if (is_language(m))
        check_divides(d, i, "vocab", m->vocab, "tp", m->tp, "vocab_not_divisible_by_tp");
    if (written(d, i, "kv_heads") && m->kv_heads > 0 && m->kv_heads % m->tp != 0 &&
        m->tp % m->kv_heads != 0)
        wrong(d, i, "kv_heads", "kv_heads_not_divisible_by_tp",
              "is %d; expected a multiple or a divisor of tp, which is %d", m->kv_heads, m->tp);
    check_divides(d, i, "seq", m->seq, "cp", m->cp, "seq_not_divisible_by_cp");
    if (d->plan.step.sequence_parallel && m->seq % m->cp == 0 && m->seq / m->cp % m->tp != 0)
        wrong(d, i, "seq", "seq_not_divisible_by_tp",
              "is %d; expected a multiple of cp * tp, which is %lld, because of sequence_parallel",
              m->seq, (long long)m->cp * m->tp);
    const int32_t l = d->plan.language;
    if (m->type != NULL && !is_language(m) && l >= 0 && d->modules[l].hidden % m->tp != 0)
        wrong(
            d, i, "parallel.tp", "projector_not_divisible_by_tp",
            "is %d; expected a divisor of the language module's hidden, %d, which is the width of "
            "the projector",
            m->tp, d->modules[l].hidden);
}

static void check_stages(td_plan_draft *d, int32_t i)
{
    const td_module *m = &d->modules[i];
    const td_module_source *s = &d->sources[i];
    if (m->layers == 0)
        return;
    if (s->n_stage_layers < 0) {
        if (s->stage_layers == NULL && m->layers % m->pp != 0)
            wrong(d, i, "layers", "layers_not_divisible_by_stages",
                  "is %d; expected a multiple of pp, which is %d, or `stage_layers`", m->layers,
                  m->pp);
        return;
    }
    int64_t sum = 0;
    for (int32_t k = 0; k < s->n_stage_layers; k++)
        sum += s->stage_layers[k];
    if (s->n_stage_layers != m->pp)
        td_diag_error(d->reader->diags, s->stage_layers_at, s->stage_layers_path,
                      "stage_layers_length", "has %d stages; expected pp of them, which is %d",
                      s->n_stage_layers, m->pp);
    else if (sum != m->layers)
        td_diag_error(d->reader->diags, s->stage_layers_at, s->stage_layers_path,
                      "stage_layers_sum", "has %lld layers in all; expected %d, as `layers` says",
                      (long long)sum, m->layers);
}

static void check_experts(td_plan_draft *d, int32_t i)
{
    td_module *m = &d->modules[i];
    const int64_t ranks = td_grid_size(&m->grid) / m->pp, experts = (int64_t)m->etp * m->ep;
    const char *rule = "view_size_mismatch";
    td_err err = {TD_OK, ""};
    if (ranks % experts != 0)
        wrong(d, i, "parallel.ep", "expert_span_not_divisible",
              "makes etp * ep %lld; expected a divisor of tp * cp * dp, which is %lld",
              (long long)experts, (long long)ranks);
    else if (td_grid_check_view(&m->grid, &m->expert, &rule, &err) != TD_OK)
        wrong(d, i, "parallel.ep", rule, "%s", err.text);
}

/* Beyond this many elements the products that memory and work are made of would leave 64 bits. */
static void check_magnitude(td_plan_draft *d, int32_t i)
{
    const double most = 72057594037927936.0; /* 2^56 */
    const td_module *m = &d->modules[i], *lang = &d->modules[d->plan.language];
    const int64_t batch = (int64_t)d->plan.step.micro_batch * lang->dp;
    if (batch > INT32_MAX) /* told by check_data_lanes() */
        return;
    const double samples = (double)batch / m->dp + 1;
    double width = m->hidden;
    const double widths[] = {m->ffn, m->vocab, m->input_dim, lang->hidden,
                             (double)m->heads * m->head_dim};
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++)
        width = widths[k] > width ? widths[k] : width;
    if (width * width * m->layers > most)
        wrong(d, i, "hidden", "out_of_range",
              "gives, with the module's other sizes, parameters of more than 2^56 elements");
    if (samples * m->seq * width * m->layers > most ||
        samples * m->seq * m->seq * m->heads * m->layers > most)
        wrong(d, i, "seq", "out_of_range",
              "gives, with the module's other sizes, activations of more than 2^56 elements");
}

/* ---- all modules ---- */

static void check_ranks(td_plan_draft *d)
{
    int32_t order[TD_MAX_MODULES], n = 0;
    for (int32_t i = 0; i < d->plan.n_modules; i++) { /* by offset, then as in the file */
        int32_t k = n++;
        for (; k > 0 && d->modules[order[k - 1]].offset > d->modules[i].offset; k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    for (int32_t k = 1; k < n; k++) {
        const td_module *m = &d->modules[order[k]], *before = &d->modules[order[k - 1]];
        const int64_t end = before->offset + td_grid_size(&before->grid);
        if (m->offset < end)
            wrong(d, order[k], "parallel.offset", "rank_ranges_overlap",
                  "is %d, but %s has ranks %d to %lld; expected at least %lld", m->offset,
                  before->name, before->offset, (long long)end - 1, (long long)end);
        else if (m->offset > end)
            wrong(d, order[k], "parallel.offset", "gap_between_modules",
                  "is %d, but the ranks of %s end with %lld; expected %lld, without a hole",
                  m->offset, before->name, (long long)end - 1, (long long)end);
    }
    const td_module_source *first = &d->sources[order[0]];
    if (d->modules[order[0]].offset > 0)
        td_diag_warn(d->reader->diags, td_map_at(&first->parallel, "offset"),
                     td_path_key(d->reader, first->parallel.path, "offset"), "leading_idle_ranks",
                     "is %d, the lowest of all: the ranks before it are idle",
                     d->modules[order[0]].offset);
    const td_cluster *c = d->plan.cluster;
    if (c != NULL && d->plan.world_size > c->n_gpus)
        td_diag_error(d->reader->diags, td_map_at(&d->root, "cluster"), "cluster",
                      "world_exceeds_cluster",
                      "has %lld GPUs, but the plan has %lld ranks; expected at least as many GPUs",
                      (long long)c->n_gpus, (long long)d->plan.world_size);
}

static bool check_size(td_plan_draft *d, int32_t i)
{
    const td_module *m = &d->modules[i];
    const int64_t size = td_grid_size(&m->grid);
    const bool fits = size <= TD_MAX_RANKS - m->offset;
    if (!fits)
        wrong(d, i, "parallel.dp", "out_of_range",
              "makes tp * cp * pp * dp + offset exceed the limit; expected at most %d ranks",
              TD_MAX_RANKS);
    return fits;
}

static bool divisible(int32_t x, int32_t y)
{
    return x % y == 0 || y % x == 0;
}

static void check_data_lanes(td_plan_draft *d)
{
    for (int32_t i = 0; i < d->plan.n_modules; i++)
        for (int32_t k = 0; k < i; k++)
            if (!divisible(d->modules[i].dp, d->modules[k].dp))
                wrong(d, i, "parallel.dp", "dp_not_pairwise_divisible",
                      "is %d, and %s has %d; expected one to be a multiple of the other",
                      d->modules[i].dp, d->modules[k].name, d->modules[k].dp);
    if (d->plan.language < 0)
        return;
    const int32_t lanes = d->modules[d->plan.language].dp;
    const int64_t samples = (int64_t)d->plan.step.micro_batch * lanes;
    if (samples > INT32_MAX)
        td_diag_error(d->reader->diags, td_map_at(&d->step, "micro_batch"), "step.micro_batch",
                      "out_of_range", "makes a microbatch of %lld samples; expected at most %d",
                      (long long)samples, INT32_MAX);
    for (int32_t i = 0; i < d->plan.n_modules; i++)
        if (divisible(d->modules[i].dp, lanes) && samples % d->modules[i].dp != 0)
            wrong(d, i, "parallel.dp", "microbatch_not_divisible_by_encoder_dp",
                  "is %d; expected a divisor of a microbatch's micro_batch * dp of language = %lld "
                  "samples",
                  d->modules[i].dp, (long long)samples);
}

/* Loss is counted where a position and its successor are text: two positions of text make one. */
static void check_sequence(td_plan_draft *d)
{
    int64_t taken = 0;
    if (d->plan.language < 0 || d->modules[d->plan.language].seq == 0)
        return;
    for (int32_t i = 0; i < d->plan.n_modules; i++)
        taken += i == d->plan.language ? 0 : d->modules[i].seq;
    const int32_t seq = d->modules[d->plan.language].seq;
    if (seq < taken + 2)
        wrong(
            d, d->plan.language, "seq", "sequence_too_short",
            "is %d, of which encoders take %lld; expected at least %lld, so that two positions of "
            "text remain",
            seq, (long long)taken, (long long)taken + 2);
}

/* ---- edges ---- */

/* Depth-first from `at`; `state` 1: on the way here, 2: done. Names the cycle that it finds and
 * stops. */
static bool find_cycle(td_plan_draft *d, int32_t at, int32_t *state, int32_t *way, int32_t depth)
{
    state[at] = 1;
    way[depth] = at;
    for (int32_t e = 0; e < d->plan.n_edges; e++) {
        const td_edge edge = d->plan.edges[e];
        if (edge.src != at || state[edge.dst] == 2)
            continue;
        if (state[edge.dst] == 0) {
            if (find_cycle(d, edge.dst, state, way, depth + 1))
                return true;
            continue;
        }
        char text[400] = "";
        size_t n = 0;
        int32_t k = depth;
        while (way[k] != edge.dst)
            k--;
        for (; k <= depth && n < sizeof text; k++)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s -> ", d->modules[way[k]].name);
        td_diag_error(d->reader->diags, d->written[at][edge.dst], "edges", "cycle",
                      "go in a circle: %s%s; expected none", text, d->modules[edge.dst].name);
        return true;
    }
    state[at] = 2;
    return false;
}

static void check_edges(td_plan_draft *d)
{
    const td_plan *plan = &d->plan;
    int32_t state[TD_MAX_MODULES] = {0}, way[TD_MAX_MODULES];
    bool reaches[TD_MAX_MODULES] = {false}, grew = true, cyclic = false;
    const td_pos at = td_map_at(&d->root, "edges");
    for (int32_t i = 0; i < plan->n_modules && !cyclic; i++)
        cyclic = state[i] == 0 && find_cycle(d, i, state, way, 0);
    if (plan->language < 0 || cyclic)
        return;
    for (int32_t e = 0; e < plan->n_edges; e++)
        if (plan->edges[e].src == plan->language)
            td_diag_error(d->reader->diags, d->written[plan->language][plan->edges[e].dst], "edges",
                          "terminal_module_is_not_language",
                          "go from language to %s; expected language to be where everything ends",
                          d->modules[plan->edges[e].dst].name);
    reaches[plan->language] = true;
    while (grew) {
        grew = false;
        for (int32_t e = 0; e < plan->n_edges; e++) {
            const td_edge edge = plan->edges[e];
            if (reaches[edge.dst] && !reaches[edge.src])
                grew = reaches[edge.src] = true;
        }
    }
    for (int32_t i = 0; i < plan->n_modules && d->edges_known; i++)
        if (!reaches[i])
            td_diag_error(d->reader->diags, at, "edges", "module_does_not_reach_language",
                          "do not lead from %s to language; expected a way", d->modules[i].name);
}

void td_plan_check(td_plan_draft *d)
{
    const td_plan *plan = &d->plan;
    bool all_known = true, trains = false;
    if (plan->language < 0 && !d->modules_cut)
        td_diag_error(d->reader->diags, d->modules_at, "modules", "language_module_missing",
                      "has no module named `language`; expected exactly one");
    for (int32_t i = 0; i < plan->n_modules; i++) {
        const bool known = d->sources[i].parallel_known && check_size(d, i);
        check_kind(d, i);
        check_heads(d, i);
        if (known) {
            check_shards(d, i);
            check_stages(d, i);
            check_experts(d, i);
        }
        if (known && plan->language >= 0)
            check_magnitude(d, i);
        all_known = all_known && known;
        trains = trains || d->modules[i].frozen != TD_FROZEN_TRUE;
    }
    if (all_known && plan->n_modules > 0) {
        check_ranks(d);
        check_data_lanes(d);
    }
    check_sequence(d);
    check_edges(d);
    if (!trains && plan->n_modules > 0)
        td_diag_warn(d->reader->diags, d->modules_at, "modules", "nothing_trains",
                     "are all frozen: the step changes no parameter");
}
