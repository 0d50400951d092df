/* The batch triangle by DeepSpeed's own vectors; plans derived, compared and named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include <zerobit/config.h>
#include <zerobit/orders.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* 0: not given. `error` NULL: the resolved triangle is the second. */
static const struct batch_case {
    zb_batch_triangle given;
    int world;
    zb_batch_triangle want;
    const char *error;
} batch_cases[] = {
    { { 32, 4, 2 }, 4, { 32, 4, 2 }, NULL },
    { { 32, 4, 2 }, 2, { 0, 0, 0 }, "32 is not 4 x 2 x 2" },
    { { 32, 4, 0 }, 2, { 32, 4, 4 }, NULL },
    { { 33, 4, 0 }, 2, { 0, 0, 0 }, "33 is not 4 x 4 x 2" },
    { { 4, 4, 0 }, 2, { 0, 0, 0 }, "accumulation steps come out as 0 (4 / 4 / 2 rounded down)" },
    { { 32, 0, 2 }, 4, { 32, 4, 2 }, NULL },
    { { 30, 0, 4 }, 2, { 0, 0, 0 }, "30 is not 3 x 4 x 2" },
    { { 0, 4, 2 }, 4, { 32, 4, 2 }, NULL },
    { { 32, 0, 0 }, 3, { 0, 0, 0 }, "32 is not 10 x 1 x 3" },
    { { 32, 0, 0 }, 4, { 32, 8, 1 }, NULL },
    { { 2, 0, 0 }, 4, { 0, 0, 0 }, "the micro-batch comes out as 0 (2 / 4 / 1 rounded down)" },
    { { 0, 3, 0 }, 4, { 12, 3, 1 }, NULL },
    { { 0, 0, 2 },
      4,
      { 0, 0, 0 },
      "train_batch_size not given, train_micro_batch_size_per_gpu not given, "
      "gradient_accumulation_steps 2, world size 4: want train_batch_size or" },
    { { 0, 0, 0 }, 4, { 0, 0, 0 }, "want train_batch_size or train_micro_batch_size_per_gpu to be given" },
    { { 16, 4, 0 }, 2, { 16, 4, 2 }, NULL },
    { { 16, 0, 0 }, 0, { 0, 0, 0 }, "world size is 0, want at least 1" },
    { { 16, 0, 0 }, -3, { 0, 0, 0 }, "world size is -3, want at least 1" },
    { { -16, 0, 0 }, 2, { 0, 0, 0 }, "train_batch_size -16" },
    { { 16, -4, 0 }, 2, { 0, 0, 0 }, "train_micro_batch_size_per_gpu -4" },
    { { 16, 0, -1 }, 2, { 0, 0, 0 }, "gradient_accumulation_steps -1" },
    { { 0, INT64_MAX / 2, 1 }, 3, { 0, 0, 0 }, "their product does not fit 64 bits" },
    { { 0, INT64_MAX / 2, 3 }, 1, { 0, 0, 0 }, "their product does not fit 64 bits" },
    { { 16, INT64_MAX / 2, 4 }, 2, { 0, 0, 0 }, "16 is not" },
    { { INT64_MAX, 0, 0 }, 1, { INT64_MAX, INT64_MAX, 1 }, NULL },
};

static void batch_triangle(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(batch_cases); i++) {
        const struct batch_case *c = &batch_cases[i];
        zb_batch_triangle got = { -1, -1, -1 };
        zb_status status = zb_batch_resolve(&c->given, c->world, &got);
        if (c->error == NULL) {
            if (status != ZB_OK) fail_msg("row %zu: %s", i, zb_error_message());
            assert_memory_equal(&got, &c->want, sizeof got);
            continue;
        }
        assert_int_equal(status, ZB_INVALID_CONFIG);
        assert_int_equal(got.train_batch_size, -1);
        if (strstr(zb_error_message(), c->error) == NULL)
            fail_msg("row %zu gives: %s\n  want: %s", i, zb_error_message(), c->error);
    }
}

static zb_config *parse(const char *text)
{
    zb_config *config = NULL;
    if (zb_config_parse(text, strlen(text), "f.json", &config) != ZB_OK) fail_msg("%s", zb_error_message());
    return config;
}

#define SUFFIX    " grad=fp32 comm=fp32 scale=none overflow=apply"
#define OPTIMIZER "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.01}}"

static void standard_plan_of_each_stage(void **state)
{
    (void)state;
    zb_config *config = parse("{\"train_batch_size\": 32, \"train_micro_batch_size_per_gpu\": 4, " OPTIMIZER
                              ", \"gradient_clipping\": 0.25}");
    static const char *const want[ZB_STAGE_COUNT] = {
        "standard fp32 world 4 micro 4 x 2 reduce=boundary average=inside order=rank norm=exact" SUFFIX,
        "standard fp32 world 4 micro 4 x 2 reduce=boundary average=inside order=rank norm=exact" SUFFIX,
        "standard fp32 world 4 micro 4 x 2 reduce=micro-batch average=inside order=rank norm=exact" SUFFIX,
        "standard fp32 world 4 micro 4 x 2 reduce=micro-batch average=inside order=rank norm=exact" SUFFIX,
    };
    zb_plan plans[ZB_STAGE_COUNT];
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        assert_int_equal(zb_plan_derive(config, stage, ZB_FP32, 4, &plans[stage]), ZB_OK);
        char text[256];
        zb_plan_describe(&plans[stage], text, sizeof text);
        assert_string_equal(text, want[stage]);
        assert_true(plans[stage].clip_norm == 0.25);
        assert_true(plans[stage].groups[0].lr == 0.01);
        assert_int_equal(plans[stage].grad_dtype, ZB_FP32);
        assert_int_equal(plans[stage].comm_dtype, ZB_FP32);
        assert_int_equal(plans[stage].scaler.kind, ZB_SCALER_NONE);
        assert_true(plans[stage].scaler.initial_scale == 1);
        assert_int_equal(plans[stage].overflow, ZB_OVERFLOW_UNSEEN);
    }
    assert_true(zb_plan_equal(&plans[0], &plans[1]));
    assert_true(zb_plan_equal(&plans[2], &plans[3]));
    assert_false(zb_plan_equal(&plans[1], &plans[2]));

    /* With one micro-batch per step all stages share one plan. */
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
        assert_int_equal(zb_plan_derive(config, stage, ZB_FP32, 8, &plans[stage]), ZB_OK);
    for (int stage = 1; stage < ZB_STAGE_COUNT; stage++) assert_true(zb_plan_equal(&plans[0], &plans[stage]));

    char cut[16];
    zb_plan_describe(&plans[0], cut, sizeof cut);
    assert_string_equal(cut, "standard fp32 w");
    zb_config_destroy(config);
}

/* What a config says about precision, at every stage alike: the end of the plan's line. */
static const struct precision_case {
    const char *members;
    zb_dtype dtype;
    const char *want;
} precision_cases[] = {
    { "", ZB_FP16, "grad=fp16 comm=fp16 scale=dynamic:65536/1000/2/1 overflow=skip" },
    { "", ZB_BF16, "grad=bf16 comm=bf16 scale=none overflow=skip" },
    { "\"fp16\": {\"enabled\": true},", ZB_BF16, "grad=bf16 comm=bf16 scale=none overflow=skip" },
    { "\"fp16\": {\"enabled\": true},", ZB_FP32, "grad=fp32 comm=fp32 scale=none overflow=apply" },
    { "\"fp16\": {\"enabled\": false, \"initial_scale_power\": -3, \"loss_scale_window\": 7, \"hysteresis\": "
      "0, "
      "\"consecutive_hysteresis\": true, \"min_loss_scale\": 4},",
      ZB_FP16, "grad=fp16 comm=fp16 scale=dynamic:0.125/7/0-consecutive/4 overflow=skip" },
    { "\"fp16\": {\"enabled\": true, \"loss_scale\": 0.1, \"loss_scale_window\": 0},", ZB_FP16,
      "grad=fp16 comm=fp16 scale=0.10000000000000001 overflow=skip" },
    { "\"bf16\": {\"enabled\": true, \"check_grad_overflow\": false},", ZB_BF16,
      "grad=bf16 comm=bf16 scale=none overflow=apply" },
    { "\"bf16\": {\"check_grad_overflow\": false},", ZB_FP16,
      "grad=fp16 comm=fp16 scale=dynamic:65536/1000/2/1 overflow=skip" },
    { "\"data_types\": {\"grad_accum_dtype\": \"float32\"},", ZB_BF16,
      "grad=fp32 comm=fp32 scale=none overflow=skip" },
    { "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}, \"communication_data_type\": \"fp32\",", ZB_FP16,
      "grad=fp32 comm=fp32 scale=dynamic:65536/1000/2/1 overflow=skip" },
    { "\"data_types\": {\"grad_accum_dtype\": \"half\"}, \"communication_data_type\": \"FP16\",", ZB_FP16,
      "grad=fp16 comm=fp16 scale=dynamic:65536/1000/2/1 overflow=skip" },
};

static void plan_of_each_precision(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(precision_cases); i++) {
        const struct precision_case *c = &precision_cases[i];
        char text[1024];
        snprintf(text, sizeof text, "{\"train_batch_size\": 8, %s " OPTIMIZER "}", c->members);
        zb_config *config = parse(text);
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
            zb_plan plan;
            if (zb_plan_derive(config, stage, c->dtype, 2, &plan) != ZB_OK)
                fail_msg("row %zu: %s", i, zb_error_message());
            assert_int_equal(plan.param_dtype, c->dtype);
            zb_plan_describe(&plan, text, sizeof text);
            const char *end = strstr(text, "grad=");
            assert_non_null(end);
            if (strcmp(end, c->want) != 0) fail_msg("row %zu gives: %s\n  want: %s", i, end, c->want);
        }
        zb_config_destroy(config);
    }
}

/* DeepSpeed's stage 0 has its own rule; the standard one is the same everywhere. */
static void scaler_rule_of_each_stage(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        zb_scaler_kind stage0, others;
    } rules[] = {
        { "{}", ZB_SCALER_DYNAMIC, ZB_SCALER_DYNAMIC },
        { "{\"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}}", ZB_SCALER_DYNAMIC_STAGE0,
          ZB_SCALER_DYNAMIC },
        { "{\"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}, \"fp16\": {\"loss_scale\": 8}}",
          ZB_SCALER_STATIC, ZB_SCALER_STATIC },
    };
    for (size_t i = 0; i < COUNT(rules); i++) {
        zb_config *config = parse(rules[i].text);
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
            zb_loss_scaler_config scaler;
            assert_int_equal(zb_scaler_derive(config, stage, ZB_FP16, &scaler), ZB_OK);
            assert_int_equal(scaler.kind, stage == 0 ? rules[i].stage0 : rules[i].others);
            assert_int_equal(zb_scaler_derive(config, stage, ZB_BF16, &scaler), ZB_OK);
            assert_int_equal(scaler.kind, ZB_SCALER_NONE);
        }
        zb_config_destroy(config);
    }
}

#define DEEPSPEED "\"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}"

/* What DeepSpeed itself does at each stage and precision: the plan's line after the semantics, and the fields
 * that it does not show. */
static const struct deepspeed_case {
    const char *members;
    int world;
    const char *want;
    int loss_is_scaled, report_norm_by_next_scale, hidden_first_step;
    zb_tensors tensors;
    zb_clip_method clip;
} deepspeed_cases[] = {
    { "\"zero_optimization\": {\"stage\": 0}", 2,
      "fp32 world 2 micro 2 x 2 reduce=boundary average=sum *0.5 order=rank norm=parameters-mean grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_PARAMETERS, ZB_CLIP_COEFFICIENT },
    { "\"zero_optimization\": {\"stage\": 0}, \"fp16\": {\"enabled\": true}", 2,
      "fp16 world 2 micro 2 x 2 reduce=boundary average=sum *0.5 order=rank norm=flat grad=fp16 "
      "comm=fp16 scale=stage0:65536/1000/1 overflow=skip",
      0, 1, 1, ZB_TENSORS_GROUPS, ZB_CLIP_COMBINED },
    { "\"zero_optimization\": {\"stage\": 0}, \"bf16\": {\"enabled\": true}, \"communication_data_type\": "
      "\"fp32\"",
      4,
      "bf16 world 4 micro 1 x 2 reduce=boundary average=sum *0.25 order=rank norm=flat grad=bf16>fp32>bf16 "
      "comm=fp32 scale=none overflow=count",
      1, 0, 1, ZB_TENSORS_GROUPS, ZB_CLIP_COMBINED },
    { "\"zero_optimization\": {\"stage\": 3, \"reduce_scatter\": false}, \"prescale_gradients\": true, "
      "\"gradient_predivide_factor\": 2",
      4,
      "fp32 world 4 micro 1 x 2 reduce=micro-batch average=/4 sum order=rank norm=partition-fp64 grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_SUB_GROUPS, ZB_CLIP_COMBINED },
    { "\"zero_optimization\": {\"stage\": 0}, \"prescale_gradients\": true", 4,
      "fp32 world 4 micro 1 x 2 reduce=boundary average=*0.25 sum order=rank norm=parameters-mean grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_PARAMETERS, ZB_CLIP_COEFFICIENT },
    { "\"zero_optimization\": {\"stage\": 0}, \"gradient_predivide_factor\": 2", 4,
      "fp32 world 4 micro 1 x 2 reduce=boundary average=*0.5 sum *0.5 order=rank norm=parameters-mean "
      "grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_PARAMETERS, ZB_CLIP_COEFFICIENT },
    { "\"zero_optimization\": {\"stage\": 1}, \"fp16\": {\"enabled\": true}", 2,
      "fp16 world 2 micro 2 x 2 reduce=boundary average=/2 sum order=rank norm=partition-fp32 grad=fp16 "
      "comm=fp16 scale=dynamic:65536/1000/2/1 overflow=skip",
      1, 0, 0, ZB_TENSORS_PARTITIONS, ZB_CLIP_COMBINED_FP32 },
    { "\"zero_optimization\": {\"stage\": 1}, \"fp16\": {\"enabled\": true}, \"data_types\": "
      "{\"grad_accum_dtype\": \"fp32\"}, \"prescale_gradients\": true",
      2,
      "fp16 world 2 micro 2 x 2 reduce=boundary average=none order=rank norm=partition-fp32 "
      "grad=fp32>fp16>fp32 "
      "comm=fp16 scale=dynamic:65536/1000/2/1 overflow=skip",
      1, 0, 0, ZB_TENSORS_PARTITIONS, ZB_CLIP_COMBINED_FP32 },
    { "\"zero_optimization\": {\"stage\": 1}, \"bf16\": {\"enabled\": true}, \"data_types\": "
      "{\"grad_accum_dtype\": \"fp32\"}",
      2,
      "bf16 world 2 micro 2 x 2 reduce=boundary average=sum *0.5 order=rank norm=parameters "
      "grad=fp32>bf16>fp32 "
      "comm=bf16 scale=none overflow=stop",
      1, 0, 0, ZB_TENSORS_PARTITIONS, ZB_CLIP_RECIPROCAL },
    { "\"zero_optimization\": {\"stage\": 1, \"reduce_scatter\": false}, \"gradient_predivide_factor\": 2", 4,
      "fp32 world 4 micro 1 x 2 reduce=boundary average=*0.5 sum *0.5 order=rank norm=partition-fp32 "
      "grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_PARTITIONS, ZB_CLIP_COMBINED_FP32 },
    { "\"zero_optimization\": {\"stage\": 2}, \"bf16\": {\"enabled\": true}", 2,
      "bf16 world 2 micro 2 x 2 reduce=micro-batch average=/2 sum order=rank norm=partition-fp32 grad=bf16 "
      "comm=bf16 scale=none overflow=skip",
      1, 0, 0, ZB_TENSORS_PARTITIONS, ZB_CLIP_COMBINED_FP32 },
    { "\"zero_optimization\": {\"stage\": 2}, \"bf16\": {\"enabled\": true, \"check_grad_overflow\": false}, "
      "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}",
      2,
      "bf16 world 2 micro 2 x 2 reduce=micro-batch average=/2 sum order=rank norm=partition-fp32 "
      "grad=bf16 comm=bf16 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_PARTITIONS, ZB_CLIP_COMBINED_FP32 },
    { "\"zero_optimization\": {\"stage\": 3}, \"bf16\": {\"enabled\": true}", 2,
      "bf16 world 2 micro 2 x 2 reduce=micro-batch average=/2 sum order=rank norm=partition-fp64 grad=bf16 "
      "comm=bf16 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_SUB_GROUPS, ZB_CLIP_COMBINED },
    { "\"zero_optimization\": {\"stage\": 3, \"reduce_scatter\": false}, \"gradient_predivide_factor\": 2", 4,
      "fp32 world 4 micro 1 x 2 reduce=micro-batch average=/2 /4 sum *2 order=rank norm=partition-fp64 "
      "grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_SUB_GROUPS, ZB_CLIP_COMBINED },
    { "\"zero_optimization\": {\"stage\": 3, \"reduce_scatter\": false}, \"gradient_predivide_factor\": 2", 2,
      "fp32 world 2 micro 2 x 2 reduce=micro-batch average=/2 /2 sum order=rank norm=partition-fp64 "
      "grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_SUB_GROUPS, ZB_CLIP_COMBINED },
    { "\"zero_optimization\": {\"stage\": 3, \"reduce_scatter\": false}, \"prescale_gradients\": true, "
      "\"gradient_predivide_factor\": 2",
      4,
      "fp32 world 4 micro 1 x 2 reduce=micro-batch average=/4 sum order=rank norm=partition-fp64 grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_SUB_GROUPS, ZB_CLIP_COMBINED },
    { "\"zero_optimization\": {\"stage\": 2}, \"gradient_allreduce_op\": \"sum\"", 2,
      "fp32 world 2 micro 2 x 2 reduce=micro-batch average=sum order=rank norm=partition-fp32 grad=fp32 "
      "comm=fp32 scale=none overflow=apply",
      1, 0, 0, ZB_TENSORS_PARTITIONS, ZB_CLIP_COMBINED_FP32 },
};

static void deepspeed_plan_of_each_stage(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(deepspeed_cases); i++) {
        const struct deepspeed_case *c = &deepspeed_cases[i];
        char text[1024];
        snprintf(text, sizeof text,
                 "{\"train_batch_size\": 8, \"gradient_accumulation_steps\": 2, " DEEPSPEED ", " OPTIMIZER
                 ", %s}",
                 c->members);
        zb_config *config = parse(text);
        zb_plan plan;
        if (zb_plan_derive(config, config->zero.stage, config->dtype, c->world, &plan) != ZB_OK)
            fail_msg("row %zu: %s", i, zb_error_message());
        zb_plan_describe(&plan, text, sizeof text);
        assert_int_equal(strncmp(text, "deepspeed-0.19.6 ", 17), 0);
        if (strcmp(text + 17, c->want) != 0) fail_msg("row %zu gives: %s", i, text);
        assert_int_equal(plan.loss_is_scaled, c->loss_is_scaled);
        assert_int_equal(plan.report_norm_by_next_scale, c->report_norm_by_next_scale);
        assert_int_equal(plan.unscale_by_next_scale, config->dtype == ZB_FP16);
        assert_int_equal(plan.hidden_first_step, c->hidden_first_step);
        assert_int_equal(plan.tensors, c->tensors);
        assert_int_equal(plan.clip, c->clip);
        assert_int_equal(plan.reshuffle, 0);
        assert_int_equal(plan.seed_dtype,
                         config->dtype == ZB_FP16 && config->zero.stage > 0 ? ZB_FP16 : ZB_FP32);
        zb_config_destroy(config);
    }
}

/* Keys that mean something under these semantics only. */
static void deepspeed_keys(void **state)
{
    (void)state;
    zb_config *config = parse("{" DEEPSPEED ", \"zero_optimization\": {\"stage\": 2, "
                              "\"round_robin_gradients\": \"yes\", \"sub_group_size\": 1e3}, "
                              "\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"torch_adam\": true}}}");
    assert_int_equal(config->zero.round_robin_gradients, 1);
    assert_int_equal(config->zero.sub_group_numel, 1000);
    assert_int_equal(config->optimizer.arithmetic, ZB_ARITHMETIC_TORCH_1);
    zb_config_destroy(config);
    config = parse("{\"zero_optimization\": {\"sub_group_size\": 1e300}}");
    assert_int_equal(config->zero.sub_group_numel, (uint64_t)1 << 53);
    zb_config_destroy(config);
    config = parse("{}");
    assert_int_equal(config->zero.sub_group_numel, 1000000000);
    assert_int_equal(config->optimizer.arithmetic, ZB_ARITHMETIC_PLAIN);
    zb_config_destroy(config);
}

static const struct derive_case {
    const char *text;
    int stage, world;
    zb_dtype dtype;
    zb_status status;
    const char *want;
} derive_cases[] = {
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", 4, 1, ZB_FP32, ZB_INVALID_ARGUMENT,
      "stage is 4, want 0 to 3" },
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", -1, 1, ZB_FP32, ZB_INVALID_ARGUMENT,
      "stage is -1, want 0 to 3" },
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", 0, 0, ZB_FP32, ZB_INVALID_CONFIG,
      "f.json: world size is 0, want at least 1" },
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", 0, 3, ZB_FP32, ZB_INVALID_CONFIG,
      "f.json: batch sizes do not fit: train_batch_size 8" },
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", 0, 1, ZB_INT32, ZB_INVALID_ARGUMENT,
      "dtype is int32, want fp32, fp16 or bf16" },
    { "{\"train_batch_size\": 8, \"prescale_gradients\": true, " OPTIMIZER "}", 2, 1, ZB_FP32,
      ZB_INVALID_CONFIG,
      "f.json: prescale_gradients: is true, want false at stage 2 with zero_optimization.reduce_scatter, as "
      "DeepSpeed demands" },
    { "{\"train_batch_size\": 8, \"gradient_predivide_factor\": 2, " OPTIMIZER "}", 3, 1, ZB_FP32,
      ZB_INVALID_CONFIG,
      "f.json: gradient_predivide_factor: is 2, want 1.0 at stage 3 with "
      "zero_optimization.reduce_scatter" },
    { "{\"train_batch_size\": 8, \"prescale_gradients\": true, " OPTIMIZER "}", 3, 1, ZB_FP32,
      ZB_INVALID_CONFIG, "f.json: prescale_gradients: is true, want false at stage 3 with" },
    { "{\"train_batch_size\": 8, \"bf16\": {\"enabled\": true}, \"data_types\": {\"grad_accum_dtype\": "
      "\"fp32\"}, \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}, " OPTIMIZER "}",
      0, 1, ZB_BF16, ZB_INVALID_CONFIG,
      "f.json: data_types.grad_accum_dtype: is fp32, want bf16 at stage 0, which the model runs in, as "
      "DeepSpeed" },
    { "{\"train_batch_size\": 8, \"data_types\": {\"grad_accum_dtype\": \"fp16\"}, " OPTIMIZER "}", 0, 1,
      ZB_BF16, ZB_INVALID_CONFIG,
      "f.json: data_types.grad_accum_dtype: is fp16, want fp32, or bf16, which the model runs in" },
    { "{\"train_batch_size\": 8, \"data_types\": {\"grad_accum_dtype\": \"fp16\"}, " OPTIMIZER "}", 0, 1,
      ZB_FP32, ZB_INVALID_CONFIG, "f.json: data_types.grad_accum_dtype: is fp16, want fp32" },
    { "{\"train_batch_size\": 8, \"fp16\": {\"loss_scale_window\": 0}, " OPTIMIZER "}", 1, 1, ZB_FP16,
      ZB_INVALID_CONFIG, "f.json: fp16: loss_scale_window is 0, want at least 1" },
    { "{\"train_batch_size\": 8, \"fp16\": {\"min_loss_scale\": 0}, " OPTIMIZER "}", 1, 1, ZB_FP16,
      ZB_INVALID_CONFIG, "f.json: fp16: min_loss_scale is 0, want a finite number above 0" },
    { "{\"train_batch_size\": 8}", 0, 1, ZB_FP32, ZB_INVALID_CONFIG, "f.json: optimizer: is missing" },
    { "{\"train_batch_size\": 8, \"gradient_allreduce_op\": \"SUM\", " OPTIMIZER "}", 3, 1, ZB_FP32,
      ZB_INVALID_CONFIG, "f.json: gradient_allreduce_op: is \"sum\", want \"mean\" at stage 3" },
};

static void underivable_plans(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(derive_cases); i++) {
        const struct derive_case *c = &derive_cases[i];
        zb_config *config = parse(c->text);
        zb_plan plan = { .world_size = -5 };
        assert_int_equal(zb_plan_derive(config, c->stage, c->dtype, c->world, &plan), c->status);
        assert_int_equal(plan.world_size, -5);
        if (strstr(zb_error_message(), c->want) == NULL)
            fail_msg("row %zu gives: %s\n  want: %s", i, zb_error_message(), c->want);
        zb_config_destroy(config);
    }
}

/* Each field makes two plans different, unless the optimizer does not look at it. */
static void every_field_counts(void **state)
{
    (void)state;
    zb_plan adam = { .world_size = 2, .micro_batch_size = 3, .accumulation_steps = 4, .clip_norm = 1.0 };
    adam.group_count = 1;
    adam.groups[0] = (zb_optimizer_config){
        .kind = ZB_OPTIMIZER_ADAM, .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99
    };
    zb_plan sgd = adam;
    sgd.groups[0].kind = ZB_OPTIMIZER_SGD;
    assert_true(zb_plan_equal(&adam, &adam));
    assert_false(zb_plan_equal(&adam, &sgd));

#define DIFFERS(plan, field, value)                                                                          \
    do {                                                                                                     \
        zb_plan other = plan;                                                                                \
        other.field = (value);                                                                               \
        assert_false(zb_plan_equal(&plan, &other));                                                          \
    } while (0)
#define SAME(plan, field, value)                                                                             \
    do {                                                                                                     \
        zb_plan other = plan;                                                                                \
        other.field = (value);                                                                               \
        assert_true(zb_plan_equal(&plan, &other));                                                           \
    } while (0)
    SAME(adam, semantics, ZB_SEMANTICS_DEEPSPEED_0_19_6);
    SAME(adam, quirks.norm_per_stage, 1);
    DIFFERS(adam, world_size, 1);
    DIFFERS(adam, micro_batch_size, 1);
    DIFFERS(adam, accumulation_steps, 1);
    DIFFERS(adam, param_dtype, ZB_BF16);
    DIFFERS(adam, grad_dtype, ZB_BF16);
    DIFFERS(adam, comm_dtype, ZB_BF16);
    DIFFERS(adam, reduce_when, ZB_REDUCE_EVERY_MICRO_BATCH);
    DIFFERS(adam, local_dtype, ZB_BF16);
    DIFFERS(adam, bucket_dtype, ZB_BF16);
    DIFFERS(adam, seed_dtype, ZB_BF16);
    DIFFERS(adam, averaging.inside, 1);
    DIFFERS(adam, averaging.absent, 1);
    DIFFERS(adam, averaging.in_bucket, ((zb_factor){ ZB_FACTOR_DIVIDE, 2 }));
    DIFFERS(adam, averaging.before[0], ((zb_factor){ ZB_FACTOR_DIVIDE, 2 }));
    DIFFERS(adam, averaging.before[1], ((zb_factor){ ZB_FACTOR_DIVIDE, 2 }));
    DIFFERS(adam, averaging.after, ((zb_factor){ ZB_FACTOR_MULTIPLY, 2 }));
    SAME(adam, averaging.after, ((zb_factor){ ZB_FACTOR_NONE, 2 }));
    DIFFERS(adam, reshuffle, 1);
    DIFFERS(adam, loss_is_scaled, 1);
    SAME(adam, tensors, ZB_TENSORS_GROUPS);
    SAME(adam, round_robin, 1);
    SAME(adam, sub_group_numel, 1);
    static const zb_orders ring = { .of = {
                                        [ZB_COLLECTIVE_REDUCE] = { .algorithm = ZB_ALGORITHM_MPI_LINEAR } } };
    static const zb_orders rank = { 0 };
    DIFFERS(adam, orders, &ring);
    SAME(adam, orders, &rank);
    DIFFERS(adam, norm, (zb_norm_method)7);
    DIFFERS(adam, clip_norm, 0.0);
    DIFFERS(adam, hidden_first_step, 1);
    DIFFERS(adam, unscale_by_next_scale, 1);
    DIFFERS(adam, report_norm_by_next_scale, 1);
    DIFFERS(adam, clip, ZB_CLIP_COEFFICIENT);
    DIFFERS(adam, groups[0].beta1, 0.2);

    /* Only what the scaler's kind looks at. */
    DIFFERS(adam, scaler.kind, ZB_SCALER_STATIC);
    SAME(adam, scaler.initial_scale, 8);
    DIFFERS(adam, overflow, ZB_OVERFLOW_SKIP);

    /* What lies where, only as far as the norm or the optimizer looks. */
    zb_plan partitions = adam, sub_groups = adam, vectors = adam;
    partitions.norm = ZB_NORM_PARTITION_FP32;
    sub_groups.norm = ZB_NORM_PARTITION_FP64;
    DIFFERS(partitions, round_robin, 1);
    SAME(partitions, sub_group_numel, 1);
    DIFFERS(sub_groups, sub_group_numel, 1);
    SAME(sub_groups, round_robin, 1);
    vectors.groups[0].arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU;
    vectors.groups[0].vector_width = 8;
    DIFFERS(vectors, tensors, ZB_TENSORS_GROUPS);
    vectors.tensors = ZB_TENSORS_PARTITIONS;
    DIFFERS(vectors, round_robin, 1);
    SAME(vectors, sub_group_numel, 1);
    vectors.tensors = ZB_TENSORS_SUB_GROUPS;
    DIFFERS(vectors, sub_group_numel, 1);

    /* Among one rank there is nothing to average. */
    zb_plan alone = adam;
    alone.world_size = 1;
    SAME(alone, averaging.inside, 1);
    SAME(alone, averaging.absent, 1);

    zb_plan scaled = adam, stage0 = adam, fixed = adam;
    scaled.scaler.kind = ZB_SCALER_DYNAMIC;
    stage0.scaler.kind = ZB_SCALER_DYNAMIC_STAGE0;
    fixed.scaler.kind = ZB_SCALER_STATIC;
    DIFFERS(fixed, scaler.initial_scale, 8);
    SAME(fixed, scaler.min_scale, 8);
    SAME(fixed, scaler.window, 8);
    DIFFERS(scaled, scaler.kind, ZB_SCALER_DYNAMIC_STAGE0);
    DIFFERS(scaled, scaler.initial_scale, 8);
    DIFFERS(scaled, scaler.min_scale, 8);
    DIFFERS(scaled, scaler.window, 8);
    DIFFERS(scaled, scaler.hysteresis, 8);
    DIFFERS(scaled, scaler.consecutive_hysteresis, 1);
    DIFFERS(stage0, scaler.min_scale, 8);
    DIFFERS(stage0, scaler.window, 8);
    SAME(stage0, scaler.hysteresis, 8);

    char text[256];
    zb_plan_describe(&stage0, text, sizeof text);
    assert_non_null(strstr(text, "scale=stage0:0/0/0 overflow=apply"));
    stage0.scaler.kind = (zb_scaler_kind)9;
    zb_plan_describe(&stage0, text, sizeof text);
    assert_non_null(strstr(text, "scale=? "));

    stage0.overflow = (zb_overflow_rule)7;
    stage0.norm = (zb_norm_method)99;
    zb_plan_describe(&stage0, text, sizeof text);
    assert_non_null(strstr(text, "order=rank norm=? "));
    assert_non_null(strstr(text, "overflow=?"));

    zb_plan one = adam;
    one.accumulation_steps = 1;
    SAME(one, reduce_when, ZB_REDUCE_EVERY_MICRO_BATCH);
}

/* PyTorch's DistributedDataParallel: no config can name it, only a recorded run. */
static const struct ddp_case {
    const char *members;
    int stage;
    zb_status status;
    const char *words;
} ddp_cases[] = {
    { "", 0, ZB_OK,
      "pytorch-ddp fp32 world 4 micro 1 x 2 reduce=boundary average=*0.25 sum order=rank norm=pytorch "
      "grad=fp32 "
      "comm=fp32 scale=none overflow=apply" },
    { "\"zerobit\": {\"quirks\": {\"norm_per_stage\": true, \"clip_per_stage\": true}},", 0, ZB_OK,
      "norm=pytorch grad=fp32" },
    { "", 2, ZB_INVALID_CONFIG, "stage is 2, want 0 under pytorch-ddp semantics" },
    { "\"bf16\": {\"enabled\": true},", 0, ZB_UNSUPPORTED, "dtype is bf16, want fp32 under pytorch-ddp" },
    { "\"prescale_gradients\": true,", 0, ZB_INVALID_CONFIG,
      "prescale_gradients: is true, want it left out" },
    { "\"gradient_predivide_factor\": 2,", 0, ZB_INVALID_CONFIG,
      "gradient_predivide_factor: is not 1, want" },
    { "\"gradient_allreduce_op\": \"sum\",", 0, ZB_INVALID_CONFIG,
      "gradient_allreduce_op: is \"sum\", want" },
    { "\"communication_data_type\": \"fp16\",", 0, ZB_INVALID_CONFIG,
      "communication_data_type: is fp16, want" },
};

static void ddp_plans(void **state)
{
    (void)state;
    zb_semantics semantics = ZB_SEMANTICS_STANDARD;
    assert_int_equal(zb_semantics_parse("pytorch-ddp", &semantics), 0);
    for (size_t i = 0; i < COUNT(ddp_cases); i++) {
        const struct ddp_case *c = &ddp_cases[i];
        char text[1024];
        snprintf(text, sizeof text,
                 "{\"train_batch_size\": 8, \"gradient_accumulation_steps\": 2, %s " OPTIMIZER "}",
                 c->members);
        zb_config *config = parse(text);
        config->semantics = ZB_SEMANTICS_PYTORCH_DDP;
        zb_plan plan;
        const zb_status status = zb_plan_derive(config, c->stage, config->dtype, 4, &plan);
        assert_int_equal(status, c->status);
        if (status == ZB_OK) zb_plan_describe(&plan, text, sizeof text);
        const char *found = status == ZB_OK ? text : zb_error_message();
        if (strstr(found, c->words) == NULL) fail_msg("row %zu gives: %s", i, found);
        if (status == ZB_OK) assert_int_equal(plan.clip, ZB_CLIP_RECIPROCAL);
        zb_config_destroy(config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batch_triangle),
        cmocka_unit_test(standard_plan_of_each_stage),
        cmocka_unit_test(plan_of_each_precision),
        cmocka_unit_test(scaler_rule_of_each_stage),
        cmocka_unit_test(deepspeed_plan_of_each_stage),
        cmocka_unit_test(ddp_plans),
        cmocka_unit_test(deepspeed_keys),
        cmocka_unit_test(underivable_plans),
        cmocka_unit_test(every_field_counts),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
