/* `tandem check`: is the plan valid, where does everything go, does it fit? */
#include "cli/cli.h"
#include "model/memory.h"
#include "model/module.h"
#include "model/program_check.h"
#include "model/rulesets.h"

#include <jansson.h>
#include <stdio.h>

/* What check finds out; as much of it as the plan's errors leave. */
typedef struct {
    const td_plan *plan;
    td_diags diags;
    bool sound; /* no errors before memory: everything below is filled */
    td_pipeline pipe;
    td_ruleset_verdict verdicts[TD_N_RULESETS];
    td_memory **memory; /* [n_modules][pp] */
} findings;

static bool colocated(const td_plan *plan)
{
    bool same = true;
    for (int32_t m = 1; m < plan->n_modules; m++)
        same = same && plan->modules[m].offset == plan->modules[0].offset &&
               td_grid_size(&plan->modules[m].grid) == td_grid_size(&plan->modules[0].grid);
    return same;
}

/* Idle share of 1F1B with equal stages (Narayanan et al., SC'21). */
static double bubble_estimate(const findings *f)
{
    const double p = f->pipe.total_stages, m = f->plan->step.microbatches;
    return (p - 1) / (m + p - 1);
}

static td_status judge_memory(td_arena *a, findings *f, td_err *err)
{
    td_status st = TD_OK;
    f->memory = TD_NEW(a, td_memory *, f->plan->n_modules);
    if (f->memory == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the memory model"));
    for (int32_t m = 0; m < f->plan->n_modules; m++) {
        const td_module *module = &f->plan->modules[m];
        f->memory[m] = TD_NEW(a, td_memory, module->pp);
        if (f->memory[m] == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the memory model"));
        for (int32_t p = 0; p < module->pp; p++) {
            td_memory *mem = &f->memory[m][p];
            TD_TRY(st, td_memory_of_stage(a, f->plan, &f->pipe, m, p, mem, err));
            if (mem->total > mem->capacity)
                td_diag_error(&f->diags, module->at, td_arena_printf(a, "modules.%s", module->name),
                              "memory",
                              "stage %d needs %s, but its GPUs have %.2f GiB; more pipeline or "
                              "tensor ranks, a sharded "
                              "optimizer or recompute: full would help",
                              (int)p, td_memory_text(a, mem), (double)mem->capacity / (1 << 30));
        }
    }
done:
    return st;
}

static td_status judge_progress(td_arena *a, findings *f, td_err *err)
{
    td_status st = TD_OK;
    td_progress progress[TD_N_COMPLETIONS];
    const td_pos at = {.file = f->plan->file};
    TD_TRY(st, td_plan_progress(a, f->plan, progress, err));
    const td_completion needs = td_progress_needs(progress);
    if (needs == TD_N_COMPLETIONS)
        td_diag_error(&f->diags, at, "modules", "deadlock",
                      "the step deadlocks even when every send is buffered: %s",
                      td_progress_text(a, &progress[TD_COMPLETION_BUFFERED_SENDS]));
    else if (needs != TD_COMPLETION_SYNCHRONOUS_SENDS)
        td_diag_warn(&f->diags, at, "modules", "needs_buffering",
                     "the step completes only with %s; with synchronous sends these ranks wait for "
                     "one another: %s",
                     td_completion_names[needs],
                     td_progress_text(a, &progress[TD_COMPLETION_SYNCHRONOUS_SENDS]));
done:
    return st;
}

static td_status judge_program(td_arena *a, findings *f, td_err *err)
{
    td_status st = TD_OK;
    const td_program *program;
    td_plan small = *f->plan; /* later microbatches repeat the same calls */
    const int32_t enough = 4 * f->pipe.total_stages + 4;
    if (td_plan_executable(f->plan, NULL) != TD_OK)
        goto done; /* no step program yet, and predict and run say so */
    if (small.step.microbatches > enough)
        small.step.microbatches = enough;
    TD_TRY(st, td_lower(a, &small, &program, err));
    TD_TRY(st, td_program_check(a, program, err));
done:
    return st;
}

static td_status investigate(td_arena *a, const char *path, findings *f, td_err *err)
{
    td_status st = TD_OK;
    f->diags.arena = a;
    TD_TRY(st, td_plan_load(a, path, &f->diags, &f->plan, err));
    TD_TRY(st, td_rulesets_judge_plan(a, f->plan, f->verdicts, err));
    f->sound = f->diags.n_errors == 0;
    if (!f->sound)
        goto done;
    TD_TRY(st, td_pipeline_of_plan(a, f->plan, &f->pipe, err));
    TD_TRY(st, judge_progress(a, f, err));
    TD_TRY(st, judge_program(a, f, err));
    TD_TRY(st, judge_memory(a, f, err));
done:
    return st;
}

/* ---- JSON ---- */

static json_t *diags_json(const td_diags *diags, bool warnings)
{
    json_t *all = json_array();
    for (const td_diag *d = diags->head; d != NULL; d = d->next)
        if (d->warning == warnings)
            json_array_append_new(all,
                                  json_pack("{s:s, s:i, s:i, s:s, s:s, s:s}", "path", d->path,
                                            "line", (int)d->at.line, "column", (int)d->at.column,
                                            "rule", d->rule, "message", d->message, "file",
                                            d->at.file == NULL ? "" : d->at.file));
    return all;
}

static json_t *rulesets_json(const findings *f)
{
    json_t *all = json_object();
    for (int32_t i = 0; i < TD_N_RULESETS; i++) {
        const td_ruleset_verdict *v = &f->verdicts[i];
        json_t *warnings = json_array();
        for (int32_t w = 0; w < v->n_warnings; w++)
            json_array_append_new(warnings, json_string(v->warnings[w]));
        json_object_set_new(all, td_ruleset_names[i],
                            json_pack("{s:s, s:s?, s:o}", "status", td_verdict_names[v->status],
                                      "rule", v->rule, "warnings", warnings));
    }
    return all;
}

static json_t *memory_json(const td_memory *m)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "weights", (json_int_t)m->weights,
                     "gradients", (json_int_t)m->gradients, "optimizer", (json_int_t)m->optimizer,
                     "activations", (json_int_t)m->activations, "buffers", (json_int_t)m->buffers,
                     "total", (json_int_t)m->total, "capacity", (json_int_t)m->capacity);
}

static json_t *ranks_json(td_arena *a, const findings *f)
{
    json_t *all = json_array();
    for (int32_t r = 0; f->memory != NULL && r < f->plan->world_size; r++) {
        const td_position at = td_pipeline_position(&f->pipe, r);
        const td_cluster *c = f->plan->cluster;
        const td_memory idle = {
            .capacity = (uint64_t)c->groups[td_cluster_place(c, r).group].gpu.memory_bytes};
        const td_memory *mem = at.n_modules == 0 ? &idle : &f->memory[at.module[0]][at.pp_rank[0]];
        json_array_append_new(all, json_pack("{s:i, s:o, s:s?}", "rank", (int)r, "memory_bytes",
                                             memory_json(mem), "peak",
                                             at.n_modules == 0 ? NULL : td_memory_text(a, mem)));
    }
    return all;
}

static void print_json(td_arena *a, const findings *f)
{
    json_t *out = json_pack("{s:b, s:o, s:o, s:s?, s:o, s:o, s:o, s:o}", "ok",
                            f->diags.n_errors == 0, "errors", diags_json(&f->diags, false),
                            "warnings", diags_json(&f->diags, true), "mode",
                            f->plan->n_modules == 0 ? NULL
                            : colocated(f->plan)    ? "colocated"
                                                    : "non_colocated",
                            "world_size", json_integer(f->plan->world_size), "bubble_estimate",
                            f->sound ? json_real(bubble_estimate(f)) : json_null(), "rulesets",
                            rulesets_json(f), "ranks", ranks_json(a, f));
    json_dumpf(out, stdout, JSON_COMPACT);
    printf("\n");
    json_decref(out);
}

/* ---- text ---- */

static void count(void *self, const td_param *p)
{
    double *total = self;
    *total += (double)p->out * (double)p->in;
}

static void print_layout(const findings *f)
{
    printf("\n%-12s %-9s %3s %3s %3s %9s %7s %10s\n", "module", "type", "tp", "pp", "dp", "ranks",
           "layers", "parameters");
    for (int32_t m = 0; m < f->plan->n_modules; m++) {
        const td_module *module = &f->plan->modules[m];
        double params = 0;
        char ranks[32];
        for (int32_t p = 0; p < module->pp; p++) {
            const td_stage s = td_stage_of(f->plan, m, p);
            td_stage_params(&s, count, &params);
        }
        snprintf(ranks, sizeof ranks, "%d-%lld", (int)module->offset,
                 (long long)(module->offset + td_grid_size(&module->grid) - 1));
        printf("%-12s %-9s %3d %3d %3d %9s %7d %8.2f M\n", module->name, module->type->name,
               (int)module->tp, (int)module->pp, (int)module->dp, ranks, (int)module->layers,
               params / 1e6);
    }
    printf("\n%d stages, %d microbatches: at least %.1f %% of the time is bubble if all stages are "
           "equal\n",
           (int)f->pipe.total_stages, (int)f->plan->step.microbatches, 100 * bubble_estimate(f));
}

static void print_memory(td_arena *a, const findings *f)
{
    printf("\nmemory of each rank\n");
    for (int32_t m = 0; m < f->plan->n_modules; m++)
        for (int32_t p = 0; p < f->plan->modules[m].pp; p++) {
            const td_memory *mem = &f->memory[m][p];
            const double gib = 1 << 30;
            printf("  %-12s stage %-3d %s; %.2f GiB of %.2f GiB left\n", f->plan->modules[m].name,
                   (int)p, td_memory_text(a, mem),
                   ((double)mem->capacity - (double)mem->total) / gib, (double)mem->capacity / gib);
        }
}

static void print_text(td_arena *a, const char *path, const findings *f)
{
    printf("%s: %s\n", path, f->diags.n_errors == 0 ? "valid" : "not valid");
    for (const td_diag *d = f->diags.head; d != NULL; d = d->next)
        printf("  %s: %s\n", d->warning ? "warning" : "error", td_diag_text(&f->diags, d));
    if (f->sound)
        print_layout(f);
    if (f->memory != NULL)
        print_memory(a, f);
    printf("\nwould the reference accept this layout?\n");
    for (int32_t i = 0; i < TD_N_RULESETS; i++) {
        const td_ruleset_verdict *v = &f->verdicts[i];
        printf("  %-13s %s%s%s", td_ruleset_names[i], td_verdict_names[v->status],
               v->rule == NULL ? "" : ": ", v->rule == NULL ? "" : v->rule);
        for (int32_t w = 0; w < v->n_warnings; w++)
            printf(" %s", v->warnings[w]);
        printf("\n");
    }
}

static int run(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    td_arena *a = td_arena_new();
    findings f = {0};
    const char *path = NULL;
    bool json = false, helped;
    const td_option options[] = {{NULL, "PLAN", "the plan to check", NULL, &path, true},
                                 {"--json", NULL, "one JSON object", &json, NULL, false},
                                 {0}};
    int code = td_options_read(&td_command_check, options, argc, argv, &helped);
    if (code != TD_EXIT_DONE || helped)
        goto done;
    if (a == NULL)
        st = td_fail(&err, TD_NOMEM, "no memory");
    else
        st = investigate(a, path, &f, &err);
    code = td_exit(st, &err);
    if (st == TD_OK) {
        if (json)
            print_json(a, &f);
        else
            print_text(a, path, &f);
        code = f.diags.n_errors == 0 ? TD_EXIT_DONE : TD_EXIT_NO;
    }
done:
    td_arena_free(a);
    return code;
}

const td_command td_command_check = {
    .name = "check",
    .usage = "PLAN [--json]",
    .summary =
        "validate a plan: layout, memory of each rank, bubble estimate, the reference's opinion",
    .example = "tandem check examples/plans/full_pp_8gpu-7b.yaml",
    .run = run,
};
