/* Model FLOPs of one step, the yardstick of MFU: they do not depend on the layout. */
#ifndef TANDEM_MODEL_FLOPS_H
#define TANDEM_MODEL_FLOPS_H

#include "model/plan.h"

/*
 * Multiply-adds counted twice; causal attention at half, the head on all positions; data gradients
 * where something below trains, weight gradients where the module trains; nothing for recomputation
 * or for work that tensor ranks repeat. TD_NOMEM.
 */
td_status td_plan_flops(td_arena *a, const td_plan *plan, double *out, td_err *err);

#endif
