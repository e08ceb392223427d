/*
 * Links of a cluster and the way a transfer takes through them: each GPU has an NVLink port up and
 * down (the NVSwitch itself is not modelled), each NIC a port up and down, each leaf a trunk up to
 * the spine and down from it whose capacity is the sum of its NICs over the oversubscription. rail:
 * NIC i of every node hangs on leaf i; fat_tree: all NICs of a node hang on one leaf, one node a
 * leaf. Link latencies are paid as timers, never on links (SimGrid's CM02 would share bandwidth by
 * latency).
 */
#ifndef TANDEM_SIM_TOPOLOGY_H
#define TANDEM_SIM_TOPOLOGY_H

#include "model/program.h"

enum { TD_MAX_ROUTE = 6 };

typedef struct {
    int32_t n;
    int32_t link[TD_MAX_ROUTE];
    double latency_s;
    double bytes_per_s; /* slowest link on it */
} td_route;

typedef struct td_topology td_topology;

td_status td_topology_build(td_arena *a, const td_cluster *cluster, int32_t world_size,
                            td_topology **out, td_err *err);

int32_t td_topology_n_links(const td_topology *t);
double td_topology_capacity(const td_topology *t, int32_t link); /* bytes/s */
/* A name for messages: `nvlink up, rank 3`, `nic 1 of node 0, down`, `leaf 2 to spine`. */
void td_topology_link_name(const td_topology *t, int32_t link, char *text, int size);

/* from != to, both in [0, world_size). */
void td_topology_route(const td_topology *t, int32_t from, int32_t to, td_route *out);

#endif
