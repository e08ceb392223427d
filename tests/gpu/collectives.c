/*
 * test-cuda-collectives: the collectives of exec/cuda_group.h between the GPUs of this machine,
 * against sums that the processor computes in the same order of addition: every bit of every member
 * must be equal, and what stands around the operands must stay. Then their times beside NCCL's.
 */
#include "tests/gpu/collectives.h"
#include "exec/cuda_matmul.h"

#include <math.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SKIPPED = 77, GUARD = 256, GUARD_BYTE = 0xA5, LATE_MS = 50 };

static const char usage[] =
    "usage: mpirun -np N test-cuda-collectives [--time] [--sweep] [--csv FILE]\n"
    "Checks collectives over peers' memory between the first N GPUs, or prints the time they take\n"
    "beside NCCL's.\n"
    "  --time         times instead of checks\n"
    "  --sweep        with --time: also with 8 to 128 blocks\n"
    "  --csv FILE     with --time: the same as numbers\n"
    "Exit: 0 all passed, 1 not, 2 usage, 77 fewer GPUs than ranks.\n"
    "example: mpirun -np 2 test-cuda-collectives --time --csv collectives.csv\n";

/* ---- small things ---- */

void td_gang_must(bool fine, const char *what, const char *why)
{
    if (fine)
        return;
    printf("FAILED: %s: %s\n", what, why);
    fflush(stdout);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}

void td_gang_cuda(cudaError_t error, const char *what)
{
    td_gang_must(error == cudaSuccess, what, cudaGetErrorString(error));
}

void td_gang_say(const td_gang *g, const char *format, ...)
{
    va_list rest;
    if (g->me != 0)
        return;
    va_start(rest, format);
    vprintf(format, rest);
    va_end(rest);
    fflush(stdout);
}

/* A law that does not hold; the others go on. */
static void fails(td_gang *g, const char *what)
{
    g->n_failed++;
    printf("FAILED: rank %d: %s\n", (int)g->me, what);
    fflush(stdout);
}

static void holds(td_gang *g, bool law, const char *what)
{
    if (!law)
        fails(g, what);
}

static double now_s(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void nap(long ms)
{
    const struct timespec t = {.tv_nsec = ms * 1000000};
    nanosleep(&t, NULL);
}

static void *memory(size_t bytes)
{
    void *p = malloc(bytes + 1);
    td_gang_must(p != NULL, "memory of the host", "none is left");
    return p;
}

void td_gang_run(td_gang *g, const td_collective_call *call, bool bf16, cudaStream_t stream)
{
    td_err err = {0};
    td_gang_must(td_cuda_group_has(&g->group, call, bf16), td_collectives[call->coll]->name,
                 "the group does not have it");
    td_gang_must(td_cuda_group_run(&g->group, call, bf16, stream, &err) == TD_OK,
                 td_collectives[call->coll]->name, err.text);
}

/* ---- calls ---- */

static int64_t size_of(const td_gang_call *c)
{
    return c->bf16 ? 2 : 4;
}

/* Bytes of the share that a rank has before a gathering and after a scattering. */
static int64_t share_of(const td_gang *g, const td_gang_call *c)
{
    return c->count / g->n * size_of(c);
}

td_collective_call td_gang_call_of(const td_gang *g, const td_gang_call *c)
{
    const int64_t off = c->shift * size_of(c), own = g->me * share_of(g, c);
    char *in = g->arena + TD_AT_IN + off, *out = c->in_place ? in : g->arena + TD_AT_OUT + off;
    if (c->in_place && c->coll == TD_COLL_ALL_GATHER)
        in += own;
    if (c->in_place && c->coll == TD_COLL_REDUCE_SCATTER)
        out += own;
    return (td_collective_call){.coll = c->coll,
                                .reduction = c->reduction,
                                .in = in,
                                .out = out,
                                .count = c->count,
                                .type = c->bf16 ? TD_TYPE_ACT : TD_TYPE_F32};
}

/* ---- numbers ---- */

/* Element i of a member's operand, in [-1, 1). */
static float number(uint64_t seed, int32_t member, int64_t i)
{
    uint64_t x = (seed * 64 + (uint64_t)member) * UINT64_C(0x9E3779B97F4A7C15) + (uint64_t)i;
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9); /* as SplitMix64 does */
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (float)((double)(int32_t)(x >> 32) * 0x1p-31);
}

/* The upper half of a float, nearest, ties to even. */
static uint16_t half_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static float value_of(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float operand(const td_gang_call *c, uint64_t seed, int32_t member, int64_t i)
{
    const float x = number(seed, member, i);
    return c->bf16 ? value_of(half_of(x)) : x;
}

static void put(const td_gang_call *c, char *buffer, int64_t i, float x)
{
    const uint16_t half = half_of(x);
    memcpy(buffer + i * size_of(c), c->bf16 ? (const void *)&half : (const void *)&x,
           (size_t)size_of(c));
}

/* Element i of the whole when all members have been combined. */
static float combined(const td_gang *g, const td_gang_call *c, uint64_t seed, int64_t i)
{
    float all = operand(c, seed, 0, i);
    for (int32_t m = 1; m < g->n; m++) {
        const float x = operand(c, seed, m, i);
        all = c->reduction == TD_REDUCE_MAX ? fmaxf(all, x) : all + x;
    }
    return all;
}

/* ---- a trial ---- */

/* A stretch of the arena with its guards: what it holds before the call and must hold after it. */
typedef struct {
    char *at; /* in the arena, first guard byte */
    size_t bytes;
    char *before, *after;
} window;

static window window_of(const void *operand_at, int64_t bytes)
{
    window w = {.at = (char *)(uintptr_t)operand_at - GUARD, .bytes = (size_t)bytes + 2 * GUARD};
    w.before = memory(w.bytes);
    w.after = memory(w.bytes);
    memset(w.before, GUARD_BYTE, w.bytes);
    return w;
}

static void free_window(window *w)
{
    free(w->before);
    free(w->after);
}

static void upload(const window *w)
{
    td_gang_cuda(cudaMemcpy(w->at, w->before, w->bytes, cudaMemcpyHostToDevice), "uploading");
}

static void compare(td_gang *g, const window *w, const char *trial, const char *which)
{
    char text[256], *got = memory(w->bytes);
    size_t first = 0, n = 0;
    td_gang_cuda(cudaMemcpy(got, w->at, w->bytes, cudaMemcpyDeviceToHost), "downloading");
    if (memcmp(got, w->after, w->bytes) != 0)
        for (size_t i = w->bytes; i-- > 0;)
            if (got[i] != w->after[i]) {
                first = i;
                n++;
            }
    if (n > 0) {
        snprintf(text, sizeof text, "%s, %s: %zu of %zu bytes are wrong, the first at %lld", trial,
                 which, n, w->bytes - 2 * GUARD, (long long)first - GUARD);
        fails(g, text);
    }
    free(got);
}

/* What this rank's operands hold before and after, from the numbers of all. */
static void fill(const td_gang *g, const td_gang_call *c, const td_collective_call *call,
                 uint64_t seed, window *in, window *out)
{
    const int64_t share = c->count / g->n;
    const int64_t n_in = c->coll == TD_COLL_ALL_GATHER ? share : c->count;
    char *from = in->before + ((const char *)call->in - in->at);
    for (int64_t i = 0; i < n_in; i++)
        put(c, from, i, operand(c, seed, g->me, i));
    memcpy(in->after, in->before, in->bytes);
    if (out != in)
        memcpy(out->after, out->before, out->bytes);
    char *to = out->after + ((const char *)call->out - out->at);
    if (c->coll == TD_COLL_ALL_GATHER)
        for (int64_t i = 0; i < c->count; i++)
            put(c, to, i, operand(c, seed, (int32_t)(i / share), i % share));
    else if (c->coll == TD_COLL_REDUCE_SCATTER)
        for (int64_t i = 0; i < share; i++)
            put(c, to, i, combined(g, c, seed, g->me * share + i));
    else
        for (int64_t i = 0; i < c->count; i++)
            put(c, to, i, combined(g, c, seed, i));
}

static void play(td_gang *g, const td_collective_call *call, bool bf16)
{
    cudaGraph_t graph;
    cudaGraphExec_t recorded;
    td_gang_cuda(cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeRelaxed), "recording");
    td_gang_run(g, call, bf16, g->stream);
    td_gang_cuda(cudaStreamEndCapture(g->stream, &graph), "recording");
    td_gang_cuda(cudaGraphInstantiate(&recorded, graph, 0), "recording");
    td_gang_cuda(cudaGraphLaunch(recorded, g->stream), "playing");
    td_gang_cuda(cudaStreamSynchronize(g->stream), "playing");
    cudaGraphExecDestroy(recorded);
    cudaGraphDestroy(graph);
}

/* As it is, then out of a graph. */
static void try_call(td_gang *g, const td_gang_call *c, uint64_t seed)
{
    const td_collective_call call = td_gang_call_of(g, c);
    const int64_t whole = c->count * size_of(c), off = c->shift * size_of(c);
    char text[160];
    snprintf(text, sizeof text, "%s %s %s of %lld%s%s", td_collectives[c->coll]->name,
             c->bf16 ? "bf16" : "fp32", c->reduction == TD_REDUCE_MAX ? "max" : "sum",
             (long long)c->count, c->in_place ? ", in place" : "", c->shift > 0 ? ", shifted" : "");
    window in = window_of(g->arena + TD_AT_IN + off, whole);
    window apart = window_of(g->arena + TD_AT_OUT + off, whole);
    window *out = c->in_place ? &in : &apart;
    fill(g, c, &call, seed, &in, out);
    for (int recorded = 0; recorded < 2; recorded++) {
        upload(&in);
        if (out != &in)
            upload(out);
        td_gang_cuda(cudaDeviceSynchronize(), "uploading");
        if (recorded)
            play(g, &call, c->bf16);
        else
            td_gang_run(g, &call, c->bf16, g->stream);
        td_gang_cuda(cudaStreamSynchronize(g->stream), text);
        compare(g, &in, text, c->in_place ? "the operand" : "what was read");
        if (out != &in)
            compare(g, out, text, "what was written");
    }
    free_window(&in);
    free_window(&apart);
}

static void check_trials(td_gang *g)
{
    static const int64_t counts[] = {1,    2,     3,       7,       8,        9,
                                     31,   64,    255,     1000,    4095,     4096,
                                     4097, 65537, 1048579, 1 << 21, 12345677, 1 << 25};
    static const td_coll colls[] = {TD_COLL_ALL_REDUCE, TD_COLL_REDUCE_SCATTER, TD_COLL_ALL_GATHER};
    static const struct {
        bool bf16;
        td_reduction reduction;
    } kinds[] = {{true, TD_REDUCE_SUM}, {false, TD_REDUCE_SUM}, {false, TD_REDUCE_MAX}};
    uint64_t seed = 1;
    const double begin = now_s();
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (size_t k = 0; k < sizeof colls / sizeof *colls; k++)
            for (size_t j = 0; j < sizeof kinds / sizeof *kinds; j++)
                for (int how = 0; how < 4; how++) {
                    const bool all = colls[k] == TD_COLL_ALL_REDUCE, large = counts[i] > 1 << 20;
                    td_gang_call c = {.coll = colls[k],
                                      .bf16 = kinds[j].bf16,
                                      .reduction = kinds[j].reduction,
                                      .count = counts[i],
                                      .in_place = how & 1,
                                      .shift = how >> 1};
                    if (!c.bf16 && counts[i] > 1 << 24)
                        c.count = 1 << 24; /* 64 MiB */
                    if (!all && c.count < 1 << 20)
                        c.count *= g->n;
                    c.count = all ? c.count : c.count / g->n * g->n;
                    /* The large ones take the processor long: each as it is used. */
                    if ((large && how != (all ? 1 : 0)) ||
                        (!all && kinds[j].reduction != TD_REDUCE_SUM))
                        continue;
                    try_call(g, &c, seed++);
                }
    td_gang_say(g, "%d trials, each also out of a graph, %.1f s\n", (int)seed - 1, now_s() - begin);
}

/* 1 GiB, of which every 4099th element is looked at: 4099 is prime. */
static void check_gigabyte(td_gang *g)
{
    const td_gang_call c = {
        .coll = TD_COLL_ALL_REDUCE, .bf16 = true, .count = 1 << 29, .in_place = true};
    const td_collective_call call = td_gang_call_of(g, &c);
    const size_t bytes = (size_t)c.count * 2;
    uint16_t *x = memory(bytes);
    int64_t wrong = 0;
    for (int64_t i = 0; i < c.count; i++)
        x[i] = half_of((float)((i * 7 + g->me * 3) % 61));
    td_gang_cuda(cudaMemcpy(call.out, x, bytes, cudaMemcpyHostToDevice), "uploading");
    td_gang_cuda(cudaDeviceSynchronize(), "uploading");
    td_gang_run(g, &call, true, g->stream);
    td_gang_cuda(cudaStreamSynchronize(g->stream), "1 GiB");
    td_gang_cuda(cudaMemcpy(x, call.out, bytes, cudaMemcpyDeviceToHost), "downloading");
    for (int64_t i = 0; i < c.count; i += i + 4099 < c.count || i == c.count - 1 ? 4099 : 1) {
        float all = 0;
        for (int32_t m = 0; m < g->n; m++)
            all += (float)((i * 7 + m * 3) % 61);
        wrong += x[i] != half_of(all);
    }
    holds(g, wrong == 0, "1 GiB is not summed");
    free(x);
    MPI_Barrier(MPI_COMM_WORLD);
    td_gang_say(g, "1 GiB\n");
}

/* ---- many, without waiting ---- */

enum { REPLAYS = 1000, ELEMENTS = 4080 /* 2, 3, 4, 5 and 8 share them */ };

/* Small whole numbers, whose sums are exact. */
static float small(int32_t member, int64_t k, int64_t i)
{
    return (float)((i * 3 + k * 7 + member * 11) % 97);
}

/* The sum in place, scattered to another place and gathered to a third, as a graph. */
static cudaGraphExec_t record_chain(td_gang *g, float *sum, float *part, float *all)
{
    cudaGraph_t graph;
    cudaGraphExec_t recorded;
    const td_collective_call calls[] = {
        {.coll = TD_COLL_ALL_REDUCE, .in = sum, .out = sum, .count = ELEMENTS, .type = TD_TYPE_F32},
        {.coll = TD_COLL_REDUCE_SCATTER,
         .in = sum,
         .out = part,
         .count = ELEMENTS,
         .type = TD_TYPE_F32},
        {.coll = TD_COLL_ALL_GATHER,
         .in = part,
         .out = all,
         .count = ELEMENTS,
         .type = TD_TYPE_F32}};
    td_gang_cuda(cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeRelaxed), "recording");
    for (int i = 0; i < 3; i++)
        td_gang_run(g, &calls[i], false, g->stream);
    td_gang_cuda(cudaStreamEndCapture(g->stream, &graph), "recording");
    td_gang_cuda(cudaGraphInstantiate(&recorded, graph, 0), "recording");
    cudaGraphDestroy(graph);
    return recorded;
}

/* Replays of one graph on changing numbers, which the host queues without ever waiting. */
static void check_replays(td_gang *g, const char *what)
{
    const size_t bytes = ELEMENTS * sizeof(float);
    float *sum = (float *)(void *)(g->arena + TD_AT_IN), *part = sum + 2 * ELEMENTS,
          *all = sum + 4 * ELEMENTS, *given, *sums, *alls;
    int64_t wrong = 0;
    td_gang_cuda(cudaMallocHost((void **)&given, REPLAYS * bytes), "memory of the host");
    td_gang_cuda(cudaMallocHost((void **)&sums, REPLAYS * bytes), "memory of the host");
    td_gang_cuda(cudaMallocHost((void **)&alls, REPLAYS * bytes), "memory of the host");
    for (int64_t k = 0; k < REPLAYS; k++)
        for (int64_t i = 0; i < ELEMENTS; i++)
            given[k * ELEMENTS + i] = small(g->me, k, i);
    const cudaGraphExec_t chain = record_chain(g, sum, part, all);
    for (int64_t k = 0; k < REPLAYS; k++) {
        const int64_t at = k * ELEMENTS;
        td_gang_cuda(cudaMemcpyAsync(sum, given + at, bytes, cudaMemcpyDefault, g->stream), what);
        td_gang_cuda(cudaGraphLaunch(chain, g->stream), what);
        td_gang_cuda(cudaMemcpyAsync(sums + at, sum, bytes, cudaMemcpyDefault, g->stream), what);
        td_gang_cuda(cudaMemcpyAsync(alls + at, all, bytes, cudaMemcpyDefault, g->stream), what);
    }
    td_gang_cuda(cudaStreamSynchronize(g->stream), what);
    for (int64_t k = 0; k < REPLAYS; k++)
        for (int64_t i = 0; i < ELEMENTS; i++) {
            float want = 0;
            for (int32_t m = 0; m < g->n; m++)
                want += small(m, k, i);
            wrong += sums[k * ELEMENTS + i] != want;
            wrong += alls[k * ELEMENTS + i] != want * (float)g->n;
        }
    holds(g, wrong == 0, what);
    cudaGraphExecDestroy(chain);
    cudaFreeHost(given);
    cudaFreeHost(sums);
    cudaFreeHost(alls);
    MPI_Barrier(MPI_COMM_WORLD);
    td_gang_say(g, "%s: %d replays\n", what, REPLAYS);
}

/* ---- beside others ---- */

/* The multiprocessors are busy with a product, and NCCL's kernels hold some and wait for peers. */
static void check_beside(td_gang *g)
{
    enum { SIZE = 4096, PRODUCTS = 200, SUMS = 40, SUM_BYTES = 64 << 20 };
    const size_t bytes = (size_t)SIZE * SIZE * 2;
    td_cuda_queue queue = {.bf16 = true, .workspace_bytes = 64 << 20};
    td_cuda_matmul *products = NULL;
    td_err err = {0};
    cudaStream_t busy, nccl;
    char *operands, *summed;
    struct cudaDeviceProp gpu;
    td_arena *a = td_arena_new();
    int device;
    td_gang_must(a != NULL, "memory of the host", "none is left");
    td_gang_cuda(cudaGetDevice(&device), "the GPU");
    td_gang_cuda(cudaGetDeviceProperties(&gpu, device), "the GPU");
    td_gang_cuda(cudaStreamCreateWithFlags(&busy, cudaStreamNonBlocking), "a stream");
    td_gang_cuda(cudaStreamCreateWithFlags(&nccl, cudaStreamNonBlocking), "a stream");
    td_gang_cuda(cudaMalloc(&queue.workspace, queue.workspace_bytes), "the workspace");
    td_gang_cuda(cudaMalloc((void **)&operands, 3 * bytes), "operands");
    td_gang_cuda(cudaMalloc((void **)&summed, SUM_BYTES), "operands");
    td_gang_cuda(cudaMemset(operands, 0, 3 * bytes), "operands");
    td_gang_cuda(cudaMemset(summed, 0, SUM_BYTES), "operands");
    td_gang_cuda(cudaDeviceSynchronize(), "operands");
    queue.stream = busy;
    queue.n_sm = gpu.multiProcessorCount;
    td_gang_must(td_cuda_matmul_open(a, &queue, NULL, &products, &err) == TD_OK, "products",
                 err.text);
    for (int i = 0; i < PRODUCTS; i++)
        td_gang_must(td_cuda_matmul_run(products, TD_PASS_FORWARD, operands, operands + bytes, NULL,
                                        operands + 2 * bytes, SIZE, SIZE, SIZE, &err) == TD_OK,
                     "a product", err.text);
    for (int i = 0; i < SUMS; i++) {
        const ncclResult_t r =
            ncclAllReduce(summed, summed, SUM_BYTES / 2, ncclBfloat16, ncclSum, g->nccl, nccl);
        td_gang_must(r == ncclSuccess, "NCCL", ncclGetErrorString(r));
    }
    check_replays(g, "beside products and NCCL");
    td_gang_cuda(cudaDeviceSynchronize(), "beside products and NCCL");
    td_cuda_matmul_close(products);
    cudaFree(queue.workspace);
    cudaFree(operands);
    cudaFree(summed);
    cudaStreamDestroy(busy);
    cudaStreamDestroy(nccl);
    td_arena_free(a);
    MPI_Barrier(MPI_COMM_WORLD);
}

/* ---- late and lost members ---- */

static void check_late(td_gang *g)
{
    const td_gang_call c = {
        .coll = TD_COLL_ALL_REDUCE, .bf16 = true, .count = 1 << 15, .in_place = true};
    const td_collective_call call = td_gang_call_of(g, &c);
    for (int32_t late = 0; late < g->n; late++) {
        MPI_Barrier(MPI_COMM_WORLD);
        const double begin = now_s();
        if (g->me == late)
            nap(LATE_MS);
        td_gang_run(g, &call, true, g->stream);
        td_gang_cuda(cudaStreamSynchronize(g->stream), "waiting for a late member");
        holds(g, (now_s() - begin) * 1e3 > LATE_MS - 5, "did not wait for a late member");
        holds(g, (now_s() - begin) * 1e3 < 20 * LATE_MS, "waited too long for a late member");
    }
    td_gang_say(g, "a member that comes %d ms late is waited for\n", LATE_MS);
}

/* Rank 0 never comes. */
static void check_lost(td_gang *g)
{
    const td_gang_call c = {
        .coll = TD_COLL_ALL_REDUCE, .bf16 = true, .count = 1 << 23, .in_place = true};
    const td_collective_call call = td_gang_call_of(g, &c);
    cudaError_t state = cudaSuccess;
    MPI_Barrier(MPI_COMM_WORLD);
    if (g->me != 0) {
        td_gang_run(g, &call, true, g->stream);
        td_gang_run(g, &call, true, g->stream);
        nap(LATE_MS);
        holds(g, cudaStreamQuery(g->stream) == cudaErrorNotReady, "did not wait for a lost member");
        td_cuda_group_abandon(&g->group);
        const double begin = now_s();
        while ((state = cudaStreamQuery(g->stream)) == cudaErrorNotReady && now_s() - begin < 2)
            ;
        td_gang_must(state == cudaSuccess, "abandoning", cudaGetErrorString(state));
        printf("rank %d: abandoned after %.1f ms\n", (int)g->me, (now_s() - begin) * 1e3);
    }
    MPI_Barrier(MPI_COMM_WORLD);
}

/* ---- opening ---- */

static void open_group(td_gang *g, const char *layout, const char *refusal)
{
    td_err err = {0};
    const td_cuda_group_side side = {
        .arena = g->arena, .bytes = TD_ARENA, .layout = layout, .refusal = refusal};
    g->group = (td_cuda_group){.open = false};
    td_gang_must(td_cuda_group_open(&g->comm, g->me, &side, &g->group, &err) == TD_OK,
                 "opening the group", err.text);
}

static void check_opening(td_gang *g)
{
    open_group(g, g->me == g->n - 1 ? "other" : "one", NULL);
    holds(g, !g->group.open && strstr(g->group.why, "not cut alike") != NULL,
          "opened though arenas are not cut alike");
    open_group(g, "one", g->me == 0 ? "no wish" : NULL);
    holds(g, !g->group.open && strstr(g->group.why, "no wish") != NULL,
          "opened though a member does not want it");
    td_gang_say(g, "not open: %s\n", g->group.why);
    for (int i = 0; i < 3; i++) {
        open_group(g, "one", NULL);
        td_gang_must(g->group.open, "the group does not open", g->group.why);
        td_cuda_group_close(&g->comm, &g->group);
    }
}

static void check_what_it_has(td_gang *g)
{
    const td_gang_call c = {.coll = TD_COLL_ALL_REDUCE, .count = 64, .in_place = true};
    td_collective_call call = td_gang_call_of(g, &c), other = call;
    holds(g, td_cuda_group_has(&g->group, &call, true), "has no all-reduce");
    other.reduction = TD_REDUCE_MIN;
    holds(g, !td_cuda_group_has(&g->group, &other, true), "has minima");
    other = call;
    other.type = TD_TYPE_F64;
    holds(g, !td_cuda_group_has(&g->group, &other, true), "has doubles");
    other = call;
    other.coll = TD_COLL_BROADCAST;
    holds(g, !td_cuda_group_has(&g->group, &other, true), "has broadcasts");
    other = call;
    other.coll = TD_COLL_ALL_GATHER;
    other.count = g->n * 8 + 1;
    holds(g, !td_cuda_group_has(&g->group, &other, true), "has shares that are not whole");
    other = call;
    other.count = (int64_t)TD_ARENA / 4;
    holds(g, !td_cuda_group_has(&g->group, &other, true), "has what reaches beyond the arena");
    other = call;
    other.in = &call;
    holds(g, !td_cuda_group_has(&g->group, &other, true), "has what is not in the arena");
}

static void open_gang(td_gang *g, int32_t *ranks)
{
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    for (int32_t i = 0; i < g->n; i++)
        ranks[i] = i;
    g->comm = (td_comm){.kind = TD_COMM_TENSOR, .n_ranks = g->n, .ranks = ranks};
    td_gang_cuda(cudaSetDevice(g->me), "choosing a GPU");
    td_gang_cuda(cudaMalloc((void **)&g->arena, TD_ARENA), "the arena");
    td_gang_cuda(cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking), "a stream");
    if (g->me == 0)
        td_gang_must(ncclGetUniqueId(&id) == ncclSuccess, "NCCL", "no number");
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
    td_gang_must(ncclCommInitRank(&g->nccl, g->n, id, g->me) == ncclSuccess, "NCCL",
                 ncclGetLastError(NULL));
}

static void close_gang(td_gang *g)
{
    td_cuda_group_close(&g->comm, &g->group);
    ncclCommDestroy(g->nccl);
    cudaStreamDestroy(g->stream);
    cudaFree(g->arena);
}

static void check_all(td_gang *g)
{
    const td_gang_call again = {.coll = TD_COLL_ALL_REDUCE, .bf16 = true, .count = 12345};
    check_what_it_has(g);
    check_trials(g);
    check_gigabyte(g);
    check_replays(g, "alone");
    check_beside(g);
    check_late(g);
    check_lost(g);
    td_cuda_group_close(&g->comm, &g->group);
    open_group(g, "one", NULL);
    td_gang_must(g->group.open, "the group does not open again", g->group.why);
    try_call(g, &again, 99);
    td_gang_say(g, "lost members are abandoned, and the group opens again\n");
}

int main(int argc, char **argv)
{
    td_gang g = {0};
    int n_gpus = 0, n, me, n_failed = 0;
    int32_t ranks[TD_COLLECTIVE_RANKS];
    bool times = false, sweep = false;
    const char *csv_path = NULL;
    FILE *csv = NULL;
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); /* as tandem-cuda does */
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--time") == 0)
            times = true;
        else if (strcmp(argv[i], "--sweep") == 0)
            sweep = true;
        else if (strcmp(argv[i], "--csv") == 0 && i + 1 < argc)
            csv_path = argv[++i];
        else
            return fputs(usage, stderr), 2;
    MPI_Init(&argc, &argv);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    MPI_Comm_rank(MPI_COMM_WORLD, &me);
    g.n = n;
    g.me = me;
    if (cudaGetDeviceCount(&n_gpus) != cudaSuccess || n_gpus < n || n < 2 ||
        n > TD_COLLECTIVE_RANKS) {
        td_gang_say(&g, "%d ranks on %d GPUs: skipped\n", n, n_gpus);
        MPI_Finalize();
        return SKIPPED;
    }
    if (csv_path != NULL && me == 0) {
        csv = fopen(csv_path, "w");
        td_gang_must(csv != NULL, csv_path, "cannot be written");
        fprintf(csv, "collective,ranks,bytes,blocks,us,nccl_us,gb_s,nccl_gb_s\n");
    }
    open_gang(&g, ranks);
    check_opening(&g);
    open_group(&g, "one", NULL);
    td_gang_must(g.group.open, "the group does not open", g.group.why);
    if (times)
        td_gang_times(&g, sweep, csv);
    else
        check_all(&g);
    close_gang(&g);
    if (csv != NULL)
        td_gang_must(fclose(csv) == 0, csv_path, "cannot be written");
    MPI_Allreduce(&g.n_failed, &n_failed, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    td_gang_say(&g, "collectives of %d GPUs: %d failed\n", n, n_failed);
    MPI_Finalize();
    return n_failed == 0 ? 0 : 1;
}
