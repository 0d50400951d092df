/*
 * exp and log of fp32, correctly rounded, with + - * / of fp64 only, so that a GPU does the same.
 *
 * Each has a fast path, good to about 2^-52, and a rounding test: when both ends of the error interval round
 * to the same fp32 number, that is the answer. Otherwise (about once in 2^25 arguments) an accurate path in
 * pairs of doubles, good to about 2^-95, decides: no exp or log of an fp32 number other than exp(0) and
 * log(1) comes anywhere near as close as that to a rounding boundary. The tests try all 2^32 arguments.
 */
#include "kernels/elementary.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/elementary_numbers.h"

typedef struct dd {
    double hi, lo;
} dd; /* hi + lo, |lo| <= ulp(hi) / 2 */

static const dd exp2_table[32] = { ZB_EXP2_TABLE };
static const dd inverse_factorial[ZB_INVERSE_FACTORIAL_COUNT] = { ZB_INVERSE_FACTORIALS };

static uint64_t bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static double from_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 2^k for a normal result */
static double power_of_two(int k)
{
    return from_bits((uint64_t)(k + 1023) << 52);
}

static dd quick_two_sum(double a, double b) /* |a| >= |b| or a == 0 */
{
    double s = a + b;
    return (dd){ s, b - (s - a) };
}

static dd two_sum(double a, double b)
{
    double s = a + b, t = s - a;
    return (dd){ s, (a - (s - t)) + (b - t) };
}

/* a as the sum of two numbers of at most 26 bits */
static dd split(double a)
{
    double t = 134217729.0 * a, hi = t - (t - a);
    return (dd){ hi, a - hi };
}

static dd two_product(double a, double b)
{
    double p = a * b;
    dd x = split(a), y = split(b);
    return (dd){ p, ((x.hi * y.hi - p) + x.hi * y.lo + x.lo * y.hi) + x.lo * y.lo };
}

static dd dd_add(dd a, dd b)
{
    dd s = two_sum(a.hi, b.hi);
    return quick_two_sum(s.hi, s.lo + (a.lo + b.lo));
}

static dd dd_multiply(dd a, dd b)
{
    dd p = two_product(a.hi, b.hi);
    return quick_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

/*
 * The fp32 number nearest to a.hi + a.lo. Rounding a.hi alone would round twice, so a.hi is first moved to an
 * odd neighbour when something is left in a.lo: an odd double is no fp32 number and no midpoint of two.
 */
static float round_once(dd a)
{
    uint64_t bits = bits_of(a.hi);
    if (a.lo == 0 || bits & 1) return (float)a.hi;
    int away_from_zero = (a.lo > 0) == (a.hi > 0);
    return (float)from_bits(away_from_zero ? bits + 1 : bits - 1);
}

/* True when every number within `relative_error` of y rounds to the same fp32 number. */
static int rounds_surely(double y, double relative_error)
{
    double slack = y * relative_error;
    return (float)(y - slack) == (float)(y + slack);
}

/* x = count * ln2/32 + rest */
static int nearest_ln2_32(double x)
{
    double shifted = x * ZB_INVERSE_LN2_32;
    return (int)(shifted + (shifted < 0 ? -0.5 : 0.5));
}

static double exp_fast(double x)
{
    int n = nearest_ln2_32(x);
    double r = (x - n * ZB_LN2_32_HI) - n * ZB_LN2_32_MID;
    double p = inverse_factorial[5].hi;
    for (int i = 4; i >= 0; i--) p = p * r + inverse_factorial[i].hi;
    p = r + (r * r) * p; /* exp(r) - 1 */
    const dd *t = &exp2_table[n & 31];
    return (t->hi + (t->lo + t->hi * p)) * power_of_two((n - (n & 31)) / 32);
}

static dd exp_accurate(double x)
{
    int n = nearest_ln2_32(x);
    dd r = two_sum(x - n * ZB_LN2_32_HI, -(n * ZB_LN2_32_MID));
    r = quick_two_sum(r.hi, r.lo - n * ZB_LN2_32_LO);
    dd p = inverse_factorial[ZB_INVERSE_FACTORIAL_COUNT - 1];
    for (int i = ZB_INVERSE_FACTORIAL_COUNT - 2; i >= 0; i--)
        p = dd_add(dd_multiply(p, r), inverse_factorial[i]);
    p = dd_add(dd_multiply(p, r), (dd){ 1, 0 });
    p = dd_add(dd_multiply(p, r), (dd){ 1, 0 });
    p = dd_multiply(p, exp2_table[n & 31]);
    double scale = power_of_two((n - (n & 31)) / 32);
    return (dd){ p.hi * scale, p.lo * scale };
}

/* NaN, and arguments whose result is certain from their size. */
static int exp_special(float x, float *result)
{
    if (isnan(x)) return *result = x, 1;
    if (x > 89) return *result = INFINITY, 1;
    if (x < -104) return *result = 0, 1; /* below 2^-150, half the smallest subnormal */
    if (x == 0) return *result = 1, 1;
    return 0;
}

float zb_expf_accurate(float x)
{
    float result;
    if (exp_special(x, &result)) return result;
    return round_once(exp_accurate(x));
}

float zb_expf(float x)
{
    float result;
    if (exp_special(x, &result)) return result;
    double y = exp_fast(x);
    return rounds_surely(y, 0x1p-51) ? (float)y : zb_expf_accurate(x);
}

/* x = 2^e * m with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(s), s = (m - 1) / (m + 1), as a series in s */
static double log_fast(double x)
{
    static const double c[] = { 2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                                2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21 };
    uint64_t bits = bits_of(x);
    uint64_t mantissa = bits & 0xfffffffffffff;
    int above_sqrt2 = mantissa > 0x6a09e667f3bcc;
    int e = (int)(bits >> 52) - 1023 + above_sqrt2;
    double m = from_bits(mantissa | (uint64_t)(1023 - above_sqrt2) << 52);
    double s = (m - 1) / (m + 1), z = s * s;
    double q = c[9];
    for (int i = 8; i >= 0; i--) q = q * z + c[i];
    return e * ZB_LN2_HI + (2 * s + (s * z * q + e * ZB_LN2_LO));
}

static int log_special(float x, float *result)
{
    if (isnan(x)) return *result = x, 1;
    if (x == 0) return *result = -INFINITY, 1;
    if (x < 0) return *result = NAN, 1;
    if (isinf(x)) return *result = INFINITY, 1;
    if (x == 1) return *result = 0, 1;
    return 0;
}

float zb_logf_accurate(float x)
{
    float result;
    if (log_special(x, &result)) return result;
    /* One Newton step: log x = y + log(1 + d) with d = x exp(-y) - 1 about 2^-50, so log(1 + d) is d - d^2/2.
     */
    double y = log_fast(x);
    dd w = dd_multiply((dd){ x, 0 }, exp_accurate(-y));
    dd d = two_sum(w.hi - 1, w.lo);
    return round_once(two_sum(y, d.hi + (d.lo - d.hi * d.hi / 2)));
}

float zb_logf(float x)
{
    float result;
    if (log_special(x, &result)) return result;
    double y = log_fast(x);
    return rounds_surely(y, 0x1p-50) ? (float)y : zb_logf_accurate(x);
}
