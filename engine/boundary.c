/*
 * The step at the boundary; see boundary.h. The plan says in which order things happen that DeepSpeed's
 * stages do in different orders. Source: the `step` of fp16/fused_optimizer.py, zero/stage_1_and_2.py,
 * zero/stage3.py and bf16_optimizer.py; engine.py, _take_model_step.
 */
#include "engine/boundary.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "engine/state.h"

/* --- factors --- */

/* One factor for unscaling and clipping, as the ZeRO optimizers form it (stage3.py, unscale_and_clip_grads),
 * in double. A norm that is no number clips nothing: the values show themselves in the weights. */
static float combined(const zb_plan *plan, double norm, double loss_scale)
{
    double divisor = loss_scale;
    if (plan->clip_norm > 0.0 && isfinite(norm)) {
        double excess = (norm + 1e-6) / plan->clip_norm;
        if (excess > 1.0) divisor = excess * loss_scale;
    }
    return (float)(1.0 / divisor);
}

/* Source: stage_1_and_2.py, unscale_and_clip_grads. */
static float combined_fp32(const zb_plan *plan, float scaled_norm, float loss_scale)
{
    float divisor = loss_scale;
    if (plan->clip_norm > 0.0) {
        const float excess = (scaled_norm / loss_scale + 1e-6f) / (float)plan->clip_norm;
        if (excess > 1.0f) divisor = excess * loss_scale;
    }
    return 1.0f / divisor;
}

/* A NaN stays one. PyTorch divides a number by a tensor by multiplying with the reciprocal; a tensor by a
 * tensor is divided. Source: runtime/utils.py, clip_tensors_by_global_norm and clip_grad_norm_. */
static float coefficient(const zb_plan *plan, float norm)
{
    if (plan->clip_norm <= 0.0) return 1.0f;
    const float clip_norm = (float)plan->clip_norm, divisor = norm + 1e-6f;
    const float factor = plan->clip == ZB_CLIP_RECIPROCAL ? 1.0f / divisor * clip_norm : clip_norm / divisor;
    return factor > 1.0f ? 1.0f : factor;
}

static float grad_scale(const zb_plan *plan, double scaled_norm, double loss_scale)
{
    if (plan->clip == ZB_CLIP_COMBINED_FP32)
        return combined_fp32(plan, (float)scaled_norm, (float)loss_scale);
    if (plan->clip == ZB_CLIP_COEFFICIENT || plan->clip == ZB_CLIP_RECIPROCAL)
        return coefficient(plan, (float)scaled_norm);
    return combined(plan, scaled_norm / loss_scale, loss_scale);
}

static double unscaled(const zb_plan *plan, double scaled_norm, double loss_scale)
{
    if (plan->norm == ZB_NORM_UNFUSED) return scaled_norm;
    if (plan->norm == ZB_NORM_PARTITION_FP32) return (double)((float)scaled_norm / (float)loss_scale);
    return scaled_norm / loss_scale;
}

/* --- the step --- */

static zb_status look(zb_engine *e, double *scaled_norm, int *is_measured)
{
    const int heeds = e->plan.overflow == ZB_OVERFLOW_SKIP || e->plan.overflow == ZB_OVERFLOW_COUNT;
    const int by_flag = zb_norm_flags_overflow(&e->plan);
    e->overflow = 0;
    if (by_flag) ZB_TRY(zb_norm_find_overflow(e, &e->overflow));
    *is_measured = zb_norm_is_measured(&e->plan, e->overflow);
    if (!*is_measured) return ZB_OK;
    ZB_TRY(zb_norm_measure(e, scaled_norm));
    if (heeds && !by_flag) e->overflow = !isfinite(*scaled_norm);
    return ZB_OK;
}

/* Source: bf16_optimizer.py, step. */
static zb_status check_norm(const zb_engine *e, double scaled_norm)
{
    if (e->plan.overflow != ZB_OVERFLOW_STOP || (isfinite(scaled_norm) && scaled_norm > 0)) return ZB_OK;
    return zb_fail(ZB_LOSS_SCALE,
                   "step %" PRId64 ": the gradient norm is %g, want a number above 0, as DeepSpeed's "
                   "BF16_Optimizer demands: training stops",
                   e->counters.global_steps + 1, scaled_norm);
}

static zb_status update_weights(zb_engine *e, double scaled_norm)
{
    const double loss_scale = e->plan.unscale_by_next_scale ? e->scaler.scale : e->scale_used;
    const float scale = grad_scale(&e->plan, scaled_norm, loss_scale);
    zb_optimizer_config now[ZB_PARAM_GROUP_MAX];
    memcpy(now, e->plan.groups, sizeof now);
    zb_schedules_apply(&e->schedules, now);
    ZB_TRY(zb_optimizer_step(&e->optimizer, e->compute, &e->shard, scale, now));
    return e->stage->ops->publish(e->stage);
}

/* On every rank alike. */
static zb_status apply(zb_engine *e, double scaled_norm)
{
    ZB_TRY(check_norm(e, scaled_norm));
    if (!e->overflow || e->plan.overflow != ZB_OVERFLOW_SKIP) ZB_TRY(update_weights(e, scaled_norm));
    if (e->overflow)
        e->counters.skipped_steps++;
    else
        zb_schedules_step(&e->schedules);
    return ZB_OK;
}

zb_status zb_boundary_step(zb_engine *e)
{
    double scaled_norm = 0;
    int is_measured;
    ZB_TRY(e->stage->ops->reduce(e->stage));
    ZB_TRY(look(e, &scaled_norm, &is_measured));
    zb_schedules_rates(&e->schedules, e->lr_used);
    e->scale_used = e->scaler.scale;
    ZB_TRY(zb_loss_scaler_update(&e->scaler, e->overflow));
    if (is_measured)
        e->grad_norm = unscaled(&e->plan, scaled_norm,
                                e->plan.report_norm_by_next_scale ? e->scaler.scale : e->scale_used);
    ZB_TRY(apply(e, scaled_norm));
    e->counters.global_steps++;
    e->counters.global_samples += e->plan.micro_batch_size * e->plan.accumulation_steps * e->plan.world_size;
    return ZB_OK;
}

zb_status zb_boundary_hidden_step(zb_engine *e)
{
    ZB_ASSERT(e->optimizer.owns_master);
    for (int i = 0; i < e->shard.segment_count; i++) e->shard.segments[i].param = NULL;
    zb_status status = zb_optimizer_step(&e->optimizer, e->compute, &e->shard, 1.0f, e->plan.groups);
    for (int i = 0; i < e->shard.segment_count; i++) {
        zb_segment *s = &e->shard.segments[i];
        if (s->numel > 0) s->param = e->stage->ops->place(e->stage, s->group, s->shard_offset).param;
    }
    return status;
}
