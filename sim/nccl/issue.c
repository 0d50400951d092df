/* The calls that queue work: their arguments, and groups. */
#include "sim/nccl/state.h"

static _Thread_local int group_depth, group_count;
static _Thread_local call group_calls[GROUP_MAX];
static _Thread_local ncclResult_t group_failed;

/* Messages of one communicator and stream go together; a collective goes alone. */
static ncclResult_t queue_group(call *calls, int count)
{
    for (int i = 0; i < count; i++) {
        call together[GROUP_MAX];
        int taken = 0;
        if (calls[i].comm == NULL) continue;
        for (int j = i; j < count; j++) {
            const int pairs = calls[i].kind >= SEND && calls[j].kind >= SEND;
            if (j != i && (!pairs || calls[j].comm != calls[i].comm || calls[j].stream != calls[i].stream))
                continue;
            together[taken++] = calls[j];
            if (j != i) calls[j].comm = NULL;
        }
        const ncclResult_t result = si_nccl_queue(together, taken);
        if (result != ncclSuccess) return result;
        si_nccl_report_call(&together[0]);
    }
    return ncclSuccess;
}

static ncclResult_t check_pointer(const call *c, const void *pointer, const char *name)
{
    struct cudaPointerAttributes found;
    if (c->count == 0) return ncclSuccess;
    if (pointer == NULL)
        return si_nccl_mistake(c->comm, ncclInvalidArgument, "%s: %s is NULL", si_nccl_names[c->kind], name);
    if (cudaPointerGetAttributes(&found, pointer) != cudaSuccess || found.type != cudaMemoryTypeDevice ||
        found.device != c->comm->device)
        return si_nccl_mistake(c->comm, ncclInvalidArgument, "%s: %s is not on device %d, the communicator's",
                               si_nccl_names[c->kind], name, c->comm->device);
    return ncclSuccess;
}

static ncclResult_t check_call(const call *c)
{
    const int size = c->comm->world->size, pair = c->kind == SEND || c->kind == RECEIVE;
    int device = -1;
    cudaGetDevice(&device);
    if (device != c->comm->device)
        return si_nccl_mistake(c->comm, ncclInvalidUsage, "%s on device %d with a communicator of device %d",
                               si_nccl_names[c->kind], device, c->comm->device);
    if (si_nccl_type_bytes(c->type) == 0)
        return si_nccl_mistake(c->comm, ncclInvalidArgument, "%s of type %d", si_nccl_names[c->kind],
                               (int)c->type);
    if ((pair || c->kind == BROADCAST) && (c->peer < 0 || c->peer >= size))
        return si_nccl_mistake(c->comm, ncclInvalidArgument, "%s with rank %d of %d", si_nccl_names[c->kind],
                               c->peer, size);
    if (c->kind != RECEIVE && (c->kind != BROADCAST || c->comm->rank == c->peer)) {
        const ncclResult_t result = check_pointer(c, c->send, "sendbuff");
        if (result != ncclSuccess) return result;
    }
    return c->kind != SEND ? check_pointer(c, c->recv, "recvbuff") : ncclSuccess;
}

static ncclResult_t resolve_op(call *c)
{
    const int slot = (int)c->op - ncclNumOps;
    if (c->kind != ALL_REDUCE && c->kind != REDUCE_SCATTER) return ncclSuccess;
    if (si_nccl_dtype(c->type) == ZB_DTYPE_COUNT || c->op == ncclProd || c->op < ncclSum ||
        (c->op == ncclAvg && !si_nccl_is_floating(c->type)))
        return si_nccl_mistake(c->comm, ncclInvalidArgument, "%s of type %d with operator %d",
                               si_nccl_names[c->kind], (int)c->type, (int)c->op);
    if (slot < 0) return ncclSuccess;
    if (slot >= c->comm->scale_count || c->comm->scale_types[slot] != c->type)
        return si_nccl_mistake(c->comm, ncclInvalidArgument, "%s with operator %d, which is not of its type",
                               si_nccl_names[c->kind], (int)c->op);
    c->op_is_scale = 1;
    c->scale = c->comm->scales[slot];
    c->op = ncclNumOps;
    return ncclSuccess;
}

static ncclResult_t issue_locked(call *c)
{
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = si_nccl_check_comm(c->comm, si_nccl_names[c->kind]);
    if (result == ncclSuccess) result = check_call(c);
    if (result == ncclSuccess) result = resolve_op(c);
    if (group_depth > 0) {
        if (result == ncclSuccess && group_count == GROUP_MAX) result = ncclInternalError;
        if (result == ncclSuccess)
            group_calls[group_count++] = *c;
        else if (group_failed == ncclSuccess)
            group_failed = result;
        return result;
    }
    if (result == ncclSuccess) result = queue_group(c, 1);
    return result == ncclSuccess ? si_nccl_answer(c->comm) : result;
}

static ncclResult_t issue(call c)
{
    zb_standin_lock();
    const ncclResult_t result = issue_locked(&c);
    zb_standin_unlock();
    return result;
}

int si_nccl_in_group(void)
{
    return group_depth > 0;
}

ncclResult_t ncclGroupStart(void)
{
    zb_standin_lock();
    const ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess && group_depth++ == 0) {
        group_count = 0;
        group_failed = ncclSuccess;
    }
    zb_standin_unlock();
    return result;
}

static ncclResult_t end_group(void)
{
    ncclResult_t result = si_nccl_enter();
    if (group_depth == 0)
        return si_nccl_mistake(NULL, ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth > 0) return result;
    if (result == ncclSuccess) result = group_failed;
    if (result != ncclSuccess || group_count == 0) return result;
    ncclComm_t first = group_calls[0].comm;
    result = queue_group(group_calls, group_count);
    return result == ncclSuccess ? si_nccl_answer(first) : result;
}

ncclResult_t ncclGroupEnd(void)
{
    zb_standin_lock();
    const ncclResult_t result = end_group();
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream)
{
    return issue((call){ ALL_REDUCE, send, recv, count, type, .op = op, .comm = comm, .stream = stream });
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t recv_count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    return issue(
        (call){ REDUCE_SCATTER, send, recv, recv_count, type, .op = op, .comm = comm, .stream = stream });
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t send_count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    return issue((call){ ALL_GATHER, send, recv, send_count, type, .comm = comm, .stream = stream });
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    return issue((call){ BROADCAST, send, recv, count, type, .peer = root, .comm = comm, .stream = stream });
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return issue((call){ SEND, send, NULL, count, type, .peer = peer, .comm = comm, .stream = stream });
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return issue((call){ RECEIVE, NULL, recv, count, type, .peer = peer, .comm = comm, .stream = stream });
}
