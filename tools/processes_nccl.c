/* Ranks that are processes with a GPU each; see processes_nccl.h. */
#include "tools/processes_nccl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/orders.h>
#if ZB_WITH_NCCL
#include <zerobit/cuda.h>
#include <zerobit/nccl.h>
#endif

#include "tools/devices.h"

#if ZB_WITH_NCCL

/* Whoever finds no GPU after the others have gone to meet it would keep them waiting. */
static exit_code check_gpus(const char *command, const processes *p, int64_t ranks, int gpus)
{
    zb_nccl_environment here;
    if (ranks == 0) {
        const zb_status status = zb_nccl_environment_read(&here);
        if (status != ZB_OK) return command_failed(command, status);
    }
    const int64_t want = ranks > 0 ? ranks : here.local_rank + 1;
    if (p->shared_gpu || want <= gpus) return EXIT_EQUAL;
    command_failed(command, zb_fail(ZB_UNSUPPORTED,
                                    "%" PRId64 " ranks on this machine, which has %d GPU%s, want one for "
                                    "each; --shared-gpu lets ranks share one",
                                    want, gpus, gpus == 1 ? "" : "s"));
    return EXIT_LACKING;
}

exit_code processes_nccl_check(const char *command, const processes *p, const input_options *input,
                               int64_t ranks)
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
    if (status == ZB_OK) return check_gpus(command, p, ranks, count);
    const exit_code code = command_failed(command, status);
    return status == ZB_UNSUPPORTED ? EXIT_LACKING : code;
}

static zb_status check_native(const zb_orders *orders)
{
    char text[128];
    for (int kind = 0; orders != NULL && kind < ZB_COLLECTIVE_COUNT; kind++)
        if (strncmp(zb_algorithm_name(orders->of[kind].algorithm), "nccl-", 5) == 0) return ZB_OK;
    zb_orders_describe(orders, text, sizeof text);
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "--native: NCCL has no algorithm for the order %s; name one of nccl-... by --order", text);
}

zb_status processes_nccl_start(processes *p, const inputs *in)
{
    zb_nccl_environment here;
    int count;
    if (p->native) ZB_TRY(check_native(in->config->orders));
    ZB_TRY(zb_nccl_environment_read(&here));
    ZB_TRY(zb_cuda_device_count(&count));
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

exit_code processes_nccl_check(const char *command, const processes *p, const input_options *input,
                               int64_t ranks)
{
    (void)p;
    (void)input;
    (void)ranks;
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
