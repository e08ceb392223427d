/* What compare keeps of a trace: read once to count, once for the times of the steps examined, once
 * more for parts. */
#include "traces/compare_side.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* `FILE: rank 3, lane fwd, op 17 (send), step 2: ` and the printf-like sentence. */
__attribute__((format(printf, 4, 5))) static td_status
violation(td_err *err, const td_side *s, const td_event *e, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td_fail(err, TD_FILE, "%s: rank %d, lane %s, op %d (%.60s), step %d: %s", s->path,
                   (int)e->rank, td_lane_names[e->lane], (int)e->op, e->kind, (int)e->step, text);
}

/* ---- counting ---- */

typedef struct {
    int64_t n; /* ops seen, over all steps */
    int32_t last_op;
} rank_count;

typedef struct {
    td_side *side;
    rank_count *ranks; /* grows */
    int32_t n_ranks, room;
    int32_t last_step;
} counter;

static td_status count_event(void *self, const td_event *e, td_err *err)
{
    td_status st = TD_OK;
    counter *c = self;
    if (e->start_ns < 0 || e->duration_ns < 0 || e->duration_ns > INT64_MAX - e->start_ns)
        TD_TRY(st, violation(err, c->side, e,
                             "starts at %lld ns and lasts %lld ns, expected times from 0 on",
                             (long long)e->start_ns, (long long)e->duration_ns));
    if (e->part >= 0) {
        c->side->n_children++;
        goto done;
    }
    if (e->rank >= c->room) {
        const int32_t room = e->rank < 512 ? 1024 : 2 * e->rank; /* ranks are at most a million */
        rank_count *more = realloc(c->ranks, (size_t)room * sizeof *more);
        if (more == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to count %d ranks", c->side->path,
                               (int)room));
        memset(more + c->room, 0, (size_t)(room - c->room) * sizeof *more);
        c->ranks = more;
        c->room = room;
    }
    rank_count *r = &c->ranks[e->rank];
    r->n++;
    r->last_op = e->op > r->last_op ? e->op : r->last_op;
    c->n_ranks = e->rank >= c->n_ranks ? e->rank + 1 : c->n_ranks;
    c->last_step = e->step > c->last_step ? e->step : c->last_step;
done:
    return st;
}

/* In how many steps each op of one rank was seen. */
typedef struct {
    int32_t rank;
    int64_t n;
    int32_t *seen;
} census;

static td_status take_census(void *self, const td_event *e, td_err *err)
{
    census *c = self;
    (void)err;
    if (e->part < 0 && e->rank == c->rank && e->op < c->n)
        c->seen[e->op]++;
    return TD_OK;
}

/* The counts of a rank cannot be right: says which op is missing, or there too often. */
static td_status miscounted(td_side *s, int32_t rank, const rank_count *r, td_err *err)
{
    td_status st = TD_OK;
    td_trace_meta meta;
    td_arena *scratch = td_arena_new();
    /* What it looks at is bounded by what was read: more ops than events cannot be complete. */
    census c = {.rank = rank, .n = (r->last_op < r->n ? r->last_op : r->n - 1) + 1};
    c.seen = calloc((size_t)c.n + 1, sizeof *c.seen);
    if (c.seen == NULL || scratch == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to count ops", s->path));
    TD_TRY(st, td_trace_visit(scratch, s->path, &meta, take_census, &c, err));
    for (int64_t op = 0; op < c.n; op++)
        if (c.seen[op] != s->n_steps)
            TD_TRY(st,
                   td_fail(err, TD_FILE,
                           "%s: rank %d: op %lld is there %d times in %d steps, expected once "
                           "in each",
                           s->path, (int)rank, (long long)op, (int)c.seen[op], (int)s->n_steps));
    st = td_fail(err, TD_FILE, "%s: rank %d: op %lld is not there, but op %d is", s->path,
                 (int)rank, (long long)c.n, (int)r->last_op);
done:
    td_arena_free(scratch);
    free(c.seen);
    return st;
}

static td_status lay_out(td_arena *a, const counter *c, td_side *s, td_err *err)
{
    td_status st = TD_OK;
    s->first = TD_NEW(a, int64_t, (size_t)s->world_size + 1);
    s->row = TD_NEW(a, int32_t, s->world_size);
    if (s->first == NULL || s->row == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "%s: no memory for %d ranks", s->path, (int)s->world_size));
    for (int32_t r = 0; r < s->world_size; r++) {
        const rank_count none = {0}, *count = r < c->n_ranks ? &c->ranks[r] : &none;
        const int64_t n = count->n, ops = n == 0 ? 0 : (int64_t)count->last_op + 1;
        if (n != ops * s->n_steps)
            TD_TRY(st, miscounted(s, r, count, err));
        s->first[r + 1] = s->first[r] + ops;
        s->row[r] = n == 0 ? -1 : s->n_rows++;
    }
    s->n_ops = s->first[s->world_size];
    if (s->n_ops == 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: the trace holds no ops", s->path));
done:
    return st;
}

td_status td_side_count(td_arena *a, const char *path, td_side *out, td_err *err)
{
    td_status st = TD_OK;
    struct stat about;
    td_side s = {.path = path};
    counter c = {.side = &s};
    if (stat(path, &about) != 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot open the trace: %s", path, strerror(errno)));
    if (!S_ISREG(about.st_mode))
        TD_TRY(st, td_fail(err, TD_FILE,
                           "%s: is not a file; a trace is read more than once, which "
                           "a folder or pipe does not allow",
                           path));
    TD_TRY(st, td_trace_visit(a, path, &s.meta, count_event, &c, err));
    s.world_size = s.meta.world_size;
    s.n_steps = s.meta.n_steps;
    if (c.n_ranks > s.world_size)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: there is an op of rank %d, but there are %d ranks",
                           path, (int)c.n_ranks - 1, (int)s.world_size));
    if (c.last_step >= s.n_steps)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: there is an op of step %d, but there are %d steps",
                           path, (int)c.last_step, (int)s.n_steps));
    TD_TRY(st, lay_out(a, &c, &s, err));
    *out = s;
done:
    free(c.ranks);
    return st;
}

/* ---- facts ---- */

typedef struct {
    td_side *side;
    td_arena *arena;
    int64_t *ctrl_ns, *any_ns; /* [n_rows][n_steps]: last end on lane ctrl, on any; -1 */
    int32_t *slot;             /* [n_steps]: place among the examined, -1 */
} times;

static td_status module_index(times *t, const td_event *e, int16_t *out, td_err *err)
{
    td_side *s = t->side;
    int32_t m = 0;
    *out = -1;
    if (e->module[0] == '\0')
        return TD_OK;
    while (m < s->n_modules && strcmp(s->modules[m], e->module) != 0)
        m++;
    if (m == TD_SIDE_MODULES)
        return violation(err, s, e, "this is the %dth module, expected at most %d", m + 1,
                         (int)TD_SIDE_MODULES);
    if (m == s->n_modules) {
        s->modules[m] = td_arena_printf(t->arena, "%s", e->module);
        if (s->modules[m] == NULL)
            return td_fail(err, TD_NOMEM, "%s: no memory for a module's name", s->path);
        s->n_modules++;
    }
    *out = (int16_t)m;
    return TD_OK;
}

/* The rank at the end of `send 3 to rank 5`; -1 if the name does not end in one. */
static int32_t peer_of(const td_side *s, const td_event *e)
{
    const char *at = e->name + strlen(e->name), *word = " rank ";
    int64_t peer = 0, unit = 1;
    while (at > e->name && at[-1] >= '0' && at[-1] <= '9' && unit <= 10 * TD_MAX_RANKS) {
        peer += unit * (*--at - '0');
        unit *= 10;
    }
    const size_t n = strlen(word);
    const bool told = unit > 1 && (size_t)(at - e->name) >= n && memcmp(at - n, word, n) == 0;
    return told && peer < s->world_size && peer != e->rank ? (int32_t)peer : -1;
}

static td_status fact_of(times *t, const td_event *e, td_side_op *out, td_err *err)
{
    td_status st = TD_OK;
    int kind = 0;
    int16_t module;
    while (kind < TD_N_OPS && strcmp(td_op_table[kind].name, e->kind) != 0)
        kind++;
    if (kind == TD_N_OPS)
        TD_TRY(st, violation(err, t->side, e, "is of a kind that no step program has"));
    TD_TRY(st, module_index(t, e, &module, err));
    const td_op_role role = td_op_table[kind].role;
    *out = (td_side_op){
        .kind = (uint8_t)kind,
        .lane = (uint8_t)e->lane,
        .module = module,
        .stage = e->stage,
        .mb = e->mb,
        .peer = role == TD_ROLE_COMPUTE || role == TD_ROLE_GROUP ? -1 : peer_of(t->side, e),
        .bytes = e->bytes};
done:
    return st;
}

/* ---- times ---- */

static td_status read_event(void *self, const td_event *e, td_err *err)
{
    td_status st = TD_OK;
    times *t = self;
    td_side *s = t->side;
    if (e->part >= 0)
        return TD_OK;
    if (e->rank >= s->world_size || s->row[e->rank] < 0 || e->step >= s->n_steps ||
        e->op >= s->first[e->rank + 1] - s->first[e->rank])
        TD_TRY(st, td_fail(err, TD_FILE, "%s: the file changed while it was read", s->path));
    const int64_t i = s->first[e->rank] + e->op,
                  cell = (int64_t)s->row[e->rank] * s->n_steps + e->step,
                  end = e->start_ns + e->duration_ns;
    td_side_op fact;
    TD_TRY(st, fact_of(t, e, &fact, err));
    if (s->rank[i] < 0) {
        s->rank[i] = e->rank;
        s->ops[i] = fact;
    } else if (fact.kind != s->ops[i].kind || fact.lane != s->ops[i].lane ||
               fact.mb != s->ops[i].mb || fact.stage != s->ops[i].stage ||
               fact.module != s->ops[i].module || fact.bytes != s->ops[i].bytes) {
        TD_TRY(st, violation(err, s, e, "is another op in another step (%s)",
                             td_op_table[s->ops[i].kind].name));
    }
    if (t->any_ns[cell] < end)
        t->any_ns[cell] = end;
    if (e->lane == TD_LANE_CTRL && t->ctrl_ns[cell] < end)
        t->ctrl_ns[cell] = end;
    s->origin_ns = e->start_ns < s->origin_ns ? e->start_ns : s->origin_ns;
    if (t->slot[e->step] >= 0) {
        td_span *span = &s->spans[t->slot[e->step] * s->n_ops + i];
        if (span->start_ns >= 0)
            TD_TRY(st, violation(err, s, e, "occurs twice"));
        *span = (td_span){.start_ns = e->start_ns, .begin_ns = e->start_ns, .end_ns = end};
    }
done:
    return st;
}

/* All steps, or as many as fit, first and last included. */
static td_status choose_steps(td_arena *a, times *t, td_err *err)
{
    td_status st = TD_OK;
    td_side *s = t->side;
    int64_t fit = TD_COMPARE_BYTES / ((int64_t)sizeof(td_span) * s->n_ops);
    fit = fit < 3 ? 3 : fit;
    s->n_examined = fit < s->n_steps ? (int32_t)fit : s->n_steps;
    s->examined = TD_NEW(a, int32_t, s->n_examined);
    s->spans = TD_NEW(a, td_span, (size_t)s->n_examined * (size_t)s->n_ops);
    if (s->examined == NULL || s->spans == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for the times of %d steps of %lld ops",
                           s->path, (int)s->n_examined, (long long)s->n_ops));
    memset(t->slot, 0xff, (size_t)s->n_steps * sizeof *t->slot);
    for (int32_t i = 0; i < s->n_examined; i++) {
        s->examined[i] =
            s->n_examined == 1 ? 0 : (int32_t)((int64_t)i * (s->n_steps - 1) / (s->n_examined - 1));
        t->slot[s->examined[i]] = i;
    }
    for (int64_t i = 0; i < s->n_examined * s->n_ops; i++)
        s->spans[i].start_ns = -1;
done:
    return st;
}

/* Where steps end, how long they are, and which of those examined is the median one. */
static td_status measure_steps(td_arena *a, times *t, td_err *err)
{
    td_status st = TD_OK;
    td_side *s = t->side;
    s->end_ns = t->ctrl_ns;
    s->step_s = TD_NEW(a, double, s->n_steps);
    double *sorted = malloc((size_t)s->n_steps * sizeof *sorted);
    if (s->step_s == NULL || sorted == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for %d steps", s->path, (int)s->n_steps));
    for (int32_t r = 0; r < s->world_size; r++)
        for (int32_t step = 0; s->row[r] >= 0 && step < s->n_steps; step++) {
            const int64_t cell = (int64_t)s->row[r] * s->n_steps + step;
            if (s->end_ns[cell] < 0) /* a rank without world collectives */
                s->end_ns[cell] = t->any_ns[cell];
            const int64_t lasts = s->end_ns[cell] - td_side_end_ns(s, r, step - 1);
            if (lasts < 0)
                TD_TRY(st, td_fail(err, TD_FILE,
                                   "%s: rank %d: step %d ends %lld ns before the step before it",
                                   s->path, (int)r, (int)step, (long long)-lasts));
            s->step_s[step] = fmax(s->step_s[step], 1e-9 * (double)lasts);
        }
    memcpy(sorted, s->step_s, (size_t)s->n_steps * sizeof *sorted);
    s->step_median_s = td_median(sorted, s->n_steps);
    if (!(s->step_median_s > 0))
        TD_TRY(st, td_fail(err, TD_FILE, "%s: a step takes no time", s->path));
    for (int32_t i = 1; i < s->n_examined; i++)
        if (fabs(s->step_s[s->examined[i]] - s->step_median_s) <
            fabs(s->step_s[s->examined[s->median]] - s->step_median_s))
            s->median = i;
done:
    free(sorted);
    return st;
}

/* On a rank's lane ops follow one another in the order of the stream, step after step. */
static td_status check_order(const td_side *s, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t r = 0; r < s->world_size; r++) {
        int64_t ended[TD_N_LANES] = {0}, last[TD_N_LANES];
        memset(last, -1, sizeof last);
        for (int32_t k = 0; k < s->n_examined; k++)
            for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
                const td_span *span = &td_side_step(s, k)[i];
                const td_side_op *op = &s->ops[i];
                const td_event e = {.rank = r,
                                    .lane = op->lane,
                                    .op = (int32_t)(i - s->first[r]),
                                    .step = s->examined[k],
                                    .kind = td_op_table[op->kind].name};
                if (span->start_ns < 0)
                    TD_TRY(st, violation(err, s, &e, "is missing"));
                if (span->start_ns < ended[op->lane])
                    TD_TRY(st, violation(err, s, &e,
                                         "starts at %lld ns, before op %lld, which comes first on "
                                         "its lane, ends at %lld ns",
                                         (long long)span->start_ns, (long long)last[op->lane],
                                         (long long)ended[op->lane]));
                ended[op->lane] = span->end_ns;
                last[op->lane] = e.op;
            }
    }
done:
    return st;
}

/* ---- parts ---- */

static td_status read_part(void *self, const td_event *e, td_err *err)
{
    td_status st = TD_OK;
    times *t = self;
    td_side *s = t->side;
    if (e->part < 0)
        goto done;
    if (e->rank >= s->world_size || e->step >= s->n_steps ||
        e->op >= s->first[e->rank + 1] - s->first[e->rank])
        TD_TRY(st, violation(err, s, e, "part %d is of an op that is not there", (int)e->part));
    if (t->slot[e->step] >= 0) {
        const td_span *op = &td_side_step(s, t->slot[e->step])[s->first[e->rank] + e->op];
        if (e->start_ns < op->start_ns || e->start_ns + e->duration_ns > op->end_ns)
            TD_TRY(st, violation(err, s, e,
                                 "part %d runs from %lld to %lld ns, outside its op's %lld to %lld "
                                 "ns",
                                 (int)e->part, (long long)e->start_ns,
                                 (long long)(e->start_ns + e->duration_ns), (long long)op->start_ns,
                                 (long long)op->end_ns));
    }
    int16_t module;
    int32_t p = 0;
    TD_TRY(st, module_index(t, e, &module, err));
    while (p < s->n_parts &&
           (s->parts[p].module != module || strncmp(s->parts[p].kind, e->kind, 31) != 0))
        p++;
    if (p == TD_SIDE_PARTS)
        TD_TRY(st, violation(err, s, e, "more than %d kinds of parts", (int)TD_SIDE_PARTS));
    if (p == s->n_parts) {
        snprintf(s->parts[p].kind, sizeof s->parts[p].kind, "%.31s", e->kind);
        s->parts[p].module = module;
        s->n_parts++;
    }
    s->parts[p].count++;
    s->parts[p].s += 1e-9 * (double)e->duration_ns;
done:
    return st;
}

td_status td_side_read(td_arena *a, td_side *s, td_err *err)
{
    td_status st = TD_OK;
    td_trace_meta again;
    times t = {.side = s, .arena = a};
    const size_t cells = (size_t)s->n_rows * (size_t)s->n_steps;
    s->rank = TD_NEW(a, int32_t, s->n_ops);
    s->ops = TD_NEW(a, td_side_op, s->n_ops);
    t.ctrl_ns = TD_NEW(a, int64_t, cells);
    t.any_ns = malloc(cells * sizeof *t.any_ns);
    t.slot = malloc((size_t)s->n_steps * sizeof *t.slot);
    if (s->rank == NULL || s->ops == NULL || t.ctrl_ns == NULL || t.any_ns == NULL ||
        t.slot == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "%s: no memory for %lld ops", s->path, (long long)s->n_ops));
    memset(s->rank, 0xff, (size_t)s->n_ops * sizeof *s->rank);
    memset(t.ctrl_ns, 0xff, cells * sizeof *t.ctrl_ns);
    memset(t.any_ns, 0xff, cells * sizeof *t.any_ns);
    s->origin_ns = INT64_MAX;
    TD_TRY(st, choose_steps(a, &t, err));
    TD_TRY(st, td_trace_visit(a, s->path, &again, read_event, &t, err));
    TD_TRY(st, check_order(s, err));
    TD_TRY(st, measure_steps(a, &t, err));
    if (s->n_children > 0) {
        s->parts = TD_NEW(a, td_side_part, TD_SIDE_PARTS);
        if (s->parts == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for parts", s->path));
        TD_TRY(st, td_trace_visit(a, s->path, &again, read_part, &t, err));
    }
done:
    free(t.slot);
    free(t.any_ns);
    return st;
}

const char *td_side_name_op(const td_side *s, int64_t i, char *text, int size)
{
    const td_side_op *op = &s->ops[i];
    const td_op_role role = td_op_table[op->kind].role;
    char mb[16] = "", peer[32] = "";
    if (op->mb >= 0)
        snprintf(mb, sizeof mb, " %d", (int)op->mb);
    if (op->peer >= 0)
        snprintf(peer, sizeof peer, " %s rank %d", role == TD_ROLE_RECV ? "from" : "to",
                 (int)op->peer);
    snprintf(text, (size_t)size, "%s%s%s", td_op_table[op->kind].name, mb, peer);
    return text;
}
