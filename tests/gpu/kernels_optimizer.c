/* Tables of first values and of the optimizer step. */
#include "exec/numbers.h"
#include "exec/optimizer.h"
#include "tests/gpu/kernels.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

/* ---- first values ---- */

/* A slice of rows x n from row `first`, column `seq` of a tensor that is h wide; `extra`: float. */
static const td_shape fill_normal_shapes[] = {
    {.rows = 4096, .n = 11008, .h = 11008, .timed = true, .only_timed = true},
    {.rows = 300, .n = 1024, .h = 4096, .first = 300, .seq = 1024},
    {.rows = 300, .n = 1024, .h = 1024, .extra = true},
    {.rows = 17, .n = 33, .h = 70, .first = 3, .seq = 5, .extra = true},
    {.rows = 17, .n = 33, .h = 71, .first = 1, .seq = 7, .shifted = true},
    {.rows = 5, .n = 589, .h = 4097, .first = 5000000, .extra = true}, /* blocks beyond 2^32 */
    {.rows = 1, .n = 1, .h = 1},
};

static void fill_normal_operands(td_trial *t, const td_shape *s)
{
    td_operand *out =
        td_trial_operand(t, TD_OUT, s->extra ? TD_OF_FLOAT : TD_OF_ACT, "out", s->rows, s->n, 0);
    if (s->extra || !t->bf16)
        out->tolerance = 1e-6;
}

static const double sigma = 0.02;
static const uint32_t key[2] = {1234, 0x9E3779B9u};

static void fill_normal_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->fill_normal(dev, key, sigma, s->rows, s->n, s->first, s->seq, s->h, s->extra, p[0]);
}

static void fill_normal_reference(td_trial *t, const td_shape *s)
{
    const td_numbers numbers = {{key[0], key[1]}};
    float *out = t->operand[0].want;
    for (int64_t row = 0; row < s->rows; row++)
        td_numbers_fill_normal(&numbers, (uint64_t)((s->first + row) * s->h + s->seq), s->n, sigma,
                               out + row * s->n);
}

static const td_shape fill_shapes[] = {
    {.n = 4096 * 11008, .timed = true, .only_timed = true},
    {.n = 1},
    {.n = 1023, .shifted = true},
    {.n = 588 * 17, .extra = true},
    {.n = 33, .extra = true, .shifted = true},
};

static const float filled = 1.0F / 3;

static void fill_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_OUT, s->extra ? TD_OF_FLOAT : TD_OF_ACT, "p", 1, s->n, 0)->tolerance = 0;
}

static void fill_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->fill(dev, filled, s->n, s->extra, p[0]);
}

static void fill_reference(td_trial *t, const td_shape *s)
{
    float *p = t->operand[0].want;
    for (int64_t i = 0; i < s->n; i++)
        p[i] = filled;
}

/* ---- the state ---- */

#define FIELD(member, number, kind, off)                                                           \
    {                                                                                              \
        .name = #member, .offset = offsetof(td_mimo_state, member), .count = number,               \
        .is = TD_FIELD_##kind, .tolerance = off                                                    \
    }
static const td_field state_fields[] = {
    FIELD(loss, 2, DOUBLE, 0),
    FIELD(tokens, 2, DOUBLE, 0),
    FIELD(stats, 2, DOUBLE, 1e-10), /* a long sum, in another order */
    FIELD(square, 1, DOUBLE, 0),
    FIELD(vector, TD_MAX_MODULES, DOUBLE, 0),
    FIELD(flag, 1, FLOAT, 0),
    FIELD(success, 1, I32, 0),
    FIELD(decision.norm, 1, DOUBLE, 1e-14),
    FIELD(decision.module_norms, TD_MAX_MODULES, DOUBLE, 1e-14),
    FIELD(decision.clip_coefficient, 1, DOUBLE, 1e-14),
    FIELD(decision.scale, 1, DOUBLE, 1e-14),
    FIELD(decision.update, 1, BOOL, 0),
    FIELD(n_updates, 1, I64, 0),
    {0},
};

static const td_mimo_config configs[] = {
    {1e-2, 0.9, 0.95, 1e-8, 0.01, 1, TD_NONFINITE_SKIP, 3, {1, 2, 0}},
    {1e-2, 0.9, 0.95, 1e-8, 0.01, 0, TD_NONFINITE_SKIP, 3, {0, 1, 2}},
    {1e-2, 0.9, 0.95, 1e-8, 0.01, 1, TD_NONFINITE_PROPAGATE, 3, {2, 1, 0}},
    {1e-2, 0.9, 0.999, 1e-8, 0, 1e9, TD_NONFINITE_SKIP, TD_MAX_MODULES, {0}},
};
static const int32_t modules[] = {-1, 0, 2};
/* What is odd about a state: nothing, a flag, an infinite square as it travels, one that is nan, no
 * token at all. */
enum { USUAL, FLAGGED, INFINITE, NOT_A_NUMBER, EMPTY, N_ODD };
enum {
    N_CONFIGS = sizeof configs / sizeof *configs,
    N_MODULES = sizeof modules / sizeof *modules,
    N_STATES = N_CONFIGS * N_MODULES * N_ODD
};

static double positive(td_trial *t, double scale)
{
    return scale * (double)(1 + td_trial_dice(t, 1000000)) * 1e-6;
}

static void draw_state(td_trial *t, int odd, td_mimo_state *s)
{
    s->loss[0] = positive(t, 1e4);
    s->loss[1] = (double)td_trial_dice(t, 10000);
    s->tokens[0] = positive(t, 1e5);
    s->tokens[1] = odd == EMPTY ? 0 : (double)(1 + td_trial_dice(t, 100000));
    s->stats[0] = odd == INFINITE ? (double)INFINITY : positive(t, 1e6);
    s->stats[1] = odd == FLAGGED || odd == INFINITE ? 1 : 0;
    s->square = odd == NOT_A_NUMBER ? (double)NAN
                : odd == INFINITE   ? (double)INFINITY
                                    : positive(t, 1e6);
    for (int i = 0; i < TD_MAX_MODULES; i++)
        s->vector[i] = positive(t, 1e9);
    if (odd == INFINITE) /* as td_mimo_vector() sends them */
        s->vector[1] = DBL_MAX;
    if (odd == NOT_A_NUMBER)
        s->vector[2] = (double)INFINITY;
    s->flag = odd == FLAGGED || odd == INFINITE || odd == NOT_A_NUMBER ? 1 : 0;
    s->success = (int32_t)td_trial_dice(t, 2);
    s->decision.norm = positive(t, 10);
    s->decision.clip_coefficient = positive(t, 1);
    s->decision.scale = 0.37;
    s->decision.update = odd == USUAL;
    s->n_updates = 1 + td_trial_dice(t, 1000);
}

static td_operand *states(td_trial *t, td_role role, int64_t n)
{
    td_operand *o = td_trial_operand(t, role, TD_OF_BYTES, "state", n, sizeof(td_mimo_state), 0);
    td_mimo_state *s = o->first;
    for (int64_t i = 0; i < n; i++)
        draw_state(t, (int)(i % N_ODD), &s[i]);
    o->fields = state_fields;
    return o;
}

/* ---- decisions: `variant` is the piece, counted from 1 ---- */

static const td_shape mimo_shapes[] = {
#define X(piece) {.variant = TD_MIMO_##piece + 1},
    TD_MIMO_MAP(X)
#undef X
};

static void mimo_operands(td_trial *t, const td_shape *s)
{
    (void)s;
    states(t, TD_INOUT, N_STATES);
}

/* Every state meets every configuration and module. */
static const td_mimo_config *config_of(int i)
{
    return &configs[i / N_ODD % N_CONFIGS];
}

static int32_t module_of(int i)
{
    return modules[i / (N_ODD * N_CONFIGS)];
}

static void mimo_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    for (int i = 0; i < N_STATES; i++)
        k->mimo(dev, (td_mimo_piece)(s->variant - 1), config_of(i), module_of(i),
                (td_mimo_state *)p[0] + i);
}

static void mimo_reference(td_trial *t, const td_shape *s)
{
    td_mimo_state *state = t->operand[0].want;
    for (int i = 0; i < N_STATES; i++)
        td_mimo_run((td_mimo_piece)(s->variant - 1), config_of(i), module_of(i), &state[i]);
}

/* ---- spans ---- */

enum { SPANS, GRAD, PARAM, M, V, COPY, STATE };

/*
 * `n` spans, whole ones if timed; else of odd lengths at odd places, with gaps between them. The
 * variants of gradients: 1 nan where it does not count, 2 infinity where it does, 3 squares beyond
 * float, 4 the flag is up already. Of Adam: 1 no update, 2 the first one, 3 without decay.
 */
static const td_shape grad_stats_shapes[] = {
    {.n = 512, .timed = true},
    {.n = 1},
    {.n = 7},
    {.n = 7, .shifted = true},
    {.n = 7, .variant = 1},
    {.n = 7, .variant = 2},
    {.n = 7, .variant = 3},
    {.n = 7, .variant = 4},
    {.n = 1000},
    {.n = 0},
};
static const td_shape adam_shapes[] = {
    {.n = 512, .timed = true}, {.n = 1},    {.n = 7, .variant = 2}, {.n = 7, .shifted = true},
    {.n = 7, .variant = 1},    {.n = 1000}, {.n = 7, .variant = 3}, {.n = 0},
};
static const td_shape cast_shapes[] = {
    {.n = 512, .timed = true}, {.n = 1}, {.n = 7}, {.n = 7, .shifted = true}, {.n = 1000}, {.n = 0},
};

static int64_t length_of(const td_shape *s, int64_t span)
{
    static const int64_t odd[] = {1, 8191, 7, TD_MIMO_SPAN, 64, 3, 588};
    if (s->timed)
        return TD_MIMO_SPAN;
    return s->n > 100 ? 1 + span % 37 : odd[span % 7];
}

static int64_t gap_after(const td_shape *s, int64_t span)
{
    return s->timed ? 0 : span % 4;
}

static int64_t elements(const td_shape *s)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < s->n; i++)
        sum += length_of(s, i) + gap_after(s, i);
    return sum;
}

static double weight_of(int64_t span)
{
    return span % 3 == 1 ? 0 : 1;
}

static void *at(void *p, int64_t element, size_t size)
{
    return p == NULL ? NULL : (char *)p + (size_t)element * size;
}

static void link_spans(const td_trial *t, const td_shape *s, void *const p[], void *operand0)
{
    int64_t first = 0;
    for (int64_t i = 0; i < s->n; i++) {
        td_mimo_span span;
        memset(&span, 0, sizeof span); /* its padding is compared, too */
        span.grad = at(p[GRAD], first, sizeof(float));
        span.param = at(p[PARAM], first, sizeof(float));
        span.m = at(p[M], first, sizeof(float));
        span.v = at(p[V], first, sizeof(float));
        span.copy = t->bf16 && i % 4 != 3 ? at(p[COPY], first, 2) : NULL;
        span.n = length_of(s, i);
        span.weight = weight_of(i);
        span.decay = i % 2 == 0;
        memcpy((char *)operand0 + (size_t)i * sizeof span, &span, sizeof span);
        first += span.n + gap_after(s, i);
    }
}

static void spans_operand(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_IN, TD_OF_BYTES, "spans", s->n, sizeof(td_mimo_span), 0);
}

static void absent(td_trial *t, int n)
{
    for (int i = 0; i < n; i++)
        td_trial_absent(t);
}

static void grad_stats_operands(td_trial *t, const td_shape *s)
{
    spans_operand(t, s);
    td_operand *grad =
        td_trial_operand(t, TD_IN, TD_OF_FLOAT, "grad", 1, elements(s), s->variant == 3 ? 1e25 : 1);
    float *g = grad->first;
    absent(t, STATE - PARAM);
    td_mimo_state *state = states(t, TD_INOUT, 1)->first;
    if (s->variant == 4)
        state->stats[1] = 1;
    for (int64_t i = 0, first = 0; i < s->n; i++) {
        if (s->variant == 1 && weight_of(i) == 0)
            g[first + length_of(s, i) - 1] = NAN;
        if (s->variant == 2 && i == 3)
            g[first + length_of(s, i) / 2] = -INFINITY;
        first += length_of(s, i);
        for (int64_t k = 0; k < gap_after(s, i); k++) /* nobody's */
            g[first++] = NAN;
    }
}

static void grad_stats_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->grad_stats(dev, p[SPANS], s->n, p[STATE]);
}

static void adam_operands(td_trial *t, const td_shape *s)
{
    const int64_t n = elements(s);
    spans_operand(t, s);
    td_trial_operand(t, TD_IN, TD_OF_FLOAT, "grad", 1, n, 1);
    td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "param", 1, n, 0.05);
    td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "m", 1, n, s->variant == 2 ? 0 : 0.3);
    float *v =
        td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "v", 1, n, s->variant == 2 ? 0 : 0.1)->first;
    for (int64_t i = 0; i < n; i++)
        v[i] = fabsf(v[i]);
    absent(t, 1);
    td_mimo_state *state = states(t, TD_IN, 1)->first;
    state->decision.update = s->variant != 1;
    if (s->variant == 2)
        state->n_updates = 1;
}

static void adam_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->adam(dev, &configs[s->variant == 3 ? 3 : 0], p[SPANS], s->n, p[STATE]);
}

static void cast_operands(td_trial *t, const td_shape *s)
{
    spans_operand(t, s);
    absent(t, 1);
    td_trial_operand(t, TD_IN, TD_OF_FLOAT, "param", 1, elements(s), 0.05);
    absent(t, 2);
    td_operand *copy = td_trial_operand(t, TD_INOUT, TD_OF_ACT, "copy", 1, elements(s), 1);
    copy->tolerance = 0;
    copy->touched = t->bf16 ? elements(s) / 2 : 0; /* written only */
    if (!t->bf16)
        t->operand[PARAM].touched = 0;
}

static void cast_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->cast(dev, p[SPANS], s->n);
}

static void cast_reference(td_trial *t, const td_shape *s)
{
    const float *param = t->operand[PARAM].first;
    float *copy = t->operand[COPY].want;
    for (int64_t i = 0, first = 0; i < s->n; i++) {
        for (int64_t k = 0; t->bf16 && i % 4 != 3 && k < length_of(s, i); k++)
            copy[first + k] = td_to_bf16(param[first + k]);
        first += length_of(s, i) + gap_after(s, i);
    }
}

#define ROW(k) .name = #k, .table = &td_gpu_kernels, .operands = k##_operands, .call = k##_call

const td_kernel_row td_optimizer_kernels[] = {
    {ROW(fill_normal), .reference = fill_normal_reference, TD_SHAPES(fill_normal_shapes)},
    {ROW(fill), .reference = fill_reference, TD_SHAPES(fill_shapes)},
    {ROW(grad_stats), .link = link_spans, TD_SHAPES(grad_stats_shapes)},
    {ROW(mimo), .reference = mimo_reference, TD_SHAPES(mimo_shapes)},
    {ROW(adam), .link = link_spans, TD_SHAPES(adam_shapes)},
    {ROW(cast), .link = link_spans, .reference = cast_reference, TD_SHAPES(cast_shapes)},
    {0},
};
