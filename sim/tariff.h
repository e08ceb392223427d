/*
 * Prices by kind of rank: ranks of one stream that pay the same for everything share a tariff. It
 * is what the event loop looks prices up in, and the first colour of folding.
 */
#ifndef TANDEM_SIM_TARIFF_H
#define TANDEM_SIM_TARIFF_H

#include "sim/engine.h"
#include "sim/script.h"

typedef union {
    double work_s;          /* slots of compute ops, at full clocks */
    const td_op_cost *cost; /* slots of ops with a channel */
} td_price;

typedef struct {
    const td_price *slot;  /* [n_slots of the script] */
    const double *point_s; /* [n_points]: from the compute op's start, <= its work_s */
    const uint8_t
        *flows_on; /* [n_chans]: bit l: flows that load links go out on lane l over the channel */
    const double *stretch; /* [n_ops] of td_engine_options; NULL: 1 */
} td_tariff;

typedef struct {
    int32_t n;
    const td_tariff *tariffs;
    const int32_t *of; /* [world_size] */
    bool any_overlap;  /* somewhere transfers and compute slow each other down */
} td_tariffs;

/* Does the op put flows on links, or is it a timer? */
static inline bool td_cost_flows(const td_op_cost *c)
{
    return c->edge_bytes > TD_PACKET_BYTES && c->lone.total_s > c->lone.alpha_s;
}

static inline bool td_cost_overlaps(const td_op_cost *c)
{
    return c->overlap.transfer > 1 || c->overlap.compute > 1 || c->overlap.wait_s > 0;
}

/* Fails with TD_NOMEM only. Prices that `prices` returns are referred to, not copied. */
td_status td_tariffs_build(td_arena *a, const td_program *p, const td_script *scripts,
                           const td_prices *prices, const double *const *stretch, td_tariffs *out,
                           td_err *err);

#endif
