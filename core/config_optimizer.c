/*
 * The section optimizer. Its params are keyword arguments of a Python constructor, so an unknown one is an
 * error. Source: deepspeed/runtime/engine.py (_configure_basic_optimizer), deepspeed/ops/{adam,lamb,lion},
 * torch/optim/{adam,sgd,adagrad}.py.
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

#define SET_GRAD_NONE                                                                                        \
    {                                                                                                        \
        .key = "set_grad_none", .effect = ZB_RULE_NO_EFFECT, .type = ZB_RULE_BOOL, .neutral = 1,             \
        .detail = "gradients are cleared after every step either way"                                        \
    }

/* foreach and fused round elsewhere. */
#define TORCH_SWITCHES                                                                                       \
    { .key = "maximize", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL },                                     \
        { .key = "foreach", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL, .null_fine = 1 },                  \
        { .key = "differentiable", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL },                           \
    {                                                                                                        \
        .key = "fused", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL, .null_fine = 1                         \
    }

static const zb_config_rule adam_rules[] = {
    ZB_HONOURED("lr"),           ZB_HONOURED("betas"),           ZB_HONOURED("eps"),
    ZB_HONOURED("weight_decay"), ZB_HONOURED("bias_correction"), ZB_HONOURED("adam_w_mode"),
    ZB_HONOURED("amsgrad"),      ZB_HONOURED("torch_adam"),      SET_GRAD_NONE,
};

/* With torch_adam: true the rest goes to torch.optim.Adam or AdamW. */
static const zb_config_rule torch_adam_rules[] = {
    ZB_HONOURED("lr"),
    ZB_HONOURED("betas"),
    ZB_HONOURED("eps"),
    ZB_HONOURED("weight_decay"),
    ZB_HONOURED("adam_w_mode"),
    ZB_HONOURED("torch_adam"),
    { .key = "amsgrad", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL },
    { .key = "capturable", .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL },
    TORCH_SWITCHES,
};

static const zb_config_rule sgd_rules[] = {
    ZB_HONOURED("lr"),           ZB_HONOURED("momentum"), ZB_HONOURED("dampening"),
    ZB_HONOURED("weight_decay"), ZB_HONOURED("nesterov"), TORCH_SWITCHES,
};

static const zb_config_rule adagrad_rules[] = {
    ZB_HONOURED("lr"),
    ZB_HONOURED("lr_decay"),
    ZB_HONOURED("weight_decay"),
    ZB_HONOURED("eps"),
    { .key = "initial_accumulator_value", .effect = ZB_RULE_ONLY, .type = ZB_RULE_NUMBER },
    TORCH_SWITCHES,
};

static const zb_config_rule lion_rules[] = {
    ZB_HONOURED("lr"),
    ZB_HONOURED("betas"),
    ZB_HONOURED("weight_decay"),
    SET_GRAD_NONE,
};

static const zb_config_rule lamb_rules[] = {
    ZB_HONOURED("lr"),           ZB_HONOURED("betas"),           ZB_HONOURED("eps"),
    ZB_HONOURED("weight_decay"), ZB_HONOURED("bias_correction"), ZB_HONOURED("eps_inside_sqrt"),
    ZB_HONOURED("min_coeff"),    ZB_HONOURED("max_coeff"),       ZB_HONOURED("amsgrad"),
};

/* DeepSpeed lowers the case of its own names only; the rest are attributes of torch.optim, as spelled. */
static const char *const deepspeed_optimizers[] = { "adam",   "adamw",      "adagrad",     "lamb",
                                                    "lion",   "onebitadam", "zerooneadam", "onebitlamb",
                                                    "muadam", "muadamw",    "musgd",       "muon",
                                                    NULL };
static const char *const torch_optimizers[] = { "Adadelta", "Adafactor",  "Adamax", "ASGD",
                                                "LBFGS",    "NAdam",      "RAdam",  "RMSprop",
                                                "Rprop",    "SparseAdam", NULL };
#define SUPPORTED "Adam, AdamW, Adagrad, Lion, Lamb or SGD"

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

/* --- the optimizers. `params` may be absent --- */

static zb_status judge(zb_config *config, const zb_json_at *params, const char *label,
                       const zb_config_rule *rules, size_t count)
{
    if (params->value == NULL) return ZB_OK;
    return zb_config_judge(config, params, ZB_SECTION_CALL, label, rules, count);
}

static zb_status refuse_amsgrad(const zb_json_at *params, const char *label)
{
    int amsgrad = 0;
    ZB_TRY(read_bool(params, "amsgrad", &amsgrad));
    if (!amsgrad) return ZB_OK;
    zb_json_at at = zb_json_member(params, "amsgrad");
    return zb_json_fail(&at, ZB_INVALID_CONFIG, "false: DeepSpeed's %s has no AMSGrad", label);
}

static zb_status read_adam(zb_config *config, const zb_json_at *params, int is_adamw)
{
    zb_optimizer_config *adam = &config->optimizer;
    *adam = (zb_optimizer_config){
        .kind = ZB_OPTIMIZER_ADAM, .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .bias_correction = 1
    };
    int w_mode = 1, torch_adam = 0;
    ZB_TRY(read_bool(params, "torch_adam", &torch_adam));
    if (torch_adam) {
        adam->arithmetic = ZB_ARITHMETIC_TORCH_1;
        ZB_TRY(judge(config, params, "torch.optim.Adam", torch_adam_rules, COUNT(torch_adam_rules)));
    } else {
        ZB_TRY(judge(config, params, "Adam", adam_rules, COUNT(adam_rules)));
        ZB_TRY(refuse_amsgrad(params, "Adam"));
    }
    ZB_TRY(read_number(params, "lr", 0, &adam->lr));
    ZB_TRY(zb_config_read_betas(params, adam));
    ZB_TRY(read_number(params, "eps", 0, &adam->eps));
    ZB_TRY(read_number(params, "weight_decay", 0, &adam->weight_decay));
    ZB_TRY(read_bool(params, "bias_correction", &adam->bias_correction));
    ZB_TRY(read_bool(params, "adam_w_mode", &w_mode));
    /* "Adam" decays like AdamW unless adam_w_mode is false; "AdamW" cannot be talked out of it. */
    if (is_adamw && !w_mode) {
        zb_json_at at = zb_json_member(params, "adam_w_mode");
        ZB_TRY(zb_config_note(config, &at,
                              "no effect: AdamW always decouples the weight decay; Adam would not"));
    }
    adam->decay_mode = is_adamw || w_mode ? ZB_DECAY_DECOUPLED : ZB_DECAY_L2;
    return ZB_OK;
}

static zb_status read_sgd(zb_config *config, const zb_json_at *params)
{
    zb_optimizer_config *sgd = &config->optimizer;
    *sgd = (zb_optimizer_config){ .kind = ZB_OPTIMIZER_SGD, .decay_mode = ZB_DECAY_L2 };
    ZB_TRY(judge(config, params, "SGD", sgd_rules, COUNT(sgd_rules)));
    zb_json_at lr = zb_json_member(params, "lr");
    if (lr.value == NULL) return zb_json_fail(&lr, ZB_INVALID_CONFIG, "a number: SGD has no default rate");
    ZB_TRY(read_number(params, "lr", 0, &sgd->lr));
    ZB_TRY(read_number(params, "momentum", 0, &sgd->momentum));
    ZB_TRY(read_number(params, "dampening", -INFINITY, &sgd->dampening));
    ZB_TRY(read_number(params, "weight_decay", 0, &sgd->weight_decay));
    ZB_TRY(read_bool(params, "nesterov", &sgd->nesterov));
    if (sgd->nesterov && (sgd->momentum <= 0 || sgd->dampening != 0)) {
        zb_json_at at = zb_json_member(params, "nesterov");
        return zb_json_fail(&at, ZB_INVALID_CONFIG,
                            "false, or momentum above 0 and dampening 0 (they are %g and %g)", sgd->momentum,
                            sgd->dampening);
    }
    return ZB_OK;
}

static zb_status read_adagrad(zb_config *config, const zb_json_at *params)
{
    zb_optimizer_config *adagrad = &config->optimizer;
    *adagrad = (zb_optimizer_config){
        .kind = ZB_OPTIMIZER_ADAGRAD, .decay_mode = ZB_DECAY_L2, .lr = 1e-2, .eps = 1e-10
    };
    ZB_TRY(judge(config, params, "Adagrad", adagrad_rules, COUNT(adagrad_rules)));
    ZB_TRY(read_number(params, "lr", 0, &adagrad->lr));
    ZB_TRY(read_number(params, "lr_decay", 0, &adagrad->lr_decay));
    ZB_TRY(read_number(params, "weight_decay", 0, &adagrad->weight_decay));
    return read_number(params, "eps", 0, &adagrad->eps);
}

static zb_status read_lion(zb_config *config, const zb_json_at *params)
{
    zb_optimizer_config *lion = &config->optimizer;
    *lion = (zb_optimizer_config){
        .kind = ZB_OPTIMIZER_LION, .decay_mode = ZB_DECAY_DECOUPLED, .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999
    };
    ZB_TRY(judge(config, params, "Lion", lion_rules, COUNT(lion_rules)));
    ZB_TRY(read_number(params, "lr", 0, &lion->lr));
    ZB_TRY(zb_config_read_betas(params, lion));
    return read_number(params, "weight_decay", 0, &lion->weight_decay);
}

/* DeepSpeed asserts a loss scale of 0 for it, at every precision. */
static zb_status read_lamb(zb_config *config, const zb_json_at *params, const zb_json_at *root)
{
    zb_optimizer_config *lamb = &config->optimizer;
    *lamb = (zb_optimizer_config){ .kind = ZB_OPTIMIZER_LAMB,
                                   .decay_mode = ZB_DECAY_DECOUPLED,
                                   .lr = 1e-3,
                                   .beta1 = 0.9,
                                   .beta2 = 0.999,
                                   .eps = 1e-8,
                                   .bias_correction = 1,
                                   .min_coeff = 0.01,
                                   .max_coeff = 10 };
    if (config->fp16.loss_scale != 0) {
        zb_json_at fp16 = zb_json_member(root, "fp16"), at = zb_json_member(&fp16, "loss_scale");
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "0 with Lamb, which wants the scale to be dynamic");
    }
    ZB_TRY(judge(config, params, "Lamb", lamb_rules, COUNT(lamb_rules)));
    ZB_TRY(refuse_amsgrad(params, "Lamb"));
    ZB_TRY(read_number(params, "lr", 0, &lamb->lr));
    ZB_TRY(zb_config_read_betas(params, lamb));
    ZB_TRY(read_number(params, "eps", 0, &lamb->eps));
    ZB_TRY(read_number(params, "weight_decay", 0, &lamb->weight_decay));
    ZB_TRY(read_number(params, "min_coeff", 0, &lamb->min_coeff));
    ZB_TRY(read_number(params, "max_coeff", 0, &lamb->max_coeff));
    ZB_TRY(read_bool(params, "bias_correction", &lamb->bias_correction));
    return read_bool(params, "eps_inside_sqrt", &lamb->eps_inside_sqrt);
}

static zb_status read_kind(zb_config *config, const zb_json_at *root, const zb_json_at *type_at,
                           const zb_json_at *params)
{
    const char *type;
    ZB_TRY(zb_json_string(type_at, &type));
    const int known = zb_config_index_of(type, deepspeed_optimizers, 1);
    switch (known) {
    case 0:
    case 1:
        return read_adam(config, params, known == 1);
    case 2:
        return read_adagrad(config, params);
    case 3:
        return read_lamb(config, params, root);
    case 4:
        return read_lion(config, params);
    default:
        break;
    }
    if (strcmp(type, "SGD") == 0) return read_sgd(config, params);
    if (known >= 0 || zb_config_index_of(type, torch_optimizers, 0) >= 0)
        return zb_json_fail(type_at, ZB_UNSUPPORTED, SUPPORTED ": this optimizer is not supported yet");
    return zb_json_fail(type_at, ZB_INVALID_CONFIG,
                        SUPPORTED ": neither DeepSpeed nor torch.optim has this name (case matters)");
}

/* --- whose arithmetic --- */

static zb_status read_arithmetic_name(const zb_json_at *at, int *arithmetic)
{
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    for (int a = 0; a < ZB_ARITHMETIC_COUNT; a++)
        if (strcmp(text, zb_optimizer_arithmetic_name((zb_optimizer_arithmetic)a)) == 0) {
            *arithmetic = a;
            return ZB_OK;
        }
    return zb_json_fail(at, ZB_INVALID_CONFIG, "\"plain\", \"deepspeed-cpu\", \"torch-1.13\" or \"torch-2\"");
}

static int is_torch(zb_optimizer_arithmetic arithmetic)
{
    return arithmetic == ZB_ARITHMETIC_TORCH_1 || arithmetic == ZB_ARITHMETIC_TORCH_2;
}

/* What the named arithmetic lacks: `at` is where it was named. */
static zb_status check_arithmetic(const zb_config *config, const zb_json_at *params, const zb_json_at *at,
                                  zb_optimizer_arithmetic arithmetic)
{
    const zb_optimizer_config *optimizer = &config->optimizer;
    const int adam = optimizer->kind == ZB_OPTIMIZER_ADAM, torch_adam = is_torch(optimizer->arithmetic);
    const int deepspeed = config->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6;
    if (!zb_optimizer_has_arithmetic(optimizer->kind, arithmetic))
        return zb_json_fail(at, ZB_INVALID_CONFIG, "an arithmetic that %s exists in (docs/config.md)",
                            zb_optimizer_kind_name(optimizer->kind));
    if (torch_adam && !is_torch(arithmetic))
        return zb_json_fail(at, ZB_INVALID_CONFIG,
                            "\"torch-1.13\" or \"torch-2\", since optimizer.params.torch_adam is true");
    if (adam && deepspeed && !torch_adam && is_torch(arithmetic))
        return zb_json_fail(at, ZB_INVALID_CONFIG,
                            "\"plain\" or \"deepspeed-cpu\", since DeepSpeed takes its own Adam unless "
                            "optimizer.params.torch_adam is true");
    zb_json_at correction = zb_json_member(params, "bias_correction");
    if (adam && is_torch(arithmetic) && !optimizer->bias_correction)
        return zb_json_fail(&correction, ZB_INVALID_CONFIG, "true: torch.optim always corrects the bias");
    zb_json_at decay = zb_json_member(params, "lr_decay");
    if (arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU && decay.value != NULL)
        return zb_json_fail(&decay, ZB_INVALID_CONFIG, "it left out: DeepSpeedCPUAdagrad has no lr_decay");
    return ZB_OK;
}

static zb_status read_vector_width(zb_config *config, const zb_json_at *at)
{
    int64_t width = 8;
    ZB_TRY(zb_config_read_integer(at, ZB_SECTION_OPEN, 0, ZB_JSON_MAX_INTEGER, &width));
    if (width != 8 && width != 16) return zb_json_fail(at, ZB_INVALID_CONFIG, "8 (AVX2) or 16 (AVX-512)");
    config->optimizer.vector_width = (int)width;
    const int tails = config->optimizer.kind == ZB_OPTIMIZER_ADAM &&
                      config->optimizer.arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU &&
                      config->quirks.optimizer_sees_flat_tensors;
    if (at->value == NULL || tails) return ZB_OK;
    return zb_config_note(
        config, at,
        "no effect: only DeepSpeed's Adam on a CPU treats a tensor's last elements apart, and "
        "standard semantics do not (quirk optimizer_sees_flat_tensors)");
}

static zb_status read_arithmetic(zb_config *config, const zb_json_at *root, const zb_json_at *params)
{
    zb_optimizer_config *optimizer = &config->optimizer;
    zb_json_at zerobit = zb_json_member(root, "zerobit");
    zb_json_at at = zb_json_member(&zerobit, "optimizer_arithmetic");
    zb_json_at width = zb_json_member(&zerobit, "optimizer_vector_width");
    const int of_torch = optimizer->kind == ZB_OPTIMIZER_SGD || optimizer->kind == ZB_OPTIMIZER_ADAGRAD;
    int arithmetic = (int)optimizer->arithmetic;
    if (of_torch && config->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6) arithmetic = ZB_ARITHMETIC_TORCH_1;
    if (at.value != NULL) {
        ZB_TRY(read_arithmetic_name(&at, &arithmetic));
        ZB_TRY(check_arithmetic(config, params, &at, (zb_optimizer_arithmetic)arithmetic));
    }
    optimizer->arithmetic = (zb_optimizer_arithmetic)arithmetic;
    return read_vector_width(config, &width);
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
    ZB_TRY(read_kind(config, root, &type_at, &params));
    ZB_TRY(read_arithmetic(config, root, &params));
    config->optimizer_given = 1;
    return ZB_OK;
}
