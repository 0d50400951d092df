/* The section zero_optimization. Source: deepspeed/runtime/zero/config.py, offload_config.py. */
#include "core/config_rules.h"

#include <math.h>
#include <string.h>

#define LABEL "zero_optimization"

/* A tuning knob of communication or memory; any sensible value gives the same bits. */
#define KNOB(name, other, kind, at_rest, why)                                                                \
    {                                                                                                        \
        .key = (name), .alias = (other), .effect = ZB_RULE_NO_EFFECT, .type = (kind), .neutral = (at_rest),  \
        .detail = (why)                                                                                      \
    }
#define COUNT_KNOB(name, other, why)         KNOB(name, other, ZB_RULE_INTEGER, NAN, why)
#define BOOL_KNOB(name, other, at_rest, why) KNOB(name, other, ZB_RULE_BOOL, at_rest, why)
#define ONLY_BOOL(name, other, value)                                                                        \
    {                                                                                                        \
        .key = (name), .alias = (other), .effect = ZB_RULE_ONLY, .type = ZB_RULE_BOOL, .neutral = (value)    \
    }
#define ONLY_INTEGER(name, value)                                                                            \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_ONLY, .type = ZB_RULE_INTEGER, .neutral = (value), .min = -1        \
    }
#define ONLY_EMPTY(name)                                                                                     \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_ONLY, .type = ZB_RULE_EMPTY, .null_fine = 1                         \
    }

/* Honoured, and known by its old name as well. */
#define STAGE3(name)                                                                                         \
    {                                                                                                        \
        .key = (name), .alias = ("stage3_" name), .effect = ZB_RULE_HONOURED                                 \
    }

#define WHEN_GATHERED "it only sets when parameters are gathered and freed, which changes no bit"
#define CHECKPOINT    "zerobit writes and reads no checkpoints yet"
#define OFFLOAD       "nothing is offloaded"

static const zb_config_rule zero_rules[] = {
    ZB_HONOURED("stage"),
    ZB_HONOURED("reduce_bucket_size"),
    ZB_HONOURED("overlap_comm"),
    ZB_HONOURED("offload_param"),
    ZB_HONOURED("offload_optimizer"),
    ZB_HONOURED("cpu_offload"),
    ZB_HONOURED("cpu_offload_param"),
    ZB_HONOURED("stage3_gather_fp16_weights_on_model_save"),
    ZB_HONOURED("legacy_stage1"),
    ZB_HONOURED("contiguous_gradients"),
    ZB_HONOURED("reduce_scatter"),
    ZB_HONOURED("use_multi_rank_bucket_allreduce"),
    ZB_HONOURED("round_robin_gradients"),
    COUNT_KNOB("allgather_bucket_size", NULL,
               "parameters are gathered at once, as DeepSpeed does on its usual path"),
    BOOL_KNOB("allgather_partitions", NULL, 1, "DeepSpeed reads it and never uses it"),
    BOOL_KNOB("cpu_offload_use_pin_memory", NULL, 0, "deprecated, DeepSpeed ignores it"),
    BOOL_KNOB("load_from_fp32_weights", NULL, 1, CHECKPOINT),
    BOOL_KNOB("elastic_checkpoint", NULL, 0, CHECKPOINT),
    BOOL_KNOB("pipeline_loading_checkpoint", NULL, 0, CHECKPOINT),
    BOOL_KNOB("gather_16bit_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save", 0,
              CHECKPOINT),
    ZB_HONOURED("sub_group_size"),
    STAGE3("prefetch_bucket_size"),
    STAGE3("param_persistence_threshold"),
    STAGE3("model_persistence_threshold"),
    STAGE3("max_live_parameters"),
    STAGE3("max_reuse_distance"),
    STAGE3("module_granularity_threshold"),
    STAGE3("allgather_sequential"),
    KNOB("leaf_module", NULL, ZB_RULE_OBJECT, NAN, WHEN_GATHERED),
    BOOL_KNOB("ignore_unused_parameters", NULL, 1, OFFLOAD),
    BOOL_KNOB("memory_efficient_linear", NULL, 1,
              "it only sets what PyTorch keeps between forward and backward"),
    BOOL_KNOB("override_module_apply", NULL, 1, "it concerns the construction of PyTorch modules"),
    BOOL_KNOB("log_trace_cache_warnings", NULL, 0, "it only sets what is logged"),
    BOOL_KNOB("enable_sanity_checks", NULL, 0, "it only adds checks"),
    ONLY_BOOL("use_all_reduce_for_fetch_params", "stage3_use_all_reduce_for_fetch_params", 0),
    ONLY_BOOL("save_muon_momentum_buffer_in_memory", NULL, 0),
    ONLY_BOOL("zero_quantized_weights", NULL, 0),
    ONLY_BOOL("zero_quantized_nontrainable_weights", NULL, 0),
    ONLY_BOOL("zero_quantized_gradients", NULL, 0),
    ONLY_BOOL("mics_hierarchical_params_gather", NULL, 0),
    ONLY_INTEGER("zero_hpz_partition_size", 1),
    ONLY_INTEGER("mics_shard_size", -1),
    ONLY_EMPTY("zeropp_loco_param"),
    ONLY_EMPTY("zenflow"),
};

static const zb_config_rule offload_optimizer_rules[] = {
    ZB_HONOURED("device"),
    { .key = "nvme_path",
      .effect = ZB_RULE_NO_EFFECT,
      .type = ZB_RULE_ANY,
      .neutral = NAN,
      .null_fine = 1,
      .detail = OFFLOAD },
    COUNT_KNOB("buffer_count", NULL, OFFLOAD),
    BOOL_KNOB("pin_memory", NULL, 1, OFFLOAD),
    BOOL_KNOB("pipeline_read", NULL, 0, OFFLOAD),
    BOOL_KNOB("pipeline_write", NULL, 0, OFFLOAD),
    BOOL_KNOB("fast_init", NULL, 0, OFFLOAD),
    BOOL_KNOB("super_offload", NULL, 0, OFFLOAD),
    ZB_HONOURED("ratio"),
    KNOB("cpuadam_cores_perc", NULL, ZB_RULE_NUMBER, 0.8, OFFLOAD),
};

static const zb_config_rule offload_param_rules[] = {
    ZB_HONOURED("device"),
    { .key = "nvme_path",
      .effect = ZB_RULE_NO_EFFECT,
      .type = ZB_RULE_ANY,
      .neutral = NAN,
      .null_fine = 1,
      .detail = OFFLOAD },
    COUNT_KNOB("buffer_count", NULL, OFFLOAD),
    COUNT_KNOB("buffer_size", NULL, OFFLOAD),
    COUNT_KNOB("max_in_cpu", NULL, OFFLOAD),
    BOOL_KNOB("pin_memory", NULL, 1, OFFLOAD),
};

static zb_status read_ratio(const zb_json_at *section, int stage)
{
    zb_json_at at = zb_config_closed_member(section, "ratio");
    double ratio = 1.0;
    ZB_TRY(zb_config_read_number(&at, ZB_SECTION_CLOSED, 0, &ratio));
    if (ratio > 1) return zb_json_fail(&at, ZB_INVALID_CONFIG, "a number from 0 to 1");
    if (ratio < 1 && stage != 3) return zb_json_fail(&at, ZB_INVALID_CONFIG, "1.0: less is for stage 3 only");
    return ZB_OK;
}

static zb_status read_offload(zb_config *config, const zb_json_at *zero, const char *key,
                              const zb_config_rule *rules, size_t count)
{
    static const char *const devices[] = { "none", "cpu", "nvme", NULL };
    zb_json_at section = zb_config_closed_member(zero, key);
    if (!zb_json_given(&section)) return ZB_OK;
    ZB_TRY(zb_config_judge(config, &section, ZB_SECTION_CLOSED, key, rules, count));
    if (strcmp(key, "offload_optimizer") == 0) ZB_TRY(read_ratio(&section, config->zero.stage));
    zb_json_at device = zb_config_closed_member(&section, "device");
    if (device.value == NULL) return ZB_OK;
    const char *text;
    ZB_TRY(zb_json_string(&device, &text));
    int known = zb_config_index_of(text, devices, 0);
    if (known < 0) return zb_json_fail(&device, ZB_INVALID_CONFIG, "none, cpu or nvme");
    if (known > 0) return zb_json_fail(&device, ZB_UNSUPPORTED, "\"none\": offload is not supported yet");
    return ZB_OK;
}

/* A deprecated key beside its replacement is an error in DeepSpeed even when it says false. */
static zb_status read_deprecated_offload(zb_config *config, const zb_json_at *zero, const char *key,
                                         const char *replacement)
{
    zb_json_at at = zb_config_closed_member(zero, key);
    if (at.value == NULL) return ZB_OK;
    int enabled = 0;
    ZB_TRY(zb_config_read_bool(&at, ZB_SECTION_CLOSED, &enabled));
    if (zb_config_closed_member(zero, replacement).value != NULL)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "only %s, which replaces this deprecated key",
                            replacement);
    if (enabled) return zb_json_fail(&at, ZB_UNSUPPORTED, "false: offload is not supported yet");
    return zb_config_note(config, &at, "no effect: deprecated in favour of %s, and off", replacement);
}

static zb_status read_deprecated_gather(zb_config *config, const zb_json_at *zero)
{
    zb_json_at at = zb_config_closed_member(zero, "stage3_gather_fp16_weights_on_model_save");
    if (at.value == NULL) return ZB_OK;
    int ignored = 0;
    ZB_TRY(zb_config_read_bool(&at, ZB_SECTION_CLOSED, &ignored));
    if (zb_config_closed_member(zero, "gather_16bit_weights_on_model_save").value != NULL ||
        zb_config_closed_member(zero, "stage3_gather_16bit_weights_on_model_save").value != NULL)
        return zb_json_fail(&at, ZB_INVALID_CONFIG,
                            "only gather_16bit_weights_on_model_save, which replaces this deprecated key");
    return zb_config_note(config, &at, "no effect: deprecated, and " CHECKPOINT);
}

static zb_status read_legacy_stage1(const zb_json_at *zero)
{
    zb_json_at at = zb_config_closed_member(zero, "legacy_stage1");
    int legacy = 0;
    ZB_TRY(zb_config_read_bool(&at, ZB_SECTION_CLOSED, &legacy));
    return legacy ? zb_json_fail(&at, ZB_INVALID_CONFIG, "false: DeepSpeed no longer has the old stage 1")
                  : ZB_OK;
}

static zb_status read_switch(const zb_json_at *zero, const char *key, int *out)
{
    zb_json_at at = zb_config_closed_member(zero, key);
    return zb_config_read_bool(&at, ZB_SECTION_CLOSED, out);
}

/* Stages 1 and 2 align the bucket to 2 elements. */
static zb_status check_allgather_bucket(const zb_json_at *zero, int stage)
{
    zb_json_at at = zb_config_closed_member(zero, "allgather_bucket_size");
    double numel = 0;
    ZB_TRY(zb_config_read_number(&at, ZB_SECTION_CLOSED, 0, &numel));
    if ((stage == 1 || stage == 2) && fmod(numel, 2) != 0)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "a multiple of 2 at stage %d", stage);
    return ZB_OK;
}

/* Under its name, or its old one with stage3_ in front. */
static zb_json_at stage3_member(const zb_json_at *zero, const char *old_name)
{
    zb_json_at at = zb_config_closed_member(zero, old_name + strlen("stage3_"));
    return at.value != NULL ? at : zb_config_closed_member(zero, old_name);
}

/* A count of elements. Any is fine, Python's sys.maxsize too; beyond a double's integers it means "all". */
static zb_status read_numel(const zb_json_at *at, uint64_t *out)
{
    double numel = (double)*out;
    if (zb_config_read_number(at, ZB_SECTION_CLOSED, 0, &numel) != ZB_OK || numel != floor(numel))
        return zb_json_fail(at, ZB_INVALID_CONFIG, "an integer not below 0");
    *out = (uint64_t)fmin(numel, (double)ZB_JSON_MAX_INTEGER);
    return ZB_OK;
}

static zb_status read_gathering(const zb_json_at *section, zb_zero_config *zero)
{
    const struct {
        const char *key;
        uint64_t *out;
    } counts[] = {
        { "stage3_prefetch_bucket_size", &zero->prefetch_bucket_numel },
        { "stage3_param_persistence_threshold", &zero->param_persistence_numel },
        { "stage3_model_persistence_threshold", &zero->model_persistence_numel },
        { "stage3_max_live_parameters", &zero->max_live_numel },
        { "stage3_max_reuse_distance", &zero->max_reuse_numel },
        { "stage3_module_granularity_threshold", &zero->module_granularity_numel },
    };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        zb_json_at at = stage3_member(section, counts[i].key);
        ZB_TRY(read_numel(&at, counts[i].out));
    }
    zb_json_at sequential = stage3_member(section, "stage3_allgather_sequential");
    ZB_TRY(zb_config_read_bool(&sequential, ZB_SECTION_CLOSED, &zero->allgather_sequential));
    /* DeepSpeed: one parameter ahead, whatever the bucket. */
    if (zero->allgather_sequential) zero->prefetch_bucket_numel = 1;
    return ZB_OK;
}

static zb_status read_section(zb_config *config, const zb_json_at *zero)
{
    ZB_TRY(zb_config_judge(config, zero, ZB_SECTION_CLOSED, LABEL, zero_rules,
                           sizeof zero_rules / sizeof zero_rules[0]));
    zb_json_at stage_at = zb_config_closed_member(zero, "stage");
    int64_t stage = 0, bucket = (int64_t)config->zero.reduce_bucket_numel;
    ZB_TRY(zb_config_read_integer(&stage_at, ZB_SECTION_CLOSED, 0, ZB_STAGE_COUNT - 1, &stage));
    config->zero.stage = (int)stage;
    zb_json_at bucket_at = zb_config_closed_member(zero, "reduce_bucket_size");
    ZB_TRY(zb_config_read_integer(&bucket_at, ZB_SECTION_CLOSED, 0, ZB_JSON_MAX_INTEGER, &bucket));
    config->zero.reduce_bucket_numel = (uint64_t)bucket;

    zb_json_at overlap_at = zb_config_closed_member(zero, "overlap_comm");
    if (zb_json_given(&overlap_at))
        ZB_TRY(zb_config_read_bool(&overlap_at, ZB_SECTION_CLOSED, &config->zero.overlap_comm));
    ZB_TRY(read_switch(zero, "contiguous_gradients", &config->zero.contiguous_gradients));
    ZB_TRY(read_switch(zero, "reduce_scatter", &config->zero.reduce_scatter));
    ZB_TRY(read_switch(zero, "use_multi_rank_bucket_allreduce", &config->zero.multi_rank_bucket));
    ZB_TRY(read_switch(zero, "round_robin_gradients", &config->zero.round_robin_gradients));
    ZB_TRY(check_allgather_bucket(zero, (int)stage));
    zb_json_at sub_group_at = zb_config_closed_member(zero, "sub_group_size");
    ZB_TRY(read_numel(&sub_group_at, &config->zero.sub_group_numel));
    ZB_TRY(read_gathering(zero, &config->zero));
    ZB_TRY(read_legacy_stage1(zero));

    ZB_TRY(read_deprecated_offload(config, zero, "cpu_offload", "offload_optimizer"));
    ZB_TRY(read_deprecated_offload(config, zero, "cpu_offload_param", "offload_param"));
    ZB_TRY(read_deprecated_gather(config, zero));
    ZB_TRY(read_offload(config, zero, "offload_optimizer", offload_optimizer_rules,
                        sizeof offload_optimizer_rules / sizeof offload_optimizer_rules[0]));
    return read_offload(config, zero, "offload_param", offload_param_rules,
                        sizeof offload_param_rules / sizeof offload_param_rules[0]);
}

zb_status zb_config_read_zero(zb_config *config, const zb_json_at *root)
{
    config->zero = (zb_zero_config){ .overlap_comm = -1,
                                     .contiguous_gradients = 1,
                                     .reduce_scatter = 1,
                                     .multi_rank_bucket = 1,
                                     .reduce_bucket_numel = 500000000,
                                     .sub_group_numel = 1000000000,
                                     .prefetch_bucket_numel = 50000000,
                                     .max_live_numel = 1000000000,
                                     .max_reuse_numel = 1000000000,
                                     .param_persistence_numel = 100000,
                                     .model_persistence_numel = ZB_JSON_MAX_INTEGER };
    zb_json_at zero = zb_json_member(root, "zero_optimization");
    if (zero.value == NULL) return ZB_OK;
    if (cJSON_IsBool(zero.value)) {
        config->zero.stage = cJSON_IsTrue(zero.value) ? 1 : 0;
        return zb_config_note(config, &zero, "a bare boolean is deprecated; it means {\"stage\": %d}",
                              config->zero.stage);
    }
    return read_section(config, &zero);
}
