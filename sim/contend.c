/*
 * Flows that share an over-subscribed link, handed to a back-end with the bytes they have left.
 * Each strand of a communicator is a path of the back-end, one for each lane its flows come from;
 * in a folded run one flow stands for all that are alike.
 */
#include "sim/loop.h"

#include <math.h>
#include <string.h>

typedef struct {
    int32_t comm, strand, lane;
} owner;

typedef struct td_contention {
    const td_net *net;
    td_net_session *session;
    td_loop *loop;
    td_loop_end end;
    const uint8_t *flows;
    int32_t n_paths;
    td_net_path *paths;
    owner *owners; /* [n_paths] */
    int32_t
        *exchange; /* [n_paths] the exchange that was promoted on the path and is not over; -1 */
    int32_t *first_path; /* [n_comms] lanes ascending, edges ascending */
    int64_t *first_on;   /* [n_links + 1] */
    int32_t *on;         /* paths over a link: on[first_on[link]] ... */
    int64_t in_flight;
} contention;

static int32_t n_lanes(uint32_t mask)
{
    int32_t n = 0;
    for (; mask != 0; mask &= mask - 1)
        n++;
    return n;
}

/* Lanes on which flows go over a communicator (class). */
static uint32_t lanes_of(const contention *c, int32_t comm)
{
    const td_fold *fold = c->loop->fold;
    return c->flows[fold == NULL ? comm : fold->comm_rep[comm]];
}

/* Strands that can flow: none where no flow goes over the communicator. */
static int32_t strands_of(const contention *c, int32_t comm)
{
    return td_loads_strands(c->loop->loads, comm);
}

static int32_t path_of(const contention *c, int32_t comm, int32_t lane, int32_t strand)
{
    const int32_t before = n_lanes(lanes_of(c, comm) & ((1u << lane) - 1u));
    return c->first_path[comm] + before * strands_of(c, comm) + strand;
}

/* ---- building ---- */

static void lay_path(contention *c, int32_t path)
{
    const owner *o = &c->owners[path];
    int32_t links[TD_MAX_ROUTE];
    c->paths[path].n = td_loads_path(c->loop->loads, o->comm, o->strand, links);
    memcpy(c->paths[path].link, links, (size_t)c->paths[path].n * sizeof *links);
    for (int32_t i = 0; i < c->paths[path].n; i++)
        c->first_on[links[i] + 1]++;
    c->exchange[path] = -1;
}

static td_status lay_paths(contention *c, td_arena *a, int32_t n_links, td_err *err)
{
    const td_fold *fold = c->loop->fold;
    const int64_t n_comms = fold == NULL ? c->loop->program->n_comms : fold->n_comms;
    td_status st = TD_OK;
    int64_t n = 0, n_on = 0;
    for (int32_t k = 0; k < n_comms; k++)
        n += (int64_t)strands_of(c, k) * n_lanes(lanes_of(c, k));
    if (n > INT32_MAX)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "%lld paths are more than can be simulated", (long long)n));
    c->paths = TD_NEW(a, td_net_path, n);
    c->owners = TD_NEW(a, owner, n);
    c->exchange = TD_NEW(a, int32_t, n);
    c->first_path = TD_NEW(a, int32_t, n_comms);
    c->first_on = TD_NEW(a, int64_t, n_links + 1);
    if (c->paths == NULL || c->owners == NULL || c->exchange == NULL || c->first_path == NULL ||
        c->first_on == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %lld paths", (long long)n));
    for (int32_t k = 0; k < n_comms; k++) {
        c->first_path[k] = c->n_paths;
        for (int32_t lane = 0; lane < TD_N_LANES; lane++)
            for (int32_t e = 0; (lanes_of(c, k) >> lane & 1) != 0 && e < strands_of(c, k); e++) {
                c->owners[c->n_paths] = (owner){.comm = k, .strand = e, .lane = lane};
                lay_path(c, c->n_paths++);
            }
    }
    for (int32_t i = 0; i < n_links; i++)
        c->first_on[i + 1] += c->first_on[i];
    n_on = c->first_on[n_links];
    c->on = TD_NEW(a, int32_t, n_on);
    if (c->on == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %lld paths", (long long)n));
    for (int32_t path = c->n_paths - 1; path >= 0;
         path--) /* from the last: each link's end moves to its begin */
        for (int32_t i = 0; i < c->paths[path].n; i++)
            c->on[--c->first_on[c->paths[path].link[i] + 1]] = path;
    for (int32_t i = 0; i < n_links; i++) /* entry i + 1 now holds the begin of link i */
        c->first_on[i] = c->first_on[i + 1];
    c->first_on[n_links] = n_on;
done:
    return st;
}

static void body(void *self, td_net_session *session)
{
    contention *c = self;
    c->session = session;
    c->end = td_loop_run(c->loop);
}

td_status td_contention_run(td_loop *l, const td_net *net, const uint8_t *flows, td_err *err)
{
    td_status st = TD_OK;
    td_arena *a = td_arena_new();
    const int32_t n_links = l->loads->n_links;
    contention c = {.net = net, .loop = l, .flows = flows, .end = TD_LOOP_NOMEM};
    double *capacity = a == NULL ? NULL : TD_NEW(a, double, n_links);
    if (capacity == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d links", n_links));
    for (int32_t i = 0; i < n_links; i++)
        capacity[i] = td_loads_capacity(l->loads, i);
    TD_TRY(st, lay_paths(&c, a, n_links, err));
    l->contention = &c;
    const td_net_platform platform = {
        .n_links = n_links, .n_paths = c.n_paths, .capacity = capacity, .paths = c.paths};
    TD_TRY(st, net->run(&platform, body, &c, err));
    if (c.end == TD_LOOP_NOMEM)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate %lld ops", (long long)l->n_ops));
done:
    l->contention = NULL;
    td_arena_free(a);
    return st;
}

/* ---- at work ---- */

/* The analytic flow on a path; -1: none. */
static int32_t flowing(const td_loop *l, int32_t path)
{
    const contention *c = l->contention;
    const owner *o = &c->owners[path];
    int32_t n;
    const td_actor *member = &l->actors[td_loop_members(l, o->comm, &n)[0]];
    for (int lane = 0; lane < TD_N_LANES; lane++) {
        const int32_t x = member->exchange[lane];
        if (x < 0 || c->exchange[path] == x)
            continue;
        const td_exchange *e = &l->exchanges[x];
        if (e->comm == o->comm && e->lane == o->lane && e->phase == TD_X_FLUID && e->n_analytic > 0)
            return x;
    }
    return -1;
}

/* A flow with less than half a byte left stays where it is: it ends before anybody notices. */
static void promote(td_loop *l, int32_t x, int32_t path)
{
    contention *c = l->contention;
    td_exchange *e = &l->exchanges[x];
    const double left = (e->cost->lone.total_s - td_pace_work(&e->pace, l->now)) * e->cost->rate;
    const double bytes = fmin(round(left), (double)e->cost->edge_bytes);
    if (!(bytes >= 1))
        return;
    c->exchange[path] = x;
    c->in_flight++;
    e->n_promoted++;
    l->n_promoted += td_loads_flows(l->loads, e->comm, c->owners[path].strand);
    if (--e->n_analytic == 0)
        td_loop_unschedule(l, x);
    c->net->start(c->session, l->now, path, (uint64_t)bytes, e->cost->rate / e->pace.factor,
                  e->cost->rate);
}

bool td_contention_promote(td_loop *l)
{
    const contention *c = l->contention;
    for (int32_t h = 0; h < l->loads->n_hot; h++) {
        const int32_t link = l->loads->hot[h];
        l->loads->links[link].hot = false;
        if (!td_link_over(&l->loads->links[link]))
            continue;
        for (int64_t i = c->first_on[link]; i < c->first_on[link + 1]; i++) {
            const int32_t x = flowing(l, c->on[i]);
            if (x >= 0)
                promote(l, x, c->on[i]);
        }
    }
    l->loads->n_hot = 0;
    for (size_t i = 0; i < l->fresh.n; i++) {
        const int32_t x = l->fresh.items[i];
        const td_exchange *e = &l->exchanges[x];
        const int32_t n = e->phase == TD_X_FLUID ? strands_of(c, e->comm) : 0;
        for (int32_t strand = 0; strand < n; strand++) {
            const int32_t path = path_of(c, e->comm, e->lane, strand);
            if (c->exchange[path] != x)
                promote(l, x, path);
        }
    }
    l->fresh.n = 0;
    return !l->nomem;
}

void td_contention_limit(td_loop *l, int32_t x)
{
    const contention *c = l->contention;
    const td_exchange *e = &l->exchanges[x];
    for (int32_t strand = 0; strand < td_loads_strands(l->loads, e->comm); strand++) {
        const int32_t path = path_of(c, e->comm, e->lane, strand);
        if (c->exchange[path] == x)
            c->net->limit(c->session, l->now, path, e->cost->rate / e->pace.factor);
    }
}

void td_contention_settle(td_loop *l, int32_t x)
{
    const td_exchange *e = &l->exchanges[x];
    for (int32_t strand = 0; strand < td_loads_strands(l->loads, e->comm); strand++)
        if (l->contention->exchange[path_of(l->contention, e->comm, e->lane, strand)] != x)
            td_loads_remove_strand(l->loads, e->comm, strand, e->cost->rate);
}

void td_contention_forget(td_loop *l, int32_t x)
{
    const td_exchange *e = &l->exchanges[x];
    for (int32_t strand = 0; strand < td_loads_strands(l->loads, e->comm); strand++) {
        const int32_t path = path_of(l->contention, e->comm, e->lane, strand);
        if (l->contention->exchange[path] == x)
            l->contention->exchange[path] = -1;
    }
}

bool td_contention_busy(const td_loop *l)
{
    return l->contention != NULL && l->contention->in_flight > 0;
}

static void flow_ended(td_loop *l, int32_t path)
{
    contention *c = l->contention;
    const int32_t x = c->exchange[path];
    td_exchange *e = &l->exchanges[x];
    c->in_flight--;
    td_loads_remove_strand(l->loads, e->comm, c->owners[path].strand, e->cost->rate);
    if (--e->n_promoted == 0 && e->n_analytic == 0)
        td_loop_finish(l, x);
}

bool td_contention_wait(td_loop *l, double until)
{
    contention *c = l->contention;
    double when = l->now;
    int32_t path = c->net->wait(c->session, until, &when);
    const bool any = path >= 0;
    if (any && when > l->now)
        l->now = when < until ? when : until;
    for (; path >= 0; path = c->in_flight > 0 ? c->net->wait(c->session, l->now, &when) : -1)
        flow_ended(l, path);
    return any;
}
