/*
 * Reads profiles: JSON (or YAML) with one measurement a line, so that a person can read and diff
 * it.
 *
 *     format: tandem-profile, version: 1, name, gpu, trust, source
 *     peak: {bf16_tflop_s, fp32_tflop_s, memory_gb_s, memory_gb, link_gb_s}      10^12 and 10^9
 *     kernel_gap_us
 *     efficiency: {gemm_fwd, gemm_dgrad, gemm_wgrad, attention_fwd, attention_bwd,
 *                  sendrecv, all_reduce, ... (every collective), memory}         in (0, 1]
 *     latency_us: {gemm_fwd, ... (the same, without memory)}
 *     gemm: {columns: [m, n, k, fwd_us, dgrad_us, wgrad_us], rows}               null: not measured
 *     attention: {columns: [batch, seq, heads, head_dim, causal, fwd_us, bwd_us], rows}
 *     memory: {copy, norm, adam, ...: {columns: [bytes, us], rows}}
 *     collectives: {all_reduce, ...: {ranks: [2, 4], rows: [bytes, us with 2 ranks, us with 4]}}
 *     overlap: {all_reduce, ...: {wait_us, transfer, compute}}
 *     duty: {columns: [busy, factor], rows}
 *
 * Everything from `gemm` on is optional. Columns are written out so that rows explain themselves;
 * they are checked, not chosen.
 */
#include "model/profile.h"

#include "model/text.h"
#include "model/yaml.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FIELDS = 16, MAX_COLUMNS = 33 };

const char *const td_trust_names[TD_N_TRUSTS] = {
    [TD_TRUST_DATASHEET] = "datasheet",
    [TD_TRUST_PROVISIONAL] = "provisional",
    [TD_TRUST_CALIBRATED] = "calibrated",
};

typedef struct {
    td_arena *arena;
    td_err *err;
} reader;

/* ---- values ---- */

/* What a number may be. The upper ends keep products of a few of them finite and counts exact. */
typedef enum { COUNT, SECONDS, SECONDS_OR_NULL, POSITIVE, NOT_NEGATIVE, SHARE, FACTOR, FLAG } kind;

static const struct {
    double least, most;
    bool whole, above; /* above: more than `least` */
    const char *expected;
} limits[] = {
    [COUNT] = {1, 0x1p53, .whole = true, .expected = "a whole number from 1 on"},
    [SECONDS] = {0, 1e15, .above = true, .expected = "a time above 0"},
    [SECONDS_OR_NULL] = {0, 1e15, .above = true, .expected = "a time above 0 or null"},
    [POSITIVE] = {0, 1e15, .above = true, .expected = "a number above 0"},
    [NOT_NEGATIVE] = {0, 1e15, .expected = "a number from 0 on"},
    [SHARE] = {0, 1, .above = true, .expected = "a share above 0, at most 1"},
    [FACTOR] = {1, 1e6, .expected = "a factor from 1 on"},
    [FLAG] = {0, 1, .whole = true, .expected = "true or false"},
};

static td_status fail(const reader *r, const td_yaml *at, const char *path, const char *expected)
{
    static const char *const what[] = {[TD_YAML_SCALAR] = NULL,
                                       [TD_YAML_SEQUENCE] = "a list",
                                       [TD_YAML_MAPPING] = "a mapping",
                                       [TD_YAML_ALIAS] = "an alias"};
    const char *fact =
        at->kind == TD_YAML_SCALAR
            ? td_arena_printf(r->arena, "`%s`", td_text_show(r->arena, at->text, strlen(at->text)))
            : what[at->kind];
    return td_fail(r->err, TD_FILE, "%s:%d:%d: %s: %s; expected %s", at->at.file, at->at.line,
                   at->at.column, path, fact == NULL ? "?" : fact, expected);
}

static td_status no_memory(const reader *r)
{
    return td_fail(r->err, TD_NOMEM, "no memory for the profile");
}

/* NAN for a null where that is allowed. */
static td_status read_number(const reader *r, const td_yaml *v, const char *path, kind k,
                             double *out)
{
    const bool plain = v->kind == TD_YAML_SCALAR && v->plain;
    if (k == FLAG && plain && (strcmp(v->text, "true") == 0 || strcmp(v->text, "false") == 0)) {
        *out = v->text[0] == 't';
        return TD_OK;
    }
    if (k == SECONDS_OR_NULL && plain && strcmp(v->text, "null") == 0) {
        *out = NAN;
        return TD_OK;
    }
    char *end = NULL;
    const bool digits =
        plain && v->text[0] != '\0' && strspn(v->text, "0123456789+-.eE") == strlen(v->text);
    const double x = digits ? strtod(v->text, &end) : 0;
    if (!digits || *end != '\0' || k == FLAG || !(x >= limits[k].least && x <= limits[k].most) ||
        (limits[k].above && x == limits[k].least) || (limits[k].whole && x != floor(x)))
        return fail(r, v, path, limits[k].expected);
    *out = x;
    return TD_OK;
}

static td_status read_text(const reader *r, const td_yaml *v, const char *path, const char **out)
{
    if (v->kind != TD_YAML_SCALAR || v->text[0] == '\0')
        return fail(r, v, path, "a text");
    *out = v->text;
    return TD_OK;
}

static td_status expect_text(const reader *r, const td_yaml *v, const char *path, const char *text)
{
    if (v->kind != TD_YAML_SCALAR || strcmp(v->text, text) != 0)
        return fail(r, v, path, text);
    return TD_OK;
}

/* ---- mappings ---- */

/* One known key of a mapping: the value found under it, NULL if it is not there. */
typedef struct {
    const char *key;
    bool required;
    const td_yaml *value;
} field;

static td_status unknown_key(const reader *r, const td_yaml *key, const char *path,
                             const field *fields, int32_t n)
{
    const char *known[MAX_FIELDS + 1] = {NULL};
    for (int32_t i = 0; i < n; i++)
        known[i] = fields[i].key;
    const char *near = td_text_nearest(key->text, known);
    const char *expected =
        near != NULL ? td_arena_printf(r->arena, "a known key; did you mean `%s`?", near)
                     : td_arena_printf(r->arena, "one of %s", td_text_list(r->arena, known));
    return fail(r, key, path, expected == NULL ? "a known key" : expected);
}

/* Finds the values of the `n` known keys; anything else in the mapping is an error. */
static td_status read_fields(const reader *r, const td_yaml *node, const char *path, field *fields,
                             int32_t n)
{
    if (node->kind != TD_YAML_MAPPING)
        return fail(r, node, path, "a mapping");
    for (const td_yaml *key = node->first; key != NULL; key = key->next->next) {
        int32_t i = 0;
        while (i < n && (key->kind != TD_YAML_SCALAR || strcmp(key->text, fields[i].key) != 0))
            i++;
        if (i == n)
            return unknown_key(r, key, path, fields, n);
        if (fields[i].value != NULL)
            return fail(r, key, path, "each key once");
        fields[i].value = td_yaml_value(key->next);
    }
    for (int32_t i = 0; i < n; i++) {
        if (fields[i].required && fields[i].value == NULL)
            return td_fail(r->err, TD_FILE, "%s:%d:%d: %s: no `%s`; it is required", node->at.file,
                           node->at.line, node->at.column, path, fields[i].key);
    }
    return TD_OK;
}

/* A mapping of numbers, each stored in what `out` points to, times `scale`; absent ones stay. */
typedef struct {
    const char *key;
    kind kind;
    double scale;
    double *out;
    bool optional;
} number;

static td_status read_numbers(const reader *r, const td_yaml *node, const char *path,
                              const number *numbers, int32_t n)
{
    td_status st = TD_OK;
    field fields[MAX_FIELDS] = {{0}};
    for (int32_t i = 0; i < n; i++)
        fields[i] = (field){.key = numbers[i].key, .required = !numbers[i].optional};
    TD_TRY(st, read_fields(r, node, path, fields, n));
    for (int32_t i = 0; i < n; i++) {
        double x;
        if (fields[i].value == NULL)
            continue;
        TD_TRY(st, read_number(r, fields[i].value, path, numbers[i].kind, &x));
        *numbers[i].out = x * numbers[i].scale;
    }
done:
    return st;
}

/* ---- tables ---- */

typedef struct {
    const char *name;
    kind kind;
} column;

typedef struct {
    int32_t n; /* rows */
    int32_t width;
    double *cells;
    const td_yaml **at; /* each row's place */
} table;

static td_status read_rows(const reader *r, const td_yaml *rows, const char *path,
                           const column *columns, int32_t width, table *out)
{
    td_status st = TD_OK;
    if (rows->kind != TD_YAML_SEQUENCE)
        TD_TRY(st, fail(r, rows, path, "a list of rows"));
    *out = (table){.width = width,
                   .cells = TD_NEW(r->arena, double, (int64_t)rows->n *width),
                   .at = TD_NEW(r->arena, const td_yaml *, rows->n)};
    if (out->cells == NULL || out->at == NULL)
        TD_TRY(st, no_memory(r));
    double *cell = out->cells;
    for (const td_yaml *item = rows->first; item != NULL; item = item->next) {
        const td_yaml *row = td_yaml_value(item);
        if (row->kind != TD_YAML_SEQUENCE || row->n != width)
            TD_TRY(st, td_fail(r->err, TD_FILE, "%s:%d:%d: %s: expected a row of %d values",
                               row->at.file, row->at.line, row->at.column, path, width));
        int32_t c = 0;
        for (const td_yaml *v = row->first; v != NULL; v = v->next, c++)
            TD_TRY(st, read_number(r, td_yaml_value(v), path, columns[c].kind, cell++));
        out->at[out->n++] = item;
    }
done:
    return st;
}

static td_status read_table(const reader *r, const td_yaml *node, const char *path,
                            const column *columns, int32_t width, table *out)
{
    td_status st = TD_OK;
    field f[] = {{.key = "columns", .required = true}, {.key = "rows", .required = true}};
    const char *names[MAX_COLUMNS + 1] = {NULL};
    for (int32_t i = 0; i < width; i++)
        names[i] = columns[i].name;
    const char *expected = td_text_list(r->arena, names);
    TD_TRY(st, read_fields(r, node, path, f, 2));
    if (f[0].value->kind != TD_YAML_SEQUENCE || f[0].value->n != width)
        TD_TRY(st, fail(r, f[0].value, path, expected));
    int32_t i = 0;
    for (const td_yaml *v = f[0].value->first; v != NULL; v = v->next, i++)
        TD_TRY(st, expect_text(r, td_yaml_value(v), path, names[i]));
    TD_TRY(st, read_rows(r, f[1].value, path, columns, width, out));
done:
    return st;
}

/* ---- curves ---- */

typedef struct {
    double x, y;
    const td_yaml *at;
} point;

static int by_x(const void *a, const void *b)
{
    const double x = ((const point *)a)->x, y = ((const point *)b)->x;
    return (x > y) - (x < y);
}

/*
 * The nearest non-decreasing sequence in least squares: neighbours that violate the order are
 * replaced by their mean (pool adjacent violators: Ayer et al., Annals of Mathematical Statistics
 * 26, 1955). A running maximum instead would keep every upward outlier.
 */
static void pool_violators(int32_t n, double *y, int32_t *pooled)
{
    int32_t n_blocks = 0; /* block i is y[i], the mean of pooled[i] points */
    for (int32_t i = 0; i < n; i++) {
        y[n_blocks] = y[i];
        pooled[n_blocks++] = 1;
        for (; n_blocks > 1 && y[n_blocks - 2] > y[n_blocks - 1]; n_blocks--) {
            const int32_t a = pooled[n_blocks - 2], b = pooled[n_blocks - 1];
            y[n_blocks - 2] = (y[n_blocks - 2] * a + y[n_blocks - 1] * b) / (a + b);
            pooled[n_blocks - 2] = a + b;
        }
    }
    for (int32_t block = n_blocks - 1, i = n - 1; block >= 0; block--) {
        const double mean = y[block];
        for (int32_t k = pooled[block]; k > 0; k--)
            y[i--] = mean;
    }
}

/* The curve of columns 0 and `which` of a table, without the rows that have nothing there. */
static td_status make_curve(const reader *r, const table *t, int32_t which, const char *path,
                            double scale, td_curve *out)
{
    td_status st = TD_OK;
    int32_t n = 0;
    point *points = TD_NEW(r->arena, point, t->n);
    double *x = TD_NEW(r->arena, double, t->n), *y = TD_NEW(r->arena, double, t->n);
    int32_t *pooled = TD_NEW(r->arena, int32_t, t->n);
    if (points == NULL || x == NULL || y == NULL || pooled == NULL)
        TD_TRY(st, no_memory(r));
    for (int32_t i = 0; i < t->n; i++) {
        const double *row = t->cells + (int64_t)i * t->width;
        if (!isnan(row[which]))
            points[n++] = (point){.x = row[0], .y = row[which] * scale, .at = t->at[i]};
    }
    qsort(points, (size_t)n, sizeof *points, by_x);
    for (int32_t i = 0; i < n; i++) {
        x[i] = points[i].x;
        y[i] = points[i].y;
        if (i > 0 && x[i] == x[i - 1])
            TD_TRY(st, fail(r, points[i].at, path, "each size once"));
    }
    pool_violators(n, y, pooled);
    *out = (td_curve){.n = n, .x = x, .y = y};
done:
    return st;
}

static td_status read_curve(const reader *r, const td_yaml *node, const char *path,
                            const column columns[2], double scale, td_curve *out)
{
    td_status st = TD_OK;
    table t;
    TD_TRY(st, read_table(r, node, path, columns, 2, &t));
    TD_TRY(st, make_curve(r, &t, 1, path, scale, out));
done:
    return st;
}

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
static td_status order_weights(const reader *r, td_gemm_row *rows, int32_t n)
{
    double *y = TD_NEW(r->arena, double, n);
    int32_t *pooled = TD_NEW(r->arena, int32_t, n);
    if (y == NULL || pooled == NULL)
        return no_memory(r);
    for (int32_t first = 0, end; first < n; first = end) {
        for (end = first; end < n && rows[end].n == rows[first].n && rows[end].k == rows[first].k;)
            end++;
        for (int32_t pass = 0; pass < 3; pass++) {
            int32_t n_y = 0, next = 0;
            for (int32_t i = first; i < end; i++) {
                if (rows[i].s[pass] >= 0)
                    y[n_y++] = rows[i].s[pass];
            }
            pool_violators(n_y, y, pooled);
            for (int32_t i = first; i < end; i++) {
                if (rows[i].s[pass] >= 0)
                    rows[i].s[pass] = y[next++];
            }
        }
    }
    return TD_OK;
}

static td_status read_gemm(const reader *r, const td_yaml *node, td_profile *p)
{
    static const column columns[] = {{"m", COUNT},
                                     {"n", COUNT},
                                     {"k", COUNT},
                                     {"fwd_us", SECONDS_OR_NULL},
                                     {"dgrad_us", SECONDS_OR_NULL},
                                     {"wgrad_us", SECONDS_OR_NULL}};
    td_status st = TD_OK;
    table t;
    TD_TRY(st, read_table(r, node, "gemm", columns, 6, &t));
    td_gemm_row *rows = TD_NEW(r->arena, td_gemm_row, t.n);
    if (rows == NULL)
        TD_TRY(st, no_memory(r));
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

static td_status read_attention(const reader *r, const td_yaml *node, td_profile *p)
{
    static const column columns[] = {{"batch", COUNT},    {"seq", COUNT},   {"heads", COUNT},
                                     {"head_dim", COUNT}, {"causal", FLAG}, {"fwd_us", SECONDS},
                                     {"bwd_us", SECONDS}};
    td_status st = TD_OK;
    table t;
    TD_TRY(st, read_table(r, node, "attention", columns, 7, &t));
    td_attention_row *rows = TD_NEW(r->arena, td_attention_row, t.n);
    if (rows == NULL)
        TD_TRY(st, no_memory(r));
    for (int32_t i = 0; i < t.n; i++) {
        const double *c = t.cells + (int64_t)i * 7;
        for (int32_t k = 0; k < 4; k++) {
            if (c[k] > INT32_MAX)
                TD_TRY(st, fail(r, t.at[i], "attention", "sizes below 2^31"));
        }
        rows[i] = (td_attention_row){.batch = (int32_t)c[0],
                                     .seq = (int32_t)c[1],
                                     .heads = (int32_t)c[2],
                                     .head_dim = (int32_t)c[3],
                                     .causal = c[4] != 0,
                                     .forward_s = c[5] * 1e-6,
                                     .backward_s = c[6] * 1e-6};
    }
    qsort(rows, (size_t)t.n, sizeof *rows, by_attention);
    p->n_attention = t.n;
    p->attention = rows;
done:
    return st;
}

static td_status read_memory(const reader *r, const td_yaml *node, td_profile *p)
{
    static const column columns[] = {{"bytes", COUNT}, {"us", SECONDS}};
    td_status st = TD_OK;
    field f[TD_N_PARTS + 1] = {{.key = "copy"}};
    td_curve *curves[TD_N_PARTS + 1] = {&p->copy};
    int32_t n = 1;
    for (int32_t class = 0; class < TD_N_PARTS; class ++) {
        if (td_part_table[class].key == TD_KEY_BYTES) {
            f[n].key = td_part_table[class].name;
            curves[n++] = &p->memory[class];
        }
    }
    TD_TRY(st, read_fields(r, node, "memory", f, n));
    for (int32_t i = 0; i < n; i++) {
        if (f[i].value != NULL)
            TD_TRY(st, read_curve(r, f[i].value, "memory", columns, 1e-6, curves[i]));
    }
done:
    return st;
}

/* Ascending numbers of ranks, each at least 2, as the columns of the rows. */
static td_status read_ranks(const reader *r, const td_yaml *node, const char *path,
                            td_coll_curve *curves)
{
    td_status st = TD_OK;
    int32_t before = 1;
    for (const td_yaml *v = node->first; v != NULL; v = v->next, curves++) {
        double x;
        TD_TRY(st, read_number(r, td_yaml_value(v), path, COUNT, &x));
        if (x <= before || x > INT32_MAX)
            TD_TRY(st, fail(r, td_yaml_value(v), path, "numbers of ranks from 2 on, ascending"));
        before = curves->ranks = (int32_t)x;
    }
done:
    return st;
}

static td_status read_collective(const reader *r, const td_yaml *node, td_coll coll, td_profile *p)
{
    td_status st = TD_OK;
    const char *path = td_collectives[coll]->name;
    field f[] = {{.key = "ranks", .required = true}, {.key = "rows", .required = true}};
    column columns[MAX_COLUMNS] = {{"bytes", COUNT}};
    table t;
    TD_TRY(st, read_fields(r, node, path, f, 2));
    const int32_t n = f[0].value->n;
    if (f[0].value->kind != TD_YAML_SEQUENCE || n < 1 || n >= MAX_COLUMNS)
        TD_TRY(st, fail(r, f[0].value, path, "a list of 1 to 32 numbers of ranks"));
    td_coll_curve *curves = TD_NEW(r->arena, td_coll_curve, n);
    if (curves == NULL)
        TD_TRY(st, no_memory(r));
    TD_TRY(st, read_ranks(r, f[0].value, path, curves));
    for (int32_t i = 0; i < n; i++)
        columns[1 + i] = (column){"us", SECONDS_OR_NULL};
    TD_TRY(st, read_rows(r, f[1].value, path, columns, n + 1, &t));
    for (int32_t i = 0; i < n; i++) {
        TD_TRY(st, make_curve(r, &t, 1 + i, path, 1e-6, &curves[i].time));
        if (curves[i].time.n == 0)
            TD_TRY(st, fail(r, f[1].value, path, "at least one time for each number of ranks"));
    }
    p->n_collectives[coll] = n;
    p->collectives[coll] = curves;
done:
    return st;
}

static td_status read_overlap(const reader *r, const td_yaml *node, td_coll coll, td_profile *p)
{
    td_overlap *o = &p->overlap[coll];
    const number numbers[] = {{"wait_us", NOT_NEGATIVE, 1e-6, &o->wait_s, false},
                              {"transfer", FACTOR, 1, &o->transfer, false},
                              {"compute", FACTOR, 1, &o->compute, false}};
    return read_numbers(r, node, "overlap", numbers, 3);
}

/* A mapping with the names of collectives for keys. */
static td_status read_by_collective(const reader *r, const td_yaml *node, const char *path,
                                    td_status (*read)(const reader *, const td_yaml *, td_coll,
                                                      td_profile *),
                                    td_profile *p)
{
    td_status st = TD_OK;
    field f[TD_N_COLLS] = {{0}};
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        f[i].key = td_collectives[i]->name;
    TD_TRY(st, read_fields(r, node, path, f, TD_N_COLLS));
    for (int32_t i = 0; i < TD_N_COLLS; i++) {
        if (f[i].value != NULL)
            TD_TRY(st, read(r, f[i].value, (td_coll)i, p));
    }
done:
    return st;
}

static td_status read_peak(const reader *r, const td_yaml *node, td_profile *p)
{
    const number numbers[] = {{"bf16_tflop_s", POSITIVE, 1e12, &p->bf16_flops_per_s, false},
                              {"fp32_tflop_s", POSITIVE, 1e12, &p->fp32_flops_per_s, false},
                              {"memory_gb_s", POSITIVE, 1e9, &p->memory_bytes_per_s, false},
                              {"memory_gb", POSITIVE, 1e9, &p->memory_bytes, false},
                              {"link_gb_s", POSITIVE, 1e9, &p->link_bytes_per_s, true}};
    return read_numbers(r, node, "peak", numbers, 5);
}

/* A number for each kind of work and, where there is a `memory` to read, for passes over it. */
static td_status read_by_work(const reader *r, const td_yaml *node, const char *path, kind k,
                              double scale, td_by_work *out, double *memory)
{
    enum { N_KERNELS = 5 };
    number numbers[N_KERNELS + TD_N_COLLS + 1] = {
        {"gemm_fwd", k, scale, &out->gemm[TD_PASS_FORWARD], false},
        {"gemm_dgrad", k, scale, &out->gemm[TD_PASS_DGRAD], false},
        {"gemm_wgrad", k, scale, &out->gemm[TD_PASS_WGRAD], false},
        {"attention_fwd", k, scale, &out->attention[0], false},
        {"attention_bwd", k, scale, &out->attention[1], false}};
    int32_t n = N_KERNELS;
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        numbers[n++] = (number){td_collectives[i]->name, k, scale, &out->collective[i], false};
    if (memory != NULL)
        numbers[n++] = (number){"memory", k, scale, memory, false};
    return read_numbers(r, node, path, numbers, n);
}

static td_status read_trust(const reader *r, const td_yaml *v, td_profile *p)
{
    for (int32_t i = 0; i < TD_N_TRUSTS; i++) {
        if (v->kind == TD_YAML_SCALAR && strcmp(v->text, td_trust_names[i]) == 0) {
            p->trust = (td_trust)i;
            return TD_OK;
        }
    }
    return fail(r, v, "trust", "datasheet, provisional or calibrated");
}

static td_status read_profile(const reader *r, const td_yaml *root, td_profile *p)
{
    enum { FMT, V, NAME, GPU, TRUST, FROM, PEAK, GAP, EFF, LAT, GEMM, ATT, MEM, COLL, OVER, DUTY };
    static const column duty[] = {{"busy", SHARE}, {"factor", FACTOR}};
    field f[] = {[FMT] = {.key = "format", .required = true},
                 [V] = {.key = "version", .required = true},
                 [NAME] = {.key = "name", .required = true},
                 [GPU] = {.key = "gpu", .required = true},
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
                 [OVER] = {.key = "overlap"},
                 [DUTY] = {.key = "duty"}};
    td_status st = TD_OK;
    TD_TRY(st, read_fields(r, root, "profile", f, sizeof f / sizeof *f));
    TD_TRY(st, expect_text(r, f[FMT].value, "format", "tandem-profile"));
    TD_TRY(st, expect_text(r, f[V].value, "version", "1"));
    TD_TRY(st, read_text(r, f[NAME].value, "name", &p->name));
    TD_TRY(st, read_text(r, f[GPU].value, "gpu", &p->gpu));
    TD_TRY(st, read_trust(r, f[TRUST].value, p));
    TD_TRY(st, read_text(r, f[FROM].value, "source", &p->source));
    TD_TRY(st, read_peak(r, f[PEAK].value, p));
    TD_TRY(st, read_number(r, f[GAP].value, "kernel_gap_us", NOT_NEGATIVE, &p->kernel_gap_s));
    p->kernel_gap_s *= 1e-6;
    TD_TRY(st, read_by_work(r, f[EFF].value, "efficiency", SHARE, 1, &p->efficiency,
                            &p->memory_efficiency));
    TD_TRY(st,
           read_by_work(r, f[LAT].value, "latency_us", NOT_NEGATIVE, 1e-6, &p->latency_s, NULL));
    if (f[GEMM].value != NULL)
        TD_TRY(st, read_gemm(r, f[GEMM].value, p));
    if (f[ATT].value != NULL)
        TD_TRY(st, read_attention(r, f[ATT].value, p));
    if (f[MEM].value != NULL)
        TD_TRY(st, read_memory(r, f[MEM].value, p));
    if (f[COLL].value != NULL)
        TD_TRY(st, read_by_collective(r, f[COLL].value, "collectives", read_collective, p));
    if (f[OVER].value != NULL)
        TD_TRY(st, read_by_collective(r, f[OVER].value, "overlap", read_overlap, p));
    if (f[DUTY].value != NULL)
        TD_TRY(st, read_curve(r, f[DUTY].value, "duty", duty, 1, &p->duty));
done:
    return st;
}

td_status td_profile_load(td_arena *a, const char *path, const td_profile **out, td_err *err)
{
    td_status st = TD_OK;
    const td_yaml *root = NULL;
    td_diags diags = {.arena = a};
    const reader r = {.arena = a, .err = err};
    const char *file = td_arena_printf(a, "%s", path);
    td_profile *p = TD_NEW(a, td_profile, 1);
    if (p == NULL || file == NULL)
        TD_TRY(st, no_memory(&r));
    p->file = file;
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        p->overlap[i] = (td_overlap){.transfer = 1, .compute = 1};
    st = td_yaml_load(a, file, &diags, &root);
    if (st == TD_FILE && diags.head != NULL)
        TD_TRY(st, td_fail(err, st, "%s", td_diag_text(&diags, diags.head)));
    if (st != TD_OK)
        TD_TRY(st, no_memory(&r));
    TD_TRY(st, read_profile(&r, td_yaml_value(root), p));
    *out = p;
done:
    return st;
}
