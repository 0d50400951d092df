/*
 * The calls that allocate and give back. Each counts as a write of the whole allocation, by the host or in
 * its stream, so that whatever comes too early or too late is a race. Pools are names only: the memory is the
 * device's.
 */
#include "sim/cuda/state.h"

#include <stdlib.h>
#include <string.h>

/* --- accesses by a host --- */

static si_range whole(si_allocation *a)
{
    return (si_range){ .allocation = a, .first = 0, .end = a->bytes, .writes = 1 };
}

static si_mark host_writes(si_allocation *a)
{
    si_host *host = si_host_now();
    const uint32_t epoch = si_clock_get(&host->clock, host->slot) + 1;
    const si_mark mark = { .slot = host->slot, .epoch = epoch, .operation = si_call_name(), .host = host };
    const si_range range = whole(a);
    si_clock_set(&host->clock, host->slot, epoch);
    const int dead = a->kind != SI_PINNED &&
                     si.devices[a->device].sticky != cudaSuccess; /* nothing runs there */
    if (!dead) si_check(&host->clock, &mark, &range);
    return mark;
}

/* --- cudaMalloc, cudaFree --- */

cudaError_t cudaMalloc(void **pointer, size_t bytes)
{
    si_allocation *a;
    cudaError_t error = si_enter("cudaMalloc");
    if (error == cudaSuccess && pointer == NULL) error = cudaErrorInvalidValue;
    if (error != cudaSuccess) return si_leave(error);
    *pointer = NULL;
    if (bytes == 0) return si_leave(cudaSuccess);
    error = si_allocate(si_current_device(), bytes, SI_MALLOC, &a);
    if (error != cudaSuccess) return si_leave(error);
    host_writes(a);
    *pointer = a->base;
    return si_leave(cudaSuccess);
}

/* A live allocation that begins here. */
static cudaError_t allocation_to_free(const void *pointer, si_allocation **allocation_p)
{
    si_allocation *a = si_allocation_at(pointer);
    char by[256], memory[128];
    if (a == NULL || a->base != pointer)
        return si_misuse("%s: %p is not the beginning of an allocation", si_call_name(), pointer);
    if (a->gone) {
        si_describe_mark(&a->gone_by, by, sizeof by);
        si_describe_allocation(a, memory, sizeof memory);
        return si_misuse("%s: %s has been given back by %s", si_call_name(), memory, by);
    }
    *allocation_p = a;
    return cudaSuccess;
}

static void mark_gone(si_allocation *a, si_mark by)
{
    a->gone = 1;
    a->gone_by = by;
    si.counters.allocations--;
}

cudaError_t cudaFree(void *pointer)
{
    si_allocation *a;
    cudaError_t error = si_enter_release("cudaFree");
    if (error != cudaSuccess || pointer == NULL) return si_leave(error);
    error = allocation_to_free(pointer, &a);
    if (error == cudaSuccess && a->kind == SI_PINNED)
        error = si_misuse("cudaFree: %p is pinned host memory", pointer);
    if (error != cudaSuccess) return si_leave(error);
    mark_gone(a, host_writes(a));
    si_give_back(a);
    return si_leave(cudaSuccess);
}

/* --- in stream order --- */

static zb_standin_progress run_nothing(void *user)
{
    (void)user;
    return ZB_STANDIN_DONE;
}

static cudaError_t malloc_async(const char *call, void **pointer, size_t bytes, int device, si_stream *stream)
{
    si_allocation *a;
    if (pointer == NULL || bytes == 0) return cudaErrorInvalidValue;
    if (stream->device != device)
        return si_misuse("%s: memory of device %d on a stream of device %d", call, device, stream->device);
    const cudaError_t error = si_allocate(device, bytes, SI_MALLOC_ASYNC, &a);
    if (error != cudaSuccess) return error;
    const si_range range = whole(a);
    *pointer = a->base;
    si_enqueue(stream, &(si_work){ .name = call, .ranges = &range, .range_count = 1, .run = run_nothing });
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t handle)
{
    si_stream *stream;
    cudaError_t error = si_enter("cudaMallocAsync");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error == cudaSuccess) error = malloc_async("cudaMallocAsync", pointer, bytes, stream->device, stream);
    return si_leave(error);
}

static zb_standin_progress run_free(void *user)
{
    si_give_back(user);
    return ZB_STANDIN_DONE;
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t handle)
{
    si_stream *stream;
    si_allocation *a;
    cudaError_t error = si_enter_release("cudaFreeAsync");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error == cudaSuccess) error = allocation_to_free(pointer, &a);
    if (error == cudaSuccess && a->kind != SI_MALLOC_ASYNC)
        error = si_misuse("cudaFreeAsync: %p does not come from a pool", pointer);
    if (error == cudaSuccess && a->device != stream->device)
        error = si_misuse("cudaFreeAsync: memory of device %d on a stream of device %d", a->device,
                          stream->device);
    if (error != cudaSuccess) return si_leave(error);
    const si_range range = whole(a);
    a->gone = 1; /* what the queue runs unasked may be this very operation */
    si.counters.allocations--;
    a->gone_by = si_enqueue(
        stream,
        &(si_work){
            .name = "cudaFreeAsync", .ranges = &range, .range_count = 1, .run = run_free, .user = a });
    return si_leave(cudaSuccess);
}

/* --- pinned host memory --- */

cudaError_t cudaMallocHost(void **pointer, size_t bytes)
{
    cudaError_t error = si_enter("cudaMallocHost");
    if (error == cudaSuccess && pointer == NULL) error = cudaErrorInvalidValue;
    if (error != cudaSuccess) return si_leave(error);
    *pointer = NULL;
    if (bytes == 0) return si_leave(cudaSuccess);
    void *base = NULL;
    if (posix_memalign(&base, 4096, bytes) != 0) return si_leave(cudaErrorMemoryAllocation);
    memset(base, SI_POISON, bytes);
    host_writes(si_allocation_add(base, bytes, SI_PINNED, -1));
    si.counters.pinned_bytes += bytes;
    *pointer = base;
    return si_leave(cudaSuccess);
}

/* The memory stays, poisoned, until the session ends: an operation that still uses it is reported, and must
 * not hurt. */
cudaError_t cudaFreeHost(void *pointer)
{
    si_allocation *a;
    cudaError_t error = si_enter_release("cudaFreeHost");
    if (error != cudaSuccess || pointer == NULL) return si_leave(error);
    error = allocation_to_free(pointer, &a);
    if (error == cudaSuccess && a->kind != SI_PINNED)
        error = si_misuse("cudaFreeHost: %p is memory of device %d", pointer, a->device);
    if (error != cudaSuccess) return si_leave(error);
    mark_gone(a, host_writes(a));
    memset(a->base, SI_POISON, a->bytes);
    si.counters.pinned_bytes -= a->bytes;
    return si_leave(cudaSuccess);
}

/* --- questions --- */

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    cudaError_t error = si_enter("cudaMemGetInfo");
    if (error == cudaSuccess && (free_bytes == NULL || total_bytes == NULL)) error = cudaErrorInvalidValue;
    if (error != cudaSuccess) return si_leave(error);
    *total_bytes = si.options.memory_bytes;
    *free_bytes = si.options.memory_bytes - si.devices[si_current_device()].used;
    return si_leave(cudaSuccess);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer)
{
    cudaError_t error = si_enter("cudaPointerGetAttributes");
    if (error == cudaSuccess && attributes == NULL) error = cudaErrorInvalidValue;
    if (error != cudaSuccess) return si_leave(error);
    const si_allocation *a = si_allocation_at(pointer);
    const int known = a != NULL && !a->gone && (const char *)pointer < a->base + a->bytes;
    *attributes = (struct cudaPointerAttributes){ .type = cudaMemoryTypeUnregistered, .device = -2 };
    if (!known) {
        attributes->hostPointer = (void *)(uintptr_t)pointer;
        return si_leave(cudaSuccess);
    }
    attributes->type = a->kind == SI_PINNED ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = a->kind == SI_PINNED ? si_current_device() : a->device;
    attributes->devicePointer = (void *)(uintptr_t)pointer;
    if (a->kind == SI_PINNED) attributes->hostPointer = (void *)(uintptr_t)pointer;
    return si_leave(cudaSuccess);
}

/* --- pools: the memory is the same, a pool only says whose it is --- */

static si_pool *pool_of(cudaMemPool_t handle)
{
    for (int i = 0; i < si.pools.count; i++)
        if (si.pools.items[i] == (void *)handle && !((si_pool *)si.pools.items[i])->gone)
            return si.pools.items[i];
    si_misuse("%s: %p is no pool", si_call_name(), (void *)handle);
    return NULL;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device)
{
    cudaError_t error = si_enter("cudaDeviceGetDefaultMemPool");
    if (error == cudaSuccess && (device < 0 || device >= si.options.device_count))
        error = cudaErrorInvalidDevice;
    if (error == cudaSuccess && pool == NULL) error = cudaErrorInvalidValue;
    if (error == cudaSuccess) *pool = (cudaMemPool_t)(void *)si.devices[device].pool;
    return si_leave(error);
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool_p, const struct cudaMemPoolProps *properties)
{
    cudaError_t error = si_enter("cudaMemPoolCreate");
    if (error != cudaSuccess) return si_leave(error);
    if (pool_p == NULL || properties == NULL || properties->allocType != cudaMemAllocationTypePinned ||
        properties->location.type != cudaMemLocationTypeDevice)
        return si_leave(cudaErrorInvalidValue);
    if (properties->location.id < 0 || properties->location.id >= si.options.device_count)
        return si_leave(cudaErrorInvalidDevice);
    si_pool *pool = si_calloc(1, sizeof *pool);
    pool->device = properties->location.id;
    si_list_add(&si.pools, pool);
    *pool_p = (cudaMemPool_t)(void *)pool;
    return si_leave(cudaSuccess);
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t handle)
{
    cudaError_t error = si_enter_release("cudaMemPoolDestroy");
    if (error != cudaSuccess) return si_leave(error);
    si_pool *pool = pool_of(handle);
    if (pool == NULL || pool->is_default) return si_leave(cudaErrorInvalidValue);
    pool->gone = 1;
    return si_leave(cudaSuccess);
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t handle, enum cudaMemPoolAttr attribute, void *value)
{
    cudaError_t error = si_enter("cudaMemPoolSetAttribute");
    if (error != cudaSuccess) return si_leave(error);
    if (pool_of(handle) == NULL || value == NULL || (unsigned)attribute < 1 ||
        (unsigned)attribute > cudaMemPoolAttrReleaseThreshold)
        return si_leave(cudaErrorInvalidValue);
    return si_leave(cudaSuccess);
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t handle, size_t keep_bytes)
{
    (void)keep_bytes;
    cudaError_t error = si_enter("cudaMemPoolTrimTo");
    if (error == cudaSuccess && pool_of(handle) == NULL) error = cudaErrorInvalidValue;
    return si_leave(error);
}

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t bytes, cudaMemPool_t handle,
                                    cudaStream_t stream_handle)
{
    si_stream *stream;
    cudaError_t error = si_enter("cudaMallocFromPoolAsync");
    if (error == cudaSuccess) error = si_stream_of(stream_handle, &stream);
    if (error != cudaSuccess) return si_leave(error);
    const si_pool *pool = pool_of(handle);
    if (pool == NULL) return si_leave(cudaErrorInvalidValue);
    return si_leave(malloc_async("cudaMallocFromPoolAsync", pointer, bytes, pool->device, stream));
}
