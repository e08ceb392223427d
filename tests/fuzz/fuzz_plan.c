/* Whatever the bytes: a plan is read within its bounds, or refused with a sentence; never both,
 * never neither. */
#include "model/plan.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/*
 * libfyaml 0.7.12 loses a small buffer while it scans single-quoted text with many quotes in a row
 * (''''''''''''). That we give back what we take from it is seen by the unit tests, which run
 * without this.
 */
const char *__lsan_default_suppressions(void);

const char *__lsan_default_suppressions(void)
{
    return "leak:libfyaml";
}

static void expect(int holds)
{
    if (!holds)
        abort();
}

/* What model/plan.h promises of every plan, wrong ones included. */
static void check_promises(const td_plan *plan, const td_diags *diags)
{
    expect(plan->name != NULL && plan->file != NULL && plan->step.schedule != NULL);
    expect(plan->cluster != NULL || diags->n_errors > 0);
    expect(plan->language >= 0 || diags->n_errors > 0);
    expect(plan->world_size >= 0);
    for (int32_t i = 0; i < plan->n_modules; i++) {
        const td_module *m = &plan->modules[i];
        int64_t layers = 0;
        expect(m->name != NULL && td_plan_module(plan, m->name) >= 0);
        for (int32_t p = 0; p < m->pp; p++)
            layers += m->stage_layers[p];
        expect(m->grid.n_axes == 4 && m->expert.n_axes == 4 && td_grid_size(&m->grid) >= 1);
        if (diags->n_errors == 0) {
            expect(m->type != NULL && layers == m->layers);
            expect(td_grid_size(&m->grid) == td_grid_size(&m->expert));
            expect(td_plan_lane_samples(plan, i) >= 1);
        }
    }
    for (int32_t e = 0; e < plan->n_edges; e++)
        expect(plan->edges[e].src < plan->n_modules && plan->edges[e].dst < plan->n_modules);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    td_arena *a = td_arena_new();
    td_diags diags = {.arena = a};
    const td_plan *plan = NULL;
    td_err err = {TD_OK, ""};
    const td_status st =
        td_plan_parse(a, "fuzz/plan.yaml", (const char *)data, size, &diags, &plan, &err);
    if (st == TD_OK) {
        check_promises(plan, &diags);
        (void)td_plan_executable(plan, NULL);
    } else {
        expect(st == TD_FILE && plan == NULL && strlen(err.text) > strlen("fuzz/plan.yaml"));
    }
    for (const td_diag *one = diags.head; one != NULL; one = one->next)
        expect(strlen(td_diag_text(&diags, one)) > 0 && strlen(one->rule) > 0);
    td_arena_free(a);
    return 0;
}
