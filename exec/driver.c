/* One rank's step, op by op. */
#include "exec/driver_ops.h"

#include <math.h>
#include <signal.h>
#include <string.h>
#include <time.h>

/* ---- faults on purpose ---- */

/* Gradients are added to what zeroing left, and a NaN stays in every sum. */
static void spoil_gradient(td_driver *d)
{
    const td_tensors *t = &d->stage.tensors;
    static const float nan = NAN;
    const td_tensor *victim = NULL;
    for (int32_t i = 0; i < t->n && victim == NULL; i++)
        if (t->all[i].param.trainable)
            victim = &t->all[i];
    d->dev->kernels->copy(d->dev->self, &nan, d->stage.g + victim->offset, sizeof nan);
}

/* Lets time pass, but not the communication under way: other ranks do not compute here. */
static void slow_down(const td_driver *d, double start)
{
    const double end = start + d->inject.slow * (d->dev->now(d->dev->self) - start);
    for (double left = end - start; left > 0; left = end - d->dev->now(d->dev->self)) {
        const struct timespec nap = {.tv_nsec = (long)(fmin(left, 1e-3) * 1e9)};
        d->dev->poll(d->dev->self);
        nanosleep(&nap, NULL);
    }
}

static void inject_before(const td_driver *d, int32_t i)
{
    if (d->n_begun - 1 == d->inject.kill_step && i == d->inject.kill_op)
        raise(SIGKILL);
}

static void inject_after(td_driver *d, int32_t i, double start)
{
    const td_op_kind kind = d->stream->ops[i].kind;
    if (d->n_begun - 1 == d->inject.nan_step && kind == TD_OP_ZERO_GRADS)
        spoil_gradient(d);
    if (d->inject.slow > 1 && td_op_table[kind].role == TD_ROLE_COMPUTE)
        slow_down(d, start);
}

/* ---- issuing ---- */

static td_status wait_watched(td_driver *d, int32_t op)
{
    td_watch_wait(d->watch, op);
    const td_status st = d->dev->wait(d->dev->self, op, d->err);
    td_watch_wait(d->watch, -1);
    return st;
}

td_status td_driver_issue(td_driver *d, int32_t i)
{
    td_status st = TD_OK;
    const td_op *op = &d->stream->ops[i];
    d->issued[i] = true;
    td_watch_op(d->watch, i, op);
    TD_TRY(st, d->dev->begin(d->dev->self, i, d->err));
    for (uint32_t n = op->dep_first; n < op->dep_first + op->n_deps; n++)
        TD_TRY(st, wait_watched(d, d->stream->deps[n].op));
    inject_before(d, i);
    const double start = d->dev->now(d->dev->self);
    TD_TRY(st, d->dev->started(d->dev->self, d->err));
    TD_TRY(st, td_driver_run[op->kind](d, i));
    inject_after(d, i, start);
    TD_TRY(st, d->dev->end(d->dev->self, i, d->err));
done:
    return st;
}

/* ---- steps ---- */

int64_t td_driver_parts(const td_program *p, int32_t rank)
{
    const td_stream *s = td_program_stream(p, rank);
    int64_t n = 0;
    for (int32_t i = 0; i < s->n_ops; i++)
        n += s->ops[i].work < 0 ? 0 : p->works[s->ops[i].work].n_flat;
    return n;
}

/* A device may stamp parts by another clock than ops, tied to it up to its error: none leaves its
 * op. */
static double stamped_within(const td_driver *d, const td_op_time *op, int64_t stamp)
{
    return fmin(fmax(d->dev->stamped(d->dev->self, stamp), op->start), op->end);
}

/* Parts of the stage's passes have stamps between them. Elsewhere several parts (one a bucket) run
 * as one: they have no times of their own. */
static void read_times(const td_driver *d, td_op_time *times, td_op_time *parts)
{
    const td_device *dev = d->dev;
    for (int32_t i = 0; times != NULL && i < d->stream->n_ops; i++)
        times[i] = dev->times(dev->self, i);
    for (int32_t i = 0; d->fine && i < d->stream->n_ops; i++) {
        const td_op *op = &d->stream->ops[i];
        const int64_t n = op->work < 0 ? 0 : d->p->works[op->work].n_flat;
        const bool pass = op->kind == TD_OP_FORWARD || op->kind == TD_OP_BACKWARD;
        for (int64_t part = 0; part < n; part++, parts++) {
            const int64_t stamp = d->first_stamp[i] + part;
            *parts = pass     ? (td_op_time){stamped_within(d, &times[i], stamp),
                                             stamped_within(d, &times[i], stamp + 1)}
                     : n == 1 ? times[i]
                              : (td_op_time){0, 0};
        }
    }
}

td_status td_driver_step(td_driver *d, int64_t step, td_step_result *result, td_op_time *times,
                         td_op_time *parts, td_err *err)
{
    td_status st = TD_OK;
    const td_device *dev = d->dev;
    td_mimo_state numbers;
    d->fine = times != NULL && parts != NULL;
    d->step = step;
    d->err = err;
    d->n_begun++;
    td_watch_step(d->watch, step);
    d->waited[0] = d->waited[1] = 0;
    memset(d->issued, 0, (size_t)d->stream->n_ops * sizeof *d->issued);
    TD_TRY(st, dev->begin(dev->self, -1, err));
    dev->kernels->mimo(dev->self, TD_MIMO_BEGIN, &d->config, -1, d->numbers);
    TD_TRY(st, dev->end(dev->self, -1, err));
    TD_TRY(st, dev->step(dev->self, true, times != NULL, err));
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (!d->issued[i])
            TD_TRY(st, td_driver_issue(d, i));
    for (int32_t i = 0; i < d->stream->n_ops; i++) {
        td_watch_op(d->watch, i, &d->stream->ops[i]);
        td_watch_wait(d->watch, i);
        TD_TRY(st, dev->complete(dev->self, i, err));
    }
    td_watch_wait(d->watch, -1);
    const double end = dev->now(dev->self);
    TD_TRY(st, dev->step(dev->self, false, times != NULL, err));
    read_times(d, times, parts);
    TD_TRY(st, dev->fetch(dev->self, d->numbers, &numbers, sizeof numbers, err));
    result->loss = numbers.tokens[1] > 0 ? numbers.tokens[0] / numbers.tokens[1] : 0;
    result->grad_norm = numbers.decision.norm;
    result->clip_coefficient = numbers.decision.clip_coefficient;
    memcpy(result->module_norms, numbers.decision.module_norms,
           (size_t)d->config.n_modules * sizeof(double));
    result->success = numbers.success != 0;
    result->step_s = end - d->last_end;
    d->last_end = end;
done:
    return st;
}

/* ---- opening ---- */

static td_status list_sends(td_driver *d, td_err *err)
{
    for (int32_t way = 0; way < 2; way++) {
        d->sends[way] = TD_NEW(d->a, int32_t, d->stream->n_ops);
        if (d->sends[way] == NULL)
            return td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)d->rank);
        for (int32_t i = 0; i < d->stream->n_ops; i++)
            if (d->stream->ops[i].kind == TD_OP_SEND &&
                (d->stream->ops[i].lane == TD_LANE_BWD) == (way == 1))
                d->sends[way][d->n_sends[way]++] = i;
    }
    return TD_OK;
}

/* Can op `i` be played: a pass of which nobody waits for a part? */
static bool whole(const td_driver *d, int32_t i)
{
    const td_stream *s = d->stream;
    bool none = s->ops[i].kind == TD_OP_FORWARD || s->ops[i].kind == TD_OP_BACKWARD;
    for (int32_t k2 = i + 1; none && k2 < s->n_ops && s->ops[k2].lane == TD_LANE_DP; k2++)
        none = s->deps[s->ops[k2].dep_first].after_part < 0;
    return none;
}

static td_status nothing_done(void *self, int64_t n_done, td_err *err)
{
    (void)self;
    (void)n_done;
    (void)err;
    return TD_OK;
}

static int32_t multiple(int32_t a, int32_t b)
{
    int32_t m = a;
    while (m % b != 0)
        m += a;
    return m;
}

static td_status stamp_part(void *self, int64_t n_done, td_err *err)
{
    const td_driver *d = self;
    return d->dev->stamp(d->dev->self, n_done, err);
}

/* Runs every pass once, on zeros, so that libraries load what they need. What this leaves in the
 * buffers is overwritten by the first step. */
static td_status run_passes(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    const td_device *dev = d->dev;
    const td_stream *s = d->stream;
    bool ran[2] = {false, false};
    TD_TRY(st, dev->begin(dev->self, -1, err));
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        const bool backward = op->kind == TD_OP_BACKWARD;
        if ((op->kind != TD_OP_FORWARD && !backward) || ran[backward])
            continue;
        TD_TRY(st, td_stage_pass(&d->stage, op->work, op->mb, backward, nothing_done, NULL, err));
        ran[backward] = true;
    }
    TD_TRY(st, dev->end(dev->self, -1, err));
done:
    return st;
}

/* Records the passes of every set of buffers that a microbatch can have, each with `done` behind
 * every part. */
static td_status record_passes(td_driver *d, td_part_done done, td_err *err)
{
    td_status st = TD_OK;
    const td_device *dev = d->dev;
    const td_stream *s = d->stream;
    d->period = multiple(multiple(d->stage.n_slots, d->stage.n_inputs), 2);
    bool *known = TD_NEW(d->a, bool, 2 * (int64_t)d->period);
    if (known == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its passes", (int)d->rank));
    TD_TRY(st, dev->begin(dev->self, -1, err));
    for (int32_t i = 0; i < s->n_ops; i++) {
        const td_op *op = &s->ops[i];
        if (!whole(d, i))
            continue;
        d->plays[i] = true;
        if (known[td_driver_key(d, op)])
            continue;
        known[td_driver_key(d, op)] = true;
        TD_TRY(st, dev->record(dev->self, td_driver_key(d, op), err));
        TD_TRY(st, td_stage_pass(&d->stage, op->work, op->mb, op->kind == TD_OP_BACKWARD, done, d,
                                 err));
        TD_TRY(st, dev->recorded(dev->self, td_driver_key(d, op), err));
    }
    TD_TRY(st, dev->end(dev->self, -1, err));
done:
    return st;
}

/* Where the stamps of every op begin; does the rank update anything? */
static void number_ops(td_driver *d)
{
    for (int32_t i = 0; i < d->stream->n_ops; i++) {
        const td_op *op = &d->stream->ops[i];
        d->first_stamp[i] = d->n_stamps;
        d->n_stamps += op->work < 0 ? 0 : d->p->works[op->work].n_flat + 1;
        d->updates = d->updates || op->kind == TD_OP_ADAM;
    }
}

static td_status open_stage(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, td_stage_open(d->a, d->p, &d->pipe, d->rank, d->dev, &d->stage, err));
    TD_TRY(st, td_state_open(d->a, &d->stage, &d->state, err));
    d->numbers = d->stage.state;
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (d->stream->ops[i].kind == TD_OP_SEND || d->stream->ops[i].kind == TD_OP_RECV ||
            d->stream->ops[i].kind == TD_OP_BROADCAST)
            td_driver_find_payload(d, i);
done:
    return st;
}

/* Where receives put their payloads. */
static td_status expect(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    void **buffers = TD_NEW(d->a, void *, d->stream->n_ops);
    if (buffers == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)d->rank));
    for (int32_t i = 0; i < d->stream->n_ops; i++)
        if (d->stream->ops[i].kind == TD_OP_RECV)
            buffers[i] = td_driver_buffer(d, i);
    TD_TRY(st, d->dev->expect(d->dev->self, buffers, err));
done:
    return st;
}

static td_status open_idle(td_driver *d, td_err *err)
{
    d->numbers = d->dev->arena(d->dev->self, TD_STATE_BYTES);
    return d->numbers != NULL
               ? TD_OK
               : td_fail(err, TD_NOMEM, "rank %d: no memory for its numbers", (int)d->rank);
}

td_status td_driver_open(td_arena *a, const td_program *p, int32_t rank, const td_device *device,
                         td_driver **out, td_err *err)
{
    td_status st = TD_OK;
    td_driver *d = TD_NEW(a, td_driver, 1);
    if (d == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for the driver", (int)rank));
    *d = (td_driver){.a = a,
                     .p = p,
                     .stream = td_program_stream(p, rank),
                     .dev = device,
                     .rank = rank,
                     .inject = {.slow = 1, .nan_step = -1, .kill_step = -1},
                     .config = td_mimo_config_of(p->plan)};
    d->idle = d->stream->module < 0;
    d->payloads = TD_NEW(a, td_payload, d->stream->n_ops);
    d->shapes = td_arena_alloc(a, (size_t)d->stream->n_ops, sizeof *d->shapes);
    d->issued = TD_NEW(a, bool, d->stream->n_ops);
    d->plays = TD_NEW(a, bool, d->stream->n_ops);
    d->first_stamp = TD_NEW(a, int64_t, d->stream->n_ops);
    if (d->payloads == NULL || d->shapes == NULL || d->issued == NULL || d->plays == NULL ||
        d->first_stamp == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "rank %d: no memory for its ops", (int)rank));
    number_ops(d);
    TD_TRY(st, td_pipeline_of_plan(a, p->plan, &d->pipe, err));
    TD_TRY(st, d->idle ? open_idle(d, err) : open_stage(d, err));
    TD_TRY(st, list_sends(d, err));
    if (device->expect != NULL)
        TD_TRY(st, expect(d, err));
    if (device->record != NULL && !d->idle) {
        TD_TRY(st, run_passes(d, err));
        TD_TRY(st, record_passes(d, nothing_done, err));
    }
    td_driver_resume(d);
    *out = d;
done:
    if (st != TD_OK)
        td_driver_close(d);
    return st;
}

td_status td_driver_fine(td_driver *d, td_err *err)
{
    td_status st = TD_OK;
    if (d->dev->stamps != NULL)
        TD_TRY(st, d->dev->stamps(d->dev->self, d->n_stamps, err));
    if (d->dev->record != NULL && !d->idle) {
        TD_TRY(st, record_passes(d, stamp_part, err));
        d->stamped = true;
    }
    td_driver_resume(d);
done:
    return st;
}

td_status td_driver_observe(td_driver *d, td_watch_slot *watch, const td_inject *inject,
                            td_err *err)
{
    d->watch = watch;
    d->inject = *inject;
    if (inject->kill_op < 0)
        d->inject.kill_op = d->stream->n_ops / 2;
    if (inject->kill_op >= d->stream->n_ops)
        return td_fail(err, TD_USAGE, "--inject: the ops of rank %d are 0 to %d", (int)d->rank,
                       (int)d->stream->n_ops - 1);
    if (inject->nan_step >= 0 && (d->idle || d->stage.sizes.buckets.elements == 0))
        return td_fail(err, TD_USAGE, "--inject: rank %d trains nothing, so no gradient can be NaN",
                       (int)d->rank);
    if (inject->slow > 1 && d->dev->record != NULL)
        return td_fail(err, TD_USAGE,
                       "--inject: device `%s` queues its ops, so this rank cannot slow them down",
                       d->dev->name);
    return TD_OK;
}

void td_driver_close(td_driver *d)
{
    if (d != NULL)
        td_stage_close(&d->stage);
}

size_t td_driver_bytes(const td_driver *d)
{
    return d->idle ? TD_STATE_BYTES : d->stage.arena_bytes;
}

td_status td_driver_download(td_driver *d, td_run_state *out, td_err *err)
{
    *out = (td_run_state){.n_updates = &d->state.n_updates};
    return d->idle ? TD_OK : td_state_download(&d->state, out, err);
}

td_status td_driver_upload(td_driver *d, const td_run_state *from, td_err *err)
{
    return d->idle ? TD_OK : td_state_upload(&d->state, from, err);
}

void td_driver_resume(td_driver *d)
{
    d->last_end = d->dev->now(d->dev->self);
}

/* Elements of the tensor that this rank speaks for: of shards its own, of replicas lane 0 all. */
static void add_checksum(const td_driver *d, const td_run_state *state, const td_tensor *t,
                         double sums[2])
{
    const uint32_t seed = d->p->plan->seed;
    if (!t->counts)
        return;
    if ((!t->param.trainable || !state->sharded) && state->lane == 0)
        td_tensor_checksum(t, seed, state->w, t->offset, t->param.local, sums);
    for (int32_t i = 0; t->param.trainable && state->sharded && i < state->n_spans; i++)
        if (state->spans[i].tensor == t)
            td_tensor_checksum(t, seed, state->w, t->offset + state->spans[i].first,
                               state->spans[i].n, sums);
}

td_status td_driver_checksums(td_driver *d,
                              void (*visit)(void *self, const char *name, const double sums[2]),
                              void *self, td_err *err)
{
    td_status st = TD_OK;
    td_run_state state;
    const td_tensors *t = &d->stage.tensors;
    TD_TRY(st, td_driver_download(d, &state, err));
    for (int32_t i = 0; !d->idle && i < t->n; i++) {
        double sums[2] = {0};
        if (strcmp(t->all[i].param.name, "k.bias") ==
            0) /* softmax does not see it: its gradient is rounding noise */
            continue;
        add_checksum(d, &state, &t->all[i], sums);
        visit(self, t->all[i].name, sums);
    }
done:
    td_state_release(&state);
    return st;
}
