/*
 * test-cuda-kernels: every kernel of the GPU against the same kernel of the processor, or its
 * speed. Needs nothing but a device, so that it can be carried to a machine without test libraries.
 */
#include "tests/gpu/kernels.h"
#include "exec/host_kernels.h"

#include <cuda_runtime.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SKIPPED = 77, WORKSPACE_GUARD = 256, WORKSPACE_GUARD_BYTE = 0xA5 };

/* Of a size that every kernel and every measured product can work with. */
static const size_t workspace_bytes = (size_t)1 << 30;

static const td_kernel_row *const tables[] = {td_rows_kernels, td_loss_kernels, td_matmul_kernels,
                                              td_optimizer_kernels};
enum { N_TABLES = sizeof tables / sizeof *tables };

typedef struct {
    uint64_t seed;
    bool time, list, small, fp32, bf16;
    const char *csv, *cache;
    int n_names;
    char **names;
} options;

static const char usage[] =
    "usage: test-cuda-kernels [--seed N] [--precision fp32|bf16] [--cache FILE] [--small]\n"
    "                         [--time [--csv FILE]] [--list] [NAME...]\n"
    "Compares kernels of the GPU with those of the processor, or prints the time they take.\n"
    "  --seed N       the random numbers of an earlier run\n"
    "  --cache FILE   algorithms of products, read and written\n"
    "  --small        small shapes only, for tools that make kernels slow\n"
    "  --time         time of each kernel on the shapes of a 7B model, by CUDA events: median of\n"
    "                 20, operands not in the cache\n"
    "  --csv FILE     with --time: the same as numbers\n"
    "  --list         names of the kernels, one a line\n"
    "Exit: 0 all passed, 1 not, 2 usage, 77 no CUDA device.\n"
    "example: test-cuda-kernels --precision bf16 norm norm_backward\n";

static const td_kernel_row *find(const char *name)
{
    for (int i = 0; i < N_TABLES; i++)
        for (const td_kernel_row *row = tables[i]; row->name != NULL; row++)
            if (strcmp(row->name, name) == 0)
                return row;
    return NULL;
}

static void list(FILE *out, const char *between)
{
    for (int i = 0; i < N_TABLES; i++)
        for (const td_kernel_row *row = tables[i]; row->name != NULL; row++)
            fprintf(out, "%s%s", row->name, between);
}

/* 0, or 2 after having said why. */
static int read_options(int argc, char **argv, options *o)
{
    int i = 1;
    *o = (options){.seed = (uint64_t)time(NULL), .fp32 = true, .bf16 = true};
    for (; i < argc && argv[i][0] == '-'; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--time") == 0) {
            o->time = true;
        } else if (strcmp(argv[i], "--list") == 0) {
            o->list = true;
        } else if (strcmp(argv[i], "--small") == 0) {
            o->small = true;
        } else if (strcmp(argv[i], "--seed") == 0 && value != NULL) {
            o->seed = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--csv") == 0 && value != NULL) {
            o->csv = argv[++i];
        } else if (strcmp(argv[i], "--cache") == 0 && value != NULL) {
            o->cache = argv[++i];
        } else if (strcmp(argv[i], "--precision") == 0 && value != NULL &&
                   (strcmp(value, "fp32") == 0 || strcmp(value, "bf16") == 0)) {
            o->bf16 = strcmp(argv[++i], "bf16") == 0;
            o->fp32 = !o->bf16;
        } else {
            fputs(usage, stderr);
            return 2;
        }
    }
    o->names = argv + i;
    o->n_names = argc - i;
    for (; i < argc; i++)
        if (find(argv[i]) == NULL) {
            fprintf(stderr, "test-cuda-kernels: there is no kernel `%s`; there are ", argv[i]);
            list(stderr, " ");
            fputc('\n', stderr);
            return 2;
        }
    if (o->csv != NULL && !o->time) {
        fprintf(stderr, "test-cuda-kernels: --csv needs --time\n");
        return 2;
    }
    return 0;
}

static bool wanted(const options *o, const td_kernel_row *row)
{
    bool found = o->n_names == 0;
    for (int i = 0; i < o->n_names; i++)
        found = found || strcmp(o->names[i], row->name) == 0;
    return found;
}

/* ---- the device ---- */

static bool is_device(void)
{
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
}

static bool open_gpu(td_gpu *gpu, bool describe)
{
    struct cudaDeviceProp device;
    cudaStream_t stream = NULL;
    if (!td_cuda_fine(cudaSetDevice(0), "cudaSetDevice") ||
        !td_cuda_fine(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties") ||
        !td_cuda_fine(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "the stream"))
        return false;
    gpu->queue = (td_cuda_queue){
        .stream = stream, .n_sm = device.multiProcessorCount, .workspace_bytes = workspace_bytes};
    if (!td_cuda_fine(cudaMalloc(&gpu->queue.workspace, workspace_bytes + WORKSPACE_GUARD),
                      "the workspace") ||
        !td_cuda_fine(cudaMemset((char *)gpu->queue.workspace + workspace_bytes,
                                 WORKSPACE_GUARD_BYTE, WORKSPACE_GUARD),
                      "the workspace's end") ||
        !td_cuda_fine(cudaDeviceSynchronize(), "the workspace's end"))
        return false;
    if (describe)
        printf("%s, %d multiprocessors, %.1f GiB, cuDNN %s\n", device.name,
               device.multiProcessorCount, (double)device.totalGlobalMem * 0x1p-30,
               td_cuda_attention_version());
    return true;
}

static void close_gpu(td_gpu *gpu)
{
    td_cuda_attention_close(gpu->attention);
    td_cuda_matmul_close(gpu->matmul);
    if (gpu->queue.workspace != NULL)
        cudaFree(gpu->queue.workspace);
    if (gpu->queue.stream != NULL)
        cudaStreamDestroy(gpu->queue.stream);
    *gpu = (td_gpu){0};
}

/* ---- the kernels ---- */

static double now_s(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Numbers of a shape do not depend on what else is run. */
static uint64_t seed_of(const options *o, const td_kernel_row *row, int32_t shape)
{
    uint64_t hash = o->seed;
    for (const char *c = row->name; *c != '\0'; c++)
        hash = (hash ^ (unsigned char)*c) * UINT64_C(0x100000001B3); /* as FNV-1a does */
    return hash + (uint64_t)shape;
}

/* Is this one of the shapes that were asked for? */
static bool chosen(const options *o, const td_shape *s)
{
    const bool small =
        !s->timed && s->rows < 1000 && s->s.seq < 1000 && s->n < 1000000 && s->h <= 4097;
    return (o->time ? s->timed : !s->only_timed) && (small || !o->small);
}

/* False if the device no longer answers. */
static bool run_row(td_gpu *gpu, const options *o, const td_kernel_row *row, FILE *csv,
                    td_tally *all)
{
    const bool bf16 = gpu->queue.bf16;
    const double start = now_s();
    td_tally tally = {0};
    const char *why = "";
    bool answers = true;
    for (int32_t i = 0; i < row->n_shapes && answers; i++) {
        const td_shape *s = &row->shapes[i];
        if (!chosen(o, s))
            continue;
        if (row->can != NULL && !row->can(gpu, s, &why))
            tally.n_skipped++;
        else if (o->time)
            answers = td_trial_time(gpu, row, s, bf16, seed_of(o, row, i), csv);
        else
            answers = td_trial_check(gpu, row, s, bf16, seed_of(o, row, i), &tally);
    }
    if (!o->time)
        printf("%-24s %s %3d shapes, %d failed, %d skipped, errors up to %3.0f %% of what is "
               "allowed, %.1f s%s%s\n",
               row->name, bf16 ? "bf16" : "fp32", (int)tally.n_run, (int)tally.n_failed,
               (int)tally.n_skipped, 100 * tally.worst, now_s() - start,
               tally.n_skipped > 0 ? "; last skipped: " : "", tally.n_skipped > 0 ? why : "");
    fflush(stdout);
    all->n_run += tally.n_run;
    all->n_failed += tally.n_failed;
    all->n_skipped += tally.n_skipped;
    return answers;
}

static bool run_precision(const options *o, bool bf16, bool describe, FILE *csv, td_tally *all)
{
    td_gpu gpu = {0};
    td_err err = {0}, absent = {0};
    td_arena *a = td_arena_new();
    bool fine = a != NULL && open_gpu(&gpu, describe);
    gpu.queue.bf16 = bf16;
    if (fine && td_cuda_matmul_open(a, &gpu.queue, o->cache, &gpu.matmul, &err) != TD_OK) {
        fprintf(stderr, "test-cuda-kernels: %s\n", err.text);
        fine = false;
    }
    if (fine && bf16 && td_cuda_attention_open(&gpu.queue, &gpu.attention, &absent) != TD_OK) {
        printf("attention through cuDNN: %s\n", absent.text);
        gpu.attention = NULL;
    }
    for (int i = 0; i < N_TABLES; i++)
        for (const td_kernel_row *row = tables[i]; row->name != NULL && fine; row++)
            if (wanted(o, row) && !run_row(&gpu, o, row, csv, all)) {
                fprintf(stderr, "test-cuda-kernels: nothing can run after %s\n", row->name);
                fine = false;
            }
    if (fine && o->cache != NULL && td_cuda_matmul_save(gpu.matmul, &err) != TD_OK) {
        fprintf(stderr, "test-cuda-kernels: %s\n", err.text);
        fine = false;
    }
    close_gpu(&gpu);
    td_arena_free(a);
    return fine;
}

int main(int argc, char **argv)
{
    options o;
    td_tally all = {0};
    FILE *csv = NULL;
    bool fine = true;
    const int code = read_options(argc, argv, &o);
    if (code != 0)
        return code;
    if (o.list) {
        list(stdout, "\n");
        return 0;
    }
    if (!is_device()) {
        printf("no CUDA device: skipped\n");
        return SKIPPED;
    }
    if (o.csv != NULL) {
        csv = fopen(o.csv, "w");
        if (csv == NULL) {
            fprintf(stderr, "test-cuda-kernels: %s: cannot be written\n", o.csv);
            return 2;
        }
        fprintf(csv, "kernel,precision,shape,us,bytes,flops,rate,unit,of_ceiling\n");
    }
    td_host_kernels_open();
    printf("seed %llu\n", (unsigned long long)o.seed);
    if (o.fp32)
        fine = run_precision(&o, false, true, csv, &all);
    if (o.bf16 && fine)
        fine = run_precision(&o, true, !o.fp32, csv, &all);
    if (!o.time)
        printf("kernels: %d trials, %d failed, %d skipped\n", (int)all.n_run, (int)all.n_failed,
               (int)all.n_skipped);
    if (csv != NULL && fclose(csv) != 0)
        fine = false;
    return fine && all.n_failed == 0 ? 0 : 1;
}
