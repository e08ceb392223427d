/* Price list, event loop, duty cycle, and the numbers a planner asks for. */
#include "sim/predict.h"
#include "model/flops.h"

#include <math.h>

/* Rounds of schedule -> duty -> clock; the map is a contraction, a handful is enough. */
enum { MAX_ROUNDS = 12 };
static const double settled_at = 1e-4; /* change of any GPU's clock; the step moves by less */

/* Share of the step that kernels of one class of ranks run. */
static double duty_of(const td_timeline *t, const td_costs *costs, int32_t class)
{
    const int32_t rank = t->rep[class];
    const td_stream *s = td_program_stream(t->program, rank);
    double busy = 0;
    for (int32_t i = 0; i < s->n_ops; i++)
        if (s->ops[i].lane == TD_LANE_COMPUTE) {
            const td_work_cost *w = td_costs_work(costs, rank, s->ops[i].work);
            if (w->total_s > 0)
                busy += (t->end[class][i] - t->start[class][i]) *
                        (w->compute_s + TD_COLLECTIVE_DUTY * w->collective_s) / w->total_s;
        }
    return t->step_s > 0 ? busy / t->step_s : 0;
}

/* The clocks that the duty of a timeline causes, by class; returns the largest change of any
 * rank's. */
static td_status clocks_of(td_arena *a, td_prediction *out, const double *factor, double *moved,
                           td_err *err)
{
    const td_timeline *t = out->timeline;
    double *duty = TD_NEW(a, double, t->n_classes), *caused = TD_NEW(a, double, t->n_classes);
    if (duty == NULL || caused == NULL)
        return td_fail(err, TD_NOMEM, "no memory for duty cycles");
    *moved = 0;
    for (int32_t c = 0; c < t->n_classes; c++) {
        duty[c] = duty_of(t, out->costs, c);
        caused[c] = td_cost_duty_factor(td_costs_profile(out->costs, t->rep[c]), duty[c]);
    }
    for (int32_t r = 0; r < t->program->world_size; r++)
        *moved = fmax(*moved, fabs(caused[t->class_of[r]] - factor[r]));
    out->class_duty = duty;
    out->class_factor = caused;
    return TD_OK;
}

/*
 * Runs the step again and again at the clocks that its own duty causes, until they stay; `factor`
 * holds those of the last run. The last timeline lives in `a`.
 */
static td_status settle(td_arena *a, const td_topology *topo, const td_engine_options *e,
                        double *factor, td_prediction *out, td_err *err)
{
    td_status st = TD_OK;
    const td_prices prices = td_prices_of(out->costs);
    td_arena *round = NULL; /* one round's timeline */
    out->settled = false;
    for (int32_t i = 0; i < MAX_ROUNDS && !out->settled; i++) {
        double moved = 0;
        if (i > 0)
            for (int32_t r = 0; r < out->program->world_size; r++)
                factor[r] = out->class_factor[out->timeline->class_of[r]];
        td_arena_free(round);
        round = td_arena_new();
        if (round == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a timeline"));
        TD_TRY(st, td_engine_run(round, out->program, topo, &prices, e, &out->timeline, err));
        TD_TRY(st, clocks_of(round, out, factor, &moved, err));
        out->n_rounds++;
        out->settled = moved < settled_at;
    }
    td_arena_adopt(a, round);
    round = NULL;
done:
    td_arena_free(round);
    return st;
}

/* Alike ranks once and links to themselves first: cheap, and most of the way. */
static td_status settle_clocks(td_arena *a, const td_topology *topo, const td_predict_options *o,
                               td_prediction *out, td_err *err)
{
    td_status st = TD_OK;
    td_arena *first = td_arena_new();
    double *factor = TD_NEW(a, double, out->program->world_size);
    td_engine_options e = {.flows = TD_FLOWS_IDEAL, .rank_factor = factor};
    if (factor == NULL || first == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for %d clocks", (int)out->program->world_size));
    for (int32_t r = 0; r < out->program->world_size; r++)
        factor[r] = 1;
    st = settle(first, topo, &e, factor, out, err);
    if (st == TD_RUN) { /* nothing but waits for one another can stop an ideal network */
        if (err != NULL)
            *err = (td_err){0};
        e.buffered_sends = true;
        st = settle(first, topo, &e, factor, out, err);
    }
    TD_TRY(st, st);
    e.flows = o->flows;
    e.net = o->net;
    e.no_fold = o->no_fold;
    TD_TRY(st, settle(a, topo, &e, factor, out, err));
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
    TD_TRY(st, settle_clocks(a, topo, o, out, err));
    TD_TRY(st, remember_memory(a, p->plan, out, err));
    TD_TRY(st, summarize(a, p, out, err));
done:
    return st;
}
