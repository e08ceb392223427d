/*
 * The table of kernels on the processor, and all of it but attention.
 */
#include "exec/host_kernels.h"
#include "exec/numbers.h"
#include "exec/optimizer.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <string.h>

static const double norm_epsilon = 1e-5;

/* A long sum runs in LANES interleaved partial sums, which the compiler can keep in a vector; their
 * number fixes the order of the additions. */
enum { LANES = 8 };

/* Columns whose sums over all rows are held at a time. */
enum { COLUMNS = 64 };

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static double sum_lanes(const double s[LANES])
{
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

/* BLAS counts in int: no matrix of a rank has 2^31 rows or columns. */
static int extent(int64_t n)
{
    assert(n >= 0 && n <= INT32_MAX);
    return (int)n;
}

/* Leading dimension: BLAS wants at least 1, even where there is nothing. */
static int stride(int64_t n)
{
    return n > 0 ? extent(n) : 1;
}

/* ---- linear layers ---- */

static void linear(void *dev, const act *x, const act *w, const act *bias, act *y, int64_t rows,
                   int64_t n, int64_t k)
{
    const float *b = bias;
    float *out = y;
    (void)dev;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, extent(rows), extent(n), extent(k), 1, x,
                stride(k), w, stride(k), 0, out, stride(n));
    for (int64_t row = 0; b != NULL && row < rows; row++)
        for (int64_t i = 0; i < n; i++)
            out[row * n + i] += b[i];
}

static void linear_dgrad(void *dev, const act *dy, const act *w, act *dx, int64_t rows, int64_t n,
                         int64_t k)
{
    (void)dev;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, extent(rows), extent(k), extent(n), 1,
                dy, stride(n), w, stride(k), 0, dx, stride(k));
}

static void linear_wgrad(void *dev, const act *dy, const act *x, float *dw, float *db, int64_t rows,
                         int64_t n, int64_t k)
{
    const float *d = dy;
    (void)dev;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, extent(n), extent(k), extent(rows), 1, d,
                stride(n), x, stride(k), 1, dw, stride(k));
    for (int64_t c0 = 0; db != NULL && c0 < n; c0 += COLUMNS) {
        const int64_t n_columns = smaller(COLUMNS, n - c0);
        double sum[COLUMNS] = {0};
        for (int64_t row = 0; row < rows; row++)
            for (int64_t c = 0; c < n_columns; c++)
                sum[c] += (double)d[row * n + c0 + c];
        for (int64_t c = 0; c < n_columns; c++)
            db[c0 + c] += (float)sum[c];
    }
}

/* ---- norms ---- */

static double mean_of(const float *x, int64_t h)
{
    double s[LANES] = {0};
    for (int64_t i = 0; i + LANES <= h; i += LANES)
        for (int l = 0; l < LANES; l++)
            s[l] += (double)x[i + l];
    for (int64_t i = h - h % LANES; i < h; i++)
        s[i % LANES] += (double)x[i];
    return sum_lanes(s) / (double)h;
}

/* Mean of (x - shift)^2. */
static double mean_square(const float *x, double shift, int64_t h)
{
    double s[LANES] = {0};
    for (int64_t i = 0; i + LANES <= h; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const double v = (double)x[i + l] - shift;
            s[l] += v * v;
        }
    for (int64_t i = h - h % LANES; i < h; i++)
        s[i % LANES] += ((double)x[i] - shift) * ((double)x[i] - shift);
    return sum_lanes(s) / (double)h;
}

static void norm(void *dev, const act *x, const act *delta, act *sum, const act *w, const act *b,
                 act *y, float *stats, int64_t rows, int64_t h)
{
    const float *weight = w, *bias = b;
    (void)dev;
    for (int64_t row = 0; row < rows; row++) {
        const float *in = (const float *)x + row * h;
        float *out = (float *)y + row * h;
        if (delta != NULL) {
            const float *more = (const float *)delta + row * h;
            float *total = (float *)sum + row * h;
            for (int64_t i = 0; i < h; i++)
                total[i] = in[i] + more[i];
            in = total;
        }
        const double mean = bias != NULL ? mean_of(in, h) : 0;
        const float m = (float)mean;
        const float r = (float)(1 / sqrt(mean_square(in, mean, h) + norm_epsilon));
        if (bias != NULL) {
            stats[2 * row] = m;
            stats[2 * row + 1] = r;
            for (int64_t i = 0; i < h; i++)
                out[i] = (in[i] - m) * r * weight[i] + bias[i];
        } else {
            stats[row] = r;
            for (int64_t i = 0; i < h; i++)
                out[i] = in[i] * r * weight[i];
        }
    }
}

/* What a row was normed with: xhat = (x - mean) * r. */
typedef struct {
    float mean, r;
} row_stats;

static row_stats stats_of(const float *stats, int64_t row, bool rms)
{
    return rms ? (row_stats){0, stats[row]} : (row_stats){stats[2 * row], stats[2 * row + 1]};
}

static void norm_weight_gradients(const float *dy, const float *x, const float *stats, float *dw,
                                  float *db, int64_t rows, int64_t h, bool rms)
{
    for (int64_t c0 = 0; c0 < h; c0 += COLUMNS) {
        const int64_t n = smaller(COLUMNS, h - c0);
        double of_weight[COLUMNS] = {0}, of_bias[COLUMNS] = {0};
        for (int64_t row = 0; row < rows; row++) {
            const row_stats s = stats_of(stats, row, rms);
            const float *g = dy + row * h + c0, *in = x + row * h + c0;
            for (int64_t c = 0; c < n; c++) {
                of_weight[c] += (double)(g[c] * ((in[c] - s.mean) * s.r));
                of_bias[c] += (double)g[c];
            }
        }
        for (int64_t c = 0; dw != NULL && c < n; c++)
            dw[c0 + c] += (float)of_weight[c];
        for (int64_t c = 0; db != NULL && c < n; c++)
            db[c0 + c] += (float)of_bias[c];
    }
}

/* With g = dy * w: dx = r * (g - mean(g) - xhat * mean(g * xhat)), RMSNorm without mean(g). */
static void norm_backward(void *dev, const act *dy, const act *sum, const act *w,
                          const float *stats, const act *residual, act *dx, float *dw, float *db,
                          int64_t rows, int64_t h, bool rms)
{
    const float *weight = w;
    (void)dev;
    if (dw != NULL || db != NULL)
        norm_weight_gradients(dy, sum, stats, dw, db, rows, h, rms);
    for (int64_t row = 0; row < rows; row++) {
        const row_stats s = stats_of(stats, row, rms);
        const float *g = (const float *)dy + row * h, *in = (const float *)sum + row * h;
        const float *through = residual != NULL ? (const float *)residual + row * h : NULL;
        float *out = (float *)dx + row * h;
        double of_g[LANES] = {0}, of_gx[LANES] = {0};
        for (int64_t i = 0; i + LANES <= h; i += LANES)
            for (int l = 0; l < LANES; l++) {
                const double v = (double)(g[i + l] * weight[i + l]);
                of_g[l] += v;
                of_gx[l] += v * (double)((in[i + l] - s.mean) * s.r);
            }
        for (int64_t i = h - h % LANES; i < h; i++) {
            const double v = (double)(g[i] * weight[i]);
            of_g[i % LANES] += v;
            of_gx[i % LANES] += v * (double)((in[i] - s.mean) * s.r);
        }
        const float mean_g = rms ? 0 : (float)(sum_lanes(of_g) / (double)h);
        const float mean_gx = (float)(sum_lanes(of_gx) / (double)h);
        for (int64_t i = 0; i < h; i++) {
            const float xhat = (in[i] - s.mean) * s.r;
            const float d = s.r * (g[i] * weight[i] - mean_g - xhat * mean_gx);
            out[i] = through != NULL ? d + through[i] : d;
        }
    }
}

/* ---- sums, rows, tokens ---- */

static void add(void *dev, const act *a, const act *b, act *y, int64_t n)
{
    const float *left = a, *right = b;
    float *out = y;
    (void)dev;
    for (int64_t i = 0; i < n; i++)
        out[i] = left[i] + right[i];
}

static void add_to(float *restrict y, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* Row 0 of the buffer is row `first_row` of the samples it was cut from. */
static void add_rows(void *dev, act *y, const act *table, int64_t rows, int64_t seq, int64_t h,
                     int64_t first_row)
{
    (void)dev;
    for (int64_t row = 0; row < rows; row++)
        add_to((float *)y + row * h, (const float *)table + (first_row + row) % seq * h, h);
}

static void add_rows_backward(void *dev, const act *dy, float *dtable, int64_t rows, int64_t seq,
                              int64_t h, int64_t first_row)
{
    (void)dev;
    for (int64_t row = 0; row < rows; row++)
        add_to(dtable + (first_row + row) % seq * h, (const float *)dy + row * h, h);
}

static void embed(void *dev, const int32_t *tokens, const act *w, act *y, int64_t rows, int64_t h,
                  int64_t first, int64_t n)
{
    const size_t bytes = (size_t)h * sizeof(float);
    (void)dev;
    for (int64_t row = 0; row < rows; row++) {
        float *out = (float *)y + row * h;
        if (tokens[row] >= 0 && tokens[row] >= first && tokens[row] < first + n)
            memcpy(out, (const float *)w + (tokens[row] - first) * h, bytes);
        else
            memset(out, 0, bytes);
    }
}

static void embed_backward(void *dev, const int32_t *tokens, const act *dy, float *dw, int64_t rows,
                           int64_t h, int64_t first, int64_t n)
{
    (void)dev;
    for (int64_t row = 0; row < rows; row++)
        if (tokens[row] >= 0 && tokens[row] >= first && tokens[row] < first + n)
            add_to(dw + (tokens[row] - first) * h, (const float *)dy + row * h, h);
}

/* ---- activations ---- */

static float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

/* Standard normal distribution; erfc keeps small values exact where 1 + erf would cancel. */
static float normal_cdf(float x)
{
    return 0.5F * erfcf(x * -0.70710678118654752F);
}

static float normal_density(float x)
{
    return 0.39894228040143268F * expf(-0.5F * x * x);
}

static void activation(void *dev, const act *x, act *y, int64_t rows, int64_t f, bool gated)
{
    const float *in = x;
    float *out = y;
    (void)dev;
    if (gated)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < f; i++) {
                const float g = in[2 * row * f + i];
                out[row * f + i] = g * sigmoid(g) * in[(2 * row + 1) * f + i];
            }
    else
        for (int64_t i = 0; i < rows * f; i++)
            out[i] = in[i] * normal_cdf(in[i]);
}

static void activation_backward(void *dev, const act *dy, const act *x, act *dx, int64_t rows,
                                int64_t f, bool gated)
{
    const float *d = dy, *in = x;
    float *out = dx;
    (void)dev;
    if (gated)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < f; i++) {
                const int64_t gate = 2 * row * f + i, up = gate + f;
                const float g = in[gate], s = sigmoid(g), value = in[up], slope = d[row * f + i];
                out[gate] = slope * value * s * (1 + g * (1 - s));
                out[up] = slope * g * s;
            }
    else
        for (int64_t i = 0; i < rows * f; i++)
            out[i] = d[i] * (normal_cdf(in[i]) + in[i] * normal_density(in[i]));
}

/* ---- loss ---- */

static void loss_max(void *dev, const act *logits, float *stats, int64_t rows, int64_t n)
{
    (void)dev;
    for (int64_t row = 0; row < rows; row++) {
        const float *x = (const float *)logits + row * n;
        float max = -INFINITY;
        for (int64_t i = 0; i < n; i++)
            max = x[i] > max ? x[i] : max;
        stats[row] = max;
    }
}

/* Is the target of a row one of the columns first .. first + n - 1? */
static bool holds(int32_t target, int64_t first, int64_t n)
{
    return target >= 0 && target >= first && target < first + n;
}

static void loss_sum(void *dev, const act *logits, const int32_t *target, const float *stats,
                     float *sums, int64_t rows, int64_t n, int64_t first)
{
    (void)dev;
    for (int64_t row = 0; row < rows; row++) {
        const float *x = (const float *)logits + row * n;
        double sum = 0;
        for (int64_t i = 0; i < n && target[row] >= 0; i++)
            sum += (double)expf(x[i] - stats[row]);
        sums[2 * row] = (float)sum;
        sums[2 * row + 1] = holds(target[row], first, n) ? x[target[row] - first] - stats[row] : 0;
    }
}

static void loss_value(void *dev, const int32_t *target, const float *sums, double *loss,
                       int64_t rows)
{
    (void)dev;
    for (int64_t row = 0; row < rows; row++)
        if (target[row] >= 0) {
            loss[0] += log((double)sums[2 * row]) - (double)sums[2 * row + 1];
            loss[1] += 1;
        }
}

static void loss_backward(void *dev, act *logits, const int32_t *target, const float *stats,
                          const float *sums, int64_t rows, int64_t n, int64_t first)
{
    (void)dev;
    for (int64_t row = 0; row < rows; row++) {
        float *x = (float *)logits + row * n;
        const float inverse = 1 / sums[2 * row];
        if (target[row] < 0) {
            memset(x, 0, (size_t)n * sizeof *x);
            continue;
        }
        for (int64_t i = 0; i < n; i++)
            x[i] = expf(x[i] - stats[row]) * inverse;
        if (holds(target[row], first, n))
            x[target[row] - first] -= 1;
    }
}

/* Sample by sample: the rows of one stand together on both sides. */
static void splice(void *dev, act *region, const td_splices *s, bool into)
{
    const int64_t end = s->first_row + s->rows;
    (void)dev;
    for (int32_t k = 0; k < s->n; k++) {
        const td_splice *of = &s->of[k];
        for (int64_t sample = s->first_row / s->seq; sample * s->seq < end; sample++) {
            const int64_t begin = sample * s->seq + of->first, stop = begin + of->n;
            const int64_t low = begin > s->first_row ? begin : s->first_row,
                          high = stop < end ? stop : end;
            float *here = (float *)region + (low - s->first_row) * s->h,
                  *apart = (float *)of->rows + (sample * of->n + low - begin) * s->h;
            if (low < high)
                memcpy(into ? here : apart, into ? apart : here,
                       (size_t)((high - low) * s->h) * sizeof *here);
        }
    }
}

/* ---- memory and the optimizer ---- */

static void zero(void *dev, void *p, int64_t bytes)
{
    (void)dev;
    if (bytes > 0)
        memset(p, 0, (size_t)bytes);
}

static void copy(void *dev, const void *from, void *to, int64_t bytes)
{
    (void)dev;
    if (bytes > 0)
        memcpy(to, from, (size_t)bytes);
}

static void fill_normal(void *dev, const uint32_t key[2], double sigma, int64_t rows, int64_t cols,
                        int64_t row0, int64_t col0, int64_t in, bool to_float, void *out)
{
    const td_numbers numbers = {.key = {key[0], key[1]}};
    const int64_t run = cols == in ? rows * cols : cols; /* whole rows follow one another */
    (void)dev;
    (void)to_float; /* the only type there is */
    for (int64_t i = 0; i < rows * cols; i += run)
        td_numbers_fill_normal(&numbers, (uint64_t)((row0 + i / cols) * in + col0), run, sigma,
                               (float *)out + i);
}

static void fill(void *dev, float value, int64_t n, bool to_float, void *p)
{
    (void)dev;
    (void)to_float;
    for (int64_t i = 0; i < n; i++)
        ((float *)p)[i] = value;
}

static double sum_of_squares(const float *g, int64_t n)
{
    double s[LANES] = {0};
    for (int64_t i = 0; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            s[l] += (double)g[i + l] * (double)g[i + l];
    for (int64_t i = n - n % LANES; i < n; i++)
        s[i % LANES] += (double)g[i] * (double)g[i];
    return sum_lanes(s);
}

static void grad_stats(void *dev, const td_mimo_span *spans, int64_t n_spans, td_mimo_state *state)
{
    (void)dev;
    for (int64_t i = 0; i < n_spans; i++) {
        const double sum = sum_of_squares(spans[i].grad, spans[i].n);
        /* Squares of finite floats cannot overflow a double, so the sum is finite if and only if
         * every element is. */
        if (!isfinite(sum))
            state->stats[1] = 1;
        if (spans[i].weight != 0)
            state->stats[0] += sum * spans[i].weight;
    }
}

static void mimo(void *dev, td_mimo_piece piece, const td_mimo_config *c, int32_t module,
                 td_mimo_state *state)
{
    (void)dev;
    td_mimo_run(piece, c, module, state);
}

static void adam_span(const td_mimo_config *c, const td_mimo_span *span, double scale, int64_t step)
{
    float *restrict p = span->param, *restrict m = span->m, *restrict v = span->v;
    const float *restrict g = span->grad;
    const double rate = c->lr / (1 - pow(c->beta1, (double)step));
    const double root_correction = sqrt(1 - pow(c->beta2, (double)step)),
                 keep = 1 - c->lr * (span->decay ? c->weight_decay : 0);
    const double beta1 = c->beta1, beta2 = c->beta2, eps = c->eps;
    for (int64_t i = 0; i < span->n; i++) {
        const double d = (double)g[i] * scale;
        const double first = beta1 * (double)m[i] + (1 - beta1) * d;
        const double second = beta2 * (double)v[i] + (1 - beta2) * d * d;
        p[i] = (float)((double)p[i] * keep - rate * first / (sqrt(second) / root_correction + eps));
        m[i] = (float)first;
        v[i] = (float)second;
    }
}

static void adam(void *dev, const td_mimo_config *c, const td_mimo_span *spans, int64_t n_spans,
                 const td_mimo_state *state)
{
    (void)dev;
    for (int64_t i = 0; state->decision.update && i < n_spans; i++)
        adam_span(c, &spans[i], state->decision.scale, state->n_updates);
}

static void cast(void *dev, const td_mimo_span *spans, int64_t n_spans)
{
    (void)dev;
    for (int64_t i = 0; i < n_spans; i++)
        if (spans[i].copy != NULL)
            td_bf16_of(spans[i].param, spans[i].n, spans[i].copy);
}

void td_host_kernels_open(void)
{
    openblas_set_num_threads(1);
}

const td_kernels td_host_kernels = {
    .linear = linear,
    .linear_dgrad = linear_dgrad,
    .linear_wgrad = linear_wgrad,
    .norm = norm,
    .norm_backward = norm_backward,
    .add = add,
    .add_rows = add_rows,
    .add_rows_backward = add_rows_backward,
    .rotary = td_host_rotary,
    .attention = td_host_attention,
    .attention_backward = td_host_attention_backward,
    .activation = activation,
    .activation_backward = activation_backward,
    .embed = embed,
    .embed_backward = embed_backward,
    .loss_max = loss_max,
    .loss_sum = loss_sum,
    .loss_value = loss_value,
    .loss_backward = loss_backward,
    .zero = zero,
    .splice = splice,
    .copy = copy,
    .fill_normal = fill_normal,
    .fill = fill,
    .grad_stats = grad_stats,
    .mimo = mimo,
    .adam = adam,
    .cast = cast,
};
