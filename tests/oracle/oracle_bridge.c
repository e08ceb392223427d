/* bridge.json: leaders, roles, messages, broadcasts and rows between two disjoint grids, forward
 * and backward. */
#include "tests/oracle/oracle.h"

#include "model/bridge.h"

#include <string.h>

static json_t *rows_json(td_rows rows)
{
    const td_rows shown =
        rows.first == rows.last ? (td_rows){0, 0} : rows; /* as the file writes an empty range */
    json_t *pair = json_array();
    oracle_append(pair, json_integer(shown.first));
    oracle_append(pair, json_integer(shown.last));
    return pair;
}

static json_t *group_json(const td_rank_lists *groups, int32_t lane)
{
    return oracle_ranks(groups->ranks + (int64_t)lane * groups->n_ranks, groups->n_ranks);
}

static json_t *broadcasts(const td_rank_lists *groups, const int32_t *leaders, const td_rows *rows)
{
    json_t *all = json_array();
    for (int32_t lane = 0; lane < groups->n_lists; lane++) {
        json_t *one = json_object();
        oracle_set(one, "root", json_integer(leaders[lane]));
        oracle_set(one, "group", group_json(groups, lane));
        oracle_set(one, "rows", rows_json(rows[lane]));
        oracle_append(all, one);
    }
    return all;
}

static json_t *messages(const td_bridge *b, bool forward, const td_rows *rows)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < b->n_pairs; i++) {
        json_t *one = json_object();
        const int32_t src = b->src_leader[b->pairs[i].src], dst = b->dst_leader[b->pairs[i].dst];
        oracle_set(one, "from", json_integer(forward ? src : dst));
        oracle_set(one, "to", json_integer(forward ? dst : src));
        oracle_set(one, "rows", rows_json(rows[i]));
        oracle_append(all, one);
    }
    return all;
}

static json_t *leader_json(int32_t lane, const int32_t *leaders)
{
    return lane < 0 ? json_null() : json_integer(leaders[lane]);
}

static json_t *rank_json(const td_bridge *b, const td_bridge_rows *rows, const td_bridge_seat *s,
                         int32_t rank)
{
    json_t *one = json_object(), *send_to = json_array(), *recv_from = json_array();
    const char *role = td_bridge_role_names[s->role];
    for (int32_t i = s->first_pair; i < s->first_pair + s->n_pairs; i++) {
        if (s->role == TD_BRIDGE_SENDER)
            oracle_append(send_to, json_integer(b->dst_leader[b->pairs[i].dst]));
        else
            oracle_append(recv_from, json_integer(b->src_leader[b->pairs[i].src]));
    }
    oracle_set(one, "rank", json_integer(rank));
    oracle_set(one, "in_src", json_boolean(s->in_src));
    oracle_set(one, "in_dest", json_boolean(s->in_dst));
    oracle_set(one, "role", role != NULL ? json_string(role) : json_null());
    oracle_set(one, "send_to", send_to);
    oracle_set(one, "recv_from", recv_from);
    oracle_set(one, "src_leader", leader_json(s->src_lane, b->src_leader));
    oracle_set(one, "dest_leader", leader_json(s->dst_lane, b->dst_leader));
    oracle_set(one, "src_bcast_group",
               s->src_boundary ? group_json(&b->src_group, s->src_lane) : json_array());
    oracle_set(one, "dest_bcast_group",
               s->dst_boundary ? group_json(&b->dst_group, s->dst_lane) : json_array());
    if (s->src_boundary)
        oracle_set(one, "backward_rows", rows_json(rows->src_rows[s->src_lane]));
    if (s->dst_boundary)
        oracle_set(one, "forward_rows", rows_json(rows->dst_rows[s->dst_lane]));
    return one;
}

static void answer(oracle_case *c, const td_bridge *b, const td_bridge_rows *rows,
                   const td_grid *src, const td_grid *dst)
{
    json_t *forward = json_object(), *backward = json_object(), *ranks = json_array();
    oracle_set(forward, "p2p", messages(b, true, rows->forward));
    oracle_set(forward, "broadcast", broadcasts(&b->dst_group, b->dst_leader, rows->dst_rows));
    oracle_set(backward, "p2p", messages(b, false, rows->backward));
    oracle_set(backward, "broadcast", broadcasts(&b->src_group, b->src_leader, rows->src_rows));
    for (int32_t rank = 0; rank < oracle_int(c->json, "world_size", 0); rank++) {
        const td_bridge_seat seat = td_bridge_seat_of(b, src, dst, rank);
        oracle_append(ranks, rank_json(b, rows, &seat, rank));
    }
    oracle_set(c->got, "src_leaders", oracle_ranks(b->src_leader, b->n_src));
    oracle_set(c->got, "dest_leaders", oracle_ranks(b->dst_leader, b->n_dst));
    oracle_set(c->got, "forward", forward);
    oracle_set(c->got, "backward", backward);
    oracle_set(c->got, "ranks", ranks);
    oracle_set(c->got, "shape_messages_forward", json_integer(b->n_pairs));
    oracle_set(c->got, "shape_messages_backward", json_integer(b->n_pairs));
    oracle_set(c->got, "backward_matches_forward", json_boolean(rows->backward_matches_forward));
    oracle_set(c->got, "result", json_string("ok"));
}

static void refused(oracle_case *c, const char *stage, const char *rule)
{
    oracle_set(c->got, "result", json_string("error"));
    oracle_set(c->got, "stage", json_string(stage));
    oracle_set(c->got, "rule", json_string(rule));
}

/* The numbers of a JSON array; NULL if it is none. */
static const int64_t *numbers(oracle_case *c, const json_t *array)
{
    int64_t *out = json_is_array(array) ? TD_NEW(c->arena, int64_t, json_array_size(array)) : NULL;
    for (size_t i = 0; out != NULL && i < json_array_size(array); i++)
        out[i] = json_integer_value(json_array_get(array, i));
    return out;
}

/* What the lanes of the source hold; false if the case does not say it for every lane. */
static bool read_load(oracle_case *c, int32_t n_src, td_bridge_load *out)
{
    const json_t *rows = json_object_get(c->json, "rows_per_src_lane");
    const json_t *sizes = json_object_get(c->json, "split_sizes");
    td_bridge_split *splits = TD_NEW(c->arena, td_bridge_split, n_src);
    if (splits == NULL || json_array_size(rows) != (size_t)n_src)
        return false;
    for (int32_t lane = 0; lane < n_src; lane++) {
        const json_t *lane_sizes = json_array_get(sizes, (size_t)lane);
        splits[lane] =
            (td_bridge_split){(int32_t)json_array_size(lane_sizes), numbers(c, lane_sizes)};
    }
    *out = (td_bridge_load){.lane_rows = numbers(c, rows), .splits = splits};
    return out->lane_rows != NULL;
}

static td_status run(oracle_case *c, td_err *err)
{
    td_status st = TD_OK;
    const char *layout = oracle_text(c->json, "layout"), *rule = NULL;
    td_grid src, dst;
    td_bridge bridge;
    td_bridge_load load;
    td_bridge_rows rows;
    if (strcmp(oracle_text(c->json, "kind"), "same_ranks") == 0) {
        c->skip = "same_ranks";
        goto done;
    }
    if (!oracle_grid(c, layout, json_object_get(c->json, "src"), &src) ||
        !oracle_grid(c, layout, json_object_get(c->json, "dest"), &dst))
        goto done;
    st = td_bridge_build(c->arena, &src, &dst, &bridge, &rule, err);
    if (rule != NULL) {
        refused(c, "construct", rule);
        st = TD_OK;
        goto done;
    }
    if (st != TD_OK)
        goto done;
    if (!read_load(c, bridge.n_src, &load)) {
        c->broken = "rows_per_src_lane does not match the source's lanes";
        goto done;
    }
    st = td_bridge_share(c->arena, &bridge, &load, &rows, &rule, err);
    if (rule != NULL) {
        refused(c, "communicate", rule);
        st = TD_OK;
        goto done;
    }
    if (st != TD_OK)
        goto done;
    answer(c, &bridge, &rows, &src, &dst);
done:
    return st;
}

static const char *const inputs[] = {
    "id",          "kind",        "layout",     "world_size", "src",
    "dest",        "tensor_ndim", "batch_axis", "note",       "rows_per_src_lane",
    "split_sizes", "calls",       NULL};

const oracle_suite oracle_bridge = {.name = "bridge", .inputs = inputs, .run = run};
