/*
 * The chain of ops that decides how long the step takes: from its last op back to whatever ended
 * last before it could start, on this rank or at the other end of its communication.
 */
#include "sim/predict.h"
#include "model/module.h"

#include <stdio.h>
#include <string.h>

/* Ops of each stream by channel, to find the other side of an exchange. */
typedef struct {
    const td_timeline *t;
    const td_costs *costs;
    int32_t **first, **ops; /* [stream] */
    int32_t **serial;       /* [stream][op]: the how-manieth of its channel */
    int32_t **before;       /* [stream][op]: the op before it on its lane, -1 for none */
} finder;

typedef struct {
    int32_t rank, op;
    double end;
    double begin; /* the path uses it from here on; an op that gave way in its middle ends early */
} link;

static td_status index_streams(td_arena *a, finder *f, td_err *err)
{
    const td_program *p = f->t->program;
    f->first = TD_NEW(a, int32_t *, p->n_streams);
    f->ops = TD_NEW(a, int32_t *, p->n_streams);
    f->serial = TD_NEW(a, int32_t *, p->n_streams);
    f->before = TD_NEW(a, int32_t *, p->n_streams);
    if (f->first == NULL || f->ops == NULL || f->serial == NULL || f->before == NULL)
        return td_fail(err, TD_NOMEM, "no memory for the critical path");
    for (int32_t i = 0; i < p->n_streams; i++) {
        const td_stream *s = &p->streams[i];
        int32_t last[TD_N_LANES];
        f->first[i] = TD_NEW(a, int32_t, s->n_chans + 1);
        f->ops[i] = TD_NEW(a, int32_t, s->n_ops);
        f->serial[i] = TD_NEW(a, int32_t, s->n_ops);
        f->before[i] = TD_NEW(a, int32_t, s->n_ops);
        int32_t *count = TD_NEW(a, int32_t, s->n_chans);
        if (f->first[i] == NULL || f->ops[i] == NULL || f->serial[i] == NULL ||
            f->before[i] == NULL || count == NULL)
            return td_fail(err, TD_NOMEM, "no memory for the critical path");
        memset(last, -1, sizeof last);
        for (int32_t k = 0; k < s->n_ops; k++) {
            f->before[i][k] = last[s->ops[k].lane];
            last[s->ops[k].lane] = k;
            if (s->ops[k].chan >= 0)
                f->first[i][s->ops[k].chan + 1]++;
        }
        for (int32_t c = 0; c < s->n_chans; c++)
            f->first[i][c + 1] += f->first[i][c];
        for (int32_t k = 0; k < s->n_ops; k++)
            if (s->ops[k].chan >= 0) {
                f->serial[i][k] = count[s->ops[k].chan]++;
                f->ops[i][f->first[i][s->ops[k].chan] + f->serial[i][k]] = k;
            }
    }
    return TD_OK;
}

/* The later of two candidates. */
static void later(link *best, int32_t rank, int32_t op, double end)
{
    if (end > best->end || best->op < 0)
        *best = (link){.rank = rank, .op = op, .end = end};
}

/* What had to end before `rank` could issue `op`. */
static void before_issue(const finder *f, int32_t rank, int32_t op, link *best)
{
    const td_program *p = f->t->program;
    const td_stream *s = td_program_stream(p, rank);
    const int32_t lane_before = f->before[p->ranks[rank].stream][op];
    if (lane_before >= 0)
        later(best, rank, lane_before, td_timeline_end(f->t, rank, lane_before));
    for (uint32_t d = s->ops[op].dep_first; d < s->ops[op].dep_first + s->ops[op].n_deps; d++) {
        const td_dep *dep = &s->deps[d];
        double end = td_timeline_end(f->t, rank, dep->op);
        if (dep->after_part >= 0) {
            const double begin = td_timeline_start(f->t, rank, dep->op);
            const double total = td_costs_work(f->costs, rank, s->ops[dep->op].work)->total_s;
            if (total > 0)
                end = begin +
                      (end - begin) * (td_costs_work_until(f->costs, rank, s->ops[dep->op].work,
                                                           dep->after_part) /
                                       total);
        }
        later(best, rank, dep->op, end);
    }
}

/* The op that `rank` does in the exchange of (owner, op) on the communicator `comm`. */
static int32_t counterpart(const finder *f, int32_t owner, int32_t op, int32_t comm, int32_t rank)
{
    const td_program *p = f->t->program;
    const int32_t stream = p->ranks[rank].stream, serial = f->serial[p->ranks[owner].stream][op];
    int32_t chan = 0;
    while (p->ranks[rank].chans[chan].comm != comm)
        chan++;
    return f->ops[stream][f->first[stream][chan] + serial];
}

/* Leaves without waiting for its receiver. */
static bool eager(const finder *f, const td_op *op)
{
    return td_op_table[op->kind].role == TD_ROLE_EAGER_SEND ||
           (td_op_table[op->kind].role == TD_ROLE_SEND && f->t->buffered_sends);
}

static link predecessor(const finder *f, int32_t rank, int32_t op)
{
    const td_program *p = f->t->program;
    const td_op *o = &td_program_stream(p, rank)->ops[op];
    link best = {.rank = rank, .op = -1};
    before_issue(f, rank, op, &best);
    if (o->chan < 0 || eager(f, o))
        return best;
    const int32_t index = p->ranks[rank].chans[o->chan].comm;
    const td_comm *comm = &p->comms[index];
    for (int32_t i = 0; i < comm->n_ranks; i++)
        if (comm->ranks[i] != rank && f->t->class_of[comm->ranks[i]] != f->t->class_of[rank]) {
            const int32_t other = counterpart(f, rank, op, index, comm->ranks[i]);
            const td_op *peer = &td_program_stream(p, comm->ranks[i])->ops[other];
            if (eager(f, peer)) /* the message itself, already on its way */
                later(&best, comm->ranks[i], other, td_timeline_end(f->t, comm->ranks[i], other));
            else
                before_issue(f, comm->ranks[i], other, &best);
        }
    return best;
}

/* ---- words ---- */

static void credit(td_arena *a, td_critical_path *path, const char *what, double seconds)
{
    td_path_item *i = path->items;
    while (i != NULL && strcmp(i->what, what) != 0)
        i = i->next;
    if (i == NULL && seconds > 0 && (i = TD_NEW(a, td_path_item, 1)) != NULL) {
        snprintf(i->what, sizeof i->what, "%s", what);
        i->next = path->items;
        path->items = i;
    }
    if (i != NULL)
        i->seconds += seconds;
}

static void describe_transfer(const td_program *p, int32_t rank, const td_op *op, char *text,
                              size_t size)
{
    const td_comm *c = &p->comms[p->ranks[rank].chans[op->chan].comm];
    const bool gradient = op->lane == TD_LANE_BWD;
    const char *shape =
        op->kind == TD_OP_SEND_SHAPE || op->kind == TD_OP_RECV_SHAPE ? " shapes" : "";
    if (c->src == c->dst)
        snprintf(text, size, "transfers between %s stages%s", p->plan->modules[c->src].name, shape);
    else
        snprintf(text, size, "bridge %s→%s%s", p->plan->modules[gradient ? c->dst : c->src].name,
                 p->plan->modules[gradient ? c->src : c->dst].name, shape);
}

/* Seconds of a work's parts inside and outside the layers, collectives apart. */
static void credit_compute(td_arena *a, const finder *f, int32_t rank, const td_op *op,
                           double seconds, td_critical_path *path)
{
    const td_program *p = f->t->program;
    const char *module = p->plan->modules[op->module].name;
    const td_work *work = &p->works[op->work];
    const td_work_cost *cost = td_costs_work(f->costs, rank, op->work);
    const double collective = cost->total_s > 0 ? seconds * cost->collective_s / cost->total_s : 0;
    double layers = 0, ends = 0;
    char what[96];
    path->collective_s += collective;
    path->compute_s += seconds - collective;
    if (op->kind != TD_OP_FORWARD && op->kind != TD_OP_BACKWARD) {
        snprintf(what, sizeof what, "%s %s", module, td_op_table[op->kind].words);
        credit(a, path, what, seconds);
        return;
    }
    for (int32_t r = 0; r < work->n_runs; r++)
        for (int32_t i = work->runs[r].first; i < work->runs[r].first + work->runs[r].n; i++)
            if (work->parts[i].class != TD_PART_COLLECTIVE)
                *(work->runs[r].layer0 >= 0 ? &layers : &ends) +=
                    work->runs[r].repeat * td_costs_part(f->costs, rank, op->work, i);
    snprintf(what, sizeof what, "%s attention/MLP forward+backward", module);
    credit(a, path, what,
           layers + ends > 0 ? (seconds - collective) * layers / (layers + ends) : 0);
    snprintf(what, sizeof what, "%s %s", module,
             p->plan->modules[op->module].type->language ? "embedding, head and loss"
                                                         : "embedding and projector");
    credit(a, path, what, layers + ends > 0 ? (seconds - collective) * ends / (layers + ends) : 0);
    snprintf(what, sizeof what, "%s tensor-parallel collectives", module);
    credit(a, path, what, collective);
}

static void credit_op(td_arena *a, const finder *f, int32_t rank, int32_t op, double seconds,
                      td_critical_path *path)
{
    const td_program *p = f->t->program;
    const td_op *o = &td_program_stream(p, rank)->ops[op];
    char what[96];
    if (seconds <= 0)
        return;
    if (o->chan < 0) {
        credit_compute(a, f, rank, o, seconds, path);
    } else if (td_op_table[o->kind].words == NULL) {
        describe_transfer(p, rank, o, what, sizeof what);
        credit(a, path, what, seconds);
        path->transfer_s += seconds;
    } else {
        snprintf(what, sizeof what, "%s%s%s",
                 o->lane == TD_LANE_CTRL ? "" : p->plan->modules[o->module].name,
                 o->lane == TD_LANE_CTRL ? "" : " ", td_op_table[o->kind].words);
        credit(a, path, what, seconds);
        path->collective_s += seconds;
    }
}

static td_path_item *sorted(td_path_item *items)
{
    td_path_item *out = NULL;
    while (items != NULL) {
        td_path_item *i = items, **at = &out;
        items = items->next;
        while (*at != NULL && (*at)->seconds >= i->seconds)
            at = &(*at)->next;
        i->next = *at;
        *at = i;
    }
    return out;
}

td_status td_critical_path_of(td_arena *a, const td_timeline *t, const td_costs *costs,
                              td_critical_path *out, td_err *err)
{
    td_status st = TD_OK;
    finder f = {.t = t, .costs = costs};
    link at = {.op = -1};
    *out = (td_critical_path){0};
    TD_TRY(st, index_streams(a, &f, err));
    for (int32_t c = 0; c < t->n_classes; c++) {
        const int32_t rank = t->rep[c], last = td_program_stream(t->program, rank)->n_ops - 1;
        for (int32_t i = last; i >= 0; i--)
            if (at.op < 0 || t->end[c][i] > at.end)
                at = (link){.rank = rank, .op = i, .end = t->end[c][i]};
    }
    while (at.op >= 0) { /* every step goes to an op that was issued earlier, so the walk ends */
        const double start = td_timeline_start(t, at.rank, at.op);
        const link before = predecessor(&f, at.rank, at.op);
        const double reached = before.op < 0 ? 0 : before.end < at.end ? before.end : at.end;
        const double from = start > reached ? start : reached;
        td_path_op *op = TD_NEW(a, td_path_op, 1);
        if (op == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the critical path"));
        *op =
            (td_path_op){.next = out->ops, .rank = at.rank, .op = at.op, .seconds = at.end - from};
        out->ops = op;
        credit_op(a, &f, at.rank, at.op, at.end - from, out);
        out->wait_s += from - reached;
        out->n_ops++;
        at = before;
        if (at.op >= 0)
            at.end = reached;
    }
    out->items = sorted(out->items);
done:
    return st;
}
