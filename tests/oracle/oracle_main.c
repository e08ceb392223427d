/* Replays one file of vectors and says how many cases the library answers as the reference did. */
#include "tests/oracle/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const oracle_suite *const suites[] = {&oracle_grids,  &oracle_validation, &oracle_schedule,
                                             &oracle_bridge, &oracle_optimizer,  &oracle_gradscale};

enum { N_SUITES = sizeof suites / sizeof *suites, MAX_PRINTED = 20, MAX_REASONS = 8 };

/* ---- for the suites ---- */

int64_t oracle_int(const json_t *object, const char *key, int64_t otherwise)
{
    const json_t *value = json_object_get(object, key);
    return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

const char *oracle_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

/* Numbers that JSON has no way to write. */
static const struct {
    const char *text;
    double value;
} nonfinite[] = {{"inf", INFINITY}, {"-inf", -INFINITY}, {"nan", NAN}};

bool oracle_number(const json_t *value, double *out)
{
    const char *text = json_string_value(value);
    *out = json_number_value(value);
    for (size_t i = 0; text != NULL && i < sizeof nonfinite / sizeof *nonfinite; i++)
        if (strcmp(text, nonfinite[i].text) == 0) {
            *out = nonfinite[i].value;
            return true;
        }
    return json_is_number(value);
}

bool oracle_grid(oracle_case *c, const char *layout, const json_t *module, td_grid *out)
{
    static const struct {
        const char *name;
        int32_t n_axes;
        td_axis axis[TD_MAX_GRID_AXES];
    } layouts[] = {{"pp_outer", 4, {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_DP, TD_AXIS_PP}},
                   {"dp_outer", 4, {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_PP, TD_AXIS_DP}},
                   {"ep_middle", 5, {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_EP, TD_AXIS_PP, TD_AXIS_DP}}};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        if (strcmp(layouts[i].name, layout) != 0)
            continue;
        td_grid g = {.first = (int32_t)oracle_int(module, "rank_offset", 0),
                     .n_axes = layouts[i].n_axes};
        for (int32_t d = 0; d < g.n_axes; d++) {
            g.axis[d] = layouts[i].axis[d];
            g.extent[d] = (int32_t)oracle_int(module, td_axis_names[g.axis[d]], 1);
        }
        *out = g;
        return true;
    }
    c->broken = "a layout that is none of pp_outer, dp_outer and ep_middle";
    return false;
}

static _Noreturn void no_memory(void)
{
    fprintf(stderr, "oracle: no memory\n");
    exit(5);
}

void oracle_set(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0)
        no_memory();
}

void oracle_append(json_t *array, json_t *value)
{
    if (json_array_append_new(array, value) != 0)
        no_memory();
}

json_t *oracle_real(double value)
{
    for (size_t i = 0; !isfinite(value) && i < sizeof nonfinite / sizeof *nonfinite; i++)
        if (value == nonfinite[i].value || isnan(nonfinite[i].value))
            return json_string(nonfinite[i].text);
    return json_real(value);
}

json_t *oracle_ranks(const int32_t *ranks, int64_t n)
{
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++)
        oracle_append(array, json_integer(ranks[i]));
    return array;
}

json_t *oracle_lists(const td_rank_lists *lists)
{
    json_t *array = json_array();
    for (int64_t i = 0; i < lists->n_lists; i++)
        oracle_append(array, oracle_ranks(lists->ranks + i * lists->n_ranks, lists->n_ranks));
    return array;
}

/* ---- comparison ---- */

typedef struct {
    const char *id;
    const oracle_tolerance *tolerances;
    int64_t *n_printed;
    int64_t n_found; /* differences of this case */
} report;

static void print_value(const json_t *value)
{
    char *text = value != NULL ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    printf("%.300s%s", text != NULL ? text : "nothing",
           text != NULL && strlen(text) > 300 ? "..." : "");
    free(text);
}

static void differ(report *r, const char *path, const json_t *expected, const json_t *got)
{
    r->n_found++;
    if (++*r->n_printed > MAX_PRINTED)
        return;
    printf("%s: %s: expected ", r->id, path);
    print_value(expected);
    printf(", got ");
    print_value(got);
    printf("\n");
}

/* The tolerance of what stands under a key: its own, or that of what is around it. */
static const oracle_tolerance *below_key(const report *r, const oracle_tolerance *around,
                                         const char *key)
{
    for (const oracle_tolerance *t = r->tolerances; t != NULL && t->key != NULL; t++)
        if (strcmp(t->key, key) == 0)
            return t;
    return around;
}

static bool agree(const json_t *expected, const json_t *got, const oracle_tolerance *t)
{
    double x, y;
    if (t == NULL || !oracle_number(expected, &x) || !oracle_number(got, &y))
        return json_equal(expected, got);
    if (!isfinite(x) || !isfinite(y))
        return x == y || (isnan(x) && isnan(y));
    return fabs(x - y) <= fmax(t->absolute, t->relative * fabs(x));
}

/* Walks down to the values that differ; either side may be NULL. `t` NULL: exactly equal. */
static void compare(report *r, const char *path, const oracle_tolerance *t, const json_t *expected,
                    const json_t *got)
{
    char below[512];
    if (json_is_object(expected) && json_is_object(got)) {
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)expected, key, value)
        {
            snprintf(below, sizeof below, "%s.%s", path, key);
            compare(r, below, below_key(r, t, key), value, json_object_get(got, key));
        }
        json_object_foreach((json_t *)got, key, value)
        {
            snprintf(below, sizeof below, "%s.%s", path, key);
            if (json_object_get(expected, key) == NULL)
                differ(r, below, NULL, value);
        }
    } else if (json_is_array(expected) && json_array_size(expected) == json_array_size(got)) {
        for (size_t i = 0; i < json_array_size(expected); i++) {
            snprintf(below, sizeof below, "%s[%zu]", path, i);
            compare(r, below, t, json_array_get(expected, i), json_array_get(got, i));
        }
    } else if (!agree(expected, got, t)) {
        differ(r, path, expected, got);
    }
}

static bool is_input(const oracle_suite *suite, const char *key)
{
    for (const char *const *input = suite->inputs; *input != NULL; input++)
        if (strcmp(*input, key) == 0)
            return true;
    return false;
}

static void compare_case(report *r, const oracle_suite *suite, const oracle_case *c)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)c->json, key, value) if (!is_input(suite, key))
        compare(r, key, below_key(r, NULL, key), value, json_object_get(c->got, key));
    json_object_foreach(c->got, key, value) if (json_object_get(c->json, key) == NULL)
        differ(r, key, NULL, value);
}

/* ---- one file ---- */

typedef struct {
    int64_t n_cases, n_matched, n_skipped, n_printed;
    int32_t n_reasons;
    struct {
        const char *why;
        int64_t n;
    } reasons[MAX_REASONS];
} tally;

static void count_skip(tally *t, const char *why)
{
    int32_t i = 0;
    while (i < t->n_reasons && strcmp(t->reasons[i].why, why) != 0)
        i++;
    if (i == MAX_REASONS)
        return;
    t->reasons[i].why = why;
    t->reasons[i].n++;
    t->n_reasons = i < t->n_reasons ? t->n_reasons : i + 1;
    t->n_skipped++;
}

static td_status run_case(const oracle_suite *suite, const json_t *json, tally *t, td_err *err)
{
    td_status st = TD_OK;
    oracle_case c = {.json = json, .arena = td_arena_new(), .got = json_object()};
    report r = {
        .id = oracle_text(json, "id"), .tolerances = suite->tolerances, .n_printed = &t->n_printed};
    if (c.arena == NULL || c.got == NULL)
        no_memory();
    t->n_cases++;
    TD_TRY(st, suite->run(&c, err));
    if (c.broken != NULL) {
        if (++t->n_printed <= MAX_PRINTED)
            printf("%s: cannot be run: %s\n", r.id, c.broken);
    } else if (c.skip != NULL) {
        count_skip(t, c.skip);
    } else {
        compare_case(&r, suite, &c);
        t->n_matched += r.n_found == 0;
    }
done:
    if (st != TD_OK)
        fprintf(stderr, "oracle: %s: %s\n", r.id, err->text);
    json_decref(c.got);
    td_arena_free(c.arena);
    return st;
}

static void print_tally(const oracle_suite *suite, const tally *t)
{
    printf("%s: cases %lld, matched %lld, skipped %lld", suite->name, (long long)t->n_cases,
           (long long)t->n_matched, (long long)t->n_skipped);
    for (int32_t i = 0; i < t->n_reasons; i++)
        printf("%s%s: %lld", i == 0 ? " (" : ", ", t->reasons[i].why, (long long)t->reasons[i].n);
    printf("%s\n", t->n_reasons > 0 ? ")" : "");
}

static int run_suite(const oracle_suite *suite)
{
    int code = 3;
    char path[4096];
    json_error_t where;
    tally t = {0};
    const char *folder = getenv("TANDEM_ORACLE");
    snprintf(path, sizeof path, "%s/%s.json", folder != NULL ? folder : TD_ORACLE_DEFAULT,
             suite->name);
    json_t *file = json_load_file(path, 0, &where);
    const json_t *cases = json_object_get(file, "cases");
    if (file == NULL) {
        fprintf(stderr, "oracle: %s:%d:%d: %s\n", path, where.line, where.column, where.text);
        goto done;
    }
    if (strcmp(oracle_text(file, "schema"), suite->name) != 0 ||
        oracle_int(file, "schema_version", 0) != 1 || !json_is_array(cases) ||
        oracle_int(file, "count", -1) != (int64_t)json_array_size(cases)) {
        fprintf(stderr, "oracle: %s: expected schema %s, version 1, and `count` cases\n", path,
                suite->name);
        goto done;
    }
    code = 5;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        td_err err = {0};
        if (run_case(suite, json_array_get(cases, i), &t, &err) != TD_OK)
            goto done;
    }
    if (t.n_printed > MAX_PRINTED)
        printf("and %lld more differences\n", (long long)(t.n_printed - MAX_PRINTED));
    print_tally(suite, &t);
    code = t.n_matched == 0 || t.n_matched + t.n_skipped != t.n_cases;
done:
    json_decref(file);
    return code;
}

int main(int argc, char **argv)
{
    for (int i = 0; argc == 2 && i < N_SUITES; i++)
        if (strcmp(argv[1], suites[i]->name) == 0)
            return run_suite(suites[i]);
    fprintf(stderr, "usage: oracle");
    for (int i = 0; i < N_SUITES; i++)
        fprintf(stderr, "%c%s", i == 0 ? ' ' : '|', suites[i]->name);
    fprintf(stderr, "\n  replays the vectors of $TANDEM_ORACLE/NAME.json (default: %s)\n",
            TD_ORACLE_DEFAULT);
    return 2;
}
