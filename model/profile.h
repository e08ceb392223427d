/*
 * Cost data of one kind of GPU, as a file: what was measured, where, and how far it can be trusted.
 * Data only; sim/ turns it into seconds. `examples/profiles/` holds the shipped ones.
 */
#ifndef TANDEM_MODEL_PROFILE_H
#define TANDEM_MODEL_PROFILE_H

#include "model/collective.h"
#include "model/diag.h"
#include "model/part.h"

/* How a profile came to be. Reports repeat it beside every number that rests on it. */
typedef enum {
    TD_TRUST_DATASHEET,
    TD_TRUST_PROVISIONAL,
    TD_TRUST_CALIBRATED,
    TD_N_TRUSTS
} td_trust;
extern const char *const td_trust_names[TD_N_TRUSTS];

/* Monotone in x after loading: points sorted by x, y made non-decreasing where a `bytes` curve
 * needs it. */
typedef struct {
    int32_t n;
    const double *x, *y;
} td_curve;

/* After loading sorted by n, k, m, and for each (n, k) and pass made non-decreasing in m as a curve
 * is. */
typedef struct {
    int64_t m, n, k;
    double s[3]; /* seconds: forward, data gradient, weight gradient accumulated in fp32; < 0: not
                    measured */
} td_gemm_row;

typedef struct {
    int32_t batch, seq, heads, head_dim;
    bool causal;
    double forward_s, backward_s; /* < 0: not measured */
} td_attention_row;

typedef struct {
    int32_t ranks;
    td_curve time; /* bytes (as td_collective defines them) -> seconds, all ranks in one node */
} td_coll_curve;

typedef struct {
    double wait_s; /* a transfer that starts beside a running kernel waits this long for its blocks
                      to retire */
    double transfer; /* >= 1: factor on the transfer's time beside compute */
    double compute;  /* >= 1: factor on compute's time beside the transfer */
} td_overlap;

/*
 * What the fit of a class left over, as ln(measured / fitted): quantiles at 5, 25, 50, 75 and 95 %
 * of n samples that were held out of it. n 0: not known.
 */
enum { TD_N_QUANTILES = 5 };
typedef struct {
    int32_t n;
    double q[TD_N_QUANTILES];
} td_residuals;

/* One number for each kind of work that a roofline tells apart. */
typedef struct {
    double gemm[3];      /* by td_pass: forward, data gradient, weight gradient */
    double attention[2]; /* forward, backward */
    double collective[TD_N_COLLS];
} td_by_work;

/*
 * How a power limit sees the work of a GPU. A product heats with 1, a resting GPU with 0, other
 * work in between; what counts for the clock is the mean over an exponential window. On H200 under
 * its limit of 700 W (passes of 10 to 45 ms after rests of 0 to 45 ms, a hundred of them) the
 * window is 42 ms, attention heats 0.88, passes over memory 0.72. Those passes did not tell what
 * tensor-parallel collectives heat: where nobody measured, as much as products, which is cautious;
 * the calibration of the shipped h200 found 0.27.
 */
typedef struct {
    double window_s;
    double attention, memory, collective; /* in [0, 1] */
} td_heat;
extern const td_heat td_heat_usual; /* those of H200: where a profile does not say */

/* Standard errors of what was fitted to measurements; 0 where that is not known. */
typedef struct {
    double kernel_gap_s, memory_efficiency;
    td_by_work efficiency, latency_s;
    td_heat heat;
} td_fit_errors;

/* Where and with what a profile was measured; "" where that was not recorded. */
typedef struct {
    const char *driver, *cuda, *nccl, *cudnn, *date, *clocks;
} td_environment;

typedef struct {
    const char *file, *name, *gpu, *source;
    const char *backend; /* whose execution was measured: cuda, host; "" where that was not
                            recorded, as for GPUs it need not be */
    td_trust trust;
    /* Datasheet peaks, dense. Physical bounds: no part may be predicted faster. */
    double bf16_flops_per_s, fp32_flops_per_s, memory_bytes_per_s, memory_bytes;
    double link_bytes_per_s;  /* one GPU's port, one direction, where the collectives were measured;
                                 0: not given */
    double kernel_gap_s;      /* between dependent kernels of one stream */
    double memory_efficiency; /* share of the bandwidth that a large pass over memory reaches */
    td_by_work efficiency; /* in (0, 1]: share of the peak, or of a link, that large ones reach */
    td_by_work latency_s;  /* what the smallest ones take; collectives of two ranks in a node */
    int32_t n_gemms;
    const td_gemm_row *gemms; /* empty: roofline only */
    int32_t n_attention;
    const td_attention_row *attention;
    td_curve memory[TD_N_PARTS]; /* bytes read plus written -> seconds, for the BYTES classes; n ==
                                    0: use `copy` */
    td_curve copy;
    int32_t n_collectives[TD_N_COLLS];
    const td_coll_curve *collectives[TD_N_COLLS]; /* by ascending ranks */
    int32_t n_in_pass[TD_N_COLLS]; /* those of tensor-parallel groups inside passes, which another
                                      transport may carry; 0: as `collectives` */
    const td_coll_curve *in_pass[TD_N_COLLS];
    td_overlap overlap[TD_N_COLLS];          /* factors 1, wait 0 where nothing was measured */
    td_residuals part_residuals[TD_N_PARTS]; /* by td_part_class */
    td_residuals coll_residuals[TD_N_COLLS];
    td_fit_errors errors;
    td_environment environment;
    td_curve duty; /* heat, its mean over `heat.window_s` -> factor >= 1 on the time of products and
                      attention relative to full clocks; n == 0: none */
    td_heat heat;
} td_profile;

/*
 * Reads a profile. Unknown keys are errors, as in a plan. Fails with TD_FILE and a message with
 * place, fact and expectation.
 */
td_status td_profile_load(td_arena *a, const char *path, const td_profile **out, td_err *err);

/*
 * Writes what td_profile_load() reads, one measurement a line, to a temporary file beside `path`
 * that is renamed when it is whole. What is read from it is what was written, to 9 digits. Fails
 * with TD_FILE.
 */
td_status td_profile_write(const td_profile *p, const char *path, td_err *err);

/*
 * Finds the profile that a cluster's GPU names: `spec` is a shipped name (`h200`) or a path
 * relative to the folder of `named_in`; NULL means the shipped profile whose `gpu` equals
 * `gpu_name`. Shipped profiles are looked for in $TANDEM_PROFILES, in the source tree's
 * examples/profiles and in share/tandem/profiles beside the program. Fails with TD_FILE, listing
 * what there is.
 */
td_status td_profile_find(td_arena *a, const char *spec, const char *gpu_name, const char *named_in,
                          const td_profile **out, td_err *err);

/* Names of the shipped profiles, for `tandem list profiles`: loads each; a broken one is a failure.
 */
td_status td_profile_list(td_arena *a, int32_t *n, const td_profile *const **out, td_err *err);

#endif
