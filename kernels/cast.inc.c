/* From one floating type to another, rounding once. */

#define ZB_CAST_LOOP(from_name, from_type, to_name, to_type, expression)                                     \
    case from_name *ZB_DTYPE_COUNT + to_name: {                                                              \
        const from_type *restrict from = args->from;                                                         \
        to_type *restrict to = args->to;                                                                     \
        for (size_t i = 0; i < numel; i++) {                                                                 \
            const from_type x = from[i];                                                                     \
            to[i] = (expression);                                                                            \
        }                                                                                                    \
        return ZB_OK;                                                                                        \
    }

static zb_status op_cast(const zb_cast_args *args)
{
    const size_t numel = args->numel;
    switch ((int)args->from_dtype * ZB_DTYPE_COUNT + (int)args->to_dtype) {
        ZB_CAST_LOOP(ZB_FP32, float, ZB_FP32, float, x)
        ZB_CAST_LOOP(ZB_FP32, float, ZB_FP16, uint16_t, zb_fp16_from_float(x))
        ZB_CAST_LOOP(ZB_FP32, float, ZB_BF16, uint16_t, zb_bf16_from_float(x))
        ZB_CAST_LOOP(ZB_FP32, float, ZB_FP64, double, x)
        ZB_CAST_LOOP(ZB_FP16, uint16_t, ZB_FP32, float, zb_float_from_fp16(x))
        ZB_CAST_LOOP(ZB_FP16, uint16_t, ZB_FP16, uint16_t, x)
        ZB_CAST_LOOP(ZB_FP16, uint16_t, ZB_BF16, uint16_t, zb_bf16_from_float(zb_float_from_fp16(x)))
        ZB_CAST_LOOP(ZB_FP16, uint16_t, ZB_FP64, double, zb_float_from_fp16(x))
        ZB_CAST_LOOP(ZB_BF16, uint16_t, ZB_FP32, float, zb_float_from_bf16(x))
        ZB_CAST_LOOP(ZB_BF16, uint16_t, ZB_FP16, uint16_t, zb_fp16_from_float(zb_float_from_bf16(x)))
        ZB_CAST_LOOP(ZB_BF16, uint16_t, ZB_BF16, uint16_t, x)
        ZB_CAST_LOOP(ZB_BF16, uint16_t, ZB_FP64, double, zb_float_from_bf16(x))
        ZB_CAST_LOOP(ZB_FP64, double, ZB_FP32, float, (float)x)
        ZB_CAST_LOOP(ZB_FP64, double, ZB_FP16, uint16_t, zb_fp16_from_float(zb_float_odd_from_double(x)))
        ZB_CAST_LOOP(ZB_FP64, double, ZB_BF16, uint16_t, zb_bf16_from_float(zb_float_odd_from_double(x)))
        ZB_CAST_LOOP(ZB_FP64, double, ZB_FP64, double, x)
    }
    return zb_fail(ZB_UNSUPPORTED, "cast from %s to %s; want two of fp32, fp16, bf16, fp64",
                   zb_dtype_name(args->from_dtype), zb_dtype_name(args->to_dtype));
}
#undef ZB_CAST_LOOP
