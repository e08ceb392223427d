/* Matching, order and progress of a step program. */
#include "model/program_check.h"
#include "model/module.h"

#include <string.h>

/* Ops of one stream by channel, and which (stream, channel) pairs have been found to match already.
 */
typedef struct seen {
    struct seen *next;
    int32_t stream, chan;
} seen;

typedef struct {
    td_arena *a;
    const td_program *p;
    td_err *err;
    int32_t **first; /* [stream][n_chans + 1] into ops */
    int32_t **ops;   /* [stream] op indices sorted by channel, in order */
    seen ***matched; /* [stream][chan] */
} checker;

static td_status no_memory(const checker *c)
{
    return td_fail(c->err, TD_NOMEM, "no memory to check the step program");
}

/* The lowest rank of a stream, for messages. */
static int32_t rank_of_stream(const td_program *p, int32_t stream)
{
    int32_t r = 0;
    while (r < p->world_size && p->ranks[r].stream != stream)
        r++;
    return r;
}

static td_status broken(const checker *c, int32_t rank, int32_t op, const char *what)
{
    char label[32];
    td_op_label(&td_program_stream(c->p, rank)->ops[op], label, sizeof label);
    return td_fail(c->err, TD_PLAN, "rank %d, op %d (%s): %s", (int)rank, (int)op, label, what);
}

/* Does the op that `dep` names have as many parts? */
static bool has_part(const td_program *p, const td_stream *s, const td_dep *dep)
{
    const td_op *op = &s->ops[dep->op];
    return td_op_table[op->kind].role == TD_ROLE_COMPUTE &&
           dep->after_part <= p->works[op->work].n_flat;
}

static td_status check_stream(const checker *c, int32_t index)
{
    td_status st = TD_OK;
    const td_stream *s = &c->p->streams[index];
    const int32_t rank = rank_of_stream(c->p, index), m = c->p->plan->step.microbatches;
    unsigned char *done = TD_NEW(c->a, unsigned char, m);
    const bool backward = s->module >= 0 && td_stage_of(c->p->plan, s->module, s->pp_rank).backward;
    int32_t held = 0, forwards = 0, backwards = 0;
    if (done == NULL)
        TD_TRY(st, no_memory(c));
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        const bool computes = op->kind < TD_N_OPS && td_op_table[op->kind].role == TD_ROLE_COMPUTE;
        if (op->kind >= TD_N_OPS || op->lane >= TD_N_LANES)
            TD_TRY(st, td_fail(c->err, TD_PLAN, "rank %d, op %d: unknown kind or lane", (int)rank,
                               (int)i));
        if (computes ? op->work < 0 || op->work >= c->p->n_works
                     : op->chan < 0 || op->chan >= s->n_chans)
            TD_TRY(st, broken(c, rank, i, "has no work or channel of the program"));
        for (uint32_t d = op->dep_first; d < op->dep_first + op->n_deps; d++)
            if (d >= s->n_deps || s->deps[d].op < 0 || s->deps[d].op >= i)
                TD_TRY(st, broken(c, rank, i, "depends on an op that does not come before it"));
            else if (s->deps[d].after_part >= 0 && !has_part(c->p, s, &s->deps[d]))
                TD_TRY(st, broken(c, rank, i, "depends on a part that the op before it lacks"));
        if (op->kind == TD_OP_FORWARD) {
            if (op->mb < 0 || op->mb >= m || done[op->mb] != 0)
                TD_TRY(st, broken(c, rank, i, "the forward of this microbatch is there twice"));
            done[op->mb] = 1;
            forwards++;
            held += backward;
            if (held > c->p->total_stages - s->stage)
                TD_TRY(st,
                       broken(c, rank, i, "more microbatches in flight than the schedule's bound"));
        }
        if (op->kind == TD_OP_BACKWARD) {
            if (op->mb < 0 || op->mb >= m || done[op->mb] != 1)
                TD_TRY(st,
                       broken(c, rank, i,
                              "a backward must follow the one forward of its microbatch, once"));
            done[op->mb] = 2;
            backwards++;
            held--;
        }
    }
    if (s->module >= 0 && (forwards != m || backwards != (backward ? m : 0)))
        TD_TRY(st,
               td_fail(c->err, TD_PLAN, "rank %d: %d forwards and %d backwards of %d microbatches",
                       (int)rank, (int)forwards, (int)backwards, (int)m));
done:
    return st;
}

static td_status index_stream(checker *c, int32_t index)
{
    const td_stream *s = &c->p->streams[index];
    int32_t *first = TD_NEW(c->a, int32_t, s->n_chans + 1), *ops = TD_NEW(c->a, int32_t, s->n_ops);
    int32_t *fill = TD_NEW(c->a, int32_t, s->n_chans);
    c->first[index] = first;
    c->ops[index] = ops;
    c->matched[index] = TD_NEW(c->a, seen *, s->n_chans);
    if (first == NULL || ops == NULL || fill == NULL || c->matched[index] == NULL)
        return no_memory(c);
    for (int32_t i = 0; i < s->n_ops; i++)
        if (s->ops[i].chan >= 0)
            first[s->ops[i].chan + 1]++;
    for (int32_t k = 0; k < s->n_chans; k++)
        first[k + 1] += first[k];
    for (int32_t i = 0; i < s->n_ops; i++)
        if (s->ops[i].chan >= 0)
            ops[first[s->ops[i].chan] + fill[s->ops[i].chan]++] = i;
    return TD_OK;
}

/* Is `b` what the other side of `a` must do? `sender` says that `a` is a pair's sending side. */
static bool meets(const td_op *a, const td_op *b, bool pair)
{
    static const uint8_t answer[TD_N_OPS] = {
        [TD_OP_SEND] = TD_OP_RECV, [TD_OP_SEND_SHAPE] = TD_OP_RECV_SHAPE};
    return (pair ? answer[a->kind] != 0 && answer[a->kind] == b->kind : a->kind == b->kind) &&
           a->bytes == b->bytes && a->mb == b->mb && a->bucket == b->bucket;
}

/* Compares two members of a communicator op by op. For a pair `a` is the sender. */
static td_status match(const checker *c, const td_comm *comm, int32_t rank_a, int32_t chan_a,
                       int32_t rank_b, int32_t chan_b)
{
    const int32_t sa = c->p->ranks[rank_a].stream, sb = c->p->ranks[rank_b].stream;
    const int32_t n_a = c->first[sa][chan_a + 1] - c->first[sa][chan_a];
    const int32_t n_b = c->first[sb][chan_b + 1] - c->first[sb][chan_b];
    for (int32_t k = 0; k < n_a || k < n_b; k++) {
        const int32_t i = k < n_a ? c->ops[sa][c->first[sa][chan_a] + k] : -1;
        const int32_t j = k < n_b ? c->ops[sb][c->first[sb][chan_b] + k] : -1;
        const td_op *a = i < 0 ? NULL : &c->p->streams[sa].ops[i],
                    *b = j < 0 ? NULL : &c->p->streams[sb].ops[j];
        char la[32] = "nothing", lb[32] = "nothing";
        if (a != NULL && b != NULL && meets(a, b, comm->kind == TD_COMM_PAIR))
            continue;
        if (a != NULL)
            td_op_label(a, la, sizeof la);
        if (b != NULL)
            td_op_label(b, lb, sizeof lb);
        return td_fail(c->err, TD_PLAN,
                       "rank %d, op %d (%s, %llu bytes) is not met: rank %d does op %d (%s, %llu "
                       "bytes) as exchange %d of "
                       "their %s communicator",
                       (int)rank_a, (int)i, la, a == NULL ? 0ULL : (unsigned long long)a->bytes,
                       (int)rank_b, (int)j, lb, b == NULL ? 0ULL : (unsigned long long)b->bytes,
                       (int)k, td_comm_names[comm->kind]);
    }
    return TD_OK;
}

/* The channel of `rank` that stands for member `me` of communicator `comm`; -1 if there is none. */
static int32_t chan_of(const td_program *p, int32_t rank, int32_t comm)
{
    int32_t found = -1;
    for (int32_t k = 0; k < td_program_stream(p, rank)->n_chans && found < 0; k++)
        if (p->ranks[rank].chans[k].comm == comm)
            found = k;
    return found;
}

/* Every channel leads to a communicator that the rank is in, at the place it says. */
static td_status check_rank(const checker *c, int32_t rank)
{
    td_status st = TD_OK;
    for (int32_t k = 0; k < td_program_stream(c->p, rank)->n_chans && st == TD_OK; k++) {
        const td_chan *chan = &c->p->ranks[rank].chans[k];
        const bool known = chan->comm >= 0 && chan->comm < c->p->n_comms;
        if (!known || chan->me < 0 || chan->me >= c->p->comms[chan->comm].n_ranks ||
            c->p->comms[chan->comm].ranks[chan->me] != rank)
            st = td_fail(c->err, TD_PLAN,
                         "rank %d, channel %d: leads to no communicator that the rank is in",
                         (int)rank, (int)k);
    }
    return st;
}

static td_status check_comm(const checker *c, int32_t index)
{
    td_status st = TD_OK;
    const td_comm *comm = &c->p->comms[index];
    const int32_t first = comm->ranks[0], chan = chan_of(c->p, first, index);
    if (chan < 0)
        TD_TRY(st, td_fail(c->err, TD_PLAN,
                           "rank %d has no channel to a communicator it belongs to", (int)first));
    seen **known = &c->matched[c->p->ranks[first].stream][chan];
    for (int32_t i = 1; i < comm->n_ranks; i++) {
        const int32_t rank = comm->ranks[i], other = chan_of(c->p, rank, index),
                      stream = c->p->ranks[rank].stream;
        const seen *k = *known;
        if (other < 0)
            TD_TRY(st,
                   td_fail(c->err, TD_PLAN,
                           "rank %d has no channel to a communicator it belongs to", (int)rank));
        while (k != NULL && (k->stream != stream || k->chan != other))
            k = k->next;
        if (k != NULL)
            continue;
        TD_TRY(st, match(c, comm, first, chan, rank, other));
        seen *fresh = TD_NEW(c->a, seen, 1);
        if (fresh == NULL)
            TD_TRY(st, no_memory(c));
        *fresh = (seen){.next = *known, .stream = stream, .chan = other};
        *known = fresh;
    }
done:
    return st;
}

td_status td_program_check(td_arena *a, const td_program *p, td_err *err)
{
    td_status st = TD_OK;
    checker c = {.a = a, .p = p, .err = err};
    c.first = TD_NEW(a, int32_t *, p->n_streams);
    c.ops = TD_NEW(a, int32_t *, p->n_streams);
    c.matched = TD_NEW(a, seen **, p->n_streams);
    if (c.first == NULL || c.ops == NULL || c.matched == NULL)
        TD_TRY(st, no_memory(&c));
    for (int32_t i = 0; i < p->n_streams; i++) {
        TD_TRY(st, check_stream(&c, i));
        TD_TRY(st, index_stream(&c, i));
    }
    for (int32_t r = 0; r < p->world_size; r++)
        TD_TRY(st, check_rank(&c, r));
    for (int64_t i = 0; i < p->n_comms; i++)
        TD_TRY(st, check_comm(&c, (int32_t)i));
done:
    return st;
}

td_status td_plan_progress(td_arena *a, const td_plan *plan, td_progress out[TD_N_COMPLETIONS],
                           td_err *err)
{
    td_status st = TD_OK;
    td_pipeline whole, small;
    const int32_t *origin;
    int32_t n_micro = plan->step.microbatches;
    TD_TRY(st, td_pipeline_of_plan(a, plan, &whole, err));
    TD_TRY(st, td_pipeline_shrink(a, &whole, &n_micro, &small, &origin, err));
    for (int32_t i = 0; i < TD_N_COMPLETIONS; i++) {
        td_waiter *cycle;
        TD_TRY(st, td_progress_judge(a, &small, td_schedule_find(plan->step.schedule), n_micro,
                                     plan->step.shape_exchange, (td_completion)i, &out[i], err));
        cycle = TD_NEW(a, td_waiter, out[i].n_cycle);
        if (cycle == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to name a cycle"));
        for (int32_t k = 0; k < out[i].n_cycle; k++) {
            cycle[k] = out[i].cycle[k];
            cycle[k].rank = origin[cycle[k].rank];
        }
        out[i].cycle = cycle;
    }
done:
    return st;
}

td_completion td_progress_needs(const td_progress progress[TD_N_COMPLETIONS])
{
    int32_t rule = 0;
    while (rule < TD_N_COMPLETIONS && !progress[rule].completes)
        rule++;
    return (td_completion)rule;
}
