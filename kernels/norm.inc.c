/* The L2 norm of one array as PyTorch computes it on a CPU, and the search for what is no number. */

enum { NORM_LANES = 8, NORM_UNROLLED = 4, WIDE_NORM_LANES = 4 }; /* AVX2, in fp32 and in fp64 */

/* Whole groups of eight in lanes, the lanes added up, then what is left over: PyTorch's compiler made vectors
 * of four of it, and fused the multiplication and addition of what these leave. */
static float norm_fp32(zb_dtype dtype, const void *x, size_t numel)
{
    const size_t whole = numel - numel % NORM_LANES, unfused = numel - numel % NORM_UNROLLED;
    float lanes[NORM_LANES] = { 0 }, room[BLOCK], sum;
    ZB_EACH_BLOCK(first, count, whole, block_step(dtype == ZB_FP32, whole))
    {
        const float *block = block_read(dtype, x, first, count, room);
        for (size_t i = 0; i < count; i += NORM_LANES)
            for (size_t l = 0; l < NORM_LANES; l++) lanes[l] = lanes[l] + block[i + l] * block[i + l];
    }
    sum = lanes[0];
    for (size_t l = 1; l < NORM_LANES; l++) sum = sum + lanes[l];
    for (size_t i = whole; i < numel; i++) {
        const float rest = block_read(dtype, x, i, 1, room)[0];
        sum = i < unfused ? sum + rest * rest : fmaf(rest, rest, sum);
    }
    return sqrtf(sum);
}

static double norm_fp64(zb_dtype dtype, const void *x, size_t numel)
{
    const size_t whole = numel - numel % WIDE_NORM_LANES;
    double lanes[WIDE_NORM_LANES] = { 0 }, sum;
    float room[BLOCK];
    ZB_EACH_BLOCK(first, count, whole, block_step(dtype == ZB_FP32, whole))
    {
        const float *block = block_read(dtype, x, first, count, room);
        for (size_t i = 0; i < count; i += WIDE_NORM_LANES)
            for (size_t l = 0; l < WIDE_NORM_LANES; l++)
                lanes[l] = lanes[l] + (double)block[i + l] * (double)block[i + l];
    }
    sum = lanes[0];
    for (size_t l = 1; l < WIDE_NORM_LANES; l++) sum = sum + lanes[l];
    for (size_t i = whole; i < numel; i++) {
        const double rest = (double)block_read(dtype, x, i, 1, room)[0];
        sum = sum + rest * rest;
    }
    return sqrt(sum);
}

static zb_status op_norm(const zb_norm_args *args)
{
    ZB_TRY(check_dtype("norm", args->dtype));
    *args->norm = args->wide ? norm_fp64(args->dtype, args->x, args->numel)
                             : (double)norm_fp32(args->dtype, args->x, args->numel);
    return ZB_OK;
}

static zb_status op_find_nonfinite(const zb_find_nonfinite_args *args)
{
    ZB_TRY(check_dtype("find_nonfinite", args->dtype));
    float room[BLOCK];
    uint32_t found = 0;
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->dtype == ZB_FP32, args->numel))
    {
        const float *x = block_read(args->dtype, args->x, first, count, room);
        for (size_t i = 0; i < count; i++) found |= (zb_float_bits(x[i]) & 0x7f800000) == 0x7f800000;
    }
    if (found) *args->flag = 1;
    return ZB_OK;
}
