/* Ranks that are processes with a GPU each; see processes_nccl.h. */
#include "tools/processes_nccl.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/orders.h>
#if ZB_WITH_NCCL
#include <zerobit/cuda.h>
#include <zerobit/nccl.h>
#endif

#include "tools/devices.h"

#if ZB_WITH_NCCL

exit_code processes_nccl_check(const char *command, const processes *p, const input_options *input)
{
    int count;
    if (input->order != NULL && strcmp(input->order, "native") == 0)
        return command_failed(command, zb_fail(ZB_INVALID_ARGUMENT,
                                               "--order native with --comm nccl: NCCL tells its order only "
                                               "when it adds; name it by --order nccl-ring ..."));
    if (p->native && input->order == NULL)
        return command_failed(
            command, zb_fail(ZB_INVALID_ARGUMENT,
                             "--native with --comm nccl: name NCCL's order by --order nccl-ring ..."));
    const zb_status status = zb_cuda_device_count(&count);
    if (status == ZB_OK) return EXIT_EQUAL;
    const exit_code code = command_failed(command, status);
    return status == ZB_UNSUPPORTED ? EXIT_LACKING : code;
}

zb_status processes_nccl_start(processes *p, const inputs *in)
{
    zb_nccl_environment here;
    int count;
    ZB_TRY(zb_nccl_environment_read(&here));
    ZB_TRY(zb_cuda_device_count(&count));
    if (here.local_rank >= count && !p->shared_gpu)
        return zb_fail(
            ZB_UNSUPPORTED,
            "rank %d is number %d of this machine, which has %d GPUs; --shared-gpu lets ranks share one",
            here.rank, here.local_rank, count);
    devices_use_gpu(here.local_rank % count);
    ZB_TRY(zb_device_cuda_create(here.local_rank % count, &p->device));
    const zb_nccl_options options = { .device = p->device,
                                      .environment = &here,
                                      .native = p->native ? in->config->orders : NULL,
                                      .timeout_seconds = (double)p->timeout,
                                      .shared_gpu = p->shared_gpu };
    const zb_status status = zb_comm_nccl_create(&options, &p->comm);
    if (status == ZB_OK) return ZB_OK;
    zb_device_destroy(p->device);
    p->device = NULL;
    return status;
}

void processes_nccl_end(processes *p, int orderly)
{
    if (p->comm == NULL) return;
    if (!orderly)
        zb_comm_fail(p->comm, ZB_INTERNAL,
                     zb_error_message()[0] != '\0' ? zb_error_message() : "ended with a failure");
    zb_comm_destroy(p->comm);
    zb_device_destroy(p->device);
    p->comm = NULL;
    p->device = NULL;
}

#else

exit_code processes_nccl_check(const char *command, const processes *p, const input_options *input)
{
    (void)p;
    (void)input;
    return command_lacks(command, "NCCL communicator");
}

zb_status processes_nccl_start(processes *p, const inputs *in)
{
    (void)p;
    (void)in;
    return ZB_OK;
}

void processes_nccl_end(processes *p, int orderly)
{
    (void)p;
    (void)orderly;
}

#endif
