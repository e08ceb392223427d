/* `tandem run`: the step, really executed, one process per rank. */
#include "cli/cli.h"
#include "exec/checkpoint.h"
#include "exec/dataset.h"
#include "exec/inject.h"
#include "exec/launch.h"
#include "model/program_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The executing backends, best first: a program of its own each. */
typedef struct {
    const char *name, *program;
    const char *device; /* is there where the backend can do something; NULL: everywhere */
    bool bf16, buffers; /* can compute in it; can buffer sends */
} backend;
static const backend backends[] = {{"cuda", "tandem-cuda", "/dev/nvidiactl", true, false},
                                   {"host", "tandem-host", NULL, false, true}};
enum { N_BACKENDS = sizeof backends / sizeof *backends };

/* The one that was named, or the best that is built and has a device. */
static td_status choose(const char *on, const backend **out, char *found, int size, td_err *err)
{
    *out = NULL;
    for (int i = 0; i < N_BACKENDS && *out == NULL; i++) {
        const backend *b = &backends[i];
        if (on != NULL ? strcmp(b->name, on) == 0
                       : (b->device == NULL || access(b->device, F_OK) == 0) &&
                             td_launch_find(b->program, found, size, NULL) == TD_OK)
            *out = b;
    }
    if (*out == NULL && on != NULL)
        return td_fail(err, TD_ABSENT,
                       "backend `%s` is not in this build; the executing backends are cuda and "
                       "host",
                       on);
    return td_launch_find(*out == NULL ? "tandem-host" : (*out)->program, found, size, err);
}

/* A rank tells a bad token when it comes to it; started by this command, none is ever. */
static td_status examine_data(td_arena *a, const td_plan *plan, td_err *err)
{
    td_status st = TD_OK;
    td_dataset *data = NULL;
    TD_TRY(st, td_dataset_open(a, plan, &data, err));
    TD_TRY(st, td_launched() ? TD_OK : td_dataset_check(data, err));
done:
    td_dataset_close(data);
    return st;
}

/* What must hold before anything is started, and whether sends have to be buffered. */
static td_status examine(td_arena *a, const td_plan *plan, const backend *on, bool assume_buffered,
                         bool *buffered, td_err *err)
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
    if (plan->precision != TD_FP32 && !on->bf16)
        TD_TRY(st, td_fail(err, TD_PLAN,
                           "%s: precision: is bf16, but %s computes in fp32; set precision: fp32",
                           plan->file, on->name));
    TD_TRY(st, td_plan_progress(a, plan, progress, err));
    const td_completion needs = td_progress_needs(progress);
    *buffered = needs == TD_COMPLETION_BUFFERED_SENDS;
    if (needs == TD_N_COMPLETIONS || (needs == TD_COMPLETION_BUFFERED_SENDS && !assume_buffered))
        TD_TRY(
            st,
            td_fail(err, TD_PLAN,
                    "%s: the step needs buffered sends: %s; --assume-buffered runs it all the same",
                    plan->file,
                    td_progress_text(a, &progress[TD_COMPLETION_BUFFERED_SHAPE_MESSAGES])));
    if (*buffered && !on->buffers)
        TD_TRY(st, td_fail(err, TD_PLAN,
                           "%s: the step needs buffered sends, which %s does not have: its sends "
                           "end when they are received",
                           plan->file, on->name));
done:
    return st;
}

/* What can be told of checkpoints before anything is started. */
static td_status examine_checkpoints(td_arena *a, const td_plan *plan, const char *load,
                                     const char *save, td_err *err)
{
    td_status st = TD_OK;
    const td_checkpoint *there;
    if (load != NULL)
        TD_TRY(st, td_checkpoint_open(a, load, plan, &there, err));
    if (save != NULL)
        TD_TRY(st, td_checkpoint_prepare(save, err));
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
    const backend *where;
    const char *path = NULL, *on = NULL, *steps = "5", *warmup = "1", *trace = NULL, *save = NULL,
               *load = NULL, *every = NULL, *detail = NULL, *timeout = "600", *inject = NULL;
    char found[4200];
    bool json = false, checksums = false, assume_buffered = false, quiet = false, buffered = false,
         helped;
    const td_option options[] = {
        {NULL, "PLAN", "the plan to run", NULL, &path, true},
        {"--on", "BACKEND",
         "cuda: a GPU a rank, bf16 and fp32; host: this machine's cores, fp32 (the best that is "
         "here)",
         NULL, &on, false},
        {"--steps", "N", "steps to report (5)", NULL, &steps, false},
        {"--warmup", "W|steady",
         "real steps before them (1); steady: as many as it takes until the medians of two windows "
         "of 5 s agree to 0.3 %, 10 s at least and 60 s at most",
         NULL, &warmup, false},
        {"-o", "TRACE", "write the measured trace (.json or .json.gz)", NULL, &trace, false},
        {"--load", "DIR", "continue the checkpoint there, whatever its layout was", NULL, &load,
         false},
        {"--save", "DIR", "leave a checkpoint there after the last step", NULL, &save, false},
        {"--save-every", "N", "with --save: also after every N steps", NULL, &every, false},
        {"--trace", "fine", "with -o: the parts of every compute op as well", NULL, &detail, false},
        {"--checksums", NULL, "with --json: checksums of every parameter after the last step",
         &checksums, NULL, false},
        {"--assume-buffered", NULL, "run a step that needs buffered sends", &assume_buffered, NULL,
         false},
        {"--quiet", NULL, "no progress on stderr", &quiet, NULL, false},
        {"--json", NULL, "one JSON object", &json, NULL, false},
        {"--timeout", "S",
         "end a run in which no rank got on for S seconds (600; 0: never): exit 5, as for "
         "a rank that dies; ended by a signal (^C), it exits with 128 + its number, as shells do",
         NULL, &timeout, false},
        {"--inject", "FAULTS",
         "slow:RANK:FACTOR, nan:RANK:STEP, kill:RANK:STEP[:OP], or several joined by commas; steps "
         "of this run, from 0",
         NULL, &inject, false},
        {0}};
    char *child[32];
    td_inject faults; /* read here only to be refused in time */
    int n = 0, interrupted = 0,
        code = td_options_read(&td_command_run, options, argc, argv, &helped);
    if (code != TD_EXIT_DONE || helped)
        goto done;
    if (a == NULL)
        TD_TRY(st, td_fail(&err, TD_NOMEM, "no memory"));
    if (detail != NULL && strcmp(detail, "fine") != 0)
        TD_TRY(st, td_fail(&err, TD_USAGE, "--trace %s: the only detail is `fine`", detail));
    if (detail != NULL && trace == NULL)
        TD_TRY(st, td_fail(&err, TD_USAGE, "--trace fine: needs -o TRACE"));
    TD_TRY(st, whole_number("--steps", steps, &err));
    const bool steady = strcmp(warmup, "steady") == 0;
    if (!steady && whole_number("--warmup", warmup, NULL) != TD_OK)
        TD_TRY(st, td_fail(&err, TD_USAGE,
                           "--warmup %s: expected a whole number from 0 on, or steady", warmup));
    TD_TRY(st, whole_number("--save-every", every, &err));
    TD_TRY(st, whole_number("--timeout", timeout, &err));
    if (every != NULL && save == NULL)
        TD_TRY(st, td_fail(&err, TD_USAGE, "--save-every %s: needs --save DIR", every));
    TD_TRY(st, choose(on, &where, found, sizeof found, &err));
    TD_TRY(st, td_cli_load(a, path, &diags, &plan, &err));
    TD_TRY(st, examine(a, plan, where, assume_buffered, &buffered, &err));
    /* Without a count of warm-up steps, any step may come. */
    const int64_t n_steps = steady ? INT64_MAX : strtol(steps, NULL, 10) + strtol(warmup, NULL, 10);
    TD_TRY(st, td_inject_read(inject, plan->world_size, n_steps, 0, &faults, &err));
    TD_TRY(st, examine_data(a, plan, &err));
    TD_TRY(st, examine_checkpoints(a, plan, load, save, &err));
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (where->device == NULL && plan->world_size > cores && !quiet && !td_launched())
        fprintf(stderr,
                "%lld ranks share %ld cores: times say little about a machine that has one core a "
                "rank\n",
                (long long)plan->world_size, cores);
    const char *const words[] = {found, path, "--steps", steps, "--warmup", warmup};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        child[n++] = (char *)words[i]; /* exec() does not write */
    const char *const valued[][2] = {{"--trace-to", trace},
                                     {"--save", save},
                                     {"--save-every", every},
                                     {"--load", load},
                                     {"--inject", inject}};
    for (size_t i = 0; i < sizeof valued / sizeof *valued; i++)
        for (int k = 0; valued[i][1] != NULL && k < 2; k++)
            child[n++] = (char *)valued[i][k];
    if (checksums)
        child[n++] = (char *)"--checksums";
    if (json)
        child[n++] = (char *)"--json";
    if (quiet)
        child[n++] = (char *)"--quiet";
    if (detail != NULL)
        child[n++] = (char *)"--fine";
    if (buffered)
        child[n++] = (char *)"--buffered";
    if (isatty(STDERR_FILENO))
        child[n++] = (char *)"--live";
    child[n] = NULL;
    const td_launch_job job = {.program = found,
                               .argv = child,
                               .n_ranks = (int32_t)plan->world_size,
                               .timeout_s = (int32_t)strtol(timeout, NULL, 10)};
    TD_TRY(st, td_launch(&job, &interrupted, &err));
done:
    if (st != TD_OK)
        code = td_exit(st, &err);
    if (interrupted != 0)
        code = 128 + interrupted;
    td_arena_free(a);
    return code;
}

const td_command td_command_run = {
    .name = "run",
    .usage = "PLAN [--on cuda|host] [--steps N] [--warmup W|steady] [-o TRACE] [--trace fine] "
             "[--save DIR] "
             "[--load DIR] "
             "[--checksums] [--json] ...",
    .summary = "execute the step program on real tensors, one process per rank",
    .example = "tandem run examples/plans/tiny-llava-4rank.yaml --steps 10",
    .run = run,
};
