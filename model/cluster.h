/*
 * The machines: nodes of one or several kinds, their GPUs, links and the fabric between them. Rank
 * r sits on the r-th GPU in group and node order. Bandwidths are per direction, in 10^9 bytes/s in
 * the file and bytes/s here; latencies are microseconds in the file and seconds here.
 */
#ifndef TANDEM_MODEL_CLUSTER_H
#define TANDEM_MODEL_CLUSTER_H

#include "model/diag.h"
#include "model/version.h"

typedef enum { TD_FABRIC_SINGLE, TD_FABRIC_RAIL, TD_FABRIC_FAT_TREE, TD_N_FABRICS } td_fabric_kind;
extern const char *const td_fabric_names[TD_N_FABRICS]; /* single, rail, fat_tree */

typedef struct {
    int32_t count; /* nodes of this kind, >= 1 */
    int32_t gpus;  /* per node, >= 1 */
    struct {
        const char *name;    /* `NVIDIA H200` */
        const char *profile; /* as written: a shipped name or a path; NULL: the shipped profile for
                                `name` */
        td_pos profile_at;
        double memory_bytes;                  /* capacity of one GPU (memory_gib in the file) */
        const char *versions[TD_N_LIBRARIES]; /* of the driver and libraries there; NULL: not
                                                 told */
    } gpu;
    int32_t cores; /* per node; matters to `host`, whose ranks share them; 0: not given */
    double nvlink_bytes_per_s; /* one GPU's port, one direction */
    double nvlink_latency_s;
    int32_t nics; /* per node, >= 0; GPU g uses NIC g * nics / gpus */
    double nic_bytes_per_s;
    double nic_latency_s;
} td_node_group;

typedef struct {
    const char *file; /* the file it was read from; the plan itself for an inline mapping */
    const char *name; /* optional; "" */
    int32_t n_groups;
    const td_node_group *groups;
    struct {
        td_fabric_kind kind;     /* single: no network, one node only */
        double oversubscription; /* >= 1: leaf-to-spine capacity is nodes * nic / this */
        double latency_s;        /* added to every path that leaves a node */
    } fabric;
    int64_t n_gpus, n_nodes;
} td_cluster;

/* Where a rank's GPU is. `group` is the kind of node, `node` counts all nodes of the cluster, `gpu`
 * is within the node. */
typedef struct {
    int32_t group, node, gpu;
} td_place;

/* `rank` in [0, n_gpus). */
td_place td_cluster_place(const td_cluster *c, int64_t rank);

#endif
