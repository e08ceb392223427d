/*
 * What the GPU was doing while it was measured: clocks, power, temperature and the reasons for
 * slowing down, read through NVML twenty times a second by a thread of its own. NVML comes with the
 * driver and is loaded when asked for; without it there is no record and that is said.
 */
#ifndef TANDEM_EXEC_CUDA_MONITOR_H
#define TANDEM_EXEC_CUDA_MONITOR_H

#include "model/arena.h"
#include "model/status.h"

#include <stdint.h>

typedef struct {
    double second;                              /* CLOCK_MONOTONIC */
    float sm_mhz, memory_mhz, power_w, celsius; /* 0: not told */
    /* NVML's clocks event reasons, a bit each: 1 idle, 2 applications clocks, 4 power cap, 8
     * hardware slowdown, 16 sync boost, 32 thermal, 64 thermal by hardware, 128 power brake, 256
     * display */
    uint32_t throttle;
} td_monitor_sample;

typedef struct td_monitor td_monitor;

/* `pci`: bus id of the GPU (cudaDeviceGetPCIBusId). TD_ABSENT with the reason without NVML. */
td_status td_monitor_open(const char *pci, td_monitor **out, td_err *err);
/* Ends the thread. */
void td_monitor_close(td_monitor *m);

/* Samples so far (at most the last 36,000), oldest first, in the arena. */
td_status td_monitor_samples(td_monitor *m, td_arena *a, int32_t *n, const td_monitor_sample **out,
                             td_err *err);
/* Driver's version, `580.159.04`. */
const char *td_monitor_driver(const td_monitor *m);
#endif
