/*
 * Ring all-reduce: a reduce-scatter and an all-gather, each of which moves (n - 1)/n of the vector
 * (Patarasuk and Yuan).
 */
#include "model/collective.h"

static double steps(int32_t n)
{
    return 2.0 * (n - 1);
}

static double edge_bytes(int32_t n, uint64_t bytes)
{
    return 2.0 * (n - 1) / n * (double)bytes;
}

const td_collective td_coll_all_reduce = {
    .name = "all_reduce",
    .summary = "every rank ends with the sum of all: ring reduce-scatter, then ring all-gather",
    .steps = steps,
    .edge_bytes = edge_bytes,
};
