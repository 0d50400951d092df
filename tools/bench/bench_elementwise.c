/*
 * How fast everything but the matrix product is, in bytes read and written per second, beside memcpy: an
 * operation on single elements cannot be faster than memory. Two sizes: one that stays in the caches, one
 * that does not. Where the last column has a number, it is the speed beside that of a plain loop with the
 * same traffic and next to no arithmetic, compiled for the processors that every x86-64 program runs on.
 *
 * ZEROBIT_SIMD names the SIMD level to measure.
 */
#include <string.h>

#include "tools/bench/bench.h"

enum { RANKS = 4, CLASSES = 10 };

/* Every operation works on some of these, each of `numel` elements. */
typedef struct arrays {
    size_t numel;
    float *x[RANKS + 1];
    uint16_t *half[RANKS + 1]; /* bf16 numbers of the same size; read as fp16 they are ordinary ones too */
    int32_t *indices;
} arrays;

/*
 * The same traffic with next to no arithmetic, which is what memory allows.
 */
static void stream_4_3(float *restrict a, float *restrict b, float *restrict c, const float *restrict d,
                       size_t numel)
{
    for (size_t i = 0; i < numel; i++) {
        const float x = d[i];
        a[i] += x, b[i] += x, c[i] += x;
    }
}
static zb_status run_stream_adam(const arrays *a)
{
    stream_4_3(a->x[0], a->x[2], a->x[3], a->x[1], a->numel);
    return ZB_OK;
}
static void stream_adam_bf16(float *restrict a, float *restrict b, float *restrict c,
                             const uint16_t *restrict d, uint16_t *restrict e, size_t numel)
{
    for (size_t i = 0; i < numel; i++) {
        const uint16_t x = d[i];
        a[i] += 1, b[i] += 1, c[i] += 1;
        e[i] = x;
    }
}
static zb_status run_stream_adam_bf16(const arrays *a)
{
    stream_adam_bf16(a->x[0], a->x[2], a->x[3], a->half[1], a->half[0], a->numel);
    return ZB_OK;
}
static void stream_3_2(float *restrict a, float *restrict b, const float *restrict c, size_t numel)
{
    for (size_t i = 0; i < numel; i++) {
        const float x = c[i];
        a[i] += x, b[i] += x;
    }
}
static zb_status run_stream_one_moment(const arrays *a)
{
    stream_3_2(a->x[0], a->x[2], a->x[1], a->numel);
    return ZB_OK;
}
/* LAMB's two passes: four arrays read, two of them written; then three read, one of them written. */
static void stream_lamb_moments(const float *restrict a, float *restrict b, float *restrict c,
                                const float *restrict d, size_t numel)
{
    for (size_t i = 0; i < numel; i++) {
        const float x = a[i] + d[i];
        b[i] += x, c[i] += x;
    }
}
static void stream_lamb_apply(float *restrict a, const float *restrict b, const float *restrict c,
                              size_t numel)
{
    for (size_t i = 0; i < numel; i++) a[i] += b[i] + c[i];
}
static zb_status run_stream_lamb_moments(const arrays *a)
{
    stream_lamb_moments(a->x[0], a->x[2], a->x[3], a->x[1], a->numel);
    return ZB_OK;
}
static zb_status run_stream_lamb_apply(const arrays *a)
{
    stream_lamb_apply(a->x[0], a->x[2], a->x[3], a->numel);
    return ZB_OK;
}
static void stream_halves(uint16_t *restrict to, const uint32_t *restrict from, size_t numel)
{
    for (size_t i = 0; i < numel; i++) to[i] = (uint16_t)(from[i] >> 16);
}
static zb_status run_stream_narrow(const arrays *a)
{
    stream_halves(a->half[0], (const uint32_t *)a->x[1], a->numel);
    return ZB_OK;
}
static void stream_doubles(uint32_t *restrict to, const uint16_t *restrict from, size_t numel)
{
    for (size_t i = 0; i < numel; i++) to[i] = from[i];
}
static zb_status run_stream_widen(const arrays *a)
{
    stream_doubles((uint32_t *)a->x[0], a->half[1], a->numel);
    return ZB_OK;
}

static zb_status run_copy(const arrays *a)
{
    return zb_cpu_copy(&(zb_copy_args){ a->x[0], a->x[1], a->numel * sizeof(float) });
}
static zb_status run_add(const arrays *a)
{
    return zb_cpu_add(&(zb_add_args){ ZB_FP32, a->x[0], ZB_FP32, a->x[1], a->numel });
}
static zb_status run_scale(const arrays *a)
{
    return zb_cpu_scale(&(zb_scale_args){ ZB_FP32, a->x[0], 1, a->numel });
}
static zb_status run_divide(const arrays *a)
{
    return zb_cpu_divide(&(zb_divide_args){ ZB_FP32, a->x[0], 1, a->numel });
}
static zb_status run_relu_forward(const arrays *a)
{
    return zb_cpu_relu_forward(&(zb_relu_forward_args){ ZB_FP32, a->x[1], a->x[0], a->numel });
}
static zb_status run_relu_backward(const arrays *a)
{
    return zb_cpu_relu_backward(&(zb_relu_backward_args){ ZB_FP32, a->x[1], a->x[2], a->x[0], a->numel });
}
static zb_status run_to_bf16(const arrays *a)
{
    return zb_cpu_cast(&(zb_cast_args){ a->half[0], ZB_BF16, a->x[1], ZB_FP32, a->numel });
}
static zb_status run_to_fp16(const arrays *a)
{
    return zb_cpu_cast(&(zb_cast_args){ a->half[0], ZB_FP16, a->x[1], ZB_FP32, a->numel });
}
static zb_status run_from_fp16(const arrays *a)
{
    return zb_cpu_cast(&(zb_cast_args){ a->x[0], ZB_FP32, a->half[1], ZB_FP16, a->numel });
}
static zb_status run_from_bf16(const arrays *a)
{
    return zb_cpu_cast(&(zb_cast_args){ a->x[0], ZB_FP32, a->half[1], ZB_BF16, a->numel });
}
static zb_status run_add_bf16(const arrays *a)
{
    return zb_cpu_add(&(zb_add_args){ ZB_BF16, a->half[0], ZB_BF16, a->half[1], a->numel });
}
static zb_status run_relu_bf16(const arrays *a)
{
    return zb_cpu_relu_forward(&(zb_relu_forward_args){ ZB_BF16, a->half[1], a->half[0], a->numel });
}
static zb_status run_adam_types(const arrays *a, zb_optimizer_arithmetic arithmetic, zb_dtype grad_dtype,
                                const void *grad, void *param)
{
    return zb_cpu_adam(&(zb_adam_args){ .p = a->x[0],
                                        .grad_dtype = grad_dtype,
                                        .grad = grad,
                                        .m = a->x[2],
                                        .v = a->x[3],
                                        .param_dtype = ZB_BF16,
                                        .param = param,
                                        .numel = a->numel,
                                        .grad_scale = 1,
                                        .lr = 1e-3f,
                                        .beta1 = 0.9f,
                                        .beta2 = 0.999f,
                                        .one_minus_beta1 = 0.1f,
                                        .one_minus_beta2 = 0.001f,
                                        .eps = 1e-8f,
                                        .weight_decay = 0.01f,
                                        .correction1 = 0.5f,
                                        .correction2 = 0.5f,
                                        .decoupled = 1,
                                        .arithmetic = arithmetic,
                                        .decay = arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU ? -1e-5f : 1,
                                        .step_size = -1e-3f,
                                        .root_correction2 = 1,
                                        .vector_width = 16 });
}
static zb_status run_adam(const arrays *a)
{
    return run_adam_types(a, ZB_ARITHMETIC_PLAIN, ZB_FP32, a->x[1], NULL);
}
static zb_status run_adam_torch(const arrays *a)
{
    return run_adam_types(a, ZB_ARITHMETIC_TORCH_2, ZB_FP32, a->x[1], NULL);
}
static zb_status run_adam_cpu(const arrays *a)
{
    return run_adam_types(a, ZB_ARITHMETIC_DEEPSPEED_CPU, ZB_FP32, a->x[1], NULL);
}
static zb_status run_adam_bf16(const arrays *a)
{
    return run_adam_types(a, ZB_ARITHMETIC_PLAIN, ZB_BF16, a->half[1], a->half[0]);
}
static zb_status run_sgd(const arrays *a)
{
    return zb_cpu_sgd(&(zb_sgd_args){ .p = a->x[0],
                                      .grad = a->x[1],
                                      .buf = a->x[2],
                                      .numel = a->numel,
                                      .grad_scale = 1,
                                      .lr = 1e-9f,
                                      .weight_decay = 0.01f,
                                      .momentum = 0.5f,
                                      .one_minus_dampening = 1 });
}
static zb_status run_adagrad(const arrays *a)
{
    return zb_cpu_adagrad(&(zb_adagrad_args){ .p = a->x[0],
                                              .grad = a->x[1],
                                              .sum = a->x[3],
                                              .numel = a->numel,
                                              .grad_scale = 1,
                                              .lr = 1e-3f,
                                              .weight_decay = 0.01f,
                                              .eps = 1e-8f });
}
static zb_status run_lion(const arrays *a)
{
    return zb_cpu_lion(&(zb_lion_args){ .p = a->x[0],
                                        .grad = a->x[1],
                                        .m = a->x[2],
                                        .numel = a->numel,
                                        .grad_scale = 1,
                                        .lr = 1e-3f,
                                        .decay = 0.99999f,
                                        .beta1 = 0.9f,
                                        .beta2 = 0.999f,
                                        .one_minus_beta1 = 0.1f,
                                        .one_minus_beta2 = 0.001f });
}
static zb_status run_lamb_moments(const arrays *a)
{
    int64_t accumulators[2 * ZB_SUM_SQUARES_WORDS] = { 0 };
    return zb_cpu_lamb_moments(&(zb_lamb_moments_args){ .p = a->x[0],
                                                        .grad = a->x[1],
                                                        .m = a->x[2],
                                                        .v = a->x[3],
                                                        .numel = a->numel,
                                                        .grad_scale = 1,
                                                        .beta1 = 0.9f,
                                                        .beta2 = 0.999f,
                                                        .one_minus_beta1 = 0.1f,
                                                        .one_minus_beta2 = 0.001f,
                                                        .eps = 1e-8f,
                                                        .weight_decay = 0.01f,
                                                        .accumulators = accumulators });
}
static zb_status run_lamb_apply(const arrays *a)
{
    return zb_cpu_lamb_apply(&(zb_lamb_apply_args){ .p = a->x[0],
                                                    .m = a->x[2],
                                                    .v = a->x[3],
                                                    .numel = a->numel,
                                                    .factor = 1e-6f,
                                                    .eps = 1e-8f,
                                                    .weight_decay = 0.01f });
}
static zb_status run_mse_forward(const arrays *a)
{
    float loss;
    return zb_cpu_mse_forward(&(zb_mse_forward_args){ ZB_FP32, a->numel, a->x[0], a->x[1], &loss });
}
static zb_status run_bias(const arrays *a)
{
    return zb_cpu_linear_backward_bias(
        &(zb_linear_backward_bias_args){ ZB_FP32, a->numel / 128, 128, a->x[1], a->x[0] });
}
static zb_status run_sum_squares(const arrays *a)
{
    int64_t accumulator[ZB_SUM_SQUARES_WORDS] = { 0 };
    return zb_cpu_sum_squares(&(zb_sum_squares_args){ ZB_FP32, a->x[1], a->numel, accumulator });
}
static zb_status run_reduce(const arrays *a, zb_redop op)
{
    const void *inputs[RANKS] = { a->x[1], a->x[2], a->x[3], a->x[4] };
    return zb_cpu_ordered_reduce(
        &(zb_ordered_reduce_args){ inputs, RANKS, a->x[0], a->numel, ZB_FP32, op, 1 });
}
static zb_status run_reduce_half(const arrays *a, zb_dtype dtype)
{
    const void *inputs[RANKS] = { a->half[1], a->half[2], a->half[3], a->half[4] };
    return zb_cpu_ordered_reduce(
        &(zb_ordered_reduce_args){ inputs, RANKS, a->half[0], a->numel, dtype, ZB_AVG, 1 });
}
static zb_status run_reduce_avg(const arrays *a)
{
    return run_reduce(a, ZB_AVG);
}
static zb_status run_reduce_max(const arrays *a)
{
    return run_reduce(a, ZB_MAX);
}
static zb_status run_reduce_fp16(const arrays *a)
{
    return run_reduce_half(a, ZB_FP16);
}
static zb_status run_reduce_bf16(const arrays *a)
{
    return run_reduce_half(a, ZB_BF16);
}
static zb_status run_maxpool(const arrays *a)
{
    const zb_maxpool2d_shape shape = { 1, a->numel / 784, 28, 28, 14, 14, 2, 2 };
    return zb_cpu_maxpool2d_forward(
        &(zb_maxpool2d_forward_args){ ZB_FP32, shape, a->x[1], a->x[0], a->indices });
}
static zb_status run_cross_entropy(const arrays *a)
{
    float loss;
    memset(a->indices, 0, a->numel / CLASSES * sizeof a->indices[0]);
    return zb_cpu_cross_entropy_forward(&(zb_cross_entropy_forward_args){
        ZB_FP32, a->numel / CLASSES, CLASSES, a->x[1], a->indices, a->x[0], a->x[2], &loss });
}

static const struct operation {
    const char *name;
    double bytes; /* read and written per element */
    zb_status (*run)(const arrays *a);
    zb_status (*stream)(const arrays *a); /* the same traffic without the work, or NULL */
} operations[] = {
    { "copy (memcpy)", 8, run_copy, NULL },
    { "add", 12, run_add, NULL },
    { "add bf16", 6, run_add_bf16, NULL },
    { "scale", 8, run_scale, NULL },
    { "divide", 8, run_divide, NULL },
    { "relu_forward", 8, run_relu_forward, NULL },
    { "relu_forward bf16", 4, run_relu_bf16, NULL },
    { "relu_backward", 12, run_relu_backward, NULL },
    { "cast fp32 to bf16", 6, run_to_bf16, run_stream_narrow },
    { "cast fp32 to fp16", 6, run_to_fp16, run_stream_narrow },
    { "cast bf16 to fp32", 6, run_from_bf16, run_stream_widen },
    { "cast fp16 to fp32", 6, run_from_fp16, run_stream_widen },
    { "adam", 28, run_adam, run_stream_adam },
    { "adam, bf16 in and out", 28, run_adam_bf16, run_stream_adam_bf16 },
    { "adam, torch-2", 28, run_adam_torch, run_stream_adam },
    { "adam, deepspeed-cpu", 28, run_adam_cpu, run_stream_adam },
    { "sgd, momentum", 20, run_sgd, run_stream_one_moment },
    { "adagrad", 20, run_adagrad, run_stream_one_moment },
    { "lion", 20, run_lion, run_stream_one_moment },
    { "lamb_moments", 24, run_lamb_moments, run_stream_lamb_moments },
    { "lamb_apply", 16, run_lamb_apply, run_stream_lamb_apply },
    { "mse_forward", 8, run_mse_forward, NULL },
    { "linear_backward_bias", 4, run_bias, NULL },
    { "sum_squares", 4, run_sum_squares, NULL },
    { "ordered_reduce fp32 avg, 4", 20, run_reduce_avg, NULL },
    { "ordered_reduce bf16 avg, 4", 10, run_reduce_bf16, NULL },
    { "ordered_reduce fp16 avg, 4", 10, run_reduce_fp16, NULL },
    { "ordered_reduce fp32 max, 4", 20, run_reduce_max, NULL },
    { "maxpool2d_forward", 6, run_maxpool, NULL },
    { "cross_entropy_forward", 8, run_cross_entropy, NULL },
};

static double sample(zb_status (*run)(const arrays *a), const arrays *a)
{
    const int calls = 1 + (int)(1e6 / (double)a->numel);
    const double start = bench_seconds();
    for (int c = 0; c < calls; c++) bench_check(run(a));
    return (bench_seconds() - start) / calls;
}

/* An operation and its stream take turns, so that both see the same machine. */
static void measure(const struct operation *operation, const arrays *a, int samples)
{
    static double ours[BENCH_SAMPLES_MAX], stream[BENCH_SAMPLES_MAX];
    for (int i = -1; i < samples; i++) { /* the first one warms up */
        const double time = sample(operation->run, a);
        const double stream_time = operation->stream != NULL ? sample(operation->stream, a) : 0;
        if (i >= 0) ours[i] = time, stream[i] = stream_time;
    }
    const double time = bench_median(ours, samples), numel = (double)a->numel;
    printf("%-27s %9zu %10.2f us %7.3f ns %7.1f GB/s", operation->name, a->numel, 1e6 * time,
           1e9 * time / numel, 1e-9 * numel * operation->bytes / time);
    if (operation->stream != NULL) printf(" %6.2f", bench_median(stream, samples) / time);
    printf("\n");
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = { 4096, 1 << 24 };
    const int samples = bench_samples(argc, argv);
    if (zb_simd_level() == NULL) bench_check(ZB_INVALID_ARGUMENT);
    printf("zerobit: %s; median of %d samples, one thread\n", zb_simd_level(), samples);
    printf("%-27s %9s %13s %10s %12s %6s\n", "operation", "numel", "time", "per elem.", "traffic", "stream");
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        arrays a = { .numel = sizes[s], .indices = (int32_t *)bench_floats(sizes[s]) };
        for (int i = 0; i <= RANKS; i++) {
            a.x[i] = bench_floats(sizes[s]);
            a.half[i] = (uint16_t *)bench_floats(sizes[s] / 2);
            bench_check(zb_cpu_cast(&(zb_cast_args){ a.half[i], ZB_BF16, a.x[i], ZB_FP32, sizes[s] }));
        }
        for (size_t o = 0; o < sizeof operations / sizeof operations[0]; o++)
            measure(&operations[o], &a, samples);
        for (int i = 0; i <= RANKS; i++) free(a.x[i]), free(a.half[i]);
        free(a.indices);
    }
    return 0;
}
