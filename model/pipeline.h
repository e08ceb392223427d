/*
 * The modules of a plan joined into one pipeline: how deep it is, at which stage each rank stands,
 * and what each transfer call of the schedule moves on it, to whom. Works on grids alone, so that
 * layouts which tandem would not run (encoders sharing ranks, sequences of encoders) can be judged
 * as well.
 */
#ifndef TANDEM_MODEL_PIPELINE_H
#define TANDEM_MODEL_PIPELINE_H

#include "model/bridge.h"
#include "model/plan.h"
#include "model/schedule.h"

typedef struct {
    const char *name;
    td_grid grid;
    bool language;
} td_pipe_module;

typedef struct {
    int32_t n_modules, n_edges;
    const td_pipe_module *modules; /* in module order */
    const td_edge *edges;          /* sorted by (src, dst) */
    const td_bridge *bridges;      /* [n_edges] */
    const bool *edge_gradient;     /* [n_edges] the bridge carries gradients back */
    /* [n_modules][pp]: does this stage run a backward; does a gradient cross the boundary below it?
     */
    bool *const *backward, *const *input_gradient;
    const int32_t
        *depth; /* [n_modules] stages before the module's first: longest path over pp sizes */
    int32_t total_stages;
    int64_t world_size;
} td_pipeline;

/*
 * Joins modules. `edges` in any order. Fails with TD_PLAN, rule (may be NULL) `cyclic_topology`,
 * `no_sink`, `terminal_module_is_not_language` or one of the bridge's, and with TD_NOMEM. Gradients
 * flow everywhere; td_pipeline_of_plan() knows what is frozen.
 */
td_status td_pipeline_build(td_arena *a, const td_pipe_module *modules, int32_t n_modules,
                            const td_edge *edges, int32_t n_edges, int64_t world_size,
                            td_pipeline *out, const char **rule, td_err *err);

td_status td_pipeline_of_plan(td_arena *a, const td_plan *plan, td_pipeline *out, td_err *err);

/* Where a rank stands. A rank may hold several modules (in module order); an idle rank holds none.
 */
typedef struct {
    int32_t n_modules;
    int32_t module[TD_MAX_MODULES];
    int32_t pp_rank[TD_MAX_MODULES];
    int32_t stage;          /* in the whole pipeline, by the first module it holds; -1 when idle */
    bool is_first, is_last; /* first stage of a source module; last stage of a sink module */
    bool first_stages_only; /* first stage of every module it holds */
} td_position;

td_position td_pipeline_position(const td_pipeline *p, int32_t rank);

/* What the schedule needs to know of a rank. */
td_schedule_input td_pipeline_schedule_input(const td_pipeline *p, const td_position *at,
                                             int32_t n_micro);

/* One transfer of a call. */
typedef enum { TD_MOVE_SEND, TD_MOVE_RECV, TD_MOVE_BROADCAST } td_move_kind;
typedef struct {
    uint8_t kind;
    bool gradient; /* gradient or activation */
    int32_t mb;
    int32_t peer;    /* other rank; root of a broadcast */
    int32_t edge;    /* bridge index, or -1 inside a module */
    int32_t module;  /* inside a module: which; -1 on a bridge */
    int32_t part;    /* on a bridge: the pair index of td_bridge.pairs (-1 for a broadcast) */
    int32_t n_group; /* broadcast: ranks in it, and who they are */
    const int32_t *group;
} td_move;

typedef struct {
    td_move *moves;
    int32_t n, cap;
} td_move_list;

/*
 * What `item` (a COMM) moves on `rank`, in issue order; moves of one edge are consecutive and form
 * one group. The list is emptied first and grows in the arena. TD_NOMEM.
 */
td_status td_pipeline_moves(const td_pipeline *p, td_arena *a, const td_position *at, int32_t rank,
                            const td_step_item *item, td_move_list *out, td_err *err);

/* Name of the edge a move belongs to: `images->language`, or the module's name. */
const char *td_move_edge_name(const td_pipeline *p, const td_move *m, char *text, int size);

#endif
