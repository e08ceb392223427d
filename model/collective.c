/* The table of communication patterns. */
#include "model/collective.h"

const td_collective *const td_collectives[TD_N_COLLS] = {
    [TD_COLL_SENDRECV] = &td_coll_sendrecv,
    [TD_COLL_ALL_REDUCE] = &td_coll_all_reduce,
    [TD_COLL_REDUCE_SCATTER] = &td_coll_reduce_scatter,
    [TD_COLL_ALL_GATHER] = &td_coll_all_gather,
    [TD_COLL_BROADCAST] = &td_coll_broadcast,
    [TD_COLL_ALL_TO_ALL] = &td_coll_all_to_all,
};
