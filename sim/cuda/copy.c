/*
 * Copies and fills. CUDA may read pageable host memory while the call lasts or later: the seed decides. It
 * writes some later: until then there is poison.
 */
#include "sim/cuda/state.h"

#include <stdlib.h>
#include <string.h>

typedef struct copy {
    void *to;
    const void *from; /* where operations find it */
    void *staged;     /* what `from` held at the call; NULL: is read when the copy runs */
    size_t bytes;
    const void *pageable; /* what it has still to read or write of pageable memory; NULL: nothing */
    int writes;           /* that */
    struct copy *previous, *next;
} copy;

/* Those with pageable memory. A host that leaves the memory alone may have a copy go out to it and another
 * come in from it: neither poison nor an early read may get between the two. */
static copy *pending; /* under the session's lock */

static void add_pending(copy *c, const void *pageable, int writes)
{
    c->pageable = pageable;
    c->writes = writes;
    c->next = pending;
    if (pending != NULL) pending->previous = c;
    pending = c;
}

static void remove_pending(copy *c)
{
    if (c->pageable == NULL) return;
    *(c->previous != NULL ? &c->previous->next : &pending) = c->next;
    if (c->next != NULL) c->next->previous = c->previous;
}

static int is_pending(const void *memory, size_t bytes, int writes)
{
    const uintptr_t first = (uintptr_t)memory;
    for (const copy *c = pending; c != NULL; c = c->next) {
        const uintptr_t other = (uintptr_t)c->pageable;
        if (c->writes == writes && other < first + bytes && first < other + c->bytes) return 1;
    }
    return 0;
}

static zb_standin_progress run_copy(void *user)
{
    const copy *c = user;
    memmove(c->to, c->staged != NULL ? c->staged : c->from, c->bytes);
    return ZB_STANDIN_DONE;
}

static void release_copy(void *user)
{
    copy *c = user;
    remove_pending(c);
    free(c->staged);
    free(c);
}

/* One side of a copy. */
typedef struct side {
    const char *name;
    const void *pointer;
    int on_device, pinned;
    int writes;
} side;

static cudaError_t check_side(const side *s, int want_device)
{
    if (want_device == s->on_device) return cudaSuccess;
    return si_misuse("cudaMemcpyAsync (%s): %p is %s memory, and the direction says %s", s->name, s->pointer,
                     s->on_device ? "device" : "host", want_device ? "device" : "host");
}

static cudaError_t check_direction(const side *to, const side *from, enum cudaMemcpyKind kind)
{
    switch (kind) {
    case cudaMemcpyDefault:
        return cudaSuccess;
    case cudaMemcpyHostToHost:
    case cudaMemcpyHostToDevice:
    case cudaMemcpyDeviceToHost:
    case cudaMemcpyDeviceToDevice: {
        const int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
        const int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
        const cudaError_t error = check_side(to, to_device);
        return error != cudaSuccess ? error : check_side(from, from_device);
    }
    }
    return cudaErrorInvalidMemcpyDirection;
}

/* Pageable memory is nobody's allocation; nothing is known of it. */
static cudaError_t add_range(const side *s, size_t bytes, si_range *ranges, int *count)
{
    if (!s->on_device && !s->pinned) return cudaSuccess;
    si_range *range = &ranges[*count];
    const cudaError_t error = si_resolve("cudaMemcpyAsync", s->name, s->pointer, 0, bytes,
                                         si_device_of(s->pointer), range);
    if (error != cudaSuccess) return error;
    range->reads = !s->writes;
    range->writes = s->writes;
    ++*count;
    return cudaSuccess;
}

static side side_of(const char *name, const void *pointer, int writes)
{
    return (side){ .name = name,
                   .pointer = pointer,
                   .on_device = si_device_of(pointer) >= 0,
                   .pinned = si_is_pinned(pointer),
                   .writes = writes };
}

static void queue_copy(si_stream *stream, const side *to, const side *from, size_t bytes,
                       const si_range *ranges, int count)
{
    copy *c = si_calloc(1, sizeof *c);
    c->bytes = bytes;
    c->to = to->on_device ? si_shadow(to->pointer) : (void *)(uintptr_t)to->pointer;
    c->from = from->on_device ? si_shadow(from->pointer) : from->pointer;
    const int pageable_from = !from->on_device && !from->pinned, pageable_to = !to->on_device && !to->pinned;
    if (pageable_from && !is_pending(c->from, bytes, 1) && si_chance(128)) {
        c->staged = si_calloc(1, bytes);
        memcpy(c->staged, c->from, bytes);
    }
    if (pageable_to && !pageable_from && !is_pending(c->to, bytes, 0)) memset(c->to, SI_POISON, bytes);
    if (pageable_to)
        add_pending(c, c->to, 1);
    else if (pageable_from && c->staged == NULL)
        add_pending(c, c->from, 0);
    si_enqueue(stream, &(si_work){ .name = "cudaMemcpyAsync",
                                   .ranges = ranges,
                                   .range_count = count,
                                   .run = run_copy,
                                   .release = release_copy,
                                   .user = c });
}

static cudaError_t copy_async(void *to_pointer, const void *from_pointer, size_t bytes,
                              enum cudaMemcpyKind kind, si_stream *stream)
{
    const side to = side_of("to", to_pointer, 1), from = side_of("from", from_pointer, 0);
    si_range ranges[2];
    int count = 0;
    if (bytes == 0) return (unsigned)kind > cudaMemcpyDefault ? cudaErrorInvalidMemcpyDirection : cudaSuccess;
    if (to_pointer == NULL || from_pointer == NULL) return cudaErrorInvalidValue;
    cudaError_t error = check_direction(&to, &from, kind);
    if (error == cudaSuccess) error = add_range(&from, bytes, ranges, &count);
    if (error == cudaSuccess) error = add_range(&to, bytes, ranges, &count);
    if (error == cudaSuccess) queue_copy(stream, &to, &from, bytes, ranges, count);
    return error;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t handle)
{
    si_stream *stream;
    cudaError_t error = si_enter("cudaMemcpyAsync");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error == cudaSuccess) error = copy_async(to, from, bytes, kind, stream);
    return si_leave(error);
}

/* --- */

typedef struct fill {
    void *to;
    int value;
    size_t bytes;
} fill;

static zb_standin_progress run_fill(void *user)
{
    const fill *f = user;
    memset(f->to, f->value, f->bytes);
    return ZB_STANDIN_DONE;
}

cudaError_t cudaMemsetAsync(void *pointer, int value, size_t bytes, cudaStream_t handle)
{
    si_stream *stream;
    si_range range;
    cudaError_t error = si_enter("cudaMemsetAsync");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error != cudaSuccess || bytes == 0) return si_leave(error);
    error = si_resolve("cudaMemsetAsync", "pointer", pointer, 0, bytes, stream->device, &range);
    if (error != cudaSuccess) return si_leave(error);
    range.writes = 1;
    fill *f = si_calloc(1, sizeof *f);
    *f = (fill){ .to = si_shadow(pointer), .value = value & 0xff, .bytes = bytes };
    si_enqueue(stream, &(si_work){ .name = "cudaMemsetAsync",
                                   .ranges = &range,
                                   .range_count = 1,
                                   .run = run_fill,
                                   .release = free,
                                   .user = f });
    return si_leave(cudaSuccess);
}
