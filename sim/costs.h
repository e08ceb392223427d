/*
 * The price list of one program on one cluster: everything the event loop needs to know about time,
 * computed once per distinct work and communicator, so that the loop itself only looks up.
 */
#ifndef TANDEM_SIM_COSTS_H
#define TANDEM_SIM_COSTS_H

#include "sim/cost.h"
#include "sim/topology.h"

/* A work on one kind of GPU. */
typedef struct {
    double compute_s;    /* parts that are not collectives, at full clocks */
    double gemm_s;       /* of that: products and attention, which a lower clock stretches */
    double collective_s; /* tensor-parallel collectives inside, serial with the rest */
    double total_s;      /* compute_s + collective_s */
    double heat;         /* mean over total_s, of td_heat: 1 for products */
} td_work_cost;

/* An op's communication alone on its links. */
typedef struct {
    td_comm_cost lone;
    uint64_t edge_bytes; /* whole bytes over each edge, the same for every engine */
    double rate; /* lone rate on an edge: edge_bytes / (total - alpha); 0 if edge_bytes is 0 */
    td_overlap overlap; /* mutual slow-down with compute; factors 1 for control messages */
} td_op_cost;

/*
 * `kind_of[rank]` is the GPU kind (the cluster's node group); works[kind * n_works + w]. comm costs
 * are looked up by (communicator, op kind, bytes) and kept in a small table per communicator shape.
 */
typedef struct td_costs td_costs;

typedef struct {
    const td_cost_model *model; /* NULL: td_cost_model_for() each profile */
    const char
        *profile;    /* NULL: as the cluster says; else a shipped name or path used for every GPU */
    bool strict;     /* an extrapolated shape is a failure (TD_PLAN) */
    bool no_overlap; /* switch the mutual slow-down of compute and transfers off */
} td_costs_options;

/* Fails with TD_FILE (profile), TD_PLAN (strict), TD_NOMEM. `notes` gets what was extrapolated. */
td_status td_costs_build(td_arena *a, const td_program *p, const td_topology *topo,
                         const td_costs_options *o, td_cost_notes *notes, const td_costs **out,
                         td_err *err);

/* Cost of a compute op's work on the GPU of `rank`. */
const td_work_cost *td_costs_work(const td_costs *c, int32_t rank, int32_t work);

/* Seconds until the first `after_part` flattened parts of a work are done (for gradient buckets).
 */
double td_costs_work_until(const td_costs *c, int32_t rank, int32_t work, int64_t after_part);

/* Cost of an op with a channel. Same pointer for same (communicator shape, kind, bytes). */
const td_op_cost *td_costs_op(const td_costs *c, int32_t rank, const td_op *op);

/* Profile of a rank's GPU. */
const td_profile *td_costs_profile(const td_costs *c, int32_t rank);

/* Seconds of one part on the GPU of `rank`, tensor-parallel collectives included (`--trace fine`,
 * critical path). */
double td_costs_part(const td_costs *c, int32_t rank, int32_t work, int32_t part_index);

/* ---- what the prices are made of ---- */

/* One price of the list and what it buys: a part, or a communication. */
typedef struct {
    const td_profile *profile;  /* of the GPU; of a communication, of its first kind of member */
    const td_part *part;        /* NULL: an op's communication */
    const td_comm_query *query; /* NULL: not a communication; a COLLECTIVE part has both */
    double seconds;
} td_priced;

/* Every price that an op's consists of, and how often it is in it. */
void td_costs_visit(const td_costs *c, int32_t rank, const td_op *op, void *self,
                    void (*visit)(void *self, const td_priced *what, double times));

/*
 * The same list with every price multiplied by the factor (> 0) that `factor` has for it, latency
 * and all; a factor of 1 keeps a price to the bit. Every price is asked for once, in the same order
 * every time. The new list refers to `c`. Fails with TD_NOMEM only.
 */
td_status td_costs_rescaled(td_arena *a, const td_costs *c, void *self,
                            double (*factor)(void *self, const td_priced *what),
                            const td_costs **out, td_err *err);

#endif
