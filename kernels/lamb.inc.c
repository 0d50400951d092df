/*
 * LAMB. The trust ratio takes the norms of whole tensors, so a step is two passes: one that moves the moments
 * and sums squares, and one that applies the update. The update is computed anew in the second, from numbers
 * that have not changed: that costs less than to store it.
 */

ZB_SPECIALISED vec lamb_update(vec p, vec m, vec v, float eps, float weight_decay, int eps_inside_sqrt)
{
    const vec inside = v + vec_all(eps), outside = vec_sqrt(v) + vec_all(eps);
    const vec denominator = eps_inside_sqrt ? vec_sqrt(inside) : outside;
    return m / denominator + vec_all(weight_decay) * p;
}

/* VL elements; u_at receives the update. */
ZB_SPECIALISED void lamb_moments_vec(const zb_lamb_moments_args *s, const float *p_at, float *m_at,
                                     float *v_at, const void *grad, float *u_at)
{
    const vec g = load_vec(s->grad_dtype, grad) * vec_all(s->grad_scale);
    const vec m = vec_all(s->beta1) * vec_load(m_at) + vec_all(s->one_minus_beta1) * g;
    const vec v = vec_all(s->beta2) * vec_load(v_at) + (vec_all(s->one_minus_beta2) * g) * g;
    vec_store(m_at, m), vec_store(v_at, v);
    vec_store(u_at, lamb_update(vec_load(p_at), m, v, s->eps, s->weight_decay, s->eps_inside_sqrt));
}

/* Elements first .. first + count - 1, at most BLOCK. */
static void lamb_moments_block(const zb_lamb_moments_args *args, size_t first, size_t count, float *u)
{
    const zb_lamb_moments_args s = *args;
    const float *p = s.p + first;
    float *m = s.m + first, *v = s.v + first;
    size_t i = 0;
    for (; i + VL <= count; i += VL)
        lamb_moments_vec(&s, p + i, m + i, v + i, const_element(s.grad_dtype, s.grad, first + i), u + i);
    const size_t rest = count - i, bytes = rest * sizeof(float);
    if (rest == 0) return;
    float p_rest[VL] = { 0 }, m_rest[VL] = { 0 }, v_rest[VL] = { 0 }, grad[VL] = { 0 }, u_rest[VL];
    memcpy(p_rest, p + i, bytes), memcpy(m_rest, m + i, bytes), memcpy(v_rest, v + i, bytes);
    memcpy(grad, const_element(s.grad_dtype, s.grad, first + i), rest * zb_dtype_bytes(s.grad_dtype));
    lamb_moments_vec(&s, p_rest, m_rest, v_rest, grad, u_rest);
    memcpy(m + i, m_rest, bytes), memcpy(v + i, v_rest, bytes), memcpy(u + i, u_rest, bytes);
}

static zb_status op_lamb_moments(const zb_lamb_moments_args *args)
{
    ZB_TRY(check_optimizer_dtypes("lamb_moments", args->grad_dtype, NULL, ZB_FP32));
    float u[BLOCK];
    square_bins weights, updates;
    square_bins_open(&weights, args->accumulators);
    square_bins_open(&updates, args->accumulators + ZB_SUM_SQUARES_WORDS);
    ZB_EACH_BLOCK(first, count, args->numel, BLOCK)
    {
        lamb_moments_block(args, first, count, u);
        square_bins_add(&weights, args->p + first, count);
        square_bins_add(&updates, u, count);
    }
    square_bins_close(&weights);
    square_bins_close(&updates);
    return ZB_OK;
}

/* VL elements, the rounded ones to param unless that is NULL. */
ZB_SPECIALISED void lamb_apply_vec(const zb_lamb_apply_args *s, float *p_at, const float *m_at,
                                   const float *v_at, void *param)
{
    vec p = vec_load(p_at);
    const vec u = lamb_update(p, vec_load(m_at), vec_load(v_at), s->eps, s->weight_decay, s->eps_inside_sqrt);
    p = p - vec_all(s->factor) * u;
    vec_store(p_at, p);
    if (param != NULL) store_vec(s->param_dtype, param, p);
}

static zb_status op_lamb_apply(const zb_lamb_apply_args *args)
{
    ZB_TRY(check_optimizer_dtypes("lamb_apply", ZB_FP32, args->param, args->param_dtype));
    const zb_lamb_apply_args s = *args;
    size_t i = 0;
    for (; i + VL <= s.numel; i += VL)
        lamb_apply_vec(&s, s.p + i, s.m + i, s.v + i,
                       s.param != NULL ? element(s.param_dtype, s.param, i) : NULL);
    const size_t rest = s.numel - i, bytes = rest * sizeof(float);
    if (rest == 0) return ZB_OK;
    float p[VL] = { 0 }, m[VL] = { 0 }, v[VL] = { 0 }, param[VL];
    memcpy(p, s.p + i, bytes), memcpy(m, s.m + i, bytes), memcpy(v, s.v + i, bytes);
    lamb_apply_vec(&s, p, m, v, s.param != NULL ? param : NULL);
    memcpy(s.p + i, p, bytes);
    if (s.param != NULL)
        memcpy(element(s.param_dtype, s.param, i), param, rest * zb_dtype_bytes(s.param_dtype));
    return ZB_OK;
}
