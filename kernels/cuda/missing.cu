/* Operations that have no kernel yet: they are refused by name. */
#include "kernels/cuda/operations.h"

#define ZB_CUDA_MISSING(name)                                                                                \
    zb_status zb_cuda_op_##name(cudaStream_t, const zb_##name##_args *)                                      \
    {                                                                                                        \
        return zb_fail(ZB_UNSUPPORTED, "%s has no CUDA kernel", #name);                                      \
    }
ZB_CUDA_MISSING(matmul)
ZB_CUDA_MISSING(linear_forward)
ZB_CUDA_MISSING(linear_backward_input)
ZB_CUDA_MISSING(linear_backward_weight)
ZB_CUDA_MISSING(linear_backward_bias)
ZB_CUDA_MISSING(conv2d_forward)
ZB_CUDA_MISSING(conv2d_backward_input)
ZB_CUDA_MISSING(conv2d_backward_weight)
ZB_CUDA_MISSING(conv2d_backward_bias)
ZB_CUDA_MISSING(maxpool2d_forward)
ZB_CUDA_MISSING(maxpool2d_backward)
ZB_CUDA_MISSING(cross_entropy_forward)
ZB_CUDA_MISSING(cross_entropy_backward)
ZB_CUDA_MISSING(mse_forward)
ZB_CUDA_MISSING(mse_backward)
