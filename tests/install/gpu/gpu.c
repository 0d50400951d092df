/* What there is of GPUs, through the installed library. */
#include <stdio.h>
#include <zerobit/cuda.h>

int main(void)
{
    zb_device *device;
    if (zb_device_cuda_create(0, &device) != ZB_OK) {
        puts(zb_error_message());
        return 0;
    }
    puts("a GPU");
    zb_device_destroy(device);
    return 0;
}
