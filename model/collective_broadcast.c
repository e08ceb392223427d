/*
 * Pipelined ring broadcast: the message travels in small pieces, so it crosses each edge once and
 * the latency of n - 1 hops is paid once. The edge back into the root carries nothing, but is
 * charged like the others: the descriptor knows no root, and a ring's edges are as fast as its
 * slowest.
 */
#include "model/collective.h"

static double steps(int32_t n)
{
    return n - 1.0;
}

static double edge_bytes(int32_t n, uint64_t bytes)
{
    return n > 1 ? (double)bytes : 0;
}

const td_collective td_coll_broadcast = {
    .name = "broadcast",
    .summary = "every rank ends with the message of one: pipelined ring",
    .steps = steps,
    .edge_bytes = edge_bytes,
};
