/* Convolution and pooling. */
#include <stdlib.h>

#include "kernels/cuda/matmul.h"
#include "tests/cuda/harness.h"

/* --- convolution --- */

typedef struct conv_case {
    const char *name;
    size_t rows, ic, ih, iw, oc, kernel, stride, padding;
} conv_case;
static const conv_case conv_cases[] = {
    { "one pixel", 1, 1, 1, 1, 1, 1, 1, 0 },
    { "cifar conv1", 2, 3, 32, 32, 6, 5, 1, 0 },
    { "cifar conv2", 2, 6, 14, 14, 16, 5, 1, 0 },
    { "padding keeps the size", 2, 3, 7, 7, 4, 3, 1, 1 },
    { "padding wider than needed", 1, 2, 4, 4, 3, 3, 1, 3 },
    { "stride 2", 2, 2, 9, 9, 3, 3, 2, 0 },
    { "stride 2 with padding", 3, 2, 8, 8, 5, 3, 2, 1 },
    { "stride 3 leaves columns unseen", 1, 2, 9, 9, 3, 2, 3, 0 },
    { "stride beyond the kernel", 1, 1, 10, 10, 2, 1, 4, 2 },
    { "not square", 2, 2, 6, 11, 3, 3, 2, 1 },
    { "many channels", 1, 20, 5, 5, 40, 3, 1, 1 },
    { "no images", 0, 2, 5, 5, 3, 3, 1, 0 },
    { "no input channels", 2, 0, 5, 5, 3, 3, 1, 0 },
};

static zb_conv2d_shape shape_of(const conv_case *c)
{
    return (zb_conv2d_shape){ .rows = c->rows,
                              .ic = c->ic,
                              .ih = c->ih,
                              .iw = c->iw,
                              .oc = c->oc,
                              .oh = (c->ih + 2 * c->padding - c->kernel) / c->stride + 1,
                              .ow = (c->iw + 2 * c->padding - c->kernel) / c->stride + 1,
                              .kernel = c->kernel,
                              .stride = c->stride,
                              .padding = c->padding };
}

/* The CPU needs room, the device none. */
#define ROOM (side == ON_CPU ? room : NULL)

static void run_forward(rng *r, const conv_case *c, zb_dtype dtype, fill_kind kind, float *room)
{
    const zb_conv2d_shape s = shape_of(c);
    const int has_bias = rng_below(r, 3) != 0;
    trial t = trial_begin(r, "conv2d forward, %s, %s, %s", c->name, zb_dtype_name(dtype), fill_name(kind));
    array *x = trial_array(&t, "x", dtype, s.rows * s.ic * s.ih * s.iw, kind),
          *w = trial_array(&t, "w", dtype, s.oc * s.ic * s.kernel * s.kernel, kind),
          *b = trial_array(&t, "b", dtype, s.oc, kind),
          *y = trial_output(&t, "y", dtype, s.rows * s.oc * s.oh * s.ow);
    TRIAL_RUN(&t, conv2d_forward, dtype, s, AT(x), AT(w), has_bias ? AT(b) : NULL, AT(y), ROOM);
}

static void run_backward(rng *r, const conv_case *c, zb_dtype dtype, fill_kind kind, float *room)
{
    const zb_conv2d_shape s = shape_of(c);
    const size_t in = s.rows * s.ic * s.ih * s.iw, out = s.rows * s.oc * s.oh * s.ow,
                 weights = s.oc * s.ic * s.kernel * s.kernel;
    trial t = trial_begin(r, "conv2d backward to the input, %s, %s, %s", c->name, zb_dtype_name(dtype),
                          fill_name(kind));
    array *dy = trial_array(&t, "dy", dtype, out, kind), *w = trial_array(&t, "w", dtype, weights, kind),
          *dx = trial_output(&t, "dx", dtype, in);
    TRIAL_RUN(&t, conv2d_backward_input, dtype, s, AT(dy), AT(w), AT(dx), ROOM);
    t = trial_begin(r, "conv2d backward to the weight, %s, %s, %s", c->name, zb_dtype_name(dtype),
                    fill_name(kind));
    dy = trial_array(&t, "dy", dtype, out, kind);
    array *x = trial_array(&t, "x", dtype, in, kind), *dw = trial_output(&t, "dw", dtype, weights);
    TRIAL_RUN(&t, conv2d_backward_weight, dtype, s, AT(dy), AT(x), AT(dw), ROOM);
    t = trial_begin(r, "conv2d backward to the bias, %s, %s, %s", c->name, zb_dtype_name(dtype),
                    fill_name(kind));
    dy = trial_array(&t, "dy", dtype, out, kind);
    array *db = trial_output(&t, "db", dtype, s.oc);
    TRIAL_RUN(&t, conv2d_backward_bias, dtype, s, AT(dy), AT(db));
}

static void run_conv2d(rng *r, const conv_case *c, zb_dtype dtype, fill_kind kind)
{
    const zb_conv2d_shape s = shape_of(c);
    float *room = guarded_floats(zb_conv2d_workspace_numel(&s), 0);
    run_forward(r, c, dtype, kind, room);
    run_backward(r, c, dtype, kind, room);
    guarded_free(room);
}

static void check_conv2d(rng *r)
{
    for (size_t i = 0; i < sizeof conv_cases / sizeof conv_cases[0]; i++)
        for (int c = 0; c < FILL_KINDS * TENSOR_DTYPES; c++)
            run_conv2d(r, &conv_cases[i], tensor_dtypes[c % TENSOR_DTYPES], (fill_kind)(c / TENSOR_DTYPES));
}

static void check_random(rng *r)
{
    for (int i = 0; i < 150; i++) {
        const size_t kernel = 1 + rng_below(r, 5), padding = rng_below(r, 4);
        const size_t smallest = kernel > 2 * padding ? kernel - 2 * padding : 1;
        const conv_case c = { "a random one",
                              1 + rng_below(r, 4),
                              1 + rng_below(r, 5),
                              smallest + rng_below(r, 9),
                              smallest + rng_below(r, 9),
                              1 + rng_below(r, 20),
                              kernel,
                              1 + rng_below(r, 4),
                              padding };
        run_conv2d(r, &c, tensor_dtypes[rng_below(r, TENSOR_DTYPES)], (fill_kind)rng_below(r, FILL_KINDS));
    }
}

/* In each tile: images whose pixels and taps end in the middle of one. */
static void check_tiles(rng *r)
{
    static const conv_case c = { "each tile", 3, 3, 12, 11, 35, 3, 1, 1 };
    for (int tile = ZB_TILE_MIDDLE; tile < ZB_TILE_SIZES; tile++)
        for (int d = 0; d < TENSOR_DTYPES; d++)
            for (int kind = 0; kind < FILL_KINDS; kind++) {
                zb_cuda_set_tile_size((zb_tile_size)tile);
                run_conv2d(r, &c, tensor_dtypes[d], (fill_kind)kind);
                zb_cuda_set_tile_size(ZB_TILE_SIZES);
            }
}

static void check_refused(rng *r)
{
    trial t = trial_begin(r, "a convolution of fp64");
    const zb_conv2d_shape one = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 0 };
    array *x = trial_array(&t, "x", ZB_FP64, 1, FILL_UNIFORM), *y = trial_output(&t, "y", ZB_FP64, 1);
    TRIAL_RUN(&t, conv2d_forward, ZB_FP64, one, AT(x), AT(x), NULL, AT(y), NULL);
    const zb_conv2d_shape huge = {
        1 << 20, 1, 64, 64, 1, 64, 64, 1, 1, 0
    }; /* 2^32 pixels: the device counts to 2^31 */
    const zb_conv2d_forward_args args = { .dtype = ZB_FP32, .shape = huge };
    assert_int_equal(device_under_test.launch(ZB_KERNEL_conv2d_forward, &args, sizeof args), ZB_UNSUPPORTED);
}

/* --- pooling --- */

static void run_pooling(rng *r, const zb_maxpool2d_shape *s, zb_dtype dtype, fill_kind kind)
{
    const size_t planes = s->rows * s->channels, in = planes * s->ih * s->iw, out = planes * s->oh * s->ow;
    trial t = trial_begin(r, "maxpool2d forward of %zux%zu, kernel %zu, stride %zu, %s, %s", s->ih, s->iw,
                          s->kernel, s->stride, zb_dtype_name(dtype), fill_name(kind));
    array *x = trial_array(&t, "x", dtype, in, kind), *y = trial_output(&t, "y", dtype, out),
          *argmax = trial_output(&t, "argmax", ZB_INT32, out);
    void *y_values = guarded(out, zb_dtype_bytes(dtype), 0);
    int32_t *kept = guarded(out, sizeof *kept, 0); /* for the way back */
    assert_ok(
        zb_cpu_maxpool2d_forward(&(zb_maxpool2d_forward_args){ dtype, *s, x->at[ON_CPU], y_values, kept }));
    TRIAL_RUN(&t, maxpool2d_forward, dtype, *s, AT(x), AT(y), AT(argmax));
    t = trial_begin(r, "maxpool2d backward of %zux%zu, kernel %zu, stride %zu, %s, %s", s->ih, s->iw,
                    s->kernel, s->stride, zb_dtype_name(dtype), fill_name(kind));
    array *dy = trial_array(&t, "dy", dtype, out, kind), *dx = trial_output(&t, "dx", dtype, in);
    argmax = trial_values(&t, "argmax", ZB_INT32, out, kept);
    TRIAL_RUN(&t, maxpool2d_backward, dtype, *s, AT(dy), AT(argmax), AT(dx));
    guarded_free(y_values), guarded_free(kept);
}

static void check_pooling(rng *r)
{
    static const size_t shapes[][6] = {
        /* rows, channels, height, width, kernel, stride */
        { 2, 6, 28, 28, 2, 2 }, { 2, 16, 10, 10, 2, 2 }, { 1, 1, 1, 1, 1, 1 },  { 1, 2, 7, 9, 3, 1 },
        { 2, 1, 9, 6, 3, 2 },   { 1, 1, 11, 12, 4, 1 },  { 1, 3, 10, 7, 2, 3 }, { 1, 1, 8, 8, 8, 1 },
        { 0, 1, 4, 4, 2, 2 },   { 1, 1, 20, 20, 3, 2 }
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int c = 0; c < FILL_KINDS * TENSOR_DTYPES; c++) {
            const size_t *s = shapes[i];
            const zb_maxpool2d_shape shape = {
                s[0], s[1], s[2], s[3], (s[2] - s[4]) / s[5] + 1, (s[3] - s[4]) / s[5] + 1, s[4], s[5]
            };
            run_pooling(r, &shape, tensor_dtypes[c % TENSOR_DTYPES], (fill_kind)(c / TENSOR_DTYPES));
        }
}

CUDA_CASE_TABLE(conv2d, { "conv2d", check_conv2d }, { "conv2d, random", check_random },
                { "conv2d, tiles", check_tiles }, { "conv2d, refused", check_refused },
                { "maxpool2d", check_pooling });
