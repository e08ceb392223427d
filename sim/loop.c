/* Plays a step: events from a heap, ops issued as soon as nothing holds them back. */
#include "sim/loop.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- small things ---- */

bool td_list_push(td_list *list, int32_t item)
{
    if (list->n == list->cap) {
        const size_t cap = list->cap == 0 ? 256 : list->cap * 2;
        int32_t *items = realloc(list->items, cap * sizeof *items);
        if (items == NULL)
            return false;
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = item;
    return true;
}

const int32_t *td_loop_members(const td_loop *l, int32_t comm, int32_t *n)
{
    if (l->fold == NULL) {
        *n = l->program->comms[comm].n_ranks;
        return l->program->comms[comm].ranks;
    }
    *n = l->fold->member_first[comm + 1] - l->fold->member_first[comm];
    return l->fold->members + l->fold->member_first[comm];
}

const td_comm *td_loop_comm(const td_loop *l, int32_t comm)
{
    return &l->program->comms[l->fold == NULL ? comm : l->fold->comm_rep[comm]];
}

/* Events of actors have the ids below n_actors, those of exchanges come after. */
static uint32_t schedule(td_loop *l, uint32_t id, double time, uint32_t late)
{
    const td_heap_event e = {
        .time = time > l->now ? time : l->now, .seq = ++l->seq | late, .id = id};
    l->nomem |= !td_heap_push(&l->heap, e);
    return e.seq;
}

static void schedule_exchange(td_loop *l, int32_t x, double time, uint32_t late)
{
    l->exchanges[x].seq = schedule(l, (uint32_t)(l->n_actors + x), time, late);
}

void td_loop_unschedule(td_loop *l, int32_t x)
{
    l->exchanges[x].seq = 0;
}

static void mark_actor(td_loop *l, int32_t a)
{
    if (!l->actors[a].dirty) {
        l->actors[a].dirty = true;
        l->nomem |= !td_list_push(&l->dirty_actors, a);
    }
}

static void mark_exchange(td_loop *l, int32_t x)
{
    if (!l->exchanges[x].dirty) {
        l->exchanges[x].dirty = true;
        l->nomem |= !td_list_push(&l->dirty_exchanges, x);
    }
}

/* ---- exchanges come and go ---- */

static int32_t exchange_new(td_loop *l, int32_t comm, int32_t ordinal)
{
    int32_t x = l->free_exchange;
    if (x >= 0) {
        l->free_exchange = l->exchanges[x].next;
    } else {
        if (l->n_exchanges == l->cap_exchanges) {
            const int32_t cap = l->cap_exchanges == 0 ? 256 : l->cap_exchanges * 2;
            td_exchange *exchanges = realloc(l->exchanges, (size_t)cap * sizeof *exchanges);
            if (exchanges == NULL)
                return -1;
            l->exchanges = exchanges;
            l->cap_exchanges = cap;
        }
        x = l->n_exchanges++;
    }
    l->exchanges[x] = (td_exchange){.comm = comm,
                                    .ordinal = ordinal,
                                    .next = l->live[comm],
                                    .phase = TD_X_GATHER,
                                    .pace.factor = 1};
    l->live[comm] = x;
    return x;
}

static int32_t exchange_get(td_loop *l, int32_t comm, int32_t ordinal)
{
    int32_t x = l->live[comm];
    while (x >= 0 && l->exchanges[x].ordinal != ordinal)
        x = l->exchanges[x].next;
    return x >= 0 ? x : exchange_new(l, comm, ordinal);
}

static void exchange_free(td_loop *l, int32_t x)
{
    td_exchange *e = &l->exchanges[x];
    int32_t *link = &l->live[e->comm];
    while (*link != x)
        link = &l->exchanges[*link].next;
    *link = e->next;
    e->phase = TD_X_FREE;
    e->seq = 0;
    e->next = l->free_exchange;
    l->free_exchange = x;
}

/* ---- ops end ---- */

static void let_go(td_loop *l, int32_t a, int32_t op)
{
    if (--l->actors[a].n_waits[op] == 0)
        l->nomem |= !td_list_push(&l->ready, a) || !td_list_push(&l->ready, op);
}

static void end_op(td_loop *l, int32_t a, int32_t op, double start)
{
    td_actor *actor = &l->actors[a];
    const td_script *s = actor->script;
    const td_script_op *o = &s->ops[op];
    actor->start[op] = start;
    actor->end[op] = l->now;
    actor->op[o->lane] = -1;
    actor->exchange[o->lane] = -1;
    l->n_done++;
    for (int32_t i = o->next; i < o[1].next; i++)
        let_go(l, a, s->nexts[i]);
}

/* Ends the op of every member that has issued it. */
static void end_members(td_loop *l, int32_t x)
{
    const td_exchange *e = &l->exchanges[x];
    int32_t n;
    const int32_t *members = td_loop_members(l, e->comm, &n);
    const bool eager = e->phase == TD_X_EAGER;
    for (int32_t m = 0; m < n; m++) {
        td_actor *actor = &l->actors[members[m]];
        for (int lane = 0; lane < TD_N_LANES; lane++) {
            if (actor->exchange[lane] != x)
                continue;
            const int32_t op = actor->op[lane];
            const bool late =
                eager && actor->script->ops[op].role == TD_ROLE_RECV && e->issued > e->start;
            end_op(l, members[m], op, late ? e->issued : e->start);
        }
    }
}

void td_loop_finish(td_loop *l, int32_t x)
{
    const td_exchange *e = &l->exchanges[x];
    int32_t n = 0;
    if (l->overlap && e->phase == TD_X_FLUID && td_cost_overlaps(e->cost)) {
        const int32_t *members = td_loop_members(l, e->comm, &n);
        for (int32_t m = 0; m < n; m++)
            mark_actor(l, members[m]);
    }
    if (l->contention != NULL && e->phase == TD_X_FLUID)
        td_contention_forget(l, x);
    end_members(l, x);
    if (e->phase == TD_X_EAGER && e->n_arrived < 2)
        l->exchanges[x].phase = TD_X_ARRIVED;
    else
        exchange_free(l, x);
}

/* ---- mutual slow-down ---- */

static int32_t count_busy(const td_loop *l, int32_t comm)
{
    int32_t n, busy = 0;
    const int32_t *members = td_loop_members(l, comm, &n);
    for (int32_t m = 0; m < n; m++)
        busy += l->actors[members[m]].computing;
    return busy;
}

/* An actor begins (+1) or stops (-1) to compute: its transfers may have to slow down. */
static void compute_touches(td_loop *l, const td_actor *actor, int32_t change)
{
    for (int lane = 0; l->overlap && lane < TD_N_LANES; lane++) {
        const int32_t x = actor->exchange[lane];
        if (x >= 0 && l->exchanges[x].phase == TD_X_FLUID &&
            td_cost_overlaps(l->exchanges[x].cost)) {
            l->exchanges[x].n_busy += change;
            mark_exchange(l, x);
        }
    }
}

static double transfer_factor(const td_exchange *e)
{
    return e->n_busy > 0 && e->cost->overlap.transfer > 1 ? e->cost->overlap.transfer : 1;
}

/* What a rank takes because its node has fewer cores than ranks that compute. Actors are ranks
 * here.
 */
static double crowding(const td_loop *l, const td_actor *actor)
{
    const int32_t node = l->cores->node_of[actor - l->actors];
    return td_cores_factor(l->cores, node, l->n_computing[node]);
}

/* An actor begins (+1) or stops (-1) to need a core: others on its node may get another share. */
static void core_touches(td_loop *l, int32_t a, int32_t change)
{
    const int32_t node = l->cores == NULL ? -1 : l->cores->node_of[a];
    if (node < 0)
        return;
    const double before = td_cores_factor(l->cores, node, l->n_computing[node]);
    l->n_computing[node] += change;
    if (td_cores_factor(l->cores, node, l->n_computing[node]) == before)
        return;
    for (int32_t i = l->cores->first[node]; i < l->cores->first[node + 1]; i++)
        mark_actor(l, i);
}

static double compute_factor(const td_loop *l, const td_actor *actor)
{
    const double *stretch = actor->tariff->stretch;
    double factor = 1;
    for (int lane = 0; l->overlap && lane < TD_N_LANES; lane++) {
        const int32_t x = actor->exchange[lane];
        if (x >= 0 && l->exchanges[x].phase == TD_X_FLUID)
            factor = fmax(factor, l->exchanges[x].cost->overlap.compute);
    }
    factor = stretch == NULL ? factor : factor * stretch[actor->op[TD_LANE_COMPUTE]];
    return l->cores == NULL ? factor : factor * crowding(l, actor);
}

/* ---- compute ---- */

static void schedule_compute(td_loop *l, int32_t a)
{
    td_actor *actor = &l->actors[a];
    const td_script_op *op = &actor->script->ops[actor->op[TD_LANE_COMPUTE]];
    const double work = actor->point < op[1].point ? actor->tariff->point_s[actor->point]
                                                   : actor->tariff->slot[op->slot].work_s;
    actor->seq = schedule(l, (uint32_t)a, td_pace_time(&actor->pace, work), 0);
}

static void start_compute(td_loop *l, int32_t a, int32_t op)
{
    td_actor *actor = &l->actors[a];
    actor->op[TD_LANE_COMPUTE] = op;
    actor->point = actor->script->ops[op].point;
    core_touches(l, a, 1);
    actor->pace = (td_pace){.origin = l->now, .factor = compute_factor(l, actor)};
    actor->start[op] = l->now;
    actor->computing = true;
    compute_touches(l, actor, 1);
    schedule_compute(l, a);
}

/* A point of its op has been reached, or its end. */
static void compute_event(td_loop *l, int32_t a)
{
    td_actor *actor = &l->actors[a];
    const int32_t op = actor->op[TD_LANE_COMPUTE];
    if (actor->point < actor->script->ops[op + 1].point) {
        let_go(l, a, actor->script->points[actor->point++].next);
        schedule_compute(l, a);
    } else {
        actor->computing = false;
        actor->seq = 0;
        compute_touches(l, actor, -1);
        core_touches(l, a, -1);
        end_op(l, a, op, actor->start[op]);
    }
}

/* ---- communication ---- */

static void start_exchange(td_loop *l, int32_t x)
{
    td_exchange *e = &l->exchanges[x];
    e->start = e->pace.origin = l->now;
    const bool flows = td_cost_flows(e->cost);
    if (flows) {
        const int64_t alike = l->fold == NULL ? 1 : l->fold->comm_size[e->comm];
        const int32_t edges = td_comm_edges(td_loop_comm(l, e->comm));
        e->n_analytic = l->loads == NULL ? edges : td_loads_strands(l->loads, e->comm);
        l->n_flows += alike * edges;
    }
    if (flows && (l->loads != NULL || td_cost_overlaps(e->cost))) {
        e->phase = TD_X_ALPHA;
        schedule_exchange(l, x, l->now + e->cost->lone.alpha_s, TD_LATE);
    } else {
        e->phase = TD_X_TIMER;
        schedule_exchange(l, x, l->now + e->cost->lone.total_s, 0);
    }
}

/* The latency is over, everything else of this instant has happened: flow, or wait once for the
 * kernel beside it. */
static void begin_flow(td_loop *l, int32_t x)
{
    td_exchange *e = &l->exchanges[x];
    const bool overlaps = td_cost_overlaps(e->cost);
    e->n_busy = overlaps ? count_busy(l, e->comm) : 0;
    if (e->phase == TD_X_ALPHA && e->n_busy > 0 && e->cost->overlap.wait_s > 0) {
        e->phase = TD_X_WAIT;
        e->pace.origin += e->cost->overlap.wait_s;
        schedule_exchange(l, x, l->now + e->cost->overlap.wait_s, TD_LATE);
        return;
    }
    e->phase = TD_X_FLUID;
    if (transfer_factor(e) > 1)
        e->pace = (td_pace){.origin = l->now - e->cost->lone.alpha_s * transfer_factor(e),
                            .factor = transfer_factor(e)};
    schedule_exchange(l, x, td_pace_time(&e->pace, e->cost->lone.total_s), 0);
    if (l->loads != NULL)
        td_loads_add(l->loads, e->comm, e->cost->rate);
    if (l->all)
        l->nomem |= !td_list_push(&l->fresh, x);
    if (overlaps) {
        int32_t n;
        const int32_t *members = td_loop_members(l, e->comm, &n);
        for (int32_t m = 0; m < n; m++)
            mark_actor(l, members[m]);
    }
}

static void exchange_event(td_loop *l, int32_t x)
{
    td_exchange *e = &l->exchanges[x];
    if (e->phase == TD_X_ALPHA || e->phase == TD_X_WAIT) {
        begin_flow(l, x);
        return;
    }
    if (e->phase == TD_X_FLUID && l->loads != NULL) {
        if (e->n_analytic == td_loads_strands(l->loads, e->comm))
            td_loads_remove(l->loads, e->comm, e->cost->rate);
        else
            td_contention_settle(l, x);
    }
    e->seq = 0;
    e->n_analytic = 0;
    if (e->n_promoted == 0)
        td_loop_finish(l, x);
}

static void issue_comm(td_loop *l, int32_t a, int32_t op)
{
    td_actor *actor = &l->actors[a];
    const td_script_op *o = &actor->script->ops[op];
    const td_chan *chan = &actor->chans[o->chan];
    const int32_t comm = l->fold == NULL ? chan->comm : l->fold->comm_of[chan->comm];
    int32_t n_members;
    td_loop_members(l, comm, &n_members);
    actor->op[o->lane] = op;
    if (td_loop_comm(l, comm)->n_ranks == 1) { /* alone: nothing to do */
        end_op(l, a, op, l->now);
        return;
    }
    const int32_t x = exchange_get(l, comm, o->ordinal);
    if (x < 0) {
        l->nomem = true;
        return;
    }
    td_exchange *e = &l->exchanges[x];
    actor->exchange[o->lane] = x;
    e->n_arrived++;
    if (e->cost == NULL || chan->me == 0) {
        e->cost = actor->tariff->slot[o->slot].cost;
        e->lane = o->lane;
    }
    if (o->role == TD_ROLE_EAGER_SEND) {
        e->start = l->now;
        e->phase = TD_X_EAGER;
        schedule_exchange(l, x, l->now + e->cost->lone.total_s, 0);
    } else if (e->phase == TD_X_ARRIVED) { /* the message was there before its receiver */
        e->start = l->now;
        end_members(l, x);
        exchange_free(l, x);
    } else {
        e->issued = l->now;
        if (e->phase == TD_X_GATHER && e->n_arrived == n_members)
            start_exchange(l, x);
    }
}

/* ---- the loop ---- */

static void issue_ready(td_loop *l)
{
    while (l->ready.n > 0) {
        const int32_t op = l->ready.items[--l->ready.n], a = l->ready.items[--l->ready.n];
        if (l->actors[a].script->ops[op].role == TD_ROLE_COMPUTE)
            start_compute(l, a, op);
        else
            issue_comm(l, a, op);
    }
}

/* Everything of this instant has happened: changed speeds take effect. */
static void settle(td_loop *l)
{
    for (size_t i = 0; i < l->dirty_exchanges.n; i++) {
        const int32_t x = l->dirty_exchanges.items[i];
        td_exchange *e = &l->exchanges[x];
        const bool was_dirty = e->dirty;
        e->dirty = false;
        if (!was_dirty || e->phase != TD_X_FLUID || transfer_factor(e) == e->pace.factor)
            continue;
        td_pace_change(&e->pace, l->now, transfer_factor(e));
        if (e->n_analytic > 0)
            schedule_exchange(l, x, td_pace_time(&e->pace, e->cost->lone.total_s), 0);
        if (e->n_promoted > 0)
            td_contention_limit(l, x);
    }
    l->dirty_exchanges.n = 0;
    for (size_t i = 0; i < l->dirty_actors.n; i++) {
        const int32_t a = l->dirty_actors.items[i];
        td_actor *actor = &l->actors[a];
        const double factor = actor->computing ? compute_factor(l, actor) : 1;
        actor->dirty = false;
        if (actor->computing && factor != actor->pace.factor) {
            td_pace_change(&actor->pace, l->now, factor);
            schedule_compute(l, a);
        }
    }
    l->dirty_actors.n = 0;
}

/* Drops events that have lost their meaning from the top. */
static void skip_stale(td_loop *l)
{
    while (l->heap.n > 0) {
        const td_heap_event e = l->heap.events[0];
        const int32_t x = (int32_t)e.id - l->n_actors;
        if (e.seq == (x < 0 ? l->actors[e.id].seq : l->exchanges[x].seq))
            break;
        td_heap_pop(&l->heap);
    }
}

static void play(td_loop *l)
{
    const td_heap_event e = l->heap.events[0];
    td_heap_pop(&l->heap);
    l->now = e.time;
    if ((int32_t)e.id < l->n_actors)
        compute_event(l, (int32_t)e.id);
    else
        exchange_event(l, (int32_t)e.id - l->n_actors);
}

td_loop_end td_loop_run(td_loop *l)
{
    for (;;) {
        issue_ready(l);
        if (l->nomem)
            return TD_LOOP_NOMEM;
        skip_stale(l);
        if (l->heap.n > 0 && l->heap.events[0].time <= l->now) {
            play(l);
            continue;
        }
        settle(l);
        if ((l->loads != NULL && l->loads->n_hot > 0) || l->fresh.n > 0) {
            if (l->contention == NULL)
                return TD_LOOP_CONTENDED;
            l->nomem |= !td_contention_promote(l);
        }
        skip_stale(l);
        if (l->progress != NULL)
            *l->progress = *l->progress + 1;
        if (l->heap.n > 0 && l->heap.events[0].time <= l->now)
            continue;
        if (td_contention_busy(l) &&
            td_contention_wait(l, l->heap.n > 0 ? l->heap.events[0].time : INFINITY))
            continue;
        if (l->heap.n == 0)
            return l->nomem ? TD_LOOP_NOMEM : TD_LOOP_DRY;
        play(l);
    }
}

td_status td_loop_open(td_loop *l, td_arena *a, const td_script *scripts, const td_tariffs *tariffs,
                       td_err *err)
{
    td_status st = TD_OK;
    const td_program *p = l->program;
    const int64_t n_comms = l->fold == NULL ? p->n_comms : l->fold->n_comms;
    size_t at = 0;
    l->overlap = tariffs->any_overlap;
    l->free_exchange = -1;
    l->live = TD_NEW(a, int32_t, n_comms);
    uint16_t *n_waits = TD_NEW(a, uint16_t, l->n_ops);
    if (l->cores != NULL)
        l->n_computing = TD_NEW(a, int32_t, l->cores->n_nodes);
    if (l->live == NULL || n_waits == NULL || (l->cores != NULL && l->n_computing == NULL))
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate %lld ops", (long long)l->n_ops));
    memset(l->live, 0xff, (size_t)n_comms * sizeof *l->live);
    for (int32_t i = l->n_actors - 1; i >= 0; i--) { /* from the last: `ready` is a stack */
        td_actor *actor = &l->actors[i];
        const int32_t rank = l->fold == NULL ? i : l->fold->rep[i];
        actor->script = &scripts[p->ranks[rank].stream];
        actor->tariff = &tariffs->tariffs[tariffs->of[rank]];
        actor->chans = p->ranks[rank].chans;
        actor->n_waits = n_waits + at;
        at += (size_t)actor->script->n_ops;
        if (actor->script->n_ops > 0)
            memcpy(actor->n_waits, actor->script->n_waits,
                   (size_t)actor->script->n_ops * sizeof *n_waits);
        for (int lane = 0; lane < TD_N_LANES; lane++)
            actor->op[lane] = actor->exchange[lane] = -1;
        for (int32_t op = 0; op < actor->script->n_ops; op++) {
            actor->end[op] = -1;
            if (actor->n_waits[op] == 0 &&
                (!td_list_push(&l->ready, i) || !td_list_push(&l->ready, op)))
                TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate %lld ops",
                                   (long long)l->n_ops));
        }
    }
done:
    return st;
}

void td_loop_close(td_loop *l)
{
    free(l->heap.events);
    free(l->exchanges);
    free(l->ready.items);
    free(l->dirty_actors.items);
    free(l->dirty_exchanges.items);
    free(l->fresh.items);
}
