/*
 * Measurements where there are any, and between and around them one assumption: a kernel takes a
 * launch, the profile's latency, and what lies above that grows with its work. Numbers
 * below are relative errors on the H200 profile (tests/sim/test_cost.c prints them).
 */
#include "sim/cost_law.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- products and attention: measured shapes ---- */

/*
 * One measured time. Rows with the same (u, v, class) form a group, a curve over x: for a product x
 * = m and the group is the weight [n, k] of one alignment; for attention x = batch * heads and the
 * group is (seq, head_dim) of one mask.
 */
typedef struct {
    double x, u, v;
    int class;
    double s; /* seconds; < 0: not measured */
} sample;

/* What the two kinds of part differ in. */
typedef struct {
    int32_t n;
    sample (*row)(const td_profile *profile, int32_t i, int pass);
    double power;          /* work is x * u^power * v, halved by a causal mask */
    const char *x, *u, *v; /* their names in notes */
    bool strict_group;     /* v and class must have been measured, not only lie in between */
} surface;

/* Tensor cores read rows of 16 bytes, 8 bf16 numbers; a weight of 588 columns is three times slower
 * than one of 1024. */
static int aligned(double n, double k)
{
    return fmod(n, 8) == 0 && fmod(k, 8) == 0;
}

static sample gemm_row(const td_profile *p, int32_t i, int pass)
{
    const td_gemm_row *r = &p->gemms[i];
    const double n = (double)r->n, k = (double)r->k;
    return (sample){.x = (double)r->m, .u = n, .v = k, .class = aligned(n, k), .s = r->s[pass]};
}

/* kv_heads is not in the key: shared heads save memory traffic, of which fused attention has
 * little. */
static sample attention_row(const td_profile *p, int32_t i, int pass)
{
    const td_attention_row *r = &p->attention[i];
    return (sample){.x = (double)r->batch * r->heads,
                    .u = r->seq,
                    .v = r->head_dim,
                    .class = r->causal,
                    .s = pass == TD_PASS_BACKWARD ? r->backward_s : r->forward_s};
}

static surface surface_of(const td_profile *p, const td_part *part)
{
    if (part->class == TD_PART_GEMM)
        return (surface){p->n_gemms, gemm_row, 1, "m", "n", "k", false};
    return (surface){.n = p->n_attention,
                     .row = attention_row,
                     .power = 2,
                     .x = "batch*heads",
                     .u = "seq",
                     .v = "head_dim",
                     .strict_group = true};
}

static sample query_of(const td_part *p)
{
    if (p->class == TD_PART_GEMM)
        return (sample){.x = (double)p->m,
                        .u = (double)p->n,
                        .v = (double)p->k,
                        .class = aligned((double)p->n, (double)p->k)};
    return (sample){
        .x = (double)p->batch * p->heads, .u = p->seq, .v = p->head_dim, .class = p->causal};
}

static bool same_group(const sample *a, const sample *b)
{
    return a->u == b->u && a->v == b->v && a->class == b->class;
}

/* Work per x of a group. Only ratios of it count; `class` is the alignment for a product, which
 * changes no work. */
static double group_work(const surface *f, const sample *s)
{
    return pow(s->u, f->power) * s->v * (f->strict_group && s->class ? 0.5 : 1);
}

/* ---- one group: a curve over x ---- */

/* The measured neighbours of x in one group; times at equal x (another batch times heads) are
 * averaged. */
typedef struct {
    double below, below_s, above, above_s; /* below <= x <= above; 0 and INFINITY: none */
    int32_t n_below, n_above;
} bracket;

static void bracket_add(bracket *b, double x, const sample *s)
{
    if (s->x <= x && s->x >= b->below) {
        b->n_below = s->x > b->below ? 1 : b->n_below + 1;
        b->below_s = b->n_below == 1 ? s->s : b->below_s + (s->s - b->below_s) / b->n_below;
        b->below = s->x;
    }
    if (s->x >= x && s->x <= b->above) {
        b->n_above = s->x < b->above ? 1 : b->n_above + 1;
        b->above_s = b->n_above == 1 ? s->s : b->above_s + (s->s - b->above_s) / b->n_above;
        b->above = s->x;
    }
}

/* A kernel of `ratio` times the work of one that takes `s`. Monotone in both; exact for the same
 * work. */
static double scaled(double launch, double s, double ratio)
{
    return s + (s <= launch ? s * fmax(0, ratio - 1) : (s - launch) * (ratio - 1));
}

/*
 * Linear in x between neighbours: 2.1 % median error on products left out, 3.3 % when linear in the
 * logarithms. It
 * does not fall where the measurements do not.
 */
static double bracket_at(const bracket *b, double x, double launch)
{
    if (b->n_above == 0)
        return scaled(launch, b->below_s, x / b->below);
    if (b->n_below == 0)
        return scaled(launch, b->above_s, x / b->above);
    if (b->above == b->below)
        return b->below_s;
    const double share = (x - b->below) / (b->above - b->below);
    return b->below_s + (b->above_s - b->below_s) * share;
}

/* ---- all groups ---- */

/* What is measured: the box around it, and whether the query's v and class are among it. */
typedef struct {
    int32_t n;
    sample least, most;
    double shortest_s;
    bool has_group;
} extent;

static void extent_add(extent *e, const sample *s)
{
    if (e->n++ == 0) {
        e->least = e->most = *s;
        e->shortest_s = s->s;
    }
    e->least.x = fmin(e->least.x, s->x);
    e->least.u = fmin(e->least.u, s->u);
    e->least.v = fmin(e->least.v, s->v);
    e->most.x = fmax(e->most.x, s->x);
    e->most.u = fmax(e->most.u, s->u);
    e->most.v = fmax(e->most.v, s->v);
    e->shortest_s = fmin(e->shortest_s, s->s);
}

/*
 * For attention the box is that of the query's own head_dim and mask if they were measured: 576
 * tokens of 64 without a mask say nothing about 8192.
 */
static extent measured_extent(const td_profile *p, const surface *f, const sample *q, int pass)
{
    extent all = {0}, own = {.has_group = true};
    for (int32_t i = 0; i < f->n; i++) {
        const sample s = f->row(p, i, pass);
        if (s.s < 0)
            continue;
        extent_add(&all, &s);
        if (s.v == q->v && s.class == q->class)
            extent_add(&own, &s);
    }
    return f->strict_group && own.n > 0 ? own : all;
}

static double clamp(double x, double least, double most)
{
    return fmin(fmax(x, least), most);
}

/* Squared distance in the logarithms; another class (alignment, mask) is further away than any
 * size. */
static double distance(const sample *a, const sample *b)
{
    const double u = log(a->u / b->u), v = log(a->v / b->v);
    return u * u + v * v + (a->class == b->class ? 0 : 16);
}

/*
 * Time at `q`. In a measured group, its curve. Elsewhere the groups' times, each scaled to the
 * query's work, in a geometric mean weighted by the inverse cube of the distance (Shepard, ACM
 * '68): 2.6 % median error on whole weights left out, 2.6 to 3.0 % with the square to the sixth
 * power. As weights do not depend on x, a mean of curves that grow with x grows with x. Rows of one
 * group stand together after loading.
 */
static double estimate(const td_profile *p, const surface *f, const sample *q, int pass,
                       double launch)
{
    const bracket none = {.above = INFINITY};
    bracket group = none, own = none;
    double weights = 0, logs = 0;
    const double work = group_work(f, q);
    sample next = {0};
    for (int32_t i = 0; i < f->n; i++) {
        const sample s = i == 0 ? f->row(p, i, pass) : next;
        const bool last = i + 1 == f->n;
        if (!last)
            next = f->row(p, i + 1, pass);
        if (s.s >= 0)
            bracket_add(same_group(&s, q) ? &own : &group, q->x, &s);
        if (!last && same_group(&s, &next))
            continue;
        if (group.n_below + group.n_above > 0) {
            const double weight = pow(distance(&s, q), -1.5);
            const double t = bracket_at(&group, q->x, launch);
            logs += weight * log(scaled(launch, t, work / group_work(f, &s)));
            weights += weight;
        }
        group = none;
    }
    return own.n_below + own.n_above > 0 ? bracket_at(&own, q->x, launch) : exp(logs / weights);
}

/* A time measured at exactly this batch and number of heads, which the curve over their product may
 * have averaged. */
static double exact_attention(const td_profile *p, const td_part *part)
{
    double s = -1;
    for (int32_t i = 0; part->class == TD_PART_ATTENTION && i < p->n_attention; i++) {
        const td_attention_row *r = &p->attention[i];
        if (r->batch == part->batch && r->heads == part->heads && r->seq == part->seq &&
            r->head_dim == part->head_dim && r->causal == part->causal)
            s = part->pass == TD_PASS_BACKWARD ? r->backward_s : r->forward_s;
    }
    return s;
}

/* ---- notes ---- */

typedef struct {
    char text[96];
} reason;

static void say(reason *r, const char *text)
{
    const size_t n = strlen(r->text);
    snprintf(r->text + n, sizeof r->text - n, "%s%s", n > 0 ? ", " : "", text);
}

static void say_outside(reason *r, const char *name, double x, double least, double most)
{
    char text[64];
    snprintf(text, sizeof text, "outside the measured %s %.0f..%.0f", name, least, most);
    if (x < least || x > most)
        say(r, text);
}

static void note_part(td_cost_notes *notes, const td_part *p, const reason *why)
{
    char what[96];
    const char *class = td_part_table[p->class].name, *fp32 = p->fp32 ? " fp32" : "";
    if (why->text[0] == '\0')
        return;
    if (p->class == TD_PART_GEMM)
        snprintf(what, sizeof what, "%s %s%s m=%lld n=%lld k=%lld", class, td_pass_names[p->pass],
                 fp32, (long long)p->m, (long long)p->n, (long long)p->k);
    else if (p->class == TD_PART_ATTENTION)
        snprintf(what, sizeof what, "%s %s%s batch=%d seq=%d heads=%d head_dim=%d%s", class,
                 td_pass_names[p->pass], fp32, p->batch, p->seq, p->heads, p->head_dim,
                 p->causal ? " causal" : "");
    else
        snprintf(what, sizeof what, "%s bytes=%llu", class, (unsigned long long)p->bytes);
    td_cost_note_add(notes, what, why->text);
}

/* ---- parts ---- */

/*
 * Outside the measured box the nearest shape inside it stands in, at its efficiency. A precision
 * that was not measured takes the ratio of the peaks longer but for its launch; where the peaks are
 * equal the measurement is taken to be of either.
 */
static double shape_part(const td_profile *p, const td_part *part, reason *why)
{
    const surface f = surface_of(p, part);
    const sample q = query_of(part);
    const int pass = part->pass;
    const extent e = measured_extent(p, &f, &q, pass);
    const double slower = p->bf16_flops_per_s / td_law_peak(p, part);
    if (e.n == 0) {
        say(why, "not measured: roofline");
        return td_cost_roofline.part(p, part, NULL);
    }
    const double launch = fmin(td_law_of_work(&p->latency_s, part), e.shortest_s);
    sample inside = q;
    inside.u = clamp(q.u, e.least.u, e.most.u);
    inside.v = clamp(q.v, e.least.v, e.most.v);
    if (slower != 1)
        say(why, "fp32 not measured: ratio of peaks");
    if (f.strict_group && !e.has_group)
        say(why, "head_dim or mask not measured");
    say_outside(why, f.x, q.x, e.least.x, e.most.x);
    say_outside(why, f.u, q.u, e.least.u, e.most.u);
    say_outside(why, f.v, q.v, e.least.v, e.most.v);
    double s = exact_attention(p, part);
    if (s < 0)
        s = scaled(launch, estimate(p, &f, &inside, pass, launch),
                   group_work(&f, &q) / group_work(&f, &inside));
    return s + fmax(0, s - launch) * (slower - 1);
}

/*
 * Linear in bytes: 1.1 % median error on sizes left out, 3.2 % when linear in the logarithms. An
 * empty pass costs the gap. Small copies run in the cache, faster than memory: the bound holds at
 * every size, so no pass counts on that.
 */
static double bytes_part(const td_profile *p, const td_part *part, reason *why)
{
    const td_curve *c = p->memory[part->class].n > 0 ? &p->memory[part->class] : &p->copy;
    const double bytes = (double)part->bytes;
    if (c->n == 0) {
        say(why, "not measured: roofline");
        return td_cost_roofline.part(p, part, NULL);
    }
    const double first = c->x[0], last = c->x[c->n - 1], gap = fmin(p->kernel_gap_s, c->y[0]);
    if (bytes < first)
        return gap + (c->y[0] - gap) * (bytes / first);
    if (bytes > last)
        say_outside(why, "bytes", bytes, first, last);
    return td_law_curve(c, bytes) * fmax(1, bytes / last);
}

static bool measured_shape(const td_profile *p, const td_part *part)
{
    const surface f = surface_of(p, part);
    const sample q = query_of(part);
    bool found = exact_attention(p, part) >= 0;
    for (int32_t i = 0; part->class == TD_PART_GEMM && i < f.n && !found; i++) {
        const sample s = f.row(p, i, part->pass);
        found = s.s >= 0 && s.x == q.x && same_group(&s, &q);
    }
    return found;
}

static void count_part(td_cost_notes *notes, const td_profile *p, const td_part *part,
                       const reason *why)
{
    if (notes != NULL && td_part_table[part->class].key == TD_KEY_SHAPE)
        td_cost_shape_part(notes, p, part,
                           why->text[0] != '\0'      ? TD_SHAPE_OUTSIDE
                           : measured_shape(p, part) ? TD_SHAPE_KNOWN
                                                     : TD_SHAPE_INSIDE);
}

static double part(const td_profile *p, const td_part *one, td_cost_notes *notes)
{
    reason why = {""};
    assert(td_part_table[one->class].key != TD_KEY_COMM);
    if (notes != NULL)
        notes->n_asked++;
    const double s = td_part_table[one->class].key == TD_KEY_SHAPE ? shape_part(p, one, &why)
                                                                   : bytes_part(p, one, &why);
    note_part(notes, one, &why);
    count_part(notes, p, one, &why);
    return td_law_bound_part(p, one, s);
}

/* ---- communication ---- */

/* A curve that ends below this many bytes knows the latency, not what a link carries. */
enum { LEAST_FLOW_BYTES = 1 << 20 };
enum { SMALL_BYTES = 64 << 10 }; /* up to here a message is little but latency */

/* What a small message takes of which none was measured: as those of other collectives that go the
 * same way. */
static double latency_of(const td_profile *p, const td_comm_query *q, int32_t ranks)
{
    double least = p->latency_s.collective[q->coll];
    for (int32_t i = 0; q->in_pass && i < TD_N_COLLS; i++)
        for (int32_t k = 0; k < p->n_in_pass[i]; k++) {
            const td_coll_curve *c = &p->in_pass[i][k];
            for (int32_t m = 0; m < c->time.n; m++)
                if (c->ranks == ranks && c->time.x[m] < LEAST_FLOW_BYTES)
                    least = fmin(least, c->time.y[m]);
        }
    return least;
}

/*
 * Linear in bytes: 0.8 % median error on sizes left out (1.8 % from 64 KiB on), 1.3 % (3.0 %) when
 * linear in the logarithms. Beyond the largest size its rate holds, or, where that is a small
 * message, the closed form's; below a smallest size that is large, the line to the latency.
 */
static double curve_at(const td_profile *p, const td_comm_query *q, const td_coll_curve *c,
                       double bytes)
{
    const double last = c->time.x[c->time.n - 1], at = td_law_curve(&c->time, bytes);
    const double first = c->time.x[0];
    if (bytes < first && first >= LEAST_FLOW_BYTES) {
        const double latency = fmin(at, latency_of(p, q, c->ranks));
        return latency + (at - latency) * bytes / first;
    }
    if (bytes <= last || last >= LEAST_FLOW_BYTES)
        return at * fmax(1, bytes / last);
    const double edge = td_collectives[q->coll]->edge_bytes(c->ranks, (uint64_t)(bytes - last));
    return at + edge / (q->edge_bytes_per_s * p->efficiency.collective[q->coll]);
}

/* The message that puts as much on an edge of `to` ranks as `bytes` do on one of `from`: edge bytes
 * are proportional. */
static double same_edge(td_coll coll, double bytes, int32_t from, int32_t to)
{
    const uint64_t unit = 1 << 30;
    const td_collective *c = td_collectives[coll];
    return bytes * (c->edge_bytes(from, unit) / c->edge_bytes(to, unit));
}

/* What was measured of a collective. */
static const td_coll_curve *curves_of(const td_profile *p, const td_comm_query *q, int32_t *n)
{
    const bool in_pass = q->in_pass && p->n_in_pass[q->coll] > 0;
    *n = in_pass ? p->n_in_pass[q->coll] : p->n_collectives[q->coll];
    return in_pass ? p->in_pass[q->coll] : p->collectives[q->coll];
}

/* The measured numbers of ranks around the query's: equal where it was measured itself or lies
 * beyond them. */
static void neighbours(const td_profile *p, const td_comm_query *q, int32_t *lo, int32_t *hi)
{
    int32_t n;
    const td_coll_curve *c = curves_of(p, q, &n);
    *hi = 0;
    while (*hi < n - 1 && c[*hi].ranks < q->ranks)
        ++*hi;
    *lo = c[*hi].ranks <= q->ranks || *hi == 0 ? *hi : *hi - 1;
}

/*
 * Seconds inside a node. Between measured numbers of ranks: at equal bytes per edge, so that the
 * bandwidth term carries over as it is, and linear in the logarithm of the ranks, as trees grow (4
 * ranks from 2 and 8: 5.5 % median error). Beyond them the largest measured one, and the latency of
 * the steps that come on top.
 */
static double in_node(const td_profile *p, const td_comm_query *q, double bytes)
{
    int32_t lo, hi, n;
    const td_coll_curve *c = curves_of(p, q, &n);
    neighbours(p, q, &lo, &hi);
    const double low_s = curve_at(p, q, &c[lo], same_edge(q->coll, bytes, q->ranks, c[lo].ranks));
    if (lo == hi) {
        const double more = td_law_steps(q->coll, q->ranks) - td_law_steps(q->coll, c[lo].ranks);
        return low_s + fmax(0, more) * q->edge_latency_s;
    }
    const double high_s = curve_at(p, q, &c[hi], same_edge(q->coll, bytes, q->ranks, c[hi].ranks));
    const double share =
        log((double)q->ranks / c[lo].ranks) / log((double)c[hi].ranks / c[lo].ranks);
    return low_s + (high_s - low_s) * share;
}

static void note_comm(td_cost_notes *notes, const td_comm_query *q, const reason *why)
{
    char what[96];
    snprintf(what, sizeof what, "%s ranks=%d bytes=%llu", td_collectives[q->coll]->name, q->ranks,
             (unsigned long long)q->bytes);
    if (why->text[0] != '\0')
        td_cost_note_add(notes, what, why->text);
}

/* The largest message of as many ranks that was measured; 0: none was. */
static double most_bytes(const td_profile *p, const td_comm_query *q)
{
    int32_t lo, hi, n;
    const td_coll_curve *c = curves_of(p, q, &n);
    if (n == 0)
        return 0;
    neighbours(p, q, &lo, &hi);
    return fmin(same_edge(q->coll, c[lo].time.x[c[lo].time.n - 1], c[lo].ranks, q->ranks),
                same_edge(q->coll, c[hi].time.x[c[hi].time.n - 1], c[hi].ranks, q->ranks));
}

/* The smallest that tells something: all smaller ones take as long as a small message. */
static double least_bytes(const td_profile *p, const td_comm_query *q)
{
    int32_t lo, hi, n;
    const td_coll_curve *c = curves_of(p, q, &n);
    neighbours(p, q, &lo, &hi);
    const double least = fmax(same_edge(q->coll, c[lo].time.x[0], c[lo].ranks, q->ranks),
                              same_edge(q->coll, c[hi].time.x[0], c[hi].ranks, q->ranks));
    return least < LEAST_FLOW_BYTES ? 0 : least;
}

/*
 * An all-reduce is a reduce-scatter and an all-gather, in bytes and in how it is done: where one
 * was measured only in small and the other also in large, the other tells. Seconds, < 0: no.
 */
static double by_halves(const td_profile *p, const td_comm_query *q)
{
    static const td_coll halves[] = {TD_COLL_REDUCE_SCATTER, TD_COLL_ALL_GATHER};
    const double bytes = (double)q->bytes;
    const bool half = q->coll == halves[0] || q->coll == halves[1];
    td_comm_query other = *q;
    double sum = 0;
    if (!q->one_node || (q->coll != TD_COLL_ALL_REDUCE && !half))
        return -1;
    for (int i = 0; i < (half ? 1 : 2); i++) {
        other.coll = half ? TD_COLL_ALL_REDUCE : halves[i];
        if (most_bytes(p, &other) < bytes)
            return -1;
        sum += in_node(p, &other, bytes);
    }
    return half ? sum / 2 : sum;
}

static void explain(const td_profile *p, const td_comm_query *q, reason *why)
{
    int32_t n;
    const td_coll_curve *c = curves_of(p, q, &n);
    if (!q->one_node) {
        say(why, "across nodes: no measurement");
    } else if (n == 0) {
        say(why, "not measured: roofline");
    } else {
        say_outside(why, "ranks", q->ranks, c[0].ranks, c[n - 1].ranks);
        say_outside(why, "bytes", (double)q->bytes, q->bytes <= SMALL_BYTES ? 0 : least_bytes(p, q),
                    most_bytes(p, q));
        if (q->edge_bytes_per_s < p->link_bytes_per_s)
            say(why, "slower links than those measured");
    }
}

/* Profiles hold numbers to 9 digits. */
static bool measured_size(const td_profile *p, const td_comm_query *q)
{
    const double bytes = (double)q->bytes;
    bool found = false;
    int32_t n;
    const td_coll_curve *all = curves_of(p, q, &n);
    for (int32_t i = 0; i < n; i++) {
        const td_coll_curve *c = &all[i];
        for (int32_t k = 0; k < c->time.n && c->ranks == q->ranks; k++)
            found = found || fabs(c->time.x[k] - bytes) <= 1e-8 * bytes ||
                    (bytes <= c->time.x[0] && c->time.x[0] < LEAST_FLOW_BYTES);
    }
    return found;
}

static void count_comm(td_cost_notes *notes, const td_profile *p, const td_comm_query *q,
                       const reason *why)
{
    if (notes != NULL)
        td_cost_shape_comm(notes, p, q,
                           why->text[0] != '\0'  ? TD_SHAPE_OUTSIDE
                           : measured_size(p, q) ? TD_SHAPE_KNOWN
                                                 : TD_SHAPE_INSIDE);
}

/*
 * Latency is what the smallest message takes. Links slower than those measured stretch the rest in
 * proportion. Across nodes there is only the closed form, with the efficiency reached inside one,
 * but never faster than inside one.
 */
static void comm(const td_profile *p, const td_comm_query *q, td_comm_cost *out,
                 td_cost_notes *notes)
{
    reason why = {""};
    int32_t n;
    if (notes != NULL)
        notes->n_asked++;
    *out = td_law_comm(p, q);
    if (q->ranks < 2)
        return;
    explain(p, q, &why);
    note_comm(notes, q, &why);
    count_comm(notes, p, q, &why);
    curves_of(p, q, &n);
    if (n == 0)
        return;
    const double alpha = in_node(p, q, 0);
    const double halves = (double)q->bytes > most_bytes(p, q) ? by_halves(p, q) : -1;
    const double slower = q->one_node ? fmax(1, p->link_bytes_per_s / q->edge_bytes_per_s) : 1;
    const double fast = halves > 0 ? fmax(halves, alpha) : in_node(p, q, (double)q->bytes);
    const double total = fast + (fast - alpha) * (slower - 1); /* exactly as measured for 1 */
    *out = q->one_node ? td_law_bound_comm(q, alpha, total)
                       : td_law_bound_comm(q, fmax(alpha, out->alpha_s), fmax(total, out->total_s));
}

const td_cost_model td_cost_table = {
    .name = "table",
    .summary = "measured times, interpolated; outside them extrapolated, which is noted",
    .part = part,
    .comm = comm,
};
