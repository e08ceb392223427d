/* Joins a prediction and a measurement op by op. */
#include "traces/compare_side.h"

#include <gsl/gsl_errno.h>
#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics_double.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    RESAMPLES = 2000,
    MOST_RESAMPLED = 4096, /* steps; an even sample of more */
    SEED = 20240229
};
/* Makes the median distance from the median of a normal distribution its standard deviation
 * (Rousseeuw and Croux, JASA 88, 1993). */
static const double mad_to_sigma = 1.4826;

typedef struct {
    td_arena *a;
    td_side side[TD_N_SIDES];
    td_structure x;
    double *work_s[TD_N_SIDES], *wait_s[TD_N_SIDES]; /* [n_ops], medians over the steps examined */
    double *noise;  /* [n_ops], relative, of the measured work; NAN */
    double *sample; /* room for the most steps of both */
    td_comparison out;
} joined;

/* ---- numbers ---- */

double td_median(double *x, int64_t n)
{
    gsl_sort(x, 1, (size_t)n);
    return gsl_stats_median_from_sorted_data(x, 1, (size_t)n);
}

double td_spread(double *x, int64_t n, double of)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = fabs(x[i] - of);
    return mad_to_sigma * td_median(x, n);
}

static double rel_error(double predicted, double measured)
{
    if (predicted == measured)
        return 0;
    return measured > 0 ? (predicted - measured) / measured : INFINITY;
}

static td_pair pair(double predicted, double measured, double noise)
{
    return (td_pair){
        .s = {predicted, measured}, .rel_error = rel_error(predicted, measured), .noise = noise};
}

/* Relative spread of a sample, which is overwritten; NAN if it tells nothing. */
static double noise_of(double *x, int64_t n)
{
    if (n < 2)
        return NAN;
    const double middle = td_median(x, n);
    return middle > 0 ? td_spread(x, n, middle) / middle : NAN;
}

/* ---- the two are of one program ---- */

static td_status same_program(const td_side *p, const td_side *m, td_err *err)
{
    td_status st = TD_OK;
    if (strcmp(p->meta.digest, m->meta.digest) != 0)
        TD_TRY(st, td_fail(err, TD_FILE,
                           "the traces are of different programs: %s is of plan `%.80s` (program "
                           "%.64s), %s of plan `%.80s` (program %.64s)",
                           p->path, p->meta.plan, p->meta.digest, m->path, m->meta.plan,
                           m->meta.digest));
    if (p->world_size != m->world_size)
        TD_TRY(st, td_fail(err, TD_FILE, "%s has %d ranks, %s has %d", p->path, (int)p->world_size,
                           m->path, (int)m->world_size));
    for (int32_t r = 0; r < p->world_size; r++)
        if (p->first[r + 1] - p->first[r] != m->first[r + 1] - m->first[r])
            TD_TRY(st, td_fail(err, TD_FILE, "rank %d: %s has %lld ops, %s has %lld", (int)r,
                               p->path, (long long)(p->first[r + 1] - p->first[r]), m->path,
                               (long long)(m->first[r + 1] - m->first[r])));
done:
    return st;
}

static td_status same_ops(const td_side *p, const td_side *m, td_err *err)
{
    td_status st = TD_OK;
    for (int64_t i = 0; i < p->n_ops; i++) {
        const td_side_op *a = &p->ops[i], *b = &m->ops[i];
        if (a->kind != b->kind || a->lane != b->lane || a->mb != b->mb || a->stage != b->stage ||
            a->bytes != b->bytes ||
            strcmp(td_side_module(p, a->module), td_side_module(m, b->module)) != 0) {
            char left[96], right[96];
            TD_TRY(st,
                   td_fail(err, TD_FILE,
                           "rank %d, op %lld: is %s of `%.60s`, %llu bytes, in %s, but %s of "
                           "`%.60s`, %llu bytes, in %s",
                           (int)p->rank[i], (long long)(i - p->first[p->rank[i]]),
                           td_side_name_op(p, i, left, sizeof left), td_side_module(p, a->module),
                           (unsigned long long)a->bytes, p->path,
                           td_side_name_op(m, i, right, sizeof right), td_side_module(m, b->module),
                           (unsigned long long)b->bytes, m->path));
        }
    }
done:
    return st;
}

/* Names only the measurement has still help: they say who the peers are. */
static void share_peers(td_side *p, const td_side *m)
{
    for (int64_t i = 0; i < p->n_ops; i++)
        if (p->ops[i].peer < 0)
            p->ops[i].peer = m->ops[i].peer;
}

/* ---- every op ---- */

static td_status take_medians(joined *j, td_err *err)
{
    td_status st = TD_OK;
    const int64_t n = j->side[0].n_ops;
    int32_t most = 1;
    for (int side = 0; side < TD_N_SIDES; side++) {
        j->work_s[side] = TD_NEW(j->a, double, n);
        j->wait_s[side] = TD_NEW(j->a, double, n);
        if (j->work_s[side] == NULL || j->wait_s[side] == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to compare %lld ops", (long long)n));
        most = j->side[side].n_examined > most ? j->side[side].n_examined : most;
    }
    j->noise = TD_NEW(j->a, double, n);
    j->sample = TD_NEW(j->a, double, most);
    if (j->noise == NULL || j->sample == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to compare %lld ops", (long long)n));
    for (int side = 0; side < TD_N_SIDES; side++)
        for (int64_t i = 0; i < n; i++) {
            const td_side *s = &j->side[side];
            for (int32_t k = 0; k < s->n_examined; k++) {
                const td_span *span = &td_side_step(s, k)[i];
                j->sample[k] = 1e-9 * (double)(span->begin_ns - span->start_ns);
            }
            j->wait_s[side][i] = td_median(j->sample, s->n_examined);
            for (int32_t k = 0; k < s->n_examined; k++) {
                const td_span *span = &td_side_step(s, k)[i];
                j->sample[k] = 1e-9 * (double)(span->end_ns - span->begin_ns);
            }
            j->work_s[side][i] = td_median(j->sample, s->n_examined);
            if (side == TD_MEASURED)
                j->noise[i] = noise_of(j->sample, s->n_examined);
        }
done:
    return st;
}

/* ---- the step ---- */

static td_status compare_steps(joined *j, td_err *err)
{
    td_status st = TD_OK;
    td_comparison *c = &j->out;
    const td_side *m = &j->side[TD_MEASURED];
    const int32_t n = m->n_steps < MOST_RESAMPLED ? m->n_steps : MOST_RESAMPLED;
    double *steps = malloc((size_t)m->n_steps * sizeof *steps),
           *drawn = malloc((size_t)n * sizeof *drawn),
           *medians = malloc(RESAMPLES * sizeof *medians);
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    if (steps == NULL || drawn == NULL || medians == NULL || rng == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d steps", (int)m->n_steps));
    memcpy(steps, m->step_s, (size_t)m->n_steps * sizeof *steps);
    c->step_mad_s = td_spread(steps, m->n_steps, m->step_median_s);
    c->step = pair(j->side[TD_PREDICTED].step_median_s, m->step_median_s,
                   m->n_steps < 2 ? NAN : c->step_mad_s / m->step_median_s);
    for (int32_t i = 0; i < n; i++)
        steps[i] = m->step_s[(int64_t)i * m->n_steps / n];
    gsl_rng_set(rng, SEED);
    for (int32_t k = 0; k < RESAMPLES; k++) {
        gsl_ran_sample(rng, drawn, (size_t)n, steps, (size_t)n, sizeof *steps);
        medians[k] = td_median(drawn, n);
    }
    gsl_sort(medians, 1, RESAMPLES);
    c->step_low_s = gsl_stats_quantile_from_sorted_data(medians, 1, RESAMPLES, 0.05);
    c->step_high_s = gsl_stats_quantile_from_sorted_data(medians, 1, RESAMPLES, 0.95);
    c->ok = fabs(c->step.rel_error) <= c->tolerance;
done:
    if (rng != NULL)
        gsl_rng_free(rng);
    free(medians);
    free(drawn);
    free(steps);
    return st;
}

/* ---- by kind ---- */

static td_status compare_kinds(joined *j, td_err *err)
{
    td_status st = TD_OK;
    td_comparison *c = &j->out;
    const td_side *p = &j->side[TD_PREDICTED], *m = &j->side[TD_MEASURED];
    td_compare_kind *kinds = TD_NEW(j->a, td_compare_kind, TD_N_OPS);
    double *errors = malloc((size_t)p->n_ops * sizeof *errors);
    if (kinds == NULL || errors == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to compare %lld ops", (long long)p->n_ops));
    for (int kind = 0; kind < TD_N_OPS; kind++) {
        td_compare_kind k = {.kind = td_op_table[kind].name};
        double work[TD_N_SIDES] = {0};
        int64_t n = 0;
        memset(j->sample, 0, (size_t)m->n_examined * sizeof *j->sample);
        for (int64_t i = 0; i < p->n_ops; i++) {
            if (p->ops[i].kind != kind)
                continue;
            for (int side = 0; side < TD_N_SIDES; side++) {
                work[side] += j->work_s[side][i];
                k.wait_s[side] += j->wait_s[side][i];
            }
            for (int32_t step = 0; step < m->n_examined; step++) {
                const td_span *span = &td_side_step(m, step)[i];
                j->sample[step] += 1e-9 * (double)(span->end_ns - span->begin_ns);
            }
            const double error = rel_error(j->work_s[TD_PREDICTED][i], j->work_s[TD_MEASURED][i]);
            if (isfinite(error))
                errors[n++] = fabs(error);
            else
                k.n_instant++;
            k.count++;
        }
        if (k.count == 0)
            continue;
        k.work = pair(work[TD_PREDICTED], work[TD_MEASURED], noise_of(j->sample, m->n_examined));
        gsl_sort(errors, 1, (size_t)n);
        k.p50 = n == 0 ? NAN : gsl_stats_quantile_from_sorted_data(errors, 1, (size_t)n, 0.50);
        k.p95 = n == 0 ? NAN : gsl_stats_quantile_from_sorted_data(errors, 1, (size_t)n, 0.95);
        kinds[c->n_kinds++] = k;
    }
    c->kinds = kinds;
done:
    free(errors);
    return st;
}

static td_status compare_parts(joined *j, td_err *err)
{
    td_status st = TD_OK;
    td_comparison *c = &j->out;
    const td_side *p = &j->side[TD_PREDICTED], *m = &j->side[TD_MEASURED];
    td_compare_part *parts = TD_NEW(j->a, td_compare_part, m->n_parts);
    if (parts == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to compare parts"));
    for (int32_t i = 0; i < m->n_parts; i++)
        for (int32_t k = 0; k < p->n_parts; k++)
            if (strcmp(p->parts[k].kind, m->parts[i].kind) == 0 &&
                strcmp(td_side_module(p, p->parts[k].module),
                       td_side_module(m, m->parts[i].module)) == 0)
                parts[c->n_parts++] = (td_compare_part){
                    .kind = m->parts[i].kind,
                    .module = td_side_module(m, m->parts[i].module),
                    .count = m->parts[i].count / m->n_steps,
                    .work = pair(p->parts[k].s / p->n_steps, m->parts[i].s / m->n_steps, NAN)};
    c->parts = parts;
done:
    return st;
}

/* ---- by rank ---- */

/* The noise of a rank's four shares, from every step examined. */
static void rank_noise(joined *j, int32_t rank, double out[4], td_compare_split *room)
{
    const td_side *m = &j->side[TD_MEASURED];
    static const size_t at[4] = {
        offsetof(td_compare_split, busy_s), offsetof(td_compare_split, collective_s),
        offsetof(td_compare_split, transfer_s), offsetof(td_compare_split, bubble_s)};
    for (int32_t k = 0; k < m->n_examined; k++)
        td_split_of(&j->x, m, rank, k, &room[k]);
    for (int i = 0; i < 4; i++) {
        for (int32_t k = 0; k < m->n_examined; k++)
            memcpy(&j->sample[k], (const char *)&room[k] + at[i], sizeof *j->sample);
        out[i] = noise_of(j->sample, m->n_examined);
    }
}

static td_status compare_ranks(joined *j, td_err *err)
{
    td_status st = TD_OK;
    td_comparison *c = &j->out;
    const td_side *p = &j->side[TD_PREDICTED];
    double bubble[TD_N_SIDES] = {0}, all[TD_N_SIDES] = {0};
    td_compare_rank *ranks = TD_NEW(j->a, td_compare_rank, p->world_size);
    td_compare_split *room = malloc((size_t)j->side[TD_MEASURED].n_examined * sizeof *room);
    if (ranks == NULL || room == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to compare %d ranks", (int)p->world_size));
    for (int32_t r = 0; r < p->world_size; r++) {
        td_compare_rank *k = &ranks[r];
        double noise[4];
        *k = (td_compare_rank){.rank = r, .stage = -1, .module = ""};
        if (p->row[r] >= 0) {
            const td_side_op *op = &p->ops[p->first[r]];
            k->module = td_side_module(p, op->module);
            k->stage = op->module < 0 ? -1 : op->stage;
        }
        for (int side = 0; side < TD_N_SIDES; side++) {
            const td_side *s = &j->side[side];
            td_compare_split *split = &k->split[side];
            td_split_of(&j->x, s, r, s->median, split);
            td_still_of(&j->x, s, r, s->median, k->still_s[side]);
            bubble[side] += split->bubble_s;
            all[side] += split->busy_s + split->collective_s + split->transfer_s + split->bubble_s;
            for (int i = 0; i < TD_N_CAUSES; i++)
                c->still_s[side][i] += k->still_s[side][i] / p->n_rows;
        }
        rank_noise(j, r, noise, room);
        const td_compare_split *a = &k->split[TD_PREDICTED], *b = &k->split[TD_MEASURED];
        k->busy = pair(a->busy_s, b->busy_s, noise[0]);
        k->collective = pair(a->collective_s, b->collective_s, noise[1]);
        k->transfer = pair(a->transfer_s, b->transfer_s, noise[2]);
        k->bubble = pair(a->bubble_s, b->bubble_s, noise[3]);
    }
    c->n_ranks = p->world_size;
    c->ranks = ranks;
    for (int side = 0; side < TD_N_SIDES; side++)
        c->bubble_fraction[side] = all[side] > 0 ? bubble[side] / all[side] : 0;
done:
    free(room);
    return st;
}

/* ---- by microbatch ---- */

static td_status compare_microbatches(joined *j, td_err *err)
{
    td_status st = TD_OK;
    td_comparison *c = &j->out;
    const td_side *p = &j->side[TD_PREDICTED];
    double(*sum)[2][TD_N_SIDES] = NULL, (*noise)[2] = NULL;
    int32_t n = 0;
    for (int64_t i = 0; i < p->n_ops; i++) /* each has an op at least, so n is at most n_ops */
        if (p->ops[i].mb >= n && p->ops[i].mb < p->n_ops)
            n = p->ops[i].mb + 1;
    td_compare_mb *mbs = TD_NEW(j->a, td_compare_mb, n);
    sum = calloc((size_t)n + 1, sizeof *sum);
    noise = calloc((size_t)n + 1, sizeof *noise);
    if (mbs == NULL || sum == NULL || noise == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to compare %d microbatches", (int)n));
    for (int64_t i = 0; i < p->n_ops; i++) {
        const td_side_op *op = &p->ops[i];
        if (op->mb < 0 || op->mb >= n || (op->kind != TD_OP_FORWARD && op->kind != TD_OP_BACKWARD))
            continue;
        const int way = op->kind == TD_OP_BACKWARD;
        for (int side = 0; side < TD_N_SIDES; side++)
            sum[op->mb][way][side] += j->work_s[side][i];
        const double sigma = j->noise[i] * j->work_s[TD_MEASURED][i];
        noise[op->mb][way] += sigma * sigma; /* ops as if independent: variances add up */
    }
    for (int32_t mb = 0; mb < n; mb++) {
        td_pair both[2];
        for (int way = 0; way < 2; way++)
            both[way] = pair(sum[mb][way][TD_PREDICTED], sum[mb][way][TD_MEASURED],
                             sum[mb][way][TD_MEASURED] > 0
                                 ? sqrt(noise[mb][way]) / sum[mb][way][TD_MEASURED]
                                 : NAN);
        mbs[mb] = (td_compare_mb){.mb = mb, .forward = both[0], .backward = both[1]};
    }
    c->n_mbs = n;
    c->mbs = mbs;
done:
    free(noise);
    free(sum);
    return st;
}

/* ---- the worst ops ---- */

static td_status find_worst(joined *j, td_err *err)
{
    td_status st = TD_OK;
    td_comparison *c = &j->out;
    const td_side *p = &j->side[TD_PREDICTED];
    int64_t worst[TD_COMPARE_WORST];
    double by[TD_COMPARE_WORST];
    int32_t n = 0;
    for (int64_t i = 0; i < p->n_ops; i++) {
        const double d = fabs(j->work_s[TD_MEASURED][i] - j->work_s[TD_PREDICTED][i]);
        if (!(d > 0) || (n == TD_COMPARE_WORST && !(d > by[n - 1])))
            continue;
        int32_t at = n < TD_COMPARE_WORST ? n++ : n - 1;
        for (; at > 0 && d > by[at - 1]; at--) {
            worst[at] = worst[at - 1];
            by[at] = by[at - 1];
        }
        worst[at] = i;
        by[at] = d;
    }
    td_compare_op *ops = TD_NEW(j->a, td_compare_op, n);
    if (ops == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the worst ops"));
    for (int32_t k = 0; k < n; k++) {
        const int64_t i = worst[k];
        const td_side_op *op = &p->ops[i];
        ops[k] = (td_compare_op){
            .rank = p->rank[i],
            .op = (int32_t)(i - p->first[p->rank[i]]),
            .stage = op->stage,
            .mb = op->mb,
            .kind = td_op_table[op->kind].name,
            .module = td_side_module(p, op->module),
            .work = pair(j->work_s[TD_PREDICTED][i], j->work_s[TD_MEASURED][i], j->noise[i]),
            .wait_s = {j->wait_s[TD_PREDICTED][i], j->wait_s[TD_MEASURED][i]}};
        td_side_name_op(p, i, ops[k].name, sizeof ops[k].name);
    }
    c->n_worst = n;
    c->worst = ops;
done:
    return st;
}

/* ---- memory ---- */

static td_status read_memory(joined *j, int side, td_err *err)
{
    td_status st = TD_OK;
    static const char key[] = "peak_memory_bytes.";
    const td_trace_meta *m = &j->side[side].meta;
    double *bytes = NULL;
    for (int32_t i = 0; i < m->n_extra; i++) {
        const char *name = m->extra[2 * i], *value = m->extra[2 * i + 1];
        char *behind_name, *behind_value;
        if (strncmp(name, key, sizeof key - 1) != 0)
            continue;
        const long rank = strtol(name + sizeof key - 1, &behind_name, 10);
        const double peak = strtod(value, &behind_value);
        if (*behind_name != '\0' || behind_name == name + sizeof key - 1 || rank < 0 ||
            rank >= m->world_size || *behind_value != '\0' || !(peak >= 0) || !isfinite(peak))
            TD_TRY(st, td_fail(err, TD_FILE,
                               "%s: metadata \"%.40s\" is \"%.40s\", expected bytes "
                               "of a rank",
                               j->side[side].path, name, value));
        if (bytes == NULL) {
            bytes = TD_NEW(j->a, double, m->world_size);
            if (bytes == NULL)
                TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the memory of %d ranks",
                                   (int)m->world_size));
            for (int32_t r = 0; r < m->world_size; r++)
                bytes[r] = -1;
        }
        bytes[rank] = peak;
    }
    j->out.memory[side] = bytes;
done:
    return st;
}

/* ---- all of it ---- */

td_status td_compare(td_arena *a, const char *predicted, const char *measured, double tolerance,
                     const td_comparison **out, td_err *err)
{
    td_status st = TD_OK;
    const char *const paths[TD_N_SIDES] = {predicted, measured};
    gsl_error_handler_t *const before = gsl_set_error_handler_off();
    joined *j = TD_NEW(a, joined, 1);
    if (j == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to compare traces"));
    j->a = a;
    td_comparison *c = &j->out;
    c->tolerance = tolerance;
    for (int side = 0; side < TD_N_SIDES; side++)
        TD_TRY(st, td_side_count(a, paths[side], &j->side[side], err));
    TD_TRY(st, same_program(&j->side[TD_PREDICTED], &j->side[TD_MEASURED], err));
    for (int side = 0; side < TD_N_SIDES; side++) {
        TD_TRY(st, td_side_read(a, &j->side[side], err));
        c->side[side] = &j->side[side];
        c->n_steps[side] = j->side[side].n_steps;
        c->n_examined[side] = j->side[side].n_examined;
    }
    TD_TRY(st, same_ops(&j->side[TD_PREDICTED], &j->side[TD_MEASURED], err));
    share_peers(&j->side[TD_PREDICTED], &j->side[TD_MEASURED]);
    TD_TRY(st, td_structure_build(a, &j->side[TD_PREDICTED], &j->x, err));
    for (int side = 0; side < TD_N_SIDES; side++) {
        td_structure_begin(&j->x, &j->side[side]);
        TD_TRY(st, td_path_of(a, &j->x, &j->side[side], &c->path[side], err));
        TD_TRY(st, read_memory(j, side, err));
    }
    TD_TRY(st, take_medians(j, err));
    TD_TRY(st, compare_steps(j, err));
    TD_TRY(st, compare_kinds(j, err));
    TD_TRY(st, compare_parts(j, err));
    TD_TRY(st, compare_ranks(j, err));
    TD_TRY(st, compare_microbatches(j, err));
    TD_TRY(st, find_worst(j, err));
    TD_TRY(st, td_attribute(a, &j->x, (const double *const *)j->work_s, c, err));
    TD_TRY(st, td_compare_versions(a, c, err));
    td_compare_say(c);
    *out = c;
done:
    gsl_set_error_handler(before);
    return st;
}
