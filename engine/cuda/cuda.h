/* What the files that talk to CUDA share: how its errors become ours. */
#ifndef ZB_ENGINE_CUDA_CUDA_H
#define ZB_ENGINE_CUDA_CUDA_H

#include <cuda_runtime_api.h>
#include <zerobit/cuda.h>
#include <zerobit/status.h>

/**
 * Fails with the call, its place, CUDA's words and, since CUDA reports what ran earlier at any later call,
 * that it may be that. ZB_NO_MEMORY for out of memory, ZB_UNSUPPORTED where no GPU can be used, else
 * ZB_INTERNAL. CUDA's memory of the error, where it has one, is cleared: it has been reported.
 */
zb_status zb_cuda_fail(cudaError_t error, const char *call, const char *file, int line);

#define ZB_CUDA_TRY(call)                                                                                    \
    do {                                                                                                     \
        const cudaError_t zb_cuda_error_ = (call);                                                           \
        if (zb_cuda_error_ != cudaSuccess) return zb_cuda_fail(zb_cuda_error_, #call, __FILE__, __LINE__);   \
    } while (0)

#endif
