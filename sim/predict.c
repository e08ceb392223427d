/* Price list, event loop, clocks, and the numbers a planner asks for. */
#include "sim/predict.h"
#include "model/flops.h"

#include <math.h>

/* Rounds of schedule -> heat -> clocks; the map is a contraction, a handful is enough. */
enum { MAX_ROUNDS = 12 };
static const double settled_at = 1e-4; /* change of any op's clock; the step moves by less */

/* The clocks that a timeline causes, by class; returns the largest change of any op's time. */
static td_status clocks_of(td_arena *a, td_prediction *out, const double *const *stretch,
                           double *moved, td_err *err)
{
    td_status st = TD_OK;
    const td_timeline *t = out->timeline;
    td_clocks *clocks = TD_NEW(a, td_clocks, t->n_classes);
    if (clocks == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for clocks"));
    *moved = 0;
    for (int32_t c = 0; c < t->n_classes; c++) {
        const double *before = stretch[t->rep[c]];
        TD_TRY(st, td_clocks_of(a, t, out->costs, c, &clocks[c], err));
        for (int32_t i = 0; i < td_program_stream(t->program, t->rep[c])->n_ops; i++)
            *moved = fmax(*moved, fabs(clocks[c].stretch[i] - (before == NULL ? 1 : before[i])));
    }
    out->class_clocks = clocks;
done:
    return st;
}

/*
 * Runs the step again and again at the clocks that its own heat causes, until they stay; `stretch`
 * [world_size] holds those to begin with. The last timeline and the clocks that it causes live in
 * `a`.
 */
static td_status settle(td_arena *a, const td_topology *topo, const td_engine_options *e,
                        const double **stretch, td_prediction *out, td_err *err)
{
    td_status st = TD_OK;
    const td_prices prices = td_prices_of(out->costs);
    td_arena *last = NULL, *round = NULL; /* each holds a timeline and the clocks that follow */
    out->settled = false;
    for (int32_t i = 0; i < MAX_ROUNDS && !out->settled; i++) {
        double moved = 0;
        for (int32_t r = 0; i > 0 && r < out->program->world_size; r++)
            stretch[r] = out->class_clocks[out->timeline->class_of[r]].stretch;
        round = td_arena_new();
        if (round == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a timeline"));
        TD_TRY(st, td_engine_run(round, out->program, topo, &prices, e, &out->timeline, err));
        TD_TRY(st, clocks_of(round, out, stretch, &moved, err));
        td_arena_free(last); /* with the clocks of this run */
        last = round;
        round = NULL;
        out->n_rounds++;
        out->settled = moved < settled_at;
    }
    td_arena_adopt(a, last);
    last = NULL;
done:
    td_arena_free(last);
    td_arena_free(round);
    return st;
}

/* Alike ranks once and links to themselves first: cheap, and most of the way. */
static td_status settle_clocks(td_arena *a, const td_topology *topo, const td_predict_options *o,
                               td_prediction *out, td_err *err)
{
    td_status st = TD_OK;
    td_arena *first = td_arena_new();
    const double **stretch = TD_NEW(a, const double *, out->program->world_size);
    td_engine_options e = {.flows = TD_FLOWS_IDEAL, .stretch = stretch, .cores = out->cores};
    if (stretch == NULL || first == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for %d clocks", (int)out->program->world_size));
    st = settle(first, topo, &e, stretch, out, err);
    if (st == TD_RUN) { /* nothing but waits for one another can stop an ideal network */
        if (err != NULL)
            *err = (td_err){0};
        e.buffered_sends = true;
        st = settle(first, topo, &e, stretch, out, err);
    }
    TD_TRY(st, st);
    e.flows = o->flows;
    e.net = o->net;
    e.no_fold = o->no_fold;
    for (int32_t r = 0; r < out->program->world_size; r++)
        stretch[r] = out->class_clocks[out->timeline->class_of[r]].stretch;
    TD_TRY(st, settle(a, topo, &e, stretch, out, err));
done:
    td_arena_free(first);
    return st;
}

static td_status remember_memory(td_arena *a, const td_plan *plan, td_prediction *out, td_err *err)
{
    td_status st = TD_OK;
    td_pipeline pipe;
    td_memory **memory = TD_NEW(a, td_memory *, plan->n_modules);
    TD_TRY(st, td_pipeline_of_plan(a, plan, &pipe, err));
    if (memory == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the memory model"));
    for (int32_t m = 0; m < plan->n_modules; m++) {
        memory[m] = TD_NEW(a, td_memory, plan->modules[m].pp);
        if (memory[m] == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the memory model"));
        for (int32_t s = 0; s < plan->modules[m].pp; s++)
            TD_TRY(st, td_memory_of_stage(a, plan, &pipe, m, s, &memory[m][s], err));
    }
    out->memory = (const td_memory *const *)memory;
done:
    return st;
}

static td_status summarize(td_arena *a, const td_program *p, td_prediction *out, td_err *err)
{
    td_status st = TD_OK;
    const td_timeline *t = out->timeline;
    const td_plan *plan = p->plan;
    const td_module *language = &plan->modules[plan->language];
    td_rank_time *time = TD_NEW(a, td_rank_time, t->n_classes);
    double peak = 0, bubble = 0;
    if (time == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the summary"));
    for (int32_t c = 0; c < t->n_classes; c++)
        td_rank_time_of(t, out->costs, c, &time[c]);
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_profile *gpu = td_costs_profile(out->costs, r);
        peak += plan->precision == TD_BF16 ? gpu->bf16_flops_per_s : gpu->fp32_flops_per_s;
        bubble += time[t->class_of[r]].bubble_s;
    }
    TD_TRY(st, td_plan_flops(a, plan, &out->flops_per_step, err));
    out->class_time = time;
    out->step_s = t->step_s;
    if (t->step_s > 0) {
        out->tokens_per_s = (double)plan->step.microbatches * plan->step.micro_batch *
                            language->dp * language->seq / t->step_s;
        out->mfu = out->flops_per_step / (t->step_s * peak);
        out->bubble_fraction = bubble / (t->step_s * p->world_size);
    }
    TD_TRY(st, td_critical_path_of(a, t, out->costs, &out->path, err));
done:
    return st;
}

td_status td_predict(td_arena *a, const td_program *p, const td_predict_options *o,
                     td_prediction *out, td_err *err)
{
    td_status st = TD_OK;
    td_topology *topo;
    *out = (td_prediction){.program = p, .notes = {.arena = a}};
    TD_TRY(st, td_topology_build(a, p->plan->cluster, p->world_size, &topo, err));
    TD_TRY(st, td_costs_build(a, p, topo, &o->costs, &out->notes, &out->costs, err));
    TD_TRY(st, td_cores_build(a, p, out->costs, &out->cores, &out->cores_unknown, err));
    TD_TRY(st, settle_clocks(a, topo, o, out, err));
    TD_TRY(st, remember_memory(a, p->plan, out, err));
    TD_TRY(st, summarize(a, p, out, err));
done:
    return st;
}
