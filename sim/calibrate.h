/*
 * Calibration: the inverse of prediction. Fine traces, joined with the programs they are traces of,
 * say how long every part and every exchange took; from that follow the tables, rooflines and
 * residuals of a profile. Traces of predictions serve as well as measured ones, which is how we
 * know that it works: the costs that went in come out.
 *
 * An observation is the median time of one shape (of a product, a pass over so many bytes, an
 * exchange of so many) on one rank of one trace; of what cores ran, the lower quartile. A shape's
 * time is the median of its observations while nothing else ran beside it, where there are such. An
 * exchange begins when the last of its members has issued it; before that they wait, which is not
 * its time.
 *
 * Nothing is invented: what no trace shows keeps the base's roofline, has no table and no overlap,
 * and says so by residuals of 0 samples. Clocks and heat begin as the base's and move as far as the
 * traces tell; without a base there are none.
 */
#ifndef TANDEM_SIM_CALIBRATE_H
#define TANDEM_SIM_CALIBRATE_H

#include "model/profile.h"
#include "model/program.h"

/*
 * A trace and the program it is of; the digest is checked. Of two traces of one program, one with
 * parts and one without, the difference is what looking costs: it is taken off every part, also of
 * other traces measured with parts.
 */
typedef struct {
    const char *trace;
    const td_program *program;
} td_calibrate_source;

typedef struct {
    /* Peaks, and what no trace shows. NULL: the largest rates found are taken for the peaks. */
    const td_profile *base;
    const char *name, *gpu;     /* of the new profile */
    const char *source;         /* in one sentence; what was left out is added */
    double memory_bytes;        /* of one GPU, where there is no base */
    td_environment environment; /* what the traces do not tell; NULL texts: nothing */
} td_calibrate_options;

/* A class of parts, or a collective. */
typedef struct {
    const char *name;
    int64_t n_samples;             /* times read */
    int32_t n_shapes;              /* different ones */
    int32_t n_beside;              /* shapes seen only beside something else */
    const td_residuals *residuals; /* of what was held out */
} td_calibrated_class;

typedef struct td_samples td_samples;

typedef struct {
    td_profile profile;
    td_calibrated_class classes[TD_N_PARTS + TD_N_COLLS]; /* without `collective` */
    int32_t n_classes;
    int32_t n_gpus;         /* ranks seen */
    const double *gpu_time; /* [n_gpus] time of products there over the median GPU's; 0: unknown */
    double part_overhead_s; /* of looking at a part; 0 where it could not be told */
    int64_t n_across;       /* exchanges left out because they leave a node */
    int64_t n_precision;    /* parts left out because the profile's products are of bf16 */
    const td_samples *samples;
} td_calibration;

/* Everything lives in `a`. Fails with TD_FILE: no trace, one of another program, no times in it. */
td_status td_calibrate(td_arena *a, int32_t n_sources, const td_calibrate_source *sources,
                       const td_calibrate_options *o, td_calibration *out, td_err *err);

/* How the times measured stand to a profile: ln(measured / profile) by class. */
typedef struct {
    const char *name;
    int32_t n; /* shapes; 0: none */
    double q[TD_N_QUANTILES];
} td_drift;

/* Of each class of `c`, in their order. */
td_status td_calibration_drift(td_arena *a, const td_calibration *c, const td_profile *against,
                               td_drift out[TD_N_PARTS + TD_N_COLLS], td_err *err);

#endif
