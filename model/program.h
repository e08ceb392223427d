/*
 * The frozen step program: for every rank an ordered list of ops on lanes, their dependencies in
 * the same rank, and the communicators. Predicting and executing backends interpret it; nothing
 * else describes the step.
 *
 * Ranks that do the same thing with different peers share one *stream* (list of ops); a rank is a
 * stream plus the table that says which communicator stands behind each of the stream's channels. A
 * program for thousands of GPUs is therefore as small as the number of different roles in it.
 *
 * Order: ops of one lane start in stream order; ops of different lanes are ordered only by `deps`.
 * The stream order is the order in which a rank issues its ops, which is that of the reference
 * schedule. Matching: the k-th op of each member on one communicator is one exchange (MPI's and
 * NCCL's rule).
 */
#ifndef TANDEM_MODEL_PROGRAM_H
#define TANDEM_MODEL_PROGRAM_H

#include "model/collective.h"
#include "model/part.h"
#include "model/plan.h"

/* A lane is a CUDA stream, a simulated queue, a row of the trace. */
#define TD_LANE_MAP(X)                                                                             \
    X(COMPUTE, "compute")                                                                          \
    X(TP, "tp")     /* tensor-parallel collectives, bridge broadcasts */                           \
    X(FWD, "fwd")   /* transfers towards later stages */                                           \
    X(BWD, "bwd")   /* transfers towards earlier stages */                                         \
    X(DP, "dp")     /* gradient reduction, parameter gathering */                                  \
    X(CTRL, "ctrl") /* collectives over a module or the world */

typedef enum {
#define X(lane, name) TD_LANE_##lane,
    TD_LANE_MAP(X)
#undef X
        TD_N_LANES
} td_lane;
extern const char *const td_lane_names[TD_N_LANES];

/* kind, name in traces and reports, mnemonic in listings, what it is to an interpreter, collective
 * behind it, words in reports (NULL: a transfer, which its ends tell) */
#define TD_OP_MAP(X)                                                                               \
    X(ZERO_GRADS, "zero_grads", "Z", COMPUTE, SENDRECV, "zeroing gradients")                       \
    X(FORWARD, "forward", "F", COMPUTE, SENDRECV, "forward")                                       \
    X(BACKWARD, "backward", "B", COMPUTE, SENDRECV, "backward")                                    \
    X(SEND_SHAPE, "send_shape", "s", EAGER_SEND, SENDRECV, NULL)                                   \
    X(RECV_SHAPE, "recv_shape", "r", RECV, SENDRECV, NULL)                                         \
    X(SEND, "send", "S", SEND, SENDRECV, NULL)                                                     \
    X(RECV, "recv", "R", RECV, SENDRECV, NULL)                                                     \
    X(BROADCAST, "broadcast", "bc", GROUP, BROADCAST, "broadcast of bridged rows")                 \
    X(GRAD_REDUCE_SCATTER, "grad_reduce_scatter", "rs", GROUP, REDUCE_SCATTER,                     \
      "gradient reduce-scatter")                                                                   \
    X(GRAD_ALL_REDUCE, "grad_all_reduce", "ar", GROUP, ALL_REDUCE, "gradient all-reduce")          \
    X(TP_GRAD_ALL_REDUCE, "tp_grad_all_reduce", "tr", GROUP, ALL_REDUCE,                           \
      "gradient all-reduce over tensor ranks")                                                     \
    X(TOKEN_COUNT, "token_count", "n", GROUP, ALL_REDUCE, "token count")                           \
    X(GRAD_STATS, "grad_stats", "q", COMPUTE, SENDRECV, "gradient norm")                           \
    X(FOUND_INF, "found_inf", "i", GROUP, ALL_REDUCE, "found-inf")                                 \
    X(MODULE_NORM, "module_norm", "m", GROUP, ALL_REDUCE, "module norm")                           \
    X(GLOBAL_NORM, "global_norm", "g", GROUP, ALL_REDUCE, "global norm")                           \
    X(ADAM, "adam", "A", COMPUTE, SENDRECV, "clip and Adam")                                       \
    X(CAST, "cast", "c", COMPUTE, SENDRECV, "cast of parameters")                                  \
    X(PARAM_ALL_GATHER, "param_all_gather", "ag", GROUP, ALL_GATHER, "parameter all-gather")       \
    X(SUCCESS, "success", "ok", GROUP, ALL_REDUCE, "success flag")

typedef enum {
#define X(kind, name, mnemonic, role, coll, words) TD_OP_##kind,
    TD_OP_MAP(X)
#undef X
        TD_N_OPS
} td_op_kind;

/*
 * COMPUTE: runs td_program.works[op.work] on this rank alone. SEND and RECV: one exchange between
 * the two ranks of a communicator; starts when both have issued it (rendezvous). EAGER_SEND: leaves
 * without waiting for the receiver; its RECV ends when the message has arrived. GROUP: all ranks of
 * the communicator together, starts with the last of them.
 */
typedef enum {
    TD_ROLE_COMPUTE,
    TD_ROLE_SEND,
    TD_ROLE_EAGER_SEND,
    TD_ROLE_RECV,
    TD_ROLE_GROUP
} td_op_role;

typedef struct {
    const char *name, *mnemonic;
    td_op_role role;
    td_coll coll;      /* meaningful unless role is COMPUTE */
    const char *words; /* NULL: a transfer */
} td_op_traits;
extern const td_op_traits td_op_table[TD_N_OPS];

/*
 * Dependency on an earlier op of the same stream: it must have ended, or, if after_part >= 0, its
 * first `after_part` flattened parts must have (a gradient bucket is ready in the middle of the
 * last backward).
 */
typedef struct {
    int32_t op, after_part;
} td_dep;

typedef struct {
    uint8_t kind, lane; /* td_op_kind, td_lane */
    int16_t module;     /* index in the plan; -1: none (idle ranks) */
    int32_t mb;         /* microbatch, -1 outside the pipeline */
    int32_t chan;       /* channel of the rank's table; -1 for compute */
    int32_t work;       /* td_program.works index; -1 unless compute */
    uint32_t dep_first; /* deps[dep_first .. dep_first + n_deps - 1] of the stream */
    uint16_t n_deps;
    uint16_t bucket; /* gradient bucket; 0 elsewhere */
    uint32_t call;   /* ops with the same call and edge are one grouped call of the schedule; counts
                        from 1 */
    uint64_t bytes;  /* payload, as model/collective.h defines it; 0 for compute */
} td_op;

typedef struct {
    int32_t n_ops;
    uint32_t n_deps;
    const td_op *ops;
    const td_dep *deps;
    int32_t n_chans;
    int32_t module, stage,
        pp_rank; /* module -1: idle; stage counts over the whole pipeline, -1 when idle */
} td_stream;

#define TD_COMM_MAP(X)                                                                             \
    X(PAIR, "pair") X(TENSOR, "tp") X(DATA, "dp") X(MODULE, "module") X(WORLD, "world")
typedef enum {
#define X(kind, name) TD_COMM_##kind,
    TD_COMM_MAP(X)
#undef X
        TD_N_COMMS
} td_comm_kind;
extern const char *const td_comm_names[TD_N_COMMS];

typedef struct {
    uint8_t kind;     /* td_comm_kind */
    int16_t src, dst; /* PAIR: modules at its ends (equal inside a module); others: the module, -1
                         for the world */
    int32_t n_ranks;  /* PAIR: 2; ranks[0] is the sender */
    const int32_t *ranks;
} td_comm;

/* Where a rank stands in the communicator of one of its channels. */
typedef struct {
    int32_t comm; /* td_program.comms index */
    int32_t me;   /* ranks[me] is this rank */
} td_chan;

typedef struct {
    int32_t stream;
    const td_chan *chans; /* n_chans of the stream */
} td_rank;

typedef struct td_program {
    const td_plan *plan;
    int32_t world_size, total_stages;
    int32_t n_streams, n_works;
    int64_t n_comms;
    const td_stream *streams;
    const td_rank *ranks; /* world_size */
    const td_comm *comms;
    const td_work *works;
    int64_t n_ops;   /* over all ranks */
    char digest[65]; /* SHA-256 in hex over everything above, independent of addresses and of the
                        plan's name */
} td_program;

/* The stream of a rank. */
static inline const td_stream *td_program_stream(const td_program *p, int32_t rank)
{
    return &p->streams[p->ranks[rank].stream];
}

/*
 * Compiles a plan that has no errors. The same plan always gives the same program, digest included.
 * Fails with TD_PLAN where td_plan_executable() does, and TD_NOMEM.
 */
td_status td_lower(td_arena *a, const td_plan *plan, const td_program **out, td_err *err);

/* Kind of an op in words a listing can use, e.g. `F3`; writes at most `size` bytes. */
void td_op_label(const td_op *op, char *text, int size);

/* What a trace viewer writes on the bar of an op of `rank`: the label, or `send 3 to rank 5`. */
void td_op_name(const td_program *p, int32_t rank, const td_op *op, char *text, int size);

#endif
