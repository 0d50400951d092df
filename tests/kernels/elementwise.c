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

/* --- two arrays in, one out --- */

typedef struct elementwise_case {
    const char *name;
    void (*run)(float *y, const float *x, float scalar, size_t numel);
    float (*plain)(float y, float x, float scalar);
} elementwise_case;

static void run_add(float *y, const float *x, float s, size_t n)
{
    (void)s;
    assert_ok(zb_cpu_add(&(zb_add_args){ y, x, n }));
}
static float plain_add(float y, float x, float s)
{
    (void)s;
    return plus(y, x);
}
static void run_scale(float *y, const float *x, float s, size_t n)
{
    (void)x;
    assert_ok(zb_cpu_scale(&(zb_scale_args){ y, s, n }));
}
static float plain_scale(float y, float x, float s)
{
    (void)x;
    return times(y, s);
}
static void run_divide(float *y, const float *x, float s, size_t n)
{
    (void)x;
    assert_ok(zb_cpu_divide(&(zb_divide_args){ y, s, n }));
}
static float plain_divide(float y, float x, float s)
{
    (void)x;
    return over(y, s);
}
static void run_relu(float *y, const float *x, float s, size_t n)
{
    (void)s;
    assert_ok(zb_cpu_relu_forward(&(zb_relu_forward_args){ x, y, n }));
}
static float plain_relu(float y, float x, float s)
{
    (void)y, (void)s;
    return x > 0 || isnan(x) ? x : 0.0f;
}
static void run_relu_in_place(float *y, const float *x, float s, size_t n)
{
    (void)x, (void)s;
    assert_ok(zb_cpu_relu_forward(&(zb_relu_forward_args){ y, y, n }));
}
static float plain_relu_in_place(float y, float x, float s)
{
    (void)x, (void)s;
    return y > 0 || isnan(y) ? y : 0.0f;
}
/* y is the output of forward, dy the gradient that comes in */
static void run_relu_backward(float *dy, const float *y, float s, size_t n)
{
    (void)s;
    assert_ok(zb_cpu_relu_backward(&(zb_relu_backward_args){ y, dy, dy, n }));
}
static float plain_relu_backward(float dy, float y, float s)
{
    (void)s;
    return y <= 0 ? 0.0f : dy;
}
static void run_mse_backward(float *dx, const float *x, float s, size_t n)
{
    float *t = guarded_floats(n, 1);
    if (n > 0) memcpy(t, dx, n * sizeof *t);
    assert_ok(zb_cpu_mse_backward(&(zb_mse_backward_args){ n, x, t, s * (float)n, dx }));
    guarded_free(t);
}
static float mse_numel; /* how many elements the array has: the formula needs it */
static float plain_mse_backward(float t, float x, float s)
{
    return times(minus(x, t), over(times(2, s * mse_numel), mse_numel));
}

static const elementwise_case elementwise_cases[] = {
    { "add", run_add, plain_add },
    { "scale", run_scale, plain_scale },
    { "divide", run_divide, plain_divide },
    { "relu_forward", run_relu, plain_relu },
    { "relu_forward in place", run_relu_in_place, plain_relu_in_place },
    { "relu_backward", run_relu_backward, plain_relu_backward },
    { "mse_backward", run_mse_backward, plain_mse_backward },
};

static void elementwise(void **state)
{
    use_level(state);
    rng r = { 21 };
    for (size_t c = 0; c < sizeof elementwise_cases / sizeof elementwise_cases[0]; c++)
        for (size_t s = 0; s < edge_size_count; s++)
            for (int kind = 0; kind < FILL_KINDS; kind++) {
                const elementwise_case *t = &elementwise_cases[c];
                const size_t n = edge_sizes[s];
                float *x = guarded_floats(n, rng_below(&r, 16)), *y = guarded_floats(n, rng_below(&r, 16));
                float *want = guarded_floats(n, 0);
                const float scalar = s % 3 == 0 ? 4.0f : rng_float(&r, (fill_kind)kind);
                fill(&r, (fill_kind)kind, x, n), fill(&r, (fill_kind)kind, y, n);
                mse_numel = (float)n;
                for (size_t i = 0; i < n; i++) want[i] = t->plain(y[i], x[i], scalar);
                t->run(y, x, scalar, n);
                assert_same_floats(y, want, n, "%s, %s, scalar %.9g", t->name, fill_name((fill_kind)kind),
                                   (double)scalar);
                guarded_free(x), guarded_free(y), guarded_free(want);
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

static void plain_adam(const zb_adam_args *s, float *p, float *m, float *v, float grad)
{
    float g = times(grad, s->grad_scale);
    if (!s->decoupled) g = plus(g, times(s->weight_decay, *p));
    *m = plus(times(s->beta1, *m), times(s->one_minus_beta1, g));
    *v = plus(times(s->beta2, *v), times(times(s->one_minus_beta2, g), g));
    float u = over(over(*m, s->correction1), plus(root(over(*v, s->correction2)), s->eps));
    if (s->decoupled) u = plus(u, times(s->weight_decay, *p));
    *p = minus(*p, times(s->lr, u));
}

static zb_adam_args adam_scalars(int step, int decoupled)
{
    const float beta1 = 0.9f, beta2 = 0.999f;
    return (zb_adam_args){ .grad_scale = 1,
                           .lr = 1e-3f,
                           .beta1 = beta1,
                           .beta2 = beta2,
                           .one_minus_beta1 = 1 - beta1,
                           .one_minus_beta2 = 1 - beta2,
                           .eps = 1e-8f,
                           .weight_decay = 0.01f,
                           .decoupled = decoupled,
                           .correction1 = (float)(1 - pow((double)beta1, step)),
                           .correction2 = (float)(1 - pow((double)beta2, step)) };
}

static void adam(void **state)
{
    use_level(state);
    rng r = { 22 };
    for (size_t c = 0; c < edge_size_count * FILL_KINDS * 2; c++) {
        const size_t n = edge_sizes[c / (FILL_KINDS * 2)];
        const fill_kind kind = (fill_kind)(c / 2 % FILL_KINDS);
        zb_adam_args args = adam_scalars((int)c % 5 + 1, (int)(c % 2));
        if (c % 3 == 0) args.grad_scale = 0.37f;
        float *a[4], *want[3];
        for (int i = 0; i < 4; i++) {
            a[i] = guarded_floats(n, rng_below(&r, 16));
            fill(&r, kind, a[i], n);
        }
        for (size_t i = 0; i < n && kind != FILL_BITS; i++)
            a[2][i] = fabsf(a[2][i]); /* v, as it is in a real run */
        for (int i = 0; i < 3; i++) {
            want[i] = guarded_floats(n, 0);
            if (n > 0) memcpy(want[i], a[i], n * sizeof(float));
        }
        for (size_t i = 0; i < n; i++) plain_adam(&args, &want[0][i], &want[1][i], &want[2][i], a[3][i]);
        args.p = a[0], args.m = a[1], args.v = a[2], args.grad = a[3], args.numel = n;
        assert_ok(zb_cpu_adam(&args));
        for (int i = 0; i < 3; i++)
            assert_same_floats(a[i], want[i], n, "adam %c, decoupled %d, %s", "pmv"[i], args.decoupled,
                               fill_name(kind));
        for (int i = 0; i < 4; i++) guarded_free(a[i]);
        for (int i = 0; i < 3; i++) guarded_free(want[i]);
    }
}

/* DeepSpeed's FusedAdam in IEEE arithmetic, three steps: parameters (1, -2, 0.5), gradients t * (0.1, -0.2,
 * 0.3). */
static void adam_golden(void **state)
{
    use_level(state);
    static const struct {
        int decoupled;
        uint32_t p[3], m[3], v[3];
    } golden[] = {
        { 1,
          { 0x3f7f3e76, 0xbfff9e40, 0x3efe7ee4 },
          { 0x3d65c921, 0xbde5c921, 0x3e2c56d9 },
          { 0x3912bc61, 0x3a12bc61, 0x3aa513ee } },
        { 0,
          { 0x3f7f3fc9, 0xbfff9fe5, 0x3efe80a0 },
          { 0x3d70dfc2, 0xbdf0e144, 0x3e2db94d },
          { 0x391f9b76, 0x3a1f9daa, 0x3aa77068 } },
    };
    for (size_t c = 0; c < 2; c++) {
        float p[3] = { 1, -2, 0.5f }, m[3] = { 0 }, v[3] = { 0 };
        for (int step = 1; step <= 3; step++) {
            const float t = (float)step, grad[3] = { t * 0.1f, t * -0.2f, t * 0.3f };
            zb_adam_args args = adam_scalars(step, golden[c].decoupled);
            args.p = p, args.grad = grad, args.m = m, args.v = v, args.numel = 3;
            assert_ok(zb_cpu_adam(&args));
        }
        for (int i = 0; i < 3; i++) {
            assert_int_equal(bits_of(p[i]), golden[c].p[i]);
            assert_int_equal(bits_of(m[i]), golden[c].m[i]);
            assert_int_equal(bits_of(v[i]), golden[c].v[i]);
        }
    }
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

static void sgd(void **state)
{
    use_level(state);
    rng r = { 23 };
    for (size_t s = 0; s < edge_size_count; s++)
        for (int bits = 0; bits < 16 * FILL_KINDS; bits++) {
            const size_t n = edge_sizes[s];
            const fill_kind kind = (fill_kind)(bits / 16);
            zb_sgd_args args = { .numel = n,
                                 .grad_scale = bits % 3 == 0 ? 1 : 0.77f,
                                 .lr = 0.1f,
                                 .weight_decay = bits & 1 ? 0.01f : 0,
                                 .momentum = bits & 2 ? 0.9f : 0,
                                 .one_minus_dampening = bits % 5 == 0 ? 0.5f : 1,
                                 .nesterov = bits >> 2 & 1,
                                 .first_step = bits >> 3 & 1 };
            float *p = guarded_floats(n, rng_below(&r, 16)), *grad = guarded_floats(n, rng_below(&r, 16));
            float *buf = guarded_floats(n, rng_below(&r, 16)), *want_p = guarded_floats(n, 0),
                  *want_buf = guarded_floats(n, 0);
            fill(&r, kind, p, n), fill(&r, kind, grad, n), fill(&r, kind, buf, n);
            for (size_t i = 0; i < n; i++) {
                want_p[i] = p[i], want_buf[i] = buf[i];
                plain_sgd(&args, &want_p[i], &want_buf[i], grad[i]);
            }
            args.p = p, args.grad = grad, args.buf = args.momentum != 0 ? buf : NULL;
            assert_ok(zb_cpu_sgd(&args));
            assert_same_floats(p, want_p, n, "sgd p, options %d, %s", bits % 16, fill_name(kind));
            assert_same_floats(buf, want_buf, n, "sgd buf, options %d, %s", bits % 16, fill_name(kind));
            guarded_free(p), guarded_free(grad), guarded_free(buf), guarded_free(want_p),
                guarded_free(want_buf);
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
        AT_EACH_LEVEL(elementwise), AT_EACH_LEVEL(bytes), AT_EACH_LEVEL(adam),
        AT_EACH_LEVEL(adam_golden), AT_EACH_LEVEL(sgd),   AT_EACH_LEVEL(sgd_golden),
    };
    return cmocka_run_group_tests_name("elementwise", tests, NULL, NULL);
}
