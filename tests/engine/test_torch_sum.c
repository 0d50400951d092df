/* torch.sum of arrays of many lengths, against PyTorch 2.8 on a CPU (ATEN_CPU_CAPABILITY=avx2). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "engine/torch_sum.h"

enum { COUNT_MAX = 5000 };

/* Of x_i = (2654435761 (i + 1) mod 2^32) / 2^32, rounded to the type, i from 0. */
static const struct golden {
    size_t count;
    double fp64;
    float fp32;
} goldens[] = {
    { 1, 0x1.3c6ef36200000p-1, 0x1.3c6ef40000000p-1f },
    { 3, 0x1.b54cda2600000p+0, 0x1.b54cdc0000000p+0f },
    { 4, 0x1.1715607500000p+1, 0x1.1715620000000p+1f },
    { 5, 0x1.22a010af80000p+1, 0x1.22a0120000000p+1f },
    { 7, 0x1.a708a7ae00000p+1, 0x1.a708a80000000p+1f },
    { 8, 0x1.0ff3473900000p+2, 0x1.0ff3480000000p+2f },
    { 9, 0x1.33f0190740000p+2, 0x1.33f0180000000p+2f },
    { 13, 0x1.8f6e107ac0000p+2, 0x1.8f6e100000000p+2f },
    { 16, 0x1.01af14c100000p+3, 0x1.01af140000000p+3f },
    { 17, 0x1.11e4f75920000p+3, 0x1.11e4f80000000p+3f },
    { 31, 0x1.f16f78de00000p+3, 0x1.f16f7a0000000p+3f },
    { 33, 0x1.0b791ace10000p+4, 0x1.0b791c0000000p+4f },
    { 64, 0x1.0415e5f100000p+5, 0x1.0415e60000000p+5f },
    { 65, 0x1.0576952088000p+5, 0x1.0576940000000p+5f },
    { 100, 0x1.9092b46cd0000p+5, 0x1.9092b40000000p+5f },
    { 257, 0x1.015c8d0662000p+7, 0x1.015c8c0000000p+7f },
    { 300, 0x1.2c7810bdfc000p+7, 0x1.2c78100000000p+7f },
    { 1025, 0x1.005c4ccfd8800p+9, 0x1.005c4e0000000p+9f },
    { 5000, 0x1.387d6d72d4800p+11, 0x1.387d6c0000000p+11f },
};

static void sums_are_those_of_torch(void **state)
{
    static double wide[COUNT_MAX], narrow[COUNT_MAX];
    (void)state;
    for (uint64_t i = 0; i < COUNT_MAX; i++) {
        wide[i] = (double)(uint32_t)((i + 1) * 2654435761u) * 0x1p-32;
        narrow[i] = (double)(float)wide[i];
    }
    for (size_t g = 0; g < sizeof goldens / sizeof goldens[0]; g++) {
        const struct golden *want = &goldens[g];
        const double fp64 = zb_torch_sum_fp64(wide, want->count);
        const float fp32 = zb_torch_sum_fp32(narrow, want->count);
        if (fp64 != want->fp64) fail_msg("%zu in fp64: %a, want %a", want->count, fp64, want->fp64);
        if (fp32 != want->fp32)
            fail_msg("%zu in fp32: %a, want %a", want->count, (double)fp32, (double)want->fp32);
    }
    assert_true(zb_torch_sum_fp64(wide, 0) == 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(sums_are_those_of_torch) };
    return cmocka_run_group_tests_name("torch_sum", tests, NULL, NULL);
}
