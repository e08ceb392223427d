/*
 * What a module is made of: its parameter tensors and the work of each of its pipeline stages, per
 * rank. A module type is one file ending in one const descriptor and one line in td_module_types[];
 * transformer layers are shared. Conventions: tensors are [out, in]; `e` is the element size of
 * activations (2 for bf16, 4 for fp32); all sizes are per rank, after tensor-parallel sharding
 * (Shoeybi et al., "Megatron-LM", 2019; sequence parallelism: Korthikanti et al., "Reducing
 * Activation Recomputation in Large Transformer Models", 2022).
 */
#ifndef TANDEM_MODEL_MODULE_H
#define TANDEM_MODEL_MODULE_H

#include "model/part.h"
#include "model/plan.h"

/* How a tensor is cut over the tensor-parallel ranks. KV: like OUT, but replicated where kv_heads <
 * tp. */
typedef enum { TD_SHARD_NONE, TD_SHARD_OUT, TD_SHARD_IN, TD_SHARD_KV } td_shard;

typedef struct {
    const char *name; /* suffix after `MODULE.` or `MODULE.layers.L.`: `q.weight` */
    int32_t layer;    /* -1 outside the layers */
    int64_t out, in;  /* full shape; in == 1 for vectors */
    td_shard shard;
    bool decay;     /* weight decay applies: matrices and embeddings */
    bool trainable; /* false where the plan freezes it */
    bool joined;    /* stands right behind the tensor before it: one product does both */
    int32_t
        copies; /* tp ranks that hold the same numbers: 1 when fully sharded, tp when replicated */
    int64_t local; /* elements on one rank */
} td_param;

/* One pipeline stage of one module, for one microbatch on one data lane. */
typedef struct {
    const td_plan *plan;
    const td_module *module;
    int32_t pp_rank, first_layer, n_layers;
    bool first, last;
    int32_t samples;               /* of one microbatch on this lane */
    int64_t tokens;                /* samples * module->seq */
    int32_t e;                     /* bytes per activation element */
    bool layers_train, ends_train; /* weight gradients for layers; for embed/head or projector */
    bool input_grad; /* the stage's input needs a gradient: something below it trains */
    bool backward;   /* anything at or below this stage trains */
} td_stage;

typedef void (*td_param_visit)(void *self, const td_param *p);

/* Grows in an arena; `failed` is sticky (no memory), checked once at the end. */
typedef struct {
    td_arena *arena;
    td_part *parts;
    int32_t n_parts, cap_parts;
    td_part_run *runs;
    int32_t n_runs, cap_runs;
    bool failed;
} td_work_builder;

/* Bytes of the stage's boundary tensors on this rank: what a transfer carries. 0 at an end of the
 * pipeline. */
typedef struct {
    uint64_t input, output;
} td_stage_payload;

typedef struct td_module_type {
    const char *name, *summary;
    bool language;
    td_mlp mlp;     /* default */
    bool norm_bias; /* LayerNorm with bias instead of RMSNorm */
    bool linear_bias;
    bool causal, rotary;
    /* What stands before and after the layers; called for the first / last stage only. */
    void (*params_before)(const td_stage *s, td_param_visit visit, void *self);
    void (*params_after)(const td_stage *s, td_param_visit visit, void *self);
    void (*forward_before)(const td_stage *s, td_work_builder *w);
    void (*forward_after)(const td_stage *s, td_work_builder *w);
    void (*backward_after)(const td_stage *s, td_work_builder *w); /* runs first in the backward */
    void (*backward_before)(const td_stage *s, td_work_builder *w);
    /* Width of what the last stage hands to other modules; 0: nothing. */
    int64_t (*output_width)(const td_stage *s);
} td_module_type;

extern const td_module_type td_module_vision, td_module_audio, td_module_language;
extern const td_module_type *const td_module_types[]; /* ends with NULL */

/* NULL if there is none of that name. */
const td_module_type *td_module_type_find(const char *name);

/* Stage `pp_rank` of module `m` of a plan without errors. */
td_stage td_stage_of(const td_plan *plan, int32_t m, int32_t pp_rank);

/* Does the last stage of module `m` take part in the backward, so that bridges from it carry
 * gradients? */
bool td_module_has_backward(const td_plan *plan, int32_t m);

/* Parameter tensors of the stage in forward order. */
void td_stage_params(const td_stage *s, td_param_visit visit, void *self);

/* Parts of one microbatch in one direction; backward is empty when s->backward is false. TD_NOMEM.
 */
td_status td_stage_forward(td_arena *a, const td_stage *s, td_work *out, td_err *err);
td_status td_stage_backward(td_arena *a, const td_stage *s, td_work *out, td_err *err);

td_stage_payload td_stage_payload_of(const td_stage *s);

/* ---- for module files ---- */

/* Closes the current run (parts added since the last call) with a repeat count. */
void td_work_run(td_work_builder *w, int32_t repeat, int32_t layer0, int32_t layer_step);
void td_work_gemm(td_work_builder *w, const td_stage *s, const char *name, td_pass pass, int64_t m,
                  int64_t n, int64_t k);
void td_work_bytes(td_work_builder *w, const td_stage *s, td_part_class class, const char *name,
                   td_pass pass, int64_t bytes);
/* Nothing where tp is 1. */
void td_work_collective(td_work_builder *w, const td_stage *s, const char *name, int32_t coll,
                        td_pass pass, int64_t bytes);
td_status td_work_finish(td_work_builder *w, td_work *out, td_err *err);

/* Hands on a parameter with `copies` and `local` filled in. */
void td_param_emit(const td_stage *s, td_param_visit visit, void *self, td_param p);

/* tokens of the sequence-parallel region on this rank: tokens / tp with sequence parallelism, else
 * tokens */
int64_t td_stage_region_tokens(const td_stage *s);

/* The collective that leaves / enters a tensor-parallel block: all-reduce, or reduce-scatter and
 * all-gather. */
void td_work_leave(td_work_builder *w, const td_stage *s, const char *name, td_pass pass,
                   int64_t width);
void td_work_enter(td_work_builder *w, const td_stage *s, const char *name, td_pass pass,
                   int64_t width);

#endif
