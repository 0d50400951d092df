/* The matrix product and the fully connected layer, against plain loops. */
#include "tests/kernels/support.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* On the values of a, b, bias and c, as fp32. */
static void plain_matmul(const zb_matmul_args *s, const float *a, const float *b, const float *bias, float *c)
{
    for (size_t i = 0; i < s->m; i++)
        for (size_t j = 0; j < s->n; j++) {
            float acc = s->accumulate ? c[i * s->c_row + j] : 0.0f;
            for (size_t p = 0; p < s->k; p++)
                acc = fmaf(a[i * s->a_row + p * s->a_col], b[p * s->b_row + j * s->b_col], acc);
            c[i * s->c_row + j] = bias != NULL ? acc + bias[j] : acc;
        }
}

typedef enum layout { ROWS, COLUMNS, SPREAD } layout; /* SPREAD: neither stride is 1 */

static const char *const layout_names[] = { "rows", "columns", "spread" };

static void strides(layout l, size_t rows, size_t columns, size_t *row, size_t *column, size_t *numel)
{
    *row = l == ROWS ? columns + 1 : l == COLUMNS ? 1 : 3;
    *column = l == ROWS ? 1 : l == COLUMNS ? rows + 2 : 3 * rows + 1;
    *numel = rows == 0 || columns == 0 ? 0 : (rows - 1) * *row + (columns - 1) * *column + 1;
}

typedef struct matmul_case {
    size_t m, n, k;
    layout a, b;
    int bias, accumulate;
    size_t c_gap; /* c_row - n */
    fill_kind kind;
} matmul_case;

static void check_matmul_of(rng *r, zb_dtype dtype, const matmul_case *t)
{
    zb_matmul_args args = {
        .dtype = dtype, .m = t->m, .n = t->n, .k = t->k, .c_row = t->n + t->c_gap, .accumulate = t->accumulate
    };
    size_t a_numel, b_numel, c_numel = t->m * args.c_row;
    strides(t->a, t->m, t->k, &args.a_row, &args.a_col, &a_numel);
    strides(t->b, t->k, t->n, &args.b_row, &args.b_col, &b_numel);
    tensor a = tensor_random(r, dtype, t->kind, a_numel), b = tensor_random(r, dtype, t->kind, b_numel);
    tensor bias = tensor_random(r, dtype, t->kind, t->n);
    tensor c = tensor_random(r, dtype, t->kind, c_numel); /* also what lies in the gaps, and must stay */
    args.a = a.data, args.b = b.data, args.c = c.data, args.bias = t->bias ? bias.data : NULL;

    plain_matmul(&args, a.values, b.values, t->bias ? bias.values : NULL, c.values);
    assert_ok(zb_cpu_matmul(&args));
    assert_tensor(&c, "matmul %zux%zux%zu a:%s b:%s bias:%d accumulate:%d gap:%zu %s", t->m, t->n, t->k,
                  layout_names[t->a], layout_names[t->b], t->bias, t->accumulate, t->c_gap,
                  fill_name(t->kind));
    tensor_free(&a), tensor_free(&b), tensor_free(&c), tensor_free(&bias);
}

/* In every type, where it can accumulate. */
static void check_matmul(rng *r, const matmul_case *t)
{
    for (int d = 0; d < (t->accumulate ? 1 : TENSOR_DTYPES); d++) check_matmul_of(r, tensor_dtypes[d], t);
}

/* Every height and width of a tile, and the edges beside them. */
static void every_tile_shape(void **state)
{
    use_level(state);
    rng r = { 1 };
    for (size_t m = 0; m <= 30; m++)
        for (size_t n = 0; n <= 100; n += 1 + n / 8)
            for (size_t k = 0; k <= 5; k += 1 + k * 3)
                check_matmul(&r, &(matmul_case){ .m = m, .n = n, .k = k, .kind = FILL_UNIFORM });
}

static void every_layout(void **state)
{
    use_level(state);
    rng r = { 2 };
    static const size_t sizes[][3] = {
        { 1, 1, 1 }, { 4, 10, 84 }, { 7, 33, 5 }, { 17, 100, 30 }, { 3, 97, 300 }
    };
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int bits = 0; bits < 3 * 3 * 2 * 2 * 2; bits++)
            check_matmul(&r, &(matmul_case){ .m = sizes[s][0],
                                             .n = sizes[s][1],
                                             .k = sizes[s][2],
                                             .a = (layout)(bits % 3),
                                             .b = (layout)(bits / 3 % 3),
                                             .bias = bits / 9 % 2,
                                             .accumulate = bits / 18 % 2,
                                             .c_gap = (size_t)(bits / 36) * 5,
                                             .kind = FILL_WIDE });
}

static void every_kind_of_number(void **state)
{
    use_level(state);
    rng r = { 3 };
    for (int kind = 0; kind < FILL_KINDS; kind++)
        for (int i = 0; i < 60; i++)
            check_matmul(&r, &(matmul_case){ .m = rng_below(&r, 20),
                                             .n = rng_below(&r, 70),
                                             .k = rng_below(&r, 12),
                                             .a = (layout)rng_below(&r, 3),
                                             .b = (layout)rng_below(&r, 3),
                                             .bias = (int)rng_below(&r, 2),
                                             .accumulate = (int)rng_below(&r, 2),
                                             .kind = (fill_kind)kind });
}

/* More than one block of k, of rows, and a chain that shows its order: wide numbers round differently in
 * another. */
static void several_blocks(void **state)
{
    use_level(state);
    rng r = { 4 };
    static const size_t sizes[][3] = { { 5, 40, 256 },   { 5, 40, 257 }, { 20, 33, 700 },
                                       { 800, 17, 400 }, { 1, 7, 3000 }, { 17, 1030, 390 } };
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int bits = 0; bits < 4; bits++)
            check_matmul(&r, &(matmul_case){ .m = sizes[s][0],
                                             .n = sizes[s][1],
                                             .k = sizes[s][2],
                                             .bias = bits % 2,
                                             .accumulate = bits / 2,
                                             .kind = FILL_WIDE });
}

/* -0 never comes out of a chain that starts at +0, but does when it goes on from -0. */
static void zero_signs(void **state)
{
    use_level(state);
    const float a = -0.0f, b = 1.0f, minus = -0.0f;
    float c = 7;
    zb_matmul_args args = { .m = 1,
                            .n = 1,
                            .k = 1,
                            .a = &a,
                            .a_row = 1,
                            .a_col = 1,
                            .b = &b,
                            .b_row = 1,
                            .b_col = 1,
                            .c = &c,
                            .c_row = 1 };
    assert_ok(zb_cpu_matmul(&args));
    assert_int_equal(bits_of(c), 0);
    c = -0.0f, args.accumulate = 1;
    assert_ok(zb_cpu_matmul(&args));
    assert_int_equal(bits_of(c), 0x80000000);
    args.k = 0, args.bias = &minus;
    assert_ok(zb_cpu_matmul(&args));
    assert_int_equal(bits_of(c), 0x80000000);
    args.accumulate = 0;
    assert_ok(zb_cpu_matmul(&args));
    assert_int_equal(bits_of(c), 0);
}

/* Sums that a 16-bit type cannot hold on the way: only the end of the chain, with its bias, is rounded. */
static void rounds_once(void **state)
{
    use_level(state);
    static const struct {
        const char *name;
        zb_dtype dtype;
        uint16_t a[3], b[3], bias, want;
    } cases[] = {
        { "65504 + 65504 - 65504",
          ZB_FP16,
          { 0x7bff, 0x7bff, 0xfbff },
          { 0x3c00, 0x3c00, 0x3c00 },
          0,
          0x7bff },
        { "65504 + 16 is a tie", ZB_FP16, { 0x7bff, 0x4c00, 0 }, { 0x3c00, 0x3c00, 0 }, 0, 0x7c00 },
        { "1 + 2^-11 + 2^-22", ZB_FP16, { 0x3c00, 0x1000, 0x1000 }, { 0x3c00, 0x3c00, 0x1000 }, 0, 0x3c01 },
        { "1 + 2^-11, a tie", ZB_FP16, { 0x3c00, 0x1000, 0 }, { 0x3c00, 0x3c00, 0 }, 0, 0x3c00 },
        { "1 + 2^-11, and 2^-11 of bias",
          ZB_FP16,
          { 0x3c00, 0x1000, 0 },
          { 0x3c00, 0x3c00, 0 },
          0x1000,
          0x3c01 },
        { "2^-24 / 2, a tie", ZB_FP16, { 0x0001, 0, 0 }, { 0x3800, 0, 0 }, 0, 0x0000 },
        { "3 * 2^-25, a tie", ZB_FP16, { 0x0003, 0, 0 }, { 0x3800, 0, 0 }, 0, 0x0002 },
        { "1 + 2^-8 + 2^-16", ZB_BF16, { 0x3f80, 0x3b80, 0x3b80 }, { 0x3f80, 0x3f80, 0x3b80 }, 0, 0x3f81 },
        { "1 + 2^-8, a tie", ZB_BF16, { 0x3f80, 0x3b80, 0 }, { 0x3f80, 0x3f80, 0 }, 0, 0x3f80 },
        { "2^-133 / 2, a tie", ZB_BF16, { 0x0001, 0, 0 }, { 0x3f00, 0, 0 }, 0, 0x0000 },
        { "3 * 2^-134, a tie", ZB_BF16, { 0x0003, 0, 0 }, { 0x3f00, 0, 0 }, 0, 0x0002 },
        { "the largest + half its ulp", ZB_BF16, { 0x7f7f, 0x7b00, 0 }, { 0x3f80, 0x3f80, 0 }, 0, 0x7f80 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint16_t c = 0x1234;
        assert_ok(zb_cpu_matmul(&(zb_matmul_args){ .dtype = cases[i].dtype,
                                                   .m = 1,
                                                   .n = 1,
                                                   .k = 3,
                                                   .a = cases[i].a,
                                                   .a_row = 3,
                                                   .a_col = 1,
                                                   .b = cases[i].b,
                                                   .b_row = 1,
                                                   .b_col = 1,
                                                   .c = &c,
                                                   .c_row = 1,
                                                   .bias = &cases[i].bias }));
        if (c != cases[i].want) fail_msg("%s gives %04x, want %04x", cases[i].name, c, cases[i].want);
    }
}

static void refusals(void **state)
{
    use_level(state);
    uint16_t x = 0x3c00, c = 7;
    zb_matmul_args args = {
        .dtype = ZB_FP16, .m = 1, .n = 1, .k = 1, .a = &x, .b = &x, .c = &c, .accumulate = 1
    };
    assert_int_equal(zb_cpu_matmul(&args), ZB_UNSUPPORTED);
    assert_non_null(strstr(zb_error_message(), "fp16 cannot accumulate"));
    args.dtype = ZB_FP64;
    assert_int_equal(zb_cpu_matmul(&args), ZB_UNSUPPORTED);
    assert_non_null(strstr(zb_error_message(), "matmul of fp64"));
    assert_int_equal(c, 7);
}

static void check_linear(rng *r, zb_dtype dtype, size_t rows, size_t in, size_t out, fill_kind kind)
{
    tensor x = tensor_random(r, dtype, kind, rows * in), w = tensor_random(r, dtype, kind, out * in);
    tensor b = tensor_random(r, dtype, kind, out), dy = tensor_random(r, dtype, kind, rows * out);
    tensor y = tensor_random(r, dtype, kind, rows * out), dx = tensor_random(r, dtype, kind, rows * in);
    tensor dw = tensor_random(r, dtype, kind, out * in), db = tensor_random(r, dtype, kind, out);
    float *column = guarded_floats(rows, 0);

    for (size_t i = 0; i < rows; i++)
        for (size_t o = 0; o < out; o++) {
            float acc = 0;
            for (size_t p = 0; p < in; p++) acc = fmaf(x.values[i * in + p], w.values[o * in + p], acc);
            y.values[i * out + o] = acc + b.values[o];
        }
    assert_ok(zb_cpu_linear_forward(
        &(zb_linear_forward_args){ dtype, rows, in, out, x.data, w.data, b.data, y.data }));
    assert_tensor(&y, "linear_forward %zu %zu %zu, %s", rows, in, out, fill_name(kind));

    for (size_t i = 0; i < rows; i++)
        for (size_t p = 0; p < in; p++) {
            float acc = 0;
            for (size_t o = 0; o < out; o++) acc = fmaf(dy.values[i * out + o], w.values[o * in + p], acc);
            dx.values[i * in + p] = acc;
        }
    assert_ok(zb_cpu_linear_backward_input(
        &(zb_linear_backward_input_args){ dtype, rows, in, out, dy.data, w.data, dx.data }));
    assert_tensor(&dx, "linear_backward_input %zu %zu %zu, %s", rows, in, out, fill_name(kind));

    for (size_t o = 0; o < out; o++)
        for (size_t p = 0; p < in; p++) {
            float acc = 0;
            for (size_t i = 0; i < rows; i++) acc = fmaf(dy.values[i * out + o], x.values[i * in + p], acc);
            dw.values[o * in + p] = acc;
        }
    assert_ok(zb_cpu_linear_backward_weight(
        &(zb_linear_backward_weight_args){ dtype, rows, in, out, dy.data, x.data, dw.data }));
    assert_tensor(&dw, "linear_backward_weight %zu %zu %zu, %s", rows, in, out, fill_name(kind));

    for (size_t o = 0; o < out; o++) {
        for (size_t i = 0; i < rows; i++) column[i] = dy.values[i * out + o];
        db.values[o] = plain_reduce(column, rows);
    }
    assert_ok(
        zb_cpu_linear_backward_bias(&(zb_linear_backward_bias_args){ dtype, rows, out, dy.data, db.data }));
    assert_tensor(&db, "linear_backward_bias %zu %zu, %s", rows, out, fill_name(kind));

    tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&dy);
    tensor_free(&y), tensor_free(&dx), tensor_free(&dw), tensor_free(&db);
    guarded_free(column);
}

static void linear_layer(void **state)
{
    use_level(state);
    static const size_t shapes[][3] = { { 4, 400, 120 }, { 4, 120, 84 },   { 16, 84, 10 }, { 1, 5, 3 },
                                        { 33, 7, 65 },   { 40, 100, 130 }, { 0, 3, 2 } };
    rng r = { 5 };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int kind = 0; kind < FILL_KINDS; kind++)
            for (int d = 0; d < TENSOR_DTYPES; d++)
                check_linear(&r, tensor_dtypes[d], shapes[s][0], shapes[s][1], shapes[s][2], (fill_kind)kind);
}

/* More threads at once than there are places to pack panels in: some wait, none meet. */
enum { THREADS = 100, THREAD_M = 20, THREAD_N = 50, THREAD_K = 400 };

typedef struct thread_work {
    pthread_t thread;
    const float *a, *b;
    float c[THREAD_M * THREAD_N];
} thread_work;

static void *multiply_often(void *argument)
{
    thread_work *w = argument;
    for (int i = 0; i < 20; i++)
        if (zb_cpu_matmul(&(zb_matmul_args){ .m = THREAD_M,
                                             .n = THREAD_N,
                                             .k = THREAD_K,
                                             .a = w->a,
                                             .a_row = THREAD_K,
                                             .a_col = 1,
                                             .b = w->b,
                                             .b_row = 1,
                                             .b_col = THREAD_K,
                                             .c = w->c,
                                             .c_row = THREAD_N }) != ZB_OK)
            w->c[0] = NAN;
    return NULL;
}

static void many_threads(void **state)
{
    use_level(state);
    static thread_work work[THREADS];
    static float inputs[THREADS][(THREAD_M + THREAD_N) * THREAD_K], want[THREAD_M * THREAD_N];
    rng r = { 6 };
    for (int t = 0; t < THREADS; t++) {
        fill(&r, FILL_UNIFORM, inputs[t], sizeof inputs[t] / sizeof(float));
        work[t].a = inputs[t];
        work[t].b = inputs[t] + THREAD_M * THREAD_K;
        assert_int_equal(pthread_create(&work[t].thread, NULL, multiply_often, &work[t]), 0);
    }
    for (int t = 0; t < THREADS; t++) {
        assert_int_equal(pthread_join(work[t].thread, NULL), 0);
        plain_matmul(&(zb_matmul_args){ .m = THREAD_M,
                                        .n = THREAD_N,
                                        .k = THREAD_K,
                                        .a_row = THREAD_K,
                                        .a_col = 1,
                                        .b_row = 1,
                                        .b_col = THREAD_K,
                                        .c_row = THREAD_N },
                     work[t].a, work[t].b, NULL, want);
        assert_same_floats(work[t].c, want, THREAD_M * THREAD_N, "thread %d", t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT_EACH_LEVEL(every_tile_shape), AT_EACH_LEVEL(every_layout), AT_EACH_LEVEL(every_kind_of_number),
        AT_EACH_LEVEL(several_blocks),   AT_EACH_LEVEL(zero_signs),   AT_EACH_LEVEL(rounds_once),
        AT_EACH_LEVEL(refusals),         AT_EACH_LEVEL(linear_layer), AT_EACH_LEVEL(many_threads),
    };
    return cmocka_run_group_tests_name("matmul", tests, NULL, NULL);
}
