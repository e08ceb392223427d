/*
 * A plan while it is being built: what the file says, with the mappings it stands in, so that the
 * checks that follow can name the place. model/plan_read.c fills it, model/plan.c adds defaults and
 * model/plan_check.c judges it.
 */
#ifndef TANDEM_MODEL_PLAN_READ_H
#define TANDEM_MODEL_PLAN_READ_H

#include "model/fields.h"
#include "model/plan.h"

/* One module's mappings. `map` and `parallel` have no entries where they could not be read. */
typedef struct {
    td_map map, parallel;
    bool parallel_known; /* every size in `parallel` was readable and within its limits */
    td_pos key_at;
    td_pos stage_layers_at;
    const char *stage_layers_path;
    int32_t n_stage_layers; /* -1: not written */
    const int32_t *stage_layers;
} td_module_source;

typedef struct {
    td_reader *reader;
    td_plan plan;
    td_module *modules; /* plan.modules, still to be written; sizes that were not written are 0 */
    td_module_source *sources;
    /* Edge src -> dst is written where written[src][dst].file is not NULL. */
    td_pos (*written)[TD_MAX_MODULES];
    td_map root, step;
    td_pos modules_at;
    bool modules_cut; /* there are more than TD_MAX_MODULES; only the first ones were read */
    bool edges_written, edges_known; /* there is an `edges`; every row of it was readable */
} td_plan_draft;

/* Fills `d` from the root of a document. Everything wrong is in the reader's diags;
 * d->reader->failed: no memory. */
void td_plan_read(td_reader *r, const td_yaml *root, const char *file, td_plan_draft *d);

/* Adds what is wrong with a plan whose defaults stand, whatever is wrong with it already. */
void td_plan_check(td_plan_draft *d);

#endif
