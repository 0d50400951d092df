/*
 * The exact sum of squares, against a binary number of 768 bits that squares are added to one by one, and its
 * norm against that number compared with the neighbours of the answer.
 */
#include "tests/kernels/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- the plain number: bit b is worth 2^(b - 320) --- */

enum { LIMBS = 48 }; /* of 16 bits */
typedef struct big {
    uint16_t limb[LIMBS];
} big;

static void big_add_shifted(big *a, uint64_t value, int position)
{
    for (int bit = 0; bit < 64; bit++) {
        if (!(value >> bit & 1)) continue;
        int l = (position + bit) / 16;
        uint32_t carry = 1u << (position + bit) % 16;
        for (; carry != 0; l++) {
            assert_in_range(l, 0, LIMBS - 1);
            carry += a->limb[l];
            a->limb[l] = (uint16_t)carry;
            carry >>= 16;
        }
    }
}

static void big_add_square(big *a, float x)
{
    int exponent;
    const double fraction = frexp(fabs((double)x), &exponent); /* 24 bits at most */
    const uint64_t mantissa = (uint64_t)ldexp(fraction, 24);
    big_add_shifted(a, mantissa * mantissa, 2 * (exponent - 24) + 320);
}

static int big_compare(const big *a, const big *b)
{
    for (int l = LIMBS - 1; l >= 0; l--)
        if (a->limb[l] != b->limb[l]) return a->limb[l] < b->limb[l] ? -1 : 1;
    return 0;
}

/* a number that is a multiple of 2^-320, doubled: so that midpoints are too */
static big big_twice(double x)
{
    big result = { { 0 } };
    int exponent;
    const double fraction = frexp(x, &exponent);
    if (x != 0) big_add_shifted(&result, (uint64_t)ldexp(fraction, 53), exponent - 53 + 320 + 1);
    return result;
}

static big big_sum(big a, const big *b)
{
    for (int l = 0; l < LIMBS; l++) big_add_shifted(&a, b->limb[l], 16 * l);
    return a;
}

/* True when `value` is `exact` rounded to nearest even: twice exact lies between the midpoints on either
 * side. */
static int is_rounded(double value, const big *exact)
{
    const big twice = big_sum(*exact, exact), here = big_twice(value / 2);
    big above = big_twice(nextafter(value, INFINITY) / 2), below = big_twice(nextafter(value, 0) / 2);
    above = big_sum(above, &here), below = big_sum(below, &here); /* value + neighbour = twice the midpoint */
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    const int high = big_compare(&twice, &above), low = big_compare(&twice, &below);
    return (high < 0 || (high == 0 && !(bits & 1))) && (low > 0 || (low == 0 && !(bits & 1)));
}

static void assert_digits(const int64_t *accumulator, const big *want, const char *name)
{
    for (int d = 0; d < ZB_SUM_SQUARES_DIGITS; d++) {
        const int64_t digit = want->limb[2 * d] | (int64_t)want->limb[2 * d + 1] << 16;
        if (accumulator[d] != digit)
            fail_msg("%s: digit %d is %llx, want %llx", name, d, (long long)accumulator[d], (long long)digit);
    }
}

/* The only doubles whose square root is `norm` are near norm^2: look for one that is `exact` rounded. */
static void assert_norm(const int64_t *accumulator, const big *exact, const char *name)
{
    const double norm = zb_sum_squares_norm(accumulator);
    double value = norm * norm;
    for (int i = 0; i < 8; i++) value = nextafter(value, 0);
    for (int i = 0; i < 17; i++, value = nextafter(value, INFINITY))
        if (is_rounded(value, exact)) {
            if (sqrt(value) != norm) fail_msg("%s: norm is %a, want %a", name, norm, sqrt(value));
            return;
        }
    fail_msg("%s: norm %a has no square near the sum", name, norm);
}

static void check_against_plain(zb_dtype dtype)
{
    rng r = { 61 };
    for (size_t s = 0; s < edge_size_count; s++)
        for (int kind = 0; kind < FILL_KINDS; kind++) {
            const size_t n = edge_sizes[s];
            tensor random = tensor_random(&r, dtype, (fill_kind)kind, n);
            const float *x = random.values;
            int64_t accumulator[ZB_SUM_SQUARES_WORDS] = { 0 }, infinities = 0, nans = 0;
            big want = { { 0 } };
            for (size_t i = 0; i < n; i++) {
                infinities += isinf(x[i]) != 0, nans += isnan(x[i]) != 0;
                if (isfinite(x[i])) big_add_square(&want, x[i]);
            }
            assert_ok(zb_cpu_sum_squares(&(zb_sum_squares_args){ dtype, random.data, n, accumulator }));
            assert_digits(accumulator, &want, fill_name((fill_kind)kind));
            assert_int_equal(accumulator[ZB_SUM_SQUARES_INF], infinities);
            assert_int_equal(accumulator[ZB_SUM_SQUARES_NAN], nans);
            if (nans > 0)
                assert_true(isnan(zb_sum_squares_norm(accumulator)));
            else if (infinities > 0)
                assert_true(isinf(zb_sum_squares_norm(accumulator)));
            else if (n == 0)
                assert_true(zb_sum_squares_norm(accumulator) == 0);
            else
                assert_norm(accumulator, &want, fill_name((fill_kind)kind));
            tensor_free(&random);
        }
}

static void against_plain(void **state)
{
    use_level(state);
    for (int d = 0; d < TENSOR_DTYPES; d++) check_against_plain(tensor_dtypes[d]);
}

/* However the elements are split over ranks and in whatever order, the digits add up to the same. */
static void any_split(void **state)
{
    use_level(state);
    enum { NUMEL = 3001, RANKS = 7 };
    rng r = { 62 };
    for (int kind = 0; kind < FILL_KINDS; kind++) {
        float x[NUMEL];
        int64_t whole[ZB_SUM_SQUARES_WORDS] = { 0 }, sum[ZB_SUM_SQUARES_WORDS] = { 0 };
        fill(&r, (fill_kind)kind, x, NUMEL);
        assert_ok(zb_cpu_sum_squares(&(zb_sum_squares_args){ ZB_FP32, x, NUMEL, whole }));
        for (size_t i = NUMEL - 1; i > 0; i--) {
            const size_t j = rng_below(&r, i + 1);
            const float t = x[i];
            x[i] = x[j], x[j] = t;
        }
        for (size_t rank = 0, first = 0; rank < RANKS; rank++) {
            const size_t numel = rank == RANKS - 1 ? NUMEL - first : rng_below(&r, NUMEL - first);
            int64_t part[ZB_SUM_SQUARES_WORDS] = { 0 };
            assert_ok(zb_cpu_sum_squares(&(zb_sum_squares_args){ ZB_FP32, x + first, numel, part }));
            for (int w = 0; w < ZB_SUM_SQUARES_WORDS; w++) sum[w] += part[w]; /* no carries */
            first += numel;
        }
        const double a = zb_sum_squares_norm(whole), b = zb_sum_squares_norm(sum);
        assert_true(a == b || (isnan(a) && isnan(b)));
        assert_ok(zb_cpu_sum_squares(&(zb_sum_squares_args){ ZB_FP32, NULL, 0, sum })); /* normalises */
        assert_memory_equal(sum, whole, sizeof sum);
    }
}

/* More elements of one exponent than a bin takes at a time, and digits as large as they may come. */
static void many_elements(void **state)
{
    use_level(state);
    const size_t numel = 600001;
    float *x = guarded_floats(numel, 1);
    static const float values[] = { 0x1.fffffep127f, 0x1.fffffep0f, 0x1.fffffcp-127f };
    for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
        int64_t accumulator[ZB_SUM_SQUARES_WORDS] = { 0 };
        big one = { { 0 } }, want = { { 0 } };
        for (size_t i = 0; i < numel; i++) x[i] = i % 2 ? values[v] : -values[v];
        assert_ok(zb_cpu_sum_squares(&(zb_sum_squares_args){ ZB_FP32, x, numel, accumulator }));
        big_add_square(&one, values[v]);
        for (int l = 0; l < LIMBS; l++) big_add_shifted(&want, (uint64_t)one.limb[l] * numel, 16 * l);
        assert_digits(accumulator, &want, "many elements");
    }
    int64_t accumulator[ZB_SUM_SQUARES_WORDS] = { 0 };
    big want = { { 0 } };
    for (int d = 0; d < ZB_SUM_SQUARES_DIGITS - 1; d++) {
        accumulator[d] = INT64_MAX;
        big_add_shifted(&want, INT64_MAX, 32 * d);
    }
    assert_norm(accumulator, &want, "large digits");
    assert_ok(zb_cpu_sum_squares(&(zb_sum_squares_args){ ZB_FP32, x, 0, accumulator }));
    assert_digits(accumulator, &want, "large digits");
    guarded_free(x);
}

/* Ties to even and one bit far below a tie, which an fp64 sum would lose. */
static void norm_rounding(void **state)
{
    use_level(state);
    for (int top = 60; top < 640; top += 29)
        for (int pattern = 0; pattern < 8; pattern++) {
            int64_t accumulator[ZB_SUM_SQUARES_WORDS] = { 0 };
            big want = { { 0 } };
            const int bits[] = { top, pattern & 1 ? top - 52 : top - 1, pattern & 2 ? top - 53 : top - 2,
                                 pattern & 4 ? (top - 54) / 2 : top - 3 };
            for (int i = 0; i < 4; i++) {
                accumulator[bits[i] / 32] += (int64_t)1 << bits[i] % 32;
                big_add_shifted(&want, 1, bits[i]);
            }
            assert_norm(accumulator, &want, "rounding");
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = { AT_EACH_LEVEL(against_plain), AT_EACH_LEVEL(any_split),
                                        AT_EACH_LEVEL(many_elements), AT_EACH_LEVEL(norm_rounding) };
    return cmocka_run_group_tests_name("sum_squares", tests, NULL, NULL);
}
