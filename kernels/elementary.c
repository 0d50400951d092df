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

typedef struct dd {
    double hi, lo;
} dd; /* hi + lo, |lo| <= ulp(hi) / 2 */

/* 2^(j/32) */
static const dd exp2_table[32] = {
    { 0x1.0000000000000p+0, 0x0.0p+0 },
    { 0x1.059b0d3158574p+0, 0x1.d73e2a475b465p-55 },
    { 0x1.0b5586cf9890fp+0, 0x1.8a62e4adc610bp-54 },
    { 0x1.11301d0125b51p+0, -0x1.6c51039449b3ap-54 },
    { 0x1.172b83c7d517bp+0, -0x1.19041b9d78a76p-55 },
    { 0x1.1d4873168b9aap+0, 0x1.e016e00a2643cp-54 },
    { 0x1.2387a6e756238p+0, 0x1.9b07eb6c70573p-54 },
    { 0x1.29e9df51fdee1p+0, 0x1.612e8afad1255p-55 },
    { 0x1.306fe0a31b715p+0, 0x1.6f46ad23182e4p-55 },
    { 0x1.371a7373aa9cbp+0, -0x1.63aeabf42eae2p-54 },
    { 0x1.3dea64c123422p+0, 0x1.ada0911f09ebcp-55 },
    { 0x1.44e086061892dp+0, 0x1.89b7a04ef80d0p-59 },
    { 0x1.4bfdad5362a27p+0, 0x1.d4397afec42e2p-56 },
    { 0x1.5342b569d4f82p+0, -0x1.07abe1db13cadp-55 },
    { 0x1.5ab07dd485429p+0, 0x1.6324c054647adp-54 },
    { 0x1.6247eb03a5585p+0, -0x1.383c17e40b497p-54 },
    { 0x1.6a09e667f3bcdp+0, -0x1.bdd3413b26456p-54 },
    { 0x1.71f75e8ec5f74p+0, -0x1.16e4786887a99p-55 },
    { 0x1.7a11473eb0187p+0, -0x1.41577ee04992fp-55 },
    { 0x1.82589994cce13p+0, -0x1.d4c1dd41532d8p-54 },
    { 0x1.8ace5422aa0dbp+0, 0x1.6e9f156864b27p-54 },
    { 0x1.93737b0cdc5e5p+0, -0x1.75fc781b57ebcp-57 },
    { 0x1.9c49182a3f090p+0, 0x1.c7c46b071f2bep-56 },
    { 0x1.a5503b23e255dp+0, -0x1.d2f6edb8d41e1p-54 },
    { 0x1.ae89f995ad3adp+0, 0x1.7a1cd345dcc81p-54 },
    { 0x1.b7f76f2fb5e47p+0, -0x1.5584f7e54ac3bp-56 },
    { 0x1.c199bdd85529cp+0, 0x1.11065895048ddp-55 },
    { 0x1.cb720dcef9069p+0, 0x1.503cbd1e949dbp-56 },
    { 0x1.d5818dcfba487p+0, 0x1.2ed02d75b3707p-55 },
    { 0x1.dfc97337b9b5fp+0, -0x1.1a5cd4f184b5cp-54 },
    { 0x1.ea4afa2a490dap+0, -0x1.e9c23179c2893p-54 },
    { 0x1.f50765b6e4540p+0, 0x1.9d3e12dd8a18bp-54 },
};

static const dd inverse_factorial[] = {
    { 0x1.0000000000000p-1, 0x0.0p+0 },                /* 1/2! */
    { 0x1.5555555555555p-3, 0x1.5555555555555p-57 },   /* 1/3! */
    { 0x1.5555555555555p-5, 0x1.5555555555555p-59 },   /* 1/4! */
    { 0x1.1111111111111p-7, 0x1.1111111111111p-63 },   /* 1/5! */
    { 0x1.6c16c16c16c17p-10, -0x1.f49f49f49f49fp-65 }, /* 1/6! */
    { 0x1.a01a01a01a01ap-13, 0x1.a01a01a01a01ap-73 },  /* 1/7! */
    { 0x1.a01a01a01a01ap-16, 0x1.a01a01a01a01ap-76 },  /* 1/8! */
    { 0x1.71de3a556c734p-19, -0x1.c154f8ddc6c00p-73 }, /* 1/9! */
    { 0x1.27e4fb7789f5cp-22, 0x1.cbbc05b4fa99ap-76 },  /* 1/10! */
    { 0x1.ae64567f544e4p-26, -0x1.c062e06d1f209p-80 }, /* 1/11! */
    { 0x1.1eed8eff8d898p-29, -0x1.2aec959e14c06p-83 }, /* 1/12! */
    { 0x1.6124613a86d09p-33, 0x1.f28e0cc748ebep-87 },  /* 1/13! */
    { 0x1.93974a8c07c9dp-37, 0x1.05d6f8a2efd1fp-92 },  /* 1/14! */
    { 0x1.ae7f3e733b81fp-41, 0x1.1d8656b0ee8cbp-97 },  /* 1/15! */
};
enum { INVERSE_FACTORIALS = sizeof inverse_factorial / sizeof inverse_factorial[0] };

/* ln 2 / 32 in three pieces; products of the first two with integers below 2^14 are exact. */
static const double ln2_32_hi = 0x1.62e42fef00000p-6, ln2_32_mid = 0x1.473de6af26000p-39,
                    ln2_32_lo = 0x1.8ece600fcbdacp-79;
static const double inverse_ln2_32 = 0x1.71547652b82fep+5;
/* ln 2 in two pieces; the product of the first with an exponent is exact. */
static const double ln2_hi = 0x1.62e42fefa2000p-1, ln2_lo = 0x1.9ef35793c7673p-41;

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
    double shifted = x * inverse_ln2_32;
    return (int)(shifted + (shifted < 0 ? -0.5 : 0.5));
}

static double exp_fast(double x)
{
    int n = nearest_ln2_32(x);
    double r = (x - n * ln2_32_hi) - n * ln2_32_mid;
    double p = inverse_factorial[5].hi;
    for (int i = 4; i >= 0; i--) p = p * r + inverse_factorial[i].hi;
    p = r + (r * r) * p; /* exp(r) - 1 */
    const dd *t = &exp2_table[n & 31];
    return (t->hi + (t->lo + t->hi * p)) * power_of_two((n - (n & 31)) / 32);
}

static dd exp_accurate(double x)
{
    int n = nearest_ln2_32(x);
    dd r = two_sum(x - n * ln2_32_hi, -(n * ln2_32_mid));
    r = quick_two_sum(r.hi, r.lo - n * ln2_32_lo);
    dd p = inverse_factorial[INVERSE_FACTORIALS - 1];
    for (int i = INVERSE_FACTORIALS - 2; i >= 0; i--) p = dd_add(dd_multiply(p, r), inverse_factorial[i]);
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
    return e * ln2_hi + (2 * s + (s * z * q + e * ln2_lo));
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
