/* schedule.json: the events of every rank in one step, and whether it ends under each completion
 * rule. */
#include "tests/oracle/oracle.h"

#include "model/progress.h"

#include <string.h>

/* The reference's stand-in for a loss reports this many tokens a microbatch on the last stage. */
enum { TOKENS_PER_MICROBATCH = 5 };

typedef struct {
    const td_pipeline *pipe;
    const td_schedule *schedule;
    int32_t n_micro;
} step;

static bool read_modules(oracle_case *c, td_pipe_module *modules, int32_t n)
{
    const json_t *order = json_object_get(c->json, "module_order"),
                 *all = json_object_get(c->json, "modules");
    for (int32_t m = 0; m < n; m++) {
        const char *name = json_string_value(json_array_get(order, (size_t)m));
        modules[m].name = name != NULL ? name : "";
        modules[m].language = strcmp(modules[m].name, "language") == 0;
        if (!oracle_grid(c, oracle_text(c->json, "layout"), json_object_get(all, modules[m].name),
                         &modules[m].grid))
            return false;
    }
    return true;
}

static int32_t module_named(const td_pipe_module *modules, int32_t n, const char *name)
{
    int32_t found = -1;
    for (int32_t m = 0; m < n; m++)
        if (name != NULL && strcmp(modules[m].name, name) == 0)
            found = m;
    return found;
}

/* The edges of `topology`; -1 if it names a module that is not there or there are more than `cap`.
 */
static int32_t read_edges(const oracle_case *c, const td_pipe_module *modules, int32_t n,
                          td_edge *edges, int32_t cap)
{
    const char *key;
    json_t *list;
    int32_t n_edges = 0;
    json_object_foreach(json_object_get(c->json, "topology"), key, list)
    {
        for (size_t i = 0; i < json_array_size(list); i++) {
            const td_edge e = {
                .src = module_named(modules, n, key),
                .dst = module_named(modules, n, json_string_value(json_array_get(list, i)))};
            if (e.src < 0 || e.dst < 0 || n_edges == cap)
                return -1;
            edges[n_edges++] = e;
        }
    }
    return n_edges;
}

static json_t *move_json(const td_pipeline *p, const td_move *m)
{
    static const char *const words[] = {
        [TD_MOVE_SEND] = "send", [TD_MOVE_RECV] = "recv", [TD_MOVE_BROADCAST] = "bcast"};
    char edge[128];
    json_t *op = json_array();
    oracle_append(op, json_string(words[m->kind]));
    oracle_append(op, json_string(m->gradient ? "gradient" : "activation"));
    oracle_append(op, json_integer(m->peer));
    oracle_append(op, json_string(td_move_edge_name(p, m, edge, sizeof edge)));
    if (m->kind == TD_MOVE_BROADCAST)
        oracle_append(op, oracle_ranks(m->group, m->n_group));
    return op;
}

static td_status event_json(oracle_case *c, const step *s, const td_position *at, int32_t rank,
                            const td_step_item *item, td_move_list *moves, json_t **out,
                            td_err *err)
{
    td_status st = TD_OK;
    json_t *e = *out = json_object();
    oracle_set(e, "e", json_string(td_step_names[item->kind]));
    if (item->mb >= 0)
        oracle_set(e, "mb", json_integer(item->mb));
    if (item->kind == TD_STEP_FORWARD &&
        json_is_integer(json_object_get(c->json, "recompute_window")))
        oracle_set(e, "recompute", json_boolean(item->recompute));
    if (item->kind == TD_STEP_FINALIZE_GRADS)
        oracle_set(e, "num_tokens",
                   json_integer(at->is_last ? TOKENS_PER_MICROBATCH * (json_int_t)s->n_micro : 0));
    if (item->kind == TD_STEP_COMM) {
        json_t *ops = json_array();
        json_int_t shapes = 0;
        TD_TRY(st, td_pipeline_moves(s->pipe, c->arena, at, rank, item, moves, err));
        for (int32_t i = 0; i < moves->n; i++) {
            oracle_append(ops, move_json(s->pipe, &moves->moves[i]));
            shapes += moves->moves[i].kind != TD_MOVE_BROADCAST;
        }
        oracle_set(e, "call", json_string(td_call_names[item->call]));
        oracle_set(e, "shape_msgs", json_integer(shapes));
        oracle_set(e, "ops", ops);
        if (item->send_mb >= 0)
            oracle_set(e, "send_mb", json_integer(item->send_mb));
        if (item->recv_mb >= 0)
            oracle_set(e, "recv_mb", json_integer(item->recv_mb));
    }
done:
    return st;
}

static td_status rank_json(oracle_case *c, const step *s, int32_t rank, json_t *ranks, td_err *err)
{
    td_status st = TD_OK;
    const td_position at = td_pipeline_position(s->pipe, rank);
    td_schedule_input in = td_pipeline_schedule_input(s->pipe, &at, s->n_micro);
    td_step_list list;
    td_move_list moves = {0};
    json_t *one = json_object(), *names = json_array(), *events = json_array();
    json_t *pp = json_object(), *tp = json_object(), *dp = json_object();
    oracle_append(ranks, one);
    oracle_set(one, "events", events);
    oracle_set(one, "modules", names);
    oracle_set(one, "pp_rank", pp);
    oracle_set(one, "tp_rank", tp);
    oracle_set(one, "dp_rank", dp);
    for (int32_t i = 0; i < at.n_modules; i++) {
        const td_pipe_module *m = &s->pipe->modules[at.module[i]];
        td_coord coord;
        TD_TRY(st, td_grid_coord(&m->grid, rank, &coord, err));
        oracle_append(names, json_string(m->name));
        oracle_set(pp, m->name, json_integer(coord.c[TD_AXIS_PP]));
        oracle_set(tp, m->name, json_integer(coord.c[TD_AXIS_TP]));
        oracle_set(dp, m->name, json_integer(coord.c[TD_AXIS_DP]));
    }
    in.recompute_window = (int32_t)oracle_int(c->json, "recompute_window", -1);
    in.explicit_grad_sync = json_is_true(json_object_get(c->json, "explicit_grad_sync"));
    oracle_set(one, "rank", json_integer(rank));
    oracle_set(one, "total_stages", json_integer(s->pipe->total_stages));
    oracle_set(one, "stage", json_integer(at.stage));
    oracle_set(one, "warmup", json_integer(s->schedule->warmup(&in)));
    oracle_set(one, "is_first", json_boolean(at.is_first));
    oracle_set(one, "is_last", json_boolean(at.is_last));
    oracle_set(one, "losses_returned", json_integer(at.is_last ? s->n_micro : 0));
    TD_TRY(st, s->schedule->emit(c->arena, &in, &list, err));
    for (int32_t i = 0; i < list.n; i++) {
        json_t *event;
        TD_TRY(st, event_json(c, s, &at, rank, &list.items[i], &moves, &event, err));
        oracle_append(events, event);
    }
done:
    return st;
}

static td_status run(oracle_case *c, td_err *err)
{
    td_status st = TD_OK;
    const int32_t n = (int32_t)json_array_size(json_object_get(c->json, "module_order"));
    const int64_t world = oracle_int(c->json, "world_size", 0);
    td_pipe_module *modules = TD_NEW(c->arena, td_pipe_module, n);
    enum { MAX_EDGES = 64 };
    td_edge edges[MAX_EDGES];
    td_pipeline pipe;
    const char *rule = NULL;
    json_t *progress = json_object(), *ranks = json_array();
    int32_t n_edges;
    step s = {.pipe = &pipe,
              .schedule = &td_schedule_1f1b,
              .n_micro = (int32_t)oracle_int(c->json, "num_microbatches", 0)};
    if (modules == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the modules"));
    if (json_is_true(json_object_get(c->json, "forward_only"))) {
        c->skip = "forward-only schedules";
        goto done;
    }
    if (!read_modules(c, modules, n))
        goto done;
    n_edges = read_edges(c, modules, n, edges, MAX_EDGES);
    if (n_edges < 0) {
        c->broken = "topology names a module that module_order does not";
        goto done;
    }
    st = td_pipeline_build(c->arena, modules, n, edges, n_edges, world, &pipe, &rule, err);
    if (rule != NULL) {
        oracle_set(c->got, "result", json_string("error"));
        oracle_set(c->got, "rule", json_string(rule));
        st = TD_OK;
        goto done;
    }
    TD_TRY(st, st);
    for (int32_t i = 0; i < TD_N_COMPLETIONS; i++) {
        td_progress p;
        TD_TRY(st, td_progress_judge(c->arena, &pipe, s.schedule, s.n_micro, true, (td_completion)i,
                                     &p, err));
        oracle_set(progress, td_completion_names[i],
                   json_string(p.completes ? "completes" : "deadlocks"));
    }
    for (int32_t r = 0; r < world; r++)
        TD_TRY(st, rank_json(c, &s, r, ranks, err));
    oracle_set(c->got, "result", json_string("ok"));
    oracle_set(c->got, "total_stages", json_integer(pipe.total_stages));
    oracle_set(c->got, "progress", json_incref(progress));
    oracle_set(c->got, "ranks", json_incref(ranks));
done:
    json_decref(progress);
    json_decref(ranks);
    return st;
}

static const char *const inputs[] = {
    "id",           "layout",           "world_size",         "module_order",
    "modules",      "topology",         "num_microbatches",   "global_microbatch",
    "forward_only", "recompute_window", "explicit_grad_sync", NULL};

const oracle_suite oracle_schedule = {.name = "schedule", .inputs = inputs, .run = run};
