/*
 * exp and log of fp32, correctly rounded, on a GPU: operation by operation what kernels/elementary.c does in
 * fp64, so that the proof over all 2^32 arguments holds here too. The names are the same; see there for the
 * mathematics.
 */
#ifndef ZB_KERNELS_CUDA_ELEMENTARY_CUH
#define ZB_KERNELS_CUDA_ELEMENTARY_CUH

#include "kernels/cuda/simt.cuh"

struct zb_dd {
    double hi, lo;
}; /* hi + lo, |lo| <= ulp(hi) / 2 */

/* 2^(j/32) */
static __device__ const zb_dd zb_exp2_table[32] = {
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

enum { ZB_INVERSE_FACTORIALS = 14 };
static __device__ const zb_dd zb_inverse_factorial[ZB_INVERSE_FACTORIALS] = {
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

/* ln 2 / 32 in three pieces, its inverse, and ln 2 in two pieces */
static constexpr double zb_ln2_32_hi = 0x1.62e42fef00000p-6, zb_ln2_32_mid = 0x1.473de6af26000p-39,
                        zb_ln2_32_lo = 0x1.8ece600fcbdacp-79;
static constexpr double zb_inverse_ln2_32 = 0x1.71547652b82fep+5;
static constexpr double zb_ln2_hi = 0x1.62e42fefa2000p-1, zb_ln2_lo = 0x1.9ef35793c7673p-41;

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
    const double shifted = x * zb_inverse_ln2_32;
    return (int)(shifted + (shifted < 0 ? -0.5 : 0.5));
}

ZB_DEVICE double zb_exp_fast(double x)
{
    const int n = zb_nearest_ln2_32(x);
    const double r = (x - n * zb_ln2_32_hi) - n * zb_ln2_32_mid;
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
    zb_dd r = zb_two_sum(x - n * zb_ln2_32_hi, -(n * zb_ln2_32_mid));
    r = zb_quick_two_sum(r.hi, r.lo - n * zb_ln2_32_lo);
    zb_dd p = zb_inverse_factorial[ZB_INVERSE_FACTORIALS - 1];
#pragma unroll 1
    for (int i = ZB_INVERSE_FACTORIALS - 2; i >= 0; i--)
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
    return e * zb_ln2_hi + (2 * s + (s * z * q + e * zb_ln2_lo));
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
