/*
 * Ranks that provably behave alike: partition refinement. Two ranks stay in one class while they
 * have the same colour to begin with (stream and prices) and each of their channels leads to
 * communicators of the same kind: for a pair the same position, peer class and peer channel, for a
 * group the same number of members of each class and channel. One rank of each class then stands
 * for all: simulating the quotient gives every rank exactly its own times.
 */
#ifndef TANDEM_SIM_FOLD_H
#define TANDEM_SIM_FOLD_H

#include "model/arena.h"
#include "model/program.h"

/* Communicators that are alike form a class too; `rep` of both kinds is the lowest index. Classes
 * are numbered by it. */
typedef struct {
    int32_t n_classes, n_comms;
    const int32_t *class_of;  /* [world_size] */
    const int32_t *rep;       /* [n_classes] rank */
    const int32_t *comm_of;   /* [n_comms of the program] communicator class */
    const int32_t *comm_rep;  /* [n_comms] communicator */
    const int64_t *comm_size; /* [n_comms] communicators in the class */
    /* The distinct (class, channel) members of a communicator class: the class of each, a class
     * once per channel. */
    const int32_t *member_first; /* [n_comms + 1] */
    const int32_t *members;
} td_fold;

/*
 * `colour` [world_size] in [0, n_colours): equal only for ranks with the same stream and prices.
 * Time and memory are linear in ranks and channels for each round of refinement; there are about as
 * many rounds as pipeline stages differ without their streams saying so. Fails with TD_NOMEM only.
 */
td_status td_fold_build(td_arena *a, const td_program *p, const int32_t *colour, int32_t n_colours,
                        const td_fold **out, td_err *err);

#endif
