/* Embedding and projector of encoders. The projector lives on the last stage and trains unless the
 * module is frozen. */
#include "model/encoder.h"
#include "model/collective.h"

/* The width the projector speaks: that of the module the encoder feeds. */
int64_t td_encoder_output_width(const td_stage *s)
{
    for (int32_t i = 0; i < s->plan->n_edges; i++)
        if (&s->plan->modules[s->plan->edges[i].src] == s->module)
            return s->plan->modules[s->plan->edges[i].dst].hidden;
    return s->module->hidden;
}

void td_encoder_params_before(const td_stage *s, td_param_visit visit, void *self)
{
    const td_module *m = s->module;
    const bool train = s->layers_train;
    td_param_emit(s, visit, self,
                  (td_param){.name = "embed.weight",
                             .layer = -1,
                             .out = m->hidden,
                             .in = m->input_dim,
                             .decay = true,
                             .trainable = train});
    td_param_emit(
        s, visit, self,
        (td_param){
            .name = "embed.bias", .layer = -1, .out = m->hidden, .in = 1, .trainable = train});
    td_param_emit(s, visit, self,
                  (td_param){.name = "pos_embed.weight",
                             .layer = -1,
                             .out = m->seq,
                             .in = m->hidden,
                             .decay = true,
                             .trainable = train});
}

void td_encoder_params_after(const td_stage *s, td_param_visit visit, void *self)
{
    const td_module *m = s->module;
    const int64_t out = td_encoder_output_width(s);
    td_param_emit(s, visit, self,
                  (td_param){.name = "final_norm.weight",
                             .layer = -1,
                             .out = m->hidden,
                             .in = 1,
                             .trainable = s->layers_train});
    td_param_emit(s, visit, self,
                  (td_param){.name = "final_norm.bias",
                             .layer = -1,
                             .out = m->hidden,
                             .in = 1,
                             .trainable = s->layers_train});
    td_param_emit(s, visit, self,
                  (td_param){.name = "projector.fc1.weight",
                             .layer = -1,
                             .out = out,
                             .in = m->hidden,
                             .shard = TD_SHARD_OUT,
                             .decay = true,
                             .trainable = s->ends_train});
    td_param_emit(s, visit, self,
                  (td_param){.name = "projector.fc1.bias",
                             .layer = -1,
                             .out = out,
                             .in = 1,
                             .shard = TD_SHARD_OUT,
                             .trainable = s->ends_train});
    td_param_emit(s, visit, self,
                  (td_param){.name = "projector.fc2.weight",
                             .layer = -1,
                             .out = out,
                             .in = out,
                             .shard = TD_SHARD_IN,
                             .decay = true,
                             .trainable = s->ends_train});
    td_param_emit(s, visit, self,
                  (td_param){.name = "projector.fc2.bias",
                             .layer = -1,
                             .out = out,
                             .in = 1,
                             .trainable = s->ends_train});
}

void td_encoder_forward_before(const td_stage *s, td_work_builder *w)
{
    const td_module *m = s->module;
    const int64_t r = td_stage_region_tokens(s),
                  h = m->hidden; /* each rank embeds its own part of the sequence */
    td_work_gemm(w, s, "embed", TD_PASS_FORWARD, r, h, m->input_dim);
    td_work_bytes(w, s, TD_PART_ELEMENTWISE, "pos_embed", TD_PASS_FORWARD, 3 * r * h * s->e);
}

void td_encoder_backward_before(const td_stage *s, td_work_builder *w)
{
    const td_module *m = s->module;
    const int64_t r = td_stage_region_tokens(s), h = m->hidden;
    if (!s->layers_train)
        return;
    td_work_bytes(w, s, TD_PART_ELEMENTWISE, "pos_embed", TD_PASS_BACKWARD, r * h * (s->e + 8));
    td_work_gemm(w, s, "embed", TD_PASS_WGRAD, r, h,
                 m->input_dim); /* the input is data: no data gradient */
}

void td_encoder_forward_after(const td_stage *s, td_work_builder *w)
{
    const int64_t t = s->tokens, r = td_stage_region_tokens(s), h = s->module->hidden, e = s->e;
    const int64_t out = td_encoder_output_width(s), part = out / s->module->tp;
    td_work_bytes(w, s, TD_PART_NORM, "final_norm", TD_PASS_FORWARD, 2 * r * h * e);
    td_work_enter(w, s, "projector gather", TD_PASS_FORWARD, h);
    td_work_gemm(w, s, "projector.fc1", TD_PASS_FORWARD, t, part, h);
    td_work_bytes(w, s, TD_PART_ACTIVATION, "projector gelu", TD_PASS_FORWARD, 2 * t * part * e);
    td_work_gemm(w, s, "projector.fc2", TD_PASS_FORWARD, t, out, part);
    /* the bridge carries whole rows, so the sum is whole on every rank even with sequence
     * parallelism */
    td_work_collective(w, s, "projector reduce", TD_COLL_ALL_REDUCE, TD_PASS_FORWARD, t * out * e);
}

void td_encoder_backward_after(const td_stage *s, td_work_builder *w)
{
    const int64_t t = s->tokens, r = td_stage_region_tokens(s), h = s->module->hidden, e = s->e;
    const int64_t out = td_encoder_output_width(s), part = out / s->module->tp;
    td_work_gemm(w, s, "projector.fc2", TD_PASS_DGRAD, t, out, part);
    if (s->ends_train)
        td_work_gemm(w, s, "projector.fc2", TD_PASS_WGRAD, t, out, part);
    td_work_bytes(w, s, TD_PART_ACTIVATION, "projector gelu", TD_PASS_BACKWARD, 3 * t * part * e);
    if (s->ends_train) {
        td_work_enter(w, s, "projector gather", TD_PASS_BACKWARD, h);
        td_work_gemm(w, s, "projector.fc1", TD_PASS_WGRAD, t, part, h);
    }
    if (s->layers_train || s->input_grad) {
        td_work_gemm(w, s, "projector.fc1", TD_PASS_DGRAD, t, part, h);
        td_work_leave(w, s, "projector grad reduce", TD_PASS_BACKWARD, h);
        td_work_bytes(w, s, TD_PART_NORM, "final_norm", TD_PASS_BACKWARD, 3 * r * h * e);
    }
}
