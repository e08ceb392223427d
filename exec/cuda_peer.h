/*
 * Payloads between GPUs of one machine, moved by a copy engine of the sender's GPU straight into
 * the receiver's buffer: no kernel, no multiprocessor, no copy in between. The sender has mapped
 * the receiver's arena (CUDA IPC); a step receives into the same places every time, so the receiver
 * tells them once, before the first step, and the sender can queue a copy long before its time.
 *
 * Payload k of a channel (from 1, over all steps), with two counters of the channel's mailbox:
 *     receiver's stream: ready = k; wait until done >= k
 *     sender's stream:   wait until ready >= k; copy; done = k
 * So a transfer starts when both have come to it and nothing depends on being buffered.
 */
#ifndef TANDEM_EXEC_CUDA_PEER_H
#define TANDEM_EXEC_CUDA_PEER_H

#include "exec/cuda_mailbox.h"
#include "model/arena.h"

/* What a rank can be sent to: its arena, and the buffer of each receive of a payload by op. */
typedef struct {
    char *arena; /* NULL: none; else a cudaMalloc() that shares its pages with nothing */
    size_t bytes;
    void *const *buffers; /* [n_ops of the rank's stream] NULL for other ops */
} td_cuda_places;

/* One end, of one channel of the rank. */
typedef struct {
    bool open;
    bool sends;
    char *arena; /* the receiver's, where this rank addresses it */
    size_t bytes;
    int32_t n;         /* payloads of a step */
    uint64_t *offsets; /* [n] of their buffers in the arena, in the order of the step */
    char why[192];     /* not open: the reason */
} td_cuda_peer;

/*
 * Collective over the two ranks of a pair on one machine, in the order of the communicators'
 * numbers. Both ends find the same: open, or not open because the GPUs cannot reach each other,
 * which is no failure. TD_RUN where the two have different receives in mind.
 */
td_status td_cuda_peer_open(td_arena *a, const td_program *p, int32_t rank, int32_t chan,
                            const td_cuda_places *here, td_cuda_peer *out, td_err *err);
/*
 * Collective like opening; streams are idle. On return the sender has unmapped the arena, so the
 * receiver may free it.
 */
void td_cuda_peer_close(const td_comm *pair, td_cuda_peer *peer);

/*
 * Queues the channel's next payload. TD_RUN for a buffer that is not where it was said to be, or a
 * payload that reaches beyond the arena. Not for capture.
 */
td_status td_cuda_peer_transfer(const td_cuda_mailboxes *m, td_cuda_mailbox *b,
                                const td_cuda_peer *peer, void *buffer, uint64_t bytes,
                                void *stream, td_err *err);

#endif
