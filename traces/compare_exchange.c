/* Who exchanges with whom, from what a trace tells, and when each op stops waiting and works. */
#include "traces/compare_side.h"

#include <stdlib.h>
#include <string.h>

/* How far the communicator of a collective can reach; the others are within a module's stage. */
typedef enum { STAGE, MODULE, WORLD } reach;
static const reach reach_of[TD_N_OPS] = {[TD_OP_TOKEN_COUNT] = WORLD,
                                         [TD_OP_FOUND_INF] = WORLD,
                                         [TD_OP_MODULE_NORM] = MODULE,
                                         [TD_OP_GLOBAL_NORM] = WORLD,
                                         [TD_OP_SUCCESS] = WORLD};

/* One op of an exchange. Those with the same what, from and to are of the same communicators; the
 * `serial`-th of each rank (of a transfer: of each end) belong together. */
typedef struct {
    int32_t what, from, to, who, serial;
    int64_t op;
} half;

static bool is_shape(int kind)
{
    return kind == TD_OP_SEND_SHAPE || kind == TD_OP_RECV_SHAPE;
}

static bool half_of(const td_side *s, int64_t i, half *out)
{
    const td_side_op *op = &s->ops[i];
    const td_op_role role = td_op_table[op->kind].role;
    const int32_t rank = s->rank[i];
    *out = (half){.op = i, .who = rank};
    if (role == TD_ROLE_GROUP) {
        const reach far = reach_of[op->kind];
        out->what = op->kind;
        out->from = far == WORLD ? -1 : op->module;
        out->to = far == STAGE ? op->stage : -1;
        return true;
    }
    const bool receives = role == TD_ROLE_RECV;
    out->what = TD_N_OPS + is_shape(op->kind);
    out->from = receives ? op->peer : rank;
    out->to = receives ? rank : op->peer;
    return role != TD_ROLE_COMPUTE && op->peer >= 0;
}

#define COMPARE(a, b) (((a) > (b)) - ((a) < (b)))

static int by_place(const half *a, const half *b)
{
    return a->what != b->what   ? COMPARE(a->what, b->what)
           : a->from != b->from ? COMPARE(a->from, b->from)
                                : COMPARE(a->to, b->to);
}

static int by_who(const void *left, const void *right)
{
    const half *a = left, *b = right;
    const int place = by_place(a, b);
    return place != 0 ? place : a->who != b->who ? COMPARE(a->who, b->who) : COMPARE(a->op, b->op);
}

static int by_serial(const void *left, const void *right)
{
    const half *a = left, *b = right;
    const int place = by_place(a, b);
    return place != 0               ? place
           : a->serial != b->serial ? COMPARE(a->serial, b->serial)
                                    : COMPARE(a->op, b->op);
}

static td_status build_exchanges(td_arena *a, const td_side *s, td_structure *x, td_err *err)
{
    td_status st = TD_OK;
    half *halves = malloc((size_t)s->n_ops * sizeof *halves);
    int64_t n = 0;
    x->first = TD_NEW(a, int64_t, (size_t)s->n_ops + 1);
    x->members = TD_NEW(a, int64_t, s->n_ops);
    x->of = TD_NEW(a, int64_t, s->n_ops);
    if (halves == NULL || x->first == NULL || x->members == NULL || x->of == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to match the exchanges of %lld ops",
                           (long long)s->n_ops));
    for (int64_t i = 0; i < s->n_ops; i++) {
        x->of[i] = -1;
        n += half_of(s, i, &halves[n]);
    }
    qsort(halves, (size_t)n, sizeof *halves, by_who);
    for (int64_t i = 1; i < n; i++)
        if (by_place(&halves[i], &halves[i - 1]) == 0 && halves[i].who == halves[i - 1].who)
            halves[i].serial = halves[i - 1].serial + 1;
    qsort(halves, (size_t)n, sizeof *halves, by_serial);
    for (int64_t i = 0; i < n; i++) {
        if (i == 0 || by_place(&halves[i], &halves[i - 1]) != 0 ||
            halves[i].serial != halves[i - 1].serial)
            x->first[x->n++] = i;
        x->members[i] = halves[i].op;
        x->of[halves[i].op] = x->n - 1;
    }
    x->first[x->n] = n;
done:
    free(halves);
    return st;
}

static td_status build_lanes(td_arena *a, const td_side *s, td_structure *x, td_err *err)
{
    td_status st = TD_OK;
    const size_t n_rows = (size_t)s->world_size * TD_N_LANES;
    x->lane_first = TD_NEW(a, int64_t, n_rows + 1);
    x->lane_ops = TD_NEW(a, int64_t, s->n_ops);
    int64_t *at = malloc(n_rows * sizeof *at);
    if (x->lane_first == NULL || x->lane_ops == NULL || at == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for the lanes of %d ranks", (int)s->world_size));
    for (int64_t i = 0; i < s->n_ops; i++)
        x->lane_first[s->rank[i] * TD_N_LANES + s->ops[i].lane + 1]++;
    for (size_t r = 0; r < n_rows; r++)
        x->lane_first[r + 1] += x->lane_first[r];
    memcpy(at, x->lane_first, n_rows * sizeof *at);
    for (int64_t i = 0; i < s->n_ops; i++)
        x->lane_ops[at[s->rank[i] * TD_N_LANES + s->ops[i].lane]++] = i;
done:
    free(at);
    return st;
}

td_status td_structure_build(td_arena *a, const td_side *s, td_structure *out, td_err *err)
{
    td_status st = TD_OK;
    *out = (td_structure){.side = s};
    TD_TRY(st, build_exchanges(a, s, out, err));
    TD_TRY(st, build_lanes(a, s, out, err));
done:
    return st;
}

/* ---- waiting and working ---- */

static bool waits(const td_side *s, int64_t op)
{
    const td_op_role role = td_op_table[s->ops[op].kind].role;
    return role != TD_ROLE_COMPUTE && role != TD_ROLE_EAGER_SEND;
}

int64_t td_structure_last(const td_structure *x, const td_span *spans, int64_t op)
{
    int64_t last = op;
    const int64_t exchange = x->of[op];
    if (exchange < 0 || !waits(x->side, op))
        return op;
    for (int64_t m = x->first[exchange]; m < x->first[exchange + 1]; m++) {
        const int64_t other = x->members[m];
        /* Who issued it after this op had ended is of another communicator. */
        if (spans[other].start_ns > spans[last].start_ns &&
            spans[other].start_ns <= spans[op].end_ns)
            last = other;
    }
    return last;
}

static void begin_exchange(const td_structure *x, td_span *spans, int64_t exchange)
{
    int64_t latest = INT64_MIN;
    for (int64_t m = x->first[exchange]; m < x->first[exchange + 1]; m++)
        if (spans[x->members[m]].start_ns > latest)
            latest = spans[x->members[m]].start_ns;
    for (int64_t m = x->first[exchange]; m < x->first[exchange + 1]; m++) {
        const int64_t op = x->members[m];
        if (!waits(x->side, op))
            continue;
        spans[op].begin_ns =
            latest <= spans[op].end_ns ? latest : spans[td_structure_last(x, spans, op)].start_ns;
    }
}

void td_structure_begin(const td_structure *x, td_side *s)
{
    for (int32_t k = 0; k < s->n_examined; k++)
        for (int64_t e = 0; e < x->n; e++)
            begin_exchange(x, s->spans + (int64_t)k * s->n_ops, e);
}
