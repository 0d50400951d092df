/* The matrix product and the fully connected layer, against plain loops. */
#include "tests/kernels/support.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void plain_matmul(const zb_matmul_args *s, float *c)
{
    for (size_t i = 0; i < s->m; i++)
        for (size_t j = 0; j < s->n; j++) {
            float acc = s->accumulate ? c[i * s->c_row + j] : 0.0f;
            for (size_t p = 0; p < s->k; p++)
                acc = fmaf(s->a[i * s->a_row + p * s->a_col], s->b[p * s->b_row + j * s->b_col], acc);
            c[i * s->c_row + j] = s->bias != NULL ? acc + s->bias[j] : acc;
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

static void check_matmul(rng *r, const matmul_case *t)
{
    zb_matmul_args args = {
        .m = t->m, .n = t->n, .k = t->k, .c_row = t->n + t->c_gap, .accumulate = t->accumulate
    };
    size_t a_numel, b_numel, c_numel = t->m * args.c_row;
    strides(t->a, t->m, t->k, &args.a_row, &args.a_col, &a_numel);
    strides(t->b, t->k, t->n, &args.b_row, &args.b_col, &b_numel);
    float *a = guarded_floats(a_numel, rng_below(r, 4)), *b = guarded_floats(b_numel, rng_below(r, 4));
    float *c = guarded_floats(c_numel, rng_below(r, 4)), *bias = guarded_floats(t->n, rng_below(r, 4));
    float *want = guarded_floats(c_numel, 0);
    fill(r, t->kind, a, a_numel);
    fill(r, t->kind, b, b_numel);
    fill(r, t->kind, bias, t->n);
    fill(r, t->kind, c, c_numel); /* also what lies in the gaps, and must stay */
    memcpy(want, c, c_numel * sizeof *c);
    args.a = a, args.b = b, args.c = c, args.bias = t->bias ? bias : NULL;

    plain_matmul(&args, want);
    assert_ok(zb_cpu_matmul(&args));
    assert_same_floats(c, want, c_numel, "matmul %zux%zux%zu a:%s b:%s bias:%d accumulate:%d gap:%zu %s",
                       t->m, t->n, t->k, layout_names[t->a], layout_names[t->b], t->bias, t->accumulate,
                       t->c_gap, fill_name(t->kind));
    guarded_free(a), guarded_free(b), guarded_free(c), guarded_free(bias), guarded_free(want);
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
    static const size_t sizes[][3] = {
        { 5, 40, 256 }, { 5, 40, 257 }, { 20, 33, 700 }, { 800, 17, 260 }, { 1, 7, 3000 }
    };
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int bias = 0; bias < 2; bias++)
            check_matmul(&r, &(matmul_case){ .m = sizes[s][0],
                                             .n = sizes[s][1],
                                             .k = sizes[s][2],
                                             .bias = bias,
                                             .accumulate = bias,
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

static void linear_layer(void **state)
{
    use_level(state);
    static const size_t shapes[][3] = { { 4, 400, 120 }, { 4, 120, 84 },   { 16, 84, 10 }, { 1, 5, 3 },
                                        { 33, 7, 65 },   { 40, 100, 130 }, { 0, 3, 2 } };
    rng r = { 5 };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int kind = 0; kind < FILL_KINDS; kind++) {
            const size_t rows = shapes[s][0], in = shapes[s][1], out = shapes[s][2];
            float *x = guarded_floats(rows * in, 1), *w = guarded_floats(out * in, 2),
                  *b = guarded_floats(out, 3);
            float *dy = guarded_floats(rows * out, 1),
                  *got = guarded_floats(rows * in + rows * out + out * in, 1);
            float *want = guarded_floats(rows * in + rows * out + out * in, 0),
                  *column = guarded_floats(rows, 0);
            fill(&r, (fill_kind)kind, x, rows * in), fill(&r, (fill_kind)kind, w, out * in);
            fill(&r, (fill_kind)kind, b, out), fill(&r, (fill_kind)kind, dy, rows * out);

            for (size_t i = 0; i < rows; i++)
                for (size_t o = 0; o < out; o++) {
                    float acc = 0;
                    for (size_t p = 0; p < in; p++) acc = fmaf(x[i * in + p], w[o * in + p], acc);
                    want[i * out + o] = acc + b[o];
                }
            assert_ok(zb_cpu_linear_forward(&(zb_linear_forward_args){ rows, in, out, x, w, b, got }));
            assert_same_floats(got, want, rows * out, "linear_forward %zu %zu %zu", rows, in, out);

            for (size_t i = 0; i < rows; i++)
                for (size_t p = 0; p < in; p++) {
                    float acc = 0;
                    for (size_t o = 0; o < out; o++) acc = fmaf(dy[i * out + o], w[o * in + p], acc);
                    want[i * in + p] = acc;
                }
            assert_ok(
                zb_cpu_linear_backward_input(&(zb_linear_backward_input_args){ rows, in, out, dy, w, got }));
            assert_same_floats(got, want, rows * in, "linear_backward_input %zu %zu %zu", rows, in, out);

            for (size_t o = 0; o < out; o++)
                for (size_t p = 0; p < in; p++) {
                    float acc = 0;
                    for (size_t i = 0; i < rows; i++) acc = fmaf(dy[i * out + o], x[i * in + p], acc);
                    want[o * in + p] = acc;
                }
            assert_ok(zb_cpu_linear_backward_weight(
                &(zb_linear_backward_weight_args){ rows, in, out, dy, x, got }));
            assert_same_floats(got, want, out * in, "linear_backward_weight %zu %zu %zu", rows, in, out);

            for (size_t o = 0; o < out; o++) {
                for (size_t i = 0; i < rows; i++) column[i] = dy[i * out + o];
                want[o] = plain_reduce(column, rows);
            }
            assert_ok(zb_cpu_linear_backward_bias(&(zb_linear_backward_bias_args){ rows, out, dy, got }));
            assert_same_floats(got, want, out, "linear_backward_bias %zu %zu, %s", rows, out,
                               fill_name((fill_kind)kind));
            guarded_free(x), guarded_free(w), guarded_free(b), guarded_free(dy);
            guarded_free(got), guarded_free(want), guarded_free(column);
        }
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
                                        .a = work[t].a,
                                        .a_row = THREAD_K,
                                        .a_col = 1,
                                        .b = work[t].b,
                                        .b_row = 1,
                                        .b_col = THREAD_K,
                                        .c_row = THREAD_N },
                     want);
        assert_same_floats(work[t].c, want, THREAD_M * THREAD_N, "thread %d", t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT_EACH_LEVEL(every_tile_shape), AT_EACH_LEVEL(every_layout), AT_EACH_LEVEL(every_kind_of_number),
        AT_EACH_LEVEL(several_blocks),   AT_EACH_LEVEL(zero_signs),   AT_EACH_LEVEL(linear_layer),
        AT_EACH_LEVEL(many_threads),
    };
    return cmocka_run_group_tests_name("matmul", tests, NULL, NULL);
}
