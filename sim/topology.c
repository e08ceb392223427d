/* Numbers the links a world of ranks can use and finds the way between two of them by arithmetic.
 */
#include "sim/topology.h"

#include <stdio.h>

/* Where a rank is attached. */
typedef struct {
    int32_t node,
        nic; /* nic: over the whole cluster; meaningful when there is more than one node */
} attachment;

struct td_topology {
    const td_cluster *cluster;
    int32_t world_size, n_nodes, n_nics, n_leaves;
    const attachment *at;       /* [world_size] */
    const int32_t *nic_of_node; /* [n_nodes + 1]: first NIC of a node */
    const int32_t *group;       /* [n_nodes] */
    const int32_t *leaf;        /* [n_nics] */
    const double *capacity;     /* [n_links] */
};

/* Links in order: NVLink ports, NIC ports, trunks; each up (from the GPU) then down. */
enum { UP, DOWN };

static int32_t nvlink(int32_t rank, int32_t way)
{
    return 2 * rank + way;
}

static int32_t nic_port(const td_topology *t, int32_t nic, int32_t way)
{
    return 2 * (t->world_size + nic) + way;
}

static int32_t trunk(const td_topology *t, int32_t leaf, int32_t way)
{
    return 2 * (t->world_size + t->n_nics + leaf) + way;
}

int32_t td_topology_n_links(const td_topology *t)
{
    return 2 * (t->world_size + t->n_nics + t->n_leaves);
}

double td_topology_capacity(const td_topology *t, int32_t link)
{
    return t->capacity[link];
}

void td_topology_link_name(const td_topology *t, int32_t link, char *text, int size)
{
    const int32_t port = link / 2, nic = port - t->world_size, leaf = nic - t->n_nics;
    const int down = link % 2;
    int32_t node = 0;
    if (nic < 0) {
        snprintf(text, (size_t)size, "nvlink %s, rank %d", down ? "down" : "up", port);
    } else if (leaf < 0) {
        while (t->nic_of_node[node + 1] <= nic)
            node++;
        snprintf(text, (size_t)size, "nic %d of node %d, %s", nic - t->nic_of_node[node], node,
                 down ? "down" : "up");
    } else {
        snprintf(text, (size_t)size, down ? "spine to leaf %d" : "leaf %d to spine", leaf);
    }
}

void td_topology_route(const td_topology *t, int32_t from, int32_t to, td_route *out)
{
    const attachment a = t->at[from], b = t->at[to];
    const td_node_group *ga = &t->cluster->groups[t->group[a.node]],
                        *gb = &t->cluster->groups[t->group[b.node]];
    int32_t n = 0;
    if (a.node == b.node) {
        out->link[n++] = nvlink(from, UP);
        out->link[n++] = nvlink(to, DOWN);
        out->latency_s = ga->nvlink_latency_s;
    } else {
        out->link[n++] = nic_port(t, a.nic, UP);
        if (t->leaf[a.nic] != t->leaf[b.nic]) {
            out->link[n++] = trunk(t, t->leaf[a.nic], UP);
            out->link[n++] = trunk(t, t->leaf[b.nic], DOWN);
        }
        out->link[n++] = nic_port(t, b.nic, DOWN);
        out->latency_s =
            (ga->nic_latency_s > gb->nic_latency_s ? ga->nic_latency_s : gb->nic_latency_s) +
            t->cluster->fabric.latency_s;
    }
    out->n = n;
    out->bytes_per_s = t->capacity[out->link[0]];
    for (int32_t i = 1; i < n; i++)
        if (t->capacity[out->link[i]] < out->bytes_per_s)
            out->bytes_per_s = t->capacity[out->link[i]];
}

/* Nodes and NICs under the first `world_size` GPUs, and the largest number of NICs in a node. */
static td_status count(td_topology *t, int32_t *rails, td_err *err)
{
    const td_cluster *c = t->cluster;
    int64_t gpus = 0, nics = 0;
    int32_t without = -1;
    *rails = 0;
    for (int32_t g = 0; g < c->n_groups && gpus < t->world_size; g++)
        for (int32_t i = 0; i < c->groups[g].count && gpus < t->world_size; i++) {
            gpus += c->groups[g].gpus;
            nics += c->groups[g].nics;
            *rails = c->groups[g].nics > *rails ? c->groups[g].nics : *rails;
            if (c->groups[g].nics == 0 && without < 0)
                without = t->n_nodes;
            t->n_nodes++;
        }
    if (gpus < t->world_size)
        return td_fail(err, TD_PLAN, "%s: the cluster has %lld GPUs, but the plan needs %d",
                       c->file, (long long)gpus, t->world_size);
    if (t->n_nodes > 1 && c->fabric.kind == TD_FABRIC_SINGLE)
        return td_fail(err, TD_PLAN,
                       "%s: fabric.kind is single, but the plan's %d ranks span %d nodes: name a "
                       "fabric between them",
                       c->file, t->world_size, t->n_nodes);
    if (t->n_nodes > 1 && without >= 0)
        return td_fail(err, TD_PLAN,
                       "%s: node %d has no NIC, but the plan's %d ranks span %d nodes", c->file,
                       without, t->world_size, t->n_nodes);
    if (nics > INT32_MAX / 8 || t->world_size > INT32_MAX / 8)
        return td_fail(err, TD_PLAN, "%s: %lld NICs are more than can be simulated", c->file,
                       (long long)nics);
    t->n_nics = (int32_t)nics;
    return TD_OK;
}

/*
 * A rail leaf holds the NICs of one position, a fat-tree leaf those of one node: the cluster does
 * not say how many nodes share a leaf, and one is the reading that promises least.
 */
static void attach(td_topology *t, attachment *at, int32_t *nic_of_node, int32_t *group,
                   int32_t *leaf, double *cap)
{
    const td_cluster *c = t->cluster;
    int32_t rank = 0, node = 0, nic = 0;
    for (int32_t g = 0; g < c->n_groups && node < t->n_nodes; g++) {
        const td_node_group *kind = &c->groups[g];
        for (int32_t i = 0; i < kind->count && node < t->n_nodes; i++, node++) {
            nic_of_node[node] = nic;
            group[node] = g;
            for (int32_t k = 0; k < kind->gpus && rank < t->world_size; k++, rank++) {
                const int64_t own = kind->gpus > 0 ? (int64_t)k * kind->nics / kind->gpus : 0;
                at[rank] = (attachment){.node = node, .nic = nic + (int32_t)own};
                cap[nvlink(rank, UP)] = cap[nvlink(rank, DOWN)] = kind->nvlink_bytes_per_s;
            }
            for (int32_t k = 0; k < kind->nics && nic < t->n_nics; k++, nic++) {
                leaf[nic] = c->fabric.kind == TD_FABRIC_RAIL ? k : node;
                cap[nic_port(t, nic, UP)] = cap[nic_port(t, nic, DOWN)] = kind->nic_bytes_per_s;
                cap[trunk(t, leaf[nic], UP)] += kind->nic_bytes_per_s;
                cap[trunk(t, leaf[nic], DOWN)] += kind->nic_bytes_per_s;
            }
        }
    }
    nic_of_node[node] = nic;
    for (int32_t l = 0; l < t->n_leaves; l++) {
        cap[trunk(t, l, UP)] /= c->fabric.oversubscription;
        cap[trunk(t, l, DOWN)] /= c->fabric.oversubscription;
    }
}

td_status td_topology_build(td_arena *a, const td_cluster *cluster, int32_t world_size,
                            td_topology **out, td_err *err)
{
    td_status st = TD_OK;
    int32_t rails = 0;
    td_topology *t = TD_NEW(a, td_topology, 1);
    if (t == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the topology"));
    t->cluster = cluster;
    t->world_size = world_size;
    TD_TRY(st, count(t, &rails, err));
    t->n_leaves = t->n_nodes < 2 ? 0 : cluster->fabric.kind == TD_FABRIC_RAIL ? rails : t->n_nodes;
    if (t->n_nodes < 2)
        t->n_nics = 0; /* nothing leaves the node */

    attachment *at = TD_NEW(a, attachment, world_size);
    int32_t *nic_of_node = TD_NEW(a, int32_t, t->n_nodes + 1),
            *group = TD_NEW(a, int32_t, t->n_nodes);
    int32_t *leaf = TD_NEW(a, int32_t, t->n_nics);
    double *cap = TD_NEW(a, double, td_topology_n_links(t));
    if (at == NULL || nic_of_node == NULL || group == NULL || leaf == NULL || cap == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the topology of %d ranks", world_size));
    t->at = at;
    t->nic_of_node = nic_of_node;
    t->group = group;
    t->leaf = leaf;
    t->capacity = cap;
    attach(t, at, nic_of_node, group, leaf, cap);
    *out = t;
done:
    return st;
}
