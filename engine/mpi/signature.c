/*
 * Do all ranks of a group call the same? Before data moves, one small all-reduce finds the largest and the
 * smallest word of every call: they are equal where the calls are. Where not, every rank sends its call to
 * all others, and all arrive at the same report. A message has two ranks, which show each other their calls.
 */
#include "engine/mpi/world.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

int zb_mpi_is_pair(int kind)
{
    return kind == ZB_COLLECTIVE_SEND || kind == ZB_COLLECTIVE_RECV;
}

int zb_mpi_peer(const mpi_op *op)
{
    return zb_mpi_is_pair((int)op->call.kind) ? op->group->world_ranks[op->call.root] : -1;
}

int zb_mpi_is_reduction(int kind)
{
    return kind == ZB_COLLECTIVE_ALL_REDUCE || kind == ZB_COLLECTIVE_REDUCE ||
           kind == ZB_COLLECTIVE_REDUCE_SCATTER || kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
}

static int has_data(int kind)
{
    return kind != ZB_COLLECTIVE_BARRIER && kind != KIND_SPLIT;
}

static int has_root(int kind)
{
    return kind == ZB_COLLECTIVE_BROADCAST || kind == ZB_COLLECTIVE_REDUCE;
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
    const int kind = (int)c->kind, reduction = zb_mpi_is_reduction(kind);
    const uint64_t dtype = has_data(kind) ? (uint64_t)c->dtype : 0, redop = reduction ? (uint64_t)c->op : 0,
                   root = has_root(kind) ? (uint64_t)c->root : 0;
    memset(words, 0, SIGNATURE_WORDS * sizeof *words);
    words[0] = root << 24 | redop << 16 | dtype << 8 | (uint64_t)kind;
    words[1] = op->sequence;
    if (kind == ZB_COLLECTIVE_REDUCE_SCATTER_V)
        words[2] = hash_counts(c->counts, op->group->base.world_size);
    else if (has_data(kind))
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

/* --- calls in full --- */

static zb_status write_order(const zb_order_source *order, char *text, size_t text_bytes)
{
    if (order == NULL) {
        snprintf(text, text_bytes, "rank");
        return ZB_OK;
    }
    char *whole = zb_order_source_text(order);
    if (whole == NULL) return ZB_NO_MEMORY;
    snprintf(text, text_bytes, "%s", whole);
    zb_free(whole);
    return ZB_OK;
}

static zb_status write_record(const mpi_op *op, call_record *record)
{
    const zb_collective *c = &op->call;
    *record = (call_record){ .world_rank = op->group->world->rank,
                             .kind = (int)c->kind,
                             .dtype = (int)c->dtype,
                             .op = (int)c->op,
                             .root = c->root,
                             .line = c->line,
                             .numel = c->numel,
                             .sequence = op->sequence,
                             .factor = c->factor };
    snprintf(record->what, sizeof record->what, "%s", c->what != NULL ? c->what : "");
    snprintf(record->file, sizeof record->file, "%s", c->file != NULL ? zb_mpi_short_path(c->file) : "");
    if (!zb_mpi_is_reduction((int)c->kind)) return ZB_OK;
    return write_order(c->order, record->order, sizeof record->order);
}

/* --- comparison and report --- */

static const char *kind_name(int kind)
{
    return kind == KIND_SPLIT ? "split" : zb_collective_name((zb_collective_kind)kind);
}

typedef struct difference {
    char field[32], a[264], b[264];
} difference;

#define DIFFER(name, format, value_a, value_b)                                                               \
    return (snprintf(d->field, sizeof d->field, "%s", name), snprintf(d->a, sizeof d->a, format, value_a),   \
            snprintf(d->b, sizeof d->b, format, value_b), 1)

static int counts_differ(const size_t *a, const size_t *b, int count, difference *d)
{
    for (int i = 0; i < count; i++) {
        char field[32];
        snprintf(field, sizeof field, "counts[%d]", i);
        if (a[i] != b[i]) DIFFER(field, "%zu", a[i], b[i]);
    }
    return 0;
}

static int reductions_differ(const call_record *a, const call_record *b, difference *d)
{
    if (a->op != b->op) DIFFER("op", "%s", zb_redop_name((zb_redop)a->op), zb_redop_name((zb_redop)b->op));
    if (a->op == ZB_PREMUL_SUM && memcmp(&a->factor, &b->factor, sizeof a->factor) != 0)
        DIFFER("factor", "%.17g", a->factor, b->factor);
    if (strcmp(a->order, b->order) != 0) DIFFER("order", "%s", a->order, b->order);
    return 0;
}

/* `counts_count` is that of reduce_scatter_v. */
static int calls_differ(const call_record *a, const size_t *counts_a, const call_record *b,
                        const size_t *counts_b, int counts_count, difference *d)
{
    if (a->kind != b->kind && !zb_mpi_is_pair(a->kind))
        DIFFER("kind", "%s", kind_name(a->kind), kind_name(b->kind));
    if (!has_data(a->kind)) return 0;
    if (a->dtype != b->dtype)
        DIFFER("dtype", "%s", zb_dtype_name((zb_dtype)a->dtype), zb_dtype_name((zb_dtype)b->dtype));
    if (a->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V) {
        if (counts_differ(counts_a, counts_b, counts_count, d)) return 1;
    } else if (a->numel != b->numel) {
        DIFFER("numel", "%llu", (unsigned long long)a->numel, (unsigned long long)b->numel);
    }
    if (has_root(a->kind) && a->root != b->root) DIFFER("root", "%d", a->root, b->root);
    return zb_mpi_is_reduction(a->kind) ? reductions_differ(a, b, d) : 0;
}

static void describe_record(const call_record *record, const mpi_group *group, char *text, size_t text_bytes)
{
    char what[80] = "", place[96] = "";
    if (record->what[0] != '\0') snprintf(what, sizeof what, " (%s)", record->what);
    if (record->file[0] != '\0') snprintf(place, sizeof place, " at %s:%d", record->file, record->line);
    if (zb_mpi_is_pair(record->kind))
        snprintf(text, text_bytes, "%s rank %d of %s%s%s",
                 record->kind == ZB_COLLECTIVE_SEND ? "send to" : "recv from", record->root, group->name,
                 what, place);
    else
        snprintf(text, text_bytes, "%s #%llu of %s%s%s", kind_name(record->kind),
                 (unsigned long long)record->sequence, group->name, what, place);
}

static zb_status report(const mpi_group *group, const call_record *a, const call_record *b,
                        const difference *d)
{
    char calls[2][512];
    describe_record(a, group, calls[0], sizeof calls[0]);
    describe_record(b, group, calls[1], sizeof calls[1]);
    return zb_fail(ZB_MISMATCH,
                   "ranks called different collectives: %s differs: rank %d has %s, rank %d has %s\n"
                   "  rank %d called %s\n  rank %d called %s",
                   d->field, a->world_rank, d->a, b->world_rank, d->b, a->world_rank, calls[0], b->world_rank,
                   calls[1]);
}

/* --- a collective: all calls to all ranks --- */

static size_t call_bytes(const mpi_group *group)
{
    return sizeof(call_record) + (size_t)group->base.world_size * sizeof(size_t);
}

static call_record *call_of(const mpi_op *op, int rank)
{
    return (call_record *)(op->calls + (size_t)rank * call_bytes(op->group));
}

static size_t *counts_of(const mpi_op *op, int rank)
{
    return (size_t *)(call_of(op, rank) + 1);
}
_Static_assert(sizeof(call_record) % sizeof(size_t) == 0, "counts follow a record");

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
    difference d;
    zb_status status = ZB_OK;
    for (int r = 1; r < op->group->base.world_size && status == ZB_OK; r++)
        if (calls_differ(call_of(op, 0), counts_of(op, 0), call_of(op, r), counts_of(op, r),
                         op->group->base.world_size, &d))
            status = report(op->group, call_of(op, 0), call_of(op, r), &d);
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
    ZB_TRY(zb_mpi_post_send(op, own ? to_sender : to_receiver, &op->records[own], sizeof(call_record),
                            op->call.root, 1));
    return zb_mpi_post_receive(op, own ? to_receiver : to_sender, &op->records[!own], sizeof(call_record),
                               op->call.root);
}

static zb_status message_signed(const mpi_op *op)
{
    difference d;
    if (!calls_differ(&op->records[0], NULL, &op->records[1], NULL, 0, &d)) return ZB_OK;
    return report(op->group, &op->records[0], &op->records[1], &d);
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
    return zb_mpi_is_pair((int)op->call.kind) ? sign_message(op) : sign_collective(op);
}

zb_status zb_mpi_signed(mpi_op *op, int *same_p)
{
    *same_p = 1;
    if (op->group->world->unchecked || op->group->base.world_size == 1) return ZB_OK;
    if (zb_mpi_is_pair((int)op->call.kind)) return message_signed(op);
    *same_p = all_equal(&op->largest);
    return ZB_OK;
}
