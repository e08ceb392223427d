/* Samples hang on the seed and their global number alone, and every layout cuts the same batch. */
#include "exec/data.h"
#include "exec/numbers.h"
#include "tests/model/plans.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

/* Runs `law` on every layout. */
static void for_all(void (*law)(td_arena *a, const td_plan *plan, const char *name))
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        law(a, plan_of(a, s), s->name);
        td_arena_free(a);
    }
}

/* Two encoders, of 8 and 16 positions, before a language sequence of 64. */
static const td_plan *two_encoders(td_arena *a)
{
    return plan_of(a, &(plan_shape){.n_encoders = 2});
}

/* ---- samples ---- */

static int64_t global_batch(const td_plan *plan)
{
    return (int64_t)plan->step.microbatches * plan->step.micro_batch *
           plan->modules[plan->language].dp;
}

static void each_once(td_arena *a, const td_plan *plan, const char *name)
{
    enum { STEPS = 2 };
    const int64_t n = STEPS * global_batch(plan);
    for (int32_t m = 0; m < plan->n_modules; m++) {
        int32_t *seen = TD_NEW(a, int32_t, n);
        for (int64_t step = 0; step < STEPS; step++)
            for (int32_t mb = 0; mb < plan->step.microbatches; mb++)
                for (int32_t lane = 0; lane < plan->modules[m].dp; lane++)
                    for (int32_t k = 0; k < td_plan_lane_samples(plan, m); k++) {
                        const int64_t s = td_data_sample(plan, step, m, lane, mb, k);
                        cr_assert_eq(s / global_batch(plan), step, "%s", name);
                        seen[s]++;
                    }
        for (int64_t s = 0; s < n; s++)
            cr_assert_eq(seen[s], 1, "%s: module %d, sample %d", name, (int)m, (int)s);
    }
}

Test(data, every_module_sees_every_sample_of_a_step_once)
{
    for_all(each_once);
}

static void cut_contiguously(td_arena *a, const td_plan *plan, const char *name)
{
    (void)a;
    const int32_t batch = plan->step.micro_batch * plan->modules[plan->language].dp;
    for (int32_t m = 0; m < plan->n_modules; m++)
        for (int32_t i = 0; i < batch; i++) {
            const int32_t share = td_plan_lane_samples(plan, m);
            cr_assert_eq(td_data_sample(plan, 3, m, i / share, 2, i % share),
                         (INT64_C(3) * plan->step.microbatches + 2) * batch + i, "%s", name);
        }
}

Test(data, lanes_cut_a_microbatch_contiguously)
{
    for_all(cut_contiguously);
}

Test(data, sample_numbers_outgrow_32_bits)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = two_encoders(a);
    const int64_t step = INT64_C(1) << 40;
    cr_assert_eq(td_data_sample(plan, step, 0, 0, 1, 1), step * global_batch(plan) + 4 + 1);
    td_arena_free(a);
}

/* ---- the sequence ---- */

static void rows_in_order(td_arena *a, const td_plan *plan, const char *name)
{
    (void)a;
    int32_t next = 0;
    for (int32_t m = 0; m < plan->n_modules; m++) {
        int32_t first, rows;
        td_data_rows(plan, m, &first, &rows);
        cr_assert_eq(rows, m == plan->language ? 0 : plan->modules[m].seq, "%s", name);
        cr_assert_eq(first, next, "%s", name);
        next += rows;
    }
}

Test(data, placeholders_of_encoders_follow_one_another_in_module_order)
{
    for_all(rows_in_order);
}

static void targets_follow(td_arena *a, const td_plan *plan, const char *name)
{
    const td_module *language = &plan->modules[plan->language];
    int32_t *tokens = TD_NEW(a, int32_t, language->seq),
            *target = TD_NEW(a, int32_t, language->seq);
    int32_t text = 0, counted = 0;
    for (int32_t m = 0; m < plan->n_modules; m++)
        text += m == plan->language ? 0 : plan->modules[m].seq;
    td_data_tokens(plan, 5, tokens, target);
    for (int32_t t = 0; t < language->seq; t++) {
        cr_assert_eq(tokens[t] == -1, t < text, "%s: position %d", name, (int)t);
        cr_assert(t < text || (tokens[t] >= 1 && tokens[t] < language->vocab), "%s", name);
        if (target[t] != -1)
            cr_assert_eq(target[t], tokens[t + 1], "%s: position %d", name, (int)t);
        counted += target[t] != -1;
    }
    cr_assert_eq(counted, language->seq - text - 1, "%s", name);
    cr_assert_eq(target[language->seq - 1], -1, "%s", name);
}

Test(data, text_follows_the_placeholders_and_each_token_but_the_first_is_a_target)
{
    for_all(targets_follow);
}

Test(data, tokens_obey_their_recurrence_also_under_placeholders)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = two_encoders(a);
    const td_numbers u = td_numbers_of(plan->seed, "tokens"),
                     w = td_numbers_of(plan->seed, "tokens.keep");
    int32_t tokens[64], target[64], kept = 0, n = 0;
    for (int64_t sample = 0; sample < 200; sample++) {
        int64_t last = 0;
        td_data_tokens(plan, sample, tokens, target);
        for (int32_t t = 0; t < 64; t++) {
            const uint64_t i = (uint64_t)sample * 64 + (uint64_t)t;
            const bool keep = t > 0 && td_numbers_uniform(&w, i) < 0.9;
            last = 1 + (keep ? (31 * last + 17) % 127
                             : (int64_t)floor(td_numbers_uniform(&u, i) * 127));
            cr_assert_eq(tokens[t], t < 24 ? -1 : last, "sample %d, position %d", (int)sample,
                         (int)t);
            kept += keep;
            n += t > 0;
        }
    }
    cr_assert_float_eq((double)kept / n, 0.9, 4 * sqrt(0.09 / n)); /* 4 sigma */
    td_arena_free(a);
}

Test(data, tokens_are_those_of_an_independent_program)
{
    /* Philox and the recurrence in exact arithmetic: seed 1234, sample 7, 64 of 128 tokens */
    static const int32_t expected[64] = {
        40,  115, 27,  93, 107, 33,  25,  31, 90, 14,  71, 60,  100, 70,  29, 28,
        124, 52,  106, 97, 104, 67,  63,  66, 32, 121, 86, 17,  37,  22,  65, 1,
        19,  99,  39,  84, 82,  106, 2,   80, 85, 113, 92, 76,  88,  79,  53, 10,
        74,  26,  62,  35, 87,  48,  109, 95, 42, 50,  44, 112, 76,  127, 8,  32};
    td_arena *a = td_arena_new();
    int32_t tokens[64], target[64];
    td_data_tokens(plan_of(a, &(plan_shape){.n_encoders = 0}), 7, tokens, target);
    for (int32_t t = 0; t < 64; t++)
        cr_assert_eq(tokens[t], expected[t], "position %d: %d", (int)t, (int)tokens[t]);
    td_arena_free(a);
}

Test(data, tokens_do_not_overflow_in_the_largest_vocabulary)
{
    td_arena *a = td_arena_new();
    td_plan plan = *plan_of(a, &(plan_shape){.n_encoders = 0});
    td_module language = plan.modules[plan.language];
    int32_t tokens[64], target[64], large = 0;
    language.vocab = INT32_MAX;
    plan.modules = &language;
    for (int64_t sample = 0; sample < 100; sample++) {
        td_data_tokens(&plan, sample, tokens, target);
        for (int32_t t = 0; t < 64; t++) {
            cr_assert(tokens[t] >= 1 && tokens[t] < INT32_MAX);
            large += tokens[t] > INT32_MAX / 2;
        }
    }
    cr_assert_gt(large, 100 * 64 / 3); /* about half of them */
    td_arena_free(a);
}

/* ---- encoders ---- */

Test(data, inputs_of_an_encoder_are_normal_numbers_of_its_own)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = two_encoders(a);
    static const char *const names[] = {"images.input", "audio.input"};
    for (int32_t m = 0; m < 2; m++) {
        const td_numbers n = td_numbers_of(plan->seed, names[m]);
        const uint64_t seq = (uint64_t)plan->modules[m].seq;
        float *x = TD_NEW(a, float, seq * 12);
        for (uint64_t sample = 0; sample < 3; sample++) {
            td_data_input(plan, m, (int64_t)sample, x);
            for (uint64_t row = 0; row < seq; row++)
                for (uint64_t column = 0; column < 12; column++)
                    cr_assert_eq(x[row * 12 + column],
                                 td_numbers_normal(&n, (sample * seq + row) * 12 + column));
        }
    }
    td_arena_free(a);
}
