/* The mean heat of a GPU, and the clocks that follow from it. */
#include "sim/clocks.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>

static const double x[] = {0.5, 1}, y[] = {1, 1.2};
static const td_profile gpu = {
    .duty = {.n = 2, .x = x, .y = y},
    .heat = {.window_s = 0.04, .attention = 0.9, .memory = 0.7, .collective = 0.5}};

Test(clocks, work_without_end_comes_to_the_factor_of_its_own_heat)
{
    td_warmth w = {0};
    td_warmth_work(&w, &gpu, 10, 0.8);
    cr_assert_float_eq(w.mean, 0.8, 1e-12);
    cr_assert_float_eq(td_warmth_work(&w, &gpu, 10.1, 0.8), td_cost_clock_factor(&gpu, 0.8), 1e-12);
}

Test(clocks, after_a_window_of_rest_1_of_e_is_left)
{
    td_warmth w = {.mean = 1};
    td_warmth_rest(&w, &gpu, 0.04);
    cr_assert_float_eq(w.mean, exp(-1), 1e-12);
    td_warmth_rest(&w, &gpu, 0.01);
    cr_assert_float_eq(w.mean, exp(-1), 1e-12, "the past is past");
}

/* Work in pieces warms as work at once does, and takes as long but for the steps of the sum. */
TheoryDataPoints(clocks, pieces_of_work_add_up) = {
    DataPoints(double, 0.001, 0.02, 0.1), DataPoints(double, 0, 0.6, 1), DataPoints(int, 2, 7)};
Theory((double seconds, double before, int pieces), clocks, pieces_of_work_add_up)
{
    td_warmth once = {.mean = before}, many = {.mean = before};
    const double whole = td_warmth_work(&once, &gpu, seconds, 1);
    double done = 0;
    for (int i = 1; i <= pieces; i++)
        done += seconds / pieces / td_warmth_work(&many, &gpu, seconds * i / pieces, 1);
    cr_assert_float_eq(many.mean, once.mean, 1e-12);
    cr_assert_float_eq(seconds / done, whole, 1e-3);
}

/* A pass after a rest is faster than the one after it, and none is faster than at full clocks. */
Test(clocks, what_follows_a_rest_runs_faster)
{
    td_warmth w = {.mean = 1};
    double before = 1;
    td_warmth_rest(&w, &gpu, 0.1);
    for (int i = 1; i <= 10; i++) {
        const double factor = td_warmth_work(&w, &gpu, 0.1 + 0.02 * i, 1);
        cr_assert_geq(factor, before);
        before = factor;
    }
    cr_assert_float_eq(before, 1.2, 0.01);
}

Test(clocks, without_a_curve_nothing_slows_down)
{
    td_profile cool = gpu;
    td_warmth w = {.mean = 1};
    cool.duty.n = 0;
    cr_assert_eq(td_warmth_work(&w, &cool, 1, 1), 1);
}
