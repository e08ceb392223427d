/* What `tandem run` hands to the ranks it starts, and how a rank reads it. */
#ifndef TANDEM_EXEC_RUN_OPTIONS_H
#define TANDEM_EXEC_RUN_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *plan, *trace;
    int32_t n_steps, n_warmup;
    bool checksums, json, quiet;
} td_run_options;

/* Reads `PLAN --steps N --warmup W [--trace-to F] [--checksums] [--json] [--quiet]`; 0, or 2 after
 * having said why. */
int td_run_options_read(int argc, char **argv, td_run_options *out);

#endif
