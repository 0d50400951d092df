/*
 * The section optimizer. Its params are keyword arguments of a Python constructor, so an unknown one is an
 * error. Source: deepspeed/runtime/engine.py (_configure_basic_optimizer), deepspeed/ops/adam/fused_adam.py,
 * torch/optim/sgd.py.
 */
#include "core/config_rules.h"

#include <math.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const zb_config_rule section_rules[] = {
    ZB_HONOURED("type"),
    ZB_HONOURED("params"),
    { .key = "legacy_fusion", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL },
};

static const zb_config_rule adam_rules[] = {
    ZB_HONOURED("lr"),
    ZB_HONOURED("betas"),
    ZB_HONOURED("eps"),
    ZB_HONOURED("weight_decay"),
    ZB_HONOURED("bias_correction"),
    ZB_HONOURED("adam_w_mode"),
    ZB_HONOURED("amsgrad"),
    { .key = "torch_adam", .effect = ZB_RULE_DEEPSPEED, .type = ZB_RULE_BOOL },
    { .key = "set_grad_none",
      .effect = ZB_RULE_NO_EFFECT,
      .type = ZB_RULE_BOOL,
      .neutral = 1,
      .detail = "gradients are cleared after every step either way" },
};

static const zb_config_rule sgd_rules[] = {
    ZB_HONOURED("lr"),
    ZB_HONOURED("momentum"),
    ZB_HONOURED("dampening"),
    ZB_HONOURED("weight_decay"),
    ZB_HONOURED("nesterov"),
    { .key = "maximize", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL },
    { .key = "foreach", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL, .null_fine = 1 },
    { .key = "differentiable", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL },
    { .key = "fused", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL, .null_fine = 1 },
};

/* DeepSpeed lowers the case of its own names only; the rest are attributes of torch.optim, as spelled. */
static const char *const deepspeed_optimizers[] = { "adam",       "adamw",       "adagrad",    "lamb",
                                                    "onebitadam", "zerooneadam", "onebitlamb", "muadam",
                                                    "muadamw",    "musgd",       "lion",       "muon",
                                                    NULL };
static const char *const torch_optimizers[] = { "Adadelta", "Adafactor",  "Adamax", "ASGD",
                                                "LBFGS",    "NAdam",      "RAdam",  "RMSprop",
                                                "Rprop",    "SparseAdam", NULL };

static zb_status read_number(const zb_json_at *params, const char *key, double min, double *out)
{
    zb_json_at at = zb_json_member(params, key);
    return zb_config_read_number(&at, ZB_SECTION_CALL, min, out);
}

static zb_status read_bool(const zb_json_at *params, const char *key, int *out)
{
    zb_json_at at = zb_json_member(params, key);
    return zb_config_read_bool(&at, ZB_SECTION_CALL, out);
}

/* A beta of 1 divides by zero in the bias correction. */
zb_status zb_config_read_betas(const zb_json_at *params, zb_optimizer_config *optimizer)
{
    zb_json_at betas = zb_json_member(params, "betas");
    if (betas.value == NULL) return ZB_OK;
    size_t count = 0;
    ZB_TRY(zb_json_array(&betas, &count));
    if (count != 2) return zb_json_fail(&betas, ZB_INVALID_CONFIG, "two numbers");
    zb_json_at first = zb_json_first(&betas), second = zb_json_next(&first);
    const struct {
        const zb_json_at *at;
        double *out;
    } pair[] = { { &first, &optimizer->beta1 }, { &second, &optimizer->beta2 } };
    for (size_t i = 0; i < COUNT(pair); i++) {
        double beta = -1;
        if (cJSON_IsNumber(pair[i].at->value)) beta = pair[i].at->value->valuedouble;
        if (!(beta >= 0 && beta < 1))
            return zb_json_fail(pair[i].at, ZB_INVALID_CONFIG, "a number from 0 up to, not including, 1");
        *pair[i].out = beta;
    }
    return ZB_OK;
}

static zb_status read_adam(zb_config *config, const zb_json_at *params, int is_adamw)
{
    zb_optimizer_config adam = {
        .kind = ZB_OPTIMIZER_ADAM, .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .bias_correction = 1
    };
    int w_mode = 1, amsgrad = 0, torch_adam = 0;
    if (params->value != NULL) {
        ZB_TRY(zb_config_judge(config, params, ZB_SECTION_CALL, "Adam", adam_rules, COUNT(adam_rules)));
        ZB_TRY(read_number(params, "lr", 0, &adam.lr));
        ZB_TRY(zb_config_read_betas(params, &adam));
        ZB_TRY(read_number(params, "eps", 0, &adam.eps));
        ZB_TRY(read_number(params, "weight_decay", 0, &adam.weight_decay));
        ZB_TRY(read_bool(params, "bias_correction", &adam.bias_correction));
        ZB_TRY(read_bool(params, "adam_w_mode", &w_mode));
        ZB_TRY(read_bool(params, "amsgrad", &amsgrad));
        ZB_TRY(read_bool(params, "torch_adam", &torch_adam));
    }
    if (amsgrad) {
        zb_json_at at = zb_json_member(params, "amsgrad");
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "false: DeepSpeed's Adam has no AMSGrad");
    }
    /* "Adam" decays like AdamW unless adam_w_mode is false; "AdamW" cannot be talked out of it. */
    if (is_adamw && !w_mode) {
        zb_json_at at = zb_json_member(params, "adam_w_mode");
        ZB_TRY(zb_config_note(config, &at,
                              "no effect: AdamW always decouples the weight decay; Adam would not"));
    }
    adam.decay_mode = is_adamw || w_mode ? ZB_DECAY_DECOUPLED : ZB_DECAY_L2;
    adam.variant = torch_adam ? ZB_ADAM_TORCH : ZB_ADAM_FUSED;
    config->optimizer = adam;
    return ZB_OK;
}

static zb_status read_sgd(zb_config *config, const zb_json_at *params)
{
    zb_optimizer_config sgd = { .kind = ZB_OPTIMIZER_SGD, .decay_mode = ZB_DECAY_L2 };
    if (params->value != NULL)
        ZB_TRY(zb_config_judge(config, params, ZB_SECTION_CALL, "SGD", sgd_rules, COUNT(sgd_rules)));
    zb_json_at lr = zb_json_member(params, "lr");
    if (lr.value == NULL) return zb_json_fail(&lr, ZB_INVALID_CONFIG, "a number: SGD has no default rate");
    ZB_TRY(read_number(params, "lr", 0, &sgd.lr));
    ZB_TRY(read_number(params, "momentum", 0, &sgd.momentum));
    ZB_TRY(read_number(params, "dampening", -INFINITY, &sgd.dampening));
    ZB_TRY(read_number(params, "weight_decay", 0, &sgd.weight_decay));
    ZB_TRY(read_bool(params, "nesterov", &sgd.nesterov));
    if (sgd.nesterov && (sgd.momentum <= 0 || sgd.dampening != 0)) {
        zb_json_at at = zb_json_member(params, "nesterov");
        return zb_json_fail(&at, ZB_INVALID_CONFIG,
                            "false, or momentum above 0 and dampening 0 (they are %g and %g)", sgd.momentum,
                            sgd.dampening);
    }
    config->optimizer = sgd;
    return ZB_OK;
}

/* DeepSpeed shards only optimizers that it knows, unless told that the user knows better. */
static zb_status check_tested(const zb_config *config, const zb_json_at *type)
{
    if (config->optimizer.kind != ZB_OPTIMIZER_SGD || config->zero.stage == 0 ||
        config->zero_allow_untested_optimizer)
        return ZB_OK;
    return zb_json_fail(
        type, ZB_INVALID_CONFIG,
        "Adam or AdamW at ZeRO stage %d, or zero_allow_untested_optimizer: true at the top level",
        config->zero.stage);
}

zb_status zb_config_read_optimizer(zb_config *config, const zb_json_at *root)
{
    zb_json_at section = zb_json_member(root, "optimizer");
    if (section.value == NULL) return ZB_OK;
    ZB_TRY(
        zb_config_judge(config, &section, ZB_SECTION_OPEN, "optimizer", section_rules, COUNT(section_rules)));
    zb_json_at type_at = zb_json_member(&section, "type"), params = zb_json_member(&section, "params");
    const char *type;
    ZB_TRY(zb_json_string(&type_at, &type));
    if (params.value != NULL) ZB_TRY(zb_json_object(&params));
    zb_json_at norm = zb_json_member(&params, "max_grad_norm");
    if (norm.value != NULL)
        return zb_json_fail(&norm, ZB_INVALID_CONFIG,
                            "it left out: gradient_clipping at the top level sets the norm");

    int known = zb_config_index_of(type, deepspeed_optimizers, 1);
    if (known == 0 || known == 1) {
        ZB_TRY(read_adam(config, &params, known == 1));
    } else if (strcmp(type, "SGD") == 0) {
        ZB_TRY(read_sgd(config, &params));
    } else if (known >= 0 || zb_config_index_of(type, torch_optimizers, 0) >= 0) {
        return zb_json_fail(&type_at, ZB_UNSUPPORTED,
                            "Adam, AdamW or SGD: this optimizer is not supported yet");
    } else {
        return zb_json_fail(
            &type_at, ZB_INVALID_CONFIG,
            "Adam, AdamW or SGD: neither DeepSpeed nor torch.optim has this name (case matters)");
    }
    config->optimizer_given = 1;
    return check_tested(config, &type_at);
}
