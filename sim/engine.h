/*
 * The event loop: plays a step program against a price list and says when every op starts and ends.
 *
 * Compute ops and transfers that no link is too small for are arithmetic on a heap of events; a
 * transfer goes to the contention back-end (sim/net.h) only when the lone rates of the flows on one
 * of its links exceed what the link carries.
 *
 * What an op does in time:
 *   COMPUTE      runs for its price, stretched by what the clock does to it (`stretch`).
 *   SEND, RECV   start when both sides have issued them: `alpha_s` of latency, then `edge_bytes` at
 * the lone rate. EAGER_SEND   takes its lone time at once; its RECV ends when it has both been
 * issued and the message has arrived. GROUP        starts with the last member; latency, then one
 * flow per ring edge i -> i+1; ends with the last edge. One rank: 0 s. An op is issued when the op
 * before it on its lane has ended and its dependencies are met. Messages of at most TD_PACKET_BYTES
 * over an edge, eager messages included, are pure timers: they take their lone time and load no
 * link.
 *
 * Shared cores (sim/cores.h): a compute op runs at the rate that its rank gets of the node's cores.
 *
 * Mutual slow-down (td_op_cost.overlap): a transfer that is past its latency and has a member GPU
 * that computes runs at 1/transfer of its rate, and one that ends its latency beside a running
 * kernel waits `wait_s` once; a compute op runs at 1/compute of its rate while its GPU has such
 * transfers (the largest factor counts). All of it takes effect after everything that happens at
 * one instant has happened, so results do not depend on the order of simultaneous events.
 */
#ifndef TANDEM_SIM_ENGINE_H
#define TANDEM_SIM_ENGINE_H

#include "sim/cores.h"
#include "sim/net.h"
#include "sim/timeline.h"

enum { TD_PACKET_BYTES = 4096 };

/*
 * Where prices come from. Pointers returned stay valid during the run. `op` must say the same for
 * every member of a communicator; equal content makes ranks alike, not equal addresses.
 */
typedef struct {
    const void *self;
    const td_work_cost *(*work)(const void *self, int32_t rank, int32_t work);
    double (*work_until)(const void *self, int32_t rank, int32_t work, int64_t after_part);
    const td_op_cost *(*op)(const void *self, int32_t rank, const td_op *op);
} td_prices;

/* The prices of a price list. */
td_prices td_prices_of(const td_costs *costs);

typedef enum {
    TD_FLOWS_IDEAL,  /* links of infinite capacity */
    TD_FLOWS_SHARED, /* flows that share an over-subscribed link go to the contention back-end */
    TD_FLOWS_ALL     /* every flow does: the check on the fast path */
} td_flows;

typedef struct {
    td_flows flows;
    const td_net *net;   /* needed from the first contention on; NULL there: TD_ABSENT */
    bool no_fold;        /* simulate every rank by itself */
    bool buffered_sends; /* every SEND leaves at once, as an EAGER_SEND does */
    /* [world_size][ops of the rank's stream] factor on the time of compute ops; NULL: 1. Ranks can
     * only be alike where the pointers are equal. */
    const double *const *stretch;
    const td_cores *cores; /* whose cores ranks share, each simulated then; NULL: nobody does */
    double stall_s; /* wall seconds without progress after which the back-end is given up; 0: 120 */
} td_engine_options;

/*
 * Simulates one step. `topo` may be NULL for TD_FLOWS_IDEAL. The timeline lives in `a`. Runs in
 * this process until links are over-subscribed, then in a child that owns the back-end; the same
 * input gives the same bits every time. Fails with TD_RUN naming rank, op and what it waits for if
 * the step does not end or the child dies, TD_ABSENT, TD_PLAN (a dependency that cannot be),
 * TD_NOMEM.
 */
td_status td_engine_run(td_arena *a, const td_program *p, const td_topology *topo,
                        const td_prices *prices, const td_engine_options *o,
                        const td_timeline **out, td_err *err);

#endif
