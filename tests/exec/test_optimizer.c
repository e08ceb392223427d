/* Laws of the optimizer between the collectives; the collectives themselves are loops here. */
#include "exec/host_kernels.h"
#include "exec/optimizer.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>
#include <string.h>

enum { N = 24, RANKS = 4 };

/* A plan of which the optimizer reads the names, here in the given order. */
typedef struct {
    td_plan plan;
    td_module modules[TD_MAX_MODULES];
} network;

static td_mimo_config config_of(network *net, int32_t n_modules, const char *const *names)
{
    net->plan.n_modules = n_modules;
    net->plan.modules = net->modules;
    net->plan.optimizer.lr = 0.01;
    net->plan.optimizer.beta1 = 0.9;
    net->plan.optimizer.beta2 = 0.95;
    net->plan.optimizer.eps = 1e-8;
    net->plan.optimizer.weight_decay = 0.1;
    net->plan.optimizer.clip_grad = 1;
    for (int32_t m = 0; m < n_modules; m++)
        net->modules[m].name = names[m];
    return td_mimo_config_of(&net->plan);
}

static const char *const two[] = {"language", "images"};

/* A rank with N parameters of its own; numbers differ from rank to rank. */
typedef struct {
    float param[N], m[N], v[N], grad[N];
    td_mimo_span span;
    int64_t n_updates;
} state;

static void fill(state *s, int32_t rank)
{
    memset(s, 0, sizeof *s);
    for (int32_t i = 0; i < N; i++) {
        s->param[i] = sinf((float)(rank * N + i));
        s->grad[i] = cosf((float)(rank * 7 * N + 3 * i));
    }
    s->span = (td_mimo_span){.param = s->param,
                             .m = s->m,
                             .v = s->v,
                             .grad = s->grad,
                             .n = N,
                             .weight = 1,
                             .decay = true};
}

/* What a rank counts of its gradients. */
static void stats_of(const td_mimo_span *spans, int32_t n, double stats[2])
{
    td_mimo_state s = {.n_updates = 0};
    td_host_kernels.grad_stats(NULL, spans, n, &s);
    memcpy(stats, s.stats, sizeof s.stats);
}

/* One update, if the decision is one. */
static void update(const td_mimo_config *c, const td_mimo_decision *d, const td_mimo_span *span,
                   int64_t *n_updates)
{
    const td_mimo_state s = {.decision = *d, .n_updates = *n_updates + d->update};
    td_host_kernels.adam(NULL, c, span, 1, &s);
    *n_updates = s.n_updates;
}

/* Squares of module m are sum over its ranks; rank r belongs to module r % n_modules. */
static td_mimo_decision reduce_and_decide(const td_mimo_config *c, const state *ranks,
                                          int32_t n_ranks, double token_scale)
{
    double squares[TD_MAX_MODULES] = {0}, world[TD_MAX_MODULES] = {0}, mine[TD_MAX_MODULES];
    double found = 0, stats[2];
    for (int32_t r = 0; r < n_ranks; r++) {
        stats_of(&ranks[r].span, 1, stats);
        squares[r % c->n_modules] += stats[0];
        found = fmax(found, stats[1]);
    }
    for (int32_t m = 0; m < c->n_modules; m++) {
        td_mimo_vector(c, m, squares[m], mine);
        for (int32_t i = 0; i < c->n_modules; i++)
            world[i] = fmax(world[i], mine[i]); /* drops nan, as some reductions do */
    }
    return td_mimo_decide(c, world, found != 0, token_scale);
}

/* ---- the vector of norms ---- */

Test(optimizer, modules_stand_in_the_vector_sorted_by_name)
{
    network net = {.plan = {.n_modules = 0}};
    const char *const names[] = {"language", "images", "audio", "video"};
    const int32_t sorted[] = {2, 1, 0, 3};
    const td_mimo_config c = config_of(&net, 4, names);
    for (int32_t m = 0; m < 4; m++) {
        double vector[4];
        td_mimo_vector(&c, m, 5, vector);
        for (int32_t i = 0; i < 4; i++)
            cr_assert_eq(vector[i], i == sorted[m] ? 5 : 0);
    }
}

Test(optimizer, an_idle_rank_adds_only_zeros_to_the_vector)
{
    network net = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&net, 2, two);
    double vector[2] = {7, 7};
    td_mimo_vector(&c, -1, 5, vector);
    cr_assert(vector[0] == 0 && vector[1] == 0);
}

Test(optimizer, decision_does_not_depend_on_the_order_of_modules_in_the_plan)
{
    static const char *const names[3] = {"audio", "images", "language"};
    static const int32_t orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                        {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    const double squares[3] = {0.1, 0.7, 1e-9};
    td_mimo_decision first = {.norm = 0};
    for (size_t o = 0; o < sizeof orders / sizeof *orders; o++) {
        network net = {.plan = {.n_modules = 0}};
        const char *ordered[3];
        double world[3] = {0}, mine[3];
        for (int32_t m = 0; m < 3; m++)
            ordered[m] = names[orders[o][m]];
        const td_mimo_config c = config_of(&net, 3, ordered);
        for (int32_t m = 0; m < 3; m++) {
            td_mimo_vector(&c, m, squares[orders[o][m]], mine);
            for (int32_t i = 0; i < 3; i++)
                world[i] = fmax(world[i], mine[i]);
        }
        const td_mimo_decision d = td_mimo_decide(&c, world, false, 1);
        if (o == 0)
            first = d;
        cr_assert_eq(d.norm, first.norm); /* bit for bit */
        cr_assert_eq(d.scale, first.scale);
        for (int32_t m = 0; m < 3; m++)
            cr_assert_eq(d.module_norms[m], first.module_norms[orders[o][m]]);
    }
}

TheoryDataPoints(optimizer, maximum_that_drops_nan_still_carries_every_square) = {
    DataPoints(double, 0, 1e-300, 1, 1e80, INFINITY, NAN)};
Theory((double square), optimizer, maximum_that_drops_nan_still_carries_every_square)
{
    network net = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&net, 2, two);
    double vector[2];
    td_mimo_vector(&c, 0, square, vector);
    for (int32_t i = 0; i < 2; i++)
        vector[i] = fmax(0, vector[i]);
    const td_mimo_decision d = td_mimo_decide(&c, vector, false, 1);
    if (isnan(square))
        cr_assert(isnan(d.norm) && isnan(d.module_norms[0]));
    else
        cr_assert(d.norm == sqrt(square) && d.module_norms[0] == sqrt(square));
    cr_assert_eq(d.module_norms[1], 0);
}

/* ---- norms and clipping ---- */

Test(optimizer, global_norm_is_that_of_all_gradients_in_one_vector)
{
    network net = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&net, 2, two);
    state ranks[RANKS];
    double square = 0;
    for (int32_t r = 0; r < RANKS; r++) {
        fill(&ranks[r], r);
        for (int32_t i = 0; i < N; i++)
            square += (double)ranks[r].grad[i] * (double)ranks[r].grad[i];
    }
    const td_mimo_decision d = reduce_and_decide(&c, ranks, RANKS, 1);
    cr_assert_float_eq(d.norm, sqrt(square), 1e-13 * sqrt(square));
}

TheoryDataPoints(optimizer, clipping_gives_the_smaller_of_norm_and_limit) = {
    DataPoints(double, 1e-3, 1, 4, 1e6)};
Theory((double limit), optimizer, clipping_gives_the_smaller_of_norm_and_limit)
{
    network net = {.plan = {.n_modules = 0}};
    td_mimo_config c = config_of(&net, 2, two);
    state ranks[RANKS];
    for (int32_t r = 0; r < RANKS; r++)
        fill(&ranks[r], r);
    c.clip_grad = limit;
    const td_mimo_decision d = reduce_and_decide(&c, ranks, RANKS, 1);
    cr_assert_float_eq(d.norm * d.scale, fmin(d.norm, limit), 1e-6 * fmin(d.norm, limit));
    cr_assert_eq(d.clip_coefficient, fmin(1, limit / (d.norm + 1e-6)));
}

Test(optimizer, clip_grad_0_never_clips)
{
    network net = {.plan = {.n_modules = 0}};
    td_mimo_config c = config_of(&net, 2, two);
    double vector[2];
    c.clip_grad = 0;
    td_mimo_vector(&c, 0, 1e30, vector);
    const td_mimo_decision d = td_mimo_decide(&c, vector, false, 0.5);
    cr_assert(d.update && d.clip_coefficient == 1 && d.scale == 0.5);
}

Test(optimizer, frozen_modules_contribute_nothing)
{
    network both = {.plan = {.n_modules = 0}}, alone = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&both, 2, two), only = config_of(&alone, 1, two);
    double vector[2], single[1], stats[2];
    stats_of(NULL, 0, stats); /* nothing to train */
    cr_assert(stats[0] == 0 && stats[1] == 0);
    td_mimo_vector(&c, 0, 3, vector);
    td_mimo_vector(&only, 0, 3, single);
    vector[c.place[1]] = fmax(vector[c.place[1]], stats[0]);
    const td_mimo_decision d = td_mimo_decide(&c, vector, false, 1),
                           e = td_mimo_decide(&only, single, false, 1);
    cr_assert(d.norm == e.norm && d.scale == e.scale && d.module_norms[1] == 0);
}

Test(optimizer, network_with_everything_frozen_has_norm_0_and_is_not_clipped)
{
    network net = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&net, 2, two);
    const double vector[2] = {0, 0};
    const td_mimo_decision d = td_mimo_decide(&c, vector, false, 1);
    cr_assert(d.update && d.norm == 0 && d.clip_coefficient == 1);
}

TheoryDataPoints(optimizer, gradient_held_by_several_ranks_counts_once) = {
    DataPoints(int, 1, 2, 4), DataPoints(int, 1, 2, 8)};
Theory((int tp, int dp), optimizer, gradient_held_by_several_ranks_counts_once)
{
    double replicated = 0, sharded = 0;
    for (int lane = 0; lane < dp; lane++)
        for (int t = 0; t < tp; t++) {
            replicated += td_mimo_weight(t == 0, false, lane);
            sharded += td_mimo_weight(t == 0, true, lane) / dp; /* each lane has 1/dp of it */
        }
    cr_assert(replicated == 1 && sharded == 1);
}

TheoryDataPoints(optimizer, copy_that_is_not_counted_adds_nothing_but_is_still_looked_at) = {
    DataPoints(float, 1, 1e30F, INFINITY, -INFINITY, NAN)};
Theory((float worst), optimizer, copy_that_is_not_counted_adds_nothing_but_is_still_looked_at)
{
    double alone[2], both[2];
    state s[2];
    fill(&s[0], 0);
    fill(&s[1], 1);
    s[1].grad[N - 1] = worst;
    s[1].span.weight = 0;
    const td_mimo_span spans[] = {s[0].span, s[1].span};
    stats_of(spans, 1, alone);
    stats_of(spans, 2, both);
    cr_assert_eq(alone[0], both[0]);
    cr_assert_eq(both[1], isfinite(worst) ? 0 : 1);
}

/* ---- scaling by tokens ---- */

Test(optimizer, token_scale_is_the_mean_and_makes_absent_lanes_count)
{
    cr_assert_eq(td_mimo_token_scale(16, 4, 4), 1.0 / 16);
    cr_assert_eq(td_mimo_token_scale(16, 4, 0), 1.0 / 16); /* nobody had input */
    cr_assert_float_eq(td_mimo_token_scale(16, 4, 3), 1.0 / 12, 1e-16);
    cr_assert_eq(td_mimo_token_scale(0, 4, 4), 1); /* no token counts: leave the zeros alone */
}

Test(optimizer, scaling_inside_the_step_equals_scaling_the_gradients_before)
{
    network net = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&net, 2, two);
    state folded[2], before[2];
    for (int32_t r = 0; r < 2; r++) {
        fill(&folded[r], r);
        fill(&before[r], r);
        for (int32_t i = 0; i < N; i++)
            before[r].grad[i] /= 8; /* exact */
    }
    const td_mimo_decision d = reduce_and_decide(&c, folded, 2, td_mimo_token_scale(8, 1, 1)),
                           e = reduce_and_decide(&c, before, 2, 1);
    cr_assert_eq(d.norm, e.norm);
    cr_assert_eq(d.clip_coefficient, e.clip_coefficient);
    for (int32_t r = 0; r < 2; r++) {
        update(&c, &d, &folded[r].span, &folded[r].n_updates);
        update(&c, &e, &before[r].span, &before[r].n_updates);
        cr_assert_arr_eq(folded[r].param, before[r].param, sizeof folded[r].param);
    }
}

/* ---- what is not finite ---- */

TheoryDataPoints(optimizer, one_bad_gradient_skips_the_step_on_every_rank_bit_for_bit) = {
    DataPoints(float, INFINITY, -INFINITY, NAN), DataPoints(int, 0, 1, 2, 3),
    DataPoints(int, 0, N - 1)};
Theory((float bad, int where, int element), optimizer,
       one_bad_gradient_skips_the_step_on_every_rank_bit_for_bit)
{
    network net = {.plan = {.n_modules = 0}};
    td_mimo_config c = config_of(&net, 2, two);
    state ranks[RANKS], before[RANKS];
    c.nonfinite = TD_NONFINITE_SKIP;
    for (int32_t r = 0; r < RANKS; r++) {
        fill(&ranks[r], r);
        if (r == where)
            ranks[r].grad[element] = bad;
    }
    memcpy(before, ranks, sizeof before);
    const td_mimo_decision d = reduce_and_decide(&c, ranks, RANKS, 1);
    cr_assert_not(d.update);
    cr_assert_eq(d.clip_coefficient, 1);
    for (int32_t r = 0; r < RANKS; r++)
        update(&c, &d, &ranks[r].span, &ranks[r].n_updates);
    cr_assert_arr_eq(before, ranks, sizeof before);
}

Test(optimizer, infinite_norm_propagates_as_coefficient_0)
{
    network net = {.plan = {.n_modules = 0}};
    td_mimo_config c = config_of(&net, 2, two);
    state ranks[2];
    c.nonfinite = TD_NONFINITE_PROPAGATE;
    for (int32_t r = 0; r < 2; r++)
        fill(&ranks[r], r);
    ranks[1].grad[3] = INFINITY;
    const td_mimo_decision d = reduce_and_decide(&c, ranks, 2, 1);
    cr_assert(d.update && isinf(d.norm) && isfinite(d.module_norms[0]));
    cr_assert(d.clip_coefficient == 0 && d.scale == 0);
    for (int32_t r = 0; r < 2; r++) {
        update(&c, &d, &ranks[r].span, &ranks[r].n_updates);
        cr_assert_eq(ranks[r].n_updates, 1);
        for (int32_t i = 0; i < N; i++)
            cr_assert(r == 1 && i == 3 ? isnan(ranks[r].param[i])
                                       : ranks[r].m[i] == 0 && isfinite(ranks[r].param[i]));
    }
}

Test(optimizer, norm_that_is_nan_propagates_and_clips_nothing)
{
    network net = {.plan = {.n_modules = 0}};
    td_mimo_config c = config_of(&net, 2, two);
    state ranks[2];
    c.nonfinite = TD_NONFINITE_PROPAGATE;
    for (int32_t r = 0; r < 2; r++)
        fill(&ranks[r], r);
    ranks[0].grad[5] = NAN;
    const td_mimo_decision d = reduce_and_decide(&c, ranks, 2, 0.25);
    cr_assert(d.update && isnan(d.norm) && isnan(d.module_norms[0]));
    cr_assert(isfinite(d.module_norms[1]) && d.clip_coefficient == 1 && d.scale == 0.25);
}

/* ---- AdamW ---- */

Test(optimizer, first_update_moves_every_parameter_by_the_learning_rate)
{
    network net = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&net, 2, two);
    state s, before;
    fill(&s, 0);
    s.span.decay = false;
    before = s;
    const td_mimo_decision d = {.update = true, .scale = 1};
    update(&c, &d, &s.span, &s.n_updates);
    cr_assert_eq(s.n_updates, 1);
    for (int32_t i = 0; i < N; i++) /* m / sqrt(v) is the sign once both biases are corrected */
        cr_assert_float_eq(s.param[i], before.param[i] - 0.01F * copysignf(1, before.grad[i]),
                           2e-7F);
}

TheoryDataPoints(optimizer, weight_decay_shrinks_marked_parameters_only) = {DataPoints(int, 0, 1)};
Theory((int decay), optimizer, weight_decay_shrinks_marked_parameters_only)
{
    network net = {.plan = {.n_modules = 0}};
    const td_mimo_config c = config_of(&net, 2, two);
    state s, before;
    fill(&s, 0);
    memset(s.grad, 0, sizeof s.grad);
    s.span.decay = decay != 0;
    before = s;
    const td_mimo_decision d = {.update = true, .scale = 1};
    update(&c, &d, &s.span, &s.n_updates);
    for (int32_t i = 0; i < N; i++)
        cr_assert_float_eq(s.param[i], before.param[i] * (decay ? 1 - 0.01F * 0.1F : 1), 1e-7F);
}
