/*
 * The inside of model/profile*.c: reading numbers, mappings, tables and curves out of a profile,
 * with the place in every message.
 */
#ifndef TANDEM_MODEL_PROFILE_VALUES_H
#define TANDEM_MODEL_PROFILE_VALUES_H

#include "model/profile.h"
#include "model/yaml.h"

enum { TD_PV_FIELDS = 24, TD_PV_COLUMNS = 33 };

typedef struct {
    td_arena *arena;
    td_err *err;
} td_pv_reader;

/* What a number may be. The upper ends keep products of a few of them finite and counts exact. */
typedef enum {
    TD_PV_COUNT,
    TD_PV_SECONDS,
    TD_PV_SECONDS_OR_NULL,
    TD_PV_POSITIVE,
    TD_PV_NOT_NEGATIVE,
    TD_PV_SHARE,
    TD_PV_FACTOR,
    TD_PV_FLAG,
    TD_PV_ANY,
    TD_PV_TALLY
} td_pv_kind;

/* One known key of a mapping: the value found under it, NULL if it is not there. */
typedef struct {
    const char *key;
    bool required;
    const td_yaml *value;
} td_pv_field;

/* A mapping of numbers, each stored in what `out` points to, times `scale`; absent ones stay. */
typedef struct {
    const char *key;
    td_pv_kind kind;
    double scale;
    double *out;
    bool optional;
} td_pv_named;

/* One column of a table. */
typedef struct {
    const char *name;
    td_pv_kind kind;
} td_pv_column;

typedef struct {
    int32_t n; /* rows */
    int32_t width;
    double *cells;
    const td_yaml **at; /* each row's place */
} td_pv_table;

/* Fails with TD_FILE: place, what stands there, `expected`. */
td_status td_pv_fail(const td_pv_reader *r, const td_yaml *at, const char *path,
                     const char *expected);
td_status td_pv_no_memory(const td_pv_reader *r);
/* NAN for a null where that is allowed. */
td_status td_pv_number(const td_pv_reader *r, const td_yaml *v, const char *path, td_pv_kind k,
                       double *out);
td_status td_pv_text(const td_pv_reader *r, const td_yaml *v, const char *path, const char **out);
td_status td_pv_expect(const td_pv_reader *r, const td_yaml *v, const char *path, const char *text);
/* Finds the values of the `n` known keys; anything else in the mapping is an error. */
td_status td_pv_fields(const td_pv_reader *r, const td_yaml *node, const char *path,
                       td_pv_field *fields, int32_t n);
/* The same for numbers, which are stored; absent ones stay as they are. */
td_status td_pv_numbers(const td_pv_reader *r, const td_yaml *node, const char *path,
                        const td_pv_named *numbers, int32_t n);
td_status td_pv_rows(const td_pv_reader *r, const td_yaml *rows, const char *path,
                     const td_pv_column *columns, int32_t width, td_pv_table *out);
/* `columns` names are checked, not chosen. */
td_status td_pv_read_table(const td_pv_reader *r, const td_yaml *node, const char *path,
                           const td_pv_column *columns, int32_t width, td_pv_table *out);
td_status td_pv_read_curve(const td_pv_reader *r, const td_yaml *node, const char *path,
                           const td_pv_column columns[2], double scale, td_curve *out);
/* The curve of columns 0 and `which` of a table, without the rows that have nothing there; made
 * monotone. */
td_status td_pv_make_curve(const td_pv_reader *r, const td_pv_table *t, int32_t which,
                           const char *path, double scale, td_curve *out);
/* The nearest non-decreasing sequence in least squares; `pooled` has room for n. */
void td_pv_pool(int32_t n, double *y, int32_t *pooled);

#endif
