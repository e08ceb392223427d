/*
 * The optimizer's step on a device: statistics of gradients, the decisions between the collectives,
 * AdamW and the rounded copies. Spans are cut into chunks and a block takes a chunk, so that
 * tensors of any size share the multiprocessors evenly. All passes are bound by memory.
 */
extern "C" {
#include "exec/cuda_kernels.h"
}

#include "exec/kernels_block.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <assert.h>
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

enum {
    CHUNK = 1 << 14, /* elements */
    PARTS = TD_MIMO_SPAN / CHUNK,
    THREADS = 256,
    STATS_BLOCKS = 8, /* on a multiprocessor */
    BATCH = 4         /* elements or vectors that a thread has under way */
};

/* Part of a span; n <= 0 where the span ends before. */
typedef struct {
    const td_mimo_span *span;
    int64_t first;
    int n;
} chunk;

static __device__ chunk chunk_of(const td_mimo_span *spans, int64_t index)
{
    const td_mimo_span *span = spans + index / PARTS;
    const int64_t first = index % PARTS * CHUNK, rest = span->n - first;
    return chunk{span, first, (int)(rest < CHUNK ? rest : CHUNK)};
}

/* ---- statistics of gradients ---- */

/* What a block has of its chunks: {counted squares, > 0 if anything is not finite}. */
typedef double2 statistics;

static __device__ double square(float x)
{
    return (double)x * (double)x;
}

/* This thread's share of the sum of squares. */
static __device__ double squares(const float *__restrict__ g, int n)
{
    const cut c = cut_of(g, n);
    const float4 *vectors = (const float4 *)(g + c.head);
    const int edge = edge_of<float>(c);
    double sum[4] = {edge >= 0 ? square(g[edge]) : 0};
    for (int first = (int)threadIdx.x; first < c.n_vectors; first += BATCH * THREADS) {
        float4 batch[BATCH] = {};
        load<THREADS>(vectors, first, c.n_vectors, batch);
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            sum[0] += square(batch[k].x);
            sum[1] += square(batch[k].y);
            sum[2] += square(batch[k].z);
            sum[3] += square(batch[k].w);
        }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static __global__ void __launch_bounds__(THREADS)
    part_of_stats(const td_mimo_span *__restrict__ spans, int64_t n_chunks,
                  statistics *__restrict__ parts)
{
    double counted = 0, strange = 0;
    for (int64_t i = blockIdx.x; i < n_chunks; i += gridDim.x) {
        const chunk c = chunk_of(spans, i);
        if (c.n > 0) {
            /* Squares of finite floats cannot overflow a double: the sum is finite if and only if
             * every element is. */
            const double sum = squares(c.span->grad + c.first, c.n);
            if (!isfinite(sum))
                strange = 1;
            if (c.span->weight != 0)
                counted += sum * c.span->weight;
        }
    }
    counted = block_sum<THREADS>(counted);
    strange = block_sum<THREADS>(strange);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = make_double2(counted, strange);
}

static __global__ void __launch_bounds__(THREADS)
    sum_of_stats(const statistics *__restrict__ parts, int n, td_mimo_state *state)
{
    double counted = 0, strange = 0;
    for (int i = (int)threadIdx.x; i < n; i += THREADS) {
        counted += parts[i].x;
        strange += parts[i].y;
    }
    counted = block_sum<THREADS>(counted);
    strange = block_sum<THREADS>(strange);
    if (threadIdx.x == 0) {
        state->stats[0] += counted;
        if (strange > 0)
            state->stats[1] = 1;
    }
}

/* ---- decisions; exec/optimizer.h has their reasons ---- */

/* Infinity travels as DBL_MAX and nan as infinity: a maximum may lose a nan. */
static __device__ double encode(double sum)
{
    return isnan(sum) ? INFINITY : fmin(sum, DBL_MAX);
}

static __device__ double decode(double sent)
{
    return isinf(sent) ? NAN : sent >= DBL_MAX ? INFINITY : sent;
}

static __device__ void begin(td_mimo_state *s)
{
    const int64_t n_updates = s->n_updates;
    memset(s, 0, sizeof *s);
    s->n_updates = n_updates;
}

static __device__ void decide(const td_mimo_config *c, td_mimo_state *s)
{
    td_mimo_decision *d = &s->decision;
    const int64_t tokens = (int64_t)s->tokens[1];
    const double token_scale = 1.0 / (double)(tokens > 0 ? tokens : 1);
    double sum = 0;
    for (int32_t i = 0; i < c->n_modules; i++) /* in the vector's order: the same for any plan */
        sum += decode(s->vector[i]);
    for (int32_t m = 0; m < TD_MAX_MODULES; m++)
        d->module_norms[m] =
            m < c->n_modules ? sqrt(decode(s->vector[c->place[m]])) * token_scale : 0;
    d->norm = sqrt(sum) * token_scale;
    d->update = s->flag == 0 || c->nonfinite == TD_NONFINITE_PROPAGATE;
    const double coefficient = c->clip_grad / (d->norm + 1e-6);
    const bool clip = d->update && c->clip_grad > 0 && coefficient < 1;
    d->clip_coefficient = clip ? coefficient : 1;
    d->scale = d->update ? token_scale * d->clip_coefficient : 0;
    s->n_updates += d->update;
}

static __global__ void decision(td_mimo_piece piece, td_mimo_config c, int32_t module,
                                td_mimo_state *s)
{
    switch (piece) {
    case TD_MIMO_BEGIN:
        begin(s);
        break;
    case TD_MIMO_TOKENS:
        for (int i = 0; i < 2; i++)
            s->tokens[i] = module >= 0 ? s->loss[i] : 0;
        break;
    case TD_MIMO_FLAG:
        s->flag = s->stats[1] > 0 ? 1.0F : 0.0F;
        s->square = s->stats[0];
        break;
    case TD_MIMO_VECTOR:
        for (int32_t i = 0; i < c.n_modules; i++)
            s->vector[i] = module >= 0 && i == c.place[module] ? encode(s->square) : 0;
        break;
    case TD_MIMO_DECIDE:
        decide(&c, s);
        break;
    case TD_MIMO_DONE:
        s->success = s->decision.update;
        break;
    case TD_N_MIMO_PIECES:
        break;
    }
}

/* ---- AdamW ---- */

/* The same for all spans and steps, so a kernel's parameter: these are operands where they lie. */
typedef struct {
    double lr, decayed; /* learning rate; what decay leaves of a parameter */
    double beta1, beta2;
    double rest1, rest2; /* 1 - beta */
    double eps;
} constants;

/* Of this step and span. */
typedef struct {
    double scale; /* of the gradient */
    double keep;  /* of the parameter */
    double rate;  /* learning rate, the first moment's bias corrected */
    double root;  /* 1 / sqrt of the second moment's bias correction */
} factors;

static __device__ factors factors_of(const constants *c, const td_mimo_state *state, bool decay)
{
    const double step = (double)state->n_updates;
    return factors{state->decision.scale, decay ? c->decayed : 1, c->lr / (1 - pow(c->beta1, step)),
                   1 / sqrt(1 - pow(c->beta2, step))};
}

/* In double as on the host. Zeros, of which embeddings have many, must not leave the fast paths of
 * root and reciprocal: the root is never of 0, and the reciprocal is of a number that has eps. */
static __device__ void update(const constants *c, const factors *f, float *p, float *m, float *v,
                              float g)
{
    const double d = (double)g * f->scale;
    const double first = c->beta1 * (double)*m + c->rest1 * d;
    const double second = c->beta2 * (double)*v + c->rest2 * d * d;
    const double some = sqrt(second == 0 ? 1 : second), root = second == 0 ? 0 : some;
    const double inverse = 1 / (root * f->root + c->eps);
    *p = (float)((double)*p * f->keep - f->rate * first * inverse);
    *m = (float)first;
    *v = (float)second;
}

static __device__ unsigned misfit(const void *p)
{
    return (unsigned)((uintptr_t)p % 16);
}

static __device__ void adam_vectors(const constants *k, const factors *f, float *p, float *m,
                                    float *v, const float *__restrict__ g, int n)
{
    const cut c = cut_of(p, n);
    const int edge = edge_of<float>(c);
    float4 *ps = (float4 *)(p + c.head), *ms = (float4 *)(m + c.head), *vs = (float4 *)(v + c.head);
    const float4 *gs = (const float4 *)(g + c.head);
    for (int i = (int)threadIdx.x; i < c.n_vectors; i += THREADS) {
        float4 a = ps[i], b = ms[i], d = vs[i];
        const float4 slope = gs[i];
        update(k, f, &a.x, &b.x, &d.x, slope.x);
        update(k, f, &a.y, &b.y, &d.y, slope.y);
        update(k, f, &a.z, &b.z, &d.z, slope.z);
        update(k, f, &a.w, &b.w, &d.w, slope.w);
        ps[i] = a;
        ms[i] = b;
        vs[i] = d;
    }
    if (edge >= 0)
        update(k, f, p + edge, m + edge, v + edge, g[edge]);
}

/* Where the arrays' borders of 16 bytes do not coincide. */
static __device__ void adam_elements(const constants *c, const factors *f, float *p, float *m,
                                     float *v, const float *__restrict__ g, int n)
{
    for (int first = (int)threadIdx.x; first < n; first += BATCH * THREADS) {
        float a[BATCH], b[BATCH], d[BATCH], slope[BATCH];
        load<THREADS>(p, first, n, a);
        load<THREADS>(m, first, n, b);
        load<THREADS>(v, first, n, d);
        load<THREADS>(g, first, n, slope);
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (first + k * THREADS < n) {
                const int i = first + k * THREADS;
                update(c, f, &a[k], &b[k], &d[k], slope[k]);
                p[i] = a[k];
                m[i] = b[k];
                v[i] = d[k];
            }
    }
}

static __global__ void __launch_bounds__(THREADS)
    adam_of_chunk(constants k, const td_mimo_span *__restrict__ spans,
                  const td_mimo_state *__restrict__ state)
{
    __shared__ factors shared;
    const chunk c = chunk_of(spans, blockIdx.x);
    if (c.n <= 0 || !state->decision.update)
        return;
    if (threadIdx.x == 0)
        shared = factors_of(&k, state, c.span->decay);
    __syncthreads();
    const factors f = shared;
    float *p = c.span->param + c.first, *m = c.span->m + c.first, *v = c.span->v + c.first;
    const float *g = c.span->grad + c.first;
    if (misfit(p) == misfit(m) && misfit(p) == misfit(v) && misfit(p) == misfit(g))
        adam_vectors(&k, &f, p, m, v, g, c.n);
    else
        adam_elements(&k, &f, p, m, v, g, c.n);
}

/* ---- rounded copies ---- */

static __device__ void cast_vectors(const float *p, __nv_bfloat16 *copy, int n)
{
    const cut c = cut_of(p, n);
    const int edge = edge_of<float>(c);
    const float4 *ps = (const float4 *)(p + c.head);
    uint2 *copies = (uint2 *)(copy + c.head);
    for (int first = (int)threadIdx.x; first < c.n_vectors; first += BATCH * THREADS) {
        float4 batch[BATCH];
        load<THREADS>(ps, first, c.n_vectors, batch);
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (first + k * THREADS < c.n_vectors)
                copies[first + k * THREADS] =
                    make_uint2(pair_of(batch[k].x, batch[k].y), pair_of(batch[k].z, batch[k].w));
    }
    if (edge >= 0)
        put(copy + edge, p[edge]);
}

static __device__ void cast_elements(const float *p, __nv_bfloat16 *copy, int n)
{
    for (int first = (int)threadIdx.x; first < n; first += 2 * BATCH * THREADS) {
        float batch[2 * BATCH];
        load<THREADS>(p, first, n, batch);
#pragma unroll
        for (int k = 0; k < 2 * BATCH; k++)
            if (first + k * THREADS < n)
                put(copy + first + k * THREADS, batch[k]);
    }
}

static __global__ void __launch_bounds__(THREADS)
    cast_of_chunk(const td_mimo_span *__restrict__ spans)
{
    const chunk c = chunk_of(spans, blockIdx.x);
    if (c.n <= 0 || c.span->copy == NULL)
        return;
    const float *p = c.span->param + c.first;
    __nv_bfloat16 *copy = (__nv_bfloat16 *)c.span->copy + c.first;
    if ((uintptr_t)p % 16 == (uintptr_t)copy % 8 * 2) /* four elements start at a border of both */
        cast_vectors(p, copy, c.n);
    else
        cast_elements(p, copy, c.n);
}

/* ---- launchers ---- */

extern "C" void td_cuda_grad_stats(void *dev, const td_mimo_span *spans, int64_t n_spans,
                                   td_mimo_state *state)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    const cudaStream_t stream = (cudaStream_t)q->stream;
    statistics *parts = (statistics *)q->workspace;
    const int64_t n_chunks = n_spans * PARTS, room = (int64_t)(q->workspace_bytes / sizeof *parts);
    int64_t n_parts = (int64_t)q->n_sm * STATS_BLOCKS;
    n_parts = n_parts < n_chunks ? n_parts : n_chunks;
    n_parts = n_parts < room ? n_parts : room;
    if (n_spans > 0) {
        assert(n_parts > 0);
        part_of_stats<<<(unsigned)n_parts, THREADS, 0, stream>>>(spans, n_chunks, parts);
        sum_of_stats<<<1, THREADS, 0, stream>>>(parts, (int)n_parts, state);
    }
}

extern "C" void td_cuda_mimo(void *dev, td_mimo_piece piece, const td_mimo_config *c,
                             int32_t module, td_mimo_state *state)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    decision<<<1, 1, 0, (cudaStream_t)q->stream>>>(piece, *c, module, state);
}

extern "C" void td_cuda_adam(void *dev, const td_mimo_config *c, const td_mimo_span *spans,
                             int64_t n_spans, const td_mimo_state *state)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    const constants k = {
        c->lr, 1 - c->lr * c->weight_decay, c->beta1, c->beta2, 1 - c->beta1, 1 - c->beta2, c->eps};
    if (n_spans > 0)
        adam_of_chunk<<<(unsigned)(n_spans * PARTS), THREADS, 0, (cudaStream_t)q->stream>>>(
            k, spans, state);
}

extern "C" void td_cuda_cast(void *dev, const td_mimo_span *spans, int64_t n_spans)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    if (n_spans > 0)
        cast_of_chunk<<<(unsigned)(n_spans * PARTS), THREADS, 0, (cudaStream_t)q->stream>>>(spans);
}
