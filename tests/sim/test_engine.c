/* The event loop against sums done by hand, links being no matter. */
#include "tests/sim/build_program.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>
#include <string.h>

static const td_engine_options ideal = {.flows = TD_FLOWS_IDEAL};

static const td_timeline *simulate(td_arena *a, const built *b, const td_engine_options *o)
{
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_engine_run(a, &b->program, NULL, &b->prices, o, &t, &err), TD_OK, "%s",
                 err.text);
    return t;
}

/* Narayanan et al., SC'21: (m + p - 1)(f + b), to the last bit for numbers that sums of do not
 * round. */
TheoryDataPoints(engine, a_uniform_1f1b_takes_exactly_m_plus_p_minus_1_passes) = {
    DataPoints(int, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16),
    DataPoints(int, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 64),
    DataPoints(double, 0.25, 1.0, 2.5), DataPoints(bool, false, true)};
Theory((int p, int m, double backward_s, bool shapes), engine,
       a_uniform_1f1b_takes_exactly_m_plus_p_minus_1_passes)
{
    td_arena *a = td_arena_new();
    const td_op_cost free_of_charge = flow_cost(0, 0, 1);
    const built *b = build_pipeline(a, &(built_pipeline){.tp = 1,
                                                         .dp = 1,
                                                         .pp = p,
                                                         .microbatches = m,
                                                         .forward_s = 1,
                                                         .backward_s = backward_s,
                                                         .shapes = shapes,
                                                         .transfer = free_of_charge,
                                                         .shape = free_of_charge});
    const td_timeline *t = simulate(a, b, &ideal);
    cr_assert(t->step_s == (m + p - 1) * (1 + backward_s), "%.17g", t->step_s);
    td_arena_free(a);
}

/* A chain of transfers: each hop adds its lone time. */
Test(engine, a_transfer_starts_with_the_later_side_and_takes_its_lone_time)
{
    td_arena *a = td_arena_new();
    const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}}, {TD_COMM_PAIR, 2, {1, 2}}};
    const double works[] = {1, 3};
    const td_op_cost costs[] = {flow_cost(0.25, 1000000, 1e6)};
    const built_op ops[] = {{0, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 0, 0},
                            {0, TD_OP_SEND, TD_LANE_FWD, 0, 0, 0, 0},
                            {1, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 1, 0},
                            {1, TD_OP_RECV, TD_LANE_FWD, 0, 0, 0, 0},
                            {1, TD_OP_SEND, TD_LANE_BWD, 1, 1, 0, 0},
                            {2, TD_OP_RECV, TD_LANE_FWD, 1, -1, 0, 0}};
    const built *b = build_by_hand(a, 3, 2, comms, 6, ops, works, costs);
    const td_timeline *t = simulate(a, b, &ideal);
    cr_assert_eq(td_timeline_start(t, 0, 1), 3); /* rank 1 is ready at 3 */
    cr_assert_eq(td_timeline_start(t, 1, 1), 3);
    cr_assert_eq(td_timeline_end(t, 0, 1), 4.25);
    cr_assert_eq(td_timeline_start(t, 2, 0), 4.25);
    cr_assert_eq(td_timeline_end(t, 2, 0), 5.5);
    cr_assert_eq(t->n_flows, 2);
    td_arena_free(a);
}

TheoryDataPoints(engine,
                 an_eager_message_never_holds_its_sender) = {DataPoints(double, 0, 0.5, 1, 5)};
Theory((double receiver_s), engine, an_eager_message_never_holds_its_sender)
{
    td_arena *a = td_arena_new();
    const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}}};
    const double works[] = {receiver_s};
    const td_op_cost costs[] = {flow_cost(1, 0, 1)};
    const built_op ops[] = {{0, TD_OP_SEND_SHAPE, TD_LANE_FWD, 0, -1, 0, 0},
                            {0, TD_OP_SEND_SHAPE, TD_LANE_FWD, 0, -1, 0, 0},
                            {1, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 0, 0},
                            {1, TD_OP_RECV_SHAPE, TD_LANE_FWD, 0, 0, 0, 0},
                            {1, TD_OP_RECV_SHAPE, TD_LANE_FWD, 0, -1, 0, 0}};
    const built *b = build_by_hand(a, 2, 1, comms, 5, ops, works, costs);
    const td_timeline *t = simulate(a, b, &ideal);
    cr_assert_eq(td_timeline_end(t, 0, 0), 1);
    cr_assert_eq(td_timeline_end(t, 0, 1), 2);
    cr_assert_eq(td_timeline_start(t, 1, 1), receiver_s);
    cr_assert_eq(td_timeline_end(t, 1, 1), fmax(receiver_s, 1));
    cr_assert_eq(td_timeline_end(t, 1, 2), fmax(receiver_s, 2));
    td_arena_free(a);
}

TheoryDataPoints(engine, a_group_starts_with_its_last_member_and_alone_takes_nothing) = {
    DataPoints(int, 1, 2, 3, 8)};
Theory((int n), engine, a_group_starts_with_its_last_member_and_alone_takes_nothing)
{
    td_arena *a = td_arena_new();
    const built_comm comms[] = {{TD_COMM_DATA, n, {0, 1, 2, 3, 4, 5, 6, 7}}};
    double works[8];
    const td_op_cost costs[] = {flow_cost(0.5, 1 << 20, 1 << 20)};
    built_op ops[16];
    for (int r = 0; r < n; r++) {
        works[r] = (r * 5) % 8 + 1; /* the last one to come is not the last one in rank */
        ops[2 * r] = (built_op){r, TD_OP_BACKWARD, TD_LANE_COMPUTE, -1, -1, r, 0};
        ops[2 * r + 1] = (built_op){r, TD_OP_GRAD_ALL_REDUCE, TD_LANE_DP, 0, 0, 0, 0};
    }
    const built *b = build_by_hand(a, n, 1, comms, 2 * n, ops, works, costs);
    const td_timeline *t = simulate(a, b, &ideal);
    double last = 0;
    for (int r = 0; r < n; r++)
        last = fmax(last, works[r]);
    for (int r = 0; r < n; r++) {
        cr_assert_eq(td_timeline_start(t, r, 1), n == 1 ? works[0] : last);
        cr_assert_eq(td_timeline_end(t, r, 1), n == 1 ? works[0] : last + 1.5);
    }
    cr_assert_eq(t->n_flows, n == 1 ? 0 : n);
    td_arena_free(a);
}

TheoryDataPoints(engine, an_op_that_waits_for_a_part_starts_when_the_part_ends) = {
    DataPoints(int, 1, 2, 3, 4), DataPoints(double, 1.0, 1.5)};
Theory((int part, double factor), engine, an_op_that_waits_for_a_part_starts_when_the_part_ends)
{
    td_arena *a = td_arena_new();
    const built_comm comms[] = {{TD_COMM_DATA, 2, {0, 1}}};
    const double works[] = {8, 1};
    const td_op_cost costs[] = {flow_cost(0.5, 1 << 20, 1 << 20)};
    const built_op ops[] = {{0, TD_OP_BACKWARD, TD_LANE_COMPUTE, -1, -1, 0, 0},
                            {0, TD_OP_GRAD_REDUCE_SCATTER, TD_LANE_DP, 0, 0, 0, part},
                            {1, TD_OP_BACKWARD, TD_LANE_COMPUTE, -1, -1, 1, 0},
                            {1, TD_OP_GRAD_REDUCE_SCATTER, TD_LANE_DP, 0, 0, 0, 0}};
    const double slower[] = {factor, 1}, *const stretch[] = {slower, NULL};
    const built *b = build_by_hand(a, 2, 1, comms, 4, ops, works, costs);
    const td_engine_options o = {.stretch = stretch};
    const td_timeline *t = simulate(a, b, &o);
    const double whole = 8 * factor;
    cr_assert_eq(td_timeline_end(t, 0, 0), whole);
    cr_assert_float_eq(td_timeline_start(t, 0, 1), whole * part / BUILT_PARTS, 1e-12);
    td_arena_free(a);
}

/* Ranks 0 and 1: a transfer of 4 s beside a computation of `compute_s` on rank 0 that slow each
 * other down. */
static const td_timeline *side_by_side(td_arena *a, double compute_s, td_overlap overlap)
{
    const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}}};
    const double works[] = {compute_s};
    td_op_cost costs[] = {flow_cost(0, 4000000, 1e6)};
    costs[0].overlap = overlap;
    const built_op ops[] = {{0, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 0, 0},
                            {0, TD_OP_SEND, TD_LANE_FWD, 0, -1, 0, 0},
                            {1, TD_OP_RECV, TD_LANE_FWD, 0, -1, 0, 0}};
    return simulate(a, build_by_hand(a, 2, 1, comms, 3, ops, works, costs), &ideal);
}

Test(engine, a_transfer_and_a_computation_slow_each_other_down_while_both_run)
{
    td_arena *a = td_arena_new();
    const td_overlap overlap = {.wait_s = 0.125, .transfer = 2, .compute = 1.25};
    /* The transfer ends first: 4 * 2 after its wait; meanwhile 8 / 1.25 of the work is done. */
    const td_timeline *t = side_by_side(a, 10, overlap);
    cr_assert_float_eq(td_timeline_end(t, 0, 1), 8.125, 1e-12);
    cr_assert_float_eq(td_timeline_end(t, 0, 0), 8.125 + (10 - 0.125 - 8 / 1.25), 1e-12);
    /* The work ends first. */
    t = side_by_side(a, 2, overlap);
    const double end = 0.125 + (2 - 0.125) * 1.25;
    cr_assert_float_eq(td_timeline_end(t, 0, 0), end, 1e-12);
    cr_assert_float_eq(td_timeline_end(t, 0, 1), end + 4 - (end - 0.125) / 2, 1e-12);
    td_arena_free(a);
}

Test(engine, factors_of_one_change_nothing)
{
    td_arena *a = td_arena_new();
    const td_timeline *t = side_by_side(a, 2, (td_overlap){.transfer = 1, .compute = 1});
    cr_assert_eq(td_timeline_end(t, 0, 0), 2);
    cr_assert_eq(td_timeline_end(t, 0, 1), 4);
    td_arena_free(a);
}

/* Slowing down can only make a step longer, and by no more than the factors. */
TheoryDataPoints(engine, mutual_slow_down_costs_time_but_no_more_than_its_factors) = {
    DataPoints(int, 2, 4), DataPoints(int, 1, 8), DataPoints(double, 1.0, 1.25),
    DataPoints(double, 1.0, 1.5)};
Theory((int pp, int m, double compute, double transfer), engine,
       mutual_slow_down_costs_time_but_no_more_than_its_factors)
{
    td_arena *a = td_arena_new();
    built_pipeline o = {.tp = 1,
                        .dp = 2,
                        .pp = pp,
                        .microbatches = m,
                        .forward_s = 1e-3,
                        .backward_s = 2e-3,
                        .jitter = 0.3,
                        .gradients = true,
                        .transfer = flow_cost(1e-5, 40000000, 50e9),
                        .shape = flow_cost(1e-6, 24, 50e9),
                        .reduce = flow_cost(1e-5, 400000000, 50e9),
                        .world = flow_cost(1e-5, 8, 50e9)};
    const double plain = simulate(a, build_pipeline(a, &o), &ideal)->step_s;
    o.transfer.overlap = o.reduce.overlap = (td_overlap){.transfer = transfer, .compute = compute};
    const double slowed = simulate(a, build_pipeline(a, &o), &ideal)->step_s;
    cr_assert(slowed >= plain * (1 - 1e-12));
    cr_assert(slowed <= plain * fmax(compute, transfer) * (1 + 1e-12));
    td_arena_free(a);
}

Test(engine, a_deadlock_names_rank_op_and_what_it_waits_for)
{
    td_arena *a = td_arena_new();
    const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}}, {TD_COMM_PAIR, 2, {1, 0}}};
    const double works[] = {1};
    const td_op_cost costs[] = {flow_cost(0, 0, 1)};
    const built_op ops[] = {{0, TD_OP_RECV, TD_LANE_FWD, 1, -1, 0, 0},
                            {0, TD_OP_SEND, TD_LANE_FWD, 0, -1, 0, 0},
                            {1, TD_OP_RECV, TD_LANE_FWD, 0, -1, 0, 0},
                            {1, TD_OP_SEND, TD_LANE_FWD, 1, -1, 0, 0}};
    const built *b = build_by_hand(a, 2, 2, comms, 4, ops, works, costs);
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_engine_run(a, &b->program, NULL, &b->prices, &ideal, &t, &err), TD_RUN);
    cr_assert(strstr(err.text, "0 of 4 ops have ended") != NULL, "%s", err.text);
    cr_assert(strstr(err.text, "rank 0, op 0 (") != NULL, "%s", err.text);
    cr_assert(strstr(err.text, "waits for rank 1, op 1 (") != NULL, "%s", err.text);
    cr_assert(strstr(err.text, "rank 1, op 0 (") != NULL, "%s", err.text);
    cr_assert_null(t);
    td_arena_free(a);
}

Test(engine, a_missing_partner_is_named)
{
    td_arena *a = td_arena_new();
    const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}}};
    const double works[] = {1};
    const td_op_cost costs[] = {flow_cost(0, 0, 1)};
    const built_op ops[] = {{1, TD_OP_RECV, TD_LANE_FWD, 0, -1, 0, 0}};
    const built *b = build_by_hand(a, 2, 1, comms, 1, ops, works, costs);
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_engine_run(a, &b->program, NULL, &b->prices, &ideal, &t, &err), TD_RUN);
    cr_assert(strstr(err.text, "waits for rank 0, which has no op for it") != NULL, "%s", err.text);
    td_arena_free(a);
}

Test(engine, a_dependency_on_a_later_op_is_refused)
{
    td_arena *a = td_arena_new();
    const double works[] = {1};
    const built_op ops[] = {{0, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, 1, 0, 0},
                            {0, TD_OP_BACKWARD, TD_LANE_COMPUTE, -1, -1, 0, 0}};
    const built *b = build_by_hand(a, 1, 0, NULL, 2, ops, works, NULL);
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_engine_run(a, &b->program, NULL, &b->prices, &ideal, &t, &err), TD_PLAN);
    cr_assert(strstr(err.text, "depends on op 1") != NULL, "%s", err.text);
    td_arena_free(a);
}

/* A ring all-reduce over 1024 GPUs: alpha and 2 (n - 1) / n of the bytes, however many edges there
 * are. */
Test(engine, a_large_ring_takes_its_closed_form)
{
    td_arena *a = td_arena_new();
    const double n = 1024, bytes = 1 << 30, rate = 50e9, hop_s = 3e-6;
    const uint64_t edge = (uint64_t)llround(2 * (n - 1) / n * bytes);
    const built_pipeline o = {.tp = 1,
                              .dp = 1024,
                              .pp = 1,
                              .microbatches = 1,
                              .gradients = true,
                              .reduce = flow_cost(2 * (n - 1) * hop_s, edge, rate),
                              .world = flow_cost(0, 8, rate)};
    const built *b = build_pipeline(a, &o);
    const td_timeline *t = NULL;
    const td_engine_options shared = {.flows = TD_FLOWS_SHARED, .no_fold = true};
    cr_assert_eq(td_engine_run(a, &b->program, build_topology(a, 1024, 8, 8, 1), &b->prices,
                               &shared, &t, NULL),
                 TD_OK);
    const double expected = 2 * (n - 1) * hop_s + 2 * (n - 1) / n * bytes / rate;
    cr_assert_float_eq(t->step_s, expected, 1e-3 * expected);
    cr_assert_eq(t->n_promoted, 0);
    td_arena_free(a);
}
