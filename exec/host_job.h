/*
 * One rank of `tandem run`, whatever its device: reads the plan, agrees with the other ranks
 * through MPI, steps, and lets rank 0 print the answer. Each executing backend is a program whose
 * main() hands its device to this.
 */
#ifndef TANDEM_EXEC_HOST_JOB_H
#define TANDEM_EXEC_HOST_JOB_H

#include "exec/device.h"
#include "exec/run_options.h"
#include "model/arena.h"

#include <stddef.h>

struct json_t;

typedef struct {
    const char *name;    /* of the backend: `host` */
    const char *program; /* for messages: `tandem-host` */
    /* Collective over all ranks, MPI is initialised. */
    td_status (*open)(td_arena *a, const td_program *p, int32_t rank, const td_run_options *o,
                      const td_device **out, td_err *err);
    /* After a failure of this rank waits for nobody. NULL is fine. */
    void (*close)(const td_device *device, bool failed);
    /* Collective, before anything is allocated: does what the ranks of this machine need fit? */
    td_status (*room)(td_arena *a, const td_program *p, int32_t rank, td_err *err);
    /* How far this rank's clock may be from the others', seconds. */
    double (*clock_error)(const td_device *device);
    /*
     * After the last step, on every rank: adds what the rank has to tell of its device to its entry
     * of `ranks` in the answer. May be NULL.
     */
    void (*tell)(const td_device *device, struct json_t *rank);
} td_job_backend;

/* main() of a backend's program. */
int td_job_main(int argc, char **argv, const td_job_backend *backend);

#endif
