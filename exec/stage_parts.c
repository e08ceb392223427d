/* What every part of a stage's forward and backward does, as a table of handlers by part name and
 * pass. */
#include "exec/stage.h"
#include "exec/data.h"
#include "model/collective.h"

#include <stdio.h>
#include <string.h>

/* ---- small things ---- */

static act *at(const td_stage_run *s, const act *base, int64_t elements)
{
    return (char *)base + (size_t)elements * s->e;
}

static const td_tensor *tensor(const td_stage_run *s, const char *suffix)
{
    return td_tensors_find(&s->tensors, suffix, s->layer);
}

static act *weight(const td_stage_run *s, const char *suffix)
{
    const td_tensor *t = tensor(s, suffix);
    return t == NULL ? NULL : at(s, s->w, t->offset);
}

static float *gradient(const td_stage_run *s, const char *suffix)
{
    const td_tensor *t = tensor(s, suffix);
    return t == NULL || !t->param.trainable ? NULL : s->g + t->offset;
}

/*
 * The bias of a row-parallel product is added once, before the sum over tensor ranks. Its gradient
 * is whole on every rank; with sequence parallelism gradients of such biases are summed over tensor
 * ranks, so one rank contributes it.
 */
static act *row_bias(const td_stage_run *s, const char *suffix)
{
    return s->tp_rank == 0 ? weight(s, suffix) : NULL;
}

static float *row_bias_gradient(const td_stage_run *s, const char *suffix)
{
    return s->sp && s->tp_rank != 0 ? NULL : gradient(s, suffix);
}

static td_layer_kept *kept(const td_stage_run *s)
{
    return &s->slot->layers[s->layer - s->stage.first_layer];
}

static const td_kernels *k(const td_stage_run *s)
{
    return s->device->kernels;
}

static void *dev(const td_stage_run *s)
{
    return s->device->self;
}

/* The tensor-parallel collective of a part, in place or from one buffer to another; the pass goes
 * on behind it. */
static td_status collect(td_stage_run *s, const td_part *part, td_reduction reduction,
                         const act *in, act *out, td_type type)
{
    td_status st = TD_OK;
    const size_t size = type == TD_TYPE_ACT ? s->e : sizeof(float);
    const td_collective_call call = {.coll = (td_coll)part->collective,
                                     .reduction = reduction,
                                     .in = in,
                                     .out = out,
                                     .count = (int64_t)(part->bytes / size),
                                     .type = type};
    TD_TRY(st, s->device->collective(dev(s), -1, s->tp_chan, &call, s->err));
done:
    return st;
}

/* Leaves a tensor-parallel block: a row-parallel product in `side` becomes its sum, whole or this
 * rank's rows, in `wide`. */
static td_status leave(td_stage_run *s, const td_part *part)
{
    if (s->sp)
        return collect(s, part, TD_REDUCE_SUM, s->side, s->wide1, TD_TYPE_ACT);
    return collect(s, part, TD_REDUCE_SUM, s->side, s->side, TD_TYPE_ACT);
}

/* Where the sum of a row-parallel product stands after leave(). */
static act *left(const td_stage_run *s)
{
    return s->sp ? s->wide1 : s->side;
}

static td_status gather(td_stage_run *s, const td_part *part, const act *rows)
{
    return collect(s, part, TD_REDUCE_SUM, rows, s->full, TD_TYPE_ACT);
}

/* Rows as a column-parallel product sees them: gathered just before, or whole anyway. */
static act *entered(const td_stage_run *s, act *rows)
{
    return s->sp ? s->full : rows;
}

static td_attention_shape shape(const td_stage_run *s)
{
    const td_module *m = s->stage.module;
    return (td_attention_shape){.samples = s->stage.samples,
                                .seq = m->seq,
                                .heads = m->heads / m->tp,
                                .kv_heads = (int32_t)(s->kv / m->head_dim),
                                .head_dim = m->head_dim,
                                .causal = m->type->causal};
}

static act *flow(const td_stage_run *s)
{
    return s->flow[s->side_of_flow];
}

static act *flow_next(td_stage_run *s)
{
    s->side_of_flow ^= 1;
    return flow(s);
}

/* ---- a layer forward ---- */

static td_status norm1(td_stage_run *s, const td_part *part)
{
    (void)part;
    td_layer_kept *l = kept(s);
    k(s)->norm(dev(s), l->x, NULL, NULL, weight(s, "norm1.weight"), weight(s, "norm1.bias"), l->y1,
               l->st1, s->r, s->h);
    return TD_OK;
}

static td_status qkv_gather(td_stage_run *s, const td_part *part)
{
    return gather(s, part, kept(s)->y1);
}

static td_status qkv(td_stage_run *s, const td_part *part)
{
    td_layer_kept *l = kept(s);
    k(s)->linear(dev(s), entered(s, l->y1), weight(s, "q.weight"), weight(s, "q.bias"), l->qkv,
                 part->m, part->n, part->k);
    return TD_OK;
}

static td_status rotary(td_stage_run *s, const td_part *part)
{
    (void)part;
    const td_attention_shape a = shape(s);
    k(s)->rotary(dev(s), kept(s)->qkv, &a, false);
    return TD_OK;
}

static td_status attention(td_stage_run *s, const td_part *part)
{
    (void)part;
    const td_attention_shape a = shape(s);
    td_layer_kept *l = kept(s);
    k(s)->attention(dev(s), l->qkv, l->ao, l->lse, &a);
    return TD_OK;
}

static td_status o(td_stage_run *s, const td_part *part)
{
    k(s)->linear(dev(s), kept(s)->ao, weight(s, "o.weight"), row_bias(s, "o.bias"), s->side,
                 part->m, part->n, part->k);
    return TD_OK;
}

static td_status norm2(td_stage_run *s, const td_part *part)
{
    (void)part;
    td_layer_kept *l = kept(s);
    k(s)->norm(dev(s), l->x, left(s), l->x2, weight(s, "norm2.weight"), weight(s, "norm2.bias"),
               l->y2, l->st2, s->r, s->h);
    return TD_OK;
}

static td_status up_gather(td_stage_run *s, const td_part *part)
{
    return gather(s, part, kept(s)->y2);
}

static bool gated(const td_stage_run *s)
{
    return s->stage.module->mlp == TD_MLP_SWIGLU;
}

static td_status up(td_stage_run *s, const td_part *part)
{
    td_layer_kept *l = kept(s);
    k(s)->linear(dev(s), entered(s, l->y2), weight(s, gated(s) ? "gate.weight" : "up.weight"),
                 weight(s, gated(s) ? "gate.bias" : "up.bias"), l->gu, part->m, part->n, part->k);
    return TD_OK;
}

static td_status activate(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->activation(dev(s), kept(s)->gu, kept(s)->av, s->t, s->f, gated(s));
    return TD_OK;
}

static td_status down(td_stage_run *s, const td_part *part)
{
    k(s)->linear(dev(s), kept(s)->av, weight(s, "down.weight"), row_bias(s, "down.bias"), s->side,
                 part->m, part->n, part->k);
    return TD_OK;
}

static td_status residual(td_stage_run *s, const td_part *part)
{
    if (part->recompute) /* the layer's output is not needed again, and the next layer's input
                            stands there */
        return TD_OK;
    k(s)->add(dev(s), kept(s)->x2, left(s), kept(s)[1].x, s->r * s->h);
    return TD_OK;
}

/* ---- a layer backward; the gradient of its output is flow(), that of its input becomes flow()
 * ---- */

static td_status down_grad_gather(td_stage_run *s, const td_part *part)
{
    return gather(s, part, flow(s));
}

static td_status down_dgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_dgrad(dev(s), entered(s, flow(s)), weight(s, "down.weight"), s->wide1, part->m,
                       part->n, part->k);
    return TD_OK;
}

static td_status down_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), entered(s, flow(s)), kept(s)->av, gradient(s, "down.weight"),
                       row_bias_gradient(s, "down.bias"), part->m, part->n, part->k);
    return TD_OK;
}

static td_status activate_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->activation_backward(dev(s), s->wide1, kept(s)->gu, s->wide2, s->t, s->f, gated(s));
    return TD_OK;
}

static td_status up_dgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_dgrad(dev(s), s->wide2, weight(s, gated(s) ? "gate.weight" : "up.weight"), s->side,
                       part->m, part->n, part->k);
    return TD_OK;
}

static td_status up_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), s->wide2, entered(s, kept(s)->y2),
                       gradient(s, gated(s) ? "gate.weight" : "up.weight"),
                       gradient(s, gated(s) ? "gate.bias" : "up.bias"), part->m, part->n, part->k);
    return TD_OK;
}

static td_status norm_backward(td_stage_run *s, const act *x, const char *name, const float *stats,
                               bool with_residual)
{
    char w[32], b[32];
    const act *residual_grad = with_residual ? flow(s) : NULL;
    snprintf(w, sizeof w, "%s.weight", name);
    snprintf(b, sizeof b, "%s.bias", name);
    k(s)->norm_backward(dev(s), left(s), x, weight(s, w), stats, residual_grad, flow_next(s),
                        gradient(s, w), gradient(s, b), s->r, s->h,
                        !s->stage.module->type->norm_bias);
    return TD_OK;
}

static td_status norm2_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    return norm_backward(s, kept(s)->x2, "norm2", kept(s)->st2, true);
}

static td_status o_grad_gather(td_stage_run *s, const td_part *part)
{
    return gather(s, part, flow(s));
}

static td_status o_dgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_dgrad(dev(s), entered(s, flow(s)), weight(s, "o.weight"), s->wide1, part->m,
                       part->n, part->k);
    return TD_OK;
}

static td_status o_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), entered(s, flow(s)), kept(s)->ao, gradient(s, "o.weight"),
                       row_bias_gradient(s, "o.bias"), part->m, part->n, part->k);
    return TD_OK;
}

static td_status attention_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    const td_attention_shape a = shape(s);
    k(s)->attention_backward(dev(s), s->wide1, kept(s)->qkv, kept(s)->ao, kept(s)->lse, s->wide2,
                             &a);
    return TD_OK;
}

static td_status rotary_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    const td_attention_shape a = shape(s);
    k(s)->rotary(dev(s), s->wide2, &a, true);
    return TD_OK;
}

static td_status qkv_dgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_dgrad(dev(s), s->wide2, weight(s, "q.weight"), s->side, part->m, part->n, part->k);
    return TD_OK;
}

static td_status qkv_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), s->wide2, entered(s, kept(s)->y1), gradient(s, "q.weight"),
                       gradient(s, "q.bias"), part->m, part->n, part->k);
    return TD_OK;
}

static td_status norm1_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    return norm_backward(s, kept(s)->x, "norm1", kept(s)->st1, true);
}

/* ---- before and after the layers of the language model ---- */

static act *first_input(const td_stage_run *s)
{
    return s->slot->layers[0].x;
}

static act *last_output(const td_stage_run *s)
{
    return s->slot->layers[s->stage.n_layers].x;
}

/* An encoder's embed is a product, the language model's a look-up. */
static td_status embed(td_stage_run *s, const td_part *part)
{
    act *to =
        s->stage.module->tp > 1 && part->class == TD_PART_EMBEDDING ? s->side : first_input(s);
    if (part->class == TD_PART_GEMM)
        k(s)->linear(dev(s), s->slot->input, weight(s, "embed.weight"), weight(s, "embed.bias"), to,
                     part->m, part->n, part->k);
    else
        k(s)->embed(dev(s), s->slot->tokens, weight(s, "embed.weight"), to, s->t, s->h,
                    s->vocab * s->tp_rank, s->vocab);
    return TD_OK;
}

static td_status embed_reduce(td_stage_run *s, const td_part *part)
{
    return collect(s, part, TD_REDUCE_SUM, s->side, first_input(s), TD_TYPE_ACT);
}

/* Rows of every encoder that feeds this stage, into the rows of the sequence from `first_row` on,
 * or their gradients out of them. */
static void splice(td_stage_run *s, act *region, int64_t first_row, int64_t rows,
                   act *const *bridged, bool into)
{
    td_splices all = {.first_row = first_row, .rows = rows, .seq = s->stage.module->seq, .h = s->h};
    for (int32_t e = 0; e < s->pipe->n_edges; e++) {
        int32_t first, n;
        if (s->pipe->edges[e].dst != s->module || (!into && !s->pipe->edge_gradient[e]))
            continue;
        td_data_rows(s->stage.plan, s->pipe->edges[e].src, &first, &n);
        all.of[all.n++] = (td_splice){.rows = bridged[e], .first = first, .n = n};
    }
    k(s)->splice(dev(s), region, &all, into);
}

static td_status scatter(td_stage_run *s, const td_part *part)
{
    (void)part;
    splice(s, first_input(s), s->sp ? s->first_row : 0, s->r, s->bridged[s->mb & 1], true);
    return TD_OK;
}

static td_status embed_grad_gather(td_stage_run *s, const td_part *part)
{
    return gather(s, part, flow(s));
}

/* The whole sequence stands in `full`, whatever the region. */
static td_status gather_rows(td_stage_run *s, const td_part *part)
{
    (void)part;
    splice(s, entered(s, flow(s)), 0, s->t, s->bridged_grad[s->mb & 1], false);
    return TD_OK;
}

static td_status embed_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->embed_backward(dev(s), s->slot->tokens, entered(s, flow(s)), gradient(s, "embed.weight"),
                         s->t, s->h, s->vocab * s->tp_rank, s->vocab);
    return TD_OK;
}

static td_status final_norm(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->norm(dev(s), last_output(s), NULL, NULL, weight(s, "final_norm.weight"),
               weight(s, "final_norm.bias"), s->slot->yf, s->slot->stf, s->r, s->h);
    return TD_OK;
}

static td_status final_gather(td_stage_run *s, const td_part *part)
{
    return gather(s, part, s->slot->yf);
}

static td_status head(td_stage_run *s, const td_part *part)
{
    k(s)->linear(dev(s), entered(s, s->slot->yf), weight(s, "head.weight"), NULL, s->slot->logits,
                 part->m, part->n, part->k);
    return TD_OK;
}

static void loss_second(td_stage_run *s)
{
    k(s)->loss_sum(dev(s), s->slot->logits, s->slot->target, s->slot->max, s->slot->sums, s->t,
                   s->vocab, s->vocab * s->tp_rank);
}

static td_status loss(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->loss_max(dev(s), s->slot->logits, s->slot->max, s->t, s->vocab);
    if (s->stage.module->tp == 1) {
        loss_second(s);
        k(s)->loss_value(dev(s), s->slot->target, s->slot->sums, s->state->loss, s->t);
    }
    return TD_OK;
}

static td_status loss_max(td_stage_run *s, const td_part *part)
{
    td_status st = TD_OK;
    TD_TRY(st, collect(s, part, TD_REDUCE_MAX, s->slot->max, s->slot->max, TD_TYPE_F32));
    loss_second(s);
done:
    return st;
}

static td_status loss_sum(td_stage_run *s, const td_part *part)
{
    td_status st = TD_OK;
    TD_TRY(st, collect(s, part, TD_REDUCE_SUM, s->slot->sums, s->slot->sums, TD_TYPE_F32));
    k(s)->loss_value(dev(s), s->slot->target, s->slot->sums, s->state->loss, s->t);
done:
    return st;
}

static td_status loss_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->loss_backward(dev(s), s->slot->logits, s->slot->target, s->slot->max, s->slot->sums, s->t,
                        s->vocab, s->vocab * s->tp_rank);
    return TD_OK;
}

static td_status head_dgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_dgrad(dev(s), s->slot->logits, weight(s, "head.weight"), s->side, part->m, part->n,
                       part->k);
    return TD_OK;
}

static td_status head_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), s->slot->logits, entered(s, s->slot->yf), gradient(s, "head.weight"),
                       NULL, part->m, part->n, part->k);
    return TD_OK;
}

static td_status final_norm_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    return norm_backward(s, last_output(s), "final_norm", s->slot->stf, false);
}

/* ---- before and after the layers of an encoder ---- */

static td_status pos_embed(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->add_rows(dev(s), first_input(s), weight(s, "pos_embed.weight"), s->r,
                   s->stage.module->seq, s->h, s->first_row);
    return TD_OK;
}

static td_status pos_embed_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->add_rows_backward(dev(s), flow(s), gradient(s, "pos_embed.weight"), s->r,
                            s->stage.module->seq, s->h, s->first_row);
    return TD_OK;
}

static td_status embed_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), flow(s), s->slot->input, gradient(s, "embed.weight"),
                       gradient(s, "embed.bias"), part->m, part->n, part->k);
    return TD_OK;
}

static td_status fc1(td_stage_run *s, const td_part *part)
{
    k(s)->linear(dev(s), entered(s, s->slot->yf), weight(s, "projector.fc1.weight"),
                 weight(s, "projector.fc1.bias"), s->slot->p1, part->m, part->n, part->k);
    return TD_OK;
}

static td_status projector_gelu(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->activation(dev(s), s->slot->p1, s->slot->p2, s->t, s->proj, false);
    return TD_OK;
}

static td_status fc2(td_stage_run *s, const td_part *part)
{
    k(s)->linear(dev(s), s->slot->p2, weight(s, "projector.fc2.weight"),
                 row_bias(s, "projector.fc2.bias"), s->slot->out, part->m, part->n, part->k);
    return TD_OK;
}

static td_status projector_reduce(td_stage_run *s, const td_part *part)
{
    return collect(s, part, TD_REDUCE_SUM, s->slot->out, s->slot->out, TD_TYPE_ACT);
}

static td_status fc2_dgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_dgrad(dev(s), td_stage_grad_in(s, s->mb), weight(s, "projector.fc2.weight"),
                       s->wide1, part->m, part->n, part->k);
    return TD_OK;
}

static td_status fc2_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), td_stage_grad_in(s, s->mb), s->slot->p2,
                       gradient(s, "projector.fc2.weight"),
                       row_bias_gradient(s, "projector.fc2.bias"), part->m, part->n, part->k);
    return TD_OK;
}

static td_status projector_gelu_backward(td_stage_run *s, const td_part *part)
{
    (void)part;
    k(s)->activation_backward(dev(s), s->wide1, s->slot->p1, s->wide2, s->t, s->proj, false);
    return TD_OK;
}

static td_status fc1_dgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_dgrad(dev(s), s->wide2, weight(s, "projector.fc1.weight"), s->side, part->m,
                       part->n, part->k);
    return TD_OK;
}

static td_status fc1_wgrad(td_stage_run *s, const td_part *part)
{
    k(s)->linear_wgrad(dev(s), s->wide2, entered(s, s->slot->yf),
                       gradient(s, "projector.fc1.weight"), gradient(s, "projector.fc1.bias"),
                       part->m, part->n, part->k);
    return TD_OK;
}

/* ---- the table ---- */

static const td_handler handlers[] = {
    {"norm1", TD_PASS_FORWARD, norm1},
    {"qkv gather", TD_PASS_FORWARD, qkv_gather},
    {"qkv", TD_PASS_FORWARD, qkv},
    {"rotary", TD_PASS_FORWARD, rotary},
    {"attention", TD_PASS_FORWARD, attention},
    {"o", TD_PASS_FORWARD, o},
    {"o reduce", TD_PASS_FORWARD, leave},
    {"norm2", TD_PASS_FORWARD, norm2},
    {"up gather", TD_PASS_FORWARD, up_gather},
    {"gate_up", TD_PASS_FORWARD, up},
    {"up", TD_PASS_FORWARD, up},
    {"swiglu", TD_PASS_FORWARD, activate},
    {"gelu", TD_PASS_FORWARD, activate},
    {"down", TD_PASS_FORWARD, down},
    {"down reduce", TD_PASS_FORWARD, leave},
    {"residual", TD_PASS_FORWARD, residual},
    {"down grad gather", TD_PASS_BACKWARD, down_grad_gather},
    {"down", TD_PASS_DGRAD, down_dgrad},
    {"down", TD_PASS_WGRAD, down_wgrad},
    {"swiglu", TD_PASS_BACKWARD, activate_backward},
    {"gelu", TD_PASS_BACKWARD, activate_backward},
    {"up gather", TD_PASS_BACKWARD, up_gather},
    {"gate_up", TD_PASS_DGRAD, up_dgrad},
    {"gate_up", TD_PASS_WGRAD, up_wgrad},
    {"up", TD_PASS_DGRAD, up_dgrad},
    {"up", TD_PASS_WGRAD, up_wgrad},
    {"up grad reduce", TD_PASS_BACKWARD, leave},
    {"norm2", TD_PASS_BACKWARD, norm2_backward},
    {"o grad gather", TD_PASS_BACKWARD, o_grad_gather},
    {"o", TD_PASS_DGRAD, o_dgrad},
    {"o", TD_PASS_WGRAD, o_wgrad},
    {"attention", TD_PASS_BACKWARD, attention_backward},
    {"rotary", TD_PASS_BACKWARD, rotary_backward},
    {"qkv gather", TD_PASS_BACKWARD, qkv_gather},
    {"qkv", TD_PASS_DGRAD, qkv_dgrad},
    {"qkv", TD_PASS_WGRAD, qkv_wgrad},
    {"qkv grad reduce", TD_PASS_BACKWARD, leave},
    {"norm1", TD_PASS_BACKWARD, norm1_backward},
    {"embed", TD_PASS_FORWARD, embed},
    {"embed reduce", TD_PASS_FORWARD, embed_reduce},
    {"scatter", TD_PASS_FORWARD, scatter},
    {"embed grad gather", TD_PASS_BACKWARD, embed_grad_gather},
    {"gather", TD_PASS_BACKWARD, gather_rows},
    {"embed", TD_PASS_BACKWARD, embed_backward},
    {"embed", TD_PASS_WGRAD, embed_wgrad},
    {"final_norm", TD_PASS_FORWARD, final_norm},
    {"head gather", TD_PASS_FORWARD, final_gather},
    {"head", TD_PASS_FORWARD, head},
    {"loss", TD_PASS_FORWARD, loss},
    {"loss max", TD_PASS_FORWARD, loss_max},
    {"loss sum", TD_PASS_FORWARD, loss_sum},
    {"loss", TD_PASS_BACKWARD, loss_backward},
    {"head", TD_PASS_DGRAD, head_dgrad},
    {"head gather", TD_PASS_BACKWARD, final_gather},
    {"head", TD_PASS_WGRAD, head_wgrad},
    {"head grad reduce", TD_PASS_BACKWARD, leave},
    {"final_norm", TD_PASS_BACKWARD, final_norm_backward},
    {"pos_embed", TD_PASS_FORWARD, pos_embed},
    {"pos_embed", TD_PASS_BACKWARD, pos_embed_backward},
    {"projector gather", TD_PASS_FORWARD, final_gather},
    {"projector.fc1", TD_PASS_FORWARD, fc1},
    {"projector gelu", TD_PASS_FORWARD, projector_gelu},
    {"projector.fc2", TD_PASS_FORWARD, fc2},
    {"projector reduce", TD_PASS_FORWARD, projector_reduce},
    {"projector.fc2", TD_PASS_DGRAD, fc2_dgrad},
    {"projector.fc2", TD_PASS_WGRAD, fc2_wgrad},
    {"projector gelu", TD_PASS_BACKWARD, projector_gelu_backward},
    {"projector gather", TD_PASS_BACKWARD, final_gather},
    {"projector.fc1", TD_PASS_DGRAD, fc1_dgrad},
    {"projector.fc1", TD_PASS_WGRAD, fc1_wgrad},
    {"projector grad reduce", TD_PASS_BACKWARD, leave},
};

const td_handler *td_stage_handler(const td_part *part)
{
    for (size_t i = 0; i < sizeof handlers / sizeof *handlers; i++)
        if (handlers[i].pass == part->pass && strcmp(handlers[i].name, part->name) == 0)
            return &handlers[i];
    return NULL;
}
