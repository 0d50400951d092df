/* The engine's private state, and what it offers to stages and executor. */
#ifndef ZEROBIT_ENGINE_STATE_H
#define ZEROBIT_ENGINE_STATE_H

#include <zerobit/engine.h>

#include "engine/executor.h"
#include "engine/graph.h"
#include "engine/layout.h"
#include "engine/norm.h"
#include "engine/optimizer.h"
#include "engine/stage.h"
#include "engine/tensor.h"

enum { ZB_STAGING_NUMEL = 8192 };

struct zb_engine {
    const zb_config *config;
    const zb_model *model;
    const zb_weights *weights; /* during zb_initialize only */
    uint64_t init_seed;
    zb_device *device;
    zb_comm *comm;
    zb_plan plan;

    zb_graph graph;
    zb_layout layout;
    zb_stream *compute;
    /* Where collectives run: compute itself unless overlap_comm. Stage 3 gathers parameters beside the
     * reductions. */
    zb_stream *transfer, *prefetch;
    zb_event *compute_reached, *transfer_reached;
    zb_executor executor;
    zb_stage *stage;
    zb_shard shard;
    zb_optimizer optimizer;
    zb_norm norm;
    zb_schedules schedules;
    zb_loader *loader;

    int64_t micro_index; /* of the micro-batch under way, 0 .. accumulation_steps - 1 */
    enum zb_micro_phase { ZB_WANTS_FORWARD, ZB_WANTS_BACKWARD, ZB_WANTS_STEP, ZB_BROKEN } phase;
    zb_counters counters;
    zb_loss_scaler scaler;
    /* Of the last boundary step. */
    double grad_norm; /* unscaled */
    double lr_used[ZB_PARAM_GROUP_MAX];
    double scale_used;
    int overflow;
    zb_observer contributions; /* shown what is sent; observe NULL: nobody */
    float *staging; /* host, 2 * ZB_STAGING_NUMEL: what observers, loading and saving pass through */
    zb_traffic traffic_before[ZB_COLLECTIVE_COUNT]; /* at the end of the step before */
    zb_traffic traffic[ZB_COLLECTIVE_COUNT];        /* in the last step */
};

/* Put elements [first, first + numel) of a parameter's initial values at `to`, on the device, rounded to
 * param_dtype. */
zb_status zb_engine_load_initial(zb_engine *engine, int param, size_t first, size_t numel, void *to);
/* The first `numel` numbers of the staging buffer (ZB_STAGING_NUMEL at most) to `to`, on the device, rounded
 * to param_dtype. */
zb_status zb_engine_put_staged(zb_engine *engine, size_t numel, void *to);
/* The other way: widened to fp32, into host memory. */
zb_status zb_engine_save_widened(zb_engine *engine, float *to, const void *from, size_t numel);
/* A micro-batch's gradient into what is accumulated: stored in the first micro-batch of a step, added in
 * later ones. */
zb_status zb_engine_take_gradient(zb_engine *engine, void *to, zb_dtype to_dtype, const void *from,
                                  zb_dtype from_dtype, size_t numel);

/* A collective on the stream it names, or the transfer stream, ordered after all compute work so far. With
 * work NULL compute work that follows is ordered after it; else after zb_engine_collective_wait. */
zb_status zb_engine_collective(zb_engine *engine, const zb_collective *collective, zb_work *work);
zb_status zb_engine_collective_wait(zb_engine *engine, zb_work *work);
/* For a stage that is destroyed: waits for what a failure left under way, so that no buffer is freed below an
 * operation. The error message stays that of the failure. */
void zb_engine_collective_abandon(zb_engine *engine, zb_work *work);
/* ZB_INVALID_ARGUMENT when a failure has broken a step off. */
zb_status zb_engine_check_whole(const zb_engine *engine, const char *call);
#define zb_engine_collective_run(engine, work, ...)                                                          \
    zb_engine_collective((engine), &(zb_collective){ __VA_ARGS__, .file = __FILE__, .line = __LINE__ },      \
                         (work))

/* Shows elements [first, first + numel) of a parameter's gradient, in comm_dtype at `sent` on the device, to
 * whoever wants to see contributions. */
zb_status zb_engine_show_contribution(zb_engine *engine, int param, size_t first, size_t numel,
                                      const void *sent);

/* What the stage's formulas, and its choices, are made from. */
zb_stage_facts zb_engine_facts(const zb_engine *engine);
/* After the stage is made. */
zb_status zb_engine_create_shard(zb_engine *engine);
void zb_shard_destroy(zb_shard *shard);

/* The operator that turns the ranks' gradients into the plan's average. */
zb_redop zb_engine_grad_op(const zb_engine *engine);

#endif
