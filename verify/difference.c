/* Bits compared, and the first difference put into words. */
#include "verify/difference.h"

#include "verify/quantity.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

uint64_t zb_element_bits(zb_dtype dtype, const void *data, size_t index)
{
    size_t bytes = zb_dtype_bytes(dtype);
    uint64_t bits = 0;
    memcpy(&bits, (const unsigned char *)data + index * bytes, bytes);
    return bits;
}

static double bits_to_double(zb_dtype dtype, uint64_t bits)
{
    if (dtype == ZB_FP64) {
        double value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    if (dtype == ZB_FP16) { /* sign, 5 bits of exponent, 10 of significand */
        double magnitude = (double)(bits & 0x3ff) + (bits & 0x7c00 ? 1024 : 0);
        int exponent = (int)(bits >> 10 & 0x1f);
        if (exponent == 0x1f) magnitude = (bits & 0x3ff) != 0 ? NAN : INFINITY;
        magnitude = ldexp(magnitude, (exponent > 0 ? exponent : 1) - 25);
        return bits & 0x8000 ? -magnitude : magnitude;
    }
    uint32_t low = (uint32_t)(dtype == ZB_BF16 ? bits << 16 : bits); /* bf16: the upper half of an fp32 */
    float value;
    memcpy(&value, &low, sizeof value);
    return value;
}

static int is_float(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP64 || dtype == ZB_FP16 || dtype == ZB_BF16;
}

static int both_nan(zb_dtype dtype, uint64_t a, uint64_t b)
{
    return is_float(dtype) && isnan(bits_to_double(dtype, a)) && isnan(bits_to_double(dtype, b));
}

size_t zb_equal_prefix(zb_dtype dtype, const void *a, const void *b, size_t numel)
{
    /* Nearly every comparison ends here; elements are looked at one by one only where bits differ. */
    size_t bytes = zb_dtype_bytes(dtype);
    if (numel == 0 || memcmp(a, b, numel * bytes) == 0) return numel;
    for (size_t i = 0; i < numel; i++) {
        uint64_t bits_a = zb_element_bits(dtype, a, i), bits_b = zb_element_bits(dtype, b, i);
        if (bits_a != bits_b && !both_nan(dtype, bits_a, bits_b)) return i;
    }
    return numel;
}

int zb_disagreement_before(const zb_disagreement *a, const zb_disagreement *b)
{
    if (a->quantity != b->quantity) return a->quantity < b->quantity;
    if (a->micro != b->micro) return a->micro < b->micro;
    if (a->param != b->param) return a->param < b->param;
    if (a->element != b->element) return a->element < b->element;
    if (a->rank_b != b->rank_b) return a->rank_b < b->rank_b;
    return a->rank_a < b->rank_a;
}

/* --- the sentence --- */

typedef struct sentence {
    char *text;
    size_t used, capacity;
} sentence;

__attribute__((format(printf, 2, 3))) static void say(sentence *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(s->text + s->used, s->capacity - s->used, format, args);
    va_end(args);
    if (length > 0) s->used += (size_t)length;
    if (s->used >= s->capacity) s->used = s->capacity - 1;
}

static void say_rank(sentence *s, const zb_disagreement *d)
{
    if (d->rank_a == ZB_EVERY_RANK && d->rank_b == ZB_EVERY_RANK) return;
    if (d->rank_a == ZB_EVERY_RANK || d->rank_a == d->rank_b || d->missing == ZB_MISSING_A)
        say(s, ", rank %d", d->rank_b);
    else if (d->rank_b == ZB_EVERY_RANK || d->missing == ZB_MISSING_B)
        say(s, ", rank %d", d->rank_a);
    else
        say(s, ", rank %d against rank %d", d->rank_a, d->rank_b);
}

static void say_place(sentence *s, const zb_disagreement *d)
{
    if (d->step < 0)
        say(s, "after initialize");
    else
        say(s, "step %" PRId64, d->step);
    if (d->micro >= 0) say(s, ", micro-batch %" PRId64, d->micro);
    say_rank(s, d);
    say(s, ", %s", zb_quantity_name(d->quantity));
    const char *name = zb_quantity_element_name(d->quantity, d->element);
    if (d->tensor != NULL)
        say(s, " %s[%" PRIu64 "]", d->tensor, d->element);
    else if (name != NULL)
        say(s, " (%s)", name);
    else if (zb_quantity_get(d->quantity)->numel != 1)
        say(s, "[%" PRIu64 "]", d->element);
}

static void say_value(sentence *s, zb_dtype dtype, uint64_t bits)
{
    if (dtype == ZB_FP32)
        say(s, "0x%08" PRIx64 " (%.9g)", bits, bits_to_double(dtype, bits));
    else if (dtype == ZB_FP64)
        say(s, "0x%016" PRIx64 " (%.17g)", bits, bits_to_double(dtype, bits));
    else if (is_float(dtype))
        say(s, "%s 0x%04" PRIx64 " (%.6g)", zb_dtype_name(dtype), bits, bits_to_double(dtype, bits));
    else
        say(s, "%" PRId64, (int64_t)bits);
}

/* Sign and magnitude to a number line on which neighbouring floats are neighbouring integers. */
static int64_t position_on_line(zb_dtype dtype, uint64_t bits)
{
    uint64_t sign = UINT64_C(1) << (8 * zb_dtype_bytes(dtype) - 1);
    int64_t magnitude = (int64_t)(bits & (sign - 1));
    return bits & sign ? -magnitude : magnitude;
}

static void say_distance(sentence *s, zb_dtype dtype, uint64_t bits_a, uint64_t bits_b)
{
    if (!is_float(dtype)) return;
    if (!isfinite(bits_to_double(dtype, bits_a)) || !isfinite(bits_to_double(dtype, bits_b))) return;
    int64_t a = position_on_line(dtype, bits_a), b = position_on_line(dtype, bits_b);
    uint64_t ulps = a > b ? (uint64_t)a - (uint64_t)b : (uint64_t)b - (uint64_t)a;
    if (ulps == 0)
        say(s, ", the signs of zero differ");
    else
        say(s, ", %" PRIu64 " ulp%s", ulps, ulps == 1 ? "" : "s");
}

void zb_difference_describe(const zb_disagreement *d, zb_difference *difference)
{
    zb_dtype dtype = d->dtype;
    *difference = (zb_difference){ .found = 1,
                                   .missing = d->missing,
                                   .quantity = d->quantity,
                                   .step = d->step,
                                   .micro = d->micro,
                                   .rank_a = d->rank_a,
                                   .rank_b = d->rank_b,
                                   .element = d->element,
                                   .dtype = dtype,
                                   .bits_a = d->bits_a,
                                   .bits_b = d->bits_b };
    if (d->tensor != NULL) snprintf(difference->tensor, sizeof difference->tensor, "%s", d->tensor);

    sentence s = { difference->text, 0, sizeof difference->text };
    say_place(&s, d);
    switch (d->missing) {
    case ZB_MISSING_A:
        say(&s, ": shown by %s, not shown by %s", d->name_b, d->name_a);
        return;
    case ZB_MISSING_B:
        say(&s, ": shown by %s, not shown by %s", d->name_a, d->name_b);
        return;
    case ZB_MISSING_BOTH:
        say(&s, ": shown neither by %s nor by %s", d->name_a, d->name_b);
        return;
    case ZB_MISSING_NONE:
        break;
    }
    say(&s, ": ");
    say_value(&s, dtype, d->bits_a);
    say(&s, " against ");
    say_value(&s, dtype, d->bits_b);
    say_distance(&s, dtype, d->bits_a, d->bits_b);
    /* Two ranks of one run that should hold the same. */
    if (strcmp(d->name_a, d->name_b) == 0) say(&s, ", both in %s", d->name_a);
}
