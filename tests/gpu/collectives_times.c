/* How long a collective takes, over peers' memory and with NCCL. */
#include "tests/gpu/collectives.h"

#include <mpi.h>
#include <stdlib.h>

enum { CALLS = 20, ROUNDS = 9 }; /* calls of a graph; graphs timed */

static void queue_nccl(td_gang *g, const td_gang_call *c, const td_collective_call *call)
{
    const ncclDataType_t type = c->bf16 ? ncclBfloat16 : ncclFloat32;
    const size_t count = (size_t)c->count, share = count / (size_t)g->n;
    ncclResult_t r = ncclInternalError;
    if (c->coll == TD_COLL_ALL_REDUCE)
        r = ncclAllReduce(call->in, call->out, count, type, ncclSum, g->nccl, g->stream);
    else if (c->coll == TD_COLL_REDUCE_SCATTER)
        r = ncclReduceScatter(call->in, call->out, share, type, ncclSum, g->nccl, g->stream);
    else if (c->coll == TD_COLL_ALL_GATHER)
        r = ncclAllGather(call->in, call->out, share, type, g->nccl, g->stream);
    td_gang_must(r == ncclSuccess, "NCCL", ncclGetErrorString(r));
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Microseconds of a call in a graph of several: the median, on the slowest rank. */
static double time_of(td_gang *g, const td_gang_call *c, bool nccl)
{
    const td_collective_call call = td_gang_call_of(g, c);
    cudaGraph_t graph;
    cudaGraphExec_t play;
    cudaEvent_t begin, end;
    double us[ROUNDS], all = 0;
    td_gang_cuda(cudaEventCreate(&begin), "an event");
    td_gang_cuda(cudaEventCreate(&end), "an event");
    td_gang_cuda(cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeRelaxed), "recording");
    for (int i = 0; i < CALLS; i++)
        if (nccl)
            queue_nccl(g, c, &call);
        else
            td_gang_run(g, &call, c->bf16, g->stream);
    td_gang_cuda(cudaStreamEndCapture(g->stream, &graph), "recording");
    td_gang_cuda(cudaGraphInstantiate(&play, graph, 0), "recording");
    td_gang_cuda(cudaGraphLaunch(play, g->stream), "playing"); /* warms up */
    for (int i = 0; i < ROUNDS; i++) {
        float ms = 0;
        td_gang_cuda(cudaStreamSynchronize(g->stream), "playing");
        MPI_Barrier(MPI_COMM_WORLD);
        td_gang_cuda(cudaEventRecord(begin, g->stream), "an event");
        td_gang_cuda(cudaGraphLaunch(play, g->stream), "playing");
        td_gang_cuda(cudaEventRecord(end, g->stream), "an event");
        td_gang_cuda(cudaStreamSynchronize(g->stream), "playing");
        td_gang_cuda(cudaEventElapsedTime(&ms, begin, end), "an event");
        us[i] = (double)ms * 1e3 / CALLS;
    }
    qsort(us, ROUNDS, sizeof *us, by_size);
    MPI_Allreduce(&us[ROUNDS / 2], &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    cudaGraphExecDestroy(play);
    cudaGraphDestroy(graph);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return all;
}

void td_gang_times(td_gang *g, bool sweep, FILE *csv)
{
    static const td_coll colls[] = {TD_COLL_ALL_REDUCE, TD_COLL_REDUCE_SCATTER, TD_COLL_ALL_GATHER};
    static const int32_t numbers[] = {0, 8, 16, 24, 32, 48, 64, 96, 128};
    const int n_numbers = sweep ? (int)(sizeof numbers / sizeof *numbers) : 1;
    td_gang_cuda(cudaMemset(g->arena, 0, TD_ARENA), "zeroing");
    td_gang_cuda(cudaDeviceSynchronize(), "zeroing");
    td_gang_say(g, "bus GB/s: bytes that cross each link one way, over the time\n");
    td_gang_say(g, "%-16s %5s %9s %6s %9s %9s %9s %9s\n", "bf16", "ranks", "KiB", "blocks", "us",
                "NCCL us", "GB/s", "NCCL GB/s");
    for (size_t k = 0; k < sizeof colls / sizeof *colls; k++)
        for (int64_t bytes = 16 << 10; bytes <= 64 << 20; bytes *= 2) {
            const td_gang_call c = {.coll = colls[k],
                                    .bf16 = true,
                                    .count = bytes / 2 / (8 * g->n) * (8 * g->n),
                                    .in_place = colls[k] == TD_COLL_ALL_REDUCE};
            const double crossing =
                (double)c.count * 2 * (g->n - 1) / g->n * (colls[k] == TD_COLL_ALL_REDUCE ? 2 : 1);
            const double nccl_us = time_of(g, &c, true);
            for (int i = 0; i < n_numbers; i++) {
                g->group.most_blocks = numbers[i];
                const double us = time_of(g, &c, false);
                td_gang_say(g, "%-16s %5d %9lld %6d %9.1f %9.1f %9.1f %9.1f\n",
                            td_collectives[colls[k]]->name, (int)g->n, (long long)(bytes >> 10),
                            (int)numbers[i], us, nccl_us, crossing * 1e-3 / us,
                            crossing * 1e-3 / nccl_us);
                if (csv != NULL && g->me == 0)
                    fprintf(csv, "%s,%d,%lld,%d,%.2f,%.2f,%.2f,%.2f\n",
                            td_collectives[colls[k]]->name, (int)g->n, (long long)c.count * 2,
                            (int)numbers[i], us, nccl_us, crossing * 1e-3 / us,
                            crossing * 1e-3 / nccl_us);
            }
        }
    g->group.most_blocks = 0;
}
