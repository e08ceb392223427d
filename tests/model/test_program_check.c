/* A program that was tampered with anywhere is refused, and the place is named. */
#include "tests/model/plans.h"

#include "model/program_check.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

static const td_program *lowered(td_arena *a, const plan_shape *s)
{
    const td_program *p = NULL;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_lower(a, plan_of(a, s), &p, &err), TD_OK, "%s", err.text);
    return p;
}

/* A program in which `rank` has a stream of its own that may be changed. */
typedef struct {
    td_program p;
    td_stream *stream;
    td_op *ops;
    td_dep *deps;
    td_chan *chans;
    int32_t rank;
} tampered;

static tampered tamper(td_arena *a, const td_program *p, int32_t rank)
{
    tampered t = {.p = *p, .rank = rank};
    const td_stream *old = td_program_stream(p, rank);
    td_stream *streams = TD_NEW(a, td_stream, p->n_streams + 1);
    td_rank *ranks = TD_NEW(a, td_rank, p->world_size);
    memcpy(streams, p->streams, (size_t)p->n_streams * sizeof *streams);
    memcpy(ranks, p->ranks, (size_t)p->world_size * sizeof *ranks);
    t.ops = TD_NEW(a, td_op, old->n_ops + 1);
    t.deps = TD_NEW(a, td_dep, old->n_deps + 1);
    t.chans = TD_NEW(a, td_chan, old->n_chans);
    memcpy(t.ops, old->ops, (size_t)old->n_ops * sizeof *t.ops);
    if (old->n_deps > 0)
        memcpy(t.deps, old->deps, (size_t)old->n_deps * sizeof *t.deps);
    memcpy(t.chans, ranks[rank].chans, (size_t)old->n_chans * sizeof *t.chans);
    t.stream = &streams[p->n_streams];
    *t.stream = *old;
    t.stream->ops = t.ops;
    t.stream->deps = t.deps;
    ranks[rank] = (td_rank){.stream = p->n_streams, .chans = t.chans};
    t.p.n_streams = p->n_streams + 1;
    t.p.streams = streams;
    t.p.ranks = ranks;
    return t;
}

/* Takes an op out; whatever waited for it waits for nothing instead. */
static void take_out(tampered *t, int32_t op)
{
    int32_t n = 0;
    for (int32_t i = 0; i < t->stream->n_ops; i++) {
        td_op o = t->ops[i];
        uint16_t kept = 0;
        if (i == op)
            continue;
        for (uint32_t d = o.dep_first; d < o.dep_first + o.n_deps; d++)
            if (t->deps[d].op != op) {
                td_dep dep = t->deps[d];
                dep.op -= dep.op > op;
                t->deps[o.dep_first + kept++] = dep;
            }
        o.n_deps = kept;
        t->ops[n++] = o;
    }
    t->stream->n_ops = n;
}

static void refused(td_arena *a, const tampered *t, const char *what, int32_t op)
{
    td_err err = {TD_OK, ""};
    const td_status st = td_program_check(a, &t->p, &err);
    char rank[32];
    snprintf(rank, sizeof rank, "rank %d", (int)t->rank);
    cr_assert_eq(st, TD_PLAN, "rank %d, op %d: %s is not noticed", (int)t->rank, (int)op, what);
    cr_assert(strstr(err.text, rank) != NULL, "%s does not name %s", err.text, rank);
    cr_assert(strstr(err.text, "op ") != NULL, "%s names no op", err.text);
}

/* The op that the others of its exchange do, as the message would name it. */
static bool names_an_op_of(const td_program *p, int32_t rank, const char *text)
{
    bool named = false;
    for (int32_t i = 0; i < td_program_stream(p, rank)->n_ops && !named; i++) {
        char label[32], words[64];
        td_op_label(&td_program_stream(p, rank)->ops[i], label, sizeof label);
        snprintf(words, sizeof words, "op %d (%s", (int)i, label);
        named = strstr(text, words) != NULL;
    }
    return named;
}

/* ---- one op less ---- */

static const struct small {
    const char *name;
    plan_shape shape;
} smalls[] = {
    {"fan-in",
     {.n_encoders = 1,
      .encoder = {{.dp = 2}},
      .language = {.tp = 2, .pp = 1, .dp = 1},
      .microbatches = 3}},
    {"fan-out",
     {.n_encoders = 1,
      .encoder = {{.tp = 2}},
      .language = {.tp = 1, .pp = 1, .dp = 2},
      .microbatches = 2}},
    {"two encoders into a pipeline",
     {.n_encoders = 2,
      .encoder = {{.tp = 1, .pp = 2, .dp = 1}, {.tp = 1, .pp = 2, .dp = 1}},
      .language = {.tp = 1, .pp = 2, .dp = 1},
      .microbatches = 3}},
    {"data lanes of three stages",
     {.language = {.tp = 1, .pp = 2, .dp = 3}, .microbatches = 2, .idle = 1}},
    {"sequence parallel and two lanes",
     {.language = {.tp = 2, .pp = 1, .dp = 2},
      .kv_heads = 1,
      .microbatches = 2,
      .step = "sequence_parallel: true, shape_exchange: false"}},
    {"many buckets",
     {.language = {.tp = 1, .pp = 1, .dp = 2},
      .scale = 16,
      .microbatches = 2,
      .step = "bucket_elements: 1"}},
    {"frozen encoder",
     {.n_encoders = 1,
      .encoder = {{.pp = 2, .frozen = "true"}},
      .language = {.tp = 2, .pp = 1, .dp = 1},
      .microbatches = 3}},
};

/* A parameter is copied to another process, where pointers mean nothing: it is a row's number. */
static struct criterion_test_params small_numbers(void)
{
    static size_t rows[sizeof smalls / sizeof *smalls];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        rows[i] = i;
    return cr_make_param_array(size_t, rows, sizeof rows / sizeof *rows);
}

ParameterizedTestParameters(program_check, misses_any_op_that_is_taken_out)
{
    return small_numbers();
}

ParameterizedTest(size_t *row, program_check, misses_any_op_that_is_taken_out)
{
    const struct small *s = &smalls[*row];
    td_arena *whole = td_arena_new();
    const td_program *p = lowered(whole, &s->shape);
    cr_assert_eq(td_program_check(whole, p, NULL), TD_OK, "%s", s->name);
    for (int32_t r = 0; r < p->world_size; r++)
        for (int32_t i = 0; i < td_program_stream(p, r)->n_ops; i++) {
            const td_op *op = &td_program_stream(p, r)->ops[i];
            const bool pass = op->kind == TD_OP_FORWARD || op->kind == TD_OP_BACKWARD;
            if (op->chan < 0 && !pass) /* what one rank computes alone is its own affair */
                continue;
            if (op->chan >= 0 && p->comms[p->ranks[r].chans[op->chan].comm].n_ranks == 1)
                continue;
            td_arena *a = td_arena_new();
            tampered t = tamper(a, p, r);
            td_err err = {TD_OK, ""};
            char label[32];
            td_op_label(op, label, sizeof label);
            take_out(&t, i);
            cr_assert_eq(td_program_check(a, &t.p, &err), TD_PLAN, "%s: rank %d without op %d (%s)",
                         s->name, (int)r, (int)i, label);
            cr_assert_not_null(strstr(err.text, td_arena_printf(a, "rank %d", (int)r)),
                               "rank %d without op %d (%s): %s", (int)r, (int)i, label, err.text);
            if (!pass) { /* the op that is not met is named on the other side */
                const td_comm *c = &p->comms[p->ranks[r].chans[op->chan].comm];
                bool named = false;
                for (int32_t k = 0; k < c->n_ranks && !named; k++)
                    named = names_an_op_of(p, c->ranks[k], err.text);
                cr_assert(named, "rank %d without op %d (%s): %s", (int)r, (int)i, label, err.text);
            }
            td_arena_free(a);
        }
    td_arena_free(whole);
}

ParameterizedTestParameters(program_check,
                            notices_any_op_of_other_bytes_or_of_another_microbatch_or_bucket)
{
    return small_numbers();
}

ParameterizedTest(size_t *row, program_check,
                  notices_any_op_of_other_bytes_or_of_another_microbatch_or_bucket)
{
    const struct small *s = &smalls[*row];
    td_arena *whole = td_arena_new();
    const td_program *p = lowered(whole, &s->shape);
    for (int32_t r = 0; r < p->world_size; r++)
        for (int32_t i = 0; i < td_program_stream(p, r)->n_ops; i++) {
            const td_op *op = &td_program_stream(p, r)->ops[i];
            if (op->chan < 0 || p->comms[p->ranks[r].chans[op->chan].comm].n_ranks == 1)
                continue;
            td_arena *a = td_arena_new();
            tampered t = tamper(a, p, r);
            t.ops[i].bytes++;
            refused(a, &t, "another size", i);
            t = tamper(a, p, r);
            t.ops[i].mb++;
            refused(a, &t, "another microbatch", i);
            t = tamper(a, p, r);
            t.ops[i].kind = t.ops[i].kind == TD_OP_SEND ? TD_OP_RECV : TD_OP_SEND;
            refused(a, &t, "another kind", i);
            t = tamper(a, p, r);
            t.ops[i].bucket++;
            refused(a, &t, "another bucket", i);
            td_arena_free(a);
        }
    td_arena_free(whole);
}

/* ---- one thing changed ---- */

static void depend_on_itself(tampered *t, int32_t op)
{
    t->deps[t->ops[op].dep_first].op = op;
}

static void depend_on_a_later_op(tampered *t, int32_t op)
{
    t->deps[t->ops[op].dep_first].op = op + 1;
}

static void depend_on_nothing_there_is(tampered *t, int32_t op)
{
    t->deps[t->ops[op].dep_first].op = -1;
}

static void depend_beyond_the_list(tampered *t, int32_t op)
{
    t->ops[op].dep_first = t->stream->n_deps;
}

static void depend_on_a_part_too_many(tampered *t, int32_t op)
{
    t->deps[t->ops[op].dep_first].after_part = INT32_MAX;
}

static void go_over_no_channel(tampered *t, int32_t op)
{
    t->ops[op].chan = -1;
}

static void go_over_a_channel_too_far(tampered *t, int32_t op)
{
    t->ops[op].chan = t->stream->n_chans;
}

static void be_of_no_kind(tampered *t, int32_t op)
{
    t->ops[op].kind = TD_N_OPS;
}

static void be_on_no_lane(tampered *t, int32_t op)
{
    t->ops[op].lane = TD_N_LANES;
}

static void sit_elsewhere(tampered *t, int32_t op)
{
    t->chans[t->ops[op].chan].me ^= 1;
}

static void lead_nowhere(tampered *t, int32_t op)
{
    t->chans[t->ops[op].chan].comm = (int32_t)t->p.n_comms;
}

static void lead_to_the_world(tampered *t, int32_t op)
{
    t->chans[t->ops[op].chan].comm = 0;
}

static const struct change {
    const char *what;
    void (*apply)(tampered *t, int32_t op);
} changes[] = {
    {"a dependency on itself", depend_on_itself},
    {"a dependency on a later op", depend_on_a_later_op},
    {"a dependency on no op", depend_on_nothing_there_is},
    {"dependencies beyond the list", depend_beyond_the_list},
    {"a dependency on a part that is not there", depend_on_a_part_too_many},
    {"no channel", go_over_no_channel},
    {"a channel beyond the table", go_over_a_channel_too_far},
    {"no kind", be_of_no_kind},
    {"no lane", be_on_no_lane},
    {"another place in its communicator", sit_elsewhere},
    {"a communicator that is not there", lead_nowhere},
    {"the world for a pair", lead_to_the_world},
};

Test(program_check, refuses_a_send_with_anything_wrong_about_it)
{
    td_arena *whole = td_arena_new();
    const td_program *p = lowered(whole, &smalls[2].shape);
    int32_t tried = 0;
    for (int32_t r = 0; r < p->world_size; r++)
        for (int32_t i = 0; i < td_program_stream(p, r)->n_ops; i++)
            for (size_t c = 0; c < sizeof changes / sizeof *changes; c++) {
                if (td_program_stream(p, r)->ops[i].kind != TD_OP_SEND)
                    continue; /* has a channel and a dependency */
                td_arena *a = td_arena_new();
                tampered t = tamper(a, p, r);
                td_err err = {TD_OK, ""};
                changes[c].apply(&t, i);
                cr_assert_eq(td_program_check(a, &t.p, &err), TD_PLAN, "rank %d, op %d has %s",
                             (int)r, (int)i, changes[c].what);
                cr_assert_not_null(strstr(err.text, td_arena_printf(a, "rank %d", (int)r)), "%s",
                                   err.text);
                tried++;
                td_arena_free(a);
            }
    cr_assert_gt(tried, 100);
    td_arena_free(whole);
}

static int32_t find_op(const td_stream *s, td_op_kind kind, int32_t mb)
{
    int32_t i = 0;
    while (i < s->n_ops && (s->ops[i].kind != kind || s->ops[i].mb != mb))
        i++;
    cr_assert_lt(i, s->n_ops);
    return i;
}

Test(program_check, refuses_a_forward_done_twice_and_a_backward_before_its_forward)
{
    td_arena *a = td_arena_new();
    const td_program *p = lowered(a, &(plan_shape){.name = ""});
    tampered t = tamper(a, p, 0);
    const int32_t f1 = find_op(t.stream, TD_OP_FORWARD, 1),
                  b0 = find_op(t.stream, TD_OP_BACKWARD, 0);
    t.ops[f1].mb = 0;
    refused(a, &t, "F0 twice", f1);
    t = tamper(a, p, 0);
    t.ops[b0].mb = 1;
    refused(a, &t, "B1 before F1", b0);
    t = tamper(a, p, 0);
    t.ops[f1].mb = 4; /* of 0 to 3 */
    refused(a, &t, "F4", f1);
    t = tamper(a, p, 0);
    t.ops[b0].work = p->n_works;
    refused(a, &t, "no work", b0);
    td_arena_free(a);
}

/* All forwards before all backwards holds M microbatches: the last stage may hold one. */
Test(program_check, refuses_more_microbatches_in_flight_than_the_bound)
{
    td_arena *a = td_arena_new();
    const td_program *p = lowered(a, &(plan_shape){.microbatches = 2});
    tampered t = tamper(a, p, 0);
    const int32_t b0 = find_op(t.stream, TD_OP_BACKWARD, 0),
                  f1 = find_op(t.stream, TD_OP_FORWARD, 1);
    const td_op forward = t.ops[f1];
    cr_assert_lt(b0, f1);
    t.ops[f1] = t.ops[b0];
    t.ops[b0] = forward;
    refused(a, &t, "two in flight", b0);
    td_arena_free(a);
}

/* Ops that are right one by one, in another order than the others do them. */
Test(program_check, refuses_collectives_in_another_order)
{
    td_arena *a = td_arena_new();
    const td_program *p = lowered(a, &(plan_shape){.language = {.dp = 2}});
    tampered t = tamper(a, p, 1);
    const int32_t i = find_op(t.stream, TD_OP_FOUND_INF, -1),
                  j = find_op(t.stream, TD_OP_GLOBAL_NORM, -1);
    t.ops[i].kind = TD_OP_GLOBAL_NORM;
    t.ops[j].kind = TD_OP_FOUND_INF;
    refused(a, &t, "another order", i);
    td_arena_free(a);
}
