/* Cross entropy and mean squared error, against the contract's formulas with exp and log of long double. */
#include "tests/kernels/support.h"

#include <math.h>

/* Rounded twice, but the first rounding is too fine to matter at any of the arguments used here. */
static float plain_exp(float x)
{
    return (float)expl((long double)x);
}
static float plain_log(float x)
{
    return (float)logl((long double)x);
}

static void check_cross_entropy(rng *r, zb_dtype dtype, size_t rows, size_t classes, fill_kind kind,
                                float spread)
{
    const size_t numel = rows * classes;
    tensor x = tensor_random(r, dtype, kind, numel), dx = tensor_random(r, dtype, kind, numel);
    float *log_probs = guarded_floats(numel, 2), *row_loss = guarded_floats(rows, 3),
          *loss = guarded_floats(1, 1);
    float *want = guarded_floats(numel, 0), *want_row = guarded_floats(rows, 0),
          *exps = guarded_floats(classes, 0);
    int32_t *labels = guarded(rows, sizeof(int32_t), 1);
    if (dtype == ZB_FP32)
        for (size_t i = 0; i < numel; i++) ((float *)x.data)[i] = x.values[i] *= spread;
    for (size_t i = 0; i < rows; i++) labels[i] = (int32_t)rng_below(r, classes);

    for (size_t i = 0; i < rows; i++) {
        const float *row = x.values + i * classes;
        float maximum = -INFINITY;
        int nan = 0;
        for (size_t j = 0; j < classes; j++) {
            nan |= isnan(row[j]);
            if (row[j] > maximum) maximum = row[j];
        }
        if (nan) maximum = NAN;
        for (size_t j = 0; j < classes; j++) exps[j] = plain_exp(row[j] - maximum);
        const float l = plain_log(plain_reduce(exps, classes));
        for (size_t j = 0; j < classes; j++) want[i * classes + j] = (row[j] - maximum) - l;
        want_row[i] = -((row[labels[i]] - maximum) - l);
    }
    const float want_loss = plain_reduce(want_row, rows) / (float)rows;
    assert_ok(zb_cpu_cross_entropy_forward(
        &(zb_cross_entropy_forward_args){ dtype, rows, classes, x.data, labels, log_probs, row_loss, loss }));
    const char *const type = zb_dtype_name(dtype), *const filled = fill_name(kind);
    assert_same_floats(log_probs, want, numel, "log_probs %zux%zu %s %s", rows, classes, filled, type);
    assert_same_floats(row_loss, want_row, rows, "row_loss %zux%zu %s %s", rows, classes, filled, type);
    assert_same_floats(loss, &want_loss, 1, "loss %zux%zu %s %s", rows, classes, filled, type);

    const float seed = rng_float(r, FILL_WIDE), divisor = rng_below(r, 2) ? 1 : 3, w = seed / (float)rows;
    for (size_t i = 0; i < numel; i++) {
        const float hit = i % classes == (size_t)labels[i / classes] ? 1.0f : 0.0f,
                    d = plain_exp(log_probs[i]) - hit, weighted = d * w;
        dx.values[i] = weighted / divisor;
    }
    assert_ok(zb_cpu_cross_entropy_backward(&(zb_cross_entropy_backward_args){
        dtype, rows, classes, log_probs, labels, seed, divisor, dx.data }));
    assert_tensor(&dx, "cross_entropy_backward %zux%zu %s", rows, classes, filled);
    tensor_free(&x), tensor_free(&dx);
    guarded_free(log_probs), guarded_free(row_loss), guarded_free(loss);
    guarded_free(want), guarded_free(want_row), guarded_free(exps), guarded_free(labels);
}

static void cross_entropy(void **state)
{
    use_level(state);
    rng r = { 41 };
    static const size_t shapes[][2] = { { 1, 1 },  { 1, 2 },  { 4, 10 },   { 33, 10 }, { 100, 31 },
                                        { 5, 32 }, { 5, 33 }, { 3, 1000 }, { 2, 2100 } };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int kind = 0; kind < FILL_KINDS; kind++)
            for (int d = 0; d < TENSOR_DTYPES; d++) {
                const size_t rows = shapes[s][0], classes = shapes[s][1];
                check_cross_entropy(&r, tensor_dtypes[d], rows, classes, (fill_kind)kind, 1);
                check_cross_entropy(&r, tensor_dtypes[d], rows, classes, (fill_kind)kind,
                                    60); /* exp underflows */
            }
}

static void mean_squared_error(void **state)
{
    use_level(state);
    rng r = { 42 };
    for (size_t c = FILL_KINDS * TENSOR_DTYPES; c < edge_size_count * FILL_KINDS * TENSOR_DTYPES; c++) {
        const size_t n = edge_sizes[c / TENSOR_DTYPES / FILL_KINDS];
        const zb_dtype dtype = tensor_dtypes[c % TENSOR_DTYPES];
        const fill_kind kind = (fill_kind)(c / TENSOR_DTYPES % FILL_KINDS);
        tensor x = tensor_random(&r, dtype, kind, n);
        float *t = guarded_floats(n, 2), *loss = guarded_floats(1, 3), *squares = guarded_floats(n, 0);
        fill(&r, kind, t, n);
        for (size_t i = 0; i < n; i++) squares[i] = (x.values[i] - t[i]) * (x.values[i] - t[i]);
        const float want = plain_reduce(squares, n) / (float)n;
        assert_ok(zb_cpu_mse_forward(&(zb_mse_forward_args){ dtype, n, x.data, t, loss }));
        assert_same_floats(loss, &want, 1, "mse_forward %zu %s %s", n, fill_name(kind), zb_dtype_name(dtype));
        tensor_free(&x), guarded_free(t), guarded_free(loss), guarded_free(squares);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { AT_EACH_LEVEL(cross_entropy), AT_EACH_LEVEL(mean_squared_error) };
    return cmocka_run_group_tests_name("loss", tests, NULL, NULL);
}
