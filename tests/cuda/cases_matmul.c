/* The matrix product, in every tile and with every loader, and the layers made of it. */
#include <stdio.h>

#include "kernels/cuda/matmul.h"
#include "tests/cuda/harness.h"

/* How a matrix lies in memory. */
typedef struct layout {
    const char *name;
    int transposed; /* neighbours are rows of one column, else columns of one row */
    size_t step;    /* from neighbour to neighbour */
    size_t room;    /* elements between the others, more than is dense */
} layout;
static const layout layouts[] = {
    { "rows", 0, 1, 0 },         { "rows, padded", 0, 1, 4 },    { "rows, odd padding", 0, 1, 3 },
    { "columns", 1, 1, 0 },      { "columns, padded", 1, 1, 4 }, { "columns, odd padding", 1, 1, 5 },
    { "every second", 0, 2, 1 },
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

typedef struct strides {
    size_t row, column, numel;
} strides;
static strides strides_of(const layout *l, size_t rows, size_t columns)
{
    const size_t lines = l->transposed ? columns : rows, along = l->transposed ? rows : columns;
    const size_t line = along * l->step + l->room;
    return (strides){ l->transposed ? l->step : line, l->transposed ? line : l->step, lines * line };
}

typedef struct matmul_case {
    size_t m, n, k;
    const layout *a, *b;
    zb_dtype dtype;
    fill_kind kind;
    int bias, accumulate;
    zb_tile_size tile; /* ZB_TILE_SIZES: whichever is chosen */
} matmul_case;

static void run_matmul(rng *r, const matmul_case *c)
{
    trial t = trial_begin(r, "matmul %zux%zux%zu %s, %s, %s, %s%s%s, tile %d", c->m, c->n, c->k,
                          zb_dtype_name(c->dtype), fill_name(c->kind), c->a->name, c->b->name,
                          c->bias ? ", bias" : "", c->accumulate ? ", accumulating" : "", (int)c->tile);
    const strides a_strides = strides_of(c->a, c->m, c->k), b_strides = strides_of(c->b, c->k, c->n);
    const size_t c_row = c->n + rng_below(r, 3);
    array *a = trial_array(&t, "a", c->dtype, a_strides.numel, c->kind),
          *b = trial_array(&t, "b", c->dtype, b_strides.numel, c->kind),
          *bias = trial_array(&t, "bias", c->dtype, c->n, c->kind),
          *out = trial_array(&t, "c", c->dtype, c->m * c_row, c->kind);
    zb_cuda_set_tile_size(c->tile);
    TRIAL_RUN(&t, matmul, c->dtype, c->m, c->n, c->k, AT(a), a_strides.row, a_strides.column, AT(b),
              b_strides.row, b_strides.column, AT(out), c_row, c->bias ? AT(bias) : NULL, c->accumulate);
    zb_cuda_set_tile_size(ZB_TILE_SIZES);
}

static matmul_case random_case(rng *r, zb_tile_size tile, size_t m, size_t n, size_t k)
{
    matmul_case c = { .m = m, .n = n, .k = k, .tile = tile };
    c.a = &layouts[rng_below(r, LAYOUTS)], c.b = &layouts[rng_below(r, LAYOUTS)];
    c.dtype = tensor_dtypes[rng_below(r, TENSOR_DTYPES)];
    c.kind = (fill_kind)rng_below(r, FILL_KINDS);
    c.bias = (int)rng_below(r, 2);
    c.accumulate = c.dtype == ZB_FP32 && rng_below(r, 2);
    return c;
}

static void check_layouts_in(rng *r, zb_tile_size tile, size_t m, size_t n)
{
    for (size_t pair = 0; pair < LAYOUTS * LAYOUTS; pair++)
        for (int d = 0; d < TENSOR_DTYPES; d++) {
            matmul_case c = random_case(r, tile, m, n, 8 * (pair % 6) + pair % 3);
            c.a = &layouts[pair / LAYOUTS], c.b = &layouts[pair % LAYOUTS], c.dtype = tensor_dtypes[d];
            c.accumulate = c.dtype == ZB_FP32 && pair % 2;
            run_matmul(r, &c);
        }
}

/* Every loader of every tile, in every type: all pairs of layouts. */
static void check_layouts(rng *r)
{
    check_layouts_in(r, ZB_TILE_LARGE, 132, 256);
    check_layouts_in(r, ZB_TILE_MIDDLE, 66, 73); /* filled */
    check_layouts_in(r, ZB_TILE_MIDDLE, 63, 68); /* not filled */
    check_layouts_in(r, ZB_TILE_WIDE, 17, 132);
    check_layouts_in(r, ZB_TILE_SMALL, 15, 33);
}

/* Around every edge of the tiles. */
static void check_sizes(rng *r)
{
    static const size_t ms[] = { 1, 15, 16, 17, 31, 33, 64, 65 },
                        ns[] = { 1, 2, 31, 32, 33, 63, 65, 127, 128, 129 };
    static const size_t large[] = { 128, 129, 131, 255, 257 };
    for (int tile = ZB_TILE_MIDDLE; tile < ZB_TILE_SIZES; tile++)
        for (size_t i = 0; i < sizeof ms / sizeof ms[0]; i++)
            for (size_t j = 0; j < sizeof ns / sizeof ns[0]; j++) {
                const matmul_case c = random_case(r, (zb_tile_size)tile, ms[i], ns[j], rng_below(r, 50));
                run_matmul(r, &c);
            }
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++)
        for (size_t j = 0; j < sizeof large / sizeof large[0]; j++) {
            const matmul_case c = random_case(r, ZB_TILE_LARGE, large[i], large[j], rng_below(r, 50));
            run_matmul(r, &c);
        }
}

/* Every remainder of k and every state of the pipeline, and nothing at all. */
static void check_depths(rng *r)
{
    for (size_t k = 0; k < 50; k++)
        for (int tile = ZB_TILE_MIDDLE; tile <= ZB_TILE_SIZES; tile++) {
            const matmul_case c = random_case(r, (zb_tile_size)tile, 19, 37, k);
            run_matmul(r, &c);
        }
    const matmul_case none[] = { random_case(r, ZB_TILE_SIZES, 0, 5, 6),
                                 random_case(r, ZB_TILE_SIZES, 5, 0, 6) };
    run_matmul(r, &none[0]), run_matmul(r, &none[1]);
}

/* -0 in c stays -0 where k is no multiple of a slice: products of -2^-200 round to -0, and +0 times +0 must
 * not follow. */
static void check_negative_zero(rng *r)
{
    for (size_t k = 1; k < 12; k++)
        for (int tile = ZB_TILE_MIDDLE; tile < ZB_TILE_SIZES; tile++) {
            float a[12], b[12], zero = -0.0f;
            for (size_t p = 0; p < k; p++) a[p] = -0x1p-100f, b[p] = 0x1p-100f;
            trial t = trial_begin(r, "-0 over %zu", k);
            array *a_array = trial_values(&t, "a", ZB_FP32, k, a),
                  *b_array = trial_values(&t, "b", ZB_FP32, k, b),
                  *c_array = trial_values(&t, "c", ZB_FP32, 1, &zero);
            zb_cuda_set_tile_size((zb_tile_size)tile);
            TRIAL_RUN(&t, matmul, ZB_FP32, 1, 1, k, AT(a_array), k, 1, AT(b_array), 1, 1, AT(c_array), 1,
                      NULL, 1);
            zb_cuda_set_tile_size(ZB_TILE_SIZES);
        }
}

static void refuse(rng *r, zb_dtype dtype, int accumulate)
{
    trial t = trial_begin(r, "a product of %s that is refused", zb_dtype_name(dtype));
    array *x = trial_array(&t, "x", dtype, 1, FILL_UNIFORM);
    TRIAL_RUN(&t, matmul, dtype, 1, 1, 1, AT(x), 1, 1, AT(x), 1, 1, AT(x), 1, NULL, accumulate);
}
static void check_refused(rng *r)
{
    refuse(r, ZB_FP64, 0), refuse(r, ZB_FP16, 1), refuse(r, ZB_BF16, 1);
    zb_cuda_set_tile_size(ZB_TILE_LARGE); /* larger than the result */
    float x = 0;
    const zb_matmul_args args = { .dtype = ZB_FP32, .m = 127, .n = 128, .k = 1, .a = &x, .b = &x, .c = &x };
    assert_int_equal(device_under_test.launch(ZB_KERNEL_matmul, &args, sizeof args), ZB_INVALID_ARGUMENT);
    zb_cuda_set_tile_size(ZB_TILE_SIZES);
}

/* What fills a GPU gets large tiles; what does not, smaller ones. */
static void check_choice(rng *r)
{
    (void)r;
    assert_int_equal(zb_tile_size_for(4096, 4096), ZB_TILE_LARGE);
    assert_int_equal(zb_tile_size_for(1024, 1024), ZB_TILE_MIDDLE);
    assert_int_equal(zb_tile_size_for(16, 100000), ZB_TILE_WIDE);
    assert_int_equal(zb_tile_size_for(4, 120), ZB_TILE_SMALL);
    assert_int_equal(zb_tile_size_for(100, 4000000), ZB_TILE_MIDDLE);
}

/* --- layers --- */

static void run_linear(rng *r, zb_dtype dtype, fill_kind kind, size_t rows, size_t in, size_t out)
{
    char label[96];
    snprintf(label, sizeof label, "linear, %zu rows, %zu to %zu, %s, %s", rows, in, out, zb_dtype_name(dtype),
             fill_name(kind));
    const int has_bias = rng_below(r, 3) != 0;
    trial t = trial_begin(r, "%s, forward", label);
    array *x = trial_array(&t, "x", dtype, rows * in, kind), *w = trial_array(&t, "w", dtype, out * in, kind),
          *b = trial_array(&t, "b", dtype, out, kind), *y = trial_output(&t, "y", dtype, rows * out);
    TRIAL_RUN(&t, linear_forward, dtype, rows, in, out, AT(x), AT(w), has_bias ? AT(b) : NULL, AT(y));
    t = trial_begin(r, "%s, backward to the input", label);
    array *dy = trial_array(&t, "dy", dtype, rows * out, kind),
          *dx = trial_output(&t, "dx", dtype, rows * in);
    w = trial_array(&t, "w", dtype, out * in, kind);
    TRIAL_RUN(&t, linear_backward_input, dtype, rows, in, out, AT(dy), AT(w), AT(dx));
    t = trial_begin(r, "%s, backward to the weight", label);
    dy = trial_array(&t, "dy", dtype, rows * out, kind), x = trial_array(&t, "x", dtype, rows * in, kind);
    array *dw = trial_output(&t, "dw", dtype, out * in);
    TRIAL_RUN(&t, linear_backward_weight, dtype, rows, in, out, AT(dy), AT(x), AT(dw));
    t = trial_begin(r, "%s, backward to the bias", label);
    dy = trial_array(&t, "dy", dtype, rows * out, kind);
    array *db = trial_output(&t, "db", dtype, out);
    TRIAL_RUN(&t, linear_backward_bias, dtype, rows, out, AT(dy), AT(db));
}

static void check_linear(rng *r)
{
    static const size_t shapes[][3] = { { 1, 1, 1 },   { 4, 84, 10 }, { 4, 400, 120 }, { 33, 20, 31 },
                                        { 31, 7, 64 }, { 64, 50, 3 }, { 300, 9, 65 },  { 0, 5, 6 },
                                        { 7, 0, 5 },   { 3, 4, 0 } };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int c = 0; c < FILL_KINDS * TENSOR_DTYPES; c++)
            run_linear(r, tensor_dtypes[c % TENSOR_DTYPES], (fill_kind)(c / TENSOR_DTYPES), shapes[s][0],
                       shapes[s][1], shapes[s][2]);
}

CUDA_CASE_TABLE(matmul, { "matmul, layouts", check_layouts }, { "matmul, sizes", check_sizes },
                { "matmul, depths", check_depths }, { "matmul, negative zero", check_negative_zero },
                { "matmul, refused", check_refused }, { "matmul, choice of the tile", check_choice },
                { "linear", check_linear });
