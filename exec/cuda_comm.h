/*
 * A rank's communication on GPUs: a transport for each channel of its program.
 *
 * Collectives of tensor ranks within a pass are kernels of ours over the others' arenas where one
 * machine has all of these ranks (exec/cuda_group.h); all others are NCCL's, also of these ranks
 * outside of a pass, where they may be on any lane. Payloads between GPUs of a machine are moved by
 * copy engines (exec/cuda_peer.h): through NCCL 4.7 MB between two H200 took 80 us alone and 105 to
 * 275 us in a step, where the receiver's kernel waits for multiprocessors that the compute lane
 * holds, while the compute lane waits for the payload. Where GPUs cannot reach each other, and
 * between machines, payloads are NCCL's too; td_cuda_comm_transports() says of how many pairs and
 * why.
 *
 * Shape messages are written by the sender's stream into a mailbox in host memory that both
 * processes have mapped, and the receiver's stream waits for them with a stream memory operation,
 * which takes no multiprocessor. A receive of NCCL that is queued early would hold multiprocessors
 * while it spins until the sender comes: within a machine it is queued behind its shape message or,
 * without shape exchange, an announcement of its own. Between machines shape messages are NCCL
 * messages like payloads. No send depends on being buffered: each ends when received.
 *
 * A stream that waits for another rank also holds what shares its hardware queue: the process needs
 * CUDA_DEVICE_MAX_CONNECTIONS=32 in its environment before it first uses CUDA (8 is the default,
 * for kernels and for copies, and NCCL makes streams of its own).
 */
#ifndef TANDEM_EXEC_CUDA_COMM_H
#define TANDEM_EXEC_CUDA_COMM_H

#include "exec/cuda_peer.h"
#include "exec/device.h"
#include "model/arena.h"

typedef struct td_cuda_comm td_cuda_comm;

/*
 * Collective over all ranks (MPI is initialised, the GPU is chosen). Makes the communicators of
 * groups; pairs are connected by td_cuda_comm_connect().
 */
td_status td_cuda_comm_open(td_arena *a, const td_program *p, int32_t rank, td_cuda_comm **out,
                            td_err *err);
/*
 * Before the first transfer, collective over all ranks: agrees on the transport of each pair and
 * group and makes the communicators of pairs that need one. TANDEM_GROUP=nccl in the environment of
 * any rank leaves its group's collectives to NCCL (peer: as without). `here` is read during the
 * call; its arena lives until td_cuda_comm_close().
 */
td_status td_cuda_comm_connect(td_cuda_comm *c, const td_cuda_places *here, td_err *err);
/*
 * Collective: ends communicators and unmaps the arenas of others; streams are idle. On return no
 * rank has this one's arena mapped. After a failure aborts communicators and waits for no rank.
 * Before either, graphs that captured a collective must be destroyed: NCCL waits for that.
 */
void td_cuda_comm_close(td_cuda_comm *c, bool failed);

/*
 * Queue on `stream` (cudaStream_t), for one channel always the same. `shape`: `buffer` holds the
 * int64 extents (at most three) of a shape message in host memory, read when the call is made
 * (send) or written by td_cuda_comm_collect() once it has come (receive). Not for capture.
 */
td_status td_cuda_comm_transfer(td_cuda_comm *c, int32_t chan, bool send, bool shape, void *buffer,
                                uint64_t bytes, void *stream, td_err *err);
/*
 * Copies shape messages that have come to where they were received; never blocks. To be called at
 * least once a step: the messages of two steps are kept, then receiving fails.
 */
void td_cuda_comm_collect(td_cuda_comm *c);
/*
 * Can be captured. `act_bf16`: what TD_TYPE_ACT is. Buffers are the GPU's. `in_pass`: on the stream
 * of the passes, on which all ranks of the channel queue the same calls in the same order, on
 * buffers that stand alike in their arenas.
 */
td_status td_cuda_comm_collective(td_cuda_comm *c, int32_t chan, const td_collective_call *call,
                                  bool in_pass, bool act_bf16, void *stream, td_err *err);

/* Has a communicator failed asynchronously? TD_RUN naming the peer or group. Never blocks. */
td_status td_cuda_comm_check(td_cuda_comm *c, td_err *err);

/* Pairs that this rank is an end of, by transport; `why` (or NULL) of one that is NCCL's. The same
 * of groups of tensor ranks, whose collectives in passes go over mapped memory or NCCL. */
typedef struct {
    int32_t copy_engine, nccl;
    int32_t mapped_groups, nccl_groups;
    const char *why, *why_group;
} td_cuda_transports;
td_cuda_transports td_cuda_comm_transports(const td_cuda_comm *c);

/* Bytes of GPU memory that appeared while the communicators were made. */
size_t td_cuda_comm_bytes(const td_cuda_comm *c);
int td_cuda_comm_version(void); /* NCCL's, as 22809 */

#endif
