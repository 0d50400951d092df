/*
 * Quirks: where DeepSpeed 0.19.6 departs from what it documents, or from what its stages have in common. Each is a
 * named switch. `standard` semantics have all of them off, `deepspeed-0.19.6` all on but those marked otherwise; the
 * config's "zerobit": {"quirks": {NAME: true|false}} turns single ones. A quirk only acts where its condition holds
 * (a stage, a precision); zb_quirk_applies (config.h) tells, zb_quirk_describe says what it does.
 */
#ifndef ZEROBIT_QUIRKS_H
#define ZEROBIT_QUIRKS_H

#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(name): the field of zb_quirks, and its name everywhere. core/quirks.c says for each what it does and where it comes from. */
#define ZB_QUIRK_MAP(X)                  \
    X(loss_unscaled_at_stage_0)          \
    X(hidden_first_step)                 \
    X(stage_0_loss_scaler)               \
    X(scale_updated_before_unscaling)    \
    X(norm_by_updated_scale)             \
    X(norm_per_stage)                    \
    X(clip_per_stage)                    \
    X(optimizer_sees_flat_tensors)       \
    X(average_outside_sum)               \
    X(all_reduce_for_reduce_scatter)     \
    X(overflow_by_flag)                  \
    X(stage_1_ignores_prescale)          \
    X(stage_1_wide_sum_unreduced)        \
    X(stage_2_ignores_accumulation_type) \
    X(gradients_sent_in_model_type)      \
    X(stage_3_predivide_not_restored)    \
    X(bf16_optimizer)                    \
    X(stage_0_bf16_overflow_applied)     \
    X(stage_3_bf16_overflow_unseen)      \
    X(loss_seed_in_model_type)           \
    X(one_cycle_replaces_betas)          \
    X(sampler_never_reshuffles)          \
    X(first_iteration_recorded)          \
    X(unreduced_without_contiguous_gradients)

/** One switch per quirk: 0 off, 1 on. */
typedef struct zb_quirks {
#define ZB_QUIRK_FIELD(name) int name;
    ZB_QUIRK_MAP(ZB_QUIRK_FIELD)
#undef ZB_QUIRK_FIELD
} zb_quirks;

typedef enum zb_quirk {
#define ZB_QUIRK_ENUM(name) ZB_QUIRK_##name,
    ZB_QUIRK_MAP(ZB_QUIRK_ENUM)
#undef ZB_QUIRK_ENUM
    ZB_QUIRK_COUNT
} zb_quirk;

/** Whose arithmetic a config means. A config can name the first two; the others come with recorded runs (replay.h). */
typedef enum zb_semantics {
    ZB_SEMANTICS_STANDARD,
    ZB_SEMANTICS_DEEPSPEED_0_19_6,
    ZB_SEMANTICS_PYTORCH_DDP /* DistributedDataParallel of PyTorch 2.8 with torch.optim and clip_grad_norm_, fp32. Stage 0 */
} zb_semantics;
ZB_API const char *zb_semantics_name(zb_semantics semantics);
/** 1 and *semantics when the text is a name that a config can give, else 0. */
ZB_API int zb_semantics_parse(const char *text, zb_semantics *semantics);

/** The preset of a set of semantics. */
ZB_API zb_quirks zb_quirks_of(zb_semantics semantics);
ZB_API const char *zb_quirk_name(zb_quirk quirk);

/** In sentences. */
typedef struct zb_quirk_description {
    const char *does;   /* what DeepSpeed does */
    const char *effect; /* what that does to a run */
    const char *when;   /* where it is met */
    const char *source; /* the file in the deepspeed package that it comes from */
} zb_quirk_description;
ZB_API const zb_quirk_description *zb_quirk_describe(zb_quirk quirk);

/** The switch of that quirk. */
ZB_API int *zb_quirk_switch(zb_quirks *quirks, zb_quirk quirk);

#ifdef __cplusplus
}
#endif
#endif
