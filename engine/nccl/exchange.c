/*
 * The work of a collective, queued on the group's stream. A reduction that zerobit adds: each rank looks
 * after a share of the buffer and goes through it in rounds. NCCL moves, kernels of the device's add:
 *
 *                   collecting: to the owner      in between      delivering: from the owner
 *   all_reduce      everybody's contribution      the kernel      to everybody
 *   reduce          everybody's contribution      the kernel      to the root
 *   reduce_scatter  everybody's contribution      the kernel
 *
 * Contributions wait in scratch memory of bounded size. Both steps of a round are groups of ncclSend and
 * ncclRecv, and the stream keeps rounds and steps apart: a result received in place never meets a
 * contribution that is still sent. What is only moved goes by NCCL's own collective, or by one group.
 */
#include "engine/nccl/world.h"

#include <zerobit/cuda.h>

enum { SLOT_ALIGN = 64 };

/* A reduction under way. */
typedef struct reduction_move {
    nccl_op *op;
    const char *send;
    char *recv;
    const zb_reduction *reduction; /* NULL: in rank order, or minimum and maximum */
    size_t element, slot_numel, round, rounds;
} reduction_move;

static cudaStream_t stream_of(const nccl_op *op)
{
    return zb_cuda_stream(op->group->stream);
}

void zb_nccl_extent(const nccl_op *op, size_t *send_bytes, size_t *recv_bytes)
{
    const zb_collective *c = &op->call;
    const nccl_group *group = op->group;
    const size_t n = (size_t)group->base.world_size, one = c->numel * zb_dtype_bytes(c->dtype);
    size_t counted = 0;
    *send_bytes = *recv_bytes = one;
    switch ((int)c->kind) {
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        *send_bytes = n * one;
        break;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        for (size_t r = 0; r < n; r++) counted += c->counts[r];
        *send_bytes = counted * zb_dtype_bytes(c->dtype);
        *recv_bytes = c->counts[group->base.rank] * zb_dtype_bytes(c->dtype);
        break;
    case ZB_COLLECTIVE_ALL_GATHER:
        *recv_bytes = n * one;
        break;
    case ZB_COLLECTIVE_ALL_TO_ALL:
        *send_bytes = *recv_bytes = n * one;
        break;
    case ZB_COLLECTIVE_BROADCAST:
        *send_bytes = 0;
        break;
    case ZB_COLLECTIVE_REDUCE:
        if (group->base.rank != c->root) *recv_bytes = 0;
        break;
    default:
        break;
    }
}

static zb_status copy_on_device(const nccl_op *op, void *to, const void *from, size_t bytes)
{
    if (to == from || bytes == 0) return ZB_OK;
    return zb_launch_copy(op->group->stream, &(zb_copy_args){ .to = to, .from = from, .bytes = bytes });
}

/* --- shares and rounds --- */

static void share_evenly(const nccl_op *op)
{
    const size_t n = (size_t)op->group->base.world_size, numel = op->call.numel;
    for (size_t r = 0; r <= n; r++) op->group->firsts[r] = numel / n * r + (r < numel % n ? r : numel % n);
}

static void share_blocks(const nccl_op *op)
{
    const size_t n = (size_t)op->group->base.world_size;
    const int counted = op->call.kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    op->group->firsts[0] = 0;
    for (size_t r = 0; r < n; r++)
        op->group->firsts[r + 1] = op->group->firsts[r] + (counted ? op->call.counts[r] : op->call.numel);
}

static int scatters(const nccl_op *op)
{
    return op->call.kind == ZB_COLLECTIVE_REDUCE_SCATTER || op->call.kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
}

static size_t largest_share(const nccl_group *group)
{
    size_t largest = 0;
    for (int r = 0; r < group->base.world_size; r++)
        if (group->firsts[r + 1] - group->firsts[r] > largest)
            largest = group->firsts[r + 1] - group->firsts[r];
    return largest;
}

/* The same on all ranks: it follows from what they have agreed upon. */
static zb_status plan_rounds(reduction_move *m)
{
    nccl_group *group = m->op->group;
    const size_t slot_bytes = group->world->scratch_bytes / (size_t)group->base.world_size / SLOT_ALIGN *
                              SLOT_ALIGN;
    const size_t numel = largest_share(group);
    m->slot_numel = slot_bytes / m->element;
    m->rounds = numel > 0 ? (numel + m->slot_numel - 1) / m->slot_numel : 0;
    if (group->scratch != NULL || m->rounds == 0) return ZB_OK;
    return zb_nccl_device_alloc(group->world, group->world->scratch_bytes, &group->scratch);
}

/* What rank `owner` looks after in this round. */
typedef struct piece {
    size_t first, numel;
} piece;

static piece piece_of(const reduction_move *m, int owner)
{
    const size_t *firsts = m->op->group->firsts, at = firsts[owner] + m->round * m->slot_numel,
                 end = firsts[owner + 1];
    if (at >= end) return (piece){ end, 0 };
    return (piece){ at, end - at < m->slot_numel ? end - at : m->slot_numel };
}

static char *slot_of(const reduction_move *m, int rank)
{
    return (char *)m->op->group->scratch + (size_t)rank * m->slot_numel * m->element;
}

/* --- NCCL's part --- */

/* What a call inside a group has answered. It is looked into when the group has ended: that may come to
 * aborting the communicator, which NCCL cannot do before. */
typedef struct answer {
    ncclResult_t code;
    const char *call;
} answer;

static answer answer_of(ncclResult_t code, const char *call)
{
    return (answer){ code == ncclInProgress ? ncclSuccess : code, call };
}

#define GROUP_TRY(expression)                                                                                \
    do {                                                                                                     \
        const answer answer_ = (expression);                                                                 \
        if (answer_.code != ncclSuccess) return answer_;                                                     \
    } while (0)

static answer send_bytes_to(const nccl_op *op, const void *from, size_t bytes, int to)
{
    const ncclComm_t comm = op->group->comm;
    return answer_of(bytes > 0 ? ncclSend(from, bytes, ncclUint8, to, comm, stream_of(op)) : ncclSuccess,
                     "ncclSend");
}

static answer receive_bytes_from(const nccl_op *op, void *to, size_t bytes, int from)
{
    const ncclComm_t comm = op->group->comm;
    return answer_of(bytes > 0 ? ncclRecv(to, bytes, ncclUint8, from, comm, stream_of(op)) : ncclSuccess,
                     "ncclRecv");
}

typedef answer transfers(void *user);

/* A group that has been started is ended, whatever happens in it: the library would count it open otherwise.
 */
static zb_status in_group(const nccl_group *group, transfers *run, void *user)
{
    NCCL_TRY(group, ncclGroupStart());
    const answer answered = run(user);
    const ncclResult_t ended = ncclGroupEnd();
    ZB_TRY(zb_nccl_check(group, answered.code, answered.call));
    return zb_nccl_check(group, ended, "ncclGroupEnd");
}

static answer collect(void *user)
{
    const reduction_move *m = user;
    const int n = m->op->group->base.world_size, me = m->op->group->base.rank;
    const piece own = piece_of(m, me);
    for (int step = 1; step < n; step++) {
        const int from = (me + n - step) % n, to = (me + step) % n;
        const piece out = piece_of(m, to);
        GROUP_TRY(receive_bytes_from(m->op, slot_of(m, from), own.numel * m->element, from));
        GROUP_TRY(send_bytes_to(m->op, m->send + out.first * m->element, out.numel * m->element, to));
    }
    return answer_of(ncclSuccess, NULL);
}

/* Where this rank's part of the result goes. */
static char *result_at(const reduction_move *m, const piece *own)
{
    const nccl_group *group = m->op->group;
    const int me = group->base.rank;
    if (scatters(m->op)) return m->recv + (own->first - group->firsts[me]) * m->element;
    if (m->op->call.kind == ZB_COLLECTIVE_REDUCE && me != m->op->call.root) return slot_of(m, me);
    return m->recv + own->first * m->element;
}

static int gets_result(const nccl_op *op, int rank)
{
    return op->call.kind == ZB_COLLECTIVE_ALL_REDUCE ||
           (op->call.kind == ZB_COLLECTIVE_REDUCE && rank == op->call.root);
}

static answer deliver(void *user)
{
    const reduction_move *m = user;
    const int n = m->op->group->base.world_size, me = m->op->group->base.rank;
    const piece own = piece_of(m, me);
    for (int step = 1; step < n; step++) {
        const int from = (me + n - step) % n, to = (me + step) % n;
        const piece in = piece_of(m, from);
        if (gets_result(m->op, me))
            GROUP_TRY(
                receive_bytes_from(m->op, m->recv + in.first * m->element, in.numel * m->element, from));
        if (gets_result(m->op, to))
            GROUP_TRY(send_bytes_to(m->op, result_at(m, &own), own.numel * m->element, to));
    }
    return answer_of(ncclSuccess, NULL);
}

/* --- the kernels' part --- */

/*
 * The record counts elements from the beginning of contributions, of which only a piece is here. All that a
 * sum asks is how far behind the beginning of their range its elements are, so both are counted from the
 * piece, modulo 2^64 where the range began before it.
 */
static zb_status reduce_by_record(const reduction_move *m, const piece *own, char *out)
{
    const zb_reduction *record = m->reduction;
    const zb_reduction_range *range = zb_reduction_range_of(record, own->first);
    const size_t end = own->first + own->numel, n = (size_t)record->world_size;
    for (size_t at = own->first; at < end; range++) {
        const size_t range_end = range->first + range->numel, stop = range_end < end ? range_end : end;
        const zb_tree_reduce_args args = { .inputs = m->op->group->inputs,
                                           .count = record->world_size,
                                           .tree = zb_reduction_tree(record, range),
                                           .order = record->orders + (size_t)range->order * n,
                                           .start = range->start,
                                           .range_first = range->first - own->first,
                                           .first = at - own->first,
                                           .numel = stop - at,
                                           .out = out + (at - own->first) * m->element,
                                           .dtype = record->dtype,
                                           .rounding = record->rounding };
        ZB_TRY(zb_launch_tree_reduce(m->op->group->stream, &args));
        at = stop;
    }
    return ZB_OK;
}

static zb_status reduce(const reduction_move *m)
{
    nccl_group *group = m->op->group;
    const zb_collective *c = &m->op->call;
    const int n = group->base.world_size, me = group->base.rank;
    const piece own = piece_of(m, me);
    if (own.numel == 0) return ZB_OK;
    for (int r = 0; r < n; r++) group->inputs[r] = r == me ? m->send + own.first * m->element : slot_of(m, r);
    char *out = result_at(m, &own);
    if (m->reduction != NULL) return reduce_by_record(m, &own, out);
    return zb_launch_ordered_reduce(group->stream, &(zb_ordered_reduce_args){ .inputs = group->inputs,
                                                                              .count = n,
                                                                              .out = out,
                                                                              .numel = own.numel,
                                                                              .dtype = c->dtype,
                                                                              .op = c->op,
                                                                              .factor = c->factor });
}

static zb_status queue_reduction(nccl_op *op, const zb_reduction *reduction, const void *send, void *recv)
{
    nccl_group *group = op->group;
    reduction_move m = { .op = op,
                         .send = send,
                         .recv = recv,
                         .reduction = reduction,
                         .element = zb_dtype_bytes(op->call.dtype) };
    if (scatters(op))
        share_blocks(op);
    else
        share_evenly(op);
    ZB_TRY(plan_rounds(&m));
    for (; m.round < m.rounds; m.round++) {
        if (group->base.world_size > 1) ZB_TRY(in_group(group, collect, &m));
        ZB_TRY(reduce(&m));
        if (group->base.world_size > 1 && !scatters(op)) ZB_TRY(in_group(group, deliver, &m));
    }
    return ZB_OK;
}

/* --- what is only moved --- */

typedef struct exchange {
    nccl_op *op;
    const char *send;
    char *recv;
    size_t bytes; /* for each rank */
} exchange;

static answer exchange_all(void *user)
{
    const exchange *x = user;
    const int n = x->op->group->base.world_size, me = x->op->group->base.rank;
    for (int step = 1; step < n; step++) {
        const int from = (me + n - step) % n, to = (me + step) % n;
        GROUP_TRY(receive_bytes_from(x->op, x->recv + (size_t)from * x->bytes, x->bytes, from));
        GROUP_TRY(send_bytes_to(x->op, x->send + (size_t)to * x->bytes, x->bytes, to));
    }
    return answer_of(ncclSuccess, NULL);
}

static zb_status queue_exchange(nccl_op *op, const void *send, void *recv, size_t bytes)
{
    exchange x = { .op = op, .send = send, .recv = recv, .bytes = bytes };
    const size_t mine = (size_t)op->group->base.rank * bytes;
    ZB_TRY(copy_on_device(op, x.recv + mine, x.send + mine, bytes));
    return op->group->base.world_size > 1 ? in_group(op->group, exchange_all, &x) : ZB_OK;
}

static zb_status queue_gather(nccl_op *op, const void *send, void *recv, size_t bytes)
{
    const nccl_group *group = op->group;
    if (group->base.world_size == 1) return copy_on_device(op, recv, send, bytes);
    return zb_nccl_check(group, ncclAllGather(send, recv, bytes, ncclUint8, group->comm, stream_of(op)),
                         "ncclAllGather");
}

static zb_status queue_broadcast(nccl_op *op, void *recv, size_t bytes)
{
    const nccl_group *group = op->group;
    if (group->base.world_size == 1) return ZB_OK;
    return zb_nccl_check(
        group, ncclBroadcast(recv, recv, bytes, ncclUint8, op->call.root, group->comm, stream_of(op)),
        "ncclBroadcast");
}

/* --- */

zb_status zb_nccl_queue(nccl_op *op, const void *send, void *recv)
{
    nccl_group *group = op->group;
    const zb_collective *c = &op->call;
    const size_t bytes = c->numel * zb_dtype_bytes(c->dtype);
    const zb_reduction *reduction;
    if (zb_call_is_reduction((int)c->kind)) {
        ZB_TRY(zb_reduction_of_collective(&group->reductions, c, group->base.world_size, &reduction));
        return zb_nccl_native(&group->base, c) ? zb_nccl_native_queue(op, send, recv)
                                               : queue_reduction(op, reduction, send, recv);
    }
    if (bytes == 0) return ZB_OK;
    switch ((int)c->kind) {
    case ZB_COLLECTIVE_ALL_GATHER:
        return queue_gather(op, send, recv, bytes);
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return queue_exchange(op, send, recv, bytes);
    default:
        return queue_broadcast(op, recv, bytes);
    }
}
