/* Streams by name in a profiler; costs nothing where none is attached. */
#include <nvtx3/nvToolsExtCudaRt.h>

#include "kernels/cuda/launch.h"

void zb_cuda_name_stream(cudaStream_t stream, const char *name)
{
    nvtxNameCudaStreamA(stream, name);
}
