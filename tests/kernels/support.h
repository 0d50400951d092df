/* What the tests of kernels/ share: every test runs at every SIMD level, on guarded arrays, and compares
 * bits. */
#ifndef ZB_TESTS_KERNELS_SUPPORT_H
#define ZB_TESTS_KERNELS_SUPPORT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/kernels.h"

/* One cmocka test per level; begins with use_level(state). */
#define AT_EACH_LEVEL(test)                                                                                  \
    { #test ", portable", test, NULL, NULL, (void *)"portable" },                                            \
        { #test ", avx2", test, NULL, NULL, (void *)"avx2" },                                                \
    {                                                                                                        \
#test ", avx512", test, NULL, NULL, (void *)"avx512"                                                 \
    }

/** Switches to the level that the state names; skips the test, visibly, when this machine lacks it. */
void use_level(void **state);

/* --- random numbers (xorshift64*) --- */

typedef struct rng {
    uint64_t state;
} rng;
uint64_t rng_next(rng *r);
/** 0 .. bound-1 */
size_t rng_below(rng *r, size_t bound);

/* What arrays are filled with. */
typedef enum fill_kind {
    FILL_UNIFORM, /* -1..1 */
    FILL_WIDE,    /* any exponent between 2^-40 and 2^40 */
    FILL_SMALL,   /* subnormals, and numbers whose products are */
    FILL_SPECIAL, /* zeros, infinities, NaN, extremes, and ones */
    FILL_BITS,    /* any 32 bits */
    FILL_KINDS
} fill_kind;
const char *fill_name(fill_kind kind);
float rng_float(rng *r, fill_kind kind);
void fill(rng *r, fill_kind kind, float *x, size_t numel);

/* Sizes around every edge of lanes, vectors and blocks. */
extern const size_t edge_sizes[];
extern const size_t edge_size_count;

/* --- guarded arrays --- */

/** `numel` elements of `bytes` each, `offset` elements past a 64-byte boundary, between bytes that must not
 * change. */
void *guarded(size_t numel, size_t bytes, size_t offset);
float *guarded_floats(size_t numel, size_t offset);
/** Fails when a guard has changed; frees. */
void guarded_free(void *pointer);

/* --- comparing --- */

uint32_t bits_of(float x);
float from_bits(uint32_t bits);
/** Same bits, or both NaN; otherwise fails and names the first element that differs. `format` says which case
 * it was. */
void assert_same_floats(const float *got, const float *want, size_t numel, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void assert_ok(zb_status status);

/* --- arrays of a type --- */

/* What the operations take: fp32, fp16, bf16. */
enum { TENSOR_DTYPES = 3 };
extern const zb_dtype tensor_dtypes[TENSOR_DTYPES];

/* `data` is for the operation; `values` are the same numbers for plain loops, which leave the wanted results
 * there. */
typedef struct tensor {
    zb_dtype dtype;
    size_t numel;
    void *data;    /* guarded */
    float *values; /* guarded */
} tensor;
/** Filled with `kind` as it looks in that type: its own subnormals, extremes and ties. At a random alignment.
 */
tensor tensor_random(rng *r, zb_dtype dtype, fill_kind kind, size_t numel);
/** Fails, naming the first element of `data` that is not `values` rounded to the type. */
void assert_tensor(const tensor *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/** Fails when a guard has changed. */
void tensor_free(tensor *t);

/* --- what is expected --- */

/* fp32 arithmetic of expected values, one operation per call, so that no compiler can combine two of them. */
static inline float times(float a, float b)
{
    volatile float r = a * b;
    return r;
}
static inline float plus(float a, float b)
{
    volatile float r = a + b;
    return r;
}
static inline float minus(float a, float b)
{
    volatile float r = a - b;
    return r;
}
static inline float over(float a, float b)
{
    volatile float r = a / b;
    return r;
}
static inline float root(float a)
{
    volatile float r = sqrtf(a);
    return r;
}

/* --- the contract's sum, in the plainest form --- */

float plain_reduce(const float *x, size_t numel);

/* --- fp16 and bf16, from nothing but their precision and range --- */

double plain_from_half(zb_dtype half, uint16_t x);
uint16_t plain_to_half(zb_dtype half, double x);
/** x after a trip through the type; x for fp32. */
float plain_rounded(zb_dtype dtype, float x);

#endif
