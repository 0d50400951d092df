/* Losses, and through them exp and log. */
#include <string.h>

#include "tests/cuda/harness.h"

/* --- cross entropy --- */

static void run_forward(rng *r, zb_dtype dtype, size_t rows, size_t classes, fill_kind kind)
{
    trial t = trial_begin(r, "cross_entropy forward, %zux%zu, %s, %s", rows, classes, zb_dtype_name(dtype),
                          fill_name(kind));
    int32_t *labels = guarded(rows, sizeof *labels, 0);
    for (size_t i = 0; i < rows; i++) labels[i] = (int32_t)rng_below(r, classes);
    array *x = trial_array(&t, "x", dtype, rows * classes, kind),
          *label = trial_values(&t, "labels", ZB_INT32, rows, labels),
          *log_probs = trial_output(&t, "log_probs", ZB_FP32, rows * classes),
          *row_loss = trial_output(&t, "row_loss", ZB_FP32, rows),
          *loss = trial_output(&t, "loss", ZB_FP32, 1);
    TRIAL_RUN(&t, cross_entropy_forward, dtype, rows, classes, AT(x), AT(label), AT(log_probs), AT(row_loss),
              AT(loss));
    guarded_free(labels);
}

static void run_backward(rng *r, zb_dtype dtype, size_t rows, size_t classes, fill_kind kind)
{
    trial t = trial_begin(r, "cross_entropy backward, %zux%zu, %s, %s", rows, classes, zb_dtype_name(dtype),
                          fill_name(kind));
    int32_t *labels = guarded(rows, sizeof *labels, 0);
    for (size_t i = 0; i < rows; i++) labels[i] = (int32_t)rng_below(r, classes);
    const float seed = rng_float(r, FILL_WIDE), divisor = rng_below(r, 2) ? 1 : 3;
    array *log_probs = trial_array(&t, "log_probs", ZB_FP32, rows * classes, kind),
          *label = trial_values(&t, "labels", ZB_INT32, rows, labels),
          *dx = trial_output(&t, "dx", dtype, rows * classes);
    TRIAL_RUN(&t, cross_entropy_backward, dtype, rows, classes, AT(log_probs), AT(label), seed, divisor,
              AT(dx));
    guarded_free(labels);
}

static void check_cross_entropy(rng *r)
{
    static const size_t shapes[][2] = { { 1, 1 },    { 1, 2 },    { 4, 10 }, { 33, 10 },
                                        { 100, 31 }, { 5, 32 },   { 5, 33 }, { 3, 1000 },
                                        { 2, 300 },  { 4100, 2 }, { 0, 3 } };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int c = 0; c < FILL_KINDS * TENSOR_DTYPES; c++) {
            run_forward(r, tensor_dtypes[c % TENSOR_DTYPES], shapes[s][0], shapes[s][1],
                        (fill_kind)(c / TENSOR_DTYPES));
            run_backward(r, tensor_dtypes[c % TENSOR_DTYPES], shapes[s][0], shapes[s][1],
                         (fill_kind)(c / TENSOR_DTYPES));
        }
}

/* exp alone: the gradient of one row, with seed 1 and divisor 1. */
static void check_exp(rng *r)
{
    enum { COUNT = 200000 };
    /* The three fp32 arguments, of all 2^32, whose rounding the fast path leaves in doubt. */
    static const float in_doubt[] = { -0x1.c1c4b8p-10f, -0x1.e1dbe2p-8f, -0x1.d2259ap+3f };
    const int32_t label = COUNT - 1;
    float *x = guarded_floats(COUNT, 0);
    for (size_t i = 0; i < COUNT; i++)
        x[i] = i % 2 ? rng_float(r, FILL_UNIFORM) * 110 : rng_float(r, (fill_kind)(i / 2 % FILL_KINDS));
    memcpy(x, in_doubt, sizeof in_doubt);
    trial t = trial_begin(r, "exp");
    array *log_probs = trial_values(&t, "log_probs", ZB_FP32, COUNT, x),
          *labels = trial_values(&t, "labels", ZB_INT32, 1, &label),
          *dx = trial_output(&t, "dx", ZB_FP32, COUNT);
    TRIAL_RUN(&t, cross_entropy_backward, ZB_FP32, 1, COUNT, AT(log_probs), AT(labels), 1, 1, AT(dx));
    guarded_free(x);
}

/* log: of sums from 1 to 10, and of the one sum up to 32 whose logarithm the fast path leaves in doubt. */
static void check_log(rng *r)
{
    enum { ROWS = 20000, CLASSES = 10 };
    const float in_doubt[CLASSES] = { -0x1.7fb51cp-1f }; /* and nine 0: the sum is 0x1.2f1fd6p+3 */
    float *x = guarded_floats(ROWS * CLASSES, 0);
    int32_t *labels = guarded(ROWS, sizeof *labels, 0);
    for (size_t i = 0; i < ROWS * CLASSES; i++)
        x[i] = i % CLASSES < 2 + i / CLASSES % 8 ? rng_float(r, FILL_UNIFORM) * 20 : -200;
    for (size_t i = 0; i < ROWS; i++) labels[i] = (int32_t)rng_below(r, CLASSES);
    memcpy(x, in_doubt, sizeof in_doubt);
    trial t = trial_begin(r, "log");
    array *logits = trial_values(&t, "x", ZB_FP32, ROWS * CLASSES, x),
          *label = trial_values(&t, "labels", ZB_INT32, ROWS, labels),
          *log_probs = trial_output(&t, "log_probs", ZB_FP32, ROWS * CLASSES),
          *row_loss = trial_output(&t, "row_loss", ZB_FP32, ROWS),
          *loss = trial_output(&t, "loss", ZB_FP32, 1);
    TRIAL_RUN(&t, cross_entropy_forward, ZB_FP32, ROWS, CLASSES, AT(logits), AT(label), AT(log_probs),
              AT(row_loss), AT(loss));
    guarded_free(x), guarded_free(labels);
}

/* --- mean squared error --- */

static void check_mse(rng *r)
{
    static const size_t sizes[] = { 0, 1, 31, 32, 33, 3839, 3840, 3841, 7680, 7713, 20011 };
    for (size_t c = 0; c < sizeof sizes / sizeof sizes[0] * FILL_KINDS * TENSOR_DTYPES; c++) {
        const size_t n = sizes[c / TENSOR_DTYPES / FILL_KINDS];
        const zb_dtype dtype = tensor_dtypes[c % TENSOR_DTYPES];
        const fill_kind kind = (fill_kind)(c / TENSOR_DTYPES % FILL_KINDS);
        const float seed = rng_float(r, FILL_WIDE), divisor = rng_below(r, 2) ? 1 : 3;
        trial t = trial_begin(r, "mse forward of %zu %s, %s", n, zb_dtype_name(dtype), fill_name(kind));
        array *x = trial_array(&t, "x", dtype, n, kind), *target = trial_array(&t, "t", ZB_FP32, n, kind),
              *loss = trial_output(&t, "loss", ZB_FP32, 1);
        TRIAL_RUN(&t, mse_forward, dtype, n, AT(x), AT(target), AT(loss));
        t = trial_begin(r, "mse backward of %zu %s, %s", n, zb_dtype_name(dtype), fill_name(kind));
        x = trial_array(&t, "x", dtype, n, kind), target = trial_array(&t, "t", ZB_FP32, n, kind);
        array *dx = trial_output(&t, "dx", dtype, n);
        TRIAL_RUN(&t, mse_backward, dtype, n, AT(x), AT(target), seed, divisor, AT(dx));
    }
}

CUDA_CASE_TABLE(loss, { "cross_entropy", check_cross_entropy }, { "exp", check_exp }, { "log", check_log },
                { "mse", check_mse });
