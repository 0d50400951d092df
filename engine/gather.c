/* Parameters of stage 3, in parts and whole; see gather.h. */
#include "engine/gather.h"

#include <inttypes.h>
#include <string.h>
#include <zerobit/memory.h>

#include "engine/state.h"

static size_t bytes_of(const zb_plan *plan, size_t numel)
{
    return numel * zb_dtype_bytes(plan->param_dtype);
}

static size_t padded_numel(const zb_layout *layout, int param)
{
    return layout->part_numel[param] * (size_t)layout->world_size;
}

static void *own_part(const zb_gather *g, int param)
{
    const zb_engine *engine = g->engine;
    const void *parts = engine->model->params[param].requires_grad ? g->trainable : g->frozen;
    return zb_at(parts, engine->layout.offset[param], engine->plan.param_dtype);
}

static void *in_arena(const zb_gather *g, size_t place)
{
    return zb_at(g->arena, place, g->engine->plan.param_dtype);
}

static zb_status discard(const zb_gather *g, size_t place, size_t numel)
{
    return zb_discard(g->engine->compute, in_arena(g, place), bytes_of(&g->engine->plan, numel));
}

/* --- set-up --- */

zb_status zb_gather_derive(const zb_config *config, const zb_plan *plan, const zb_graph *graph,
                           const zb_layout *layout, zb_gather_trace *trace, zb_gather_plan *gather_plan)
{
    const zb_zero_config *zero = &config->zero;
    const int as_deepspeed = plan->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6;
    const zb_gather_rules rules = { .as_deepspeed = as_deepspeed,
                                    .granularity_numel = zero->module_granularity_numel };
    const zb_gather_knobs knobs = { .prefetch_numel = zero->prefetch_bucket_numel,
                                    .max_live_numel = zero->max_live_numel,
                                    .max_reuse_numel = zero->max_reuse_numel,
                                    .param_persistence_numel = zero->param_persistence_numel,
                                    .model_persistence_numel = zero->model_persistence_numel,
                                    .sequential = zero->allgather_sequential,
                                    .record_first = plan->quirks.first_iteration_recorded,
                                    .silent_alone = as_deepspeed };
    ZB_TRY(zb_gather_trace_create(graph, &rules, trace));
    zb_status status = zb_gather_plan_create(trace, layout, &knobs, plan->accumulation_steps,
                                             plan->overflow == ZB_OVERFLOW_SKIP, gather_plan);
    if (status != ZB_OK) zb_gather_trace_destroy(trace);
    return status;
}

static int compared_count(const zb_gather_plan *plan)
{
    const int most = plan->entry_count > plan->needed_count ? plan->entry_count : plan->needed_count;
    return most > 0 ? most : 1;
}

static zb_status allocate(zb_engine *engine, zb_gather *g)
{
    const zb_plan *plan = &engine->plan;
    const zb_layout *layout = &engine->layout;
    void *memory;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->rank_numel), &memory));
    g->trainable = memory;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->frozen_rank_numel), &memory));
    g->frozen = memory;
    ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_GATHER, bytes_of(plan, g->plan.arena_numel), &memory));
    g->arena = memory;
    g->is_whole = zb_alloc((size_t)engine->model->param_count);
    g->works = zb_alloc_array((size_t)g->plan.call_count, sizeof *g->works);
    g->compared = zb_alloc_array((size_t)compared_count(&g->plan), sizeof *g->compared);
    return g->is_whole == NULL || g->works == NULL || g->compared == NULL ? ZB_NO_MEMORY : ZB_OK;
}

zb_status zb_gather_create(zb_engine *engine, zb_gather *g)
{
    *g = (zb_gather){ .engine = engine, .pass = ZB_NO_PASS };
    ZB_TRY(zb_gather_derive(engine->config, &engine->plan, &engine->graph, &engine->layout, &g->trace,
                            &g->plan));
    ZB_TRY(allocate(engine, g));
    for (int p = 0; p < engine->model->param_count; p++) {
        zb_slice slice = zb_layout_slice(&engine->layout, p, engine->comm->rank);
        ZB_TRY(zb_engine_load_initial(engine, p, slice.first, slice.numel, own_part(g, p)));
    }
    return ZB_OK;
}

void zb_gather_abandon(zb_gather *g)
{
    for (int c = 0; g->works != NULL && c < g->plan.call_count; c++)
        zb_engine_collective_abandon(g->engine, &g->works[c]);
}

void zb_gather_destroy(zb_gather *g)
{
    zb_engine *engine = g->engine;
    const zb_layout *layout = &engine->layout;
    const zb_plan *plan = &engine->plan;
    zb_free(g->compared);
    zb_free(g->works);
    zb_free(g->is_whole);
    zb_device_free(engine->device, ZB_MEM_GATHER, bytes_of(plan, g->plan.arena_numel), g->arena);
    zb_device_free(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->frozen_rank_numel), g->frozen);
    zb_device_free(engine->device, ZB_MEM_PARAM, bytes_of(plan, layout->rank_numel), g->trainable);
    zb_gather_plan_destroy(&g->plan);
    zb_gather_trace_destroy(&g->trace);
}

/* --- one all_gather --- */

static zb_status copy(const zb_gather *g, void *to, const void *from, size_t numel)
{
    const zb_dtype dtype = g->engine->plan.param_dtype;
    return zb_store(g->engine->compute, to, dtype, from, dtype, numel);
}

static const int *params_of(const zb_gather *g, const zb_gather_call *call)
{
    return g->plan.params + call->params.first;
}

/* This rank's parts end to end, where the all_gather would put them. */
static zb_status pack(const zb_gather *g, const zb_gather_call *call, void **own)
{
    const zb_engine *engine = g->engine;
    *own = in_arena(g, call->buffer + (size_t)engine->comm->rank * call->part_numel);
    void *to = *own;
    for (int i = 0; i < call->params.count; i++) {
        const int param = params_of(g, call)[i];
        const size_t part = engine->layout.part_numel[param];
        ZB_TRY(copy(g, to, own_part(g, param), part));
        to = zb_at(to, part, engine->plan.param_dtype);
    }
    return ZB_OK;
}

/* The other way, from every rank: each parameter to its place, without padding. */
static zb_status unpack(const zb_gather *g, const zb_gather_call *call)
{
    const zb_engine *engine = g->engine;
    size_t from = call->buffer;
    for (int rank = 0; rank < g->plan.world_size; rank++)
        for (int i = 0; i < call->params.count; i++) {
            const int param = params_of(g, call)[i];
            const zb_slice slice = zb_layout_slice(&engine->layout, param, rank);
            ZB_TRY(copy(g, in_arena(g, g->plan.place[param] + slice.first), in_arena(g, from), slice.numel));
            from += engine->layout.part_numel[param];
        }
    return discard(g, call->buffer, call->part_numel * (size_t)g->plan.world_size);
}

/* Alone, the part is the whole. */
static zb_status copy_own(const zb_gather *g, const zb_gather_call *call)
{
    for (int i = 0; i < call->params.count; i++) {
        const int param = params_of(g, call)[i];
        ZB_TRY(copy(g, in_arena(g, g->plan.place[param]), own_part(g, param),
                    g->engine->layout.part_numel[param]));
    }
    return ZB_OK;
}

static zb_status start_call(zb_gather *g, int index)
{
    const zb_gather_call *call = &g->plan.calls[index];
    zb_engine *engine = g->engine;
    if (g->plan.is_local) return copy_own(g, call);
    void *own = own_part(g, params_of(g, call)[0]);
    if (zb_gather_call_is_coalesced(&g->plan, call)) ZB_TRY(pack(g, call, &own));
    const int overlap = engine->transfer != engine->compute;
    return zb_engine_collective_run(
        engine, overlap ? &g->works[index] : NULL, .kind = ZB_COLLECTIVE_ALL_GATHER, .send = own,
        .recv = in_arena(g, call->buffer), .numel = call->part_numel, .dtype = engine->plan.param_dtype,
        .stream = engine->prefetch, .what = "stage 3: gather parameters");
}

static zb_status land_call(zb_gather *g, int index)
{
    const zb_gather_call *call = &g->plan.calls[index];
    if (!g->plan.is_local) ZB_TRY(zb_engine_collective_wait(g->engine, &g->works[index]));
    if (zb_gather_call_is_coalesced(&g->plan, call)) ZB_TRY(unpack(g, call));
    for (int i = 0; i < call->params.count; i++) g->is_whole[params_of(g, call)[i]] = 1;
    return ZB_OK;
}

static zb_status start_calls(zb_gather *g, zb_span calls)
{
    for (int i = 0; i < calls.count; i++) ZB_TRY(start_call(g, calls.first + i));
    return ZB_OK;
}

static zb_status release(zb_gather *g, zb_span params)
{
    for (int i = 0; i < params.count; i++) {
        const int param = g->plan.params[params.first + i];
        ZB_ASSERT(g->is_whole[param]);
        g->is_whole[param] = 0;
        ZB_TRY(discard(g, g->plan.place[param], padded_numel(&g->engine->layout, param)));
    }
    return ZB_OK;
}

/* --- a pass --- */

static zb_status act(zb_gather *g, int event)
{
    const zb_gather_actions *actions = zb_gather_plan_at(&g->plan, g->pass, event);
    ZB_TRY(start_calls(g, actions->fetch));
    for (int i = 0; i < actions->land.count; i++)
        ZB_TRY(land_call(g, g->plan.landings[actions->land.first + i]));
    ZB_TRY(start_calls(g, actions->prefetch));
    return release(g, actions->release);
}

/* Also tells events that the trace does not have: a unit that never leaves. */
static int is_next(const zb_gather *g, int unit, zb_hook hook)
{
    const zb_gather_event *next = &g->trace.events[g->event];
    return g->event < g->trace.event_count && next->unit == unit && next->hook == hook;
}

static zb_status act_if_next(zb_gather *g, int unit, zb_hook hook)
{
    return is_next(g, unit, hook) ? act(g, g->event++) : ZB_OK;
}

zb_status zb_gather_module(zb_gather *g, int module, zb_hook hook)
{
    const int unit = g->trace.unit_of[module];
    if (unit == ZB_GATHER_NO_UNIT) return ZB_OK;
    ZB_ASSERT(g->is_under_way && (hook == ZB_HOOK_LEAVE_BACKWARD || is_next(g, unit, hook)));
    return act_if_next(g, unit, hook);
}

/* Every rank must have recorded what rank 0 has. */
static zb_status compare(zb_gather *g, const char *what, const int64_t *recorded, int count)
{
    const zb_comm *comm = g->engine->comm;
    const int64_t length = count;
    const struct {
        const int64_t *values;
        int count;
    } sent[] = { { &length, 1 }, { recorded, count } };
    for (size_t i = 0; i < sizeof sent / sizeof sent[0]; i++) {
        const size_t numel = (size_t)sent[i].count;
        memset(g->compared, 0, numel * sizeof *g->compared);
        if (comm->rank == 0 && numel > 0) memcpy(g->compared, sent[i].values, numel * sizeof *g->compared);
        ZB_TRY(zb_collective_run(g->engine->comm, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = g->compared,
                                 .numel = numel, .dtype = ZB_INT64,
                                 .what = "stage 3: compare recorded order"));
        for (size_t j = 0; j < numel; j++)
            if (g->compared[j] != sent[i].values[j])
                return zb_fail(ZB_MISMATCH,
                               "stage 3: rank %d has recorded another order than rank 0: %s %zu is %" PRId64
                               ", want %" PRId64,
                               comm->rank, i == 0 ? "the number of" : what, j, sent[i].values[j],
                               g->compared[j]);
    }
    return ZB_OK;
}

static zb_status check_order(zb_gather *g)
{
    const zb_gather_plan *plan = &g->plan;
    switch (plan->passes[g->pass].check) {
    case ZB_CHECK_NOTHING:
        return ZB_OK;
    case ZB_CHECK_EMPTY:
        return compare(g, "unit", NULL, 0);
    case ZB_CHECK_TRACE:
        ZB_TRY(compare(g, "unit", plan->entered, plan->entry_count));
        ZB_TRY(compare(g, "parameter", plan->needed, plan->needed_count));
        return compare(g, "entry of parameter", plan->needed_at, plan->needed_count);
    }
    return ZB_OK;
}

zb_status zb_gather_begin_forward(zb_gather *g)
{
    ZB_ASSERT(!g->is_under_way);
    g->pass = g->pass == ZB_NO_PASS ? 0 : g->plan.passes[g->pass].next[g->after];
    ZB_ASSERT(g->pass != ZB_NO_PASS);
    g->event = 0;
    g->is_under_way = 1;
    ZB_TRY(check_order(g));
    return act_if_next(g, ZB_GATHER_ROOT, ZB_HOOK_ENTER_FORWARD);
}

zb_status zb_gather_end_forward(zb_gather *g)
{
    return act_if_next(g, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_FORWARD);
}

zb_status zb_gather_begin_backward(zb_gather *g)
{
    return act_if_next(g, ZB_GATHER_ROOT, ZB_HOOK_ENTER_BACKWARD);
}

zb_status zb_gather_end_backward(zb_gather *g)
{
    ZB_TRY(act_if_next(g, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_BACKWARD));
    ZB_ASSERT(g->event == g->trace.event_count);
    g->is_under_way = 0;
    g->after = ZB_AFTER_MICRO_BATCH;
    return act(g, g->event);
}

zb_status zb_gather_drop_all(zb_gather *g)
{
    g->after = ZB_AFTER_SKIPPED; /* until publish says otherwise */
    return release(g, g->plan.passes[g->pass].end);
}

zb_status zb_gather_publish(zb_gather *g)
{
    g->after = ZB_AFTER_APPLIED;
    ZB_TRY(start_calls(g, g->plan.publish));
    for (int i = 0; i < g->plan.publish.count; i++) ZB_TRY(land_call(g, g->plan.publish.first + i));
    return ZB_OK;
}

/* --- looking --- */

const void *zb_gather_param(zb_gather *g, int param)
{
    ZB_ASSERT(g->is_whole[param]);
    return in_arena(g, g->plan.place[param]);
}

zb_status zb_gather_one(zb_gather *g, int param, const void **full_p)
{
    zb_engine *engine = g->engine;
    ZB_ASSERT(g->inspected_numel == 0);
    if (g->is_whole[param] || g->plan.is_local) {
        *full_p = g->is_whole[param] ? zb_gather_param(g, param) : own_part(g, param);
        return ZB_OK;
    }
    void *to = in_arena(g, g->plan.inspect_place);
    g->inspected_numel = padded_numel(&engine->layout, param);
    ZB_TRY(zb_engine_collective_run(
        engine, NULL, .kind = ZB_COLLECTIVE_ALL_GATHER, .send = own_part(g, param), .recv = to,
        .numel = engine->layout.part_numel[param], .dtype = engine->plan.param_dtype,
        .what = "stage 3: gather a parameter for inspection"));
    *full_p = to;
    return ZB_OK;
}

zb_status zb_gather_release(zb_gather *g)
{
    const size_t numel = g->inspected_numel;
    g->inspected_numel = 0;
    return numel > 0 ? discard(g, g->plan.inspect_place, numel) : ZB_OK;
}

zb_held zb_gather_held(const zb_gather *g, int param)
{
    zb_slice slice = zb_layout_slice(&g->engine->layout, param, g->engine->comm->rank);
    return (zb_held){ .data = own_part(g, param), .first = slice.first, .numel = slice.numel };
}

/* --- by formula --- */

void zb_gather_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT])
{
    const zb_layout *layout = facts->layout;
    bytes[ZB_MEM_PARAM] = bytes_of(facts->plan, layout->rank_numel + layout->frozen_rank_numel);
    bytes[ZB_MEM_GATHER] = bytes_of(facts->plan, facts->gather->arena_numel);
}

static void count_calls(const zb_stage_facts *facts, zb_span calls, zb_traffic *traffic)
{
    const zb_gather_plan *gather = facts->gather;
    if (gather->is_local) return;
    traffic->calls += (uint64_t)calls.count;
    for (int c = calls.first; c < calls.first + calls.count; c++)
        traffic->bytes += bytes_of(facts->plan, gather->calls[c].part_numel * (size_t)gather->world_size);
}

static void count_check(const zb_gather_plan *gather, zb_gather_check check, zb_traffic *traffic)
{
    const uint64_t lists = check == ZB_CHECK_TRACE ? 3 : check == ZB_CHECK_EMPTY;
    const uint64_t entries = (uint64_t)gather->entry_count + 2 * (uint64_t)gather->needed_count;
    traffic->calls += 2 * lists;
    traffic->bytes += sizeof(int64_t) * (lists + (check == ZB_CHECK_TRACE ? entries : 0));
}

/* Of a step that begins with the pass; returns the one that follows it. */
static int count_step(const zb_stage_facts *facts, int pass, int skipped, zb_traffic *traffic)
{
    const zb_gather_plan *gather = facts->gather;
    for (int64_t micro = 0; micro < facts->plan->accumulation_steps; micro++) {
        if (micro > 0) pass = gather->passes[pass].next[ZB_AFTER_MICRO_BATCH];
        count_check(gather, gather->passes[pass].check, &traffic[ZB_COLLECTIVE_BROADCAST]);
        count_calls(facts, gather->passes[pass].calls, &traffic[ZB_COLLECTIVE_ALL_GATHER]);
    }
    if (!skipped) count_calls(facts, gather->publish, &traffic[ZB_COLLECTIVE_ALL_GATHER]);
    return gather->passes[pass].next[skipped ? ZB_AFTER_SKIPPED : ZB_AFTER_APPLIED];
}

/* From the second step on it only matters what became of the first one, and of the one before. */
void zb_gather_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    zb_traffic earlier[ZB_COLLECTIVE_COUNT] = { { 0 } };
    const zb_step_past *past = &facts->past;
    int pass = 0;
    if (past->steps > 0) pass = count_step(facts, pass, past->first_skipped, earlier);
    if (past->steps > 1) pass = count_step(facts, pass, past->previous_skipped, earlier);
    if (pass != ZB_NO_PASS) (void)count_step(facts, pass, facts->skipped, traffic);
}
