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

static zb_status op_add(const zb_add_args *args)
{
    float *restrict y = args->y;
    const float *restrict x = args->x;
    for (size_t i = 0; i < args->numel; i++) y[i] = y[i] + x[i];
    return ZB_OK;
}

static zb_status op_scale(const zb_scale_args *args)
{
    float *restrict y = args->y;
    const float factor = args->factor;
    for (size_t i = 0; i < args->numel; i++) y[i] = y[i] * factor;
    return ZB_OK;
}

static zb_status op_divide(const zb_divide_args *args)
{
    float *restrict y = args->y;
    const float divisor = args->divisor;
    for (size_t i = 0; i < args->numel; i++) y[i] = y[i] / divisor;
    return ZB_OK;
}

static zb_status op_relu_forward(const zb_relu_forward_args *args)
{
    const float *x = args->x;
    float *y = args->y; /* may be x */
    const size_t numel = args->numel;
    ZB_INDEPENDENT_ITERATIONS
    for (size_t i = 0; i < numel; i++) y[i] = x[i] <= 0 ? 0.0f : x[i]; /* a NaN is not <= 0 */
    return ZB_OK;
}

static zb_status op_relu_backward(const zb_relu_backward_args *args)
{
    const float *y = args->y, *dy = args->dy;
    float *dx = args->dx; /* may be dy */
    const size_t numel = args->numel;
    ZB_INDEPENDENT_ITERATIONS
    for (size_t i = 0; i < numel; i++) dx[i] = y[i] <= 0 ? 0.0f : dy[i];
    return ZB_OK;
}

/* --- optimizers --- */

static inline void adam_loop(const zb_adam_args *args, const int decoupled)
{
    const zb_adam_args s = *args; /* a copy that no store through p, m, v can change */
    float *restrict p = s.p, *restrict m = s.m, *restrict v = s.v;
    const float *restrict grad = s.grad;
    for (size_t i = 0; i < s.numel; i++) {
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
    if (args->decoupled)
        adam_loop(args, 1);
    else
        adam_loop(args, 0);
    return ZB_OK;
}

typedef enum sgd_kind { SGD_PLAIN, SGD_FIRST_STEP, SGD_MOMENTUM } sgd_kind;

static inline void sgd_loop(const zb_sgd_args *args, const sgd_kind kind, const int decay, const int nesterov)
{
    const zb_sgd_args s = *args;
    float *restrict p = s.p, *restrict buf = s.buf;
    const float *restrict grad = s.grad;
    for (size_t i = 0; i < s.numel; i++) {
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

static inline void sgd_nesterov(const zb_sgd_args *args, const sgd_kind kind, const int decay)
{
    if (args->nesterov)
        sgd_loop(args, kind, decay, 1);
    else
        sgd_loop(args, kind, decay, 0);
}

static inline void sgd_decay(const zb_sgd_args *args, const sgd_kind kind)
{
    if (args->weight_decay != 0)
        sgd_nesterov(args, kind, 1);
    else
        sgd_nesterov(args, kind, 0);
}

static zb_status op_sgd(const zb_sgd_args *args)
{
    if (args->momentum == 0)
        sgd_decay(args, SGD_PLAIN);
    else if (args->first_step)
        sgd_decay(args, SGD_FIRST_STEP);
    else
        sgd_decay(args, SGD_MOMENTUM);
    return ZB_OK;
}
