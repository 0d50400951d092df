/* The L2 norm in PyTorch's order, against plain loops, and the search for what is
 * no number. */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

static double plain_norm_fp32(const float *x, size_t numel)
{
    float lanes[8] = { 0 };
    size_t rest = numel - numel % 8;
    for (size_t i = 0; i < rest; i++) lanes[i % 8] += x[i] * x[i];
    float sum = lanes[0];
    for (int l = 1; l < 8; l++) sum += lanes[l];
    for (; rest < numel / 4 * 4; rest++) sum += x[rest] * x[rest];
    for (; rest < numel; rest++) sum = fmaf(x[rest], x[rest], sum); /* the last one to three */
    return (double)sqrtf(sum);
}

static double plain_norm_fp64(const float *x, size_t numel)
{
    double lanes[4] = { 0 }, sum = 0;
    size_t rest = numel / 4 * 4;
    for (size_t i = 0; i < rest; i++) lanes[i % 4] += (double)x[i] * (double)x[i];
    for (int l = 0; l < 4; l++) sum += lanes[l];
    for (; rest < numel; rest++) sum += (double)x[rest] * (double)x[rest];
    return sqrt(sum);
}

static int same_double(double a, double b)
{
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

static void norm_is_the_plain_loop(void **state)
{
    use_level(state);
    rng r = { 71 };
    for (size_t d = 0; d < TENSOR_DTYPES; d++)
        for (int kind = 0; kind < FILL_KINDS; kind++)
            for (size_t s = 0; s < edge_size_count; s++)
                for (int wide = 0; wide < 2; wide++) {
                    tensor x = tensor_random(&r, tensor_dtypes[d], (fill_kind)kind, edge_sizes[s]);
                    double norm = 77, want = (wide ? plain_norm_fp64 : plain_norm_fp32)(x.values, x.numel);
                    assert_ok(zb_cpu_norm(&(zb_norm_args){ x.dtype, x.data, x.numel, wide, &norm }));
                    if (!same_double(norm, want))
                        fail_msg("%s, %s, %zu elements, wide %d: %a, want %a", zb_dtype_name(x.dtype),
                                 fill_name((fill_kind)kind), x.numel, wide, norm, want);
                    tensor_free(&x);
                }
}

/* A level with wider vectors must not add in more lanes: two squares of 1 in one lane are 2 when they meet
 * 2^24, and stay; alone each of them is lost. */
static void norm_has_eight_lanes(void **state)
{
    use_level(state);
    float x[16];
    double norm;
    for (int i = 0; i < 16; i++) x[i] = i % 8 != 1 ? 1.0f : i == 1 ? 4096.0f : 0.0f;
    assert_ok(zb_cpu_norm(&(zb_norm_args){ ZB_FP32, x, 16, 0, &norm }));
    assert_true(norm == (double)sqrtf(16777216.0f + 14.0f));
    assert_true(norm != 4096.0);
    assert_ok(zb_cpu_norm(&(zb_norm_args){ ZB_FP32, x, 16, 1, &norm }));
    assert_true(norm == sqrt(16777216.0 + 14.0));
}

static void what_is_no_number_is_found_anywhere(void **state)
{
    static const uint32_t special[] = { 0x7f800000, 0xff800000, 0x7fc00000, 0xff800001 };
    use_level(state);
    for (size_t d = 0; d < TENSOR_DTYPES; d++)
        for (size_t numel = 0; numel < 2100; numel += numel < 40 ? 1 : 97)
            for (size_t at = 0; at <= numel; at += at < 20 || at + 20 > numel ? 1 : 61)
                for (int was = 0; was < 2; was++) {
                    rng r = { 5 + numel };
                    tensor x = tensor_random(&r, tensor_dtypes[d], FILL_UNIFORM, numel);
                    uint8_t flag = (uint8_t)was;
                    const float bad = from_bits(special[at % 4]);
                    if (at < numel)
                        assert_ok(zb_cpu_cast(&(zb_cast_args){ (char *)x.data + at * zb_dtype_bytes(x.dtype),
                                                               x.dtype, &bad, ZB_FP32, 1 }));
                    assert_ok(
                        zb_cpu_find_nonfinite(&(zb_find_nonfinite_args){ x.dtype, x.data, numel, &flag }));
                    assert_int_equal(flag, was || at < numel);
                    tensor_free(&x);
                }
}

/* The largest numbers are numbers, though their squares are not. */
static void large_is_not_infinite(void **state)
{
    use_level(state);
    static const float x[] = { 3.4028234663852886e38f, -3.4028234663852886e38f, 1e-45f, 0.0f };
    uint8_t flag = 0;
    double norm;
    assert_ok(zb_cpu_find_nonfinite(&(zb_find_nonfinite_args){ ZB_FP32, x, 4, &flag }));
    assert_int_equal(flag, 0);
    assert_ok(zb_cpu_norm(&(zb_norm_args){ ZB_FP32, x, 4, 0, &norm }));
    assert_true(isinf(norm));
    assert_ok(zb_cpu_norm(&(zb_norm_args){ ZB_FP32, x, 4, 1, &norm }));
    assert_true(isfinite(norm));
}

static void other_types_are_refused(void **state)
{
    use_level(state);
    double norm = 77, x[2] = { 1, 2 };
    uint8_t flag = 3;
    assert_int_equal(zb_cpu_norm(&(zb_norm_args){ ZB_FP64, x, 2, 1, &norm }), ZB_UNSUPPORTED);
    assert_int_equal(zb_cpu_find_nonfinite(&(zb_find_nonfinite_args){ ZB_INT32, x, 2, &flag }),
                     ZB_UNSUPPORTED);
    assert_true(norm == 77 && flag == 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT_EACH_LEVEL(norm_is_the_plain_loop),
        AT_EACH_LEVEL(norm_has_eight_lanes),
        AT_EACH_LEVEL(what_is_no_number_is_found_anywhere),
        AT_EACH_LEVEL(large_is_not_infinite),
        AT_EACH_LEVEL(other_types_are_refused),
    };
    return cmocka_run_group_tests_name("norm", tests, NULL, NULL);
}
