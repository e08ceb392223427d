/* When a warm-up without a count is over: laws over sequences of step times. */
#include "exec/spread.h"
#include "exec/steady.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <math.h>

/* Between -1 and 1, the same on every machine. */
static double wobble(int32_t i)
{
    return (double)((uint32_t)i * 2654435761u) / 2147483648.0 - 1;
}

/* Step i lasts `base_s`, growing by `drift` a second so far, noisy by `noise`; both relative. */
struct sequence {
    double base_s, drift, noise;
};

/* Steps until the decision; the end of it in *s. */
static td_steadiness decide(const struct sequence *q, td_steady *s)
{
    td_steadiness decision = TD_STEADY_NOT_YET;
    *s = (td_steady){0};
    for (int32_t i = 0; decision == TD_STEADY_NOT_YET; i++)
        decision = td_steady_add(s, &td_steady_usual,
                                 q->base_s * (1 + q->drift * s->seconds + q->noise * wobble(i)));
    return decision;
}

ParameterizedTestParameters(steady, constant_with_noise_is_steady_at_once)
{
    static struct sequence table[] = {{0.3, 0, 0},     {0.3, 0, 0.003}, {0.05, 0, 0.02},
                                      {1e-3, 0, 0.02}, {1e-4, 0, 0.02}, {0.3, 1e-5, 0.001}};
    return cr_make_param_array(struct sequence, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct sequence *q, steady, constant_with_noise_is_steady_at_once)
{
    td_steady s;
    cr_assert_eq(decide(q, &s), TD_STEADY_YES);
    cr_assert(s.seconds >= 10 && s.seconds < 12, "after %g s", s.seconds);
}

ParameterizedTestParameters(steady, drifting_is_not_steady)
{
    static struct sequence table[] = {
        {0.3, 0.001, 0}, {0.3, 0.002, 0.002}, {0.01, 0.002, 0.01}, {1e-3, -0.001, 0.01}};
    return cr_make_param_array(struct sequence, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct sequence *q, steady, drifting_is_not_steady)
{
    td_steady s;
    cr_assert_eq(decide(q, &s), TD_STEADY_NEVER);
    cr_assert(s.seconds >= 60 && s.seconds < 60 + 2 * q->base_s, "after %g s", s.seconds);
    cr_assert_gt(fabs(s.last_s[1] - s.last_s[0]), 0.003 * s.last_s[0]);
}

/* 20 % slower at first, and nearer by e every 4 s: medians of windows around 2.5, 7.5, ... s differ
 * by 0.6 % up to the fourth and by 0.2 % from there on. */
Test(steady, a_slow_beginning_delays_the_end_and_does_not_prevent_it)
{
    td_steady s = {0};
    td_steadiness decision = TD_STEADY_NOT_YET;
    while (decision == TD_STEADY_NOT_YET)
        decision = td_steady_add(&s, &td_steady_usual, 0.1 * (1 + 0.2 * exp(-s.seconds / 4)));
    cr_assert_eq(decision, TD_STEADY_YES);
    cr_assert(s.seconds >= 25 && s.seconds < 26, "after %g s", s.seconds);
}

TheoryDataPoints(steady, never_before_its_time) = {
    DataPoints(double, 1e-4, 0.01, 0.3, 4.9, 5, 7, 12, 59, 61, 1000)};
Theory((double step_s), steady, never_before_its_time)
{
    td_steady s = {0};
    td_steadiness decision = TD_STEADY_NOT_YET;
    while (decision == TD_STEADY_NOT_YET) {
        cr_assert_lt(s.seconds, 60);
        decision = td_steady_add(&s, &td_steady_usual, step_s);
    }
    cr_assert_geq(s.seconds, 10);
    /* a window has a step at least, so two steps are the least there can be */
    cr_assert_eq(decision, step_s < 59.5 ? TD_STEADY_YES : TD_STEADY_NEVER);
    cr_assert(s.n_steps >= (step_s < 60 ? 2 : 1) && isfinite(s.seconds) && isfinite(s.last_s[1]));
}

TheoryDataPoints(steady, a_time_that_is_none_ends_it) = {
    DataPoints(double, NAN, INFINITY, -INFINITY, -1, 0), DataPoints(int, 0, 1, 40)};
Theory((double step_s, int after), steady, a_time_that_is_none_ends_it)
{
    td_steady s = {0};
    for (int i = 0; i < after; i++)
        cr_assert_neq(td_steady_add(&s, &td_steady_usual, 0.2), TD_STEADY_NEVER);
    cr_assert_eq(td_steady_add(&s, &td_steady_usual, step_s), TD_STEADY_NEVER);
    cr_assert(isfinite(s.seconds) && isfinite(s.last_s[0]) && isfinite(s.last_s[1]));
}

Test(steady, a_window_of_more_steps_than_are_kept_has_their_median)
{
    td_steady s = {0};
    td_steadiness decision = TD_STEADY_NOT_YET;
    for (int32_t i = 0; decision == TD_STEADY_NOT_YET; i++)
        decision = td_steady_add(&s, &td_steady_usual, 1e-5 * (1 + 0.5 * wobble(i)));
    cr_assert_eq(decision, TD_STEADY_YES);
    cr_assert_float_eq(s.last_s[1], 1e-5, 0.01 * 1e-5);
}

/* ---- spread ---- */

Test(spread, of_numbers_with_a_known_answer)
{
    double x[] = {5, 1, 2, 4, 3, 100};
    const td_spread_of s = td_spread_measure(x, 6);
    cr_assert(s.n == 6 && s.median == 3.5 && s.mad == 1.5);
    double y[] = {1, 3}, one[] = {7}, none[1];
    cr_assert_float_eq(td_spread_measure(y, 2).cv, sqrt(2) / 2, 1e-15);
    const td_spread_of single = td_spread_measure(one, 1), empty = td_spread_measure(none, 0);
    cr_assert(single.median == 7 && single.mad == 0 && isnan(single.cv));
    cr_assert(empty.n == 0 && empty.median == 0 && empty.mad == 0 && isnan(empty.cv));
}
