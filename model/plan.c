/* From a file to a plan: reading, defaults, judgement; and the few questions that everybody asks a
 * plan. */
#include "model/plan.h"

#include "model/plan_read.h"

#include <string.h>

int32_t td_plan_module(const td_plan *plan, const char *name)
{
    for (int32_t i = 0; i < plan->n_modules; i++)
        if (strcmp(plan->modules[i].name, name) == 0)
            return i;
    return -1;
}

int32_t td_plan_lane_samples(const td_plan *plan, int32_t m)
{
    const int64_t samples = (int64_t)plan->step.micro_batch * plan->modules[plan->language].dp;
    return (int32_t)(samples / plan->modules[m].dp);
}

td_status td_plan_executable(const td_plan *plan, td_err *err)
{
    for (int32_t i = 0; i < plan->n_modules; i++) {
        const td_module *m = &plan->modules[i];
        const struct {
            const char *key, *what;
            int32_t is, expected;
        } rows[] = {{"cp", "context parallelism", m->cp, 1},
                    {"ep", "expert parallelism", m->ep, 1},
                    {"etp", "an expert tensor-parallel size other than tp", m->etp, m->tp}};
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
            if (rows[k].is != rows[k].expected)
                return td_fail(
                    err, TD_PLAN,
                    "%s:%d:%d: modules.%s.parallel: %s is %d: %s is laid out and checked, "
                    "but cannot be predicted or run yet; expected %d",
                    m->parallel_at.file, m->parallel_at.line, m->parallel_at.column, m->name,
                    rows[k].key, rows[k].is, rows[k].what, rows[k].expected);
    }
    return TD_OK;
}

/* ---- defaults ---- */

/* As written if that has the right length, else as even as it gets; a wrong split is judged later.
 */
static void fill_stage_layers(td_reader *r, td_module *m, const td_module_source *source)
{
    if (source->n_stage_layers == m->pp) {
        m->stage_layers = source->stage_layers;
        return;
    }
    int32_t *layers = td_reader_alloc(r, m->pp, sizeof *layers);
    if (layers == NULL)
        return;
    for (int32_t p = 0; p < m->pp; p++)
        layers[p] = m->layers / m->pp + (p < m->layers % m->pp);
    m->stage_layers = layers;
}

/* The second factoring has its axes where the first has theirs: expt_tp for tp, ep for cp, expt_dp
 * for dp. */
static void fill_grids(td_module *m, const td_axis order[4])
{
    const int32_t dense[TD_N_AXES] = {
        [TD_AXIS_TP] = m->tp, [TD_AXIS_CP] = m->cp, [TD_AXIS_DP] = m->dp, [TD_AXIS_PP] = m->pp};
    static const td_axis other[TD_N_AXES] = {[TD_AXIS_TP] = TD_AXIS_EXPT_TP,
                                             [TD_AXIS_CP] = TD_AXIS_EP,
                                             [TD_AXIS_DP] = TD_AXIS_EXPT_DP,
                                             [TD_AXIS_PP] = TD_AXIS_PP};
    const int64_t lane = (int64_t)m->tp * m->cp, experts = (int64_t)m->etp * m->ep;
    const int64_t ranks = lane > INT64_MAX / m->dp ? INT64_MAX : lane * m->dp;
    const int64_t expt_dp = ranks / experts;
    const int32_t expert[TD_N_AXES] = {
        [TD_AXIS_EXPT_TP] = m->etp,
        [TD_AXIS_EP] = m->ep,
        [TD_AXIS_EXPT_DP] = expt_dp < 1 || expt_dp > TD_MAX_RANKS ? 1 : (int32_t)expt_dp,
        [TD_AXIS_PP] = m->pp};
    m->grid = m->expert = (td_grid){.first = m->offset, .n_axes = 4};
    for (int32_t i = 0; i < 4; i++) {
        m->grid.axis[i] = order[i];
        m->grid.extent[i] = dense[order[i]];
        m->expert.axis[i] = other[order[i]];
        m->expert.extent[i] = expert[other[order[i]]];
    }
}

static void fill_module(td_plan_draft *d, int32_t i)
{
    td_module *m = &d->modules[i];
    if (m->kv_heads == 0)
        m->kv_heads = m->heads;
    if (m->head_dim == 0 && m->heads > 0)
        m->head_dim = m->hidden / m->heads;
    fill_stage_layers(d->reader, m, &d->sources[i]);
    fill_grids(m, d->plan.rank_order);
    const int64_t size = td_grid_size(&m->grid);
    const int64_t end = size > TD_MAX_RANKS ? INT64_C(2) * TD_MAX_RANKS : m->offset + size;
    if (end > d->plan.world_size)
        d->plan.world_size = end;
}

/* Sorted by the order of the modules, because the schedule goes by that. */
static void fill_edges(td_plan_draft *d)
{
    td_plan *plan = &d->plan;
    td_edge *edges =
        td_reader_alloc(d->reader, (int64_t)plan->n_modules * plan->n_modules, sizeof *edges);
    plan->edges = edges;
    if (edges == NULL)
        return;
    for (int32_t s = 0; s < plan->n_modules; s++) {
        for (int32_t t = 0; t < plan->n_modules; t++) {
            const bool usual = t == plan->language && s != t;
            if (d->edges_written ? d->written[s][t].file != NULL : usual)
                edges[plan->n_edges++] = (td_edge){s, t};
        }
    }
}

/* ---- the way in ---- */

/* What made the file unreadable, as the failure of the call. */
static td_status unreadable(const td_diags *found, const char *name, td_err *err)
{
    if (found->head == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory for the plan", name);
    return td_fail(err, TD_FILE, "%s", td_diag_text(found, found->head));
}

static td_status build(td_arena *a, const char *name, const td_yaml *root, td_diags *diags,
                       const td_plan **out, td_err *err)
{
    td_status st = TD_OK;
    td_reader reader = {.arena = a, .diags = diags};
    td_plan_draft d;
    if (td_yaml_value(root)->kind != TD_YAML_MAPPING)
        TD_TRY(st, td_fail(err, TD_FILE,
                           "%s:%d:%d: %s; expected a mapping with `modules` and `cluster`", name,
                           root->at.line, root->at.column, td_value_describe(&reader, root)));
    td_plan_read(&reader, root, name, &d);
    td_plan *plan = td_reader_alloc(&reader, 1, sizeof *plan);
    if (reader.failed)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for the plan", name));
    for (int32_t i = 0; i < d.plan.n_modules; i++)
        fill_module(&d, i);
    fill_edges(&d);
    td_plan_check(&d);
    if (reader.failed)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for the plan", name));
    *plan = d.plan;
    *out = plan;
done:
    return st;
}

td_status td_plan_parse(td_arena *a, const char *name, const char *text, size_t size,
                        td_diags *diags, const td_plan **out, td_err *err)
{
    const td_yaml *root = NULL;
    td_diags found = {.arena = a};
    const char *file = td_arena_printf(a, "%s", name); /* places outlive the caller's name */
    if (file == NULL || td_yaml_parse(a, file, text, size, &found, &root) != TD_OK)
        return unreadable(&found, name, err);
    return build(a, file, root, diags, out, err);
}

td_status td_plan_load(td_arena *a, const char *path, td_diags *diags, const td_plan **out,
                       td_err *err)
{
    const td_yaml *root = NULL;
    td_diags found = {.arena = a};
    const char *file = td_arena_printf(a, "%s", path);
    if (file == NULL || td_yaml_load(a, file, &found, &root) != TD_OK)
        return unreadable(&found, path, err);
    return build(a, file, root, diags, out, err);
}
