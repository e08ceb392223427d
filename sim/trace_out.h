/* A prediction as a trace, in the form that measured traces have. */
#ifndef TANDEM_SIM_TRACE_OUT_H
#define TANDEM_SIM_TRACE_OUT_H

#include "sim/predict.h"
#include "traces/trace.h"

/*
 * Writes one step of every rank to `path`. With `fine` the parts of compute ops follow as children.
 * Times are rounded to whole nanoseconds, starts and ends separately, so that what follows without
 * a gap still does.
 */
td_status td_prediction_write(td_arena *a, const td_prediction *p, const char *path,
                              const char *backend, bool fine, td_err *err);

#endif
