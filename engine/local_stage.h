/*
 * What stages 0 and 1 share: full parameters and full gradients on every rank. Gradients are accumulated
 * locally over the micro-batches and reduced once, at the boundary, in windows of the flat gradient.
 */
#ifndef ZEROBIT_ENGINE_LOCAL_STAGE_H
#define ZEROBIT_ENGINE_LOCAL_STAGE_H

#include "engine/bucket.h"
#include "engine/replica.h"
#include "engine/stage.h"

typedef struct zb_local_stage {
    zb_stage base;
    zb_replica replica;
    void *grad; /* [layout.padded_numel] grad_dtype, padding zero */
    zb_buckets windows;
    zb_work *works; /* [windows.bucket_count], when communication overlaps */
} zb_local_stage;

static inline zb_local_stage *zb_local_stage_of(zb_stage *stage)
{
    return (zb_local_stage *)stage;
}

zb_status zb_local_stage_create(zb_engine *engine, const zb_stage_ops *ops, zb_stage **stage_p);
void zb_local_stage_destroy(zb_stage *stage);
const void *zb_local_stage_param(zb_stage *stage, int param);
zb_held zb_local_stage_held(zb_stage *stage, int param);
zb_status zb_local_stage_gather(zb_stage *stage, int param, const void **full_p);
/* The first micro-batch of a step writes straight into the flat gradient if types allow, later ones through
 * scratch. */
zb_status zb_local_stage_grad_target(zb_stage *stage, int param, void **target_p);
zb_status zb_local_stage_grad_ready(zb_stage *stage, int param, const void *grad);
/* Reduce every window in place: all_reduce where the layout has one owner (stage 0), else reduce_scatter_v,
 * after which only this rank's share of the flat gradient means anything. */
zb_status zb_local_stage_reduce(zb_stage *stage);
/* Bytes of the flat gradient, and how many windows it is reduced in. */
uint64_t zb_local_stage_grad_bytes(const zb_stage_facts *facts);
uint64_t zb_local_stage_window_count(const zb_stage_facts *facts);

#endif
