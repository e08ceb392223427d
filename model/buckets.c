/* Which parameters are reduced together, and when in the backward their gradients are complete. */
#include "model/lower.h"

#include <string.h>

typedef struct {
    td_arena *a;
    td_param *all;
    int32_t n;
    int64_t cap;
    bool failed;
} param_list;

static void keep(void *self, const td_param *p)
{
    param_list *l = self;
    if (l->n == l->cap) {
        const int64_t cap = l->cap == 0 ? 64 : 2 * l->cap;
        td_param *grown = l->failed ? NULL : TD_NEW(l->a, td_param, cap);
        if (grown == NULL) {
            l->failed = true;
            return;
        }
        if (l->n > 0)
            memcpy(grown, l->all, (size_t)l->n * sizeof *grown);
        l->all = grown;
        l->cap = cap;
    }
    l->all[l->n++] = *p;
}

/* Flattened parts of the backward that are done when the gradient of parameter `i` is. Runs: after,
 * layers, before. */
static int64_t done_after(const td_work *w, const td_stage *s, const param_list *l, int32_t i)
{
    int64_t parts = 0;
    bool layers_follow = false; /* parameters before the layers stand in front of them */
    for (int32_t k = i; k < l->n && !layers_follow; k++)
        layers_follow = l->all[k].layer >= 0;
    for (int32_t r = 0; r < w->n_runs; r++) {
        const td_part_run *run = &w->runs[r];
        const bool layers = run->layer0 >= 0;
        if (l->all[i].layer >= 0 && layers) /* from the last layer down to this one */
            return parts + (int64_t)run->n * (s->first_layer + s->n_layers - l->all[i].layer);
        parts += (int64_t)run->n * run->repeat;
        if (l->all[i].layer < 0 && !layers_follow && r == 0)
            return parts;
    }
    return parts;
}

/* See td_buckets.shared; of kv heads, which differ from rank to rank, each rank fills in its own.
 */
int64_t td_param_shared(const td_stage *s, const td_param *p)
{
    const bool kv = p->shard == TD_SHARD_KV;
    const bool adds = p->trainable && p->copies > 1 && (kv || s->plan->step.sequence_parallel);
    return adds ? p->local * (s->module->tp / p->copies) : 0;
}

td_status td_buckets_of_stage(td_arena *a, const td_stage *s, td_buckets *out, td_err *err)
{
    td_status st = TD_OK;
    param_list l = {.a = a};
    td_work backward;
    td_bucket *buckets;
    const td_plan *plan = s->plan;
    const int64_t dp = s->module->dp, least_dp = 1000000 * dp;
    const bool overlap = plan->step.grad_overlap &&
                         (plan->step.bucket_policy != TD_BUCKETS_REFERENCE || s->pp_rank == 0);
    const int64_t least =
        plan->step.bucket_elements > least_dp ? plan->step.bucket_elements : least_dp;
    int64_t pad = 1, open = 0;
    *out = (td_buckets){0};
    if (plan->optimizer.sharded && dp > 1) /* lcm(dp, 128) */
        for (pad = 128; pad % dp != 0; pad += 128)
            ;
    td_stage_params(s, keep, &l);
    buckets = TD_NEW(a, td_bucket, l.n + 1);
    if (l.failed || buckets == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the parameters of `%s`", s->module->name));
    TD_TRY(st, td_stage_backward(a, s, &backward, err));
    for (int32_t i = l.n - 1; i >= 0; i--) {
        const td_param *p = &l.all[i];
        out->weights += p->local;
        if (p->trainable) {
            open += p->local;
            out->shared += td_param_shared(s, p);
            buckets[out->n].after_part = done_after(&backward, s, &l, i);
        }
        if (open > 0 && ((overlap && open >= least && !p->joined) || i == 0)) {
            buckets[out->n].elements = (open + pad - 1) / pad * pad;
            out->elements += buckets[out->n++].elements;
            open = 0;
        }
    }
    out->buckets = buckets;
done:
    return st;
}
