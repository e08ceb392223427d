/*
 * Plans for tests: from YAML text, or from a handful of numbers; and a table of layouts, plain ones
 * and odd ones, that laws are stated over.
 */
#ifndef TANDEM_TESTS_MODEL_PLANS_H
#define TANDEM_TESTS_MODEL_PLANS_H

#include "model/module.h"
#include "model/pipeline.h"

enum { PLAN_ENCODERS = 4 };

/* Where a module runs. Sizes of 0 stand for 1; NULL for what the plan defaults to. */
typedef struct {
    int32_t tp, pp, dp;
    const char *stage_layers; /* `[3, 1]` */
    const char *frozen;       /* `true`, `backbone` */
    int32_t layers;           /* 0: 4 */
} plan_where;

/* The language module comes after the encoders unless `language_first`; ranks are consecutive. */
typedef struct {
    const char *name;
    int32_t n_encoders; /* images, audio, video, radar */
    plan_where encoder[PLAN_ENCODERS], language;
    int32_t scale;    /* 0 and 1: hidden 64 and 32; s: s times as wide everywhere */
    int32_t kv_heads; /* 0: 8, as many as heads */
    int32_t idle;     /* leading ranks without a module */
    bool pp_before_dp, language_first;
    int32_t microbatches, micro_batch; /* 0: 4, 4 */
    const char *step;                  /* more keys of `step`: `shape_exchange: false` */
    const char *optimizer;             /* keys of `optimizer`: `sharded: false` */
    bool fp32;
} plan_shape;

/* Many layouts, all valid; ends with a NULL name. */
extern const plan_shape plan_shapes[];

/*
 * Both abort the test, saying why, unless the plan is valid. `plan_parse` puts a cluster of 131072
 * GPUs of 80 GiB before the text.
 */
const td_plan *plan_parse(td_arena *a, const char *text);
const td_plan *plan_of(td_arena *a, const plan_shape *shape);

td_pipeline plan_pipeline(td_arena *a, const td_plan *plan);

/* A deterministic sequence of numbers in [0, n). */
int32_t plan_dice(uint32_t *state, int32_t n);

/* A valid layout of few ranks, drawn at random. */
plan_shape plan_random(uint32_t *state);

#endif
