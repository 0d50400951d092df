/* Learning-rate schedules against the sequences that DeepSpeed's own code gave, in hex-exact doubles. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <zerobit/schedule.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define WARMUP(min, max, steps, shape)                                                                       \
    {                                                                                                        \
        .kind = ZB_SCHEDULE_WARMUP_LR, .base_lr = 0.5, .warmup_min_lr = (min), .warmup_max_lr = (max),       \
        .warmup_num_steps = (steps), .warmup_type = (shape)                                                  \
    }

/* Rates of the optimizer steps `at`, counted from 0. */
static const struct sequence {
    const char *name;
    zb_schedule_config config;
    size_t count;
    int64_t at[10];
    double lr[10];
} sequences[] = {
    { "constant", { .kind = ZB_SCHEDULE_CONSTANT, .base_lr = 0.3 }, 3, { 0, 1, 1000 }, { 0.3, 0.3, 0.3 } },
    { "log, 5 steps",
      WARMUP(0, 1e-3, 5, ZB_WARMUP_LOG),
      7,
      { 0, 1, 2, 3, 4, 5, 6 },
      { 0, 0, 0.00043067655807339306, 0.0006826061944859854, 0.0008613531161467861, 0.001, 0.001 } },
    { "linear, 5 steps",
      WARMUP(0, 1e-3, 5, ZB_WARMUP_LINEAR),
      8,
      { 0, 1, 2, 3, 4, 5, 6, 7 },
      { 0, 0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001, 0.001 } },
    { "one step counts as two",
      WARMUP(0.01, 0.1, 1, ZB_WARMUP_LOG),
      4,
      { 0, 1, 2, 3 },
      { 0.01, 0.01, 0.1, 0.1 } },
    { "the CIFAR example",
      WARMUP(0, 1e-3, 1000, ZB_WARMUP_LOG),
      10,
      { 0, 1, 2, 3, 10, 100, 500, 998, 999, 1000 },
      { 0, 0, 0.00010034333188799373, 0.0001590404182398875, 0.0003333333333333334, 0.0006666666666666668,
        0.0008996566681120063, 0.0009997101804291237, 0.0009998551627419942, 0.001 } },
};

static void golden_sequences(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(sequences); i++) {
        const struct sequence *c = &sequences[i];
        zb_schedule schedule;
        assert_int_equal(zb_schedule_init(&schedule, &c->config), ZB_OK);
        int64_t step = 0;
        for (size_t k = 0; k < c->count; k++) {
            for (; step < c->at[k]; step++) zb_schedule_step(&schedule);
            double got = zb_schedule_lr(&schedule);
            if (memcmp(&got, &c->lr[k], sizeof got) != 0)
                fail_msg("%s: step %d uses %.17g, want %.17g", c->name, (int)c->at[k], got, c->lr[k]);
        }
    }
}

static const struct refusal {
    zb_schedule_config config;
    const char *want;
} refusals[] = {
    { WARMUP(0, 1, 0, ZB_WARMUP_LOG), "warmup_num_steps is 0, want at least 1" },
    { WARMUP(0, 1, -5, ZB_WARMUP_LOG), "warmup_num_steps is -5, want at least 1" },
    { WARMUP(NAN, 1, 5, ZB_WARMUP_LOG), "warmup_min_lr is nan, want a finite number" },
    { WARMUP(0, INFINITY, 5, ZB_WARMUP_LOG), "warmup_max_lr is inf, want a finite number" },
    { WARMUP(0, 1, 5, (zb_warmup_type)7), "warmup_type is 7, want log or linear" },
    { { .kind = ZB_SCHEDULE_CONSTANT, .base_lr = INFINITY }, "lr is inf, want a finite number" },
    { { .kind = (zb_schedule_kind)9 }, "schedule kind is 9, want a known one" },
};

static void refuses(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refusals); i++) {
        zb_schedule schedule = { .lr = 42 };
        assert_int_equal(zb_schedule_init(&schedule, &refusals[i].config), ZB_INVALID_CONFIG);
        assert_string_equal(zb_error_message(), refusals[i].want);
        assert_true(schedule.lr == 42);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(golden_sequences), cmocka_unit_test(refuses) };
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
