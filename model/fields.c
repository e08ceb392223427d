/* The YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema), strictly: no guessing
 * between types. */
#include "model/fields.h"

#include "model/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void *td_reader_alloc(td_reader *r, int64_t n, size_t size)
{
    void *p = td_arena_alloc(r->arena, (size_t)n, size);
    if (p == NULL)
        r->failed = true;
    return p;
}

static const char *kept(td_reader *r, const char *text)
{
    if (text == NULL)
        r->failed = true;
    return text == NULL ? "" : text;
}

const char *td_path_key(td_reader *r, const char *path, const char *key)
{
    const char *shown = td_text_show(r->arena, key, strlen(key));
    return kept(r, td_arena_printf(r->arena, "%s%s%s", path, path[0] != '\0' ? "." : "", shown));
}

const char *td_path_item(td_reader *r, const char *path, int32_t i)
{
    return kept(r, td_arena_printf(r->arena, "%s[%d]", path, i));
}

/* ---- scalars ---- */

static bool one_of(const char *text, const char *const *words)
{
    for (; *words != NULL; words++)
        if (strcmp(text, *words) == 0)
            return true;
    return false;
}

static bool is_null(const td_yaml *v)
{
    static const char *const words[] = {"", "~", "null", "Null", "NULL", NULL};
    return v->kind == TD_YAML_SCALAR && v->plain && one_of(v->text, words);
}

static bool is_bool(const td_yaml *v)
{
    static const char *const words[] = {"true", "True", "TRUE", "false", "False", "FALSE", NULL};
    return v->kind == TD_YAML_SCALAR && v->plain && one_of(v->text, words);
}

static const char *skip_digits(const char *s, const char *digits)
{
    return s + strspn(s, digits);
}

#define DECIMAL "0123456789"

/* [-+]?[0-9]+ | 0o[0-7]+ | 0x[0-9a-fA-F]+; *base and *digits say how to convert it. */
static bool is_int(const td_yaml *v, int *base, const char **digits)
{
    if (v->kind != TD_YAML_SCALAR || !v->plain)
        return false;
    const char *s = v->text, *accept = DECIMAL;
    *base = 10;
    *digits = s;
    if (s[0] == '0' && (s[1] == 'o' || s[1] == 'x')) {
        *base = s[1] == 'o' ? 8 : 16;
        accept = s[1] == 'o' ? "01234567" : DECIMAL "abcdefABCDEF";
        *digits = s += 2;
    } else if (*s == '-' || *s == '+') {
        s++;
    }
    return *s != '\0' && *skip_digits(s, accept) == '\0';
}

/* [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)? */
static bool is_decimal(const char *s)
{
    s += *s == '-' || *s == '+';
    const char *whole = s;
    s = skip_digits(s, DECIMAL);
    bool any = s > whole;
    if (*s == '.') {
        const char *fraction = s + 1;
        s = skip_digits(fraction, DECIMAL);
        any = any || s > fraction;
    }
    if (any && (*s == 'e' || *s == 'E')) {
        s++;
        s += *s == '-' || *s == '+';
        any = *s != '\0';
        s = skip_digits(s, DECIMAL);
    }
    return any && *s == '\0';
}

static bool is_real(const td_yaml *v)
{
    static const char *const words[] = {".inf",  ".Inf",  ".INF",  "+.inf", "+.Inf",
                                        "+.INF", "-.inf", "-.Inf", "-.INF", ".nan",
                                        ".NaN",  ".NAN",  NULL};
    return v->kind == TD_YAML_SCALAR && v->plain && (is_decimal(v->text) || one_of(v->text, words));
}

bool td_value_int(const td_yaml *node, int64_t *out)
{
    const td_yaml *v = td_yaml_value(node);
    int base;
    const char *digits;
    if (!is_int(v, &base, &digits))
        return false;
    *out = strtoll(digits, NULL, base); /* saturates, which every limit then refuses */
    return true;
}

const char *td_value_text(const td_yaml *node)
{
    const td_yaml *v = td_yaml_value(node);
    int base;
    const char *digits;
    const bool other = v->kind != TD_YAML_SCALAR || is_null(v) || is_bool(v) ||
                       is_int(v, &base, &digits) || is_real(v);
    return other ? NULL : v->text;
}

const char *td_value_describe(td_reader *r, const td_yaml *node)
{
    const td_yaml *v = td_yaml_value(node);
    if (v->kind == TD_YAML_SEQUENCE)
        return "is a list";
    if (v->kind == TD_YAML_MAPPING)
        return "is a mapping";
    if (is_null(v))
        return "is empty";
    const char *shown = td_text_show(r->arena, v->text, strlen(v->text));
    const bool text = td_value_text(v) != NULL;
    return kept(r, td_arena_printf(r->arena, text ? "is the text \"%s\"" : "is %s", shown));
}

/* ---- values ---- */

static const char *expectation(td_reader *r, const td_field *f)
{
    if (f->kind == TD_FIELD_INT)
        return kept(r, td_arena_printf(r->arena, "a whole number from %lld to %lld",
                                       (long long)f->min, (long long)f->max));
    if (f->kind == TD_FIELD_WORD)
        return kept(r, td_arena_printf(r->arena, "one of %s", td_text_list(r->arena, f->words)));
    return f->expected;
}

static bool mismatch(td_reader *r, const td_yaml *v, const char *path, const td_field *f,
                     const char *rule)
{
    td_diag_error(r->diags, v->at, path, rule, "%s; expected %s", td_value_describe(r, v),
                  expectation(r, f));
    return false;
}

static bool read_int(td_reader *r, const td_yaml *v, const char *path, const td_field *f, void *to)
{
    int64_t x;
    if (!td_value_int(v, &x))
        return mismatch(r, v, path, f, "wrong_type");
    if (x < f->min || x > f->max)
        return mismatch(r, v, path, f, "out_of_range");
    const int32_t small = (int32_t)(uint32_t)x; /* the limits say whether it is one */
    memcpy(to, f->size == sizeof x ? (const void *)&x : &small, f->size);
    return true;
}

static bool read_real(td_reader *r, const td_yaml *v, const char *path, const td_field *f, void *to)
{
    int64_t whole;
    if (!is_real(v) && !td_value_int(v, &whole))
        return mismatch(r, v, path, f, "wrong_type");
    double x = NAN; /* .inf and .nan */
    if (is_decimal(v->text))
        x = strtod(v->text, NULL);
    else if (td_value_int(v, &whole))
        x = (double)whole;
    if (!(x >= f->low && x <= f->high))
        return mismatch(r, v, path, f, "out_of_range");
    memcpy(to, &x, sizeof x);
    return true;
}

static bool read_bool(td_reader *r, const td_yaml *v, const char *path, const td_field *f, void *to)
{
    const bool yes = is_bool(v) && strcmp(v->text, "true") == 0;
    if (!yes && !(is_bool(v) && strcmp(v->text, "false") == 0))
        return mismatch(r, v, path, f, "wrong_type");
    memcpy(to, &yes, sizeof yes);
    return true;
}

static bool read_word(td_reader *r, const td_yaml *v, const char *path, const td_field *f, void *to)
{
    const char *text =
        is_bool(v) ? v->text : td_value_text(v); /* `frozen` mixes booleans and words */
    const bool quoted_bool =
        text != NULL && !v->plain && (strcmp(text, "true") == 0 || strcmp(text, "false") == 0);
    if (text == NULL || quoted_bool)
        return mismatch(r, v, path, f, "wrong_type");
    for (int32_t i = 0; f->words[i] != NULL; i++) {
        if (strcmp(text, f->words[i]) == 0) {
            memcpy(to, &i, sizeof i);
            return true;
        }
    }
    const char *near = td_text_nearest(text, f->words);
    if (near == NULL)
        return mismatch(r, v, path, f, "unknown_value");
    td_diag_error(r->diags, v->at, path, "unknown_value", "%s; did you mean `%s`? Expected %s",
                  td_value_describe(r, v), near, expectation(r, f));
    return false;
}

static bool read_text(td_reader *r, const td_yaml *v, const char *path, const td_field *f, void *to)
{
    const char *text = td_value_text(v);
    if (text == NULL || text[0] == '\0')
        return mismatch(r, v, path, f, "wrong_type");
    memcpy(to, &text, sizeof text);
    return true;
}

static bool read_node(td_reader *r, const td_yaml *v, const char *path, const td_field *f, void *to)
{
    (void)r, (void)path, (void)f;
    memcpy(to, &v, sizeof v);
    return true;
}

bool td_value_read(td_reader *r, const td_yaml *node, const char *path, const td_field *field,
                   void *target)
{
    static bool (*const read[])(td_reader *, const td_yaml *, const char *, const td_field *,
                                void *) = {
        [TD_FIELD_INT] = read_int,   [TD_FIELD_REAL] = read_real, [TD_FIELD_BOOL] = read_bool,
        [TD_FIELD_WORD] = read_word, [TD_FIELD_TEXT] = read_text, [TD_FIELD_NODE] = read_node};
    return read[field->kind](r, td_yaml_value(node), path, field, (char *)target + field->offset);
}

/* ---- mappings ---- */

/* A key while a mapping is opened: `order` is the place in the file, merged keys behind all own
 * ones. */
typedef struct {
    td_entry entry;
    int32_t order;
    bool own, dropped;
} candidate;

static int by_key(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    const int c = strcmp(x->entry.key->text, y->entry.key->text);
    return c != 0 ? c : (x->order > y->order) - (x->order < y->order);
}

static int by_order(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return (x->order > y->order) - (x->order < y->order);
}

static bool is_merge(const td_yaml *key)
{
    return key->kind == TD_YAML_SCALAR && key->plain && strcmp(key->text, "<<") == 0;
}

/* Keys of a mapping, those it merges included; the weight of a node bounds their number and the
 * depth. */
static int32_t n_keys(const td_yaml *map)
{
    int32_t n = 0;
    for (const td_yaml *k = map->first; k != NULL; k = k->next->next) {
        const td_yaml *v = td_yaml_value(k->next);
        if (!is_merge(td_yaml_value(k))) {
            n++;
        } else if (v->kind == TD_YAML_MAPPING) {
            n += n_keys(v);
        } else {
            for (const td_yaml *item = v->first; item != NULL; item = item->next)
                n += td_yaml_value(item)->kind == TD_YAML_MAPPING ? n_keys(td_yaml_value(item)) : 0;
        }
    }
    return n;
}

static void gather(td_reader *r, const td_yaml *map, const char *path, bool own, candidate *out,
                   int32_t *n);

static void merge(td_reader *r, const td_yaml *node, const char *path, candidate *out, int32_t *n)
{
    const td_yaml *v = td_yaml_value(node);
    if (v->kind == TD_YAML_MAPPING)
        gather(r, v, path, false, out, n);
    else
        td_diag_error(r->diags, node->at, td_path_key(r, path, "<<"), "wrong_type",
                      "%s; expected a mapping or a list of mappings to merge",
                      td_value_describe(r, v));
}

/* Appends the keys of `map`, then those it merges: explicit keys win, then the earlier merged ones.
 */
static void gather(td_reader *r, const td_yaml *map, const char *path, bool own, candidate *out,
                   int32_t *n)
{
    for (const td_yaml *k = map->first; k != NULL; k = k->next->next) {
        const td_yaml *key = td_yaml_value(k);
        if (is_merge(key))
            continue;
        if (key->kind != TD_YAML_SCALAR) {
            td_diag_error(r->diags, k->at, path, "wrong_type", "a key %s; expected a word",
                          td_value_describe(r, key));
            continue;
        }
        out[*n] = (candidate){
            .entry = {.key = k->kind == TD_YAML_ALIAS ? key : k, .value = td_yaml_value(k->next)},
            .order = *n,
            .own = own};
        (*n)++;
    }
    for (const td_yaml *k = map->first; k != NULL; k = k->next->next) {
        const td_yaml *v = td_yaml_value(k->next);
        if (!is_merge(td_yaml_value(k)))
            continue;
        if (v->kind != TD_YAML_SEQUENCE)
            merge(r, k->next, path, out, n);
        else
            for (const td_yaml *item = v->first; item != NULL; item = item->next)
                merge(r, item, path, out, n);
    }
}

bool td_map_open(td_reader *r, const td_yaml *node, const char *path, const char *expected,
                 td_map *out)
{
    const td_yaml *map = td_yaml_value(node);
    *out = (td_map){.at = map->at, .path = path};
    if (map->kind != TD_YAML_MAPPING) {
        td_diag_error(r->diags, map->at, path, "wrong_type", "%s; expected %s",
                      td_value_describe(r, map), expected);
        return false;
    }
    const int32_t room = n_keys(map);
    int32_t n = 0;
    candidate *all = td_reader_alloc(r, room, sizeof *all);
    td_entry *entries = td_reader_alloc(r, room, sizeof *entries);
    if (all == NULL || entries == NULL)
        return false;
    gather(r, map, path, true, all, &n);
    qsort(all, (size_t)n, sizeof *all, by_key);
    for (int32_t i = 1; i < n; i++) {
        if (strcmp(all[i - 1].entry.key->text, all[i].entry.key->text) != 0)
            continue;
        all[i].dropped = true;
        if (all[i].own)
            td_diag_error(r->diags, all[i].entry.key->at,
                          td_path_key(r, path, all[i].entry.key->text), "duplicate_key",
                          "the key is written twice, first on line %d; expected it once",
                          all[i - 1].entry.key->at.line);
    }
    qsort(all, (size_t)n, sizeof *all, by_order);
    for (int32_t i = 0; i < n; i++)
        if (!all[i].dropped)
            entries[out->n++] = all[i].entry;
    out->entries = entries;
    return true;
}

const td_yaml *td_map_get(const td_map *map, const char *key)
{
    for (int32_t i = 0; i < map->n; i++)
        if (strcmp(map->entries[i].key->text, key) == 0)
            return map->entries[i].value;
    return NULL;
}

td_pos td_map_at(const td_map *map, const char *key)
{
    const td_yaml *value = td_map_get(map, key);
    return value == NULL ? map->at : value->at;
}

static void unknown_key(td_reader *r, const td_map *map, const td_yaml *key, const td_field *fields)
{
    int32_t n = 0;
    while (fields[n].key != NULL)
        n++;
    const char **known = td_reader_alloc(r, n + 1, sizeof *known);
    if (known == NULL)
        return;
    for (int32_t i = 0; i < n; i++)
        known[i] = fields[i].key;
    const char *near = td_text_nearest(key->text, known);
    const char *path = td_path_key(r, map->path, key->text);
    if (near != NULL)
        td_diag_error(r->diags, key->at, path, "unknown_key", "unknown key; did you mean `%s`?",
                      near);
    else
        td_diag_error(r->diags, key->at, path, "unknown_key", "unknown key; expected one of %s",
                      td_text_list(r->arena, known));
}

void td_map_read(td_reader *r, const td_map *map, const td_field *fields, void *target)
{
    for (int32_t i = 0; i < map->n; i++) {
        const td_entry *e = &map->entries[i];
        const td_field *f = fields;
        while (f->key != NULL && strcmp(f->key, e->key->text) != 0)
            f++;
        if (f->key == NULL)
            unknown_key(r, map, e->key, fields);
        else
            td_value_read(r, e->value, td_path_key(r, map->path, f->key), f, target);
    }
    for (const td_field *f = fields; f->key != NULL; f++)
        if (f->required && td_map_get(map, f->key) == NULL)
            td_diag_error(r->diags, map->at, td_path_key(r, map->path, f->key), "missing_key",
                          "is missing; expected %s", expectation(r, f));
}
