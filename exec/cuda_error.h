/* CUDA's failures as ours. */
#ifndef TANDEM_EXEC_CUDA_ERROR_H
#define TANDEM_EXEC_CUDA_ERROR_H

#include "model/status.h"

/* TD_OK for cudaSuccess; else TD_RUN: `WHAT: out of memory (cudaErrorMemoryAllocation)`. */
td_status td_cuda_failed(int cuda_error, const char *what, td_err *err);

#endif
