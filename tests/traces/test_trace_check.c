/* Every law of a trace, each with a trace that breaks it and the place that the refusal must name.
 */
#include "traces/trace.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

/*
 * Three ranks, the last idle, and two steps of: forward, send, backward in two parts, and a
 * gradient bucket that is ready after the first of them. A step takes 100 ns.
 */
enum {
    F,
    S,
    B,
    B0,
    B1,
    RS,
    PER_STEP,
    STEPS = 2,
    RANKS = 2,
    WORLD = 3,
    N = PER_STEP * STEPS * RANKS
};

static const td_op ops[] = {
    {.kind = TD_OP_FORWARD, .lane = TD_LANE_COMPUTE, .chan = -1, .dep_first = 0, .n_deps = 0},
    {.kind = TD_OP_SEND, .lane = TD_LANE_FWD, .work = -1, .dep_first = 0, .n_deps = 1},
    {.kind = TD_OP_BACKWARD, .lane = TD_LANE_COMPUTE, .chan = -1, .dep_first = 1, .n_deps = 1},
    {.kind = TD_OP_GRAD_REDUCE_SCATTER,
     .lane = TD_LANE_DP,
     .work = -1,
     .dep_first = 2,
     .n_deps = 1},
};
static const td_dep deps[] = {{0, -1}, {1, -1}, {2, 1}};
static const td_stream streams[] = {{.n_ops = 4, .n_deps = 3, .ops = ops, .deps = deps},
                                    {.n_ops = 0, .module = -1, .stage = -1}};
static const td_rank ranks[] = {{.stream = 0}, {.stream = 0}, {.stream = 1}};
static const td_program program = {.world_size = WORLD,
                                   .n_streams = 2,
                                   .streams = streams,
                                   .ranks = ranks,
                                   .n_ops = 8,
                                   .digest = "d1"};

static const td_event step[PER_STEP] = {
    [F] = {.lane = TD_LANE_COMPUTE,
           .op = 0,
           .part = -1,
           .start_ns = 0,
           .duration_ns = 10,
           .kind = "forward"},
    [S] = {.lane = TD_LANE_FWD,
           .op = 1,
           .part = -1,
           .start_ns = 10,
           .duration_ns = 5,
           .kind = "send"},
    [B] = {.lane = TD_LANE_COMPUTE,
           .op = 2,
           .part = -1,
           .start_ns = 20,
           .duration_ns = 20,
           .kind = "backward"},
    [B0] = {.lane = TD_LANE_COMPUTE,
            .op = 2,
            .part = 0,
            .start_ns = 20,
            .duration_ns = 10,
            .kind = "gemm"},
    [B1] = {.lane = TD_LANE_TP,
            .op = 2,
            .part = 1,
            .start_ns = 30,
            .duration_ns = 10,
            .kind = "collective"},
    [RS] = {.lane = TD_LANE_DP,
            .op = 3,
            .part = -1,
            .start_ns = 30,
            .duration_ns = 15,
            .kind = "grad_reduce_scatter"},
};

typedef struct {
    td_event events[N];
    td_trace trace;
} fixture;

static void build(fixture *f)
{
    for (int32_t i = 0; i < N; i++) {
        td_event *e = &f->events[i];
        *e = step[i % PER_STEP];
        e->rank = i / (PER_STEP * STEPS);
        e->step = i / PER_STEP % STEPS;
        e->start_ns += 100 * e->step;
        e->module = e->name = "";
        e->stage = e->mb = -1;
    }
    f->trace = (td_trace){.meta = {.digest = "d1", .world_size = WORLD, .n_steps = STEPS},
                          .n_events = N,
                          .events = f->events};
}

static td_event *find(fixture *f, int32_t rank, int32_t of_step, int which)
{
    return &f->events[(rank * STEPS + of_step) * PER_STEP + which];
}

static void drop(fixture *f, const td_event *e)
{
    const size_t at = (size_t)(e - f->events);
    memmove(&f->events[at], &f->events[at + 1], ((size_t)f->trace.n_events - at - 1) * sizeof *e);
    f->trace.n_events--;
}

/* The same events in the opposite order. */
static void reverse(fixture *f)
{
    for (int64_t i = 0, j = f->trace.n_events - 1; i < j; i++, j--) {
        const td_event e = f->events[i];
        f->events[i] = f->events[j];
        f->events[j] = e;
    }
}

static void expect(td_status got, td_status wanted, const td_err *err, const char *says)
{
    cr_assert_eq(got, wanted, "%d: %s", (int)got, err->text);
    cr_assert(wanted == TD_OK || strcmp(err->text, says) == 0, "\n%s\nis not\n%s", err->text, says);
}

Test(trace_check, accepts_a_valid_trace_in_any_order)
{
    for (int reversed = 0; reversed < 2; reversed++) {
        fixture f;
        td_err err = {0};
        build(&f);
        if (reversed)
            reverse(&f);
        expect(td_trace_check(&f.trace, &err), TD_OK, &err, "");
        expect(td_trace_check_program(&f.trace, &program, 0, &err), TD_OK, &err, "");
    }
}

Test(trace_check, accepts_a_trace_of_nothing_and_bars_that_touch)
{
    fixture f;
    td_err err = {0};
    build(&f);
    f.trace.n_events = 0;
    expect(td_trace_check(&f.trace, &err), TD_OK, &err, "");
    build(&f);
    find(&f, 0, 0, F)->duration_ns = 20; /* ends where the backward begins */
    find(&f, 0, 1, F)->duration_ns = 0;
    expect(td_trace_check(&f.trace, &err), TD_OK, &err, "");
}

/* ---- one field of one event of rank 1 is wrong ---- */

enum { RANK, LANE, STEP, OP, PART, STAGE, MB, START, DURATION, KIND };

struct change {
    int of_step, event, field;
    int64_t to;
    char says[160];
};

static void apply(fixture *f, const struct change *c)
{
    td_event *e = find(f, 1, c->of_step, c->event);
    int32_t *const narrow[] = {&e->rank, &e->lane, &e->step, &e->op, &e->part, &e->stage, &e->mb};
    if (c->field < START)
        *narrow[c->field] = (int32_t)c->to;
    else if (c->field == KIND)
        e->kind = td_op_table[c->to].name;
    else
        *(c->field == START ? &e->start_ns : &e->duration_ns) = c->to;
}

ParameterizedTestParameters(trace_check, refuses_a_broken_law_and_names_rank_lane_and_op)
{
    static struct change table[] = {
        {1, F, RANK, 3, "rank 3, lane compute, op 0 (forward), step 1: there are only 3 ranks"},
        {1, F, RANK, -1, "rank -1, lane compute, op 0 (forward), step 1: there are only 3 ranks"},
        {1, F, LANE, 6, "rank 1, lane 6, op 0 (forward), step 1: there are only 6 lanes"},
        {1, F, LANE, -1, "rank 1, lane -1, op 0 (forward), step 1: there are only 6 lanes"},
        {1, S, STEP, 2, "rank 1, lane fwd, op 1 (send), step 2: there are only 2 steps"},
        {1, S, STEP, -1, "rank 1, lane fwd, op 1 (send), step -1: there are only 2 steps"},
        {1, S, OP, -1,
         "rank 1, lane fwd, op -1 (send), step 1: part -1, stage -1 or microbatch -1 is out of "
         "range"},
        {1, S, MB, -2,
         "rank 1, lane fwd, op 1 (send), step 1: part -1, stage -1 or microbatch -2 is out of "
         "range"},
        {1, S, STAGE, -2,
         "rank 1, lane fwd, op 1 (send), step 1: part -1, stage -2 or microbatch -1 is out of "
         "range"},
        {1, B0, PART, -2,
         "rank 1, lane compute, op 2 (gemm), step 1: part -2, stage -1 or microbatch -1 is out of "
         "range"},
        {0, F, START, -1,
         "rank 1, lane compute, op 0 (forward), step 0: starts at -1 ns and lasts 10 ns, expected "
         "times >= 0"},
        {0, F, DURATION, -1,
         "rank 1, lane compute, op 0 (forward), step 0: starts at 0 ns and lasts -1 ns, expected "
         "times >= 0"},
        {1, RS, DURATION, INT64_MAX,
         "rank 1, lane dp, op 3 (grad_reduce_scatter), step 1: starts at 130 ns and lasts "
         "9223372036854775807 ns, expected times >= 0"},
        {1, F, DURATION, 21,
         "rank 1, lane compute, op 2 (backward), step 1: starts at 120 ns, before op 0 of step 1 "
         "on its lane ends at 121 ns"},
        {0, RS, DURATION, 101,
         "rank 1, lane dp, op 3 (grad_reduce_scatter), step 1: starts at 130 ns, before op 3 of "
         "step 0 on its lane ends at 131 ns"},
        {1, S, OP, 0, "rank 1, lane fwd, op 0 (send), step 1: occurs twice"},
        {1, S, STEP, 0, "rank 1, lane fwd, op 1 (send), step 0: occurs twice"},
        {1, B1, PART, 0, "rank 1, lane tp, op 2 part 0 (collective), step 1: occurs twice"},
        {1, RS, OP, 9,
         "rank 1, lane dp, op 3 (grad_reduce_scatter), step 0: step 1 does not have this op"},
        {0, RS, OP, 9,
         "rank 1, lane dp, op 3 (grad_reduce_scatter), step 1: step 0 does not have this op"},
        {1, B, PART, 5,
         "rank 1, lane compute, op 2 part 0 (gemm), step 1: the op that it is a part of is not in "
         "the trace"},
        {1, B0, START, 119,
         "rank 1, lane compute, op 2 part 0 (gemm), step 1: runs from 119 to 129 ns, outside its "
         "op's 120 to 140 ns"},
        {1, B1, DURATION, 11,
         "rank 1, lane tp, op 2 part 1 (collective), step 1: runs from 130 to 141 ns, outside its "
         "op's 120 to 140 ns"},
    };
    return cr_make_param_array(struct change, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct change *c, trace_check, refuses_a_broken_law_and_names_rank_lane_and_op)
{
    for (int reversed = 0; reversed < 2; reversed++) {
        fixture f;
        td_err err = {0};
        build(&f);
        apply(&f, c);
        const bool twice =
            strstr(c->says, "twice") != NULL; /* which of the two is named depends on the order */
        if (reversed && !twice)
            reverse(&f);
        const td_status st = td_trace_check(&f.trace, &err);
        if (twice)
            cr_assert(st == TD_FILE && strstr(err.text, "occurs twice") != NULL, "%s", err.text);
        else
            expect(st, TD_FILE, &err, c->says);
    }
}

Test(trace_check, refuses_a_trace_with_any_one_op_missing)
{
    for (int i = 0; i < N; i++) {
        fixture f;
        td_err err = {0};
        build(&f);
        const td_event gone = f.events[i];
        drop(&f, &f.events[i]);
        const td_status st = td_trace_check(&f.trace, &err);
        char place[64];
        snprintf(place, sizeof place, "rank %d, lane %s, op %d", (int)gone.rank,
                 td_lane_names[gone.lane], (int)gone.op);
        cr_assert_eq(st, gone.part < 0 ? TD_FILE : TD_OK, "%s", err.text); /* parts are optional */
        cr_assert(gone.part >= 0 || strstr(err.text, place) == err.text, "%s", err.text);
    }
}

Test(trace_check, refuses_a_step_without_any_op)
{
    fixture f;
    td_err err = {0};
    build(&f);
    f.trace.meta.n_steps =
        INT32_MAX; /* and does not take time in proportion to what the file claims */
    expect(td_trace_check(&f.trace, &err), TD_FILE, &err,
           "rank 0, lane compute, op 0 (forward), step 1: step 2 does not have this op");
}

/* ---- a valid trace, but not of the program ---- */

ParameterizedTestParameters(trace_check_program, refuses_a_trace_that_contradicts_the_program)
{
    static struct change table[] = {
        {1, F, LANE, TD_LANE_TP,
         "rank 1, lane tp, op 0 (forward), step 1: the program has this op on lane compute"},
        {1, S, KIND, TD_OP_RECV,
         "rank 1, lane fwd, op 1 (recv), step 1: the program has send here"},
        {1, S, START, 109,
         "rank 1, lane fwd, op 1 (send), step 1: starts at 109 ns, but op 0 (forward), on which it "
         "depends, is not done until 110 ns"},
        {1, S, DURATION, 11,
         "rank 1, lane compute, op 2 (backward), step 1: starts at 120 ns, but op 1 (send), on "
         "which "
         "it depends, is not done until 121 ns"},
        {1, RS, START, 129,
         "rank 1, lane dp, op 3 (grad_reduce_scatter), step 1: starts at 129 ns, but op 2 "
         "(backward), "
         "on which it depends, is not done until 130 ns"},
        {1, F, START, 140,
         "rank 1, lane fwd, op 1 (send), step 1: starts at 110 ns, but op 0 (forward), on which it "
         "depends, is not done until 150 ns"},
    };
    return cr_make_param_array(struct change, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct change *c, trace_check_program,
                  refuses_a_trace_that_contradicts_the_program)
{
    fixture f;
    td_err err = {0};
    build(&f);
    apply(&f, c);
    expect(td_trace_check(&f.trace, &err), TD_OK, &err, "");
    expect(td_trace_check_program(&f.trace, &program, 0, &err), TD_FILE, &err, c->says);
}

Test(trace_check_program, allows_for_the_slack_and_no_more)
{
    for (int64_t early = 0; early < 5; early++)
        for (int64_t slack = 0; slack < 5; slack++) {
            fixture f;
            td_err err = {0};
            build(&f);
            find(&f, 1, 1, S)->start_ns -= early;
            cr_assert_eq(td_trace_check_program(&f.trace, &program, slack, &err),
                         early <= slack ? TD_OK : TD_FILE);
        }
}

Test(trace_check_program, refuses_ops_of_one_lane_in_another_order)
{
    fixture f;
    td_err err = {0};
    build(&f);
    find(&f, 0, 0, F)->start_ns = 40;
    expect(td_trace_check(&f.trace, &err), TD_OK, &err, "");
    cr_assert_eq(td_trace_check_program(&f.trace, &program, 1000, &err), TD_FILE);
    cr_assert_str_eq(
        err.text,
        "rank 0, lane compute, op 2 (backward), step 0: starts at 20 ns, but op 0 comes first on "
        "this lane and ends at 50 ns");
}

Test(trace_check_program, without_parts_a_bucket_waits_for_the_start_of_its_backward)
{
    for (int64_t start = 15; start < 25; start++) {
        fixture f;
        td_err err = {0};
        build(&f);
        find(&f, 1, 0, RS)->start_ns = start;
        for (int64_t i = N - 1; i >= 0; i--)
            if (f.events[i].part >= 0)
                drop(&f, &f.events[i]);
        cr_assert_eq(td_trace_check_program(&f.trace, &program, 0, &err),
                     start >= 20 ? TD_OK : TD_FILE, "%s", err.text);
    }
}

Test(trace_check_program, refuses_another_program)
{
    fixture f;
    td_err digest = {0}, world = {0};
    build(&f);
    f.trace.meta.digest[1] = '2';
    expect(td_trace_check_program(&f.trace, &program, 0, &digest), TD_FILE, &digest,
           "the trace is of program d2..., this is program d1...");
    build(&f);
    f.trace.meta.world_size = 4;
    expect(td_trace_check_program(&f.trace, &program, 0, &world), TD_FILE, &world,
           "the trace has 4 ranks, the program 3");
}

Test(trace_check_program, refuses_a_trace_with_any_one_op_missing_in_every_step)
{
    static const int which[] = {F, S, B, RS};
    for (int32_t rank = 0; rank < RANKS; rank++)
        for (int i = 0; i < 4; i++) {
            fixture f;
            td_err err = {0};
            char says[128];
            build(&f);
            for (int64_t k = N - 1; k >= 0; k--)
                if (f.events[k].rank == rank && f.events[k].op == i)
                    drop(&f, &f.events[k]);
            snprintf(says, sizeof says,
                     "rank %d, lane %s, op %d (%s): the program has this op, the trace has not",
                     (int)rank, td_lane_names[step[which[i]].lane], i, step[which[i]].kind);
            expect(td_trace_check(&f.trace, &err), TD_OK, &err, "");
            expect(td_trace_check_program(&f.trace, &program, 0, &err), TD_FILE, &err, says);
        }
}

Test(trace_check_program, refuses_a_rank_that_is_not_there_and_an_op_that_should_not_be)
{
    fixture f;
    td_err empty = {0}, extra = {0}, idle = {0};
    build(&f);
    f.trace.n_events = N / RANKS;
    expect(td_trace_check_program(&f.trace, &program, 0, &empty), TD_FILE, &empty,
           "rank 1, lane compute, op 0 (forward): the program has this op, the trace has not");
    build(&f);
    for (int32_t s = 0; s < STEPS; s++)
        find(&f, 0, s, B0)->part = -1, find(&f, 0, s, B0)->op = 4,
                       find(&f, 0, s, B0)->lane = TD_LANE_CTRL;
    expect(td_trace_check_program(&f.trace, &program, 0, &extra), TD_FILE, &extra,
           "rank 0, lane ctrl, op 4 (gemm), step 0: the program has only 4 ops on this rank");
    build(&f);
    for (int32_t s = 0; s < STEPS; s++)
        find(&f, 1, s, B0)->part = -1, find(&f, 1, s, B0)->op = 0, find(&f, 1, s, B0)->rank = 2;
    expect(td_trace_check_program(&f.trace, &program, 0, &idle), TD_FILE, &idle,
           "rank 2, lane compute, op 0 (gemm), step 0: the program has only 0 ops on this rank");
}
