/*
 * The buffers in which buckets of gradients travel while backward goes on: one, or two that take turns when
 * communication overlaps with computation. What stages 2 and 3 share.
 *
 * Life of a buffer: opened for a bucket (waits for and settles what it carried before) -> filled by the stage
 * -> launched when the last parameter is in -> settled: waited for, and this rank's share handed to the
 * stage.
 */
#ifndef ZEROBIT_ENGINE_BUCKET_PAIR_H
#define ZEROBIT_ENGINE_BUCKET_PAIR_H

#include "engine/bucket.h"
#include "engine/stage.h"

/* Take this rank's share of a reduced bucket: `share` points at bucket->share_numel elements. */
typedef zb_status zb_bucket_settle_fn(zb_stage *stage, const zb_bucket *bucket, const void *share);

typedef struct zb_bucket_buffer {
    void *data; /* [plan.capacity] */
    int bucket; /* that it carries, or -1 */
    zb_work work;
} zb_bucket_buffer;

typedef struct zb_bucket_pair {
    zb_buckets plan;
    zb_bucket_buffer buffers[2];
    int buffer_count;
    int open_bucket; /* being filled, or -1 */
    int missing;     /* parameters of the open bucket not in yet */
    zb_bucket_settle_fn *settle;
    const char *what; /* for reports */
} zb_bucket_pair;

zb_status zb_bucket_pair_create(zb_engine *engine, zb_bucket_settle_fn *settle, const char *what,
                                zb_bucket_pair *pair);
void zb_bucket_pair_destroy(zb_engine *engine, zb_bucket_pair *pair);
/* The buffer in which the parameter's bucket is filled; opens the bucket if it is not. Gradients come in the
 * graph's ready order, so that one bucket at most is open. */
zb_status zb_bucket_pair_buffer(zb_stage *stage, zb_bucket_pair *pair, int param, void **data_p);
/* The parameter is in its buffer; launches the reduction when it was the last. */
zb_status zb_bucket_pair_filled(zb_stage *stage, zb_bucket_pair *pair, int param);
/* Settles whatever still travels. */
zb_status zb_bucket_pair_finish(zb_stage *stage, zb_bucket_pair *pair);
uint64_t zb_bucket_pair_bytes(const zb_stage_facts *facts);
/* Buckets per micro-batch. */
uint64_t zb_bucket_pair_count(const zb_stage_facts *facts);

#endif
