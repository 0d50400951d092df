/* exp and log of the oracle against MPFR: the correctly rounded fp32 value, on a sample of all arguments. */
#include "tests/ref/bits.h"

#include <mpfr.h>

#include "ref/oracle.h"

enum { PRECISION = 200 }; /* far more than any fp32 argument needs to be decided */

typedef int mpfr_function(mpfr_t, const mpfr_t, mpfr_rnd_t);

static float exact(mpfr_function *function, float x)
{
    mpfr_t value;
    mpfr_init2(value, PRECISION);
    mpfr_set_flt(value, x, MPFR_RNDN);
    function(value, value, MPFR_RNDN);
    float rounded = mpfr_get_flt(value, MPFR_RNDN);
    mpfr_clear(value);
    return rounded;
}

static void check_at(const char *name, mpfr_function *function, float (*tested)(float), float x)
{
    float want = exact(function, x), got = tested(x);
    if (!same_bits(want, got)) fail_msg("%s(%a) is %a, want %a", name, (double)x, (double)got, (double)want);
}

static void check_sample(void **state)
{
    (void)state;
    const uint32_t stride = 20011; /* a prime: some 200000 arguments of every sign and magnitude */
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += stride) {
        float x = float_of((uint32_t)bits);
        check_at("exp", mpfr_exp, zb_ref_exp, x);
        check_at("log", mpfr_log, zb_ref_log, x);
    }
}

static void check_special(void **state)
{
    (void)state;
    /* Signs, ends of the range, the edges of overflow and underflow, and the arguments closest to a tie. */
    const float arguments[] = { 0.0f,
                                -0.0f,
                                1.0f,
                                -1.0f,
                                INFINITY,
                                -INFINITY,
                                NAN,
                                0x1p-149f,
                                -0x1p-149f,
                                0x1p-126f,
                                0x1p-24f,
                                -0x1p-25f,
                                88.722839f,
                                88.72284f,
                                -103.97207f,
                                -103.97208f,
                                -104.0f,
                                -87.336544f,
                                3.4e38f,
                                -3.4e38f,
                                -0x1.d2259ap+3f,
                                0x1.b121a6p+76f,
                                0x1.fffffep-1f,
                                0x1.000002p0f };
    for (size_t i = 0; i < sizeof arguments / sizeof arguments[0]; i++) {
        check_at("exp", mpfr_exp, zb_ref_exp, arguments[i]);
        check_at("log", mpfr_log, zb_ref_log, arguments[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_sample),
        cmocka_unit_test(check_special),
    };
    return cmocka_run_group_tests_name("ref_elementary", tests, NULL, NULL);
}
