/* Explains a standstill: which issued ops have not ended, and whom they wait for. */
#include "sim/loop.h"

#include <stdarg.h>
#include <stdio.h>

enum { SHOWN = 4 };

typedef struct {
    char *text;
    size_t size, used;
} line;

__attribute__((format(printf, 2, 3))) static void say(line *to, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(to->text + to->used, to->size - to->used, format, args);
    va_end(args);
    if (n > 0)
        to->used = to->used + (size_t)n < to->size ? to->used + (size_t)n : to->size - 1;
}

static void name_op(line *to, const td_loop *l, int32_t rank, int32_t op)
{
    char label[64];
    td_op_label(&td_program_stream(l->program, rank)->ops[op], label, sizeof label);
    say(to, "rank %d, op %d (%s)", rank, op, label);
}

static const td_actor *actor_of(const td_loop *l, int32_t rank)
{
    return &l->actors[l->fold == NULL ? rank : l->fold->class_of[rank]];
}

/* The op before it on its lane and everything it depends on have ended. */
static bool issued(const td_actor *a, int32_t op)
{
    const td_stream *s = a->script->stream;
    bool ready = true;
    for (uint32_t k = 0; k < s->ops[op].n_deps; k++)
        ready &= a->end[s->deps[s->ops[op].dep_first + k].op] >= 0;
    int32_t before = op - 1;
    while (before >= 0 && s->ops[before].lane != s->ops[op].lane)
        before--;
    return ready && (before < 0 || a->end[before] >= 0);
}

/* The op of a member in one exchange of a communicator; -1: it has none. */
static int32_t counterpart(const td_loop *l, int32_t rank, int32_t comm, int32_t ordinal)
{
    const td_script *s = actor_of(l, rank)->script;
    for (int32_t i = 0; i < s->n_ops; i++)
        if (s->ops[i].chan >= 0 && s->ops[i].ordinal == ordinal &&
            l->program->ranks[rank].chans[s->ops[i].chan].comm == comm)
            return i;
    return -1;
}

static void say_why(line *to, const td_loop *l, int32_t rank, int32_t op)
{
    const td_script_op *o = &actor_of(l, rank)->script->ops[op];
    if (o->role == TD_ROLE_COMPUTE) {
        say(to, " computes");
        return;
    }
    const int32_t c = l->program->ranks[rank].chans[o->chan].comm;
    const td_comm *comm = &l->program->comms[c];
    for (int32_t i = 0; i < comm->n_ranks; i++) {
        const int32_t peer = comm->ranks[i], theirs = counterpart(l, peer, c, o->ordinal);
        if (theirs < 0) {
            say(to, " waits for rank %d, which has no op for it", peer);
            return;
        }
        if (actor_of(l, peer)->end[theirs] < 0 && !issued(actor_of(l, peer), theirs)) {
            say(to, " waits for ");
            name_op(to, l, peer, theirs);
            say(to, ", which has not been issued");
            return;
        }
    }
    say(to, " is under way");
}

void td_stuck_text(const td_loop *l, char *text, size_t size)
{
    line to = {.text = text, .size = size};
    int64_t n_done = 0, n_stuck = 0;
    for (int32_t i = 0; i < l->n_actors; i++)
        for (int32_t op = 0; op < l->actors[i].script->n_ops; op++)
            n_done += l->actors[i].end[op] >= 0;
    say(&to, "%lld of %lld ops have ended", (long long)n_done, (long long)l->n_ops);
    for (int32_t i = 0; i < l->n_actors; i++) {
        const int32_t rank = l->fold == NULL ? i : l->fold->rep[i];
        int32_t op = 0; /* the first op that has not ended has always been issued */
        while (op < l->actors[i].script->n_ops && l->actors[i].end[op] >= 0)
            op++;
        if (op == l->actors[i].script->n_ops || n_stuck++ >= SHOWN)
            continue;
        say(&to, "; ");
        name_op(&to, l, rank, op);
        say_why(&to, l, rank, op);
    }
    if (n_stuck > SHOWN)
        say(&to, "; and %lld more ranks", (long long)(n_stuck - SHOWN));
}
