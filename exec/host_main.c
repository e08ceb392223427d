/*
 * tandem-host: one rank of `tandem run --on host`, started by mpirun or any other MPI launcher.
 * Rank 0 prints the answer.
 */
#include "exec/host.h"
#include "exec/host_job.h"
#include "exec/host_kernels.h"
#include "exec/host_memory.h"

static td_status open_host(td_arena *a, const td_program *p, int32_t rank, const td_run_options *o,
                           const td_device **out, td_err *err)
{
    td_host *host = NULL;
    const td_status st = td_host_open(a, p, rank, o->buffered, &host, err);
    if (st == TD_OK)
        *out = td_host_device(host);
    return st;
}

static void close_host(const td_device *device, bool failed)
{
    (void)failed;
    if (device != NULL)
        td_host_close(device->self);
}

static double clock_error(const td_device *device)
{
    return td_host_clock_error(device->self);
}

int main(int argc, char **argv)
{
    static const td_job_backend backend = {.name = "host",
                                           .program = "tandem-host",
                                           .open = open_host,
                                           .close = close_host,
                                           .room = td_host_memory_check,
                                           .clock_error = clock_error};
    td_host_kernels_open();
    return td_job_main(argc, argv, &backend);
}
