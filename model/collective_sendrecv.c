/* One message from rank 0 of a pair to rank 1. */
#include "model/collective.h"

static double steps(int32_t n)
{
    return n > 1 ? 1 : 0;
}

static double edge_bytes(int32_t n, uint64_t bytes)
{
    return n > 1 ? (double)bytes : 0;
}

const td_collective td_coll_sendrecv = {
    .name = "sendrecv",
    .summary = "one message between the two ranks of a pair",
    .steps = steps,
    .edge_bytes = edge_bytes,
};
