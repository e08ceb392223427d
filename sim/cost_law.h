/*
 * What every cost model shares: the work in a part, the bounds of physics that no prediction may
 * beat, and reading a curve. Bounds are applied by the models, and to the prices that
 * uncertainty draws, through the two functions here and nowhere else.
 */
#ifndef TANDEM_SIM_COST_LAW_H
#define TANDEM_SIM_COST_LAW_H

#include "sim/cost.h"

/*
 * FLOPs that the GPU does for a GEMM or attention part (0 for others). td_part.flops counts the
 * model's instead: nothing for recomputation, and two products where a fused attention backward
 * does five for the forward's two.
 */
double td_law_flops(const td_part *part);

/* Bytes that have to come from memory or go there at least. */
double td_law_bytes(const td_part *part);

/* Peak of the part's precision, FLOP/s. */
double td_law_peak(const td_profile *profile, const td_part *part);

/* The number for the work of a GEMM or attention part. */
double td_law_of_work(const td_by_work *of, const td_part *part);

/* `seconds`, or the bound of FLOPs over peak and bytes over memory bandwidth where that is longer.
 */
double td_law_bound_part(const td_profile *profile, const td_part *part, double seconds);

/* `total_s` not below edge bytes over edge bandwidth, and `alpha_s` small enough to leave the bytes
 * that time. */
td_comm_cost td_law_bound_comm(const td_comm_query *q, double alpha_s, double total_s);

/*
 * Latency steps: those of the ring, but for all-reduce and broadcast at most the depth of a binary
 * tree, up and down: NCCL changes to double binary trees for small messages, which carry large ones
 * as fast as a ring does (Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast,
 * reduction and scan", Parallel Computing 35, 2009).
 */
double td_law_steps(td_coll coll, int32_t ranks);

/*
 * The closed form: latency + edge bytes / (edge bandwidth * efficiency). The profile's latency is
 * that of two ranks in a node; every step that more ranks need, or slower edges for the first ones,
 * come on top. One rank alone: nothing to do, 0 s.
 */
td_comm_cost td_law_comm(const td_profile *profile, const td_comm_query *q);

/* Piecewise linear between the points, exact at them; the first or last value outside. n >= 1. */
double td_law_curve(const td_curve *curve, double x);

#endif
