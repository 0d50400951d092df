/*
 * What stages 0 and 1 share: full parameters and full gradients on every rank. Gradients are accumulated
 * locally over the micro-batches and reduced once, at the boundary. The averages replace what was
 * accumulated, unless they are of another type.
 */
#ifndef ZEROBIT_ENGINE_LOCAL_STAGE_H
#define ZEROBIT_ENGINE_LOCAL_STAGE_H

#include "engine/reducer.h"
#include "engine/replica.h"
#include "engine/stage.h"

typedef struct zb_local_stage {
    zb_stage base;
    zb_replica replica;
    void *local;    /* [layout.padded_numel] local_dtype, padding zero                                     */
    void *averages; /* local, where the averages are of its type; else [layout.rank_numel] grad_dtype      */
    zb_reducer reducer;
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
zb_status zb_local_stage_reduce(zb_stage *stage);
zb_place zb_local_stage_place(zb_stage *stage, int group, size_t shard_offset);
const void *zb_local_stage_whole_grad(zb_stage *stage, int param);
void zb_local_stage_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT]);

#endif
