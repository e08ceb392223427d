/*
 * tandem-cuda: one rank of `tandem run --on cuda` on one GPU, started by mpirun or any other MPI
 * launcher. Rank 0 prints the answer.
 */
#include "exec/cuda.h"
#include "exec/host_job.h"

#include <stdio.h>
#include <stdlib.h>

/* $XDG_CACHE_HOME/tandem-products, or in ~/.cache; NULL without a home. */
static const char *cache_file(void)
{
    static char path[4096];
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (cache != NULL && *cache == '/')
        n = snprintf(path, sizeof path, "%s/tandem-products", cache);
    else if (home != NULL && *home == '/')
        n = snprintf(path, sizeof path, "%s/.cache/tandem-products", home);
    return n > 0 && n < (int)sizeof path ? path : NULL;
}

static td_status open_cuda(td_arena *a, const td_program *p, int32_t rank, const td_run_options *o,
                           const td_device **out, td_err *err)
{
    (void)o;
    return td_cuda_open(a, p, rank, cache_file(), out, err);
}

int main(int argc, char **argv)
{
    static const td_job_backend backend = {.name = "cuda",
                                           .program = "tandem-cuda",
                                           .open = open_cuda,
                                           .close = td_cuda_close,
                                           .room = td_cuda_room,
                                           .clock_error = td_cuda_device_clock_error,
                                           .tell = td_cuda_tell};
    /* As many hardware queues as there can be: a lane that waits for a peer must not stand in front
     * of another one. Read by CUDA when it starts. */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    return td_job_main(argc, argv, &backend);
}
