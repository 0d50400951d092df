/*
 * How fast operations that memory limits are on a GPU: bytes read and written per second, beside a copy from
 * device memory to device memory in the same run, and the ratio of the two. Medians of single launches, timed
 * by CUDA's events.
 */
#include <string.h>

#include "kernels/cuda/launch.h"
#include "tools/bench/bench.h"

enum { RANKS = 4, WARM_UPS = 3, NO_GPU = 3, FAILED = 4, NUMEL_DEFAULT = 1 << 26 };

typedef struct options {
    size_t numel;
    int samples, json;
} options;

/* Arrays of `numel` floats each; an operation on 16-bit elements uses the first half of one. */
typedef struct arrays {
    size_t numel;
    void *x[RANKS + 1];
    int64_t *accumulator;
    cudaStream_t stream;
} arrays;

static void cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s (%s)\n", what, cudaGetErrorString(error), cudaGetErrorName(error));
    exit(FAILED);
}

/* --- what is measured --- */

static zb_status launch(const arrays *a, zb_kernel kernel, const void *args, size_t args_bytes)
{
    return zb_cuda_launch(a->stream, kernel, args, args_bytes);
}
#define LAUNCH(a, operation, ...)                                                                            \
    launch(a, ZB_KERNEL_##operation, &(zb_##operation##_args){ __VA_ARGS__ }, sizeof(zb_##operation##_args))

static zb_status run_copy(const arrays *a)
{
    cuda_check(
        cudaMemcpyAsync(a->x[0], a->x[1], a->numel * sizeof(float), cudaMemcpyDeviceToDevice, a->stream),
        "cudaMemcpyAsync");
    return ZB_OK;
}
static zb_status run_add(const arrays *a)
{
    return LAUNCH(a, add, ZB_FP32, a->x[0], ZB_FP32, a->x[1], a->numel);
}
static zb_status run_cast_down(const arrays *a)
{
    return LAUNCH(a, cast, a->x[0], ZB_BF16, a->x[1], ZB_FP32, a->numel);
}
static zb_status run_cast_up(const arrays *a)
{
    return LAUNCH(a, cast, a->x[0], ZB_FP32, a->x[1], ZB_BF16, a->numel);
}
static zb_status adam(const arrays *a, zb_dtype grad_dtype, void *param)
{
    return LAUNCH(a, adam, .p = a->x[0], .grad_dtype = grad_dtype, .grad = a->x[1], .m = a->x[2],
                  .v = a->x[3], .param_dtype = ZB_BF16, .param = param, .numel = a->numel, .grad_scale = 1,
                  .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .one_minus_beta1 = 0.1f,
                  .one_minus_beta2 = 0.001f, .eps = 1e-8f, .weight_decay = 0.01f, .correction1 = 0.1f,
                  .correction2 = 0.001f, .decoupled = 1, .arithmetic = ZB_ARITHMETIC_PLAIN);
}
static zb_status run_adam(const arrays *a)
{
    return adam(a, ZB_FP32, NULL);
}
static zb_status run_adam_bf16(const arrays *a)
{
    return adam(a, ZB_BF16, a->x[4]);
}
static zb_status reduce(const arrays *a, zb_dtype dtype)
{
    const void *inputs[RANKS];
    for (int r = 0; r < RANKS; r++) inputs[r] = a->x[r + 1];
    return LAUNCH(a, ordered_reduce, inputs, RANKS, a->x[0], a->numel, dtype, ZB_SUM, 1);
}
static zb_status run_reduce(const arrays *a)
{
    return reduce(a, ZB_FP32);
}
static zb_status run_reduce_bf16(const arrays *a)
{
    return reduce(a, ZB_BF16);
}
static zb_status run_sum_squares(const arrays *a)
{
    return LAUNCH(a, sum_squares, ZB_FP32, a->x[1], a->numel, a->accumulator);
}
static zb_status run_sum_squares_bf16(const arrays *a)
{
    return LAUNCH(a, sum_squares, ZB_BF16, a->x[1], a->numel, a->accumulator);
}

static const struct measured {
    const char *name;
    zb_status (*run)(const arrays *a);
    int bytes; /* read and written for each element */
} measured[] = {
    { "device to device copy", run_copy, 8 }, /* what the others are compared with */
    { "add fp32", run_add, 12 },
    { "cast fp32 to bf16", run_cast_down, 6 },
    { "cast bf16 to fp32", run_cast_up, 6 },
    { "adam fp32", run_adam, 28 },
    { "adam bf16 gradients and parameters", run_adam_bf16, 28 },
    { "ordered_reduce fp32, 4 ranks", run_reduce, 20 },
    { "ordered_reduce bf16, 4 ranks", run_reduce_bf16, 10 },
    { "sum_squares fp32", run_sum_squares, 4 },
    { "sum_squares bf16", run_sum_squares_bf16, 2 },
};
enum { MEASURED = sizeof measured / sizeof measured[0] };

/* --- measuring --- */

static double median_seconds(const arrays *a, zb_status (*run)(const arrays *), int samples)
{
    static double seconds[BENCH_SAMPLES_MAX];
    cudaEvent_t begin, end;
    cuda_check(cudaEventCreate(&begin), "cudaEventCreate");
    cuda_check(cudaEventCreate(&end), "cudaEventCreate");
    for (int i = -WARM_UPS; i < samples; i++) {
        float milliseconds;
        cuda_check(cudaEventRecord(begin, a->stream), "cudaEventRecord");
        bench_check(run(a));
        cuda_check(cudaEventRecord(end, a->stream), "cudaEventRecord");
        cuda_check(cudaEventSynchronize(end), "cudaEventSynchronize");
        cuda_check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
        if (i >= 0) seconds[i] = (double)milliseconds * 1e-3;
    }
    cuda_check(cudaEventDestroy(begin), "cudaEventDestroy");
    cuda_check(cudaEventDestroy(end), "cudaEventDestroy");
    return bench_median(seconds, samples);
}

/* Numbers between -1 and 1; as bf16 they are ordinary ones too. The moments of Adam are 0 at first. */
static arrays make_arrays(size_t numel)
{
    arrays a = { .numel = numel };
    const size_t bytes = numel * sizeof(float), accumulator_bytes = ZB_SUM_SQUARES_WORDS * sizeof(int64_t);
    float *values = bench_floats(numel);
    void *accumulator;
    cuda_check(cudaStreamCreateWithFlags(&a.stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    for (int i = 0; i <= RANKS; i++) {
        cuda_check(cudaMalloc(&a.x[i], bytes), "cudaMalloc");
        if (i == 2 || i == 3)
            cuda_check(cudaMemset(a.x[i], 0, bytes), "cudaMemset");
        else
            cuda_check(cudaMemcpy(a.x[i], values, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    cuda_check(cudaMalloc(&accumulator, accumulator_bytes), "cudaMalloc");
    cuda_check(cudaMemset(accumulator, 0, accumulator_bytes), "cudaMemset");
    cuda_check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    a.accumulator = accumulator;
    free(values);
    return a;
}

static void free_arrays(arrays *a)
{
    for (int i = 0; i <= RANKS; i++) cuda_check(cudaFree(a->x[i]), "cudaFree");
    cuda_check(cudaFree(a->accumulator), "cudaFree");
    cuda_check(cudaStreamDestroy(a->stream), "cudaStreamDestroy");
}

/* --- the report --- */

static void print_table(const char *device, const options *o, const double *bytes_per_second)
{
    printf("%s, %zu elements, median of %d\n%-36s %12s %8s\n", device, o->numel, o->samples, "", "GB/s",
           "of copy");
    for (int i = 0; i < MEASURED; i++)
        printf("%-36s %12.1f %7.1f%%\n", measured[i].name, bytes_per_second[i] * 1e-9,
               100 * bytes_per_second[i] / bytes_per_second[0]);
}

static void print_json(const char *device, const options *o, const double *bytes_per_second)
{
    printf("{\n  \"device\": \"%s\",\n  \"numel\": %zu,\n  \"samples\": %d,\n  \"operations\": [\n", device,
           o->numel, o->samples);
    for (int i = 0; i < MEASURED; i++)
        printf("    { \"name\": \"%s\", \"bytes_per_second\": %.6g, \"of_copy\": %.4f }%s\n",
               measured[i].name, bytes_per_second[i], bytes_per_second[i] / bytes_per_second[0],
               i + 1 < MEASURED ? "," : "");
    printf("  ]\n}\n");
}

static void usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [--json] [--numel N] [--samples N]\n"
            "  --numel    elements of each array (default %d; 20 bytes of device memory each)\n"
            "  --samples  launches that a median is taken of (1..%d, default %d)\n",
            program, NUMEL_DEFAULT, BENCH_SAMPLES_MAX, BENCH_SAMPLES_DEFAULT);
    exit(2);
}

static size_t number_option(int argc, char **argv, int *i, size_t limit)
{
    char *end;
    if (*i + 1 >= argc) usage(argv[0]);
    const char *text = argv[++*i];
    const unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || value < 1 || value > limit) usage(argv[0]);
    return (size_t)value;
}

static options parse(int argc, char **argv)
{
    options o = { .numel = NUMEL_DEFAULT, .samples = BENCH_SAMPLES_DEFAULT };
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            o.json = 1;
        else if (strcmp(argv[i], "--numel") == 0)
            o.numel = number_option(argc, argv, &i, (size_t)1 << 36);
        else if (strcmp(argv[i], "--samples") == 0)
            o.samples = (int)number_option(argc, argv, &i, BENCH_SAMPLES_MAX);
        else
            usage(argv[0]);
    }
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        fprintf(stderr, "no GPU here: %s\n",
                error != cudaSuccess ? cudaGetErrorString(error) : "CUDA counts 0 devices");
        return NO_GPU;
    }
    struct cudaDeviceProp properties;
    cuda_check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    arrays a = make_arrays(o.numel);
    double bytes_per_second[MEASURED];
    for (int i = 0; i < MEASURED; i++)
        bytes_per_second[i] = (double)measured[i].bytes * (double)o.numel /
                              median_seconds(&a, measured[i].run, o.samples);
    (o.json ? print_json : print_table)(properties.name, &o, bytes_per_second);
    free_arrays(&a);
    return 0;
}
