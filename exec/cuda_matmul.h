/*
 * Products through cuBLASLt, with the algorithm measured fastest for each shape: bf16 operands with
 * fp32 accumulation, or fp32 without TF32. What was measured is kept in a cache file, so that the
 * next run of the same shapes on the same kind of GPU and library starts at once and does the same.
 */
#ifndef TANDEM_EXEC_CUDA_MATMUL_H
#define TANDEM_EXEC_CUDA_MATMUL_H

#include "exec/cuda_kernels.h"
#include "model/arena.h"
#include "model/part.h"
#include "model/status.h"

typedef struct td_cuda_matmul td_cuda_matmul;

/*
 * Keeps a pointer to `queue`, whose workspace must be there before the first shape: its size is
 * part of what an algorithm is chosen for. `cache`: file of algorithms, read if it is there and
 * fits GPU and library (a damaged or foreign one is as good as none, and is replaced); NULL: none.
 */
td_status td_cuda_matmul_open(td_arena *a, td_cuda_queue *queue, const char *cache,
                              td_cuda_matmul **out, td_err *err);
void td_cuda_matmul_close(td_cuda_matmul *m);

/*
 * The linear layer [rows, k] * [n, k]^T in one of its three passes, as td_kernels says:
 *     FORWARD  c[rows, n] = a[rows, k] * b[n, k]^T + bias[n] (NULL: none)
 *     DGRAD    c[rows, k] = a[rows, n] * b[n, k]
 *     WGRAD    c[n, k] += a[rows, n]^T * b[rows, k], c is float whatever the precision
 * Queued on the compute stream, can be captured once the shape is known: the first call for a shape
 * measures (unless the cache knows it) with operands of its own, some 200 MB or as much as the
 * operands take if that is more, and synchronises. Operands may begin at any element; how their
 * addresses are aligned (to 16, 8, 4 or 2 bytes) counts as part of the shape. TD_RUN with
 * cuBLASLt's own word, or if a shape that is not known is being captured.
 */
td_status td_cuda_matmul_run(td_cuda_matmul *m, td_pass pass, const act *a, const act *b,
                             const act *bias, void *c, int64_t rows, int64_t n, int64_t k,
                             td_err *err);
/* One line per shape known so far, `bf16 fwd 2048x4096x11008 algo 67 tile ... 0.2620 ms, library's
 * choice 0.2710 ms`; in the arena, never NULL. For a trace's metadata. */
const char *td_cuda_matmul_report(const td_cuda_matmul *m, td_arena *a);
/* Writes the cache file, by rename, with what other processes put there since; TD_OK if there is
 * nothing to do. */
td_status td_cuda_matmul_save(const td_cuda_matmul *m, td_err *err);

#endif
