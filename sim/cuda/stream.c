/* Streams and events. A handle is a number in disguise: a wrong one is told from all others without being
 * followed. */
#include "kernels/cuda/launch.h"
#include "sim/cuda/state.h"

#include <string.h>

enum { STREAM_HANDLE = 1, EVENT_HANDLE = 2, HANDLE_STEP = 16 };

/* Handles of one session are none in the next. */
static uintptr_t handle_base(int type)
{
    return ((uintptr_t)(si.number & 0xffff) << 36) + ((uintptr_t)type << 32);
}

static void *handle_of(int type, int index)
{
    return (void *)(handle_base(type) + HANDLE_STEP * (uintptr_t)(index + 1));
}

static void *object_of(int type, const si_list *list, const void *handle)
{
    const uintptr_t distance = (uintptr_t)handle - handle_base(type);
    if (distance % HANDLE_STEP != 0 || distance == 0 || distance / HANDLE_STEP > (uintptr_t)list->count)
        return NULL;
    return list->items[distance / HANDLE_STEP - 1];
}

static si_stream *add_stream(int device, int blocking, int owner_number)
{
    si_stream *stream = si_calloc(1, sizeof *stream);
    stream->device = device;
    stream->blocking = blocking;
    stream->busy_index = -1;
    stream->slot = si.slot_count++;
    stream->owner = si_host_now();
    stream->owner_number = owner_number;
    stream->priority = si_random();
    stream->handle = handle_of(STREAM_HANDLE, si.streams.count);
    si_list_add(&si.streams, stream);
    return stream;
}

static si_stream *default_stream(int device)
{
    si_device *d = &si.devices[device];
    if (d->null_stream == NULL) d->null_stream = add_stream(device, 1, -1);
    return d->null_stream;
}

cudaError_t si_stream_of(cudaStream_t handle, si_stream **stream_p)
{
    si_stream *stream = handle == NULL || handle == cudaStreamLegacy
                            ? default_stream(si_current_device())
                            : object_of(STREAM_HANDLE, &si.streams, handle);
    if (stream == NULL) {
        si_misuse("%s: %p is no stream", si_call_name(), (void *)handle);
        return cudaErrorInvalidResourceHandle;
    }
    if (stream->gone) {
        char name[128];
        si_stream_name(stream, name, sizeof name);
        si_misuse("%s: %s has been destroyed", si_call_name(), name);
        return cudaErrorInvalidResourceHandle;
    }
    *stream_p = stream;
    return cudaSuccess;
}

static cudaError_t event_of(cudaEvent_t handle, si_event **event_p)
{
    si_event *event = object_of(EVENT_HANDLE, &si.events, handle);
    if (event == NULL || event->gone) {
        si_misuse("%s: event %p %s", si_call_name(), (void *)handle,
                  event ? "has been destroyed" : "is none");
        return cudaErrorInvalidResourceHandle;
    }
    *event_p = event;
    return cudaSuccess;
}

/* --- streams --- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_p, unsigned int flags)
{
    cudaError_t error = si_enter("cudaStreamCreateWithFlags");
    if (error != cudaSuccess) return si_leave(error);
    if (stream_p == NULL || flags > cudaStreamNonBlocking) return si_leave(cudaErrorInvalidValue);
    si_stream *stream = add_stream(si_current_device(), flags == cudaStreamDefault,
                                   si_host_now()->stream_count++);
    si.counters.streams++;
    *stream_p = stream->handle;
    return si_leave(cudaSuccess);
}

void zb_cuda_name_stream(cudaStream_t handle, const char *name)
{
    si_stream *stream;
    zb_standin_lock(); /* no call of CUDA's: none that can fail, and none that is counted */
    if (si_stream_of(handle, &stream) == cudaSuccess) stream->name = si_intern(name);
    zb_standin_unlock();
}

/* What is queued on it still runs. */
cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    cudaError_t error = si_enter_release("cudaStreamDestroy");
    si_stream *stream;
    if (error == cudaSuccess &&
        (handle == NULL || handle == cudaStreamLegacy || handle == cudaStreamPerThread))
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error != cudaSuccess) return si_leave(error);
    stream->gone = 1;
    si.counters.streams--;
    return si_leave(cudaSuccess);
}

static int stream_is_idle(void *user)
{
    const si_stream *stream = user;
    return stream->head == NULL;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    si_stream *stream;
    cudaError_t error = si_enter_release("cudaStreamSynchronize");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error != cudaSuccess) return si_leave(error);
    error = si_wait(stream_is_idle, stream, stream, "cudaStreamSynchronize");
    if (error == cudaSuccess) si_clock_join(&si_host_now()->clock, &stream->clock);
    return si_leave(error);
}

/* One step on the way, or none; where none is possible others get their turn. */
static void step_towards(si_stream *stream)
{
    if (si_chance(128)) return;
    if (!si_run_one(stream)) si_yield();
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    si_stream *stream;
    cudaError_t error = si_enter("cudaStreamQuery");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error != cudaSuccess) return si_leave(error);
    if (stream->head != NULL) step_towards(stream);
    if (si.devices[stream->device].sticky != cudaSuccess) return si_leave(si.devices[stream->device].sticky);
    if (stream->head != NULL) return si_leave(cudaErrorNotReady);
    si_clock_join(&si_host_now()->clock, &stream->clock);
    return si_leave(cudaSuccess);
}

static int device_is_idle(void *user)
{
    const int *device = user;
    for (int i = 0; i < si.busy.count; i++)
        if (((const si_stream *)si.busy.items[i])->device == *device) return 0;
    return 1;
}

cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t error = si_enter_release("cudaDeviceSynchronize");
    int device = si_current_device();
    if (error == cudaSuccess) error = si_wait(device_is_idle, &device, NULL, "cudaDeviceSynchronize");
    if (error == cudaSuccess) error = si.devices[device].sticky;
    if (error != cudaSuccess) return si_leave(error);
    for (int i = 0; i < si.streams.count; i++) {
        const si_stream *stream = si.streams.items[i];
        if (stream->device == device) si_clock_join(&si_host_now()->clock, &stream->clock);
    }
    return si_leave(cudaSuccess);
}

/* --- events --- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_p, unsigned int flags)
{
    const unsigned int known = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
    cudaError_t error = si_enter("cudaEventCreateWithFlags");
    if (error != cudaSuccess) return si_leave(error);
    if (event_p == NULL || (flags & ~known) != 0) return si_leave(cudaErrorInvalidValue);
    si_event *event = si_calloc(1, sizeof *event);
    event->device = si_current_device();
    *event_p = handle_of(EVENT_HANDLE, si.events.count);
    si_list_add(&si.events, event);
    si.counters.events++;
    return si_leave(cudaSuccess);
}

/* Whoever waits for it already still does. */
cudaError_t cudaEventDestroy(cudaEvent_t handle)
{
    si_event *event;
    cudaError_t error = si_enter_release("cudaEventDestroy");
    if (error == cudaSuccess) error = event_of(handle, &event);
    if (error != cudaSuccess) return si_leave(error);
    event->gone = 1;
    if (event->record != NULL) si_record_release(event->record);
    event->record = NULL;
    si.counters.events--;
    return si_leave(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle)
{
    si_event *event;
    si_stream *stream;
    cudaError_t error = si_enter("cudaEventRecord");
    if (error == cudaSuccess) error = event_of(handle, &event);
    if (error == cudaSuccess) error = si_stream_of(stream_handle, &stream);
    if (error == cudaSuccess && event->device != stream->device) error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess) return si_leave(error);
    if (event->record != NULL) si_record_release(event->record);
    event->record = si_enqueue_record(stream);
    return si_leave(cudaSuccess);
}

/* An event that was never recorded is nothing to wait for. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned int flags)
{
    si_event *event;
    si_stream *stream;
    cudaError_t error = si_enter("cudaStreamWaitEvent");
    if (error == cudaSuccess && flags > cudaEventWaitExternal) error = cudaErrorInvalidValue;
    if (error == cudaSuccess) error = si_stream_of(stream_handle, &stream);
    if (error == cudaSuccess) error = event_of(handle, &event);
    if (error == cudaSuccess && event->record != NULL) si_enqueue_wait(stream, event->record);
    return si_leave(error);
}

cudaError_t cudaEventQuery(cudaEvent_t handle)
{
    si_event *event;
    cudaError_t error = si_enter("cudaEventQuery");
    if (error == cudaSuccess) error = event_of(handle, &event);
    if (error != cudaSuccess || event->record == NULL) return si_leave(error);
    si_record *record = event->record;
    record->references++;
    if (!record->done) step_towards(record->stream);
    const int done = record->done;
    if (done) si_clock_join(&si_host_now()->clock, &record->clock);
    si_record_release(record);
    return si_leave(done ? cudaSuccess : cudaErrorNotReady);
}

static int record_is_done(void *user)
{
    const si_record *record = user;
    return record->done;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle)
{
    si_event *event;
    cudaError_t error = si_enter_release("cudaEventSynchronize");
    if (error == cudaSuccess) error = event_of(handle, &event);
    if (error != cudaSuccess || event->record == NULL) return si_leave(error);
    si_record *record = event->record;
    record->references++;
    error = si_wait(record_is_done, record, record->stream, "cudaEventSynchronize");
    if (error == cudaSuccess) si_clock_join(&si_host_now()->clock, &record->clock);
    si_record_release(record);
    return si_leave(error);
}
