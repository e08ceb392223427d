/* Numbers, mappings, tables and curves of a profile. */
#include "model/profile_values.h"

#include "model/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

static const struct {
    double least, most;
    bool whole, above; /* above: more than `least` */
    const char *expected;
} limits[] = {
    [TD_PV_COUNT] = {1, 0x1p53, .whole = true, .expected = "a whole number from 1 on"},
    [TD_PV_SECONDS] = {0, 1e15, .above = true, .expected = "a time above 0"},
    [TD_PV_SECONDS_OR_NULL] = {0, 1e15, .above = true, .expected = "a time above 0 or null"},
    [TD_PV_POSITIVE] = {0, 1e15, .above = true, .expected = "a number above 0"},
    [TD_PV_NOT_NEGATIVE] = {0, 1e15, .expected = "a number from 0 on"},
    [TD_PV_SHARE] = {0, 1, .above = true, .expected = "a share above 0, at most 1"},
    [TD_PV_FACTOR] = {1, 1e6, .expected = "a factor from 1 on"},
    [TD_PV_FLAG] = {0, 1, .whole = true, .expected = "true or false"},
    [TD_PV_ANY] = {-1e15, 1e15, .expected = "a number"},
    [TD_PV_TALLY] = {0, INT32_MAX, .whole = true, .expected = "a whole number from 0 on"},
};

td_status td_pv_fail(const td_pv_reader *r, const td_yaml *at, const char *path,
                     const char *expected)
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

td_status td_pv_no_memory(const td_pv_reader *r)
{
    return td_fail(r->err, TD_NOMEM, "no memory for the profile");
}

/* NAN for a null where that is allowed. */
td_status td_pv_number(const td_pv_reader *r, const td_yaml *v, const char *path, td_pv_kind k,
                       double *out)
{
    const bool plain = v->kind == TD_YAML_SCALAR && v->plain;
    if (k == TD_PV_FLAG && plain &&
        (strcmp(v->text, "true") == 0 || strcmp(v->text, "false") == 0)) {
        *out = v->text[0] == 't';
        return TD_OK;
    }
    if (k == TD_PV_SECONDS_OR_NULL && plain && strcmp(v->text, "null") == 0) {
        *out = NAN;
        return TD_OK;
    }
    char *end = NULL;
    const bool digits =
        plain && v->text[0] != '\0' && strspn(v->text, "0123456789+-.eE") == strlen(v->text);
    const double x = digits ? strtod(v->text, &end) : 0;
    if (!digits || *end != '\0' || k == TD_PV_FLAG ||
        !(x >= limits[k].least && x <= limits[k].most) ||
        (limits[k].above && x == limits[k].least) || (limits[k].whole && x != floor(x)))
        return td_pv_fail(r, v, path, limits[k].expected);
    *out = x;
    return TD_OK;
}

td_status td_pv_text(const td_pv_reader *r, const td_yaml *v, const char *path, const char **out)
{
    if (v->kind != TD_YAML_SCALAR || v->text[0] == '\0')
        return td_pv_fail(r, v, path, "a text");
    *out = v->text;
    return TD_OK;
}

td_status td_pv_expect(const td_pv_reader *r, const td_yaml *v, const char *path, const char *text)
{
    if (v->kind != TD_YAML_SCALAR || strcmp(v->text, text) != 0)
        return td_pv_fail(r, v, path, text);
    return TD_OK;
}

/* ---- mappings ---- */

static td_status unknown_key(const td_pv_reader *r, const td_yaml *key, const char *path,
                             const td_pv_field *fields, int32_t n)
{
    const char *known[TD_PV_FIELDS + 1] = {NULL};
    for (int32_t i = 0; i < n; i++)
        known[i] = fields[i].key;
    const char *near = td_text_nearest(key->text, known);
    const char *expected =
        near != NULL ? td_arena_printf(r->arena, "a known key; did you mean `%s`?", near)
                     : td_arena_printf(r->arena, "one of %s", td_text_list(r->arena, known));
    return td_pv_fail(r, key, path, expected == NULL ? "a known key" : expected);
}

/* Finds the values of the `n` known keys; anything else in the mapping is an error. */
td_status td_pv_fields(const td_pv_reader *r, const td_yaml *node, const char *path,
                       td_pv_field *fields, int32_t n)
{
    if (node->kind != TD_YAML_MAPPING)
        return td_pv_fail(r, node, path, "a mapping");
    for (const td_yaml *key = node->first; key != NULL; key = key->next->next) {
        int32_t i = 0;
        while (i < n && (key->kind != TD_YAML_SCALAR || strcmp(key->text, fields[i].key) != 0))
            i++;
        if (i == n)
            return unknown_key(r, key, path, fields, n);
        if (fields[i].value != NULL)
            return td_pv_fail(r, key, path, "each key once");
        fields[i].value = td_yaml_value(key->next);
    }
    for (int32_t i = 0; i < n; i++) {
        if (fields[i].required && fields[i].value == NULL)
            return td_fail(r->err, TD_FILE, "%s:%d:%d: %s: no `%s`; it is required", node->at.file,
                           node->at.line, node->at.column, path, fields[i].key);
    }
    return TD_OK;
}

td_status td_pv_numbers(const td_pv_reader *r, const td_yaml *node, const char *path,
                        const td_pv_named *numbers, int32_t n)
{
    td_status st = TD_OK;
    td_pv_field fields[TD_PV_FIELDS] = {{0}};
    for (int32_t i = 0; i < n; i++)
        fields[i] = (td_pv_field){.key = numbers[i].key, .required = !numbers[i].optional};
    TD_TRY(st, td_pv_fields(r, node, path, fields, n));
    for (int32_t i = 0; i < n; i++) {
        double x;
        if (fields[i].value == NULL)
            continue;
        TD_TRY(st, td_pv_number(r, fields[i].value, path, numbers[i].kind, &x));
        *numbers[i].out = x * numbers[i].scale;
    }
done:
    return st;
}

/* ---- tables ---- */

td_status td_pv_rows(const td_pv_reader *r, const td_yaml *rows, const char *path,
                     const td_pv_column *columns, int32_t width, td_pv_table *out)
{
    td_status st = TD_OK;
    if (rows->kind != TD_YAML_SEQUENCE)
        TD_TRY(st, td_pv_fail(r, rows, path, "a list of rows"));
    *out = (td_pv_table){.width = width,
                         .cells = TD_NEW(r->arena, double, (int64_t)rows->n *width),
                         .at = TD_NEW(r->arena, const td_yaml *, rows->n)};
    if (out->cells == NULL || out->at == NULL)
        TD_TRY(st, td_pv_no_memory(r));
    double *cell = out->cells;
    for (const td_yaml *item = rows->first; item != NULL; item = item->next) {
        const td_yaml *row = td_yaml_value(item);
        if (row->kind != TD_YAML_SEQUENCE || row->n != width)
            TD_TRY(st, td_fail(r->err, TD_FILE, "%s:%d:%d: %s: expected a row of %d values",
                               row->at.file, row->at.line, row->at.column, path, width));
        int32_t c = 0;
        for (const td_yaml *v = row->first; v != NULL; v = v->next, c++)
            TD_TRY(st, td_pv_number(r, td_yaml_value(v), path, columns[c].kind, cell++));
        out->at[out->n++] = item;
    }
done:
    return st;
}

td_status td_pv_read_table(const td_pv_reader *r, const td_yaml *node, const char *path,
                           const td_pv_column *columns, int32_t width, td_pv_table *out)
{
    td_status st = TD_OK;
    td_pv_field f[] = {{.key = "columns", .required = true}, {.key = "rows", .required = true}};
    const char *names[TD_PV_COLUMNS + 1] = {NULL};
    for (int32_t i = 0; i < width; i++)
        names[i] = columns[i].name;
    const char *expected = td_text_list(r->arena, names);
    TD_TRY(st, td_pv_fields(r, node, path, f, 2));
    if (f[0].value->kind != TD_YAML_SEQUENCE || f[0].value->n != width)
        TD_TRY(st, td_pv_fail(r, f[0].value, path, expected));
    int32_t i = 0;
    for (const td_yaml *v = f[0].value->first; v != NULL; v = v->next, i++)
        TD_TRY(st, td_pv_expect(r, td_yaml_value(v), path, names[i]));
    TD_TRY(st, td_pv_rows(r, f[1].value, path, columns, width, out));
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
void td_pv_pool(int32_t n, double *y, int32_t *pooled)
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
td_status td_pv_make_curve(const td_pv_reader *r, const td_pv_table *t, int32_t which,
                           const char *path, double scale, td_curve *out)
{
    td_status st = TD_OK;
    int32_t n = 0;
    point *points = TD_NEW(r->arena, point, t->n);
    double *x = TD_NEW(r->arena, double, t->n), *y = TD_NEW(r->arena, double, t->n);
    int32_t *pooled = TD_NEW(r->arena, int32_t, t->n);
    if (points == NULL || x == NULL || y == NULL || pooled == NULL)
        TD_TRY(st, td_pv_no_memory(r));
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
            TD_TRY(st, td_pv_fail(r, points[i].at, path, "each size once"));
    }
    td_pv_pool(n, y, pooled);
    *out = (td_curve){.n = n, .x = x, .y = y};
done:
    return st;
}

td_status td_pv_read_curve(const td_pv_reader *r, const td_yaml *node, const char *path,
                           const td_pv_column columns[2], double scale, td_curve *out)
{
    td_status st = TD_OK;
    td_pv_table t;
    TD_TRY(st, td_pv_read_table(r, node, path, columns, 2, &t));
    TD_TRY(st, td_pv_make_curve(r, &t, 1, path, scale, out));
done:
    return st;
}
