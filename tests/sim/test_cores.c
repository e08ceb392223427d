/* Ranks that share cores, against sums done by hand. */
#include "tests/sim/build_program.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>
#include <string.h>

/* One node with so many cores. */
static const td_cores *cores_of(td_arena *a, int32_t world, int32_t n_cores)
{
    int32_t *node_of = TD_NEW(a, int32_t, world), *first = TD_NEW(a, int32_t, 2),
            *cores = TD_NEW(a, int32_t, 1);
    td_cores *c = TD_NEW(a, td_cores, 1);
    first[1] = world;
    cores[0] = n_cores;
    *c = (td_cores){.n_nodes = 1, .node_of = node_of, .first = first, .cores = cores};
    return c;
}

static const td_timeline *simulate(td_arena *a, const built *b, const td_cores *cores)
{
    const td_engine_options o = {.flows = TD_FLOWS_IDEAL, .no_fold = true, .cores = cores};
    const td_timeline *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_engine_run(a, &b->program, NULL, &b->prices, &o, &t, &err), TD_OK, "%s",
                 err.text);
    return t;
}

/* Unlike stages, so that any number of them computes at an instant. */
static const built *pipeline(td_arena *a, int32_t pp, int32_t dp)
{
    const built_pipeline o = {.tp = 1,
                              .dp = dp,
                              .pp = pp,
                              .microbatches = 5,
                              .forward_s = 1,
                              .backward_s = 2.3,
                              .jitter = 0.7,
                              .shapes = true,
                              .gradients = dp > 1,
                              .transfer = flow_cost(0.01, 1000000, 1e7),
                              .shape = flow_cost(0.001, 0, 1),
                              .reduce = flow_cost(0.01, 1000000, 1e7),
                              .world = flow_cost(0.001, 0, 1)};
    return build_pipeline(a, &o);
}

TheoryDataPoints(cores, of_one_s_own_change_no_bit) = {
    DataPoints(int, 1, 2, 3, 5), DataPoints(int, 1, 2), DataPoints(int, 0, 1, 7)};
Theory((int pp, int dp, int more), cores, of_one_s_own_change_no_bit)
{
    td_arena *a = td_arena_new();
    const built *b = pipeline(a, pp, dp);
    const int32_t world = b->program.world_size;
    const td_timeline *alone = simulate(a, b, NULL),
                      *shared = simulate(a, b, cores_of(a, world, world + more));
    for (int32_t r = 0; r < world; r++) {
        const size_t n = (size_t)td_program_stream(&b->program, r)->n_ops * sizeof(double);
        cr_expect_eq(memcmp(alone->start[r], shared->start[r], n), 0);
        cr_expect_eq(memcmp(alone->end[r], shared->end[r], n), 0);
    }
    td_arena_free(a);
}

TheoryDataPoints(cores, n_equal_ranks_on_c_of_them_take_n_over_c_as_long) = {
    DataPoints(int, 1, 2, 3, 7, 8), DataPoints(int, 1, 2, 3, 8)};
Theory((int n, int c), cores, n_equal_ranks_on_c_of_them_take_n_over_c_as_long)
{
    td_arena *a = td_arena_new();
    built_op ops[16];
    const double works[] = {0.75, 1.5};
    for (int32_t i = 0; i < 2 * n; i++)
        ops[i] = (built_op){i / 2, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, i % 2, 0};
    const td_timeline *t =
        simulate(a, build_by_hand(a, n, 0, NULL, 2 * n, ops, works, NULL), cores_of(a, n, c));
    const double expected = 2.25 * (n > c ? (double)n / c : 1);
    for (int32_t r = 0; r < n; r++)
        cr_expect_float_eq(td_timeline_end(t, r, 1), expected, 1e-12 * expected);
    td_arena_free(a);
}

/* 3 s and 1 s on one core: both at half speed until the short one ends at 2 s. */
Test(cores, are_free_again_when_a_rank_has_done_its_work)
{
    td_arena *a = td_arena_new();
    const double works[] = {3, 1};
    const built_op ops[] = {{0, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 0, 0},
                            {1, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 1, 0}};
    const td_timeline *t =
        simulate(a, build_by_hand(a, 2, 0, NULL, 2, ops, works, NULL), cores_of(a, 2, 1));
    cr_expect_float_eq(td_timeline_end(t, 1, 0), 2, 1e-12);
    cr_expect_float_eq(td_timeline_end(t, 0, 0), 4, 1e-12);
    td_arena_free(a);
}

/* A rank that waits for a message leaves its core to the others. */
Test(cores, are_not_needed_to_wait)
{
    td_arena *a = td_arena_new();
    const built_comm comms[] = {{TD_COMM_PAIR, 2, {0, 1}}};
    const double works[] = {2};
    const td_op_cost costs[] = {flow_cost(0.5, 0, 1)};
    const built_op ops[] = {{0, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, -1, 0, 0},
                            {0, TD_OP_SEND, TD_LANE_FWD, 0, 0, 0, 0},
                            {1, TD_OP_RECV, TD_LANE_FWD, 0, -1, 0, 0},
                            {1, TD_OP_FORWARD, TD_LANE_COMPUTE, -1, 0, 0, 0}};
    const td_timeline *t =
        simulate(a, build_by_hand(a, 2, 1, comms, 4, ops, works, costs), cores_of(a, 2, 1));
    cr_expect_float_eq(t->step_s, 4.5, 1e-12);
    td_arena_free(a);
}

/* Seconds of lone work that were begun and ended in a window. */
static double work_done(const built *b, const td_timeline *t, double from, double to)
{
    double work = 0;
    for (int32_t r = 0; r < b->program.world_size; r++) {
        const td_stream *s = td_program_stream(&b->program, r);
        for (int32_t i = 0; i < s->n_ops; i++) {
            const double start = td_timeline_start(t, r, i), end = td_timeline_end(t, r, i);
            if (s->ops[i].work < 0 || start < from || end > to)
                continue;
            work += b->prices.work(b->prices.self, r, s->ops[i].work)->total_s;
        }
    }
    return work;
}

TheoryDataPoints(cores, never_do_more_than_they_can) = {
    DataPoints(int, 2, 3, 5), DataPoints(int, 1, 2), DataPoints(int, 1, 2, 3, 4)};
Theory((int pp, int dp, int c), cores, never_do_more_than_they_can)
{
    td_arena *a = td_arena_new();
    const built *b = pipeline(a, pp, dp);
    const td_timeline *t = simulate(a, b, cores_of(a, b->program.world_size, c)),
                      *fewer =
                          c == 1 ? NULL : simulate(a, b, cores_of(a, b->program.world_size, c - 1));
    /* Between any two ends of ops, what was begun and ended there fits into the cores. */
    for (int32_t r = 0; r < b->program.world_size; r++)
        for (int32_t i = 0; i < td_program_stream(&b->program, r)->n_ops; i++) {
            const double from = td_timeline_start(t, r, i);
            for (double to = from; to < t->step_s + 1; to += t->step_s / 16)
                cr_expect_leq(work_done(b, t, from, to), c * (to - from) * (1 + 1e-9) + 1e-9);
        }
    cr_expect(fewer == NULL || fewer->step_s >= t->step_s * (1 - 1e-12),
              "%d cores: %.17g s, one less: %.17g s", c, t->step_s,
              fewer == NULL ? 0 : fewer->step_s);
    td_arena_free(a);
}
