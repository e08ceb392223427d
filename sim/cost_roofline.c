/*
 * Peaks, bandwidths, the share of them that large kernels reach and what the smallest ones take:
 * all there is to say about a GPU on which nothing was measured (Williams, Waterman, Patterson,
 * "Roofline", CACM 52, 2009).
 */
#include "sim/cost_law.h"

#include <math.h>

static double part(const td_profile *profile, const td_part *p, td_cost_notes *notes)
{
    const double bytes_s =
        td_law_bytes(p) / (profile->memory_bytes_per_s * profile->memory_efficiency);
    double s = bytes_s + profile->kernel_gap_s;
    if (notes != NULL)
        notes->n_asked++;
    if (td_part_table[p->class].key == TD_KEY_SHAPE) {
        const double peak = td_law_peak(profile, p) * td_law_of_work(&profile->efficiency, p);
        s = fmax(td_law_flops(p) / peak, bytes_s) + td_law_of_work(&profile->latency_s, p);
    }
    td_cost_shape_part(notes, profile, p, TD_SHAPE_OUTSIDE);
    return td_law_bound_part(profile, p, s);
}

static void comm(const td_profile *profile, const td_comm_query *q, td_comm_cost *out,
                 td_cost_notes *notes)
{
    if (notes != NULL)
        notes->n_asked++;
    td_cost_shape_comm(notes, profile, q, TD_SHAPE_OUTSIDE);
    *out = td_law_comm(profile, q);
}

const td_cost_model td_cost_roofline = {
    .name = "roofline",
    .summary = "FLOPs over peak, bytes over bandwidth, each times the share that is reached",
    .part = part,
    .comm = comm,
};
