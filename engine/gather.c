/* Parameters of stage 3, in parts and whole; see gather.h. */
#include "engine/gather.h"

#include "engine/state.h"

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

static size_t bytes_of(const zb_plan *plan, size_t numel)
{
    return numel * zb_dtype_bytes(plan->param_dtype);
}

static void *own_part(const zb_gather *g, int param)
{
    const zb_engine *engine = g->engine;
    const void *parts = engine->model->params[param].requires_grad ? g->trainable : g->frozen;
    return zb_at(parts, engine->layout.offset[param], engine->plan.param_dtype);
}

zb_status zb_gather_create(zb_engine *engine, zb_gather *g)
{
    const zb_layout *layout = &engine->layout;
    const zb_plan *plan = &engine->plan;
    void *memory;
    *g = (zb_gather){ .engine = engine, .whole_numel = largest_module(layout) };
    for (int i = 0; i < ZB_GATHERED_MAX; i++) g->now[i].param = ZB_NO_PARAM;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->rank_numel), &memory));
    g->trainable = memory;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->frozen_rank_numel), &memory));
    g->frozen = memory;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GATHER, bytes_of(plan, g->whole_numel), &memory));
    g->whole = memory;

    for (int p = 0; p < engine->model->param_count; p++) {
        zb_slice slice = zb_layout_slice(layout, p, engine->comm->rank);
        ZB_TRY(zb_engine_load_initial(engine, p, slice.first, slice.numel, own_part(g, p)));
    }
    return ZB_OK;
}

void zb_gather_abandon(zb_gather *g)
{
    for (int i = 0; i < ZB_GATHERED_MAX; i++) zb_engine_collective_abandon(g->engine, &g->now[i].work);
}

void zb_gather_destroy(zb_gather *g)
{
    zb_engine *engine = g->engine;
    const zb_layout *layout = &engine->layout;
    const zb_plan *plan = &engine->plan;
    zb_device_free(engine->device, ZB_MEM_GATHER, bytes_of(plan, g->whole_numel), g->whole);
    zb_device_free(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->frozen_rank_numel), g->frozen);
    zb_device_free(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->rank_numel), g->trainable);
}

static zb_status start_gather(zb_gather *g, int slot, int param, void *to)
{
    zb_engine *engine = g->engine;
    g->now[slot] = (zb_gathered){ .param = param, .data = to };
    return zb_engine_collective_run(engine, &g->now[slot].work, .kind = ZB_COLLECTIVE_ALL_GATHER,
                                    .send = own_part(g, param), .recv = to,
                                    .numel = engine->layout.part_numel[param],
                                    .dtype = engine->plan.param_dtype, .what = "stage 3: gather parameter");
}

/* Both gathers under way at once, then wait for both. Either may be ZB_NO_PARAM. */
static zb_status gather_both(zb_gather *g, int weight, int bias)
{
    const int params[ZB_GATHERED_MAX] = { weight, bias };
    void *to = g->whole;
    for (int i = 0; i < ZB_GATHERED_MAX; i++) {
        if (params[i] == ZB_NO_PARAM) continue;
        ZB_TRY(start_gather(g, i, params[i], to));
        to = zb_at(to, padded_numel(&g->engine->layout, params[i]), g->engine->plan.param_dtype);
    }
    for (int i = 0; i < ZB_GATHERED_MAX; i++)
        if (params[i] != ZB_NO_PARAM) ZB_TRY(zb_engine_collective_wait(g->engine, &g->now[i].work));
    return ZB_OK;
}

zb_status zb_gather_release(zb_gather *g)
{
    for (int i = 0; i < ZB_GATHERED_MAX; i++) {
        if (g->now[i].param == ZB_NO_PARAM) continue;
        size_t numel = padded_numel(&g->engine->layout, g->now[i].param);
        ZB_TRY(zb_discard(g->engine->compute, g->now[i].data, bytes_of(&g->engine->plan, numel)));
        g->now[i].param = ZB_NO_PARAM;
    }
    return ZB_OK;
}

zb_status zb_gather_before_forward(zb_gather *g, int module)
{
    const zb_module *m = &g->engine->model->modules[module];
    return gather_both(g, m->weight, m->bias);
}

zb_status zb_gather_before_backward(zb_gather *g, int module)
{
    if (!zb_graph_backward_reads_weight(&g->engine->graph, module)) return ZB_OK;
    return gather_both(g, g->engine->model->modules[module].weight, ZB_NO_PARAM);
}

zb_status zb_gather_one(zb_gather *g, int param, const void **full_p)
{
    ZB_TRY(gather_both(g, param, ZB_NO_PARAM));
    *full_p = g->whole;
    return ZB_OK;
}

const void *zb_gather_param(zb_gather *g, int param)
{
    for (int i = 0; i < ZB_GATHERED_MAX; i++)
        if (g->now[i].param == param) return g->now[i].data;
    ZB_ASSERT(!"a parameter is read outside its gather");
    return NULL;
}

zb_held zb_gather_held(const zb_gather *g, int param)
{
    zb_slice slice = zb_layout_slice(&g->engine->layout, param, g->engine->comm->rank);
    return (zb_held){ .data = own_part(g, param), .first = slice.first, .numel = slice.numel };
}

void zb_gather_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    const zb_layout *layout = facts->layout;
    bytes[ZB_MEM_PARAM] = bytes_of(facts->plan, layout->rank_numel + layout->frozen_rank_numel);
    bytes[ZB_MEM_GATHER] = bytes_of(facts->plan, largest_module(layout));
}

static void count_gather(const zb_stage_facts *facts, int param, zb_traffic *gathers)
{
    if (param == ZB_NO_PARAM) return;
    gathers->calls += (uint64_t)facts->plan->accumulation_steps;
    gathers->bytes += bytes_of(facts->plan, padded_numel(facts->layout, param)) *
                      (uint64_t)facts->plan->accumulation_steps;
}

zb_traffic zb_gather_traffic(const zb_stage_facts *facts)
{
    const zb_model *model = facts->layout->model;
    zb_traffic gathers = { 0 };
    for (int m = 0; m < model->module_count; m++) {
        const zb_module *module = &model->modules[m];
        if (module->kind == ZB_MODULE_PARAMETER) continue;
        count_gather(facts, module->weight, &gathers);
        count_gather(facts, module->bias, &gathers);
        if (facts->graph->needs_grad[m] && zb_graph_backward_reads_weight(facts->graph, m))
            count_gather(facts, module->weight, &gathers);
    }
    return gathers;
}
