/* Streams, events and graphs behind the device port. */
#include "exec/cuda.h"
#include "exec/cuda_attention.h"
#include "exec/cuda_clock.h"
#include "exec/cuda_comm.h"
#include "exec/cuda_error.h"
#include "exec/cuda_matmul.h"
#include "exec/cuda_monitor.h"
#include "exec/host_rendezvous.h"
#include "model/memory.h"

#include <cuda_runtime_api.h>
#include <jansson.h>
#include <nvtx3/nvToolsExt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 4 };      /* ops inside one another: a pass and a reduction in it */
enum { PAGE = 2 << 20 }; /* bytes of a page of GPU memory */

typedef struct td_cuda {
    td_cuda_queue
        queue; /* first: what launchers see; its stream is that of the running op's lane */
    td_device device;
    const td_program *p;
    const td_stream *stream;
    int32_t rank;
    cudaStream_t lanes[TD_N_LANES];
    cudaEvent_t *starts, *ends; /* [n_ops] */
    cudaEvent_t mark, begun;    /* of an op that is being issued; of the step */
    int32_t running[DEPTH], n_running;
    bool timed;
    cudaGraphExec_t *graphs; /* by key */
    int32_t n_graphs;
    bool recording;
    void *arena, **staged;
    size_t arena_bytes;
    int32_t n_staged;
    td_cuda_comm *comm;
    td_cuda_matmul *matmul;
    td_cuda_attention_lib *attention; /* NULL: tandem's own does it all */
    td_cuda_clock *clock;
    double offset, offset_error; /* of this machine's clock against that of rank 0's; 0 there */
    td_monitor *monitor;
    char gpu[256], pci[32], no_attention[256], no_monitor[256];
    size_t context_bytes, total_bytes;
    td_err failure; /* the first of a kernel that has no status to return */
} td_cuda;

/* ---- memory ---- */

/* Other ranks map the arena, and a mapping is of whole pages: it shares none with other memory. */
static void *cuda_arena(void *self, size_t bytes)
{
    td_cuda *c = self;
    c->arena_bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    if (cudaMalloc(&c->arena, c->arena_bytes) != cudaSuccess ||
        cudaMemset(c->arena, 0, bytes) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess)
        return NULL;
    return c->arena;
}

static td_status cuda_expect(void *self, void *const *buffers, td_err *err)
{
    const td_cuda *c = self;
    const td_cuda_places here = {.arena = c->arena, .bytes = c->arena_bytes, .buffers = buffers};
    return td_cuda_comm_connect(c->comm, &here, err);
}

static void *cuda_staging(void *self, size_t bytes)
{
    td_cuda *c = self;
    void **grown = realloc(c->staged, (size_t)(c->n_staged + 1) * sizeof *grown);
    if (grown == NULL)
        return NULL;
    c->staged = grown;
    if (cudaMallocHost(&c->staged[c->n_staged], bytes) != cudaSuccess)
        return NULL;
    return c->staged[c->n_staged++];
}

static void cuda_workspace(void *self, void *p, size_t bytes)
{
    td_cuda *c = self;
    c->queue.workspace = p;
    c->queue.workspace_bytes = bytes;
}

static td_status cuda_fetch(void *self, const void *from, void *to, size_t bytes, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = self;
    const cudaStream_t s = c->lanes[TD_LANE_COMPUTE];
    TD_TRY(st, td_cuda_failed((int)cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s),
                              "copying between host and GPU", err));
    TD_TRY(st, td_cuda_failed((int)cudaStreamSynchronize(s), "copying between host and GPU", err));
done:
    return st;
}

/* ---- ops ---- */

static cudaStream_t lane_of(const td_cuda *c, int32_t op)
{
    return c->lanes[op < 0 ? TD_LANE_COMPUTE : c->stream->ops[op].lane];
}

static td_status op_failed(const td_cuda *c, int32_t op, cudaError_t error, td_err *err)
{
    char label[32] = "outside of any op", what[96];
    if (error == cudaSuccess)
        return TD_OK;
    if (op >= 0)
        td_op_label(&c->stream->ops[op], label, sizeof label);
    snprintf(what, sizeof what, "rank %d, op %d (%s)", (int)c->rank, (int)op, label);
    return td_cuda_failed((int)error, what, err);
}

static td_status cuda_begin(void *self, int32_t op, td_err *err)
{
    td_cuda *c = self;
    char label[32] = "prepare";
    (void)err;
    if (op >= 0)
        td_op_label(&c->stream->ops[op], label, sizeof label);
    nvtxRangePushA(label);
    c->running[c->n_running++] = op;
    c->queue.stream = lane_of(c, op);
    return TD_OK;
}

static td_status cuda_started(void *self, td_err *err)
{
    const td_cuda *c = self;
    const int32_t op = c->running[c->n_running - 1];
    return c->timed ? op_failed(c, op, cudaEventRecord(c->starts[op], c->queue.stream), err)
                    : TD_OK;
}

static td_status cuda_end(void *self, int32_t op, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = self;
    c->n_running--;
    nvtxRangePop();
    if (op >= 0)
        TD_TRY(st, op_failed(c, op, cudaEventRecord(c->ends[op], lane_of(c, op)), err));
    c->queue.stream = lane_of(c, c->n_running > 0 ? c->running[c->n_running - 1] : -1);
    TD_TRY(st, op_failed(c, op, cudaGetLastError(), err)); /* of launches */
    if (c->failure.status != TD_OK)
        TD_TRY(st, td_fail(err, c->failure.status, "%s", c->failure.text));
done:
    return st;
}

static td_status cuda_wait(void *self, int32_t op, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = self;
    bool open = false;
    for (int32_t i = 0; i < c->n_running; i++)
        open = open || c->running[i] == op;
    if (op < 0 || lane_of(c, op) == c->queue.stream) /* a stream keeps its order */
        return TD_OK;
    if (open)
        TD_TRY(st, op_failed(c, op, cudaEventRecord(c->mark, lane_of(c, op)), err));
    TD_TRY(st,
           op_failed(c, op, cudaStreamWaitEvent(c->queue.stream, open ? c->mark : c->ends[op], 0),
                     err));
done:
    return st;
}

/* Looks, and looks after the communicators meanwhile: a failed one would be waited for in vain. */
static td_status cuda_complete(void *self, int32_t op, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = self;
    cudaError_t now;
    while ((now = cudaEventQuery(c->ends[op])) == cudaErrorNotReady) {
        TD_TRY(st, td_cuda_comm_check(c->comm, err));
        sched_yield();
    }
    st = op_failed(c, op, now, err);
done:
    return st;
}

static td_status cuda_transfer(void *self, int32_t op, int32_t chan, bool send, void *buffer,
                               uint64_t bytes, td_err *err)
{
    td_cuda *c = self;
    const td_op_kind kind = c->stream->ops[op].kind;
    return td_cuda_comm_transfer(c->comm, chan, send,
                                 kind == TD_OP_SEND_SHAPE || kind == TD_OP_RECV_SHAPE, buffer,
                                 bytes, c->queue.stream, err);
}

static td_status cuda_collective(void *self, int32_t op, int32_t chan,
                                 const td_collective_call *call, td_err *err)
{
    td_cuda *c = self;
    return td_cuda_comm_collective(c->comm, chan, call, op < 0, c->queue.bf16, c->queue.stream,
                                   err);
}

static void cuda_poll(void *self)
{
    (void)self; /* what is queued goes on by itself */
}

/* ---- steps and times ---- */

static td_status cuda_step(void *self, bool begins, bool timed, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = self;
    c->timed = timed && begins;
    if (timed) {
        TD_TRY(st, op_failed(c, -1, cudaStreamSynchronize(c->lanes[TD_LANE_COMPUTE]), err));
        TD_TRY(st, td_cuda_clock_anchor(c->clock, err));
    }
    if (!begins) {
        td_cuda_comm_collect(c->comm);
        goto done;
    }
    /* no lane begins before the numbers of the step are zero */
    TD_TRY(st, op_failed(c, -1, cudaEventRecord(c->begun, c->lanes[TD_LANE_COMPUTE]), err));
    for (int32_t lane = 0; lane < TD_N_LANES; lane++)
        if (lane != TD_LANE_COMPUTE)
            TD_TRY(st, op_failed(c, -1, cudaStreamWaitEvent(c->lanes[lane], c->begun, 0), err));
done:
    return st;
}

static double time_of(td_cuda *c, cudaEvent_t event)
{
    double second = 0;
    (void)td_cuda_clock_of(c->clock, event, &second, &c->failure);
    return second + c->offset;
}

static td_op_time cuda_times(void *self, int32_t op)
{
    td_cuda *c = self;
    return (td_op_time){time_of(c, c->starts[op]), time_of(c, c->ends[op])};
}

static td_status cuda_stamps(void *self, int64_t n, td_err *err)
{
    const td_cuda *c = self;
    return td_cuda_clock_stamps(c->clock, n, err);
}

static td_status cuda_stamp(void *self, int64_t k, td_err *err)
{
    const td_cuda *c = self;
    return td_cuda_clock_stamp(c->clock, c->queue.stream, k, c->recording, err);
}

static double cuda_stamped(void *self, int64_t k)
{
    td_cuda *c = self;
    double second = 0;
    (void)td_cuda_clock_stamped(c->clock, k, &second, &c->failure);
    return second + c->offset;
}

static double cuda_now(void *self)
{
    const td_cuda *c = self;
    return td_cuda_clock_now() + c->offset;
}

/* ---- graphs ---- */

static td_status cuda_record(void *self, int32_t key, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = self;
    if (key >= c->n_graphs) {
        const int32_t n = 2 * key + 16;
        cudaGraphExec_t *grown = realloc(c->graphs, (size_t)n * sizeof *grown);
        if (grown == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for graphs", (int)c->rank));
        memset(grown + c->n_graphs, 0, (size_t)(n - c->n_graphs) * sizeof *grown);
        c->graphs = grown;
        c->n_graphs = n;
    }
    TD_TRY(st,
           op_failed(c, -1, cudaStreamBeginCapture(c->queue.stream, cudaStreamCaptureModeRelaxed),
                     err));
    c->recording = true;
done:
    return st;
}

static td_status cuda_recorded(void *self, int32_t key, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = self;
    cudaGraph_t graph = NULL;
    c->recording = false;
    TD_TRY(st, op_failed(c, -1, cudaStreamEndCapture(c->queue.stream, &graph), err));
    if (c->graphs[key] != NULL) {
        const cudaGraphExec_t before = c->graphs[key];
        c->graphs[key] = NULL;
        TD_TRY(st, op_failed(c, -1, cudaGraphExecDestroy(before), err));
    }
    TD_TRY(st, op_failed(c, -1, cudaGraphInstantiate(&c->graphs[key], graph, 0), err));
    TD_TRY(st, op_failed(c, -1, cudaGraphUpload(c->graphs[key], c->queue.stream), err));
done:
    if (graph != NULL)
        cudaGraphDestroy(graph);
    return st;
}

static td_status cuda_play(void *self, int32_t key, int64_t first_stamp, td_err *err)
{
    td_status st = TD_OK;
    const td_cuda *c = self;
    if (first_stamp >= 0)
        TD_TRY(st, td_cuda_clock_count(c->clock, c->queue.stream, first_stamp, err));
    TD_TRY(st, op_failed(c, c->running[c->n_running - 1],
                         cudaGraphLaunch(c->graphs[key], c->queue.stream), err));
done:
    return st;
}

/* ---- kernels that are libraries' ---- */

static void linear(void *dev, const act *x, const act *w, const act *bias, act *y, int64_t rows,
                   int64_t n, int64_t k)
{
    td_cuda *c = dev;
    (void)td_cuda_matmul_run(c->matmul, TD_PASS_FORWARD, x, w, bias, y, rows, n, k, &c->failure);
}

static void linear_dgrad(void *dev, const act *dy, const act *w, act *dx, int64_t rows, int64_t n,
                         int64_t k)
{
    td_cuda *c = dev;
    (void)td_cuda_matmul_run(c->matmul, TD_PASS_DGRAD, dy, w, NULL, dx, rows, n, k, &c->failure);
}

static void linear_wgrad(void *dev, const act *dy, const act *x, float *dw, float *db, int64_t rows,
                         int64_t n, int64_t k)
{
    td_cuda *c = dev;
    (void)td_cuda_matmul_run(c->matmul, TD_PASS_WGRAD, dy, x, NULL, dw, rows, n, k, &c->failure);
    if (db != NULL)
        td_cuda_bias_gradient(dev, dy, db, rows, n);
}

static bool by_library(const td_cuda *c, const td_attention_shape *s)
{
    const char *why;
    return c->attention != NULL && td_cuda_attention_has(c->attention, s, &why);
}

static void attention(void *dev, const act *qkv, act *out, float *lse, const td_attention_shape *s)
{
    td_cuda *c = dev;
    if (by_library(c, s))
        (void)td_cuda_attention_forward(c->attention, qkv, out, lse, s, &c->failure);
    else
        td_cuda_attention(dev, qkv, out, lse, s);
}

static void attention_backward(void *dev, const act *dout, const act *qkv, const act *out,
                               const float *lse, act *dqkv, const td_attention_shape *s)
{
    td_cuda *c = dev;
    if (by_library(c, s))
        (void)td_cuda_attention_gradient(c->attention, dout, qkv, out, lse, dqkv, s, &c->failure);
    else
        td_cuda_attention_backward(dev, dout, qkv, out, lse, dqkv, s);
}

static void zero(void *dev, void *p, int64_t bytes)
{
    td_cuda *c = dev;
    (void)td_cuda_failed((int)cudaMemsetAsync(p, 0, (size_t)bytes, c->queue.stream), "zeroing",
                         &c->failure);
}

static void copy(void *dev, const void *from, void *to, int64_t bytes)
{
    td_cuda *c = dev;
    (void)td_cuda_failed(
        (int)cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDefault, c->queue.stream),
        "copying", &c->failure);
}

static const td_kernels kernels = {
    .linear = linear,
    .linear_dgrad = linear_dgrad,
    .linear_wgrad = linear_wgrad,
    .norm = td_cuda_norm,
    .norm_backward = td_cuda_norm_backward,
    .add = td_cuda_add,
    .add_rows = td_cuda_add_rows,
    .add_rows_backward = td_cuda_add_rows_backward,
    .rotary = td_cuda_rotary,
    .attention = attention,
    .attention_backward = attention_backward,
    .activation = td_cuda_activation,
    .activation_backward = td_cuda_activation_backward,
    .embed = td_cuda_embed,
    .embed_backward = td_cuda_embed_backward,
    .splice = td_cuda_splice,
    .loss_max = td_cuda_loss_max,
    .loss_sum = td_cuda_loss_sum,
    .loss_value = td_cuda_loss_value,
    .loss_backward = td_cuda_loss_backward,
    .zero = zero,
    .copy = copy,
    .fill_normal = td_cuda_fill_normal,
    .fill = td_cuda_fill,
    .grad_stats = td_cuda_grad_stats,
    .mimo = td_cuda_mimo,
    .adam = td_cuda_adam,
    .cast = td_cuda_cast,
};

/* ---- opening ---- */

td_status td_cuda_room(td_arena *a, const td_program *p, int32_t rank, td_err *err)
{
    td_status st = TD_OK;
    td_rendezvous here;
    td_memory memory;
    int n = 0;
    size_t free_bytes, total_bytes;
    const double gib = 1024.0 * 1024.0 * 1024.0;
    TD_TRY(st, td_rendezvous_open(a, p->world_size, &here, err));
    const cudaError_t found = cudaGetDeviceCount(&n);
    if (found != cudaSuccess || n == 0)
        TD_TRY(st,
               td_fail(err, TD_ABSENT,
                       "no CUDA device that this process can use: %s; `--on host` runs on the "
                       "processor",
                       found == cudaSuccess ? "the driver shows none" : cudaGetErrorString(found)));
    if (here.local_size > n)
        TD_TRY(st, td_fail(err, TD_RUN,
                           "%d ranks on this machine, but it has %d GPU%s: one a rank is needed",
                           (int)here.local_size, n, n == 1 ? "" : "s"));
    TD_TRY(st, td_cuda_failed((int)cudaSetDevice(here.local_rank), "choosing a GPU", err));
    TD_TRY(st, td_cuda_failed((int)cudaMemGetInfo(&free_bytes, &total_bytes), "asking a GPU", err));
    TD_TRY(st, td_memory_of_rank(a, p, rank, &memory, err));
    if (memory.total > free_bytes)
        TD_TRY(st,
               td_fail(err, TD_RUN, "rank %d needs %.2f GiB, but GPU %d has %.2f of %.2f GiB free",
                       (int)rank, (double)memory.total / gib, (int)here.local_rank,
                       (double)free_bytes / gib, (double)total_bytes / gib));
done:
    return st;
}

static td_status open_streams(td_arena *a, td_cuda *c, td_err *err)
{
    td_status st = TD_OK;
    int least = 0, greatest = 0;
    const int32_t n = c->stream->n_ops;
    TD_TRY(st, op_failed(c, -1, cudaDeviceGetStreamPriorityRange(&least, &greatest), err));
    for (int32_t lane = 0; lane < TD_N_LANES; lane++)
        TD_TRY(st,
               op_failed(c, -1,
                         cudaStreamCreateWithPriority(&c->lanes[lane], cudaStreamNonBlocking,
                                                      lane == TD_LANE_COMPUTE ? least : greatest),
                         err));
    c->queue.stream = c->lanes[TD_LANE_COMPUTE];
    c->starts = TD_NEW(a, cudaEvent_t, n);
    c->ends = TD_NEW(a, cudaEvent_t, n);
    if (c->starts == NULL || c->ends == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)c->rank));
    for (int32_t i = 0; i < n; i++) {
        TD_TRY(st, op_failed(c, -1, cudaEventCreate(&c->starts[i]), err));
        TD_TRY(st, op_failed(c, -1, cudaEventCreate(&c->ends[i]), err));
    }
    TD_TRY(st, op_failed(c, -1, cudaEventCreateWithFlags(&c->mark, cudaEventDisableTiming), err));
    TD_TRY(st, op_failed(c, -1, cudaEventCreateWithFlags(&c->begun, cudaEventDisableTiming), err));
done:
    return st;
}

/* Processes of one machine read one clock. */
static td_status align_machines(td_arena *a, td_cuda *c, td_err *err)
{
    td_status st = TD_OK;
    td_rendezvous here;
    TD_TRY(st, td_rendezvous_open(a, c->p->world_size, &here, err));
    if (here.n_nodes > 1)
        td_rendezvous_clock(c->p->world_size, td_cuda_clock_now, &c->offset, &c->offset_error);
    if (here.node_of[c->rank] == here.node_of[0])
        c->offset = 0;
done:
    return st;
}

/* What is missing here is told in the answer and done without. */
static void open_optional(td_cuda *c)
{
    td_err err = {0};
    if (td_cuda_attention_open(&c->queue, &c->attention, &err) != TD_OK)
        snprintf(c->no_attention, sizeof c->no_attention, "%.255s", err.text);
    err = (td_err){0};
    if (td_monitor_open(c->pci, &c->monitor, &err) != TD_OK)
        snprintf(c->no_monitor, sizeof c->no_monitor, "%.255s", err.text);
}

td_status td_cuda_open(td_arena *a, const td_program *p, int32_t rank, const char *cache,
                       const td_device **out, td_err *err)
{
    td_status st = TD_OK;
    td_cuda *c = TD_NEW(a, td_cuda, 1);
    struct cudaDeviceProp gpu;
    size_t free_bytes = 0;
    int device = 0;
    if (c == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for the device", (int)rank));
    *c = (td_cuda){.queue = {.bf16 = p->plan->precision == TD_BF16},
                   .p = p,
                   .stream = td_program_stream(p, rank),
                   .rank = rank};
    c->device = (td_device){.name = "cuda",
                            .self = c,
                            .kernels = &kernels,
                            .arena = cuda_arena,
                            .staging = cuda_staging,
                            .workspace = cuda_workspace,
                            .expect = cuda_expect,
                            .begin = cuda_begin,
                            .started = cuda_started,
                            .end = cuda_end,
                            .transfer = cuda_transfer,
                            .collective = cuda_collective,
                            .wait = cuda_wait,
                            .complete = cuda_complete,
                            .fetch = cuda_fetch,
                            .poll = cuda_poll,
                            .step = cuda_step,
                            .times = cuda_times,
                            .stamps = cuda_stamps,
                            .stamp = cuda_stamp,
                            .stamped = cuda_stamped,
                            .now = cuda_now,
                            .record = cuda_record,
                            .recorded = cuda_recorded,
                            .play = cuda_play};
    *out = &c->device;
    TD_TRY(st, op_failed(c, -1, cudaGetDevice(&device), err));
    TD_TRY(st, op_failed(c, -1, cudaGetDeviceProperties(&gpu, device), err));
    TD_TRY(st, op_failed(c, -1, cudaDeviceGetPCIBusId(c->pci, sizeof c->pci, device), err));
    TD_TRY(st, op_failed(c, -1, cudaMemGetInfo(&free_bytes, &c->total_bytes), err));
    memcpy(c->gpu, gpu.name, sizeof c->gpu);
    c->context_bytes = c->total_bytes - free_bytes;
    c->queue.n_sm = gpu.multiProcessorCount;
    TD_TRY(st, open_streams(a, c, err));
    TD_TRY(st, td_cuda_clock_open(a, &c->clock, err));
    TD_TRY(st, align_machines(a, c, err));
    TD_TRY(st, td_cuda_comm_open(a, p, rank, &c->comm, err));
    TD_TRY(st, td_cuda_matmul_open(a, &c->queue, cache, &c->matmul, err));
    open_optional(c);
done:
    return st;
}

void td_cuda_close(const td_device *device, bool failed)
{
    td_cuda *c = device == NULL ? NULL : device->self;
    if (c == NULL)
        return;
    if (!failed && c->rank == 0 && c->matmul != NULL)
        (void)td_cuda_matmul_save(c->matmul, NULL); /* the next run measures again */
    td_monitor_close(c->monitor);
    for (int32_t i = 0; i < c->n_graphs; i++) /* communicators end only without them */
        if (c->graphs[i] != NULL)
            cudaGraphExecDestroy(c->graphs[i]);
    td_cuda_comm_close(c->comm, failed);
    if (failed) /* the GPU may wait for others for ever; the process ends and frees it */
        return;
    td_cuda_attention_close(c->attention);
    td_cuda_matmul_close(c->matmul);
    td_cuda_clock_close(c->clock);
    free(c->graphs);
    for (int32_t i = 0; i < c->stream->n_ops; i++) {
        cudaEventDestroy(c->starts[i]);
        cudaEventDestroy(c->ends[i]);
    }
    cudaEventDestroy(c->mark);
    cudaEventDestroy(c->begun);
    for (int32_t i = 0; i < c->n_staged; i++)
        cudaFreeHost(c->staged[i]);
    free(c->staged);
    cudaFree(c->arena);
    for (int32_t lane = 0; lane < TD_N_LANES; lane++)
        cudaStreamDestroy(c->lanes[lane]);
}

/* ---- telling ---- */

double td_cuda_device_clock_error(const td_device *device)
{
    const td_cuda *c = device->self;
    return td_cuda_clock_error(c->clock) + c->offset_error;
}

enum { MOST_SAMPLES = 2400 }; /* two minutes */

/* The last of what was read: [ms, MHz, MHz, W, degrees, reasons] each, ms on the host's clock. */
static json_t *samples_json(td_arena *a, const td_cuda *c)
{
    const td_monitor_sample *s = NULL;
    int32_t n = 0;
    json_t *all = json_array();
    if (c->monitor == NULL || td_monitor_samples(c->monitor, a, &n, &s, NULL) != TD_OK)
        return all;
    for (int32_t i = n > MOST_SAMPLES ? n - MOST_SAMPLES : 0; i < n; i++)
        json_array_append_new(all,
                              json_pack("[I, i, i, i, i, i]", (json_int_t)(s[i].second * 1e3),
                                        (int)s[i].sm_mhz, (int)s[i].memory_mhz, (int)s[i].power_w,
                                        (int)s[i].celsius, (int)s[i].throttle));
    return all;
}

void td_cuda_tell(const td_device *device, struct json_t *rank)
{
    const td_cuda *c = device->self;
    size_t free_bytes = 0, total_bytes = 0;
    int runtime = 0;
    td_arena *a = td_arena_new();
    const td_cuda_transports pairs = td_cuda_comm_transports(c->comm);
    cudaMemGetInfo(&free_bytes, &total_bytes);
    cudaRuntimeGetVersion(&runtime);
    json_object_set_new(rank, "gpu", json_string(c->gpu));
    json_object_set_new(rank, "versions",
                        json_pack("{s:s, s:i, s:i, s:s}", "driver",
                                  c->monitor == NULL ? "unknown" : td_monitor_driver(c->monitor),
                                  "cuda", runtime, "nccl", td_cuda_comm_version(), "cudnn",
                                  td_cuda_attention_version()));
    json_object_set_new(rank, "beside_arena",
                        json_pack("{s:I, s:I, s:I}", "context_bytes", (json_int_t)c->context_bytes,
                                  "nccl_bytes", (json_int_t)td_cuda_comm_bytes(c->comm),
                                  "all_bytes", (json_int_t)(total_bytes - free_bytes)));
    json_object_set_new(rank, "transfers",
                        json_pack("{s:i, s:i, s:s*}", "copy engine", (int)pairs.copy_engine, "nccl",
                                  (int)pairs.nccl, "why_nccl", pairs.why));
    json_object_set_new(rank, "groups",
                        json_pack("{s:i, s:i, s:s*}", "mapped memory", (int)pairs.mapped_groups,
                                  "nccl", (int)pairs.nccl_groups, "why_nccl", pairs.why_group));
    if (c->no_attention[0] != '\0')
        json_object_set_new(rank, "attention", json_string(c->no_attention));
    if (c->no_monitor[0] != '\0')
        json_object_set_new(rank, "monitor", json_string(c->no_monitor));
    if (a != NULL) {
        const char *products = td_cuda_matmul_report(c->matmul, a);
        json_object_set_new(rank, "products", json_string(products == NULL ? "" : products));
        json_object_set_new(rank, "clocks", samples_json(a, c));
    }
    td_arena_free(a);
}
