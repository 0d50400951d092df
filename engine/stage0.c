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

const zb_stage_ops zb_stage0 = {
    .number = 0,
    .name = "stage 0",
    .norm_is_partial = 0,
    .create = stage0_create,
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
    .publish = zb_stage_nothing,
    .gather = zb_local_stage_gather,
    .release = zb_stage_nothing,
    .place = zb_local_stage_place,
    .held = zb_local_stage_held,
    .whole_grad = zb_local_stage_whole_grad,
    .memory = zb_local_stage_memory,
    .traffic = zb_reducer_traffic,
};
