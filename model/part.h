/*
 * A part is the smallest piece of work that has a cost of its own: a matrix product, an attention
 * kernel, a pass over memory, a tensor-parallel collective. A stage's forward or backward is a list
 * of parts; what is equal for every layer is written once with a repeat count. Costs are keyed by
 * what a part holds here, never by its name, so that they carry over to other models.
 */
#ifndef TANDEM_MODEL_PART_H
#define TANDEM_MODEL_PART_H

#include <stdint.h>

/* class, name in reports and profiles, what its cost is keyed by */
#define TD_PART_MAP(X)                                                                             \
    X(GEMM, "gemm", SHAPE)             /* m, n, k and the pass */                                  \
    X(ATTENTION, "attention", SHAPE)   /* batch, seq, heads, head_dim, causal and the pass */      \
    X(NORM, "norm", BYTES)             /* RMSNorm, LayerNorm, with the residual add before it */   \
    X(ACTIVATION, "activation", BYTES) /* SwiGLU, GELU */                                          \
    X(ROTARY, "rotary", BYTES)                                                                     \
    X(LOSS, "loss", BYTES)               /* vocabulary-parallel cross-entropy */                   \
    X(EMBEDDING, "embedding", BYTES)     /* gather and scatter of table rows and encoder rows */   \
    X(ELEMENTWISE, "elementwise", BYTES) /* copies, casts, bias gradients, zeroing */              \
    X(REDUCTION, "reduction", BYTES)     /* squared norms, finite check */                         \
    X(ADAM, "adam", BYTES)                                                                         \
    X(COLLECTIVE, "collective", COMM) /* on the tensor-parallel communicator, inside a stage */

typedef enum {
#define X(c, name, key) TD_PART_##c,
    TD_PART_MAP(X)
#undef X
        TD_N_PARTS
} td_part_class;

typedef enum { TD_KEY_SHAPE, TD_KEY_BYTES, TD_KEY_COMM } td_part_key;
typedef struct {
    const char *name;
    td_part_key key;
} td_part_traits;
extern const td_part_traits td_part_table[TD_N_PARTS];

/* RECOMPUTE is forward work done again in the backward: it costs time and counts no FLOPs. */
typedef enum {
    TD_PASS_FORWARD,
    TD_PASS_DGRAD,
    TD_PASS_WGRAD,
    TD_PASS_BACKWARD,
    TD_N_PASSES
} td_pass;
extern const char *const td_pass_names[TD_N_PASSES]; /* fwd, dgrad, wgrad, bwd */

/* Collective kinds, in model/collective.h. */
struct td_collective;

typedef struct {
    uint8_t class;      /* td_part_class */
    uint8_t pass;       /* td_pass */
    uint8_t recompute;  /* 1: forward work repeated in the backward */
    uint8_t causal;     /* attention */
    uint8_t fp32;       /* 1: operands are fp32 (precision: fp32), else bf16 */
    uint8_t collective; /* index into td_collectives[], COLLECTIVE only */
    const char
        *name; /* static text: `qkv`, `attention`, `o`, `gate_up`, `down`, `norm1`, `head`, ... */
    int64_t m, n,
        k; /* GEMM: the linear layer [m,k] * [n,k]^T, the same triple for all three passes */
    int32_t batch, seq, heads, kv_heads, head_dim; /* attention, per rank */
    int32_t ranks;                                 /* collective: size of the communicator */
    uint64_t
        bytes;    /* memory passes: bytes read plus written; collectives: bytes as in td_op.bytes */
    double flops; /* model FLOPs (0 for recompute and memory passes) */
} td_part;

/* Parts [first, first + n) done `repeat` times; layer of repetition r is layer0 + r * layer_step
 * (-1: no layer). */
typedef struct {
    int32_t first, n, repeat;
    int32_t layer0, layer_step;
} td_part_run;

/* What one stage does in one direction for one microbatch. Flattened part index: runs in order,
 * repetitions in order. */
typedef struct {
    int32_t n_runs, n_parts;
    const td_part_run *runs;
    const td_part *parts;
    int64_t n_flat; /* parts after flattening */
    double flops;   /* sum over the flattened parts */
} td_work;

#endif
