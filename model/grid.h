/*
 * A grid places one module on a contiguous range of world ranks and factors that range over named
 * axes, fastest first: rank = first + c[0] + extent[0] * (c[1] + extent[1] * (c[2] + ...)) With the
 * default order tp, cp, dp, pp tensor-parallel peers are neighbours (they share NVLink) and
 * pipeline stages are far apart. The same range can be factored a second time for experts (expt_tp,
 * ep, expt_dp, pp).
 */
#ifndef TANDEM_MODEL_GRID_H
#define TANDEM_MODEL_GRID_H

#include "model/arena.h"
#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_AXIS_MAP(X)                                                                             \
    X(TP, "tp")                                                                                    \
    X(CP, "cp") X(EP, "ep") X(DP, "dp") X(PP, "pp") X(EXPT_TP, "expt_tp") X(EXPT_DP, "expt_dp")

typedef enum {
#define X(axis, name) TD_AXIS_##axis,
    TD_AXIS_MAP(X)
#undef X
        TD_N_AXES
} td_axis;

extern const char *const td_axis_names[TD_N_AXES];

enum { TD_MAX_GRID_AXES = 5 };

typedef struct {
    int32_t first;                    /* world rank of the coordinate that is 0 on every axis */
    int32_t n_axes;                   /* 1..TD_MAX_GRID_AXES */
    td_axis axis[TD_MAX_GRID_AXES];   /* fastest first, each at most once */
    int32_t extent[TD_MAX_GRID_AXES]; /* each >= 1 */
} td_grid;

/* Coordinates by axis; an axis that the grid does not have is 0. */
typedef struct {
    int32_t c[TD_N_AXES];
} td_coord;

/* Ranks in the grid; int64 so that an absurd product is still representable (saturates at
 * INT64_MAX). */
int64_t td_grid_size(const td_grid *g);

/* Extent along an axis; 1 if the grid does not have it. */
int32_t td_grid_extent(const td_grid *g, td_axis axis);

bool td_grid_holds(const td_grid *g, int32_t rank);

/*
 * Is this a grid on a world of `world` ranks? Fails with TD_PLAN: extents >= 1, first >= 0, axes
 * distinct, and first + size <= world. `rule` (may be NULL) gets a short name:
 * `negative_rank_offset`, `grid_exceeds_world`, `bad_extent`, `repeated_axis`.
 */
td_status td_grid_check(const td_grid *g, int64_t world, const char **rule, td_err *err);

/*
 * Coordinate of a world rank and its inverse. `g` is a grid that td_grid_check() accepted; `out` is
 * written only on success. Fail with TD_PLAN outside the grid. Allocate nothing.
 */
td_status td_grid_coord(const td_grid *g, int32_t rank, td_coord *out, td_err *err);
td_status td_grid_rank(const td_grid *g, td_coord c, int32_t *out, td_err *err);

/* Lists of ranks, each of the same length: list i is ranks[i * n_ranks .. (i + 1) * n_ranks - 1].
 */
typedef struct {
    int32_t n_lists, n_ranks;
    const int32_t *ranks;
} td_rank_lists;

/*
 * Enumerates the groups that vary the `n` axes `vary` and fix all others: the lists run over the
 * fixed axes, slowest axis outermost. With `sorted`, a list ascends whatever the order of `vary`,
 * as the reference's process groups do; without, vary[n-1] is fastest inside a list (the bridge's
 * enumeration, which decides who is leader). Axes absent from the grid are ignored. Fails with
 * TD_NOMEM only.
 */
td_status td_grid_lists(const td_grid *g, td_arena *a, const td_axis *vary, int32_t n, bool sorted,
                        td_rank_lists *out, td_err *err);

/*
 * The named process groups of a module. `expert` kinds enumerate the expert factoring. `embd` and
 * `pos_embd` are derived from the pp lists: first and last rank, and first rank. Names are those of
 * Megatron-core's process groups.
 */
typedef struct {
    const char *name;
    bool expert;
    int32_t n_axes;
    td_axis axes[TD_MAX_GRID_AXES];
    enum {
        TD_GROUP_LISTS,
        TD_GROUP_ENDS,
        TD_GROUP_HEADS
    } form; /* whole lists, their ends, their heads */
} td_group_kind;

extern const td_group_kind td_group_kinds[]; /* ends with a NULL name */

/* The lists of one kind; `expert` may be NULL when the module has no expert factoring and `kind`
 * does not need it. */
td_status td_group_lists(const td_group_kind *kind, const td_grid *base, const td_grid *expert,
                         td_arena *a, td_rank_lists *out, td_err *err);

/*
 * Is `view` a second factoring of the ranks of `base` whose pp axis enumerates the same lists?
 * Fails with TD_PLAN, rule `view_size_mismatch` or `shared_dim_membership_differs`.
 */
td_status td_grid_check_view(const td_grid *base, const td_grid *view, const char **rule,
                             td_err *err);

#endif
