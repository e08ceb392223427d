/*
 * tandem-host: one rank of `tandem run --on host`, started by mpirun or any other MPI launcher.
 * Rank 0 prints the answer.
 */
#include "exec/driver.h"
#include "exec/host.h"
#include "exec/host_kernels.h"
#include "exec/run_options.h"
#include "model/program_check.h"
#include "traces/trace.h"

#include <jansson.h>
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    td_arena *a;
    td_run_options o;
    int32_t rank, world;
    const td_plan *plan;
    const td_program *program;
    td_host *host;
    td_driver *driver;
    td_step_result *results; /* [n_steps] after the warm-up */
    td_op_time *times;       /* [n_steps][n_ops] */
} job;

/* ---- before the first op ---- */

/* All ranks must have read the same plan into the same program. */
static td_status agree(const job *j, td_err *err)
{
    char first[65];
    int same, all;
    memcpy(first, j->program->digest, sizeof first);
    MPI_Bcast(first, sizeof first, MPI_CHAR, 0, MPI_COMM_WORLD);
    same = strcmp(first, j->program->digest) == 0;
    MPI_Allreduce(&same, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (all)
        return TD_OK;
    return td_fail(err, TD_RUN, "rank %d: %s; every rank must run the same plan", (int)j->rank,
                   same ? "another rank has a different step program"
                        : "the step program differs from that of rank 0");
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

/* ---- the steps ---- */

static void say_progress(const job *j, int32_t i, const td_step_result *r)
{
    if (j->rank == 0 && !j->o.quiet)
        fprintf(stderr, "step %d%s: loss %.6f, grad norm %.4f%s, %.3f s\n", (int)i,
                i < j->o.n_warmup ? " (warm-up)" : "", r->loss, r->grad_norm,
                r->success ? "" : ", skipped", r->step_s);
}

/* On a lane one op follows another; what was only seen late to have ended did not start before the
 * one before it ended. */
static void put_in_order(const job *j, td_op_time *times)
{
    const td_stream *s = td_program_stream(j->program, j->rank);
    double lane_end[TD_N_LANES] = {0};
    for (int32_t i = 0; i < s->n_ops; i++) {
        const double ended = td_host_ended(j->host, i);
        double *before = &lane_end[s->ops[i].lane];
        if (s->ops[i].chan >= 0 && ended > times[i].end)
            times[i].end = ended;
        times[i].start = fmax(times[i].start, *before);
        times[i].end = fmax(times[i].end, times[i].start);
        *before = times[i].end;
    }
}

static td_status run_steps(job *j, td_err *err)
{
    td_status st = TD_OK;
    const int32_t n_ops = td_program_stream(j->program, j->rank)->n_ops;
    j->results = TD_NEW(j->a, td_step_result, j->o.n_steps);
    if (j->o.trace != NULL)
        j->times = TD_NEW(j->a, td_op_time, (int64_t)n_ops * j->o.n_steps);
    if (j->results == NULL || (j->o.trace != NULL && j->times == NULL))
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for the results of %d steps", (int)j->o.n_steps));
    for (int32_t i = 0; i < j->o.n_warmup + j->o.n_steps; i++) {
        td_step_result spare = {0},
                       *r = i < j->o.n_warmup ? &spare : &j->results[i - j->o.n_warmup];
        td_op_time *times = j->times == NULL || i < j->o.n_warmup
                                ? NULL
                                : j->times + (int64_t)(i - j->o.n_warmup) * n_ops;
        r->module_norms = TD_NEW(j->a, double, j->plan->n_modules);
        if (r->module_norms == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the norms"));
        TD_TRY(st, td_driver_step(j->driver, i, r, times, err));
        if (times != NULL)
            put_in_order(j, times);
        say_progress(j, i, r);
    }
done:
    return st;
}

/* ---- the answer ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_string(isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
}

static json_t *steps_json(const job *j, double *median)
{
    json_t *all = json_array();
    double *sorted = TD_NEW(j->a, double, j->o.n_steps);
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
        sorted[i] = r->step_s;
    }
    qsort(sorted, (size_t)j->o.n_steps, sizeof *sorted, by_value);
    *median =
        j->o.n_steps == 0 ? 0 : (sorted[(j->o.n_steps - 1) / 2] + sorted[j->o.n_steps / 2]) / 2;
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
static json_t *checksums_json(const job *j)
{
    lines own = {0};
    json_t *sums = json_object(), *value;
    const char *name;
    td_driver_checksums(j->driver, add_line, &own);
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
    return sums;
}

static json_t *ranks_json(const job *j)
{
    json_t *all = json_array();
    for (int32_t r = 0; r < j->world; r++) {
        unsigned long long bytes = td_host_arena_bytes(j->host);
        if (r != 0 && j->rank == r)
            MPI_Send(&bytes, 1, MPI_UNSIGNED_LONG_LONG, 0, 0, MPI_COMM_WORLD);
        if (r != 0 && j->rank == 0)
            MPI_Recv(&bytes, 1, MPI_UNSIGNED_LONG_LONG, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        json_array_append_new(
            all, json_pack("{s:i, s:I}", "rank", (int)r, "peak_memory_bytes", (json_int_t)bytes));
    }
    return all;
}

static void print_text(const job *j, double median)
{
    printf("%s on %d ranks (host)\n\n%6s %12s %12s %8s %10s\n", j->plan->name, (int)j->world,
           "step", "loss", "grad norm", "clip", "seconds");
    for (int32_t i = 0; i < j->o.n_steps; i++)
        printf("%6d %12.6f %12.6f %8.4f %10.4f%s\n", (int)(i + j->o.n_warmup), j->results[i].loss,
               j->results[i].grad_norm, j->results[i].clip_coefficient, j->results[i].step_s,
               j->results[i].success ? "" : "  skipped");
    printf("\nmedian step %.4f s\n", median);
}

/* Collective: every rank's share is gathered, rank 0 prints. */
static void answer(job *j)
{
    double median;
    for (int32_t i = 0; i < j->o.n_steps; i++) /* the step is as long as its slowest rank says */
        MPI_Allreduce(MPI_IN_PLACE, &j->results[i].step_s, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    json_t *tensors = j->o.checksums ? checksums_json(j) : NULL, *ranks = ranks_json(j),
           *steps = steps_json(j, &median);
    if (j->rank == 0 && j->o.json) {
        json_t *out =
            json_pack("{s:s, s:i, s:s, s:s, s:O, s:f, s:O}", "plan", j->plan->name, "world_size",
                      (int)j->world, "backend", "host", "digest", j->program->digest, "steps",
                      steps, "step_s_median", median, "ranks", ranks);
        if (tensors != NULL)
            json_object_set(out, "tensors", tensors);
        json_dumpf(out, stdout, JSON_COMPACT);
        printf("\n");
        json_decref(out);
    } else if (j->rank == 0) {
        print_text(j, median);
    }
    json_decref(tensors);
    json_decref(ranks);
    json_decref(steps);
}

/* ---- the trace ---- */

static td_status write_rank(const job *j, td_trace_writer *w, int32_t rank, const td_op_time *times,
                            double origin, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(j->program, rank);
    char label[160];
    snprintf(label, sizeof label, "rank %d: %s stage %d", (int)rank,
             s->module < 0 ? "idle" : j->plan->modules[s->module].name, (int)s->pp_rank);
    TD_TRY(st, td_trace_rank(w, rank, label, err));
    for (int32_t step = 0; step < j->o.n_steps; step++)
        for (int32_t i = 0; i < s->n_ops; i++) {
            const td_op *op = &s->ops[i];
            const td_op_time *t = &times[(int64_t)step * s->n_ops + i];
            char name[32];
            td_op_label(op, name, sizeof name);
            const int64_t start = llround((t->start - origin) * 1e9),
                          end = llround((t->end - origin) * 1e9);
            const td_event e = {.rank = rank,
                                .lane = op->lane,
                                .step = step,
                                .op = i,
                                .part = -1,
                                .stage = s->stage,
                                .mb = op->mb,
                                .start_ns = start < 0 ? 0 : start,
                                .duration_ns = end > start ? end - start : 0,
                                .bytes = op->bytes,
                                .kind = td_op_table[op->kind].name,
                                .module = op->module < 0 ? "" : j->plan->modules[op->module].name,
                                .name = name};
            TD_TRY(st, td_trace_event(w, &e, err));
        }
done:
    return st;
}

/* Collective: rank 0 writes, one rank after the other. */
static td_status write_trace(const job *j, td_err *err)
{
    td_status st = TD_OK;
    td_trace_writer *w = NULL;
    td_trace_meta meta = {.backend = "host",
                          .plan = j->plan->name,
                          .profile = "",
                          .trust = "measured",
                          .version = TD_VERSION,
                          .clock_error_s = td_host_clock_error(j->host),
                          .world_size = j->world,
                          .n_steps = j->o.n_steps};
    double origin = INFINITY;
    const int32_t own = td_program_stream(j->program, j->rank)->n_ops;
    for (int32_t i = 0; i < own; i++)
        origin = fmin(origin, j->times[i].start);
    MPI_Allreduce(MPI_IN_PLACE, &origin, 1, MPI_DOUBLE, MPI_MIN, MPI_COMM_WORLD);
    memcpy(meta.digest, j->program->digest, sizeof meta.digest);
    if (j->rank == 0)
        st = td_trace_create(j->o.trace, &meta, &w, err);
    for (int32_t r = 0; r < j->world; r++) {
        const int64_t n = 2 * (int64_t)td_program_stream(j->program, r)->n_ops * j->o.n_steps;
        td_op_time *times = j->times;
        if (r != 0 && j->rank == r)
            MPI_Send(times, (int)n, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD);
        if (j->rank != 0)
            continue;
        if (r != 0) {
            times = TD_NEW(j->a, td_op_time, n / 2);
            if (times == NULL) {
                st = td_fail(err, TD_NOMEM, "no memory for the times of rank %d", (int)r);
                break;
            }
            MPI_Recv(times, (int)n, MPI_DOUBLE, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        }
        if (st == TD_OK)
            st = write_rank(j, w, r, times, origin, err);
    }
    if (j->rank == 0 && st == TD_OK) {
        st = td_trace_close(w, err);
        w = NULL;
    }
    td_trace_abandon(w);
    return st;
}

static td_status work(job *j, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, read_plan(j, err));
    TD_TRY(st, agree(j, err));
    TD_TRY(st, td_host_open(j->a, j->program, j->rank, &j->host, err));
    TD_TRY(st, td_driver_open(j->a, j->program, j->rank, td_host_device(j->host), &j->driver, err));
    TD_TRY(st, run_steps(j, err));
    answer(j);
    if (j->o.trace != NULL)
        TD_TRY(st, write_trace(j, err));
done:
    return st;
}

int main(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    job j = {0};
    int code = td_run_options_read(argc, argv, &j.o);
    if (code != 0)
        return code;
    MPI_Init(NULL, NULL);
    td_host_kernels_open();
    MPI_Comm_rank(MPI_COMM_WORLD, &j.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &j.world);
    j.a = td_arena_new();
    st = j.a == NULL ? td_fail(&err, TD_NOMEM, "no memory") : work(&j, &err);
    if (st != TD_OK) { /* the others may wait for this rank: end them too */
        fprintf(stderr, "tandem-host: rank %d: %s\n", (int)j.rank, err.text);
        MPI_Abort(MPI_COMM_WORLD, st == TD_PLAN ? 1 : st == TD_FILE ? 3 : 5);
    }
    td_host_close(j.host);
    td_arena_free(j.a);
    MPI_Finalize();
    return 0;
}
