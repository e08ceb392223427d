/* What stands around the layers of every encoder: a linear patch or frame embedding before, a
 * two-layer projector after. */
#ifndef TANDEM_MODEL_ENCODER_H
#define TANDEM_MODEL_ENCODER_H

#include "model/module.h"

void td_encoder_params_before(const td_stage *s, td_param_visit visit, void *self);
void td_encoder_params_after(const td_stage *s, td_param_visit visit, void *self);
void td_encoder_forward_before(const td_stage *s, td_work_builder *w);
void td_encoder_forward_after(const td_stage *s, td_work_builder *w);
void td_encoder_backward_after(const td_stage *s, td_work_builder *w);
void td_encoder_backward_before(const td_stage *s, td_work_builder *w);
void td_encoder_memory_before(const td_stage *s, td_stage_memory *m);
void td_encoder_memory_after(const td_stage *s, td_stage_memory *m);

#endif
