/*
 * The inside of sim/calibrate*.c: observations of shapes, read from traces, and robust fits to
 * them.
 */
#ifndef TANDEM_SIM_CALIBRATE_SAMPLES_H
#define TANDEM_SIM_CALIBRATE_SAMPLES_H

#include "sim/calibrate.h"
#include "sim/cost.h"

/* What ran at the same time: nothing to speak of, exchanges of one kind (of a part) or kernels (of
 * an exchange) all the time, or anything else. */
enum { TD_BESIDE_NOTHING = -1, TD_BESIDE_PARTLY = TD_N_COLLS, TD_BESIDE_KERNELS };

/* What costs are keyed by: a part, or an exchange as a part of class COLLECTIVE. */
typedef struct {
    td_part part;
    td_comm_query link; /* exchanges only: where its members are */
    int64_t n_samples;
    int32_t first, n; /* its observations; those beside nothing come first */
    int32_t n_alone;
    double alone_s; /* the shape's time; of those beside something while nothing else is known */
} td_shape;

typedef struct {
    int32_t shape, beside, source, rank, n;
    double s;    /* median of n */
    double duty; /* share of the time that kernels run on the rank in that trace */
} td_observation;

struct td_samples {
    int32_t n_shapes, n_observations, n_ranks;
    td_shape *shapes;
    td_observation *observations; /* by shape, what ran beside, source, rank */
    double part_overhead_s;
    int64_t n_across;
    bool measured; /* by every source */
    td_environment environment;
};

td_status td_samples_read(td_arena *a, int32_t n, const td_calibrate_source *sources,
                          td_samples *out, td_err *err);

/* Median of a shape's observations beside `beside`, without the one at `but` (-1: none); < 0: no
 * observations. */
double td_samples_median(const td_samples *s, const td_shape *shape, int32_t beside, int32_t but);

/* Fills `alone_s` from the observations: of those beside nothing if there are any. */
void td_samples_settle(td_samples *s, td_shape *shape);

/* ---- what is not the shape's own ---- */

/*
 * What kernels and exchanges do to each other: `p->overlap`, from shapes seen with and without.
 * Where a shape was only ever seen beside something, its time alone follows. Fails with TD_NOMEM.
 */
td_status td_calibrate_overlap(td_arena *a, td_samples *s, td_profile *p, td_err *err);

/*
 * How busy GPUs slow down, and what one GPU takes over the median one: of products and attention
 * seen at different shares of time busy and on several ranks. Observations become those of the
 * lowest share. `gpu_time` [n_ranks], 0: not known. Fails with TD_NOMEM.
 */
td_status td_calibrate_clocks(td_arena *a, td_samples *s, bool with_duty, td_curve *duty,
                              const double **gpu_time, td_err *err);

/*
 * Carries the duty curve on to shares that only traces without parts reach: their passes against
 * what the profile, which is whole otherwise, says that they take at rest. Fails as reading a trace
 * does.
 */
td_status td_calibrate_hot(td_arena *a, int32_t n_sources, const td_calibrate_source *sources,
                           td_profile *p, td_err *err);

/* ---- fits ---- */

/* Sorts x; n >= 1. Quantiles as GSL defines them (linear between order statistics). */
double td_fit_quantile(double *x, int32_t n, double share);
void td_fit_quantiles(double *x, int32_t n, double out[TD_N_QUANTILES]);

/* y = slope * x + constant; what cannot be told has an error of INFINITY. */
typedef struct {
    double slope, constant, slope_error, constant_error;
} td_fit;

/*
 * Robust (Tukey's bisquare, iteratively reweighted) in relative errors: each equation is divided by
 * `scale`. With fewer than two different x the constant is `constant`. Both results are >= 0.
 * Fails with TD_NOMEM.
 */
td_status td_fit_line(int32_t n, const double *x, const double *y, const double *scale,
                      double constant, td_fit *out, td_err *err);

#endif
