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

/* The largest error of the anchors so far, seconds. */
double td_cuda_clock_error(const td_cuda_clock *c);

#endif
