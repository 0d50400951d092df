/*
 * Stage 0: plain data parallelism. Every rank holds all parameters, gradients and optimizer states; gradients
 * are averaged at the accumulation boundary, and every rank then makes the same step.
 */
#include "engine/local_stage.h"
#include "engine/state.h"

static zb_status stage0_create(zb_engine *engine, zb_stage **stage_p)
{
    return zb_local_stage_create(engine, &zb_stage0, stage_p);
}

static zb_shard stage0_shard(zb_stage *stage)
{
    zb_local_stage *s = zb_local_stage_of(stage);
    return (zb_shard){ .param = s->replica.trainable,
                       .grad = s->grad,
                       .numel = stage->engine->layout.rank_numel };
}

static void stage0_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    bytes[ZB_MEM_PARAM] = zb_replica_bytes(facts);
    bytes[ZB_MEM_GRAD] = zb_local_stage_grad_bytes(facts);
}

static void stage0_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    traffic[ZB_COLLECTIVE_ALL_REDUCE] = (zb_traffic){
        .calls = zb_local_stage_window_count(facts),
        .bytes = zb_dtype_bytes(facts->plan->comm_dtype) * (uint64_t)facts->layout->numel,
    };
}

const zb_stage_ops zb_stage0 = {
    .number = 0,
    .name = "stage 0",
    .norm_is_partial = 0,
    .create = stage0_create,
    .destroy = zb_local_stage_destroy,
    .before_forward = zb_stage_module_nothing,
    .after_forward = zb_stage_module_nothing,
    .before_backward = zb_stage_module_nothing,
    .after_backward = zb_stage_module_nothing,
    .param = zb_local_stage_param,
    .grad_target = zb_local_stage_grad_target,
    .grad_ready = zb_local_stage_grad_ready,
    .end_backward = zb_stage_nothing,
    .reduce = zb_local_stage_reduce,
    .publish = zb_stage_nothing,
    .gather = zb_local_stage_gather,
    .release = zb_stage_nothing,
    .shard = stage0_shard,
    .held = zb_local_stage_held,
    .memory = stage0_memory,
    .traffic = stage0_traffic,
};
