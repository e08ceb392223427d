/*
 * Attention and rotary positions on the processor against the same mathematics in double: the
 * forward directly, the backward against central differences. Sequences cross the edges of tiles.
 */
#include "exec/host_kernels.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const td_kernels *const k = &td_host_kernels;

TestSuite(attention, .init = td_host_kernels_open);

/* Buffers of one call, exact in size so that a sanitizer sees the first element beyond. */
typedef struct {
    int64_t n_qkv, n_out, n_lse;
    float *qkv, *out, *lse, *dout, *dqkv;
} buffers;

static float *filled(int64_t n, uint64_t state)
{
    float *x = calloc(n > 0 ? (size_t)n : 1, sizeof *x);
    cr_assert_not_null(x);
    for (int64_t i = 0; i < n; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407); /* MMIX */
        x[i] = (float)((double)(state >> 40) * 0x1p-22 - 2);
    }
    return x;
}

static int64_t width_of(const td_attention_shape *s)
{
    return (s->heads + 2 * (int64_t)s->kv_heads) * s->head_dim;
}

static buffers buffers_new(const td_attention_shape *s)
{
    const int64_t rows = (int64_t)s->samples * s->seq;
    buffers b = {.n_qkv = rows * width_of(s),
                 .n_out = rows * s->heads * s->head_dim,
                 .n_lse = rows * s->heads};
    b.qkv = filled(b.n_qkv, 1);
    b.dout = filled(b.n_out, 2);
    b.out = filled(b.n_out, 3); /* these three must be overwritten */
    b.lse = filled(b.n_lse, 4);
    b.dqkv = filled(b.n_qkv, 5);
    return b;
}

static void buffers_free(buffers *b)
{
    free(b->qkv);
    free(b->out);
    free(b->lse);
    free(b->dout);
    free(b->dqkv);
}

/* One query of one head, as the definition says; returns the log-sum-exp of its scores. */
static double attend(const double *qkv, const td_attention_shape *s, int sample, int head,
                     int query, double *out)
{
    const int64_t width = width_of(s), d = s->head_dim;
    const int n = s->causal ? query + 1 : s->seq, kv = head * s->kv_heads / s->heads;
    const double *rows = qkv + sample * s->seq * width, *q = rows + query * width + head * d;
    double largest = -INFINITY, sum = 0, *score = calloc((size_t)n, sizeof *score);
    for (int j = 0; j < n; j++) {
        for (int64_t i = 0; i < d; i++)
            score[j] += q[i] * rows[j * width + (s->heads + kv) * d + i] / sqrt((double)d);
        largest = fmax(largest, score[j]);
    }
    for (int j = 0; j < n; j++)
        sum += exp(score[j] - largest);
    for (int64_t i = 0; i < d; i++) {
        out[i] = 0;
        for (int j = 0; j < n; j++)
            out[i] += exp(score[j] - largest) / sum *
                      rows[j * width + (s->heads + s->kv_heads + kv) * d + i];
    }
    free(score);
    return largest + log(sum);
}

/* Sum over all outputs of one sample of dout * out. */
static double weighted(const double *qkv, const td_attention_shape *s, const float *dout,
                       int sample)
{
    double sum = 0, *out = calloc((size_t)s->head_dim, sizeof *out);
    for (int head = 0; head < s->heads; head++)
        for (int query = 0; query < s->seq; query++) {
            const int64_t row = (int64_t)sample * s->seq + query;
            attend(qkv, s, sample, head, query, out);
            for (int i = 0; i < s->head_dim; i++)
                sum += out[i] * (double)dout[(row * s->heads + head) * s->head_dim + i];
        }
    free(out);
    return sum;
}

static td_attention_shape shapes[] = {
    {.samples = 1, .seq = 1, .heads = 1, .kv_heads = 1, .head_dim = 1},
    {.samples = 2, .seq = 5, .heads = 3, .kv_heads = 3, .head_dim = 7},
    {.samples = 2, .seq = 5, .heads = 3, .kv_heads = 3, .head_dim = 7, .causal = true},
    {.samples = 3, .seq = 9, .heads = 6, .kv_heads = 2, .head_dim = 4, .causal = true},
    {.samples = 1, .seq = 64, .heads = 2, .kv_heads = 1, .head_dim = 3, .causal = true},
    {.samples = 1, .seq = 65, .heads = 1, .kv_heads = 1, .head_dim = 5, .causal = true},
    {.samples = 1, .seq = 131, .heads = 2, .kv_heads = 1, .head_dim = 6, .causal = true},
    {.samples = 2, .seq = 131, .heads = 2, .kv_heads = 2, .head_dim = 3},
};

ParameterizedTestParameters(attention, is_the_weighted_mean_of_the_definition)
{
    return cr_make_param_array(td_attention_shape, shapes, sizeof shapes / sizeof *shapes);
}

ParameterizedTest(td_attention_shape *s, attention, is_the_weighted_mean_of_the_definition)
{
    buffers b = buffers_new(s);
    const int64_t d = s->head_dim;
    double *qkv = calloc((size_t)b.n_qkv, sizeof *qkv), *want = calloc((size_t)d, sizeof *want);
    for (int64_t i = 0; i < b.n_qkv; i++)
        qkv[i] = (double)b.qkv[i];
    k->attention(NULL, b.qkv, b.out, b.lse, s);
    for (int sample = 0; sample < s->samples; sample++)
        for (int head = 0; head < s->heads; head++)
            for (int query = 0; query < s->seq; query++) {
                const int64_t row = (int64_t)sample * s->seq + query;
                const double lse = attend(qkv, s, sample, head, query, want);
                cr_assert_float_eq(
                    (double)b.lse[((int64_t)sample * s->heads + head) * s->seq + query], lse,
                    2e-6 * fmax(1, fabs(lse)));
                for (int64_t i = 0; i < d; i++)
                    cr_assert_float_eq((double)b.out[(row * s->heads + head) * d + i], want[i],
                                       4e-6, "sample %d, head %d, query %d", sample, head, query);
            }
    free(qkv);
    free(want);
    buffers_free(&b);
}

ParameterizedTestParameters(attention, backward_is_the_slope_of_the_definition)
{
    return cr_make_param_array(td_attention_shape, shapes, sizeof shapes / sizeof *shapes);
}

ParameterizedTest(td_attention_shape *s, attention, backward_is_the_slope_of_the_definition)
{
    buffers b = buffers_new(s);
    const int64_t every = b.n_qkv > 600 ? b.n_qkv / 97 | 1 : 1; /* odd: meets every column */
    const int64_t sample_size = s->seq * width_of(s);
    const double step = 1e-5;
    double *qkv = calloc((size_t)b.n_qkv, sizeof *qkv);
    for (int64_t i = 0; i < b.n_qkv; i++)
        qkv[i] = (double)b.qkv[i];
    k->attention(NULL, b.qkv, b.out, b.lse, s);
    k->attention_backward(NULL, b.dout, b.qkv, b.out, b.lse, b.dqkv, s);
    for (int64_t i = 0; i < b.n_qkv; i += every) {
        const double at = qkv[i];
        const int sample = (int)(i / sample_size);
        qkv[i] = at + step;
        double slope = weighted(qkv, s, b.dout, sample);
        qkv[i] = at - step;
        slope = (slope - weighted(qkv, s, b.dout, sample)) / (2 * step);
        qkv[i] = at;
        cr_assert_float_eq((double)b.dqkv[i], slope, 1e-5 * fmax(1, fabs(slope)), "%lld of %lld",
                           (long long)i, (long long)b.n_qkv);
    }
    free(qkv);
    buffers_free(&b);
}

/* At a size where BLAS packs and every tile is met; buffers of the second call stand elsewhere. */
Test(attention, repeated_calls_are_equal_to_the_bit)
{
    const td_attention_shape s = {
        .samples = 2, .seq = 150, .heads = 4, .kv_heads = 2, .head_dim = 32, .causal = true};
    buffers a = buffers_new(&s), b = buffers_new(&s);
    for (int call = 0; call < 2; call++) {
        buffers *now = call == 0 ? &a : &b;
        k->rotary(NULL, now->qkv, &s, false);
        k->attention(NULL, now->qkv, now->out, now->lse, &s);
        k->attention_backward(NULL, now->dout, now->qkv, now->out, now->lse, now->dqkv, &s);
    }
    cr_assert_eq(memcmp(a.out, b.out, (size_t)a.n_out * sizeof(float)), 0);
    cr_assert_eq(memcmp(a.lse, b.lse, (size_t)a.n_lse * sizeof(float)), 0);
    cr_assert_eq(memcmp(a.dqkv, b.dqkv, (size_t)a.n_qkv * sizeof(float)), 0);
    buffers_free(&a);
    buffers_free(&b);
}

/* Key head floor(i * kv_heads / heads): a plan that repeats each key head by hand is the same. */
Test(attention, a_key_head_shared_by_a_group_equals_its_copies)
{
    const td_attention_shape shared = {
        .samples = 1, .seq = 6, .heads = 6, .kv_heads = 2, .head_dim = 4, .causal = true};
    td_attention_shape copied = shared;
    copied.kv_heads = copied.heads;
    buffers a = buffers_new(&shared), b = buffers_new(&copied);
    const int64_t wide = width_of(&copied), narrow = width_of(&shared), d = shared.head_dim;
    for (int64_t row = 0; row < shared.seq; row++)
        for (int64_t i = 0; i < wide; i++) {
            const int64_t block = i / d, head = block % 6; /* q, k and v of six heads each */
            const int64_t from = block < 6 ? block : 6 + (block / 6 - 1) * 2 + head / 3;
            b.qkv[row * wide + i] = a.qkv[row * narrow + from * d + i % d];
        }
    k->attention(NULL, a.qkv, a.out, a.lse, &shared);
    k->attention(NULL, b.qkv, b.out, b.lse, &copied);
    cr_assert_eq(memcmp(a.out, b.out, (size_t)a.n_out * sizeof(float)), 0);
    buffers_free(&a);
    buffers_free(&b);
}

/* Scores near +-1000: exp of them does not exist in float. */
Test(attention, large_scores_neither_overflow_nor_vanish)
{
    const td_attention_shape s = {
        .samples = 1, .seq = 70, .heads = 1, .kv_heads = 1, .head_dim = 2};
    buffers b = buffers_new(&s);
    for (int64_t i = 0; i < b.n_qkv; i++)
        b.qkv[i] = i % 6 < 4 ? 20 * b.qkv[i] : b.qkv[i];
    k->attention(NULL, b.qkv, b.out, b.lse, &s);
    k->attention_backward(NULL, b.dout, b.qkv, b.out, b.lse, b.dqkv, &s);
    for (int64_t i = 0; i < b.n_out; i++)
        cr_assert(fabsf(b.out[i]) <= 2.0001F, "a mean of values within [-2, 2]");
    for (int64_t i = 0; i < b.n_qkv; i++)
        cr_assert(isfinite(b.dqkv[i]));
    buffers_free(&b);
}

Test(attention, a_number_that_is_not_finite_is_not_hidden)
{
    const td_attention_shape s = {
        .samples = 1, .seq = 70, .heads = 1, .kv_heads = 1, .head_dim = 2, .causal = true};
    const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        buffers b = buffers_new(&s);
        b.qkv[3 * 6 + 2] = bad[i]; /* a key of row 3 */
        b.qkv[69 * 6] = b.qkv[3 * 6] = 1;
        k->attention(NULL, b.qkv, b.out, b.lse, &s);
        k->attention_backward(NULL, b.dout, b.qkv, b.out, b.lse, b.dqkv, &s);
        cr_assert(!isfinite(b.out[3 * 2]) && !isfinite(b.out[69 * 2]));
        cr_assert(isfinite(b.out[2 * 2]), "rows before it do not see it");
        cr_assert(!isfinite(b.dqkv[3 * 6]) && !isfinite(b.dqkv[69 * 6]));
        buffers_free(&b);
    }
}

static td_attention_shape rotary_shapes[] = {
    {.samples = 0, .seq = 4, .heads = 1, .kv_heads = 1, .head_dim = 2},
    {.samples = 2, .seq = 5, .heads = 3, .kv_heads = 1, .head_dim = 6},
    {.samples = 1, .seq = 300, .heads = 1, .kv_heads = 1, .head_dim = 8},
    {.samples = 2, .seq = 3, .heads = 2, .kv_heads = 2, .head_dim = 202},
};

ParameterizedTestParameters(attention, rotary_turns_pairs_by_position_and_leaves_values)
{
    return cr_make_param_array(td_attention_shape, rotary_shapes,
                               sizeof rotary_shapes / sizeof *rotary_shapes);
}

ParameterizedTest(td_attention_shape *s, attention,
                  rotary_turns_pairs_by_position_and_leaves_values)
{
    buffers before = buffers_new(s), b = buffers_new(s);
    const int64_t width = width_of(s), d = s->head_dim, half = d / 2;
    k->rotary(NULL, b.qkv, s, false);
    for (int64_t i = 0; i < b.n_qkv; i++) {
        const int64_t row = i / width, block = i % width / d, j = i % d;
        const double position = (double)(row % s->seq);
        const double angle = position * pow(10000, -2.0 * (double)(j % half) / (double)d);
        const double other =
            j < half ? -(double)before.qkv[i + half] : (double)before.qkv[i - half];
        const double want = block < s->heads + s->kv_heads
                                ? (double)before.qkv[i] * cos(angle) + other * sin(angle)
                                : (double)before.qkv[i];
        cr_assert_float_eq((double)b.qkv[i], want, 5e-7, "element %lld", (long long)i);
    }
    k->rotary(NULL, b.qkv, s, true);
    for (int64_t i = 0; i < b.n_qkv; i++)
        cr_assert_float_eq(b.qkv[i], before.qkv[i], 1e-6F, "turned back, element %lld",
                           (long long)i);
    buffers_free(&before);
    buffers_free(&b);
}
