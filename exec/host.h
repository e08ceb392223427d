/* The host device: kernels on this machine's cores, communication through MPI. One process per
 * rank. */
#ifndef TANDEM_EXEC_HOST_H
#define TANDEM_EXEC_HOST_H

#include "exec/device.h"

typedef struct td_host td_host;

/* Needs MPI_Init. Collective over all ranks: makes the program's communicators and sets the clocks
 * by rank 0's. */
td_status td_host_open(td_arena *a, const td_program *p, int32_t rank, bool buffered, td_host **out,
                       td_err *err);
void td_host_close(td_host *h);

const td_device *td_host_device(const td_host *h);

/* How far the clocks of two ranks may differ, seconds. */
double td_host_clock_error(const td_host *h);

#endif
