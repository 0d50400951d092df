/* The communicator's table: start, wait, split, destroy. */
#include "engine/mpi/world.h"

#include <stdio.h>
#include <zerobit/device.h>
#include <zerobit/memory.h>

#include "orders/signature.h"

static mpi_group *group_of(zb_comm *comm)
{
    return (mpi_group *)comm;
}

/* The buffers may be touched by the host from here on. */
static zb_status wait_for_stream(const zb_collective *call)
{
    return call->stream == NULL ? ZB_OK : call->stream->device->ops->stream_wait_idle(call->stream);
}

/* --- start --- */

static uint64_t next_number(mpi_group *group, const zb_collective *call)
{
    if (call->kind == ZB_COLLECTIVE_SEND) return group->sent[call->root]++;
    if (call->kind == ZB_COLLECTIVE_RECV) return group->received[call->root]++;
    return group->sequence++;
}

/* Takes part in an operation, and moves everything on. */
static zb_status begin(mpi_group *group, const zb_collective *call, int agrees_only, mpi_op **op_p)
{
    mpi_op *op;
    int moved;
    ZB_TRY(zb_mpi_look(group->world));
    ZB_TRY(wait_for_stream(call));
    ZB_TRY(zb_mpi_op_take(group, call, &op));
    op->agrees_only = agrees_only;
    op->sequence = next_number(group, call);
    zb_mpi_place_enter(op);
    zb_status status = zb_mpi_plan(op);
    if (status != ZB_OK) {
        zb_mpi_op_give(op);
        return status;
    }
    zb_mpi_launch(group->world, op);
    ZB_TRY(zb_mpi_sign(op));
    ZB_TRY(zb_mpi_progress(group->world, &moved));
    *op_p = op;
    return ZB_OK;
}

static zb_status finish(mpi_op *op)
{
    zb_mpi_place_enter(op);
    ZB_TRY(zb_mpi_wait_until(op, OP_DONE));
    zb_mpi_retire(op);
    return ZB_OK;
}

static zb_status run_native(mpi_op *op)
{
    ZB_TRY(zb_mpi_wait_until(op, OP_AGREED));
    ZB_TRY(zb_mpi_native_run(op));
    op->state = OP_DONE;
    return ZB_OK;
}

static zb_status start(mpi_group *group, const zb_collective *call, zb_work *work)
{
    const int native = zb_mpi_native(&group->base, call);
    mpi_op *op;
    if (native) ZB_TRY(zb_mpi_native_refuse(group, call));
    ZB_TRY(begin(group, call, native, &op));
    if (native) ZB_TRY(run_native(op));
    if (work == NULL) return finish(op);
    *work = (zb_work){ .id = op->id, .handle = op };
    return ZB_OK;
}

static zb_status mpi_start(zb_comm *comm, const zb_collective *call, zb_work *work)
{
    mpi_group *group = group_of(comm);
    const zb_status status = zb_mpi_settle(group->world, group, -1, start(group, call, work));
    zb_mpi_place_leave();
    return status;
}

/* --- wait --- */

static zb_status wait_for(mpi_group *group, const zb_work *work)
{
    ZB_TRY(zb_mpi_look(group->world));
    mpi_op *op = zb_mpi_find(group, work);
    if (op == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "rank %d waits for work %llu, which it has not in flight on communicator %s",
                       group->world->rank, (unsigned long long)work->id, group->name);
    return finish(op);
}

static zb_status mpi_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    (void)stream; /* the host itself moves the data, and goes on when that is done */
    mpi_group *group = group_of(comm);
    const zb_status status = zb_mpi_settle(group->world, group, -1, wait_for(group, work));
    zb_mpi_place_leave();
    return status;
}

/* --- split and destroy --- */

/* All ranks are here. What follows blocks in MPI, and cannot fail on one rank alone: the memory is there. */
static zb_status divide(mpi_group *group, const mpi_op *op, int color, int key, mpi_group *part)
{
    char name[sizeof part->name];
    MPI_Comm messages;
    MPI_TRY(MPI_Comm_split(group->messages, color >= 0 ? color : MPI_UNDEFINED, key, &messages));
    if (messages == MPI_COMM_NULL) return ZB_OK;
    snprintf(name, sizeof name, "%s[split %llu, color %d]", group->name, (unsigned long long)op->sequence,
             color);
    return zb_mpi_group_open(part, messages, name, zb_call_part_id(group->id, op->sequence, color));
}

static zb_status split(mpi_group *group, int color, int key, zb_comm **out)
{
    mpi_group *part;
    mpi_op *op;
    ZB_TRY(zb_mpi_group_create(group->world, group->base.world_size, &part));
    zb_status status = begin(group, &(zb_collective){ .kind = (zb_collective_kind)ZB_CALL_SPLIT }, 1, &op);
    if (status == ZB_OK) status = zb_mpi_wait_until(op, OP_AGREED);
    if (status == ZB_OK) status = divide(group, op, color, key, part);
    if (status == ZB_OK) zb_mpi_retire(op);
    if (status == ZB_OK && color >= 0)
        *out = &part->base;
    else
        zb_mpi_group_destroy(part);
    if (status == ZB_OK && color < 0) *out = NULL;
    return status;
}

static zb_status mpi_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    mpi_group *group = group_of(comm);
    const zb_status status = zb_mpi_settle(group->world, group, -1, split(group, color, key, out));
    zb_mpi_place_leave();
    return status;
}

/* After a failure nobody waits for anything any more. */
static void report_destroyed_in_flight(mpi_group *group)
{
    if (group->world->failure.set) return;
    for (const mpi_op *op = group->world->first; op != NULL; op = op->next) {
        if (op->group != group) continue;
        char call[512];
        zb_mpi_describe(op, call, sizeof call);
        zb_mpi_settle(group->world, NULL, -1,
                      zb_fail(ZB_INVALID_ARGUMENT, "communicator destroyed without waiting for %s", call));
        return;
    }
}

/* The world belongs to the process: nothing happens to it here. */
static void mpi_destroy(zb_comm *comm)
{
    mpi_group *group = group_of(comm);
    if (group == group->world->world) return;
    report_destroyed_in_flight(group);
    zb_mpi_group_destroy(group);
}

static void mpi_fail(zb_comm *comm, zb_status status, const char *message)
{
    (void)comm; /* the process has one world, and it is told as a whole */
    zb_mpi_fail(status, message);
}

const zb_comm_ops zb_mpi_comm_ops = { .name = "mpi",
                                      .start = mpi_start,
                                      .wait = mpi_wait,
                                      .split = mpi_split,
                                      .fail = mpi_fail,
                                      .destroy = mpi_destroy };
