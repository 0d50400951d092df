/* See probe.h. */
#include "tests/engine/probe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static zb_status count_call(probe_fault *fault, const char *what)
{
    int64_t n = fault->calls++;
    if (fault->fired && fault->lasting) return zb_fail(ZB_REMOTE, "probe: still broken");
    if (n != fault->fail_at) return ZB_OK;
    fault->fired = 1;
    return zb_fail(ZB_REMOTE, "probe: call %lld, %s, fails", (long long)n, what);
}

/* --- device --- */

static probe_device *device_of(zb_stream *stream)
{
    return (probe_device *)stream->device;
}

static probe_stream *probe_of(zb_stream *stream)
{
    return (probe_stream *)stream;
}

static void see(uint64_t *to, const uint64_t *from)
{
    for (int i = 0; i < PROBE_STREAMS; i++)
        if (from[i] > to[i]) to[i] = from[i];
}

/* One more piece of work on a stream. */
static void note_work(zb_stream *stream)
{
    probe_device *device = device_of(stream);
    probe_stream *probe = probe_of(stream);
    if (device->in_collective != NULL)
        assert_ptr_equal(stream, device->in_collective);
    else
        assert_int_equal(probe->index, 0);
    for (int i = 1; device->in_collective == NULL && i < device->stream_count; i++)
        assert_true(probe->seen[i] >= device->compute_must_see[i]);
    probe->seen[probe->index]++;
    if (probe->index == 0) device->compute_done = probe->seen[0];
}

static zb_status probe_alloc(zb_device *device, size_t bytes, void **pointer_p)
{
    probe_device *probe = (probe_device *)device;
    ZB_TRY(count_call(&probe->fault, "alloc"));
    return probe->cpu->ops->alloc(probe->cpu, bytes, pointer_p);
}

static void probe_free(zb_device *device, void *pointer)
{
    probe_device *probe = (probe_device *)device;
    assert_int_equal(probe->under_way, 0); /* a collective may still write to it */
    probe->cpu->ops->free(probe->cpu, pointer);
}

static zb_status probe_stream_create(zb_device *device, const char *name, zb_stream **stream_p)
{
    probe_device *probe = (probe_device *)device;
    zb_stream *cpu;
    ZB_TRY(count_call(&probe->fault, "stream_create"));
    ZB_TRY(zb_stream_create(probe->cpu, name, &cpu));
    probe_stream *stream = calloc(1, sizeof *stream);
    assert_non_null(stream);
    assert_true(probe->stream_count < PROBE_STREAMS);
    static const char *const names[PROBE_STREAMS] = { "compute", "transfer", "prefetch" };
    assert_string_equal(name, names[probe->stream_count]);
    *stream = (probe_stream){ .base = { device, name }, .cpu = cpu, .index = probe->stream_count++ };
    *stream_p = &stream->base;
    return ZB_OK;
}

static void probe_stream_destroy(zb_stream *stream)
{
    zb_stream_destroy(probe_of(stream)->cpu);
    free(stream);
}

static zb_status probe_stream_wait_idle(zb_stream *stream)
{
    ZB_TRY(count_call(&device_of(stream)->fault, "stream_wait_idle"));
    device_of(stream)->copying_out = 0;
    return zb_stream_wait_idle(probe_of(stream)->cpu);
}

typedef struct probe_event {
    zb_event base;
    zb_event *cpu;
    uint64_t seen[PROBE_STREAMS];
} probe_event;

static zb_status probe_event_create(zb_device *device, const char *name, zb_event **event_p)
{
    probe_device *probe = (probe_device *)device;
    zb_event *cpu;
    ZB_TRY(count_call(&probe->fault, "event_create"));
    ZB_TRY(zb_event_create(probe->cpu, name, &cpu));
    probe_event *event = calloc(1, sizeof *event);
    assert_non_null(event);
    *event = (probe_event){ .base = { device, name }, .cpu = cpu };
    *event_p = &event->base;
    return ZB_OK;
}

static void probe_event_destroy(zb_event *event)
{
    zb_event_destroy(((probe_event *)event)->cpu);
    free(event);
}

static zb_status probe_event_record(zb_event *event, zb_stream *stream)
{
    probe_event *probe = (probe_event *)event;
    ZB_TRY(count_call(&device_of(stream)->fault, "event_record"));
    memcpy(probe->seen, probe_of(stream)->seen, sizeof probe->seen);
    return zb_event_record(probe->cpu, probe_of(stream)->cpu);
}

static zb_status probe_stream_wait_event(zb_stream *stream, zb_event *event)
{
    ZB_TRY(count_call(&device_of(stream)->fault, "stream_wait_event"));
    see(probe_of(stream)->seen, ((probe_event *)event)->seen);
    device_of(stream)->waits_between++;
    return zb_stream_wait_event(probe_of(stream)->cpu, ((probe_event *)event)->cpu);
}

static zb_status probe_copy_in(zb_stream *stream, void *to, const void *from, size_t bytes)
{
    ZB_TRY(count_call(&device_of(stream)->fault, "copy_in"));
    note_work(stream);
    return zb_copy_in(probe_of(stream)->cpu, to, from, bytes);
}

static zb_status probe_copy_out(zb_stream *stream, void *to, const void *from, size_t bytes)
{
    ZB_TRY(count_call(&device_of(stream)->fault, "copy_out"));
    note_work(stream);
    device_of(stream)->copying_out = 1;
    return zb_copy_out(probe_of(stream)->cpu, to, from, bytes);
}

/* A copy to the host is always waited for before anything else is computed: nobody has looked too early. */
static zb_status probe_launch(zb_stream *stream, zb_kernel kernel, const void *args, size_t args_bytes)
{
    ZB_TRY(count_call(&device_of(stream)->fault, "launch"));
    assert_false(device_of(stream)->copying_out && device_of(stream)->in_collective == NULL);
    note_work(stream);
    return probe_of(stream)->cpu->device->ops->launch(probe_of(stream)->cpu, kernel, args, args_bytes);
}

static zb_status probe_discard(zb_stream *stream, void *pointer, size_t bytes)
{
    ZB_TRY(count_call(&device_of(stream)->fault, "discard"));
    note_work(stream);
    return zb_discard(probe_of(stream)->cpu, pointer, bytes);
}

static const zb_device_ops device_ops = { .name = "probe",
                                          .memory_is_hosts = 1,
                                          .alloc = probe_alloc,
                                          .free = probe_free,
                                          .stream_create = probe_stream_create,
                                          .stream_destroy = probe_stream_destroy,
                                          .stream_wait_idle = probe_stream_wait_idle,
                                          .event_create = probe_event_create,
                                          .event_destroy = probe_event_destroy,
                                          .event_record = probe_event_record,
                                          .stream_wait_event = probe_stream_wait_event,
                                          .copy_in = probe_copy_in,
                                          .copy_out = probe_copy_out,
                                          .launch = probe_launch,
                                          .discard = probe_discard };

void probe_device_init(probe_device *device)
{
    *device = (probe_device){ .base = { .ops = &device_ops }, .fault = { .fail_at = -1 } };
    assert_int_equal(zb_device_cpu_create_poisoning(&device->cpu), ZB_OK);
}

void probe_device_close(probe_device *device)
{
    zb_device_destroy(device->cpu);
}

/* --- communicator --- */

/* In a world of one every kind but reduce_scatter_v has `numel` elements on both sides. */
static size_t payload_bytes(const zb_collective *c)
{
    return (c->counts != NULL ? c->counts[0] : c->numel) * zb_dtype_bytes(c->dtype);
}

/* Its input is complete when it starts: its stream has seen all compute work. Host memory has no
 * stream, and the host is never ahead of itself. */
static void check_start(const probe_comm *comm, const zb_collective *c)
{
    const probe_stream *stream = (probe_stream *)c->stream;
    if (stream == NULL) return;
    const int gathers = strcmp(c->what, "stage 3: gather parameters") == 0;
    const int last = comm->device->stream_count - 1;
    assert_int_equal(stream->index, gathers ? last : last > 0);
    assert_true(stream->seen[0] >= comm->device->compute_done);
}

/* With `finished` what compute does from here on may rely on the result, so that it must be ordered after. */
static zb_status run(probe_comm *comm, const zb_collective *c, int finished)
{
    comm->device->in_collective = c->stream;
    zb_status status = comm->self->ops->start(comm->self, c, NULL);
    comm->device->in_collective = NULL;
    probe_stream *stream = (probe_stream *)c->stream;
    if (finished && stream != NULL && stream->index > 0)
        comm->device->compute_must_see[stream->index] = stream->seen[stream->index];
    return status;
}

static struct probe_pending *take_slot(probe_comm *comm, const zb_collective *c, zb_work *work)
{
    int slot = 0;
    while (comm->pending[slot].taken) assert_true(++slot < PROBE_PENDING);
    work->id = (uint64_t)slot + 1;
    comm->pending[slot] = (struct probe_pending){ .collective = *c, .taken = 1 };
    return &comm->pending[slot];
}

static zb_status postpone(probe_comm *comm, const zb_collective *c, zb_work *work)
{
    struct probe_pending *pending = take_slot(comm, c, work);
    pending->bytes = payload_bytes(c);
    pending->sent = malloc(pending->bytes + 1);
    assert_non_null(pending->sent);
    memcpy(pending->sent, c->send, pending->bytes);
    memset(c->recv, 0xFF, pending->bytes);
    comm->device->under_way++;
    return ZB_OK;
}

static zb_status probe_start(zb_comm *comm, const zb_collective *collective, zb_work *work)
{
    probe_comm *probe = (probe_comm *)comm;
    ZB_TRY(count_call(&probe->fault, collective->what));
    check_start(probe, collective);
    if (work != NULL && probe->lazy) return postpone(probe, collective, work);
    if (work != NULL) take_slot(probe, collective, work);
    return run(probe, collective, work == NULL);
}

/* What compute does from here on relies on the result. With NULL the host has waited. */
static void order_after_collective(probe_comm *comm, const zb_collective *c, zb_stream *stream)
{
    probe_device *device = comm->device;
    const probe_stream *ran_on = (probe_stream *)c->stream;
    if (ran_on == NULL || ran_on->index == 0) return;
    device->compute_must_see[ran_on->index] = ran_on->seen[ran_on->index];
    if (stream == NULL) return;
    see(probe_of(stream)->seen, ran_on->seen);
    device->waits_between++;
}

/* While it was under way nobody wrote to its result, nor to its input. A wait that fails ends it as well. */
static zb_status finish_late(probe_comm *probe, struct probe_pending *pending)
{
    zb_collective late = pending->collective;
    for (size_t i = 0; i < pending->bytes; i++) assert_int_equal(((unsigned char *)late.recv)[i], 0xFF);
    if (late.send != late.recv) assert_memory_equal(late.send, pending->sent, pending->bytes);
    late.send = pending->sent;
    zb_status status = count_call(&probe->fault, "wait");
    if (status == ZB_OK) status = run(probe, &late, 1);
    free(pending->sent);
    probe->device->under_way--;
    return status;
}

static zb_status probe_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    probe_comm *probe = (probe_comm *)comm;
    struct probe_pending *pending = &probe->pending[work->id - 1];
    zb_status status = ZB_OK;
    assert_true(pending->taken);
    pending->taken = 0;
    if (pending->sent != NULL) status = finish_late(probe, pending);
    if (status == ZB_OK) order_after_collective(probe, &pending->collective, stream);
    return status;
}

static const zb_comm_ops comm_ops = { .name = "probe", .start = probe_start, .wait = probe_wait };

void probe_comm_init(probe_comm *comm, probe_device *device)
{
    *comm = (probe_comm){ .base = { .ops = &comm_ops, .world_size = 1 },
                          .device = device,
                          .fault = { .fail_at = -1 } };
    assert_int_equal(zb_comm_self_create(&comm->self), ZB_OK);
}

void probe_comm_close(probe_comm *comm)
{
    assert_int_equal(comm->device->under_way, 0);
    zb_comm_destroy(comm->self);
}
