/* Groups of ranks, their operations, and the calls of NCCL that are not collectives. */
#include "engine/nccl/world.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>

/* --- NCCL's answers --- */

/* NCCL may notice before we do that a rank is gone, or has failed, but not which one, or why: that one says
 * so itself. */
static zb_status hear_cause(nccl_world *world)
{
    const double deadline = zb_control_now() + 0.2;
    while (world->control != NULL && zb_control_now() < deadline) ZB_TRY(zb_nccl_look(world, 20));
    return ZB_OK;
}

static zb_status report(const nccl_group *group, ncclResult_t code, const char *call)
{
    if (code == ncclRemoteError) ZB_TRY(hear_cause(group->world));
    const char *more = group->comm != NULL ? ncclGetLastError(group->comm) : NULL;
    const int name_length = (int)strcspn(call, "(");
    return zb_fail(ZB_INTERNAL, "rank %d, %s: %.*s: %s%s%s", group->world->rank, group->name, name_length,
                   call, ncclGetErrorString(code), more != NULL && more[0] != '\0' ? ": " : "",
                   more != NULL ? more : "");
}

/* A call that is in progress is waited for: the next one must not come before. */
zb_status zb_nccl_check(const nccl_group *group, ncclResult_t code, const char *call)
{
    nccl_wait wait = zb_nccl_begin_wait(group, NULL, call);
    while (code == ncclInProgress) {
        if (group->comm == NULL) return ZB_OK; /* the caller polls what it is making */
        const ncclResult_t asked = ncclCommGetAsyncError(group->comm, &code);
        if (asked != ncclSuccess) code = asked;
        if (code == ncclInProgress) ZB_TRY(zb_nccl_pause(&wait));
    }
    return code == ncclSuccess ? ZB_OK : report(group, code, call);
}

/* --- groups --- */

static zb_status make_arrays(nccl_group *group, size_t n)
{
    group->world_ranks = zb_alloc_array(n, sizeof *group->world_ranks);
    group->sent = zb_alloc_array(n, sizeof *group->sent);
    group->received = zb_alloc_array(n, sizeof *group->received);
    group->inputs = zb_alloc_array(n, sizeof *group->inputs);
    group->firsts = zb_alloc_array(n + 1, sizeof *group->firsts);
    if (group->world_ranks == NULL || group->sent == NULL || group->received == NULL ||
        group->inputs == NULL || group->firsts == NULL)
        return ZB_NO_MEMORY;
    ZB_TRY(zb_stream_create(group->world->device, group->name, &group->stream));
    CUDA_TRY(cudaEventCreateWithFlags(&group->watched, cudaEventDisableTiming));
    return ZB_OK;
}

zb_status zb_nccl_group_create(nccl_world *world, int rank, int size, const char *name, uint64_t id,
                               nccl_group **group_p)
{
    nccl_group *group = zb_alloc(sizeof *group);
    if (group == NULL) return ZB_NO_MEMORY;
    group->base.ops = &zb_nccl_comm_ops;
    group->base.rank = rank;
    group->base.world_size = size;
    group->world = world;
    group->id = id;
    snprintf(group->name, sizeof group->name, "%s", name);
    group->next = world->groups;
    world->groups = group;
    const zb_status status = make_arrays(group, (size_t)size);
    if (status != ZB_OK) {
        zb_nccl_group_destroy(group);
        return status;
    }
    *group_p = group;
    return ZB_OK;
}

static void free_op(nccl_op *op)
{
    if (op->ready != NULL) cudaEventDestroy(op->ready);
    if (op->done != NULL) cudaEventDestroy(op->done);
    if (op->staging != NULL) op->group->world->device->ops->free(op->group->world->device, op->staging);
    zb_free(op->came);
    zb_free(op->held);
    zb_free(op);
}

void zb_nccl_group_destroy(nccl_group *group)
{
    nccl_group **link = &group->world->groups;
    while (*link != group) link = &(*link)->next;
    *link = group->next;
    if (group->comm != NULL) ncclCommAbort(group->comm);
    for (nccl_op *op = group->free_ops, *next; op != NULL; op = next) {
        next = op->next;
        free_op(op);
    }
    if (group->watched != NULL) cudaEventDestroy(group->watched);
    if (group->scratch != NULL) group->world->device->ops->free(group->world->device, group->scratch);
    zb_stream_destroy(group->stream);
    zb_reduction_cache_destroy(&group->reductions);
    zb_free(group->world_ranks);
    zb_free(group->sent);
    zb_free(group->received);
    zb_free(group->inputs);
    zb_free(group->firsts);
    zb_free(group);
}

static zb_status await_stream(nccl_group *group)
{
    nccl_wait wait = zb_nccl_begin_wait(group, NULL, "for the GPU to finish what is queued");
    cudaError_t code;
    CUDA_TRY(cudaSetDevice(group->world->ordinal));
    while ((code = cudaStreamQuery(zb_cuda_stream(group->stream))) == cudaErrorNotReady)
        ZB_TRY(zb_nccl_pause(&wait));
    return zb_nccl_check_cuda(code, "cudaStreamQuery");
}

zb_status zb_nccl_group_finish(nccl_group *group)
{
    ZB_TRY(zb_nccl_look(group->world, 0));
    ZB_TRY(await_stream(group));
    NCCL_TRY(group, ncclCommFinalize(group->comm));
    ncclComm_t comm = group->comm;
    group->comm = NULL;
    return zb_nccl_check(group, ncclCommDestroy(comm), "ncclCommDestroy");
}

/* --- operations --- */

static zb_status create_op(nccl_group *group, nccl_op **op_p)
{
    nccl_op *op = zb_alloc(sizeof *op);
    if (op == NULL) return ZB_NO_MEMORY;
    op->group = group;
    op->came = zb_alloc((size_t)group->base.world_size);
    zb_status status = op->came != NULL ? ZB_OK : ZB_NO_MEMORY;
    if (status == ZB_OK)
        status = zb_nccl_check_cuda(cudaEventCreateWithFlags(&op->ready, cudaEventDisableTiming),
                                    "cudaEventCreateWithFlags");
    if (status == ZB_OK)
        status = zb_nccl_check_cuda(cudaEventCreateWithFlags(&op->done, cudaEventDisableTiming),
                                    "cudaEventCreateWithFlags");
    if (status != ZB_OK) {
        free_op(op);
        return status;
    }
    *op_p = op;
    return ZB_OK;
}

zb_status zb_nccl_op_take(nccl_group *group, const zb_collective *call, nccl_op **op_p)
{
    nccl_op *op = group->free_ops;
    if (op != NULL)
        group->free_ops = op->next;
    else
        ZB_TRY(create_op(group, &op));
    memset(op->came, 0, (size_t)group->base.world_size);
    op->next = op->previous = NULL;
    op->call = *call;
    op->begun = op->peer_came = op->complete = op->queued = 0;
    op->bytes = op->moved_bytes = 0;
    op->host = NULL;
    *op_p = op;
    return ZB_OK;
}

void zb_nccl_op_give(nccl_op *op)
{
    zb_free(op->held);
    op->held = NULL;
    op->next = op->group->free_ops;
    op->group->free_ops = op;
}

void zb_nccl_launch(nccl_op *op)
{
    nccl_world *world = op->group->world;
    op->id = ++world->work_count;
    op->previous = world->last;
    op->next = NULL;
    if (world->last != NULL)
        world->last->next = op;
    else
        world->first = op;
    world->last = op;
}

void zb_nccl_retire(nccl_op *op)
{
    nccl_world *world = op->group->world;
    if (op->previous != NULL)
        op->previous->next = op->next;
    else
        world->first = op->next;
    if (op->next != NULL)
        op->next->previous = op->previous;
    else
        world->last = op->previous;
    zb_nccl_op_give(op);
}

nccl_op *zb_nccl_find(const nccl_group *group, const zb_work *work)
{
    for (nccl_op *op = group->world->first; op != NULL; op = op->next)
        if (op->group == group && op->id == work->id) return op;
    return NULL;
}

zb_status zb_nccl_await_event(nccl_op *op, cudaEvent_t event, const char *what)
{
    nccl_wait wait = zb_nccl_begin_wait(op->group, op, what);
    cudaError_t code;
    CUDA_TRY(cudaSetDevice(op->group->world->ordinal));
    while ((code = cudaEventQuery(event)) == cudaErrorNotReady) ZB_TRY(zb_nccl_pause(&wait));
    return zb_nccl_check_cuda(code, "cudaEventQuery");
}
