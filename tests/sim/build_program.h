/*
 * Synthetic step programs with prices one can do sums with: 1F1B pipelines of any extent, and
 * programs written out op by op. Tests of the event loop run on them.
 */
#ifndef TANDEM_TESTS_SIM_BUILD_PROGRAM_H
#define TANDEM_TESTS_SIM_BUILD_PROGRAM_H

#include "sim/engine.h"

/* Everything a test wants to say about a pipeline; zero is the plainest: no transfers' time, no
 * groups. */
typedef struct {
    int32_t tp, dp, pp, microbatches; /* >= 1; rank = t + tp * (d + dp * p) */
    double forward_s, backward_s;
    double jitter; /* each stage's times are multiplied by 1 + jitter * (a number in [0, 1) of the
                      stage) */
    int32_t
        kinds; /* >= 2: data lane d has GPUs of kind d mod kinds, kind k is 1 + k/8 times slower */
    bool shapes;    /* an eager message before every transfer */
    bool gradients; /* a reduction over dp that starts in the middle of the last backward, then a
                       world collective */
    td_op_cost transfer, shape, reduce, world; /* total_s 0: free */
} built_pipeline;

/* One op of a program written out by hand, in the order of its rank's stream. */
typedef struct {
    int32_t rank;
    td_op_kind kind;
    td_lane lane;
    int32_t comm;       /* -1 for compute */
    int32_t after;      /* op of the same rank that it waits for; -1: none */
    int32_t price;      /* index into the works or costs */
    int32_t after_part; /* of `after`; 0: its end, else that many parts of it */
} built_op;

typedef struct {
    td_comm_kind kind;
    int32_t n_ranks;
    int32_t ranks[8]; /* of a pair: sender, receiver */
} built_comm;

typedef struct {
    td_program program;
    td_prices prices;
} built;

/* Both abort the test on failure. */
built *build_pipeline(td_arena *a, const built_pipeline *o);
built *build_by_hand(td_arena *a, int32_t world, int32_t n_comms, const built_comm *comms,
                     int32_t n_ops, const built_op *ops, const double *works_s,
                     const td_op_cost *costs);

enum { BUILT_PARTS = 4 }; /* every work has this many parts of equal length */

/* Nodes of `gpus` GPUs and `nics` NICs each, all ports 50e9 bytes/s, a fat tree between them. */
const td_topology *build_topology(td_arena *a, int32_t world, int32_t gpus, int32_t nics,
                                  double oversubscription);

/* latency, then `bytes` at `rate`. */
td_op_cost flow_cost(double alpha_s, uint64_t bytes, double rate);

#endif
