/*
 * The plan by which DeepSpeed 0.19.6 itself runs a config. Each difference from the standard plan names, in
 * plan.h, the DeepSpeed file that it comes from.
 */
#include <zerobit/config.h>

static zb_status check_known(const zb_config *config)
{
    const int stage = config->zero.stage;
    if (config->semantics != ZB_SEMANTICS_DEEPSPEED_0_19_6)
        return zb_fail(ZB_INVALID_CONFIG, "%s: zerobit.semantics: is \"standard\", want \"deepspeed-0.19.6\"",
                       config->path);
    if (!config->optimizer_given)
        return zb_fail(ZB_INVALID_CONFIG, "%s: optimizer: is missing, want an object with type and params",
                       config->path);
    if (config->optimizer.kind != ZB_OPTIMIZER_ADAM)
        return zb_fail(ZB_UNSUPPORTED,
                       "%s: optimizer.type: is SGD, want Adam or AdamW: the only ones whose "
                       "DeepSpeed arithmetic is known here",
                       config->path);
    if (stage == 0 && config->dtype == ZB_BF16)
        return zb_fail(ZB_UNSUPPORTED,
                       "%s: bf16.enabled: is true, want false at stage 0: DeepSpeed's "
                       "arithmetic there is not known here",
                       config->path);
    if (stage == 0 && config->dtype == ZB_FP16 && config->optimizer.variant == ZB_ADAM_TORCH)
        return zb_fail(ZB_UNSUPPORTED,
                       "%s: optimizer.params.torch_adam: is true, want false in fp16 at "
                       "stage 0: FP16_UnfusedOptimizer is not known here",
                       config->path);
    const struct type_key {
        const char *key;
        int given;
    } types[] = {
        { "data_types.grad_accum_dtype", config->grad_accum_dtype },
        { "communication_data_type", config->comm_dtype },
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].given >= 0 && types[i].given != (int)config->dtype)
            return zb_fail(ZB_UNSUPPORTED, "%s: %s: is %s, want %s, which the model runs in", config->path,
                           types[i].key, zb_dtype_name((zb_dtype)types[i].given),
                           zb_dtype_name(config->dtype));
    return ZB_OK;
}

/* Stage 3 looks at fp16 gradients only, whatever bf16.check_grad_overflow says. */
static int skips_on_overflow(const zb_config *config)
{
    return config->dtype == ZB_FP16 ||
           (config->dtype == ZB_BF16 && config->zero.stage < 3 && config->bf16_check_grad_overflow);
}

static zb_norm_method norm_method(int stage, zb_dtype dtype)
{
    if (stage == 0) return dtype == ZB_FP32 ? ZB_NORM_PARAMETERS_FP32 : ZB_NORM_FLAT_FP32;
    return stage == 3 ? ZB_NORM_PARTITION_FP64 : ZB_NORM_PARTITION_FP32;
}

static zb_quirks quirks_of(int stage, zb_dtype dtype)
{
    zb_quirks quirks = {
        .loss_unscaled = stage == 0,
        .hidden_first_step = stage == 0 && dtype != ZB_FP32,
        .unscaled_by_next_scale = 1,
        .norm_by_next_scale = stage == 0 || stage == 3,
        .clip = ZB_CLIP_COMBINED,
    };
    if (stage == 1 || stage == 2) quirks.clip = ZB_CLIP_COMBINED_FP32;
    if (stage == 0 && dtype == ZB_FP32) quirks.clip = ZB_CLIP_COEFFICIENT;
    return quirks;
}

zb_status zb_plan_derive_deepspeed(const zb_config *config, int world_size, zb_plan *plan)
{
    const int stage = config->zero.stage;
    ZB_TRY(check_known(config));
    zb_batch_triangle batch;
    if (zb_batch_resolve(&config->batch, world_size, &batch) != ZB_OK)
        return zb_fail_context("%s", config->path);
    zb_plan derived = {
        .semantics = config->semantics,
        .world_size = world_size,
        .micro_batch_size = batch.micro_batch_size,
        .accumulation_steps = batch.accumulation_steps,
        .param_dtype = config->dtype,
        .grad_dtype = config->dtype,
        .comm_dtype = config->dtype,
        .skip_on_overflow = skips_on_overflow(config),
        .reduce_when = stage < 2 ? ZB_REDUCE_AT_BOUNDARY : ZB_REDUCE_EVERY_MICRO_BATCH,
        .average = stage == 0 ? ZB_AVERAGE_AFTER : ZB_AVERAGE_BEFORE,
        .order = ZB_ORDER_RANK,
        .norm = norm_method(stage, config->dtype),
        .quirks = quirks_of(stage, config->dtype),
        .clip_norm = config->gradient_clipping,
        .optimizer = config->optimizer,
    };
    if (config->average == ZB_SUM_ONLY) derived.average = ZB_SUM_ONLY;
    ZB_TRY(zb_scaler_derive(config, stage, config->dtype, &derived.scaler));
    *plan = derived;
    return ZB_OK;
}
