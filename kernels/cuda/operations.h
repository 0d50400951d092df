/* The operations on a GPU, one host function each: checks the types, chooses a kernel and queues it.
 * launch.cu calls them. */
#ifndef ZB_KERNELS_CUDA_OPERATIONS_H
#define ZB_KERNELS_CUDA_OPERATIONS_H

#include <cuda_runtime_api.h>
#include <zerobit/kernels.h>

/* zb_cuda_op_add(stream, &args), zb_cuda_op_matmul(stream, &args), ... */
#define ZB_CUDA_OPERATION(name)                                                                              \
    zb_status zb_cuda_op_##name(cudaStream_t stream, const zb_##name##_args *args);
ZB_KERNEL_MAP(ZB_CUDA_OPERATION)
#undef ZB_CUDA_OPERATION

#endif
