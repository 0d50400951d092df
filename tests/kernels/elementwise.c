/* Operations on single elements, against the contract's formulas. */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

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
static zb_dtype sum_dtype; /* of y */
static float plain_add(float y, float x, float s)
{
    (void)s;
    return plus(y, plain_rounded(sum_dtype, x));
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
    sum_dtype = y_dtype;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT_EACH_LEVEL(elementwise),
        AT_EACH_LEVEL(other_types),
        AT_EACH_LEVEL(bytes),
    };
    return cmocka_run_group_tests_name("elementwise", tests, NULL, NULL);
}
