/* fp16 and bf16 in bit operations that a compiler can turn into vectors: widening is exact, narrowing rounds
 * once, to nearest even. A NaN stays one, is quiet and keeps what fits of its payload, as from the
 * instructions. */
#ifndef ZB_KERNELS_HALF_H
#define ZB_KERNELS_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t zb_float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float zb_float_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float zb_float_from_bf16(uint16_t x)
{
    return zb_float_from_bits((uint32_t)x << 16);
}

static inline uint16_t zb_bf16_from_float(float x)
{
    const uint32_t bits = zb_float_bits(x);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >>
                             16; /* a carry may reach infinity, rightly */
    const uint32_t quiet_nan = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

static inline float zb_float_from_fp16(uint16_t x)
{
    const uint32_t magnitude = x & 0x7fff, sign = (uint32_t)(x & 0x8000) << 16;
    /* Read as an fp32 the exponent is 112 too small; the product is exact and turns subnormals into normals.
     */
    const uint32_t finite = zb_float_bits(zb_float_from_bits(magnitude << 13) * 0x1p112f);
    const uint32_t special = magnitude << 13 | (magnitude > 0x7c00 ? 0x7fc00000 : 0x7f800000);
    return zb_float_from_bits(sign | (magnitude >= 0x7c00 ? special : finite));
}

static inline uint16_t zb_fp16_from_float(float x)
{
    const uint32_t bits = zb_float_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    /* 2^16 and more: infinity. Less may still round up to it, through a carry. */
    const uint32_t clamped = magnitude < 0x47800000 ? magnitude : 0x47800000;
    const uint32_t normal = ((clamped + 0xfff + (clamped >> 13 & 1)) >> 13) - (112u << 10);
    /* Below 2^-14: the sum with 1/2 rounds to a multiple of 2^-24, the smallest fp16. */
    const uint32_t subnormal = zb_float_bits(zb_float_from_bits(clamped) + 0.5f) - 0x3f000000;
    const uint32_t finite = clamped < 0x38800000 ? subnormal : normal;
    const uint32_t quiet_nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
    return (uint16_t)(sign | (magnitude > 0x7f800000 ? quiet_nan : finite));
}

/*
 * To fp32 with rounding to odd: an inexact result has its last bit set. fp32 has at least two bits more than
 * the 16-bit types, so that rounding this to one of them gives what rounding x at once would.
 */
static inline float zb_float_odd_from_double(double x)
{
    const float nearest = (float)x;
    const uint32_t bits = zb_float_bits(nearest);
    if ((double)nearest == x || x != x || (bits & 1)) return nearest;
    const int nearest_is_larger = x > 0 ? (double)nearest > x : (double)nearest < x; /* in magnitude */
    return zb_float_from_bits(nearest_is_larger ? bits - 1 : bits + 1);
}

#endif
