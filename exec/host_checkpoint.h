/* Checkpoints of a run whose ranks are MPI processes: exec/checkpoint.h, with every rank in step.
 */
#ifndef TANDEM_EXEC_HOST_CHECKPOINT_H
#define TANDEM_EXEC_HOST_CHECKPOINT_H

#include "exec/checkpoint.h"

/*
 * Both are collective over all ranks and end alike on all of them, with the message of the first
 * rank that failed. A save that fails leaves the checkpoint before it.
 */
td_status td_host_save(const char *dir, const td_plan *plan, int64_t step,
                       const td_run_state *state, td_err *err);

/* `*step`: the number of the next step. Rank 0 says on stderr what differs, unless `quiet`. */
td_status td_host_load(const char *dir, const td_plan *plan, bool quiet, const td_run_state *state,
                       int64_t *step, td_err *err);

#endif
