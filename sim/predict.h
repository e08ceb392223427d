/*
 * A prediction: the timeline of one step at the clocks that the step itself causes, and what a
 * planner wants to know of it. The step ends with a collective over the world and the next begins
 * there, so its length is the steady period.
 */
#ifndef TANDEM_SIM_PREDICT_H
#define TANDEM_SIM_PREDICT_H

#include "model/memory.h"
#include "sim/clocks.h"
#include "sim/engine.h"

typedef struct {
    td_flows flows;
    const td_net *net;
    bool no_fold;
    td_costs_options costs;
} td_predict_options;

/*
 * Where the time of one rank goes; the four add up to the step. At each instant the first that
 * applies counts: a compute kernel runs (busy), a collective runs, a transfer runs, nothing does
 * (bubble).
 */
typedef struct {
    double busy_s, collective_s, transfer_s, bubble_s;
} td_rank_time;

/* One line of the critical path in words: `language attention/MLP`, `bridge images->language`. */
typedef struct td_path_item {
    struct td_path_item *next;
    char what[96];
    double seconds;
} td_path_item;

/* An op on the critical path. */
typedef struct td_path_op {
    struct td_path_op *next;
    int32_t rank, op;
    double seconds; /* of it that the path goes through */
} td_path_op;

typedef struct {
    double compute_s, transfer_s, collective_s, wait_s; /* add up to the step */
    td_path_item *items;                                /* longest first */
    int32_t n_ops;                                      /* ops on the path */
    td_path_op *ops;                                    /* in order of time */
} td_critical_path;

typedef struct {
    const td_program *program;
    const td_timeline *timeline;
    const td_costs *costs;
    td_cost_notes notes;   /* what was extrapolated */
    const td_cores *cores; /* that ranks share; NULL: none does */
    int32_t cores_unknown; /* a rank that might, were the cores of its node known; -1: none */
    double step_s, tokens_per_s, flops_per_step, mfu, bubble_fraction;
    const td_rank_time *class_time; /* [timeline->n_classes] */
    const td_clocks *class_clocks;  /* that the timeline causes */
    int32_t n_rounds;               /* schedule -> heat -> clocks, until nothing moves */
    bool settled;
    td_critical_path path;
    const td_memory *const *memory; /* [n_modules][pp] */
} td_prediction;

/*
 * A step whose sends would wait for one another for ever is predicted as if every send were
 * buffered, which `out->timeline->buffered_sends` says. `out->timeline` and all else live in `a`.
 * Fails as td_costs_build() and td_engine_run() do.
 */
td_status td_predict(td_arena *a, const td_program *p, const td_predict_options *o,
                     td_prediction *out, td_err *err);

/* ---- its parts ---- */

void td_rank_time_of(const td_timeline *t, const td_costs *costs, int32_t class, td_rank_time *out);

td_status td_critical_path_of(td_arena *a, const td_timeline *t, const td_costs *costs,
                              td_critical_path *out, td_err *err);

#endif
