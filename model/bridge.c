/* Lanes, leaders and rows follow from the two grids by arithmetic alone; nothing here walks over
 * the ranks of a module. */
#include "model/bridge.h"

const char *const td_bridge_role_names[TD_N_BRIDGE_ROLES] = {
    [TD_BRIDGE_MEMBER] = "MEMBER",
    [TD_BRIDGE_SENDER] = "SENDER",
    [TD_BRIDGE_RECEIVER] = "RECEIVER",
};

static bool divisible(int64_t a, int64_t b)
{
    return a % b == 0 || b % a == 0;
}

const char *td_bridge_refusal(const td_bridge_side *src, const td_bridge_side *dst)
{
    return src->cp != 1                   ? "src_cp_must_be_one"
           : dst->cp != 1                 ? "dest_cp_must_be_one"
           : !divisible(src->dp, dst->dp) ? "leader_counts_not_divisible"
                                          : NULL;
}

/* a * b for sizes >= 1, INT64_MAX where that is too small. */
static int64_t times(int64_t a, int64_t b)
{
    return a > INT64_MAX / b ? INT64_MAX : a * b;
}

static int64_t ranks_of(const td_bridge_side *s)
{
    return times(times(s->tp, s->cp), times(s->dp, s->pp));
}

const char *td_bridge_colocated_refusal(const td_bridge_side *src, const td_bridge_side *dst)
{
    return ranks_of(src) != ranks_of(dst) ? "colocated_size_differs"
           : src->offset != dst->offset   ? "colocated_offset_differs"
           : src->pp != 1 || dst->pp != 1 ? "colocated_pp_must_be_one"
           : src->cp != 1 || dst->cp != 1 ? "colocated_cp_must_be_one"
           : !divisible(src->dp, dst->dp) ? "colocated_dp_not_divisible"
                                          : NULL;
}

static td_bridge_side side_of(const td_grid *g)
{
    return (td_bridge_side){.tp = td_grid_extent(g, TD_AXIS_TP),
                            .cp = td_grid_extent(g, TD_AXIS_CP),
                            .dp = td_grid_extent(g, TD_AXIS_DP),
                            .pp = td_grid_extent(g, TD_AXIS_PP),
                            .offset = g->first};
}

/*
 * Leaders and groups of all lanes of one side. The leader's coordinates are the greatest (source)
 * or least (destination) on every axis but dp; its group varies tp and cp around it.
 */
static td_status lanes_of(td_arena *a, const td_grid *g, bool source, const int32_t **leaders,
                          td_rank_lists *groups, td_err *err)
{
    td_status st = TD_OK;
    const int32_t n = td_grid_extent(g, TD_AXIS_DP), tp = td_grid_extent(g, TD_AXIS_TP),
                  cp = td_grid_extent(g, TD_AXIS_CP);
    int32_t *leader = TD_NEW(a, int32_t, n);
    int32_t *ranks = TD_NEW(a, int32_t, (int64_t)n * tp * cp);
    if (leader == NULL || ranks == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the %d lanes of a bridge", (int)n));

    td_coord c = {0};
    for (int32_t d = 0; d < g->n_axes && source; d++)
        c.c[g->axis[d]] = g->extent[d] - 1;
    for (int32_t lane = 0; lane < n; lane++) {
        td_coord at = c;
        at.c[TD_AXIS_DP] = lane;
        TD_TRY(st, td_grid_rank(g, at, &leader[lane], err));
        int32_t *group = ranks + (int64_t)lane * tp * cp;
        for (int32_t i = 0; i < tp * cp; i++) {
            at.c[TD_AXIS_TP] = i % tp;
            at.c[TD_AXIS_CP] = i / tp;
            TD_TRY(st, td_grid_rank(g, at, &group[i], err));
        }
    }
    *leaders = leader;
    *groups = (td_rank_lists){.n_lists = n, .n_ranks = tp * cp, .ranks = ranks};
done:
    return st;
}

td_status td_bridge_build(td_arena *a, const td_grid *src, const td_grid *dst, td_bridge *out,
                          const char **rule, td_err *err)
{
    td_status st = TD_OK;
    td_bridge b = {.n_src = td_grid_extent(src, TD_AXIS_DP),
                   .n_dst = td_grid_extent(dst, TD_AXIS_DP)};
    const td_bridge_side from = side_of(src), to = side_of(dst);
    if (rule != NULL)
        *rule = td_bridge_refusal(&from, &to);
    if (!divisible(from.dp, to.dp))
        TD_TRY(
            st,
            td_fail(err, TD_PLAN,
                    "a bridge from dp %lld to dp %lld is not possible: one must divide the other",
                    (long long)from.dp, (long long)to.dp));
    TD_TRY(st, lanes_of(a, src, true, &b.src_leader, &b.src_group, err));
    TD_TRY(st, lanes_of(a, dst, false, &b.dst_leader, &b.dst_group, err));
    b.n_pairs = b.n_src > b.n_dst ? b.n_src : b.n_dst;
    b.parts_per_src = b.n_pairs / b.n_src;
    b.parts_per_dst = b.n_pairs / b.n_dst;
    td_bridge_pair *pairs = TD_NEW(a, td_bridge_pair, b.n_pairs);
    if (pairs == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for the %d messages of a bridge", (int)b.n_pairs));
    for (int32_t i = 0; i < b.n_pairs; i++)
        pairs[i] = (td_bridge_pair){.src = i / b.parts_per_src,
                                    .dst = i / b.parts_per_dst,
                                    .part = i % (b.parts_per_src * b.parts_per_dst)};
    b.pairs = pairs;
    *out = b;
done:
    return st;
}

/* Lane of a rank on one side, or -1; `boundary` says whether it is in its lane's group. */
static int32_t lane_of(const td_grid *g, const td_rank_lists *groups, int32_t rank, bool *boundary)
{
    td_coord c;
    *boundary = false;
    if (td_grid_coord(g, rank, &c, NULL) != TD_OK)
        return -1;
    const int32_t lane = c.c[TD_AXIS_DP];
    const int32_t *group = groups->ranks + (int64_t)lane * groups->n_ranks;
    for (int32_t i = 0; i < groups->n_ranks && !*boundary; i++)
        *boundary = group[i] == rank;
    return lane;
}

td_bridge_seat td_bridge_seat_of(const td_bridge *b, const td_grid *src, const td_grid *dst,
                                 int32_t rank)
{
    td_bridge_seat s = {.role = TD_BRIDGE_OUTSIDE};
    s.src_lane = lane_of(src, &b->src_group, rank, &s.src_boundary);
    s.dst_lane = lane_of(dst, &b->dst_group, rank, &s.dst_boundary);
    s.in_src = s.src_lane >= 0;
    s.in_dst = s.dst_lane >= 0;
    if (s.in_src && b->src_leader[s.src_lane] == rank) {
        s.role = TD_BRIDGE_SENDER;
        s.n_pairs = b->parts_per_src;
        s.first_pair = s.src_lane * s.n_pairs;
    } else if (s.in_dst && b->dst_leader[s.dst_lane] == rank) {
        s.role = TD_BRIDGE_RECEIVER;
        s.n_pairs = b->parts_per_dst;
        s.first_pair = s.dst_lane * s.n_pairs;
    } else if (s.in_src || s.in_dst) {
        s.role = TD_BRIDGE_MEMBER;
    }
    return s;
}

td_rows td_rows_part(td_rows rows, int32_t n_parts, int32_t part)
{
    const int64_t n = rows.last - rows.first, each = n / n_parts, more = n % n_parts;
    const int64_t first = rows.first + part * each + (part < more ? part : more);
    return (td_rows){first, first + each + (part < more)};
}

/* Cuts one source lane by its samples' sizes: the same number of samples for every part. */
static td_status cut_by_samples(const td_bridge_split *split, td_rows lane, int32_t n_parts,
                                td_rows *parts, const char **rule, td_err *err)
{
    td_status st = TD_OK;
    const char *refusal = NULL;
    if (split->n == 0 || split->n % n_parts != 0) {
        refusal = "split_metadata_count_mismatch";
        TD_TRY(st, td_fail(err, TD_PLAN, "%d sample sizes cannot be shared by %d destinations",
                           (int)split->n, (int)n_parts));
    }
    int64_t at = lane.first;
    for (int32_t part = 0, i = 0; part < n_parts; part++) {
        parts[part].first = at;
        for (int32_t k = 0; k < split->n / n_parts; k++, i++) /* too far is wrong, however far */
            at = split->row[i] > lane.last - at ? INT64_MAX : at + split->row[i];
        parts[part].last = at;
    }
    if (at != lane.last) {
        refusal = "split_metadata_sum_mismatch";
        TD_TRY(st,
               td_fail(err, TD_PLAN, "the sample sizes of a lane do not sum up to its %lld rows",
                       (long long)(lane.last - lane.first)));
    }
done:
    if (rule != NULL)
        *rule = refusal;
    return st;
}

td_status td_bridge_share(td_arena *a, const td_bridge *b, const td_bridge_load *load,
                          td_bridge_rows *out, const char **rule, td_err *err)
{
    td_status st = TD_OK;
    td_rows *forward = TD_NEW(a, td_rows, b->n_pairs), *backward = TD_NEW(a, td_rows, b->n_pairs);
    td_rows *src_rows = TD_NEW(a, td_rows, b->n_src), *dst_rows = TD_NEW(a, td_rows, b->n_dst);
    if (forward == NULL || backward == NULL || src_rows == NULL || dst_rows == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the rows of a bridge"));
    if (rule != NULL)
        *rule = NULL;

    int64_t at = 0;
    for (int32_t s = 0; s < b->n_src; s++) {
        const td_rows lane = {at, at + load->lane_rows[s]};
        td_rows *parts = forward + s * b->parts_per_src;
        at = lane.last;
        if (b->parts_per_src > 1 && load->splits != NULL && load->splits[s].row != NULL)
            TD_TRY(st, cut_by_samples(&load->splits[s], lane, b->parts_per_src, parts, rule, err));
        else
            for (int32_t i = 0; i < b->parts_per_src; i++)
                parts[i] = td_rows_part(lane, b->parts_per_src, i);
    }
    bool matches = true;
    for (int32_t d = 0; d < b->n_dst; d++) {
        const int32_t first = d * b->parts_per_dst, last = first + b->parts_per_dst - 1;
        dst_rows[d] = (td_rows){forward[first].first, forward[last].last};
        for (int32_t i = first; i <= last; i++) {
            backward[i] = td_rows_part(dst_rows[d], b->parts_per_dst, i - first);
            matches = matches && backward[i].first == forward[i].first &&
                      backward[i].last == forward[i].last;
        }
    }
    for (int32_t s = 0; s < b->n_src; s++) {
        const int32_t first = s * b->parts_per_src, last = first + b->parts_per_src - 1;
        src_rows[s] = (td_rows){backward[first].first, backward[last].last};
    }
    *out = (td_bridge_rows){.forward = forward,
                            .backward = backward,
                            .dst_rows = dst_rows,
                            .src_rows = src_rows,
                            .backward_matches_forward = matches};
done:
    return st;
}
