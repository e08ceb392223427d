/*
 * Reads profiles: JSON (or YAML) with one measurement a line, so that a person can read and diff
 * it.
 *
 *     format: tandem-profile, version: 1, name, gpu, backend, trust, source
 *     peak: {bf16_tflop_s, fp32_tflop_s, memory_gb_s, memory_gb, link_gb_s}      10^12 and 10^9
 *     kernel_gap_us
 *     efficiency: {gemm_fwd, gemm_dgrad, gemm_wgrad, attention_fwd, attention_bwd,
 *                  sendrecv, all_reduce, ... (every collective), memory}         in (0, 1]
 *     latency_us: {gemm_fwd, ... (the same, without memory)}
 *     gemm: {columns: [m, n, k, fwd_us, dgrad_us, wgrad_us], rows}               null: not measured
 *     attention: {columns: [batch, seq, heads, head_dim, causal, fwd_us, bwd_us], rows}     also
 *     memory: {copy, norm, adam, ...: {columns: [bytes, us], rows}}
 *     collectives: {all_reduce, ...: {ranks: [2, 4], rows: [bytes, us with 2 ranks, us with 4]}}
 *     in_pass: {all_reduce, ...: {the same}}               of tensor-parallel groups, inside passes
 *     overlap: {all_reduce, ...: {wait_us, transfer, compute}}
 *     duty: {columns: [busy, factor], rows}                                      by mean heat
 *     heat: {window_ms, attention, memory, collective}                           of td_heat
 *     residuals: {gemm: [n, q05, q25, q50, q75, q95], ..., all_reduce: [...]} ln(measured/fitted)
 *     errors: {kernel_gap_us, efficiency: {gemm_fwd, ...}, latency_us: {...}, heat: {...}} standard
 * ones environment: {driver, cuda, nccl, cudnn, date, clocks}
 *
 * Everything from `gemm` on is optional. Columns are written out so that rows explain themselves;
 * they are checked, not chosen.
 */
#include "model/profile_values.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

const char *const td_trust_names[TD_N_TRUSTS] = {
    [TD_TRUST_DATASHEET] = "datasheet",
    [TD_TRUST_PROVISIONAL] = "provisional",
    [TD_TRUST_CALIBRATED] = "calibrated",
};

const td_heat td_heat_usual = {
    .window_s = 0.042, .attention = 0.88, .memory = 0.72, .collective = 1};

/* ---- the sections ---- */

static int compare(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* Rows of one weight stand together, by growing m: cost models walk them as groups. */
static int by_weight(const void *left, const void *right)
{
    const td_gemm_row *a = left, *b = right;
    const int n = compare(a->n, b->n), k = compare(a->k, b->k);
    return n != 0 ? n : k != 0 ? k : compare(a->m, b->m);
}

/* More rows of one weight never take less: the one contradiction among 324 times of the H200 is 9
 * %. */
static td_status order_weights(const td_pv_reader *r, td_gemm_row *rows, int32_t n)
{
    double *y = TD_NEW(r->arena, double, n);
    int32_t *pooled = TD_NEW(r->arena, int32_t, n);
    if (y == NULL || pooled == NULL)
        return td_pv_no_memory(r);
    for (int32_t first = 0, end; first < n; first = end) {
        for (end = first; end < n && rows[end].n == rows[first].n && rows[end].k == rows[first].k;)
            end++;
        for (int32_t pass = 0; pass < 3; pass++) {
            int32_t n_y = 0, next = 0;
            for (int32_t i = first; i < end; i++) {
                if (rows[i].s[pass] >= 0)
                    y[n_y++] = rows[i].s[pass];
            }
            td_pv_pool(n_y, y, pooled);
            for (int32_t i = first; i < end; i++) {
                if (rows[i].s[pass] >= 0)
                    rows[i].s[pass] = y[next++];
            }
        }
    }
    return TD_OK;
}

static td_status read_gemm(const td_pv_reader *r, const td_yaml *node, td_profile *p)
{
    static const td_pv_column columns[] = {{"m", TD_PV_COUNT},
                                           {"n", TD_PV_COUNT},
                                           {"k", TD_PV_COUNT},
                                           {"fwd_us", TD_PV_SECONDS_OR_NULL},
                                           {"dgrad_us", TD_PV_SECONDS_OR_NULL},
                                           {"wgrad_us", TD_PV_SECONDS_OR_NULL}};
    td_status st = TD_OK;
    td_pv_table t;
    TD_TRY(st, td_pv_read_table(r, node, "gemm", columns, 6, &t));
    td_gemm_row *rows = TD_NEW(r->arena, td_gemm_row, t.n);
    if (rows == NULL)
        TD_TRY(st, td_pv_no_memory(r));
    for (int32_t i = 0; i < t.n; i++) {
        const double *c = t.cells + (int64_t)i * 6;
        rows[i] = (td_gemm_row){.m = (int64_t)c[0], .n = (int64_t)c[1], .k = (int64_t)c[2]};
        for (int32_t pass = 0; pass < 3; pass++)
            rows[i].s[pass] = isnan(c[3 + pass]) ? -1 : c[3 + pass] * 1e-6;
    }
    qsort(rows, (size_t)t.n, sizeof *rows, by_weight);
    for (int32_t i = 1; i < t.n; i++) {
        if (by_weight(&rows[i - 1], &rows[i]) == 0)
            TD_TRY(st, td_fail(r->err, TD_FILE,
                               "%s:%d:%d: gemm: m=%lld n=%lld k=%lld stands there twice; "
                               "expected each shape once",
                               node->at.file, node->at.line, node->at.column, (long long)rows[i].m,
                               (long long)rows[i].n, (long long)rows[i].k));
    }
    TD_TRY(st, order_weights(r, rows, t.n));
    p->n_gemms = t.n;
    p->gemms = rows;
done:
    return st;
}

static int by_attention(const void *left, const void *right)
{
    const td_attention_row *a = left, *b = right;
    const int64_t key[][2] = {{a->causal, b->causal},
                              {a->head_dim, b->head_dim},
                              {a->seq, b->seq},
                              {(int64_t)a->batch * a->heads, (int64_t)b->batch * b->heads},
                              {a->batch, b->batch}};
    int order = 0;
    for (size_t i = 0; order == 0 && i < sizeof key / sizeof *key; i++)
        order = compare(key[i][0], key[i][1]);
    return order;
}

static td_status read_attention(const td_pv_reader *r, const td_yaml *node, td_profile *p)
{
    static const td_pv_column columns[] = {
        {"batch", TD_PV_COUNT},           {"seq", TD_PV_COUNT},   {"heads", TD_PV_COUNT},
        {"head_dim", TD_PV_COUNT},        {"causal", TD_PV_FLAG}, {"fwd_us", TD_PV_SECONDS_OR_NULL},
        {"bwd_us", TD_PV_SECONDS_OR_NULL}};
    td_status st = TD_OK;
    td_pv_table t;
    TD_TRY(st, td_pv_read_table(r, node, "attention", columns, 7, &t));
    td_attention_row *rows = TD_NEW(r->arena, td_attention_row, t.n);
    if (rows == NULL)
        TD_TRY(st, td_pv_no_memory(r));
    for (int32_t i = 0; i < t.n; i++) {
        const double *c = t.cells + (int64_t)i * 7;
        for (int32_t k = 0; k < 4; k++) {
            if (c[k] > INT32_MAX)
                TD_TRY(st, td_pv_fail(r, t.at[i], "attention", "sizes below 2^31"));
        }
        rows[i] = (td_attention_row){.batch = (int32_t)c[0],
                                     .seq = (int32_t)c[1],
                                     .heads = (int32_t)c[2],
                                     .head_dim = (int32_t)c[3],
                                     .causal = c[4] != 0,
                                     .forward_s = isnan(c[5]) ? -1 : c[5] * 1e-6,
                                     .backward_s = isnan(c[6]) ? -1 : c[6] * 1e-6};
    }
    qsort(rows, (size_t)t.n, sizeof *rows, by_attention);
    p->n_attention = t.n;
    p->attention = rows;
done:
    return st;
}

static td_status read_memory(const td_pv_reader *r, const td_yaml *node, td_profile *p)
{
    static const td_pv_column columns[] = {{"bytes", TD_PV_COUNT}, {"us", TD_PV_SECONDS}};
    td_status st = TD_OK;
    td_pv_field f[TD_N_PARTS + 1] = {{.key = "copy"}};
    td_curve *curves[TD_N_PARTS + 1] = {&p->copy};
    int32_t n = 1;
    for (int32_t class = 0; class < TD_N_PARTS; class ++) {
        if (td_part_table[class].key == TD_KEY_BYTES) {
            f[n].key = td_part_table[class].name;
            curves[n++] = &p->memory[class];
        }
    }
    TD_TRY(st, td_pv_fields(r, node, "memory", f, n));
    for (int32_t i = 0; i < n; i++) {
        if (f[i].value != NULL)
            TD_TRY(st, td_pv_read_curve(r, f[i].value, "memory", columns, 1e-6, curves[i]));
    }
done:
    return st;
}

/* Ascending numbers of ranks, each at least 2, as the columns of the rows. */
static td_status read_ranks(const td_pv_reader *r, const td_yaml *node, const char *path,
                            td_coll_curve *curves)
{
    td_status st = TD_OK;
    int32_t before = 1;
    for (const td_yaml *v = node->first; v != NULL; v = v->next, curves++) {
        double x;
        TD_TRY(st, td_pv_number(r, td_yaml_value(v), path, TD_PV_COUNT, &x));
        if (x <= before || x > INT32_MAX)
            TD_TRY(st,
                   td_pv_fail(r, td_yaml_value(v), path, "numbers of ranks from 2 on, ascending"));
        before = curves->ranks = (int32_t)x;
    }
done:
    return st;
}

static td_status read_curves(const td_pv_reader *r, const td_yaml *node, td_coll coll,
                             int32_t *n_out, const td_coll_curve **out)
{
    td_status st = TD_OK;
    const char *path = td_collectives[coll]->name;
    td_pv_field f[] = {{.key = "ranks", .required = true}, {.key = "rows", .required = true}};
    td_pv_column columns[TD_PV_COLUMNS] = {{"bytes", TD_PV_COUNT}};
    td_pv_table t;
    TD_TRY(st, td_pv_fields(r, node, path, f, 2));
    const int32_t n = f[0].value->n;
    if (f[0].value->kind != TD_YAML_SEQUENCE || n < 1 || n >= TD_PV_COLUMNS)
        TD_TRY(st, td_pv_fail(r, f[0].value, path, "a list of 1 to 32 numbers of ranks"));
    td_coll_curve *curves = TD_NEW(r->arena, td_coll_curve, n);
    if (curves == NULL)
        TD_TRY(st, td_pv_no_memory(r));
    TD_TRY(st, read_ranks(r, f[0].value, path, curves));
    for (int32_t i = 0; i < n; i++)
        columns[1 + i] = (td_pv_column){"us", TD_PV_SECONDS_OR_NULL};
    TD_TRY(st, td_pv_rows(r, f[1].value, path, columns, n + 1, &t));
    for (int32_t i = 0; i < n; i++) {
        TD_TRY(st, td_pv_make_curve(r, &t, 1 + i, path, 1e-6, &curves[i].time));
        if (curves[i].time.n == 0)
            TD_TRY(st,
                   td_pv_fail(r, f[1].value, path, "at least one time for each number of ranks"));
    }
    *n_out = n;
    *out = curves;
done:
    return st;
}

static td_status read_collective(const td_pv_reader *r, const td_yaml *node, td_coll coll,
                                 td_profile *p)
{
    return read_curves(r, node, coll, &p->n_collectives[coll], &p->collectives[coll]);
}

static td_status read_in_pass(const td_pv_reader *r, const td_yaml *node, td_coll coll,
                              td_profile *p)
{
    return read_curves(r, node, coll, &p->n_in_pass[coll], &p->in_pass[coll]);
}

static td_status read_overlap(const td_pv_reader *r, const td_yaml *node, td_coll coll,
                              td_profile *p)
{
    td_overlap *o = &p->overlap[coll];
    const td_pv_named numbers[] = {{"wait_us", TD_PV_NOT_NEGATIVE, 1e-6, &o->wait_s, false},
                                   {"transfer", TD_PV_FACTOR, 1, &o->transfer, false},
                                   {"compute", TD_PV_FACTOR, 1, &o->compute, false}};
    return td_pv_numbers(r, node, "overlap", numbers, 3);
}

/* A mapping with the names of collectives for keys. */
static td_status read_by_collective(const td_pv_reader *r, const td_yaml *node, const char *path,
                                    td_status (*read)(const td_pv_reader *, const td_yaml *,
                                                      td_coll, td_profile *),
                                    td_profile *p)
{
    td_status st = TD_OK;
    td_pv_field f[TD_N_COLLS] = {{0}};
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        f[i].key = td_collectives[i]->name;
    TD_TRY(st, td_pv_fields(r, node, path, f, TD_N_COLLS));
    for (int32_t i = 0; i < TD_N_COLLS; i++) {
        if (f[i].value != NULL)
            TD_TRY(st, read(r, f[i].value, (td_coll)i, p));
    }
done:
    return st;
}

static td_status read_peak(const td_pv_reader *r, const td_yaml *node, td_profile *p)
{
    const td_pv_named numbers[] = {
        {"bf16_tflop_s", TD_PV_POSITIVE, 1e12, &p->bf16_flops_per_s, false},
        {"fp32_tflop_s", TD_PV_POSITIVE, 1e12, &p->fp32_flops_per_s, false},
        {"memory_gb_s", TD_PV_POSITIVE, 1e9, &p->memory_bytes_per_s, false},
        {"memory_gb", TD_PV_POSITIVE, 1e9, &p->memory_bytes, false},
        {"link_gb_s", TD_PV_POSITIVE, 1e9, &p->link_bytes_per_s, true}};
    return td_pv_numbers(r, node, "peak", numbers, 5);
}

/* A number for each kind of work and, where there is a `memory` to read, for passes over it. */
static td_status read_by_work(const td_pv_reader *r, const td_yaml *node, const char *path,
                              td_pv_kind k, double scale, bool optional, td_by_work *out,
                              double *memory)
{
    enum { N_KERNELS = 5 };
    td_pv_named numbers[N_KERNELS + TD_N_COLLS + 1] = {
        {"gemm_fwd", k, scale, &out->gemm[TD_PASS_FORWARD], optional},
        {"gemm_dgrad", k, scale, &out->gemm[TD_PASS_DGRAD], optional},
        {"gemm_wgrad", k, scale, &out->gemm[TD_PASS_WGRAD], optional},
        {"attention_fwd", k, scale, &out->attention[0], optional},
        {"attention_bwd", k, scale, &out->attention[1], optional}};
    int32_t n = N_KERNELS;
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        numbers[n++] =
            (td_pv_named){td_collectives[i]->name, k, scale, &out->collective[i], optional};
    if (memory != NULL)
        numbers[n++] = (td_pv_named){"memory", k, scale, memory, optional};
    return td_pv_numbers(r, node, path, numbers, n);
}

/* One class of parts or one collective: how many samples, and the quantiles of what the fit left.
 */
static td_status read_quantiles(const td_pv_reader *r, const td_yaml *v, td_residuals *out)
{
    td_status st = TD_OK;
    double x, before = -INFINITY;
    int32_t i = 0;
    if (v->kind != TD_YAML_SEQUENCE || v->n != 1 + TD_N_QUANTILES)
        TD_TRY(st,
               td_pv_fail(r, v, "residuals", "a count and the quantiles at 5, 25, 50, 75, 95 %"));
    for (const td_yaml *e = v->first; e != NULL; e = e->next, i++) {
        TD_TRY(st, td_pv_number(r, td_yaml_value(e), "residuals", i == 0 ? TD_PV_TALLY : TD_PV_ANY,
                                &x));
        if (i > 1 && x < before)
            TD_TRY(st, td_pv_fail(r, td_yaml_value(e), "residuals", "quantiles that do not fall"));
        before = i == 0 ? -INFINITY : x;
        if (i == 0)
            out->n = (int32_t)x;
        else
            out->q[i - 1] = x;
    }
done:
    return st;
}

static td_status read_residuals(const td_pv_reader *r, const td_yaml *node, td_profile *p)
{
    td_status st = TD_OK;
    td_pv_field f[TD_N_PARTS + TD_N_COLLS] = {{0}};
    td_residuals *out[TD_N_PARTS + TD_N_COLLS];
    int32_t n = 0;
    for (int32_t i = 0; i < TD_N_PARTS; i++)
        if (i != TD_PART_COLLECTIVE) {
            f[n].key = td_part_table[i].name;
            out[n++] = &p->part_residuals[i];
        }
    for (int32_t i = 0; i < TD_N_COLLS; i++) {
        f[n].key = td_collectives[i]->name;
        out[n++] = &p->coll_residuals[i];
    }
    TD_TRY(st, td_pv_fields(r, node, "residuals", f, n));
    for (int32_t i = 0; i < n; i++)
        if (f[i].value != NULL)
            TD_TRY(st, read_quantiles(r, f[i].value, out[i]));
done:
    return st;
}

/* Errors may be 0: not known. */
static td_status read_heat(const td_pv_reader *r, const td_yaml *node, bool errors, td_heat *h)
{
    const td_pv_kind share = errors ? TD_PV_NOT_NEGATIVE : TD_PV_SHARE,
                     time = errors ? TD_PV_NOT_NEGATIVE : TD_PV_POSITIVE;
    const td_pv_named numbers[] = {{"window_ms", time, 1e-3, &h->window_s, false},
                                   {"attention", share, 1, &h->attention, false},
                                   {"memory", share, 1, &h->memory, false},
                                   {"collective", share, 1, &h->collective, false}};
    return td_pv_numbers(r, node, "heat", numbers, 4);
}

static td_status read_errors(const td_pv_reader *r, const td_yaml *node, td_profile *p)
{
    td_status st = TD_OK;
    td_pv_field f[] = {
        {.key = "kernel_gap_us"}, {.key = "efficiency"}, {.key = "latency_us"}, {.key = "heat"}};
    td_fit_errors *e = &p->errors;
    TD_TRY(st, td_pv_fields(r, node, "errors", f, 4));
    if (f[3].value != NULL)
        TD_TRY(st, read_heat(r, f[3].value, true, &e->heat));
    if (f[0].value != NULL)
        TD_TRY(st, td_pv_number(r, f[0].value, "errors", TD_PV_NOT_NEGATIVE, &e->kernel_gap_s));
    e->kernel_gap_s *= 1e-6;
    if (f[1].value != NULL)
        TD_TRY(st, read_by_work(r, f[1].value, "errors", TD_PV_NOT_NEGATIVE, 1, true,
                                &e->efficiency, &e->memory_efficiency));
    if (f[2].value != NULL)
        TD_TRY(st, read_by_work(r, f[2].value, "errors", TD_PV_NOT_NEGATIVE, 1e-6, true,
                                &e->latency_s, NULL));
done:
    return st;
}

static td_status read_environment(const td_pv_reader *r, const td_yaml *node, td_environment *out)
{
    td_status st = TD_OK;
    const char **text[] = {&out->driver, &out->cuda, &out->nccl,
                           &out->cudnn,  &out->date, &out->clocks};
    td_pv_field f[] = {{.key = "driver"}, {.key = "cuda"}, {.key = "nccl"},
                       {.key = "cudnn"},  {.key = "date"}, {.key = "clocks"}};
    TD_TRY(st, td_pv_fields(r, node, "environment", f, 6));
    for (int32_t i = 0; i < 6; i++)
        if (f[i].value != NULL)
            TD_TRY(st, td_pv_text(r, f[i].value, "environment", text[i]));
done:
    return st;
}

static td_status read_trust(const td_pv_reader *r, const td_yaml *v, td_profile *p)
{
    for (int32_t i = 0; i < TD_N_TRUSTS; i++) {
        if (v->kind == TD_YAML_SCALAR && strcmp(v->text, td_trust_names[i]) == 0) {
            p->trust = (td_trust)i;
            return TD_OK;
        }
    }
    return td_pv_fail(r, v, "trust", "datasheet, provisional or calibrated");
}

static td_status read_profile(const td_pv_reader *r, const td_yaml *root, td_profile *p)
{
    enum {
        FMT,
        V,
        NAME,
        GPU,
        BACKEND,
        TRUST,
        FROM,
        PEAK,
        GAP,
        EFF,
        LAT,
        GEMM,
        ATT,
        MEM,
        COLL,
        PASS,
        OVER,
        DUTY,
        HEAT,
        RES,
        ERRORS,
        ENV
    };
    static const td_pv_column duty[] = {{"busy", TD_PV_SHARE}, {"factor", TD_PV_FACTOR}};
    td_pv_field f[] = {[FMT] = {.key = "format", .required = true},
                       [V] = {.key = "version", .required = true},
                       [NAME] = {.key = "name", .required = true},
                       [GPU] = {.key = "gpu", .required = true},
                       [BACKEND] = {.key = "backend"},
                       [TRUST] = {.key = "trust", .required = true},
                       [FROM] = {.key = "source", .required = true},
                       [PEAK] = {.key = "peak", .required = true},
                       [GAP] = {.key = "kernel_gap_us", .required = true},
                       [EFF] = {.key = "efficiency", .required = true},
                       [LAT] = {.key = "latency_us", .required = true},
                       [GEMM] = {.key = "gemm"},
                       [ATT] = {.key = "attention"},
                       [MEM] = {.key = "memory"},
                       [COLL] = {.key = "collectives"},
                       [PASS] = {.key = "in_pass"},
                       [OVER] = {.key = "overlap"},
                       [DUTY] = {.key = "duty"},
                       [HEAT] = {.key = "heat"},
                       [RES] = {.key = "residuals"},
                       [ERRORS] = {.key = "errors"},
                       [ENV] = {.key = "environment"}};
    td_status st = TD_OK;
    TD_TRY(st, td_pv_fields(r, root, "profile", f, sizeof f / sizeof *f));
    TD_TRY(st, td_pv_expect(r, f[FMT].value, "format", "tandem-profile"));
    TD_TRY(st, td_pv_expect(r, f[V].value, "version", "1"));
    TD_TRY(st, td_pv_text(r, f[NAME].value, "name", &p->name));
    TD_TRY(st, td_pv_text(r, f[GPU].value, "gpu", &p->gpu));
    if (f[BACKEND].value != NULL)
        TD_TRY(st, td_pv_text(r, f[BACKEND].value, "backend", &p->backend));
    TD_TRY(st, read_trust(r, f[TRUST].value, p));
    TD_TRY(st, td_pv_text(r, f[FROM].value, "source", &p->source));
    TD_TRY(st, read_peak(r, f[PEAK].value, p));
    TD_TRY(st,
           td_pv_number(r, f[GAP].value, "kernel_gap_us", TD_PV_NOT_NEGATIVE, &p->kernel_gap_s));
    p->kernel_gap_s *= 1e-6;
    TD_TRY(st, read_by_work(r, f[EFF].value, "efficiency", TD_PV_SHARE, 1, false, &p->efficiency,
                            &p->memory_efficiency));
    TD_TRY(st, read_by_work(r, f[LAT].value, "latency_us", TD_PV_NOT_NEGATIVE, 1e-6, false,
                            &p->latency_s, NULL));
    if (f[GEMM].value != NULL)
        TD_TRY(st, read_gemm(r, f[GEMM].value, p));
    if (f[ATT].value != NULL)
        TD_TRY(st, read_attention(r, f[ATT].value, p));
    if (f[MEM].value != NULL)
        TD_TRY(st, read_memory(r, f[MEM].value, p));
    if (f[COLL].value != NULL)
        TD_TRY(st, read_by_collective(r, f[COLL].value, "collectives", read_collective, p));
    if (f[PASS].value != NULL)
        TD_TRY(st, read_by_collective(r, f[PASS].value, "in_pass", read_in_pass, p));
    if (f[OVER].value != NULL)
        TD_TRY(st, read_by_collective(r, f[OVER].value, "overlap", read_overlap, p));
    if (f[DUTY].value != NULL)
        TD_TRY(st, td_pv_read_curve(r, f[DUTY].value, "duty", duty, 1, &p->duty));
    p->heat = td_heat_usual;
    if (f[HEAT].value != NULL)
        TD_TRY(st, read_heat(r, f[HEAT].value, false, &p->heat));
    if (f[RES].value != NULL)
        TD_TRY(st, read_residuals(r, f[RES].value, p));
    if (f[ERRORS].value != NULL)
        TD_TRY(st, read_errors(r, f[ERRORS].value, p));
    if (f[ENV].value != NULL)
        TD_TRY(st, read_environment(r, f[ENV].value, &p->environment));
done:
    return st;
}

td_status td_profile_load(td_arena *a, const char *path, const td_profile **out, td_err *err)
{
    td_status st = TD_OK;
    const td_yaml *root = NULL;
    td_diags diags = {.arena = a};
    const td_pv_reader r = {.arena = a, .err = err};
    const char *file = td_arena_printf(a, "%s", path);
    td_profile *p = TD_NEW(a, td_profile, 1);
    if (p == NULL || file == NULL)
        TD_TRY(st, td_pv_no_memory(&r));
    p->file = file;
    p->backend = "";
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        p->overlap[i] = (td_overlap){.transfer = 1, .compute = 1};
    p->environment = (td_environment){"", "", "", "", "", ""};
    st = td_yaml_load(a, file, &diags, &root);
    if (st == TD_FILE && diags.head != NULL)
        TD_TRY(st, td_fail(err, st, "%s", td_diag_text(&diags, diags.head)));
    if (st != TD_OK)
        TD_TRY(st, td_pv_no_memory(&r));
    TD_TRY(st, read_profile(&r, td_yaml_value(root), p));
    *out = p;
done:
    return st;
}
