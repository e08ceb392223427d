/*
 * What `tandem calibrate` runs to measure: small plans of its own, a table of them for each
 * backend, or cut down from the plans that the user cares about. Never the plans themselves: what
 * is to be predicted is not measured.
 */
#ifndef TANDEM_CLI_CALIBRATE_PROBES_H
#define TANDEM_CLI_CALIBRATE_PROBES_H

#include "model/plan.h"

#include <stdbool.h>

typedef struct {
    const char *name, *text; /* the plan's file */
    int32_t steps;
    bool twice;     /* also without looking at parts, which tells what looking costs */
    bool hot;       /* only without looking at parts, so that the GPU never rests */
    int32_t warmup; /* steps before: the clocks of a GPU follow what it did in the last seconds */
} td_probe;

/* The machine that is measured. */
typedef struct {
    bool cuda;
    int32_t gpus;         /* or ranks that are given cores of their own */
    int32_t cores;        /* of a host; 0 on GPUs */
    const char *gpu_name; /* of the plans' cluster */
    double memory_bytes, link_bytes_per_s, link_latency_s;
} td_probe_machine;

/*
 * The table's plans for the machine, or, if `n_plans` > 0, those of the shapes of these: the same
 * modules, sizes and microbatches in the same layout with as few layers as that has stages, or each
 * module by itself where the layout needs more GPUs than there are. `only_first`: one that has most
 * shapes. Fails with TD_PLAN if a plan has nothing that fits the machine, TD_NOMEM.
 */
td_status td_probes(td_arena *a, const td_probe_machine *machine, int32_t n_plans,
                    const td_plan *const *plans, bool only_first, int32_t *n, td_probe **out,
                    td_err *err);

#endif
