/* Anchors between the clocks of GPU and host. */
#include "exec/cuda_clock.h"
#include "exec/cuda_clock_kernel.h"
#include "exec/cuda_error.h"
#include "exec/cuda_memops.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 16 };

static const double patience_s = 5; /* more than the kernel's */

/* An event and when it was recorded. */
typedef struct {
    cudaEvent_t event;
    double at, error; /* seconds on the host's clock */
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
    TD_TRY(st, td_cuda_failed(td_cuda_clock_wait(c->stream, c->gpu_flags, round),
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

td_status td_cuda_clock_anchor(td_cuda_clock *c, td_err *err)
{
    td_status st = TD_OK;
    double between = 0;
    c->best.error = INFINITY;
    for (int i = 0; i < ROUNDS; i++) {
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
    return c->error;
}
