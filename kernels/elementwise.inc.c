/* Operations that treat each element on its own: plain loops that the compiler turns into vectors. */

static zb_status op_fill_bytes(const zb_fill_bytes_args *args)
{
    if (args->bytes > 0) memset(args->data, args->value, args->bytes);
    return ZB_OK;
}

static zb_status op_copy(const zb_copy_args *args)
{
    if (args->bytes > 0) memcpy(args->to, args->from, args->bytes);
    return ZB_OK;
}

static void add_block(float *restrict y, const float *restrict x, size_t numel)
{
    for (size_t i = 0; i < numel; i++) y[i] = y[i] + x[i];
}

/* x in the type of a 16-bit sum that it is to be added to. */
static const float *round_block(zb_dtype dtype, const float *x, size_t numel, float *room)
{
    uint16_t rounded[BLOCK];
    block_write(dtype, rounded, 0, numel, x);
    return block_read(dtype, rounded, 0, numel, room);
}

static zb_status op_add(const zb_add_args *args)
{
    ZB_TRY(check_dtype("add to y", args->y_dtype));
    ZB_TRY(check_dtype("add of x", args->x_dtype));
    float y_room[BLOCK], x_room[BLOCK];
    const int all_fp32 = args->y_dtype == ZB_FP32 && args->x_dtype == ZB_FP32;
    const int rounds = args->y_dtype != ZB_FP32 && args->x_dtype != args->y_dtype;
    ZB_EACH_BLOCK(first, count, args->numel, block_step(all_fp32, args->numel))
    {
        float *y = block_update(args->y_dtype, args->y, first, count, y_room);
        const float *x = block_read(args->x_dtype, args->x, first, count, x_room);
        if (rounds) x = round_block(args->y_dtype, x, count, x_room);
        add_block(y, x, count);
        block_write(args->y_dtype, args->y, first, count, y);
    }
    return ZB_OK;
}

static zb_status op_scale(const zb_scale_args *args)
{
    ZB_TRY(check_dtype("scale", args->dtype));
    const float factor = args->factor;
    float room[BLOCK];
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->dtype == ZB_FP32, args->numel))
    {
        float *y = block_update(args->dtype, args->y, first, count, room);
        for (size_t i = 0; i < count; i++) y[i] = y[i] * factor;
        block_write(args->dtype, args->y, first, count, y);
    }
    return ZB_OK;
}

static zb_status op_divide(const zb_divide_args *args)
{
    ZB_TRY(check_dtype("divide", args->dtype));
    const float divisor = args->divisor;
    float room[BLOCK];
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->dtype == ZB_FP32, args->numel))
    {
        float *y = block_update(args->dtype, args->y, first, count, room);
        for (size_t i = 0; i < count; i++) y[i] = y[i] / divisor;
        block_write(args->dtype, args->y, first, count, y);
    }
    return ZB_OK;
}

static zb_status op_relu_forward(const zb_relu_forward_args *args)
{
    ZB_TRY(check_dtype("relu_forward", args->dtype));
    float x_room[BLOCK], y_room[BLOCK];
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->dtype == ZB_FP32, args->numel))
    {
        const float *x = block_read(args->dtype, args->x, first, count, x_room);
        float *y = block_target(args->dtype, args->y, first, y_room); /* may be x */
        ZB_INDEPENDENT_ITERATIONS
        for (size_t i = 0; i < count; i++) y[i] = x[i] <= 0 ? 0.0f : x[i]; /* a NaN is not <= 0 */
        block_write(args->dtype, args->y, first, count, y);
    }
    return ZB_OK;
}

static zb_status op_relu_backward(const zb_relu_backward_args *args)
{
    ZB_TRY(check_dtype("relu_backward", args->dtype));
    float y_room[BLOCK], dy_room[BLOCK], dx_room[BLOCK];
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->dtype == ZB_FP32, args->numel))
    {
        const float *y = block_read(args->dtype, args->y, first, count, y_room);
        const float *dy = block_read(args->dtype, args->dy, first, count, dy_room);
        float *dx = block_target(args->dtype, args->dx, first, dx_room); /* may be dy */
        ZB_INDEPENDENT_ITERATIONS
        for (size_t i = 0; i < count; i++) dx[i] = y[i] <= 0 ? 0.0f : dy[i];
        block_write(args->dtype, args->dx, first, count, dx);
    }
    return ZB_OK;
}
