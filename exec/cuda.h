/*
 * The CUDA device: one GPU a rank, a stream a lane, the ops of a step queued ahead of the GPU and
 * never waited for by the host before the step's end. Transfers run on streams of high priority
 * beside the compute lane; passes are CUDA graphs.
 */
#ifndef TANDEM_EXEC_CUDA_H
#define TANDEM_EXEC_CUDA_H

#include "exec/device.h"
#include "model/arena.h"

struct json_t;

/*
 * Before anything is allocated, collective: chooses the rank's GPU, the n-th of its machine for the
 * n-th rank there. TD_ABSENT without any GPU, TD_RUN where there are fewer than ranks or where the
 * arena does not fit beside what others use.
 */
td_status td_cuda_room(td_arena *a, const td_program *p, int32_t rank, td_err *err);

/*
 * After td_cuda_room(), collective: streams, communicators, libraries. `cache`: where the measured
 * algorithms of products are kept, NULL: nowhere.
 */
td_status td_cuda_open(td_arena *a, const td_program *p, int32_t rank, const char *cache,
                       const td_device **out, td_err *err);
/* After a failure waits for nobody. NULL is fine. */
void td_cuda_close(const td_device *device, bool failed);

/* The largest error of this rank's clock so far, seconds. */
double td_cuda_device_clock_error(const td_device *device);

/* Adds GPU, versions, memory beside the arena, transports of payloads, clocks and power while it
 * ran, algorithms. */
void td_cuda_tell(const td_device *device, struct json_t *rank);

#endif
