/* The tables of part classes and passes. */
#include "model/part.h"

const td_part_traits td_part_table[TD_N_PARTS] = {
#define X(c, text, keyed_by) [TD_PART_##c] = {.name = (text), .key = TD_KEY_##keyed_by},
    TD_PART_MAP(X)
#undef X
};

const char *const td_pass_names[TD_N_PASSES] = {
    [TD_PASS_FORWARD] = "fwd",
    [TD_PASS_DGRAD] = "dgrad",
    [TD_PASS_WGRAD] = "wgrad",
    [TD_PASS_BACKWARD] = "bwd",
};
