/*
 * One product as cuBLASLt knows it: its description, the algorithms that the library proposes for
 * it, and the fastest of them, found by running them. exec/cuda_matmul.h is for everybody else.
 */
#ifndef TANDEM_EXEC_CUDA_MATMUL_PRODUCT_H
#define TANDEM_EXEC_CUDA_MATMUL_PRODUCT_H

#include "exec/cuda_kernels.h"
#include "exec/cuda_matmul_cache.h"
#include "model/status.h"

#include <cublasLt.h>
#include <stdatomic.h>

/* c = a * b, as td_cuda_matmul_run() has them. */
enum { TD_MATMUL_A, TD_MATMUL_B, TD_MATMUL_C, TD_N_MATMUL };
enum { TD_MATMUL_CANDIDATES = 16 };

typedef struct {
    td_cuda_queue *queue;
    cublasLtHandle_t handle;
    atomic_bool word; /* that the stream waits for while measurements are being queued */
} td_matmul_lib;

typedef struct {
    td_matmul_record record; /* key first; the rest once there is an algorithm */
    cublasLtMatmulAlgo_t algo;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t layout[TD_N_MATMUL];
    bool measured; /* by this process: the cache file lacks it */
} td_matmul_product;

/* ---- exec/cuda_matmul_product.c ---- */

/* TD_OK for success; else TD_RUN: `cuBLASLt: WHAT: its own word`. */
td_status td_matmul_failed(cublasStatus_t status, const char *what, td_err *err);
td_status td_matmul_cuda_failed(cudaError_t error, const char *what, td_err *err);

/* `bf16 fwd 2048x4096x11008`, and ` bias`; alignments of a, b, c where one is odd. */
const char *td_matmul_key_text(const td_matmul_key *key, char *text, size_t size);
int64_t td_matmul_elements(const td_matmul_key *key, int matrix);
/* Activations, weights and their products have the plan's precision, gradients of weights fp32. */
cudaDataType_t td_matmul_type(const td_matmul_key *key, int matrix);

/* Fills in the descriptors of p->record.key. */
td_status td_matmul_describe(td_matmul_product *p, td_err *err);
void td_matmul_forget(td_matmul_product *p);
/* Shall the algorithm add the bias? `somewhere`: an address as aligned as a bias must be
 * (TD_MATMUL_ALIGN), which choosing an algorithm needs to see. */
td_status td_matmul_fuse(td_matmul_product *p, bool fused, const void *somewhere, td_err *err);
/* Where the bias is, if it is fused. */
td_status td_matmul_point(td_matmul_product *p, const act *bias, td_err *err);

cublasStatus_t td_matmul_launch(const td_matmul_lib *lib, const td_matmul_product *p,
                                const cublasLtMatmulAlgo_t *algo, const act *a, const act *b,
                                void *c);

/* Algorithms that the library proposes, its first choice first; may be none. */
td_status td_matmul_propose(const td_matmul_lib *lib, const td_matmul_product *p,
                            cublasLtMatmulAlgo_t out[TD_MATMUL_CANDIDATES], int *n, td_err *err);
/* May p->algo, which an earlier process found, be used here? */
bool td_matmul_valid(const td_matmul_lib *lib, const td_matmul_product *p);
/* A setting of an algorithm, `size` bytes in the library. */
uint32_t td_matmul_setting(const cublasLtMatmulAlgo_t *algo,
                           cublasLtMatmulAlgoConfigAttributes_t which, size_t size);

/* ---- exec/cuda_matmul_measure.c: on operands of its own; both synchronise the stream ---- */

/*
 * The fastest algorithm for a product that is described, into p->algo and its record. Without
 * memory for operands it is the library's first choice and record.ms stays 0.
 */
td_status td_matmul_measure(td_matmul_lib *lib, td_matmul_product *p, td_err *err);
/* Runs p->algo once, which also loads it, as a capture needs it; `good` if it ran. */
td_status td_matmul_try(const td_matmul_lib *lib, td_matmul_product *p, bool *good, td_err *err);

#endif
