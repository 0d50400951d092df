/* What a stage holds and sends, by formula: printed by `zerobit inspect memory`, and what every verified
 * run's ledger is held to. */
#include <string.h>

#include "engine/executor.h"
#include "engine/graph.h"
#include "engine/optimizer.h"
#include "engine/stage.h"

typedef struct formula {
    zb_graph graph;
    zb_layout layout;
    zb_stage_facts facts;
} formula;

static zb_status formula_open(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                              formula *f)
{
    *f = (formula){ .facts = { .config = config, .plan = plan, .graph = &f->graph, .layout = &f->layout } };
    ZB_TRY(zb_graph_create(model, &f->graph));
    zb_status status = zb_layout_create(model, stage, plan->world_size, &f->layout);
    if (status != ZB_OK) zb_graph_destroy(&f->graph);
    return status;
}

static void formula_close(formula *f)
{
    zb_layout_destroy(&f->layout);
    zb_graph_destroy(&f->graph);
}

zb_status zb_memory_formula(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                            uint64_t bytes[ZB_MEM_COUNT])
{
    formula f;
    ZB_TRY(formula_open(config, model, plan, stage, &f));
    memset(bytes, 0, ZB_MEM_COUNT * sizeof *bytes);
    zb_stage_find(stage)->memory(&f.facts, bytes);
    bytes[ZB_MEM_OPTIMIZER] = sizeof(float) * (uint64_t)f.layout.rank_numel *
                              (uint64_t)zb_optimizer_state_count(&plan->optimizer);
    zb_executor_memory(&f.graph, (size_t)plan->micro_batch_size, bytes);
    bytes[ZB_MEM_WORKSPACE] += ZB_SUM_SQUARES_WORDS * sizeof(int64_t);
    formula_close(&f);
    return ZB_OK;
}

void zb_memory_formula_numel(uint64_t numel, const zb_plan *plan, int stage, uint64_t bytes[ZB_MEM_COUNT])
{
    uint64_t world = (uint64_t)plan->world_size, align = 2 * world;
    uint64_t padded = (numel + align - 1) / align * align;
    uint64_t part = stage == 3 ? (numel + world - 1) / world : padded / world;
    memset(bytes, 0, ZB_MEM_COUNT * sizeof *bytes);
    bytes[ZB_MEM_PARAM] = sizeof(float) * (stage == 0 ? numel : stage == 3 ? part : padded);
    bytes[ZB_MEM_GRAD] = sizeof(float) * (stage == 0 ? numel : stage == 1 ? padded : part);
    bytes[ZB_MEM_OPTIMIZER] = sizeof(float) * (stage == 0 ? numel : part) *
                              (uint64_t)zb_optimizer_state_count(&plan->optimizer);
}

zb_status zb_traffic_formula(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                             uint64_t bytes[ZB_COLLECTIVE_COUNT])
{
    formula f;
    ZB_TRY(formula_open(config, model, plan, stage, &f));
    memset(bytes, 0, ZB_COLLECTIVE_COUNT * sizeof *bytes);
    const zb_stage_ops *ops = zb_stage_find(stage);
    ops->traffic(&f.facts, bytes);
    if (ops->norm_is_partial) bytes[ZB_COLLECTIVE_ALL_REDUCE] += ZB_SUM_SQUARES_WORDS * sizeof(int64_t);
    formula_close(&f);
    return ZB_OK;
}
