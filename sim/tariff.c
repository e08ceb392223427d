/* Asks every rank for its prices once per slot and numbers the different answers. */
#include "sim/tariff.h"

#include "sim/intern.h"

#include <string.h>

typedef struct {
    td_arena *a, *tmp;
    const td_program *p;
    const td_script *scripts;
    const td_prices *prices;
    const double *const *stretch;
    td_intern raw, content; /* by address; by what stands there */
    int32_t *tuple;
    size_t cap;
    td_tariff *tariffs;
    int32_t cap_tariffs;
    bool any_overlap;
} builder;

static size_t put(int32_t *tuple, size_t at, const void *value, size_t size)
{
    memcpy(tuple + at, value, size);
    return at + size / sizeof *tuple;
}

static double point_s(const builder *b, int32_t rank, const td_op *op, int32_t after_part)
{
    const double whole = b->prices->work(b->prices->self, rank, op->work)->total_s;
    const double until = b->prices->work_until(b->prices->self, rank, op->work, after_part);
    return until < whole ? until : whole;
}

static bool make(builder *b, int32_t rank, td_tariff *out)
{
    const td_script *s = &b->scripts[b->p->ranks[rank].stream];
    td_price *slot = TD_NEW(b->a, td_price, s->n_slots);
    double *points = TD_NEW(b->a, double, s->n_points);
    uint8_t *flows_on = TD_NEW(b->a, uint8_t, s->stream->n_chans);
    if (slot == NULL || points == NULL || flows_on == NULL)
        return false;
    for (int32_t i = 0; i < s->n_slots; i++) {
        const td_op *op = &s->stream->ops[s->slot_op[i]];
        if (op->chan < 0)
            slot[i].work_s = b->prices->work(b->prices->self, rank, op->work)->total_s;
        else
            slot[i].cost = b->prices->op(b->prices->self, rank, op);
    }
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_script_op *op = &s->ops[i];
        for (int32_t k = op->point; k < s->ops[i + 1].point; k++)
            points[k] = point_s(b, rank, &s->stream->ops[i], s->points[k].after_part);
        if (op->chan >= 0 && op->role != TD_ROLE_EAGER_SEND && td_cost_flows(slot[op->slot].cost)) {
            flows_on[op->chan] |= (uint8_t)(1u << op->lane);
            b->any_overlap |= td_cost_overlaps(slot[op->slot].cost);
        }
    }
    *out = (td_tariff){.slot = slot,
                       .point_s = points,
                       .flows_on = flows_on,
                       .stretch = b->stretch == NULL ? NULL : b->stretch[rank]};
    return true;
}

/* Equal content, whatever the addresses. */
static int32_t content(builder *b, int32_t stream, const td_tariff *t)
{
    const td_script *s = &b->scripts[stream];
    size_t n = put(b->tuple, 0, &stream, sizeof stream);
    for (int32_t i = 0; i < s->n_slots; i++) {
        if (s->stream->ops[s->slot_op[i]].chan < 0) {
            n = put(b->tuple, n, &t->slot[i].work_s, sizeof(double));
        } else {
            const td_op_cost *c = t->slot[i].cost;
            const double values[] = {c->lone.alpha_s,   c->lone.total_s,     c->rate,
                                     c->overlap.wait_s, c->overlap.transfer, c->overlap.compute};
            n = put(b->tuple, n, values, sizeof values);
            n = put(b->tuple, n, &c->edge_bytes, sizeof c->edge_bytes);
        }
    }
    n = put(b->tuple, n, &t->stretch, sizeof t->stretch);
    n = put(b->tuple, n, t->point_s, (size_t)s->n_points * sizeof(double));
    return td_intern_get(&b->content, b->tuple, n);
}

/* What the rank's prices point to: ranks that agree in this need not be looked at again. */
static int32_t addresses(builder *b, int32_t rank)
{
    const int32_t stream = b->p->ranks[rank].stream;
    const td_script *s = &b->scripts[stream];
    size_t n = put(b->tuple, 0, &stream, sizeof stream);
    if (b->stretch != NULL)
        n = put(b->tuple, n, &b->stretch[rank], sizeof *b->stretch);
    for (int32_t i = 0; i < s->n_slots; i++) {
        const td_op *op = &s->stream->ops[s->slot_op[i]];
        const void *price = op->chan < 0
                                ? (const void *)b->prices->work(b->prices->self, rank, op->work)
                                : (const void *)b->prices->op(b->prices->self, rank, op);
        n = put(b->tuple, n, &price, sizeof price);
    }
    return td_intern_get(&b->raw, b->tuple, n);
}

static bool keep(builder *b, int32_t id, const td_tariff *t)
{
    if (id == b->cap_tariffs) {
        const int32_t cap = b->cap_tariffs == 0 ? 64 : b->cap_tariffs * 2;
        td_tariff *tariffs = TD_NEW(b->a, td_tariff, cap);
        if (tariffs == NULL)
            return false;
        if (id > 0)
            memcpy(tariffs, b->tariffs, (size_t)id * sizeof *tariffs);
        b->tariffs = tariffs;
        b->cap_tariffs = cap;
    }
    b->tariffs[id] = *t;
    return true;
}

/* The colour of a rank, its tariff made if it is new; -1 without memory. */
static int32_t colour(builder *b, int32_t rank, int32_t *colour_of_raw)
{
    const int32_t n_raw = b->raw.n, raw = addresses(b, rank);
    td_tariff t;
    if (raw < n_raw)
        return raw < 0 ? -1 : colour_of_raw[raw];
    if (!make(b, rank, &t))
        return -1;
    const int32_t n = b->content.n, id = content(b, b->p->ranks[rank].stream, &t);
    if (id < 0 || (id == n && !keep(b, id, &t)))
        return -1;
    colour_of_raw[raw] = id;
    return id;
}

td_status td_tariffs_build(td_arena *a, const td_program *p, const td_script *scripts,
                           const td_prices *prices, const double *const *stretch, td_tariffs *out,
                           td_err *err)
{
    td_status st = TD_OK;
    builder b = {.a = a,
                 .tmp = td_arena_new(),
                 .p = p,
                 .scripts = scripts,
                 .prices = prices,
                 .stretch = stretch};
    for (int32_t s = 0; s < p->n_streams; s++) {
        const size_t n = 10 + 14 * (size_t)scripts[s].n_slots + 2 * (size_t)scripts[s].n_points;
        b.cap = n > b.cap ? n : b.cap;
    }
    int32_t *of = TD_NEW(a, int32_t, p->world_size);
    int32_t *colour_of_raw = b.tmp == NULL ? NULL : TD_NEW(b.tmp, int32_t, p->world_size);
    b.tuple = b.tmp == NULL ? NULL : TD_NEW(b.tmp, int32_t, b.cap);
    if (of == NULL || colour_of_raw == NULL || b.tuple == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the prices of %d ranks", p->world_size));
    for (int32_t r = 0; r < p->world_size; r++) {
        of[r] = colour(&b, r, colour_of_raw);
        if (of[r] < 0)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the prices of rank %d", r));
    }
    *out = (td_tariffs){
        .n = b.content.n, .tariffs = b.tariffs, .of = of, .any_overlap = b.any_overlap};
done:
    td_intern_free(&b.raw);
    td_intern_free(&b.content);
    td_arena_free(b.tmp);
    return st;
}
