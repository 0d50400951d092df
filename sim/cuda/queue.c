/* Queues of operations: what is queued, what may run, what runs next, and what happens when nothing can. */
#include "sim/cuda/state.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sim/world.h"

enum { STUCK_PASSES = 8, PATIENT_PASSES = 64, PAUSE_NS = 50000, DEFAULT_STALL_MS = 20000 };

/* --- queueing --- */

static void append(si_stream *stream, si_operation *operation)
{
    if (stream->head == NULL) {
        stream->busy_index = si.busy.count;
        si_list_add(&si.busy, stream);
        stream->tail = &stream->head;
    }
    *stream->tail = operation;
    stream->tail = &operation->next;
    si.progress++;
}

static void pop(si_stream *stream)
{
    si_operation *operation = stream->head;
    stream->head = operation->next;
    if (stream->head == NULL) {
        si_stream *last = si.busy.items[--si.busy.count];
        si.busy.items[stream->busy_index] = last;
        last->busy_index = stream->busy_index;
        stream->busy_index = -1;
    }
    if (operation->release != NULL) operation->release(operation->user);
    if (operation->record != NULL) si_record_release(operation->record);
    free(operation);
    si.progress++;
}

static void run_unasked(void)
{
    while (si_chance(si.eagerness) && si_run_one(NULL)) {}
}

/* What the host knows is known to whatever it queues from now on. */
static void advance(si_stream *stream)
{
    si_clock_join(&stream->clock, &si_host_now()->clock);
    si_clock_set(&stream->clock, stream->slot, si_clock_get(&stream->clock, stream->slot) + 1);
}

static si_record *record_at(si_stream *stream)
{
    si_record *record = si_calloc(1, sizeof *record);
    record->references = 1;
    record->stream = stream;
    advance(stream);
    si_clock_join(&record->clock, &stream->clock);
    si_operation *operation = si_calloc(1, sizeof *operation);
    operation->step = SI_RECORD;
    operation->name = "cudaEventRecord";
    operation->record = record;
    record->references++;
    append(stream, operation);
    return record;
}

static void wait_for(si_stream *stream, si_record *record)
{
    advance(stream);
    si_clock_join(&stream->clock, &record->clock);
    if (record->done) return;
    si_operation *operation = si_calloc(1, sizeof *operation);
    operation->step = SI_WAIT;
    operation->name = "cudaStreamWaitEvent";
    operation->record = record;
    record->references++;
    append(stream, operation);
}

static void order_after(si_stream *stream, si_stream *other)
{
    si_record *record = record_at(other);
    wait_for(stream, record);
    si_record_release(record);
}

/* The default stream waits for all blocking streams of its device, and they for it. */
static void order_with_default_stream(si_stream *stream)
{
    si_stream *null_stream = si.devices[stream->device].null_stream;
    if (null_stream == NULL || !stream->blocking) return;
    if (stream != null_stream) {
        order_after(stream, null_stream);
        return;
    }
    for (int i = 0; i < si.streams.count; i++) {
        si_stream *other = si.streams.items[i];
        if (other->device == stream->device && other->blocking && other != stream) order_after(stream, other);
    }
}

si_mark si_enqueue(si_stream *stream, const si_work *work)
{
    order_with_default_stream(stream);
    advance(stream);
    const si_mark mark = { .slot = stream->slot,
                           .epoch = si_clock_get(&stream->clock, stream->slot),
                           .operation = work->name,
                           .stream = stream,
                           .host = si_host_now() };
    for (int i = 0; i < work->range_count; i++) si_check(&stream->clock, &mark, &work->ranges[i]);
    si_operation *operation = si_calloc(1, sizeof *operation);
    operation->step = SI_WORK;
    operation->name = work->name;
    operation->run = work->run;
    operation->release = work->release;
    operation->user = work->user;
    append(stream, operation);
    run_unasked();
    return mark;
}

si_record *si_enqueue_record(si_stream *stream)
{
    order_with_default_stream(stream);
    si_record *record = record_at(stream);
    run_unasked();
    return record;
}

void si_enqueue_wait(si_stream *stream, si_record *record)
{
    wait_for(stream, record);
    run_unasked();
}

void si_record_release(si_record *record)
{
    if (--record->references > 0) return;
    si_clock_destroy(&record->clock);
    free(record);
}

/* --- running --- */

static void fail_device(int device, cudaError_t error)
{
    si.devices[device].sticky = error;
    si_drop(device);
}

/* Whether this operation is the one that was asked to fail. */
static int fails_now(void)
{
    if (si.fail_operation_in < 0 || si.fail_operation_in-- > 0) return 0;
    si.fault_fired = 1;
    return 1;
}

static int try_work(si_stream *stream, si_operation *operation)
{
    si.running = operation->name;
    const zb_standin_progress progress = operation->run(operation->user);
    si.running = NULL;
    if (progress == ZB_STANDIN_NOT_YET) return 0;
    si.counters.operations++;
    const int device = stream->device, asked = fails_now();
    pop(stream);
    if (progress == ZB_STANDIN_FAILED)
        fail_device(device, cudaErrorLaunchFailure);
    else if (asked)
        fail_device(device, si.fail_operation_error);
    return 1;
}

static int try_head(si_stream *stream)
{
    si_operation *operation = stream->head;
    if (operation == NULL) return 0;
    if (operation->step == SI_WORK) return try_work(stream, operation);
    if (operation->step == SI_WAIT && !operation->record->done) return 0;
    operation->record->done = 1;
    pop(stream);
    return 1;
}

/* The stream that holds up this one, first of all. */
static si_stream *holds_up(si_stream *stream)
{
    while (stream->head != NULL && stream->head->step == SI_WAIT && !stream->head->record->done)
        stream = stream->head->record->stream;
    return stream;
}

static int choose(si_stream *const *streams, int count)
{
    if (si.schedule != ZB_STANDIN_PRIORITY) return (int)(si_random() % (unsigned)count);
    int best = 0;
    for (int i = 1; i < count; i++)
        if (streams[i]->priority > streams[best]->priority) best = i;
    if (si_chance(8)) streams[best]->priority = si_random();
    return best;
}

int si_run_one(si_stream *wanted)
{
    if (si.schedule == ZB_STANDIN_LAZY && wanted != NULL && try_head(holds_up(wanted))) return 1;
    const int count = si.busy.count;
    if (count == 0) return 0;
    si_stream **streams = si_calloc((size_t)count, sizeof *streams);
    memcpy(streams, si.busy.items, (size_t)count * sizeof *streams);
    int ran = 0;
    for (int left = count; left > 0 && !ran;) {
        const int choice = choose(streams, left);
        ran = try_head(streams[choice]);
        streams[choice] = streams[--left];
    }
    free(streams);
    return ran;
}

void si_drop(int device)
{
    for (int i = si.busy.count - 1; i >= 0; i--) {
        si_stream *stream = si.busy.items[i];
        if (device >= 0 && stream->device != device) continue;
        while (stream->head != NULL) {
            if (stream->head->step == SI_RECORD) stream->head->record->done = 1;
            pop(stream);
        }
    }
}

/* --- waiting --- */

static void default_yield(void)
{
    sim_rank *rank = sim_current_rank();
    if (rank == NULL) {
        sched_yield();
        return;
    }
    pthread_mutex_lock(&rank->sim->lock);
    sim_let_others_run(rank);
    pthread_mutex_unlock(&rank->sim->lock);
}

/* Whoever it waits for runs on another thread, and may need this one's processor. */
static void pause_briefly(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
}

void si_yield(void)
{
    void (*yield)(void) = si.yield != NULL ? si.yield : default_yield;
    const si_call call = si_call_save();
    const int patient = call.host->stuck_passes > PATIENT_PASSES;
    si.counters.yields++;
    zb_standin_unlock();
    if (patient) pause_briefly();
    yield();
    zb_standin_lock();
    si_call_restore(call);
}

/* Every rank of this one's world that is not waiting for another has found nothing to run, several times. */
static int world_is_stuck(void)
{
    const sim_rank *rank = sim_current_rank();
    if (rank == NULL) return 0;
    int stuck = 0;
    for (int i = 0; i < si.hosts.count; i++) {
        const si_host *host = si.hosts.items[i];
        if (host->world == rank->sim)
            stuck += host->stuck_passes >= STUCK_PASSES && host->stuck_at == si.progress;
    }
    pthread_mutex_lock(&rank->sim->lock);
    const int active = rank->sim->active;
    pthread_mutex_unlock(&rank->sim->lock);
    return stuck == active;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void report_deadlock(const char *what)
{
    char text[SI_TEXT] = "";
    size_t used = 0;
    for (int i = 0; i < si.busy.count && used + 200 < sizeof text; i++) {
        const si_stream *stream = si.busy.items[i];
        char name[128];
        si_stream_name(stream, name, sizeof name);
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s stands at %s", i > 0 ? "; " : "",
                                 name, stream->head->name);
    }
    si_find(ZB_DEADLOCK, "deadlock: %s can never end: %s", what, text);
    si.deadlock = 1;
}

/* Nothing could run: notes it, and says whether that is for good. `since` is when it began. */
static int is_stuck(si_host *host, int64_t *since)
{
    if (host->stuck_at != si.progress || host->stuck_passes == 0) {
        host->stuck_at = si.progress;
        host->stuck_passes = 0;
        *since = now_ms();
    }
    if (++host->stuck_passes < STUCK_PASSES) return 0;
    const int stall_ms = si.options.stall_ms > 0 ? si.options.stall_ms : DEFAULT_STALL_MS;
    return world_is_stuck() || now_ms() - *since > stall_ms;
}

cudaError_t si_wait(int (*ready)(void *user), void *user, si_stream *wanted, const char *what)
{
    si_host *host = si_host_now();
    cudaError_t error = cudaSuccess;
    int64_t since = now_ms();
    host->stuck_passes = 0;
    while (error == cudaSuccess && !ready(user)) {
        if (wanted != NULL && si.devices[wanted->device].sticky != cudaSuccess) {
            error = si.devices[wanted->device].sticky;
        } else if (si.deadlock) {
            error = cudaErrorTimeout;
        } else if (!si_run_one(wanted)) {
            if (is_stuck(host, &since))
                report_deadlock(what);
            else
                si_yield();
        }
    }
    host->stuck_passes = 0;
    if (error == cudaSuccess && wanted != NULL) error = si.devices[wanted->device].sticky;
    return error;
}
