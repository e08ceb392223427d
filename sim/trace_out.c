/* Turns times into events. */
#include "sim/trace_out.h"
#include "model/module.h"

#include <math.h>
#include <stdio.h>

static int64_t ns(double seconds)
{
    return llround(seconds * 1e9);
}

/* Seconds of a part at the clock of its op. */
static double part_s(const td_prediction *p, int32_t rank, int32_t work, int32_t part, double clock)
{
    const double s = td_costs_part(p->costs, rank, work, part);
    const uint8_t class = p->program->works[work].parts[part].class;
    return class == TD_PART_GEMM || class == TD_PART_ATTENTION ? s * clock : s;
}

/* Parts of a compute op, stretched so that together they take what the op took. */
static td_status children(td_trace_writer *w, const td_prediction *p, int32_t rank, const td_op *op,
                          td_event parent, td_err *err)
{
    td_status st = TD_OK;
    const td_work *work = &p->program->works[op->work];
    const double start = (double)parent.start_ns;
    const double clock = p->class_clocks[p->timeline->class_of[rank]].clock[parent.op];
    double at = 0, total = 0;
    int32_t flat = 0;
    for (int32_t r = 0; r < work->n_runs; r++)
        for (int32_t i = work->runs[r].first; i < work->runs[r].first + work->runs[r].n; i++)
            total += part_s(p, rank, op->work, i, clock) * work->runs[r].repeat;
    const double stretch = total > 0 ? (double)parent.duration_ns / total : 0;
    for (int32_t r = 0; r < work->n_runs; r++)
        for (int32_t k = 0; k < work->runs[r].repeat; k++)
            for (int32_t i = work->runs[r].first; i < work->runs[r].first + work->runs[r].n; i++) {
                const td_part *part = &work->parts[i];
                const double seconds = part_s(p, rank, op->work, i, clock);
                char name[64];
                td_event e = parent;
                snprintf(name, sizeof name, "%s %s", part->name, td_pass_names[part->pass]);
                e.part = flat++;
                e.kind = td_part_table[part->class].name;
                e.name = name;
                e.bytes = part->bytes;
                e.start_ns = llround(start + at * stretch);
                e.duration_ns = llround(start + (at + seconds) * stretch) - e.start_ns;
                if (e.start_ns + e.duration_ns > parent.start_ns + parent.duration_ns)
                    e.duration_ns = parent.start_ns + parent.duration_ns - e.start_ns;
                at += seconds;
                TD_TRY(st, td_trace_event(w, &e, err));
            }
done:
    return st;
}

/* What the profile of rank 0 was measured on and with, as far as it tells. */
static int32_t add_environment(const td_profile *profile, const char *extra[2 * TD_TRACE_MAX_EXTRA])
{
    const td_environment *e = &profile->environment;
    const char *const pairs[][2] = {{"profile_gpu", profile->gpu},
                                    {"profile_driver", e->driver},
                                    {"profile_cuda", e->cuda},
                                    {"profile_nccl", e->nccl},
                                    {"profile_cudnn", e->cudnn}};
    int32_t n = 0;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (pairs[i][1] != NULL && pairs[i][1][0] != '\0') {
            extra[2 * n] = pairs[i][0];
            extra[2 * n++ + 1] = pairs[i][1];
        }
    return n;
}

/* What every rank's memory will hold, for as many ranks as there is room. */
static int32_t add_memory(td_arena *a, const td_prediction *p, int32_t n,
                          const char *extra[2 * TD_TRACE_MAX_EXTRA])
{
    const td_program *program = p->program;
    for (int32_t rank = 0; rank < program->world_size && n < TD_TRACE_MAX_EXTRA; rank++) {
        const td_stream *s = td_program_stream(program, rank);
        if (s->module < 0)
            continue;
        extra[2 * n] = td_arena_printf(a, "peak_memory_bytes.%d", (int)rank);
        extra[2 * n + 1] =
            td_arena_printf(a, "%llu", (unsigned long long)p->memory[s->module][s->pp_rank].total);
        n += extra[2 * n] != NULL && extra[2 * n + 1] != NULL;
    }
    return n;
}

td_status td_prediction_write(td_arena *a, const td_prediction *p, const char *path,
                              const char *backend, bool fine, td_err *err)
{
    td_status st = TD_OK;
    td_trace_writer *w = NULL;
    const td_program *program = p->program;
    const td_profile *profile = td_costs_profile(p->costs, 0);
    td_trace_meta meta = {.backend = backend,
                          .plan = program->plan->name,
                          .profile = profile->name,
                          .trust = td_trust_names[profile->trust],
                          .version = TD_VERSION,
                          .world_size = program->world_size,
                          .n_steps = 1};
    const char *extra[2 * TD_TRACE_MAX_EXTRA];
    meta.n_extra = add_memory(a, p, add_environment(profile, extra), extra);
    meta.extra = extra;
    snprintf(meta.digest, sizeof meta.digest, "%s", program->digest);
    TD_TRY(st, td_trace_create(path, &meta, &w, err));
    for (int32_t rank = 0; rank < program->world_size; rank++) {
        const td_stream *s = td_program_stream(program, rank);
        char label[160];
        if (s->module < 0)
            snprintf(label, sizeof label, "rank %d: idle", (int)rank);
        else
            snprintf(label, sizeof label, "rank %d: %s stage %d", (int)rank,
                     program->plan->modules[s->module].name, (int)s->pp_rank);
        TD_TRY(st, td_trace_rank(w, rank, label, err));
        for (int32_t i = 0; i < s->n_ops; i++) {
            const td_op *op = &s->ops[i];
            const int64_t start = ns(td_timeline_start(p->timeline, rank, i));
            char name[64];
            td_op_name(program, rank, op, name, sizeof name);
            const td_event e = {.rank = rank,
                                .lane = op->lane,
                                .op = i,
                                .part = -1,
                                .stage = s->stage,
                                .mb = op->mb,
                                .start_ns = start,
                                .duration_ns = ns(td_timeline_end(p->timeline, rank, i)) - start,
                                .bytes = op->bytes,
                                .kind = td_op_table[op->kind].name,
                                .module =
                                    op->module < 0 ? "" : program->plan->modules[op->module].name,
                                .name = name};
            TD_TRY(st, td_trace_event(w, &e, err));
            if (fine && op->chan < 0)
                TD_TRY(st, children(w, p, rank, op, e, err));
        }
    }
    st = td_trace_close(w, err);
    w = NULL;
done:
    td_trace_abandon(w);
    return st;
}
