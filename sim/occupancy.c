/* Where the time of a rank goes. */
#include "sim/predict.h"

/* The share of a compute op's time that tensor-parallel collectives take. */
static double collective_share(const td_costs *costs, int32_t rank, const td_op *op)
{
    const td_work_cost *w = td_costs_work(costs, rank, op->work);
    return w->total_s > 0 ? w->collective_s / w->total_s : 0;
}

/* Next op of a lane at or after `i`; n_ops at the end. */
static int32_t next_on(const td_stream *s, int32_t lane, int32_t i)
{
    while (i < s->n_ops && s->ops[i].lane != lane)
        i++;
    return i;
}

/*
 * Sweeps over the step: on each lane ops follow one another, so the state changes only where the
 * current op of a lane starts or ends.
 */
void td_rank_time_of(const td_timeline *t, const td_costs *costs, int32_t class, td_rank_time *out)
{
    enum { BUSY, COLLECTIVE, TRANSFER, N_LEVELS };
    static const int level_of[TD_N_LANES] = {
        [TD_LANE_COMPUTE] = BUSY,    [TD_LANE_TP] = COLLECTIVE, [TD_LANE_DP] = COLLECTIVE,
        [TD_LANE_CTRL] = COLLECTIVE, [TD_LANE_FWD] = TRANSFER,  [TD_LANE_BWD] = TRANSFER};
    const int32_t rank = t->rep[class];
    const td_stream *s = td_program_stream(t->program, rank);
    const double *start = t->start[class], *end = t->end[class];
    int32_t at[TD_N_LANES];
    double now = 0, spent[N_LEVELS + 1] = {0};
    for (int32_t lane = 0; lane < TD_N_LANES; lane++)
        at[lane] = next_on(s, lane, 0);
    while (now < t->step_s) {
        double until = t->step_s;
        int level = N_LEVELS;
        for (int32_t lane = 0; lane < TD_N_LANES; lane++) {
            while (at[lane] < s->n_ops && end[at[lane]] <= now)
                at[lane] = next_on(s, lane, at[lane] + 1);
            if (at[lane] == s->n_ops)
                continue;
            const double begins = start[at[lane]], ends = end[at[lane]];
            const double change = begins > now ? begins : ends;
            if (begins <= now && level_of[lane] < level)
                level = level_of[lane];
            if (change < until)
                until = change;
        }
        if (level == BUSY) {
            const double share = collective_share(costs, rank, &s->ops[at[TD_LANE_COMPUTE]]);
            spent[BUSY] += (until - now) * (1 - share);
            spent[COLLECTIVE] += (until - now) * share;
        } else {
            spent[level] += until - now;
        }
        now = until;
    }
    *out = (td_rank_time){.busy_s = spent[BUSY],
                          .collective_s = spent[COLLECTIVE],
                          .transfer_s = spent[TRANSFER],
                          .bubble_s = spent[N_LEVELS]};
}
