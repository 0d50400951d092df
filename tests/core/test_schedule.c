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

#define DECAY(min, max, steps, total, shape)                                                                 \
    {                                                                                                        \
        .kind = ZB_SCHEDULE_WARMUP_DECAY_LR, .warmup_min_lr = (min), .warmup_max_lr = (max),                 \
        .warmup_num_steps = (steps), .total_num_steps = (total), .warmup_type = (shape)                      \
    }
#define COSINE(min, cos_min, steps, total, shape)                                                            \
    {                                                                                                        \
        .kind = ZB_SCHEDULE_WARMUP_COSINE_LR, .base_lr = 1e-3, .warmup_min_ratio = (min),                    \
        .cos_min_ratio = (cos_min), .warmup_num_steps = (steps), .total_num_steps = (total),                 \
        .warmup_type = (shape)                                                                               \
    }
#define RANGE_TEST(min, size, rate, stairs)                                                                  \
    {                                                                                                        \
        .kind = ZB_SCHEDULE_LR_RANGE_TEST, .lr_range_test_min_lr = (min), .lr_range_test_step_size = (size), \
        .lr_range_test_step_rate = (rate), .lr_range_test_staircase = (stairs)                               \
    }
#define ONE_CYCLE(first, second, stairs1, stairs2, decay_steps, lr_decay, mom_decay)                         \
    {                                                                                                        \
        .kind = ZB_SCHEDULE_ONE_CYCLE, .cycle_min_lr = 1e-3, .cycle_max_lr = 1e-2,                           \
        .cycle_first_step_size = (first), .cycle_second_step_size = (second),                                \
        .cycle_first_stair_count = (stairs1), .cycle_second_stair_count = (stairs2),                         \
        .decay_step_size = (decay_steps), .decay_lr_rate = (lr_decay), .cycle_momentum = 1,                  \
        .cycle_min_mom = 0.8, .cycle_max_mom = 0.9, .decay_mom_rate = (mom_decay), .cycle_start_mom = 0.8,   \
        .cycle_beta2 = 0.99                                                                                  \
    }
#define EACH_STEP                                                                                            \
    {                                                                                                        \
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13                                                         \
    }
#define STEPS_MAX 14

/* Rates of the optimizer steps `at`, counted from 0. */
static const struct sequence {
    const char *name;
    zb_schedule_config config;
    size_t count;
    int64_t at[STEPS_MAX];
    double lr[STEPS_MAX];
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
    { "log by the reciprocal, as Python's formula rounds",
      WARMUP(0, 1, 6, ZB_WARMUP_LOG),
      8,
      EACH_STEP,
      { 0, 0, 0.3868528072345415, 0.6131471927654584, 0.773705614469083, 0.898244401703927,
        0.9999999999999999, 1 } },
    { "the CIFAR example",
      WARMUP(0, 1e-3, 1000, ZB_WARMUP_LOG),
      10,
      { 0, 1, 2, 3, 10, 100, 500, 998, 999, 1000 },
      { 0, 0, 0.00010034333188799373, 0.0001590404182398875, 0.0003333333333333334, 0.0006666666666666668,
        0.0008996566681120063, 0.0009997101804291237, 0.0009998551627419942, 0.001 } },
    { "decay, linear",
      DECAY(0, 1e-3, 4, 10, ZB_WARMUP_LINEAR),
      13,
      EACH_STEP,
      { 0, 0, 0.00025, 0.0005, 0.00075, 0.001, 0.0008333333333333334, 0.0006666666666666666, 0.0005,
        0.0003333333333333333, 0.00016666666666666666, 0, 0 } },
    { "decay, log",
      DECAY(1e-4, 1e-3, 4, 10, ZB_WARMUP_LOG),
      13,
      EACH_STEP,
      { 0.0001, 0.0001, 0.00055, 0.0008132331253245204, 0.001, 0.001, 0.0008500000000000001, 0.0007, 0.00055,
        0.00039999999999999996, 0.00025, 0.0001, 0.0001 } },
    { "decay that warms up longer than it lasts",
      DECAY(0, 1, 4, 3, ZB_WARMUP_LINEAR),
      7,
      EACH_STEP,
      { 0, 0, 0.25, 0.5, 0.75, 0, 0 } },
    { "cosine, linear",
      COSINE(0, 1e-4, 4, 10, ZB_WARMUP_LINEAR),
      12,
      EACH_STEP,
      { 0, 0, 0.00025, 0.0005, 0.00075, 0.0009330194006220301, 0.000750025, 0.00050005, 0.0002500750000000001,
        6.708059937796987e-05, 1.0000000000000001e-07, 1.0000000000000001e-07 } },
    { "cosine, log",
      COSINE(0.1, 0.1, 4, 10, ZB_WARMUP_LOG),
      11,
      EACH_STEP,
      { 0, 0.0001, 0.00055, 0.0008132331253245203, 0.001, 0.0009397114317029974, 0.0007750000000000001,
        0.00055, 0.00032500000000000015, 0.00016028856829700258, 0.0001 } },
    { "cosine that warms up longer than it lasts",
      COSINE(0, 0.5, 4, 3, ZB_WARMUP_LINEAR),
      7,
      EACH_STEP,
      { 0, 0, 0.00025, 0.0005, 0.00075, 0.0005, 0.0005 } },
    { "range test",
      RANGE_TEST(1e-3, 3, 1, 0),
      7,
      EACH_STEP,
      { 0.001, 0.0013333333333333333, 0.0016666666666666666, 0.002, 0.002333333333333333,
        0.002666666666666667, 0.003 } },
    { "range test in stairs",
      RANGE_TEST(1e-3, 3, 1, 1),
      8,
      EACH_STEP,
      { 0.001, 0.001, 0.001, 0.002, 0.002, 0.002, 0.003, 0.003 } },
    { "one cycle, uneven halves",
      ONE_CYCLE(3, 6, 0, 0, 0, 0, 0),
      11,
      EACH_STEP,
      { 0.001, 0.004000000000000002, 0.007000000000000004, 0.009999999999999998, 0.0085, 0.006999999999999999,
        0.005500000000000001, 0.004000000000000002, 0.0025000000000000005, 0.001, 0.001 } },
    { "one cycle in stairs",
      ONE_CYCLE(4, 4, 2, 2, 0, 0, 0),
      9,
      EACH_STEP,
      { 0.001, 0.001, 0.0055000000000000005, 0.0055000000000000005, 0.010000000000000002,
        0.0055000000000000005, 0.0055000000000000005, 0.001, 0.001 } },
    { "one cycle, stairs down only",
      ONE_CYCLE(4, 4, 0, 1, 0, 0, 0),
      8,
      EACH_STEP,
      { 0.001, 0.0032500000000000003, 0.0055000000000000005, 0.007750000000000001, 0.010000000000000002,
        0.001, 0.001, 0.001 } },
    { "one cycle without a second half",
      ONE_CYCLE(2, 0, 0, 0, 0, 0, 0),
      4,
      EACH_STEP,
      { 0.001, 0.0055000000000000005, 0.001, 0.001 } },
    { "one cycle, decay without a rate",
      ONE_CYCLE(1, 1, 0, 0, 2, 0, 0),
      5,
      EACH_STEP,
      { 0.001, 0.010000000000000002, 0.001, 0.001, 0.001 } },
    { "one cycle, a decay rate without a step size",
      ONE_CYCLE(1, 1, 0, 0, 0, 0.5, 0),
      5,
      EACH_STEP,
      { 0.001, 0.010000000000000002, 0.001, 0.001, 0.001 } },
    { "one cycle with decay",
      ONE_CYCLE(4, 4, 0, 0, 2, 0.5, 0.1),
      13,
      EACH_STEP,
      { 0.001, 0.0032500000000000003, 0.0055000000000000005, 0.007750000000000001, 0.010000000000000002,
        0.007750000000000001, 0.0055000000000000005, 0.0032500000000000003, 0.001, 0.0008,
        0.0006666666666666666, 0.0005714285714285715, 0.0005 } },
};

/* beta1 of the last row. */
static const double decaying_beta1[] = { 0.8,
                                         0.875,
                                         0.8500000000000001,
                                         0.8250000000000001,
                                         0.8,
                                         0.8250000000000001,
                                         0.8500000000000001,
                                         0.875,
                                         0.9,
                                         0.9450000000000001,
                                         0.9900000000000001,
                                         1.035,
                                         1.08 };

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

/* Recorded: betas start at the minimum, then run against the rate, and decay upwards without end. */
static void one_cycle_momentum(void **state)
{
    (void)state;
    zb_schedule_config config = ONE_CYCLE(4, 4, 0, 0, 2, 0.5, 0.1);
    zb_schedule schedule;
    assert_int_equal(zb_schedule_init(&schedule, &config), ZB_OK);
    assert_true(zb_schedule_has_momentum(&schedule));
    for (size_t k = 0; k < COUNT(decaying_beta1); k++) {
        double got = zb_schedule_beta1(&schedule);
        if (memcmp(&got, &decaying_beta1[k], sizeof got) != 0)
            fail_msg("step %zu uses beta1 %.17g, want %.17g", k, got, decaying_beta1[k]);
        assert_true(zb_schedule_beta2(&schedule) == 0.99);
        zb_schedule_step(&schedule);
    }

    config.decay_mom_rate = 0;
    assert_int_equal(zb_schedule_init(&schedule, &config), ZB_OK);
    for (int k = 0; k < 20; k++) zb_schedule_step(&schedule);
    assert_true(zb_schedule_beta1(&schedule) == 0.9);
    config.decay_mom_rate = 0.1;
    config.decay_step_size = 0;
    assert_int_equal(zb_schedule_init(&schedule, &config), ZB_OK);
    for (int k = 0; k < 20; k++) zb_schedule_step(&schedule);
    assert_true(zb_schedule_beta1(&schedule) == 0.9);

    config.cycle_momentum = 0;
    assert_int_equal(zb_schedule_init(&schedule, &config), ZB_OK);
    assert_false(zb_schedule_has_momentum(&schedule));
    config.kind = ZB_SCHEDULE_CONSTANT;
    config.cycle_momentum = 1;
    assert_int_equal(zb_schedule_init(&schedule, &config), ZB_OK);
    assert_false(zb_schedule_has_momentum(&schedule));
}

/* Rates stay between the ends that the parameters name, and the last warm-up step reaches the top. */
static void rates_stay_in_range(void **state)
{
    (void)state;
    for (int64_t steps = 1; steps < 40; steps++) {
        for (int64_t total = 0; total < 60; total += 7) {
            const zb_schedule_config configs[] = {
                DECAY(0.25, 1, steps, total, steps % 2 ? ZB_WARMUP_LOG : ZB_WARMUP_LINEAR),
                COSINE(0.25, 0.25, steps, total, steps % 2 ? ZB_WARMUP_LINEAR : ZB_WARMUP_LOG),
                ONE_CYCLE((double)steps, (double)total, steps % 4, total % 4, 0, 0, 0),
            };
            const double low[] = { 0.25, 0, 1e-3 }, high[] = { 1, 1e-3, 1.0000000000000003e-2 };
            for (size_t i = 0; i < COUNT(configs); i++) {
                zb_schedule schedule;
                assert_int_equal(zb_schedule_init(&schedule, &configs[i]), ZB_OK);
                for (int k = 0; k < 130; k++) {
                    double lr = zb_schedule_lr(&schedule);
                    if (!(lr >= low[i] && lr <= high[i]))
                        fail_msg("schedule %zu, %d of %d, step %d: %.17g", i, (int)steps, (int)total, k, lr);
                    zb_schedule_step(&schedule);
                }
            }
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
    { DECAY(0, INFINITY, 5, 5, ZB_WARMUP_LOG), "warmup_max_lr is inf, want a finite number" },
    { DECAY(0, 1, 5, -1, ZB_WARMUP_LOG), "total_num_steps is -1, want at least 0" },
    { COSINE(NAN, 0, 5, 5, ZB_WARMUP_LOG), "warmup_min_ratio is nan, want a finite number" },
    { COSINE(0, INFINITY, 5, 5, ZB_WARMUP_LOG), "cos_min_ratio is inf, want a finite number" },
    { COSINE(0, 0, 0, 5, ZB_WARMUP_LOG), "warmup_num_steps is 0, want at least 1" },
    { COSINE(0, 0, 5, -2, ZB_WARMUP_LOG), "total_num_steps is -2, want at least 0" },
    { { .kind = ZB_SCHEDULE_WARMUP_COSINE_LR, .base_lr = NAN }, "lr is nan, want a finite number" },
    { RANGE_TEST(NAN, 3, 1, 0), "lr_range_test_min_lr is nan, want a finite number" },
    { RANGE_TEST(1, 3, INFINITY, 0), "lr_range_test_step_rate is inf, want a finite number" },
    { RANGE_TEST(1, 0, 1, 0), "lr_range_test_step_size is 0, want at least 1" },
    { ONE_CYCLE(0, 4, 0, 0, 0, 0, 0), "cycle_first_step_size is 0, want more than 0" },
    { ONE_CYCLE(4, -1, 0, 0, 0, 0, 0), "cycle_second_step_size is -1, want at least 0" },
    { ONE_CYCLE(4, 4, -1, 0, 0, 0, 0), "cycle_first_stair_count is -1, want at least 0" },
    { ONE_CYCLE(4, 4, 0, -1, 0, 0, 0), "cycle_second_stair_count is -1, want at least 0" },
    { ONE_CYCLE(4, 4, 0, 0, NAN, 0, 0), "decay_step_size is nan, want a finite number" },
    { ONE_CYCLE(4, 4, 0, 0, 0, NAN, 0), "decay_lr_rate is nan, want a finite number" },
    { ONE_CYCLE(4, 4, 0, 0, 0, 0, NAN), "decay_mom_rate is nan, want a finite number" },
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
    const struct CMUnitTest tests[] = { cmocka_unit_test(golden_sequences),
                                        cmocka_unit_test(one_cycle_momentum),
                                        cmocka_unit_test(rates_stay_in_range), cmocka_unit_test(refuses) };
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
