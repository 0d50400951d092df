/* Sixteen floats in an AVX-512 register. See vec.h, which chooses. */
#ifndef ZB_KERNELS_VEC_AVX512_H
#define ZB_KERNELS_VEC_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { VL = 16 };
typedef __m512 vec;
static inline __mmask16 vec_mask(size_t count)
{
    return (__mmask16)((1u << count) - 1);
}
static inline vec vec_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vec vec_all(float x)
{
    return _mm512_set1_ps(x);
}
static inline vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline vec vec_load_part(const float *p, size_t count)
{
    return _mm512_maskz_loadu_ps(vec_mask(count), p);
}
static inline void vec_store(float *p, vec x)
{
    _mm512_storeu_ps(p, x);
}
static inline void vec_store_part(float *p, vec x, size_t count)
{
    _mm512_mask_storeu_ps(p, vec_mask(count), x);
}
static inline vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec vec_widen_bf16(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static inline int vec_any_sign(vec x)
{
    return _mm512_movepi32_mask(_mm512_castps_si512(x)) != 0;
}
/* `yes` where the sign bit of `sign` is set. */
static inline vec vec_blend(vec sign, vec yes, vec no)
{
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign)), no, yes);
}
static inline vec vec_sqrt(vec x)
{
    return _mm512_sqrt_ps(x);
}
static inline vec vec_load_fp16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vec vec_load_bf16(const uint16_t *p)
{
    return vec_widen_bf16(_mm256_loadu_si256((const __m256i *)p));
}
static inline vec vec_load_part_fp16(const uint16_t *p, size_t count)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vec_mask(count), p));
}
static inline vec vec_load_part_bf16(const uint16_t *p, size_t count)
{
    return vec_widen_bf16(_mm256_maskz_loadu_epi16(vec_mask(count), p));
}
static inline void vec_store_fp16(uint16_t *p, vec x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vec vec_round_fp16(vec x)
{
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Not by VCVTNEPS2BF16, which takes subnormals for zeros. */
static inline void vec_store_bf16(uint16_t *p, vec x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quieted = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits,
                                                 _mm512_set1_epi32(0x00400000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(quieted, 16)));
}

/* rows[i] lane j  <->  rows[j] lane i */
static inline void vec_transpose(vec rows[16])
{
    __m512 t[16], u[16];
    ZB_UNROLL
    for (int i = 0; i < 16; i += 2) { /* pairs of rows */
        t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    ZB_UNROLL
    for (int i = 0; i < 16; i += 4) { /* u[i + k]: column k of each 128-bit lane, of four rows */
        u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        u[i + 2] = _mm512_castpd_ps(
            _mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
        u[i + 3] = _mm512_castpd_ps(
            _mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    }
    ZB_UNROLL
    for (int k = 0; k < 4;
         k++) { /* a 4x4 transpose of 128-bit lanes: rows 4g.. of lane h become lane g of row 4h + k */
        const __m512 low01 = _mm512_shuffle_f32x4(u[k], u[4 + k], 0x44),
                     high01 = _mm512_shuffle_f32x4(u[k], u[4 + k], 0xee);
        const __m512 low23 = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0x44),
                     high23 = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0xee);
        rows[k] = _mm512_shuffle_f32x4(low01, low23, 0x88);
        rows[4 + k] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
        rows[8 + k] = _mm512_shuffle_f32x4(high01, high23, 0x88);
        rows[12 + k] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
    }
}

#endif
