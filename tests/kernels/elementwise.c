/* Operations on single elements and the optimizers, against the contract's formulas; Adam also against golden
 * values. */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

/* One of x, y per call, so that no compiler can combine two operations of the expected values. */
static float times(float a, float b)
{
    volatile float r = a * b;
    return r;
}
static float plus(float a, float b)
{
    volatile float r = a + b;
    return r;
}
static float minus(float a, float b)
{
    volatile float r = a - b;
    return r;
}
static float over(float a, float b)
{
    volatile float r = a / b;
    return r;
}
static float root(float a)
{
    volatile float r = sqrtf(a);
    return r;
}

/* --- two arrays in, one of them changed --- */

typedef struct elementwise_case {
    const char *name;
    zb_status (*run)(const tensor *y, const tensor *x, float scalar);
    float (*plain)(float y, float x, float scalar);
    int mixes_types; /* x may have a type of its own */
} elementwise_case;

static zb_status run_add(const tensor *y, const tensor *x, float s)
{
    (void)s;
    return zb_cpu_add(&(zb_add_args){ y->dtype, y->data, x->dtype, x->data, y->numel });
}
static float plain_add(float y, float x, float s)
{
    (void)s;
    return plus(y, x);
}
static zb_status run_scale(const tensor *y, const tensor *x, float s)
{
    (void)x;
    return zb_cpu_scale(&(zb_scale_args){ y->dtype, y->data, s, y->numel });
}
static float plain_scale(float y, float x, float s)
{
    (void)x;
    return times(y, s);
}
static zb_status run_divide(const tensor *y, const tensor *x, float s)
{
    (void)x;
    return zb_cpu_divide(&(zb_divide_args){ y->dtype, y->data, s, y->numel });
}
static float plain_divide(float y, float x, float s)
{
    (void)x;
    return over(y, s);
}
static zb_status run_relu(const tensor *y, const tensor *x, float s)
{
    (void)s;
    return zb_cpu_relu_forward(&(zb_relu_forward_args){ y->dtype, x->data, y->data, y->numel });
}
static float plain_relu(float y, float x, float s)
{
    (void)y, (void)s;
    return x > 0 || isnan(x) ? x : 0.0f;
}
static zb_status run_relu_in_place(const tensor *y, const tensor *x, float s)
{
    (void)x, (void)s;
    return zb_cpu_relu_forward(&(zb_relu_forward_args){ y->dtype, y->data, y->data, y->numel });
}
static float plain_relu_in_place(float y, float x, float s)
{
    (void)x, (void)s;
    return y > 0 || isnan(y) ? y : 0.0f;
}
/* y is the output of forward, dy the gradient that comes in */
static zb_status run_relu_backward(const tensor *dy, const tensor *y, float s)
{
    (void)s;
    return zb_cpu_relu_backward(&(zb_relu_backward_args){ y->dtype, y->data, dy->data, dy->data, y->numel });
}
static float plain_relu_backward(float dy, float y, float s)
{
    (void)s;
    return y <= 0 ? 0.0f : dy;
}
/* The targets are what dx held before. */
static zb_status run_mse_backward(const tensor *dx, const tensor *x, float s)
{
    const size_t n = dx->numel;
    float *t = guarded_floats(n, 1);
    const zb_cast_args widen = { t, ZB_FP32, dx->data, dx->dtype, n };
    const zb_status status = zb_cpu_cast(&widen);
    const zb_mse_backward_args args = { dx->dtype, n, x->data, t, s * (float)n, 3, dx->data };
    const zb_status backward = status == ZB_OK ? zb_cpu_mse_backward(&args) : status;
    guarded_free(t);
    return backward;
}
static float mse_numel; /* how many elements the array has: the formula needs it */
static float plain_mse_backward(float t, float x, float s)
{
    return over(times(minus(x, t), over(times(2, s * mse_numel), mse_numel)), 3);
}

static const elementwise_case elementwise_cases[] = {
    { "add", run_add, plain_add, 1 },
    { "scale", run_scale, plain_scale, 0 },
    { "divide", run_divide, plain_divide, 0 },
    { "relu_forward", run_relu, plain_relu, 0 },
    { "relu_forward in place", run_relu_in_place, plain_relu_in_place, 0 },
    { "relu_backward", run_relu_backward, plain_relu_backward, 0 },
    { "mse_backward", run_mse_backward, plain_mse_backward, 0 },
};
enum { ELEMENTWISE_CASES = sizeof elementwise_cases / sizeof elementwise_cases[0] };

static void check_elementwise(rng *r, const elementwise_case *t, zb_dtype y_dtype, zb_dtype x_dtype, size_t n,
                              fill_kind kind)
{
    tensor x = tensor_random(r, x_dtype, kind, n), y = tensor_random(r, y_dtype, kind, n);
    const float scalar = n % 3 == 0 ? 4.0f : rng_float(r, kind);
    mse_numel = (float)n;
    for (size_t i = 0; i < n; i++) y.values[i] = t->plain(y.values[i], x.values[i], scalar);
    assert_ok(t->run(&y, &x, scalar));
    assert_tensor(&y, "%s, %s of %s, scalar %.9g", t->name, fill_name(kind), zb_dtype_name(x_dtype),
                  (double)scalar);
    tensor_free(&x), tensor_free(&y);
}

static void elementwise(void **state)
{
    use_level(state);
    rng r = { 21 };
    for (size_t c = 0; c < ELEMENTWISE_CASES; c++)
        for (size_t s = 0; s < edge_size_count; s++)
            for (int kind = 0; kind < FILL_KINDS; kind++)
                for (int d = 0; d < TENSOR_DTYPES * TENSOR_DTYPES; d++) {
                    const elementwise_case *t = &elementwise_cases[c];
                    const zb_dtype y = tensor_dtypes[d % TENSOR_DTYPES], x = tensor_dtypes[d / TENSOR_DTYPES];
                    if (x == y || t->mixes_types)
                        check_elementwise(&r, t, y, x, edge_sizes[s], (fill_kind)kind);
                }
}

/* Every operation with a type refuses the others, by its name, and writes nothing. */
static void other_types(void **state)
{
    use_level(state);
    double data[2] = { 1, 2 };
    const int32_t label = 0;
    int64_t accumulator[ZB_SUM_SQUARES_WORDS] = { 0 };
    const zb_dtype t = ZB_FP64;
    const zb_conv2d_shape conv = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 0 };
    const zb_maxpool2d_shape pool = { 1, 1, 1, 1, 1, 1, 1, 1 };
    float f = 3;
    int32_t argmax = 4;
    const struct {
        const char *name;
        zb_kernel kernel;
        const void *args;
        size_t bytes;
    } cases[] = {
#define REFUSED(operation, ...)                                                                              \
    { #operation, ZB_KERNEL_##operation, &(zb_##operation##_args){ __VA_ARGS__ },                            \
      sizeof(zb_##operation##_args) }
        REFUSED(add, t, data, ZB_FP32, &f, 1),
        REFUSED(add, ZB_FP32, &f, t, data, 1),
        REFUSED(scale, t, data, 2, 1),
        REFUSED(divide, t, data, 2, 1),
        REFUSED(matmul, .dtype = t, .m = 1, .n = 1, .k = 1, .a = data, .b = data, .c = data),
        REFUSED(linear_backward_bias, t, 1, 1, data, data),
        REFUSED(conv2d_forward, t, conv, data, data, data, data, &f),
        REFUSED(conv2d_backward_input, t, conv, data, data, data, &f),
        REFUSED(conv2d_backward_weight, t, conv, data, data, data, &f),
        REFUSED(conv2d_backward_bias, t, conv, data, data),
        REFUSED(maxpool2d_forward, t, pool, data, data, &argmax),
        REFUSED(maxpool2d_backward, t, pool, data, &argmax, data),
        REFUSED(relu_forward, t, data, data, 1),
        REFUSED(relu_backward, t, data, data, data, 1),
        REFUSED(cross_entropy_forward, t, 1, 1, data, &label, &f, &f, &f),
        REFUSED(cross_entropy_backward, t, 1, 1, &f, &label, 1, 1, data),
        REFUSED(mse_forward, t, 1, data, &f, &f),
        REFUSED(mse_backward, t, 1, data, &f, 1, 1, data),
        REFUSED(sum_squares, t, data, 1, accumulator),
        REFUSED(adam, .p = &f, .grad_dtype = t, .grad = data, .m = &f, .v = &f, .numel = 1),
        REFUSED(adam, .p = &f, .grad = &f, .m = &f, .v = &f, .param_dtype = t, .param = data, .numel = 1),
        REFUSED(sgd, .p = &f, .grad_dtype = t, .grad = data, .numel = 1),
        REFUSED(sgd, .p = &f, .grad = &f, .param_dtype = t, .param = data, .numel = 1),
#undef REFUSED
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(zb_cpu_launch(cases[i].kernel, cases[i].args, cases[i].bytes), ZB_UNSUPPORTED);
        if (strstr(zb_error_message(), cases[i].name) == NULL || strstr(zb_error_message(), "fp64") == NULL)
            fail_msg("case %zu: \"%s\" does not name %s and fp64", i, zb_error_message(), cases[i].name);
        assert_true(data[0] == 1 && data[1] == 2 && f == 3 && argmax == 4);
    }
}

static void bytes(void **state)
{
    use_level(state);
    for (size_t s = 0; s < edge_size_count; s++) {
        const size_t n = edge_sizes[s];
        unsigned char *from = guarded(n, 1, 3), *to = guarded(n, 1, 5);
        assert_ok(zb_cpu_fill_bytes(&(zb_fill_bytes_args){ from, 0x3c, n }));
        for (size_t i = 0; i < n; i++) assert_int_equal(from[i], 0x3c);
        assert_ok(zb_cpu_copy(&(zb_copy_args){ to, from, n }));
        assert_memory_equal(to, from, n);
        guarded_free(from), guarded_free(to);
    }
    assert_ok(zb_cpu_fill_bytes(&(zb_fill_bytes_args){ NULL, 1, 0 }));
    assert_ok(zb_cpu_copy(&(zb_copy_args){ NULL, NULL, 0 }));
}

/* --- optimizers --- */

static void plain_adam_fused(const zb_adam_args *s, float g, float *p, float *m, float *v)
{
    if (!s->decoupled) g = plus(g, times(s->weight_decay, *p));
    *m = plus(times(s->beta1, *m), times(s->one_minus_beta1, g));
    *v = plus(times(s->beta2, *v), times(times(s->one_minus_beta2, g), g));
    float u = over(over(*m, s->correction1), plus(root(over(*v, s->correction2)), s->eps));
    if (s->decoupled) u = plus(u, times(s->weight_decay, *p));
    *p = minus(*p, times(s->lr, u));
}

static void plain_adam_torch(const zb_adam_args *s, float g, float *p, float *m, float *v)
{
    if (s->weight_decay != 0 && s->decoupled) *p = times(*p, s->decay);
    if (s->weight_decay != 0 && !s->decoupled) g = fmaf(s->weight_decay, *p, g);
    *m = fmaf(s->one_minus_beta1, g, times(*m, s->beta1));
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

/* Element i of n. */
static void plain_adam(const zb_adam_args *s, size_t i, size_t n, float *p, float *m, float *v, float grad)
{
    const float g = times(grad, s->grad_scale);
    if (s->variant == ZB_ADAM_FUSED)
        plain_adam_fused(s, g, p, m, v);
    else if (s->variant == ZB_ADAM_TORCH)
        plain_adam_torch(s, g, p, m, v);
    else
        plain_adam_cpu(s, i >= n / s->vector_width * s->vector_width, g, p, m, v);
}

/* As the originals compute them: FusedAdam and DeepSpeedCPUAdam from betas in fp32, PyTorch in fp64. */
static zb_adam_args adam_scalars(zb_adam_variant variant, int step, int decoupled)
{
    const double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, weight_decay = 0.01;
    const float beta1_f = (float)beta1, beta2_f = (float)beta2, lr_f = (float)lr;
    zb_adam_args s = { .grad_scale = 1,
                       .lr = lr_f,
                       .beta1 = beta1_f,
                       .beta2 = beta2_f,
                       .one_minus_beta1 = 1 - beta1_f,
                       .one_minus_beta2 = 1 - beta2_f,
                       .eps = 1e-8f,
                       .weight_decay = (float)weight_decay,
                       .decoupled = decoupled,
                       .variant = variant };
    if (variant == ZB_ADAM_FUSED) {
        s.correction1 = (float)(1 - pow((double)beta1_f, step));
        s.correction2 = (float)(1 - pow((double)beta2_f, step));
    } else if (variant == ZB_ADAM_TORCH) {
        s.one_minus_beta1 = (float)(1 - beta1);
        s.one_minus_beta2 = (float)(1 - beta2);
        s.decay = (float)(1 - lr * weight_decay);
        s.step_size = (float)(-lr / (1 - pow(beta1, step)));
        s.root_correction2 = (float)sqrt(1 - pow(beta2, step));
    } else {
        float power1 = 1, power2 = 1;
        for (int i = 0; i < step; i++) power1 = times(power1, beta1_f), power2 = times(power2, beta2_f);
        s.decay = times(-lr_f, (float)weight_decay);
        s.step_size = over(-lr_f, minus(1, power1));
        s.root_correction2 = over(1, root(minus(1, power2)));
        s.vector_width = 8;
    }
    return s;
}

/* Types of the gradient and of the rounded copy of the parameters; has_param is 0 where there is no copy. */
typedef struct optimizer_types {
    zb_dtype grad, param;
    int has_param;
} optimizer_types;

enum { OPTIMIZER_TYPES = TENSOR_DTYPES * (TENSOR_DTYPES + 1) };
static optimizer_types optimizer_types_of(size_t i)
{
    const size_t param = i / TENSOR_DTYPES % (TENSOR_DTYPES + 1);
    return (optimizer_types){ tensor_dtypes[i % TENSOR_DTYPES], tensor_dtypes[param % TENSOR_DTYPES],
                              param < TENSOR_DTYPES };
}

static void check_adam(rng *r, zb_adam_args args, optimizer_types types, size_t n, fill_kind kind)
{
    tensor p = tensor_random(r, ZB_FP32, kind, n), m = tensor_random(r, ZB_FP32, kind, n);
    tensor v = tensor_random(r, ZB_FP32, kind, n), grad = tensor_random(r, types.grad, kind, n);
    tensor param = tensor_random(r, types.param, kind, n);
    for (size_t i = 0; i < n && kind != FILL_BITS; i++) /* as it is in a real run */
        ((float *)v.data)[i] = v.values[i] = fabsf(v.values[i]);
    for (size_t i = 0; i < n; i++) {
        plain_adam(&args, i, n, &p.values[i], &m.values[i], &v.values[i], grad.values[i]);
        if (types.has_param) param.values[i] = p.values[i];
    }
    args.p = p.data, args.m = m.data, args.v = v.data, args.numel = n;
    args.grad = grad.data, args.grad_dtype = types.grad;
    args.param = types.has_param ? param.data : NULL, args.param_dtype = types.param;
    assert_ok(zb_cpu_adam(&args));
    const tensor *const arrays[] = { &p, &m, &v, &grad, &param };
    static const char *const names[] = { "p", "m", "v", "grad", "param" };
    for (int i = 0; i < 5; i++)
        assert_tensor(arrays[i], "adam %s, variant %d, decoupled %d, %s, gradients of %s", names[i],
                      (int)args.variant, args.decoupled, fill_name(kind), zb_dtype_name(types.grad));
    tensor_free(&p), tensor_free(&m), tensor_free(&v), tensor_free(&grad), tensor_free(&param);
}

static void adam(void **state)
{
    use_level(state);
    rng r = { 22 };
    for (size_t s = 0; s < edge_size_count; s++)
        for (size_t c = 0; c < FILL_KINDS * 6 * OPTIMIZER_TYPES; c++) {
            zb_adam_args args = adam_scalars((zb_adam_variant)(c / 2 % 3), (int)(c % 5) + 1, (int)(c % 2));
            if (rng_below(&r, 3) == 0) args.grad_scale = 0.37f;
            if (rng_below(&r, 4) == 0) args.weight_decay = 0;
            if (rng_below(&r, 2) == 0) args.vector_width *= 2;
            check_adam(&r, args, optimizer_types_of(c / 6), edge_sizes[s],
                       (fill_kind)(c / (6 * OPTIMIZER_TYPES)));
        }
}

/* Three steps of the originals: parameters (1, -2, 0.5), gradients t * (0.1, -0.2, 0.3). FusedAdam in IEEE
 * arithmetic; DeepSpeedCPUAdam's body (all elements when a vector has one) and tail (all when it has eight);
 * PyTorch 1.13. */
static void adam_golden(void **state)
{
    use_level(state);
    static const struct {
        const char *name;
        zb_adam_variant variant;
        int decoupled;
        size_t vector_width;
        uint32_t p[3], m[3], v[3];
    } golden[] = {
        { "FusedAdam, decoupled",
          ZB_ADAM_FUSED,
          1,
          0,
          { 0x3f7f3e76, 0xbfff9e40, 0x3efe7ee4 },
          { 0x3d65c921, 0xbde5c921, 0x3e2c56d9 },
          { 0x3912bc61, 0x3a12bc61, 0x3aa513ee } },
        { "FusedAdam, L2",
          ZB_ADAM_FUSED,
          0,
          0,
          { 0x3f7f3fc9, 0xbfff9fe5, 0x3efe80a0 },
          { 0x3d70dfc2, 0xbdf0e144, 0x3e2db94d },
          { 0x391f9b76, 0x3a1f9daa, 0x3aa77068 } },
        { "DeepSpeedCPUAdam body, decoupled",
          ZB_ADAM_CPU,
          1,
          1,
          { 0x3f7f3e77, 0xbfff9e3e, 0x3efe7ee5 },
          { 0x3d65c921, 0xbde5c921, 0x3e2c56d8 },
          { 0x3912bc61, 0x3a12bc61, 0x3aa513ed } },
        { "DeepSpeedCPUAdam tail, decoupled",
          ZB_ADAM_CPU,
          1,
          8,
          { 0x3f7f3e77, 0xbfff9e3e, 0x3efe7ee5 },
          { 0x3d65c921, 0xbde5c921, 0x3e2c56d9 },
          { 0x3912bc61, 0x3a12bc61, 0x3aa513ed } },
        { "DeepSpeedCPUAdam body, L2",
          ZB_ADAM_CPU,
          0,
          1,
          { 0x3f7f3fca, 0xbfff9fe5, 0x3efe80a1 },
          { 0x3d70dfc2, 0xbdf0e144, 0x3e2db94d },
          { 0x391f9b76, 0x3a1f9daa, 0x3aa77069 } },
        { "DeepSpeedCPUAdam tail, L2",
          ZB_ADAM_CPU,
          0,
          16,
          { 0x3f7f3fca, 0xbfff9fe5, 0x3efe80a1 },
          { 0x3d70dfc2, 0xbdf0e144, 0x3e2db94d },
          { 0x391f9b76, 0x3a1f9daa, 0x3aa77069 } },
        { "torch AdamW",
          ZB_ADAM_TORCH,
          1,
          0,
          { 0x3f7f3e75, 0xbfff9e3e, 0x3efe7ee4 },
          { 0x3d65c91e, 0xbde5c91e, 0x3e2c56d6 },
          { 0x3912bcdd, 0x3a12bcdd, 0x3aa51479 } },
        { "torch Adam",
          ZB_ADAM_TORCH,
          0,
          0,
          { 0x3f7f3fc9, 0xbfff9fe5, 0x3efe80a0 },
          { 0x3d70dfbf, 0xbdf0e140, 0x3e2db94a },
          { 0x391f9bfd, 0x3a1f9e31, 0x3aa770f7 } },
    };
    for (size_t c = 0; c < sizeof golden / sizeof golden[0]; c++) {
        float p[3] = { 1, -2, 0.5f }, m[3] = { 0 }, v[3] = { 0 };
        for (int step = 1; step <= 3; step++) {
            const float t = (float)step, grad[3] = { t * 0.1f, t * -0.2f, t * 0.3f };
            zb_adam_args args = adam_scalars(golden[c].variant, step, golden[c].decoupled);
            args.p = p, args.grad = grad, args.m = m, args.v = v, args.numel = 3;
            args.vector_width = golden[c].vector_width;
            assert_ok(zb_cpu_adam(&args));
        }
        for (int i = 0; i < 3; i++)
            if (bits_of(p[i]) != golden[c].p[i] || bits_of(m[i]) != golden[c].m[i] ||
                bits_of(v[i]) != golden[c].v[i])
                fail_msg("%s: element %d is p %08x m %08x v %08x, want %08x %08x %08x", golden[c].name, i,
                         bits_of(p[i]), bits_of(m[i]), bits_of(v[i]), golden[c].p[i], golden[c].m[i],
                         golden[c].v[i]);
    }
}

static void adam_refusals(void **state)
{
    use_level(state);
    float x = 1;
    zb_adam_args args = { .p = &x, .grad = &x, .m = &x, .v = &x, .numel = 1, .variant = ZB_ADAM_CPU };
    assert_int_equal(zb_cpu_adam(&args), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "vector width of 0"));
    args.variant = (zb_adam_variant)3;
    assert_int_equal(zb_cpu_adam(&args), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "variant 3"));
    assert_true(x == 1);
}

static void plain_sgd(const zb_sgd_args *s, float *p, float *buf, float grad)
{
    float g = times(grad, s->grad_scale);
    if (s->weight_decay != 0) g = plus(g, times(s->weight_decay, *p));
    if (s->momentum != 0) {
        *buf = s->first_step ? g : plus(times(s->momentum, *buf), times(s->one_minus_dampening, g));
        g = s->nesterov ? plus(g, times(s->momentum, *buf)) : *buf;
    }
    *p = minus(*p, times(s->lr, g));
}

static void check_sgd(rng *r, zb_sgd_args args, optimizer_types types, fill_kind kind, int options)
{
    const size_t n = args.numel;
    tensor p = tensor_random(r, ZB_FP32, kind, n), buf = tensor_random(r, ZB_FP32, kind, n);
    tensor grad = tensor_random(r, types.grad, kind, n), param = tensor_random(r, types.param, kind, n);
    for (size_t i = 0; i < n; i++) {
        plain_sgd(&args, &p.values[i], &buf.values[i], grad.values[i]);
        if (types.has_param) param.values[i] = p.values[i];
    }
    args.p = p.data, args.buf = args.momentum != 0 ? buf.data : NULL;
    args.grad = grad.data, args.grad_dtype = types.grad;
    args.param = types.has_param ? param.data : NULL, args.param_dtype = types.param;
    assert_ok(zb_cpu_sgd(&args));
    const tensor *const arrays[] = { &p, &buf, &grad, &param };
    static const char *const names[] = { "p", "buf", "grad", "param" };
    for (int i = 0; i < 4; i++)
        assert_tensor(arrays[i], "sgd %s, options %d, %s, gradients of %s", names[i], options,
                      fill_name(kind), zb_dtype_name(types.grad));
    tensor_free(&p), tensor_free(&buf), tensor_free(&grad), tensor_free(&param);
}

static void sgd(void **state)
{
    use_level(state);
    rng r = { 23 };
    for (size_t s = 0; s < edge_size_count; s++)
        for (int options = 0; options < 16 * FILL_KINDS; options++) {
            const zb_sgd_args args = { .numel = edge_sizes[s],
                                       .grad_scale = options % 3 == 0 ? 1 : 0.77f,
                                       .lr = 0.1f,
                                       .weight_decay = options & 1 ? 0.01f : 0,
                                       .momentum = options & 2 ? 0.9f : 0,
                                       .one_minus_dampening = options % 5 == 0 ? 0.5f : 1,
                                       .nesterov = options >> 2 & 1,
                                       .first_step = options >> 3 & 1 };
            check_sgd(&r, args, optimizer_types_of(rng_below(&r, OPTIMIZER_TYPES)), (fill_kind)(options / 16),
                      options % 16);
        }
}

/* torch.optim.SGD 1.13.1, three steps with the same parameters and gradients as above, lr 0.1, momentum 0.9.
 */
static void sgd_golden(void **state)
{
    use_level(state);
    static const struct {
        const char *name;
        float weight_decay, dampening;
        int nesterov;
        uint32_t p[3];
    } golden[] = {
        { "weight decay", 0.01f, 0, 0, { 0x3f663bfd, 0xbfe63bfd, 0x3e59293c } },
        { "nesterov", 0, 0, 1, { 0x3f5aba9d, 0xbfdaba9d, 0x3d817eb8 } },
        { "dampening", 0, 0.5f, 0, { 0x3f705bc0, 0xbff05bc0, 0x3ea22680 } },
    };
    for (size_t c = 0; c < sizeof golden / sizeof golden[0]; c++) {
        float p[3] = { 1, -2, 0.5f }, buf[3] = { 0 }, want[3];
        for (int step = 1; step <= 3; step++) {
            const float t = (float)step, grad[3] = { t * 0.1f, t * -0.2f, t * 0.3f };
            assert_ok(zb_cpu_sgd(&(zb_sgd_args){ .p = p,
                                                 .grad = grad,
                                                 .buf = buf,
                                                 .numel = 3,
                                                 .grad_scale = 1,
                                                 .lr = 0.1f,
                                                 .weight_decay = golden[c].weight_decay,
                                                 .momentum = 0.9f,
                                                 .one_minus_dampening = 1 - golden[c].dampening,
                                                 .nesterov = golden[c].nesterov,
                                                 .first_step = step == 1 }));
        }
        for (int i = 0; i < 3; i++) want[i] = from_bits(golden[c].p[i]);
        assert_same_floats(p, want, 3, "%s", golden[c].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT_EACH_LEVEL(elementwise), AT_EACH_LEVEL(other_types), AT_EACH_LEVEL(bytes),
        AT_EACH_LEVEL(adam),        AT_EACH_LEVEL(adam_golden), AT_EACH_LEVEL(adam_refusals),
        AT_EACH_LEVEL(sgd),         AT_EACH_LEVEL(sgd_golden),
    };
    return cmocka_run_group_tests_name("elementwise", tests, NULL, NULL);
}
