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

/* One call per group; a rank on its own has nobody to tell. Source: runtime/utils.py,
 * all_gather_into_tensor_dp_groups. */
zb_status zb_replica_publish(zb_engine *engine, zb_replica *replica, const char *what)
{
    const zb_layout *layout = &engine->layout;
    const zb_dtype dtype = engine->plan.param_dtype;
    for (int group = 0; group < layout->group_count; group++) {
        const zb_layout_group *g = &layout->groups[group];
        const size_t own = zb_layout_flat(layout, engine->comm->rank, group, g->shard_begin);
        if (g->rank_numel == 0 || engine->comm->world_size == 1) continue;
        ZB_TRY(zb_engine_collective_run(engine, NULL, .kind = ZB_COLLECTIVE_ALL_GATHER,
                                        .send = zb_at(replica->trainable, own, dtype),
                                        .recv = zb_at(replica->trainable, g->flat_begin, dtype),
                                        .numel = g->rank_numel, .dtype = dtype, .what = what));
    }
    return ZB_OK;
}

zb_traffic zb_replica_publish_traffic(const zb_stage_facts *facts)
{
    const zb_layout *layout = facts->layout;
    zb_traffic traffic = { 0 };
    if (facts->skipped || layout->world_size == 1) return traffic;
    for (int group = 0; group < layout->group_count; group++)
        if (layout->groups[group].numel > 0) traffic.calls++;
    traffic.bytes = zb_dtype_bytes(facts->plan->param_dtype) * (uint64_t)layout->padded_numel;
    return traffic;
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

const void *zb_stage_no_whole_grad(zb_stage *stage, int param)
{
    (void)stage;
    (void)param;
    return NULL;
}
