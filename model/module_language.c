/* A decoder-only language model: token embedding, RMSNorm layers with rotary causal attention,
 * untied head and loss. */
#include "model/collective.h"
#include "model/module.h"

static void params_before(const td_stage *s, td_param_visit visit, void *self)
{
    td_param_emit(s, visit, self,
                  (td_param){.name = "embed.weight",
                             .layer = -1,
                             .out = s->module->vocab,
                             .in = s->module->hidden,
                             .shard = TD_SHARD_OUT,
                             .decay = true,
                             .trainable = s->ends_train});
}

static void params_after(const td_stage *s, td_param_visit visit, void *self)
{
    td_param_emit(s, visit, self,
                  (td_param){.name = "final_norm.weight",
                             .layer = -1,
                             .out = s->module->hidden,
                             .in = 1,
                             .trainable = s->ends_train});
    td_param_emit(s, visit, self,
                  (td_param){.name = "head.weight",
                             .layer = -1,
                             .out = s->module->vocab,
                             .in = s->module->hidden,
                             .shard = TD_SHARD_OUT,
                             .decay = true,
                             .trainable = s->ends_train});
}

/* Positions of one sample that hold encoder outputs instead of token embeddings. */
static int64_t encoder_rows(const td_stage *s)
{
    int64_t rows = 0;
    for (int32_t i = 0; i < s->plan->n_edges; i++) {
        const td_edge *edge = &s->plan->edges[i];
        if (&s->plan->modules[edge->dst] == s->module)
            rows += s->plan->modules[edge->src].seq;
    }
    return rows * s->samples;
}

static void forward_before(const td_stage *s, td_work_builder *w)
{
    const int64_t h = s->module->hidden, e = s->e;
    td_work_bytes(w, s, TD_PART_EMBEDDING, "embed", TD_PASS_FORWARD, 2 * s->tokens * h * e);
    td_work_leave(w, s, "embed reduce", TD_PASS_FORWARD,
                  h); /* rows of other ranks' vocabulary are zero */
    if (encoder_rows(s) > 0)
        td_work_bytes(w, s, TD_PART_EMBEDDING, "scatter", TD_PASS_FORWARD,
                      2 * encoder_rows(s) * h * e);
}

static void backward_before(const td_stage *s, td_work_builder *w)
{
    const int64_t h = s->module->hidden, e = s->e;
    td_work_enter(w, s, "embed grad gather", TD_PASS_BACKWARD, h);
    if (encoder_rows(s) > 0 && s->input_grad)
        td_work_bytes(w, s, TD_PART_EMBEDDING, "gather", TD_PASS_BACKWARD,
                      2 * encoder_rows(s) * h * e);
    if (s->ends_train) /* adds each position's gradient to its fp32 row */
        td_work_bytes(w, s, TD_PART_EMBEDDING, "embed", TD_PASS_BACKWARD, s->tokens * h * (e + 8));
}

static int64_t vocab_width(const td_stage *s)
{
    return s->module->vocab / s->module->tp;
}

static void forward_after(const td_stage *s, td_work_builder *w)
{
    const int64_t h = s->module->hidden, e = s->e, t = s->tokens, v = vocab_width(s);
    td_work_bytes(w, s, TD_PART_NORM, "final_norm", TD_PASS_FORWARD,
                  2 * td_stage_region_tokens(s) * h * e);
    td_work_enter(w, s, "head gather", TD_PASS_FORWARD, h);
    td_work_gemm(w, s, "head", TD_PASS_FORWARD, t, v, h);
    td_work_bytes(w, s, TD_PART_LOSS, "loss", TD_PASS_FORWARD, t * v * e);
    /* vocabulary-parallel cross-entropy: the maximum, then the sum of exponentials with the
     * target's logit */
    td_work_collective(w, s, "loss max", TD_COLL_ALL_REDUCE, TD_PASS_FORWARD, t * 4);
    td_work_collective(w, s, "loss sum", TD_COLL_ALL_REDUCE, TD_PASS_FORWARD, t * 8);
}

static void backward_after(const td_stage *s, td_work_builder *w)
{
    const int64_t h = s->module->hidden, e = s->e, t = s->tokens, v = vocab_width(s);
    td_work_bytes(w, s, TD_PART_LOSS, "loss", TD_PASS_BACKWARD,
                  2 * t * v * e); /* logits become their gradient */
    td_work_gemm(w, s, "head", TD_PASS_DGRAD, t, v, h);
    if (s->ends_train) {
        td_work_enter(w, s, "head gather", TD_PASS_BACKWARD, h);
        td_work_gemm(w, s, "head", TD_PASS_WGRAD, t, v, h);
    }
    td_work_leave(w, s, "head grad reduce", TD_PASS_BACKWARD, h);
    td_work_bytes(w, s, TD_PART_NORM, "final_norm", TD_PASS_BACKWARD,
                  3 * td_stage_region_tokens(s) * h * e);
}

static int64_t output_width(const td_stage *s)
{
    (void)s;
    return 0; /* it ends in the loss */
}

const td_module_type td_module_language = {
    .name = "language",
    .summary = "decoder-only transformer: RMSNorm, rotary causal attention, SwiGLU, untied head, "
               "cross-entropy",
    .language = true,
    .mlp = TD_MLP_SWIGLU,
    .causal = true,
    .rotary = true,
    .params_before = params_before,
    .params_after = params_after,
    .forward_before = forward_before,
    .forward_after = forward_after,
    .backward_after = backward_after,
    .backward_before = backward_before,
    .output_width = output_width,
};
