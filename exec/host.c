/* MPI behind the device port: what is issued goes on in the background and is waited for where an
 * op depends on it. */
#include "exec/host.h"
#include "exec/host_kernels.h"
#include "exec/host_rendezvous.h"

#include <limits.h>
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GROUP_TAG = 1 };

typedef struct piece {
    struct piece *next;
    _Alignas(64) unsigned char data[];
} piece;

struct td_host {
    td_device device;
    const td_program *p;
    const td_stream *stream;
    int32_t rank;
    MPI_Comm *
        comms; /* [n_chans]; MPI_COMM_NULL for pairs, which use the world with a tag of their own */
    MPI_Request *requests; /* [n_ops] */
    td_op_time *times;     /* [n_ops] */
    double *ended;         /* [n_ops] when their communication was last seen to have ended */
    double *stamps;        /* grows */
    int64_t n_stamps;
    int32_t *running, n_running; /* ops that are being issued, innermost last */
    int32_t *active, n_active;   /* ops with a request under way */
    double offset, clock_error;
    void *send_buffer; /* NULL: sends end when received */
    piece *pieces;
};

static double host_now(void *self)
{
    const td_host *h = self;
    return MPI_Wtime() + h->offset;
}

static void *host_arena(void *self, size_t bytes)
{
    td_host *h = self;
    void *aligned = NULL;
    if (posix_memalign(&aligned, _Alignof(piece), sizeof(piece) + bytes) != 0)
        return NULL;
    piece *p = memset(aligned, 0, sizeof(piece) + bytes);
    p->next = h->pieces;
    h->pieces = p;
    return p->data;
}

static void host_workspace(void *self, void *p, size_t bytes)
{
    (void)self, (void)p, (void)bytes; /* these kernels need none */
}

/* The memory of this device is the caller's. */
static td_status host_fetch(void *self, const void *from, void *to, size_t bytes, td_err *err)
{
    (void)self;
    (void)err;
    if (bytes > 0)
        memcpy(to, from, bytes);
    return TD_OK;
}

/* ---- ops ---- */

static td_status host_begin(void *self, int32_t op, td_err *err)
{
    td_host *h = self;
    (void)err;
    h->running[h->n_running++] = op;
    return TD_OK;
}

static td_status host_started(void *self, td_err *err)
{
    td_host *h = self;
    (void)err;
    h->times[h->running[h->n_running - 1]].start = host_now(h);
    return TD_OK;
}

static td_status host_end(void *self, int32_t op, td_err *err)
{
    td_host *h = self;
    (void)err;
    h->n_running--;
    if (op >= 0)
        h->times[op].end = host_now(h);
    return TD_OK;
}

static td_status host_step(void *self, bool begins, bool timed, td_err *err)
{
    (void)self, (void)begins, (void)timed, (void)err;
    return TD_OK;
}

static td_op_time host_times(void *self, int32_t op)
{
    const td_host *h = self;
    td_op_time t = h->times[op];
    t.end = h->ended[op] > t.end ? h->ended[op] : t.end;
    return t;
}

static td_status host_stamp(void *self, int64_t k, td_err *err)
{
    td_host *h = self;
    if (k >= h->n_stamps) {
        double *grown = realloc(h->stamps, (size_t)(2 * k + 64) * sizeof *grown);
        if (grown == NULL)
            return td_fail(err, TD_NOMEM, "rank %d: no memory for a fine trace", (int)h->rank);
        h->stamps = grown;
        h->n_stamps = 2 * k + 64;
    }
    h->stamps[k] = host_now(h);
    return TD_OK;
}

static double host_stamped(void *self, int64_t k)
{
    const td_host *h = self;
    return h->stamps[k];
}

/* ---- communication ---- */

static td_status mpi_failed(const td_host *h, int32_t op, int code, td_err *err)
{
    char text[MPI_MAX_ERROR_STRING] = "", label[32] = "a collective inside a stage";
    int n;
    if (code == MPI_SUCCESS)
        return TD_OK;
    if (MPI_Error_string(code, text, &n) != MPI_SUCCESS || text[0] == '\0')
        snprintf(text, sizeof text, "MPI's error %d", code);
    if (op >= 0)
        td_op_label(&h->stream->ops[op], label, sizeof label);
    return td_fail(err, TD_RUN, "rank %d, op %d (%s): %s", (int)h->rank, (int)op, label, text);
}

static td_status too_large(const td_host *h, int32_t op, int64_t count, td_err *err)
{
    return td_fail(err, TD_RUN,
                   "rank %d, op %d: a message of %lld elements is more than MPI counts (%d)",
                   (int)h->rank, (int)op, (long long)count, INT_MAX);
}

static void started(td_host *h, int32_t op)
{
    h->active[h->n_active++] = op;
}

static td_status host_transfer(void *self, int32_t op, int32_t chan, bool send, void *buffer,
                               uint64_t bytes, td_err *err)
{
    td_host *h = self;
    const td_chan *c = &h->p->ranks[h->rank].chans[chan];
    const int peer = h->p->comms[c->comm].ranks[1 - c->me], tag = GROUP_TAG + 1 + c->comm;
    if (bytes > INT_MAX)
        return too_large(h, op, (int64_t)bytes, err);
    int (*const isend)(const void *, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request *) =
        h->send_buffer == NULL ? MPI_Isend : MPI_Ibsend;
    const int code =
        send ? isend(buffer, (int)bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &h->requests[op])
             : MPI_Irecv(buffer, (int)bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &h->requests[op]);
    started(h, op);
    return mpi_failed(h, op, code, err);
}

static void finished(td_host *h, int32_t op)
{
    int32_t i = 0;
    while (i < h->n_active && h->active[i] != op)
        i++;
    if (i < h->n_active)
        h->active[i] = h->active[--h->n_active];
    h->ended[op] = host_now(h);
}

/* Looks at what is under way, but for the request that its caller looks at itself. */
static void look(td_host *h, const MPI_Request *but)
{
    for (int32_t i = h->n_active - 1; i >= 0; i--) {
        const int32_t op = h->active[i];
        int done = 0;
        if (&h->requests[op] != but &&
            MPI_Test(&h->requests[op], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done)
            finished(h, op);
    }
}

static void host_poll(void *self)
{
    look(self, NULL);
}

/*
 * Waits for a request with the core left to others: ranks may share it. One that spins stays
 * runnable, yielding or not, and the kernel counts it when it spreads ranks over cores, so that two
 * that compute end up on one core beside two that wait on the other. The longer it takes, the
 * longer the naps: a message under way needs both sides, and a nap costs it a tenth of its time.
 * Whatever else is under way is looked at as well, so that it ends when it ends and not when it is
 * waited for.
 */
static int await(td_host *h, MPI_Request *request)
{
    static const double spin_s = 200e-6, longest_s = 20e-6;
    const double began = MPI_Wtime();
    int done = 0, code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    while (code == MPI_SUCCESS && !done) {
        const double waited = MPI_Wtime() - began;
        const struct timespec nap = {.tv_nsec = (long)(fmin(waited / 10, longest_s) * 1e9)};
        if (waited > spin_s)
            nanosleep(&nap, NULL);
        look(h, request);
        code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    }
    return code;
}

static td_status host_collective(void *self, int32_t op, int32_t chan,
                                 const td_collective_call *call, td_err *err)
{
    static const MPI_Op ops[] = {
        [TD_REDUCE_SUM] = MPI_SUM, [TD_REDUCE_MAX] = MPI_MAX, [TD_REDUCE_MIN] = MPI_MIN};
    td_host *h = self;
    const MPI_Datatype types[] = {[TD_TYPE_ACT] = MPI_FLOAT,
                                  [TD_TYPE_F32] = MPI_FLOAT,
                                  [TD_TYPE_F64] = MPI_DOUBLE,
                                  [TD_TYPE_I32] = MPI_INT32_T};
    const MPI_Datatype type = types[call->type];
    const MPI_Op how = ops[call->reduction];
    const MPI_Comm comm = h->comms[chan];
    const int n = h->p->comms[h->p->ranks[h->rank].chans[chan].comm].n_ranks;
    const int32_t me = h->p->ranks[h->rank].chans[chan].me;
    MPI_Request inside = MPI_REQUEST_NULL, *request = op < 0 ? &inside : &h->requests[op];
    int code = MPI_SUCCESS;
    if (call->count > INT_MAX)
        return too_large(h, op, call->count, err);
    const int count = (int)call->count, share = count / n;
    const int size = call->type == TD_TYPE_F64 ? 8 : 4;
    if (call->coll == TD_COLL_ALL_REDUCE)
        code = MPI_Iallreduce(call->in == call->out ? MPI_IN_PLACE : call->in, call->out, count,
                              type, how, comm, request);
    else if (call->coll == TD_COLL_REDUCE_SCATTER)
        code = MPI_Ireduce_scatter_block(call->in, call->out, share, type, how, comm, request);
    else if (call->coll == TD_COLL_ALL_GATHER)
        code = MPI_Iallgather(
            call->in == (char *)call->out + (size_t)me * (size_t)share * (size_t)size ? MPI_IN_PLACE
                                                                                      : call->in,
            share, type, call->out, share, type, comm, request);
    else if (call->coll == TD_COLL_BROADCAST)
        code = MPI_Ibcast(call->out, count, type, call->root, comm, request);
    else
        return td_fail(err, TD_RUN, "rank %d: the host device has no %s", (int)h->rank,
                       td_collectives[call->coll]->name);
    if (op >= 0)
        started(h, op);
    else if (code == MPI_SUCCESS)
        code = await(h, request);
    return mpi_failed(h, op, code, err);
}

static td_status host_wait(void *self, int32_t op, td_err *err)
{
    td_host *h = self;
    if (op < 0 || h->requests[op] == MPI_REQUEST_NULL)
        return TD_OK;
    const int code = await(h, &h->requests[op]);
    finished(h, op);
    return mpi_failed(h, op, code, err);
}

/* ---- opening ---- */

static td_status open_comms(td_host *h, td_err *err)
{
    td_status st = TD_OK;
    MPI_Group world, members;
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    for (int32_t k = 0; k < h->stream->n_chans;
         k++) { /* every rank makes its groups in the order of the channels */
        const td_comm *c = &h->p->comms[h->p->ranks[h->rank].chans[k].comm];
        h->comms[k] = MPI_COMM_NULL;
        if (c->kind == TD_COMM_PAIR)
            continue;
        MPI_Group_incl(world, c->n_ranks, c->ranks, &members);
        const int code = MPI_Comm_create_group(MPI_COMM_WORLD, members, GROUP_TAG, &h->comms[k]);
        MPI_Group_free(&members);
        TD_TRY(st, mpi_failed(h, -1, code, err));
        MPI_Comm_set_errhandler(h->comms[k], MPI_ERRORS_RETURN);
    }
done:
    MPI_Group_free(&world);
    return st;
}

/* Room for the sends of two steps: those of one may be under way when the next begins. */
static td_status attach_buffer(td_host *h, td_err *err)
{
    int64_t bytes = 0;
    for (int32_t i = 0; i < h->stream->n_ops; i++)
        if (h->stream->ops[i].kind == TD_OP_SEND || h->stream->ops[i].kind == TD_OP_SEND_SHAPE)
            bytes += 2 * ((int64_t)h->stream->ops[i].bytes + MPI_BSEND_OVERHEAD);
    if (bytes == 0)
        return TD_OK;
    if (bytes > INT_MAX)
        return td_fail(err, TD_RUN, "rank %d: %lld bytes to buffer, more than MPI can (%d)",
                       (int)h->rank, (long long)bytes, INT_MAX);
    h->send_buffer = malloc((size_t)bytes);
    if (h->send_buffer == NULL)
        return td_fail(err, TD_NOMEM, "rank %d: no memory to buffer %lld bytes of sends",
                       (int)h->rank, (long long)bytes);
    return mpi_failed(h, -1, MPI_Buffer_attach(h->send_buffer, (int)bytes), err);
}

td_status td_host_open(td_arena *a, const td_program *p, int32_t rank, bool buffered, td_host **out,
                       td_err *err)
{
    td_status st = TD_OK;
    td_host *h = TD_NEW(a, td_host, 1);
    if (h == NULL)
        return td_fail(err, TD_NOMEM, "rank %d: no memory for the device", (int)rank);
    *h = (td_host){.p = p, .stream = td_program_stream(p, rank), .rank = rank};
    h->device = (td_device){.name = "host",
                            .self = h,
                            .kernels = &td_host_kernels,
                            .arena = host_arena,
                            .staging = host_arena,
                            .workspace = host_workspace,
                            .begin = host_begin,
                            .started = host_started,
                            .end = host_end,
                            .transfer = host_transfer,
                            .collective = host_collective,
                            .wait = host_wait,
                            .complete = host_wait,
                            .fetch = host_fetch,
                            .poll = host_poll,
                            .step = host_step,
                            .times = host_times,
                            .stamp = host_stamp,
                            .stamped = host_stamped,
                            .now = host_now};
    h->comms = TD_NEW(a, MPI_Comm, h->stream->n_chans);
    h->requests = TD_NEW(a, MPI_Request, h->stream->n_ops);
    h->times = TD_NEW(a, td_op_time, h->stream->n_ops);
    h->ended = TD_NEW(a, double, h->stream->n_ops);
    h->running = TD_NEW(a, int32_t, h->stream->n_ops + 1);
    h->active = TD_NEW(a, int32_t, h->stream->n_ops);
    if (h->comms == NULL || h->requests == NULL || h->times == NULL || h->ended == NULL ||
        h->running == NULL || h->active == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for the device", (int)rank));
    for (int32_t i = 0; i < h->stream->n_ops; i++)
        h->requests[i] = MPI_REQUEST_NULL;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    TD_TRY(st, open_comms(h, err));
    TD_TRY(st, buffered ? attach_buffer(h, err) : TD_OK);
    td_rendezvous_clock(p->world_size, MPI_Wtime, &h->offset, &h->clock_error);
    *out = h;
done:
    return st;
}

void td_host_close(td_host *h)
{
    if (h == NULL)
        return;
    if (h->send_buffer != NULL) {
        void *buffer;
        int size;
        MPI_Buffer_detach(&buffer, &size);
        free(h->send_buffer);
    }
    for (int32_t k = 0; k < h->stream->n_chans; k++)
        if (h->comms[k] != MPI_COMM_NULL)
            MPI_Comm_free(&h->comms[k]);
    free(h->stamps);
    for (piece *p = h->pieces, *next; p != NULL; p = next) {
        next = p->next;
        free(p);
    }
}

const td_device *td_host_device(const td_host *h)
{
    return &h->device;
}

double td_host_clock_error(const td_host *h)
{
    return h->clock_error;
}
