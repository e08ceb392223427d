/* `tandem predict`: how long the step takes, why, and what the answer rests on. */
#include "cli/backends.h"
#include "cli/cli.h"
#include "cli/picture.h"
#include "model/program_check.h"
#include "model/text.h"
#include "model/version.h"
#include "sim/trace_out.h"
#include "sim/uncertainty.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    td_arena *a;
    const td_plan *plan;
    const td_program *program;
    const td_backend *backend;
    td_prediction p;
    td_uncertainty u;
    double wall_s;
} answer;

/* ---- before ---- */

/* What would stop a run but not a prediction is said; what stops both is a failure. */
static td_status warn(answer *w, td_err *err)
{
    td_status st = TD_OK;
    td_progress progress[TD_N_COMPLETIONS];
    TD_TRY(st, td_plan_progress(w->a, w->plan, progress, err));
    const td_completion needs = td_progress_needs(progress);
    if (needs == TD_N_COMPLETIONS)
        TD_TRY(st,
               td_fail(err, TD_PLAN, "%s: the step deadlocks even when every send is buffered: %s",
                       w->plan->file,
                       td_progress_text(w->a, &progress[TD_COMPLETION_BUFFERED_SENDS])));
    if (needs != TD_COMPLETION_SYNCHRONOUS_SENDS)
        fprintf(stderr, "warning: %s: the step completes only with %s: %s\n", w->plan->file,
                td_completion_names[needs],
                td_progress_text(w->a, &progress[TD_COMPLETION_SYNCHRONOUS_SENDS]));
    TD_TRY(st, td_program_check(w->a, w->program, err));
done:
    return st;
}

static void warn_memory(const answer *w)
{
    for (int32_t m = 0; m < w->plan->n_modules; m++)
        for (int32_t s = 0; s < w->plan->modules[m].pp; s++) {
            const td_memory *mem = &w->p.memory[m][s];
            if (mem->total > mem->capacity)
                fprintf(stderr, "warning: %s: modules.%s: stage %d does not fit: %s of %.2f GiB\n",
                        w->plan->file, w->plan->modules[m].name, (int)s, td_memory_text(w->a, mem),
                        (double)mem->capacity / (1024.0 * 1024 * 1024));
        }
}

/* What a cluster says that the profile contradicts, one line each. */
static void warn_versions(const answer *w, const td_node_group *group, const td_profile *profile)
{
    const td_environment *e = &profile->environment;
    const char *const measured[TD_N_LIBRARIES] = {[TD_LIBRARY_DRIVER] = e->driver,
                                                  [TD_LIBRARY_CUDA] = e->cuda,
                                                  [TD_LIBRARY_NCCL] = e->nccl,
                                                  [TD_LIBRARY_CUDNN] = e->cudnn};
    for (td_library i = 0; i < TD_N_LIBRARIES; i++) {
        char there[64], then[64];
        if (td_version_same(i, group->gpu.versions[i], measured[i]))
            continue;
        td_version_text(i, group->gpu.versions[i], there, sizeof there);
        td_version_text(i, measured[i], then, sizeof then);
        fprintf(stderr,
                "warning: %s: its %s is `%s`, but profile %s was measured with `%s`: other "
                "versions, other times\n",
                w->plan->cluster->file, td_library_names[i],
                td_text_show(w->a, there, strlen(there)), profile->name,
                td_text_show(w->a, then, strlen(then)));
    }
}

/* One line for each kind of node whose GPU is not the one that its profile was measured on, and for
 * each of its versions. */
static void warn_gpus(const answer *w)
{
    const td_cluster *cluster = w->plan->cluster;
    for (int32_t r = 0, seen = -1; r < w->program->world_size; r++) {
        const td_place at = td_cluster_place(cluster, r);
        const char *gpu = cluster->groups[at.group].gpu.name;
        const td_profile *profile = td_costs_profile(w->p.costs, r);
        if (at.group != seen && strcmp(profile->gpu, gpu) != 0)
            fprintf(stderr, "warning: %s: its GPUs are `%s`, but profile %s is of `%s`\n",
                    cluster->file, td_text_show(w->a, gpu, strlen(gpu)), profile->name,
                    td_text_show(w->a, profile->gpu, strlen(profile->gpu)));
        if (at.group != seen)
            warn_versions(w, &cluster->groups[at.group], profile);
        seen = at.group;
    }
}

/* Who plans for a machine that is not there must say how many cores it will have. */
static void warn_cores(const answer *w)
{
    if (w->p.cores_unknown >= 0)
        fprintf(stderr,
                "warning: %s: the cluster does not say how many `cores` the node of rank %d has: "
                "predicted as if every rank had one of its own\n",
                w->plan->cluster->file, (int)w->p.cores_unknown);
}

static void warn_notes(const answer *w)
{
    enum { MOST = 3 };
    int32_t shown = 0;
    for (const td_cost_note *n = w->p.notes.head; n != NULL && shown < MOST; n = n->next, shown++)
        fprintf(stderr, "warning: extrapolated: %s: %s\n", n->what, n->why);
    if (w->p.notes.n > shown)
        fprintf(stderr, "warning: ... and %d more; --json lists them all, --strict refuses them\n",
                (int)(w->p.notes.n - shown));
}

/* ---- JSON ---- */

static uint64_t peak_memory(const answer *w, int32_t rank)
{
    const td_stream *s = td_program_stream(w->program, rank);
    return s->module < 0 ? 0 : w->p.memory[s->module][s->pp_rank].total;
}

/* Model FLOPs that each class of ranks does in a step; NULL without memory. */
static const double *class_flops(const answer *w)
{
    const td_timeline *t = w->p.timeline;
    double *flops = TD_NEW(w->a, double, t->n_classes);
    for (int32_t c = 0; flops != NULL && c < t->n_classes; c++) {
        const td_stream *s = td_program_stream(w->program, t->rep[c]);
        for (int32_t i = 0; i < s->n_ops; i++)
            flops[c] += s->ops[i].work < 0 ? 0 : w->program->works[s->ops[i].work].flops;
    }
    return flops;
}

static json_t *ranks_json(const answer *w)
{
    const double *flops = class_flops(w);
    json_t *all = json_array();
    for (int32_t r = 0; r < w->program->world_size; r++) {
        const int32_t c = w->p.timeline->class_of[r];
        const td_rank_time *t = &w->p.class_time[c];
        json_array_append_new(
            all,
            json_pack("{s:i, s:f, s:f, s:f, s:f, s:I, s:f, s:f, s:f}", "rank", (int)r, "busy_s",
                      t->busy_s, "transfer_s", t->transfer_s, "collective_s", t->collective_s,
                      "bubble_s", t->bubble_s, "peak_memory_bytes", (json_int_t)peak_memory(w, r),
                      "duty", w->p.class_clocks[c].heat, "clock_factor",
                      w->p.class_clocks[c].factor, "flops", flops == NULL ? 0 : flops[c]));
    }
    return all;
}

static json_t *path_json(const td_critical_path *path)
{
    json_t *items = json_array();
    for (const td_path_item *i = path->items; i != NULL; i = i->next)
        json_array_append_new(items,
                              json_pack("{s:s, s:f}", "what", i->what, "seconds", i->seconds));
    return json_pack("{s:f, s:f, s:f, s:f, s:o}", "compute_s", path->compute_s, "transfer_s",
                     path->transfer_s, "collective_s", path->collective_s, "wait_s", path->wait_s,
                     "items", items);
}

static json_t *notes_json(const td_cost_notes *notes)
{
    json_t *all = json_array();
    for (const td_cost_note *n = notes->head; n != NULL; n = n->next)
        json_array_append_new(all, json_pack("{s:s, s:s, s:I}", "what", n->what, "why", n->why,
                                             "count", (json_int_t)n->count));
    return all;
}

static json_t *shapes_json(const td_cost_notes *notes)
{
    return json_pack("{s:i, s:i, s:i}", "known", (int)notes->n_shapes[TD_SHAPE_KNOWN], "inside",
                     (int)notes->n_shapes[TD_SHAPE_INSIDE], "outside",
                     (int)notes->n_shapes[TD_SHAPE_OUTSIDE]);
}

/* null if none was asked for. */
static json_t *interval_json(const td_uncertainty *u)
{
    return u->method == TD_UNCERTAINTY_NONE
               ? json_null()
               : json_pack("{s:f, s:f, s:f, s:i, s:s, s:s}", "low", u->low_s, "high", u->high_s,
                           "level", u->level, "samples", (int)u->samples, "method",
                           td_uncertainty_names[u->method], "basis", u->basis);
}

static json_t *sensitivity_json(const td_uncertainty *u)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < u->n_sensitivities; i++)
        json_array_append_new(all, json_pack("{s:s, s:f}", "what", u->sensitivities[i].what,
                                             "share", u->sensitivities[i].share));
    return all;
}

/* null: every rank has a core, or a GPU, of its own. */
static json_t *cores_json(const td_prediction *p)
{
    json_t *all = p->cores == NULL ? json_null() : json_array();
    for (int32_t n = 0; p->cores != NULL && n < p->cores->n_nodes; n++)
        json_array_append_new(all, json_pack("{s:i, s:i, s:i}", "node", (int)n, "ranks",
                                             (int)(p->cores->first[n + 1] - p->cores->first[n]),
                                             "cores", (int)p->cores->cores[n]));
    return all;
}

static void print_json(const answer *w)
{
    const td_prediction *p = &w->p;
    const td_profile *profile = td_costs_profile(p->costs, 0);
    json_t *out = json_pack(
        "{s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:I, s:I, s:f}", "plan", w->plan->name,
        "backend", w->backend->name, "digest", w->program->digest, "step_s", p->step_s,
        "tokens_per_s", p->tokens_per_s, "flops_per_step", p->flops_per_step, "mfu", p->mfu,
        "bubble_fraction", p->bubble_fraction, "critical_path", path_json(&p->path), "ranks",
        ranks_json(w), "ops", (json_int_t)w->program->n_ops, "promoted_flows",
        (json_int_t)p->timeline->n_promoted, "wall_s", w->wall_s);
    json_object_set_new(out, "profile",
                        json_pack("{s:s, s:s, s:s, s:s, s:f}", "name", profile->name, "trust",
                                  td_trust_names[profile->trust], "gpu", profile->gpu, "source",
                                  profile->source, "peak_flops_per_s",
                                  w->plan->precision == TD_BF16 ? profile->bf16_flops_per_s
                                                                : profile->fp32_flops_per_s));
    json_object_set_new(out, "interval", interval_json(&w->u));
    json_object_set_new(out, "sensitivity", sensitivity_json(&w->u));
    json_object_set_new(out, "extrapolated", notes_json(&p->notes));
    json_object_set_new(out, "shapes", shapes_json(&p->notes));
    json_object_set_new(out, "cores", cores_json(p));
    json_object_set_new(out, "folded", json_boolean(p->timeline->folded));
    json_object_set_new(out, "buffered_sends", json_boolean(p->timeline->buffered_sends));
    json_object_set_new(out, "simulated_ops", json_integer(p->timeline->n_simulated));
    json_object_set_new(out, "classes", json_integer(p->timeline->n_classes));
    json_object_set_new(out, "max_link_load", json_real(p->timeline->max_link_load));
    json_object_set_new(out, "rounds", json_integer(p->n_rounds));
    json_dumpf(out, stdout, JSON_COMPACT);
    printf("\n");
    json_decref(out);
}

/* ---- text ---- */

static void print_summary(const answer *w)
{
    const td_prediction *p = &w->p;
    char text[64], low[64], high[64];
    printf("%s on %lld GPUs (%s)\n\n", td_text_show(w->a, w->plan->name, strlen(w->plan->name)),
           (long long)w->program->world_size, w->backend->name);
    printf("  step time     %s", td_text_seconds(p->step_s, text, sizeof text));
    if (w->u.method != TD_UNCERTAINTY_NONE)
        printf("  (%.0f %%: %s to %s, %d draws, %s)", 100 * w->u.level,
               td_text_seconds(w->u.low_s, low, sizeof low),
               td_text_seconds(w->u.high_s, high, sizeof high), (int)w->u.samples,
               td_uncertainty_names[w->u.method]);
    printf("\n");
    printf("  throughput    %.0f tokens/s, %.0f per GPU\n", p->tokens_per_s,
           p->tokens_per_s / w->program->world_size);
    printf("  MFU           %.1f %%  (%.4g FLOPs a step)\n", 100 * p->mfu, p->flops_per_step);
    printf("  bubble        %.1f %% of all GPU time\n", 100 * p->bubble_fraction);
}

static void print_path(const answer *w)
{
    const td_critical_path *path = &w->p.path;
    const double step = w->p.step_s > 0 ? w->p.step_s : 1;
    double rest = 0;
    int32_t n = 0;
    printf("\ncritical path: ");
    for (const td_path_item *i = path->items; i != NULL; i = i->next) {
        if (n < 6 && (n == 0 || i->seconds / step >= 0.005))
            printf("%s%.1f %% %s", n++ == 0 ? "" : ", ", 100 * i->seconds / step, i->what);
        else
            rest += i->seconds;
    }
    if (path->wait_s / step >= 0.0005)
        printf(", %.1f %% waiting", 100 * path->wait_s / step);
    if (rest / step >= 0.0005)
        printf(", %.1f %% other", 100 * rest / step);
    printf("\n               compute %.1f %%, collectives %.1f %%, transfers %.1f %%\n",
           100 * path->compute_s / step, 100 * path->collective_s / step,
           100 * path->transfer_s / step);
}

static void print_sensitivities(const answer *w)
{
    enum { MOST = 5 };
    const td_uncertainty *u = &w->u;
    for (int32_t i = 0; i < u->n_sensitivities && i < MOST; i++)
        if (i < 3 || u->sensitivities[i].share >= 0.01)
            printf("%s  %-16s %5.2f %%\n",
                   i == 0 ? "\na change of 10 % in the time of   moves the step by\n" : "",
                   u->sensitivities[i].what, 10 * u->sensitivities[i].share);
}

/* Ranks that behave alike and follow one another share a line. */
static void print_ranks(const answer *w)
{
    const td_prediction *p = &w->p;
    const int32_t world = w->program->world_size, most = 40;
    int32_t lines = 0;
    printf("\n%-13s %-18s %9s %10s %9s %9s %11s %12s\n", "ranks", "stage", "busy", "collective",
           "transfer", "bubble", "peak memory", "headroom");
    for (int32_t r = 0, next; r < world; r = next) {
        const int32_t c = p->timeline->class_of[r];
        const td_stream *s = td_program_stream(w->program, r);
        const td_rank_time *t = &p->class_time[c];
        char ranks[32], stage[160] = "idle", peak[32] = "-", left[32] = "-";
        for (next = r + 1;
             next < world && td_program_stream(w->program, next)->module == s->module &&
             td_program_stream(w->program, next)->pp_rank == s->pp_rank &&
             memcmp(&p->class_time[p->timeline->class_of[next]], t, sizeof *t) == 0;
             next++)
            ;
        if (++lines > most)
            continue;
        snprintf(ranks, sizeof ranks, next == r + 1 ? "%d" : "%d-%d", (int)r, (int)next - 1);
        if (s->module >= 0) {
            const td_memory *mem = &p->memory[s->module][s->pp_rank];
            snprintf(stage, sizeof stage, "%s %d", w->plan->modules[s->module].name,
                     (int)s->pp_rank);
            td_text_bytes((double)mem->total, peak, sizeof peak);
            td_text_bytes((double)mem->capacity - (double)mem->total, left, sizeof left);
        }
        printf("%-13s %-18s %7.1f %% %8.1f %% %7.1f %% %7.1f %% %11s %12s\n", ranks, stage,
               100 * t->busy_s / p->step_s, 100 * t->collective_s / p->step_s,
               100 * t->transfer_s / p->step_s, 100 * t->bubble_s / p->step_s, peak, left);
    }
    if (lines > most)
        printf("... %d more lines; --json has every rank\n", (int)(lines - most));
    for (int32_t m = 0; m < w->plan->n_modules; m++) {
        const td_memory *worst = &p->memory[m][0];
        int32_t stage = 0;
        for (int32_t i = 1; i < w->plan->modules[m].pp; i++)
            if (p->memory[m][i].total > worst->total)
                worst = &p->memory[m][stage = i];
        printf("%s%s: memory peaks on stage %d: %s\n", m == 0 ? "\n" : "", w->plan->modules[m].name,
               (int)stage, td_memory_text(w->a, worst));
    }
}

static void print_grounds(const answer *w)
{
    const td_prediction *p = &w->p;
    const td_timeline *t = p->timeline;
    char text[64];
    double lowest = 1, highest = 1;
    printf("\nwhat this rests on\n");
    for (int32_t g = 0, seen = -1; g < w->program->world_size; g++) {
        const td_profile *profile = td_costs_profile(p->costs, g);
        const td_place place = td_cluster_place(w->plan->cluster, g);
        if (place.group == seen)
            continue;
        seen = place.group;
        printf("  profile %s (%s): %.*s\n", profile->name, td_trust_names[profile->trust],
               (int)strcspn(profile->source, ";"), profile->source); /* the rest is in the file */
    }
    if (w->u.method != TD_UNCERTAINTY_NONE)
        printf("  interval: %s\n", w->u.basis);
    printf("  %lld cost look-ups, %lld of them extrapolated (%d shapes)\n",
           (long long)p->notes.n_asked, (long long)p->notes.n_extrapolated, (int)p->notes.n);
    printf("  products, attention and collectives: %d shapes as measured, %d between measurements, "
           "%d outside them\n",
           (int)p->notes.n_shapes[TD_SHAPE_KNOWN], (int)p->notes.n_shapes[TD_SHAPE_INSIDE],
           (int)p->notes.n_shapes[TD_SHAPE_OUTSIDE]);
    for (int32_t n = 0; p->cores != NULL && n < p->cores->n_nodes; n++)
        if (p->cores->first[n + 1] - p->cores->first[n] > p->cores->cores[n])
            printf("  node %d: %d ranks share %d cores\n", (int)n,
                   (int)(p->cores->first[n + 1] - p->cores->first[n]), (int)p->cores->cores[n]);
    for (int32_t c = 0; c < t->n_classes; c++) {
        const double factor = p->class_clocks[c].factor;
        lowest = c == 0 || factor < lowest ? factor : lowest;
        highest = factor > highest ? factor : highest;
    }
    printf("  power: products and attention run %.1f to %.1f %% slower than at full clocks (%d "
           "rounds%s)\n",
           100 * (lowest - 1), 100 * (highest - 1), (int)p->n_rounds,
           p->settled ? "" : ", NOT settled");
    printf("  %lld ops, %lld simulated%s; %lld of %lld flows shared a link; %s\n",
           (long long)w->program->n_ops, (long long)t->n_simulated,
           t->folded ? " (alike ranks once)" : "", (long long)t->n_promoted, (long long)t->n_flows,
           td_text_seconds(w->wall_s, text, sizeof text));
}

static td_status print_text(answer *w, td_err *err)
{
    print_summary(w);
    print_path(w);
    print_sensitivities(w);
    print_ranks(w);
    printf("\n");
    const td_status st = td_picture_print(w->a, stdout, &w->p, -1, err);
    print_grounds(w);
    return st;
}

/* `text` NULL: the default. */
static td_status read_samples(const char *text, td_uncertainty_options *o, td_err *err)
{
    enum { MOST = 1000000 };
    char *end;
    if (text == NULL)
        return TD_OK;
    const long n = strtol(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || n > MOST || (n > 0 && n < TD_MIN_SAMPLES))
        return td_fail(err, TD_USAGE, "--samples %s: expected 0 (no interval) or %d to %d", text,
                       TD_MIN_SAMPLES, MOST);
    o->method = n == 0 ? TD_UNCERTAINTY_NONE : TD_UNCERTAINTY_RESIMULATED;
    o->samples = (int32_t)n;
    return TD_OK;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    td_diags diags;
    answer w = {.a = td_arena_new()};
    const double began = now();
    const char *path = NULL, *on = NULL, *profile = NULL, *trace = NULL, *detail = NULL,
               *flows = NULL, *samples = NULL;
    td_uncertainty_options uncertainty = {0};
    bool json = false, strict = false, no_fold = false, no_overlap = false, helped;
    const td_option options[] = {
        {NULL, "PLAN", "the plan to predict", NULL, &path, true},
        {"--on", "BACKEND", "simgrid (default) or ideal: links shared, or each transfer alone",
         NULL, &on, false},
        {"--profile", "PROFILE",
         "cost data for every GPU instead of the cluster's: a shipped name or a file", NULL,
         &profile, false},
        {"-o", "TRACE", "write the predicted trace (.json or .json.gz) for a trace viewer", NULL,
         &trace, false},
        {"--trace", "fine", "with -o: the parts of every compute op as well", NULL, &detail, false},
        {"--strict", NULL, "refuse shapes outside the profile instead of warning", &strict, NULL,
         false},
        {"--no-fold", NULL, "simulate every rank, alike or not", &no_fold, NULL, false},
        {"--no-overlap", NULL, "compute and transfers do not slow each other down", &no_overlap,
         NULL, false},
        {"--flows", "all", "send every transfer through SimGrid: slow, the check on the fast path",
         NULL, &flows, false},
        {"--samples", "N",
         "simulate N steps at prices drawn from the profile's errors; 0: no interval "
         "(default: 32, or sums along the critical path if those are slow)",
         NULL, &samples, false},
        {"--json", NULL, "one JSON object", &json, NULL, false},
        {0}};
    int code = td_options_read(&td_command_predict, options, argc, argv, &helped);
    if (code != TD_EXIT_DONE || helped)
        goto done;
    if (w.a == NULL)
        TD_TRY(st, td_fail(&err, TD_NOMEM, "no memory"));
    if (detail != NULL && strcmp(detail, "fine") != 0)
        TD_TRY(st, td_fail(&err, TD_USAGE, "--trace %s: the only detail is `fine`", detail));
    if (flows != NULL && strcmp(flows, "all") != 0)
        TD_TRY(st, td_fail(&err, TD_USAGE, "--flows %s: the only choice is `all`", flows));
    TD_TRY(st, read_samples(samples, &uncertainty, &err));
    TD_TRY(st, td_backend_find(on, &w.backend, &err));
    if (flows != NULL && w.backend->net == NULL)
        TD_TRY(st, td_fail(&err, TD_USAGE, "--flows all needs the simgrid backend, not `%s`",
                           w.backend->name));
    TD_TRY(st, td_cli_load(w.a, path, &diags, &w.plan, &err));
    TD_TRY(st, td_lower(w.a, w.plan, &w.program, &err));
    TD_TRY(st, warn(&w, &err));
    const td_predict_options o = {
        .flows = flows != NULL ? TD_FLOWS_ALL : w.backend->flows,
        .net = w.backend->net,
        .no_fold = no_fold,
        .costs = {.profile = profile, .strict = strict, .no_overlap = no_overlap}};
    TD_TRY(st, td_predict(w.a, w.program, &o, &w.p, &err));
    w.wall_s = now() - began;
    TD_TRY(st, td_uncertainty_of(w.a, &w.p, &uncertainty, &w.u, &err));
    if (w.p.timeline->buffered_sends)
        fprintf(stderr,
                "warning: %s: predicted as if every send were buffered: it would never end "
                "otherwise\n",
                w.plan->file);
    warn_memory(&w);
    warn_gpus(&w);
    warn_cores(&w);
    warn_notes(&w);
    if (trace != NULL)
        TD_TRY(st, td_prediction_write(w.a, &w.p, trace, w.backend->name, detail != NULL, &err));
    if (json)
        print_json(&w);
    else
        TD_TRY(st, print_text(&w, &err));
    if (trace != NULL)
        fprintf(stderr, "wrote %s: open it at ui.perfetto.dev or in chrome://tracing\n", trace);
done:
    if (st != TD_OK)
        code = td_exit(st, &err);
    td_arena_free(w.a);
    return code;
}

const td_command td_command_predict = {
    .name = "predict",
    .usage = "PLAN [--on simgrid|ideal] [--profile F] [--samples N] [-o TRACE] [--json] ...",
    .summary = "predict the step: time, throughput, bubble, memory, critical path, and what the "
               "answer rests on",
    .example = "tandem predict examples/plans/full_pp_8gpu-7b.yaml -o full_pp.json.gz",
    .run = run,
};
