/* Sizes of a stage, and the one list of what stands in its arena. */
#include "model/pieces.h"

enum { ALIGN = 256, RING = 2 }; /* 256 bytes: what cudaMalloc gives, and no vector load asks more */

/* ---- sizes ---- */

static void count_trainable(void *self, const td_param *p)
{
    int64_t *n = self;
    n[0] += p->trainable ? p->local : 0;
    n[1]++;
}

td_status td_stage_sizes_of(td_arena *a, const td_plan *plan, const td_pipeline *pipe, int32_t m,
                            int32_t pp_rank, td_stage_sizes *out, td_err *err)
{
    td_status st = TD_OK;
    const td_stage s = td_stage_of(plan, m, pp_rank);
    const td_module *module = s.module;
    const int32_t stage = pipe->depth[m] + pp_rank, n_micro = plan->step.microbatches;
    const int32_t deep = s.backward ? pipe->total_stages - stage : RING;
    const int64_t tp = module->tp;
    int64_t trainable[2] = {0};
    td_stage_sizes z = {.n_slots = deep < n_micro ? deep : n_micro,
                        .t = s.tokens,
                        .r = td_stage_region_tokens(&s),
                        .h = module->hidden,
                        .q = (int64_t)module->heads * module->head_dim / tp,
                        .kv = (int64_t)(module->kv_heads < tp ? 1 : module->kv_heads / tp) *
                              module->head_dim,
                        .f = module->ffn / tp,
                        .vocab = module->vocab / tp,
                        .sp = plan->step.sequence_parallel && tp > 1,
                        .shards = plan->optimizer.sharded ? module->dp : 1};
    z.n_inputs = z.n_slots + (s.first ? 0 : 1);
    z.up = module->mlp == TD_MLP_SWIGLU ? 2 * z.f : z.f;
    for (int32_t e = 0; e < pipe->n_edges; e++)
        if (pipe->edges[e].src == m)
            z.out_width = plan->modules[pipe->edges[e].dst].hidden;
    z.proj = z.out_width / tp;
    TD_TRY(st, td_buckets_of_stage(a, &s, &z.buckets, err));
    td_stage_params(&s, count_trainable, trainable);
    z.elements = z.buckets.elements + z.buckets.weights - trainable[0];
    /* a shard of a bucket may begin and end inside a tensor, and a span ends with its tensor */
    z.n_spans =
        z.buckets.n == 0 ? 0 : z.buckets.elements / z.shards / TD_SPAN + trainable[1] + z.buckets.n;
    *out = z;
done:
    return st;
}

/* ---- pieces ---- */

typedef struct {
    const td_stage_sizes *z;
    td_stage stage;
    td_piece_visit visit;
    void *self;
    uint64_t used; /* bytes so far, of the arena or of the slot or layer that is being measured */
    int32_t n_i, n_j;
    uint64_t stride_i, stride_j;
} cutter;

static const td_share shares[TD_N_PIECES] = {
#define X(piece, share, often) [TD_PIECE_##piece] = TD_SHARE_##share,
    TD_PIECE_MAP(X)
#undef X
};

static uint64_t whole(uint64_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static void put(cutter *c, td_piece_kind kind, int32_t edge, int64_t elements, int64_t size)
{
    /* kept only where a backward needs it, and where it is not computed again */
    const bool kept = c->stage.backward && c->stride_i > 0;
    const td_piece p = {.kind = kind,
                        .share = shares[kind] == TD_SHARE_ACTIVATIONS && !kept ? TD_SHARE_BUFFERS
                                                                               : shares[kind],
                        .edge = edge,
                        .n_i = c->n_i,
                        .n_j = c->n_j,
                        .offset = c->used,
                        .bytes = whole((uint64_t)elements * (uint64_t)size),
                        .stride_i = c->stride_i,
                        .stride_j = c->stride_j};
    if (p.bytes > 0 && c->visit != NULL)
        c->visit(c->self, &p);
    c->used += p.bytes;
}

/* Copies of what was just put, each behind the one before. */
static void put_ring(cutter *c, td_piece_kind kind, int32_t edge, int32_t n, int64_t elements,
                     int64_t size)
{
    c->n_i = n;
    c->stride_i = whole((uint64_t)elements * (uint64_t)size);
    put(c, kind, edge, elements, size);
    c->used += (uint64_t)(n - 1) * c->stride_i;
    c->n_i = 1;
    c->stride_i = 0;
}

/* One set of a layer's buffers serves all layers: what they held is computed again, or there is no
 * backward to need it. */
static bool layers_share(const cutter *c)
{
    return c->stage.plan->step.recompute == TD_RECOMPUTE_FULL || !c->stage.backward;
}

static bool attention_shared(const cutter *c)
{
    return layers_share(c) || c->stage.plan->step.recompute == TD_RECOMPUTE_SELECTIVE;
}

static void put_attention(cutter *c)
{
    const td_stage_sizes *z = c->z;
    put(c, TD_PIECE_AO, -1, z->t * z->q, c->stage.e);
    put(c, TD_PIECE_LSE, -1, z->t * (c->stage.module->heads / c->stage.module->tp), 4);
}

static void put_layer(cutter *c)
{
    const td_stage_sizes *z = c->z;
    const int64_t e = c->stage.e, stats = c->stage.module->type->norm_bias ? 2 : 1;
    put(c, TD_PIECE_Y1, -1, z->r * z->h, e);
    put(c, TD_PIECE_X2, -1, z->r * z->h, e);
    put(c, TD_PIECE_Y2, -1, z->r * z->h, e);
    put(c, TD_PIECE_QKV, -1, z->t * (z->q + 2 * z->kv), e);
    put(c, TD_PIECE_GU, -1, z->t * z->up, e);
    put(c, TD_PIECE_AV, -1, z->t * z->f, e);
    put(c, TD_PIECE_ST1, -1, z->r * stats, 4);
    put(c, TD_PIECE_ST2, -1, z->r * stats, 4);
}

/* Of every layer in every slot. */
static void put_own_layer(cutter *c)
{
    put(c, TD_PIECE_OUTPUT, -1, c->z->r * c->z->h, c->stage.e);
    if (!layers_share(c))
        put_layer(c);
    if (!attention_shared(c))
        put_attention(c);
}

static void put_slot(cutter *c)
{
    const td_stage *s = &c->stage;
    const td_stage_sizes *z = c->z;
    const bool language = s->module->type->language;
    if (!language && s->first)
        put(c, TD_PIECE_PATCHES, -1, z->t * s->module->input_dim, s->e);
    if (language && (s->first || s->last)) {
        put(c, TD_PIECE_TOKENS, -1, z->t, 4);
        put(c, TD_PIECE_TARGET, -1, z->t, 4);
    }
    if (!s->last)
        return;
    put(c, TD_PIECE_YF, -1, z->r * z->h, s->e);
    put(c, TD_PIECE_STF, -1, z->r * (s->module->type->norm_bias ? 2 : 1), 4);
    put(c, TD_PIECE_LOGITS, -1, language ? z->t * z->vocab : 0, s->e);
    put(c, TD_PIECE_MAX, -1, language ? z->t : 0, 4);
    put(c, TD_PIECE_SUMS, -1, language ? 2 * z->t : 0, 4);
    put(c, TD_PIECE_P1, -1, language ? 0 : z->t * z->proj, s->e);
    put(c, TD_PIECE_P2, -1, language ? 0 : z->t * z->proj, s->e);
    put(c, TD_PIECE_OUT, -1, language ? 0 : z->t * z->out_width, s->e);
}

static uint64_t bytes_of(const cutter *c, void (*pieces)(cutter *c))
{
    cutter alone = *c;
    alone.visit = NULL;
    alone.used = 0;
    pieces(&alone);
    return alone.used;
}

static void put_slots(cutter *c)
{
    const int32_t n_layers = c->stage.n_layers;
    const uint64_t first = c->used, layer = bytes_of(c, put_own_layer),
                   slot = layer * (uint64_t)n_layers + bytes_of(c, put_slot);
    c->n_i = c->z->n_slots;
    c->stride_i = slot;
    c->n_j = n_layers;
    c->stride_j = layer;
    put_own_layer(c);
    c->used = first + layer * (uint64_t)n_layers;
    c->n_j = 1;
    c->stride_j = 0;
    put_slot(c);
    c->used = first + slot * (uint64_t)c->n_i;
    c->n_i = 1;
    c->stride_i = 0;
}

static void put_state(cutter *c)
{
    const td_stage_sizes *z = c->z;
    const int64_t shard = z->buckets.elements / z->shards;
    const bool bf16 = c->stage.plan->precision == TD_BF16;
    put(c, TD_PIECE_WEIGHTS, -1, z->elements, c->stage.e);
    put(c, TD_PIECE_GRADIENTS, -1, z->buckets.elements, 4);
    put(c, TD_PIECE_REDUCED, -1, z->shards > 1 ? shard : 0, 4);
    put(c, TD_PIECE_TENSOR_SUM, -1, z->buckets.shared, 4);
    put(c, TD_PIECE_MASTER, -1, bf16 ? shard : 0, 4);
    put(c, TD_PIECE_MOMENT1, -1, shard, 4);
    put(c, TD_PIECE_MOMENT2, -1, shard, 4);
    put(c, TD_PIECE_STATE, -1, TD_STATE_BYTES, 1);
    put(c, TD_PIECE_SPANS, -1, z->n_spans, TD_SPAN_BYTES);
}

/*
 * 32 MiB for split products, as cuBLAS recommends on Hopper. The gradient of attention needs the
 * sum of queries' gradients in fp32, two numbers for each row and head, and, where heads share
 * keys, gradients of keys and values for each head (what cuDNN 9.14 asks for).
 */
static int64_t workspace(const cutter *c)
{
    const td_stage_sizes *z = c->z;
    const int64_t products = INT64_C(32) << 20,
                  heads = c->stage.module->heads / c->stage.module->tp,
                  attention = 4 * z->t * (z->q + 2 * heads + (z->kv < z->q ? z->q : 0));
    return c->stage.backward && attention > products ? attention : products;
}

static int64_t widest(const int64_t *widths, int32_t n)
{
    int64_t most = 0;
    for (int32_t i = 0; i < n; i++)
        most = widths[i] > most ? widths[i] : most;
    return most;
}

/* Two for what arrives and two for what leaves; as many for gradients where they flow. */
static void put_transfers(cutter *c, const td_plan *plan, const td_pipeline *pipe, int32_t m)
{
    const td_stage *s = &c->stage;
    const td_stage_sizes *z = c->z;
    const bool receives = s->backward && !(s->last && s->module->type->language);
    const bool sends = !s->first && s->input_grad;
    put_ring(c, TD_PIECE_GRAD_IN, -1, RING,
             receives ? (s->last ? z->t * z->out_width : z->r * z->h) : 0, s->e);
    put_ring(c, TD_PIECE_GRAD_OUT, -1, RING, sends ? z->r * z->h : 0, s->e);
    for (int32_t e = 0; s->first && e < pipe->n_edges; e++) {
        if (pipe->edges[e].dst != m)
            continue;
        const int64_t rows = (int64_t)s->samples * plan->modules[pipe->edges[e].src].seq;
        put_ring(c, TD_PIECE_BRIDGED, e, RING, rows * z->h, s->e);
        put_ring(c, TD_PIECE_BRIDGED_GRAD, e, RING, pipe->edge_gradient[e] ? rows * z->h : 0, s->e);
    }
}

uint64_t td_stage_pieces(const td_plan *plan, const td_pipeline *pipe, int32_t m, int32_t pp_rank,
                         const td_stage_sizes *sizes, td_piece_visit visit, void *self)
{
    const td_stage_sizes *z = sizes;
    cutter c = {.z = z,
                .stage = td_stage_of(plan, m, pp_rank),
                .visit = visit,
                .self = self,
                .n_i = 1,
                .n_j = 1};
    const int64_t e = c.stage.e, wide[] = {z->q + 2 * z->kv, z->up, z->f, z->h, z->proj},
                  tall[] = {z->h, z->out_width};
    const int64_t width = z->t * widest(wide, sizeof wide / sizeof *wide),
                  height = z->t * widest(tall, sizeof tall / sizeof *tall);
    put_state(&c);
    put(&c, TD_PIECE_WORKSPACE, -1, workspace(&c), 1);
    put(&c, TD_PIECE_FULL, -1, z->sp ? z->t * z->h : 0, e);
    put(&c, TD_PIECE_WIDE1, -1, width, e);
    put(&c, TD_PIECE_WIDE2, -1, width, e);
    put(&c, TD_PIECE_SIDE, -1, height, e);
    put_ring(&c, TD_PIECE_FLOW, -1, RING, z->r * z->h, e);
    put_transfers(&c, plan, pipe, m);
    c.n_i = z->n_slots;
    c.n_j = c.stage.n_layers;
    if (layers_share(&c))
        put_layer(&c);
    if (attention_shared(&c))
        put_attention(&c);
    c.n_i = c.n_j = 1;
    put_ring(&c, TD_PIECE_INPUT, -1, z->n_inputs, z->r * z->h, e);
    put_slots(&c);
    return c.used;
}
