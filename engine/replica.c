/* Full parameters on every rank; see replica.h. */
#include "engine/replica.h"

#include "engine/state.h"

static size_t bytes_of(const zb_engine *engine, size_t numel)
{
    return numel * zb_dtype_bytes(engine->plan.param_dtype);
}

zb_status zb_replica_create(zb_engine *engine, zb_replica *replica)
{
    const zb_layout *layout = &engine->layout;
    void *trainable, *frozen;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_PARAM, bytes_of(engine, layout->padded_numel), &trainable));
    replica->trainable = trainable;
    ZB_TRY(
        zb_device_alloc(engine->device, ZB_MEM_PARAM, bytes_of(engine, layout->frozen_rank_numel), &frozen));
    replica->frozen = frozen;

    for (int p = 0; p < engine->model->param_count; p++) {
        const zb_param *param = &engine->model->params[p];
        void *to = zb_at(param->requires_grad ? replica->trainable : replica->frozen, layout->offset[p],
                         engine->plan.param_dtype);
        ZB_TRY(zb_engine_load_initial(engine, p, 0, param->numel, to));
    }
    return ZB_OK;
}

void zb_replica_destroy(zb_engine *engine, zb_replica *replica)
{
    const zb_layout *layout = &engine->layout;
    zb_device_free(engine->device, ZB_MEM_PARAM, bytes_of(engine, layout->padded_numel), replica->trainable);
    zb_device_free(engine->device, ZB_MEM_PARAM, bytes_of(engine, layout->frozen_rank_numel),
                   replica->frozen);
}

const void *zb_replica_param(const zb_engine *engine, const zb_replica *replica, int param)
{
    const void *base = engine->model->params[param].requires_grad ? replica->trainable : replica->frozen;
    return zb_at(base, engine->layout.offset[param], engine->plan.param_dtype);
}

zb_held zb_replica_held(const zb_engine *engine, const zb_replica *replica, int param)
{
    return (zb_held){ .data = zb_replica_param(engine, replica, param),
                      .numel = engine->model->params[param].numel };
}

size_t zb_replica_own_begin(const zb_engine *engine)
{
    return engine->layout.rank_numel * (size_t)engine->comm->rank;
}

zb_status zb_replica_publish(zb_engine *engine, zb_replica *replica, const char *what)
{
    return zb_engine_collective_run(
        engine, NULL, .kind = ZB_COLLECTIVE_ALL_GATHER,
        .send = zb_at(replica->trainable, zb_replica_own_begin(engine), engine->plan.param_dtype),
        .recv = replica->trainable, .numel = engine->layout.rank_numel, .dtype = engine->plan.param_dtype,
        .what = what);
}

zb_traffic zb_replica_publish_traffic(const zb_stage_facts *facts)
{
    if (facts->skipped) return (zb_traffic){ 0 };
    return (zb_traffic){
        .calls = 1, .bytes = zb_dtype_bytes(facts->plan->param_dtype) * (uint64_t)facts->layout->padded_numel
    };
}

uint64_t zb_replica_bytes(const zb_stage_facts *facts)
{
    return zb_dtype_bytes(facts->plan->param_dtype) *
           ((uint64_t)facts->layout->padded_numel + facts->layout->frozen_rank_numel);
}

zb_status zb_stage_module_nothing(zb_stage *stage, int module)
{
    (void)stage;
    (void)module;
    return ZB_OK;
}

zb_status zb_stage_nothing(zb_stage *stage)
{
    (void)stage;
    return ZB_OK;
}
