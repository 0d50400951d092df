/* Convolution and pooling, against the contract's formulas in plain loops. */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

static const struct conv_case {
    const char *name;
    size_t rows, ic, size, oc, kernel, stride, padding;
    size_t width; /* 0: square images */
} conv_cases[] = {
    { "one pixel", 1, 1, 1, 1, 1, 1, 0, 0 },
    { "cifar conv1", 2, 3, 32, 6, 5, 1, 0, 0 },
    { "cifar conv2", 2, 6, 14, 16, 5, 1, 0, 0 },
    { "padding keeps the size", 2, 3, 7, 4, 3, 1, 1, 0 },
    { "padding wider than needed", 1, 2, 4, 3, 3, 1, 3, 0 },
    { "stride 2", 2, 2, 9, 3, 3, 2, 0, 0 },
    { "stride 2 with padding", 3, 2, 8, 5, 3, 2, 1, 0 },
    { "stride 3 leaves columns unseen", 1, 2, 9, 3, 2, 3, 0, 0 },
    { "stride beyond the kernel", 1, 1, 10, 2, 1, 4, 2, 0 },
    { "not square", 2, 2, 6, 3, 3, 2, 1, 11 },
    { "many channels", 1, 20, 5, 40, 3, 1, 1, 0 },
    { "no images", 0, 2, 5, 3, 3, 1, 0, 0 },
};

static zb_conv2d_shape conv_shape(const struct conv_case *t)
{
    const size_t iw = t->width != 0 ? t->width : t->size;
    return (zb_conv2d_shape){ .rows = t->rows,
                              .ic = t->ic,
                              .ih = t->size,
                              .iw = iw,
                              .oc = t->oc,
                              .oh = (t->size + 2 * t->padding - t->kernel) / t->stride + 1,
                              .ow = (iw + 2 * t->padding - t->kernel) / t->stride + 1,
                              .kernel = t->kernel,
                              .stride = t->stride,
                              .padding = t->padding };
}

/* x[n,c,p*stride+r-padding,q*stride+s-padding], +0 outside */
static float tap(const zb_conv2d_shape *g, const float *x, size_t n, size_t c, size_t p, size_t q, size_t r,
                 size_t s)
{
    const ptrdiff_t h = (ptrdiff_t)(p * g->stride + r) - (ptrdiff_t)g->padding;
    const ptrdiff_t v = (ptrdiff_t)(q * g->stride + s) - (ptrdiff_t)g->padding;
    if (h < 0 || v < 0 || h >= (ptrdiff_t)g->ih || v >= (ptrdiff_t)g->iw) return 0;
    return x[((n * g->ic + c) * g->ih + (size_t)h) * g->iw + (size_t)v];
}

static void plain_forward(const zb_conv2d_shape *g, const float *x, const float *w, const float *b, float *y)
{
    for (size_t n = 0; n < g->rows; n++)
        for (size_t o = 0; o < g->oc; o++)
            for (size_t p = 0; p < g->oh; p++)
                for (size_t q = 0; q < g->ow; q++) {
                    float acc = 0;
                    for (size_t c = 0; c < g->ic; c++)
                        for (size_t r = 0; r < g->kernel; r++)
                            for (size_t s = 0; s < g->kernel; s++)
                                acc = fmaf(tap(g, x, n, c, p, q, r, s),
                                           w[((o * g->ic + c) * g->kernel + r) * g->kernel + s], acc);
                    *y++ = acc + b[o];
                }
}

/* dy[n,o,p,q] with p*stride + r - padding = h and q*stride + s - padding = v, +0 where there is none */
static float out_tap(const zb_conv2d_shape *g, const float *dy, size_t n, size_t o, size_t h, size_t v,
                     size_t r, size_t s)
{
    for (size_t p = 0; p < g->oh; p++)
        for (size_t q = 0; q < g->ow; q++)
            if (p * g->stride + r == h + g->padding && q * g->stride + s == v + g->padding)
                return dy[((n * g->oc + o) * g->oh + p) * g->ow + q];
    return 0;
}

static void plain_backward_input(const zb_conv2d_shape *g, const float *dy, const float *w, float *dx)
{
    for (size_t n = 0; n < g->rows; n++)
        for (size_t c = 0; c < g->ic; c++)
            for (size_t h = 0; h < g->ih; h++)
                for (size_t v = 0; v < g->iw; v++) {
                    float acc = 0;
                    for (size_t o = 0; o < g->oc; o++)
                        for (size_t r = 0; r < g->kernel; r++)
                            for (size_t s = 0; s < g->kernel; s++)
                                acc = fmaf(out_tap(g, dy, n, o, h, v, r, s),
                                           w[((o * g->ic + c) * g->kernel + r) * g->kernel + s], acc);
                    *dx++ = acc;
                }
}

static void plain_backward_weight(const zb_conv2d_shape *g, const float *dy, const float *x, float *dw)
{
    for (size_t o = 0; o < g->oc; o++)
        for (size_t c = 0; c < g->ic; c++)
            for (size_t r = 0; r < g->kernel; r++)
                for (size_t s = 0; s < g->kernel; s++) {
                    float acc = 0;
                    for (size_t n = 0; n < g->rows; n++)
                        for (size_t p = 0; p < g->oh; p++)
                            for (size_t q = 0; q < g->ow; q++)
                                acc = fmaf(dy[((n * g->oc + o) * g->oh + p) * g->ow + q],
                                           tap(g, x, n, c, p, q, r, s), acc);
                    *dw++ = acc;
                }
}

static void plain_backward_bias(const zb_conv2d_shape *g, const float *dy, float *db)
{
    const size_t pixels = g->oh * g->ow;
    float *channel = guarded_floats(g->rows * pixels, 0);
    for (size_t o = 0; o < g->oc; o++) {
        for (size_t n = 0; n < g->rows; n++)
            memcpy(channel + n * pixels, dy + (n * g->oc + o) * pixels, pixels * sizeof *dy);
        db[o] = plain_reduce(channel, g->rows * pixels);
    }
    guarded_free(channel);
}

static void check_conv2d(rng *r, const struct conv_case *t, zb_dtype dtype, fill_kind kind)
{
    const zb_conv2d_shape g = conv_shape(t);
    const size_t x_numel = g.rows * g.ic * g.ih * g.iw, y_numel = g.rows * g.oc * g.oh * g.ow;
    const size_t w_numel = g.oc * g.ic * g.kernel * g.kernel;
    tensor x = tensor_random(r, dtype, kind, x_numel), w = tensor_random(r, dtype, kind, w_numel);
    tensor b = tensor_random(r, dtype, kind, g.oc), dy = tensor_random(r, dtype, kind, y_numel);
    tensor y = tensor_random(r, dtype, kind, y_numel), dx = tensor_random(r, dtype, kind, x_numel);
    tensor dw = tensor_random(r, dtype, kind, w_numel), db = tensor_random(r, dtype, kind, g.oc);
    float *workspace = guarded_floats(zb_conv2d_workspace_numel(&g), 1);

    plain_forward(&g, x.values, w.values, b.values, y.values);
    assert_ok(zb_cpu_conv2d_forward(
        &(zb_conv2d_forward_args){ dtype, g, x.data, w.data, b.data, y.data, workspace }));
    assert_tensor(&y, "conv2d_forward, %s, %s", t->name, fill_name(kind));

    for (size_t o = 0; o < g.oc; o++) b.values[o] = -0.0f; /* changes no sum: the same as no bias */
    plain_forward(&g, x.values, w.values, b.values, y.values);
    assert_ok(zb_cpu_conv2d_forward(
        &(zb_conv2d_forward_args){ dtype, g, x.data, w.data, NULL, y.data, workspace }));
    assert_tensor(&y, "conv2d_forward without bias, %s, %s", t->name, fill_name(kind));

    plain_backward_input(&g, dy.values, w.values, dx.values);
    assert_ok(zb_cpu_conv2d_backward_input(
        &(zb_conv2d_backward_input_args){ dtype, g, dy.data, w.data, dx.data, workspace }));
    assert_tensor(&dx, "conv2d_backward_input, %s, %s", t->name, fill_name(kind));

    plain_backward_weight(&g, dy.values, x.values, dw.values);
    assert_ok(zb_cpu_conv2d_backward_weight(
        &(zb_conv2d_backward_weight_args){ dtype, g, dy.data, x.data, dw.data, workspace }));
    assert_tensor(&dw, "conv2d_backward_weight, %s, %s", t->name, fill_name(kind));

    plain_backward_bias(&g, dy.values, db.values);
    assert_ok(zb_cpu_conv2d_backward_bias(&(zb_conv2d_backward_bias_args){ dtype, g, dy.data, db.data }));
    assert_tensor(&db, "conv2d_backward_bias, %s, %s", t->name, fill_name(kind));

    tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&dy);
    tensor_free(&y), tensor_free(&dx), tensor_free(&dw), tensor_free(&db);
    guarded_free(workspace);
}

static void convolution(void **state)
{
    use_level(state);
    rng r = { 11 };
    for (size_t i = 0; i < sizeof conv_cases / sizeof conv_cases[0]; i++) {
        const struct conv_case *t = &conv_cases[i];
        const int large = t->rows * t->ic * t->oc * t->size * t->size > 5000;
        for (int kind = 0; kind < (large ? FILL_UNIFORM + 1 : FILL_KINDS); kind++)
            for (int d = 0; d < TENSOR_DTYPES; d++) check_conv2d(&r, t, tensor_dtypes[d], (fill_kind)kind);
    }
}

/* --- pooling --- */

static const struct pool_case {
    const char *name;
    size_t rows, channels, ih, iw, kernel, stride;
} pool_cases[] = {
    { "one pixel", 1, 1, 1, 1, 1, 1 },
    { "cifar", 2, 6, 28, 28, 2, 2 },
    { "overlapping windows", 1, 3, 7, 9, 3, 1 },
    { "rest that no window sees", 2, 2, 8, 7, 3, 3 },
    { "gaps", 1, 2, 9, 9, 2, 4 },
    { "no images", 0, 2, 4, 4, 2, 2 },
};

static void check_maxpool(rng *r, const struct pool_case *t, zb_dtype dtype, fill_kind kind)
{
    const zb_maxpool2d_shape g = { .rows = t->rows,
                                   .channels = t->channels,
                                   .ih = t->ih,
                                   .iw = t->iw,
                                   .oh = (t->ih - t->kernel) / t->stride + 1,
                                   .ow = (t->iw - t->kernel) / t->stride + 1,
                                   .kernel = t->kernel,
                                   .stride = t->stride };
    const size_t planes = g.rows * g.channels, in = g.ih * g.iw, out = g.oh * g.ow;
    tensor x = tensor_random(r, dtype, kind, planes * in), y = tensor_random(r, dtype, kind, planes * out);
    tensor dy = tensor_random(r, dtype, kind, planes * out), dx = tensor_random(r, dtype, kind, planes * in);
    int32_t *argmax = guarded(planes * out, sizeof(int32_t), 1),
            *want_argmax = guarded(planes * out, sizeof(int32_t), 0);
    for (size_t i = 0; i < planes * in; i++) dx.values[i] = 0;
    for (size_t i = 0; i < planes * out; i++) {
        const size_t plane = i / out, p = i % out / g.ow, q = i % g.ow;
        float best = -INFINITY;
        size_t kept = p * g.stride * g.iw + q * g.stride;
        for (size_t w = 0; w < g.kernel * g.kernel; w++) {
            const size_t index = (p * g.stride + w / g.kernel) * g.iw + q * g.stride + w % g.kernel;
            const float v = x.values[plane * in + index];
            if (v > best || isnan(v)) best = v, kept = index;
        }
        y.values[i] = best, want_argmax[i] = (int32_t)kept;
        float *sum = &dx.values[plane * in + kept];
        *sum = plain_rounded(dtype, *sum + dy.values[i]);
    }
    assert_ok(zb_cpu_maxpool2d_forward(&(zb_maxpool2d_forward_args){ dtype, g, x.data, y.data, argmax }));
    assert_tensor(&y, "maxpool2d_forward, %s, %s", t->name, fill_name(kind));
    assert_memory_equal(argmax, want_argmax, planes * out * sizeof *argmax);
    assert_ok(zb_cpu_maxpool2d_backward(&(zb_maxpool2d_backward_args){ dtype, g, dy.data, argmax, dx.data }));
    assert_tensor(&dx, "maxpool2d_backward, %s, %s", t->name, fill_name(kind));
    tensor_free(&x), tensor_free(&y), tensor_free(&dy), tensor_free(&dx);
    guarded_free(argmax), guarded_free(want_argmax);
}

static void pooling(void **state)
{
    use_level(state);
    rng r = { 12 };
    for (size_t i = 0; i < sizeof pool_cases / sizeof pool_cases[0]; i++)
        for (int kind = 0; kind < FILL_KINDS; kind++)
            for (int d = 0; d < TENSOR_DTYPES; d++)
                check_maxpool(&r, &pool_cases[i], tensor_dtypes[d], (fill_kind)kind);
}

/* Equal values: the first is kept. A NaN is kept, a later NaN replaces it, and nothing else does. All -inf:
 * the first. */
static void pooling_choices(void **state)
{
    use_level(state);
    static const struct {
        float x[4];
        int32_t argmax;
    } cases[] = {
        { { 1, 1, 1, 1 }, 0 },
        { { 0, 2, 2, 1 }, 1 },
        { { -0.0f, 0.0f, 0, 0 }, 0 },
        { { 1, NAN, 5, 2 }, 1 },
        { { NAN, 3, NAN, 4 }, 2 },
        { { -INFINITY, -INFINITY, -INFINITY, -INFINITY }, 0 },
        { { 1, 2, INFINITY, INFINITY }, 2 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float y;
        int32_t argmax;
        const zb_maxpool2d_shape g = { 1, 1, 2, 2, 1, 1, 2, 2 };
        assert_ok(
            zb_cpu_maxpool2d_forward(&(zb_maxpool2d_forward_args){ ZB_FP32, g, cases[i].x, &y, &argmax }));
        assert_int_equal(argmax, cases[i].argmax);
        assert_same_floats(&y, &cases[i].x[argmax], 1, "case %zu", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { AT_EACH_LEVEL(convolution), AT_EACH_LEVEL(pooling),
                                        AT_EACH_LEVEL(pooling_choices) };
    return cmocka_run_group_tests_name("conv2d", tests, NULL, NULL);
}
