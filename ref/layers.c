/*
 * One module's formulas in plain loops, in fp32: rounding a result to 16 bits is left to who stores it.
 *
 * A chain is acc = +0, then acc = fmaf(a_k, b_k, acc) for k ascending. Many chains are independent of one
 * another, so every product here is written as: outputs = +0; for k: for each output: output = fmaf(...).
 * Each output still sees its k in ascending order, and the innermost loop is one that a compiler can
 * vectorise.
 */
#include "ref/oracle.h"

#include <math.h>
#include <string.h>
#include <zerobit/types.h>

/*
 * fmaf has the same bits as an instruction and as a library call; the instruction is fifty times faster.
 * Where the baseline lacks it, let the loader choose. (Sanitizers and gcov do not follow such a choice.)
 */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && !defined(__FMA__) &&             \
    !defined(ZB_SANITIZED) && !defined(ZB_COVERAGE)
#define ZB_REF_CLONES __attribute__((target_clones("fma", "default")))
#else
#define ZB_REF_CLONES
#endif

static void set_zero(float *y, size_t numel)
{
    memset(y, 0, numel * sizeof *y);
}

/* y[i] = fmaf(a, x[i], y[i]): one link of numel independent chains. Inlined, to be cloned with its caller. */
static inline __attribute__((always_inline)) void chain_link(float a, const float *restrict x,
                                                             float *restrict y, size_t numel)
{
    for (size_t i = 0; i < numel; i++) y[i] = fmaf(a, x[i], y[i]);
}

static void add_bias(float *y, size_t numel, float b)
{
    for (size_t i = 0; i < numel; i++) y[i] = y[i] + b;
}

/* --- linear --- */

/* y[n,o] = chain over i of x[n,i], w[o,i]; then + b[o]. */
ZB_REF_CLONES
void zb_ref_linear_forward(const zb_module *module, size_t rows, const float *x, const float *w,
                           const float *b, float *y, float *scratch)
{
    size_t in = zb_shape_numel(&module->in), out = zb_shape_numel(&module->out);
    float *w_by_input = scratch; /* [in, out] */
    for (size_t o = 0; o < out; o++)
        for (size_t i = 0; i < in; i++) w_by_input[i * out + o] = w[o * in + i];

    set_zero(y, rows * out);
    for (size_t n = 0; n < rows; n++) {
        for (size_t i = 0; i < in; i++) chain_link(x[n * in + i], w_by_input + i * out, y + n * out, out);
        if (b == NULL) continue;
        for (size_t o = 0; o < out; o++) y[n * out + o] = y[n * out + o] + b[o];
    }
}

/* dx[n,i] = chain over o of dy[n,o], w[o,i]. */
ZB_REF_CLONES
void zb_ref_linear_backward_input(const zb_module *module, size_t rows, const float *dy, const float *w,
                                  float *dx)
{
    size_t in = zb_shape_numel(&module->in), out = zb_shape_numel(&module->out);
    set_zero(dx, rows * in);
    for (size_t n = 0; n < rows; n++)
        for (size_t o = 0; o < out; o++) chain_link(dy[n * out + o], w + o * in, dx + n * in, in);
}

/* dw[o,i] = chain over n of dy[n,o], x[n,i]. */
ZB_REF_CLONES
void zb_ref_linear_backward_weight(const zb_module *module, size_t rows, const float *dy, const float *x,
                                   float *dw)
{
    size_t in = zb_shape_numel(&module->in), out = zb_shape_numel(&module->out);
    set_zero(dw, out * in);
    for (size_t n = 0; n < rows; n++)
        for (size_t o = 0; o < out; o++) chain_link(dy[n * out + o], x + n * in, dw + o * in, in);
}

/* --- convolution --- */

typedef struct conv_shape {
    size_t ic, ih, iw, oc, oh, ow, kernel, stride, padding;
} conv_shape;

static conv_shape conv_shape_of(const zb_module *module)
{
    return (conv_shape){
        .ic = (size_t)module->in.extent[0],
        .ih = (size_t)module->in.extent[1],
        .iw = (size_t)module->in.extent[2],
        .oc = (size_t)module->out.extent[0],
        .oh = (size_t)module->out.extent[1],
        .ow = (size_t)module->out.extent[2],
        .kernel = (size_t)module->kernel,
        .stride = (size_t)module->stride,
        .padding = (size_t)module->padding,
    };
}

/* The image inside its padding of +0: framed[c, h + padding, v + padding] = x[c,h,v]. */
static size_t framed_height(const conv_shape *s)
{
    return s->ih + 2 * s->padding;
}
static size_t framed_width(const conv_shape *s)
{
    return s->iw + 2 * s->padding;
}

static void frame_image(const conv_shape *s, const float *x, float *framed)
{
    size_t height = framed_height(s), width = framed_width(s);
    set_zero(framed, s->ic * height * width);
    for (size_t c = 0; c < s->ic; c++)
        for (size_t h = 0; h < s->ih; h++)
            memcpy(framed + (c * height + h + s->padding) * width + s->padding, x + (c * s->ih + h) * s->iw,
                   s->iw * sizeof *x);
}

/*
 * y[n,o,p,q] = chain over (c,r,s) of x[n,c,p*stride+r-padding,q*stride+s-padding], w[o,c,r,s]; then + b[o].
 */
ZB_REF_CLONES
void zb_ref_conv2d_forward(const zb_module *module, size_t rows, const float *x, const float *w,
                           const float *b, float *y, float *scratch)
{
    const conv_shape g = conv_shape_of(module);
    const size_t height = framed_height(&g), width = framed_width(&g), stride = g.stride, ow = g.ow;
    set_zero(y, rows * g.oc * g.oh * ow);
    for (size_t n = 0; n < rows; n++) {
        frame_image(&g, x + n * g.ic * g.ih * g.iw, scratch);
        for (size_t o = 0; o < g.oc; o++) {
            float *y_image = y + (n * g.oc + o) * g.oh * ow;
            for (size_t c = 0; c < g.ic; c++)
                for (size_t r = 0; r < g.kernel; r++)
                    for (size_t s = 0; s < g.kernel; s++) {
                        const float tap = w[((o * g.ic + c) * g.kernel + r) * g.kernel + s];
                        for (size_t p = 0; p < g.oh; p++) {
                            const float *restrict x_row = scratch + (c * height + p * stride + r) * width + s;
                            float *restrict y_row = y_image + p * ow;
                            for (size_t q = 0; q < ow; q++) y_row[q] = fmaf(x_row[q * stride], tap, y_row[q]);
                        }
                    }
            if (b != NULL) add_bias(y_image, g.oh * ow, b[o]);
        }
    }
}

/*
 * The output's gradient on the input's grid, +0 between and around: spread[o, p*stride + kernel-1,
 * q*stride + kernel-1] = dy[o,p,q]. Input position h and tap r meet at h + padding - r + kernel-1, which is
 * never outside, whatever the stride.
 */
static size_t spread_height(const conv_shape *s)
{
    return s->ih + 2 * s->padding + s->kernel - 1;
}
static size_t spread_width(const conv_shape *s)
{
    return s->iw + 2 * s->padding + s->kernel - 1;
}

static void spread_gradient(const conv_shape *s, const float *dy, float *spread)
{
    size_t height = spread_height(s), width = spread_width(s);
    set_zero(spread, s->oc * height * width);
    for (size_t o = 0; o < s->oc; o++)
        for (size_t p = 0; p < s->oh; p++)
            for (size_t q = 0; q < s->ow; q++)
                spread[(o * height + p * s->stride + s->kernel - 1) * width + q * s->stride + s->kernel - 1] =
                    dy[(o * s->oh + p) * s->ow + q];
}

/* dx[n,c,h,v] = chain over (o,r,s) of dy[n,o,p,q], w[o,c,r,s] with p*stride + r - padding = h, q likewise. */
ZB_REF_CLONES
void zb_ref_conv2d_backward_input(const zb_module *module, size_t rows, const float *dy, const float *w,
                                  float *dx, float *scratch)
{
    const conv_shape g = conv_shape_of(module);
    const size_t height = spread_height(&g), width = spread_width(&g), last = g.kernel - 1;
    set_zero(dx, rows * g.ic * g.ih * g.iw);
    for (size_t n = 0; n < rows; n++) {
        spread_gradient(&g, dy + n * g.oc * g.oh * g.ow, scratch);
        for (size_t c = 0; c < g.ic; c++) {
            float *dx_image = dx + (n * g.ic + c) * g.ih * g.iw;
            for (size_t o = 0; o < g.oc; o++)
                for (size_t r = 0; r < g.kernel; r++)
                    for (size_t s = 0; s < g.kernel; s++) {
                        const float tap = w[((o * g.ic + c) * g.kernel + r) * g.kernel + s];
                        for (size_t h = 0; h < g.ih; h++) {
                            const float *dy_row = scratch + (o * height + h + g.padding + last - r) * width +
                                                  g.padding + last - s;
                            chain_link(tap, dy_row, dx_image + h * g.iw, g.iw);
                        }
                    }
        }
    }
}

/* patch[c,r,s] = framed[c, p*stride + r, q*stride + s]: what the kernel sees at output position (p, q). */
static void cut_patch(const conv_shape *g, const float *framed, size_t p, size_t q, float *patch)
{
    size_t height = framed_height(g), width = framed_width(g);
    for (size_t c = 0; c < g->ic; c++)
        for (size_t r = 0; r < g->kernel; r++)
            for (size_t s = 0; s < g->kernel; s++)
                *patch++ = framed[(c * height + p * g->stride + r) * width + q * g->stride + s];
}

/* dw[o,c,r,s] = chain over (n,p,q) of dy[n,o,p,q], x[n,c,p*stride+r-padding,q*stride+s-padding]. */
ZB_REF_CLONES
void zb_ref_conv2d_backward_weight(const zb_module *module, size_t rows, const float *dy, const float *x,
                                   float *dw, float *scratch)
{
    const conv_shape g = conv_shape_of(module);
    const size_t taps = g.ic * g.kernel * g.kernel;
    float *framed = scratch, *patch = scratch + g.ic * framed_height(&g) * framed_width(&g);
    set_zero(dw, g.oc * taps);
    for (size_t n = 0; n < rows; n++) {
        frame_image(&g, x + n * g.ic * g.ih * g.iw, framed);
        for (size_t p = 0; p < g.oh; p++)
            for (size_t q = 0; q < g.ow; q++) {
                cut_patch(&g, framed, p, q, patch);
                for (size_t o = 0; o < g.oc; o++)
                    chain_link(dy[((n * g.oc + o) * g.oh + p) * g.ow + q], patch, dw + o * taps, taps);
            }
    }
}

/* db[o] = sum over (n,p,q), n slowest, of dy[n,o,p,q]; a linear module has one position. */
void zb_ref_backward_bias(const zb_module *module, size_t rows, const float *dy, float *db)
{
    size_t channels = module->kind == ZB_MODULE_CONV2D ? (size_t)module->out.extent[0]
                                                       : zb_shape_numel(&module->out);
    size_t positions = channels == 0 ? 0 : zb_shape_numel(&module->out) / channels;
    for (size_t o = 0; o < channels; o++) {
        zb_ref_sum sum = { 0 };
        for (size_t n = 0; n < rows; n++)
            for (size_t i = 0; i < positions; i++)
                zb_ref_sum_add(&sum, dy[(n * channels + o) * positions + i]);
        db[o] = zb_ref_sum_total(&sum);
    }
}

size_t zb_ref_layer_scratch_numel(const zb_module *module)
{
    if (module->kind == ZB_MODULE_LINEAR) return zb_shape_numel(&module->in) * zb_shape_numel(&module->out);
    if (module->kind != ZB_MODULE_CONV2D) return 0;
    conv_shape s = conv_shape_of(module);
    size_t framed_and_patch = s.ic * (framed_height(&s) * framed_width(&s) + s.kernel * s.kernel);
    size_t spread = s.oc * spread_height(&s) * spread_width(&s);
    return framed_and_patch > spread ? framed_and_patch : spread;
}

/* --- pooling, relu --- */

/* Scans the window row by row; a later element wins when it is larger, or NaN. */
static size_t window_argmax(const zb_module *module, const float *image, size_t p, size_t q)
{
    size_t iw = (size_t)module->in.extent[2], kernel = (size_t)module->kernel,
           stride = (size_t)module->stride;
    size_t best = p * stride * iw + q * stride;
    float maximum = -INFINITY;
    for (size_t r = 0; r < kernel; r++)
        for (size_t s = 0; s < kernel; s++) {
            size_t at = (p * stride + r) * iw + q * stride + s;
            if (image[at] > maximum || isnan(image[at])) {
                maximum = image[at];
                best = at;
            }
        }
    return best;
}

void zb_ref_maxpool2d_forward(const zb_module *module, size_t rows, const float *x, float *y, size_t *argmax)
{
    size_t in_numel = (size_t)(module->in.extent[1] * module->in.extent[2]);
    size_t oh = (size_t)module->out.extent[1], ow = (size_t)module->out.extent[2];
    size_t images = rows * (size_t)module->in.extent[0];
    for (size_t image = 0; image < images; image++)
        for (size_t p = 0; p < oh; p++)
            for (size_t q = 0; q < ow; q++) {
                size_t to = (image * oh + p) * ow + q;
                argmax[to] = window_argmax(module, x + image * in_numel, p, q);
                y[to] = x[image * in_numel + argmax[to]];
            }
}

/* dx = +0; then for (p,q) ascending: dx[argmax] = dx[argmax] + dy. A sum is stored, so it is rounded here. */
void zb_ref_maxpool2d_backward(const zb_module *module, zb_dtype dtype, size_t rows, const float *dy,
                               const size_t *argmax, float *dx)
{
    size_t in_numel = (size_t)(module->in.extent[1] * module->in.extent[2]);
    size_t out_numel = (size_t)(module->out.extent[1] * module->out.extent[2]);
    size_t images = rows * (size_t)module->in.extent[0];
    set_zero(dx, images * in_numel);
    for (size_t image = 0; image < images; image++)
        for (size_t i = 0; i < out_numel; i++) {
            size_t from = image * out_numel + i, to = image * in_numel + argmax[from];
            dx[to] = zb_ref_round(dtype, dx[to] + dy[from]);
        }
}

void zb_ref_relu_forward(size_t numel, const float *x, float *y)
{
    for (size_t i = 0; i < numel; i++) y[i] = x[i] > 0.0f || isnan(x[i]) ? x[i] : 0.0f;
}

void zb_ref_relu_backward(size_t numel, const float *y, const float *dy, float *dx)
{
    for (size_t i = 0; i < numel; i++) dx[i] = y[i] <= 0.0f ? 0.0f : dy[i];
}

/* --- losses --- */

static float row_maximum(const float *x, size_t classes)
{
    float maximum = x[0];
    for (size_t i = 0; i < classes; i++) {
        if (isnan(x[i])) return x[i];
        if (x[i] > maximum) maximum = x[i];
    }
    return maximum;
}

/*
 * Per row: m = maximum; l = log(sum over i of exp(x_i - m)); log_probs_i = (x_i - m) - l; the row's loss is
 * -log_probs_label. The loss is their sum divided by the number of rows.
 */
float zb_ref_cross_entropy_forward(size_t rows, size_t classes, const float *x, const int32_t *labels,
                                   float *log_probs)
{
    zb_ref_sum loss = { 0 };
    for (size_t n = 0; n < rows; n++) {
        const float *row = x + n * classes;
        float *row_log_probs = log_probs + n * classes;
        float m = row_maximum(row, classes);
        zb_ref_sum sum = { 0 };
        for (size_t i = 0; i < classes; i++) zb_ref_sum_add(&sum, zb_ref_exp(row[i] - m));
        float l = zb_ref_log(zb_ref_sum_total(&sum));
        for (size_t i = 0; i < classes; i++) row_log_probs[i] = (row[i] - m) - l;
        zb_ref_sum_add(&loss, -row_log_probs[labels[n]]);
    }
    return zb_ref_sum_total(&loss) / (float)rows;
}

/* dx_i = ((exp(log_probs_i) - (i == label)) * (seed / rows)) / divisor. */
void zb_ref_cross_entropy_backward(size_t rows, size_t classes, const float *log_probs, const int32_t *labels,
                                   float seed, float divisor, float *dx)
{
    float weight = seed / (float)rows;
    for (size_t n = 0; n < rows; n++)
        for (size_t i = 0; i < classes; i++) {
            float target = i == (size_t)labels[n] ? 1.0f : 0.0f;
            float d = zb_ref_exp(log_probs[n * classes + i]) - target;
            dx[n * classes + i] = (d * weight) / divisor;
        }
}

/* d_i = x_i - t_i; the sum of d_i * d_i divided by their number. */
float zb_ref_mse_forward(size_t numel, const float *x, const float *t)
{
    zb_ref_sum sum = { 0 };
    for (size_t i = 0; i < numel; i++) {
        float d = x[i] - t[i];
        zb_ref_sum_add(&sum, d * d);
    }
    return zb_ref_sum_total(&sum) / (float)numel;
}

/* dx_i = ((x_i - t_i) * ((2 seed) / numel)) / divisor. */
void zb_ref_mse_backward(size_t numel, const float *x, const float *t, float seed, float divisor, float *dx)
{
    float weight = (2.0f * seed) / (float)numel;
    for (size_t i = 0; i < numel; i++) dx[i] = ((x[i] - t[i]) * weight) / divisor;
}
