/* Blocking execution of transfer calls, with nothing but who waits for whom. */
#include "model/progress.h"

#include <stdio.h>
#include <string.h>

const char *const td_completion_names[TD_N_COMPLETIONS] = {
#define X(rule, name) [TD_COMPLETION_##rule] = name,
    TD_COMPLETION_MAP(X)
#undef X
};

/*
 * A place where two ranks (or the ranks of a broadcast) meet: how many of either side's ops were
 * posted. The k-th op of one side meets the k-th of the other. Shapes and payloads are counted
 * apart.
 */
typedef struct {
    int32_t src, dst, edge, module; /* key; a broadcast has src = dst = its root */
    bool gradient, shape;
    int32_t n_group; /* broadcast: members */
    const int32_t *group;
    int32_t posted[2]; /* by sender and receiver; broadcast: posts so far in [0] */
    int32_t next;      /* of the same source rank, or -1 */
} meeting;

typedef struct {
    int32_t meeting, serial; /* this is the serial-th op of its side */
    uint8_t kind;            /* td_move_kind */
} posted_op;

/* What a rank is doing: the item of its schedule, which batch of it, and the ops posted for that
 * batch. */
typedef struct {
    td_position at;
    td_step_list list;
    td_move_list moves;
    int32_t item;       /* index in list; list.n when done */
    int32_t batch_from; /* moves[batch_from ..) of the current edge; */
    int32_t phase;      /* 0 shapes, 1 payload, 2 broadcast of the edge at batch_from */
    posted_op *ops;
    int32_t n_ops, cap_ops;
    bool in_call, queued;
} runner;

typedef struct {
    td_arena *arena;
    const td_pipeline *p;
    td_completion rule;
    bool shape_exchange;
    runner *runners;
    int32_t *head; /* first meeting of each source rank */
    meeting *meetings;
    int32_t n_meetings, cap_meetings;
    int32_t *queue; /* ranks to look at, a ring of world_size */
    int64_t queue_head, queue_n;
    td_err *err;
} world;

static void wake(world *w, int32_t rank)
{
    runner *r = &w->runners[rank];
    if (r->queued)
        return;
    r->queued = true;
    w->queue[(w->queue_head + w->queue_n++) % w->p->world_size] = rank;
}

static int32_t find_meeting(world *w, const meeting *key)
{
    for (int32_t i = w->head[key->src]; i >= 0; i = w->meetings[i].next) {
        const meeting *m = &w->meetings[i];
        if (m->dst == key->dst && m->edge == key->edge && m->module == key->module &&
            m->gradient == key->gradient && m->shape == key->shape && m->n_group == key->n_group)
            return i;
    }
    if (w->n_meetings == w->cap_meetings) {
        const int32_t cap = w->cap_meetings == 0 ? 64 : 2 * w->cap_meetings;
        meeting *grown = TD_NEW(w->arena, meeting, cap);
        if (grown == NULL)
            return -1;
        if (w->n_meetings > 0)
            memcpy(grown, w->meetings, (size_t)w->n_meetings * sizeof *grown);
        w->meetings = grown;
        w->cap_meetings = cap;
    }
    w->meetings[w->n_meetings] = *key;
    w->meetings[w->n_meetings].next = w->head[key->src];
    w->head[key->src] = w->n_meetings;
    return w->n_meetings++;
}

static td_status post(world *w, int32_t rank, const td_move *move, bool shape)
{
    runner *r = &w->runners[rank];
    const bool sends = move->kind == TD_MOVE_SEND, group = move->kind == TD_MOVE_BROADCAST;
    const meeting key = {.src = sends ? rank : move->peer,
                         .dst = group   ? move->peer
                                : sends ? move->peer
                                        : rank,
                         .edge = move->edge,
                         .module = move->module,
                         .gradient = move->gradient,
                         .shape = shape,
                         .n_group = group ? move->n_group : 0,
                         .group = group ? move->group : NULL};
    const int32_t at = find_meeting(w, &key);
    if (r->n_ops == r->cap_ops) {
        const int32_t cap = r->cap_ops == 0 ? 8 : 2 * r->cap_ops;
        posted_op *grown = TD_NEW(w->arena, posted_op, cap);
        if (grown == NULL)
            return td_fail(w->err, TD_NOMEM, "no memory to follow the transfers of rank %d",
                           (int)rank);
        if (r->n_ops > 0)
            memcpy(grown, r->ops, (size_t)r->n_ops * sizeof *grown);
        r->ops = grown;
        r->cap_ops = cap;
    }
    if (at < 0)
        return td_fail(w->err, TD_NOMEM, "no memory to follow the transfers of rank %d", (int)rank);
    meeting *m = &w->meetings[at];
    /* A rank posts one broadcast of a group at a time, so its own count of them is posts / members
     * rounded down. */
    r->ops[r->n_ops++] =
        (posted_op){.meeting = at,
                    .serial = group ? m->posted[0] / m->n_group : m->posted[sends ? 0 : 1],
                    .kind = move->kind};
    m->posted[sends || group ? 0 : 1]++;
    if (group) {
        for (int32_t i = 0; i < m->n_group; i++)
            wake(w, m->group[i]);
    } else {
        wake(w, move->peer);
    }
    return TD_OK;
}

static bool complete(const world *w, const posted_op *op)
{
    const meeting *m = &w->meetings[op->meeting];
    if (op->kind == TD_MOVE_BROADCAST)
        return m->posted[0] >= (op->serial + 1) * m->n_group;
    if (op->kind == TD_MOVE_RECV)
        return m->posted[0] > op->serial;
    if (w->rule == TD_COMPLETION_BUFFERED_SENDS ||
        (w->rule == TD_COMPLETION_BUFFERED_SHAPE_MESSAGES && m->shape))
        return true;
    return m->posted[1] > op->serial;
}

/* One past the moves of the edge that starts at `from`. */
static int32_t edge_end(const td_move_list *l, int32_t from)
{
    int32_t to = from;
    while (to < l->n && l->moves[to].edge == l->moves[from].edge &&
           l->moves[to].module == l->moves[from].module)
        to++;
    return to;
}

/* Posts the next non-empty batch of the call; *more is false when the call has none left. */
static td_status next_batch(world *w, int32_t rank, bool *more)
{
    td_status st = TD_OK;
    runner *r = &w->runners[rank];
    r->n_ops = 0;
    while (r->n_ops == 0 && r->batch_from < r->moves.n) {
        const int32_t to = edge_end(&r->moves, r->batch_from);
        for (int32_t i = r->batch_from; i < to; i++) {
            const td_move *move = &r->moves.moves[i];
            const bool group = move->kind == TD_MOVE_BROADCAST;
            if ((r->phase == 2) != group || (r->phase == 0 && !w->shape_exchange) ||
                (group && move->n_group == 1))
                continue;
            TD_TRY(st, post(w, rank, move, r->phase == 0));
        }
        if (++r->phase == 3) {
            r->phase = 0;
            r->batch_from = to;
        }
    }
    *more = r->n_ops > 0;
done:
    return st;
}

/* Runs one rank until it waits or is done. */
static td_status advance(world *w, int32_t rank)
{
    td_status st = TD_OK;
    runner *r = &w->runners[rank];
    while (r->item < r->list.n) {
        const td_step_item *item = &r->list.items[r->item];
        bool more = false;
        for (int32_t i = 0; i < r->n_ops; i++)
            if (!complete(w, &r->ops[i]))
                goto done;
        if (item->kind == TD_STEP_COMM && !r->in_call) {
            TD_TRY(st, td_pipeline_moves(w->p, w->arena, &r->at, rank, item, &r->moves, w->err));
            r->in_call = true;
            r->batch_from = r->phase = 0;
        }
        if (r->in_call)
            TD_TRY(st, next_batch(w, rank, &more));
        if (!more) {
            r->in_call = false;
            r->n_ops = 0;
            r->item++;
        }
    }
done:
    return st;
}

/* ---- who waits for whom ---- */

/* Calls visit for every rank that `rank` waits for. */
static void each_wait(const world *w, int32_t rank,
                      void (*visit)(void *self, int32_t other, const posted_op *op), void *self)
{
    const runner *r = &w->runners[rank];
    for (int32_t i = 0; r->item < r->list.n && i < r->n_ops; i++) {
        const posted_op *op = &r->ops[i];
        const meeting *m = &w->meetings[op->meeting];
        if (complete(w, op))
            continue;
        if (op->kind != TD_MOVE_BROADCAST)
            visit(self, op->kind == TD_MOVE_SEND ? m->dst : m->src, op);
        for (int32_t g = 0; op->kind == TD_MOVE_BROADCAST && g < m->n_group; g++) {
            bool there = false; /* has this member posted the same broadcast? */
            const runner *other = &w->runners[m->group[g]];
            for (int32_t k = 0; k < other->n_ops; k++)
                there = there || (other->ops[k].meeting == op->meeting &&
                                  other->ops[k].serial == op->serial);
            if (!there)
                visit(self, m->group[g], op);
        }
    }
}

typedef struct {
    const world *w;
    int32_t *parent, *queue;
    int32_t n_queue, from, target, found; /* found: the rank whose wait closes the cycle */
} search;

static void reach(void *self, int32_t other, const posted_op *op)
{
    search *s = self;
    (void)op;
    if (other == s->target && s->found < 0)
        s->found = s->from;
    if (s->parent[other] < 0 && other != s->target) {
        s->parent[other] = s->from;
        s->queue[s->n_queue++] = other;
    }
}

typedef struct {
    int32_t next;
    const posted_op *op;
} towards;

static void pick(void *self, int32_t other, const posted_op *op)
{
    towards *t = self;
    if (other == t->next && t->op == NULL)
        t->op = op;
}

/* Breadth-first from every waiting rank back to itself; the shortest way is the smallest cycle. */
static td_status smallest_cycle(const world *w, td_progress *out)
{
    td_status st = TD_OK;
    const int32_t n = (int32_t)w->p->world_size;
    int32_t *parent = TD_NEW(w->arena, int32_t, n), *queue = TD_NEW(w->arena, int32_t, n),
            *best = TD_NEW(w->arena, int32_t, n);
    int32_t n_best = 0;
    td_waiter *cycle;
    if (parent == NULL || queue == NULL || best == NULL)
        TD_TRY(st, td_fail(w->err, TD_NOMEM, "no memory to look for a cycle"));
    for (int32_t start = 0; start < n; start++) {
        search s = {.w = w, .parent = parent, .queue = queue, .target = start, .found = -1};
        memset(parent, -1, (size_t)n * sizeof *parent);
        s.queue[s.n_queue++] = start;
        for (int32_t i = 0; i < s.n_queue && s.found < 0; i++) {
            s.from = queue[i];
            each_wait(w, s.from, reach, &s);
        }
        int32_t length = 0;
        for (int32_t r = s.found; r >= 0 && r != start; r = parent[r])
            length++;
        if (s.found >= 0 && (n_best == 0 || length + 1 < n_best)) {
            n_best = length + 1;
            for (int32_t r = s.found, i = length; i > 0; r = parent[r])
                best[i--] = r;
            best[0] = start;
        }
    }
    cycle = TD_NEW(w->arena, td_waiter, n_best);
    if (cycle == NULL)
        TD_TRY(st, td_fail(w->err, TD_NOMEM, "no memory to name a cycle"));
    for (int32_t i = 0; i < n_best; i++) {
        const runner *r = &w->runners[best[i]];
        const td_step_item *item = &r->list.items[r->item];
        towards t = {.next = best[(i + 1) % n_best]};
        each_wait(w, best[i], pick, &t);
        cycle[i] = (td_waiter){.rank = best[i],
                               .call = (td_call)item->call,
                               .mb = t.op->kind == TD_MOVE_SEND ? item->send_mb : item->recv_mb,
                               .move = (td_move_kind)t.op->kind,
                               .shape = w->meetings[t.op->meeting].shape};
    }
    out->n_cycle = n_best;
    out->cycle = cycle;
done:
    return st;
}

td_status td_progress_judge(td_arena *a, const td_pipeline *p, const td_schedule *schedule,
                            int32_t n_micro, bool shape_exchange, td_completion rule,
                            td_progress *out, td_err *err)
{
    td_status st = TD_OK;
    const int32_t n = (int32_t)p->world_size;
    world w = {.arena = a, .p = p, .rule = rule, .shape_exchange = shape_exchange, .err = err};
    bool done = true;
    w.runners = TD_NEW(a, runner, n);
    w.head = TD_NEW(a, int32_t, n);
    w.queue = TD_NEW(a, int32_t, n);
    if (w.runners == NULL || w.head == NULL || w.queue == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to follow %d ranks", (int)n));
    for (int32_t r = 0; r < n; r++) {
        runner *run = &w.runners[r];
        w.head[r] = -1;
        run->at = td_pipeline_position(p, r);
        if (run->at.n_modules == 0)
            continue;
        const td_schedule_input in = td_pipeline_schedule_input(p, &run->at, n_micro);
        TD_TRY(st, schedule->emit(a, &in, &run->list, err));
        wake(&w, r);
    }
    while (w.queue_n > 0) {
        const int32_t rank = w.queue[w.queue_head];
        w.queue_head = (w.queue_head + 1) % n;
        w.queue_n--;
        w.runners[rank].queued = false;
        TD_TRY(st, advance(&w, rank));
    }
    for (int32_t r = 0; r < n; r++)
        done = done && w.runners[r].item == w.runners[r].list.n;
    *out = (td_progress){.completes = done};
    if (!done)
        TD_TRY(st, smallest_cycle(&w, out));
done:
    return st;
}

/* ---- small stand-ins for large plans ---- */

/* The smallest lane count above `above` that a module has; INT32_MAX if there is none. */
static int32_t next_lanes(const td_pipeline *p, int32_t above)
{
    int32_t next = INT32_MAX;
    for (int32_t m = 0; m < p->n_modules; m++) {
        const int32_t dp = td_grid_extent(&p->modules[m].grid, TD_AXIS_DP);
        if (dp > above && dp < next)
            next = dp;
    }
    return next;
}

/*
 * Lane counts of a valid plan are multiples of one another. The k-th smallest becomes 2^k: lanes
 * that meet at one lane of another module all do the same there, which two of them show.
 */
static int32_t fewer_lanes(const td_pipeline *p, int32_t dp)
{
    int32_t fewer = 1;
    for (int32_t n = next_lanes(p, 0); n < dp; n = next_lanes(p, n))
        fewer *= 2;
    return fewer;
}

/* The lane of `dp` that lane `small` of fewer_lanes() stands for: the same digits, in base 2 there
 * and by the ratios of successive counts here. */
static int32_t lane_of(const td_pipeline *p, int32_t dp, int32_t small)
{
    int32_t lane = 0, before = next_lanes(p, 0);
    for (int32_t bit = fewer_lanes(p, dp) / 2; bit > 0; bit /= 2) {
        const int32_t n = next_lanes(p, before);
        lane = lane * (n / before) + ((small & bit) != 0);
        before = n;
    }
    return lane;
}

static td_grid smaller_grid(const td_pipeline *p, const td_grid *g, int32_t first)
{
    td_grid s = *g;
    s.first = first;
    for (int32_t i = 0; i < s.n_axes; i++) {
        if (s.axis[i] == TD_AXIS_TP || s.axis[i] == TD_AXIS_CP)
            s.extent[i] = s.extent[i] < 2 ? s.extent[i] : 2;
        if (s.axis[i] == TD_AXIS_DP)
            s.extent[i] = fewer_lanes(p, s.extent[i]);
    }
    return s;
}

td_status td_pipeline_shrink(td_arena *a, const td_pipeline *p, int32_t *n_micro, td_pipeline *out,
                             const int32_t **origin, td_err *err)
{
    td_status st = TD_OK;
    td_pipe_module *modules = TD_NEW(a, td_pipe_module, p->n_modules);
    int32_t first = 0, *from;
    const int64_t enough = 4 * (int64_t)p->total_stages + 4;
    if (modules == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a smaller pipeline"));
    for (int32_t m = 0; m < p->n_modules; m++) {
        modules[m] = p->modules[m];
        modules[m].grid = smaller_grid(p, &p->modules[m].grid, first);
        first += (int32_t)td_grid_size(&modules[m].grid);
    }
    TD_TRY(st, td_pipeline_build(a, modules, p->n_modules, p->edges, p->n_edges, first, out, NULL,
                                 err));
    out->edge_gradient = p->edge_gradient;
    out->backward = p->backward;
    out->input_gradient = p->input_gradient;
    from = TD_NEW(a, int32_t, first);
    if (from == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a smaller pipeline"));
    for (int32_t r = 0; r < first; r++) {
        const td_position at = td_pipeline_position(out, r);
        const td_grid *g = &p->modules[at.module[0]].grid;
        td_coord c;
        TD_TRY(st, td_grid_coord(&modules[at.module[0]].grid, r, &c, err));
        if (c.c[TD_AXIS_TP] == 1) /* the source's leader is the last of its lane */
            c.c[TD_AXIS_TP] = td_grid_extent(g, TD_AXIS_TP) - 1;
        if (c.c[TD_AXIS_CP] == 1)
            c.c[TD_AXIS_CP] = td_grid_extent(g, TD_AXIS_CP) - 1;
        c.c[TD_AXIS_DP] = lane_of(p, td_grid_extent(g, TD_AXIS_DP), c.c[TD_AXIS_DP]);
        TD_TRY(st, td_grid_rank(g, c, &from[r], err));
    }
    *origin = from;
    if (*n_micro > enough)
        *n_micro = (int32_t)enough;
done:
    return st;
}

const char *td_progress_text(td_arena *a, const td_progress *p)
{
    static const char *const verb[] = {
        [TD_MOVE_SEND] = "sends", [TD_MOVE_RECV] = "receives", [TD_MOVE_BROADCAST] = "broadcasts"};
    static const char *const relation[] = {
        [TD_MOVE_SEND] = "to", [TD_MOVE_RECV] = "from", [TD_MOVE_BROADCAST] = "with"};
    const char *text = "";
    for (int32_t i = 0; text != NULL && i < p->n_cycle; i++) {
        const td_waiter *w = &p->cycle[i];
        text = td_arena_printf(a, "%s%srank %d (%s) %s the %s of microbatch %d %s rank %d", text,
                               i == 0 ? "" : ", ", (int)w->rank, td_call_names[w->call],
                               verb[w->move], w->shape ? "shape" : "payload", (int)w->mb,
                               relation[w->move], (int)p->cycle[(i + 1) % p->n_cycle].rank);
    }
    return text;
}
