/*
 * The front door of every communicator: checks arguments once, so that back ends need not, tells the
 * observer, and counts what each rank puts in.
 */
#include <zerobit/comm.h>

#include <stdint.h>

const char *zb_collective_name(zb_collective_kind kind)
{
    static const char *const names[] = {
#define ZB_COLLECTIVE_NAME(name, text) [ZB_COLLECTIVE_##name] = text,
        ZB_COLLECTIVE_MAP(ZB_COLLECTIVE_NAME)
#undef ZB_COLLECTIVE_NAME
    };
    return (unsigned)kind < ZB_COLLECTIVE_COUNT ? names[kind] : "?";
}

/* Bytes that a rank reads and writes, and where its own share lies when it works in place. */
typedef struct extent {
    size_t send_bytes, recv_bytes;
    int in_place_allowed;
    size_t share_offset; /* of the smaller buffer within the larger one */
} extent;

static zb_status refuse(const zb_collective *c, const char *what, long long value, const char *want)
{
    return zb_fail(ZB_INVALID_ARGUMENT, "%s (%s at %s:%d): %s is %lld, want %s", zb_collective_name(c->kind),
                   c->what != NULL ? c->what : "?", c->file != NULL ? c->file : "?", c->line, what, value,
                   want);
}

static int is_floating(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP16 || dtype == ZB_BF16 || dtype == ZB_FP64;
}

static int reduces(zb_collective_kind kind)
{
    return kind == ZB_COLLECTIVE_ALL_REDUCE || kind == ZB_COLLECTIVE_REDUCE_SCATTER ||
           kind == ZB_COLLECTIVE_REDUCE_SCATTER_V || kind == ZB_COLLECTIVE_REDUCE;
}

static int has_root(zb_collective_kind kind)
{
    return kind == ZB_COLLECTIVE_BROADCAST || kind == ZB_COLLECTIVE_REDUCE || kind == ZB_COLLECTIVE_SEND ||
           kind == ZB_COLLECTIVE_RECV;
}

static zb_status check_enums(const zb_comm *comm, const zb_collective *c)
{
    if ((unsigned)c->kind >= ZB_COLLECTIVE_COUNT)
        return refuse(c, "kind", (long long)c->kind, "a collective of comm.h");
    if ((unsigned)c->dtype >= ZB_DTYPE_COUNT)
        return refuse(c, "dtype", (long long)c->dtype, "a type of types.h");
    if (reduces(c->kind)) {
        if ((unsigned)c->op > ZB_PREMUL_SUM)
            return refuse(c, "op", (long long)c->op, "an operator of kernels.h");
        if ((c->op == ZB_AVG || c->op == ZB_PREMUL_SUM) && !is_floating(c->dtype))
            return refuse(c, "op", (long long)c->op, "sum, min or max for an integer type");
    }
    if (has_root(c->kind) && (c->root < 0 || c->root >= comm->world_size))
        return refuse(c, "root or peer", c->root, "a rank of the communicator");
    if ((c->kind == ZB_COLLECTIVE_SEND || c->kind == ZB_COLLECTIVE_RECV) && c->root == comm->rank)
        return refuse(c, "peer", c->root, "another rank than its own");
    return ZB_OK;
}

static zb_status measure_counts(const zb_comm *comm, const zb_collective *c, size_t element, extent *out)
{
    if (c->counts == NULL) return refuse(c, "counts", 0, "one element count per rank");
    size_t total = 0;
    for (int r = 0; r < comm->world_size; r++) {
        if (r == comm->rank) out->share_offset = total * element;
        if (__builtin_add_overflow(total, c->counts[r], &total))
            return refuse(c, "sum of counts", -1, "a size that fits");
    }
    if (__builtin_mul_overflow(total, element, &out->send_bytes) || out->send_bytes > PTRDIFF_MAX)
        return refuse(c, "sum of counts", (long long)total, "a size that fits");
    out->recv_bytes = c->counts[comm->rank] * element;
    return ZB_OK;
}

static zb_status measure(const zb_comm *comm, const zb_collective *c, extent *out)
{
    *out = (extent){ .in_place_allowed = 1 };
    size_t element = zb_dtype_bytes(c->dtype), one, all;
    if (__builtin_mul_overflow(c->numel, element, &one) ||
        __builtin_mul_overflow(one, (size_t)comm->world_size, &all) || all > PTRDIFF_MAX)
        return refuse(c, "numel", (long long)c->numel, "a size that fits");

    switch (c->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
        out->send_bytes = out->recv_bytes = one;
        return ZB_OK;
    case ZB_COLLECTIVE_REDUCE:
        out->send_bytes = one;
        out->recv_bytes = comm->rank == c->root ? one : 0;
        return ZB_OK;
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        out->send_bytes = all;
        out->recv_bytes = one;
        out->share_offset = one * (size_t)comm->rank;
        return ZB_OK;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        return measure_counts(comm, c, element, out);
    case ZB_COLLECTIVE_ALL_GATHER:
        out->send_bytes = one;
        out->recv_bytes = all;
        out->share_offset = one * (size_t)comm->rank;
        return ZB_OK;
    case ZB_COLLECTIVE_ALL_TO_ALL:
        out->send_bytes = out->recv_bytes = all;
        out->in_place_allowed = 0;
        return ZB_OK;
    case ZB_COLLECTIVE_BROADCAST: /* one buffer: the root's is read, the others' are written */
    case ZB_COLLECTIVE_RECV:
        out->recv_bytes = one;
        return ZB_OK;
    case ZB_COLLECTIVE_SEND:
        out->send_bytes = one;
        return ZB_OK;
    case ZB_COLLECTIVE_BARRIER:
    case ZB_COLLECTIVE_COUNT:
        break;
    }
    return ZB_OK;
}

static zb_status check_reach(const zb_comm *comm, const zb_collective *c)
{
    if (c->stream == NULL || c->stream->device->ops->memory_is_hosts || comm->ops->takes_device_memory)
        return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED,
                   "%s (%s at %s:%d): buffers of device %s; communicator %s moves only the host's memory",
                   zb_collective_name(c->kind), c->what != NULL ? c->what : "?",
                   c->file != NULL ? c->file : "?", c->line, c->stream->device->ops->name, comm->ops->name);
}

static zb_status check_buffers(const zb_collective *c, const extent *e)
{
    if (e->send_bytes > 0 && c->send == NULL) return refuse(c, "send", 0, "a buffer");
    if (e->recv_bytes > 0 && c->recv == NULL) return refuse(c, "recv", 0, "a buffer");
    if (e->send_bytes == 0 || e->recv_bytes == 0) return ZB_OK;

    uintptr_t send = (uintptr_t)c->send, recv = (uintptr_t)c->recv;
    if (send + e->send_bytes <= recv || recv + e->recv_bytes <= send) return ZB_OK;
    int send_is_larger = e->send_bytes >= e->recv_bytes;
    uintptr_t wanted = send_is_larger ? send + e->share_offset : recv + e->share_offset;
    if (e->in_place_allowed && wanted == (send_is_larger ? recv : send)) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s (%s at %s:%d): send and recv overlap, but not the way that works in place (comm.h)",
                   zb_collective_name(c->kind), c->what != NULL ? c->what : "?",
                   c->file != NULL ? c->file : "?", c->line);
}

zb_status zb_comm_start(zb_comm *comm, const zb_collective *collective, zb_work *work)
{
    ZB_ASSERT(comm != NULL && collective != NULL);
    extent bytes;
    ZB_TRY(check_enums(comm, collective));
    ZB_TRY(check_reach(comm, collective));
    ZB_TRY(measure(comm, collective, &bytes));
    ZB_TRY(check_buffers(collective, &bytes));
    if (work != NULL) *work = (zb_work){ 0 };
    if (comm->observer != NULL) ZB_TRY(comm->observer->starting(comm->observer->user, comm, collective));
    ZB_TRY(comm->ops->start(comm, collective, work));

    zb_traffic *traffic = &comm->traffic[collective->kind];
    traffic->calls++;
    traffic->bytes += bytes.send_bytes > bytes.recv_bytes ? bytes.send_bytes : bytes.recv_bytes;
    return ZB_OK;
}

zb_status zb_comm_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    if (work->id == 0 && work->handle == NULL) return ZB_OK;
    zb_status status = comm->ops->wait(comm, work, stream);
    *work = (zb_work){ 0 };
    return status;
}

zb_status zb_comm_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    ZB_ASSERT(comm != NULL && out != NULL);
    return comm->ops->split(comm, color, key, out);
}

void zb_comm_fail(zb_comm *comm, zb_status status, const char *message)
{
    ZB_ASSERT(comm != NULL && status != ZB_OK && message != NULL);
    if (comm->ops->fail != NULL) comm->ops->fail(comm, status, message);
}

void zb_comm_destroy(zb_comm *comm)
{
    if (comm != NULL) comm->ops->destroy(comm);
}
