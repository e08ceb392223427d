/*
 * Typed reading of mappings from a table of their keys: one row per key says its type, its limits
 * and where the value goes. Whatever does not fit becomes an error with place, fact and
 * expectation, and its target keeps what it held.
 */
#ifndef TANDEM_MODEL_FIELDS_H
#define TANDEM_MODEL_FIELDS_H

#include "model/yaml.h"

#include <stddef.h>

typedef struct {
    td_arena *arena;
    td_diags *diags;
    bool failed; /* no memory; sticky, checked once at the end */
} td_reader;

typedef struct {
    const td_yaml *key, *value; /* aliases followed */
} td_entry;

/*
 * A mapping with its merge keys (`<<`) applied: its own keys in the order of the file, then the
 * merged ones.
 */
typedef struct {
    td_pos at;
    const char *path; /* dotted key path; "" for the whole file */
    int32_t n;
    const td_entry *entries;
} td_map;

typedef enum {
    TD_FIELD_INT,  /* int32_t, uint32_t or int64_t, by size */
    TD_FIELD_REAL, /* double */
    TD_FIELD_BOOL, /* bool */
    TD_FIELD_WORD, /* int32_t or enum: index into `words` */
    TD_FIELD_TEXT, /* const char *, not empty */
    TD_FIELD_NODE  /* const td_yaml *: read by its owner */
} td_field_kind;

typedef struct {
    const char *key; /* NULL ends a table */
    td_field_kind kind;
    size_t offset, size;      /* of the target */
    int64_t min, max;         /* INT, inclusive */
    double low, high;         /* REAL, inclusive */
    const char *expected;     /* the end of `expected ...`; INT and WORD speak for themselves */
    const char *const *words; /* ends with NULL */
    bool required;
} td_field;

/* Rows of a table, for the members of a struct type. */
#define TD_FIELD_TARGET(type, member)                                                              \
    .offset = offsetof(type, member), .size = sizeof(((type *)0)->member)
#define TD_INT(type, name, member, lowest, highest)                                                \
    {                                                                                              \
        .key = name, .kind = TD_FIELD_INT, TD_FIELD_TARGET(type, member), .min = lowest,           \
        .max = highest                                                                             \
    }
#define TD_INT_REQUIRED(type, name, member, lowest, highest)                                       \
    {                                                                                              \
        .key = name, .kind = TD_FIELD_INT, TD_FIELD_TARGET(type, member), .min = lowest,           \
        .max = highest, .required = true                                                           \
    }
#define TD_REAL(type, name, member, lowest, highest, expectation)                                  \
    {                                                                                              \
        .key = name, .kind = TD_FIELD_REAL, TD_FIELD_TARGET(type, member), .low = lowest,          \
        .high = highest, .expected = expectation                                                   \
    }
#define TD_BOOL(type, name, member)                                                                \
    {                                                                                              \
        .key = name, .kind = TD_FIELD_BOOL, TD_FIELD_TARGET(type, member),                         \
        .expected = "true or false"                                                                \
    }
#define TD_WORD(type, name, member, list)                                                          \
    {                                                                                              \
        .key = name, .kind = TD_FIELD_WORD, TD_FIELD_TARGET(type, member), .words = list           \
    }
#define TD_TEXT(type, name, member, expectation)                                                   \
    {                                                                                              \
        .key = name, .kind = TD_FIELD_TEXT, TD_FIELD_TARGET(type, member), .expected = expectation \
    }
#define TD_NODE(type, name, member, must, expectation)                                             \
    {                                                                                              \
        .key = name, .kind = TD_FIELD_NODE, TD_FIELD_TARGET(type, member),                         \
        .expected = expectation, .required = must                                                  \
    }

/*
 * Opens a mapping: rules `wrong_type` if it is none, `duplicate_key`, `wrong_type` for keys that
 * are no text. False if there is nothing to read from; `out` is then an empty mapping at the node's
 * place.
 */
bool td_map_open(td_reader *r, const td_yaml *node, const char *path, const char *expected,
                 td_map *out);

/*
 * Reads every key of `map` as its row of `fields` says; rules `unknown_key`, `missing_key`,
 * `wrong_type`, `out_of_range`, `unknown_value`. `target` is the struct that the offsets are of.
 */
void td_map_read(td_reader *r, const td_map *map, const td_field *fields, void *target);

/* The value of a key, NULL if it was not written; its place, or that of the mapping. */
const td_yaml *td_map_get(const td_map *map, const char *key);
td_pos td_map_at(const td_map *map, const char *key);

/* `path.key`, or `key` alone for an empty path; `path[i]`. */
const char *td_path_key(td_reader *r, const char *path, const char *key);
const char *td_path_item(td_reader *r, const char *path, int32_t i);

/* One value as a row says, for items of a sequence; false if it does not fit (there is an error
 * then). */
bool td_value_read(td_reader *r, const td_yaml *node, const char *path, const td_field *field,
                   void *target);

/* Any whole number, whatever its limits, without a word about what is wrong; false if it is none.
 * Saturates. */
bool td_value_int(const td_yaml *node, int64_t *out);

/* Text that is not a number, boolean or nothing; NULL otherwise. */
const char *td_value_text(const td_yaml *node);

/* What stands there, for messages: `is 8.0`, `is the text "8"`, `is empty`, `is a mapping`. */
const char *td_value_describe(td_reader *r, const td_yaml *node);

/* `n` zeroed objects; NULL sets r->failed. */
void *td_reader_alloc(td_reader *r, int64_t n, size_t size);

#endif
