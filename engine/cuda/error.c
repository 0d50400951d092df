/* CUDA's errors as ours; see cuda.h. */
#include "engine/cuda/cuda.h"

#include <string.h>

static zb_status status_of(cudaError_t error)
{
    switch (error) {
    case cudaErrorMemoryAllocation:
        return ZB_NO_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
        return ZB_UNSUPPORTED;
    default:
        return ZB_INTERNAL;
    }
}

zb_status zb_cuda_fail(cudaError_t error, const char *call, const char *file, int line)
{
    const zb_status status = status_of(error);
    const int name_bytes = (int)strcspn(call, "(");
    (void)cudaGetLastError();
    return zb_fail(status, "%.*s at %s:%d%s: %s (%s)", name_bytes, call, file, line,
                   status == ZB_INTERNAL ? ", or work queued before it" : "", cudaGetErrorString(error),
                   cudaGetErrorName(error));
}
