/*
 * Prices a program once. What a rank pays depends on its stream, its GPU's profile and how the
 * communicators of its channels lie on the machine; ranks that agree in these are priced together,
 * so a world of thousands costs as much as the number of different roles in it, besides looking at
 * every member of every communicator once.
 */
#include "sim/costs.h"

#include "sim/intern.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { CONTROL_BYTES = 4096, MAX_PROFILES = 64, N_BUCKETS = 4096 };

/* ---- a map from three numbers to a price ---- */

typedef struct entry {
    struct entry *next;
    uint64_t key[3];
    const void *price;
} entry;

typedef struct {
    entry *buckets[N_BUCKETS];
} map;

static size_t bucket(const uint64_t key[3])
{
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < 3; i++) {
        h = (h ^ key[i]) * 0xbf58476d1ce4e5b9u; /* splitmix64's mixing step */
        h ^= h >> 31;
    }
    return (size_t)(h % N_BUCKETS);
}

static const void *map_get(const map *m, const uint64_t key[3])
{
    const entry *e = m->buckets[bucket(key)];
    while (e != NULL && memcmp(e->key, key, sizeof e->key) != 0)
        e = e->next;
    return e == NULL ? NULL : e->price;
}

static bool map_put(map *m, td_arena *a, const uint64_t key[3], const void *price)
{
    entry *e = TD_NEW(a, entry, 1), **head = &m->buckets[bucket(key)];
    if (e == NULL)
        return false;
    *e = (entry){.next = *head, .key = {key[0], key[1], key[2]}, .price = price};
    *head = e;
    return true;
}

/* ---- the price list ---- */

/* How a communicator lies on the machine: all that its prices depend on. */
typedef struct {
    double edge_bytes_per_s,
        edge_latency_s; /* slowest along the ring, or of the one edge of a pair */
    uint64_t profiles;  /* bit i: a member's GPU has profile i */
    int32_t n_ranks;
    int32_t one_node;
} shape;

typedef struct {
    td_work_cost cost;
    const double *part_s; /* [n_parts of the work] */
} work_price;

struct td_costs {
    const td_program *program;
    int32_t n_profiles;
    const td_profile *profiles[MAX_PROFILES];
    const td_cost_model *models[MAX_PROFILES];
    const uint8_t *profile_of; /* [world_size] */
    const int32_t *shape_of;   /* [n_comms] */
    const shape *shapes;
    const int32_t *tp_chan; /* [n_streams] channel of the tensor-parallel communicator; -1: none */
    map works;              /* profile, work, shape of the tensor-parallel communicator + 1 */
    map ops;                /* shape, kind, bytes */
};

typedef struct {
    td_arena *arena, *tmp;
    const td_program *p;
    const td_cluster *cluster;
    const td_topology *topo;
    const td_costs_options *o;
    td_cost_notes *notes;
    td_costs *c;
    uint8_t *profile_of;
    int32_t *node_of;
    td_intern shapes, roles;
    td_err *err;
} builder;

static td_status no_memory(const builder *b)
{
    return td_fail(b->err, TD_NOMEM, "no memory for the prices of %d ranks", b->p->world_size);
}

/* ---- GPUs ---- */

/* What is wrong with a profile that a cluster asks for is told at the place that asks. */
static td_status find_profile(const builder *b, const td_node_group *g, const td_profile **out)
{
    td_err why = {0};
    const td_pos at = g->gpu.profile_at;
    if (b->o->profile != NULL)
        return td_profile_find(b->arena, b->o->profile, NULL, NULL, out, b->err);
    const td_status st =
        td_profile_find(b->arena, g->gpu.profile, g->gpu.name, b->cluster->file, out, &why);
    if (st != TD_OK && at.line > 0)
        td_fail(b->err, st, "%s:%d:%d: %s", at.file, (int)at.line, (int)at.column, why.text);
    else if (st != TD_OK)
        td_fail(b->err, st, "%s", why.text);
    return st;
}

/* One profile for all groups that ask for the same. */
static td_status group_profile(builder *b, int32_t group, int32_t *profile_of_group)
{
    td_status st = TD_OK;
    const td_node_group *g = &b->cluster->groups[group];
    for (int32_t i = 0; i < group; i++) {
        const td_node_group *h = &b->cluster->groups[i];
        const bool same =
            g->gpu.profile == NULL || h->gpu.profile == NULL
                ? g->gpu.profile == h->gpu.profile && strcmp(g->gpu.name, h->gpu.name) == 0
                : strcmp(g->gpu.profile, h->gpu.profile) == 0;
        if (b->o->profile != NULL || same) {
            profile_of_group[group] = profile_of_group[i];
            return TD_OK;
        }
    }
    td_costs *c = b->c;
    if (c->n_profiles == MAX_PROFILES)
        TD_TRY(st, td_fail(b->err, TD_PLAN, "%s: more than %d different GPU profiles",
                           b->cluster->file, MAX_PROFILES));
    const td_profile **profile = &c->profiles[c->n_profiles];
    TD_TRY(st, find_profile(b, g, profile));
    c->models[c->n_profiles] = b->o->model != NULL ? b->o->model : td_cost_model_for(*profile);
    profile_of_group[group] = c->n_profiles++;
done:
    return st;
}

/* Ranks sit on GPUs in the cluster's order; groups behind the last rank need no profile. */
static td_status place_ranks(builder *b)
{
    td_status st = TD_OK;
    int32_t *profile_of_group = TD_NEW(b->tmp, int32_t, b->cluster->n_groups);
    b->profile_of = TD_NEW(b->arena, uint8_t, b->p->world_size);
    b->node_of = TD_NEW(b->tmp, int32_t, b->p->world_size);
    if (profile_of_group == NULL || b->profile_of == NULL || b->node_of == NULL)
        TD_TRY(st, no_memory(b));
    int32_t n_known = 0;
    for (int32_t r = 0; r < b->p->world_size; r++) {
        const td_place at = td_cluster_place(b->cluster, r);
        for (; n_known <= at.group; n_known++)
            TD_TRY(st, group_profile(b, n_known, profile_of_group));
        b->profile_of[r] = (uint8_t)profile_of_group[at.group];
        b->node_of[r] = at.node;
    }
    b->c->profile_of = b->profile_of;
done:
    return st;
}

/* ---- communicators ---- */

/*
 * The slowest link between neighbours of the ring. NCCL lays a ring through each node and out by
 * one NIC at a time, and uses the other NICs by laying several: that the members in one node share
 * their NICs is left to contention.
 */
static shape comm_shape(const builder *b, const td_comm *comm)
{
    shape s = {.edge_bytes_per_s = INFINITY, .n_ranks = comm->n_ranks, .one_node = 1};
    const int32_t n_edges = comm->kind == TD_COMM_PAIR ? 1 : comm->n_ranks;
    for (int32_t i = 0; i < comm->n_ranks; i++) {
        const int32_t from = comm->ranks[i], to = comm->ranks[i + 1 < comm->n_ranks ? i + 1 : 0];
        s.profiles |= UINT64_C(1) << b->profile_of[from];
        s.one_node = s.one_node && b->node_of[from] == b->node_of[to];
        if (from == to || i >= n_edges)
            continue;
        td_route route;
        td_topology_route(b->topo, from, to, &route);
        s.edge_bytes_per_s = fmin(s.edge_bytes_per_s, route.bytes_per_s);
        s.edge_latency_s = fmax(s.edge_latency_s, route.latency_s);
    }
    return s;
}

static td_status place_comms(builder *b)
{
    td_status st = TD_OK;
    int32_t *shape_of = TD_NEW(b->arena, int32_t, b->p->n_comms);
    if (shape_of == NULL)
        TD_TRY(st, no_memory(b));
    for (int64_t i = 0; i < b->p->n_comms; i++) {
        const shape s = comm_shape(b, &b->p->comms[i]);
        int32_t tuple[sizeof s / sizeof(int32_t)];
        memcpy(tuple, &s, sizeof s); /* four words of 8 bytes, no padding */
        shape_of[i] = td_intern_get(&b->shapes, tuple, sizeof tuple / sizeof *tuple);
        if (shape_of[i] < 0)
            TD_TRY(st, no_memory(b));
    }
    shape *shapes = TD_NEW(b->arena, shape, b->shapes.n);
    if (shapes == NULL)
        TD_TRY(st, no_memory(b));
    memcpy(shapes, b->shapes.words, (size_t)b->shapes.n * sizeof *shapes);
    b->c->shapes = shapes;
    b->c->shape_of = shape_of;
done:
    return st;
}

static td_status find_tp_chans(builder *b)
{
    const td_program *p = b->p;
    int32_t *tp_chan = TD_NEW(b->arena, int32_t, p->n_streams);
    bool *seen = TD_NEW(b->tmp, bool, p->n_streams);
    if (tp_chan == NULL || seen == NULL)
        return no_memory(b);
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_rank *rank = &p->ranks[r];
        const int32_t n = td_program_stream(p, r)->n_chans;
        if (seen[rank->stream])
            continue;
        seen[rank->stream] = true;
        int32_t chan = 0;
        while (chan < n && p->comms[rank->chans[chan].comm].kind != TD_COMM_TENSOR)
            chan++;
        tp_chan[rank->stream] = chan < n ? chan : -1;
    }
    b->c->tp_chan = tp_chan;
    return TD_OK;
}

/* ---- prices ---- */

static td_comm_query query_of(const shape *s, td_coll coll, uint64_t bytes, bool in_pass)
{
    return (td_comm_query){.coll = coll,
                           .ranks = s->n_ranks,
                           .bytes = bytes,
                           .one_node = s->one_node != 0,
                           .in_pass = in_pass,
                           .edge_bytes_per_s = s->edge_bytes_per_s,
                           .edge_latency_s = s->edge_latency_s};
}

/* A communication goes at the pace of its slowest member; `*slowest` is that one's profile. */
static td_comm_cost price_comm(const builder *b, const shape *s, td_coll coll, uint64_t bytes,
                               bool in_pass, int32_t *slowest)
{
    const td_comm_query q = query_of(s, coll, bytes, in_pass);
    td_comm_cost worst = {.total_s = -1};
    for (int32_t i = 0; i < b->c->n_profiles; i++) {
        td_comm_cost one;
        if ((s->profiles >> i & 1) == 0)
            continue;
        b->c->models[i]->comm(b->c->profiles[i], &q, &one, b->notes);
        if (one.total_s > worst.total_s) {
            worst = one;
            *slowest = i;
        }
    }
    return worst;
}

/* The rate on an edge. The bound again: what is left of a time after its latency has lost digits.
 */
static double lone_rate(const shape *s, const td_op_cost *cost)
{
    return cost->edge_bytes == 0
               ? 0
               : fmin(s->edge_bytes_per_s,
                      (double)cost->edge_bytes / (cost->lone.total_s - cost->lone.alpha_s));
}

static td_status price_op(const builder *b, int32_t shape_id, const td_op *op)
{
    const uint64_t key[3] = {(uint64_t)shape_id, op->kind, op->bytes};
    if (map_get(&b->c->ops, key) != NULL)
        return TD_OK;
    const td_coll coll = td_op_table[op->kind].coll;
    const shape *s = &b->c->shapes[shape_id];
    td_op_cost *cost = TD_NEW(b->arena, td_op_cost, 1);
    if (cost == NULL)
        return no_memory(b);
    int32_t slowest = 0;
    cost->lone = price_comm(b, s, coll, op->bytes, false, &slowest);
    cost->overlap = (td_overlap){.transfer = 1, .compute = 1};
    if (op->bytes >= CONTROL_BYTES && !b->o->no_overlap)
        cost->overlap = b->c->profiles[slowest]->overlap[coll];
    if (s->n_ranks > 1)
        cost->edge_bytes = (uint64_t)td_collectives[coll]->edge_bytes(s->n_ranks, op->bytes);
    cost->rate = lone_rate(s, cost);
    return map_put(&b->c->ops, b->arena, key, cost) ? TD_OK : no_memory(b);
}

static double price_part(const builder *b, int32_t profile, const shape *tp, const td_part *part)
{
    int32_t slowest;
    if (part->class != TD_PART_COLLECTIVE)
        return b->c->models[profile]->part(b->c->profiles[profile], part, b->notes);
    assert(tp != NULL && tp->n_ranks == part->ranks);
    return price_comm(b, tp, (td_coll)part->collective, part->bytes, true, &slowest).total_s;
}

static td_work_cost sum_of(const td_profile *profile, const td_work *w, const double *part_s)
{
    td_work_cost cost = {0};
    for (int32_t r = 0; r < w->n_runs; r++) {
        const td_part_run *run = &w->runs[r];
        for (int32_t i = run->first; i < run->first + run->n; i++) {
            const uint8_t class = w->parts[i].class;
            const double s = part_s[i] * run->repeat;
            *(class == TD_PART_COLLECTIVE ? &cost.collective_s : &cost.compute_s) += s;
            if (class == TD_PART_GEMM || class == TD_PART_ATTENTION)
                cost.gemm_s += s;
            cost.heat += s * td_cost_heat(profile, class);
        }
    }
    cost.total_s = cost.compute_s + cost.collective_s;
    cost.heat = cost.total_s > 0 ? cost.heat / cost.total_s : profile->heat.memory;
    return cost;
}

static td_status price_work(const builder *b, int32_t profile, int32_t work, int32_t tp_shape)
{
    const uint64_t key[3] = {(uint64_t)profile, (uint64_t)work, (uint64_t)(tp_shape + 1)};
    if (map_get(&b->c->works, key) != NULL)
        return TD_OK;
    const td_work *w = &b->p->works[work];
    work_price *price = TD_NEW(b->arena, work_price, 1);
    double *part_s = TD_NEW(b->arena, double, w->n_parts);
    if (price == NULL || part_s == NULL)
        return no_memory(b);
    for (int32_t i = 0; i < w->n_parts; i++)
        part_s[i] =
            price_part(b, profile, tp_shape < 0 ? NULL : &b->c->shapes[tp_shape], &w->parts[i]);
    price->cost = sum_of(b->c->profiles[profile], w, part_s);
    price->part_s = part_s;
    return map_put(&b->c->works, b->arena, key, price) ? TD_OK : no_memory(b);
}

static int32_t tp_shape(const td_costs *c, int32_t rank)
{
    const td_rank *r = &c->program->ranks[rank];
    const int32_t chan = c->tp_chan[r->stream];
    return chan < 0 ? -1 : c->shape_of[r->chans[chan].comm];
}

static td_status price_rank(const builder *b, int32_t rank)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(b->p, rank);
    const int32_t tp = tp_shape(b->c, rank);
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        if (op->work >= 0)
            TD_TRY(st, price_work(b, b->profile_of[rank], op->work, tp));
        if (op->chan >= 0)
            TD_TRY(st, price_op(b, b->c->shape_of[b->p->ranks[rank].chans[op->chan].comm], op));
    }
done:
    return st;
}

/* Prices each role, which is a stream, a profile and the shapes behind the channels, at its first
 * rank. */
static td_status price_roles(builder *b)
{
    td_status st = TD_OK;
    int32_t most = 0;
    for (int32_t i = 0; i < b->p->n_streams; i++)
        most = b->p->streams[i].n_chans > most ? b->p->streams[i].n_chans : most;
    int32_t *tuple = TD_NEW(b->tmp, int32_t, most + 2);
    if (tuple == NULL)
        TD_TRY(st, no_memory(b));
    for (int32_t r = 0; r < b->p->world_size; r++) {
        const td_rank *rank = &b->p->ranks[r];
        const int32_t n = td_program_stream(b->p, r)->n_chans, n_roles = b->roles.n;
        tuple[0] = rank->stream;
        tuple[1] = b->profile_of[r];
        for (int32_t i = 0; i < n; i++)
            tuple[2 + i] = b->c->shape_of[rank->chans[i].comm];
        const int32_t role = td_intern_get(&b->roles, tuple, (size_t)n + 2);
        if (role < 0)
            TD_TRY(st, no_memory(b));
        if (role == n_roles)
            TD_TRY(st, price_rank(b, r));
    }
done:
    return st;
}

static td_status refuse_extrapolation(const builder *b, int64_t before)
{
    const td_cost_note *first = b->notes->head;
    if (!b->o->strict || b->notes->n_extrapolated == before || first == NULL)
        return TD_OK;
    return td_fail(b->err, TD_PLAN,
                   "the profile has no measurement for %d of the program's shapes, such as %s: %s",
                   b->notes->n, first->what, first->why);
}

td_status td_costs_build(td_arena *a, const td_program *p, const td_topology *topo,
                         const td_costs_options *o, td_cost_notes *notes, const td_costs **out,
                         td_err *err)
{
    td_status st = TD_OK;
    td_cost_notes own = {.arena = a};
    builder b = {.arena = a,
                 .tmp = td_arena_new(),
                 .p = p,
                 .cluster = p->plan->cluster,
                 .topo = topo,
                 .o = o,
                 .notes = notes != NULL ? notes : &own,
                 .c = TD_NEW(a, td_costs, 1),
                 .err = err};
    const int64_t before = b.notes->n_extrapolated;
    if (b.tmp == NULL || b.c == NULL)
        TD_TRY(st, no_memory(&b));
    b.c->program = p;
    TD_TRY(st, place_ranks(&b));
    TD_TRY(st, place_comms(&b));
    TD_TRY(st, find_tp_chans(&b));
    TD_TRY(st, price_roles(&b));
    TD_TRY(st, refuse_extrapolation(&b, before));
    *out = b.c;
done:
    td_intern_free(&b.shapes);
    td_intern_free(&b.roles);
    td_arena_free(b.tmp);
    return st;
}

/* ---- looking up ---- */

static const work_price *find_work(const td_costs *c, int32_t rank, int32_t work)
{
    const uint64_t key[3] = {c->profile_of[rank], (uint64_t)work,
                             (uint64_t)(tp_shape(c, rank) + 1)};
    const work_price *price = map_get(&c->works, key);
    assert(price != NULL); /* only works of the rank's own stream are priced */
    return price;
}

const td_work_cost *td_costs_work(const td_costs *c, int32_t rank, int32_t work)
{
    return &find_work(c, rank, work)->cost;
}

double td_costs_part(const td_costs *c, int32_t rank, int32_t work, int32_t part_index)
{
    return find_work(c, rank, work)->part_s[part_index];
}

double td_costs_work_until(const td_costs *c, int32_t rank, int32_t work, int64_t after_part)
{
    const work_price *price = find_work(c, rank, work);
    const td_work *w = &c->program->works[work];
    double until = 0;
    int64_t left = after_part;
    if (after_part >= w->n_flat)
        return price->cost.total_s;
    for (int32_t r = 0; r < w->n_runs && left > 0; r++) {
        const td_part_run *run = &w->runs[r];
        const int64_t whole =
            run->n == 0 || left / run->n > run->repeat ? run->repeat : left / run->n;
        for (int32_t i = 0; i < run->n; i++) {
            const int64_t times = whole + (whole < run->repeat && i < left - whole * run->n);
            until += price->part_s[run->first + i] * (double)times;
        }
        left -= (int64_t)run->n * run->repeat;
    }
    return fmin(until, price->cost.total_s); /* summed in another order */
}

const td_op_cost *td_costs_op(const td_costs *c, int32_t rank, const td_op *op)
{
    const int32_t comm = c->program->ranks[rank].chans[op->chan].comm;
    const uint64_t key[3] = {(uint64_t)c->shape_of[comm], op->kind, op->bytes};
    const td_op_cost *cost = map_get(&c->ops, key);
    assert(cost != NULL);
    return cost;
}

const td_profile *td_costs_profile(const td_costs *c, int32_t rank)
{
    return c->profiles[c->profile_of[rank]];
}

/* ---- what the prices are made of ---- */

/* Parts of a work, each with the communicator behind it if it is a collective. */
static td_priced priced_part(const td_costs *c, const uint64_t key[3], const work_price *price,
                             int32_t i, td_comm_query *query)
{
    const td_part *part = &c->program->works[key[1]].parts[i];
    td_priced what = {.profile = c->profiles[key[0]], .part = part, .seconds = price->part_s[i]};
    if (part->class == TD_PART_COLLECTIVE) {
        *query = query_of(&c->shapes[key[2] - 1], (td_coll)part->collective, part->bytes, true);
        what.query = query;
    }
    return what;
}

static td_priced priced_op(const td_costs *c, const uint64_t key[3], const td_op_cost *cost,
                           td_comm_query *query)
{
    const shape *s = &c->shapes[key[0]];
    int32_t first = 0;
    while ((s->profiles >> first & 1) == 0)
        first++;
    *query = query_of(s, td_op_table[key[1]].coll, key[2], false);
    return (td_priced){
        .profile = c->profiles[first], .query = query, .seconds = cost->lone.total_s};
}

void td_costs_visit(const td_costs *c, int32_t rank, const td_op *op, void *self,
                    void (*visit)(void *self, const td_priced *what, double times))
{
    td_comm_query query;
    td_priced what;
    if (op->chan >= 0) {
        const uint64_t key[3] = {
            (uint64_t)c->shape_of[c->program->ranks[rank].chans[op->chan].comm], op->kind,
            op->bytes};
        what = priced_op(c, key, td_costs_op(c, rank, op), &query);
        visit(self, &what, 1);
        return;
    }
    const uint64_t key[3] = {c->profile_of[rank], (uint64_t)op->work,
                             (uint64_t)(tp_shape(c, rank) + 1)};
    const work_price *price = find_work(c, rank, op->work);
    const td_work *w = &c->program->works[op->work];
    for (int32_t r = 0; r < w->n_runs; r++)
        for (int32_t i = w->runs[r].first; i < w->runs[r].first + w->runs[r].n; i++) {
            what = priced_part(c, key, price, i, &query);
            visit(self, &what, w->runs[r].repeat);
        }
}

typedef struct {
    td_arena *arena;
    const td_costs *from;
    td_costs *to;
    void *self;
    double (*factor)(void *self, const td_priced *what);
} rescaling;

static bool rescale_work(const rescaling *r, const entry *e)
{
    const work_price *price = e->price;
    const td_work *w = &r->from->program->works[e->key[1]];
    work_price *out = TD_NEW(r->arena, work_price, 1);
    double *part_s = TD_NEW(r->arena, double, w->n_parts);
    if (out == NULL || part_s == NULL)
        return false;
    for (int32_t i = 0; i < w->n_parts; i++) {
        td_comm_query query;
        const td_priced what = priced_part(r->from, e->key, price, i, &query);
        part_s[i] = what.seconds * r->factor(r->self, &what);
    }
    *out = (work_price){.cost = sum_of(r->from->profiles[e->key[0]], w, part_s), .part_s = part_s};
    return map_put(&r->to->works, r->arena, e->key, out);
}

static bool rescale_op(const rescaling *r, const entry *e)
{
    td_comm_query query;
    const td_priced what = priced_op(r->from, e->key, e->price, &query);
    const double factor = r->factor(r->self, &what);
    td_op_cost *out = TD_NEW(r->arena, td_op_cost, 1);
    if (out == NULL)
        return false;
    *out = *(const td_op_cost *)e->price;
    out->lone.alpha_s *= factor;
    out->lone.total_s *= factor;
    out->rate = lone_rate(&r->from->shapes[e->key[0]], out);
    return map_put(&r->to->ops, r->arena, e->key, out);
}

td_status td_costs_rescaled(td_arena *a, const td_costs *c, void *self,
                            double (*factor)(void *self, const td_priced *what),
                            const td_costs **out, td_err *err)
{
    const rescaling r = {
        .arena = a, .from = c, .to = TD_NEW(a, td_costs, 1), .self = self, .factor = factor};
    bool fits = r.to != NULL;
    if (fits) {
        *r.to = *c;
        r.to->works = r.to->ops = (map){0};
    }
    for (int32_t i = 0; fits && i < N_BUCKETS; i++) {
        for (const entry *e = c->works.buckets[i]; fits && e != NULL; e = e->next)
            fits = rescale_work(&r, e);
        for (const entry *e = c->ops.buckets[i]; fits && e != NULL; e = e->next)
            fits = rescale_op(&r, e);
    }
    if (!fits)
        return td_fail(err, TD_NOMEM, "no memory for prices of %d ranks", c->program->world_size);
    *out = r.to;
    return TD_OK;
}
