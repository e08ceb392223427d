/*
 * The arena of one pipeline stage, piece by piece: what an executor holds, where it stands, and so
 * how much memory it takes. Executors cut their arena exactly here, and the memory model adds up
 * the same list, so that what was predicted is what is allocated, to the byte.
 */
#ifndef TANDEM_MODEL_PIECES_H
#define TANDEM_MODEL_PIECES_H

#include "model/lower.h"

/* part of the memory report */
typedef enum {
    TD_SHARE_WEIGHTS,
    TD_SHARE_GRADIENTS,
    TD_SHARE_OPTIMIZER,
    TD_SHARE_ACTIVATIONS,
    TD_SHARE_BUFFERS,
    TD_N_SHARES
} td_share;

/*
 * piece, share, how often: ONCE; RING: two, for neighbouring microbatches; EDGE: two for each
 * bridge that arrives; INPUT: of every microbatch in flight and of one that arrives; SLOT: of every
 * microbatch in flight; LAYER: of every layer in every slot
 */
#define TD_PIECE_MAP(X)                                                                            \
    X(WEIGHTS, WEIGHTS, ONCE)     /* flat parameters in the training precision */                  \
    X(GRADIENTS, GRADIENTS, ONCE) /* fp32, padded as the buckets are */                            \
    X(REDUCED, BUFFERS, ONCE)     /* this rank's shard of them, summed over the data lanes */      \
    X(TENSOR_SUM, BUFFERS, ONCE)  /* what tensor ranks add up */                                   \
    X(MASTER, OPTIMIZER, ONCE)    /* fp32 parameters of this rank's shard; bf16 only */            \
    X(MOMENT1, OPTIMIZER, ONCE)                                                                    \
    X(MOMENT2, OPTIMIZER, ONCE)                                                                    \
    X(STATE, BUFFERS, ONCE)     /* the numbers of the step */                                      \
    X(SPANS, BUFFERS, ONCE)     /* tables of the optimizer */                                      \
    X(WORKSPACE, BUFFERS, ONCE) /* scratch of kernels and libraries */                             \
    X(INPUT, ACTIVATIONS, INPUT)                                                                   \
    X(OUTPUT, ACTIVATIONS, LAYER) /* of the layer; the next one's input */                         \
    X(Y1, ACTIVATIONS, LAYER)     /* normed input */                                               \
    X(QKV, ACTIVATIONS, LAYER)                                                                     \
    X(AO, ACTIVATIONS, LAYER)  /* attention's output */                                            \
    X(LSE, ACTIVATIONS, LAYER) /* and log-sum-exp */                                               \
    X(X2, ACTIVATIONS, LAYER)  /* after attention */                                               \
    X(Y2, ACTIVATIONS, LAYER)  /* and normed */                                                    \
    X(GU, ACTIVATIONS, LAYER)  /* gate and up side by side */                                      \
    X(AV, ACTIVATIONS, LAYER)  /* their product */                                                 \
    X(ST1, ACTIVATIONS, LAYER) /* statistics of the norms */                                       \
    X(ST2, ACTIVATIONS, LAYER)                                                                     \
    X(PATCHES, ACTIVATIONS, SLOT) /* an encoder's input */                                         \
    X(TOKENS, ACTIVATIONS, SLOT)                                                                   \
    X(TARGET, ACTIVATIONS, SLOT)                                                                   \
    X(YF, ACTIVATIONS, SLOT) /* normed output of the last stage */                                 \
    X(STF, ACTIVATIONS, SLOT)                                                                      \
    X(LOGITS, ACTIVATIONS, SLOT) /* which become their gradient */                                 \
    X(MAX, ACTIVATIONS, SLOT)    /* of a row's logits */                                           \
    X(SUMS, ACTIVATIONS, SLOT)                                                                     \
    X(P1, ACTIVATIONS, SLOT) /* the projector's steps */                                           \
    X(P2, ACTIVATIONS, SLOT)                                                                       \
    X(OUT, ACTIVATIONS, SLOT)                                                                      \
    X(FULL, BUFFERS, ONCE)  /* gathered rows; sequence parallelism only */                         \
    X(WIDE1, BUFFERS, ONCE) /* intermediates */                                                    \
    X(WIDE2, BUFFERS, ONCE)                                                                        \
    X(SIDE, BUFFERS, ONCE)         /* a row-parallel product */                                    \
    X(FLOW, BUFFERS, RING)         /* gradient of the running layer, before and after */           \
    X(GRAD_IN, BUFFERS, RING)      /* gradients from later stages */                               \
    X(GRAD_OUT, BUFFERS, RING)     /* and towards earlier ones */                                  \
    X(BRIDGED, BUFFERS, EDGE)      /* rows from an encoder */                                      \
    X(BRIDGED_GRAD, BUFFERS, EDGE) /* and their gradients */

typedef enum {
#define X(piece, share, often) TD_PIECE_##piece,
    TD_PIECE_MAP(X)
#undef X
        TD_N_PIECES
} td_piece_kind;

/*
 * Copy (i, j) stands at offset + i * stride_i + j * stride_j: i counts slots, inputs or the ring, j
 * layers. A stride of 0 says that all copies are one: what they held is computed again, or there is
 * no backward to need it.
 */
typedef struct {
    td_piece_kind kind;
    td_share share;
    int32_t edge; /* of a bridge, else -1 */
    int32_t n_i, n_j;
    uint64_t offset, bytes, stride_i, stride_j;
} td_piece;

/* Sizes of one stage on one rank, elements unless said otherwise. */
typedef struct {
    int32_t n_slots;  /* microbatches in flight; two where there is no backward: one is sent while
                         the next runs */
    int32_t n_inputs; /* n_slots, and one more where it arrives from another rank */
    int64_t t, r;     /* tokens; rows of the sequence-parallel region */
    int64_t h, q, kv, f, up;        /* widths: hidden, queries, keys, one MLP intermediate, its
                                       first product */
    int64_t vocab, out_width, proj; /* of the head; of the projector's output and intermediate */
    bool sp;                        /* sequence parallelism over more than one rank */
    int64_t elements;               /* of the flat arrays of parameters, padding included */
    td_buckets buckets;
    int64_t shards;  /* data lanes that share the optimizer state */
    int64_t n_spans; /* room for so many spans of it */
} td_stage_sizes;

/* Bytes that belong to no share of a stage's sizes. */
enum {
    TD_STATE_BYTES = 4096, /* of piece STATE */
    TD_SPAN_BYTES = 64,    /* of one span in piece SPANS, which is of at most TD_SPAN elements */
    TD_SPAN = 1 << 16
};

/* TD_NOMEM. */
td_status td_stage_sizes_of(td_arena *a, const td_plan *plan, const td_pipeline *pipe, int32_t m,
                            int32_t pp_rank, td_stage_sizes *out, td_err *err);

typedef void (*td_piece_visit)(void *self, const td_piece *piece);

/*
 * Every piece of the stage, in the order of their offsets, which are multiples of 256; empty pieces
 * are left out. Returns the bytes of the arena.
 */
uint64_t td_stage_pieces(const td_plan *plan, const td_pipeline *pipe, int32_t m, int32_t pp_rank,
                         const td_stage_sizes *sizes, td_piece_visit visit, void *self);

#endif
