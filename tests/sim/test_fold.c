/* Folding is exact: every rank has, to the last bit, the times it has when it is simulated by
 * itself. */
#include "tests/sim/build_program.h"

#include "sim/fold.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <string.h>

static const td_timeline *simulate(td_arena *a, const built *b, const td_topology *topo,
                                   td_flows flows, bool no_fold, const double *const *stretch)
{
    const td_timeline *t = NULL;
    td_err err = {0};
    const td_engine_options o = {.flows = flows, .no_fold = no_fold, .stretch = stretch};
    cr_assert_eq(td_engine_run(a, &b->program, topo, &b->prices, &o, &t, &err), TD_OK, "%s",
                 err.text);
    return t;
}

static void expect_same(const td_program *p, const td_timeline *x, const td_timeline *y)
{
    for (int32_t r = 0; r < p->world_size; r++) {
        const size_t size = (size_t)td_program_stream(p, r)->n_ops * sizeof(double);
        cr_assert(memcmp(x->start[x->class_of[r]], y->start[y->class_of[r]], size) == 0, "rank %d",
                  r);
        cr_assert(memcmp(x->end[x->class_of[r]], y->end[y->class_of[r]], size) == 0, "rank %d", r);
    }
    cr_assert(x->step_s == y->step_s);
    cr_assert_eq(x->n_flows, y->n_flows);
}

/* Rates such that everything a rank can send at once fits its port. */
static built_pipeline pipeline(int tp, int dp, int pp, int m, double jitter, int kinds, double slow)
{
    built_pipeline o = {.tp = tp,
                        .dp = dp,
                        .pp = pp,
                        .microbatches = m,
                        .forward_s = 1e-3,
                        .backward_s = 2e-3,
                        .jitter = jitter,
                        .kinds = kinds,
                        .shapes = true,
                        .gradients = true,
                        .transfer = flow_cost(1e-5, 4000000, 20e9),
                        .shape = flow_cost(1e-6, 24, 50e9),
                        .reduce = flow_cost(1e-5, 40000000, 10e9),
                        .world = flow_cost(1e-5, 8, 50e9)};
    o.transfer.overlap =
        (td_overlap){.wait_s = 1e-5 * (slow - 1), .transfer = slow, .compute = slow * 0.5 + 0.5};
    o.reduce.overlap =
        (td_overlap){.wait_s = 2e-5 * (slow - 1), .transfer = slow, .compute = slow * 0.25 + 0.75};
    return o;
}

TheoryDataPoints(fold, folded_and_unfolded_agree_to_the_last_bit) = {
    DataPoints(int, 1, 2, 4), DataPoints(int, 1, 2, 4),   DataPoints(int, 1, 2, 5),
    DataPoints(int, 1, 7),    DataPoints(double, 0, 0.4), DataPoints(double, 1.0, 1.3),
    DataPoints(int, 1, 2)};
Theory((int tp, int dp, int pp, int m, double jitter, double slow, int kinds), fold,
       folded_and_unfolded_agree_to_the_last_bit)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(tp, dp, pp, m, jitter, kinds, slow);
    const built *b = build_pipeline(a, &o);
    const td_topology *topo = build_topology(a, b->program.world_size, 4, 4, 1);
    for (int flows = TD_FLOWS_IDEAL; flows <= TD_FLOWS_SHARED; flows++) {
        const td_timeline *folded = simulate(a, b, topo, (td_flows)flows, false, NULL);
        const td_timeline *whole = simulate(a, b, topo, (td_flows)flows, true, NULL);
        cr_assert(folded->n_classes <= pp * (kinds < dp ? kinds : dp));
        cr_assert_eq(whole->n_simulated, b->program.n_ops);
        cr_assert_float_eq(folded->max_link_load, whole->max_link_load, 1e-9);
        expect_same(&b->program, folded, whole);
    }
    td_arena_free(a);
}

/* One slow rank: those that deal with it, directly or not, are no longer like the others. */
TheoryDataPoints(fold, a_rank_that_differs_is_told_apart) = {DataPoints(int, 0, 5, 23),
                                                             DataPoints(double, 1.0, 1.25)};
Theory((int odd, double factor), fold, a_rank_that_differs_is_told_apart)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(2, 4, 3, 6, 0.2, 1, 1.2);
    const built *b = build_pipeline(a, &o);
    const int32_t n_ops = td_program_stream(&b->program, odd)->n_ops;
    double *slower = TD_NEW(a, double, n_ops);
    const double *stretch[24] = {NULL};
    for (int32_t i = 0; i < n_ops; i++)
        slower[i] = factor;
    stretch[odd] = factor == 1.0 ? NULL : slower;
    const td_timeline *folded = simulate(a, b, NULL, TD_FLOWS_IDEAL, false, stretch);
    const td_timeline *whole = simulate(a, b, NULL, TD_FLOWS_IDEAL, true, stretch);
    expect_same(&b->program, folded, whole);
    if (factor == 1.0)
        cr_assert_eq(folded->n_classes, 3);
    else /* per stage: of the odd tensor lane its data lane, that lane's other data lanes, and the
            other tensor lane */
        cr_assert_eq(folded->n_classes, 9);
    td_arena_free(a);
}

Test(fold, members_and_sizes_add_up)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(2, 4, 3, 1, 0, 2, 1);
    const built *b = build_pipeline(a, &o);
    const td_program *p = &b->program;
    int32_t colour[24];
    const td_fold *f = NULL;
    for (int32_t r = 0; r < 24; r++)
        colour[r] = p->ranks[r].stream * 2 + r / 2 % 4 % 2;
    cr_assert_eq(td_fold_build(a, p, colour, 6, &f, NULL), TD_OK);
    cr_assert_eq(f->n_classes, 6);
    int64_t comms = 0;
    for (int32_t c = 0; c < f->n_comms; c++)
        comms += f->comm_size[c];
    cr_assert_eq(comms, p->n_comms);
    for (int32_t r = 0; r < 24; r++) {
        cr_assert(f->rep[f->class_of[r]] <= r);
        cr_assert_eq(f->class_of[f->rep[f->class_of[r]]], f->class_of[r]);
    }
    for (int64_t c = 0; c < p->n_comms;
         c++) /* every member's class is among those of the communicator's class */
        for (int32_t i = 0; i < p->comms[c].n_ranks; i++) {
            bool found = false;
            for (int32_t k = f->member_first[f->comm_of[c]]; k < f->member_first[f->comm_of[c] + 1];
                 k++)
                found |= f->members[k] == f->class_of[p->comms[c].ranks[i]];
            cr_assert(found);
        }
    td_arena_free(a);
}

Test(fold, ten_thousands_of_ranks_fold_into_their_stages)
{
    td_arena *a = td_arena_new();
    const built_pipeline o = pipeline(8, 512, 8, 4, 0.2, 1, 1);
    const built *b = build_pipeline(a, &o);
    const td_timeline *t = simulate(a, b, NULL, TD_FLOWS_IDEAL, false, NULL);
    cr_assert_eq(t->n_classes, 8);
    cr_assert(t->folded);
    td_arena_free(a);
}
