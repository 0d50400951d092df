/* Local accumulation and reduction at the boundary; see local_stage.h. */
#include "engine/local_stage.h"

#include <zerobit/memory.h>

#include "engine/state.h"

static zb_status create_windows(zb_engine *engine, zb_local_stage *s)
{
    ZB_TRY(zb_buckets_create(&engine->layout, engine->graph.trainable, engine->graph.ready_count,
                             engine->config->zero.reduce_bucket_numel, engine->comm->rank, &s->windows));
    s->works = zb_alloc_array((size_t)s->windows.bucket_count, sizeof *s->works);
    return s->works != NULL ? ZB_OK : ZB_NO_MEMORY;
}

static size_t grad_bytes(const zb_layout *layout, const zb_plan *plan)
{
    return layout->padded_numel * zb_dtype_bytes(plan->grad_dtype);
}

static zb_status allocate(zb_engine *engine, zb_local_stage *s)
{
    void *grad;
    ZB_TRY(zb_replica_create(engine, &s->replica));
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->layout, &engine->plan), &grad));
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
    zb_device_free(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->layout, &engine->plan), s->grad);
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

static void *grad_of(zb_stage *stage, int param)
{
    const zb_engine *engine = stage->engine;
    return zb_at(zb_local_stage_of(stage)->grad, engine->layout.offset[param], engine->plan.grad_dtype);
}

zb_status zb_local_stage_grad_target(zb_stage *stage, int param, void **target_p)
{
    const zb_engine *engine = stage->engine;
    int direct = engine->micro_index == 0 && engine->plan.grad_dtype == engine->plan.param_dtype;
    *target_p = direct ? grad_of(stage, param) : NULL;
    return ZB_OK;
}

zb_status zb_local_stage_grad_ready(zb_stage *stage, int param, const void *grad)
{
    zb_engine *engine = stage->engine;
    return zb_engine_take_gradient(engine, grad_of(stage, param), grad, engine->plan.param_dtype,
                                   engine->model->params[param].numel);
}

static zb_status reduce_window(zb_local_stage *s, const zb_bucket *window, zb_work *work)
{
    zb_engine *engine = s->base.engine;
    zb_dtype dtype = engine->plan.comm_dtype; /* which is grad_dtype: zb_plan_derive sees to it */
    void *send = zb_at(s->grad, window->flat_offset, dtype);
    zb_redop op = zb_engine_grad_op(engine);
    if (window->counts == NULL)
        return zb_engine_collective_run(engine, work, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = send,
                                        .recv = send, .numel = window->numel, .dtype = dtype, .op = op,
                                        .order = engine->plan.order,
                                        .what = "average gradients, all of them");
    return zb_engine_collective_run(engine, work, .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .send = send,
                                    .recv = zb_at(send, window->share_begin, dtype), .counts = window->counts,
                                    .dtype = dtype, .op = op, .order = engine->plan.order,
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

uint64_t zb_local_stage_grad_bytes(const zb_stage_facts *facts)
{
    return grad_bytes(facts->layout, facts->plan);
}

uint64_t zb_local_stage_window_count(const zb_stage_facts *facts)
{
    return zb_buckets_measure(facts->layout, facts->graph->trainable, facts->graph->ready_count,
                              facts->config->zero.reduce_bucket_numel)
        .bucket_count;
}
