/* The batch triangle by DeepSpeed's own vectors; plans derived, compared and named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include <zerobit/config.h>

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

#define OPTIMIZER "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.01}}"

static void standard_plan_of_each_stage(void **state)
{
    (void)state;
    zb_config *config = parse("{\"train_batch_size\": 32, \"train_micro_batch_size_per_gpu\": 4, " OPTIMIZER
                              ", \"gradient_clipping\": 0.25}");
    static const char *const want[ZB_STAGE_COUNT] = {
        "standard fp32 world 4 micro 4 x 2 reduce=boundary average=inside order=rank norm=exact",
        "standard fp32 world 4 micro 4 x 2 reduce=boundary average=inside order=rank norm=exact",
        "standard fp32 world 4 micro 4 x 2 reduce=micro-batch average=inside order=rank norm=exact",
        "standard fp32 world 4 micro 4 x 2 reduce=micro-batch average=inside order=rank norm=exact",
    };
    zb_plan plans[ZB_STAGE_COUNT];
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        assert_int_equal(zb_plan_derive(config, stage, ZB_FP32, 4, &plans[stage]), ZB_OK);
        char text[256];
        zb_plan_describe(&plans[stage], text, sizeof text);
        assert_string_equal(text, want[stage]);
        assert_true(plans[stage].clip_norm == 0.25);
        assert_true(plans[stage].optimizer.lr == 0.01);
        assert_int_equal(plans[stage].grad_dtype, ZB_FP32);
        assert_int_equal(plans[stage].comm_dtype, ZB_FP32);
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
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", 0, 1, ZB_FP16, ZB_UNSUPPORTED, "--dtypes fp32" },
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", 0, 1, ZB_BF16, ZB_UNSUPPORTED,
      "training in bf16 is not supported yet" },
    { "{\"train_batch_size\": 8, " OPTIMIZER "}", 0, 1, ZB_INT32, ZB_INVALID_ARGUMENT,
      "dtype is int32, want fp32" },
    { "{\"train_batch_size\": 8}", 0, 1, ZB_FP32, ZB_INVALID_CONFIG, "f.json: optimizer: is missing" },
    { "{\"train_batch_size\": 8, \"gradient_allreduce_op\": \"SUM\", " OPTIMIZER "}", 3, 1, ZB_FP32,
      ZB_INVALID_CONFIG, "f.json: gradient_allreduce_op: is \"sum\", want \"mean\" at stage 3" },
    { "{\"train_batch_size\": 8, \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}, " OPTIMIZER "}", 0, 1,
      ZB_FP32, ZB_UNSUPPORTED,
      "f.json: zerobit.semantics: is \"deepspeed-0.19.6\", want \"standard\": not supported yet" },
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
    adam.optimizer = (zb_optimizer_config){
        .kind = ZB_OPTIMIZER_ADAM, .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99
    };
    zb_plan sgd = adam;
    sgd.optimizer.kind = ZB_OPTIMIZER_SGD;
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
    DIFFERS(adam, semantics, ZB_SEMANTICS_DEEPSPEED_0_19_6);
    DIFFERS(adam, world_size, 1);
    DIFFERS(adam, micro_batch_size, 1);
    DIFFERS(adam, accumulation_steps, 1);
    DIFFERS(adam, param_dtype, ZB_BF16);
    DIFFERS(adam, grad_dtype, ZB_BF16);
    DIFFERS(adam, comm_dtype, ZB_BF16);
    DIFFERS(adam, reduce_when, ZB_REDUCE_EVERY_MICRO_BATCH);
    DIFFERS(adam, average, ZB_SUM_ONLY);
    DIFFERS(adam, order, (zb_order)7);
    DIFFERS(adam, norm, (zb_norm_method)7);
    DIFFERS(adam, clip_norm, 0.0);
    DIFFERS(adam, optimizer.lr, 0.2);
    DIFFERS(adam, optimizer.weight_decay, 0.2);
    DIFFERS(adam, optimizer.beta1, 0.2);
    DIFFERS(adam, optimizer.beta2, 0.2);
    DIFFERS(adam, optimizer.eps, 0.2);
    DIFFERS(adam, optimizer.bias_correction, 1);
    DIFFERS(adam, optimizer.decay_mode, ZB_DECAY_DECOUPLED);
    SAME(adam, optimizer.momentum, 0.2);
    SAME(adam, optimizer.nesterov, 1);
    DIFFERS(sgd, optimizer.momentum, 0.2);
    DIFFERS(sgd, optimizer.dampening, 0.2);
    DIFFERS(sgd, optimizer.nesterov, 1);
    DIFFERS(sgd, optimizer.weight_decay, 0.2);
    SAME(sgd, optimizer.beta1, 0.2);
    zb_plan one = adam;
    one.accumulation_steps = 1;
    SAME(one, reduce_when, ZB_REDUCE_EVERY_MICRO_BATCH);
    assert_string_equal(zb_order_name(ZB_ORDER_RANK), "rank");
    assert_string_equal(zb_order_name((zb_order)7), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batch_triangle),
        cmocka_unit_test(standard_plan_of_each_stage),
        cmocka_unit_test(underivable_plans),
        cmocka_unit_test(every_field_counts),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
