/* Conversions between floating types, against arithmetic in fp64 that knows only precision and range. */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

static const zb_dtype halves[] = { ZB_FP16, ZB_BF16 };

static int is_half_nan(zb_dtype half, uint16_t x)
{
    return isnan(plain_from_half(half, x));
}

static void widening_every_value(void **state)
{
    use_level(state);
    static uint16_t from[1 << 16];
    static float to32[1 << 16];
    static double to64[1 << 16];
    for (size_t i = 0; i < 1 << 16; i++) from[i] = (uint16_t)i;
    for (size_t f = 0; f < 2; f++) {
        assert_ok(zb_cpu_cast(&(zb_cast_args){ to32, ZB_FP32, from, halves[f], 1 << 16 }));
        assert_ok(zb_cpu_cast(&(zb_cast_args){ to64, ZB_FP64, from, halves[f], 1 << 16 }));
        for (size_t i = 0; i < 1 << 16; i++) {
            const double want = plain_from_half(halves[f], from[i]);
            const float want32 = (float)want;
            assert_same_floats(&to32[i], &want32, 1, "%s %04zx", zb_dtype_name(halves[f]), i);
            assert_true(memcmp(&to64[i], &want, sizeof want) == 0 || (isnan(want) && isnan(to64[i])));
        }
    }
}

enum { BATCH = 4096 };

static void check_narrow(zb_dtype f, const float *x32, const double *x64, size_t numel)
{
    static uint16_t got32[BATCH], got64[BATCH];
    assert_ok(zb_cpu_cast(&(zb_cast_args){ got32, f, x32, ZB_FP32, numel }));
    assert_ok(zb_cpu_cast(&(zb_cast_args){ got64, f, x64, ZB_FP64, numel }));
    for (size_t i = 0; i < numel; i++) {
        if (isnan(x32[i]) ? !is_half_nan(f, got32[i]) : got32[i] != plain_to_half(f, (double)x32[i]))
            fail_msg("fp32 %a to %s gives %04x, want %04x", (double)x32[i], zb_dtype_name(f), got32[i],
                     plain_to_half(f, (double)x32[i]));
        if (isnan(x64[i]) ? !is_half_nan(f, got64[i]) : got64[i] != plain_to_half(f, x64[i]))
            fail_msg("fp64 %a to %s gives %04x, want %04x", x64[i], zb_dtype_name(f), got64[i],
                     plain_to_half(f, x64[i]));
    }
}

/* Every 16-bit number, every midpoint of two neighbours, and their neighbours in fp32 and fp64. */
static void narrowing_at_boundaries(void **state)
{
    use_level(state);
    for (size_t f = 0; f < 2; f++) {
        float x32[BATCH];
        double x64[BATCH];
        size_t n = 0;
        const uint16_t infinity = f == 0 ? 0x7c00 : 0x7f80;
        for (uint32_t i = 0; i <= infinity; i++) {
            const double lower = plain_from_half(halves[f], (uint16_t)i);
            const double next = i + 1 >= infinity ? (f == 0 ? 0x1p16 : 0x1p128)
                                                  : plain_from_half(halves[f], (uint16_t)(i + 1));
            const double points[] = { lower, lower / 2 + next / 2 };
            for (size_t p = 0; p < 2; p++)
                for (int sign = -1; sign <= 1; sign += 2)
                    for (int side = -1; side <= 1; side++) {
                        const double x = sign * points[p];
                        x32[n] = side == 0 ? (float)x : nextafterf((float)x, (float)side * INFINITY);
                        x64[n++] = side == 0 ? x : nextafter(x, side * INFINITY);
                    }
            if (n + 12 > BATCH || i == infinity) {
                check_narrow(halves[f], x32, x64, n);
                n = 0;
            }
        }
    }
}

/* Halfway between the half h and the next one; for the largest, the next one is where infinity begins. */
static double midpoint_above(zb_dtype half, uint16_t h)
{
    const double next = plain_from_half(half, (uint16_t)(h + 1));
    return plain_from_half(half, h) / 2 + (isinf(next) ? (half == ZB_FP16 ? 0x1p16 : 0x1p128) : next) / 2;
}

/* All 2^32 numbers, ascending by magnitude: the result moves on where a midpoint has been passed, or reached
 * from an odd number. */
static void check_every_number(zb_dtype half, uint32_t sign)
{
    static float x[BATCH];
    static uint16_t got[BATCH];
    const uint16_t infinity = half == ZB_FP16 ? 0x7c00 : 0x7f80;
    uint16_t want = 0;
    double limit = midpoint_above(half, want);
    for (uint32_t first = 0; first < 0x80000000; first += BATCH) {
        for (uint32_t i = 0; i < BATCH; i++) x[i] = from_bits(sign | (first + i));
        assert_ok(zb_cpu_cast(&(zb_cast_args){ got, half, x, ZB_FP32, BATCH }));
        for (uint32_t i = 0; i < BATCH; i++) {
            const double magnitude = fabs((double)x[i]);
            while (want != infinity && (magnitude > limit || (magnitude == limit && want % 2 == 1))) {
                want++;
                if (want != infinity) limit = midpoint_above(half, want);
            }
            if (isnan(x[i]) ? !is_half_nan(half, got[i]) : got[i] != (sign >> 16 | want))
                fail_msg("%a (%08x) to %s gives %04x, want %04x", (double)x[i], bits_of(x[i]),
                         zb_dtype_name(half), got[i], sign >> 16 | want);
        }
    }
}

static void narrowing_every_number(void **state)
{
    use_level(state);
    for (size_t f = 0; f < 2; f++) {
        check_every_number(halves[f], 0);
        check_every_number(halves[f], 0x80000000);
    }
}

static void narrowing_at_random(void **state)
{
    use_level(state);
    rng r = { 31 };
    for (int round = 0; round < 100; round++) {
        float x32[BATCH];
        double x64[BATCH];
        for (size_t i = 0; i < BATCH; i++) {
            x32[i] = rng_float(&r, (fill_kind)(round % FILL_KINDS));
            const uint64_t bits = rng_next(&r);
            memcpy(&x64[i], &bits, sizeof bits);
            if (i % 2 == 0) x64[i] = ldexp((double)(int64_t)bits, -63 - (int)rng_below(&r, 60) + 20);
        }
        for (size_t f = 0; f < 2; f++) check_narrow(halves[f], x32, x64, BATCH - (size_t)round % 17);
    }
}

static void between_wide_types(void **state)
{
    use_level(state);
    rng r = { 32 };
    float x[BATCH], back[BATCH];
    double wide[BATCH];
    uint16_t half[BATCH], other[BATCH];
    fill(&r, FILL_BITS, x, BATCH);
    assert_ok(zb_cpu_cast(&(zb_cast_args){ wide, ZB_FP64, x, ZB_FP32, BATCH }));
    assert_ok(zb_cpu_cast(&(zb_cast_args){ back, ZB_FP32, wide, ZB_FP64, BATCH }));
    assert_same_floats(back, x, BATCH, "fp32 to fp64 and back");
    assert_ok(zb_cpu_cast(&(zb_cast_args){ back, ZB_FP32, x, ZB_FP32, BATCH }));
    assert_same_floats(back, x, BATCH, "fp32 to fp32");
    for (size_t f = 0; f < 2; f++) {
        const zb_dtype from = halves[f], to = halves[1 - f];
        for (size_t i = 0; i < BATCH; i++) half[i] = (uint16_t)rng_next(&r);
        assert_ok(zb_cpu_cast(&(zb_cast_args){ other, to, half, from, BATCH }));
        for (size_t i = 0; i < BATCH; i++)
            if (is_half_nan(from, half[i]))
                assert_true(is_half_nan(to, other[i]));
            else
                assert_int_equal(other[i], plain_to_half(to, plain_from_half(from, half[i])));
        assert_ok(zb_cpu_cast(&(zb_cast_args){ other, from, half, from, BATCH }));
        assert_memory_equal(other, half, sizeof half);
    }
    const double finer = 1 + 0x1p-24 + 0x1p-50;
    float rounded;
    assert_ok(zb_cpu_cast(&(zb_cast_args){ &rounded, ZB_FP32, &finer, ZB_FP64, 1 }));
    assert_int_equal(bits_of(rounded), bits_of(1 + 0x1p-23f));
}

static void refuses_integers(void **state)
{
    use_level(state);
    int32_t from = 1;
    float to = 2;
    assert_int_equal(zb_cpu_cast(&(zb_cast_args){ &to, ZB_FP32, &from, ZB_INT32, 1 }), ZB_UNSUPPORTED);
    assert_non_null(strstr(zb_error_message(), "from int32 to fp32"));
    assert_int_equal(zb_cpu_cast(&(zb_cast_args){ &from, ZB_UINT8, &to, ZB_FP32, 1 }), ZB_UNSUPPORTED);
    assert_true(to == 2 && from == 1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest exhaustive[] = { AT_EACH_LEVEL(narrowing_every_number) };
    if (argc == 2 && strcmp(argv[1], "--exhaustive") == 0)
        return cmocka_run_group_tests_name("cast, exhaustive", exhaustive, NULL, NULL);
    const struct CMUnitTest tests[] = {
        AT_EACH_LEVEL(widening_every_value), AT_EACH_LEVEL(narrowing_at_boundaries),
        AT_EACH_LEVEL(narrowing_at_random),  AT_EACH_LEVEL(between_wide_types),
        AT_EACH_LEVEL(refuses_integers),
    };
    return cmocka_run_group_tests_name("cast", tests, NULL, NULL);
}
