/* Stages, neighbours and bridges of joined modules. */
#include "model/pipeline.h"
#include "model/module.h"

#include <stdio.h>
#include <string.h>

static int32_t pp_of(const td_pipeline *p, int32_t m)
{
    return td_grid_extent(&p->modules[m].grid, TD_AXIS_PP);
}

/* Longest path, weighted by pp, into every module. n_modules rounds reach the end of any path
 * unless there is a cycle. */
static td_status measure_depth(td_pipeline *p, int32_t *depth, const char **rule, td_err *err)
{
    bool changed = true;
    for (int32_t round = 0; changed; round++) {
        changed = false;
        for (int32_t i = 0; i < p->n_edges; i++) {
            const td_edge *e = &p->edges[i];
            if (depth[e->dst] < depth[e->src] + pp_of(p, e->src)) {
                depth[e->dst] = depth[e->src] + pp_of(p, e->src);
                changed = true;
            }
        }
        if (changed && round >= p->n_modules) {
            *rule = "cyclic_topology";
            return td_fail(err, TD_PLAN, "the edges between modules form a cycle");
        }
    }
    for (int32_t m = 0; m < p->n_modules; m++) {
        bool sink = true;
        for (int32_t i = 0; i < p->n_edges; i++)
            sink = sink && p->edges[i].src != m;
        if (sink && !p->modules[m].language) {
            *rule = "terminal_module_is_not_language";
            return td_fail(
                err, TD_PLAN,
                "module `%s` feeds no other module; only the language module may end the pipeline",
                p->modules[m].name);
        }
        if (depth[m] + pp_of(p, m) > p->total_stages)
            p->total_stages = depth[m] + pp_of(p, m);
    }
    return TD_OK;
}

static void sort_edges(td_edge *e, int32_t n)
{
    for (int32_t i = 1; i < n; i++)
        for (int32_t j = i; j > 0 && (e[j].src < e[j - 1].src ||
                                      (e[j].src == e[j - 1].src && e[j].dst < e[j - 1].dst));
             j--) {
            const td_edge t = e[j];
            e[j] = e[j - 1];
            e[j - 1] = t;
        }
}

td_status td_pipeline_build(td_arena *a, const td_pipe_module *modules, int32_t n_modules,
                            const td_edge *edges, int32_t n_edges, int64_t world_size,
                            td_pipeline *out, const char **rule, td_err *err)
{
    td_status st = TD_OK;
    const char *ignored;
    td_pipeline p = {
        .n_modules = n_modules, .n_edges = n_edges, .modules = modules, .world_size = world_size};
    td_edge *sorted = TD_NEW(a, td_edge, n_edges);
    td_bridge *bridges = TD_NEW(a, td_bridge, n_edges);
    bool *gradient = TD_NEW(a, bool, n_edges);
    bool **backward = TD_NEW(a, bool *, n_modules), **input = TD_NEW(a, bool *, n_modules);
    int32_t *depth = TD_NEW(a, int32_t, n_modules);
    rule = rule == NULL ? &ignored : rule;
    *rule = NULL;
    if (sorted == NULL || bridges == NULL || gradient == NULL || depth == NULL ||
        backward == NULL || input == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the pipeline"));
    if (n_edges > 0)
        memcpy(sorted, edges, (size_t)n_edges * sizeof *sorted);
    sort_edges(sorted, n_edges);
    p.edges = sorted;
    TD_TRY(st, measure_depth(&p, depth, rule, err));
    for (int32_t i = 0; i < n_edges; i++) {
        TD_TRY(st, td_bridge_build(a, &modules[sorted[i].src].grid, &modules[sorted[i].dst].grid,
                                   &bridges[i], rule, err));
        gradient[i] = true;
    }
    for (int32_t m = 0; m < n_modules; m++) {
        backward[m] = TD_NEW(a, bool, pp_of(&p, m));
        input[m] = TD_NEW(a, bool, pp_of(&p, m));
        if (backward[m] == NULL || input[m] == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the stages of `%s`", modules[m].name));
        memset(backward[m], 1, (size_t)pp_of(&p, m));
        memset(input[m], 1, (size_t)pp_of(&p, m));
    }
    p.bridges = bridges;
    p.edge_gradient = gradient;
    p.backward = backward;
    p.input_gradient = input;
    p.depth = depth;
    *out = p;
done:
    return st;
}

td_status td_pipeline_of_plan(td_arena *a, const td_plan *plan, td_pipeline *out, td_err *err)
{
    td_status st = TD_OK;
    td_pipe_module *modules = TD_NEW(a, td_pipe_module, plan->n_modules);
    bool *gradient = TD_NEW(a, bool, plan->n_edges);
    if (modules == NULL || gradient == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for the pipeline", plan->file));
    for (int32_t m = 0; m < plan->n_modules; m++)
        modules[m] = (td_pipe_module){.name = plan->modules[m].name,
                                      .grid = plan->modules[m].grid,
                                      .language = m == plan->language};
    TD_TRY(st, td_pipeline_build(a, modules, plan->n_modules, plan->edges, plan->n_edges,
                                 plan->world_size, out, NULL, err));
    for (int32_t i = 0; i < out->n_edges; i++)
        gradient[i] = td_module_has_backward(plan, out->edges[i].src);
    out->edge_gradient = gradient;
    for (int32_t m = 0; m < plan->n_modules; m++)
        for (int32_t s = 0; s < plan->modules[m].pp; s++) {
            const td_stage stage = td_stage_of(plan, m, s);
            out->backward[m][s] = stage.backward;
            out->input_gradient[m][s] = stage.input_grad;
        }
done:
    return st;
}

td_position td_pipeline_position(const td_pipeline *p, int32_t rank)
{
    td_position at = {.stage = -1, .first_stages_only = true};
    for (int32_t m = 0; m < p->n_modules; m++) {
        td_coord c;
        bool source = true, sink = true;
        if (!td_grid_holds(&p->modules[m].grid, rank) ||
            td_grid_coord(&p->modules[m].grid, rank, &c, NULL) != TD_OK)
            continue;
        const int32_t pp = c.c[TD_AXIS_PP];
        for (int32_t i = 0; i < p->n_edges; i++) {
            source = source && p->edges[i].dst != m;
            sink = sink && p->edges[i].src != m;
        }
        at.is_first = at.is_first || (source && pp == 0);
        at.is_last = at.is_last || (sink && pp == pp_of(p, m) - 1);
        at.first_stages_only = at.first_stages_only && pp == 0;
        if (at.n_modules == 0)
            at.stage = p->depth[m] + pp;
        at.module[at.n_modules] = m;
        at.pp_rank[at.n_modules++] = pp;
    }
    return at;
}

td_schedule_input td_pipeline_schedule_input(const td_pipeline *p, const td_position *at,
                                             int32_t n_micro)
{
    return (td_schedule_input){.stage = at->stage,
                               .n_stages = p->total_stages,
                               .n_micro = n_micro,
                               .recompute_window = -1,
                               .first_stages_only = at->first_stages_only};
}

/* ---- what a call moves ---- */

typedef struct {
    const td_pipeline *p;
    td_arena *arena;
    int32_t rank;
    int32_t send_mb, recv_mb; /* -1: this direction does not take part */
    bool send_gradient; /* backward-going send and forward-going receive, or the other way round */
    td_move_list *out;
    bool failed;
} mover;

static void put(mover *v, const td_move *m)
{
    td_move_list *l = v->out;
    if (l->n == l->cap) {
        const int32_t cap = l->cap == 0 ? 16 : 2 * l->cap;
        td_move *grown = TD_NEW(v->arena, td_move, cap);
        if (grown == NULL) {
            v->failed = true;
            return;
        }
        if (l->n > 0)
            memcpy(grown, l->moves, (size_t)l->n * sizeof *grown);
        l->moves = grown;
        l->cap = cap;
    }
    l->moves[l->n++] = *m;
}

static void send_and_recv(mover *v, td_move m, bool sends, bool recvs)
{
    if (sends) {
        m.kind = TD_MOVE_SEND;
        m.gradient = v->send_gradient;
        m.mb = v->send_mb;
        put(v, &m);
    }
    if (recvs) {
        m.kind = TD_MOVE_RECV;
        m.gradient = !v->send_gradient;
        m.mb = v->recv_mb;
        put(v, &m);
    }
}

/* One boundary of one bridge: this rank's side of it, towards the other side. */
static void across(mover *v, int32_t edge, bool at_source)
{
    const td_bridge *b = &v->p->bridges[edge];
    const td_edge *e = &v->p->edges[edge];
    const td_bridge_seat seat =
        td_bridge_seat_of(b, &v->p->modules[e->src].grid, &v->p->modules[e->dst].grid, v->rank);
    const bool gradient = v->p->edge_gradient[edge];
    const bool sends = v->send_mb >= 0 && (!v->send_gradient || gradient);
    const bool recvs = v->recv_mb >= 0 && (v->send_gradient || gradient);
    const int32_t lane = at_source ? seat.src_lane : seat.dst_lane;
    const td_rank_lists *groups = at_source ? &b->src_group : &b->dst_group;
    const int32_t leader = at_source ? b->src_leader[lane] : b->dst_leader[lane];
    for (int32_t i = 0; i < seat.n_pairs && leader == v->rank; i++) {
        const td_bridge_pair *pair = &b->pairs[seat.first_pair + i];
        send_and_recv(
            v,
            (td_move){.peer = at_source ? b->dst_leader[pair->dst] : b->src_leader[pair->src],
                      .edge = edge,
                      .module = -1,
                      .part = seat.first_pair + i},
            sends, recvs);
    }
    if (recvs && (at_source ? seat.src_boundary : seat.dst_boundary))
        put(v, &(td_move){.kind = TD_MOVE_BROADCAST,
                          .gradient = !v->send_gradient,
                          .mb = v->recv_mb,
                          .peer = leader,
                          .edge = edge,
                          .module = -1,
                          .part = -1,
                          .n_group = groups->n_ranks,
                          .group = groups->ranks + (size_t)lane * (size_t)groups->n_ranks});
}

/* To or from the same (tp, cp, dp) of a neighbouring stage. */
static void within(mover *v, int32_t m, int32_t pp_rank, int32_t step)
{
    const td_grid *g = &v->p->modules[m].grid;
    const int32_t boundary = step > 0 ? pp_rank + 1 : pp_rank; /* the stage above it */
    const bool gradient = v->p->input_gradient[m][boundary];
    td_coord c;
    int32_t peer;
    if (td_grid_coord(g, v->rank, &c, NULL) != TD_OK)
        return;
    c.c[TD_AXIS_PP] += step;
    if (td_grid_rank(g, c, &peer, NULL) != TD_OK)
        return;
    send_and_recv(v, (td_move){.peer = peer, .edge = -1, .module = m, .part = -1},
                  v->send_mb >= 0 && (!v->send_gradient || gradient),
                  v->recv_mb >= 0 && (v->send_gradient || gradient));
}

td_status td_pipeline_moves(const td_pipeline *p, td_arena *a, const td_position *at, int32_t rank,
                            const td_step_item *item, td_move_list *out, td_err *err)
{
    /* Which boundary of the rank's stages a call is about: the one towards later stages, or towards
     * earlier ones. */
    static const bool later[TD_N_CALLS] = {[TD_CALL_SEND_FORWARD] = true,
                                           [TD_CALL_RECV_BACKWARD] = true,
                                           [TD_CALL_SEND_FORWARD_RECV_BACKWARD] = true};
    const bool up = later[item->call];
    mover v = {.p = p,
               .arena = a,
               .rank = rank,
               .send_mb = item->send_mb,
               .recv_mb = item->recv_mb,
               .send_gradient = !up,
               .out = out};
    out->n = 0;
    for (int32_t i = 0; i < at->n_modules; i++) {
        const int32_t m = at->module[i], pp = at->pp_rank[i];
        if (up ? pp < pp_of(p, m) - 1 : pp > 0) {
            within(&v, m, pp, up ? 1 : -1);
            continue;
        }
        for (int32_t e = 0; e < p->n_edges; e++)
            if ((up ? p->edges[e].src : p->edges[e].dst) == m)
                across(&v, e, up);
    }
    return v.failed ? td_fail(err, TD_NOMEM, "no memory for the transfers of rank %d", (int)rank)
                    : TD_OK;
}

const char *td_move_edge_name(const td_pipeline *p, const td_move *m, char *text, int size)
{
    if (m->edge < 0)
        snprintf(text, (size_t)size, "%s", p->modules[m->module].name);
    else
        snprintf(text, (size_t)size, "%s->%s", p->modules[p->edges[m->edge].src].name,
                 p->modules[p->edges[m->edge].dst].name);
    return text;
}
