/* The way of a rank from its options to its share of the answer. */
#include "exec/host_job.h"
#include "exec/driver.h"
#include "exec/host_checkpoint.h"
#include "exec/host_trace.h"
#include "exec/live.h"
#include "exec/spread.h"
#include "exec/state.h"
#include "exec/steady.h"
#include "model/program_check.h"
#include "traces/trace.h"

#include <jansson.h>
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const td_job_backend *backend;
    td_arena *a;
    td_run_options o;
    int32_t rank, world;
    const td_plan *plan;
    const td_program *program;
    const td_device *device;
    td_driver *driver;
    int64_t first_step;      /* 0, or where the loaded run stopped */
    int32_t n_warmup;        /* as asked for, or as many as it took */
    double warmup_s;         /* by the clock of rank 0 */
    td_steadiness steady;    /* where the warm-up was not counted */
    td_step_result *results; /* [n_steps] after the warm-up */
    td_host_trace trace;     /* of those, if one was asked for */
    json_t *ranks;           /* what each has to tell, on rank 0 */
    bool all_failed;         /* every rank knows and says the same */
    td_watch_slot *watch;    /* NULL: nobody watches */
} job;

/* ---- before the first op ---- */

/*
 * Collective: ranks go on together or not at all. The first rank that has something to say says it
 * for all, so that the user reads one line whatever the number of ranks.
 */
static td_status together(job *j, td_status own, td_err *err)
{
    int first = own == TD_OK ? j->world : j->rank, code = (int)own;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (first == j->world)
        return TD_OK;
    MPI_Bcast(&code, 1, MPI_INT, first, MPI_COMM_WORLD);
    MPI_Bcast(err->text, sizeof err->text, MPI_CHAR, first, MPI_COMM_WORLD);
    err->status = (td_status)code;
    j->all_failed = true;
    return (td_status)code;
}

/* All ranks must have read the same plan into the same program. */
static td_status agree(const job *j, td_err *err)
{
    const td_plan *p = j->plan;
    char own[512], first[512];
    /* What the program does not hold but every rank must agree on. */
    snprintf(own, sizeof own, "%s %s %d %d %d %d %a %a %a %a %a %a %d %u", j->program->digest,
             TD_VERSION, (int)j->o.n_steps, (int)j->o.n_warmup, (int)j->o.steady,
             (int)j->o.buffered, p->optimizer.lr, p->optimizer.beta1, p->optimizer.beta2,
             p->optimizer.eps, p->optimizer.weight_decay, p->optimizer.clip_grad,
             (int)p->optimizer.nonfinite, (unsigned)p->seed);
    memcpy(first, own, sizeof first);
    MPI_Bcast(first, sizeof first, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (strcmp(first, own) == 0)
        return TD_OK;
    return td_fail(err, TD_RUN,
                   "step program, version or options of rank %d differ from those of rank 0; every "
                   "rank must run the same plan with the same tandem",
                   (int)j->rank);
}

static td_status trace_room(job *j, td_err *err)
{
    if (j->o.trace == NULL)
        return TD_OK;
    return td_host_trace_open(j->a, j->program, j->rank, j->backend->name, j->o.n_steps, j->o.fine,
                              j->o.trace, &j->trace, err);
}

static td_status read_plan(job *j, td_err *err)
{
    td_status st = TD_OK;
    td_diags diags = {.arena = j->a};
    TD_TRY(st, td_plan_load(j->a, j->o.plan, &diags, &j->plan, err));
    TD_TRY(st, td_diag_status(&diags, err));
    if (j->plan->world_size != j->world)
        TD_TRY(st, td_fail(err, TD_RUN, "%s needs %lld ranks, but %d were started", j->o.plan,
                           (long long)j->plan->world_size, (int)j->world));
    TD_TRY(st, td_lower(j->a, j->plan, &j->program, err));
    TD_TRY(st, td_program_check(j->a, j->program, err));
done:
    return st;
}

/* ---- checkpoints ---- */

static td_status load(job *j, td_err *err)
{
    td_status st = TD_OK;
    td_run_state state;
    TD_TRY(st, td_driver_download(j->driver, &state, err));
    st = td_host_load(j->o.load, j->plan, j->o.quiet, &state, &j->first_step, err);
    j->all_failed = st != TD_OK;
    if (st == TD_OK)
        st = td_driver_upload(j->driver, &state, err);
done:
    td_state_release(&state);
    td_driver_resume(j->driver);
    return st;
}

/* After so many steps of this run. */
static td_status save(job *j, int64_t n_steps, td_err *err)
{
    td_status st = TD_OK;
    td_run_state state;
    TD_TRY(st, td_driver_download(j->driver, &state, err));
    st = td_host_save(j->o.save, j->plan, j->first_step + n_steps, &state, err);
    j->all_failed = st != TD_OK;
done:
    td_state_release(&state);
    td_driver_resume(j->driver);
    return st;
}

/* ---- the steps ---- */

/* Step i of this run, warm-up included; `traced` is its place in the trace, -1: it has none. */
static td_status one_step(job *j, const td_live *live, int32_t i, int32_t traced, td_step_result *r,
                          td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, td_driver_step(j->driver, j->first_step + i, r,
                              traced < 0 ? NULL : td_host_trace_times(&j->trace, traced),
                              traced < 0 ? NULL : td_host_trace_parts(&j->trace, traced), err));
    if (traced >= 0)
        td_host_trace_order(&j->trace, traced);
    if (j->rank == 0 && !j->o.quiet)
        td_live_step(live, i, r);
    if (j->o.save_every > 0 && (i + 1) % j->o.save_every == 0)
        TD_TRY(st, save(j, i + 1, err));
done:
    return st;
}

/* Collective, after a step of a warm-up without a count: rank 0 decides for all. */
static td_steadiness decide(td_steady *so_far, double step_s)
{
    int decision = (int)td_steady_add(so_far, &td_steady_usual, step_s);
    MPI_Bcast(&decision, 1, MPI_INT, 0, MPI_COMM_WORLD);
    return (td_steadiness)decision;
}

static void say_not_steady(const job *j, const td_steady *s)
{
    if (j->rank == 0 && !j->o.quiet)
        fprintf(stderr,
                "%snot steady after %.0f s of warming up: the last two medians of a step were %.6g "
                "and %.6g s; measuring all the same\n",
                j->o.live ? "\n" : "", s->seconds, s->last_s[0], s->last_s[1]);
}

/* As many steps as were asked for, or until they are steady. */
static td_status warm_up(job *j, td_live live, td_err *err)
{
    td_status st = TD_OK;
    td_steady *so_far = TD_NEW(j->a, td_steady, 1);
    td_step_result r = {.module_norms = TD_NEW(j->a, double, j->plan->n_modules)};
    if (so_far == NULL || r.module_norms == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the warm-up"));
    if (j->o.steady)
        live.n_warmup = -1;
    for (int32_t i = 0; j->o.steady ? j->steady == TD_STEADY_NOT_YET : i < j->o.n_warmup; i++) {
        TD_TRY(st, one_step(j, &live, i, -1, &r, err));
        j->n_warmup = i + 1;
        j->warmup_s += r.step_s;
        if (j->o.steady)
            j->steady = decide(so_far, r.step_s);
    }
    if (j->steady == TD_STEADY_NEVER)
        say_not_steady(j, so_far);
    if (j->o.steady)
        td_driver_resume(j->driver); /* the first step measured does not begin with the decision */
done:
    return st;
}

static td_status run_steps(job *j, td_err *err)
{
    td_status st = TD_OK;
    const td_module *language = &j->plan->modules[j->plan->language];
    td_live live = {.terminal = j->o.live,
                    .first_step = j->first_step,
                    .n_warmup = j->o.n_warmup,
                    .n_steps = j->o.n_steps,
                    .tokens = (double)j->plan->step.microbatches * j->plan->step.micro_batch *
                              language->dp * language->seq};
    j->results = TD_NEW(j->a, td_step_result, j->o.n_steps);
    if (j->results == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for the results of %d steps", (int)j->o.n_steps));
    for (int32_t i = 0; i < j->o.n_steps; i++) {
        j->results[i].module_norms = TD_NEW(j->a, double, j->plan->n_modules);
        if (j->results[i].module_norms == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the norms"));
    }
    TD_TRY(st, warm_up(j, live, err));
    live.n_warmup = j->n_warmup;
    for (int32_t i = 0; i < j->o.n_steps; i++)
        TD_TRY(st, one_step(j, &live, j->n_warmup + i, j->o.trace == NULL ? -1 : i, &j->results[i],
                            err));
done:
    return st;
}

/* ---- the answer ---- */

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_string(isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
}

static td_spread_of spread_of_steps(const job *j)
{
    double *step_s = TD_NEW(j->a, double, j->o.n_steps);
    for (int32_t i = 0; step_s != NULL && i < j->o.n_steps; i++)
        step_s[i] = j->results[i].step_s;
    return td_spread_measure(step_s, step_s == NULL ? 0 : j->o.n_steps);
}

/* `steady` is null where the steps were counted. */
static json_t *warmup_json(const job *j)
{
    return json_pack("{s:i, s:f, s:o}", "steps", (int)j->n_warmup, "seconds", j->warmup_s, "steady",
                     j->o.steady ? json_boolean(j->steady == TD_STEADY_YES) : json_null());
}

static json_t *spread_json(const td_spread_of *s)
{
    return json_pack("{s:f, s:f, s:o, s:i}", "median", s->median, "mad", s->mad, "cv",
                     isfinite(s->cv) ? json_real(s->cv) : json_null(), "n", (int)s->n);
}

static json_t *steps_json(const job *j)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < j->o.n_steps; i++) {
        const td_step_result *r = &j->results[i];
        json_t *norms = json_object(), *one = json_object();
        for (int32_t m = 0; m < j->plan->n_modules; m++)
            json_object_set_new(norms, j->plan->modules[m].name, number(r->module_norms[m]));
        json_object_set_new(one, "loss", number(r->loss));
        json_object_set_new(one, "grad_norm", number(r->grad_norm));
        json_object_set_new(one, "module_norms", norms);
        json_object_set_new(one, "clip_coefficient", number(r->clip_coefficient));
        json_object_set_new(one, "success", json_boolean(r->success));
        json_object_set_new(one, "step_s", json_real(r->step_s));
        json_array_append_new(all, one);
    }
    return all;
}

/* A rank's tensors as one text, `NAME squares signed` a line, for the way to rank 0. */
typedef struct {
    char *text;
    size_t n, cap;
} lines;

static void add_line(void *self, const char *name, const double sums[2])
{
    lines *l = self;
    const size_t need = strlen(name) + 64;
    if (l->n + need > l->cap) {
        char *grown = realloc(l->text, 2 * (l->cap + need));
        if (grown == NULL)
            return;
        l->text = grown;
        l->cap = 2 * (l->cap + need);
    }
    l->n += (size_t)snprintf(l->text + l->n, need, "%s %a %a\n", name, sums[0], sums[1]);
}

static void add_sums(json_t *sums, char *text)
{
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        char *space = strchr(line, ' '), *end;
        const double squares = strtod(space, &end), sign = strtod(end, NULL);
        *space = '\0';
        json_t *one = json_object_get(sums, line);
        if (one == NULL) {
            one = json_pack("{s:f, s:f}", "l2", 0.0, "signed_sum", 0.0);
            json_object_set_new(sums, line, one);
        }
        json_object_set_new(one, "l2",
                            json_real(json_real_value(json_object_get(one, "l2")) + squares));
        json_object_set_new(one, "signed_sum",
                            json_real(json_real_value(json_object_get(one, "signed_sum")) + sign));
    }
}

/* Collective; the result on rank 0 only. */
static td_status checksums_json(const job *j, json_t **out, td_err *err)
{
    lines own = {0};
    json_t *sums, *value;
    const char *name;
    const td_status st = td_driver_checksums(j->driver, add_line, &own, err);
    if (st != TD_OK)
        return st;
    sums = json_object();
    for (int32_t r = 0; r < j->world; r++) {
        unsigned long long n = own.n;
        if (r != 0 && j->rank == r) {
            MPI_Send(&n, 1, MPI_UNSIGNED_LONG_LONG, 0, 0, MPI_COMM_WORLD);
            MPI_Send(own.text, (int)n, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
        }
        if (j->rank != 0)
            continue;
        if (r != 0)
            MPI_Recv(&n, 1, MPI_UNSIGNED_LONG_LONG, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        char *text = calloc(1, (size_t)n + 1);
        if (text != NULL && r == 0 && n > 0)
            memcpy(text, own.text, (size_t)n);
        if (text != NULL && r != 0)
            MPI_Recv(text, (int)n, MPI_CHAR, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (text != NULL)
            add_sums(sums, text);
        free(text);
    }
    json_object_foreach(sums, name, value) json_object_set_new(
        value, "l2", json_real(sqrt(json_real_value(json_object_get(value, "l2")))));
    free(own.text);
    *out = sums;
    return TD_OK;
}

/* Collective; what every rank says of itself, on rank 0 in the order of ranks. */
static json_t *ranks_json(const job *j)
{
    json_t *all = json_array(),
           *own = json_pack("{s:i, s:I}", "rank", (int)j->rank, "peak_memory_bytes",
                            (json_int_t)td_driver_bytes(j->driver));
    if (j->backend->tell != NULL)
        j->backend->tell(j->device, own);
    char *text = json_dumps(own, JSON_COMPACT);
    for (int32_t r = 0; r < j->world; r++) {
        unsigned long long n = text == NULL ? 0 : strlen(text);
        if (r != 0 && j->rank == r) {
            MPI_Send(&n, 1, MPI_UNSIGNED_LONG_LONG, 0, 0, MPI_COMM_WORLD);
            MPI_Send(text, (int)n, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
        }
        if (j->rank != 0 || r == 0)
            continue;
        MPI_Recv(&n, 1, MPI_UNSIGNED_LONG_LONG, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        char *theirs = calloc(1, (size_t)n + 1), spare;
        MPI_Recv(theirs == NULL ? &spare : theirs, theirs == NULL ? 0 : (int)n, MPI_CHAR, r, 0,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        json_array_append_new(all, theirs == NULL ? json_null() : json_loads(theirs, 0, NULL));
        free(theirs);
    }
    json_array_insert_new(all, 0, own);
    free(text);
    return all;
}

/* One text of a rank, in as many pairs as its length takes: `clocks.3`, `clocks.3+1`, ... */
static int32_t add_extra(const job *j, const char *key, size_t rank, const char *text, int32_t n,
                         const char *extra[2 * TD_TRACE_MAX_EXTRA])
{
    const size_t length = strlen(text);
    for (size_t at = 0, k = 0; (at < length || at == 0) && n < TD_TRACE_MAX_EXTRA; k++, n++) {
        extra[2 * n] = k == 0 ? td_arena_printf(j->a, "%s.%zu", key, rank)
                              : td_arena_printf(j->a, "%s.%zu+%zu", key, rank, k);
        extra[2 * n + 1] = td_arena_printf(j->a, "%.*s", TD_TRACE_MAX_TEXT, text + at);
        if (extra[2 * n] == NULL || extra[2 * n + 1] == NULL)
            break;
        at += TD_TRACE_MAX_TEXT;
    }
    return n;
}

/* How the run warmed up, as in the answer. */
static int32_t add_warmup(const job *j, const char *extra[2 * TD_TRACE_MAX_EXTRA])
{
    json_t *warmup = warmup_json(j);
    char *text = json_dumps(warmup, JSON_COMPACT);
    extra[0] = "warmup";
    extra[1] = text == NULL ? NULL : td_arena_printf(j->a, "%s", text);
    free(text);
    json_decref(warmup);
    return extra[1] == NULL ? 0 : 1;
}

/* What a trace's metadata keeps of the run and of every rank, as far as there is room: first the
 * short texts of all, then the long ones. */
static int32_t extras_of(const job *j, const char *extra[2 * TD_TRACE_MAX_EXTRA])
{
    int32_t n = add_warmup(j, extra);
    size_t r;
    json_t *rank, *value;
    const char *key;
    for (int lengthy = 0; lengthy < 2; lengthy++)
        json_array_foreach(j->ranks, r, rank)
        {
            json_object_foreach(rank, key, value)
            {
                char *dumped = json_is_string(value)
                                   ? NULL
                                   : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
                const char *text = dumped == NULL ? json_string_value(value) : dumped;
                if (text != NULL && strcmp(key, "rank") != 0 &&
                    (strlen(text) > TD_TRACE_MAX_TEXT) == lengthy)
                    n = add_extra(j, key, r, text, n, extra);
                free(dumped);
            }
        }
    return n;
}

static td_status write_trace(const job *j, td_err *err)
{
    const char *extra[2 * TD_TRACE_MAX_EXTRA];
    double clock_error = j->backend->clock_error(j->device);
    MPI_Allreduce(MPI_IN_PLACE, &clock_error, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return td_host_trace_write(&j->trace, clock_error, extras_of(j, extra), extra, j->o.trace, err);
}

static void print_text(const job *j, const td_spread_of *steps)
{
    printf("%s on %d ranks (%s)\n\n%6s %12s %12s %8s %10s\n", j->plan->name, (int)j->world,
           j->backend->name, "step", "loss", "grad norm", "clip", "seconds");
    for (int32_t i = 0; i < j->o.n_steps; i++)
        printf("%6lld %12.6f %12.6f %8.4f %10.4f%s\n", (long long)(j->first_step + i + j->n_warmup),
               j->results[i].loss, j->results[i].grad_norm, j->results[i].clip_coefficient,
               j->results[i].step_s, j->results[i].success ? "" : "  skipped");
    printf("\nmedian step %.4f s", steps->median);
    if (j->o.steady)
        printf(", %s after %d steps and %.1f s of warming up",
               j->steady == TD_STEADY_YES ? "steady" : "NOT steady", (int)j->n_warmup, j->warmup_s);
    printf("\n");
}

/* Collective: every rank's share is gathered, rank 0 prints. */
static td_status answer(job *j, td_err *err)
{
    td_status st = TD_OK;
    td_spread_of spread;
    json_t *tensors = NULL, *steps = NULL;
    for (int32_t i = 0; i < j->o.n_steps; i++) /* the step is as long as its slowest rank says */
        MPI_Allreduce(MPI_IN_PLACE, &j->results[i].step_s, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    TD_TRY(st, j->o.checksums ? checksums_json(j, &tensors, err) : TD_OK);
    steps = steps_json(j);
    spread = spread_of_steps(j);
    if (j->rank == 0 && j->o.json) {
        json_t *out =
            json_pack("{s:s, s:i, s:s, s:s, s:O, s:o, s:o, s:f, s:O}", "plan", j->plan->name,
                      "world_size", (int)j->world, "backend", j->backend->name, "digest",
                      j->program->digest, "steps", steps, "warmup", warmup_json(j), "step_s",
                      spread_json(&spread), "step_s_median", spread.median, "ranks", j->ranks);
        if (tensors != NULL)
            json_object_set(out, "tensors", tensors);
        json_dumpf(out, stdout, JSON_COMPACT);
        printf("\n");
        json_decref(out);
    } else if (j->rank == 0) {
        print_text(j, &spread);
    }
done:
    json_decref(tensors);
    json_decref(steps);
    return st;
}

/* Where this rank says what it is about to do, and the faults it makes on purpose. */
static td_status observe(job *j, td_err *err)
{
    td_status st = TD_OK;
    td_inject inject;
    /* Without a count of warm-up steps, any step may come. */
    const int64_t n_steps = j->o.steady ? INT64_MAX : (int64_t)j->o.n_warmup + j->o.n_steps;
    TD_TRY(st, td_inject_read(j->o.inject, j->world, n_steps, j->rank, &inject, err));
    TD_TRY(st, td_driver_observe(j->driver, j->watch, &inject, err));
    if (j->trace.parts != NULL)
        TD_TRY(st, td_driver_fine(j->driver, err));
done:
    return st;
}

static td_status work(job *j, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, together(j, read_plan(j, err), err));
    TD_TRY(st, together(j, agree(j, err), err));
    TD_TRY(st, together(j, j->backend->room(j->a, j->program, j->rank, err), err));
    TD_TRY(st, together(j, trace_room(j, err), err));
    TD_TRY(st, j->backend->open(j->a, j->program, j->rank, &j->o, &j->device, err));
    TD_TRY(st, td_driver_open(j->a, j->program, j->rank, j->device, &j->driver, err));
    if (j->o.load != NULL)
        TD_TRY(st, load(j, err));
    TD_TRY(st, together(j, observe(j, err), err));
    TD_TRY(st, run_steps(j, err));
    td_watch_phase(j->watch, TD_AT_ANSWER);
    const int32_t n_steps = j->n_warmup + j->o.n_steps, every = j->o.save_every;
    if (j->o.save != NULL && (every == 0 || n_steps % every != 0 || n_steps == 0))
        TD_TRY(st, save(j, n_steps, err));
    j->ranks = ranks_json(j);
    TD_TRY(st, answer(j, err));
    if (j->o.trace != NULL)
        TD_TRY(st, write_trace(j, err));
done:
    json_decref(j->ranks);
    return st;
}

int td_job_main(int argc, char **argv, const td_job_backend *backend)
{
    static const int exit_code[] = {[TD_OK] = 0,     [TD_PLAN] = 1, [TD_FILE] = 3, [TD_USAGE] = 2,
                                    [TD_ABSENT] = 4, [TD_RUN] = 5,  [TD_NOMEM] = 5};
    td_status st = TD_OK;
    td_err err = {0};
    job j = {.backend = backend};
    int code = td_run_options_read(argc, argv, &j.o);
    if (code != 0)
        return code;
    j.watch = td_watch_join(j.o.watch);
    MPI_Init(NULL, NULL);
    MPI_Comm_rank(MPI_COMM_WORLD, &j.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &j.world);
    j.a = td_arena_new();
    st = j.a == NULL ? td_fail(&err, TD_NOMEM, "no memory") : work(&j, &err);
    code = exit_code[st];
    if (st != TD_OK && j.all_failed) {
        if (j.rank == 0 && !td_watch_failed(j.watch, st, &err, true))
            fprintf(stderr, "%s: %s\n", backend->program, err.text);
    } else if (st != TD_OK) { /* the others may wait for this rank: end them too */
        if (!td_watch_failed(j.watch, st, &err, false))
            fprintf(stderr, "%s: rank %d: %s\n", backend->program, (int)j.rank, err.text);
        MPI_Abort(MPI_COMM_WORLD, code);
    }
    fflush(stdout);
    td_watch_phase(j.watch, TD_AT_END);
    td_driver_close(j.driver);
    backend->close(j.device, false);
    td_arena_free(j.a);
    MPI_Finalize();
    return code;
}
