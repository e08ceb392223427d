/* Finds the nodes that have fewer cores than ranks. */
#include "sim/cores.h"

#include <string.h>

static bool on_host(const td_profile *p)
{
    return p->backend != NULL && strcmp(p->backend, "host") == 0;
}

td_status td_cores_build(td_arena *a, const td_program *p, const td_costs *costs,
                         const td_cores **out, int32_t *unknown, td_err *err)
{
    const td_cluster *cluster = p->plan->cluster;
    const int32_t n = td_cluster_place(cluster, p->world_size - 1).node + 1;
    td_cores *c = TD_NEW(a, td_cores, 1);
    int32_t *node_of = TD_NEW(a, int32_t, p->world_size), *first = TD_NEW(a, int32_t, n + 1),
            *cores = TD_NEW(a, int32_t, n);
    bool shared = false;
    if (c == NULL || node_of == NULL || first == NULL || cores == NULL)
        return td_fail(err, TD_NOMEM, "no memory for the cores of %d ranks", (int)p->world_size);
    *unknown = -1;
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_place at = td_cluster_place(cluster, r);
        const int32_t given = cluster->groups[at.group].cores;
        const bool host = on_host(td_costs_profile(costs, r));
        node_of[r] = at.node;
        first[at.node + 1] = r + 1;
        cores[at.node] = host && given > 0 ? given : INT32_MAX;
        if (host && given == 0 && *unknown < 0)
            *unknown = r;
    }
    for (int32_t i = 0; i < n; i++)
        shared = shared || first[i + 1] - first[i] > cores[i];
    *c = (td_cores){.n_nodes = n, .node_of = node_of, .first = first, .cores = cores};
    *out = shared ? c : NULL;
    return TD_OK;
}
