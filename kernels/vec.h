/*
 * One vector of floats per SIMD level, chosen by ZB_LEVEL_*: just what the matrix product, optimizers and the
 * conversions of fp16 and bf16 need beyond plain loops. VL lanes; the _part functions touch only the first
 * `count` elements in memory, 1 <= count <= VL. Loads of 16-bit elements widen them, stores round to nearest
 * even.
 */
#ifndef ZB_KERNELS_VEC_H
#define ZB_KERNELS_VEC_H

#include <stddef.h>

/* For functions of a constant, such as an element type, that become one loop for each of its values. */
#define ZB_SPECIALISED static inline __attribute__((always_inline))

#if defined(__clang__)
#define ZB_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#define ZB_UNROLL                 _Pragma("clang loop unroll(full)")
#else
#define ZB_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#define ZB_UNROLL                 _Pragma("GCC unroll 32")
#endif

#if defined(ZB_LEVEL_AVX512)
#include "kernels/vec_avx512.h"
#elif defined(ZB_LEVEL_AVX2)
#include "kernels/vec_avx2.h"
#else
#include "kernels/vec_portable.h"
#endif

/* One lane each, as bits: comparing gives all ones where it holds. */
typedef int vec_bits __attribute__((vector_size(sizeof(vec))));
/* False where either is NaN. */
static inline vec_bits vec_above(vec a, vec b)
{
    return (vec_bits)(a > b);
}
/* Whether it holds in any lane. */
static inline int vec_any(vec_bits condition)
{
    return vec_any_sign((vec)condition);
}
/* Each lane of `condition` is all ones or all zeros. */
static inline vec vec_select(vec_bits condition, vec yes, vec no)
{
    return vec_blend((vec)condition, yes, no);
}
/* The sum of two bf16, to the nearest bf16, ties to even. Its NaNs have nothing in their lower half, so that
 * rounding leaves them alone. */
static inline vec vec_round_bf16_sum(vec x)
{
    const vec_bits bits = (vec_bits)x, odd = bits >> 16 & 1;
    return (vec)((bits + 0x7fff + odd) & -0x10000);
}
/* Any number; a NaN stays one. */
static inline vec vec_round_bf16(vec x)
{
    const vec_bits nan = ((vec_bits)x | 0x400000) & -0x10000;
    return vec_select((vec_bits)(x != x), (vec)nan, vec_round_bf16_sum(x));
}
/* 2 VL elements as two vectors, of those with even and those with odd places: a shift and a mask, where side
 * by side they would have to be moved. What is stored has been rounded. */
static inline void vec_load_pair_bf16(const uint16_t *p, vec *x)
{
    vec_bits both;
    __builtin_memcpy(&both, p, sizeof both);
    x[0] = (vec)(both << 16);
    x[1] = (vec)(both & -0x10000);
}
static inline void vec_store_pair_bf16(uint16_t *p, const vec *x)
{
    const vec_bits both = (vec_bits)x[1] | ((vec_bits)x[0] >> 16 & 0xffff);
    __builtin_memcpy(p, &both, sizeof both);
}
/* NaN where `sign` is NaN: its sign bit means nothing, and processors do not agree on it. */
static inline vec vec_with_sign_of(vec magnitude, vec sign)
{
    const vec_bits sign_bit = (vec_bits)vec_all(-0.0f), nan = (vec_bits)vec_all(__builtin_nanf(""));
    const vec_bits copied = ((vec_bits)magnitude & ~sign_bit) | ((vec_bits)sign & sign_bit);
    return (vec)(copied | ((vec_bits)(sign != sign) & nan));
}

#endif
