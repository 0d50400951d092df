/* Arithmetic plans: made from a config, compared, and named. */
#include <zerobit/plan.h>

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/config.h>
#include <zerobit/orders.h>

#include "core/plan_optimizer.h"

static const char *norm_name(zb_norm_method norm)
{
    switch (norm) {
    case ZB_NORM_EXACT:
        return "exact";
    case ZB_NORM_PARAMETERS_MEAN:
        return "parameters-mean";
    case ZB_NORM_PARAMETERS:
        return "parameters";
    case ZB_NORM_FLAT:
        return "flat";
    case ZB_NORM_UNFUSED:
        return "unfused";
    case ZB_NORM_PARTITION_FP32:
        return "partition-fp32";
    case ZB_NORM_PARTITION_FP64:
        return "partition-fp64";
    case ZB_NORM_PYTORCH:
        return "pytorch";
    }
    return "?";
}

static const char *overflow_name(zb_overflow_rule rule)
{
    switch (rule) {
    case ZB_OVERFLOW_UNSEEN:
        return "apply";
    case ZB_OVERFLOW_SKIP:
        return "skip";
    case ZB_OVERFLOW_COUNT:
        return "count";
    case ZB_OVERFLOW_STOP:
        return "stop";
    }
    return "?";
}

/* The others step each element on its own. LAMB takes norms; DeepSpeedCPUAdam's last few elements of a tensor
 * are computed in another way. */
static int optimizer_looks_at_tensors(const zb_optimizer_config *optimizer)
{
    return optimizer->kind == ZB_OPTIMIZER_LAMB || zb_optimizer_has_tails(optimizer);
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

static int factor_equal(zb_factor a, zb_factor b)
{
    return a.kind == b.kind && (a.kind == ZB_FACTOR_NONE || a.by == b.by);
}

/* A single rank has nothing to add or to divide. */
static int averaging_equal(const zb_averaging *a, const zb_averaging *b, int world_size)
{
    return factor_equal(a->in_bucket, b->in_bucket) && factor_equal(a->before[0], b->before[0]) &&
           factor_equal(a->before[1], b->before[1]) && factor_equal(a->after, b->after) &&
           (world_size == 1 || (!a->absent == !b->absent && !a->inside == !b->inside));
}

/* Whether anything looks at where the tensors of that kind begin and end. */
static int looks_at(const zb_plan *plan, zb_tensors tensors)
{
    const int norm_looks = (tensors == ZB_TENSORS_PARTITIONS && plan->norm == ZB_NORM_PARTITION_FP32) ||
                           (tensors == ZB_TENSORS_SUB_GROUPS && plan->norm == ZB_NORM_PARTITION_FP64);
    return norm_looks || (plan->tensors == tensors && optimizer_looks_at_tensors(&plan->groups[0]));
}

/* Optimizers and norms have been found equal. */
static int tensors_equal(const zb_plan *a, const zb_plan *b)
{
    if (a->tensors != b->tensors && optimizer_looks_at_tensors(&a->groups[0])) return 0;
    if (looks_at(a, ZB_TENSORS_PARTITIONS) && !a->round_robin != !b->round_robin) return 0;
    return !looks_at(a, ZB_TENSORS_SUB_GROUPS) || a->sub_group_numel == b->sub_group_numel;
}

/* Gradients that are not averaged pass through the types of the others in vain, if at all. */
static zb_dtype way_dtype(const zb_plan *plan, zb_dtype dtype)
{
    return plan->averaging.absent ? plan->grad_dtype : dtype;
}

/* A single micro-batch is not added to anything on its rank: the wider type that it passes through changes
 * nothing. */
static int types_equal(const zb_plan *a, const zb_plan *b)
{
    return a->param_dtype == b->param_dtype &&
           (a->local_dtype == b->local_dtype || a->accumulation_steps == 1) &&
           way_dtype(a, a->bucket_dtype) == way_dtype(b, b->bucket_dtype) &&
           way_dtype(a, a->comm_dtype) == way_dtype(b, b->comm_dtype) && a->grad_dtype == b->grad_dtype &&
           a->seed_dtype == b->seed_dtype;
}

/* Semantics and quirks are where a plan comes from, not what it computes. */
int zb_plan_equal(const zb_plan *a, const zb_plan *b)
{
    int when_matters = a->accumulation_steps != 1;
    return a->world_size == b->world_size && a->micro_batch_size == b->micro_batch_size &&
           a->accumulation_steps == b->accumulation_steps && types_equal(a, b) &&
           averaging_equal(&a->averaging, &b->averaging, a->world_size) &&
           zb_orders_equal(a->orders, b->orders) && (a->reduce_when == b->reduce_when || !when_matters) &&
           !a->reshuffle == !b->reshuffle && scaler_equal(&a->scaler, &b->scaler) &&
           !a->loss_is_scaled == !b->loss_is_scaled &&
           !a->unscale_by_next_scale == !b->unscale_by_next_scale &&
           !a->report_norm_by_next_scale == !b->report_norm_by_next_scale && a->overflow == b->overflow &&
           a->norm == b->norm && a->clip == b->clip && a->clip_norm == b->clip_norm &&
           !a->hidden_first_step == !b->hidden_first_step && zb_plan_optimizers_equal(a, b) &&
           tensors_equal(a, b);
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

static void append(char *text, size_t text_bytes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void append(char *text, size_t text_bytes, const char *format, ...)
{
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, text_bytes - used, format, args);
    va_end(args);
}

static void append_factor(zb_factor factor, const char *gap_before, const char *gap_after, char *text,
                          size_t text_bytes)
{
    if (factor.kind == ZB_FACTOR_NONE) return;
    append(text, text_bytes, "%s%c%.9g%s", gap_before, factor.kind == ZB_FACTOR_DIVIDE ? '/' : '*',
           (double)factor.by, gap_after);
}

static void describe_averaging(const zb_averaging *averaging, char *text, size_t text_bytes)
{
    text[0] = '\0';
    append_factor(averaging->in_bucket, "", " ", text, text_bytes);
    for (int i = 0; i < 2; i++) append_factor(averaging->before[i], "", " ", text, text_bytes);
    append(text, text_bytes, averaging->absent ? "none" : averaging->inside ? "inside" : "sum");
    append_factor(averaging->after, " ", "", text, text_bytes);
}

/* The types of a gradient's way, each change of type once. */
static void describe_types(const zb_plan *plan, char *text, size_t text_bytes)
{
    const zb_dtype way[] = { plan->local_dtype, plan->bucket_dtype, plan->comm_dtype, plan->grad_dtype };
    const size_t first = plan->reduce_when == ZB_REDUCE_AT_BOUNDARY ? 0 : 1; /* where they are added up */
    snprintf(text, text_bytes, "%s", zb_dtype_name(way[first]));
    for (size_t i = first + 1; i < sizeof way / sizeof way[0]; i++)
        if (way[i] != way[i - 1]) append(text, text_bytes, ">%s", zb_dtype_name(way[i]));
}

void zb_plan_describe(const zb_plan *plan, char *text, size_t text_bytes)
{
    char scale[160], average[160], types[80];
    char orders[160]; /* rings over many ranks are longer: a trace keeps them whole */
    zb_orders_describe(plan->orders, orders, sizeof orders);
    const char *quote = strchr(orders, ' ') != NULL ? "\"" : "";
    describe_scaler(&plan->scaler, scale, sizeof scale);
    describe_averaging(&plan->averaging, average, sizeof average);
    describe_types(plan, types, sizeof types);
    snprintf(text, text_bytes,
             "%s %s world %d micro %" PRId64 " x %" PRId64
             " reduce=%s average=%s order=%s%s%s norm=%s grad=%s comm=%s scale=%s overflow=%s",
             zb_semantics_name(plan->semantics), zb_dtype_name(plan->param_dtype), plan->world_size,
             plan->micro_batch_size, plan->accumulation_steps,
             plan->reduce_when == ZB_REDUCE_AT_BOUNDARY ? "boundary" : "micro-batch", average, quote, orders,
             quote, norm_name(plan->norm), types, zb_dtype_name(plan->comm_dtype), scale,
             overflow_name(plan->overflow));
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
        int stage0_rule = config->quirks.stage_0_loss_scaler && stage == 0;
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

/* What a config says of a run at one stage and precision; the questions that follow are asked of it. */
typedef struct choice {
    const zb_config *config;
    zb_quirks quirks;
    int stage, world_size;
    zb_dtype dtype, accum_dtype;
    int bf16_optimizer; /* DeepSpeed's class of that name */
    int is_ddp;         /* PyTorch's DistributedDataParallel */
} choice;

static int divides_before(const choice *c)
{
    return c->config->prescale_gradients || c->config->gradient_predivide_factor != 1.0;
}

static zb_status refuse(const choice *c, const char *key, const char *found, const char *expected)
{
    return zb_fail(ZB_INVALID_CONFIG, "%s: %s: is %s, want %s", c->config->path, key, found, expected);
}

/* Whether prescale_gradients and gradient_predivide_factor are acted on. */
static int heeds_division(const choice *c)
{
    const int ignored = c->quirks.stage_1_ignores_prescale && c->stage == 1 && !c->bf16_optimizer &&
                        c->config->zero.reduce_scatter;
    return divides_before(c) && !ignored;
}

/* Whether what was divided by the predivide factor before the sum is multiplied by it after. */
static int restores_division(const choice *c)
{
    return !(c->quirks.stage_3_predivide_not_restored && c->stage == 3 &&
             c->config->gradient_predivide_factor == c->world_size);
}

/* What DeepSpeed asserts when it gets there. */
static zb_status check_averaging(const choice *c)
{
    const zb_config *config = c->config;
    const char *key = config->prescale_gradients ? "prescale_gradients" : "gradient_predivide_factor";
    const char *rest = config->prescale_gradients ? "false" : "1.0";
    char found[32] = "true", expected[128];
    if (config->grad_sum && c->stage == 3)
        return refuse(c, "gradient_allreduce_op", "\"sum\"", "\"mean\" at stage 3, as DeepSpeed demands");
    if (config->grad_sum || !divides_before(c) || c->stage < 2) return ZB_OK;
    if (!config->zero.reduce_scatter) return ZB_OK;
    if (!config->prescale_gradients)
        snprintf(found, sizeof found, "%.17g", config->gradient_predivide_factor);
    snprintf(expected, sizeof expected,
             "%s at stage %d with zero_optimization.reduce_scatter, as DeepSpeed demands", rest, c->stage);
    return refuse(c, key, found, expected);
}

/* Gradients are accumulated in the model's type, or in fp32. */
static zb_status check_accumulation(const choice *c)
{
    char expected[128];
    if (c->accum_dtype != c->dtype && c->accum_dtype != ZB_FP32) {
        snprintf(expected, sizeof expected, "fp32, or %s, which the model runs in", zb_dtype_name(c->dtype));
        return refuse(c, "data_types.grad_accum_dtype", zb_dtype_name(c->accum_dtype), expected);
    }
    if (c->config->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6 && c->stage == 0 &&
        c->accum_dtype != c->dtype) {
        snprintf(expected, sizeof expected, "%s at stage 0, which the model runs in, as DeepSpeed demands",
                 zb_dtype_name(c->dtype));
        return refuse(c, "data_types.grad_accum_dtype", zb_dtype_name(c->accum_dtype), expected);
    }
    return ZB_OK;
}

/* It has neither stages nor knobs for its average, and the loop around it is known in fp32. */
static zb_status check_ddp(const choice *c)
{
    static const char want_none[] = "it left out: DistributedDataParallel has none";
    const zb_config *config = c->config;
    if (!c->is_ddp) return ZB_OK;
    if (c->stage != 0)
        return zb_fail(ZB_INVALID_CONFIG, "%s: stage is %d, want 0 under %s semantics", config->path,
                       c->stage, zb_semantics_name(config->semantics));
    if (c->dtype != ZB_FP32)
        return zb_fail(ZB_UNSUPPORTED, "%s: dtype is %s, want fp32 under %s semantics", config->path,
                       zb_dtype_name(c->dtype), zb_semantics_name(config->semantics));
    if (config->prescale_gradients) return refuse(c, "prescale_gradients", "true", want_none);
    if (config->gradient_predivide_factor != 1.0)
        return refuse(c, "gradient_predivide_factor", "not 1", want_none);
    if (config->grad_sum) return refuse(c, "gradient_allreduce_op", "\"sum\"", want_none);
    if (config->comm_dtype >= 0 && config->comm_dtype != (int)ZB_FP32)
        return refuse(c, "communication_data_type", zb_dtype_name((zb_dtype)config->comm_dtype), want_none);
    return ZB_OK;
}

static zb_status check_choice(const choice *c)
{
    ZB_TRY(check_ddp(c));
    ZB_TRY(check_averaging(c));
    return check_accumulation(c);
}

static zb_factor factor(zb_factor_kind kind, double by)
{
    return by == 1.0 ? (zb_factor){ ZB_FACTOR_NONE, 0 } : (zb_factor){ kind, (float)by };
}

/* As documented: inside the sum, unless the config divides before it. Otherwise in two parts, 1 / f before
 * and f / W after; prescaling is f = W. Source: engine.py, allreduce_bucket. */
static void average_as_documented(const choice *c, zb_averaging *averaging)
{
    const double f = c->config->gradient_predivide_factor, world = c->world_size;
    if (!heeds_division(c)) {
        averaging->inside = 1;
    } else if (c->config->prescale_gradients) {
        averaging->before[0] = factor(ZB_FACTOR_DIVIDE, world);
    } else {
        averaging->before[0] = factor(ZB_FACTOR_MULTIPLY, 1.0 / f);
        averaging->after = factor(ZB_FACTOR_MULTIPLY, restores_division(c) ? f / world : 1.0 / world);
    }
}

/* engine.py, allreduce_bucket: also what BF16_Optimizer uses. */
static void average_at_stage_0(const choice *c, zb_averaging *averaging)
{
    const double f = c->config->gradient_predivide_factor, world = c->world_size;
    if (c->config->prescale_gradients) {
        averaging->before[0] = factor(ZB_FACTOR_MULTIPLY, 1.0 / world);
        return;
    }
    averaging->before[0] = factor(ZB_FACTOR_MULTIPLY, 1.0 / f);
    averaging->after = factor(ZB_FACTOR_MULTIPLY, f / world);
}

/* PyTorch: csrc/distributed/c10d/reducer.cpp, mark_variable_ready_dense. */
static void average_as_ddp(const choice *c, zb_averaging *averaging)
{
    averaging->before[0] = factor(ZB_FACTOR_MULTIPLY, 1.0 / c->world_size);
}

/* zero/stage_1_and_2.py: average_tensor, allreduce_bucket, gradient_reduction_w_predivide. */
static void average_at_stages_1_and_2(const choice *c, zb_averaging *averaging)
{
    const zb_config *config = c->config;
    const double f = config->gradient_predivide_factor, world = c->world_size;
    if (!config->zero.contiguous_gradients) {
        averaging->before[0] = factor(ZB_FACTOR_DIVIDE, world);
    } else if (config->zero.reduce_scatter && !heeds_division(c)) {
        averaging->in_bucket = factor(ZB_FACTOR_DIVIDE, world);
    } else if (config->prescale_gradients) {
        averaging->before[0] = factor(ZB_FACTOR_DIVIDE, world);
    } else {
        averaging->before[0] = factor(ZB_FACTOR_MULTIPLY, 1.0 / f);
        averaging->after = factor(ZB_FACTOR_MULTIPLY, f / world);
    }
}

/* zero/stage3.py: __avg_scatter_grads, __avg_scatter_contiguous_grads. */
static void average_at_stage_3(const choice *c, zb_averaging *averaging)
{
    const double world = c->world_size;
    const double f = c->config->prescale_gradients ? 1.0 : c->config->gradient_predivide_factor;
    averaging->before[0] = factor(ZB_FACTOR_DIVIDE, f);
    averaging->before[1] = factor(ZB_FACTOR_DIVIDE, world);
    if (restores_division(c)) averaging->after = factor(ZB_FACTOR_MULTIPLY, f);
}

/* zero/stage_1_and_2.py, buffered_reduce_fallback: the gradients that it sends are those of the accelerator's
 * types. */
static int sends_nothing(const choice *c)
{
    return c->quirks.unreduced_without_contiguous_gradients && !c->config->zero.contiguous_gradients &&
           (c->stage == 1 || c->stage == 2) && !c->bf16_optimizer;
}

/* zero/stage_1_and_2.py, get_gradient_for_reduction: what is reduced is a copy in the model's type, and the
 * sum that it was made from goes to the optimizer. */
static int sends_in_vain(const choice *c)
{
    return c->quirks.stage_1_wide_sum_unreduced && c->stage == 1 && !c->bf16_optimizer &&
           c->accum_dtype != c->dtype;
}

static zb_averaging derive_averaging(const choice *c)
{
    zb_averaging averaging = { 0 };
    if (c->is_ddp)
        average_as_ddp(c, &averaging);
    else if (sends_nothing(c) || sends_in_vain(c))
        averaging.absent = 1;
    else if (c->config->grad_sum)
        return averaging;
    else if (!c->quirks.average_outside_sum)
        average_as_documented(c, &averaging);
    else if (c->stage == 0 || c->bf16_optimizer)
        average_at_stage_0(c, &averaging);
    else if (c->stage < 3)
        average_at_stages_1_and_2(c, &averaging);
    else
        average_at_stage_3(c, &averaging);
    return averaging;
}

/* Unless told otherwise, what is accumulated is what is sent; DeepSpeed sends in the model's type. */
static void derive_types(const choice *c, zb_plan *plan)
{
    const int at_1_or_2 = (c->stage == 1 || c->stage == 2) && !c->bf16_optimizer;
    const int narrows = at_1_or_2 && c->stage == 2 && c->quirks.stage_2_ignores_accumulation_type;
    const zb_dtype unless_told = c->quirks.gradients_sent_in_model_type ? c->dtype : c->accum_dtype;
    plan->param_dtype = c->dtype;
    plan->local_dtype = c->stage < 2 ? c->accum_dtype : c->dtype;
    plan->comm_dtype = c->config->comm_dtype >= 0 ? (zb_dtype)c->config->comm_dtype : unless_told;
    plan->grad_dtype = narrows ? c->dtype : c->accum_dtype;
    /* Stages 1 and 2 divide in the bucket, before they convert to what travels. */
    const int in_bucket = narrows || (at_1_or_2 && c->quirks.average_outside_sum);
    if (sends_nothing(c)) plan->comm_dtype = plan->grad_dtype; /* nor converts it for that */
    plan->bucket_dtype = in_bucket ? plan->grad_dtype : plan->comm_dtype;
    if (sends_in_vain(c) && !sends_nothing(c)) plan->bucket_dtype = c->dtype;
}

/* At stage 0 in 16 bit FusedAdam is wrapped in another class than all other optimizers. */
static int is_fused(const choice *c)
{
    const zb_optimizer_config *optimizer = &c->config->optimizer;
    return optimizer->kind == ZB_OPTIMIZER_ADAM && !zb_optimizer_is_of_torch(optimizer);
}

static zb_overflow_rule derive_overflow(const choice *c)
{
    if (c->bf16_optimizer) return ZB_OVERFLOW_STOP;
    if (c->dtype == ZB_FP32) return ZB_OVERFLOW_UNSEEN;
    if (c->dtype == ZB_FP16) return ZB_OVERFLOW_SKIP;
    if (c->stage == 0 && c->quirks.stage_0_bf16_overflow_applied) /* fp16/unfused_optimizer.py skips */
        return is_fused(c) ? ZB_OVERFLOW_COUNT : ZB_OVERFLOW_SKIP;
    if (c->stage == 3 && c->quirks.stage_3_bf16_overflow_unseen) return ZB_OVERFLOW_UNSEEN;
    return c->config->bf16_check_grad_overflow ? ZB_OVERFLOW_SKIP : ZB_OVERFLOW_UNSEEN;
}

static zb_norm_method derive_norm(const choice *c)
{
    if (c->is_ddp) return ZB_NORM_PYTORCH;
    if (!c->quirks.norm_per_stage) return ZB_NORM_EXACT;
    if (c->bf16_optimizer) return ZB_NORM_PARAMETERS;
    if (c->stage == 0 && c->dtype == ZB_FP32) return ZB_NORM_PARAMETERS_MEAN;
    if (c->stage == 0) return is_fused(c) ? ZB_NORM_FLAT : ZB_NORM_UNFUSED;
    return c->stage == 3 ? ZB_NORM_PARTITION_FP64 : ZB_NORM_PARTITION_FP32;
}

/* Without clipping all methods divide by the loss scale, which without fp16 is 1. */
static zb_clip_method derive_clip(const choice *c)
{
    const int nothing_to_do = c->config->gradient_clipping == 0 && c->dtype != ZB_FP16;
    if (c->is_ddp) return ZB_CLIP_RECIPROCAL;
    if (!c->quirks.clip_per_stage || nothing_to_do) return ZB_CLIP_COMBINED;
    if (c->bf16_optimizer) return ZB_CLIP_RECIPROCAL;
    if (c->stage == 0 && c->dtype == ZB_FP32) return ZB_CLIP_COEFFICIENT;
    return c->stage == 1 || c->stage == 2 ? ZB_CLIP_COMBINED_FP32 : ZB_CLIP_COMBINED;
}

static zb_tensors derive_tensors(const choice *c)
{
    if (!c->quirks.optimizer_sees_flat_tensors) return ZB_TENSORS_PARAMETERS;
    if (c->stage == 0) return c->dtype != ZB_FP32 && is_fused(c) ? ZB_TENSORS_GROUPS : ZB_TENSORS_PARAMETERS;
    return c->stage == 3 ? ZB_TENSORS_SUB_GROUPS : ZB_TENSORS_PARTITIONS;
}

/* Quirks of a loss scale act where there is one, those of its updates where it changes. */
static void derive_scaling(const choice *c, zb_plan *plan)
{
    const int is_scaled = plan->scaler.kind != ZB_SCALER_NONE;
    const int changes = is_scaled && plan->scaler.kind != ZB_SCALER_STATIC;
    plan->loss_is_scaled = !(is_scaled && c->quirks.loss_unscaled_at_stage_0 && c->stage == 0);
    plan->seed_dtype = ZB_FP32;
    if (is_scaled && plan->loss_is_scaled && c->quirks.loss_seed_in_model_type) plan->seed_dtype = c->dtype;
    plan->unscale_by_next_scale = changes && c->quirks.scale_updated_before_unscaling;
    plan->report_norm_by_next_scale = changes && c->quirks.norm_by_updated_scale &&
                                      plan->norm != ZB_NORM_UNFUSED && (c->stage == 0 || c->stage == 3);
    plan->hidden_first_step = c->quirks.hidden_first_step && c->stage == 0 && c->dtype != ZB_FP32;
}

zb_status zb_plan_derive(const zb_config *config, int stage, zb_dtype dtype, int world_size, zb_plan *plan)
{
    ZB_TRY(check_arguments(stage, dtype));
    zb_batch_triangle batch;
    if (zb_batch_resolve(&config->batch, world_size, &batch) != ZB_OK)
        return zb_fail_context("%s", config->path);
    choice c = { .config = config,
                 .quirks = config->quirks,
                 .stage = stage,
                 .world_size = world_size,
                 .dtype = dtype,
                 .accum_dtype = config->grad_accum_dtype >= 0 ? (zb_dtype)config->grad_accum_dtype : dtype,
                 .is_ddp = config->semantics == ZB_SEMANTICS_PYTORCH_DDP };
    c.bf16_optimizer = c.quirks.bf16_optimizer && stage == 1 && dtype == ZB_BF16 && c.accum_dtype == ZB_FP32;
    ZB_TRY(check_choice(&c));
    zb_plan derived = {
        .semantics = config->semantics,
        .quirks = config->quirks,
        .world_size = world_size,
        .micro_batch_size = batch.micro_batch_size,
        .accumulation_steps = batch.accumulation_steps,
        .averaging = derive_averaging(&c),
        .orders = config->orders,
        .reduce_when = stage < 2 ? ZB_REDUCE_AT_BOUNDARY : ZB_REDUCE_EVERY_MICRO_BATCH,
        .reshuffle = !config->quirks.sampler_never_reshuffles,
        .overflow = derive_overflow(&c),
        .tensors = derive_tensors(&c),
        .round_robin = config->zero.round_robin_gradients,
        .sub_group_numel = config->zero.sub_group_numel,
        .norm = derive_norm(&c),
        .clip = derive_clip(&c),
        .clip_norm = config->gradient_clipping,
    };
    ZB_TRY(zb_plan_derive_optimizer(config, stage, &derived));
    ZB_TRY(zb_scaler_derive(config, stage, dtype, &derived.scaler));
    derive_types(&c, &derived);
    derive_scaling(&c, &derived);
    *plan = derived;
    return ZB_OK;
}
