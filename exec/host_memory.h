/* Does what the ranks of this machine will hold fit into it? Asked before anything is allocated. */
#ifndef TANDEM_EXEC_HOST_MEMORY_H
#define TANDEM_EXEC_HOST_MEMORY_H

#include "model/program.h"

/*
 * Collective over all ranks. TD_RUN on every rank of a machine whose ranks together need more, as
 * the memory model says, than is available on it.
 */
td_status td_host_memory_check(td_arena *a, const td_program *p, int32_t rank, td_err *err);

#endif
