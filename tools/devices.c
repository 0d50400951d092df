/* Devices by name; see devices.h. */
#include "tools/devices.h"

#include <stdio.h>
#include <string.h>
#if ZB_WITH_CUDA
#include <zerobit/cuda.h>
#endif

static int gpu;

void devices_use_gpu(int ordinal)
{
    gpu = ordinal;
}

static zb_status create_cpu(void *user, int rank, zb_device **device_p)
{
    (void)rank;
    return user != NULL ? zb_device_cpu_create_poisoning(device_p) : zb_device_cpu_create(device_p);
}

static int yes = 1;
static const zb_device_factory cpu[] = { { "cpu", create_cpu, NULL }, { "cpu", create_cpu, &yes } };

#if ZB_WITH_CUDA
/* All ranks of this process share it. The first GPU is that of CUDA_VISIBLE_DEVICES. */
static zb_status create_cuda(void *user, int rank, zb_device **device_p)
{
    (void)rank;
    return user != NULL ? zb_device_cuda_create_poisoning(gpu, device_p)
                        : zb_device_cuda_create(gpu, device_p);
}

static const zb_device_factory cuda[] = { { "cuda", create_cuda, NULL }, { "cuda", create_cuda, &yes } };

static exit_code find_cuda(const char *command, int poisoning, const zb_device_factory **devices_p)
{
    int count;
    const zb_status status = zb_cuda_device_count(&count);
    *devices_p = &cuda[poisoning];
    if (status == ZB_OK) return EXIT_EQUAL;
    const exit_code code = command_failed(command, status);
    return status == ZB_UNSUPPORTED ? EXIT_LACKING : code;
}
#else
static exit_code find_cuda(const char *command, int poisoning, const zb_device_factory **devices_p)
{
    (void)poisoning;
    (void)devices_p;
    return command_lacks(command, "CUDA device");
}
#endif

exit_code devices_find(const char *command, const char *option, const char *name, int poisoning,
                       const zb_device_factory **devices_p)
{
    *devices_p = &cpu[poisoning];
    if (strcmp(name, "cpu") == 0) return EXIT_EQUAL;
    if (strcmp(name, "cuda") == 0) return find_cuda(command, poisoning, devices_p);
    return command_failed(command, zb_fail(ZB_INVALID_ARGUMENT, "%s %s: want cpu or cuda", option, name));
}
