/* Reductions that have been derived; see cache.h. */
#include "orders/cache.h"

#include <string.h>
#include <zerobit/memory.h>

typedef struct zb_cached_reduction {
    struct zb_cached_reduction *next;
    uint64_t hash;
    zb_order_source source; /* a copy: the caller's may be gone before the cache is */
    zb_reduction_call call; /* counts are owned */
    size_t *counts;
    zb_reduction reduction;
} zb_cached_reduction;

/* --- keys --- */

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 32;
}

static uint64_t hash_of(const zb_order_source *source, const zb_reduction_call *call)
{
    uint64_t hash = mix((uint64_t)source->algorithm, (uint64_t)call->kind);
    hash = mix(hash, (uint64_t)call->world_size);
    hash = mix(hash, (uint64_t)call->dtype << 8 | (uint64_t)call->op);
    if (call->kind == ZB_COLLECTIVE_REDUCE) hash = mix(hash, (uint64_t)call->root);
    if (call->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return mix(hash, call->numel);
    for (int rank = 0; rank < call->world_size; rank++) hash = mix(hash, call->counts[rank]);
    return hash;
}

static int call_equal(const zb_reduction_call *a, const zb_reduction_call *b)
{
    if (a->kind != b->kind || a->world_size != b->world_size || a->dtype != b->dtype || a->op != b->op)
        return 0;
    if (a->op == ZB_PREMUL_SUM && memcmp(&a->factor, &b->factor, sizeof a->factor) != 0) return 0;
    if (a->kind == ZB_COLLECTIVE_REDUCE && a->root != b->root) return 0;
    if (a->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return a->numel == b->numel;
    return memcmp(a->counts, b->counts, (size_t)a->world_size * sizeof *a->counts) == 0;
}

/* --- entries --- */

static void destroy_entry(zb_cached_reduction *entry)
{
    zb_reduction_destroy(&entry->reduction);
    zb_order_source_destroy(&entry->source);
    zb_free(entry->counts);
    zb_free(entry);
}

static void *copy_of(const void *data, size_t bytes)
{
    void *copy = zb_alloc(bytes);
    if (copy != NULL && bytes > 0) memcpy(copy, data, bytes);
    return copy;
}

static zb_status copy_source(const zb_order_source *from, zb_order_source *to)
{
    const size_t n = (size_t)from->world_size;
    *to = *from;
    to->rings = NULL;
    to->trees = NULL;
    if (from->ring_count > 0) {
        to->rings = copy_of(from->rings, (size_t)from->ring_count * n * sizeof *from->rings);
        if (to->rings == NULL) return ZB_NO_MEMORY;
    }
    if (from->tree_count > 0) {
        to->trees = copy_of(from->trees, (size_t)from->tree_count * n * sizeof *from->trees);
        if (to->trees == NULL) return ZB_NO_MEMORY;
    }
    return ZB_OK;
}

static zb_status fill_entry(zb_cached_reduction *entry, const zb_order_source *source,
                            const zb_reduction_call *call)
{
    ZB_TRY(copy_source(source, &entry->source));
    entry->call = *call;
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V) {
        entry->counts = copy_of(call->counts, (size_t)call->world_size * sizeof *call->counts);
        if (entry->counts == NULL) return ZB_NO_MEMORY;
    }
    entry->call.counts = entry->counts;
    return zb_reduction_derive(source, call, &entry->reduction);
}

/* --- the table --- */

static zb_status grow(zb_reduction_cache *cache)
{
    if (cache->count < cache->bucket_count) return ZB_OK;
    const size_t bucket_count = cache->bucket_count == 0 ? 16 : 2 * cache->bucket_count;
    zb_cached_reduction **buckets = zb_alloc_array(bucket_count, sizeof *buckets);
    if (buckets == NULL) return ZB_NO_MEMORY;
    for (size_t b = 0; b < cache->bucket_count; b++)
        for (zb_cached_reduction *entry = cache->buckets[b], *next; entry != NULL; entry = next) {
            next = entry->next;
            entry->next = buckets[entry->hash & (bucket_count - 1)];
            buckets[entry->hash & (bucket_count - 1)] = entry;
        }
    zb_free(cache->buckets);
    cache->buckets = buckets;
    cache->bucket_count = bucket_count;
    return ZB_OK;
}

zb_status zb_reduction_cache_find(zb_reduction_cache *cache, const zb_order_source *source,
                                  const zb_reduction_call *call, const zb_reduction **reduction_p)
{
    const uint64_t hash = hash_of(source, call);
    zb_cached_reduction *entry = cache->count > 0 ? cache->buckets[hash & (cache->bucket_count - 1)] : NULL;
    for (; entry != NULL; entry = entry->next)
        if (entry->hash == hash && call_equal(&entry->call, call) &&
            zb_order_source_equal(&entry->source, source)) {
            *reduction_p = &entry->reduction;
            return ZB_OK;
        }
    ZB_TRY(grow(cache));
    entry = zb_alloc(sizeof *entry);
    if (entry == NULL) return ZB_NO_MEMORY;
    const zb_status status = fill_entry(entry, source, call);
    if (status != ZB_OK) {
        destroy_entry(entry);
        return status;
    }
    entry->hash = hash;
    entry->next = cache->buckets[hash & (cache->bucket_count - 1)];
    cache->buckets[hash & (cache->bucket_count - 1)] = entry;
    cache->count++;
    *reduction_p = &entry->reduction;
    return ZB_OK;
}

void zb_reduction_cache_destroy(zb_reduction_cache *cache)
{
    for (size_t b = 0; b < cache->bucket_count; b++)
        for (zb_cached_reduction *entry = cache->buckets[b], *next; entry != NULL; entry = next) {
            next = entry->next;
            destroy_entry(entry);
        }
    zb_free(cache->buckets);
    *cache = (zb_reduction_cache){ 0 };
}

/* --- collectives --- */

static int adds(const zb_collective *collective)
{
    const int reduces = collective->kind == ZB_COLLECTIVE_ALL_REDUCE ||
                        collective->kind == ZB_COLLECTIVE_REDUCE_SCATTER ||
                        collective->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V ||
                        collective->kind == ZB_COLLECTIVE_REDUCE;
    return reduces &&
           (collective->op == ZB_SUM || collective->op == ZB_AVG || collective->op == ZB_PREMUL_SUM);
}

zb_status zb_reduction_of_collective(zb_reduction_cache *cache, const zb_collective *collective,
                                     int world_size, const zb_reduction **reduction_p)
{
    *reduction_p = NULL;
    if (collective->order == NULL || !adds(collective)) return ZB_OK;
    const zb_reduction_call call = { .kind = collective->kind,
                                     .world_size = world_size,
                                     .numel = collective->numel,
                                     .counts = collective->counts,
                                     .dtype = collective->dtype,
                                     .op = collective->op,
                                     .factor = collective->factor,
                                     .root = collective->root };
    return zb_reduction_cache_find(cache, collective->order, &call, reduction_p);
}
