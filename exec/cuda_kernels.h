/*
 * Launchers of tandem's own CUDA kernels. Each is an entry of td_kernels (exec/kernels.h says what
 * it computes) or a piece of one; `dev` begins with a td_cuda_queue. A launch is queued on the
 * compute stream and may be captured into a graph: launchers never allocate, synchronise or copy to
 * the host. Errors of launches stay in the CUDA context, where the device looks for them.
 */
#ifndef TANDEM_EXEC_CUDA_KERNELS_H
#define TANDEM_EXEC_CUDA_KERNELS_H

#include "exec/kernels.h"

#include <stddef.h>

/* What a launcher needs to know of the device. */
typedef struct {
    void *stream; /* cudaStream_t of the compute lane */
    bool bf16;    /* type of activations; else float */
    int32_t n_sm; /* multiprocessors */
    /* Scratch that kernels and libraries on the compute stream share: each may use all of it. */
    void *workspace;
    size_t workspace_bytes;
} td_cuda_queue;

/* exec/kernels_rows.cu (norms, sums of columns), exec/kernels_pointwise.cu and
 * exec/kernels_embed.cu: passes over rows of activations. The workspace holds a row of floats for
 * dw and db, and 8 bytes for each token. */
void td_cuda_norm(void *dev, const act *x, const act *delta, act *sum, const act *w, const act *b,
                  act *y, float *stats, int64_t rows, int64_t h);
void td_cuda_norm_backward(void *dev, const act *dy, const act *sum, const act *w,
                           const float *stats, const act *residual, act *dx, float *dw, float *db,
                           int64_t rows, int64_t h, bool rms);
void td_cuda_add(void *dev, const act *a, const act *b, act *y, int64_t n);
void td_cuda_add_rows(void *dev, act *y, const act *table, int64_t rows, int64_t seq, int64_t h,
                      int64_t first_row);
void td_cuda_add_rows_backward(void *dev, const act *dy, float *dtable, int64_t rows, int64_t seq,
                               int64_t h, int64_t first_row);
void td_cuda_rotary(void *dev, act *qkv, const td_attention_shape *s, bool back);
void td_cuda_activation(void *dev, const act *x, act *y, int64_t rows, int64_t f, bool gated);
void td_cuda_activation_backward(void *dev, const act *dy, const act *x, act *dx, int64_t rows,
                                 int64_t f, bool gated);
void td_cuda_embed(void *dev, const int32_t *tokens, const act *w, act *y, int64_t rows, int64_t h,
                   int64_t first, int64_t n);
void td_cuda_embed_backward(void *dev, const int32_t *tokens, const act *dy, float *dw,
                            int64_t rows, int64_t h, int64_t first, int64_t n);
void td_cuda_splice(void *dev, act *region, const td_splices *s, bool into);
/* db[n] += column sums of dy[rows, n] */
void td_cuda_bias_gradient(void *dev, const act *dy, float *db, int64_t rows, int64_t n);
/* y[rows, n] += bias[n] */
void td_cuda_add_bias(void *dev, act *y, const act *bias, int64_t rows, int64_t n);

/* exec/kernels_loss.cu: vocabulary-parallel cross-entropy */
void td_cuda_loss_max(void *dev, const act *logits, float *stats, int64_t rows, int64_t n);
void td_cuda_loss_sum(void *dev, const act *logits, const int32_t *target, const float *stats,
                      float *sums, int64_t rows, int64_t n, int64_t first);
void td_cuda_loss_value(void *dev, const int32_t *target, const float *sums, double *loss,
                        int64_t rows);
void td_cuda_loss_backward(void *dev, act *logits, const int32_t *target, const float *stats,
                           const float *sums, int64_t rows, int64_t n, int64_t first);

/* exec/kernels_optimizer.cu: first values and the optimizer step */
void td_cuda_fill_normal(void *dev, const uint32_t key[2], double sigma, int64_t rows, int64_t cols,
                         int64_t row0, int64_t col0, int64_t in, bool to_float, void *out);
void td_cuda_fill(void *dev, float value, int64_t n, bool to_float, void *p);
void td_cuda_grad_stats(void *dev, const td_mimo_span *spans, int64_t n_spans,
                        td_mimo_state *state);
void td_cuda_mimo(void *dev, td_mimo_piece piece, const td_mimo_config *c, int32_t module,
                  td_mimo_state *state);
void td_cuda_adam(void *dev, const td_mimo_config *c, const td_mimo_span *spans, int64_t n_spans,
                  const td_mimo_state *state);
void td_cuda_cast(void *dev, const td_mimo_span *spans, int64_t n_spans);

/* exec/kernels_attention.cu: flash attention for any head size, bf16 and float; `dev`'s workspace
 * holds what the backward needs beside its operands: td_cuda_attention_workspace() bytes. */
void td_cuda_attention(void *dev, const act *qkv, act *out, float *lse,
                       const td_attention_shape *s);
void td_cuda_attention_backward(void *dev, const act *dout, const act *qkv, const act *out,
                                const float *lse, act *dqkv, const td_attention_shape *s);
size_t td_cuda_attention_workspace(const td_attention_shape *s);

#endif
