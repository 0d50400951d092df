/* The world of one rank: every collective is at most a copy. The smallest back end, and the one to read
 * first. */
#include <zerobit/comm.h>

#include <string.h>
#include <zerobit/memory.h>

#include "kernels/kernels.h"
#include "orders/cache.h"

typedef struct self {
    zb_comm base;
    zb_reduction_cache reductions;
    zb_stream_works works;
} self;

static zb_status copy(const zb_collective *c, size_t bytes)
{
    if (bytes == 0 || c->send == c->recv) return ZB_OK;
    if (c->stream != NULL)
        return zb_launch_copy(c->stream, &(zb_copy_args){ .to = c->recv, .from = c->send, .bytes = bytes });
    memcpy(c->recv, c->send, bytes);
    return ZB_OK;
}

/* Through the same kernel as any other world, so that a pre-multiplied sum means the same here. No order is
 * left in a world of one, but the libraries do not round the factor alike. */
static zb_status reduce(self *comm, const zb_collective *c, size_t numel)
{
    const void *inputs[1] = { c->send };
    const zb_reduction *reduction;
    ZB_TRY(zb_reduction_of_collective(&comm->reductions, c, 1, &reduction));
    zb_ordered_reduce_args args = { .inputs = inputs,
                                    .count = 1,
                                    .out = c->recv,
                                    .numel = numel,
                                    .dtype = c->dtype,
                                    .op = c->op,
                                    .factor = reduction == NULL ? c->factor : reduction->rounding.factor };
    return c->stream != NULL ? zb_launch_ordered_reduce(c->stream, &args) : zb_cpu_ordered_reduce(&args);
}

static zb_status run(self *comm, const zb_collective *c)
{
    switch (c->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
    case ZB_COLLECTIVE_REDUCE:
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        return reduce(comm, c, c->numel);
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        return reduce(comm, c, c->counts[0]);
    case ZB_COLLECTIVE_ALL_GATHER:
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return copy(c, c->numel * zb_dtype_bytes(c->dtype));
    case ZB_COLLECTIVE_BROADCAST:
    case ZB_COLLECTIVE_BARRIER:
        return ZB_OK;
    case ZB_COLLECTIVE_SEND: /* the front door has refused a message to oneself */
    case ZB_COLLECTIVE_RECV:
    case ZB_COLLECTIVE_COUNT:
        break;
    }
    return zb_fail(ZB_INTERNAL, "self: %s cannot be started in a world of one", zb_collective_name(c->kind));
}

/* In the host's memory it is finished at once, and the work stays zero. */
static zb_status self_start(zb_comm *comm, const zb_collective *c, zb_work *work)
{
    ZB_TRY(run((self *)comm, c));
    if (work == NULL || c->stream == NULL) return ZB_OK;
    return zb_stream_works_record(&((self *)comm)->works, c->stream, work);
}

static zb_status self_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    return zb_stream_works_wait(&((self *)comm)->works, comm->ops->name, work, stream);
}

static zb_status self_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    (void)comm;
    (void)key;
    if (color >= 0) return zb_comm_self_create(out);
    *out = NULL;
    return ZB_OK;
}

static void self_destroy(zb_comm *comm)
{
    self *own = (self *)comm;
    zb_stream_works_destroy(&own->works);
    zb_reduction_cache_destroy(&own->reductions);
    zb_free(comm);
}

static const zb_comm_ops self_ops = {
    .name = "self",
    .takes_device_memory = 1,
    .start = self_start,
    .wait = self_wait,
    .split = self_split,
    .destroy = self_destroy,
};

zb_status zb_comm_self_create(zb_comm **comm_p)
{
    self *made = zb_alloc(sizeof *made);
    if (made == NULL) return ZB_NO_MEMORY;
    made->base.ops = &self_ops;
    made->base.world_size = 1;
    *comm_p = &made->base;
    return ZB_OK;
}
