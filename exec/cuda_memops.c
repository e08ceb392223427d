/* Finding the driver's stream memory operations. */
#include "exec/cuda_memops.h"
#include "exec/cuda_error.h"

#include <cuda_runtime_api.h>
#include <string.h>

enum { DRIVER_API = 12000 }; /* the second form of these functions is of 11.7 */

static td_status find(const char *name, void *function, td_err *err)
{
    td_status st = TD_OK;
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *at = NULL;
    TD_TRY(st, td_cuda_failed((int)cudaGetDriverEntryPointByVersion(name, &at, DRIVER_API,
                                                                    cudaEnableDefault, &found),
                              name, err));
    if (found != cudaDriverEntryPointSuccess || at == NULL)
        TD_TRY(st, td_fail(err, TD_RUN, "the CUDA driver has no %s", name));
    memcpy(function, &at, sizeof at); /* ISO C converts no pointer to data into one to a function */
done:
    return st;
}

td_status td_cuda_memops_find(td_cuda_memops *out, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, find("cuStreamWriteValue32", &out->write, err));
    TD_TRY(st, find("cuStreamWaitValue32", &out->wait, err));
    TD_TRY(st, find("cuStreamBatchMemOp", &out->batch, err));
done:
    return st;
}

td_status td_cuda_memop_failed(CUresult result, const char *what, td_err *err)
{
    return td_cuda_failed((int)result, what, err);
}
