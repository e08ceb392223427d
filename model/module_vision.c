/* A vision encoder: rows are image patches. */
#include "model/encoder.h"

const td_module_type td_module_vision = {
    .name = "vision",
    .summary = "vision transformer: linear patch embedding, LayerNorm, bidirectional attention, "
               "GELU, MLP projector",
    .mlp = TD_MLP_GELU,
    .norm_bias = true,
    .linear_bias = true,
    .params_before = td_encoder_params_before,
    .params_after = td_encoder_params_after,
    .forward_before = td_encoder_forward_before,
    .forward_after = td_encoder_forward_after,
    .backward_after = td_encoder_backward_after,
    .backward_before = td_encoder_backward_before,
    .output_width = td_encoder_output_width,
};
