/* A way between two GPUs starts at one, ends at the other, and takes exactly the links between
 * them. */
#include "sim/topology.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* 3 nodes of 4 GPUs and 2 NICs, then 2 nodes of 2 GPUs and 2 faster NICs. */
static const td_node_group groups[] = {{.count = 3,
                                        .gpus = 4,
                                        .nvlink_bytes_per_s = 450e9,
                                        .nvlink_latency_s = 1e-6,
                                        .nics = 2,
                                        .nic_bytes_per_s = 50e9,
                                        .nic_latency_s = 2e-6},
                                       {.count = 2,
                                        .gpus = 2,
                                        .nvlink_bytes_per_s = 300e9,
                                        .nvlink_latency_s = 2e-6,
                                        .nics = 2,
                                        .nic_bytes_per_s = 100e9,
                                        .nic_latency_s = 3e-6}};
enum { WORLD = 3 * 4 + 2 * 2 };

static td_cluster cluster_of(td_fabric_kind kind)
{
    return (td_cluster){.file = "test.yaml",
                        .n_groups = 2,
                        .groups = groups,
                        .fabric = {.kind = kind, .oversubscription = 4, .latency_s = 5e-6},
                        .n_gpus = WORLD,
                        .n_nodes = 5};
}

static const td_topology *topology(td_arena *a, const td_cluster *c)
{
    td_topology *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_topology_build(a, c, WORLD, &t, &err), TD_OK, "%s", err.text);
    return t;
}

static int32_t node_of(int32_t rank)
{
    return rank < 12 ? rank / 4 : 3 + (rank - 12) / 2;
}

static int32_t nic_of(int32_t rank)
{
    return rank < 12 ? rank % 4 / 2 : (rank - 12) % 2;
}

static void expect_link(const td_topology *t, int32_t link, const char *format, int32_t a,
                        int32_t b)
{
    char name[96], expected[96];
    td_topology_link_name(t, link, name, sizeof name);
    snprintf(expected, sizeof expected, format, a, b); /* NOLINT: the formats stand below */
    cr_assert_str_eq(name, expected);
}

TheoryDataPoints(topology,
                 a_route_takes_the_ports_of_both_ends_and_the_trunks_between_their_leaves) = {
    DataPoints(int, TD_FABRIC_RAIL, TD_FABRIC_FAT_TREE), DataPoints(int, 0, 1, 3, 5, 11, 12, 15),
    DataPoints(int, 0, 2, 3, 6, 10, 13, 14)};
Theory((int kind, int from, int to), topology,
       a_route_takes_the_ports_of_both_ends_and_the_trunks_between_their_leaves)
{
    cr_assume(from != to);
    td_arena *a = td_arena_new();
    const td_cluster c = cluster_of((td_fabric_kind)kind);
    const td_topology *t = topology(a, &c);
    const int32_t leaf_from = kind == TD_FABRIC_RAIL ? nic_of(from) : node_of(from);
    const int32_t leaf_to = kind == TD_FABRIC_RAIL ? nic_of(to) : node_of(to);
    td_route r;
    double slowest = INFINITY;
    td_topology_route(t, from, to, &r);
    if (node_of(from) == node_of(to)) {
        cr_assert_eq(r.n, 2);
        expect_link(t, r.link[0], "nvlink up, rank %d", from, 0);
        expect_link(t, r.link[1], "nvlink down, rank %d", to, 0);
        cr_assert_float_eq(r.latency_s, from < 12 ? 1e-6 : 2e-6, 1e-15);
    } else {
        cr_assert_eq(r.n, leaf_from == leaf_to ? 2 : 4);
        expect_link(t, r.link[0], "nic %d of node %d, up", nic_of(from), node_of(from));
        expect_link(t, r.link[r.n - 1], "nic %d of node %d, down", nic_of(to), node_of(to));
        if (r.n == 4) {
            expect_link(t, r.link[1], "leaf %d to spine", leaf_from, 0);
            expect_link(t, r.link[2], "spine to leaf %d", leaf_to, 0);
        }
        cr_assert_float_eq(r.latency_s, (from < 12 && to < 12 ? 2e-6 : 3e-6) + 5e-6, 1e-15);
    }
    for (int32_t i = 0; i < r.n; i++) {
        cr_assert(r.link[i] >= 0 && r.link[i] < td_topology_n_links(t));
        slowest = fmin(slowest, td_topology_capacity(t, r.link[i]));
    }
    cr_assert_eq(r.bytes_per_s, slowest);
    td_arena_free(a);
}

/* A trunk carries what its NICs carry over the oversubscription. */
TheoryDataPoints(topology, a_trunk_carries_its_nics_over_the_oversubscription) = {
    DataPoints(int, TD_FABRIC_RAIL, TD_FABRIC_FAT_TREE)};
Theory((int kind), topology, a_trunk_carries_its_nics_over_the_oversubscription)
{
    td_arena *a = td_arena_new();
    const td_cluster c = cluster_of((td_fabric_kind)kind);
    const td_topology *t = topology(a, &c);
    td_route r;
    td_topology_route(t, 0, 7, &r); /* NIC 0 of node 0, NIC 1 of node 1 */
    cr_assert_eq(r.n, 4);
    const double whole = kind == TD_FABRIC_RAIL ? 3 * 50e9 + 2 * 100e9 : 2 * 50e9;
    cr_assert_float_eq(td_topology_capacity(t, r.link[1]), whole / 4, 1);
    cr_assert_float_eq(td_topology_capacity(t, r.link[2]), whole / 4, 1);
    td_arena_free(a);
}

struct refusal {
    td_fabric_kind kind;
    int32_t gpus, nics, world;
    char says[64];
};

ParameterizedTestParameters(topology, refuses_a_world_that_the_cluster_cannot_connect)
{
    static struct refusal table[] = {{TD_FABRIC_RAIL, 8, 8, 17, "16 GPUs, but the plan needs 17"},
                                     {TD_FABRIC_SINGLE, 8, 8, 9, "fabric.kind is single"},
                                     {TD_FABRIC_FAT_TREE, 8, 0, 9, "node 0 has no NIC"}};
    return cr_make_param_array(struct refusal, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct refusal *x, topology, refuses_a_world_that_the_cluster_cannot_connect)
{
    td_arena *a = td_arena_new();
    const td_node_group g = {.count = 2,
                             .gpus = x->gpus,
                             .nics = x->nics,
                             .nvlink_bytes_per_s = 1,
                             .nic_bytes_per_s = 1};
    const td_cluster c = {.file = "test.yaml",
                          .n_groups = 1,
                          .groups = &g,
                          .fabric = {.kind = x->kind, .oversubscription = 1},
                          .n_gpus = 16,
                          .n_nodes = 2};
    td_topology *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_topology_build(a, &c, x->world, &t, &err), TD_PLAN);
    cr_assert(strstr(err.text, x->says) != NULL, "%s", err.text);
    td_arena_free(a);
}

Test(topology, one_node_needs_no_network)
{
    td_arena *a = td_arena_new();
    const td_node_group g = {.count = 1, .gpus = 8, .nics = 4, .nvlink_bytes_per_s = 450e9};
    const td_cluster c = {
        .file = "test.yaml", .n_groups = 1, .groups = &g, .n_gpus = 8, .n_nodes = 1};
    td_topology *t = NULL;
    cr_assert_eq(td_topology_build(a, &c, 8, &t, NULL), TD_OK);
    cr_assert_eq(td_topology_n_links(t), 16);
    td_arena_free(a);
}
