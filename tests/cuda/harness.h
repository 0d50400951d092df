/*
 * The same launch on two devices: the CPU's kernels and the device under test, which is a GPU (device_cuda.c)
 * or the CUDA kernels compiled for the CPU (device_simt.c). Every array is compared bit by bit afterwards,
 * guards included; NaN equals NaN.
 *
 *     static void check_scale(rng *r)
 *     {
 *         trial t = trial_begin(r, "scale");
 *         array *y = trial_array(&t, "y", ZB_FP32, n, FILL_WIDE);
 *         TRIAL_RUN(&t, scale, ZB_FP32, AT(y), 3.0f, n);
 *     }
 *
 * AT(y) stands for the array's address on the device whose arguments are being made.
 */
#ifndef ZB_TESTS_CUDA_HARNESS_H
#define ZB_TESTS_CUDA_HARNESS_H

#include "tests/kernels/support.h"

/* --- the device under test --- */

typedef struct test_device {
    const char *name;
    /** ZB_UNSUPPORTED: there is none here; zb_error_message() says why. */
    zb_status (*open)(void);
    zb_status (*alloc)(size_t bytes, void **pointer_p);
    void (*free)(void *pointer);
    zb_status (*copy_in)(void *to_device, const void *from_host, size_t bytes);
    zb_status (*copy_out)(void *to_host, const void *from_device, size_t bytes);
    /** Whatever order things run in may depend on the seed. */
    void (*set_seed)(uint64_t seed);
    zb_status (*launch)(zb_kernel kernel, const void *args, size_t args_bytes);
    zb_status (*wait_idle)(void);
} test_device;
extern const test_device device_under_test;

/* --- one launch --- */

enum { ON_CPU, ON_DEVICE, SIDES };
enum { TRIAL_ARRAYS = 400, TRIAL_SCRATCH = 8 };

/* How the arrays of a trial lie towards 16-byte boundaries. */
typedef enum alignment { ALIGNED, SHIFTED_ALIKE, SHIFTED_EACH, ALIGNMENTS } alignment;

typedef struct array {
    const char *name;
    zb_dtype dtype;
    size_t numel, bytes, offset_bytes; /* of the elements, behind the guard */
    int nan_bits;                      /* NaNs must have the CPU's bits as well */
    unsigned char *cpu_block;          /* guard, elements, guard */
    void *device_block;
    void *at[SIDES]; /* of the elements */
} array;

typedef struct trial {
    char label[256];
    rng *random;
    alignment alignment;
    size_t shift; /* elements, SHIFTED_ALIKE */
    array *arrays;
    size_t array_count;
    struct {
        void *data;
        size_t bytes;
    } scratch[TRIAL_SCRATCH];
    size_t scratch_count;
} trial;

/** The label, formatted, says in failures which case it was. */
trial trial_begin(rng *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/** The next one; any alignment. Lives until the trial has run. */
array *trial_array(trial *t, const char *name, zb_dtype dtype, size_t numel, fill_kind kind);
/** Filled with 0xA5: for what an operation writes and must not read. */
array *trial_output(trial *t, const char *name, zb_dtype dtype, size_t numel);
/** With these elements. */
array *trial_values(trial *t, const char *name, zb_dtype dtype, size_t numel, const void *values);
/** Host memory that the launch on the device gets: overwritten as soon as the launch has returned. */
void trial_scratch(trial *t, void *data, size_t bytes);
/**
 * Runs both, compares the statuses, the messages of failures and all arrays, and ends the trial. Returns the
 * status.
 */
zb_status trial_run(trial *t, zb_kernel kernel, const void *cpu_args, void *device_args, size_t args_bytes);

#define AT(array) ((array)->at[side])
#define TRIAL_RUN(t, operation, ...)                                                                         \
    do {                                                                                                     \
        zb_##operation##_args trial_args_[SIDES];                                                            \
        for (int side = 0; side < SIDES; side++) trial_args_[side] = (zb_##operation##_args){ __VA_ARGS__ }; \
        trial_run((t), ZB_KERNEL_##operation, &trial_args_[ON_CPU], &trial_args_[ON_DEVICE],                 \
                  sizeof trial_args_[0]);                                                                    \
    } while (0)

/* How many launches of an operation have succeeded on both and been compared. */
extern size_t compared_launches[ZB_KERNEL_COUNT];

/* Sizes for operations on elements: around packs, blocks, and several blocks. */
extern const size_t element_sizes[];
extern const size_t element_size_count;

/* --- tables of cases --- */

typedef struct cuda_case {
    const char *name;
    void (*run)(rng *r);
} cuda_case;
typedef struct cuda_case_table {
    const cuda_case *cases;
    size_t count;
} cuda_case_table;
#define CUDA_CASE_TABLE(name, ...)                                                                           \
    static const cuda_case name##_list[] = { __VA_ARGS__ };                                                  \
    const cuda_case_table name##_cases = { name##_list, sizeof name##_list / sizeof name##_list[0] }

/* Each is the file cases_<name>.c. */
#define CUDA_CASE_TABLES(X)     X(elementwise) X(optimizer) X(norm) X(reduction) X(matmul) X(conv2d) X(loss)
#define CUDA_CASE_DECLARE(name) extern const cuda_case_table name##_cases;
CUDA_CASE_TABLES(CUDA_CASE_DECLARE)
#undef CUDA_CASE_DECLARE

#endif
