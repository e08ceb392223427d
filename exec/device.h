/*
 * The port between the driver and a device: memory, kernels, and communication that the ops of a
 * step program wait for. A device may run what it is given at once (host) or queue it on streams
 * (CUDA); the driver issues in program order and names what an op must wait for, so both see the
 * same dependencies.
 */
#ifndef TANDEM_EXEC_DEVICE_H
#define TANDEM_EXEC_DEVICE_H

#include "exec/kernels.h"
#include "model/program.h"

typedef enum {
    TD_TYPE_ACT,
    TD_TYPE_F32,
    TD_TYPE_F64,
    TD_TYPE_I32
} td_type; /* ACT: the plan's precision */
typedef enum { TD_REDUCE_SUM, TD_REDUCE_MAX, TD_REDUCE_MIN } td_reduction;

typedef struct {
    td_coll coll;
    td_reduction reduction;
    int32_t root;   /* broadcast: index in the communicator */
    const void *in; /* equal to `out` for in-place all-reduce and broadcast */
    void *out;
    int64_t count; /* elements of the larger buffer, as model/collective.h defines the bytes of a
                      collective */
    td_type type;
} td_collective_call;

typedef struct td_device {
    const char *name;
    void *self;
    const td_kernels *kernels;

    /* The one arena; zeroed. NULL without memory. */
    void *(*arena)(void *self, size_t bytes);

    /*
     * Communication of op `op` on channel `chan` of the rank. Returns as soon as it is under way;
     * wait() says when it is over. Several may belong to one op.
     */
    td_status (*transfer)(void *self, int32_t op, int32_t chan, bool send, void *buffer,
                          uint64_t bytes, td_err *err);
    td_status (*collective)(void *self, int32_t op, int32_t chan, const td_collective_call *call,
                            td_err *err);
    /* What comes after on the issuing lane sees op `op` complete. */
    td_status (*wait)(void *self, int32_t op, td_err *err);
    /* Gives communication under way a chance while kernels run. */
    void (*poll)(void *self);
    /* Seconds on a clock that all ranks share up to the error measured at the start. */
    double (*now)(void *self);
} td_device;

#endif
