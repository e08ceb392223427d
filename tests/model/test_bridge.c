#include "model/bridge.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <string.h>

enum { LANES = 8 };

static td_grid module(int first, bool dp_outer, int tp, int dp, int pp)
{
    td_grid g = {.first = first,
                 .n_axes = 4,
                 .axis = {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_DP, TD_AXIS_PP},
                 .extent = {tp, 1, dp, pp}};
    if (dp_outer) {
        g.axis[2] = TD_AXIS_PP, g.axis[3] = TD_AXIS_DP;
        g.extent[2] = pp, g.extent[3] = dp;
    }
    return g;
}

/* dp of both sides: every pair of which one divides the other. */
static const struct {
    int src, dst;
} lanes[] = {{1, 1}, {4, 4}, {1, 2}, {1, 3}, {2, 8}, {2, 1}, {3, 1}, {8, 2}, {8, 4}};
#define ALL_LANES DataPoints(int, 0, 1, 2, 3, 4, 5, 6, 7, 8)

TheoryDataPoints(bridge,
                 leaders_are_the_last_rank_of_the_source_lane_and_the_first_of_the_destination) = {
    ALL_LANES, DataPoints(int, 0, 1), DataPoints(int, 1, 2, 4), DataPoints(int, 1, 3)};
Theory((int l, int dp_outer, int tp, int pp), bridge,
       leaders_are_the_last_rank_of_the_source_lane_and_the_first_of_the_destination)
{
    td_arena *a = td_arena_new();
    const td_grid src = module(0, dp_outer, tp, lanes[l].src, pp),
                  dst = module(500, dp_outer, tp, lanes[l].dst, pp);
    const td_axis lane_axes[] = {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_PP};
    td_bridge b;
    td_rank_lists from, to;
    cr_assert_eq(td_bridge_build(a, &src, &dst, &b, NULL, NULL), TD_OK);
    cr_assert_eq(td_grid_lists(&src, a, lane_axes, 3, false, &from, NULL), TD_OK);
    cr_assert_eq(td_grid_lists(&dst, a, lane_axes, 3, false, &to, NULL), TD_OK);
    for (int32_t i = 0; i < b.n_src; i++)
        cr_assert_eq(b.src_leader[i], from.ranks[(i + 1) * from.n_ranks - 1]);
    for (int32_t i = 0; i < b.n_dst; i++)
        cr_assert_eq(b.dst_leader[i], to.ranks[i * to.n_ranks]);
    td_arena_free(a);
}

TheoryDataPoints(bridge,
                 each_rank_of_a_boundary_stage_is_in_the_group_of_its_lane_with_one_leader) = {
    ALL_LANES, DataPoints(int, 0, 1), DataPoints(int, 1, 4), DataPoints(int, 1, 2)};
Theory((int l, int dp_outer, int tp, int pp), bridge,
       each_rank_of_a_boundary_stage_is_in_the_group_of_its_lane_with_one_leader)
{
    td_arena *a = td_arena_new();
    const td_grid src = module(200, dp_outer, tp, lanes[l].src, pp),
                  dst = module(0, dp_outer, tp, lanes[l].dst, pp);
    int32_t n_senders = 0, n_receivers = 0, n_sent = 0, n_received = 0;
    td_bridge b;
    cr_assert_eq(td_bridge_build(a, &src, &dst, &b, NULL, NULL), TD_OK);
    for (int32_t rank = 0; rank < 300; rank++) {
        td_coord c;
        const td_bridge_seat s = td_bridge_seat_of(&b, &src, &dst, rank);
        cr_assert_eq(s.in_src, td_grid_holds(&src, rank));
        cr_assert_eq(s.in_dst, td_grid_holds(&dst, rank));
        cr_assert_eq(s.role == TD_BRIDGE_OUTSIDE, !s.in_src && !s.in_dst);
        cr_assert_eq(s.role >= TD_BRIDGE_SENDER, s.n_pairs > 0);
        if (td_grid_coord(&src, rank, &c, NULL) == TD_OK) {
            cr_assert_eq(s.src_lane, c.c[TD_AXIS_DP]);
            cr_assert_eq(s.src_boundary, c.c[TD_AXIS_PP] == pp - 1);
        }
        if (td_grid_coord(&dst, rank, &c, NULL) == TD_OK) {
            cr_assert_eq(s.dst_lane, c.c[TD_AXIS_DP]);
            cr_assert_eq(s.dst_boundary, c.c[TD_AXIS_PP] == 0);
        }
        for (int32_t i = s.first_pair; i < s.first_pair + s.n_pairs; i++)
            cr_assert_eq(rank, s.role == TD_BRIDGE_SENDER ? b.src_leader[b.pairs[i].src]
                                                          : b.dst_leader[b.pairs[i].dst]);
        n_senders += s.role == TD_BRIDGE_SENDER;
        n_receivers += s.role == TD_BRIDGE_RECEIVER;
        n_sent += s.role == TD_BRIDGE_SENDER ? s.n_pairs : 0;
        n_received += s.role == TD_BRIDGE_RECEIVER ? s.n_pairs : 0;
    }
    cr_assert_eq(n_senders, b.n_src);
    cr_assert_eq(n_receivers, b.n_dst);
    cr_assert_eq(n_sent, b.n_pairs);
    cr_assert_eq(n_received, b.n_pairs);
    td_arena_free(a);
}

TheoryDataPoints(bridge, every_row_arrives_once_and_in_order_and_its_gradient_returns) = {
    ALL_LANES, DataPoints(int, 0, 1, 2, 5, 12)};
Theory((int l, int rows_a_lane), bridge,
       every_row_arrives_once_and_in_order_and_its_gradient_returns)
{
    td_arena *a = td_arena_new();
    const td_grid src = module(0, false, 2, lanes[l].src, 1),
                  dst = module(100, false, 2, lanes[l].dst, 1);
    int64_t rows[LANES], at = 0;
    td_bridge b;
    td_bridge_rows out;
    for (int i = 0; i < LANES; i++)
        rows[i] = rows_a_lane;
    cr_assert_eq(td_bridge_build(a, &src, &dst, &b, NULL, NULL), TD_OK);
    cr_assert_eq(td_bridge_share(a, &b, &(td_bridge_load){.lane_rows = rows}, &out, NULL, NULL),
                 TD_OK);
    for (int32_t i = 0; i < b.n_pairs; i++) {
        cr_assert_eq(out.forward[i].first, at);
        cr_assert_geq(out.forward[i].last, at);
        at = out.forward[i].last;
        cr_assert_eq(b.pairs[i].src, i * b.n_src / b.n_pairs);
        cr_assert_eq(b.pairs[i].dst, i * b.n_dst / b.n_pairs);
    }
    cr_assert_eq(at, (int64_t)b.n_src * rows_a_lane);
    cr_assert(out.backward_matches_forward);
    for (int32_t i = 0; i < b.n_src; i++) {
        cr_assert_eq(out.src_rows[i].first, (int64_t)i * rows_a_lane);
        cr_assert_eq(out.src_rows[i].last, (int64_t)(i + 1) * rows_a_lane);
    }
    td_arena_free(a);
}

TheoryDataPoints(bridge, an_even_cut_is_whole_and_its_parts_differ_by_one_at_most) = {
    DataPoints(int, 0, 1, 7, 1000), DataPoints(int, 1, 2, 3, 8)};
Theory((int n, int parts), bridge, an_even_cut_is_whole_and_its_parts_differ_by_one_at_most)
{
    int64_t at = 40;
    for (int32_t i = 0; i < parts; i++) {
        const td_rows r = td_rows_part((td_rows){40, 40 + n}, parts, i);
        cr_assert_eq(r.first, at);
        cr_assert_eq(r.last - r.first, n / parts + (i < n % parts));
        at = r.last;
    }
    cr_assert_eq(at, 40 + n);
}

Test(bridge, unequal_lanes_that_fan_in_get_back_the_wrong_gradient)
{
    td_arena *a = td_arena_new();
    const td_grid src = module(0, false, 1, 2, 1), dst = module(2, false, 1, 1, 1);
    const int64_t rows[] = {4, 8};
    td_bridge b;
    td_bridge_rows out;
    cr_assert_eq(td_bridge_build(a, &src, &dst, &b, NULL, NULL), TD_OK);
    cr_assert_eq(td_bridge_share(a, &b, &(td_bridge_load){.lane_rows = rows}, &out, NULL, NULL),
                 TD_OK);
    cr_assert_not(out.backward_matches_forward);
    cr_assert_eq(out.dst_rows[0].last, 12);
    cr_assert_eq(out.src_rows[0].last, 6, "the destination cuts evenly, whatever it was sent");
    td_arena_free(a);
}

struct split {
    int n, rows, dst;
    int64_t size[4];
    int64_t last[2]; /* of the parts */
    char rule[40];
};

ParameterizedTestParameters(bridge, sample_sizes_decide_the_cut_where_there_is_one)
{
    static struct split table[] = {
        {2, 8, 2, {3, 5}, {3, 8}, ""},
        {4, 10, 2, {1, 2, 3, 4}, {3, 10}, ""},
        {4, 3, 2, {0, 0, 3, 0}, {0, 3}, ""},
        {3, 12, 1, {3, 4, 50}, {12, 0}, ""}, /* one part: not looked at */
        {2, 8, 2, {3, 4}, {0}, "split_metadata_sum_mismatch"},
        {2, 8, 2, {INT64_MAX, INT64_MAX}, {0}, "split_metadata_sum_mismatch"},
        {3, 8, 2, {3, 4, 1}, {0}, "split_metadata_count_mismatch"},
        {1, 8, 2, {8}, {0}, "split_metadata_count_mismatch"},
        {0, 0, 2, {0}, {0}, "split_metadata_count_mismatch"}};
    return cr_make_param_array(struct split, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct split *t, bridge, sample_sizes_decide_the_cut_where_there_is_one)
{
    td_arena *a = td_arena_new();
    const td_grid src = module(0, false, 1, 1, 1), dst = module(1, false, 1, t->dst, 1);
    const int64_t rows = t->rows;
    const td_bridge_split split = {t->n, t->size};
    const char *rule = "unset";
    td_bridge b;
    td_bridge_rows out;
    cr_assert_eq(td_bridge_build(a, &src, &dst, &b, NULL, NULL), TD_OK);
    const td_status st =
        td_bridge_share(a, &b, &(td_bridge_load){&rows, &split}, &out, &rule, NULL);
    cr_assert_eq(st, t->rule[0] != '\0' ? TD_PLAN : TD_OK);
    cr_assert_str_eq(rule != NULL ? rule : "", t->rule);
    for (int32_t i = 0; st == TD_OK && i < b.n_pairs; i++)
        cr_assert_eq(out.forward[i].last, t->last[i]);
    td_arena_free(a);
}

struct refusal {
    td_bridge_side src, dst;
    char apart[40], together[40];
};

ParameterizedTestParameters(bridge, impossible_bridges_are_refused_by_name)
{
    /* tp, cp, dp, pp, offset */
    static struct refusal table[] = {
        {{1, 1, 4, 1, 0}, {2, 1, 2, 1, 0}, "", ""},
        {{1, 2, 4, 1, 0}, {2, 2, 2, 1, 0}, "src_cp_must_be_one", "colocated_cp_must_be_one"},
        {{2, 1, 4, 1, 0}, {2, 2, 2, 1, 0}, "dest_cp_must_be_one", "colocated_cp_must_be_one"},
        {{2, 1, 3, 1, 0},
         {3, 1, 2, 1, 0},
         "leader_counts_not_divisible",
         "colocated_dp_not_divisible"},
        {{1, 1, 4, 1, 0}, {1, 1, 8, 1, 0}, "", "colocated_size_differs"},
        {{1, 1, 4, 1, 0}, {1, 1, 4, 1, 2}, "", "colocated_offset_differs"},
        {{1, 1, 4, 1, 0}, {1, 1, 2, 2, 0}, "", "colocated_pp_must_be_one"},
        {{INT64_MAX, 1, 4, 1, 0}, {1, 1, 2, INT64_MAX, 0}, "", "colocated_pp_must_be_one"}};
    return cr_make_param_array(struct refusal, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct refusal *t, bridge, impossible_bridges_are_refused_by_name)
{
    const char *apart = td_bridge_refusal(&t->src, &t->dst);
    const char *together = td_bridge_colocated_refusal(&t->src, &t->dst);
    cr_assert_str_eq(apart != NULL ? apart : "", t->apart);
    cr_assert_str_eq(together != NULL ? together : "", t->together);
}

Test(bridge, a_refused_bridge_says_which_sizes_are_wrong)
{
    td_arena *a = td_arena_new();
    td_err err = {0};
    const char *rule = NULL;
    td_bridge b;
    const td_grid src = module(0, false, 1, 3, 1), dst = module(3, false, 1, 2, 1);
    cr_assert_eq(td_bridge_build(a, &src, &dst, &b, &rule, &err), TD_PLAN);
    cr_assert_str_eq(rule, "leader_counts_not_divisible");
    cr_assert_not_null(strstr(err.text, "dp 3"));
    cr_assert_not_null(strstr(err.text, "dp 2"));
    td_arena_free(a);
}
