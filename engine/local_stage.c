/* Local accumulation and reduction at the boundary; see local_stage.h. */
#include "engine/local_stage.h"

#include <zerobit/memory.h>

#include "engine/state.h"

static size_t local_bytes(const zb_layout *layout, const zb_plan *plan)
{
    return layout->padded_numel * zb_dtype_bytes(plan->local_dtype);
}

/* Of averages that have a place of their own. */
static size_t averages_bytes(const zb_layout *layout, const zb_plan *plan)
{
    return plan->local_dtype == plan->grad_dtype ? 0 : layout->rank_numel * zb_dtype_bytes(plan->grad_dtype);
}

static zb_status allocate(zb_engine *engine, zb_local_stage *s)
{
    void *memory;
    const size_t averages = averages_bytes(&engine->layout, &engine->plan);
    ZB_TRY(zb_replica_create(engine, &s->replica));
    ZB_TRY(
        zb_device_alloc(engine->device, ZB_MEM_GRAD, local_bytes(&engine->layout, &engine->plan), &memory));
    s->local = memory;
    if (averages > 0) ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GRAD, averages, &memory));
    s->averages = memory;
    return zb_reducer_create(engine, s->averages, "average gradients", &s->reducer);
}

zb_status zb_local_stage_create(zb_engine *engine, const zb_stage_ops *ops, zb_stage **stage_p)
{
    zb_local_stage *s = zb_alloc(sizeof *s);
    if (s == NULL) return ZB_NO_MEMORY;
    s->base = (zb_stage){ .ops = ops, .engine = engine };
    zb_status status = allocate(engine, s);
    if (status != ZB_OK) {
        zb_local_stage_destroy(&s->base);
        return status;
    }
    *stage_p = &s->base;
    return ZB_OK;
}

void zb_local_stage_destroy(zb_stage *stage)
{
    zb_engine *engine = stage->engine;
    zb_local_stage *s = zb_local_stage_of(stage);
    zb_reducer_destroy(&s->reducer);
    if (s->averages != s->local)
        zb_device_free(engine->device, ZB_MEM_GRAD, averages_bytes(&engine->layout, &engine->plan),
                       s->averages);
    zb_device_free(engine->device, ZB_MEM_GRAD, local_bytes(&engine->layout, &engine->plan), s->local);
    zb_replica_destroy(engine, &s->replica);
    zb_free(s);
}

const void *zb_local_stage_param(zb_stage *stage, int param)
{
    return zb_replica_param(stage->engine, &zb_local_stage_of(stage)->replica, param);
}

zb_held zb_local_stage_held(zb_stage *stage, int param)
{
    return zb_replica_held(stage->engine, &zb_local_stage_of(stage)->replica, param);
}

zb_status zb_local_stage_gather(zb_stage *stage, int param, const void **full_p)
{
    *full_p = zb_local_stage_param(stage, param);
    return ZB_OK;
}

static void *local_of(const zb_stage *stage, int param)
{
    const zb_engine *engine = stage->engine;
    const zb_local_stage *s = (const zb_local_stage *)stage;
    return zb_at(s->local, engine->layout.offset[param], engine->plan.local_dtype);
}

zb_status zb_local_stage_grad_target(zb_stage *stage, int param, void **target_p)
{
    const zb_engine *engine = stage->engine;
    int direct = engine->micro_index == 0 && engine->plan.local_dtype == engine->plan.param_dtype;
    *target_p = direct ? local_of(stage, param) : NULL;
    return ZB_OK;
}

static zb_status enter_bucket(zb_stage *stage, int param)
{
    return zb_reducer_put(&zb_local_stage_of(stage)->reducer, param, local_of(stage, param),
                          stage->engine->plan.local_dtype);
}

zb_status zb_local_stage_grad_ready(zb_stage *stage, int param, const void *grad)
{
    zb_engine *engine = stage->engine;
    const zb_plan *plan = &engine->plan;
    const zb_stage_facts facts = zb_engine_facts(engine);
    ZB_TRY(zb_engine_take_gradient(engine, local_of(stage, param), plan->local_dtype, grad, plan->param_dtype,
                                   engine->model->params[param].numel));
    const int enters = zb_engine_is_boundary(engine) && zb_reducer_as_ready(&facts);
    return enters ? enter_bucket(stage, param) : ZB_OK;
}

zb_status zb_local_stage_reduce(zb_stage *stage)
{
    zb_local_stage *s = zb_local_stage_of(stage);
    zb_reducer *reducer = &s->reducer;
    const zb_stage_facts facts = zb_engine_facts(stage->engine);
    if (reducer->rule.in_place) return zb_reducer_run_in_place(reducer, s->local);
    for (int i = 0; !zb_reducer_as_ready(&facts) && i < reducer->order_count; i++)
        ZB_TRY(enter_bucket(stage, reducer->order[i]));
    return zb_reducer_finish(reducer);
}

zb_place zb_local_stage_place(zb_stage *stage, int group, size_t shard_offset)
{
    const zb_engine *engine = stage->engine;
    const zb_local_stage *s = zb_local_stage_of(stage);
    const size_t flat = zb_layout_flat(&engine->layout, engine->comm->rank, group, shard_offset);
    return (zb_place){ .param = zb_at(s->replica.trainable, flat, engine->plan.param_dtype),
                       .grad = zb_at(s->averages, s->averages == s->local ? flat : shard_offset,
                                     engine->plan.grad_dtype) };
}

const void *zb_local_stage_whole_grad(zb_stage *stage, int param)
{
    return zb_local_stage_of(stage)->reducer.rule.owns_all ? local_of(stage, param) : NULL;
}

void zb_local_stage_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    bytes[ZB_MEM_PARAM] = zb_replica_bytes(facts);
    bytes[ZB_MEM_GRAD] = local_bytes(facts->layout, facts->plan) + averages_bytes(facts->layout, facts->plan);
    bytes[ZB_MEM_BUCKET] = zb_reducer_bytes(facts);
}
