/*
 * DeepSpeed's JSON config: read, checked, and resolved for a world size.
 * Source: deepspeed/runtime/config.py, zero/config.py, precision_config.py (0.19.6).
 *
 * Every refusal names the file, the key's path (or line and column for a syntax error), the value found
 * and what was expected. A key is honoured, or known to be harmless (zb_config_note tells why), or
 * refused as not supported yet; unknown keys are refused in the closed sections (zero_optimization,
 * fp16, bf16, ...) and noted at the open top level, as DeepSpeed does.
 */
#ifndef ZEROBIT_CONFIG_H
#define ZEROBIT_CONFIG_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/model.h>
#include <zerobit/plan.h>
#include <zerobit/schedule.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ZB_STAGE_COUNT = 4 };

typedef struct zb_batch_triangle {
    int64_t train_batch_size, micro_batch_size, accumulation_steps; /* 0: not given */
} zb_batch_triangle;

typedef struct zb_fp16_config {
    int enabled;
    double loss_scale; /* 0: dynamic */
    int initial_scale_power;
    int64_t loss_scale_window;
    int64_t hysteresis;
    int consecutive_hysteresis;
    int64_t min_loss_scale;
} zb_fp16_config;

typedef struct zb_zero_config {
    int stage; /* 0..3 */
    int contiguous_gradients, reduce_scatter, multi_rank_bucket; /* multi_rank_bucket: use_multi_rank_bucket_allreduce */
    int overlap_comm; /* -1: not given, which means on at stage 3 and off elsewhere */
    uint64_t reduce_bucket_numel;
    uint64_t sub_group_numel;  /* stage 3: parts of parameters that the optimizer sees as one tensor */
    /* Stage 3: when parameters are gathered and released (engine/gather_plan.h), in elements. No bit depends on it. */
    uint64_t prefetch_bucket_numel, max_live_numel, max_reuse_numel;
    uint64_t param_persistence_numel, model_persistence_numel;
    uint64_t module_granularity_numel; /* 0: every module on its own */
    int allgather_sequential;
    int round_robin_gradients; /* stages 1, 2: parameters 0, W, 2 W, ... come first in the flat buffer, then 1, W + 1, ... */
} zb_zero_config;

/** Parameters that share hyper-parameters and a learning rate. */
typedef struct zb_param_group {
    char **patterns; /* owned; as fnmatch(3) reads them, against whole parameter names */
    size_t pattern_count; /* 0: every parameter that no other group names */
    zb_optimizer_config optimizer; /* the config's, but for what the group gives itself */
    zb_schedule_config schedule;   /* CONSTANT when the config has none */
} zb_param_group;

typedef struct zb_config {
    char *path;                  /* owned; for messages; "<memory>" when parsed from a string */
    zb_semantics semantics;      /* "zerobit": {"semantics": "standard"} */
    zb_quirks quirks;            /* the preset of the semantics, with "zerobit": {"quirks": {NAME: true|false}} laid over it */
    zb_batch_triangle batch;     /* as given; resolve with zb_batch_resolve */
    zb_dtype dtype;              /* from the fp16/bf16 sections */
    zb_fp16_config fp16;
    int bf16_enabled;
    int bf16_check_grad_overflow; /* skip a step whose gradients overflow; 1 when not given */
    int comm_dtype, grad_accum_dtype; /* a zb_dtype, or -1: not given */
    zb_zero_config zero;
    double gradient_clipping;    /* DeepSpeed's default: 1.0 */
    int grad_sum;                /* gradient_allreduce_op is "sum" */
    int prescale_gradients;
    double gradient_predivide_factor; /* 1: none */
    int optimizer_given;         /* 0: the config has none; the batch sizes and the rest still hold */
    zb_optimizer_config optimizer;
    int zero_allow_untested_optimizer;
    zb_param_group groups[ZB_PARAM_GROUP_MAX]; /* "zerobit": {"param_groups": [...]}; otherwise one with every parameter */
    int group_count;
    zb_orders *orders;           /* owned; "zerobit": {"order": TEXT}, as zb_orders_parse reads it; NULL: rank order */
    int dataloader_drop_last;
    int64_t steps_per_print;     /* 0: never */
    char **notes;                /* owned; one sentence per key that is accepted without effect */
    size_t note_count;
} zb_config;

/** Parse text. `path` is used in messages only and may be NULL. On success the caller owns *config_p (zb_config_destroy). */
ZB_API zb_status zb_config_parse(const char *text, size_t text_bytes, const char *path, zb_config **config_p);
ZB_API zb_status zb_config_load(const char *path, zb_config **config_p);
/** The same with these semantics, whatever the config asks for; its single quirks are laid over them. */
ZB_API zb_status zb_config_load_as(const char *path, zb_semantics semantics, zb_config **config_p);
/** Another order than the config's, as zb_orders_parse reads it; plans derived before must not be used any more. */
ZB_API zb_status zb_config_set_order(zb_config *config, const char *text);
ZB_API void zb_config_destroy(zb_config *config);

/**
 * Fill in the batch triangle for a world size (section "batch triangle" of the docs): floor divisions and
 * checks in DeepSpeed's order. ZB_INVALID_CONFIG with all three values and the world size otherwise.
 */
ZB_API zb_status zb_batch_resolve(const zb_batch_triangle *given, int world_size, zb_batch_triangle *resolved);

/**
 * Which group each of the model's parameters belongs to: the first that names it, else the one of the rest. group_of has
 * param_count elements (a frozen parameter's means nothing). ZB_INVALID_CONFIG names a trainable parameter that no
 * group has, or a group that has none.
 */
ZB_API zb_status zb_config_assign_groups(const zb_config *config, const zb_model *model, int *group_of);
/** The groups' schedules, in one array. */
ZB_API void zb_config_list_schedules(const zb_config *config, zb_schedule_config schedules[ZB_PARAM_GROUP_MAX]);

/**
 * The loss scaling that this config means at a stage and precision. For a precision other than the config's own, the
 * values of its section hold all the same, or their defaults. ZB_INVALID_CONFIG for values that cannot scale.
 */
ZB_API zb_status zb_scaler_derive(const zb_config *config, int stage, zb_dtype dtype, zb_loss_scaler_config *scaler);

/**
 * The plan that this config means at a stage, precision (likewise) and world size, by its semantics and quirks.
 * ZB_INVALID_CONFIG for what DeepSpeed asserts against at that stage.
 */
ZB_API zb_status zb_plan_derive(const zb_config *config, int stage, zb_dtype dtype, int world_size, zb_plan *plan);

/**
 * *applies: whether DeepSpeed 0.19.6 would show this quirk in a run of the config at that stage, precision and world size,
 * whatever semantics the config asks for: with the quirk alone left out, the run would compute, count or send something
 * else. Fails as zb_plan_derive does.
 */
ZB_API zb_status zb_quirk_applies(zb_quirk quirk, const zb_config *config, int stage, zb_dtype dtype, int world_size, int *applies);

#ifdef __cplusplus
}
#endif
#endif
