/*
 * The inside of sim/calibrate*.c: observations of shapes, read from traces, and robust fits to
 * them.
 */
#ifndef TANDEM_SIM_CALIBRATE_SAMPLES_H
#define TANDEM_SIM_CALIBRATE_SAMPLES_H

#include "sim/calibrate.h"
#include "sim/cost.h"

/* What ran at the same time: nothing to speak of, exchanges of one kind (of a part) or kernels (of
 * an exchange) all the time, or anything else: so count all times of ranks that shared cores. */
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
    double heat; /* mean */
} td_observation;

/* One time of a shape, as a trace has it. */
typedef struct {
    int32_t shape, beside, source, rank;
    double s;
    double heat; /* mean heat of the GPU while it ran; of an exchange 0 */
} td_sample;

/* A spell of work: a part that was looked at, or a compute op (all of a prediction, since it
 * stretches all of an op alike). */
typedef struct {
    double start_s, end_s;
    uint8_t class;    /* of a part */
    int64_t first, n; /* samples that were taken in it */
    int32_t work;     /* of a compute op; -1 */
    bool alone;       /* nothing of weight ran beside it */
} td_spell;

/* What one GPU did, in order of time. */
typedef struct {
    const td_program *program;
    int32_t source, rank;
    double begin_s, end_s; /* of the trace */
    int64_t n;
    td_spell *spells;
} td_track;

/* A work of a program in shapes. */
typedef struct {
    int32_t n;
    int32_t *shape, *times; /* [n] what, and how often */
} td_recipe;

struct td_samples {
    int32_t n_shapes, n_observations, n_ranks;
    td_shape *shapes;
    td_observation *observations; /* by shape, what ran beside, heat, source, rank */
    int64_t n_samples;
    td_sample *samples; /* by track and time */
    int32_t n_tracks;
    td_track *tracks;
    td_recipe **recipes; /* [n_sources][n_works] of works that a track has as a whole */
    double part_overhead_s;
    int64_t n_across;
    bool measured;        /* by every source */
    const bool *on_cores; /* [sources] measured on a host */
    const char *backend;  /* that ran all measured sources; "": none, or several */
    td_environment environment;
};

/* Tracks and samples; heats are not known yet. */
td_status td_samples_read(td_arena *a, int32_t n, const td_calibrate_source *sources,
                          td_samples *out, td_err *err);

/* Observations from the samples as they are now, and the times of shapes. Fails with TD_NOMEM. */
td_status td_samples_observe(td_arena *a, td_samples *s, td_err *err);

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
 * How warm GPUs slow down (`p->heat`, `p->duty`), and what one GPU takes over the median one.
 * Fitted to all times of products and attention and to all passes of traces without parts, which
 * are the hottest: looking at parts leaves gaps. `p` holds what is likely beforehand, which stays
 * where the traces do not tell otherwise; without a curve there nothing is fitted. Samples get
 * their heat, and those of products and attention become those of full clocks. `gpu_time`
 * [n_ranks], 0: not known. Fails with TD_NOMEM.
 */
td_status td_calibrate_clocks(td_arena *a, td_samples *s, td_profile *p, const double **gpu_time,
                              td_err *err);

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
