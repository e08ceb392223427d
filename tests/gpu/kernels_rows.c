/* Tables of the kernels that pass over rows of activations, and of the loss. */
#include "exec/host_kernels.h"
#include "tests/gpu/kernels.h"

#include <math.h>
#include <stddef.h>

/* ---- norms ---- */

enum { NORM_X, NORM_DELTA, NORM_SUM, NORM_W, NORM_B, NORM_Y, NORM_STATS };

/* `extra`: with delta. */
static const td_shape norm_shapes[] = {
    {.rows = 2048, .h = 4096, .rms = true, .extra = true, .timed = true},
    {.rows = 2048, .h = 4096, .rms = true},
    {.rows = 576, .h = 1024, .extra = true, .timed = true},
    {.rows = 576, .h = 1024},
    {.rows = 1, .h = 4096, .rms = true, .extra = true},
    {.rows = 1, .h = 588},
    {.rows = 17, .h = 588, .rms = true, .extra = true},
    {.rows = 17, .h = 588, .extra = true, .shifted = true},
    {.rows = 17, .h = 16384, .rms = true, .extra = true},
    {.rows = 5, .h = 16384},
    {.rows = 133, .h = 1280, .rms = true},
    {.rows = 31, .h = 33, .extra = true},
    {.rows = 9, .h = 12, .rms = true, .extra = true},
    {.rows = 7, .h = 1, .rms = true},
    {.rows = 7, .h = 1, .extra = true},
};

/* Rows of one element are so small that epsilon counts: else RMSNorm knows only their sign, and
 * what its gradient is made of cancels. */
static double norm_scale(const td_shape *s)
{
    return s->h < 8 ? 3e-3 : 1.5;
}

static void norm_operands(td_trial *t, const td_shape *s)
{
    const double scale = norm_scale(s);
    td_operand *x = td_trial_operand(t, TD_IN, TD_OF_ACT, "x", s->rows, s->h, scale);
    td_trial_offset(t, x, scale / 4);
    if (s->extra)
        td_trial_operand(t, TD_IN, TD_OF_ACT, "delta", s->rows, s->h, scale);
    else
        td_trial_absent(t);
    td_operand *sum =
        td_trial_operand(t, s->extra ? TD_OUT : TD_INOUT, TD_OF_ACT, "sum", s->rows, s->h, scale);
    if (!s->extra) { /* must stay as it was */
        sum->tolerance = 0;
        sum->touched = 0;
    }
    td_trial_operand(t, TD_IN, TD_OF_ACT, "w", 1, s->h, 1);
    if (s->rms)
        td_trial_absent(t);
    else
        td_trial_operand(t, TD_IN, TD_OF_ACT, "b", 1, s->h, 1);
    td_trial_operand(t, TD_OUT, TD_OF_ACT, "y", s->rows, s->h, 0);
    td_operand *stats =
        td_trial_operand(t, TD_OUT, TD_OF_FLOAT, "stats", s->rows, s->rms ? 1 : 2, 0);
    stats->ends[0] = 1;
    stats->ends[1] = s->rms ? 0 : 2;
    stats->tolerance = s->extra && t->bf16 ? 3e-3 : 1e-5; /* of the sum, rounded or not yet */
}

static void norm_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->norm(dev, p[NORM_X], p[NORM_DELTA], p[NORM_SUM], p[NORM_W], p[NORM_B], p[NORM_Y],
            p[NORM_STATS], s->rows, s->h);
}

enum { NB_DY, NB_SUM, NB_W, NB_STATS, NB_RESIDUAL, NB_DX, NB_DW, NB_DB };

/* `extra`: with a residual. */
static const td_shape norm_backward_shapes[] = {
    {.rows = 2048, .h = 4096, .rms = true, .extra = true, .timed = true},
    {.rows = 2048, .h = 4096, .rms = true, .extra = true, .frozen = true},
    {.rows = 576, .h = 1024, .extra = true, .timed = true},
    {.rows = 576, .h = 1024},
    {.rows = 4096, .h = 4096, .rms = true, .extra = true, .timed = true, .only_timed = true},
    {.rows = 4096, .h = 1024, .extra = true, .timed = true, .only_timed = true},
    {.rows = 1, .h = 4096, .rms = true},
    {.rows = 1, .h = 588, .extra = true},
    {.rows = 2500, .h = 264, .extra = true}, /* as many rows at once as a block has barriers */
    {.rows = 999, .h = 8, .rms = true, .extra = true},
    {.rows = 140, .h = 5120, .rms = true},
    {.rows = 271, .h = 8192, .extra = true},
    {.rows = 400, .h = 8200, .rms = true, .extra = true}, /* two vectors of a thread, some none */
    {.rows = 17, .h = 588, .rms = true, .extra = true},
    {.rows = 17, .h = 588, .extra = true, .shifted = true},
    {.rows = 17, .h = 588, .frozen = true},
    {.rows = 19, .h = 16384, .rms = true, .extra = true},
    {.rows = 1000, .h = 1280},
    {.rows = 5000, .h = 33, .extra = true},
    {.rows = 9, .h = 12, .rms = true},
    {.rows = 7, .h = 1, .rms = true, .extra = true},
    {.rows = 7, .h = 1},
};

/* What the forward keeps of the rows of x. */
static void fill_stats(const float *x, float *stats, const td_shape *s)
{
    for (int64_t row = 0; row < s->rows; row++, x += s->h) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < s->h && !s->rms; i++)
            mean += (double)x[i] / (double)s->h;
        for (int64_t i = 0; i < s->h; i++)
            square += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)s->h;
        if (!s->rms)
            *stats++ = (float)mean;
        *stats++ = (float)(1 / sqrt(square + 1e-5));
    }
}

static void norm_backward_operands(td_trial *t, const td_shape *s)
{
    const double scale = norm_scale(s);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dy", s->rows, s->h, 1);
    td_operand *x = td_trial_operand(t, TD_IN, TD_OF_ACT, "sum", s->rows, s->h, scale);
    td_trial_offset(t, x, scale / 4);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "w", 1, s->h, 1);
    td_operand *stats =
        td_trial_operand(t, TD_IN, TD_OF_FLOAT, "stats", s->rows, s->rms ? 1 : 2, 1);
    fill_stats(x->first, stats->first, s);
    if (s->extra)
        td_trial_operand(t, TD_IN, TD_OF_ACT, "residual", s->rows, s->h, 1);
    else
        td_trial_absent(t);
    td_operand *dx = td_trial_operand(t, TD_OUT, TD_OF_ACT, "dx", s->rows, s->h, 0);
    dx->floor = s->h < 8 ? 100 : 0; /* 1 / sigma times a gradient, of which nothing may be left */
    for (int i = 0; i < 2; i++)
        if (s->frozen || (i == 1 && s->rms))
            td_trial_absent(t);
        else
            td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, i == 0 ? "dw" : "db", 1, s->h, 1);
}

static void norm_backward_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->norm_backward(dev, p[NB_DY], p[NB_SUM], p[NB_W], p[NB_STATS], p[NB_RESIDUAL], p[NB_DX],
                     p[NB_DW], p[NB_DB], s->rows, s->h, s->rms);
}

/* ---- sums and rows ---- */

/* `extra`: in place. */
static const td_shape add_shapes[] = {
    {.n = 2048 * 4096, .timed = true},
    {.n = 576 * 1024, .extra = true},
    {.n = 1},
    {.n = 17},
    {.n = 1023, .shifted = true},
    {.n = 588 * 17 + 3, .extra = true, .shifted = true},
};

static void add_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, s->extra ? TD_INOUT : TD_IN, TD_OF_ACT, "a", 1, s->n, 1);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "b", 1, s->n, 1);
    if (s->extra)
        td_trial_absent(t);
    else
        td_trial_operand(t, TD_OUT, TD_OF_ACT, "y", 1, s->n, 1);
}

static void add_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->add(dev, p[0], p[1], s->extra ? p[0] : p[2], s->n);
}

static const td_shape add_rows_shapes[] = {
    {.rows = 576, .h = 1024, .seq = 576, .timed = true},
    {.rows = 2304, .h = 1024, .seq = 576},
    {.rows = 17, .h = 588, .seq = 17, .first = 5},
    {.rows = 17, .h = 33, .seq = 4, .first = 2},
    {.rows = 11, .h = 33, .seq = 4, .shifted = true},
    {.rows = 1, .h = 1024, .seq = 576, .first = 575},
    {.rows = 5, .h = 588, .seq = 17, .first = 40},
    {.rows = 9, .h = 1, .seq = 2},
};

static void add_rows_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_INOUT, TD_OF_ACT, "y", s->rows, s->h, 1);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "table", s->seq, s->h, 1);
}

static void add_rows_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->add_rows(dev, p[0], p[1], s->rows, s->seq, s->h, s->first);
}

static void add_rows_backward_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dy", s->rows, s->h, 1);
    td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "dtable", s->seq, s->h, 1);
}

static void add_rows_backward_call(const td_kernels *k, void *dev, void *const p[],
                                   const td_shape *s)
{
    k->add_rows_backward(dev, p[0], p[1], s->rows, s->seq, s->h, s->first);
}

/* ---- biases ---- */

static const td_shape bias_shapes[] = {
    {.rows = 576, .n = 4096, .timed = true},
    {.rows = 2048, .n = 4096},
    {.rows = 1, .n = 588},
    {.rows = 17, .n = 33},
    {.rows = 3000, .n = 1},
    {.rows = 300, .n = 1030},
    {.rows = 65, .n = 588, .shifted = true},
};

static void bias_gradient_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dy", s->rows, s->n, 1);
    td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "db", 1, s->n, 1);
}

static void bias_gradient_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    (void)k;
    td_cuda_bias_gradient(dev, p[0], p[1], s->rows, s->n);
}

static void bias_gradient_reference(td_trial *t, const td_shape *s)
{
    const float *dy = t->operand[0].want;
    float *db = t->operand[1].want;
    for (int64_t i = 0; i < s->n; i++) {
        double sum = (double)db[i];
        for (int64_t row = 0; row < s->rows; row++)
            sum += (double)dy[row * s->n + i];
        db[i] = (float)sum;
    }
}

static void add_bias_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_INOUT, TD_OF_ACT, "y", s->rows, s->n, 1);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "bias", 1, s->n, 1);
}

static void add_bias_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    (void)k;
    td_cuda_add_bias(dev, p[0], p[1], s->rows, s->n);
}

static void add_bias_reference(td_trial *t, const td_shape *s)
{
    float *y = t->operand[0].want;
    const float *bias = t->operand[1].want;
    for (int64_t i = 0; i < s->rows * s->n; i++)
        y[i] += bias[i % s->n];
}

/* ---- rotary embedding ---- */

static const td_shape rotary_shapes[] = {
    {.s = {.samples = 1, .seq = 2048, .heads = 32, .kv_heads = 32, .head_dim = 128}, .timed = true},
    {.s = {.samples = 1, .seq = 2048, .heads = 8, .kv_heads = 2, .head_dim = 128}, .back = true},
    {.s = {.samples = 2, .seq = 17, .heads = 6, .kv_heads = 2, .head_dim = 24}},
    {.s = {.samples = 3, .seq = 5, .heads = 3, .kv_heads = 1, .head_dim = 6}, .back = true},
    {.s = {.samples = 1, .seq = 1, .heads = 1, .kv_heads = 1, .head_dim = 2}},
    {.s = {.samples = 1, .seq = 300, .heads = 4, .kv_heads = 4, .head_dim = 80}},
    {.s = {.samples = 1, .seq = 33, .heads = 2, .kv_heads = 2, .head_dim = 64}, .shifted = true},
};

static int64_t width_of(const td_attention_shape *s)
{
    return (s->heads + 2 * (int64_t)s->kv_heads) * s->head_dim;
}

static void rotary_operands(td_trial *t, const td_shape *s)
{
    const int64_t rows = (int64_t)s->s.samples * s->s.seq;
    const int32_t turned = (s->s.heads + s->s.kv_heads) * s->s.head_dim;
    td_operand *qkv = td_trial_operand(t, TD_INOUT, TD_OF_ACT, "qkv", rows, width_of(&s->s), 2);
    qkv->ends[0] = turned;
    qkv->ends[1] = (int32_t)width_of(&s->s);
    qkv->touched = rows * turned;
}

static void rotary_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->rotary(dev, p[0], &s->s, s->back);
}

/* ---- activations ---- */

static const td_shape activation_shapes[] = {
    {.rows = 2048, .h = 11008, .gated = true, .timed = true},
    {.rows = 576, .h = 4096, .timed = true},
    {.rows = 1, .h = 588, .gated = true},
    {.rows = 17, .h = 588},
    {.rows = 17, .h = 588, .gated = true, .shifted = true},
    {.rows = 5, .h = 33, .gated = true},
    {.rows = 5, .h = 33, .shifted = true},
    {.rows = 3, .h = 1, .gated = true},
    {.rows = 1, .h = 1},
};

static void activation_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_IN, TD_OF_ACT, "x", s->rows, (s->gated ? 2 : 1) * s->h, 6);
    td_trial_operand(t, TD_OUT, TD_OF_ACT, "y", s->rows, s->h, 0);
}

static void activation_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->activation(dev, p[0], p[1], s->rows, s->h, s->gated);
}

static void activation_backward_operands(td_trial *t, const td_shape *s)
{
    const int64_t width = (s->gated ? 2 : 1) * s->h;
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dy", s->rows, s->h, 1);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "x", s->rows, width, 6);
    td_operand *dx = td_trial_operand(t, TD_OUT, TD_OF_ACT, "dx", s->rows, width, 0);
    dx->ends[0] = (int32_t)s->h;
    dx->ends[1] = s->gated ? (int32_t)width : 0;
}

static void activation_backward_call(const td_kernels *k, void *dev, void *const p[],
                                     const td_shape *s)
{
    k->activation_backward(dev, p[0], p[1], p[2], s->rows, s->h, s->gated);
}

/* ---- tokens ---- */

static const td_shape embed_shapes[] = {
    {.rows = 2048, .h = 4096, .n = 32000, .timed = true, .only_timed = true},
    {.rows = 2048, .h = 1024, .n = 32000},
    {.rows = 2048, .h = 4096, .n = 4000, .first = 28000},
    {.rows = 2048, .h = 64, .n = 33}, /* many tokens a row of the table */
    {.rows = 17, .h = 588, .n = 33, .first = 11},
    {.rows = 1, .h = 33, .n = 5},
    {.rows = 40, .h = 33, .n = 7, .shifted = true},
    {.rows = 9, .h = 1, .n = 3, .first = 3},
};

/* Placeholders, and tokens before and beyond what this rank holds. */
static void draw_tokens(td_trial *t, const td_shape *s, td_operand *o)
{
    int32_t *token = o->first;
    for (int64_t i = 0; i < s->rows; i++)
        token[i] = td_trial_dice(t, 8) == 0 ? -1 : (int32_t)td_trial_dice(t, s->first + s->n + 3);
}

static void embed_operands(td_trial *t, const td_shape *s)
{
    draw_tokens(t, s, td_trial_operand(t, TD_IN, TD_OF_INT, "tokens", s->rows, 1, 0));
    td_trial_operand(t, TD_IN, TD_OF_ACT, "w", s->n, s->h, 1)->touched = s->rows * s->h;
    td_trial_operand(t, TD_OUT, TD_OF_ACT, "y", s->rows, s->h, 0)->tolerance = 0;
}

static void embed_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->embed(dev, p[0], p[1], p[2], s->rows, s->h, s->first, s->n);
}

static void embed_backward_operands(td_trial *t, const td_shape *s)
{
    draw_tokens(t, s, td_trial_operand(t, TD_IN, TD_OF_INT, "tokens", s->rows, 1, 0));
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dy", s->rows, s->h, 1);
    td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "dw", s->n, s->h, 1)->touched = s->rows * s->h;
}

static void embed_backward_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->embed_backward(dev, p[0], p[1], p[2], s->rows, s->h, s->first, s->n);
}

/* ---- rows of encoders ---- */

enum { SPLICE_REGION, SPLICE_ONE, SPLICE_TWO };

/* Two encoders: `n` rows from the begin of a sample, half as many at its end. `back`: out of the
 * region. `first` is the region's first row; of what is outside of it nothing may change. */
static const td_shape splice_shapes[] = {
    {.rows = 2048, .h = 4096, .seq = 2048, .n = 576, .timed = true},
    {.rows = 2048, .h = 4096, .seq = 2048, .n = 576, .back = true, .timed = true},
    {.rows = 96, .h = 588, .seq = 48, .n = 17},
    {.rows = 96, .h = 588, .seq = 48, .n = 17, .back = true, .shifted = true},
    {.rows = 50, .h = 64, .seq = 48, .n = 17, .first = 30},
    {.rows = 7, .h = 33, .seq = 48, .n = 30, .first = 46, .back = true},
    {.rows = 41, .h = 1, .seq = 5, .n = 2, .first = 3},
    {.rows = 1, .h = 16384, .seq = 3, .n = 2, .first = 4},
};

static int64_t spliced_samples(const td_shape *s)
{
    return (s->first + s->rows + s->seq - 1) / s->seq;
}

static void splice_operands(td_trial *t, const td_shape *s)
{
    const int64_t parts[2] = {s->n, s->n / 2}, samples = spliced_samples(s);
    static const char *const names[2] = {"one", "two"};
    int64_t moved = 0;
    for (int64_t row = s->first; row < s->first + s->rows; row++)
        moved += row % s->seq < parts[0] || row % s->seq >= s->seq - parts[1];
    td_operand *region =
        td_trial_operand(t, s->back ? TD_IN : TD_INOUT, TD_OF_ACT, "region", s->rows, s->h, 1);
    region->tolerance = 0;
    region->touched = s->back ? moved * s->h : moved * s->h / 2; /* of INOUT, written only */
    for (int k = 0; k < 2; k++) {
        td_operand *o = td_trial_operand(t, s->back ? TD_INOUT : TD_IN, TD_OF_ACT, names[k],
                                         samples * parts[k], s->h, 1);
        const int64_t share = moved * s->h * parts[k] / (parts[0] + parts[1]);
        o->tolerance = 0;
        o->touched = s->back ? share / 2 : share;
    }
}

static void splice_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    const td_splices all = {
        .first_row = s->first,
        .rows = s->rows,
        .seq = s->seq,
        .h = s->h,
        .n = 2,
        .of = {{p[SPLICE_ONE], 0, s->n}, {p[SPLICE_TWO], s->seq - s->n / 2, s->n / 2}}};
    k->splice(dev, p[SPLICE_REGION], &all, !s->back);
}

/* ---- loss ---- */

/* `variant` 1: every logit is negative. */
static const td_shape loss_shapes[] = {
    {.rows = 2048, .n = 32000, .timed = true},
    {.rows = 300, .n = 16000, .first = 16000},
    {.rows = 1, .n = 32000, .variant = 1},
    {.rows = 17, .n = 33, .first = 11, .variant = 1},
    {.rows = 17, .n = 33, .shifted = true},
    {.rows = 9, .n = 588},
    {.rows = 5, .n = 1},
};

static td_operand *logits(td_trial *t, td_role role, const td_shape *s)
{
    td_operand *o = td_trial_operand(t, role, TD_OF_ACT, "logits", s->rows, s->n, 8);
    if (s->variant == 1)
        td_trial_offset(t, o, -30);
    return o;
}

/* Maxima over all ranks: some of them on another. */
static td_operand *maxima(td_trial *t, const td_shape *s, const td_operand *x)
{
    td_operand *o = td_trial_operand(t, TD_IN, TD_OF_FLOAT, "stats", s->rows, 1, 1);
    float *max = o->first;
    td_host_kernels.loss_max(NULL, x->first, max, s->rows, s->n);
    for (int64_t i = 0; s->first > 0 && i < s->rows; i += 2)
        max[i] += 0.5F;
    return o;
}

static void loss_max_operands(td_trial *t, const td_shape *s)
{
    logits(t, TD_IN, s);
    td_trial_operand(t, TD_OUT, TD_OF_FLOAT, "stats", s->rows, 1, 0)->tolerance = 0;
}

static void loss_max_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->loss_max(dev, p[0], p[1], s->rows, s->n);
}

static void loss_sum_operands(td_trial *t, const td_shape *s)
{
    td_operand *x = logits(t, TD_IN, s);
    draw_tokens(t, s, td_trial_operand(t, TD_IN, TD_OF_INT, "target", s->rows, 1, 0));
    maxima(t, s, x);
    td_operand *sums = td_trial_operand(t, TD_OUT, TD_OF_FLOAT, "sums", s->rows, 2, 0);
    sums->ends[0] = 1;
    sums->ends[1] = 2;
}

static void loss_sum_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->loss_sum(dev, p[0], p[1], p[2], p[3], s->rows, s->n, s->first);
}

static void loss_value_operands(td_trial *t, const td_shape *s)
{
    draw_tokens(t, s, td_trial_operand(t, TD_IN, TD_OF_INT, "target", s->rows, 1, 0));
    td_operand *sums = td_trial_operand(t, TD_IN, TD_OF_FLOAT, "sums", s->rows, 2, 10);
    float *x = sums->first;
    for (int64_t i = 0; i < 2 * s->rows; i += 2)
        x[i] = 1 + fabsf(x[i]); /* the largest of all adds 1 */
    td_operand *loss = td_trial_operand(t, TD_INOUT, TD_OF_DOUBLE, "loss", 1, 2, 1000);
    loss->ends[0] = 1;
    loss->ends[1] = 2;
    loss->tolerance = 1e-6;
}

static void loss_value_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->loss_value(dev, p[0], p[1], p[2], s->rows);
}

static void loss_backward_operands(td_trial *t, const td_shape *s)
{
    td_operand *x = logits(t, TD_INOUT, s);
    td_operand *target = td_trial_operand(t, TD_IN, TD_OF_INT, "target", s->rows, 1, 0);
    draw_tokens(t, s, target);
    td_operand *max = maxima(t, s, x);
    td_operand *sums = td_trial_operand(t, TD_IN, TD_OF_FLOAT, "sums", s->rows, 2, 1);
    td_host_kernels.loss_sum(NULL, x->first, target->first, max->first, sums->first, s->rows, s->n,
                             s->first);
    for (int64_t i = 0; s->first > 0 && i < 2 * s->rows; i += 2)
        ((float *)sums->first)[i] += 1;
}

static void loss_backward_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->loss_backward(dev, p[0], p[1], p[2], p[3], s->rows, s->n, s->first);
}

/* ---- the tables ---- */

/* A row for the kernel `k` of td_kernels, whose shapes stand in `s`_shapes. */
#define ROW(k, s)                                                                                  \
    {                                                                                              \
        .name = #k, .table = &td_gpu_kernels, .operands = k##_operands, .call = k##_call,          \
        TD_SHAPES(s##_shapes)                                                                      \
    }

const td_kernel_row td_rows_kernels[] = {
    ROW(norm, norm),
    ROW(norm_backward, norm_backward),
    ROW(add, add),
    ROW(add_rows, add_rows),
    ROW(add_rows_backward, add_rows),
    {.name = "bias_gradient",
     .table = &td_gpu_kernels,
     .operands = bias_gradient_operands,
     .call = bias_gradient_call,
     .reference = bias_gradient_reference,
     TD_SHAPES(bias_shapes)},
    {.name = "add_bias",
     .table = &td_gpu_kernels,
     .operands = add_bias_operands,
     .call = add_bias_call,
     .reference = add_bias_reference,
     TD_SHAPES(bias_shapes)},
    ROW(rotary, rotary),
    ROW(activation, activation),
    ROW(activation_backward, activation),
    ROW(embed, embed),
    ROW(embed_backward, embed),
    ROW(splice, splice),
    {0},
};

const td_kernel_row td_loss_kernels[] = {
    ROW(loss_max, loss), ROW(loss_sum, loss), ROW(loss_value, loss), ROW(loss_backward, loss), {0},
};
