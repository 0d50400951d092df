/* Host buffers on a device; see on_device.h. */
#include "tests/sim/on_device.h"

#include <string.h>
#include <zerobit/memory.h>

#include "orders/signature.h"
#include "sim/world.h"

typedef struct call {
    zb_collective host; /* as it was made */
    zb_work inner;
    char *block; /* on the device: send, then recv, or the larger of the two where one lies in the other */
    size_t block_bytes, send_at, recv_at, send_bytes, recv_bytes;
} call;

typedef struct on_device {
    zb_comm base;
    zb_comm *inner;
    zb_device *device;
    zb_stream *stream, *later; /* where collectives run; where results are read */
    int owns_device;
} on_device;

static on_device *wrapper_of(zb_comm *comm)
{
    return (on_device *)comm;
}

static int is_in_place(const call *c)
{
    const uintptr_t send = (uintptr_t)c->host.send, recv = (uintptr_t)c->host.recv;
    return c->send_bytes > 0 && c->recv_bytes > 0 && send < recv + c->recv_bytes &&
           recv < send + c->send_bytes;
}

/* Where the doubles lie; not aligned better than the originals. */
static void place(call *c)
{
    const uintptr_t send = (uintptr_t)c->host.send, recv = (uintptr_t)c->host.recv;
    if (is_in_place(c)) {
        const uintptr_t base = send < recv ? send : recv;
        const size_t send_end = send - base + c->send_bytes, recv_end = recv - base + c->recv_bytes;
        c->send_at = send - base + base % 64;
        c->recv_at = recv - base + base % 64;
        c->block_bytes = (send_end > recv_end ? send_end : recv_end) + base % 64;
        return;
    }
    c->send_at = send % 64;
    c->recv_at = (c->send_at + c->send_bytes + 63) / 64 * 64 + recv % 64;
    c->block_bytes = c->recv_at + c->recv_bytes;
}

static zb_status copy_in(const on_device *w, const call *c)
{
    if (c->send_bytes > 0 && c->host.kind != ZB_COLLECTIVE_BROADCAST)
        ZB_TRY(zb_copy_in(w->stream, c->block + c->send_at, c->host.send, c->send_bytes));
    const int is_read = c->host.kind == ZB_COLLECTIVE_BROADCAST && w->base.rank == c->host.root;
    if (is_read) ZB_TRY(zb_copy_in(w->stream, c->block + c->recv_at, c->host.recv, c->recv_bytes));
    return zb_stream_wait_idle(w->stream);
}

static zb_status start(on_device *w, call *c, int async)
{
    const int size = w->base.world_size, rank = w->base.rank;
    void *block;
    c->send_bytes = sim_send_bytes(&c->host, size, rank);
    c->recv_bytes = sim_recv_bytes(&c->host, size, rank);
    place(c);
    ZB_TRY(zb_device_alloc(w->device, ZB_MEM_BUCKET, c->block_bytes, &block));
    c->block = block;
    ZB_TRY(copy_in(w, c));
    zb_collective inner = c->host;
    inner.send = c->send_bytes > 0 ? c->block + c->send_at : NULL;
    inner.recv = c->recv_bytes > 0 ? c->block + c->recv_at : NULL;
    if (inner.kind == ZB_COLLECTIVE_BROADCAST) inner.send = NULL;
    inner.stream = w->stream;
    return zb_comm_start(w->inner, &inner, async ? &c->inner : NULL);
}

static zb_status finish(on_device *w, call *c, int async)
{
    zb_stream *reads = async ? w->later : w->stream;
    if (async) ZB_TRY(zb_comm_wait(w->inner, &c->inner, reads));
    if (c->recv_bytes > 0) ZB_TRY(zb_copy_out(reads, c->host.recv, c->block + c->recv_at, c->recv_bytes));
    return zb_stream_wait_idle(reads);
}

static void end(on_device *w, call *c)
{
    zb_device_free(w->device, ZB_MEM_BUCKET, c->block_bytes, c->block);
    zb_free(c);
}

static zb_status on_device_start(zb_comm *comm, const zb_collective *collective, zb_work *work)
{
    on_device *w = wrapper_of(comm);
    if (collective->stream != NULL) return zb_comm_start(w->inner, collective, work);
    call *c = zb_alloc(sizeof *c);
    if (c == NULL) return ZB_NO_MEMORY;
    c->host = *collective;
    zb_status status = start(w, c, work != NULL);
    if (status == ZB_OK && work == NULL) status = finish(w, c, 0);
    if (status == ZB_OK && work != NULL)
        *work = (zb_work){ .id = 1, .handle = c };
    else
        end(w, c);
    return status;
}

static zb_status on_device_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    call *c = work->handle;
    (void)stream; /* the host copies the result out, and goes on when that is done */
    const zb_status status = finish(wrapper_of(comm), c, 1);
    end(wrapper_of(comm), c);
    return status;
}

static zb_status wrap(zb_comm *inner, zb_device *device, int owns_device, zb_comm **comm_p);

static zb_status on_device_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    on_device *w = wrapper_of(comm);
    zb_comm *part;
    *out = NULL;
    ZB_TRY(zb_comm_split(w->inner, color, key, &part));
    return part != NULL ? wrap(part, w->device, 0, out) : ZB_OK;
}

static void on_device_fail(zb_comm *comm, zb_status status, const char *message)
{
    zb_comm_fail(wrapper_of(comm)->inner, status, message);
}

static void on_device_destroy(zb_comm *comm)
{
    on_device *w = wrapper_of(comm);
    zb_stream_destroy(w->stream);
    zb_stream_destroy(w->later);
    zb_comm_destroy(w->inner);
    if (w->owns_device) zb_device_destroy(w->device);
    zb_free(w);
}

static const zb_comm_ops on_device_ops = { .name = "on device",
                                           .start = on_device_start,
                                           .wait = on_device_wait,
                                           .split = on_device_split,
                                           .fail = on_device_fail,
                                           .destroy = on_device_destroy };

static zb_status wrap(zb_comm *inner, zb_device *device, int owns_device, zb_comm **comm_p)
{
    on_device *w = zb_alloc(sizeof *w);
    if (w == NULL) return ZB_NO_MEMORY;
    *w = (on_device){ .base = { .ops = &on_device_ops, .rank = inner->rank, .world_size = inner->world_size },
                      .inner = inner,
                      .device = device,
                      .owns_device = owns_device };
    ZB_TRY(zb_stream_create(device, "collectives", &w->stream));
    ZB_TRY(zb_stream_create(device, "results", &w->later));
    *comm_p = &w->base;
    return ZB_OK;
}

zb_status on_device_wrap(zb_comm *inner, zb_device *device, zb_comm **comm_p)
{
    return wrap(inner, device, 1, comm_p);
}
