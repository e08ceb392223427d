/* Fits that a few wild times do not disturb. */
#include "sim/calibrate_samples.h"

#include <gsl/gsl_errno.h>
#include <gsl/gsl_multifit.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>

double td_fit_quantile(double *x, int32_t n, double share)
{
    gsl_sort(x, 1, (size_t)n);
    return gsl_stats_quantile_from_sorted_data(x, 1, (size_t)n, share);
}

void td_fit_quantiles(double *x, int32_t n, double out[TD_N_QUANTILES])
{
    static const double shares[TD_N_QUANTILES] = {0.05, 0.25, 0.5, 0.75, 0.95};
    gsl_sort(x, 1, (size_t)n);
    for (int32_t i = 0; i < TD_N_QUANTILES; i++)
        out[i] = gsl_stats_quantile_from_sorted_data(x, 1, (size_t)n, shares[i]);
}

/* Through a known constant: the median of the slopes, and the standard error of that median. */
static td_status slope_alone(int32_t n, const double *x, const double *y, double constant,
                             td_fit *out, td_err *err)
{
    gsl_vector *slopes = gsl_vector_alloc((size_t)n);
    if (slopes == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a fit of %d times", (int)n);
    size_t m = 0;
    for (int32_t i = 0; i < n; i++)
        if (x[i] > 0)
            gsl_vector_set(slopes, m++, fmax(0, y[i] - constant) / x[i]);
    *out = (td_fit){.constant = constant, .slope_error = INFINITY, .constant_error = INFINITY};
    if (m > 0)
        out->slope = td_fit_quantile(slopes->data, (int32_t)m, 0.5);
    for (size_t i = 0; i < m; i++)
        slopes->data[i] = fabs(slopes->data[i] - out->slope);
    if (m > 1) /* 1.4826 MAD estimates a standard deviation, 1.2533 that of a median of many */
        out->slope_error =
            1.2533 * 1.4826 * td_fit_quantile(slopes->data, (int32_t)m, 0.5) / sqrt((double)m);
    gsl_vector_free(slopes);
    return TD_OK;
}

/* The constant when the slope is 0. */
static td_status constant_alone(int32_t n, const double *y, td_fit *out, td_err *err)
{
    gsl_vector *copy = gsl_vector_alloc((size_t)n);
    if (copy == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a fit of %d times", (int)n);
    for (int32_t i = 0; i < n; i++)
        copy->data[i] = y[i];
    *out = (td_fit){.constant = fmax(0, td_fit_quantile(copy->data, n, 0.5)),
                    .slope_error = INFINITY,
                    .constant_error = INFINITY};
    gsl_vector_free(copy);
    return TD_OK;
}

static td_status both(int32_t n, const double *x, const double *y, const double *scale,
                      double largest, td_fit *out, td_err *err)
{
    td_status st = TD_OK;
    gsl_error_handler_t *handler = gsl_set_error_handler_off();
    gsl_matrix *design = gsl_matrix_alloc((size_t)n, 2), *cov = gsl_matrix_alloc(2, 2);
    gsl_vector *rhs = gsl_vector_alloc((size_t)n), *c = gsl_vector_alloc(2);
    gsl_multifit_robust_workspace *w =
        gsl_multifit_robust_alloc(gsl_multifit_robust_bisquare, (size_t)n, 2);
    if (design == NULL || cov == NULL || rhs == NULL || c == NULL || w == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a fit of %d times", (int)n));
    double constant_scale = INFINITY; /* both columns of about the same size */
    for (int32_t i = 0; i < n; i++)
        constant_scale = fmin(constant_scale, scale[i]);
    for (int32_t i = 0; i < n; i++) {
        gsl_matrix_set(design, (size_t)i, 0, x[i] / largest / scale[i]);
        gsl_matrix_set(design, (size_t)i, 1, constant_scale / scale[i]);
        gsl_vector_set(rhs, (size_t)i, y[i] / scale[i]);
    }
    gsl_multifit_robust_maxiter(200, w);
    /* GSL_EMAXITER leaves the last iterate, which is good enough to be judged by its residuals. */
    const int code = gsl_multifit_robust(design, rhs, c, cov, w);
    if (code != GSL_SUCCESS && code != GSL_EMAXITER)
        TD_TRY(st,
               td_fail(err, TD_FILE, "a fit of %d times failed: %s", (int)n, gsl_strerror(code)));
    const double slope_error = sqrt(gsl_matrix_get(cov, 0, 0)) / largest;
    const double constant_error = sqrt(gsl_matrix_get(cov, 1, 1)) * constant_scale;
    *out = (td_fit){.slope = gsl_vector_get(c, 0) / largest,
                    .constant = gsl_vector_get(c, 1) * constant_scale,
                    .slope_error = isfinite(slope_error) ? slope_error : INFINITY,
                    .constant_error = isfinite(constant_error) ? constant_error : INFINITY};
done:
    gsl_multifit_robust_free(w);
    gsl_vector_free(c);
    gsl_vector_free(rhs);
    gsl_matrix_free(cov);
    gsl_matrix_free(design);
    gsl_set_error_handler(handler);
    return st;
}

td_status td_fit_line(int32_t n, const double *x, const double *y, const double *scale,
                      double constant, td_fit *out, td_err *err)
{
    td_status st = TD_OK;
    double least = INFINITY, most = 0;
    for (int32_t i = 0; i < n; i++) {
        least = fmin(least, x[i]);
        most = fmax(most, x[i]);
    }
    if (n < 3 || most <= least * (1 + 1e-9))
        return slope_alone(n, x, y, constant, out, err);
    TD_TRY(st, both(n, x, y, scale, most, out, err));
    const double slope = out->slope, c = out->constant;
    if (c < 0)
        TD_TRY(st, slope_alone(n, x, y, 0, out, err));
    else if (slope < 0)
        TD_TRY(st, constant_alone(n, y, out, err));
done:
    return st;
}
