/* Pairwise all-to-all, all rounds together: a rank keeps one n-th of its buffer, sends the rest. */
#include "model/collective.h"

static double steps(int32_t n)
{
    return n - 1.0;
}

static double edge_bytes(int32_t n, uint64_t bytes)
{
    return (n - 1.0) / n * (double)bytes;
}

const td_collective td_coll_all_to_all = {
    .name = "all_to_all",
    .summary = "every rank sends an n-th of its buffer to every rank: pairwise rounds",
    .steps = steps,
    .edge_bytes = edge_bytes,
};
