/*
 * Calls meet before anything is queued: every rank of a group sends its own to all others, and each compares
 * all of them with that of the group's first rank, so that all come to the same report. A message has two
 * ranks, which show each other their calls; its bytes follow once the receiver has come.
 */
#include "engine/nccl/world.h"

#include <string.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>

void zb_nccl_describe(const nccl_op *op, char *text, size_t text_bytes)
{
    zb_call_record_describe(&op->record, op->group->name, text, text_bytes);
}

/* --- collectives --- */

static size_t counts_bytes(const nccl_op *op)
{
    const size_t n = (size_t)op->group->base.world_size;
    return op->call.kind == ZB_COLLECTIVE_REDUCE_SCATTER_V ? n * sizeof(size_t) : 0;
}

/* This rank's call: the record, and after it the counts, which are NULL where there are none. */
typedef struct spoken {
    zb_call_record record;
    size_t counts[];
} spoken;
_Static_assert(sizeof(zb_call_record) % sizeof(size_t) == 0, "counts follow a record");

static zb_status say_call(nccl_op *op, spoken **mine_p)
{
    const nccl_group *group = op->group;
    const size_t counts = counts_bytes(op), bytes = sizeof(spoken) + counts;
    spoken *mine = zb_alloc(bytes);
    zb_status status = ZB_OK;
    if (mine == NULL) return ZB_NO_MEMORY;
    mine->record = op->record;
    if (counts > 0) memcpy(mine->counts, op->call.counts, counts);
    for (int r = 0; r < group->base.world_size && status == ZB_OK; r++)
        if (r != group->base.rank)
            status = zb_control_send(group->world->control, group->world_ranks[r], FRAME_CALL, group->id,
                                     op->sequence, mine, bytes);
    if (status == ZB_OK)
        *mine_p = mine;
    else
        zb_free(mine);
    return status;
}

/* Whether a call that has come has counts where it should: where kinds differ it has not, and need not. */
static const size_t *counts_of(const nccl_op *op, const frame *f)
{
    return f->bytes == sizeof(spoken) + counts_bytes(op) ? ((const spoken *)f->body)->counts : NULL;
}

static zb_status compare(const nccl_op *op, frame *const *heard, const spoken *mine)
{
    const nccl_group *group = op->group;
    const int n = group->base.world_size, me = group->base.rank;
    const spoken *first = me == 0 ? mine : (const spoken *)heard[0]->body;
    const size_t *first_counts = me == 0 ? mine->counts : counts_of(op, heard[0]);
    for (int r = 1; r < n; r++) {
        const spoken *other = r == me ? mine : (const spoken *)heard[r]->body;
        const size_t *counts = r == me ? mine->counts : counts_of(op, heard[r]);
        const int same_kind = first->record.kind == other->record.kind;
        if (same_kind && first->record.kind == ZB_COLLECTIVE_REDUCE_SCATTER_V &&
            (first_counts == NULL || counts == NULL))
            return zb_fail(ZB_INTERNAL, "a call of rank %d has come without its counts",
                           group->world_ranks[r]);
        ZB_TRY(zb_call_record_compare(&first->record, first_counts, &other->record, counts, n, group->name));
    }
    return ZB_OK;
}

static zb_status hear_calls(nccl_op *op, frame **heard)
{
    const nccl_group *group = op->group;
    nccl_world *world = group->world;
    nccl_wait wait = zb_nccl_begin_wait(group, op, "for other ranks");
    wait.for_frames = 1;
    for (int missing = group->base.world_size - 1; missing > 0;) {
        for (int r = 0; r < group->base.world_size; r++) {
            const int rank = group->world_ranks[r];
            if (r == group->base.rank || heard[r] != NULL) continue;
            heard[r] = zb_control_take(world->control, rank, FRAME_CALL, group->id, op->sequence);
            if (heard[r] == NULL) {
                ZB_TRY(zb_nccl_need(op, rank));
                continue;
            }
            if (heard[r]->bytes < sizeof(spoken))
                return zb_fail(ZB_INTERNAL, "rank %d has sent a call of %zu bytes", rank, heard[r]->bytes);
            world->last_calls[rank] = ((const spoken *)heard[r]->body)->record;
            world->has_called[rank] = 1;
            op->came[r] = 1;
            missing--;
        }
        if (missing > 0) ZB_TRY(zb_nccl_pause(&wait));
    }
    return ZB_OK;
}

zb_status zb_nccl_meet_all(nccl_op *op, zb_call_record *calls)
{
    const nccl_group *group = op->group;
    const int n = group->base.world_size;
    spoken *mine = NULL;
    if (calls != NULL) calls[group->base.rank] = op->record;
    if (n == 1) return ZB_OK;
    frame **heard = zb_alloc_array((size_t)n, sizeof *heard);
    if (heard == NULL) return ZB_NO_MEMORY;
    zb_status status = say_call(op, &mine);
    if (status == ZB_OK) status = hear_calls(op, heard);
    if (status == ZB_OK) status = compare(op, heard, mine);
    for (int r = 0; r < n; r++) {
        if (status == ZB_OK && calls != NULL && heard[r] != NULL)
            calls[r] = ((const spoken *)heard[r]->body)->record;
        zb_free(heard[r]);
    }
    zb_free(heard);
    zb_free(mine);
    return status;
}

/* --- messages --- */

static int receives(const nccl_op *op)
{
    return op->call.kind == ZB_COLLECTIVE_RECV;
}

static int peer_of(const nccl_op *op)
{
    return op->group->world_ranks[op->call.root];
}

/* The bytes of device memory are brought to the host first, and taken back at the end. */
static zb_status hold(nccl_op *op)
{
    nccl_world *world = op->group->world;
    if (op->call.stream == NULL) {
        op->host = receives(op) ? op->call.recv : (unsigned char *)(uintptr_t)op->call.send;
        return ZB_OK;
    }
    op->held = op->host = zb_alloc(op->bytes);
    if (op->held == NULL) return ZB_NO_MEMORY;
    CUDA_TRY(cudaSetDevice(world->ordinal));
    CUDA_TRY(cudaEventRecord(op->ready, zb_cuda_stream(op->call.stream)));
    if (receives(op) || op->bytes == 0) return ZB_OK;
    ZB_TRY(zb_nccl_await_event(op, op->ready, "for the buffer to be ready"));
    ZB_TRY(zb_copy_out(world->copies, op->held, op->call.send, op->bytes));
    return zb_stream_wait_idle(world->copies);
}

zb_status zb_nccl_begin_message(nccl_op *op)
{
    const nccl_group *group = op->group;
    op->bytes = op->call.numel * zb_dtype_bytes(op->call.dtype);
    ZB_TRY(hold(op));
    op->begun = 1;
    return zb_control_send(group->world->control, peer_of(op), receives(op) ? FRAME_RECV : FRAME_SEND,
                           group->id, op->sequence, &op->record, sizeof op->record);
}

static zb_status compare_message(nccl_op *op, const frame *f)
{
    zb_call_record other;
    if (f->bytes != sizeof other)
        return zb_fail(ZB_INTERNAL, "rank %d has sent a call of %zu bytes", f->from, f->bytes);
    memcpy(&other, f->body, sizeof other);
    const zb_call_record *sends = receives(op) ? &other : &op->record;
    const zb_call_record *takes = receives(op) ? &op->record : &other;
    return zb_call_record_compare(sends, NULL, takes, NULL, 0, op->group->name);
}

static zb_status meet_peer(nccl_op *op, int *moved_p)
{
    const nccl_group *group = op->group;
    frame *f = zb_control_take(group->world->control, peer_of(op), receives(op) ? FRAME_SEND : FRAME_RECV,
                               group->id, op->sequence);
    if (f == NULL) return zb_nccl_need(op, peer_of(op));
    const zb_status status = compare_message(op, f);
    zb_free(f);
    op->peer_came = 1;
    *moved_p = 1;
    return status;
}

/* No more than a few pieces wait to be sent, so that a message of any size holds little memory. */
static zb_status send_pieces(nccl_op *op, int *moved_p)
{
    enum { UNSENT_MAX = 4 * FRAME_BYTES_MAX };
    nccl_control *control = op->group->world->control;
    while (op->moved_bytes < op->bytes && zb_control_unsent(control, peer_of(op)) < UNSENT_MAX) {
        const size_t left = op->bytes - op->moved_bytes,
                     bytes = left < FRAME_BYTES_MAX ? left : FRAME_BYTES_MAX;
        ZB_TRY(zb_control_send(control, peer_of(op), FRAME_PAYLOAD, op->group->id, op->sequence,
                               op->host + op->moved_bytes, bytes));
        op->moved_bytes += bytes;
        *moved_p = 1;
    }
    return ZB_OK;
}

static zb_status take_pieces(nccl_op *op, int *moved_p)
{
    frame *f;
    while (op->moved_bytes < op->bytes &&
           (f = zb_control_take(op->group->world->control, peer_of(op), FRAME_PAYLOAD, op->group->id,
                                op->sequence)) != NULL) {
        const size_t left = op->bytes - op->moved_bytes, bytes = f->bytes;
        if (bytes <= left) memcpy(op->host + op->moved_bytes, f->body, bytes);
        zb_free(f);
        if (bytes > left)
            return zb_fail(ZB_INTERNAL, "rank %d has sent %zu bytes more than it said", peer_of(op),
                           bytes - left);
        op->moved_bytes += bytes;
        *moved_p = 1;
    }
    return ZB_OK;
}

static zb_status move_message(nccl_op *op, int *moved_p)
{
    if (!op->peer_came) ZB_TRY(meet_peer(op, moved_p));
    if (!op->peer_came) return ZB_OK;
    ZB_TRY(receives(op) ? take_pieces(op, moved_p) : send_pieces(op, moved_p));
    op->complete = op->moved_bytes == op->bytes;
    return ZB_OK;
}

zb_status zb_nccl_move_messages(nccl_world *world, int *moved_p)
{
    *moved_p = 0;
    for (nccl_op *op = world->first; op != NULL; op = op->next) {
        if (!op->begun || op->complete) continue;
        const zb_status status = move_message(op, moved_p);
        if (status != ZB_OK) return zb_nccl_settle(world, op, status);
    }
    return ZB_OK;
}

/* --- the end of a message --- */

static zb_status give_back(nccl_op *op)
{
    nccl_world *world = op->group->world;
    if (op->call.stream == NULL || !receives(op) || op->bytes == 0) return ZB_OK;
    /* What was queued on the call's stream before may still use the buffer. */
    ZB_TRY(zb_nccl_await_event(op, op->ready, "for the buffer to be ready"));
    ZB_TRY(zb_copy_in(world->copies, op->call.recv, op->held, op->bytes));
    return zb_stream_wait_idle(world->copies);
}

zb_status zb_nccl_finish_message(nccl_op *op)
{
    nccl_wait wait = zb_nccl_begin_wait(op->group, op, "for the other rank");
    wait.for_frames = 1;
    while (!op->complete) ZB_TRY(zb_nccl_pause(&wait));
    return give_back(op);
}
