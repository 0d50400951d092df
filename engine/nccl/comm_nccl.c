/* The communicator's table: start, wait, split, destroy. */
#include "engine/nccl/world.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>

static nccl_group *group_of(const zb_comm *comm)
{
    return (nccl_group *)(uintptr_t)comm;
}

/* --- the host's buffers --- */

/* One block of device memory for both, so that what works in place on the host does not here. */
static zb_status stage_in(nccl_op *op, const void **send_p, void **recv_p)
{
    nccl_world *world = op->group->world;
    zb_device *device = world->device;
    size_t send, recv;
    zb_nccl_extent(op, &send, &recv);
    op->staged_recv = (send + 255) / 256 * 256;
    if (op->staging_bytes < op->staged_recv + recv) {
        if (op->staging != NULL) device->ops->free(device, op->staging);
        op->staging = NULL;
        op->staging_bytes = 0;
        ZB_TRY(zb_nccl_device_alloc(world, op->staged_recv + recv, &op->staging));
        op->staging_bytes = op->staged_recv + recv;
    }
    *send_p = op->staging;
    *recv_p = (char *)op->staging + op->staged_recv;
    const int is_root = op->call.kind == ZB_COLLECTIVE_BROADCAST && op->group->base.rank == op->call.root;
    if (send > 0) ZB_TRY(zb_copy_in(world->copies, op->staging, op->call.send, send));
    if (is_root && recv > 0) ZB_TRY(zb_copy_in(world->copies, *recv_p, op->call.recv, recv));
    return zb_stream_wait_idle(world->copies);
}

/* The operation is through, so that the copies stream waits for nobody. */
static zb_status stage_out(nccl_op *op)
{
    nccl_world *world = op->group->world;
    size_t send, recv;
    zb_nccl_extent(op, &send, &recv);
    const int is_root = op->call.kind == ZB_COLLECTIVE_BROADCAST && op->group->base.rank == op->call.root;
    if (recv == 0 || is_root) return ZB_OK;
    ZB_TRY(zb_copy_out(world->copies, op->call.recv, (char *)op->staging + op->staged_recv, recv));
    return zb_stream_wait_idle(world->copies);
}

/* --- start --- */

static uint64_t next_number(nccl_group *group, const zb_collective *call)
{
    if (call->kind == ZB_COLLECTIVE_SEND) return group->sent[call->root]++;
    if (call->kind == ZB_COLLECTIVE_RECV) return group->received[call->root]++;
    return group->sequence++;
}

static zb_status queue(nccl_op *op)
{
    nccl_group *group = op->group;
    const void *send = op->call.send;
    void *recv = op->call.recv;
    cudaStream_t stream = zb_cuda_stream(group->stream);
    CUDA_TRY(cudaSetDevice(group->world->ordinal));
    if (op->call.stream == NULL) {
        ZB_TRY(stage_in(op, &send, &recv));
    } else {
        CUDA_TRY(cudaEventRecord(op->ready, zb_cuda_stream(op->call.stream)));
        CUDA_TRY(cudaStreamWaitEvent(stream, op->ready, 0));
    }
    ZB_TRY(zb_nccl_queue(op, send, recv));
    CUDA_TRY(cudaEventRecord(op->done, stream));
    op->queued = 1;
    group->queued_count++;
    return ZB_OK;
}

/* All ranks come to a barrier with everything done that their streams have got to. */
static zb_status come_to_barrier(nccl_op *op)
{
    if (op->call.stream == NULL) return ZB_OK;
    CUDA_TRY(cudaSetDevice(op->group->world->ordinal));
    CUDA_TRY(cudaEventRecord(op->ready, zb_cuda_stream(op->call.stream)));
    return zb_nccl_await_event(op, op->ready, "for its stream");
}

static zb_status begin(nccl_op *op)
{
    const nccl_world *world = op->group->world;
    const int barrier = op->call.kind == ZB_COLLECTIVE_BARRIER;
    if (zb_call_is_pair((int)op->call.kind)) return zb_nccl_begin_message(op);
    if (barrier) ZB_TRY(come_to_barrier(op));
    if (barrier || !world->unchecked)
        ZB_TRY(zb_nccl_settle(op->group->world, op, zb_nccl_meet_all(op, NULL)));
    return barrier ? ZB_OK : queue(op);
}

/* From this point of `stream` on, or for the host. */
static zb_status finish(nccl_op *op, zb_stream *stream)
{
    const int pair = zb_call_is_pair((int)op->call.kind);
    if (pair)
        ZB_TRY(zb_nccl_finish_message(
            op)); /* the host has moved it, and what it has done is done for all streams */
    if (!pair && op->queued && stream != NULL && op->call.stream != NULL) {
        CUDA_TRY(cudaSetDevice(op->group->world->ordinal));
        CUDA_TRY(cudaStreamWaitEvent(zb_cuda_stream(stream), op->done, 0));
    } else if (!pair && op->queued) {
        ZB_TRY(zb_nccl_await_event(op, op->done, "for the GPU"));
        if (op->call.stream == NULL) ZB_TRY(stage_out(op));
    }
    zb_nccl_retire(op);
    return ZB_OK;
}

static zb_status start(nccl_group *group, const zb_collective *call, zb_work *work)
{
    nccl_op *op;
    ZB_TRY(zb_nccl_look(group->world, 0));
    ZB_TRY(zb_nccl_op_take(group, call, &op));
    op->sequence = next_number(group, call);
    zb_nccl_launch(op);
    ZB_TRY(zb_call_record_write(call, group->world->rank, op->sequence, &op->record));
    ZB_TRY(begin(op));
    if (work == NULL) return finish(op, call->stream);
    *work = (zb_work){ .id = op->id, .handle = op };
    return ZB_OK;
}

/* Streams of other handles of the same GPU are as good as this one's. */
static zb_status check_stream(const nccl_group *group, const zb_stream *stream)
{
    const nccl_world *world = group->world;
    if (stream == NULL ||
        (zb_device_is_cuda(stream->device) && zb_cuda_ordinal(stream->device) == world->ordinal))
        return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "rank %d: stream %s of device %s; communicator %s is of GPU %d",
                   world->rank, stream->name, stream->device->ops->name, group->name, world->ordinal);
}

static zb_status nccl_start(zb_comm *comm, const zb_collective *call, zb_work *work)
{
    nccl_group *group = group_of(comm);
    zb_nccl_lock(group->world);
    zb_status status = check_stream(group, call->stream);
    if (status == ZB_OK) status = start(group, call, work);
    status = zb_nccl_settle(group->world, NULL, status);
    zb_nccl_unlock(group->world);
    return status;
}

/* --- wait --- */

static zb_status wait_for(nccl_group *group, const zb_work *work, zb_stream *stream)
{
    ZB_TRY(zb_nccl_look(group->world, 0));
    ZB_TRY(check_stream(group, stream));
    nccl_op *op = zb_nccl_find(group, work);
    if (op == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "rank %d waits for work %llu, which it has not in flight on communicator %s",
                       group->world->rank, (unsigned long long)work->id, group->name);
    return finish(op, stream);
}

static zb_status nccl_wait_for(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    nccl_group *group = group_of(comm);
    zb_nccl_lock(group->world);
    const zb_status status = zb_nccl_settle(group->world, NULL, wait_for(group, work, stream));
    zb_nccl_unlock(group->world);
    return status;
}

/* --- split --- */

/* In a split's record `root` is the color and `numel` the key. */
static int comes_before(const zb_call_record *calls, int a, int b)
{
    const int32_t key_a = (int32_t)calls[a].numel, key_b = (int32_t)calls[b].numel;
    return key_a != key_b ? key_a < key_b : a < b;
}

/* This rank's place among those of its color, and how many they are. */
static int place_in_part(const nccl_group *group, const zb_call_record *calls, int rank, int *size_p)
{
    int place = 0;
    *size_p = 0;
    for (int r = 0; r < group->base.world_size; r++) {
        if (calls[r].root != calls[rank].root) continue;
        ++*size_p;
        place += comes_before(calls, r, rank);
    }
    return place;
}

static zb_status make_part(nccl_group *group, const nccl_op *op, const zb_call_record *calls,
                           nccl_group **part_p)
{
    const int me = group->base.rank, color = calls[me].root;
    char name[sizeof group->name];
    int size;
    const int rank = place_in_part(group, calls, me, &size);
    snprintf(name, sizeof name, "%s[split %llu, color %d]", group->name, (unsigned long long)op->sequence,
             color);
    ZB_TRY(zb_nccl_group_create(group->world, rank, size, name,
                                zb_call_part_id(group->id, op->sequence, color), part_p));
    for (int r = 0; r < group->base.world_size; r++)
        if (calls[r].root == color)
            (*part_p)->world_ranks[place_in_part(group, calls, r, &size)] = group->world_ranks[r];
    return ZB_OK;
}

/* NCCL hands the new communicator over when it is made, from a thread of its own. */
static zb_status await_part(const nccl_group *group, nccl_group *part)
{
    nccl_wait wait = zb_nccl_begin_wait(group, NULL, "for ncclCommSplit");
    while (__atomic_load_n(&part->comm, __ATOMIC_ACQUIRE) == NULL) ZB_TRY(zb_nccl_pause(&wait));
    return zb_nccl_check(part, ncclInProgress, "ncclCommSplit");
}

/* NCCL's part of it: no rank's may wait for work that is queued, so that goes first. */
static zb_status divide(nccl_group *group, const nccl_op *op, const zb_call_record *calls, nccl_group *part)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclComm_t none = NULL;
    int count = 0;
    config.blocking = 0;
    ZB_TRY(zb_nccl_check_cuda(cudaEventRecord(op->done, zb_cuda_stream(group->stream)), "cudaEventRecord"));
    ZB_TRY(zb_nccl_await_event((nccl_op *)(uintptr_t)op, op->done, "for the GPU to finish what is queued"));
    if (part != NULL) part->report_begin = zb_nccl_report_end();
    NCCL_TRY(group,
             ncclCommSplit(group->comm, part != NULL ? calls[group->base.rank].root : NCCL_SPLIT_NOCOLOR,
                           part != NULL ? part->base.rank : 0, part != NULL ? &part->comm : &none, &config));
    if (part == NULL) return ZB_OK;
    ZB_TRY(await_part(group, part));
    NCCL_TRY(part, ncclCommCount(part->comm, &count));
    part->report_end = zb_nccl_report_end();
    if (count == part->base.world_size) return ZB_OK;
    return zb_fail(ZB_INTERNAL, "NCCL has made %d ranks of %s, which has %d", count, part->name,
                   part->base.world_size);
}

static zb_status split_met(nccl_group *group, nccl_op *op, zb_call_record *calls, nccl_group **part_p)
{
    ZB_TRY(zb_nccl_settle(group->world, op, zb_nccl_meet_all(op, calls)));
    CUDA_TRY(cudaSetDevice(group->world->ordinal));
    if (op->record.root >= 0) ZB_TRY(make_part(group, op, calls, part_p));
    return divide(group, op, calls, *part_p);
}

static zb_status split(nccl_group *group, int color, int key, zb_comm **out)
{
    const zb_collective call = { .kind = (zb_collective_kind)ZB_CALL_SPLIT,
                                 .root = color >= 0 ? color : -1,
                                 .numel = (size_t)(uint32_t)key };
    nccl_group *part = NULL;
    nccl_op *op;
    ZB_TRY(zb_nccl_look(group->world, 0));
    zb_call_record *calls = zb_alloc_array((size_t)group->base.world_size, sizeof *calls);
    if (calls == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_nccl_op_take(group, &call, &op);
    if (status == ZB_OK) {
        op->sequence = next_number(group, &call);
        zb_nccl_launch(op);
        status = zb_call_record_write(&call, group->world->rank, op->sequence, &op->record);
        if (status == ZB_OK) status = split_met(group, op, calls, &part);
        zb_nccl_retire(op);
    }
    zb_free(calls);
    if (status == ZB_OK)
        *out = part != NULL ? &part->base : NULL;
    else if (part != NULL)
        zb_nccl_group_destroy(part);
    return status;
}

static zb_status nccl_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    nccl_group *group = group_of(comm);
    zb_nccl_lock(group->world);
    const zb_status status = zb_nccl_settle(group->world, NULL, split(group, color, key, out));
    zb_nccl_unlock(group->world);
    return status;
}

/* --- destroy, fail --- */

static zb_status report_in_flight(const nccl_group *group)
{
    for (const nccl_op *op = group->world->first; op != NULL; op = op->next) {
        if (op->group != group) continue;
        char call[512];
        zb_nccl_describe(op, call, sizeof call);
        return zb_fail(ZB_INVALID_ARGUMENT, "communicator destroyed without waiting for %s", call);
    }
    return ZB_OK;
}

/* After a failure nobody waits for anything any more. */
static void nccl_destroy(zb_comm *comm)
{
    nccl_group *group = group_of(comm);
    nccl_world *world = group->world;
    zb_nccl_lock(world);
    zb_status status = zb_nccl_look(world, 0);
    if (status == ZB_OK) status = report_in_flight(group);
    if (status == ZB_OK) status = zb_nccl_group_finish(group);
    zb_nccl_settle(world, NULL, status);
    for (nccl_op *op = world->first, *next; op != NULL; op = next) {
        next = op->next;
        if (op->group == group) zb_nccl_retire(op);
    }
    zb_nccl_group_destroy(group);
    zb_nccl_unlock(world);
    if (world->groups == NULL) zb_nccl_release(world);
}

static void nccl_fail(zb_comm *comm, zb_status status, const char *message)
{
    nccl_world *world = group_of(comm)->world;
    zb_nccl_lock(world);
    zb_nccl_tell(world, NULL, status, message);
    zb_nccl_unlock(world);
}

const zb_comm_ops zb_nccl_comm_ops = { .name = "nccl",
                                       .takes_device_memory = 1,
                                       .start = nccl_start,
                                       .wait = nccl_wait_for,
                                       .split = nccl_split,
                                       .fail = nccl_fail,
                                       .destroy = nccl_destroy };
