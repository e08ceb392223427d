/* Joined modules: how deep, who neighbours whom, and that every message has its other end. */
#include "tests/model/plans.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

/* ---- depth and place ---- */

static int32_t longest_way_to(const td_pipeline *p, int32_t m)
{
    int32_t longest = 0;
    for (int32_t i = 0; i < p->n_edges; i++)
        if (p->edges[i].dst == m) {
            const int32_t src = p->edges[i].src;
            const int32_t way =
                longest_way_to(p, src) + td_grid_extent(&p->modules[src].grid, TD_AXIS_PP);
            longest = way > longest ? way : longest;
        }
    return longest;
}

Test(pipeline, is_as_deep_as_its_longest_way)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        const td_pipeline p = plan_pipeline(a, plan);
        for (int32_t m = 0; m < p.n_modules; m++)
            cr_assert_eq(p.depth[m], longest_way_to(&p, m), "%s", s->name);
        cr_assert_eq(p.total_stages, p.depth[plan->language] + plan->modules[plan->language].pp,
                     "%s", s->name);
        td_arena_free(a);
    }
}

Test(pipeline, gives_every_rank_the_stage_of_its_module_and_none_to_idle_ranks)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        const td_pipeline p = plan_pipeline(a, plan);
        int32_t per_stage[64][16] = {{0}};
        for (int32_t r = 0; r < p.world_size; r++) {
            const td_position at = td_pipeline_position(&p, r);
            cr_assert_eq(at.n_modules, r < s->idle ? 0 : 1, "%s: rank %d", s->name, (int)r);
            if (at.n_modules == 0) {
                cr_assert(at.stage == -1 && !at.is_first && !at.is_last);
                continue;
            }
            cr_assert_eq(at.stage, p.depth[at.module[0]] + at.pp_rank[0]);
            cr_assert_eq(at.first_stages_only, at.pp_rank[0] == 0);
            cr_assert_eq(at.is_last, at.stage == p.total_stages - 1);
            cr_assert_eq(at.is_first, at.pp_rank[0] == 0 && p.depth[at.module[0]] == 0);
            per_stage[at.module[0]][at.pp_rank[0]]++;
        }
        for (int32_t m = 0; m < p.n_modules; m++)
            for (int32_t k = 0; k < plan->modules[m].pp; k++)
                cr_assert_eq(per_stage[m][k], plan->modules[m].tp * plan->modules[m].dp);
        td_arena_free(a);
    }
}

Test(pipeline, goes_through_encoders_of_encoders)
{
    td_arena *a = td_arena_new();
    const td_grid grid[4] = {
        {.first = 0, .n_axes = 1, .axis = {TD_AXIS_PP}, .extent = {2}},
        {.first = 2, .n_axes = 1, .axis = {TD_AXIS_PP}, .extent = {3}},
        {.first = 5, .n_axes = 1, .axis = {TD_AXIS_PP}, .extent = {1}},
        {.first = 6, .n_axes = 1, .axis = {TD_AXIS_PP}, .extent = {2}},
    };
    const td_pipe_module modules[4] = {{"a", grid[0], false},
                                       {"b", grid[1], false},
                                       {"c", grid[2], false},
                                       {"language", grid[3], true}};
    const td_edge edges[] = {{2, 3}, {1, 3}, {0, 1}, {0, 3}};
    td_pipeline p;
    cr_assert_eq(td_pipeline_build(a, modules, 4, edges, 4, 8, &p, NULL, NULL), TD_OK);
    cr_assert_eq(p.depth[1], 2);
    cr_assert_eq(p.depth[2], 0);
    cr_assert_eq(p.depth[3], 5);
    cr_assert_eq(p.total_stages, 7);
    for (int32_t i = 1; i < p.n_edges; i++)
        cr_assert(p.edges[i - 1].src < p.edges[i].src ||
                  (p.edges[i - 1].src == p.edges[i].src && p.edges[i - 1].dst < p.edges[i].dst));
    td_arena_free(a);
}

Test(pipeline, refuses_what_is_none_and_names_the_rule)
{
    td_arena *a = td_arena_new();
    const td_grid one = {.first = 0, .n_axes = 1, .axis = {TD_AXIS_PP}, .extent = {1}};
    const td_grid two = {.first = 1, .n_axes = 1, .axis = {TD_AXIS_PP}, .extent = {1}};
    td_pipe_module modules[2] = {{"a", one, false}, {"language", two, true}};
    const td_edge cycle[] = {{0, 1}, {1, 0}}, none[] = {{0, 0}};
    const char *rule = NULL;
    td_pipeline p;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_pipeline_build(a, modules, 2, cycle, 2, 2, &p, &rule, &err), TD_PLAN);
    cr_assert_str_eq(rule, "cyclic_topology");
    cr_assert_neq(err.text[0], '\0');
    cr_assert_eq(td_pipeline_build(a, modules, 2, none, 0, 2, &p, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "terminal_module_is_not_language");
    cr_assert_eq(td_pipeline_build(a, modules, 2, none, 0, 2, &p, NULL, NULL), TD_PLAN);
    td_arena_free(a);
}

/* ---- messages ---- */

/* All moves of one rank in one step, in order. */
static td_move_list moves_of_step(td_arena *a, const td_pipeline *p, int32_t rank, int32_t n_micro)
{
    const td_position at = td_pipeline_position(p, rank);
    td_move_list all = {0}, call = {0};
    td_step_list list;
    if (at.n_modules == 0)
        return all;
    const td_schedule_input in = td_pipeline_schedule_input(p, &at, n_micro);
    cr_assert_eq(td_schedule_1f1b.emit(a, &in, &list, NULL), TD_OK);
    for (int32_t i = 0; i < list.n; i++) {
        if (list.items[i].kind != TD_STEP_COMM)
            continue;
        cr_assert_eq(td_pipeline_moves(p, a, &at, rank, &list.items[i], &call, NULL), TD_OK);
        if (all.n + call.n > all.cap) {
            const int32_t cap = 2 * (all.n + call.n);
            td_move *grown = TD_NEW(a, td_move, cap);
            if (all.n > 0)
                memcpy(grown, all.moves, (size_t)all.n * sizeof *grown);
            all.moves = grown;
            all.cap = cap;
        }
        if (call.n > 0)
            memcpy(all.moves + all.n, call.moves, (size_t)call.n * sizeof *call.moves);
        all.n += call.n;
    }
    return all;
}

/* The k-th message from `src` to `dst` over one edge in one direction, as one of them sees it. */
static const td_move *kth(const td_move_list *l, td_move_kind kind, int32_t peer,
                          const td_move *like, int32_t k)
{
    for (int32_t i = 0; i < l->n; i++) {
        const td_move *m = &l->moves[i];
        if (m->kind == kind && m->peer == peer && m->edge == like->edge &&
            m->module == like->module && m->gradient == like->gradient && k-- == 0)
            return m;
    }
    return NULL;
}

static void check_messages(td_arena *a, const td_pipeline *p, const char *name, int32_t n_micro)
{
    td_move_list *of = TD_NEW(a, td_move_list, p->world_size);
    for (int32_t r = 0; r < p->world_size; r++)
        of[r] = moves_of_step(a, p, r, n_micro);
    for (int32_t r = 0; r < p->world_size; r++)
        for (int32_t i = 0; i < of[r].n; i++) {
            const td_move *m = &of[r].moves[i];
            int32_t k = 0;
            for (int32_t j = 0; j < i; j++) {
                const td_move *o = &of[r].moves[j];
                k += o->kind == m->kind && o->peer == m->peer && o->edge == m->edge &&
                     o->module == m->module && o->gradient == m->gradient;
            }
            if (m->kind != TD_MOVE_BROADCAST) {
                const td_move *other = kth(
                    &of[m->peer], m->kind == TD_MOVE_SEND ? TD_MOVE_RECV : TD_MOVE_SEND, r, m, k);
                cr_assert_not_null(other, "%s: rank %d", name, (int)r);
                cr_assert(other->mb == m->mb && other->part == m->part, "%s: rank %d", name,
                          (int)r);
                continue;
            }
            bool here = false, root = false;
            for (int32_t g = 0; g < m->n_group; g++) {
                const td_move *other = kth(&of[m->group[g]], TD_MOVE_BROADCAST, m->peer, m, k);
                here = here || m->group[g] == r;
                root = root || m->group[g] == m->peer;
                cr_assert(
                    other != NULL && other->mb == m->mb && other->n_group == m->n_group &&
                        memcmp(other->group, m->group, (size_t)m->n_group * sizeof(int32_t)) == 0,
                    "%s: rank %d", name, (int)r);
            }
            cr_assert(here && root, "%s: rank %d", name, (int)r);
        }
}

Test(pipeline, has_for_every_message_the_other_end)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        const td_pipeline p = plan_pipeline(a, plan);
        check_messages(a, &p, s->name, plan->step.microbatches);
        td_arena_free(a);
    }
}

Test(pipeline, has_for_every_message_the_other_end_in_random_layouts)
{
    uint32_t state = 7;
    for (int32_t i = 0; i < 40; i++) {
        td_arena *a = td_arena_new();
        const plan_shape s = plan_random(&state);
        const td_plan *plan = plan_of(a, &s);
        const td_pipeline p = plan_pipeline(a, plan);
        check_messages(a, &p, "random", plan->step.microbatches);
        td_arena_free(a);
    }
}

/* A microbatch crosses each boundary of its pipeline once a lane and tensor rank; bridges once a
 * pair; gradients only where something at or below trains. */
Test(pipeline, moves_gradients_exactly_where_something_below_trains)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        const td_pipeline p = plan_pipeline(a, plan);
        const int32_t n_micro = plan->step.microbatches;
        int64_t sent[2] = {0, 0}, expected[2] = {0, 0};
        for (int32_t r = 0; r < p.world_size; r++) {
            const td_move_list l = moves_of_step(a, &p, r, n_micro);
            for (int32_t i = 0; i < l.n; i++)
                if (l.moves[i].kind == TD_MOVE_SEND)
                    sent[l.moves[i].gradient]++;
        }
        for (int32_t m = 0; m < plan->n_modules; m++) {
            const td_module *module = &plan->modules[m];
            bool below = module->frozen == TD_FROZEN_FALSE;
            for (int32_t e = 0; e < p.n_edges; e++)
                if (p.edges[e].dst == m)
                    below = below || plan->modules[p.edges[e].src].frozen != TD_FROZEN_TRUE;
            const int64_t crossings = (int64_t)(module->pp - 1) * module->tp * module->dp * n_micro;
            expected[false] += crossings;
            expected[true] += below ? crossings : 0;
        }
        for (int32_t e = 0; e < p.n_edges; e++) {
            const int64_t messages = (int64_t)p.bridges[e].n_pairs * n_micro;
            expected[false] += messages;
            expected[true] += plan->modules[p.edges[e].src].frozen != TD_FROZEN_TRUE ? messages : 0;
        }
        cr_assert_eq(sent[false], expected[false], "%s: activations", s->name);
        cr_assert_eq(sent[true], expected[true], "%s: gradients", s->name);
        td_arena_free(a);
    }
}

Test(pipeline, names_edges_as_users_do)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.n_encoders = 1, .language = {.pp = 2}});
    const td_pipeline p = plan_pipeline(a, plan);
    char text[64];
    cr_assert_str_eq(td_move_edge_name(&p, &(td_move){.edge = 0, .module = -1}, text, sizeof text),
                     "images->language");
    cr_assert_str_eq(td_move_edge_name(&p, &(td_move){.edge = -1, .module = 1}, text, sizeof text),
                     "language");
    td_arena_free(a);
}
