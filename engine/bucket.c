/* Bucket plans; see bucket.h. */
#include "engine/bucket.h"

#include <string.h>
#include <zerobit/memory.h>

static size_t param_numel(const zb_layout *layout, int param)
{
    return layout->model->params[param].numel;
}

/* One past the last parameter of the bucket that begins at order[first]. */
static int bucket_end(const zb_layout *layout, const int *order, int order_count, uint64_t limit, int first)
{
    uint64_t numel = 0;
    int end = first;
    while (end < order_count && (end == first || numel + param_numel(layout, order[end]) <= limit))
        numel += param_numel(layout, order[end++]);
    return end;
}

static size_t buffer_numel(const zb_layout *layout, const int *params, int count)
{
    size_t numel = 0;
    for (int i = 0; i < count; i++)
        numel += layout->stage == 3 ? layout->part_numel[params[i]] * (size_t)layout->world_size
                                    : param_numel(layout, params[i]);
    return numel;
}

/* Packs on its own, without bucket_end: the formula is what a plan is held to. */
zb_bucket_measure zb_buckets_measure(const zb_layout *layout, const int *order, int order_count,
                                     uint64_t limit_numel)
{
    zb_bucket_measure measure = { 0 };
    uint64_t filled = 0;
    size_t buffer = 0;
    for (int i = 0; i < order_count; i++) {
        size_t numel = param_numel(layout, order[i]);
        if (i == 0 || filled + numel > limit_numel) {
            measure.bucket_count++;
            filled = 0;
            buffer = 0;
        }
        filled += numel;
        buffer += layout->stage == 3 ? layout->part_numel[order[i]] * (size_t)layout->world_size : numel;
        if (buffer > measure.capacity) measure.capacity = buffer;
    }
    return measure;
}

static void sort_by_offset(const zb_layout *layout, int *params, int count)
{
    for (int i = 1; i < count; i++) { /* almost always reversed or sorted already, and short */
        int param = params[i], j = i;
        for (; j > 0 && layout->offset[params[j - 1]] > layout->offset[param]; j--) params[j] = params[j - 1];
        params[j] = param;
    }
}

/* How the elements of a flat range spread over the ranks that own them. */
static void count_owners(const zb_layout *layout, size_t begin, size_t numel, size_t *counts)
{
    size_t end = begin + numel;
    for (size_t rank = begin / layout->rank_numel; begin < end; rank++) {
        size_t rank_end = (rank + 1) * layout->rank_numel;
        size_t next = rank_end < end ? rank_end : end;
        counts[rank] += next - begin;
        begin = next;
    }
}

static void fill_bucket(const zb_layout *layout, int rank, zb_buckets *plan, zb_bucket *bucket, int index)
{
    size_t cursor = 0;
    if (layout->stage != 3) sort_by_offset(layout, bucket->params, bucket->param_count);
    bucket->flat_offset = layout->offset[bucket->params[0]];
    bucket->numel = buffer_numel(layout, bucket->params, bucket->param_count);
    for (int i = 0; i < bucket->param_count; i++) {
        int param = bucket->params[i];
        plan->bucket_of[param] = index;
        plan->slot[param] = cursor;
        cursor += layout->part_numel[param];
        if (bucket->counts != NULL)
            count_owners(layout, layout->offset[param], layout->part_numel[param], bucket->counts);
    }
    if (layout->stage == 3) {
        bucket->share_numel = cursor;
        bucket->share_begin = cursor * (size_t)rank;
    } else if (bucket->counts != NULL) {
        bucket->share_numel = bucket->counts[rank];
        for (int r = 0; r < rank; r++) bucket->share_begin += bucket->counts[r];
    }
}

zb_status zb_buckets_create(const zb_layout *layout, const int *order, int order_count, uint64_t limit_numel,
                            int rank, zb_buckets *buckets)
{
    zb_buckets plan = { 0 };
    for (int first = 0; first < order_count; plan.bucket_count++)
        first = bucket_end(layout, order, order_count, limit_numel, first);

    int has_counts = layout->stage == 1 || layout->stage == 2;
    size_t params = (size_t)layout->model->param_count, world = (size_t)layout->world_size;
    plan.buckets = zb_alloc_array((size_t)plan.bucket_count, sizeof *plan.buckets);
    plan.params = zb_alloc_array((size_t)order_count, sizeof *plan.params);
    plan.counts = zb_alloc_array(has_counts ? (size_t)plan.bucket_count * world : 0, sizeof *plan.counts);
    plan.bucket_of = zb_alloc_array(params, sizeof *plan.bucket_of);
    plan.slot = zb_alloc_array(params, sizeof *plan.slot);
    if (plan.buckets == NULL || plan.params == NULL || plan.counts == NULL || plan.bucket_of == NULL ||
        plan.slot == NULL) {
        zb_buckets_destroy(&plan);
        return ZB_NO_MEMORY;
    }
    memcpy(plan.params, order, (size_t)order_count * sizeof *order);
    for (size_t p = 0; p < params; p++) plan.bucket_of[p] = -1;

    int first = 0;
    for (int b = 0; b < plan.bucket_count; b++) {
        int end = bucket_end(layout, order, order_count, limit_numel, first);
        zb_bucket *bucket = &plan.buckets[b];
        bucket->params = plan.params + first;
        bucket->param_count = end - first;
        if (has_counts) bucket->counts = plan.counts + (size_t)b * world;
        fill_bucket(layout, rank, &plan, bucket, b);
        if (bucket->numel > plan.capacity) plan.capacity = bucket->numel;
        first = end;
    }
    *buckets = plan;
    return ZB_OK;
}

void zb_buckets_destroy(zb_buckets *buckets)
{
    zb_free(buckets->buckets);
    zb_free(buckets->params);
    zb_free(buckets->counts);
    zb_free(buckets->bucket_of);
    zb_free(buckets->slot);
    memset(buckets, 0, sizeof *buckets);
}
