/*
 * Which gradients travel together. Parameters are taken in a given order; a bucket is closed when the next
 * one would make it larger than the limit, so that one larger than the limit travels alone. Source of the
 * rule: stage_1_and_2.py and stage3.py, reduce_independent_p_g_buckets_and_remove_grads.
 *
 * Inside a bucket the send buffer is laid out so that each rank's share is contiguous and ranks ascend:
 *  stages 0 to 2: parameters by ascending flat offset, end to end (shares of unequal length: counts)
 *  stage 3:       for each rank the parts that it owns, padding included (shares of equal length)
 */
#ifndef ZEROBIT_ENGINE_BUCKET_H
#define ZEROBIT_ENGINE_BUCKET_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>

#include "engine/layout.h"

typedef struct zb_bucket {
    int *params; /* [param_count] within zb_buckets.params, in buffer order */
    int param_count;
    size_t numel;       /* of the send buffer, over all ranks               */
    size_t flat_offset; /* stages 0 to 2: of the first parameter            */
    size_t share_numel; /* stage 3: of every rank; else of this rank        */
    size_t share_begin; /* where this rank's share begins in the buffer     */
    size_t *counts;     /* [world_size] share lengths; NULL at stages 0, 3  */
} zb_bucket;

typedef struct zb_buckets {
    zb_bucket *buckets;
    int bucket_count;
    int *params;
    size_t *counts;
    size_t capacity; /* largest numel                                    */
    int *bucket_of;  /* [param_count] -1: travels in none                */
    size_t *slot;    /* [param_count] offset in the buffer, or within each rank's share at stage 3 */
} zb_buckets;

/* `order` lists trainable parameters with elements; `rank` is the own one. */
zb_status zb_buckets_create(const zb_layout *layout, const int *order, int order_count, uint64_t limit_numel,
                            int rank, zb_buckets *buckets);
void zb_buckets_destroy(zb_buckets *buckets);

/* What a plan would have, without making it: for the formulas. */
typedef struct zb_bucket_measure {
    uint64_t bucket_count;
    size_t capacity;
} zb_bucket_measure;
zb_bucket_measure zb_buckets_measure(const zb_layout *layout, const int *order, int order_count,
                                     uint64_t limit_numel);

#endif
