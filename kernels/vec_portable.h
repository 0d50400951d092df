/* Four floats in whatever the compiler makes of a vector, fma through the library where there is no
 * instruction. See vec.h, which chooses. */
#ifndef ZB_KERNELS_VEC_PORTABLE_H
#define ZB_KERNELS_VEC_PORTABLE_H

#include <stddef.h>

#include "kernels/half.h"

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
static inline int vec_any_sign(vec x)
{
    return __builtin_signbit(x[0]) || __builtin_signbit(x[1]) || __builtin_signbit(x[2]) ||
           __builtin_signbit(x[3]);
}
/* `yes` where a lane of `mask` is all ones, `no` where it is all zeros. */
static inline vec vec_blend(vec mask, vec yes, vec no)
{
    typedef int bits __attribute__((vector_size(sizeof(vec))));
    return (vec)(((bits)mask & (bits)yes) | (~(bits)mask & (bits)no));
}
static inline vec vec_sqrt(vec x)
{
    return (vec){ __builtin_sqrtf(x[0]), __builtin_sqrtf(x[1]), __builtin_sqrtf(x[2]),
                  __builtin_sqrtf(x[3]) };
}
static inline vec vec_load_fp16(const uint16_t *p)
{
    return (vec){ zb_float_from_fp16(p[0]), zb_float_from_fp16(p[1]), zb_float_from_fp16(p[2]),
                  zb_float_from_fp16(p[3]) };
}
static inline vec vec_load_bf16(const uint16_t *p)
{
    return (vec){ zb_float_from_bf16(p[0]), zb_float_from_bf16(p[1]), zb_float_from_bf16(p[2]),
                  zb_float_from_bf16(p[3]) };
}
static inline vec vec_load_part_fp16(const uint16_t *p, size_t count)
{
    vec x = vec_zero();
    for (size_t i = 0; i < count; i++) x[i] = zb_float_from_fp16(p[i]);
    return x;
}
static inline vec vec_load_part_bf16(const uint16_t *p, size_t count)
{
    vec x = vec_zero();
    for (size_t i = 0; i < count; i++) x[i] = zb_float_from_bf16(p[i]);
    return x;
}
static inline void vec_store_fp16(uint16_t *p, vec x)
{
    for (int i = 0; i < VL; i++) p[i] = zb_fp16_from_float(x[i]);
}
static inline vec vec_round_fp16(vec x)
{
    for (int i = 0; i < VL; i++) x[i] = zb_float_from_fp16(zb_fp16_from_float(x[i]));
    return x;
}
static inline void vec_store_bf16(uint16_t *p, vec x)
{
    for (int i = 0; i < VL; i++) p[i] = zb_bf16_from_float(x[i]);
}
static inline void vec_transpose(vec rows[4])
{
    const vec a = rows[0], b = rows[1], c = rows[2], d = rows[3];
    for (int i = 0; i < VL; i++) rows[i] = (vec){ a[i], b[i], c[i], d[i] };
}

#endif
