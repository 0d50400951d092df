/* The session: its beginning and end, what is found in it, the faults that tests put in, and what every call
 * begins and ends with. */
#define _GNU_SOURCE
#include "sim/cuda/state.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_MEMORY_BYTES = 1 << 30 };

si_session si;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static _Thread_local si_call current_call;
static _Thread_local cudaError_t last_error;
static _Thread_local int current_device;
static _Thread_local unsigned device_of_session; /* the session that current_device belongs to */

void zb_standin_lock(void)
{
    pthread_mutex_lock(&lock);
}

void zb_standin_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

/* --- memory of the stand-in --- */

static void *must_exist(void *pointer)
{
    ZB_ASSERT(pointer != NULL);
    return pointer;
}

void *si_calloc(size_t count, size_t size)
{
    return must_exist(calloc(count > 0 ? count : 1, size));
}

void *si_grow(void *pointer, size_t count, size_t size)
{
    return must_exist(realloc(pointer, count * size));
}

void si_list_add(si_list *list, void *item)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity == 0 ? 16 : 2 * list->capacity;
        list->items = si_grow(list->items, (size_t)list->capacity, sizeof *list->items);
    }
    list->items[list->count++] = item;
}

static void list_destroy(si_list *list)
{
    free(list->items);
    *list = (si_list){ .count = 0 };
}

const char *si_intern(const char *text)
{
    for (int i = 0; i < si.names.count; i++)
        if (strcmp(si.names.items[i], text) == 0) return si.names.items[i];
    char *copy = si_calloc(1, strlen(text) + 1);
    strcpy(copy, text);
    si_list_add(&si.names, copy);
    return copy;
}

/* --- chance: splitmix64 (Steele, Lea, Flood 2014) --- */

uint64_t si_random(void)
{
    uint64_t z = si.random += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

int si_chance(unsigned of_256)
{
    return (si_random() & 0xff) < of_256;
}

/* --- findings --- */

static void find_text(zb_status status, const char *format, va_list arguments)
{
    vsnprintf(si.last_finding, sizeof si.last_finding, format, arguments);
    if (si.finding_count < SI_FINDINGS) {
        char *text = si_calloc(1, strlen(si.last_finding) + 1);
        strcpy(text, si.last_finding);
        si.findings[si.finding_count] = text;
    }
    if (si.finding_count++ == 0) si.first_status = status;
}

void si_find(zb_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    find_text(status, format, arguments);
    va_end(arguments);
}

cudaError_t si_misuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    find_text(ZB_INVALID_ARGUMENT, format, arguments);
    va_end(arguments);
    si.counters.misuses++;
    return cudaErrorInvalidValue;
}

const char *zb_standin_finding(int index)
{
    zb_standin_lock();
    const char *text = index >= 0 && index < SI_FINDINGS ? si.findings[index] : NULL;
    zb_standin_unlock();
    return text;
}

zb_standin_counters zb_standin_count(void)
{
    zb_standin_lock();
    const zb_standin_counters counters = si.counters;
    zb_standin_unlock();
    return counters;
}

/* --- faults --- */

void zb_standin_fail_call(const char *call, int64_t n, cudaError_t error)
{
    zb_standin_lock();
    si.fail_call = call != NULL ? si_intern(call) : NULL;
    si.fail_call_in = n;
    si.fail_call_error = error;
    si.fault_fired = 0;
    zb_standin_unlock();
}

void zb_standin_fail_operation(int64_t n, cudaError_t error)
{
    zb_standin_lock();
    si.fail_operation_in = n;
    si.fail_operation_error = error;
    si.fault_fired = 0;
    zb_standin_unlock();
}

int zb_standin_fault_fired(void)
{
    zb_standin_lock();
    const int fired = si.fault_fired;
    zb_standin_unlock();
    return fired;
}

void zb_standin_set_yield(void (*yield)(void))
{
    zb_standin_lock();
    si.yield = yield;
    zb_standin_unlock();
}

/* --- calls --- */

static cudaError_t call_fault(const char *call)
{
    if (si.fail_call_in < 0 || (si.fail_call != NULL && strcmp(si.fail_call, call) != 0)) return cudaSuccess;
    if (si.fail_call_in-- > 0) return cudaSuccess;
    si.fault_fired = 1;
    return si.fail_call_error;
}

static cudaError_t enter(const char *call, int releases)
{
    zb_standin_lock();
    current_call = (si_call){ .name = call };
    if (!si.open) return cudaErrorInitializationError;
    si.counters.calls++;
    si.progress++;
    if (si.options.device_count == 0) return cudaErrorNoDevice;
    current_call.host = si_host_find();
    cudaError_t error = call_fault(call);
    if (error == cudaSuccess) error = si.devices[si_current_device()].sticky;
    if (!releases) return error;
    current_call.injected = error;
    return cudaSuccess;
}

cudaError_t si_enter(const char *call)
{
    return enter(call, 0);
}

cudaError_t si_enter_release(const char *call)
{
    return enter(call, 1);
}

/* "Not ready" is an answer, no error. */
cudaError_t si_leave(cudaError_t error)
{
    if (error == cudaSuccess) error = current_call.injected;
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    zb_standin_unlock();
    return error;
}

const char *si_call_name(void)
{
    return current_call.name;
}

si_host *si_host_now(void)
{
    return current_call.host;
}

si_call si_call_save(void)
{
    return current_call;
}

void si_call_restore(si_call call)
{
    current_call = call;
}

int si_current_device(void)
{
    return device_of_session == si.number ? current_device : 0;
}

void si_set_current_device(int device)
{
    current_device = device;
    device_of_session = si.number;
}

cudaError_t si_take_last_error(int keep)
{
    const cudaError_t error = last_error;
    if (!keep) last_error = cudaSuccess;
    return error;
}

/* --- beginning and end --- */

static void draw_schedule(void)
{
    static const unsigned eagerness[] = { 0, 32, 128, 224 };
    const uint64_t which = si_random() % (ZB_STANDIN_SCHEDULE_COUNT - 1), how_eager = si_random() % 4;
    si.schedule = si.options.schedule != ZB_STANDIN_DRAWN ? si.options.schedule
                                                          : (zb_standin_schedule)(1 + which);
    si.eagerness = si.schedule == ZB_STANDIN_LAZY ? 0 : eagerness[how_eager];
}

static void forget_findings(void)
{
    for (int i = 0; i < SI_FINDINGS; i++) free(si.findings[i]);
}

/* All but the findings, which may still be read. */
static void close_session(void)
{
    si_drop(-1);
    for (int i = 0; i < si.events.count; i++) {
        si_event *event = si.events.items[i];
        if (event->record != NULL) si_record_release(event->record);
        free(event);
    }
    for (int i = 0; i < si.streams.count; i++) {
        si_stream *stream = si.streams.items[i];
        si_clock_destroy(&stream->clock);
        free(stream);
    }
    for (int i = 0; i < si.hosts.count; i++) {
        si_host *host = si.hosts.items[i];
        si_clock_destroy(&host->clock);
        free(host);
    }
    for (int i = 0; i < si.pools.count; i++) free(si.pools.items[i]);
    for (int i = 0; i < si.names.count; i++) free(si.names.items[i]);
    si_memory_close();
    si_list *lists[] = {
        &si.streams, &si.events, &si.pools, &si.hosts, &si.busy, &si.names, &si.allocations
    };
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) list_destroy(lists[i]);
    si.open = 0;
}

static zb_status begin(const zb_standin_options *options)
{
    if (si.open) return zb_fail(ZB_INVALID_ARGUMENT, "a session of the CUDA stand-in is open already");
    if (options->device_count < 0 || (unsigned)options->schedule >= ZB_STANDIN_SCHEDULE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "a stand-in with %d devices and schedule %d",
                       options->device_count, (int)options->schedule);
    forget_findings();
    si = (si_session){ .number = si.number + 1,
                       .options = *options,
                       .random = options->seed,
                       .fail_call_in = -1,
                       .fail_operation_in = -1 };
    if (si.options.memory_bytes == 0) si.options.memory_bytes = DEFAULT_MEMORY_BYTES;
    draw_schedule();
    si.open = 1;
    if (si_memory_open()) {
        si_fault_handler_install();
        return ZB_OK;
    }
    close_session();
    return zb_fail(ZB_NO_MEMORY, "device memory of %zu bytes cannot be mapped", si.options.memory_bytes);
}

zb_status zb_standin_begin(const zb_standin_options *options)
{
    zb_standin_lock();
    const zb_status status = begin(options);
    zb_standin_unlock();
    return status;
}

/* A device that has failed takes nothing back. */
static int takes_back(int device)
{
    return device < 0 || si.devices[device].sticky == cudaSuccess;
}

static void find_leaks(void)
{
    for (int i = 0; i < si.allocations.count; i++) {
        const si_allocation *a = si.allocations.items[i];
        char text[128];
        si_describe_allocation(a, text, sizeof text);
        if (!a->gone && takes_back(a->device)) si_find(ZB_INTERNAL, "leak: %s", text);
    }
    for (int i = 0; i < si.streams.count; i++) {
        const si_stream *stream = si.streams.items[i];
        char text[128];
        si_stream_name(stream, text, sizeof text);
        if (!stream->gone && stream->owner_number >= 0 && takes_back(stream->device))
            si_find(ZB_INTERNAL, "leak: %s", text);
    }
    for (int i = 0; i < si.events.count; i++) {
        const si_event *event = si.events.items[i];
        if (!event->gone && takes_back(event->device)) si_find(ZB_INTERNAL, "leak: event %d", i);
    }
    for (int i = 0; i < si.pools.count; i++) {
        const si_pool *pool = si.pools.items[i];
        if (!pool->gone && !pool->is_default && takes_back(pool->device))
            si_find(ZB_INTERNAL, "leak: memory pool of device %d", pool->device);
    }
}

static zb_status end(void)
{
    if (!si.open) return zb_fail(ZB_INVALID_ARGUMENT, "no session of the CUDA stand-in is open");
    if (si.options.device_count > 0)
        current_call = (si_call){ .name = "zb_standin_end", .host = si_host_find() };
    while (!si.deadlock && si_run_one(NULL)) {}
    if (si.busy.count > 0 && !si.deadlock)
        si_find(ZB_DEADLOCK, "%d streams still wait at the end", si.busy.count);
    find_leaks();
    si_fault_handler_remove();
    close_session();
    if (si.finding_count == 0) return ZB_OK;
    if (si.finding_count == 1) return zb_fail(si.first_status, "%s", si.findings[0]);
    return zb_fail(si.first_status, "%s (and %llu more)", si.findings[0],
                   (unsigned long long)si.finding_count - 1);
}

zb_status zb_standin_end(void)
{
    zb_standin_lock();
    const zb_status status = end();
    zb_standin_unlock();
    return status;
}
