/* See bounded.h. */
#include "tests/golden/bounded.h"

#include <math.h>
#include <string.h>
#include <zerobit/memory.h>

#include "tests/kernels/support.h"

/* Half a unit in the last place of fp32, and a little more: it also covers the roundings of fp64 here. */
#define U32 (0x1p-24 * (1 + 0x1p-16))
/* What one rounding to a subnormal fp32 number loses. */
#define ETA32 0x1p-150

/* --- numbers --- */

bounded bounded_create(size_t numel)
{
    bounded b = { .numel = numel };
    double **arrays[] = { &b.value, &b.error, &b.magnitude, &b.terms };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        *arrays[i] = zb_alloc_array(numel, sizeof(double));
        assert_non_null(*arrays[i]);
        for (size_t j = 0; j < numel; j++) (*arrays[i])[j] = 0.0;
    }
    return b;
}

bounded bounded_of(const float *values, size_t numel)
{
    bounded b = bounded_create(numel);
    for (size_t i = 0; i < numel; i++) b.value[i] = (double)values[i];
    return b;
}

void bounded_destroy(bounded *b)
{
    zb_free(b->value), zb_free(b->error), zb_free(b->magnitude), zb_free(b->terms);
    *b = (bounded){ 0 };
}

double bounded_gamma(double n, double u)
{
    return n * u / (1 - n * u);
}

/* The largest |x| that an uncertain number can be. */
static double reach(const bounded *b, size_t i)
{
    return fabs(b->value[i]) + b->error[i];
}

/* Half a unit in the last place, relative, and of the subnormal numbers. */
static double unit_of(zb_dtype dtype)
{
    return dtype == ZB_FP16 ? 0x1p-11 : 0x1p-8;
}
static double eta_of(zb_dtype dtype)
{
    return dtype == ZB_FP16 ? 0x1p-25 : 0x1p-134;
}

void bounded_store(zb_dtype dtype, bounded *b)
{
    if (dtype == ZB_FP32) return;
    for (size_t i = 0; i < b->numel; i++) b->error[i] += unit_of(dtype) * reach(b, i) + eta_of(dtype);
}

double bounded_pytorch_cpu(const zb_module *module, zb_dtype dtype, size_t rows, bounded_output output,
                           const bounded *b, size_t i)
{
    if (dtype == ZB_FP32) return 0;
    const double flushed = dtype == ZB_BF16 ? b->terms[i] * 0x1p-126 : 0;
    if (module->kind != ZB_MODULE_CONV2D || (output != BOUNDED_DX && output != BOUNDED_DW)) return flushed;
    const double roundings = output == BOUNDED_DX ? module->kernel * module->kernel : (double)rows;
    /* what is rounded is itself off by what fp32 sums are off, hence a little more */
    return bounded_gamma(roundings, unit_of(dtype)) * b->magnitude[i] * (1 + 0x1p-10) +
           roundings * eta_of(dtype) + flushed;
}

/* x through fp32, as who computes in fp32 and then rounds. */
static double stored(zb_dtype dtype, double x)
{
    return (double)plain_rounded(dtype, (float)x);
}

double bounded_distance(zb_dtype dtype, const bounded *b, size_t i, double also, float got)
{
    const double value = b->value[i], error = b->error[i] + also;
    if (isnan(value)) return isnan(got) ? 0 : INFINITY;
    if (isinf(value)) return (double)got == value ? 0 : INFINITY;
    if (isnan(got) || isnan(error)) return INFINITY;
    const double low = stored(dtype, value - error), high = stored(dtype, value + error);
    if ((double)got >= low && (double)got <= high) return 0.5; /* inside; how far does not matter */
    const double allowed = (double)got < value ? value - low : high - value;
    return allowed == 0 || isinf(got) ? INFINITY : fabs((double)got - value) / allowed;
}

/* --- sums --- */

static void add_term(bounded *sum, size_t i, double value, double error)
{
    sum->value[i] += value;
    sum->magnitude[i] += fabs(value) + error;
    sum->error[i] += error; /* inherited from the operands */
    sum->terms[i] += 1;
}

static void add_product(bounded *sum, size_t i, const bounded *a, size_t j, const bounded *b, size_t k)
{
    const double error = fabs(a->value[j]) * b->error[k] + reach(b, k) * a->error[j];
    add_term(sum, i, a->value[j] * b->value[k], error);
}

/* `products`: the terms are rounded themselves, which may lose something where they are subnormal. */
static void close_sums(bounded *sum, int products)
{
    for (size_t i = 0; i < sum->numel; i++) {
        const double roundings = products ? sum->terms[i] : fmax(sum->terms[i] - 1, 0);
        sum->error[i] += bounded_gamma(roundings, U32) * sum->magnitude[i] +
                         (products ? roundings * ETA32 : 0);
    }
}

/* --- linear, conv2d --- */

/* Called for every product x[i] w[j] of y[k]; which of the three is the sum depends on the direction. */
typedef struct product {
    enum { INTO_Y, INTO_X, INTO_W } direction;
    bounded *sum;
    const bounded *a, *b;
} product;

static void visit(const product *p, size_t x, size_t w, size_t y)
{
    switch (p->direction) {
    case INTO_Y:
        add_product(p->sum, y, p->a, x, p->b, w);
        break;
    case INTO_X:
        add_product(p->sum, x, p->a, y, p->b, w);
        break;
    case INTO_W:
        add_product(p->sum, w, p->a, y, p->b, x);
        break;
    }
}

static void visit_linear(const zb_module *module, size_t rows, const product *p)
{
    const size_t in = zb_shape_numel(&module->in), out = zb_shape_numel(&module->out);
    for (size_t n = 0; n < rows; n++)
        for (size_t o = 0; o < out; o++)
            for (size_t i = 0; i < in; i++) visit(p, n * in + i, o * in + i, n * out + o);
}

/* Dense index of [a][b][c][d] given the three inner extents. */
static size_t at(int64_t a, int64_t b, int64_t c, int64_t d, int64_t bs, int64_t cs, int64_t ds)
{
    return (size_t)(((a * bs + b) * cs + c) * ds + d);
}

/* Taps outside the image are no products: what they would add is zero. */
static void visit_conv2d(const zb_module *module, size_t rows, const product *p)
{
    const int64_t ic = module->in.extent[0], ih = module->in.extent[1], iw = module->in.extent[2];
    const int64_t oc = module->out.extent[0], oh = module->out.extent[1], ow = module->out.extent[2];
    const int64_t kernel = module->kernel;
    for (int64_t n = 0; n < (int64_t)rows; n++)
        for (int64_t o = 0; o < oc; o++)
            for (int64_t i = 0; i < oh * ow; i++)
                for (int64_t c = 0; c < ic; c++)
                    for (int64_t tap = 0; tap < kernel * kernel; tap++) {
                        const int64_t r = tap / kernel, s = tap % kernel;
                        const int64_t h = i / ow * module->stride + r - module->padding;
                        const int64_t v = i % ow * module->stride + s - module->padding;
                        if (h < 0 || h >= ih || v < 0 || v >= iw) continue;
                        visit(p, at(n, c, h, v, ic, ih, iw), at(o, c, r, s, ic, kernel, kernel),
                              at(n, o, 0, i, oc, 1, oh * ow));
                    }
}

static void visit_products(const zb_module *module, size_t rows, const product *p)
{
    if (module->kind == ZB_MODULE_CONV2D)
        visit_conv2d(module, rows, p);
    else
        visit_linear(module, rows, p);
}

static size_t channels_of(const zb_module *module)
{
    return (size_t)module->out.extent[0];
}

static size_t weight_numel(const zb_module *module)
{
    return channels_of(module) * (module->kind == ZB_MODULE_CONV2D
                                      ? (size_t)(module->in.extent[0] * module->kernel * module->kernel)
                                      : zb_shape_numel(&module->in));
}

bounded bounded_forward(const zb_module *module, size_t rows, const bounded *x, const bounded *w,
                        const bounded *b)
{
    const size_t numel = zb_shape_numel(&module->out), positions = numel / channels_of(module);
    bounded y = bounded_create(rows * numel);
    visit_products(module, rows, &(product){ INTO_Y, &y, x, w });
    for (size_t i = 0; b != NULL && i < y.numel; i++) {
        const size_t o = i / positions % channels_of(module);
        add_term(&y, i, b->value[o], b->error[o]);
    }
    close_sums(&y, 1);
    return y;
}

bounded bounded_backward_input(const zb_module *module, size_t rows, const bounded *dy, const bounded *w)
{
    bounded dx = bounded_create(rows * zb_shape_numel(&module->in));
    visit_products(module, rows, &(product){ INTO_X, &dx, dy, w });
    close_sums(&dx, 1);
    return dx;
}

bounded bounded_backward_weight(const zb_module *module, size_t rows, const bounded *dy, const bounded *x)
{
    bounded dw = bounded_create(weight_numel(module));
    visit_products(module, rows, &(product){ INTO_W, &dw, dy, x });
    close_sums(&dw, 1);
    return dw;
}

bounded bounded_backward_bias(const zb_module *module, size_t rows, const bounded *dy)
{
    const size_t positions = zb_shape_numel(&module->out) / channels_of(module);
    bounded db = bounded_create(channels_of(module));
    for (size_t i = 0; i < rows * zb_shape_numel(&module->out); i++)
        add_term(&db, i / positions % db.numel, dy->value[i], dy->error[i]);
    close_sums(&db, 0);
    return db;
}

/* --- the others --- */

bounded bounded_relu_forward(const bounded *x)
{
    bounded y = bounded_create(x->numel);
    for (size_t i = 0; i < x->numel; i++) {
        y.value[i] = x->value[i] <= 0 ? 0 : x->value[i];
        y.error[i] = x->value[i] + x->error[i] <= 0 ? 0 : x->error[i];
    }
    return y;
}

/* Where the sign of x is not certain, dx may be dy or 0. */
bounded bounded_relu_backward(const bounded *x, const bounded *dy)
{
    bounded dx = bounded_create(x->numel);
    for (size_t i = 0; i < x->numel; i++) {
        const int may_pass = !(x->value[i] + x->error[i] <= 0);
        const int must_pass = !(x->value[i] - x->error[i] <= 0);
        dx.value[i] = x->value[i] <= 0 ? 0 : dy->value[i];
        dx.error[i] = !may_pass ? 0 : must_pass ? dy->error[i] : reach(dy, i);
    }
    return dx;
}

/* One window of max pooling. */
typedef struct window {
    size_t count;
    size_t index[64]; /* of x */
    size_t best;      /* among them: the first of the largest values */
} window;

/* Windows in the order of their outputs: image by image (rows times channels), row by row. */
static window window_of(const zb_module *module, const bounded *x, size_t output)
{
    const size_t ih = (size_t)module->in.extent[1], iw = (size_t)module->in.extent[2];
    const size_t oh = (size_t)module->out.extent[1], ow = (size_t)module->out.extent[2];
    const size_t image = output / (oh * ow), p = output / ow % oh, q = output % ow;
    const size_t kernel = (size_t)module->kernel, stride = (size_t)module->stride;
    window made = { 0 };
    assert_true(kernel * kernel <= sizeof made.index / sizeof made.index[0]);
    for (size_t r = 0; r < kernel; r++)
        for (size_t s = 0; s < kernel; s++) {
            const size_t i = (image * ih + p * stride + r) * iw + q * stride + s;
            if (made.count > 0 && x->value[i] > x->value[made.index[made.best]]) made.best = made.count;
            made.index[made.count++] = i;
        }
    return made;
}

bounded bounded_maxpool2d_forward(const zb_module *module, size_t rows, const bounded *x)
{
    bounded y = bounded_create(rows * zb_shape_numel(&module->out));
    for (size_t o = 0; o < y.numel; o++) {
        const window w = window_of(module, x, o);
        y.value[o] = x->value[w.index[w.best]];
        for (size_t i = 0; i < w.count; i++) y.error[o] = fmax(y.error[o], x->error[w.index[i]]);
    }
    return y;
}

/* Could this element be the window's maximum? A tie of numbers that are certain goes to the first. */
static int may_win(const window *w, const bounded *x, size_t i)
{
    const size_t mine = w->index[i], best = w->index[w->best];
    if (i == w->best) return 1;
    if (x->error[mine] == 0 && x->error[best] == 0) return 0;
    return x->value[mine] + x->error[mine] >= x->value[best] - x->error[best];
}

/* Where several elements may be a window's maximum, each may get dy or nothing. */
bounded bounded_maxpool2d_backward(const zb_module *module, size_t rows, const bounded *x, const bounded *dy)
{
    bounded dx = bounded_create(x->numel);
    for (size_t o = 0; o < rows * zb_shape_numel(&module->out); o++) {
        const window w = window_of(module, x, o);
        size_t candidates = 0;
        for (size_t i = 0; i < w.count; i++) candidates += (size_t)may_win(&w, x, i);
        for (size_t i = 0; i < w.count; i++)
            if (may_win(&w, x, i))
                add_term(&dx, w.index[i], i == w.best ? dy->value[o] : 0,
                         candidates == 1 ? dy->error[o] : reach(dy, o));
    }
    close_sums(&dx, 0);
    return dx;
}

bounded bounded_add(const bounded *a, const bounded *b)
{
    bounded y = bounded_create(a->numel);
    for (size_t i = 0; i < y.numel; i++) {
        add_term(&y, i, a->value[i], a->error[i]);
        add_term(&y, i, b->value[i], b->error[i]);
    }
    close_sums(&y, 0);
    return y;
}

/* --- losses --- */

/*
 * exp and log of a library: within two units in the last place, and what is subnormal may be taken for zero.
 * (The contract's are correctly rounded. PyTorch's vector functions promise one or two units.)
 */
#define EXP_ERROR (4 * U32)
#define LOG_ERROR (4 * U32)
#define FLUSHED   0x1p-126

/* What is known of one row after forward. */
typedef struct row_bounds {
    double maximum, sum, log_sum;
    double log_sum_error; /* of log(sum), given the differences to the maximum as they were rounded */
    double uncertainty;   /* what uncertain logits do to any difference of a logit and log_sum */
} row_bounds;

/*
 * d_i = x_i - m is rounded once, so exp(d_i) is off by a factor of at most exp(u |d_i|) and by EXP_ERROR. The
 * terms are positive: adding `classes` of them is off by gamma(classes - 1) of the sum. As the sum is at
 * least 1 (the maximum's own term), an error in it is no larger in its logarithm.
 */
static row_bounds bound_row(size_t classes, const bounded *x, size_t first)
{
    row_bounds row = { .maximum = -INFINITY };
    for (size_t i = first; i < first + classes; i++) {
        if (!(x->value[i] <= row.maximum)) row.maximum = x->value[i]; /* a NaN stays */
        if (isnan(row.maximum)) break;
        row.uncertainty = fmax(row.uncertainty, 2 * x->error[i]);
    }
    double off = 0;
    for (size_t i = first; i < first + classes; i++) {
        const double d = x->value[i] - row.maximum, e = exp(d);
        row.sum += e;
        if (e > 0) off += e * (expm1(U32 * -d) * (1 + EXP_ERROR) + EXP_ERROR);
        off += FLUSHED;
    }
    off += bounded_gamma((double)classes - 1, U32) * (row.sum + off);
    row.log_sum = log(row.sum);
    row.log_sum_error = off / row.sum * (1 + off) + LOG_ERROR * fabs(row.log_sum) + ETA32;
    return row;
}

/* Log-probability of one element, (x - m) - l, and its error. */
static void bound_log_prob(const row_bounds *row, double x, double *value, double *error)
{
    const double d = x - row->maximum;
    *value = d - row->log_sum;
    *error = U32 * fabs(d) + row->log_sum_error;
    *error += U32 * (fabs(*value) + *error);
    *error += row->uncertainty;
}

bounded bounded_cross_entropy(size_t rows, size_t classes, const bounded *x, const int32_t *labels)
{
    bounded loss = bounded_create(1);
    for (size_t n = 0; n < rows; n++) {
        const row_bounds row = bound_row(classes, x, n * classes);
        double value, error;
        bound_log_prob(&row, x->value[n * classes + (size_t)labels[n]], &value, &error);
        add_term(&loss, 0, -value, error);
    }
    close_sums(&loss, 0);
    loss.value[0] /= (double)rows, loss.error[0] /= (double)rows;
    loss.error[0] += U32 * reach(&loss, 0) + ETA32;
    return loss;
}

/*
 * dx = (p - hit) w with p = exp(log-probability), w = seed / rows / divisor. PyTorch computes -w * hit + p *
 * w: so the roundings of w and of the products count for both parts, not for their difference.
 */
bounded bounded_cross_entropy_backward(size_t rows, size_t classes, const bounded *x, const int32_t *labels,
                                       double seed, double divisor)
{
    const double weight = seed / (double)rows / divisor, roundings = 5; /* seed / divisor, w, *, -, and / */
    bounded dx = bounded_create(rows * classes);
    for (size_t n = 0; n < rows; n++) {
        const row_bounds row = bound_row(classes, x, n * classes);
        for (size_t c = 0; c < classes; c++) {
            const size_t i = n * classes + c;
            const double hit = c == (size_t)labels[n] ? 1 : 0;
            double log_prob, error;
            bound_log_prob(&row, x->value[i], &log_prob, &error);
            const double p = exp(log_prob);
            const double p_error = p == 0 ? FLUSHED
                                          : p * (expm1(error) * (1 + EXP_ERROR) + EXP_ERROR) + FLUSHED;
            dx.value[i] = (p - hit) * weight;
            dx.error[i] = weight * (p_error + bounded_gamma(roundings, U32) * (p + p_error + hit)) +
                          roundings * fmax(1, seed) * ETA32;
        }
    }
    return dx;
}

/* x - t, its square and their sum are rounded; nothing cancels but x and t, which are exact. */
bounded bounded_mse(const bounded *x, const float *t)
{
    bounded loss = bounded_create(1);
    for (size_t i = 0; i < x->numel; i++) {
        const double d = x->value[i] - (double)t[i], off = x->error[i];
        add_term(&loss, 0, d * d, (2 * fabs(d) + off) * off);
    }
    const double numel = (double)x->numel,
                 roundings = numel + 3; /* -, which counts twice, *, numel - 1 times +, / */
    loss.error[0] += bounded_gamma(roundings, U32) * loss.magnitude[0] + numel * ETA32;
    loss.value[0] /= numel, loss.error[0] /= numel;
    loss.error[0] += ETA32;
    return loss;
}

bounded bounded_mse_backward(const bounded *x, const float *t, double seed, double divisor)
{
    const double weight = 2 * seed / (double)x->numel / divisor;
    const double roundings = 6; /* -, seed / divisor, 2 / numel, *, *, / */
    bounded dx = bounded_create(x->numel);
    for (size_t i = 0; i < x->numel; i++) {
        const double d = x->value[i] - (double)t[i];
        dx.value[i] = d * weight;
        dx.error[i] = weight * x->error[i];
        dx.error[i] += bounded_gamma(roundings, U32) * (fabs(dx.value[i]) + dx.error[i]) +
                       roundings * fmax(1, seed) * ETA32;
    }
    return dx;
}
