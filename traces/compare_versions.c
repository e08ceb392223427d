/*
 * A profile holds for the driver and the libraries that it was measured with. What the prediction's
 * metadata says of its profile (`profile_driver`, ...) meets what rank 0 of the measurement ran on
 * (`gpu.0`, `versions.0`).
 */
#include "traces/compare_side.h"

#include <jansson.h>
#include <string.h>

static const char *extra(const td_side *s, const char *key)
{
    const char *value = NULL;
    for (int32_t i = 0; i < s->meta.n_extra && value == NULL; i++)
        if (strcmp(s->meta.extra[2 * i], key) == 0)
            value = s->meta.extra[2 * i + 1];
    return value;
}

/* A member of an object as text, whole numbers too; "" if there is none. */
static const char *member(td_arena *a, const json_t *of, const char *key)
{
    const json_t *v = json_object_get(of, key);
    const char *text = json_is_integer(v)
                           ? td_arena_printf(a, "%lld", (long long)json_integer_value(v))
                       : json_is_string(v) ? td_arena_printf(a, "%s", json_string_value(v))
                                           : "";
    return text;
}

static const char *shown(td_arena *a, td_library library, const char *version)
{
    char text[64];
    return td_arena_printf(a, "%s", td_version_text(library, version, text, sizeof text));
}

td_status td_compare_versions(td_arena *a, td_comparison *c, td_err *err)
{
    td_status st = TD_OK;
    const td_side *p = c->side[TD_PREDICTED], *m = c->side[TD_MEASURED];
    const char *gpu[TD_N_SIDES] = {extra(p, "profile_gpu"), extra(m, "gpu.0")},
               *versions = extra(m, "versions.0");
    json_t *measured = versions == NULL ? NULL : json_loads(versions, 0, NULL);
    c->n_versions = 0;
    if (gpu[0] != NULL && gpu[1] != NULL && strcmp(gpu[0], gpu[1]) != 0)
        c->versions[c->n_versions++] = (struct td_compare_version){"gpu", gpu[0], gpu[1]};
    for (td_library i = 0; i < TD_N_LIBRARIES; i++) {
        char key[32];
        snprintf(key, sizeof key, "profile_%s", td_library_names[i]);
        const char *then = extra(p, key), *there = member(a, measured, td_library_names[i]);
        if (there == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for versions"));
        if (td_version_same(i, then, there))
            continue;
        struct td_compare_version *v = &c->versions[c->n_versions];
        *v =
            (struct td_compare_version){td_library_names[i], shown(a, i, then), shown(a, i, there)};
        if (v->profile == NULL || v->measured == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for versions"));
        c->n_versions++;
    }
done:
    json_decref(measured);
    return st;
}
