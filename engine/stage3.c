/*
 * Stage 3: parameters are partitioned too. Each rank keeps its part of every parameter; a module's parameters
 * are gathered before it runs and dropped after. Gradients travel as at stage 2. Source: ZeRO, arXiv
 * 1910.02054, section 5.3; deepspeed/runtime/zero/partition_parameters.py and stage3.py.
 *
 * A part of parameter p has part_numel(p) = ceil(n / W) elements. The shard holds the parts of all trainable
 * parameters end to end, then, in an array of its own, those of the frozen ones; padding is always zero.
 */
#include <zerobit/memory.h>

#include "engine/bucket_pair.h"
#include "engine/replica.h"
#include "engine/state.h"

/* A module uses two parameters at most: its weight and its bias. */
enum { GATHERED_MAX = 2 };

typedef struct gathered {
    int param; /* or ZB_NO_PARAM */
    void *data;
    zb_work work;
} gathered;

typedef struct stage3 {
    zb_stage base;
    void *trainable; /* [rank_numel] param_dtype, like the next */
    void *frozen;    /* [frozen_rank_numel] */
    void *grad;      /* [rank_numel] grad_dtype */
    void *gather;    /* [gather_numel] the parameters of the module that runs, whole */
    size_t gather_numel;
    gathered now[GATHERED_MAX];
    zb_bucket_pair buckets;
} stage3;

static stage3 *self(zb_stage *stage)
{
    return (stage3 *)stage;
}

static size_t padded_numel(const zb_layout *layout, int param)
{
    return param == ZB_NO_PARAM ? 0 : layout->part_numel[param] * (size_t)layout->world_size;
}

/* Of the gather buffer: the module with the most, unused parameters included (they are gathered for
 * inspection). */
static size_t largest_module(const zb_layout *layout)
{
    size_t largest = 0;
    for (int m = 0; m < layout->model->module_count; m++) {
        const zb_module *module = &layout->model->modules[m];
        size_t numel = padded_numel(layout, module->weight) + padded_numel(layout, module->bias);
        if (numel > largest) largest = numel;
    }
    return largest;
}

static size_t param_bytes(const zb_plan *plan, size_t numel)
{
    return numel * zb_dtype_bytes(plan->param_dtype);
}

static size_t grad_bytes(const zb_plan *plan, size_t numel)
{
    return numel * zb_dtype_bytes(plan->grad_dtype);
}

static void *own_part(const stage3 *s, int param)
{
    const zb_engine *engine = s->base.engine;
    const void *shard = engine->model->params[param].requires_grad ? s->trainable : s->frozen;
    return zb_at(shard, engine->layout.offset[param], engine->plan.param_dtype);
}

static void stage3_destroy(zb_stage *stage)
{
    zb_engine *engine = stage->engine;
    stage3 *s = self(stage);
    const zb_plan *plan = &engine->plan;
    const zb_layout *layout = &engine->layout;
    for (int i = 0; i < GATHERED_MAX; i++) zb_engine_collective_abandon(engine, &s->now[i].work);
    zb_bucket_pair_destroy(engine, &s->buckets);
    zb_device_free(engine->device, ZB_MEM_GATHER, param_bytes(plan, s->gather_numel), s->gather);
    zb_device_free(engine->device, ZB_MEM_GRAD, grad_bytes(plan, layout->rank_numel), s->grad);
    zb_device_free(engine->device, ZB_MEM_PARAM, param_bytes(plan, layout->frozen_rank_numel), s->frozen);
    zb_device_free(engine->device, ZB_MEM_PARAM, param_bytes(plan, layout->rank_numel), s->trainable);
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
    const zb_layout *layout = &engine->layout;
    const zb_plan *plan = &engine->plan;
    void *memory;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_PARAM, param_bytes(plan, layout->rank_numel), &memory));
    s->trainable = memory;
    ZB_TRY(
        zb_device_alloc(engine->device, ZB_MEM_PARAM, param_bytes(plan, layout->frozen_rank_numel), &memory));
    s->frozen = memory;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GRAD, grad_bytes(plan, layout->rank_numel), &memory));
    s->grad = memory;
    s->gather_numel = largest_module(layout);
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GATHER, param_bytes(plan, s->gather_numel), &memory));
    s->gather = memory;
    ZB_TRY(zb_bucket_pair_create(engine, settle, "stage 3: average gradients", &s->buckets));

    for (int p = 0; p < engine->model->param_count; p++) {
        zb_slice slice = zb_layout_slice(layout, p, engine->comm->rank);
        ZB_TRY(zb_engine_load_initial(engine, p, slice.first, slice.numel, own_part(s, p)));
    }
    return ZB_OK;
}

static zb_status stage3_create(zb_engine *engine, zb_stage **stage_p)
{
    stage3 *s = zb_alloc(sizeof *s);
    if (s == NULL) return ZB_NO_MEMORY;
    s->base = (zb_stage){ .ops = &zb_stage3, .engine = engine };
    for (int i = 0; i < GATHERED_MAX; i++) s->now[i].param = ZB_NO_PARAM;
    zb_status status = allocate(engine, s);
    if (status != ZB_OK) {
        stage3_destroy(&s->base);
        return status;
    }
    *stage_p = &s->base;
    return ZB_OK;
}

static zb_status start_gather(stage3 *s, int slot, int param, void *to)
{
    zb_engine *engine = s->base.engine;
    s->now[slot] = (gathered){ .param = param, .data = to };
    return zb_engine_collective_run(engine, &s->now[slot].work, .kind = ZB_COLLECTIVE_ALL_GATHER,
                                    .send = own_part(s, param), .recv = to,
                                    .numel = engine->layout.part_numel[param],
                                    .dtype = engine->plan.param_dtype, .what = "stage 3: gather parameter");
}

/* Both gathers under way at once, then wait for both. Either may be ZB_NO_PARAM. */
static zb_status gather(zb_stage *stage, int weight, int bias)
{
    stage3 *s = self(stage);
    const int params[GATHERED_MAX] = { weight, bias };
    void *to = s->gather;
    for (int i = 0; i < GATHERED_MAX; i++) {
        if (params[i] == ZB_NO_PARAM) continue;
        ZB_TRY(start_gather(s, i, params[i], to));
        to = zb_at(to, padded_numel(&stage->engine->layout, params[i]), stage->engine->plan.param_dtype);
    }
    for (int i = 0; i < GATHERED_MAX; i++)
        if (params[i] != ZB_NO_PARAM) ZB_TRY(zb_engine_collective_wait(stage->engine, &s->now[i].work));
    return ZB_OK;
}

static zb_status stage3_release(zb_stage *stage)
{
    stage3 *s = self(stage);
    for (int i = 0; i < GATHERED_MAX; i++) {
        if (s->now[i].param == ZB_NO_PARAM) continue;
        size_t numel = padded_numel(&stage->engine->layout, s->now[i].param);
        ZB_TRY(zb_discard(stage->engine->compute, s->now[i].data, param_bytes(&stage->engine->plan, numel)));
        s->now[i].param = ZB_NO_PARAM;
    }
    return ZB_OK;
}

static zb_status stage3_before_forward(zb_stage *stage, int module)
{
    const zb_module *m = &stage->engine->model->modules[module];
    return gather(stage, m->weight, m->bias);
}

static zb_status stage3_before_backward(zb_stage *stage, int module)
{
    if (!zb_graph_backward_reads_weight(&stage->engine->graph, module)) return ZB_OK;
    return gather(stage, stage->engine->model->modules[module].weight, ZB_NO_PARAM);
}

static zb_status stage3_after_module(zb_stage *stage, int module)
{
    (void)module;
    return stage3_release(stage);
}

static zb_status stage3_gather(zb_stage *stage, int param, const void **full_p)
{
    ZB_TRY(gather(stage, param, ZB_NO_PARAM));
    *full_p = self(stage)->gather;
    return ZB_OK;
}

static const void *stage3_param(zb_stage *stage, int param)
{
    for (int i = 0; i < GATHERED_MAX; i++)
        if (self(stage)->now[i].param == param) return self(stage)->now[i].data;
    ZB_ASSERT(!"a parameter is read outside its gather");
    return NULL;
}

static zb_held stage3_held(zb_stage *stage, int param)
{
    zb_slice slice = zb_layout_slice(&stage->engine->layout, param, stage->engine->comm->rank);
    return (zb_held){ .data = own_part(self(stage), param), .first = slice.first, .numel = slice.numel };
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
    return (zb_shard){ .param = self(stage)->trainable,
                       .grad = self(stage)->grad,
                       .numel = stage->engine->layout.rank_numel };
}

static void stage3_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    const zb_layout *layout = facts->layout;
    bytes[ZB_MEM_PARAM] = param_bytes(facts->plan, layout->rank_numel + layout->frozen_rank_numel);
    bytes[ZB_MEM_GRAD] = grad_bytes(facts->plan, layout->rank_numel);
    bytes[ZB_MEM_GATHER] = param_bytes(facts->plan, largest_module(layout));
    bytes[ZB_MEM_BUCKET] = zb_bucket_pair_bytes(facts);
}

static void count_gather(const zb_stage_facts *facts, int param, zb_traffic *gathers)
{
    if (param == ZB_NO_PARAM) return;
    gathers->calls += (uint64_t)facts->plan->accumulation_steps;
    gathers->bytes += param_bytes(facts->plan, padded_numel(facts->layout, param)) *
                      (uint64_t)facts->plan->accumulation_steps;
}

static void stage3_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    const zb_layout *layout = facts->layout;
    for (int m = 0; m < layout->model->module_count; m++) {
        const zb_module *module = &layout->model->modules[m];
        if (module->kind == ZB_MODULE_PARAMETER) continue;
        count_gather(facts, module->weight, &traffic[ZB_COLLECTIVE_ALL_GATHER]);
        count_gather(facts, module->bias, &traffic[ZB_COLLECTIVE_ALL_GATHER]);
        if (facts->graph->needs_grad[m] && zb_graph_backward_reads_weight(facts->graph, m))
            count_gather(facts, module->weight, &traffic[ZB_COLLECTIVE_ALL_GATHER]);
    }
    uint64_t micro_batches = (uint64_t)facts->plan->accumulation_steps;
    traffic[ZB_COLLECTIVE_REDUCE_SCATTER] = (zb_traffic){
        .calls = zb_bucket_pair_count(facts) * micro_batches,
        .bytes = zb_dtype_bytes(facts->plan->comm_dtype) * (uint64_t)layout->padded_numel * micro_batches,
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
