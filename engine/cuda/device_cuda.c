/*
 * A GPU as a device. What the table asks for is CUDA's own but for two things: memory comes from a pool of
 * this handle's and goes back behind everything that its streams have been given, so that nobody has to wait
 * for a free; and a failure that no call can return, since it happened while something was freed, is kept for
 * the next one that can.
 */
#include <zerobit/cuda.h>

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "engine/cuda/cuda.h"
#include "kernels/cuda/launch.h"

enum { POISON_BYTE = 0xFF }; /* four or eight of them are a NaN, in integers -1 */

typedef struct cuda_stream {
    zb_stream base;
    cudaStream_t handle;
    cudaEvent_t reached; /* recorded where memory is freed */
    struct cuda_stream *next;
} cuda_stream;

typedef struct cuda_event {
    zb_event base;
    cudaEvent_t handle;
} cuda_event;

typedef struct cuda_device {
    zb_device base;
    int ordinal;
    cudaMemPool_t pool;
    cudaStream_t memory;  /* allocations and frees, in order */
    cuda_stream *streams; /* that may still use what is freed */
    zb_error unreported;  /* status ZB_OK: none */
} cuda_device;

static cuda_device *device_of(zb_device *device)
{
    return (cuda_device *)device;
}

static cudaStream_t handle_of(const zb_stream *stream)
{
    return ((const cuda_stream *)stream)->handle;
}

/* --- errors --- */

/* The first one is the cause to name. */
static void keep_failure(cuda_device *device, zb_status status)
{
    if (status == ZB_OK || device->unreported.status != ZB_OK) return;
    device->unreported.status = status;
    snprintf(device->unreported.message, sizeof device->unreported.message, "%s", zb_error_message());
}

static zb_status make_current(const cuda_device *device)
{
    ZB_CUDA_TRY(cudaSetDevice(device->ordinal));
    return ZB_OK;
}

/* Every call that can fail begins here: with this GPU current, unless an earlier failure is still to be told.
 */
static zb_status enter(zb_device *base)
{
    cuda_device *device = device_of(base);
    if (device->unreported.status != ZB_OK) {
        const zb_status status = device->unreported.status;
        device->unreported.status = ZB_OK;
        return zb_fail(status, "%s", device->unreported.message);
    }
    return make_current(device);
}

/* --- memory --- */

static zb_status no_memory(const cuda_device *device, size_t bytes)
{
    size_t free_bytes = 0, total_bytes = 0;
    (void)cudaGetLastError();
    ZB_CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
    return zb_fail(ZB_NO_MEMORY, "%zu bytes on GPU %d, of whose %zu bytes %zu are free", bytes,
                   device->ordinal, total_bytes, free_bytes);
}

static zb_status clear(const cuda_device *device, void *pointer, size_t bytes)
{
    ZB_CUDA_TRY(cudaMemsetAsync(pointer, 0, bytes, device->memory));
    ZB_CUDA_TRY(cudaStreamSynchronize(device->memory));
    return ZB_OK;
}

static zb_status cuda_alloc(zb_device *base, size_t bytes, void **pointer_p)
{
    cuda_device *device = device_of(base);
    const size_t taken = bytes > 0 ? bytes : 1;
    void *pointer = NULL;
    ZB_TRY(enter(base));
    const cudaError_t error = cudaMallocFromPoolAsync(&pointer, taken, device->pool, device->memory);
    if (error == cudaErrorMemoryAllocation) return no_memory(device, bytes);
    ZB_CUDA_TRY(error);
    const zb_status status = clear(device, pointer, taken);
    if (status != ZB_OK) {
        (void)cudaFreeAsync(pointer, device->memory); /* clear() has told what is wrong */
        return status;
    }
    *pointer_p = pointer;
    return ZB_OK;
}

static zb_status settle(cudaStream_t stream)
{
    ZB_CUDA_TRY(cudaStreamSynchronize(stream));
    return ZB_OK;
}

static zb_status order_memory_behind(const cuda_device *device, const cuda_stream *stream)
{
    ZB_CUDA_TRY(cudaEventRecord(stream->reached, stream->handle));
    ZB_CUDA_TRY(cudaStreamWaitEvent(device->memory, stream->reached, 0));
    return ZB_OK;
}

static zb_status give_back(const cuda_device *device, void *pointer)
{
    ZB_CUDA_TRY(cudaFreeAsync(pointer, device->memory));
    return ZB_OK;
}

/* Where the GPU cannot be told to wait for a stream, the host waits. Memory that may still be in use stays:
 * it goes with the pool. */
static void cuda_free(zb_device *base, void *pointer)
{
    cuda_device *device = device_of(base);
    int is_unused = 1;
    keep_failure(device, make_current(device));
    for (cuda_stream *stream = device->streams; stream != NULL; stream = stream->next) {
        zb_status status = order_memory_behind(device, stream);
        keep_failure(device, status);
        if (status != ZB_OK) status = settle(stream->handle);
        is_unused = is_unused && status == ZB_OK;
    }
    if (is_unused) keep_failure(device, give_back(device, pointer));
}

static zb_status cuda_wait_idle(zb_device *base)
{
    ZB_TRY(enter(base));
    for (const cuda_stream *stream = device_of(base)->streams; stream != NULL; stream = stream->next)
        ZB_CUDA_TRY(cudaStreamSynchronize(stream->handle));
    return ZB_OK;
}

/* --- streams and events --- */

static zb_status make_stream(cuda_stream *stream)
{
    ZB_CUDA_TRY(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking));
    ZB_CUDA_TRY(cudaEventCreateWithFlags(&stream->reached, cudaEventDisableTiming));
    return ZB_OK;
}

static zb_status cuda_stream_create(zb_device *base, const char *name, zb_stream **stream_p)
{
    cuda_device *device = device_of(base);
    ZB_TRY(enter(base));
    cuda_stream *stream = zb_alloc(sizeof *stream);
    if (stream == NULL) return ZB_NO_MEMORY;
    stream->base = (zb_stream){ .device = base, .name = name };
    const zb_status status = make_stream(stream);
    if (status != ZB_OK) {
        if (stream->handle != NULL) (void)cudaStreamDestroy(stream->handle); /* make_stream has told */
        zb_free(stream);
        return status;
    }
    zb_cuda_name_stream(stream->handle, name);
    stream->next = device->streams;
    device->streams = stream;
    *stream_p = &stream->base;
    return ZB_OK;
}

static zb_status destroy_stream(cudaStream_t stream)
{
    ZB_CUDA_TRY(cudaStreamDestroy(stream));
    return ZB_OK;
}

static zb_status destroy_event(cudaEvent_t event)
{
    ZB_CUDA_TRY(cudaEventDestroy(event));
    return ZB_OK;
}

/* Waits for what it was given: memory that is freed afterwards is no longer ordered behind it. */
static void cuda_stream_destroy(zb_stream *base)
{
    cuda_device *device = device_of(base->device);
    cuda_stream *stream = (cuda_stream *)base, **at = &device->streams;
    keep_failure(device, make_current(device));
    keep_failure(device, settle(stream->handle));
    keep_failure(device, destroy_event(stream->reached));
    keep_failure(device, destroy_stream(stream->handle));
    while (*at != stream) at = &(*at)->next;
    *at = stream->next;
    zb_free(stream);
}

static zb_status cuda_stream_wait_idle(zb_stream *stream)
{
    ZB_TRY(enter(stream->device));
    ZB_CUDA_TRY(cudaStreamSynchronize(handle_of(stream)));
    return ZB_OK;
}

static zb_status make_event(cuda_event *event)
{
    ZB_CUDA_TRY(cudaEventCreateWithFlags(&event->handle, cudaEventDisableTiming));
    return ZB_OK;
}

static zb_status cuda_event_create(zb_device *device, const char *name, zb_event **event_p)
{
    ZB_TRY(enter(device));
    cuda_event *event = zb_alloc(sizeof *event);
    if (event == NULL) return ZB_NO_MEMORY;
    event->base = (zb_event){ .device = device, .name = name };
    const zb_status status = make_event(event);
    if (status != ZB_OK) {
        zb_free(event);
        return status;
    }
    *event_p = &event->base;
    return ZB_OK;
}

static void cuda_event_destroy(zb_event *base)
{
    cuda_event *event = (cuda_event *)base;
    keep_failure(device_of(base->device), make_current(device_of(base->device)));
    keep_failure(device_of(base->device), destroy_event(event->handle));
    zb_free(event);
}

static zb_status cuda_event_record(zb_event *event, zb_stream *stream)
{
    ZB_TRY(enter(stream->device));
    ZB_CUDA_TRY(cudaEventRecord(((cuda_event *)event)->handle, handle_of(stream)));
    return ZB_OK;
}

static zb_status cuda_stream_wait_event(zb_stream *stream, zb_event *event)
{
    ZB_TRY(enter(stream->device));
    ZB_CUDA_TRY(cudaStreamWaitEvent(handle_of(stream), ((cuda_event *)event)->handle, 0));
    return ZB_OK;
}

/* --- work --- */

static zb_status cuda_copy_in(zb_stream *stream, void *to_device, const void *from_host, size_t bytes)
{
    if (bytes == 0) return ZB_OK;
    ZB_TRY(enter(stream->device));
    ZB_CUDA_TRY(cudaMemcpyAsync(to_device, from_host, bytes, cudaMemcpyHostToDevice, handle_of(stream)));
    return ZB_OK;
}

static zb_status cuda_copy_out(zb_stream *stream, void *to_host, const void *from_device, size_t bytes)
{
    if (bytes == 0) return ZB_OK;
    ZB_TRY(enter(stream->device));
    ZB_CUDA_TRY(cudaMemcpyAsync(to_host, from_device, bytes, cudaMemcpyDeviceToHost, handle_of(stream)));
    return ZB_OK;
}

static zb_status cuda_launch(zb_stream *stream, zb_kernel kernel, const void *args, size_t args_bytes)
{
    ZB_TRY(enter(stream->device));
    return zb_cuda_launch(handle_of(stream), kernel, args, args_bytes);
}

static zb_status cuda_poison(zb_stream *stream, void *pointer, size_t bytes)
{
    if (bytes == 0) return ZB_OK;
    ZB_TRY(enter(stream->device));
    ZB_CUDA_TRY(cudaMemsetAsync(pointer, POISON_BYTE, bytes, handle_of(stream)));
    return ZB_OK;
}

/* --- the device --- */

static zb_status destroy_pool(cudaMemPool_t pool)
{
    ZB_CUDA_TRY(cudaMemPoolDestroy(pool));
    return ZB_OK;
}

/* What fails here has nobody left to hear of it but the user. */
static void cuda_destroy(zb_device *base)
{
    cuda_device *device = device_of(base);
    ZB_ASSERT(device->streams == NULL);
    keep_failure(device, make_current(device));
    if (device->memory != NULL) {
        keep_failure(device, settle(device->memory));
        keep_failure(device, destroy_stream(device->memory));
    }
    if (device->pool != NULL) keep_failure(device, destroy_pool(device->pool));
    if (device->unreported.status != ZB_OK)
        fprintf(stderr, "zerobit: GPU %d, at the end of its use: %s\n", device->ordinal,
                device->unreported.message);
    zb_free(device);
}

#define CUDA_OPS                                                                                             \
    .name = "cuda", .alloc = cuda_alloc, .free = cuda_free, .wait_idle = cuda_wait_idle,                     \
    .stream_create = cuda_stream_create, .stream_destroy = cuda_stream_destroy,                              \
    .stream_wait_idle = cuda_stream_wait_idle, .event_create = cuda_event_create,                            \
    .event_destroy = cuda_event_destroy, .event_record = cuda_event_record,                                  \
    .stream_wait_event = cuda_stream_wait_event, .copy_in = cuda_copy_in, .copy_out = cuda_copy_out,         \
    .launch = cuda_launch, .destroy = cuda_destroy

static const zb_device_ops cuda_ops = { CUDA_OPS };
static const zb_device_ops cuda_poisoning_ops = { CUDA_OPS, .discard = cuda_poison };

/* What is freed stays in the pool: training allocates once, and tests allocate the same again and again. */
static zb_status make_pool(cuda_device *device)
{
    const struct cudaMemPoolProps properties = { .allocType = cudaMemAllocationTypePinned,
                                                 .handleTypes = cudaMemHandleTypeNone,
                                                 .location = { .type = cudaMemLocationTypeDevice,
                                                               .id = device->ordinal } };
    uint64_t keep = UINT64_MAX;
    ZB_CUDA_TRY(cudaMemPoolCreate(&device->pool, &properties));
    ZB_CUDA_TRY(cudaMemPoolSetAttribute(device->pool, cudaMemPoolAttrReleaseThreshold, &keep));
    ZB_CUDA_TRY(cudaStreamCreateWithFlags(&device->memory, cudaStreamNonBlocking));
    zb_cuda_name_stream(device->memory, "memory");
    return ZB_OK;
}

static zb_status check_ordinal(int ordinal)
{
    int count;
    ZB_TRY(zb_cuda_device_count(&count));
    if (ordinal >= 0 && ordinal < count) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "GPU %d: want 0..%d, as CUDA_VISIBLE_DEVICES counts", ordinal,
                   count - 1);
}

static zb_status check_pools(int ordinal)
{
    int has_pools = 0;
    ZB_CUDA_TRY(cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, ordinal));
    if (has_pools) return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED,
                   "GPU %d cannot allocate in stream order, which zerobit needs (CUDA calls it "
                   "memory pools)",
                   ordinal);
}

static zb_status create(const zb_device_ops *ops, int ordinal, zb_device **device_p)
{
    ZB_TRY(check_ordinal(ordinal));
    ZB_TRY(check_pools(ordinal));
    cuda_device *device = zb_alloc(sizeof *device);
    if (device == NULL) return ZB_NO_MEMORY;
    device->base.ops = ops;
    device->ordinal = ordinal;
    zb_status status = enter(&device->base);
    if (status == ZB_OK) status = make_pool(device);
    if (status != ZB_OK) {
        zb_error failure = { .status = status };
        snprintf(failure.message, sizeof failure.message, "%s", zb_error_message());
        cuda_destroy(&device->base);
        return zb_fail(status, "%s", failure.message);
    }
    *device_p = &device->base;
    return ZB_OK;
}

zb_status zb_device_cuda_create(int ordinal, zb_device **device_p)
{
    return create(&cuda_ops, ordinal, device_p);
}

zb_status zb_device_cuda_create_poisoning(int ordinal, zb_device **device_p)
{
    return create(&cuda_poisoning_ops, ordinal, device_p);
}

int zb_device_is_cuda(const zb_device *device)
{
    return device->ops == &cuda_ops || device->ops == &cuda_poisoning_ops;
}

int zb_cuda_ordinal(const zb_device *device)
{
    ZB_ASSERT(zb_device_is_cuda(device));
    return ((const cuda_device *)device)->ordinal;
}

struct CUstream_st *zb_cuda_stream(zb_stream *stream)
{
    ZB_ASSERT(zb_device_is_cuda(stream->device));
    return handle_of(stream);
}

/* --- which GPUs there are --- */

zb_status zb_cuda_device_count(int *count_p)
{
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) {
        *count_p = count;
        return ZB_OK;
    }
    (void)cudaGetLastError();
    return zb_fail(ZB_UNSUPPORTED, "no GPU here: %s",
                   error != cudaSuccess ? cudaGetErrorString(error) : "CUDA finds none");
}

zb_status zb_cuda_describe(int ordinal, zb_cuda_description *d)
{
    struct cudaDeviceProp properties;
    ZB_TRY(check_ordinal(ordinal));
    ZB_CUDA_TRY(cudaGetDeviceProperties(&properties, ordinal));
    *d = (zb_cuda_description){ .compute_capability = 10 * properties.major + properties.minor,
                                .multiprocessors = properties.multiProcessorCount };
    snprintf(d->name, sizeof d->name, "%s", properties.name);
    ZB_CUDA_TRY(cudaSetDevice(ordinal));
    ZB_CUDA_TRY(cudaMemGetInfo(&d->free_bytes, &d->memory_bytes));
    ZB_CUDA_TRY(cudaDriverGetVersion(&d->driver_version));
    ZB_CUDA_TRY(cudaRuntimeGetVersion(&d->runtime_version));
    return ZB_OK;
}
