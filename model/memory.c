/* Replays a stage's forwards and backwards and remembers the worst moment. */
#include "model/memory.h"
#include "model/lower.h"
#include "model/module.h"

/* What arrives over bridges at the first stage of a module: rows of every source, for one
 * microbatch of its lane. */
static uint64_t bridged_bytes(const td_plan *plan, const td_pipeline *p, int32_t m)
{
    uint64_t bytes = 0;
    for (int32_t i = 0; i < p->n_edges; i++)
        if (p->edges[i].dst == m) {
            const int32_t src = p->edges[i].src;
            const td_stage s = td_stage_of(plan, src, plan->modules[src].pp - 1);
            td_stage_memory source;
            td_stage_memory_of(&s, &source);
            bytes += source.output * (uint64_t)p->bridges[i].parts_per_dst /
                     (uint64_t)p->bridges[i].parts_per_src;
        }
    return bytes;
}

static uint64_t smallest_gpu(const td_plan *plan, int32_t m, int32_t pp_rank)
{
    double least = 0;
    const td_module *module = &plan->modules[m];
    for (int32_t r = module->offset;
         plan->cluster != NULL && r < module->offset + td_grid_size(&module->grid); r++) {
        td_coord c;
        if (r >= plan->cluster->n_gpus || td_grid_coord(&module->grid, r, &c, NULL) != TD_OK ||
            c.c[TD_AXIS_PP] != pp_rank)
            continue;
        const td_place place = td_cluster_place(plan->cluster, r);
        const double memory = plan->cluster->groups[place.group].gpu.memory_bytes;
        if (least == 0 || memory < least)
            least = memory;
        if (plan->cluster->n_groups == 1) /* all alike: one is enough */
            break;
    }
    return (uint64_t)least;
}

td_status td_memory_of_stage(td_arena *a, const td_plan *plan, const td_pipeline *p, int32_t m,
                             int32_t pp_rank, td_memory *out, td_err *err)
{
    td_status st = TD_OK;
    const td_stage s = td_stage_of(plan, m, pp_rank);
    td_memory mem = {.capacity = smallest_gpu(plan, m, pp_rank), .peak_mb = -1};
    td_stage_memory sizes;
    td_buckets buckets;
    td_step_list list;
    int64_t held = 0;
    const uint64_t shards = plan->optimizer.sharded ? (uint64_t)plan->modules[m].dp : 1;
    const td_schedule_input in = {.stage = p->depth[m] + pp_rank,
                                  .n_stages = p->total_stages,
                                  .n_micro = plan->step.microbatches,
                                  .recompute_window = -1};
    TD_TRY(st, td_buckets_of_stage(a, &s, &buckets, err));
    TD_TRY(st, td_schedule_find(plan->step.schedule)->emit(a, &in, &list, err));
    td_stage_memory_of(&s, &sizes);
    if (s.first)
        sizes.input = bridged_bytes(plan, p, m);
    mem.weights = (uint64_t)s.e * (uint64_t)buckets.weights;
    mem.gradients = 4 * (uint64_t)buckets.elements;
    mem.optimizer = (plan->precision == TD_BF16 ? 12 : 8) * (uint64_t)buckets.elements / shards;
    const uint64_t fixed = mem.weights + mem.gradients + mem.optimizer;
    /* two buffers for what arrives and two for what leaves; as many for gradients where they flow
     */
    const uint64_t transfers = 2 * (sizes.input + sizes.output) +
                               2 * (s.input_grad ? sizes.input : 0) +
                               2 * (s.backward ? sizes.output : 0);
    for (int32_t i = 0; i < list.n; i++) {
        const bool backward = list.items[i].kind == TD_STEP_BACKWARD && s.backward;
        if (list.items[i].kind != TD_STEP_FORWARD && !backward)
            continue;
        const int64_t live = backward || !s.backward ? held : held + 1;
        const uint64_t buffers =
            transfers + (backward ? sizes.backward_scratch : sizes.forward_scratch);
        const uint64_t activations = (uint64_t)live * sizes.kept;
        if (mem.peak_mb < 0 || fixed + activations + buffers > mem.total) {
            mem.activations = activations;
            mem.buffers = buffers;
            mem.total = fixed + activations + buffers;
            mem.in_flight = (int32_t)live;
            mem.peak_mb = list.items[i].mb;
            mem.peak_in_backward = backward;
        }
        held += !s.backward ? 0 : backward ? -1 : 1;
    }
    *out = mem;
done:
    return st;
}

const char *td_memory_text(td_arena *a, const td_memory *m)
{
    static const char *const names[] = {"weights", "gradients", "optimizer state", "activations",
                                        "buffers"};
    const uint64_t parts[] = {m->weights, m->gradients, m->optimizer, m->activations, m->buffers};
    const double gib = 1024.0 * 1024.0 * 1024.0;
    int32_t most = 0;
    for (int32_t i = 1; i < 5; i++)
        if (parts[i] > parts[most])
            most = i;
    return td_arena_printf(
        a, "%.2f GiB in the %s of microbatch %d with %d in flight; most of it is %s (%.2f GiB)",
        (double)m->total / gib, m->peak_in_backward ? "backward" : "forward", (int)m->peak_mb,
        (int)m->in_flight, names[most], (double)parts[most] / gib);
}
