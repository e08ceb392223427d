/* Products in cuBLASLt's terms. */
#include "exec/cuda_matmul_product.h"

#include "exec/cuda_error.h"
#include "model/part.h"

#include <stdio.h>

enum { A = TD_MATMUL_A, B = TD_MATMUL_B, C = TD_MATMUL_C };

/*
 * The library thinks in columns, and a row-major matrix is its column-major transpose: c = a * b is
 * c^T = b^T * a^T, so b is its first operand and a its second. Extents are those of the
 * column-major matrices, of which the first is the leading dimension as well.
 */
enum { ROWS, N, K };
static const struct {
    cublasOperation_t op[TD_N_MATMUL];
    uint8_t extents[TD_N_MATMUL][2];
    float beta; /* of what c held before */
} passes[TD_PASS_BACKWARD] = {
    [TD_PASS_FORWARD] = {.op = {[A] = CUBLAS_OP_N, [B] = CUBLAS_OP_T},
                         .extents = {[A] = {K, ROWS}, [B] = {K, N}, [C] = {N, ROWS}}},
    [TD_PASS_DGRAD] = {.op = {[A] = CUBLAS_OP_N, [B] = CUBLAS_OP_N},
                       .extents = {[A] = {N, ROWS}, [B] = {K, N}, [C] = {K, ROWS}}},
    [TD_PASS_WGRAD] = {.op = {[A] = CUBLAS_OP_T, [B] = CUBLAS_OP_N},
                       .extents = {[A] = {N, ROWS}, [B] = {K, ROWS}, [C] = {K, N}},
                       .beta = 1},
};

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == TD_MATMUL_ALGO_WORDS * sizeof(uint64_t),
               "an algorithm is kept whole");

td_status td_matmul_failed(cublasStatus_t status, const char *what, td_err *err)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return TD_OK;
    return td_fail(err, TD_RUN, "cuBLASLt: %s: %s (%s)", what, cublasLtGetStatusString(status),
                   cublasLtGetStatusName(status));
}

td_status td_matmul_cuda_failed(cudaError_t error, const char *what, td_err *err)
{
    return td_cuda_failed((int)error, what, err);
}

/* ---- keys ---- */

static int64_t extent(const td_matmul_key *key, int matrix, int which)
{
    const int64_t extents[] = {[ROWS] = key->rows, [N] = key->n, [K] = key->k};
    return extents[passes[key->pass].extents[matrix][which]];
}

int64_t td_matmul_elements(const td_matmul_key *key, int matrix)
{
    return extent(key, matrix, 0) * extent(key, matrix, 1);
}

cudaDataType_t td_matmul_type(const td_matmul_key *key, int matrix)
{
    const bool gradient = matrix == C && key->pass == TD_PASS_WGRAD;
    return key->fp32 || gradient ? CUDA_R_32F : CUDA_R_16BF;
}

const char *td_matmul_key_text(const td_matmul_key *key, char *text, size_t size)
{
    const uint8_t *align = key->align;
    const bool odd = align[A] + align[B] + align[C] < TD_N_MATMUL * TD_MATMUL_ALIGN;
    char tail[32] = "";
    if (odd)
        snprintf(tail, sizeof tail, " at %d/%d/%d", align[A], align[B], align[C]);
    snprintf(text, size, "%s %s %lldx%lldx%lld%s%s", key->fp32 ? "fp32" : "bf16",
             td_pass_names[key->pass], (long long)key->rows, (long long)key->n, (long long)key->k,
             key->bias ? " bias" : "", tail);
    return text;
}

/* ---- descriptions ---- */

static td_status attribute(td_matmul_product *p, cublasLtMatmulDescAttributes_t which,
                           const void *value, size_t size, td_err *err)
{
    return td_matmul_failed(cublasLtMatmulDescSetAttribute(p->op, which, value, size),
                            "describing a product", err);
}

td_status td_matmul_point(td_matmul_product *p, const act *bias, td_err *err)
{
    return attribute(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias, err);
}

td_status td_matmul_fuse(td_matmul_product *p, bool fused, const void *somewhere, td_err *err)
{
    td_status st = TD_OK;
    const cublasLtEpilogue_t epilogue = fused ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    TD_TRY(st, attribute(p, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue, err));
    TD_TRY(st, td_matmul_point(p, fused ? somewhere : NULL, err));
    p->record.fused = fused;
done:
    return st;
}

td_status td_matmul_describe(td_matmul_product *p, td_err *err)
{
    td_status st = TD_OK;
    const td_matmul_key *key = &p->record.key;
    const cublasOperation_t *op = passes[key->pass].op;
    /* COMPUTE_32F is fp32 proper: TF32 has a compute type of its own. */
    TD_TRY(st, td_matmul_failed(cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                                "describing a product", err));
    TD_TRY(st, attribute(p, CUBLASLT_MATMUL_DESC_TRANSA, &op[B], sizeof *op, err));
    TD_TRY(st, attribute(p, CUBLASLT_MATMUL_DESC_TRANSB, &op[A], sizeof *op, err));
    for (int i = 0; i < TD_N_MATMUL; i++) {
        const int64_t rows = extent(key, i, 0), columns = extent(key, i, 1);
        TD_TRY(st,
               td_matmul_failed(cublasLtMatrixLayoutCreate(&p->layout[i], td_matmul_type(key, i),
                                                           (uint64_t)rows, (uint64_t)columns, rows),
                                "describing a matrix", err));
    }
done:
    return st;
}

void td_matmul_forget(td_matmul_product *p)
{
    if (p->op != NULL)
        cublasLtMatmulDescDestroy(p->op);
    for (int i = 0; i < TD_N_MATMUL; i++)
        if (p->layout[i] != NULL)
            cublasLtMatrixLayoutDestroy(p->layout[i]);
}

cublasStatus_t td_matmul_launch(const td_matmul_lib *lib, const td_matmul_product *p,
                                const cublasLtMatmulAlgo_t *algo, const act *a, const act *b,
                                void *c)
{
    static const float one = 1;
    const td_matmul_key *key = &p->record.key;
    const cublasLtMatrixLayout_t *layout = p->layout;
    return cublasLtMatmul(lib->handle, p->op, &one, b, layout[B], a, layout[A],
                          &passes[key->pass].beta, c, layout[C], c, layout[C], algo,
                          lib->queue->workspace, (size_t)key->limit, lib->queue->stream);
}

/* ---- algorithms ---- */

uint32_t td_matmul_setting(const cublasLtMatmulAlgo_t *algo,
                           cublasLtMatmulAlgoConfigAttributes_t which, size_t size)
{
    uint32_t value = 0; /* short settings fill its low half: hosts of GPUs are little-endian */
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(algo, which, &value, size, &written);
    return value;
}

/*
 * Partial sums of a split k are kept in fp32 and added in a step of their own. Added in place, or
 * in the type of the output, they would be rounded on the way; in place also in whatever order
 * blocks take turns.
 */
static bool reproducible(const cublasLtMatmulAlgo_t *algo)
{
    const uint32_t scheme =
        td_matmul_setting(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, sizeof scheme);
    return scheme == CUBLASLT_REDUCTION_SCHEME_NONE ||
           scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
}

td_status td_matmul_propose(const td_matmul_lib *lib, const td_matmul_product *p,
                            cublasLtMatmulAlgo_t out[TD_MATMUL_CANDIDATES], int *n, td_err *err)
{
    td_status st = TD_OK;
    const td_matmul_key *key = &p->record.key;
    const uint64_t workspace = (uint64_t)key->limit;
    const uint32_t a = key->align[A], b = key->align[B], c = key->align[C];
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* or no split at all */
    const struct {
        cublasLtMatmulPreferenceAttributes_t which;
        const void *value;
        size_t size;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b, sizeof b}, /* its A is b */
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a, sizeof a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c},
    };
    cublasLtMatmulHeuristicResult_t found[TD_MATMUL_CANDIDATES];
    cublasLtMatmulPreference_t wish = NULL;
    int n_found = 0;
    *n = 0;
    TD_TRY(st, td_matmul_failed(cublasLtMatmulPreferenceCreate(&wish), "stating a wish", err));
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        TD_TRY(st, td_matmul_failed(cublasLtMatmulPreferenceSetAttribute(
                                        wish, wishes[i].which, wishes[i].value, wishes[i].size),
                                    "stating a wish", err));
    const cublasStatus_t s =
        cublasLtMatmulAlgoGetHeuristic(lib->handle, p->op, p->layout[B], p->layout[A], p->layout[C],
                                       p->layout[C], wish, TD_MATMUL_CANDIDATES, found, &n_found);
    if (s == CUBLAS_STATUS_NOT_SUPPORTED) /* its way to say none */
        goto done;
    TD_TRY(st, td_matmul_failed(s, "looking for algorithms", err));
    for (int i = 0; i < n_found; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && found[i].workspaceSize <= workspace &&
            reproducible(&found[i].algo))
            out[(*n)++] = found[i].algo;
done:
    if (wish != NULL)
        cublasLtMatmulPreferenceDestroy(wish);
    return st;
}

bool td_matmul_valid(const td_matmul_lib *lib, const td_matmul_product *p)
{
    cublasLtMatmulHeuristicResult_t result = {0};
    const cublasStatus_t s = cublasLtMatmulAlgoCheck(lib->handle, p->op, p->layout[B], p->layout[A],
                                                     p->layout[C], p->layout[C], &p->algo, &result);
    return s == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= (size_t)p->record.key.limit &&
           reproducible(&p->algo);
}
