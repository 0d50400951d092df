/* See harness.h. */
#include "tests/cuda/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 128, GUARD = 0x5a, UNWRITTEN = 0xa5, ALIGNMENT_BYTES = 64 };

size_t compared_launches[ZB_KERNEL_COUNT];

const size_t element_sizes[] = { 0,  1,  2,   3,   5,   8,    15,   16,   17,   31,
                                 33, 64, 127, 255, 257, 1023, 1025, 4096, 4111, 17001 };
const size_t element_size_count = sizeof element_sizes / sizeof element_sizes[0];

trial trial_begin(rng *r, const char *format, ...)
{
    trial t = { .random = r, .alignment = (alignment)rng_below(r, ALIGNMENTS), .shift = rng_below(r, 16) };
    va_list list;
    va_start(list, format);
    vsnprintf(t.label, sizeof t.label, format, list);
    va_end(list);
    t.arrays = calloc(TRIAL_ARRAYS, sizeof *t.arrays);
    assert_non_null(t.arrays);
    return t;
}

/* --- filling --- */

static double rng_double(rng *r, fill_kind kind)
{
    uint64_t bits = rng_next(r);
    double any;
    memcpy(&any, &bits, sizeof any);
    if (kind == FILL_BITS) return any;
    const double x = (double)rng_float(r, kind), below = (double)(int64_t)bits * 0x1p-63 * 0x1p-24;
    return kind == FILL_SPECIAL ? x : x + x * below; /* bits that fp32 has not */
}

static void fill_element(rng *r, zb_dtype dtype, fill_kind kind, void *to)
{
    const float x = rng_float(r, kind);
    const double wide = rng_double(r, kind);
    const uint64_t bits = rng_next(r);
    const uint16_t half = kind == FILL_BITS ? (uint16_t)(bits >> 16) : plain_to_half(dtype, (double)x);
    if (dtype == ZB_FP32)
        memcpy(to, &x, sizeof x);
    else if (dtype == ZB_FP64)
        memcpy(to, &wide, sizeof wide);
    else if (dtype == ZB_FP16 || dtype == ZB_BF16)
        memcpy(to, &half, sizeof half);
    else
        memcpy(to, &bits, zb_dtype_bytes(dtype));
}

/* --- arrays --- */

static size_t block_bytes(const array *a)
{
    return GUARD_BYTES + a->offset_bytes + a->bytes + GUARD_BYTES;
}

/* On the CPU, with guards around elements that nobody has written. */
static array *new_array(trial *t, const char *name, zb_dtype dtype, size_t numel)
{
    assert_true(t->array_count < TRIAL_ARRAYS);
    array *a = &t->arrays[t->array_count++];
    const size_t element = zb_dtype_bytes(dtype);
    *a = (array){ .name = name, .dtype = dtype, .numel = numel, .bytes = numel * element };
    if (t->alignment == SHIFTED_ALIKE) a->offset_bytes = t->shift * element;
    if (t->alignment == SHIFTED_EACH) a->offset_bytes = rng_below(t->random, 16) * element;
    const size_t room = (block_bytes(a) + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    a->cpu_block = aligned_alloc(ALIGNMENT_BYTES, room);
    assert_non_null(a->cpu_block);
    memset(a->cpu_block, GUARD, room);
    a->at[ON_CPU] = a->cpu_block + GUARD_BYTES + a->offset_bytes;
    memset(a->at[ON_CPU], UNWRITTEN, a->bytes);
    return a;
}

/* The same block on the device. */
static array *send(array *a)
{
    assert_ok(device_under_test.alloc(block_bytes(a), &a->device_block));
    assert_ok(device_under_test.copy_in(a->device_block, a->cpu_block, block_bytes(a)));
    a->at[ON_DEVICE] = (char *)a->device_block + GUARD_BYTES + a->offset_bytes;
    return a;
}

array *trial_array(trial *t, const char *name, zb_dtype dtype, size_t numel, fill_kind kind)
{
    array *a = new_array(t, name, dtype, numel);
    for (size_t i = 0; i < numel; i++)
        fill_element(t->random, dtype, kind, (char *)a->at[ON_CPU] + i * zb_dtype_bytes(dtype));
    return send(a);
}

array *trial_output(trial *t, const char *name, zb_dtype dtype, size_t numel)
{
    return send(new_array(t, name, dtype, numel));
}

array *trial_values(trial *t, const char *name, zb_dtype dtype, size_t numel, const void *values)
{
    array *a = new_array(t, name, dtype, numel);
    if (numel > 0) memcpy(a->at[ON_CPU], values, a->bytes);
    return send(a);
}

void trial_scratch(trial *t, void *data, size_t bytes)
{
    assert_true(t->scratch_count < TRIAL_SCRATCH);
    t->scratch[t->scratch_count].data = data;
    t->scratch[t->scratch_count++].bytes = bytes;
}

/* --- comparing --- */

static int is_nan(zb_dtype dtype, const void *element)
{
    float x;
    double wide;
    uint16_t half;
    switch (dtype) {
    case ZB_FP32:
        memcpy(&x, element, sizeof x);
        return isnan(x);
    case ZB_FP64:
        memcpy(&wide, element, sizeof wide);
        return isnan(wide);
    case ZB_FP16:
    case ZB_BF16:
        memcpy(&half, element, sizeof half);
        return (half & 0x7fff) > (dtype == ZB_FP16 ? 0x7c00 : 0x7f80);
    default:
        return 0;
    }
}

static unsigned long long bits_at(const void *element, size_t bytes)
{
    uint64_t bits = 0;
    memcpy(&bits, element, bytes);
    return bits;
}

static void compare_guards(const trial *t, const array *a, const unsigned char *block, const char *side)
{
    const size_t first = GUARD_BYTES + a->offset_bytes, end = first + a->bytes;
    for (size_t b = 0; b < block_bytes(a); b++)
        if ((b < first || b >= end) && block[b] != GUARD)
            fail_msg("%s: %s of %zu %s: the byte at %td from its %s was written %s", t->label, a->name,
                     a->numel, zb_dtype_name(a->dtype),
                     b < first ? (ptrdiff_t)(b - first) : (ptrdiff_t)(b - end),
                     b < first ? "beginning" : "end", side);
}

static void compare_array(const trial *t, const array *a)
{
    const size_t element = zb_dtype_bytes(a->dtype);
    unsigned char *block = malloc(block_bytes(a));
    assert_non_null(block);
    assert_ok(device_under_test.copy_out(block, a->device_block, block_bytes(a)));
    compare_guards(t, a, a->cpu_block, "by the CPU");
    compare_guards(t, a, block, "by the device");
    for (size_t i = 0; i < a->numel; i++) {
        const unsigned char *got = block + GUARD_BYTES + a->offset_bytes + i * element;
        const char *want = (const char *)a->at[ON_CPU] + i * element;
        const int any_nan = !a->nan_bits && is_nan(a->dtype, got) && is_nan(a->dtype, want);
        if (any_nan || memcmp(got, want, element) == 0) continue;
        fail_msg("%s: %s: element %zu of %zu %s is %0*llx, want %0*llx", t->label, a->name, i, a->numel,
                 zb_dtype_name(a->dtype), (int)(2 * element), bits_at(got, element), (int)(2 * element),
                 bits_at(want, element));
    }
    free(block);
}

static void trial_end(trial *t)
{
    for (size_t i = 0; i < t->array_count; i++) {
        device_under_test.free(t->arrays[i].device_block);
        free(t->arrays[i].cpu_block);
    }
    free(t->arrays);
    t->arrays = NULL;
}

zb_status trial_run(trial *t, zb_kernel kernel, const void *cpu_args, void *device_args, size_t args_bytes)
{
    char cpu_message[ZB_ERROR_MESSAGE_BYTES] = "";
    device_under_test.set_seed(rng_next(t->random));
    const zb_status want = zb_cpu_launch(kernel, cpu_args, args_bytes);
    if (want != ZB_OK) snprintf(cpu_message, sizeof cpu_message, "%s", zb_error_message());
    const zb_status got = device_under_test.launch(kernel, device_args, args_bytes);
    memset(device_args, 0xff, args_bytes);
    for (size_t i = 0; i < t->scratch_count; i++) memset(t->scratch[i].data, 0xff, t->scratch[i].bytes);
    if (got != want)
        fail_msg("%s: %s (%s), want %s (%s)", t->label, zb_status_string(got),
                 got != ZB_OK ? zb_error_message() : "", zb_status_string(want), cpu_message);
    if (got != ZB_OK) assert_string_equal(zb_error_message(), cpu_message);
    const zb_status idle = device_under_test.wait_idle();
    if (idle != ZB_OK) fail_msg("%s: %s", t->label, zb_error_message());
    for (size_t i = 0; i < t->array_count; i++) compare_array(t, &t->arrays[i]);
    if (got == ZB_OK) compared_launches[kernel]++;
    trial_end(t);
    return got;
}
