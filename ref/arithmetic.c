/* Elementary functions, rounding to 16 bits, and the one shape of every sum that is not a chain. */
#include "ref/oracle.h"

#include <float.h>
#include <math.h>
#include <string.h>

/*
 * The contract wants the correctly rounded fp32 result. long double has 64 significand bits on x86-64 and 113
 * on arm64 Linux; expl and logl of the C library err by less than one unit of its last place. A search over
 * all 2^32 arguments found no exp closer than 2591, and no log closer than 62 units (of 64 bits) to a middle
 * between two neighbouring fp32 numbers, so that rounding the approximation gives what rounding the exact
 * value would.
 */
_Static_assert(LDBL_MANT_DIG >= 64, "the oracle needs a long double of at least 64 significand bits");

float zb_ref_exp(float x)
{
    return (float)expl((long double)x);
}
float zb_ref_log(float x)
{
    return (float)logl((long double)x);
}

/* --- 16 bits --- */

/*
 * What tells the formats apart: significant bits, the leading one included, and the exponent of the lowest
 * bit of the smallest subnormal number. The largest finite number limits what rounding may give.
 */
typedef struct format {
    int digits, lowest;
    float largest;
} format;

static format format_of(zb_dtype dtype)
{
    return dtype == ZB_FP16 ? (format){ 11, -24, 65504.0f } : (format){ 8, -133, 0x1.fep127f };
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

float zb_ref_round(zb_dtype dtype, float x)
{
    if (dtype == ZB_FP32 || x == 0.0f || !isfinite(x)) return x;
    const format f = format_of(dtype);

    /* |x| = significand * 2^exponent, the significand below 2^24 */
    int exponent = (int)(bits_of(x) >> 23 & 0xff);
    uint32_t significand = bits_of(x) & 0x7fffff;
    if (exponent == 0)
        exponent = 1;
    else
        significand |= 0x800000;
    exponent -= 150;

    /* The lowest bits go: as many as the format has too few, and those below its smallest number. */
    int drop = 24 - f.digits;
    if (drop < f.lowest - exponent) drop = f.lowest - exponent;
    if (drop > 25) return copysignf(0.0f, x); /* less than half of the smallest number */
    uint32_t kept = significand >> drop, rest = significand & ((1u << drop) - 1), half = 1u << (drop - 1);
    if (rest > half || (rest == half && kept % 2 == 1)) kept++;

    const float magnitude = ldexpf((float)kept, exponent + drop);
    return copysignf(magnitude > f.largest ? INFINITY : magnitude, x);
}

void zb_ref_round_all(zb_dtype dtype, float *x, size_t numel)
{
    if (dtype == ZB_FP32) return;
    for (size_t i = 0; i < numel; i++) x[i] = zb_ref_round(dtype, x[i]);
}

uint16_t zb_ref_encode(zb_dtype dtype, float x)
{
    if (dtype == ZB_BF16) return isnan(x) ? 0x7fc0 : (uint16_t)(bits_of(x) >> 16);
    const uint32_t sign = bits_of(x) >> 16 & 0x8000, magnitude = bits_of(fabsf(x));
    if (isnan(x)) return 0x7e00;
    if (isinf(x)) return (uint16_t)(sign | 0x7c00);
    if (fabsf(x) < 0x1p-14f) return (uint16_t)(sign | (uint32_t)(fabsf(x) * 0x1p24f));
    return (uint16_t)(sign | (magnitude - (112u << 23)) >> 13); /* exponents are biased by 127 and by 15 */
}

void zb_ref_sum_add(zb_ref_sum *sum, float x)
{
    sum->lane[sum->count % ZB_REF_LANES] += x;
    sum->count++;
}

float zb_ref_sum_total(const zb_ref_sum *sum)
{
    zb_ref_sum tree = *sum;
    for (size_t s = ZB_REF_LANES / 2; s > 0; s /= 2)
        for (size_t l = 0; l < s; l++) tree.lane[l] += tree.lane[l + s];
    return tree.lane[0];
}
