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

static zb_status op_add(const zb_add_args *args)
{
    ZB_TRY(check_dtype("add to y", args->y_dtype));
    ZB_TRY(check_dtype("add of x", args->x_dtype));
    float y_room[BLOCK], x_room[BLOCK];
    const int all_fp32 = args->y_dtype == ZB_FP32 && args->x_dtype == ZB_FP32;
    ZB_EACH_BLOCK(first, count, args->numel, block_step(all_fp32, args->numel))
    {
        float *y = block_update(args->y_dtype, args->y, first, count, y_room);
        add_block(y, block_read(args->x_dtype, args->x, first, count, x_room), count);
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

/* --- optimizers --- */

static zb_status check_optimizer_dtypes(const char *name, zb_dtype grad, const void *param,
                                        zb_dtype param_dtype)
{
    if (!is_tensor_dtype(grad))
        return zb_fail(ZB_UNSUPPORTED, "%s with gradients of %s; want fp32, fp16 or bf16", name,
                       zb_dtype_name(grad));
    if (param != NULL && !is_tensor_dtype(param_dtype))
        return zb_fail(ZB_UNSUPPORTED, "%s with parameters of %s; want fp32, fp16 or bf16", name,
                       zb_dtype_name(param_dtype));
    return ZB_OK;
}

/* `count` elements from `first` on; grad begins with the first of them. */
static inline void adam_loop(const zb_adam_args *args, size_t first, size_t count, const float *restrict grad,
                             const int decoupled)
{
    const zb_adam_args s = *args; /* a copy that no store through p, m, v can change */
    float *restrict p = s.p + first, *restrict m = s.m + first, *restrict v = s.v + first;
    for (size_t i = 0; i < count; i++) {
        float g = grad[i] * s.grad_scale;
        if (!decoupled) g = g + s.weight_decay * p[i];
        m[i] = s.beta1 * m[i] + s.one_minus_beta1 * g;
        v[i] = s.beta2 * v[i] + (s.one_minus_beta2 * g) * g;
        float u = (m[i] / s.correction1) / (sqrtf(v[i] / s.correction2) + s.eps);
        if (decoupled) u = u + s.weight_decay * p[i];
        p[i] = p[i] - s.lr * u;
    }
}

static zb_status op_adam(const zb_adam_args *args)
{
    ZB_TRY(check_optimizer_dtypes("adam", args->grad_dtype, args->param, args->param_dtype));
    float room[BLOCK];
    const int one_pass = args->grad_dtype == ZB_FP32 && args->param == NULL;
    ZB_EACH_BLOCK(first, count, args->numel, block_step(one_pass, args->numel))
    {
        const float *grad = block_read(args->grad_dtype, args->grad, first, count, room);
        if (args->decoupled)
            adam_loop(args, first, count, grad, 1);
        else
            adam_loop(args, first, count, grad, 0);
        if (args->param != NULL)
            narrow(args->param_dtype, element(args->param_dtype, args->param, first), args->p + first, count);
    }
    return ZB_OK;
}

typedef enum sgd_kind { SGD_PLAIN, SGD_FIRST_STEP, SGD_MOMENTUM } sgd_kind;

static inline void sgd_loop(const zb_sgd_args *args, size_t first, size_t count, const float *restrict grad,
                            const sgd_kind kind, const int decay, const int nesterov)
{
    const zb_sgd_args s = *args;
    float *restrict p = s.p + first, *restrict buf = kind == SGD_PLAIN ? NULL : s.buf + first;
    for (size_t i = 0; i < count; i++) {
        float g = grad[i] * s.grad_scale;
        if (decay) g = g + s.weight_decay * p[i];
        if (kind != SGD_PLAIN) {
            float b = kind == SGD_FIRST_STEP ? g : s.momentum * buf[i] + s.one_minus_dampening * g;
            buf[i] = b;
            g = nesterov ? g + s.momentum * b : b;
        }
        p[i] = p[i] - s.lr * g;
    }
}

static inline void sgd_nesterov(const zb_sgd_args *args, size_t first, size_t count, const float *grad,
                                const sgd_kind kind, const int decay)
{
    if (args->nesterov)
        sgd_loop(args, first, count, grad, kind, decay, 1);
    else
        sgd_loop(args, first, count, grad, kind, decay, 0);
}

static inline void sgd_decay(const zb_sgd_args *args, size_t first, size_t count, const float *grad,
                             const sgd_kind kind)
{
    if (args->weight_decay != 0)
        sgd_nesterov(args, first, count, grad, kind, 1);
    else
        sgd_nesterov(args, first, count, grad, kind, 0);
}

static zb_status op_sgd(const zb_sgd_args *args)
{
    ZB_TRY(check_optimizer_dtypes("sgd", args->grad_dtype, args->param, args->param_dtype));
    float room[BLOCK];
    const int one_pass = args->grad_dtype == ZB_FP32 && args->param == NULL;
    ZB_EACH_BLOCK(first, count, args->numel, block_step(one_pass, args->numel))
    {
        const float *grad = block_read(args->grad_dtype, args->grad, first, count, room);
        if (args->momentum == 0)
            sgd_decay(args, first, count, grad, SGD_PLAIN);
        else if (args->first_step)
            sgd_decay(args, first, count, grad, SGD_FIRST_STEP);
        else
            sgd_decay(args, first, count, grad, SGD_MOMENTUM);
        if (args->param != NULL)
            narrow(args->param_dtype, element(args->param_dtype, args->param, first), args->p + first, count);
    }
    return ZB_OK;
}
