/* The commands there are, and what they share. */
#include "cli/cli.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const td_command *const td_commands[] = {
    &td_command_check,   &td_command_show,      &td_command_predict, &td_command_run,
    &td_command_compare, &td_command_calibrate, &td_command_list,    NULL};

int td_exit(td_status st, const td_err *err)
{
    static const int code[] = {
        [TD_OK] = TD_EXIT_DONE,     [TD_PLAN] = TD_EXIT_NO,       [TD_FILE] = TD_EXIT_FILE,
        [TD_USAGE] = TD_EXIT_USAGE, [TD_ABSENT] = TD_EXIT_ABSENT, [TD_RUN] = TD_EXIT_RUN,
        [TD_NOMEM] = TD_EXIT_RUN};
    if (st != TD_OK && err->status != TD_OK)
        fprintf(stderr, "tandem: %s\n", err->text);
    return code[st];
}

td_status td_cli_load(td_arena *a, const char *path, td_diags *diags, const td_plan **out,
                      td_err *err)
{
    td_status st = TD_OK;
    *diags = (td_diags){.arena = a};
    TD_TRY(st, td_plan_load(a, path, diags, out, err));
    for (const td_diag *d = diags->head; d != NULL; d = d->next)
        fprintf(stderr, "%s%s\n", d->warning ? "warning: " : "", td_diag_text(diags, d));
    if (diags->n_errors > 0)
        st = TD_PLAN;
done:
    return st;
}

const char *td_text_seconds(double s, char *text, int size)
{
    if (s >= 1)
        snprintf(text, (size_t)size, "%.3f s", s);
    else if (s >= 1e-3)
        snprintf(text, (size_t)size, "%.2f ms", s * 1e3);
    else
        snprintf(text, (size_t)size, "%.1f µs", s * 1e6);
    return text;
}

const char *td_text_bytes(double bytes, char *text, int size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    for (; fabs(bytes) >= 1024 && u < 4; u++)
        bytes /= 1024;
    snprintf(text, (size_t)size, u == 0 ? "%.0f %s" : "%.2f %s", bytes, units[u]);
    return text;
}

static void overview(FILE *out)
{
    fprintf(out,
            "tandem %s: one step program for multi-module training, predicted and executed\n\n"
            "usage: tandem COMMAND ...\n\n",
            TD_VERSION);
    for (const td_command *const *c = td_commands; *c != NULL; c++)
        fprintf(out, "  %-9s %s\n", (*c)->name, (*c)->summary);
    fprintf(out, "\nexample: tandem predict examples/plans/full_pp_8gpu-7b.yaml\n");
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        overview(argc < 2 ? stderr : stdout);
        return argc < 2 ? TD_EXIT_USAGE : TD_EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("tandem %s\n", TD_VERSION);
        return TD_EXIT_DONE;
    }
    for (const td_command *const *c = td_commands; *c != NULL; c++)
        if (strcmp((*c)->name, argv[1]) == 0)
            return (*c)->run(argc - 1, argv + 1);
    fprintf(stderr, "tandem: there is no command `%s`; the commands are", argv[1]);
    for (const td_command *const *c = td_commands; *c != NULL; c++)
        fprintf(stderr, " %s", (*c)->name);
    fprintf(stderr, "\n");
    return TD_EXIT_USAGE;
}

int td_main(int argc, char **argv)
{
    const int code = dispatch(argc, argv);
    if (fflush(stdout) != 0 || ferror(stdout) != 0) { /* a full disk must not look like an answer */
        fprintf(stderr, "tandem: cannot write the answer: %s\n", strerror(errno));
        return TD_EXIT_RUN;
    }
    return code;
}
