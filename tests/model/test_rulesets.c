#include "model/rulesets.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <string.h>

enum { MODULES = 3, U = 0 }; /* U: not written, in the tables below */

/* Sizes in the order tp, cp, pp, dp, ep, etp, offset. */
struct sizes {
    char name[12];
    int64_t s[7];
};

static td_ruleset_module module(const struct sizes *m)
{
    int64_t s[7];
    for (int i = 0; i < 7; i++)
        s[i] = m->s[i] == U ? TD_UNSET : m->s[i];
    return (td_ruleset_module){m->name, s[0], s[1], s[2], s[3], s[4], s[5], s[6]};
}

struct layout {
    int64_t world;
    struct sizes modules[MODULES];
    char verdicts[TD_N_RULESETS][48]; /* `ok`, `n/a`, `warn WARNING` or the rule */
};

static void assert_verdict(const td_ruleset_verdict *v, const char *expected, const char *ruleset)
{
    const char *got = v->status == TD_VERDICT_ACCEPTED         ? "ok"
                      : v->status == TD_VERDICT_NOT_APPLICABLE ? "n/a"
                      : v->status == TD_VERDICT_REJECTED       ? v->rule
                                                               : v->warnings[v->n_warnings - 1];
    const bool warned = v->status == TD_VERDICT_ACCEPTED_WITH_WARNING;
    cr_assert_eq(warned, strncmp(expected, "warn ", 5) == 0, "%s: %s", ruleset, got);
    cr_assert_str_eq(got, expected + (warned ? 5 : 0), "%s: %s, not %s", ruleset, got, expected);
}

ParameterizedTestParameters(rulesets, the_first_violated_rule_is_reported)
{
    static struct layout table[] = {
        {8,
         {{"images", {2, U, 2, 1}}, {"language", {2, U, 2, 1, U, U, 4}}},
         {"ok", "ok", "ok", "ok", "ok"}},
        /* holes: between, before, behind */
        {8,
         {{"images", {U, U, U, 2}}, {"language", {2, U, U, 2, U, U, 4}}},
         {"gap_between_modules", "ok", "gap_before_module", "world_not_covered", "n/a"}},
        {8,
         {{"images", {U, U, U, 2, U, U, 2}}, {"language", {2, U, U, 2, U, U, 4}}},
         {"warn leading_idle_ranks", "ok", "gap_before_module", "world_not_covered", "n/a"}},
        {9,
         {{"images", {U, U, U, 4}}, {"language", {2, U, U, 2, U, U, 4}}},
         {"world_size_mismatch", "world_size_mismatch", "world_not_covered", "world_not_covered",
          "n/a"}},
        {7,
         {{"images", {U, U, U, 4}}, {"language", {2, U, U, 2, U, U, 4}}},
         {"world_size_mismatch", "world_size_mismatch", "world_not_covered", "grid_exceeds_world",
          "n/a"}},
        /* phase2 does not compare with a world of one rank */
        {1,
         {{"images", {U, U, U, 2}}, {"language", {U, U, U, 2, U, U, 2}}},
         {"ok", "world_size_mismatch", "world_not_covered", "grid_exceeds_world", "n/a"}},
        /* the order in which modules are given does not matter to their ranges */
        {8,
         {{"language", {2, U, 2, 1, U, U, 4}}, {"images", {4, U, U, 1}}},
         {"ok", "ok", "ok", "ok", "ok"}},
        /* same ranks: the configuration never allowed it, the core does */
        {8,
         {{"images", {U, U, U, 8}}, {"language", {2, U, U, 4}}},
         {"rank_ranges_overlap", "rank_ranges_overlap", "rank_ranges_overlap", "ok", "ok"}},
        {8,
         {{"images", {U, U, 2, 4}}, {"language", {2, U, U, 4}}},
         {"rank_ranges_overlap", "rank_ranges_overlap", "rank_ranges_overlap", "ok",
          "colocated_pp_must_be_one"}},
        {6,
         {{"images", {3, U, U, 2}}, {"language", {2, U, U, 3}}},
         {"rank_ranges_overlap", "rank_ranges_overlap", "rank_ranges_overlap", "ok",
          "colocated_dp_not_divisible"}},
        {8,
         {{"images", {2, U, U, 2}}, {"language", {2, U, U, 4}}},
         {"rank_ranges_overlap", "rank_ranges_overlap", "rank_ranges_overlap", "partial_overlap",
          "n/a"}},
        /* two encoders on the same ranks beside the language module */
        {6,
         {{"images", {2, U, U, 1}}, {"audio", {2, U, U, 1}}, {"language", {2, U, U, 2, U, U, 2}}},
         {"rank_ranges_overlap", "rank_ranges_overlap", "rank_ranges_overlap", "partial_overlap",
          "n/a"}},
        /* sizes */
        {5,
         {{"images", {3, U, U, 1}}, {"language", {2, U, U, 1, U, U, 3}}},
         {"ok", "tp_not_power_of_two", "tp_not_power_of_two", "ok", "ok"}},
        {5,
         {{"images", {U, U, U, 3}}, {"language", {U, U, U, 2, U, U, 3}}},
         {"ok", "dp_not_pairwise_divisible", "dp_not_pairwise_divisible", "ok",
          "leader_counts_not_divisible"}},
        /* encoders must divide each other too, though no bridge joins them */
        {6,
         {{"images", {U, U, U, 3}},
          {"audio", {U, U, U, 2, U, U, 3}},
          {"language", {U, U, U, 1, U, U, 5}}},
         {"ok", "dp_not_pairwise_divisible", "dp_not_pairwise_divisible", "ok", "ok"}},
        {3,
         {{"images", {U, U, U, 1}}, {"language", {U, U, U, 2, U, U, 1}}},
         {"ok", "encoder_dp_less_than_language_dp", "ok", "ok", "ok"}},
        {8,
         {{"images", {U, 2, U, 2}}, {"language", {U, 2, U, 2, U, U, 4}}},
         {"ok", "ok", "ok", "ok", "src_cp_must_be_one"}},
        {8,
         {{"images", {2, U, U, 2}}, {"language", {U, 2, U, 2, U, U, 4}}},
         {"ok", "ok", "ok", "ok", "dest_cp_must_be_one"}},
        {8,
         {{"images", {2, U, U, 2}}, {"language", {2, U, U, U, U, U, 4}}},
         {"dp_unset_in_heterogeneous", "dp_unset_in_heterogeneous", "dp_unset_in_heterogeneous",
          "n/a", "n/a"}},
        {8,
         {{"images", {2, U, U, 2}}, {"language", {2, U, U, -2, U, U, 4}}},
         {"nonpositive_data_parallel_size", "nonpositive_data_parallel_size",
          "nonpositive_data_parallel_size", "n/a", "n/a"}},
        {4,
         {{"images", {U, U, -1, 2}}, {"language", {2, U, U, 2}}},
         {"ok", "ok", "nonpositive_pipeline_model_parallel_size", "n/a", "n/a"}},
        {4,
         {{"images", {U, U, U, 2, U, U, -2}}, {"language", {2, U, U, 2}}},
         {"ok", "ok", "negative_rank_offset", "negative_rank_offset", "n/a"}},
        {8,
         {{"images", {U, U, U, 4}}, {"text", {U, U, U, 4, U, U, 4}}},
         {"language_module_missing", "language_module_missing", "language_module_missing", "n/a",
          "n/a"}},
        /* experts: etp multiplied the ranks once, then only refactored them */
        {16,
         {{"images", {U, U, U, 8}}, {"language", {2, U, U, 4, 4, 2, 8}}},
         {"n/a", "n/a", "ok", "ok", "ok"}},
        {16,
         {{"images", {U, U, U, 8}}, {"language", {2, U, U, 4, 3, U, 8}}},
         {"n/a", "n/a", "expert_span_not_divisible", "num_ranks_not_divisible_expert", "n/a"}},
        {12,
         {{"images", {U, U, U, 4}}, {"language", {2, U, 2, 1, U, 2, 4}}},
         {"warn etp_with_pp", "warn etp_with_pp", "world_not_covered", "world_not_covered", "n/a"}},
        {8,
         {{"images", {U, U, U, 4, U, 2}}, {"language", {2, U, U, 2, U, U, 4}}},
         {"rank_ranges_overlap", "rank_ranges_overlap", "encoder_must_be_dense", "ok", "ok"}},
    };
    return cr_make_param_array(struct layout, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct layout *t, rulesets, the_first_violated_rule_is_reported)
{
    td_arena *a = td_arena_new();
    td_ruleset_module modules[MODULES];
    td_ruleset_input in = {.modules = modules, .world_size = t->world};
    td_ruleset_verdict out[TD_N_RULESETS];
    for (int i = 0; i < MODULES && t->modules[i].name[0] != '\0'; i++)
        modules[in.n_modules++] = module(&t->modules[i]);
    cr_assert_eq(td_rulesets_judge(a, &in, out, NULL), TD_OK);
    for (int r = 0; r < TD_N_RULESETS; r++)
        assert_verdict(&out[r], t->verdicts[r], td_ruleset_names[r]);
    td_arena_free(a);
}

/* Whatever stands in a plan, every ruleset gives a verdict, and a reason exactly when it rejects.
 */
#define ABSURD                                                                                     \
    DataPoints(int64_t, TD_UNSET, INT64_MIN + 1, -1, 0, 1, 3, 1000000000000000000, INT64_MAX)
TheoryDataPoints(rulesets, absurd_sizes_are_judged_too) = {ABSURD, ABSURD, ABSURD, ABSURD};
Theory((int64_t tp, int64_t dp, int64_t ep, int64_t offset), rulesets, absurd_sizes_are_judged_too)
{
    td_arena *a = td_arena_new();
    const td_ruleset_module modules[] = {{"images", tp, ep, dp, dp, 1, tp, offset},
                                         {"language", dp, 1, tp, ep, ep, offset, offset}};
    const td_ruleset_input in = {.n_modules = 2, .modules = modules, .world_size = tp};
    td_ruleset_verdict out[TD_N_RULESETS];
    cr_assert_eq(td_rulesets_judge(a, &in, out, NULL), TD_OK);
    for (int r = 0; r < TD_N_RULESETS; r++) {
        cr_assert_eq(out[r].rule != NULL, out[r].status == TD_VERDICT_REJECTED);
        if (out[r].rule == NULL)
            cr_assert_eq(out[r].n_warnings > 0, out[r].status == TD_VERDICT_ACCEPTED_WITH_WARNING);
    }
    td_arena_free(a);
}

TheoryDataPoints(rulesets, every_rank_holds_one_disjoint_module_and_each_pipeline_has_two_ends) = {
    DataPoints(int64_t, 1, 2), DataPoints(int64_t, 1, 3), DataPoints(int64_t, 1, 4)};
Theory((int64_t tp, int64_t pp, int64_t dp), rulesets,
       every_rank_holds_one_disjoint_module_and_each_pipeline_has_two_ends)
{
    td_arena *a = td_arena_new();
    const td_ruleset_module modules[] = {{"language", tp, 1, pp, dp, 1, 1, 4},
                                         {"images", 1, 1, 1, 4, 1, 1, 0}};
    const td_ruleset_input in = {
        .n_modules = 2, .modules = modules, .world_size = 4 + tp * pp * dp};
    td_ruleset_verdict out[TD_N_RULESETS];
    int64_t n_first = 0, n_last = 0;
    cr_assert_eq(td_rulesets_judge(a, &in, out, NULL), TD_OK);
    const td_ruleset_verdict *core = &out[TD_RULESET_CORE_LAYOUT];
    cr_assert_eq(core->status, TD_VERDICT_ACCEPTED);
    cr_assert_not(core->colocated);
    for (int64_t rank = 0; rank < in.world_size; rank++) {
        const td_ruleset_role language = td_ruleset_role_of(&in, core, 0, rank);
        const td_ruleset_role images = td_ruleset_role_of(&in, core, 1, rank);
        cr_assert_neq(language.holds, images.holds);
        n_first += language.first_stage;
        n_last += language.last_stage;
    }
    cr_assert_eq(n_first, tp * dp);
    cr_assert_eq(n_last, tp * dp);
    td_arena_free(a);
}

Test(rulesets, modules_on_the_same_ranks_are_first_and_last_everywhere)
{
    td_arena *a = td_arena_new();
    const td_ruleset_module modules[] = {{"images", 1, 1, 2, 2, 1, 1, 0},
                                         {"language", 2, 1, 1, 2, 1, 1, 0}};
    const td_ruleset_input in = {.n_modules = 2, .modules = modules, .world_size = 4};
    td_ruleset_verdict out[TD_N_RULESETS];
    cr_assert_eq(td_rulesets_judge(a, &in, out, NULL), TD_OK);
    cr_assert(out[TD_RULESET_CORE_LAYOUT].colocated);
    for (int32_t m = 0; m < 2; m++)
        for (int64_t rank = 0; rank < 4; rank++) {
            const td_ruleset_role role =
                td_ruleset_role_of(&in, &out[TD_RULESET_CORE_LAYOUT], m, rank);
            cr_assert(role.holds && role.first_stage && role.last_stage);
        }
    td_arena_free(a);
}

Test(rulesets, a_plan_is_judged_from_what_it_says_in_a_world_of_its_own)
{
    td_arena *a = td_arena_new();
    td_module modules[] = {
        {.name = "images", .raw = {.present = true, .tp = 2, .dp = 2}},
        {.name = "language", .raw = {.present = true, .tp = 2, .pp = 2, .dp = 1, .offset = 4}}};
    const td_plan plan = {.n_modules = 2, .modules = modules};
    td_ruleset_verdict out[TD_N_RULESETS];
    cr_assert_eq(td_rulesets_judge_plan(a, &plan, out, NULL), TD_OK);
    for (int r = 0; r < TD_N_RULESETS; r++)
        assert_verdict(&out[r], "ok", td_ruleset_names[r]); /* a missing etp is 1, not tp */
    cr_assert_eq(out[TD_RULESET_CURRENT].total_world_size, 8);

    modules[1].raw.etp =
        2; /* twice the ranks where it multiplies them, and the world grows with them */
    cr_assert_eq(td_rulesets_judge_plan(a, &plan, out, NULL), TD_OK);
    assert_verdict(&out[TD_RULESET_PHASE2], "warn etp_with_pp", "phase2");
    cr_assert_eq(out[TD_RULESET_PHASE2].total_world_size, 12);
    assert_verdict(&out[TD_RULESET_CURRENT], "ok", "current");

    modules[0].raw.tp = 0; /* not written */
    modules[1].raw.offset = 2;
    cr_assert_eq(td_rulesets_judge_plan(a, &plan, out, NULL), TD_OK);
    assert_verdict(&out[TD_RULESET_CURRENT], "ok", "current");
    modules[0].raw.zero = 1; /* written, as 0 */
    cr_assert_eq(td_rulesets_judge_plan(a, &plan, out, NULL), TD_OK);
    assert_verdict(&out[TD_RULESET_CURRENT], "nonpositive_tensor_model_parallel_size", "current");
    td_arena_free(a);
}

struct lone {
    struct sizes m;
    int64_t world; /* U: not known */
    int64_t dp;    /* what it is or becomes, in the configuration of today */
    char verdicts[3][48];
};

ParameterizedTestParameters(rulesets, a_lone_module_gets_its_dp_from_the_world)
{
    static struct lone table[] = {
        {{"m", {2, U, 2}}, 8, 2, {"ok", "ok", "ok"}},
        {{"m", {2, U, U, 2}}, 16, 2, {"ok", "ok", "ok"}}, /* a given dp need not fill the world */
        {{"m", {2}},
         U,
         0,
         {"dp_unset_in_heterogeneous", "dp_unset_in_heterogeneous", "dp_unset_in_heterogeneous"}},
        {{"m", {3}},
         8,
         0,
         {"world_size_not_divisible", "world_size_not_divisible", "world_size_not_divisible"}},
        {{"m", {2, U, U, -1}},
         8,
         0,
         {"nonpositive_data_parallel_size", "nonpositive_data_parallel_size",
          "nonpositive_data_parallel_size"}},
        {{"m", {2, U, 2, U, U, 2}}, 16, 4, {"warn etp_with_pp", "warn etp_with_pp", "ok"}},
        {{"m", {4, U, 2, U, 8}}, 64, 8, {"n/a", "n/a", "ok"}},
        {{"m", {1, U, U, 2, U, 4}}, U, 0, {"ok", "ok", "expert_span_not_divisible"}},
        {{"m", {2, -1, U, 2}}, U, 0, {"ok", "ok", "nonpositive_context_parallel_size"}},
        {{"m", {2, U, U, 2, U, -1}}, U, 0, {"ok", "ok", "nonpositive_expert_tensor_parallel_size"}},
        {{"m", {2, U, U, 2, -1}}, U, 0, {"n/a", "n/a", "nonpositive_expert_model_parallel_size"}},
        {{"m", {2, U, U, 2, U, U, -4}}, U, 0, {"ok", "ok", "negative_rank_offset"}},
    };
    return cr_make_param_array(struct lone, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct lone *t, rulesets, a_lone_module_gets_its_dp_from_the_world)
{
    const td_ruleset_module m = module(&t->m);
    for (td_ruleset_kind r = TD_RULESET_PHASE2; r <= TD_RULESET_CURRENT; r++) {
        td_ruleset_verdict v;
        td_ruleset_facts facts;
        td_ruleset_finalize(r, &m, t->world == U ? TD_UNSET : t->world, &v, &facts);
        assert_verdict(&v, t->verdicts[r], td_ruleset_names[r]);
        if (r == TD_RULESET_CURRENT)
            cr_assert_eq(facts.dp, t->dp);
    }
}

struct layers {
    td_layer_split split;
    int64_t per_stage[5];
    char rule[48];
};

ParameterizedTestParameters(rulesets, layers_are_shared_by_the_stages_without_rest)
{
    static struct layers table[] = {
        {{28, 4, TD_UNSET, TD_UNSET, false, false}, {7, 7, 7, 7}, ""},
        {{2, 3, TD_UNSET, TD_UNSET, false, false}, {0}, "layers_not_divisible_by_stages"},
        {{30, 4, 6, 6, false, false}, {6, 9, 9, 6}, ""},
        {{30, 4, 6, TD_UNSET, false, false}, {6, 8, 8, 8}, ""},
        {{30, 4, TD_UNSET, 7, false, false}, {0}, "remaining_layers_not_divisible_by_stages"},
        {{30, 2, 10, 10, false, false}, {10, 10}, ""}, /* nobody asks whether two ends add up */
        {{30, 4, TD_UNSET, TD_UNSET, true, true}, {7, 8, 8, 7}, ""},
        {{31, 4, TD_UNSET, TD_UNSET, true, false}, {7, 8, 8, 8}, ""},
        {{31, 4, TD_UNSET, TD_UNSET, true, true}, {0}, "layers_not_divisible_by_stages"},
        {{30, 4, 6, 6, true, false}, {0}, "uneven_with_embedding_or_loss"},
        {{-1, 1, TD_UNSET, TD_UNSET, true, false}, {0}, "too_few_layers_in_first_stage"},
        {{0, 1, TD_UNSET, TD_UNSET, false, true}, {0}, ""},
    };
    return cr_make_param_array(struct layers, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct layers *t, rulesets, layers_are_shared_by_the_stages_without_rest)
{
    int64_t got[5];
    const char *rule = td_ruleset_layers(&t->split, got);
    cr_assert_str_eq(rule != NULL ? rule : "", t->rule);
    for (int32_t p = 0; rule == NULL && p < t->split.pp; p++)
        cr_assert_eq(got[p], t->per_stage[p]);
}
