/* See seen.h. */
#include "orders/seen.h"

#include <math.h>
#include <string.h>

#include "kernels/half.h"
#include "kernels/kernels.h"

/* Elements that tell most wrong orders, and then some more. */
enum { FIRST_LOOK = 16, SECOND_LOOK = 128 };

/* --- playing --- */

static zb_status apply(zb_after after, zb_dtype dtype, void *values, size_t numel)
{
    if (after.kind == ZB_FACTOR_NONE) return ZB_OK;
    if (dtype == ZB_FP64) {
        double *x = values;
        for (size_t i = 0; i < numel; i++)
            x[i] = after.kind == ZB_FACTOR_MULTIPLY ? x[i] * after.by : x[i] / after.by;
        return ZB_OK;
    }
    if (after.kind == ZB_FACTOR_MULTIPLY)
        return zb_cpu_scale(
            &(zb_scale_args){ .dtype = dtype, .y = values, .factor = (float)after.by, .numel = numel });
    return zb_cpu_divide(
        &(zb_divide_args){ .dtype = dtype, .y = values, .divisor = (float)after.by, .numel = numel });
}

zb_status zb_seen_play(const zb_seen *seen, const zb_reduction *reduction, const zb_after after[ZB_AFTER_MAX],
                       size_t at, size_t numel)
{
    const zb_dtype dtype = seen->call->dtype;
    for (int round = 0; round < seen->rounds; round++) {
        const void *const *inputs = seen->inputs + (size_t)round * (size_t)seen->call->world_size;
        ZB_TRY(zb_reduction_run(reduction, inputs, at, numel, seen->sum));
        for (int k = 0; k < ZB_AFTER_MAX; k++) ZB_TRY(apply(after[k], dtype, seen->sum, numel));
        if (round > 0) {
            const zb_add_args add = {
                .y_dtype = seen->dtype, .y = seen->finished, .x_dtype = dtype, .x = seen->sum, .numel = numel
            };
            ZB_TRY(zb_cpu_add(&add));
        } else if (dtype == seen->dtype) {
            memcpy(seen->finished, seen->sum, numel * zb_dtype_bytes(dtype));
        } else {
            const zb_cast_args cast = { .to = seen->finished,
                                        .to_dtype = seen->dtype,
                                        .from = seen->sum,
                                        .from_dtype = dtype,
                                        .numel = numel };
            ZB_TRY(zb_cpu_cast(&cast));
        }
    }
    return ZB_OK;
}

/* --- comparing --- */

static int is_nan(zb_dtype dtype, const void *data, size_t i)
{
    switch (dtype) {
    case ZB_FP32:
        return isnan(((const float *)data)[i]);
    case ZB_FP64:
        return isnan(((const double *)data)[i]);
    case ZB_FP16:
        return (((const uint16_t *)data)[i] & 0x7fff) > 0x7c00;
    case ZB_BF16:
        return (((const uint16_t *)data)[i] & 0x7fff) > 0x7f80;
    default:
        return 0;
    }
}

/* How many elements from the first on are the same; NaNs are. */
static size_t equal_numel(zb_dtype dtype, const void *a, const void *b, size_t numel)
{
    const size_t bytes = zb_dtype_bytes(dtype);
    if (memcmp(a, b, numel * bytes) == 0) return numel;
    for (size_t i = 0; i < numel; i++)
        if (memcmp((const char *)a + i * bytes, (const char *)b + i * bytes, bytes) != 0 &&
            !(is_nan(dtype, a, i) && is_nan(dtype, b, i)))
            return i;
    return numel;
}

zb_status zb_seen_fit(const zb_seen *seen, const zb_reduction *reduction, const zb_after after[ZB_AFTER_MAX],
                      size_t first, size_t end, size_t *numel_p)
{
    const size_t bytes = zb_dtype_bytes(seen->dtype);
    size_t at = first, look = FIRST_LOOK;
    while (at < end) {
        const size_t piece = end - at < look ? end - at : look;
        ZB_TRY(zb_seen_play(seen, reduction, after, at, piece));
        const size_t equal = equal_numel(seen->dtype, seen->finished, (const char *)seen->result + at * bytes,
                                         piece);
        at += equal;
        if (equal < piece) break;
        look = look == FIRST_LOOK ? SECOND_LOOK : ZB_SEEN_BLOCK;
    }
    *numel_p = at - first;
    return ZB_OK;
}

/* --- in numbers --- */

int zb_seen_is_whole(zb_dtype dtype)
{
    return dtype == ZB_INT32 || dtype == ZB_INT64 || dtype == ZB_UINT8;
}

long double zb_seen_value(zb_dtype dtype, const void *data, size_t i)
{
    switch (dtype) {
    case ZB_FP32:
        return (long double)((const float *)data)[i];
    case ZB_FP64:
        return (long double)((const double *)data)[i];
    case ZB_FP16:
        return (long double)zb_float_from_fp16(((const uint16_t *)data)[i]);
    case ZB_BF16:
        return (long double)zb_float_from_bf16(((const uint16_t *)data)[i]);
    case ZB_INT32:
        return (long double)((const int32_t *)data)[i];
    case ZB_INT64:
        return (long double)((const int64_t *)data)[i];
    default:
        return (long double)((const uint8_t *)data)[i];
    }
}

long double zb_seen_scale(const zb_seen *seen)
{
    const zb_reduction_call *call = seen->call;
    long double scale = 1;
    if (call->op == ZB_AVG) scale = 1.0L / call->world_size;
    if (call->op == ZB_PREMUL_SUM) scale = (long double)call->factor;
    if (seen->after.kind == ZB_FACTOR_MULTIPLY) scale *= (long double)seen->after.by;
    if (seen->after.kind == ZB_FACTOR_DIVIDE) scale /= (long double)seen->after.by;
    return scale;
}

long double zb_seen_bound(const zb_seen *seen, int count, int wide, long double magnitude)
{
    static const double unit[ZB_DTYPE_COUNT] = {
        [ZB_FP32] = 0x1p-24, [ZB_FP16] = 0x1p-11, [ZB_BF16] = 0x1p-8, [ZB_FP64] = 0x1p-53
    };
    static const double smallest[ZB_DTYPE_COUNT] = {
        [ZB_FP32] = 0x1p-149, [ZB_FP16] = 0x1p-24, [ZB_BF16] = 0x1p-133, [ZB_FP64] = 0x1p-1074
    };
    const zb_dtype a = seen->call->dtype, b = seen->dtype;
    const double u = unit[a] > unit[b] ? unit[a] : unit[b];
    const double s = smallest[a] > smallest[b] ? smallest[a] : smallest[b];
    const double u_sum = wide && u > unit[ZB_FP32] ? unit[ZB_FP32] : u;
    /* One for each addition; and where a sum is rounded, scaled, converted and added to those before it. */
    const int is_finished = seen->rounds > 1 || seen->after.kind != ZB_FACTOR_NONE || a != b;
    const int additions = count - 1, roundings = is_finished ? 2 * seen->rounds + 2 : 2;
    return (additions * (long double)u_sum + roundings * (long double)u) * magnitude * 1.01L +
           (additions + roundings) * (long double)s;
}
