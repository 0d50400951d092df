/*
 * The communicator table: start, wait, split, destroy; and what guards the buffers of an asynchronous
 * operation.
 */
#include "sim/world.h"

#include <stdio.h>
#include <string.h>

enum { POISON = 0xFF };

static sim_member *member_of(zb_comm *comm)
{
    return (sim_member *)comm;
}

static zb_status check_caller(const sim_member *member)
{
    const sim_rank *current = sim_current_rank();
    if (current == member->rank) return ZB_OK;
    char caller[32] = "no rank";
    if (current != NULL) snprintf(caller, sizeof caller, "rank %d", current->index);
    return zb_fail(ZB_INVALID_ARGUMENT, "communicator %s of rank %d used from %s", member->group->name,
                   member->rank->index, caller);
}

/* The buffers may be touched by the host from here on. */
static zb_status wait_for_stream(const zb_collective *call)
{
    return call->stream == NULL ? ZB_OK : call->stream->device->ops->stream_wait_idle(call->stream);
}

/* The failing rank has its message; the world gets it too. The lock is held. */
static zb_status break_with(sim_rank *rank, zb_status status)
{
    sim_break(rank->sim, rank, status, rank->error.message);
    return status;
}

/* --- start --- */

static zb_status inject_fault(zb_sim *sim, const sim_rank *rank)
{
    if (sim->fault_countdown < 0 || sim->fault_countdown-- > 0) return ZB_OK;
    sim->fault_fired = 1;
    char place[512];
    sim_describe_place(&rank->place, place, sizeof place);
    return zb_fail(sim->fault_status, "injected fault in %s", place);
}

static void note_place(sim_member *member, const zb_collective *call)
{
    member->rank->place = (sim_place){ .group = member->group,
                                       .kind = (int)call->kind,
                                       .peer = call->root,
                                       .sequence = member->sequence,
                                       .what = call->what,
                                       .file = call->file,
                                       .line = call->line };
}

/* Take part in the operation. The lock is held. */
static zb_status join(sim_member *member, const zb_collective *call, int async, sim_part **part_p)
{
    sim_rank *rank = member->rank;
    zb_sim *sim = rank->sim;
    if (sim->broken) return sim_fail_broken(sim);
    note_place(member, call);
    zb_status status = inject_fault(sim, rank);
    if (status == ZB_OK) status = sim_group_join(member, call, async, part_p);
    return status == ZB_OK ? ZB_OK : break_with(rank, status);
}

/* Copy what others are to read, unless they read it in place, and poison what the operation owns. */
static zb_status stage(sim_part *part)
{
    int size = part->op->part_count, index = sim_part_index(part);
    size_t send_bytes = sim_send_bytes(&part->call, size, index);
    const void *send = part->call.kind == ZB_COLLECTIVE_BROADCAST ? part->call.recv : part->call.send;
    void *contribution = sim_contribution(part);
    if (contribution == NULL && part->async && send_bytes > 0) {
        contribution = part->staging = sim_pool_take(&part->member->rank->staging, send_bytes);
        if (contribution == NULL) return ZB_NO_MEMORY;
    }
    if (contribution != NULL) memcpy(contribution, send, send_bytes);
    size_t recv_bytes = part->async ? sim_recv_bytes(&part->call, size, index) : 0;
    if (recv_bytes > 0) memset(part->call.recv, POISON, recv_bytes);
    return ZB_OK;
}

static void wake_all(sim_op *op)
{
    for (int i = 0; i < op->part_count; i++)
        if (op->parts[i].waiting) sim_wake(op->parts[i].member->rank);
}

/* One rank on each worker that has nothing else to do; at least one when nobody else will execute. */
static void wake_helpers(sim_op *op, int nobody_else)
{
    int woken = 0;
    sim_part *first = NULL;
    for (int i = 0; i < op->part_count; i++) {
        sim_part *part = &op->parts[i];
        if (!part->waiting) continue;
        if (first == NULL) first = part;
        const sim_worker *worker = part->member->rank->worker;
        if (op->chunk_count > 1 && worker->idle && worker->queued == 0) {
            sim_wake(part->member->rank);
            woken = 1;
        }
    }
    if (nobody_else && !woken && first != NULL) sim_wake(first->member->rank);
}

static void set_in_flight(sim_part *part)
{
    sim_rank *rank = part->member->rank;
    part->id = ++rank->work_count;
    part->next = rank->in_flight;
    if (part->next != NULL) part->next->previous = part;
    rank->in_flight = part;
}

static zb_status arrive(sim_part *part)
{
    sim_op *op = part->op;
    /* The last one plans for all, before anybody knows that it has come: a failure leaves the operation open.
     */
    if (op->arrived + 1 == op->part_count) {
        const zb_status status = sim_plan(op);
        if (status != ZB_OK) return break_with(part->member->rank, status);
    }
    part->arrived = 1;
    if (part->async) set_in_flight(part);
    if (++op->arrived < op->part_count) return ZB_OK;
    op->complete = 1;
    sim_group_close(op);
    if (op->chunk_count > 0) {
        wake_helpers(op, part->async);
    } else {
        op->done = 1;
        wake_all(op);
    }
    return ZB_OK;
}

/* Whether stage() has anything to do: mostly ranks that block leave their buffers as they are. */
static int is_staged(const sim_part *part)
{
    return part->async || sim_contribution(part) != NULL;
}

static zb_status stage_unlocked(sim_part *part)
{
    zb_sim *sim = part->member->rank->sim;
    pthread_mutex_unlock(&sim->lock);
    const zb_status status = stage(part);
    pthread_mutex_lock(&sim->lock);
    return status == ZB_OK ? ZB_OK : break_with(part->member->rank, status);
}

/* The lock is held. */
static zb_status join_and_arrive(sim_member *member, const zb_collective *call, int async, sim_part **part_p)
{
    const zb_sim *sim = member->rank->sim;
    ZB_TRY(join(member, call, async, part_p));
    if (is_staged(*part_p)) ZB_TRY(stage_unlocked(*part_p));
    return sim->broken ? sim_fail_broken(sim) : arrive(*part_p);
}

static zb_status check_begin(const sim_member *member, const zb_collective *call)
{
    ZB_TRY(check_caller(member));
    return wait_for_stream(call);
}

/* --- races --- */

/* Offset of the first byte that is not poison, or `bytes`. */
static size_t find_unpoisoned(const unsigned char *data, size_t bytes)
{
    if (bytes == 0 || (data[0] == POISON && memcmp(data, data + 1, bytes - 1) == 0)) return bytes;
    size_t i = 0;
    while (data[i] == POISON) i++;
    return i;
}

static size_t find_difference(const unsigned char *a, const unsigned char *b, size_t first, size_t end)
{
    if (first >= end || memcmp(a + first, b + first, end - first) == 0) return end;
    while (a[first] == b[first]) first++;
    return first;
}

static zb_status race(const sim_part *part, const char *buffer, size_t offset, size_t bytes)
{
    char call[512];
    sim_describe_part(part, call, sizeof call);
    return zb_fail(ZB_RACE, "%s buffer written while %s owned it: byte %zu of %zu", buffer, call, offset,
                   bytes);
}

/* The receive buffer must be as poisoned, and what lies outside of it in the send buffer as staged. */
static zb_status check_buffers(const sim_part *part)
{
    int size = part->op->part_count, index = sim_part_index(part);
    size_t recv_bytes = sim_recv_bytes(&part->call, size, index);
    const unsigned char *recv = part->call.recv;
    size_t at = find_unpoisoned(recv, recv_bytes);
    if (at < recv_bytes) return race(part, "receive", at, recv_bytes);

    if (part->call.kind == ZB_COLLECTIVE_BROADCAST) return ZB_OK;
    size_t send_bytes = sim_send_bytes(&part->call, size, index);
    const unsigned char *send = part->call.send;
    const unsigned char *staged = part->staging != NULL ? part->staging : sim_contribution(part);
    if (send_bytes == 0) return ZB_OK;
    uintptr_t s = (uintptr_t)send, r = (uintptr_t)recv;
    size_t before = send_bytes, after = send_bytes; /* the overlap is [before, after) of send */
    if (recv_bytes > 0 && r < s + send_bytes && s < r + recv_bytes) {
        before = r > s ? r - s : 0;
        after = r + recv_bytes < s + send_bytes ? r + recv_bytes - s : send_bytes;
    }
    at = find_difference(send, staged, 0, before);
    if (at < before) return race(part, "send", at, send_bytes);
    at = find_difference(send, staged, after, send_bytes);
    return at < send_bytes ? race(part, "send", at, send_bytes) : ZB_OK;
}

/* --- finish --- */

static zb_status execute(sim_part *part)
{
    sim_op *op = part->op;
    sim_rank *rank = part->member->rank;
    zb_status status = ZB_OK;
    while (op->chunks_taken < op->chunk_count) {
        size_t chunk = op->chunks_taken++;
        if ((int)part->call.kind == ZB_CALL_SPLIT) {
            status = sim_group_split(op);
        } else {
            pthread_mutex_unlock(&rank->sim->lock);
            status = sim_execute_chunk(op, chunk, rank->worker);
            pthread_mutex_lock(&rank->sim->lock);
        }
        if (status != ZB_OK && op->status == ZB_OK) op->status = break_with(rank, status);
        if (++op->chunks_done == op->chunk_count) {
            op->done = 1;
            wake_all(op);
        }
    }
    return status;
}

/* Until the operation is done, helping where that is needed. The lock is held. */
static zb_status wait_until_done(sim_part *part)
{
    sim_op *op = part->op;
    sim_rank *rank = part->member->rank;
    while (!op->complete) {
        if (rank->sim->broken) return sim_fail_broken(rank->sim);
        sim_suspend(rank, part);
        part->waiting = 0;
    }
    zb_status status = execute(part);
    while (!op->done) {
        sim_suspend(rank, part);
        part->waiting = 0;
    }
    if (status != ZB_OK) return status;
    return op->status == ZB_OK ? ZB_OK : sim_fail_broken(rank->sim);
}

/* What is left once the operation is done, and may take long. */
static zb_status deliver_unlocked(sim_part *part)
{
    sim_rank *rank = part->member->rank;
    pthread_mutex_unlock(&rank->sim->lock);
    zb_status status = part->async ? check_buffers(part) : ZB_OK;
    if (status == ZB_OK) sim_deliver(part);
    sim_pool_give(&rank->staging, part->staging);
    pthread_mutex_lock(&rank->sim->lock);
    return status == ZB_OK ? ZB_OK : break_with(rank, status);
}

/* The lock is held. */
static zb_status finish(sim_part *part)
{
    ZB_TRY(wait_until_done(part));
    const zb_status status = sim_delivers(part) ? deliver_unlocked(part) : ZB_OK;
    sim_group_leave(part);
    return status;
}

/* A call that blocks, from beginning to end. */
static zb_status run_blocking(sim_member *member, const zb_collective *call)
{
    sim_part *part = NULL;
    zb_sim *sim = member->rank->sim;
    ZB_TRY(check_begin(member, call));
    pthread_mutex_lock(&sim->lock);
    zb_status status = join_and_arrive(member, call, 0, &part);
    if (status == ZB_OK) status = finish(part);
    pthread_mutex_unlock(&sim->lock);
    return status;
}

static zb_status sim_start(zb_comm *comm, const zb_collective *call, zb_work *work)
{
    sim_member *member = member_of(comm);
    sim_part *part = NULL;
    zb_sim *sim = member->rank->sim;
    if (work == NULL) return run_blocking(member, call);
    ZB_TRY(check_begin(member, call));
    pthread_mutex_lock(&sim->lock);
    const zb_status status = join_and_arrive(member, call, 1, &part);
    pthread_mutex_unlock(&sim->lock);
    if (status != ZB_OK) return status;
    *work = (zb_work){ .id = part->id, .handle = part };
    return ZB_OK;
}

/* --- wait --- */

static zb_status take_in_flight(sim_member *member, const zb_work *work, sim_part **part_p)
{
    sim_rank *rank = member->rank;
    sim_part *part = rank->in_flight;
    while (part != NULL && (part != work->handle || part->id != work->id)) part = part->next;
    if (part == NULL || part->member != member)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "rank %d waits for work %llu, which it has not in flight on communicator %s",
                       rank->index, (unsigned long long)work->id, member->group->name);
    if (part->previous != NULL)
        part->previous->next = part->next;
    else
        rank->in_flight = part->next;
    if (part->next != NULL) part->next->previous = part->previous;
    part->previous = part->next = NULL;
    *part_p = part;
    return ZB_OK;
}

static zb_status sim_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    (void)stream; /* the host itself moves the data, and goes on when that is done */
    sim_member *member = member_of(comm);
    sim_part *part = NULL;
    ZB_TRY(check_caller(member));
    ZB_TRY(take_in_flight(member, work, &part));
    /* Others may be reading this rank's counts: wait for the operation even when the stream has failed. */
    zb_status stream_status = wait_for_stream(&part->call);
    pthread_mutex_lock(&member->rank->sim->lock);
    zb_status status = finish(part);
    pthread_mutex_unlock(&member->rank->sim->lock);
    return status != ZB_OK ? status : stream_status;
}

/* --- split and destroy --- */

static zb_status sim_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    int color_key[2] = { color, key };
    zb_comm *part_of = NULL;
    zb_collective call = { .kind = (zb_collective_kind)ZB_CALL_SPLIT, .send = color_key, .recv = &part_of };
    ZB_TRY(run_blocking(member_of(comm), &call));
    *out = part_of;
    return ZB_OK;
}

static void report_destroyed_in_flight(sim_member *member)
{
    for (sim_part *part = member->rank->in_flight; part != NULL; part = part->next) {
        if (part->member != member) continue;
        char call[512], report[ZB_ERROR_MESSAGE_BYTES];
        sim_describe_part(part, call, sizeof call);
        snprintf(report, sizeof report, "communicator destroyed without waiting for %s", call);
        sim_break(member->rank->sim, member->rank, ZB_INVALID_ARGUMENT, report);
    }
}

/* The world's communicators belong to the world: nothing happens to them here. */
static void sim_destroy(zb_comm *comm)
{
    sim_member *member = member_of(comm);
    sim_group *group = member->group;
    zb_sim *sim = group->sim;
    if (group == sim->world) return;
    pthread_mutex_lock(&sim->lock);
    report_destroyed_in_flight(member);
    if (member->rank->place.group == group) member->rank->place.group = NULL;
    if (--group->member_count_left == 0) sim_group_destroy(group);
    pthread_mutex_unlock(&sim->lock);
}

static void sim_fail(zb_comm *comm, zb_status status, const char *message)
{
    sim_rank *rank = member_of(comm)->rank;
    pthread_mutex_lock(&rank->sim->lock);
    sim_break(rank->sim, rank, status, message);
    pthread_mutex_unlock(&rank->sim->lock);
}

const zb_comm_ops sim_comm_ops = {
    .name = "sim",
    .start = sim_start,
    .wait = sim_wait,
    .split = sim_split,
    .fail = sim_fail,
    .destroy = sim_destroy,
};
