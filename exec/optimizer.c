/* One norm, one clip coefficient and one verdict for all modules, then AdamW on what a rank owns.
 */
#include "exec/optimizer.h"

#include <float.h>
#include <math.h>
#include <string.h>

td_mimo_config td_mimo_config_of(const td_plan *plan)
{
    td_mimo_config c = {.lr = plan->optimizer.lr,
                        .beta1 = plan->optimizer.beta1,
                        .beta2 = plan->optimizer.beta2,
                        .eps = plan->optimizer.eps,
                        .weight_decay = plan->optimizer.weight_decay,
                        .clip_grad = plan->optimizer.clip_grad,
                        .nonfinite = plan->optimizer.nonfinite,
                        .n_modules = plan->n_modules};
    for (int32_t m = 0; m < plan->n_modules; m++)
        for (int32_t other = 0; other < plan->n_modules; other++)
            c.place[m] += strcmp(plan->modules[other].name, plan->modules[m].name) < 0;
    return c;
}

double td_mimo_token_scale(int64_t tokens, int32_t lanes, int32_t active)
{
    const double mean = 1.0 / (double)(tokens > 0 ? tokens : 1);
    return active > 0 && active < lanes ? mean * lanes / active : mean;
}

double td_mimo_weight(bool counts, bool sharded, int32_t lane)
{
    return counts && (sharded || lane == 0) ? 1.0 : 0.0;
}

/* Sums of squares are never negative, and a finite one of floats is far below DBL_MAX: infinity
 * travels as DBL_MAX and nan as infinity. */
static double encode(double square)
{
    return isnan(square) ? INFINITY : fmin(square, DBL_MAX);
}

static double decode(double sent)
{
    return isinf(sent) ? NAN : sent >= DBL_MAX ? INFINITY : sent;
}

void td_mimo_vector(const td_mimo_config *c, int32_t module, double square, double *vector)
{
    for (int32_t i = 0; i < c->n_modules; i++)
        vector[i] = 0;
    if (module >= 0)
        vector[c->place[module]] = encode(square);
}

td_mimo_decision td_mimo_decide(const td_mimo_config *c, const double *vector, bool nonfinite,
                                double token_scale)
{
    td_mimo_decision d = {.clip_coefficient = 1,
                          .update = !nonfinite || c->nonfinite == TD_NONFINITE_PROPAGATE};
    double sum = 0;
    for (int32_t i = 0; i < c->n_modules; i++) /* in the vector's order: the same for any plan */
        sum += decode(vector[i]);
    for (int32_t m = 0; m < c->n_modules; m++)
        d.module_norms[m] = sqrt(decode(vector[c->place[m]])) * token_scale;
    d.norm = sqrt(sum) * token_scale;
    if (!d.update)
        return d;
    const double coefficient = c->clip_grad / (d.norm + 1e-6);
    if (c->clip_grad > 0 && coefficient < 1)
        d.clip_coefficient = coefficient;
    d.scale = token_scale * d.clip_coefficient;
    return d;
}

void td_mimo_run(td_mimo_piece piece, const td_mimo_config *c, int32_t module, td_mimo_state *state)
{
    const int64_t n_updates = state->n_updates;
    switch (piece) {
    case TD_MIMO_BEGIN:
        *state = (td_mimo_state){.n_updates = n_updates};
        break;
    case TD_MIMO_TOKENS:
        state->tokens[0] = module >= 0 ? state->loss[0] : 0;
        state->tokens[1] = module >= 0 ? state->loss[1] : 0;
        break;
    case TD_MIMO_FLAG:
        state->flag = state->stats[1] > 0 ? 1 : 0;
        state->square = state->stats[0];
        break;
    case TD_MIMO_VECTOR:
        td_mimo_vector(c, module, state->square, state->vector);
        break;
    case TD_MIMO_DECIDE:
        state->decision = td_mimo_decide(c, state->vector, state->flag != 0,
                                         td_mimo_token_scale((int64_t)state->tokens[1], 1, 1));
        state->n_updates += state->decision.update;
        break;
    case TD_MIMO_DONE:
        state->success = state->decision.update;
        break;
    case TD_N_MIMO_PIECES:
        break;
    }
}
