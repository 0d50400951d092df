/*
 * The optimizers' kernels against the contract's formulas, element by element, at every level: all types,
 * sizes around every edge, and numbers of every kind. Golden values are
 * tests/equivalence/test_optimizers.c's.
 */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

/* --- what is tested --- */

typedef union scalars {
    zb_adam_args adam;
    zb_sgd_args sgd;
    zb_adagrad_args adagrad;
    zb_lion_args lion;
} scalars;

/* The arrays that a kernel is given. */
typedef struct arrays {
    float *p, *m, *v;
    zb_dtype grad_dtype, param_dtype;
    const void *grad;
    void *param;
    size_t numel;
} arrays;

typedef struct optimizer {
    const char *name;
    int has_m, v_is_squares; /* v: a sum of squares, so not negative in a real run; otherwise not there */
    scalars (*draw)(rng *r, zb_optimizer_arithmetic arithmetic);
    /* Element i of n; g is the gradient, scaled. */
    void (*plain)(const scalars *s, size_t i, size_t n, float g, float *p, float *m, float *v);
    zb_status (*run)(const scalars *s, const arrays *x);
    float (*grad_scale)(const scalars *s);
} optimizer;

#define WITH_ARRAYS(args, x)                                                                                 \
    (args).p = (x)->p, (args).grad = (x)->grad, (args).grad_dtype = (x)->grad_dtype,                         \
    (args).param = (x)->param, (args).param_dtype = (x)->param_dtype, (args).numel = (x)->numel

static float draw_scale(rng *r)
{
    return rng_below(r, 3) == 0 ? 0.37f : 1.0f;
}
static float draw_decay(rng *r)
{
    return rng_below(r, 3) == 0 ? 0.0f : 0.01f;
}

/* --- adam --- */

static scalars draw_adam(rng *r, zb_optimizer_arithmetic arithmetic)
{
    const int far = rng_below(r, 3) == 0; /* torch's lerp begins at the other end */
    zb_adam_args s = { .grad_scale = draw_scale(r),
                       .lr = 1e-3f,
                       .beta1 = far ? 0.4f : 0.9f,
                       .beta2 = 0.999f,
                       .one_minus_beta1 = far ? 0.6f : 0.1f,
                       .one_minus_beta2 = 1e-3f,
                       .eps = 1e-8f,
                       .weight_decay = draw_decay(r),
                       .correction1 = 0.271f,
                       .correction2 = 0.00299700f,
                       .decoupled = (int)rng_below(r, 2),
                       .arithmetic = arithmetic,
                       .decay = arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU ? -1e-5f : 0.99999f,
                       .step_size = -3.69e-3f,
                       .root_correction2 = arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU ? 18.27f : 0.0547f };
    static const size_t widths[] = { 1, 8, 16 };
    s.vector_width = widths[rng_below(r, 3)];
    return (scalars){ .adam = s };
}

static void plain_adam_plain(const zb_adam_args *s, float g, float *p, float *m, float *v)
{
    if (!s->decoupled) g = plus(g, times(s->weight_decay, *p));
    *m = plus(times(s->beta1, *m), times(s->one_minus_beta1, g));
    *v = plus(times(s->beta2, *v), times(times(s->one_minus_beta2, g), g));
    float u = over(over(*m, s->correction1), plus(root(over(*v, s->correction2)), s->eps));
    if (s->decoupled) u = plus(u, times(s->weight_decay, *p));
    *p = minus(*p, times(s->lr, u));
}

static float plain_lerp(float from, float to, float weight)
{
    if (weight < 0.5f) return fmaf(weight, minus(to, from), from);
    return fmaf(minus(weight, 1), minus(to, from), to);
}

static void plain_adam_torch(const zb_adam_args *s, float g, float *p, float *m, float *v)
{
    if (s->weight_decay != 0 && s->decoupled) *p = times(*p, s->decay);
    if (s->weight_decay != 0 && !s->decoupled) g = fmaf(s->weight_decay, *p, g);
    *m = s->arithmetic == ZB_ARITHMETIC_TORCH_1 ? fmaf(s->one_minus_beta1, g, times(*m, s->beta1))
                                                : plain_lerp(*m, g, s->one_minus_beta1);
    *v = fmaf(times(s->one_minus_beta2, g), g, times(*v, s->beta2));
    *p = plus(*p, over(times(s->step_size, *m), plus(over(root(*v), s->root_correction2), s->eps)));
}

static void plain_adam_cpu(const zb_adam_args *s, int tail, float g, float *p, float *m, float *v)
{
    if (s->weight_decay > 0 && !s->decoupled) g = fmaf(s->weight_decay, *p, g);
    *m = tail ? fmaf(s->beta1, *m, times(g, s->one_minus_beta1))
              : fmaf(g, s->one_minus_beta1, times(*m, s->beta1));
    *v = tail ? fmaf(s->beta2, *v, times(times(g, g), s->one_minus_beta2))
              : fmaf(times(g, g), s->one_minus_beta2, times(*v, s->beta2));
    const float u = over(*m, fmaf(root(*v), s->root_correction2, s->eps));
    if (s->weight_decay > 0 && s->decoupled) *p = fmaf(s->decay, *p, *p);
    *p = fmaf(s->step_size, u, *p);
}

static void plain_adam(const scalars *args, size_t i, size_t n, float g, float *p, float *m, float *v)
{
    const zb_adam_args *s = &args->adam;
    if (s->arithmetic == ZB_ARITHMETIC_PLAIN)
        plain_adam_plain(s, g, p, m, v);
    else if (s->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU)
        plain_adam_cpu(s, i >= n / s->vector_width * s->vector_width, g, p, m, v);
    else
        plain_adam_torch(s, g, p, m, v);
}

static zb_status run_adam(const scalars *s, const arrays *x)
{
    zb_adam_args args = s->adam;
    WITH_ARRAYS(args, x), args.m = x->m, args.v = x->v;
    return zb_cpu_adam(&args);
}
static float adam_scale(const scalars *s)
{
    return s->adam.grad_scale;
}

/* --- sgd --- */

static scalars draw_sgd(rng *r, zb_optimizer_arithmetic arithmetic)
{
    return (scalars){ .sgd = { .grad_scale = draw_scale(r),
                               .lr = 0.1f,
                               .weight_decay = draw_decay(r),
                               .momentum = rng_below(r, 3) == 0 ? 0.0f : 0.9f,
                               .one_minus_dampening = rng_below(r, 3) == 0 ? 0.3f : 1.0f,
                               .nesterov = (int)rng_below(r, 2),
                               .first_step = (int)rng_below(r, 2),
                               .arithmetic = arithmetic } };
}

/* a * b + c */
static float multiply_add(int fused, float a, float b, float c)
{
    return fused ? fmaf(a, b, c) : plus(times(a, b), c);
}

static void plain_sgd(const scalars *args, size_t i, size_t n, float g, float *p, float *m, float *v)
{
    const zb_sgd_args *s = &args->sgd;
    const int fused = s->arithmetic != ZB_ARITHMETIC_PLAIN;
    (void)i, (void)n, (void)v;
    if (s->weight_decay != 0) g = multiply_add(fused, s->weight_decay, *p, g);
    if (s->momentum != 0) {
        const float kept = times(s->momentum, *m);
        *m = s->first_step ? g : multiply_add(fused, s->one_minus_dampening, g, kept);
        g = s->nesterov ? multiply_add(fused, s->momentum, *m, g) : *m;
    }
    *p = fused ? fmaf(-s->lr, g, *p) : minus(*p, times(s->lr, g));
}

static zb_status run_sgd(const scalars *s, const arrays *x)
{
    zb_sgd_args args = s->sgd;
    WITH_ARRAYS(args, x), args.buf = args.momentum != 0 ? x->m : NULL;
    return zb_cpu_sgd(&args);
}
static float sgd_scale(const scalars *s)
{
    return s->sgd.grad_scale;
}

/* --- adagrad --- */

static scalars draw_adagrad(rng *r, zb_optimizer_arithmetic arithmetic)
{
    return (scalars){ .adagrad = { .grad_scale = draw_scale(r),
                                   .lr = 0.03f,
                                   .weight_decay = draw_decay(r),
                                   .eps = 1e-10f,
                                   .arithmetic = arithmetic } };
}

static void plain_adagrad(const scalars *args, size_t i, size_t n, float g, float *p, float *m, float *v)
{
    const zb_adagrad_args *s = &args->adagrad;
    (void)i, (void)n, (void)m;
    if (s->arithmetic == ZB_ARITHMETIC_PLAIN) {
        if (s->weight_decay != 0) g = plus(g, times(s->weight_decay, *p));
        *v = plus(*v, times(g, g));
        *p = minus(*p, times(s->lr, over(g, plus(root(*v), s->eps))));
    } else if (s->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU) {
        const float h = s->weight_decay > 0 ? fmaf(s->weight_decay, *p, g) : g;
        *v = fmaf(h, h, *v);
        *p = fmaf(-s->lr, over(g, plus(root(*v), s->eps)), *p);
    } else {
        if (s->weight_decay != 0) g = fmaf(s->weight_decay, *p, g);
        *v = fmaf(g, g, *v);
        *p = plus(*p, over(times(-s->lr, g), plus(root(*v), s->eps)));
    }
}

static zb_status run_adagrad(const scalars *s, const arrays *x)
{
    zb_adagrad_args args = s->adagrad;
    WITH_ARRAYS(args, x), args.sum = x->v;
    return zb_cpu_adagrad(&args);
}
static float adagrad_scale(const scalars *s)
{
    return s->adagrad.grad_scale;
}

/* --- lion --- */

static scalars draw_lion(rng *r, zb_optimizer_arithmetic arithmetic)
{
    return (scalars){ .lion = { .grad_scale = draw_scale(r),
                                .lr = 1e-2f,
                                .weight_decay = draw_decay(r),
                                .decay = 0.9999f,
                                .beta1 = 0.9f,
                                .beta2 = 0.99f,
                                .one_minus_beta1 = 0.1f,
                                .one_minus_beta2 = 0.01f,
                                .arithmetic = arithmetic } };
}

static void plain_lion(const scalars *args, size_t i, size_t n, float g, float *p, float *m, float *v)
{
    const zb_lion_args *s = &args->lion;
    const float c = plus(times(s->beta1, *m), times(s->one_minus_beta1, g));
    const float u = isnan(c) ? c : signbit(c) ? -s->lr : s->lr;
    (void)i, (void)n, (void)v;
    if (s->arithmetic == ZB_ARITHMETIC_PLAIN)
        *p = plus(times(*p, s->decay), c > 0 ? -s->lr : s->lr);
    else
        *p = s->weight_decay > 0 ? fmaf(*p, s->decay, -u) : minus(*p, u);
    *m = plus(times(s->beta2, *m), times(s->one_minus_beta2, g));
}

static zb_status run_lion(const scalars *s, const arrays *x)
{
    zb_lion_args args = s->lion;
    WITH_ARRAYS(args, x), args.m = x->m;
    return zb_cpu_lion(&args);
}
static float lion_scale(const scalars *s)
{
    return s->lion.grad_scale;
}

/* --- one driver for these four --- */

static const optimizer optimizers[ZB_OPTIMIZER_LAMB] = {
    [ZB_OPTIMIZER_ADAM] = { "adam", 1, 1, draw_adam, plain_adam, run_adam, adam_scale },
    [ZB_OPTIMIZER_SGD] = { "sgd", 1, 0, draw_sgd, plain_sgd, run_sgd, sgd_scale },
    [ZB_OPTIMIZER_ADAGRAD] = { "adagrad", 0, 1, draw_adagrad, plain_adagrad, run_adagrad, adagrad_scale },
    [ZB_OPTIMIZER_LION] = { "lion", 1, 0, draw_lion, plain_lion, run_lion, lion_scale },
};

static void make_squares(tensor *v, fill_kind kind)
{
    for (size_t i = 0; i < v->numel && kind != FILL_BITS; i++)
        ((float *)v->data)[i] = v->values[i] = fabsf(v->values[i]);
}

/* With param_dtype -1 there is no rounded copy of the parameters. */
static void check(rng *r, const optimizer *o, zb_optimizer_arithmetic arithmetic, size_t n, fill_kind kind,
                  zb_dtype grad_dtype, int param_dtype)
{
    const scalars s = o->draw(r, arithmetic);
    const zb_dtype copy_dtype = param_dtype < 0 ? ZB_FP32 : (zb_dtype)param_dtype;
    tensor p = tensor_random(r, ZB_FP32, kind, n), m = tensor_random(r, ZB_FP32, kind, n);
    tensor v = tensor_random(r, ZB_FP32, kind, n), grad = tensor_random(r, grad_dtype, kind, n);
    tensor param = tensor_random(r, copy_dtype, kind, n);
    if (o->v_is_squares) make_squares(&v, kind);
    for (size_t i = 0; i < n; i++) {
        o->plain(&s, i, n, times(grad.values[i], o->grad_scale(&s)), &p.values[i], &m.values[i],
                 &v.values[i]);
        if (param_dtype >= 0) param.values[i] = p.values[i];
    }
    assert_ok(o->run(&s, &(arrays){ .p = p.data,
                                    .m = m.data,
                                    .v = v.data,
                                    .grad_dtype = grad_dtype,
                                    .param_dtype = copy_dtype,
                                    .grad = grad.data,
                                    .param = param_dtype >= 0 ? param.data : NULL,
                                    .numel = n }));
    const tensor *const all[] = { &p, &m, &v, &grad, &param };
    static const char *const names[] = { "p", "m", "v", "grad", "param" };
    for (int i = 0; i < 5; i++)
        assert_tensor(all[i], "%s %s, %s, %s, gradients of %s", o->name, names[i],
                      zb_optimizer_arithmetic_name(arithmetic), fill_name(kind), zb_dtype_name(grad_dtype));
    tensor_free(&p), tensor_free(&m), tensor_free(&v), tensor_free(&grad), tensor_free(&param);
}

/* Gradients of every type, with a copy of the parameters in every type and without. */
static void check_types(rng *r, const optimizer *o, zb_optimizer_arithmetic arithmetic, size_t n,
                        fill_kind kind)
{
    for (size_t g = 0; g < TENSOR_DTYPES; g++)
        for (int p = -1; p < TENSOR_DTYPES; p++)
            check(r, o, arithmetic, n, kind, tensor_dtypes[g], p < 0 ? -1 : (int)tensor_dtypes[p]);
}

static void formulas(void **state)
{
    use_level(state);
    rng r = { 22 };
    for (int kind = 0; kind < ZB_OPTIMIZER_LAMB; kind++)
        for (int a = 0; a < ZB_ARITHMETIC_COUNT; a++) {
            if (!zb_optimizer_has_arithmetic((zb_optimizer_kind)kind, (zb_optimizer_arithmetic)a)) continue;
            for (size_t s = 0; s < edge_size_count; s++)
                for (int fill = 0; fill < FILL_KINDS; fill++)
                    check_types(&r, &optimizers[kind], (zb_optimizer_arithmetic)a, edge_sizes[s],
                                (fill_kind)fill);
        }
}

static void refusals(void **state)
{
    use_level(state);
    float x = 1;
    scalars s = { .adam = { .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU } };
    const arrays one = { .p = &x, .m = &x, .v = &x, .grad = &x, .numel = 1 };
    assert_int_equal(run_adam(&s, &one), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "vector width of 0"));
    s.adam.arithmetic = ZB_ARITHMETIC_COUNT;
    assert_int_equal(run_adam(&s, &one), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "adam in arithmetic 4"));
    s = (scalars){ .sgd = { .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU } };
    assert_int_equal(run_sgd(&s, &one), ZB_INVALID_ARGUMENT);
    s = (scalars){ .adagrad = { .arithmetic = ZB_ARITHMETIC_COUNT } };
    assert_int_equal(run_adagrad(&s, &one), ZB_INVALID_ARGUMENT);
    s = (scalars){ .lion = { .arithmetic = ZB_ARITHMETIC_TORCH_2 } };
    assert_int_equal(run_lion(&s, &one), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "lion in arithmetic 3"));
    assert_true(x == 1);
}

/* --- lamb --- */

typedef struct lamb_scalars {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps, weight_decay, grad_scale, factor;
    int eps_inside_sqrt;
} lamb_scalars;

static float plain_lamb_update(const lamb_scalars *s, float p, float m, float v)
{
    const float denominator = s->eps_inside_sqrt ? root(plus(v, s->eps)) : plus(root(v), s->eps);
    return plus(over(m, denominator), times(s->weight_decay, p));
}

static void assert_sums(const int64_t *got, const float *x, size_t n, const char *what)
{
    int64_t want[ZB_SUM_SQUARES_WORDS] = { 0 };
    assert_ok(zb_cpu_sum_squares(&(zb_sum_squares_args){ ZB_FP32, x, n, want }));
    for (int w = 0; w < ZB_SUM_SQUARES_WORDS; w++)
        if (got[w] != want[w])
            fail_msg("squares of %s: word %d of %zu numbers is %lld, want %lld", what, w, n,
                     (long long)got[w], (long long)want[w]);
}

static void check_lamb(rng *r, size_t n, fill_kind kind, zb_dtype grad_dtype, int param_dtype)
{
    const lamb_scalars s = { 0.9f,          0.999f, 0.1f,
                             1e-3f,         1e-6f,  draw_decay(r),
                             draw_scale(r), 0.03f,  (int)rng_below(r, 2) };
    const zb_dtype copy_dtype = param_dtype < 0 ? ZB_FP32 : (zb_dtype)param_dtype;
    int64_t sums[2 * ZB_SUM_SQUARES_WORDS] = { 0 };
    tensor p = tensor_random(r, ZB_FP32, kind, n), m = tensor_random(r, ZB_FP32, kind, n);
    tensor v = tensor_random(r, ZB_FP32, kind, n), grad = tensor_random(r, grad_dtype, kind, n);
    tensor param = tensor_random(r, copy_dtype, kind, n), u = tensor_random(r, ZB_FP32, kind, n);
    make_squares(&v, kind);
    for (size_t i = 0; i < n; i++) {
        const float g = times(grad.values[i], s.grad_scale);
        m.values[i] = plus(times(s.beta1, m.values[i]), times(s.one_minus_beta1, g));
        v.values[i] = plus(times(s.beta2, v.values[i]), times(times(s.one_minus_beta2, g), g));
        u.values[i] = plain_lamb_update(&s, p.values[i], m.values[i], v.values[i]);
    }
    assert_ok(zb_cpu_lamb_moments(&(zb_lamb_moments_args){ .p = p.data,
                                                           .grad_dtype = grad_dtype,
                                                           .grad = grad.data,
                                                           .m = m.data,
                                                           .v = v.data,
                                                           .numel = n,
                                                           .grad_scale = s.grad_scale,
                                                           .beta1 = s.beta1,
                                                           .beta2 = s.beta2,
                                                           .one_minus_beta1 = s.one_minus_beta1,
                                                           .one_minus_beta2 = s.one_minus_beta2,
                                                           .eps = s.eps,
                                                           .weight_decay = s.weight_decay,
                                                           .eps_inside_sqrt = s.eps_inside_sqrt,
                                                           .accumulators = sums }));
    assert_sums(sums, p.values, n, "the weights");
    assert_sums(sums + ZB_SUM_SQUARES_WORDS, u.values, n, "the update");
    assert_tensor(&p, "lamb p stays, %s", fill_name(kind));
    for (size_t i = 0; i < n; i++) {
        p.values[i] = minus(p.values[i], times(s.factor, u.values[i]));
        if (param_dtype >= 0) param.values[i] = p.values[i];
    }
    assert_ok(zb_cpu_lamb_apply(&(zb_lamb_apply_args){ .p = p.data,
                                                       .m = m.data,
                                                       .v = v.data,
                                                       .param_dtype = copy_dtype,
                                                       .param = param_dtype >= 0 ? param.data : NULL,
                                                       .numel = n,
                                                       .factor = s.factor,
                                                       .eps = s.eps,
                                                       .weight_decay = s.weight_decay,
                                                       .eps_inside_sqrt = s.eps_inside_sqrt }));
    const tensor *const all[] = { &p, &m, &v, &grad, &param };
    static const char *const names[] = { "p", "m", "v", "grad", "param" };
    for (int i = 0; i < 5; i++)
        assert_tensor(all[i], "lamb %s, %s, gradients of %s", names[i], fill_name(kind),
                      zb_dtype_name(grad_dtype));
    tensor_free(&p), tensor_free(&m), tensor_free(&v), tensor_free(&grad), tensor_free(&param),
        tensor_free(&u);
}

static void lamb(void **state)
{
    use_level(state);
    rng r = { 23 };
    for (size_t s = 0; s < edge_size_count; s++)
        for (int fill = 0; fill < FILL_KINDS; fill++)
            for (size_t g = 0; g < TENSOR_DTYPES; g++)
                for (int p = -1; p < TENSOR_DTYPES; p++)
                    check_lamb(&r, edge_sizes[s], (fill_kind)fill, tensor_dtypes[g],
                               p < 0 ? -1 : (int)tensor_dtypes[p]);
}

/* More numbers than the bins of a sum take at once, infinities and NaNs on both sides of that. */
static void lamb_long(void **state)
{
    use_level(state);
    rng r = { 24 };
    for (int fill = 0; fill < FILL_KINDS; fill++)
        check_lamb(&r, (1 << 18) + 1029, (fill_kind)fill, ZB_FP32, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT_EACH_LEVEL(formulas),
        AT_EACH_LEVEL(refusals),
        AT_EACH_LEVEL(lamb),
        AT_EACH_LEVEL(lamb_long),
    };
    return cmocka_run_group_tests_name("optimizer kernels", tests, NULL, NULL);
}
