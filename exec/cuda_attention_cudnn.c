/*
 * Fused attention through cuDNN: the tables of exec/cuda_attention_graphs.h become descriptors, its
 * heuristics choose a kernel for the whole graph, and what is ready is kept for each shape.
 *
 * What cuDNN calls stats are the log-sum-exps. Before 9.26 it handles them right only when packed
 * [samples][heads][seq], which is how td_kernels has them.
 */
#include "exec/cuda_attention.h"
#include "exec/cuda_attention_graphs.h"
#include "exec/cuda_error.h"

#include <assert.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- descriptors ---- */

enum {
    OLDEST = 91002, /* version: before it other masks, sums to be zeroed first, wrong results */
    /* Up to this version the backward pass takes what stands after the last of a number of keys
     * that is no multiple of KEY_TILE for keys, unless it is given the lengths of samples. */
    COUNTS_PADDING = 91500,
    KEY_TILE = 128,
    MAX_HEAD_DIM = 256,
    MAX_CONFIGS = 8,     /* asked for per heuristic */
    MAX_HELD = 192,      /* descriptors of a graph; at most 150 are needed */
    WORKSPACE_UNIT = 256 /* bytes; alignment of the parts of the workspace */
};

/* A graph that is ready to run. cuDNN's descriptors refer to each other: all live as long. */
typedef struct {
    const char *name;
    cudnnBackendDescriptor_t held[MAX_HELD];
    int n_held;
    cudnnBackendDescriptor_t tensor[N_TENSORS]; /* NULL: not in the graph */
    cudnnBackendDescriptor_t plan;
    size_t own_bytes; /* cuDNN's part of the workspace */
} graph;

typedef struct shape_plan {
    struct shape_plan *next;
    td_attention_shape shape;
    graph forward, backward;
    int32_t *lengths;       /* seq, for each sample, on the device; NULL unless keys are padded */
    size_t sum_at, dots_at; /* in the workspace of the backward pass: D_Q_SUM, DOTS */
    size_t needs;           /* bytes of workspace */
    td_err refusal;         /* TD_OK: the graphs are ready */
} shape_plan;

struct td_cuda_attention_lib {
    td_cuda_queue *queue;
    cudnnHandle_t handle;
    shape_plan *plans;
    char too_large[128]; /* text of td_cuda_attention_has() */
};

/* cudnnStatus_t as ours; `step` and `what` say where. */
static td_status check(cudnnStatus_t status, const char *step, const char *what, td_err *err)
{
    char last[512] = "";
    if (status == CUDNN_STATUS_SUCCESS)
        return TD_OK;
    cudnnGetLastErrorString(last, sizeof last);
    return td_fail(err, TD_RUN, "cuDNN %s: %s %s: %s%s%s", td_cuda_attention_version(), step, what,
                   cudnnGetErrorString(status), last[0] != '\0' ? ": " : "", last);
}

typedef struct {
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t n;
    const void *values; /* NULL: left out */
} attribute;

/* A new descriptor, which `g` holds. */
static td_status create(graph *g, cudnnBackendDescriptorType_t type, const char *what,
                        cudnnBackendDescriptor_t *out, td_err *err)
{
    td_status st = TD_OK;
    assert(g->n_held < MAX_HELD);
    TD_TRY(st, check(cudnnBackendCreateDescriptor(type, &g->held[g->n_held]), "create", what, err));
    *out = g->held[g->n_held++];
done:
    return st;
}

/* A new descriptor with its attributes, finalized; `what` for messages. */
static td_status describe(graph *g, cudnnBackendDescriptorType_t type, const attribute *attributes,
                          size_t n, const char *what, cudnnBackendDescriptor_t *out, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, create(g, type, what, out, err));
    for (size_t i = 0; i < n; i++) {
        const attribute *a = &attributes[i];
        char step[32];
        snprintf(step, sizeof step, "set attribute %d of", (int)a->name);
        if (a->values != NULL)
            TD_TRY(st, check(cudnnBackendSetAttribute(*out, a->name, a->type, a->n, a->values),
                             step, what, err));
    }
    TD_TRY(st, check(cudnnBackendFinalize(*out), "finalize", what, err));
done:
    return st;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void release(graph *g)
{
    while (g->n_held > 0)
        cudnnBackendDestroyDescriptor(g->held[--g->n_held]);
    *g = (graph){0};
}

static int64_t extent(const td_attention_shape *s, char letter)
{
    switch (letter) {
    case 'b':
        return s->samples;
    case 'h':
        return s->heads;
    case 'k':
        return s->kv_heads;
    case 'w':
        return s->heads + 2 * (int64_t)s->kv_heads;
    case 's':
    case 't':
        return s->seq;
    case 'd':
        return s->head_dim;
    default:
        return 1;
    }
}

static bool is_head(char letter)
{
    return letter == 'h' || letter == 'k' || letter == 'w';
}

static int64_t stride(const td_attention_shape *s, const char *order, char letter)
{
    int64_t stride_of = 1;
    for (int i = 3; i >= 0 && order[i] != letter && !(is_head(order[i]) && is_head(letter)); i--)
        stride_of *= extent(s, order[i]);
    return stride_of;
}

/* The tensor's descriptor, made when it is first asked for: `out` points to it in `g`. */
static td_status tensor(graph *g, const td_attention_shape *s, tensor_id id, const void **out,
                        td_err *err)
{
    const tensor_row *row = &tensors[id];
    const bool is_virtual = row->kind == VIRTUAL, by_value = row->kind == VALUE;
    const int64_t uid = id, alignment = 16; /* bytes: rows are multiples of 8 elements */
    int64_t dims[4], strides[4];
    td_status st = TD_OK;
    for (int i = 0; i < 4; i++) {
        dims[i] = extent(s, row->dims[i]);
        strides[i] = stride(s, row->order, row->dims[i]);
    }
    const attribute attributes[] = {
        {CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &row->type},
        {CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims},
        {CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides},
        {CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid},
        {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment},
        {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual},
        {CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value}};
    if (g->tensor[id] == NULL)
        TD_TRY(st, describe(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR, attributes, COUNT(attributes),
                            row->name, &g->tensor[id], err));
    *out = &g->tensor[id];
done:
    return st;
}

/* ---- operations ---- */

/* What operations do with tensors: `to`, `from` and, where a product is padded, its three extents,
 * which the lengths of samples override. */
enum { TO, X, B, T, M, N, DEPTH, N_ROLES };

/* How a kind of operation is described to cuDNN: by what it does and, then, on which tensors. */
static const struct {
    cudnnBackendDescriptorType_t how, operation;
    cudnnBackendAttributeName_t math, mode;
    cudnnBackendAttributeType_t mode_type;
    cudnnBackendAttributeName_t of_how, of[N_ROLES]; /* 0: it has no such tensor */
} kinds[] = {
    [MATMUL] = {.how = CUDNN_BACKEND_MATMUL_DESCRIPTOR,
                .operation = CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
                .math = CUDNN_ATTR_MATMUL_COMP_TYPE,
                .of_how = CUDNN_ATTR_OPERATION_MATMUL_DESC,
                .of = {[X] = CUDNN_ATTR_OPERATION_MATMUL_ADESC,
                       [B] = CUDNN_ATTR_OPERATION_MATMUL_BDESC,
                       [TO] = CUDNN_ATTR_OPERATION_MATMUL_CDESC,
                       [M] = CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC,
                       [N] = CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC,
                       [DEPTH] = CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC}},
    [POINTWISE] = {.how = CUDNN_BACKEND_POINTWISE_DESCRIPTOR,
                   .operation = CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
                   .math = CUDNN_ATTR_POINTWISE_MATH_PREC,
                   .mode = CUDNN_ATTR_POINTWISE_MODE,
                   .mode_type = CUDNN_TYPE_POINTWISE_MODE,
                   .of_how = CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
                   .of = {[X] = CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                          [B] = CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                          [T] = CUDNN_ATTR_OPERATION_POINTWISE_TDESC,
                          [TO] = CUDNN_ATTR_OPERATION_POINTWISE_YDESC}},
    [REDUCTION] = {.how = CUDNN_BACKEND_REDUCTION_DESCRIPTOR,
                   .operation = CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
                   .math = CUDNN_ATTR_REDUCTION_COMP_TYPE,
                   .mode = CUDNN_ATTR_REDUCTION_OPERATOR,
                   .mode_type = CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
                   .of_how = CUDNN_ATTR_OPERATION_REDUCTION_DESC,
                   .of = {[X] = CUDNN_ATTR_OPERATION_REDUCTION_XDESC,
                          [TO] = CUDNN_ATTR_OPERATION_REDUCTION_YDESC}},
    [RESHAPE] = {
        .operation = CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
        .of = {
            [X] = CUDNN_ATTR_OPERATION_RESHAPE_XDESC, [TO] = CUDNN_ATTR_OPERATION_RESHAPE_YDESC}}};

static td_status operation_on(graph *g, const td_attention_shape *s, const operation *o,
                              const tensor_id on[N_ROLES], cudnnBackendDescriptor_t *out,
                              td_err *err)
{
    const char *what = tensors[o->to].name;
    const bool has_mode = o->kind == POINTWISE || o->kind == REDUCTION;
    const bool indexes = o->kind == POINTWISE && o->mode == CUDNN_POINTWISE_GEN_INDEX;
    const int64_t axis = o->to == QUERY || o->to == ROW ? 2 : 3; /* that GEN_INDEX counts along */
    cudnnBackendDescriptor_t how = NULL;
    attribute attributes[N_ROLES + 1];
    td_status st = TD_OK;
    const attribute of_how[] = {
        {kinds[o->kind].math, CUDNN_TYPE_DATA_TYPE, 1, &o->math},
        {kinds[o->kind].mode, kinds[o->kind].mode_type, 1, has_mode ? &o->mode : NULL},
        {CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, indexes ? &axis : NULL}};
    if (o->kind != RESHAPE)
        TD_TRY(st, describe(g, kinds[o->kind].how, of_how, COUNT(of_how), what, &how, err));
    for (int i = 0; i < N_ROLES; i++) {
        attributes[i] = (attribute){kinds[o->kind].of[i], CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, NULL};
        if (on[i] != NONE)
            TD_TRY(st, tensor(g, s, on[i], &attributes[i].values, err));
    }
    attributes[N_ROLES] = (attribute){kinds[o->kind].of_how, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                      how != NULL ? &how : NULL};
    TD_TRY(st,
           describe(g, kinds[o->kind].operation, attributes, COUNT(attributes), what, out, err));
done:
    return st;
}

/* Tensor with the lengths of a dimension. */
static tensor_id length_of(char letter)
{
    return letter == 's' ? N_QUERIES : letter == 't' ? N_KEYS : NONE;
}

/* The operations that the shape needs, in order. */
static td_status operations_of(graph *g, const td_attention_shape *s, unsigned has,
                               const operation *list, size_t n, cudnnBackendDescriptor_t *ops,
                               int64_t *n_ops, td_err *err)
{
    tensor_id is[N_TENSORS]; /* what stands for a tensor that is not there */
    td_status st = TD_OK;
    *n_ops = 0;
    for (tensor_id i = NONE; i < N_TENSORS; i++)
        is[i] = i;
    for (size_t i = 0; i < n; i++) {
        const operation *o = &list[i];
        tensor_id on[N_ROLES] = {
            [TO] = o->to, [X] = is[o->from[0]], [B] = is[o->from[1]], [T] = o->from[2]};
        if (o->kind == MATMUL && (has & PADDING) != 0) {
            on[M] = length_of(tensors[on[X]].dims[2]);
            on[N] = length_of(tensors[on[B]].dims[3]);
            on[DEPTH] = length_of(tensors[on[X]].dims[3]);
        }
        if (o->when == ALWAYS || (o->when & has) != 0)
            TD_TRY(st, operation_on(g, s, o, on, &ops[(*n_ops)++], err));
        else if (o->kind == POINTWISE && o->mode == CUDNN_POINTWISE_BINARY_SELECT)
            is[o->to] = on[X]; /* without a mask, scores are as they were */
    }
done:
    return st;
}

/* ---- plans ---- */

/* First of the heuristic's proposals that can be made into a plan. */
static td_status propose(graph *g, cudnnHandle_t handle, cudnnBackendDescriptor_t operations,
                         cudnnBackendHeurMode_t mode, td_err *err)
{
    cudnnBackendDescriptor_t heuristic, config[MAX_CONFIGS];
    const attribute of_heuristic[] = {
        {CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &operations},
        {CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode}};
    int64_t n = 0;
    td_status st = TD_OK;
    TD_TRY(st, describe(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, of_heuristic, COUNT(of_heuristic),
                        "heuristic", &heuristic, err));
    for (int i = 0; i < MAX_CONFIGS; i++)
        TD_TRY(st, create(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "engine configuration", &config[i],
                          err));
    TD_TRY(st,
           check(cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                          CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS, &n, config),
                 "get results of", "heuristic", err));
    if (n == 0)
        TD_TRY(st, td_fail(err, TD_RUN, "cuDNN %s: no engine for this graph",
                           td_cuda_attention_version()));
    for (int64_t i = 0; i < n && (i == 0 || st != TD_OK); i++) {
        const attribute of_plan[] = {
            {CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle},
            {CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
             &config[i]}};
        st = describe(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, of_plan, COUNT(of_plan), "plan",
                      &g->plan, err);
    }
done:
    return st;
}

static td_status build(graph *g, const char *name, cudnnHandle_t handle,
                       const td_attention_shape *s, unsigned has, const operation *list, size_t n,
                       td_err *err)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    cudnnBackendDescriptor_t ops[COUNT(backward_graph)], operations;
    td_err reason = {0}; /* the first one, of this pass */
    int64_t n_ops = 0, bytes = 0, count = 0;
    td_status st = TD_OK;
    g->name = name;
    TD_TRY(st, operations_of(g, s, has, list, n, ops, &n_ops, &reason));
    const attribute of_graph[] = {
        {CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle},
        {CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n_ops, ops}};
    TD_TRY(st, describe(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, of_graph, COUNT(of_graph),
                        "graph", &operations, &reason));
    st = TD_RUN;
    for (size_t i = 0; i < COUNT(modes) && st != TD_OK; i++)
        st = propose(g, handle, operations, modes[i], &reason);
    if (st == TD_OK)
        TD_TRY(st, check(cudnnBackendGetAttribute(g->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                                  CUDNN_TYPE_INT64, 1, &count, &bytes),
                         "get workspace of", "plan", &reason));
    g->own_bytes = (size_t)bytes;
done:
    if (st != TD_OK)
        td_fail(err, st, "attention %s: %s", name, reason.text);
    return st;
}

static size_t whole_units(size_t bytes)
{
    return (bytes + WORKSPACE_UNIT - 1) / WORKSPACE_UNIT * WORKSPACE_UNIT;
}

/* The length of every sample, for as long as the plan lives. */
static td_status keep_lengths(shape_plan *p, td_err *err)
{
    const size_t bytes = (size_t)p->shape.samples * sizeof *p->lengths;
    int32_t *lengths = malloc(bytes);
    td_status st = TD_OK;
    if (lengths == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for lengths of samples"));
    for (int32_t i = 0; i < p->shape.samples; i++)
        lengths[i] = p->shape.seq;
    TD_TRY(st, td_cuda_failed((int)cudaMalloc((void **)&p->lengths, bytes), "cudaMalloc", err));
    TD_TRY(st, td_cuda_failed((int)cudaMemcpy(p->lengths, lengths, bytes, cudaMemcpyHostToDevice),
                              "cudaMemcpy", err));
done:
    free(lengths);
    return st;
}

/* What cuDNN would refuse too, with fewer words, or wrongly accept. */
static td_status refuse(const td_cuda_attention_lib *a, const td_attention_shape *s, td_err *err)
{
    const struct {
        bool it;
        const char *why;
    } reasons[] = {
        {!a->queue->bf16, "cuDNN's fused attention is for bf16, activations are fp32"},
        {s->head_dim % 8 != 0, "cuDNN's fused attention wants head_dim to be a multiple of 8"},
        {s->head_dim > MAX_HEAD_DIM, "cuDNN's fused attention wants head_dim <= 256"},
        {s->heads % s->kv_heads != 0, "cuDNN's fused attention wants heads / kv_heads whole"},
        {s->seq < 2, "cuDNN has no gradient of attention over one row"}};
    for (size_t i = 0; i < COUNT(reasons); i++)
        if (reasons[i].it)
            return td_fail(err, TD_ABSENT, "%s", reasons[i].why);
    return TD_OK;
}

static td_status prepare(td_cuda_attention_lib *a, shape_plan *p)
{
    const td_attention_shape *s = &p->shape;
    const bool padding = s->seq % KEY_TILE != 0 && cudnnGetVersion() <= COUNTS_PADDING;
    const unsigned has = (s->causal ? CAUSAL : 0u) | (s->heads != s->kv_heads ? GROUPS : NO_GROUPS);
    const size_t queries = (size_t)s->samples * (size_t)s->heads * (size_t)s->seq;
    td_err *err = &p->refusal;
    td_status st = TD_OK;
    TD_TRY(st, refuse(a, s, err));
    TD_TRY(st, build(&p->forward, "forward", a->handle, s, has, forward_graph, COUNT(forward_graph),
                     err));
    TD_TRY(st, build(&p->backward, "backward", a->handle, s, has | (padding ? PADDING : 0u),
                     backward_graph, COUNT(backward_graph), err));
    if (padding)
        TD_TRY(st, keep_lengths(p, err));
    p->sum_at = whole_units(p->backward.own_bytes);
    p->dots_at = p->sum_at + whole_units(queries * (size_t)s->head_dim * sizeof(float));
    p->needs = p->dots_at + whole_units(queries * sizeof(float));
    if (p->needs < p->forward.own_bytes)
        p->needs = p->forward.own_bytes;
done:
    return st;
}

static bool same_shape(const td_attention_shape *a, const td_attention_shape *b)
{
    return a->samples == b->samples && a->seq == b->seq && a->heads == b->heads &&
           a->kv_heads == b->kv_heads && a->head_dim == b->head_dim && a->causal == b->causal;
}

static void discard(shape_plan *p)
{
    release(&p->forward);
    release(&p->backward);
    cudaFree(p->lengths);
    free(p);
}

/* The shape's plan, made on the first call, or its refusal; NULL without memory for either. */
static shape_plan *plan_of(td_cuda_attention_lib *a, const td_attention_shape *s)
{
    shape_plan *p = a->plans;
    while (p != NULL && !same_shape(&p->shape, s))
        p = p->next;
    if (p == NULL && (p = calloc(1, sizeof *p)) != NULL) {
        p->shape = *s;
        p->next = a->plans;
        a->plans = p;
        prepare(a, p); /* fails into p->refusal */
    }
    return p;
}

/* ---- the interface ---- */

const char *td_cuda_attention_version(void)
{
    static char text[32];
    const size_t v = cudnnGetVersion();
    snprintf(text, sizeof text, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return text;
}

td_status td_cuda_attention_open(td_cuda_queue *queue, td_cuda_attention_lib **out, td_err *err)
{
    td_cuda_attention_lib *a = calloc(1, sizeof *a);
    td_status st = TD_OK;
    cudnnStatus_t status;
    if (a == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for cuDNN's plans"));
    if (cudnnGetVersion() < OLDEST)
        TD_TRY(st, td_fail(err, TD_ABSENT, "cuDNN %s is loaded, attention needs 9.10.2 or later",
                           td_cuda_attention_version()));
    if ((status = cudnnCreate(&a->handle)) != CUDNN_STATUS_SUCCESS)
        TD_TRY(st, td_fail(err, TD_ABSENT, "cuDNN %s cannot be used: %s",
                           td_cuda_attention_version(), cudnnGetErrorString(status)));
    a->queue = queue;
    *out = a;
    a = NULL;
done:
    td_cuda_attention_close(a);
    return st;
}

void td_cuda_attention_close(td_cuda_attention_lib *a)
{
    if (a == NULL)
        return;
    while (a->plans != NULL) {
        shape_plan *next = a->plans->next;
        discard(a->plans);
        a->plans = next;
    }
    if (a->handle != NULL)
        cudnnDestroy(a->handle);
    free(a);
}

bool td_cuda_attention_has(td_cuda_attention_lib *a, const td_attention_shape *s, const char **why)
{
    const shape_plan *p = plan_of(a, s);
    *why = "";
    if (p == NULL) {
        *why = "no memory for a plan of attention";
    } else if (p->refusal.status != TD_OK) {
        *why = p->refusal.text;
    } else if (p->needs > a->queue->workspace_bytes) {
        snprintf(a->too_large, sizeof a->too_large,
                 "cuDNN's attention needs %zu bytes of workspace, there are %zu", p->needs,
                 a->queue->workspace_bytes);
        *why = a->too_large;
    }
    return (*why)[0] == '\0';
}

size_t td_cuda_attention_needs(td_cuda_attention_lib *a, const td_attention_shape *s)
{
    const shape_plan *p = plan_of(a, s);
    return p != NULL && p->refusal.status == TD_OK ? p->needs : 0;
}

/* Where the tensors of an execution are; VALUEs are here. */
typedef struct {
    void *of[N_TENSORS];
    float scale, hidden, one;
} places;

static td_status locate(td_cuda_attention_lib *a, const td_attention_shape *s, places *at,
                        const shape_plan **plan, td_err *err)
{
    const char *why;
    td_status st = TD_OK;
    if (!td_cuda_attention_has(a, s, &why))
        TD_TRY(st, td_fail(err, TD_RUN, "attention of a shape without a plan: %s", why));
    *plan = plan_of(a, s);
    *at = (places){.scale = (float)(1 / sqrt((double)s->head_dim)), .hidden = -INFINITY, .one = 1};
    at->of[SCALE] = &at->scale;
    at->of[HIDDEN] = &at->hidden;
    at->of[ONE] = &at->one;
    at->of[N_QUERIES] = at->of[N_KEYS] = (*plan)->lengths;
done:
    return st;
}

/* Element of `rows` where q, k or v begins: `heads` of them stand before it. */
static void *after(const void *rows, int32_t heads, const td_attention_shape *s)
{
    const size_t bf16_bytes = 2;
    return (char *)(uintptr_t)rows + (size_t)heads * (size_t)s->head_dim * bf16_bytes;
}

static td_status execute(td_cuda_attention_lib *a, const graph *g, const places *at, td_err *err)
{
    int64_t uids[N_TENSORS], n = 0;
    void *pointers[N_TENSORS];
    graph pack = {.name = g->name}; /* holds but the variant pack */
    cudnnBackendDescriptor_t variant;
    td_status st = TD_OK;
    for (tensor_id i = NONE; i < N_TENSORS; i++)
        if (g->tensor[i] != NULL && tensors[i].kind != VIRTUAL) {
            uids[n] = i;
            pointers[n++] = at->of[i];
        }
    const attribute attributes[] = {
        {CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uids},
        {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, pointers},
        {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &a->queue->workspace}};
    TD_TRY(st, describe(&pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, attributes, COUNT(attributes),
                        "variant pack", &variant, err));
    TD_TRY(st, check(cudnnSetStream(a->handle, a->queue->stream), "set stream for", g->name, err));
    TD_TRY(st, check(cudnnBackendExecute(a->handle, g->plan, variant), "execute attention's",
                     g->name, err));
done:
    release(&pack);
    return st;
}

td_status td_cuda_attention_forward(td_cuda_attention_lib *a, const act *qkv, act *out, float *lse,
                                    const td_attention_shape *s, td_err *err)
{
    const shape_plan *p;
    places at;
    td_status st = TD_OK;
    TD_TRY(st, locate(a, s, &at, &p, err));
    at.of[Q] = after(qkv, 0, s);
    at.of[K_T] = after(qkv, s->heads, s);
    at.of[V] = after(qkv, s->heads + s->kv_heads, s);
    at.of[OUT] = out;
    at.of[LSE] = lse;
    TD_TRY(st, execute(a, &p->forward, &at, err));
done:
    return st;
}

td_status td_cuda_attention_gradient(td_cuda_attention_lib *a, const act *dout, const act *qkv,
                                     const act *out, const float *lse, act *dqkv,
                                     const td_attention_shape *s, td_err *err)
{
    const shape_plan *p;
    places at;
    td_status st = TD_OK;
    TD_TRY(st, locate(a, s, &at, &p, err));
    at.of[Q] = after(qkv, 0, s);
    at.of[K_T] = after(qkv, s->heads, s);
    at.of[V_T] = after(qkv, s->heads + s->kv_heads, s);
    at.of[OUT] = after(out, 0, s);
    at.of[D_OUT] = after(dout, 0, s);
    at.of[LSE] = after(lse, 0, s);
    at.of[D_Q] = after(dqkv, 0, s);
    at.of[D_K] = after(dqkv, s->heads, s);
    at.of[D_V] = after(dqkv, s->heads + s->kv_heads, s);
    at.of[D_Q_SUM] = (char *)a->queue->workspace + p->sum_at;
    at.of[DOTS] = (char *)a->queue->workspace + p->dots_at;
    TD_TRY(st, execute(a, &p->backward, &at, err));
done:
    return st;
}
