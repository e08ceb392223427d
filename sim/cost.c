/* What cost models have in common: their table, the notes, the laws. */
#include "sim/cost.h"
#include "sim/cost_law.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const td_cost_model *const td_cost_models[] = {&td_cost_table, &td_cost_roofline, NULL};

const td_cost_model *td_cost_model_for(const td_profile *p)
{
    bool measured = p->n_gemms > 0 || p->n_attention > 0 || p->copy.n > 0;
    for (int32_t i = 0; i < TD_N_PARTS; i++)
        measured = measured || p->memory[i].n > 0;
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        measured = measured || p->n_collectives[i] > 0;
    return measured ? &td_cost_table : &td_cost_roofline;
}

double td_cost_clock_factor(const td_profile *profile, double heat)
{
    return profile->duty.n == 0 ? 1 : fmax(1, td_law_curve(&profile->duty, heat));
}

double td_cost_heat(const td_profile *profile, uint8_t class)
{
    const td_heat *h = &profile->heat;
    return class == TD_PART_GEMM         ? 1
           : class == TD_PART_ATTENTION  ? h->attention
           : class == TD_PART_COLLECTIVE ? h->collective
                                         : h->memory;
}

/* In the order of their first appearance. Without memory a note is lost; the count of calls is not.
 */
void td_cost_note_add(td_cost_notes *notes, const char *what, const char *why)
{
    if (notes == NULL)
        return;
    notes->n_extrapolated++;
    td_cost_note **at = &notes->head;
    while (*at != NULL && (strcmp((*at)->what, what) != 0 || strcmp((*at)->why, why) != 0))
        at = &(*at)->next;
    if (*at == NULL) {
        td_cost_note *note = TD_NEW(notes->arena, td_cost_note, 1);
        if (note == NULL)
            return;
        snprintf(note->what, sizeof note->what, "%s", what);
        snprintf(note->why, sizeof note->why, "%s", why);
        *at = note;
        notes->n++;
    }
    (*at)->count++;
}

/* ---- laws ---- */

static double attention_product(const td_part *p)
{
    const double all = 2.0 * p->batch * p->heads * (double)p->seq * p->seq * p->head_dim;
    return p->causal ? all / 2 : all;
}

double td_law_flops(const td_part *p)
{
    if (p->class == TD_PART_GEMM)
        return 2.0 * (double)p->m * (double)p->n * (double)p->k;
    if (p->class == TD_PART_ATTENTION)
        return attention_product(p) * (p->pass == TD_PASS_BACKWARD ? 5 : 2);
    return 0;
}

/* A weight gradient is read and written in fp32; attention reads q, k, v and writes its output, and
 * that of the output comes on top in the backward, as do the gradients of q, k, v. */
static double gemm_bytes(const td_part *p)
{
    const double e = p->fp32 ? 4 : 2, m = (double)p->m, n = (double)p->n, k = (double)p->k;
    return e * (m * k + m * n) + n * k * (p->pass == TD_PASS_WGRAD ? 8 : e);
}

static double attention_bytes(const td_part *p)
{
    const double e = p->fp32 ? 4 : 2, tokens = (double)p->batch * p->seq;
    const double once = e * tokens * p->head_dim * (2.0 * p->heads + 2.0 * p->kv_heads);
    return p->pass == TD_PASS_BACKWARD ? 2 * once : once;
}

double td_law_bytes(const td_part *p)
{
    if (p->class == TD_PART_GEMM)
        return gemm_bytes(p);
    return p->class == TD_PART_ATTENTION ? attention_bytes(p) : (double)p->bytes;
}

double td_law_peak(const td_profile *profile, const td_part *p)
{
    return p->fp32 ? profile->fp32_flops_per_s : profile->bf16_flops_per_s;
}

double td_law_of_work(const td_by_work *of, const td_part *p)
{
    if (p->class == TD_PART_ATTENTION)
        return of->attention[p->pass == TD_PASS_BACKWARD];
    assert(p->class == TD_PART_GEMM && p->pass <= TD_PASS_WGRAD);
    return of->gemm[p->pass];
}

double td_law_bound_part(const td_profile *profile, const td_part *p, double seconds)
{
    const double flops_s = td_law_flops(p) / td_law_peak(profile, p);
    return fmax(seconds, fmax(flops_s, td_law_bytes(p) / profile->memory_bytes_per_s));
}

static double edge_bytes(const td_comm_query *q)
{
    return q->ranks < 2 ? 0 : td_collectives[q->coll]->edge_bytes(q->ranks, q->bytes);
}

td_comm_cost td_law_bound_comm(const td_comm_query *q, double alpha_s, double total_s)
{
    const double floor_s = edge_bytes(q) / q->edge_bytes_per_s;
    const double total = fmax(total_s, floor_s);
    return (td_comm_cost){.alpha_s = fmax(0, fmin(alpha_s, total - floor_s)), .total_s = total};
}

double td_law_steps(td_coll coll, int32_t ranks)
{
    const double ring = td_collectives[coll]->steps(ranks);
    const double depth = ceil(log2(fmax(1, ranks)));
    const double tree = coll == TD_COLL_ALL_REDUCE ? 2 * depth : depth;
    return coll == TD_COLL_ALL_REDUCE || coll == TD_COLL_BROADCAST ? fmin(ring, tree) : ring;
}

td_comm_cost td_law_comm(const td_profile *p, const td_comm_query *q)
{
    if (q->ranks < 2)
        return (td_comm_cost){0};
    const double pair = td_law_steps(q->coll, 2), all = td_law_steps(q->coll, q->ranks);
    const double least = fmax(pair * q->edge_latency_s, p->latency_s.collective[q->coll]);
    const double alpha = least + fmax(0, all - pair) * q->edge_latency_s;
    const double flow = edge_bytes(q) / (q->edge_bytes_per_s * p->efficiency.collective[q->coll]);
    return td_law_bound_comm(q, alpha, alpha + flow);
}

double td_law_curve(const td_curve *c, double x)
{
    assert(c->n >= 1);
    int32_t lo = 0, hi = c->n - 1; /* x[lo] <= x < x[hi] from here on */
    if (x <= c->x[lo])
        return c->y[lo];
    if (x >= c->x[hi])
        return c->y[hi];
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (x < c->x[mid])
            hi = mid;
        else
            lo = mid;
    }
    return c->y[lo] + (c->y[hi] - c->y[lo]) * ((x - c->x[lo]) / (c->x[hi] - c->x[lo]));
}
