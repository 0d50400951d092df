/* Optimizers: each in one pass over parameters, states and gradients. */

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

/* --- adam --- */

/* The variants of <zerobit/kernels.h>; the original of ADAM_CPU treats whole vectors and the rest
 * differently. */
typedef enum adam_formula {
    ADAM_FUSED,
    ADAM_TORCH,
    ADAM_CPU_BODY,
    ADAM_CPU_TAIL,
    ADAM_FORMULAS
} adam_formula;
typedef enum adam_decay { DECAY_NONE, DECAY_L2, DECAY_DECOUPLED, DECAYS } adam_decay;

ZB_SPECIALISED void adam_fused(const zb_adam_args *s, const adam_decay decay, vec g, vec *p, vec *m, vec *v)
{
    if (decay == DECAY_L2) g = g + vec_all(s->weight_decay) * *p;
    *m = vec_all(s->beta1) * *m + vec_all(s->one_minus_beta1) * g;
    *v = vec_all(s->beta2) * *v + (vec_all(s->one_minus_beta2) * g) * g;
    vec u = (*m / vec_all(s->correction1)) / (vec_sqrt(*v / vec_all(s->correction2)) + vec_all(s->eps));
    if (decay == DECAY_DECOUPLED) u = u + vec_all(s->weight_decay) * *p;
    *p = *p - vec_all(s->lr) * u;
}

ZB_SPECIALISED void adam_torch(const zb_adam_args *s, const adam_decay decay, vec g, vec *p, vec *m, vec *v)
{
    if (decay == DECAY_L2) g = vec_fma(*p, vec_all(s->weight_decay), g);
    if (decay == DECAY_DECOUPLED) *p = *p * vec_all(s->decay);
    *m = vec_fma(g, vec_all(s->one_minus_beta1), *m * vec_all(s->beta1));
    *v = vec_fma(vec_all(s->one_minus_beta2) * g, g, *v * vec_all(s->beta2));
    const vec denominator = vec_sqrt(*v) / vec_all(s->root_correction2) + vec_all(s->eps);
    *p = *p + vec_all(s->step_size) * *m / denominator;
}

ZB_SPECIALISED void adam_cpu(const zb_adam_args *s, const int tail, const adam_decay decay, vec g, vec *p,
                             vec *m, vec *v)
{
    const vec beta1 = vec_all(s->beta1), beta2 = vec_all(s->beta2);
    const vec rest1 = vec_all(s->one_minus_beta1), rest2 = vec_all(s->one_minus_beta2);
    if (decay == DECAY_L2) g = vec_fma(*p, vec_all(s->weight_decay), g);
    *m = tail ? vec_fma(*m, beta1, g * rest1) : vec_fma(g, rest1, *m * beta1);
    *v = tail ? vec_fma(*v, beta2, (g * g) * rest2) : vec_fma(g * g, rest2, *v * beta2);
    const vec u = *m / vec_fma(vec_sqrt(*v), vec_all(s->root_correction2), vec_all(s->eps));
    if (decay == DECAY_DECOUPLED) *p = vec_fma(*p, vec_all(s->decay), *p);
    *p = vec_fma(u, vec_all(s->step_size), *p);
}

/* VL elements: of p, m and v, and from grad to param, unless that is NULL. */
ZB_SPECIALISED void adam_vec(const zb_adam_args *s, const adam_formula formula, const adam_decay decay,
                             float *p_at, float *m_at, float *v_at, const void *grad, void *param)
{
    vec p = vec_load(p_at), m = vec_load(m_at), v = vec_load(v_at);
    const vec g = load_vec(s->grad_dtype, grad) * vec_all(s->grad_scale);
    if (formula == ADAM_FUSED)
        adam_fused(s, decay, g, &p, &m, &v);
    else if (formula == ADAM_TORCH)
        adam_torch(s, decay, g, &p, &m, &v);
    else
        adam_cpu(s, formula == ADAM_CPU_TAIL, decay, g, &p, &m, &v);
    vec_store(p_at, p), vec_store(m_at, m), vec_store(v_at, v);
    if (param != NULL) store_vec(s->param_dtype, param, p);
}

/* Elements first .. end-1; the last few, less than a vector, by way of whole ones. */
ZB_SPECIALISED void adam_loop(const zb_adam_args *args, const adam_formula formula, const adam_decay decay,
                              size_t first, size_t end)
{
    const zb_adam_args s = *args; /* a copy that no store can change */
    size_t i = first;
    for (; i + VL <= end; i += VL)
        adam_vec(&s, formula, decay, s.p + i, s.m + i, s.v + i, const_element(s.grad_dtype, s.grad, i),
                 s.param != NULL ? element(s.param_dtype, s.param, i) : NULL);
    const size_t rest = end - i, bytes = rest * sizeof(float);
    if (rest == 0) return;
    float p[VL] = { 0 }, m[VL] = { 0 }, v[VL] = { 0 }, grad[VL] = { 0 }, param[VL];
    memcpy(p, s.p + i, bytes), memcpy(m, s.m + i, bytes), memcpy(v, s.v + i, bytes);
    memcpy(grad, const_element(s.grad_dtype, s.grad, i), rest * zb_dtype_bytes(s.grad_dtype));
    adam_vec(&s, formula, decay, p, m, v, grad, s.param != NULL ? param : NULL);
    memcpy(s.p + i, p, bytes), memcpy(s.m + i, m, bytes), memcpy(s.v + i, v, bytes);
    if (s.param != NULL)
        memcpy(element(s.param_dtype, s.param, i), param, rest * zb_dtype_bytes(s.param_dtype));
}

#define ZB_ADAM_LOOPS(X)                                                                                     \
    X(ADAM_FUSED, DECAY_L2)                                                                                  \
    X(ADAM_FUSED, DECAY_DECOUPLED)                                                                           \
    X(ADAM_TORCH, DECAY_NONE) X(ADAM_TORCH, DECAY_L2) X(ADAM_TORCH, DECAY_DECOUPLED)                         \
        X(ADAM_CPU_BODY, DECAY_NONE) X(ADAM_CPU_BODY, DECAY_L2) X(ADAM_CPU_BODY, DECAY_DECOUPLED)            \
            X(ADAM_CPU_TAIL, DECAY_NONE) X(ADAM_CPU_TAIL, DECAY_L2) X(ADAM_CPU_TAIL, DECAY_DECOUPLED)
#define ZB_ADAM_FUNCTION(formula, decay)                                                                     \
    static void formula##_##decay(const zb_adam_args *args, size_t first, size_t end)                        \
    {                                                                                                        \
        adam_loop(args, formula, decay, first, end);                                                         \
    }
ZB_ADAM_LOOPS(ZB_ADAM_FUNCTION)
#undef ZB_ADAM_FUNCTION

static void (*const adam_loops[ADAM_FORMULAS][DECAYS])(const zb_adam_args *, size_t, size_t) = {
#define ZB_ADAM_ENTRY(formula, decay) [formula][decay] = formula##_##decay,
    ZB_ADAM_LOOPS(ZB_ADAM_ENTRY)
#undef ZB_ADAM_ENTRY
};
#undef ZB_ADAM_LOOPS

static adam_decay adam_decay_of(const zb_adam_args *args)
{
    const int always = args->variant == ZB_ADAM_FUSED;
    const int present = args->variant == ZB_ADAM_CPU ? args->weight_decay > 0 : args->weight_decay != 0;
    return !always && !present ? DECAY_NONE : args->decoupled ? DECAY_DECOUPLED : DECAY_L2;
}

static zb_status op_adam(const zb_adam_args *args)
{
    ZB_TRY(check_optimizer_dtypes("adam", args->grad_dtype, args->param, args->param_dtype));
    const adam_decay decay = adam_decay_of(args);
    const size_t numel = args->numel;
    switch (args->variant) {
    case ZB_ADAM_FUSED:
        adam_loops[ADAM_FUSED][decay](args, 0, numel);
        return ZB_OK;
    case ZB_ADAM_TORCH:
        adam_loops[ADAM_TORCH][decay](args, 0, numel);
        return ZB_OK;
    case ZB_ADAM_CPU:
        if (args->vector_width == 0)
            return zb_fail(ZB_INVALID_ARGUMENT, "adam as on a CPU with a vector width of 0; want at least 1");
        const size_t body = numel - numel % args->vector_width;
        adam_loops[ADAM_CPU_BODY][decay](args, 0, body);
        adam_loops[ADAM_CPU_TAIL][decay](args, body, numel);
        return ZB_OK;
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "adam in variant %d; there are 3", (int)args->variant);
}

/* --- sgd --- */

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
