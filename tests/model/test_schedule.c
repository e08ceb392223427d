/* A schedule is an order; these are the laws that the order obeys on every stage. */
#include "model/schedule.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <stdio.h>
#include <string.h>

static td_step_list emitted(td_arena *a, const td_schedule *s, td_schedule_input in)
{
    td_step_list list;
    td_err err = {TD_OK, ""};
    cr_assert_eq(s->emit(a, &in, &list, &err), TD_OK, "%s", err.text);
    return list;
}

/* ---- the order ---- */

struct order {
    int32_t stage, n_stages, n_micro;
    char expected[96];
};

ParameterizedTestParameters(schedule_1f1b, computes_in_the_published_order)
{
    static struct order table[] = {
        {0, 1, 3, "F0 B0 F1 B1 F2 B2 "},
        {0, 2, 3, "F0 F1 B0 F2 B1 B2 "},
        {1, 2, 3, "F0 B0 F1 B1 F2 B2 "},
        {0, 4, 6, "F0 F1 F2 F3 B0 F4 B1 F5 B2 B3 B4 B5 "},
        {1, 4, 6, "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 B4 B5 "},
        {2, 4, 6, "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 B5 "},
        {3, 4, 6, "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 "},
        {0, 4, 1, "F0 B0 "},             /* fewer microbatches than stages */
        {0, 4, 3, "F0 F1 F2 B0 B1 B2 "}, /* warm-up takes them all: no steady state */
        {1, 5, 2, "F0 F1 B0 B1 "},
    };
    return cr_make_param_array(struct order, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct order *o, schedule_1f1b, computes_in_the_published_order)
{
    td_arena *a = td_arena_new();
    char text[256] = "";
    const td_step_list l = emitted(
        a, &td_schedule_1f1b,
        (td_schedule_input){.stage = o->stage, .n_stages = o->n_stages, .n_micro = o->n_micro});
    for (int32_t i = 0; i < l.n; i++)
        if (l.items[i].kind == TD_STEP_FORWARD || l.items[i].kind == TD_STEP_BACKWARD)
            snprintf(text + strlen(text), sizeof text - strlen(text), "%c%d ",
                     l.items[i].kind == TD_STEP_FORWARD ? 'F' : 'B', (int)l.items[i].mb);
    cr_assert_str_eq(text, o->expected, "stage %d of %d: %s", (int)o->stage, (int)o->n_stages,
                     text);
    td_arena_free(a);
}

/* What a rank does with microbatch `mb`, as positions in its list; -1 where it does not. */
typedef struct {
    int32_t receive, forward, send, receive_gradient, backward, send_gradient, n;
} story;

static void once(int32_t *where, int32_t at, int32_t *n)
{
    cr_assert_eq(*where, -1, "twice, at %d and %d", (int)*where, (int)at);
    *where = at;
    ++*n;
}

static story story_of(const td_step_list *l, int32_t mb)
{
    static const bool forward_sends[TD_N_CALLS] = {
        [TD_CALL_SEND_FORWARD] = true, [TD_CALL_SEND_FORWARD_RECV_BACKWARD] = true};
    static const bool forward_receives[TD_N_CALLS] = {
        [TD_CALL_RECV_FORWARD] = true, [TD_CALL_SEND_BACKWARD_RECV_FORWARD] = true};
    story s = {-1, -1, -1, -1, -1, -1, 0};
    for (int32_t i = 0; i < l->n; i++) {
        const td_step_item *item = &l->items[i];
        if (item->kind == TD_STEP_FORWARD && item->mb == mb)
            once(&s.forward, i, &s.n);
        if (item->kind == TD_STEP_BACKWARD && item->mb == mb)
            once(&s.backward, i, &s.n);
        if (item->kind == TD_STEP_COMM && item->send_mb == mb)
            once(forward_sends[item->call] ? &s.send : &s.send_gradient, i, &s.n);
        if (item->kind == TD_STEP_COMM && item->recv_mb == mb)
            once(forward_receives[item->call] ? &s.receive : &s.receive_gradient, i, &s.n);
    }
    return s;
}

TheoryDataPoints(schedule, does_all_six_things_once_and_in_order) = {
    DataPoints(int, 0, 1, 2, 5, 8), DataPoints(int, 1, 2, 3, 9),
    DataPoints(int, 1, 2, 3, 7, 8, 20)};
Theory((int stage, int n_stages, int n_micro), schedule, does_all_six_things_once_and_in_order)
{
    cr_assume_lt(stage, n_stages);
    for (const td_schedule *const *s = td_schedules; *s != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_step_list l = emitted(
            a, *s, (td_schedule_input){.stage = stage, .n_stages = n_stages, .n_micro = n_micro});
        for (int32_t mb = 0; mb < n_micro; mb++) {
            const story t = story_of(&l, mb);
            cr_assert(t.n == 6 && t.receive < t.forward && t.forward < t.send &&
                          t.send <= t.receive_gradient && t.receive_gradient < t.backward &&
                          t.backward < t.send_gradient,
                      "%s: stage %d of %d, microbatch %d", (*s)->name, stage, n_stages, (int)mb);
        }
        td_arena_free(a);
    }
}

TheoryDataPoints(schedule_1f1b, holds_no_more_than_its_bound_and_warms_up_as_it_says) = {
    DataPoints(int, 0, 1, 2, 5, 8), DataPoints(int, 1, 2, 3, 9),
    DataPoints(int, 1, 2, 3, 7, 8, 20)};
Theory((int stage, int n_stages, int n_micro), schedule_1f1b,
       holds_no_more_than_its_bound_and_warms_up_as_it_says)
{
    cr_assume_lt(stage, n_stages);
    td_arena *a = td_arena_new();
    const td_schedule_input in = {.stage = stage, .n_stages = n_stages, .n_micro = n_micro};
    const td_step_list l = emitted(a, &td_schedule_1f1b, in);
    const int32_t ahead = n_stages - stage - 1, warm = ahead < n_micro ? ahead : n_micro;
    int32_t held = 0, most = 0, before_backward = 0;
    bool backward = false;
    for (int32_t i = 0; i < l.n; i++) {
        held += l.items[i].kind == TD_STEP_FORWARD;
        held -= l.items[i].kind == TD_STEP_BACKWARD;
        backward = backward || l.items[i].kind == TD_STEP_BACKWARD;
        before_backward += l.items[i].kind == TD_STEP_FORWARD && !backward;
        most = held > most ? held : most;
        cr_assert_geq(held, 0);
    }
    cr_assert_eq(td_schedule_1f1b.warmup(&in), warm);
    cr_assert_eq(held, 0);
    /* the first backward comes after one forward more than the warm-up, as far as there are any */
    cr_assert_eq(before_backward, warm < n_micro ? warm + 1 : n_micro);
    cr_assert_eq(most, before_backward);
    cr_assert_leq(most, n_stages - stage);
    td_arena_free(a);
}

/* Neighbours agree on the order of what passes between them. */
TheoryDataPoints(schedule, neighbours_send_and_receive_in_one_order) = {
    DataPoints(int, 0, 1, 4), DataPoints(int, 2, 3, 6), DataPoints(int, 1, 2, 5, 16)};
Theory((int stage, int n_stages, int n_micro), schedule, neighbours_send_and_receive_in_one_order)
{
    cr_assume_lt(stage + 1, n_stages);
    for (const td_schedule *const *s = td_schedules; *s != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_step_list l[2] = {
            emitted(a, *s, (td_schedule_input){stage, n_stages, n_micro, -1, false, false}),
            emitted(a, *s, (td_schedule_input){stage + 1, n_stages, n_micro, -1, false, false})};
        for (int32_t mb = 0; mb + 1 < n_micro; mb++) {
            const story up = story_of(&l[0], mb), up_next = story_of(&l[0], mb + 1);
            const story down = story_of(&l[1], mb), down_next = story_of(&l[1], mb + 1);
            cr_assert(up.send < up_next.send && down.receive < down_next.receive);
            cr_assert(down.send_gradient < down_next.send_gradient &&
                      up.receive_gradient < up_next.receive_gradient);
        }
        td_arena_free(a);
    }
}

/* ---- gradients and recomputation ---- */

TheoryDataPoints(schedule_1f1b,
                 synchronises_gradients_with_the_last_backward_or_launches_them_after) = {
    DataPoints(int, 0, 1, 3), DataPoints(int, 1, 4, 9), DataPoints(bool, false, true),
    DataPoints(bool, false, true)};
Theory((int stage, int n_micro, bool explicit_sync, bool first), schedule_1f1b,
       synchronises_gradients_with_the_last_backward_or_launches_them_after)
{
    td_arena *a = td_arena_new();
    const td_step_list l = emitted(a, &td_schedule_1f1b,
                                   (td_schedule_input){.stage = stage,
                                                       .n_stages = 4,
                                                       .n_micro = n_micro,
                                                       .recompute_window = -1,
                                                       .explicit_grad_sync = explicit_sync,
                                                       .first_stages_only = first});
    int32_t on = -1, launch = -1, last_but_one = -1, last = -1, n[TD_N_STEPS] = {0};
    for (int32_t i = 0; i < l.n; i++) {
        n[l.items[i].kind]++;
        if (l.items[i].kind == TD_STEP_BACKWARD) {
            last_but_one = last;
            last = i;
        }
        on = l.items[i].kind == TD_STEP_GRAD_SYNC_ON ? i : on;
        launch = l.items[i].kind == TD_STEP_GRAD_SYNC_LAUNCH ? i : launch;
    }
    cr_assert_eq(l.items[0].kind, TD_STEP_GRAD_SYNC_OFF);
    cr_assert_eq(l.items[l.n - 1].kind, TD_STEP_FINALIZE_GRADS);
    cr_assert(n[TD_STEP_GRAD_SYNC_OFF] == 1 && n[TD_STEP_GRAD_SYNC_ON] == 1 &&
              n[TD_STEP_FINALIZE_GRADS] == 1);
    if (!explicit_sync || first)
        cr_assert(last_but_one < on && on < last && launch < 0);
    else
        cr_assert(last < on && on < launch && n[TD_STEP_GRAD_SYNC_LAUNCH] == 1);
    td_arena_free(a);
}

TheoryDataPoints(schedule_1f1b, recomputes_what_is_beyond_the_window) = {
    DataPoints(int, 0, 2, 3), DataPoints(int, 1, 9), DataPoints(int, -1, 0, 1, 2, 7)};
Theory((int stage, int n_micro, int window), schedule_1f1b, recomputes_what_is_beyond_the_window)
{
    td_arena *a = td_arena_new();
    const td_schedule_input in = {
        .stage = stage, .n_stages = 4, .n_micro = n_micro, .recompute_window = window};
    const td_step_list l = emitted(a, &td_schedule_1f1b, in);
    const int32_t round = td_schedule_1f1b.warmup(&in) + 1;
    for (int32_t i = 0; i < l.n; i++)
        if (l.items[i].kind == TD_STEP_FORWARD)
            cr_assert_eq(l.items[i].recompute, window >= 0 && l.items[i].mb % round >= window);
        else
            cr_assert_not(l.items[i].recompute);
    td_arena_free(a);
}

/* ---- the table ---- */

Test(schedule, is_found_by_its_name_and_by_no_other)
{
    for (const td_schedule *const *s = td_schedules; *s != NULL; s++) {
        cr_assert_eq(td_schedule_find((*s)->name), *s);
        cr_assert(strlen((*s)->summary) > 0);
    }
    cr_assert_null(td_schedule_find("1F1B"));
    cr_assert_null(td_schedule_find(""));
}

Test(schedule, names_every_call_and_step)
{
    for (int32_t i = 0; i < TD_N_CALLS; i++)
        cr_assert_not_null(td_call_names[i]);
    for (int32_t i = 0; i < TD_N_STEPS; i++)
        cr_assert_not_null(td_step_names[i]);
}
