/* From observations to a profile: tables, rooflines, overlap, clocks, and what they leave over. */
#include "sim/calibrate.h"
#include "sim/calibrate_samples.h"
#include "sim/cost_law.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    td_arena *a;
    td_err *err;
    const td_calibrate_options *o;
    td_samples *s;
    td_calibration *out;
    td_profile *p;         /* out->profile */
    bool fp32;             /* products of either precision count: their peaks are equal */
    double *x, *y, *scale; /* [n_shapes] of a fit */
} job;

static td_status no_memory(const job *j)
{
    return td_fail(j->err, TD_NOMEM, "no memory for a profile of %d shapes", (int)j->s->n_shapes);
}

static bool is_shape(const td_part *p)
{
    return td_part_table[p->class].key == TD_KEY_SHAPE;
}

static bool is_exchange(const td_part *p)
{
    return td_part_table[p->class].key == TD_KEY_COMM;
}

/* Shapes that count for the profile. */
static bool counts(const job *j, const td_shape *s)
{
    return s->alone_s > 0 && (!is_shape(&s->part) || j->fp32 || !s->part.fp32);
}

/* ---- peaks ---- */

/* Without a base the largest rates found are the peaks: nothing can then be predicted faster than
 * it was measured. */
static void measured_peaks(job *j)
{
    double flops = 0, bytes = 0;
    for (int32_t i = 0; i < j->s->n_shapes; i++) {
        const td_shape *s = &j->s->shapes[i];
        if (s->alone_s <= 0 || is_exchange(&s->part))
            continue;
        flops = fmax(flops, td_law_flops(&s->part) / s->alone_s);
        bytes = fmax(bytes, td_law_bytes(&s->part) / s->alone_s);
    }
    td_profile *p = j->p;
    p->bf16_flops_per_s = p->fp32_flops_per_s = fmax(flops, 1);
    p->memory_bytes_per_s = fmax(bytes, 1);
    p->memory_bytes = j->o->memory_bytes;
    p->memory_efficiency = 1;
    for (int32_t i = 0; i < 3; i++)
        p->efficiency.gemm[i] = 1;
    for (int32_t i = 0; i < 2; i++)
        p->efficiency.attention[i] = 1;
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        p->efficiency.collective[i] = 1;
}

static void begin(job *j)
{
    const td_profile *b = j->o->base;
    td_profile *p = j->p;
    *p = (td_profile){.file = "",
                      .name = j->o->name,
                      .gpu = j->o->gpu,
                      .source = j->o->source,
                      .backend = j->s->measured ? j->s->backend
                                 : b == NULL    ? ""
                                                : b->backend,
                      .trust = TD_TRUST_CALIBRATED};
    p->heat = td_heat_usual;
    if (b != NULL) {
        p->duty = b->duty;
        p->heat = b->heat;
        p->bf16_flops_per_s = b->bf16_flops_per_s;
        p->fp32_flops_per_s = b->fp32_flops_per_s;
        p->memory_bytes_per_s = b->memory_bytes_per_s;
        p->memory_bytes = b->memory_bytes;
        p->link_bytes_per_s = b->link_bytes_per_s;
        p->kernel_gap_s = b->kernel_gap_s;
        p->memory_efficiency = b->memory_efficiency;
        p->efficiency = b->efficiency;
        p->latency_s = b->latency_s;
    }
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        p->overlap[i] = (td_overlap){.transfer = 1, .compute = 1};
    j->fp32 = b == NULL || b->bf16_flops_per_s == b->fp32_flops_per_s;
    p->environment = j->s->environment;
    const td_environment *given = &j->o->environment;
    const char **to[] = {&p->environment.driver, &p->environment.cuda, &p->environment.nccl,
                         &p->environment.cudnn,  &p->environment.date, &p->environment.clocks};
    const char *from[] = {given->driver, given->cuda, given->nccl,
                          given->cudnn,  given->date, given->clocks};
    for (int i = 0; i < 6; i++)
        if (from[i] != NULL)
            *to[i] = from[i];
}

/* ---- rooflines ---- */

/* A share of the peak from a slope that is 1 / share; its error in first order. */
static void set_share(double slope, double slope_error, double *share, double *error)
{
    if (slope <= 0)
        return;
    *share = fmin(1, 1 / slope);
    *error = isfinite(slope_error) ? slope_error / (slope * slope) : 0;
}

static double known(double error)
{
    return isfinite(error) ? error : 0;
}

/* Passes over memory: bytes over the share of the bandwidth, and the gap before each. */
static td_status fit_memory(job *j)
{
    td_status st = TD_OK;
    td_profile *p = j->p;
    td_fit fit;
    int32_t n = 0;
    for (int32_t i = 0; i < j->s->n_shapes; i++) {
        const td_shape *s = &j->s->shapes[i];
        if (td_part_table[s->part.class].key != TD_KEY_BYTES || !counts(j, s))
            continue;
        j->x[n] = (double)s->part.bytes / p->memory_bytes_per_s;
        j->scale[n] = j->y[n] = s->alone_s;
        n++;
    }
    if (n == 0)
        return TD_OK;
    TD_TRY(st, td_fit_line(n, j->x, j->y, j->scale, p->kernel_gap_s, &fit, j->err));
    set_share(fit.slope, fit.slope_error, &p->memory_efficiency, &p->errors.memory_efficiency);
    p->kernel_gap_s = fit.constant;
    p->errors.kernel_gap_s = known(fit.constant_error);
done:
    return st;
}

/*
 * Products and attention of one pass: the longer of FLOPs over a share of the peak and bytes over
 * memory, and a latency. Which of the two is longer depends on the share: fitted again until it
 * stays. A shape that memory bounds tells the latency only.
 */
static td_status fit_shapes(job *j, int class, int pass, double *share, double *share_error,
                            double *latency, double *latency_error)
{
    enum { ROUNDS = 20 };
    td_status st = TD_OK;
    const td_profile *p = j->p;
    const double bandwidth = p->memory_bytes_per_s * p->memory_efficiency;
    td_fit fit = {.slope = 1 / *share};
    int32_t n = 0;
    for (int32_t round = 0; round < ROUNDS; round++) {
        const double before = fit.slope;
        n = 0;
        for (int32_t i = 0; i < j->s->n_shapes; i++) {
            const td_shape *s = &j->s->shapes[i];
            if (s->part.class != class || s->part.pass != pass || !counts(j, s))
                continue;
            const double flops_s = td_law_flops(&s->part) / td_law_peak(p, &s->part);
            const double bytes_s = td_law_bytes(&s->part) / bandwidth;
            const bool memory = bytes_s > flops_s * fit.slope;
            j->x[n] = memory ? 0 : flops_s;
            j->y[n] = memory ? fmax(0, s->alone_s - bytes_s) : s->alone_s;
            j->scale[n++] = s->alone_s;
        }
        if (n == 0)
            return TD_OK;
        TD_TRY(st, td_fit_line(n, j->x, j->y, j->scale, *latency, &fit, j->err));
        if (fabs(fit.slope - before) <= 1e-9 * fabs(before))
            break;
        if (fit.slope <= 0) /* memory bounds them all */
            fit.slope = before;
    }
    set_share(fit.slope, fit.slope_error, share, share_error);
    *latency = fit.constant;
    *latency_error = known(fit.constant_error);
done:
    return st;
}

/* Latency of two ranks, and the share of a link that messages reach; td_law_comm() turned round.
 * Small messages tell no share. */
static td_status fit_exchanges(job *j, td_coll coll)
{
    enum { LARGE_BYTES = 1 << 20 };
    td_status st = TD_OK;
    td_profile *p = j->p;
    td_fit fit;
    uint64_t most = 0;
    int32_t n = 0;
    bool beside = false; /* large ones outside of passes: those inside may go another way */
    for (int32_t i = 0; i < j->s->n_shapes; i++) {
        const td_shape *s = &j->s->shapes[i];
        beside = beside || (is_exchange(&s->part) && s->part.collective == coll &&
                            !s->link.in_pass && s->part.bytes >= LARGE_BYTES && counts(j, s));
    }
    for (int32_t i = 0; i < j->s->n_shapes; i++) {
        const td_shape *s = &j->s->shapes[i];
        if (!is_exchange(&s->part) || s->part.collective != coll || !counts(j, s) ||
            (beside && s->link.in_pass))
            continue;
        const td_comm_query *q = &s->link;
        const double more = td_law_steps(coll, q->ranks) - td_law_steps(coll, 2);
        const double edge = td_collectives[coll]->edge_bytes(q->ranks, q->bytes);
        most = s->part.bytes > most ? s->part.bytes : most;
        j->x[n] = edge / q->edge_bytes_per_s;
        j->y[n] = fmax(0, s->alone_s - fmax(0, more) * q->edge_latency_s);
        j->scale[n++] = s->alone_s;
    }
    if (n == 0)
        return TD_OK;
    TD_TRY(st, td_fit_line(n, j->x, j->y, j->scale, p->latency_s.collective[coll], &fit, j->err));
    if (most >= LARGE_BYTES)
        set_share(fit.slope, fit.slope_error, &p->efficiency.collective[coll],
                  &p->errors.efficiency.collective[coll]);
    p->latency_s.collective[coll] = fit.constant;
    p->errors.latency_s.collective[coll] = known(fit.constant_error);
done:
    return st;
}

static td_status fit_rooflines(job *j)
{
    td_status st = TD_OK;
    td_profile *p = j->p;
    td_fit_errors *e = &p->errors;
    TD_TRY(st, fit_memory(j));
    for (int pass = 0; pass < 3; pass++)
        TD_TRY(st, fit_shapes(j, TD_PART_GEMM, pass, &p->efficiency.gemm[pass],
                              &e->efficiency.gemm[pass], &p->latency_s.gemm[pass],
                              &e->latency_s.gemm[pass]));
    for (int back = 0; back < 2; back++)
        TD_TRY(st, fit_shapes(j, TD_PART_ATTENTION, back ? TD_PASS_BACKWARD : TD_PASS_FORWARD,
                              &p->efficiency.attention[back], &e->efficiency.attention[back],
                              &p->latency_s.attention[back], &e->latency_s.attention[back]));
    for (int32_t c = 0; c < TD_N_COLLS; c++)
        TD_TRY(st, fit_exchanges(j, (td_coll)c));
done:
    return st;
}

/* ---- tables ---- */

static int by_weight(const void *left, const void *right)
{
    const td_gemm_row *a = left, *b = right;
    const int64_t x[] = {a->n, a->k, a->m}, y[] = {b->n, b->k, b->m};
    for (int i = 0; i < 3; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

static td_status tabulate_gemm(job *j)
{
    td_gemm_row *rows = TD_NEW(j->a, td_gemm_row, j->s->n_shapes);
    int32_t n = 0;
    if (rows == NULL)
        return no_memory(j);
    for (int32_t i = 0; i < j->s->n_shapes; i++) {
        const td_shape *s = &j->s->shapes[i];
        int32_t at = 0;
        if (s->part.class != TD_PART_GEMM || !counts(j, s))
            continue;
        while (at < n &&
               (rows[at].m != s->part.m || rows[at].n != s->part.n || rows[at].k != s->part.k))
            at++;
        if (at == n)
            rows[n++] =
                (td_gemm_row){.m = s->part.m, .n = s->part.n, .k = s->part.k, .s = {-1, -1, -1}};
        rows[at].s[s->part.pass] = s->alone_s;
    }
    qsort(rows, (size_t)n, sizeof *rows, by_weight);
    j->p->gemms = rows;
    j->p->n_gemms = n;
    return TD_OK;
}

static bool same_attention(const td_attention_row *r, const td_part *p)
{
    return r->batch == p->batch && r->seq == p->seq && r->heads == p->heads &&
           r->head_dim == p->head_dim && r->causal == p->causal;
}

/* Rows of one group stand together, as after loading. */
static int by_attention(const void *left, const void *right)
{
    const td_attention_row *a = left, *b = right;
    const int64_t x[] = {a->causal, a->head_dim, a->seq, (int64_t)a->batch * a->heads, a->batch},
                  y[] = {b->causal, b->head_dim, b->seq, (int64_t)b->batch * b->heads, b->batch};
    for (int i = 0; i < 5; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

static td_status tabulate_attention(job *j)
{
    td_attention_row *rows = TD_NEW(j->a, td_attention_row, j->s->n_shapes);
    int32_t n = 0;
    if (rows == NULL)
        return no_memory(j);
    for (int32_t i = 0; i < j->s->n_shapes; i++) {
        const td_shape *s = &j->s->shapes[i];
        int32_t at = 0;
        if (s->part.class != TD_PART_ATTENTION || !counts(j, s))
            continue;
        while (at < n && !same_attention(&rows[at], &s->part))
            at++;
        if (at == n)
            rows[n++] = (td_attention_row){.batch = s->part.batch,
                                           .seq = s->part.seq,
                                           .heads = s->part.heads,
                                           .head_dim = s->part.head_dim,
                                           .causal = s->part.causal,
                                           .forward_s = -1,
                                           .backward_s = -1};
        *(s->part.pass == TD_PASS_BACKWARD ? &rows[at].backward_s : &rows[at].forward_s) =
            s->alone_s;
    }
    qsort(rows, (size_t)n, sizeof *rows, by_attention);
    j->p->attention = rows;
    j->p->n_attention = n;
    return TD_OK;
}

/* The curve of the shapes that `of` is one of: bytes of one class, or of one collective of so many
 * ranks. Links of different speed are not told apart: their median. */
static bool same_curve(const td_shape *a, const td_shape *b)
{
    const td_part *x = &a->part, *y = &b->part;
    return x->class == y->class &&
           (!is_exchange(x) || (x->collective == y->collective && x->ranks == y->ranks &&
                                a->link.in_pass == b->link.in_pass));
}

typedef struct {
    double x, y;
} point;

static int by_point(const void *left, const void *right)
{
    const point *a = left, *b = right;
    return a->x != b->x ? (a->x > b->x) - (a->x < b->x) : (a->y > b->y) - (a->y < b->y);
}

static td_status tabulate_curve(job *j, const td_shape *of, td_curve *out)
{
    point *points = TD_NEW(j->a, point, j->s->n_shapes);
    double *x = TD_NEW(j->a, double, j->s->n_shapes), *y = TD_NEW(j->a, double, j->s->n_shapes);
    int32_t n = 0, end, n_points = 0;
    if (points == NULL || x == NULL || y == NULL)
        return no_memory(j);
    for (int32_t i = 0; i < j->s->n_shapes; i++) {
        const td_shape *s = &j->s->shapes[i];
        if (same_curve(s, of) && counts(j, s))
            points[n_points++] = (point){(double)s->part.bytes, s->alone_s};
    }
    qsort(points, (size_t)n_points, sizeof *points, by_point);
    for (int32_t i = 0; i < n_points; i = end, n++) {
        for (end = i; end < n_points && points[end].x == points[i].x;)
            end++;
        x[n] = points[i].x;
        y[n] = points[(i + end - 1) / 2].y;
    }
    *out = (td_curve){.n = n, .x = x, .y = y};
    return TD_OK;
}

static td_status tabulate_collective(job *j, td_coll coll, bool in_pass, int32_t *n_out,
                                     const td_coll_curve **out)
{
    td_status st = TD_OK;
    enum { MOST = 32 }; /* columns of a profile's table */
    td_coll_curve *curves = TD_NEW(j->a, td_coll_curve, MOST);
    int32_t n = 0;
    if (curves == NULL)
        TD_TRY(st, no_memory(j));
    for (int32_t ranks = 1, next; n < MOST; ranks = next) {
        next = INT32_MAX;
        for (int32_t i = 0; i < j->s->n_shapes; i++) {
            const td_shape *s = &j->s->shapes[i];
            if (is_exchange(&s->part) && s->part.collective == coll && counts(j, s) &&
                s->link.in_pass == in_pass && s->part.ranks > ranks && s->part.ranks < next)
                next = s->part.ranks;
        }
        if (next == INT32_MAX)
            break;
        const td_shape of = {
            .part = {.class = TD_PART_COLLECTIVE, .collective = (uint8_t)coll, .ranks = next},
            .link = {.in_pass = in_pass}};
        curves[n].ranks = next;
        TD_TRY(st, tabulate_curve(j, &of, &curves[n++].time));
    }
    *out = curves;
    *n_out = n;
done:
    return st;
}

static td_status tabulate(job *j)
{
    td_status st = TD_OK;
    TD_TRY(st, tabulate_gemm(j));
    TD_TRY(st, tabulate_attention(j));
    for (int32_t class = 0; class < TD_N_PARTS; class ++)
        if (td_part_table[class].key == TD_KEY_BYTES) {
            const td_shape of = {.part = {.class = (uint8_t) class}};
            TD_TRY(st, tabulate_curve(j, &of, &j->p->memory[class]));
        }
    for (int32_t c = 0; c < TD_N_COLLS; c++) {
        td_profile *p = j->p;
        TD_TRY(st,
               tabulate_collective(j, (td_coll)c, false, &p->n_collectives[c], &p->collectives[c]));
        TD_TRY(st, tabulate_collective(j, (td_coll)c, true, &p->n_in_pass[c], &p->in_pass[c]));
    }
done:
    return st;
}

/* ---- what is left ---- */

static double model_s(const td_profile *p, const td_shape *s, td_cost_notes *notes)
{
    if (!is_exchange(&s->part))
        return td_cost_model_for(p)->part(p, &s->part, notes);
    td_comm_cost cost;
    td_cost_model_for(p)->comm(p, &s->link, &cost, notes);
    return cost.total_s;
}

/* The place of a shape's time in the tables, to leave it out for a moment. */
static double *cell_of(const job *j, const td_shape *s)
{
    if (s->part.class == TD_PART_GEMM)
        for (int32_t i = 0; i < j->p->n_gemms; i++) {
            td_gemm_row *r = (td_gemm_row *)&j->p->gemms[i];
            if (r->m == s->part.m && r->n == s->part.n && r->k == s->part.k)
                return &r->s[s->part.pass];
        }
    for (int32_t i = 0; s->part.class == TD_PART_ATTENTION && i < j->p->n_attention; i++) {
        td_attention_row *r = (td_attention_row *)&j->p->attention[i];
        if (same_attention(r, &s->part))
            return s->part.pass == TD_PASS_BACKWARD ? &r->backward_s : &r->forward_s;
    }
    return NULL;
}

/* The curve that a shape stands in. */
static td_curve *curve_of(const job *j, const td_shape *s)
{
    td_curve *c = NULL;
    if (!is_exchange(&s->part))
        return td_part_table[s->part.class].key == TD_KEY_BYTES ? &j->p->memory[s->part.class]
                                                                : NULL;
    const td_coll coll = (td_coll)s->part.collective;
    const bool in_pass = s->link.in_pass;
    for (int32_t i = 0; i < (in_pass ? j->p->n_in_pass : j->p->n_collectives)[coll]; i++) {
        td_coll_curve *of =
            (td_coll_curve *)&(in_pass ? j->p->in_pass : j->p->collectives)[coll][i];
        if (of->ranks == s->part.ranks)
            c = &of->time;
    }
    return c;
}

/*
 * The time that the profile without a shape gives for it: interpolated between the others. Where it
 * would be extrapolated, which predictions say themselves, there is none: < 0.
 */
static double without(job *j, const td_shape *s)
{
    td_cost_notes notes = {.arena = j->a};
    double *cell = cell_of(j, s), fitted = -1;
    td_curve *curve = curve_of(j, s);
    if (cell != NULL) {
        const double kept = *cell;
        *cell = -1;
        fitted = model_s(j->p, s, &notes);
        *cell = kept;
    } else if (curve != NULL && curve->n > 2) {
        const td_curve kept = *curve;
        double *x = malloc(2 * (size_t)kept.n * sizeof *x);
        const double bytes = (double)s->part.bytes;
        if (x == NULL || bytes <= kept.x[0] || bytes >= kept.x[kept.n - 1]) {
            free(x);
            return -1;
        }
        int32_t n = 0;
        for (int32_t i = 0; i < kept.n; i++)
            if (kept.x[i] != bytes) {
                x[n] = kept.x[i];
                x[kept.n + n++] = kept.y[i];
            }
        *curve = (td_curve){.n = n, .x = x, .y = x + kept.n};
        fitted = model_s(j->p, s, &notes);
        *curve = kept;
        free(x);
    }
    return notes.n_extrapolated > 0 ? -1 : fitted;
}

/* An observation against the others of its shape or, where it is the only one, against the other
 * shapes. */
static td_status hold_out(job *j, td_residuals *out, int what, int coll)
{
    double *left = calloc((size_t)j->s->n_observations + 1, sizeof *left);
    int32_t n = 0;
    if (left == NULL)
        return no_memory(j);
    for (int32_t i = 0; i < j->s->n_observations; i++) {
        const td_observation *o = &j->s->observations[i];
        const td_shape *s = &j->s->shapes[o->shape];
        if (s->part.class != what || (what == TD_PART_COLLECTIVE && s->part.collective != coll) ||
            o->beside != TD_BESIDE_NOTHING || !counts(j, s))
            continue;
        double fitted = td_samples_median(j->s, s, TD_BESIDE_NOTHING, i);
        if (fitted <= 0)
            fitted = without(j, s);
        if (fitted > 0)
            left[n++] = log(o->s / fitted);
    }
    *out = (td_residuals){.n = n};
    if (n > 0)
        td_fit_quantiles(left, n, out->q);
    free(left);
    return TD_OK;
}

/* Every class of parts but `collective`, then the collectives. */
static td_status judge(job *j)
{
    td_status st = TD_OK;
    td_calibration *out = j->out;
    for (int32_t i = 0; i < TD_N_PARTS + TD_N_COLLS; i++) {
        const bool part = i < TD_N_PARTS;
        const int32_t what = part ? i : TD_PART_COLLECTIVE, coll = i - TD_N_PARTS;
        if (i == TD_PART_COLLECTIVE)
            continue;
        td_residuals *r = part ? &j->p->part_residuals[i] : &j->p->coll_residuals[coll];
        td_calibrated_class *c = &out->classes[out->n_classes++];
        *c = (td_calibrated_class){
            .name = part ? td_part_table[i].name : td_collectives[coll]->name, .residuals = r};
        TD_TRY(st, hold_out(j, r, what, coll));
        for (int32_t k = 0; k < j->s->n_shapes; k++) {
            const td_shape *s = &j->s->shapes[k];
            if (s->part.class != what || (!part && s->part.collective != coll))
                continue;
            c->n_samples += s->n_samples;
            c->n_shapes += s->n_samples > 0;
            c->n_beside += s->n_alone == 0;
            out->n_precision += counts(j, s) ? 0 : s->n_samples;
        }
    }
done:
    return st;
}

/* A shape's time as it would be at the full clocks of `against`. */
static double at_rest(const td_calibration *c, const td_shape *s, const td_profile *against)
{
    double factor = 0;
    int32_t n = 0;
    if (!is_shape(&s->part) || c->profile.duty.n > 0) /* taken out already */
        return s->alone_s;
    for (int32_t i = s->first; i < s->first + s->n; i++)
        if (c->samples->observations[i].beside == TD_BESIDE_NOTHING || s->n_alone == 0) {
            factor += td_cost_clock_factor(against, c->samples->observations[i].heat);
            n++;
        }
    return s->alone_s * n / factor;
}

td_status td_calibration_drift(td_arena *a, const td_calibration *c, const td_profile *against,
                               td_drift out[TD_N_PARTS + TD_N_COLLS], td_err *err)
{
    double *x = TD_NEW(a, double, c->samples->n_shapes);
    int32_t n_classes = 0;
    if (x == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %d shapes", (int)c->samples->n_shapes);
    for (int32_t i = 0; i < TD_N_PARTS + TD_N_COLLS; i++) {
        if (i == TD_PART_COLLECTIVE)
            continue;
        td_drift *d = &out[n_classes];
        *d = (td_drift){.name = c->classes[n_classes++].name};
        for (int32_t k = 0; k < c->samples->n_shapes; k++) {
            const td_shape *s = &c->samples->shapes[k];
            const bool exchange = is_exchange(&s->part);
            if (s->alone_s > 0 && (exchange ? TD_N_PARTS + s->part.collective : s->part.class) == i)
                x[d->n++] = log(at_rest(c, s, against) / model_s(against, s, NULL));
        }
        if (d->n > 0)
            td_fit_quantiles(x, d->n, d->q);
    }
    return TD_OK;
}

td_status td_calibrate(td_arena *a, int32_t n_sources, const td_calibrate_source *sources,
                       const td_calibrate_options *o, td_calibration *out, td_err *err)
{
    td_status st = TD_OK;
    td_samples *s = TD_NEW(a, td_samples, 1);
    *out = (td_calibration){.samples = s};
    job j = {.a = a, .err = err, .o = o, .s = s, .out = out, .p = &out->profile};
    if (s == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the observations"));
    TD_TRY(st, td_samples_read(a, n_sources, sources, s, err));
    j.x = TD_NEW(a, double, s->n_shapes);
    j.y = TD_NEW(a, double, s->n_shapes);
    j.scale = TD_NEW(a, double, s->n_shapes);
    if (j.x == NULL || j.y == NULL || j.scale == NULL)
        TD_TRY(st, no_memory(&j));
    begin(&j);
    TD_TRY(st, td_calibrate_clocks(a, s, &out->profile, &out->gpu_time, err));
    TD_TRY(st, td_samples_observe(a, s, err));
    if (o->base == NULL)
        measured_peaks(&j);
    TD_TRY(st, td_calibrate_overlap(a, s, &out->profile, err));
    TD_TRY(st, fit_rooflines(&j));
    TD_TRY(st, tabulate(&j));
    TD_TRY(st, judge(&j));
    out->part_overhead_s = s->part_overhead_s;
    out->n_across = s->n_across;
    out->n_gpus = s->n_ranks;
done:
    return st;
}
