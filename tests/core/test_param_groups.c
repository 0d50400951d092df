/* Parameter groups: read from a config, given to a model's parameters, and their schedules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include <zerobit/config.h>
#include <zerobit/memory.h>
#include <zerobit/schedule.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

#define ADAM                      "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.5, \"weight_decay\": 0.25}}"
#define SGD                       "\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 0.5}}"
#define CONFIG(optimizer, groups) "{" optimizer ", \"zerobit\": {\"param_groups\": " groups "}}"

static zb_config *parse(const char *text)
{
    zb_config *config = NULL;
    if (zb_config_parse(text, strlen(text), "f.json", &config) != ZB_OK) fail_msg("%s", zb_error_message());
    return config;
}

static void values(void **state)
{
    (void)state;
    zb_config *config = parse("{}");
    assert_int_equal(config->group_count, 1);
    assert_int_equal(config->groups[0].pattern_count, 0);
    zb_config_destroy(config);

    config = parse(
        CONFIG(ADAM, "[{\"params\": [\"*.bias\", \"norm?.*\"], \"weight_decay\": 0, \"betas\": [0.5, 0.75]}, "
                     "{\"lr\": 2, \"eps\": 0.125}]"));
    assert_int_equal(config->group_count, 2);
    const zb_param_group *g = config->groups;
    assert_int_equal(g[0].pattern_count, 2);
    assert_string_equal(g[0].patterns[1], "norm?.*");
    assert_true(g[0].optimizer.lr == 0.5 && g[0].optimizer.weight_decay == 0.0);
    assert_true(g[0].optimizer.beta1 == 0.5 && g[0].optimizer.beta2 == 0.75);
    assert_true(g[0].optimizer.eps == 1e-8 && g[0].schedule.base_lr == 0.5);
    assert_int_equal(g[1].pattern_count, 0);
    assert_true(g[1].optimizer.lr == 2.0 && g[1].optimizer.weight_decay == 0.25);
    assert_true(g[1].optimizer.beta1 == 0.9 && g[1].optimizer.eps == 0.125 && g[1].schedule.base_lr == 2.0);
    zb_config_destroy(config);

    config = parse(CONFIG(SGD, "[{\"momentum\": 0.5, \"dampening\": -1}]"));
    assert_true(config->groups[0].optimizer.momentum == 0.5 && config->groups[0].optimizer.dampening == -1.0);
    zb_config_destroy(config);
}

static const struct bad_case {
    const char *text, *want;
} bad_cases[] = {
    { CONFIG(ADAM, "{}"), "zerobit.param_groups: is {}, want an array" },
    { CONFIG(ADAM, "[]"), "zerobit.param_groups: is [], want 1 to 16 groups" },
    { CONFIG(ADAM, "[{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]"), "want 1 to 16 groups" },
    { CONFIG(ADAM, "[{}, {\"lr\": 1}]"), "want at most one group without params" },
    { CONFIG(ADAM, "[5]"), "zerobit.param_groups[0]: is 5, want an object" },
    { CONFIG(ADAM, "[{\"params\": []}]"),
      "zerobit.param_groups[0].params: is [], want patterns of parameter names" },
    { CONFIG(ADAM, "[{\"params\": [1]}]"), "zerobit.param_groups[0].params[0]: is 1, want a string" },
    { CONFIG(ADAM, "[{\"params\": \"*\"}]"), "zerobit.param_groups[0].params: is \"*\", want an array" },
    { CONFIG(ADAM, "[{\"learning_rate\": 1}]"),
      "zerobit.param_groups[0].learning_rate: is 1, want params, or a" },
    { CONFIG(ADAM, "[{\"momentum\": 0.9}]"),
      "momentum: is 0.9, want it left out: the optimizer has no such" },
    { CONFIG(SGD, "[{\"eps\": 0.9}]"), "eps: is 0.9, want it left out: the optimizer has no such" },
    { CONFIG(SGD, "[{\"betas\": [0.9, 0.9]}]"),
      "betas: is [0.9,0.9], want it left out: the optimizer has no such" },
    { "{\"optimizer\": {\"type\": \"Adagrad\", \"params\": {}}, \"zerobit\": {\"optimizer_arithmetic\": "
      "\"deepspeed-cpu\", \"param_groups\": [{\"lr_decay\": 0.5}]}}",
      "lr_decay: is 0.5, want it left out: the optimizer has no such" },
    { CONFIG(ADAM, "[{\"lr\": -1}]"), "zerobit.param_groups[0].lr: is -1, want a number not below 0" },
    { CONFIG(ADAM, "[{\"betas\": [1, 0]}]"), "zerobit.param_groups[0].betas[0]: is 1, want a number from 0" },
    { "{\"zerobit\": {\"param_groups\": [{}]}}",
      "want it left out: there is no optimizer to give groups to" },
    { "{" ADAM ", \"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_max_lr\": [1, 2]}}}",
      "scheduler.params.warmup_max_lr: is [1,2], want one rate for each parameter group: there is 1" },
    { "{" ADAM ", \"zerobit\": {\"param_groups\": [{\"params\": [\"a\"]}, {}]}, \"scheduler\": {\"type\": "
      "\"WarmupLR\", "
      "\"params\": {\"warmup_max_lr\": [1, 2, 3]}}}",
      "scheduler.params.warmup_max_lr: is [1,2,3], want one rate for each parameter group: there are 2" },
};

static void refuses(void **state)
{
    (void)state;
    const uint64_t live = zb_alloc_get_stats().live;
    for (size_t i = 0; i < COUNT(bad_cases); i++) {
        zb_config *config = NULL;
        const char *text = bad_cases[i].text;
        assert_int_equal(zb_config_parse(text, strlen(text), "f.json", &config), ZB_INVALID_CONFIG);
        if (strstr(zb_error_message(), bad_cases[i].want) == NULL)
            fail_msg("%s\n  gives: %s\n  want:  %s", text, zb_error_message(), bad_cases[i].want);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
}

/* Each group's own rate: of the optimizer, of the group, or from a list of the scheduler. */
static void schedules(void **state)
{
    (void)state;
#define GROUPS                                                                                               \
    "\"zerobit\": {\"param_groups\": [{\"params\": [\"a\"], \"lr\": 4}, {\"params\": [\"b\"]}, {\"lr\": "    \
    "1}]}"
    static const struct row {
        const char *scheduler;
        int steps;
        double want[3];
    } rows[] = {
        { "\"steps_per_print\": 1", 3, { 4, 0.5, 1 } },
        { "\"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_num_steps\": 2, \"warmup_type\": "
          "\"linear\"}}",
          2,
          { 2, 0.25, 0.5 } },
        { "\"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_max_lr\": [1, 2, 3], "
          "\"warmup_num_steps\": 2, "
          "\"warmup_type\": \"linear\"}}",
          2,
          { 0.5, 1, 1.5 } },
        { "\"scheduler\": {\"type\": \"WarmupCosineLR\", \"params\": {\"total_num_steps\": 2, "
          "\"warmup_num_steps\": 2, "
          "\"warmup_type\": \"linear\"}}",
          2,
          { 2, 0.25, 0.5 } },
        { "\"scheduler\": {\"type\": \"LRRangeTest\", \"params\": {\"lr_range_test_min_lr\": [0.5, 0.25, "
          "8]}}",
          0,
          { 0.5, 0.25, 8 } },
        { "\"scheduler\": {\"type\": \"OneCycle\", \"params\": {\"cycle_min_lr\": 0.5, \"cycle_max_lr\": 1}}",
          0,
          { 0.5, 0.5, 0.5 } },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[1024];
        snprintf(text, sizeof text, "{" ADAM ", " GROUPS ", %s}", rows[i].scheduler);
        zb_config *config = parse(text);
        assert_int_equal(config->group_count, 3);
        for (int g = 0; g < 3; g++) {
            zb_schedule schedule;
            assert_int_equal(zb_schedule_init(&schedule, &config->groups[g].schedule), ZB_OK);
            for (int s = 0; s < rows[i].steps; s++) zb_schedule_step(&schedule);
            if (zb_schedule_lr(&schedule) != rows[i].want[g])
                fail_msg("row %zu, group %d: %g, want %g", i, g, zb_schedule_lr(&schedule), rows[i].want[g]);
        }
        zb_config_destroy(config);
    }
}

/* The notes of a section that every group reads come once. */
static void notes_once(void **state)
{
    (void)state;
    zb_config *config = parse("{" ADAM ", " GROUPS
                              ", \"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_type\": "
                              "\"cosine\"}}}");
    assert_int_equal(config->note_count, 1);
    zb_config_destroy(config);
}

/* cifar10-net: conv1, conv2, fc1, fc2, fc3, each with weight and bias. */
static const struct assign_case {
    const char *groups;
    int want[10];
    const char *error;
} assign_cases[] = {
    { "[{}]", { 0 }, NULL },
    { "[{\"params\": [\"*.bias\"]}, {}]", { 1, 0, 1, 0, 1, 0, 1, 0, 1, 0 }, NULL },
    { "[{}, {\"params\": [\"fc*\"]}]", { 0, 0, 0, 0, 1, 1, 1, 1, 1, 1 }, NULL },
    { "[{\"params\": [\"fc1.*\"]}, {\"params\": [\"fc?.weight\"]}, {}]",
      { 2, 2, 2, 2, 0, 0, 1, 2, 1, 2 },
      NULL },
    { "[{\"params\": [\"*.bias\"]}]", { 0 }, "no group has parameter conv1.weight of model cifar10-net" },
    { "[{\"params\": [\"fc9.*\"]}, {}]",
      { 0 },
      "zerobit.param_groups[0]: has no trainable parameter of model cifar10-net" },
    { "[{\"params\": [\"*\"]}, {}]", { 0 }, "zerobit.param_groups[1]: has no trainable parameter" },
};

static void assigns(void **state)
{
    (void)state;
    zb_model *model;
    assert_int_equal(zb_model_open("cifar10-net", &model), ZB_OK);
    assert_int_equal(model->param_count, 10);
    for (size_t i = 0; i < COUNT(assign_cases); i++) {
        const struct assign_case *c = &assign_cases[i];
        char text[512];
        snprintf(text, sizeof text, "{" ADAM ", \"zerobit\": {\"param_groups\": %s}}", c->groups);
        zb_config *config = parse(text);
        int got[10];
        zb_status status = zb_config_assign_groups(config, model, got);
        if (c->error != NULL) {
            assert_int_equal(status, ZB_INVALID_CONFIG);
            if (strstr(zb_error_message(), c->error) == NULL)
                fail_msg("row %zu gives: %s", i, zb_error_message());
        } else {
            assert_int_equal(status, ZB_OK);
            assert_memory_equal(got, c->want, sizeof got);
        }
        zb_config_destroy(config);
    }
    zb_model_destroy(model);
}

static void every_allocation_fails(void **state)
{
    (void)state;
    const char *text = CONFIG(ADAM, "[{\"params\": [\"a\", \"b\"]}, {}]");
    const uint64_t live = zb_alloc_get_stats().live;
    for (int n = 0;; n++) {
        zb_config *config = NULL;
        zb_alloc_fail_at(n);
        zb_status status = zb_config_parse(text, strlen(text), "f.json", &config);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        if (status == ZB_OK) {
            zb_config_destroy(config);
            assert_false(fired);
            break;
        }
        assert_int_equal(status, ZB_NO_MEMORY);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),     cmocka_unit_test(refuses), cmocka_unit_test(schedules),
        cmocka_unit_test(notes_once), cmocka_unit_test(assigns), cmocka_unit_test(every_allocation_fails),
    };
    return cmocka_run_group_tests_name("param_groups", tests, NULL, NULL);
}
