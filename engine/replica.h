/* Full parameters on every rank: what stages 0, 1 and 2 compute with. One flat array of the trainable ones,
 * padded as the layout says, and one of the frozen ones. */
#ifndef ZEROBIT_ENGINE_REPLICA_H
#define ZEROBIT_ENGINE_REPLICA_H

#include "engine/stage.h"

typedef struct zb_replica {
    void *trainable; /* [layout.padded_numel], param_dtype like the next */
    void *frozen;    /* [layout.frozen_rank_numel] */
} zb_replica;

/* With the initial weights in place and zero padding. */
zb_status zb_replica_create(zb_engine *engine, zb_replica *replica);
void zb_replica_destroy(zb_engine *engine, zb_replica *replica);
const void *zb_replica_param(const zb_engine *engine, const zb_replica *replica, int param);
zb_held zb_replica_held(const zb_engine *engine, const zb_replica *replica, int param);
/* All-gather the ranks' shares, group by group, into everyone's flat parameters (stages 1, 2). */
zb_status zb_replica_publish(zb_engine *engine, zb_replica *replica, const char *what);
zb_traffic zb_replica_publish_traffic(const zb_stage_facts *facts);
uint64_t zb_replica_bytes(const zb_stage_facts *facts);

/* For the slots of the table in which a stage with full parameters has nothing to do. */
zb_status zb_stage_module_nothing(zb_stage *stage, int module);
zb_status zb_stage_nothing(zb_stage *stage);
const void *zb_stage_no_whole_grad(zb_stage *stage, int param);

#endif
