/*
 * A plan: the modules, where each runs, and how one training step is done. Open data; const once
 * loaded. Keys, defaults and limits: README, "The plan". Every number has been checked against its
 * limits before it stands here.
 */
#ifndef TANDEM_MODEL_PLAN_H
#define TANDEM_MODEL_PLAN_H

#include "model/cluster.h"
#include "model/diag.h"
#include "model/grid.h"

enum {
    TD_MAX_LAYERS = 65536,
    TD_MAX_MICROBATCHES = 1048576,
    TD_MAX_RANKS = 1048576,
    TD_MAX_MODULES = 64 /* a sane bound: every module is a row of every report */
};

typedef enum { TD_MLP_SWIGLU, TD_MLP_GELU, TD_N_MLPS } td_mlp;
typedef enum { TD_FROZEN_FALSE, TD_FROZEN_TRUE, TD_FROZEN_BACKBONE } td_frozen;
typedef enum {
    TD_RECOMPUTE_NONE,
    TD_RECOMPUTE_SELECTIVE,
    TD_RECOMPUTE_FULL,
    TD_N_RECOMPUTES
} td_recompute;
typedef enum { TD_BUCKETS_ALL_STAGES, TD_BUCKETS_REFERENCE, TD_N_BUCKET_POLICIES } td_bucket_policy;
typedef enum { TD_BF16, TD_FP32, TD_N_PRECISIONS } td_precision;
typedef enum { TD_NONFINITE_SKIP, TD_NONFINITE_PROPAGATE, TD_N_NONFINITES } td_nonfinite;

/* The words of the file for the enums above, in their order; each array ends with NULL. */
extern const char *const td_mlp_names[],
    *const td_frozen_names[], *const td_recompute_names[], *const td_bucket_policy_names[],
                                                               *const td_precision_names[],
                                                                   *const td_nonfinite_names[];

/* `parallel` as written, before any check: what the rulesets are judged from. A size that was not
 * written is 0. */
typedef struct {
    bool present; /* there is a readable `parallel` mapping */
    int64_t tp, cp, pp, dp, ep, etp, offset;
    bool has_offset;
    uint8_t zero; /* bit i: the i-th of tp, cp, pp, dp, ep, etp was written, as 0 */
} td_parallel_raw;

struct td_module_type; /* model/module.h */

typedef struct {
    const char *name;
    td_pos at, parallel_at;
    const struct td_module_type *type;
    int32_t layers, hidden, heads, kv_heads, head_dim, ffn;
    int32_t vocab; /* language only, else 0 */
    int32_t seq;   /* tokens of one sample: the whole sequence for language, its placeholders for an
                      encoder */
    int32_t input_dim; /* encoders only, else 0 */
    td_mlp mlp;
    td_frozen frozen;
    int32_t tp, cp, pp, dp, ep, etp, offset; /* etp defaults to tp */
    const int32_t *stage_layers;             /* layers of each of the pp stages, always filled */
    td_parallel_raw raw;
    td_grid grid;   /* tp, cp, dp, pp in the plan's rank_order */
    td_grid expert; /* expt_tp, ep, expt_dp, pp; pp at the same place in the order */
} td_module;

typedef struct {
    int32_t src, dst; /* module indices */
} td_edge;

typedef struct td_plan {
    const char *file, *name;
    const td_cluster *cluster; /* NULL if it could not be read (there is an error then) */
    td_axis rank_order[4];     /* permutation of tp, cp, dp, pp; fastest first */
    int32_t n_modules;
    const td_module
        *modules;     /* in the order of the file, which is the module order of the schedule */
    int32_t language; /* index of the language module; -1 if missing (an error) */
    int32_t n_edges;
    const td_edge *edges; /* sorted by (src, dst) module order, whatever the order in the file */
    struct {
        const char *schedule; /* `1f1b` */
        int32_t microbatches, micro_batch;
        bool shape_exchange, grad_overlap, sequence_parallel;
        td_recompute recompute;
        int64_t bucket_elements;
        td_bucket_policy bucket_policy;
    } step;
    struct {
        double lr, beta1, beta2, eps, weight_decay, clip_grad;
        bool sharded;
        td_nonfinite nonfinite;
    } optimizer;
    td_precision precision;
    uint32_t seed;
    int32_t n_data; /* data: real samples; name is `tokens` or a module's */
    const struct td_data_file {
        const char *name, *file;
    } * data;
    int64_t world_size; /* largest offset + ranks; idle leading ranks included */
} td_plan;

/*
 * Reads and checks a plan. Everything wrong with it is added to `diags` (as are warnings); `*out`
 * is the plan as far as it could be understood and is complete and consistent only if
 * diags->n_errors == 0. Fails with TD_FILE, and only then, when the file is not readable as a
 * mapping (missing, directory, binary, truncated, not YAML, not a mapping, resource bounds
 * exceeded). Memory is bounded by a multiple of the file's size, at most 16 MiB of it.
 */
td_status td_plan_load(td_arena *a, const char *path, td_diags *diags, const td_plan **out,
                       td_err *err);

/* The same from text in memory (`name` stands for the file in messages; relative paths are taken
 * from its folder). */
td_status td_plan_parse(td_arena *a, const char *name, const char *text, size_t size,
                        td_diags *diags, const td_plan **out, td_err *err);

/* Samples that one data lane of module `m` handles per microbatch: micro_batch * dp_lang / dp_m. */
int32_t td_plan_lane_samples(const td_plan *plan, int32_t m);

/* Index of a module by name, or -1. */
int32_t td_plan_module(const td_plan *plan, const char *name);

/* What `predict` and `run` cannot do yet (cp > 1, ep > 1, etp != tp): TD_PLAN naming the module and
 * the key. */
td_status td_plan_executable(const td_plan *plan, td_err *err);

#endif
