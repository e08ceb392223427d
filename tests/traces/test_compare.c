/* What a comparison says, on traces whose answer is known in closed form. */
#include "traces/compare.h"
#include "traces/compare_side.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * A 1F1B pipeline of equal stages, f and b long, whose messages take c, and a collective over the
 * world at the end of the step. Every op starts as soon as it can.
 */
enum { MAX_STAGES = 5, MAX_MICRO = 9, TAIL_NS = 7, MAX_EVENTS = 8192 };

typedef struct {
    int32_t p, m;
    int64_t f, b, c;
    int32_t slow; /* the stage whose backwards take `late` longer; -1: none */
    int64_t late;
    int32_t n_steps;
    int64_t longer[8]; /* by which a step's tail is longer */
} pipeline;

typedef struct {
    td_event events[MAX_EVENTS];
    char names[MAX_EVENTS][64];
    int32_t n;
    td_trace_meta meta;
} trace;

/* The compute of a stage in order: microbatch, or ~microbatch for a backward. */
static int32_t order(const pipeline *l, int32_t stage, int32_t *out)
{
    const int32_t ahead = l->p - stage - 1 < l->m ? l->p - stage - 1 : l->m;
    int32_t n = 0;
    for (int32_t i = 0; i < ahead; i++)
        out[n++] = i;
    for (int32_t i = 0; i < l->m - ahead; i++) {
        out[n++] = ahead + i;
        out[n++] = ~i;
    }
    for (int32_t i = l->m - ahead; i < l->m; i++)
        out[n++] = ~i;
    return n;
}

typedef struct {
    int64_t end[2][MAX_STAGES][MAX_MICRO]; /* forward, backward */
    int64_t last;
} times;

static void simulate(const pipeline *l, times *t)
{
    for (int32_t round = 0; round < 4 * l->p * l->m; round++) { /* until nothing moves */
        t->last = 0;
        for (int32_t s = 0; s < l->p; s++) {
            int32_t ops[2 * MAX_MICRO];
            const int32_t n = order(l, s, ops);
            int64_t at = 0;
            for (int32_t i = 0; i < n; i++) {
                const int back = ops[i] < 0, mb = back ? ~ops[i] : ops[i],
                          from = back ? s + 1 : s - 1;
                if (from >= 0 && from < l->p && t->end[back][from][mb] + l->c > at)
                    at = t->end[back][from][mb] + l->c;
                at += !back ? l->f : s == l->slow ? l->b + l->late : l->b;
                t->end[back][s][mb] = at;
            }
            t->last = at > t->last ? at : t->last;
        }
    }
}

static void add(trace *t, int32_t rank, int32_t step, int32_t *op, td_op_kind kind, td_lane lane,
                int32_t mb, int32_t peer, int64_t from, int64_t to)
{
    cr_assert_lt(t->n, MAX_EVENTS);
    if (peer >= 0)
        snprintf(t->names[t->n], sizeof t->names[t->n], "%s %d %s rank %d", td_op_table[kind].name,
                 (int)mb, kind == TD_OP_RECV ? "from" : "to", (int)peer);
    t->events[t->n] = (td_event){.rank = rank,
                                 .lane = (int32_t)lane,
                                 .step = step,
                                 .op = (*op)++,
                                 .part = -1,
                                 .stage = rank,
                                 .mb = mb,
                                 .start_ns = from,
                                 .duration_ns = to - from,
                                 .bytes = peer >= 0 ? 64 : 0,
                                 .kind = td_op_table[kind].name,
                                 .module = "language",
                                 .name = peer >= 0 ? t->names[t->n] : td_op_table[kind].name};
    t->n++;
}

static trace *build(const pipeline *l)
{
    trace *t = calloc(1, sizeof *t);
    times when = {{{{0}}}, 0};
    int64_t zero = 0;
    simulate(l, &when);
    for (int32_t step = 0; step < l->n_steps; step++) {
        for (int32_t s = 0; s < l->p; s++) {
            int32_t ops[2 * MAX_MICRO], op = 0;
            const int32_t n = order(l, s, ops);
            int64_t own = 0;
            for (int32_t i = 0; i < n; i++) {
                const int back = ops[i] < 0, mb = back ? ~ops[i] : ops[i],
                          from = back ? s + 1 : s - 1, to = back ? s - 1 : s + 1;
                const int64_t end = when.end[back][s][mb], took = !back          ? l->f
                                                                  : s == l->slow ? l->b + l->late
                                                                                 : l->b;
                /* sends have lanes of their own here, so that no message waits for a lane */
                const td_lane come = back ? TD_LANE_BWD : TD_LANE_FWD,
                              go = back ? TD_LANE_DP : TD_LANE_TP;
                if (from >= 0 && from < l->p) {
                    const int64_t sent = when.end[back][from][mb];
                    add(t, s, step, &op, TD_OP_RECV, come, mb, from, zero + sent,
                        zero + sent + l->c);
                }
                add(t, s, step, &op, back ? TD_OP_BACKWARD : TD_OP_FORWARD, TD_LANE_COMPUTE, mb, -1,
                    zero + end - took, zero + end);
                if (to >= 0 && to < l->p)
                    add(t, s, step, &op, TD_OP_SEND, go, mb, to, zero + end, zero + end + l->c);
                own = end;
            }
            add(t, s, step, &op, TD_OP_SUCCESS, TD_LANE_CTRL, -1, -1, zero + own,
                zero + when.last + l->c + TAIL_NS + l->longer[step]);
        }
        zero += when.last + l->c + TAIL_NS + l->longer[step];
    }
    t->meta = (td_trace_meta){.digest = "d1",
                              .backend = "test",
                              .plan = "pipeline",
                              .profile = "",
                              .trust = "measured",
                              .version = "1",
                              .world_size = l->p,
                              .n_steps = l->n_steps};
    return t;
}

static td_event *find(trace *t, int32_t rank, const char *kind, int32_t mb, int32_t step)
{
    for (int32_t i = 0; i < t->n; i++)
        if (t->events[i].rank == rank && t->events[i].mb == mb && t->events[i].step == step &&
            strcmp(t->events[i].kind, kind) == 0)
            return &t->events[i];
    cr_assert_fail("no %s %d on rank %d", kind, (int)mb, (int)rank);
    return NULL;
}

/* The files of a test, in a folder of their own. */
static char folder[64];

static void write_trace(const trace *t, const char *name, char *path, size_t size)
{
    td_err err = {0};
    td_trace_writer *w = NULL;
    if (folder[0] == '\0') {
        snprintf(folder, sizeof folder, "/tmp/tandem-compare-XXXXXX");
        cr_assert_not_null(mkdtemp(folder));
    }
    snprintf(path, size, "%s/%s.json", folder, name);
    cr_assert_eq(td_trace_create(path, &t->meta, &w, &err), TD_OK, "%s", err.text);
    for (int32_t r = 0; r < t->meta.world_size; r++)
        cr_assert_eq(td_trace_rank(w, r, "rank", &err), TD_OK, "%s", err.text);
    for (int32_t i = 0; i < t->n; i++)
        cr_assert_eq(td_trace_event(w, &t->events[i], &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_trace_close(w, &err), TD_OK, "%s", err.text);
}

static td_status compare_with(td_arena *a, const trace *p, const trace *m,
                              const td_comparison **out, td_err *err)
{
    char predicted[128], measured[128];
    write_trace(p, "p", predicted, sizeof predicted);
    write_trace(m, "m", measured, sizeof measured);
    const td_status st = td_compare(a, predicted, measured, 0.05, out, err);
    unlink(predicted);
    unlink(measured);
    rmdir(folder);
    folder[0] = '\0';
    return st;
}

static const td_comparison *compare(td_arena *a, const trace *p, const trace *m)
{
    const td_comparison *c = NULL;
    td_err err = {0};
    cr_assert_eq(compare_with(a, p, m, &c, &err), TD_OK, "%s", err.text);
    return c;
}

static void near(double got, double wanted, const char *what)
{
    cr_assert(fabs(got - wanted) <= 1e-12 + 1e-9 * fabs(wanted), "%s: %.12g, expected %.12g", what,
              got, wanted);
}

static const pipeline uneven = {.p = 3,
                                .m = 4,
                                .f = 100,
                                .b = 190,
                                .c = 10,
                                .slow = 1,
                                .late = 31,
                                .n_steps = 3,
                                .longer = {0, 50, 20}};

static const td_compare_kind *kind_of(const td_comparison *c, const char *kind)
{
    for (int32_t i = 0; i < c->n_kinds; i++)
        if (strcmp(c->kinds[i].kind, kind) == 0)
            return &c->kinds[i];
    cr_assert_fail("no %s", kind);
    return NULL;
}

/* ---- compare(t, t) ---- */

static void expect_zero(const td_comparison *c)
{
    cr_assert(c->ok);
    cr_assert_eq(c->step.rel_error, 0);
    cr_assert_eq(c->bubble_fraction[0], c->bubble_fraction[1]);
    cr_assert_eq(c->n_worst, 0);
    for (int32_t i = 0; i < c->n_kinds; i++) {
        const td_compare_kind *k = &c->kinds[i];
        cr_assert(k->work.rel_error == 0 && k->p50 == 0 && k->p95 == 0 && k->n_instant == 0, "%s",
                  k->kind);
        cr_assert_eq(k->wait_s[0], k->wait_s[1]);
    }
    for (int32_t i = 0; i < c->n_ranks; i++) {
        const td_compare_rank *r = &c->ranks[i];
        cr_assert(r->busy.rel_error == 0 && r->collective.rel_error == 0 &&
                  r->transfer.rel_error == 0 && r->bubble.rel_error == 0);
        cr_assert_eq(memcmp(r->still_s[0], r->still_s[1], sizeof r->still_s[0]), 0);
    }
    for (int32_t i = 0; i < c->n_mbs; i++)
        cr_assert(c->mbs[i].forward.rel_error == 0 && c->mbs[i].backward.rel_error == 0);
    for (int32_t i = 0; i < c->n_items; i++)
        cr_assert_eq(c->items[i].path_s[0], c->items[i].path_s[1]);
    cr_assert(c->n_common == c->path[0].n_ops && c->n_common == c->path[1].n_ops);
}

Test(compare, of_a_trace_with_itself_is_zero_everywhere)
{
    td_arena *a = td_arena_new();
    trace *t = build(&uneven);
    expect_zero(compare(a, t, t));
    free(t);
    td_arena_free(a);
}

Test(compare, never_looks_at_names_or_at_the_order_of_events)
{
    td_arena *a = td_arena_new();
    trace *t = build(&uneven), *other = build(&uneven);
    for (int32_t i = 0; i < other->n; i++)
        other->events[i].name = "same for all";
    for (int32_t i = 0, j = other->n - 1; i < j; i++, j--) {
        const td_event e = other->events[i];
        other->events[i] = other->events[j];
        other->events[j] = e;
    }
    expect_zero(compare(a, t, other));
    expect_zero(compare(a, other, t));
    free(t);
    free(other);
    td_arena_free(a);
}

/* ---- the step ---- */

Test(compare, a_step_is_the_median_of_the_periods)
{
    td_arena *a = td_arena_new();
    pipeline one = uneven;
    one.n_steps = 1;
    trace *p = build(&one), *m = build(&uneven);
    const td_comparison *c = compare(a, p, m);
    near(c->step.s[TD_MEASURED] - c->step.s[TD_PREDICTED], 20e-9, "the median is 20 ns longer");
    near(c->step.rel_error, -20e-9 / c->step.s[TD_MEASURED], "error");
    near(c->step_mad_s, 1.4826 * 20e-9, "of the distances 20, 30, 0");
    cr_assert(c->step_low_s <= c->step.s[TD_MEASURED] && c->step_high_s >= c->step.s[TD_MEASURED]);
    near(c->step_low_s, c->step.s[TD_MEASURED] - 20e-9, "low end of three steps");
    near(c->step_high_s, c->step.s[TD_MEASURED] + 30e-9, "high end of three steps");
    cr_assert_eq(c->n_steps[TD_MEASURED], 3);
    cr_assert(isnan(compare(a, m, p)->step.noise), "one measured step tells no noise");
    free(p);
    free(m);
    td_arena_free(a);
}

Test(compare, tolerance_decides)
{
    td_arena *a = td_arena_new();
    pipeline one = uneven;
    one.n_steps = 1;
    trace *p = build(&one);
    one.longer[0] = 40; /* under 5 % of the step */
    trace *m = build(&one);
    cr_assert(compare(a, p, m)->ok);
    one.longer[0] = 4000;
    trace *far = build(&one);
    cr_assert_not(compare(a, p, far)->ok);
    cr_assert_not(compare(a, far, p)->ok);
    free(p);
    free(m);
    free(far);
    td_arena_free(a);
}

/* ---- bubbles ---- */

TheoryDataPoints(compare, a_uniform_pipeline_only_fills_and_drains) = {
    DataPoints(int, 1, 2, 3, 5), DataPoints(int, 5, 6, 9), DataPoints(int, 10, 25)};
Theory((int p, int m, int f), compare, a_uniform_pipeline_only_fills_and_drains)
{
    td_arena *a = td_arena_new();
    const pipeline l = {.p = p, .m = m, .f = f, .b = 2 * f, .slow = -1, .n_steps = 1};
    trace *t = build(&l);
    const td_comparison *c = compare(a, t, t);
    for (int32_t r = 0; r < p; r++) {
        const double *still = c->ranks[r].still_s[TD_PREDICTED];
        near(still[TD_CAUSE_FILL] + still[TD_CAUSE_DRAIN], 1e-9 * (p - 1) * 3 * f, "(p-1)(f+b)");
        near(still[TD_CAUSE_OPTIMIZER], 1e-9 * TAIL_NS, "the collective");
        near(still[TD_CAUSE_IMBALANCE] + still[TD_CAUSE_TRANSFER] + still[TD_CAUSE_BRIDGE] +
                 still[TD_CAUSE_STRAGGLER] + still[TD_CAUSE_ISSUE],
             0, "nothing else");
    }
    free(t);
    td_arena_free(a);
}

TheoryDataPoints(compare, every_second_of_a_rank_has_one_cause) = {
    DataPoints(int, 1, 2, 4), DataPoints(int, 1, 3, 7), DataPoints(int, 0, 17),
    DataPoints(int, -1, 0, 1)};
Theory((int p, int m, int c_ns, int slow), compare, every_second_of_a_rank_has_one_cause)
{
    td_arena *a = td_arena_new();
    const pipeline l = {.p = p,
                        .m = m,
                        .f = 40,
                        .b = 90,
                        .c = c_ns,
                        .slow = slow,
                        .late = 55,
                        .n_steps = 2,
                        .longer = {3, 9}};
    trace *t = build(&l);
    const td_comparison *c = compare(a, t, t);
    for (int32_t r = 0; r < p; r++)
        for (int side = 0; side < TD_N_SIDES; side++) {
            const td_compare_split *s = &c->ranks[r].split[side];
            const double all = s->busy_s + s->collective_s + s->transfer_s + s->bubble_s;
            double still = s->busy_s;
            for (int i = 0; i < TD_N_CAUSES; i++)
                still += c->ranks[r].still_s[side][i];
            near(still, all, "busy and still");
            near(s->busy_s, 1e-9 * m * (40 + 90 + (r == slow ? 55 : 0)), "busy");
        }
    const td_compare_path *path = &c->path[TD_MEASURED];
    double on_path = path->wait_s, items = 0;
    for (int32_t i = 0; i < path->n_ops; i++)
        on_path += path->ops[i].s;
    for (int32_t i = 0; i < c->n_items; i++)
        items += c->items[i].path_s[TD_MEASURED];
    near(on_path, path->compute_s + path->collective_s + path->transfer_s + path->wait_s, "path");
    near(items, on_path, "items of the path");
    near(path->wait_s, 0, "an op that starts as soon as it can leaves no gap on the path");
    free(t);
    td_arena_free(a);
}

/* ---- ops ---- */

Test(compare, a_slow_stage_is_found)
{
    td_arena *a = td_arena_new();
    pipeline l = {.p = 3, .m = 4, .f = 100, .b = 200, .c = 10, .slow = -1, .n_steps = 1};
    trace *p = build(&l);
    l.slow = 1;
    l.late = 50;
    trace *m = build(&l);
    const td_comparison *c = compare(a, p, m);
    const td_compare_kind *b = kind_of(c, "backward");
    near(b->work.s[TD_PREDICTED], 12 * 200e-9, "backwards");
    near(b->work.s[TD_MEASURED], 12 * 200e-9 + 4 * 50e-9, "slow backwards");
    near(b->p50, 0, "most are right");
    near(b->p95, 0.2, "(200 - 250) / 250");
    near(kind_of(c, "forward")->work.rel_error, 0, "forwards");
    near(kind_of(c, "recv")->work.rel_error, 0, "transfers work as long, whoever is late");
    cr_assert_eq(c->n_worst, 4);
    for (int32_t i = 0; i < 4; i++)
        cr_assert(c->worst[i].rank == 1 && strcmp(c->worst[i].kind, "backward") == 0);
    near(c->mbs[2].backward.rel_error, (600. - 650) / 650, "a microbatch");
    near(c->ranks[1].busy.rel_error, (1200. - 1400) / 1400, "a rank");
    cr_assert_str_eq(c->items[0].what, "language backward");
    cr_assert(c->items[0].path_s[TD_MEASURED] > c->items[0].path_s[TD_PREDICTED]);
    cr_assert_not_null(strstr(c->text, "language backward"), "%s", c->text);
    double difference = 0;
    for (int32_t i = 0; i < c->n_items; i++)
        difference += c->items[i].path_s[TD_MEASURED] - c->items[i].path_s[TD_PREDICTED];
    near(difference, c->step.s[TD_MEASURED] - c->step.s[TD_PREDICTED], "the items explain it all");
    free(p);
    free(m);
    td_arena_free(a);
}

Test(compare, waiting_for_the_other_side_is_no_work)
{
    td_arena *a = td_arena_new();
    const pipeline l = {.p = 2, .m = 3, .f = 100, .b = 200, .c = 10, .slow = -1, .n_steps = 1};
    trace *p = build(&l), *m = build(&l);
    td_event *e = find(m, 1, "recv", 0, 0); /* posted at once, as a kernel that spins would be */
    e->duration_ns += e->start_ns;
    e->start_ns = 0;
    const td_comparison *c = compare(a, p, m);
    const td_compare_kind *k = kind_of(c, "recv");
    near(k->work.rel_error, 0, "it still works for 10 ns");
    near(k->wait_s[TD_MEASURED] - k->wait_s[TD_PREDICTED], 100e-9, "after waiting for 100 ns");
    cr_assert_eq(c->n_worst, 0);
    near(c->ranks[1].transfer.rel_error, 0, "waiting is a bubble, not a transfer");
    cr_assert_eq(c->n_common, c->path[0].n_ops, "the path goes through the sender");
    free(p);
    free(m);
    td_arena_free(a);
}

Test(compare, an_op_that_was_measured_as_nothing_has_no_error)
{
    td_arena *a = td_arena_new();
    const pipeline l = {.p = 2, .m = 3, .f = 100, .b = 200, .c = 10, .slow = -1, .n_steps = 1};
    trace *p = build(&l), *m = build(&l);
    find(m, 0, "forward", 1, 0)->duration_ns = 0;
    const td_comparison *c = compare(a, p, m);
    const td_compare_kind *k = kind_of(c, "forward");
    cr_assert_eq(k->n_instant, 1);
    near(k->p95, 0, "of the others");
    near(k->work.rel_error, 0.2, "(600 - 500) / 500");
    free(p);
    free(m);
    td_arena_free(a);
}

Test(compare, memory_is_told_by_the_metadata)
{
    static const char *const extra[] = {"peak_memory_bytes.1", "3000"};
    td_arena *a = td_arena_new();
    trace *p = build(&uneven), *m = build(&uneven);
    cr_assert_null(compare(a, p, m)->memory[TD_MEASURED]);
    m->meta.n_extra = 1;
    m->meta.extra = extra;
    const td_comparison *c = compare(a, p, m);
    cr_assert_null(c->memory[TD_PREDICTED]);
    cr_assert(c->memory[TD_MEASURED][0] == -1 && c->memory[TD_MEASURED][1] == 3000);
    free(p);
    free(m);
    td_arena_free(a);
}

/* ---- the page ---- */

Test(compare, no_text_of_a_trace_ends_the_script_of_the_page)
{
    td_arena *a = td_arena_new();
    td_err err = {0};
    char path[] = "/tmp/tandem-page-XXXXXX", line[4096];
    trace *t = build(&uneven);
    int32_t ends = 0, hidden = 0;
    t->meta.plan = "</script><script>alert(1)</script>";
    const td_comparison *c = compare(a, t, t);
    close(mkstemp(path));
    cr_assert_eq(td_comparison_write_html(c, path, &err), TD_OK, "%s", err.text);
    FILE *in = fopen(path, "r");
    while (fgets(line, sizeof line, in) != NULL) {
        ends += strstr(line, "</script>") != NULL;
        hidden += strstr(line, "\\u003c/script>") != NULL;
    }
    fclose(in);
    unlink(path);
    cr_assert_eq(ends, 2, "the data's and the program's");
    cr_assert(hidden > 0);
    free(t);
    td_arena_free(a);
}

Test(compare, a_page_that_cannot_be_written_leaves_nothing)
{
    td_arena *a = td_arena_new();
    td_err err = {0};
    trace *t = build(&uneven);
    const td_comparison *c = compare(a, t, t);
    cr_assert_eq(td_comparison_write_html(c, "/nowhere/page.html", &err), TD_FILE);
    cr_assert_not_null(strstr(err.text, "/nowhere/page.html"), "%s", err.text);
    free(t);
    td_arena_free(a);
}

/* ---- what cannot be compared ---- */

static void another_program(trace *t)
{
    snprintf(t->meta.digest, sizeof t->meta.digest, "d2");
    t->meta.plan = "another";
}
static void drop(trace *t, td_event *e)
{
    const size_t at = (size_t)(e - t->events);
    memmove(e, e + 1, ((size_t)t->n - at - 1) * sizeof *e);
    t->n--;
}
static void no_backward(trace *t)
{
    drop(t, find(t, 1, "backward", 2, 1));
}
static void no_last_op(trace *t)
{
    for (int32_t step = 0; step < 3; step++)
        drop(t, find(t, 2, "success", -1, step));
}
static void no_last_step(trace *t)
{
    t->meta.n_steps = 4;
}
static void twice(trace *t)
{
    *find(t, 1, "forward", 1, 2) = *find(t, 1, "forward", 1, 1);
}
static void overlap(trace *t)
{
    find(t, 1, "forward", 1, 0)->start_ns -= 40;
    find(t, 1, "forward", 1, 0)->duration_ns += 40;
}
static void other_kind(trace *t)
{
    for (int32_t step = 0; step < 3; step++)
        find(t, 0, "forward", 1, step)->kind = "backward";
}
static void other_kind_once(trace *t)
{
    find(t, 0, "forward", 1, 2)->kind = "backward";
}
static void unknown_kind(trace *t)
{
    find(t, 0, "forward", 1, 2)->kind = "forwards";
}
static void loose_part(trace *t)
{
    td_event e = *find(t, 1, "forward", 1, 0);
    e.part = 0;
    e.kind = "gemm";
    e.start_ns -= 1;
    t->events[t->n++] = e;
}
static void gigantic_op(trace *t)
{
    find(t, 1, "forward", 1, 0)->op = 2000000000;
}
static void memory_of_nobody(trace *t)
{
    static const char *const extra[] = {"peak_memory_bytes.9", "3000"};
    t->meta.n_extra = 1;
    t->meta.extra = extra;
}

/* A parameter crosses to another process, where functions lie elsewhere: it names them. */
#define DAMAGE_MAP(X)                                                                              \
    X(another_program)                                                                             \
    X(no_backward)                                                                                 \
    X(no_last_op)                                                                                  \
    X(no_last_step)                                                                                \
    X(twice)                                                                                       \
    X(overlap)                                                                                     \
    X(other_kind)                                                                                  \
    X(other_kind_once)                                                                             \
    X(unknown_kind)                                                                                \
    X(loose_part)                                                                                  \
    X(gigantic_op)                                                                                 \
    X(memory_of_nobody)

enum {
#define X(name) DAMAGE_##name,
    DAMAGE_MAP(X)
#undef X
};
static void (*const inflict[])(trace *t) = {
#define X(name) name,
    DAMAGE_MAP(X)
#undef X
};

struct damage {
    int which;
    char says[3][48];
};

ParameterizedTestParameters(compare, refuses_damage_and_names_the_place)
{
    static struct damage table[] = {
        {DAMAGE_another_program, {"`pipeline` (program d1)", "`another` (program d2)", "p.json"}},
        {DAMAGE_no_backward, {"rank 1", "op ", "2 times in 3 steps"}},
        {DAMAGE_no_last_op, {"rank 2", "p.json has 17 ops", "m.json has 16"}},
        {DAMAGE_no_last_step, {"rank 0", "3 times in 4 steps", ""}},
        {DAMAGE_twice, {"rank 1, lane compute", "forward", "occurs twice"}},
        {DAMAGE_overlap, {"rank 1, lane compute", "forward", "before op"}},
        {DAMAGE_other_kind, {"rank 0, op ", "forward 1", "backward 1"}},
        {DAMAGE_other_kind_once, {"rank 0", "another op in another step", ""}},
        {DAMAGE_unknown_kind, {"rank 0", "forwards", "no step program"}},
        {DAMAGE_loose_part, {"rank 1", "part 0", "outside its op"}},
        {DAMAGE_gigantic_op, {"rank 1", "2 times in 3 steps", ""}},
        {DAMAGE_memory_of_nobody, {"peak_memory_bytes.9", "expected bytes", ""}},
    };
    return cr_make_param_array(struct damage, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct damage *d, compare, refuses_damage_and_names_the_place)
{
    td_arena *a = td_arena_new();
    td_err err = {0};
    const td_comparison *c;
    trace *p = build(&uneven), *m = build(&uneven);
    inflict[d->which](m);
    cr_assert_eq(compare_with(a, p, m, &c, &err), TD_FILE, "%s", err.text);
    for (int i = 0; i < 3; i++)
        cr_assert_not_null(strstr(err.text, d->says[i]), "`%s` is not in: %s", d->says[i],
                           err.text);
    free(p);
    free(m);
    td_arena_free(a);
}

/* ---- versions ---- */

static const td_comparison *compare_versions(td_arena *a, int32_t n, const char *const *profile,
                                             int32_t m, const char *const *ran)
{
    const pipeline l = {.p = 2, .m = 2, .f = 1000, .b = 2000, .c = 100, .n_steps = 1, .slow = -1};
    trace *predicted = build(&l), *measured = build(&l);
    const td_comparison *c = NULL;
    td_err err = {0};
    predicted->meta.n_extra = n;
    predicted->meta.extra = profile;
    measured->meta.n_extra = m;
    measured->meta.extra = ran;
    cr_assert_eq(compare_with(a, predicted, measured, &c, &err), TD_OK, "%s", err.text);
    free(predicted);
    free(measured);
    return c;
}

Test(compare, versions_other_than_the_profiles_are_named_with_both)
{
    td_arena *a = td_arena_new();
    static const char *const profile[] = {
        "profile_gpu", "NVIDIA H200",  "profile_driver", "580.159.04",    "profile_cuda",
        "13000",       "profile_nccl", "22803",          "profile_cudnn", "9.14.0"};
    static const char *const ran[] = {
        "gpu.0", "NVIDIA H100", "versions.0",
        "{\"driver\":\"580.159.04\",\"cuda\":12080,\"nccl\":22803,\"cudnn\":\"9.19.0\"}"};
    static const char *const same[] = {
        "versions.0",
        "{\"driver\":\"unknown\",\"cuda\":13000,\"nccl\":22803,\"cudnn\":\"9.14.0\"}"};
    const td_comparison *c = compare_versions(a, 5, profile, 2, ran);
    cr_assert_eq(c->n_versions, 3);
    cr_assert_str_eq(c->versions[0].what, "gpu");
    cr_assert_str_eq(c->versions[0].profile, "NVIDIA H200");
    cr_assert_str_eq(c->versions[0].measured, "NVIDIA H100");
    cr_assert_str_eq(c->versions[1].what, "cuda");
    cr_assert_str_eq(c->versions[1].profile, "13.0");
    cr_assert_str_eq(c->versions[1].measured, "12.8");
    cr_assert_str_eq(c->versions[2].what, "cudnn");
    cr_assert_str_eq(c->versions[2].measured, "9.19.0");
    cr_assert_eq(compare_versions(a, 5, profile, 1, same)->n_versions, 0);
    cr_assert_eq(compare_versions(a, 5, profile, 0, NULL)->n_versions, 0);
    cr_assert_eq(compare_versions(a, 0, NULL, 2, ran)->n_versions, 0);
    td_arena_free(a);
}
