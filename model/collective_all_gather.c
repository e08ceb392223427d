/* Ring all-gather: in each of n - 1 steps every rank passes on the n-th of the output it got last.
 */
#include "model/collective.h"

static double steps(int32_t n)
{
    return n - 1.0;
}

static double edge_bytes(int32_t n, uint64_t bytes)
{
    return (n - 1.0) / n * (double)bytes;
}

const td_collective td_coll_all_gather = {
    .name = "all_gather",
    .summary = "every rank ends with the n-ths of all: ring",
    .steps = steps,
    .edge_bytes = edge_bytes,
};
