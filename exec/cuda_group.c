/* Who maps what, who has which share, and when a group is the one to do a collective. */
#include "exec/cuda_group.h"
#include "exec/cuda_error.h"
#include "exec/cuda_map.h"
#include "exec/host_rendezvous.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum {
    PAGE = 2 << 20,   /* bytes; a mapping is of whole pages */
    MOST_BLOCKS = 64, /* by default: a thread has at least a vector, then several */
    WIDE = 16         /* bytes of a vector */
};

/* ---- opening ---- */

typedef struct {
    td_cuda_loan arena, lines;
    uint64_t bytes;
    char layout[65], refusal[128];
} offer;

typedef struct {
    bool taken;
    char why[128];
} answer;

/* Every member tells all others; `all` holds one of `size` bytes each, this one's in its place. */
static td_status exchange(const td_comm *c, int32_t me, void *all, size_t size, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t m = 0; m < c->n_ranks; m++)
        TD_TRY(st, td_rendezvous_give(c, me, m, (char *)all + (size_t)m * size, size, err));
done:
    return st;
}

/* Memory of its own for the blocks' lines: the arena is exactly as large as the memory model says.
 */
static td_cuda_loan lend_lines(td_cuda_group *g)
{
    td_cuda_loan l = {.possible = false};
    void *lines = NULL, *word = NULL, *word_gpu = NULL;
    if (td_cuda_possible(cudaHostAlloc(&word, sizeof(uint32_t), cudaHostAllocMapped),
                         "memory of the host", l.why, sizeof l.why)) {
        memset(word, 0, sizeof(uint32_t));
        g->abandoned = word;
        l.possible = td_cuda_possible(cudaHostGetDevicePointer(&word_gpu, word, 0),
                                      "memory of the host", l.why, sizeof l.why);
        g->abandoned_gpu = word_gpu;
    }
    if (l.possible &&
        td_cuda_possible(cudaMalloc(&lines, PAGE), "memory of the GPU", l.why, sizeof l.why)) {
        g->lines[g->me] = lines;
        g->own_bytes = PAGE;
        l.possible = td_cuda_possible(cudaMemset(lines, 0, PAGE), "zeroing", l.why, sizeof l.why) &&
                     td_cuda_possible(cudaDeviceSynchronize(), "zeroing", l.why, sizeof l.why);
    } else {
        l.possible = false;
    }
    return l.possible ? td_cuda_lend(lines) : l;
}

static offer offer_of(td_cuda_group *g, const td_cuda_group_side *here)
{
    offer o = {.bytes = here->bytes};
    snprintf(o.layout, sizeof o.layout, "%s", here->layout);
    snprintf(o.refusal, sizeof o.refusal, "%s", here->refusal == NULL ? "" : here->refusal);
    if (here->refusal == NULL) {
        o.arena = td_cuda_lend(here->arena);
        o.lines = lend_lines(g);
    }
    return o;
}

static answer map_member(td_cuda_group *g, const offer *mine, const offer *o, int32_t m)
{
    answer re = {.taken = false};
    void *arena = NULL, *lines = NULL;
    if (o->refusal[0] != '\0')
        snprintf(re.why, sizeof re.why, "%s", o->refusal);
    else if (o->bytes != mine->bytes || strcmp(o->layout, mine->layout) != 0)
        snprintf(re.why, sizeof re.why, "arenas are not cut alike");
    else
        re.taken = td_cuda_map(&o->arena, &arena, re.why, sizeof re.why) &&
                   td_cuda_map(&o->lines, &lines, re.why, sizeof re.why);
    g->arenas[m] = arena;
    g->lines[m] = lines;
    return re;
}

static answer map_all(td_cuda_group *g, const offer *offers)
{
    answer re = {.taken = offers[g->me].refusal[0] == '\0'};
    memcpy(re.why, offers[g->me].refusal, sizeof re.why);
    for (int32_t m = 0; m < g->n && re.taken; m++)
        if (m != g->me)
            re = map_member(g, &offers[g->me], &offers[m], m);
    return re;
}

static void unmap_all(td_cuda_group *g)
{
    for (int32_t m = 0; m < g->n; m++) {
        if (m == g->me)
            continue;
        if (g->arenas[m] != NULL)
            (void)cudaIpcCloseMemHandle(g->arenas[m]);
        if (g->lines[m] != NULL)
            (void)cudaIpcCloseMemHandle(g->lines[m]);
        g->arenas[m] = NULL;
        g->lines[m] = NULL;
    }
}

/* Once all have unmapped it. */
static void free_own(td_cuda_group *g)
{
    if (g->lines[g->me] != NULL)
        (void)cudaFree(g->lines[g->me]);
    if (g->abandoned != NULL)
        (void)cudaFreeHost(g->abandoned);
    g->lines[g->me] = NULL;
    g->abandoned = NULL;
    g->own_bytes = 0;
}

td_status td_cuda_group_open(const td_comm *c, int32_t me, const td_cuda_group_side *here,
                             td_cuda_group *out, td_err *err)
{
    td_status st = TD_OK;
    td_cuda_group g = {.n = c->n_ranks, .me = me, .bytes = here->bytes};
    offer offers[TD_COLLECTIVE_RANKS];
    answer answers[TD_COLLECTIVE_RANKS];
    memset(offers, 0, sizeof offers);
    memset(answers, 0, sizeof answers);
    if (g.n > TD_COLLECTIVE_RANKS) {
        snprintf(out->why, sizeof out->why, "%d ranks, at most %d share memory", (int)g.n,
                 TD_COLLECTIVE_RANKS);
        return TD_OK;
    }
    g.arenas[me] = here->arena;
    offers[me] = offer_of(&g, here);
    TD_TRY(st, exchange(c, me, offers, sizeof *offers, err));
    answers[me] = map_all(&g, offers);
    TD_TRY(st, exchange(c, me, answers, sizeof *answers, err));
    g.open = true;
    for (int32_t m = g.n - 1; m >= 0; m--)
        if (!answers[m].taken) {
            g.open = false;
            snprintf(g.why, sizeof g.why, "rank %d: %s", (int)c->ranks[m], answers[m].why);
        }
    if (!g.open) {
        unmap_all(&g);
        TD_TRY(st, exchange(c, me, answers, sizeof *answers, err)); /* all have unmapped */
        free_own(&g);
    }
    *out = g;
done:
    return st;
}

void td_cuda_group_close(const td_comm *c, td_cuda_group *g)
{
    char closed[TD_COLLECTIVE_RANKS] = {0};
    if (!g->open)
        return;
    unmap_all(g);
    /* Without MPI there is nobody left to wait for. */
    (void)exchange(c, g->me, closed, 1, NULL);
    free_own(g);
    g->open = false;
}

void td_cuda_group_abandon(td_cuda_group *g)
{
    if (g->open)
        atomic_store_explicit((_Atomic uint32_t *)g->abandoned, 1, memory_order_release);
}

/* ---- collectives ---- */

/* What the kernel has of a type and reduction; size 0: nothing. */
typedef struct {
    int64_t size; /* bytes of an element */
    td_combine sum, max;
} kind;

static kind kind_of(td_type type, bool act_bf16)
{
    static const kind f32 = {4, TD_COMBINE_SUM_F32, TD_COMBINE_MAX_F32},
                      bf16 = {2, TD_COMBINE_SUM_BF16, TD_N_COMBINES}, none = {0};
    return type == TD_TYPE_F32 || (type == TD_TYPE_ACT && !act_bf16) ? f32
           : type == TD_TYPE_ACT                                     ? bf16
                                                                     : none;
}

/* A gathering only moves: any that moves elements of the size does. */
static td_combine combine_of(const td_collective_call *call, const kind *k)
{
    return call->coll == TD_COLL_ALL_GATHER   ? k->sum
           : call->reduction == TD_REDUCE_SUM ? k->sum
           : call->reduction == TD_REDUCE_MAX ? k->max
                                              : TD_N_COMBINES;
}

/* What a buffer holds beside a rank's share: an all-reduce has both whole. */
static const struct {
    bool has, in_share, out_share;
} shapes[TD_N_COLLS] = {
    [TD_COLL_ALL_REDUCE] = {true, false, false},
    [TD_COLL_REDUCE_SCATTER] = {true, false, true},
    [TD_COLL_ALL_GATHER] = {true, true, false},
};

static bool inside(const td_cuda_group *g, const void *p, int64_t bytes)
{
    const uintptr_t base = (uintptr_t)g->arenas[g->me], at = (uintptr_t)p;
    return at >= base && at - base <= g->bytes && (uint64_t)bytes <= g->bytes - (at - base);
}

bool td_cuda_group_has(const td_cuda_group *g, const td_collective_call *call, bool act_bf16)
{
    const kind k = kind_of(call->type, act_bf16);
    if (!g->open || !shapes[call->coll].has || k.size == 0 || call->count <= 0 ||
        combine_of(call, &k) == TD_N_COMBINES)
        return false;
    const bool scattered = call->coll != TD_COLL_ALL_REDUCE;
    const int64_t whole = call->count * k.size, share = whole / g->n;
    return (!scattered || call->count % g->n == 0) &&
           inside(g, call->in, shapes[call->coll].in_share ? share : whole) &&
           inside(g, call->out, shapes[call->coll].out_share ? share : whole);
}

/*
 * Elements [first, first + n) of the whole are member `me`'s. An all-reduce is shared by whole
 * vectors, the last member has what is left behind them; the others' shares are the plan's.
 */
typedef struct {
    int64_t first, n;
} part;

static part part_of(const td_collective_call *call, int32_t n, int32_t me, int64_t lanes)
{
    const int64_t vectors = call->count / lanes;
    if (call->coll != TD_COLL_ALL_REDUCE)
        return (part){call->count / n * me, call->count / n};
    const int64_t first = vectors * me / n * lanes, next = vectors * (me + 1) / n * lanes;
    return (part){first, (me == n - 1 ? call->count : next) - first};
}

/* The same on all members, though their shares of an all-reduce differ by a vector. */
static int32_t blocks_of(const td_cuda_group *g, int64_t count, int64_t lanes)
{
    const int64_t vectors = (count / lanes + g->n - 1) / g->n,
                  wanted = (vectors + TD_COLLECTIVE_THREADS - 1) / TD_COLLECTIVE_THREADS;
    const int32_t most = g->most_blocks > 0 ? g->most_blocks : MOST_BLOCKS;
    return wanted > most ? most : wanted > 1 ? (int32_t)wanted : 1;
}

/* Where the element of this rank's buffer stands in another member's. */
static char *there(const td_cuda_group *g, int32_t member, const void *buffer, int64_t bytes)
{
    return g->arenas[member] + ((const char *)buffer - g->arenas[g->me]) + bytes;
}

td_status td_cuda_group_run(const td_cuda_group *g, const td_collective_call *call, bool act_bf16,
                            void *stream, td_err *err)
{
    const kind k = kind_of(call->type, act_bf16);
    const bool gather = call->coll == TD_COLL_ALL_GATHER,
               scatter = call->coll == TD_COLL_REDUCE_SCATTER;
    const int64_t step = call->coll == TD_COLL_ALL_REDUCE ? 0 : call->count / g->n * k.size;
    const bool wide = ((uintptr_t)call->in | (uintptr_t)call->out | (uint64_t)step) % WIDE == 0;
    const int64_t lanes = wide ? WIDE / k.size : 1;
    const part own = part_of(call, g->n, g->me, lanes);
    td_collective_job job = {.n = g->n,
                             .me = g->me,
                             .n_from = gather ? 1 : g->n,
                             .n_to = scatter ? 1 : g->n,
                             .elements = own.n,
                             .abandoned = g->abandoned_gpu};
    for (int32_t m = 0; m < g->n; m++) {
        job.lines[m] = g->lines[m];
        job.from[m] = there(g, m, call->in, own.first * k.size);
        job.to[m] = there(g, m, call->out, own.first * k.size);
    }
    if (gather)
        job.from[0] = call->in;
    if (scatter)
        job.to[0] = call->out;
    return td_cuda_failed(td_cuda_collective_run(stream, &job, combine_of(call, &k), wide,
                                                 blocks_of(g, call->count, lanes)),
                          "a collective over peers' memory", err);
}
