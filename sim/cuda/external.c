/* What runs on streams beside CUDA: operations of other libraries' stand-ins. */
#include "sim/cuda/state.h"

#include <stdlib.h>

typedef struct external {
    zb_standin_progress (*try_run)(void *user);
    void (*release)(void *user);
    void *user;
} external;

static zb_standin_progress run_external(void *user)
{
    const external *e = user;
    return e->try_run(e->user);
}

static void release_external(void *user)
{
    external *e = user;
    if (e->release != NULL) e->release(e->user);
    free(e);
}

static cudaError_t resolve_all(const si_stream *stream, const zb_standin_operation *operation,
                               si_range *ranges, int *count)
{
    const char *name = operation->name;
    for (int i = 0; i < operation->access_count; i++) {
        const zb_standin_access *access = &operation->accesses[i];
        if (access->bytes == 0) continue;
        const cudaError_t error = si_resolve(name, access->name, access->pointer, 0, access->bytes,
                                             stream->device, &ranges[*count]);
        if (error != cudaSuccess) return error;
        ranges[*count].argument = si_intern(access->name);
        ranges[*count].reads = access->reads;
        ranges[*count].writes = access->writes;
        ++*count;
    }
    return cudaSuccess;
}

static cudaError_t enqueue(si_stream *stream, const zb_standin_operation *operation)
{
    si_range *ranges = si_calloc((size_t)operation->access_count, sizeof *ranges);
    int count = 0;
    const cudaError_t error = resolve_all(stream, operation, ranges, &count);
    if (error == cudaSuccess) {
        external *e = si_calloc(1, sizeof *e);
        *e = (external){ .try_run = operation->try_run,
                         .release = operation->release,
                         .user = operation->user };
        si_enqueue(stream, &(si_work){ .name = si_intern(operation->name),
                                       .ranges = ranges,
                                       .range_count = count,
                                       .run = run_external,
                                       .release = release_external,
                                       .user = e });
    }
    free(ranges);
    return error;
}

cudaError_t zb_standin_enqueue(cudaStream_t handle, const zb_standin_operation *operation)
{
    si_stream *stream;
    cudaError_t error = si_enter("zb_standin_enqueue");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error == cudaSuccess && stream->device != si_current_device()) error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess) error = enqueue(stream, operation);
    return si_leave(error);
}

void *zb_standin_memory(const void *pointer)
{
    zb_standin_lock();
    void *memory = si.open && si_device_of(pointer) >= 0 ? si_shadow(pointer) : NULL;
    zb_standin_unlock();
    return memory;
}

cudaError_t zb_standin_wait(int (*ready)(void *user), void *user, const char *what)
{
    cudaError_t error = si_enter("zb_standin_wait");
    if (error == cudaSuccess) error = si_wait(ready, user, NULL, what);
    return si_leave(error);
}
