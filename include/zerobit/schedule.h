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
#include <zerobit/plan.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum zb_schedule_kind {
    ZB_SCHEDULE_CONSTANT,
    ZB_SCHEDULE_WARMUP_LR,        /* up to the maximum, then constant                              */
    ZB_SCHEDULE_WARMUP_DECAY_LR,  /* up to the maximum, then straight down to the minimum          */
    ZB_SCHEDULE_WARMUP_COSINE_LR, /* up to base_lr, then down along a cosine                       */
    ZB_SCHEDULE_LR_RANGE_TEST,    /* up without end                                                */
    ZB_SCHEDULE_ONE_CYCLE         /* up, down, then decay; beta1 the other way round               */
} zb_schedule_kind;
typedef enum zb_warmup_type { ZB_WARMUP_LOG, ZB_WARMUP_LINEAR } zb_warmup_type;

/* Only the fields of its kind count. Names are those of the parameters in the config. */
typedef struct zb_schedule_config {
    zb_schedule_kind kind;
    double base_lr; /* the optimizer's own rate; all there is for CONSTANT */

    /* the three WARMUP kinds */
    double warmup_min_lr, warmup_max_lr; /* not COSINE */
    int64_t warmup_num_steps;            /* > 0; the formula uses max(2, this) */
    zb_warmup_type warmup_type;
    int64_t total_num_steps;                /* DECAY, COSINE */
    double warmup_min_ratio, cos_min_ratio; /* COSINE: parts of base_lr */

    double lr_range_test_min_lr, lr_range_test_step_rate;
    int64_t lr_range_test_step_size; /* > 0 */
    int lr_range_test_staircase;

    /* ONE_CYCLE */
    double cycle_min_lr, cycle_max_lr;
    double cycle_first_step_size, cycle_second_step_size;         /* > 0, >= 0; in optimizer steps */
    int64_t cycle_first_stair_count, cycle_second_stair_count;    /* 0: continuous */
    double decay_lr_rate, decay_step_size;                        /* either 0: no decay of the rate */
    int cycle_momentum;
    double cycle_min_mom, cycle_max_mom, decay_mom_rate; /* decay_step_size or the last 0: no decay of beta1 */
    double cycle_start_mom, cycle_beta2;                 /* beta1 of the first optimizer step; beta2 of every one */
} zb_schedule_config;

typedef struct zb_schedule {
    zb_schedule_config config;
    int64_t last_batch_iteration; /* -1 at first */
    double lr;                    /* what the next optimizer step uses */
    double beta1, beta2;          /* likewise, where the schedule has momentum */
} zb_schedule;

/** Refuses numbers that are not finite and counts out of range with ZB_INVALID_CONFIG. */
ZB_API zb_status zb_schedule_init(zb_schedule *schedule, const zb_schedule_config *config);
/** After an applied optimizer step. */
ZB_API void zb_schedule_step(zb_schedule *schedule);
ZB_API double zb_schedule_lr(const zb_schedule *schedule);

/**
 * True when the schedule replaces the optimizer's betas as well, from the first step on. As in DeepSpeed decay_mom_rate may
 * drive beta1 beyond 1.
 */
ZB_API int zb_schedule_has_momentum(const zb_schedule *schedule);
ZB_API double zb_schedule_beta1(const zb_schedule *schedule);
ZB_API double zb_schedule_beta2(const zb_schedule *schedule);

/** The schedules of all parameter groups, stepped together. */
typedef struct zb_schedules {
    zb_schedule group[ZB_PARAM_GROUP_MAX];
    int group_count;
} zb_schedules;

/** configs: [group_count]. As zb_schedule_init. */
ZB_API zb_status zb_schedules_init(zb_schedules *schedules, const zb_schedule_config *configs, int group_count);
ZB_API void zb_schedules_step(zb_schedules *schedules);
/** The groups' rates for the next optimizer step: rates[group_count]. */
ZB_API void zb_schedules_rates(const zb_schedules *schedules, double *rates);
/** Put what the next optimizer step uses into the groups' hyper-parameters: lr, and betas where the schedule has momentum. */
ZB_API void zb_schedules_apply(const zb_schedules *schedules, zb_optimizer_config *groups);

#ifdef __cplusplus
}
#endif
#endif
