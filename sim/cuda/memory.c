/*
 * Device memory. A device's memory is one file in memory, mapped twice: hosts have addresses of a mapping
 * that nobody can access, operations use the other one. Addresses are given out in circles, so that memory
 * that was given back stays known, and poisoned, for as long as can be.
 */
#define _GNU_SOURCE
#include "sim/cuda/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 256, SPANS = 2, CIRCLE = 4, CIRCLE_BYTES = 1 << 20 };

static size_t round_up(size_t bytes, size_t step)
{
    return (bytes + step - 1) / step * step;
}

/* --- devices --- */

/* Mappings outlive their session: pages that have been touched once cost nothing the next time. */
enum { KEPT_MAX = 64 };
typedef struct mapping {
    char *front, *shadow;
    size_t span;
} mapping;
static mapping kept[KEPT_MAX]; /* of device i, while no session is open; span 0: none */

static void unmap(const mapping *m)
{
    if (m->front != NULL) munmap(m->front, m->span);
    if (m->shadow != NULL) munmap(m->shadow, m->span);
}

static int map_file(mapping *m, int file)
{
    if (ftruncate(file, (off_t)m->span) != 0) return 0;
    void *front = mmap(NULL, m->span, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (front == MAP_FAILED) return 0;
    m->front = front;
    void *shadow = mmap(NULL, m->span, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (shadow == MAP_FAILED) return 0;
    m->shadow = shadow;
    return 1;
}

static int map_device(int index, size_t span)
{
    mapping m = { .span = span };
    if (index < KEPT_MAX && kept[index].span == span) {
        m = kept[index];
        kept[index] = (mapping){ .span = 0 };
    } else {
        const int file = memfd_create("device memory", MFD_CLOEXEC);
        const int mapped = file >= 0 && map_file(&m, file);
        if (file >= 0) close(file);
        if (!mapped) {
            unmap(&m);
            return 0;
        }
    }
    si_device *device = &si.devices[index];
    device->front = m.front;
    device->shadow = m.shadow;
    device->span = span;
    return 1;
}

static void keep_mapping(int index)
{
    const si_device *device = &si.devices[index];
    mapping m = { .front = device->front, .shadow = device->shadow, .span = device->span };
    if (m.span == 0) return;
    if (index < KEPT_MAX) {
        const mapping old = kept[index];
        kept[index] = m;
        m = old;
    }
    if (m.span > 0) unmap(&m);
}

int si_memory_open(void)
{
    const size_t span = round_up(SPANS * si.options.memory_bytes, 65536);
    si.devices = si_calloc((size_t)si.options.device_count + 1, sizeof *si.devices);
    for (int i = 0; i < si.options.device_count; i++) {
        si_device *device = &si.devices[i];
        device->pool = si_calloc(1, sizeof *device->pool);
        *device->pool = (si_pool){ .device = i, .is_default = 1 };
        si_list_add(&si.pools, device->pool);
        if (!map_device(i, span)) return 0;
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
    for (int i = 0; si.devices != NULL && i < si.options.device_count; i++) keep_mapping(i);
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
    int left = 0;
    for (int i = 0; i < si.allocations.count; i++) {
        si_allocation *a = si.allocations.items[i];
        if (a->kind != SI_PINNED && a->reusable && a->base < end && a->base + a->bytes + SI_GUARD > first)
            si_allocation_forget(a);
        else
            si.allocations.items[left++] = a;
    }
    si.allocations.count = left;
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
    if (d->cursor > CIRCLE * d->peak + CIRCLE_BYTES) d->cursor = 0; /* every new page costs time */
    if (!find_hole(device, d->cursor, room, &offset) && !find_hole(device, 0, room, &offset)) return NULL;
    forget_between(d->front + offset, d->front + offset + room);
    d->cursor = offset + room;
    return d->front + offset;
}

si_allocation *si_allocation_add(char *base, size_t bytes, si_kind kind, int device)
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

cudaError_t si_allocate(int device, size_t bytes, si_kind kind, si_allocation **allocation_p)
{
    si_device *d = &si.devices[device];
    if (bytes > si.options.memory_bytes) return cudaErrorMemoryAllocation;
    while (d->used + bytes > si.options.memory_bytes && si_run_one(NULL)) {} /* frees that are queued */
    if (d->used + bytes > si.options.memory_bytes) return cudaErrorMemoryAllocation;
    char *base = place(device, bytes);
    if (base == NULL) return cudaErrorMemoryAllocation;
    d->used += bytes;
    if (d->used > d->peak) d->peak = d->used;
    update_counters();
    memset(si_shadow(base), SI_POISON, bytes);
    *allocation_p = si_allocation_add(base, bytes, kind, device);
    return cudaSuccess;
}

void si_give_back(si_allocation *a)
{
    memset(si_shadow(a->base), SI_POISON, a->bytes);
    a->reusable = 1;
    si.devices[a->device].used -= a->bytes;
    update_counters();
}
