/* Where ranks sit. */
#include "model/cluster.h"

const char *const td_fabric_names[TD_N_FABRICS] = {
    [TD_FABRIC_SINGLE] = "single", [TD_FABRIC_RAIL] = "rail", [TD_FABRIC_FAT_TREE] = "fat_tree"};

td_place td_cluster_place(const td_cluster *c, int64_t rank)
{
    td_place place = {0};
    while (place.group < c->n_groups - 1) {
        const td_node_group *g = &c->groups[place.group];
        const int64_t gpus = (int64_t)g->count * g->gpus;
        if (rank < gpus)
            break;
        rank -= gpus;
        place.node += g->count;
        place.group++;
    }
    const int32_t per_node = c->groups[place.group].gpus;
    place.node += (int32_t)(rank / per_node);
    place.gpu = (int32_t)(rank % per_node);
    return place;
}
