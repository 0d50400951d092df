/*
 * How fast the matrix product is: beside OpenBLAS on one thread where it was found, sample by sample in
 * turns, so that both see the same machine. Each result is first compared with the plain loop, bit by bit.
 * The columns fp16 and bf16 are the speeds of the same product in these types, beside fp32.
 *
 * ZEROBIT_SIMD names the SIMD level to measure. OpenBLAS picks its kernels by the processor's model and may
 * not know a new one; OPENBLAS_CORETYPE names others (SKYLAKEX for AVX-512). The head line says which ones
 * ran.
 */
#include <math.h>
#include <string.h>

#include "tools/bench/bench.h"

#if ZB_BENCH_OPENBLAS
#include <cblas.h>
#endif

/* b_transposed: b is stored as [n,k], as weights and im2col rows are. */
static const struct shape {
    const char *name;
    size_t m, n, k;
    int a_transposed, b_transposed;
} shapes[] = {
    { "transformer mlp", 768, 3072, 768, 0, 0 },
    { "transformer mlp, w^T", 768, 3072, 768, 0, 1 },
    { "square", 1024, 1024, 1024, 0, 0 },
    { "square", 256, 256, 256, 0, 0 },
    { "square", 64, 64, 64, 0, 0 },
    { "cifar conv1 forward", 6, 784, 75, 0, 0 },
    { "cifar conv2 forward", 16, 100, 150, 0, 0 },
    { "cifar conv1 dw", 6, 75, 784, 0, 1 },
    { "cifar conv2 dx", 6, 196, 400, 0, 0 },
    { "cifar fc1 forward", 4, 120, 400, 0, 1 },
    { "cifar fc2 forward", 4, 84, 120, 0, 1 },
    { "cifar fc3 forward", 4, 10, 84, 0, 1 },
    { "cifar fc1 dx", 4, 400, 120, 0, 0 },
    { "cifar fc1 dw", 120, 400, 4, 1, 0 },
    { "cifar fc1 forward, 16 rows", 16, 120, 400, 0, 1 },
};

static zb_matmul_args matmul_args(const struct shape *s, zb_dtype dtype, const void *a, const void *b,
                                  void *c)
{
    return (zb_matmul_args){
        .dtype = dtype,
        .m = s->m,
        .n = s->n,
        .k = s->k,
        .c = c,
        .c_row = s->n,
        .a = a,
        .a_row = s->a_transposed ? 1 : s->k,
        .a_col = s->a_transposed ? s->m : 1,
        .b = b,
        .b_row = s->b_transposed ? 1 : s->n,
        .b_col = s->b_transposed ? s->k : 1,
    };
}

/* Elements that differ from the plain loop. */
static size_t count_wrong(const zb_matmul_args *args)
{
    const float *a = args->a, *b = args->b, *c = args->c;
    size_t wrong = 0;
    for (size_t i = 0; i < args->m; i++)
        for (size_t j = 0; j < args->n; j++) {
            float acc = 0;
            for (size_t p = 0; p < args->k; p++)
                acc = fmaf(a[i * args->a_row + p * args->a_col], b[p * args->b_row + j * args->b_col], acc);
            wrong += memcmp(&acc, &c[i * args->c_row + j], sizeof acc) != 0;
        }
    return wrong;
}

static void run_zerobit(const struct shape *s, const zb_matmul_args *args)
{
    (void)s;
    bench_check(zb_cpu_matmul(args));
}

#if ZB_BENCH_OPENBLAS
static void run_openblas(const struct shape *s, const zb_matmul_args *args)
{
    cblas_sgemm(CblasRowMajor, s->a_transposed ? CblasTrans : CblasNoTrans,
                s->b_transposed ? CblasTrans : CblasNoTrans, (int)s->m, (int)s->n, (int)s->k, 1, args->a,
                (int)(s->a_transposed ? s->m : s->k), args->b, (int)(s->b_transposed ? s->k : s->n), 0,
                args->c, (int)s->n);
}
#endif

/* Seconds per call, over as many calls as last about a millisecond. */
static double sample(void (*run)(const struct shape *, const zb_matmul_args *), const struct shape *s,
                     const zb_matmul_args *args)
{
    const int calls = 1 + (int)(5e7 / (2.0 * (double)s->m * (double)s->n * (double)s->k));
    const double start = bench_seconds();
    for (int i = 0; i < calls; i++) run(s, args);
    return (bench_seconds() - start) / calls;
}

static void cast(zb_dtype to_dtype, void *to, zb_dtype from_dtype, const void *from, size_t numel)
{
    bench_check(zb_cpu_cast(&(zb_cast_args){ to, to_dtype, from, from_dtype, numel }));
}

/*
 * The same product with a, b and c of 16 bits: how fast, beside fp32, sample by sample in turns; and how
 * many elements differ from the fp32 product of the same values, rounded.
 */
static size_t measure_half(const struct shape *s, zb_dtype dtype, int samples)
{
    static double half[BENCH_SAMPLES_MAX], single[BENCH_SAMPLES_MAX];
    const size_t a_numel = s->m * s->k, b_numel = s->k * s->n, c_numel = s->m * s->n;
    float *a = bench_floats(a_numel), *b = bench_floats(b_numel), *c = bench_floats(c_numel);
    uint16_t *a16 = (uint16_t *)bench_floats(a_numel), *b16 = (uint16_t *)bench_floats(b_numel);
    uint16_t *c16 = (uint16_t *)bench_floats(c_numel), *want = (uint16_t *)bench_floats(c_numel);
    cast(dtype, a16, ZB_FP32, a, a_numel), cast(ZB_FP32, a, dtype, a16, a_numel);
    cast(dtype, b16, ZB_FP32, b, b_numel), cast(ZB_FP32, b, dtype, b16, b_numel);
    const zb_matmul_args args = matmul_args(s, ZB_FP32, a, b, c),
                         args16 = matmul_args(s, dtype, a16, b16, c16);
    for (int i = -1; i < samples; i++) { /* the first one warms up */
        const double time = sample(run_zerobit, s, &args), half_time = sample(run_zerobit, s, &args16);
        if (i >= 0) single[i] = time, half[i] = half_time;
    }
    cast(dtype, want, ZB_FP32, c, c_numel);
    size_t wrong = 0;
    for (size_t i = 0; i < c_numel; i++) wrong += c16[i] != want[i];
    printf(" %6.2f", bench_median(single, samples) / bench_median(half, samples));
    free(a), free(b), free(c), free(a16), free(b16), free(c16), free(want);
    return wrong;
}

static size_t measure(const struct shape *s, int samples)
{
    static double ours[BENCH_SAMPLES_MAX], theirs[BENCH_SAMPLES_MAX];
    float *a = bench_floats(s->m * s->k), *b = bench_floats(s->k * s->n);
    float *c = bench_floats(s->m * s->n), *c_blas = bench_floats(s->m * s->n);
    const zb_matmul_args args = matmul_args(s, ZB_FP32, a, b, c),
                         args_blas = matmul_args(s, ZB_FP32, a, b, c_blas);
    const double gflop = 2e-9 * (double)s->m * (double)s->n * (double)s->k;
    run_zerobit(s, &args);
    size_t wrong = count_wrong(&args);
    for (int i = 0; i < samples; i++) {
        ours[i] = sample(run_zerobit, s, &args);
#if ZB_BENCH_OPENBLAS
        theirs[i] = sample(run_openblas, s, &args_blas);
#endif
    }
    const double our_time = bench_median(ours, samples);
    printf("%-27s %4zu %4zu %4zu %9.2f us %7.1f", s->name, s->m, s->n, s->k, 1e6 * our_time,
           gflop / our_time);
#if ZB_BENCH_OPENBLAS
    const double their_time = bench_median(theirs, samples);
    printf(" %8.1f %6.2f", gflop / their_time, their_time / our_time);
#else
    (void)theirs, (void)args_blas;
#endif
    wrong += measure_half(s, ZB_FP16, samples);
    wrong += measure_half(s, ZB_BF16, samples);
    printf(" %6zu\n", wrong);
    free(a), free(b), free(c), free(c_blas);
    return wrong;
}

int main(int argc, char **argv)
{
    const int samples = bench_samples(argc, argv);
    if (zb_simd_level() == NULL) bench_check(ZB_INVALID_ARGUMENT);
    printf("zerobit: %s", zb_simd_level());
#if ZB_BENCH_OPENBLAS
    openblas_set_num_threads(1);
    printf("; %s, kernels %s", openblas_get_config(), openblas_get_corename());
#endif
    printf("; median of %d samples, one thread\n", samples);
    printf("%-27s %4s %4s %4s %12s %7s", "shape", "m", "n", "k", "time", "GFLOP/s");
#if ZB_BENCH_OPENBLAS
    printf(" %8s %6s", "OpenBLAS", "ratio");
#endif
    printf(" %6s %6s %6s\n", "fp16", "bf16", "wrong");
    size_t wrong = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) wrong += measure(&shapes[i], samples);
    return wrong != 0;
}
