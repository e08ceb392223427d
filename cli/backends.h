/* The backends there are and whether this build has them. */
#ifndef TANDEM_CLI_BACKENDS_H
#define TANDEM_CLI_BACKENDS_H

#include "sim/engine.h"

typedef struct {
    const char *name, *summary;
    bool present;
    td_flows flows;
    const td_net *net;
} td_backend;

extern const td_backend td_backends[]; /* predicting backends, best first; ends with a NULL name */

/* By name, or the best present one for NULL. TD_USAGE listing the names, TD_ABSENT. */
td_status td_backend_find(const char *name, const td_backend **out, td_err *err);

#endif
