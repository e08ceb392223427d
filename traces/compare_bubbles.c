/* Where the time of a rank goes, and why its compute lane stands still. */
#include "traces/compare_side.h"

#include <string.h>

const char *const td_cause_names[TD_N_CAUSES] = {
#define X(cause, name, words) [TD_CAUSE_##cause] = name,
    TD_CAUSE_MAP(X)
#undef X
};

const char *const td_cause_words[TD_N_CAUSES] = {
#define X(cause, name, words) [TD_CAUSE_##cause] = words,
    TD_CAUSE_MAP(X)
#undef X
};

/* A rank in an examined step. */
typedef struct {
    const td_structure *x;
    const td_side *side;
    const td_span *spans;
    int64_t begin_ns, end_ns;                          /* of its step */
    const int64_t *at[TD_N_LANES], *until[TD_N_LANES]; /* ops of its lanes: next, behind the last */
} view;

static view view_of(const td_structure *x, const td_side *s, int32_t rank, int32_t examined)
{
    const int32_t step = s->examined[examined];
    view v = {.x = x,
              .side = s,
              .spans = td_side_step(s, examined),
              .begin_ns = td_side_end_ns(s, rank, step - 1),
              .end_ns = td_side_end_ns(s, rank, step)};
    for (int32_t lane = 0; lane < TD_N_LANES; lane++) {
        v.at[lane] = x->lane_ops + x->lane_first[rank * TD_N_LANES + lane];
        v.until[lane] = x->lane_ops + x->lane_first[rank * TD_N_LANES + lane + 1];
    }
    return v;
}

/* ---- busy, collective, transfer, nothing ---- */

void td_split_of(const td_structure *x, const td_side *s, int32_t rank, int32_t examined,
                 td_compare_split *out)
{
    enum { BUSY, COLLECTIVE, TRANSFER, N_LEVELS };
    static const int level_of[TD_N_LANES] = {
        [TD_LANE_COMPUTE] = BUSY,    [TD_LANE_TP] = COLLECTIVE, [TD_LANE_DP] = COLLECTIVE,
        [TD_LANE_CTRL] = COLLECTIVE, [TD_LANE_FWD] = TRANSFER,  [TD_LANE_BWD] = TRANSFER};
    int64_t spent[N_LEVELS + 1] = {0};
    *out = (td_compare_split){0};
    if (s->row[rank] < 0)
        return;
    view v = view_of(x, s, rank, examined);
    for (int64_t now = v.begin_ns; now < v.end_ns;) {
        int64_t until = v.end_ns;
        int level = N_LEVELS;
        for (int32_t lane = 0; lane < TD_N_LANES; lane++) {
            while (v.at[lane] < v.until[lane] && v.spans[*v.at[lane]].end_ns <= now)
                v.at[lane]++;
            if (v.at[lane] == v.until[lane])
                continue;
            const td_span *span = &v.spans[*v.at[lane]];
            const int64_t change = span->begin_ns > now ? span->begin_ns : span->end_ns;
            if (span->begin_ns <= now && level_of[lane] < level)
                level = level_of[lane];
            until = change < until ? change : until;
        }
        spent[level] += until - now;
        now = until;
    }
    out->busy_s = 1e-9 * (double)spent[BUSY];
    out->collective_s = 1e-9 * (double)spent[COLLECTIVE];
    out->transfer_s = 1e-9 * (double)spent[TRANSFER];
    out->bubble_s = 1e-9 * (double)spent[N_LEVELS];
}

/* ---- why ---- */

/* The pipeline of a rank: which of its ops end the filling and begin the draining. */
typedef struct {
    int64_t filled, last_forward; /* ops; -1 without any */
    int64_t first_ctrl;           /* the first op on lane ctrl, -1 */
    int64_t first_compute;
} phases;

static phases phases_of(const view *v)
{
    phases p = {-1, -1, -1, -1};
    int64_t first_forward = -1;
    for (const int64_t *i = v->at[TD_LANE_COMPUTE]; i < v->until[TD_LANE_COMPUTE]; i++) {
        const int kind = v->side->ops[*i].kind;
        if (kind == TD_OP_BACKWARD && p.filled < 0)
            p.filled = *i;
        if (kind == TD_OP_FORWARD && first_forward < 0)
            first_forward = *i;
        if (kind == TD_OP_FORWARD)
            p.last_forward = *i;
        if (p.first_compute < 0)
            p.first_compute = *i;
    }
    if (p.filled < 0)
        p.filled = first_forward;
    if (v->at[TD_LANE_CTRL] < v->until[TD_LANE_CTRL])
        p.first_ctrl = *v->at[TD_LANE_CTRL];
    return p;
}

static bool in_pipeline(const view *v, int64_t op)
{
    const int kind = op < 0 ? TD_N_OPS : v->side->ops[op].kind;
    return kind == TD_OP_FORWARD || kind == TD_OP_BACKWARD;
}

/* Whether an op exchanges with another module. */
static bool bridges(const view *v, int64_t op)
{
    const td_side *program = v->x->side;
    const td_side_op *o = &program->ops[op];
    if (o->kind == TD_OP_BROADCAST)
        return true;
    if (o->peer < 0 || program->row[o->peer] < 0)
        return false;
    return program->ops[program->first[o->peer]].module != o->module;
}

static void add(double *causes, td_cause cause, int64_t ns)
{
    causes[cause] += ns > 0 ? 1e-9 * (double)ns : 0;
}

/* The gap [from, to) that a forward or backward, `next`, ends. */
static void blame_pipeline(view *v, const phases *p, int64_t from, int64_t to, int64_t next,
                           double *causes)
{
    static const td_lane lanes[] = {TD_LANE_TP, TD_LANE_FWD, TD_LANE_BWD};
    int64_t brought = -1, ended = from;
    for (size_t l = 0; l < sizeof lanes / sizeof *lanes; l++)
        for (const int64_t **at = &v->at[lanes[l]];
             *at < v->until[lanes[l]] && v->spans[**at].end_ns <= to; ++*at)
            if (v->spans[**at].end_ns > ended) {
                brought = **at;
                ended = v->spans[brought].end_ns;
            }
    add(causes, TD_CAUSE_ISSUE, to - ended);
    if (brought < 0)
        return;
    if (p->filled >= 0 && next <= p->filled) {
        add(causes, TD_CAUSE_FILL, ended - from);
    } else if (next > p->last_forward) {
        add(causes, TD_CAUSE_DRAIN, ended - from);
    } else if (bridges(v, brought)) {
        add(causes, TD_CAUSE_BRIDGE, ended - from);
    } else {
        int64_t begin = v->spans[brought].begin_ns;
        begin = begin < from ? from : begin > ended ? ended : begin;
        add(causes, TD_CAUSE_IMBALANCE, begin - from);
        add(causes, TD_CAUSE_TRANSFER, ended - begin);
    }
}

/* A piece of a gap that communication `op` ended. */
static void blame_tail_op(const view *v, const phases *p, int64_t from, int64_t to, int64_t op,
                          double *causes)
{
    const td_side_op *o = &v->x->side->ops[op];
    if (o->lane == TD_LANE_DP || o->kind == TD_OP_TP_GRAD_ALL_REDUCE) {
        add(causes, TD_CAUSE_DATA_PARALLEL, to - from);
    } else if (o->lane != TD_LANE_CTRL) {
        add(causes, TD_CAUSE_DRAIN, to - from);
    } else {
        int64_t begin = v->spans[op].begin_ns;
        begin = begin < from ? from : begin > to ? to : begin;
        add(causes, op == p->first_ctrl ? TD_CAUSE_DRAIN : TD_CAUSE_STRAGGLER, begin - from);
        add(causes, TD_CAUSE_OPTIMIZER, to - begin);
    }
}

/* The gap [from, to) outside the pipeline; `next` is -1 at the end of the step. */
static void blame_tail(view *v, const phases *p, int64_t from, int64_t to, int64_t next,
                       double *causes)
{
    for (;;) {
        int32_t first = -1;
        for (int32_t lane = 0; lane < TD_N_LANES; lane++) {
            while (v->at[lane] < v->until[lane] && v->spans[*v->at[lane]].end_ns <= from)
                v->at[lane]++;
            if (lane != TD_LANE_COMPUTE && v->at[lane] < v->until[lane] &&
                v->spans[*v->at[lane]].end_ns <= to &&
                (first < 0 || v->spans[*v->at[lane]].end_ns < v->spans[*v->at[first]].end_ns))
                first = lane;
        }
        if (first < 0)
            break;
        const int64_t op = *v->at[first]++;
        blame_tail_op(v, p, from, v->spans[op].end_ns, op, causes);
        from = v->spans[op].end_ns;
    }
    add(causes, next >= 0 && next == p->first_compute ? TD_CAUSE_ISSUE : TD_CAUSE_OPTIMIZER,
        to - from);
}

void td_still_of(const td_structure *x, const td_side *s, int32_t rank, int32_t examined,
                 double out[TD_N_CAUSES])
{
    memset(out, 0, TD_N_CAUSES * sizeof *out);
    if (s->row[rank] < 0)
        return;
    view v = view_of(x, s, rank, examined);
    const phases p = phases_of(&v);
    const int64_t *compute = v.at[TD_LANE_COMPUTE], *last = v.until[TD_LANE_COMPUTE];
    int64_t from = v.begin_ns;
    for (;;) {
        const int64_t next = compute < last ? *compute++ : -1;
        int64_t to = next < 0 ? v.end_ns : v.spans[next].start_ns;
        to = to < v.end_ns ? to : v.end_ns;
        if (to > from && in_pipeline(&v, next))
            blame_pipeline(&v, &p, from, to, next, out);
        else if (to > from)
            blame_tail(&v, &p, from, to, next, out);
        if (next < 0)
            break;
        from = v.spans[next].end_ns > from ? v.spans[next].end_ns : from;
    }
}
