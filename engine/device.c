/* The front door of every device: the rank's memory ledger, and the table behind short names. */
#include <zerobit/device.h>

const char *zb_memory_kind_name(zb_memory_kind kind)
{
    static const char *const names[] = {
#define ZB_MEMORY_NAME(name, text) [ZB_MEM_##name] = text,
        ZB_MEMORY_MAP(ZB_MEMORY_NAME)
#undef ZB_MEMORY_NAME
    };
    return (unsigned)kind < ZB_MEM_COUNT ? names[kind] : "?";
}

zb_status zb_device_alloc(zb_device *device, zb_memory_kind kind, size_t bytes, void **pointer_p)
{
    ZB_ASSERT((unsigned)kind < ZB_MEM_COUNT);
    ZB_TRY(device->ops->alloc(device, bytes, pointer_p));
    device->held_bytes[kind] += bytes;
    if (device->held_bytes[kind] > device->peak_bytes[kind])
        device->peak_bytes[kind] = device->held_bytes[kind];
    return ZB_OK;
}

void zb_device_free(zb_device *device, zb_memory_kind kind, size_t bytes, void *pointer)
{
    if (pointer == NULL) return;
    ZB_ASSERT((unsigned)kind < ZB_MEM_COUNT && device->held_bytes[kind] >= bytes);
    device->held_bytes[kind] -= bytes;
    device->ops->free(device, pointer);
}

void zb_device_destroy(zb_device *device)
{
    if (device != NULL) device->ops->destroy(device);
}

zb_status zb_device_wait_idle(zb_device *device)
{
    return device->ops->wait_idle(device);
}

zb_status zb_stream_create(zb_device *device, const char *name, zb_stream **stream_p)
{
    return device->ops->stream_create(device, name, stream_p);
}

void zb_stream_destroy(zb_stream *stream)
{
    if (stream != NULL) stream->device->ops->stream_destroy(stream);
}

zb_status zb_stream_wait_idle(zb_stream *stream)
{
    return stream->device->ops->stream_wait_idle(stream);
}

zb_status zb_event_create(zb_device *device, const char *name, zb_event **event_p)
{
    return device->ops->event_create(device, name, event_p);
}

void zb_event_destroy(zb_event *event)
{
    if (event != NULL) event->device->ops->event_destroy(event);
}

zb_status zb_event_record(zb_event *event, zb_stream *stream)
{
    return event->device->ops->event_record(event, stream);
}

zb_status zb_stream_wait_event(zb_stream *stream, zb_event *event)
{
    return stream->device->ops->stream_wait_event(stream, event);
}

zb_status zb_copy_in(zb_stream *stream, void *to_device, const void *from_host, size_t bytes)
{
    return stream->device->ops->copy_in(stream, to_device, from_host, bytes);
}

zb_status zb_copy_out(zb_stream *stream, void *to_host, const void *from_device, size_t bytes)
{
    return stream->device->ops->copy_out(stream, to_host, from_device, bytes);
}

zb_status zb_discard(zb_stream *stream, void *pointer, size_t bytes)
{
    const zb_device_ops *ops = stream->device->ops;
    return ops->discard != NULL ? ops->discard(stream, pointer, bytes) : ZB_OK;
}
