/*
 * What the two attention files share: exec/kernels_attention.cu (bf16 on tensor cores, the
 * launchers of exec/cuda_kernels.h) hands the shapes it has no tiles for to
 * exec/kernels_attention_any.cu.
 */
#ifndef TANDEM_EXEC_KERNELS_ATTENTION_H
#define TANDEM_EXEC_KERNELS_ATTENTION_H

#include "exec/cuda_kernels.h"

/* One attention, forward or backward; passed to kernels by value. Activations are bf16 or float. */
typedef struct {
    const act *qkv, *dout;
    act *out, *dqkv;
    float *lse;               /* [samples][heads][seq], natural logarithm */
    float *row_dot;           /* [samples][heads][seq]: dout * out, summed over the head */
    int64_t rows;             /* samples * seq */
    int64_t width, out_width; /* elements from one row to the next: qkv and dqkv, out and dout */
    int32_t samples, seq, heads, kv_heads, head_dim;
    float scale; /* 1 / sqrt(head_dim) */
    bool causal, bf16;
} td_attention_job;

/* First of the numbers of a head of a sample in lse and row_dot. */
static __host__ __device__ inline int64_t td_attention_stat(const td_attention_job &j,
                                                            int32_t sample, int32_t head)
{
    return ((int64_t)sample * j.heads + head) * j.seq;
}

enum { TD_ATTENTION_ANY_HEAD = 256 }; /* largest head_dim */

/* Any head_dim up to TD_ATTENTION_ANY_HEAD, any alignment; products and sums in float. */
void td_cuda_attention_any(const td_cuda_queue *q, const td_attention_job *j);
/* Fills row_dot first. */
void td_cuda_attention_any_backward(const td_cuda_queue *q, const td_attention_job *j);

#endif
