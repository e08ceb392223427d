/* `tandem run`: the step, really executed, one process per rank. */
#include "cli/cli.h"
#include "exec/launch.h"
#include "model/program_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The executing backends: a program of its own each. */
static const struct {
    const char *name, *program;
} backends[] = {{"host", "tandem-host"}};

/* What must hold before anything is started. */
static td_status examine(td_arena *a, const td_plan *plan, bool assume_buffered, td_err *err)
{
    td_status st = TD_OK;
    td_progress progress[TD_N_COMPLETIONS];
    TD_TRY(st, td_plan_executable(plan, err));
    for (int32_t i = 0; i < plan->n_edges; i++)
        if (plan->edges[i].dst != plan->language)
            TD_TRY(st, td_fail(err, TD_PLAN,
                               "%s: edges: %s feeds %s: a sequence of encoders has no numerics and "
                               "cannot be run",
                               plan->file, plan->modules[plan->edges[i].src].name,
                               plan->modules[plan->edges[i].dst].name));
    if (plan->n_data > 0)
        TD_TRY(
            st,
            td_fail(err, TD_PLAN,
                    "%s: data: real samples cannot be run yet; leave `data` out for synthetic ones",
                    plan->file));
    if (plan->precision != TD_FP32)
        TD_TRY(st, td_fail(err, TD_PLAN,
                           "%s: precision: is bf16, but host computes in fp32; set precision: fp32",
                           plan->file));
    TD_TRY(st, td_plan_progress(a, plan, progress, err));
    const td_completion needs = td_progress_needs(progress);
    if (needs == TD_N_COMPLETIONS || (needs == TD_COMPLETION_BUFFERED_SENDS && !assume_buffered))
        TD_TRY(
            st,
            td_fail(err, TD_PLAN,
                    "%s: the step needs buffered sends: %s; --assume-buffered runs it all the same",
                    plan->file,
                    td_progress_text(a, &progress[TD_COMPLETION_BUFFERED_SHAPE_MESSAGES])));
done:
    return st;
}

static td_status whole_number(const char *name, const char *text, td_err *err)
{
    char *end = NULL;
    const long n = text == NULL ? 0 : strtol(text, &end, 10);
    if (text != NULL && (end == text || *end != '\0' || n < 0 || n > 1000000000))
        return td_fail(err, TD_USAGE, "%s %s: expected a whole number from 0 on", name, text);
    return TD_OK;
}

static int run(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    td_diags diags;
    td_arena *a = td_arena_new();
    const td_plan *plan;
    const char *path = NULL, *on = "host", *steps = "5", *warmup = "1", *trace = NULL,
               *program = NULL;
    char found[4200];
    bool json = false, checksums = false, assume_buffered = false, quiet = false, helped;
    const td_option options[] = {
        {NULL, "PLAN", "the plan to run", NULL, &path, true},
        {"--on", "BACKEND", "host: this machine's cores, ranks as processes, fp32", NULL, &on,
         false},
        {"--steps", "N", "steps to report (5)", NULL, &steps, false},
        {"--warmup", "W", "real steps before them (1)", NULL, &warmup, false},
        {"-o", "TRACE", "write the measured trace (.json or .json.gz)", NULL, &trace, false},
        {"--checksums", NULL, "with --json: checksums of every parameter after the last step",
         &checksums, NULL, false},
        {"--assume-buffered", NULL, "run a step that needs buffered sends", &assume_buffered, NULL,
         false},
        {"--quiet", NULL, "no progress on stderr", &quiet, NULL, false},
        {"--json", NULL, "one JSON object", &json, NULL, false},
        {0}};
    char *child[16];
    int n = 0, code = td_options_read(&td_command_run, options, argc, argv, &helped);
    if (code != TD_EXIT_DONE || helped)
        goto done;
    if (a == NULL)
        TD_TRY(st, td_fail(&err, TD_NOMEM, "no memory"));
    TD_TRY(st, whole_number("--steps", steps, &err));
    TD_TRY(st, whole_number("--warmup", warmup, &err));
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i].name, on) == 0)
            program = backends[i].program;
    if (program == NULL)
        TD_TRY(st, td_fail(&err, TD_ABSENT,
                           "backend `%s` is not in this build; the executing backend is host", on));
    TD_TRY(st, td_launch_find(program, found, sizeof found, &err));
    TD_TRY(st, td_cli_load(a, path, &diags, &plan, &err));
    TD_TRY(st, examine(a, plan, assume_buffered, &err));
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (plan->world_size > cores && !quiet && !td_launched())
        fprintf(stderr,
                "%lld ranks share %ld cores: times say little about a machine that has one core a "
                "rank\n",
                (long long)plan->world_size, cores);
    const char *const words[] = {found, path, "--steps", steps, "--warmup", warmup};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        child[n++] = (char *)words[i]; /* exec() does not write */
    if (trace != NULL) {
        child[n++] = (char *)"--trace-to";
        child[n++] = (char *)trace;
    }
    if (checksums)
        child[n++] = (char *)"--checksums";
    if (json)
        child[n++] = (char *)"--json";
    if (quiet)
        child[n++] = (char *)"--quiet";
    child[n] = NULL;
    TD_TRY(st, td_launch(found, child, (int32_t)plan->world_size, &code, &err));
    if (code != 0 && code != 1 && code != 3)
        code = TD_EXIT_RUN;
done:
    if (st != TD_OK)
        code = td_exit(st, &err);
    td_arena_free(a);
    return code;
}

const td_command td_command_run = {
    .name = "run",
    .usage = "PLAN [--on host] [--steps N] [--warmup W] [-o TRACE] [--checksums] [--json] ...",
    .summary = "execute the step program on real tensors, one process per rank",
    .example = "tandem run examples/plans/tiny-llava-4rank.yaml --steps 10",
    .run = run,
};
