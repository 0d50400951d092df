/* Operations that treat each element on its own. */
#include "tests/cuda/harness.h"

static const zb_dtype cast_dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_FP64 };
enum { CAST_DTYPES = sizeof cast_dtypes / sizeof cast_dtypes[0] };

static void check_bytes(rng *r)
{
    for (size_t s = 0; s < element_size_count; s++) {
        const size_t n = element_sizes[s];
        trial t = trial_begin(r, "fill_bytes of %zu", n);
        array *data = trial_output(&t, "data", ZB_UINT8, n);
        TRIAL_RUN(&t, fill_bytes, AT(data), 0x3c, n);
        t = trial_begin(r, "copy of %zu", n);
        array *to = trial_output(&t, "to", ZB_UINT8, n),
              *from = trial_array(&t, "from", ZB_UINT8, n, FILL_BITS);
        TRIAL_RUN(&t, copy, AT(to), AT(from), n);
    }
}

static void cast_once(rng *r, zb_dtype to_dtype, zb_dtype from_dtype, size_t n, fill_kind kind)
{
    trial t = trial_begin(r, "cast of %zu from %s to %s, %s", n, zb_dtype_name(from_dtype),
                          zb_dtype_name(to_dtype), fill_name(kind));
    array *to = trial_output(&t, "to", to_dtype, n), *from = trial_array(&t, "from", from_dtype, n, kind);
    TRIAL_RUN(&t, cast, AT(to), to_dtype, AT(from), from_dtype, n);
}

static void check_cast(rng *r)
{
    for (int d = 0; d < CAST_DTYPES * CAST_DTYPES; d++)
        for (size_t s = 0; s < element_size_count; s++)
            for (int kind = 0; kind < FILL_KINDS; kind++)
                cast_once(r, cast_dtypes[d % CAST_DTYPES], cast_dtypes[d / CAST_DTYPES], element_sizes[s],
                          (fill_kind)kind);
}

/* fp64 between two neighbours of a 16-bit type, at and beside the middle. */
static void check_cast_ties(rng *r)
{
    enum { N = 4000 };
    for (int h = 0; h < 2; h++) {
        const zb_dtype half = h ? ZB_BF16 : ZB_FP16;
        double values[N];
        for (size_t i = 0; i < N; i++) {
            const uint16_t low = (uint16_t)rng_next(r) & 0xfffe;
            const double a = plain_from_half(half, low), b = plain_from_half(half, low + 1);
            const double middle = (a + b) / 2;
            values[i] = i % 3 == 0 ? middle : nextafter(middle, i % 3 == 1 ? a : b);
        }
        trial t = trial_begin(r, "ties of fp64 in %s", zb_dtype_name(half));
        array *to = trial_output(&t, "to", half, N), *from = trial_values(&t, "from", ZB_FP64, N, values);
        TRIAL_RUN(&t, cast, AT(to), half, AT(from), ZB_FP64, N);
    }
}

static void add_once(rng *r, zb_dtype y_dtype, zb_dtype x_dtype, size_t n, fill_kind kind)
{
    trial t = trial_begin(r, "add of %zu %s to %s, %s", n, zb_dtype_name(x_dtype), zb_dtype_name(y_dtype),
                          fill_name(kind));
    array *y = trial_array(&t, "y", y_dtype, n, kind), *x = trial_array(&t, "x", x_dtype, n, kind);
    TRIAL_RUN(&t, add, y_dtype, AT(y), x_dtype, AT(x), n);
}

static void check_add(rng *r)
{
    for (int d = 0; d < TENSOR_DTYPES * TENSOR_DTYPES; d++)
        for (size_t s = 0; s < element_size_count; s++)
            for (int kind = 0; kind < FILL_KINDS; kind++)
                add_once(r, tensor_dtypes[d % TENSOR_DTYPES], tensor_dtypes[d / TENSOR_DTYPES],
                         element_sizes[s], (fill_kind)kind);
}

static void scale_once(rng *r, zb_dtype dtype, size_t n, fill_kind kind)
{
    const float scalar = n % 3 == 0 ? 4.0f : n % 3 == 1 ? 3.0f : rng_float(r, kind);
    trial t = trial_begin(r, "scale of %zu %s by %a, %s", n, zb_dtype_name(dtype), (double)scalar,
                          fill_name(kind));
    array *y = trial_array(&t, "y", dtype, n, kind);
    TRIAL_RUN(&t, scale, dtype, AT(y), scalar, n);
    t = trial_begin(r, "divide of %zu %s by %a, %s", n, zb_dtype_name(dtype), (double)scalar,
                    fill_name(kind));
    y = trial_array(&t, "y", dtype, n, kind);
    TRIAL_RUN(&t, divide, dtype, AT(y), scalar, n);
}

static void relu_once(rng *r, zb_dtype dtype, size_t n, fill_kind kind)
{
    trial t = trial_begin(r, "relu_forward of %zu %s, %s", n, zb_dtype_name(dtype), fill_name(kind));
    array *x = trial_array(&t, "x", dtype, n, kind), *y = trial_output(&t, "y", dtype, n);
    TRIAL_RUN(&t, relu_forward, dtype, AT(x), AT(y), n);
    t = trial_begin(r, "relu_forward in place of %zu %s, %s", n, zb_dtype_name(dtype), fill_name(kind));
    x = trial_array(&t, "x", dtype, n, kind);
    TRIAL_RUN(&t, relu_forward, dtype, AT(x), AT(x), n);
    t = trial_begin(r, "relu_backward of %zu %s, %s", n, zb_dtype_name(dtype), fill_name(kind));
    y = trial_array(&t, "y", dtype, n, kind);
    array *dy = trial_array(&t, "dy", dtype, n, kind), *dx = trial_output(&t, "dx", dtype, n);
    TRIAL_RUN(&t, relu_backward, dtype, AT(y), AT(dy), AT(dx), n);
    t = trial_begin(r, "relu_backward in place of %zu %s, %s", n, zb_dtype_name(dtype), fill_name(kind));
    y = trial_array(&t, "y", dtype, n, kind), dy = trial_array(&t, "dy", dtype, n, kind);
    TRIAL_RUN(&t, relu_backward, dtype, AT(y), AT(dy), AT(dy), n);
}

static void check_one_type(rng *r)
{
    for (int d = 0; d < TENSOR_DTYPES; d++)
        for (size_t s = 0; s < element_size_count; s++)
            for (int kind = 0; kind < FILL_KINDS; kind++) {
                scale_once(r, tensor_dtypes[d], element_sizes[s], (fill_kind)kind);
                relu_once(r, tensor_dtypes[d], element_sizes[s], (fill_kind)kind);
            }
}

static void check_refused(rng *r)
{
    const zb_dtype wrong = ZB_INT32;
    trial t = trial_begin(r, "add to int32");
    array *a = trial_array(&t, "a", ZB_INT32, 9, FILL_BITS), *b = trial_array(&t, "b", ZB_FP32, 9, FILL_BITS);
    TRIAL_RUN(&t, add, wrong, AT(a), ZB_FP32, AT(b), 9);
#define REFUSED(operation, ...)                                                                              \
    t = trial_begin(r, #operation " of int32");                                                              \
    a = trial_array(&t, "a", ZB_INT32, 9, FILL_BITS), b = trial_array(&t, "b", ZB_FP32, 9, FILL_BITS);       \
    TRIAL_RUN(&t, operation, __VA_ARGS__)
    REFUSED(add, ZB_FP32, AT(b), wrong, AT(a), 9);
    REFUSED(scale, wrong, AT(a), 2, 9);
    REFUSED(divide, wrong, AT(a), 2, 9);
    REFUSED(cast, AT(b), ZB_FP32, AT(a), wrong, 9);
    REFUSED(cast, AT(a), wrong, AT(b), ZB_FP32, 9);
    REFUSED(relu_forward, wrong, AT(a), AT(b), 9);
    REFUSED(relu_backward, wrong, AT(a), AT(b), AT(b), 9);
#undef REFUSED
}

CUDA_CASE_TABLE(elementwise, { "fill_bytes, copy", check_bytes }, { "cast", check_cast },
                { "cast, ties", check_cast_ties }, { "add", check_add },
                { "scale, divide, relu", check_one_type }, { "elementwise, refused", check_refused });
