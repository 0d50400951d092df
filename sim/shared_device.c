/*
 * A communicator of ranks that share a device's memory. The host's only part is to bring the ranks together:
 * each shows the others its call and its events, and all put their share of the work on their own streams.
 *
 * A collective goes through
 *   - ready: every rank's buffers are as its stream has left them. Each stream waits for all of these events.
 *   - taken: a rank has read what it needs of the others' buffers, and written its own. All wait for that,
 * too: afterwards buffers belong to their owners again. In between, an all_reduce is a reduce_scatter into
 * everybody's own result (`reduced`) and a gathering of the parts, so that no rank adds what another adds as
 * well. Nothing needs a second buffer, in place or not: what a rank writes before `reduced`, only that rank
 * reads before it.
 *
 * The host meets after each recording, since an event that has not been recorded orders nothing.
 */
#include <zerobit/sim.h>

#include <stdio.h>
#include <zerobit/memory.h>

#include "orders/cache.h"
#include "orders/signature.h"

enum { SHARE_MULTIPLE = 64 }; /* elements: shares of an all_reduce begin where vectors do */

/* What a rank shows the others. They have it by value: one that fails on the way is gone before they look. */
typedef struct shared_part {
    zb_collective call;
    zb_event *ready, *reduced, *taken;
} shared_part;

typedef struct shared_message {
    zb_work inner; /* of the control communicator */
    zb_collective call;
    void *host;
    struct shared_message *next;
} shared_message;

typedef struct shared {
    zb_comm base;
    zb_comm *control;
    int owns_control; /* made by a split */
    zb_device *device;
    shared_part own;
    shared_part *parts;  /* [world_size] of the collective under way */
    const void **inputs; /* [world_size] */
    zb_reduction_cache reductions;
    zb_stream_works works;
    shared_message *messages; /* sends and receives, and calls without a stream, in flight */
} shared;

/* --- meeting --- */

static zb_status control_run(const shared *s, const zb_collective *c, zb_collective_kind kind,
                             const void *send, void *recv, size_t numel)
{
    return zb_comm_start(s->control,
                         &(zb_collective){ .kind = kind,
                                           .send = send,
                                           .recv = recv,
                                           .numel = numel,
                                           .dtype = ZB_UINT8,
                                           .what = c->what,
                                           .file = c->file,
                                           .line = c->line },
                         NULL);
}

static zb_status meet(const shared *s)
{
    return control_run(s, &s->own.call, ZB_COLLECTIVE_BARRIER, NULL, NULL, 0);
}

static zb_status mismatch(const shared *s, int rank, const char *difference)
{
    const int ranks[2] = { 0, rank };
    char calls[2][256];
    for (int i = 0; i < 2; i++) {
        const zb_collective *c = &s->parts[ranks[i]].call;
        snprintf(calls[i], sizeof calls[i], "rank %d called %s (%s) at %s:%d", ranks[i],
                 zb_call_kind_name(c->kind), c->what != NULL ? c->what : "?",
                 c->file != NULL ? zb_call_short_path(c->file) : "?", c->line);
    }
    return zb_fail(ZB_MISMATCH, "ranks called different collectives: %s\n  %s\n  %s", difference, calls[0],
                   calls[1]);
}

/* Every rank's part; the same verdict on all. */
static zb_status gather_parts(shared *s)
{
    ZB_TRY(control_run(s, &s->own.call, ZB_COLLECTIVE_ALL_GATHER, &s->own, s->parts, sizeof s->own));
    for (int rank = 1; rank < s->base.world_size; rank++) {
        char difference[512];
        const zb_call_side first = { .rank = 0, .call = &s->parts[0].call },
                           other = { .rank = rank, .call = &s->parts[rank].call };
        if (zb_calls_differ(&first, &other, s->base.world_size, difference, sizeof difference))
            return mismatch(s, rank, difference);
    }
    return ZB_OK;
}

typedef enum shared_point { READY, REDUCED, TAKEN } shared_point;

static zb_event *event_of(const shared_part *part, shared_point point)
{
    return point == READY ? part->ready : point == REDUCED ? part->reduced : part->taken;
}

/* The stream goes on when all ranks have got to `point`. */
static zb_status wait_for(const shared *s, shared_point point)
{
    for (int rank = 0; rank < s->base.world_size; rank++)
        if (rank != s->base.rank)
            ZB_TRY(zb_stream_wait_event(s->own.call.stream, event_of(&s->parts[rank], point)));
    return ZB_OK;
}

static zb_status reach(const shared *s, shared_point point)
{
    ZB_TRY(zb_event_record(event_of(&s->own, point), s->own.call.stream));
    ZB_TRY(meet(s));
    return wait_for(s, point);
}

/* --- moving and adding --- */

static zb_status copy(const shared *s, void *to, const void *from, size_t bytes)
{
    if (bytes == 0 || to == from) return ZB_OK;
    return zb_launch_copy(s->own.call.stream, &(zb_copy_args){ .to = to, .from = from, .bytes = bytes });
}

/* Elements [first, first + numel) of all ranks' contributions. */
static zb_status add(shared *s, const zb_reduction *reduction, size_t first, size_t numel, void *out)
{
    const zb_collective *c = &s->own.call;
    const size_t skipped = reduction != NULL ? 0 : first * zb_dtype_bytes(c->dtype);
    if (numel == 0) return ZB_OK;
    for (int rank = 0; rank < s->base.world_size; rank++)
        s->inputs[rank] = (const char *)s->parts[rank].call.send + skipped;
    if (reduction != NULL) return zb_reduction_launch(c->stream, reduction, s->inputs, first, numel, out);
    return zb_launch_ordered_reduce(c->stream, &(zb_ordered_reduce_args){ .inputs = s->inputs,
                                                                          .count = s->base.world_size,
                                                                          .out = out,
                                                                          .numel = numel,
                                                                          .dtype = c->dtype,
                                                                          .op = c->op,
                                                                          .factor = c->factor });
}

typedef struct shared_range {
    size_t first, numel;
} shared_range;

/* What a rank adds of an all_reduce. */
static shared_range share_of(const shared *s, int rank)
{
    const size_t numel = s->own.call.numel, world_size = (size_t)s->base.world_size;
    const size_t even = (numel + world_size - 1) / world_size;
    const size_t length = (even + SHARE_MULTIPLE - 1) / SHARE_MULTIPLE * SHARE_MULTIPLE;
    const size_t first = length * (size_t)rank < numel ? length * (size_t)rank : numel;
    return (shared_range){ first, numel - first < length ? numel - first : length };
}

static zb_status all_reduce(shared *s, const zb_reduction *reduction)
{
    const zb_collective *c = &s->own.call;
    const size_t element = zb_dtype_bytes(c->dtype);
    const shared_range own = share_of(s, s->base.rank);
    ZB_TRY(add(s, reduction, own.first, own.numel, (char *)c->recv + own.first * element));
    ZB_TRY(reach(s, REDUCED));
    for (int rank = 0; rank < s->base.world_size; rank++) {
        const shared_range share = share_of(s, rank);
        ZB_TRY(copy(s, (char *)c->recv + share.first * element,
                    (const char *)s->parts[rank].call.recv + share.first * element, share.numel * element));
    }
    return ZB_OK;
}

static zb_status reduce_scatter_v(shared *s, const zb_reduction *reduction)
{
    const zb_collective *c = &s->own.call;
    size_t first = 0;
    for (int rank = 0; rank < s->base.rank; rank++) first += c->counts[rank];
    return add(s, reduction, first, c->counts[s->base.rank], c->recv);
}

/* Block `block` of what every rank sends, one behind the other. */
static zb_status collect(const shared *s, size_t block)
{
    const zb_collective *c = &s->own.call;
    const size_t bytes = c->numel * zb_dtype_bytes(c->dtype);
    for (int rank = 0; rank < s->base.world_size; rank++)
        ZB_TRY(copy(s, (char *)c->recv + (size_t)rank * bytes,
                    (const char *)s->parts[rank].call.send + block * bytes, bytes));
    return ZB_OK;
}

static zb_status execute(shared *s, const zb_reduction *reduction)
{
    const zb_collective *c = &s->own.call;
    const int rank = s->base.rank;
    switch (c->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
        return all_reduce(s, reduction);
    case ZB_COLLECTIVE_REDUCE:
        return rank == c->root ? add(s, reduction, 0, c->numel, c->recv) : ZB_OK;
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        return add(s, reduction, (size_t)rank * c->numel, c->numel, c->recv);
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        return reduce_scatter_v(s, reduction);
    case ZB_COLLECTIVE_ALL_GATHER:
        return collect(s, 0);
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return collect(s, (size_t)rank);
    case ZB_COLLECTIVE_BROADCAST:
        return copy(s, c->recv, s->parts[c->root].call.recv, c->numel * zb_dtype_bytes(c->dtype));
    case ZB_COLLECTIVE_BARRIER:
        return ZB_OK;
    case ZB_COLLECTIVE_SEND: /* pass through the host */
    case ZB_COLLECTIVE_RECV:
    case ZB_COLLECTIVE_COUNT:
        break;
    }
    return zb_fail(ZB_INTERNAL, "shared device: collective %d", (int)c->kind);
}

static zb_status run_collective(shared *s, const zb_collective *c)
{
    const zb_reduction *reduction = NULL;
    s->own.call = *c;
    ZB_TRY(zb_event_record(s->own.ready, c->stream));
    ZB_TRY(gather_parts(s));
    if (zb_call_is_reduction(c->kind))
        ZB_TRY(zb_reduction_of_collective(&s->reductions, c, s->base.world_size, &reduction));
    ZB_TRY(wait_for(s, READY));
    ZB_TRY(execute(s, reduction));
    ZB_TRY(reach(s, TAKEN));
    return meet(s); /* everybody has been told to wait for this rank's events: they may be destroyed */
}

/* --- calls that the control communicator carries --- */

static size_t message_bytes(const zb_collective *c)
{
    return c->numel * zb_dtype_bytes(c->dtype);
}

static zb_status begin_message(shared *s, shared_message *m)
{
    zb_collective through = m->call;
    if (m->call.stream != NULL) {
        const size_t bytes = message_bytes(&m->call);
        if ((m->host = zb_alloc(bytes > 0 ? bytes : 1)) == NULL) return ZB_NO_MEMORY;
        if (m->call.kind == ZB_COLLECTIVE_SEND)
            ZB_TRY(zb_copy_out(m->call.stream, m->host, m->call.send, bytes));
        ZB_TRY(zb_stream_wait_idle(m->call.stream));
        through.stream = NULL;
        if (m->call.kind == ZB_COLLECTIVE_SEND)
            through.send = m->host;
        else
            through.recv = m->host;
    }
    return zb_comm_start(s->control, &through, &m->inner);
}

static zb_status end_message(shared *s, shared_message *m, zb_stream *stream)
{
    ZB_TRY(zb_comm_wait(s->control, &m->inner, NULL));
    if (m->host == NULL || m->call.kind == ZB_COLLECTIVE_SEND) return ZB_OK;
    zb_stream *on = stream != NULL ? stream : m->call.stream;
    ZB_TRY(zb_copy_in(on, m->call.recv, m->host, message_bytes(&m->call)));
    return zb_stream_wait_idle(on); /* m->host goes */
}

static void free_message(shared_message *m)
{
    zb_free(m->host);
    zb_free(m);
}

/* Whole, or up to the wait that follows. */
static zb_status run_message(shared *s, const zb_collective *c, zb_work *work)
{
    shared_message *m = zb_alloc(sizeof *m);
    if (m == NULL) return ZB_NO_MEMORY;
    m->call = *c;
    zb_status status = begin_message(s, m);
    if (status == ZB_OK && work == NULL) status = end_message(s, m, c->stream);
    if (status != ZB_OK || work == NULL) {
        free_message(m);
        return status;
    }
    m->next = s->messages;
    s->messages = m;
    *work = (zb_work){ .id = UINT64_MAX, .handle = m }; /* no work of a stream has that number */
    return ZB_OK;
}

static shared_message *take_message(shared *s, const zb_work *work)
{
    shared_message **at = &s->messages;
    while (*at != NULL && *at != work->handle) at = &(*at)->next;
    shared_message *found = *at;
    if (found != NULL) *at = found->next;
    return found;
}

/* --- the table --- */

static int goes_through_host(const zb_collective *c)
{
    return c->stream == NULL || zb_call_is_pair(c->kind);
}

static zb_status check_device(const shared *s, const zb_collective *c)
{
    if (c->stream == NULL || c->stream->device == s->device) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s (%s at %s:%d): the stream is of another device handle than the communicator",
                   zb_collective_name(c->kind), c->what != NULL ? c->what : "?",
                   c->file != NULL ? c->file : "?", c->line);
}

static zb_status shared_start(zb_comm *comm, const zb_collective *c, zb_work *work)
{
    shared *s = (shared *)comm;
    ZB_TRY(check_device(s, c));
    if (c->stream == NULL && work == NULL) return zb_comm_start(s->control, c, NULL);
    if (goes_through_host(c)) return run_message(s, c, work);
    ZB_TRY(run_collective(s, c));
    return work != NULL ? zb_stream_works_record(&s->works, c->stream, work) : ZB_OK;
}

static zb_status shared_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    shared *s = (shared *)comm;
    if (work->id != UINT64_MAX) return zb_stream_works_wait(&s->works, comm->ops->name, work, stream);
    shared_message *m = take_message(s, work);
    if (m == NULL) return zb_fail(ZB_INVALID_ARGUMENT, "shared device: this work is not in flight here");
    const zb_status status = end_message(s, m, stream);
    free_message(m);
    return status;
}

static zb_status shared_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    shared *s = (shared *)comm;
    zb_comm *part;
    *out = NULL;
    ZB_TRY(zb_comm_split(s->control, color, key, &part));
    if (part == NULL) return ZB_OK;
    const zb_status status = zb_comm_shared_device_create(part, s->device, out);
    if (status == ZB_OK)
        ((shared *)*out)->owns_control = 1;
    else
        zb_comm_destroy(part);
    return status;
}

static void shared_fail(zb_comm *comm, zb_status status, const char *message)
{
    zb_comm_fail(((shared *)comm)->control, status, message);
}

static void shared_destroy(zb_comm *comm)
{
    shared *s = (shared *)comm;
    while (s->messages != NULL) {
        shared_message *next = s->messages->next;
        free_message(s->messages);
        s->messages = next;
    }
    zb_stream_works_destroy(&s->works);
    zb_reduction_cache_destroy(&s->reductions);
    zb_event_destroy(s->own.ready);
    zb_event_destroy(s->own.reduced);
    zb_event_destroy(s->own.taken);
    zb_free(s->parts);
    zb_free(s->inputs);
    if (s->owns_control) zb_comm_destroy(s->control);
    zb_free(s);
}

static const zb_comm_ops shared_ops = { .name = "shared device",
                                        .takes_device_memory = 1,
                                        .start = shared_start,
                                        .wait = shared_wait,
                                        .split = shared_split,
                                        .fail = shared_fail,
                                        .destroy = shared_destroy };

static zb_status set_up(shared *s)
{
    const size_t world_size = (size_t)s->base.world_size;
    s->parts = zb_alloc_array(world_size, sizeof *s->parts);
    s->inputs = zb_alloc_array(world_size, sizeof *s->inputs);
    if (s->parts == NULL || s->inputs == NULL) return ZB_NO_MEMORY;
    ZB_TRY(zb_event_create(s->device, "collective ready", &s->own.ready));
    ZB_TRY(zb_event_create(s->device, "collective reduced", &s->own.reduced));
    return zb_event_create(s->device, "collective taken", &s->own.taken);
}

zb_status zb_comm_shared_device_create(zb_comm *control, zb_device *device, zb_comm **comm_p)
{
    shared *s = zb_alloc(sizeof *s);
    if (s == NULL) return ZB_NO_MEMORY;
    s->base = (zb_comm){ .ops = &shared_ops, .rank = control->rank, .world_size = control->world_size };
    s->control = control;
    s->device = device;
    const zb_status status = set_up(s);
    if (status != ZB_OK) {
        shared_destroy(&s->base);
        return status;
    }
    *comm_p = &s->base;
    return ZB_OK;
}
