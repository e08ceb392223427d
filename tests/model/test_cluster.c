/* A cluster is a numbering of GPUs; a cluster that could not exist is refused with the place. */
#include "model/cluster.h"
#include "model/plan.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char modules[] = "modules: {language: {type: language, layers: 2, hidden: 64, heads: "
                              "4, ffn: 128, vocab: 100, seq: 32, "
                              "parallel: {dp: 1}}}\n";

static const char mixed[] =
    "name: mixed\n"
    "groups:\n"
    "  - count: 2\n"
    "    node: {gpus: 8, gpu: {name: H200, profile: ../h200.json, memory_gib: 140.5,\n"
    "           driver: 580.159.04, cuda: \"13.0\", nccl: 2.28.3}, cores: 96,\n"
    "           nvlink_gb_s: 450, nvlink_latency_us: 2.5, nics: 4, nic_gb_s: 50, nic_latency_us: "
    "3}\n"
    "  - count: 1\n"
    "    node: {gpus: 1, gpu: {name: L4, memory_gib: 24}, nics: 1, nic_gb_s: 12.5, nic_latency_us: "
    "5}\n"
    "fabric: {kind: fat_tree, oversubscription: 2, latency_us: 0.5}\n";

typedef struct {
    td_arena *arena;
    td_diags diags;
    const td_plan *plan;
} reading;

/* A plan in /tmp beside a cluster file of the given text; the file is gone afterwards. */
static reading read_beside(const char *cluster)
{
    char path[] = "/tmp/tandem_cluster_XXXXXX", text[512];
    const int fd = mkstemp(path);
    const size_t size = strlen(cluster);
    cr_assert(fd >= 0 && write(fd, cluster, size) == (ssize_t)size);
    close(fd);
    reading r = {.arena = td_arena_new()};
    r.diags.arena = r.arena;
    const int n = snprintf(text, sizeof text, "cluster: %s\n%s", strrchr(path, '/') + 1, modules);
    td_err err = {TD_OK, ""};
    const td_status st =
        td_plan_parse(r.arena, "/tmp/plan.yaml", text, (size_t)n, &r.diags, &r.plan, &err);
    unlink(path);
    cr_assert_eq(st, TD_OK, "%s", err.text);
    return r;
}

Test(cluster, file_is_read_as_written_in_bytes_and_seconds)
{
    reading r = read_beside(mixed);
    const td_cluster *c = r.plan->cluster;
    cr_assert_not_null(c);
    cr_assert_eq(strncmp(c->file, "/tmp/tandem_cluster_", 20), 0);
    cr_assert_str_eq(c->name, "mixed");
    cr_assert(c->n_groups == 2 && c->n_nodes == 3 && c->n_gpus == 17);
    const td_node_group *g = &c->groups[0];
    cr_assert(g->count == 2 && g->gpus == 8 && g->cores == 96 && g->nics == 4);
    cr_assert_str_eq(g->gpu.name, "H200");
    cr_assert_str_eq(g->gpu.profile, "../h200.json");
    cr_assert_eq(g->gpu.profile_at.line, 4);
    cr_assert_eq(g->gpu.memory_bytes, 140.5 * 1073741824.0);
    cr_assert_str_eq(g->gpu.versions[TD_LIBRARY_DRIVER], "580.159.04");
    cr_assert_str_eq(g->gpu.versions[TD_LIBRARY_CUDA], "13.0");
    cr_assert_str_eq(g->gpu.versions[TD_LIBRARY_NCCL], "2.28.3");
    cr_assert_null(g->gpu.versions[TD_LIBRARY_CUDNN]);
    cr_assert_eq(g->nvlink_bytes_per_s, 450e9);
    cr_assert_float_eq(g->nvlink_latency_s, 2.5e-6, 1e-18);
    cr_assert_eq(g->nic_bytes_per_s, 50e9);
    cr_assert_float_eq(g->nic_latency_s, 3e-6, 1e-18);
    cr_assert_null(c->groups[1].gpu.profile);
    cr_assert_eq(c->groups[1].cores, 0);
    cr_assert_eq(c->fabric.kind, TD_FABRIC_FAT_TREE);
    cr_assert_eq(c->fabric.oversubscription, 2.0);
    cr_assert_float_eq(c->fabric.latency_s, 0.5e-6, 1e-18);
    td_arena_free(r.arena);
}

Test(cluster, inline_and_file_are_the_same)
{
    char text[2048] = "cluster:\n", *out = text + strlen(text);
    for (const char *line = mixed; *line != '\0';) {
        const size_t n = strcspn(line, "\n") + 1;
        out += sprintf(out, "  %.*s", (int)n, line);
        line += n;
    }
    strcpy(out, modules);
    td_arena *a = td_arena_new();
    td_diags diags = {.arena = a};
    const td_plan *plan = NULL;
    cr_assert_eq(td_plan_parse(a, "p.yaml", text, strlen(text), &diags, &plan, NULL), TD_OK);
    reading r = read_beside(mixed);
    const td_cluster *x = plan->cluster, *y = r.plan->cluster;
    cr_assert(x != NULL && y != NULL);
    cr_assert_str_eq(x->file, "p.yaml");
    cr_assert(x->n_groups == y->n_groups && x->n_gpus == y->n_gpus && x->n_nodes == y->n_nodes);
    for (int i = 0; i < x->n_groups; i++) {
        cr_assert_str_eq(x->groups[i].gpu.name, y->groups[i].gpu.name);
        cr_assert_eq(x->groups[i].nic_bytes_per_s, y->groups[i].nic_bytes_per_s);
    }
    td_arena_free(r.arena);
    td_arena_free(a);
}

TheoryDataPoints(cluster, places_number_every_gpu_once_in_group_and_node_order) = {
    DataPoints(int, 1, 2, 5), DataPoints(int, 1, 8), DataPoints(int, 1, 3), DataPoints(int, 1, 4)};
Theory((int count0, int gpus0, int count1, int gpus1), cluster,
       places_number_every_gpu_once_in_group_and_node_order)
{
    const td_node_group groups[2] = {{.count = count0, .gpus = gpus0},
                                     {.count = count1, .gpus = gpus1}};
    const td_cluster c = {.n_groups = 2, .groups = groups};
    int64_t rank = 0;
    int32_t node = 0;
    for (int32_t g = 0; g < 2; g++) {
        for (int32_t n = 0; n < groups[g].count; n++, node++) {
            for (int32_t gpu = 0; gpu < groups[g].gpus; gpu++, rank++) {
                const td_place p = td_cluster_place(&c, rank);
                cr_assert(p.group == g && p.node == node && p.gpu == gpu, "rank %d", (int)rank);
            }
        }
    }
}

Test(cluster, one_node_needs_neither_fabric_nor_network_nor_one_gpu_nvlink)
{
    reading r = read_beside("groups: [{count: 1, node: {gpus: 1, gpu: {name: G, memory_gib: 8}}}]");
    cr_assert_eq(r.diags.n_errors, 0);
    cr_assert_eq(r.plan->cluster->fabric.kind, TD_FABRIC_SINGLE);
    cr_assert_eq(r.plan->cluster->fabric.oversubscription, 1.0);
    cr_assert_eq(r.plan->cluster->groups[0].nics, 0);
    td_arena_free(r.arena);
}

struct mistake {
    char after[16], from[32], to[48], rule[24], path[40], says[48];
};

ParameterizedTestParameters(cluster, one_mistake_is_told_once_at_its_place_in_the_cluster_file)
{
    static struct mistake table[] = {
        {"name", "name: mixed", "nome: x", "unknown_key", "nome", "did you mean `name`"},
        {"groups", "count: 2", "count: 0", "out_of_range", "groups[0].count", "from 1"},
        {"groups", "count: 2", "count: 2000000000", "out_of_range", "groups[0]",
         "16000000000 GPUs"},
        {"groups", "gpus: 8, ", "", "missing_key", "groups[0].node.gpus", "is missing"},
        {"groups", "gpus: 8", "gpus: 8.5", "wrong_type", "groups[0].node.gpus", "whole number"},
        {"groups", "name: H200, ", "", "missing_key", "groups[0].node.gpu.name", "name of the GPU"},
        {"groups", ", memory_gib: 140.5", "", "missing_key", "groups[0].node.gpu.memory_gib",
         "GiB"},
        {"groups", "140.5", "0", "out_of_range", "groups[0].node.gpu.memory_gib", "is 0"},
        {"groups", "140.5", "-.inf", "out_of_range", "groups[0].node.gpu.memory_gib", "is -.inf"},
        {"groups", "450", "0", "out_of_range", "groups[0].node.nvlink_gb_s", "is 0"},
        {"groups", "450", "-450", "out_of_range", "groups[0].node.nvlink_gb_s", "is -450"},
        {"groups", "450", ".nan", "out_of_range", "groups[0].node.nvlink_gb_s", "is .nan"},
        {"groups", "450", "1e12", "out_of_range", "groups[0].node.nvlink_gb_s", "to 1e6"},
        {"groups", "450", "fast", "wrong_type", "groups[0].node.nvlink_gb_s", "is the text"},
        {"groups", "nvlink_gb_s: 450, ", "", "missing_key", "groups[0].node.nvlink_gb_s",
         "more than one GPU"},
        {"groups", "nvlink_latency_us: 2.5, ", "", "missing_key",
         "groups[0].node.nvlink_latency_us", "more than one GPU"},
        {"groups", "2.5", "-1", "out_of_range", "groups[0].node.nvlink_latency_us",
         "microseconds from 0"},
        {"groups", "nics: 4, ", "", "missing_key", "groups[0].node.nics", "more than one node"},
        {"groups", "nics: 4", "nics: 0", "no_network", "groups[0].node.nics", "at least 1"},
        {"groups", "nic_gb_s: 50, ", "", "missing_key", "groups[0].node.nic_gb_s",
         "more than one node"},
        {"groups", "nic_gb_s: 12.5, ", "", "missing_key", "groups[1].node.nic_gb_s",
         "more than one node"},
        {"fabric", "kind: fat_tree", "kind: single", "no_network", "fabric.kind",
         "the cluster has 3 nodes"},
        {"fabric", "kind: fat_tree", "kind: fat-tree", "unknown_value", "fabric.kind",
         "did you mean `fat_tree`"},
        {"fabric", "kind: fat_tree, ", "", "missing_key", "fabric.kind", "single, rail, fat_tree"},
        {"fabric", "oversubscription: 2", "oversubscription: 0.5", "out_of_range",
         "fabric.oversubscription", "from 1"},
        {"fabric", "fabric:", "#", "missing_key", "fabric", "the cluster has 3 nodes"}};
    return cr_make_param_array(struct mistake, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct mistake *m, cluster,
                  one_mistake_is_told_once_at_its_place_in_the_cluster_file)
{
    char text[1024];
    const char *at = strstr(strstr(mixed, m->after), m->from);
    cr_assert_not_null(at, "%s", m->from);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - mixed), mixed, m->to, at + strlen(m->from));
    reading r = read_beside(text);
    cr_assert_null(r.plan->cluster);
    const td_diag *one = r.diags.head;
    cr_assert_not_null(one, "`%s` was accepted", m->to);
    const char *said = td_diag_text(&r.diags, one);
    cr_assert_eq(r.diags.n_errors, 1, "%s, then %s", said,
                 one->next == NULL ? "" : td_diag_text(&r.diags, one->next));
    cr_assert_str_eq(one->rule, m->rule, "%s", said);
    cr_assert_str_eq(one->path, m->path, "%s", said);
    cr_assert_not_null(strstr(one->message, m->says), "%s", said);
    cr_assert_eq(strncmp(said, "/tmp/tandem_cluster_", 20), 0, "%s", said);
    cr_assert(one->at.line > 0 && one->at.column > 0, "%s", said);
    td_arena_free(r.arena);
}

/* A file that is no cluster at all, and what is said about it. */
struct wreck {
    char text[32], says[48];
    int line;
};

ParameterizedTestParameters(cluster, what_is_no_cluster_is_told_with_the_name_of_its_file)
{
    static struct wreck table[] = {{"groups: [\n", "not YAML", 2},
                                   {"[1]", "expected a mapping with `groups`", 1},
                                   {"a: *x", "no anchor", 1},
                                   {"groups: []", "is an empty list", 1},
                                   {"groups: 3", "expected a list of groups", 1},
                                   {"{}", "is missing; expected a list of groups", 1}};
    return cr_make_param_array(struct wreck, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct wreck *w, cluster, what_is_no_cluster_is_told_with_the_name_of_its_file)
{
    reading r = read_beside(w->text);
    cr_assert_null(r.plan->cluster);
    cr_assert_eq(r.diags.n_errors, 1);
    const char *said = td_diag_text(&r.diags, r.diags.head);
    cr_assert_eq(strncmp(said, "/tmp/tandem_cluster_", 20), 0, "%s", said);
    cr_assert_not_null(strstr(said, w->says), "%s", said);
    cr_assert_eq(r.diags.head->at.line, w->line, "%s", said);
    td_arena_free(r.arena);
}
