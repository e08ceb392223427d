/* The memory of a stage against a replay written here, closed forms and what must not matter. */
#include "tests/model/plans.h"

#include "model/lower.h"
#include "model/memory.h"
#include "model/pieces.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <string.h>

static td_memory memory_of(td_arena *a, const td_plan *plan, int32_t m, int32_t pp_rank)
{
    const td_pipeline p = plan_pipeline(a, plan);
    td_memory mem;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_memory_of_stage(a, plan, &p, m, pp_rank, &mem, &err), TD_OK, "%s", err.text);
    return mem;
}

static td_memory memory_of_shape(td_arena *a, const plan_shape *s, int32_t m, int32_t pp_rank)
{
    return memory_of(a, plan_of(a, s), m, pp_rank);
}

/* ---- one stage, one microbatch: every number by hand ---- */

static uint64_t whole(uint64_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

TheoryDataPoints(memory, of_one_stage_and_microbatch_is_the_closed_form) = {
    DataPoints(bool, false, true), DataPoints(int, 1, 3), DataPoints(int, 1, 2)};
Theory((bool fp32, int layers, int samples), memory, of_one_stage_and_microbatch_is_the_closed_form)
{
    td_arena *a = td_arena_new();
    const plan_shape s = {
        .language = {.layers = layers}, .microbatches = 1, .micro_batch = samples, .fp32 = fp32};
    const td_memory m = memory_of_shape(a, &s, 0, 0);
    const uint64_t e = fp32 ? 4 : 2, h = 64, f = 96, v = 128, heads = 8, t = 64 * (uint64_t)samples;
    const uint64_t params = (uint64_t)layers * (4 * h * h + 3 * h * f + 2 * h) + 2 * v * h + h;
    /* per layer: output, norm1, input of norm2, norm2 (4 h); q, k, v (3 h) and the attention's
     * output (h) with its log-sum-exp; gate, up and their product (3 f); one fp32 statistic for
     * each row of two norms; all multiples of 256 here */
    const uint64_t layer = t * (8 * h + 3 * f) * e + t * heads * 4 + 2 * t * 4;
    const uint64_t ends = 2 * t * h * e + t * 4 /* input, final norm */ + t * v * e +
                          t * 12 /* loss */ + 2 * t * 4 /* tokens, targets */;
    cr_assert_eq(m.weights, whole(e * params));
    cr_assert_eq(m.gradients, whole(4 * params));
    cr_assert_eq(m.optimizer, (fp32 ? 2 : 3) * whole(4 * params));
    cr_assert_eq(m.activations, (uint64_t)layers * layer + ends);
    /* one bucket of a tensor each of 2 + 9 * layers + 1: a span a tensor and two more at most;
     * scratch for two intermediates of 3 h, a product, two gradients of the hidden state */
    const uint64_t spans = 64 * ((params >> 16) + 9 * (uint64_t)layers + 3 + 1);
    const uint64_t workspace = UINT64_C(32) << 20;
    cr_assert_eq(m.buffers, 4096 + whole(spans) + whole(workspace) + 2 * t * 3 * h * e + t * h * e +
                                2 * t * h * e);
    cr_assert_eq(m.in_flight, 1);
    td_arena_free(a);
}

/* Neither overlaps another, and together they fill the arena. */
typedef struct {
    uint64_t next, total;
    const char *name;
} walk;

static void follow(void *self, const td_piece *p)
{
    walk *w = self;
    cr_assert_eq(p->offset % 256, 0, "%s", w->name);
    cr_assert_eq(p->bytes % 256, 0, "%s", w->name);
    cr_assert_geq(p->offset, w->next, "%s: piece %d", w->name, (int)p->kind);
    w->next = p->offset + p->bytes;
    if (p->n_j == 1 || p->stride_j == 0) /* copies of a slot enclose the layers in it */
        w->next += p->stride_i == p->bytes ? (uint64_t)(p->n_i - 1) * p->stride_i : 0;
    w->total += p->bytes * (uint64_t)(p->stride_i > 0 ? p->n_i : 1) *
                (uint64_t)(p->stride_j > 0 ? p->n_j : 1);
}

/* ---- every layout ---- */

static void for_all_stages(void (*law)(td_arena *a, const td_plan *plan, int32_t m, int32_t p,
                                       const td_memory *mem, const char *name))
{
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = plan_of(a, s);
        for (int32_t m = 0; m < plan->n_modules; m++)
            for (int32_t p = 0; p < plan->modules[m].pp; p++) {
                const td_memory mem = memory_of(a, plan, m, p);
                law(a, plan, m, p, &mem, s->name);
            }
        td_arena_free(a);
    }
}

static void check_total(td_arena *a, const td_plan *plan, int32_t m, int32_t p,
                        const td_memory *mem, const char *name)
{
    (void)a, (void)plan;
    cr_assert_eq(mem->total,
                 mem->weights + mem->gradients + mem->optimizer + mem->activations + mem->buffers,
                 "%s: module %d, stage %d", name, (int)m, (int)p);
    cr_assert_eq(mem->capacity, UINT64_C(80) << 30, "%s", name);
}

Test(memory, is_the_sum_of_its_parts)
{
    for_all_stages(check_total);
}

static void check_pieces(td_arena *a, const td_plan *plan, int32_t m, int32_t p,
                         const td_memory *mem, const char *name)
{
    const td_pipeline pipe = plan_pipeline(a, plan);
    td_stage_sizes sizes;
    walk w = {.name = name};
    cr_assert_eq(td_stage_sizes_of(a, plan, &pipe, m, p, &sizes, NULL), TD_OK);
    cr_assert_eq(td_stage_pieces(plan, &pipe, m, p, &sizes, follow, &w), w.total, "%s", name);
    cr_assert_eq(mem->total, w.total, "%s", name);
}

Test(memory, is_an_arena_of_pieces_that_do_not_overlap)
{
    for_all_stages(check_pieces);
}

/* 1F1B: a stage holds as many microbatches as there are stages from it on. */
static void check_in_flight(td_arena *a, const td_plan *plan, int32_t m, int32_t p,
                            const td_memory *mem, const char *name)
{
    const td_stage s = td_stage_of(plan, m, p);
    const td_pipeline pipe = plan_pipeline(a, plan);
    const int32_t deep = pipe.total_stages - pipe.depth[m] - p, n = plan->step.microbatches;
    cr_assert_eq(mem->in_flight,
                 !s.backward ? 0
                 : deep < n  ? deep
                             : n,
                 "%s: module %d, stage %d", name, (int)m, (int)p);
}

Test(memory, holds_as_many_microbatches_as_stages_follow)
{
    for_all_stages(check_in_flight);
}

static void add_up(void *self, const td_param *p)
{
    uint64_t *n = self;
    n[0] += (uint64_t)p->local;
    n[1] += p->trainable ? (uint64_t)p->local : 0;
}

static void check_fixed(td_arena *a, const td_plan *plan, int32_t m, int32_t p,
                        const td_memory *mem, const char *name)
{
    const td_stage s = td_stage_of(plan, m, p);
    const uint64_t dp = plan->optimizer.sharded ? (uint64_t)plan->modules[m].dp : 1;
    uint64_t n[2] = {0, 0};
    td_buckets b;
    td_stage_params(&s, add_up, n);
    cr_assert_eq(td_buckets_of_stage(a, &s, &b, NULL), TD_OK);
    const uint64_t padding = (uint64_t)b.n * 128 * dp,
                   elements = n[0] - n[1] + (uint64_t)b.elements,
                   shard = whole(4 * (uint64_t)b.elements / dp);
    cr_assert_eq(mem->weights, whole(elements * (uint64_t)s.e), "%s", name);
    cr_assert((uint64_t)b.elements >= n[1] && (uint64_t)b.elements <= n[1] + padding, "%s", name);
    cr_assert_eq(mem->gradients, whole(4 * (uint64_t)b.elements), "%s", name);
    cr_assert_geq(mem->buffers, (dp > 1 ? shard : 0) + whole(4 * (uint64_t)b.shared), "%s", name);
    cr_assert_eq(mem->optimizer, shard * (plan->precision == TD_BF16 ? 3 : 2), "%s", name);
    if (n[1] == 0)
        cr_assert(mem->gradients == 0 && mem->optimizer == 0, "%s: frozen, but with state", name);
}

Test(memory, holds_weights_of_all_and_state_of_what_trains)
{
    for_all_stages(check_fixed);
}

/* ---- what changes it ---- */

TheoryDataPoints(memory,
                 of_a_sharded_optimizer_is_divided_by_the_lanes) = {DataPoints(int, 2, 4, 8)};
Theory((int dp), memory, of_a_sharded_optimizer_is_divided_by_the_lanes)
{
    td_arena *a = td_arena_new();
    plan_shape s = {.language = {.dp = dp}, .optimizer = "sharded: false"};
    const td_memory whole = memory_of_shape(a, &s, 0, 0);
    s.optimizer = NULL;
    const td_memory sharded = memory_of_shape(a, &s, 0, 0);
    cr_assert_geq(sharded.optimizer * (uint64_t)dp, whole.optimizer);
    cr_assert_leq(sharded.optimizer * (uint64_t)dp,
                  whole.optimizer + (12 * 128 + 3 * 256) * (uint64_t)dp);
    cr_assert(sharded.weights >= whole.weights && sharded.activations == whole.activations);
    td_arena_free(a);
}

TheoryDataPoints(memory, of_activations_shrinks_with_recomputation) = {
    DataPoints(int, 1, 2, 4), DataPoints(bool, false, true)};
Theory((int tp, bool sequence_parallel), memory, of_activations_shrinks_with_recomputation)
{
    static const char *const steps[2][3] = {
        {"recompute: none", "recompute: selective", "recompute: full"},
        {"recompute: none, sequence_parallel: true",
         "recompute: selective, sequence_parallel: true",
         "recompute: full, sequence_parallel: true"}};
    td_arena *a = td_arena_new();
    for (int32_t m = 0; m < 2; m++)
        for (int32_t p = 0; p < 2; p++) {
            uint64_t before = UINT64_MAX;
            for (int i = 0; i < 3; i++) {
                const plan_shape s = {.n_encoders = 1,
                                      .encoder = {{.tp = tp, .pp = 2, .dp = 1}},
                                      .language = {.tp = tp, .pp = 2, .dp = 1},
                                      .step = steps[sequence_parallel][i]};
                const td_memory mem = memory_of_shape(a, &s, m, p);
                cr_assert_lt(mem.activations, before, "module %d, stage %d: %s", (int)m, (int)p,
                             s.step);
                before = mem.activations;
            }
        }
    td_arena_free(a);
}

Test(memory, of_activations_shrinks_with_sequence_parallelism_and_not_of_weights)
{
    td_arena *a = td_arena_new();
    plan_shape s = {.language = {.tp = 4, .pp = 2, .dp = 1}};
    const td_memory plain = memory_of_shape(a, &s, 0, 0);
    s.step = "sequence_parallel: true";
    const td_memory parallel = memory_of_shape(a, &s, 0, 0);
    cr_assert_lt(parallel.activations, plain.activations);
    cr_assert_eq(parallel.weights, plain.weights);
    td_arena_free(a);
}

Test(memory, does_not_grow_with_microbatches_beyond_the_warm_up)
{
    td_arena *a = td_arena_new();
    for (int32_t p = 0; p < 4; p++) {
        plan_shape s = {.language = {.pp = 4}, .microbatches = 4};
        const td_memory few = memory_of_shape(a, &s, 0, p);
        s.microbatches = 1000;
        const td_memory many = memory_of_shape(a, &s, 0, p);
        cr_assert_eq(few.total, many.total);
    }
    td_arena_free(a);
}

static void add_transfers(void *self, const td_piece *p)
{
    uint64_t *bytes = self;
    const bool ring = p->kind == TD_PIECE_GRAD_IN || p->kind == TD_PIECE_GRAD_OUT ||
                      p->kind == TD_PIECE_BRIDGED || p->kind == TD_PIECE_BRIDGED_GRAD;
    *bytes += ring ? p->bytes * (uint64_t)p->n_i : 0;
}

Test(memory, has_room_for_two_transfers_in_each_direction)
{
    td_arena *a = td_arena_new();
    const uint64_t row = 64 * 2, rows = 4 * 64, bridged = 4 * 8; /* 4 samples, bf16 */
    const plan_shape s = {.n_encoders = 1, .language = {.pp = 3, .stage_layers = "[1, 2, 1]"}};
    const td_plan *plan = plan_of(a, &s);
    const td_pipeline pipe = plan_pipeline(a, plan);
    /* bridged rows and their gradients, gradients in; gradients in and out; gradients out */
    const uint64_t expected[3] = {4 * bridged * row + 2 * rows * row, 4 * rows * row,
                                  2 * rows * row};
    for (int32_t p = 0; p < 3; p++) {
        td_stage_sizes sizes;
        uint64_t bytes = 0;
        cr_assert_eq(td_stage_sizes_of(a, plan, &pipe, 1, p, &sizes, NULL), TD_OK);
        td_stage_pieces(plan, &pipe, 1, p, &sizes, add_transfers, &bytes);
        cr_assert_eq(bytes, expected[p], "stage %d", (int)p);
        cr_assert_eq(sizes.n_inputs, sizes.n_slots + (p > 0), "stage %d", (int)p);
    }
    td_arena_free(a);
}

Test(memory, of_a_frozen_encoder_keeps_nothing_for_a_backward)
{
    td_arena *a = td_arena_new();
    const plan_shape s = {.n_encoders = 1,
                          .encoder = {{.tp = 1, .pp = 2, .dp = 1, .frozen = "true"}}};
    for (int32_t p = 0; p < 2; p++) {
        const td_memory m = memory_of_shape(a, &s, 0, p);
        cr_assert(m.activations == 0 && m.in_flight == 0 && m.gradients == 0);
    }
    td_arena_free(a);
}

Test(memory, text_names_the_sum_and_the_largest_part)
{
    td_arena *a = td_arena_new();
    const td_memory m = {.weights = UINT64_C(1) << 30,
                         .activations = UINT64_C(5) << 30,
                         .total = UINT64_C(6) << 30,
                         .in_flight = 3};
    cr_assert_str_eq(td_memory_text(a, &m), "6.00 GiB with 3 microbatches in flight; "
                                            "most of it is activations (5.00 GiB)");
    td_arena_free(a);
}
