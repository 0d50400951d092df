/* A GPU, on a stream of its own. */
#include "kernels/cuda/launch.h"
#include "tests/cuda/harness.h"

static cudaStream_t stream;

static zb_status check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return ZB_OK;
    return zb_fail(ZB_INTERNAL, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

static zb_status open_gpu(void)
{
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return zb_fail(ZB_UNSUPPORTED, "%s", cudaGetErrorString(error));
    if (count == 0) return zb_fail(ZB_UNSUPPORTED, "CUDA counts 0 devices");
    return check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}

static zb_status take(size_t bytes, void **pointer_p)
{
    return check(cudaMalloc(pointer_p, bytes), "cudaMalloc");
}

static void give(void *pointer)
{
    assert_ok(check(cudaFree(pointer), "cudaFree"));
}

static zb_status copy_in(void *to, const void *from, size_t bytes)
{
    return check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
}

static zb_status copy_out(void *to, const void *from, size_t bytes)
{
    return check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

static void no_seed(uint64_t seed)
{
    (void)seed; /* the GPU has orders enough */
}

static zb_status launch(zb_kernel kernel, const void *args, size_t args_bytes)
{
    return zb_cuda_launch(stream, kernel, args, args_bytes);
}

static zb_status wait_idle(void)
{
    return check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

const test_device device_under_test = {
    .name = "a GPU",
    .open = open_gpu,
    .alloc = take,
    .free = give,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .set_seed = no_seed,
    .launch = launch,
    .wait_idle = wait_idle,
};
