/* See support.h. */
#include "tests/orders/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void store_value(zb_dtype dtype, void *data, size_t i, double x)
{
    switch (dtype) {
    case ZB_FP32:
        ((float *)data)[i] = (float)x;
        break;
    case ZB_FP64:
        ((double *)data)[i] = x;
        break;
    case ZB_INT32:
        ((int32_t *)data)[i] = (int32_t)x;
        break;
    case ZB_INT64:
        ((int64_t *)data)[i] = (int64_t)x;
        break;
    case ZB_UINT8:
        ((uint8_t *)data)[i] = (uint8_t)x;
        break;
    default:
        ((uint16_t *)data)[i] = plain_to_half(dtype, x);
    }
}

uint64_t load_bits(zb_dtype dtype, const void *data, size_t i)
{
    uint64_t bits = 0;
    const size_t bytes = zb_dtype_bytes(dtype);
    memcpy(&bits, (const char *)data + i * bytes, bytes); /* little endian */
    return bits;
}

static int is_nan(zb_dtype dtype, uint64_t bits)
{
    switch (dtype) {
    case ZB_FP32:
        return (bits & 0x7fffffff) > 0x7f800000;
    case ZB_FP64:
        return (bits & INT64_MAX) > 0x7ff0000000000000;
    case ZB_FP16:
        return (bits & 0x7fff) > 0x7c00;
    case ZB_BF16:
        return (bits & 0x7fff) > 0x7f80;
    default:
        return 0;
    }
}

size_t first_difference(zb_dtype dtype, const void *a, const void *b, size_t numel, int nan_bits_count)
{
    for (size_t i = 0; i < numel; i++) {
        const uint64_t x = load_bits(dtype, a, i), y = load_bits(dtype, b, i);
        if (x != y && (nan_bits_count || !is_nan(dtype, x) || !is_nan(dtype, y))) return i;
    }
    return numel;
}

static void fill_element(rng *r, zb_dtype dtype, fill_kind kind, void *data, size_t i)
{
    const uint64_t bits = rng_next(r);
    const size_t bytes = zb_dtype_bytes(dtype);
    if (dtype == ZB_FP64 && kind != FILL_BITS)
        store_value(dtype, data, i, (double)rng_float(r, kind) * (1 + 0x1p-40));
    else if ((dtype == ZB_FP32 || dtype == ZB_FP16 || dtype == ZB_BF16) && kind != FILL_BITS)
        store_value(dtype, data, i, (double)rng_float(r, kind));
    else
        memcpy((char *)data + i * bytes, &bits, bytes);
}

contributions contributions_random(rng *r, int world_size, size_t numel, zb_dtype dtype, fill_kind kind)
{
    contributions c = { .world_size = world_size, .numel = numel, .dtype = dtype };
    c.inputs = calloc((size_t)world_size, sizeof *c.inputs);
    assert_non_null(c.inputs);
    for (int rank = 0; rank < world_size; rank++) {
        c.inputs[rank] = guarded(numel, zb_dtype_bytes(dtype), rng_below(r, 8));
        for (size_t i = 0; i < numel; i++) fill_element(r, dtype, kind, c.inputs[rank], i);
    }
    return c;
}

void contributions_free(contributions *c)
{
    for (int rank = 0; rank < c->world_size; rank++) guarded_free(c->inputs[rank]);
    free(c->inputs);
}

zb_order_source source_of(const char *text)
{
    zb_order_source source;
    assert_ok(zb_order_source_parse(text, &source));
    return source;
}

zb_reduction derived(const char *text, const zb_reduction_call *call)
{
    zb_order_source source = source_of(text);
    zb_reduction reduction;
    assert_ok(zb_reduction_derive(&source, call, &reduction));
    zb_order_source_destroy(&source);
    assert_ok(zb_reduction_check(&reduction));
    return reduction;
}

static void compare(const zb_reduction *reduction, const contributions *c, const void *got, const void *want,
                    const char *what)
{
    const size_t i = first_difference(c->dtype, got, want, c->numel,
                                      reduction->rounding.canonical_nan && c->world_size > 1);
    if (i == c->numel) return;
    char order[256], inputs[256] = "";
    zb_reduction_describe(reduction, zb_reduction_range_of(reduction, i), order, sizeof order);
    for (int rank = 0; rank < c->world_size && rank < 8; rank++)
        snprintf(inputs + strlen(inputs), sizeof inputs - strlen(inputs), " %#llx",
                 (unsigned long long)load_bits(c->dtype, c->inputs[rank], i));
    fail_msg("%s: %d ranks, %s, scaling %d, wide %d: element %zu of %zu is %#llx, want %#llx; %s of%s", what,
             c->world_size, zb_dtype_name(c->dtype), (int)reduction->rounding.scaling,
             reduction->rounding.wide, i, c->numel, (unsigned long long)load_bits(c->dtype, got, i),
             (unsigned long long)load_bits(c->dtype, want, i), order, inputs);
}

void assert_runs_as_ref(rng *r, const zb_reduction *reduction, const contributions *c, const char *what)
{
    const size_t bytes = zb_dtype_bytes(c->dtype);
    void *want = guarded(c->numel, bytes, 0), *got = guarded(c->numel, bytes, rng_below(r, 8));
    const void *const *inputs = (const void *const *)c->inputs;
    zb_ref_reduction_run(reduction, inputs, 0, c->numel, want);
    assert_ok(zb_reduction_run(reduction, inputs, 0, c->numel, got));
    compare(reduction, c, got, want, what);

    memset(got, 0x5a, c->numel * bytes);
    for (size_t at = 0; at < c->numel;) {
        const size_t left = c->numel - at, piece = 1 + rng_below(r, left < 700 ? left : 700);
        assert_ok(zb_reduction_run(reduction, inputs, at, piece, (char *)got + at * bytes));
        at += piece;
    }
    compare(reduction, c, got, want, what);
    guarded_free(want);
    guarded_free(got);
}
