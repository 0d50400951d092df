/* Eight floats in an AVX register, with FMA. See vec.h, which chooses. */
#ifndef ZB_KERNELS_VEC_AVX2_H
#define ZB_KERNELS_VEC_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { VL = 8 };
typedef __m256 vec;
static inline __m256i vec_mask(size_t count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec vec_zero(void)
{
    return _mm256_setzero_ps();
}
static inline vec vec_all(float x)
{
    return _mm256_set1_ps(x);
}
static inline vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline vec vec_load_part(const float *p, size_t count)
{
    return _mm256_maskload_ps(p, vec_mask(count));
}
static inline void vec_store(float *p, vec x)
{
    _mm256_storeu_ps(p, x);
}
static inline void vec_store_part(float *p, vec x, size_t count)
{
    _mm256_maskstore_ps(p, vec_mask(count), x);
}
static inline vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline int vec_any_sign(vec x)
{
    return _mm256_movemask_ps(x) != 0;
}
/* `yes` where the sign bit of `sign` is set. */
static inline vec vec_blend(vec sign, vec yes, vec no)
{
    return _mm256_blendv_ps(no, yes, sign);
}
static inline vec vec_sqrt(vec x)
{
    return _mm256_sqrt_ps(x);
}
static inline vec vec_load_fp16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vec vec_load_bf16(const uint16_t *p)
{
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
static inline vec vec_load_part_fp16(const uint16_t *p, size_t count)
{
    uint16_t whole[8] = { 0 };
    memcpy(whole, p, count * sizeof whole[0]);
    return vec_load_fp16(whole);
}
static inline vec vec_load_part_bf16(const uint16_t *p, size_t count)
{
    uint16_t whole[8] = { 0 };
    memcpy(whole, p, count * sizeof whole[0]);
    return vec_load_bf16(whole);
}
static inline void vec_store_fp16(uint16_t *p, vec x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vec vec_round_fp16(vec x)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline void vec_store_bf16(uint16_t *p, vec x)
{
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet_nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256i high = _mm256_srli_epi32(
        _mm256_castps_si256(
            _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet_nan), is_nan)),
        16);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

static inline void vec_transpose(vec rows[8])
{
    __m256 t[8], u[8];
    ZB_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    ZB_UNROLL
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    ZB_UNROLL
    for (int k = 0; k < 4; k++) {
        rows[k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x20);
        rows[4 + k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x31);
    }
}

#endif
