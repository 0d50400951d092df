/* DeepSpeed's JSON config: the top level, and the parts put together. Source: deepspeed/runtime/config.py. */
#include <zerobit/config.h>

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include "core/config_rules.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

#define NO_EFFECT(name, kind, at_rest, why)                                                                  \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_NO_EFFECT, .type = (kind), .neutral = (at_rest), .detail = (why)    \
    }
#define ONLY(name, kind, value)                                                                              \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_ONLY, .type = (kind), .neutral = (value), .min = -INFINITY          \
    }
#define OFF(name, member)                                                                                    \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_ONLY, .type = ZB_RULE_SWITCH, .detail = (member), .null_fine = 1    \
    }
#define EMPTY(name)                                                                                          \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_ONLY, .type = ZB_RULE_EMPTY                                         \
    }

#define LOGGING "it only sets what is measured or logged"

static const zb_config_rule top_rules[] = {
    ZB_HONOURED("train_batch_size"),
    ZB_HONOURED("train_micro_batch_size_per_gpu"),
    ZB_HONOURED("gradient_accumulation_steps"),
    ZB_HONOURED("gradient_clipping"),
    ZB_HONOURED("gradient_allreduce_op"),
    ZB_HONOURED("steps_per_print"),
    ZB_HONOURED("communication_data_type"),
    ZB_HONOURED("seq_parallel_communication_data_type"),
    ZB_HONOURED("data_types"),
    ZB_HONOURED("dataloader_drop_last"),
    ZB_HONOURED("zero_allow_untested_optimizer"),
    ZB_HONOURED("zero_optimization"),
    ZB_HONOURED("fp16"),
    ZB_HONOURED("bf16"),
    ZB_HONOURED("bfloat16"),
    ZB_HONOURED("optimizer"),
    ZB_HONOURED("scheduler"),
    ZB_HONOURED("checkpoint"),
    ZB_HONOURED("zerobit"),
    ZB_HONOURED("prescale_gradients"),
    ZB_HONOURED("gradient_predivide_factor"),
    ONLY("sparse_gradients", ZB_RULE_BOOL, 0),
    ONLY("managed_gradient_accumulation", ZB_RULE_BOOL, 1),
    ONLY("sequence_parallel_size", ZB_RULE_INTEGER, 1),
    EMPTY("data_parallel_size"),
    OFF("amp", "enabled"),
    OFF("torch_autocast", "enabled"),
    OFF("autotuning", "enabled"),
    OFF("elasticity", "enabled"),
    OFF("compression_training", "enabled"),
    OFF("quantize_training", "enabled"),
    OFF("progressive_layer_drop", "enabled"),
    OFF("curriculum_learning", "enabled"),
    OFF("data_efficiency", "enabled"),
    OFF("hybrid_engine", "enabled"),
    OFF("eigenvalue", "enabled"),
    OFF("compile", "deepcompile"),
    EMPTY("sparse_attention"),
    EMPTY("tensor_parallel"),
    EMPTY("expert_parallel"),
    EMPTY("weight_quantization"),
    NO_EFFECT("disable_allgather", ZB_RULE_BOOL, 0, "DeepSpeed reads it and never uses it"),
    NO_EFFECT("allgather_size", ZB_RULE_INTEGER, NAN, "parameters are gathered at once"),
    NO_EFFECT("zero_force_ds_cpu_optimizer", ZB_RULE_BOOL, 1, "nothing is offloaded"),
    NO_EFFECT("wall_clock_breakdown", ZB_RULE_BOOL, 0, LOGGING),
    NO_EFFECT("memory_breakdown", ZB_RULE_BOOL, 0, LOGGING),
    NO_EFFECT("dump_state", ZB_RULE_BOOL, 0, LOGGING),
    NO_EFFECT("log_level", ZB_RULE_ANY, NAN, LOGGING),
    NO_EFFECT("timers", ZB_RULE_ANY, NAN, LOGGING),
    NO_EFFECT("comms_logger", ZB_RULE_OBJECT, NAN, LOGGING),
    NO_EFFECT("tensorboard", ZB_RULE_OBJECT, NAN, LOGGING),
    NO_EFFECT("wandb", ZB_RULE_OBJECT, NAN, LOGGING),
    NO_EFFECT("csv_monitor", ZB_RULE_OBJECT, NAN, LOGGING),
    NO_EFFECT("comet", ZB_RULE_OBJECT, NAN, LOGGING),
    NO_EFFECT("flops_profiler", ZB_RULE_OBJECT, NAN, LOGGING),
    NO_EFFECT("activation_checkpointing", ZB_RULE_OBJECT, NAN,
              "computing an activation again gives the same bits"),
    NO_EFFECT("graph_harvesting", ZB_RULE_BOOL, 0, "it only sets how kernels are launched"),
    NO_EFFECT("use_data_before_expert_parallelism", ZB_RULE_BOOL, 0, "there are no experts"),
    { .key = "vocabulary_size",
      .effect = ZB_RULE_NO_EFFECT,
      .type = ZB_RULE_INTEGER,
      .neutral = NAN,
      .null_fine = 1,
      .detail = "DeepSpeed only warns about its alignment" },
    NO_EFFECT("pipeline", ZB_RULE_ANY, NAN, "there is no pipeline"),
    NO_EFFECT("aio", ZB_RULE_OBJECT, NAN, "nothing is offloaded"),
    NO_EFFECT("nebula", ZB_RULE_OBJECT, NAN, "zerobit writes and reads no checkpoints yet"),
};

static zb_status read_batch(const zb_json_at *root, zb_batch_triangle *batch)
{
    const struct {
        const char *key;
        int64_t *out;
    } sides[] = { { "train_batch_size", &batch->train_batch_size },
                  { "train_micro_batch_size_per_gpu", &batch->micro_batch_size },
                  { "gradient_accumulation_steps", &batch->accumulation_steps } };
    for (size_t i = 0; i < COUNT(sides); i++) {
        zb_json_at at = zb_json_member(root, sides[i].key);
        if (zb_json_given(&at)) ZB_TRY(zb_json_int64(&at, 1, ZB_JSON_MAX_INTEGER, sides[i].out));
    }
    return ZB_OK;
}

static zb_status read_communication_dtype(const zb_json_at *root, const char *key, int *out)
{
    static const char *const names[] = { "fp32", "fp16", "bf16", NULL };
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16 };
    zb_json_at at = zb_json_member(root, key);
    if (!zb_json_given(&at)) return ZB_OK;
    const char *text;
    ZB_TRY(zb_json_string(&at, &text));
    int known = zb_config_index_of(text, names, 1);
    if (known < 0) return zb_json_fail(&at, ZB_INVALID_CONFIG, "fp32, fp16 or bf16");
    *out = (int)dtypes[known];
    return ZB_OK;
}

/* For sequence parallelism, which is not offered; fp32 there is what nothing means. */
static zb_status read_sequence_dtype(zb_config *config, const zb_json_at *root)
{
    const char *key = "seq_parallel_communication_data_type";
    int dtype = ZB_FP32;
    ZB_TRY(read_communication_dtype(root, key, &dtype));
    if (dtype == ZB_FP32) return ZB_OK;
    zb_json_at at = zb_json_member(root, key);
    return zb_config_note(config, &at, "no effect: there is no sequence parallelism");
}

/* How gradients are averaged. */
static zb_status read_average(zb_config *config, const zb_json_at *root)
{
    zb_json_at op = zb_json_member(root, "gradient_allreduce_op");
    zb_json_at prescale = zb_json_member(root, "prescale_gradients");
    zb_json_at factor = zb_json_member(root, "gradient_predivide_factor");
    config->gradient_predivide_factor = 1.0;
    ZB_TRY(zb_config_read_bool(&prescale, ZB_SECTION_OPEN, &config->prescale_gradients));
    ZB_TRY(zb_config_read_number(&factor, ZB_SECTION_OPEN, 0, &config->gradient_predivide_factor));
    if (config->gradient_predivide_factor == 0)
        return zb_json_fail(&factor, ZB_INVALID_CONFIG, "a number above 0");
    if (op.value == NULL) return ZB_OK;
    const char *text;
    ZB_TRY(zb_json_string(&op, &text));
    config->grad_sum = strcasecmp(text, "sum") == 0;
    if (!config->grad_sum && strcasecmp(text, "mean") != 0)
        return zb_json_fail(&op, ZB_INVALID_CONFIG, "mean or sum");
    return ZB_OK;
}

static zb_status check_average(const zb_config *config, const zb_json_at *root)
{
    zb_json_at at = zb_json_member(root, "gradient_allreduce_op");
    if (config->grad_sum && config->zero.stage == 3)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "\"mean\", since zero_optimization.stage is 3");
    return ZB_OK;
}

static zb_status read_scalars(zb_config *config, const zb_json_at *root)
{
    ZB_TRY(read_batch(root, &config->batch));
    config->comm_dtype = -1;
    ZB_TRY(read_communication_dtype(root, "communication_data_type", &config->comm_dtype));
    ZB_TRY(read_sequence_dtype(config, root));
    ZB_TRY(read_average(config, root));

    config->gradient_clipping = 1.0;
    zb_json_at clipping = zb_json_member(root, "gradient_clipping");
    ZB_TRY(zb_config_read_number(&clipping, ZB_SECTION_OPEN, 0, &config->gradient_clipping));
    zb_json_at print = zb_json_member(root, "steps_per_print");
    if (zb_json_given(&print))
        ZB_TRY(zb_json_int64(&print, 1, ZB_JSON_MAX_INTEGER, &config->steps_per_print));
    zb_json_at drop_last = zb_json_member(root, "dataloader_drop_last");
    ZB_TRY(zb_config_read_bool(&drop_last, ZB_SECTION_OPEN, &config->dataloader_drop_last));
    zb_json_at untested = zb_json_member(root, "zero_allow_untested_optimizer");
    return zb_config_read_bool(&untested, ZB_SECTION_OPEN, &config->zero_allow_untested_optimizer);
}

static zb_status read_data_type(const zb_json_at *at, int *out)
{
    if (!zb_json_given(at)) return ZB_OK;
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    if (strncmp(text, "torch.", 6) == 0) text += 6;
    zb_dtype dtype;
    if (!zb_dtype_parse(text, &dtype) || (dtype != ZB_FP32 && dtype != ZB_FP16 && dtype != ZB_BF16))
        return zb_json_fail(at, ZB_INVALID_CONFIG, "fp32, fp16 or bf16");
    *out = (int)dtype;
    return ZB_OK;
}

/* After the precision sections, which say what the model runs in. */
static zb_status read_data_types(zb_config *config, const zb_json_at *root)
{
    static const zb_config_rule rules[] = { ZB_HONOURED("grad_accum_dtype"), ZB_HONOURED("param_dtype"),
                                            ZB_HONOURED("buffer_dtype") };
    config->grad_accum_dtype = -1;
    zb_json_at section = zb_json_member(root, "data_types");
    if (section.value == NULL) return ZB_OK;
    ZB_TRY(zb_config_judge(config, &section, ZB_SECTION_OPEN, "data_types", rules, COUNT(rules)));
    zb_json_at accum = zb_json_member(&section, "grad_accum_dtype");
    zb_json_at param = zb_json_member(&section, "param_dtype");
    zb_json_at buffer = zb_json_member(&section, "buffer_dtype");
    int param_dtype = (int)config->dtype, buffer_dtype = -1;
    ZB_TRY(read_data_type(&accum, &config->grad_accum_dtype));
    ZB_TRY(read_data_type(&param, &param_dtype));
    ZB_TRY(read_data_type(&buffer, &buffer_dtype));
    if (param_dtype != (int)config->dtype)
        return zb_json_fail(&param, ZB_INVALID_CONFIG, "%s or null, since that is what fp16 and bf16 say",
                            zb_dtype_name(config->dtype));
    if (buffer_dtype < 0) return ZB_OK;
    return zb_config_note(config, &buffer, "no effect: the models here have no buffers");
}

static zb_status read_checkpoint(zb_config *config, const zb_json_at *root)
{
    static const char *const modes[] = { "WARN", "IGNORE", "FAIL", NULL };
    zb_json_at section = zb_json_member(root, "checkpoint");
    if (section.value == NULL) return ZB_OK;
    ZB_TRY(zb_json_object(&section));
    zb_json_at validation = zb_json_member(&section, "tag_validation");
    if (validation.value != NULL) {
        const char *mode;
        ZB_TRY(zb_json_string(&validation, &mode));
        if (zb_config_index_of(mode, modes, 1) < 0)
            return zb_json_fail(&validation, ZB_INVALID_CONFIG, "WARN, IGNORE or FAIL");
    }
    return zb_config_note(config, &section, "no effect: zerobit writes and reads no checkpoints yet");
}

/* With `fixed` the key is checked all the same, but means nothing. */
static zb_status read_semantics(zb_config *config, const zb_json_at *section, int fixed)
{
    zb_json_at at = zb_json_member(section, "semantics");
    if (at.value == NULL) return ZB_OK;
    const char *text;
    zb_semantics found;
    ZB_TRY(zb_json_string(&at, &text));
    if (!zb_semantics_parse(text, &found))
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "\"standard\" or \"deepspeed-0.19.6\"");
    if (!fixed) config->semantics = found;
    return ZB_OK;
}

static zb_status read_quirks(zb_config *config, const zb_json_at *section)
{
    const char *names[ZB_QUIRK_COUNT + 1] = { NULL };
    zb_json_at quirks = zb_json_member(section, "quirks");
    config->quirks = zb_quirks_of(config->semantics);
    if (quirks.value == NULL) return ZB_OK;
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) names[q] = zb_quirk_name((zb_quirk)q);
    ZB_TRY(zb_json_object(&quirks));
    ZB_TRY(zb_json_check_keys(&quirks, names));
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) {
        zb_json_at at = zb_json_member(&quirks, names[q]);
        ZB_TRY(zb_config_read_bool(&at, ZB_SECTION_OPEN, zb_quirk_switch(&config->quirks, (zb_quirk)q)));
    }
    return ZB_OK;
}

static zb_status read_order(zb_config *config, const zb_json_at *section)
{
    zb_json_at at = zb_json_member(section, "order");
    if (at.value == NULL) return ZB_OK;
    const char *text;
    ZB_TRY(zb_json_string(&at, &text));
    const zb_status status = zb_config_set_order(config, text);
    if (status == ZB_OK || status == ZB_NO_MEMORY) return status;
    char key[256], reason[ZB_ERROR_MESSAGE_BYTES / 2];
    zb_json_describe(&at, key, sizeof key);
    snprintf(reason, sizeof reason, "%s", zb_error_message());
    return zb_fail(status == ZB_UNSUPPORTED ? status : ZB_INVALID_CONFIG, "%s: %s: %s", config->path, key,
                   reason);
}

static zb_status read_zerobit(zb_config *config, const zb_json_at *root, int semantics_fixed)
{
    static const char *const keys[] = {
        "semantics", "quirks", "order", "param_groups", "optimizer_arithmetic", "optimizer_vector_width", NULL
    };
    zb_json_at section = zb_json_member(root, "zerobit");
    config->quirks = zb_quirks_of(config->semantics);
    if (section.value == NULL) return ZB_OK;
    ZB_TRY(zb_json_object(&section));
    ZB_TRY(zb_json_check_keys(&section, keys));
    ZB_TRY(read_semantics(config, &section, semantics_fixed));
    ZB_TRY(read_order(config, &section));
    return read_quirks(config, &section);
}

static zb_status read_all(zb_config *config, const zb_json_at *root, int semantics_fixed)
{
    ZB_TRY(zb_config_judge(config, root, ZB_SECTION_OPEN, "the config", top_rules, COUNT(top_rules)));
    ZB_TRY(
        read_zerobit(config, root, semantics_fixed)); /* first: it decides what the other sections may say */
    ZB_TRY(read_scalars(config, root));
    ZB_TRY(zb_config_read_zero(config, root));
    ZB_TRY(zb_config_read_precision(config, root));
    ZB_TRY(read_data_types(config, root));
    ZB_TRY(read_checkpoint(config, root));
    ZB_TRY(zb_config_read_optimizer(config, root));
    ZB_TRY(zb_config_read_param_groups(config, root));
    ZB_TRY(zb_config_read_schedule(config, root));
    return check_average(config, root);
}

static zb_status create(const zb_json_at *root, const char *path, zb_semantics semantics, int semantics_fixed,
                        zb_config **config_p)
{
    zb_config *config = zb_alloc(sizeof *config);
    if (config == NULL) return ZB_NO_MEMORY;
    config->semantics = semantics;
    config->path = zb_strdup(path);
    zb_status status = config->path == NULL ? ZB_NO_MEMORY : read_all(config, root, semantics_fixed);
    if (status != ZB_OK) {
        zb_config_destroy(config);
        return status;
    }
    *config_p = config;
    return ZB_OK;
}

zb_status zb_config_read(const zb_json_at *root, const char *path, zb_semantics semantics,
                         zb_config **config_p)
{
    return create(root, path, semantics, 0, config_p);
}

zb_status zb_config_parse(const char *text, size_t text_bytes, const char *path, zb_config **config_p)
{
    zb_json *json;
    ZB_TRY(zb_json_parse(text, text_bytes, path, &json));
    zb_json_at root = zb_json_root(json);
    zb_status status = create(&root, zb_json_path(json), ZB_SEMANTICS_STANDARD, 0, config_p);
    zb_json_destroy(json);
    return status;
}

static zb_status load(const char *path, zb_semantics semantics, int semantics_fixed, zb_config **config_p)
{
    zb_json *json;
    ZB_TRY(zb_json_load(path, &json));
    zb_json_at root = zb_json_root(json);
    zb_status status = create(&root, zb_json_path(json), semantics, semantics_fixed, config_p);
    zb_json_destroy(json);
    return status;
}

zb_status zb_config_load(const char *path, zb_config **config_p)
{
    return load(path, ZB_SEMANTICS_STANDARD, 0, config_p);
}

zb_status zb_config_load_as(const char *path, zb_semantics semantics, zb_config **config_p)
{
    return load(path, semantics, 1, config_p);
}

static void drop_orders(zb_config *config)
{
    if (config->orders != NULL) zb_orders_destroy(config->orders);
    zb_free(config->orders);
    config->orders = NULL;
}

zb_status zb_config_set_order(zb_config *config, const char *text)
{
    zb_orders orders;
    ZB_TRY(zb_orders_parse(text, &orders));
    drop_orders(config);
    if (zb_orders_equal(&orders, NULL)) return ZB_OK; /* rank order is no order of a library's */
    config->orders = zb_alloc(sizeof *config->orders);
    if (config->orders == NULL) {
        zb_orders_destroy(&orders);
        return ZB_NO_MEMORY;
    }
    *config->orders = orders;
    return ZB_OK;
}

void zb_config_destroy(zb_config *config)
{
    if (config == NULL) return;
    drop_orders(config);
    for (size_t i = 0; i < config->note_count; i++) zb_free(config->notes[i]);
    zb_free(config->notes);
    zb_config_destroy_param_groups(config);
    zb_free(config->path);
    zb_free(config);
}
