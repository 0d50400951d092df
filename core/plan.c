/* Arithmetic plans: made from a config, compared, and named. */
#include <zerobit/plan.h>

#include <inttypes.h>
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
           a->decay_mode == b->decay_mode && !a->bias_correction == !b->bias_correction;
}

int zb_plan_equal(const zb_plan *a, const zb_plan *b)
{
    int when_matters = a->accumulation_steps != 1;
    return a->semantics == b->semantics && a->world_size == b->world_size &&
           a->micro_batch_size == b->micro_batch_size && a->accumulation_steps == b->accumulation_steps &&
           a->param_dtype == b->param_dtype && a->grad_dtype == b->grad_dtype &&
           a->comm_dtype == b->comm_dtype && (a->reduce_when == b->reduce_when || !when_matters) &&
           a->average == b->average && a->order == b->order && a->norm == b->norm &&
           a->clip_norm == b->clip_norm && optimizer_equal(&a->optimizer, &b->optimizer);
}

void zb_plan_describe(const zb_plan *plan, char *text, size_t text_bytes)
{
    snprintf(text, text_bytes,
             "%s %s world %d micro %" PRId64 " x %" PRId64 " reduce=%s average=%s order=%s norm=exact",
             semantics_name(plan->semantics), zb_dtype_name(plan->param_dtype), plan->world_size,
             plan->micro_batch_size, plan->accumulation_steps,
             plan->reduce_when == ZB_REDUCE_AT_BOUNDARY ? "boundary" : "micro-batch",
             plan->average == ZB_AVERAGE_INSIDE ? "inside" : "sum", zb_order_name(plan->order));
}

static zb_status check_runnable(const zb_config *config, int stage, zb_dtype dtype)
{
    if (stage < 0 || stage >= ZB_STAGE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "stage is %d, want 0 to %d", stage, ZB_STAGE_COUNT - 1);
    if (config->semantics != ZB_SEMANTICS_STANDARD)
        return zb_fail(ZB_UNSUPPORTED,
                       "%s: zerobit.semantics: is \"%s\", want \"standard\": not supported yet", config->path,
                       semantics_name(config->semantics));
    if (dtype == ZB_FP16 || dtype == ZB_BF16)
        return zb_fail(ZB_UNSUPPORTED,
                       "%s: training in %s is not supported yet; --dtypes fp32 runs this config in fp32",
                       config->path, zb_dtype_name(dtype));
    if (dtype != ZB_FP32) return zb_fail(ZB_INVALID_ARGUMENT, "dtype is %s, want fp32", zb_dtype_name(dtype));
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
    ZB_TRY(check_runnable(config, stage, dtype));
    zb_batch_triangle batch;
    if (zb_batch_resolve(&config->batch, world_size, &batch) != ZB_OK)
        return zb_fail_context("%s", config->path);
    *plan = (zb_plan){
        .semantics = config->semantics,
        .world_size = world_size,
        .micro_batch_size = batch.micro_batch_size,
        .accumulation_steps = batch.accumulation_steps,
        .param_dtype = dtype,
        .grad_dtype = dtype,
        .comm_dtype = dtype,
        .reduce_when = stage < 2 ? ZB_REDUCE_AT_BOUNDARY : ZB_REDUCE_EVERY_MICRO_BATCH,
        .average = config->average,
        .order = ZB_ORDER_RANK,
        .norm = ZB_NORM_EXACT,
        .clip_norm = config->gradient_clipping,
        .optimizer = config->optimizer,
    };
    return ZB_OK;
}
