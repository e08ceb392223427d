/* Proves that a step program can run, before anything does. */
#ifndef TANDEM_MODEL_PROGRAM_CHECK_H
#define TANDEM_MODEL_PROGRAM_CHECK_H

#include "model/program.h"
#include "model/progress.h"

/*
 * Every op well-formed (channel, work and dependencies in range and earlier); every exchange
 * matched: the k-th ops of all members of each communicator are the same exchange with the same
 * bytes; each microbatch forward once and, where the stage has a backward, backward once and later;
 * microbatches in flight within the schedule's bound. Fails with TD_PLAN naming rank and op.
 * TD_NOMEM.
 */
td_status td_program_check(td_arena *a, const td_program *p, td_err *err);

/*
 * Does the plan's step come to its end under each completion rule? Judged on a small stand-in, so
 * the size of the plan does not matter; the cycle names ranks of the plan. Fails only for TD_NOMEM
 * or a plan that has no pipeline.
 */
td_status td_plan_progress(td_arena *a, const td_plan *plan, td_progress out[TD_N_COMPLETIONS],
                           td_err *err);

/* The rule that a plan needs to run: the strictest under which it completes; TD_N_COMPLETIONS if
 * under none. */
td_completion td_progress_needs(const td_progress progress[TD_N_COMPLETIONS]);

#endif
