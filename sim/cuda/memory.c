/*
 * Device memory. A device's memory is one file in memory, mapped twice: hosts have addresses of a mapping
 * that nobody can access, operations use the other one. Addresses are given out in a circle, so that memory
 * that was given back stays known, and poisoned, for as long as can be.
 */
#define _GNU_SOURCE
#include "sim/cuda/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 256, CIRCLES = 2 };

static size_t round_up(size_t bytes, size_t step)
{
    return (bytes + step - 1) / step * step;
}

/* --- devices --- */

static int map_device(si_device *device, int file)
{
    if (ftruncate(file, (off_t)device->span) != 0) return 0;
    void *front = mmap(NULL, device->span, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (front == MAP_FAILED) return 0;
    device->front = front;
    void *shadow = mmap(NULL, device->span, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (shadow == MAP_FAILED) return 0;
    device->shadow = shadow;
    return 1;
}

int si_memory_open(void)
{
    si.devices = si_calloc((size_t)si.options.device_count + 1, sizeof *si.devices);
    for (int i = 0; i < si.options.device_count; i++) {
        si_device *device = &si.devices[i];
        device->span = round_up(CIRCLES * si.options.memory_bytes, 65536);
        device->pool = si_calloc(1, sizeof *device->pool);
        *device->pool = (si_pool){ .device = i, .is_default = 1 };
        si_list_add(&si.pools, device->pool);
        const int file = memfd_create("device memory", MFD_CLOEXEC);
        const int mapped = file >= 0 && map_device(device, file);
        if (file >= 0) close(file);
        if (!mapped) return 0;
    }
    return 1;
}

void si_memory_close(void)
{
    for (int i = 0; i < si.allocations.count; i++) {
        si_allocation *a = si.allocations.items[i];
        if (a->kind == SI_PINNED) free(a->base);
        si_allocation_forget(a);
    }
    for (int i = 0; si.devices != NULL && i < si.options.device_count; i++) {
        if (si.devices[i].front != NULL) munmap(si.devices[i].front, si.devices[i].span);
        if (si.devices[i].shadow != NULL) munmap(si.devices[i].shadow, si.devices[i].span);
    }
    free(si.devices);
    si.devices = NULL;
}

/* --- looking up --- */

int si_device_of(const void *pointer)
{
    for (int i = 0; si.devices != NULL && i < si.options.device_count; i++) {
        const uintptr_t front = (uintptr_t)si.devices[i].front;
        if ((uintptr_t)pointer >= front && (uintptr_t)pointer < front + si.devices[i].span) return i;
    }
    return -1;
}

char *si_shadow(const void *pointer)
{
    const si_device *device = &si.devices[si_device_of(pointer)];
    return device->shadow + ((const char *)pointer - device->front);
}

/* How many allocations begin at or below an address. */
static int count_up_to(const void *pointer)
{
    int low = 0, high = si.allocations.count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if ((uintptr_t)((const si_allocation *)si.allocations.items[middle])->base > (uintptr_t)pointer)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

si_allocation *si_allocation_at(const void *pointer)
{
    const int below = count_up_to(pointer);
    if (below == 0) return NULL;
    si_allocation *a = si.allocations.items[below - 1];
    const int device = si_device_of(pointer);
    if (device != (a->kind == SI_PINNED ? -1 : a->device)) return NULL;
    if (device < 0 && (uintptr_t)pointer >= (uintptr_t)a->base + a->bytes) return NULL;
    return a;
}

int si_is_pinned(const void *pointer)
{
    return si_device_of(pointer) < 0 && si_allocation_at(pointer) != NULL;
}

void si_describe_allocation(const si_allocation *a, char *text, size_t text_bytes)
{
    if (a->kind == SI_PINNED)
        snprintf(text, text_bytes, "pinned allocation %d (%zu bytes)", a->id, a->bytes);
    else
        snprintf(text, text_bytes, "allocation %d (%zu bytes, device %d)", a->id, a->bytes, a->device);
}

static cudaError_t refuse(const char *operation, const char *argument, const si_allocation *a, size_t first,
                          size_t bytes)
{
    char memory[128], by[256];
    si_describe_allocation(a, memory, sizeof memory);
    if (!a->gone)
        return si_misuse("%s (%s): bytes %zu..%zu are beyond %s", operation, argument, first,
                         first + bytes - 1, memory);
    si_describe_mark(&a->gone_by, by, sizeof by);
    return si_misuse("%s (%s): use after free of bytes %zu..%zu of %s, given back by %s", operation, argument,
                     first, first + bytes - 1, memory, by);
}

cudaError_t si_resolve(const char *operation, const char *argument, const void *pointer, size_t offset,
                       size_t bytes, int device, si_range *range)
{
    const int owner = si_device_of(pointer);
    const si_allocation *found = si_allocation_at(pointer);
    if (owner != device) {
        if (owner < 0)
            return si_misuse("%s (%s): %p is host memory, want memory of device %d", operation, argument,
                             pointer, device);
        return si_misuse("%s (%s): %p is memory of device %d, want %s", operation, argument, pointer, owner,
                         device < 0 ? "host memory" : "the stream's own");
    }
    if (found == NULL)
        return si_misuse("%s (%s): %p is in no allocation of device %d", operation, argument, pointer,
                         device);
    const size_t first = (size_t)((const char *)pointer - found->base) + offset;
    if (found->gone || first > found->bytes || bytes > found->bytes - first)
        return refuse(operation, argument, found, first, bytes);
    *range = (si_range){
        .allocation = (si_allocation *)found, .first = first, .end = first + bytes, .argument = argument
    };
    return cudaSuccess;
}

/* --- addresses --- */

static void insert_allocation(si_allocation *a)
{
    const int index = count_up_to(a->base);
    si_list_add(&si.allocations, NULL);
    memmove(si.allocations.items + index + 1, si.allocations.items + index,
            (size_t)(si.allocations.count - 1 - index) * sizeof *si.allocations.items);
    si.allocations.items[index] = a;
}

/* Those that were given back make room. */
static void forget_between(const char *first, const char *end)
{
    int kept = 0;
    for (int i = 0; i < si.allocations.count; i++) {
        si_allocation *a = si.allocations.items[i];
        if (a->kind != SI_PINNED && a->reusable && a->base < end && a->base + a->bytes + SI_GUARD > first)
            si_allocation_forget(a);
        else
            si.allocations.items[kept++] = a;
    }
    si.allocations.count = kept;
}

/* The first hole of `room` bytes at or after `at`, of offsets on the device. */
static int find_hole(int device, size_t at, size_t room, size_t *offset)
{
    const si_device *d = &si.devices[device];
    for (int i = 0; i < si.allocations.count; i++) {
        const si_allocation *a = si.allocations.items[i];
        if (a->kind == SI_PINNED || a->device != device || a->reusable) continue;
        const size_t first = (size_t)(a->base - d->front), end = round_up(first + a->bytes + SI_GUARD, ALIGN);
        if (end <= at) continue;
        if (first >= at + room) break;
        at = end;
    }
    *offset = at;
    return at + room <= d->span;
}

static char *place(int device, size_t bytes)
{
    si_device *d = &si.devices[device];
    const size_t room = round_up(bytes + SI_GUARD, ALIGN);
    size_t offset;
    if (!find_hole(device, d->cursor, room, &offset) && !find_hole(device, 0, room, &offset)) return NULL;
    forget_between(d->front + offset, d->front + offset + room);
    d->cursor = offset + room;
    return d->front + offset;
}

static si_allocation *add_allocation(char *base, size_t bytes, si_kind kind, int device)
{
    si_allocation *a = si_calloc(1, sizeof *a);
    *a = (si_allocation){
        .base = base, .bytes = bytes, .kind = kind, .device = device, .id = si.allocation_count++
    };
    insert_allocation(a);
    si.counters.allocations++;
    return a;
}

static void update_counters(void)
{
    size_t used = 0;
    for (int i = 0; i < si.options.device_count; i++) used += si.devices[i].used;
    si.counters.device_bytes = used;
    if (used > si.counters.device_bytes_peak) si.counters.device_bytes_peak = used;
}

static cudaError_t allocate(int device, size_t bytes, si_kind kind, si_allocation **allocation_p)
{
    si_device *d = &si.devices[device];
    if (bytes > si.options.memory_bytes) return cudaErrorMemoryAllocation;
    while (d->used + bytes > si.options.memory_bytes && si_run_one(NULL)) {} /* frees that are queued */
    if (d->used + bytes > si.options.memory_bytes) return cudaErrorMemoryAllocation;
    char *base = place(device, bytes);
    if (base == NULL) return cudaErrorMemoryAllocation;
    d->used += bytes;
    update_counters();
    memset(si_shadow(base), SI_POISON, bytes);
    *allocation_p = add_allocation(base, bytes, kind, device);
    return cudaSuccess;
}

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
    error = allocate(si_current_device(), bytes, SI_MALLOC, &a);
    if (error != cudaSuccess) return si_leave(error);
    host_writes(a);
    *pointer = a->base;
    return si_leave(cudaSuccess);
}

static void give_back(si_allocation *a)
{
    memset(si_shadow(a->base), SI_POISON, a->bytes);
    a->reusable = 1;
    si.devices[a->device].used -= a->bytes;
    update_counters();
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
    give_back(a);
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
    const cudaError_t error = allocate(device, bytes, SI_MALLOC_ASYNC, &a);
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
    give_back(user);
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
    host_writes(add_allocation(base, bytes, SI_PINNED, -1));
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
