/* Local accumulation and reduction at the boundary; see local_stage.h. */
#include "engine/local_stage.h"

#include <zerobit/memory.h>

#include "engine/state.h"

static zb_status create_windows(zb_engine *engine, zb_local_stage *s)
{
    int count = engine->graph.ready_count, next = 0;
    int *forward_order = zb_alloc_array((size_t)count, sizeof *forward_order);
    if (forward_order == NULL) return ZB_NO_MEMORY;
    for (int p = 0; p < engine->model->param_count; p++)
        if (engine->model->params[p].requires_grad && engine->model->params[p].numel > 0)
            forward_order[next++] = p;
    ZB_ASSERT(next == count);
    zb_status status = zb_buckets_create(&engine->layout, forward_order, count,
                                         engine->config->zero.reduce_bucket_numel, engine->comm->rank,
                                         &s->windows);
    zb_free(forward_order);
    if (status != ZB_OK) return status;
    s->works = zb_alloc_array((size_t)s->windows.bucket_count, sizeof *s->works);
    return s->works != NULL ? ZB_OK : ZB_NO_MEMORY;
}

static zb_status allocate(zb_engine *engine, zb_local_stage *s)
{
    void *grad;
    ZB_TRY(zb_replica_create(engine, &s->replica));
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GRAD, engine->layout.padded_numel * sizeof(float), &grad));
    s->grad = grad;
    return create_windows(engine, s);
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
    for (int w = 0; s->works != NULL && w < s->windows.bucket_count; w++)
        zb_engine_collective_abandon(engine, &s->works[w]);
    zb_free(s->works);
    zb_buckets_destroy(&s->windows);
    zb_device_free(engine->device, ZB_MEM_GRAD, engine->layout.padded_numel * sizeof(float), s->grad);
    zb_replica_destroy(engine, &s->replica);
    zb_free(s);
}

const float *zb_local_stage_param(zb_stage *stage, int param)
{
    return zb_replica_param(stage->engine, &zb_local_stage_of(stage)->replica, param);
}

zb_held zb_local_stage_held(zb_stage *stage, int param)
{
    return zb_replica_held(stage->engine, &zb_local_stage_of(stage)->replica, param);
}

zb_status zb_local_stage_gather(zb_stage *stage, int param, const float **full_p)
{
    *full_p = zb_local_stage_param(stage, param);
    return ZB_OK;
}

static float *grad_of(zb_stage *stage, int param)
{
    return zb_local_stage_of(stage)->grad + stage->engine->layout.offset[param];
}

zb_status zb_local_stage_grad_target(zb_stage *stage, int param, float **target_p)
{
    *target_p = stage->engine->micro_index == 0 ? grad_of(stage, param) : NULL;
    return ZB_OK;
}

zb_status zb_local_stage_grad_ready(zb_stage *stage, int param, const float *grad)
{
    zb_engine *engine = stage->engine;
    float *to = grad_of(stage, param);
    size_t numel = engine->model->params[param].numel;
    if (grad == to) return ZB_OK;
    if (engine->micro_index > 0)
        return zb_launch_add(engine->compute, &(zb_add_args){ .y = to, .x = grad, .numel = numel });
    return zb_launch_copy(engine->compute,
                          &(zb_copy_args){ .to = to, .from = grad, .bytes = numel * sizeof(float) });
}

static zb_status reduce_window(zb_local_stage *s, const zb_bucket *window, zb_work *work)
{
    zb_engine *engine = s->base.engine;
    float *send = s->grad + window->flat_offset;
    zb_redop op = zb_engine_grad_op(engine);
    if (window->counts == NULL)
        return zb_engine_collective_run(
            engine, work, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = send, .recv = send,
            .numel = window->numel, .dtype = engine->plan.comm_dtype, .op = op, .order = engine->plan.order,
            .what = "average gradients, all of them");
    return zb_engine_collective_run(engine, work, .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .send = send,
                                    .recv = send + window->share_begin, .counts = window->counts,
                                    .dtype = engine->plan.comm_dtype, .op = op, .order = engine->plan.order,
                                    .what = "average gradients, each rank its share");
}

zb_status zb_local_stage_reduce(zb_stage *stage)
{
    zb_local_stage *s = zb_local_stage_of(stage);
    int overlap = zb_overlap_comm(stage->engine->config, stage->ops->number);
    for (int w = 0; w < s->windows.bucket_count; w++)
        ZB_TRY(reduce_window(s, &s->windows.buckets[w], overlap ? &s->works[w] : NULL));
    for (int w = 0; w < s->windows.bucket_count; w++)
        ZB_TRY(zb_engine_collective_wait(stage->engine, &s->works[w]));
    return ZB_OK;
}
