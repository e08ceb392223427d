/*
 * The oracle replays vectors observed by running the reference: a suite turns each case's input
 * into the output that the library gives, and everything that the case holds besides its input is
 * compared with it. A suite is one file ending in one const descriptor, plus one line in the table
 * of oracle_main.c.
 */
#ifndef TANDEM_TESTS_ORACLE_ORACLE_H
#define TANDEM_TESTS_ORACLE_ORACLE_H

#include "model/grid.h"

#include <jansson.h>

/* The case at hand, and the suite's answer: one of the last three. */
typedef struct {
    const json_t *json;
    td_arena *arena;    /* lives as long as the case */
    json_t *got;        /* an object, empty at first: the output, under the keys of the case */
    const char *skip;   /* static text: why the case is not run */
    const char *broken; /* static text: why it cannot be read, which counts as a mismatch */
} oracle_case;

/*
 * How far numbers under a key, at any depth below it, may be from the expected ones: within either
 * bound. Keys without a line inherit from the nearest one above; where there is none values are
 * equal.
 */
typedef struct {
    const char *key;
    double relative, absolute;
} oracle_tolerance;

typedef struct {
    const char *name;          /* NAME.json, and its `schema` */
    const char *const *inputs; /* keys of a case that are not compared; ends with NULL */
    td_status (*run)(oracle_case *c, td_err *err); /* a failure ends the whole run */
    const oracle_tolerance *tolerances;            /* ends with key NULL; NULL: none */
} oracle_suite;

extern const oracle_suite oracle_grids, oracle_validation, oracle_schedule, oracle_bridge,
    oracle_optimizer, oracle_gradscale;

/* ---- reading ---- */

/* An integer, or `otherwise` where there is none or null. */
int64_t oracle_int(const json_t *object, const char *key, int64_t otherwise);

/* Text, "" where there is none. */
const char *oracle_text(const json_t *object, const char *key);

/* A number, or the text `inf`, `-inf` or `nan`; false for anything else. */
bool oracle_number(const json_t *value, double *out);

/*
 * The grid of a module {tp, cp, pp, dp, rank_offset} in a named layout: `pp_outer`, `dp_outer` or
 * `ep_middle`. False, with c->broken set, for anything else.
 */
bool oracle_grid(oracle_case *c, const char *layout, const json_t *module, td_grid *out);

/* ---- writing; NULL is never returned: a test program without memory ends ---- */

json_t *oracle_real(double value); /* as oracle_number() reads it */
json_t *oracle_ranks(const int32_t *ranks, int64_t n);
json_t *oracle_lists(const td_rank_lists *lists);

/* json_object_set_new() that ends the program if it fails. */
void oracle_set(json_t *object, const char *key, json_t *value);
void oracle_append(json_t *array, json_t *value);

#endif
