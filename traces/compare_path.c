/* The chain of ops that decides how long a step takes, and where those of two sides differ. */
#include "traces/compare_side.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the path ---- */

typedef struct {
    const td_structure *x;
    const td_span *spans;
    int64_t op;
    int64_t end_ns; /* the path uses the op until here; less than its end if it went on */
} link;

/* The last op of a lane that stands before `op` in the stream and ended by `by_ns`; -1: none. */
static int64_t ended_on(const link *l, int32_t rank, int32_t lane, int64_t op, int64_t by_ns)
{
    const int64_t row = (int64_t)rank * TD_N_LANES + lane, *ops = l->x->lane_ops;
    int64_t low = l->x->lane_first[row] - 1, high = l->x->lane_first[row + 1];
    while (high - low > 1) { /* ops[low] holds, ops[high] does not */
        const int64_t middle = low + (high - low) / 2;
        if (ops[middle] < op && l->spans[ops[middle]].end_ns <= by_ns)
            low = middle;
        else
            high = middle;
    }
    return low < l->x->lane_first[row] ? -1 : ops[low];
}

/* A compute op of the rank that is under way at that time: a bucket of gradients leaves in the
 * middle of the last backward. */
static int64_t under_way(const link *l, int32_t rank, int64_t op, int64_t at_ns)
{
    const int64_t row = (int64_t)rank * TD_N_LANES + TD_LANE_COMPUTE, *ops = l->x->lane_ops;
    for (int64_t i = l->x->lane_first[row + 1] - 1; i >= l->x->lane_first[row]; i--) {
        const td_span *span = &l->spans[ops[i]];
        if (ops[i] < op && span->start_ns < at_ns)
            return span->end_ns > at_ns ? ops[i] : -1;
    }
    return -1;
}

/* What had to end before `op` could be issued; end_ns in *ended. */
static int64_t before_issue(const link *l, int64_t op, int64_t *ended)
{
    const td_side *s = l->x->side;
    const int32_t rank = s->rank[op], own = s->ops[op].lane;
    const int64_t start = l->spans[op].start_ns;
    int64_t best = own == TD_LANE_DP ? under_way(l, rank, op, start) : -1;
    if (best >= 0) {
        *ended = start;
        return best;
    }
    for (int32_t i = 0; i < TD_N_LANES; i++) {
        const int32_t lane = (own + i) % TD_N_LANES; /* its own first */
        const int64_t other = ended_on(l, rank, lane, op, start);
        if (other >= 0 && (best < 0 || l->spans[other].end_ns > l->spans[best].end_ns ||
                           (l->spans[other].end_ns == l->spans[best].end_ns && other > best &&
                            s->ops[best].lane != own)))
            best = other;
    }
    *ended = best < 0 ? 0 : l->spans[best].end_ns;
    return best;
}

/*
 * The member through which the path goes on, what had to end before that and when: the one that
 * issued the exchange last. A prediction starts all members together; of those that start at the
 * same time it is the one whose own predecessor ended last.
 */
static int64_t before_exchange(const link *l, int64_t op, int64_t *through, int64_t *ended)
{
    const td_structure *x = l->x;
    const int64_t last = td_structure_last(x, l->spans, op), exchange = x->of[op];
    int64_t best = before_issue(l, last, ended);
    *through = last;
    if (last == op &&
        (exchange < 0 || td_op_table[x->side->ops[op].kind].role == TD_ROLE_EAGER_SEND))
        return best;
    for (int64_t m = x->first[exchange]; m < x->first[exchange + 1]; m++) {
        const int64_t other = x->members[m];
        int64_t when;
        if (other == last || l->spans[other].start_ns != l->spans[last].start_ns)
            continue;
        const int64_t before = before_issue(l, other, &when);
        if (before >= 0 && (best < 0 || when > *ended)) {
            best = before;
            *through = other;
            *ended = when;
        }
    }
    return best;
}

static void credit(td_compare_path *p, const td_side_op *op, double s)
{
    p->kind_s[op->kind] += s;
    if (td_op_table[op->kind].role == TD_ROLE_COMPUTE)
        p->compute_s += s;
    else if (td_op_table[op->kind].role == TD_ROLE_GROUP)
        p->collective_s += s;
    else
        p->transfer_s += s;
}

td_status td_path_of(td_arena *a, const td_structure *x, const td_side *s, td_compare_path *out,
                     td_err *err)
{
    td_status st = TD_OK;
    const int32_t step = s->examined[s->median];
    link at = {.x = x, .spans = td_side_step(s, s->median), .op = 0};
    struct td_path_op *ops = NULL;
    int64_t room = 0;
    td_compare_path p = {0};
    for (int64_t i = 1; i < s->n_ops; i++)
        if (at.spans[i].end_ns > at.spans[at.op].end_ns)
            at.op = i;
    at.end_ns = at.spans[at.op].end_ns;
    while (at.op >= 0 && p.n_ops < s->n_ops) { /* ops without duration might go round for ever */
        if (p.n_ops == room) {
            room = room == 0 ? 1024 : 2 * room;
            struct td_path_op *more = realloc(ops, (size_t)room * sizeof *more);
            if (more == NULL)
                TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the critical path"));
            ops = more;
        }
        int64_t through, ended, begin = at.spans[at.op].begin_ns;
        const int64_t before = before_exchange(&at, at.op, &through, &ended);
        if (before < 0)
            ended = td_side_end_ns(s, x->side->rank[through], step - 1);
        begin = begin < at.end_ns ? begin : at.end_ns;
        ended = ended < begin ? ended : begin;
        const double works = 1e-9 * (double)(at.end_ns - begin);
        credit(&p, &x->side->ops[at.op], works);
        p.wait_s += 1e-9 * (double)(begin - ended);
        ops[p.n_ops++] =
            (struct td_path_op){.rank = x->side->rank[at.op],
                                .op = (int32_t)(at.op - x->side->first[x->side->rank[at.op]]),
                                .s = works};
        at.op = before;
        at.end_ns = ended;
    }
    struct td_path_op *kept = TD_NEW(a, struct td_path_op, p.n_ops);
    if (kept == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the critical path"));
    memcpy(kept, ops, (size_t)p.n_ops * sizeof *kept);
    p.ops = kept;
    *out = p;
done:
    free(ops);
    return st;
}

/* ---- the difference of two paths ---- */

/* Ops that are spoken of together. */
typedef struct {
    int32_t what; /* a kind, or TD_N_OPS: transfers, TD_N_OPS + 1: of shapes */
    int32_t from, to;
} topic;

typedef struct {
    topic of;
    td_compare_item item;
    double works[TD_N_SIDES], overlap[2], measured_s;
    int64_t n;
} entry;

/* A table of topics, few enough to be searched from the last one found. */
typedef struct {
    entry *entries;
    int32_t n, room, last;
} ledger;

static int32_t module_of_rank(const td_side *s, int32_t rank)
{
    return rank < 0 || s->row[rank] < 0 ? -1 : s->ops[s->first[rank]].module;
}

static topic topic_of(const td_side *s, int64_t i)
{
    const td_side_op *op = &s->ops[i];
    const bool receives = td_op_table[op->kind].role == TD_ROLE_RECV;
    topic t = {.what = op->kind, .from = op->lane == TD_LANE_CTRL ? -1 : op->module, .to = -1};
    if (td_op_table[op->kind].words != NULL)
        return t;
    t.what = TD_N_OPS + (op->kind == TD_OP_SEND_SHAPE || op->kind == TD_OP_RECV_SHAPE);
    const int32_t peer = module_of_rank(s, op->peer);
    t.from = receives ? peer : op->module;
    t.to = receives ? op->module : peer;
    return t;
}

static entry *find(ledger *l, topic t, td_err *err)
{
    for (int32_t i = 0; i < l->n; i++) {
        const int32_t k = (l->last + i) % l->n;
        if (l->entries[k].of.what == t.what && l->entries[k].of.from == t.from &&
            l->entries[k].of.to == t.to) {
            l->last = k;
            return &l->entries[k];
        }
    }
    if (l->n == l->room) {
        const int32_t room = l->room == 0 ? 64 : 2 * l->room;
        entry *more = realloc(l->entries, (size_t)room * sizeof *more);
        if (more == NULL) {
            td_fail(err, TD_NOMEM, "no memory for the difference of the paths");
            return NULL;
        }
        l->entries = more;
        l->room = room;
    }
    l->entries[l->n] = (entry){.of = t};
    return &l->entries[l->n++];
}

static const char *module_name(const td_side *s, int32_t module)
{
    return module < 0 ? "?" : s->modules[module];
}

static void describe(const td_side *s, entry *e)
{
    char *what = e->item.what;
    const size_t size = sizeof e->item.what;
    const topic *t = &e->of;
    const char *shapes = t->what == TD_N_OPS + 1 ? "shapes of " : "";
    if (t->what > TD_N_OPS + 1)
        snprintf(what, size, "gaps in which nothing runs");
    else if (t->what < TD_N_OPS && t->from < 0)
        snprintf(what, size, "%s", td_op_table[t->what].words);
    else if (t->what < TD_N_OPS)
        snprintf(what, size, "%.48s %s", module_name(s, t->from), td_op_table[t->what].words);
    else if (t->from == t->to || t->from < 0 || t->to < 0)
        snprintf(what, size, "%stransfers between %.48s stages", shapes,
                 module_name(s, t->from < 0 ? t->to : t->from));
    else
        snprintf(what, size, "%s%.48s→%.48s transfers", shapes, module_name(s, t->from),
                 module_name(s, t->to));
}

/* How long a communication works while its rank computes forward and backward. */
static void overlap(const td_structure *x, const td_side *s, int64_t op, double out[2])
{
    const td_span *spans = td_side_step(s, s->median), *own = &spans[op];
    const int64_t row = (int64_t)x->side->rank[op] * TD_N_LANES + TD_LANE_COMPUTE;
    int64_t low = x->lane_first[row], high = x->lane_first[row + 1];
    const int64_t last = high;
    while (low < high) { /* the first that ends behind the begin */
        const int64_t middle = low + (high - low) / 2;
        if (spans[x->lane_ops[middle]].end_ns > own->begin_ns)
            high = middle;
        else
            low = middle + 1;
    }
    for (; low < last && spans[x->lane_ops[low]].start_ns < own->end_ns; low++) {
        const td_span *c = &spans[x->lane_ops[low]];
        const int64_t from = c->start_ns > own->begin_ns ? c->start_ns : own->begin_ns,
                      to = c->end_ns < own->end_ns ? c->end_ns : own->end_ns;
        const int kind = x->side->ops[x->lane_ops[low]].kind;
        if (to > from && (kind == TD_OP_FORWARD || kind == TD_OP_BACKWARD))
            out[kind == TD_OP_BACKWARD] += 1e-9 * (double)(to - from);
    }
}

static void add_rank(td_compare_item *i, int32_t rank)
{
    const int32_t most = (int32_t)(sizeof i->ranks / sizeof *i->ranks);
    int32_t k = 0;
    while (k < i->n_ranks && k < most && i->ranks[k] != rank)
        k++;
    if (k == i->n_ranks && k < most)
        i->ranks[i->n_ranks++] = rank;
}

static int ascending(const void *left, const void *right)
{
    const int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    return (a > b) - (a < b);
}

static int by_difference(const void *left, const void *right)
{
    const td_compare_item *a = left, *b = right;
    const double x = fabs(a->path_s[TD_MEASURED] - a->path_s[TD_PREDICTED]),
                 y = fabs(b->path_s[TD_MEASURED] - b->path_s[TD_PREDICTED]);
    const double m = a->path_s[TD_MEASURED], n = b->path_s[TD_MEASURED];
    return x != y ? (x < y) - (x > y) : m != n ? (m < n) - (m > n) : strcmp(a->what, b->what);
}

/* The ops of both paths, the measured one first, so that its ranks are named. */
static td_status enter_paths(const td_structure *x, const td_comparison *c, ledger *l, td_err *err)
{
    const td_side *s = x->side;
    const topic gaps = {.what = TD_N_OPS + 2, .from = -1, .to = -1};
    for (int side = TD_N_SIDES - 1; side >= 0; side--) {
        const td_compare_path *p = &c->path[side];
        for (int32_t i = 0; i < p->n_ops; i++) {
            entry *e = find(l, topic_of(s, s->first[p->ops[i].rank] + p->ops[i].op), err);
            if (e == NULL)
                return TD_NOMEM;
            e->item.path_s[side] += p->ops[i].s;
            e->item.n_path[side]++;
            if (side == TD_MEASURED || e->item.n_path[TD_MEASURED] == 0)
                add_rank(&e->item, p->ops[i].rank);
        }
        entry *e = find(l, gaps, err);
        if (e == NULL)
            return TD_NOMEM;
        e->item.path_s[side] = p->wait_s;
    }
    return TD_OK;
}

static bool alike(const td_side *s, const struct td_path_op *left, const struct td_path_op *right)
{
    const td_side_op *a = &s->ops[s->first[left->rank] + left->op],
                     *b = &s->ops[s->first[right->rank] + right->op];
    return a->kind == b->kind && a->module == b->module && a->stage == b->stage && a->mb == b->mb;
}

td_status td_attribute(td_arena *a, const td_structure *x, const double *const work_s[TD_N_SIDES],
                       td_comparison *c, td_err *err)
{
    td_status st = TD_OK;
    const td_side *s = x->side;
    const td_compare_path *p = c->path;
    ledger l = {0};
    TD_TRY(st, enter_paths(x, c, &l, err));
    for (int64_t i = 0; i < s->n_ops; i++) {
        entry *e = find(&l, topic_of(s, i), err);
        if (e == NULL)
            TD_TRY(st, TD_NOMEM);
        for (int side = 0; side < TD_N_SIDES; side++)
            e->works[side] += work_s[side][i];
        e->n++;
        if (td_op_table[s->ops[i].kind].role != TD_ROLE_COMPUTE) {
            const td_span *span =
                &td_side_step(c->side[TD_MEASURED], c->side[TD_MEASURED]->median)[i];
            e->measured_s += 1e-9 * (double)(span->end_ns - span->begin_ns);
            overlap(x, c->side[TD_MEASURED], i, e->overlap);
        }
    }
    td_compare_item *items = TD_NEW(a, td_compare_item, l.n);
    if (items == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the difference of the paths"));
    for (int32_t i = 0; i < l.n; i++) {
        entry *e = &l.entries[i];
        if (!(e->item.path_s[TD_PREDICTED] > 0) && !(e->item.path_s[TD_MEASURED] > 0))
            continue;
        describe(s, e);
        for (int side = 0; side < TD_N_SIDES; side++)
            e->item.each_s[side] = e->n == 0 ? 0 : e->works[side] / (double)e->n;
        e->item.beside_forward = e->measured_s > 0 ? e->overlap[0] / e->measured_s : 0;
        e->item.beside_backward = e->measured_s > 0 ? e->overlap[1] / e->measured_s : 0;
        qsort(e->item.ranks, (size_t)e->item.n_ranks, sizeof *e->item.ranks, ascending);
        items[c->n_items++] = e->item;
    }
    qsort(items, (size_t)c->n_items, sizeof *items, by_difference);
    c->items = items;
    while (c->n_common < p[0].n_ops && c->n_common < p[1].n_ops &&
           alike(s, &p[0].ops[c->n_common], &p[1].ops[c->n_common]))
        c->n_common++;
done:
    free(l.entries);
    return st;
}
