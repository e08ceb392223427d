/* The plans that a calibration runs. */
#include "cli/calibrate_probes.h"
#include "model/module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the tables ---- */

/* A module of a probe; layers 0: there is none. dp 0: as many lanes as there are GPUs left. */
typedef struct {
    int32_t layers, hidden, heads, kv_heads, ffn, seq, width; /* width: vocab or input_dim */
    int32_t tp, pp, dp;
} side;

typedef struct {
    const char *name;
    int32_t gpus; /* needed at least */
    side images, language;
    int32_t microbatches, micro_batch;
    const char *step; /* more of `step:` */
    bool twice;
    int32_t hot;
} row;

/*
 * On GPUs: the sizes of 7B-class models (LLaMA, Vicuna: 4096 wide), of one size below and one
 * above, of ViT-L/14, with 1, 2, 4 and 8 ranks to a tensor and a data group. All GPUs work at once,
 * as in a step. The same shapes in a pipeline with one microbatch, in replicas and in
 * tensor-parallel pairs are what the curve of clocks and the heats are told from, and long passes
 * between rests what the window is; the hot ones are busy for some five seconds, and nobody looks
 * at their parts.
 */
#define VIT_L(tp, pp, dp)                                                                          \
    {                                                                                              \
        2, 1024, 16, 16, 4096, 576, 588, tp, pp, dp                                                \
    }
#define LM_2K(tp, pp, dp)                                                                          \
    {                                                                                              \
        2, 2048, 16, 4, 5632, 2048, 32000, tp, pp, dp                                              \
    }
#define LM_7B(layers, tp, pp, dp)                                                                  \
    {                                                                                              \
        layers, 4096, 32, 32, 11008, 2048, 32000, tp, pp, dp                                       \
    }
#define LM_8B(tp, pp, dp)                                                                          \
    {                                                                                              \
        1, 4096, 32, 8, 14336, 4096, 128256, tp, pp, dp                                            \
    }
#define LM_70B(tp, pp, dp)                                                                         \
    {                                                                                              \
        1, 8192, 64, 8, 28672, 2048, 32000, tp, pp, dp                                             \
    }
#define NONE                                                                                       \
    {                                                                                              \
        0                                                                                          \
    }
static const row on_cuda[] = {
    {"7b", 1, NONE, LM_7B(2, 1, 1, 0), 4, 1, "", true, 0},
    {"7b-2", 1, NONE, LM_7B(2, 1, 1, 0), 2, 2, "recompute: selective", false, 0},
    {"2k-4", 1, NONE, LM_2K(1, 1, 0), 2, 4, "", false, 0},
    {"8b", 1, NONE, LM_8B(1, 1, 0), 2, 1, "", false, 0},
    {"vit", 2, VIT_L(1, 1, 1), LM_2K(1, 1, 1), 8, 2, "", false, 0},
    {"pp2-idle", 2, NONE, LM_7B(2, 1, 2, 0), 1, 1, "", false, 0},
    {"tp2", 2, NONE, LM_7B(2, 2, 1, 0), 4, 1, "", false, 0},
    {"tp2-shards", 2, NONE, LM_7B(2, 2, 1, 0), 8, 2, "sequence_parallel: true", false, 0},
    {"7b-hot", 1, NONE, LM_7B(2, 1, 1, 0), 16, 1, "", false, 30},
    {"rests", 2, NONE, LM_7B(8, 1, 2, 0), 6, 2, "", false, 15},
    {"tp2-hot", 2, NONE, LM_7B(2, 2, 1, 0), 16, 2, "", false, 30},
    {"vit-fan", 4, VIT_L(1, 1, 2), LM_7B(2, 2, 1, 1), 8, 2, "", false, 0},
    {"tp4", 4, NONE, LM_70B(4, 1, 0), 4, 1, "", false, 0},
    {"tp8", 8, NONE, LM_70B(8, 1, 0), 4, 1, "", false, 0},
    {"vit-tp2", 8, VIT_L(2, 2, 1), LM_7B(2, 2, 2, 1), 8, 1, "", false, 0},
};

/* On the cores of one machine, in fp32: seconds for them all. */
#define SMALL(layers, tp, pp, dp)                                                                  \
    {                                                                                              \
        layers, 128, 4, 4, 384, 64, 256, tp, pp, dp                                                \
    }
#define LARGER(layers, tp, pp, dp)                                                                 \
    {                                                                                              \
        layers, 256, 8, 4, 704, 64, 1024, tp, pp, dp                                               \
    }
#define PAYLOAD(layers, tp, pp, dp) /* 512 KiB a sample between stages, for little work */         \
    {                                                                                              \
        2 * layers, 512, 8, 2, 64, 256, 64, tp, pp, dp                                             \
    }
#define PICTURES(tp, pp, dp)                                                                       \
    {                                                                                              \
        2, 128, 4, 4, 512, 16, 108, tp, pp, dp                                                     \
    }
static const row on_host[] = {
    {"larger", 1, NONE, LARGER(2, 1, 1, 1), 4, 1, "", false, 0},
    {"small", 1, NONE, SMALL(2, 1, 1, 1), 4, 4, "recompute: full", false, 0},
    {"tp2", 2, NONE, LARGER(2, 2, 1, 1), 4, 1, "", false, 0},
    {"pp2", 2, NONE, LARGER(2, 1, 2, 1), 6, 1, "", false, 0},
    {"dp2", 2, NONE, SMALL(2, 1, 1, 2), 4, 2, "", false, 0},
    {"pictures", 2, PICTURES(1, 1, 1), SMALL(2, 1, 1, 1), 4, 2, "", false, 0},
    {"payload", 2, NONE, PAYLOAD(1, 1, 2, 1), 4, 1, "", false, 0},
    {"payloads", 2, NONE, PAYLOAD(1, 1, 2, 1), 4, 8, "", false, 0},
    {"bridge", 4, PICTURES(1, 1, 2), SMALL(2, 1, 2, 1), 4, 4, "", false, 0},
};

/* ---- text ---- */

typedef struct {
    char *text;
    size_t size;
    FILE *f;
} writer;

static void put_head(FILE *f, const td_probe_machine *m, const char *name, int32_t gpus)
{
    fprintf(f,
            "name: probe-%s\n"
            "cluster: {groups: [{count: 1, node: {gpus: %d, gpu: {name: \"%s\", memory_gib: %.3f}, "
            "nvlink_gb_s: %.6g, nvlink_latency_us: %.6g",
            name, (int)gpus, m->gpu_name, m->memory_bytes / (1024.0 * 1024 * 1024),
            m->link_bytes_per_s / 1e9, m->link_latency_s * 1e6);
    if (m->cores > 0)
        fprintf(f, ", cores: %d", (int)m->cores);
    fprintf(f, "}}]}\nmodules:\n");
}

static int32_t ranks_of(const side *s)
{
    return s->layers == 0 ? 0 : s->tp * s->pp * s->dp;
}

static void put_side(FILE *f, const char *name, const char *type, const char *width, const side *s,
                     int32_t offset)
{
    if (s->layers > 0)
        fprintf(f,
                "  %s: {type: %s, layers: %d, hidden: %d, heads: %d, kv_heads: %d, ffn: %d, "
                "seq: %d, %s: %d, parallel: {tp: %d, pp: %d, dp: %d, offset: %d}}\n",
                name, type, (int)s->layers, (int)s->hidden, (int)s->heads, (int)s->kv_heads,
                (int)s->ffn, (int)s->seq, width, (int)s->width, (int)s->tp, (int)s->pp, (int)s->dp,
                (int)offset);
}

static void put_row(FILE *f, const td_probe_machine *m, const row *r)
{
    side language = r->language;
    const int32_t images = ranks_of(&r->images);
    if (language.dp == 0)
        language.dp = (m->gpus - images) / (language.tp * language.pp);
    put_head(f, m, r->name, images + ranks_of(&language));
    put_side(f, "images", "vision", "input_dim", &r->images, 0);
    put_side(f, "language", "language", "vocab", &language, images);
    fprintf(f, "step: {microbatches: %d, micro_batch: %d%s%s}\nprecision: %s\n",
            (int)r->microbatches, (int)r->micro_batch, r->step[0] == '\0' ? "" : ", ", r->step,
            m->cuda ? "bf16" : "fp32");
}

/* ---- from plans ---- */

typedef struct {
    int32_t module, tp, pp, dp, offset;
} cut;

static void put_module(FILE *f, const td_plan *plan, const cut *c)
{
    const td_module *m = &plan->modules[c->module];
    const bool language = c->module == plan->language;
    fprintf(f,
            "  %s: {type: %s, layers: %d, hidden: %d, heads: %d, kv_heads: %d, head_dim: %d, "
            "ffn: %d, mlp: %s, seq: %d, %s: %d, %s%s%sparallel: {tp: %d, pp: %d, dp: %d, offset: "
            "%d}}\n",
            m->name, m->type->name, (int)c->pp, (int)m->hidden, (int)m->heads, (int)m->kv_heads,
            (int)m->head_dim, (int)m->ffn, td_mlp_names[m->mlp], (int)m->seq,
            language ? "vocab" : "input_dim", (int)(language ? m->vocab : m->input_dim),
            m->frozen == TD_FROZEN_FALSE ? "" : "frozen: ",
            m->frozen == TD_FROZEN_FALSE ? "" : td_frozen_names[m->frozen],
            m->frozen == TD_FROZEN_FALSE ? "" : ", ", (int)c->tp, (int)c->pp, (int)c->dp,
            (int)c->offset);
}

static void put_plan(FILE *f, const td_probe_machine *m, const td_plan *plan, const char *name,
                     int32_t n, const cut *cuts, int32_t microbatches, int32_t micro_batch)
{
    int32_t gpus = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t end = cuts[i].offset + cuts[i].tp * cuts[i].pp * cuts[i].dp;
        gpus = end > gpus ? end : gpus;
    }
    put_head(f, m, name, gpus);
    for (int32_t i = 0; i < n; i++)
        put_module(f, plan, &cuts[i]);
    fprintf(f,
            "rank_order: [%s, %s, %s, %s]\n"
            "step: {microbatches: %d, micro_batch: %d, shape_exchange: %s, grad_overlap: %s, "
            "sequence_parallel: %s, recompute: %s, bucket_elements: %lld, bucket_policy: %s}\n"
            "optimizer: {sharded: %s}\nprecision: %s\n",
            td_axis_names[plan->rank_order[0]], td_axis_names[plan->rank_order[1]],
            td_axis_names[plan->rank_order[2]], td_axis_names[plan->rank_order[3]],
            (int)microbatches, (int)micro_batch, plan->step.shape_exchange ? "true" : "false",
            plan->step.grad_overlap ? "true" : "false",
            plan->step.sequence_parallel ? "true" : "false",
            td_recompute_names[plan->step.recompute], (long long)plan->step.bucket_elements,
            td_bucket_policy_names[plan->step.bucket_policy],
            plan->optimizer.sharded ? "true" : "false", m->cuda ? "bf16" : "fp32");
}

/* ---- all of them ---- */

typedef struct {
    td_arena *a;
    const td_probe_machine *m;
    td_probe *probes;
    int32_t n;
    td_err *err;
} list;

static td_status no_memory(const list *l)
{
    return td_fail(l->err, TD_NOMEM, "no memory for the plans to measure with");
}

static td_status open_text(const list *l, writer *w)
{
    w->f = open_memstream(&w->text, &w->size);
    return w->f == NULL ? no_memory(l) : TD_OK;
}

enum { WARM_STEPS = 50 }; /* some three seconds */

/* The same plan under another name is there already. */
static bool is_known(const list *l, const char *text)
{
    bool known = false;
    for (int32_t i = 0; i < l->n; i++)
        known = known || strcmp(strchr(l->probes[i].text, '\n'), strchr(text, '\n')) == 0;
    return known;
}

static td_status add(list *l, writer *w, const char *name, int32_t steps, bool twice, int32_t hot)
{
    fclose(w->f);
    if (is_known(l, w->text)) {
        free(w->text);
        return TD_OK;
    }
    td_probe *p = &l->probes[l->n++];
    *p = (td_probe){.name = td_arena_printf(l->a, "%s", name),
                    .text = td_arena_printf(l->a, "%s", w->text),
                    .steps = steps,
                    .twice = twice,
                    .hot = hot > 0,
                    .warmup = hot > 0      ? hot
                              : l->m->cuda ? WARM_STEPS
                                           : 2};
    free(w->text);
    return p->name == NULL || p->text == NULL ? no_memory(l) : TD_OK;
}

static bool fits(const td_probe_machine *m, const row *r)
{
    const int32_t lanes = r->language.dp == 0 ? 1 : r->language.dp;
    return r->gpus <= m->gpus &&
           ranks_of(&r->images) + r->language.tp * r->language.pp * lanes <= m->gpus;
}

static td_status from_table(list *l, bool only_first)
{
    td_status st = TD_OK;
    const row *rows = l->m->cuda ? on_cuda : on_host;
    const size_t n = l->m->cuda ? sizeof on_cuda / sizeof *rows : sizeof on_host / sizeof *rows;
    writer w;
    for (size_t i = 0; i < n && (!only_first || l->n == 0); i++) {
        if (!fits(l->m, &rows[i]))
            continue;
        TD_TRY(st, open_text(l, &w));
        put_row(w.f, l->m, &rows[i]);
        TD_TRY(st, add(l, &w, rows[i].name, 4, rows[i].twice, rows[i].hot));
    }
done:
    return st;
}

/* The whole layout, one layer a stage; twice the microbatches that fill the pipeline. */
static td_status whole(list *l, const td_plan *plan, int32_t number)
{
    td_status st = TD_OK;
    writer w;
    int32_t stages = 0;
    cut *cuts = TD_NEW(l->a, cut, plan->n_modules);
    if (cuts == NULL)
        TD_TRY(st, no_memory(l));
    for (int32_t i = 0; i < plan->n_modules; i++) {
        const td_module *m = &plan->modules[i];
        cuts[i] = (cut){i, m->tp, m->pp, m->dp, m->offset};
        stages += m->pp;
    }
    const int32_t microbatches =
        plan->step.microbatches < 2 * stages ? plan->step.microbatches : 2 * stages;
    const char *name = td_arena_printf(l->a, "plan%d", (int)number);
    if (name == NULL)
        TD_TRY(st, no_memory(l));
    TD_TRY(st, open_text(l, &w));
    put_plan(w.f, l->m, plan, name, plan->n_modules, cuts, microbatches, plan->step.micro_batch);
    TD_TRY(st, add(l, &w, name, 4, l->m->cuda && number == 0, 0));
done:
    return st;
}

/* A part of the layout: four microbatches of a lane's samples. */
static td_status piece(list *l, const td_plan *plan, const char *name, int32_t n, const cut *cuts,
                       int32_t samples)
{
    td_status st = TD_OK;
    writer w;
    if (name == NULL)
        TD_TRY(st, no_memory(l));
    TD_TRY(st, open_text(l, &w));
    put_plan(w.f, l->m, plan, name, n, cuts, 4, samples);
    TD_TRY(st, add(l, &w, name, 4, l->m->cuda && l->n == 0, 0));
done:
    return st;
}

/* What the ranks of the language model say to each other: two stages, two replicas. */
static td_status by_pair(list *l, const td_plan *plan, int32_t number)
{
    td_status st = TD_OK;
    const td_module *m = &plan->modules[plan->language];
    const int32_t samples = td_plan_lane_samples(plan, plan->language);
    const cut stages[] = {{plan->language, m->tp, 2, 1, 0}};
    const cut replicas[] = {{plan->language, m->tp, 1, 2, 0}};
    if (m->pp > 1 && 2 * m->tp <= l->m->gpus)
        TD_TRY(st, piece(l, plan, td_arena_printf(l->a, "plan%d-stages", (int)number), 1, stages,
                         samples));
    if (m->dp > 1 && 2 * m->tp <= l->m->gpus)
        TD_TRY(st, piece(l, plan, td_arena_printf(l->a, "plan%d-replicas", (int)number), 1,
                         replicas, samples));
done:
    return st;
}

/* The language model by itself, then each encoder before it, with the samples a lane of theirs has.
 */
static td_status by_module(list *l, const td_plan *plan, int32_t number)
{
    td_status st = TD_OK;
    bool any = false;
    for (int32_t i = 0; i < plan->n_modules; i++) {
        const bool language = i == plan->language;
        const int32_t tp = plan->modules[i].tp, whole_tp = plan->modules[plan->language].tp;
        /* What follows an encoder need not be whole where there is no room for it. */
        const int32_t language_tp = tp + whole_tp > l->m->gpus ? 1 : whole_tp;
        const cut cuts[] = {{i, tp, 1, 1, 0}, {plan->language, language_tp, 1, 1, tp}};
        if (tp + (language ? 0 : language_tp) > l->m->gpus)
            continue;
        any = true;
        TD_TRY(st, piece(l, plan,
                         td_arena_printf(l->a, "plan%d-%s", (int)number, plan->modules[i].name),
                         language ? 1 : 2, cuts, td_plan_lane_samples(plan, i)));
    }
    if (!any)
        TD_TRY(st,
               td_fail(l->err, TD_PLAN,
                       "%s: its tensor-parallel groups need more than the %d GPUs that are here",
                       plan->file, (int)l->m->gpus));
done:
    return st;
}

td_status td_probes(td_arena *a, const td_probe_machine *machine, int32_t n_plans,
                    const td_plan *const *plans, bool only_first, int32_t *n, td_probe **out,
                    td_err *err)
{
    td_status st = TD_OK;
    list l = {.a = a, .m = machine, .err = err};
    size_t most = sizeof on_cuda / sizeof *on_cuda + sizeof on_host / sizeof *on_host;
    for (int32_t i = 0; i < n_plans; i++)
        most += (size_t)plans[i]->n_modules + 3;
    l.probes = TD_NEW(a, td_probe, most);
    if (l.probes == NULL)
        TD_TRY(st, no_memory(&l));
    if (n_plans == 0)
        TD_TRY(st, from_table(&l, only_first));
    for (int32_t i = 0; i < n_plans && (!only_first || i == 0); i++) {
        const bool alone = plans[i]->world_size <= machine->gpus;
        TD_TRY(st, alone ? TD_OK : by_module(&l, plans[i], i));
        TD_TRY(st, alone || machine->cuda ? TD_OK : by_pair(&l, plans[i], i));
        /* Ranks that share cores show what their exchanges take; GPUs are not shared. */
        TD_TRY(st, alone || !machine->cuda ? whole(&l, plans[i], i) : TD_OK);
    }
    *n = only_first && l.n > 1 ? 1 : l.n;
    *out = l.probes;
done:
    return st;
}
