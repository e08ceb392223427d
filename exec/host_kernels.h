/*
 * The kernels on the processor, in fp32: `act` is float and `dev` is not looked at. Products are
 * BLAS's; long sums (norms, losses, column sums, statistics) run in double, in an order that
 * depends on the shape alone, so repeated calls are bit-equal. Nothing is allocated.
 */
#ifndef TANDEM_EXEC_HOST_KERNELS_H
#define TANDEM_EXEC_HOST_KERNELS_H

#include "exec/kernels.h"

extern const td_kernels td_host_kernels;

/* Once per process, before the first kernel: BLAS keeps to the calling thread, since every rank is
 * a process and ranks share the cores. */
void td_host_kernels_open(void);

/* For the table only; host_attention.c. */
void td_host_rotary(void *dev, act *qkv, const td_attention_shape *s, bool back);
void td_host_attention(void *dev, const act *qkv, act *out, float *lse,
                       const td_attention_shape *s);
void td_host_attention_backward(void *dev, const act *dout, const act *qkv, const act *out,
                                const float *lse, act *dqkv, const td_attention_shape *s);

#endif
