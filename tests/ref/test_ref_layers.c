/*
 * Every layer against its formula written output by output: one chain, one output, explicit borders. The
 * oracle's loops run the other way around, over frames and transposes, and must give the same bits.
 */
#include "tests/ref/bits.h"

#include <stdio.h>

#include "ref/oracle.h"

enum { MAX_NUMEL = 40000 };
static float x[MAX_NUMEL], w[MAX_NUMEL], b[MAX_NUMEL], dy[MAX_NUMEL];
static float want[MAX_NUMEL], got[MAX_NUMEL], scratch[MAX_NUMEL];

static void fill_all(void)
{
    fill_random(x, MAX_NUMEL, 1);
    fill_random(w, MAX_NUMEL, 2);
    fill_random(b, MAX_NUMEL, 3);
    fill_random(dy, MAX_NUMEL, 4);
    fill_random(scratch, MAX_NUMEL, 5); /* contents undefined before */
    fill_random(got, MAX_NUMEL, 6);
}

/* --- linear --- */

static const struct linear_case {
    const char *name;
    size_t rows, in, out;
} linear_cases[] = {
    { "linear 1 x 1 x 1", 1, 1, 1 },
    { "linear, one more than a vector", 3, 9, 17 },
    { "linear, more rows than lanes of a sum", 70, 5, 3 },
    { "linear, long chains", 2, 400, 33 },
};

static void check_linear(void **state)
{
    const struct linear_case *c = *state;
    const zb_module module = { .kind = ZB_MODULE_LINEAR,
                               .in = { 1, { (int64_t)c->in } },
                               .out = { 1, { (int64_t)c->out } } };
    fill_all();
    assert_true(zb_ref_layer_scratch_numel(&module) <= MAX_NUMEL);

    for (int with_bias = 0; with_bias <= 1; with_bias++) {
        for (size_t n = 0; n < c->rows; n++)
            for (size_t o = 0; o < c->out; o++) {
                float acc = 0.0f;
                for (size_t i = 0; i < c->in; i++) acc = fmaf(x[n * c->in + i], w[o * c->in + i], acc);
                want[n * c->out + o] = with_bias ? acc + b[o] : acc;
            }
        zb_ref_linear_forward(&module, c->rows, x, w, with_bias ? b : NULL, got, scratch);
        assert_same_floats("y", want, got, c->rows * c->out);
    }

    for (size_t n = 0; n < c->rows; n++)
        for (size_t i = 0; i < c->in; i++) {
            float acc = 0.0f;
            for (size_t o = 0; o < c->out; o++) acc = fmaf(dy[n * c->out + o], w[o * c->in + i], acc);
            want[n * c->in + i] = acc;
        }
    zb_ref_linear_backward_input(&module, c->rows, dy, w, got);
    assert_same_floats("dx", want, got, c->rows * c->in);

    for (size_t o = 0; o < c->out; o++)
        for (size_t i = 0; i < c->in; i++) {
            float acc = 0.0f;
            for (size_t n = 0; n < c->rows; n++) acc = fmaf(dy[n * c->out + o], x[n * c->in + i], acc);
            want[o * c->in + i] = acc;
        }
    zb_ref_linear_backward_weight(&module, c->rows, dy, x, got);
    assert_same_floats("dw", want, got, c->out * c->in);

    for (size_t o = 0; o < c->out; o++) {
        float lane[32] = { 0 };
        for (size_t n = 0; n < c->rows; n++) lane[n % 32] += dy[n * c->out + o];
        for (size_t s = 16; s >= 1; s /= 2)
            for (size_t l = 0; l < s; l++) lane[l] += lane[l + s];
        want[o] = lane[0];
    }
    zb_ref_backward_bias(&module, c->rows, dy, got);
    assert_same_floats("db", want, got, c->out);
}

/* --- convolution --- */

static const struct conv_case {
    const char *name;
    int rows, ic, ih, iw, oc, kernel, stride, padding;
    float weight; /* not 0: the first weight, to see what a tap outside the image does */
} conv_cases[] = {
    { "conv 5x5 as in the example", 2, 3, 12, 12, 6, 5, 1, 0, 0.0f },
    { "conv 1x1", 1, 4, 3, 5, 2, 1, 1, 0, 0.0f },
    { "conv, kernel as large as the image", 2, 2, 4, 4, 3, 4, 1, 0, 0.0f },
    { "conv, padding", 2, 2, 5, 7, 3, 3, 1, 1, 0.0f },
    { "conv, stride", 2, 2, 9, 8, 3, 3, 2, 0, 0.0f },
    { "conv, stride that leaves rows unread", 1, 1, 9, 8, 2, 2, 3, 0, 0.0f },
    { "conv, stride and padding", 2, 2, 6, 7, 3, 3, 2, 1, 0.0f },
    { "conv, padding wider than the kernel", 1, 2, 3, 4, 2, 2, 1, 3, 0.0f },
    { "conv, infinite weight outside the image gives NaN", 1, 1, 4, 4, 2, 3, 1, 1, INFINITY },
    { "conv, negative weight outside the image leaves +0", 1, 1, 4, 4, 2, 3, 1, 1, -1.0f },
};

typedef struct conv {
    int rows, ic, ih, iw, oc, oh, ow, kernel, stride, padding;
} conv;

/* x[n,c,h,v], or +0 outside the image. */
static float pixel(const conv *g, int n, int c, int h, int v)
{
    if (h < 0 || h >= g->ih || v < 0 || v >= g->iw) return 0.0f;
    return x[((n * g->ic + c) * g->ih + h) * g->iw + v];
}

/* dy of the output position whose tap r, s touches h, v; +0 where there is none. */
static float gradient_at(const conv *g, int n, int o, int h, int v, int r, int s)
{
    int p = h + g->padding - r, q = v + g->padding - s;
    if (p < 0 || q < 0 || p % g->stride != 0 || q % g->stride != 0) return 0.0f;
    p /= g->stride, q /= g->stride;
    if (p >= g->oh || q >= g->ow) return 0.0f;
    return dy[((n * g->oc + o) * g->oh + p) * g->ow + q];
}

static float weight_at(const conv *g, int o, int c, int r, int s)
{
    return w[((o * g->ic + c) * g->kernel + r) * g->kernel + s];
}

static float conv_y(const conv *g, int n, int o, int p, int q)
{
    float acc = 0.0f;
    for (int c = 0; c < g->ic; c++)
        for (int r = 0; r < g->kernel; r++)
            for (int s = 0; s < g->kernel; s++)
                acc = fmaf(pixel(g, n, c, p * g->stride + r - g->padding, q * g->stride + s - g->padding),
                           weight_at(g, o, c, r, s), acc);
    return acc;
}

static float conv_dx(const conv *g, int n, int c, int h, int v)
{
    float acc = 0.0f;
    for (int o = 0; o < g->oc; o++)
        for (int r = 0; r < g->kernel; r++)
            for (int s = 0; s < g->kernel; s++)
                acc = fmaf(gradient_at(g, n, o, h, v, r, s), weight_at(g, o, c, r, s), acc);
    return acc;
}

static float conv_dw(const conv *g, int o, int c, int r, int s)
{
    float acc = 0.0f;
    for (int n = 0; n < g->rows; n++)
        for (int p = 0; p < g->oh; p++)
            for (int q = 0; q < g->ow; q++)
                acc = fmaf(dy[((n * g->oc + o) * g->oh + p) * g->ow + q],
                           pixel(g, n, c, p * g->stride + r - g->padding, q * g->stride + s - g->padding),
                           acc);
    return acc;
}

static float conv_db(const conv *g, int o)
{
    float lane[32] = { 0 };
    size_t k = 0;
    for (int n = 0; n < g->rows; n++)
        for (int i = 0; i < g->oh * g->ow; i++) lane[k++ % 32] += dy[(n * g->oc + o) * g->oh * g->ow + i];
    for (size_t s = 16; s >= 1; s /= 2)
        for (size_t l = 0; l < s; l++) lane[l] += lane[l + s];
    return lane[0];
}

/* Calls fn(g, i, j, k, l) for all indices and stores the results row-major. */
static size_t tabulate(const conv *g, float (*fn)(const conv *, int, int, int, int), int a, int c, int d,
                       int e)
{
    size_t at = 0;
    for (int i = 0; i < a; i++)
        for (int j = 0; j < c; j++)
            for (int k = 0; k < d; k++)
                for (int l = 0; l < e; l++) want[at++] = fn(g, i, j, k, l);
    return at;
}

static void check_conv(void **state)
{
    const struct conv_case *c = *state;
    conv g = { c->rows, c->ic, c->ih, c->iw, c->oc, 0, 0, c->kernel, c->stride, c->padding };
    g.oh = (g.ih + 2 * g.padding - g.kernel) / g.stride + 1;
    g.ow = (g.iw + 2 * g.padding - g.kernel) / g.stride + 1;
    const zb_module module = { .kind = ZB_MODULE_CONV2D,
                               .in = { 3, { g.ic, g.ih, g.iw } },
                               .out = { 3, { g.oc, g.oh, g.ow } },
                               .kernel = g.kernel,
                               .stride = g.stride,
                               .padding = g.padding };
    const size_t rows = (size_t)g.rows;
    fill_all();
    if (c->weight != 0.0f) w[0] = c->weight;
    assert_true(zb_ref_layer_scratch_numel(&module) <= MAX_NUMEL);

    size_t numel = tabulate(&g, conv_y, g.rows, g.oc, g.oh, g.ow);
    zb_ref_conv2d_forward(&module, rows, x, w, NULL, got, scratch);
    assert_same_floats("y without bias", want, got, numel);
    for (size_t i = 0; i < numel; i++) want[i] += b[i / (size_t)(g.oh * g.ow) % (size_t)g.oc];
    zb_ref_conv2d_forward(&module, rows, x, w, b, got, scratch);
    assert_same_floats("y", want, got, numel);

    numel = tabulate(&g, conv_dx, g.rows, g.ic, g.ih, g.iw);
    zb_ref_conv2d_backward_input(&module, rows, dy, w, got, scratch);
    assert_same_floats("dx", want, got, numel);

    numel = tabulate(&g, conv_dw, g.oc, g.ic, g.kernel, g.kernel);
    zb_ref_conv2d_backward_weight(&module, rows, dy, x, got, scratch);
    assert_same_floats("dw", want, got, numel);

    for (int o = 0; o < g.oc; o++) want[o] = conv_db(&g, o);
    zb_ref_backward_bias(&module, rows, dy, got);
    assert_same_floats("db", want, got, (size_t)g.oc);
}

/* --- pooling, relu: by hand --- */

static void check_maxpool(void **state)
{
    (void)state;
    /* 2 channels of 3 x 4, windows of 2 x 2 with stride 1: windows overlap, ties go to the first, NaN wins.
     */
    const zb_module module = { .kind = ZB_MODULE_MAXPOOL2D,
                               .in = { 3, { 2, 3, 4 } },
                               .out = { 3, { 2, 2, 3 } },
                               .kernel = 2,
                               .stride = 1 };
    const float image[] = {
        1.0f,      5.0f,
        5.0f,      0.0f, /* */
        2.0f,      5.0f,
        3.0f,      4.0f, /* */
        9.0f,      0.0f,
        0.0f,      4.0f, /* */
        -INFINITY, -INFINITY,
        -0.0f,     0.0f, /* the first index of a window of -inf; -0 is not smaller than +0 */
        -INFINITY, -INFINITY,
        NAN,       1.0f, /* */
        -1.0f,     -2.0f,
        -3.0f,     NAN, /* a second NaN replaces the first */
    };
    const float y[] = { 5.0f, 5.0f, 5.0f, 9.0f, 5.0f, 4.0f, -INFINITY, NAN, NAN, -1.0f, NAN, NAN };
    const size_t at[] = { 1, 1, 2, 8, 5, 7, 0, 6, 6, 8, 6, 11 };
    size_t argmax[12];
    zb_ref_maxpool2d_forward(&module, 1, image, got, argmax);
    assert_same_floats("y", y, got, 12);
    for (size_t i = 0; i < 12; i++) assert_int_equal(argmax[i], at[i]);

    /* Element 1 receives from windows 0 and 1 in that order: (1 + 2^-24) + 2^-24 is 1, not 1 + 2^-23. */
    const float gradient[] = { 1.0f, 0x1p-24f, 2.0f,     3.0f,  4.0f, 5.0f,
                               1.0f, 0x1p-24f, 0x1p-24f, -0.0f, 1.0f, 7.0f };
    float dx[24] = { 0 };
    dx[1] = 1.0f, dx[2] = 2.0f, dx[8] = 3.0f, dx[5] = 4.0f, dx[7] = 5.0f;
    dx[12 + 0] = 1.0f, dx[12 + 6] = 0x1p-23f + 1.0f, dx[12 + 8] = 0.0f, dx[12 + 11] = 7.0f;
    zb_ref_maxpool2d_backward(&module, ZB_FP32, 1, gradient, argmax, got);
    assert_same_floats("dx", dx, got, 24);
}

/* Three windows that keep one element: in bf16 (1 + 2^-8) + 2^-8 loses both, rounded once it would not. */
static void check_maxpool_rounds_each_sum(void **state)
{
    (void)state;
    const zb_module module = { .kind = ZB_MODULE_MAXPOOL2D,
                               .in = { 3, { 1, 1, 4 } },
                               .out = { 3, { 1, 1, 3 } },
                               .kernel = 1,
                               .stride = 1 };
    const float gradient[] = { 1.0f, 0x1p-8f, 0x1p-8f };
    const size_t argmax[] = { 2, 2, 2 };
    zb_ref_maxpool2d_backward(&module, ZB_BF16, 1, gradient, argmax, got);
    assert_same_floats("bf16", (const float[]){ 0.0f, 0.0f, 1.0f, 0.0f }, got, 4);
    zb_ref_maxpool2d_backward(&module, ZB_FP16, 1, gradient, argmax, got);
    assert_same_floats("fp16", (const float[]){ 0.0f, 0.0f, 1.0f + 0x1p-7f, 0.0f }, got, 4);
}

static void check_relu(void **state)
{
    (void)state;
    const float in[] = { 2.0f, -3.0f, 0.0f, -0.0f, NAN, INFINITY, -INFINITY, 0x1p-149f };
    const float y[] = { 2.0f, 0.0f, 0.0f, 0.0f, NAN, INFINITY, 0.0f, 0x1p-149f };
    const float gradient[] = { -7.0f, 7.0f, 7.0f, 7.0f, 7.0f, 7.0f, NAN, -0.0f };
    const float dx[] = { -7.0f, 0.0f, 0.0f, 0.0f, 7.0f, 7.0f, 0.0f, -0.0f };
    zb_ref_relu_forward(8, in, got);
    assert_same_floats("y", y, got, 8);
    zb_ref_relu_backward(8, y, gradient, got);
    assert_same_floats("dx", dx, got, 8);
}

/* --- losses --- */

static void check_cross_entropy(void **state)
{
    (void)state;
    /* Two classes of one score each: exp(0) + exp(0) = 2, so every log-probability is -log 2, rounded. */
    const float scores[] = { 3.0f, 3.0f, -100.0f, -100.0f };
    const int32_t labels[] = { 0, 1 };
    const float log_half = -0x1.62e43p-1f; /* log 2 = 0x1.62e42fefa.. */
    float loss = zb_ref_cross_entropy_forward(2, 2, scores, labels, got);
    const float log_probs[] = { log_half, log_half, log_half, log_half };
    assert_same_floats("log_probs", log_probs, got, 4);
    assert_true(same_bits(loss, 0x1.62e43p-1f)); /* (a + a) / 2 */

    /* exp of the rounded -log 2 is 1/2 * (1 - 1.9e-9 ..): 1/2. Times 1 / rows. */
    const float dx[] = { -0.25f, 0.25f, 0.25f, -0.25f };
    zb_ref_cross_entropy_backward(2, 2, log_probs, labels, 1.0f, 1.0f, got);
    assert_same_floats("dx", dx, got, 4);
    zb_ref_cross_entropy_backward(2, 2, log_probs, labels, 5.0f, 5.0f, got);
    assert_same_floats("dx, scaled", dx, got, 4);
    const float third = (0.5f * (0x1p100f / 2.0f)) / 3.0f;
    zb_ref_cross_entropy_backward(2, 2, log_probs, labels, 0x1p100f, 3.0f, got);
    assert_same_floats("dx, divided", (const float[]){ -third, third, third, -third }, got, 4);

    /* One class dominates: exp(-200) is 0, log 1 is 0. */
    const float far[] = { 100.0f, -100.0f };
    const int32_t unlikely[] = { 1 };
    loss = zb_ref_cross_entropy_forward(1, 2, far, unlikely, got);
    assert_true(same_bits(loss, 200.0f));

    const float broken[] = { 1.0f, NAN, 2.0f };
    loss = zb_ref_cross_entropy_forward(1, 3, broken, unlikely, got);
    assert_true(isnan(loss) && isnan(got[0]) && isnan(got[2]));
}

/* 40 classes: more than the sum has lanes; every log-probability spelled out. */
static void check_cross_entropy_shape(void **state)
{
    (void)state;
    enum { CLASSES = 40 };
    fill_all();
    float m = x[0], lane[32] = { 0 };
    for (int i = 1; i < CLASSES; i++) m = fmaxf(m, x[i]);
    for (int i = 0; i < CLASSES; i++) lane[i % 32] += zb_ref_exp(x[i] - m);
    for (size_t s = 16; s >= 1; s /= 2)
        for (size_t l = 0; l < s; l++) lane[l] += lane[l + s];
    const float l = zb_ref_log(lane[0]);
    for (int i = 0; i < CLASSES; i++) want[i] = (x[i] - m) - l;

    const int32_t label = 37;
    float loss = zb_ref_cross_entropy_forward(1, CLASSES, x, &label, got);
    assert_same_floats("log_probs", want, got, CLASSES);
    assert_true(same_bits(loss, -want[37]));
}

static void check_mse(void **state)
{
    (void)state;
    const float output[] = { 1.0f, 2.0f, -1.0f, 0.5f }, target[] = { 0.0f, 4.0f, -1.0f, 0.0f };
    /* d = 1, -2, 0, 1/2; (1 + 4 + 0 + 1/4) / 4 */
    assert_true(same_bits(zb_ref_mse_forward(4, output, target), 1.3125f));
    /* weight 2 / 4 */
    const float dx[] = { 0.5f, -1.0f, 0.0f, 0.25f };
    zb_ref_mse_backward(4, output, target, 1.0f, 1.0f, got);
    assert_same_floats("dx", dx, got, 4);
    /* 2 * 6 / 4 = 3; a product that is too large stays so when it is divided */
    zb_ref_mse_backward(4, output, target, 6.0f, 3.0f, got);
    assert_same_floats("dx, scaled", (const float[]){ 1.0f, -2.0f, 0.0f, 0.5f }, got, 4);
    zb_ref_mse_backward(4, output, target, 0x1p127f, 4.0f, got);
    assert_true(isinf(got[0]) && isinf(got[1]));
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

int main(void)
{
    struct CMUnitTest tests[6 + COUNT(linear_cases) + COUNT(conv_cases)] = {
        cmocka_unit_test(check_maxpool),       cmocka_unit_test(check_relu),
        cmocka_unit_test(check_cross_entropy), cmocka_unit_test(check_cross_entropy_shape),
        cmocka_unit_test(check_mse),           cmocka_unit_test(check_maxpool_rounds_each_sum),
    };
    size_t count = 6;
    for (size_t i = 0; i < COUNT(linear_cases); i++)
        tests[count++] = (struct CMUnitTest){ linear_cases[i].name, check_linear, NULL, NULL,
                                              (void *)&linear_cases[i] };
    for (size_t i = 0; i < COUNT(conv_cases); i++)
        tests[count++] = (struct CMUnitTest){ conv_cases[i].name, check_conv, NULL, NULL,
                                              (void *)&conv_cases[i] };
    return cmocka_run_group_tests_name("ref_layers", tests, NULL, NULL);
}
