/* See support.h. */
#include "tests/kernels/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void use_level(void **state)
{
    const zb_status status = zb_cpu_set_simd_level(*state);
    if (status == ZB_UNSUPPORTED || (status == ZB_INVALID_ARGUMENT && strcmp(*state, "portable") != 0))
        skip();
    assert_ok(status);
    assert_string_equal(zb_simd_level(), *state);
}

uint64_t rng_next(rng *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * 0x2545f4914f6cdd1d;
}

size_t rng_below(rng *r, size_t bound)
{
    return (size_t)((rng_next(r) >> 32) * bound >> 32);
}

const char *fill_name(fill_kind kind)
{
    static const char *const names[FILL_KINDS] = { "uniform", "wide", "small", "special", "any bits" };
    return names[kind];
}

float rng_float(rng *r, fill_kind kind)
{
    static const float special[] = {
        0.0f,       -0.0f,    1.0f,       -1.0f, 0x1p-149f, -0x1p-149f,      0x1.fffffcp-127f, 0x1p-126f,
        -0x1p-126f, 0x1p-75f, 0x1.8p-74f, 1.5f,  -1.5f,     0x1.fffffep127f, -0x1.fffffep127f, INFINITY,
        -INFINITY,  NAN
    };
    const uint32_t bits = (uint32_t)(rng_next(r) >> 32), exponent = bits >> 23 & 255;
    switch (kind) {
    case FILL_UNIFORM:
        return (float)(int32_t)bits * 0x1p-31f;
    case FILL_WIDE:
        return from_bits((bits & 0x807fffff) | (87 + exponent % 81) << 23);
    case FILL_SMALL:
        return from_bits((bits & 0x807fffff) | (exponent % 4 == 0 ? 0 : 52 + exponent % 12) << 23);
    case FILL_SPECIAL:
        return special[bits % (sizeof special / sizeof special[0])];
    default:
        return from_bits(bits);
    }
}

void fill(rng *r, fill_kind kind, float *x, size_t numel)
{
    for (size_t i = 0; i < numel; i++) x[i] = rng_float(r, kind);
}

const size_t edge_sizes[] = { 0,  1,  2,  3,  7,   8,   9,   15,  16,   17,   31,   32,  33,
                              47, 63, 64, 65, 100, 255, 256, 257, 1023, 1024, 1025, 4099 };
const size_t edge_size_count = sizeof edge_sizes / sizeof edge_sizes[0];

/* Layout: header, guard, offset, elements, guard. The pointer handed out finds its header through `start`. */
enum { GUARD_BYTES = 256, GUARD = 0xa5 };

typedef struct guard_header {
    unsigned char *elements;
    size_t bytes;
    struct guard_header *next;
} guard_header;

static guard_header *guard_list;

void *guarded(size_t numel, size_t bytes, size_t offset)
{
    const size_t payload = numel * bytes, shift = GUARD_BYTES + offset * bytes;
    guard_header *header = malloc(sizeof *header);
    unsigned char *block = aligned_alloc(64, (shift + payload + GUARD_BYTES + 63) / 64 * 64);
    assert_non_null(header);
    assert_non_null(block);
    memset(block, GUARD, shift + payload + GUARD_BYTES);
    *header = (guard_header){ .elements = block + shift, .bytes = payload, .next = guard_list };
    guard_list = header;
    return header->elements;
}

float *guarded_floats(size_t numel, size_t offset)
{
    return guarded(numel, sizeof(float), offset);
}

void guarded_free(void *pointer)
{
    guard_header **link = &guard_list;
    while (*link != NULL && (*link)->elements != pointer) link = &(*link)->next;
    guard_header *header = *link;
    assert_non_null(header);
    *link = header->next;
    for (int i = 0; i < GUARD_BYTES; i++)
        if (header->elements[-1 - i] != GUARD || header->elements[header->bytes + (size_t)i] != GUARD)
            fail_msg("a byte outside an array of %zu bytes was written, at distance %d", header->bytes,
                     i + 1);
    uintptr_t first = (uintptr_t)header->elements - GUARD_BYTES;
    free((void *)(first / 64 * 64)); /* offsets are below 64 bytes */
    free(header);
}

uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

void assert_same_floats(const float *got, const float *want, size_t numel, const char *format, ...)
{
    for (size_t i = 0; i < numel; i++) {
        if (bits_of(got[i]) == bits_of(want[i]) || (isnan(got[i]) && isnan(want[i]))) continue;
        char label[256];
        va_list list;
        va_start(list, format);
        vsnprintf(label, sizeof label, format, list);
        va_end(list);
        fail_msg("%s: element %zu of %zu is %.9g (%08x), want %.9g (%08x)", label, i, numel, (double)got[i],
                 bits_of(got[i]), (double)want[i], bits_of(want[i]));
    }
}

void assert_ok(zb_status status)
{
    if (status != ZB_OK) fail_msg("%s: %s", zb_status_string(status), zb_error_message());
}

float plain_reduce(const float *x, size_t numel)
{
    float lanes[32] = { 0 };
    for (size_t i = 0; i < numel; i++) lanes[i % 32] = lanes[i % 32] + x[i];
    for (int s = 16; s >= 1; s /= 2)
        for (int l = 0; l < s; l++) lanes[l] = lanes[l] + lanes[l + s];
    return lanes[0];
}

typedef struct half_format {
    zb_dtype dtype;
    int precision;    /* bits of the significand, the hidden one included */
    int min_exponent; /* of the smallest normal number                    */
    int max_exponent;
} half_format;

static const half_format formats[] = { { ZB_FP16, 11, -14, 15 }, { ZB_BF16, 8, -126, 127 } };

static const half_format *format_of(zb_dtype half)
{
    return &formats[half == ZB_BF16];
}

double plain_from_half(zb_dtype half, uint16_t x)
{
    const half_format *f = format_of(half);
    const int stored = f->precision - 1, exponent = (x & 0x7fff) >> stored,
              mantissa = x & ((1 << stored) - 1);
    const double sign = x & 0x8000 ? -1 : 1;
    if (exponent == f->max_exponent - f->min_exponent + 2) return mantissa == 0 ? sign * INFINITY : NAN;
    if (exponent == 0) return sign * ldexp(mantissa, f->min_exponent - stored);
    return sign * ldexp(mantissa + (1 << stored), f->min_exponent + exponent - 1 - stored);
}

uint16_t plain_to_half(zb_dtype half, double x)
{
    const half_format *f = format_of(half);
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    const int stored = f->precision - 1;
    const uint16_t infinity = (uint16_t)((f->max_exponent - f->min_exponent + 2) << stored);
    if (isnan(x)) return infinity | 1;
    if (isinf(x)) return sign | infinity;
    if (x == 0) return sign;
    int exponent;
    frexp(x, &exponent); /* |x| in [2^(exponent-1), 2^exponent) */
    exponent = exponent - 1 < f->min_exponent ? f->min_exponent : exponent - 1;
    const double units = nearbyint(ldexp(fabs(x), stored - exponent)); /* exact scaling, one rounding */
    const double bits = units + (double)(exponent - f->min_exponent) * (1 << stored);
    return bits >= infinity ? sign | infinity : (uint16_t)(sign | (uint16_t)bits);
}

float plain_rounded(zb_dtype dtype, float x)
{
    return dtype == ZB_FP32 ? x : (float)plain_from_half(dtype, plain_to_half(dtype, (double)x));
}

/* --- arrays of a type --- */

const zb_dtype tensor_dtypes[TENSOR_DTYPES] = { ZB_FP32, ZB_FP16, ZB_BF16 };

static uint16_t rng_half(rng *r, zb_dtype dtype, fill_kind kind)
{
    static const uint16_t special_fp16[] = {
        0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400,
        0x8400,                                         /* zeros, subnormals, the least normal */
        0x3c00, 0xbc00, 0x3c01, 0x1000, 0x0fff, 0x1001, /* 1, half its ulp, and beside it */
        0x7bff, 0xfbff, 0x4c00, 0x7c00, 0xfc00, 0x7e00,
        0x7c01 /* the largest, half its ulp, infinities, NaNs */
    };
    static const uint16_t special_bf16[] = { 0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x0080, 0x8080,
                                             0x3f80, 0xbf80, 0x3f81, 0x3b80, 0x3b7f, 0x3b81, 0x7f7f,
                                             0xff7f, 0x7b00, 0x7f80, 0xff80, 0x7fc0, 0x7f81 };
    const uint32_t bits = (uint32_t)(rng_next(r) >> 32), exponent = bits >> 16 & 255;
    const uint16_t fp16 = bits & 0x83ff;
    if (kind == FILL_BITS) return (uint16_t)bits;
    if (kind == FILL_SPECIAL)
        return dtype == ZB_FP16 ? special_fp16[bits % (sizeof special_fp16 / sizeof special_fp16[0])]
                                : special_bf16[bits % (sizeof special_bf16 / sizeof special_bf16[0])];
    if (dtype == ZB_FP16 && kind == FILL_WIDE) return (uint16_t)(fp16 | (3 + exponent % 27) << 10);
    if (dtype == ZB_FP16 && kind == FILL_SMALL)
        return (uint16_t)(fp16 | (exponent % 4 == 0 ? 0 : exponent % 10) << 10);
    return plain_to_half(dtype, (double)rng_float(r, kind));
}

tensor tensor_random(rng *r, zb_dtype dtype, fill_kind kind, size_t numel)
{
    tensor t = { dtype, numel, guarded(numel, zb_dtype_bytes(dtype), rng_below(r, 16)),
                 guarded_floats(numel, 0) };
    for (size_t i = 0; i < numel; i++) {
        if (dtype == ZB_FP32) {
            t.values[i] = ((float *)t.data)[i] = rng_float(r, kind);
        } else {
            const uint16_t half = rng_half(r, dtype, kind);
            ((uint16_t *)t.data)[i] = half;
            t.values[i] = (float)plain_from_half(dtype, half);
        }
    }
    return t;
}

void assert_tensor(const tensor *t, const char *format, ...)
{
    for (size_t i = 0; i < t->numel; i++) {
        uint32_t got, want;
        double value;
        if (t->dtype == ZB_FP32) {
            value = (double)((const float *)t->data)[i];
            got = bits_of(((const float *)t->data)[i]), want = bits_of(t->values[i]);
        } else {
            got = ((const uint16_t *)t->data)[i], want = plain_to_half(t->dtype, (double)t->values[i]);
            value = plain_from_half(t->dtype, (uint16_t)got);
        }
        if (got == want || (isnan(value) && isnan(t->values[i]))) continue;
        char label[256];
        va_list list;
        va_start(list, format);
        vsnprintf(label, sizeof label, format, list);
        va_end(list);
        fail_msg("%s, %s: element %zu of %zu is %.9g (%04x), want %.9g (%04x)", label,
                 zb_dtype_name(t->dtype), i, t->numel, value, got, (double)t->values[i], want);
    }
}

void tensor_free(tensor *t)
{
    guarded_free(t->data), guarded_free(t->values);
}
