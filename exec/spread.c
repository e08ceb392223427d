/* Sorting is all there is to it. */
#include "exec/spread.h"

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double td_spread_median(double *x, int32_t n)
{
    if (n == 0)
        return 0;
    qsort(x, (size_t)n, sizeof *x, by_value);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

td_spread_of td_spread_measure(double *x, int32_t n)
{
    td_spread_of s = {.n = n, .median = td_spread_median(x, n), .cv = NAN};
    double mean = 0, squares = 0;
    for (int32_t i = 0; i < n; i++)
        mean += x[i] / n;
    for (int32_t i = 0; i < n; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    if (n > 1 && mean > 0)
        s.cv = sqrt(squares / (n - 1)) / mean;
    for (int32_t i = 0; i < n; i++)
        x[i] = fabs(x[i] - s.median);
    s.mad = td_spread_median(x, n);
    return s;
}
