/*
 * Products, layers, convolutions, pooling and losses: the CUDA kernels, run on the CPU (sim/simt), against
 * the CPU's own. Both get the same inputs and results with the same leftovers; every bit of the results must
 * agree.
 */
#include "tests/kernels/support.h"

#include <stdio.h>
#include <string.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"

/* --- results, twice --- */

typedef struct result {
    zb_dtype dtype;
    size_t numel;
    void *cpu, *cuda;
} result;

static result result_of(rng *r, zb_dtype dtype, size_t numel)
{
    const size_t bytes = zb_dtype_bytes(dtype);
    const size_t offset = rng_below(r, 4);
    result x = { dtype, numel, guarded(numel, bytes, offset), guarded(numel, bytes, offset) };
    for (size_t i = 0; i < numel * bytes; i++) ((uint8_t *)x.cpu)[i] = (uint8_t)rng_next(r);
    if (numel > 0) memcpy(x.cuda, x.cpu, numel * bytes);
    return x;
}

static uint32_t result_bits(const result *x, const void *data, size_t i)
{
    return zb_dtype_bytes(x->dtype) == 4 ? ((const uint32_t *)data)[i] : ((const uint16_t *)data)[i];
}

static int is_nan(zb_dtype dtype, uint32_t bits)
{
    switch (dtype) {
    case ZB_FP32:
        return (bits & 0x7fffffff) > 0x7f800000;
    case ZB_FP16:
        return (bits & 0x7fff) > 0x7c00;
    case ZB_BF16:
        return (bits & 0x7fff) > 0x7f80;
    default:
        return 0;
    }
}

static void assert_same(const result *x, const char *what, const char *name)
{
    for (size_t i = 0; i < x->numel; i++) {
        const uint32_t want = result_bits(x, x->cpu, i), got = result_bits(x, x->cuda, i);
        if (got != want && !(is_nan(x->dtype, got) && is_nan(x->dtype, want)))
            fail_msg("%s of %s: element %zu of %zu is %08x, want %08x", what, name, i, x->numel, got, want);
    }
}

static void result_free(result *x)
{
    guarded_free(x->cpu), guarded_free(x->cuda);
}

#define RUN_CUDA(name, ...)                                                                                  \
    assert_ok(                                                                                               \
        zb_cuda_launch(NULL, ZB_KERNEL_##name, &(zb_##name##_args)__VA_ARGS__, sizeof(zb_##name##_args)))

/* --- matmul --- */

typedef struct layout {
    const char *name;
    int transposed; /* neighbours are rows */
    size_t step;    /* from neighbour to neighbour */
    size_t room;    /* more than dense, between the others */
} layout;
static const layout layouts[] = {
    { "rows", 0, 1, 0 },         { "rows, padded", 0, 1, 4 },    { "rows, odd padding", 0, 1, 3 },
    { "columns", 1, 1, 0 },      { "columns, padded", 1, 1, 4 }, { "columns, odd padding", 1, 1, 5 },
    { "every second", 0, 2, 1 },
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

typedef struct operand {
    tensor values;
    size_t row, column; /* strides */
} operand;

/* Half of them aligned to 16 bytes, as vectors want it. */
static operand operand_of(rng *r, const layout *l, zb_dtype dtype, fill_kind kind, size_t rows,
                          size_t columns)
{
    const size_t lines = l->transposed ? columns : rows, along = l->transposed ? rows : columns;
    const size_t stride = along * l->step + l->room;
    operand x = { .row = l->transposed ? l->step : stride, .column = l->transposed ? stride : l->step };
    x.values = tensor_random(r, dtype, kind, lines * stride);
    if (rng_below(r, 2)) {
        const size_t bytes = zb_dtype_bytes(dtype);
        void *aligned = guarded(lines * stride, bytes, 0);
        memcpy(aligned, x.values.data, lines * stride * bytes);
        guarded_free(x.values.data);
        x.values.data = aligned;
    }
    return x;
}

typedef struct matmul_case {
    size_t m, n, k;
    const layout *a, *b;
    zb_dtype dtype;
    fill_kind kind;
    int bias, accumulate;
    zb_tile_size size;
} matmul_case;

static void check_matmul(rng *r, const matmul_case *t)
{
    char name[160];
    snprintf(name, sizeof name, "matmul %zux%zux%zu %s, %s, %s, %s%s%s, tile %d", t->m, t->n, t->k,
             zb_dtype_name(t->dtype), fill_name(t->kind), t->a->name, t->b->name, t->bias ? ", bias" : "",
             t->accumulate ? ", accumulating" : "", (int)t->size);
    operand a = operand_of(r, t->a, t->dtype, t->kind, t->m, t->k),
            b = operand_of(r, t->b, t->dtype, t->kind, t->k, t->n);
    tensor bias = tensor_random(r, t->dtype, t->kind, t->n);
    const size_t c_row = t->n + rng_below(r, 3);
    result c = result_of(r, t->dtype, t->m * c_row);
    zb_matmul_args args = { .dtype = t->dtype,
                            .m = t->m,
                            .n = t->n,
                            .k = t->k,
                            .a = a.values.data,
                            .a_row = a.row,
                            .a_col = a.column,
                            .b = b.values.data,
                            .b_row = b.row,
                            .b_col = b.column,
                            .c = c.cpu,
                            .c_row = c_row,
                            .bias = t->bias ? bias.data : NULL,
                            .accumulate = t->accumulate };
    assert_ok(zb_cpu_matmul(&args));
    args.c = c.cuda;
    assert_ok(t->size == ZB_TILE_SIZES ? zb_cuda_launch(NULL, ZB_KERNEL_matmul, &args, sizeof args)
                                       : zb_cuda_matmul_in(NULL, &args, t->size));
    assert_same(&c, "c", name);
    result_free(&c), tensor_free(&a.values), tensor_free(&b.values), tensor_free(&bias);
}

static matmul_case random_case(rng *r, zb_tile_size size, size_t m, size_t n, size_t k)
{
    matmul_case t = { .m = m, .n = n, .k = k, .size = size };
    t.a = &layouts[rng_below(r, LAYOUTS)], t.b = &layouts[rng_below(r, LAYOUTS)];
    t.dtype = tensor_dtypes[rng_below(r, TENSOR_DTYPES)];
    t.kind = (fill_kind)rng_below(r, FILL_KINDS);
    t.bias = (int)rng_below(r, 2);
    t.accumulate = t.dtype == ZB_FP32 && rng_below(r, 2);
    return t;
}

/* Every loader of every tile, in every type: all pairs of layouts, over edges in m, n and k. */
static void matmul_layouts(void **state)
{
    (void)state;
    static const size_t edges[ZB_TILE_SIZES][2] = { { 132, 256 }, { 63, 68 }, { 17, 132 }, { 15, 33 } };
    rng r = { 71 };
    for (int size = 0; size < ZB_TILE_SIZES; size++)
        for (size_t pair = 0; pair < LAYOUTS * LAYOUTS; pair++)
            for (int d = 0; d < TENSOR_DTYPES; d++) {
                matmul_case t = random_case(&r, (zb_tile_size)size, edges[size][0], edges[size][1],
                                            8 * (pair % 6) + pair % 3);
                t.a = &layouts[pair / LAYOUTS], t.b = &layouts[pair % LAYOUTS], t.dtype = tensor_dtypes[d];
                t.accumulate = t.dtype == ZB_FP32 && pair % 2;
                check_matmul(&r, &t);
            }
}

/* Around every edge of the tiles, and every depth of the pipeline. */
static void matmul_sizes(void **state)
{
    (void)state;
    static const size_t ms[] = { 1, 15, 16, 17, 31, 33, 64, 65 },
                        ns[] = { 1, 2, 31, 32, 33, 63, 65, 127, 128, 129 };
    static const size_t large[] = { 128, 129, 131, 255, 257 };
    rng r = { 72 };
    for (int size = ZB_TILE_MIDDLE; size < ZB_TILE_SIZES; size++)
        for (size_t i = 0; i < 8; i++)
            for (size_t j = 0; j < 10; j++) {
                const matmul_case t = random_case(&r, (zb_tile_size)size, ms[i], ns[j], rng_below(&r, 50));
                check_matmul(&r, &t);
            }
    for (size_t i = 0; i < 5; i++)
        for (size_t j = 0; j < 5; j++) {
            const matmul_case t = random_case(&r, ZB_TILE_LARGE, large[i], large[j], rng_below(&r, 50));
            check_matmul(&r, &t);
        }
    for (size_t k = 0; k < 50; k++)
        for (int size = ZB_TILE_MIDDLE; size <= ZB_TILE_SIZES; size++) {
            const matmul_case t = random_case(&r, (zb_tile_size)size, 19, 37, k);
            check_matmul(&r, &t);
        }
}

/* A -0 in c must not become +0 where k is no multiple of a slice, and a chain that rounds to -0 stays there.
 */
static void matmul_negative_zero(void **state)
{
    (void)state;
    for (size_t k = 1; k < 12; k++)
        for (int size = ZB_TILE_MIDDLE; size < ZB_TILE_SIZES; size++) {
            float a[12], b[12], c = -0.0f;
            for (size_t p = 0; p < k; p++) a[p] = -0x1p-100f, b[p] = 0x1p-100f;
            zb_matmul_args args = { .dtype = ZB_FP32,
                                    .m = 1,
                                    .n = 1,
                                    .k = k,
                                    .a = a,
                                    .a_row = k,
                                    .a_col = 1,
                                    .b = b,
                                    .b_row = 1,
                                    .b_col = 1,
                                    .c = &c,
                                    .c_row = 1,
                                    .accumulate = 1 };
            assert_ok(zb_cuda_matmul_in(NULL, &args, (zb_tile_size)size));
            assert_int_equal(bits_of(c), 0x80000000);
        }
}

static void matmul_refusals(void **state)
{
    (void)state;
    float x[1] = { 0 };
    zb_matmul_args args = {
        .dtype = ZB_FP16, .m = 1, .n = 1, .k = 1, .a = x, .b = x, .c = x, .accumulate = 1
    };
    assert_int_equal(zb_cuda_launch(NULL, ZB_KERNEL_matmul, &args, sizeof args), ZB_UNSUPPORTED);
    args.accumulate = 0, args.dtype = ZB_FP64;
    assert_int_equal(zb_cuda_launch(NULL, ZB_KERNEL_matmul, &args, sizeof args), ZB_UNSUPPORTED);
    args.dtype = ZB_FP32;
    assert_int_equal(zb_cuda_matmul_in(NULL, &args, ZB_TILE_LARGE), ZB_INVALID_ARGUMENT);
    args.m = 0, args.c = NULL;
    assert_ok(zb_cuda_launch(NULL, ZB_KERNEL_matmul, &args, sizeof args));
}

/* What fills a GPU gets large tiles; what does not, smaller ones. */
static void matmul_choice(void **state)
{
    (void)state;
    assert_int_equal(zb_tile_size_for(4096, 4096), ZB_TILE_LARGE);
    assert_int_equal(zb_tile_size_for(1024, 1024), ZB_TILE_MIDDLE);
    assert_int_equal(zb_tile_size_for(16, 100000), ZB_TILE_WIDE);
    assert_int_equal(zb_tile_size_for(4, 120), ZB_TILE_SMALL);
    assert_int_equal(zb_tile_size_for(100, 4000000), ZB_TILE_MIDDLE);
}

/* --- layers --- */

static void check_linear(rng *r, zb_dtype dtype, fill_kind kind, size_t rows, size_t in, size_t out)
{
    char name[96];
    snprintf(name, sizeof name, "linear %zu rows, %zu -> %zu, %s, %s", rows, in, out, zb_dtype_name(dtype),
             fill_name(kind));
    tensor x = tensor_random(r, dtype, kind, rows * in), w = tensor_random(r, dtype, kind, out * in),
           b = tensor_random(r, dtype, kind, out), dy = tensor_random(r, dtype, kind, rows * out);
    const void *bias = rng_below(r, 3) ? b.data : NULL;
    result y = result_of(r, dtype, rows * out), dx = result_of(r, dtype, rows * in),
           dw = result_of(r, dtype, out * in), db = result_of(r, dtype, out);
    assert_ok(zb_cpu_linear_forward(
        &(zb_linear_forward_args){ dtype, rows, in, out, x.data, w.data, bias, y.cpu }));
    RUN_CUDA(linear_forward, { dtype, rows, in, out, x.data, w.data, bias, y.cuda });
    assert_ok(zb_cpu_linear_backward_input(
        &(zb_linear_backward_input_args){ dtype, rows, in, out, dy.data, w.data, dx.cpu }));
    RUN_CUDA(linear_backward_input, { dtype, rows, in, out, dy.data, w.data, dx.cuda });
    assert_ok(zb_cpu_linear_backward_weight(
        &(zb_linear_backward_weight_args){ dtype, rows, in, out, dy.data, x.data, dw.cpu }));
    RUN_CUDA(linear_backward_weight, { dtype, rows, in, out, dy.data, x.data, dw.cuda });
    assert_ok(
        zb_cpu_linear_backward_bias(&(zb_linear_backward_bias_args){ dtype, rows, out, dy.data, db.cpu }));
    RUN_CUDA(linear_backward_bias, { dtype, rows, out, dy.data, db.cuda });
    assert_same(&y, "y", name), assert_same(&dx, "dx", name), assert_same(&dw, "dw", name),
        assert_same(&db, "db", name);
    result_free(&y), result_free(&dx), result_free(&dw), result_free(&db);
    tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&dy);
}

static void linear(void **state)
{
    (void)state;
    static const size_t shapes[][3] = { { 1, 1, 1 },   { 4, 84, 10 }, { 4, 400, 120 }, { 33, 20, 31 },
                                        { 31, 7, 64 }, { 64, 50, 3 }, { 100, 9, 65 },  { 0, 5, 6 },
                                        { 7, 0, 5 },   { 3, 4, 0 } };
    rng r = { 73 };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int c = 0; c < FILL_KINDS * TENSOR_DTYPES; c++)
            check_linear(&r, tensor_dtypes[c % TENSOR_DTYPES], (fill_kind)(c / TENSOR_DTYPES), shapes[s][0],
                         shapes[s][1], shapes[s][2]);
}

/* --- convolution --- */

static const struct conv_case {
    const char *name;
    size_t rows, ic, ih, iw, oc, kernel, stride, padding;
} conv_cases[] = {
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

static void check_conv2d(rng *r, const struct conv_case *t, zb_dtype dtype, fill_kind kind)
{
    const zb_conv2d_shape g = { t->rows,
                                t->ic,
                                t->ih,
                                t->iw,
                                t->oc,
                                (t->ih + 2 * t->padding - t->kernel) / t->stride + 1,
                                (t->iw + 2 * t->padding - t->kernel) / t->stride + 1,
                                t->kernel,
                                t->stride,
                                t->padding };
    const size_t in = g.rows * g.ic * g.ih * g.iw, out = g.rows * g.oc * g.oh * g.ow,
                 weights = g.oc * g.ic * g.kernel * g.kernel;
    float *room = guarded_floats(zb_conv2d_workspace_numel(&g), 0);
    tensor x = tensor_random(r, dtype, kind, in), w = tensor_random(r, dtype, kind, weights),
           b = tensor_random(r, dtype, kind, g.oc), dy = tensor_random(r, dtype, kind, out);
    const void *bias = rng_below(r, 3) ? b.data : NULL;
    result y = result_of(r, dtype, out), dx = result_of(r, dtype, in), dw = result_of(r, dtype, weights),
           db = result_of(r, dtype, g.oc);
    assert_ok(
        zb_cpu_conv2d_forward(&(zb_conv2d_forward_args){ dtype, g, x.data, w.data, bias, y.cpu, room }));
    RUN_CUDA(conv2d_forward, { dtype, g, x.data, w.data, bias, y.cuda, NULL });
    assert_ok(zb_cpu_conv2d_backward_input(
        &(zb_conv2d_backward_input_args){ dtype, g, dy.data, w.data, dx.cpu, room }));
    RUN_CUDA(conv2d_backward_input, { dtype, g, dy.data, w.data, dx.cuda, NULL });
    assert_ok(zb_cpu_conv2d_backward_weight(
        &(zb_conv2d_backward_weight_args){ dtype, g, dy.data, x.data, dw.cpu, room }));
    RUN_CUDA(conv2d_backward_weight, { dtype, g, dy.data, x.data, dw.cuda, NULL });
    assert_ok(zb_cpu_conv2d_backward_bias(&(zb_conv2d_backward_bias_args){ dtype, g, dy.data, db.cpu }));
    RUN_CUDA(conv2d_backward_bias, { dtype, g, dy.data, db.cuda });
    assert_same(&y, "y", t->name), assert_same(&dx, "dx", t->name), assert_same(&dw, "dw", t->name),
        assert_same(&db, "db", t->name);
    result_free(&y), result_free(&dx), result_free(&dw), result_free(&db);
    tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&dy);
    guarded_free(room);
}

static void convolution(void **state)
{
    (void)state;
    rng r = { 74 };
    for (size_t s = 0; s < sizeof conv_cases / sizeof conv_cases[0]; s++)
        for (int c = 0; c < FILL_KINDS * TENSOR_DTYPES; c++)
            check_conv2d(&r, &conv_cases[s], tensor_dtypes[c % TENSOR_DTYPES],
                         (fill_kind)(c / TENSOR_DTYPES));
}

static void convolution_random(void **state)
{
    (void)state;
    rng r = { 75 };
    for (int i = 0; i < 150; i++) {
        const size_t kernel = 1 + rng_below(&r, 5), padding = rng_below(&r, 4);
        const size_t smallest = kernel > 2 * padding ? kernel - 2 * padding : 1;
        const struct conv_case t = { "a random convolution",
                                     1 + rng_below(&r, 4),
                                     1 + rng_below(&r, 5),
                                     smallest + rng_below(&r, 9),
                                     smallest + rng_below(&r, 9),
                                     1 + rng_below(&r, 20),
                                     kernel,
                                     1 + rng_below(&r, 4),
                                     padding };
        check_conv2d(&r, &t, tensor_dtypes[rng_below(&r, TENSOR_DTYPES)],
                     (fill_kind)rng_below(&r, FILL_KINDS));
    }
}

/* Enough pixels for the wide and the middle tile. */
static void convolution_tiles(void **state)
{
    (void)state;
    static const struct conv_case wide = { "wide tiles", 9, 2, 32, 32, 16, 3, 1, 1 },
                                  middle = { "middle tiles", 9, 4, 31, 31, 60, 3, 1, 1 };
    assert_int_equal(zb_tile_size_for(16, 9 * 32 * 32), ZB_TILE_WIDE);
    assert_int_equal(zb_tile_size_for(60, 9 * 31 * 31), ZB_TILE_MIDDLE);
    rng r = { 76 };
    for (int d = 0; d < TENSOR_DTYPES; d++) {
        check_conv2d(&r, &wide, tensor_dtypes[d], (fill_kind)d);
        check_conv2d(&r, &middle, tensor_dtypes[d], (fill_kind)d);
    }
}

static void convolution_refusals(void **state)
{
    (void)state;
    const zb_conv2d_shape huge = { 1 << 20, 1, 64, 64, 1, 64, 64, 1, 1, 0 };
    const zb_conv2d_forward_args args = { .dtype = ZB_FP32, .shape = huge };
    assert_int_equal(zb_cuda_launch(NULL, ZB_KERNEL_conv2d_forward, &args, sizeof args), ZB_UNSUPPORTED);
}

/* --- pooling --- */

static void check_maxpool2d(rng *r, const zb_maxpool2d_shape *s, zb_dtype dtype, fill_kind kind)
{
    char name[96];
    snprintf(name, sizeof name, "maxpool %zux%zu, kernel %zu, stride %zu, %s, %s", s->ih, s->iw, s->kernel,
             s->stride, zb_dtype_name(dtype), fill_name(kind));
    const size_t planes = s->rows * s->channels, in = planes * s->ih * s->iw, out = planes * s->oh * s->ow;
    tensor x = tensor_random(r, dtype, kind, in), dy = tensor_random(r, dtype, kind, out);
    result y = result_of(r, dtype, out), argmax = result_of(r, ZB_INT32, out), dx = result_of(r, dtype, in);
    assert_ok(zb_cpu_maxpool2d_forward(&(zb_maxpool2d_forward_args){ dtype, *s, x.data, y.cpu, argmax.cpu }));
    RUN_CUDA(maxpool2d_forward, { dtype, *s, x.data, y.cuda, argmax.cuda });
    assert_same(&y, "y", name), assert_same(&argmax, "argmax", name);
    assert_ok(
        zb_cpu_maxpool2d_backward(&(zb_maxpool2d_backward_args){ dtype, *s, dy.data, argmax.cpu, dx.cpu }));
    RUN_CUDA(maxpool2d_backward, { dtype, *s, dy.data, argmax.cuda, dx.cuda });
    assert_same(&dx, "dx", name);
    result_free(&y), result_free(&argmax), result_free(&dx);
    tensor_free(&x), tensor_free(&dy);
}

static void pooling(void **state)
{
    (void)state;
    static const size_t shapes[][6] = {
        /* rows, channels, height, width, kernel, stride */
        { 2, 6, 28, 28, 2, 2 }, { 2, 16, 10, 10, 2, 2 }, { 1, 1, 1, 1, 1, 1 },  { 1, 2, 7, 9, 3, 1 },
        { 2, 1, 9, 6, 3, 2 },   { 1, 1, 11, 12, 4, 1 },  { 1, 3, 10, 7, 2, 3 }, { 1, 1, 8, 8, 8, 1 },
        { 0, 1, 4, 4, 2, 2 },   { 1, 1, 20, 20, 3, 2 }
    };
    rng r = { 77 };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int c = 0; c < FILL_KINDS * TENSOR_DTYPES; c++) {
            const size_t *s = shapes[i];
            const zb_maxpool2d_shape shape = {
                s[0], s[1], s[2], s[3], (s[2] - s[4]) / s[5] + 1, (s[3] - s[4]) / s[5] + 1, s[4], s[5]
            };
            check_maxpool2d(&r, &shape, tensor_dtypes[c % TENSOR_DTYPES], (fill_kind)(c / TENSOR_DTYPES));
        }
}

/* --- losses --- */

static void check_cross_entropy(rng *r, zb_dtype dtype, size_t rows, size_t classes, fill_kind kind,
                                float spread)
{
    char name[96];
    snprintf(name, sizeof name, "cross entropy %zux%zu, %s, %s", rows, classes, zb_dtype_name(dtype),
             fill_name(kind));
    const size_t numel = rows * classes;
    tensor x = tensor_random(r, dtype, kind, numel);
    if (dtype == ZB_FP32)
        for (size_t i = 0; i < numel; i++) ((float *)x.data)[i] *= spread;
    int32_t *labels = guarded(rows, sizeof *labels, 1);
    for (size_t i = 0; i < rows; i++) labels[i] = (int32_t)rng_below(r, classes);
    result log_probs = result_of(r, ZB_FP32, numel), row_loss = result_of(r, ZB_FP32, rows),
           loss = result_of(r, ZB_FP32, 1), dx = result_of(r, dtype, numel);
    assert_ok(zb_cpu_cross_entropy_forward(&(zb_cross_entropy_forward_args){
        dtype, rows, classes, x.data, labels, log_probs.cpu, row_loss.cpu, loss.cpu }));
    RUN_CUDA(cross_entropy_forward,
             { dtype, rows, classes, x.data, labels, log_probs.cuda, row_loss.cuda, loss.cuda });
    assert_same(&log_probs, "log_probs", name), assert_same(&row_loss, "row_loss", name),
        assert_same(&loss, "loss", name);
    const float seed = rng_float(r, FILL_WIDE), divisor = rng_below(r, 2) ? 1 : 3;
    assert_ok(zb_cpu_cross_entropy_backward(&(zb_cross_entropy_backward_args){
        dtype, rows, classes, log_probs.cpu, labels, seed, divisor, dx.cpu }));
    RUN_CUDA(cross_entropy_backward,
             { dtype, rows, classes, log_probs.cuda, labels, seed, divisor, dx.cuda });
    assert_same(&dx, "dx", name);
    result_free(&log_probs), result_free(&row_loss), result_free(&loss), result_free(&dx);
    tensor_free(&x), guarded_free(labels);
}

static void cross_entropy(void **state)
{
    (void)state;
    static const size_t shapes[][2] = { { 1, 1 },    { 1, 2 },    { 4, 10 }, { 33, 10 },
                                        { 100, 31 }, { 5, 32 },   { 5, 33 }, { 3, 1000 },
                                        { 2, 300 },  { 4100, 2 }, { 0, 3 } };
    rng r = { 78 };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int kind = 0; kind < FILL_KINDS; kind++)
            for (int d = 0; d < TENSOR_DTYPES; d++)
                check_cross_entropy(&r, tensor_dtypes[d], shapes[s][0], shapes[s][1], (fill_kind)kind,
                                    d % 2 ? 1 : 60);
}

static void mean_squared_error(void **state)
{
    (void)state;
    static const size_t sizes[] = { 0, 1, 31, 32, 33, 3839, 3840, 3841, 7680, 7713, 20011 };
    rng r = { 79 };
    for (size_t c = 0; c < sizeof sizes / sizeof sizes[0] * FILL_KINDS * TENSOR_DTYPES; c++) {
        const size_t n = sizes[c / TENSOR_DTYPES / FILL_KINDS];
        const zb_dtype dtype = tensor_dtypes[c % TENSOR_DTYPES];
        const fill_kind kind = (fill_kind)(c / TENSOR_DTYPES % FILL_KINDS);
        tensor x = tensor_random(&r, dtype, kind, n);
        float *t = guarded_floats(n, rng_below(&r, 4));
        fill(&r, kind, t, n);
        result loss = result_of(&r, ZB_FP32, 1), dx = result_of(&r, dtype, n);
        const float seed = rng_float(&r, FILL_WIDE), divisor = rng_below(&r, 2) ? 1 : 3;
        assert_ok(zb_cpu_mse_forward(&(zb_mse_forward_args){ dtype, n, x.data, t, loss.cpu }));
        RUN_CUDA(mse_forward, { dtype, n, x.data, t, loss.cuda });
        assert_ok(zb_cpu_mse_backward(&(zb_mse_backward_args){ dtype, n, x.data, t, seed, divisor, dx.cpu }));
        RUN_CUDA(mse_backward, { dtype, n, x.data, t, seed, divisor, dx.cuda });
        assert_same(&loss, "loss of mse", fill_name(kind)), assert_same(&dx, "dx of mse", fill_name(kind));
        result_free(&loss), result_free(&dx), tensor_free(&x), guarded_free(t);
    }
}

/* exp alone: the gradient with seed 1 and divisor 1, of one row. All kinds of arguments. */
static void exponentials(void **state)
{
    (void)state;
    enum { COUNT = 200000 };
    /* The three fp32 arguments whose rounding the fast path leaves in doubt, of all 2^32. */
    static const float in_doubt[] = { -0x1.c1c4b8p-10f, -0x1.e1dbe2p-8f, -0x1.d2259ap+3f };
    rng r = { 80 };
    float *x = guarded_floats(COUNT, 1);
    for (size_t i = 0; i < COUNT; i++)
        x[i] = i % 2 ? rng_float(&r, FILL_UNIFORM) * 110 : rng_float(&r, (fill_kind)(i / 2 % FILL_KINDS));
    memcpy(x, in_doubt, sizeof in_doubt);
    const int32_t label = COUNT - 1;
    result dx = result_of(&r, ZB_FP32, COUNT);
    assert_ok(zb_cpu_cross_entropy_backward(
        &(zb_cross_entropy_backward_args){ ZB_FP32, 1, COUNT, x, &label, 1, 1, dx.cpu }));
    RUN_CUDA(cross_entropy_backward, { ZB_FP32, 1, COUNT, x, &label, 1, 1, dx.cuda });
    assert_same(&dx, "exp", "a sample");
    result_free(&dx), guarded_free(x);
}

/* log alone: of 1 + exp(x), and of the one sum up to 32 whose logarithm the fast path leaves in doubt. */
static void logarithms(void **state)
{
    (void)state;
    enum { ROWS = 20000, CLASSES = 10 };
    rng r = { 81 };
    float *x = guarded_floats(ROWS * CLASSES, 1);
    int32_t *labels = guarded(ROWS, sizeof *labels, 0);
    for (size_t i = 0; i < ROWS * CLASSES; i++)
        x[i] = i % CLASSES < 2 + i / CLASSES % 8 ? rng_float(&r, FILL_UNIFORM) * 20 : -200;
    for (size_t i = 0; i < ROWS; i++) labels[i] = (int32_t)rng_below(&r, CLASSES);
    const float in_doubt[CLASSES] = { -0x1.7fb51cp-1f }; /* and nine 0: the sum is 0x1.2f1fd6p+3 */
    memcpy(x, in_doubt, sizeof in_doubt);
    result log_probs = result_of(&r, ZB_FP32, ROWS * CLASSES), row_loss = result_of(&r, ZB_FP32, ROWS),
           loss = result_of(&r, ZB_FP32, 1);
    assert_ok(zb_cpu_cross_entropy_forward(&(zb_cross_entropy_forward_args){
        ZB_FP32, ROWS, CLASSES, x, labels, log_probs.cpu, row_loss.cpu, loss.cpu }));
    RUN_CUDA(cross_entropy_forward,
             { ZB_FP32, ROWS, CLASSES, x, labels, log_probs.cuda, row_loss.cuda, loss.cuda });
    assert_same(&log_probs, "log_probs", "a sample"), assert_same(&row_loss, "row_loss", "a sample");
    result_free(&log_probs), result_free(&row_loss), result_free(&loss);
    guarded_free(x), guarded_free(labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_layouts),
        cmocka_unit_test(matmul_sizes),
        cmocka_unit_test(matmul_negative_zero),
        cmocka_unit_test(matmul_refusals),
        cmocka_unit_test(matmul_choice),
        cmocka_unit_test(linear),
        cmocka_unit_test(convolution),
        cmocka_unit_test(convolution_random),
        cmocka_unit_test(convolution_tiles),
        cmocka_unit_test(convolution_refusals),
        cmocka_unit_test(pooling),
        cmocka_unit_test(cross_entropy),
        cmocka_unit_test(mean_squared_error),
        cmocka_unit_test(exponentials),
        cmocka_unit_test(logarithms),
    };
    return cmocka_run_group_tests_name("cuda_matrix", tests, NULL, NULL);
}
