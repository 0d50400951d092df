/* What a call says of the sizes of its buffers. */
#include "sim/world.h"

static size_t sum_counts(const size_t *counts, int size)
{
    size_t sum = 0;
    for (int i = 0; i < size; i++) sum += counts[i];
    return sum;
}

size_t sim_reduced_numel(const zb_collective *call, int size)
{
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
    case ZB_COLLECTIVE_REDUCE:
        return call->numel;
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        return (size_t)size * call->numel;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        return sum_counts(call->counts, size);
    default:
        return 0;
    }
}

size_t sim_send_bytes(const zb_collective *call, int size, int index)
{
    size_t bytes = zb_dtype_bytes(call->dtype);
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_GATHER:
    case ZB_COLLECTIVE_SEND:
        return call->numel * bytes;
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_BROADCAST:
        return index == call->root ? call->numel * bytes : 0;
    default:
        return sim_reduced_numel(call, size) * bytes;
    }
}

size_t sim_recv_bytes(const zb_collective *call, int size, int index)
{
    size_t bytes = zb_dtype_bytes(call->dtype);
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
    case ZB_COLLECTIVE_REDUCE_SCATTER:
    case ZB_COLLECTIVE_BROADCAST:
    case ZB_COLLECTIVE_RECV:
        return call->numel * bytes;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        return call->counts[index] * bytes;
    case ZB_COLLECTIVE_ALL_GATHER:
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_REDUCE:
        return index == call->root ? call->numel * bytes : 0;
    default:
        return 0;
    }
}

size_t sim_result_bytes(const zb_collective *call, int size, int index, int async)
{
    size_t bytes = zb_dtype_bytes(call->dtype);
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_GATHER:
        return (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return (size_t)size * (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_BROADCAST:
    case ZB_COLLECTIVE_SEND:
    case ZB_COLLECTIVE_RECV:
        return call->numel * bytes;
    case ZB_COLLECTIVE_REDUCE:
        return async && index == call->root ? call->numel * bytes : 0;
    default:
        return async ? sim_reduced_numel(call, size) * bytes : 0;
    }
}
