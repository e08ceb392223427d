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
        else if (strcmp(argv[i], "--warmup") == 0 && value) {
            out->steady = strcmp(argv[++i], "steady") == 0;
            out->n_warmup = (int32_t)strtol(argv[i], NULL, 10); /* 0 of a word */
        } else if (strcmp(argv[i], "--trace-to") == 0 && value)
            out->trace = argv[++i];
        else if (strcmp(argv[i], "--save") == 0 && value)
            out->save = argv[++i];
        else if (strcmp(argv[i], "--save-every") == 0 && value)
            out->save_every = (int32_t)strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--load") == 0 && value)
            out->load = argv[++i];
        else if (strcmp(argv[i], "--fine") == 0)
            out->fine = true;
        else if (strcmp(argv[i], "--buffered") == 0)
            out->buffered = true;
        else if (strcmp(argv[i], "--live") == 0)
            out->live = true;
        else if (strcmp(argv[i], "--inject") == 0 && value)
            out->inject = argv[++i];
        else if (strcmp(argv[i], "--watch") == 0 && value)
            out->watch = argv[++i];
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
    if (out->plan == NULL || out->n_steps < 0 || out->n_warmup < 0 || out->save_every < 0 ||
        (out->save_every > 0 && out->save == NULL)) {
        fprintf(stderr, "usage: tandem-host PLAN [--steps N] [--warmup W|steady] [--trace-to F] "
                        "[--save DIR] [--save-every N] [--load DIR] "
                        "[--fine] [--buffered] [--live] [--checksums] [--json] [--quiet]\n");
        return 2;
    }
    return 0;
}
