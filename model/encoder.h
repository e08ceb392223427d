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
int64_t td_encoder_output_width(const td_stage *s);

#endif
