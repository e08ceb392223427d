/* Turns the dependencies of a stream around: from "waits for" to "lets go of". */
#include "sim/script.h"

#include "sim/intern.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    td_script script;
    td_script_op *ops;
    int32_t *nexts;
    td_script_point *points;
    uint16_t *n_waits;
    int32_t *slot_op;
} draft;

static td_status check_dep(const td_stream *s, int32_t i, const td_dep *d, td_err *err)
{
    char text[64];
    td_op_label(&s->ops[i], text, sizeof text);
    if (d->op < 0 || d->op >= i)
        return td_fail(err, TD_PLAN,
                       "stage %d, op %d (%s) depends on op %d, which does not come before it",
                       s->stage, i, text, d->op);
    if (d->after_part >= 0 && td_op_table[s->ops[d->op].kind].role != TD_ROLE_COMPUTE)
        return td_fail(err, TD_PLAN,
                       "stage %d, op %d (%s) depends on part %d of op %d, which does not compute",
                       s->stage, i, text, d->after_part, d->op);
    if (s->ops[i].n_deps == UINT16_MAX)
        return td_fail(err, TD_PLAN, "stage %d, op %d (%s) has %d dependencies, which is too many",
                       s->stage, i, text, (int)UINT16_MAX);
    return TD_OK;
}

/* One pass counts, a second one (`fill`) writes; both walk in the same order. */
static void walk(draft *d, int32_t *n_nexts, int32_t *n_points, bool fill)
{
    const td_stream *s = d->script.stream;
    int32_t last[TD_N_LANES];
    for (int l = 0; l < TD_N_LANES; l++)
        last[l] = -1;
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        for (uint32_t k = 0; k < op->n_deps; k++) {
            const td_dep *dep = &s->deps[op->dep_first + k];
            if (dep->after_part >= 0) {
                if (fill)
                    d->points[n_points[dep->op]] =
                        (td_script_point){.after_part = dep->after_part, .next = i};
                n_points[dep->op]++;
            } else {
                if (fill)
                    d->nexts[n_nexts[dep->op]] = i;
                n_nexts[dep->op]++;
            }
        }
        if (last[op->lane] >= 0) {
            if (fill)
                d->nexts[n_nexts[last[op->lane]]] = i;
            n_nexts[last[op->lane]]++;
        }
        if (fill)
            d->n_waits[i] = (uint16_t)(op->n_deps + (last[op->lane] >= 0));
        last[op->lane] = i;
    }
}

static int by_part(const void *a, const void *b)
{
    const td_script_point *x = a, *y = b;
    if (x->after_part != y->after_part)
        return x->after_part < y->after_part ? -1 : 1;
    return x->next < y->next ? -1 : x->next > y->next;
}

static td_status order(td_arena *a, draft *d, int32_t *n_nexts, int32_t *n_points, td_err *err)
{
    td_status st = TD_OK;
    const int32_t n = d->script.n_ops;
    int32_t nexts = 0, points = 0;
    walk(d, n_nexts, n_points, false);
    for (int32_t i = 0; i < n; i++) {
        d->ops[i].next = nexts;
        d->ops[i].point = points;
        nexts += n_nexts[i];
        points += n_points[i];
        n_nexts[i] = d->ops[i].next;
        n_points[i] = d->ops[i].point;
    }
    d->ops[n].next = nexts;
    d->ops[n].point = points;
    d->script.n_points = points;
    d->nexts = TD_NEW(a, int32_t, nexts);
    d->points = TD_NEW(a, td_script_point, points);
    if (d->nexts == NULL || d->points == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d dependencies", nexts + points));
    walk(d, n_nexts, n_points, true);
    for (int32_t i = 0; i < n; i++)
        if (d->ops[i + 1].point > d->ops[i].point + 1)
            qsort(d->points + d->ops[i].point, (size_t)(d->ops[i + 1].point - d->ops[i].point),
                  sizeof *d->points, by_part);
done:
    return st;
}

/* Slots: ops of the same work, or of the same channel, kind and size. Ordinals: counted per
 * channel. */
static td_status number(draft *d, bool buffered, td_intern *slots, int32_t *n_on_chan, td_err *err)
{
    const td_stream *s = d->script.stream;
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        const int32_t tuple[] = {op->chan, op->chan < 0 ? op->work : op->kind,
                                 (int32_t)(op->bytes >> 32), (int32_t)(op->bytes & UINT32_MAX)};
        const int32_t slot = td_intern_get(slots, tuple, sizeof tuple / sizeof *tuple);
        if (slot < 0)
            return td_fail(err, TD_NOMEM, "no memory for the prices of %d ops", s->n_ops);
        d->slot_op[slot] = i;
        d->ops[i].role = (uint8_t)td_op_table[op->kind].role;
        if (buffered && td_op_table[op->kind].role == TD_ROLE_SEND)
            d->ops[i].role = TD_ROLE_EAGER_SEND;
        d->ops[i].lane = op->lane;
        d->ops[i].chan = op->chan;
        d->ops[i].slot = slot;
        d->ops[i].ordinal = op->chan < 0 ? 0 : n_on_chan[op->chan]++;
    }
    d->script.n_slots = slots->n;
    return TD_OK;
}

static td_status build(td_arena *a, td_arena *tmp, const td_stream *s, bool buffered,
                       td_script *out, td_err *err)
{
    td_status st = TD_OK;
    td_intern slots = {0};
    draft d = {.script = {.stream = s, .n_ops = s->n_ops}};
    int32_t *n_nexts = TD_NEW(tmp, int32_t, s->n_ops), *n_points = TD_NEW(tmp, int32_t, s->n_ops);
    int32_t *n_on_chan = TD_NEW(tmp, int32_t, s->n_chans);
    d.ops = TD_NEW(a, td_script_op, s->n_ops + 1);
    d.n_waits = TD_NEW(a, uint16_t, s->n_ops);
    d.slot_op = TD_NEW(a, int32_t, s->n_ops);
    if (n_nexts == NULL || n_points == NULL || n_on_chan == NULL || d.ops == NULL ||
        d.n_waits == NULL || d.slot_op == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a stream of %d ops", s->n_ops));
    for (int32_t i = 0; i < s->n_ops; i++)
        for (uint32_t k = 0; k < s->ops[i].n_deps; k++)
            TD_TRY(st, check_dep(s, i, &s->deps[s->ops[i].dep_first + k], err));
    TD_TRY(st, order(a, &d, n_nexts, n_points, err));
    TD_TRY(st, number(&d, buffered, &slots, n_on_chan, err));
    *out = d.script;
    out->ops = d.ops;
    out->nexts = d.nexts;
    out->points = d.points;
    out->n_waits = d.n_waits;
    out->slot_op = d.slot_op;
done:
    td_intern_free(&slots);
    return st;
}

td_status td_scripts_build(td_arena *a, const td_program *p, bool buffered, const td_script **out,
                           td_err *err)
{
    td_status st = TD_OK;
    td_arena *tmp = td_arena_new();
    td_script *scripts = TD_NEW(a, td_script, p->n_streams);
    if (tmp == NULL || scripts == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d streams", p->n_streams));
    for (int32_t s = 0; s < p->n_streams; s++)
        TD_TRY(st, build(a, tmp, &p->streams[s], buffered, &scripts[s], err));
    *out = scripts;
done:
    td_arena_free(tmp);
    return st;
}
