/* What `tandem run` hands to the ranks it starts, and how a rank reads it. */
#ifndef TANDEM_EXEC_RUN_OPTIONS_H
#define TANDEM_EXEC_RUN_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *watch, *inject;
    const char *plan, *trace;
    const char *save, *load; /* folders of checkpoints */
    int32_t n_steps, n_warmup;
    bool steady;        /* warm up until steps are steady (exec/steady.h); n_warmup is 0 */
    int32_t save_every; /* steps; 0: only after the last */
    bool fine, checksums, json, quiet;
    bool buffered; /* sends */
    bool live;     /* stderr is a terminal in the end */
} td_run_options;

/* Reads `PLAN --steps N --warmup W|steady [--trace-to F] [--save DIR] [--save-every N] [--load DIR]
 * [--fine] [--buffered] [--live]
 * [--checksums] [--json] [--inject FAULTS] [--watch PATH] [--quiet]`; 0, or 2 after having said
 * why. */
int td_run_options_read(int argc, char **argv, td_run_options *out);

#endif
