/* Starts the ranks of an executing backend: one process each, through mpirun, or in place under a
 * launcher. */
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

/*
 * Runs `program` with `argv` (ends with NULL; argv[0] is ignored) on `n_ranks` ranks and waits:
 * `*code` is its exit code, 5 where a signal ended it. Under a launcher this process becomes the
 * program and does not return. TD_ABSENT without mpirun, TD_RUN if nothing could be started.
 */
td_status td_launch(const char *program, char *const argv[], int32_t n_ranks, int *code,
                    td_err *err);

#endif
