/*
 * Partition refinement by interned signatures: communicators are numbered by the colours of their
 * members, ranks by their own colour and their communicators' numbers, until a round splits
 * nothing. Kanellakis and Smolka, "CCS expressions, finite state processes, and three problems of
 * equivalence", Information and Computation 86 (1990), naive variant.
 */
#include "sim/fold.h"

#include "sim/intern.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const td_program *p;
    int32_t n_colours;
    int32_t *colour;      /* [world_size] */
    int32_t *next_colour; /* [world_size] */
    int64_t *member;      /* [n_comms + 1]: first member slot of a communicator */
    int32_t *chan_of;     /* [member slots]: the member's channel */
    int32_t *comm;        /* [n_comms]: number of the communicator in this round */
    int32_t *base;  /* [n_colours + 1]: (colour, channel) as one number: base[colour] + channel */
    int32_t *count; /* by that number, zero between communicators */
    int32_t *touched;
    int32_t *tuple;
    size_t cap_tuple, cap_base, cap_count;
    td_intern comms, ranks;
} refiner;

static bool grow(int32_t **array, size_t *cap, size_t n)
{
    if (n <= *cap)
        return true;
    int32_t *bigger = realloc(*array, 2 * n * sizeof **array);
    if (bigger == NULL)
        return false;
    memset(bigger + *cap, 0, (2 * n - *cap) * sizeof **array);
    *array = bigger;
    *cap = 2 * n;
    return true;
}

static int32_t n_chans(const td_program *p, int32_t rank)
{
    return p->streams[p->ranks[rank].stream].n_chans;
}

static td_status prepare(refiner *f, td_arena *tmp, const int32_t *colour, int32_t n_colours,
                         td_err *err)
{
    const td_program *p = f->p;
    td_status st = TD_OK;
    f->n_colours = n_colours;
    f->colour = TD_NEW(tmp, int32_t, p->world_size);
    f->next_colour = TD_NEW(tmp, int32_t, p->world_size);
    f->member = TD_NEW(tmp, int64_t, p->n_comms + 1);
    f->comm = TD_NEW(tmp, int32_t, p->n_comms);
    if (f->colour == NULL || f->next_colour == NULL || f->member == NULL || f->comm == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to fold %d ranks", p->world_size));
    memcpy(f->colour, colour, (size_t)p->world_size * sizeof *colour);
    for (int64_t c = 0; c < p->n_comms; c++)
        f->member[c + 1] = f->member[c] + p->comms[c].n_ranks;
    f->chan_of = TD_NEW(tmp, int32_t, f->member[p->n_comms]);
    if (f->chan_of == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to fold %d ranks", p->world_size));
    for (int64_t i = 0; i < f->member[p->n_comms]; i++)
        f->chan_of[i] = -1;
    for (int32_t r = 0; r < p->world_size; r++)
        for (int32_t c = 0; c < n_chans(p, r); c++)
            f->chan_of[f->member[p->ranks[r].chans[c].comm] + p->ranks[r].chans[c].me] = c;
done:
    return st;
}

/* Numbers the pairs (colour, channel). */
static bool rebase(refiner *f)
{
    int32_t n = 0;
    if (!grow(&f->base, &f->cap_base, (size_t)f->n_colours + 1))
        return false;
    memset(f->base, 0, ((size_t)f->n_colours + 1) * sizeof *f->base);
    for (int32_t r = 0; r < f->p->world_size; r++)
        f->base[f->colour[r] + 1] =
            n_chans(f->p, r) + 1; /* channel -1: a member that never uses it */
    for (int32_t c = 0; c < f->n_colours; c++) {
        n += f->base[c + 1];
        f->base[c + 1] = n;
    }
    return grow(&f->count, &f->cap_count, (size_t)n);
}

static int ascending(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* The distinct (colour, channel) members of a communicator into `touched`, their counts into
 * `count`. */
static int32_t members(refiner *f, int64_t c)
{
    const td_comm *comm = &f->p->comms[c];
    int32_t n = 0;
    for (int32_t i = 0; i < comm->n_ranks; i++) {
        const int32_t at = f->base[f->colour[comm->ranks[i]]] + f->chan_of[f->member[c] + i] + 1;
        if (f->count[at]++ == 0)
            f->touched[n++] = at;
    }
    return n;
}

static int32_t number_comm(refiner *f, int64_t c)
{
    const td_comm *comm = &f->p->comms[c];
    const int32_t n = members(f, c);
    size_t len = 0;
    if (comm->kind == TD_COMM_PAIR && comm->n_ranks == 2) { /* who sends matters */
        for (int32_t i = 0; i < 2; i++) {
            f->tuple[len++] = f->base[f->colour[comm->ranks[i]]] + f->chan_of[f->member[c] + i] + 1;
            f->tuple[len++] = -1; /* no count: unlike any group's tuple */
        }
    } else {
        qsort(f->touched, (size_t)n, sizeof *f->touched, ascending);
        for (int32_t i = 0; i < n; i++) {
            f->tuple[len++] = f->touched[i];
            f->tuple[len++] = f->count[f->touched[i]];
        }
    }
    for (int32_t i = 0; i < n; i++)
        f->count[f->touched[i]] = 0;
    return td_intern_get(&f->comms, f->tuple, len);
}

static bool number_comms(refiner *f)
{
    td_intern_clear(&f->comms);
    bool ok = rebase(f);
    for (int64_t c = 0; ok && c < f->p->n_comms; c++) {
        f->comm[c] = number_comm(f, c);
        ok = f->comm[c] >= 0;
    }
    return ok;
}

/* One round; false without memory. */
static bool refine(refiner *f)
{
    bool ok = number_comms(f);
    td_intern_clear(&f->ranks);
    for (int32_t r = 0; ok && r < f->p->world_size; r++) {
        const td_chan *chans = f->p->ranks[r].chans;
        size_t len = 0;
        f->tuple[len++] = f->colour[r];
        for (int32_t c = 0; c < n_chans(f->p, r); c++) {
            f->tuple[len++] = f->comm[chans[c].comm];
            f->tuple[len++] = f->p->comms[chans[c].comm].kind == TD_COMM_PAIR ? chans[c].me : -1;
        }
        f->next_colour[r] = td_intern_get(&f->ranks, f->tuple, len);
        ok = f->next_colour[r] >= 0;
    }
    int32_t *last = f->colour;
    f->colour = f->next_colour;
    f->next_colour = last;
    return ok;
}

/* Colours are numbered by their lowest rank and communicators by their lowest index: that is the
 * order of first sight. */
static td_status publish(td_arena *a, refiner *f, const td_fold **out, td_err *err)
{
    const td_program *p = f->p;
    const int32_t n_comms = f->comms.n;
    td_status st = TD_OK;
    size_t n_members = 0;
    td_fold *fold = TD_NEW(a, td_fold, 1);
    int32_t *class_of = TD_NEW(a, int32_t, p->world_size), *rep = TD_NEW(a, int32_t, f->n_colours);
    int32_t *comm_of = TD_NEW(a, int32_t, p->n_comms), *comm_rep = TD_NEW(a, int32_t, n_comms);
    int64_t *comm_size = TD_NEW(a, int64_t, n_comms);
    int32_t *first = TD_NEW(a, int32_t, n_comms + 1);
    int32_t *owner = malloc(((size_t)f->base[f->n_colours] + 1) * sizeof *owner);
    if (fold == NULL || class_of == NULL || rep == NULL || comm_of == NULL || comm_rep == NULL ||
        comm_size == NULL || first == NULL || owner == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d classes of ranks", f->n_colours));
    for (int32_t r = p->world_size - 1; r >= 0; r--) {
        class_of[r] = f->colour[r];
        rep[f->colour[r]] = r;
    }
    for (int32_t c = 0; c < f->n_colours; c++)
        for (int32_t i = f->base[c]; i < f->base[c + 1]; i++)
            owner[i] = c;
    for (int64_t c = p->n_comms - 1; c >= 0; c--) {
        comm_of[c] = f->comm[c];
        comm_rep[f->comm[c]] = (int32_t)c;
        comm_size[f->comm[c]]++;
    }
    for (int32_t c = 0; c < n_comms; c++)
        n_members += (f->comms.first[c + 1] - f->comms.first[c]) / 2;
    int32_t *member = TD_NEW(a, int32_t, n_members);
    if (member == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d classes of communicators", n_comms));
    int32_t n = 0;
    for (int32_t c = 0; c < n_comms; c++) {
        first[c] = n;
        for (size_t i = f->comms.first[c]; i < f->comms.first[c + 1]; i += 2)
            member[n++] = owner[f->comms.words[i]];
    }
    first[n_comms] = n;
    *fold = (td_fold){.n_classes = f->n_colours,
                      .n_comms = n_comms,
                      .class_of = class_of,
                      .rep = rep,
                      .comm_of = comm_of,
                      .comm_rep = comm_rep,
                      .comm_size = comm_size,
                      .member_first = first,
                      .members = member};
    *out = fold;
done:
    free(owner);
    return st;
}

td_status td_fold_build(td_arena *a, const td_program *p, const int32_t *colour, int32_t n_colours,
                        const td_fold **out, td_err *err)
{
    td_status st = TD_OK;
    td_arena *tmp = td_arena_new();
    refiner f = {.p = p};
    size_t widest = 2;
    if (tmp == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to fold %d ranks", p->world_size));
    TD_TRY(st, prepare(&f, tmp, colour, n_colours, err));
    for (int64_t c = 0; c < p->n_comms; c++)
        widest = (size_t)p->comms[c].n_ranks > widest ? (size_t)p->comms[c].n_ranks : widest;
    for (int32_t s = 0; s < p->n_streams; s++)
        widest = (size_t)p->streams[s].n_chans > widest ? (size_t)p->streams[s].n_chans : widest;
    f.touched = TD_NEW(tmp, int32_t, widest);
    f.tuple = TD_NEW(tmp, int32_t, 2 * widest + 1);
    if (f.touched == NULL || f.tuple == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to fold %d ranks", p->world_size));
    for (int32_t before = -1; before != f.n_colours;) {
        before = f.n_colours;
        if (!refine(&f))
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to fold %d ranks", p->world_size));
        f.n_colours = f.ranks.n;
    }
    if (!number_comms(&f)) /* by the final colours */
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to fold %d ranks", p->world_size));
    TD_TRY(st, publish(a, &f, out, err));
done:
    td_intern_free(&f.comms);
    td_intern_free(&f.ranks);
    free(f.base);
    free(f.count);
    td_arena_free(tmp);
    return st;
}
