/* See layer_kinds.h. */
#include "tests/golden/layer_kinds.h"

#include <zerobit/memory.h>

#include "ref/oracle.h"
#include "tests/kernels/support.h"

zb_stream *kernel_stream;

void *room(size_t numel, size_t bytes)
{
    void *data = zb_alloc_array(numel, bytes);
    assert_non_null(data);
    return data;
}

/* The same numbers as an operation takes them; NULL stays NULL. */
static void *packed(zb_dtype dtype, const float *values, size_t numel)
{
    if (values == NULL) return NULL;
    void *data = room(numel, zb_dtype_bytes(dtype));
    for (size_t i = 0; i < numel; i++)
        if (dtype == ZB_FP32)
            ((float *)data)[i] = values[i];
        else
            ((uint16_t *)data)[i] = plain_to_half(dtype, (double)values[i]);
    return data;
}

/* Reads `data` and frees it. */
static void unpack(zb_dtype dtype, void *data, size_t numel, float *values)
{
    for (size_t i = 0; i < numel; i++)
        values[i] = dtype == ZB_FP32 ? ((float *)data)[i]
                                     : (float)plain_from_half(dtype, ((uint16_t *)data)[i]);
    zb_free(data);
}

size_t out_numel(const problem *p)
{
    return p->rows * zb_shape_numel(&p->module.out);
}
size_t channels_of(const problem *p)
{
    return (size_t)p->module.out.extent[0];
}
size_t weight_numel(const problem *p)
{
    const size_t taps = (size_t)(p->module.kernel * p->module.kernel), in = (size_t)p->module.in.extent[0];
    return channels_of(p) * in * (p->module.kind == ZB_MODULE_CONV2D ? taps : 1);
}

/* --- linear, conv2d --- */

static void oracle_product(const problem *p, float *const *out)
{
    const zb_module *m = &p->module;
    float *scratch = room(zb_ref_layer_scratch_numel(m), sizeof *scratch);
    if (m->kind == ZB_MODULE_LINEAR) {
        zb_ref_linear_forward(m, p->rows, p->x, p->w, p->b, out[0], scratch);
        zb_ref_linear_backward_input(m, p->rows, p->dy, p->w, out[1]);
        zb_ref_linear_backward_weight(m, p->rows, p->dy, p->x, out[2]);
    } else {
        zb_ref_conv2d_forward(m, p->rows, p->x, p->w, p->b, out[0], scratch);
        zb_ref_conv2d_backward_input(m, p->rows, p->dy, p->w, out[1], scratch);
        zb_ref_conv2d_backward_weight(m, p->rows, p->dy, p->x, out[2], scratch);
    }
    if (p->b != NULL) zb_ref_backward_bias(m, p->rows, p->dy, out[3]);
    zb_free(scratch);
    zb_ref_round_all(p->dtype, out[0], out_numel(p));
    zb_ref_round_all(p->dtype, out[1], p->numel);
    zb_ref_round_all(p->dtype, out[2], weight_numel(p));
    if (p->b != NULL) zb_ref_round_all(p->dtype, out[3], channels_of(p));
}

typedef struct product_arrays {
    void *x, *w, *b, *dy;
    void *y, *dx, *dw, *db;
} product_arrays;

static void launch_linear(const problem *p, const product_arrays *a)
{
    const size_t rows = p->rows, in = zb_shape_numel(&p->module.in), out = channels_of(p);
    assert_ok(zb_launch_linear_forward(
        kernel_stream, &(zb_linear_forward_args){ p->dtype, rows, in, out, a->x, a->w, a->b, a->y }));
    assert_ok(zb_launch_linear_backward_input(
        kernel_stream, &(zb_linear_backward_input_args){ p->dtype, rows, in, out, a->dy, a->w, a->dx }));
    assert_ok(zb_launch_linear_backward_weight(
        kernel_stream, &(zb_linear_backward_weight_args){ p->dtype, rows, in, out, a->dy, a->x, a->dw }));
    if (a->b != NULL)
        assert_ok(zb_launch_linear_backward_bias(
            kernel_stream, &(zb_linear_backward_bias_args){ p->dtype, rows, out, a->dy, a->db }));
}

static void launch_conv2d(const problem *p, const product_arrays *a)
{
    const zb_module *m = &p->module;
    const zb_conv2d_shape shape = {
        .rows = p->rows,
        .ic = (size_t)m->in.extent[0],
        .ih = (size_t)m->in.extent[1],
        .iw = (size_t)m->in.extent[2],
        .oc = (size_t)m->out.extent[0],
        .oh = (size_t)m->out.extent[1],
        .ow = (size_t)m->out.extent[2],
        .kernel = (size_t)m->kernel,
        .stride = (size_t)m->stride,
        .padding = (size_t)m->padding,
    };
    float *workspace = room(zb_conv2d_workspace_numel(&shape), sizeof *workspace);
    assert_ok(zb_launch_conv2d_forward(
        kernel_stream, &(zb_conv2d_forward_args){ p->dtype, shape, a->x, a->w, a->b, a->y, workspace }));
    assert_ok(zb_launch_conv2d_backward_input(
        kernel_stream, &(zb_conv2d_backward_input_args){ p->dtype, shape, a->dy, a->w, a->dx, workspace }));
    assert_ok(zb_launch_conv2d_backward_weight(
        kernel_stream, &(zb_conv2d_backward_weight_args){ p->dtype, shape, a->dy, a->x, a->dw, workspace }));
    if (a->b != NULL)
        assert_ok(zb_launch_conv2d_backward_bias(
            kernel_stream, &(zb_conv2d_backward_bias_args){ p->dtype, shape, a->dy, a->db }));
    zb_free(workspace);
}

static void kernel_product(const problem *p, float *const *out)
{
    const size_t bytes = zb_dtype_bytes(p->dtype), weights = weight_numel(p), channels = channels_of(p);
    const product_arrays a = {
        .x = packed(p->dtype, p->x, p->numel),
        .w = packed(p->dtype, p->w, weights),
        .b = packed(p->dtype, p->b, channels),
        .dy = packed(p->dtype, p->dy, out_numel(p)),
        .y = room(out_numel(p), bytes),
        .dx = room(p->numel, bytes),
        .dw = room(weights, bytes),
        .db = p->b == NULL ? NULL : room(channels, bytes),
    };
    if (p->module.kind == ZB_MODULE_LINEAR)
        launch_linear(p, &a);
    else
        launch_conv2d(p, &a);
    zb_free(a.x), zb_free(a.w), zb_free(a.b), zb_free(a.dy);
    unpack(p->dtype, a.y, out_numel(p), out[0]);
    unpack(p->dtype, a.dx, p->numel, out[1]);
    unpack(p->dtype, a.dw, weights, out[2]);
    if (p->b != NULL) unpack(p->dtype, a.db, channels, out[3]);
}

static void truth_product(const problem *p, bounded *out)
{
    bounded x = bounded_of(p->x, p->numel), w = bounded_of(p->w, weight_numel(p));
    bounded b = p->b == NULL ? (bounded){ 0 } : bounded_of(p->b, channels_of(p));
    bounded dy = bounded_of(p->dy, out_numel(p));
    out[0] = bounded_forward(&p->module, p->rows, &x, &w, p->b == NULL ? NULL : &b);
    out[1] = bounded_backward_input(&p->module, p->rows, &dy, &w);
    out[2] = bounded_backward_weight(&p->module, p->rows, &dy, &x);
    if (p->b != NULL) out[3] = bounded_backward_bias(&p->module, p->rows, &dy);
    bounded_destroy(&x), bounded_destroy(&w), bounded_destroy(&b), bounded_destroy(&dy);
}

/* --- maxpool2d, relu, add, cast --- */

static void oracle_maxpool2d(const problem *p, float *const *out)
{
    size_t *argmax = room(out_numel(p), sizeof *argmax);
    zb_ref_maxpool2d_forward(&p->module, p->rows, p->x, out[0], argmax);
    zb_ref_maxpool2d_backward(&p->module, p->dtype, p->rows, p->dy, argmax, out[1]);
    zb_free(argmax);
}

static void kernel_maxpool2d(const problem *p, float *const *out)
{
    const zb_module *m = &p->module;
    const zb_maxpool2d_shape shape = {
        .rows = p->rows,
        .channels = (size_t)m->in.extent[0],
        .ih = (size_t)m->in.extent[1],
        .iw = (size_t)m->in.extent[2],
        .oh = (size_t)m->out.extent[1],
        .ow = (size_t)m->out.extent[2],
        .kernel = (size_t)m->kernel,
        .stride = (size_t)m->stride,
    };
    const size_t bytes = zb_dtype_bytes(p->dtype);
    void *x = packed(p->dtype, p->x, p->numel), *dy = packed(p->dtype, p->dy, out_numel(p));
    void *y = room(out_numel(p), bytes), *dx = room(p->numel, bytes);
    int32_t *argmax = room(out_numel(p), sizeof *argmax);
    assert_ok(zb_launch_maxpool2d_forward(kernel_stream,
                                          &(zb_maxpool2d_forward_args){ p->dtype, shape, x, y, argmax }));
    assert_ok(zb_launch_maxpool2d_backward(kernel_stream,
                                           &(zb_maxpool2d_backward_args){ p->dtype, shape, dy, argmax, dx }));
    zb_free(x), zb_free(dy), zb_free(argmax);
    unpack(p->dtype, y, out_numel(p), out[0]);
    unpack(p->dtype, dx, p->numel, out[1]);
}

static void oracle_relu(const problem *p, float *const *out)
{
    zb_ref_relu_forward(p->numel, p->x, out[0]);
    zb_ref_relu_backward(p->numel, out[0], p->dy, out[1]);
}

static void kernel_relu(const problem *p, float *const *out)
{
    void *y = packed(p->dtype, p->x, p->numel), *dx = packed(p->dtype, p->dy, p->numel);
    assert_ok(zb_launch_relu_forward(kernel_stream, &(zb_relu_forward_args){ p->dtype, y, y, p->numel }));
    assert_ok(
        zb_launch_relu_backward(kernel_stream, &(zb_relu_backward_args){ p->dtype, y, dx, dx, p->numel }));
    unpack(p->dtype, y, p->numel, out[0]);
    unpack(p->dtype, dx, p->numel, out[1]);
}

/* pass.c adds in fp32 and rounds. */
static void oracle_add(const problem *p, float *const *out)
{
    for (size_t i = 0; i < p->numel; i++) out[0][i] = zb_ref_round(p->dtype, p->x[i] + p->b[i]);
}

static void kernel_add(const problem *p, float *const *out)
{
    void *y = packed(p->dtype, p->x, p->numel), *b = packed(p->dtype, p->b, p->numel);
    assert_ok(zb_launch_add(kernel_stream, &(zb_add_args){ p->dtype, y, p->dtype, b, p->numel }));
    zb_free(b);
    unpack(p->dtype, y, p->numel, out[0]);
}

static void oracle_cast(const problem *p, float *const *out)
{
    for (size_t i = 0; i < p->numel; i++) {
        out[0][i] = zb_ref_round(ZB_FP16, p->x[i]);
        out[1][i] = zb_ref_round(ZB_BF16, p->x[i]);
    }
}

static void kernel_cast(const problem *p, float *const *out)
{
    const zb_dtype to[] = { ZB_FP16, ZB_BF16 };
    for (int i = 0; i < 2; i++) {
        void *y = room(p->numel, zb_dtype_bytes(to[i]));
        assert_ok(zb_launch_cast(kernel_stream, &(zb_cast_args){ y, to[i], p->x, ZB_FP32, p->numel }));
        unpack(to[i], y, p->numel, out[i]);
    }
}

/* --- losses --- */

static void oracle_cross_entropy(const problem *p, float *const *out)
{
    const size_t classes = p->numel / p->rows;
    float *log_probs = room(p->numel, sizeof *log_probs);
    out[0][0] = zb_ref_cross_entropy_forward(p->rows, classes, p->x, p->labels, log_probs);
    zb_ref_cross_entropy_backward(p->rows, classes, log_probs, p->labels, p->seed, p->divisor, out[1]);
    zb_ref_round_all(p->dtype, out[1], p->numel);
    zb_free(log_probs);
}

static void kernel_cross_entropy(const problem *p, float *const *out)
{
    const size_t classes = p->numel / p->rows;
    void *x = packed(p->dtype, p->x, p->numel), *dx = room(p->numel, zb_dtype_bytes(p->dtype));
    float *log_probs = room(p->numel, sizeof *log_probs), *row_loss = room(p->rows, sizeof *row_loss);
    assert_ok(zb_launch_cross_entropy_forward(
        kernel_stream, &(zb_cross_entropy_forward_args){ p->dtype, p->rows, classes, x, p->labels, log_probs,
                                                         row_loss, out[0] }));
    assert_ok(zb_launch_cross_entropy_backward(
        kernel_stream, &(zb_cross_entropy_backward_args){ p->dtype, p->rows, classes, log_probs, p->labels,
                                                          p->seed, p->divisor, dx }));
    zb_free(x), zb_free(log_probs), zb_free(row_loss);
    unpack(p->dtype, dx, p->numel, out[1]);
}

static void truth_cross_entropy(const problem *p, bounded *out)
{
    bounded x = bounded_of(p->x, p->numel);
    out[0] = bounded_cross_entropy(p->rows, p->numel / p->rows, &x, p->labels);
    out[1] = bounded_cross_entropy_backward(p->rows, p->numel / p->rows, &x, p->labels, (double)p->seed,
                                            (double)p->divisor);
    bounded_destroy(&x);
}

static void oracle_mse(const problem *p, float *const *out)
{
    out[0][0] = zb_ref_mse_forward(p->numel, p->x, p->t);
    zb_ref_mse_backward(p->numel, p->x, p->t, p->seed, p->divisor, out[1]);
    zb_ref_round_all(p->dtype, out[1], p->numel);
}

static void kernel_mse(const problem *p, float *const *out)
{
    void *x = packed(p->dtype, p->x, p->numel), *dx = room(p->numel, zb_dtype_bytes(p->dtype));
    assert_ok(
        zb_launch_mse_forward(kernel_stream, &(zb_mse_forward_args){ p->dtype, p->numel, x, p->t, out[0] }));
    assert_ok(zb_launch_mse_backward(
        kernel_stream, &(zb_mse_backward_args){ p->dtype, p->numel, x, p->t, p->seed, p->divisor, dx }));
    zb_free(x);
    unpack(p->dtype, dx, p->numel, out[1]);
}

static void truth_mse(const problem *p, bounded *out)
{
    bounded x = bounded_of(p->x, p->numel);
    out[0] = bounded_mse(&x, p->t);
    out[1] = bounded_mse_backward(&x, p->t, (double)p->seed, (double)p->divisor);
    bounded_destroy(&x);
}

const kind linear = { "linear", { "y", "dx", "dw", "db" }, oracle_product, kernel_product, truth_product };
const kind conv2d = { "conv2d", { "y", "dx", "dw", "db" }, oracle_product, kernel_product, truth_product };
const kind maxpool2d = { "maxpool2d", { "y", "dx" }, oracle_maxpool2d, kernel_maxpool2d, NULL };
const kind relu = { "relu", { "y", "dx" }, oracle_relu, kernel_relu, NULL };
const kind add = { "add", { "y" }, oracle_add, kernel_add, NULL };
const kind cast = { "cast", { "fp16", "bf16" }, oracle_cast, kernel_cast, NULL };
const kind cross_entropy = {
    "cross_entropy", { "y", "dx" }, oracle_cross_entropy, kernel_cross_entropy, truth_cross_entropy
};
const kind mse = { "mse", { "y", "dx" }, oracle_mse, kernel_mse, truth_mse };
