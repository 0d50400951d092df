/* Arithmetic plans: made from a config, compared, and named. */
#include <zerobit/plan.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <zerobit/config.h>

const char *zb_order_name(zb_order order)
{
    switch (order) {
    case ZB_ORDER_RANK:
        return "rank";
    }
    return "?";
}

static const char *average_name(zb_average average)
{
    switch (average) {
    case ZB_AVERAGE_INSIDE:
        return "inside";
    case ZB_SUM_ONLY:
        return "sum";
    case ZB_AVERAGE_BEFORE:
        return "before";
    case ZB_AVERAGE_AFTER:
        return "after";
    }
    return "?";
}

static const char *norm_name(zb_norm_method norm)
{
    switch (norm) {
    case ZB_NORM_EXACT:
        return "exact";
    case ZB_NORM_PARAMETERS_FP32:
        return "parameters-fp32";
    case ZB_NORM_FLAT_FP32:
        return "flat-fp32";
    case ZB_NORM_PARTITION_FP32:
        return "partition-fp32";
    case ZB_NORM_PARTITION_FP64:
        return "partition-fp64";
    }
    return "?";
}

static const char *semantics_name(zb_semantics semantics)
{
    switch (semantics) {
    case ZB_SEMANTICS_STANDARD:
        return "standard";
    case ZB_SEMANTICS_DEEPSPEED_0_19_6:
        return "deepspeed-0.19.6";
    }
    return "?";
}

/* Hyper-parameters of another optimizer than the one that runs make no difference. */
static int optimizer_equal(const zb_optimizer_config *a, const zb_optimizer_config *b)
{
    if (a->kind != b->kind || a->lr != b->lr || a->weight_decay != b->weight_decay) return 0;
    if (a->kind == ZB_OPTIMIZER_SGD)
        return a->momentum == b->momentum && a->dampening == b->dampening && !a->nesterov == !b->nesterov;
    return a->beta1 == b->beta1 && a->beta2 == b->beta2 && a->eps == b->eps &&
           a->decay_mode == b->decay_mode && a->variant == b->variant &&
           !a->bias_correction == !b->bias_correction;
}

/* Only what this kind of scaler looks at. */
static int scaler_equal(const zb_loss_scaler_config *a, const zb_loss_scaler_config *b)
{
    if (a->kind != b->kind) return 0;
    if (a->kind == ZB_SCALER_NONE) return 1;
    if (a->initial_scale != b->initial_scale) return 0;
    if (a->kind == ZB_SCALER_STATIC) return 1;
    if (a->min_scale != b->min_scale || a->window != b->window) return 0;
    return a->kind == ZB_SCALER_DYNAMIC_STAGE0 ||
           (a->hysteresis == b->hysteresis && !a->consecutive_hysteresis == !b->consecutive_hysteresis);
}

static int quirks_equal(const zb_quirks *a, const zb_quirks *b)
{
    return !a->loss_unscaled == !b->loss_unscaled && !a->hidden_first_step == !b->hidden_first_step &&
           !a->unscaled_by_next_scale == !b->unscaled_by_next_scale &&
           !a->norm_by_next_scale == !b->norm_by_next_scale && a->clip == b->clip;
}

int zb_plan_equal(const zb_plan *a, const zb_plan *b)
{
    int when_matters = a->accumulation_steps != 1;
    return a->semantics == b->semantics && a->world_size == b->world_size &&
           a->micro_batch_size == b->micro_batch_size && a->accumulation_steps == b->accumulation_steps &&
           a->param_dtype == b->param_dtype && a->grad_dtype == b->grad_dtype &&
           a->comm_dtype == b->comm_dtype && scaler_equal(&a->scaler, &b->scaler) &&
           !a->skip_on_overflow == !b->skip_on_overflow &&
           (a->reduce_when == b->reduce_when || !when_matters) && a->average == b->average &&
           a->order == b->order && a->norm == b->norm && quirks_equal(&a->quirks, &b->quirks) &&
           a->clip_norm == b->clip_norm && optimizer_equal(&a->optimizer, &b->optimizer);
}

static void describe_scaler(const zb_loss_scaler_config *scaler, char *text, size_t text_bytes)
{
    switch (scaler->kind) {
    case ZB_SCALER_NONE:
        snprintf(text, text_bytes, "none");
        return;
    case ZB_SCALER_STATIC:
        snprintf(text, text_bytes, "%.17g", scaler->initial_scale);
        return;
    case ZB_SCALER_DYNAMIC:
        snprintf(text, text_bytes, "dynamic:%.17g/%" PRId64 "/%" PRId64 "%s/%.17g", scaler->initial_scale,
                 scaler->window, scaler->hysteresis, scaler->consecutive_hysteresis ? "-consecutive" : "",
                 scaler->min_scale);
        return;
    case ZB_SCALER_DYNAMIC_STAGE0:
        snprintf(text, text_bytes, "stage0:%.17g/%" PRId64 "/%.17g", scaler->initial_scale, scaler->window,
                 scaler->min_scale);
        return;
    }
    snprintf(text, text_bytes, "?");
}

void zb_plan_describe(const zb_plan *plan, char *text, size_t text_bytes)
{
    char scale[160];
    describe_scaler(&plan->scaler, scale, sizeof scale);
    snprintf(text, text_bytes,
             "%s %s world %d micro %" PRId64 " x %" PRId64
             " reduce=%s average=%s order=%s norm=%s grad=%s comm=%s scale=%s overflow=%s",
             semantics_name(plan->semantics), zb_dtype_name(plan->param_dtype), plan->world_size,
             plan->micro_batch_size, plan->accumulation_steps,
             plan->reduce_when == ZB_REDUCE_AT_BOUNDARY ? "boundary" : "micro-batch",
             average_name(plan->average), zb_order_name(plan->order), norm_name(plan->norm),
             zb_dtype_name(plan->grad_dtype), zb_dtype_name(plan->comm_dtype), scale,
             plan->skip_on_overflow ? "skip" : "apply");
}

static zb_status check_arguments(int stage, zb_dtype dtype)
{
    if (stage < 0 || stage >= ZB_STAGE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "stage is %d, want 0 to %d", stage, ZB_STAGE_COUNT - 1);
    if (dtype != ZB_FP32 && dtype != ZB_FP16 && dtype != ZB_BF16)
        return zb_fail(ZB_INVALID_ARGUMENT, "dtype is %s, want fp32, fp16 or bf16", zb_dtype_name(dtype));
    return ZB_OK;
}

/* Only fp16 scales. Its range is checked here, since the config's parser leaves values alone that are not in
 * use. */
zb_status zb_scaler_derive(const zb_config *config, int stage, zb_dtype dtype, zb_loss_scaler_config *scaler)
{
    ZB_TRY(check_arguments(stage, dtype));
    const zb_fp16_config *fp16 = &config->fp16;
    zb_loss_scaler_config derived = { .kind = ZB_SCALER_NONE, .initial_scale = 1.0 };
    if (dtype == ZB_FP16 && fp16->loss_scale > 0) {
        derived.kind = ZB_SCALER_STATIC;
        derived.initial_scale = fp16->loss_scale;
    } else if (dtype == ZB_FP16) {
        int stage0_rule = config->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6 && stage == 0;
        derived = (zb_loss_scaler_config){
            .kind = stage0_rule ? ZB_SCALER_DYNAMIC_STAGE0 : ZB_SCALER_DYNAMIC,
            .initial_scale = ldexp(1.0, fp16->initial_scale_power),
            .min_scale = (double)fp16->min_loss_scale,
            .window = fp16->loss_scale_window,
            .hysteresis = fp16->hysteresis,
            .consecutive_hysteresis = fp16->consecutive_hysteresis,
        };
    }
    zb_loss_scaler probe;
    if (zb_loss_scaler_init(&probe, &derived) != ZB_OK) return zb_fail_context("%s: fp16", config->path);
    *scaler = derived;
    return ZB_OK;
}

/* Gradients are accumulated and sent in the model's type, or in fp32; what is accumulated is what is sent. */
static zb_status derive_dtypes(const zb_config *config, zb_dtype dtype, zb_plan *plan)
{
    plan->param_dtype = dtype;
    plan->grad_dtype = config->grad_accum_dtype >= 0 ? (zb_dtype)config->grad_accum_dtype : dtype;
    plan->comm_dtype = config->comm_dtype >= 0 ? (zb_dtype)config->comm_dtype : plan->grad_dtype;
    if (plan->grad_dtype != dtype && plan->grad_dtype != ZB_FP32)
        return zb_fail(ZB_INVALID_CONFIG,
                       "%s: data_types.grad_accum_dtype: is %s, want fp32, or %s, which the model runs in",
                       config->path, zb_dtype_name(plan->grad_dtype), zb_dtype_name(dtype));
    if (plan->comm_dtype != plan->grad_dtype)
        return zb_fail(ZB_UNSUPPORTED,
                       "%s: communication_data_type: is %s, want %s, in which gradients are accumulated "
                       "(data_types.grad_accum_dtype): sending them in another type is not supported yet",
                       config->path, zb_dtype_name(plan->comm_dtype), zb_dtype_name(plan->grad_dtype));
    return ZB_OK;
}

static int skips_on_overflow(const zb_config *config, zb_dtype dtype)
{
    return dtype == ZB_FP16 || (dtype == ZB_BF16 && config->bf16_check_grad_overflow);
}

static zb_status check_runnable(const zb_config *config, int stage)
{
    if (config->semantics != ZB_SEMANTICS_STANDARD)
        return zb_fail(ZB_UNSUPPORTED,
                       "%s: zerobit.semantics: is \"%s\", want \"standard\": not supported yet", config->path,
                       semantics_name(config->semantics));
    if (!config->optimizer_given)
        return zb_fail(ZB_INVALID_CONFIG, "%s: optimizer: is missing, want an object with type and params",
                       config->path);
    if (config->average == ZB_SUM_ONLY && stage == 3)
        return zb_fail(
            ZB_INVALID_CONFIG,
            "%s: gradient_allreduce_op: is \"sum\", want \"mean\" at stage 3, as DeepSpeed demands",
            config->path);
    return ZB_OK;
}

zb_status zb_plan_derive(const zb_config *config, int stage, zb_dtype dtype, int world_size, zb_plan *plan)
{
    ZB_TRY(check_arguments(stage, dtype));
    ZB_TRY(check_runnable(config, stage));
    zb_batch_triangle batch;
    if (zb_batch_resolve(&config->batch, world_size, &batch) != ZB_OK)
        return zb_fail_context("%s", config->path);
    zb_plan derived = {
        .semantics = config->semantics,
        .world_size = world_size,
        .micro_batch_size = batch.micro_batch_size,
        .accumulation_steps = batch.accumulation_steps,
        .skip_on_overflow = skips_on_overflow(config, dtype),
        .reduce_when = stage < 2 ? ZB_REDUCE_AT_BOUNDARY : ZB_REDUCE_EVERY_MICRO_BATCH,
        .average = config->average,
        .order = ZB_ORDER_RANK,
        .norm = ZB_NORM_EXACT,
        .clip_norm = config->gradient_clipping,
        .optimizer = config->optimizer,
    };
    ZB_TRY(derive_dtypes(config, dtype, &derived));
    ZB_TRY(zb_scaler_derive(config, stage, dtype, &derived.scaler));
    *plan = derived;
    return ZB_OK;
}
