/*
 * Gradients on their way across ranks: copied into the buffer of their bucket, reduced, and this rank's
 * averages stored, or added, where the optimizer will read them. What all stages share.
 *
 * Life of a buffer: opened for a bucket (waits for and settles what it carried before) -> filled, parameter
 * by parameter -> launched when the last one is in, or (`late`) when the next bucket is opened or at the end:
 * divided and converted as the plan says, sent -> settled: waited for, and taken in. There is one buffer, or
 * two that take turns when communication overlaps with computation.
 *
 * Where gradients lie in the flat space already and nothing has to be converted, that space is the buffer:
 * zb_reducer_run_in_place.
 */
#ifndef ZEROBIT_ENGINE_REDUCER_H
#define ZEROBIT_ENGINE_REDUCER_H

#include "engine/bucket.h"
#include "engine/stage.h"

typedef struct zb_reducer_buffer {
    void *data;     /* [plan.capacity] bucket_dtype */
    void *wire;     /* [plan.capacity] comm_dtype: data itself where these are one type */
    int bucket;     /* that it carries, or -1 */
    zb_work *works; /* [plan.send_capacity] */
} zb_reducer_buffer;

typedef struct zb_reducer {
    zb_engine *engine;
    zb_bucket_rule rule;
    zb_buckets plan;
    const int *order; /* [order_count] in which parameters come; borrowed */
    int order_count;
    void *averages; /* grad_dtype; in the flat space or the shard, as the rule says; borrowed */
    zb_reducer_buffer buffers[2];
    int buffer_count; /* 0: in place */
    zb_work *works;   /* in place: [bucket_count] */
    int open_bucket;  /* being filled, or -1 */
    int missing;      /* parameters of the open bucket not in yet */
    const char *what; /* for reports */
} zb_reducer;

/* In which order gradients enter buckets. At stage 1 they enter at the boundary, or (`as_ready`) when the
 * last micro-batch's backward completes them. */
const int *zb_reducer_order(const zb_stage_facts *facts, int *count_p);
int zb_reducer_as_ready(const zb_stage_facts *facts);

/* A zeroed reducer may be destroyed, and one whose creation failed must be. */
zb_status zb_reducer_create(zb_engine *engine, void *averages, const char *what, zb_reducer *reducer);
void zb_reducer_destroy(zb_reducer *reducer);

/* Where a kernel may write the parameter's gradient straight into its bucket, in param_dtype; NULL: it is cut
 * or converted on its way. */
zb_status zb_reducer_target(zb_reducer *reducer, int param, void **target_p);
/* The gradient is complete, at that target or elsewhere; launches the bucket when it was the last. Gradients
 * come in the order, so that one bucket at most is open. */
zb_status zb_reducer_put(zb_reducer *reducer, int param, const void *from, zb_dtype from_dtype);
/* Settles whatever still travels. */
zb_status zb_reducer_finish(zb_reducer *reducer);
/* All buckets at once, each a range of the flat gradients. */
zb_status zb_reducer_run_in_place(zb_reducer *reducer, void *flat);

/* By formula: bytes of BUCKET, and an optimizer step's reductions. */
uint64_t zb_reducer_bytes(const zb_stage_facts *facts);
void zb_reducer_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT]);

#endif
