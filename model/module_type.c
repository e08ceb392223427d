/* The module types there are, and how a plan's module falls into pipeline stages. */
#include "model/module.h"

#include <string.h>

const td_module_type *const td_module_types[] = {&td_module_vision, &td_module_audio,
                                                 &td_module_language, NULL};

const td_module_type *td_module_type_find(const char *name)
{
    for (const td_module_type *const *t = td_module_types; *t != NULL; t++)
        if (strcmp((*t)->name, name) == 0)
            return *t;
    return NULL;
}

/* Does anything train at or below stage `p` of module `m`, towards the inputs? Each module is asked
 * once: bit m of seen. */
static bool trains_below(const td_plan *plan, int32_t m, int32_t p, uint64_t *seen)
{
    const td_module *module = &plan->modules[m];
    if (module->frozen == TD_FROZEN_FALSE ||
        (module->frozen == TD_FROZEN_BACKBONE && p == module->pp - 1))
        return true;
    *seen |= UINT64_C(1) << m;
    for (int32_t i = 0; i < plan->n_edges;
         i++) { /* the stages below in this module are as frozen as this one */
        const int32_t src = plan->edges[i].src;
        if (plan->edges[i].dst == m && (*seen >> src & 1) == 0 &&
            trains_below(plan, src, plan->modules[src].pp - 1, seen))
            return true;
    }
    return false;
}

static bool stage_trains_below(const td_plan *plan, int32_t m, int32_t p)
{
    uint64_t seen = 0; /* TD_MAX_MODULES bits */
    return trains_below(plan, m, p, &seen);
}

bool td_module_has_backward(const td_plan *plan, int32_t m)
{
    return stage_trains_below(plan, m, plan->modules[m].pp - 1);
}

td_stage td_stage_of(const td_plan *plan, int32_t m, int32_t pp_rank)
{
    const td_module *module = &plan->modules[m];
    td_stage s = {.plan = plan,
                  .module = module,
                  .pp_rank = pp_rank,
                  .n_layers = module->stage_layers[pp_rank]};
    for (int32_t p = 0; p < pp_rank; p++)
        s.first_layer += module->stage_layers[p];
    s.first = pp_rank == 0;
    s.last = pp_rank == module->pp - 1;
    s.samples = td_plan_lane_samples(plan, m);
    s.tokens = (int64_t)s.samples * module->seq / module->cp;
    s.e = plan->precision == TD_BF16 ? 2 : 4;
    s.layers_train = module->frozen == TD_FROZEN_FALSE;
    s.ends_train = module->frozen != TD_FROZEN_TRUE;
    s.backward = stage_trains_below(plan, m, pp_rank);
    if (pp_rank > 0)
        s.input_grad = stage_trains_below(plan, m, pp_rank - 1);
    for (int32_t i = 0; i < plan->n_edges && s.first; i++)
        if (plan->edges[i].dst == m && td_module_has_backward(plan, plan->edges[i].src))
            s.input_grad = true;
    return s;
}
