/*
 * Optimizers: each in one pass over parameters, states and gradients. A formula is written once, on vectors;
 * update_loop runs it over arrays of any length and type.
 */

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

static zb_status check_optimizer_arithmetic(const char *name, zb_optimizer_kind kind,
                                            zb_optimizer_arithmetic arithmetic)
{
    if (zb_optimizer_has_arithmetic(kind, arithmetic)) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s in arithmetic %d, which it does not have", name, (int)arithmetic);
}

/* The arrays of an optimizer. */
typedef struct update {
    float *p, *m, *v; /* m, v: its states, as many as it has */
    zb_dtype grad_dtype, param_dtype;
    const void *grad;
    void *param; /* or NULL */
    float grad_scale;
} update;

/* One vector: g is the gradient, scaled; a formula of fewer states leaves *v, or *m too, alone. */
typedef void update_formula(const void *scalars, vec g, vec *p, vec *m, vec *v);

/* VL elements: of p, m and v, and from grad to param, unless that is NULL. */
ZB_SPECIALISED void update_vec(const update *u, const int states, update_formula *const formula,
                               const void *scalars, float *p_at, float *m_at, float *v_at, const void *grad,
                               void *param)
{
    vec p = vec_load(p_at), m = vec_zero(), v = vec_zero();
    if (states > 0) m = vec_load(m_at);
    if (states > 1) v = vec_load(v_at);
    formula(scalars, load_vec(u->grad_dtype, grad) * vec_all(u->grad_scale), &p, &m, &v);
    vec_store(p_at, p);
    if (states > 0) vec_store(m_at, m);
    if (states > 1) vec_store(v_at, v);
    if (param != NULL) store_vec(u->param_dtype, param, p);
}

/* The last few elements, from i on, less than a vector: by way of whole ones. */
ZB_SPECIALISED void update_rest(const update *u, const int states, update_formula *const formula,
                                const void *scalars, size_t i, size_t rest)
{
    const size_t bytes = rest * sizeof(float);
    float p[VL] = { 0 }, m[VL] = { 0 }, v[VL] = { 0 }, grad[VL] = { 0 }, param[VL];
    memcpy(p, u->p + i, bytes);
    if (states > 0) memcpy(m, u->m + i, bytes);
    if (states > 1) memcpy(v, u->v + i, bytes);
    memcpy(grad, const_element(u->grad_dtype, u->grad, i), rest * zb_dtype_bytes(u->grad_dtype));
    update_vec(u, states, formula, scalars, p, m, v, grad, u->param != NULL ? param : NULL);
    memcpy(u->p + i, p, bytes);
    if (states > 0) memcpy(u->m + i, m, bytes);
    if (states > 1) memcpy(u->v + i, v, bytes);
    if (u->param != NULL)
        memcpy(element(u->param_dtype, u->param, i), param, rest * zb_dtype_bytes(u->param_dtype));
}

/* Elements first .. end-1. `arrays` and `scalars` are copies of the caller's own, which no store can change.
 */
ZB_SPECIALISED void update_loop(const update *u, const int states, update_formula *const formula,
                                const void *scalars, size_t first, size_t end)
{
    size_t i = first;
    for (; i + VL <= end; i += VL)
        update_vec(u, states, formula, scalars, u->p + i, states > 0 ? u->m + i : NULL,
                   states > 1 ? u->v + i : NULL, const_element(u->grad_dtype, u->grad, i),
                   u->param != NULL ? element(u->param_dtype, u->param, i) : NULL);
    if (i < end) update_rest(u, states, formula, scalars, i, end - i);
}

#define ZB_UPDATE_OF(args, first_state, second_state)                                                        \
    {                                                                                                        \
        .p = (args)->p, .m = (first_state), .v = (second_state), .grad_dtype = (args)->grad_dtype,           \
        .param_dtype = (args)->param_dtype, .grad = (args)->grad, .param = (args)->param,                    \
        .grad_scale = (args)->grad_scale                                                                     \
    }

/* --- adam --- */

typedef enum adam_decay { DECAY_NONE, DECAY_L2, DECAY_DECOUPLED, DECAYS } adam_decay;

ZB_SPECIALISED void adam_plain(const zb_adam_args *s, const adam_decay decay, vec g, vec *p, vec *m, vec *v)
{
    if (decay == DECAY_L2) g = g + vec_all(s->weight_decay) * *p;
    *m = vec_all(s->beta1) * *m + vec_all(s->one_minus_beta1) * g;
    *v = vec_all(s->beta2) * *v + (vec_all(s->one_minus_beta2) * g) * g;
    vec u = (*m / vec_all(s->correction1)) / (vec_sqrt(*v / vec_all(s->correction2)) + vec_all(s->eps));
    if (decay == DECAY_DECOUPLED) u = u + vec_all(s->weight_decay) * *p;
    *p = *p - vec_all(s->lr) * u;
}

/* PyTorch's lerp takes the end that is nearer, so that it is exact at both. */
ZB_SPECIALISED vec lerp(vec from, vec to, float weight)
{
    if (weight < 0.5f) return vec_fma(vec_all(weight), to - from, from);
    return vec_fma(vec_all(weight - 1.0f), to - from, to);
}

ZB_SPECIALISED void adam_torch(const zb_adam_args *s, const int release, const adam_decay decay, vec g,
                               vec *p, vec *m, vec *v)
{
    if (decay == DECAY_L2) g = vec_fma(*p, vec_all(s->weight_decay), g);
    if (decay == DECAY_DECOUPLED) *p = *p * vec_all(s->decay);
    *m = release == 1 ? vec_fma(g, vec_all(s->one_minus_beta1), *m * vec_all(s->beta1))
                      : lerp(*m, g, s->one_minus_beta1);
    *v = vec_fma(vec_all(s->one_minus_beta2) * g, g, *v * vec_all(s->beta2));
    const vec denominator = vec_sqrt(*v) / vec_all(s->root_correction2) + vec_all(s->eps);
    *p = *p + vec_all(s->step_size) * *m / denominator;
}

/* The original treats whole vectors and the rest differently. */
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

typedef enum adam_form { ADAM_PLAIN, ADAM_TORCH_1, ADAM_TORCH_2, ADAM_BODY, ADAM_TAIL, ADAM_FORMS } adam_form;

ZB_SPECIALISED void adam_form_vec(const adam_form form, const adam_decay decay, const zb_adam_args *s, vec g,
                                  vec *p, vec *m, vec *v)
{
    if (form == ADAM_PLAIN)
        adam_plain(s, decay, g, p, m, v);
    else if (form == ADAM_TORCH_1 || form == ADAM_TORCH_2)
        adam_torch(s, form == ADAM_TORCH_1 ? 1 : 2, decay, g, p, m, v);
    else
        adam_cpu(s, form == ADAM_TAIL, decay, g, p, m, v);
}

#define ZB_ADAM_DECAYS(X, form) X(form, DECAY_NONE) X(form, DECAY_L2) X(form, DECAY_DECOUPLED)
#define ZB_ADAM_FORMS(X)                                                                                     \
    X(ADAM_PLAIN, DECAY_L2)                                                                                  \
    X(ADAM_PLAIN, DECAY_DECOUPLED)                                                                           \
    ZB_ADAM_DECAYS(X, ADAM_TORCH_1)                                                                          \
    ZB_ADAM_DECAYS(X, ADAM_TORCH_2) ZB_ADAM_DECAYS(X, ADAM_BODY) ZB_ADAM_DECAYS(X, ADAM_TAIL)
#define ZB_ADAM_FUNCTION(form, decay)                                                                        \
    ZB_SPECIALISED void form##_##decay##_vec(const void *scalars, vec g, vec *p, vec *m, vec *v)             \
    {                                                                                                        \
        adam_form_vec(form, decay, scalars, g, p, m, v);                                                     \
    }                                                                                                        \
    static void form##_##decay(const zb_adam_args *args, size_t first, size_t end)                           \
    {                                                                                                        \
        const zb_adam_args s = *args;                                                                        \
        const update u = ZB_UPDATE_OF(args, args->m, args->v);                                               \
        update_loop(&u, 2, form##_##decay##_vec, &s, first, end);                                            \
    }
ZB_ADAM_FORMS(ZB_ADAM_FUNCTION)
#undef ZB_ADAM_FUNCTION

static void (*const adam_loops[ADAM_FORMS][DECAYS])(const zb_adam_args *, size_t, size_t) = {
#define ZB_ADAM_ENTRY(form, decay) [form][decay] = form##_##decay,
    ZB_ADAM_FORMS(ZB_ADAM_ENTRY)
#undef ZB_ADAM_ENTRY
};
#undef ZB_ADAM_FORMS
#undef ZB_ADAM_DECAYS

static adam_decay adam_decay_of(const zb_adam_args *args)
{
    const int always = args->arithmetic == ZB_ARITHMETIC_PLAIN;
    const int present = args->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU ? args->weight_decay > 0
                                                                        : args->weight_decay != 0;
    return !always && !present ? DECAY_NONE : args->decoupled ? DECAY_DECOUPLED : DECAY_L2;
}

static zb_status op_adam(const zb_adam_args *args)
{
    ZB_TRY(check_optimizer_dtypes("adam", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_optimizer_arithmetic("adam", ZB_OPTIMIZER_ADAM, args->arithmetic));
    const adam_decay decay = adam_decay_of(args);
    if (args->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU) {
        if (args->vector_width == 0)
            return zb_fail(ZB_INVALID_ARGUMENT, "adam as on a CPU with a vector width of 0; want at least 1");
        const size_t body = args->numel - args->numel % args->vector_width;
        adam_loops[ADAM_BODY][decay](args, 0, body);
        adam_loops[ADAM_TAIL][decay](args, body, args->numel);
        return ZB_OK;
    }
    const adam_form form = args->arithmetic == ZB_ARITHMETIC_PLAIN     ? ADAM_PLAIN
                           : args->arithmetic == ZB_ARITHMETIC_TORCH_1 ? ADAM_TORCH_1
                                                                       : ADAM_TORCH_2;
    adam_loops[form][decay](args, 0, args->numel);
    return ZB_OK;
}

/* --- sgd --- */

/* a * b + c, in one rounding or two. */
ZB_SPECIALISED vec multiply_add(const int fused, vec a, vec b, vec c)
{
    if (fused) return vec_fma(a, b, c);
    return a * b + c;
}

ZB_SPECIALISED void sgd_vec(const zb_sgd_args *s, const int fused, const int momentum, vec g, vec *p,
                            vec *buf)
{
    const vec rate = vec_all(s->lr);
    if (s->weight_decay != 0) g = multiply_add(fused, *p, vec_all(s->weight_decay), g);
    if (momentum) {
        const vec kept = *buf * vec_all(s->momentum);
        *buf = s->first_step ? g : multiply_add(fused, g, vec_all(s->one_minus_dampening), kept);
        g = s->nesterov ? multiply_add(fused, *buf, vec_all(s->momentum), g) : *buf;
    }
    *p = multiply_add(fused, g, -rate, *p); /* p - lr * g has the same two roundings */
}

#define ZB_SGD_FUNCTION(name, fused, momentum_on)                                                            \
    ZB_SPECIALISED void name##_vec(const void *scalars, vec g, vec *p, vec *m, vec *v)                       \
    {                                                                                                        \
        (void)v;                                                                                             \
        sgd_vec(scalars, fused, momentum_on, g, p, m);                                                       \
    }                                                                                                        \
    static void name(const zb_sgd_args *args)                                                                \
    {                                                                                                        \
        const zb_sgd_args s = *args;                                                                         \
        const update u = ZB_UPDATE_OF(args, args->buf, NULL);                                                \
        update_loop(&u, momentum_on, name##_vec, &s, 0, args->numel);                                        \
    }
ZB_SGD_FUNCTION(sgd_plain, 0, 0)
ZB_SGD_FUNCTION(sgd_plain_momentum, 0, 1)
ZB_SGD_FUNCTION(sgd_torch, 1, 0)
ZB_SGD_FUNCTION(sgd_torch_momentum, 1, 1)
#undef ZB_SGD_FUNCTION

static zb_status op_sgd(const zb_sgd_args *args)
{
    ZB_TRY(check_optimizer_dtypes("sgd", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_optimizer_arithmetic("sgd", ZB_OPTIMIZER_SGD, args->arithmetic));
    const int momentum = args->momentum != 0;
    if (args->arithmetic == ZB_ARITHMETIC_PLAIN)
        (momentum ? sgd_plain_momentum : sgd_plain)(args);
    else
        (momentum ? sgd_torch_momentum : sgd_torch)(args);
    return ZB_OK;
}

/* --- adagrad --- */

ZB_SPECIALISED void adagrad_plain_vec(const void *scalars, vec g, vec *p, vec *sum, vec *none)
{
    const zb_adagrad_args *s = scalars;
    (void)none;
    if (s->weight_decay != 0) g = g + vec_all(s->weight_decay) * *p;
    *sum = *sum + g * g;
    *p = *p - vec_all(s->lr) * (g / (vec_sqrt(*sum) + vec_all(s->eps)));
}

ZB_SPECIALISED void adagrad_torch_vec(const void *scalars, vec g, vec *p, vec *sum, vec *none)
{
    const zb_adagrad_args *s = scalars;
    (void)none;
    if (s->weight_decay != 0) g = vec_fma(*p, vec_all(s->weight_decay), g);
    *sum = vec_fma(g, g, *sum);
    *p = *p + (vec_all(-s->lr) * g) / (vec_sqrt(*sum) + vec_all(s->eps));
}

ZB_SPECIALISED void adagrad_cpu_vec(const void *scalars, vec g, vec *p, vec *sum, vec *none)
{
    const zb_adagrad_args *s = scalars;
    (void)none;
    const vec h = s->weight_decay > 0 ? vec_fma(*p, vec_all(s->weight_decay), g) : g;
    *sum = vec_fma(h, h, *sum);
    *p = vec_fma(g / (vec_sqrt(*sum) + vec_all(s->eps)), vec_all(-s->lr), *p);
}

#define ZB_ADAGRAD_FUNCTION(name)                                                                            \
    static void name(const zb_adagrad_args *args)                                                            \
    {                                                                                                        \
        const zb_adagrad_args s = *args;                                                                     \
        const update u = ZB_UPDATE_OF(args, args->sum, NULL);                                                \
        update_loop(&u, 1, name##_vec, &s, 0, args->numel);                                                  \
    }
ZB_ADAGRAD_FUNCTION(adagrad_plain)
ZB_ADAGRAD_FUNCTION(adagrad_torch)
ZB_ADAGRAD_FUNCTION(adagrad_cpu)
#undef ZB_ADAGRAD_FUNCTION

static zb_status op_adagrad(const zb_adagrad_args *args)
{
    ZB_TRY(check_optimizer_dtypes("adagrad", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_optimizer_arithmetic("adagrad", ZB_OPTIMIZER_ADAGRAD, args->arithmetic));
    if (args->arithmetic == ZB_ARITHMETIC_PLAIN)
        adagrad_plain(args);
    else if (args->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU)
        adagrad_cpu(args);
    else
        adagrad_torch(args);
    return ZB_OK;
}

/* --- lion --- */

ZB_SPECIALISED void lion_vec(const zb_lion_args *s, const int cpu, vec g, vec *p, vec *m)
{
    const vec rate = vec_all(s->lr);
    const vec c = vec_all(s->beta1) * *m + vec_all(s->one_minus_beta1) * g;
    if (!cpu)
        *p = *p * vec_all(s->decay) + vec_select(vec_above(c, vec_zero()), -rate, rate);
    else if (s->weight_decay > 0)
        *p = vec_fma(*p, vec_all(s->decay), -vec_with_sign_of(rate, c));
    else
        *p = *p - vec_with_sign_of(rate, c);
    *m = vec_all(s->beta2) * *m + vec_all(s->one_minus_beta2) * g;
}

#define ZB_LION_FUNCTION(name, cpu)                                                                          \
    ZB_SPECIALISED void name##_vec(const void *scalars, vec g, vec *p, vec *m, vec *v)                       \
    {                                                                                                        \
        (void)v;                                                                                             \
        lion_vec(scalars, cpu, g, p, m);                                                                     \
    }                                                                                                        \
    static void name(const zb_lion_args *args)                                                               \
    {                                                                                                        \
        const zb_lion_args s = *args;                                                                        \
        const update u = ZB_UPDATE_OF(args, args->m, NULL);                                                  \
        update_loop(&u, 1, name##_vec, &s, 0, args->numel);                                                  \
    }
ZB_LION_FUNCTION(lion_plain, 0)
ZB_LION_FUNCTION(lion_cpu, 1)
#undef ZB_LION_FUNCTION

static zb_status op_lion(const zb_lion_args *args)
{
    ZB_TRY(check_optimizer_dtypes("lion", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_optimizer_arithmetic("lion", ZB_OPTIMIZER_LION, args->arithmetic));
    (args->arithmetic == ZB_ARITHMETIC_PLAIN ? lion_plain : lion_cpu)(args);
    return ZB_OK;
}
