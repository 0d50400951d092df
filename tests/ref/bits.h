/* Comparison of fp32 arrays by their bits, and random numbers to fill them with. */
#ifndef ZB_TESTS_REF_BITS_H
#define ZB_TESTS_REF_BITS_H

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>
#include <zerobit/random.h>

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* NaNs are equal to one another. */
static inline int same_bits(float a, float b)
{
    return (isnan(a) && isnan(b)) || bits_of(a) == bits_of(b);
}

static inline void assert_same_floats(const char *what, const float *expected, const float *got, size_t numel)
{
    for (size_t i = 0; i < numel; i++)
        if (!same_bits(expected[i], got[i]))
            fail_msg("%s: element %zu is %a, want %a", what, i, (double)got[i], (double)expected[i]);
}

/* Uniform in [-1, 1). */
static inline void fill_random(float *x, size_t numel, uint32_t stream)
{
    for (size_t i = 0; i < numel; i++) x[i] = 2.0f * zb_random_uniform(1, stream, i) - 1.0f;
}

#endif
