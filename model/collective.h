/*
 * Communication patterns: how many steps and how many bytes per link each takes. One file a kind,
 * one line in the table. Sources: Chan, Heimlich, Purkayastha, van de Geijn, "Collective
 * communication: theory, practice, and experience", Concurrency and Computation 19 (2007);
 * Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69 (2009).
 */
#ifndef TANDEM_MODEL_COLLECTIVE_H
#define TANDEM_MODEL_COLLECTIVE_H

#include <stdint.h>

/*
 * `bytes` of a collective is the size of the largest buffer a rank holds before or after it: the
 * whole vector of an all-reduce, the gathered output of an all-gather, the unreduced input of a
 * reduce-scatter, the message of a broadcast, send/receive or a rank's whole send buffer of an
 * all-to-all.
 */
typedef struct td_collective {
    const char *name; /* all_reduce, reduce_scatter, all_gather, broadcast, all_to_all, sendrecv */
    const char *summary;
    /* Latency steps of a ring (or tree) over n ranks; the alpha term pays the hop latency this
     * often. n >= 1. */
    double (*steps)(int32_t n);
    /* Bytes that cross each directed edge i -> i+1 mod n of the ring, n >= 2; for sendrecv the one
     * edge 0 -> 1. */
    double (*edge_bytes)(int32_t n, uint64_t bytes);
} td_collective;

typedef enum {
    TD_COLL_SENDRECV,
    TD_COLL_ALL_REDUCE,
    TD_COLL_REDUCE_SCATTER,
    TD_COLL_ALL_GATHER,
    TD_COLL_BROADCAST,
    TD_COLL_ALL_TO_ALL,
    TD_N_COLLS
} td_coll;

extern const td_collective td_coll_sendrecv, td_coll_all_reduce, td_coll_reduce_scatter,
    td_coll_all_gather, td_coll_broadcast, td_coll_all_to_all;
extern const td_collective *const td_collectives[TD_N_COLLS]; /* indexed by td_coll */

#endif
