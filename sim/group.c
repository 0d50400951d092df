/*
 * Groups of ranks: which calls belong to one operation, the operations' memory, and split.
 *
 * Collectives are matched by each rank's count of collectives in the group. The ones that some rank has not
 * come to yet ("open") have consecutive numbers, since a rank starts them in order: a ring holds them.
 * Sends and receives are matched in order per (source, destination).
 */
#include "sim/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- memory of operations --- */

/* A buffer for a result; its bytes follow. */
typedef struct sim_result {
    struct sim_result *next;
    size_t bytes;
    char padding[48];
} sim_result;
_Static_assert(sizeof(sim_result) == 64, "what follows the header must stay 64-byte aligned");

static zb_status add_op(sim_op_pool *pool)
{
    size_t parts_bytes = (size_t)pool->part_count * sizeof(sim_part);
    sim_op *op = zb_alloc(sizeof *op + parts_bytes);
    if (op == NULL) return ZB_NO_MEMORY;
    op->part_count = pool->part_count;
    op->next_all = pool->all;
    pool->all = op;
    op->next = pool->free;
    pool->free = op;
    pool->op_count++;
    return ZB_OK;
}

static zb_status add_result(sim_op_pool *pool)
{
    sim_result *result = zb_alloc(sizeof *result + pool->result_bytes);
    if (result == NULL) return ZB_NO_MEMORY;
    result->bytes = pool->result_bytes;
    result->next = pool->free_results;
    pool->free_results = result;
    pool->result_count++;
    return ZB_OK;
}

static void free_results(sim_op_pool *pool)
{
    while (pool->free_results != NULL) {
        sim_result *result = pool->free_results;
        pool->free_results = result->next;
        zb_free(result);
    }
}

/* Make room for `op_count` operations at a time with results of `result_bytes`. Buffers in use that have
 * become too small are freed when they come back. */
static zb_status pool_reserve(sim_op_pool *pool, size_t op_count, size_t result_bytes)
{
    while (pool->op_count < op_count) ZB_TRY(add_op(pool));
    if (result_bytes > pool->result_bytes) {
        free_results(pool);
        pool->result_count = 0;
        pool->result_bytes = result_bytes;
    }
    while (pool->result_bytes > 0 && pool->result_count < pool->op_count) ZB_TRY(add_result(pool));
    return ZB_OK;
}

static zb_status pool_take_op(sim_op_pool *pool, sim_op **op_p)
{
    if (pool->free == NULL) ZB_TRY(pool_reserve(pool, pool->op_count + 1, 0));
    sim_op *op = pool->free;
    sim_op *next = op->next, *next_all = op->next_all;
    memset(op, 0, sizeof *op + (size_t)pool->part_count * sizeof op->parts[0]);
    op->part_count = pool->part_count;
    op->next_all = next_all;
    pool->free = next;
    *op_p = op;
    return ZB_OK;
}

static zb_status pool_take_result(sim_op_pool *pool, void **result_p)
{
    if (pool->free_results == NULL) ZB_TRY(add_result(pool));
    sim_result *result = pool->free_results;
    pool->free_results = result->next;
    *result_p = result + 1;
    return ZB_OK;
}

static void pool_give_result(sim_op_pool *pool, void *memory)
{
    if (memory == NULL) return;
    sim_result *result = (sim_result *)memory - 1;
    if (result->bytes < pool->result_bytes) {
        zb_free(result);
        return;
    }
    result->next = pool->free_results;
    pool->free_results = result;
}

static void pool_destroy(sim_op_pool *pool)
{
    free_results(pool);
    while (pool->all != NULL) {
        sim_op *op = pool->all;
        pool->all = op->next_all;
        if (op->result != NULL) zb_free((sim_result *)op->result - 1);
        zb_free(op);
    }
}

/* --- groups --- */

zb_status sim_group_create(zb_sim *sim, int size, const char *name, sim_group **group_p)
{
    sim_group *group = zb_alloc(sizeof *group + (size_t)size * sizeof group->members[0]);
    if (group == NULL) return ZB_NO_MEMORY;
    group->sim = sim;
    group->size = group->member_count_left = size;
    snprintf(group->name, sizeof group->name, "%s", name);
    group->collectives.part_count = size;
    group->pairs.part_count = 2;
    group->next = sim->groups;
    if (group->next != NULL) group->next->previous = group;
    sim->groups = group;
    *group_p = group;
    return ZB_OK;
}

void sim_group_set_member(sim_group *group, int index, sim_rank *rank)
{
    sim_member *member = &group->members[index];
    member->base.ops = &sim_comm_ops;
    member->base.rank = index;
    member->base.world_size = group->size;
    member->group = group;
    member->rank = rank;
}

void sim_group_destroy(sim_group *group)
{
    pool_destroy(&group->collectives);
    pool_destroy(&group->pairs);
    zb_reduction_cache_destroy(&group->reductions);
    zb_free(group->open);
    if (group->previous != NULL)
        group->previous->next = group->next;
    else
        group->sim->groups = group->next;
    if (group->next != NULL) group->next->previous = group->previous;
    zb_free(group);
}

/* --- matching: collectives --- */

static sim_op **open_slot(sim_group *group, uint64_t sequence)
{
    return &group->open[sequence & (group->open_capacity - 1)];
}

static zb_status reserve_open(sim_group *group, size_t count)
{
    if (count <= group->open_capacity) return ZB_OK;
    size_t capacity = group->open_capacity == 0 ? 4 : 2 * group->open_capacity;
    sim_op **open = zb_alloc_array(capacity, sizeof *open);
    if (open == NULL) return ZB_NO_MEMORY;
    for (uint64_t s = group->open_first; s < group->open_first + group->open_count; s++)
        open[s & (capacity - 1)] = *open_slot(group, s);
    zb_free(group->open);
    group->open = open;
    group->open_capacity = capacity;
    return ZB_OK;
}

/*
 * With k operations in flight on each rank a group has at most 2 k under way: the slowest rank has started
 * all that the fastest one is through with. Reserving them when a rank first has k in flight makes what is
 * allocated depend on the program only, not on who is fast.
 */
static zb_status reserve_collectives(sim_member *member, const zb_collective *call, int async)
{
    sim_group *group = member->group;
    size_t in_flight = member->in_flight + 1;
    ZB_TRY(pool_reserve(&group->collectives, 2 * in_flight,
                        sim_result_bytes(call, group->size, member->base.rank, async)));
    return reserve_open(group, in_flight);
}

static zb_status find_collective(sim_member *member, sim_op **op_p)
{
    sim_group *group = member->group;
    if (member->sequence < group->open_first + group->open_count) {
        *op_p = *open_slot(group, member->sequence);
        return ZB_OK;
    }
    sim_op *op;
    ZB_TRY(pool_take_op(&group->collectives, &op));
    op->group = group;
    op->sequence = member->sequence;
    op->first = member->base.rank;
    *open_slot(group, op->sequence) = op;
    group->open_count++;
    *op_p = op;
    return ZB_OK;
}

void sim_group_close(sim_op *op)
{
    if (op->pair) return;
    ZB_ASSERT(op->group->open_count > 0 && op->sequence == op->group->open_first);
    op->group->open_first++;
    op->group->open_count--;
}

/* --- matching: pairs --- */

/* Each member brings an operation for every send and receive that it has pending: more are never under way.
 */
static zb_status reserve_pairs(sim_member *member, const zb_collective *call)
{
    sim_op_pool *pool = &member->group->pairs;
    size_t more = member->pairs_pending == member->pairs_peak;
    ZB_TRY(pool_reserve(pool, pool->op_count + more, sim_result_bytes(call, 2, 0, 0)));
    member->pairs_peak += more;
    return ZB_OK;
}

/* The oldest operation from src to dst that lacks this half; `link` receives where it hangs. */
static sim_op *find_half(sim_member *dst, int src, int half, sim_op **previous_p)
{
    *previous_p = NULL;
    for (sim_op *op = dst->pairs; op != NULL; *previous_p = op, op = op->next)
        if (op->src == src && op->parts[half].member == NULL) return op;
    return NULL;
}

static void unlink_pair(sim_member *dst, sim_op *op, sim_op *previous)
{
    if (previous != NULL)
        previous->next = op->next;
    else
        dst->pairs = op->next;
    if (dst->pairs_tail == op) dst->pairs_tail = previous;
    op->next = NULL;
}

static zb_status find_pair(sim_member *member, const zb_collective *call, int half, sim_op **op_p)
{
    sim_group *group = member->group;
    int src = half == 0 ? member->base.rank : call->root;
    int dst = half == 0 ? call->root : member->base.rank;
    sim_member *receiver = &group->members[dst];
    sim_op *previous;
    sim_op *op = find_half(receiver, src, half, &previous);
    if (op != NULL) {
        unlink_pair(receiver, op, previous);
        *op_p = op;
        return ZB_OK;
    }
    ZB_TRY(pool_take_op(&group->pairs, &op));
    op->group = group;
    op->pair = 1;
    op->src = src;
    op->dst = dst;
    op->first = half;
    if (receiver->pairs_tail != NULL)
        receiver->pairs_tail->next = op;
    else
        receiver->pairs = op;
    receiver->pairs_tail = op;
    *op_p = op;
    return ZB_OK;
}

/* --- joining and leaving --- */

static zb_status check_signature(const sim_op *op, sim_part *part)
{
    const sim_part *first = &op->parts[op->first];
    if (first == part) return ZB_OK;
    char difference[768];
    const zb_call_side a = { .rank = first->member->rank->index, .call = &first->call };
    const zb_call_side b = { .rank = part->member->rank->index, .call = &part->call };
    if (!zb_calls_differ(&a, &b, op->group->size, difference, sizeof difference)) return ZB_OK;
    char report[ZB_ERROR_MESSAGE_BYTES];
    sim_report_mismatch(first, part, difference, report, sizeof report);
    return zb_fail(ZB_MISMATCH, "%s", report);
}

zb_status sim_group_join(sim_member *member, const zb_collective *call, int async, sim_part **part_p)
{
    int pair = call->kind == ZB_COLLECTIVE_SEND || call->kind == ZB_COLLECTIVE_RECV;
    int half = call->kind == ZB_COLLECTIVE_RECV;
    sim_op *op;
    if (pair) {
        ZB_TRY(reserve_pairs(member, call));
        ZB_TRY(find_pair(member, call, half, &op));
    } else {
        ZB_TRY(reserve_collectives(member, call, async));
        ZB_TRY(find_collective(member, &op));
    }
    sim_part *part = &op->parts[pair ? half : member->base.rank];
    part->op = op;
    part->member = member;
    part->call = *call;
    part->async = async;
    ZB_TRY(check_signature(op, part));

    sim_op_pool *pool = pair ? &member->group->pairs : &member->group->collectives;
    if (op->result == NULL && sim_result_bytes(call, member->group->size, member->base.rank, async) > 0)
        ZB_TRY(pool_take_result(pool, &op->result));
    if (pair) {
        member->pairs_pending++;
    } else {
        member->sequence++;
        member->in_flight++;
    }
    *part_p = part;
    return ZB_OK;
}

void sim_group_leave(sim_part *part)
{
    sim_op *op = part->op;
    if (op->pair)
        part->member->pairs_pending--;
    else
        part->member->in_flight--;
    if (++op->left < op->part_count) return;
    sim_op_pool *pool = op->pair ? &op->group->pairs : &op->group->collectives;
    pool_give_result(pool, op->result);
    op->result = NULL;
    op->next = pool->free;
    pool->free = op;
}

/* --- split --- */

typedef struct split_entry {
    int color, key, index;
} split_entry;

static int compare_entries(const void *a_pointer, const void *b_pointer)
{
    const split_entry *a = a_pointer, *b = b_pointer;
    if (a->color != b->color) return a->color < b->color ? -1 : 1;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

/* One group of the split: entries[0..count-1], which have one color. */
static zb_status split_off(sim_op *op, const split_entry *entries, int count)
{
    char name[128];
    snprintf(name, sizeof name, "%s[split %llu, color %d]", op->group->name, (unsigned long long)op->sequence,
             entries[0].color);
    sim_group *group;
    ZB_TRY(sim_group_create(op->group->sim, count, name, &group));
    for (int i = 0; i < count; i++) {
        sim_group_set_member(group, i, sim_part_rank(op, entries[i].index));
        zb_comm **out = op->parts[entries[i].index].call.recv;
        *out = &group->members[i].base;
    }
    return ZB_OK;
}

/* A rank's call carries { color, key } in send and the address of its new communicator in recv. */
zb_status sim_group_split(sim_op *op)
{
    split_entry *entries = zb_alloc_array((size_t)op->part_count, sizeof *entries);
    if (entries == NULL) return ZB_NO_MEMORY;
    for (int i = 0; i < op->part_count; i++) {
        const int *color_key = op->parts[i].call.send;
        entries[i] = (split_entry){ color_key[0], color_key[1], i };
    }
    qsort(entries, (size_t)op->part_count, sizeof *entries, compare_entries);
    zb_status status = ZB_OK;
    for (int i = 0, end; i < op->part_count && status == ZB_OK; i = end) {
        for (end = i + 1; end < op->part_count && entries[end].color == entries[i].color;) end++;
        if (entries[i].color >= 0) status = split_off(op, &entries[i], end - i);
    }
    zb_free(entries);
    return status;
}
