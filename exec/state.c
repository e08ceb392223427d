/* The optimizer's state of one rank: where every piece of it stands. */
#include "exec/state.h"
#include "exec/numbers.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(td_mimo_state) <= TD_STATE_BYTES, "the memory model has room for it");
static_assert(sizeof(td_mimo_span) == TD_SPAN_BYTES && (int)TD_MIMO_SPAN == (int)TD_SPAN,
              "the memory model counts spans");

void td_state_bucket(const td_state *s, int32_t bucket, int64_t *first, int64_t *at)
{
    *first = *at = 0;
    for (int32_t b = 0; b < bucket; b++) {
        *first += s->stage->sizes.buckets.buckets[b].elements;
        *at += s->stage->sizes.buckets.buckets[b].elements / s->shards;
    }
}

/* Cuts this rank's shard of every bucket at the borders of tensors. Counts only where `out` is
 * NULL. */
static int32_t cut_pieces(const td_state *s, td_state_piece *out)
{
    const td_stage_run *r = s->stage;
    int32_t n = 0;
    for (int32_t b = 0; b < r->sizes.buckets.n; b++) {
        int64_t first, at;
        td_state_bucket(s, b, &first, &at);
        const int64_t size = r->sizes.buckets.buckets[b].elements / s->shards,
                      low = first + s->shard * size, high = low + size;
        for (int32_t i = 0; i < r->tensors.n; i++) {
            const td_tensor *t = &r->tensors.all[i];
            const int64_t end = t->offset + t->param.local;
            const int64_t from = t->offset > low ? t->offset : low, to = end < high ? end : high;
            if (!t->param.trainable || from >= to)
                continue;
            if (out != NULL)
                out[n] = (td_state_piece){
                    .tensor = t, .first = from - t->offset, .n = to - from, .at = at + from - low};
            n++;
        }
    }
    return n;
}

/* Counts only where `out` is NULL. */
static int64_t cut_spans(const td_state *s, td_mimo_span *out)
{
    const td_stage_run *r = s->stage;
    int64_t n = 0;
    for (int32_t i = 0; i < s->n_pieces; i++) {
        const td_state_piece *p = &s->pieces[i];
        for (int64_t k = 0; k < p->n; k += TD_MIMO_SPAN, n++) {
            if (out == NULL)
                continue;
            const int64_t flat = p->tensor->offset + p->first + k, at = p->at + k;
            char *w = (char *)r->w + (size_t)flat * r->e;
            out[n] = (td_mimo_span){
                .param = s->own_master ? r->master + at : (float *)(void *)w,
                .m = r->m + at,
                .v = r->v + at,
                .grad = s->reduced == r->g ? r->g + flat : s->reduced + at,
                .copy = s->own_master ? w : NULL,
                .n = p->n - k < TD_MIMO_SPAN ? p->n - k : TD_MIMO_SPAN,
                .weight = td_mimo_weight(p->tensor->counts, s->shards > 1, r->dp_rank),
                .decay = p->tensor->param.decay};
        }
    }
    return n;
}

td_status td_state_open(td_arena *a, td_stage_run *stage, td_state *out, td_err *err)
{
    td_status st = TD_OK;
    const td_device *d = stage->device;
    td_mimo_span *spans = NULL;
    td_state s = {.stage = stage,
                  .shards = stage->sizes.shards,
                  .shard = stage->sizes.shards > 1 ? stage->dp_rank : 0,
                  .reduced = stage->sizes.shards > 1 ? stage->reduced : stage->g,
                  .own_master = stage->e != sizeof(float),
                  .spans = stage->spans};
    s.n_pieces = cut_pieces(&s, NULL);
    td_state_piece *pieces = TD_NEW(a, td_state_piece, s.n_pieces);
    if (pieces == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "rank %d: no memory for optimizer state", (int)stage->rank));
    cut_pieces(&s, pieces);
    s.pieces = pieces;
    s.n_spans = cut_spans(&s, NULL);
    assert(s.n_spans <= stage->sizes.n_spans);
    spans = malloc((size_t)(s.n_spans + 1) * sizeof *spans);
    if (spans == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "rank %d: no memory for optimizer state", (int)stage->rank));
    cut_spans(&s, spans);
    TD_TRY(st, d->fetch(d->self, spans, s.spans, (size_t)s.n_spans * sizeof *spans, err));
    for (int32_t i = 0; s.own_master && i < s.n_pieces; i++)
        td_tensor_init(pieces[i].tensor, &stage->stage, d->kernels, d->self, pieces[i].first,
                       pieces[i].n, true, stage->master + pieces[i].at);
    *out = s;
done:
    free(spans);
    return st;
}

void td_state_tensor_sum(const td_state *s, bool into)
{
    int64_t at = 0;
    const td_stage_run *r = s->stage;
    for (int32_t i = 0; i < r->tensors.n; i++) {
        const td_tensor *t = &r->tensors.all[i];
        const int64_t shared = td_param_shared(&r->stage, &t->param);
        const int64_t own =
            at +
            (t->param.shard == TD_SHARD_KV ? r->tp_rank / t->param.copies * t->param.local : 0);
        for (int32_t k = 0; shared > 0 && k < s->n_pieces; k++) {
            const td_state_piece *p = &s->pieces[k];
            if (p->tensor != t)
                continue;
            float *there = r->tensor_sum + own + p->first,
                  *here = s->reduced == r->g ? r->g + t->offset + p->first : s->reduced + p->at;
            r->device->kernels->copy(r->device->self, into ? here : there, into ? there : here,
                                     p->n * (int64_t)sizeof(float));
        }
        at += shared;
    }
}

/* ---- in host memory ---- */

/* Parameters of all tensors, and from the device's master what this rank has of it. */
static td_status bring_weights(td_state *s, float *w, td_err *err)
{
    td_status st = TD_OK;
    const td_stage_run *r = s->stage;
    const td_device *d = r->device;
    const int64_t n = r->tensors.elements;
    void *rounded = s->own_master ? malloc((size_t)n * r->e + 1) : w;
    if (rounded == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its state", (int)r->rank));
    TD_TRY(st, d->fetch(d->self, r->w, rounded, (size_t)n * r->e, err));
    if (s->own_master)
        td_bf16_widen(rounded, n, w);
    for (int32_t i = 0; s->own_master && i < s->n_pieces; i++)
        TD_TRY(st, d->fetch(d->self, r->master + s->pieces[i].at,
                            w + s->pieces[i].tensor->offset + s->pieces[i].first,
                            (size_t)s->pieces[i].n * sizeof(float), err));
done:
    if (s->own_master)
        free(rounded);
    return st;
}

td_status td_state_download(td_state *s, td_run_state *out, td_err *err)
{
    td_status st = TD_OK;
    const td_stage_run *r = s->stage;
    const td_device *d = r->device;
    const size_t shard = (size_t)(r->sizes.buckets.elements / s->shards);
    td_mimo_state numbers;
    *out = (td_run_state){.tensors = r->tensors,
                          .n_spans = s->n_pieces,
                          .sharded = s->shards > 1,
                          .lane = r->dp_rank,
                          .n_updates = &s->n_updates};
    out->w = malloc((size_t)r->tensors.elements * sizeof(float) + 1);
    out->moments = malloc(2 * shard * sizeof(float) + 1);
    out->spans = malloc((size_t)(s->n_pieces + 1) * sizeof *out->spans);
    if (out->w == NULL || out->moments == NULL || out->spans == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its state", (int)r->rank));
    for (int32_t i = 0; i < s->n_pieces; i++)
        out->spans[i] = (td_state_span){.tensor = s->pieces[i].tensor,
                                        .first = s->pieces[i].first,
                                        .n = s->pieces[i].n,
                                        .m = out->moments + s->pieces[i].at,
                                        .v = out->moments + shard + s->pieces[i].at};
    TD_TRY(st, bring_weights(s, out->w, err));
    TD_TRY(st, d->fetch(d->self, r->m, out->moments, shard * sizeof(float), err));
    TD_TRY(st, d->fetch(d->self, r->v, out->moments + shard, shard * sizeof(float), err));
    TD_TRY(st, d->fetch(d->self, r->state, &numbers, sizeof numbers, err));
    s->n_updates = numbers.n_updates;
done:
    return st;
}

td_status td_state_upload(td_state *s, const td_run_state *from, td_err *err)
{
    td_status st = TD_OK;
    const td_stage_run *r = s->stage;
    const td_device *d = r->device;
    const int64_t n = r->tensors.elements;
    const size_t shard = (size_t)(r->sizes.buckets.elements / s->shards);
    const td_mimo_state numbers = {.n_updates = s->n_updates};
    void *rounded = s->own_master ? malloc((size_t)n * r->e + 1) : from->w;
    if (rounded == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its state", (int)r->rank));
    if (s->own_master)
        td_bf16_of(from->w, n, rounded);
    TD_TRY(st, d->fetch(d->self, rounded, r->w, (size_t)n * r->e, err));
    for (int32_t i = 0; s->own_master && i < s->n_pieces; i++)
        TD_TRY(st,
               d->fetch(d->self, from->w + s->pieces[i].tensor->offset + s->pieces[i].first,
                        r->master + s->pieces[i].at, (size_t)s->pieces[i].n * sizeof(float), err));
    TD_TRY(st, d->fetch(d->self, from->moments, r->m, shard * sizeof(float), err));
    TD_TRY(st, d->fetch(d->self, from->moments + shard, r->v, shard * sizeof(float), err));
    TD_TRY(st, d->fetch(d->self, &numbers, r->state, sizeof numbers, err));
done:
    if (s->own_master)
        free(rounded);
    return st;
}

void td_state_release(td_run_state *state)
{
    free(state->w);
    free(state->moments);
    free(state->spans);
    *state = (td_run_state){0};
}
