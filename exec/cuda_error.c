/* CUDA's failures as ours. */
#include "exec/cuda_error.h"

#include <cuda_runtime_api.h>

td_status td_cuda_failed(int cuda_error, const char *what, td_err *err)
{
    const cudaError_t error = (cudaError_t)cuda_error;
    if (error == cudaSuccess)
        return TD_OK;
    return td_fail(err, TD_RUN, "%s: %s (%s)", what, cudaGetErrorString(error),
                   cudaGetErrorName(error));
}
