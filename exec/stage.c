/* A stage's buffers, cut from one arena, and its passes over them. */
#include "exec/stage.h"
#include "exec/data.h"

#include <assert.h>
#include <stddef.h>
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

/* ---- data ---- */

static td_status feed_tokens(td_stage_run *s, int64_t sample0, int32_t mb, td_err *err)
{
    td_status st = TD_OK;
    const td_kernels *k = s->device->kernels;
    const int64_t seq = s->stage.module->seq, bytes = s->t * (int64_t)sizeof(int32_t);
    int32_t *tokens = s->staged_tokens + 2 * s->t * mb, *target = tokens + s->t;
    td_slot *slot = &s->slots[mb % s->n_slots];
    for (int32_t i = 0; i < s->stage.samples; i++)
        TD_TRY(st,
               td_dataset_tokens(s->data, sample0 + i, tokens + i * seq, target + i * seq, err));
    k->copy(s->device->self, tokens, slot->tokens, bytes);
    k->copy(s->device->self, target, slot->target, bytes);
done:
    return st;
}

static void round_rows(const td_stage_run *s, const float *from, int64_t n, act *to)
{
    if (s->e == sizeof(float))
        memcpy(to, from, (size_t)n * sizeof(float));
    else
        td_bf16_of(from, n, to);
}

/* Rows [low, high) of the lane's samples: those of this rank's region. */
static void feed_input(td_stage_run *s, int64_t sample0, int32_t mb)
{
    const td_kernels *k = s->device->kernels;
    const td_module *m = s->stage.module;
    const int64_t low = s->first_row, high = s->first_row + s->r, width = m->input_dim;
    const td_numbers numbers = td_data_input_numbers(s->stage.plan, s->module);
    char *input = s->slots[mb % s->n_slots].input, *staged = s->staged_input;
    staged = staged == NULL ? NULL : staged + (size_t)(mb * s->r * width) * s->e;
    for (int64_t i = low / m->seq; i * m->seq < high; i++) {
        const int64_t from = i * m->seq > low ? i * m->seq : low,
                      to = (i + 1) * m->seq < high ? (i + 1) * m->seq : high;
        const size_t at = (size_t)((from - low) * width) * s->e;
        const int64_t sample = td_dataset_sample(s->data, sample0 + i);
        if (staged == NULL) {
            k->fill_normal(s->device->self, numbers.key, 1.0, to - from, width,
                           sample * m->seq + from - i * m->seq, 0, width, false, input + at);
            continue;
        }
        td_dataset_input(s->data, s->module, sample, s->sample);
        round_rows(s, s->sample + (from - i * m->seq) * width, (to - from) * width, staged + at);
        k->copy(s->device->self, staged + at, input + at, (to - from) * width * (int64_t)s->e);
    }
}

td_status td_stage_feed(td_stage_run *s, int64_t step, int32_t mb, td_err *err)
{
    td_status st = TD_OK;
    const int64_t sample0 = td_data_sample(s->stage.plan, step, s->module, s->dp_rank, mb, 0);
    const bool language = s->stage.module->type->language;
    if (language && (s->stage.first || s->stage.last))
        TD_TRY(st, feed_tokens(s, sample0, mb, err));
    if (!language && s->stage.first)
        feed_input(s, sample0, mb);
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

/* Whose pointer a piece is, by how often it stands in the arena. */
typedef enum { OF_RUN, OF_RING, OF_EDGE, OF_INPUT, OF_SLOT, OF_LAYER, OF_NEXT_LAYER } home;

#define RUN(field) OF_RUN, offsetof(td_stage_run, field)
#define RING(field) OF_RING, offsetof(td_stage_run, field)
#define EDGE(field) OF_EDGE, offsetof(td_stage_run, field)
#define SLOT(field) OF_SLOT, offsetof(td_slot, field)
#define LAYER(field) OF_LAYER, offsetof(td_layer_kept, field)
static const struct {
    home home;
    size_t field;
} homes[TD_N_PIECES] = {
    [TD_PIECE_WEIGHTS] = {RUN(w)},
    [TD_PIECE_GRADIENTS] = {RUN(g)},
    [TD_PIECE_REDUCED] = {RUN(reduced)},
    [TD_PIECE_TENSOR_SUM] = {RUN(tensor_sum)},
    [TD_PIECE_MASTER] = {RUN(master)},
    [TD_PIECE_MOMENT1] = {RUN(m)},
    [TD_PIECE_MOMENT2] = {RUN(v)},
    [TD_PIECE_STATE] = {RUN(state)},
    [TD_PIECE_SPANS] = {RUN(spans)},
    [TD_PIECE_WORKSPACE] = {RUN(workspace)},
    [TD_PIECE_INPUT] = {OF_INPUT, 0},
    [TD_PIECE_OUTPUT] = {OF_NEXT_LAYER, offsetof(td_layer_kept, x)},
    [TD_PIECE_Y1] = {LAYER(y1)},
    [TD_PIECE_QKV] = {LAYER(qkv)},
    [TD_PIECE_AO] = {LAYER(ao)},
    [TD_PIECE_LSE] = {LAYER(lse)},
    [TD_PIECE_X2] = {LAYER(x2)},
    [TD_PIECE_Y2] = {LAYER(y2)},
    [TD_PIECE_GU] = {LAYER(gu)},
    [TD_PIECE_AV] = {LAYER(av)},
    [TD_PIECE_ST1] = {LAYER(st1)},
    [TD_PIECE_ST2] = {LAYER(st2)},
    [TD_PIECE_PATCHES] = {SLOT(input)},
    [TD_PIECE_TOKENS] = {SLOT(tokens)},
    [TD_PIECE_TARGET] = {SLOT(target)},
    [TD_PIECE_YF] = {SLOT(yf)},
    [TD_PIECE_STF] = {SLOT(stf)},
    [TD_PIECE_LOGITS] = {SLOT(logits)},
    [TD_PIECE_MAX] = {SLOT(max)},
    [TD_PIECE_SUMS] = {SLOT(sums)},
    [TD_PIECE_P1] = {SLOT(p1)},
    [TD_PIECE_P2] = {SLOT(p2)},
    [TD_PIECE_OUT] = {SLOT(out)},
    [TD_PIECE_FULL] = {RUN(full)},
    [TD_PIECE_WIDE1] = {RUN(wide1)},
    [TD_PIECE_WIDE2] = {RUN(wide2)},
    [TD_PIECE_SIDE] = {RUN(side)},
    [TD_PIECE_FLOW] = {RING(flow)},
    [TD_PIECE_GRAD_IN] = {RING(grad_in)},
    [TD_PIECE_GRAD_OUT] = {RING(grad_out)},
    [TD_PIECE_BRIDGED] = {EDGE(bridged)},
    [TD_PIECE_BRIDGED_GRAD] = {EDGE(bridged_grad)},
};
#undef RUN
#undef RING
#undef EDGE
#undef SLOT
#undef LAYER

typedef struct {
    td_stage_run *s;
    char *base;
} placer;

static void place(void *self, const td_piece *p)
{
    const placer *to = self;
    td_stage_run *s = to->s;
    const home owner = homes[p->kind].home;
    for (int32_t i = 0; i < p->n_i; i++)
        for (int32_t j = 0; j < p->n_j; j++) {
            void *at = to->base + p->offset + (uint64_t)i * p->stride_i + (uint64_t)j * p->stride_j;
            char *const of[] = {[OF_RUN] = (char *)s,
                                [OF_RING] = (char *)s + (size_t)i * sizeof(act *),
                                [OF_EDGE] = (char *)s,
                                [OF_INPUT] = (char *)&s->inputs[i],
                                [OF_SLOT] = (char *)&s->slots[i % s->n_slots],
                                [OF_LAYER] = (char *)&s->slots[i % s->n_slots].layers[j],
                                [OF_NEXT_LAYER] = (char *)&s->slots[i % s->n_slots].layers[j + 1]};
            char *field = of[owner] + homes[p->kind].field;
            if (owner == OF_EDGE)
                memcpy(&field, field + (size_t)i * sizeof(act **), sizeof field);
            memcpy(owner == OF_EDGE ? field + (size_t)p->edge * sizeof(act *) : field, &at,
                   sizeof at);
        }
    if (p->kind == TD_PIECE_WORKSPACE)
        s->device->workspace(s->device->self, s->workspace, p->bytes);
}

static void measure(td_stage_run *s)
{
    const td_stage_sizes *z = &s->sizes;
    s->t = z->t;
    s->r = z->r;
    s->h = z->h;
    s->q = z->q;
    s->kv = z->kv;
    s->f = z->f;
    s->up = z->up;
    s->vocab = z->vocab;
    s->out_width = z->out_width;
    s->proj = z->proj;
    s->sp = z->sp;
    s->n_slots = z->n_slots;
    s->n_inputs = z->n_inputs;
    s->first_row = s->sp ? s->r * s->tp_rank : 0;
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

/* Pointers to what stands in the arena; the first values of all parameters. */
static td_status take_arena(td_stage_run *s, td_err *err)
{
    const td_plan *plan = s->stage.plan;
    const int32_t p = s->stage.pp_rank;
    s->arena_bytes = td_stage_pieces(plan, s->pipe, s->module, p, &s->sizes, NULL, NULL);
    placer to = {.s = s, .base = s->device->arena(s->device->self, s->arena_bytes)};
    if (to.base == NULL)
        return td_fail(err, TD_NOMEM, "rank %d: no memory for an arena of %.2f GiB", (int)s->rank,
                       (double)s->arena_bytes / (1024.0 * 1024.0 * 1024.0));
    td_stage_pieces(plan, s->pipe, s->module, p, &s->sizes, place, &to);
    for (int32_t i = 0; i < s->tensors.n; i++) {
        const td_tensor *t = &s->tensors.all[i];
        td_tensor_init(t, &s->stage, s->device->kernels, s->device->self, 0, t->param.local, false,
                       (char *)s->w + (size_t)t->offset * s->e);
    }
    return TD_OK;
}

static td_status take_tables(td_arena *a, td_stage_run *s, td_err *err)
{
    bool whole = true;
    s->inputs = TD_NEW(a, act *, s->n_inputs);
    s->slots = TD_NEW(a, td_slot, s->n_slots);
    for (int32_t i = 0; s->slots != NULL && i < s->n_slots; i++) {
        s->slots[i].layers = TD_NEW(a, td_layer_kept, s->stage.n_layers + 1);
        whole = whole && s->slots[i].layers != NULL;
    }
    for (int32_t i = 0; i < 2; i++) {
        s->bridged[i] = TD_NEW(a, act *, s->pipe->n_edges);
        s->bridged_grad[i] = TD_NEW(a, act *, s->pipe->n_edges);
        whole = whole && s->bridged[i] != NULL && s->bridged_grad[i] != NULL;
    }
    return whole && s->inputs != NULL && s->slots != NULL
               ? TD_OK
               : td_fail(err, TD_NOMEM, "rank %d: no memory for %d microbatches in flight",
                         (int)s->rank, (int)s->n_slots);
}

static td_status take_staging(td_arena *a, td_stage_run *s, td_err *err)
{
    const td_module *m = s->stage.module;
    const td_device *d = s->device;
    const size_t n = (size_t)s->stage.plan->step.microbatches;
    const bool tokens = m->type->language && (s->stage.first || s->stage.last);
    const bool rows = !m->type->language && s->stage.first && td_dataset_has(s->data, s->module);
    if (tokens)
        s->staged_tokens = d->staging(d->self, n * 2 * (size_t)s->t * sizeof(int32_t));
    if (rows) {
        s->staged_input = d->staging(d->self, n * (size_t)(s->r * m->input_dim) * s->e);
        s->sample = TD_NEW(a, float, (int64_t)m->seq * m->input_dim);
    }
    if ((tokens && s->staged_tokens == NULL) ||
        (rows && (s->staged_input == NULL || s->sample == NULL)))
        return td_fail(err, TD_NOMEM, "rank %d: no memory for the samples of a step", (int)s->rank);
    return TD_OK;
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
    td_coord coord;
    TD_TRY(st, td_grid_coord(&p->plan->modules[stream->module].grid, rank, &coord, err));
    s.stage = td_stage_of(p->plan, stream->module, stream->pp_rank);
    s.tp_rank = coord.c[TD_AXIS_TP];
    s.dp_rank = coord.c[TD_AXIS_DP];
    s.tp_chan = chan_of_kind(&s, TD_COMM_TENSOR);
    s.dp_chan = chan_of_kind(&s, TD_COMM_DATA);
    s.e = (size_t)s.stage.e;
    TD_TRY(st, td_stage_sizes_of(a, p->plan, pipe, stream->module, stream->pp_rank, &s.sizes, err));
    measure(&s);
    TD_TRY(st, td_tensors_of_stage(a, &s.stage, s.tp_rank, &s.tensors, err));
    assert(s.tensors.elements == s.sizes.elements);
    TD_TRY(st, find_handlers(a, &s, err));
    TD_TRY(st, take_tables(a, &s, err));
    TD_TRY(st, td_dataset_open(a, p->plan, &s.data, err));
    TD_TRY(st, take_staging(a, &s, err));
    TD_TRY(st, take_arena(&s, err));
    *out = s;
done:
    if (st != TD_OK)
        td_dataset_close(s.data);
    return st;
}

void td_stage_close(td_stage_run *s)
{
    td_dataset_close(s->data);
    s->data = NULL;
}
