/*
 * Walks the ops of one rank in program order, issues each on its lane with its dependencies, stamps
 * start and end, and so executes the very step program that `show` prints and `predict` simulates.
 */
#ifndef TANDEM_EXEC_DRIVER_H
#define TANDEM_EXEC_DRIVER_H

#include "exec/checkpoint.h"
#include "exec/device.h"
#include "exec/inject.h"
#include "exec/watch.h"
#include "model/pipeline.h"

/* What one step gave. A skipped step has success false and coefficient 0. */
typedef struct {
    double loss, grad_norm, clip_coefficient;
    double *module_norms; /* [n_modules] in module order; a frozen module's is 0 */
    bool success;
    double step_s; /* from the end of the step before to this one's, on this rank */
} td_step_result;

typedef struct td_driver td_driver;

/* Everything a rank needs, parameters included, ready for the first step. `device` outlives the
 * driver. */
td_status td_driver_open(td_arena *a, const td_program *p, int32_t rank, const td_device *device,
                         td_driver **out, td_err *err);
void td_driver_close(td_driver *d);

/*
 * Before the first step: where to write what the rank is about to do (NULL: nowhere), and the
 * faults to make. TD_USAGE for a fault that this rank cannot have.
 */
td_status td_driver_observe(td_driver *d, td_watch_slot *watch, const td_inject *inject,
                            td_err *err);

/* Before the first step, on all ranks if on any: parts will be asked for. */
td_status td_driver_fine(td_driver *d, td_err *err);

/* Flattened parts of all compute ops of a rank. */
int64_t td_driver_parts(const td_program *p, int32_t rank);

/*
 * One training step. `step` counts all steps, warm-up included; `result`, `times` [ops of the
 * rank's stream; may be NULL] and `parts` [td_driver_parts(): those of the first compute op, then
 * of the next; may be NULL, and is without td_driver_fine()] are filled. Collective over all ranks.
 */
td_status td_driver_step(td_driver *d, int64_t step, td_step_result *result, td_op_time *times,
                         td_op_time *parts, td_err *err);

/* Bytes of the device's arena. */
size_t td_driver_bytes(const td_driver *d);

/*
 * The state that a checkpoint holds, in host memory: exec/state.h. Idle ranks have none. What is
 * loaded into it counts once it is written back.
 */
td_status td_driver_download(td_driver *d, td_run_state *out, td_err *err);
td_status td_driver_upload(td_driver *d, const td_run_state *from, td_err *err);

/* The next step begins now: what was done since the last one (a checkpoint) is not a part of it. */
void td_driver_resume(td_driver *d);

/*
 * This rank's share of the checksums of every parameter tensor it holds: visit(self, name, {sum of
 * squares, signed sum}). Shares of all ranks add up to the whole.
 */
td_status td_driver_checksums(td_driver *d,
                              void (*visit)(void *self, const char *name, const double sums[2]),
                              void *self, td_err *err);

#endif
