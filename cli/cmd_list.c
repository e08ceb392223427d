/* `tandem list`: what there is to choose from. */
#include "cli/backends.h"
#include "cli/cli.h"
#include "exec/launch.h"
#include "model/collective.h"
#include "model/module.h"
#include "model/profile.h"
#include "model/schedule.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    bool json;
    json_t *rows; /* json only */
} listing;

static void row(listing *l, const char *name, const char *summary, const char *key,
                const char *value)
{
    if (l->json)
        json_array_append_new(
            l->rows, json_pack("{s:s, s:s, s:s}", "name", name, "summary", summary, key, value));
    else
        printf("%-16s %-12s %s\n", name, value, summary);
}

static td_status backends(td_arena *a, listing *l, td_err *err)
{
    (void)a;
    (void)err;
    for (const td_backend *b = td_backends; b->name != NULL; b++)
        row(l, b->name, b->summary, "state", b->present ? "present" : "absent");
    char path[4200]; /* executing backends are programs of their own */
    row(l, "cuda", "tandem run: a GPU a rank, NCCL, cuBLASLt, cuDNN; bf16 and fp32", "state",
        td_launch_find("tandem-cuda", path, sizeof path, NULL) == TD_OK ? "present" : "absent");
    row(l, "host", "tandem run: this machine's cores, one process per rank over MPI, fp32", "state",
        td_launch_find("tandem-host", path, sizeof path, NULL) == TD_OK ? "present" : "absent");
    return TD_OK;
}

static td_status schedules(td_arena *a, listing *l, td_err *err)
{
    (void)a;
    (void)err;
    for (const td_schedule *const *s = td_schedules; *s != NULL; s++)
        row(l, (*s)->name, (*s)->summary, "key", "schedule");
    return TD_OK;
}

static td_status modules(td_arena *a, listing *l, td_err *err)
{
    (void)a;
    (void)err;
    for (const td_module_type *const *m = td_module_types; *m != NULL; m++)
        row(l, (*m)->name, (*m)->summary, "key", "type");
    return TD_OK;
}

static td_status collectives(td_arena *a, listing *l, td_err *err)
{
    (void)a;
    (void)err;
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        row(l, td_collectives[i]->name, td_collectives[i]->summary, "key", "collective");
    return TD_OK;
}

/* A line shows where the data are from; the rest of the source is in the file and in the JSON. */
static td_status profiles(td_arena *a, listing *l, td_err *err)
{
    td_status st = TD_OK;
    int32_t n;
    const td_profile *const *all;
    TD_TRY(st, td_profile_list(a, &n, &all, err));
    for (int32_t i = 0; i < n; i++)
        row(l, all[i]->name,
            td_arena_printf(a, "%s; %.*s", all[i]->gpu,
                            l->json ? -1 : (int)strcspn(all[i]->source, ";"), all[i]->source),
            "trust", td_trust_names[all[i]->trust]);
done:
    return st;
}

static const struct {
    const char *name;
    td_status (*list)(td_arena *a, listing *l, td_err *err);
} subjects[] = {{"backends", backends},
                {"schedules", schedules},
                {"modules", modules},
                {"collectives", collectives},
                {"profiles", profiles}};
enum { N_SUBJECTS = sizeof subjects / sizeof *subjects };

static int run(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    td_arena *a = td_arena_new();
    listing l = {0};
    const char *subject = NULL;
    bool helped;
    const td_option options[] = {{NULL, "SUBJECT",
                                  "backends, schedules, modules, collectives or profiles", NULL,
                                  &subject, true},
                                 {"--json", NULL, "one JSON array", &l.json, NULL, false},
                                 {0}};
    int code = td_options_read(&td_command_list, options, argc, argv, &helped), found = -1;
    if (code != TD_EXIT_DONE || helped)
        goto done;
    for (int i = 0; i < N_SUBJECTS; i++)
        if (strcmp(subjects[i].name, subject) == 0)
            found = i;
    l.rows = json_array();
    if (a == NULL || l.rows == NULL)
        st = td_fail(&err, TD_NOMEM, "no memory");
    else if (found < 0)
        st = td_fail(&err, TD_USAGE,
                     "nothing to list called `%s`; there are backends, schedules, modules, "
                     "collectives, profiles",
                     subject);
    else
        st = subjects[found].list(a, &l, &err);
    if (st == TD_OK && l.json) {
        json_dumpf(l.rows, stdout, JSON_INDENT(1));
        printf("\n");
    }
    code = td_exit(st, &err);
done:
    json_decref(l.rows);
    td_arena_free(a);
    return code;
}

const td_command td_command_list = {
    .name = "list",
    .usage = "backends|schedules|modules|collectives|profiles [--json]",
    .summary = "what there is to choose from",
    .example = "tandem list profiles",
    .run = run,
};
