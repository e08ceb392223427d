/* grids.json: enumeration of every process group, and the rules of grids and their second
 * factoring. */
#include "tests/oracle/oracle.h"

#include <string.h>

/* Reads {dim_names, shape}; false if it names an axis that tandem's grids do not have. */
static bool read_grid(const json_t *json, int64_t first, td_grid *out)
{
    const json_t *names = json_object_get(json, "dim_names"),
                 *shape = json_object_get(json, "shape");
    td_grid g = {.first = (int32_t)first, .n_axes = (int32_t)json_array_size(names)};
    if (g.n_axes > TD_MAX_GRID_AXES || json_array_size(shape) != json_array_size(names))
        return false;
    for (int32_t d = 0; d < g.n_axes; d++) {
        const char *name = json_string_value(json_array_get(names, (size_t)d));
        int32_t axis = 0;
        while (axis < TD_N_AXES && (name == NULL || strcmp(td_axis_names[axis], name) != 0))
            axis++;
        if (axis == TD_N_AXES)
            return false;
        g.axis[d] = (td_axis)axis;
        g.extent[d] = (int32_t)json_integer_value(json_array_get(shape, (size_t)d));
    }
    *out = g;
    return true;
}

/* All groups that the case asks for by name; a name that the library does not know stays without an
 * answer. */
static td_status groups(oracle_case *c, const td_grid *base, const td_grid *expert, td_err *err)
{
    td_status st = TD_OK;
    json_t *got = json_object();
    oracle_set(c->got, "groups", got);
    for (const td_group_kind *kind = td_group_kinds; kind->name != NULL; kind++) {
        td_rank_lists lists;
        if (json_object_get(json_object_get(c->json, "groups"), kind->name) == NULL)
            continue;
        TD_TRY(st, td_group_lists(kind, base, expert, c->arena, &lists, err));
        oracle_set(got, kind->name, oracle_lists(&lists));
    }
done:
    return st;
}

/* Enumerations in the order of the axes as given: the one that decides who leads a bridge. */
static td_status raw_enum(oracle_case *c, const td_grid *g, td_err *err)
{
    td_status st = TD_OK;
    td_rank_lists lists;
    json_t *got = json_object();
    oracle_set(c->got, "raw_enum", got);
    td_axis axes[TD_MAX_GRID_AXES];
    int32_t n = 0;
    for (int32_t d = 0; d < g->n_axes; d++)
        if (g->axis[d] != TD_AXIS_DP)
            axes[n++] = g->axis[d];
    TD_TRY(st, td_grid_lists(g, c->arena, axes, n, false, &lists, err));
    oracle_set(got, "per_dp_replica", oracle_lists(&lists));
    TD_TRY(st, td_grid_lists(g, c->arena, (const td_axis[]){TD_AXIS_TP, TD_AXIS_CP}, 2, false,
                             &lists, err));
    oracle_set(got, "tp_cp", oracle_lists(&lists));
done:
    return st;
}

static void members(oracle_case *c, const td_grid *g, int64_t world)
{
    json_t *got = json_array();
    oracle_set(c->got, "members", got);
    for (int32_t rank = 0; rank < world; rank++)
        if (td_grid_holds(g, rank))
            oracle_append(got, json_integer(rank));
}

static void refused(oracle_case *c, const char *rule)
{
    json_t *error = json_object();
    oracle_set(error, "rule", json_string(rule));
    /* the reference's class of exception means nothing here */
    oracle_set(error, "type", json_string(oracle_text(json_object_get(c->json, "error"), "type")));
    oracle_set(c->got, "error", error);
    oracle_set(c->got, "result", json_string("error"));
}

static td_status run(oracle_case *c, td_err *err)
{
    td_status st = TD_OK;
    const char *rule = NULL;
    const int64_t first = oracle_int(c->json, "rank_offset", 0),
                  world = oracle_int(c->json, "world_size", 0);
    const json_t *second = json_object_get(c->json, "expert");
    td_grid base, view;
    if (strcmp(oracle_text(c->json, "layout"), "gtp") == 0) {
        c->skip = "gtp_remat";
        goto done;
    }
    if (!read_grid(json_object_get(c->json, "base"), first, &base) ||
        (second != NULL && !read_grid(second, first, &view))) {
        c->broken = "an axis that is not known";
        goto done;
    }
    if (td_grid_check(&base, world, &rule, NULL) != TD_OK ||
        (second != NULL && (td_grid_check_view(&base, &view, &rule, NULL) != TD_OK ||
                            td_grid_check(&view, world, &rule, NULL) != TD_OK))) {
        refused(c, rule);
        goto done;
    }
    oracle_set(c->got, "result", json_string("ok"));
    oracle_set(c->got, "size", json_integer(td_grid_size(&base)));
    TD_TRY(st, groups(c, &base, second != NULL ? &view : &base, err));
    if (strcmp(oracle_text(c->json, "layout"), "custom") != 0) {
        TD_TRY(st, raw_enum(c, &base, err));
        members(c, &base, world);
    }
done:
    return st;
}

static const char *const inputs[] = {"id",   "world_size", "rank_offset", "layout",
                                     "base", "expert",     NULL};

const oracle_suite oracle_grids = {.name = "grids", .inputs = inputs, .run = run};
