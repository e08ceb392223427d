/* One rank's step, op by op. */
#include "exec/driver.h"
#include "exec/state.h"

#include <math.h>
#include <signal.h>
#include <string.h>
#include <time.h>

/* Where the payload of a transfer stands: known once the program is. */
typedef struct {
    int32_t edge;  /* bridge, or -1 inside a module */
    int64_t shift; /* bytes from the begin of the boundary buffer */
    bool gradient;
} payload;

struct td_driver {
    td_arena *a;
    const td_program *p;
    const td_stream *stream;
    const td_device *dev;
    int32_t rank;
    td_pipeline pipe;
    bool idle;
    td_stage_run stage;
    td_state state;
    payload *payloads;    /* [n_ops] */
    int64_t (*shapes)[3]; /* [n_ops] */
    bool *issued;         /* [n_ops] in this step */
    bool *plays;          /* [n_ops] a pass that was recorded */
    int64_t *first_stamp; /* [n_ops] */
    int32_t *sends[2];    /* payload sends forward and backward, in order */
    int32_t n_sends[2], waited[2];
    td_mimo_config config;
    td_mimo_state *numbers; /* on the device */
    bool updates;           /* has an ADAM op: there it is decided what the step does */
    int32_t period;         /* microbatches after which all buffers are the same again */
    /* the step that runs */
    bool fine;
    int64_t step;
    int32_t running; /* op whose parts are under way */
    td_watch_slot *watch;
    td_inject inject;
    int64_t n_begun; /* steps of this run */
    double last_end;
    td_err *err;
};

/* ---- payloads ---- */

static int32_t edge_between(const td_driver *d, int32_t src, int32_t dst)
{
    int32_t found = -1;
    for (int32_t e = 0; e < d->pipe.n_edges; e++)
        if (d->pipe.edges[e].src == src && d->pipe.edges[e].dst == dst)
            found = e;
    return found;
}

/* The bridge's message between two leaders. */
static const td_bridge_pair *pair_between(const td_bridge *b, int32_t src_rank, int32_t dst_rank)
{
    const td_bridge_pair *found = NULL;
    for (int32_t i = 0; i < b->n_pairs && found == NULL; i++)
        if (b->src_leader[b->pairs[i].src] == src_rank &&
            b->dst_leader[b->pairs[i].dst] == dst_rank)
            found = &b->pairs[i];
    return found;
}

/* The k-th broadcast of a call belongs to the k-th bridge of the stage's boundary. */
static int32_t edge_of_broadcast(const td_driver *d, int32_t op)
{
    int32_t before = 0, found = -1;
    const bool source = !d->stage.stage.module->type->language;
    for (int32_t i = op - 1; i >= 0 && d->stream->ops[i].call == d->stream->ops[op].call; i--)
        before += d->stream->ops[i].kind == TD_OP_BROADCAST;
    for (int32_t e = 0; e < d->pipe.n_edges && found < 0; e++)
        if ((source ? d->pipe.edges[e].src : d->pipe.edges[e].dst) == d->stage.module &&
            (!source || d->pipe.edge_gradient[e]) && before-- == 0)
            found = e;
    return found;
}

static void find_payload(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    const td_comm *c = &d->p->comms[d->p->ranks[d->rank].chans[op->chan].comm];
    payload *at = &d->payloads[i];
    *at = (payload){.edge = -1, .gradient = op->lane == TD_LANE_BWD};
    if (op->kind == TD_OP_BROADCAST) {
        at->gradient = !d->stage.stage.module->type->language;
        at->edge = edge_of_broadcast(d, i);
    } else if (c->src != c->dst) {
        const bool g = at->gradient, source = d->stage.module == (g ? c->dst : c->src);
        at->edge = edge_between(d, g ? c->dst : c->src, g ? c->src : c->dst);
        const td_bridge *b = &d->pipe.bridges[at->edge];
        const td_bridge_pair *pair = pair_between(b, c->ranks[g ? 1 : 0], c->ranks[g ? 0 : 1]);
        if ((source ? b->parts_per_src : b->parts_per_dst) > 1)
            at->shift = pair->part * (int64_t)op->bytes;
    }
}

/* The buffer of a transfer or broadcast of microbatch op->mb. */
static void *buffer_of(const td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    const payload *at = &d->payloads[i];
    const td_stage_run *s = &d->stage;
    const bool sends = op->kind == TD_OP_SEND, language = s->stage.module->type->language;
    act *base;
    if (at->edge >= 0 && language)
        base =
            at->gradient ? s->bridged_grad[op->mb & 1][at->edge] : s->bridged[op->mb & 1][at->edge];
    else if (at->gradient)
        base = sends ? td_stage_grad_out(s, op->mb) : td_stage_grad_in(s, op->mb);
    else
        base = sends ? td_stage_output(s, op->mb) : td_stage_input(s, op->mb);
    return (char *)base + at->shift;
}

/* ---- ops ---- */

static td_status reduce(td_driver *d, int32_t op, int32_t chan, td_coll coll, td_reduction how,
                        const void *in, void *out, int64_t count, td_type type)
{
    const td_collective_call call = {
        .coll = coll, .reduction = how, .in = in, .out = out, .count = count, .type = type};
    return d->dev->collective(d->dev->self, op, chan, &call, d->err);
}

static td_status run_bucket(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    int64_t first, at;
    td_state_bucket(&d->state, op->bucket, &first, &at);
    const int64_t n = d->stage.sizes.buckets.buckets[op->bucket].elements;
    float *g = d->stage.g + first;
    if (op->kind == TD_OP_GRAD_REDUCE_SCATTER)
        return reduce(d, i, op->chan, TD_COLL_REDUCE_SCATTER, TD_REDUCE_SUM, g,
                      d->state.reduced + at, n, TD_TYPE_F32);
    if (op->kind == TD_OP_GRAD_ALL_REDUCE)
        return reduce(d, i, op->chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM, g, g, n, TD_TYPE_F32);
    char *w = (char *)d->stage.w + (size_t)first * d->stage.e;
    return reduce(d, i, op->chan, TD_COLL_ALL_GATHER, TD_REDUCE_SUM,
                  w + (size_t)(d->state.shard * (n / d->state.shards)) * d->stage.e, w, n,
                  TD_TYPE_ACT);
}

static td_status run_broadcast(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    const td_comm *c = &d->p->comms[d->p->ranks[d->rank].chans[op->chan].comm];
    void *buffer = buffer_of(d, i);
    const td_collective_call call = {.coll = TD_COLL_BROADCAST,
                                     .root = d->payloads[i].gradient ? c->n_ranks - 1 : 0,
                                     .in = buffer,
                                     .out = buffer,
                                     .count = (int64_t)(op->bytes / d->stage.e),
                                     .type = TD_TYPE_ACT};
    return d->dev->collective(d->dev->self, i, op->chan, &call, d->err);
}

static td_status run_transfer(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    const bool sends = op->kind == TD_OP_SEND || op->kind == TD_OP_SEND_SHAPE;
    if (op->kind == TD_OP_SEND || op->kind == TD_OP_RECV)
        return d->dev->transfer(d->dev->self, i, op->chan, sends, buffer_of(d, i), op->bytes,
                                d->err);
    if (sends) {
        d->shapes[i][0] = d->stage.t;
        d->shapes[i][1] = d->stage.h;
        d->shapes[i][2] = 1;
    }
    return d->dev->transfer(d->dev->self, i, op->chan, sends, d->shapes[i], op->bytes, d->err);
}

/* Ops that may start in the middle of the running one do so as soon as their part is done. */
static td_status issue(td_driver *d, int32_t i);

static td_status part_done(void *self, int64_t n_done, td_err *err)
{
    td_status st = TD_OK;
    td_driver *d = self;
    const td_stream *s = d->stream;
    if (d->fine)
        TD_TRY(st, d->dev->stamp(d->dev->self, d->first_stamp[d->running] + n_done, err));
    for (int32_t i = d->running + 1; i < s->n_ops && s->ops[i].lane == TD_LANE_DP; i++) {
        const td_dep *dep = &s->deps[s->ops[i].dep_first];
        if (d->issued[i])
            continue;
        if (s->ops[i].n_deps != 1 || dep->op != d->running || dep->after_part < 0 ||
            dep->after_part > n_done)
            break;
        TD_TRY(st, issue(d, i));
        td_watch_op(d->watch, d->running, &s->ops[d->running]);
    }
done:
    return st;
}

static td_status wait_for_sends(td_driver *d, int32_t direction, int32_t up_to)
{
    td_status st = TD_OK;
    while (d->waited[direction] < d->n_sends[direction] &&
           d->stream->ops[d->sends[direction][d->waited[direction]]].mb <= up_to)
        TD_TRY(st, d->dev->wait(d->dev->self, d->sends[direction][d->waited[direction]++], d->err));
done:
    return st;
}

static int32_t key_of(const td_driver *d, const td_op *op)
{
    return 2 * (op->mb % d->period) + (op->kind == TD_OP_BACKWARD);
}

/* A pass: as it was recorded, or part by part where something waits for a part. */
static td_status run_pass(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    d->running = i;
    if (d->plays[i] && !d->fine)
        return d->dev->play(d->dev->self, key_of(d, op), d->err);
    return td_stage_pass(&d->stage, op->work, op->mb, op->kind == TD_OP_BACKWARD, part_done, d,
                         d->err);
}

static td_status run_forward(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    const td_op *op = &d->stream->ops[i];
    TD_TRY(st,
           wait_for_sends(d, 0, op->mb - d->stage.n_slots)); /* their buffers are written again */
    TD_TRY(st, td_stage_feed(&d->stage, d->step, op->mb, d->err));
    TD_TRY(st, run_pass(d, i));
done:
    return st;
}

static td_status run_backward(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    TD_TRY(st, wait_for_sends(d, 1, d->stream->ops[i].mb - 2));
    TD_TRY(st, run_pass(d, i));
done:
    return st;
}

static const td_kernels *k(const td_driver *d)
{
    return d->dev->kernels;
}

static void decision(td_driver *d, td_mimo_piece piece, int32_t module)
{
    k(d)->mimo(d->dev->self, piece, &d->config, module, d->numbers);
}

static td_status run_zero(td_driver *d, int32_t i)
{
    (void)i;
    k(d)->zero(d->dev->self, d->stage.g, d->stage.sizes.buckets.elements * (int64_t)sizeof(float));
    return TD_OK;
}

static td_status run_tensor_sum(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    const int64_t n = d->stage.sizes.buckets.shared;
    k(d)->zero(d->dev->self, d->stage.tensor_sum, n * (int64_t)sizeof(float));
    td_state_tensor_sum(&d->state, true);
    TD_TRY(st, reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM,
                      d->stage.tensor_sum, d->stage.tensor_sum, n, TD_TYPE_F32));
    TD_TRY(st, d->dev->wait(d->dev->self, i, d->err));
    td_state_tensor_sum(&d->state, false);
done:
    return st;
}

static td_status run_tokens(td_driver *d, int32_t i)
{
    const bool counts = !d->idle && d->stage.stage.module->type->language && d->stage.stage.last &&
                        d->stage.tp_rank == 0;
    decision(d, TD_MIMO_TOKENS, counts ? d->stage.module : -1);
    return reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM,
                  d->numbers->tokens, d->numbers->tokens, 2, TD_TYPE_F64);
}

static td_status run_stats(td_driver *d, int32_t i)
{
    (void)i;
    k(d)->grad_stats(d->dev->self, d->state.spans, d->state.n_spans, d->numbers);
    return TD_OK;
}

static td_status run_found_inf(td_driver *d, int32_t i)
{
    decision(d, TD_MIMO_FLAG, -1);
    return reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_MAX,
                  &d->numbers->flag, &d->numbers->flag, 1, TD_TYPE_F32);
}

static td_status run_module_norm(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    TD_TRY(st, reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM,
                      &d->numbers->square, &d->numbers->square, 1, TD_TYPE_F64));
    TD_TRY(st, d->dev->wait(d->dev->self, i, d->err)); /* the next op on the lane reads it */
done:
    return st;
}

static td_status run_global_norm(td_driver *d, int32_t i)
{
    decision(d, TD_MIMO_VECTOR, d->idle ? -1 : d->stage.module);
    return reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_MAX,
                  d->numbers->vector, d->numbers->vector, d->config.n_modules, TD_TYPE_F64);
}

/* Token count, flag and norms of the whole world are there: every rank decides the same. */
static td_status decide(td_driver *d)
{
    td_status st = TD_OK;
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (d->stream->ops[i].kind == TD_OP_TOKEN_COUNT ||
            d->stream->ops[i].kind == TD_OP_FOUND_INF ||
            d->stream->ops[i].kind == TD_OP_GLOBAL_NORM)
            TD_TRY(st, d->dev->wait(d->dev->self, i, d->err));
    decision(d, TD_MIMO_DECIDE, -1);
done:
    return st;
}

static td_status run_adam(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    (void)i;
    TD_TRY(st, decide(d));
    k(d)->adam(d->dev->self, &d->config, d->state.spans, d->state.n_spans, d->numbers);
done:
    return st;
}

static td_status run_cast(td_driver *d, int32_t i)
{
    (void)i;
    k(d)->cast(d->dev->self, d->state.spans, d->state.n_spans);
    return TD_OK;
}

static td_status run_success(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    if (!d->updates)
        TD_TRY(st, decide(d));
    decision(d, TD_MIMO_DONE, -1);
    TD_TRY(st, reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_MIN,
                      &d->numbers->success, &d->numbers->success, 1, TD_TYPE_I32));
done:
    return st;
}

static td_status (*const run_op[TD_N_OPS])(td_driver *d, int32_t i) = {
    [TD_OP_ZERO_GRADS] = run_zero,
    [TD_OP_FORWARD] = run_forward,
    [TD_OP_BACKWARD] = run_backward,
    [TD_OP_SEND_SHAPE] = run_transfer,
    [TD_OP_RECV_SHAPE] = run_transfer,
    [TD_OP_SEND] = run_transfer,
    [TD_OP_RECV] = run_transfer,
    [TD_OP_BROADCAST] = run_broadcast,
    [TD_OP_GRAD_REDUCE_SCATTER] = run_bucket,
    [TD_OP_GRAD_ALL_REDUCE] = run_bucket,
    [TD_OP_TP_GRAD_ALL_REDUCE] = run_tensor_sum,
    [TD_OP_TOKEN_COUNT] = run_tokens,
    [TD_OP_GRAD_STATS] = run_stats,
    [TD_OP_FOUND_INF] = run_found_inf,
    [TD_OP_MODULE_NORM] = run_module_norm,
    [TD_OP_GLOBAL_NORM] = run_global_norm,
    [TD_OP_ADAM] = run_adam,
    [TD_OP_CAST] = run_cast,
    [TD_OP_PARAM_ALL_GATHER] = run_bucket,
    [TD_OP_SUCCESS] = run_success,
};

/* ---- faults on purpose ---- */

/* Gradients are added to what zeroing left, and a NaN stays in every sum. */
static void spoil_gradient(td_driver *d)
{
    const td_tensors *t = &d->stage.tensors;
    static const float nan = NAN;
    const td_tensor *victim = NULL;
    for (int32_t i = 0; i < t->n && victim == NULL; i++)
        if (t->all[i].param.trainable)
            victim = &t->all[i];
    d->dev->kernels->copy(d->dev->self, &nan, d->stage.g + victim->offset, sizeof nan);
}

/* Lets time pass, but not the communication under way: other ranks do not compute here. */
static void slow_down(const td_driver *d, double start)
{
    const double end = start + d->inject.slow * (d->dev->now(d->dev->self) - start);
    for (double left = end - start; left > 0; left = end - d->dev->now(d->dev->self)) {
        const struct timespec nap = {.tv_nsec = (long)(fmin(left, 1e-3) * 1e9)};
        d->dev->poll(d->dev->self);
        nanosleep(&nap, NULL);
    }
}

static void inject_before(const td_driver *d, int32_t i)
{
    if (d->n_begun - 1 == d->inject.kill_step && i == d->inject.kill_op)
        raise(SIGKILL);
}

static void inject_after(td_driver *d, int32_t i, double start)
{
    const td_op_kind kind = d->stream->ops[i].kind;
    if (d->n_begun - 1 == d->inject.nan_step && kind == TD_OP_ZERO_GRADS)
        spoil_gradient(d);
    if (d->inject.slow > 1 && td_op_table[kind].role == TD_ROLE_COMPUTE)
        slow_down(d, start);
}

/* ---- issuing ---- */

static td_status wait_watched(td_driver *d, int32_t op)
{
    td_watch_wait(d->watch, op);
    const td_status st = d->dev->wait(d->dev->self, op, d->err);
    td_watch_wait(d->watch, -1);
    return st;
}

static td_status issue(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    const td_op *op = &d->stream->ops[i];
    d->issued[i] = true;
    td_watch_op(d->watch, i, op);
    TD_TRY(st, d->dev->begin(d->dev->self, i, d->err));
    for (uint32_t n = op->dep_first; n < op->dep_first + op->n_deps; n++)
        TD_TRY(st, wait_watched(d, d->stream->deps[n].op));
    inject_before(d, i);
    const double start = d->dev->now(d->dev->self);
    TD_TRY(st, d->dev->started(d->dev->self, d->err));
    TD_TRY(st, run_op[op->kind](d, i));
    inject_after(d, i, start);
    TD_TRY(st, d->dev->end(d->dev->self, i, d->err));
done:
    return st;
}

/* ---- steps ---- */

int64_t td_driver_parts(const td_program *p, int32_t rank)
{
    const td_stream *s = td_program_stream(p, rank);
    int64_t n = 0;
    for (int32_t i = 0; i < s->n_ops; i++)
        n += s->ops[i].work < 0 ? 0 : p->works[s->ops[i].work].n_flat;
    return n;
}

/* Parts of the stage's passes have stamps between them. Elsewhere several parts (one a bucket) run
 * as one: they have no times of their own. */
static void read_times(const td_driver *d, td_op_time *times, td_op_time *parts)
{
    const td_device *dev = d->dev;
    for (int32_t i = 0; times != NULL && i < d->stream->n_ops; i++)
        times[i] = dev->times(dev->self, i);
    for (int32_t i = 0; d->fine && i < d->stream->n_ops; i++) {
        const td_op *op = &d->stream->ops[i];
        const int64_t n = op->work < 0 ? 0 : d->p->works[op->work].n_flat;
        const bool pass = op->kind == TD_OP_FORWARD || op->kind == TD_OP_BACKWARD;
        for (int64_t part = 0; part < n; part++, parts++)
            *parts = pass     ? (td_op_time){dev->stamped(dev->self, d->first_stamp[i] + part),
                                             dev->stamped(dev->self, d->first_stamp[i] + part + 1)}
                     : n == 1 ? times[i]
                              : (td_op_time){0, 0};
    }
}

td_status td_driver_step(td_driver *d, int64_t step, td_step_result *result, td_op_time *times,
                         td_op_time *parts, td_err *err)
{
    td_status st = TD_OK;
    const td_device *dev = d->dev;
    td_mimo_state numbers;
    d->fine = times != NULL && parts != NULL;
    d->step = step;
    d->err = err;
    d->n_begun++;
    td_watch_step(d->watch, step);
    d->waited[0] = d->waited[1] = 0;
    memset(d->issued, 0, (size_t)d->stream->n_ops * sizeof *d->issued);
    TD_TRY(st, dev->begin(dev->self, -1, err));
    decision(d, TD_MIMO_BEGIN, -1);
    TD_TRY(st, dev->end(dev->self, -1, err));
    TD_TRY(st, dev->step(dev->self, true, times != NULL, err));
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (!d->issued[i])
            TD_TRY(st, issue(d, i));
    for (int32_t i = 0; i < d->stream->n_ops; i++) {
        td_watch_op(d->watch, i, &d->stream->ops[i]);
        td_watch_wait(d->watch, i);
        TD_TRY(st, dev->complete(dev->self, i, err));
    }
    td_watch_wait(d->watch, -1);
    const double end = dev->now(dev->self);
    TD_TRY(st, dev->step(dev->self, false, times != NULL, err));
    read_times(d, times, parts);
    TD_TRY(st, dev->fetch(dev->self, d->numbers, &numbers, sizeof numbers, err));
    result->loss = numbers.tokens[1] > 0 ? numbers.tokens[0] / numbers.tokens[1] : 0;
    result->grad_norm = numbers.decision.norm;
    result->clip_coefficient = numbers.decision.clip_coefficient;
    memcpy(result->module_norms, numbers.decision.module_norms,
           (size_t)d->config.n_modules * sizeof(double));
    result->success = numbers.success != 0;
    result->step_s = end - d->last_end;
    d->last_end = end;
done:
    return st;
}

/* ---- opening ---- */

static td_status list_sends(td_driver *d, td_err *err)
{
    for (int32_t way = 0; way < 2; way++) {
        d->sends[way] = TD_NEW(d->a, int32_t, d->stream->n_ops);
        if (d->sends[way] == NULL)
            return td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)d->rank);
        for (int32_t i = 0; i < d->stream->n_ops; i++)
            if (d->stream->ops[i].kind == TD_OP_SEND &&
                (d->stream->ops[i].lane == TD_LANE_BWD) == (way == 1))
                d->sends[way][d->n_sends[way]++] = i;
    }
    return TD_OK;
}

/* Can op `i` be played: a pass of which nobody waits for a part? */
static bool whole(const td_driver *d, int32_t i)
{
    const td_stream *s = d->stream;
    bool none = s->ops[i].kind == TD_OP_FORWARD || s->ops[i].kind == TD_OP_BACKWARD;
    for (int32_t k2 = i + 1; none && k2 < s->n_ops && s->ops[k2].lane == TD_LANE_DP; k2++)
        none = s->deps[s->ops[k2].dep_first].after_part < 0;
    return none;
}

static td_status nothing_done(void *self, int64_t n_done, td_err *err)
{
    (void)self;
    (void)n_done;
    (void)err;
    return TD_OK;
}

static int32_t multiple(int32_t a, int32_t b)
{
    int32_t m = a;
    while (m % b != 0)
        m += a;
    return m;
}

/*
 * Runs every pass once, on zeros, so that libraries load what they need; then records the passes of
 * every set of buffers that a microbatch can have. What this leaves in the buffers is overwritten
 * by the first step.
 */
static td_status record_passes(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    const td_device *dev = d->dev;
    const td_stream *s = d->stream;
    d->period = multiple(multiple(d->stage.n_slots, d->stage.n_inputs), 2);
    bool *known = TD_NEW(d->a, bool, 2 * (int64_t)d->period), ran[2] = {false, false};
    if (known == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its passes", (int)d->rank));
    TD_TRY(st, dev->begin(dev->self, -1, err));
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        const bool backward = op->kind == TD_OP_BACKWARD;
        if ((op->kind != TD_OP_FORWARD && !backward) || ran[backward])
            continue;
        TD_TRY(st, td_stage_pass(&d->stage, op->work, op->mb, backward, nothing_done, NULL, err));
        ran[backward] = true;
    }
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        if (!whole(d, i))
            continue;
        d->plays[i] = true;
        if (known[key_of(d, op)])
            continue;
        known[key_of(d, op)] = true;
        TD_TRY(st, dev->record(dev->self, key_of(d, op), err));
        TD_TRY(st, td_stage_pass(&d->stage, op->work, op->mb, op->kind == TD_OP_BACKWARD,
                                 nothing_done, NULL, err));
        TD_TRY(st, dev->recorded(dev->self, key_of(d, op), err));
    }
    TD_TRY(st, dev->end(dev->self, -1, err));
done:
    return st;
}

/* Where the stamps of every op begin; does the rank update anything? */
static void number_ops(td_driver *d)
{
    int64_t stamps = 0;
    for (int32_t i = 0; i < d->stream->n_ops; i++) {
        const td_op *op = &d->stream->ops[i];
        d->first_stamp[i] = stamps;
        stamps += op->work < 0 ? 0 : d->p->works[op->work].n_flat + 1;
        d->updates = d->updates || op->kind == TD_OP_ADAM;
    }
}

static td_status open_stage(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, td_stage_open(d->a, d->p, &d->pipe, d->rank, d->dev, &d->stage, err));
    TD_TRY(st, td_state_open(d->a, &d->stage, &d->state, err));
    d->numbers = d->stage.state;
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (d->stream->ops[i].kind == TD_OP_SEND || d->stream->ops[i].kind == TD_OP_RECV ||
            d->stream->ops[i].kind == TD_OP_BROADCAST)
            find_payload(d, i);
done:
    return st;
}

/* Where receives put their payloads. */
static td_status expect(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    void **buffers = TD_NEW(d->a, void *, d->stream->n_ops);
    if (buffers == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)d->rank));
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (d->stream->ops[i].kind == TD_OP_RECV)
            buffers[i] = buffer_of(d, i);
    TD_TRY(st, d->dev->expect(d->dev->self, buffers, err));
done:
    return st;
}

static td_status open_idle(td_driver *d, td_err *err)
{
    d->numbers = d->dev->arena(d->dev->self, TD_STATE_BYTES);
    return d->numbers != NULL
               ? TD_OK
               : td_fail(err, TD_NOMEM, "rank %d: no memory for its numbers", (int)d->rank);
}

td_status td_driver_open(td_arena *a, const td_program *p, int32_t rank, const td_device *device,
                         td_driver **out, td_err *err)
{
    td_status st = TD_OK;
    td_driver *d = TD_NEW(a, td_driver, 1);
    if (d == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for the driver", (int)rank));
    *d = (td_driver){.a = a,
                     .p = p,
                     .stream = td_program_stream(p, rank),
                     .dev = device,
                     .rank = rank,
                     .inject = {.slow = 1, .nan_step = -1, .kill_step = -1},
                     .config = td_mimo_config_of(p->plan)};
    d->idle = d->stream->module < 0;
    d->payloads = TD_NEW(a, payload, d->stream->n_ops);
    d->shapes = td_arena_alloc(a, (size_t)d->stream->n_ops, sizeof *d->shapes);
    d->issued = TD_NEW(a, bool, d->stream->n_ops);
    d->plays = TD_NEW(a, bool, d->stream->n_ops);
    d->first_stamp = TD_NEW(a, int64_t, d->stream->n_ops);
    if (d->payloads == NULL || d->shapes == NULL || d->issued == NULL || d->plays == NULL ||
        d->first_stamp == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)rank));
    number_ops(d);
    TD_TRY(st, td_pipeline_of_plan(a, p->plan, &d->pipe, err));
    TD_TRY(st, d->idle ? open_idle(d, err) : open_stage(d, err));
    TD_TRY(st, list_sends(d, err));
    if (device->expect != NULL)
        TD_TRY(st, expect(d, err));
    if (device->record != NULL && !d->idle)
        TD_TRY(st, record_passes(d, err));
    td_driver_resume(d);
    *out = d;
done:
    if (st != TD_OK)
        td_driver_close(d);
    return st;
}

td_status td_driver_observe(td_driver *d, td_watch_slot *watch, const td_inject *inject,
                            td_err *err)
{
    d->watch = watch;
    d->inject = *inject;
    if (inject->kill_op < 0)
        d->inject.kill_op = d->stream->n_ops / 2;
    if (inject->kill_op >= d->stream->n_ops)
        return td_fail(err, TD_USAGE, "--inject: the ops of rank %d are 0 to %d", (int)d->rank,
                       (int)d->stream->n_ops - 1);
    if (inject->nan_step >= 0 && (d->idle || d->stage.sizes.buckets.elements == 0))
        return td_fail(err, TD_USAGE, "--inject: rank %d trains nothing, so no gradient can be NaN",
                       (int)d->rank);
    if (inject->slow > 1 && d->dev->record != NULL)
        return td_fail(err, TD_USAGE,
                       "--inject: device `%s` queues its ops, so this rank cannot slow them down",
                       d->dev->name);
    return TD_OK;
}

void td_driver_close(td_driver *d)
{
    if (d != NULL)
        td_stage_close(&d->stage);
}

size_t td_driver_bytes(const td_driver *d)
{
    return d->idle ? TD_STATE_BYTES : d->stage.arena_bytes;
}

td_status td_driver_download(td_driver *d, td_run_state *out, td_err *err)
{
    *out = (td_run_state){.n_updates = &d->state.n_updates};
    return d->idle ? TD_OK : td_state_download(&d->state, out, err);
}

td_status td_driver_upload(td_driver *d, const td_run_state *from, td_err *err)
{
    return d->idle ? TD_OK : td_state_upload(&d->state, from, err);
}

void td_driver_resume(td_driver *d)
{
    d->last_end = d->dev->now(d->dev->self);
}

/* Elements of the tensor that this rank speaks for: of shards its own, of replicas lane 0 all. */
static void add_checksum(const td_driver *d, const td_run_state *state, const td_tensor *t,
                         double sums[2])
{
    const uint32_t seed = d->p->plan->seed;
    if (!t->counts)
        return;
    if ((!t->param.trainable || !state->sharded) && state->lane == 0)
        td_tensor_checksum(t, seed, state->w, t->offset, t->param.local, sums);
    for (int32_t i = 0; t->param.trainable && state->sharded && i < state->n_spans; i++)
        if (state->spans[i].tensor == t)
            td_tensor_checksum(t, seed, state->w, t->offset + state->spans[i].first,
                               state->spans[i].n, sums);
}

td_status td_driver_checksums(td_driver *d,
                              void (*visit)(void *self, const char *name, const double sums[2]),
                              void *self, td_err *err)
{
    td_status st = TD_OK;
    td_run_state state;
    const td_tensors *t = &d->stage.tensors;
    TD_TRY(st, td_driver_download(d, &state, err));
    for (int32_t i = 0; !d->idle && i < t->n; i++) {
        double sums[2] = {0};
        if (strcmp(t->all[i].param.name, "k.bias") ==
            0) /* softmax does not see it: its gradient is rounding noise */
            continue;
        add_checksum(d, &state, &t->all[i], sums);
        visit(self, t->all[i].name, sums);
    }
done:
    td_state_release(&state);
    return st;
}
