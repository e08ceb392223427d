/* Folds, plays, and decides where: here as long as no link is over-subscribed, in a child with a
 * back-end from then on. */
#include "sim/engine.h"

#include "sim/child.h"

#include <math.h>

enum { DEFAULT_STALL_S = 120 };

/* More events than the loop can number. */
static const int64_t max_ops = INT64_C(1) << 29;

typedef struct {
    td_arena *a, *tmp; /* the timeline's; the run's */
    const td_program *p;
    const td_topology *topo;
    const td_engine_options *o;
    const td_script *scripts;
    td_tariffs tariffs;
    uint8_t *flows; /* [n_comms] lanes on which flows go over a communicator */
} run;

static td_status find_flows(run *r, td_err *err)
{
    r->flows = TD_NEW(r->tmp, uint8_t, r->p->n_comms);
    if (r->flows == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %lld communicators", (long long)r->p->n_comms);
    for (int32_t rank = 0; rank < r->p->world_size; rank++) {
        const uint8_t *on = r->tariffs.tariffs[r->tariffs.of[rank]].flows_on;
        for (int32_t c = 0; c < td_program_stream(r->p, rank)->n_chans; c++)
            r->flows[r->p->ranks[rank].chans[c].comm] |= on[c];
    }
    return TD_OK;
}

/* An empty timeline and a loop that writes into it. */
static td_status set_up(const run *r, const td_fold *fold, td_loop *l, td_timeline **out,
                        td_err *err)
{
    td_status st = TD_OK;
    const int32_t n = fold == NULL ? r->p->world_size : fold->n_classes;
    td_timeline *t = TD_NEW(r->a, td_timeline, 1);
    int32_t *class_of = TD_NEW(r->a, int32_t, r->p->world_size), *rep = TD_NEW(r->a, int32_t, n);
    double **start = TD_NEW(r->a, double *, n), **end = TD_NEW(r->a, double *, n);
    l->actors = TD_NEW(r->tmp, td_actor, n);
    if (t == NULL || class_of == NULL || rep == NULL || start == NULL || end == NULL ||
        l->actors == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the times of %d ranks", n));
    l->program = r->p;
    l->fold = fold;
    l->all = r->o->flows == TD_FLOWS_ALL;
    l->cores = r->o->cores;
    l->n_actors = n;
    for (int32_t rank = 0; rank < r->p->world_size; rank++)
        class_of[rank] = fold == NULL ? rank : fold->class_of[rank];
    for (int32_t i = 0; i < n; i++) {
        rep[i] = fold == NULL ? i : fold->rep[i];
        l->n_ops += td_program_stream(r->p, rep[i])->n_ops;
    }
    if (l->n_ops > max_ops)
        TD_TRY(st, td_fail(err, TD_PLAN, "%lld ops are more than can be simulated: at most %lld",
                           (long long)l->n_ops, (long long)max_ops));
    double *times = TD_NEW(r->a, double, 2 * l->n_ops);
    if (times == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for the times of %lld ops", (long long)l->n_ops));
    for (int32_t i = 0; i < n; i++) {
        const int32_t n_ops = td_program_stream(r->p, rep[i])->n_ops;
        l->actors[i].start = start[i] = times;
        l->actors[i].end = end[i] = times + n_ops;
        times += 2 * (int64_t)n_ops;
    }
    *t = (td_timeline){.program = r->p,
                       .n_classes = n,
                       .class_of = class_of,
                       .rep = rep,
                       .start = start,
                       .end = end,
                       .folded = fold != NULL,
                       .buffered_sends = r->o->buffered_sends};
    *out = t;
done:
    return st;
}

static td_status run_child(const run *r, td_loop *l, td_err *err)
{
    char name[96];
    if (r->o->net != NULL)
        return td_child_run(l, r->o->net, r->flows,
                            r->o->stall_s > 0 ? r->o->stall_s : DEFAULT_STALL_S, err);
    if (l->all)
        return td_fail(err, TD_ABSENT,
                       "flows can only go to a network simulator, and this build has none");
    td_topology_link_name(r->topo, l->loads->hot[0], name, sizeof name);
    return td_fail(err, TD_ABSENT,
                   "%s is over-subscribed %g s into the step, and this build has no network "
                   "simulator to share it",
                   name, l->now);
}

static void finish(const td_loop *l, td_timeline *t)
{
    for (int32_t i = 0; i < l->n_actors; i++)
        for (int32_t op = 0; op < l->actors[i].script->n_ops; op++)
            t->step_s = fmax(t->step_s, l->actors[i].end[op]);
    t->n_simulated = l->n_done;
    t->n_flows = l->n_flows;
    t->n_promoted = l->n_promoted;
    t->max_link_load = l->loads == NULL ? 0 : fmax(l->peak, td_loads_peak(l->loads));
}

/* Plays the program, folded or not; `*out` stays NULL if a folded run met contention that only all
 * ranks can show. */
static td_status play(const run *r, const td_fold *fold, td_timeline **out, td_err *err)
{
    td_status st = TD_OK;
    td_loop l = {0};
    td_loads loads;
    td_timeline *t = NULL;
    char stuck[900];
    TD_TRY(st, set_up(r, fold, &l, &t, err));
    if (r->o->flows != TD_FLOWS_IDEAL) {
        TD_TRY(st, td_loads_build(r->tmp, r->p, r->topo, fold, r->flows, &loads, err));
        l.loads = &loads;
    }
    TD_TRY(st, td_loop_open(&l, r->tmp, r->scripts, &r->tariffs, err));
    const td_loop_end end = td_loop_run(&l);
    if (end == TD_LOOP_CONTENDED && fold != NULL && (!loads.even || r->o->net == NULL))
        goto done;
    if (end == TD_LOOP_CONTENDED)
        TD_TRY(st, run_child(r, &l, err));
    if (end == TD_LOOP_NOMEM)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate %lld ops", (long long)l.n_ops));
    if (l.n_done < l.n_ops) {
        td_stuck_text(&l, stuck, sizeof stuck);
        TD_TRY(st, td_fail(err, TD_RUN, "the step never ends: %s", stuck));
    }
    finish(&l, t);
    *out = t;
done:
    td_loop_close(&l);
    return st;
}

td_status td_engine_run(td_arena *a, const td_program *p, const td_topology *topo,
                        const td_prices *prices, const td_engine_options *o,
                        const td_timeline **out, td_err *err)
{
    td_status st = TD_OK;
    run r = {.a = a, .tmp = td_arena_new(), .p = p, .topo = topo, .o = o};
    const td_fold *fold = NULL;
    td_timeline *t = NULL;
    if (r.tmp == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to simulate %d ranks", p->world_size));
    TD_TRY(st, td_scripts_build(r.tmp, p, o->buffered_sends, &r.scripts, err));
    TD_TRY(st, td_tariffs_build(r.tmp, p, r.scripts, prices, o->stretch, &r.tariffs, err));
    if (o->flows != TD_FLOWS_IDEAL)
        TD_TRY(st, find_flows(&r, err));
    if (!o->no_fold && o->flows != TD_FLOWS_ALL && o->cores == NULL)
        TD_TRY(st, td_fold_build(r.tmp, p, r.tariffs.of, r.tariffs.n, &fold, err));
    if (fold != NULL && fold->n_classes < p->world_size)
        TD_TRY(st, play(&r, fold, &t, err));
    if (t == NULL)
        TD_TRY(st, play(&r, NULL, &t, err));
    *out = t;
done:
    td_arena_free(r.tmp);
    return st;
}
