#include "model/grid.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <string.h>

static const td_axis orders[][4] = {{TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_DP, TD_AXIS_PP},
                                    {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_PP, TD_AXIS_DP},
                                    {TD_AXIS_PP, TD_AXIS_DP, TD_AXIS_CP, TD_AXIS_TP}};

static td_grid dense(int order, int tp, int cp, int dp, int pp)
{
    const int32_t extents[TD_N_AXES] = {
        [TD_AXIS_TP] = tp, [TD_AXIS_CP] = cp, [TD_AXIS_DP] = dp, [TD_AXIS_PP] = pp};
    td_grid g = {.first = 7, .n_axes = 4};
    for (int32_t d = 0; d < 4; d++) {
        g.axis[d] = orders[order][d];
        g.extent[d] = extents[g.axis[d]];
    }
    return g;
}

/* An expert factoring of the same ranks: everything that is not pipeline goes to ep. */
static td_grid experts_of(int order, int tp, int cp, int dp, int pp)
{
    td_grid g = {.first = 7,
                 .n_axes = 4,
                 .axis = {TD_AXIS_EXPT_TP, TD_AXIS_EP, TD_AXIS_EXPT_DP, TD_AXIS_PP},
                 .extent = {1, tp * cp, dp, pp}};
    if (order == 1) {
        g.axis[2] = TD_AXIS_PP, g.axis[3] = TD_AXIS_EXPT_DP;
        g.extent[2] = pp, g.extent[3] = dp;
    }
    return g;
}

TheoryDataPoints(grid, rank_and_coord_are_inverse) = {
    DataPoints(int, 0, 1, 2), DataPoints(int, 1, 2, 8), DataPoints(int, 1, 2),
    DataPoints(int, 1, 3), DataPoints(int, 1, 4)};
Theory((int order, int tp, int cp, int dp, int pp), grid, rank_and_coord_are_inverse)
{
    const td_grid g = dense(order, tp, cp, dp, pp);
    cr_assert_eq(td_grid_check(&g, 7 + td_grid_size(&g), NULL, NULL), TD_OK);
    for (int32_t rank = g.first; rank < g.first + td_grid_size(&g); rank++) {
        td_coord c;
        int32_t back;
        cr_assert(td_grid_holds(&g, rank));
        cr_assert_eq(td_grid_coord(&g, rank, &c, NULL), TD_OK);
        cr_assert_eq(td_grid_rank(&g, c, &back, NULL), TD_OK);
        cr_assert_eq(back, rank);
    }
}

/* Every rank of the grid occurs in the lists exactly once. */
static void assert_partition(const td_grid *g, const td_rank_lists *l)
{
    const int64_t size = td_grid_size(g);
    int *seen = calloc((size_t)size, sizeof *seen);
    cr_assert_not_null(seen);
    cr_assert_eq((int64_t)l->n_lists * l->n_ranks, size);
    for (int64_t i = 0; i < size; i++) {
        cr_assert(td_grid_holds(g, l->ranks[i]));
        cr_assert_eq(seen[l->ranks[i] - g->first]++, 0);
    }
    free(seen);
}

TheoryDataPoints(grid, groups_partition_the_grid_and_ascend) = {
    DataPoints(int, 0, 1), DataPoints(int, 1, 2, 4), DataPoints(int, 1, 2), DataPoints(int, 1, 3),
    DataPoints(int, 1, 2)};
Theory((int order, int tp, int cp, int dp, int pp), grid, groups_partition_the_grid_and_ascend)
{
    td_arena *a = td_arena_new();
    const td_grid g = dense(order, tp, cp, dp, pp), e = experts_of(order, tp, cp, dp, pp);
    for (const td_group_kind *kind = td_group_kinds; kind->name != NULL; kind++) {
        td_rank_lists l;
        cr_assert_eq(td_group_lists(kind, &g, &e, a, &l, NULL), TD_OK);
        for (int32_t i = 0; i < l.n_lists; i++)
            for (int32_t k = 1; k < l.n_ranks; k++)
                cr_assert_lt(l.ranks[i * l.n_ranks + k - 1], l.ranks[i * l.n_ranks + k], "%s",
                             kind->name);
        if (kind->form == TD_GROUP_LISTS)
            assert_partition(&g, &l);
    }
    td_arena_free(a);
}

TheoryDataPoints(grid, a_group_varies_its_axes_and_nothing_else) = {DataPoints(int, 0, 1, 2),
                                                                    DataPoints(int, 2, 4)};
Theory((int order, int tp), grid, a_group_varies_its_axes_and_nothing_else)
{
    td_arena *a = td_arena_new();
    const td_grid g = dense(order, tp, 2, 3, 2);
    const td_axis vary[] = {TD_AXIS_DP, TD_AXIS_TP};
    td_rank_lists sorted, raw;
    cr_assert_eq(td_grid_lists(&g, a, vary, 2, true, &sorted, NULL), TD_OK);
    cr_assert_eq(td_grid_lists(&g, a, vary, 2, false, &raw, NULL), TD_OK);
    assert_partition(&g, &raw);
    for (int32_t i = 0; i < raw.n_lists; i++) {
        td_coord first, c;
        cr_assert_eq(td_grid_coord(&g, raw.ranks[i * raw.n_ranks], &first, NULL), TD_OK);
        for (int32_t k = 0; k < raw.n_ranks; k++) {
            cr_assert_eq(td_grid_coord(&g, raw.ranks[i * raw.n_ranks + k], &c, NULL), TD_OK);
            cr_assert_eq(c.c[TD_AXIS_CP], first.c[TD_AXIS_CP]);
            cr_assert_eq(c.c[TD_AXIS_PP], first.c[TD_AXIS_PP]);
            cr_assert_eq(c.c[TD_AXIS_DP], k / tp); /* the axis that was asked for last is fastest */
            cr_assert_eq(c.c[TD_AXIS_TP], k % tp);
        }
    }
    cr_assert_eq(sorted.n_lists, raw.n_lists);
    td_arena_free(a);
}

Test(grid, embedding_groups_are_the_ends_and_heads_of_the_pipelines)
{
    td_arena *a = td_arena_new();
    for (int pp = 1; pp <= 3; pp++) {
        const td_grid g = dense(1, 2, 1, 2, pp);
        td_rank_lists lists[3] = {{0}};
        for (const td_group_kind *kind = td_group_kinds; kind->name != NULL; kind++) {
            const int i = strcmp(kind->name, "pp") == 0     ? 0
                          : strcmp(kind->name, "embd") == 0 ? 1
                          : kind->form == TD_GROUP_HEADS    ? 2
                                                            : -1;
            if (i >= 0)
                cr_assert_eq(td_group_lists(kind, &g, NULL, a, &lists[i], NULL), TD_OK);
        }
        cr_assert_eq(lists[1].n_ranks, pp > 1 ? 2 : 1);
        cr_assert_eq(lists[2].n_ranks, 1);
        for (int32_t l = 0; l < lists[0].n_lists; l++) {
            const int32_t *pipeline = lists[0].ranks + l * pp;
            cr_assert_eq(lists[1].ranks[l * lists[1].n_ranks], pipeline[0]);
            cr_assert_eq(lists[1].ranks[(l + 1) * lists[1].n_ranks - 1], pipeline[pp - 1]);
            cr_assert_eq(lists[2].ranks[l], pipeline[0]);
        }
    }
    td_arena_free(a);
}

Test(grid, expert_groups_without_an_expert_factoring_are_refused)
{
    td_arena *a = td_arena_new();
    const td_grid g = dense(0, 2, 1, 2, 1);
    for (const td_group_kind *kind = td_group_kinds; kind->name != NULL; kind++) {
        td_rank_lists l;
        cr_assert_eq(td_group_lists(kind, &g, NULL, a, &l, NULL), kind->expert ? TD_USAGE : TD_OK);
    }
    td_arena_free(a);
}

Test(grid, a_grid_must_fit_into_its_world)
{
    const char *rule = NULL;
    td_grid g = dense(0, 2, 2, 2, 2);
    cr_assert_eq(td_grid_check(&g, 7 + 16, &rule, NULL), TD_OK);
    cr_assert_eq(td_grid_check(&g, 7 + 15, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "grid_exceeds_world");
    g.first = -1;
    cr_assert_eq(td_grid_check(&g, 100, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "negative_rank_offset");
    g.first = 0;
    g.extent[2] = 0;
    cr_assert_eq(td_grid_check(&g, 100, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "bad_extent");
    g.extent[2] = 2;
    g.axis[2] = g.axis[0];
    cr_assert_eq(td_grid_check(&g, 100, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "repeated_axis");
}

Test(grid, absurd_sizes_saturate_and_are_refused)
{
    const char *rule = NULL;
    const td_grid g = dense(0, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX);
    cr_assert_eq(td_grid_size(&g), INT64_MAX);
    cr_assert_eq(td_grid_check(&g, INT64_MAX, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "grid_exceeds_world");
}

Test(grid, ranks_and_coordinates_outside_are_refused_with_a_reason)
{
    const td_grid g = dense(0, 2, 1, 2, 1);
    td_coord c = {.c = {[TD_AXIS_TP] = 1}};
    int32_t rank = -5;
    td_err err = {0};
    cr_assert_eq(td_grid_coord(&g, 6, &c, NULL), TD_PLAN);
    cr_assert_eq(td_grid_coord(&g, 11, &c, &err), TD_PLAN);
    cr_assert_not_null(strstr(err.text, "rank 11"));
    cr_assert_eq(c.c[TD_AXIS_TP], 1, "out is written only on success");
    c.c[TD_AXIS_EP] = 1; /* an axis that the grid does not have */
    cr_assert_eq(td_grid_rank(&g, c, &rank, NULL), TD_PLAN);
    c = (td_coord){.c = {[TD_AXIS_DP] = 2}};
    cr_assert_eq(td_grid_rank(&g, c, &rank, NULL), TD_PLAN);
    cr_assert_eq(rank, -5);
}

/* tp 2, dp 4, pp 2 against experts (1, 4, 2, 2): compatible with pp outermost, not with dp
 * outermost. */
Test(grid, a_second_factoring_must_keep_the_pipelines)
{
    const char *rule = NULL;
    const td_grid outer = dense(0, 2, 1, 4, 2), inner = dense(1, 2, 1, 4, 2);
    td_grid view = {.first = 7,
                    .n_axes = 4,
                    .axis = {TD_AXIS_EXPT_TP, TD_AXIS_EP, TD_AXIS_EXPT_DP, TD_AXIS_PP},
                    .extent = {1, 4, 2, 2}};
    cr_assert_eq(td_grid_check_view(&outer, &view, &rule, NULL), TD_OK);
    view.axis[2] = TD_AXIS_PP, view.axis[3] = TD_AXIS_EXPT_DP;
    cr_assert_eq(td_grid_check_view(&inner, &view, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "shared_dim_membership_differs");
    view.extent[1] = 3;
    cr_assert_eq(td_grid_check_view(&outer, &view, &rule, NULL), TD_PLAN);
    cr_assert_str_eq(rule, "view_size_mismatch");
}

TheoryDataPoints(grid, a_view_is_accepted_exactly_when_the_pipelines_are_equal) = {
    DataPoints(int, 0, 1, 2), DataPoints(int, 1, 2, 4), DataPoints(int, 1, 2, 3),
    DataPoints(int, 1, 2, 4)};
Theory((int order, int tp, int dp, int pp), grid,
       a_view_is_accepted_exactly_when_the_pipelines_are_equal)
{
    td_arena *a = td_arena_new();
    const td_axis along[] = {TD_AXIS_PP};
    const td_grid g = dense(order, tp, 1, dp, pp);
    for (int other = 0; other < 2; other++) {
        td_rank_lists mine, theirs;
        const td_grid view = experts_of(other, tp, 1, dp, pp);
        cr_assert_eq(td_grid_lists(&g, a, along, 1, true, &mine, NULL), TD_OK);
        cr_assert_eq(td_grid_lists(&view, a, along, 1, true, &theirs, NULL), TD_OK);
        const bool equal =
            memcmp(mine.ranks, theirs.ranks, sizeof *mine.ranks * (size_t)td_grid_size(&g)) == 0;
        cr_assert_eq(td_grid_check_view(&g, &view, NULL, NULL) == TD_OK, equal);
    }
    td_arena_free(a);
}
