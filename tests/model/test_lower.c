/* What stands in a step program: the schedule's transfers, what waits for what, and the bytes. */
#include "tests/model/plans.h"

#include "model/lower.h"
#include "model/program_check.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const td_program *lowered(td_arena *a, const td_plan *plan)
{
    const td_program *p = NULL;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_lower(a, plan, &p, &err), TD_OK, "%s", err.text);
    return p;
}

/* Runs `law` on the program of every layout. */
static void for_all(void (*law)(td_arena *a, const td_program *p, const char *name))
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        law(a, lowered(a, plan_of(a, s)), s->name);
        td_arena_free(a);
    }
}

static const td_comm *comm_of(const td_program *p, int32_t rank, const td_op *op)
{
    return &p->comms[p->ranks[rank].chans[op->chan].comm];
}

static int32_t peer_of(const td_program *p, int32_t rank, const td_op *op)
{
    const td_comm *c = comm_of(p, rank, op);
    return c->ranks[1 - p->ranks[rank].chans[op->chan].me];
}

static td_op_role role_of(const td_op *op)
{
    return td_op_table[op->kind].role;
}

/* ---- it is sound ---- */

static void check_passes(td_arena *a, const td_program *p, const char *name)
{
    td_err err = {TD_OK, ""};
    int64_t n_ops = 0;
    cr_assert_eq(td_program_check(a, p, &err), TD_OK, "%s: %s", name, err.text);
    for (int32_t r = 0; r < p->world_size; r++)
        n_ops += td_program_stream(p, r)->n_ops;
    cr_assert_eq(p->n_ops, n_ops);
}

Test(lower, gives_programs_that_pass_the_check)
{
    for_all(check_passes);
}

Test(lower, gives_such_programs_for_random_layouts)
{
    uint32_t state = 23;
    for (int32_t i = 0; i < 60; i++) {
        td_arena *a = td_arena_new();
        const plan_shape s = plan_random(&state);
        check_passes(a, lowered(a, plan_of(a, &s)), "random");
        td_arena_free(a);
    }
}

/* ---- the order of the schedule ---- */

/* The moves of one call of the edge [from, to): shapes first, then payloads, then broadcasts. */
static void follow_edge(const td_program *p, const td_move_list *l, int32_t from, int32_t to,
                        int32_t rank, int32_t *at, const char *name)
{
    static const td_op_kind kinds[2][2] = {{TD_OP_SEND, TD_OP_RECV},
                                           {TD_OP_SEND_SHAPE, TD_OP_RECV_SHAPE}};
    const td_stream *s = td_program_stream(p, rank);
    for (int shape = p->plan->step.shape_exchange ? 1 : 0; shape >= 0; shape--)
        for (int32_t i = from; i < to; i++) {
            const td_move *m = &l->moves[i];
            if (m->kind == TD_MOVE_BROADCAST)
                continue;
            const td_op *op = &s->ops[(*at)++];
            cr_assert_eq(op->kind, kinds[shape][m->kind == TD_MOVE_RECV], "%s: rank %d, op %d",
                         name, (int)rank, (int)*at - 1);
            cr_assert_eq(op->mb, m->mb);
            cr_assert_eq(op->lane, m->gradient ? TD_LANE_BWD : TD_LANE_FWD);
            cr_assert_eq(peer_of(p, rank, op), m->peer, "%s: rank %d", name, (int)rank);
            cr_assert_eq(comm_of(p, rank, op)->ranks[0], m->kind == TD_MOVE_SEND ? rank : m->peer);
        }
    for (int32_t i = from; i < to; i++) {
        const td_move *m = &l->moves[i];
        if (m->kind != TD_MOVE_BROADCAST || m->n_group == 1)
            continue;
        const td_op *op = &s->ops[(*at)++];
        const td_comm *c = comm_of(p, rank, op);
        cr_assert(op->kind == TD_OP_BROADCAST && op->mb == m->mb && c->n_ranks == m->n_group);
        cr_assert_arr_eq(c->ranks, m->group, (size_t)m->n_group * sizeof *m->group);
    }
}

static void check_order(td_arena *a, const td_program *p, const char *name)
{
    const td_pipeline pipe = plan_pipeline(a, p->plan);
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_position pos = td_pipeline_position(&pipe, r);
        const td_stream *s = td_program_stream(p, r);
        const td_schedule_input in =
            td_pipeline_schedule_input(&pipe, &pos, p->plan->step.microbatches);
        td_move_list l = {0};
        td_step_list list = {0};
        int32_t at = 0;
        if (pos.n_modules > 0)
            cr_assert_eq(td_schedule_1f1b.emit(a, &in, &list, NULL), TD_OK);
        for (int32_t i = 0; i < list.n; i++) {
            const td_step_item *item = &list.items[i];
            while (at < s->n_ops &&
                   (s->ops[at].kind == TD_OP_ZERO_GRADS || s->ops[at].lane == TD_LANE_DP))
                at++;
            if (item->kind == TD_STEP_FORWARD)
                cr_assert(s->ops[at].kind == TD_OP_FORWARD && s->ops[at++].mb == item->mb, "%s",
                          name);
            if (item->kind == TD_STEP_BACKWARD && pipe.backward[pos.module[0]][pos.pp_rank[0]])
                cr_assert(s->ops[at].kind == TD_OP_BACKWARD && s->ops[at++].mb == item->mb, "%s",
                          name);
            if (item->kind != TD_STEP_COMM)
                continue;
            cr_assert_eq(td_pipeline_moves(&pipe, a, &pos, r, item, &l, NULL), TD_OK);
            for (int32_t from = 0, to; from < l.n; from = to) {
                for (to = from + 1; to < l.n && l.moves[to].edge == l.moves[from].edge; to++)
                    ;
                follow_edge(p, &l, from, to, r, &at, name);
            }
        }
        for (; at < s->n_ops; at++) /* what follows is the optimizer's */
            cr_assert(s->ops[at].mb == -1 && s->ops[at].kind != TD_OP_FORWARD, "%s: rank %d, op %d",
                      name, (int)r, (int)at);
    }
}

Test(lower, issues_the_transfers_of_the_schedule_in_its_order)
{
    for_all(check_order);
}

/* ---- what waits for what ---- */

/* ends[op]: everything that has ended before `op` starts, by dependencies and by its lane. */
typedef struct {
    int32_t n;
    unsigned char *before; /* [n][n] */
} closure;

static closure closed(td_arena *a, const td_stream *s)
{
    closure c = {.n = s->n_ops,
                 .before = TD_NEW(a, unsigned char, (size_t)s->n_ops *(size_t)s->n_ops)};
    int32_t last[TD_N_LANES];
    memset(last, -1, sizeof last);
    for (int32_t i = 0; i < s->n_ops; i++) {
        unsigned char *mine = c.before + (size_t)i * (size_t)c.n;
        const td_op *op = &s->ops[i];
        for (uint32_t d = 0; d <= op->n_deps; d++) {
            const int32_t on = d < op->n_deps ? s->deps[op->dep_first + d].op : last[op->lane];
            if (on < 0)
                continue;
            const unsigned char *its = c.before + (size_t)on * (size_t)c.n;
            for (int32_t k = 0; k < i; k++)
                mine[k] |= its[k];
            /* an op that only a part of was waited for has begun, but need not have ended */
            mine[on] |= d == op->n_deps || s->deps[op->dep_first + d].after_part < 0;
        }
        last[op->lane] = i;
    }
    return c;
}

static void check_waits(td_arena *a, const td_program *p, const char *name)
{
    for (int32_t k = 0; k < p->n_streams; k++) {
        const td_stream *s = &p->streams[k];
        const closure c = closed(a, s);
        for (int32_t i = 0; i < s->n_ops; i++)
            for (int32_t j = 0; j < s->n_ops; j++) {
                const td_op *x = &s->ops[i], *y = &s->ops[j];
                const bool same = x->mb == y->mb && x->mb >= 0;
                const bool before = c.before[(size_t)i * (size_t)c.n + (size_t)j];
                const bool arrives = y->kind == TD_OP_RECV || y->kind == TD_OP_BROADCAST;
                const bool gradient =
                    y->kind == TD_OP_BROADCAST ? x->kind == TD_OP_BACKWARD : y->lane == TD_LANE_BWD;
                if (same && x->kind == TD_OP_FORWARD && arrives && !gradient && j < i)
                    cr_assert(before, "%s: stream %d: F%d does not wait for op %d", name, (int)k,
                              (int)x->mb, (int)j);
                if (same && x->kind == TD_OP_BACKWARD && arrives && gradient && j < i)
                    cr_assert(before, "%s: stream %d: B%d does not wait for op %d", name, (int)k,
                              (int)x->mb, (int)j);
                if (same && x->kind == TD_OP_BACKWARD && y->kind == TD_OP_FORWARD)
                    cr_assert(before, "%s: stream %d: B%d", name, (int)k, (int)x->mb);
                if (same && (x->kind == TD_OP_SEND || x->kind == TD_OP_SEND_SHAPE) &&
                    y->kind == (x->lane == TD_LANE_BWD ? TD_OP_BACKWARD : TD_OP_FORWARD))
                    cr_assert(before, "%s: stream %d: op %d sends what is not there", name, (int)k,
                              (int)i);
                if (x->kind == TD_OP_SUCCESS && role_of(y) == TD_ROLE_COMPUTE)
                    cr_assert(before, "%s: stream %d: the step ends before op %d", name, (int)k,
                              (int)j);
                if (x->kind == TD_OP_SUCCESS && y->lane == TD_LANE_DP)
                    cr_assert(before, "%s: stream %d: the step ends before op %d", name, (int)k,
                              (int)j);
                if (x->kind == TD_OP_GRAD_STATS &&
                    (y->kind == TD_OP_BACKWARD || y->kind == TD_OP_GRAD_REDUCE_SCATTER ||
                     y->kind == TD_OP_GRAD_ALL_REDUCE || y->kind == TD_OP_TP_GRAD_ALL_REDUCE))
                    cr_assert(before, "%s: stream %d: the norm is taken before op %d", name, (int)k,
                              (int)j);
                if (x->kind == TD_OP_ADAM && y->kind == TD_OP_GLOBAL_NORM)
                    cr_assert(before, "%s", name);
                if (x->kind == TD_OP_PARAM_ALL_GATHER && y->kind == TD_OP_ADAM)
                    cr_assert(before || p->plan->precision == TD_FP32, "%s", name);
            }
        cr_assert_eq(s->ops[s->n_ops - 1].kind, TD_OP_SUCCESS, "%s", name);
    }
}

Test(lower, makes_every_op_wait_for_what_it_needs)
{
    for_all(check_waits);
}

/* ---- what spans the world ---- */

static void check_world(td_arena *a, const td_program *p, const char *name)
{
    static const td_op_kind tail[] = {TD_OP_TOKEN_COUNT, TD_OP_FOUND_INF, TD_OP_GLOBAL_NORM,
                                      TD_OP_SUCCESS};
    static const uint64_t fixed[] = {16, 4, 0, 4}; /* loss and count; two flags */
    (void)a;
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_stream *s = td_program_stream(p, r);
        int32_t n = 0;
        for (int32_t i = 0; i < s->n_ops; i++) {
            const td_op *op = &s->ops[i];
            if (op->chan < 0 || comm_of(p, r, op)->kind != TD_COMM_WORLD)
                continue;
            cr_assert(n < 4 && op->kind == tail[n] && op->lane == TD_LANE_CTRL, "%s: rank %d", name,
                      (int)r);
            cr_assert_eq(op->bytes, n == 2 ? 8 * (uint64_t)p->plan->n_modules : fixed[n]);
            n++;
        }
        cr_assert_eq(n, 4, "%s: rank %d", name, (int)r);
        cr_assert(s->module >= 0 || s->n_ops == 4, "%s: idle rank %d does more", name, (int)r);
    }
}

Test(lower, lets_every_rank_take_part_in_what_spans_the_world_idle_ones_too)
{
    for_all(check_world);
}

/* ---- frozen parts ---- */

static void check_frozen(td_arena *a, const td_program *p, const char *name)
{
    (void)a;
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_stream *s = td_program_stream(p, r);
        int32_t n[TD_N_OPS] = {0};
        if (s->module < 0)
            continue;
        const td_module *m = &p->plan->modules[s->module];
        const bool last = s->pp_rank == m->pp - 1;
        bool below = m->frozen == TD_FROZEN_FALSE || (m->frozen == TD_FROZEN_BACKBONE && last);
        const bool trains = below;
        for (int32_t e = 0; e < p->plan->n_edges; e++)
            if (p->plan->edges[e].dst == s->module)
                below = below || p->plan->modules[p->plan->edges[e].src].frozen != TD_FROZEN_TRUE;
        for (int32_t i = 0; i < s->n_ops; i++)
            n[s->ops[i].kind]++;
        cr_assert_eq(n[TD_OP_FORWARD], p->plan->step.microbatches);
        cr_assert_eq(n[TD_OP_BACKWARD], below ? p->plan->step.microbatches : 0, "%s: rank %d", name,
                     (int)r);
        cr_assert_eq(n[TD_OP_ADAM], trains, "%s: rank %d", name, (int)r);
        cr_assert_eq(n[TD_OP_ZERO_GRADS], trains);
        cr_assert_eq(n[TD_OP_GRAD_STATS], trains);
        cr_assert_eq(n[TD_OP_CAST], trains && p->plan->precision == TD_BF16);
        cr_assert_eq(n[TD_OP_MODULE_NORM], m->frozen != TD_FROZEN_TRUE, "%s: rank %d", name,
                     (int)r);
        cr_assert_eq(n[TD_OP_GRAD_REDUCE_SCATTER] + n[TD_OP_GRAD_ALL_REDUCE] > 0,
                     trains && m->dp > 1);
        if (below)
            continue;
        for (int32_t i = 0; i < s->n_ops; i++)
            cr_assert_neq(s->ops[i].lane, TD_LANE_BWD, "%s: rank %d moves gradients", name, (int)r);
    }
}

Test(lower, runs_no_backward_and_no_optimizer_below_what_trains)
{
    for_all(check_frozen);
}

/* ---- gradients ---- */

static void count_trainable(void *self, const td_param *p)
{
    int64_t *n = self;
    n[0] += p->local;
    n[1] += p->trainable ? p->local : 0;
}

static void check_buckets(td_arena *a, const td_program *p, const char *name)
{
    const td_plan *plan = p->plan;
    for (int32_t m = 0; m < plan->n_modules; m++)
        for (int32_t k = 0; k < plan->modules[m].pp; k++) {
            const td_stage s = td_stage_of(plan, m, k);
            const int64_t dp = plan->modules[m].dp;
            const int64_t least = plan->step.bucket_elements > 1000000 * dp
                                      ? plan->step.bucket_elements
                                      : 1000000 * dp;
            const bool overlap = plan->step.grad_overlap &&
                                 (plan->step.bucket_policy == TD_BUCKETS_ALL_STAGES || k == 0);
            int64_t local[2] = {0, 0}, sum = 0;
            td_buckets b;
            td_work backward;
            td_stage_params(&s, count_trainable, local);
            cr_assert_eq(td_buckets_of_stage(a, &s, &b, NULL), TD_OK);
            cr_assert_eq(td_stage_backward(a, &s, &backward, NULL), TD_OK);
            for (int32_t i = 0; i < b.n; i++) {
                const td_bucket *x = &b.buckets[i];
                sum += x->elements;
                cr_assert(x->elements > 0 && x->after_part > 0 && x->after_part <= backward.n_flat,
                          "%s", name);
                cr_assert(i == 0 || b.buckets[i - 1].after_part <= x->after_part, "%s", name);
                cr_assert(i == b.n - 1 || x->elements >= least, "%s: bucket %d of %lld", name,
                          (int)i, (long long)x->elements);
                if (plan->optimizer.sharded && dp > 1)
                    cr_assert(x->elements % dp == 0 && x->elements % 128 == 0, "%s", name);
            }
            cr_assert_eq(b.elements, sum);
            cr_assert_eq(b.weights, local[0]);
            cr_assert(sum >= local[1] && sum - local[1] < (int64_t)b.n * 128 * dp + (b.n == 0),
                      "%s", name);
            if (!plan->optimizer.sharded || dp == 1)
                cr_assert_eq(sum, local[1], "%s", name);
            cr_assert_eq(b.n > 0, local[1] > 0);
            if (!overlap)
                cr_assert_leq(b.n, 1, "%s", name);
            if (b.n > 0 && backward.n_flat > 0 && s.layers_train &&
                s.first) /* the embedding's is last */
                cr_assert_eq(b.buckets[b.n - 1].after_part, backward.n_flat, "%s", name);
        }
}

Test(lower, cuts_gradients_into_buckets_that_hold_each_parameter_once)
{
    for_all(check_buckets);
}

Test(lower, has_layouts_with_many_buckets_in_its_tests)
{
    td_arena *a = td_arena_new();
    int32_t most = 0;
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        const td_plan *plan = plan_of(a, s);
        const td_stage stage = td_stage_of(plan, plan->language, 0);
        td_buckets b;
        cr_assert_eq(td_buckets_of_stage(a, &stage, &b, NULL), TD_OK);
        most = b.n > most ? b.n : most;
    }
    cr_assert_gt(most, 3);
    td_arena_free(a);
}

static void check_reductions(td_arena *a, const td_program *p, const char *name)
{
    const td_plan *plan = p->plan;
    const uint64_t e = plan->precision == TD_BF16 ? 2 : 4;
    for (int32_t k = 0; k < p->n_streams; k++) {
        const td_stream *s = &p->streams[k];
        int32_t reduced = 0, gathered = 0;
        if (s->module < 0)
            continue;
        const td_module *m = &plan->modules[s->module];
        const td_stage stage = td_stage_of(plan, s->module, s->pp_rank);
        const bool overlap = plan->step.grad_overlap &&
                             (plan->step.bucket_policy == TD_BUCKETS_ALL_STAGES || s->pp_rank == 0);
        td_buckets b;
        cr_assert_eq(td_buckets_of_stage(a, &stage, &b, NULL), TD_OK);
        for (int32_t i = 0; i < s->n_ops; i++) {
            const td_op *op = &s->ops[i];
            if (op->kind == TD_OP_GRAD_REDUCE_SCATTER || op->kind == TD_OP_GRAD_ALL_REDUCE) {
                cr_assert_eq(op->kind == TD_OP_GRAD_REDUCE_SCATTER, plan->optimizer.sharded, "%s",
                             name);
                cr_assert_eq(op->bytes, 4 * (uint64_t)b.buckets[reduced].elements);
                cr_assert_eq(op->bucket, reduced);
                cr_assert_eq(op->n_deps, 1);
                const td_dep *d = &s->deps[op->dep_first];
                cr_assert(s->ops[d->op].kind == TD_OP_BACKWARD &&
                          s->ops[d->op].mb == plan->step.microbatches - 1);
                cr_assert_eq(d->after_part, overlap ? b.buckets[reduced].after_part : -1, "%s",
                             name);
                reduced++;
            }
            if (op->kind == TD_OP_PARAM_ALL_GATHER) { /* as soon as its own bucket is updated */
                const td_dep *d = &s->deps[op->dep_first];
                cr_assert_eq(op->n_deps, 1);
                cr_assert_eq(s->ops[d->op].kind, e == 2 ? TD_OP_CAST : TD_OP_ADAM);
                cr_assert_eq(d->after_part, gathered + 1);
                cr_assert_eq(op->bytes, e * (uint64_t)b.buckets[gathered++].elements, "%s", name);
            }
        }
        cr_assert_eq(reduced, m->dp > 1 ? b.n : 0, "%s", name);
        cr_assert_eq(gathered, m->dp > 1 && plan->optimizer.sharded ? b.n : 0, "%s", name);
    }
}

Test(lower, reduces_every_bucket_once_and_gathers_what_is_sharded)
{
    for_all(check_reductions);
}

/* Tensor ranks add up what each of them has a part of only: shared kv heads always, whatever is
 * whole on every rank with sequence parallelism. */
TheoryDataPoints(lower, adds_up_over_tensor_ranks_what_each_has_a_part_of) = {
    DataPoints(int, 1, 2, 4, 8), DataPoints(int, 1, 2, 8), DataPoints(bool, false, true)};
Theory((int tp, int kv_heads, bool sequence_parallel), lower,
       adds_up_over_tensor_ranks_what_each_has_a_part_of)
{
    td_arena *a = td_arena_new();
    const plan_shape shape = {.language = {.tp = tp},
                              .kv_heads = kv_heads,
                              .step = sequence_parallel ? "sequence_parallel: true" : NULL};
    const td_program *p = lowered(a, plan_of(a, &shape));
    const td_stream *s = &p->streams[0];
    const int64_t hidden = 64, layers = 4, kv = 2 * (int64_t)kv_heads * 8 * hidden * layers;
    const int64_t norms = hidden * (2 * layers + 1);
    const int64_t expected =
        tp == 1 ? 0 : (kv_heads < tp ? kv : 0) + (sequence_parallel ? norms : 0);
    int64_t bytes = 0;
    for (int32_t i = 0; i < s->n_ops; i++)
        bytes += s->ops[i].kind == TD_OP_TP_GRAD_ALL_REDUCE ? (int64_t)s->ops[i].bytes : 0;
    cr_assert_eq(bytes, 4 * expected, "tp %d, %d kv heads: %lld bytes, not %lld", tp, kv_heads,
                 (long long)bytes, 4 * (long long)expected);
    td_arena_free(a);
}

/* ---- bytes ---- */

/* What crosses a bridge is the encoder's output, whatever the lanes: rows * width * element. */
static void check_bridges(td_arena *a, const td_program *p, const char *name)
{
    const td_plan *plan = p->plan;
    const td_pipeline pipe = plan_pipeline(a, plan);
    const uint64_t e = plan->precision == TD_BF16 ? 2 : 4;
    for (int32_t i = 0; i < pipe.n_edges; i++) {
        const td_edge *edge = &pipe.edges[i];
        const td_module *src = &plan->modules[edge->src], *dst = &plan->modules[edge->dst];
        const uint64_t batch = (uint64_t)plan->step.micro_batch * (uint64_t)dst->dp *
                               (uint64_t)plan->step.microbatches;
        const uint64_t whole = batch * (uint64_t)src->seq * (uint64_t)dst->hidden * e;
        uint64_t sent[2] = {0, 0}, heard[2] = {0, 0}; /* by direction: messages, broadcasts */
        for (int32_t r = 0; r < p->world_size; r++) {
            const td_stream *s = td_program_stream(p, r);
            const bool here = s->module == edge->src || s->module == edge->dst;
            for (int32_t k = 0; here && k < s->n_ops; k++) {
                const td_op *op = &s->ops[k];
                if (op->kind == TD_OP_SEND && comm_of(p, r, op)->src != comm_of(p, r, op)->dst) {
                    const td_comm *c = comm_of(p, r, op);
                    sent[0] += c->src == edge->src && c->dst == edge->dst ? op->bytes : 0;
                    sent[1] += c->src == edge->dst && c->dst == edge->src ? op->bytes : 0;
                }
            }
        }
        cr_assert_eq(sent[0], whole, "%s: edge %d", name, (int)i);
        cr_assert_eq(sent[1], src->frozen == TD_FROZEN_TRUE ? 0 : whole, "%s: edge %d", name,
                     (int)i);
        for (int32_t r = 0; r < p->world_size; r++) {
            const td_stream *s = td_program_stream(p, r);
            for (int32_t k = 0; k < s->n_ops; k++)
                if (s->ops[k].kind == TD_OP_BROADCAST)
                    heard[s->module == edge->src] +=
                        s->module == edge->dst || s->module == edge->src ? s->ops[k].bytes : 0;
        }
        if (src->tp > 1) /* every rank of a lane hears the lane's rows */
            cr_assert_eq(heard[1], src->frozen == TD_FROZEN_TRUE ? 0 : whole * (uint64_t)src->tp,
                         "%s", name);
        else
            cr_assert_eq(heard[1], 0);
        if (pipe.n_edges == 1)
            cr_assert_eq(heard[0], dst->tp > 1 ? whole * (uint64_t)dst->tp : 0, "%s", name);
    }
}

Test(lower, carries_over_a_bridge_the_bytes_of_the_encoders_output)
{
    for_all(check_bridges);
}

static void check_sizes(td_arena *a, const td_program *p, const char *name)
{
    const td_plan *plan = p->plan;
    const uint64_t e = plan->precision == TD_BF16 ? 2 : 4;
    (void)a;
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_stream *s = td_program_stream(p, r);
        for (int32_t i = 0; i < s->n_ops; i++) {
            const td_op *op = &s->ops[i];
            const bool shape = op->kind == TD_OP_SEND_SHAPE || op->kind == TD_OP_RECV_SHAPE;
            cr_assert(plan->step.shape_exchange || !shape, "%s: a shape message", name);
            if (role_of(op) == TD_ROLE_COMPUTE) {
                cr_assert(op->bytes == 0 && op->chan == -1 && op->work >= 0);
                continue;
            }
            cr_assert(op->bytes > 0 && op->work == -1, "%s: rank %d, op %d", name, (int)r, (int)i);
            const td_comm *c = comm_of(p, r, op);
            if (shape)
                cr_assert_eq(op->bytes, c->src == c->dst ? 24 : 16, "%s", name);
            if ((op->kind == TD_OP_SEND || op->kind == TD_OP_RECV) && c->src == c->dst) {
                const td_module *m = &plan->modules[c->src];
                const uint64_t rows = (uint64_t)td_plan_lane_samples(plan, c->src) *
                                      (uint64_t)m->seq /
                                      (plan->step.sequence_parallel ? (uint64_t)m->tp : 1);
                cr_assert_eq(op->bytes, rows * (uint64_t)m->hidden * e, "%s: rank %d", name,
                             (int)r);
            }
        }
    }
}

Test(lower, sends_whole_activations_and_shapes_only_where_they_are_exchanged)
{
    for_all(check_sizes);
}

/* ---- a listing ---- */

static void list_rank(const td_program *p, int32_t rank, char *text, size_t size)
{
    const td_stream *s = td_program_stream(p, rank);
    size_t n = strlen(text);
    n += (size_t)snprintf(text + n, size - n, "rank %d, stage %d\n", (int)rank, (int)s->stage);
    for (int32_t i = 0; i < s->n_ops && n < size; i++) {
        const td_op *op = &s->ops[i];
        char label[32], with[64] = "";
        td_op_label(op, label, sizeof label);
        if (op->chan >= 0 && comm_of(p, rank, op)->kind == TD_COMM_PAIR)
            snprintf(with, sizeof with, " with %d", (int)peer_of(p, rank, op));
        else if (op->chan >= 0)
            snprintf(with, sizeof with, " over %s", td_comm_names[comm_of(p, rank, op)->kind]);
        n += (size_t)snprintf(text + n, size - n, "%4d %-8s %-7s%s", (int)i, label,
                              td_lane_names[op->lane], with);
        if (op->bytes > 0)
            n +=
                (size_t)snprintf(text + n, size - n, ", %llu bytes", (unsigned long long)op->bytes);
        for (uint32_t d = 0; d < op->n_deps && n < size; d++) {
            const td_dep *dep = &s->deps[op->dep_first + d];
            n += (size_t)snprintf(text + n, size - n, "%s %d", d == 0 ? ", after" : "",
                                  (int)dep->op);
            if (dep->after_part >= 0)
                n += (size_t)snprintf(text + n, size - n, ":%d", (int)dep->after_part);
        }
        n += (size_t)snprintf(text + n, size - n, "\n");
    }
    cr_assert_lt(n, size);
}

Test(lower, writes_a_small_fan_in_as_it_always_has)
{
    td_arena *a = td_arena_new();
    const plan_shape shape = {.n_encoders = 1,
                              .encoder = {{.dp = 2}},
                              .language = {.tp = 2, .pp = 1, .dp = 1},
                              .idle = 1,
                              .microbatches = 2};
    const td_program *p = lowered(a, plan_of(a, &shape));
    static char text[32768], expected[32768];
    for (int32_t r = 0; r < p->world_size; r++)
        list_rank(p, r, text, sizeof text);
    FILE *in = fopen(TD_SOURCE_DIR "/tests/golden/program_fan_in.txt", "r");
    cr_assert_not_null(in);
    expected[fread(expected, 1, sizeof expected - 1, in)] = '\0';
    fclose(in);
    cr_assert_str_eq(text, expected, "program_fan_in.txt is not\n%s", text);
    td_arena_free(a);
}

/* ---- size ---- */

Test(lower, of_twenty_thousand_microbatches_stays_small, .timeout = 60)
{
    td_arena *a = td_arena_new();
    const plan_shape shape = {
        .n_encoders = 1, .language = {.tp = 2, .pp = 2}, .microbatches = 20000};
    const td_program *p = lowered(a, plan_of(a, &shape));
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_program_check(a, p, &err), TD_OK, "%s", err.text);
    /* 14 ops a microbatch in the middle; an op is 48 bytes with its dependencies, arrays double */
    cr_assert_lt(td_arena_used(a), (size_t)p->n_ops * 400);
    td_arena_free(a);
}

/* A pass waits for every message of its call, and an op counts what it waits for in 16 bits. */
Test(lower, refuses_a_lane_with_more_messages_than_an_op_can_wait_for)
{
    const plan_shape shapes[] = {
        {.n_encoders = 1, .encoder = {{.dp = 32768}}, .micro_batch = 32768},
        {.n_encoders = 1, .language = {.dp = 32768}, .micro_batch = 1},
        {.n_encoders = 2, .encoder = {{.dp = 16384}, {.dp = 16384}}, .micro_batch = 16384},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        td_arena *a = td_arena_new();
        const td_program *p = NULL;
        td_err err = {TD_OK, ""};
        cr_assert_eq(td_lower(a, plan_of(a, &shapes[i]), &p, &err), TD_PLAN, "layout %zu", i);
        cr_assert_not_null(strstr(err.text, "expected at most 32767"), "%s", err.text);
        td_arena_free(a);
    }
}

Test(lower, of_four_thousand_ranks_has_as_many_streams_as_roles)
{
    td_arena *a = td_arena_new();
    const plan_shape shape = {.n_encoders = 1,
                              .encoder = {{.tp = 2, .dp = 512}},
                              .language = {.tp = 8, .pp = 4, .dp = 64},
                              .micro_batch = 8};
    const td_program *p = lowered(a, plan_of(a, &shape));
    td_err err = {TD_OK, ""};
    cr_assert_eq(p->world_size, 1024 + 2048);
    cr_assert_leq(p->n_streams, 8);
    cr_assert_eq(td_program_check(a, p, &err), TD_OK, "%s", err.text);
    td_arena_free(a);
}
