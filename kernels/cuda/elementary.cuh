/*
 * exp and log of fp32, correctly rounded, on a GPU: operation by operation what kernels/elementary.c does in
 * fp64, so that the proof over all 2^32 arguments holds here too. The names are the same; see there for the
 * mathematics.
 */
#ifndef ZB_KERNELS_CUDA_ELEMENTARY_CUH
#define ZB_KERNELS_CUDA_ELEMENTARY_CUH

#include "kernels/cuda/simt.cuh"
#include "kernels/elementary_numbers.h"

struct zb_dd {
    double hi, lo;
}; /* hi + lo, |lo| <= ulp(hi) / 2 */

static __device__ const zb_dd zb_exp2_table[32] = { ZB_EXP2_TABLE };

static __device__ const zb_dd zb_inverse_factorial[ZB_INVERSE_FACTORIAL_COUNT] = { ZB_INVERSE_FACTORIALS };

ZB_DEVICE uint64_t zb_bits_of(double x)
{
    return (uint64_t)__double_as_longlong(x);
}
ZB_DEVICE double zb_from_bits(uint64_t bits)
{
    return __longlong_as_double((long long)bits);
}
ZB_DEVICE double zb_power_of_two(int k)
{
    return zb_from_bits((uint64_t)(k + 1023) << 52);
}

/* --- pairs --- */

ZB_DEVICE zb_dd zb_quick_two_sum(double a, double b)
{
    const double s = a + b;
    return zb_dd{ s, b - (s - a) };
}
ZB_DEVICE zb_dd zb_two_sum(double a, double b)
{
    const double s = a + b, t = s - a;
    return zb_dd{ s, (a - (s - t)) + (b - t) };
}
ZB_DEVICE zb_dd zb_split(double a)
{
    const double t = 134217729.0 * a, hi = t - (t - a);
    return zb_dd{ hi, a - hi };
}
ZB_DEVICE zb_dd zb_two_product(double a, double b)
{
    const double p = a * b;
    const zb_dd x = zb_split(a), y = zb_split(b);
    return zb_dd{ p, ((x.hi * y.hi - p) + x.hi * y.lo + x.lo * y.hi) + x.lo * y.lo };
}
ZB_DEVICE zb_dd zb_dd_add(zb_dd a, zb_dd b)
{
    const zb_dd s = zb_two_sum(a.hi, b.hi);
    return zb_quick_two_sum(s.hi, s.lo + (a.lo + b.lo));
}
ZB_DEVICE zb_dd zb_dd_multiply(zb_dd a, zb_dd b)
{
    const zb_dd p = zb_two_product(a.hi, b.hi);
    return zb_quick_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

/* --- rounding --- */

ZB_DEVICE float zb_round_once(zb_dd a)
{
    const uint64_t bits = zb_bits_of(a.hi);
    if (a.lo == 0 || (bits & 1)) return (float)a.hi;
    const bool away_from_zero = (a.lo > 0) == (a.hi > 0);
    return (float)zb_from_bits(away_from_zero ? bits + 1 : bits - 1);
}
ZB_DEVICE bool zb_rounds_surely(double y, double relative_error)
{
    const double slack = y * relative_error;
    return (float)(y - slack) == (float)(y + slack);
}

/* --- exp --- */

ZB_DEVICE int zb_nearest_ln2_32(double x)
{
    const double shifted = x * ZB_INVERSE_LN2_32;
    return (int)(shifted + (shifted < 0 ? -0.5 : 0.5));
}

ZB_DEVICE double zb_exp_fast(double x)
{
    const int n = zb_nearest_ln2_32(x);
    const double r = (x - n * ZB_LN2_32_HI) - n * ZB_LN2_32_MID;
    double p = zb_inverse_factorial[5].hi;
#pragma unroll
    for (int i = 4; i >= 0; i--) p = p * r + zb_inverse_factorial[i].hi;
    p = r + (r * r) * p;
    const zb_dd t = zb_exp2_table[n & 31];
    return (t.hi + (t.lo + t.hi * p)) * zb_power_of_two((n - (n & 31)) / 32);
}

/* Rare: a call, so that the fast path keeps the registers. */
ZB_DEVICE_RARE zb_dd zb_exp_accurate(double x)
{
    const int n = zb_nearest_ln2_32(x);
    zb_dd r = zb_two_sum(x - n * ZB_LN2_32_HI, -(n * ZB_LN2_32_MID));
    r = zb_quick_two_sum(r.hi, r.lo - n * ZB_LN2_32_LO);
    zb_dd p = zb_inverse_factorial[ZB_INVERSE_FACTORIAL_COUNT - 1];
#pragma unroll 1
    for (int i = ZB_INVERSE_FACTORIAL_COUNT - 2; i >= 0; i--)
        p = zb_dd_add(zb_dd_multiply(p, r), zb_inverse_factorial[i]);
    p = zb_dd_add(zb_dd_multiply(p, r), zb_dd{ 1, 0 });
    p = zb_dd_add(zb_dd_multiply(p, r), zb_dd{ 1, 0 });
    p = zb_dd_multiply(p, zb_exp2_table[n & 31]);
    const double scale = zb_power_of_two((n - (n & 31)) / 32);
    return zb_dd{ p.hi * scale, p.lo * scale };
}

ZB_DEVICE float zb_exp(float x)
{
    if (isnan(x)) return x;
    if (x > 89) return INFINITY;
    if (x < -104) return 0;
    if (x == 0) return 1;
    const double y = zb_exp_fast(x);
    return zb_rounds_surely(y, 0x1p-51) ? (float)y : zb_round_once(zb_exp_accurate(x));
}

/* --- log --- */

ZB_DEVICE double zb_log_fast(double x)
{
    const double c[] = { 2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                         2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21 };
    const uint64_t bits = zb_bits_of(x), mantissa = bits & 0xfffffffffffff;
    const int above_sqrt2 = mantissa > 0x6a09e667f3bcc;
    const int e = (int)(bits >> 52) - 1023 + above_sqrt2;
    const double m = zb_from_bits(mantissa | (uint64_t)(1023 - above_sqrt2) << 52);
    const double s = (m - 1) / (m + 1), z = s * s;
    double q = c[9];
#pragma unroll
    for (int i = 8; i >= 0; i--) q = q * z + c[i];
    return e * ZB_LN2_HI + (2 * s + (s * z * q + e * ZB_LN2_LO));
}

ZB_DEVICE_RARE float zb_log_accurate(float x)
{
    const double y = zb_log_fast(x);
    const zb_dd w = zb_dd_multiply(zb_dd{ x, 0 }, zb_exp_accurate(-y));
    const zb_dd d = zb_two_sum(w.hi - 1, w.lo);
    return zb_round_once(zb_two_sum(y, d.hi + (d.lo - d.hi * d.hi / 2)));
}

ZB_DEVICE float zb_log(float x)
{
    if (isnan(x)) return x;
    if (x == 0) return -INFINITY;
    if (x < 0) return NAN;
    if (isinf(x)) return INFINITY;
    if (x == 1) return 0;
    const double y = zb_log_fast(x);
    return zb_rounds_surely(y, 0x1p-50) ? (float)y : zb_log_accurate(x);
}

#endif
