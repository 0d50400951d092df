/* The record of a reduction: made, checked, looked up and put into words; and what its operations are called.
 */
#include <zerobit/reduction.h>

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "orders/record.h"

/* --- operations --- */

static const char *const redop_names[] = {
#define REDOP_NAME(name, text) [ZB_##name] = text,
    ZB_REDOP_MAP(REDOP_NAME)
#undef REDOP_NAME
};
enum { REDOP_COUNT = sizeof redop_names / sizeof redop_names[0] };

const char *zb_redop_name(zb_redop op)
{
    return (unsigned)op < REDOP_COUNT ? redop_names[op] : "?";
}

int zb_redop_parse(const char *text, zb_redop *op)
{
    for (int i = 0; i < REDOP_COUNT; i++)
        if (strcmp(text, redop_names[i]) == 0) {
            *op = (zb_redop)i;
            return 1;
        }
    return 0;
}

/* --- writing --- */

static size_t tree_length(int world_size)
{
    return 2 * (size_t)world_size - 1;
}

zb_status zb_reduction_create(int world_size, zb_dtype dtype, int tree_count, int order_count,
                              zb_reduction *reduction_p)
{
    zb_reduction made = {
        .world_size = world_size, .dtype = dtype, .tree_count = tree_count, .order_count = order_count
    };
    made.trees = zb_alloc_array((size_t)tree_count * tree_length(world_size), sizeof *made.trees);
    if (made.trees != NULL)
        made.orders = zb_alloc_array((size_t)order_count * (size_t)world_size, sizeof *made.orders);
    if (made.orders == NULL) {
        zb_reduction_destroy(&made);
        return ZB_NO_MEMORY;
    }
    *reduction_p = made;
    return ZB_OK;
}

void zb_reduction_destroy(zb_reduction *reduction)
{
    zb_free(reduction->trees);
    zb_free(reduction->orders);
    zb_free(reduction->ranges);
    *reduction = (zb_reduction){ 0 };
}

int32_t *zb_reduction_tree_at(zb_reduction *reduction, int tree)
{
    return reduction->trees + (size_t)tree * tree_length(reduction->world_size);
}

int32_t *zb_reduction_order_at(zb_reduction *reduction, int order)
{
    return reduction->orders + (size_t)order * (size_t)reduction->world_size;
}

void zb_reduction_order_ascending(zb_reduction *reduction, int order)
{
    int32_t *ranks = zb_reduction_order_at(reduction, order);
    for (int i = 0; i < reduction->world_size; i++) ranks[i] = i;
}

void zb_reduction_order_descending(zb_reduction *reduction, int order)
{
    int32_t *ranks = zb_reduction_order_at(reduction, order);
    for (int i = 0; i < reduction->world_size; i++) ranks[i] = reduction->world_size - 1 - i;
}

zb_status zb_reduction_append(zb_reduction *reduction, size_t numel, int tree, int order, int start)
{
    const size_t count = reduction->range_count;
    if (numel == 0) return ZB_OK;
    if ((count & (count - 1)) == 0) { /* a power of two is full */
        const size_t room = count == 0 ? 1 : 2 * count;
        zb_reduction_range *grown = zb_realloc(reduction->ranges, room * sizeof *grown);
        if (grown == NULL) return ZB_NO_MEMORY;
        reduction->ranges = grown;
    }
    reduction->ranges[count] = (zb_reduction_range){
        .first = reduction->numel, .numel = numel, .tree = tree, .order = order, .start = start
    };
    reduction->numel += numel;
    reduction->range_count++;
    return ZB_OK;
}

/* --- checking --- */

/* Marks what has been seen in `seen`, which has room for every rank and is zero. */
static zb_status check_order(const int32_t *order, int world_size, int index, unsigned char *seen)
{
    for (int i = 0; i < world_size; i++) {
        if (order[i] < 0 || order[i] >= world_size || seen[order[i]])
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "order %d of a reduction: position %d is rank %d%s, want each of 0..%d once",
                           index, i, (int)order[i],
                           order[i] >= 0 && order[i] < world_size ? ", which it has had" : "",
                           world_size - 1);
        seen[order[i]] = 1;
    }
    return ZB_OK;
}

static zb_status check_tree(const int32_t *tree, int world_size, int index, unsigned char *seen)
{
    int open = 0;
    for (int k = 0; k < 2 * world_size - 1; k++) {
        if (tree[k] == ZB_TREE_ADD) {
            if (open < 2)
                return zb_fail(ZB_INVALID_ARGUMENT,
                               "tree %d of a reduction: place %d adds with %d sums found, want 2", index, k,
                               open);
            open--;
            continue;
        }
        if (tree[k] < 0 || tree[k] >= world_size || seen[tree[k]])
            return zb_fail(
                ZB_INVALID_ARGUMENT,
                "tree %d of a reduction: place %d is %d, want an addition or each position of 0..%d once",
                index, k, (int)tree[k], world_size - 1);
        seen[tree[k]] = 1;
        if (++open > ZB_TREE_DEPTH)
            return zb_fail(ZB_INVALID_ARGUMENT, "tree %d of a reduction: more than %d sums wait at place %d",
                           index, ZB_TREE_DEPTH, k);
    }
    ZB_ASSERT(open == 1); /* world_size positions, so world_size - 1 additions */
    return ZB_OK;
}

static zb_status check_ranges(const zb_reduction *reduction)
{
    size_t end = 0;
    for (size_t i = 0; i < reduction->range_count; i++) {
        const zb_reduction_range *range = &reduction->ranges[i];
        if (range->first != end || range->numel == 0 || range->numel > reduction->numel - end)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "range %zu of a reduction: %zu elements from %zu, want some from %zu, within %zu",
                           i, range->numel, range->first, end, reduction->numel);
        if (range->tree < 0 || range->tree >= reduction->tree_count || range->order < 0 ||
            range->order >= reduction->order_count || range->start < 0 ||
            range->start >= reduction->world_size)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "range %zu of a reduction: tree %d of %d, order %d of %d, start %d of %d", i,
                           range->tree, reduction->tree_count, range->order, reduction->order_count,
                           range->start, reduction->world_size);
        end += range->numel;
    }
    if (end != reduction->numel)
        return zb_fail(ZB_INVALID_ARGUMENT, "the ranges of a reduction hold %zu elements, want %zu", end,
                       reduction->numel);
    return ZB_OK;
}

static zb_status check_parts(const zb_reduction *reduction, unsigned char *seen)
{
    const int n = reduction->world_size;
    for (int t = 0; t < reduction->tree_count; t++) {
        memset(seen, 0, (size_t)n);
        ZB_TRY(check_tree(reduction->trees + (size_t)t * tree_length(n), n, t, seen));
    }
    for (int o = 0; o < reduction->order_count; o++) {
        memset(seen, 0, (size_t)n);
        ZB_TRY(check_order(reduction->orders + (size_t)o * (size_t)n, n, o, seen));
    }
    return check_ranges(reduction);
}

zb_status zb_reduction_check(const zb_reduction *reduction)
{
    if (reduction->world_size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "a reduction over %d ranks, want >= 1", reduction->world_size);
    unsigned char *seen = zb_alloc((size_t)reduction->world_size);
    if (seen == NULL) return ZB_NO_MEMORY;
    const zb_status status = check_parts(reduction, seen);
    zb_free(seen);
    return status;
}

/* --- looking up --- */

const zb_reduction_range *zb_reduction_range_of(const zb_reduction *reduction, size_t element)
{
    ZB_ASSERT(element < reduction->numel);
    size_t low = 0, high = reduction->range_count; /* it is one of these */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (reduction->ranges[middle].first <= element)
            low = middle;
        else
            high = middle;
    }
    return &reduction->ranges[low];
}

const int32_t *zb_reduction_tree(const zb_reduction *reduction, const zb_reduction_range *range)
{
    return reduction->trees + (size_t)range->tree * tree_length(reduction->world_size);
}

int zb_reduction_rank(const zb_reduction *reduction, const zb_reduction_range *range, int position)
{
    const int n = reduction->world_size, at = range->start + position;
    return reduction->orders[(size_t)range->order * (size_t)n + (size_t)(at < n ? at : at - n)];
}

/* --- in words --- */

typedef struct text_end {
    char *text;
    size_t bytes, used;
} text_end;

static void put(text_end *end, const char *words)
{
    for (; *words != '\0'; words++)
        if (end->used + 1 < end->bytes) end->text[end->used++] = *words;
}

/*
 * Where the sum that ends at place `end` of a postfix tree begins: going back, each addition asks for one
 * more sum and each position gives one.
 */
static int begin_of(const int32_t *tree, int end)
{
    int wanted = 1;
    for (int k = end;; k--) {
        wanted += tree[k] == ZB_TREE_ADD ? 1 : -1;
        if (wanted == 0) return k;
    }
}

static void put_sum(const zb_reduction *reduction, const zb_reduction_range *range, int end, int outermost,
                    text_end *to)
{
    const int32_t *tree = zb_reduction_tree(reduction, range);
    if (to->used + 1 >= to->bytes) return; /* also keeps a long chain from going deep for nothing */
    if (tree[end] != ZB_TREE_ADD) {
        char rank[16];
        snprintf(rank, sizeof rank, "%d", zb_reduction_rank(reduction, range, tree[end]));
        put(to, rank);
        return;
    }
    if (!outermost) put(to, "(");
    put_sum(reduction, range, begin_of(tree, end - 1) - 1, 0, to);
    put(to, " + ");
    put_sum(reduction, range, end - 1, 0, to);
    if (!outermost) put(to, ")");
}

void zb_reduction_describe(const zb_reduction *reduction, const zb_reduction_range *range, char *text,
                           size_t text_bytes)
{
    ZB_ASSERT(text_bytes > 0);
    text_end end = { .text = text, .bytes = text_bytes };
    put_sum(reduction, range, 2 * reduction->world_size - 2, 1, &end);
    text[end.used] = '\0';
    if (end.used + 1 == text_bytes && text_bytes > 4) memcpy(text + text_bytes - 4, "...", 4);
}
