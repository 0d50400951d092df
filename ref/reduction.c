/*
 * The record of a reduction, played in plain loops: one element at a time, one addition at a time.
 * Floating-point values are held as fp64 numbers that the accumulator's type can hold; a sum, a product and a
 * quotient of fp32 numbers may go through fp64 on their way to fp32, which changes no bit.
 */
#include <zerobit/reduction.h>

#include <math.h>
#include <string.h>
#include <zerobit/ref.h>

#include "ref/oracle.h"

static int is_whole(zb_dtype dtype)
{
    return dtype == ZB_INT32 || dtype == ZB_INT64 || dtype == ZB_UINT8;
}

float zb_ref_decode(zb_dtype dtype, uint16_t bits)
{
    const int digits = dtype == ZB_FP16 ? 10 : 7, bias = dtype == ZB_FP16 ? 15 : 127;
    const int exponent = (bits & 0x7fff) >> digits, fraction = bits & ((1 << digits) - 1);
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 2 * bias + 1) return fraction != 0 ? NAN : sign * INFINITY;
    const int leading = exponent != 0 ? 1 << digits : 0;
    return sign * ldexpf((float)(leading + fraction), (exponent != 0 ? exponent : 1) - bias - digits);
}

static double load(zb_dtype dtype, const void *data, size_t i)
{
    if (dtype == ZB_FP32) return (double)((const float *)data)[i];
    if (dtype == ZB_FP64) return ((const double *)data)[i];
    return (double)zb_ref_decode(dtype, ((const uint16_t *)data)[i]);
}

static void store(const zb_reduction *reduction, double x, void *data, size_t i)
{
    const int canonical = reduction->rounding.canonical_nan && reduction->world_size > 1 && isnan(x);
    const uint32_t nan_bits = 0x7fffffff;
    if (reduction->dtype == ZB_FP64)
        ((double *)data)[i] = x;
    else if (reduction->dtype != ZB_FP32)
        ((uint16_t *)data)[i] = canonical ? 0x7fff
                                          : zb_ref_encode(reduction->dtype,
                                                          zb_ref_round(reduction->dtype, (float)x));
    else if (canonical)
        memcpy((float *)data + i, &nan_bits, sizeof nan_bits);
    else
        ((float *)data)[i] = (float)x;
}

/* To the accumulator's type. */
static double keep(const zb_reduction *reduction, double x)
{
    if (reduction->dtype == ZB_FP64) return x;
    return (double)(reduction->rounding.wide ? (float)x : zb_ref_round(reduction->dtype, (float)x));
}

static double scalar(const zb_reduction *reduction, double x)
{
    return reduction->dtype == ZB_FP64 ? x : (double)(float)x;
}

/* sum + x * factor to 16 bits with one rounding: x * factor is exact in fp64, `rest` is what fp64 has not of
 * the sum. */
static double fused_half(zb_dtype dtype, double x, double factor, double sum)
{
    const double product = x * factor, near = product + sum;
    if (near == 0 || !isfinite(near)) return near;
    const double rest = fabs(product) > fabs(sum) ? sum - (near - product) : product - (near - sum);

    const int digits = dtype == ZB_FP16 ? 11 : 8, lowest = dtype == ZB_FP16 ? -24 : -133;
    const double largest = dtype == ZB_FP16 ? 65504 : 0x1.fep127;
    int exponent;
    frexp(near, &exponent); /* 2^(exponent - 1) <= |near| */
    const int unit = exponent - digits > lowest ? exponent - digits : lowest;
    const double magnitude = ldexp(fabs(near), -unit), below = floor(magnitude), part = magnitude - below;
    const double beyond = near > 0 ? rest : -rest; /* the exact magnitude is larger where this is above 0 */
    const int up = part > 0.5 || (part == 0.5 && (beyond > 0 || (beyond == 0 && fmod(below, 2) == 1)));
    const double rounded = ldexp(up ? below + 1 : below, unit);
    return copysign(rounded > largest ? INFINITY : rounded, near);
}

static int ll128_fuses(size_t index)
{
    const size_t byte = 4 * index, pack = byte / 16 % 60;
    return byte % 16 < 8 || pack == 7 || pack == 15 || pack == 23 || pack == 31;
}

static double scaled(const zb_reduction *reduction, double x)
{
    const double factor = scalar(reduction, reduction->rounding.factor);
    switch (reduction->rounding.scaling) {
    case ZB_SCALING_NONE:
        return x;
    case ZB_SCALING_DIVIDE:
        return keep(reduction, x / factor);
    default:
        return keep(reduction, x * factor);
    }
}

/* A contribution is added to a sum. `index`: of the element in its range. */
static double add_contribution(const zb_reduction *reduction, size_t index, double sum, double x)
{
    const zb_rounding *rounding = &reduction->rounding;
    const double factor = scalar(reduction, rounding->factor);
    if (rounding->scaling == ZB_SCALING_FUSED ||
        (rounding->scaling == ZB_SCALING_FUSED_LL128 && ll128_fuses(index))) {
        if (reduction->dtype == ZB_FP64) return fma(x, factor, sum);
        if (reduction->dtype == ZB_FP32 || rounding->wide)
            return (double)fmaf((float)x, (float)factor, (float)sum);
        return fused_half(reduction->dtype, x, factor, sum);
    }
    return keep(reduction, sum + scaled(reduction, x));
}

static double sum_of(const zb_reduction *reduction, const zb_reduction_range *range,
                     const void *const *inputs, size_t i)
{
    const int32_t *tree = zb_reduction_tree(reduction, range);
    double open[ZB_TREE_DEPTH];
    int count = 0;
    for (int k = 0; k < 2 * reduction->world_size - 1; k++) {
        if (tree[k] == ZB_TREE_ADD) {
            open[count - 2] = keep(reduction, open[count - 2] + open[count - 1]);
            count--;
            continue;
        }
        const double x = load(reduction->dtype, inputs[zb_reduction_rank(reduction, range, tree[k])], i);
        if (count > 0 && tree[k + 1] == ZB_TREE_ADD) {
            open[count - 1] = add_contribution(reduction, i - range->first, open[count - 1], x);
            k++;
        } else {
            open[count++] = scaled(reduction, x);
        }
    }
    if (reduction->rounding.divisor == 0) return open[0];
    return keep(reduction, open[0] / scalar(reduction, reduction->rounding.divisor));
}

/* Integers: addition has no order. */
static void add_whole(const zb_reduction *reduction, const void *const *inputs, size_t i, void *out,
                      size_t to)
{
    uint64_t sum = 0;
    const int scales = reduction->rounding.scaling == ZB_SCALING_MULTIPLY;
    const uint64_t factor = scales ? (uint64_t)(int64_t)reduction->rounding.factor : 1;
    for (int r = 0; r < reduction->world_size; r++) {
        if (reduction->dtype == ZB_INT32) sum += factor * (uint64_t)((const int32_t *)inputs[r])[i];
        if (reduction->dtype == ZB_INT64) sum += factor * (uint64_t)((const int64_t *)inputs[r])[i];
        if (reduction->dtype == ZB_UINT8) sum += factor * ((const uint8_t *)inputs[r])[i];
    }
    if (reduction->dtype == ZB_INT32) ((int32_t *)out)[to] = (int32_t)(uint32_t)sum;
    if (reduction->dtype == ZB_INT64) ((int64_t *)out)[to] = (int64_t)sum;
    if (reduction->dtype == ZB_UINT8) ((uint8_t *)out)[to] = (uint8_t)sum;
}

void zb_ref_reduction_run(const zb_reduction *reduction, const void *const *inputs, size_t first,
                          size_t numel, void *out)
{
    for (size_t i = first; i < first + numel; i++) {
        if (is_whole(reduction->dtype))
            add_whole(reduction, inputs, i, out, i - first);
        else
            store(reduction, sum_of(reduction, zb_reduction_range_of(reduction, i), inputs, i), out,
                  i - first);
    }
}
