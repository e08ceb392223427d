/*
 * The file that keeps which algorithm was measured fastest for each product, a text with a line per
 * product. It belongs to one kind of GPU and one version of cuBLASLt; algorithms are words that
 * only that library understands.
 */
#ifndef TANDEM_EXEC_CUDA_MATMUL_CACHE_H
#define TANDEM_EXEC_CUDA_MATMUL_CACHE_H

#include "model/arena.h"
#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_MATMUL_ALGO_WORDS = 8, TD_MATMUL_ALIGN = 16 };

/* What an algorithm was chosen for. */
typedef struct {
    int64_t rows, n, k; /* the linear layer [rows, k] * [n, k]^T, in all its passes */
    int64_t limit;      /* bytes of workspace that an algorithm might take */
    uint8_t pass;       /* td_pass: FORWARD, DGRAD or WGRAD */
    bool fp32;          /* operands are float, else bf16 */
    bool bias;          /* FORWARD with a bias that the product may add */
    uint8_t align[3];   /* addresses of a, b, c are multiples of it: 2, 4, 8 or TD_MATMUL_ALIGN */
} td_matmul_key;

typedef struct {
    td_matmul_key key;
    bool fused;                          /* the bias is added by the algorithm */
    double ms;                           /* of the algorithm, median */
    double ms_first;                     /* of the one that the library itself would have taken */
    uint64_t algo[TD_MATMUL_ALGO_WORDS]; /* cublasLtMatmulAlgo_t */
} td_matmul_record;

bool td_matmul_key_equal(const td_matmul_key *x, const td_matmul_key *y);

/* The file's records, in the arena; none if there is no such file, or it is damaged or of another
 * GPU or library. Fails with TD_NOMEM only. */
td_status td_matmul_cache_read(td_arena *a, const char *path, const char *gpu, uint64_t version,
                               int32_t *n, const td_matmul_record **out, td_err *err);

/* Replaces the file, at once, by what it holds and the records given; these win. TD_FILE. */
td_status td_matmul_cache_merge(const char *path, const char *gpu, uint64_t version, int32_t n,
                                const td_matmul_record *records, td_err *err);

#endif
