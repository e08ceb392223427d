/*
 * The optimizer of a network of modules: one AdamW (Loshchilov and Hutter, "Decoupled weight decay
 * regularization", 2019) under one global norm (Pascanu et al., "On the difficulty of training
 * recurrent neural networks", 2013). These are the pieces between the collectives of the step
 * program, so every rank decides the same from the same numbers:
 *
 *     GRAD_STATS   td_mimo_stats()   this rank's {sum of squares, anything not finite}
 *     FOUND_INF                      the flag's maximum over the world
 *     MODULE_NORM                    the squares' sum over all ranks of the module
 *     GLOBAL_NORM  td_mimo_vector()  its maximum over the world, one place a module
 *                  td_mimo_decide()  what the step does
 *     ADAM         td_mimo_adam()
 *
 * Gradients are sums over the tokens of all lanes until `scale` in the decision makes them those of
 * the loss; norms are of the latter. Nothing here allocates or communicates.
 */
#ifndef TANDEM_EXEC_OPTIMIZER_H
#define TANDEM_EXEC_OPTIMIZER_H

#include "exec/kernels.h"
#include "model/plan.h"

typedef struct {
    double lr, beta1, beta2, eps, weight_decay, clip_grad; /* clip_grad 0: no clipping */
    td_nonfinite nonfinite;
    int32_t n_modules;
    int32_t place[TD_MAX_MODULES]; /* of each module in the vector: sorted by name */
} td_mimo_config;

/* Needs the plan's modules' names and its optimizer, nothing else of it. */
td_mimo_config td_mimo_config_of(const td_plan *plan);

/*
 * What a gradient summed over all tokens is multiplied by: 1 / max(tokens, 1). If only `active` of
 * a module's `lanes` had input and it should weigh as if all had, lanes / active as well; none or
 * all of them changes nothing.
 */
double td_mimo_token_scale(int64_t tokens, int32_t lanes, int32_t active);

/*
 * Elements of this rank's optimizer state that are treated alike. The arrays are the device's; m
 * and v start as zeros.
 */
typedef struct {
    float *param, *m, *v;
    const float *grad;
    int64_t n;
    double weight; /* in the norm, from td_mimo_weight() */
    bool decay;    /* matrices and embeddings */
} td_mimo_span;

/*
 * 1 if this rank is the one that counts a gradient, else 0. `counts`: it is the tensor rank that
 * does (td_tensor.counts). With sharded state every data lane has gradients of its own; else all
 * lanes hold the same and lane 0 counts them.
 */
double td_mimo_weight(bool counts, bool sharded, int32_t lane);

/*
 * Issues the kernels that fill stats[2], which is the device's: the sum of the counted squares, and
 * 1 if any gradient is not finite, counted or not, else 0.
 */
void td_mimo_stats(const td_kernels *k, void *dev, const td_mimo_span *spans, int32_t n_spans,
                   double *stats);

/*
 * This rank's part of the vector of `n_modules` doubles: the module's sum of squares at its place,
 * zeros elsewhere, everywhere for `module` -1. It is encoded so that a maximum that ignores or
 * loses NaN still carries it.
 */
void td_mimo_vector(const td_mimo_config *c, int32_t module, double square, double *vector);

typedef struct {
    bool update;                         /* false: the step is skipped on every rank */
    double norm;                         /* of the whole gradient; inf or nan as the sums say */
    double module_norms[TD_MAX_MODULES]; /* in the plan's order; 0 where everything is frozen */
    double clip_coefficient;             /* min(1, clip_grad / (norm + 1e-6)); 1 if skipped */
    double scale;                        /* Adam's: tokens' times clip coefficient; 0 if skipped */
} td_mimo_decision;

/*
 * From the reduced vector and flag. `skip`: anything not finite anywhere skips the step.
 * `propagate`: nothing does; an infinite norm gives coefficient 0 (infinite gradients become nan,
 * all others 0), a norm that is nan clips nothing.
 */
td_mimo_decision td_mimo_decide(const td_mimo_config *c, const double *vector, bool nonfinite,
                                double token_scale);

/*
 * Issues AdamW on every span and counts the update in *n_updates (0 at first, it corrects the bias
 * of the moments); a skipped step touches nothing.
 */
void td_mimo_adam(const td_kernels *k, void *dev, const td_mimo_config *c,
                  const td_mimo_decision *decision, const td_mimo_span *spans, int32_t n_spans,
                  int64_t *n_updates);

#endif
