/* A prediction as a time chart in the terminal. */
#ifndef TANDEM_CLI_PICTURE_H
#define TANDEM_CLI_PICTURE_H

#include "sim/predict.h"

#include <stdio.h>

/* One row per rank; of many ranks a sample, or only `rank` if it is not negative. Colours only on a
 * terminal. */
td_status td_picture_print(td_arena *a, FILE *out, const td_prediction *p, int32_t rank,
                           td_err *err);

#endif
