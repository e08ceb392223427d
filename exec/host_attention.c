/*
 * Attention in tiles of the score matrix (Dao et al., 2022): scores never exist beyond one tile, so
 * memory does not grow with the square of the sequence, and every product is BLAS's.
 */
#include "exec/host_kernels.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <string.h>

/* Queries and keys of a tile. Causal rows rely on both being the same: the first key of a tile at
 * or left of the diagonal is then seen by every query of its row of tiles. */
enum { TILE = 64 };

/* One query head of one sample; a row of qkv-like buffers is `width` apart, of out-like
 * `out_width`. */
typedef struct {
    int64_t q, k, v; /* first element in qkv and dqkv */
    int64_t out;     /* first element in out and dout */
    int64_t lse;     /* first element in lse */
    int32_t width, out_width, seq, head_dim;
    bool causal;
    float scale;
} head_view;

/* A tile: n_q queries from q0, n_k keys from k0. */
typedef struct {
    int32_t q0, n_q, k0, n_k;
} tile_view;

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static head_view view_of(const td_attention_shape *s, int32_t sample, int32_t head)
{
    const int64_t d = s->head_dim, row0 = (int64_t)sample * s->seq;
    const int32_t kv = (int32_t)((int64_t)head * s->kv_heads / s->heads);
    const int64_t width = (s->heads + 2 * (int64_t)s->kv_heads) * d;
    assert(width <= INT32_MAX); /* BLAS counts in int */
    return (head_view){.q = row0 * width + head * d,
                       .k = row0 * width + (s->heads + kv) * d,
                       .v = row0 * width + ((int64_t)s->heads + s->kv_heads + kv) * d,
                       .out = row0 * s->heads * d + head * d,
                       .lse = ((int64_t)sample * s->heads + head) * s->seq,
                       .width = (int32_t)width,
                       .out_width = s->heads * s->head_dim,
                       .seq = s->seq,
                       .head_dim = s->head_dim,
                       .causal = s->causal,
                       .scale = (float)(1 / sqrt((double)d))};
}

/* Keys that the queries of rows q0 .. q0 + n_q - 1 see at most. */
static int32_t keys_end(const head_view *h, int32_t q0, int32_t n_q)
{
    return h->causal ? q0 + n_q : h->seq;
}

/* Keys of the tile that its query i sees; at least one. */
static int32_t visible(const head_view *h, const tile_view *t, int32_t i)
{
    return h->causal ? smaller(t->n_k, t->q0 + i - t->k0 + 1) : t->n_k;
}

/* tile[n_q][TILE] = factor * a[n_q, head_dim] * b[n_k, head_dim]^T */
static void rows_by_rows(const head_view *h, const tile_view *t, float factor, const float *a,
                         int32_t a_width, const float *b, float tile[TILE][TILE])
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, t->n_q, t->n_k, h->head_dim, factor, a,
                a_width, b, h->width, 0, tile[0], TILE);
}

/* c[n_q, head_dim] += factor * tile * b[n_k, head_dim] */
static void add_tile_by_keys(const head_view *h, const tile_view *t, float factor,
                             float tile[TILE][TILE], const float *b, float *c, int32_t c_width)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, t->n_q, h->head_dim, t->n_k, factor,
                tile[0], TILE, b, h->width, 1, c, c_width);
}

/* c[n_k, head_dim] += factor * tile^T * b[n_q, head_dim] */
static void add_tile_by_queries(const head_view *h, const tile_view *t, float factor,
                                float tile[TILE][TILE], const float *b, int32_t b_width, float *c)
{
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, t->n_k, h->head_dim, t->n_q, factor,
                tile[0], TILE, b, b_width, 1, c, h->width);
}

/* ---- forward ---- */

/* Maximum and sum of exp(score - maximum) of the keys seen so far. */
typedef struct {
    float max[TILE];
    double sum[TILE];
} softmax_state;

/* Scores become exp(score - maximum), unseen ones 0; what `out` holds follows a new maximum. */
static void softmax_tile(const head_view *h, const tile_view *t, float tile[TILE][TILE],
                         softmax_state *s, float *out)
{
    for (int32_t i = 0; i < t->n_q; i++) {
        const int32_t n = visible(h, t, i);
        float *row = tile[i], max = s->max[i];
        double sum = 0;
        for (int32_t j = 0; j < n; j++)
            max = row[j] > max ? row[j] : max;
        for (int32_t j = 0; j < n; j++) {
            row[j] = expf(row[j] - max);
            sum += (double)row[j];
        }
        for (int32_t j = n; j < t->n_k; j++)
            row[j] = 0;
        if (t->k0 > 0 && max > s->max[i]) {
            const float shrink = expf(s->max[i] - max);
            float *o = out + (int64_t)i * h->out_width;
            for (int32_t j = 0; j < h->head_dim; j++)
                o[j] *= shrink;
            s->sum[i] *= (double)shrink;
        }
        s->max[i] = max;
        s->sum[i] += sum;
    }
}

static void forward_rows(const head_view *h, int32_t q0, const float *qkv, float *out, float *lse)
{
    float tile[TILE][TILE];
    softmax_state s;
    const int32_t n_q = smaller(TILE, h->seq - q0), end = keys_end(h, q0, n_q);
    float *o = out + h->out + (int64_t)q0 * h->out_width;
    for (int32_t i = 0; i < n_q; i++) {
        s.max[i] = -INFINITY;
        s.sum[i] = 0;
        memset(o + (int64_t)i * h->out_width, 0, (size_t)h->head_dim * sizeof *o);
    }
    for (int32_t k0 = 0; k0 < end; k0 += TILE) {
        const tile_view t = {q0, n_q, k0, smaller(TILE, end - k0)};
        const int64_t key_row = (int64_t)k0 * h->width;
        rows_by_rows(h, &t, h->scale, qkv + h->q + (int64_t)q0 * h->width, h->width,
                     qkv + h->k + key_row, tile);
        softmax_tile(h, &t, tile, &s, o);
        add_tile_by_keys(h, &t, 1, tile, qkv + h->v + key_row, o, h->out_width);
    }
    for (int32_t i = 0; i < n_q; i++) {
        const float inverse = (float)(1 / s.sum[i]);
        for (int32_t j = 0; j < h->head_dim; j++)
            o[(int64_t)i * h->out_width + j] *= inverse;
        lse[h->lse + q0 + i] = (float)((double)s.max[i] + log(s.sum[i]));
    }
}

void td_host_attention(void *dev, const act *qkv, act *out, float *lse, const td_attention_shape *s)
{
    (void)dev;
    for (int32_t sample = 0; sample < s->samples; sample++)
        for (int32_t head = 0; head < s->heads; head++) {
            const head_view h = view_of(s, sample, head);
            for (int32_t q0 = 0; q0 < s->seq; q0 += TILE)
                forward_rows(&h, q0, qkv, out, lse);
        }
}

/* ---- backward ---- */

/* Scores become probabilities; unseen ones 0. */
static void probabilities(const head_view *h, const tile_view *t, const float *lse,
                          float tile[TILE][TILE])
{
    for (int32_t i = 0; i < t->n_q; i++) {
        const int32_t n = visible(h, t, i);
        const float of_row = lse[h->lse + t->q0 + i];
        for (int32_t j = 0; j < n; j++)
            tile[i][j] = expf(tile[i][j] - of_row);
        for (int32_t j = n; j < t->n_k; j++)
            tile[i][j] = 0;
    }
}

static void backward_rows(const head_view *h, int32_t q0, const float *dout, const float *qkv,
                          const float *out, const float *lse, float *dqkv)
{
    float p[TILE][TILE], dp[TILE][TILE], row_dot[TILE]; /* row_dot = sum over keys of p * dp */
    const int32_t n_q = smaller(TILE, h->seq - q0), end = keys_end(h, q0, n_q);
    const int64_t q_row = (int64_t)q0 * h->width, out_row = h->out + (int64_t)q0 * h->out_width;
    for (int32_t i = 0; i < n_q; i++) {
        const int64_t at = out_row + (int64_t)i * h->out_width;
        double dot = 0;
        for (int32_t j = 0; j < h->head_dim; j++)
            dot += (double)dout[at + j] * (double)out[at + j];
        row_dot[i] = (float)dot;
    }
    for (int32_t k0 = 0; k0 < end; k0 += TILE) {
        const tile_view t = {q0, n_q, k0, smaller(TILE, end - k0)};
        const int64_t k_row = (int64_t)k0 * h->width;
        rows_by_rows(h, &t, h->scale, qkv + h->q + q_row, h->width, qkv + h->k + k_row, p);
        probabilities(h, &t, lse, p);
        add_tile_by_queries(h, &t, 1, p, dout + out_row, h->out_width, dqkv + h->v + k_row);
        rows_by_rows(h, &t, 1, dout + out_row, h->out_width, qkv + h->v + k_row, dp);
        for (int32_t i = 0; i < t.n_q; i++)
            for (int32_t j = 0; j < t.n_k; j++)
                dp[i][j] = p[i][j] * (dp[i][j] - row_dot[i]);
        add_tile_by_keys(h, &t, h->scale, dp, qkv + h->k + k_row, dqkv + h->q + q_row, h->width);
        add_tile_by_queries(h, &t, h->scale, dp, qkv + h->q + q_row, h->width, dqkv + h->k + k_row);
    }
}

void td_host_attention_backward(void *dev, const act *dout, const act *qkv, const act *out,
                                const float *lse, act *dqkv, const td_attention_shape *s)
{
    const int64_t width = (s->heads + 2 * (int64_t)s->kv_heads) * s->head_dim;
    (void)dev;
    memset(dqkv, 0, (size_t)(s->samples * (int64_t)s->seq * width) * sizeof(float));
    for (int32_t sample = 0; sample < s->samples; sample++)
        for (int32_t head = 0; head < s->heads; head++) {
            const head_view h = view_of(s, sample, head);
            for (int32_t q0 = 0; q0 < s->seq; q0 += TILE)
                backward_rows(&h, q0, dout, qkv, out, lse, dqkv);
        }
}

/* ---- rotary embedding ---- */

enum { ANGLES = 64 }; /* angles computed at a time, each used by every sample and head */

static void rotate(float *x, int32_t half, int32_t n, const float *cosine, const float *sine)
{
    for (int32_t i = 0; i < n; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
}

void td_host_rotary(void *dev, act *qkv, const td_attention_shape *s, bool back)
{
    const int32_t half = s->head_dim / 2, turned = s->heads + s->kv_heads;
    const int64_t d = s->head_dim, width = (turned + (int64_t)s->kv_heads) * d;
    float cosine[ANGLES], sine[ANGLES];
    double per_position[ANGLES];
    (void)dev;
    for (int32_t i0 = 0; i0 < half; i0 += ANGLES) {
        const int32_t n = smaller(ANGLES, half - i0);
        for (int32_t i = 0; i < n; i++)
            per_position[i] = pow(10000, -2.0 * (i0 + i) / (double)d);
        for (int32_t position = 0; position < s->seq; position++) {
            for (int32_t i = 0; i < n; i++) {
                const double angle = position * per_position[i];
                cosine[i] = (float)cos(angle);
                sine[i] = (float)(back ? -sin(angle) : sin(angle));
            }
            for (int32_t sample = 0; sample < s->samples; sample++) {
                float *row = (float *)qkv + (sample * (int64_t)s->seq + position) * width;
                for (int32_t head = 0; head < turned; head++)
                    rotate(row + head * d + i0, half, n, cosine, sine);
            }
        }
    }
}
