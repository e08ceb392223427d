/* optimizer.json: whole optimizer steps of several modules, every rank of the world in one process:
 * what the program's collectives do between the ranks is done here by loops. */
#include "tests/oracle/oracle.h"

#include "exec/host_kernels.h"
#include "exec/optimizer.h"

#include <math.h>
#include <string.h>

typedef struct {
    const json_t *json;
    td_mimo_span span;  /* weight 0 where it does not count, no gradient where it has none */
    int64_t n_updates;  /* a parameter without gradient misses some */
    float *scaled_grad; /* as Adam saw it last */
} param;

typedef struct {
    const json_t *json;
    int32_t module, n_params; /* module -1: idle */
    param *params;
} rank;

typedef struct {
    td_plan plan; /* names of the modules and the optimizer's settings */
    td_module modules[TD_MAX_MODULES];
    int32_t n_ranks;
    rank *ranks;
} world;

/* What a rank counts of its gradients. */
static void stats_of(const td_mimo_span *spans, int32_t n, double stats[2])
{
    td_mimo_state s = {.n_updates = 0};
    td_host_kernels.grad_stats(NULL, spans, n, &s);
    memcpy(stats, s.stats, sizeof s.stats);
}

/* One update, if the decision is one. */
static void update_span(const td_mimo_config *c, const td_mimo_decision *d,
                        const td_mimo_span *span, int64_t *n_updates)
{
    const td_mimo_state s = {.decision = *d, .n_updates = *n_updates + d->update};
    td_host_kernels.adam(NULL, c, span, 1, &s);
    *n_updates = s.n_updates;
}

/* A float array of the arena filled from JSON; NULL, with c->broken set, if it is not one of n
 * numbers. */
static float *numbers(oracle_case *c, const json_t *array, int64_t n)
{
    float *out = TD_NEW(c->arena, float, n);
    for (int64_t i = 0; i < n; i++) {
        double value;
        if (out == NULL || (int64_t)json_array_size(array) != n ||
            !oracle_number(json_array_get(array, (size_t)i), &value)) {
            c->broken = "a parameter's numbers are not what they should be";
            return NULL;
        }
        out[i] = (float)value;
    }
    return out;
}

static void read_param(oracle_case *c, const rank *r, const json_t *json, param *p)
{
    const bool sharded = strcmp(oracle_text(c->json, "state_layout"), "sharded") == 0;
    const bool counts = !json_is_true(json_object_get(json, "shared")) &&
                        (json_is_true(json_object_get(json, "tp_sharded")) ||
                         oracle_int(r->json, "tp_rank", 0) == 0);
    const json_t *values = json_object_get(json, "value");
    const int64_t n = (int64_t)json_array_size(values);
    p->json = json;
    p->span = (td_mimo_span){
        .param = numbers(c, values, n),
        .m = TD_NEW(c->arena, float, n),
        .v = TD_NEW(c->arena, float, n),
        .n = n,
        .weight = td_mimo_weight(counts, sharded, (int32_t)oracle_int(r->json, "dp_rank", 0)),
        .decay = true};
    p->scaled_grad = TD_NEW(c->arena, float, n);
}

static void read_world(oracle_case *c, world *w)
{
    double value = 0;
    const json_t *names = json_object_get(c->json, "module_order"),
                 *config = json_object_get(c->json, "config"),
                 *ranks = json_object_get(c->json, "ranks");
    const struct {
        const char *key;
        double *to;
    } settings[] = {{"lr", &w->plan.optimizer.lr},
                    {"weight_decay", &w->plan.optimizer.weight_decay},
                    {"clip_grad", &w->plan.optimizer.clip_grad},
                    {"beta1", &w->plan.optimizer.beta1},
                    {"beta2", &w->plan.optimizer.beta2},
                    {"eps", &w->plan.optimizer.eps}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        if (!oracle_number(json_object_get(config, settings[i].key), &value))
            c->broken = "a number of the optimizer's config is missing";
        *settings[i].to = value;
    }
    w->plan.optimizer.nonfinite = TD_NONFINITE_PROPAGATE; /* what there is without a loss scaler */
    w->plan.modules = w->modules;
    w->plan.n_modules = (int32_t)json_array_size(names);
    w->n_ranks = (int32_t)json_array_size(ranks);
    w->ranks = TD_NEW(c->arena, rank, w->n_ranks);
    if (w->plan.n_modules > TD_MAX_MODULES || w->ranks == NULL)
        c->broken = "too many modules or ranks";
    for (int32_t m = 0; c->broken == NULL && m < w->plan.n_modules; m++) {
        w->modules[m].name = json_string_value(json_array_get(names, (size_t)m));
        if (w->modules[m].name == NULL)
            c->broken = "a name of module_order is no text";
    }
    for (int32_t i = 0; c->broken == NULL && i < w->n_ranks; i++) {
        rank *r = &w->ranks[i];
        const json_t *params = json_object_get(json_array_get(ranks, (size_t)i), "params");
        r->json = json_array_get(ranks, (size_t)i);
        r->module = td_plan_module(&w->plan, oracle_text(r->json, "module"));
        r->n_params = (int32_t)json_array_size(params);
        r->params = TD_NEW(c->arena, param, r->n_params);
        for (int32_t p = 0; p < r->n_params; p++)
            read_param(c, r, json_array_get(params, (size_t)p), &r->params[p]);
    }
}

/* Hands every parameter its gradient of the step. */
static void read_grads(oracle_case *c, world *w, int32_t step)
{
    for (int32_t i = 0; i < w->n_ranks; i++)
        for (int32_t p = 0; p < w->ranks[i].n_params; p++) {
            param *x = &w->ranks[i].params[p];
            const json_t *grad = json_array_get(json_object_get(x->json, "grads"), (size_t)step);
            x->span.grad = json_is_null(grad) || grad == NULL ? NULL : numbers(c, grad, x->span.n);
        }
}

/* What all ranks decide once the collectives of the step have told them the same. */
static td_mimo_decision decide(const td_mimo_config *config, const world *w)
{
    double squares[TD_MAX_MODULES] = {0}, vector[TD_MAX_MODULES] = {0}, mine[TD_MAX_MODULES];
    bool nonfinite = false;
    for (int32_t i = 0; i < w->n_ranks; i++)
        for (int32_t p = 0; p < w->ranks[i].n_params; p++) {
            const td_mimo_span *span = &w->ranks[i].params[p].span;
            double stats[2];
            stats_of(span, span->grad != NULL, stats);
            nonfinite |= stats[1] != 0; /* FOUND_INF */
            if (w->ranks[i].module >= 0)
                squares[w->ranks[i].module] += stats[0]; /* MODULE_NORM */
        }
    for (int32_t i = 0; i < w->n_ranks; i++) { /* GLOBAL_NORM */
        const int32_t module = w->ranks[i].module;
        td_mimo_vector(config, module, module >= 0 ? squares[module] : 0, mine);
        for (int32_t m = 0; m < config->n_modules; m++)
            vector[m] = fmax(vector[m], mine[m]);
    }
    return td_mimo_decide(config, vector, nonfinite, 1);
}

static void update(const td_mimo_config *config, const td_mimo_decision *d, world *w)
{
    for (int32_t i = 0; i < w->n_ranks; i++)
        for (int32_t p = 0; p < w->ranks[i].n_params; p++) {
            param *x = &w->ranks[i].params[p];
            for (int64_t k = 0; x->span.grad != NULL && k < x->span.n; k++)
                x->scaled_grad[k] = (float)(x->span.grad[k] * d->scale);
            if (x->span.grad != NULL)
                update_span(config, d, &x->span, &x->n_updates);
        }
}

static json_t *reals(const float *x, int64_t n, bool there)
{
    json_t *array = there ? json_array() : json_null();
    for (int64_t i = 0; there && i < n; i++)
        oracle_append(array, oracle_real(x[i]));
    return array;
}

static json_t *rank_json(const world *w, const rank *r)
{
    json_t *one = json_object(), *params = json_array();
    for (int32_t p = 0; p < r->n_params; p++) {
        const param *x = &r->params[p];
        const td_mimo_span *s = &x->span;
        const bool updated = x->n_updates > 0;
        json_t *state = json_object();
        oracle_set(state, "name", json_string(oracle_text(x->json, "name")));
        oracle_set(state, "grad_after", reals(x->scaled_grad, s->n, s->grad != NULL));
        oracle_set(state, "value", reals(s->param, s->n, true));
        oracle_set(state, "exp_avg", reals(s->m, s->n, updated));
        oracle_set(state, "exp_avg_sq", reals(s->v, s->n, updated));
        oracle_set(state, "adam_step", json_integer(x->n_updates));
        oracle_append(params, state);
    }
    oracle_set(one, "rank", json_integer(oracle_int(r->json, "rank", -1)));
    oracle_set(one, "module",
               r->module >= 0 ? json_string(w->modules[r->module].name) : json_null());
    oracle_set(one, "loss_scale", json_real(1));
    oracle_set(one, "params", params);
    return one;
}

static json_t *step_json(const world *w, const td_mimo_decision *d)
{
    json_t *one = json_object(), *norms = json_object(), *ranks = json_array();
    for (int32_t m = 0; m < w->plan.n_modules; m++)
        oracle_set(norms, w->modules[m].name, oracle_real(d->module_norms[m]));
    for (int32_t i = 0; i < w->n_ranks; i++)
        oracle_append(ranks, rank_json(w, &w->ranks[i]));
    oracle_set(one, "success", json_boolean(d->update));
    oracle_set(one, "global_norm", oracle_real(d->norm));
    oracle_set(one, "module_norms", norms);
    oracle_set(one, "num_zeros", json_null());
    oracle_set(one, "clip_coefficient",
               w->plan.optimizer.clip_grad > 0 ? json_real(d->clip_coefficient) : json_null());
    oracle_set(one, "ranks", ranks);
    return one;
}

static const char *skipped(const json_t *json)
{
    const json_t *config = json_object_get(json, "config");
    return json_is_object(json_object_get(config, "scaler")) ||
                   strcmp(oracle_text(config, "precision"), "fp16") == 0
               ? "fp16 scaler"
           : json_is_true(json_object_get(json, "expert_split"))  ? "expert_split"
           : json_is_true(json_object_get(config, "count_zeros")) ? "count_zeros"
                                                                  : NULL;
}

static td_status run(oracle_case *c, td_err *err)
{
    world w = {.n_ranks = 0};
    json_t *expected = json_array();
    (void)err;
    oracle_set(c->got, "expected", expected);
    c->skip = skipped(c->json);
    if (c->skip != NULL)
        goto done;
    read_world(c, &w);
    if (c->broken != NULL)
        goto done;
    const td_mimo_config config = td_mimo_config_of(&w.plan);
    for (int32_t step = 0; step < oracle_int(c->json, "steps", 0); step++) {
        read_grads(c, &w, step);
        if (c->broken != NULL)
            goto done;
        const td_mimo_decision d = decide(&config, &w);
        update(&config, &d, &w);
        oracle_append(expected, step_json(&w, &d));
    }
done:
    return TD_OK;
}

static const char *const inputs[] = {
    "id",    "world_size",   "module_order", "modules", "state_layout", "config", "steps",
    "ranks", "expert_split", "note",         NULL};

/* Single precision of the reference, whose sums run in another order. */
static const oracle_tolerance tolerances[] = {
    {"global_norm", 1e-5, 0}, {"module_norms", 1e-5, 0},   {"clip_coefficient", 1e-5, 0},
    {"loss_scale", 0, 0},     {"grad_after", 1e-5, 1e-9},  {"value", 0, 2e-6},
    {"exp_avg", 1e-5, 1e-8},  {"exp_avg_sq", 1e-5, 1e-10}, {NULL, 0, 0}};

const oracle_suite oracle_optimizer = {
    .name = "optimizer", .inputs = inputs, .run = run, .tolerances = tolerances};
