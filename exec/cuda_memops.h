/*
 * Stream memory operations: a stream writes a word or waits for one without a kernel. They are the
 * driver's, so they are found when first needed and nothing links against it. Addresses are the
 * GPU's; memory of the host has to be mapped and is named by its device pointer (CUDA Driver API,
 * "Stream Memory Operations").
 */
#ifndef TANDEM_EXEC_CUDA_MEMOPS_H
#define TANDEM_EXEC_CUDA_MEMOPS_H

#include "model/status.h"

#include <cuda.h>
#include <cudaTypedefs.h>

typedef struct {
    PFN_cuStreamWriteValue32_v11070 write;
    PFN_cuStreamWaitValue32_v11070 wait;
    PFN_cuStreamBatchMemOp_v11070 batch;
} td_cuda_memops;

/* TD_RUN where the driver has none. */
td_status td_cuda_memops_find(td_cuda_memops *out, td_err *err);

/* What one of them returned; the numbers of driver and runtime mean the same. */
td_status td_cuda_memop_failed(CUresult result, const char *what, td_err *err);

#endif
