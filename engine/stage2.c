/*
 * Stage 2: gradients are partitioned too. As they become ready in backward they are averaged bucket by
 * bucket, in every micro-batch; a rank keeps only its own share and adds it up over the micro-batches.
 * Source: ZeRO, arXiv 1910.02054, section 5.2; deepspeed/runtime/zero/stage_1_and_2.py.
 */
#include <zerobit/memory.h>

#include "engine/reducer.h"
#include "engine/replica.h"
#include "engine/state.h"

typedef struct stage2 {
    zb_stage base;
    zb_replica replica;
    void *grad; /* [rank_numel] grad_dtype, padding zero */
    zb_reducer reducer;
} stage2;

static stage2 *self(zb_stage *stage)
{
    return (stage2 *)stage;
}

static size_t grad_bytes(const zb_layout *layout, const zb_plan *plan)
{
    return layout->rank_numel * zb_dtype_bytes(plan->grad_dtype);
}

static void stage2_destroy(zb_stage *stage)
{
    zb_engine *engine = stage->engine;
    zb_reducer_destroy(&self(stage)->reducer);
    zb_device_free(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->layout, &engine->plan),
                   self(stage)->grad);
    zb_replica_destroy(engine, &self(stage)->replica);
    zb_free(stage);
}

static zb_status allocate(zb_engine *engine, stage2 *s)
{
    void *grad;
    ZB_TRY(zb_replica_create(engine, &s->replica));
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->layout, &engine->plan), &grad));
    s->grad = grad;
    return zb_reducer_create(engine, s->grad, "stage 2: average gradients", &s->reducer);
}

static zb_status stage2_create(zb_engine *engine, zb_stage **stage_p)
{
    stage2 *s = zb_alloc(sizeof *s);
    if (s == NULL) return ZB_NO_MEMORY;
    s->base = (zb_stage){ .ops = &zb_stage2, .engine = engine };
    zb_status status = allocate(engine, s);
    if (status != ZB_OK) {
        stage2_destroy(&s->base);
        return status;
    }
    *stage_p = &s->base;
    return ZB_OK;
}

static const void *stage2_param(zb_stage *stage, int param)
{
    return zb_replica_param(stage->engine, &self(stage)->replica, param);
}

static zb_held stage2_held(zb_stage *stage, int param)
{
    return zb_replica_held(stage->engine, &self(stage)->replica, param);
}

static zb_status stage2_gather(zb_stage *stage, int param, const void **full_p)
{
    *full_p = stage2_param(stage, param);
    return ZB_OK;
}

static zb_status stage2_grad_target(zb_stage *stage, int param, void **target_p)
{
    return zb_reducer_target(&self(stage)->reducer, param, target_p);
}

static zb_status stage2_grad_ready(zb_stage *stage, int param, const void *grad)
{
    return zb_reducer_put(&self(stage)->reducer, param, grad, stage->engine->plan.param_dtype);
}

static zb_status stage2_end_backward(zb_stage *stage)
{
    return zb_reducer_finish(&self(stage)->reducer);
}

static zb_status stage2_publish(zb_stage *stage)
{
    return zb_replica_publish(stage->engine, &self(stage)->replica, "stage 2: publish weights");
}

static zb_place stage2_place(zb_stage *stage, int group, size_t shard_offset)
{
    const zb_engine *engine = stage->engine;
    const size_t flat = zb_layout_flat(&engine->layout, engine->comm->rank, group, shard_offset);
    return (zb_place){ .param = zb_at(self(stage)->replica.trainable, flat, engine->plan.param_dtype),
                       .grad = zb_at(self(stage)->grad, shard_offset, engine->plan.grad_dtype) };
}

static void stage2_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    bytes[ZB_MEM_PARAM] = zb_replica_bytes(facts);
    bytes[ZB_MEM_GRAD] = grad_bytes(facts->layout, facts->plan);
    bytes[ZB_MEM_BUCKET] = zb_reducer_bytes(facts);
}

static void stage2_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    zb_reducer_traffic(facts, traffic);
    traffic[ZB_COLLECTIVE_ALL_GATHER] = zb_replica_publish_traffic(facts);
}

const zb_stage_ops zb_stage2 = {
    .number = 2,
    .name = "stage 2",
    .norm_is_partial = 1,
    .create = stage2_create,
    .destroy = stage2_destroy,
    .begin_forward = zb_stage_nothing,
    .end_forward = zb_stage_nothing,
    .begin_backward = zb_stage_nothing,
    .before_forward = zb_stage_module_nothing,
    .after_forward = zb_stage_module_nothing,
    .before_backward = zb_stage_module_nothing,
    .after_backward = zb_stage_module_nothing,
    .param = stage2_param,
    .grad_target = stage2_grad_target,
    .grad_ready = stage2_grad_ready,
    .end_backward = stage2_end_backward,
    .reduce = zb_stage_nothing,
    .publish = stage2_publish,
    .gather = stage2_gather,
    .release = zb_stage_nothing,
    .place = stage2_place,
    .held = stage2_held,
    .whole_grad = zb_stage_no_whole_grad,
    .memory = stage2_memory,
    .traffic = stage2_traffic,
};
