/* What a stage holds and sends, by formula: printed by `zerobit inspect memory`, and what every verified
 * run's ledger is held to. */
#include <string.h>
#include <zerobit/memory.h>

#include "engine/executor.h"
#include "engine/gather.h"
#include "engine/graph.h"
#include "engine/norm.h"
#include "engine/optimizer.h"
#include "engine/stage.h"

typedef struct formula {
    zb_graph graph;
    int *group_of; /* [param_count] */
    zb_layout layout;
    zb_gather_trace trace; /* stage 3's, like the next */
    zb_gather_plan gather;
    zb_stage_facts facts;
} formula;

static void formula_close(formula *f)
{
    zb_gather_plan_destroy(&f->gather);
    zb_gather_trace_destroy(&f->trace);
    zb_layout_destroy(&f->layout);
    zb_free(f->group_of);
    zb_graph_destroy(&f->graph);
}

static zb_status fill(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                      formula *f)
{
    zb_layout_options options = zb_layout_options_of(plan, model, stage);
    f->group_of = zb_alloc_array((size_t)model->param_count, sizeof *f->group_of);
    if (f->group_of == NULL) return ZB_NO_MEMORY;
    ZB_TRY(zb_config_assign_groups(config, model, f->group_of));
    options.group_of = f->group_of;
    ZB_TRY(zb_layout_create(&options, &f->layout));
    if (stage != 3) return ZB_OK;
    f->facts.gather = &f->gather;
    return zb_gather_derive(config, plan, &f->graph, &f->layout, &f->trace, &f->gather);
}

static zb_status formula_open(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                              formula *f)
{
    *f = (formula){ .facts = { .config = config, .plan = plan, .graph = &f->graph, .layout = &f->layout } };
    ZB_TRY(zb_graph_create(model, &f->graph));
    const zb_status status = fill(config, model, plan, stage, f);
    if (status != ZB_OK) formula_close(f);
    return status;
}

/* What one exchange of the optimizer's norms moves, or its workspace holds. */
static uint64_t optimizer_norm_bytes(const formula *f)
{
    return zb_optimizer_workspace_bytes(f->facts.plan, (uint64_t)f->layout.optimizer_tensors.count);
}

zb_status zb_memory_formula(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                            uint64_t bytes[ZB_MEM_COUNT])
{
    formula f;
    ZB_TRY(formula_open(config, model, plan, stage, &f));
    memset(bytes, 0, ZB_MEM_COUNT * sizeof *bytes);
    zb_stage_find(stage)->memory(&f.facts, bytes);
    bytes[ZB_MEM_OPTIMIZER] = zb_optimizer_bytes(plan, f.layout.rank_numel);
    zb_executor_memory(&f.graph, plan->param_dtype, (size_t)plan->micro_batch_size, bytes);
    bytes[ZB_MEM_WORKSPACE] += zb_norm_bytes(&f.facts) + optimizer_norm_bytes(&f);
    formula_close(&f);
    return ZB_OK;
}

void zb_memory_formula_numel(uint64_t numel, const zb_plan *plan, int stage, uint64_t bytes[ZB_MEM_COUNT])
{
    uint64_t world = (uint64_t)plan->world_size, align = 2 * world;
    uint64_t padded = (numel + align - 1) / align * align;
    uint64_t part = stage == 3 ? (numel + world - 1) / world : padded / world;
    memset(bytes, 0, ZB_MEM_COUNT * sizeof *bytes);
    bytes[ZB_MEM_PARAM] = zb_dtype_bytes(plan->param_dtype) * (stage == 0   ? numel
                                                               : stage == 3 ? part
                                                                            : padded);
    const uint64_t local = stage == 0 ? numel : padded;
    const int is_apart = stage > 1 || plan->local_dtype != plan->grad_dtype;
    if (stage < 2) bytes[ZB_MEM_GRAD] = zb_dtype_bytes(plan->local_dtype) * local;
    if (is_apart) bytes[ZB_MEM_GRAD] += zb_dtype_bytes(plan->grad_dtype) * part;
    bytes[ZB_MEM_OPTIMIZER] = zb_optimizer_bytes(plan, stage == 0 ? numel : part);
}

zb_status zb_traffic_formula(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                             const zb_step_past *past, int skipped, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    formula f;
    ZB_TRY(formula_open(config, model, plan, stage, &f));
    memset(traffic, 0, ZB_COLLECTIVE_COUNT * sizeof *traffic);
    f.facts.past = *past;
    f.facts.skipped = skipped;
    zb_stage_find(stage)->traffic(&f.facts, traffic);
    zb_norm_traffic(&f.facts, &traffic[ZB_COLLECTIVE_ALL_REDUCE]);
    if (zb_optimizer_adds_norms(plan) && zb_stage_find(stage)->norm_is_partial && !skipped) {
        traffic[ZB_COLLECTIVE_ALL_REDUCE].calls++;
        traffic[ZB_COLLECTIVE_ALL_REDUCE].bytes += optimizer_norm_bytes(&f);
    }
    formula_close(&f);
    return ZB_OK;
}
