/* The object behind `tandem compare --json`, which the page holds as well. */
#ifndef TANDEM_TRACES_COMPARE_JSON_H
#define TANDEM_TRACES_COMPARE_JSON_H

#include "traces/compare.h"

#include <jansson.h>

/* The caller drops the reference; NULL without memory. */
json_t *td_comparison_json(const td_comparison *c);

#endif
