/* Adds and takes away; for a folded run finds out first which links are alike. */
#include "sim/loads.h"

#include "sim/intern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNIT 256.0 /* a load of 1 is 1/256 byte/s */

int32_t td_comm_edges(const td_comm *c)
{
    return c->n_ranks < 2 ? 0 : c->kind == TD_COMM_PAIR ? 1 : c->n_ranks;
}

void td_comm_edge(const td_comm *c, int32_t edge, int32_t *from, int32_t *to)
{
    *from = c->ranks[edge];
    *to = c->ranks[edge + 1 < c->n_ranks ? edge + 1 : 0];
}

static void link_add(td_loads *l, int32_t link, int64_t load, int64_t n_flows)
{
    td_link_load *k = &l->links[link];
    k->load += load;
    k->n_flows += n_flows;
    if (k->load > k->peak)
        k->peak = k->n_flows > 1 || k->load < k->room ? k->load : k->room;
    if (td_link_over(k) && !k->hot) {
        k->hot = true;
        l->hot[l->n_hot++] = link;
    }
}

static void route_of(const td_program *p, const td_topology *topo, int32_t comm, int32_t edge,
                     td_route *out)
{
    int32_t from, to;
    td_comm_edge(&p->comms[comm], edge, &from, &to);
    td_topology_route(topo, from, to, out);
}

int32_t td_loads_strands(const td_loads *l, int32_t comm)
{
    return l->fold == NULL ? td_comm_edges(&l->program->comms[comm])
                           : l->strand_first[comm + 1] - l->strand_first[comm];
}

int64_t td_loads_flows(const td_loads *l, int32_t comm, int32_t strand)
{
    return l->fold == NULL ? 1 : l->strand_flows[l->strand_first[comm] + strand];
}

int32_t td_loads_path(const td_loads *l, int32_t comm, int32_t strand, int32_t link[TD_MAX_ROUTE])
{
    int32_t n = 0;
    if (l->fold == NULL) {
        td_route route;
        route_of(l->program, l->topo, comm, strand, &route);
        for (; n < route.n; n++)
            link[n] = route.link[n];
    } else {
        const int32_t s = l->strand_first[comm] + strand;
        for (int64_t i = l->crossing_first[s]; i < l->crossing_first[s + 1]; i++)
            link[n++] = l->crossings[i].link;
    }
    return n;
}

double td_loads_capacity(const td_loads *l, int32_t link)
{
    return l->fold == NULL ? td_topology_capacity(l->topo, link) : l->share[link];
}

static void strand_add(td_loads *l, int32_t comm, int32_t strand, int64_t load, int64_t n_flows)
{
    if (l->fold == NULL) {
        td_route route;
        route_of(l->program, l->topo, comm, strand, &route);
        for (int32_t i = 0; i < route.n; i++)
            link_add(l, route.link[i], load, n_flows);
    } else {
        const int32_t s = l->strand_first[comm] + strand;
        for (int64_t i = l->crossing_first[s]; i < l->crossing_first[s + 1]; i++)
            link_add(l, l->crossings[i].link, load * l->crossings[i].times,
                     n_flows * l->crossings[i].times);
    }
}

static void comm_add(td_loads *l, int32_t comm, int64_t load, int64_t n_flows)
{
    for (int32_t s = 0; s < td_loads_strands(l, comm); s++)
        strand_add(l, comm, s, load, n_flows);
}

static int64_t units(double rate)
{
    return llround(rate * UNIT);
}

void td_loads_add(td_loads *l, int32_t comm, double rate)
{
    comm_add(l, comm, units(rate), 1);
}

void td_loads_remove(td_loads *l, int32_t comm, double rate)
{
    comm_add(l, comm, -units(rate), -1);
}

void td_loads_remove_strand(td_loads *l, int32_t comm, int32_t strand, double rate)
{
    strand_add(l, comm, strand, -units(rate), -1);
}

double td_loads_peak(const td_loads *l)
{
    double peak = 0;
    for (int32_t i = 0; i < l->n_links; i++)
        if (l->links[i].room > 0)
            peak = fmax(peak, (double)l->links[i].peak / (double)l->links[i].room);
    return peak;
}

/* ---- building ---- */

typedef struct {
    const td_program *p;
    const td_topology *topo;
    const td_fold *fold;
    const uint8_t *flows;
} source;

/* Calls visit() for every edge of every communicator with flows. */
static void each_edge(const source *s,
                      void (*visit)(void *self, int32_t comm, const td_route *route), void *self)
{
    for (int64_t c = 0; c < s->p->n_comms; c++)
        for (int32_t e = 0; s->flows[c] != 0 && e < td_comm_edges(&s->p->comms[c]); e++) {
            td_route route;
            route_of(s->p, s->topo, (int32_t)c, e, &route);
            visit(self, (int32_t)c, &route);
        }
}

/* Finds out which links and edges are alike: partition refinement, links by what crosses them,
 * edges by what they cross. */
typedef struct {
    const td_fold *fold;
    int32_t *entry;      /* [links] */
    uint64_t (*mark)[2]; /* [links]: sum over the strands that cross it of 128 mixed bits; order
                            does not matter */
    td_intern strands;   /* (communicator class, entries on the way) */
    bool *first;         /* [links]: the first link of its entry */
    td_intern pairs;     /* (strand, entry) for the first links */
    int64_t *times;      /* [pairs] crossings of the entry's first link */
    int32_t cap_times;
    int64_t *flows; /* [strands] */
    bool nomem;
} classifier;

static uint64_t mix(uint64_t x) /* splitmix64 (Steele, Lea, Flood, OOPSLA'14) */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static int32_t strand_of(classifier *k, int32_t comm, const td_route *route)
{
    int32_t tuple[TD_MAX_ROUTE + 1] = {k->fold->comm_of[comm]};
    for (int32_t i = 0; i < route->n; i++)
        tuple[i + 1] = k->entry[route->link[i]];
    const int32_t id = td_intern_get(&k->strands, tuple, (size_t)route->n + 1);
    k->nomem |= id < 0;
    return id;
}

static void visit_mark(void *self, int32_t comm, const td_route *route)
{
    classifier *k = self;
    const uint64_t id = (uint64_t)strand_of(k, comm, route);
    for (int32_t i = 0; i < route->n; i++) {
        k->mark[route->link[i]][0] += mix(2 * id);
        k->mark[route->link[i]][1] += mix(2 * id + 1);
    }
}

/* One round: links of one entry that are crossed differently part. Returns the number of entries.
 */
static int32_t refine(const source *s, classifier *k, int32_t n_links)
{
    td_intern entries = {0};
    memset(k->mark, 0, (size_t)n_links * sizeof *k->mark);
    td_intern_clear(&k->strands);
    each_edge(s, visit_mark, k);
    for (int32_t i = 0; i < n_links && !k->nomem; i++) {
        int32_t tuple[5] = {k->entry[i]};
        memcpy(tuple + 1, k->mark[i], sizeof k->mark[i]);
        const int32_t n = entries.n;
        k->entry[i] = td_intern_get(&entries, tuple, 5);
        k->first[i] = k->entry[i] == n;
        k->nomem |= k->entry[i] < 0;
    }
    const int32_t n_entries = entries.n;
    td_intern_free(&entries);
    return n_entries;
}

static void visit_count(void *self, int32_t comm, const td_route *route)
{
    classifier *k = self;
    const int32_t strand = k->nomem ? -1 : strand_of(k, comm, route);
    if (k->nomem)
        return;
    k->flows[strand]++;
    for (int32_t i = 0; i < route->n && !k->nomem; i++) {
        if (!k->first[route->link[i]])
            continue;
        const int32_t pair[] = {strand, k->entry[route->link[i]]};
        const int32_t n = k->pairs.n, id = td_intern_get(&k->pairs, pair, 2);
        if (id == n && n == k->cap_times) {
            const int32_t cap = n == 0 ? 256 : 2 * n;
            int64_t *times = realloc(k->times, (size_t)cap * sizeof *times);
            k->nomem = times == NULL;
            k->times = times == NULL ? k->times : times;
            k->cap_times = times == NULL ? k->cap_times : cap;
        }
        k->nomem |= id < 0;
        if (!k->nomem)
            k->times[id] = (id == n ? 0 : k->times[id]) + 1;
    }
}

/* Strands in the order of their communicator class, with what they cross. */
static td_status lay_strands(td_arena *a, td_loads *l, const classifier *k, td_err *err)
{
    const int32_t n_comms = l->fold->n_comms, n = k->strands.n, n_pairs = k->pairs.n;
    td_status st = TD_OK;
    int32_t *first = TD_NEW(a, int32_t, n_comms + 2), *place = TD_NEW(a, int32_t, n);
    int64_t *flows = TD_NEW(a, int64_t, n), *crossing = TD_NEW(a, int64_t, n + 2);
    struct td_crossing *crossings = TD_NEW(a, struct td_crossing, n_pairs);
    double *share = TD_NEW(a, double, l->n_links);
    int32_t *times = TD_NEW(a, int32_t, l->n_links);
    if (first == NULL || place == NULL || flows == NULL || crossing == NULL || crossings == NULL ||
        share == NULL || times == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d link classes", l->n_links));
    for (int32_t i = 0; i < n; i++)
        first[k->strands.words[k->strands.first[i]] + 2]++;
    for (int32_t c = 0; c < n_comms; c++)
        first[c + 2] += first[c + 1];
    for (int32_t i = 0; i < n; i++) {
        place[i] = first[k->strands.words[k->strands.first[i]] + 1]++;
        flows[place[i]] = k->flows[i];
    }
    for (int32_t i = 0; i < n_pairs; i++)
        crossing[place[k->pairs.words[2 * i]] + 2]++;
    for (int32_t i = 0; i < n; i++)
        crossing[i + 2] += crossing[i + 1];
    l->even = true;
    for (int32_t i = 0; i < n_pairs; i++) {
        const int32_t link = k->pairs.words[2 * i + 1], many = (int32_t)k->times[i];
        crossings[crossing[place[k->pairs.words[2 * i]] + 1]++] =
            (struct td_crossing){.link = link, .times = many};
        l->even = l->even && (times[link] == 0 || times[link] == many);
        times[link] = many;
    }
    for (int32_t i = 0; i < l->n_links; i++)
        share[i] = (double)l->links[i].room / UNIT / (1 + 1e-9) / (times[i] == 0 ? 1 : times[i]);
    l->strand_first = first;
    l->strand_flows = flows;
    l->crossing_first = crossing;
    l->crossings = crossings;
    l->share = share;
done:
    return st;
}

static td_status build_folded(td_arena *a, td_loads *l, const source *s, td_err *err)
{
    td_status st = TD_OK;
    td_arena *tmp = td_arena_new();
    const int32_t n_links = td_topology_n_links(s->topo);
    classifier k = {.fold = s->fold};
    td_intern capacities = {0};
    int32_t n_entries, before;
    k.entry = tmp == NULL ? NULL : TD_NEW(tmp, int32_t, n_links);
    k.first = tmp == NULL ? NULL : TD_NEW(tmp, bool, n_links);
    k.mark = tmp == NULL ? NULL : td_arena_alloc(tmp, (size_t)n_links, sizeof *k.mark);
    if (k.entry == NULL || k.first == NULL || k.mark == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d links", n_links));
    for (int32_t i = 0; i < n_links; i++) {
        const double capacity = td_topology_capacity(s->topo, i);
        int32_t tuple[2];
        memcpy(tuple, &capacity, sizeof capacity);
        k.entry[i] = td_intern_get(&capacities, tuple, 2);
        k.nomem |= k.entry[i] < 0;
    }
    n_entries = capacities.n;
    do {
        before = n_entries;
        n_entries = refine(s, &k, n_links);
    } while (n_entries != before && !k.nomem);
    td_intern_clear(&k.strands); /* once more, now that entries stay */
    each_edge(s, visit_mark, &k);
    k.flows = k.nomem ? NULL : TD_NEW(tmp, int64_t, k.strands.n);
    k.nomem |= k.flows == NULL;
    each_edge(s, visit_count, &k);
    if (k.nomem)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d links", n_links));
    l->n_links = n_entries;
    for (int32_t i = 0; i < n_links; i++)
        if (k.first[i])
            l->links[k.entry[i]].room =
                (int64_t)(td_topology_capacity(s->topo, i) * UNIT * (1 + 1e-9));
    TD_TRY(st, lay_strands(a, l, &k, err));
done:
    td_intern_free(&capacities);
    td_intern_free(&k.strands);
    td_intern_free(&k.pairs);
    free(k.times);
    td_arena_free(tmp);
    return st;
}

typedef struct {
    const td_topology *topo;
    int32_t dead;
} dead_search;

static void visit_dead(void *self, int32_t comm, const td_route *route)
{
    dead_search *d = self;
    (void)comm;
    for (int32_t i = 0; i < route->n; i++)
        if (d->dead < 0 && !(td_topology_capacity(d->topo, route->link[i]) > 0))
            d->dead = route->link[i];
}

td_status td_loads_build(td_arena *a, const td_program *p, const td_topology *topo,
                         const td_fold *fold, const uint8_t *flows, td_loads *out, td_err *err)
{
    td_status st = TD_OK;
    const source s = {.p = p, .topo = topo, .fold = fold, .flows = flows};
    const int32_t n_links = td_topology_n_links(topo);
    td_loads l = {.program = p, .topo = topo, .fold = fold, .n_links = n_links};
    dead_search d = {.topo = topo, .dead = -1};
    char name[96];
    l.links = TD_NEW(a, td_link_load, n_links);
    l.hot = TD_NEW(a, int32_t, n_links);
    if (l.links == NULL || l.hot == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d links", n_links));
    each_edge(&s, visit_dead, &d);
    if (d.dead >= 0) {
        td_topology_link_name(topo, d.dead, name, sizeof name);
        TD_TRY(st, td_fail(err, TD_PLAN,
                           "%s carries nothing, but the step sends over it: give it a bandwidth",
                           name));
    }
    if (fold == NULL)
        for (int32_t i = 0; i < n_links; i++)
            l.links[i].room = (int64_t)(td_topology_capacity(topo, i) * UNIT * (1 + 1e-9));
    else
        TD_TRY(st, build_folded(a, &l, &s, err));
    *out = l;
done:
    return st;
}
