/*
 * Attention and its gradient as two graphs of cuDNN operations, for which the library has fused
 * kernels. It finds them by pattern: operations, their order, types and shapes are those of
 * NVIDIA's cudnn-frontend for sdpa and sdpa_backward (the mathematics is Dao et al., 2022), with
 * tandem's strides. Included by exec/cuda_attention_cudnn.c alone.
 */
#ifndef TANDEM_EXEC_CUDA_ATTENTION_GRAPHS_H
#define TANDEM_EXEC_CUDA_ATTENTION_GRAPHS_H

#include <cudnn.h>

/*
 * Tensors. VIRTUAL ones are steps within a kernel, MEMORY is on the device, a VALUE on the host. A
 * dimension is a letter, and so is a stride: it is that of the letter in the order of the elements
 * in memory.
 *     b samples   h heads   k heads of keys and values   s queries   t keys   d head_dim
 *     w heads of a row of q, k and v together: h or k is one of them
 */
#define TENSOR_MAP(X)                                                                              \
    X(Q, BFLOAT16, MEMORY, "bhsd", "bswd")                                                         \
    X(K_T, BFLOAT16, MEMORY, "bkdt", "btwd")                                                       \
    X(V, BFLOAT16, MEMORY, "bktd", "btwd")                                                         \
    X(V_T, BFLOAT16, MEMORY, "bkdt", "btwd")                                                       \
    X(OUT, BFLOAT16, MEMORY, "bhsd", "bshd")                                                       \
    X(LSE, FLOAT, MEMORY, "bhs1", "bhs1")                                                          \
    X(SCALE, FLOAT, VALUE, "1111", "1111")  /* of scores: 1 / sqrt(head_dim) */                    \
    X(HIDDEN, FLOAT, VALUE, "1111", "1111") /* score of a key that is not seen: -infinity */       \
    X(ONE, FLOAT, VALUE, "1111", "1111")                                                           \
    X(N_QUERIES, INT32, MEMORY, "b111", "b111") /* both are seq */                                 \
    X(N_KEYS, INT32, MEMORY, "b111", "b111")                                                       \
    /* scores */                                                                                   \
    X(SCORES, FLOAT, VIRTUAL, "bhst", "bhst")                                                      \
    X(SCALED, FLOAT, VIRTUAL, "bhst", "bhst")                                                      \
    X(LESS_LSE, FLOAT, VIRTUAL, "bhst", "bhst")                                                    \
    X(QUERY, INT32, VIRTUAL, "bhst", "bhst")                                                       \
    X(KEY, INT32, VIRTUAL, "bhst", "bhst")                                                         \
    X(QUERY_IS, BOOLEAN, VIRTUAL, "bhst", "bhst") /* is there such a query? */                     \
    X(KEY_IS, BOOLEAN, VIRTUAL, "bhst", "bhst")                                                    \
    X(BOTH_ARE, BOOLEAN, VIRTUAL, "bhst", "bhst")                                                  \
    X(PADDED, FLOAT, VIRTUAL, "bhst", "bhst")                                                      \
    X(ROW, INT32, VIRTUAL, "bhst", "bhst")                                                         \
    X(COLUMN, INT32, VIRTUAL, "bhst", "bhst")                                                      \
    X(SEEN, BOOLEAN, VIRTUAL, "bhst", "bhst")                                                      \
    X(MASKED, FLOAT, VIRTUAL, "bhst", "bhst")                                                      \
    /* softmax of the forward pass */                                                              \
    X(MAX, FLOAT, VIRTUAL, "bhs1", "bhs1")                                                         \
    X(LESS_MAX, FLOAT, VIRTUAL, "bhst", "bhst")                                                    \
    X(EXP, FLOAT, VIRTUAL, "bhst", "bhst")                                                         \
    X(SUM, FLOAT, VIRTUAL, "bhs1", "bhs1")                                                         \
    X(LOG_SUM, FLOAT, VIRTUAL, "bhs1", "bhs1")                                                     \
    X(SOFTMAX, BFLOAT16, VIRTUAL, "bhst", "bhst")                                                  \
    /* backward pass; the dots are sums of dout * out over a query's row */                        \
    X(D_OUT, BFLOAT16, MEMORY, "bhsd", "bshd")                                                     \
    X(D_OUT_OUT, FLOAT, VIRTUAL, "bhsd", "bshd")                                                   \
    X(ROW_SUM, FLOAT, VIRTUAL, "bhs1", "bhs1")                                                     \
    X(DOTS, FLOAT, MEMORY, "bhs1", "bhs1")                                                         \
    X(P, FLOAT, VIRTUAL, "bhst", "bhst")                                                           \
    X(P_T, BFLOAT16, VIRTUAL, "bhts", "bhst")                                                      \
    X(D_V_HEADS, BFLOAT16, VIRTUAL, "bhtd", "bhtd")                                                \
    X(D_V, BFLOAT16, MEMORY, "bktd", "btwd")                                                       \
    X(D_P, FLOAT, VIRTUAL, "bhst", "bhst")                                                         \
    X(D_P_LESS_DOTS, FLOAT, VIRTUAL, "bhst", "bhst")                                               \
    X(D_SCALED, FLOAT, VIRTUAL, "bhst", "bhst")                                                    \
    X(D_SCORES, FLOAT, VIRTUAL, "bhst", "bhst")                                                    \
    X(D_SCORES_T, BFLOAT16, VIRTUAL, "bhts", "bhst")                                               \
    X(D_K_HEADS, BFLOAT16, VIRTUAL, "bhtd", "bhtd")                                                \
    X(D_K, BFLOAT16, MEMORY, "bktd", "btwd")                                                       \
    X(K, FLOAT, VIRTUAL, "bktd", "btwd")                                                           \
    X(D_Q_SUM, FLOAT, MEMORY, "bhsd", "bhsd")                                                      \
    X(D_Q, BFLOAT16, MEMORY, "bhsd", "bswd")

typedef enum {
    NONE, /* so that cuDNN's identifiers of tensors, which are these, count from 1 */
#define X(name, type, kind, dims, order) name,
    TENSOR_MAP(X)
#undef X
        N_TENSORS
} tensor_id;

typedef struct {
    const char *name;
    cudnnDataType_t type;
    enum { VIRTUAL, MEMORY, VALUE } kind;
    char dims[5], order[5];
} tensor_row;

static const tensor_row tensors[N_TENSORS] = {
#define X(name, type, kind, dims, order) [name] = {#name, CUDNN_DATA_##type, kind, dims, order},
    TENSOR_MAP(X)
#undef X
};

typedef struct {
    enum { MATMUL, POINTWISE, REDUCTION, RESHAPE } kind;
    int mode; /* cudnnPointwiseMode_t or cudnnReduceTensorOp_t */
    tensor_id to, from[3];
    cudnnDataType_t math;
    unsigned when; /* what a shape must be for the operation to be there; ALWAYS: anything */
} operation;

enum { ALWAYS = 0, CAUSAL = 1, PADDING = 2, GROUPS = 4, NO_GROUPS = 8 };

/* In a row: mode, output, type of the arithmetic, when, inputs; TURN swaps the last two dimensions.
 */
#define OPERATION(kind, mode, to, math, when, ...)                                                 \
    {                                                                                              \
        kind, mode, to, {__VA_ARGS__}, math, when                                                  \
    }
#define PRODUCT(to, a, b, when) OPERATION(MATMUL, 0, to, CUDNN_DATA_FLOAT, when, a, b)
#define REDUCE(mode, to, x, when)                                                                  \
    OPERATION(REDUCTION, CUDNN_REDUCE_TENSOR_##mode, to, CUDNN_DATA_FLOAT, when, x)
#define TURN(to, x) OPERATION(RESHAPE, 0, to, CUDNN_DATA_FLOAT, ALWAYS, x)
#define POINT(mode, to, math, when, ...)                                                           \
    OPERATION(POINTWISE, CUDNN_POINTWISE_##mode, to, CUDNN_DATA_##math, when, __VA_ARGS__)

/* A mask that a shape does not need (BINARY_SELECT) stands for the scores that it would mask. */
static const operation forward_graph[] = {
    PRODUCT(SCORES, Q, K_T, ALWAYS),
    POINT(MUL, SCALED, FLOAT, ALWAYS, SCORES, SCALE),
    POINT(GEN_INDEX, ROW, FLOAT, CAUSAL, SCALED),
    POINT(GEN_INDEX, COLUMN, FLOAT, CAUSAL, SCALED),
    POINT(CMP_GE, SEEN, BOOLEAN, CAUSAL, ROW, COLUMN),
    POINT(BINARY_SELECT, MASKED, FLOAT, CAUSAL, SCALED, HIDDEN, SEEN),
    REDUCE(MAX, MAX, MASKED, ALWAYS),
    POINT(SUB, LESS_MAX, FLOAT, ALWAYS, MASKED, MAX),
    POINT(EXP, EXP, FLOAT, ALWAYS, LESS_MAX),
    REDUCE(ADD, SUM, EXP, ALWAYS),
    POINT(LOG, LOG_SUM, FLOAT, ALWAYS, SUM),
    POINT(ADD, LSE, FLOAT, ALWAYS, MAX, LOG_SUM),
    POINT(DIV, SOFTMAX, FLOAT, ALWAYS, EXP, SUM),
    PRODUCT(OUT, SOFTMAX, V, ALWAYS),
};

static const operation backward_graph[] = {
    POINT(MUL, D_OUT_OUT, FLOAT, ALWAYS, D_OUT, OUT),
    REDUCE(ADD, ROW_SUM, D_OUT_OUT, ALWAYS),
    POINT(MUL, DOTS, FLOAT, ALWAYS, ROW_SUM, ONE), /* where a dropout would be taken out */
    PRODUCT(SCORES, Q, K_T, ALWAYS),
    POINT(MUL, SCALED, FLOAT, ALWAYS, SCORES, SCALE),
    POINT(SUB, LESS_LSE, FLOAT, ALWAYS, SCALED, LSE),
    POINT(GEN_INDEX, QUERY, INT32, PADDING, LESS_LSE),
    POINT(GEN_INDEX, KEY, INT32, PADDING, LESS_LSE),
    POINT(CMP_LT, QUERY_IS, BOOLEAN, PADDING, QUERY, N_QUERIES),
    POINT(CMP_LT, KEY_IS, BOOLEAN, PADDING, KEY, N_KEYS),
    POINT(LOGICAL_AND, BOTH_ARE, BOOLEAN, PADDING, QUERY_IS, KEY_IS),
    POINT(BINARY_SELECT, PADDED, FLOAT, PADDING, LESS_LSE, HIDDEN, BOTH_ARE),
    POINT(GEN_INDEX, ROW, FLOAT, CAUSAL, PADDED),
    POINT(GEN_INDEX, COLUMN, FLOAT, CAUSAL, PADDED),
    POINT(CMP_GE, SEEN, BOOLEAN, CAUSAL, ROW, COLUMN),
    POINT(BINARY_SELECT, MASKED, FLOAT, CAUSAL, PADDED, HIDDEN, SEEN),
    POINT(EXP, P, FLOAT, ALWAYS, MASKED),
    TURN(P_T, P),
    PRODUCT(D_V, P_T, D_OUT, NO_GROUPS),
    PRODUCT(D_V_HEADS, P_T, D_OUT, GROUPS),
    REDUCE(ADD, D_V, D_V_HEADS, GROUPS),
    PRODUCT(D_P, D_OUT, V_T, ALWAYS),
    POINT(SUB, D_P_LESS_DOTS, FLOAT, ALWAYS, D_P, DOTS),
    POINT(MUL, D_SCALED, FLOAT, ALWAYS, D_P_LESS_DOTS, P),
    POINT(MUL, D_SCORES, FLOAT, ALWAYS, D_SCALED, SCALE),
    TURN(D_SCORES_T, D_SCORES),
    PRODUCT(D_K, D_SCORES_T, Q, NO_GROUPS),
    PRODUCT(D_K_HEADS, D_SCORES_T, Q, GROUPS),
    REDUCE(ADD, D_K, D_K_HEADS, GROUPS),
    TURN(K, K_T),
    PRODUCT(D_Q_SUM, D_SCORES, K, ALWAYS),
    POINT(IDENTITY, D_Q, FLOAT, ALWAYS, D_Q_SUM),
};

#endif
