/*
 * Stage 3: parameters are partitioned too. Each rank keeps its part of every parameter; a module's parameters
 * are gathered before it runs and dropped after. Gradients travel as at stage 2. Source: ZeRO, arXiv
 * 1910.02054, section 5.3; deepspeed/runtime/zero/partition_parameters.py and stage3.py.
 *
 * Parameters are gather.h's part; this file has the gradients.
 */
#include <zerobit/memory.h>

#include "engine/bucket_pair.h"
#include "engine/gather.h"
#include "engine/replica.h"
#include "engine/state.h"

typedef struct stage3 {
    zb_stage base;
    zb_gather params;
    void *grad; /* [rank_numel] grad_dtype */
    zb_bucket_pair buckets;
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
    zb_bucket_pair_destroy(engine, &s->buckets);
    zb_device_free(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->plan, engine->layout.rank_numel),
                   s->grad);
    zb_gather_destroy(&s->params);
    zb_free(stage);
}

/* The share of a bucket holds the parts of its parameters in bucket order, padding included. */
static zb_status settle(zb_stage *stage, const zb_bucket *bucket, const void *share)
{
    zb_engine *engine = stage->engine;
    const zb_plan *plan = &engine->plan;
    for (int i = 0; i < bucket->param_count; i++) {
        int param = bucket->params[i];
        zb_slice slice = zb_layout_slice(&engine->layout, param, engine->comm->rank);
        const void *from = zb_at(share, self(stage)->buckets.plan.slot[param], plan->comm_dtype);
        void *to = zb_at(self(stage)->grad, slice.shard_offset, plan->grad_dtype);
        if (slice.numel == 0) continue;
        ZB_TRY(zb_engine_take_gradient(engine, to, from, plan->comm_dtype, slice.numel));
    }
    return ZB_OK;
}

static zb_status allocate(zb_engine *engine, stage3 *s)
{
    void *grad;
    ZB_TRY(zb_gather_create(engine, &s->params));
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GRAD, grad_bytes(&engine->plan, engine->layout.rank_numel),
                           &grad));
    s->grad = grad;
    return zb_bucket_pair_create(engine, settle, "stage 3: average gradients", &s->buckets);
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

static zb_status stage3_before_forward(zb_stage *stage, int module)
{
    return zb_gather_before_forward(&self(stage)->params, module);
}

static zb_status stage3_before_backward(zb_stage *stage, int module)
{
    return zb_gather_before_backward(&self(stage)->params, module);
}

static zb_status stage3_after_module(zb_stage *stage, int module)
{
    (void)module;
    return zb_gather_release(&self(stage)->params);
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
    (void)stage;
    (void)param;
    *target_p = NULL; /* the bucket interleaves ranks, so that gradients pass through scratch */
    return ZB_OK;
}

/* Cut the gradient into the ranks' parts; what a part has beyond the parameter's end is zero. */
static zb_status stage3_grad_ready(zb_stage *stage, int param, const void *grad)
{
    zb_engine *engine = stage->engine;
    const zb_plan *plan = &engine->plan;
    zb_bucket_pair *buckets = &self(stage)->buckets;
    void *buffer;
    ZB_TRY(zb_bucket_pair_buffer(stage, buckets, param, &buffer));
    size_t part = engine->layout.part_numel[param];
    size_t share_numel = buckets->plan.buckets[buckets->plan.bucket_of[param]].share_numel;
    for (int rank = 0; rank < engine->comm->world_size; rank++) {
        zb_slice slice = zb_layout_slice(&engine->layout, param, rank);
        void *to = zb_at(buffer, (size_t)rank * share_numel + buckets->plan.slot[param], plan->comm_dtype);
        ZB_TRY(zb_store(engine->compute, to, plan->comm_dtype, zb_at(grad, slice.first, plan->param_dtype),
                        plan->param_dtype, slice.numel));
        if (slice.numel < part)
            ZB_TRY(zb_launch_fill_bytes(
                engine->compute,
                &(zb_fill_bytes_args){ .data = zb_at(to, slice.numel, plan->comm_dtype),
                                       .bytes = (part - slice.numel) * zb_dtype_bytes(plan->comm_dtype) }));
    }
    return zb_bucket_pair_filled(stage, buckets, param);
}

static zb_status stage3_end_backward(zb_stage *stage)
{
    return zb_bucket_pair_finish(stage, &self(stage)->buckets);
}

static zb_shard stage3_shard(zb_stage *stage)
{
    return (zb_shard){ .param = self(stage)->params.trainable,
                       .grad = self(stage)->grad,
                       .numel = stage->engine->layout.rank_numel };
}

static void stage3_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    zb_gather_memory(facts, bytes);
    bytes[ZB_MEM_GRAD] = grad_bytes(facts->plan, facts->layout->rank_numel);
    bytes[ZB_MEM_BUCKET] = zb_bucket_pair_bytes(facts);
}

static void stage3_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    traffic[ZB_COLLECTIVE_ALL_GATHER] = zb_gather_traffic(facts);
    uint64_t micro_batches = (uint64_t)facts->plan->accumulation_steps;
    traffic[ZB_COLLECTIVE_REDUCE_SCATTER] = (zb_traffic){
        .calls = zb_bucket_pair_count(facts) * micro_batches,
        .bytes = zb_dtype_bytes(facts->plan->comm_dtype) * (uint64_t)facts->layout->padded_numel *
                 micro_batches,
    };
}

const zb_stage_ops zb_stage3 = {
    .number = 3,
    .name = "stage 3",
    .norm_is_partial = 1,
    .create = stage3_create,
    .destroy = stage3_destroy,
    .before_forward = stage3_before_forward,
    .after_forward = stage3_after_module,
    .before_backward = stage3_before_backward,
    .after_backward = stage3_after_module,
    .param = stage3_param,
    .grad_target = stage3_grad_target,
    .grad_ready = stage3_grad_ready,
    .end_backward = stage3_end_backward,
    .reduce = zb_stage_nothing,
    .publish = zb_stage_nothing, /* the next gather does it */
    .gather = stage3_gather,
    .release = stage3_release,
    .shard = stage3_shard,
    .held = stage3_held,
    .memory = stage3_memory,
    .traffic = stage3_traffic,
};
