/* Memory of one process's GPU in the address space of another process's GPU (CUDA IPC). */
#ifndef TANDEM_EXEC_CUDA_MAP_H
#define TANDEM_EXEC_CUDA_MAP_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

/* What the owner tells the others. */
typedef struct {
    bool possible;
    char why[128]; /* not possible: the reason */
    char pci[32];  /* the owner's GPU: its number may be another one in another process */
    cudaIpcMemHandle_t handle;
} td_cuda_loan;

/* `memory` is a cudaMalloc() of the current GPU, whole; NULL: none, which is not possible. */
td_cuda_loan td_cuda_lend(void *memory);
/*
 * Maps what another process lent; a reason in `why` if that cannot be. What is mapped several times
 * has one address and is unmapped by as many cudaIpcCloseMemHandle().
 */
bool td_cuda_map(const td_cuda_loan *loan, void **out, char *why, size_t size);

/* True for cudaSuccess; else the reason, and nobody finds the error who next asks for the last. */
bool td_cuda_possible(cudaError_t error, const char *what, char *why, size_t size);

#endif
