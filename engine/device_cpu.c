/*
 * The CPU as a device: memory is host memory, every launch runs at once on the caller, so that streams and
 * events have nothing left to order. The poisoning variant fills discarded memory with NaNs.
 */
#include <zerobit/device.h>

#include <string.h>
#include <zerobit/memory.h>

#include "kernels/kernels.h"

enum { POISON_BYTE = 0xFF }; /* four or eight of them are a NaN, in integers -1 */

static zb_status cpu_alloc(zb_device *device, size_t bytes, void **pointer_p)
{
    (void)device;
    void *pointer = zb_alloc(bytes);
    if (pointer == NULL) return ZB_NO_MEMORY;
    *pointer_p = pointer;
    return ZB_OK;
}

static void cpu_free(zb_device *device, void *pointer)
{
    (void)device;
    zb_free(pointer);
}

static zb_status cpu_wait_idle(zb_device *device)
{
    (void)device;
    return ZB_OK;
}

static zb_status cpu_stream_create(zb_device *device, const char *name, zb_stream **stream_p)
{
    zb_stream *stream = zb_alloc(sizeof *stream);
    if (stream == NULL) return ZB_NO_MEMORY;
    *stream = (zb_stream){ .device = device, .name = name };
    *stream_p = stream;
    return ZB_OK;
}

static void cpu_stream_destroy(zb_stream *stream)
{
    zb_free(stream);
}

static zb_status cpu_stream_wait_idle(zb_stream *stream)
{
    (void)stream;
    return ZB_OK;
}

static zb_status cpu_event_create(zb_device *device, const char *name, zb_event **event_p)
{
    zb_event *event = zb_alloc(sizeof *event);
    if (event == NULL) return ZB_NO_MEMORY;
    *event = (zb_event){ .device = device, .name = name };
    *event_p = event;
    return ZB_OK;
}

static void cpu_event_destroy(zb_event *event)
{
    zb_free(event);
}

static zb_status cpu_event_record(zb_event *event, zb_stream *stream)
{
    (void)event;
    (void)stream;
    return ZB_OK;
}

static zb_status cpu_stream_wait_event(zb_stream *stream, zb_event *event)
{
    (void)stream;
    (void)event;
    return ZB_OK;
}

static zb_status cpu_copy(zb_stream *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    if (bytes > 0) memcpy(to, from, bytes);
    return ZB_OK;
}

static zb_status cpu_launch(zb_stream *stream, zb_kernel kernel, const void *args, size_t args_bytes)
{
    (void)stream;
    return zb_cpu_launch(kernel, args, args_bytes);
}

static zb_status cpu_poison(zb_stream *stream, void *pointer, size_t bytes)
{
    (void)stream;
    if (bytes > 0) memset(pointer, POISON_BYTE, bytes);
    return ZB_OK;
}

static void cpu_destroy(zb_device *device)
{
    zb_free(device);
}

#define CPU_OPS                                                                                              \
    .name = "cpu", .memory_is_hosts = 1, .alloc = cpu_alloc, .free = cpu_free, .wait_idle = cpu_wait_idle,   \
    .stream_create = cpu_stream_create, .stream_destroy = cpu_stream_destroy,                                \
    .stream_wait_idle = cpu_stream_wait_idle, .event_create = cpu_event_create,                              \
    .event_destroy = cpu_event_destroy, .event_record = cpu_event_record,                                    \
    .stream_wait_event = cpu_stream_wait_event, .copy_in = cpu_copy, .copy_out = cpu_copy,                   \
    .launch = cpu_launch, .destroy = cpu_destroy

static const zb_device_ops cpu_ops = { CPU_OPS };
static const zb_device_ops cpu_poisoning_ops = { CPU_OPS, .discard = cpu_poison };

static zb_status create(const zb_device_ops *ops, zb_device **device_p)
{
    zb_device *device = zb_alloc(sizeof *device);
    if (device == NULL) return ZB_NO_MEMORY;
    device->ops = ops;
    *device_p = device;
    return ZB_OK;
}

zb_status zb_device_cpu_create(zb_device **device_p)
{
    return create(&cpu_ops, device_p);
}

zb_status zb_device_cpu_create_poisoning(zb_device **device_p)
{
    return create(&cpu_poisoning_ops, device_p);
}
