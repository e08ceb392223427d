/*
 * Starts the ranks of an executing backend: one process each, through mpirun, or in place under a
 * launcher. Ranks that were started are supervised: if one dies, fails or hangs, all end.
 */
#ifndef TANDEM_EXEC_LAUNCH_H
#define TANDEM_EXEC_LAUNCH_H

#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

/* Is this process one of several that a launcher (mpirun, srun) started? */
bool td_launched(void);

/*
 * Path of the program `name` beside this one. TD_ABSENT if it was not built: the message says what
 * is missing. `path` has `size` bytes.
 */
td_status td_launch_find(const char *name, char *path, int size, td_err *err);

typedef struct {
    const char *program;
    char *const *argv; /* ends with NULL; argv[0] is ignored; `--watch PATH` is added */
    int32_t n_ranks;
    int32_t timeout_s; /* end the run when no rank got on for so long; 0: never */
} td_launch_job;

/*
 * Runs the ranks and waits for their end. What they print on stderr passes at once; their answer
 * (stdout) follows when all have ended well, and not at all otherwise. When it returns, no process
 * that it started is left.
 *
 * A failure comes back with the status that the rank gave, or TD_RUN: a rank that was killed or
 * hangs, named with the op that it was in; an interruption (SIGINT, SIGTERM, SIGHUP), and then
 * *signal is its number, else 0. TD_ABSENT without mpirun. Under a launcher this process becomes
 * the program and does not return.
 */
td_status td_launch(const td_launch_job *job, int *signal, td_err *err);

#endif
