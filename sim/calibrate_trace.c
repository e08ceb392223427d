/* Reads a trace into one table by step, op and part. */
#include "sim/calibrate_trace.h"
#include "sim/calibrate_samples.h"
#include "traces/trace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    td_times *t;
    const char *path;
    int64_t n_events, n_parts;
    int32_t n_steps;
} pass;

static td_status no_memory(const char *path, td_err *err)
{
    return td_fail(err, TD_NOMEM, "%s: no memory for its times", path);
}

/* Is the event one of the program's? */
static td_status place(const pass *s, const td_event *e, td_err *err)
{
    const td_program *p = s->t->program;
    bool fits = e->rank >= 0 && e->rank < p->world_size && e->step >= 0 && e->op >= 0 &&
                e->op < td_program_stream(p, e->rank)->n_ops && e->duration_ns >= 0;
    if (fits && e->part >= 0) {
        const int32_t work = td_program_stream(p, e->rank)->ops[e->op].work;
        fits = work >= 0 && e->part < p->works[work].n_flat;
    }
    return fits ? TD_OK
                : td_fail(err, TD_FILE,
                          "%s: rank %d, op %d, part %d is not in the program; expected a trace of "
                          "%s",
                          s->path, (int)e->rank, (int)e->op, (int)e->part, p->plan->file);
}

static td_status count(void *self, const td_event *e, td_err *err)
{
    pass *s = self;
    (void)err;
    s->n_steps = e->step >= s->n_steps && e->step < INT32_MAX ? e->step + 1 : s->n_steps;
    *(e->part < 0 ? &s->n_events : &s->n_parts) += 1;
    return TD_OK;
}

static td_status keep(void *self, const td_event *e, td_err *err)
{
    pass *s = self;
    td_times *t = s->t;
    const td_status st = place(s, e, err);
    if (st != TD_OK)
        return st;
    const int64_t op = t->first_op[e->rank] + e->op;
    const td_time x = {e->start_ns, e->start_ns + e->duration_ns};
    if (e->part < 0)
        t->ops[e->step * t->n_ops + op] = x;
    else
        t->parts[e->step * t->n_parts + t->first_part[op] + e->part] = x;
    return TD_OK;
}

/* `"key": value` or `"key":"value"` inside a JSON text; "" if it is not there. */
static const char *member(td_arena *a, const char *json, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(json, quoted);
    if (at == NULL)
        return "";
    at += strlen(quoted);
    at += strspn(at, " ");
    const bool text = *at == '"';
    at += text;
    const char *copy = td_arena_printf(a, "%.*s", (int)strcspn(at, text ? "\"" : ",}"), at);
    return copy == NULL ? "" : copy;
}

/* Of samples `[second, MHz, MHz, W, ...]`: the median clock and power. */
static const char *clocks(td_arena *a, const char *json)
{
    enum { MOST = 65536 };
    double *mhz = calloc(MOST, sizeof *mhz), *watt = calloc(MOST, sizeof *watt), memory, second;
    const char *text = "";
    int32_t n = 0;
    for (const char *at = strchr(json, '['); mhz != NULL && watt != NULL && at != NULL && n < MOST;
         at = strchr(at + 1, '['))
        n += sscanf(at, "[%lf,%lf,%lf,%lf", &second, &mhz[n], &memory, &watt[n]) == 4;
    if (n > 0)
        text = td_arena_printf(a, "%.0f MHz and %.0f W, medians of %d samples of rank 0",
                               td_fit_quantile(mhz, n, 0.5), td_fit_quantile(watt, n, 0.5), (int)n);
    free(mhz);
    free(watt);
    return text == NULL ? "" : text;
}

static void read_environment(td_arena *a, const td_trace_meta *meta, td_environment *e)
{
    for (int32_t i = 0; i < meta->n_extra; i++) {
        const char *key = meta->extra[2 * i], *value = meta->extra[2 * i + 1];
        if (strcmp(key, "versions.0") == 0 && e->driver[0] == '\0') {
            e->driver = member(a, value, "driver");
            e->cuda = member(a, value, "cuda");
            e->nccl = member(a, value, "nccl");
            e->cudnn = member(a, value, "cudnn");
        } else if (strcmp(key, "clocks.0") == 0 && e->clocks[0] == '\0') {
            e->clocks = clocks(a, value);
        }
    }
}

static td_status room(td_arena *a, pass *s, td_err *err)
{
    td_times *t = s->t;
    const td_program *p = t->program;
    int64_t op = 0;
    t->first_op = TD_NEW(a, int64_t, p->world_size);
    for (int32_t r = 0; r < p->world_size; r++)
        t->n_ops += td_program_stream(p, r)->n_ops;
    t->first_part = TD_NEW(a, int64_t, t->n_ops);
    if (t->first_op == NULL || t->first_part == NULL)
        return no_memory(s->path, err);
    if (s->n_steps == 0 || s->n_events != s->n_steps * t->n_ops)
        return td_fail(err, TD_FILE,
                       "%s: %lld ops in %d steps; expected %lld ops in each, as in the program",
                       s->path, (long long)s->n_events, (int)s->n_steps, (long long)t->n_ops);
    t->n_steps = s->n_steps;
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_stream *stream = td_program_stream(p, r);
        t->first_op[r] = op;
        for (int32_t i = 0; i < stream->n_ops; i++, op++) {
            t->first_part[op] = t->n_parts;
            t->n_parts += stream->ops[i].work < 0 ? 0 : p->works[stream->ops[i].work].n_flat;
        }
    }
    if (s->n_parts == 0)
        t->n_parts = 0;
    t->ops = TD_NEW(a, td_time, s->n_steps * t->n_ops);
    t->parts = TD_NEW(a, td_time, s->n_steps * t->n_parts);
    if (t->ops == NULL || t->parts == NULL)
        return no_memory(s->path, err);
    for (int64_t i = 0; i < s->n_steps * t->n_ops; i++)
        t->ops[i] = (td_time){0, -1};
    for (int64_t i = 0; i < s->n_steps * t->n_parts; i++)
        t->parts[i] = (td_time){0, -1};
    return TD_OK;
}

td_status td_times_read(td_arena *a, const td_calibrate_source *source, td_times *out,
                        td_environment *environment, td_err *err)
{
    td_status st = TD_OK;
    td_trace_meta meta;
    *out = (td_times){.program = source->program};
    pass s = {.t = out, .path = source->trace};
    TD_TRY(st, td_trace_visit(a, source->trace, &meta, count, &s, err));
    if (strcmp(meta.digest, source->program->digest) != 0)
        TD_TRY(st, td_fail(err, TD_FILE,
                           "%s: is a trace of another program (%.12s); expected that of %s (%.12s)",
                           source->trace, meta.digest, source->program->plan->file,
                           source->program->digest));
    TD_TRY(st, room(a, &s, err));
    TD_TRY(st, td_trace_visit(a, source->trace, &meta, keep, &s, err));
    for (int64_t i = 0; i < out->n_steps * out->n_ops; i++)
        if (out->ops[i].end_ns < out->ops[i].start_ns)
            TD_TRY(st, td_fail(err, TD_FILE, "%s: an op stands there twice, another is missing",
                               source->trace));
    out->backend = meta.backend;
    out->predicted = strcmp(meta.trust, "measured") != 0;
    read_environment(a, &meta, environment);
done:
    return st;
}

/* Median over the steps. */
static double seconds(const td_times *t, int32_t rank, int32_t op, double *x)
{
    for (int32_t step = 0; step < t->n_steps; step++) {
        const td_time *at = td_times_op(t, step, rank, op);
        x[step] = (double)(at->end_ns - at->start_ns) * 1e-9;
    }
    return td_fit_quantile(x, t->n_steps, 0.5);
}

static bool collects(const td_work *w)
{
    bool any = false;
    for (int32_t i = 0; i < w->n_parts; i++)
        any = any || w->parts[i].class == TD_PART_COLLECTIVE;
    return any;
}

double td_times_overhead(const td_times *fine, const td_times *coarse)
{
    const td_program *p = fine->program;
    const int32_t most = fine->n_steps > coarse->n_steps ? fine->n_steps : coarse->n_steps;
    double *x = calloc((size_t)most, sizeof *x),
           *each = calloc((size_t)fine->n_ops + 1, sizeof *each), overhead = 0;
    int32_t n = 0;
    for (int32_t r = 0; x != NULL && each != NULL && r < p->world_size; r++) {
        const td_stream *s = td_program_stream(p, r);
        for (int32_t i = 0; i < s->n_ops; i++)
            if ((s->ops[i].kind == TD_OP_FORWARD || s->ops[i].kind == TD_OP_BACKWARD) &&
                p->works[s->ops[i].work].n_flat > 0 && !collects(&p->works[s->ops[i].work]))
                each[n++] = (seconds(fine, r, i, x) - seconds(coarse, r, i, x)) /
                            (double)p->works[s->ops[i].work].n_flat;
    }
    if (n > 0)
        overhead = fmax(0, td_fit_quantile(each, n, 0.5));
    free(each);
    free(x);
    return overhead;
}
