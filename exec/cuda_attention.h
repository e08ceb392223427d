/*
 * Fused attention through cuDNN's graph interface (bf16 only), for the shapes that the library at
 * hand supports; tandem's own kernel (exec/cuda_kernels.h) does the others. One of two files
 * implements this: exec/cuda_attention_cudnn.c, or exec/cuda_attention_none.c where tandem was
 * built without cuDNN.
 */
#ifndef TANDEM_EXEC_CUDA_ATTENTION_H
#define TANDEM_EXEC_CUDA_ATTENTION_H

#include "exec/cuda_kernels.h"
#include "model/status.h"

typedef struct td_cuda_attention_lib td_cuda_attention_lib;

/* Version of the library that is loaded, as `9.14.0`; "none" without one. */
const char *td_cuda_attention_version(void);

/*
 * TD_ABSENT with the reason where there is no usable cuDNN. Keeps a pointer to `queue`, whose
 * workspace may be filled in later. Queues nothing.
 */
td_status td_cuda_attention_open(td_cuda_queue *queue, td_cuda_attention_lib **out, td_err *err);
void td_cuda_attention_close(td_cuda_attention_lib *a);

/*
 * Is there a plan for the shape, forward and backward, whose workspace is at most that of the
 * queue? Builds the plans on the first call for a shape (may allocate and take a second); `why`
 * gets the reason when there is none (static or owned by the library; never NULL).
 */
bool td_cuda_attention_has(td_cuda_attention_lib *a, const td_attention_shape *s, const char **why);
/* Bytes of the plans' workspace, forward and backward the larger one; 0 without a plan. */
size_t td_cuda_attention_needs(td_cuda_attention_lib *a, const td_attention_shape *s);

/*
 * td_kernels.attention and attention_backward for a shape that td_cuda_attention_has(); the layouts
 * are theirs (q, k, v interleaved in rows; lse[samples][heads][seq], natural logarithm). Queued on
 * the compute stream, can be captured. TD_RUN with cuDNN's own message.
 */
td_status td_cuda_attention_forward(td_cuda_attention_lib *a, const act *qkv, act *out, float *lse,
                                    const td_attention_shape *s, td_err *err);
td_status td_cuda_attention_gradient(td_cuda_attention_lib *a, const act *dout, const act *qkv,
                                     const act *out, const float *lse, act *dqkv,
                                     const td_attention_shape *s, td_err *err);

#endif
