/*
 * The kernels of a device: what a stage's parts are made of. Matrices are row-major; `rows` are
 * tokens. Every call is issued on the compute lane and may return before it has run; buffers belong
 * to the device. Activations have the plan's precision (`act` points to bf16 or float), gradients
 * of parameters and statistics are float. Sources: RMSNorm (Zhang and Sennrich, 2019), LayerNorm
 * (Ba et al., 2016), rotary embedding (Su et al., 2021), SwiGLU (Shazeer, 2020), flash attention's
 * saved log-sum-exp (Dao et al., 2022), vocabulary-parallel cross-entropy (Shoeybi et al., 2019),
 * AdamW (Loshchilov and Hutter, 2019).
 */
#ifndef TANDEM_EXEC_KERNELS_H
#define TANDEM_EXEC_KERNELS_H

#include "exec/mimo.h"

#include <stdbool.h>
#include <stdint.h>

typedef void act; /* float or bf16, as the device was opened */

/* q, k, v of one row stand side by side: heads * head_dim, then twice kv_heads * head_dim; `width`
 * is their sum. */
typedef struct {
    int32_t samples, seq, heads, kv_heads, head_dim;
    bool causal;
} td_attention_shape;

/* Of a sample's rows in a sequence, those from `first` on are `n` rows that stand apart: `rows`
 * holds them of every sample, [samples * n]. */
typedef struct {
    act *rows;
    int64_t first, n;
} td_splice;

/* A region of a sequence that has `seq` rows a sample: `rows` of them, from row `first_row` of the
 * first sample on. What is spliced into it does not overlap. */
typedef struct {
    int64_t first_row, rows, seq, h;
    int32_t n;
    td_splice of[TD_MAX_MODULES];
} td_splices;

typedef struct {
    /* y[rows, n] = x[rows, k] * w[n, k]^T + bias[n] (bias may be NULL) */
    void (*linear)(void *dev, const act *x, const act *w, const act *bias, act *y, int64_t rows,
                   int64_t n, int64_t k);
    /* dx[rows, k] = dy[rows, n] * w[n, k] */
    void (*linear_dgrad)(void *dev, const act *dy, const act *w, act *dx, int64_t rows, int64_t n,
                         int64_t k);
    /* dw[n, k] += dy^T * x; db[n] += column sums of dy (db may be NULL) */
    void (*linear_wgrad)(void *dev, const act *dy, const act *x, float *dw, float *db, int64_t rows,
                         int64_t n, int64_t k);

    /*
     * sum = x + delta (delta NULL: sum is x and not written), y = norm(sum) * w + b. b NULL:
     * RMSNorm, stats[rows] keeps 1/rms; else LayerNorm, stats[2 * rows] keeps mean and 1/sigma of
     * each row. Epsilon 1e-5.
     */
    void (*norm)(void *dev, const act *x, const act *delta, act *sum, const act *w, const act *b,
                 act *y, float *stats, int64_t rows, int64_t h);
    /* dx = gradient through the norm of `sum` + residual (NULL: none); dw, db += (NULL: frozen).
     * `rms`: RMSNorm. */
    void (*norm_backward)(void *dev, const act *dy, const act *sum, const act *w,
                          const float *stats, const act *residual, act *dx, float *dw, float *db,
                          int64_t rows, int64_t h, bool rms);
    /* y = a + b; may be in place */
    void (*add)(void *dev, const act *a, const act *b, act *y, int64_t n);
    /* y[row] += table[row mod seq]; its gradient: dtable[row mod seq] += dy[row] */
    void (*add_rows)(void *dev, act *y, const act *table, int64_t rows, int64_t seq, int64_t h,
                     int64_t first_row);
    void (*add_rows_backward)(void *dev, const act *dy, float *dtable, int64_t rows, int64_t seq,
                              int64_t h, int64_t first_row);

    /* Rotates q and k in place, rotate-half form, base 10000, position = row mod seq; `back` turns
     * the other way. */
    void (*rotary)(void *dev, act *qkv, const td_attention_shape *s, bool back);
    /* out[rows, heads * head_dim]; lse[samples][heads][seq]. Query head i uses key head i *
     * kv_heads / heads. */
    void (*attention)(void *dev, const act *qkv, act *out, float *lse, const td_attention_shape *s);
    /* dqkv is written whole. */
    void (*attention_backward)(void *dev, const act *dout, const act *qkv, const act *out,
                               const float *lse, act *dqkv, const td_attention_shape *s);

    /* gated: y[rows, f] = silu(x[:, :f]) * x[:, f:]; else gelu(x[rows, f]) with erf */
    void (*activation)(void *dev, const act *x, act *y, int64_t rows, int64_t f, bool gated);
    void (*activation_backward)(void *dev, const act *dy, const act *x, act *dx, int64_t rows,
                                int64_t f, bool gated);

    /* y[row] = w[token - first] where first <= token < first + n, else 0; tokens < 0 give 0 too
     * (placeholders) */
    void (*embed)(void *dev, const int32_t *tokens, const act *w, act *y, int64_t rows, int64_t h,
                  int64_t first, int64_t n);
    void (*embed_backward)(void *dev, const int32_t *tokens, const act *dy, float *dw, int64_t rows,
                           int64_t h, int64_t first, int64_t n);
    /* Copies what is spliced into a region, as far as it is in it: `into` region[rows, h], or out
     * of it. */
    void (*splice)(void *dev, act *region, const td_splices *s, bool into);

    /*
     * Vocabulary-parallel cross-entropy over logits[rows, n] of the vocabulary's columns first ..
     * first + n - 1. 1: stats[row] = local maximum. (maximum over tensor ranks) 2: stats[row] is
     * the maximum; sums[2 * row] = sum of exp(logit - max), sums[2 * row + 1] = the target's logit
     * - max or 0 where it is on another rank; both 0 for a row that does not count (target < 0).
     * (sum over tensor ranks) 3: adds the loss of the
     * counted rows (target >= 0) to loss[0] and their number to loss[1] 4: logits become softmax -
     * target on counted rows and 0 elsewhere
     */
    void (*loss_max)(void *dev, const act *logits, float *stats, int64_t rows, int64_t n);
    void (*loss_sum)(void *dev, const act *logits, const int32_t *target, const float *stats,
                     float *sums, int64_t rows, int64_t n, int64_t first);
    void (*loss_value)(void *dev, const int32_t *target, const float *sums, double *loss,
                       int64_t rows);
    void (*loss_backward)(void *dev, act *logits, const int32_t *target, const float *stats,
                          const float *sums, int64_t rows, int64_t n, int64_t first);

    void (*zero)(void *dev, void *p, int64_t bytes);
    /* Within the device's memory, and between it and the caller's (which must stay until the device
     * is done). */
    void (*copy)(void *dev, const void *from, void *to, int64_t bytes);
    /*
     * First values of a slice: out[r * cols + c] = sigma * normal number (exec/numbers.h) of
     * element (row0 + r) * in + col0 + c under `key`, rounded to float, then to the type of `out`.
     */
    void (*fill_normal)(void *dev, const uint32_t key[2], double sigma, int64_t rows, int64_t cols,
                        int64_t row0, int64_t col0, int64_t in, bool to_float, void *out);
    /* p[i] = value, in the type of `p` */
    void (*fill)(void *dev, float value, int64_t n, bool to_float, void *p);

    /*
     * state->stats[0] += sum over all spans of weight * grad^2, in double; state->stats[1] = 1 if
     * any gradient is not finite, counted or not. Spans are in the device's memory.
     */
    void (*grad_stats)(void *dev, const td_mimo_span *spans, int64_t n_spans, td_mimo_state *state);
    /* One of the decisions between the collectives. */
    void (*mimo)(void *dev, td_mimo_piece piece, const td_mimo_config *c, int32_t module,
                 td_mimo_state *state);
    /*
     * Decoupled AdamW on every span, gradients multiplied by state->decision.scale first, the
     * update numbered state->n_updates, which counts from 1. Nothing if state->decision.update is
     * false.
     */
    void (*adam)(void *dev, const td_mimo_config *c, const td_mimo_span *spans, int64_t n_spans,
                 const td_mimo_state *state);
    /* copy = param, rounded to bf16, on every span. */
    void (*cast)(void *dev, const td_mimo_span *spans, int64_t n_spans);
} td_kernels;

#endif
