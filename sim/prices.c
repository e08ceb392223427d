/* A price list as the event loop asks for it. */
#include "sim/engine.h"

static const td_work_cost *work(const void *self, int32_t rank, int32_t w)
{
    return td_costs_work(self, rank, w);
}

static double work_until(const void *self, int32_t rank, int32_t w, int64_t after_part)
{
    return td_costs_work_until(self, rank, w, after_part);
}

static const td_op_cost *op_cost(const void *self, int32_t rank, const td_op *op)
{
    return td_costs_op(self, rank, op);
}

td_prices td_prices_of(const td_costs *costs)
{
    return (td_prices){.self = costs, .work = work, .work_until = work_until, .op = op_cost};
}
