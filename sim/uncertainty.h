/*
 * How far a prediction can be off, and what decides it: the profile knows how well its fits met
 * measurements that were held out of them (td_profile.part_residuals, coll_residuals), and a step
 * predicted again and again at prices drawn from that says what it means for the step.
 *
 * A draw multiplies every price by exp(residual), one for each distinct shape: GEMM and attention
 * by their dimensions and pass, passes over memory by class and bytes, communication by collective,
 * ranks, bytes and links. No price falls below what the physical peaks allow. The residual of a
 * shape is that of its class at the normal score
 *     z = sqrt(1/2) * (common to its class) + sqrt(1/2) * (its own),
 * so that each is distributed as the profile says, and half of the variance is common to the class.
 * That half is an assumption: quantiles cannot tell scatter of single shapes, which averages out
 * over a step, from an error of all shapes at once (other clocks, another machine), which does not.
 * All of it common covers the worst case, none of it promises too much on steps of many shapes.
 *
 * Not drawn, for want of data: clocks (those of the prediction stay), slow-downs of overlap, and
 * contention, which stretches a draw in the proportion in which it stretches the prediction.
 */
#ifndef TANDEM_SIM_UNCERTAINTY_H
#define TANDEM_SIM_UNCERTAINTY_H

#include "sim/predict.h"

/*
 * method, name in reports: LINEARISED adds up the critical path at the drawn prices: next to free,
 * but blind to other paths that a draw makes longer. RESIMULATED plays the step for every draw,
 * links not shared, learns from that how far the linearised step is to be trusted, and corrects it.
 */
#define TD_UNCERTAINTY_MAP(X)                                                                      \
    X(AUTO, "auto") /* re-simulated if that takes little, judged by ops and ranks, not by a clock  \
                     */                                                                            \
    X(RESIMULATED, "re-simulated")                                                                 \
    X(LINEARISED, "linearised")                                                                    \
    X(NONE, "none") /* sensitivities only */

typedef enum {
#define X(method, name) TD_UNCERTAINTY_##method,
    TD_UNCERTAINTY_MAP(X)
#undef X
        TD_N_UNCERTAINTIES
} td_uncertainty_method;
extern const char *const td_uncertainty_names[TD_N_UNCERTAINTIES];

enum { TD_MIN_SAMPLES = 16 };

typedef struct {
    td_uncertainty_method method;
    int32_t samples; /* at least TD_MIN_SAMPLES of that method; 0: 32 re-simulated or 4096
                        linearised ones */
} td_uncertainty_options;

/*
 * `share`: relative change of the step over that of what is named, to first order: the share of the
 * critical path that consists of it. The gap before it belongs to no kernel's class, and what takes
 * longer than alone, beside compute or on shared links, is `overlap`.
 */
typedef struct {
    const char *what; /* gemm fwd, attention, norm, ..., all_reduce, ..., kernel gap, overlap */
    double share;
} td_sensitivity;

typedef struct {
    td_uncertainty_method method; /* that was used; NONE: there is no interval */
    int32_t samples;
    double low_s, high_s; /* interval of the step; the prediction lies in it, at its end if every
                             fit errs to one side */
    double level;         /* share of the draws in it: 0.9 */
    const char *basis;    /* which classes have residuals, and what was assumed for the others */
    int32_t n_sensitivities;
    const td_sensitivity *sensitivities; /* largest first; with waiting they add up to 1 */
} td_uncertainty;

/* The same prediction has the same uncertainty every time. Fails as td_engine_run() does. */
td_status td_uncertainty_of(td_arena *a, const td_prediction *p, const td_uncertainty_options *o,
                            td_uncertainty *out, td_err *err);

/*
 * ln(measured / fitted) at the normal score z (0: the median): exact at the quantiles, linear in z
 * between them, so that a normal distribution comes out as one; the outer segments go on to |z| = 3
 * and end there.
 */
double td_residual_at(const td_residuals *r, double z);

#endif
