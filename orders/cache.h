/*
 * Reductions that have been derived, kept: a step calls the same collectives as the one before, and deriving
 * allocates. What back ends look their collectives up in.
 */
#ifndef ZB_ORDERS_CACHE_H
#define ZB_ORDERS_CACHE_H

#include <zerobit/orders.h>

/* Zero is an empty one. */
typedef struct zb_reduction_cache {
    struct zb_cached_reduction **buckets; /* [bucket_count], a power of two */
    size_t bucket_count, count;
} zb_reduction_cache;

/** The reduction of the call, derived if it has not been asked for before. It lives as long as the cache.
 * Fails as zb_reduction_derive. */
zb_status zb_reduction_cache_find(zb_reduction_cache *cache, const zb_order_source *source,
                                  const zb_reduction_call *call, const zb_reduction **reduction_p);
void zb_reduction_cache_destroy(zb_reduction_cache *cache);

/** How a collective of `world_size` ranks is added, when it names an order; NULL in *reduction_p when it does
 * not, or has none (a minimum, a copy). */
zb_status zb_reduction_of_collective(zb_reduction_cache *cache, const zb_collective *collective,
                                     int world_size, const zb_reduction **reduction_p);

#endif
