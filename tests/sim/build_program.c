/* Writes programs as lowering would, but from a handful of numbers. */
#include "tests/sim/build_program.h"

#include <stdlib.h>
#include <string.h>

/* Behind td_prices.self. */
typedef struct {
    const td_program *p;
    int32_t n_kinds;
    int32_t *kind_of;   /* [world] */
    td_work_cost *work; /* [kind][n_works] */
    td_op_cost transfer, shape, reduce, world;
    const td_op_cost *by_hand; /* indexed by td_op.bytes */
} price_book;

static void *take(td_arena *a, size_t n, size_t size)
{
    void *p = td_arena_alloc(a, n, size);
    if (p == NULL)
        abort();
    return p;
}
#define TAKE(a, type, n) ((type *)take((a), (size_t)(n), sizeof(type)))

static const td_work_cost *price_work(const void *self, int32_t rank, int32_t work)
{
    const price_book *b = self;
    return &b->work[b->kind_of[rank] * b->p->n_works + work];
}

static double price_until(const void *self, int32_t rank, int32_t work, int64_t after_part)
{
    return price_work(self, rank, work)->total_s * (double)after_part / BUILT_PARTS;
}

static const td_op_cost *price_op(const void *self, int32_t rank, const td_op *op)
{
    const price_book *b = self;
    (void)rank;
    if (b->by_hand != NULL)
        return &b->by_hand[op->bytes];
    switch (op->lane) {
    case TD_LANE_DP:
        return &b->reduce;
    case TD_LANE_CTRL:
        return &b->world;
    default:
        return op->kind == TD_OP_SEND_SHAPE || op->kind == TD_OP_RECV_SHAPE ? &b->shape
                                                                            : &b->transfer;
    }
}

static td_work_cost work_cost(double s)
{
    return (td_work_cost){.compute_s = s, .gemm_s = s / 2, .total_s = s};
}

td_op_cost flow_cost(double alpha_s, uint64_t bytes, double rate)
{
    return (td_op_cost){.lone = {.alpha_s = alpha_s, .total_s = alpha_s + (double)bytes / rate},
                        .edge_bytes = bytes,
                        .rate = rate,
                        .overlap = {.transfer = 1, .compute = 1}};
}

const td_topology *build_topology(td_arena *a, int32_t world, int32_t gpus, int32_t nics,
                                  double oversubscription)
{
    td_node_group *g = TAKE(a, td_node_group, 1);
    td_cluster *c = TAKE(a, td_cluster, 1);
    td_topology *t = NULL;
    *g = (td_node_group){.count = (world + gpus - 1) / gpus,
                         .gpus = gpus,
                         .nics = nics,
                         .nvlink_bytes_per_s = 50e9,
                         .nvlink_latency_s = 1e-6,
                         .nic_bytes_per_s = 50e9,
                         .nic_latency_s = 2e-6};
    *c = (td_cluster){.file = "test",
                      .name = "",
                      .n_groups = 1,
                      .groups = g,
                      .fabric = {.kind = g->count > 1 ? TD_FABRIC_FAT_TREE : TD_FABRIC_SINGLE,
                                 .oversubscription = oversubscription,
                                 .latency_s = 1e-6},
                      .n_nodes = g->count,
                      .n_gpus = (int64_t)g->count * gpus};
    if (td_topology_build(a, c, world, &t, NULL) != TD_OK)
        abort();
    return t;
}

/* ---- 1F1B ---- */

typedef struct {
    td_op *ops;
    td_dep *deps;
    int32_t n, n_deps;
    int32_t last_compute;
} pen;

static int32_t put(pen *w, td_op_kind kind, td_lane lane, int32_t mb, int32_t chan, int32_t work)
{
    w->ops[w->n] = (td_op){.kind = (uint8_t)kind,
                           .lane = (uint8_t)lane,
                           .mb = mb,
                           .chan = chan,
                           .work = work,
                           .dep_first = (uint32_t)w->n_deps,
                           .bytes = chan < 0 ? 0 : 1};
    return w->n++;
}

/* For the op that was put last. */
static void wait_for(pen *w, int32_t op, int32_t after_part)
{
    w->deps[w->n_deps++] = (td_dep){.op = op, .after_part = after_part};
    w->ops[w->n - 1].n_deps++;
}

/* Channels of every stage; a stage that has no neighbour there does not use the channel. */
enum { FROM_PREV, TO_NEXT, FROM_NEXT, TO_PREV, REDUCE, WORLD, N_CHANS };

static void pass(pen *w, const built_pipeline *o, int32_t stage, int32_t mb, bool forward)
{
    const int from = forward ? FROM_PREV : FROM_NEXT, to = forward ? TO_NEXT : TO_PREV;
    const td_lane lane = forward ? TD_LANE_FWD : TD_LANE_BWD;
    const int32_t last = o->pp - 1;
    const bool receives = forward ? stage > 0 : stage < last,
               sends = forward ? stage < last : stage > 0;
    int32_t got = -1;
    if (receives && o->shapes)
        put(w, TD_OP_RECV_SHAPE, lane, mb, from, -1);
    if (receives)
        got = put(w, TD_OP_RECV, lane, mb, from, -1);
    w->last_compute = put(w, forward ? TD_OP_FORWARD : TD_OP_BACKWARD, TD_LANE_COMPUTE, mb, -1,
                          2 * stage + !forward);
    if (receives)
        wait_for(w, got, -1);
    if (sends && o->shapes)
        put(w, TD_OP_SEND_SHAPE, lane, mb, to, -1);
    if (sends) {
        put(w, TD_OP_SEND, lane, mb, to, -1);
        wait_for(w, w->last_compute, -1);
    }
}

static void write_stage(td_arena *a, const built_pipeline *o, int32_t stage, td_stream *out)
{
    const int32_t m = o->microbatches;
    const int32_t warm = o->pp - stage - 1 < m ? o->pp - stage - 1 : m;
    pen w = {.ops = TAKE(a, td_op, 10 * m + 2), .deps = TAKE(a, td_dep, 4 * m + 4)};
    for (int32_t i = 0; i < warm; i++)
        pass(&w, o, stage, i, true);
    for (int32_t i = 0; i < m - warm; i++) {
        pass(&w, o, stage, warm + i, true);
        pass(&w, o, stage, i, false);
    }
    for (int32_t i = m - warm; i < m; i++)
        pass(&w, o, stage, i, false);
    if (o->gradients) {
        const int32_t backward = w.last_compute;
        const int32_t reduce = put(&w, TD_OP_GRAD_REDUCE_SCATTER, TD_LANE_DP, -1, REDUCE, -1);
        wait_for(&w, backward, BUILT_PARTS / 2);
        put(&w, TD_OP_SUCCESS, TD_LANE_CTRL, -1, WORLD, -1);
        wait_for(&w, backward, -1);
        wait_for(&w, reduce, -1);
    }
    *out = (td_stream){.n_ops = w.n,
                       .n_deps = (uint32_t)w.n_deps,
                       .ops = w.ops,
                       .deps = w.deps,
                       .n_chans = N_CHANS,
                       .stage = stage,
                       .pp_rank = stage};
}

static double hashed(uint32_t x) /* in [0, 1) */
{
    x = (x + 0x9e3779b9u) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return (x >> 8) / 16777216.0;
}

static void write_comms(td_arena *a, const built_pipeline *o, td_program *p, td_rank *ranks)
{
    const int32_t column = o->tp * o->dp, world = column * o->pp;
    td_comm *comms = TAKE(a, td_comm, 2 * world + world + 1);
    td_chan *chans = TAKE(a, td_chan, N_CHANS * world);
    int32_t *all = TAKE(a, int32_t, world);
    int32_t n = 0;
    for (int32_t r = 0; r < world; r++) {
        all[r] = r;
        ranks[r] = (td_rank){.stream = r / column, .chans = chans + (ptrdiff_t)r * N_CHANS};
    }
    comms[n++] =
        (td_comm){.kind = TD_COMM_WORLD, .src = -1, .dst = -1, .n_ranks = world, .ranks = all};
    for (int32_t r = 0; r < world; r++)
        for (int32_t c = 0; c < N_CHANS; c++)
            chans[r * N_CHANS + c] = (td_chan){.comm = 0, .me = r}; /* unused ones as well */
    for (int32_t r = 0; r + column < world; r++)
        for (int way = 0; way < 2; way++) {
            int32_t *pair = TAKE(a, int32_t, 2);
            pair[way] = r;
            pair[1 - way] = r + column;
            chans[r * N_CHANS + (way == 0 ? TO_NEXT : FROM_NEXT)] = (td_chan){.comm = n, .me = way};
            chans[(r + column) * N_CHANS + (way == 0 ? FROM_PREV : TO_PREV)] =
                (td_chan){.comm = n, .me = 1 - way};
            comms[n++] = (td_comm){.kind = TD_COMM_PAIR, .n_ranks = 2, .ranks = pair};
        }
    for (int32_t s = 0; s < o->pp; s++)
        for (int32_t t = 0; t < o->tp; t++) {
            int32_t *group = TAKE(a, int32_t, o->dp);
            for (int32_t d = 0; d < o->dp; d++) {
                group[d] = t + o->tp * (d + o->dp * s);
                chans[group[d] * N_CHANS + REDUCE] = (td_chan){.comm = n, .me = d};
            }
            comms[n++] = (td_comm){.kind = TD_COMM_DATA, .n_ranks = o->dp, .ranks = group};
        }
    p->comms = comms;
    p->n_comms = n;
}

built *build_pipeline(td_arena *a, const built_pipeline *o)
{
    built *b = TAKE(a, built, 1);
    price_book *book = TAKE(a, price_book, 1);
    const int32_t world = o->tp * o->dp * o->pp, n_kinds = o->kinds > 1 ? o->kinds : 1;
    td_stream *streams = TAKE(a, td_stream, o->pp);
    td_rank *ranks = TAKE(a, td_rank, world);
    td_program *p = &b->program;
    *p = (td_program){
        .world_size = world, .total_stages = o->pp, .n_streams = o->pp, .n_works = 2 * o->pp};
    write_comms(a, o, p, ranks);
    for (int32_t s = 0; s < o->pp; s++) {
        write_stage(a, o, s, &streams[s]);
        p->n_ops += (int64_t)o->tp * o->dp * streams[s].n_ops;
    }
    p->streams = streams;
    p->ranks = ranks;
    *book = (price_book){.p = p,
                         .n_kinds = n_kinds,
                         .kind_of = TAKE(a, int32_t, world),
                         .work = TAKE(a, td_work_cost, n_kinds * p->n_works),
                         .transfer = o->transfer,
                         .shape = o->shape,
                         .reduce = o->reduce,
                         .world = o->world};
    for (int32_t r = 0; r < world; r++)
        book->kind_of[r] = r / o->tp % o->dp % n_kinds;
    for (int32_t k = 0; k < n_kinds; k++)
        for (int32_t w = 0; w < p->n_works; w++)
            book->work[k * p->n_works + w] =
                work_cost((w % 2 == 0 ? o->forward_s : o->backward_s) * (1 + k / 8.0) *
                          (1 + o->jitter * hashed((uint32_t)w)));
    b->prices =
        (td_prices){.self = book, .work = price_work, .work_until = price_until, .op = price_op};
    return b;
}

/* ---- by hand ---- */

built *build_by_hand(td_arena *a, int32_t world, int32_t n_comms, const built_comm *comms,
                     int32_t n_ops, const built_op *ops, const double *works_s,
                     const td_op_cost *costs)
{
    built *b = TAKE(a, built, 1);
    price_book *book = TAKE(a, price_book, 1);
    td_program *p = &b->program;
    td_stream *streams = TAKE(a, td_stream, world);
    td_rank *ranks = TAKE(a, td_rank, world);
    td_comm *real = TAKE(a, td_comm, n_comms);
    td_chan *chans = TAKE(a, td_chan, world * n_comms);
    int32_t n_works = 1;
    for (int32_t c = 0; c < n_comms; c++)
        real[c] = (td_comm){
            .kind = (uint8_t)comms[c].kind, .n_ranks = comms[c].n_ranks, .ranks = comms[c].ranks};
    for (int32_t r = 0; r < world; r++) {
        pen w = {.ops = TAKE(a, td_op, n_ops), .deps = TAKE(a, td_dep, n_ops)};
        for (int32_t c = 0; c < n_comms;
             c++) { /* channel c leads to communicator c; a rank outside it does not use it */
            chans[r * n_comms + c] = (td_chan){.comm = c};
            for (int32_t i = 0; i < comms[c].n_ranks; i++)
                if (comms[c].ranks[i] == r)
                    chans[r * n_comms + c].me = i;
        }
        for (int32_t i = 0; i < n_ops; i++) {
            const built_op *o = &ops[i];
            if (o->rank != r)
                continue;
            put(&w, o->kind, o->lane, 0, o->comm, o->comm < 0 ? o->price : -1);
            w.ops[w.n - 1].bytes = o->comm < 0 ? 0 : (uint64_t)o->price;
            if (o->after >= 0)
                wait_for(&w, o->after, o->after_part > 0 ? o->after_part : -1);
            if (o->comm < 0 && o->price >= n_works)
                n_works = o->price + 1;
        }
        streams[r] = (td_stream){.n_ops = w.n,
                                 .n_deps = (uint32_t)w.n_deps,
                                 .ops = w.ops,
                                 .deps = w.deps,
                                 .n_chans = n_comms,
                                 .stage = r,
                                 .pp_rank = r};
        ranks[r] = (td_rank){.stream = r, .chans = chans + (ptrdiff_t)r * n_comms};
        p->n_ops += w.n;
    }
    p->world_size = p->total_stages = p->n_streams = world;
    p->streams = streams;
    p->ranks = ranks;
    p->comms = real;
    p->n_comms = n_comms;
    p->n_works = n_works;
    *book = (price_book){.p = p,
                         .n_kinds = 1,
                         .kind_of = TAKE(a, int32_t, world),
                         .work = TAKE(a, td_work_cost, n_works),
                         .by_hand = costs};
    for (int32_t i = 0; i < n_works; i++)
        book->work[i] = work_cost(works_s[i]);
    b->prices =
        (td_prices){.self = book, .work = price_work, .work_until = price_until, .op = price_op};
    return b;
}
