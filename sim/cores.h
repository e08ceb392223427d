/*
 * Ranks that share the cores of their node, as those of the `host` backend do; a GPU is a rank's
 * own. On a node with C cores and n ranks that compute at an instant each runs at min(1, C / n) of
 * its speed: generalised processor sharing (Parekh and Gallager, IEEE/ACM Trans. Networking 1993),
 * which a fair scheduler approaches over many slices. Ranks that wait sleep, and need no core.
 *
 * Shares are equal over many slices (milliseconds each), not over one op: ranks that wait for each
 * other at every collective probably go at the pace of the one left out. On two cores two such
 * ranks beside a third took 17 to 33 % longer than this says, pipelines 7 to 13 %.
 */
#ifndef TANDEM_SIM_CORES_H
#define TANDEM_SIM_CORES_H

#include "sim/costs.h"

typedef struct {
    int32_t n_nodes;
    const int32_t *node_of; /* [world_size] */
    const int32_t *first;   /* [n_nodes + 1] first rank of a node: its ranks follow one another */
    const int32_t *cores;   /* [n_nodes] >= 1; INT32_MAX: as many as there are ranks */
} td_cores;

/* What a node's ranks take, of their time alone, when `n_computing` of them compute. */
static inline double td_cores_factor(const td_cores *c, int32_t node, int32_t n_computing)
{
    return n_computing > c->cores[node] ? (double)n_computing / c->cores[node] : 1;
}

/*
 * Who shares: ranks whose profile was calibrated on `host`, on nodes that have fewer cores than
 * ranks. `*out` is NULL if nobody does. `*unknown` is the first rank on `host` whose node does not
 * say how many cores it has, which are then taken to be enough; -1: none. Fails with TD_NOMEM.
 */
td_status td_cores_build(td_arena *a, const td_program *p, const td_costs *costs,
                         const td_cores **out, int32_t *unknown, td_err *err);

#endif
