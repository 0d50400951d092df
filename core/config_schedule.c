/*
 * The section scheduler. Its params are keyword arguments of a Python constructor, so an unknown one is an
 * error. Source: deepspeed/runtime/lr_schedules.py.
 */
#include "core/config_rules.h"

#include <math.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Resuming in the middle of a schedule belongs to checkpoints. */
#define FROM_THE_START                                                                                       \
    {                                                                                                        \
        .key = "last_batch_iteration", .effect = ZB_RULE_ONLY, .type = ZB_RULE_INTEGER, .neutral = -1,       \
        .min = -1                                                                                            \
    }

static const zb_config_rule section_rules[] = { ZB_HONOURED("type"), ZB_HONOURED("params") };

static const zb_config_rule warmup_rules[] = {
    ZB_HONOURED("warmup_min_lr"),
    ZB_HONOURED("warmup_max_lr"),
    ZB_HONOURED("warmup_num_steps"),
    ZB_HONOURED("warmup_type"),
    FROM_THE_START,
};

static const zb_config_rule warmup_decay_rules[] = {
    ZB_HONOURED("total_num_steps"),  ZB_HONOURED("warmup_min_lr"), ZB_HONOURED("warmup_max_lr"),
    ZB_HONOURED("warmup_num_steps"), ZB_HONOURED("warmup_type"),   FROM_THE_START,
};

static const zb_config_rule warmup_cosine_rules[] = {
    ZB_HONOURED("total_num_steps"), ZB_HONOURED("warmup_min_ratio"), ZB_HONOURED("warmup_num_steps"),
    ZB_HONOURED("cos_min_ratio"),   ZB_HONOURED("warmup_type"),      FROM_THE_START,
};

static const zb_config_rule range_test_rules[] = {
    ZB_HONOURED("lr_range_test_min_lr"),
    ZB_HONOURED("lr_range_test_step_size"),
    ZB_HONOURED("lr_range_test_step_rate"),
    ZB_HONOURED("lr_range_test_staircase"),
    FROM_THE_START,
};

static const zb_config_rule one_cycle_rules[] = {
    ZB_HONOURED("cycle_min_lr"),
    ZB_HONOURED("cycle_max_lr"),
    ZB_HONOURED("decay_lr_rate"),
    ZB_HONOURED("cycle_first_step_size"),
    ZB_HONOURED("cycle_second_step_size"),
    ZB_HONOURED("cycle_first_stair_count"),
    ZB_HONOURED("cycle_second_stair_count"),
    ZB_HONOURED("decay_step_size"),
    ZB_HONOURED("cycle_momentum"),
    ZB_HONOURED("cycle_min_mom"),
    ZB_HONOURED("cycle_max_mom"),
    ZB_HONOURED("decay_mom_rate"),
    FROM_THE_START,
};

static const char *const torch_schedulers[] = { "LambdaLR",
                                                "MultiplicativeLR",
                                                "StepLR",
                                                "MultiStepLR",
                                                "ConstantLR",
                                                "LinearLR",
                                                "ExponentialLR",
                                                "SequentialLR",
                                                "CosineAnnealingLR",
                                                "ChainedScheduler",
                                                "ReduceLROnPlateau",
                                                "CyclicLR",
                                                "CosineAnnealingWarmRestarts",
                                                "OneCycleLR",
                                                "PolynomialLR",
                                                NULL };

/* The schedule that is being read: one for each parameter group, from the same section. */
typedef struct reading {
    zb_config *config;
    int group;
    zb_schedule_config *schedule;
} reading;

/* Once, however many groups there are. */
#define NOTE(r, ...) ((r)->group == 0 ? zb_config_note((r)->config, __VA_ARGS__) : ZB_OK)

/* ---- reads that leave *out at its default when the key is absent -------------------------------------- */

static zb_status read_number(const zb_json_at *params, const char *key, double min, double *out)
{
    zb_json_at at = zb_json_member(params, key);
    return zb_config_read_number(&at, ZB_SECTION_CALL, min, out);
}

static zb_status read_integer(const zb_json_at *params, const char *key, int64_t min, int64_t *out)
{
    zb_json_at at = zb_json_member(params, key);
    return zb_config_read_integer(&at, ZB_SECTION_CALL, min, ZB_JSON_MAX_INTEGER, out);
}

static zb_status read_bool(const zb_json_at *params, const char *key, int *out)
{
    zb_json_at at = zb_json_member(params, key);
    return zb_config_read_bool(&at, ZB_SECTION_CALL, out);
}

static zb_status read_required(const zb_json_at *params, const char *key, double *out)
{
    zb_json_at at = zb_json_member(params, key);
    if (at.value == NULL)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "a number: this scheduler has no default for it");
    return zb_config_read_number(&at, ZB_SECTION_CALL, 0, out);
}

/* A beta of 1 divides by zero in the bias correction. */
static zb_status read_beta(const zb_json_at *params, const char *key, double *out)
{
    zb_json_at at = zb_json_member(params, key);
    ZB_TRY(zb_config_read_number(&at, ZB_SECTION_CALL, 0, out));
    return *out < 1 ? ZB_OK : zb_json_fail(&at, ZB_INVALID_CONFIG, "a number from 0 up to, not including, 1");
}

/* One rate, or a list with one rate for each parameter group. */
static zb_status read_rate(const reading *r, const zb_json_at *params, const char *key, double *out)
{
    zb_json_at at = zb_json_member(params, key);
    if (!cJSON_IsArray(at.value)) return zb_config_read_number(&at, ZB_SECTION_CALL, 0, out);
    size_t count = 0;
    ZB_TRY(zb_json_array(&at, &count));
    if (count != (size_t)r->config->group_count)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "one rate for each parameter group: there %s %d",
                            r->config->group_count == 1 ? "is" : "are", r->config->group_count);
    zb_json_at rate = zb_json_first(&at);
    for (int g = 0; g < r->group; g++) rate = zb_json_next(&rate);
    return zb_config_read_number(&rate, ZB_SECTION_CALL, 0, out);
}

/* ---- Warmup* ----------------------------------------------------------------------------------------- */

static zb_status read_warmup_type(const reading *r, const zb_json_at *params)
{
    zb_json_at at = zb_json_member(params, "warmup_type");
    r->schedule->warmup_type = ZB_WARMUP_LOG;
    if (at.value == NULL) return ZB_OK;
    const char *type;
    ZB_TRY(zb_json_string(&at, &type));
    if (strcmp(type, "linear") == 0) {
        r->schedule->warmup_type = ZB_WARMUP_LINEAR;
    } else if (strcmp(type, "log") != 0) {
        return NOTE(r, &at, "\"%.60s\" is unknown; \"log\" is used instead, as DeepSpeed does", type);
    }
    return ZB_OK;
}

static zb_status read_warmup_shape(const reading *r, const zb_json_at *params)
{
    r->schedule->warmup_num_steps = 1000;
    ZB_TRY(read_integer(params, "warmup_num_steps", 1, &r->schedule->warmup_num_steps));
    return read_warmup_type(r, params);
}

static zb_status read_total_steps(const reading *r, const zb_json_at *params)
{
    zb_json_at at = zb_json_member(params, "total_num_steps");
    if (at.value == NULL)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "an integer: this scheduler has no default for it");
    return read_integer(params, "total_num_steps", 0, &r->schedule->total_num_steps);
}

static zb_status need_optimizer(const reading *r, const zb_json_at *at)
{
    if (r->config->optimizer_given) return ZB_OK;
    return zb_json_fail(at, ZB_INVALID_CONFIG, "a number, since there is no optimizer whose lr it could be");
}

static zb_status read_warmup_rates(const reading *r, const zb_json_at *params)
{
    zb_schedule_config *schedule = r->schedule;
    ZB_TRY(read_rate(r, params, "warmup_min_lr", &schedule->warmup_min_lr));
    /* Left out it is the optimizer's rate, but for WarmupDecayLR, where only null is. */
    zb_json_at maximum = zb_json_member(params, "warmup_max_lr");
    if (zb_json_given(&maximum)) return read_rate(r, params, "warmup_max_lr", &schedule->warmup_max_lr);
    if (maximum.value == NULL && schedule->kind == ZB_SCHEDULE_WARMUP_DECAY_LR) {
        schedule->warmup_max_lr = 0.001;
        return ZB_OK;
    }
    schedule->warmup_max_lr = schedule->base_lr;
    return need_optimizer(r, &maximum);
}

static zb_status read_warmup(const reading *r, const zb_json_at *params)
{
    r->schedule->kind = ZB_SCHEDULE_WARMUP_LR;
    ZB_TRY(read_warmup_rates(r, params));
    return read_warmup_shape(r, params);
}

static zb_status read_warmup_decay(const reading *r, const zb_json_at *params)
{
    r->schedule->kind = ZB_SCHEDULE_WARMUP_DECAY_LR;
    ZB_TRY(read_total_steps(r, params));
    ZB_TRY(read_warmup_rates(r, params));
    return read_warmup_shape(r, params);
}

static zb_status read_warmup_cosine(const reading *r, const zb_json_at *params)
{
    zb_schedule_config *schedule = r->schedule;
    schedule->kind = ZB_SCHEDULE_WARMUP_COSINE_LR;
    schedule->cos_min_ratio = 0.0001;
    ZB_TRY(read_total_steps(r, params));
    ZB_TRY(read_number(params, "warmup_min_ratio", 0, &schedule->warmup_min_ratio));
    ZB_TRY(read_number(params, "cos_min_ratio", 0, &schedule->cos_min_ratio));
    if (!r->config->optimizer_given)
        return zb_json_fail(params, ZB_INVALID_CONFIG, "an optimizer beside it, whose lr it scales");
    return read_warmup_shape(r, params);
}

/* ---- LRRangeTest, OneCycle --------------------------------------------------------------------------- */

static zb_status read_range_test(const reading *r, const zb_json_at *params)
{
    zb_schedule_config *schedule = r->schedule;
    schedule->kind = ZB_SCHEDULE_LR_RANGE_TEST;
    schedule->lr_range_test_min_lr = 1e-3;
    schedule->lr_range_test_step_size = 2000;
    schedule->lr_range_test_step_rate = 1.0;
    ZB_TRY(read_rate(r, params, "lr_range_test_min_lr", &schedule->lr_range_test_min_lr));
    ZB_TRY(read_integer(params, "lr_range_test_step_size", 1, &schedule->lr_range_test_step_size));
    ZB_TRY(read_number(params, "lr_range_test_step_rate", 0, &schedule->lr_range_test_step_rate));
    return read_bool(params, "lr_range_test_staircase", &schedule->lr_range_test_staircase);
}

/* The second half is like the first where nothing, or null, is said about it. */
static zb_status read_cycle_shape(zb_schedule_config *schedule, const zb_json_at *params)
{
    schedule->cycle_first_step_size = 2000;
    ZB_TRY(read_number(params, "cycle_first_step_size", 0, &schedule->cycle_first_step_size));
    if (schedule->cycle_first_step_size == 0) {
        zb_json_at first = zb_json_member(params, "cycle_first_step_size");
        return zb_json_fail(&first, ZB_INVALID_CONFIG, "a number above 0");
    }
    schedule->cycle_second_step_size = schedule->cycle_first_step_size;
    zb_json_at second = zb_json_member(params, "cycle_second_step_size");
    if (zb_json_given(&second))
        ZB_TRY(zb_config_read_number(&second, ZB_SECTION_CALL, 0, &schedule->cycle_second_step_size));

    ZB_TRY(read_integer(params, "cycle_first_stair_count", 0, &schedule->cycle_first_stair_count));
    schedule->cycle_second_stair_count = schedule->cycle_first_stair_count;
    zb_json_at stairs = zb_json_member(params, "cycle_second_stair_count");
    if (zb_json_given(&stairs))
        ZB_TRY(read_integer(params, "cycle_second_stair_count", 0, &schedule->cycle_second_stair_count));
    return read_number(params, "decay_step_size", 0, &schedule->decay_step_size);
}

static zb_status read_cycle_momentum(const reading *r, const zb_json_at *params)
{
    zb_schedule_config *schedule = r->schedule;
    schedule->cycle_momentum = 1;
    schedule->cycle_min_mom = 0.8;
    schedule->cycle_max_mom = 0.9;
    ZB_TRY(read_bool(params, "cycle_momentum", &schedule->cycle_momentum));
    ZB_TRY(read_beta(params, "cycle_min_mom", &schedule->cycle_min_mom));
    ZB_TRY(read_beta(params, "cycle_max_mom", &schedule->cycle_max_mom));
    ZB_TRY(read_number(params, "decay_mom_rate", -INFINITY, &schedule->decay_mom_rate));
    /* beta1 runs against the rate, so that it begins high; DeepSpeed's constructor begins low, and has a
     * beta2 of its own. */
    const int replaced = r->config->quirks.one_cycle_replaces_betas;
    schedule->cycle_start_mom = replaced ? schedule->cycle_min_mom : schedule->cycle_max_mom;
    schedule->cycle_beta2 = replaced ? 0.99 : r->config->groups[r->group].optimizer.beta2;
    const zb_optimizer_kind kind = r->config->optimizer.kind;
    int has_betas = kind != ZB_OPTIMIZER_SGD && kind != ZB_OPTIMIZER_ADAGRAD;
    if (!schedule->cycle_momentum || !r->config->optimizer_given || has_betas) return ZB_OK;
    schedule->cycle_momentum = 0;
    zb_json_at at = zb_json_member(params, "cycle_momentum");
    return NOTE(r, &at, "no effect: DeepSpeed cycles betas, which this optimizer does not have");
}

static zb_status read_one_cycle(const reading *r, const zb_json_at *params)
{
    zb_schedule_config *schedule = r->schedule;
    schedule->kind = ZB_SCHEDULE_ONE_CYCLE;
    ZB_TRY(read_required(params, "cycle_min_lr", &schedule->cycle_min_lr));
    ZB_TRY(read_required(params, "cycle_max_lr", &schedule->cycle_max_lr));
    ZB_TRY(read_number(params, "decay_lr_rate", 0, &schedule->decay_lr_rate));
    ZB_TRY(read_cycle_shape(schedule, params));
    return read_cycle_momentum(r, params);
}

/* ---- the section ------------------------------------------------------------------------------------- */

static const struct scheduler {
    const char *type;
    const zb_config_rule *rules;
    size_t rule_count;
    zb_status (*read)(const reading *r, const zb_json_at *params);
} schedulers[] = {
    { "LRRangeTest", range_test_rules, COUNT(range_test_rules), read_range_test },
    { "OneCycle", one_cycle_rules, COUNT(one_cycle_rules), read_one_cycle },
    { "WarmupLR", warmup_rules, COUNT(warmup_rules), read_warmup },
    { "WarmupDecayLR", warmup_decay_rules, COUNT(warmup_decay_rules), read_warmup_decay },
    { "WarmupCosineLR", warmup_cosine_rules, COUNT(warmup_cosine_rules), read_warmup_cosine },
};
#define KNOWN "LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR or WarmupCosineLR"

static zb_status read_all_groups(zb_config *config, const struct scheduler *scheduler,
                                 const zb_json_at *params)
{
    for (int g = 0; g < config->group_count; g++) {
        const reading r = { config, g, &config->groups[g].schedule };
        ZB_TRY(scheduler->read(&r, params));
    }
    return ZB_OK;
}

zb_status zb_config_read_schedule(zb_config *config, const zb_json_at *root)
{
    for (int g = 0; g < config->group_count; g++)
        config->groups[g].schedule = (zb_schedule_config){ .kind = ZB_SCHEDULE_CONSTANT,
                                                           .base_lr = config->groups[g].optimizer.lr };
    zb_json_at section = zb_json_member(root, "scheduler");
    if (section.value == NULL) return ZB_OK;
    ZB_TRY(
        zb_config_judge(config, &section, ZB_SECTION_OPEN, "scheduler", section_rules, COUNT(section_rules)));
    zb_json_at type_at = zb_json_member(&section, "type"), params = zb_json_member(&section, "params");
    const char *type;
    ZB_TRY(zb_json_string(&type_at, &type));
    for (size_t i = 0; i < COUNT(schedulers); i++) {
        if (strcmp(type, schedulers[i].type) != 0) continue;
        ZB_TRY(zb_config_judge(config, &params, ZB_SECTION_CALL, type, schedulers[i].rules,
                               schedulers[i].rule_count));
        return read_all_groups(config, &schedulers[i], &params);
    }
    if (zb_config_index_of(type, torch_schedulers, 0) >= 0)
        return zb_json_fail(&type_at, ZB_UNSUPPORTED, KNOWN ": PyTorch's own are not supported yet");
    return zb_json_fail(&type_at, ZB_INVALID_CONFIG,
                        KNOWN
                        ": neither DeepSpeed nor torch.optim.lr_scheduler has this name (case matters)");
}
