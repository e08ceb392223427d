/* `tandem show`: grids, groups, roles, the step program, and a picture of the step. */
#include "cli/backends.h"
#include "cli/cli.h"
#include "cli/picture.h"
#include "model/module.h"
#include "model/pipeline.h"
#include "model/text.h"
#include "sim/predict.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    td_arena *a;
    const td_plan *plan;
    td_pipeline pipe;
    const td_program *program; /* NULL where predict and run refuse */
    td_move_list moves;
} view;

/* ---- JSON, rank by rank: the events of a large plan would not fit in memory at once ---- */

static json_t *ints(const int32_t *v, int64_t n)
{
    json_t *all = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(all, json_integer(v[i]));
    return all;
}

static td_status module_json(const view *v, int32_t m, json_t **out, td_err *err)
{
    td_status st = TD_OK;
    const td_module *module = &v->plan->modules[m];
    json_t *groups = json_object();
    for (const td_group_kind *k = td_group_kinds; k->name != NULL; k++) {
        td_rank_lists lists;
        json_t *all = json_array();
        json_object_set_new(groups, k->name, all);
        TD_TRY(st, td_group_lists(k, &module->grid, &module->expert, v->a, &lists, err));
        for (int32_t i = 0; i < lists.n_lists; i++)
            json_array_append_new(all,
                                  ints(lists.ranks + (int64_t)i * lists.n_ranks, lists.n_ranks));
    }
    *out = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:O}", "tp", (int)module->tp, "cp",
                     (int)module->cp, "ep", (int)module->ep, "pp", (int)module->pp, "dp",
                     (int)module->dp, "offset", (int)module->offset, "ranks",
                     (json_int_t)td_grid_size(&module->grid), "groups", groups);
done:
    json_decref(groups);
    return st;
}

static json_t *move_json(const td_pipeline *p, const td_move *mv)
{
    static const char *const words[] = {
        [TD_MOVE_SEND] = "send", [TD_MOVE_RECV] = "recv", [TD_MOVE_BROADCAST] = "bcast"};
    char edge[512];
    json_t *op = json_array();
    json_array_append_new(op, json_string(words[mv->kind]));
    json_array_append_new(op, json_string(mv->gradient ? "gradient" : "activation"));
    json_array_append_new(op, json_integer(mv->peer));
    json_array_append_new(op, json_string(td_move_edge_name(p, mv, edge, sizeof edge)));
    if (mv->kind == TD_MOVE_BROADCAST)
        json_array_append_new(op, ints(mv->group, mv->n_group));
    return op;
}

/* Positions of this rank's data lane that count in the loss: their own and their next token are
 * text. */
static int64_t counted_tokens(const td_plan *plan)
{
    const td_module *language = &plan->modules[plan->language];
    int64_t placeholders = 0;
    for (int32_t i = 0; i < plan->n_modules; i++)
        placeholders += i == plan->language ? 0 : plan->modules[i].seq;
    return (language->seq - 1 - placeholders) * (int64_t)plan->step.micro_batch *
           plan->step.microbatches;
}

static td_status event_json(view *v, const td_position *at, int32_t rank, const td_step_item *item,
                            json_t **out, td_err *err)
{
    td_status st = TD_OK;
    json_t *e = json_pack("{s:s}", "e", td_step_names[item->kind]), *ops;
    int shapes = 0;
    *out = e;
    if (item->mb >= 0)
        json_object_set_new(e, "mb", json_integer(item->mb));
    if (item->kind == TD_STEP_FINALIZE_GRADS)
        json_object_set_new(e, "num_tokens",
                            json_integer(at->is_last ? counted_tokens(v->plan) : 0));
    if (item->kind != TD_STEP_COMM)
        goto done;
    TD_TRY(st, td_pipeline_moves(&v->pipe, v->a, at, rank, item, &v->moves, err));
    ops = json_array();
    for (int32_t i = 0; i < v->moves.n; i++) {
        json_array_append_new(ops, move_json(&v->pipe, &v->moves.moves[i]));
        shapes += v->moves.moves[i].kind != TD_MOVE_BROADCAST && v->plan->step.shape_exchange;
    }
    json_object_set_new(e, "call", json_string(td_call_names[item->call]));
    json_object_set_new(e, "shape_msgs", json_integer(shapes));
    json_object_set_new(e, "ops", ops);
    if (item->send_mb >= 0)
        json_object_set_new(e, "send_mb", json_integer(item->send_mb));
    if (item->recv_mb >= 0)
        json_object_set_new(e, "recv_mb", json_integer(item->recv_mb));
done:
    return st;
}

static bool runs(const view *v, const td_position *at, const td_step_item *item)
{
    return item->kind != TD_STEP_BACKWARD || v->pipe.backward[at->module[0]][at->pp_rank[0]];
}

static td_status rank_json(view *v, int32_t rank, json_t **out, td_err *err)
{
    td_status st = TD_OK;
    const td_position at = td_pipeline_position(&v->pipe, rank);
    json_t *events = json_array(), *modules = json_array();
    int32_t warmup = 0;
    for (int32_t i = 0; i < at.n_modules; i++)
        json_array_append_new(modules, json_string(v->plan->modules[at.module[i]].name));
    if (at.n_modules > 0) {
        const td_schedule *schedule = td_schedule_find(v->plan->step.schedule);
        const td_schedule_input in =
            td_pipeline_schedule_input(&v->pipe, &at, v->plan->step.microbatches);
        td_step_list list;
        warmup = schedule->warmup(&in);
        TD_TRY(st, schedule->emit(v->a, &in, &list, err));
        for (int32_t i = 0; i < list.n; i++) {
            json_t *event;
            if (!runs(v, &at, &list.items[i]))
                continue;
            TD_TRY(st, event_json(v, &at, rank, &list.items[i], &event, err));
            json_array_append_new(events, event);
        }
    }
    *out = json_pack("{s:i, s:O, s:o, s:i, s:b, s:b, s:O}", "rank", (int)rank, "modules", modules,
                     "stage", at.stage < 0 ? json_null() : json_integer(at.stage), "warmup",
                     (int)warmup, "is_first", at.is_first, "is_last", at.is_last, "events", events);
done:
    json_decref(events);
    json_decref(modules);
    return st;
}

static void dump(json_t *value)
{
    json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(value);
}

static td_status print_json(view *v, int32_t only, td_err *err)
{
    td_status st = TD_OK;
    json_t *value = NULL;
    const char *comma = "";
    printf("{\"name\":");
    dump(json_string(v->plan->name));
    printf(",\"world_size\":%lld,\"total_stages\":%d,\"digest\":", (long long)v->plan->world_size,
           (int)v->pipe.total_stages);
    dump(v->program == NULL ? json_null() : json_string(v->program->digest));
    printf(",\"modules\":{");
    for (int32_t m = 0; m < v->plan->n_modules; m++, comma = ",") {
        TD_TRY(st, module_json(v, m, &value, err));
        printf("%s", comma);
        dump(json_string(v->plan->modules[m].name));
        printf(":");
        dump(value);
    }
    printf("},\"ranks\":[");
    comma = "";
    for (int32_t r = 0; r < v->plan->world_size; r++) {
        if (only >= 0 && r != only)
            continue;
        td_arena *outer = v->a, *scratch = td_arena_new(); /* one rank's events at a time */
        if (scratch == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the events of rank %d", (int)r));
        v->a = scratch;
        v->moves = (td_move_list){0};
        st = rank_json(v, r, &value, err);
        v->a = outer;
        td_arena_free(scratch);
        TD_TRY(st, st);
        printf("%s", comma);
        dump(value);
        comma = ",";
    }
    printf("]}\n");
done:
    return st;
}

/* ---- text ---- */

static void print_grids(const view *v)
{
    printf("%s: %lld ranks, %d stages\n\n",
           td_text_show(v->a, v->plan->name, strlen(v->plan->name)), (long long)v->plan->world_size,
           (int)v->pipe.total_stages);
    printf("%-12s %3s %3s %3s %3s %3s %9s  %s\n", "module", "tp", "cp", "pp", "dp", "ep", "ranks",
           "stages");
    for (int32_t m = 0; m < v->plan->n_modules; m++) {
        const td_module *module = &v->plan->modules[m];
        char ranks[32];
        snprintf(ranks, sizeof ranks, "%d-%lld", (int)module->offset,
                 (long long)(module->offset + td_grid_size(&module->grid) - 1));
        printf("%-12s %3d %3d %3d %3d %3d %9s  %d-%d\n", module->name, (int)module->tp,
               (int)module->cp, (int)module->pp, (int)module->dp, (int)module->ep, ranks,
               (int)v->pipe.depth[m], (int)(v->pipe.depth[m] + module->pp - 1));
    }
    for (int32_t e = 0; e < v->pipe.n_edges; e++) {
        const td_bridge *b = &v->pipe.bridges[e];
        printf("\nbridge %s->%s: ", v->plan->modules[v->pipe.edges[e].src].name,
               v->plan->modules[v->pipe.edges[e].dst].name);
        for (int32_t i = 0; i < b->n_pairs && i < 16; i++)
            printf("%s%d->%d", i == 0 ? "" : ", ", (int)b->src_leader[b->pairs[i].src],
                   (int)b->dst_leader[b->pairs[i].dst]);
        printf("%s%s\n", b->n_pairs > 16 ? ", ..." : "",
               v->pipe.edge_gradient[e] ? "" : " (no gradients: the source is frozen)");
    }
}

static void print_rank(const view *v, int32_t rank)
{
    const td_stream *s = td_program_stream(v->program, rank);
    printf("\nrank %d: %d ops\n%5s %-8s %-6s %-20s %4s %14s  %s\n", (int)rank, (int)s->n_ops, "op",
           "lane", "label", "kind", "mb", "bytes", "with, after");
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        char label[32];
        td_op_label(op, label, sizeof label);
        printf("%5d %-8s %-6s %-20s", (int)i, td_lane_names[op->lane], label,
               td_op_table[op->kind].name);
        if (op->mb < 0)
            printf("     ");
        else
            printf(" %4d", (int)op->mb);
        printf(" %14llu ", (unsigned long long)op->bytes);
        if (op->chan >= 0) {
            const td_chan *chan = &v->program->ranks[rank].chans[op->chan];
            const td_comm *comm = &v->program->comms[chan->comm];
            if (comm->kind == TD_COMM_PAIR)
                printf(" rank %d", (int)comm->ranks[1 - chan->me]);
            else
                printf(" %s (%d ranks)", td_comm_names[comm->kind], (int)comm->n_ranks);
        }
        for (uint32_t d = op->dep_first; d < op->dep_first + op->n_deps; d++) {
            printf(" <%d", (int)s->deps[d].op);
            if (s->deps[d].after_part >= 0)
                printf(":%d", (int)s->deps[d].after_part);
        }
        printf("\n");
    }
}

static td_status print_text(view *v, int32_t rank, td_err *err)
{
    td_status st = TD_OK;
    td_prediction prediction;
    const td_predict_options o = {.flows = TD_FLOWS_IDEAL};
    print_grids(v);
    if (v->program == NULL) {
        printf("\nno step program: %s\n", err->text);
        *err = (td_err){0};
        goto done;
    }
    printf("\nstep program %.16s: %lld ops, %d roles, %lld communicators\n", v->program->digest,
           (long long)v->program->n_ops, (int)v->program->n_streams,
           (long long)v->program->n_comms);
    if (rank >= 0)
        print_rank(v, rank);
    TD_TRY(st, td_predict(v->a, v->program, &o, &prediction, err));
    printf("\none step, links to themselves (`tandem predict` knows better):\n");
    TD_TRY(st, td_picture_print(v->a, stdout, &prediction, rank, err));
done:
    return st;
}

static int run(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    view v = {.a = td_arena_new()};
    td_diags diags;
    const char *path = NULL, *rank_text = NULL;
    char *end = NULL;
    long rank = -1;
    bool json = false, helped;
    const td_option options[] = {
        {NULL, "PLAN", "the plan to show", NULL, &path, true},
        {"--rank", "R", "only this rank, with every op of its program", NULL, &rank_text, false},
        {"--json", NULL, "one JSON object", &json, NULL, false},
        {0}};
    int code = td_options_read(&td_command_show, options, argc, argv, &helped);
    if (code != TD_EXIT_DONE || helped)
        goto done;
    if (v.a == NULL)
        TD_TRY(st, td_fail(&err, TD_NOMEM, "no memory"));
    TD_TRY(st, td_cli_load(v.a, path, &diags, &v.plan, &err));
    if (rank_text != NULL) {
        rank = strtol(rank_text, &end, 10);
        if (end == rank_text || *end != '\0' || rank < 0 || rank >= v.plan->world_size)
            TD_TRY(st, td_fail(&err, TD_USAGE, "--rank %s: the plan has ranks 0 to %lld", rank_text,
                               (long long)v.plan->world_size - 1));
    }
    TD_TRY(st, td_pipeline_of_plan(v.a, v.plan, &v.pipe, &err));
    st = td_lower(v.a, v.plan, &v.program, &err);
    if (st == TD_PLAN && td_plan_executable(v.plan, NULL) != TD_OK)
        st = TD_OK; /* grids and events can be shown all the same; print_text says why there is no
                       program */
    TD_TRY(st, st);
    TD_TRY(st, json ? print_json(&v, (int32_t)rank, &err) : print_text(&v, (int32_t)rank, &err));
done:
    if (st != TD_OK)
        code = td_exit(st, &err);
    td_arena_free(v.a);
    return code;
}

const td_command td_command_show = {
    .name = "show",
    .usage = "PLAN [--rank R] [--json]",
    .summary = "grids, groups, roles and the step program of a plan, with a time chart",
    .example = "tandem show examples/plans/full_pp_8gpu-7b.yaml --rank 4",
    .run = run,
};
