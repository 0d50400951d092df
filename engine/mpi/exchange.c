/*
 * How data moves. Each rank looks after a share of the buffer and goes through it in rounds:
 *
 *                   collecting: to the owner          in between   delivering: from the owner
 *   all_reduce      everybody's contribution          it reduces   to everybody
 *   reduce          everybody's contribution          it reduces   to the root
 *   reduce_scatter  everybody's contribution          it reduces
 *   all_gather                                                     to everybody
 *   broadcast       from the root                                  to everybody else
 *   all_to_all      everybody's block for it
 *
 * Contributions wait in scratch memory of bounded size, everything else arrives where it belongs. A round
 * ends before the next one begins, and collecting before delivering: a result received in place never meets a
 * contribution that is still being sent.
 */
#include "engine/mpi/world.h"

#include <string.h>

#include "kernels/kernels.h"
#include "orders/signature.h"

enum {
    SCRATCH_BYTES = 4 << 20,         /* of one reduction */
    SLOT_BYTES_MIN = 16 << 10,       /* of it for each rank, in large groups */
    SMALL_BROADCAST_BYTES = 16 << 10 /* goes straight from the root */
};

/* --- planning --- */

static void share_evenly(mpi_op *op)
{
    const size_t n = (size_t)op->group->base.world_size, numel = op->call.numel;
    for (size_t r = 0; r <= n; r++) op->firsts[r] = numel / n * r + (r < numel % n ? r : numel % n);
}

static void share_blocks(mpi_op *op)
{
    const size_t n = (size_t)op->group->base.world_size;
    op->firsts[0] = 0;
    for (size_t r = 0; r < n; r++)
        op->firsts[r + 1] = op->firsts[r] + (op->call.counts != NULL ? op->call.counts[r] : op->call.numel);
}

static void share_to_root(mpi_op *op)
{
    for (int r = 0; r <= op->group->base.world_size; r++)
        op->firsts[r] = r <= op->call.root ? 0 : op->call.numel;
}

static void share(mpi_op *op)
{
    const size_t bytes = op->call.numel * zb_dtype_bytes(op->call.dtype);
    switch ((int)op->call.kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
    case ZB_COLLECTIVE_REDUCE:
        share_evenly(op);
        break;
    case ZB_COLLECTIVE_BROADCAST:
        if (bytes <= SMALL_BROADCAST_BYTES)
            share_to_root(op);
        else
            share_evenly(op);
        break;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        share_blocks(op);
        break;
    default:
        op->call.counts = NULL; /* nobody else's */
        share_blocks(op);
    }
}

static size_t largest_share(const mpi_op *op)
{
    size_t largest = 0;
    for (int r = 0; r < op->group->base.world_size; r++)
        if (op->firsts[r + 1] - op->firsts[r] > largest) largest = op->firsts[r + 1] - op->firsts[r];
    return largest;
}

/* The same on all ranks: it follows from what they have agreed upon. */
static size_t slot_bytes_max(const mpi_op *op)
{
    const size_t message = op->group->world->message_bytes_max, n = (size_t)op->group->base.world_size;
    if (!zb_call_is_reduction((int)op->call.kind)) return message;
    const size_t slot = SCRATCH_BYTES / n > SLOT_BYTES_MIN ? SCRATCH_BYTES / n : SLOT_BYTES_MIN;
    return slot < message ? slot : message;
}

static void plan_rounds(mpi_op *op, size_t numel)
{
    const size_t slot = slot_bytes_max(op) / zb_dtype_bytes(op->call.dtype);
    op->slot_numel = numel < slot ? numel : slot;
    op->rounds = numel > 0 ? (numel + op->slot_numel - 1) / op->slot_numel : 0;
}

static zb_status plan_reduction(mpi_op *op)
{
    mpi_group *group = op->group;
    const size_t n = (size_t)group->base.world_size;
    ZB_TRY(zb_reduction_of_collective(&group->reductions, &op->call, group->base.world_size, &op->reduction));
    if (op->agrees_only) return zb_mpi_native_prepare(op);
    if (n == 1 || op->rounds == 0) return ZB_OK;
    const size_t bytes = n * op->slot_numel * zb_dtype_bytes(op->call.dtype);
    return zb_mpi_scratch_take(group->world, bytes, &op->scratch);
}

zb_status zb_mpi_plan(mpi_op *op)
{
    const int kind = (int)op->call.kind;
    if (kind == ZB_COLLECTIVE_BARRIER || kind == ZB_CALL_SPLIT) return ZB_OK;
    if (zb_call_is_pair(kind)) {
        plan_rounds(op, op->call.numel);
        /* An empty message, too, waits for the other side; with a comparison it has done so already. */
        if (op->group->world->unchecked && op->rounds == 0) op->rounds = 1;
        return ZB_OK;
    }
    share(op);
    plan_rounds(op, largest_share(op));
    return zb_call_is_reduction(kind) ? plan_reduction(op) : ZB_OK;
}

/* --- messages --- */

static int tag_of(const mpi_op *op, tag_kind kind)
{
    const int count = op->group->tag_count;
    return (int)kind * count + (int)(op->sequence % (uint64_t)count);
}

zb_status zb_mpi_post_send(mpi_op *op, tag_kind kind, const void *data, size_t bytes, int to, int synchronous)
{
    MPI_Request *request = &op->requests[op->request_count];
    const int tag = tag_of(op, kind), count = (int)bytes;
    if (synchronous)
        MPI_TRY(MPI_Issend(data, count, MPI_BYTE, to, tag, op->group->messages, request));
    else
        MPI_TRY(MPI_Isend(data, count, MPI_BYTE, to, tag, op->group->messages, request));
    op->request_count++;
    return ZB_OK;
}

zb_status zb_mpi_post_receive(mpi_op *op, tag_kind kind, void *data, size_t bytes, int from)
{
    MPI_TRY(MPI_Irecv(data, (int)bytes, MPI_BYTE, from, tag_of(op, kind), op->group->messages,
                      &op->requests[op->request_count]));
    op->request_count++;
    return ZB_OK;
}

/* --- pieces --- */

/* What rank `owner` looks after in this round. */
typedef struct piece {
    size_t first, bytes; /* an element; bytes from it on */
} piece;

static size_t element_bytes(const mpi_op *op)
{
    return zb_dtype_bytes(op->call.dtype);
}

static piece piece_between(const mpi_op *op, size_t first, size_t end)
{
    const size_t at = first + op->round * op->slot_numel;
    if (at >= end) return (piece){ end, 0 };
    const size_t left = end - at, numel = left < op->slot_numel ? left : op->slot_numel;
    return (piece){ at, numel * element_bytes(op) };
}

static piece piece_of(const mpi_op *op, int owner)
{
    return piece_between(op, op->firsts[owner], op->firsts[owner + 1]);
}

static const char *send_at(const mpi_op *op, size_t element)
{
    const void *send = op->call.kind == ZB_COLLECTIVE_BROADCAST ? op->call.recv : op->call.send;
    return (const char *)send + element * element_bytes(op);
}

static char *recv_at(const mpi_op *op, size_t element)
{
    return (char *)op->call.recv + element * element_bytes(op);
}

static unsigned char *slot_of(const mpi_op *op, int rank)
{
    return op->scratch + (size_t)rank * op->slot_numel * element_bytes(op);
}

static int is_root(const mpi_op *op, int rank)
{
    return rank == op->call.root;
}

/* --- collecting --- */

static void copy(void *to, const void *from, size_t bytes)
{
    if (bytes > 0 && to != from) memcpy(to, from, bytes);
}

/* What a rank has for itself. */
static void copy_own(const mpi_op *op)
{
    const size_t me = (size_t)op->group->base.rank, numel = op->call.numel;
    if (op->call.kind == ZB_COLLECTIVE_ALL_GATHER)
        copy(recv_at(op, me * numel), op->call.send, numel * element_bytes(op));
    if (op->call.kind == ZB_COLLECTIVE_ALL_TO_ALL)
        copy(recv_at(op, me * numel), send_at(op, me * numel), numel * element_bytes(op));
}

static int contributes(const mpi_op *op, int rank)
{
    if (op->call.kind == ZB_COLLECTIVE_ALL_GATHER) return 0;
    return op->call.kind != ZB_COLLECTIVE_BROADCAST || is_root(op, rank);
}

static zb_status collect_from(mpi_op *op, int from)
{
    const int me = op->group->base.rank, exchange = op->call.kind == ZB_COLLECTIVE_ALL_TO_ALL;
    const piece in = piece_of(op, exchange ? from : me);
    if (!contributes(op, from) || in.bytes == 0) return ZB_OK;
    void *to = op->scratch != NULL ? (void *)slot_of(op, from) : (void *)recv_at(op, in.first);
    return zb_mpi_post_receive(op, TAG_COLLECT, to, in.bytes, from);
}

static zb_status contribute_to(mpi_op *op, int owner)
{
    const piece out = piece_of(op, owner);
    if (!contributes(op, op->group->base.rank) || out.bytes == 0) return ZB_OK;
    return zb_mpi_post_send(op, TAG_COLLECT, send_at(op, out.first), out.bytes, owner, 0);
}

static zb_status move_message(mpi_op *op)
{
    const piece part = piece_between(op, 0, op->call.numel);
    if (op->call.kind == ZB_COLLECTIVE_RECV)
        return zb_mpi_post_receive(op, TAG_MESSAGE, recv_at(op, part.first), part.bytes, op->call.root);
    return zb_mpi_post_send(op, TAG_MESSAGE, send_at(op, part.first), part.bytes, op->call.root,
                            op->group->world->unchecked);
}

zb_status zb_mpi_collect(mpi_op *op)
{
    const int n = op->group->base.world_size, me = op->group->base.rank;
    op->state = OP_COLLECTING;
    if (zb_call_is_pair((int)op->call.kind)) return move_message(op);
    if (op->round == 0) copy_own(op);
    for (int step = 1; step < n; step++) {
        ZB_TRY(collect_from(op, (me + n - step) % n));
        ZB_TRY(contribute_to(op, (me + step) % n));
    }
    return ZB_OK;
}

/* --- reducing --- */

/* Where this rank's part of the result goes. */
static void *result_at(const mpi_op *op, const piece *own)
{
    const int me = op->group->base.rank;
    switch ((int)op->call.kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
        return recv_at(op, own->first);
    case ZB_COLLECTIVE_REDUCE:
        return is_root(op, me) ? (void *)recv_at(op, own->first) : (void *)slot_of(op, me);
    default: /* a rank receives its own share only */
        return recv_at(op, own->first - op->firsts[me]);
    }
}

static zb_status reduce(mpi_op *op, const piece *own)
{
    const int n = op->group->base.world_size, me = op->group->base.rank;
    const size_t element = element_bytes(op), numel = own->bytes / element;
    /* A record counts elements from the beginning of contributions, of which only a piece is here. */
    const size_t skipped = op->reduction != NULL ? own->first * element : 0;
    for (int r = 0; r < n; r++) {
        const char *from = r == me ? send_at(op, own->first) : (const char *)slot_of(op, r);
        op->inputs[r] = (const void *)((uintptr_t)from - skipped);
    }
    void *out = result_at(op, own);
    if (op->reduction != NULL) return zb_reduction_run(op->reduction, op->inputs, own->first, numel, out);
    return zb_cpu_ordered_reduce(&(zb_ordered_reduce_args){ .inputs = op->inputs,
                                                            .count = n,
                                                            .out = out,
                                                            .numel = numel,
                                                            .dtype = op->call.dtype,
                                                            .op = op->call.op,
                                                            .factor = op->call.factor });
}

/* --- delivering --- */

static int receives_from_owners(const mpi_op *op, int rank)
{
    switch ((int)op->call.kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
    case ZB_COLLECTIVE_ALL_GATHER:
        return 1;
    case ZB_COLLECTIVE_REDUCE:
        return is_root(op, rank);
    case ZB_COLLECTIVE_BROADCAST:
        return !is_root(op, rank);
    default:
        return 0;
    }
}

static const void *delivered_from(const mpi_op *op, const piece *own)
{
    if (op->call.kind == ZB_COLLECTIVE_ALL_GATHER)
        return send_at(op, own->first - op->firsts[op->group->base.rank]);
    return zb_call_is_reduction((int)op->call.kind) ? result_at(op, own) : recv_at(op, own->first);
}

static zb_status deliver_to(mpi_op *op, const piece *own, int rank)
{
    if (!receives_from_owners(op, rank) || own->bytes == 0) return ZB_OK;
    return zb_mpi_post_send(op, TAG_DELIVER, delivered_from(op, own), own->bytes, rank, 0);
}

static zb_status receive_from(mpi_op *op, int owner)
{
    const piece in = piece_of(op, owner);
    if (!receives_from_owners(op, op->group->base.rank) || in.bytes == 0) return ZB_OK;
    return zb_mpi_post_receive(op, TAG_DELIVER, recv_at(op, in.first), in.bytes, owner);
}

zb_status zb_mpi_deliver(mpi_op *op)
{
    const int n = op->group->base.world_size, me = op->group->base.rank;
    op->state = OP_DELIVERING;
    if (zb_call_is_pair((int)op->call.kind)) return ZB_OK;
    const piece own = piece_of(op, me);
    if (zb_call_is_reduction((int)op->call.kind) && own.bytes > 0) ZB_TRY(reduce(op, &own));
    for (int step = 1; step < n; step++) {
        ZB_TRY(receive_from(op, (me + n - step) % n));
        ZB_TRY(deliver_to(op, &own, (me + step) % n));
    }
    return ZB_OK;
}
