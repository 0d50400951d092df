/* The optimizer's part of a plan: which arithmetic exists for which optimizer, and when two demand equal
 * bits. */
#include "core/plan_optimizer.h"

#include <stddef.h>
#include <zerobit/config.h>

/* The numbers that a formula reads beyond lr, weight_decay and arithmetic. */
enum {
    READS_BETAS = 1,
    READS_EPS = 2,
    READS_BIAS_CORRECTION = 4,
    READS_DECAY_MODE = 8,
    READS_MOMENTUM = 16,
    READS_LR_DECAY = 32,
    READS_LAMB = 64
};

#define BIT(arithmetic) (1u << ZB_ARITHMETIC_##arithmetic)

static const struct kind {
    const char *name;
    unsigned arithmetics;
    int reads; /* of READS_* */
} kinds[ZB_OPTIMIZER_KIND_COUNT] = {
    [ZB_OPTIMIZER_ADAM] = { "Adam", BIT(PLAIN) | BIT(DEEPSPEED_CPU) | BIT(TORCH_1) | BIT(TORCH_2),
                            READS_BETAS | READS_EPS | READS_BIAS_CORRECTION | READS_DECAY_MODE },
    [ZB_OPTIMIZER_SGD] = { "SGD", BIT(PLAIN) | BIT(TORCH_1) | BIT(TORCH_2), READS_MOMENTUM },
    [ZB_OPTIMIZER_ADAGRAD] = { "Adagrad", BIT(PLAIN) | BIT(DEEPSPEED_CPU) | BIT(TORCH_1) | BIT(TORCH_2),
                               READS_EPS | READS_LR_DECAY },
    [ZB_OPTIMIZER_LION] = { "Lion", BIT(PLAIN) | BIT(DEEPSPEED_CPU), READS_BETAS },
    [ZB_OPTIMIZER_LAMB] = { "LAMB", BIT(PLAIN),
                            READS_BETAS | READS_EPS | READS_BIAS_CORRECTION | READS_LAMB },
};

static int in_range(int value, int count)
{
    return value >= 0 && value < count;
}

const char *zb_optimizer_kind_name(zb_optimizer_kind kind)
{
    return in_range((int)kind, ZB_OPTIMIZER_KIND_COUNT) ? kinds[kind].name : "?";
}

const char *zb_optimizer_arithmetic_name(zb_optimizer_arithmetic arithmetic)
{
    static const char *const names[] = { "plain", "deepspeed-cpu", "torch-1.13", "torch-2" };
    return in_range((int)arithmetic, ZB_ARITHMETIC_COUNT) ? names[arithmetic] : "?";
}

int zb_optimizer_has_arithmetic(zb_optimizer_kind kind, zb_optimizer_arithmetic arithmetic)
{
    return in_range((int)kind, ZB_OPTIMIZER_KIND_COUNT) && in_range((int)arithmetic, ZB_ARITHMETIC_COUNT) &&
           (kinds[kind].arithmetics >> arithmetic & 1u) != 0;
}

int zb_optimizer_is_of_torch(const zb_optimizer_config *optimizer)
{
    return optimizer->arithmetic == ZB_ARITHMETIC_TORCH_1 || optimizer->arithmetic == ZB_ARITHMETIC_TORCH_2;
}

int zb_optimizer_has_tails(const zb_optimizer_config *optimizer)
{
    return optimizer->kind == ZB_OPTIMIZER_ADAM && optimizer->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU &&
           optimizer->vector_width > 1;
}

/* Hyper-parameters of another optimizer than the one that runs make no difference. */
static int optimizer_equal(const zb_optimizer_config *a, const zb_optimizer_config *b)
{
    if (a->kind != b->kind || a->arithmetic != b->arithmetic || a->lr != b->lr ||
        a->weight_decay != b->weight_decay)
        return 0;
    const int reads = kinds[a->kind].reads;
    const int tail = zb_optimizer_has_tails(a) || zb_optimizer_has_tails(b);
    return (!(reads & READS_BETAS) || (a->beta1 == b->beta1 && a->beta2 == b->beta2)) &&
           (!(reads & READS_EPS) || a->eps == b->eps) &&
           (!(reads & READS_BIAS_CORRECTION) || !a->bias_correction == !b->bias_correction) &&
           (!(reads & READS_DECAY_MODE) || a->decay_mode == b->decay_mode) &&
           (!(reads & READS_MOMENTUM) ||
            (a->momentum == b->momentum && a->dampening == b->dampening && !a->nesterov == !b->nesterov)) &&
           (!(reads & READS_LR_DECAY) || a->lr_decay == b->lr_decay) &&
           (!(reads & READS_LAMB) || (a->min_coeff == b->min_coeff && a->max_coeff == b->max_coeff &&
                                      !a->eps_inside_sqrt == !b->eps_inside_sqrt)) &&
           (!tail || a->vector_width == b->vector_width);
}

int zb_plan_optimizers_equal(const zb_plan *a, const zb_plan *b)
{
    if (a->group_count != b->group_count) return 0;
    for (int g = 0; g < a->group_count; g++)
        if (!optimizer_equal(&a->groups[g], &b->groups[g])) return 0;
    return 1;
}

/* DeepSpeed shards only optimizers that it knows, unless told that the user knows better. */
static zb_status check_tested(const zb_config *config, int stage)
{
    const zb_optimizer_kind kind = config->optimizer.kind;
    if (stage == 0 || config->zero_allow_untested_optimizer ||
        (kind != ZB_OPTIMIZER_SGD && kind != ZB_OPTIMIZER_LAMB))
        return ZB_OK;
    return zb_fail(ZB_INVALID_CONFIG,
                   "%s: optimizer.type: is %s, want Adam, AdamW, Adagrad or Lion at ZeRO stage %d, or "
                   "zero_allow_untested_optimizer: true at the top level",
                   config->path, zb_optimizer_kind_name(kind), stage);
}

zb_status zb_plan_derive_optimizer(const zb_config *config, int stage, zb_plan *plan)
{
    if (!config->optimizer_given)
        return zb_fail(ZB_INVALID_CONFIG, "%s: optimizer: is missing, want an object with type and params",
                       config->path);
    ZB_TRY(check_tested(config, stage));
    if (config->optimizer.kind == ZB_OPTIMIZER_LAMB && config->semantics != ZB_SEMANTICS_STANDARD)
        return zb_fail(
            ZB_UNSUPPORTED,
            "%s: optimizer.type: is Lamb, want another under deepspeed-0.19.6 semantics: the order in "
            "which its kernel adds squares is the GPU's own",
            config->path);
    plan->group_count = config->group_count;
    for (int g = 0; g < config->group_count; g++) {
        plan->groups[g] = config->groups[g].optimizer;
        /* Where a stage's own cut must not show, no tensor has a tail. */
        if (!config->quirks.optimizer_sees_flat_tensors) plan->groups[g].vector_width = 1;
    }
    return ZB_OK;
}
