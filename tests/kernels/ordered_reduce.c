/* The reduction over ranks, in every type and operation, against one element at a time. */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

enum { COUNT_MAX = 9 };

static const char *const op_names[] = { "sum", "avg", "min", "max", "premul_sum" };

static int is_floating(zb_dtype t)
{
    return t == ZB_FP32 || t == ZB_FP16 || t == ZB_BF16 || t == ZB_FP64;
}

/* --- floating types: an accumulator of fp32, or fp64 for fp64 --- */

static double round_to_accumulator(zb_dtype t, double x)
{
    if (t == ZB_FP64) return x;
    volatile float narrow = (float)x; /* sums, products and quotients of fp32 round rightly through fp64 */
    return (double)narrow;
}

static double load(zb_dtype t, const void *data, size_t i)
{
    if (t == ZB_FP32) return (double)((const float *)data)[i];
    if (t == ZB_FP64) return ((const double *)data)[i];
    return plain_from_half(t, ((const uint16_t *)data)[i]);
}

static double smaller_of(double a, double b, int largest)
{
    if (isnan(a) || isnan(b)) return NAN;
    if (a == b) return (signbit(a) != 0) != largest ? a : b; /* zeros: -0 < +0 */
    return (a < b) != largest ? a : b;
}

static double plain_float(const zb_ordered_reduce_args *s, size_t i)
{
    double acc = 0, factor = round_to_accumulator(s->dtype, s->factor);
    for (int rank = 0; rank < s->count; rank++) {
        double x = load(s->dtype, s->inputs[rank], i);
        if (s->op == ZB_PREMUL_SUM) x = round_to_accumulator(s->dtype, x * factor);
        if (rank == 0)
            acc = x;
        else if (s->op == ZB_MIN || s->op == ZB_MAX)
            acc = smaller_of(acc, x, s->op == ZB_MAX);
        else
            acc = round_to_accumulator(s->dtype, acc + x);
    }
    return s->op == ZB_AVG ? round_to_accumulator(s->dtype, acc / s->count) : acc;
}

/* --- integers: 64 bits that wrap around, cut to the type in the end --- */

static int64_t load_int(zb_dtype t, const void *data, size_t i)
{
    if (t == ZB_INT32) return ((const int32_t *)data)[i];
    if (t == ZB_INT64) return ((const int64_t *)data)[i];
    return ((const uint8_t *)data)[i];
}

static int64_t plain_int(const zb_ordered_reduce_args *s, size_t i)
{
    uint64_t acc = 0;
    for (int rank = 0; rank < s->count; rank++) {
        const int64_t x = load_int(s->dtype, s->inputs[rank], i);
        if (rank == 0 && s->op != ZB_PREMUL_SUM)
            acc = (uint64_t)x;
        else if (s->op == ZB_MIN)
            acc = (uint64_t)((int64_t)acc < x ? (int64_t)acc : x);
        else if (s->op == ZB_MAX)
            acc = (uint64_t)((int64_t)acc > x ? (int64_t)acc : x);
        else
            acc += (uint64_t)x * (s->op == ZB_PREMUL_SUM ? (uint64_t)(int64_t)s->factor : 1);
    }
    if (s->dtype == ZB_INT32) return (int32_t)(uint32_t)acc;
    return s->dtype == ZB_INT64 ? (int64_t)acc : (uint8_t)acc;
}

/* --- */

static void compare(const zb_ordered_reduce_args *s, const void *want)
{
    const size_t bytes = zb_dtype_bytes(s->dtype);
    for (size_t i = 0; i < s->numel; i++) {
        if (memcmp((const char *)s->out + i * bytes, (const char *)want + i * bytes, bytes) == 0) continue;
        if (is_floating(s->dtype)) {
            const double got_value = load(s->dtype, s->out, i), want_value = load(s->dtype, want, i);
            if (isnan(got_value) && isnan(want_value)) continue;
            fail_msg("%s of %d %s: element %zu of %zu is %a, want %a", op_names[s->op], s->count,
                     zb_dtype_name(s->dtype), i, s->numel, got_value, want_value);
        }
        fail_msg("%s of %d %s: element %zu of %zu is %lld, want %lld", op_names[s->op], s->count,
                 zb_dtype_name(s->dtype), i, s->numel, (long long)load_int(s->dtype, s->out, i),
                 (long long)load_int(s->dtype, want, i));
    }
}

static void store(zb_dtype t, void *data, size_t i, double x)
{
    if (t == ZB_FP32)
        ((float *)data)[i] = (float)x;
    else if (t == ZB_FP64)
        ((double *)data)[i] = x;
    else
        ((uint16_t *)data)[i] = plain_to_half(t, x);
}

static void store_int(zb_dtype t, void *data, size_t i, int64_t x)
{
    if (t == ZB_INT32)
        ((int32_t *)data)[i] = (int32_t)x;
    else if (t == ZB_INT64)
        ((int64_t *)data)[i] = x;
    else
        ((uint8_t *)data)[i] = (uint8_t)x;
}

static void fill_input(rng *r, zb_dtype t, void *data, size_t numel, fill_kind kind)
{
    for (size_t i = 0; i < numel; i++) {
        if (!is_floating(t))
            store_int(t, data, i, (int64_t)rng_next(r));
        else
            store(t, data, i, (double)rng_float(r, kind) * (t == ZB_FP64 ? 1 + 0x1p-40 : 1));
    }
}

/* out_is: the input that the result replaces, or -1 */
static void check(rng *r, zb_dtype t, zb_redop op, int count, size_t numel, fill_kind kind, int out_is)
{
    void *inputs[COUNT_MAX], *want = guarded(numel, zb_dtype_bytes(t), 0);
    for (int k = 0; k < count; k++) {
        inputs[k] = guarded(numel, zb_dtype_bytes(t), rng_below(r, 8));
        fill_input(r, t, inputs[k], numel, kind);
    }
    void *out = out_is >= 0 ? inputs[out_is] : guarded(numel, zb_dtype_bytes(t), rng_below(r, 8));
    const zb_ordered_reduce_args args = { .inputs = (const void *const *)inputs,
                                          .count = count,
                                          .out = out,
                                          .numel = numel,
                                          .dtype = t,
                                          .op = op,
                                          .factor = is_floating(t) ? 1.0 / 3 : 7 };
    for (size_t i = 0; i < numel; i++) {
        if (is_floating(t))
            store(t, want, i, plain_float(&args, i));
        else
            store_int(t, want, i, plain_int(&args, i));
    }
    assert_ok(zb_cpu_ordered_reduce(&args));
    compare(&args, want);
    if (out_is < 0) guarded_free(out);
    guarded_free(want);
    for (int k = 0; k < count; k++) guarded_free(inputs[k]);
}

static void every_type_and_operation(void **state)
{
    use_level(state);
    rng r = { 51 };
    for (int t = 0; t < ZB_DTYPE_COUNT; t++)
        for (int op = ZB_SUM; op <= ZB_PREMUL_SUM; op++) {
            if (op == ZB_AVG && !is_floating((zb_dtype)t)) continue;
            for (int count = 1; count <= COUNT_MAX; count++)
                for (int kind = 0; kind < FILL_KINDS; kind++)
                    check(&r, (zb_dtype)t, (zb_redop)op, count, 130 + rng_below(&r, 20), (fill_kind)kind,
                          (int)rng_below(&r, (size_t)count + 1) - 1);
        }
}

static void every_size(void **state)
{
    use_level(state);
    rng r = { 52 };
    for (size_t s = 0; s < edge_size_count; s++)
        for (int count = 2; count <= 4; count++)
            for (int out_is = -1; out_is < count; out_is++) {
                check(&r, ZB_FP32, ZB_AVG, count, edge_sizes[s], FILL_WIDE, out_is);
                check(&r, ZB_BF16, ZB_SUM, count, edge_sizes[s], FILL_WIDE, out_is);
            }
}

static void refusals(void **state)
{
    use_level(state);
    static const struct {
        zb_dtype dtype;
        int op, count;
        double factor;
        zb_status status;
        const char *says;
    } cases[] = {
        { ZB_INT32, ZB_AVG, 2, 1, ZB_UNSUPPORTED, "average of int32" },
        { ZB_FP32, ZB_SUM, 0, 1, ZB_INVALID_ARGUMENT, "0 inputs" },
        { ZB_FP32, ZB_PREMUL_SUM + 1, 2, 1, ZB_INVALID_ARGUMENT, "operation 5" },
        { ZB_DTYPE_COUNT, ZB_SUM, 2, 1, ZB_INVALID_ARGUMENT, "type 7" },
        { ZB_UINT8, ZB_PREMUL_SUM, 2, -1, ZB_INVALID_ARGUMENT, "factor -1" },
        { ZB_UINT8, ZB_PREMUL_SUM, 2, 256, ZB_INVALID_ARGUMENT, "no uint8" },
        { ZB_INT32, ZB_PREMUL_SUM, 2, 0.5, ZB_INVALID_ARGUMENT, "factor 0.5" },
        { ZB_INT32, ZB_PREMUL_SUM, 2, 0x1p31, ZB_INVALID_ARGUMENT, "no int32" },
        { ZB_INT64, ZB_PREMUL_SUM, 2, NAN, ZB_INVALID_ARGUMENT, "factor nan" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t a = 1, b = 2, out = 3;
        const void *inputs[] = { &a, &b };
        const zb_ordered_reduce_args args = { inputs,         cases[i].count,        &out,           1,
                                              cases[i].dtype, (zb_redop)cases[i].op, cases[i].factor };
        assert_int_equal(zb_cpu_ordered_reduce(&args), cases[i].status);
        if (strstr(zb_error_message(), cases[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", zb_error_message(), cases[i].says);
        assert_int_equal(out, 3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { AT_EACH_LEVEL(every_type_and_operation), AT_EACH_LEVEL(every_size),
                                        AT_EACH_LEVEL(refusals) };
    return cmocka_run_group_tests_name("ordered_reduce", tests, NULL, NULL);
}
