/* NCCL, copy engines and kernels over peers' memory behind the channels of a rank. */
#include "exec/cuda_comm.h"
#include "exec/cuda_error.h"
#include "exec/cuda_group.h"
#include "exec/host_rendezvous.h"
#include "model/pieces.h"
#include "model/sha256.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL = 32, BIG = 32 << 20, GROWTH = 16 }; /* bytes of the exchanges that connect */

typedef struct {
    const td_comm *comm;
    int32_t number, me;  /* td_program.comms index; where this rank stands in it */
    ncclComm_t nccl;     /* NULL: a group of one rank, a copy engine, or not made yet */
    td_cuda_peer peer;   /* pairs */
    td_cuda_group group; /* tensor ranks */
} channel;

struct td_cuda_comm {
    const td_program *p;
    int32_t rank, n_chans;
    channel *chans;
    int32_t *order; /* channels by number of communicator: the order on every rank */
    bool shapes;    /* a shape message announces each payload */
    td_arena *a;
    td_cuda_mailboxes mail;
    size_t bytes;
};

/*
 * Multiprocessors a kernel of NCCL may take (0: NCCL decides), and the largest exchange that
 * connects a communicator. test-cuda-channels (tests/gpu/channels.c) measures, and says by which
 * criterion it comes to the rows of groups.
 */
static const struct {
    int min_ctas, max_ctas;
    int64_t connect_bytes;
} traits[TD_N_COMMS] = {
    /* With four 16 MiB move at 69 GB/s between two H200, a third of what NCCL's choice does. */
    [TD_COMM_PAIR] = {0, 0, BIG},
    /* Products wait for it. */
    [TD_COMM_TENSOR] = {0, 0, BIG},
    /* Beside the products of a backward: 54 us a MiB of theirs and its own time on H200, 66 with
     * NCCL's choice (tests/gpu/results/channels-h200.csv). */
    [TD_COMM_DATA] = {1, 32, BIG},
    /* Some bytes in the optimizer step. */
    [TD_COMM_MODULE] = {1, 1, SMALL},
    [TD_COMM_WORLD] = {1, 1, SMALL},
};

/* ---- failures ---- */

/* `pair communicator of ranks 3, 5`; of more than a few ranks the first and how many. */
static const char *name_of(const channel *ch, char *text, size_t size)
{
    enum { SHOWN = 8 };
    const td_comm *c = ch->comm;
    int n = snprintf(text, size, "%s communicator of rank%s", td_comm_names[c->kind],
                     c->n_ranks == 1 ? "" : "s");
    for (int32_t i = 0; i < c->n_ranks && i < SHOWN && n > 0 && (size_t)n < size; i++)
        n += snprintf(text + n, size - (size_t)n, "%s %d", i == 0 ? "" : ",", (int)c->ranks[i]);
    if (c->n_ranks > SHOWN && n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, ", ... (%d)", (int)c->n_ranks);
    return text;
}

static td_status nccl_failed(const td_cuda_comm *c, const channel *ch, const char *what,
                             ncclResult_t result, td_err *err)
{
    char name[128];
    if (result == ncclSuccess)
        return TD_OK;
    const char *last = ncclGetLastError(ch->nccl);
    return td_fail(err, TD_RUN, "rank %d, %s: %s: %s%s%s", (int)c->rank,
                   name_of(ch, name, sizeof name), what, ncclGetErrorString(result),
                   last == NULL || *last == '\0' ? "" : ": ", last == NULL ? "" : last);
}

/* ---- transfers ---- */

static td_status move(const td_cuda_comm *c, const channel *ch, bool send, void *buffer,
                      uint64_t bytes, void *stream, td_err *err)
{
    return send ? nccl_failed(c, ch, "ncclSend",
                              ncclSend(buffer, bytes, ncclInt8, 1, ch->nccl, stream), err)
                : nccl_failed(c, ch, "ncclRecv",
                              ncclRecv(buffer, bytes, ncclInt8, 0, ch->nccl, stream), err);
}

/*
 * The mailbox of another machine cannot be written, so the shape is a message of NCCL's from slot
 * to slot, and the receiver's stream counts it for the host. Costs a kernel launch on both sides
 * and one multiprocessor of the receiver from when it is queued until the sender comes; the
 * payload's kernel starts only after it.
 */
static td_status far_shape(td_cuda_comm *c, const channel *ch, td_cuda_mailbox *b, bool send,
                           const void *extents, uint64_t bytes, void *stream, td_err *err)
{
    td_status st = TD_OK;
    if (send)
        TD_TRY(st, td_cuda_mailbox_write(&c->mail, b, extents, bytes, false, stream, err));
    TD_TRY(st, move(c, ch, send, td_cuda_mailbox_slot(b), bytes, stream, err));
    if (!send)
        TD_TRY(st, td_cuda_mailbox_write(&c->mail, b, NULL, 0, true, stream, err));
done:
    return st;
}

static td_status near_shape(td_cuda_comm *c, td_cuda_mailbox *b, bool send, const void *extents,
                            uint64_t bytes, void *stream, td_err *err)
{
    return send ? td_cuda_mailbox_write(&c->mail, b, extents, bytes, true, stream, err)
                : td_cuda_mailbox_wait(&c->mail, b, stream, err);
}

static td_status transfer_shape(td_cuda_comm *c, const channel *ch, td_cuda_mailbox *b, bool send,
                                void *buffer, uint64_t bytes, void *stream, td_err *err)
{
    td_status st = TD_OK;
    if (!send)
        td_cuda_mailbox_collect(b);
    td_cuda_mailbox_next(b);
    if (!send)
        TD_TRY(st, td_cuda_mailbox_want(b, buffer, bytes, err));
    TD_TRY(st, b->near ? near_shape(c, b, send, buffer, bytes, stream, err)
                       : far_shape(c, ch, b, send, buffer, bytes, stream, err));
done:
    return st;
}

/* A payload of NCCL that no shape message precedes is announced itself. */
static td_status gate(td_cuda_comm *c, td_cuda_mailbox *b, bool send, void *stream, td_err *err)
{
    if (c->shapes || !b->near)
        return TD_OK;
    td_cuda_mailbox_next(b);
    return near_shape(c, b, send, NULL, 0, stream, err);
}

td_status td_cuda_comm_transfer(td_cuda_comm *c, int32_t chan, bool send, bool shape, void *buffer,
                                uint64_t bytes, void *stream, td_err *err)
{
    td_status st = TD_OK;
    const channel *ch = &c->chans[chan];
    td_cuda_mailbox *b = &c->mail.boxes[chan];
    char name[128];
    if (ch->comm->kind != TD_COMM_PAIR || send != (ch->me == 0))
        TD_TRY(st, td_fail(err, TD_RUN, "rank %d cannot %s on the %s", (int)c->rank,
                           send ? "send" : "receive", name_of(ch, name, sizeof name)));
    if (shape) {
        TD_TRY(st, transfer_shape(c, ch, b, send, buffer, bytes, stream, err));
    } else if (ch->peer.open) {
        TD_TRY(st, td_cuda_peer_transfer(&c->mail, b, &ch->peer, buffer, bytes, stream, err));
    } else {
        TD_TRY(st, gate(c, b, send, stream, err));
        TD_TRY(st, move(c, ch, send, buffer, bytes, stream, err));
    }
done:
    return st;
}

void td_cuda_comm_collect(td_cuda_comm *c)
{
    for (int32_t k = 0; k < c->n_chans && c->shapes; k++)
        if (c->mail.boxes[k].wanted != NULL)
            td_cuda_mailbox_collect(&c->mail.boxes[k]);
}

/* ---- collectives ---- */

/* Elements of the larger buffer, and of the share of a rank. */
typedef struct {
    size_t count, share;
    ncclDataType_t type;
    ncclRedOp_t reduction;
} quantity;

static ncclResult_t all_reduce(const td_collective_call *call, const quantity *q, ncclComm_t comm,
                               cudaStream_t stream)
{
    return ncclAllReduce(call->in, call->out, q->count, q->type, q->reduction, comm, stream);
}

static ncclResult_t reduce_scatter(const td_collective_call *call, const quantity *q,
                                   ncclComm_t comm, cudaStream_t stream)
{
    return ncclReduceScatter(call->in, call->out, q->share, q->type, q->reduction, comm, stream);
}

static ncclResult_t all_gather(const td_collective_call *call, const quantity *q, ncclComm_t comm,
                               cudaStream_t stream)
{
    return ncclAllGather(call->in, call->out, q->share, q->type, comm, stream);
}

static ncclResult_t broadcast(const td_collective_call *call, const quantity *q, ncclComm_t comm,
                              cudaStream_t stream)
{
    return ncclBroadcast(call->in, call->out, q->count, q->type, call->root, comm, stream);
}

static ncclResult_t (*const queue[TD_N_COLLS])(const td_collective_call *, const quantity *,
                                               ncclComm_t, cudaStream_t) = {
    [TD_COLL_ALL_REDUCE] = all_reduce,
    [TD_COLL_REDUCE_SCATTER] = reduce_scatter,
    [TD_COLL_ALL_GATHER] = all_gather,
    [TD_COLL_BROADCAST] = broadcast,
};

/* Over one rank every collective is a copy. */
static td_status copy_alone(const td_collective_call *call, size_t bytes, void *stream, td_err *err)
{
    if (call->in == call->out || bytes == 0)
        return TD_OK;
    return td_cuda_failed(
        (int)cudaMemcpyAsync(call->out, call->in, bytes, cudaMemcpyDeviceToDevice, stream),
        "a collective over one rank", err);
}

static td_status queue_collective(const td_cuda_comm *c, const channel *ch,
                                  const td_collective_call *call, const quantity *q, void *stream,
                                  td_err *err)
{
    return nccl_failed(c, ch, td_collectives[call->coll]->name,
                       queue[call->coll](call, q, ch->nccl, stream), err);
}

td_status td_cuda_comm_collective(td_cuda_comm *c, int32_t chan, const td_collective_call *call,
                                  bool in_pass, bool act_bf16, void *stream, td_err *err)
{
    static const ncclRedOp_t reductions[] = {
        [TD_REDUCE_SUM] = ncclSum, [TD_REDUCE_MAX] = ncclMax, [TD_REDUCE_MIN] = ncclMin};
    const struct {
        ncclDataType_t type;
        size_t size;
    } types[] = {[TD_TYPE_ACT] = {act_bf16 ? ncclBfloat16 : ncclFloat32, act_bf16 ? 2 : 4},
                 [TD_TYPE_F32] = {ncclFloat32, 4},
                 [TD_TYPE_F64] = {ncclFloat64, 8},
                 [TD_TYPE_I32] = {ncclInt32, 4}};
    td_status st = TD_OK;
    const channel *ch = &c->chans[chan];
    const int32_t n = ch->comm->n_ranks;
    const char *what = td_collectives[call->coll]->name;
    const bool shares = call->coll == TD_COLL_REDUCE_SCATTER || call->coll == TD_COLL_ALL_GATHER;
    const quantity q = {.count = (size_t)call->count,
                        .share = (size_t)(call->count / n),
                        .type = types[call->type].type,
                        .reduction = reductions[call->reduction]};
    char name[128];
    if (queue[call->coll] == NULL)
        TD_TRY(st, td_fail(err, TD_RUN, "rank %d: the CUDA device has no %s", (int)c->rank, what));
    if (shares && call->count % n != 0)
        TD_TRY(st,
               td_fail(err, TD_RUN, "rank %d, %s: %s of %lld elements, which %d ranks do not share",
                       (int)c->rank, name_of(ch, name, sizeof name), what, (long long)call->count,
                       (int)n));
    if (n == 1)
        TD_TRY(st, copy_alone(call, q.count * types[call->type].size, stream, err));
    else if (in_pass && td_cuda_group_has(&ch->group, call, act_bf16))
        TD_TRY(st, td_cuda_group_run(&ch->group, call, act_bf16, stream, err));
    else
        TD_TRY(st, queue_collective(c, ch, call, &q, stream, err));
done:
    return st;
}

/* ---- opening ---- */

/* Each channel's communicator is one of its own, so the numbers differ. */
static void sort_channels(td_cuda_comm *c)
{
    for (int32_t k = 0; k < c->n_chans; k++) {
        int32_t i = k;
        for (; i > 0 && c->chans[c->order[i - 1]].number > c->chans[k].number; i--)
            c->order[i] = c->order[i - 1];
        c->order[i] = k;
    }
}

static td_status make(td_cuda_comm *c, channel *ch, td_err *err)
{
    td_status st = TD_OK;
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    if (traits[ch->comm->kind].max_ctas > 0) {
        config.minCTAs = traits[ch->comm->kind].min_ctas;
        config.maxCTAs = traits[ch->comm->kind].max_ctas;
    }
    memset(&id, 0, sizeof id);
    if (ch->me == 0)
        TD_TRY(st, nccl_failed(c, ch, "ncclGetUniqueId", ncclGetUniqueId(&id), err));
    TD_TRY(st, td_rendezvous_give(ch->comm, ch->me, 0, &id, sizeof id, err));
    TD_TRY(st, nccl_failed(
                   c, ch, "ncclCommInitRankConfig",
                   ncclCommInitRankConfig(&ch->nccl, ch->comm->n_ranks, id, ch->me, &config), err));
done:
    return st;
}

static td_status connect_group(td_cuda_comm *c, int32_t chan, char *scratch, void *stream,
                               td_err *err)
{
    static const td_coll colls[] = {TD_COLL_ALL_REDUCE, TD_COLL_REDUCE_SCATTER, TD_COLL_ALL_GATHER,
                                    TD_COLL_BROADCAST};
    td_status st = TD_OK;
    const channel *ch = &c->chans[chan];
    const int64_t n = ch->comm->n_ranks, e = (int64_t)sizeof(float);
    for (size_t k = 0; k < sizeof colls / sizeof *colls; k++)
        for (int64_t bytes = SMALL; bytes <= traits[ch->comm->kind].connect_bytes;
             bytes *= GROWTH) {
            const int64_t share = bytes / e / n > 0 ? bytes / e / n : 1;
            char *mine = scratch + ch->me * share * e; /* in place, as NCCL defines it */
            const td_collective_call call = {.coll = colls[k],
                                             .in = colls[k] == TD_COLL_ALL_GATHER ? mine : scratch,
                                             .out = colls[k] == TD_COLL_REDUCE_SCATTER ? mine
                                                                                       : scratch,
                                             .count = share * n,
                                             .type = TD_TYPE_F32};
            TD_TRY(st, td_cuda_comm_collective(c, chan, &call, false, false, stream, err));
        }
done:
    return st;
}

static td_status connect_pair(td_cuda_comm *c, int32_t chan, char *scratch, void *stream,
                              td_err *err)
{
    td_status st = TD_OK;
    const channel *ch = &c->chans[chan];
    for (uint64_t bytes = SMALL; bytes <= BIG; bytes *= GROWTH)
        TD_TRY(st, move(c, ch, ch->me == 0, scratch, bytes, stream, err));
done:
    return st;
}

/* Groups and pairs are made in two rounds, on all ranks in this order. */
static bool needed(const channel *ch, bool pairs)
{
    return ch->comm->n_ranks > 1 && (ch->comm->kind == TD_COMM_PAIR) == pairs && !ch->peer.open;
}

/*
 * NCCL connects two ranks when they first exchange something, and the host waits for the other in
 * that call. In the middle of a step ranks come to their first exchanges in different orders and
 * could wait in a circle, or for a rank that captures a graph. So all connections are made here, by
 * exchanges of the sizes that make NCCL choose different algorithms and protocols, communicator by
 * communicator in the order of their numbers.
 *
 * Communicators are made one after the other as well: NCCL documents grouped initialisation only
 * for the ranks of one communicator.
 */
static td_status make_all(td_cuda_comm *c, bool pairs, char *scratch, void *stream, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t i = 0; i < c->n_chans; i++) {
        const int32_t k = c->order[i];
        channel *ch = &c->chans[k];
        if (!needed(ch, pairs))
            continue;
        TD_TRY(st, make(c, ch, err));
        TD_TRY(st, pairs ? connect_pair(c, k, scratch, stream, err)
                         : connect_group(c, k, scratch, stream, err));
        TD_TRY(st, td_cuda_failed((int)cudaStreamSynchronize(stream), "connecting ranks", err));
    }
done:
    return st;
}

/* A rank's share of a connecting collective is at least one element, whatever the world. */
static size_t scratch_bytes(const td_program *p)
{
    const size_t world = (size_t)p->world_size * sizeof(float);
    return world > BIG ? world : BIG;
}

/* After a failure stream and scratch may be in use: they go with the process. */
static td_status connect_ranks(td_cuda_comm *c, bool pairs, td_err *err)
{
    td_status st = TD_OK;
    size_t before = 0, after = 0, total;
    const size_t bytes = scratch_bytes(c->p);
    cudaStream_t stream = NULL;
    void *scratch = NULL;
    bool any = false;
    for (int32_t k = 0; k < c->n_chans; k++)
        any = any || needed(&c->chans[k], pairs);
    if (!any)
        return TD_OK;
    TD_TRY(st, td_cuda_failed((int)cudaMemGetInfo(&before, &total), "asking for free memory", err));
    TD_TRY(st, td_cuda_failed((int)cudaMalloc(&scratch, bytes), "memory to connect ranks", err));
    TD_TRY(st, td_cuda_failed((int)cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                              "a stream to connect ranks", err));
    TD_TRY(st, td_cuda_failed((int)cudaMemsetAsync(scratch, 0, bytes, stream),
                              "memory to connect ranks", err));
    TD_TRY(st, make_all(c, pairs, scratch, stream, err));
    TD_TRY(st, td_cuda_failed((int)cudaFree(scratch), "memory to connect ranks", err));
    cudaStreamDestroy(stream);
    TD_TRY(st, td_cuda_failed((int)cudaMemGetInfo(&after, &total), "asking for free memory", err));
    c->bytes += before > after ? before - after : 0;
done:
    return st;
}

td_status td_cuda_comm_open(td_arena *a, const td_program *p, int32_t rank, td_cuda_comm **out,
                            td_err *err)
{
    td_status st = TD_OK;
    const td_chan *chans = p->ranks[rank].chans;
    const int32_t n = td_program_stream(p, rank)->n_chans;
    td_cuda_comm *c = TD_NEW(a, td_cuda_comm, 1);
    if (c == NULL)
        return td_fail(err, TD_NOMEM, "rank %d: no memory for its communicators", (int)rank);
    *c = (td_cuda_comm){.p = p, .rank = rank, .a = a, .shapes = p->plan->step.shape_exchange};
    c->chans = TD_NEW(a, channel, n);
    c->order = TD_NEW(a, int32_t, n);
    if (c->chans == NULL || c->order == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its communicators", (int)rank));
    for (int32_t k = 0; k < n; k++)
        c->chans[k] =
            (channel){.comm = &p->comms[chans[k].comm], .number = chans[k].comm, .me = chans[k].me};
    TD_TRY(st, td_cuda_mailboxes_open(a, p, rank, &c->mail, err));
    c->n_chans = n;
    sort_channels(c);
    TD_TRY(st, connect_ranks(c, false, err));
    *out = c;
done:
    if (st != TD_OK)
        td_cuda_comm_close(c, true);
    return st;
}

/* ---- groups over peers' memory ---- */

static void add_piece(void *self, const td_piece *p)
{
    const uint64_t all[] = {p->kind,   (uint64_t)p->edge, (uint64_t)p->n_i, (uint64_t)p->n_j,
                            p->offset, p->bytes,          p->stride_i,      p->stride_j};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        td_sha256_add_u64(self, all[i]);
}

/* Digest of where everything stands in the rank's arena. */
static td_status layout_of(const td_cuda_comm *c, char digest[65], td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(c->p, c->rank);
    td_pipeline pipe;
    td_stage_sizes sizes;
    td_sha256 sum;
    TD_TRY(st, td_pipeline_of_plan(c->a, c->p->plan, &pipe, err));
    TD_TRY(st, td_stage_sizes_of(c->a, c->p->plan, &pipe, s->module, s->pp_rank, &sizes, err));
    td_sha256_begin(&sum);
    td_sha256_add_u64(
        &sum, td_stage_pieces(c->p->plan, &pipe, s->module, s->pp_rank, &sizes, add_piece, &sum));
    td_sha256_end(&sum, digest);
done:
    return st;
}

/* TANDEM_GROUP in the environment: `peer`, as if it were not there, or `nccl`, for comparisons. */
static td_status refusal_of(const char **out, td_err *err)
{
    const char *value = getenv("TANDEM_GROUP");
    const bool nccl = value != NULL && strcmp(value, "nccl") == 0;
    *out = nccl ? "TANDEM_GROUP=nccl" : NULL;
    return value == NULL || *value == '\0' || nccl || strcmp(value, "peer") == 0
               ? TD_OK
               : td_fail(err, TD_RUN, "TANDEM_GROUP is `%s`, expected peer or nccl", value);
}

static bool on_one_machine(const td_comm *c, const td_rendezvous *r)
{
    bool one = true;
    for (int32_t i = 1; i < c->n_ranks; i++)
        one = one && r->node_of[c->ranks[i]] == r->node_of[c->ranks[0]];
    return one;
}

static bool is_group(const channel *ch)
{
    return ch->comm->kind == TD_COMM_TENSOR && ch->comm->n_ranks > 1;
}

/* A rank has one group at most: tensor ranks of its stage. */
static td_status open_groups(td_cuda_comm *c, const td_cuda_places *here, td_err *err)
{
    td_status st = TD_OK;
    td_rendezvous where;
    char layout[65];
    td_cuda_group_side side = {.arena = here->arena, .bytes = here->bytes, .layout = layout};
    TD_TRY(st, refusal_of(&side.refusal, err));
    TD_TRY(st, td_rendezvous_open(c->a, c->p->world_size, &where, err));
    for (int32_t i = 0; i < c->n_chans; i++) {
        channel *ch = &c->chans[c->order[i]];
        if (!is_group(ch))
            continue;
        snprintf(ch->group.why, sizeof ch->group.why, "between machines");
        if (!on_one_machine(ch->comm, &where))
            continue;
        TD_TRY(st, layout_of(c, layout, err));
        TD_TRY(st, td_cuda_group_open(ch->comm, ch->me, &side, &ch->group, err));
        c->bytes += ch->group.own_bytes;
    }
done:
    return st;
}

td_status td_cuda_comm_connect(td_cuda_comm *c, const td_cuda_places *here, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t i = 0; i < c->n_chans; i++) {
        const int32_t k = c->order[i];
        if (c->mail.boxes[k].near)
            TD_TRY(st, td_cuda_peer_open(c->a, c->p, c->rank, k, here, &c->chans[k].peer, err));
    }
    TD_TRY(st, open_groups(c, here, err));
    TD_TRY(st, connect_ranks(c, true, err));
done:
    return st;
}

/* ---- watching and closing ---- */

/*
 * Streams may stand before a count that will not come, or before a kernel of another
 * communicator: all counts advance, kernels over peers' memory are told that nobody comes and, in
 * one group, all communicators are told to abort before any waits for its kernels. Memory stays
 * registered, which would synchronise.
 */
static void abort_all(td_cuda_comm *c)
{
    for (int32_t k = 0; k < c->n_chans; k++)
        if (c->mail.boxes[k].memory != NULL)
            td_cuda_mailbox_release(&c->mail.boxes[k]);
    for (int32_t k = 0; k < c->n_chans; k++)
        td_cuda_group_abandon(&c->chans[k].group);
    ncclGroupStart();
    for (int32_t k = 0; k < c->n_chans; k++)
        if (c->chans[k].nccl != NULL)
            ncclCommAbort(c->chans[k].nccl);
    ncclGroupEnd();
}

void td_cuda_comm_close(td_cuda_comm *c, bool failed)
{
    if (c == NULL)
        return;
    if (failed)
        abort_all(c);
    for (int32_t i = 0; i < c->n_chans && !failed; i++)
        td_cuda_peer_close(c->chans[c->order[i]].comm, &c->chans[c->order[i]].peer);
    for (int32_t i = 0; i < c->n_chans && !failed; i++)
        td_cuda_group_close(c->chans[c->order[i]].comm, &c->chans[c->order[i]].group);
    for (int32_t i = 0; i < c->n_chans && !failed; i++)
        if (c->chans[c->order[i]].nccl != NULL)
            ncclCommDestroy(c->chans[c->order[i]].nccl);
    if (!failed)
        td_cuda_mailboxes_close(&c->mail);
    for (int32_t k = 0; k < c->n_chans; k++)
        c->chans[k].nccl = NULL;
}

td_status td_cuda_comm_check(td_cuda_comm *c, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t k = 0; k < c->n_chans; k++) {
        const channel *ch = &c->chans[k];
        ncclResult_t state = ncclSuccess;
        if (ch->nccl == NULL)
            continue;
        TD_TRY(st, nccl_failed(c, ch, "ncclCommGetAsyncError",
                               ncclCommGetAsyncError(ch->nccl, &state), err));
        if (state != ncclInProgress)
            TD_TRY(st, nccl_failed(c, ch, "communication broke off", state, err));
    }
done:
    return st;
}

td_cuda_transports td_cuda_comm_transports(const td_cuda_comm *c)
{
    td_cuda_transports t = {0};
    for (int32_t k = 0; k < c->n_chans; k++) {
        const channel *ch = &c->chans[k];
        if (ch->comm->kind == TD_COMM_PAIR) {
            t.copy_engine += ch->peer.open;
            t.nccl += ch->nccl != NULL;
            if (ch->nccl != NULL && t.why == NULL)
                t.why = c->mail.boxes[k].near ? ch->peer.why : "between machines";
        } else if (is_group(ch)) {
            t.mapped_groups += ch->group.open;
            t.nccl_groups += !ch->group.open;
            if (!ch->group.open && t.why_group == NULL)
                t.why_group = ch->group.why;
        }
    }
    return t;
}

size_t td_cuda_comm_bytes(const td_cuda_comm *c)
{
    return c->bytes;
}

int td_cuda_comm_version(void)
{
    int version = 0;
    ncclGetVersion(&version);
    return version;
}
