/*
 * Transformer layers as parameters, parts and bytes: what language models and encoders share.
 * The parts are those of a good executor: q, k, v in one product, gate and up in one product, the
 * residual add inside the norm that follows it, biases and their gradients inside the products'
 * epilogues, weight gradients accumulated in fp32.
 */
#include "model/collective.h"
#include "model/module.h"

#include <string.h>

static int64_t q_width(const td_stage *s)
{
    return (int64_t)s->module->heads * s->module->head_dim / s->module->tp;
}

/* Each rank holds kv_heads / tp of them, or one head shared with its neighbours where kv_heads <
 * tp. */
static int64_t kv_width(const td_stage *s)
{
    const int32_t heads =
        s->module->kv_heads < s->module->tp ? 1 : s->module->kv_heads / s->module->tp;
    return (int64_t)heads * s->module->head_dim;
}

static int64_t ffn_width(const td_stage *s)
{
    return s->module->ffn / s->module->tp;
}

static bool gated(const td_stage *s)
{
    return s->module->mlp == TD_MLP_SWIGLU;
}

static bool sequence_parallel(const td_stage *s)
{
    return s->plan->step.sequence_parallel && s->module->tp > 1;
}

int64_t td_stage_region_tokens(const td_stage *s)
{
    return sequence_parallel(s) ? s->tokens / s->module->tp : s->tokens;
}

/* ---- parameters ---- */

void td_param_emit(const td_stage *s, td_param_visit visit, void *self, td_param p)
{
    const int32_t tp = s->module->tp;
    p.copies = p.shard == TD_SHARD_NONE ? tp : 1;
    if (p.shard == TD_SHARD_KV && s->module->kv_heads < tp)
        p.copies = tp / s->module->kv_heads;
    p.local = p.out * p.in / (tp / p.copies);
    visit(self, &p);
}

/* Weights of one product and then their biases, so that q, k, v stand together and gate and up do.
 */
static void params_of_layer(const td_stage *s, int32_t layer, td_param_visit visit, void *self)
{
    const td_module *m = s->module;
    const td_module_type *t = m->type;
    const int64_t h = m->hidden, q = (int64_t)m->heads * m->head_dim,
                  kv = (int64_t)m->kv_heads * m->head_dim;
    const bool bias = t->linear_bias, both = gated(s);
    const struct {
        td_param p;
        bool present;
    } row[] = {
        {{.name = "norm1.weight", .out = h, .in = 1}, true},
        {{.name = "norm1.bias", .out = h, .in = 1}, t->norm_bias},
        {{.name = "q.weight", .out = q, .in = h, .shard = TD_SHARD_OUT, .decay = true}, true},
        {{.name = "k.weight",
          .out = kv,
          .in = h,
          .shard = TD_SHARD_KV,
          .decay = true,
          .joined = true},
         true},
        {{.name = "v.weight",
          .out = kv,
          .in = h,
          .shard = TD_SHARD_KV,
          .decay = true,
          .joined = true},
         true},
        {{.name = "q.bias", .out = q, .in = 1, .shard = TD_SHARD_OUT}, bias},
        {{.name = "k.bias", .out = kv, .in = 1, .shard = TD_SHARD_KV, .joined = true}, bias},
        {{.name = "v.bias", .out = kv, .in = 1, .shard = TD_SHARD_KV, .joined = true}, bias},
        {{.name = "o.weight", .out = h, .in = q, .shard = TD_SHARD_IN, .decay = true}, true},
        {{.name = "o.bias", .out = h, .in = 1},
         bias}, /* whole on every rank, like that of `down` */
        {{.name = "norm2.weight", .out = h, .in = 1}, true},
        {{.name = "norm2.bias", .out = h, .in = 1}, t->norm_bias},
        {{.name = "gate.weight", .out = m->ffn, .in = h, .shard = TD_SHARD_OUT, .decay = true},
         both},
        {{.name = "up.weight",
          .out = m->ffn,
          .in = h,
          .shard = TD_SHARD_OUT,
          .decay = true,
          .joined = both},
         true},
        {{.name = "gate.bias", .out = m->ffn, .in = 1, .shard = TD_SHARD_OUT}, both && bias},
        {{.name = "up.bias", .out = m->ffn, .in = 1, .shard = TD_SHARD_OUT, .joined = both}, bias},
        {{.name = "down.weight", .out = h, .in = m->ffn, .shard = TD_SHARD_IN, .decay = true},
         true},
        {{.name = "down.bias", .out = h, .in = 1}, bias},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        td_param p = row[i].p;
        p.layer = layer;
        p.trainable = s->layers_train;
        if (row[i].present)
            td_param_emit(s, visit, self, p);
    }
}

void td_stage_params(const td_stage *s, td_param_visit visit, void *self)
{
    if (s->first)
        s->module->type->params_before(s, visit, self);
    for (int32_t l = 0; l < s->n_layers; l++)
        params_of_layer(s, s->first_layer + l, visit, self);
    if (s->last)
        s->module->type->params_after(s, visit, self);
}

/* ---- building works ---- */

static void *grow(td_work_builder *w, void *old, int32_t n, int32_t *cap, size_t size)
{
    if (n < *cap)
        return old;
    const int32_t want = *cap == 0 ? 32 : 2 * *cap;
    void *p = td_arena_alloc(w->arena, (size_t)want, size);
    if (p == NULL) {
        w->failed = true;
        return NULL;
    }
    if (n > 0)
        memcpy(p, old, (size_t)n * size);
    *cap = want;
    return p;
}

static void add(td_work_builder *w, const td_part *part)
{
    if (w->failed)
        return;
    td_part *parts = grow(w, w->parts, w->n_parts, &w->cap_parts, sizeof *parts);
    if (parts == NULL)
        return;
    w->parts = parts;
    w->parts[w->n_parts++] = *part;
}

void td_work_run(td_work_builder *w, int32_t repeat, int32_t layer0, int32_t layer_step)
{
    const int32_t first =
        w->n_runs == 0 ? 0 : w->runs[w->n_runs - 1].first + w->runs[w->n_runs - 1].n;
    if (w->failed || w->n_parts == first || repeat == 0) {
        w->n_parts = w->failed ? w->n_parts : first;
        return;
    }
    td_part_run *runs = grow(w, w->runs, w->n_runs, &w->cap_runs, sizeof *runs);
    if (runs == NULL)
        return;
    w->runs = runs;
    w->runs[w->n_runs++] = (td_part_run){.first = first,
                                         .n = w->n_parts - first,
                                         .repeat = repeat,
                                         .layer0 = layer0,
                                         .layer_step = layer_step};
}

td_status td_work_finish(td_work_builder *w, td_work *out, td_err *err)
{
    if (w->failed)
        return td_fail(err, TD_NOMEM, "no memory for the work of a pipeline stage");
    *out =
        (td_work){.n_runs = w->n_runs, .n_parts = w->n_parts, .runs = w->runs, .parts = w->parts};
    for (int32_t r = 0; r < w->n_runs; r++) {
        out->n_flat += (int64_t)w->runs[r].n * w->runs[r].repeat;
        for (int32_t i = 0; i < w->runs[r].n; i++)
            out->flops += w->parts[w->runs[r].first + i].flops * w->runs[r].repeat;
    }
    return TD_OK;
}

void td_work_gemm(td_work_builder *w, const td_stage *s, const char *name, td_pass pass, int64_t m,
                  int64_t n, int64_t k)
{
    add(w, &(td_part){.class = TD_PART_GEMM,
                      .pass = (uint8_t)pass,
                      .fp32 = s->e == 4,
                      .name = name,
                      .m = m,
                      .n = n,
                      .k = k,
                      .flops = 2.0 * (double)m * (double)n * (double)k});
}

void td_work_bytes(td_work_builder *w, const td_stage *s, td_part_class class, const char *name,
                   td_pass pass, int64_t bytes)
{
    add(w, &(td_part){.class = (uint8_t) class,
                      .pass = (uint8_t)pass,
                      .fp32 = s->e == 4,
                      .name = name,
                      .bytes = (uint64_t)bytes});
}

void td_work_collective(td_work_builder *w, const td_stage *s, const char *name, int32_t coll,
                        td_pass pass, int64_t bytes)
{
    if (s->module->tp > 1)
        add(w, &(td_part){.class = TD_PART_COLLECTIVE,
                          .pass = (uint8_t)pass,
                          .collective = (uint8_t)coll,
                          .name = name,
                          .ranks = s->module->tp,
                          .bytes = (uint64_t)bytes});
}

void td_work_leave(td_work_builder *w, const td_stage *s, const char *name, td_pass pass,
                   int64_t width)
{
    td_work_collective(w, s, name,
                       sequence_parallel(s) ? TD_COLL_REDUCE_SCATTER : TD_COLL_ALL_REDUCE, pass,
                       s->tokens * width * s->e);
}

void td_work_enter(td_work_builder *w, const td_stage *s, const char *name, td_pass pass,
                   int64_t width)
{
    if (sequence_parallel(s))
        td_work_collective(w, s, name, TD_COLL_ALL_GATHER, pass, s->tokens * width * s->e);
}

/* ---- layers ---- */

static void attention(const td_stage *s, td_work_builder *w, td_pass pass)
{
    const td_module *m = s->module;
    /* scores and values, 2 * seq * seq * width each; the causal half; twice as many products
     * backward */
    const double one = 4.0 * (double)s->tokens * (double)m->seq * (double)q_width(s) *
                       (m->type->causal ? 0.5 : 1.0);
    add(w, &(td_part){.class = TD_PART_ATTENTION,
                      .pass = (uint8_t)pass,
                      .causal = m->type->causal,
                      .fp32 = s->e == 4,
                      .name = "attention",
                      .batch = s->samples,
                      .seq = m->seq,
                      .heads = m->heads / m->tp,
                      .kv_heads = (int32_t)(kv_width(s) / m->head_dim),
                      .head_dim = m->head_dim,
                      .flops = pass == TD_PASS_BACKWARD ? 2.0 * one : one});
}

static void layer_forward(const td_stage *s, td_work_builder *w)
{
    const td_module *m = s->module;
    const int64_t t = s->tokens, r = td_stage_region_tokens(s), h = m->hidden, e = s->e,
                  q = q_width(s), kv = kv_width(s);
    const int64_t f = ffn_width(s), up = gated(s) ? 2 * f : f;
    td_work_bytes(w, s, TD_PART_NORM, "norm1", TD_PASS_FORWARD, 2 * r * h * e);
    td_work_enter(w, s, "qkv gather", TD_PASS_FORWARD, h);
    td_work_gemm(w, s, "qkv", TD_PASS_FORWARD, t, q + 2 * kv, h);
    if (m->type->rotary)
        td_work_bytes(w, s, TD_PART_ROTARY, "rotary", TD_PASS_FORWARD, 2 * t * (q + kv) * e);
    attention(s, w, TD_PASS_FORWARD);
    td_work_gemm(w, s, "o", TD_PASS_FORWARD, t, h, q);
    td_work_leave(w, s, "o reduce", TD_PASS_FORWARD, h);
    td_work_bytes(w, s, TD_PART_NORM, "norm2", TD_PASS_FORWARD,
                  4 * r * h * e); /* reads x and o, writes sum and norm */
    td_work_enter(w, s, "up gather", TD_PASS_FORWARD, h);
    td_work_gemm(w, s, gated(s) ? "gate_up" : "up", TD_PASS_FORWARD, t, up, h);
    td_work_bytes(w, s, TD_PART_ACTIVATION, gated(s) ? "swiglu" : "gelu", TD_PASS_FORWARD,
                  (up + f) * t * e);
    td_work_gemm(w, s, "down", TD_PASS_FORWARD, t, h, f);
    td_work_leave(w, s, "down reduce", TD_PASS_FORWARD, h);
    td_work_bytes(w, s, TD_PART_NORM, "residual", TD_PASS_FORWARD, 3 * r * h * e);
}

/* The last `n` parts were forward work done again. */
static void mark_recompute(td_work_builder *w, int32_t since)
{
    for (int32_t i = since; !w->failed && i < w->n_parts; i++) {
        w->parts[i].recompute = 1;
        w->parts[i].flops = 0;
    }
}

/* Data and weight gradient of one linear layer; the reverse of enter/leave around it is the
 * caller's. */
static void linear_backward(const td_stage *s, td_work_builder *w, const char *name, int64_t n,
                            int64_t k, bool wgrad)
{
    td_work_gemm(w, s, name, TD_PASS_DGRAD, s->tokens, n, k);
    if (wgrad)
        td_work_gemm(w, s, name, TD_PASS_WGRAD, s->tokens, n, k);
}

static void layer_backward(const td_stage *s, td_work_builder *w)
{
    const td_module *m = s->module;
    const int64_t t = s->tokens, r = td_stage_region_tokens(s), h = m->hidden, e = s->e,
                  q = q_width(s), kv = kv_width(s);
    const int64_t f = ffn_width(s), up = gated(s) ? 2 * f : f;
    const bool wgrad = s->layers_train;
    const int32_t since = w->n_parts;
    if (s->plan->step.recompute == TD_RECOMPUTE_FULL) {
        layer_forward(s, w);
        mark_recompute(w, since);
    }
    td_work_enter(w, s, "down grad gather", TD_PASS_BACKWARD, h);
    linear_backward(s, w, "down", h, f, wgrad);
    td_work_bytes(w, s, TD_PART_ACTIVATION, gated(s) ? "swiglu" : "gelu", TD_PASS_BACKWARD,
                  (2 * up + f) * t * e);
    if (wgrad) /* the saved input is sharded along the sequence and gathered again */
        td_work_enter(w, s, "up gather", TD_PASS_BACKWARD, h);
    linear_backward(s, w, gated(s) ? "gate_up" : "up", up, h, wgrad);
    td_work_leave(w, s, "up grad reduce", TD_PASS_BACKWARD, h);
    td_work_bytes(w, s, TD_PART_NORM, "norm2", TD_PASS_BACKWARD,
                  4 * r * h * e); /* x, dy, residual gradient; dx */
    td_work_enter(w, s, "o grad gather", TD_PASS_BACKWARD, h);
    if (s->plan->step.recompute == TD_RECOMPUTE_SELECTIVE) {
        const int32_t core = w->n_parts;
        attention(s, w, TD_PASS_FORWARD);
        mark_recompute(w, core);
    }
    linear_backward(s, w, "o", h, q, wgrad);
    attention(s, w, TD_PASS_BACKWARD);
    if (m->type->rotary)
        td_work_bytes(w, s, TD_PART_ROTARY, "rotary", TD_PASS_BACKWARD, 2 * t * (q + kv) * e);
    if (wgrad)
        td_work_enter(w, s, "qkv gather", TD_PASS_BACKWARD, h);
    linear_backward(s, w, "qkv", q + 2 * kv, h, wgrad);
    td_work_leave(w, s, "qkv grad reduce", TD_PASS_BACKWARD, h);
    td_work_bytes(w, s, TD_PART_NORM, "norm1", TD_PASS_BACKWARD, 4 * r * h * e);
}

td_status td_stage_forward(td_arena *a, const td_stage *s, td_work *out, td_err *err)
{
    td_work_builder w = {.arena = a};
    if (s->first) {
        s->module->type->forward_before(s, &w);
        td_work_run(&w, 1, -1, 0);
    }
    layer_forward(s, &w);
    td_work_run(&w, s->n_layers, s->first_layer, 1);
    if (s->last) {
        s->module->type->forward_after(s, &w);
        td_work_run(&w, 1, -1, 0);
    }
    return td_work_finish(&w, out, err);
}

td_status td_stage_backward(td_arena *a, const td_stage *s, td_work *out, td_err *err)
{
    td_work_builder w = {.arena = a};
    if (s->backward && s->last) {
        s->module->type->backward_after(s, &w);
        td_work_run(&w, 1, -1, 0);
    }
    if (s->backward &&
        (s->layers_train || s->input_grad)) { /* a frozen backbone stops behind the projector */
        layer_backward(s, &w);
        td_work_run(&w, s->n_layers, s->first_layer + s->n_layers - 1, -1);
        if (s->first) {
            s->module->type->backward_before(s, &w);
            td_work_run(&w, 1, -1, 0);
        }
    }
    return td_work_finish(&w, out, err);
}

/* ---- boundaries ---- */

td_stage_payload td_stage_payload_of(const td_stage *s)
{
    const int64_t inside = td_stage_region_tokens(s) * s->module->hidden,
                  last = s->tokens * s->module->type->output_width(s);
    return (td_stage_payload){.input = s->first ? 0 : (uint64_t)(inside * s->e),
                              .output = (uint64_t)((s->last ? last : inside) * s->e)};
}
