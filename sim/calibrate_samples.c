/* From traces and their programs to observations of shapes. */
#include "sim/calibrate_samples.h"
#include "sim/calibrate_trace.h"
#include "sim/intern.h"
#include "sim/topology.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Less than this share of a time beside something is nothing, all but this much is all of it. */
static const double partly = 0.05;
enum { CONTROL_BYTES = 4096 };

typedef struct {
    td_arena *a, *tmp;
    td_err *err;
    td_intern shapes;
    td_shape *shape; /* [cap_shapes] */
    int32_t cap_shapes;
    td_sample *samples;
    int64_t n, cap;
    bool shared;      /* ranks of the trace that is being read share cores */
    double *overhead; /* [n_sources] of looking at a part; 0: not known */
    td_track *tracks; /* room for a rank of every trace each */
    int32_t n_tracks;
    td_recipe **recipes; /* [n_sources] */
    int32_t n_ranks;
    int64_t n_across;
} reader;

/* One trace with what is needed to read it. */
typedef struct {
    const td_times *t;
    const td_program *p;
    int32_t source;
    td_comm_query *link; /* [n_comms] */
    int64_t *exchange;   /* [n_comms + 1]: first exchange of ops; those of parts follow */
    int64_t *part_first; /* [n_comms]: first exchange of parts on it */
    int64_t n_exchanges;
    int64_t *begin;        /* [n_exchanges] when the last member issued it, of one step */
    const td_part ***flat; /* [n_works]: parts in their order */
    td_track *tracks;      /* [world_size] */
} trace;

static td_status no_memory(const reader *r)
{
    return td_fail(r->err, TD_NOMEM, "no memory for the times of the traces");
}

/* ---- shapes ---- */

static size_t put(int32_t *tuple, size_t at, const void *value, size_t size)
{
    memcpy(tuple + at, value, size);
    return at + size / sizeof *tuple;
}

/* What does not change the cost is not in the key: name, number of key-value heads, FLOPs. */
static td_status find_shape(reader *r, const td_part *part, const td_comm_query *link, int32_t *out)
{
    int32_t tuple[32];
    size_t n = 0;
    const td_part_key key = td_part_table[part->class].key;
    const int32_t kind[] = {part->class, key == TD_KEY_SHAPE ? part->pass : 0, part->fp32};
    n = put(tuple, n, kind, sizeof kind);
    if (part->class == TD_PART_GEMM) {
        const int64_t size[] = {part->m, part->n, part->k};
        n = put(tuple, n, size, sizeof size);
    } else if (part->class == TD_PART_ATTENTION) {
        const int32_t size[] = {part->batch, part->seq, part->heads, part->head_dim, part->causal};
        n = put(tuple, n, size, sizeof size);
    } else {
        n = put(tuple, n, &part->bytes, sizeof part->bytes);
    }
    if (key == TD_KEY_COMM) {
        const int32_t of[] = {part->collective, part->ranks, link->in_pass};
        n = put(tuple, n, of, sizeof of);
        n = put(tuple, n, &link->edge_bytes_per_s, sizeof link->edge_bytes_per_s);
        n = put(tuple, n, &link->edge_latency_s, sizeof link->edge_latency_s);
    }
    const int32_t before = r->shapes.n, id = td_intern_get(&r->shapes, tuple, n);
    if (id < 0)
        return no_memory(r);
    if (id == before) {
        if (id == r->cap_shapes) {
            const int32_t cap = id == 0 ? 256 : 2 * id;
            td_shape *grown = TD_NEW(r->a, td_shape, cap);
            if (grown == NULL)
                return no_memory(r);
            if (id > 0)
                memcpy(grown, r->shape, (size_t)id * sizeof *grown);
            r->shape = grown;
            r->cap_shapes = cap;
        }
        r->shape[id] = (td_shape){.part = *part};
        if (link != NULL) {
            r->shape[id].link = *link;
            r->shape[id].link.coll = (td_coll)part->collective;
            r->shape[id].link.bytes = part->bytes;
        }
    }
    *out = id;
    return TD_OK;
}

static td_status add(reader *r, const trace *t, int32_t rank, int32_t shape, int32_t beside,
                     double s)
{
    if (s <= 0)
        return TD_OK;
    if (r->n == r->cap) {
        const int64_t cap = r->cap == 0 ? 4096 : 2 * r->cap;
        td_sample *grown = realloc(r->samples, (size_t)cap * sizeof *grown);
        if (grown == NULL)
            return no_memory(r);
        r->samples = grown;
        r->cap = cap;
    }
    r->samples[r->n++] =
        (td_sample){shape, r->shared ? TD_BESIDE_PARTLY : beside, t->source, rank, s, 0};
    r->shape[shape].n_samples++;
    return TD_OK;
}

static bool on_cores(const td_times *t)
{
    return !t->predicted && strcmp(t->backend, "host") == 0;
}

/*
 * The collectives of the loss, a few numbers a row, share their part with a pass over the logits:
 * measured on GPUs, such a part tells nothing of a small message. On cores, where all messages of
 * passes are small and the pass is short beside them, it is kept.
 */
static bool tells(const td_times *t, const td_part *part)
{
    return t->predicted || on_cores(t) || part->class != TD_PART_COLLECTIVE ||
           strncmp(part->name, "loss", 4) != 0;
}

/* More ranks than cores: whatever one does, another may have had its core. */
static bool shares_cores(const td_times *t)
{
    const td_program *p = t->program;
    const td_cluster *cluster = p->plan->cluster;
    bool shared = false;
    int32_t node = -1, n = 0;
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_place at = td_cluster_place(cluster, r);
        const int32_t cores = cluster->groups[at.group].cores;
        n = at.node == node ? n + 1 : 1;
        node = at.node;
        shared = shared || (cores > 0 && n > cores);
    }
    return shared;
}

/* ---- who exchanges with whom ---- */

/* The slowest link of the ring, or of the one edge of a pair, as prices see it. */
static td_comm_query link_of(const td_topology *topo, const td_program *p, const td_comm *c)
{
    td_comm_query q = {.ranks = c->n_ranks, .one_node = true, .edge_bytes_per_s = INFINITY};
    const int32_t n_edges = c->kind == TD_COMM_PAIR ? 1 : c->n_ranks;
    for (int32_t i = 0; i < c->n_ranks; i++) {
        const int32_t from = c->ranks[i], to = c->ranks[(i + 1) % c->n_ranks];
        q.one_node = q.one_node && td_cluster_place(p->plan->cluster, from).node ==
                                       td_cluster_place(p->plan->cluster, to).node;
        if (from == to || i >= n_edges)
            continue;
        td_route route;
        td_topology_route(topo, from, to, &route);
        q.edge_bytes_per_s = fmin(q.edge_bytes_per_s, route.bytes_per_s);
        q.edge_latency_s = fmax(q.edge_latency_s, route.latency_s);
    }
    return q;
}

static int32_t tensor_comm(const td_program *p, int32_t rank)
{
    const td_stream *s = td_program_stream(p, rank);
    for (int32_t i = 0; i < s->n_chans; i++)
        if (p->comms[p->ranks[rank].chans[i].comm].kind == TD_COMM_TENSOR)
            return p->ranks[rank].chans[i].comm;
    return -1;
}

static td_status flatten(reader *r, trace *t)
{
    t->flat = TD_NEW(r->tmp, const td_part **, t->p->n_works);
    if (t->flat == NULL)
        return no_memory(r);
    for (int32_t w = 0; w < t->p->n_works; w++) {
        const td_work *work = &t->p->works[w];
        const td_part **flat = t->flat[w] = TD_NEW(r->tmp, const td_part *, work->n_flat);
        if (flat == NULL)
            return no_memory(r);
        for (int32_t k = 0; k < work->n_runs; k++)
            for (int32_t again = 0; again < work->runs[k].repeat; again++)
                for (int32_t i = 0; i < work->runs[k].n; i++)
                    *flat++ = &work->parts[work->runs[k].first + i];
    }
    return TD_OK;
}

/* Counts the exchanges of every communicator: those of its first member. */
static td_status match(reader *r, trace *t)
{
    const td_program *p = t->p;
    t->link = TD_NEW(r->tmp, td_comm_query, p->n_comms);
    t->exchange = TD_NEW(r->tmp, int64_t, p->n_comms + 1);
    t->part_first = TD_NEW(r->tmp, int64_t, p->n_comms);
    td_topology *topo = NULL;
    if (t->link == NULL || t->exchange == NULL || t->part_first == NULL)
        return no_memory(r);
    const td_status st = td_topology_build(r->tmp, p->plan->cluster, p->world_size, &topo, r->err);
    if (st != TD_OK)
        return st;
    for (int64_t c = 0; c < p->n_comms; c++) {
        const int32_t rank = p->comms[c].ranks[0];
        const td_stream *s = td_program_stream(p, rank);
        t->link[c] = link_of(topo, p, &p->comms[c]);
        t->part_first[c] = t->exchange[c];
        for (int32_t i = 0; i < s->n_ops; i++)
            t->part_first[c] +=
                s->ops[i].chan >= 0 && p->ranks[rank].chans[s->ops[i].chan].comm == c;
        t->exchange[c + 1] = t->part_first[c];
        for (int32_t i = 0; tensor_comm(p, rank) == c && i < s->n_ops; i++)
            for (int64_t k = 0; s->ops[i].work >= 0 && k < p->works[s->ops[i].work].n_flat; k++)
                t->exchange[c + 1] += t->flat[s->ops[i].work][k]->class == TD_PART_COLLECTIVE;
    }
    t->n_exchanges = t->exchange[p->n_comms];
    t->begin = TD_NEW(r->tmp, int64_t, t->n_exchanges);
    return t->begin == NULL ? no_memory(r) : TD_OK;
}

/*
 * Visits what a rank does in a step, in its order: every op, and the collectives among its parts.
 * `exchange` is -1 for what is not one.
 */
typedef td_status (*visit)(reader *r, trace *t, int32_t step, int32_t rank, int32_t op,
                           int64_t part, int64_t exchange);

static td_status walk(reader *r, trace *t, int32_t step, int32_t rank, visit each)
{
    td_status st = TD_OK;
    const td_program *p = t->p;
    const td_stream *s = td_program_stream(p, rank);
    const int32_t tp = tensor_comm(p, rank);
    int64_t *next = calloc((size_t)s->n_chans + 1, sizeof *next), n_parts = 0;
    if (next == NULL)
        TD_TRY(st, no_memory(r));
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        const int32_t comm = op->chan < 0 ? -1 : p->ranks[rank].chans[op->chan].comm;
        TD_TRY(st,
               each(r, t, step, rank, i, -1, comm < 0 ? -1 : t->exchange[comm] + next[op->chan]++));
        for (int64_t k = 0; t->t->n_parts > 0 && op->work >= 0 && k < p->works[op->work].n_flat;
             k++) {
            const bool collective = t->flat[op->work][k]->class == TD_PART_COLLECTIVE;
            TD_TRY(st, each(r, t, step, rank, i, k,
                            collective && tp >= 0 ? t->part_first[tp] + n_parts++ : -1));
        }
    }
done:
    free(next);
    return st;
}

static td_status note_begin(reader *r, trace *t, int32_t step, int32_t rank, int32_t op,
                            int64_t part, int64_t exchange)
{
    (void)r;
    const td_time *x =
        part < 0 ? td_times_op(t->t, step, rank, op) : td_times_part(t->t, step, rank, op, part);
    if (exchange >= 0 && x->end_ns >= x->start_ns && x->start_ns > t->begin[exchange])
        t->begin[exchange] = x->start_ns;
    return TD_OK;
}

/* ---- beside what ---- */

static double shared(int64_t a0, int64_t a1, int64_t b0, int64_t b1)
{
    const int64_t from = a0 > b0 ? a0 : b0, to = a1 < b1 ? a1 : b1;
    return to > from ? (double)(to - from) : 0;
}

/* A transfer or collective that moves data on a rank. */
typedef struct {
    int64_t begin, end;
    int32_t coll;
} flow;

static const td_comm *comm_of(const td_program *p, int32_t rank, const td_op *op)
{
    return &p->comms[p->ranks[rank].chans[op->chan].comm];
}

static bool flows(const td_program *p, int32_t rank, const td_op *op)
{
    return op->chan >= 0 && op->bytes >= CONTROL_BYTES && comm_of(p, rank, op)->n_ranks > 1 &&
           td_op_table[op->kind].role != TD_ROLE_EAGER_SEND && op->kind != TD_OP_RECV_SHAPE;
}

static int32_t beside_of(double length, const double shared_with[TD_N_COLLS])
{
    int32_t most = 0;
    double all = 0;
    for (int32_t c = 0; c < TD_N_COLLS; c++) {
        all += shared_with[c];
        most = shared_with[c] > shared_with[most] ? c : most;
    }
    return all <= partly * length                       ? TD_BESIDE_NOTHING
           : shared_with[most] >= (1 - partly) * length ? most
                                                        : TD_BESIDE_PARTLY;
}

/* The exchanges beside [start, end] of a rank. */
static int32_t beside_flows(const flow *f, int32_t n, int64_t start, int64_t end)
{
    double with[TD_N_COLLS] = {0};
    for (int32_t i = 0; i < n; i++)
        with[f[i].coll] += shared(start, end, f[i].begin, f[i].end);
    return beside_of((double)(end - start), with);
}

/* Share of [begin, end] that a rank computes. Compute ops follow one another. */
static double computing(const trace *t, int32_t step, int32_t rank, int64_t begin, int64_t end)
{
    const td_stream *s = td_program_stream(t->p, rank);
    double busy = 0;
    for (int32_t i = 0; i < s->n_ops; i++)
        if (s->ops[i].lane == TD_LANE_COMPUTE) {
            const td_time *x = td_times_op(t->t, step, rank, i);
            if (x->start_ns >= end)
                break;
            busy += shared(begin, end, x->start_ns, x->end_ns);
        }
    return end > begin ? busy / (double)(end - begin) : 0;
}

static int32_t beside_kernels(const trace *t, int32_t step, const td_comm *c, int64_t begin,
                              int64_t end)
{
    double most = 0;
    for (int32_t i = 0; i < c->n_ranks; i++)
        most = fmax(most, computing(t, step, c->ranks[i], begin, end));
    return most <= partly       ? TD_BESIDE_NOTHING
           : most >= 1 - partly ? TD_BESIDE_KERNELS
                                : TD_BESIDE_PARTLY;
}

/* ---- samples ---- */

static td_part as_part(td_coll coll, int32_t ranks, uint64_t bytes)
{
    return (td_part){
        .class = TD_PART_COLLECTIVE, .collective = (uint8_t)coll, .ranks = ranks, .bytes = bytes};
}

/* Exchanges, as each member that waits for its end sees them. */
static td_status read_exchange(reader *r, trace *t, int32_t step, int32_t rank, int32_t op,
                               int64_t part, int64_t exchange)
{
    td_status st = TD_OK;
    const td_op *o = &td_program_stream(t->p, rank)->ops[op];
    const td_op_role role = td_op_table[o->kind].role;
    if (exchange < 0 || (part < 0 && role != TD_ROLE_RECV && role != TD_ROLE_GROUP))
        return TD_OK;
    const td_part *of = part < 0 ? NULL : t->flat[o->work][part];
    const td_comm *c = part < 0 ? comm_of(t->p, rank, o) : &t->p->comms[tensor_comm(t->p, rank)];
    const td_part what = part < 0 ? as_part(td_op_table[o->kind].coll, c->n_ranks, o->bytes)
                                  : as_part((td_coll)of->collective, of->ranks, of->bytes);
    td_comm_query link = t->link[c - t->p->comms];
    const td_time *x =
        part < 0 ? td_times_op(t->t, step, rank, op) : td_times_part(t->t, step, rank, op, part);
    /* A prediction knows no waiting inside an op. */
    const int64_t begin = part >= 0 && t->t->predicted ? x->start_ns : t->begin[exchange];
    int32_t shape;
    if (c->n_ranks < 2 || what.bytes == 0 || x->end_ns < x->start_ns || x->end_ns <= begin)
        return TD_OK;
    /* The message may have been there long before its receive. */
    if (o->kind == TD_OP_RECV_SHAPE && x->start_ns >= begin)
        return TD_OK;
    if (part >= 0 && !tells(t->t, of))
        return TD_OK;
    if (!link.one_node) {
        r->n_across++;
        return TD_OK;
    }
    link.in_pass = part >= 0;
    TD_TRY(st, find_shape(r, &what, &link, &shape));
    const int32_t beside = part >= 0 || !flows(t->p, rank, o)
                               ? TD_BESIDE_NOTHING
                               : beside_kernels(t, step, c, begin, x->end_ns);
    TD_TRY(st, add(r, t, rank, shape, beside, (double)(x->end_ns - begin) * 1e-9));
done:
    return st;
}

static td_spell *add_spell(const trace *t, int32_t rank, const td_time *x, int64_t first,
                           int32_t work)
{
    td_track *k = &t->tracks[rank];
    td_spell *s = &k->spells[k->n++];
    *s = (td_spell){.start_s = (double)x->start_ns * 1e-9,
                    .end_s = (double)x->end_ns * 1e-9,
                    .first = first,
                    .work = work,
                    .alone = true};
    return s;
}

/* What a work consists of, found once. */
static td_status read_recipe(reader *r, const trace *t, int32_t rank, int32_t work)
{
    td_status st = TD_OK;
    const td_work *w = &t->p->works[work];
    td_recipe *out = &r->recipes[t->source][work];
    td_comm_query link = {.ranks = 0};
    const int32_t tp = tensor_comm(t->p, rank);
    if (out->shape != NULL)
        return TD_OK;
    out->shape = TD_NEW(r->a, int32_t, w->n_parts + 1);
    out->times = TD_NEW(r->a, int32_t, w->n_parts + 1);
    if (out->shape == NULL || out->times == NULL)
        TD_TRY(st, no_memory(r));
    for (int32_t k = 0; k < w->n_runs; k++)
        for (int32_t i = w->runs[k].first; i < w->runs[k].first + w->runs[k].n; i++) {
            const td_part *part = &w->parts[i];
            const bool exchange = part->class == TD_PART_COLLECTIVE;
            const td_part as =
                exchange ? as_part((td_coll)part->collective, part->ranks, part->bytes) : *part;
            if (tells(t->t, part) &&
                (td_part_table[part->class].key == TD_KEY_SHAPE || part->bytes > 0)) {
                if (exchange)
                    link = t->link[tp];
                link.in_pass = exchange;
                TD_TRY(st, find_shape(r, &as, exchange ? &link : NULL, &out->shape[out->n]));
                out->times[out->n++] = w->runs[k].repeat;
            }
        }
done:
    return st;
}

/*
 * Parts of one op. A prediction stretches all of an op alike, by what ran beside the op and by the
 * op's mean clock: there the op is one spell; else each part is one.
 */
static td_status read_op(reader *r, const trace *t, int32_t step, int32_t rank, int32_t op,
                         const flow *f, int32_t n_flows, flow *near)
{
    td_status st = TD_OK;
    const td_op *o = &td_program_stream(t->p, rank)->ops[op];
    const td_time *whole = td_times_op(t->t, step, rank, op);
    const int32_t beside_op = beside_flows(f, n_flows, whole->start_ns, whole->end_ns);
    td_spell *spell = t->t->predicted ? add_spell(t, rank, whole, r->n, o->work) : NULL;
    int32_t n_near = 0;
    int64_t n_seen = 0;
    TD_TRY(st, read_recipe(r, t, rank, o->work));
    for (int32_t i = 0; i < n_flows; i++)
        if (shared(whole->start_ns, whole->end_ns, f[i].begin, f[i].end) > 0)
            near[n_near++] = f[i];
    for (int64_t k = 0; k < t->p->works[o->work].n_flat; k++) {
        const td_part *part = t->flat[o->work][k];
        const td_time *x = td_times_part(t->t, step, rank, op, k);
        int32_t shape;
        if (x->end_ns <= x->start_ns)
            continue;
        const double s = (double)(x->end_ns - x->start_ns) * 1e-9;
        n_seen++;
        if (!t->t->predicted)
            spell = add_spell(t, rank, x, r->n, -1);
        spell->class = part->class;
        if (part->class == TD_PART_COLLECTIVE ||
            (td_part_table[part->class].key == TD_KEY_BYTES && part->bytes == 0))
            continue;
        TD_TRY(st, find_shape(r, part, NULL, &shape));
        TD_TRY(st,
               add(r, t, rank, shape,
                   t->t->predicted ? beside_op : beside_flows(near, n_near, x->start_ns, x->end_ns),
                   fmax(s - r->overhead[t->source], 0.1 * s)));
        spell->n = r->n - spell->first;
    }
    if (n_seen == 0 && !t->t->predicted && whole->end_ns > whole->start_ns)
        add_spell(t, rank, whole, r->n, -1)->class = TD_PART_ELEMENTWISE;
done:
    return st;
}

/* A compute op whose parts nobody looked at. Payloads that a copy engine moves hardly disturb it.
 */
static td_status read_pass(reader *r, const trace *t, int32_t step, int32_t rank, int32_t op,
                           const flow *f, int32_t n_flows)
{
    const td_time *x = td_times_op(t->t, step, rank, op);
    const int32_t work = td_program_stream(t->p, rank)->ops[op].work;
    if (x->end_ns <= x->start_ns)
        return TD_OK;
    const int32_t beside = beside_flows(f, n_flows, x->start_ns, x->end_ns);
    td_spell *s = add_spell(t, rank, x, r->n, work);
    s->alone = beside == TD_BESIDE_NOTHING || beside == TD_COLL_SENDRECV;
    return read_recipe(r, t, rank, work);
}

static td_status read_rank(reader *r, const trace *t, int32_t step, int32_t rank)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(t->p, rank);
    int64_t *next = calloc((size_t)s->n_chans + 1, sizeof *next);
    flow *f = calloc((size_t)s->n_ops + 1, sizeof *f),
         *near = calloc((size_t)s->n_ops + 1, sizeof *near); /* room for read_op() */
    int32_t n = 0;
    if (next == NULL || f == NULL || near == NULL)
        TD_TRY(st, no_memory(r));
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        if (op->chan < 0)
            continue;
        const int64_t x = t->exchange[t->p->ranks[rank].chans[op->chan].comm] + next[op->chan]++;
        if (flows(t->p, rank, op))
            f[n++] = (flow){.begin = t->begin[x],
                            .end = td_times_op(t->t, step, rank, i)->end_ns,
                            .coll = (int32_t)td_op_table[op->kind].coll};
    }
    for (int32_t i = 0; i < s->n_ops; i++)
        if (s->ops[i].work >= 0)
            TD_TRY(st, t->t->n_parts > 0 ? read_op(r, t, step, rank, i, f, n, near)
                                         : read_pass(r, t, step, rank, i, f, n));
done:
    free(near);
    free(f);
    free(next);
    return st;
}

/* Room for what every rank does. */
static td_status open_tracks(reader *r, trace *t)
{
    const td_program *p = t->p;
    int64_t first = INT64_MAX, last = INT64_MIN;
    for (int64_t i = 0; i < t->t->n_ops * t->t->n_steps; i++) {
        const td_time *x = &t->t->ops[i];
        first = x->start_ns < first ? x->start_ns : first;
        last = x->end_ns > last ? x->end_ns : last;
    }
    t->tracks = &r->tracks[r->n_tracks];
    for (int32_t rank = 0; rank < p->world_size; rank++) {
        const td_stream *s = td_program_stream(p, rank);
        int64_t most = 0;
        for (int32_t i = 0; i < s->n_ops; i++)
            if (s->ops[i].work >= 0)
                most += 1 + (t->t->n_parts > 0 ? p->works[s->ops[i].work].n_flat : 0);
        t->tracks[rank] = (td_track){.program = p,
                                     .source = t->source,
                                     .rank = rank,
                                     .begin_s = (double)first * 1e-9,
                                     .end_s = (double)last * 1e-9};
        t->tracks[rank].spells = TD_NEW(r->a, td_spell, most * t->t->n_steps);
        if (t->tracks[rank].spells == NULL)
            return no_memory(r);
    }
    r->n_tracks += p->world_size;
    return TD_OK;
}

static td_status read_trace(reader *r, int32_t source, const td_times *times)
{
    td_status st = TD_OK;
    trace t = {.t = times, .p = times->program, .source = source};
    r->shared = on_cores(times) && shares_cores(times);
    r->tmp = td_arena_new();
    if (r->tmp == NULL)
        TD_TRY(st, no_memory(r));
    TD_TRY(st, flatten(r, &t));
    TD_TRY(st, match(r, &t));
    TD_TRY(st, open_tracks(r, &t));
    for (int32_t step = 0; step < times->n_steps; step++) {
        for (int64_t x = 0; x < t.n_exchanges; x++)
            t.begin[x] = INT64_MIN;
        for (int32_t rank = 0; rank < t.p->world_size; rank++)
            TD_TRY(st, walk(r, &t, step, rank, note_begin));
        for (int32_t rank = 0; rank < t.p->world_size; rank++) {
            TD_TRY(st, walk(r, &t, step, rank, read_exchange));
            TD_TRY(st, read_rank(r, &t, step, rank));
        }
    }
done:
    td_arena_free(r->tmp);
    return st;
}

/* ---- observations ---- */

/* Times at different heats are different observations. */
static int32_t heat_bin(double heat)
{
    enum { BINS = 20 };
    return (int32_t)floor(heat * BINS);
}

static bool same_observation(const td_sample *a, const td_sample *b)
{
    return a->shape == b->shape && a->beside == b->beside && a->source == b->source &&
           a->rank == b->rank && heat_bin(a->heat) == heat_bin(b->heat);
}

static int by_observation(const void *left, const void *right)
{
    const td_sample *a = left, *b = right;
    const int32_t x[] = {a->shape, a->beside, heat_bin(a->heat), a->source, a->rank},
                  y[] = {b->shape, b->beside, heat_bin(b->heat), b->source, b->rank};
    for (int i = 0; i < 5; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return (a->s > b->s) - (a->s < b->s);
}

/*
 * The median of n samples, which ascend. Of parts that cores ran, the lower quartile: whatever else
 * runs on the machine takes a core away for slices of milliseconds, and a part that was not hit
 * takes its time alone.
 */
static double typical(const td_samples *all, const td_sample *s, int64_t n)
{
    const bool part = all->shapes[s->shape].part.class != TD_PART_COLLECTIVE;
    return part && all->on_cores[s->source] ? s[(n - 1) / 4].s
                                            : (s[(n - 1) / 2].s + s[n / 2].s) / 2;
}

td_status td_samples_observe(td_arena *a, td_samples *out, td_err *err)
{
    const int64_t n = out->n_samples;
    int64_t end;
    td_sample *samples = TD_NEW(a, td_sample, n);
    td_observation *o = out->observations = TD_NEW(a, td_observation, n);
    if (samples == NULL || o == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %lld times", (long long)n);
    memcpy(samples, out->samples, (size_t)n * sizeof *samples);
    qsort(samples, (size_t)n, sizeof *samples, by_observation);
    for (int64_t i = 0; i < n; i = end, o++) {
        const td_sample *s = &samples[i];
        double heat = 0;
        for (end = i; end < n && same_observation(s, &samples[end]); end++)
            heat += samples[end].heat;
        td_shape *shape = &out->shapes[s->shape];
        const int32_t id = (int32_t)(o - out->observations);
        *o = (td_observation){.shape = s->shape,
                              .beside = s->beside,
                              .source = s->source,
                              .rank = s->rank,
                              .n = (int32_t)(end - i),
                              .s = typical(out, s, end - i),
                              .heat = heat / (double)(end - i)};
        shape->first = shape->n == 0 ? id : shape->first;
        shape->n++;
        shape->n_alone += s->beside == TD_BESIDE_NOTHING;
    }
    out->n_observations = (int32_t)(o - out->observations);
    for (int32_t i = 0; i < out->n_shapes; i++)
        td_samples_settle(out, &out->shapes[i]);
    return TD_OK;
}

double td_samples_median(const td_samples *s, const td_shape *shape, int32_t beside, int32_t but)
{
    double *x = calloc((size_t)shape->n + 1, sizeof *x), median = -1;
    int32_t n = 0;
    for (int32_t i = shape->first; x != NULL && i < shape->first + shape->n; i++)
        if (s->observations[i].beside == beside && i != but)
            x[n++] = s->observations[i].s;
    if (n > 0)
        median = td_fit_quantile(x, n, 0.5);
    free(x);
    return median;
}

void td_samples_settle(td_samples *s, td_shape *shape)
{
    static const int32_t order[] = {TD_BESIDE_NOTHING, TD_BESIDE_PARTLY, TD_BESIDE_KERNELS};
    shape->alone_s = -1;
    for (size_t i = 0; shape->alone_s < 0 && i < sizeof order / sizeof *order; i++)
        shape->alone_s = td_samples_median(s, shape, order[i], -1);
    for (int32_t c = 0; shape->alone_s < 0 && c < TD_N_COLLS; c++)
        shape->alone_s = td_samples_median(s, shape, c, -1);
}

/* What looking at a part costs in each measured fine trace: told by its twin without parts or,
 * where there is none, the mean of those that have one, which is returned. */
static double overheads(int32_t n, const td_calibrate_source *sources, const td_times *times,
                        double *overhead)
{
    double sum = 0;
    int32_t n_known = 0;
    for (int32_t i = 0; i < n; i++) {
        overhead[i] = times[i].predicted || times[i].n_parts == 0 ? 0 : -1;
        for (int32_t k = 0; k < n && overhead[i] < 0; k++)
            if (times[k].n_parts == 0 && !times[k].predicted &&
                strcmp(sources[i].program->digest, sources[k].program->digest) == 0) {
                overhead[i] = td_times_overhead(&times[i], &times[k]);
                sum += overhead[i];
                n_known++;
            }
    }
    const double mean = n_known > 0 ? sum / n_known : 0;
    for (int32_t i = 0; i < n; i++)
        overhead[i] = overhead[i] < 0 ? mean : overhead[i];
    return mean;
}

td_status td_samples_read(td_arena *a, int32_t n, const td_calibrate_source *sources,
                          td_samples *out, td_err *err)
{
    td_status st = TD_OK;
    reader r = {.a = a, .err = err};
    td_times *times = TD_NEW(a, td_times, n);
    bool *cores = TD_NEW(a, bool, n);
    *out = (td_samples){.measured = true,
                        .backend = "",
                        .on_cores = cores,
                        .environment = {"", "", "", "", "", ""}};
    for (int32_t i = 0; i < n; i++)
        r.n_ranks =
            sources[i].program->world_size > r.n_ranks ? sources[i].program->world_size : r.n_ranks;
    r.overhead = TD_NEW(a, double, n);
    r.tracks = TD_NEW(a, td_track, (size_t)n * (size_t)r.n_ranks);
    r.recipes = TD_NEW(a, td_recipe *, n);
    if (times == NULL || r.overhead == NULL || r.tracks == NULL || r.recipes == NULL ||
        cores == NULL)
        TD_TRY(st, no_memory(&r));
    for (int32_t i = 0; i < n; i++) {
        r.recipes[i] = TD_NEW(a, td_recipe, sources[i].program->n_works);
        if (r.recipes[i] == NULL)
            TD_TRY(st, no_memory(&r));
    }
    for (int32_t i = 0; i < n; i++) {
        TD_TRY(st, td_times_read(a, &sources[i], &times[i], &out->environment, err));
        cores[i] = on_cores(&times[i]);
        out->measured = out->measured && !times[i].predicted;
        out->backend =
            i == 0 || strcmp(out->backend, times[i].backend) == 0 ? times[i].backend : "";
    }
    out->part_overhead_s = overheads(n, sources, times, r.overhead);
    for (int32_t i = 0; i < n; i++)
        TD_TRY(st, read_trace(&r, i, &times[i]));
    if (r.n == 0)
        TD_TRY(st, td_fail(err, TD_FILE,
                           "%s: there are no times in it; traces that `tandem run --trace fine` or "
                           "`tandem predict --trace fine` writes have them",
                           sources[0].trace));
    out->samples = TD_NEW(a, td_sample, r.n);
    if (out->samples == NULL)
        TD_TRY(st, no_memory(&r));
    memcpy(out->samples, r.samples, (size_t)r.n * sizeof *r.samples);
    out->n_samples = r.n;
    out->shapes = r.shape;
    out->n_shapes = r.shapes.n;
    out->tracks = r.tracks;
    out->n_tracks = r.n_tracks;
    out->recipes = r.recipes;
    out->n_ranks = r.n_ranks;
    out->n_across = r.n_across;
done:
    free(r.samples);
    td_intern_free(&r.shapes);
    return st;
}
