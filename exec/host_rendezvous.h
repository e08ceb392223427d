/* What ranks tell each other through MPI before an executing device can communicate by itself. */
#ifndef TANDEM_EXEC_HOST_RENDEZVOUS_H
#define TANDEM_EXEC_HOST_RENDEZVOUS_H

#include "model/program.h"
#include "model/status.h"

typedef struct {
    int32_t n_nodes;
    int32_t local_rank, local_size; /* among the ranks of this machine, by rank */
    const int32_t *node_of;         /* [world_size] number of each rank's machine */
} td_rendezvous;

/* Collective over all ranks. */
td_status td_rendezvous_open(td_arena *a, int32_t world_size, td_rendezvous *out, td_err *err);

/*
 * Rank `from` of a communicator (an index in it, as `me`) gives `bytes` of `blob` to its others.
 * Collective over them; called in the order of the communicators' numbers on every rank, so that
 * nobody waits in a circle.
 */
td_status td_rendezvous_give(const td_comm *c, int32_t me, int32_t from, void *blob, size_t bytes,
                             td_err *err);

/*
 * How far this rank's clock `now` is behind rank 0's, and by how much that may be wrong: the reply
 * of the quickest of several exchanges stands in the middle of it, so half that exchange bounds the
 * error (Cristian, "Probabilistic clock synchronization", 1989); `*error` is the largest of all
 * ranks. Collective over all ranks.
 */
void td_rendezvous_clock(int32_t world_size, double (*now)(void), double *offset, double *error);

/*
 * Memory that all ranks of a machine have mapped, zeroed; it has no name that could be left behind.
 * Collective over all ranks. Lives as long as the process.
 */
td_status td_rendezvous_memory(const td_rendezvous *r, size_t bytes, void **out, td_err *err);

#endif
