/*
 * The kernels on the processor against the same mathematics written plainly in double: forwards
 * directly, backwards against central differences of a random weighting of the plain forward.
 */
#include "exec/host_kernels.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const td_kernels *const k = &td_host_kernels;

/* ---- buffers of a test, exact in size so that a sanitizer sees the first element beyond ---- */

static void *held[4096];
static int n_held;

static void *buffer(int64_t n, size_t size)
{
    void *p = calloc(n > 0 ? (size_t)n : 1, size);
    cr_assert(p != NULL && n_held < (int)(sizeof held / sizeof *held));
    held[n_held++] = p;
    return p;
}

static void release(void)
{
    while (n_held > 0)
        free(held[--n_held]);
}

TestSuite(kernels, .init = td_host_kernels_open, .fini = release);

/* Numbers of a full-period generator (Knuth, MMIX), uniform in [-1, 1). */
static double number(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(*state >> 40) * 0x1p-23 - 1;
}

static float *floats(int64_t n, uint64_t seed)
{
    float *x = buffer(n, sizeof *x);
    uint64_t state = seed * 977 + 5;
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)number(&state);
    return x;
}

static double *widened(const float *x, int64_t n)
{
    double *d = buffer(n, sizeof *d);
    for (int64_t i = 0; i < n; i++)
        d[i] = (double)x[i];
    return d;
}

static double *doubles(int64_t n)
{
    return buffer(n, sizeof(double));
}

/* Every element within `tolerance` of the largest wanted one, or of 1 where terms near 1 cancelled.
 */
static void expect(const float *got, const double *want, int64_t n, double tolerance,
                   const char *what)
{
    double largest = 1;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        cr_assert_leq(fabs((double)got[i] - want[i]), tolerance * largest,
                      "%s[%lld]: %.9g, not %.9g", what, (long long)i, (double)got[i], want[i]);
}

static void expect_same(const float *a, const float *b, int64_t n, const char *what)
{
    cr_assert_eq(memcmp(a, b, (size_t)n * sizeof *a), 0, "%s", what);
}

/* Fills a buffer that a kernel must overwrite. */
static float *stale(int64_t n)
{
    float *x = buffer(n, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = 1e30F;
    return x;
}

/* A plain forward; `x` is the argument that is varied, the others are in `of`. */
typedef void plain(const double *x, double *y, const void *of);

/* Derivative by x[i] of sum over j of weight[j] * f(x)[j]; y is scratch. */
static double slope(plain *f, const void *of, double *x, int64_t i, const float *weight, double *y,
                    int64_t n_y)
{
    const double step = 1e-5, at = x[i];
    double difference = 0;
    x[i] = at + step;
    f(x, y, of);
    for (int64_t j = 0; j < n_y; j++)
        difference += (double)weight[j] * y[j];
    x[i] = at - step;
    f(x, y, of);
    for (int64_t j = 0; j < n_y; j++)
        difference -= (double)weight[j] * y[j];
    x[i] = at;
    return difference / (2 * step);
}

/* got = base (NULL: 0) + the gradient at every `every`-th element of x. */
static void expect_gradient(const float *got, const float *base, plain *f, const void *of,
                            const double *at, int64_t n, const float *weight, int64_t n_y,
                            int64_t every, const char *what)
{
    double *x = doubles(n), *y = doubles(n_y), *want = doubles(n);
    float *some = buffer(n, sizeof *some);
    int64_t count = 0;
    memcpy(x, at, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i += every, count++) {
        want[count] = slope(f, of, x, i, weight, y, n_y) + (base != NULL ? (double)base[i] : 0);
        some[count] = got[i];
    }
    expect(some, want, count, 1e-5, what);
}

static float *copy_of(const float *x, int64_t n)
{
    float *y = buffer(n, sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

/* ---- linear layers ---- */

TheoryDataPoints(kernels, a_linear_layer_and_its_gradients_are_the_plain_sums) = {
    DataPoints(int, 0, 1, 3, 70), DataPoints(int, 1, 5, 67), DataPoints(int, 1, 7, 130)};
Theory((int rows, int n, int depth), kernels, a_linear_layer_and_its_gradients_are_the_plain_sums)
{
    const float *x = floats(rows * depth, 1), *w = floats(n * depth, 2), *b = floats(n, 3);
    const float *dy = floats(rows * n, 4), *dw0 = floats(n * depth, 5), *db0 = floats(n, 6);
    float *y = stale(rows * n), *without = stale(rows * n), *dx = stale(rows * depth);
    float *dw = copy_of(dw0, n * depth), *db = copy_of(db0, n), *dw_alone = copy_of(dw0, n * depth);
    double *want_y = doubles(rows * n), *want_without = doubles(rows * n);
    double *want_dx = doubles(rows * depth), *want_dw = widened(dw0, n * depth);
    double *want_db = widened(db0, n);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < n; i++) {
            for (int c = 0; c < depth; c++) {
                want_without[r * n + i] += (double)x[r * depth + c] * (double)w[i * depth + c];
                want_dx[r * depth + c] += (double)dy[r * n + i] * (double)w[i * depth + c];
                want_dw[i * depth + c] += (double)dy[r * n + i] * (double)x[r * depth + c];
            }
            want_y[r * n + i] = want_without[r * n + i] + (double)b[i];
            want_db[i] += (double)dy[r * n + i];
        }
    k->linear(NULL, x, w, b, y, rows, n, depth);
    k->linear(NULL, x, w, NULL, without, rows, n, depth);
    k->linear_dgrad(NULL, dy, w, dx, rows, n, depth);
    k->linear_wgrad(NULL, dy, x, dw, db, rows, n, depth);
    k->linear_wgrad(NULL, dy, x, dw_alone, NULL, rows, n, depth);
    expect(y, want_y, rows * n, 1e-6, "y");
    expect(without, want_without, rows * n, 1e-6, "y without bias");
    expect(dx, want_dx, rows * depth, 1e-6, "dx");
    expect(dw, want_dw, n * depth, 1e-6, "dw");
    expect(db, want_db, n, 1e-6, "db");
    expect_same(dw, dw_alone, n * depth, "dw without db");
}

/* ---- norms ---- */

typedef struct {
    int rows, h;
    bool rms;
    const double *x, *w, *b;
} norm_case;

static void norm_rows(const norm_case *c, const double *x, const double *w, const double *b,
                      double *y)
{
    for (int r = 0; r < c->rows; r++) {
        double mean = 0, square = 0;
        for (int i = 0; i < c->h && !c->rms; i++)
            mean += x[r * c->h + i] / c->h;
        for (int i = 0; i < c->h; i++)
            square += pow(x[r * c->h + i] - mean, 2) / c->h;
        for (int i = 0; i < c->h; i++)
            y[r * c->h + i] =
                (x[r * c->h + i] - mean) / sqrt(square + 1e-5) * w[i] + (c->rms ? 0 : b[i]);
    }
}

static void norm_of_x(const double *x, double *y, const void *of)
{
    const norm_case *c = of;
    norm_rows(c, x, c->w, c->b, y);
}

static void norm_of_w(const double *w, double *y, const void *of)
{
    const norm_case *c = of;
    norm_rows(c, c->x, w, c->b, y);
}

static void norm_of_b(const double *b, double *y, const void *of)
{
    const norm_case *c = of;
    norm_rows(c, c->x, c->w, b, y);
}

TheoryDataPoints(kernels, norms_and_their_gradients_are_the_plain_ones) = {
    DataPoints(int, 0, 1, 5), DataPoints(int, 3, 8, 19, 67), DataPoints(bool, true, false),
    DataPoints(bool, true, false)};
Theory((int rows, int h, bool rms, bool residual), kernels,
       norms_and_their_gradients_are_the_plain_ones)
{
    const int n = rows * h;
    const float *x = floats(n, 1), *w = floats(h, 2), *b = floats(h, 3), *delta = floats(n, 4);
    const float *dy = floats(n, 5), *res = floats(n, 6), *dw0 = floats(h, 7), *db0 = floats(h, 8);
    float *sum = stale(n), *y = stale(n), *stats = stale(rms ? rows : 2 * rows), *dx = stale(n);
    float *dw = copy_of(dw0, h), *db = copy_of(db0, h);
    k->norm(NULL, x, delta, sum, w, rms ? NULL : b, y, stats, rows, h);
    k->norm_backward(NULL, dy, sum, w, stats, residual ? res : NULL, dx, dw, rms ? NULL : db, rows,
                     h, rms);

    const norm_case c = {rows, h, rms, widened(sum, n), widened(w, h), widened(b, h)};
    double *want = doubles(n);
    norm_of_x(c.x, want, &c);
    expect(y, want, n, 2e-6, "y");
    for (int i = 0; i < n; i++)
        cr_assert_eq(sum[i], x[i] + delta[i]);
    expect_gradient(dx, residual ? res : NULL, norm_of_x, &c, c.x, n, dy, n, 1, "dx");
    expect_gradient(dw, dw0, norm_of_w, &c, c.w, h, dy, n, 1, "dw");
    if (!rms)
        expect_gradient(db, db0, norm_of_b, &c, c.b, h, dy, n, 1, "db");
}

TheoryDataPoints(kernels,
                 a_norm_without_delta_does_not_write_the_sum) = {DataPoints(bool, true, false)};
Theory((bool rms), kernels, a_norm_without_delta_does_not_write_the_sum)
{
    const float *x = floats(3 * 9, 1), *w = floats(9, 2), *b = floats(9, 3);
    float *zeros = buffer(3 * 9, sizeof(float)), *sum = stale(3 * 9), *untouched = stale(3 * 9);
    float *y[2] = {stale(3 * 9), stale(3 * 9)}, *stats[2] = {stale(6), stale(6)};
    k->norm(NULL, x, NULL, untouched, w, rms ? NULL : b, y[0], stats[0], 3, 9);
    k->norm(NULL, x, zeros, sum, w, rms ? NULL : b, y[1], stats[1], 3, 9);
    expect_same(untouched, stale(3 * 9), 3 * 9, "sum");
    expect_same(y[0], y[1], 3 * 9, "y");
    expect_same(stats[0], stats[1], 6, "stats");
}

Test(kernels, the_norm_of_a_frozen_weight_gives_the_same_gradient_of_its_input)
{
    const float *x = floats(4 * 9, 1), *w = floats(9, 2), *b = floats(9, 3), *dy = floats(4 * 9, 4);
    float *y = stale(4 * 9), *stats = stale(8), *dx[2] = {stale(4 * 9), stale(4 * 9)};
    k->norm(NULL, x, NULL, NULL, w, b, y, stats, 4, 9);
    k->norm_backward(NULL, dy, x, w, stats, NULL, dx[0], NULL, NULL, 4, 9, false);
    k->norm_backward(NULL, dy, x, w, stats, NULL, dx[1], floats(9, 5), floats(9, 6), 4, 9, false);
    expect_same(dx[0], dx[1], 4 * 9, "dx");
}

/* Small spread around a large mean: a variance from the difference of squares would be lost. */
Test(kernels, layer_norm_keeps_its_accuracy_far_from_zero)
{
    float *x = floats(64, 1), *y = stale(64), *stats = stale(2), ones[64], zeros[64] = {0};
    for (int i = 0; i < 64; i++) {
        x[i] = 4096 + 0.25F * roundf(8 * x[i]);
        ones[i] = 1;
    }
    const norm_case c = {1, 64, false, widened(x, 64), widened(ones, 64), widened(zeros, 64)};
    double *want = doubles(64);
    norm_of_x(c.x, want, &c);
    k->norm(NULL, x, NULL, NULL, ones, zeros, y, stats, 1, 64);
    expect(y, want, 64, 1e-3, "y"); /* the mean is kept as a float: half a unit of 4096 is 2.4e-4 */
}

/* ---- sums, rows, tokens ---- */

Test(kernels, a_sum_may_be_in_place)
{
    const float *b = floats(37, 2);
    float *a = floats(37, 1), *y = stale(37);
    k->add(NULL, a, b, y, 37);
    for (int i = 0; i < 37; i++)
        cr_assert_eq(y[i], a[i] + b[i]);
    k->add(NULL, a, b, a, 37);
    expect_same(a, y, 37, "in place");
}

TheoryDataPoints(kernels, position_rows_go_to_their_tokens_and_gradients_come_back) = {
    DataPoints(int, 0, 1, 4, 11), DataPoints(int, 0, 2, 9)};
Theory((int rows, int first_row), kernels, position_rows_go_to_their_tokens_and_gradients_come_back)
{
    enum { SEQ = 4, H = 5 };
    const float *x = floats(rows * H, 1), *table = floats(SEQ * H, 2), *dt0 = floats(SEQ * H, 3);
    float *y = copy_of(x, rows * H), *dtable = copy_of(dt0, SEQ * H);
    double *want = widened(x, rows * H), *want_dtable = widened(dt0, SEQ * H);
    for (int i = 0; i < rows * H; i++) {
        const int at = (first_row + i / H) % SEQ * H + i % H;
        want[i] += (double)table[at];
        want_dtable[at] += (double)x[i];
    }
    k->add_rows(NULL, y, table, rows, SEQ, H, first_row);
    k->add_rows_backward(NULL, x, dtable, rows, SEQ, H, first_row);
    expect(y, want, rows * H, 1e-6, "y");
    expect(dtable, want_dtable, SEQ * H, 1e-6, "dtable");
}

Test(kernels, shards_of_an_embedding_add_up_to_the_whole_and_placeholders_are_zero)
{
    enum { ROWS = 7, H = 3, VOCAB = 10 };
    const int32_t tokens[ROWS] = {0, 9, -1, 4, 4, 5, -1};
    const float *w = floats(VOCAB * H, 1), *dy = floats(ROWS * H, 2);
    float *whole = stale(ROWS * H), *sum = buffer(ROWS * H, sizeof(float));
    float *dw = buffer(VOCAB * H, sizeof(float)), *parts = buffer(VOCAB * H, sizeof(float));
    double *want_dw = doubles(VOCAB * H);
    k->embed(NULL, tokens, w, whole, ROWS, H, 0, VOCAB);
    k->embed_backward(NULL, tokens, dy, dw, ROWS, H, 0, VOCAB);
    for (int first = 0; first < VOCAB; first += 5) {
        float *part = stale(ROWS * H);
        k->embed(NULL, tokens, w + first * H, part, ROWS, H, first, 5);
        k->embed_backward(NULL, tokens, dy, parts + first * H, ROWS, H, first, 5);
        k->add(NULL, sum, part, sum, ROWS * H);
    }
    for (int i = 0; i < ROWS * H; i++) {
        const int32_t token = tokens[i / H];
        cr_assert_eq(whole[i], token < 0 ? 0 : w[token * H + i % H]);
        if (token >= 0)
            want_dw[token * H + i % H] += (double)dy[i];
    }
    expect_same(sum, whole, ROWS * H, "sum of shards");
    expect_same(parts, dw, VOCAB * H, "gradient of shards");
    expect(dw, want_dw, VOCAB * H, 1e-6, "dw");
    k->embed_backward(NULL, tokens, dy, dw, ROWS, H, 0, VOCAB);
    for (int i = 0; i < VOCAB * H; i++)
        want_dw[i] *= 2;
    expect(dw, want_dw, VOCAB * H, 1e-6, "dw of two calls");
}

TheoryDataPoints(kernels, whatever_is_spliced_into_a_region_comes_out_again) = {
    DataPoints(int, 0, 3, 7, 9), DataPoints(int, 1, 4, 7, 12)};
Theory((int first_row, int rows), kernels, whatever_is_spliced_into_a_region_comes_out_again)
{
    enum { SAMPLES = 3, SEQ = 7, H = 2, ONE = 2, TWO = 3 };
    const float *one = floats(SAMPLES * ONE * H, 1), *two = floats(SAMPLES * TWO * H, 2);
    float *whole = stale(SAMPLES * SEQ * H), *region = stale(rows * H);
    float *one_back = copy_of(one, SAMPLES * ONE * H), *two_back = copy_of(two, SAMPLES * TWO * H);
    td_splices all = {.rows = SAMPLES * SEQ,
                      .seq = SEQ,
                      .h = H,
                      .n = 2,
                      .of = {{one_back, 0, ONE}, {two_back, 4, TWO}}};
    td_splices part = all;
    part.first_row = first_row;
    part.rows = rows;
    const float *before = copy_of(whole, SAMPLES * SEQ * H);
    k->splice(NULL, whole, &all, true);
    for (int i = 0; i < SAMPLES * SEQ * H; i++) {
        const int sample = i / H / SEQ, row = i / H % SEQ, at = i % H;
        const float want = row < ONE ? one[(sample * ONE + row) * H + at]
                           : row < 4 ? before[i]
                                     : two[(sample * TWO + row - 4) * H + at];
        cr_assert_eq(memcmp(&whole[i], &want, sizeof want), 0, "element %d", i);
    }
    memcpy(region, before + first_row * H, (size_t)(rows * H) * sizeof *region);
    k->splice(NULL, region, &part, true);
    cr_assert_eq(memcmp(region, whole + first_row * H, (size_t)(rows * H) * sizeof *region), 0);
    for (int i = 0; i < SAMPLES * ONE * H; i++)
        one_back[i] = -1;
    for (int i = 0; i < SAMPLES * TWO * H; i++)
        two_back[i] = -1;
    k->splice(NULL, region, &part, false);
    for (int row = 0; row < SAMPLES * SEQ; row++) {
        const bool in = row >= first_row && row < first_row + rows;
        const int sample = row / SEQ, at = row % SEQ;
        if (at < ONE)
            cr_assert_eq(one_back[(sample * ONE + at) * H], in ? one[(sample * ONE + at) * H] : -1);
        if (at >= 4)
            cr_assert_eq(two_back[(sample * TWO + at - 4) * H],
                         in ? two[(sample * TWO + at - 4) * H] : -1);
    }
}

Test(kernels, copied_and_zeroed_bytes_arrive_and_their_neighbours_stay)
{
    const float *src = floats(6, 1), *before = floats(6, 2);
    float *dst = copy_of(before, 6);
    k->copy(NULL, dst, dst + 1, 0);
    k->zero(NULL, dst, 2 * (int64_t)sizeof(float));
    cr_assert(dst[0] == 0 && dst[1] == 0 && dst[2] == before[2]);
    k->copy(NULL, src, dst, 3 * (int64_t)sizeof(float));
    expect_same(dst, src, 3, "copy");
    cr_assert_eq(dst[3], before[3]);
}

/* ---- activations ---- */

typedef struct {
    int rows, f;
    bool gated;
} activation_case;

static void activation_of(const double *x, double *y, const void *of)
{
    const activation_case *c = of;
    for (int r = 0; r < c->rows; r++)
        for (int i = 0; i < c->f; i++) {
            const double a = x[c->gated ? 2 * r * c->f + i : r * c->f + i];
            y[r * c->f + i] = c->gated ? a / (1 + exp(-a)) * x[(2 * r + 1) * c->f + i]
                                       : a / 2 * (1 + erf(a / sqrt(2.0)));
        }
}

TheoryDataPoints(kernels, activations_and_their_gradients_are_the_plain_ones) = {
    DataPoints(int, 0, 1, 4), DataPoints(int, 1, 6, 33), DataPoints(bool, true, false)};
Theory((int rows, int f, bool gated), kernels, activations_and_their_gradients_are_the_plain_ones)
{
    const activation_case c = {rows, f, gated};
    const int n = rows * f, n_x = gated ? 2 * n : n;
    float *x = floats(n_x, 1), *y = stale(n), *dx = stale(n_x);
    const float *dy = floats(n, 2);
    for (int i = 0; i < n_x; i++)
        x[i] *= 6;
    double *want = doubles(n), *wide = widened(x, n_x);
    activation_of(wide, want, &c);
    k->activation(NULL, x, y, rows, f, gated);
    k->activation_backward(NULL, dy, x, dx, rows, f, gated);
    expect(y, want, n, 1e-6, "y");
    expect_gradient(dx, NULL, activation_of, &c, wide, n_x, dy, n, 1, "dx");
}

Test(kernels, activations_stay_finite_at_both_ends)
{
    const float x[4] = {-1e4F, 1e4F, 1, 1}, dy[4] = {1, 1, 1, 1}; /* gates, then ups */
    for (int gated = 0; gated < 2; gated++) {
        const int64_t f = gated ? 2 : 4;
        float y[4], dx[4];
        k->activation(NULL, x, y, 1, f, gated);
        k->activation_backward(NULL, dy, x, dx, 1, f, gated);
        cr_assert(y[0] == 0 && y[1] == 1e4F);
        cr_assert(dx[0] == 0 && dx[1] == 1);
    }
}

/* ---- loss ---- */

TheoryDataPoints(kernels, a_split_vocabulary_gives_the_loss_and_gradient_of_the_whole) = {
    DataPoints(int, 1, 2, 3, 4), DataPoints(int, 0, 1, 6)};
Theory((int ranks, int rows), kernels, a_split_vocabulary_gives_the_loss_and_gradient_of_the_whole)
{
    enum { VOCAB = 23 };
    const int32_t target[6] = {22, -1, 0, 7, -1, 11};
    float *x = floats(rows * VOCAB, 1), *max = stale(rows), *sums = buffer(2 * rows, sizeof(float));
    float *logits[4], *part_max = stale(rows), *part_sums = stale(2 * rows);
    double loss[2] = {0.5, 3}, want_loss = 0.5, counted = 3, *want = doubles(rows * VOCAB);
    for (int i = 0; i < rows * VOCAB; i++)
        x[i] *= 100; /* exp would overflow but for the maximum */
    for (int r = 0; r < rows; r++) {
        double largest = -INFINITY, sum = 0;
        for (int i = 0; i < VOCAB; i++)
            largest = fmax(largest, (double)x[r * VOCAB + i]);
        for (int i = 0; i < VOCAB; i++)
            sum += exp((double)x[r * VOCAB + i] - largest);
        for (int i = 0; i < VOCAB && target[r] >= 0; i++)
            want[r * VOCAB + i] = exp((double)x[r * VOCAB + i] - largest) / sum - (i == target[r]);
        if (target[r] >= 0) {
            want_loss += log(sum) + largest - (double)x[r * VOCAB + target[r]];
            counted += 1;
        }
        max[r] = -INFINITY;
    }
    for (int p = 0; p < ranks; p++) { /* columns first .. last - 1 on rank p; uneven on purpose */
        const int first = VOCAB * p / ranks, n = VOCAB * (p + 1) / ranks - first;
        logits[p] = stale(rows * n);
        for (int i = 0; i < rows * n; i++)
            logits[p][i] = x[i / n * VOCAB + first + i % n];
        k->loss_max(NULL, logits[p], part_max, rows, n);
        for (int r = 0; r < rows; r++)
            max[r] = fmaxf(max[r], part_max[r]);
    }
    for (int p = 0; p < ranks; p++) {
        const int first = VOCAB * p / ranks, n = VOCAB * (p + 1) / ranks - first;
        k->loss_sum(NULL, logits[p], target, max, part_sums, rows, n, first);
        k->add(NULL, sums, part_sums, sums, 2 * rows);
    }
    k->loss_value(NULL, target, sums, loss, rows);
    cr_assert_leq(fabs(loss[0] - want_loss), 1e-6 * want_loss, "%.9g, not %.9g", loss[0],
                  want_loss);
    cr_assert_eq(loss[1], counted);
    for (int p = 0; p < ranks; p++) {
        const int first = VOCAB * p / ranks, n = VOCAB * (p + 1) / ranks - first;
        k->loss_backward(NULL, logits[p], target, max, sums, rows, n, first);
        for (int i = 0; i < rows * n; i++)
            cr_assert_leq(fabs((double)logits[p][i] - want[i / n * VOCAB + first + i % n]), 1e-6);
    }
}

/* ---- statistics and the optimizer ---- */

TheoryDataPoints(kernels, squares_add_up_in_double_and_weigh_what_they_should) = {
    DataPoints(int, 0, 1, 8, 1003), DataPoints(double, 0, 1, 0.25)};
Theory((int n, double weight), kernels, squares_add_up_in_double_and_weigh_what_they_should)
{
    float *g = floats(n, 1);
    td_mimo_state s = {.stats = {1.5, 0}};
    const td_mimo_span span = {.grad = g, .n = n, .weight = weight};
    double want = 1.5;
    for (int i = 0; i < n; i++) {
        g[i] *= 1e25F; /* squares beyond float */
        want += (double)g[i] * (double)g[i] * weight;
    }
    k->grad_stats(NULL, &span, 1, &s);
    cr_assert_leq(fabs(s.stats[0] - want), 1e-12 * want);
    cr_assert_eq(s.stats[1], 0);
}

TheoryDataPoints(kernels, one_number_that_is_not_finite_raises_the_flag_and_nothing_lowers_it) = {
    DataPoints(float, NAN, INFINITY, -INFINITY), DataPoints(int, 0, 7, 8, 18),
    DataPoints(double, 0, 1)};
Theory((float bad, int at, double weight), kernels,
       one_number_that_is_not_finite_raises_the_flag_and_nothing_lowers_it)
{
    float *g = floats(19, 1);
    td_mimo_state s = {.n_updates = 0};
    const td_mimo_span span = {.grad = g, .n = 19, .weight = weight};
    g[at] = bad;
    k->grad_stats(NULL, &span, 1, &s);
    cr_assert_eq(s.stats[1], 1);
    cr_assert_eq(isfinite(s.stats[0]) != 0, weight == 0, "a copy that does not count adds nothing");
    g[at] = 0;
    k->grad_stats(NULL, &span, 1, &s);
    cr_assert_eq(s.stats[1], 1);
}

/* Loshchilov and Hutter, 2019, algorithm 2 without schedule, its state in double throughout. */
TheoryDataPoints(kernels, adam_follows_the_published_recurrence) = {
    DataPoints(double, 0, 0.01), DataPoints(double, 1, 0.125), DataPoints(int, 0, 1, 13)};
Theory((double decay, double scale, int n), kernels, adam_follows_the_published_recurrence)
{
    const double lr = 0.01, beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
    float *p = floats(n, 1), *m = buffer(n, sizeof(float)), *v = buffer(n, sizeof(float));
    double *want = widened(p, n), *want_m = doubles(n), *want_v = doubles(n);
    for (int step = 1; step <= 6; step++) {
        const float *g = floats(n, 10 + (uint64_t)step);
        for (int i = 0; i < n; i++) {
            const double d = (double)g[i] * scale;
            want_m[i] = beta1 * want_m[i] + (1 - beta1) * d;
            want_v[i] = beta2 * want_v[i] + (1 - beta2) * d * d;
            want[i] -= lr * decay * want[i] + lr * want_m[i] / (1 - pow(beta1, step)) /
                                                  (sqrt(want_v[i] / (1 - pow(beta2, step))) + eps);
        }
        const td_mimo_config c = {
            .lr = lr, .beta1 = beta1, .beta2 = beta2, .eps = eps, .weight_decay = decay};
        const td_mimo_span span = {
            .param = p, .m = m, .v = v, .grad = g, .n = n, .decay = decay > 0};
        const td_mimo_state s = {.decision = {.update = true, .scale = scale}, .n_updates = step};
        k->adam(NULL, &c, &span, 1, &s);
    }
    expect(p, want, n, 1e-6, "p");
    expect(m, want_m, n, 1e-6, "m");
    expect(v, want_v, n, 1e-6, "v");
}

/* One element in float32 by another implementation of AdamW: 0.01 steps, decay 0.01. */
Test(kernels, the_first_step_of_adam_moves_by_the_learning_rate_and_leaves_idle_weights)
{
    float p[3] = {-0.7796F, 0.4117F, 0.5F}, m[3] = {0}, v[3] = {0};
    const float g[3] = {-0.0799F, -0.0851F, 0};
    const td_mimo_config c = {
        .lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.01};
    const td_mimo_span span = {.param = p, .m = m, .v = v, .grad = g, .n = 3, .decay = true};
    const td_mimo_state s = {.decision = {.update = true, .scale = 1}, .n_updates = 1};
    k->adam(NULL, &c, &span, 1, &s);
    cr_assert_float_eq(p[0], -0.7695220708847046F, 6e-8F);
    cr_assert_float_eq(p[1], 0.42165881395339966F, 6e-8F);
    cr_assert_eq(p[2], (float)(0.5 * (1 - 0.01 * 0.01)));
    cr_assert_float_eq(m[0], -0.00798999983817339F, 1e-9F);
}

/* ---- all of them ---- */

/* At a size where BLAS packs, from buffers that stand elsewhere and are aligned differently. */
Test(kernels, repeated_calls_are_equal_to_the_bit)
{
    enum { ROWS = 131, N = 203, K = 167 };
    const int32_t target[ROWS] = {N - 1, -1, 5};
    float *results[2];
    const int64_t sizes[] = {ROWS * N, ROWS * K, N * K, N, ROWS * N, 2 * ROWS, ROWS * N, N, N};
    enum { N_RESULTS = sizeof sizes / sizeof *sizes };
    int64_t total = 0;
    for (int i = 0; i < N_RESULTS; i++)
        total += sizes[i];
    for (int call = 0; call < 2; call++) {
        float *at[N_RESULTS], *end = (float *)buffer(total + call, sizeof(float)) + call;
        float *x = (float *)buffer(ROWS * K + call, sizeof(float)) + call;
        float *w = (float *)buffer(N * K + call, sizeof(float)) + call;
        const float *dy = floats(ROWS * N, 4);
        float *max = stale(ROWS), *sums = stale(2 * ROWS);
        results[call] = end;
        memcpy(x, floats(ROWS * K, 1), ROWS * K * sizeof *x);
        memcpy(w, floats(N * K, 2), N * K * sizeof *w);
        for (int i = 0; i < N_RESULTS; end += sizes[i], i++)
            at[i] = end;
        k->linear(NULL, x, w, floats(N, 3), at[0], ROWS, N, K);
        k->linear_dgrad(NULL, dy, w, at[1], ROWS, N, K);
        k->linear_wgrad(NULL, dy, x, at[2], at[3], ROWS, N, K);
        k->norm(NULL, at[0], NULL, NULL, floats(N, 5), floats(N, 6), at[4], at[5], ROWS, N);
        k->norm_backward(NULL, dy, at[0], floats(N, 5), at[5], NULL, at[6], at[7], at[8], ROWS, N,
                         false);
        k->loss_max(NULL, at[0], max, ROWS, N);
        k->loss_sum(NULL, at[0], target, max, sums, ROWS, N, 0);
        k->loss_backward(NULL, at[0], target, max, sums, ROWS, N, 0);
    }
    expect_same(results[0], results[1], total, "second call");
}
