/* The laws of a valid trace, and of a trace of a given program: two sorts, then neighbours are
 * compared. */
#include "traces/trace.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t end_ns(const td_event *e)
{
    return e->start_ns + e->duration_ns; /* does not overflow once check_alone() has passed */
}

/* `rank 3, lane fwd, op 17 (send), step 2: ` and the printf-like sentence. */
__attribute__((format(printf, 3, 4))) static td_status violation(td_err *err, const td_event *e,
                                                                 const char *format, ...)
{
    char text[512], lane[16], part[32] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (e->lane >= 0 && e->lane < TD_N_LANES)
        snprintf(lane, sizeof lane, "%s", td_lane_names[e->lane]);
    else
        snprintf(lane, sizeof lane, "%d", (int)e->lane);
    if (e->part >= 0)
        snprintf(part, sizeof part, " part %d", (int)e->part);
    return td_fail(err, TD_FILE, "rank %d, lane %s, op %d%s (%.60s), step %d: %s", (int)e->rank,
                   lane, (int)e->op, part, e->kind, (int)e->step, text);
}

/* ---- orders ---- */

#define COMPARE(a, b) (((a) > (b)) - ((a) < (b)))

static int by_op(const void *left, const void *right)
{
    const td_event *a = *(const td_event *const *)left, *b = *(const td_event *const *)right;
    return a->rank != b->rank   ? COMPARE(a->rank, b->rank)
           : a->op != b->op     ? COMPARE(a->op, b->op)
           : a->step != b->step ? COMPARE(a->step, b->step)
                                : COMPARE(a->part, b->part);
}

static int by_row(const void *left, const void *right)
{
    const td_event *a = *(const td_event *const *)left, *b = *(const td_event *const *)right;
    return a->rank != b->rank           ? COMPARE(a->rank, b->rank)
           : a->lane != b->lane         ? COMPARE(a->lane, b->lane)
           : a->start_ns != b->start_ns ? COMPARE(a->start_ns, b->start_ns)
                                        : COMPARE(a->duration_ns, b->duration_ns);
}

/* Pointers to the events of a trace; the caller frees them. */
static td_status index_events(const td_trace *t, const td_event ***out, td_err *err)
{
    const size_t n = (size_t)t->n_events;
    *out = malloc((n == 0 ? 1 : n) * sizeof **out);
    if (*out == NULL)
        return td_fail(err, TD_NOMEM, "no memory to check %zu events", n);
    for (size_t i = 0; i < n; i++)
        (*out)[i] = &t->events[i];
    return TD_OK;
}

static void sort(const td_event **events, int64_t n, int (*compare)(const void *, const void *))
{
    qsort(events, (size_t)n, sizeof *events, compare);
}

/* ---- the laws of any trace ---- */

static td_status check_alone(const td_trace_meta *m, const td_event *e, td_err *err)
{
    if (e->rank < 0 || e->rank >= m->world_size)
        return violation(err, e, "there are only %d ranks", (int)m->world_size);
    if (e->lane < 0 || e->lane >= TD_N_LANES)
        return violation(err, e, "there are only %d lanes", (int)TD_N_LANES);
    if (e->step < 0 || e->step >= m->n_steps)
        return violation(err, e, "there are only %d steps", (int)m->n_steps);
    if (e->op < 0 || e->part < -1 || e->stage < -1 || e->mb < -1)
        return violation(err, e, "part %d, stage %d or microbatch %d is out of range", (int)e->part,
                         (int)e->stage, (int)e->mb);
    if (e->start_ns < 0 || e->duration_ns < 0 || e->duration_ns > INT64_MAX - e->start_ns)
        return violation(err, e, "starts at %lld ns and lasts %lld ns, expected times >= 0",
                         (long long)e->start_ns, (long long)e->duration_ns);
    return TD_OK;
}

/* `events` in by_op order: every (rank, op) in every step exactly once, and children within it. */
static td_status check_ops(const td_trace_meta *m, const td_event **events, int64_t n, td_err *err)
{
    td_status st = TD_OK;
    const td_event *parent = NULL; /* the last op itself that was seen */
    int32_t expected = 0;          /* the step in which the current (rank, op) must come next */
    for (int64_t i = 0; i < n; i++) {
        const td_event *e = events[i], *before = i == 0 ? NULL : events[i - 1];
        if (before != NULL && by_op(&e, &before) == 0)
            TD_TRY(st, violation(err, e, "occurs twice"));
        if (e->part >= 0) {
            if (parent == NULL || parent->rank != e->rank || parent->op != e->op ||
                parent->step != e->step)
                TD_TRY(st, violation(err, e, "the op that it is a part of is not in the trace"));
            if (e->start_ns < parent->start_ns || end_ns(e) > end_ns(parent))
                TD_TRY(st, violation(err, e,
                                     "runs from %lld to %lld ns, outside its op's %lld to %lld ns",
                                     (long long)e->start_ns, (long long)end_ns(e),
                                     (long long)parent->start_ns, (long long)end_ns(parent)));
            continue;
        }
        const bool same = parent != NULL && parent->rank == e->rank && parent->op == e->op;
        if (!same && parent != NULL && expected != m->n_steps)
            TD_TRY(st, violation(err, parent, "step %d does not have this op", (int)expected));
        expected = same ? expected : 0;
        if (e->step != expected)
            TD_TRY(st, violation(err, e, "step %d does not have this op", (int)expected));
        expected++;
        parent = e;
    }
    if (parent != NULL && expected != m->n_steps)
        TD_TRY(st, violation(err, parent, "step %d does not have this op", (int)expected));
done:
    return st;
}

/* `events` in by_row order, parents only. */
static td_status check_rows(const td_event **events, int64_t n, td_err *err)
{
    td_status st = TD_OK;
    for (int64_t i = 1; i < n; i++) {
        const td_event *a = events[i - 1], *b = events[i];
        if (a->rank == b->rank && a->lane == b->lane && b->start_ns < end_ns(a))
            TD_TRY(st, violation(
                           err, b,
                           "starts at %lld ns, before op %d of step %d on its lane ends at %lld ns",
                           (long long)b->start_ns, (int)a->op, (int)a->step, (long long)end_ns(a)));
    }
done:
    return st;
}

/* Keeps the ops themselves and gives their number. */
static int64_t keep_parents(const td_event **events, int64_t n)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (events[i]->part < 0)
            events[kept++] = events[i];
    return kept;
}

td_status td_trace_check(const td_trace *t, td_err *err)
{
    td_status st = TD_OK;
    const td_event **events = NULL;
    for (int64_t i = 0; i < t->n_events; i++)
        TD_TRY(st, check_alone(&t->meta, &t->events[i], err));
    TD_TRY(st, index_events(t, &events, err));
    sort(events, t->n_events, by_op);
    TD_TRY(st, check_ops(&t->meta, events, t->n_events, err));
    const int64_t n = keep_parents(events, t->n_events);
    sort(events, n, by_row);
    TD_TRY(st, check_rows(events, n, err));
done:
    free(events);
    return st;
}

/* ---- the laws of a trace of a program ---- */

/* The events of one rank in by_op order, and where each of its ops begins: ops[op * n_steps +
 * step]. */
typedef struct {
    const td_program *program;
    int32_t rank, n_steps;
    const td_event **events;
    int64_t n;    /* of the rank */
    int64_t *ops; /* room for the rank's parents */
    int64_t slack_ns;
} rank_view;

static const td_event *event_of(const rank_view *v, int32_t op, int32_t step)
{
    return v->events[v->ops[(int64_t)op * v->n_steps + step]];
}

/* Every op of the stream is there; td_trace_check() has seen that what is there is there in every
 * step. */
static td_status check_presence(rank_view *v, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(v->program, v->rank);
    int64_t n = 0;
    int32_t next = 0; /* the op that must come next */
    for (int64_t i = 0; i < v->n; i++) {
        const td_event *e = v->events[i];
        if (e->part >= 0)
            continue;
        if (e->op >= s->n_ops)
            TD_TRY(st,
                   violation(err, e, "the program has only %d ops on this rank", (int)s->n_ops));
        if (e->op > next)
            break;
        v->ops[n++] = i;
        next = (int32_t)(n / v->n_steps);
    }
    if (next < s->n_ops) {
        const td_op *op = &s->ops[next];
        TD_TRY(st,
               td_fail(err, TD_FILE,
                       "rank %d, lane %s, op %d (%s): the program has this op, the trace has not",
                       (int)v->rank, td_lane_names[op->lane], (int)next,
                       td_op_table[op->kind].name));
    }
done:
    return st;
}

/* End of part `part` of an op; if the trace has no parts, the op's start: no part can end before
 * that. */
static int64_t part_end_ns(const rank_view *v, int32_t op, int32_t step, int32_t part)
{
    const int64_t parent = v->ops[(int64_t)op * v->n_steps + step];
    const td_event *e = v->events[parent];
    int64_t low = parent, high = v->n; /* the part is in (low, high) */
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const td_event *m = v->events[middle];
        const bool inside = m->op == op && m->step == step;
        if (inside && m->part == part)
            return end_ns(m);
        if (inside && m->part < part)
            low = middle;
        else
            high = middle;
    }
    return e->start_ns;
}

static td_status check_deps(const rank_view *v, const td_event *e, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(v->program, v->rank);
    const td_op *op = &s->ops[e->op];
    for (uint32_t i = 0; i < op->n_deps; i++) {
        const td_dep *d = &s->deps[op->dep_first + i];
        const td_event *on = event_of(v, d->op, e->step);
        const int64_t ready = d->after_part < 0 ? end_ns(on)
                              : d->after_part == 0
                                  ? on->start_ns
                                  : part_end_ns(v, d->op, e->step, d->after_part - 1);
        if (ready - e->start_ns > v->slack_ns)
            TD_TRY(
                st,
                violation(
                    err, e,
                    "starts at %lld ns, but op %d (%.60s), on which it depends, is not done until "
                    "%lld ns",
                    (long long)e->start_ns, (int)d->op, on->kind, (long long)ready));
    }
done:
    return st;
}

static td_status check_step(const rank_view *v, int32_t step, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(v->program, v->rank);
    const td_event *last[TD_N_LANES] = {NULL};
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        const td_event *e = event_of(v, i, step), *before = last[op->lane];
        if (e->lane != op->lane)
            TD_TRY(st, violation(err, e, "the program has this op on lane %s",
                                 td_lane_names[op->lane]));
        if (strcmp(e->kind, td_op_table[op->kind].name) != 0)
            TD_TRY(st, violation(err, e, "the program has %s here", td_op_table[op->kind].name));
        if (before != NULL && e->start_ns < end_ns(before))
            TD_TRY(st,
                   violation(
                       err, e,
                       "starts at %lld ns, but op %d comes first on this lane and ends at %lld ns",
                       (long long)e->start_ns, (int)before->op, (long long)end_ns(before)));
        TD_TRY(st, check_deps(v, e, err));
        last[op->lane] = e;
    }
done:
    return st;
}

static td_status check_rank(rank_view *v, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, check_presence(v, err));
    for (int32_t step = 0; step < v->n_steps && v->n > 0; step++)
        TD_TRY(st, check_step(v, step, err));
done:
    return st;
}

td_status td_trace_check_program(const td_trace *t, const td_program *p, int64_t slack_ns,
                                 td_err *err)
{
    td_status st = TD_OK;
    const td_event **events = NULL;
    int64_t *ops = NULL;
    if (strcmp(t->meta.digest, p->digest) != 0)
        TD_TRY(st,
               td_fail(err, TD_FILE, "the trace is of program %.12s..., this is program %.12s...",
                       t->meta.digest, p->digest));
    if (t->meta.world_size != p->world_size)
        TD_TRY(st, td_fail(err, TD_FILE, "the trace has %d ranks, the program %d",
                           (int)t->meta.world_size, (int)p->world_size));
    TD_TRY(st, td_trace_check(t, err));
    TD_TRY(st, index_events(t, &events, err));
    sort(events, t->n_events, by_op);
    ops = malloc(((size_t)t->n_events + 1) * sizeof *ops);
    if (ops == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory to check %lld events", (long long)t->n_events));
    int64_t first = 0;
    for (int32_t rank = 0; rank < p->world_size; rank++) {
        int64_t end = first;
        while (end < t->n_events && events[end]->rank == rank)
            end++;
        rank_view v = {.program = p,
                       .rank = rank,
                       .n_steps = t->meta.n_steps,
                       .events = events + first,
                       .n = end - first,
                       .ops = ops,
                       .slack_ns = slack_ns};
        TD_TRY(st, check_rank(&v, err));
        first = end;
    }
done:
    free(ops);
    free(events);
    return st;
}
