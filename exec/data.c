/* Synthetic samples, each a function of the seed and of its global number. */
#include "exec/data.h"

#include <assert.h>
#include <stdio.h>

enum { MAX_NAME = 128 }; /* a module's name has at most 64 characters */

int64_t td_data_sample(const td_plan *plan, int64_t step, int32_t module, int32_t lane, int32_t mb,
                       int32_t k)
{
    const int64_t batch = (int64_t)plan->step.micro_batch * plan->modules[plan->language].dp;
    const int64_t microbatch = step * plan->step.microbatches + mb;
    return microbatch * batch + (int64_t)lane * td_plan_lane_samples(plan, module) + k;
}

/* Positions of the language sequence that belong to the encoders among the first `n` modules. */
static int32_t placeholders(const td_plan *plan, int32_t n)
{
    int32_t rows = 0;
    for (int32_t i = 0; i < n; i++)
        rows += i == plan->language ? 0 : plan->modules[i].seq;
    return rows;
}

void td_data_rows(const td_plan *plan, int32_t module, int32_t *first, int32_t *rows)
{
    *first = placeholders(plan, module);
    *rows = module == plan->language ? 0 : plan->modules[module].seq;
}

int32_t td_data_text(const td_plan *plan)
{
    return placeholders(plan, plan->n_modules);
}

void td_data_targets(const td_plan *plan, int32_t *tokens, int32_t *target)
{
    const int32_t seq = plan->modules[plan->language].seq, text = td_data_text(plan);
    for (int32_t t = 0; t < seq; t++) {
        tokens[t] = t < text ? -1 : tokens[t];
        target[t] = t < text || t + 1 == seq ? -1 : tokens[t + 1];
    }
}

void td_data_tokens(const td_plan *plan, int64_t sample, int32_t *tokens, int32_t *target)
{
    const td_module *m = &plan->modules[plan->language];
    const td_numbers jump = td_numbers_of(plan->seed, "tokens"),
                     keep = td_numbers_of(plan->seed, "tokens.keep");
    const int64_t words = m->vocab - 1; /* token 0 never occurs */
    int64_t token = 0;
    for (int32_t t = 0; t < m->seq;
         t++) { /* under the placeholders too: what follows hangs on it */
        const uint64_t i = (uint64_t)(sample * m->seq + t);
        if (t > 0 && td_numbers_uniform(&keep, i) < 0.9)
            token = 1 + (31 * token + 17) % words;
        else
            token = 1 + (int64_t)(td_numbers_uniform(&jump, i) * (double)words);
        tokens[t] = (int32_t)token;
    }
    td_data_targets(plan, tokens, target);
}

td_numbers td_data_input_numbers(const td_plan *plan, int32_t module)
{
    char name[MAX_NAME];
    const int length = snprintf(name, sizeof name, "%s.input", plan->modules[module].name);
    assert(length > 0 && length < MAX_NAME);
    (void)length;
    return td_numbers_of(plan->seed, name);
}

void td_data_input(const td_plan *plan, int32_t module, int64_t sample, float *out)
{
    const td_module *m = &plan->modules[module];
    const int64_t size = (int64_t)m->seq * m->input_dim;
    const td_numbers n = td_data_input_numbers(plan, module);
    td_numbers_fill_normal(&n, (uint64_t)(sample * size), size, 1.0, out);
}
