/* The ops of one role: the schedule's calls turned into transfers on lanes, then the MimoOptimizer
 * step. */
#include "model/lower.h"

#include <string.h>

const td_step_item td_peer_calls[4] = {
    {.kind = TD_STEP_COMM, .call = TD_CALL_SEND_FORWARD, .mb = -1, .send_mb = 0, .recv_mb = -1},
    {.kind = TD_STEP_COMM, .call = TD_CALL_SEND_BACKWARD, .mb = -1, .send_mb = 0, .recv_mb = -1},
    {.kind = TD_STEP_COMM, .call = TD_CALL_RECV_FORWARD, .mb = -1, .send_mb = -1, .recv_mb = 0},
    {.kind = TD_STEP_COMM, .call = TD_CALL_RECV_BACKWARD, .mb = -1, .send_mb = -1, .recv_mb = 0},
};

/* Transfer buffers a direction: the memory model counts as many. */
enum { N_BUFFERS = 2 };

typedef struct {
    int32_t *ops;
    int32_t n, cap;
} op_list;

typedef struct {
    td_arena *a;
    const td_plan *plan;
    const td_pipeline *pipe;
    const td_stage_works *works;
    td_stage stage;
    td_stage_payload payload;
    int32_t rank;
    td_err *err;
    struct slot {
        bool sends, gradient;
        int32_t edge, peer;
    } * slots;
    int32_t n_slots;               /* pairs; the groups follow */
    int32_t slot_after[2];         /* the last receive's and the last send's: the next is likely */
    int32_t tp, dp, module, world; /* channels, -1: none */
    td_op *ops;
    int64_t n_ops, cap_ops;
    td_dep *deps;
    int64_t n_deps, cap_deps;
    uint32_t call;
    int32_t *forward_of, *backward_of; /* [microbatches] op index, -1 before */
    int32_t *sent[2];     /* [microbatches] last payload sent forward and backward, -1 before */
    int32_t last_compute; /* last op of the compute lane, -1 before */
    op_list arriving[2];  /* ops that the next forward / backward waits for */
    td_move_list moves;
    bool failed;
} emitter;

/* ---- small pieces ---- */

static void *more(emitter *x, void *old, int64_t n, int64_t *cap, size_t size)
{
    if (n < *cap)
        return old;
    const int64_t want = *cap == 0 ? 256 : 2 * *cap;
    void *p = x->failed ? NULL : td_arena_alloc(x->a, (size_t)want, size);
    if (p == NULL) {
        x->failed = true;
        return NULL;
    }
    if (n > 0)
        memcpy(p, old, (size_t)n * size);
    *cap = want;
    return p;
}

static void push(emitter *x, op_list *l, int32_t op)
{
    int64_t cap = l->cap;
    int32_t *ops = more(x, l->ops, l->n, &cap, sizeof *ops);
    if (ops == NULL)
        return;
    l->ops = ops;
    l->cap = (int32_t)cap;
    l->ops[l->n++] = op;
}

/* Adds an op; its dependencies are those that depend() adds before the next op. Returns its index.
 */
static int32_t put(emitter *x, td_op_kind kind, td_lane lane, int32_t mb, int32_t chan,
                   int32_t work, uint64_t bytes)
{
    td_op *ops = more(x, x->ops, x->n_ops, &x->cap_ops, sizeof *ops);
    if (ops == NULL)
        return 0;
    x->ops = ops;
    x->ops[x->n_ops] = (td_op){
        .kind = (uint8_t)kind,
        .lane = (uint8_t)lane,
        .module = (int16_t)(x->works == NULL ? -1 : (int32_t)(x->stage.module - x->plan->modules)),
        .mb = mb,
        .chan = chan,
        .work = work,
        .dep_first = (uint32_t)x->n_deps,
        .call = x->call,
        .bytes = bytes};
    if (lane == TD_LANE_COMPUTE)
        x->last_compute = (int32_t)x->n_ops;
    return (int32_t)x->n_ops++;
}

/* Of an op that the last op does not depend on yet. */
static void depend_anew(emitter *x, int32_t op, int64_t after_part)
{
    td_dep *deps = more(x, x->deps, x->n_deps, &x->cap_deps, sizeof *deps);
    if (deps == NULL)
        return;
    x->deps = deps;
    x->deps[x->n_deps++] = (td_dep){.op = op, .after_part = (int32_t)after_part};
    x->ops[x->n_ops - 1].n_deps++;
}

static void depend_on_part(emitter *x, int32_t op, int64_t after_part)
{
    if (op < 0 || x->failed)
        return;
    const td_op *last = &x->ops[x->n_ops - 1];
    for (uint32_t i = 0; i < last->n_deps; i++)
        if (x->deps[last->dep_first + i].op == op)
            return;
    depend_anew(x, op, after_part);
}

static void depend(emitter *x, int32_t op)
{
    depend_on_part(x, op, -1);
}

static void depend_all(emitter *x, const op_list *l)
{
    for (int32_t i = 0; i < l->n; i++) /* an op arrives once */
        depend_anew(x, l->ops[i], -1);
}

/* ---- the pipeline ---- */

static int32_t slot_of(emitter *x, const td_move *mv)
{
    const bool sends = mv->kind == TD_MOVE_SEND;
    int32_t found = -1;
    for (int32_t i = 0; i < x->n_slots && found < 0; i++) {
        const int32_t k = (x->slot_after[sends] + i) % x->n_slots;
        if (x->slots[k].sends == sends && x->slots[k].gradient == mv->gradient &&
            x->slots[k].edge == mv->edge && x->slots[k].peer == mv->peer)
            found = k;
    }
    x->slot_after[sends] = found + 1;
    return found;
}

/* One message of a bridge: a source lane's output, or its share where lanes fan out. */
static uint64_t message_bytes(const emitter *x, const td_move *mv)
{
    if (mv->edge < 0)
        return mv->gradient == (mv->kind == TD_MOVE_SEND) ? x->payload.input : x->payload.output;
    const int32_t src = x->pipe->edges[mv->edge].src;
    const td_stage s = td_stage_of(x->plan, src, x->plan->modules[src].pp - 1);
    return td_stage_payload_of(&s).output / (uint64_t)x->pipe->bridges[mv->edge].parts_per_src;
}

static void transfers(emitter *x, const td_step_item *item, int32_t from, int32_t to)
{
    const td_move *moves = x->moves.moves;
    const int64_t first = x->n_ops;
    op_list *arriving = NULL;
    int32_t received = -1; /* a broadcast follows the receives of its group */
    for (int32_t shape = x->plan->step.shape_exchange ? 1 : 0; shape >= 0; shape--)
        for (int32_t i = from; i < to; i++) {
            const td_move *mv = &moves[i];
            const bool sends = mv->kind == TD_MOVE_SEND;
            if (mv->kind == TD_MOVE_BROADCAST)
                continue;
            const td_op_kind kind = sends ? (shape ? TD_OP_SEND_SHAPE : TD_OP_SEND)
                                          : (shape ? TD_OP_RECV_SHAPE : TD_OP_RECV);
            /* int64 extents: three inside a module, rows and width on a bridge */
            put(x, kind, mv->gradient ? TD_LANE_BWD : TD_LANE_FWD, mv->mb, slot_of(x, mv), -1,
                shape ? (mv->edge < 0 ? 24 : 16) : message_bytes(x, mv));
            const int32_t *done = mv->gradient ? x->backward_of : x->forward_of;
            if (sends)
                depend(x, done[mv->mb]);
            else if (!shape && mv->mb >= N_BUFFERS) /* whoever reads the buffer before */
                depend(x, done[mv->mb - N_BUFFERS]);
            if (sends && !shape && !x->failed)
                x->sent[mv->gradient][mv->mb] = (int32_t)x->n_ops - 1;
        }
    for (int32_t i = from; i < to; i++) {
        const td_move *mv = &moves[i];
        if (mv->kind != TD_MOVE_BROADCAST || mv->n_group == 1)
            continue;
        const td_bridge *b = &x->pipe->bridges[mv->edge];
        const uint64_t parts = (uint64_t)(mv->gradient ? b->parts_per_src : b->parts_per_dst);
        received = (int32_t)x->n_ops;
        put(x, TD_OP_BROADCAST, TD_LANE_TP, mv->mb, x->tp, -1, parts * message_bytes(x, mv));
        depend(x, x->last_compute); /* its collectives use the same communicator */
        for (int64_t k = first; k < received; k++)
            if (x->ops[k].kind == TD_OP_RECV)
                depend_anew(x, (int32_t)k, -1);
    }
    /* The call is one group: what it delivers is there when all of it has ended. */
    if (item->recv_mb >= 0)
        arriving = &x->arriving[item->call == TD_CALL_RECV_BACKWARD ||
                                item->call == TD_CALL_SEND_FORWARD_RECV_BACKWARD];
    for (int64_t k = first; arriving != NULL && k < x->n_ops; k++)
        if (x->ops[k].kind == TD_OP_SEND || x->ops[k].kind == TD_OP_RECV ||
            x->ops[k].kind == TD_OP_BROADCAST)
            push(x, arriving, (int32_t)k);
}

static void communicate(emitter *x, const td_position *at, const td_step_item *item)
{
    if (td_pipeline_moves(x->pipe, x->a, at, x->rank, item, &x->moves, x->err) != TD_OK) {
        x->failed = true;
        return;
    }
    for (int32_t from = 0, to; from < x->moves.n && !x->failed; from = to) {
        for (to = from + 1; to < x->moves.n && x->moves.moves[to].edge == x->moves.moves[from].edge;
             to++)
            ;
        transfers(x, item, from, to);
    }
}

static void compute(emitter *x, td_op_kind kind, int32_t mb, int32_t work, op_list *arriving)
{
    const int32_t op = put(x, kind, TD_LANE_COMPUTE, mb, -1, work, 0);
    depend_all(x, arriving);
    if (mb >= N_BUFFERS && x->sent[kind == TD_OP_BACKWARD][mb - N_BUFFERS] >= 0)
        depend(x,
               x->sent[kind == TD_OP_BACKWARD][mb - N_BUFFERS]); /* its buffer is written again */
    arriving->n = 0;
    (kind == TD_OP_FORWARD ? x->forward_of : x->backward_of)[mb] = op;
}

/* ---- gradients and the optimizer ---- */

static bool trains(const emitter *x)
{
    return x->works != NULL && x->works->buckets.elements > 0;
}

static bool overlaps(const emitter *x)
{
    const bool first_only = x->plan->step.bucket_policy == TD_BUCKETS_REFERENCE;
    return x->plan->step.grad_overlap && (!first_only || x->stage.pp_rank == 0);
}

static uint16_t bucket_number(int32_t i)
{
    return (uint16_t)(i < UINT16_MAX ? i : UINT16_MAX); /* a label only */
}

/* Returns the last reduction; the others end before it, being on the same lane. */
static int32_t reduce_buckets(emitter *x)
{
    int32_t op = -1;
    const td_op_kind kind =
        x->plan->optimizer.sharded ? TD_OP_GRAD_REDUCE_SCATTER : TD_OP_GRAD_ALL_REDUCE;
    const int32_t last = x->backward_of[x->plan->step.microbatches - 1];
    for (int32_t i = 0; i < x->works->buckets.n; i++) {
        const td_bucket *b = &x->works->buckets.buckets[i];
        op = put(x, kind, TD_LANE_DP, -1, x->dp, -1, 4 * (uint64_t)b->elements);
        depend_on_part(x, last, overlaps(x) ? b->after_part : -1);
        if (!x->failed)
            x->ops[op].bucket = bucket_number(i);
    }
    return op;
}

/*
 * MimoOptimizer.step over all modules: shared token count, found-inf MAX, squared norm per module,
 * one vector MAX, clip and Adam on the shard, parameters gathered, success MIN. Ranks with nothing
 * to train take part in what spans the world.
 */
static void optimizer(emitter *x, int32_t reduced)
{
    const int32_t m = x->plan->step.microbatches;
    const uint64_t e = x->plan->precision == TD_BF16 ? 2 : 4;
    int32_t stats = -1, norm = -1, step = -1, gathered = -1;
    if (trains(x) && x->tp >= 0 && x->works->buckets.shared > 0) {
        const int32_t op = put(x, TD_OP_TP_GRAD_ALL_REDUCE, TD_LANE_TP, -1, x->tp, -1,
                               4 * (uint64_t)x->works->buckets.shared);
        depend(x, x->last_compute);
        depend(x, reduced);
        reduced = op;
    }
    put(x, TD_OP_TOKEN_COUNT, TD_LANE_CTRL, -1, x->world, -1, 16); /* with the sum of losses */
    if (x->works != NULL)
        depend(x, x->backward_of[m - 1] >= 0 ? x->backward_of[m - 1] : x->forward_of[m - 1]);
    if (trains(x)) {
        stats = put(x, TD_OP_GRAD_STATS, TD_LANE_COMPUTE, -1, -1, x->works->stats, 0);
        depend(x, reduced);
    }
    put(x, TD_OP_FOUND_INF, TD_LANE_CTRL, -1, x->world, -1, 4);
    depend(x, stats);
    if (trains(x) || (x->module >= 0 && x->stage.module->frozen == TD_FROZEN_BACKBONE)) {
        put(x, TD_OP_MODULE_NORM, TD_LANE_CTRL, -1, x->module, -1, 8);
        depend(x, stats);
    }
    norm =
        put(x, TD_OP_GLOBAL_NORM, TD_LANE_CTRL, -1, x->world, -1, 8 * (uint64_t)x->plan->n_modules);
    depend(x, stats);
    if (trains(x)) {
        step = put(x, TD_OP_ADAM, TD_LANE_COMPUTE, -1, -1, x->works->adam, 0);
        depend(x, norm);
        if (x->plan->precision == TD_BF16)
            step = put(x, TD_OP_CAST, TD_LANE_COMPUTE, -1, -1, x->works->cast, 0);
    }
    for (int32_t i = 0;
         trains(x) && x->dp >= 0 && x->plan->optimizer.sharded && i < x->works->buckets.n; i++) {
        gathered = put(x, TD_OP_PARAM_ALL_GATHER, TD_LANE_DP, -1, x->dp, -1,
                       e * (uint64_t)x->works->buckets.buckets[i].elements);
        depend_on_part(x, step, i + 1); /* bucket by bucket, as they are updated */
        if (!x->failed)
            x->ops[gathered].bucket = bucket_number(i);
    }
    put(x, TD_OP_SUCCESS, TD_LANE_CTRL, -1, x->world, -1, 4);
    depend(x, step);
    depend(x, x->last_compute);
    depend(x, gathered);
}

/* ---- one role ---- */

static td_status find_channels(emitter *x, const td_position *at, const td_stream *out)
{
    td_status st = TD_OK;
    int32_t next;
    x->slots = TD_NEW(x->a, struct slot, out->n_chans);
    if (x->slots == NULL)
        TD_TRY(st,
               td_fail(x->err, TD_NOMEM, "no memory for the channels of rank %d", (int)x->rank));
    for (int32_t c = 0; c < 4 && at->n_modules > 0; c++) {
        TD_TRY(st,
               td_pipeline_moves(x->pipe, x->a, at, x->rank, &td_peer_calls[c], &x->moves, x->err));
        for (int32_t i = 0; i < x->moves.n; i++) {
            const td_move *mv = &x->moves.moves[i];
            if (mv->kind != TD_MOVE_BROADCAST)
                x->slots[x->n_slots++] = (struct slot){.sends = mv->kind == TD_MOVE_SEND,
                                                       .gradient = mv->gradient,
                                                       .edge = mv->edge,
                                                       .peer = mv->peer};
        }
    }
    next = x->n_slots;
    x->tp = at->n_modules > 0 && x->stage.module->tp > 1 ? next++ : -1;
    x->dp = at->n_modules > 0 && x->stage.module->dp > 1 ? next++ : -1;
    x->module = at->n_modules > 0 ? next++ : -1;
    x->world = next;
done:
    return st;
}

static void walk(emitter *x, const td_position *at, const td_step_list *list)
{
    const int32_t m = x->plan->step.microbatches;
    int32_t reduced = -1;
    x->call = 0;
    if (trains(x))
        put(x, TD_OP_ZERO_GRADS, TD_LANE_COMPUTE, -1, -1, x->works->zero, 0);
    for (int32_t i = 0; i < list->n && !x->failed; i++) {
        const td_step_item *item = &list->items[i];
        x->call = (uint32_t)i + 1;
        if (item->kind == TD_STEP_COMM)
            communicate(x, at, item);
        if (item->kind == TD_STEP_FORWARD)
            compute(x, TD_OP_FORWARD, item->mb, x->works->forward, &x->arriving[0]);
        if (item->kind == TD_STEP_BACKWARD && x->stage.backward)
            compute(x, TD_OP_BACKWARD, item->mb, x->works->backward, &x->arriving[1]);
        if (item->kind == TD_STEP_BACKWARD && !x->stage.backward)
            x->arriving[1].n = 0;
        if (item->kind == TD_STEP_BACKWARD && item->mb == m - 1 && trains(x) && x->dp >= 0 &&
            overlaps(x))
            reduced = reduce_buckets(x);
    }
    x->call = (uint32_t)list->n + 1;
    if (trains(x) && x->dp >= 0 && !overlaps(x))
        reduced = reduce_buckets(x);
    optimizer(x, reduced);
}

td_status td_lower_stream(td_arena *a, const td_plan *plan, const td_pipeline *pipe, int32_t rank,
                          const td_stage_works *works, td_stream *out, td_err *err)
{
    td_status st = TD_OK;
    const int32_t m = plan->step.microbatches;
    const td_position at = td_pipeline_position(pipe, rank);
    emitter x = {.a = a,
                 .plan = plan,
                 .pipe = pipe,
                 .works = works,
                 .rank = rank,
                 .err = err,
                 .last_compute = -1};
    td_step_list list = {0};
    x.forward_of = TD_NEW(a, int32_t, m);
    x.backward_of = TD_NEW(a, int32_t, m);
    x.sent[0] = TD_NEW(a, int32_t, m);
    x.sent[1] = TD_NEW(a, int32_t, m);
    if (x.forward_of == NULL || x.backward_of == NULL || x.sent[0] == NULL || x.sent[1] == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d microbatches", (int)m));
    memset(x.forward_of, -1, (size_t)m * sizeof(int32_t));
    memset(x.backward_of, -1, (size_t)m * sizeof(int32_t));
    memset(x.sent[0], -1, (size_t)m * sizeof(int32_t));
    memset(x.sent[1], -1, (size_t)m * sizeof(int32_t));
    if (at.n_modules > 0) {
        const td_schedule_input in = td_pipeline_schedule_input(pipe, &at, m);
        x.stage = td_stage_of(plan, at.module[0], at.pp_rank[0]);
        x.payload = td_stage_payload_of(&x.stage);
        TD_TRY(st, td_schedule_find(plan->step.schedule)->emit(a, &in, &list, err));
    }
    TD_TRY(st, find_channels(&x, &at, out));
    walk(&x, &at, &list);
    if (x.failed)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the ops of rank %d", (int)rank));
    out->ops = x.ops;
    out->n_ops = (int32_t)x.n_ops;
    out->deps = x.deps;
    out->n_deps = (uint32_t)x.n_deps;
done:
    return st;
}
