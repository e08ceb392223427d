/* gradscale.json: the factor that makes summed gradients those of the mean over all tokens. */
#include "tests/oracle/oracle.h"

#include "exec/optimizer.h"

#include <string.h>

static double sum(const json_t *numbers)
{
    double total = 0, value;
    for (size_t i = 0; i < json_array_size(numbers); i++)
        total += oracle_number(json_array_get(numbers, i), &value) ? value : 0;
    return total;
}

/* The gradient of one module as its lanes hold it after their reduction and the scaling. */
typedef struct {
    double grad, factor;
} scaled;

static scaled scale(const json_t *json, const char *module, int32_t lanes, int64_t tokens)
{
    const json_t *active = json_object_get(json_object_get(json, "participating_lanes"), module);
    const double reduced =
        sum(json_object_get(json_object_get(json, "local_grad_per_lane"), module));
    const bool summed =
        json_is_true(json_object_get(json_object_get(json, "module_per_token"), module));
    const double factor = td_mimo_token_scale(
        tokens, lanes, active != NULL ? (int32_t)json_array_size(active) : lanes);
    return (scaled){.grad = (summed ? reduced : reduced / lanes) * factor, .factor = factor};
}

/* The module whose range holds rank `r`, and where the rank stands in it; false for an idle one. */
static bool seat(oracle_case *c, int32_t r, const char **module, td_grid *grid, td_coord *coord)
{
    const char *name;
    json_t *value;
    json_object_foreach(json_object_get(c->json, "modules"), name, value)
    {
        *module = name;
        if (oracle_grid(c, "pp_outer", value, grid) && td_grid_holds(grid, r))
            return td_grid_coord(grid, r, coord, NULL) == TD_OK;
    }
    return false;
}

static td_status run(oracle_case *c, td_err *err)
{
    json_t *ranks = json_array();
    const int64_t tokens = (int64_t)sum(json_object_get(c->json, "language_lane_tokens"));
    (void)err;
    if (strcmp(oracle_text(c->json, "kind"), "module_local") == 0)
        c->skip = "module_local";
    for (int32_t r = 0; r < oracle_int(c->json, "world_size", 0); r++) {
        const char *module;
        td_grid grid;
        td_coord coord;
        if (!seat(c, r, &module, &grid, &coord))
            continue; /* an idle rank has no gradient */
        const int32_t lanes = td_grid_extent(&grid, TD_AXIS_DP);
        const scaled s = scale(c->json, module, lanes, tokens);
        json_t *one = json_object(), *calls = json_array();
        oracle_append(calls, json_real(s.factor));
        oracle_set(one, "rank", json_integer(r));
        oracle_set(one, "module", json_string(module));
        oracle_set(one, "lane", json_integer(coord.c[TD_AXIS_DP]));
        oracle_set(one, "final_grad", oracle_real(s.grad));
        oracle_set(one, "scale_calls", calls);
        oracle_append(ranks, one);
    }
    oracle_set(c->got, "expected", ranks);
    oracle_set(c->got, "total_tokens", json_integer(tokens));
    return TD_OK;
}

static const char *const inputs[] = {"id",
                                     "kind",
                                     "world_size",
                                     "modules",
                                     "per_token_loss",
                                     "module_per_token",
                                     "language_lane_tokens",
                                     "local_grad_per_lane",
                                     "participating_lanes",
                                     "note",
                                     NULL};

static const oracle_tolerance tolerances[] = {
    {"final_grad", 1e-5, 1e-7}, {"scale_calls", 1e-5, 0}, {NULL, 0, 0}};

const oracle_suite oracle_gradscale = {
    .name = "gradscale", .inputs = inputs, .run = run, .tolerances = tolerances};
