/*
 * test-cuda-channels: how many multiprocessors NCCL should have. One rank a GPU, under mpirun, 2 or
 * 4 of them; for communicators of 2 and of 4 ranks and every bound on the blocks of a kernel of
 * NCCL: how long a collective takes alone, how long beside a stream of products, and what the
 * products lose meanwhile. From that follow the numbers of exec/cuda_comm.c.
 *
 * The criterion. What a collective costs a step is
 *     exposed * alone + (1 - exposed) * lost
 * where `alone` is its time with the GPU to itself, `lost` the time by which products that run
 * beside it are delayed, and `exposed` the share of it that nothing hides. Products wait for every
 * tensor-parallel collective, so exposed is 1. Of the gradients of a stage only the last bucket is
 * exposed, and plans of a 7B model have ten and more: 0.1; their collectives are fp32. The
 * gathering of bf16 parameters follows the optimizer and is exposed. The bound with the smallest
 * sum of costs a byte wins, over communicators, collectives and sizes from 16 MiB on: those of a 7B
 * model's activations and buckets.
 */
#include "exec/cuda_error.h"
#include "exec/cuda_kernels.h"
#include "exec/cuda_matmul.h"
#include "exec/host_rendezvous.h"

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The product is the down projection of a 7B model over 4096 tokens: 0.47 ms on an H200. */
enum { ROWS = 4096, N = 4096, K = 11008 };
enum {
    MIB = 1 << 20,
    WORKSPACE = 64 * MIB,
    MOST_PRODUCTS = 400, /* beside a collective */
    LEAD = 6,            /* of which run alone before it begins */
    LAUNCHES = 3,        /* of which the quickest counts */
};

static const int bounds[] = {1, 2, 4, 8, 16, 32, 0}; /* of blocks; 0: NCCL's own choice */
enum { N_BOUNDS = sizeof bounds / sizeof *bounds };

static const struct {
    int64_t mib;
    int n_calls; /* that are timed together */
} sizes[] = {{1, 40}, {16, 10}, {64, 4}, {256, 2}};
enum { N_SIZES = sizeof sizes / sizeof *sizes, TYPICAL_MIB = 16 };

/* One call: `count` elements of the larger buffer, in place. */
typedef struct {
    char *buffer;
    size_t count, size; /* size of an element */
    int n, me;
    ncclDataType_t type;
    ncclComm_t comm;
} call;

static char *share_of(const call *c)
{
    return c->buffer + c->count / (size_t)c->n * c->size * (size_t)c->me;
}

static ncclResult_t all_reduce(const call *c, cudaStream_t s)
{
    return ncclAllReduce(c->buffer, c->buffer, c->count, c->type, ncclSum, c->comm, s);
}

static ncclResult_t reduce_scatter(const call *c, cudaStream_t s)
{
    return ncclReduceScatter(c->buffer, share_of(c), c->count / (size_t)c->n, c->type, ncclSum,
                             c->comm, s);
}

static ncclResult_t all_gather(const call *c, cudaStream_t s)
{
    return ncclAllGather(share_of(c), c->buffer, c->count / (size_t)c->n, c->type, c->comm, s);
}

/* Times it crosses a link as `traffic` * (n - 1) / n of its bytes: what NCCL calls bus bandwidth.
 */
static const struct {
    const char *name;
    ncclResult_t (*queue)(const call *c, cudaStream_t s);
    double traffic;
} collectives[] = {{"all-reduce", all_reduce, 2},
                   {"reduce-scatter", reduce_scatter, 1},
                   {"all-gather", all_gather, 1}};
enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, N_COLLECTIVES };

static const struct {
    const char *name;
    ncclDataType_t type;
    size_t size;
} types[] = {{"bf16", ncclBfloat16, 2}, {"fp32", ncclFloat32, 4}};
enum { BF16, FP32, N_TYPES };

/* Share of a collective that nothing hides, by kind of communicator; < 0: there is none of it. */
static const struct {
    const char *name, *row;
    double exposed[N_COLLECTIVES][N_TYPES];
} kinds[] = {
    {"tensor-parallel", "TD_COMM_TENSOR", {{1, -1}, {1, -1}, {1, -1}}},
    {"data-parallel", "TD_COMM_DATA", {{-1, 0.1}, {-1, 0.1}, {1, -1}}},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

typedef struct {
    int rank, world;
    td_arena *a;
    td_cuda_queue queue; /* of the compute stream */
    td_cuda_matmul *matmul;
    cudaStream_t compute, side;
    char *x, *w, *y, *buffer;
    cudaEvent_t done[MOST_PRODUCTS + 1]; /* after so many products */
    cudaEvent_t begin, end;
    double product_s; /* alone */
    double cost[N_KINDS][N_BOUNDS];
    FILE *csv;
} probe;

typedef struct {
    double alone_s, beside_s, lost_s; /* of one call */
} times;

static td_status cuda(cudaError_t error, const char *what, td_err *err)
{
    return td_cuda_failed((int)error, what, err);
}

static td_status nccl(ncclResult_t result, const char *what, td_err *err)
{
    return result == ncclSuccess ? TD_OK
                                 : td_fail(err, TD_RUN, "%s: %s", what, ncclGetErrorString(result));
}

static td_status seconds_between(cudaEvent_t a, cudaEvent_t b, double *out, td_err *err)
{
    float ms = 0;
    const td_status st = cuda(cudaEventElapsedTime(&ms, a, b), "reading a time", err);
    *out = (double)ms * 1e-3;
    return st;
}

/* ---- products ---- */

static td_status multiply(probe *p, int n, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, cuda(cudaEventRecord(p->done[0], p->compute), "a product", err));
    for (int i = 1; i <= n; i++) {
        TD_TRY(st, td_cuda_matmul_run(p->matmul, TD_PASS_FORWARD, p->x, p->w, NULL, p->y, ROWS, N,
                                      K, err));
        TD_TRY(st, cuda(cudaEventRecord(p->done[i], p->compute), "a product", err));
    }
done:
    return st;
}

/* Again and again: clocks change with what the GPU did before. */
static td_status time_product(probe *p, td_err *err)
{
    enum { PRODUCTS = 24 };
    td_status st = TD_OK;
    TD_TRY(st, multiply(p, PRODUCTS, err));
    TD_TRY(st, cuda(cudaStreamSynchronize(p->compute), "products", err));
    TD_TRY(st, seconds_between(p->done[LEAD], p->done[PRODUCTS], &p->product_s, err));
    p->product_s /= PRODUCTS - LEAD;
done:
    return st;
}

/* How many of n products, and of the next one which share, were done so long after the first began.
 */
static td_status products_done(const probe *p, int n, double second, double *out, td_err *err)
{
    td_status st = TD_OK;
    double before = 0, after = 0;
    int i = 0;
    while (i < n && after <= second) {
        before = after;
        TD_TRY(st, seconds_between(p->done[0], p->done[++i], &after, err));
    }
    *out = after <= second ? n : i - 1 + (second - before) / (after - before);
done:
    return st;
}

/* ---- one collective ---- */

static td_status queue_calls(const probe *p, int coll, const call *c, int n, td_err *err)
{
    td_status st = TD_OK;
    for (int i = 0; i < n; i++)
        TD_TRY(st, nccl(collectives[coll].queue(c, p->side), collectives[coll].name, err));
done:
    return st;
}

/* Played from a graph, as a pass plays its collectives. */
static td_status time_alone(probe *p, int coll, const call *c, int n, double *out, td_err *err)
{
    td_status st = TD_OK;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t played = NULL;
    double least = 1e9;
    TD_TRY(st, cuda(cudaStreamBeginCapture(p->side, cudaStreamCaptureModeRelaxed), "a graph", err));
    TD_TRY(st, queue_calls(p, coll, c, n, err));
    TD_TRY(st, cuda(cudaStreamEndCapture(p->side, &graph), "a graph", err));
    TD_TRY(st, cuda(cudaGraphInstantiate(&played, graph, 0), "a graph", err));
    for (int i = -1; i < LAUNCHES; i++) { /* the first one warms up */
        double s;
        MPI_Barrier(MPI_COMM_WORLD);
        TD_TRY(st, cuda(cudaEventRecord(p->begin, p->side), "a graph", err));
        TD_TRY(st, cuda(cudaGraphLaunch(played, p->side), "a graph", err));
        TD_TRY(st, cuda(cudaEventRecord(p->end, p->side), "a graph", err));
        TD_TRY(st, cuda(cudaStreamSynchronize(p->side), collectives[coll].name, err));
        TD_TRY(st, seconds_between(p->begin, p->end, &s, err));
        least = i >= 0 && s < least ? s : least;
    }
    *out = least / n;
done:
    if (played != NULL)
        cudaGraphExecDestroy(played);
    if (graph != NULL)
        cudaGraphDestroy(graph);
    return st;
}

/* Calls behind one another while `products` run: whether the products lasted longer. */
static td_status run_beside(probe *p, int coll, const call *c, int n, int products, times *t,
                            bool *outlasted, td_err *err)
{
    td_status st = TD_OK;
    double begin, end, last, done_begin, done_end;
    MPI_Barrier(MPI_COMM_WORLD);
    TD_TRY(st, multiply(p, products, err));
    TD_TRY(st, cuda(cudaStreamWaitEvent(p->side, p->done[LEAD], 0), "waiting for products", err));
    TD_TRY(st, cuda(cudaEventRecord(p->begin, p->side), "a collective", err));
    TD_TRY(st, queue_calls(p, coll, c, n, err));
    TD_TRY(st, cuda(cudaEventRecord(p->end, p->side), "a collective", err));
    TD_TRY(st, cuda(cudaStreamSynchronize(p->side), collectives[coll].name, err));
    TD_TRY(st, cuda(cudaStreamSynchronize(p->compute), "products", err));
    TD_TRY(st, seconds_between(p->done[0], p->begin, &begin, err));
    TD_TRY(st, seconds_between(p->done[0], p->end, &end, err));
    TD_TRY(st, seconds_between(p->done[0], p->done[products], &last, err));
    *outlasted = last >= end;
    const double both = (*outlasted ? end : last) - begin; /* products and calls */
    TD_TRY(st, products_done(p, products, begin, &done_begin, err));
    TD_TRY(st, products_done(p, products, begin + both, &done_end, err));
    const double lost = both - (done_end - done_begin) * p->product_s;
    t->beside_s = (end - begin) / n;
    t->lost_s = lost > 0 && both > 0 ? lost / both * t->beside_s : 0;
done:
    return st;
}

static td_status time_beside(probe *p, int coll, const call *c, int n, times *t, td_err *err)
{
    td_status st = TD_OK;
    int products = 2 * LEAD + (int)(2 * n * t->alone_s / p->product_s), again = 1;
    while (again) {
        bool outlasted;
        products = products < MOST_PRODUCTS ? products : MOST_PRODUCTS;
        TD_TRY(st, run_beside(p, coll, c, n, products, t, &outlasted, err));
        again = !outlasted && products < MOST_PRODUCTS;
        MPI_Allreduce(MPI_IN_PLACE, &again, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
        MPI_Allreduce(MPI_IN_PLACE, &products, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
        products *= 2;
    }
done:
    return st;
}

/* ---- all of them ---- */

static void tell(probe *p, const call *c, int bound, int coll, int type, int64_t mib,
                 const times *t)
{
    const double bytes = (double)(mib * MIB), share = (double)(c->n - 1) / c->n,
                 moved = collectives[coll].traffic * share * bytes;
    char blocks[16] = "default";
    if (bounds[bound] > 0)
        snprintf(blocks, sizeof blocks, "%d", bounds[bound]);
    fprintf(p->csv, "%d,%s,%s,%lld,%s,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f\n", c->n,
            collectives[coll].name, types[type].name, (long long)mib * MIB, blocks,
            t->alone_s * 1e6, moved / t->alone_s * 1e-9, t->beside_s * 1e6,
            moved / t->beside_s * 1e-9, t->lost_s * 1e6, p->product_s * 1e6);
    for (int k = 0; k < N_KINDS && mib >= TYPICAL_MIB; k++) {
        const double exposed = kinds[k].exposed[coll][type];
        if (exposed >= 0)
            p->cost[k][bound] += (exposed * t->alone_s + (1 - exposed) * t->lost_s) / bytes;
    }
}

static td_status measure(probe *p, call *c, int bound, int coll, int type, int size, td_err *err)
{
    td_status st = TD_OK;
    times t = {0};
    const int n = sizes[size].n_calls;
    c->type = types[type].type;
    c->size = types[type].size;
    c->count = (size_t)(sizes[size].mib * MIB) / c->size;
    TD_TRY(st, time_alone(p, coll, c, n, &t.alone_s, err));
    TD_TRY(st, time_beside(p, coll, c, n, &t, err));
    double slowest[3] = {t.alone_s, t.beside_s, t.lost_s};
    MPI_Allreduce(MPI_IN_PLACE, slowest, 3, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    t = (times){slowest[0], slowest[1], slowest[2]};
    if (p->rank == 0)
        tell(p, c, bound, coll, type, sizes[size].mib, &t);
done:
    return st;
}

/* All ranks at once, in groups of n neighbours, as a plan's are. */
static td_status measure_bound(probe *p, int n, int bound, td_err *err)
{
    td_status st = TD_OK;
    MPI_Comm group;
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    call c = {.buffer = p->buffer, .n = n, .me = p->rank % n};
    MPI_Comm_split(MPI_COMM_WORLD, p->rank / n, p->rank, &group);
    if (bounds[bound] > 0) {
        config.minCTAs = 1;
        config.maxCTAs = bounds[bound];
    }
    memset(&id, 0, sizeof id);
    if (c.me == 0)
        TD_TRY(st, nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", err));
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, group);
    TD_TRY(st, nccl(ncclCommInitRankConfig(&c.comm, n, id, c.me, &config), "ncclCommInitRankConfig",
                    err));
    TD_TRY(st, time_product(p, err));
    for (int coll = 0; coll < N_COLLECTIVES; coll++)
        for (int type = 0; type < N_TYPES; type++)
            for (int size = 0; size < N_SIZES; size++)
                TD_TRY(st, measure(p, &c, bound, coll, type, size, err));
    TD_TRY(st, nccl(ncclCommDestroy(c.comm), "ncclCommDestroy", err));
    MPI_Comm_free(&group);
done:
    return st;
}

static void conclude(const probe *p)
{
    for (int k = 0; k < N_KINDS; k++) {
        int best = 0;
        printf("%s, ns a MiB:", kinds[k].name);
        for (int b = 0; b < N_BOUNDS; b++) {
            if (bounds[b] > 0)
                printf(" %d:", bounds[b]);
            else
                printf(" default:");
            printf(" %.0f", p->cost[k][b] * MIB * 1e9);
            best = p->cost[k][b] < p->cost[k][best] ? b : best;
        }
        printf("\n%s: [%s] = {%d, %d, BIG},\n", kinds[k].name, kinds[k].row, bounds[best] > 0,
               bounds[best]);
    }
}

/* ---- opening ---- */

static td_status open_probe(probe *p, const char *cache, td_err *err)
{
    static const uint32_t key[2] = {1, 2};
    td_status st = TD_OK;
    td_rendezvous here;
    struct cudaDeviceProp gpu;
    int least, greatest;
    TD_TRY(st, td_rendezvous_open(p->a, p->world, &here, err));
    TD_TRY(st, cuda(cudaSetDevice(here.local_rank), "choosing a GPU", err));
    TD_TRY(st, cuda(cudaGetDeviceProperties(&gpu, here.local_rank), "asking a GPU", err));
    /* Priorities as those of the lanes of a step. */
    TD_TRY(st, cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "a stream", err));
    TD_TRY(st, cuda(cudaStreamCreateWithPriority(&p->compute, cudaStreamNonBlocking, least),
                    "a stream", err));
    TD_TRY(st, cuda(cudaStreamCreateWithPriority(&p->side, cudaStreamNonBlocking, greatest),
                    "a stream", err));
    TD_TRY(st, cuda(cudaEventCreate(&p->begin), "an event", err));
    TD_TRY(st, cuda(cudaEventCreate(&p->end), "an event", err));
    for (int i = 0; i <= MOST_PRODUCTS; i++)
        TD_TRY(st, cuda(cudaEventCreate(&p->done[i]), "an event", err));
    const struct {
        void **at;
        size_t bytes;
    } memory[] = {{(void **)&p->x, (size_t)ROWS * K * 2},
                  {(void **)&p->w, (size_t)N * K * 2},
                  {(void **)&p->y, (size_t)ROWS * N * 2},
                  {(void **)&p->buffer, (size_t)sizes[N_SIZES - 1].mib * MIB},
                  {&p->queue.workspace, WORKSPACE}};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) {
        TD_TRY(st, cuda(cudaMalloc(memory[i].at, memory[i].bytes), "memory", err));
        TD_TRY(st, cuda(cudaMemset(*memory[i].at, 0, memory[i].bytes), "memory", err));
    }
    p->queue.stream = p->compute;
    p->queue.bf16 = true;
    p->queue.n_sm = gpu.multiProcessorCount;
    p->queue.workspace_bytes = WORKSPACE;
    TD_TRY(st, cuda(cudaDeviceSynchronize(), "memory", err));
    /* Random numbers: of zeros products are faster than they ever are. */
    td_cuda_fill_normal(&p->queue, key, 1, ROWS, K, 0, 0, K, false, p->x);
    td_cuda_fill_normal(&p->queue, key, 0.01, N, K, 0, 0, K, false, p->w);
    TD_TRY(st, cuda(cudaStreamSynchronize(p->compute), "first values", err));
    TD_TRY(st, td_cuda_matmul_open(p->a, &p->queue, cache, &p->matmul, err));
    TD_TRY(st, multiply(p, 1, err));
    TD_TRY(st, cuda(cudaStreamSynchronize(p->compute), "a product", err));
done:
    return st;
}

static td_status run(probe *p, const char *csv, const char *cache, td_err *err)
{
    td_status st = TD_OK;
    if (p->world != 2 && p->world != 4)
        TD_TRY(st, td_fail(err, TD_USAGE, "%d ranks, expected 2 or 4", p->world));
    if (p->rank == 0 && (p->csv = fopen(csv, "w")) == NULL)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot be written", csv));
    TD_TRY(st, open_probe(p, cache, err));
    if (p->rank == 0)
        fprintf(p->csv, "ranks,collective,type,bytes,max_ctas,alone_us,alone_gb_s,beside_us,"
                        "beside_gb_s,lost_us,product_us\n");
    for (int n = 2; n <= p->world; n *= 2)
        for (int bound = 0; bound < N_BOUNDS; bound++)
            TD_TRY(st, measure_bound(p, n, bound, err));
    if (p->rank == 0)
        conclude(p);
    td_cuda_matmul_close(p->matmul);
done:
    if (p->csv != NULL && fclose(p->csv) != 0 && st == TD_OK)
        st = td_fail(err, TD_FILE, "%s: cannot be written", csv);
    return st;
}

static const char usage[] =
    "usage: mpirun -np 2|4 test-cuda-channels CSV [CACHE]\n"
    "Measures collectives of NCCL with 1 to 32 blocks, alone and beside products, and says how "
    "many\n"
    "tensor- and data-parallel communicators should have.\n"
    "  CSV    gets a line for each number of ranks and blocks, collective, type and size\n"
    "  CACHE  algorithms of products, read\n"
    "example: mpirun -np 4 test-cuda-channels channels.csv\n";

int main(int argc, char **argv)
{
    td_err err = {0};
    static probe p;
    if (argc < 2 || argc > 3 || argv[1][0] == '-') {
        fputs(usage, argc == 2 && strcmp(argv[1], "--help") == 0 ? stdout : stderr);
        return argc == 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
    }
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); /* as a rank has it */
    MPI_Init(NULL, NULL);
    MPI_Comm_rank(MPI_COMM_WORLD, &p.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &p.world);
    p.a = td_arena_new();
    if (p.a == NULL || run(&p, argv[1], argc > 2 ? argv[2] : NULL, &err) != TD_OK) {
        fprintf(stderr, "test-cuda-channels: rank %d: %s\n", p.rank, err.text);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    td_arena_free(p.a);
    MPI_Finalize();
    return 0;
}
