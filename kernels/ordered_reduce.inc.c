/*
 * A reduction over ranks, ascending. It goes block by block: all inputs of a block are combined in a small
 * buffer before the block of `out` is written, which may therefore be one of the inputs.
 */

enum { REDUCE_BLOCK = 1024 };

/* A NaN wins; -0 < +0. Of two NaNs either. */
#define ZB_SMALLER(a, b)                                                                                     \
    ((a) < (b) || (a) != (a) ? (a) : (b) < (a) || (b) != (b) ? (b) : signbit(a) ? (a) : (b))
#define ZB_LARGER(a, b)                                                                                      \
    ((a) > (b) || (a) != (a) ? (a) : (b) > (a) || (b) != (b) ? (b) : signbit(a) ? (b) : (a))
#define ZB_SMALLER_INT(a, b) ((a) < (b) ? (a) : (b))
#define ZB_LARGER_INT(a, b)  ((a) > (b) ? (a) : (b))

/*
 * One function per element type. `value` holds an element for comparing, `sum` adds: they differ for
 * integers, which wrap around and so are added without sign.
 */
#define ZB_ORDERED_REDUCE(name, element, value, sum, WIDEN, NARROW, SMALLER, LARGER, AVERAGE)                \
    static void reduce_block_##name(const zb_ordered_reduce_args *args, sum factor, size_t first,            \
                                    size_t numel)                                                            \
    {                                                                                                        \
        sum acc[REDUCE_BLOCK];                                                                               \
        const int premultiply = args->op == ZB_PREMUL_SUM;                                                   \
        const element *a = (const element *)args->inputs[0] + first;                                         \
        if (premultiply) {                                                                                   \
            for (size_t i = 0; i < numel; i++) acc[i] = (sum)((sum)WIDEN(a[i]) * factor);                    \
        } else {                                                                                             \
            for (size_t i = 0; i < numel; i++) acc[i] = (sum)WIDEN(a[i]);                                    \
        }                                                                                                    \
        for (int rank = 1; rank < args->count; rank++) {                                                     \
            a = (const element *)args->inputs[rank] + first;                                                 \
            switch (args->op) {                                                                              \
            case ZB_SUM:                                                                                     \
            case ZB_AVG:                                                                                     \
                for (size_t i = 0; i < numel; i++) acc[i] = (sum)(acc[i] + (sum)WIDEN(a[i]));                \
                break;                                                                                       \
            case ZB_PREMUL_SUM:                                                                              \
                for (size_t i = 0; i < numel; i++)                                                           \
                    acc[i] = (sum)(acc[i] + (sum)((sum)WIDEN(a[i]) * factor));                               \
                break;                                                                                       \
            case ZB_MIN:                                                                                     \
                for (size_t i = 0; i < numel; i++) {                                                         \
                    const value x = (value)acc[i], y = (value)WIDEN(a[i]);                                   \
                    acc[i] = (sum)(SMALLER(x, y));                                                           \
                }                                                                                            \
                break;                                                                                       \
            case ZB_MAX:                                                                                     \
                for (size_t i = 0; i < numel; i++) {                                                         \
                    const value x = (value)acc[i], y = (value)WIDEN(a[i]);                                   \
                    acc[i] = (sum)(LARGER(x, y));                                                            \
                }                                                                                            \
                break;                                                                                       \
            }                                                                                                \
        }                                                                                                    \
        element *out = (element *)args->out + first;                                                         \
        AVERAGE(sum)                                                                                         \
        for (size_t i = 0; i < numel; i++) out[i] = NARROW(acc[i]);                                          \
    }

/* A power of two has an exact reciprocal, and the product with it rounds as the quotient does. */
#define ZB_AVERAGE_FLOAT(sum)                                                                                \
    if (args->op == ZB_AVG) {                                                                                \
        const sum count = (sum)args->count, reciprocal = 1 / count;                                          \
        if ((args->count & (args->count - 1)) == 0) {                                                        \
            for (size_t i = 0; i < numel; i++) acc[i] *= reciprocal;                                         \
        } else {                                                                                             \
            for (size_t i = 0; i < numel; i++) acc[i] /= count;                                              \
        }                                                                                                    \
    }
#define ZB_AVERAGE_NONE(sum)

ZB_ORDERED_REDUCE(fp32, float, float, float, , , ZB_SMALLER, ZB_LARGER, ZB_AVERAGE_FLOAT)
ZB_ORDERED_REDUCE(fp16, uint16_t, float, float, zb_float_from_fp16, zb_fp16_from_float, ZB_SMALLER, ZB_LARGER,
                  ZB_AVERAGE_FLOAT)
ZB_ORDERED_REDUCE(bf16, uint16_t, float, float, zb_float_from_bf16, zb_bf16_from_float, ZB_SMALLER, ZB_LARGER,
                  ZB_AVERAGE_FLOAT)
ZB_ORDERED_REDUCE(fp64, double, double, double, , , ZB_SMALLER, ZB_LARGER, ZB_AVERAGE_FLOAT)
ZB_ORDERED_REDUCE(int32, int32_t, int32_t, uint32_t, , (int32_t), ZB_SMALLER_INT, ZB_LARGER_INT,
                  ZB_AVERAGE_NONE)
ZB_ORDERED_REDUCE(int64, int64_t, int64_t, uint64_t, , (int64_t), ZB_SMALLER_INT, ZB_LARGER_INT,
                  ZB_AVERAGE_NONE)
ZB_ORDERED_REDUCE(uint8, uint8_t, uint8_t, uint8_t, , , ZB_SMALLER_INT, ZB_LARGER_INT, ZB_AVERAGE_NONE)
#undef ZB_ORDERED_REDUCE

/* Sums and averages in fp32, the common case, without the buffer: an element's accumulator stays in a
 * register. Returns how many elements it has done. */
ZB_SPECIALISED size_t add_ranks(const zb_dtype dtype, const zb_ordered_reduce_args *args)
{
    enum { VECS = 4 };
    const int count = args->count, average = args->op == ZB_AVG, power_of_two = (count & (count - 1)) == 0;
    const vec divisor = vec_all((float)count), reciprocal = vec_all(1 / (float)count);
    size_t i = 0;
    for (; i + VECS * VL <= args->numel; i += VECS * VL) {
        vec acc[VECS], x[VECS];
        load_vecs(dtype, VECS, const_element(dtype, args->inputs[0], i), acc);
        for (int rank = 1; rank < count; rank++) {
            load_vecs(dtype, VECS, const_element(dtype, args->inputs[rank], i), x);
            ZB_UNROLL
            for (int v = 0; v < VECS; v++) acc[v] = vec_add(acc[v], x[v]);
        }
        ZB_UNROLL
        for (int v = 0; v < VECS; v++) {
            if (average) acc[v] = power_of_two ? acc[v] * reciprocal : acc[v] / divisor;
            if (dtype == ZB_BF16) acc[v] = vec_round_bf16(acc[v]);
        }
        store_vecs(dtype, VECS, element(dtype, args->out, i), acc);
    }
    return i;
}

static zb_status op_ordered_reduce(const zb_ordered_reduce_args *args)
{
    ZB_TRY(zb_ordered_reduce_check(args));
    size_t first = 0;
    if (args->op == ZB_SUM || args->op == ZB_AVG)
        first = args->dtype == ZB_FP32   ? add_ranks(ZB_FP32, args)
                : args->dtype == ZB_FP16 ? add_ranks(ZB_FP16, args)
                : args->dtype == ZB_BF16 ? add_ranks(ZB_BF16, args)
                                         : 0;
    for (; first < args->numel; first += REDUCE_BLOCK) {
        const size_t numel = args->numel - first < REDUCE_BLOCK ? args->numel - first : REDUCE_BLOCK;
        switch (args->dtype) {
        case ZB_FP32:
            reduce_block_fp32(args, (float)args->factor, first, numel);
            break;
        case ZB_FP16:
            reduce_block_fp16(args, (float)args->factor, first, numel);
            break;
        case ZB_BF16:
            reduce_block_bf16(args, (float)args->factor, first, numel);
            break;
        case ZB_FP64:
            reduce_block_fp64(args, args->factor, first, numel);
            break;
        case ZB_INT32:
            reduce_block_int32(args, (uint32_t)(int64_t)args->factor, first, numel);
            break;
        case ZB_INT64:
            reduce_block_int64(args, (uint64_t)(int64_t)args->factor, first, numel);
            break;
        case ZB_UINT8:
            reduce_block_uint8(args, (uint8_t)args->factor, first, numel);
            break;
        case ZB_DTYPE_COUNT:
            break;
        }
    }
    return ZB_OK;
}
