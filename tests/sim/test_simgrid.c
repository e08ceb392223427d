/* The loop with SimGrid behind it: nothing changes where nothing is shared, and what is shared is
 * shared fairly. */
#include "tests/sim/build_program.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static td_status try(td_arena *a, const built *b, const td_topology *topo, td_flows flows,
                     const td_net *net, const td_timeline **out, td_err *err)
{
    const td_engine_options o = {.flows = flows, .net = net, .stall_s = 0.3};
    return td_engine_run(a, &b->program, topo, &b->prices, &o, out, err);
}

static const td_timeline *simulate(td_arena *a, const built *b, const td_topology *topo,
                                   td_flows flows)
{
    const td_timeline *t = NULL;
    td_err err = {0};
    const td_engine_options o = {.flows = flows, .net = &td_net_simgrid};
    cr_assert_eq(td_engine_run(a, &b->program, topo, &b->prices, &o, &t, &err), TD_OK, "%s",
                 err.text);
    return t;
}

/* Largest difference of any end. */
static double distance(const td_program *p, const td_timeline *x, const td_timeline *y)
{
    double d = 0;
    for (int32_t r = 0; r < p->world_size; r++)
        for (int32_t op = 0; op < td_program_stream(p, r)->n_ops; op++)
            d = fmax(d, fabs(td_timeline_end(x, r, op) - td_timeline_end(y, r, op)));
    return d;
}

static built_pipeline pipeline(int dp, int pp, int m, double jitter, double rate)
{
    return (built_pipeline){.tp = 1,
                            .dp = dp,
                            .pp = pp,
                            .microbatches = m,
                            .forward_s = 1e-3,
                            .backward_s = 2e-3,
                            .jitter = jitter,
                            .shapes = true,
                            .gradients = true,
                            .transfer = flow_cost(1e-5, 40000000, rate),
                            .shape = flow_cost(1e-6, 24, 50e9),
                            .reduce = flow_cost(1e-5, 400000000, rate),
                            .world = flow_cost(1e-5, 8, 50e9)};
}

/* At a third of a port's rate nothing can be over-subscribed: the same bits, without SimGrid. */
TheoryDataPoints(simgrid, equals_ideal_where_no_link_is_over_subscribed) = {
    DataPoints(int, 1, 2, 4), DataPoints(int, 1, 2, 4), DataPoints(int, 1, 8),
    DataPoints(double, 0, 0.3)};
Theory((int dp, int pp, int m, double jitter), simgrid,
       equals_ideal_where_no_link_is_over_subscribed)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(dp, pp, m, jitter, 50e9 / 3);
    const built *b = build_pipeline(a, &o);
    const td_topology *topo = build_topology(a, b->program.world_size, 2, 2, 1);
    const td_timeline *ideal = simulate(a, b, topo, TD_FLOWS_IDEAL),
                      *shared = simulate(a, b, topo, TD_FLOWS_SHARED);
    cr_assert_eq(distance(&b->program, ideal, shared), 0);
    cr_assert_eq(shared->n_promoted, 0);
    td_arena_free(a);
}

/* The fast path against SimGrid doing every flow, mutual slow-down included. */
TheoryDataPoints(simgrid, the_fast_path_equals_simgrid_for_every_flow_to_a_nanosecond) = {
    DataPoints(int, 1, 2, 4), DataPoints(int, 1, 2, 4), DataPoints(int, 1, 8),
    DataPoints(double, 0, 0.3), DataPoints(double, 1.0, 1.3)};
Theory((int dp, int pp, int m, double jitter, double slow), simgrid,
       the_fast_path_equals_simgrid_for_every_flow_to_a_nanosecond)
{
    td_arena *a = td_arena_new();
    built_pipeline o = pipeline(dp, pp, m, jitter, 50e9 / 3);
    o.transfer.overlap = o.reduce.overlap =
        (td_overlap){.wait_s = (slow - 1) * 1e-5, .transfer = slow, .compute = slow * 0.5 + 0.5};
    const built *b = build_pipeline(a, &o);
    const td_topology *topo = build_topology(a, b->program.world_size, 2, 2, 1);
    const td_timeline *fast = simulate(a, b, topo, TD_FLOWS_SHARED),
                      *all = simulate(a, b, topo, TD_FLOWS_ALL);
    cr_assert_eq(all->n_promoted, all->n_flows);
    cr_assert_eq(fast->n_promoted, 0);
    cr_assert_lt(distance(&b->program, fast, all), 1e-9);
    td_arena_free(a);
}

/* Contention only ever delays. */
TheoryDataPoints(simgrid, is_never_earlier_than_ideal) = {
    DataPoints(int, 2, 4), DataPoints(int, 2, 4), DataPoints(int, 1, 8), DataPoints(int, 1, 4),
    DataPoints(double, 1, 4)};
Theory((int dp, int pp, int m, int nics, double oversubscription), simgrid,
       is_never_earlier_than_ideal)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(dp, pp, m, 0.2, 50e9);
    const built *b = build_pipeline(a, &o);
    const td_topology *topo = build_topology(a, b->program.world_size, 4, nics, oversubscription);
    const td_timeline *ideal = simulate(a, b, topo, TD_FLOWS_IDEAL),
                      *shared = simulate(a, b, topo, TD_FLOWS_SHARED);
    for (int32_t r = 0; r < b->program.world_size; r++)
        for (int32_t op = 0; op < td_program_stream(&b->program, r)->n_ops; op++)
            cr_assert(td_timeline_end(shared, r, op) >= td_timeline_end(ideal, r, op) - 1e-9);
    if (nics == 1 && pp > 2 && m > 1)
        cr_assert_gt(shared->n_promoted, 0);
    td_arena_free(a);
}

/* Shares of a link are as symmetric as the flows on it: alike ranks need be simulated once even
 * then. */
TheoryDataPoints(simgrid, folded_and_unfolded_share_links_alike) = {
    DataPoints(int, 2, 4), DataPoints(int, 2, 4), DataPoints(int, 1, 8), DataPoints(int, 1, 4),
    DataPoints(double, 1, 4)};
Theory((int dp, int pp, int m, int nics, double oversubscription), simgrid,
       folded_and_unfolded_share_links_alike)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(dp, pp, m, 0.2, 50e9);
    const built *b = build_pipeline(a, &o);
    const td_topology *topo = build_topology(a, b->program.world_size, 4, nics, oversubscription);
    const td_timeline *folded = simulate(a, b, topo, TD_FLOWS_SHARED), *whole = NULL;
    const td_engine_options each = {
        .flows = TD_FLOWS_SHARED, .net = &td_net_simgrid, .no_fold = true};
    td_err err = {0};
    cr_assert_eq(td_engine_run(a, &b->program, topo, &b->prices, &each, &whole, &err), TD_OK, "%s",
                 err.text);
    cr_assert_eq(folded->n_promoted, whole->n_promoted);
    cr_assert_eq(folded->n_flows, whole->n_flows);
    cr_assert_float_eq(folded->max_link_load, whole->max_link_load, 1e-9);
    cr_assert_lt(distance(&b->program, folded, whole), 1e-9);
    td_arena_free(a);
}

/* Rank 0 sends to ranks 1 and 2 at once, the second time `later_s` after the first. */
static const built *two_flows(td_arena *a, double later_s, const td_op_cost *cost)
{
    static const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}}, {TD_COMM_PAIR, 2, {0, 2}}};
    static const built_op ops[] = {{0, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 0, 0},
                                   {0, TD_OP_SEND, TD_LANE_FWD, 0, -1, 0, 0},
                                   {0, TD_OP_SEND, TD_LANE_BWD, 1, 0, 0, 0},
                                   {1, TD_OP_RECV, TD_LANE_FWD, 0, -1, 0, 0},
                                   {2, TD_OP_RECV, TD_LANE_BWD, 1, -1, 0, 0}};
    return build_by_hand(a, 3, 2, comms, 5, ops, &later_s, cost);
}

Test(simgrid, two_flows_on_one_port_share_it_fairly)
{
    td_arena *a = td_arena_new();
    const td_op_cost cost = flow_cost(1e-6, 100000000, 50e9); /* 2000 us alone */
    const td_topology *topo = build_topology(a, 3, 4, 4, 1);
    const td_timeline *t = simulate(a, two_flows(a, 0, &cost), topo, TD_FLOWS_SHARED);
    cr_assert_float_eq(td_timeline_end(t, 1, 0), 4001e-6, 1e-9);
    cr_assert_float_eq(td_timeline_end(t, 2, 0), 4001e-6, 1e-9);
    cr_assert_eq(t->n_promoted, 2);
    cr_assert_float_eq(t->max_link_load, 2, 1e-6);
    cr_assert_not(t->folded);
    td_arena_free(a);
}

/* The second flow comes when the first has 1000 us to go: both get half, then the second the rest
 * alone. */
Test(simgrid, a_flow_under_way_is_promoted_with_the_bytes_it_has_left)
{
    td_arena *a = td_arena_new();
    const td_op_cost cost = flow_cost(0, 100000000, 50e9);
    const td_topology *topo = build_topology(a, 3, 4, 4, 1);
    const td_timeline *t = simulate(a, two_flows(a, 1000e-6, &cost), topo, TD_FLOWS_SHARED);
    cr_assert_float_eq(td_timeline_end(t, 1, 0), 3000e-6, 1e-9);
    cr_assert_float_eq(td_timeline_end(t, 2, 0), 4000e-6, 1e-9);
    td_arena_free(a);
}

/* Two flows that may have 30e9 each of a port of 50e9 get 25e9 each; one alone gets its 30e9. */
TheoryDataPoints(simgrid,
                 a_flow_never_exceeds_its_own_rate) = {DataPoints(double, 10e9, 25e9, 30e9, 50e9)};
Theory((double rate), simgrid, a_flow_never_exceeds_its_own_rate)
{
    td_arena *a = td_arena_new();
    const td_op_cost cost = flow_cost(0, 100000000, rate);
    const double alone_s = 100000000 / rate, shared_s = fmax(alone_s, 100000000 / 25e9);
    const td_topology *topo = build_topology(a, 3, 4, 4, 1);
    const td_timeline *together = simulate(a, two_flows(a, 0, &cost), topo, TD_FLOWS_ALL);
    cr_assert_float_eq(td_timeline_end(together, 1, 0), shared_s, 1e-9);
    const td_timeline *apart = simulate(a, two_flows(a, 2 * alone_s, &cost), topo, TD_FLOWS_ALL);
    cr_assert_float_eq(td_timeline_end(apart, 1, 0), alone_s, 1e-9);
    cr_assert_float_eq(td_timeline_end(apart, 2, 0), 3 * alone_s, 1e-9);
    td_arena_free(a);
}

/* A promoted flow slows down beside compute as an analytic one does: 10 s of work leave it half its
 * rate throughout. */
Test(simgrid, a_promoted_flow_slows_down_beside_compute)
{
    td_arena *a = td_arena_new();
    td_op_cost cost = flow_cost(0, 100000000, 50e9);
    cost.overlap = (td_overlap){.transfer = 4, .compute = 1};
    const td_topology *topo = build_topology(a, 3, 4, 4, 1);
    /* rank 0 computes 1 ms while it sends: 12.5e9 B/s, 87.5 MB left; then both share: 7 ms for the
     * first's 87.5 MB */
    const td_timeline *t = simulate(a, two_flows(a, 1000e-6, &cost), topo, TD_FLOWS_ALL);
    cr_assert_float_eq(td_timeline_end(t, 1, 0), 1000e-6 + 2 * 87.5e6 / 50e9, 1e-9);
    cr_assert_float_eq(td_timeline_end(t, 2, 0), 1000e-6 + (87.5e6 + 100e6) / 50e9, 1e-9);
    td_arena_free(a);
}

Test(simgrid, contended_runs_repeat_to_the_last_bit)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(4, 4, 8, 0.2, 50e9);
    const built *b = build_pipeline(a, &o);
    const td_topology *topo = build_topology(a, b->program.world_size, 4, 1, 2);
    const td_timeline *first = simulate(a, b, topo, TD_FLOWS_SHARED);
    cr_assert_gt(first->n_promoted, 0);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(distance(&b->program, first, simulate(a, b, topo, TD_FLOWS_SHARED)), 0);
    td_arena_free(a);
}

/* Ranks 0 and 1 receive before they send; 2 sends to 3 and 4 over one port, so that it happens in
 * SimGrid. */
static const built *deadlock(td_arena *a)
{
    static const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}},
                                       {TD_COMM_PAIR, 2, {1, 0}},
                                       {TD_COMM_PAIR, 2, {2, 3}},
                                       {TD_COMM_PAIR, 2, {2, 4}}};
    static const built_op ops[] = {
        {0, TD_OP_RECV, TD_LANE_FWD, 1, -1, 0, 0}, {0, TD_OP_SEND, TD_LANE_FWD, 0, -1, 0, 0},
        {1, TD_OP_RECV, TD_LANE_FWD, 0, -1, 0, 0}, {1, TD_OP_SEND, TD_LANE_FWD, 1, -1, 0, 0},
        {2, TD_OP_SEND, TD_LANE_FWD, 2, -1, 0, 0}, {2, TD_OP_SEND, TD_LANE_BWD, 3, -1, 0, 0},
        {3, TD_OP_RECV, TD_LANE_FWD, 2, -1, 0, 0}, {4, TD_OP_RECV, TD_LANE_FWD, 3, -1, 0, 0}};
    static td_op_cost cost;
    static const double works[] = {1};
    cost = flow_cost(0, 100000000, 50e9);
    return build_by_hand(a, 5, 4, comms, 8, ops, works, &cost);
}

Test(simgrid, a_deadlock_in_the_child_names_rank_op_and_what_it_waits_for)
{
    td_arena *a = td_arena_new();
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(try(a, deadlock(a), build_topology(a, 5, 8, 8, 1), TD_FLOWS_SHARED,
                     &td_net_simgrid, &t, &err),
                 TD_RUN);
    cr_assert(strstr(err.text, "4 of 8 ops have ended") != NULL, "%s", err.text);
    cr_assert(strstr(err.text, "rank 0, op 0 (") != NULL, "%s", err.text);
    cr_assert(strstr(err.text, "waits for rank 1, op 1 (") != NULL, "%s", err.text);
    td_arena_free(a);
}

/* ---- children that come to grief ---- */

typedef void (*net_body)(void *self, td_net_session *s);

static td_status run_kill(const td_net_platform *p, net_body body, void *self, td_err *err)
{
    (void)p, (void)body, (void)self, (void)err;
    kill(getpid(), SIGKILL);
    return TD_OK;
}

static td_status run_abort(const td_net_platform *p, net_body body, void *self, td_err *err)
{
    (void)p, (void)body, (void)self, (void)err;
    static const char words[] = "the platform is upside down\n";
    signal(SIGABRT, SIG_DFL);
    if (write(STDERR_FILENO, words, sizeof words - 1) > 0)
        abort();
    return TD_OK;
}

static td_status run_sleep(const td_net_platform *p, net_body body, void *self, td_err *err)
{
    (void)p, (void)body, (void)self, (void)err;
    pause();
    return TD_OK;
}

static td_status run_nothing(const td_net_platform *p, net_body body, void *self, td_err *err)
{
    (void)p, (void)body, (void)self;
    return td_fail(err, TD_RUN, "flows that cannot end");
}

struct grief {
    td_status (*run)(const td_net_platform *p, net_body body, void *self, td_err *err);
    const char *says;
};

TheoryDataPoints(simgrid,
                 a_child_that_dies_is_an_error_that_names_the_ops) = {DataPoints(int, 0, 1, 2, 3)};
Theory((int way), simgrid, a_child_that_dies_is_an_error_that_names_the_ops)
{
    static const struct grief table[] = {{run_kill, "died of signal 9"},
                                         {run_abort, "the platform is upside down"},
                                         {run_sleep, "made no progress"},
                                         {run_nothing, "flows that cannot end"}};
    const td_net net = {.name = "the net", .run = table[way].run};
    td_arena *a = td_arena_new();
    const td_op_cost cost = flow_cost(0, 100000000, 50e9);
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(try(a, two_flows(a, 0, &cost), build_topology(a, 3, 4, 4, 1), TD_FLOWS_SHARED,
                     &net, &t, &err),
                 TD_RUN);
    cr_assert(strstr(err.text, table[way].says) != NULL, "%s", err.text);
    cr_assert(strstr(err.text, "rank 1, op 0 (") != NULL, "%s", err.text);
    cr_assert_null(t);
    td_arena_free(a);
}

Test(simgrid, contention_without_a_back_end_is_said)
{
    td_arena *a = td_arena_new();
    const td_op_cost cost = flow_cost(0, 100000000, 50e9);
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(try(a, two_flows(a, 0, &cost), build_topology(a, 3, 4, 4, 1), TD_FLOWS_SHARED,
                     NULL, &t, &err),
                 TD_ABSENT);
    cr_assert(strstr(err.text, "nvlink up, rank 0") != NULL, "%s", err.text);
    td_arena_free(a);
}
