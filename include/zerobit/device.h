/*
 * One table for everything a device does: memory, copies, streams, events, kernel launches.
 *
 * Work that is launched on a stream runs after everything launched on it before; nothing else is ordered
 * unless an event says so. The `cpu` device runs at once; a caller must not rely on that.
 *
 * Each rank has its own device handle. Memory that it allocates is booked by category in the device's ledger.
 */
#ifndef ZEROBIT_DEVICE_H
#define ZEROBIT_DEVICE_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/kernels.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_MEMORY_MAP(X)                                                                                   \
    X(PARAM, "parameters")                                                                                 \
    X(GRAD, "gradients")                                                                                   \
    X(OPTIMIZER, "optimizer states")                                                                       \
    X(GATHER, "gathered parameters")                                                                       \
    X(BUCKET, "communication buckets")                                                                     \
    X(ACTIVATION, "activations")                                                                           \
    X(WORKSPACE, "workspace")

typedef enum zb_memory_kind {
#define ZB_MEMORY_ENUM(name, text) ZB_MEM_##name,
    ZB_MEMORY_MAP(ZB_MEMORY_ENUM)
#undef ZB_MEMORY_ENUM
    ZB_MEM_COUNT
} zb_memory_kind;
ZB_API const char *zb_memory_kind_name(zb_memory_kind kind);

typedef struct zb_device zb_device;
typedef struct zb_stream zb_stream;
typedef struct zb_event zb_event;

typedef struct zb_device_ops {
    const char *name; /* "cpu", "cuda", ... */
    int memory_is_hosts; /* the host may read and write it as its own, at its own risk */
    zb_status (*alloc)(zb_device *device, size_t bytes, void **pointer_p); /* zeroed, 64-byte aligned */
    void (*free)(zb_device *device, void *pointer); /* stream-ordered: behind all that this handle's streams were given */
    zb_status (*wait_idle)(zb_device *device);      /* blocks the host until all streams of this handle are idle */
    zb_status (*stream_create)(zb_device *device, const char *name, zb_stream **stream_p);
    void (*stream_destroy)(zb_stream *stream);
    zb_status (*stream_wait_idle)(zb_stream *stream); /* blocks the host */
    zb_status (*event_create)(zb_device *device, const char *name, zb_event **event_p);
    void (*event_destroy)(zb_event *event);
    zb_status (*event_record)(zb_event *event, zb_stream *stream);
    zb_status (*stream_wait_event)(zb_stream *stream, zb_event *event);
    /* host <-> device; from and to as the direction says. The host's side must stay, untouched, until the stream has got there. */
    zb_status (*copy_in)(zb_stream *stream, void *to_device, const void *from_host, size_t bytes);
    zb_status (*copy_out)(zb_stream *stream, void *to_host, const void *from_device, size_t bytes);
    zb_status (*launch)(zb_stream *stream, zb_kernel kernel, const void *args, size_t args_bytes);
    /* Optional: the bytes are dead from here on in stream order; a checking device poisons them. */
    zb_status (*discard)(zb_stream *stream, void *pointer, size_t bytes);
    void (*destroy)(zb_device *device);
} zb_device_ops;

/* Back ends put this first. */
struct zb_device {
    const zb_device_ops *ops;
    uint64_t held_bytes[ZB_MEM_COUNT];
    uint64_t peak_bytes[ZB_MEM_COUNT];
};
struct zb_stream { zb_device *device; const char *name; };
struct zb_event { zb_device *device; const char *name; };

/** How the devices of a world's ranks are made, one for each. */
typedef struct zb_device_factory {
    const char *name; /* of the devices' ops; static */
    zb_status (*create)(void *user, int rank, zb_device **device_p); /* from any thread */
    void *user;
} zb_device_factory;

/** The CPU device: kernels/ run at once on the caller. */
ZB_API zb_status zb_device_cpu_create(zb_device **device_p);
/** As above, and discarded memory is filled with 0xFF (NaNs), so that a read of it shows. */
ZB_API zb_status zb_device_cpu_create_poisoning(zb_device **device_p);
ZB_API void zb_device_destroy(zb_device *device);

/** Books `bytes` under `kind`. 0 bytes gives a valid pointer that must not be read. */
ZB_API zb_status zb_device_alloc(zb_device *device, zb_memory_kind kind, size_t bytes, void **pointer_p);
/** `kind` and `bytes` as allocated. NULL is fine. */
ZB_API void zb_device_free(zb_device *device, zb_memory_kind kind, size_t bytes, void *pointer);

/** Blocks the host until everything that this handle's streams were given is done. */
ZB_API zb_status zb_device_wait_idle(zb_device *device);

ZB_API zb_status zb_stream_create(zb_device *device, const char *name, zb_stream **stream_p);
ZB_API void zb_stream_destroy(zb_stream *stream);
ZB_API zb_status zb_stream_wait_idle(zb_stream *stream);
ZB_API zb_status zb_event_create(zb_device *device, const char *name, zb_event **event_p);
ZB_API void zb_event_destroy(zb_event *event);
ZB_API zb_status zb_event_record(zb_event *event, zb_stream *stream);
ZB_API zb_status zb_stream_wait_event(zb_stream *stream, zb_event *event);
ZB_API zb_status zb_copy_in(zb_stream *stream, void *to_device, const void *from_host, size_t bytes);
ZB_API zb_status zb_copy_out(zb_stream *stream, void *to_host, const void *from_device, size_t bytes);
ZB_API zb_status zb_discard(zb_stream *stream, void *pointer, size_t bytes);

/* One typed launcher per kernel: zb_launch_adam(stream, &args), ... */
#define ZB_KERNEL_LAUNCHER(name)                                                                           \
    static inline zb_status zb_launch_##name(zb_stream *stream, const zb_##name##_args *args)              \
    {                                                                                                      \
        return stream->device->ops->launch(stream, ZB_KERNEL_##name, args, sizeof *args);                  \
    }
ZB_KERNEL_MAP(ZB_KERNEL_LAUNCHER)
#undef ZB_KERNEL_LAUNCHER

#ifdef __cplusplus
}
#endif
#endif
