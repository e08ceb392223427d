/* A ruleset is a list of checks that run until one objects; the sources name the method each check
 * stands for. */
#include "model/rulesets.h"

#include "model/bridge.h"

#include <string.h>

const char *const td_ruleset_names[TD_N_RULESETS] = {
#define X(r, name) [TD_RULESET_##r] = name,
    TD_RULESET_MAP(X)
#undef X
};

const char *const td_verdict_names[TD_N_VERDICTS] = {
    [TD_VERDICT_ACCEPTED] = "accepted",
    [TD_VERDICT_ACCEPTED_WITH_WARNING] = "accepted_with_warning",
    [TD_VERDICT_REJECTED] = "rejected",
    [TD_VERDICT_NOT_APPLICABLE] = "not_applicable",
};

/* ---- arithmetic on numbers that may be absurd: saturates at +-INT64_MAX, so that every quotient
 * is defined ---- */

static int64_t clamp(int64_t a)
{
    return a == INT64_MIN ? -INT64_MAX : a;
}

static int64_t times(int64_t a, int64_t b)
{
    int64_t r;
    return clamp(!__builtin_mul_overflow(a, b, &r) ? r
                 : (a < 0) == (b < 0)              ? INT64_MAX
                                                   : INT64_MIN);
}

static int64_t plus(int64_t a, int64_t b)
{
    int64_t r;
    return clamp(!__builtin_add_overflow(a, b, &r) ? r : a > 0 ? INT64_MAX : INT64_MIN);
}

/* Is `a` a multiple of `b`? Nothing is a multiple of 0. */
static bool multiple(int64_t a, int64_t b)
{
    return b != 0 && a % b == 0;
}

/* ---- one module ---- */

static bool is_language(const td_ruleset_module *m)
{
    return strcmp(m->name, "language") == 0;
}

static int64_t given(int64_t size, int64_t otherwise)
{
    return size == TD_UNSET ? otherwise : size;
}

/* The same module with its defaults filled in; only dp may stay unset. */
static td_ruleset_module filled(const td_ruleset_module *m)
{
    return (td_ruleset_module){.name = m->name,
                               .tp = given(m->tp, 1),
                               .cp = given(m->cp, 1),
                               .pp = given(m->pp, 1),
                               .dp = m->dp,
                               .ep = given(m->ep, 1),
                               .etp = given(m->etp, 1),
                               .offset = given(m->offset, 0)};
}

static int64_t dense_size(const td_ruleset_module *m)
{
    return times(times(m->tp, m->cp), m->pp);
}

/* phase2 and april multiplied by the expert tensor size; since then it only refactors the same
 * ranks. */
static int64_t model_parallel(td_ruleset_kind r, const td_ruleset_module *m)
{
    return r == TD_RULESET_PHASE2 || r == TD_RULESET_APRIL ? times(dense_size(m), m->etp)
                                                           : dense_size(m);
}

static int64_t ranks_of(td_ruleset_kind r, const td_ruleset_module *m)
{
    return times(model_parallel(r, m), m->dp);
}

static int64_t end_of(td_ruleset_kind r, const td_ruleset_module *m)
{
    return plus(m->offset, ranks_of(r, m));
}

static int64_t expert_span(const td_ruleset_module *m)
{
    return times(m->etp, m->ep);
}

/* ---- what the checks see ---- */

typedef struct {
    td_ruleset_kind ruleset;
    int32_t n;
    td_ruleset_module *modules; /* filled; a dp that was computed stands here too */
    td_ruleset_module *sorted;  /* the same by offset, stable; NULL for a module alone */
    int64_t world;
    td_ruleset_verdict *verdict;
} docket;

/* A check gives the name of the rule that is violated, or NULL. */
typedef const char *check(docket *d);

static void warn(docket *d, const char *warning)
{
    td_ruleset_verdict *v = d->verdict;
    for (int32_t i = 0; i < v->n_warnings; i++)
        if (strcmp(v->warnings[i], warning) == 0)
            return;
    v->warnings[v->n_warnings++] = warning;
}

static const char *language_present(docket *d)
{
    for (int32_t i = 0; i < d->n; i++)
        if (is_language(&d->modules[i]))
            return NULL;
    return "language_module_missing";
}

/* ModuleParallelismConfig.finalize: dp from the world if it is not given. */
static const char *settle_dp(docket *d, td_ruleset_module *m, int64_t world)
{
    if (m->dp != TD_UNSET)
        return NULL;
    if (world == TD_UNSET || world <= 0)
        return "dp_unset_in_heterogeneous";
    const int64_t size = model_parallel(d->ruleset, m);
    if (!multiple(world, size))
        return "world_size_not_divisible";
    m->dp = world / size;
    return NULL;
}

static const char *finalize_early(docket *d, td_ruleset_module *m, int64_t world)
{
    const char *rule = settle_dp(d, m, world);
    if (rule == NULL && m->dp <= 0)
        rule = "nonpositive_data_parallel_size";
    if (rule == NULL && m->etp > 1 && m->pp > 1)
        warn(d, "etp_with_pp");
    return rule;
}

static const char *finalize_current(docket *d, td_ruleset_module *m, int64_t world)
{
    const char *rule = m->tp <= 0      ? "nonpositive_tensor_model_parallel_size"
                       : m->pp <= 0    ? "nonpositive_pipeline_model_parallel_size"
                       : m->cp <= 0    ? "nonpositive_context_parallel_size"
                       : m->ep <= 0    ? "nonpositive_expert_model_parallel_size"
                       : m->etp <= 0   ? "nonpositive_expert_tensor_parallel_size"
                       : m->offset < 0 ? "negative_rank_offset"
                                       : settle_dp(d, m, world);
    if (rule == NULL && m->dp <= 0)
        rule = "nonpositive_data_parallel_size";
    if (rule == NULL && !multiple(times(times(m->tp, m->cp), m->dp), expert_span(m)))
        rule = "expert_span_not_divisible";
    return rule;
}

static const char *finalize(docket *d, td_ruleset_module *m, int64_t world)
{
    return d->ruleset == TD_RULESET_CURRENT ? finalize_current(d, m, world)
                                            : finalize_early(d, m, world);
}

/* With several modules dp is never computed: each is finalized without a world. */
static const char *modules_final(docket *d)
{
    const char *rule = NULL;
    for (int32_t i = 0; i < d->n && rule == NULL; i++)
        rule = finalize(d, &d->modules[i], TD_UNSET);
    return rule;
}

static const char *no_overlap(docket *d)
{
    for (int32_t i = 1; i < d->n; i++)
        if (d->sorted[i].offset < end_of(d->ruleset, &d->sorted[i - 1]))
            return "rank_ranges_overlap";
    return NULL;
}

/* phase2: from the first module's begin to the last one's end every rank is taken; idle ranks
 * before are tolerated. */
static const char *no_gap_between(docket *d)
{
    const int64_t begin = d->sorted[0].offset, end = end_of(d->ruleset, &d->sorted[d->n - 1]);
    int64_t covered = begin;
    for (int32_t i = 0; i < d->n; i++) {
        const int64_t first = d->sorted[i].offset, last = end_of(d->ruleset, &d->sorted[i]);
        if (first <= covered && last > covered)
            covered = last;
    }
    if (covered < end)
        return "gap_between_modules";
    if (begin > 0)
        warn(d, "leading_idle_ranks");
    return NULL;
}

static const char *tiles_world(docket *d)
{
    int64_t covered = 0;
    for (int32_t i = 0; i < d->n; i++) {
        if (d->sorted[i].offset != covered)
            return "gap_before_module";
        covered = end_of(d->ruleset, &d->sorted[i]);
    }
    return covered == d->world ? NULL : "world_not_covered";
}

static const char *encoders_dense(docket *d)
{
    for (int32_t i = 0; i < d->n; i++)
        if (!is_language(&d->modules[i]) && (d->modules[i].ep != 1 || d->modules[i].etp != 1))
            return "encoder_must_be_dense";
    return NULL;
}

static const char *tp_power_of_two(docket *d)
{
    for (int32_t i = 0; i < d->n; i++) {
        const int64_t tp = d->modules[i].tp;
        if (tp <= 0 || (tp & (tp - 1)) != 0)
            return "tp_not_power_of_two";
    }
    return NULL;
}

static const char *dp_pairwise_divisible(docket *d)
{
    for (int32_t i = 0; i < d->n; i++)
        for (int32_t k = i + 1; k < d->n; k++)
            if (!multiple(d->modules[i].dp, d->modules[k].dp) &&
                !multiple(d->modules[k].dp, d->modules[i].dp))
                return "dp_not_pairwise_divisible";
    return NULL;
}

static const td_ruleset_module *language_of(const docket *d)
{
    const td_ruleset_module *m = d->modules;
    while (!is_language(m))
        m++;
    return m;
}

static const char *encoder_dp_enough(docket *d)
{
    const int64_t dp = language_of(d)->dp;
    for (int32_t i = 0; i < d->n; i++)
        if (d->modules[i].dp < dp)
            return "encoder_dp_less_than_language_dp";
    return NULL;
}

static int64_t total_world(const docket *d)
{
    int64_t total = end_of(d->ruleset, &d->sorted[0]);
    for (int32_t i = 1; i < d->n; i++) {
        const int64_t end = end_of(d->ruleset, &d->sorted[i]);
        total = end > total ? end : total;
    }
    return total;
}

static const char *world_matches(docket *d)
{
    const int64_t total = total_world(d);
    return total == 0 || total == d->world ? NULL : "world_size_mismatch";
}

/* phase2 asked only when there was a distributed world to compare with; unset is the least number
 * of all. */
static const char *world_matches_if_distributed(docket *d)
{
    return d->world > 1 ? world_matches(d) : NULL;
}

/* ---- Megatron-core ---- */

/* ModuleGridSpec, for every module before any grid is made. */
static const char *experts_fit(docket *d)
{
    for (int32_t i = 0; i < d->n; i++)
        if (!multiple(ranks_of(d->ruleset, &d->modules[i]),
                      times(expert_span(&d->modules[i]), d->modules[i].pp)))
            return "num_ranks_not_divisible_expert";
    return NULL;
}

/* The grid's constructor. */
static const char *grids_fit(docket *d)
{
    for (int32_t i = 0; i < d->n; i++) {
        if (d->modules[i].offset < 0)
            return "negative_rank_offset";
        if (end_of(d->ruleset, &d->modules[i]) > d->world)
            return "grid_exceeds_world";
    }
    return NULL;
}

/* Modules share all their ranks or none; then their sizes tell whether the world is covered. */
static const char *whole_or_apart(docket *d)
{
    const td_ruleset_module *m = d->sorted;
    bool same = true, apart = true;
    int64_t sum = 0;
    for (int32_t i = 0; i < d->n; i++) {
        const int64_t end = end_of(d->ruleset, &m[i]);
        same = same && m[i].offset == m[0].offset && end == end_of(d->ruleset, &m[0]);
        apart = apart && (i == 0 || end_of(d->ruleset, &m[i - 1]) <= m[i].offset);
        sum = plus(sum, ranks_of(d->ruleset, &m[i]));
    }
    d->verdict->colocated = same;
    return !same && !apart                                      ? "partial_overlap"
           : (same ? ranks_of(d->ruleset, m) : sum) != d->world ? "world_not_covered"
                                                                : NULL;
}

static td_bridge_side side_of(const td_ruleset_module *m)
{
    return (td_bridge_side){
        .tp = m->tp, .cp = m->cp, .dp = m->dp, .pp = m->pp, .offset = m->offset};
}

static const char *bridges_possible(docket *d)
{
    const char *rule = NULL;
    const td_bridge_side to = side_of(language_of(d));
    for (int32_t i = 0; i < d->n && rule == NULL; i++) {
        const td_bridge_side from = side_of(&d->modules[i]);
        if (!is_language(&d->modules[i]))
            rule = d->verdict->colocated ? td_bridge_colocated_refusal(&from, &to)
                                         : td_bridge_refusal(&from, &to);
    }
    return rule;
}

/* ---- where a ruleset has nothing to say ---- */

/* Expert parallelism was unknown to the older versions. */
static bool without_ep(const docket *d)
{
    for (int32_t i = 0; i < d->n; i++)
        if (d->modules[i].ep != 1)
            return false;
    return true;
}

static bool always(const docket *d)
{
    (void)d;
    return true;
}

/* Grids exist only for a language module and sizes that are numbers of ranks. */
static bool has_grids(const docket *d)
{
    bool language = false;
    for (int32_t i = 0; i < d->n; i++) {
        const td_ruleset_module *m = &d->modules[i];
        if (m->tp <= 0 || m->cp <= 0 || m->pp <= 0 || m->dp <= 0 || m->ep <= 0 || m->etp <= 0)
            return false; /* an unset dp is negative */
        language = language || is_language(m);
    }
    return language && d->world != TD_UNSET;
}

/* `communicator` starts from the verdict of core_layout. */
static bool has_topology(const docket *d)
{
    return d->verdict->status == TD_VERDICT_ACCEPTED;
}

enum { MAX_CHECKS = 8 };

static const struct ruleset {
    bool (*applies)(const docket *d);
    check *checks[MAX_CHECKS]; /* in the order of the reference; ends with NULL */
} rulesets[TD_N_RULESETS] = {
    [TD_RULESET_PHASE2] = {without_ep,
                           {language_present, modules_final, no_overlap, no_gap_between,
                            world_matches_if_distributed}},
    [TD_RULESET_APRIL] = {without_ep,
                          {language_present, modules_final, no_overlap, tp_power_of_two,
                           dp_pairwise_divisible, encoder_dp_enough, world_matches}},
    [TD_RULESET_CURRENT] = {always,
                            {language_present, modules_final, no_overlap, tiles_world,
                             encoders_dense, tp_power_of_two, dp_pairwise_divisible}},
    [TD_RULESET_CORE_LAYOUT] = {has_grids, {experts_fit, grids_fit, whole_or_apart}},
    [TD_RULESET_COMMUNICATOR] = {has_topology, {bridges_possible}},
};

static void decide(td_ruleset_verdict *v, const char *rule)
{
    v->rule = rule;
    v->status = rule != NULL        ? TD_VERDICT_REJECTED
                : v->n_warnings > 0 ? TD_VERDICT_ACCEPTED_WITH_WARNING
                                    : TD_VERDICT_ACCEPTED;
}

static td_ruleset_facts facts_of(td_ruleset_kind r, const td_ruleset_module *m)
{
    td_ruleset_facts f = {.dp = m->dp,
                          .model_parallel = model_parallel(r, m),
                          .total_ranks = ranks_of(r, m),
                          .first_rank = m->offset,
                          .last_rank = plus(end_of(r, m), -1)};
    if (r == TD_RULESET_CURRENT || r == TD_RULESET_CORE_LAYOUT)
        f.expert_dp = f.total_ranks / times(expert_span(m), m->pp);
    return f;
}

/* Fills in defaults and sorts by offset; equal offsets keep the order in which they were given. */
static td_status open_docket(td_arena *a, const td_ruleset_input *in, docket *d, td_err *err)
{
    d->n = in->n_modules;
    d->modules = TD_NEW(a, td_ruleset_module, d->n);
    d->sorted = TD_NEW(a, td_ruleset_module, d->n);
    if (d->modules == NULL || d->sorted == NULL)
        return td_fail(err, TD_NOMEM, "no memory to judge %d modules", (int)d->n);
    for (int32_t i = 0; i < d->n; i++)
        d->modules[i] = filled(&in->modules[i]);
    return TD_OK;
}

static void sort_by_offset(docket *d)
{
    for (int32_t i = 0; i < d->n; i++) {
        int32_t k = i;
        for (; k > 0 && d->sorted[k - 1].offset > d->modules[i].offset; k--)
            d->sorted[k] = d->sorted[k - 1];
        d->sorted[k] = d->modules[i];
    }
}

/* `v` comes in zeroed, or, for `communicator`, as core_layout's verdict. */
static td_status judge(td_arena *a, td_ruleset_kind r, const td_ruleset_input *in,
                       td_ruleset_verdict *v, td_err *err)
{
    td_status st = TD_OK;
    const char *rule = NULL;
    docket d = {.ruleset = r, .world = in->world_size, .verdict = v};
    TD_TRY(st, open_docket(a, in, &d, err));
    if (!rulesets[r].applies(&d)) {
        *v = (td_ruleset_verdict){.status = TD_VERDICT_NOT_APPLICABLE};
        goto done;
    }
    sort_by_offset(&d);
    for (int32_t i = 0; i < MAX_CHECKS && rulesets[r].checks[i] != NULL && rule == NULL; i++)
        rule = rulesets[r].checks[i](&d);
    decide(v, rule);
    if (rule == NULL && r != TD_RULESET_COMMUNICATOR) {
        td_ruleset_facts *facts = TD_NEW(a, td_ruleset_facts, d.n);
        if (facts == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the facts of %d modules", (int)d.n));
        for (int32_t i = 0; i < d.n; i++)
            facts[i] = facts_of(r, &d.modules[i]);
        v->facts = facts;
        v->total_world_size = total_world(&d);
    }
done:
    return st;
}

/* Judges with `in` as it stands, or, if `own_world`, with the world each ruleset derives from the
 * modules. */
static td_status judge_all(td_arena *a, td_ruleset_input in, bool own_world,
                           td_ruleset_verdict *out, td_err *err)
{
    td_status st = TD_OK;
    for (td_ruleset_kind r = TD_RULESET_PHASE2; r < TD_N_RULESETS; r++) {
        if (own_world) {
            in.world_size = 0;
            for (int32_t i = 0; i < in.n_modules; i++) {
                const td_ruleset_module m = filled(&in.modules[i]);
                const int64_t end = m.dp == TD_UNSET ? 0 : end_of(r, &m);
                in.world_size = end > in.world_size ? end : in.world_size;
            }
        }
        out[r] = (td_ruleset_verdict){0};
        if (r == TD_RULESET_COMMUNICATOR) {
            out[r].status = out[TD_RULESET_CORE_LAYOUT].status;
            out[r].colocated = out[TD_RULESET_CORE_LAYOUT].colocated;
        }
        TD_TRY(st, judge(a, r, &in, &out[r], err));
    }
done:
    return st;
}

td_status td_rulesets_judge(td_arena *a, const td_ruleset_input *in,
                            td_ruleset_verdict out[TD_N_RULESETS], td_err *err)
{
    return judge_all(a, *in, false, out, err);
}

/* The i-th size of a raw `parallel`, which holds 0 for what was not written. */
static int64_t written(const td_parallel_raw *raw, int i, int64_t size)
{
    return size == 0 && (raw->zero >> i & 1) == 0 ? TD_UNSET : size;
}

td_status td_rulesets_judge_plan(td_arena *a, const td_plan *plan,
                                 td_ruleset_verdict out[TD_N_RULESETS], td_err *err)
{
    td_ruleset_module *modules = TD_NEW(a, td_ruleset_module, plan->n_modules);
    if (modules == NULL)
        return td_fail(err, TD_NOMEM, "no memory to judge %d modules", (int)plan->n_modules);
    for (int32_t i = 0; i < plan->n_modules; i++) {
        const td_parallel_raw *raw = &plan->modules[i].raw;
        modules[i] = (td_ruleset_module){.name = plan->modules[i].name,
                                         .tp = written(raw, 0, raw->tp),
                                         .cp = written(raw, 1, raw->cp),
                                         .pp = written(raw, 2, raw->pp),
                                         .dp = written(raw, 3, raw->dp),
                                         .ep = written(raw, 4, raw->ep),
                                         .etp = written(raw, 5, raw->etp),
                                         .offset = raw->offset}; /* 0 if it was not written */
    }
    const td_ruleset_input in = {.n_modules = plan->n_modules, .modules = modules};
    return judge_all(a, in, true, out, err);
}

td_ruleset_role td_ruleset_role_of(const td_ruleset_input *in, const td_ruleset_verdict *core,
                                   int32_t module, int64_t rank)
{
    const td_ruleset_facts *f = &core->facts[module];
    if (rank < f->first_rank || rank > f->last_rank)
        return (td_ruleset_role){0};
    if (core->colocated)
        return (td_ruleset_role){true, true, true};
    /* pp is the slowest axis of core's grids */
    const int64_t pp = given(in->modules[module].pp, 1), per_stage = f->total_ranks / pp;
    const int64_t stage = (rank - f->first_rank) / per_stage;
    return (td_ruleset_role){true, stage == 0, stage == pp - 1};
}

void td_ruleset_finalize(td_ruleset_kind version, const td_ruleset_module *m, int64_t world_size,
                         td_ruleset_verdict *out, td_ruleset_facts *facts)
{
    td_ruleset_module own = filled(m);
    *out = (td_ruleset_verdict){0};
    *facts = (td_ruleset_facts){0};
    docket d = {.ruleset = version, .n = 1, .modules = &own, .world = world_size, .verdict = out};
    if (!rulesets[version].applies(&d)) {
        out->status = TD_VERDICT_NOT_APPLICABLE;
        return;
    }
    decide(out, finalize(&d, &own, world_size));
    if (out->rule == NULL)
        *facts = facts_of(version, &own);
}

/* ---- get_num_layers_to_build ---- */

const char *td_ruleset_layers(const td_layer_split *s, int64_t *per_stage)
{
    const bool uneven_first = s->first != TD_UNSET, uneven_last = s->last != TD_UNSET;
    int64_t layers = s->layers, stages = s->pp;
    const char *rule = "layers_not_divisible_by_stages";
    if (uneven_first || uneven_last) {
        if (s->account_embedding || s->account_loss)
            return "uneven_with_embedding_or_loss";
        layers = plus(layers, uneven_first ? -clamp(s->first) : 0);
        layers = plus(layers, uneven_last ? -clamp(s->last) : 0);
        stages -= uneven_first + uneven_last;
        rule = "remaining_layers_not_divisible_by_stages";
    } else {
        layers = plus(layers, s->account_embedding + s->account_loss);
    }
    /* with no stage in between, nobody asks whether the ends add up */
    if (stages > 0 && layers % stages != 0)
        return rule;
    for (int32_t p = 0; p < s->pp; p++)
        per_stage[p] = stages > 0 ? layers / stages : 0;
    if (uneven_first)
        per_stage[0] = s->first;
    if (uneven_last)
        per_stage[s->pp - 1] = s->last;
    per_stage[0] -= s->account_embedding;
    if (per_stage[0] < 0)
        return "too_few_layers_in_first_stage";
    per_stage[s->pp - 1] -= s->account_loss;
    return per_stage[s->pp - 1] < 0 ? "too_few_layers_in_last_stage" : NULL;
}
