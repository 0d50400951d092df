/*
 * Arithmetic and data movement of complete operations.
 *
 * all_gather, all_to_all, broadcast, send: contributions have been copied side by side into the operation's
 * result by their owners; each rank copies from there what it is to receive. Nothing is left to execute.
 *
 * Reductions: blocks of the result are computed from all ranks' inputs and handed out while they are in the
 * cache. Ranks that block let the others read and write their buffers; for asynchronous ones the input is a
 * copy, and the output waits in the operation's result until they ask for it.
 */
#include "sim/world.h"

#include <string.h>

#include "kernels/kernels.h"

enum { PARALLEL_BYTES_MIN = 1 << 20 }; /* of input; below, one rank does it all */

int sim_part_index(const sim_part *part)
{
    return (int)(part - part->op->parts);
}

static const void *input_of(const sim_part *part)
{
    return part->async ? part->staging : part->call.send;
}

static void copy(void *to, const void *from, size_t bytes)
{
    if (bytes > 0 && to != from) memcpy(to, from, bytes);
}

void *sim_contribution(const sim_part *part)
{
    const sim_op *op = part->op;
    int index = sim_part_index(part);
    size_t bytes = sim_send_bytes(&part->call, op->part_count, index);
    switch ((int)part->call.kind) {
    case ZB_COLLECTIVE_ALL_GATHER:
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return bytes > 0 ? (char *)op->result + (size_t)index * bytes : NULL;
    case ZB_COLLECTIVE_BROADCAST:
    case ZB_COLLECTIVE_SEND:
        return bytes > 0 ? op->result : NULL;
    default:
        return NULL;
    }
}

/* --- execution of reductions --- */

zb_status sim_plan(sim_op *op)
{
    const zb_collective *call = &op->parts[op->first].call;
    if ((int)call->kind == ZB_CALL_SPLIT) {
        op->chunk_count = 1;
        return ZB_OK;
    }
    op->numel = sim_reduced_numel(call, op->part_count);
    if (op->numel == 0) return ZB_OK;
    ZB_TRY(zb_reduction_of_collective(&op->group->reductions, call, op->part_count, &op->reduction));
    size_t element = zb_dtype_bytes(call->dtype), block = SIM_BLOCK_BYTES / element;
    size_t blocks = (op->numel + block - 1) / block;
    size_t workers = (size_t)op->group->sim->worker_count;
    /* Four chunks to a worker: one that comes late still finds something to do. */
    int parallel = workers > 1 && op->numel * element >= PARALLEL_BYTES_MIN / (size_t)op->part_count;
    size_t wanted = parallel ? 4 * workers : 1;
    op->chunk_numel = (blocks + wanted - 1) / wanted * block;
    op->chunk_count = (op->numel + op->chunk_numel - 1) / op->chunk_numel;
    return ZB_OK;
}

/* Where the elements of a reduce_scatter go: part `owner` has [first, first + numel) of them. */
typedef struct shard {
    int owner;
    size_t first, numel;
} shard;

static size_t shard_numel(const zb_collective *call, int owner)
{
    return call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V ? call->counts[owner] : call->numel;
}

static void shard_next(const zb_collective *call, shard *s)
{
    s->first += s->numel;
    s->numel = shard_numel(call, ++s->owner);
}

/* The first shard that reaches beyond element `at`, which exists. */
static shard shard_at(const zb_collective *call, size_t at)
{
    shard found = { 0, 0, shard_numel(call, 0) };
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER) {
        found.owner = (int)(at / call->numel);
        found.first = (size_t)found.owner * call->numel;
        return found;
    }
    while (found.first + found.numel <= at) shard_next(call, &found);
    return found;
}

/* With no rank asynchronous: the part that receives all of the block [at, at + numel), which needs no copy
 * then. -1: none. */
static int direct_receiver(const sim_op *op, const shard *at_shard, size_t at, size_t numel)
{
    const zb_collective *call = &op->parts[op->first].call;
    if (call->kind == ZB_COLLECTIVE_REDUCE) return call->root;
    if (call->kind == ZB_COLLECTIVE_ALL_REDUCE) return 0;
    return at + numel <= at_shard->first + at_shard->numel ? at_shard->owner : -1;
}

/* Hand out elements [at, at + numel) of the result to the ranks that block. */
static void hand_out(const sim_op *op, const char *block, shard *to, size_t at, size_t numel)
{
    const zb_collective *call = &op->parts[op->first].call;
    size_t element = zb_dtype_bytes(call->dtype);
    if (call->kind == ZB_COLLECTIVE_ALL_REDUCE) {
        for (int i = 0; i < op->part_count; i++)
            if (!op->parts[i].async)
                copy((char *)op->parts[i].call.recv + at * element, block, numel * element);
        return;
    }
    if (call->kind == ZB_COLLECTIVE_REDUCE) {
        const sim_part *root = &op->parts[call->root];
        if (!root->async) copy((char *)root->call.recv + at * element, block, numel * element);
        return;
    }
    size_t end = at + numel;
    while (at < end) {
        while (to->first + to->numel <= at) shard_next(call, to);
        size_t piece = to->first + to->numel - at < end - at ? to->first + to->numel - at : end - at;
        const sim_part *owner = &op->parts[to->owner];
        if (!owner->async)
            copy((char *)owner->call.recv + (at - to->first) * element, block, piece * element);
        block += piece * element;
        at += piece;
    }
}

/* Elements [at, at + numel) of the result. */
static zb_status reduce(const sim_op *op, sim_worker *worker, size_t at, size_t numel, void *out)
{
    const zb_collective *call = &op->parts[op->first].call;
    const size_t skipped = op->reduction != NULL ? 0 : at * zb_dtype_bytes(call->dtype);
    for (int i = 0; i < op->part_count; i++)
        worker->inputs[i] = (const char *)input_of(&op->parts[i]) + skipped;
    if (op->reduction != NULL) return zb_reduction_run(op->reduction, worker->inputs, at, numel, out);
    return zb_cpu_ordered_reduce(&(zb_ordered_reduce_args){ .inputs = worker->inputs,
                                                            .count = op->part_count,
                                                            .out = out,
                                                            .numel = numel,
                                                            .dtype = call->dtype,
                                                            .op = call->op,
                                                            .factor = call->factor });
}

static zb_status execute_block(const sim_op *op, sim_worker *worker, shard *to, size_t at, size_t numel)
{
    const zb_collective *call = &op->parts[op->first].call;
    size_t element = zb_dtype_bytes(call->dtype);
    char *block = worker->block;
    int receiver;
    if (op->result != NULL)
        block = (char *)op->result + at * element;
    else if ((receiver = direct_receiver(op, to, at, numel)) >= 0)
        block = (char *)op->parts[receiver].call.recv + (at - to->first) * element;

    ZB_TRY(reduce(op, worker, at, numel, block));
    hand_out(op, block, to, at, numel);
    return ZB_OK;
}

zb_status sim_execute_chunk(sim_op *op, size_t chunk, sim_worker *worker)
{
    const zb_collective *call = &op->parts[op->first].call;
    size_t block = SIM_BLOCK_BYTES / zb_dtype_bytes(call->dtype);
    size_t at = chunk * op->chunk_numel;
    size_t end = op->numel - at < op->chunk_numel ? op->numel : at + op->chunk_numel;
    int scatters = call->kind == ZB_COLLECTIVE_REDUCE_SCATTER || call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    shard to = scatters ? shard_at(call, at) : (shard){ 0, 0, 0 };
    for (; at < end; at += block) {
        size_t numel = end - at < block ? end - at : block;
        while (scatters && to.first + to.numel <= at) shard_next(call, &to);
        ZB_TRY(execute_block(op, worker, &to, at, numel));
    }
    return ZB_OK;
}

/* --- delivery --- */

static void deliver_all_to_all(sim_part *part)
{
    int size = part->op->part_count, index = sim_part_index(part);
    size_t bytes = part->call.numel * zb_dtype_bytes(part->call.dtype);
    const char *from = (const char *)part->op->result + (size_t)index * bytes;
    for (int i = 0; i < size; i++)
        copy((char *)part->call.recv + (size_t)i * bytes, from + (size_t)i * (size_t)size * bytes, bytes);
}

int sim_delivers(const sim_part *part)
{
    const int reduction = part->call.kind == ZB_COLLECTIVE_ALL_REDUCE ||
                          part->call.kind == ZB_COLLECTIVE_REDUCE ||
                          part->call.kind == ZB_COLLECTIVE_REDUCE_SCATTER ||
                          part->call.kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    return part->async || !reduction; /* the execution hands out to ranks that block */
}

void sim_deliver(sim_part *part)
{
    const sim_op *op = part->op;
    int index = sim_part_index(part);
    size_t bytes = sim_recv_bytes(&part->call, op->part_count, index);
    if (bytes == 0) return;
    switch ((int)part->call.kind) {
    case ZB_COLLECTIVE_ALL_TO_ALL:
        deliver_all_to_all(part);
        break;
    case ZB_COLLECTIVE_BROADCAST:
        if (part->async || index != part->call.root) copy(part->call.recv, op->result, bytes);
        break;
    case ZB_COLLECTIVE_ALL_GATHER:
    case ZB_COLLECTIVE_RECV:
        copy(part->call.recv, op->result, bytes);
        break;
    case ZB_COLLECTIVE_REDUCE_SCATTER:
    case ZB_COLLECTIVE_REDUCE_SCATTER_V: {
        size_t first = 0;
        for (int i = 0; i < index; i++) first += shard_numel(&part->call, i);
        if (part->async)
            copy(part->call.recv, (char *)op->result + first * zb_dtype_bytes(part->call.dtype), bytes);
        break;
    }
    default:
        if (part->async) copy(part->call.recv, op->result, bytes);
    }
}
