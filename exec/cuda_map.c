/* Lending memory of a GPU to other processes of the machine. */
#include "exec/cuda_map.h"

#include <stdio.h>

bool td_cuda_possible(cudaError_t error, const char *what, char *why, size_t size)
{
    if (error == cudaSuccess)
        return true;
    snprintf(why, size, "%s: %s", what, cudaGetErrorString(error));
    (void)cudaGetLastError();
    return false;
}

td_cuda_loan td_cuda_lend(void *memory)
{
    td_cuda_loan l = {.possible = false};
    int device = 0;
    if (memory == NULL)
        snprintf(l.why, sizeof l.why, "the owner has no memory to lend");
    else
        l.possible =
            td_cuda_possible(cudaGetDevice(&device), "finding the GPU", l.why, sizeof l.why) &&
            td_cuda_possible(cudaDeviceGetPCIBusId(l.pci, sizeof l.pci, device), "naming the GPU",
                             l.why, sizeof l.why) &&
            td_cuda_possible(cudaIpcGetMemHandle(&l.handle, memory), "lending memory", l.why,
                             sizeof l.why);
    return l;
}

/* A GPU that this process does not see can be mapped nevertheless: then mapping decides. */
static bool reachable(const td_cuda_loan *l, char *why, size_t size)
{
    int here = 0, there = 0, can = 1;
    if (!td_cuda_possible(cudaGetDevice(&here), "finding the GPU", why, size))
        return false;
    if (cudaDeviceGetByPCIBusId(&there, l->pci) != cudaSuccess)
        (void)cudaGetLastError();
    else if (there != here && !td_cuda_possible(cudaDeviceCanAccessPeer(&can, here, there),
                                                "asking for peer access", why, size))
        return false;
    if (!can)
        snprintf(why, size, "no peer access to GPU %s", l->pci);
    return can != 0;
}

bool td_cuda_map(const td_cuda_loan *loan, void **out, char *why, size_t size)
{
    if (!loan->possible)
        snprintf(why, size, "%s", loan->why);
    return loan->possible && reachable(loan, why, size) &&
           td_cuda_possible(cudaIpcOpenMemHandle(out, loan->handle, cudaIpcMemLazyEnablePeerAccess),
                            "mapping another GPU's memory", why, size);
}
