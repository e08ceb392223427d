/* Counts the work of every stage as one tensor rank would do it. */
#include "model/flops.h"
#include "model/module.h"

#include <string.h>

td_status td_plan_flops(td_arena *a, const td_plan *plan, double *out, td_err *err)
{
    td_status st = TD_OK;
    td_plan whole = *plan;
    td_module *modules = TD_NEW(a, td_module, plan->n_modules);
    double flops = 0;
    if (modules == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to count FLOPs"));
    memcpy(modules, plan->modules, (size_t)plan->n_modules * sizeof *modules);
    whole.modules = modules;
    whole.step.sequence_parallel = false;
    whole.step.recompute = TD_RECOMPUTE_NONE;
    for (int32_t m = 0; m < plan->n_modules; m++)
        modules[m].tp = modules[m].cp = 1;
    for (int32_t m = 0; m < plan->n_modules; m++)
        for (int32_t p = 0; p < modules[m].pp; p++) {
            const td_stage s = td_stage_of(&whole, m, p);
            td_work forward, backward;
            TD_TRY(st, td_stage_forward(a, &s, &forward, err));
            TD_TRY(st, td_stage_backward(a, &s, &backward, err));
            flops += (forward.flops + backward.flops) * plan->step.microbatches * modules[m].dp;
        }
    *out = flops;
done:
    return st;
}
