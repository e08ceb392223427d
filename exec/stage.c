/* A stage's buffers, cut from one arena, and its passes over them. */
#include "exec/stage.h"
#include "exec/data.h"

#include <string.h>

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
        memmove(slot->input, (char *)slot->input + (size_t)(s->first_row * m->input_dim) * s->e,
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
        s->device->kernels->copy(s->device->self, td_stage_grad_in(s, mb), s->flow[0],
                                 s->r * s->h * (int64_t)s->e);
    TD_TRY(st, done(self, 0, err));
    for (int32_t r = 0; r < w->n_runs; r++)
        for (int32_t rep = 0; rep < w->runs[r].repeat; rep++) {
            s->layer = w->runs[r].layer0 < 0 ? -1 : w->runs[r].layer0 + rep * w->runs[r].layer_step;
            for (int32_t i = w->runs[r].first; i < w->runs[r].first + w->runs[r].n; i++) {
                TD_TRY(st, s->handlers[work][i].run(s, &w->parts[i]));
                s->device->poll(s->device->self);
                TD_TRY(st, done(self, ++n, err));
            }
        }
    if (backward && !s->stage.first && s->stage.input_grad)
        s->device->kernels->copy(s->device->self, s->flow[s->side_of_flow],
                                 td_stage_grad_out(s, mb), s->r * s->h * (int64_t)s->e);
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
    s->up = m->mlp == TD_MLP_SWIGLU ? 2 * s->f : s->f;
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
            const td_handler *found = td_stage_handler(&w->parts[k2]);
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
