/* From one floating type to another, rounding once. */

static void cast_from_fp64(zb_dtype to_dtype, void *to, const double *from, size_t numel)
{
    float *to32 = to;
    uint16_t *to16 = to;
    if (to_dtype == ZB_FP32) {
        for (size_t i = 0; i < numel; i++) to32[i] = (float)from[i];
    } else if (to_dtype == ZB_FP16) {
        for (size_t i = 0; i < numel; i++) to16[i] = zb_fp16_from_float(zb_float_odd_from_double(from[i]));
    } else {
        for (size_t i = 0; i < numel; i++) to16[i] = zb_bf16_from_float(zb_float_odd_from_double(from[i]));
    }
}

static void cast_to_fp64(double *to, const float *from, size_t numel)
{
    for (size_t i = 0; i < numel; i++) to[i] = (double)from[i];
}

/* fp32 holds every fp16 and every bf16, so that going through it rounds only once. */
static void cast_between(const zb_cast_args *args)
{
    if (args->to_dtype == ZB_FP32) {
        widen(args->from_dtype, args->to, args->from, args->numel);
        return;
    }
    float room[BLOCK];
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->from_dtype == ZB_FP32, args->numel))
    {
        const float *from = block_read(args->from_dtype, args->from, first, count, room);
        if (args->to_dtype == ZB_FP64)
            cast_to_fp64((double *)args->to + first, from, count);
        else
            narrow(args->to_dtype, element(args->to_dtype, args->to, first), from, count);
    }
}

static zb_status op_cast(const zb_cast_args *args)
{
    const zb_dtype to = args->to_dtype, from = args->from_dtype;
    if ((!is_tensor_dtype(to) && to != ZB_FP64) || (!is_tensor_dtype(from) && from != ZB_FP64))
        return zb_fail(ZB_UNSUPPORTED, "cast from %s to %s; want two of fp32, fp16, bf16, fp64",
                       zb_dtype_name(from), zb_dtype_name(to));
    if (to == from) {
        if (args->numel > 0) memcpy(args->to, args->from, args->numel * zb_dtype_bytes(to));
    } else if (from == ZB_FP64) {
        cast_from_fp64(to, args->to, args->from, args->numel);
    } else {
        cast_between(args);
    }
    return ZB_OK;
}
