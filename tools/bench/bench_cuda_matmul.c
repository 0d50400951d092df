/*
 * How fast the matrix product is on a GPU: beside cuBLAS without TF32 (pedantic mathematics), sample by
 * sample in turns, so that both see the same clock. The inputs lie in the GPU's memory; times are CUDA's, of
 * a few products at a time.
 *
 * Of each result a sample of elements is compared: ours with the chain that the contract asks for, bit by bit
 * (`wrong`), and both with the product in fp64 (`error`, the largest difference). `peak` is what the CUDA
 * cores can do at the clock that the driver states; a GPU may run faster or slower than that.
 *
 * usage: bench_cuda_matmul [--json] [SAMPLES]. Exits with 3 where there is no GPU.
 */
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <string.h>

#include "kernels/cuda/launch.h"
#include "tools/bench/bench.h"

enum { CHECKED = 256, EXIT_NO_GPU = 3 };

static const struct shape {
    size_t m, n, k;
    int a_transposed, b_transposed;
} shapes[] = {
    { 4096, 4096, 4096, 0, 0 }, { 4096, 4096, 4096, 0, 1 }, { 4096, 4096, 4096, 1, 0 },
    { 4096, 4096, 4096, 1, 1 }, { 4095, 4093, 4091, 0, 0 }, { 1024, 1024, 1024, 0, 0 },
    { 768, 3072, 768, 0, 0 },   { 768, 3072, 768, 0, 1 },   { 3072, 768, 768, 1, 0 },
    { 256, 256, 256, 0, 0 },    { 64, 120, 400, 0, 1 },
};
static const zb_dtype dtypes[] = { ZB_FP32, ZB_BF16, ZB_FP16 };

typedef struct gpu {
    cudaStream_t stream;
    cudaEvent_t start, end;
    cublasHandle_t blas;
    double peak_gflops;
} gpu;

/* One product: its arguments on the GPU, and the values of a and b as fp32 on the host. */
typedef struct product {
    const struct shape *shape;
    zb_matmul_args args;
    float *a, *b;
    void *c_ours, *c_blas;
} product;

static void check_cuda(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(4);
}
static void check_blas(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fprintf(stderr, "%s: %s\n", what, cublasGetStatusString(status));
    exit(4);
}

/* --- the GPU --- */

static int attribute(enum cudaDeviceAttr which)
{
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
    return value;
}

/* fp32 lanes of a multiprocessor */
static int lanes(int major, int minor)
{
    return major == 7 || (major == 8 && minor == 0) ? 64 : 128;
}

static gpu gpu_open(void)
{
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        fprintf(stderr, "no GPU here: %s\n",
                error != cudaSuccess ? cudaGetErrorString(error) : "CUDA counts none");
        exit(EXIT_NO_GPU);
    }
    gpu g;
    check_cuda(cudaSetDevice(0), "cudaSetDevice");
    check_cuda(cudaStreamCreate(&g.stream), "cudaStreamCreate");
    check_cuda(cudaEventCreate(&g.start), "cudaEventCreate");
    check_cuda(cudaEventCreate(&g.end), "cudaEventCreate");
    check_blas(cublasCreate(&g.blas), "cublasCreate");
    check_blas(cublasSetStream(g.blas, g.stream), "cublasSetStream");
    check_blas(cublasSetMathMode(g.blas, CUBLAS_PEDANTIC_MATH), "cublasSetMathMode");
    const int per_multiprocessor = lanes(attribute(cudaDevAttrComputeCapabilityMajor),
                                         attribute(cudaDevAttrComputeCapabilityMinor));
    g.peak_gflops = 2e-6 * per_multiprocessor * attribute(cudaDevAttrMultiProcessorCount) *
                    attribute(cudaDevAttrClockRate);
    return g;
}

static void gpu_close(gpu *g)
{
    check_blas(cublasDestroy(g->blas), "cublasDestroy");
    check_cuda(cudaEventDestroy(g->start), "cudaEventDestroy");
    check_cuda(cudaEventDestroy(g->end), "cudaEventDestroy");
    check_cuda(cudaStreamDestroy(g->stream), "cudaStreamDestroy");
}

/* --- products --- */

static void *device_room(size_t bytes)
{
    void *room;
    check_cuda(cudaMalloc(&room, bytes), "cudaMalloc");
    return room;
}

static void *host_room(size_t bytes)
{
    void *room = malloc(bytes);
    if (room == NULL) exit(4);
    return room;
}

static void cast(zb_dtype to_dtype, void *to, zb_dtype from_dtype, const void *from, size_t numel)
{
    bench_check(zb_cpu_cast(&(zb_cast_args){ to, to_dtype, from, from_dtype, numel }));
}

/* Random numbers of the type, on the GPU; *values_p are the same, as fp32 on the host. */
static void *operand(zb_dtype dtype, size_t numel, float **values_p)
{
    const size_t bytes = numel * zb_dtype_bytes(dtype);
    float *values = bench_floats(numel);
    void *narrow = host_room(bytes), *on_device = device_room(bytes);
    cast(dtype, narrow, ZB_FP32, values, numel), cast(ZB_FP32, values, dtype, narrow, numel);
    check_cuda(cudaMemcpy(on_device, narrow, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    free(narrow);
    *values_p = values;
    return on_device;
}

static product product_of(const struct shape *s, zb_dtype dtype)
{
    product p = { .shape = s };
    const size_t c_bytes = s->m * s->n * zb_dtype_bytes(dtype);
    p.c_ours = device_room(c_bytes), p.c_blas = device_room(c_bytes);
    p.args = (zb_matmul_args){ .dtype = dtype,
                               .m = s->m,
                               .n = s->n,
                               .k = s->k,
                               .a = operand(dtype, s->m * s->k, &p.a),
                               .a_row = s->a_transposed ? 1 : s->k,
                               .a_col = s->a_transposed ? s->m : 1,
                               .b = operand(dtype, s->k * s->n, &p.b),
                               .b_row = s->b_transposed ? 1 : s->n,
                               .b_col = s->b_transposed ? s->k : 1,
                               .c = p.c_ours,
                               .c_row = s->n };
    return p;
}

static void product_free(product *p)
{
    check_cuda(cudaFree((void *)p->args.a), "cudaFree");
    check_cuda(cudaFree((void *)p->args.b), "cudaFree");
    check_cuda(cudaFree(p->c_ours), "cudaFree");
    check_cuda(cudaFree(p->c_blas), "cudaFree");
    free(p->a), free(p->b);
}

static void run_ours(const gpu *g, const product *p)
{
    bench_check(zb_cuda_launch(g->stream, ZB_KERNEL_matmul, &p->args, sizeof p->args));
}

/* cuBLAS counts by columns: it is asked for the transpose, b^T times a^T. */
static void run_blas(const gpu *g, const product *p)
{
    const float one = 1, zero = 0;
    const struct shape *s = p->shape;
    const cudaDataType type = p->args.dtype == ZB_FP32   ? CUDA_R_32F
                              : p->args.dtype == ZB_BF16 ? CUDA_R_16BF
                                                         : CUDA_R_16F;
    check_blas(cublasGemmEx(g->blas, s->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                            s->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, (int)s->n, (int)s->m, (int)s->k,
                            &one, p->args.b, type, (int)(s->b_transposed ? s->k : s->n), p->args.a, type,
                            (int)(s->a_transposed ? s->m : s->k), &zero, p->c_blas, type, (int)s->n,
                            CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT),
               "cublasGemmEx");
}

/* Seconds per product, over as many as last some milliseconds. */
static double sample(void (*run)(const gpu *, const product *), const gpu *g, const product *p)
{
    const double flop = 2.0 * (double)p->shape->m * (double)p->shape->n * (double)p->shape->k;
    const int calls = 1 + (int)(1e11 / (flop + 1e8));
    float milliseconds;
    check_cuda(cudaEventRecord(g->start, g->stream), "cudaEventRecord");
    for (int i = 0; i < calls; i++) run(g, p);
    check_cuda(cudaEventRecord(g->end, g->stream), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(g->end), "cudaEventSynchronize");
    check_cuda(cudaEventElapsedTime(&milliseconds, g->start, g->end), "cudaEventElapsedTime");
    return 1e-3 * milliseconds / calls;
}

/* --- right? --- */

typedef struct findings {
    size_t wrong;                  /* of CHECKED elements of ours */
    double our_error, their_error; /* the largest differences from the product in fp64 */
    double our_seconds, their_seconds;
} findings;

static float *result_values(const product *p, const void *c)
{
    const zb_dtype dtype = p->args.dtype;
    const size_t numel = p->shape->m * p->shape->n, bytes = numel * zb_dtype_bytes(dtype);
    void *raw = host_room(bytes);
    float *values = host_room(numel * sizeof *values);
    check_cuda(cudaMemcpy(raw, c, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    cast(ZB_FP32, values, dtype, raw, numel);
    free(raw);
    return values;
}

static float rounded(zb_dtype dtype, float x)
{
    uint32_t narrow;
    float wide;
    cast(dtype, &narrow, ZB_FP32, &x, 1), cast(ZB_FP32, &wide, dtype, &narrow, 1);
    return wide;
}

static void check(const product *p, findings *f)
{
    const zb_matmul_args *args = &p->args;
    float *ours = result_values(p, p->c_ours), *theirs = result_values(p, p->c_blas);
    for (size_t e = 0; e < CHECKED; e++) {
        const size_t at = e * 2654435761u % (args->m * args->n), i = at / args->n, j = at % args->n;
        float chain = 0;
        double wide = 0;
        for (size_t q = 0; q < args->k; q++) {
            const float a = p->a[i * args->a_row + q * args->a_col],
                        b = p->b[q * args->b_row + j * args->b_col];
            chain = fmaf(a, b, chain);
            wide += (double)a * b;
        }
        const float want = rounded(args->dtype, chain);
        f->wrong += memcmp(&want, &ours[at], sizeof want) != 0;
        f->our_error = fmax(f->our_error, fabs(ours[at] - wide));
        f->their_error = fmax(f->their_error, fabs(theirs[at] - wide));
    }
    free(ours), free(theirs);
}

static findings measure(const gpu *g, const struct shape *s, zb_dtype dtype, int samples)
{
    static double ours[BENCH_SAMPLES_MAX], theirs[BENCH_SAMPLES_MAX];
    product p = product_of(s, dtype);
    findings f = { 0 };
    for (int i = -1; i < samples; i++) { /* the first one warms up */
        const double our_time = sample(run_ours, g, &p), their_time = sample(run_blas, g, &p);
        if (i >= 0) ours[i] = our_time, theirs[i] = their_time;
    }
    check(&p, &f);
    f.our_seconds = bench_median(ours, samples), f.their_seconds = bench_median(theirs, samples);
    product_free(&p);
    return f;
}

/* --- the report --- */

static void print_head(const gpu *g, int samples, int json)
{
    struct cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    int version = 0;
    check_blas(cublasGetVersion(g->blas, &version), "cublasGetVersion");
    if (json) {
        printf("{\"gpu\": \"%s\", \"multiprocessors\": %d, \"peak_gflops\": %.0f, \"cublas\": %d, "
               "\"samples\": %d, \"products\": [",
               properties.name, properties.multiProcessorCount, g->peak_gflops, version, samples);
        return;
    }
    printf("%s, %d multiprocessors, peak %.0f GFLOP/s; cuBLAS %d, pedantic; median of %d samples\n",
           properties.name, properties.multiProcessorCount, g->peak_gflops, version, samples);
    printf("%4s %4s %4s %2s %4s %11s %8s %6s %8s %6s %9s %9s %5s\n", "m", "n", "k", "", "type", "time",
           "GFLOP/s", "peak", "cuBLAS", "ratio", "error", "of cuBLAS", "wrong");
}

static void print_product(const gpu *g, const struct shape *s, zb_dtype dtype, const findings *f, int json,
                          int first)
{
    const double gflop = 2e-9 * (double)s->m * (double)s->n * (double)s->k;
    const double ours = gflop / f->our_seconds, theirs = gflop / f->their_seconds;
    const char layout[] = { s->a_transposed ? 't' : 'n', s->b_transposed ? 't' : 'n', 0 };
    printf(json ? "%s\n  {\"m\": %zu, \"n\": %zu, \"k\": %zu, \"layout\": \"%s\", \"dtype\": \"%s\", \"us\": "
                  "%.3f, \"gflops\": %.1f, \"share_of_peak\": "
                  "%.4f, \"cublas_gflops\": %.1f, \"ratio\": %.4f, \"max_error\": %.3e, "
                  "\"cublas_max_error\": %.3e, \"wrong\": %zu}"
                : "%s%4zu %4zu %4zu %2s %4s %8.2f us %8.0f %6.3f %8.0f %6.3f %9.2e %9.2e %5zu\n",
           json && !first ? "," : "", s->m, s->n, s->k, layout, zb_dtype_name(dtype), 1e6 * f->our_seconds,
           ours, ours / g->peak_gflops, theirs, ours / theirs, f->our_error, f->their_error, f->wrong);
}

int main(int argc, char **argv)
{
    const int json = argc > 1 && strcmp(argv[1], "--json") == 0;
    if (json) argv[1] = argv[0], argv++, argc--;
    const int samples = bench_samples(argc, argv);
    gpu g = gpu_open();
    size_t wrong = 0;
    print_head(&g, samples, json);
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
            const findings f = measure(&g, &shapes[s], dtypes[d], samples);
            print_product(&g, &shapes[s], dtypes[d], &f, json, s == 0 && d == 0);
            wrong += f.wrong;
        }
    if (json) printf("\n]}\n");
    gpu_close(&g);
    return wrong != 0;
}
