/* A cluster is small: groups of equal nodes and one fabric. Everything it can get wrong is a number
 * without sense. */
#include "model/cluster_read.h"

#include "model/text.h"

#include <string.h>

/* Far beyond any machine, near enough that no product of theirs overflows. */
#define MIN_GIB 1e-3
#define MAX_GIB 1e6
#define MIN_GB_S 1e-6
#define MAX_GB_S 1e6
#define MAX_US 1e6
#define MAX_OVERSUBSCRIPTION 1e6

/* As written: GB/s, microseconds, GiB; 0 where nothing was, latencies -1. */
typedef struct {
    int32_t count;
    const td_yaml *node;
} group_source;

typedef struct {
    const td_yaml *gpu;
    int32_t gpus, cores, nics;
    double nvlink_gb_s, nvlink_us, nic_gb_s, nic_us;
} node_source;

typedef struct {
    const char *name, *profile;
    double memory_gib;
    const char *driver, *cuda, *nccl, *cudnn;
} gpu_source;

typedef struct {
    const char *name;
    const td_yaml *groups, *fabric;
} root_source;

typedef struct {
    int32_t kind;
    double oversubscription, latency_us;
} fabric_source;

static const char *const fabric_words[] = {"single", "rail", "fat_tree", NULL};

#define BANDWIDTH(member, name)                                                                    \
    TD_REAL(node_source, name, member, MIN_GB_S, MAX_GB_S,                                         \
            "a number of 10^9 bytes/s from 1e-6 to 1e6")
#define LATENCY(type, member, name)                                                                \
    TD_REAL(type, name, member, 0, MAX_US, "a number of microseconds from 0 to 1e6")

static const td_field root_fields[] = {
    TD_TEXT(root_source, "name", name, "a name"),
    TD_NODE(root_source, "groups", groups, true, "a list of groups of nodes"),
    TD_NODE(root_source, "fabric", fabric, false, "a mapping with `kind`"),
    {0}};

static const td_field group_fields[] = {
    TD_INT_REQUIRED(group_source, "count", count, 1, INT32_MAX),
    TD_NODE(group_source, "node", node, true, "a mapping that describes one node"),
    {0}};

static const td_field node_fields[] = {
    TD_INT_REQUIRED(node_source, "gpus", gpus, 1, INT32_MAX),
    TD_NODE(node_source, "gpu", gpu, true, "a mapping with `name` and `memory_gib`"),
    TD_INT(node_source, "cores", cores, 1, INT32_MAX),
    BANDWIDTH(nvlink_gb_s, "nvlink_gb_s"),
    LATENCY(node_source, nvlink_us, "nvlink_latency_us"),
    TD_INT(node_source, "nics", nics, 0, INT32_MAX),
    BANDWIDTH(nic_gb_s, "nic_gb_s"),
    LATENCY(node_source, nic_us, "nic_latency_us"),
    {0}};

#define VERSION(member)                                                                            \
    TD_TEXT(gpu_source, #member, member, "a version, in quotes where it reads as a number")

static const td_field gpu_fields[] = {
    {.key = "name",
     .kind = TD_FIELD_TEXT,
     TD_FIELD_TARGET(gpu_source, name),
     .expected = "the name of the GPU",
     .required = true},
    TD_TEXT(gpu_source, "profile", profile, "the name of a shipped profile or a path"),
    {.key = "memory_gib",
     .kind = TD_FIELD_REAL,
     TD_FIELD_TARGET(gpu_source, memory_gib),
     .low = MIN_GIB,
     .high = MAX_GIB,
     .expected = "a number of GiB from 1e-3 to 1e6",
     .required = true},
    VERSION(driver),
    VERSION(cuda),
    VERSION(nccl),
    VERSION(cudnn),
    {0}};

static const td_field fabric_fields[] = {{.key = "kind",
                                          .kind = TD_FIELD_WORD,
                                          TD_FIELD_TARGET(fabric_source, kind),
                                          .words = fabric_words,
                                          .required = true},
                                         TD_REAL(fabric_source, "oversubscription",
                                                 oversubscription, 1, MAX_OVERSUBSCRIPTION,
                                                 "a number from 1 to 1e6"),
                                         LATENCY(fabric_source, latency_us, "latency_us"),
                                         {0}};

/* Says so if a key that the shape of the cluster asks for was not written. */
static void require(td_reader *r, const td_map *map, const char *key, const char *why)
{
    if (td_map_get(map, key) == NULL)
        td_diag_error(r->diags, map->at, td_path_key(r, map->path, key), "missing_key",
                      "is missing; expected it because %s", why);
}

static void read_gpu(td_reader *r, const td_yaml *node, const char *path, td_node_group *out)
{
    td_map map;
    gpu_source s = {.name = ""};
    if (!td_map_open(r, node, path, "a mapping with `name` and `memory_gib`", &map))
        return;
    td_map_read(r, &map, gpu_fields, &s);
    out->gpu.name = s.name;
    out->gpu.profile = s.profile;
    out->gpu.profile_at = td_map_at(&map, "profile");
    out->gpu.memory_bytes = s.memory_gib * 1024.0 * 1024.0 * 1024.0;
    out->gpu.versions[TD_LIBRARY_DRIVER] = s.driver;
    out->gpu.versions[TD_LIBRARY_CUDA] = s.cuda;
    out->gpu.versions[TD_LIBRARY_NCCL] = s.nccl;
    out->gpu.versions[TD_LIBRARY_CUDNN] = s.cudnn;
}

static void read_node(td_reader *r, const td_yaml *node, const char *path, td_node_group *out,
                      td_map *map)
{
    node_source s = {0};
    if (!td_map_open(r, node, path, "a mapping that describes one node", map))
        return;
    td_map_read(r, map, node_fields, &s);
    if (s.gpu != NULL)
        read_gpu(r, s.gpu, td_path_key(r, path, "gpu"), out);
    if (s.gpus > 1) {
        require(r, map, "nvlink_gb_s", "the node has more than one GPU");
        require(r, map, "nvlink_latency_us", "the node has more than one GPU");
    }
    out->gpus = s.gpus;
    out->cores = s.cores;
    out->nics = s.nics;
    out->nvlink_bytes_per_s = s.nvlink_gb_s * 1e9;
    out->nvlink_latency_s = s.nvlink_us * 1e-6;
    out->nic_bytes_per_s = s.nic_gb_s * 1e9;
    out->nic_latency_s = s.nic_us * 1e-6;
}

static void check_network(td_reader *r, const td_map *node)
{
    if (node->entries == NULL) /* it could not be read */
        return;
    const char *why = "the cluster has more than one node";
    require(r, node, "nics", why);
    require(r, node, "nic_gb_s", why);
    require(r, node, "nic_latency_us", why);
    int64_t nics;
    const td_yaml *value = td_map_get(node, "nics");
    if (value != NULL && td_value_int(value, &nics) && nics == 0)
        td_diag_error(r->diags, value->at, td_path_key(r, node->path, "nics"), "no_network",
                      "is 0, but %s; expected at least 1", why);
}

static void read_groups(td_reader *r, const td_yaml *list, const char *path, td_cluster *out)
{
    if (list->kind != TD_YAML_SEQUENCE || list->n == 0) {
        td_diag_error(
            r->diags, list->at, path, "wrong_type", "%s; expected a list of groups of nodes",
            list->kind == TD_YAML_SEQUENCE ? "is an empty list" : td_value_describe(r, list));
        return;
    }
    td_node_group *groups = td_reader_alloc(r, list->n, sizeof *groups);
    td_map *nodes = td_reader_alloc(r, list->n, sizeof *nodes);
    if (groups == NULL || nodes == NULL)
        return;
    out->groups = groups;
    for (const td_yaml *item = list->first; item != NULL; item = item->next) {
        const int32_t i = out->n_groups++;
        const char *at = td_path_item(r, path, i);
        td_map map;
        group_source s = {0};
        groups[i].gpu.name = "";
        if (!td_map_open(r, item, at, "a mapping with `count` and `node`", &map))
            continue;
        td_map_read(r, &map, group_fields, &s);
        if (s.node != NULL)
            read_node(r, s.node, td_path_key(r, at, "node"), &groups[i], &nodes[i]);
        groups[i].count = s.count;
        out->n_nodes += s.count;
        out->n_gpus += (int64_t)s.count * groups[i].gpus; /* < 2^62 */
        if (out->n_gpus > INT32_MAX || out->n_nodes > INT32_MAX) {
            td_diag_error(
                r->diags, map.at, at, "out_of_range",
                "the cluster has %lld nodes and %lld GPUs up to here; expected at most %d",
                (long long)out->n_nodes, (long long)out->n_gpus, INT32_MAX);
            return;
        }
    }
    for (int32_t i = 0; i < out->n_groups && out->n_nodes > 1; i++)
        check_network(r, &nodes[i]);
}

static void read_fabric(td_reader *r, const td_yaml *node, const td_map *root, td_cluster *out)
{
    fabric_source s = {.kind = TD_FABRIC_SINGLE, .oversubscription = 1};
    const char *path = td_path_key(r, root->path, "fabric");
    td_map map;
    if (node == NULL) {
        if (out->n_nodes > 1)
            td_diag_error(r->diags, root->at, path, "missing_key",
                          "is missing, but the cluster has %lld nodes; expected a mapping with "
                          "`kind` (only one node needs none)",
                          (long long)out->n_nodes);
    } else if (td_map_open(r, node, path, "a mapping with `kind`", &map)) {
        const int32_t errors = r->diags->n_errors;
        td_map_read(r, &map, fabric_fields, &s);
        if (s.kind == TD_FABRIC_SINGLE && out->n_nodes > 1 && r->diags->n_errors == errors)
            td_diag_error(r->diags, td_map_at(&map, "kind"), td_path_key(r, path, "kind"),
                          "no_network",
                          "is `single`, but the cluster has %lld nodes; expected rail or fat_tree",
                          (long long)out->n_nodes);
    }
    out->fabric.kind = (td_fabric_kind)s.kind;
    out->fabric.oversubscription = s.oversubscription;
    out->fabric.latency_s = s.latency_us * 1e-6;
}

static const td_cluster *read_root(td_reader *r, const td_yaml *node, const char *file,
                                   const char *path)
{
    const int32_t errors = r->diags->n_errors;
    td_map map;
    root_source s = {.name = ""};
    td_cluster *out = td_reader_alloc(r, 1, sizeof *out);
    if (out == NULL || !td_map_open(r, node, path, "a mapping with `groups`", &map))
        return NULL;
    td_map_read(r, &map, root_fields, &s);
    out->file = file;
    out->name = s.name;
    if (s.groups != NULL)
        read_groups(r, s.groups, td_path_key(r, path, "groups"), out);
    read_fabric(r, s.fabric, &map, out);
    return r->failed || r->diags->n_errors > errors ? NULL : out;
}

/* What is wrong inside the file is told at its place there; that there is no such file, where it is
 * named. */
static const td_yaml *load(td_reader *r, const td_yaml *named, const char *file, const char *path)
{
    const td_yaml *root = NULL;
    td_diags found = {.arena = r->arena};
    const td_status st = td_yaml_load(r->arena, file, &found, &root);
    if (st == TD_OK)
        return root;
    if (found.head == NULL)
        r->failed = true;
    else if (found.head->at.line > 0)
        td_diag_error(r->diags, found.head->at, "", found.head->rule, "%s", found.head->message);
    else
        td_diag_error(r->diags, named->at, path, found.head->rule, "the cluster file %s: %s",
                      td_text_show(r->arena, file, strlen(file)), found.head->message);
    return NULL;
}

const td_cluster *td_cluster_read(td_reader *r, const td_yaml *node, const char *file,
                                  const char *path)
{
    const td_yaml *value = td_yaml_value(node);
    if (value->kind == TD_YAML_MAPPING)
        return read_root(r, value, file, path);
    const char *name = td_value_text(value);
    if (name == NULL || name[0] == '\0') {
        td_diag_error(r->diags, value->at, path, "wrong_type",
                      "%s; expected the path of a cluster file or a mapping with `groups`",
                      td_value_describe(r, value));
        return NULL;
    }
    const char *beside = td_text_beside(r->arena, file, name);
    if (beside == NULL) {
        r->failed = true;
        return NULL;
    }
    const td_yaml *root = load(r, value, beside, path);
    return root == NULL ? NULL : read_root(r, root, beside, "");
}
