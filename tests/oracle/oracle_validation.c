/* validation.json: what versions of the reference say to layouts, to lone modules and to splits of
 * layers. */
#include "tests/oracle/oracle.h"

#include "model/rulesets.h"

#include <string.h>

static td_ruleset_module read_module(const char *name, const json_t *json)
{
    return (td_ruleset_module){.name = name,
                               .tp = oracle_int(json, "tp", TD_UNSET),
                               .cp = oracle_int(json, "cp", TD_UNSET),
                               .pp = oracle_int(json, "pp", TD_UNSET),
                               .dp = oracle_int(json, "dp", TD_UNSET),
                               .ep = oracle_int(json, "ep", TD_UNSET),
                               .etp = oracle_int(json, "etp", TD_UNSET),
                               .offset = oracle_int(json, "rank_offset", TD_UNSET)};
}

static bool accepted(const td_ruleset_verdict *v)
{
    return v->status == TD_VERDICT_ACCEPTED || v->status == TD_VERDICT_ACCEPTED_WITH_WARNING;
}

/* Status, rule and warnings. What a version warned of before it rejected matters only where the
 * case has it. */
static json_t *verdict_json(const td_ruleset_verdict *v, const json_t *expected)
{
    json_t *one = json_object(), *warnings = json_array();
    oracle_set(one, "status", json_string(td_verdict_names[v->status]));
    if (v->rule != NULL)
        oracle_set(one, "rule", json_string(v->rule));
    for (int32_t i = 0; i < v->n_warnings; i++)
        oracle_append(warnings, json_string(v->warnings[i]));
    if (v->n_warnings > 0 && (accepted(v) || json_object_get(expected, "warnings") != NULL))
        oracle_set(one, "warnings", json_incref(warnings));
    json_decref(warnings);
    return one;
}

static json_t *facts_json(const td_ruleset_facts *f)
{
    json_t *one = json_object();
    oracle_set(one, "dp", json_integer(f->dp));
    oracle_set(one, "total_ranks", json_integer(f->total_ranks));
    oracle_set(one, "first_rank", json_integer(f->first_rank));
    oracle_set(one, "last_rank", json_integer(f->last_rank));
    if (f->expert_dp > 0)
        oracle_set(one, "expert_dp", json_integer(f->expert_dp));
    return one;
}

static json_t *roles_json(const td_ruleset_input *in, const td_ruleset_verdict *core, int64_t rank)
{
    json_t *roles = json_object();
    for (int32_t i = 0; i < in->n_modules; i++) {
        const td_ruleset_role role = td_ruleset_role_of(in, core, i, rank);
        json_t *flags = json_object();
        oracle_set(flags, "first_stage", json_boolean(role.first_stage));
        oracle_set(flags, "last_stage", json_boolean(role.last_stage));
        if (role.holds)
            oracle_set(roles, in->modules[i].name, json_incref(flags));
        json_decref(flags);
    }
    return roles;
}

static void add_layout(json_t *one, const td_ruleset_input *in, const td_ruleset_verdict *core)
{
    json_t *expert_dp = json_object(), *ranks = json_array();
    for (int32_t i = 0; i < in->n_modules; i++)
        oracle_set(expert_dp, in->modules[i].name, json_integer(core->facts[i].expert_dp));
    for (int64_t rank = 0; rank < in->world_size; rank++)
        oracle_append(ranks, roles_json(in, core, rank));
    oracle_set(one, "mode", json_string(core->colocated ? "colocated" : "non_colocated"));
    oracle_set(one, "expert_dp", expert_dp);
    oracle_set(one, "ranks", ranks);
}

static void add_derived(json_t *one, const td_ruleset_input *in, const td_ruleset_verdict *v)
{
    json_t *derived = json_object();
    for (int32_t i = 0; i < in->n_modules; i++)
        oracle_set(derived, in->modules[i].name, facts_json(&v->facts[i]));
    oracle_set(one, "total_world_size", json_integer(v->total_world_size));
    oracle_set(one, "derived", derived);
}

static td_status run_parallelism(oracle_case *c, td_err *err)
{
    td_status st = TD_OK;
    json_t *modules = json_object_get(c->json, "modules"), *got = json_object(), *value;
    const json_t *expected = json_object_get(c->json, "rulesets");
    const char *name;
    td_ruleset_verdict verdicts[TD_N_RULESETS];
    td_ruleset_module *given = TD_NEW(c->arena, td_ruleset_module, json_object_size(modules));
    td_ruleset_input in = {.modules = given,
                           .world_size = oracle_int(c->json, "world_size", TD_UNSET)};
    oracle_set(c->got, "rulesets", got);
    if (given == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the modules"));
    json_object_foreach(modules, name, value) given[in.n_modules++] = read_module(name, value);
    TD_TRY(st, td_rulesets_judge(c->arena, &in, verdicts, err));
    for (td_ruleset_kind r = TD_RULESET_PHASE2; r < TD_N_RULESETS; r++) {
        json_t *one = verdict_json(&verdicts[r], json_object_get(expected, td_ruleset_names[r]));
        oracle_set(got, td_ruleset_names[r], one);
        if (accepted(&verdicts[r]) && r == TD_RULESET_CORE_LAYOUT)
            add_layout(one, &in, &verdicts[r]);
        else if (accepted(&verdicts[r]) && r != TD_RULESET_COMMUNICATOR)
            add_derived(one, &in, &verdicts[r]);
    }
done:
    return st;
}

static td_status run_finalize(oracle_case *c, td_err *err)
{
    (void)err;
    json_t *got = json_object();
    const json_t *expected = json_object_get(c->json, "rulesets");
    const td_ruleset_module m = read_module("module", json_object_get(c->json, "module"));
    const int64_t world = oracle_int(c->json, "world_size", TD_UNSET);
    oracle_set(c->got, "rulesets", got);
    for (td_ruleset_kind r = TD_RULESET_PHASE2; r <= TD_RULESET_CURRENT; r++) {
        td_ruleset_verdict verdict;
        td_ruleset_facts facts;
        td_ruleset_finalize(r, &m, world, &verdict, &facts);
        json_t *one = verdict_json(&verdict, json_object_get(expected, td_ruleset_names[r]));
        oracle_set(got, td_ruleset_names[r], one);
        if (!accepted(&verdict))
            continue;
        oracle_set(one, "dp", json_integer(facts.dp));
        oracle_set(one, "total_ranks", json_integer(facts.total_ranks));
        oracle_set(one, "model_parallel_size", json_integer(facts.model_parallel));
        if (facts.expert_dp > 0)
            oracle_set(one, "expert_dp", json_integer(facts.expert_dp));
    }
    return TD_OK;
}

static td_status run_layers(oracle_case *c, td_err *err)
{
    td_status st = TD_OK;
    json_t *got = json_object(), *layers = json_object(), *per_stage = json_array();
    const td_layer_split split = {
        .layers = oracle_int(c->json, "num_layers", 0),
        .pp = (int32_t)oracle_int(c->json, "pp", 1),
        .first = oracle_int(c->json, "first", TD_UNSET),
        .last = oracle_int(c->json, "last", TD_UNSET),
        .account_embedding = json_is_true(json_object_get(c->json, "account_embedding")),
        .account_loss = json_is_true(json_object_get(c->json, "account_loss")),
    };
    oracle_set(c->got, "rulesets", got);
    oracle_set(got, "layers", layers);
    if (split.pp < 1) {
        c->broken = "no pipeline stage";
        goto done;
    }
    int64_t *stages = TD_NEW(c->arena, int64_t, split.pp);
    if (stages == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d stages", (int)split.pp));
    const char *rule = td_ruleset_layers(&split, stages);
    oracle_set(layers, "status", json_string(rule != NULL ? "rejected" : "accepted"));
    if (rule != NULL)
        oracle_set(layers, "rule", json_string(rule));
    for (int32_t p = 0; p < split.pp; p++)
        oracle_append(per_stage, json_integer(stages[p]));
    if (rule == NULL)
        oracle_set(layers, "per_stage", json_incref(per_stage));
done:
    json_decref(per_stage);
    return st;
}

static td_status run(oracle_case *c, td_err *err)
{
    static const struct {
        const char *kind;
        td_status (*run)(oracle_case *c, td_err *err);
    } kinds[] = {{"parallelism", run_parallelism},
                 {"module_finalize", run_finalize},
                 {"layers_per_stage", run_layers}};
    const char *kind = oracle_text(c->json, "kind");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i].kind) == 0)
            return kinds[i].run(c, err);
    if (strcmp(kind, "two_grid_args") == 0)
        c->skip = "two_grid_args";
    else
        c->broken = "a kind that is not known";
    return TD_OK;
}

static const char *const inputs[] = {
    "id",    "kind", "world_size", "modules",           "module",       "num_layers", "pp",
    "first", "last", "note",       "account_embedding", "account_loss", NULL};

const oracle_suite oracle_validation = {.name = "validation", .inputs = inputs, .run = run};
