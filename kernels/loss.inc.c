/* Losses: cross entropy over logits, and mean squared error. */

static float row_maximum(const float *x, size_t numel)
{
    float maximum = -INFINITY;
    for (size_t i = 0; i < numel; i++)
        if (x[i] > maximum || isnan(x[i])) {
            maximum = x[i];
            if (isnan(maximum)) break;
        }
    return maximum;
}

static zb_status op_cross_entropy_forward(const zb_cross_entropy_forward_args *args)
{
    ZB_TRY(check_dtype("cross_entropy_forward", args->dtype));
    for (size_t row = 0; row < args->rows; row++) {
        float *log_probs = args->log_probs + row * args->classes;
        const float *x = block_read(args->dtype, args->x, row * args->classes, args->classes, log_probs);
        float maximum = row_maximum(x, args->classes);
        reduction sum = { .numel = 0 };
        for (size_t i = 0; i < args->classes; i++) reduction_add_one(&sum, zb_expf(x[i] - maximum));
        float log_sum = zb_logf(reduction_result(&sum));
        for (size_t i = 0; i < args->classes; i++) log_probs[i] = (x[i] - maximum) - log_sum;
        args->row_loss[row] = -log_probs[args->labels[row]];
    }
    reduction total = { .numel = 0 };
    reduction_add(&total, args->row_loss, args->rows);
    args->loss[0] = reduction_result(&total) / (float)args->rows;
    return ZB_OK;
}

static zb_status op_cross_entropy_backward(const zb_cross_entropy_backward_args *args)
{
    ZB_TRY(check_dtype("cross_entropy_backward", args->dtype));
    const float weight = args->seed / (float)args->rows, divisor = args->divisor;
    float room[BLOCK];
    for (size_t row = 0; row < args->rows; row++) {
        const size_t label = (size_t)args->labels[row];
        ZB_EACH_BLOCK(first, count, args->classes, block_step(args->dtype == ZB_FP32, args->classes))
        {
            const size_t start = row * args->classes + first;
            float *dx = block_target(args->dtype, args->dx, start, room);
            for (size_t i = 0; i < count; i++) {
                const float hit = first + i == label ? 1.0f : 0.0f;
                dx[i] = ((zb_expf(args->log_probs[start + i]) - hit) * weight) / divisor;
            }
            block_write(args->dtype, args->dx, start, count, dx);
        }
    }
    return ZB_OK;
}

static zb_status op_mse_forward(const zb_mse_forward_args *args)
{
    ZB_TRY(check_dtype("mse_forward", args->dtype));
    reduction sum = { .numel = 0 };
    float room[BLOCK], squares[BLOCK];
    ZB_EACH_BLOCK(first, count, args->numel, BLOCK)
    {
        const float *x = block_read(args->dtype, args->x, first, count, room), *t = args->t + first;
        for (size_t i = 0; i < count; i++) {
            float d = x[i] - t[i];
            squares[i] = d * d;
        }
        reduction_add(&sum, squares, count);
    }
    args->loss[0] = reduction_result(&sum) / (float)args->numel;
    return ZB_OK;
}

static void mse_backward_block(float *restrict dx, const float *restrict x, const float *restrict t,
                               size_t numel, float weight, float divisor)
{
    for (size_t i = 0; i < numel; i++) dx[i] = ((x[i] - t[i]) * weight) / divisor;
}

static zb_status op_mse_backward(const zb_mse_backward_args *args)
{
    ZB_TRY(check_dtype("mse_backward", args->dtype));
    const float weight = (2 * args->seed) / (float)args->numel;
    float x_room[BLOCK], dx_room[BLOCK];
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->dtype == ZB_FP32, args->numel))
    {
        const float *x = block_read(args->dtype, args->x, first, count, x_room);
        float *dx = block_target(args->dtype, args->dx, first, dx_room);
        mse_backward_block(dx, x, args->t + first, count, weight, args->divisor);
        block_write(args->dtype, args->dx, first, count, dx);
    }
    return ZB_OK;
}
