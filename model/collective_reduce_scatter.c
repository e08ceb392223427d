/* Ring reduce-scatter: in each of n - 1 steps every rank passes one n-th of the vector on, adding
 * its own. */
#include "model/collective.h"

static double steps(int32_t n)
{
    return n - 1.0;
}

static double edge_bytes(int32_t n, uint64_t bytes)
{
    return (n - 1.0) / n * (double)bytes;
}

const td_collective td_coll_reduce_scatter = {
    .name = "reduce_scatter",
    .summary = "every rank ends with its n-th of the sum of all: ring",
    .steps = steps,
    .edge_bytes = edge_bytes,
};
