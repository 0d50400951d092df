/* The loss scaler against sequences that DeepSpeed's own code gave, and what must hold for any sequence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <zerobit/loss_scaler.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define ZERO_RULE(initial, steps, hyst)                                                                      \
    {                                                                                                        \
        .kind = ZB_SCALER_DYNAMIC, .initial_scale = (initial), .min_scale = 1, .window = (steps),            \
        .hysteresis = (hyst)                                                                                 \
    }
#define CONSECUTIVE(initial, steps, hyst)                                                                    \
    {                                                                                                        \
        .kind = ZB_SCALER_DYNAMIC, .initial_scale = (initial), .min_scale = 1, .window = (steps),            \
        .hysteresis = (hyst), .consecutive_hysteresis = 1                                                    \
    }
/* A hysteresis that the rule must not look at. */
#define STAGE0(initial, steps)                                                                               \
    {                                                                                                        \
        .kind = ZB_SCALER_DYNAMIC_STAGE0, .initial_scale = (initial), .min_scale = 1, .window = (steps),     \
        .hysteresis = 2                                                                                      \
    }
#define ANY 99 /* a hysteresis that the recording does not show */

/* 'X': overflow. The state after each update; a row that aborts ends in the step that does. */
static const struct sequence {
    const char *name;
    zb_loss_scaler_config config;
    const char *steps;
    double scale[16];
    int64_t left[16];
    int aborts;
} sequences[] = {
    { "the first overflow costs hysteresis only",
      ZERO_RULE(65536, 1000, 2),
      "XX.X",
      { 65536, 32768, 32768, 16384 },
      { 1, 1, 1, 1 },
      0 },
    { "clean steps do not refill it",
      ZERO_RULE(65536, 1000, 2),
      "X.X.X",
      { 65536, 65536, 32768, 32768, 16384 },
      { 1, 1, 1, 1, 1 },
      0 },
    { "consecutive: they do",
      CONSECUTIVE(65536, 1000, 2),
      "X.X.X",
      { 65536, 65536, 65536, 65536, 65536 },
      { 1, 2, 1, 2, 1 },
      0 },
    { "growth, window 2",
      ZERO_RULE(256, 2, 2),
      "..........",
      { 256, 256, 512, 512, 1024, 1024, 2048, 2048, 4096, 4096 },
      { 2, 2, 2, 2, 2, 2, 2, 2, 2, 2 },
      0 },
    { "window 3, hysteresis 1",
      ZERO_RULE(256, 3, 1),
      "....X.....X....",
      { 256, 256, 256, 512, 256, 256, 256, 256, 512, 512, 256, 256, 256, 256, 512 },
      { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 },
      0 },
    { "growth refills it",
      ZERO_RULE(256, 2, 2),
      ".X..X..X...X",
      { 256, 256, 256, 256, 128, 128, 128, 64, 64, 64, 128, 128 },
      { 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1 },
      0 },
    { "abort at the minimum", ZERO_RULE(8, 1000, 1), "XXXX", { 4, 2, 1 }, { 1, 1, 1 }, 1 },
    { "abort after hysteresis", ZERO_RULE(8, 1000, 2), "XXXXX", { 8, 4, 2, 1 }, { 1, 1, 1, 1 }, 1 },
    { "the minimum cuts a halving short", ZERO_RULE(3, 1000, 1), "XXX", { 1.5, 1 }, { 1, 1 }, 1 },
    { "hysteresis 3", ZERO_RULE(256, 1000, 3), "XXXX", { 256, 256, 128, 64 }, { 2, 1, 1, 1 }, 0 },
    { "hysteresis 3, growth",
      ZERO_RULE(256, 2, 3),
      "XXX......",
      { 256, 256, 128, 128, 128, 256, 256, 512, 512 },
      { 2, 1, 1, 1, 1, 3, 3, 3, 3 },
      0 },
    { "hysteresis 3, growth, consecutive",
      CONSECUTIVE(256, 2, 3),
      "XXX......",
      { 256, 256, 128, 128, 128, 256, 256, 512, 512 },
      { 2, 1, 1, 3, 3, 3, 3, 3, 3 },
      0 },
    { "stage 0, window 3",
      STAGE0(256, 3),
      "....X.....X....",
      { 256, 256, 256, 512, 256, 256, 256, 256, 512, 512, 256, 256, 256, 256, 512 },
      { ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY },
      0 },
    { "stage 0 never aborts",
      STAGE0(8, 1000),
      "XXXXXX",
      { 4, 2, 1, 1, 1, 1 },
      { ANY, ANY, ANY, ANY, ANY, ANY },
      0 },
    { "hysteresis 0 never lowers the scale",
      ZERO_RULE(2, 1, 0),
      "XXX..X",
      { 2, 2, 2, 2, 4, 4 },
      { -1, -2, -3, -3, 0, -1 },
      0 },
    { "static",
      { .kind = ZB_SCALER_STATIC, .initial_scale = 0.5 },
      "X.X..XX",
      { 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5 },
      { 0, 0, 0, 0, 0, 0, 0 },
      0 },
    { "none", { .kind = ZB_SCALER_NONE }, "X.X..", { 1, 1, 1, 1, 1 }, { 0, 0, 0, 0, 0 }, 0 },
};

static void golden_sequences(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(sequences); i++) {
        const struct sequence *c = &sequences[i];
        zb_loss_scaler scaler;
        assert_int_equal(zb_loss_scaler_init(&scaler, &c->config), ZB_OK);
        size_t count = strlen(c->steps);
        for (size_t k = 0; k < count; k++) {
            zb_loss_scaler before = scaler;
            zb_status status = zb_loss_scaler_update(&scaler, c->steps[k] == 'X');
            if (c->aborts && k + 1 == count) {
                assert_int_equal(status, ZB_LOSS_SCALE);
                assert_true(scaler.scale == before.scale);
                assert_int_equal(scaler.iteration, before.iteration);
                assert_int_equal(scaler.last_overflow, before.last_overflow);
                assert_int_equal(scaler.hysteresis_left, before.hysteresis_left);
                continue;
            }
            assert_int_equal(status, ZB_OK);
            if (scaler.scale != c->scale[k] || (c->left[k] != ANY && scaler.hysteresis_left != c->left[k]))
                fail_msg("%s: after step %zu: %.17g/%d, want %.17g/%d", c->name, k, scaler.scale,
                         (int)scaler.hysteresis_left, c->scale[k], (int)c->left[k]);
        }
    }
}

/* The CIFAR example's kind of window: growth while processing steps 1000, 2000 and 3000, counted from 0. */
static void long_window(void **state)
{
    (void)state;
    zb_loss_scaler_config config = ZERO_RULE(65536, 1000, 2);
    zb_loss_scaler scaler;
    assert_int_equal(zb_loss_scaler_init(&scaler, &config), ZB_OK);
    double want = 65536;
    for (int i = 0; i <= 3000; i++) {
        assert_int_equal(zb_loss_scaler_update(&scaler, 0), ZB_OK);
        if (i > 0 && i % 1000 == 0) want *= 2;
        assert_true(scaler.scale == want);
    }
}

static void abort_says_why(void **state)
{
    (void)state;
    zb_loss_scaler_config config = ZERO_RULE(2, 1000, 1);
    config.min_scale = 2;
    zb_loss_scaler scaler;
    assert_int_equal(zb_loss_scaler_init(&scaler, &config), ZB_OK);
    assert_int_equal(zb_loss_scaler_update(&scaler, 0), ZB_OK);
    assert_int_equal(zb_loss_scaler_update(&scaler, 1), ZB_LOSS_SCALE);
    assert_string_equal(
        zb_error_message(),
        "step 2: gradients overflow at loss scale 2, which is the minimum (fp16.min_loss_scale "
        "2) and cannot be lowered: training stops");
}

static const struct refusal {
    zb_loss_scaler_config config;
    const char *want;
} refusals[] = {
    { ZERO_RULE(0, 10, 2), "the initial loss scale is 0, want a finite number above 0" },
    { ZERO_RULE(INFINITY, 10, 2), "the initial loss scale is inf, want a finite number above 0" },
    { STAGE0(NAN, 10), "the initial loss scale is nan, want a finite number above 0" },
    { ZERO_RULE(2, 0, 2), "loss_scale_window is 0, want at least 1" },
    { STAGE0(2, -7), "loss_scale_window is -7, want at least 1" },
    { { .kind = ZB_SCALER_DYNAMIC, .initial_scale = 2, .window = 1, .min_scale = -1 },
      "min_loss_scale is -1, want a finite number above 0" },
    { { .kind = ZB_SCALER_STATIC, .initial_scale = -2 },
      "the loss scale is -2, want a finite number above 0" },
    { { .kind = (zb_scaler_kind)9, .initial_scale = 1 }, "loss scaler kind is 9, want a known one" },
};

static void refuses(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refusals); i++) {
        zb_loss_scaler scaler = { .scale = 42 };
        assert_int_equal(zb_loss_scaler_init(&scaler, &refusals[i].config), ZB_INVALID_CONFIG);
        assert_string_equal(zb_error_message(), refusals[i].want);
        assert_true(scaler.scale == 42);
    }
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int same_significand(double a, double b)
{
    int ignored;
    return frexp(a, &ignored) == frexp(b, &ignored);
}

/*
 * Whatever happens: the scale stays at or above the minimum once it is, is a power of two times the initial
 * scale or the minimum, moves by a factor of two at most, falls only with an overflow and rises only without,
 * and the ZeRO rule stops exactly when an overflow would have to lower the minimum.
 */
static void any_sequence(void **state)
{
    (void)state;
    uint64_t random = 0x2545f4914f6cdd1du;
    int aborts = 0, growths = 0;
    for (int run = 0; run < 2000; run++) {
        zb_loss_scaler_config config = {
            .kind = next_random(&random) % 2 ? ZB_SCALER_DYNAMIC : ZB_SCALER_DYNAMIC_STAGE0,
            .initial_scale = ldexp((double)(1 + next_random(&random) % 7), (int)(next_random(&random) % 20)),
            .min_scale = (double)(1 + next_random(&random) % 9),
            .window = (int64_t)(1 + next_random(&random) % 5),
            .hysteresis = (int64_t)(next_random(&random) % 4),
            .consecutive_hysteresis = (int)(next_random(&random) % 2),
        };
        if (config.initial_scale < config.min_scale) config.initial_scale = config.min_scale;
        uint64_t rarity = 1 + next_random(&random) % 6;
        zb_loss_scaler scaler;
        assert_int_equal(zb_loss_scaler_init(&scaler, &config), ZB_OK);
        for (int i = 0; i < 200; i++) {
            int overflow = next_random(&random) % rarity == 0;
            double before = scaler.scale;
            zb_status status = zb_loss_scaler_update(&scaler, overflow);
            if (status != ZB_OK) {
                assert_int_equal(status, ZB_LOSS_SCALE);
                assert_true(overflow && before == config.min_scale && config.kind == ZB_SCALER_DYNAMIC);
                assert_true(config.hysteresis != 0);
                aborts++;
                break;
            }
            assert_true(scaler.scale >= config.min_scale);
            assert_true(same_significand(scaler.scale, config.initial_scale) ||
                        same_significand(scaler.scale, config.min_scale));
            assert_true(overflow
                            ? scaler.scale == before || scaler.scale == fmax(before / 2, config.min_scale)
                            : scaler.scale == before || scaler.scale == before * 2);
            assert_int_equal(scaler.iteration, i + 1);
            growths += scaler.scale > before;
        }
    }
    assert_true(aborts > 100 && growths > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_sequences), cmocka_unit_test(long_window),  cmocka_unit_test(abort_says_why),
        cmocka_unit_test(refuses),          cmocka_unit_test(any_sequence),
    };
    return cmocka_run_group_tests_name("loss_scaler", tests, NULL, NULL);
}
