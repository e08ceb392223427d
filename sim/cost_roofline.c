/*
 * Peaks, bandwidths and the share of them that large kernels reach: all there is to say about a GPU
 * on which nothing was measured (Williams, Waterman, Patterson, "Roofline", CACM 52, 2009). A
 * kernel's ramp is no more than the gap before it: for the H200's products of 100 us and more that
 * is off by 3 % in the median and by less than 22 % nine times in ten; smaller ones come out too
 * fast.
 */
#include "sim/cost_law.h"

#include <math.h>

static double part(const td_profile *profile, const td_part *p, td_cost_notes *notes)
{
    if (notes != NULL)
        notes->n_asked++;
    const double efficiency =
        p->class == TD_PART_ATTENTION ? profile->attention_efficiency : profile->gemm_efficiency;
    const double flops_s = td_law_flops(p) / (td_law_peak(profile, p) * efficiency);
    const double bytes_s =
        td_law_bytes(p) / (profile->memory_bytes_per_s * profile->memory_efficiency);
    return td_law_bound_part(profile, p, fmax(flops_s, bytes_s) + profile->kernel_gap_s);
}

static void comm(const td_profile *profile, const td_comm_query *q, td_comm_cost *out,
                 td_cost_notes *notes)
{
    (void)profile;
    if (notes != NULL)
        notes->n_asked++;
    *out = td_law_comm(q, TD_LINK_EFFICIENCY);
}

const td_cost_model td_cost_roofline = {
    .name = "roofline",
    .summary = "FLOPs over peak, bytes over bandwidth, each times the share that is reached",
    .part = part,
    .comm = comm,
};
