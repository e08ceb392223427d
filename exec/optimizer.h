/*
 * The optimizer of a network of modules: one AdamW (Loshchilov and Hutter, "Decoupled weight decay
 * regularization", 2019) under one global norm (Pascanu et al., "On the difficulty of training
 * recurrent neural networks", 2013). These are the pieces between the collectives of the step
 * program, so every rank decides the same from the same numbers:
 *
 *     TOKEN_COUNT  TD_MIMO_TOKENS    sums over the world
 *     GRAD_STATS   grad_stats        this rank's {sum of squares, anything not finite}
 *     FOUND_INF    TD_MIMO_FLAG      the flag's maximum over the world
 *     MODULE_NORM                    the squares' sum over all ranks of the module
 *     GLOBAL_NORM  TD_MIMO_VECTOR    its maximum over the world, one place a module
 *     ADAM         TD_MIMO_DECIDE    what the step does; adam, cast
 *
 * Gradients are sums over the tokens of all lanes until `scale` in the decision makes them those of
 * the loss; norms are of the latter. Nothing here allocates or communicates.
 */
#ifndef TANDEM_EXEC_OPTIMIZER_H
#define TANDEM_EXEC_OPTIMIZER_H

#include "exec/mimo.h"

/* Needs the plan's modules' names and its optimizer, nothing else of it. */
td_mimo_config td_mimo_config_of(const td_plan *plan);

/*
 * What a gradient summed over all tokens is multiplied by: 1 / max(tokens, 1). If only `active` of
 * a module's `lanes` had input and it should weigh as if all had, lanes / active as well; none or
 * all of them changes nothing.
 */
double td_mimo_token_scale(int64_t tokens, int32_t lanes, int32_t active);

/*
 * 1 if this rank is the one that counts a gradient, else 0. `counts`: it is the tensor rank that
 * does (td_tensor.counts). With sharded state every data lane has gradients of its own; else all
 * lanes hold the same and lane 0 counts them.
 */
double td_mimo_weight(bool counts, bool sharded, int32_t lane);

/*
 * This rank's part of the vector of `n_modules` doubles: the module's sum of squares at its place,
 * zeros elsewhere, everywhere for `module` -1. It is encoded so that a maximum that ignores or
 * loses NaN still carries it.
 */
void td_mimo_vector(const td_mimo_config *c, int32_t module, double square, double *vector);

/*
 * From the reduced vector and flag. `skip`: anything not finite anywhere skips the step.
 * `propagate`: nothing does; an infinite norm gives coefficient 0 (infinite gradients become nan,
 * all others 0), a norm that is nan clips nothing.
 */
td_mimo_decision td_mimo_decide(const td_mimo_config *c, const double *vector, bool nonfinite,
                                double token_scale);

/* One of the pieces on a device whose memory is the host's: td_kernels.mimo. */
void td_mimo_run(td_mimo_piece piece, const td_mimo_config *c, int32_t module,
                 td_mimo_state *state);

#endif
