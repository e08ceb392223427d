/* A folder for the files of one run, gone with it; what runs that were killed left goes with the
 * next. */
#ifndef TANDEM_EXEC_SCRATCH_H
#define TANDEM_EXEC_SCRATCH_H

#include "model/status.h"

/* Whoever has `fd` open (children inherit it) keeps the folder from being swept away by other runs.
 */
typedef struct {
    char path[1024];
    int fd;
} td_scratch;

/* In memory (/dev/shm) where there is such a place, else in $TMPDIR or /tmp. */
td_status td_scratch_open(td_scratch *out, td_err *err);
void td_scratch_close(td_scratch *s); /* {.fd = -1}: nothing */

#endif
