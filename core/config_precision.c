/* The sections fp16 and bf16. Source: deepspeed/runtime/precision_config.py. */
#include "core/config_rules.h"

#include <math.h>

#define ONLY_FALSE(name)                                                                                     \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL                                          \
    }

static const zb_config_rule fp16_rules[] = {
    ZB_HONOURED("enabled"),
    ZB_HONOURED("loss_scale"),
    ZB_HONOURED("initial_scale_power"),
    ZB_HONOURED("loss_scale_window"),
    ZB_HONOURED("hysteresis"),
    ZB_HONOURED("consecutive_hysteresis"),
    ZB_HONOURED("min_loss_scale"),
    ZB_HONOURED("fp16_master_weights_and_grads"),
    ONLY_FALSE("auto_cast"),
};

static const zb_config_rule bf16_rules[] = {
    ZB_HONOURED("enabled"),
    ZB_HONOURED("bf16_master_weights_and_grads"),
    ZB_HONOURED("bf16_optimizer_states"),
    ZB_HONOURED("check_grad_overflow"),
    { .key = "immediate_grad_update",
      .effect = ZB_RULE_NO_EFFECT,
      .type = ZB_RULE_BOOL,
      .detail = "it only sets when DeepSpeed's BF16_Optimizer widens a gradient" },
};

static zb_status read_bool(const zb_json_at *section, const char *key, int *out)
{
    zb_json_at at = zb_config_closed_member(section, key);
    return zb_config_read_bool(&at, ZB_SECTION_CLOSED, out);
}

static zb_status read_integer(const zb_json_at *section, const char *key, int64_t min, int64_t max,
                              int64_t *out)
{
    zb_json_at at = zb_config_closed_member(section, key);
    return zb_config_read_integer(&at, ZB_SECTION_CLOSED, min, max, out);
}

/* 16-bit master weights: an error in DeepSpeed without ZeRO, and not here yet with it. */
static zb_status refuse_16bit_state(const zb_config *config, const zb_json_at *section, const char *key,
                                    int *out)
{
    ZB_TRY(read_bool(section, key, out));
    if (!*out) return ZB_OK;
    zb_json_at at = zb_json_member(section, key);
    if (config->zero.stage == 0)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "false, or zero_optimization.stage 1, 2 or 3 (it is 0)");
    return zb_json_fail(&at, ZB_UNSUPPORTED, "false: 16-bit master weights are not supported yet");
}

/* Ranges that DeepSpeed checks only when they matter: dynamic scaling, switched on. */
static zb_status check_dynamic(const zb_json_at *section, const zb_fp16_config *fp16)
{
    if (!fp16->enabled || fp16->loss_scale != 0) return ZB_OK;
    zb_json_at window = zb_json_member(section, "loss_scale_window");
    zb_json_at minimum = zb_json_member(section, "min_loss_scale");
    if (fp16->loss_scale_window < 1)
        return zb_json_fail(&window, ZB_INVALID_CONFIG,
                            "an integer above 0, since the loss scale is dynamic");
    if (fp16->min_loss_scale < 1)
        return zb_json_fail(&minimum, ZB_INVALID_CONFIG,
                            "an integer above 0, since the loss scale is dynamic");
    return ZB_OK;
}

static zb_status read_fp16(zb_config *config, const zb_json_at *root)
{
    zb_fp16_config *fp16 = &config->fp16;
    *fp16 = (zb_fp16_config){
        .initial_scale_power = 16, .loss_scale_window = 1000, .hysteresis = 2, .min_loss_scale = 1
    };
    zb_json_at section = zb_json_member(root, "fp16");
    if (section.value == NULL) return ZB_OK;
    ZB_TRY(zb_config_judge(config, &section, ZB_SECTION_CLOSED, "fp16", fp16_rules,
                           sizeof fp16_rules / sizeof fp16_rules[0]));
    ZB_TRY(read_bool(&section, "enabled", &fp16->enabled));
    zb_json_at scale = zb_config_closed_member(&section, "loss_scale");
    ZB_TRY(zb_config_read_number(&scale, ZB_SECTION_CLOSED, 0, &fp16->loss_scale));
    /* 2^p must be a finite, normal fp32 number; DeepSpeed itself sets no limit. */
    int64_t power = fp16->initial_scale_power;
    ZB_TRY(read_integer(&section, "initial_scale_power", -126, 127, &power));
    fp16->initial_scale_power = (int)power;
    const int64_t most = ZB_JSON_MAX_INTEGER;
    ZB_TRY(read_integer(&section, "loss_scale_window", -most, most, &fp16->loss_scale_window));
    ZB_TRY(read_integer(&section, "hysteresis", -most, most, &fp16->hysteresis));
    ZB_TRY(read_integer(&section, "min_loss_scale", -most, most, &fp16->min_loss_scale));
    ZB_TRY(read_bool(&section, "consecutive_hysteresis", &fp16->consecutive_hysteresis));
    ZB_TRY(check_dynamic(&section, fp16));
    int master = 0;
    return refuse_16bit_state(config, &section, "fp16_master_weights_and_grads", &master);
}

static zb_status read_bf16(zb_config *config, const zb_json_at *root)
{
    config->bf16_check_grad_overflow = 1;
    zb_json_at section = zb_json_member(root, "bf16"), legacy = zb_json_member(root, "bfloat16");
    const char *label = "bf16";
    if (!zb_json_given(&section)) {
        section = legacy;
        label = "bfloat16";
    } else if (zb_json_given(&legacy)) {
        ZB_TRY(zb_config_note(config, &legacy, "no effect: bf16 is given as well and wins"));
    }
    if (!zb_json_given(&section)) return ZB_OK;
    ZB_TRY(zb_config_judge(config, &section, ZB_SECTION_CLOSED, label, bf16_rules,
                           sizeof bf16_rules / sizeof bf16_rules[0]));
    ZB_TRY(read_bool(&section, "enabled", &config->bf16_enabled));
    ZB_TRY(read_bool(&section, "check_grad_overflow", &config->bf16_check_grad_overflow));
    int master = 0, states = 0;
    ZB_TRY(refuse_16bit_state(config, &section, "bf16_master_weights_and_grads", &master));
    ZB_TRY(read_bool(&section, "bf16_optimizer_states", &states));
    if (!states) return ZB_OK;
    zb_json_at at = zb_json_member(&section, "bf16_optimizer_states");
    return zb_json_fail(&at, ZB_INVALID_CONFIG, "false, or bf16_master_weights_and_grads to be true as well");
}

zb_status zb_config_read_precision(zb_config *config, const zb_json_at *root)
{
    ZB_TRY(read_fp16(config, root));
    ZB_TRY(read_bf16(config, root));
    if (config->fp16.enabled && config->bf16_enabled) {
        zb_json_at section = zb_json_member(root, "fp16"), at = zb_json_member(&section, "enabled");
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "either fp16 or bf16 to be enabled, not both");
    }
    config->dtype = config->fp16.enabled ? ZB_FP16 : config->bf16_enabled ? ZB_BF16 : ZB_FP32;
    return ZB_OK;
}
