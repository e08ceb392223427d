/* From stamps of seconds on the shared clock to events of a file. */
#include "exec/host_trace.h"
#include "traces/trace.h"

#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

td_op_time *td_host_trace_times(const td_host_trace *t, int32_t step)
{
    return t->times + (int64_t)step * t->n_ops;
}

td_op_time *td_host_trace_parts(const td_host_trace *t, int32_t step)
{
    return t->parts == NULL ? NULL : t->parts + (int64_t)step * t->n_parts;
}

static td_trace_meta meta_of(const td_host_trace *t, double clock_error)
{
    td_trace_meta meta = {.backend = t->backend,
                          .plan = t->program->plan->name,
                          .profile = "",
                          .trust = "measured",
                          .version = TD_VERSION,
                          .clock_error_s = clock_error,
                          .world_size = t->program->world_size,
                          .n_steps = t->n_steps};
    memcpy(meta.digest, t->program->digest, sizeof meta.digest);
    return meta;
}

td_status td_host_trace_open(td_arena *a, const td_program *p, int32_t rank, const char *backend,
                             int32_t n_steps, bool fine, const char *path, td_host_trace *out,
                             td_err *err)
{
    td_status st = TD_OK;
    td_host_trace t = {.program = p, .backend = backend, .rank = rank, .n_steps = n_steps};
    t.n_ops = td_program_stream(p, rank)->n_ops;
    t.n_parts = fine ? td_driver_parts(p, rank) : 0;
    t.times = TD_NEW(a, td_op_time, t.n_ops * n_steps);
    t.parts = fine ? TD_NEW(a, td_op_time, t.n_parts * n_steps) : NULL;
    if (t.times == NULL || (fine && t.parts == NULL))
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for a trace of %d steps", (int)rank,
                           (int)n_steps));
    if (rank == 0) {
        td_trace_writer *w = NULL;
        const td_trace_meta meta = meta_of(&t, 0);
        TD_TRY(st, td_trace_create(path, &meta, &w, err));
        td_trace_abandon(w);
    }
    *out = t;
done:
    return st;
}

void td_host_trace_order(td_host_trace *t, int32_t step)
{
    const td_stream *s = td_program_stream(t->program, t->rank);
    td_op_time *times = td_host_trace_times(t, step);
    double before[TD_N_LANES], after[TD_N_LANES];
    for (int32_t lane = 0; lane < TD_N_LANES; lane++) {
        before[lane] = -INFINITY;
        after[lane] = INFINITY;
    }
    for (int32_t i = s->n_ops - 1; i >= 0; i--) {
        double *next = &after[s->ops[i].lane];
        *next = times[i].end = fmin(times[i].end, *next);
    }
    for (int32_t i = 0; i < s->n_ops; i++) {
        double *ended = &before[s->ops[i].lane];
        times[i].start = fmin(fmax(times[i].start, *ended), times[i].end);
        *ended = times[i].end;
    }
}

/* ---- events ---- */

/* What rank 0 writes with. */
typedef struct {
    const td_program *program;
    td_trace_writer *writer;
    double origin; /* second of the trace's zero */
} scribe;

static int64_t ns(const scribe *w, double second)
{
    return llround((second - w->origin) * 1e9);
}

static td_status write_parts(const scribe *w, const td_op *op, const td_event *parent,
                             const td_op_time *parts, td_err *err)
{
    td_status st = TD_OK;
    const td_work *work = &w->program->works[op->work];
    int32_t flat = 0;
    for (int32_t r = 0; r < work->n_runs; r++)
        for (int32_t k = 0; k < work->runs[r].repeat; k++)
            for (int32_t i = work->runs[r].first; i < work->runs[r].first + work->runs[r].n;
                 i++, flat++) {
                const td_part *part = &work->parts[i];
                char name[64];
                td_event e = *parent;
                if (parts[flat].end <= 0) /* not measured */
                    continue;
                snprintf(name, sizeof name, "%s %s", part->name, td_pass_names[part->pass]);
                e.part = flat;
                e.kind = td_part_table[part->class].name;
                e.name = name;
                e.bytes = part->bytes;
                e.start_ns = ns(w, parts[flat].start);
                e.duration_ns = ns(w, parts[flat].end) - e.start_ns;
                TD_TRY(st, td_trace_event(w->writer, &e, err));
            }
done:
    return st;
}

static td_status write_step(const scribe *w, int32_t rank, int32_t step, const td_op_time *times,
                            const td_op_time *parts, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(w->program, rank);
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        char name[64];
        td_op_name(w->program, rank, op, name, sizeof name);
        const int64_t start = ns(w, times[i].start);
        const td_event e = {.rank = rank,
                            .lane = op->lane,
                            .step = step,
                            .op = i,
                            .part = -1,
                            .stage = s->stage,
                            .mb = op->mb,
                            .start_ns = start,
                            .duration_ns = ns(w, times[i].end) - start,
                            .bytes = op->bytes,
                            .kind = td_op_table[op->kind].name,
                            .module =
                                op->module < 0 ? "" : w->program->plan->modules[op->module].name,
                            .name = name};
        TD_TRY(st, td_trace_event(w->writer, &e, err));
        if (parts != NULL && op->work >= 0) {
            TD_TRY(st, write_parts(w, op, &e, parts, err));
            parts += w->program->works[op->work].n_flat;
        }
    }
done:
    return st;
}

static td_status name_rank(const scribe *w, int32_t rank, td_err *err)
{
    const td_stream *s = td_program_stream(w->program, rank);
    char label[160];
    if (s->module < 0)
        snprintf(label, sizeof label, "rank %d: idle", (int)rank);
    else
        snprintf(label, sizeof label, "rank %d: %s stage %d", (int)rank,
                 w->program->plan->modules[s->module].name, (int)s->pp_rank);
    return td_trace_rank(w->writer, rank, label, err);
}

/* ---- all ranks ---- */

/* A step of rank `rank` comes to rank 0, into `times` and `parts` there. */
static void bring(const td_host_trace *t, int32_t rank, int32_t step, int64_t n_ops,
                  int64_t n_parts, td_op_time *times, td_op_time *parts)
{
    if (rank == 0 && t->rank == 0) {
        memcpy(times, td_host_trace_times(t, step), (size_t)n_ops * sizeof *times);
        if (parts != NULL)
            memcpy(parts, td_host_trace_parts(t, step), (size_t)n_parts * sizeof *parts);
    } else if (t->rank == rank) {
        MPI_Send(td_host_trace_times(t, step), (int)(2 * n_ops), MPI_DOUBLE, 0, 0, MPI_COMM_WORLD);
        if (t->parts != NULL)
            MPI_Send(td_host_trace_parts(t, step), (int)(2 * n_parts), MPI_DOUBLE, 0, 0,
                     MPI_COMM_WORLD);
    } else if (t->rank == 0) {
        MPI_Recv(times, (int)(2 * n_ops), MPI_DOUBLE, rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (parts != NULL)
            MPI_Recv(parts, (int)(2 * n_parts), MPI_DOUBLE, rank, 0, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
    }
}

/* The most ops and parts of any rank. */
static void largest(const td_host_trace *t, int64_t *n_ops, int64_t *n_parts)
{
    *n_ops = *n_parts = 1;
    for (int32_t r = 0; r < t->program->world_size; r++) {
        const int64_t ops = td_program_stream(t->program, r)->n_ops,
                      parts = t->parts == NULL ? 0 : td_driver_parts(t->program, r);
        *n_ops = ops > *n_ops ? ops : *n_ops;
        *n_parts = parts > *n_parts ? parts : *n_parts;
    }
}

td_status td_host_trace_write(const td_host_trace *t, double clock_error, int32_t n_extra,
                              const char *const *extra, const char *path, td_err *err)
{
    td_status st = TD_OK;
    scribe w = {.program = t->program, .origin = INFINITY};
    td_trace_meta meta = meta_of(t, clock_error);
    td_op_time *times = NULL, *parts = NULL;
    int64_t n_ops, n_parts;
    meta.n_extra = n_extra;
    meta.extra = extra;
    for (int64_t i = 0; i < t->n_ops; i++)
        w.origin = fmin(w.origin, t->times[i].start);
    MPI_Allreduce(MPI_IN_PLACE, &w.origin, 1, MPI_DOUBLE, MPI_MIN, MPI_COMM_WORLD);
    largest(t, &n_ops, &n_parts);
    if (t->rank == 0) {
        times = calloc((size_t)n_ops, sizeof *times);
        parts = t->parts == NULL ? NULL : calloc((size_t)n_parts, sizeof *parts);
        if (times == NULL || (t->parts != NULL && parts == NULL))
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the times of a step"));
        TD_TRY(st, td_trace_create(path, &meta, &w.writer, err));
    }
    for (int32_t r = 0; r < t->program->world_size; r++) {
        const int64_t ops = td_program_stream(t->program, r)->n_ops,
                      flat = t->parts == NULL ? 0 : td_driver_parts(t->program, r);
        if (t->rank == 0)
            TD_TRY(st, name_rank(&w, r, err));
        for (int32_t step = 0; step < t->n_steps; step++) {
            bring(t, r, step, ops, flat, times, parts);
            if (t->rank == 0)
                TD_TRY(st, write_step(&w, r, step, times, parts, err));
        }
    }
    if (t->rank == 0) {
        st = td_trace_close(w.writer, err);
        w.writer = NULL;
    }
done:
    td_trace_abandon(w.writer);
    free(parts);
    free(times);
    return st;
}
