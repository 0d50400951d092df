/* See draw.h. */
#include "tests/kernels/draw.h"

#include <stdio.h>
#include <string.h>

static size_t size_below(drawn_launch *s, size_t bound)
{
    return 1 + rng_below(&s->r, bound);
}

static zb_dtype any_tensor(drawn_launch *s)
{
    return tensor_dtypes[rng_below(&s->r, TENSOR_DTYPES)];
}

static float scalar(drawn_launch *s)
{
    return 0.25f + (float)rng_below(&s->r, 100) / 256;
}

static void draw_matmul(drawn_launch *s, zb_matmul_args *a)
{
    a->dtype = s->dtype;
    a->m = size_below(s, 40), a->n = size_below(s, 40), a->k = size_below(s, 40);
    const size_t step = size_below(s, 2), pad = rng_below(&s->r, 3);
    a->a_col = rng_below(&s->r, 2) ? step : a->m + pad;
    a->a_row = a->a_col == step ? a->k * step + pad : 1;
    a->b_col = rng_below(&s->r, 2) ? step : a->k + pad;
    a->b_row = a->b_col == step ? a->n * step + pad : 1;
    a->c_row = a->n + (rng_below(&s->r, 2) ? 0 : pad);
    a->accumulate = s->dtype == ZB_FP32 && s->round / 3 % 2;
    if (s->round % 2) a->bias = NULL;
}

static zb_conv2d_shape draw_conv2d(drawn_launch *s)
{
    zb_conv2d_shape g = { .rows = size_below(s, 2), .ic = size_below(s, 3), .oc = size_below(s, 3) };
    g.oh = size_below(s, 4), g.ow = size_below(s, 4);
    g.stride = size_below(s, 2), g.kernel = g.stride + rng_below(&s->r, 2), g.padding = g.kernel > 2;
    g.ih = (g.oh - 1) * g.stride + g.kernel - 2 * g.padding;
    g.iw = (g.ow - 1) * g.stride + g.kernel - 2 * g.padding;
    return g;
}

static zb_maxpool2d_shape draw_maxpool2d(drawn_launch *s)
{
    zb_maxpool2d_shape g = { .rows = size_below(s, 3), .channels = size_below(s, 3), .oh = size_below(s, 5) };
    g.ow = size_below(s, 5), g.stride = size_below(s, 2), g.kernel = g.stride + rng_below(&s->r, 2);
    g.ih = (g.oh - 1) * g.stride + g.kernel, g.iw = (g.ow - 1) * g.stride + g.kernel;
    s->limit = g.ih * g.iw;
    return g;
}

static void draw_inputs(drawn_launch *s, const void *const **inputs, int *count)
{
    *count = (int)size_below(s, DRAW_INPUTS_MAX);
    *inputs = s->inputs;
    for (int i = 0; i < *count; i++) {
        s->inputs[i] = s->nowhere;
        s->order[i] = *count - 1 - i;
        s->tree[i == 0 ? 0 : 2 * i - 1] = i;
        if (i > 0) s->tree[2 * i] = ZB_TREE_ADD;
    }
}

/* Everything but the sizes of elementwise operations, which draw() sets where there is a numel. */
static void draw_special(drawn_launch *s)
{
    any_args *a = &s->args;
    switch (s->kernel) {
    case ZB_KERNEL_fill_bytes:
        a->fill_bytes.bytes = size_below(s, 300);
        break;
    case ZB_KERNEL_copy:
        a->copy.bytes = size_below(s, 300);
        break;
    case ZB_KERNEL_matmul:
        draw_matmul(s, &a->matmul);
        break;
#define LAYER(name, first, second_, third)                                                                   \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.dtype = s->dtype;                                                                            \
        a->name.first = size_below(s, 40), a->name.second_ = size_below(s, 40);                              \
        a->name.third = size_below(s, 40);                                                                   \
        break;
        LAYER(linear_forward, rows, in, out)
        LAYER(linear_backward_input, rows, in, out)
        LAYER(linear_backward_weight, rows, in, out)
        LAYER(linear_backward_bias, rows, rows, out)
#undef LAYER
#define SHAPED(name, draw_shape)                                                                             \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.dtype = s->dtype;                                                                            \
        a->name.shape = draw_shape(s);                                                                       \
        break;
        SHAPED(conv2d_forward, draw_conv2d)
        SHAPED(conv2d_backward_input, draw_conv2d)
        SHAPED(conv2d_backward_weight, draw_conv2d)
        SHAPED(conv2d_backward_bias, draw_conv2d)
        SHAPED(maxpool2d_forward, draw_maxpool2d)
        SHAPED(maxpool2d_backward, draw_maxpool2d)
#undef SHAPED
    case ZB_KERNEL_cross_entropy_forward:
        a->cross_entropy_forward.dtype = s->dtype;
        a->cross_entropy_forward.rows = size_below(s, 9);
        a->cross_entropy_forward.classes = s->limit = size_below(s, 40);
        break;
    case ZB_KERNEL_cross_entropy_backward:
        a->cross_entropy_backward.dtype = s->dtype;
        a->cross_entropy_backward.rows = size_below(s, 9);
        a->cross_entropy_backward.classes = s->limit = size_below(s, 40);
        a->cross_entropy_backward.seed = a->cross_entropy_backward.divisor = 1;
        break;
    default:
        break;
    }
}

#define ELEMENTWISE(X)                                                                                       \
    X(scale)                                                                                                 \
    X(divide)                                                                                                \
    X(relu_forward) X(relu_backward) X(mse_forward) X(mse_backward) X(sum_squares) X(norm) X(find_nonfinite)

#define OPTIMIZERS(X) X(adam) X(sgd) X(adagrad) X(lion)

static void draw_reduction(drawn_launch *s, size_t numel)
{
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_FP64, ZB_INT32, ZB_INT64, ZB_UINT8 };
    any_args *a = &s->args;
    const zb_dtype dtype = dtypes[rng_below(&s->r, sizeof dtypes / sizeof dtypes[0])];
    if (s->kernel == ZB_KERNEL_ordered_reduce || s->kernel == ZB_KERNEL_tree_reduce) s->dtype = dtype;
    if (s->kernel == ZB_KERNEL_ordered_reduce) {
        a->ordered_reduce.dtype = s->dtype;
        a->ordered_reduce.numel = numel;
        draw_inputs(s, &a->ordered_reduce.inputs, &a->ordered_reduce.count);
    } else if (s->kernel == ZB_KERNEL_tree_reduce) {
        a->tree_reduce.dtype = s->dtype;
        a->tree_reduce.numel = numel;
        a->tree_reduce.first = rng_below(&s->r, 20);
        a->tree_reduce.rounding = (zb_rounding){ .wide = 0 };
        a->tree_reduce.tree = s->tree, a->tree_reduce.order = s->order;
        draw_inputs(s, &a->tree_reduce.inputs, &a->tree_reduce.count);
    }
}

static void draw_numel(drawn_launch *s, size_t numel)
{
    any_args *a = &s->args;
    switch (s->kernel) {
#define ONE_TYPE(name)                                                                                       \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.dtype = s->dtype;                                                                            \
        a->name.numel = numel;                                                                               \
        break;
        ELEMENTWISE(ONE_TYPE)
#undef ONE_TYPE
    case ZB_KERNEL_cast:
        a->cast = (zb_cast_args){ s->nowhere, s->dtype, s->nowhere, s->second, numel };
        break;
    case ZB_KERNEL_add:
        a->add = (zb_add_args){ s->dtype, s->nowhere, s->second, s->nowhere, numel };
        break;
#define OPTIMIZER(name)                                                                                      \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.grad_dtype = s->dtype, a->name.param_dtype = s->second;                                      \
        a->name.numel = numel;                                                                               \
        a->name.grad_scale = scalar(s), a->name.lr = scalar(s), a->name.weight_decay = scalar(s);            \
        a->name.arithmetic = ZB_ARITHMETIC_PLAIN;                                                            \
        if (s->round % 2) a->name.param = NULL;                                                              \
        break;
        OPTIMIZERS(OPTIMIZER)
#undef OPTIMIZER
    case ZB_KERNEL_lamb_moments:
        a->lamb_moments.grad_dtype = s->dtype;
        a->lamb_moments.numel = numel;
        a->lamb_moments.grad_scale = a->lamb_moments.beta1 = a->lamb_moments.beta2 = scalar(s);
        a->lamb_moments.one_minus_beta1 = a->lamb_moments.one_minus_beta2 = a->lamb_moments.eps = scalar(s);
        break;
    case ZB_KERNEL_lamb_apply:
        a->lamb_apply.param_dtype = s->second;
        a->lamb_apply.numel = numel;
        a->lamb_apply.factor = a->lamb_apply.eps = scalar(s);
        break;
    default:
        draw_reduction(s, numel);
        break;
    }
}

static void draw_scalars(drawn_launch *s)
{
    any_args *a = &s->args;
    if (s->kernel == ZB_KERNEL_adam) {
        zb_adam_args *t = &a->adam;
        t->beta1 = t->beta2 = t->one_minus_beta1 = t->one_minus_beta2 = scalar(s);
        t->eps = t->correction1 = t->correction2 = scalar(s);
    } else if (s->kernel == ZB_KERNEL_lion) {
        a->lion.beta1 = a->lion.beta2 = a->lion.one_minus_beta1 = a->lion.one_minus_beta2 = scalar(s);
        a->lion.decay = scalar(s);
    } else if (s->kernel == ZB_KERNEL_sgd) {
        a->sgd.momentum = s->round % 3 ? scalar(s) : 0;
        a->sgd.one_minus_dampening = scalar(s);
        a->sgd.first_step = s->round / 3 % 2;
        if (a->sgd.momentum == 0 && s->round / 3 % 2) a->sgd.buf = NULL;
    } else if (s->kernel == ZB_KERNEL_scale) {
        a->scale.factor = 3;
    } else if (s->kernel == ZB_KERNEL_divide) {
        a->divide.divisor = 3;
    } else if (s->kernel == ZB_KERNEL_fill_bytes) {
        a->fill_bytes.value = 0x5a;
    }
}

static const size_t args_bytes[] = {
#define ARGS_BYTES(name) sizeof(zb_##name##_args),
    ZB_KERNEL_MAP(ARGS_BYTES)
#undef ARGS_BYTES
};

/* Every pointer leads nowhere at first: all members of a struct are drawn after that. */
static void point_nowhere(drawn_launch *s)
{
    any_args *a = &s->args;
#define POINT(name, member)                                                                                  \
    if (s->kernel == ZB_KERNEL_##name) a->name.member = (void *)s->nowhere
    POINT(fill_bytes, data);
    POINT(copy, to), a->copy.from = s->nowhere;
    POINT(scale, y);
    POINT(divide, y);
#undef POINT
#define POINTS(name, ...)                                                                                    \
    if (s->kernel == ZB_KERNEL_##name) a->name = (zb_##name##_args){ __VA_ARGS__ }
#define AT(member) .member = (void *)s->nowhere
    POINTS(matmul, AT(a), AT(b), AT(c), AT(bias));
    POINTS(linear_forward, AT(x), AT(w), AT(b), AT(y));
    POINTS(linear_backward_input, AT(dy), AT(w), AT(dx));
    POINTS(linear_backward_weight, AT(dy), AT(x), AT(dw));
    POINTS(linear_backward_bias, AT(dy), AT(db));
    POINTS(conv2d_forward, AT(x), AT(w), AT(b), AT(y), AT(workspace));
    POINTS(conv2d_backward_input, AT(dy), AT(w), AT(dx), AT(workspace));
    POINTS(conv2d_backward_weight, AT(dy), AT(x), AT(dw), AT(workspace));
    POINTS(conv2d_backward_bias, AT(dy), AT(db));
    POINTS(maxpool2d_forward, AT(x), AT(y), AT(argmax));
    POINTS(maxpool2d_backward, AT(dy), AT(argmax), AT(dx));
    POINTS(relu_forward, AT(x), AT(y));
    POINTS(relu_backward, AT(y), AT(dy), AT(dx));
    POINTS(cross_entropy_forward, AT(x), AT(labels), AT(log_probs), AT(row_loss), AT(loss));
    POINTS(cross_entropy_backward, AT(log_probs), AT(labels), AT(dx));
    POINTS(mse_forward, AT(x), AT(t), AT(loss));
    POINTS(mse_backward, AT(x), AT(t), AT(dx), .seed = 1, .divisor = 1);
    POINTS(sum_squares, AT(x), AT(accumulator));
    POINTS(norm, AT(x), AT(norm));
    POINTS(find_nonfinite, AT(x), AT(flag));
    POINTS(adam, AT(p), AT(grad), AT(m), AT(v), AT(param));
    POINTS(sgd, AT(p), AT(grad), AT(buf), AT(param));
    POINTS(adagrad, AT(p), AT(grad), AT(sum), AT(param), .eps = 1);
    POINTS(lion, AT(p), AT(grad), AT(m), AT(param));
    POINTS(lamb_moments, AT(p), AT(grad), AT(m), AT(v), AT(accumulators));
    POINTS(lamb_apply, AT(p), AT(m), AT(v), AT(param));
    POINTS(ordered_reduce, AT(out));
    POINTS(tree_reduce, AT(out));
#undef POINTS
#undef AT
}

void draw_launch(drawn_launch *s, zb_kernel kernel, uint64_t round, int over_nothing, char *nowhere)
{
    memset(s, 0, sizeof *s);
    s->kernel = kernel;
    s->round = (int)round;
    s->nowhere = nowhere;
    s->args_bytes = args_bytes[kernel];
    s->r.state = (round * 1000 + (unsigned)kernel + 1) * UINT64_C(0x9E3779B97F4A7C15); /* bits all over */
    s->dtype = tensor_dtypes[round % TENSOR_DTYPES], s->second = any_tensor(s);
    s->finite = kernel == ZB_KERNEL_find_nonfinite && round % 2;
    point_nowhere(s);
    draw_numel(s, over_nothing ? 0 : size_below(s, 100));
    if (!over_nothing) draw_special(s);
    draw_scalars(s);
}

/* --- arrays --- */

static int is_one_of(const char *name, const char *names)
{
    char word[32];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(names, word) != NULL;
}

size_t drawn_element_bytes(const drawn_launch *s, const char *name)
{
    if (s->kernel == ZB_KERNEL_fill_bytes || s->kernel == ZB_KERNEL_copy || strcmp(name, "flag") == 0)
        return 1;
    if (is_one_of(name, " accumulator accumulators norm ")) return 8;
    if (is_one_of(name, " labels argmax log_probs row_loss loss t m v buf sum p workspace ")) return 4;
    if (is_one_of(name, " param from ") || (s->kernel == ZB_KERNEL_add && strcmp(name, "x") == 0))
        return zb_dtype_bytes(s->second);
    return zb_dtype_bytes(s->dtype);
}

/* Numbers near 1 in every floating type; 16-bit words above that decide about fp32 and fp64. */
void draw_contents(drawn_launch *s, const char *name, size_t bytes, char *contents)
{
    uint16_t *words = (uint16_t *)(void *)contents;
    for (size_t i = 0; i < (bytes + 1) / 2; i++) words[i] = (uint16_t)(0x3f80 + rng_below(&s->r, 0x60));
    if (is_one_of(name, " labels argmax "))
        for (size_t i = 0; i < bytes / 4; i++)
            ((int32_t *)(void *)contents)[i] = (int32_t)rng_below(&s->r, s->limit);
    /* What is no number reaches the counters of infinities and NaNs, and the flag. */
    const int squares = s->kernel == ZB_KERNEL_sum_squares ||
                        (s->kernel == ZB_KERNEL_find_nonfinite && !s->finite);
    if ((squares && strcmp(name, "x") == 0) ||
        (s->kernel == ZB_KERNEL_lamb_moments && strcmp(name, "p") == 0))
        memset(contents, 0xff, drawn_element_bytes(s, name));
}
