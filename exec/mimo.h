/*
 * What the optimizer of a network of modules keeps on a device: pieces of gradients and state, and
 * the numbers that all ranks agree on between the collectives of a step. Nothing of it is read by
 * the host while a step runs, so that a device may queue the whole step.
 */
#ifndef TANDEM_EXEC_MIMO_H
#define TANDEM_EXEC_MIMO_H

#include "model/plan.h"

typedef struct {
    double lr, beta1, beta2, eps, weight_decay, clip_grad; /* clip_grad 0: no clipping */
    td_nonfinite nonfinite;
    int32_t n_modules;
    int32_t place[TD_MAX_MODULES]; /* of each module in the vector: sorted by name */
} td_mimo_config;

/* Spans are cut so that a device can give each to one block of threads. */
enum { TD_MIMO_SPAN = 1 << 16 };

/* Elements of this rank's optimizer state that are treated alike, at most TD_MIMO_SPAN. The arrays
 * are the device's; m and v start as zeros. */
typedef struct {
    float *param, *m, *v; /* fp32 master parameters and moments */
    const float *grad;
    void *copy; /* where the master is rounded to bf16; NULL: it is the parameter itself */
    int64_t n;
    double weight; /* in the norm: 1 on the rank that counts the gradient, else 0 */
    bool decay;    /* matrices and embeddings */
} td_mimo_span;

typedef struct {
    double norm;                         /* of the whole gradient; inf or nan as the sums say */
    double module_norms[TD_MAX_MODULES]; /* in the plan's order; 0 where everything is frozen */
    double clip_coefficient;             /* min(1, clip_grad / (norm + 1e-6)); 1 if skipped */
    double scale;                        /* Adam's: tokens' times clip coefficient; 0 if skipped */
    bool update;                         /* false: the step is skipped on every rank */
} td_mimo_decision;

typedef struct {
    double loss[2];   /* of this rank: sum of cross-entropies, counted positions */
    double tokens[2]; /* the same over the world */
    double stats[2];  /* of this rank's gradients: counted squares, 1 if any is not finite */
    double square;    /* squares of the module */
    double vector[TD_MAX_MODULES]; /* of every module, at its place */
    float flag;                    /* anything not finite anywhere */
    int32_t success;
    td_mimo_decision decision;
    int64_t n_updates; /* the only number that outlives a step */
} td_mimo_state;

/* piece, what it reads and writes in the state */
#define TD_MIMO_MAP(X)                                                                             \
    X(BEGIN)  /* everything but n_updates = 0 */                                                   \
    X(TOKENS) /* tokens = loss if module >= 0 (the rank counts), else 0 */                         \
    X(FLAG)   /* flag = stats[1] > 0; square = stats[0] */                                         \
    X(VECTOR) /* vector = td_mimo_vector() of module and square */                                 \
    X(DECIDE) /* decision from vector, flag and tokens[1]; n_updates grows by one with an update   \
               */                                                                                  \
    X(DONE)   /* success = decision.update */
typedef enum {
#define X(piece) TD_MIMO_##piece,
    TD_MIMO_MAP(X)
#undef X
        TD_N_MIMO_PIECES
} td_mimo_piece;

#endif
