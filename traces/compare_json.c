/* A comparison as one JSON object. What is not a number (no measurement, one step only) is null. */
#include "traces/compare_json.h"
#include "traces/compare_side.h"

#include <math.h>

enum { MOST_MICROBATCHES = 4096, MOST_PATH_OPS = 4096, MOST_STEPS = 4096 };

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static void set(json_t *to, const char *key, json_t *value)
{
    json_object_set_new(to, key, value);
}

static json_t *text_of(const char *text)
{
    json_t *t = json_string(text);
    return t == NULL ? json_string("?") : t; /* not UTF-8: the reader lets none in */
}

/* `predicted, measured, rel_error, noise` with this ending of the first two names. */
static json_t *put_pair(json_t *to, const td_pair *p, bool seconds)
{
    set(to, seconds ? "predicted_s" : "predicted", number(p->s[TD_PREDICTED]));
    set(to, seconds ? "measured_s" : "measured", number(p->s[TD_MEASURED]));
    set(to, "rel_error", number(p->rel_error));
    set(to, "noise", number(p->noise));
    return to;
}

static json_t *both(const double x[TD_N_SIDES])
{
    return json_pack("{s:o, s:o}", "predicted", number(x[TD_PREDICTED]), "measured",
                     number(x[TD_MEASURED]));
}

/* Every measured step, in order. */
static json_t *measured_json(const td_side *s)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < s->n_steps && i < MOST_STEPS; i++)
        json_array_append_new(all, number(s->step_s[i]));
    return all;
}

static json_t *step_json(const td_comparison *c)
{
    json_t *o = put_pair(json_object(), &c->step, false);
    set(o, "mad", number(c->step_mad_s));
    set(o, "measured_each", measured_json(c->side[TD_MEASURED]));
    set(o, "interval_90", json_pack("[f, f]", c->step_low_s, c->step_high_s));
    set(o, "steps",
        json_pack("{s:i, s:i}", "predicted", (int)c->n_steps[TD_PREDICTED], "measured",
                  (int)c->n_steps[TD_MEASURED]));
    set(o, "steps_examined",
        json_pack("{s:i, s:i}", "predicted", (int)c->n_examined[TD_PREDICTED], "measured",
                  (int)c->n_examined[TD_MEASURED]));
    return o;
}

static json_t *kinds_json(const td_comparison *c)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < c->n_kinds; i++) {
        const td_compare_kind *k = &c->kinds[i];
        json_t *o = json_pack("{s:s}", "kind", k->kind);
        put_pair(o, &k->work, true);
        set(o, "p50", number(k->p50));
        set(o, "p95", number(k->p95));
        set(o, "count", json_integer(k->count));
        set(o, "instant", json_integer(k->n_instant));
        set(o, "predicted_wait_s", number(k->wait_s[TD_PREDICTED]));
        set(o, "measured_wait_s", number(k->wait_s[TD_MEASURED]));
        json_array_append_new(all, o);
    }
    return all;
}

static json_t *parts_json(const td_comparison *c)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < c->n_parts; i++) {
        json_t *o = json_object();
        set(o, "kind", text_of(c->parts[i].kind));
        set(o, "module", text_of(c->parts[i].module));
        set(o, "count", json_integer(c->parts[i].count));
        json_array_append_new(all, put_pair(o, &c->parts[i].work, true));
    }
    return all;
}

static json_t *causes_json(const double s[TD_N_CAUSES])
{
    json_t *o = json_object();
    for (int i = 0; i < TD_N_CAUSES; i++)
        set(o, td_cause_names[i], number(s[i]));
    return o;
}

static json_t *still_json(const double s[TD_N_SIDES][TD_N_CAUSES])
{
    return json_pack("{s:o, s:o}", "predicted", causes_json(s[TD_PREDICTED]), "measured",
                     causes_json(s[TD_MEASURED]));
}

static json_t *ranks_json(const td_comparison *c)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < c->n_ranks; i++) {
        const td_compare_rank *r = &c->ranks[i];
        const struct {
            const char *name;
            const td_pair *pair;
        } shares[] = {{"busy_s", &r->busy},
                      {"transfer_s", &r->transfer},
                      {"collective_s", &r->collective},
                      {"bubble_s", &r->bubble}};
        json_t *o = json_pack("{s:i}", "rank", (int)r->rank);
        set(o, "module", text_of(r->module));
        set(o, "stage", json_integer(r->stage));
        for (size_t k = 0; k < sizeof shares / sizeof *shares; k++)
            set(o, shares[k].name, put_pair(json_object(), shares[k].pair, false));
        set(o, "bubbles", still_json(r->still_s));
        json_array_append_new(all, o);
    }
    return all;
}

static json_t *microbatches_json(const td_comparison *c)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < c->n_mbs && i < MOST_MICROBATCHES; i++)
        json_array_append_new(all, json_pack("{s:i, s:o, s:o}", "mb", (int)c->mbs[i].mb, "forward",
                                             put_pair(json_object(), &c->mbs[i].forward, true),
                                             "backward",
                                             put_pair(json_object(), &c->mbs[i].backward, true)));
    return all;
}

static json_t *path_op_json(const td_comparison *c, const struct td_path_op *p)
{
    const td_side *s = c->side[TD_PREDICTED];
    char name[96];
    td_side_name_op(s, s->first[p->rank] + p->op, name, sizeof name);
    return json_pack("{s:i, s:i, s:s, s:f}", "rank", (int)p->rank, "op", (int)p->op, "name", name,
                     "seconds", p->s);
}

static json_t *path_json(const td_comparison *c, int side)
{
    const td_compare_path *p = &c->path[side];
    json_t *kinds = json_object(), *ops = json_array();
    for (int k = 0; k < TD_N_OPS; k++)
        if (p->kind_s[k] > 0)
            set(kinds, td_op_table[k].name, number(p->kind_s[k]));
    for (int32_t i = 0; i < p->n_ops && i < MOST_PATH_OPS; i++)
        json_array_append_new(ops, path_op_json(c, &p->ops[i]));
    return json_pack("{s:f, s:f, s:f, s:f, s:o, s:i, s:o}", "compute_s", p->compute_s,
                     "collective_s", p->collective_s, "transfer_s", p->transfer_s, "wait_s",
                     p->wait_s, "by_kind", kinds, "n_ops", (int)p->n_ops, "ops", ops);
}

static json_t *items_json(const td_comparison *c)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < c->n_items; i++) {
        const td_compare_item *k = &c->items[i];
        json_t *o = json_object(), *ranks = json_array();
        for (int32_t r = 0; r < k->n_ranks; r++)
            json_array_append_new(ranks, json_integer(k->ranks[r]));
        set(o, "what", text_of(k->what));
        set(o, "predicted_s", number(k->path_s[TD_PREDICTED]));
        set(o, "measured_s", number(k->path_s[TD_MEASURED]));
        set(o, "difference_s", number(k->path_s[TD_MEASURED] - k->path_s[TD_PREDICTED]));
        set(o, "each_s", both(k->each_s));
        set(o, "beside_forward", number(k->beside_forward));
        set(o, "beside_backward", number(k->beside_backward));
        set(o, "ranks", ranks);
        json_array_append_new(all, o);
    }
    return all;
}

/* Where the paths part, walking back from the end; null if they never do. */
static json_t *parting_json(const td_comparison *c)
{
    const td_compare_path *p = &c->path[TD_PREDICTED], *m = &c->path[TD_MEASURED];
    json_t *o = NULL;
    if (c->n_common >= p->n_ops && c->n_common >= m->n_ops)
        return json_null();
    o = json_pack("{s:i}", "ops_in_common", (int)c->n_common);
    set(o, "predicted",
        c->n_common < p->n_ops ? path_op_json(c, &p->ops[c->n_common]) : json_null());
    set(o, "measured",
        c->n_common < m->n_ops ? path_op_json(c, &m->ops[c->n_common]) : json_null());
    return o;
}

static json_t *memory_json(const td_comparison *c)
{
    json_t *all = json_array();
    if (c->memory[TD_PREDICTED] == NULL && c->memory[TD_MEASURED] == NULL) {
        json_decref(all);
        return json_null();
    }
    for (int32_t r = 0; r < c->n_ranks; r++) {
        double bytes[TD_N_SIDES];
        for (int side = 0; side < TD_N_SIDES; side++)
            bytes[side] =
                c->memory[side] == NULL || c->memory[side][r] < 0 ? NAN : c->memory[side][r];
        json_t *o = json_pack("{s:i}", "rank", (int)r);
        set(o, "predicted", number(bytes[TD_PREDICTED]));
        set(o, "measured", number(bytes[TD_MEASURED]));
        set(o, "rel_error",
            number((bytes[TD_PREDICTED] - bytes[TD_MEASURED]) / bytes[TD_MEASURED]));
        json_array_append_new(all, o);
    }
    return all;
}

static json_t *worst_json(const td_comparison *c)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < c->n_worst; i++) {
        const td_compare_op *w = &c->worst[i];
        json_t *o =
            json_pack("{s:i, s:i, s:s, s:s, s:i, s:i}", "rank", (int)w->rank, "op", (int)w->op,
                      "kind", w->kind, "name", w->name, "stage", (int)w->stage, "mb", (int)w->mb);
        set(o, "module", text_of(w->module));
        put_pair(o, &w->work, true);
        set(o, "difference_s", number(w->work.s[TD_MEASURED] - w->work.s[TD_PREDICTED]));
        set(o, "predicted_wait_s", number(w->wait_s[TD_PREDICTED]));
        set(o, "measured_wait_s", number(w->wait_s[TD_MEASURED]));
        json_array_append_new(all, o);
    }
    return all;
}

/* What the profile was measured with and the measurement ran on, where they differ. */
static json_t *versions_json(const td_comparison *c)
{
    json_t *all = json_array();
    for (int32_t i = 0; i < c->n_versions; i++) {
        json_t *o = json_object();
        set(o, "what", text_of(c->versions[i].what));
        set(o, "profile", text_of(c->versions[i].profile));
        set(o, "measured", text_of(c->versions[i].measured));
        json_array_append_new(all, o);
    }
    return all;
}

static json_t *side_json(const td_side *s)
{
    json_t *o = json_object();
    set(o, "file", text_of(s->path));
    set(o, "backend", text_of(s->meta.backend));
    set(o, "plan", text_of(s->meta.plan));
    set(o, "profile", text_of(s->meta.profile));
    set(o, "trust", text_of(s->meta.trust));
    set(o, "version", text_of(s->meta.version));
    set(o, "clock_error_s", number(s->meta.clock_error_s));
    return o;
}

json_t *td_comparison_json(const td_comparison *c)
{
    json_t *o = json_object(), *path = json_object();
    set(o, "verdict", json_string(c->ok ? "ok" : "no"));
    set(o, "tolerance", number(c->tolerance));
    set(o, "summary", text_of(c->text));
    set(o, "step_s", step_json(c));
    set(o, "versions", versions_json(c));
    set(o, "bubble_fraction", both(c->bubble_fraction));
    set(o, "by_kind", kinds_json(c));
    if (c->n_parts > 0)
        set(o, "by_part", parts_json(c));
    set(o, "ranks", ranks_json(c));
    set(o, "bubbles", still_json(c->still_s));
    set(o, "microbatches", microbatches_json(c));
    set(path, "predicted", path_json(c, TD_PREDICTED));
    set(path, "measured", path_json(c, TD_MEASURED));
    set(path, "parting", parting_json(c));
    set(o, "critical_path", path);
    set(o, "attribution", items_json(c));
    set(o, "memory", memory_json(c));
    set(o, "worst_ops", worst_json(c));
    set(o, "digest", text_of(c->side[TD_PREDICTED]->meta.digest));
    set(o, "predicted", side_json(c->side[TD_PREDICTED]));
    set(o, "measured", side_json(c->side[TD_MEASURED]));
    return o;
}

td_status td_comparison_print_json(const td_comparison *c, FILE *out, td_err *err)
{
    td_status st = TD_OK;
    json_t *o = td_comparison_json(c);
    if (o == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the comparison as JSON"));
    json_dumpf(o, out, JSON_COMPACT); /* a full disk shows in ferror(out) */
    fputc('\n', out);
done:
    json_decref(o);
    return st;
}
