/*
 * Which of several algorithms is fastest: run in turn on operands of their own, which look like a
 * network's and do not fit into the L2 cache, and timed by events on the compute stream.
 */
#include "exec/cuda_matmul_product.h"

#include "model/part.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { A = TD_MATMUL_A, B = TD_MATMUL_B, C = TD_MATMUL_C };
enum {
    MIN_CANDIDATES = 3,
    MIN_ROUNDS = 5,
    MAX_ROUNDS = 15,
    MAX_REPEATS = 8,
    MAX_COPIES = 1024,
    REGION = 256 /* bytes that the place of an operand is a multiple of */
};
static const int64_t operand_bytes = INT64_C(200) << 20; /* four times the L2 cache of an H200 */
static const double measure_ms = 60;                     /* of GPU time per shape, about */
static const double interval_ms = 0.05; /* at least, against the resolution of events */
static const double hopeless = 1.5;     /* slower than the best by this at first sight: dropped */

/* Spread of the values of a and b: activations 1, weights 0.02. Power depends on values, and the
 * clock on power. */
static const double sigmas[TD_PASS_BACKWARD][TD_N_MATMUL] = {
    [TD_PASS_FORWARD] = {[A] = 1, [B] = 0.02},
    [TD_PASS_DGRAD] = {[A] = 1, [B] = 0.02},
    [TD_PASS_WGRAD] = {[A] = 1, [B] = 1},
};
static const double sigma_bias = 0.02;

/* ---- operands of our own ---- */

/* So many copies, one after another, that each has left the L2 cache again when its turn comes. */
typedef struct {
    char *memory; /* NULL: there is not enough */
    char *bias, *first[TD_N_MATMUL];
    size_t place[TD_N_MATMUL]; /* bytes from one copy to the next */
    size_t copies, turn;
} operands;

static size_t place_bytes(int64_t n, cudaDataType_t type)
{
    const size_t element = type == CUDA_R_32F ? sizeof(float) : 2;
    return ((size_t)n * element + TD_MATMUL_ALIGN + REGION - 1) / REGION * REGION;
}

/* Takes memory for as many copies as are wanted and possible. In the stream's order: cudaMalloc and
 * cudaFree may wait for the whole GPU, and so for a peer that waits for us. */
static td_status operands_allocate(const td_matmul_lib *lib, operands *o, size_t set, size_t bias,
                                   td_err *err)
{
    cudaError_t e = cudaErrorMemoryAllocation;
    void *memory = NULL;
    while (o->copies > 0 && e == cudaErrorMemoryAllocation) {
        e = cudaMallocAsync(&memory, bias + o->copies * set, lib->queue->stream);
        if (e == cudaErrorMemoryAllocation) {
            cudaGetLastError(); /* or it would be found and taken for a kernel's */
            memory = NULL;
            o->copies /= 2;
        }
    }
    o->memory = memory;
    return o->copies == 0 ? TD_OK : td_matmul_cuda_failed(e, "memory to try products with", err);
}

/* One copy, or as many as are good to measure with. The contents are whatever was there. */
static td_status operands_open(const td_matmul_lib *lib, const td_matmul_key *key, bool one,
                               operands *o, td_err *err)
{
    td_status st = TD_OK;
    const size_t bias = place_bytes(key->n, td_matmul_type(key, A));
    size_t set = 0;
    *o = (operands){0};
    for (int i = 0; i < TD_N_MATMUL; i++) {
        o->place[i] = place_bytes(td_matmul_elements(key, i), td_matmul_type(key, i));
        set += o->place[i];
    }
    o->copies = one ? 1 : (size_t)operand_bytes / set;
    o->copies = o->copies < 1 ? 1 : o->copies > MAX_COPIES ? MAX_COPIES : o->copies;
    TD_TRY(st, operands_allocate(lib, o, set, bias, err));
    if (o->memory == NULL)
        goto done;
    o->bias = o->memory;
    char *end = o->memory + bias;
    for (int i = 0; i < TD_N_MATMUL; i++) {
        o->first[i] = end;
        end += o->copies * o->place[i];
    }
done:
    return st;
}

/* Gives the memory back to the GPU, which a synchronisation after the freeing does. */
static td_status operands_close(const td_matmul_lib *lib, operands *o, td_err *err)
{
    td_status st = TD_OK;
    if (o->memory == NULL)
        goto done;
    TD_TRY(st, td_matmul_cuda_failed(cudaFreeAsync(o->memory, lib->queue->stream),
                                     "after trying products", err));
    TD_TRY(st, td_matmul_cuda_failed(cudaStreamSynchronize(lib->queue->stream),
                                     "after trying products", err));
done:
    o->memory = NULL;
    return st;
}

/* Values like those of a network; what is added to begins at zero. */
static td_status operands_fill(const td_matmul_lib *lib, const td_matmul_key *key,
                               const operands *o, td_err *err)
{
    static const uint32_t words[TD_N_MATMUL][2] = {[A] = {1, 2}, [B] = {3, 4}, [C] = {5, 6}};
    const int64_t element = key->fp32 ? (int64_t)sizeof(float) : 2;
    for (int i = A; i <= B; i++) {
        const int64_t n = (int64_t)(o->copies * o->place[i]) / element;
        td_cuda_fill_normal(lib->queue, words[i], sigmas[key->pass][i], 1, n, 0, 0, n, false,
                            o->first[i]);
    }
    td_cuda_fill_normal(lib->queue, words[C], sigma_bias, 1, key->n, 0, 0, key->n, false, o->bias);
    return td_matmul_cuda_failed(
        cudaMemsetAsync(o->first[C], 0, o->copies * o->place[C], lib->queue->stream),
        "values to try products with", err);
}

/* An address in the copy whose turn it is, exactly as aligned as the key says. */
static void *operand(const operands *o, const td_matmul_key *key, int matrix)
{
    return o->first[matrix] + o->turn % o->copies * o->place[matrix] +
           key->align[matrix] % TD_MATMUL_ALIGN;
}

static cublasStatus_t launch_next(const td_matmul_lib *lib, const td_matmul_product *p,
                                  const cublasLtMatmulAlgo_t *algo, operands *o)
{
    const td_matmul_key *key = &p->record.key;
    o->turn++;
    return td_matmul_launch(lib, p, algo, operand(o, key, A), operand(o, key, B),
                            operand(o, key, C));
}

/* ---- measuring ---- */

typedef struct {
    cublasLtMatmulAlgo_t algo;
    double guess;          /* ms, at first sight */
    double ms[MAX_ROUNDS]; /* of one product */
} candidate;

typedef struct {
    int n, n_rounds, n_repeats;
    candidate list[TD_MATMUL_CANDIDATES]; /* the library's first choice first */
    cudaEvent_t events[TD_MATMUL_CANDIDATES + 1];
} contest;

static const char measuring[] = "measuring products";

/*
 * The stream waits here until all of a round is queued, so that no launch is late; queueing takes
 * half a millisecond. Not for ever: under some tools a launch returns only when it has run.
 */
static void CUDART_CB wait_for_word(void *word)
{
    const double patience_s = 0.02;
    struct timespec begin = {0}, now = {0};
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (!atomic_load((atomic_bool *)word) &&
             (double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec) <
                 patience_s);
}

/* Every candidate in turn, so that all see the same clocks; round r begins with candidate r. */
static td_status run_round(td_matmul_lib *lib, const td_matmul_product *p, operands *o, contest *c,
                           int round, td_err *err)
{
    td_status st = TD_OK;
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    cudaError_t e = cudaSuccess;
    atomic_store(&lib->word, false);
    TD_TRY(st,
           td_matmul_cuda_failed(cudaLaunchHostFunc(lib->queue->stream, wait_for_word, &lib->word),
                                 measuring, err));
    e = cudaEventRecord(c->events[0], lib->queue->stream);
    for (int i = 0; i < c->n && e == cudaSuccess && s == CUBLAS_STATUS_SUCCESS; i++) {
        const candidate *one = &c->list[(i + round) % c->n];
        for (int k = 0; k < c->n_repeats && s == CUBLAS_STATUS_SUCCESS; k++)
            s = launch_next(lib, p, &one->algo, o);
        e = cudaEventRecord(c->events[i + 1], lib->queue->stream);
    }
    atomic_store(&lib->word, true); /* whatever happened: the stream waits */
    const cudaError_t end = cudaStreamSynchronize(lib->queue->stream);
    TD_TRY(st, td_matmul_failed(s, measuring, err));
    TD_TRY(st, td_matmul_cuda_failed(e, measuring, err));
    TD_TRY(st, td_matmul_cuda_failed(end, measuring, err));
    for (int i = 0; i < c->n; i++) {
        float ms = 0;
        e = cudaEventElapsedTime(&ms, c->events[i], c->events[i + 1]);
        TD_TRY(st, td_matmul_cuda_failed(e, measuring, err));
        c->list[(i + round) % c->n].ms[round] = (double)ms / c->n_repeats;
    }
done:
    return st;
}

/* Everything once, untimed: a kernel is loaded when it is first launched, which may wait for the
 * GPU. Who does not run is out. */
static td_status load(const td_matmul_lib *lib, const td_matmul_product *p, operands *o, contest *c,
                      td_err *err)
{
    td_status st = TD_OK;
    const int n = c->n;
    c->n = 0;
    for (int i = 0; i < n; i++) {
        if (launch_next(lib, p, &c->list[i].algo, o) == CUBLAS_STATUS_SUCCESS)
            c->list[c->n++] = c->list[i];
        else
            cudaGetLastError(); /* it has been heard */
    }
    TD_TRY(st, td_matmul_cuda_failed(cudaStreamSynchronize(lib->queue->stream), measuring, err));
    if (c->n == 0)
        TD_TRY(st, td_fail(err, TD_RUN, "cuBLASLt: none of its %d algorithms runs", n));
done:
    return st;
}

static int by_guess(const void *x, const void *y)
{
    const double a = ((const candidate *)x)->guess, b = ((const candidate *)y)->guess;
    return (a > b) - (a < b);
}

static int ascending(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static double median(const double *values, int n)
{
    double sorted[MAX_ROUNDS];
    memcpy(sorted, values, (size_t)n * sizeof *values);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    return n % 2 != 0 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static int between(double value, int low, int high)
{
    return value < low ? low : value > high ? high : (int)value;
}

/*
 * Two rounds of one product each tell who has a chance, and how many rounds of how many products
 * there is time for. The library's first choice stays, to be compared with, and so do the two
 * fastest others, whatever the time.
 */
static td_status plan_rounds(td_matmul_lib *lib, const td_matmul_product *p, operands *o,
                             contest *c, td_err *err)
{
    td_status st = TD_OK;
    c->n_repeats = 1;
    for (int round = 0; round < 2; round++)
        TD_TRY(st, run_round(lib, p, o, c, round, err));
    for (int i = 0; i < c->n; i++)
        c->list[i].guess = fmin(c->list[i].ms[0], c->list[i].ms[1]);
    qsort(c->list + 1, (size_t)c->n - 1, sizeof *c->list, by_guess);
    const double best = fmin(c->list[0].guess, c->list[c->n > 1].guess);
    double sum = c->list[0].guess;
    int n = 1;
    while (n < c->n && c->list[n].guess <= best * hopeless &&
           (n < MIN_CANDIDATES || (sum + c->list[n].guess) * MIN_ROUNDS <= measure_ms))
        sum += c->list[n++].guess;
    c->n = n;
    c->n_repeats = between(ceil(interval_ms / best), 1, MAX_REPEATS);
    c->n_rounds = between(measure_ms / (sum * c->n_repeats), MIN_ROUNDS, MAX_ROUNDS);
done:
    return st;
}

static td_status compete(td_matmul_lib *lib, td_matmul_product *p, operands *o, contest *c,
                         td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, operands_fill(lib, &p->record.key, o, err));
    if (p->record.fused)
        TD_TRY(st, td_matmul_point(p, o->bias, err));
    for (int i = 0; i <= c->n; i++)
        TD_TRY(st, td_matmul_cuda_failed(cudaEventCreate(&c->events[i]), measuring, err));
    TD_TRY(st, load(lib, p, o, c, err));
    TD_TRY(st, plan_rounds(lib, p, o, c, err));
    for (int round = 0; round < c->n_rounds; round++)
        TD_TRY(st, run_round(lib, p, o, c, round, err));
    for (int i = 0; i < c->n; i++) {
        const double ms = median(c->list[i].ms, c->n_rounds);
        if (i == 0)
            p->record.ms_first = ms;
        if (i == 0 || ms < p->record.ms) {
            p->record.ms = ms;
            p->algo = c->list[i].algo;
        }
    }
    p->measured = true;
done:
    for (int i = 0; i <= TD_MATMUL_CANDIDATES; i++)
        if (c->events[i] != NULL)
            cudaEventDestroy(c->events[i]);
    return st;
}

td_status td_matmul_measure(td_matmul_lib *lib, td_matmul_product *p, td_err *err)
{
    td_status st = TD_OK, freed = TD_OK;
    const td_matmul_key *key = &p->record.key;
    cublasLtMatmulAlgo_t proposed[TD_MATMUL_CANDIDATES];
    contest c = {0};
    operands o = {0};
    char text[96];
    /* Ours would be mixed up with it. NotReady is an answer to a query. */
    const cudaError_t before = cudaPeekAtLastError();
    if (before != cudaErrorNotReady)
        TD_TRY(st, td_matmul_cuda_failed(before, "before measuring products", err));
    TD_TRY(st, td_matmul_fuse(p, key->bias, lib->queue->workspace, err));
    TD_TRY(st, td_matmul_propose(lib, p, proposed, &c.n, err));
    if (c.n == 0 && key->bias) {
        TD_TRY(st, td_matmul_fuse(p, false, NULL, err));
        TD_TRY(st, td_matmul_propose(lib, p, proposed, &c.n, err));
    }
    if (c.n == 0)
        TD_TRY(st,
               td_fail(err, TD_RUN, "cuBLASLt has no algorithm for %s with %lld MiB of workspace",
                       td_matmul_key_text(key, text, sizeof text), (long long)(key->limit >> 20)));
    for (int i = 0; i < c.n; i++)
        c.list[i].algo = proposed[i];
    p->algo = proposed[0];
    TD_TRY(st, operands_open(lib, key, false, &o, err));
    if (o.memory != NULL)
        TD_TRY(st, compete(lib, p, &o, &c, err));
done:
    freed = operands_close(lib, &o, err);
    return st != TD_OK ? st : freed;
}

td_status td_matmul_try(const td_matmul_lib *lib, td_matmul_product *p, bool *good, td_err *err)
{
    td_status st = TD_OK, freed = TD_OK;
    operands o = {0};
    *good = true; /* as far as can be told without memory */
    TD_TRY(st, operands_open(lib, &p->record.key, true, &o, err));
    if (o.memory == NULL)
        goto done;
    if (p->record.fused)
        TD_TRY(st, td_matmul_point(p, o.bias, err));
    *good = launch_next(lib, p, &p->algo, &o) == CUBLAS_STATUS_SUCCESS;
    if (!*good)
        cudaGetLastError(); /* it has been heard */
done:
    freed = operands_close(lib, &o, err);
    return st != TD_OK ? st : freed;
}
