/* What every kind of op does on a device. */
#include "exec/driver_ops.h"

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

void td_driver_find_payload(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    const td_comm *c = &d->p->comms[d->p->ranks[d->rank].chans[op->chan].comm];
    td_payload *at = &d->payloads[i];
    *at = (td_payload){.edge = -1, .gradient = op->lane == TD_LANE_BWD};
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
void *td_driver_buffer(const td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    const td_payload *at = &d->payloads[i];
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
    void *buffer = td_driver_buffer(d, i);
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
        return d->dev->transfer(d->dev->self, i, op->chan, sends, td_driver_buffer(d, i), op->bytes,
                                d->err);
    if (sends) {
        d->shapes[i][0] = d->stage.t;
        d->shapes[i][1] = d->stage.h;
        d->shapes[i][2] = 1;
    }
    return d->dev->transfer(d->dev->self, i, op->chan, sends, d->shapes[i], op->bytes, d->err);
}

/* Ops that may start in the middle of the running one do so as soon as their part is done. */
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
        TD_TRY(st, td_driver_issue(d, i));
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

int32_t td_driver_key(const td_driver *d, const td_op *op)
{
    return 2 * (op->mb % d->period) + (op->kind == TD_OP_BACKWARD);
}

/* A pass: as it was recorded, or part by part where something waits for a part. */
static td_status run_pass(td_driver *d, int32_t i)
{
    const td_op *op = &d->stream->ops[i];
    d->running = i;
    if (d->plays[i])
        return d->dev->play(d->dev->self, td_driver_key(d, op), d->stamped ? d->first_stamp[i] : -1,
                            d->err);
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

td_status (*const td_driver_run[TD_N_OPS])(td_driver *d, int32_t i) = {
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
