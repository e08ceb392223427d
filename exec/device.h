/*
 * The port between the driver and a device: memory, kernels, and communication that the ops of a
 * step program wait for. A device may run what it is given at once (host) or queue it on streams
 * (CUDA); the driver issues in program order and names what an op must wait for, so both see the
 * same dependencies. Kernels and communication take pointers to the device's memory.
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

/* Start and end of an op, seconds on a clock that all ranks share up to its stated error. */
typedef struct {
    double start, end;
} td_op_time;

typedef struct td_device {
    const char *name;
    void *self;
    const td_kernels *kernels;

    /*
     * The one arena, zeroed, asked for once before the first step; and memory that kernels can copy
     * from and to while the caller goes on. NULL without memory.
     */
    void *(*arena)(void *self, size_t bytes);
    void *(*staging)(void *self, size_t bytes);
    /* A part of the arena that kernels and libraries may use as scratch. */
    void (*workspace)(void *self, void *p, size_t bytes);

    /*
     * Once, before the first step, by all ranks together: buffers[i] is where receive op i of a
     * payload puts it, in every step; NULL for other ops. NULL where the device need not know.
     */
    td_status (*expect)(void *self, void *const *buffers, td_err *err);

    /*
     * What is issued between begin() and end() belongs to op `op` and runs on its lane; ops may be
     * nested (a reduction inside the backward that feeds it). -1: outside of any op, on the compute
     * lane.
     */
    td_status (*begin)(void *self, int32_t op, td_err *err);
    /* Everything that the running op waits for has been named: from here on it is busy. */
    td_status (*started)(void *self, td_err *err);
    td_status (*end)(void *self, int32_t op, td_err *err);
    /*
     * Communication of op `op` on channel `chan` of the rank. Returns as soon as it is under way;
     * several may belong to one op. `op` -1: inside a stage's pass, which goes on behind it.
     */
    td_status (*transfer)(void *self, int32_t op, int32_t chan, bool send, void *buffer,
                          uint64_t bytes, td_err *err);
    td_status (*collective)(void *self, int32_t op, int32_t chan, const td_collective_call *call,
                            td_err *err);
    /* What is issued from now on in the running op sees op `op` complete; if that op is still being
     * issued, what has been issued of it. */
    td_status (*wait)(void *self, int32_t op, td_err *err);
    /* Returns when op `op`, which has been issued, has ended. */
    td_status (*complete)(void *self, int32_t op, td_err *err);
    /* Copies from device to host or back, and has done so on return. */
    td_status (*fetch)(void *self, const void *from, void *to, size_t bytes, td_err *err);
    /* Gives communication under way a chance while kernels run. */
    void (*poll)(void *self);

    /* Begin and end of a step: between them the ops of one step are issued and completed. `timed`:
     * times() will be asked. */
    td_status (*step)(void *self, bool begins, bool timed, td_err *err);
    /* When op `op` of the last step began and ended. */
    td_op_time (*times)(void *self, int32_t op);
    /* Once, before the first step whose stamps count: they are numbered 0 .. n - 1. NULL where the
     * device need not know. */
    td_status (*stamps)(void *self, int64_t n, td_err *err);
    /* Remembers under number k when the running op got here; and says it after a step that was
     * timed. */
    td_status (*stamp)(void *self, int64_t k, td_err *err);
    double (*stamped)(void *self, int64_t k);
    /* Seconds on the shared clock, now. */
    double (*now)(void *self);

    /*
     * Recorded work, NULL where the device has none: what is issued between record() and
     * recorded() is not run but kept under `key`, in place of what was there, and runs as one piece
     * in every play(). Stamps in it count from 0 there, and from `first_stamp` where it is played;
     * -1: there are none.
     */
    td_status (*record)(void *self, int32_t key, td_err *err);
    td_status (*recorded)(void *self, int32_t key, td_err *err);
    td_status (*play)(void *self, int32_t key, int64_t first_stamp, td_err *err);
} td_device;

#endif
