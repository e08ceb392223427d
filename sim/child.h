/*
 * A process for the back-end: it goes on with the loop from exactly where the parent stands, and
 * whatever happens to it becomes a td_err here.
 */
#ifndef TANDEM_SIM_CHILD_H
#define TANDEM_SIM_CHILD_H

#include "sim/loop.h"

/*
 * Runs the rest of the loop in a child. On success the loop's times and counters are those of the
 * finished run. Fails with TD_RUN, naming the ops that had not ended, if the child dies, gives up
 * or makes no progress for `stall_s`.
 */
td_status td_child_run(td_loop *l, const td_net *net, const uint8_t *flows, double stall_s,
                       td_err *err);

#endif
