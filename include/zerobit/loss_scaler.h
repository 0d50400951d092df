/*
 * Loss scaling: a pure state machine, fed with one overflow flag per optimizer step, the same on every rank.
 * Source: deepspeed/runtime/fp16/loss_scaler.py (ZeRO), fused_optimizer.py (stage 0).
 *
 * ZeRO rule, at iteration i (from 0):
 *   overflow: if hysteresis == 1 or the counter is 1: stop when scale == min_scale, else scale = max(scale / 2, min_scale);
 *             otherwise the counter is lowered by one. last_overflow = i.
 *   clean:    if consecutive: counter = hysteresis. stable = i - last_overflow - 1; if stable > 0 and stable mod window == 0:
 *             counter = hysteresis (unless consecutive), scale = scale * 2.
 * So growth takes window + 1 clean steps after the start or an overflow, and a hysteresis of 0 never lowers the scale.
 */
#ifndef ZEROBIT_LOSS_SCALER_H
#define ZEROBIT_LOSS_SCALER_H

#include <stdint.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum zb_scaler_kind {
    ZB_SCALER_NONE,           /* bf16, fp32: 1 for ever; an overflow may still skip a step        */
    ZB_SCALER_STATIC,         /* a constant                                                       */
    ZB_SCALER_DYNAMIC,        /* the ZeRO rule above                                              */
    ZB_SCALER_DYNAMIC_STAGE0  /* DeepSpeed 0.19.6 stage 0: halves at once, never stops at the minimum */
} zb_scaler_kind;

typedef struct zb_loss_scaler_config {
    zb_scaler_kind kind;
    double initial_scale; /* STATIC: the constant */
    double min_scale;
    int64_t window;
    int64_t hysteresis;
    int consecutive_hysteresis;
} zb_loss_scaler_config;

typedef struct zb_loss_scaler {
    zb_loss_scaler_config config;
    double scale; /* in force for the next step */
    int64_t iteration, last_overflow, hysteresis_left;
} zb_loss_scaler;

/** Refuses a scale or minimum that is not positive and finite, and a window below 1 for the dynamic kinds. */
ZB_API zb_status zb_loss_scaler_init(zb_loss_scaler *scaler, const zb_loss_scaler_config *config);
/**
 * After a step. ZB_LOSS_SCALE when DeepSpeed stops training: overflow at the minimum scale. The scaler is then unchanged.
 */
ZB_API zb_status zb_loss_scaler_update(zb_loss_scaler *scaler, int overflow);

#ifdef __cplusplus
}
#endif
#endif
