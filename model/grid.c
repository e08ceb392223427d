/* Mixed-radix arithmetic: a rank is a number whose digits are its coordinates, the first axis being
 * the lowest digit. */
#include "model/grid.h"

const char *const td_axis_names[TD_N_AXES] = {
#define X(axis, name) [TD_AXIS_##axis] = name,
    TD_AXIS_MAP(X)
#undef X
};

/* Digit of the grid that holds an axis, or -1. */
static int32_t digit_of(const td_grid *g, td_axis axis)
{
    int32_t d = g->n_axes - 1;
    while (d >= 0 && g->axis[d] != axis)
        d--;
    return d;
}

/* How far apart two ranks are that differ by one in this digit. */
static int64_t stride_of(const td_grid *g, int32_t digit)
{
    int64_t stride = 1;
    for (int32_t d = 0; d < digit; d++)
        stride *= g->extent[d];
    return stride;
}

int64_t td_grid_size(const td_grid *g)
{
    int64_t size = 1;
    for (int32_t d = 0; d < g->n_axes; d++) {
        if (g->extent[d] > 0 && size > INT64_MAX / g->extent[d])
            return INT64_MAX;
        size *= g->extent[d];
    }
    return size;
}

int32_t td_grid_extent(const td_grid *g, td_axis axis)
{
    const int32_t d = digit_of(g, axis);
    return d < 0 ? 1 : g->extent[d];
}

bool td_grid_holds(const td_grid *g, int32_t rank)
{
    return rank >= g->first && (int64_t)rank - g->first < td_grid_size(g);
}

static td_status refuse(const char **rule, const char *name)
{
    if (rule != NULL)
        *rule = name;
    return TD_PLAN;
}

td_status td_grid_check(const td_grid *g, int64_t world, const char **rule, td_err *err)
{
    for (int32_t d = 0; d < g->n_axes; d++) {
        const char *name = td_axis_names[g->axis[d]];
        if (g->extent[d] < 1)
            return td_fail(err, refuse(rule, "bad_extent"), "%s is %d, but it must be at least 1",
                           name, (int)g->extent[d]);
        if (digit_of(g, g->axis[d]) != d)
            return td_fail(err, refuse(rule, "repeated_axis"), "%s stands twice in the grid", name);
    }
    if (g->first < 0)
        return td_fail(err, refuse(rule, "negative_rank_offset"),
                       "the grid starts at rank %d, but ranks start at 0", (int)g->first);
    const int64_t size = td_grid_size(g);
    const int64_t limit = world < INT32_MAX ? world : INT32_MAX; /* ranks are 32 bits wide */
    if (size > limit - g->first)
        return td_fail(err, refuse(rule, "grid_exceeds_world"),
                       "the grid needs %lld ranks from rank %d, but the world has %lld",
                       (long long)size, (int)g->first, (long long)world);
    return TD_OK;
}

td_status td_grid_coord(const td_grid *g, int32_t rank, td_coord *out, td_err *err)
{
    if (!td_grid_holds(g, rank))
        return td_fail(err, TD_PLAN, "rank %d is outside the grid of %lld ranks from rank %d",
                       (int)rank, (long long)td_grid_size(g), (int)g->first);
    td_coord c = {0};
    int32_t rest = rank - g->first;
    for (int32_t d = 0; d < g->n_axes; d++) {
        c.c[g->axis[d]] = rest % g->extent[d];
        rest /= g->extent[d];
    }
    *out = c;
    return TD_OK;
}

td_status td_grid_rank(const td_grid *g, td_coord c, int32_t *out, td_err *err)
{
    for (int32_t axis = 0; axis < TD_N_AXES; axis++) {
        const int32_t extent = td_grid_extent(g, (td_axis)axis);
        if (c.c[axis] < 0 || c.c[axis] >= extent)
            return td_fail(err, TD_PLAN, "coordinate %s %d is outside the grid's extent %d",
                           td_axis_names[axis], (int)c.c[axis], (int)extent);
    }
    int32_t rank = 0;
    for (int32_t d = g->n_axes - 1; d >= 0; d--)
        rank = rank * g->extent[d] + c.c[g->axis[d]];
    *out = g->first + rank;
    return TD_OK;
}

/* An axis to run along: `extent` steps of `stride` ranks. */
typedef struct {
    int32_t extent;
    int64_t stride;
} run;

/* The i-th place of a walk along `n` runs, the last of them fastest, as a distance from its start.
 */
static int64_t walk(const run *runs, int32_t n, int64_t i)
{
    int64_t at = 0;
    while (n-- > 0) {
        at += i % runs[n].extent * runs[n].stride;
        i /= runs[n].extent;
    }
    return at;
}

static bool varies(td_axis axis, const td_axis *vary, int32_t n)
{
    for (int32_t k = 0; k < n; k++)
        if (vary[k] == axis)
            return true;
    return false;
}

td_status td_grid_lists(const td_grid *g, td_arena *a, const td_axis *vary, int32_t n, bool sorted,
                        td_rank_lists *out, td_err *err)
{
    run outer[TD_MAX_GRID_AXES], inner[TD_MAX_GRID_AXES];
    int32_t n_outer = 0, n_inner = 0;
    int64_t n_lists = 1, n_ranks = 1;
    for (int32_t d = g->n_axes - 1; d >= 0; d--) {
        const run r = {g->extent[d], stride_of(g, d)};
        if (!varies(g->axis[d], vary, n)) {
            outer[n_outer++] = r;
            n_lists *= r.extent;
        } else if (sorted) {
            inner[n_inner++] = r;
        }
    }
    for (int32_t k = 0; k < n; k++) {
        const int32_t d = digit_of(g, vary[k]);
        if (d < 0)
            continue;
        n_ranks *= g->extent[d];
        if (!sorted)
            inner[n_inner++] = (run){g->extent[d], stride_of(g, d)};
    }

    int32_t *ranks = TD_NEW(a, int32_t, n_lists * n_ranks);
    if (ranks == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %lld lists of %lld ranks", (long long)n_lists,
                       (long long)n_ranks);
    for (int64_t l = 0; l < n_lists; l++) {
        const int64_t start = g->first + walk(outer, n_outer, l);
        for (int64_t i = 0; i < n_ranks; i++)
            ranks[l * n_ranks + i] = (int32_t)(start + walk(inner, n_inner, i));
    }
    *out =
        (td_rank_lists){.n_lists = (int32_t)n_lists, .n_ranks = (int32_t)n_ranks, .ranks = ranks};
    return TD_OK;
}

#define AXES(...)                                                                                  \
    .n_axes = (int32_t)(sizeof((const td_axis[]){__VA_ARGS__}) / sizeof(td_axis)),                 \
    .axes = {__VA_ARGS__}

const td_group_kind td_group_kinds[] = {
    {.name = "tp", AXES(TD_AXIS_TP)},
    {.name = "cp", AXES(TD_AXIS_CP)},
    {.name = "dp", AXES(TD_AXIS_DP)},
    {.name = "pp", AXES(TD_AXIS_PP)},
    {.name = "dp_cp", AXES(TD_AXIS_DP, TD_AXIS_CP)},
    {.name = "tp_cp", AXES(TD_AXIS_TP, TD_AXIS_CP)},
    {.name = "mp_tp_pp", AXES(TD_AXIS_TP, TD_AXIS_PP)},
    {.name = "tp_dp_cp", AXES(TD_AXIS_TP, TD_AXIS_DP, TD_AXIS_CP)},
    {.name = "intra_dist_opt", AXES(TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_EP, TD_AXIS_DP, TD_AXIS_PP)},
    {.name = "ep", .expert = true, AXES(TD_AXIS_EP)},
    {.name = "expt_tp", .expert = true, AXES(TD_AXIS_EXPT_TP)},
    {.name = "expt_dp", .expert = true, AXES(TD_AXIS_EXPT_DP)},
    {.name = "tp_ep", .expert = true, AXES(TD_AXIS_EXPT_TP, TD_AXIS_EP)},
    {.name = "tp_ep_pp", .expert = true, AXES(TD_AXIS_EXPT_TP, TD_AXIS_EP, TD_AXIS_PP)},
    {.name = "embd", .form = TD_GROUP_ENDS, AXES(TD_AXIS_PP)},
    {.name = "pos_embd", .form = TD_GROUP_HEADS, AXES(TD_AXIS_PP)},
    {.name = NULL}};

/* Keeps of every list its first rank, and with `ends` its last one too where that is another. */
static td_status shorten(td_arena *a, bool ends, td_rank_lists *lists, td_err *err)
{
    const int32_t n = lists->n_ranks, keep = ends && n > 1 ? 2 : 1;
    int32_t *ranks = TD_NEW(a, int32_t, (int64_t)lists->n_lists * keep);
    if (ranks == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %d embedding groups", (int)lists->n_lists);
    for (int64_t l = 0; l < lists->n_lists; l++) {
        ranks[l * keep] = lists->ranks[l * n];
        if (keep == 2)
            ranks[l * keep + 1] = lists->ranks[l * n + n - 1];
    }
    lists->n_ranks = keep;
    lists->ranks = ranks;
    return TD_OK;
}

td_status td_group_lists(const td_group_kind *kind, const td_grid *base, const td_grid *expert,
                         td_arena *a, td_rank_lists *out, td_err *err)
{
    td_status st = TD_OK;
    const td_grid *g = kind->expert ? expert : base;
    td_rank_lists lists;
    if (g == NULL)
        TD_TRY(st, td_fail(err, TD_USAGE, "group %s needs an expert factoring, but there is none",
                           kind->name));
    TD_TRY(st, td_grid_lists(g, a, kind->axes, kind->n_axes, true, &lists, err));
    if (kind->form != TD_GROUP_LISTS)
        TD_TRY(st, shorten(a, kind->form == TD_GROUP_ENDS, &lists, err));
    *out = lists;
done:
    return st;
}

/*
 * A grid's lists along one axis ascend by their first rank, each with the axis' stride, and cover
 * the same ranks. So they are equal in two grids of the same ranks if extent and stride are; the
 * stride of a single rank means nothing.
 */
td_status td_grid_check_view(const td_grid *base, const td_grid *view, const char **rule,
                             td_err *err)
{
    if (base->first != view->first || td_grid_size(base) != td_grid_size(view))
        return td_fail(err, refuse(rule, "view_size_mismatch"),
                       "the expert factoring has %lld ranks, but the module has %lld",
                       (long long)td_grid_size(view), (long long)td_grid_size(base));
    const int32_t pp = td_grid_extent(base, TD_AXIS_PP);
    if (pp != td_grid_extent(view, TD_AXIS_PP) ||
        (pp > 1 && stride_of(base, digit_of(base, TD_AXIS_PP)) !=
                       stride_of(view, digit_of(view, TD_AXIS_PP))))
        return td_fail(
            err, refuse(rule, "shared_dim_membership_differs"),
            "the expert factoring puts other ranks into a pipeline than the module does");
    return TD_OK;
}
