/*
 * One vector of floats per SIMD level, chosen by ZB_LEVEL_*: just what the matrix product needs beyond plain
 * loops. VL lanes; the _part functions touch only the first `count` floats in memory, 1 <= count <= VL.
 */
#ifndef ZB_KERNELS_VEC_H
#define ZB_KERNELS_VEC_H

#include <stddef.h>

#if defined(ZB_LEVEL_AVX512) || defined(ZB_LEVEL_AVX2)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define ZB_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#define ZB_UNROLL                 _Pragma("clang loop unroll(full)")
#else
#define ZB_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#define ZB_UNROLL                 _Pragma("GCC unroll 32")
#endif

#if defined(ZB_LEVEL_AVX512)

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

#elif defined(ZB_LEVEL_AVX2)

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

#else

enum { VL = 4 };
typedef float vec __attribute__((vector_size(16)));
static inline vec vec_zero(void)
{
    return (vec){ 0, 0, 0, 0 };
}
static inline vec vec_all(float x)
{
    return (vec){ x, x, x, x };
}
static inline vec vec_load(const float *p)
{
    return (vec){ p[0], p[1], p[2], p[3] };
}
static inline vec vec_load_part(const float *p, size_t count)
{
    return (vec){ p[0], count > 1 ? p[1] : 0, count > 2 ? p[2] : 0, count > 3 ? p[3] : 0 };
}
static inline void vec_store_part(float *p, vec x, size_t count)
{
    for (size_t i = 0; i < count; i++) p[i] = x[i];
}
static inline void vec_store(float *p, vec x)
{
    vec_store_part(p, x, VL);
}
static inline vec vec_add(vec a, vec b)
{
    return a + b;
}
static inline vec vec_fma(vec a, vec b, vec c)
{
    return (vec){ __builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]),
                  __builtin_fmaf(a[2], b[2], c[2]), __builtin_fmaf(a[3], b[3], c[3]) };
}
static inline void vec_transpose(vec rows[4])
{
    const vec a = rows[0], b = rows[1], c = rows[2], d = rows[3];
    for (int i = 0; i < VL; i++) rows[i] = (vec){ a[i], b[i], c[i], d[i] };
}

#endif
#endif
