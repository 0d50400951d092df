/* The CUDA kernels on the CPU: device memory is the host's, and a launch has run when it returns. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/launch.h"
#include "sim/simt/simt.h"
#include "tests/cuda/harness.h"

static zb_status done(void)
{
    return ZB_OK;
}

static zb_status take(size_t bytes, void **pointer_p)
{
    *pointer_p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *pointer_p != NULL ? ZB_OK : zb_fail(ZB_NO_MEMORY, "%zu bytes", bytes);
}

static zb_status copy(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
    return ZB_OK;
}

static zb_status launch(zb_kernel kernel, const void *args, size_t args_bytes)
{
    return zb_cuda_launch(NULL, kernel, args, args_bytes);
}

const test_device device_under_test = {
    .name = "the CUDA kernels on the CPU",
    .open = done,
    .alloc = take,
    .free = free,
    .copy_in = copy,
    .copy_out = copy,
    .set_seed = sim_simt_set_seed,
    .launch = launch,
    .wait_idle = done,
};
