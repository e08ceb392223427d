/* Anchors between the clocks of GPU and host. */
#include "exec/cuda_clock.h"
#include "exec/cuda_clock_kernel.h"
#include "exec/cuda_error.h"
#include "exec/cuda_memops.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 16 };

static const double patience_s = 5; /* more than the kernel's */

/* An event and when it was recorded. */
typedef struct {
    cudaEvent_t event;
    double at, error; /* seconds on the host's clock */
    int round;        /* of its exchanges */
    uint64_t ns;      /* on the GPU's timer; 0: not known */
} mark;

struct td_cuda_clock {
    cudaStream_t stream;
    volatile td_clock_flags *flags; /* as the host addresses them */
    td_clock_flags *gpu_flags;      /* as the GPU does */
    td_cuda_memops ops;
    uint32_t round;
    mark older, last, best, trial; /* two anchors, and two of the exchanges under way */
    int n_anchors;
    double rate; /* seconds of the host in a second of the GPU, between the anchors */
    double error;
    /* Of the GPU's timer, where stamps are wanted: the last exchanges, the stamps and what number
     * they count from, in the GPU's memory and as they were when last fetched. */
    uint64_t *gpu_ns, *ns;
    int64_t n_stamps;
    double tick; /* seconds */
};

double td_cuda_clock_now(void)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

td_status td_cuda_clock_open(td_arena *a, td_cuda_clock **out, td_err *err)
{
    td_status st = TD_OK;
    void *flags = NULL, *gpu_flags = NULL;
    td_cuda_clock *c = TD_NEW(a, td_cuda_clock, 1);
    if (c == NULL)
        return td_fail(err, TD_NOMEM, "no memory for the GPU's clock");
    cudaEvent_t *const events[] = {&c->older.event, &c->last.event, &c->best.event,
                                   &c->trial.event};
    c->rate = 1;
    TD_TRY(st, td_cuda_memops_find(&c->ops, err));
    TD_TRY(st, td_cuda_failed((int)cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
                              "a stream for the clock", err));
    TD_TRY(st, td_cuda_failed((int)cudaHostAlloc(&flags, sizeof *c->flags,
                                                 cudaHostAllocMapped | cudaHostAllocPortable),
                              "flags for the clock", err));
    memset(flags, 0, sizeof *c->flags);
    c->flags = flags;
    TD_TRY(st, td_cuda_failed((int)cudaHostGetDevicePointer(&gpu_flags, flags, 0),
                              "flags for the clock", err));
    c->gpu_flags = gpu_flags;
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        TD_TRY(st, td_cuda_failed((int)cudaEventCreateWithFlags(events[i], cudaEventDefault),
                                  "an event for the clock", err));
    *out = c;
done:
    if (st != TD_OK)
        td_cuda_clock_close(c);
    return st;
}

void td_cuda_clock_close(td_cuda_clock *c)
{
    if (c == NULL)
        return;
    const cudaEvent_t events[] = {c->older.event, c->last.event, c->best.event, c->trial.event};
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (events[i] != NULL)
            cudaEventDestroy(events[i]);
    if (c->stream != NULL)
        cudaStreamDestroy(c->stream);
    if (c->flags != NULL)
        cudaFreeHost((void *)c->flags);
    if (c->gpu_ns != NULL)
        cudaFree(c->gpu_ns);
    free(c->ns);
}

/* ---- anchors ---- */

static bool becomes(const volatile uint32_t *word, uint32_t value)
{
    const double end = td_cuda_clock_now() + patience_s;
    while (*word != value)
        if (td_cuda_clock_now() > end)
            return false;
    return true;
}

/*
 * On the stream: a kernel that ends when asked, the event, the answer. The host reads its clock
 * before it asks and after the answer, so the event is between the readings; the error is half of
 * what lies between them: two trips over PCIe and the end of a kernel.
 */
static td_status exchange(td_cuda_clock *c, mark *m, td_err *err)
{
    td_status st = TD_OK;
    const uint32_t round = ++c->round;
    const CUdeviceptr answered =
        (CUdeviceptr)(uintptr_t)c->gpu_flags + offsetof(td_clock_flags, answered);
    double before, after;
    TD_TRY(st, td_cuda_failed(td_cuda_clock_wait(c->stream, c->gpu_flags, round,
                                                 c->gpu_ns == NULL ? NULL : c->gpu_ns + m->round),
                              "the clock's kernel", err));
    TD_TRY(st, td_cuda_failed((int)cudaEventRecord(m->event, c->stream), "the clock's event", err));
    TD_TRY(st, td_cuda_memop_failed(c->ops.write(c->stream, answered, round, 0),
                                    "the clock's answer", err));
    if (!becomes(&c->flags->waiting, round))
        TD_TRY(st, td_fail(err, TD_RUN, "the GPU did not begin the clock's kernel in %g s",
                           patience_s));
    before = td_cuda_clock_now();
    c->flags->asked = round;
    if (!becomes(&c->flags->answered, round))
        TD_TRY(st, td_fail(err, TD_RUN, "the GPU did not answer the clock in %g s", patience_s));
    after = td_cuda_clock_now();
    m->at = (before + after) / 2;
    m->error = c->flags->gave_up == round ? INFINITY : (after - before) / 2;
done:
    return st;
}

/*
 * Of CUDA's time between events, a float of milliseconds: good to half a microsecond (its
 * documentation), the float itself to 0.06 us at one second and 1 us at sixteen. Anchors should be
 * no further apart than some seconds.
 */
static td_status elapsed(const mark *from, cudaEvent_t to, double *out, td_err *err)
{
    td_status st = TD_OK;
    float ms = 0;
    TD_TRY(st, td_cuda_failed((int)cudaEventElapsedTime(&ms, from->event, to),
                              "the time of an event", err));
    *out = 1e-3 * (double)ms;
done:
    return st;
}

/* What the GPU has written of its timer. */
static td_status fetch(td_cuda_clock *c, td_err *err)
{
    td_status st = TD_OK;
    if (c->ns != NULL)
        TD_TRY(st, td_cuda_failed((int)cudaMemcpy(c->ns, c->gpu_ns,
                                                  (size_t)(ROUNDS + c->n_stamps) * sizeof *c->ns,
                                                  cudaMemcpyDeviceToHost),
                                  "fetching stamps", err));
done:
    return st;
}

td_status td_cuda_clock_anchor(td_cuda_clock *c, td_err *err)
{
    td_status st = TD_OK;
    double between = 0;
    c->best.error = INFINITY;
    for (int i = 0; i < ROUNDS; i++) {
        c->trial.round = i;
        TD_TRY(st, exchange(c, &c->trial, err));
        if (c->trial.error < c->best.error) {
            const mark beaten = c->best;
            c->best = c->trial;
            c->trial = beaten;
        }
    }
    TD_TRY(st, td_cuda_failed((int)cudaStreamSynchronize(c->stream), "the clock's stream", err));
    if (isinf(c->best.error))
        TD_TRY(st, td_fail(err, TD_RUN, "the host was too slow for each of the clock's kernels"));
    const mark unused = c->older;
    c->older = c->last;
    c->last = c->best;
    c->best = unused;
    c->n_anchors += c->n_anchors < 2;
    c->error = fmax(c->error, c->last.error);
    TD_TRY(st, fetch(c, err));
    c->last.ns = c->ns == NULL ? 0 : c->ns[c->last.round];
    if (c->n_anchors == 2)
        TD_TRY(st, elapsed(&c->older, c->last.event, &between, err));
    if (between > 0)
        c->rate = (c->last.at - c->older.at) / between;
done:
    return st;
}

td_status td_cuda_clock_of(const td_cuda_clock *c, void *event, double *out, td_err *err)
{
    td_status st = TD_OK;
    double since = 0;
    const mark *from = c->n_anchors < 2 ? &c->last : &c->older;
    if (c->n_anchors == 0)
        TD_TRY(st, td_fail(err, TD_RUN, "the GPU's clock has no anchor yet"));
    TD_TRY(st, elapsed(from, event, &since, err));
    *out = from->at + c->rate * since;
done:
    return st;
}

double td_cuda_clock_error(const td_cuda_clock *c)
{
    return c->error + c->tick;
}

/* ---- stamps ---- */

td_status td_cuda_clock_stamps(td_cuda_clock *c, int64_t n, td_err *err)
{
    td_status st = TD_OK;
    const size_t places = (size_t)(ROUNDS + n + 1);
    c->n_stamps = n;
    c->ns = calloc(places, sizeof *c->ns);
    if (c->ns == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the stamps of a fine trace"));
    TD_TRY(st, td_cuda_failed((int)cudaMalloc((void **)&c->gpu_ns, places * sizeof *c->gpu_ns),
                              "memory for stamps", err));
    TD_TRY(st, td_cuda_failed((int)cudaMemset(c->gpu_ns, 0, places * sizeof *c->gpu_ns),
                              "memory for stamps", err));
    TD_TRY(st, td_cuda_failed((int)cudaDeviceSynchronize(), "memory for stamps", err));
    TD_TRY(st, td_cuda_failed(td_cuda_clock_tick(c->stream, c->gpu_ns), "the GPU's timer", err));
    TD_TRY(st, td_cuda_failed((int)cudaStreamSynchronize(c->stream), "the GPU's timer", err));
    TD_TRY(st, fetch(c, err));
    if (c->ns[0] == UINT64_MAX)
        TD_TRY(st, td_fail(err, TD_RUN, "the GPU's timer stands still: no fine trace"));
    c->tick = 1e-9 * (double)c->ns[0];
done:
    return st;
}

td_status td_cuda_clock_stamp(td_cuda_clock *c, void *stream, int64_t k, bool counted, td_err *err)
{
    if (k >= c->n_stamps)
        return td_fail(err, TD_RUN, "no room for stamp %lld", (long long)k);
    const uint64_t *first = counted ? c->gpu_ns + ROUNDS + c->n_stamps : NULL;
    return td_cuda_failed(td_cuda_clock_write(stream, c->gpu_ns + ROUNDS + k, first), "a stamp",
                          err);
}

td_status td_cuda_clock_count(td_cuda_clock *c, void *stream, int64_t first, td_err *err)
{
    return td_cuda_failed(
        td_cuda_clock_begin(stream, c->gpu_ns + ROUNDS + c->n_stamps, (uint64_t)first), "a stamp",
        err);
}

/*
 * The timer is read in the same exchange as an event is recorded, so the same bound holds. An event
 * comes a little after what the kernel before it did, there as behind a pass, so that the stamp at
 * a pass's end and the event behind it give about the same second.
 */
td_status td_cuda_clock_stamped(const td_cuda_clock *c, int64_t k, double *out, td_err *err)
{
    td_status st = TD_OK;
    const mark *from = c->older.ns != 0 ? &c->older : &c->last;
    const double between = 1e-9 * (double)(int64_t)(c->last.ns - from->ns);
    if (from->ns == 0 || k >= c->n_stamps)
        TD_TRY(st, td_fail(err, TD_RUN, "stamp %lld was never made", (long long)k));
    const double rate = between > 0 ? (c->last.at - from->at) / between : 1;
    *out = from->at + rate * 1e-9 * (double)(int64_t)(c->ns[ROUNDS + k] - from->ns);
done:
    return st;
}
