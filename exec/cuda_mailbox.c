/* Mailboxes in memory that the ranks of a machine and their GPUs have mapped. */
#include "exec/cuda_mailbox.h"
#include "exec/cuda_error.h"
#include "exec/host_rendezvous.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

/* As many uncollected messages as a receiver may have: those of two steps. Sends of payloads end
 * when received, so a sender is at most one message ahead of what the receiver has queued. */
enum { STEPS = 2, AHEAD = 2, EXTENTS = 3, FAR_AHEAD = 1 << 30 };

typedef struct {
    _Alignas(32) int64_t extents[EXTENTS];
} slot;

/* In lines of their own: a GPU that waits for one reads it all the time. */
typedef struct {
    _Alignas(64) _Atomic uint32_t n;
} count;

typedef struct {
    count counts[TD_N_MAIL_COUNTS];
    slot slots[];
} box_memory;

static size_t box_bytes(int64_t n_slots)
{
    const size_t line = _Alignof(box_memory);
    const size_t bytes = sizeof(box_memory) + (size_t)n_slots * sizeof(slot);
    return (bytes + line - 1) / line * line;
}

/* ---- opening ---- */

/* Numbers the pairs with an end on this machine; `at[k]` is the number of channel k's or -1. */
static size_t number_pairs(const td_program *p, int32_t rank, const td_rendezvous *r,
                           td_cuda_mailbox *boxes, int64_t *at)
{
    size_t n = 0;
    const int32_t node = r->node_of[rank], n_chans = td_program_stream(p, rank)->n_chans;
    for (int64_t i = 0; i < p->n_comms; i++) {
        const td_comm *c = &p->comms[i];
        if (c->kind != TD_COMM_PAIR ||
            (r->node_of[c->ranks[0]] != node && r->node_of[c->ranks[1]] != node))
            continue;
        for (int32_t k = 0; k < n_chans; k++)
            if (p->ranks[rank].chans[k].comm == i) {
                at[k] = (int64_t)n;
                boxes[k].near = r->node_of[c->ranks[0]] == r->node_of[c->ranks[1]];
            }
        n++;
    }
    return n;
}

td_status td_cuda_mailboxes_open(td_arena *a, const td_program *p, int32_t rank,
                                 td_cuda_mailboxes *out, td_err *err)
{
    td_status st = TD_OK;
    const int32_t n_chans = td_program_stream(p, rank)->n_chans;
    const int64_t n_slots = STEPS * (int64_t)p->plan->step.microbatches + AHEAD;
    const size_t stride = box_bytes(n_slots);
    td_cuda_mailboxes m = {.boxes = TD_NEW(a, td_cuda_mailbox, n_chans)};
    int64_t *at = TD_NEW(a, int64_t, n_chans);
    td_rendezvous r;
    size_t n, bytes;
    void *gpu = NULL;
    if (m.boxes == NULL || at == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its mailboxes", (int)rank));
    TD_TRY(st, td_cuda_memops_find(&m.ops, err));
    TD_TRY(st, td_rendezvous_open(a, p->world_size, &r, err));
    memset(at, -1, (size_t)n_chans * sizeof *at);
    n = number_pairs(p, rank, &r, m.boxes, at);
    bytes = (n > 0 ? n : 1) * stride;
    TD_TRY(st, td_rendezvous_memory(&r, bytes, &m.memory, err));
    TD_TRY(st,
           td_cuda_failed((int)cudaHostRegister(m.memory, bytes,
                                                cudaHostRegisterMapped | cudaHostRegisterPortable),
                          "mapping the mailboxes into the GPU", err));
    m.registered = true;
    TD_TRY(st, td_cuda_failed((int)cudaHostGetDevicePointer(&gpu, m.memory, 0),
                              "finding the mailboxes in the GPU", err));
    for (int32_t k = 0; k < n_chans; k++) {
        td_cuda_mailbox *b = &m.boxes[k];
        if (at[k] < 0)
            continue;
        b->memory = (char *)m.memory + (size_t)at[k] * stride;
        b->gpu = (uint64_t)(uintptr_t)gpu + (uint64_t)at[k] * stride;
        b->n_slots = n_slots;
        if (p->ranks[rank].chans[k].me == 1)
            b->wanted = TD_NEW(a, td_cuda_wanted, n_slots);
        if (p->ranks[rank].chans[k].me == 1 && b->wanted == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its mailboxes", (int)rank));
    }
    *out = m;
done:
    if (st != TD_OK)
        td_cuda_mailboxes_close(&m);
    return st;
}

void td_cuda_mailboxes_close(td_cuda_mailboxes *m)
{
    if (m->registered)
        cudaHostUnregister(m->memory);
    m->registered = false;
}

/* ---- messages ---- */

static int64_t slot_of(const td_cuda_mailbox *b, int64_t message)
{
    return (message - 1) % b->n_slots;
}

void td_cuda_mailbox_next(td_cuda_mailbox *b)
{
    b->n++;
}

uint64_t td_cuda_mailbox_count(const td_cuda_mailbox *b, td_mail_count which)
{
    return b->gpu + offsetof(box_memory, counts) + (uint64_t)which * sizeof(count);
}

static uint64_t slot_address(const td_cuda_mailbox *b)
{
    return b->gpu + offsetof(box_memory, slots) + (uint64_t)slot_of(b, b->n) * sizeof(slot);
}

void *td_cuda_mailbox_slot(const td_cuda_mailbox *b)
{
    return (void *)(uintptr_t)slot_address(b);
}

/*
 * One call for the words of a message: a batch runs in its order, and each write comes with a fence
 * for the system before it (the default of CUstreamWriteValue_flags), so whoever sees the count
 * sees the extents.
 */
td_status td_cuda_mailbox_write(const td_cuda_mailboxes *m, const td_cuda_mailbox *b,
                                const void *extents, uint64_t bytes, bool announce, void *stream,
                                td_err *err)
{
    CUstreamBatchMemOpParams ops[EXTENTS + 1];
    uint64_t values[EXTENTS];
    unsigned n = 0;
    if (bytes > sizeof values || bytes % sizeof *values != 0)
        return td_fail(err, TD_RUN, "a shape message of %llu bytes, expected at most %d int64",
                       (unsigned long long)bytes, EXTENTS);
    memset(ops, 0, sizeof ops);
    if (bytes > 0)
        memcpy(values, extents, bytes);
    for (; n < bytes / sizeof *values; n++) {
        ops[n].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_64;
        ops[n].writeValue.address = slot_address(b) + n * sizeof *values;
        ops[n].writeValue.value64 = values[n];
    }
    if (announce) {
        ops[n].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
        ops[n].writeValue.address = td_cuda_mailbox_count(b, TD_MAIL_ANNOUNCED);
        ops[n].writeValue.value = (uint32_t)b->n;
        n++;
    }
    return td_cuda_memop_failed(m->ops.batch(stream, n, ops, 0), "announcing a payload", err);
}

td_status td_cuda_mailbox_wait(const td_cuda_mailboxes *m, const td_cuda_mailbox *b, void *stream,
                               td_err *err)
{
    return td_cuda_memop_failed(m->ops.wait(stream, td_cuda_mailbox_count(b, TD_MAIL_ANNOUNCED),
                                            (uint32_t)b->n, CU_STREAM_WAIT_VALUE_GEQ),
                                "waiting for an announcement", err);
}

td_status td_cuda_mailbox_want(td_cuda_mailbox *b, void *buffer, uint64_t bytes, td_err *err)
{
    if (bytes > EXTENTS * sizeof(int64_t))
        return td_fail(err, TD_RUN, "a shape message of %llu bytes, expected at most %d int64",
                       (unsigned long long)bytes, EXTENTS);
    if (b->n - b->n_collected >= b->n_slots)
        return td_fail(err, TD_RUN,
                       "%lld shape messages are not collected: more than %d steps are under way",
                       (long long)(b->n - b->n_collected), STEPS);
    b->wanted[slot_of(b, b->n)] = (td_cuda_wanted){.buffer = buffer, .bytes = bytes};
    return TD_OK;
}

void td_cuda_mailbox_collect(td_cuda_mailbox *b)
{
    box_memory *memory = b->memory;
    const uint32_t announced =
        atomic_load_explicit(&memory->counts[TD_MAIL_ANNOUNCED].n, memory_order_acquire);
    while (b->n_collected < b->n && (int32_t)(announced - (uint32_t)(b->n_collected + 1)) >= 0) {
        const int64_t k = slot_of(b, ++b->n_collected);
        memcpy(b->wanted[k].buffer, memory->slots[k].extents, b->wanted[k].bytes);
    }
}

static void advance(td_cuda_mailbox *b, td_mail_count which, int64_t n)
{
    box_memory *memory = b->memory;
    atomic_store_explicit(&memory->counts[which].n, (uint32_t)n + FAR_AHEAD, memory_order_release);
}

void td_cuda_mailbox_release(td_cuda_mailbox *b)
{
    if (b->wanted == NULL) {
        advance(b, TD_MAIL_READY, b->n_payloads);
    } else {
        advance(b, TD_MAIL_ANNOUNCED, b->n);
        advance(b, TD_MAIL_DONE, b->n_payloads);
    }
}
