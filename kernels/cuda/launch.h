/*
 * Every operation of <zerobit/kernels.h> on a GPU: the host's side of a launch, in C.
 *
 * Three things stand behind this one function. Built by nvcc, it launches CUDA kernels (launch.cu). Linked
 * with the stand-in of the CUDA run-time (sim/cuda), it queues the CPU's twin of the operation. And the CUDA
 * kernels themselves, compiled for the CPU (sim/simt), run at once: so their code is tested without a GPU.
 */
#ifndef ZB_KERNELS_CUDA_LAUNCH_H
#define ZB_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <zerobit/kernels.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Queues one operation on `stream` of the calling thread's current device. `args` is that operation's struct
 * and may be gone when this returns; so may the arrays on the host that it points to (`inputs` of
 * ordered_reduce and tree_reduce, their `tree` and `order`). All other pointers are to device memory.
 *
 * ZB_INVALID_ARGUMENT for an unknown operation or a wrong `args_bytes`; ZB_UNSUPPORTED for a type the
 * operation does not take, as on the CPU; ZB_NO_MEMORY; ZB_INTERNAL with the operation, the call, its place
 * and CUDA's own words for any other CUDA error. An operation over nothing (numel 0) succeeds and launches
 * nothing, unless the contract says that something is written.
 */
zb_status zb_cuda_launch(cudaStream_t stream, zb_kernel kernel, const void *args, size_t args_bytes);

/** For profilers (by NVTX), and for the stand-in's reports. `name` is copied. */
void zb_cuda_name_stream(cudaStream_t stream, const char *name);

#ifdef __cplusplus
}
#endif
#endif
