/*
 * Learning-rate schedules: pure state machines in double, stepped by the engine after every optimizer
 * step that was applied. Source: deepspeed/runtime/lr_schedules.py.
 *
 * The rate of optimizer step k (counted from 0, no skips): k = 0 the constructor's value, k >= 1 the
 * value at last_batch_iteration = k - 1. So WarmupLR uses its minimum for the first two steps.
 */
#ifndef ZEROBIT_SCHEDULE_H
#define ZEROBIT_SCHEDULE_H

#include <stdint.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum zb_schedule_kind { ZB_SCHEDULE_CONSTANT, ZB_SCHEDULE_WARMUP_LR } zb_schedule_kind;
typedef enum zb_warmup_type { ZB_WARMUP_LOG, ZB_WARMUP_LINEAR } zb_warmup_type;

typedef struct zb_schedule_config {
    zb_schedule_kind kind;
    double base_lr; /* the optimizer's own rate; all there is for CONSTANT */
    double warmup_min_lr, warmup_max_lr;
    int64_t warmup_num_steps; /* > 0; the formula uses max(2, this) */
    zb_warmup_type warmup_type;
} zb_schedule_config;

typedef struct zb_schedule {
    zb_schedule_config config;
    int64_t last_batch_iteration; /* -1 at first */
    double lr;                    /* what the next optimizer step uses */
} zb_schedule;

/** Refuses warmup_num_steps < 1 and non-finite rates with ZB_INVALID_CONFIG. */
ZB_API zb_status zb_schedule_init(zb_schedule *schedule, const zb_schedule_config *config);
/** After an applied optimizer step. */
ZB_API void zb_schedule_step(zb_schedule *schedule);
ZB_API double zb_schedule_lr(const zb_schedule *schedule);

#ifdef __cplusplus
}
#endif
#endif
