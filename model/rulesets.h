/*
 * Would the reference accept this layout? Three versions of its configuration check, its core's
 * grid construction, and the constructors of its communicators, each as an ordered list of rules of
 * which the first violated one is reported. They judge the parallel sizes alone, as written,
 * however absurd; tandem's own verdict on a plan is elsewhere.
 */
#ifndef TANDEM_MODEL_RULESETS_H
#define TANDEM_MODEL_RULESETS_H

#include "model/plan.h"

/*
 * phase2: first public version (PR 2004 of Megatron-Bridge). april: Megatron-Bridge at 994b7f2e.
 * current: at 067f987d. core_layout: Megatron-LM at d98e8a64, create_topology and RankRole.build.
 * communicator: its bridge constructors for every encoder -> language edge; applicable where
 * core_layout accepts.
 */
#define TD_RULESET_MAP(X)                                                                          \
    X(PHASE2, "phase2")                                                                            \
    X(APRIL, "april")                                                                              \
    X(CURRENT, "current")                                                                          \
    X(CORE_LAYOUT, "core_layout")                                                                  \
    X(COMMUNICATOR, "communicator")

typedef enum {
#define X(r, name) TD_RULESET_##r,
    TD_RULESET_MAP(X)
#undef X
        TD_N_RULESETS
} td_ruleset_kind;
extern const char *const td_ruleset_names[TD_N_RULESETS];

typedef enum {
    TD_VERDICT_ACCEPTED,
    TD_VERDICT_ACCEPTED_WITH_WARNING,
    TD_VERDICT_REJECTED,
    TD_VERDICT_NOT_APPLICABLE,
    TD_N_VERDICTS
} td_verdict_status;
extern const char *const td_verdict_names[TD_N_VERDICTS];

/* A size that was not given: dp then is unknown, every other size 1 and the offset 0. */
#define TD_UNSET INT64_MIN

typedef struct {
    const char *name; /* `language` is the language module */
    int64_t tp, cp, pp, dp, ep, etp, offset;
} td_ruleset_module;

typedef struct {
    int32_t n_modules;
    const td_ruleset_module *modules; /* in the order they were given */
    int64_t world_size;               /* TD_UNSET: not known */
} td_ruleset_input;

/* What follows for a module that was accepted; products that do not fit saturate at INT64_MAX. */
typedef struct {
    int64_t dp, model_parallel, total_ranks, first_rank, last_rank;
    int64_t expert_dp; /* 0 in the versions that do not know it */
} td_ruleset_facts;

enum { TD_MAX_RULESET_WARNINGS = 2 };

typedef struct {
    td_verdict_status status;
    const char *rule; /* the first violated rule, NULL unless rejected */
    int32_t n_warnings;
    const char *warnings[TD_MAX_RULESET_WARNINGS]; /* `etp_with_pp`, `leading_idle_ranks` */
    /* Accepted ones only: */
    int64_t total_world_size;      /* largest offset + ranks */
    const td_ruleset_facts *facts; /* [n_modules]; NULL for `communicator` */
    bool colocated;                /* core_layout: all modules share all ranks; else disjoint */
} td_ruleset_verdict;

/* Fails with TD_NOMEM only: a rejection is an answer. */
td_status td_rulesets_judge(td_arena *a, const td_ruleset_input *in,
                            td_ruleset_verdict out[TD_N_RULESETS], td_err *err);

/*
 * Judges a plan from `raw` alone, each ruleset in a world of its own largest offset + ranks.
 * `facts` run parallel to the plan's modules.
 */
td_status td_rulesets_judge_plan(td_arena *a, const td_plan *plan,
                                 td_ruleset_verdict out[TD_N_RULESETS], td_err *err);

/* A module's place on one rank, as core_layout assigns it; `core` accepted `in`. */
typedef struct {
    bool holds, first_stage, last_stage; /* colocated roles always are both first and last */
} td_ruleset_role;
td_ruleset_role td_ruleset_role_of(const td_ruleset_input *in, const td_ruleset_verdict *core,
                                   int32_t module, int64_t rank);

/* One module alone, in the first three versions: a missing dp is computed from `world_size`. */
void td_ruleset_finalize(td_ruleset_kind version, const td_ruleset_module *m, int64_t world_size,
                         td_ruleset_verdict *out, td_ruleset_facts *facts);

/* ---- layers per stage ---- */

typedef struct {
    int64_t layers;
    int32_t pp;                           /* >= 1 */
    int64_t first, last;                  /* layers of an uneven first or last stage, or TD_UNSET */
    bool account_embedding, account_loss; /* they count as a layer of the first and last stage */
} td_layer_split;

/*
 * How Megatron-core distributes layers over pipeline stages: `per_stage` [pp] is written. NULL, or
 * the violated rule: `uneven_with_embedding_or_loss`, `remaining_layers_not_divisible_by_stages`,
 * `layers_not_divisible_by_stages`, `too_few_layers_in_first_stage`,
 * `too_few_layers_in_last_stage`.
 */
const char *td_ruleset_layers(const td_layer_split *split, int64_t *per_stage);

#endif
