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

void td_mimo_stats(const td_kernels *k, void *dev, const td_mimo_span *spans, int32_t n_spans,
                   double *stats)
{
    k->zero(dev, stats, 2 * (int64_t)sizeof *stats);
    for (int32_t i = 0; i < n_spans; i++)
        k->grad_stats(dev, spans[i].grad, spans[i].n, spans[i].weight, stats);
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
    td_mimo_decision d = {.update = !nonfinite || c->nonfinite == TD_NONFINITE_PROPAGATE,
                          .clip_coefficient = 1};
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

void td_mimo_adam(const td_kernels *k, void *dev, const td_mimo_config *c,
                  const td_mimo_decision *decision, const td_mimo_span *spans, int32_t n_spans,
                  int64_t *n_updates)
{
    if (!decision->update)
        return;
    ++*n_updates;
    for (int32_t i = 0; i < n_spans; i++) {
        const td_mimo_span *s = &spans[i];
        k->adam(dev, s->param, s->m, s->v, s->grad, s->n, decision->scale, c->lr, c->beta1,
                c->beta2, c->eps, s->decay ? c->weight_decay : 0, *n_updates);
    }
}
