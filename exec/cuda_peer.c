/* Copies between GPUs of one machine, by copy engine. */
#include "exec/cuda_peer.h"
#include "exec/cuda_error.h"
#include "exec/cuda_map.h"
#include "exec/host_rendezvous.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

enum { SENDER, RECEIVER }; /* places in a pair's communicator */

typedef struct {
    td_cuda_loan arena;
    uint64_t bytes;
    int32_t n;
} offer;

typedef struct {
    bool taken;
    char why[128];
} answer;

/* ---- opening ---- */

/* Payloads of the channel in a step; with `offsets`, where they go. */
static int32_t payloads(const td_stream *s, int32_t chan, td_op_kind kind,
                        const td_cuda_places *here, uint64_t *offsets)
{
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_ops; i++)
        if (s->ops[i].kind == kind && s->ops[i].chan == chan) {
            if (offsets != NULL)
                offsets[n] = (uint64_t)((char *)here->buffers[i] - here->arena);
            n++;
        }
    return n;
}

td_status td_cuda_peer_open(td_arena *a, const td_program *p, int32_t rank, int32_t chan,
                            const td_cuda_places *here, td_cuda_peer *out, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(p, rank);
    const td_chan *at = &p->ranks[rank].chans[chan];
    const td_comm *pair = &p->comms[at->comm];
    const bool sends = at->me == SENDER;
    const int32_t n = payloads(s, chan, sends ? TD_OP_SEND : TD_OP_RECV, here, NULL);
    td_cuda_peer peer = {.sends = sends, .n = n, .offsets = TD_NEW(a, uint64_t, n + 1)};
    void *arena = here->arena;
    offer o = {.n = 0};
    answer re = {.taken = false};
    if (peer.offsets == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its transfers", (int)rank));
    if (!sends) {
        o = (offer){.arena = td_cuda_lend(here->arena), .bytes = here->bytes, .n = n};
        if (o.arena.possible)
            payloads(s, chan, TD_OP_RECV, here, peer.offsets);
    }
    TD_TRY(st, td_rendezvous_give(pair, at->me, RECEIVER, &o, sizeof o, err));
    if (o.n != n)
        TD_TRY(st,
               td_fail(err, TD_RUN, "rank %d sends %d payloads a step to rank %d, which expects %d",
                       (int)rank, (int)n, (int)pair->ranks[RECEIVER], (int)o.n));
    TD_TRY(st, td_rendezvous_give(pair, at->me, RECEIVER, peer.offsets,
                                  (size_t)n * sizeof *peer.offsets, err));
    if (sends)
        re.taken = td_cuda_map(&o.arena, &arena, re.why, sizeof re.why);
    TD_TRY(st, td_rendezvous_give(pair, at->me, SENDER, &re, sizeof re, err));
    peer.open = re.taken;
    peer.arena = arena;
    peer.bytes = (size_t)o.bytes;
    snprintf(peer.why, sizeof peer.why, "rank %d to rank %d: %s", (int)pair->ranks[SENDER],
             (int)pair->ranks[RECEIVER], re.why);
    *out = peer;
done:
    return st;
}

void td_cuda_peer_close(const td_comm *pair, td_cuda_peer *peer)
{
    char closed = 1;
    if (!peer->open)
        return;
    if (peer->sends)
        (void)cudaIpcCloseMemHandle(peer->arena);
    /* Without MPI there is nobody left to wait for. */
    (void)td_rendezvous_give(pair, peer->sends ? SENDER : RECEIVER, SENDER, &closed, 1, NULL);
    peer->open = false;
}

/* ---- transfers ---- */

/* The stream reaches this when whoever used the buffer before is done with it. */
static td_status receive(const td_cuda_mailboxes *m, const td_cuda_mailbox *b, uint32_t k,
                         void *stream, td_err *err)
{
    CUstreamBatchMemOpParams ops[2];
    memset(ops, 0, sizeof ops);
    ops[0].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    ops[0].writeValue.address = td_cuda_mailbox_count(b, TD_MAIL_READY);
    ops[0].writeValue.value = k;
    ops[1].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    ops[1].waitValue.address = td_cuda_mailbox_count(b, TD_MAIL_DONE);
    ops[1].waitValue.value = k;
    ops[1].waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
    return td_cuda_memop_failed(m->ops.batch(stream, 2, ops, 0), "receiving a payload", err);
}

/*
 * The count is written when the copy has ended, behind a fence for the system (the default of
 * CUstreamWriteValue_flags), so the payload is in the receiver's memory before the count is seen.
 * The receiver's wait therefore needs no CU_STREAM_WAIT_VALUE_FLUSH: that is for writes which are
 * only ordered among themselves on their way in, like those of a network card, and few platforms
 * have it (CU_DEVICE_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES).
 */
static td_status send(const td_cuda_mailboxes *m, const td_cuda_mailbox *b, uint32_t k, char *to,
                      const void *from, uint64_t bytes, void *stream, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, td_cuda_memop_failed(m->ops.wait(stream, td_cuda_mailbox_count(b, TD_MAIL_READY), k,
                                                CU_STREAM_WAIT_VALUE_GEQ),
                                    "waiting for a receiver", err));
    TD_TRY(st, td_cuda_failed((int)cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream),
                              "sending a payload", err));
    TD_TRY(st, td_cuda_memop_failed(m->ops.write(stream, td_cuda_mailbox_count(b, TD_MAIL_DONE), k,
                                                 CU_STREAM_WRITE_VALUE_DEFAULT),
                                    "counting a payload", err));
done:
    return st;
}

td_status td_cuda_peer_transfer(const td_cuda_mailboxes *m, td_cuda_mailbox *b,
                                const td_cuda_peer *peer, void *buffer, uint64_t bytes,
                                void *stream, td_err *err)
{
    td_status st = TD_OK;
    if (peer->n == 0)
        TD_TRY(st, td_fail(err, TD_RUN, "a payload on a channel that has none in a step"));
    const int64_t number = b->n_payloads++;
    const uint64_t offset = peer->offsets[number % peer->n];
    const uint32_t k = (uint32_t)b->n_payloads; /* compared in a circle of 2^32 */
    if (offset > peer->bytes || bytes > peer->bytes - offset)
        TD_TRY(st, td_fail(err, TD_RUN,
                           "payload %lld of the step: %llu bytes at %llu, but the receiver's arena "
                           "has %zu",
                           (long long)(number % peer->n), (unsigned long long)bytes,
                           (unsigned long long)offset, peer->bytes));
    if (!peer->sends && buffer != peer->arena + offset)
        TD_TRY(st,
               td_fail(err, TD_RUN,
                       "payload %lld of the step is received elsewhere than the sender was told",
                       (long long)(number % peer->n)));
    TD_TRY(st, peer->sends ? send(m, b, k, peer->arena + offset, buffer, bytes, stream, err)
                           : receive(m, b, k, stream, err));
done:
    return st;
}
