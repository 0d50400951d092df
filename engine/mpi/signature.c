/*
 * Do all ranks of a group call the same? Before data moves, one small all-reduce finds the largest and the
 * smallest word of every call: they are equal where the calls are. Where not, every rank sends its call to
 * all others, and all arrive at the same report. A message has two ranks, which show each other their calls.
 */
#include "engine/mpi/world.h"

#include <string.h>
#include <zerobit/memory.h>

#include "orders/signature.h"

int zb_mpi_peer(const mpi_op *op)
{
    return zb_call_is_pair((int)op->call.kind) ? op->group->world_ranks[op->call.root] : -1;
}

/* --- words --- */

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 32;
}

static uint64_t hash_numbers(uint64_t hash, const int32_t *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++) hash = mix(hash, (uint32_t)numbers[i]);
    return hash;
}

/* Equal where zb_order_source_equal says so. */
static uint64_t hash_order(const zb_order_source *order)
{
    static const zb_order_source rank = { 0 };
    if (order == NULL) order = &rank;
    const size_t n = (size_t)order->world_size;
    uint64_t hash = mix((uint64_t)order->algorithm, (uint64_t)order->version);
    hash = mix(hash, (uint64_t)order->protocol << 8 | (uint64_t)order->fusion);
    hash = mix(hash, (uint64_t)order->channels << 32 | (uint32_t)order->used_channels);
    hash = mix(hash, (uint64_t)order->threads);
    hash = mix(hash, order->chunk_bytes);
    hash = mix(hash, n);
    hash = mix(hash, (uint64_t)order->ring_count << 32 | (uint32_t)order->tree_count);
    if (order->ring_count > 0) hash = hash_numbers(hash, order->rings, (size_t)order->ring_count * n);
    if (order->tree_count > 0)
        hash = hash_numbers(hash, &order->trees[0].child[0], 3 * (size_t)order->tree_count * n);
    return hash;
}

uint64_t zb_mpi_hash_orders(const zb_orders *orders)
{
    uint64_t hash = 0;
    for (int k = 0; k < ZB_COLLECTIVE_COUNT; k++) hash = mix(hash, hash_order(&orders->of[k]));
    return hash;
}

static uint64_t hash_counts(const size_t *counts, int count)
{
    uint64_t hash = 0;
    for (int i = 0; i < count; i++) hash = mix(hash, counts[i]);
    return hash;
}

static void write_words(const mpi_op *op, uint64_t words[SIGNATURE_WORDS])
{
    const zb_collective *c = &op->call;
    const int kind = (int)c->kind, reduction = zb_call_is_reduction(kind);
    const uint64_t dtype = zb_call_has_data(kind) ? (uint64_t)c->dtype : 0,
                   redop = reduction ? (uint64_t)c->op : 0,
                   root = zb_call_has_root(kind) ? (uint64_t)c->root : 0;
    memset(words, 0, SIGNATURE_WORDS * sizeof *words);
    words[0] = root << 24 | redop << 16 | dtype << 8 | (uint64_t)kind;
    words[1] = op->sequence;
    if (kind == ZB_COLLECTIVE_REDUCE_SCATTER_V)
        words[2] = hash_counts(c->counts, op->group->base.world_size);
    else if (zb_call_has_data(kind))
        words[3] = c->numel;
    if (reduction && c->op == ZB_PREMUL_SUM) memcpy(&words[4], &c->factor, sizeof c->factor);
    if (reduction) words[5] = hash_order(c->order);
}

static zb_status sign_collective(mpi_op *op)
{
    write_words(op, op->mine.words);
    for (int i = 0; i < SIGNATURE_WORDS; i++) op->mine.inverted[i] = ~op->mine.words[i];
    op->request_count = 1;
    MPI_TRY(MPI_Iallreduce(&op->mine, &op->largest, 2 * SIGNATURE_WORDS, MPI_UINT64_T, MPI_MAX,
                           op->group->messages, &op->requests[0]));
    return ZB_OK;
}

static int all_equal(const signature *largest)
{
    for (int i = 0; i < SIGNATURE_WORDS; i++)
        if (largest->words[i] != ~largest->inverted[i]) return 0;
    return 1;
}

static zb_status write_record(const mpi_op *op, zb_call_record *record)
{
    return zb_call_record_write(&op->call, op->group->world->rank, op->sequence, record);
}

/* --- a collective: all calls to all ranks --- */

static size_t call_bytes(const mpi_group *group)
{
    return sizeof(zb_call_record) + (size_t)group->base.world_size * sizeof(size_t);
}

static zb_call_record *call_of(const mpi_op *op, int rank)
{
    return (zb_call_record *)(op->calls + (size_t)rank * call_bytes(op->group));
}

static size_t *counts_of(const mpi_op *op, int rank)
{
    return (size_t *)(call_of(op, rank) + 1);
}
_Static_assert(sizeof(zb_call_record) % sizeof(size_t) == 0, "counts follow a record");

zb_status zb_mpi_compare(mpi_op *op)
{
    const mpi_group *group = op->group;
    const int n = group->base.world_size, me = group->base.rank;
    op->state = OP_COMPARING;
    op->calls = zb_alloc_array((size_t)n, call_bytes(group));
    if (op->calls == NULL) return ZB_NO_MEMORY;
    ZB_TRY(write_record(op, call_of(op, me)));
    if (op->call.kind == ZB_COLLECTIVE_REDUCE_SCATTER_V)
        memcpy(counts_of(op, me), op->call.counts, (size_t)n * sizeof(size_t));
    for (int r = 0; r < n; r++) {
        if (r == me) continue;
        ZB_TRY(zb_mpi_post_receive(op, TAG_CALL, call_of(op, r), call_bytes(group), r));
        ZB_TRY(zb_mpi_post_send(op, TAG_CALL, call_of(op, me), call_bytes(group), r, 0));
    }
    return ZB_OK;
}

zb_status zb_mpi_compared(mpi_op *op)
{
    const int n = op->group->base.world_size;
    zb_status status = ZB_OK;
    for (int r = 1; r < n && status == ZB_OK; r++)
        status = zb_call_record_compare(call_of(op, 0), counts_of(op, 0), call_of(op, r), counts_of(op, r), n,
                                        op->group->name);
    zb_free(op->calls);
    op->calls = NULL;
    if (status != ZB_OK) return status;
    /* Orders whose texts have been cut alike; their hashes were different. */
    return zb_fail(ZB_MISMATCH, "ranks of %s called different collectives, #%llu: the order differs",
                   op->group->name, (unsigned long long)op->sequence);
}

/* --- a message: both calls to both ranks --- */

static int is_receiver(const mpi_op *op)
{
    return op->call.kind == ZB_COLLECTIVE_RECV;
}

/* Synchronous: whoever is through with it knows that the other side has come. */
static zb_status sign_message(mpi_op *op)
{
    const int own = is_receiver(op);
    const tag_kind to_receiver = TAG_MESSAGE, to_sender = TAG_REPLY;
    ZB_TRY(write_record(op, &op->records[own]));
    ZB_TRY(zb_mpi_post_send(op, own ? to_sender : to_receiver, &op->records[own], sizeof(zb_call_record),
                            op->call.root, 1));
    return zb_mpi_post_receive(op, own ? to_receiver : to_sender, &op->records[!own], sizeof(zb_call_record),
                               op->call.root);
}

static zb_status message_signed(const mpi_op *op)
{
    return zb_call_record_compare(&op->records[0], NULL, &op->records[1], NULL, 0, op->group->name);
}

/* --- both --- */

/* What moves nothing else that its ranks could wait for: a barrier, and what is about to block in MPI, where
 * nothing in flight would go on until the last rank has come. */
static zb_status meet(mpi_op *op)
{
    op->request_count = 1;
    MPI_TRY(MPI_Ibarrier(op->group->messages, &op->requests[0]));
    return ZB_OK;
}

zb_status zb_mpi_sign(mpi_op *op)
{
    op->state = OP_SIGNING;
    if (op->group->base.world_size == 1) return ZB_OK;
    if (op->group->world->unchecked)
        return op->call.kind == ZB_COLLECTIVE_BARRIER || op->agrees_only ? meet(op) : ZB_OK;
    return zb_call_is_pair((int)op->call.kind) ? sign_message(op) : sign_collective(op);
}

zb_status zb_mpi_signed(mpi_op *op, int *same_p)
{
    *same_p = 1;
    if (op->group->world->unchecked || op->group->base.world_size == 1) return ZB_OK;
    if (zb_call_is_pair((int)op->call.kind)) return message_signed(op);
    *same_p = all_equal(&op->largest);
    return ZB_OK;
}
