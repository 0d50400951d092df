/*
 * exp and log, against MPFR: a sample with every kind of argument, or with --exhaustive all 2^32 arguments.
 * Both the fast functions and the accurate paths that they fall back to are tried.
 */
#include "tests/kernels/support.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kernels/elementary.h"

#if ZB_TEST_MPFR
#include <mpfr.h>

/* The correctly rounded fp32 result, subnormals included. */
static float mpfr_result(mpfr_t scratch, int is_log, float x)
{
    mpfr_set_flt(scratch, x, MPFR_RNDN);
    const int inexact = is_log ? mpfr_log(scratch, scratch, MPFR_RNDN)
                               : mpfr_exp(scratch, scratch, MPFR_RNDN);
    mpfr_subnormalize(scratch, inexact, MPFR_RNDN);
    return mpfr_get_flt(scratch, MPFR_RNDN);
}

/* Exponents and precision of fp32. MPFR keeps the former per thread. */
static void mpfr_like_fp32(mpfr_t scratch)
{
    mpfr_set_emin(-148);
    mpfr_set_emax(128);
    mpfr_init2(scratch, 24);
}

static int same(float a, float b)
{
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

static void check(mpfr_t scratch, float x)
{
    const float e = mpfr_result(scratch, 0, x), l = mpfr_result(scratch, 1, x);
    const struct {
        const char *name;
        float got, want;
    } results[] = {
        { "exp", zb_expf(x), e },
        { "accurate exp", zb_expf_accurate(x), e },
        { "log", zb_logf(x), l },
        { "accurate log", zb_logf_accurate(x), l },
    };
    for (size_t i = 0; i < 4; i++)
        if (!same(results[i].got, results[i].want))
            fail_msg("%s of %a (%08x) is %a, want %a", results[i].name, (double)x, bits_of(x),
                     (double)results[i].got, (double)results[i].want);
}

static void sample(void **state)
{
    (void)state;
    mpfr_t scratch;
    rng r = { 71 };
    mpfr_like_fp32(scratch);
    for (int i = 0; i < 150000; i++) {
        check(scratch, rng_float(&r, FILL_BITS));
        check(scratch, 128 * rng_float(&r, FILL_UNIFORM));
        check(scratch, fabsf(rng_float(&r, FILL_WIDE)));
        check(scratch, 1 + 0x1p-10f * rng_float(&r, FILL_UNIFORM));
    }
    for (int i = 0; i < 1000; i++) check(scratch, rng_float(&r, FILL_SPECIAL));
    mpfr_clear(scratch);
}

/* Around the arguments where results overflow, turn subnormal, vanish, or are exact. */
static void boundaries(void **state)
{
    (void)state;
    mpfr_t scratch;
    static const float centres[] = {
        0x1.62e42ep6f, -0x1.5d589ep6f, -0x1.9d1da0p6f, -0x1.9fe368p6f,  89,           -104, 0, 1,
        0x1p-24f,      0x1p-25f,       0x1p-126f,      0x1.fffffep127f, 0x1.6a09e6p0f
    };
    mpfr_like_fp32(scratch);
    for (size_t c = 0; c < sizeof centres / sizeof centres[0]; c++)
        for (int32_t step = -2000; step <= 2000; step++) {
            const uint32_t bits = bits_of(centres[c]) + (uint32_t)step;
            check(scratch, from_bits(bits));
            check(scratch, from_bits(bits ^ 0x80000000));
        }
    mpfr_clear(scratch);
}

/* --- all arguments --- */

/*
 * Most results need no MPFR: the long double result, whose error is far below 2^-60, decides unless it lies
 * within 2^-36 of a point where fp32 rounds differently.
 */
static float quick_result(int is_log, float x, int *sure)
{
    const long double y = is_log ? logl((long double)x) : expl((long double)x);
    *sure = 1;
    if (isinf(y)) return (float)y;
    const float lower = (float)(y - fabsl(y) * 0x1p-36L), upper = (float)(y + fabsl(y) * 0x1p-36L);
    *sure = LDBL_MANT_DIG >= 64 && same(lower, upper);
    return lower;
}

typedef struct slice {
    pthread_t thread;
    uint64_t first, end, bad, asked; /* asked: how often MPFR decided */
} slice;

static void *check_slice(void *argument)
{
    slice *s = argument;
    mpfr_t scratch;
    mpfr_like_fp32(scratch);
    for (uint64_t bits = s->first; bits < s->end; bits++)
        for (int is_log = 0; is_log < 2; is_log++) {
            const float x = from_bits((uint32_t)bits), got = is_log ? zb_logf(x) : zb_expf(x);
            int sure;
            float want = quick_result(is_log, x, &sure);
            if (!sure) want = mpfr_result(scratch, is_log, x), s->asked++;
            if (same(got, want)) continue;
            if (s->bad++ < 10)
                fprintf(stderr, "%s of %a is %a, want %a\n", is_log ? "log" : "exp", (double)x, (double)got,
                        (double)want);
        }
    mpfr_clear(scratch);
    mpfr_free_cache();
    return NULL;
}

static int exhaustive(void)
{
    enum { SLICES = 64, THREADS_MAX = 64 };
    const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    const int threads = processors < 1 ? 1 : processors > THREADS_MAX ? THREADS_MAX : (int)processors;
    slice slices[SLICES];
    uint64_t bad = 0, asked = 0;
    for (int i = 0; i < SLICES; i += threads) {
        const int count = SLICES - i < threads ? SLICES - i : threads;
        for (int t = i; t < i + count; t++) {
            slices[t] = (slice){ .first = (uint64_t)t << 26, .end = (uint64_t)(t + 1) << 26 };
            if (pthread_create(&slices[t].thread, NULL, check_slice, &slices[t]) != 0) return 1;
        }
        for (int t = i; t < i + count; t++) {
            pthread_join(slices[t].thread, NULL);
            bad += slices[t].bad, asked += slices[t].asked;
        }
    }
    printf("exp and log of all 2^32 arguments: %llu wrong; MPFR decided %llu\n", (unsigned long long)bad,
           (unsigned long long)asked);
    return bad != 0;
}

#else

static void sample(void **state)
{
    (void)state;
    print_message("MPFR was not found when this was built\n");
    skip();
}
static void boundaries(void **state)
{
    sample(state);
}
static int exhaustive(void)
{
    fprintf(stderr, "MPFR was not found when this was built\n");
    return 77;
}

#endif

/* Needs no MPFR: what IEEE-754 recommends for the special values. */
static void special_values(void **state)
{
    (void)state;
    const float got[] = { zb_expf(0.0f),      zb_expf(-0.0f), zb_expf(INFINITY), zb_expf(-INFINITY),
                          zb_expf(1e4f),      zb_expf(-1e4f), zb_expf(NAN),      zb_logf(1.0f),
                          zb_logf(0.0f),      zb_logf(-0.0f), zb_logf(INFINITY), zb_logf(-1.0f),
                          zb_logf(-INFINITY), zb_logf(NAN) };
    const float want[] = { 1, 1,         INFINITY,  0,        INFINITY, 0,   NAN,
                           0, -INFINITY, -INFINITY, INFINITY, NAN,      NAN, NAN };
    assert_same_floats(got, want, sizeof got / sizeof got[0], "special values");
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--exhaustive") == 0) return exhaustive();
    const struct CMUnitTest tests[] = { cmocka_unit_test(special_values), cmocka_unit_test(boundaries),
                                        cmocka_unit_test(sample) };
    return cmocka_run_group_tests_name("elementary", tests, NULL, NULL);
}
