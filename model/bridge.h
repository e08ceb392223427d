/*
 * A bridge carries one module's output to the next when both have their own grids: data lane by
 * data lane, from one leader of the source to one of the destination, who then broadcasts to the
 * tensor-parallel ranks of its lane. Lanes need not be equal in number: with more source lanes
 * (fan-in) a destination lane concatenates several, with fewer (fan-out) a source lane is cut along
 * the batch. The backward retraces the way.
 *
 * Leaders, as the reference elects them: the source's is the LAST rank of its lane on the last
 * stage (the highest tp rank), the destination's the FIRST on stage 0.
 */
#ifndef TANDEM_MODEL_BRIDGE_H
#define TANDEM_MODEL_BRIDGE_H

#include "model/grid.h"

/* One message: source lane -> destination lane in the forward, the other way in the backward. */
typedef struct {
    int32_t src, dst; /* lanes */
    int32_t part; /* which cut of a fanned-out source lane, or input of a fanned-in destination */
} td_bridge_pair;

/*
 * Pairs ascend by source and by destination lane, which is the order in which either side issues
 * them. Those of a lane stand together: pairs[lane * parts .. lane * parts + parts - 1], `parts`
 * being parts_per_src or parts_per_dst.
 */
typedef struct {
    int32_t n_src, n_dst;        /* data lanes of either side; one divides the other */
    const int32_t *src_leader;   /* [n_src] world ranks, on the last stage */
    const int32_t *dst_leader;   /* [n_dst] world ranks, on stage 0 */
    td_rank_lists src_group;     /* list i: the tp*cp ranks of lane i on that stage, ascending, */
    td_rank_lists dst_group;     /* leader included */
    int32_t n_pairs;             /* max(n_src, n_dst) */
    const td_bridge_pair *pairs; /* [n_pairs] */
    int32_t parts_per_src;       /* messages a lane takes part in; one of the two is 1 */
    int32_t parts_per_dst;
} td_bridge;

/*
 * The bridge between two disjoint grids that td_grid_check() accepted. Fails with TD_PLAN where the
 * lanes do not divide one another, and with TD_NOMEM. `rule` (may be NULL) gets why the reference
 * refuses it, td_bridge_refusal(), also where only its cp > 1 is in the way: that can be laid out,
 * though not yet run.
 */
td_status td_bridge_build(td_arena *a, const td_grid *src, const td_grid *dst, td_bridge *out,
                          const char **rule, td_err *err);

/* The sizes that decide whether a bridge is possible; wide, so that absurd plans can be judged. */
typedef struct {
    int64_t tp, cp, dp, pp, offset; /* sizes >= 1 */
} td_bridge_side;

/*
 * Why the reference refuses a bridge between disjoint grids: `src_cp_must_be_one`,
 * `dest_cp_must_be_one`, `leader_counts_not_divisible`, in this order; NULL if it does not.
 */
const char *td_bridge_refusal(const td_bridge_side *src, const td_bridge_side *dst);

/*
 * The same for two modules on the same ranks: `colocated_size_differs`, `colocated_offset_differs`,
 * `colocated_pp_must_be_one`, `colocated_cp_must_be_one`, `colocated_dp_not_divisible`.
 */
const char *td_bridge_colocated_refusal(const td_bridge_side *src, const td_bridge_side *dst);

/* ---- who does what ---- */

typedef enum {
    TD_BRIDGE_OUTSIDE,
    TD_BRIDGE_MEMBER,
    TD_BRIDGE_SENDER,
    TD_BRIDGE_RECEIVER,
    TD_N_BRIDGE_ROLES
} td_bridge_role;
/* NULL, MEMBER, SENDER, RECEIVER */
extern const char *const td_bridge_role_names[TD_N_BRIDGE_ROLES];

/* One rank's part in a bridge; a member has no messages. */
typedef struct {
    td_bridge_role role;
    bool in_src, in_dst;
    int32_t src_lane, dst_lane;  /* -1 outside that grid */
    bool src_boundary;           /* in its lane's group, which broadcasts gradients */
    bool dst_boundary;           /* in its lane's group, which broadcasts activations */
    int32_t first_pair, n_pairs; /* its messages */
} td_bridge_seat;

/* `src` and `dst` are the grids `b` was built from; any world rank. Allocates nothing. */
td_bridge_seat td_bridge_seat_of(const td_bridge *b, const td_grid *src, const td_grid *dst,
                                 int32_t rank);

/* ---- rows ---- */

typedef struct {
    int64_t first, last; /* half-open; rows are numbered over all source lanes, lane 0's first */
} td_rows;

/* One part of `rows` cut as evenly as possible: the first parts get one row more. */
td_rows td_rows_part(td_rows rows, int32_t n_parts, int32_t part);

/* Rows of each sample of a lane, each >= 0. */
typedef struct {
    int32_t n;
    const int64_t *row; /* [n]; NULL: the lane carries no sizes */
} td_bridge_split;

/*
 * What the source lanes hold. `splits` may be NULL; it is used where one lane is cut into several
 * parts: a whole number of samples for each, adding up to the lane's rows.
 */
typedef struct {
    const int64_t *lane_rows;      /* [n_src] each >= 0 */
    const td_bridge_split *splits; /* [n_src] */
} td_bridge_load;

/* What each message carries and each lane ends with (and broadcasts), in both directions. */
typedef struct {
    const td_rows *forward;  /* [n_pairs] */
    const td_rows *backward; /* [n_pairs] an even cut of what the destination holds */
    const td_rows *dst_rows; /* [n_dst] activations */
    const td_rows *src_rows; /* [n_src] gradients */
    /*
     * The gradient came back for the very rows that were sent. False where source lanes of unequal
     * length fan in, which the reference does not notice.
     */
    bool backward_matches_forward;
} td_bridge_rows;

/*
 * Fails with TD_PLAN, rule `split_metadata_count_mismatch` or `split_metadata_sum_mismatch`, and
 * TD_NOMEM. Empty parts are sent like any other.
 */
td_status td_bridge_share(td_arena *a, const td_bridge *b, const td_bridge_load *load,
                          td_bridge_rows *out, const char **rule, td_err *err);

#endif
