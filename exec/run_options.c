/* Written by a program for a program: strict and short. */
#include "exec/run_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int td_run_options_read(int argc, char **argv, td_run_options *out)
{
    *out = (td_run_options){.n_steps = 1, .n_warmup = 1};
    for (int i = 1; i < argc; i++) {
        const bool value = i + 1 < argc;
        if (strcmp(argv[i], "--steps") == 0 && value)
            out->n_steps = (int32_t)strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--warmup") == 0 && value)
            out->n_warmup = (int32_t)strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--trace-to") == 0 && value)
            out->trace = argv[++i];
        else if (strcmp(argv[i], "--checksums") == 0)
            out->checksums = true;
        else if (strcmp(argv[i], "--json") == 0)
            out->json = true;
        else if (strcmp(argv[i], "--quiet") == 0)
            out->quiet = true;
        else if (argv[i][0] != '-' && out->plan == NULL)
            out->plan = argv[i];
        else {
            fprintf(stderr, "tandem-host: unexpected `%s`; `tandem run` starts this program\n",
                    argv[i]);
            return 2;
        }
    }
    if (out->plan == NULL || out->n_steps < 0 || out->n_warmup < 0) {
        fprintf(stderr, "usage: tandem-host PLAN [--steps N] [--warmup W] [--trace-to F] "
                        "[--checksums] [--json] [--quiet]\n");
        return 2;
    }
    return 0;
}
