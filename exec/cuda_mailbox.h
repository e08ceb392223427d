/*
 * The mailboxes of a rank's pair communicators: what the streams of sender and receiver leave for
 * each other in memory of the host. A mailbox counts announcements and holds the last shape
 * messages in a ring of slots; message k (from 1) is in slot (k - 1) mod n_slots and has come when
 * the count reached k. Two more counts belong to payloads that a copy engine moves:
 * exec/cuda_peer.h.
 *
 * On one machine both ends are the same memory and the sender's stream counts. Between machines
 * each end has its own: the sender's slot is what NCCL sends, the receiver's is where it lands, and
 * the receiver's stream counts.
 */
#ifndef TANDEM_EXEC_CUDA_MAILBOX_H
#define TANDEM_EXEC_CUDA_MAILBOX_H

#include "exec/cuda_memops.h"
#include "model/program.h"

#include <stdbool.h>

/* Each is written by one stream and waited for by one; they are compared in a circle of 2^32. */
typedef enum {
    TD_MAIL_ANNOUNCED, /* messages: by the sender, between machines by the receiver */
    TD_MAIL_READY,     /* payloads whose buffer is free: by the receiver */
    TD_MAIL_DONE,      /* payloads that are in their buffer: by the sender */
    TD_N_MAIL_COUNTS
} td_mail_count;

/* Where a shape message is to be copied when it has come. */
typedef struct {
    void *buffer;
    uint64_t bytes;
} td_cuda_wanted;

/* One end, of one channel of the rank. Zero for channels that are no pair. */
typedef struct {
    bool near;    /* both ranks are on this machine */
    void *memory; /* as the host addresses it */
    uint64_t gpu; /* the same memory for the GPU */
    int64_t n_slots;
    int64_t n;              /* messages of this channel so far */
    int64_t n_collected;    /* receiver: of those, copied */
    int64_t n_payloads;     /* so far, that a copy engine moves */
    td_cuda_wanted *wanted; /* [n_slots] receiver */
} td_cuda_mailbox;

typedef struct {
    td_cuda_mailbox *boxes; /* [n_chans of the rank's stream] */
    void *memory;           /* of the machine; lives as long as the process */
    bool registered;
    td_cuda_memops ops;
} td_cuda_mailboxes;

/* Collective over all ranks. */
td_status td_cuda_mailboxes_open(td_arena *a, const td_program *p, int32_t rank,
                                 td_cuda_mailboxes *out, td_err *err);
/* No stream may use them any more. */
void td_cuda_mailboxes_close(td_cuda_mailboxes *m);

/* The channel's next message begins; what follows is about it. */
void td_cuda_mailbox_next(td_cuda_mailbox *b);
/* Address for the GPU of the message's slot. */
void *td_cuda_mailbox_slot(const td_cuda_mailbox *b);
/*
 * Queues: `bytes` (0 to 24, whole int64) of `extents`, read now, are written into the slot, then,
 * if `announce`, the message is counted.
 */
td_status td_cuda_mailbox_write(const td_cuda_mailboxes *m, const td_cuda_mailbox *b,
                                const void *extents, uint64_t bytes, bool announce, void *stream,
                                td_err *err);
/* Queues: what follows on the stream runs once the message has been counted. */
td_status td_cuda_mailbox_wait(const td_cuda_mailboxes *m, const td_cuda_mailbox *b, void *stream,
                               td_err *err);
/* The message goes to `buffer` when collected. TD_RUN if the ring is full of uncollected ones. */
td_status td_cuda_mailbox_want(td_cuda_mailbox *b, void *buffer, uint64_t bytes, td_err *err);
/* Copies the messages that have come, each of which is wanted. Never blocks. */
void td_cuda_mailbox_collect(td_cuda_mailbox *b);
/* Address for the GPU of a count. */
uint64_t td_cuda_mailbox_count(const td_cuda_mailbox *b, td_mail_count which);
/* Lets every wait that this rank has queued pass, whatever comes: the other one is gone. */
void td_cuda_mailbox_release(td_cuda_mailbox *b);

#endif
