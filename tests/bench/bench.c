/*
 * The benchmark: speed and memory of predictions, as ratios and against closed forms, so that the
 * numbers mean the same on any machine. Each line says what is wanted; the exit code is 1 if a line
 * falls short. Not a timed test: run it on a quiet machine.
 */
#include "model/cluster.h"
#include "sim/predict.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int n_short;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const td_err *err)
{
    fprintf(stderr, "bench: %s\n", err->text);
    exit(5);
}

/* One line of the report; `at_least` false: the value must not be larger than wanted. */
static void line(const char *what, double value, bool at_least, double wanted, const char *unit)
{
    const bool good = at_least ? value >= wanted : value <= wanted;
    printf("%-66s %10.4g %-8s %s %-8.4g %s\n", what, value, unit, at_least ? ">=" : "<=", wanted,
           good ? "" : "SHORT");
    n_short += !good;
}

/* ---- the command, from outside ---- */

static void run_command(const char *program, const char *plan, double *seconds, double *mib)
{
    struct rusage use;
    int status;
    *seconds = INFINITY;
    *mib = 0;
    for (int i = 0; i < 5; i++) { /* the best of five: the machine may be shared */
        const double began = now();
        const pid_t child = fork();
        if (child == 0) {
            if (freopen("/dev/null", "w", stdout) != NULL &&
                freopen("/dev/null", "w", stderr) != NULL)
                execl(program, program, "predict", plan, (char *)NULL);
            _exit(127);
        }
        if (child < 0 || wait4(child, &status, 0, &use) != child || status != 0) {
            fprintf(stderr, "bench: %s predict %s failed\n", program, plan);
            exit(5);
        }
        *seconds = fmin(*seconds, now() - began);
        *mib = fmax(*mib, (double)use.ru_maxrss / 1024);
    }
}

/* ---- the event loop, from inside ---- */

typedef struct {
    td_arena *a;
    const td_plan *plan;
    const td_program *program;
    td_topology *topo;
    const td_costs *costs;
    td_cost_notes notes;
} bench;

/* The 175B plan with `dp` data lanes: dp * 64 GPUs, 8 a node. Without gradient overlap nothing
 * shares a link. */
static void load(bench *b, int dp, bool contended)
{
    td_err err = {0};
    td_diags diags = {.arena = b->a = td_arena_new()};
    const char *text = td_arena_printf(
        b->a,
        "name: bench\n"
        "cluster: {groups: [{count: %d, node: {gpus: 8, gpu: {name: NVIDIA H200, profile: h200, "
        "memory_gib: 140},\n"
        "  nvlink_gb_s: 450, nvlink_latency_us: 2, nics: 8, nic_gb_s: %s, nic_latency_us: 3}}],\n"
        "  fabric: {kind: rail, oversubscription: 1, latency_us: 2}}\n"
        "modules: {language: {type: language, layers: 96, hidden: 12288, heads: 96, ffn: 49152, "
        "mlp: gelu, vocab: 51200,\n"
        "  seq: 2048, parallel: {tp: 8, pp: 8, dp: %d}}}\n"
        "step: {microbatches: 128, micro_batch: 1, sequence_parallel: true, grad_overlap: %s}\n",
        dp * 8, contended ? "50" : "400", dp, contended ? "true" : "false");
    if (td_plan_parse(b->a, "bench.yaml", text, strlen(text), &diags, &b->plan, &err) != TD_OK ||
        td_diag_status(&diags, &err) != TD_OK ||
        td_lower(b->a, b->plan, &b->program, &err) != TD_OK ||
        td_topology_build(b->a, b->plan->cluster, b->program->world_size, &b->topo, &err) != TD_OK)
        fail(&err);
    b->notes.arena = b->a;
    if (td_costs_build(b->a, b->program, b->topo, &(td_costs_options){0}, &b->notes, &b->costs,
                       &err) != TD_OK)
        fail(&err);
}

/* Million ops a second, best of `times`; the last timeline's counters go to `out`. */
static double speed(const bench *b, td_flows flows, int times, td_timeline *out)
{
    double best = INFINITY;
    const td_prices prices = td_prices_of(b->costs);
    const td_engine_options o = {
        .flows = flows, .net = flows == TD_FLOWS_IDEAL ? NULL : &td_net_simgrid, .no_fold = true};
    for (int i = 0; i < times; i++) {
        td_err err = {0};
        td_arena *a = td_arena_new();
        const td_timeline *t;
        const double began = now();
        if (td_engine_run(a, b->program, b->topo, &prices, &o, &t, &err) != TD_OK)
            fail(&err);
        best = fmin(best, now() - began);
        *out = *t;
        td_arena_free(a);
    }
    return (double)b->program->n_ops / best * 1e-6;
}

/* Peak resident memory of a process that does `load` and one unfolded run, in bytes beyond an idle
 * one. */
static double memory_of(int dp, bool runs)
{
    struct rusage use;
    int status;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        bench b = {0};
        td_timeline t;
        if (runs) {
            load(&b, dp, false);
            speed(&b, TD_FLOWS_SHARED, 1, &t);
        }
        _exit(0);
    }
    if (child < 0 || wait4(child, &status, 0, &use) != child || status != 0) {
        fprintf(stderr, "bench: the measured process failed\n");
        exit(5);
    }
    return (double)use.ru_maxrss * 1024;
}

/* ---- one ring ---- */

static const td_op_cost *ring_cost(const void *self, int32_t rank, const td_op *op)
{
    (void)rank;
    (void)op;
    return self;
}

/* A 1 GiB all-reduce over 1024 GPUs of `b`'s cluster through SimGrid: 2(n-1)/n * S bytes over each
 * edge. */
static void ring(const bench *b)
{
    enum { RANKS = 1024 };
    const double bytes = 1073741824.0, rate = 50e9,
                 closed = 2.0 * (RANKS - 1) / RANKS * bytes / rate;
    static int32_t members[RANKS];
    static td_chan chans[RANKS];
    static td_rank ranks[RANKS];
    const td_op op = {.kind = TD_OP_GRAD_ALL_REDUCE,
                      .lane = TD_LANE_DP,
                      .module = -1,
                      .mb = -1,
                      .work = -1,
                      .bytes = (uint64_t)bytes};
    const td_stream stream = {.n_ops = 1, .ops = &op, .n_chans = 1, .module = -1, .stage = -1};
    const td_comm comm = {
        .kind = TD_COMM_DATA, .src = -1, .dst = -1, .n_ranks = RANKS, .ranks = members};
    const td_op_cost cost = {.lone = {.total_s = closed},
                             .edge_bytes = (uint64_t)(2.0 * (RANKS - 1) / RANKS * bytes),
                             .rate = rate,
                             .overlap = {.transfer = 1, .compute = 1}};
    for (int32_t r = 0; r < RANKS; r++) {
        members[r] = r;
        chans[r] = (td_chan){.comm = 0, .me = r};
        ranks[r] = (td_rank){.stream = 0, .chans = &chans[r]};
    }
    const td_program program = {.plan = b->plan,
                                .world_size = RANKS,
                                .total_stages = 1,
                                .n_streams = 1,
                                .n_comms = 1,
                                .streams = &stream,
                                .ranks = ranks,
                                .comms = &comm,
                                .n_ops = RANKS};
    const td_prices prices = {.self = &cost, .op = ring_cost};
    const td_engine_options o = {.flows = TD_FLOWS_SHARED, .net = &td_net_simgrid};
    td_err err = {0};
    const td_timeline *t;
    td_arena *a = td_arena_new();
    const double began = now();
    if (td_engine_run(a, &program, b->topo, &prices, &o, &t, &err) != TD_OK)
        fail(&err);
    line("1 GiB all-reduce over 1024 GPUs, seconds to predict", now() - began, false, 0.1, "s");
    line("  its error against the closed form", fabs(t->step_s / closed - 1), false, 1e-3, "");
    td_arena_free(a);
}

int main(int argc, char **argv)
{
    bench small = {0}, large = {0}, shared = {0};
    td_timeline t;
    double seconds, mib;
    const char *tandem = argc > 1 ? argv[1] : TD_SOURCE_DIR "/build/release/tandem";
    const double idle = memory_of(16, false), used = memory_of(16, true);
    run_command(tandem, TD_SOURCE_DIR "/examples/plans/gpt3-175b-1024.yaml", &seconds, &mib);
    line("gpt3-175b-1024 predicted by the command", seconds, false, 0.3, "s");
    line("  its peak memory", mib, false, 64, "MiB");
    load(&small, 16, false);
    load(&large, 128, false);
    load(&shared, 16, true);
    const double ideal = speed(&small, TD_FLOWS_IDEAL, 5, &t),
                 lone = speed(&small, TD_FLOWS_SHARED, 5, &t);
    printf("every rank simulated, 1024 GPUs, %lld ops: ideal %.2f M ops/s, simgrid %.2f M ops/s, "
           "%lld flows promoted\n",
           (long long)small.program->n_ops, ideal, lone, (long long)t.n_promoted);
    line("  simgrid / ideal", lone / ideal, true, 0.30, "");
    const double wide = speed(&large, TD_FLOWS_SHARED, 2, &t);
    printf("every rank simulated, 8192 GPUs, %lld ops: simgrid %.2f M ops/s\n",
           (long long)large.program->n_ops, wide);
    line("  speed at 8192 GPUs / at 1024", wide / lone, true, 0.5, "");
    const double crowded = speed(&shared, TD_FLOWS_SHARED, 2, &t);
    printf("1024 GPUs, gradients reduced beside the last backward: %.2f M ops/s, %lld of %lld "
           "flows promoted\n",
           crowded, (long long)t.n_promoted, (long long)t.n_flows);
    line("  with shared links / ideal", crowded / ideal, true, 0.04, "");
    line("memory of an unfolded run beyond 4 kB a GPU, bytes an op",
         (used - idle - 4096.0 * small.program->world_size) / (double)small.program->n_ops, false,
         64, "B");
    ring(&small);
    td_arena_free(small.a);
    td_arena_free(large.a);
    td_arena_free(shared.a);
    return n_short > 0;
}
