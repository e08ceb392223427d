/*
 * Lowers a plan to its step program: who talks to whom (communicators and channels), and for every
 * distinct role the list of ops with their dependencies.
 */
#include "model/lower.h"
#include "model/module.h"
#include "model/sha256.h"

#include <string.h>

/* ---- communicators ---- */

/* A pair communicator as its sender knows it. */
typedef struct {
    int32_t peer, edge, comm;
    bool gradient;
} outlet;

typedef struct {
    td_arena *a;
    const td_plan *plan;
    td_pipeline pipe;
    td_program *p;
    td_err *err;
    td_comm *comms;
    int64_t n_comms, cap_comms;
    int32_t *tp_comm, *dp_comm; /* [world] or -1 */
    int32_t *module_comm;       /* [n_modules] */
    outlet *outlets;            /* of all ranks */
    int64_t n_outlets, cap_outlets;
    int64_t *outlet_first; /* [world + 1] */
    td_stream *streams;
    int32_t n_streams, cap_streams;
    struct role {
        int32_t module, pp_rank, n_signature, next, rank;
        int32_t *signature;
    } * roles;           /* beside streams */
    int32_t **role_head; /* [n_modules][pp] first role of a stage or -1 */
    td_work *works;
    int32_t n_works, cap_works;
    struct td_stage_works **stage_works; /* [n_modules][pp] */
} lowering;

static td_status no_memory(const lowering *l)
{
    return td_fail(l->err, TD_NOMEM, "%s: no memory for the step program of %lld ranks",
                   l->plan->file, (long long)l->plan->world_size);
}

/* Doubles a growing array in the arena; NULL without memory. */
static void *grown(td_arena *a, const void *old, int64_t n, int64_t *cap, size_t size)
{
    const int64_t want = *cap == 0 ? 64 : 2 * *cap;
    void *p = td_arena_alloc(a, (size_t)want, size);
    if (p != NULL && n > 0)
        memcpy(p, old, (size_t)n * size);
    if (p != NULL)
        *cap = want;
    return p;
}

static td_status add_comm(lowering *l, td_comm_kind kind, int32_t src, int32_t dst, int32_t n,
                          const int32_t *ranks)
{
    if (l->n_comms == l->cap_comms) {
        l->comms = grown(l->a, l->comms, l->n_comms, &l->cap_comms, sizeof *l->comms);
        if (l->comms == NULL)
            return no_memory(l);
    }
    l->comms[l->n_comms++] = (td_comm){.kind = (uint8_t)kind,
                                       .src = (int16_t)src,
                                       .dst = (int16_t)dst,
                                       .n_ranks = n,
                                       .ranks = ranks};
    return TD_OK;
}

/* All lists along one axis; of_rank[r] becomes the communicator of rank r. */
static td_status add_axis(lowering *l, int32_t m, td_axis axis, td_comm_kind kind, int32_t *of_rank)
{
    td_status st = TD_OK;
    td_rank_lists lists;
    if (td_grid_extent(&l->plan->modules[m].grid, axis) == 1)
        return TD_OK;
    TD_TRY(st, td_grid_lists(&l->plan->modules[m].grid, l->a, &axis, 1, true, &lists, l->err));
    for (int32_t i = 0; i < lists.n_lists; i++) {
        const int32_t *ranks = lists.ranks + (size_t)i * (size_t)lists.n_ranks;
        for (int32_t k = 0; k < lists.n_ranks; k++)
            of_rank[ranks[k]] = (int32_t)l->n_comms;
        TD_TRY(st, add_comm(l, kind, m, m, lists.n_ranks, ranks));
    }
done:
    return st;
}

static td_status add_groups(lowering *l)
{
    td_status st = TD_OK;
    const int32_t world = l->p->world_size;
    int32_t *all = TD_NEW(l->a, int32_t, world);
    l->tp_comm = TD_NEW(l->a, int32_t, world);
    l->dp_comm = TD_NEW(l->a, int32_t, world);
    l->module_comm = TD_NEW(l->a, int32_t, l->plan->n_modules);
    if (all == NULL || l->tp_comm == NULL || l->dp_comm == NULL || l->module_comm == NULL)
        TD_TRY(st, no_memory(l));
    memset(l->tp_comm, -1, (size_t)world * sizeof(int32_t));
    memset(l->dp_comm, -1, (size_t)world * sizeof(int32_t));
    for (int32_t r = 0; r < world; r++)
        all[r] = r;
    TD_TRY(st, add_comm(l, TD_COMM_WORLD, -1, -1, world, all));
    for (int32_t m = 0; m < l->plan->n_modules; m++) {
        const td_grid *g = &l->plan->modules[m].grid;
        l->module_comm[m] = (int32_t)l->n_comms;
        TD_TRY(st, add_comm(l, TD_COMM_MODULE, m, m, (int32_t)td_grid_size(g), all + g->first));
        TD_TRY(st, add_axis(l, m, TD_AXIS_TP, TD_COMM_TENSOR, l->tp_comm));
        TD_TRY(st, add_axis(l, m, TD_AXIS_DP, TD_COMM_DATA, l->dp_comm));
    }
done:
    return st;
}

/* The point-to-point moves of a rank, one of each kind per peer, in the order that numbers its
 * channels. */
static td_status peers(lowering *l, const td_position *at, int32_t rank, int32_t call,
                       td_move_list *moves)
{
    return td_pipeline_moves(&l->pipe, l->a, at, rank, &td_peer_calls[call], moves, l->err);
}

static td_status add_pairs(lowering *l)
{
    td_status st = TD_OK;
    td_move_list moves = {0};
    l->outlet_first = TD_NEW(l->a, int64_t, l->p->world_size + 1);
    if (l->outlet_first == NULL)
        TD_TRY(st, no_memory(l));
    for (int32_t r = 0; r < l->p->world_size; r++) {
        const td_position at = td_pipeline_position(&l->pipe, r);
        l->outlet_first[r] = l->n_outlets;
        for (int32_t c = 0; c < 2 && at.n_modules > 0; c++) {
            TD_TRY(st, peers(l, &at, r, c, &moves));
            for (int32_t i = 0; i < moves.n; i++) {
                const td_move *mv = &moves.moves[i];
                const td_edge *e = mv->edge < 0 ? NULL : &l->pipe.edges[mv->edge];
                int32_t *two = TD_NEW(l->a, int32_t, 2);
                if (l->n_outlets == l->cap_outlets)
                    l->outlets =
                        grown(l->a, l->outlets, l->n_outlets, &l->cap_outlets, sizeof *l->outlets);
                if (two == NULL || l->outlets == NULL)
                    TD_TRY(st, no_memory(l));
                two[0] = r;
                two[1] = mv->peer;
                l->outlets[l->n_outlets++] = (outlet){.peer = mv->peer,
                                                      .edge = mv->edge,
                                                      .comm = (int32_t)l->n_comms,
                                                      .gradient = mv->gradient};
                TD_TRY(st, add_comm(l, TD_COMM_PAIR,
                                    e == NULL      ? mv->module
                                    : mv->gradient ? e->dst
                                                   : e->src,
                                    e == NULL      ? mv->module
                                    : mv->gradient ? e->src
                                                   : e->dst,
                                    2, two));
            }
        }
    }
    l->outlet_first[l->p->world_size] = l->n_outlets;
done:
    return st;
}

/* The communicator over which `from` sends to `to`. Every receive of the pipeline has its send, so
 * there is one. */
static int32_t pair_comm(const lowering *l, int32_t from, int32_t to, int32_t edge, bool gradient)
{
    int32_t comm = -1;
    for (int64_t i = l->outlet_first[from]; i < l->outlet_first[from + 1]; i++)
        if (l->outlets[i].peer == to && l->outlets[i].edge == edge &&
            l->outlets[i].gradient == gradient)
            comm = l->outlets[i].comm;
    return comm;
}

/* ---- roles: ranks that share a stream ---- */

enum { SIGNATURE_WORDS = 5 };

/* The channel slots of a rank after its pairs; every rank that is in a module has the slots its
 * module needs. */
static int32_t group_slots(const lowering *l, int32_t rank, int32_t module, int32_t comm[4])
{
    int32_t n = 0;
    if (module >= 0 && l->tp_comm[rank] >= 0)
        comm[n++] = l->tp_comm[rank];
    if (module >= 0 && l->dp_comm[rank] >= 0)
        comm[n++] = l->dp_comm[rank];
    if (module >= 0)
        comm[n++] = l->module_comm[module];
    comm[n++] = 0; /* the world */
    return n;
}

static int32_t index_in(const td_comm *c, int32_t rank)
{
    int32_t low = 0, high = c->n_ranks - 1;
    if (c->kind == TD_COMM_PAIR)
        return c->ranks[0] == rank ? 0 : 1;
    while (low < high) { /* group lists ascend */
        const int32_t middle = low + (high - low) / 2;
        if (c->ranks[middle] < rank)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/*
 * Gives the rank its role (a new one if no rank before it did the same) and its channels: sends
 * forward, sends backward, receives forward, receives backward, then tp, dp, module and world as
 * far as there are.
 */
static td_status place_rank(lowering *l, int32_t rank, td_rank *out, td_move_list *moves,
                            int32_t **words, int64_t *cap)
{
    td_status st = TD_OK;
    const td_position at = td_pipeline_position(&l->pipe, rank);
    const int32_t module = at.n_modules == 0 ? -1 : at.module[0],
                  pp = at.n_modules == 0 ? 0 : at.pp_rank[0];
    int32_t groups[4], n = 0, n_chans = 0, role;
    const int32_t n_groups = group_slots(l, rank, module, groups);
    int32_t *head = module < 0 ? l->role_head[l->plan->n_modules] : &l->role_head[module][pp];
    td_chan *chans;
    for (int32_t c = 0; c < 4 && module >= 0; c++) {
        TD_TRY(st, peers(l, &at, rank, c, moves));
        for (int32_t i = 0; i < moves->n; i++) {
            const td_move *mv = &moves->moves[i];
            if (n + SIGNATURE_WORDS > *cap) {
                *words = grown(l->a, *words, n, cap, sizeof **words);
                if (*words == NULL)
                    TD_TRY(st, no_memory(l));
            }
            (*words)[n++] = c;
            (*words)[n++] = mv->kind;
            (*words)[n++] = mv->edge;
            (*words)[n++] = mv->n_group;
            (*words)[n++] = mv->kind == TD_MOVE_BROADCAST && mv->peer == rank;
            n_chans += mv->kind != TD_MOVE_BROADCAST;
        }
    }
    for (role = *head; role >= 0; role = l->roles[role].next)
        if (l->roles[role].n_signature == n &&
            (n == 0 || memcmp(l->roles[role].signature, *words, (size_t)n * sizeof **words) == 0))
            break;
    if (role < 0) {
        if (l->n_streams == l->cap_streams) {
            int64_t cap_roles = l->cap_streams, cap_streams = l->cap_streams;
            l->roles = grown(l->a, l->roles, l->n_streams, &cap_roles, sizeof *l->roles);
            l->streams = grown(l->a, l->streams, l->n_streams, &cap_streams, sizeof *l->streams);
            if (l->roles == NULL || l->streams == NULL)
                TD_TRY(st, no_memory(l));
            l->cap_streams = (int32_t)cap_streams;
        }
        role = l->n_streams++;
        l->roles[role] = (struct role){.module = module,
                                       .pp_rank = pp,
                                       .n_signature = n,
                                       .next = *head,
                                       .rank = rank,
                                       .signature = TD_NEW(l->a, int32_t, n)};
        if (l->roles[role].signature == NULL)
            TD_TRY(st, no_memory(l));
        if (n > 0)
            memcpy(l->roles[role].signature, *words, (size_t)n * sizeof **words);
        *head = role;
        l->streams[role] = (td_stream){
            .n_chans = n_chans + n_groups, .module = module, .stage = at.stage, .pp_rank = pp};
    }
    chans = TD_NEW(l->a, td_chan, n_chans + n_groups);
    if (chans == NULL)
        TD_TRY(st, no_memory(l));
    n = 0;
    for (int32_t c = 0; c < 4 && module >= 0; c++) {
        TD_TRY(st, peers(l, &at, rank, c, moves));
        for (int32_t i = 0; i < moves->n; i++) {
            const td_move *mv = &moves->moves[i];
            if (mv->kind != TD_MOVE_BROADCAST)
                chans[n++].comm = mv->kind == TD_MOVE_SEND
                                      ? pair_comm(l, rank, mv->peer, mv->edge, mv->gradient)
                                      : pair_comm(l, mv->peer, rank, mv->edge, mv->gradient);
        }
    }
    for (int32_t i = 0; i < n_groups; i++)
        chans[n++].comm = groups[i];
    for (int32_t i = 0; i < n; i++)
        chans[i].me = index_in(&l->comms[chans[i].comm], rank);
    *out = (td_rank){.stream = role, .chans = chans};
done:
    return st;
}

static td_status place_ranks(lowering *l)
{
    td_status st = TD_OK;
    td_rank *ranks = TD_NEW(l->a, td_rank, l->p->world_size);
    td_move_list moves = {0};
    int32_t *words = NULL;
    int64_t cap = 0;
    l->role_head = TD_NEW(l->a, int32_t *, l->plan->n_modules + 1);
    if (ranks == NULL || l->role_head == NULL)
        TD_TRY(st, no_memory(l));
    for (int32_t m = 0; m <= l->plan->n_modules; m++) {
        const int32_t pp = m < l->plan->n_modules ? l->plan->modules[m].pp : 1;
        l->role_head[m] = TD_NEW(l->a, int32_t, pp);
        if (l->role_head[m] == NULL)
            TD_TRY(st, no_memory(l));
        memset(l->role_head[m], -1, (size_t)pp * sizeof(int32_t));
    }
    for (int32_t r = 0; r < l->p->world_size; r++)
        TD_TRY(st, place_rank(l, r, &ranks[r], &moves, &words, &cap));
    l->p->ranks = ranks;
done:
    return st;
}

/* ---- works ---- */

static td_status add_work(lowering *l, const td_work *w, int32_t *out)
{
    if (l->n_works == l->cap_works) {
        int64_t cap = l->cap_works;
        l->works = grown(l->a, l->works, l->n_works, &cap, sizeof *l->works);
        if (l->works == NULL)
            return no_memory(l);
        l->cap_works = (int32_t)cap;
    }
    *out = l->n_works;
    l->works[l->n_works++] = *w;
    return TD_OK;
}

/* One pass over memory for each bucket's elements on this rank: `bytes` an element, one of `shards`
 * of the bucket. */
static td_status add_pass(lowering *l, const td_stage *s, const td_buckets *buckets,
                          td_part_class class, const char *name, int64_t bytes, int64_t shards,
                          int32_t *out)
{
    td_status st = TD_OK;
    td_work_builder b = {.arena = l->a};
    td_work w;
    for (int32_t i = 0; i < buckets->n; i++)
        td_work_bytes(&b, s, class, name, TD_PASS_FORWARD,
                      bytes * buckets->buckets[i].elements / shards);
    td_work_run(&b, 1, -1, 0);
    TD_TRY(st, td_work_finish(&b, &w, l->err));
    TD_TRY(st, add_work(l, &w, out));
done:
    return st;
}

static td_status works_of_stage(lowering *l, int32_t m, int32_t pp,
                                const struct td_stage_works **out)
{
    td_status st = TD_OK;
    td_stage_works *sw = &l->stage_works[m][pp];
    *out = sw;
    if (sw->built)
        return TD_OK;
    td_work w;
    const td_stage s = td_stage_of(l->plan, m, pp);
    const int64_t dp = l->plan->optimizer.sharded ? l->plan->modules[m].dp : 1;
    TD_TRY(st, td_buckets_of_stage(l->a, &s, &sw->buckets, l->err));
    TD_TRY(st, td_stage_forward(l->a, &s, &w, l->err));
    TD_TRY(st, add_work(l, &w, &sw->forward));
    TD_TRY(st, td_stage_backward(l->a, &s, &w, l->err));
    TD_TRY(st, add_work(l, &w, &sw->backward));
    TD_TRY(st,
           add_pass(l, &s, &sw->buckets, TD_PART_ELEMENTWISE, "zero gradients", 4, 1, &sw->zero));
    TD_TRY(st, add_pass(l, &s, &sw->buckets, TD_PART_REDUCTION, "squared norm", 4, dp, &sw->stats));
    /* reads gradient, moments and master weight, writes moments and master weight: 7 fp32 numbers
     */
    TD_TRY(st, add_pass(l, &s, &sw->buckets, TD_PART_ADAM, "adam", 28, dp, &sw->adam));
    TD_TRY(st, add_pass(l, &s, &sw->buckets, TD_PART_ELEMENTWISE, "cast", 6, dp, &sw->cast));
    sw->built = true;
done:
    return st;
}

/* ---- streams ---- */

static td_status lower_streams(lowering *l)
{
    td_status st = TD_OK;
    l->stage_works = TD_NEW(l->a, td_stage_works *, l->plan->n_modules);
    if (l->stage_works == NULL)
        TD_TRY(st, no_memory(l));
    for (int32_t m = 0; m < l->plan->n_modules; m++) {
        l->stage_works[m] = TD_NEW(l->a, td_stage_works, l->plan->modules[m].pp);
        if (l->stage_works[m] == NULL)
            TD_TRY(st, no_memory(l));
    }
    for (int32_t i = 0; i < l->n_streams; i++) {
        const struct role *role = &l->roles[i];
        const td_stage_works *sw = NULL;
        if (role->module >= 0)
            TD_TRY(st, works_of_stage(l, role->module, role->pp_rank, &sw));
        TD_TRY(st,
               td_lower_stream(l->a, l->plan, &l->pipe, role->rank, sw, &l->streams[i], l->err));
    }
done:
    return st;
}

/* ---- digest ---- */

static void digest(td_program *p)
{
    td_sha256 h;
    td_sha256_begin(&h);
    td_sha256_add(&h, "tandem step program 1", 21);
    td_sha256_add_u64(&h, (uint64_t)p->world_size << 32 | (uint32_t)p->total_stages);
    for (int32_t m = 0; m < p->plan->n_modules; m++)
        td_sha256_add(&h, p->plan->modules[m].name, strlen(p->plan->modules[m].name) + 1);
    for (int32_t i = 0; i < p->n_streams; i++) {
        const td_stream *s = &p->streams[i];
        td_sha256_add_u64(&h, (uint64_t)s->n_ops << 32 | (uint32_t)s->n_chans);
        td_sha256_add_u64(&h, (uint64_t)(uint32_t)s->module << 32 | (uint32_t)s->pp_rank);
        for (int32_t k = 0; k < s->n_ops; k++) {
            const td_op *op = &s->ops[k];
            td_sha256_add_u64(&h, (uint64_t)op->kind << 56 | (uint64_t)op->lane << 48 |
                                      (uint64_t)op->bucket << 32 | op->call);
            td_sha256_add_u64(&h, (uint64_t)(uint16_t)op->module << 48 |
                                      (uint64_t)op->n_deps << 32 | (uint32_t)op->mb);
            td_sha256_add_u64(&h, (uint64_t)(uint32_t)op->chan << 32 | (uint32_t)op->work);
            td_sha256_add_u64(&h, op->bytes);
            for (uint32_t d = 0; d < op->n_deps; d++) {
                const td_dep *dep = &s->deps[op->dep_first + d];
                td_sha256_add_u64(&h,
                                  (uint64_t)(uint32_t)dep->op << 32 | (uint32_t)dep->after_part);
            }
        }
    }
    for (int32_t r = 0; r < p->world_size; r++) {
        td_sha256_add_u64(&h, (uint64_t)p->ranks[r].stream);
        for (int32_t c = 0; c < p->streams[p->ranks[r].stream].n_chans; c++)
            td_sha256_add_u64(&h, (uint64_t)(uint32_t)p->ranks[r].chans[c].comm << 32 |
                                      (uint32_t)p->ranks[r].chans[c].me);
    }
    for (int64_t c = 0; c < p->n_comms; c++) { /* who is in it, the ranks' channels have said */
        td_sha256_add_u64(&h, (uint64_t)p->comms[c].kind << 32 | (uint32_t)p->comms[c].n_ranks);
        td_sha256_add_u64(&h,
                          (uint64_t)(uint16_t)p->comms[c].src << 16 | (uint16_t)p->comms[c].dst);
    }
    for (int32_t w = 0; w < p->n_works; w++) {
        td_sha256_add_u64(&h, (uint64_t)p->works[w].n_runs);
        for (int32_t r = 0; r < p->works[w].n_runs; r++) {
            const td_part_run *run = &p->works[w].runs[r];
            td_sha256_add_u64(&h, (uint64_t)(uint32_t)run->repeat << 32 | (uint32_t)run->n);
            td_sha256_add_u64(&h,
                              (uint64_t)(uint32_t)run->layer0 << 32 | (uint32_t)run->layer_step);
            for (int32_t i = run->first; i < run->first + run->n; i++) {
                const td_part *part = &p->works[w].parts[i];
                td_sha256_add_u64(&h, (uint64_t)part->class << 40 | (uint64_t)part->pass << 32 |
                                          (uint64_t)part->causal << 24 |
                                          (uint64_t)part->fp32 << 16 |
                                          (uint64_t)part->collective << 8 | part->recompute);
                td_sha256_add_u64(&h, (uint64_t)part->m);
                td_sha256_add_u64(&h, (uint64_t)part->n);
                td_sha256_add_u64(&h, (uint64_t)part->k);
                td_sha256_add_u64(&h, (uint64_t)(uint32_t)part->batch << 32 | (uint32_t)part->seq);
                td_sha256_add_u64(&h,
                                  (uint64_t)(uint32_t)part->heads << 32 | (uint32_t)part->head_dim);
                td_sha256_add_u64(&h,
                                  (uint64_t)(uint32_t)part->kv_heads << 32 | (uint32_t)part->ranks);
                td_sha256_add_u64(&h, part->bytes);
            }
        }
    }
    td_sha256_end(&h, p->digest);
}

/* A pass waits for all messages of its call, two a bridged lane, and td_op counts them in 16 bits.
 */
static td_status check_fan(const lowering *l)
{
    td_status st = TD_OK;
    for (int32_t m = 0; m < l->plan->n_modules && st == TD_OK; m++) {
        int64_t in = 1, out = 1;
        for (int32_t e = 0; e < l->pipe.n_edges; e++) {
            in += l->pipe.edges[e].dst == m ? 2 * (int64_t)l->pipe.bridges[e].parts_per_dst + 1 : 0;
            out +=
                l->pipe.edges[e].src == m ? 2 * (int64_t)l->pipe.bridges[e].parts_per_src + 1 : 0;
        }
        if (in > UINT16_MAX || out > UINT16_MAX)
            st =
                td_fail(l->err, TD_PLAN,
                        "%s: modules.%s.parallel.dp: one lane exchanges %lld messages a microbatch "
                        "with other modules' lanes; expected at most %d",
                        l->plan->file, l->plan->modules[m].name,
                        (long long)((in > out ? in : out) / 2), UINT16_MAX / 2);
    }
    return st;
}

td_status td_lower(td_arena *a, const td_plan *plan, const td_program **out, td_err *err)
{
    td_status st = TD_OK;
    td_program *p = TD_NEW(a, td_program, 1);
    lowering l = {.a = a, .plan = plan, .p = p, .err = err};
    TD_TRY(st, td_plan_executable(plan, err));
    if (p == NULL)
        TD_TRY(st, no_memory(&l));
    TD_TRY(st, td_pipeline_of_plan(a, plan, &l.pipe, err));
    TD_TRY(st, check_fan(&l));
    p->plan = plan;
    p->world_size = (int32_t)plan->world_size;
    p->total_stages = l.pipe.total_stages;
    TD_TRY(st, add_groups(&l));
    TD_TRY(st, add_pairs(&l));
    TD_TRY(st, place_ranks(&l));
    TD_TRY(st, lower_streams(&l));
    p->streams = l.streams;
    p->n_streams = l.n_streams;
    p->comms = l.comms;
    p->n_comms = l.n_comms;
    p->works = l.works;
    p->n_works = l.n_works;
    for (int32_t r = 0; r < p->world_size; r++)
        p->n_ops += p->streams[p->ranks[r].stream].n_ops;
    digest(p);
    *out = p;
done:
    return st;
}
