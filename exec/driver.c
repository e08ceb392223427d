/* One rank's step, op by op. */
#include "exec/driver.h"
#include "exec/optimizer.h"
#include "exec/stage.h"

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
    payload *payloads;    /* [n_ops] */
    int64_t (*shapes)[3]; /* [n_ops] */
    bool *issued;         /* [n_ops] in this step */
    int32_t *sends[2];    /* payload sends forward and backward, in order */
    int32_t n_sends[2], waited[2];
    float *reduced; /* [buckets.elements / shards] gradients of this rank's shard; stage.g where
                       there are no shards */
    float *m, *v;
    int64_t shards, shard; /* data lanes that share the state, and which this is */
    td_mimo_config config;
    td_mimo_span *spans;
    td_state_span *origins; /* [n_spans] */
    int32_t n_spans;
    float *tensor_sum; /* buffer of TP_GRAD_ALL_REDUCE */
    int64_t n_updates;
    double stats[2], tokens[2], square, *norms;
    float flag;
    int32_t success;
    td_mimo_decision decision;
    /* the step that runs */
    td_op_time *times, *parts; /* parts: of the running op, advanced as ops go by */
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

/* ---- optimizer state ---- */

static int64_t shard_of(const td_driver *d, int64_t elements)
{
    return elements / d->shards;
}

/* Cuts this rank's shard of every bucket at the borders of tensors. Counts only while d->spans is
 * NULL. */
static void cut_spans(td_driver *d)
{
    const td_stage_run *s = &d->stage;
    int64_t bucket_first = 0, state = 0;
    d->n_spans = 0;
    for (int32_t b = 0; b < s->buckets.n; b++) {
        const int64_t n = shard_of(d, s->buckets.buckets[b].elements),
                      low = bucket_first + d->shard * n, high = low + n;
        for (int32_t i = 0; i < s->tensors.n; i++) {
            const td_tensor *t = &s->tensors.all[i];
            const int64_t end = t->offset + t->param.local;
            const int64_t from = t->offset > low ? t->offset : low, to = end < high ? end : high;
            if (!t->param.trainable || from >= to)
                continue;
            if (d->spans != NULL) {
                d->spans[d->n_spans] = (td_mimo_span){
                    .param = (float *)s->w + from,
                    .m = d->m + state + from - low,
                    .v = d->v + state + from - low,
                    .grad = d->reduced == s->g ? s->g + from : d->reduced + state + from - low,
                    .n = to - from,
                    .weight = td_mimo_weight(t->counts, d->shards > 1, s->dp_rank),
                    .decay = t->param.decay};
                d->origins[d->n_spans] = (td_state_span){.tensor = t,
                                                         .first = from - t->offset,
                                                         .n = to - from,
                                                         .m = d->spans[d->n_spans].m,
                                                         .v = d->spans[d->n_spans].v};
            }
            d->n_spans++;
        }
        bucket_first += s->buckets.buckets[b].elements;
        state += n;
    }
}

static td_status open_state(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    const td_plan *plan = d->p->plan;
    const td_stage_run *s = &d->stage;
    const bool sharded = plan->optimizer.sharded && s->stage.module->dp > 1;
    d->shards = sharded ? s->stage.module->dp : 1;
    d->shard = sharded ? s->dp_rank : 0;
    const size_t bytes = (size_t)shard_of(d, s->buckets.elements) * sizeof(float);
    d->m = d->dev->arena(d->dev->self, bytes);
    d->v = d->dev->arena(d->dev->self, bytes);
    d->reduced = sharded ? d->dev->arena(d->dev->self, bytes) : s->g;
    d->tensor_sum = d->dev->arena(d->dev->self, (size_t)s->buckets.shared * sizeof(float));
    cut_spans(d);
    d->spans = TD_NEW(d->a, td_mimo_span, d->n_spans);
    d->origins = TD_NEW(d->a, td_state_span, d->n_spans);
    if (d->m == NULL || d->v == NULL || d->reduced == NULL || d->tensor_sum == NULL ||
        d->spans == NULL || d->origins == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for optimizer state", (int)d->rank));
    cut_spans(d);
done:
    return st;
}

/* Gradients that tensor ranks hold parts of go into one buffer and come back summed; see
 * td_buckets.shared. */
static void tensor_sum(td_driver *d, bool into)
{
    int64_t at = 0;
    const td_stage_run *s = &d->stage;
    for (int32_t i = 0; i < s->tensors.n; i++) {
        const td_tensor *t = &s->tensors.all[i];
        const int64_t shared = td_param_shared(&s->stage, &t->param);
        const int64_t own =
            at +
            (t->param.shard == TD_SHARD_KV ? s->tp_rank / t->param.copies * t->param.local : 0);
        for (int32_t k = 0; shared > 0 && k < d->n_spans; k++)
            if (d->origins[k].tensor == t) {
                float *there = d->tensor_sum + own + d->origins[k].first,
                      *here = (float *)d->spans[k].grad;
                d->dev->kernels->copy(d->dev->self, into ? here : there, into ? there : here,
                                      d->spans[k].n * (int64_t)sizeof(float));
            }
        at += shared;
    }
}

/* ---- ops ---- */

static td_status reduce(td_driver *d, int32_t op, int32_t chan, td_coll coll, td_reduction how,
                        const void *in, void *out, int64_t count, td_type type)
{
    const td_collective_call call = {
        .coll = coll, .reduction = how, .in = in, .out = out, .count = count, .type = type};
    return d->dev->collective(d->dev->self, op, chan, &call, d->err);
}

/* First element of a bucket in the flat arrays, and of this rank's shard of it in the reduced ones.
 */
static void bucket_place(const td_driver *d, int32_t bucket, int64_t *first, int64_t *state)
{
    *first = *state = 0;
    for (int32_t b = 0; b < bucket; b++) {
        *first += d->stage.buckets.buckets[b].elements;
        *state += shard_of(d, d->stage.buckets.buckets[b].elements);
    }
}

static td_status run_bucket(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    int64_t first, state;
    bucket_place(d, op->bucket, &first, &state);
    const int64_t n = d->stage.buckets.buckets[op->bucket].elements;
    float *g = d->stage.g + first;
    if (op->kind == TD_OP_GRAD_REDUCE_SCATTER)
        return reduce(d, i, op->chan, TD_COLL_REDUCE_SCATTER, TD_REDUCE_SUM, g, d->reduced + state,
                      n, TD_TYPE_F32);
    if (op->kind == TD_OP_GRAD_ALL_REDUCE)
        return reduce(d, i, op->chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM, g, g, n, TD_TYPE_F32);
    char *w = (char *)d->stage.w + (size_t)first * d->stage.e;
    return reduce(d, i, op->chan, TD_COLL_ALL_GATHER, TD_REDUCE_SUM,
                  w + (size_t)(d->shard * shard_of(d, n)) * d->stage.e, w, n, TD_TYPE_ACT);
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
    double now = d->parts == NULL ? 0 : d->dev->now(d->dev->self);
    (void)err;
    if (d->parts != NULL && n_done > 0)
        d->parts[n_done - 1].end = now;
    for (int32_t i = d->running + 1; i < s->n_ops && s->ops[i].lane == TD_LANE_DP; i++) {
        const td_dep *dep = &s->deps[s->ops[i].dep_first];
        if (d->issued[i])
            continue;
        if (s->ops[i].n_deps != 1 || dep->op != d->running || dep->after_part < 0 ||
            dep->after_part > n_done)
            break;
        TD_TRY(st, issue(d, i));
        td_watch_op(d->watch, d->running, &s->ops[d->running]);
        now = d->parts == NULL ? 0 : d->dev->now(d->dev->self);
    }
    if (d->parts != NULL && n_done < d->p->works[s->ops[d->running].work].n_flat)
        d->parts[n_done].start = now;
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

static td_status run_forward(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    const td_op *op = &d->stream->ops[i];
    TD_TRY(st,
           wait_for_sends(d, 0, op->mb - d->stage.n_slots)); /* their buffers are written again */
    TD_TRY(st, td_stage_feed(&d->stage, d->step, op->mb, d->err));
    d->running = i;
    TD_TRY(st, td_stage_pass(&d->stage, op->work, op->mb, false, part_done, d, d->err));
done:
    return st;
}

static td_status run_backward(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    const td_op *op = &d->stream->ops[i];
    TD_TRY(st, wait_for_sends(d, 1, op->mb - 2));
    d->running = i;
    TD_TRY(st, td_stage_pass(&d->stage, op->work, op->mb, true, part_done, d, d->err));
done:
    return st;
}

static td_status run_zero(td_driver *d, int32_t i)
{
    (void)i;
    d->dev->kernels->zero(d->dev->self, d->stage.g,
                          d->stage.buckets.elements * (int64_t)sizeof(float));
    return TD_OK;
}

static td_status run_tensor_sum(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    const int64_t n = d->stage.buckets.shared;
    d->dev->kernels->zero(d->dev->self, d->tensor_sum, n * (int64_t)sizeof(float));
    tensor_sum(d, true);
    TD_TRY(st, reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM,
                      d->tensor_sum, d->tensor_sum, n, TD_TYPE_F32));
    TD_TRY(st, d->dev->wait(d->dev->self, i, d->err));
    tensor_sum(d, false);
done:
    return st;
}

static td_status run_tokens(td_driver *d, int32_t i)
{
    const bool counts = !d->idle && d->stage.stage.module->type->language && d->stage.stage.last &&
                        d->stage.tp_rank == 0;
    d->tokens[0] = counts ? d->stage.loss[0] : 0;
    d->tokens[1] = counts ? d->stage.loss[1] : 0;
    return reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM, d->tokens,
                  d->tokens, 2, TD_TYPE_F64);
}

static td_status run_stats(td_driver *d, int32_t i)
{
    (void)i;
    td_mimo_stats(d->dev->kernels, d->dev->self, d->spans, d->n_spans, d->stats);
    return TD_OK;
}

static td_status run_found_inf(td_driver *d, int32_t i)
{
    d->flag = d->stats[1] > 0 ? 1 : 0;
    return reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_MAX, &d->flag,
                  &d->flag, 1, TD_TYPE_F32);
}

static td_status run_module_norm(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    d->square = d->stats[0];
    TD_TRY(st, reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_SUM, &d->square,
                      &d->square, 1, TD_TYPE_F64));
    TD_TRY(st, d->dev->wait(d->dev->self, i, d->err)); /* the next op on the lane reads it */
done:
    return st;
}

static td_status run_global_norm(td_driver *d, int32_t i)
{
    td_mimo_vector(&d->config, d->idle ? -1 : d->stage.module, d->square, d->norms);
    return reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_MAX, d->norms,
                  d->norms, d->config.n_modules, TD_TYPE_F64);
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
    d->decision = td_mimo_decide(&d->config, d->norms, d->flag > 0,
                                 td_mimo_token_scale((int64_t)d->tokens[1], 1, 1));
done:
    return st;
}

static td_status run_adam(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    (void)i;
    TD_TRY(st, decide(d));
    td_mimo_adam(d->dev->kernels, d->dev->self, &d->config, &d->decision, d->spans, d->n_spans,
                 &d->n_updates);
done:
    return st;
}

static td_status run_cast(td_driver *d, int32_t i)
{
    (void)i;
    return td_fail(d->err, TD_RUN, "device `%s` trains in fp32 only, and the plan says bf16",
                   d->dev->name);
}

static td_status run_success(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    TD_TRY(st, decide(d));
    d->success = d->decision.update;
    TD_TRY(st, reduce(d, i, d->stream->ops[i].chan, TD_COLL_ALL_REDUCE, TD_REDUCE_MIN, &d->success,
                      &d->success, 1, TD_TYPE_I32));
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

/* Outside the stage's passes several parts (one a bucket) run as one: they have no times of their
 * own. */
static void advance_parts(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    const int64_t n = d->p->works[op->work].n_flat;
    if (op->kind != TD_OP_FORWARD && op->kind != TD_OP_BACKWARD && n == 1)
        *d->parts = d->times[i];
    d->parts += n;
}

/* ---- faults on purpose ---- */

/* Gradients are added to what zeroing left, and a NaN stays in every sum. */
static void spoil_gradient(td_driver *d)
{
    const td_tensors *t = &d->stage.tensors;
    const float nan = NAN;
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
    for (uint32_t k = op->dep_first; k < op->dep_first + op->n_deps; k++)
        TD_TRY(st, wait_watched(d, d->stream->deps[k].op));
    inject_before(d, i);
    const double start = d->dev->now(d->dev->self);
    if (d->times != NULL)
        d->times[i].start = start;
    TD_TRY(st, run_op[op->kind](d, i));
    inject_after(d, i, start);
    if (d->times != NULL)
        d->times[i].end = d->dev->now(d->dev->self);
    if (d->parts != NULL && op->work >= 0)
        advance_parts(d, i);
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

td_status td_driver_step(td_driver *d, int64_t step, td_step_result *result, td_op_time *times,
                         td_op_time *parts, td_err *err)
{
    td_status st = TD_OK;
    d->times = times;
    d->parts = times == NULL ? NULL : parts;
    d->step = step;
    d->err = err;
    d->n_begun++;
    td_watch_step(d->watch, step);
    d->waited[0] = d->waited[1] = 0;
    d->stats[0] = d->stats[1] = d->square = 0;
    d->stage.loss[0] = d->stage.loss[1] = 0;
    memset(d->issued, 0, (size_t)d->stream->n_ops * sizeof *d->issued);
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (!d->issued[i])
            TD_TRY(st, issue(d, i));
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        TD_TRY(st, wait_watched(d, i));
    const double end = d->dev->now(d->dev->self);
    result->loss = d->tokens[1] > 0 ? d->tokens[0] / d->tokens[1] : 0;
    result->grad_norm = d->decision.norm;
    result->clip_coefficient = d->decision.clip_coefficient;
    memcpy(result->module_norms, d->decision.module_norms,
           (size_t)d->config.n_modules * sizeof(double));
    result->success = d->success != 0;
    result->step_s = end - d->last_end;
    d->last_end = end;
done:
    return st;
}

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
                     .config = td_mimo_config_of(p->plan),
                     .shards = 1};
    d->idle = d->stream->module < 0;
    d->payloads = TD_NEW(a, payload, d->stream->n_ops);
    d->shapes = td_arena_alloc(a, (size_t)d->stream->n_ops, sizeof *d->shapes);
    d->issued = TD_NEW(a, bool, d->stream->n_ops);
    d->norms = TD_NEW(a, double, p->plan->n_modules);
    if (d->payloads == NULL || d->shapes == NULL || d->issued == NULL || d->norms == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)rank));
    TD_TRY(st, td_pipeline_of_plan(a, p->plan, &d->pipe, err));
    if (!d->idle) {
        TD_TRY(st, td_stage_open(a, p, &d->pipe, rank, device, &d->stage, err));
        TD_TRY(st, open_state(d, err));
        for (int32_t i = 0; i < d->stream->n_ops; i++)
            if (d->stream->ops[i].kind == TD_OP_SEND || d->stream->ops[i].kind == TD_OP_RECV ||
                d->stream->ops[i].kind == TD_OP_BROADCAST)
                find_payload(d, i);
    }
    TD_TRY(st, list_sends(d, err));
    d->last_end = device->now(device->self);
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
    if (inject->nan_step >= 0 && (d->idle || d->stage.buckets.elements == 0))
        return td_fail(err, TD_USAGE, "--inject: rank %d trains nothing, so no gradient can be NaN",
                       (int)d->rank);
    return TD_OK;
}

void td_driver_close(td_driver *d)
{
    if (d != NULL)
        td_stage_close(&d->stage);
}

td_run_state td_driver_state(td_driver *d)
{
    return (td_run_state){.tensors = d->stage.tensors,
                          .w = d->stage.w,
                          .n_spans = d->n_spans,
                          .spans = d->origins,
                          .sharded = d->shards > 1,
                          .lane = d->stage.dp_rank,
                          .n_updates = &d->n_updates};
}

void td_driver_resume(td_driver *d)
{
    d->last_end = d->dev->now(d->dev->self);
}

void td_driver_checksums(const td_driver *d,
                         void (*visit)(void *self, const char *name, const double sums[2]),
                         void *self)
{
    const td_tensors *t = &d->stage.tensors;
    for (int32_t i = 0; !d->idle && i < t->n; i++) {
        double sums[2] = {0};
        if (strcmp(t->all[i].param.name, "k.bias") ==
            0) /* softmax does not see it: its gradient is rounding noise */
            continue;
        if (t->all[i].counts && d->stage.dp_rank == 0)
            td_tensor_checksum(&t->all[i], d->p->plan->seed, d->stage.w, t->all[i].offset,
                               t->all[i].param.local, sums);
        visit(self, t->all[i].name, sums);
    }
}
