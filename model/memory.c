/* Adds up the pieces of a stage. */
#include "model/memory.h"
#include "model/pieces.h"

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

static void add_piece(void *self, const td_piece *p)
{
    uint64_t *shares = self;
    shares[p->share] += p->bytes * (uint64_t)(p->stride_i > 0 ? p->n_i : 1) *
                        (uint64_t)(p->stride_j > 0 ? p->n_j : 1);
}

td_status td_memory_of_stage(td_arena *a, const td_plan *plan, const td_pipeline *p, int32_t m,
                             int32_t pp_rank, td_memory *out, td_err *err)
{
    td_status st = TD_OK;
    td_stage_sizes sizes;
    uint64_t shares[TD_N_SHARES] = {0};
    TD_TRY(st, td_stage_sizes_of(a, plan, p, m, pp_rank, &sizes, err));
    const uint64_t total = td_stage_pieces(plan, p, m, pp_rank, &sizes, add_piece, shares);
    *out = (td_memory){.weights = shares[TD_SHARE_WEIGHTS],
                       .gradients = shares[TD_SHARE_GRADIENTS],
                       .optimizer = shares[TD_SHARE_OPTIMIZER],
                       .activations = shares[TD_SHARE_ACTIVATIONS],
                       .buffers = shares[TD_SHARE_BUFFERS],
                       .total = total,
                       .capacity = smallest_gpu(plan, m, pp_rank),
                       .in_flight = td_stage_of(plan, m, pp_rank).backward ? sizes.n_slots : 0};
done:
    return st;
}

td_status td_memory_of_rank(td_arena *a, const td_program *p, int32_t rank, td_memory *out,
                            td_err *err)
{
    td_status st = TD_OK;
    const td_stream *s = td_program_stream(p, rank);
    td_pipeline pipe;
    *out = (td_memory){0};
    TD_TRY(st, td_pipeline_of_plan(a, p->plan, &pipe, err));
    if (s->module >= 0)
        TD_TRY(st, td_memory_of_stage(a, p->plan, &pipe, s->module, s->pp_rank, out, err));
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
    return td_arena_printf(a,
                           "%.2f GiB with %d microbatch%s in flight; most of it is %s (%.2f GiB)",
                           (double)m->total / gib, (int)m->in_flight, m->in_flight == 1 ? "" : "es",
                           names[most], (double)parts[most] / gib);
}
