/*
 * Failures reach everybody, on the control connections. The first failure that a rank has or hears of is the
 * one that it reports from then on; NCCL's communicators are aborted with it, so that nothing on the GPU
 * waits for a rank that does not come.
 */
#include "engine/nccl/world.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <zerobit/memory.h>

/* --- the failure --- */

static void abort_communicators(nccl_world *world)
{
    for (nccl_group *group = world->groups; group != NULL; group = group->next) {
        ncclComm_t comm = group->comm;
        group->comm = NULL;
        if (comm != NULL) ncclCommAbort(comm);
    }
}

static void keep_failure(nccl_world *world, zb_status status, const char *message)
{
    world->failure.set = 1;
    world->failure.status = status;
    snprintf(world->failure.message, sizeof world->failure.message, "%s", message);
    abort_communicators(world);
}

static zb_status fail_again(const nccl_world *world)
{
    return zb_fail(world->failure.status, "%s", world->failure.message);
}

/* Status and words of a failure, as they travel. */
typedef struct failed_text {
    int32_t status, spare;
    char text[ZB_ERROR_MESSAGE_BYTES];
} failed_text;

/* Who shares a mismatch: 0: all of the group; else the other rank of a message, plus 1. */
static uint64_t sharer_of(const nccl_op *op)
{
    if (!zb_call_is_pair((int)op->call.kind)) return 0;
    return (uint64_t)op->group->world_ranks[op->call.root] + 1;
}

void zb_nccl_tell(nccl_world *world, const nccl_op *op, zb_status status, const char *message)
{
    failed_text failed = { .status = (int32_t)status };
    if (world->failure.set) return;
    const uint64_t group = op != NULL ? op->group->id : 0, sharer = op != NULL ? sharer_of(op) : 0;
    snprintf(failed.text, sizeof failed.text, "%s", message);
    /* First the others: aborting may take a while. A rank that cannot be told is gone, and found out by that.
     */
    for (int r = 0; r < world->size && world->control != NULL; r++)
        if (r != world->rank)
            zb_control_send(world->control, r, FRAME_FAILED, group, sharer, &failed, sizeof failed);
    keep_failure(world, status, message);
}

zb_status zb_nccl_settle(nccl_world *world, const nccl_op *op, zb_status status)
{
    if (status == ZB_OK) return ZB_OK;
    char message[ZB_ERROR_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", zb_error_message());
    zb_nccl_tell(world, op, status, message);
    return fail_again(world); /* whatever else has been said meanwhile */
}

/* --- hearing --- */

static int shares(const nccl_world *world, const frame *f)
{
    if (f->sequence != 0 && f->sequence != (uint64_t)world->rank + 1) return 0;
    for (const nccl_group *group = world->groups; group != NULL; group = group->next)
        if (group->id == f->group) return 1;
    return 0;
}

/* A mismatch belongs to all ranks that called: they would have come to the same report. */
static void hear_failed(nccl_world *world, frame *f)
{
    failed_text *failed = (failed_text *)f->body;
    char message[ZB_ERROR_MESSAGE_BYTES];
    if (f->bytes == sizeof *failed && !world->failure.set) {
        failed->text[sizeof failed->text - 1] = '\0';
        if (failed->status == ZB_MISMATCH && shares(world, f)) {
            keep_failure(world, ZB_MISMATCH, failed->text);
        } else {
            snprintf(message, sizeof message, "rank %d failed: %s", f->from, failed->text);
            keep_failure(world, ZB_REMOTE, message);
        }
    }
    zb_free(f);
}

static zb_status find_lost(nccl_world *world)
{
    for (int r = 0; r < world->size; r++)
        if (r != world->rank && zb_control_peer(world->control, r) == PEER_LOST)
            return zb_fail(ZB_REMOTE, "rank %d is gone: %s", r, zb_control_why_lost(world->control, r));
    return ZB_OK;
}

static zb_status hear_all(nccl_world *world, int wait_ms)
{
    frame *f;
    int moved = 0;
    ZB_TRY(zb_control_pump(world->control, wait_ms, &moved));
    while ((f = zb_control_take_any(world->control, FRAME_FAILED)) != NULL) hear_failed(world, f);
    if (world->failure.set) return ZB_OK;
    ZB_TRY(find_lost(world));
    do ZB_TRY(zb_nccl_move_messages(world, &moved));
    while (moved);
    return ZB_OK;
}

zb_status zb_nccl_look(nccl_world *world, int wait_ms)
{
    if (world->failure.set) return fail_again(world);
    if (world->control == NULL) return ZB_OK;
    const zb_status status = hear_all(world, wait_ms);
    if (world->failure.set) return fail_again(world);
    return zb_nccl_settle(world, NULL, status);
}

zb_status zb_nccl_need(const nccl_op *op, int rank)
{
    const nccl_world *world = op->group->world;
    char call[512];
    if (zb_control_peer(world->control, rank) != PEER_ENDED) return ZB_OK;
    zb_nccl_describe(op, call, sizeof call);
    return zb_fail(ZB_REMOTE, "rank %d has ended, and rank %d waits for it in %s", rank, world->rank, call);
}

/* --- waiting --- */

nccl_wait zb_nccl_begin_wait(const nccl_group *group, const nccl_op *op, const char *text)
{
    return (nccl_wait){ .group = group, .op = op, .text = text, .since = zb_control_now() };
}

/* "; rank 2 has not come: it was last in ..." for each that is missing in a collective that meets. */
static void append_missing(const nccl_op *op, char *text, size_t text_bytes)
{
    const nccl_group *group = op->group;
    const nccl_world *world = group->world;
    size_t used = strlen(text);
    char call[512];
    for (int r = 0; r < group->base.world_size && used + 1 < text_bytes; r++) {
        const int rank = group->world_ranks[r];
        const zb_call_record *last = &world->last_calls[rank];
        if (rank == world->rank || op->queued) continue;
        if (zb_call_is_pair((int)op->call.kind) ? r != op->call.root || op->peer_came
                                                : op->came != NULL && op->came[r])
            continue;
        zb_call_record_describe(last, "a communicator", call, sizeof call);
        used += (size_t)snprintf(text + used, text_bytes - used, "\n  rank %d has not come; %s%s", rank,
                                 world->has_called[rank] ? "it came last to " : "it has come to nothing yet",
                                 world->has_called[rank] ? call : "");
    }
}

static zb_status report_stall(const nccl_wait *wait)
{
    const nccl_world *world = wait->group->world;
    char text[ZB_ERROR_MESSAGE_BYTES], call[512] = "";
    if (wait->op != NULL) zb_nccl_describe(wait->op, call, sizeof call);
    snprintf(text, sizeof text, "rank %d has waited %g s %s%s%s", world->rank, world->timeout_seconds,
             wait->text, call[0] != '\0' ? " in " : "", call);
    if (wait->op != NULL) append_missing(wait->op, text, sizeof text);
    return zb_fail(ZB_DEADLOCK, "%s", text);
}

zb_status zb_nccl_check_async(const nccl_group *group)
{
    ncclResult_t found = ncclSuccess;
    if (group->comm == NULL) return ZB_OK;
    const ncclResult_t code = ncclCommGetAsyncError(group->comm, &found);
    if (code != ncclSuccess) return zb_nccl_check(group, code, "ncclCommGetAsyncError");
    if (found == ncclSuccess || found == ncclInProgress) return ZB_OK;
    return zb_nccl_check(group, found, "NCCL, asynchronously");
}

static void sleep_microseconds(long count)
{
    nanosleep(&(struct timespec){ .tv_nsec = 1000 * count }, NULL);
}

/* Frames wake whoever waits for them; NCCL and the GPU are asked again and again. */
zb_status zb_nccl_pause(nccl_wait *wait)
{
    enum { SPINS = 100, FRAME_MS = 5, NAP_US = 50 };
    nccl_world *world = wait->group->world;
    const int patient = wait->idle++ >= SPINS;
    ZB_TRY(zb_nccl_look(world, wait->for_frames && world->control != NULL && patient ? FRAME_MS : 0));
    ZB_TRY(zb_nccl_check_async(wait->group));
    if (zb_control_now() - wait->since > world->timeout_seconds) return report_stall(wait);
    if (patient && !wait->for_frames) sleep_microseconds(NAP_US);
    return ZB_OK;
}
