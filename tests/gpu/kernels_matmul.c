/* Tables of products and attention, and the kernels of a GPU as a table like the processor's. */
#include "exec/host_kernels.h"
#include "tests/gpu/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- td_kernels of the GPU ---- */

static void linear(void *dev, const act *x, const act *w, const act *bias, act *y, int64_t rows,
                   int64_t n, int64_t k)
{
    td_gpu *gpu = dev;
    td_cuda_matmul_run(gpu->matmul, TD_PASS_FORWARD, x, w, bias, y, rows, n, k, &gpu->err);
}

static void linear_dgrad(void *dev, const act *dy, const act *w, act *dx, int64_t rows, int64_t n,
                         int64_t k)
{
    td_gpu *gpu = dev;
    td_cuda_matmul_run(gpu->matmul, TD_PASS_DGRAD, dy, w, NULL, dx, rows, n, k, &gpu->err);
}

static void linear_wgrad(void *dev, const act *dy, const act *x, float *dw, float *db, int64_t rows,
                         int64_t n, int64_t k)
{
    td_gpu *gpu = dev;
    td_cuda_matmul_run(gpu->matmul, TD_PASS_WGRAD, dy, x, NULL, dw, rows, n, k, &gpu->err);
    if (db != NULL)
        td_cuda_bias_gradient(dev, dy, db, rows, n);
}

static void attention_backward(void *dev, const act *dout, const act *qkv, const act *out,
                               const float *lse, act *dqkv, const td_attention_shape *s)
{
    td_gpu *gpu = dev;
    const size_t needs = td_cuda_attention_workspace(s);
    if (needs > gpu->queue.workspace_bytes)
        td_fail(&gpu->err, TD_RUN, "wants %zu bytes of workspace, %zu are there", needs,
                gpu->queue.workspace_bytes);
    else
        td_cuda_attention_backward(dev, dout, qkv, out, lse, dqkv, s);
}

static void attention_cudnn(void *dev, const act *qkv, act *out, float *lse,
                            const td_attention_shape *s)
{
    td_gpu *gpu = dev;
    td_cuda_attention_forward(gpu->attention, qkv, out, lse, s, &gpu->err);
}

static void attention_backward_cudnn(void *dev, const act *dout, const act *qkv, const act *out,
                                     const float *lse, act *dqkv, const td_attention_shape *s)
{
    td_gpu *gpu = dev;
    td_cuda_attention_gradient(gpu->attention, dout, qkv, out, lse, dqkv, s, &gpu->err);
}

const td_kernels td_gpu_kernels = {
    .linear = linear,
    .linear_dgrad = linear_dgrad,
    .linear_wgrad = linear_wgrad,
    .norm = td_cuda_norm,
    .norm_backward = td_cuda_norm_backward,
    .add = td_cuda_add,
    .add_rows = td_cuda_add_rows,
    .add_rows_backward = td_cuda_add_rows_backward,
    .rotary = td_cuda_rotary,
    .attention = td_cuda_attention,
    .attention_backward = attention_backward,
    .activation = td_cuda_activation,
    .activation_backward = td_cuda_activation_backward,
    .embed = td_cuda_embed,
    .embed_backward = td_cuda_embed_backward,
    .splice = td_cuda_splice,
    .loss_max = td_cuda_loss_max,
    .loss_sum = td_cuda_loss_sum,
    .loss_value = td_cuda_loss_value,
    .loss_backward = td_cuda_loss_backward,
    .fill_normal = td_cuda_fill_normal,
    .fill = td_cuda_fill,
    .grad_stats = td_cuda_grad_stats,
    .mimo = td_cuda_mimo,
    .adam = td_cuda_adam,
    .cast = td_cuda_cast,
};

const td_kernels td_gpu_kernels_cudnn = {.attention = attention_cudnn,
                                         .attention_backward = attention_backward_cudnn};

/* ---- products: x[rows, h] and w[n, h] ---- */

/* `extra`: with a bias. */
static const td_shape product_shapes[] = {
    /* q, k and v, o, gate and up, down, head; the same of one of two tensor ranks; an encoder's */
    {.rows = 2048, .n = 12288, .h = 4096, .timed = true},
    {.rows = 2048, .n = 4096, .h = 4096, .timed = true, .only_timed = true},
    {.rows = 2048, .n = 22016, .h = 4096, .timed = true, .only_timed = true},
    {.rows = 2048, .n = 4096, .h = 11008, .timed = true},
    {.rows = 2048, .n = 32000, .h = 4096, .timed = true, .only_timed = true},
    {.rows = 2048, .n = 6144, .h = 4096, .timed = true, .only_timed = true},
    {.rows = 2048, .n = 4096, .h = 2048, .timed = true, .only_timed = true},
    {.rows = 2048, .n = 11008, .h = 4096, .timed = true, .only_timed = true},
    {.rows = 2048, .n = 4096, .h = 5504, .timed = true, .only_timed = true},
    {.rows = 2048, .n = 16000, .h = 4096, .timed = true, .only_timed = true},
    {.rows = 576, .n = 3072, .h = 1024, .extra = true, .timed = true},
    {.rows = 576, .n = 4096, .h = 1024, .extra = true, .timed = true},
    {.rows = 576, .n = 1024, .h = 4096, .extra = true, .timed = true},
    {.rows = 576, .n = 1024, .h = 588, .extra = true, .timed = true},
    {.rows = 2048, .n = 32000, .h = 320},
    {.rows = 1, .n = 4096, .h = 1024},
    {.rows = 17, .n = 588, .h = 1024, .extra = true},
    {.rows = 17, .n = 588, .h = 1024, .extra = true, .shifted = true},
    {.rows = 128, .n = 256, .h = 64, .shifted = true},
    {.rows = 13, .n = 33, .h = 7, .extra = true},
    {.rows = 67, .n = 1, .h = 130, .extra = true},
    {.rows = 70, .n = 5, .h = 1},
    {.rows = 1, .n = 1, .h = 1, .extra = true},
};

enum { SAMPLES = 16 };

/* Beyond this a reference of every element takes longer than everything else. */
static bool is_small(const td_shape *s)
{
    return (double)s->rows * (double)s->n * (double)s->h <= 1e9;
}

/* SAMPLES rows of [0, n): the first, the last and others. */
static void draw_rows(td_trial *t, int64_t n, int64_t at[SAMPLES])
{
    for (int i = 0; i < SAMPLES; i++)
        at[i] = i == 0 ? 0 : i == 1 ? n - 1 : td_trial_dice(t, n);
}

static float *floats(int64_t n)
{
    float *x = calloc((size_t)n, sizeof *x);
    if (x == NULL) {
        fprintf(stderr, "test-cuda-kernels: no memory for %lld numbers\n", (long long)n);
        exit(1);
    }
    return x;
}

static void forget(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = NAN;
}

/* Sampled rows of out[rows, width], each from the same row of in[rows, depth]. */
static void sampled_rows(td_trial *t, const td_operand *in, const td_operand *out, const float *w,
                         const float *bias, bool dgrad)
{
    int64_t at[SAMPLES];
    float *from = floats(SAMPLES * in->width), *to = floats(SAMPLES * out->width);
    draw_rows(t, in->rows, at);
    for (int i = 0; i < SAMPLES; i++)
        memcpy(from + i * in->width, (const float *)in->first + at[i] * in->width,
               (size_t)in->width * sizeof *from);
    if (dgrad)
        td_host_kernels.linear_dgrad(NULL, from, w, to, SAMPLES, in->width, out->width);
    else
        td_host_kernels.linear(NULL, from, w, bias, to, SAMPLES, out->width, in->width);
    forget(out->want, out->rows * out->width);
    for (int i = 0; i < SAMPLES; i++)
        memcpy((float *)out->want + at[i] * out->width, to + i * out->width,
               (size_t)out->width * sizeof *to);
    free(from);
    free(to);
}

enum { LINEAR_X, LINEAR_W, LINEAR_BIAS, LINEAR_Y };

static void linear_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_IN, TD_OF_ACT, "x", s->rows, s->h, 1);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "w", s->n, s->h, 1);
    if (s->extra)
        td_trial_operand(t, TD_IN, TD_OF_ACT, "bias", 1, s->n, 1);
    else
        td_trial_absent(t);
    td_trial_operand(t, TD_OUT, TD_OF_ACT, "y", s->rows, s->n, 0);
    t->flops = 2.0 * (double)s->rows * (double)s->n * (double)s->h;
}

static void linear_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->linear(dev, p[LINEAR_X], p[LINEAR_W], p[LINEAR_BIAS], p[LINEAR_Y], s->rows, s->n, s->h);
}

static void linear_reference(td_trial *t, const td_shape *s)
{
    const td_operand *o = t->operand;
    if (is_small(s))
        td_host_kernels.linear(NULL, o[LINEAR_X].first, o[LINEAR_W].first, o[LINEAR_BIAS].first,
                               o[LINEAR_Y].want, s->rows, s->n, s->h);
    else
        sampled_rows(t, &o[LINEAR_X], &o[LINEAR_Y], o[LINEAR_W].first, o[LINEAR_BIAS].first, false);
}

enum { DGRAD_DY, DGRAD_W, DGRAD_DX };

static void linear_dgrad_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dy", s->rows, s->n, 1);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "w", s->n, s->h, 1);
    td_trial_operand(t, TD_OUT, TD_OF_ACT, "dx", s->rows, s->h, 0);
    t->flops = 2.0 * (double)s->rows * (double)s->n * (double)s->h;
}

static void linear_dgrad_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->linear_dgrad(dev, p[DGRAD_DY], p[DGRAD_W], p[DGRAD_DX], s->rows, s->n, s->h);
}

static void linear_dgrad_reference(td_trial *t, const td_shape *s)
{
    const td_operand *o = t->operand;
    if (is_small(s))
        td_host_kernels.linear_dgrad(NULL, o[DGRAD_DY].first, o[DGRAD_W].first, o[DGRAD_DX].want,
                                     s->rows, s->n, s->h);
    else
        sampled_rows(t, &o[DGRAD_DY], &o[DGRAD_DX], o[DGRAD_W].first, NULL, true);
}

enum { WGRAD_DY, WGRAD_X, WGRAD_DW, WGRAD_DB };

static void linear_wgrad_operands(td_trial *t, const td_shape *s)
{
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dy", s->rows, s->n, 1);
    td_trial_operand(t, TD_IN, TD_OF_ACT, "x", s->rows, s->h, 1);
    td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "dw", s->n, s->h, 10);
    if (s->extra)
        td_trial_operand(t, TD_INOUT, TD_OF_FLOAT, "db", 1, s->n, 10);
    else
        td_trial_absent(t);
    t->flops = 2.0 * (double)s->rows * (double)s->n * (double)s->h;
}

static void linear_wgrad_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->linear_wgrad(dev, p[WGRAD_DY], p[WGRAD_X], p[WGRAD_DW], p[WGRAD_DB], s->rows, s->n, s->h);
}

/* A row of dw is what a column of dy makes of x. */
static void linear_wgrad_reference(td_trial *t, const td_shape *s)
{
    const td_operand *o = t->operand;
    const float *dy = o[WGRAD_DY].first, *dw = o[WGRAD_DW].first, *db = o[WGRAD_DB].first;
    float *want = o[WGRAD_DW].want, *want_db = o[WGRAD_DB].want;
    int64_t at[SAMPLES];
    if (is_small(s)) {
        td_host_kernels.linear_wgrad(NULL, dy, o[WGRAD_X].first, want, want_db, s->rows, s->n,
                                     s->h);
        return;
    }
    float *columns = floats(s->rows * SAMPLES), *to = floats(SAMPLES * s->h),
          *sums = floats(SAMPLES);
    draw_rows(t, s->n, at);
    for (int i = 0; i < SAMPLES; i++) {
        for (int64_t row = 0; row < s->rows; row++)
            columns[row * SAMPLES + i] = dy[row * s->n + at[i]];
        memcpy(to + i * s->h, dw + at[i] * s->h, (size_t)s->h * sizeof *to);
        sums[i] = db != NULL ? db[at[i]] : 0;
    }
    td_host_kernels.linear_wgrad(NULL, columns, o[WGRAD_X].first, to, sums, s->rows, SAMPLES, s->h);
    forget(want, s->n * s->h);
    if (db != NULL)
        forget(want_db, s->n);
    for (int i = 0; i < SAMPLES; i++) {
        memcpy(want + at[i] * s->h, to + i * s->h, (size_t)s->h * sizeof *to);
        if (db != NULL)
            want_db[at[i]] = sums[i];
    }
    free(columns);
    free(to);
    free(sums);
}

/* ---- attention ---- */

/* `variant` 1: scores that are far apart. */
static const td_shape attention_shapes[] = {
    {.s = {1, 2048, 32, 32, 128, true}, .timed = true, .only_timed = true},
    {.s = {1, 2048, 16, 16, 128, true}, .timed = true, .only_timed = true}, /* tp 2 */
    {.s = {1, 2048, 4, 4, 128, true}},
    {.s = {1, 576, 16, 16, 64, false}, .timed = true},
    {.s = {2, 1000, 4, 1, 128, true}},
    {.s = {2, 333, 6, 2, 80, false}},
    {.s = {1, 300, 4, 4, 64, true}, .variant = 1},
    {.s = {1, 128, 8, 2, 128, false}, .variant = 1},
    {.s = {3, 48, 8, 8, 8, true}},
    {.s = {3, 16, 4, 4, 12, false}},
    {.s = {2, 17, 6, 3, 24, true}},
    {.s = {2, 17, 6, 3, 24, false}},
    {.s = {1, 129, 2, 1, 80, true}},
    {.s = {1, 65, 1, 1, 33, true}},
    {.s = {1, 1, 4, 2, 64, true}},
    {.s = {2, 1, 1, 1, 8, false}},
    {.s = {1, 200, 2, 2, 256, true}},
};

static double attention_flops(const td_attention_shape *s)
{
    return 4.0 * s->samples * s->heads * (double)s->seq * s->seq * s->head_dim /
           (s->causal ? 2 : 1);
}

static int64_t rows_of(const td_attention_shape *s)
{
    return (int64_t)s->samples * s->seq;
}

static int64_t width_of(const td_attention_shape *s)
{
    return (s->heads + 2 * (int64_t)s->kv_heads) * s->head_dim;
}

static td_operand *qkv_operand(td_trial *t, td_role role, const char *name, const td_shape *s)
{
    /* Variance 1, so that scores have it as well; or 5 on either side. */
    td_operand *o = td_trial_operand(t, role, TD_OF_ACT, name, rows_of(&s->s), width_of(&s->s),
                                     s->variant == 1 ? 4 : 1.7);
    o->ends[0] = s->s.heads * s->s.head_dim;
    o->ends[1] = o->ends[0] + s->s.kv_heads * s->s.head_dim;
    o->ends[2] = (int32_t)width_of(&s->s);
    if (t->bf16)
        o->tolerance = 1e-2;
    return o;
}

static void attention_operands(td_trial *t, const td_shape *s)
{
    qkv_operand(t, TD_IN, "qkv", s);
    td_operand *out = td_trial_operand(t, TD_OUT, TD_OF_ACT, "out", rows_of(&s->s),
                                       (int64_t)s->s.heads * s->s.head_dim, 0);
    td_operand *lse =
        td_trial_operand(t, TD_OUT, TD_OF_FLOAT, "lse", s->s.heads, rows_of(&s->s), 0);
    if (t->bf16) {
        out->tolerance = 1e-2;
        lse->tolerance = 1e-3;
    }
    t->flops = attention_flops(&s->s);
}

static void attention_call(const td_kernels *k, void *dev, void *const p[], const td_shape *s)
{
    k->attention(dev, p[0], p[1], p[2], &s->s);
}

static void attention_backward_operands(td_trial *t, const td_shape *s)
{
    const int64_t width = (int64_t)s->s.heads * s->s.head_dim;
    td_trial_operand(t, TD_IN, TD_OF_ACT, "dout", rows_of(&s->s), width, 1.7);
    const td_operand *qkv = qkv_operand(t, TD_IN, "qkv", s);
    td_operand *out = td_trial_operand(t, TD_IN, TD_OF_ACT, "out", rows_of(&s->s), width, 0.1);
    td_operand *lse = td_trial_operand(t, TD_IN, TD_OF_FLOAT, "lse", s->s.heads, rows_of(&s->s), 1);
    if (s->only_timed) { /* about right is as fast as right */
        td_trial_offset(t, lse, log(s->s.seq));
    } else {
        td_host_kernels.attention(NULL, qkv->first, out->first, lse->first, &s->s);
        td_trial_round(t, out->first, rows_of(&s->s) * width);
    }
    td_operand *dqkv = qkv_operand(t, TD_OUT, "dqkv", s);
    if (s->s.seq == 1) { /* one score does not matter: queries' and keys' gradients are 0 */
        dqkv->ends[0] = (int32_t)width_of(&s->s);
        dqkv->ends[1] = dqkv->ends[2] = 0;
    }
    t->flops = 2.5 * attention_flops(&s->s); /* five products instead of two */
}

static void attention_backward_call(const td_kernels *k, void *dev, void *const p[],
                                    const td_shape *s)
{
    k->attention_backward(dev, p[0], p[1], p[2], p[3], p[4], &s->s);
}

static bool cudnn_can(td_gpu *gpu, const td_shape *s, const char **why)
{
    *why = !gpu->queue.bf16 ? "bf16 only" : "no usable cuDNN";
    return gpu->queue.bf16 && gpu->attention != NULL &&
           td_cuda_attention_has(gpu->attention, &s->s, why);
}

#define PRODUCT(k)                                                                                 \
    {                                                                                              \
        .name = #k, .table = &td_gpu_kernels, .operands = k##_operands, .call = k##_call,          \
        .reference = k##_reference, TD_SHAPES(product_shapes), .sampled = true                     \
    }
#define ATTENTION(k)                                                                               \
    {                                                                                              \
        .name = #k, .table = &td_gpu_kernels, .operands = k##_operands, .call = k##_call,          \
        TD_SHAPES(attention_shapes)                                                                \
    }
/* cuDNN does not promise that a backward repeats itself. */
#define ATTENTION_CUDNN(k, any_order)                                                              \
    {                                                                                              \
        .name = #k "_cudnn", .table = &td_gpu_kernels_cudnn, .operands = k##_operands,             \
        .call = k##_call, .can = cudnn_can, TD_SHAPES(attention_shapes), .unordered = any_order    \
    }

const td_kernel_row td_matmul_kernels[] = {
    PRODUCT(linear),
    PRODUCT(linear_dgrad),
    PRODUCT(linear_wgrad),
    ATTENTION(attention),
    ATTENTION(attention_backward),
    ATTENTION_CUDNN(attention, false),
    ATTENTION_CUDNN(attention_backward, true),
    {0},
};
