/*
 * Stage 3: parameters are partitioned too. Each rank keeps its part of every parameter; a module's parameters
 * are gathered before it runs and dropped after. Gradients travel as at stage 2. Source: ZeRO, arXiv
 * 1910.02054, section 5.3; deepspeed/runtime/zero/partition_parameters.py and stage3.py.
 *
 * Parameters are gather.h's part; this file has the gradients.
 */
#include <zerobit/memory.h>

#include "engine/gather.h"
#include "engine/reducer.h"
#include "engine/replica.h"
#include "engine/state.h"

typedef struct stage3 {
    zb_stage base;
    zb_gather params;
    void *grad; /* [rank_numel] grad_dtype */
    zb_reducer reducer;
} stage3;

static stage3 *self(zb_stage *stage)
{
    return (stage3 *)stage;
}

static size_t grad_bytes(const zb_plan *plan, size_t numel)
{
    return numel * zb_dtype_bytes(plan->grad_dtype);
}

static void stage3_destroy(zb_stage *stage)
{
    zb_engine *engine = stage->engine;
    stage3 *s = self(stage);
    zb_gather_abandon(&s->params);
    zb_reducer_destroy(&s->reducer);
    zb_device_free(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->plan, engine->layout.rank_numel),
                   s->grad);
    zb_gather_destroy(&s->params);
    zb_free(stage);
}

static zb_status allocate(zb_engine *engine, stage3 *s)
{
    void *grad;
    ZB_TRY(zb_gather_create(engine, &s->params));
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->plan, engine->layout.rank_numel),
                           &grad));
    s->grad = grad;
    return zb_reducer_create(engine, s->grad, "stage 3: average gradients", &s->reducer);
}

static zb_status stage3_create(zb_engine *engine, zb_stage **stage_p)
{
    stage3 *s = zb_alloc(sizeof *s);
    if (s == NULL) return ZB_NO_MEMORY;
    s->base = (zb_stage){ .ops = &zb_stage3, .engine = engine };
    zb_status status = allocate(engine, s);
    if (status != ZB_OK) {
        stage3_destroy(&s->base);
        return status;
    }
    *stage_p = &s->base;
    return ZB_OK;
}

static zb_status stage3_begin_forward(zb_stage *stage)
{
    return zb_gather_begin_forward(&self(stage)->params);
}

static zb_status stage3_before_forward(zb_stage *stage, int module)
{
    return zb_gather_module(&self(stage)->params, module, ZB_HOOK_ENTER_FORWARD);
}

static zb_status stage3_after_forward(zb_stage *stage, int module)
{
    return zb_gather_module(&self(stage)->params, module, ZB_HOOK_LEAVE_FORWARD);
}

static zb_status stage3_end_forward(zb_stage *stage)
{
    return zb_gather_end_forward(&self(stage)->params);
}

static zb_status stage3_begin_backward(zb_stage *stage)
{
    return zb_gather_begin_backward(&self(stage)->params);
}

static zb_status stage3_before_backward(zb_stage *stage, int module)
{
    return zb_gather_module(&self(stage)->params, module, ZB_HOOK_ENTER_BACKWARD);
}

static zb_status stage3_after_backward(zb_stage *stage, int module)
{
    return zb_gather_module(&self(stage)->params, module, ZB_HOOK_LEAVE_BACKWARD);
}

static const void *stage3_param(zb_stage *stage, int param)
{
    return zb_gather_param(&self(stage)->params, param);
}

static zb_status stage3_gather(zb_stage *stage, int param, const void **full_p)
{
    return zb_gather_one(&self(stage)->params, param, full_p);
}

static zb_status stage3_release(zb_stage *stage)
{
    return zb_gather_release(&self(stage)->params);
}

static zb_held stage3_held(zb_stage *stage, int param)
{
    return zb_gather_held(&self(stage)->params, param);
}

static zb_status stage3_grad_target(zb_stage *stage, int param, void **target_p)
{
    return zb_reducer_target(&self(stage)->reducer, param, target_p);
}

static zb_status stage3_grad_ready(zb_stage *stage, int param, const void *grad)
{
    return zb_reducer_put(&self(stage)->reducer, param, grad, stage->engine->plan.param_dtype);
}

static zb_status stage3_end_backward(zb_stage *stage)
{
    ZB_TRY(zb_gather_end_backward(&self(stage)->params));
    return zb_reducer_finish(&self(stage)->reducer);
}

static zb_status stage3_reduce(zb_stage *stage)
{
    return zb_gather_drop_all(&self(stage)->params);
}

static zb_status stage3_publish(zb_stage *stage)
{
    return zb_gather_publish(&self(stage)->params);
}

static zb_place stage3_place(zb_stage *stage, int group, size_t shard_offset)
{
    const zb_plan *plan = &stage->engine->plan;
    (void)group; /* a shard is one array */
    return (zb_place){ .param = zb_at(self(stage)->params.trainable, shard_offset, plan->param_dtype),
                       .grad = zb_at(self(stage)->grad, shard_offset, plan->grad_dtype) };
}

static void stage3_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    zb_gather_memory(facts, bytes);
    bytes[ZB_MEM_GRAD] = grad_bytes(facts->plan, facts->layout->rank_numel);
    bytes[ZB_MEM_BUCKET] = zb_reducer_bytes(facts);
}

static void stage3_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    zb_gather_traffic(facts, traffic);
    zb_reducer_traffic(facts, traffic);
}

const zb_stage_ops zb_stage3 = {
    .number = 3,
    .name = "stage 3",
    .norm_is_partial = 1,
    .create = stage3_create,
    .destroy = stage3_destroy,
    .begin_forward = stage3_begin_forward,
    .end_forward = stage3_end_forward,
    .begin_backward = stage3_begin_backward,
    .before_forward = stage3_before_forward,
    .after_forward = stage3_after_forward,
    .before_backward = stage3_before_backward,
    .after_backward = stage3_after_backward,
    .param = stage3_param,
    .grad_target = stage3_grad_target,
    .grad_ready = stage3_grad_ready,
    .end_backward = stage3_end_backward,
    .reduce = stage3_reduce,
    .publish = stage3_publish,
    .gather = stage3_gather,
    .release = stage3_release,
    .place = stage3_place,
    .held = stage3_held,
    .whole_grad = zb_stage_no_whole_grad,
    .memory = stage3_memory,
    .traffic = stage3_traffic,
};
