/* The oracle's sum, 16-bit rounding, sums over ranks, exact norm, clip factor and optimizers against values
 * worked out by hand or published. */
#include "tests/ref/bits.h"

#include <stdio.h>

#include "ref/oracle.h"

/* --- the fixed shape of a sum --- */

static float sum_of(const float *x, size_t numel)
{
    zb_ref_sum sum = { 0 };
    for (size_t i = 0; i < numel; i++) zb_ref_sum_add(&sum, x[i]);
    return zb_ref_sum_total(&sum);
}

static void check_sum_shape(void **state)
{
    (void)state;
    float x[65] = { 0 };
    assert_true(same_bits(sum_of(x, 0), 0.0f));

    x[0] = -0.0f;
    assert_true(same_bits(sum_of(x, 1), 0.0f)); /* a lane starts at +0 */

    /* 2^24 in lane 0; a 1 that meets it alone is lost, two that meet each other first are not. */
    x[0] = 0x1p24f;
    x[32] = 1.0f, x[64] = 1.0f; /* lane 0, one after the other: lost twice */
    assert_true(same_bits(sum_of(x, 65), 0x1p24f));
    x[32] = 0.0f, x[64] = 0.0f;
    x[1] = 1.0f, x[3] = 1.0f; /* lanes 1 and 3 meet before they come to lane 0 */
    assert_true(same_bits(sum_of(x, 65), 0x1p24f + 2.0f));
    x[1] = 0.0f, x[3] = 0.0f;
    x[16] = 1.0f, x[8] = 1.0f; /* lane 16 comes to lane 0 at s = 16, lane 8 at s = 8: lost twice */
    assert_true(same_bits(sum_of(x, 65), 0x1p24f));
    x[16] = 0.0f, x[8] = 0.0f;
    x[24] = 1.0f, x[8] = 1.0f; /* lane 24 comes to lane 8 at s = 16 */
    assert_true(same_bits(sum_of(x, 65), 0x1p24f + 2.0f));
}

/* --- 16 bits --- */

/* What the formats are, from their widths alone: 1 sign, `exponent` and `fraction` bits. */
static const struct format_case {
    const char *name;
    zb_dtype dtype;
    int exponent, fraction;
} format_cases[] = {
    { "every fp16 number and its borders", ZB_FP16, 5, 10 },
    { "every bf16 number and its borders", ZB_BF16, 8, 7 },
};

/* The number of a positive code; of the first code that stands for none, what it would be. */
static double number_of(const struct format_case *f, uint32_t code)
{
    const int exponent = (int)(code >> f->fraction), bias = (1 << (f->exponent - 1)) - 1;
    const double fraction = ldexp((double)(code & ((1u << f->fraction) - 1)), -f->fraction);
    return exponent == 0 ? ldexp(fraction, 1 - bias) : ldexp(1.0 + fraction, exponent - bias);
}

static void assert_rounds(const struct format_case *f, float x, float to)
{
    const float up = zb_ref_round(f->dtype, x), down = zb_ref_round(f->dtype, -x);
    if (!same_bits(up, to) || !same_bits(down, -to))
        fail_msg("%a gives %a, %a, want %a", (double)x, (double)up, (double)down, (double)to);
}

/*
 * Between two neighbours lies a border, which fp32 holds: it goes to the even code, what is just below and
 * just above it to the nearer one. Above the border over the largest number lies infinity.
 */
static void check_rounding(void **state)
{
    const struct format_case *f = *state;
    const uint32_t infinity = ((1u << f->exponent) - 1) << f->fraction, sign = 0x8000;
    for (uint32_t code = 0; code < infinity; code++) {
        const double here = number_of(f, code), next = number_of(f, code + 1);
        const float x = (float)here, above = code + 1 == infinity ? INFINITY : (float)next;
        assert_true((double)x == here);
        assert_rounds(f, x, x);
        assert_int_equal(zb_ref_encode(f->dtype, x), code);
        assert_int_equal(zb_ref_encode(f->dtype, -x), code | sign);

        const float border = (float)((here + next) / 2.0);
        assert_rounds(f, nextafterf(border, 0.0f), x);
        assert_rounds(f, border, code % 2 == 0 ? x : above);
        assert_rounds(f, nextafterf(border, INFINITY), above);
    }
    assert_rounds(f, INFINITY, INFINITY);
    assert_rounds(f, 0x1.fffffep127f, INFINITY);
    assert_rounds(f, 0x1p-149f, 0.0f);
    assert_true(isnan(zb_ref_round(f->dtype, NAN)));
    assert_int_equal(zb_ref_encode(f->dtype, INFINITY), infinity);
    assert_int_equal(zb_ref_encode(f->dtype, -INFINITY), infinity | sign);
    assert_int_equal(zb_ref_encode(f->dtype, NAN), infinity | 1u << (f->fraction - 1));
}

static void check_fp32_is_not_rounded(void **state)
{
    (void)state;
    const float x[] = { 0x1.fffffep127f, 0x1p-149f, -0.0f, 0x1.000002p0f, INFINITY, NAN };
    for (size_t i = 0; i < 6; i++) assert_true(same_bits(zb_ref_round(ZB_FP32, x[i]), x[i]));
}

/* --- across ranks and micro-batches --- */

#define SUM                                                                                                  \
    {                                                                                                        \
        .inside = 0                                                                                          \
    }
#define INSIDE                                                                                               \
    {                                                                                                        \
        .inside = 1                                                                                          \
    }
#define BEFORE                                                                                               \
    {                                                                                                        \
        .before = { { ZB_FACTOR_DIVIDE, 3.0f } }                                                             \
    }
#define AFTER                                                                                                \
    {                                                                                                        \
        .after = { ZB_FACTOR_MULTIPLY, 1.0f / 3.0f }                                                         \
    }

static const struct reduce_case {
    const char *name;
    zb_dtype dtype;
    zb_averaging averaging;
    float ranks[3], result;
} reduce_cases[] = {
    /* 1 + 2^-8 + 2^-8 in fp32, then rounded: bf16 has 7 bits after the point */
    { "bf16 is added wide and rounded once", ZB_BF16, SUM, { 1.0f, 0x1p-8f, 0x1p-8f }, 0x1.02p0f },
    { "fp32 in rank order", ZB_FP32, SUM, { 0x1p24f, 1.0f, 1.0f }, 0x1p24f },
    { "fp16: the average of large numbers", ZB_FP16, INSIDE, { 6e4f, 6e4f, 6e4f }, 6e4f },
    { "fp16: the sum of large numbers", ZB_FP16, SUM, { 6e4f, 6e4f, -1.0f }, INFINITY },
    { "fp16: a third", ZB_FP16, INSIDE, { 1.0f, 0.0f, 0.0f }, 0x1.554p-2f },
    /* 7/3 and 1/3 give 149/64 and 171/512 in bf16, together 170.4/64; 8/3 would be 170.7/64 */
    { "divided before: each share is rounded", ZB_BF16, BEFORE, { 7.0f, 1.0f, 0.0f }, 170.0f / 64 },
    { "divided before: no overflow", ZB_FP16, BEFORE, { 6e4f, 6e4f, 6e4f }, 6e4f },
    { "divided after: the sum overflows", ZB_FP16, AFTER, { 6e4f, 6e4f, 6e4f }, INFINITY },
    { "divided after: times the reciprocal", ZB_FP32, AFTER, { 5.0f, 0.0f, 0.0f }, 5.0f * (1.0f / 3.0f) },
    { "what is sent is rounded first", ZB_BF16, SUM, { 0x1.01p0f, 0x1.01p0f, 0.0f }, 2.0f },
};

static void check_reduce(void **state)
{
    const struct reduce_case *c = *state;
    float data[3], out = -1.0f;
    zb_ref_tensors ranks[3], result = { .numel = 1, .data = &out };
    for (int r = 0; r < 3; r++) {
        data[r] = c->ranks[r];
        ranks[r] = (zb_ref_tensors){ .numel = 1, .data = &data[r] };
    }
    const zb_plan plan = {
        .world_size = 3, .bucket_dtype = c->dtype, .comm_dtype = c->dtype, .averaging = c->averaging
    };
    zb_ref_reduce(&plan, ranks, &result);
    if (!same_bits(out, c->result)) fail_msg("%a, want %a", (double)out, (double)c->result);
}

static void check_store(void **state)
{
    (void)state;
    float from_data[] = { 0x1.01p0f }, to_data[] = { 0x1p8f };
    const zb_ref_tensors from = { .numel = 1, .data = from_data };
    zb_ref_tensors to = { .numel = 1, .data = to_data };
    zb_ref_store(ZB_BF16, &from, 1, &to); /* 257 and a bit: nearer to 258 */
    assert_true(to_data[0] == 258.0f);
    zb_ref_store(ZB_BF16, &from, 0, &to);
    assert_true(to_data[0] == 1.0f);
    zb_ref_store(ZB_FP32, &from, 0, &to);
    assert_true(to_data[0] == 0x1.01p0f);
}

/* --- the exact norm --- */

#define TINY 0x1p-149f /* the smallest subnormal */

static const struct norm_case {
    const char *name;
    size_t numel;
    float x[6];
    double norm;
} norm_cases[] = {
    { "nothing", 0, { 0 }, 0.0 },
    { "zeros of both signs", 2, { 0.0f, -0.0f }, 0.0 },
    { "3, 4, 5", 2, { 3.0f, -4.0f }, 5.0 },
    { "one subnormal", 1, { TINY }, 0x1p-149 },
    { "four subnormals", 4, { TINY, TINY, -TINY, TINY }, 0x1p-148 },
    { "a subnormal beside a normal: 3, 4, 5 times 2^-128", 2, { 0x1.8p-127f, 0x1p-126f }, 0x1.4p-126 },
    { "a square that fp32 cannot hold", 1, { 1e30f }, (double)1e30f },
    { "the largest numbers",
      4,
      { 0x1.fffffep127f, 0x1.fffffep127f, 0x1.fffffep127f, -0x1.fffffep127f },
      0x1.fffffep128 },
    { "every magnitude at once: too small to count", 3, { 1e30f, 1.0f, TINY }, (double)1e30f },
    { "infinity", 2, { 1.0f, -INFINITY }, (double)INFINITY },
    { "NaN", 2, { 1.0f, NAN }, (double)NAN },
    { "NaN wins over infinity", 3, { INFINITY, NAN, -INFINITY }, (double)NAN },
};

static double norm_of(const float *x, size_t numel)
{
    zb_param params[] = { { .numel = numel, .requires_grad = 1 } };
    float copy[8];
    float *pointers[] = { copy };
    memcpy(copy, x, numel * sizeof *x);
    const zb_model model = { .params = params, .param_count = 1, .param_numel = numel };
    const zb_ref_tensors gradients = { .numel = numel, .data = copy, .param = pointers };
    return zb_ref_norm(&model, &gradients);
}

static void check_norm(void **state)
{
    const struct norm_case *c = *state;
    double got = norm_of(c->x, c->numel);
    if (got != c->norm && !(isnan(got) && isnan(c->norm))) fail_msg("%a, want %a", got, c->norm);
}

/*
 * S = (9/8 * 2^26)^2 + y^2 is an integer of 53 bits, so S + 1/4 + 1/4 is a tie: it goes to S when S is even
 * and to S + 1 when S is odd; any more, be it the square of a subnormal, and it always goes to S + 1. The
 * roots of S and S + 1 are less than a unit apart and not always different, hence many y.
 */
static void check_norm_rounds_once(void **state)
{
    (void)state;
    int visible = 0;
    for (int y = 1; y <= 200; y++) {
        const double sum = 0x1.2p26 * 0x1.2p26 + (double)(y * y);
        const float x[] = { 0x1.2p26f, (float)y, 0.5f, 0.5f, TINY };
        double tie = norm_of(x, 4), above = norm_of(x, 5);
        assert_true(tie == sqrt(y % 2 == 0 ? sum : sum + 1.0));
        assert_true(above == sqrt(sum + 1.0));
        visible += sqrt(sum) != sqrt(sum + 1.0);
    }
    assert_true(visible > 50);
}

static void check_norm_ignores_frozen(void **state)
{
    (void)state;
    zb_param params[] = { { .numel = 1, .requires_grad = 0 }, { .numel = 2, .requires_grad = 1 } };
    float data[] = { NAN, 3.0f, 4.0f };
    float *pointers[] = { data, data + 1 };
    const zb_model model = { .params = params, .param_count = 2, .param_numel = 3 };
    const zb_ref_tensors gradients = { .numel = 3, .data = data, .param = pointers };
    assert_true(zb_ref_norm(&model, &gradients) == 5.0);
}

/* Against 128-bit integers, on numbers whose squares they add exactly. */
static void check_norm_random(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 1000; round++) {
        float x[6];
        unsigned __int128 sum = 0; /* of squares in units of 2^-46: 24-bit integers times 2^-23 .. 2^7 */
        for (size_t i = 0; i < 6; i++) {
            uint32_t significand = zb_random_bits(7, round, i) >> 8;
            uint32_t exponent = zb_random_bits(8, round, i) % 31;
            x[i] = ldexpf((float)significand, (int)exponent - 23);
            unsigned __int128 scaled = (unsigned __int128)significand << exponent;
            sum += scaled * scaled;
        }
        /* The compiler's own conversion to double rounds once, to nearest even. */
        double want = sqrt(ldexp((double)sum, -46)), got = norm_of(x, 6);
        if (got != want) fail_msg("round %u: %a, want %a", round, got, want);
    }
}

/* --- clipping --- */

static const struct clip_case {
    const char *name;
    double norm, clip_norm, loss_scale;
    float scale;
} clip_cases[] = {
    { "off", 100.0, 0.0, 1.0, 1.0f },
    { "below the limit", 0.5, 1.0, 1.0, 1.0f },
    { "at the limit the 1e-6 counts", 1.0, 1.0, 1.0, 0x1.ffffdep-1f }, /* 1 / 1.000001 */
    { "twice the limit", 2.0 - 1e-6, 1.0, 1.0, 0.5f },
    { "infinite: nothing is clipped", (double)INFINITY, 1.0, 1.0, 1.0f },
    { "NaN: nothing is clipped", (double)NAN, 1.0, 1.0, 1.0f },
    { "the loss scale comes out", 0.5, 1.0, 1024.0, 0x1p-10f },
    { "the loss scale comes out without clipping", 100.0, 0.0, 0.75, 0x1.555556p0f },
    { "scaled and twice the limit", 2.0 - 1e-6, 1.0, 1024.0, 0x1p-11f },
    { "scaled and infinite", (double)INFINITY, 1.0, 1024.0, 0x1p-10f },
};

static void check_clip(void **state)
{
    const struct clip_case *c = *state;
    float got = zb_ref_grad_scale(c->norm, c->clip_norm, c->loss_scale);
    if (!same_bits(got, c->scale)) fail_msg("%a, want %a", (double)got, (double)c->scale);
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

int main(void)
{
    struct CMUnitTest
        tests[6 + COUNT(format_cases) + COUNT(reduce_cases) + COUNT(norm_cases) + COUNT(clip_cases)] = {
            cmocka_unit_test(check_sum_shape),           cmocka_unit_test(check_norm_rounds_once),
            cmocka_unit_test(check_norm_ignores_frozen), cmocka_unit_test(check_norm_random),
            cmocka_unit_test(check_fp32_is_not_rounded), cmocka_unit_test(check_store),
        };
    size_t count = 6;
    for (size_t i = 0; i < COUNT(format_cases); i++)
        tests[count++] = (struct CMUnitTest){ format_cases[i].name, check_rounding, NULL, NULL,
                                              (void *)&format_cases[i] };
    for (size_t i = 0; i < COUNT(reduce_cases); i++)
        tests[count++] = (struct CMUnitTest){ reduce_cases[i].name, check_reduce, NULL, NULL,
                                              (void *)&reduce_cases[i] };
    for (size_t i = 0; i < COUNT(norm_cases); i++)
        tests[count++] = (struct CMUnitTest){ norm_cases[i].name, check_norm, NULL, NULL,
                                              (void *)&norm_cases[i] };
    for (size_t i = 0; i < COUNT(clip_cases); i++)
        tests[count++] = (struct CMUnitTest){ clip_cases[i].name, check_clip, NULL, NULL,
                                              (void *)&clip_cases[i] };
    return cmocka_run_group_tests_name("ref_arithmetic", tests, NULL, NULL);
}
