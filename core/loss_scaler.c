/*
 * Loss scaling as DeepSpeed does it; the header has the states and the rule.
 *
 * Invariant: scale is the initial scale times a power of two, or min_scale times one (from the first time
 * that the minimum cut a halving short).
 */
#include <zerobit/loss_scaler.h>

#include <inttypes.h>
#include <math.h>

static zb_status check_scale(const char *name, double scale)
{
    if (isfinite(scale) && scale > 0) return ZB_OK;
    return zb_fail(ZB_INVALID_CONFIG, "%s is %g, want a finite number above 0", name, scale);
}

zb_status zb_loss_scaler_init(zb_loss_scaler *scaler, const zb_loss_scaler_config *config)
{
    switch (config->kind) {
    case ZB_SCALER_NONE:
        break;
    case ZB_SCALER_STATIC:
        ZB_TRY(check_scale("the loss scale", config->initial_scale));
        break;
    case ZB_SCALER_DYNAMIC:
    case ZB_SCALER_DYNAMIC_STAGE0:
        ZB_TRY(check_scale("the initial loss scale", config->initial_scale));
        ZB_TRY(check_scale("min_loss_scale", config->min_scale));
        if (config->window < 1)
            return zb_fail(ZB_INVALID_CONFIG, "loss_scale_window is %" PRId64 ", want at least 1",
                           config->window);
        break;
    default:
        return zb_fail(ZB_INVALID_CONFIG, "loss scaler kind is %d, want a known one", (int)config->kind);
    }
    *scaler = (zb_loss_scaler){
        .config = *config,
        .scale = config->kind == ZB_SCALER_NONE ? 1.0 : config->initial_scale,
        .last_overflow = -1,
        .hysteresis_left = config->hysteresis,
    };
    return ZB_OK;
}

/* fmax would prefer the number to a NaN; neither side can be one here. */
static double halved(const zb_loss_scaler *scaler)
{
    return fmax(scaler->scale / 2, scaler->config.min_scale);
}

static zb_status lower(zb_loss_scaler *scaler)
{
    if (scaler->config.kind == ZB_SCALER_DYNAMIC_STAGE0) {
        scaler->scale = halved(scaler);
    } else if (scaler->config.hysteresis != 1 && scaler->hysteresis_left != 1) {
        /* Starting from 0 or less it never meets 1: the scale is then never lowered, as in DeepSpeed. */
        scaler->hysteresis_left--;
    } else if (scaler->scale == scaler->config.min_scale) {
        return zb_fail(ZB_LOSS_SCALE,
                       "step %" PRId64 ": gradients overflow at loss scale %.17g, which is the minimum "
                       "(fp16.min_loss_scale %.17g) and cannot be lowered: training stops",
                       scaler->iteration + 1, scaler->scale, scaler->config.min_scale);
    } else {
        scaler->scale = halved(scaler);
    }
    scaler->last_overflow = scaler->iteration;
    return ZB_OK;
}

/*
 * The step right after an overflow, or the first of all, has a stable interval of 0 and does not count, so
 * the first growth takes window + 1 clean steps and each later one window. Source:
 * deepspeed/runtime/fp16/loss_scaler.py, DynamicLossScaler.update_scale.
 */
static void raise_when_due(zb_loss_scaler *scaler)
{
    const zb_loss_scaler_config *config = &scaler->config;
    if (config->consecutive_hysteresis) scaler->hysteresis_left = config->hysteresis;
    int64_t stable = scaler->iteration - scaler->last_overflow - 1;
    if (stable <= 0 || stable % config->window != 0) return;
    scaler->hysteresis_left = config->hysteresis;
    scaler->scale *= 2;
}

zb_status zb_loss_scaler_update(zb_loss_scaler *scaler, int overflow)
{
    if (scaler->config.kind == ZB_SCALER_DYNAMIC || scaler->config.kind == ZB_SCALER_DYNAMIC_STAGE0) {
        if (overflow)
            ZB_TRY(lower(scaler));
        else
            raise_when_due(scaler);
    }
    scaler->iteration++;
    return ZB_OK;
}
