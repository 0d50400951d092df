/* From an operation's number to its function. */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/operations.h"

static zb_status wrong_size(const char *name, size_t found, size_t expected)
{
    return zb_fail(ZB_INVALID_ARGUMENT, "launch of %s with %zu bytes of arguments, want %zu", name, found,
                   expected);
}

zb_status zb_cuda_launch(cudaStream_t stream, zb_kernel kernel, const void *args, size_t args_bytes)
{
    switch (kernel) {
#define ZB_CUDA_CASE(name)                                                                                   \
    case ZB_KERNEL_##name:                                                                                   \
        if (args_bytes != sizeof(zb_##name##_args))                                                          \
            return wrong_size(#name, args_bytes, sizeof(zb_##name##_args));                                  \
        return zb_cuda_op_##name(stream, static_cast<const zb_##name##_args *>(args));
        ZB_KERNEL_MAP(ZB_CUDA_CASE)
#undef ZB_CUDA_CASE
    case ZB_KERNEL_COUNT:
        break;
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "launch of operation %d; there are %d", (int)kernel,
                   (int)ZB_KERNEL_COUNT);
}
