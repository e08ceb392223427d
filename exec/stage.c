/* What every part of a stage's forward and backward does, as a table of handlers by part name and
 * pass. */
#include "exec/stage.h"
#include "exec/data.h"
#include "model/collective.h"

#include <stdio.h>
#include <string.h>

typedef struct td_handler {
    const char *name;
    uint8_t pass;
    td_status (*run)(td_stage_run *s, const td_part *part);
} td_handler;

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
    TD_TRY(st, s->device->wait(dev(s), -1, s->err));
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

/* Copies a sample's rows [first, first + n) between the sequence and a bridge's buffer, as far as
 * they are in this region. */
static void bridge_rows(td_stage_run *s, act *sequence, act *rows, int64_t sample, int64_t first,
                        int64_t n, bool into)
{
    const int64_t seq = s->stage.module->seq, region = s->sp ? s->first_row : 0;
    const int64_t begin = sample * seq + first, end = begin + n;
    const int64_t low = begin > region ? begin : region,
                  high = end < region + s->r ? end : region + s->r;
    if (low >= high)
        return;
    act *there = at(s, sequence, (low - region) * s->h),
        *here = at(s, rows, (sample * n + low - begin) * s->h);
    k(s)->copy(dev(s), into ? here : there, into ? there : here,
               (high - low) * s->h * (int64_t)s->e);
}

/* Rows of every encoder that feeds this stage, into the sequence, or their gradients out of it. */
static void each_bridge(td_stage_run *s, act *sequence, act **rows, bool into)
{
    for (int32_t e = 0; e < s->pipe->n_edges; e++) {
        int32_t first, n;
        if (s->pipe->edges[e].dst != s->module || (!into && !s->pipe->edge_gradient[e]))
            continue;
        td_data_rows(s->stage.plan, s->pipe->edges[e].src, &first, &n);
        for (int64_t i = 0; i < s->stage.samples; i++)
            bridge_rows(s, sequence, rows[e], i, first, n, into);
    }
}

static td_status scatter(td_stage_run *s, const td_part *part)
{
    (void)part;
    each_bridge(s, first_input(s), s->bridged[s->mb & 1], true);
    return TD_OK;
}

static td_status embed_grad_gather(td_stage_run *s, const td_part *part)
{
    return gather(s, part, flow(s));
}

static td_status gather_rows(td_stage_run *s, const td_part *part)
{
    const int64_t r = s->r;
    const bool sp = s->sp;
    (void)part;
    act *whole = entered(s, flow(s));
    s->r = s->t; /* the whole sequence stands in `full` */
    s->sp = false;
    each_bridge(s, whole, s->bridged_grad[s->mb & 1], false);
    s->r = r;
    s->sp = sp;
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
        k(s)->loss_value(dev(s), s->slot->target, s->slot->sums, s->loss, s->t);
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
    k(s)->loss_value(dev(s), s->slot->target, s->slot->sums, s->loss, s->t);
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

static const td_handler *handler_of(const td_part *part)
{
    for (size_t i = 0; i < sizeof handlers / sizeof *handlers; i++)
        if (handlers[i].pass == part->pass && strcmp(handlers[i].name, part->name) == 0)
            return &handlers[i];
    return NULL;
}

/* ---- passes ---- */

act *td_stage_input(const td_stage_run *s, int32_t mb)
{
    return s->inputs[mb % s->n_inputs];
}

act *td_stage_output(const td_stage_run *s, int32_t mb)
{
    const td_slot *slot = &s->slots[mb % s->n_slots];
    return s->stage.last ? slot->out : slot->layers[s->stage.n_layers].x;
}

act *td_stage_grad_in(const td_stage_run *s, int32_t mb)
{
    return s->grad_in[mb & 1];
}

act *td_stage_grad_out(const td_stage_run *s, int32_t mb)
{
    return s->grad_out[mb & 1];
}

td_status td_stage_feed(td_stage_run *s, int64_t step, int32_t mb, td_err *err)
{
    td_status st = TD_OK;
    const td_plan *plan = s->stage.plan;
    const td_module *m = s->stage.module;
    td_slot *slot = &s->slots[mb % s->n_slots];
    for (int32_t i = 0; i < s->stage.samples; i++) {
        const int64_t sample = td_data_sample(plan, step, s->module, s->dp_rank, mb, i);
        if (m->type->language && (s->stage.first || s->stage.last))
            TD_TRY(st, td_dataset_tokens(s->data, sample, slot->tokens + (int64_t)i * m->seq,
                                         slot->target + (int64_t)i * m->seq, err));
        if (!m->type->language && s->stage.first)
            td_dataset_input(s->data, s->module, sample,
                             (float *)slot->input + (int64_t)i * m->seq * m->input_dim);
    }
    if (!m->type->language && s->stage.first && s->sp) /* each tensor rank embeds its own rows */
        memmove(slot->input, at(s, slot->input, s->first_row * m->input_dim),
                (size_t)(s->r * m->input_dim) * s->e);
done:
    return st;
}

td_status td_stage_pass(td_stage_run *s, int32_t work, int32_t mb, bool backward, td_part_done done,
                        void *self, td_err *err)
{
    td_status st = TD_OK;
    const td_work *w = &s->program->works[work];
    int64_t n = 0;
    s->mb = mb;
    s->slot = &s->slots[mb % s->n_slots];
    s->slot->layers[0].x = td_stage_input(s, mb);
    s->err = err;
    s->side_of_flow = 0;
    if (backward && !s->stage.last)
        s->device->kernels->copy(dev(s), td_stage_grad_in(s, mb), s->flow[0],
                                 s->r * s->h * (int64_t)s->e);
    TD_TRY(st, done(self, 0, err));
    for (int32_t r = 0; r < w->n_runs; r++)
        for (int32_t rep = 0; rep < w->runs[r].repeat; rep++) {
            s->layer = w->runs[r].layer0 < 0 ? -1 : w->runs[r].layer0 + rep * w->runs[r].layer_step;
            for (int32_t i = w->runs[r].first; i < w->runs[r].first + w->runs[r].n; i++) {
                TD_TRY(st, s->handlers[work][i].run(s, &w->parts[i]));
                s->device->poll(dev(s));
                TD_TRY(st, done(self, ++n, err));
            }
        }
    if (backward && !s->stage.first && s->stage.input_grad)
        s->device->kernels->copy(dev(s), flow(s), td_stage_grad_out(s, mb),
                                 s->r * s->h * (int64_t)s->e);
done:
    return st;
}

/* ---- memory ---- */

/* Hands out pieces of the arena; with a NULL base it only counts. */
typedef struct {
    char *base;
    size_t used;
} cutter;

static void *cut(cutter *c, int64_t elements, size_t size)
{
    void *p = c->base == NULL ? NULL : c->base + c->used;
    c->used += ((size_t)elements * size + 63) / 64 * 64;
    return p;
}

static void cut_layer(const td_stage_run *s, cutter *c, td_layer_kept *l,
                      const td_layer_kept *shared, bool attention_shared)
{
    const td_module *m = s->stage.module;
    const int64_t per_row = m->type->norm_bias ? 2 : 1;
    if (shared != NULL) { /* only the input is kept: the rest is computed again */
        act *x = l->x;
        *l = *shared;
        l->x = x;
        return;
    }
    l->y1 = cut(c, s->r * s->h, s->e);
    l->x2 = cut(c, s->r * s->h, s->e);
    l->y2 = cut(c, s->r * s->h, s->e);
    l->st1 = cut(c, s->r * per_row, sizeof(float));
    l->st2 = cut(c, s->r * per_row, sizeof(float));
    l->qkv = cut(c, s->t * (s->q + 2 * s->kv), s->e);
    l->gu = cut(c, s->t * s->up, s->e);
    l->av = cut(c, s->t * s->f, s->e);
    if (!attention_shared) {
        l->ao = cut(c, s->t * s->q, s->e);
        l->lse = cut(c, s->t * (m->heads / m->tp), sizeof(float));
    }
}

/* One set of a layer's buffers serves all layers: what they held is computed again, or there is no
 * backward to need it. */
static bool layers_share(const td_stage_run *s)
{
    return s->stage.plan->step.recompute == TD_RECOMPUTE_FULL || !s->stage.backward;
}

static void cut_slot(const td_stage_run *s, cutter *c, td_slot *slot, const td_layer_kept *shared)
{
    const td_module *m = s->stage.module;
    const bool again = s->stage.plan->step.recompute == TD_RECOMPUTE_SELECTIVE && !layers_share(s);
    for (int32_t l = 0; l <= s->stage.n_layers; l++) {
        td_layer_kept *kept_layer = &slot->layers[l];
        if (l > 0)
            kept_layer->x = cut(c, s->r * s->h, s->e);
        if (l == s->stage.n_layers)
            break;
        cut_layer(s, c, kept_layer, layers_share(s) ? shared : NULL, again);
        if (again) {
            kept_layer->ao = shared->ao;
            kept_layer->lse = shared->lse;
        }
    }
    if (m->type->language) {
        slot->tokens = cut(c, s->t, sizeof(int32_t));
        slot->target = cut(c, s->t, sizeof(int32_t));
    } else if (s->stage.first) {
        slot->input = cut(c, s->t * m->input_dim, s->e);
    }
    if (!s->stage.last)
        return;
    slot->yf = cut(c, s->r * s->h, s->e);
    slot->stf = cut(c, 2 * s->r, sizeof(float));
    if (m->type->language) {
        slot->logits = cut(c, s->t * s->vocab, s->e);
        slot->max = cut(c, s->t, sizeof(float));
        slot->sums = cut(c, 2 * s->t, sizeof(float));
    } else {
        slot->p1 = cut(c, s->t * s->proj, s->e);
        slot->p2 = cut(c, s->t * s->proj, s->e);
        slot->out = cut(c, s->t * s->out_width, s->e);
    }
}

static int64_t largest(const int64_t *v, size_t n)
{
    int64_t most = 0;
    for (size_t i = 0; i < n; i++)
        most = v[i] > most ? v[i] : most;
    return most;
}

static void cut_all(td_stage_run *s, cutter *c)
{
    const int64_t wide[] = {s->q + 2 * s->kv, s->up, s->f, s->h, s->proj},
                  tall[] = {s->h, s->out_width};
    const int64_t grad_width = s->stage.last ? s->out_width : s->h,
                  rows_in = s->stage.last ? s->t : s->r;
    const bool receives = s->stage.backward && !(s->stage.last && s->stage.module->type->language);
    td_layer_kept shared = {0};
    s->w = cut(c, s->tensors.elements, s->e);
    s->g = cut(c, s->buckets.elements, sizeof(float));
    if (s->stage.plan->step.recompute != TD_RECOMPUTE_NONE || layers_share(s))
        cut_layer(s, c, &shared, NULL, false);
    for (int32_t i = 0; i < s->n_inputs; i++)
        s->inputs[i] = cut(c, s->r * s->h, s->e);
    for (int32_t i = 0; i < s->n_slots; i++)
        cut_slot(s, c, &s->slots[i], &shared);
    s->full = cut(c, s->sp ? s->t * s->h : 0, s->e);
    s->wide1 = cut(c, s->t * largest(wide, sizeof wide / sizeof *wide), s->e);
    s->wide2 = cut(c, s->t * largest(wide, sizeof wide / sizeof *wide), s->e);
    s->side = cut(c, s->t * largest(tall, sizeof tall / sizeof *tall), s->e);
    for (int32_t i = 0; i < 2; i++) {
        s->flow[i] = cut(c, s->r * s->h, s->e);
        s->grad_in[i] = cut(c, receives ? rows_in * grad_width : 0, s->e);
        s->grad_out[i] = cut(c, s->stage.first || !s->stage.input_grad ? 0 : s->r * s->h, s->e);
        for (int32_t e = 0; s->stage.first && e < s->pipe->n_edges; e++)
            if (s->pipe->edges[e].dst == s->module) {
                const int64_t rows =
                    (int64_t)s->stage.samples * s->stage.plan->modules[s->pipe->edges[e].src].seq;
                s->bridged[i][e] = cut(c, rows * s->h, s->e);
                s->bridged_grad[i][e] = cut(c, s->pipe->edge_gradient[e] ? rows * s->h : 0, s->e);
            }
    }
}

static void measure(td_stage_run *s)
{
    const td_module *m = s->stage.module;
    s->t = s->stage.tokens;
    s->r = td_stage_region_tokens(&s->stage);
    s->h = m->hidden;
    s->q = (int64_t)m->heads * m->head_dim / m->tp;
    s->kv = (int64_t)(m->kv_heads < m->tp ? 1 : m->kv_heads / m->tp) * m->head_dim;
    s->f = m->ffn / m->tp;
    s->up = gated(s) ? 2 * s->f : s->f;
    s->vocab = m->vocab / m->tp;
    s->sp = s->stage.plan->step.sequence_parallel && m->tp > 1;
    s->first_row = s->sp ? s->r * s->tp_rank : 0;
    for (int32_t e = 0; e < s->pipe->n_edges; e++)
        if (s->pipe->edges[e].src == s->module)
            s->out_width = s->stage.plan->modules[s->pipe->edges[e].dst].hidden;
    s->proj = s->out_width / m->tp;
}

static td_status find_handlers(td_arena *a, td_stage_run *s, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *stream = td_program_stream(s->program, s->rank);
    td_handler **all = TD_NEW(a, td_handler *, s->program->n_works);
    if (all == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the parts of rank %d", (int)s->rank));
    for (int32_t i = 0; i < stream->n_ops; i++) {
        const td_op *op = &stream->ops[i];
        if ((op->kind != TD_OP_FORWARD && op->kind != TD_OP_BACKWARD) || all[op->work] != NULL)
            continue;
        const td_work *w = &s->program->works[op->work];
        all[op->work] = TD_NEW(a, td_handler, w->n_parts);
        if (all[op->work] == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the parts of rank %d", (int)s->rank));
        for (int32_t k2 = 0; k2 < w->n_parts; k2++) {
            const td_handler *found = handler_of(&w->parts[k2]);
            if (found == NULL)
                TD_TRY(st, td_fail(err, TD_RUN, "part `%s` (%s) has no implementation",
                                   w->parts[k2].name, td_pass_names[w->parts[k2].pass]));
            all[op->work][k2] = *found;
        }
    }
    s->handlers = (const td_handler *const *)all;
done:
    return st;
}

static int32_t chan_of_kind(const td_stage_run *s, td_comm_kind kind)
{
    for (int32_t i = 0; i < td_program_stream(s->program, s->rank)->n_chans; i++)
        if (s->program->comms[s->program->ranks[s->rank].chans[i].comm].kind == kind)
            return i;
    return -1;
}

td_status td_stage_open(td_arena *a, const td_program *p, const td_pipeline *pipe, int32_t rank,
                        const td_device *device, td_stage_run *out, td_err *err)
{
    td_status st = TD_OK;
    const td_stream *stream = td_program_stream(p, rank);
    td_stage_run s = {.arena = a,
                      .program = p,
                      .device = device,
                      .pipe = pipe,
                      .module = stream->module,
                      .rank = rank};
    cutter c = {0};
    td_coord coord;
    TD_TRY(st, td_grid_coord(&p->plan->modules[stream->module].grid, rank, &coord, err));
    s.stage = td_stage_of(p->plan, stream->module, stream->pp_rank);
    s.tp_rank = coord.c[TD_AXIS_TP];
    s.dp_rank = coord.c[TD_AXIS_DP];
    s.tp_chan = chan_of_kind(&s, TD_COMM_TENSOR);
    s.dp_chan = chan_of_kind(&s, TD_COMM_DATA);
    s.e = (size_t)s.stage.e;
    measure(&s);
    TD_TRY(st, td_buckets_of_stage(a, &s.stage, &s.buckets, err));
    TD_TRY(st, td_tensors_of_stage(a, &s.stage, s.tp_rank, &s.tensors, err));
    TD_TRY(st, find_handlers(a, &s, err));
    /* 1F1B holds as many microbatches as there are stages from here on; without a backward one is
     * sent while the next runs */
    s.n_slots = s.stage.backward ? p->total_stages - stream->stage : 2;
    s.n_slots = s.n_slots < p->plan->step.microbatches ? s.n_slots : p->plan->step.microbatches;
    s.n_inputs = s.n_slots + (s.stage.first ? 0 : 1);
    s.inputs = TD_NEW(a, act *, s.n_inputs);
    s.slots = TD_NEW(a, td_slot, s.n_slots);
    if (s.slots == NULL || s.inputs == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for %d microbatches in flight", (int)s.n_slots));
    for (int32_t i = 0; i < s.n_slots; i++)
        if ((s.slots[i].layers = TD_NEW(a, td_layer_kept, s.stage.n_layers + 1)) == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d layers", (int)s.stage.n_layers));
    for (int32_t i = 0; i < 2; i++) {
        s.bridged[i] = TD_NEW(a, act *, pipe->n_edges);
        s.bridged_grad[i] = TD_NEW(a, act *, pipe->n_edges);
        if (s.bridged[i] == NULL || s.bridged_grad[i] == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d bridges", (int)pipe->n_edges));
    }
    cut_all(&s, &c);
    c = (cutter){.base = device->arena(device->self, c.used)};
    if (c.base == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for the stage's buffers", (int)rank));
    cut_all(&s, &c);
    td_tensors_init(&s.tensors, &s.stage, s.w);
    TD_TRY(st, td_dataset_open(a, p->plan, &s.data, err));
    *out = s;
done:
    return st;
}

void td_stage_close(td_stage_run *s)
{
    td_dataset_close(s->data);
    s->data = NULL;
}
