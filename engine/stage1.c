/*
 * Stage 1: optimizer states are partitioned. Every rank holds all parameters and gradients, but after the
 * reduction at the boundary only its own share of the average; it steps that share, and an all-gather gives
 * everyone the new weights. Source: ZeRO, arXiv 1910.02054, section 5.1;
 * deepspeed/runtime/zero/stage_1_and_2.py.
 *
 * DeepSpeed all-reduces here (3 psi of traffic); this stage really reduce-scatters (2 psi). The bits are
 * those of the plan either way.
 */
#include "engine/local_stage.h"
#include "engine/state.h"

static zb_status stage1_create(zb_engine *engine, zb_stage **stage_p)
{
    return zb_local_stage_create(engine, &zb_stage1, stage_p);
}

static zb_status stage1_publish(zb_stage *stage)
{
    return zb_replica_publish(stage->engine, &zb_local_stage_of(stage)->replica, "stage 1: publish weights");
}

static void stage1_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    zb_reducer_traffic(facts, traffic);
    traffic[ZB_COLLECTIVE_ALL_GATHER] = zb_replica_publish_traffic(facts);
}

const zb_stage_ops zb_stage1 = {
    .number = 1,
    .name = "stage 1",
    .norm_is_partial = 1,
    .create = stage1_create,
    .destroy = zb_local_stage_destroy,
    .begin_forward = zb_stage_nothing,
    .end_forward = zb_stage_nothing,
    .begin_backward = zb_stage_nothing,
    .before_forward = zb_stage_module_nothing,
    .after_forward = zb_stage_module_nothing,
    .before_backward = zb_stage_module_nothing,
    .after_backward = zb_stage_module_nothing,
    .param = zb_local_stage_param,
    .grad_target = zb_local_stage_grad_target,
    .grad_ready = zb_local_stage_grad_ready,
    .end_backward = zb_stage_nothing,
    .reduce = zb_local_stage_reduce,
    .publish = stage1_publish,
    .gather = zb_local_stage_gather,
    .release = zb_stage_nothing,
    .place = zb_local_stage_place,
    .held = zb_local_stage_held,
    .whole_grad = zb_local_stage_whole_grad,
    .memory = zb_local_stage_memory,
    .traffic = stage1_traffic,
};
