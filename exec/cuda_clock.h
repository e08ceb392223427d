/*
 * Device time on the clock of the host, which ranks of a machine share: an event recorded between
 * two readings of the host's clock bounds the error (Cristian, "Probabilistic clock
 * synchronization", 1989). GPU and host clocks run at slightly different rates, so stamps between
 * two anchors are interpolated.
 */
#ifndef TANDEM_EXEC_CUDA_CLOCK_H
#define TANDEM_EXEC_CUDA_CLOCK_H

#include "model/arena.h"
#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct td_cuda_clock td_cuda_clock;

td_status td_cuda_clock_open(td_arena *a, td_cuda_clock **out, td_err *err);
void td_cuda_clock_close(td_cuda_clock *c);

/* Seconds on CLOCK_MONOTONIC. */
double td_cuda_clock_now(void);

/*
 * Ties the device's clock to the host's; the GPU must have nothing to do. A kernel waits for a flag
 * that the host sets in mapped memory and an event follows it: the quickest of several exchanges
 * counts. Some 200 us.
 */
td_status td_cuda_clock_anchor(td_cuda_clock *c, td_err *err);

/*
 * Seconds on the host's clock of an event (cudaEvent_t, with timing) that has happened between the
 * last two anchors.
 */
td_status td_cuda_clock_of(const td_cuda_clock *c, void *event, double *out, td_err *err);

/*
 * Stamps, numbered 0 .. n - 1: kernels that write the GPU's own timer, so that they may stand in a
 * graph, where an event tells no time. Anchors read that timer as well from now on: the anchor
 * behind the stamps fetches them. Once.
 */
td_status td_cuda_clock_stamps(td_cuda_clock *c, int64_t n, td_err *err);

/* Queues stamp k on `stream`; `counted`: stamp k of those that td_cuda_clock_count(), run before
 * it, says the first number of. */
td_status td_cuda_clock_stamp(td_cuda_clock *c, void *stream, int64_t k, bool counted, td_err *err);
td_status td_cuda_clock_count(td_cuda_clock *c, void *stream, int64_t first, td_err *err);

/* Seconds on the host's clock of stamp k, which lies between the last two anchors. */
td_status td_cuda_clock_stamped(const td_cuda_clock *c, int64_t k, double *out, td_err *err);

/* The largest error of the anchors so far, seconds; with stamps, and of what their timer moves by.
 */
double td_cuda_clock_error(const td_cuda_clock *c);

#endif
