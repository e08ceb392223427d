/*
 * Verdicts on progress against a second judge written from the definition: every rank does its
 * calls in order, each call edge by edge as shapes, then payloads, then the broadcast, and each of
 * these waits until all of it is through.
 */
#include "tests/model/plans.h"

#include "model/program_check.h"
#include "model/progress.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <string.h>

/* ---- the second judge ---- */

enum { MAX_RANKS = 192 };

typedef struct {
    td_move move;
    bool shape;
    int32_t item, serial; /* the serial-th of its kind on its rank */
    int32_t batch;
} act;

typedef struct {
    act *acts;
    int32_t n, batch, n_batches; /* `batch` is the one that the rank is in */
    td_step_list list;
} actor;

typedef struct {
    actor of[MAX_RANKS];
    int32_t n;
    td_completion rule;
} stage_play;

static bool alike(const act *a, const act *b)
{
    return a->move.kind == b->move.kind && a->move.peer == b->move.peer &&
           a->move.edge == b->move.edge && a->move.module == b->move.module &&
           a->move.gradient == b->move.gradient && a->shape == b->shape;
}

static void write_role(td_arena *a, const td_pipeline *p, int32_t rank, int32_t n_micro,
                       bool shapes, actor *out)
{
    const td_position at = td_pipeline_position(p, rank);
    td_move_list call = {0};
    *out = (actor){.acts = TD_NEW(a, act, 4096)};
    if (at.n_modules == 0)
        return;
    const td_schedule_input in = td_pipeline_schedule_input(p, &at, n_micro);
    cr_assert_eq(td_schedule_1f1b.emit(a, &in, &out->list, NULL), TD_OK);
    for (int32_t i = 0; i < out->list.n; i++) {
        if (out->list.items[i].kind != TD_STEP_COMM)
            continue;
        cr_assert_eq(td_pipeline_moves(p, a, &at, rank, &out->list.items[i], &call, NULL), TD_OK);
        for (int32_t from = 0, to; from < call.n; from = to) {
            for (to = from; to < call.n && call.moves[to].edge == call.moves[from].edge &&
                            call.moves[to].module == call.moves[from].module;)
                to++;
            for (int phase = shapes ? 0 : 1; phase < 3; phase++) {
                const int32_t before = out->n;
                for (int32_t k = from; k < to; k++) {
                    const bool group = call.moves[k].kind == TD_MOVE_BROADCAST;
                    if ((phase == 2) != group || (group && call.moves[k].n_group == 1))
                        continue;
                    act *x = &out->acts[out->n];
                    cr_assert_lt(out->n, 4096);
                    *x = (act){.move = call.moves[k],
                               .shape = phase == 0,
                               .item = i,
                               .batch = out->n_batches};
                    for (int32_t j = 0; j < out->n; j++)
                        x->serial += alike(x, &out->acts[j]);
                    out->n++;
                }
                out->n_batches += out->n > before;
            }
        }
    }
}

/* Has `rank` come as far as its side of `a`, an act of `other`? */
static bool arrived(const stage_play *p, int32_t rank, const act *a, int32_t other)
{
    act like = *a;
    if (a->move.kind != TD_MOVE_BROADCAST) {
        like.move.kind = a->move.kind == TD_MOVE_SEND ? TD_MOVE_RECV : TD_MOVE_SEND;
        like.move.peer = other;
    }
    for (int32_t i = 0; i < p->of[rank].n && p->of[rank].acts[i].batch <= p->of[rank].batch; i++)
        if (alike(&p->of[rank].acts[i], &like) && p->of[rank].acts[i].serial == a->serial)
            return true;
    return false;
}

/* Ranks that `rank` waits for in act `a`, as bits; 0: it is through. */
static bool waits_for(const stage_play *p, int32_t rank, const act *a, int32_t other)
{
    const bool free_send = a->move.kind == TD_MOVE_SEND &&
                           (p->rule == TD_COMPLETION_BUFFERED_SENDS ||
                            (p->rule == TD_COMPLETION_BUFFERED_SHAPE_MESSAGES && a->shape));
    bool member = a->move.kind != TD_MOVE_BROADCAST && other == a->move.peer;
    for (int32_t g = 0; a->move.kind == TD_MOVE_BROADCAST && g < a->move.n_group; g++)
        member = member || a->move.group[g] == other;
    return !free_send && other != rank && member && !arrived(p, other, a, rank);
}

static bool rank_waits(const stage_play *p, int32_t rank, int32_t other)
{
    const actor *r = &p->of[rank];
    bool waits = false;
    for (int32_t i = 0; i < r->n && !waits; i++)
        waits = r->acts[i].batch == r->batch && waits_for(p, rank, &r->acts[i], other);
    return waits;
}

static bool play(td_arena *a, const td_pipeline *p, int32_t n_micro, bool shapes,
                 td_completion rule, stage_play *s)
{
    bool moved = true, done = true;
    s->n = (int32_t)p->world_size;
    s->rule = rule;
    cr_assert_leq(s->n, MAX_RANKS);
    for (int32_t r = 0; r < s->n; r++)
        write_role(a, p, r, n_micro, shapes, &s->of[r]);
    while (moved) {
        moved = false;
        for (int32_t r = 0; r < s->n; r++)
            while (s->of[r].batch < s->of[r].n_batches) {
                bool waits = false;
                for (int32_t other = 0; other < s->n && !waits; other++)
                    waits = rank_waits(s, r, other);
                if (waits)
                    break;
                s->of[r].batch++;
                moved = true;
            }
    }
    for (int32_t r = 0; r < s->n; r++)
        done = done && s->of[r].batch == s->of[r].n_batches;
    return done;
}

static td_progress judged(td_arena *a, const td_pipeline *p, int32_t n_micro, bool shapes,
                          td_completion rule)
{
    td_progress out;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_progress_judge(a, p, &td_schedule_1f1b, n_micro, shapes, rule, &out, &err),
                 TD_OK, "%s", err.text);
    return out;
}

/* ---- laws ---- */

/* The length of the shortest cycle among waiting ranks, 0 if there is none. */
static int32_t shortest_cycle(td_arena *a, const stage_play *s)
{
    const int32_t n = s->n, far = 1 << 20;
    int32_t *d = TD_NEW(a, int32_t, n * n), best = far;
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < n; j++)
            d[i * n + j] = rank_waits(s, i, j) ? 1 : far;
    for (int32_t k = 0; k < n; k++)
        for (int32_t i = 0; i < n; i++)
            for (int32_t j = 0; j < n; j++)
                if (d[i * n + k] + d[k * n + j] < d[i * n + j])
                    d[i * n + j] = d[i * n + k] + d[k * n + j];
    for (int32_t i = 0; i < n; i++)
        best = d[i * n + i] < best ? d[i * n + i] : best;
    return best == far ? 0 : best;
}

static void check_cycle(td_arena *a, const stage_play *s, const td_progress *p, const char *name)
{
    cr_assert_eq(p->n_cycle, shortest_cycle(a, s), "%s", name);
    for (int32_t i = 0; i < p->n_cycle; i++) {
        const td_waiter *w = &p->cycle[i];
        const int32_t next = p->cycle[(i + 1) % p->n_cycle].rank;
        const actor *r = &s->of[w->rank];
        bool really = false;
        for (int32_t k = 0; k < r->n; k++) {
            const act *x = &r->acts[k];
            really = really ||
                     (x->batch == r->batch && x->move.kind == w->move && x->shape == w->shape &&
                      x->move.mb == w->mb && r->list.items[x->item].call == w->call &&
                      waits_for(s, w->rank, x, next));
        }
        cr_assert(really, "%s: rank %d does not wait for rank %d so", name, (int)w->rank,
                  (int)next);
    }
}

static void compare_judges(const td_pipeline *p, int32_t n_micro, bool shapes, const char *name)
{
    for (int32_t rule = 0; rule < TD_N_COMPLETIONS; rule++) {
        td_arena *a = td_arena_new();
        stage_play *s = TD_NEW(a, stage_play, 1);
        const bool completes = play(a, p, n_micro, shapes, (td_completion)rule, s);
        const td_progress verdict = judged(a, p, n_micro, shapes, (td_completion)rule);
        cr_assert_eq(verdict.completes, completes, "%s under %s", name, td_completion_names[rule]);
        if (!completes)
            check_cycle(a, s, &verdict, name);
        else
            cr_assert_eq(verdict.n_cycle, 0);
        td_arena_free(a);
    }
}

Test(progress, is_judged_as_a_judge_written_from_the_definition_does, .timeout = 120)
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        const td_pipeline p = plan_pipeline(a, plan);
        if (p.world_size <= MAX_RANKS)
            compare_judges(&p, plan->step.microbatches, plan->step.shape_exchange, s->name);
        td_arena_free(a);
    }
}

static void random_pipe(uint32_t *state, td_arena *a, const td_plan **plan, td_pipeline *p,
                        int64_t most)
{
    do {
        const plan_shape s = plan_random(state);
        *plan = plan_of(a, &s);
        *p = plan_pipeline(a, *plan);
    } while (p->world_size > most);
}

Test(progress, is_judged_so_in_random_layouts_as_well, .timeout = 120)
{
    uint32_t state = 11;
    int32_t n_stuck = 0;
    for (int32_t i = 0; i < 60; i++) {
        td_arena *a = td_arena_new();
        const td_plan *plan;
        td_pipeline p;
        random_pipe(&state, a, &plan, &p, 16);
        compare_judges(&p, plan->step.microbatches, plan->step.shape_exchange, "random");
        n_stuck += !judged(a, &p, plan->step.microbatches, plan->step.shape_exchange,
                           TD_COMPLETION_SYNCHRONOUS_SENDS)
                        .completes;
        td_arena_free(a);
    }
    cr_assert(n_stuck > 5 && n_stuck < 55, "%d of 60 are stuck: the sample shows one side only",
              (int)n_stuck);
}

/*
 * Encoders of unequal depth: once the language module's first stage has as many microbatches as it
 * is deep, it is in a combined exchange with the shallow encoder, which still warms up for the deep
 * one's sake and sends plainly. Buffered shapes let it come one microbatch further, which is enough
 * only where the depths differ by one stage.
 */
Test(progress, of_unequal_depths_ends_when_microbatches_exceed_the_depth_of_the_language_module)
{
    for (int32_t shallow = 1; shallow <= 2; shallow++)
        for (int32_t deep = shallow + 1; deep <= 4; deep++)
            for (int32_t pp = 1; pp <= 3; pp++)
                for (int32_t m = 1; m <= 10; m++) {
                    td_arena *a = td_arena_new();
                    const plan_shape s = {
                        .n_encoders = 2,
                        .encoder = {{.pp = deep, .layers = 12}, {.pp = shallow, .layers = 12}},
                        .language = {.pp = pp, .layers = 6},
                        .microbatches = m};
                    const td_pipeline p = plan_pipeline(a, plan_of(a, &s));
                    const bool completes[TD_N_COMPLETIONS] = {
                        [TD_COMPLETION_SYNCHRONOUS_SENDS] = m <= pp,
                        [TD_COMPLETION_BUFFERED_SHAPE_MESSAGES] =
                            m <= pp + 1 || deep == shallow + 1,
                        [TD_COMPLETION_BUFFERED_SENDS] = true};
                    for (int32_t rule = 0; rule < TD_N_COMPLETIONS; rule++) {
                        const td_progress got = judged(a, &p, m, true, (td_completion)rule);
                        cr_assert_eq(got.completes, completes[rule],
                                     "%s: pp %d and %d into %d, %d microbatches",
                                     td_completion_names[rule], (int)deep, (int)shallow, (int)pp,
                                     (int)m);
                        cr_assert_eq(got.n_cycle, got.completes ? 0 : 2);
                    }
                    td_arena_free(a);
                }
}

Test(progress, of_equal_depths_never_needs_buffers)
{
    for (int32_t n = 1; n <= 3; n++)
        for (int32_t depth = 1; depth <= 3; depth++)
            for (int32_t pp = 1; pp <= 3; pp++)
                for (int32_t m = 1; m <= 9; m += 2) {
                    td_arena *a = td_arena_new();
                    const plan_where encoder = {.tp = 2, .pp = depth, .dp = 1, .layers = 6};
                    const td_plan *plan = plan_of(
                        a, &(plan_shape){.n_encoders = n,
                                         .encoder = {encoder, encoder, encoder},
                                         .language = {.tp = 2, .pp = pp, .dp = 2, .layers = 6},
                                         .microbatches = m});
                    const td_pipeline p = plan_pipeline(a, plan);
                    cr_assert(judged(a, &p, m, true, TD_COMPLETION_SYNCHRONOUS_SENDS).completes,
                              "%d encoders of pp %d into %d, %d microbatches", (int)n, (int)depth,
                              (int)pp, (int)m);
                    td_arena_free(a);
                }
}

/* ---- stand-ins ---- */

/* Whom `rank` sends to or receives from in a call of any kind, as origin[] names them. */
static bool has_move(td_arena *a, const td_pipeline *p, int32_t rank, td_call call,
                     const td_move *like, int32_t peer)
{
    const td_position at = td_pipeline_position(p, rank);
    const td_step_item item = {
        .kind = TD_STEP_COMM, .call = (uint8_t)call, .mb = -1, .send_mb = 0, .recv_mb = 0};
    td_move_list l = {0};
    bool found = false;
    cr_assert_eq(td_pipeline_moves(p, a, &at, rank, &item, &l, NULL), TD_OK);
    for (int32_t i = 0; i < l.n; i++)
        found = found || (l.moves[i].kind == like->kind && l.moves[i].gradient == like->gradient &&
                          l.moves[i].edge == like->edge && l.moves[i].peer == peer);
    return found;
}

Test(progress, of_the_stand_in_is_about_messages_that_the_whole_has)
{
    static const td_call calls[] = {TD_CALL_SEND_FORWARD_RECV_BACKWARD,
                                    TD_CALL_SEND_BACKWARD_RECV_FORWARD};
    uint32_t state = 17;
    for (int32_t i = 0; i < 60; i++) {
        td_arena *a = td_arena_new();
        plan_shape s = plan_random(&state);
        const int32_t *origin;
        int32_t fewer = 4;
        td_pipeline small;
        s.encoder[0].dp = 1 << plan_dice(&state, 6);
        s.language.dp = s.encoder[0].dp * (1 << plan_dice(&state, 2));
        const td_pipeline p = plan_pipeline(a, plan_of(a, &s));
        cr_assert_eq(td_pipeline_shrink(a, &p, &fewer, &small, &origin, NULL), TD_OK);
        for (int32_t r = 0; r < small.world_size; r++) {
            const td_position at = td_pipeline_position(&small, r);
            for (int c = 0; c < 2; c++) {
                const td_step_item item = {
                    .kind = TD_STEP_COMM, .call = (uint8_t)calls[c], .mb = -1};
                td_move_list l = {0};
                cr_assert_eq(td_pipeline_moves(&small, a, &at, r, &item, &l, NULL), TD_OK);
                for (int32_t k = 0; k < l.n; k++)
                    cr_assert(
                        has_move(a, &p, origin[r], calls[c], &l.moves[k], origin[l.moves[k].peer]),
                        "layout %d: rank %d stands for %d", (int)i, (int)r, (int)origin[r]);
            }
        }
        td_arena_free(a);
    }
}

Test(progress, of_the_stand_in_is_that_of_the_whole, .timeout = 120)
{
    uint32_t state = 3;
    for (int32_t i = 0; i < 150; i++) {
        td_arena *a = td_arena_new();
        const td_plan *plan;
        td_pipeline p, small;
        const int32_t *origin;
        random_pipe(&state, a, &plan, &p, 64);
        const int32_t n_micro = 1 + plan_dice(&state, 60);
        int32_t fewer = n_micro;
        cr_assert_eq(td_pipeline_shrink(a, &p, &fewer, &small, &origin, NULL), TD_OK);
        cr_assert_leq(fewer, n_micro);
        cr_assert_leq(small.world_size, p.world_size);
        for (int32_t r = 0; r < small.world_size; r++) {
            const td_position here = td_pipeline_position(&small, r),
                              there = td_pipeline_position(&p, origin[r]);
            cr_assert(here.module[0] == there.module[0] && here.pp_rank[0] == there.pp_rank[0] &&
                      here.stage == there.stage);
        }
        for (int32_t rule = 0; rule < TD_N_COMPLETIONS; rule++)
            cr_assert_eq(
                judged(a, &small, fewer, plan->step.shape_exchange, (td_completion)rule).completes,
                judged(a, &p, n_micro, plan->step.shape_exchange, (td_completion)rule).completes,
                "layout %d under %s", (int)i, td_completion_names[rule]);
        td_arena_free(a);
    }
}

/* The ranks of a cycle found on the stand-in exchange messages with one another in the plan. */
Test(progress, of_a_plan_names_ranks_that_talk_to_each_other)
{
    uint32_t state = 5;
    int32_t n_stuck = 0;
    for (int32_t i = 0; i < 60; i++) {
        td_arena *a = td_arena_new();
        const td_plan *plan;
        td_pipeline p;
        td_progress out[TD_N_COMPLETIONS];
        random_pipe(&state, a, &plan, &p, 64);
        cr_assert_eq(td_plan_progress(a, plan, out, NULL), TD_OK);
        cr_assert(out[TD_COMPLETION_BUFFERED_SENDS].completes);
        cr_assert_eq(td_progress_needs(out) > TD_COMPLETION_SYNCHRONOUS_SENDS,
                     !out[TD_COMPLETION_SYNCHRONOUS_SENDS].completes);
        const td_progress *strict = &out[TD_COMPLETION_SYNCHRONOUS_SENDS];
        n_stuck += !strict->completes;
        for (int32_t k = 0; k < strict->n_cycle; k++) {
            const td_waiter *w = &strict->cycle[k];
            const int32_t next = strict->cycle[(k + 1) % strict->n_cycle].rank;
            const td_position at = td_pipeline_position(&p, w->rank);
            const td_step_item item = {.kind = TD_STEP_COMM,
                                       .call = (uint8_t)w->call,
                                       .mb = -1,
                                       .send_mb = 0,
                                       .recv_mb = 0};
            td_move_list l = {0};
            bool talks = false;
            cr_assert_eq(td_pipeline_moves(&p, a, &at, w->rank, &item, &l, NULL), TD_OK);
            for (int32_t j = 0; j < l.n; j++) {
                talks = talks || (l.moves[j].kind == w->move && w->move != TD_MOVE_BROADCAST &&
                                  l.moves[j].peer == next);
                for (int32_t g = 0; w->move == TD_MOVE_BROADCAST && g < l.moves[j].n_group; g++)
                    talks = talks || l.moves[j].group[g] == next;
            }
            cr_assert(talks, "layout %d: %s", (int)i, td_progress_text(a, strict));
        }
        td_arena_free(a);
    }
    cr_assert_gt(n_stuck, 5);
}

Test(progress, text_tells_the_cycle_in_one_line)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.n_encoders = 2,
                                                   .encoder = {{.pp = 2}, {.pp = 1}},
                                                   .language = {.pp = 2},
                                                   .microbatches = 7});
    const td_pipeline p = plan_pipeline(a, plan);
    const td_progress stuck = judged(a, &p, 7, true, TD_COMPLETION_SYNCHRONOUS_SENDS);
    const char *text = td_progress_text(a, &stuck);
    for (int32_t i = 0; i < stuck.n_cycle; i++) {
        const char *part = td_arena_printf(a, "rank %d (%s) ", (int)stuck.cycle[i].rank,
                                           td_call_names[stuck.cycle[i].call]);
        cr_assert_not_null(strstr(text, part), "%s", text);
    }
    cr_assert_null(strchr(text, '\n'));
    cr_assert_str_eq(td_progress_text(a, &(td_progress){.completes = true}), "");
    td_arena_free(a);
}
