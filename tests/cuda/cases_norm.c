/* Sums of squares, norms, and the search for what is no number. */
#include <string.h>

#include "tests/cuda/harness.h"

/* Normalised, or as many ranks' digits leave it, or as full as a digit can be; not the last one, into which
 * all carries go. */
static void random_accumulator(rng *r, int64_t *words)
{
    for (size_t i = 0; i < ZB_SUM_SQUARES_WORDS; i++) {
        const int full = i < ZB_SUM_SQUARES_DIGITS - 1 && rng_below(r, 4) == 0;
        words[i] = full              ? INT64_MAX - (int64_t)rng_below(r, 2)
                   : rng_below(r, 2) ? 0
                                     : (int64_t)rng_next(r) >> (4 + rng_below(r, 40));
    }
}

static void sum_squares_of(rng *r, zb_dtype dtype, size_t numel, fill_kind kind, const char *what,
                           const float *values)
{
    trial t = trial_begin(r, "sum_squares of %zu %s, %s", numel, zb_dtype_name(dtype), what);
    int64_t words[ZB_SUM_SQUARES_WORDS];
    random_accumulator(r, words);
    array *x = values != NULL ? trial_values(&t, "x", dtype, numel, values)
                              : trial_array(&t, "x", dtype, numel, kind);
    array *sum = trial_values(&t, "accumulator", ZB_INT64, ZB_SUM_SQUARES_WORDS, words);
    TRIAL_RUN(&t, sum_squares, dtype, AT(x), numel, AT(sum));
}

static void check_sum_squares(rng *r)
{
    for (int d = 0; d < TENSOR_DTYPES; d++)
        for (size_t s = 0; s < element_size_count; s++)
            for (int kind = 0; kind < FILL_KINDS; kind++)
                sum_squares_of(r, tensor_dtypes[d], element_sizes[s], (fill_kind)kind,
                               fill_name((fill_kind)kind), NULL);
    for (int d = 0; d < TENSOR_DTYPES; d++) /* several tiles in every block */
        sum_squares_of(r, tensor_dtypes[d], 100003, FILL_UNIFORM, "large", NULL);
}

/* What the window of exponents must get right: its edges, its moves, and what it never holds. */
static void check_sum_squares_ranges(rng *r)
{
    enum { N = 20000 };
    static float x[N];
    for (int exponent = 0; exponent < 256; exponent += 5) {
        for (size_t i = 0; i < N; i++) { /* neighbouring exponents, largest mantissas, some zeros */
            const uint32_t e = (uint32_t)(exponent + (int)rng_below(r, 26) - 2) & 255;
            x[i] = i % 7 == 0 ? 0.0f
                              : from_bits(e << 23 | (i % 3 == 0 ? 0x7fffff : (uint32_t)(rng_next(r) >> 41)));
        }
        sum_squares_of(r, ZB_FP32, N / 4, FILL_BITS, "neighbouring exponents", x);
    }
    for (size_t i = 0; i < N; i++) /* another scale every few hundred elements */
        x[i] = ldexpf(rng_float(r, FILL_UNIFORM), (int)(i / 700 * 37 % 220) - 110);
    sum_squares_of(r, ZB_FP32, N, FILL_BITS, "changing scales", x);
    for (size_t i = 0; i < N; i++)
        x[i] = i % 97 == 5 ? 1e30f : i % 89 == 3 ? 1e-35f : rng_float(r, FILL_UNIFORM);
    sum_squares_of(r, ZB_FP32, N, FILL_BITS, "outliers", x);
    for (size_t i = 0; i < N; i++) x[i] = from_bits(0x7f7fffff);
    sum_squares_of(r, ZB_FP32, N, FILL_BITS, "the largest numbers", x);
    for (size_t i = 0; i < N; i++) x[i] = from_bits(1 + (uint32_t)i % 0x7fffff);
    sum_squares_of(r, ZB_FP32, N, FILL_BITS, "subnormal numbers", x);
    for (size_t i = 0; i < N; i++) x[i] = i % 2 ? (i % 4 == 1 ? INFINITY : -INFINITY) : NAN;
    sum_squares_of(r, ZB_FP32, N, FILL_BITS, "no numbers", x);
    for (size_t i = 0; i < 1024; i++) x[i] = i / 4 % 32 < 7 ? NAN : 0; /* too few for the window to move */
    for (int i = 0; i < 200; i++) sum_squares_of(r, ZB_FP32, 1024, FILL_BITS, "a few that are no numbers", x);
}

/*
 * More than 4096 additions in every thread, of squares at the upper end of the window: it is chosen by the
 * first numbers, and the others are as much larger as it still holds.
 */
static void check_sum_squares_long(rng *r)
{
    enum { N = 3 << 20, FIRST = 8192 };
    float *x = guarded_floats(N, 0);
    for (size_t i = 0; i < N; i++) x[i] = i < FIRST ? 0x1.fffffep+4f : 0x1.fffffep+7f;
    sum_squares_of(r, ZB_FP32, N, FILL_BITS, "long", x);
    guarded_free(x);
}

static void check_norm(rng *r)
{
    for (int d = 0; d < TENSOR_DTYPES; d++)
        for (size_t s = 0; s < element_size_count; s++)
            for (int kind = 0; kind < FILL_KINDS; kind++)
                for (int wide = 0; wide < 2; wide++) {
                    const zb_dtype dtype = tensor_dtypes[d];
                    const size_t n = element_sizes[s];
                    trial t = trial_begin(r, "norm of %zu %s, wide %d, %s", n, zb_dtype_name(dtype), wide,
                                          fill_name((fill_kind)kind));
                    array *x = trial_array(&t, "x", dtype, n, (fill_kind)kind),
                          *norm = trial_output(&t, "norm", ZB_FP64, 1);
                    TRIAL_RUN(&t, norm, dtype, AT(x), n, wide, AT(norm));
                }
}

/* At most one element is not finite. */
static void find_nonfinite_once(rng *r, zb_dtype dtype, size_t n, int present, uint8_t flag)
{
    static const float bad[] = { INFINITY, -INFINITY, NAN };
    const float odd = bad[rng_below(r, 3)];
    trial t = trial_begin(r, "find_nonfinite in %zu %s, one %d, flag %d", n, zb_dtype_name(dtype), present,
                          flag);
    array *x = trial_array(&t, "x", dtype, n, FILL_UNIFORM),
          *f = trial_values(&t, "flag", ZB_UINT8, 1, &flag);
    if (present && n > 0) {
        const size_t at = rng_below(r, n), element = zb_dtype_bytes(dtype);
        const uint16_t half = plain_to_half(dtype, (double)odd);
        const void *value = dtype == ZB_FP32 ? (const void *)&odd : &half;
        memcpy((char *)x->at[ON_CPU] + at * element, value, element);
        assert_ok(device_under_test.copy_in((char *)x->at[ON_DEVICE] + at * element, value, element));
    }
    TRIAL_RUN(&t, find_nonfinite, dtype, AT(x), n, AT(f));
}

static void check_find_nonfinite(rng *r)
{
    for (int d = 0; d < TENSOR_DTYPES; d++)
        for (size_t s = 0; s < element_size_count; s++)
            for (int i = 0; i < 8; i++)
                find_nonfinite_once(r, tensor_dtypes[d], element_sizes[s], i % 4 != 0, i == 4);
}

static void check_refused(rng *r)
{
    trial t = trial_begin(r, "norms of fp64");
    array *x = trial_array(&t, "x", ZB_FP64, 5, FILL_BITS),
          *out = trial_output(&t, "out", ZB_INT64, ZB_SUM_SQUARES_WORDS);
    TRIAL_RUN(&t, sum_squares, ZB_FP64, AT(x), 5, AT(out));
    t = trial_begin(r, "norms of fp64");
    x = trial_array(&t, "x", ZB_FP64, 5, FILL_BITS), out = trial_output(&t, "out", ZB_FP64, 1);
    TRIAL_RUN(&t, norm, ZB_FP64, AT(x), 5, 0, AT(out));
    t = trial_begin(r, "norms of fp64");
    x = trial_array(&t, "x", ZB_FP64, 5, FILL_BITS), out = trial_output(&t, "out", ZB_UINT8, 1);
    TRIAL_RUN(&t, find_nonfinite, ZB_FP64, AT(x), 5, AT(out));
}

CUDA_CASE_TABLE(norm, { "sum_squares", check_sum_squares },
                { "sum_squares, ranges", check_sum_squares_ranges },
                { "sum_squares, long", check_sum_squares_long }, { "norm", check_norm },
                { "find_nonfinite", check_find_nonfinite }, { "norms, refused", check_refused });
