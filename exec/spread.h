/* What a handful of times has in common: their middle and how far they lie about it. */
#ifndef TANDEM_EXEC_SPREAD_H
#define TANDEM_EXEC_SPREAD_H

#include <stdint.h>

typedef struct {
    int32_t n;
    double median, mad; /* mad: the median distance from the median; 0 of nothing */
    double cv;          /* sample standard deviation / mean; NAN of fewer than two, or mean 0 */
} td_spread_of;

/* Sorts `x`, in place; the middle of them, 0 of none. */
double td_spread_median(double *x, int32_t n);

/* `x` is overwritten. */
td_spread_of td_spread_measure(double *x, int32_t n);

#endif
